//! Reads spools that real servers of old versions wrote, and compares what the
//! parsers see with what IMAP clients of those servers saw.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod annotations;
mod folders;
mod inspect;
mod server;

use annotations::{
    message_annotations, shown_annotations, shown_message_annotations, stored_annotations,
};
use folders::{Mailbox, compare_quotas, compare_subscriptions, compare_view, read_all};
use mbcopy::cyrus::header::MailboxHeader;
use mbcopy::cyrus::index::IndexView;
use server::{Server, internal};

/// What was compared; all of it is asserted, so that nothing passes for want of data.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    /// Minor version of all indexes.
    minor: u32,
    /// Indexes and headers read.
    indexes: usize,
    /// Records in them.
    records: usize,
    /// Records of expunged messages in them.
    expunged: usize,
    /// Records in cyrus.expunge files.
    expunge_files: usize,
    /// Indexes written again, to the same bytes.
    written: usize,
    /// Folders as one user saw them.
    views: usize,
    /// Messages in those.
    messages: usize,
    /// \Seen flags on those.
    seen: usize,
    /// Keywords on those.
    keywords: usize,
    /// Modification sequences of those.
    modseqs: usize,
    /// Records with a GUID.
    guids: usize,
    /// Values in seen databases.
    seen_records: usize,
    /// Subscriptions of users whose list was compared.
    subscriptions: usize,
    /// Quota roots.
    quotas: usize,
    /// Annotations of mailboxes.
    annotations: usize,
    /// Annotations of messages.
    message_annotations: usize,
}

fn check(name: &str) -> Counts {
    let server = Server::open(name);
    let mut counts = Counts::default();
    read_all(&server, &mut counts);
    let directories = server.directories();
    for (user, seen_by) in &server.users {
        counts.seen_records += server.seen(user).len();
        counts.subscriptions += compare_subscriptions(&server, user, seen_by);
        for (external, folder) in seen_by["mailboxes"].as_object().unwrap() {
            if folder.get("messages").is_none() {
                continue;
            }
            let name = internal(user, external, &seen_by["namespace"]);
            let directory = directories.get(&name).unwrap_or_else(|| panic!("no {name}"));
            let mailbox = Mailbox {
                view: IndexView::parse(server.file(directory, "cyrus.index").unwrap()).unwrap(),
                header: MailboxHeader::parse(server.file(directory, "cyrus.header").unwrap())
                    .unwrap(),
                directory,
            };
            let found = compare_view(&server, &mailbox, user, &name, folder);
            counts.views += found.views;
            counts.messages += found.messages;
            counts.seen += found.seen;
            counts.keywords += found.keywords;
            counts.modseqs += found.modseqs;
        }
    }
    counts.quotas = compare_quotas(&server);
    if server.users.values().next().unwrap().get("namespace").is_some() {
        let stored = stored_annotations(&server);
        assert_eq!(stored, shown_annotations(&server));
        counts.annotations = stored.len();
    }
    let messages = message_annotations(&server);
    assert_eq!(messages, shown_message_annotations(&server));
    counts.message_annotations = messages.len();
    counts
}

#[test]
fn cyrus_2_2_13() {
    assert_eq!(
        check("cyrus-2.2.13"),
        Counts {
            minor: 6,
            indexes: 15,
            records: 208,
            views: 16,
            messages: 232,
            seen: 115,
            keywords: 77,
            seen_records: 13,
            subscriptions: 5,
            quotas: 1,
            ..Counts::default()
        }
    );
}

#[test]
fn cyrus_2_3_1_rich() {
    assert_eq!(
        check("cyrus-2.3.1-rich"),
        Counts {
            minor: 7,
            indexes: 16,
            records: 337,
            expunge_files: 23,
            views: 20,
            messages: 442,
            seen: 232,
            keywords: 280,
            seen_records: 19,
            subscriptions: 12,
            quotas: 3,
            annotations: 3,
            ..Counts::default()
        }
    );
}

#[test]
fn cyrus_2_3_16() {
    assert_eq!(
        check("cyrus-2.3.16"),
        Counts {
            minor: 10,
            indexes: 15,
            records: 208,
            expunge_files: 7,
            views: 16,
            messages: 223,
            seen: 132,
            keywords: 84,
            seen_records: 13,
            subscriptions: 5,
            quotas: 1,
            ..Counts::default()
        }
    );
}

#[test]
fn cyrus_2_3_19_bdb_rich() {
    assert_eq!(
        check("cyrus-2.3.19-bdb-rich"),
        Counts {
            minor: 10,
            indexes: 16,
            records: 337,
            expunge_files: 23,
            views: 20,
            messages: 442,
            seen: 219,
            keywords: 306,
            modseqs: 66,
            seen_records: 19,
            subscriptions: 12,
            quotas: 3,
            annotations: 3,
            ..Counts::default()
        }
    );
}

#[test]
fn cyrus_2_4_20() {
    assert_eq!(
        check("cyrus-2.4.20"),
        Counts {
            minor: 12,
            indexes: 15,
            records: 215,
            expunged: 7,
            written: 15,
            views: 16,
            messages: 239,
            seen: 123,
            keywords: 71,
            guids: 215,
            seen_records: 1,
            subscriptions: 5,
            quotas: 1,
            ..Counts::default()
        }
    );
}

#[test]
fn cyrus_2_5_17_rich() {
    assert_eq!(
        check("cyrus-2.5.17-rich"),
        Counts {
            minor: 13,
            indexes: 22,
            records: 392,
            expunged: 27,
            written: 22,
            views: 26,
            messages: 471,
            seen: 231,
            keywords: 300,
            modseqs: 471,
            guids: 392,
            seen_records: 5,
            subscriptions: 14,
            quotas: 3,
            annotations: 7,
            message_annotations: 2,
            ..Counts::default()
        }
    );
}

#[test]
fn cyrus_3_0_18_rich() {
    assert_eq!(
        check("cyrus-3.0.18-rich"),
        Counts {
            minor: 13,
            indexes: 22,
            records: 392,
            expunged: 27,
            written: 22,
            views: 26,
            messages: 467,
            seen: 225,
            keywords: 307,
            modseqs: 467,
            guids: 392,
            seen_records: 5,
            subscriptions: 14,
            quotas: 3,
            annotations: 8,
            message_annotations: 2,
            ..Counts::default()
        }
    );
}

#[test]
fn cyrus_3_4_9_rich() {
    assert_eq!(
        check("cyrus-3.4.9-rich"),
        Counts {
            minor: 17,
            indexes: 22,
            records: 392,
            expunged: 27,
            written: 22,
            views: 26,
            messages: 467,
            seen: 217,
            keywords: 311,
            modseqs: 467,
            guids: 392,
            seen_records: 5,
            subscriptions: 14,
            quotas: 3,
            annotations: 8,
            message_annotations: 2,
            ..Counts::default()
        }
    );
}
