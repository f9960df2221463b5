//! Who is on the source, as its inspecting agent tells.

use super::resolve::Top;
use crate::push::peer::{Peer, PeerError};
use crate::wire::frame::{FrameError, Kind};
use crate::wire::printable;
use crate::wire::v1::{self, part::Part, reply::Result as Answer, request::Op};
use std::collections::HashMap;

/// Everybody that could be moved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// Users, and mailboxes that nobody owns.
    pub tops: Vec<Top>,
    /// Whether `/` separates there.
    pub unix_separator: bool,
}

impl Survey {
    /// Takes up who is on another server. A name that both have is noted, unless
    /// one of them has moved it away.
    ///
    /// Errors: names do not mean the same on both.
    pub fn join(&mut self, other: Self) -> Result<(), String> {
        let name = |survey: &Self| survey.tops.first().map(|top| top.source.clone());
        if self.tops.is_empty() {
            *self = other;
            return Ok(());
        }
        if !other.tops.is_empty() && self.unix_separator != other.unix_separator {
            let (one, two) = (name(self).unwrap_or_default(), name(&other).unwrap_or_default());
            return Err(format!(
                "{one} and {two} differ in unixhierarchysep: a run is of servers on which names \
                 are written alike"
            ));
        }
        let mut known: HashMap<String, usize> =
            self.tops.iter().enumerate().map(|(at, top)| (top.name.clone(), at)).collect();
        for top in other.tops {
            let twin = known.get(&top.name).and_then(|at| self.tops.get_mut(*at));
            match twin {
                None => {
                    known.insert(top.name.clone(), self.tops.len());
                    self.tops.push(top);
                }
                Some(twin) if !twin.away.is_empty() => *twin = top,
                Some(_) if !top.away.is_empty() => {}
                Some(twin) => twin.also_on = top.source,
            }
        }
        Ok(())
    }
}

/// Asks an inspecting agent; with how many messages and bytes, if `sizes`.
pub async fn survey(peer: &mut Peer, sizes: bool) -> Result<Survey, PeerError> {
    peer.begin(Op::ListTops(v1::ListTops { sizes })).await?;
    let mut survey = Survey::default();
    loop {
        let frame = peer.next().await?;
        match frame.kind {
            Kind::Part => {
                let part: v1::Part = frame.decode("part").map_err(|e| malformed(peer, e))?;
                match part.part {
                    Some(Part::TopList(list)) => {
                        let name = &peer.welcome.servername;
                        survey.tops.extend(list.tops.into_iter().map(|t| top(t, name)));
                    }
                    _ => return Err(peer.unexpected("list of users")),
                }
            }
            _ => match peer.decode_reply(&frame)? {
                Answer::TopsListed(listed) => {
                    survey.unix_separator = listed.unix_separator;
                    return Ok(survey);
                }
                _ => return Err(peer.unexpected("list of users")),
            },
        }
    }
}

fn malformed(peer: &Peer, source: FrameError) -> PeerError {
    PeerError::Protocol { server: peer.server().to_owned(), source }
}

fn top(top: v1::Top, source: &str) -> Top {
    Top {
        source: printable(source),
        also_on: String::new(),
        name: printable(&top.display),
        userid: printable(&top.userid),
        partition: printable(&top.partition),
        away: printable(&top.away),
        mailboxes: top.mailboxes,
        messages: top.messages,
        bytes: top.bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::{Line, Whom};
    use super::super::resolve::{ResolveError, resolve};
    use super::*;

    fn of(source: &str, names: &[&str]) -> Survey {
        let top = |name: &&str| Top {
            name: format!("user.{name}"),
            userid: (*name).into(),
            source: source.into(),
            ..Top::default()
        };
        Survey { tops: names.iter().map(top).collect(), unix_separator: false }
    }

    #[test]
    fn each_user_is_on_the_server_that_has_him() {
        let mut all = of("bw1", &["a", "gone", "twice"]);
        all.tops[1].away = "bw3".into();
        all.join(of("bw3", &["b", "gone", "twice"])).unwrap();
        let plan = |names: &[&str]| {
            let lines = names.iter().map(|name| Line::alone(Whom::parse(name)));
            resolve(&lines.collect::<Vec<_>>(), &all.tops, false, Some("bw2"))
        };
        let users = plan(&["a", "b", "gone", "nobody"]).unwrap();
        let users: Vec<_> = users.iter().map(|u| (u.source.as_str(), u.known)).collect();
        assert_eq!(users, [("bw1", true), ("bw3", true), ("bw3", true), ("bw1", false)]);
        let error = plan(&["user.*"]).unwrap_err();
        assert!(
            matches!(&error, ResolveError::TwoSources { first, .. } if first == "bw1"),
            "{error}"
        );
        assert_eq!(error.to_string().split(':').next(), Some("user.twice is on bw1 and on bw3"));

        let slashes = Survey { unix_separator: true, ..of("bw4", &["c"]) };
        assert!(all.join(slashes).unwrap_err().starts_with("bw1 and bw4 differ"));
        let mut none = Survey::default();
        none.join(of("bw1", &["a"])).unwrap();
        assert_eq!(none, of("bw1", &["a"]));
    }
}
