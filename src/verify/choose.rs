//! Which two copies of a user are compared, and how they belong together.

use super::finding::{Relation, Side};
use crate::wire::v1::{CopyKind, UserCopy};

/// What one server has, and what it is called.
pub struct Offer<'a> {
    /// Its copies, the newest first.
    pub copies: &'a [UserCopy],
    /// Names that the other server may know it by.
    pub names: Vec<String>,
}

impl Offer<'_> {
    fn has(&self, kind: CopyKind) -> Option<usize> {
        self.copies.iter().position(|copy| copy.kind() == kind)
    }

    /// The copy of that kind that belongs to a move from or to `other`.
    fn moved(&self, kind: CopyKind, other: &Offer<'_>) -> Option<usize> {
        let ours = |copy: &UserCopy| copy.kind() == kind;
        let known = |copy: &UserCopy| ours(copy) && other.names.contains(&copy.peer);
        let matching = self.copies.iter().position(known);
        matching.or_else(|| self.copies.iter().position(ours))
    }
}

/// Chooses the copies to compare, as positions; `None` when there are no two.
///
/// Two live copies come first: nothing else matters while a user is in two
/// places. Then the copy that is in use and the one of a move.
pub fn choose(here: &Offer<'_>, there: &Offer<'_>) -> Option<([usize; 2], Relation)> {
    let (live_here, live_there) = (here.has(CopyKind::Live), there.has(CopyKind::Live));
    if let (Some(a), Some(b)) = (live_here, live_there) {
        return Some(([a, b], Relation::BothLive));
    }
    [CopyKind::Stage, CopyKind::Retired].into_iter().find_map(|kind| {
        let relation = |later| match kind {
            CopyKind::Stage => Relation::BeforeSwitch(later),
            _ => Relation::AfterSwitch(later),
        };
        let used_here = live_here.zip(there.moved(kind, here)).map(|(a, b)| [a, b]);
        let used_there = here.moved(kind, there).zip(live_there).map(|(a, b)| [a, b]);
        let used_here = used_here.map(|at| (at, relation(Side::Here)));
        used_here.or_else(|| used_there.map(|at| (at, relation(Side::There))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(kind: CopyKind, peer: &str) -> UserCopy {
        UserCopy { kind: kind.into(), peer: peer.into(), ..UserCopy::default() }
    }

    fn chosen(here: &[UserCopy], there: &[UserCopy]) -> Option<([usize; 2], Relation)> {
        let here = Offer { copies: here, names: vec!["bw1".into()] };
        choose(&here, &Offer { copies: there, names: vec!["bw2".into()] })
    }

    #[test]
    fn two_live_copies_come_before_all_else() {
        let (live, stage) = (copy(CopyKind::Live, ""), copy(CopyKind::Stage, "bw1"));
        let retired = copy(CopyKind::Retired, "bw2");
        assert_eq!(
            chosen(&[live.clone(), retired.clone()], &[stage.clone(), live.clone()]),
            Some(([0, 1], Relation::BothLive))
        );
        assert_eq!(
            chosen(&[live.clone(), retired.clone()], &[stage]),
            Some(([0, 0], Relation::BeforeSwitch(Side::Here)))
        );
        assert_eq!(
            chosen(std::slice::from_ref(&retired), std::slice::from_ref(&live)),
            Some(([0, 0], Relation::AfterSwitch(Side::There)))
        );
        // From the new server the same can be asked.
        assert_eq!(
            chosen(std::slice::from_ref(&live), std::slice::from_ref(&retired)),
            Some(([0, 0], Relation::AfterSwitch(Side::Here)))
        );
        assert_eq!(chosen(&[live], &[]), None);
        assert_eq!(chosen(&[], &[retired]), None);
    }

    #[test]
    fn the_copy_of_the_move_between_these_two_is_taken() {
        let here = [copy(CopyKind::Retired, "bw3"), copy(CopyKind::Retired, "bw2")];
        let there = [copy(CopyKind::Live, "")];
        assert_eq!(chosen(&here, &there), Some(([1, 0], Relation::AfterSwitch(Side::There))));
        assert_eq!(chosen(&here[..1], &there), Some(([0, 0], Relation::AfterSwitch(Side::There))));
    }
}
