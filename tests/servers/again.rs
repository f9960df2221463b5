//! What one copy has verified counts for the next, as long as nobody has touched it.

use crate::support::{Servers, assert_same, fingerprint};
use lab::seed::{Seed, Size};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const COPY: [&str; 2] = ["--copy-only", "--json"];

/// The files below a directory that such a name ends.
fn named(directory: &Path, end: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            named(&path, end, found);
        } else if path.to_string_lossy().ends_with(end) {
            found.push(path);
        }
    }
}

#[test]
fn a_copy_that_finds_nothing_changed_sends_nothing_and_one_that_was_touched_is_mended() {
    let servers = Servers::fresh();
    servers.accounts(&["twice"]);
    Seed::new(&servers.source, "twice").bulk(400, Size::Median(4000), 4).unwrap();
    let before = fingerprint(&servers.source, "twice", &[]);
    // Whoever has looked at the mailbox may have left its databases open.
    std::thread::sleep(Duration::from_secs(3));
    let first = servers.push("user.twice", &COPY).expect(0).report().unwrap();
    assert_eq!(first["messages_sent"], 400);
    let again = servers.push("user.twice", &COPY).expect(0).report().unwrap();
    assert_eq!((&again["messages_sent"], &again["bytes_sent"]), (&0.into(), &0.into()), "{again}");

    // As many bytes, but others: of two messages, and of an index.
    let stage = servers.target.data().join("spool/mail/.mbcopy");
    let mut touched = Vec::new();
    named(&stage, "/3.", &mut touched);
    touched.truncate(2);
    assert_eq!(touched.len(), 2, "{} has no messages", stage.display());
    named(&stage, "/cyrus.index", &mut touched);
    touched.truncate(3);
    for path in &touched {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.write_all_at(b"?", file.metadata().unwrap().len() - 7).unwrap();
    }
    let mended = servers.push("user.twice", &COPY).expect(0).report().unwrap();
    assert_eq!(mended["messages_sent"], 2, "{mended}");
    assert!(mended["bytes_sent"].as_u64().unwrap() > 0, "{mended}");
    servers.push("user.twice", &[]).expect(0);
    assert_same(&before, &fingerprint(&servers.target, "twice", &[]), &[]);
}

#[test]
fn what_a_copy_has_looked_at_on_the_source_is_looked_at_again_where_files_came_or_went() {
    let servers = Servers::fresh();
    servers.accounts(&["looked"]);
    Seed::new(&servers.source, "looked").bulk(80, Size::Median(4000), 2).unwrap();
    let before = fingerprint(&servers.source, "looked", &[]);
    // Whoever has looked at the mailbox may have left its databases open.
    std::thread::sleep(Duration::from_secs(3));
    servers.push("user.looked", &COPY).expect(0);
    let mut sixth = Vec::new();
    named(&servers.source.data().join("spool/mail/uuid"), "/6.", &mut sixth);
    let [damaged, lost] = sixth.as_slice() else { panic!("two folders, but {sixth:?}") };

    // The target has it whole, and nobody is stopped by what the source has of it now.
    std::fs::File::options().write(true).open(damaged).unwrap().set_len(10).unwrap();
    let again = servers.push("user.looked", &COPY).expect(0).report().unwrap();
    assert_eq!(again["messages_sent"], 0, "{again}");

    let away = servers.source.data().join("away");
    std::fs::rename(lost, &away).unwrap();
    servers.push("user.looked", &COPY).expect(4).says(&["missing-message"]);
    std::fs::rename(&away, lost).unwrap();
    servers.push("user.looked", &[]).expect(0);
    assert_same(&before, &fingerprint(&servers.target, "looked", &[]), &[]);
}
