//! Who is over a quota may move, and stays over it: that he gets no mail is to be known.

use super::inventory::Listing;
use crate::cyrus::name::MailboxName;
use crate::cyrus::quota::{Quota, Resource};
use crate::host::Host;
use crate::wire::v1::{self, problem::Severity};

/// A note for each quota root that is over its limit.
pub fn notes(host: &Host, listing: &Listing) -> Vec<v1::Problem> {
    // What cannot be read is refused where it is sent.
    let roots = listing.quota_roots(host).unwrap_or_default();
    let note = |root: v1::QuotaRoot| {
        let quota = Quota::parse(&root.record).ok()??;
        let exceeded = exceeded(&quota)?;
        let name = host.external(&MailboxName::from_internal(&root.name).ok()?);
        Some(v1::Problem {
            severity: Severity::Note.into(),
            code: "over-quota".into(),
            text: format!("{name} is over its quota, {exceeded}: neither server takes mail for it"),
            mailbox: name,
            advice: "raise the limit (SETQUOTA), or have something deleted; the move goes on"
                .into(),
            ..v1::Problem::default()
        })
    };
    roots.into_iter().filter_map(note).collect()
}

/// What there is too much of, in words.
fn exceeded(quota: &Quota) -> Option<String> {
    const KIB: i128 = 1024;
    let resources = [
        ("STORAGE", KIB, "bytes", quota.storage),
        ("MESSAGE", 1, "messages", quota.message),
        ("X-ANNOTATION-STORAGE", KIB, "bytes", quota.annotation_storage),
        ("X-NUM-FOLDERS", 1, "folders", quota.num_folders),
    ];
    resources.into_iter().find_map(|(name, unit, of, resource)| {
        let Resource { used, limit } = resource?;
        let limit = i128::from(limit?) * unit;
        (i128::from(used) > limit).then(|| format!("{name}: {used} of {limit} {of}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_exceeded_is_told_in_bytes() {
        for (record, says) in [
            ("%(S (2049 2))", Some("STORAGE: 2049 of 2048 bytes")),
            ("%(S (2048 2) M (5 4))", Some("MESSAGE: 5 of 4 messages")),
            ("%(S (99999999) M (5 5) NF (1 2))", None),
            ("1025 1", Some("STORAGE: 1025 of 1024 bytes")),
        ] {
            let quota = Quota::parse(record.as_bytes()).unwrap().unwrap();
            assert_eq!(exceeded(&quota).as_deref(), says, "{record}");
        }
    }
}
