//! Whether mail is held for a move: the admin's freeze command has been run, or was about
//! to be, and his thaw command is due. It stands in the journals of both servers, so that
//! whoever asks either of them is told, whatever became of the coordinator.

use super::journal::Entry;

/// What [`Entry::detail`] begins with while mail is held.
const MARK: &str = "held:";

impl Entry {
    /// Whether the thaw command is due.
    pub fn mail_is_held(&self) -> bool {
        self.detail.starts_with(MARK)
    }

    /// Notes whether the thaw command is due.
    pub fn set_mail_held(&mut self, held: bool) {
        let note = self.note();
        self.detail = if held { format!("{MARK}{note}") } else { note.to_owned() };
    }

    /// What the detail says besides.
    pub fn note(&self) -> &str {
        self.detail.strip_prefix(MARK).unwrap_or(&self.detail)
    }

    /// Changes that, and nothing else.
    pub fn set_note(&mut self, note: &str) {
        let mark = if self.mail_is_held() { MARK } else { "" };
        self.detail = format!("{mark}{note}");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::wire::v1;

    #[test]
    fn a_hold_and_the_rest_of_the_detail_do_not_touch_each_other() {
        let mut entry = Entry {
            id: "00112233aabbccdd".parse().unwrap(),
            role: v1::Role::Source,
            name: b"user.x".to_vec(),
            display: "user.x".into(),
            peer: "bw2".into(),
            state: "copying".into(),
            detail: "{}".into(),
            started: 1,
            updated: 2,
        };
        assert!(!entry.mail_is_held());
        entry.set_mail_held(true);
        entry.set_mail_held(true);
        assert!(entry.mail_is_held() && entry.note() == "{}");
        entry.set_note("other");
        assert!(entry.mail_is_held() && entry.note() == "other");
        assert!(v1::MoveRecord::from(entry.clone()).mail_held);
        entry.set_mail_held(false);
        assert_eq!(entry.detail, "other");
    }
}
