//! The index of a staged mailbox in the form of this server's Cyrus.
//!
//! Where it is not in that form as it came, another is made beside it, and made again only
//! where what came has changed: under the freeze little is left to do, however large it is.

use super::archive;
use super::receive::Held;
use super::stage::{Stage, StagedDirectory, Trace};
use super::staged::StagedMailbox;
use crate::cyrus::cache;
use crate::cyrus::index::{Conversion, Form, IndexFile, OLDEST_CONVERTED, Record, Time, touched};
use crate::cyrus::release::Release;
use crate::inventory::Shape;
use crate::moves::journal::now_ms;
use crate::wire::blocks::{BLOCK, Blocks, Patching};
use crate::wire::v1::FileKind;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::iter::once;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Its name, and that under which it is made.
const NAME: &str = "cyrus.index";
const NEW: &str = "cyrus.index.mbcopy-new";

/// The oldest version that can be written.
const OLDEST_WRITTEN: u32 = 12;

/// How much is read at a time, in bytes: whole blocks.
const READ: usize = 32 * BLOCK;

/// What is known of a staged index.
#[derive(Debug, Default)]
pub struct OwnIndex {
    /// What it was when it was in this form as it came, where its records were, and how many.
    fits: Option<(Arc<Blocks>, Shape, u32)>,
    /// What was made of it.
    made: Option<Made>,
    /// By number of its record, the UID of a message whose cache record was looked at.
    looked: Vec<u32>,
    /// UIDs of messages that have a message/global: messages never change.
    global: BTreeSet<u32>,
}

/// An index that was made.
#[derive(Debug)]
struct Made {
    /// What it was made of.
    from: Arc<Blocks>,
    conversion: Conversion,
    /// Whether archived messages have a cache.
    cached: bool,
    held: Held,
}

impl OwnIndex {
    /// What was made last.
    pub fn made(&self) -> Option<&Held> {
        self.made.as_ref().map(|made| &made.held)
    }
}

/// Gives the staged index the form that this server's Cyrus writes, in a mailbox whose
/// cyrus.header has this CRC. What is older than can be converted is left to Cyrus.
pub fn make(
    stage: &Stage,
    mailbox: &mut StagedMailbox,
    release: &Release,
    header_file_crc: Option<u32>,
) -> Result<(), String> {
    let text = |e: &dyn std::fmt::Display| format!("{NAME}: {e}");
    let directory = |kind| mailbox.meta_directory(stage, kind).map_err(|e| e.to_string());
    let place = directory(FileKind::Index)?;
    let mut caches = Caches {
        directories: [directory(FileKind::Cache)?, directory(FileKind::ArchiveCache)?],
        files: [None, None],
    };
    let sent = place.open_as_sent(NAME).map_err(|e| text(&e))?;
    let mut index = IndexFile::open(&sent).map_err(|e| text(&e))?;
    let written = index.header().minor;
    if written < OLDEST_WRITTEN && header_file_crc.is_none() {
        return Ok(());
    }
    let known = written >= OLDEST_CONVERTED;
    let now = Time::from_seconds(u32::try_from(now_ms() / 1000).unwrap_or(u32::MAX));
    let form = Form { minor: if known { release.index } else { written }, now, header_file_crc };
    let misread = |record: &Record| {
        let version = record.cache_version;
        known && record.cache_offset > 0 && cache::misreads_global(release.cache, version)
    };
    let blocks = mailbox.blocks(FileKind::Index, &sent);
    let StagedMailbox { archive, own_index, offered, .. } = mailbox;
    if archive.is_none() && own_index.fits(&mut index, &form, blocks.as_ref(), misread)? {
        own_index.made = None;
        return place.restore_as_sent(NAME).map_err(|e| text(&e));
    }
    let cached = offered.files.contains_key(&FileKind::ArchiveCache);
    let moved = archive.as_mut().is_some_and(|archive| std::mem::take(&mut archive.moved));
    let OwnIndex { made, looked, global, .. } = own_index;
    let made_before = made.take().filter(|made| {
        !moved && made.cached == cached && made.conversion.continues(index.header(), &form)
    });
    let continued = match made_before.zip(blocks.as_ref()) {
        Some((made, blocks)) => {
            let file = place.patch(NAME, &made.held.trace).map_err(|e| text(&e))?;
            file.map(|file| (file, blocks.differing(&made.from), made))
        }
        None => None,
    };
    if continued.is_none() {
        looked.clear();
    }
    looked.resize(index.header().num_records as usize, 0);
    let mut broken = None;
    let edit = |number: u32, record: &mut Record| {
        let here = archive.as_ref().is_some_and(|archive| archive.uids().contains(&record.uid));
        let placed = archive::place(record, here, cached);
        if !misread(record) {
            return placed;
        }
        if let Some(looked) = looked.get_mut(number as usize).filter(|uid| **uid != record.uid) {
            match caches.has_global(record) {
                Ok(true) => drop(global.insert(record.uid)),
                Ok(false) => {}
                Err(e) => broken = Some(format!("cyrus.cache: {e}")),
            }
            *looked = record.uid;
        }
        let stale = global.contains(&record.uid);
        if stale {
            record.forget_cache();
        }
        placed || stale
    };
    let is_new = continued.is_none();
    let (file, changed, mut conversion, before) = match continued {
        Some((file, changed, made)) => (file, changed, made.conversion, made.held.blocks),
        None => {
            let file = place.create(NEW).map_err(|e| text(&e))?.into();
            (file, Vec::new(), Conversion::default(), Arc::new(Blocks::of(&[])))
        }
    };
    let written = conversion.update((&mut index, &changed), (&file, &form), edit);
    let written = written.map_err(|e| e.to_string()).and_then(|w| broken.map_or(Ok(w), Err));
    let finish = |written: &[Range<u64>]| -> io::Result<Held> {
        // Clients of calendars are told this time (imap/http_dav.c: getlastmodified).
        file.set_modified(sent.metadata()?.modified()?)?;
        if is_new {
            place.keep_as_sent(NAME)?;
            place.rename(NEW, NAME)?;
        }
        let file = place.open(NAME)?;
        let blocks = Arc::new(refreshed(&before, &file, written)?);
        Ok(Held { blocks, trace: Trace::of(&file)? })
    };
    match written.and_then(|written| finish(&written).map_err(|e| text(&e))) {
        Ok(held) => {
            *made = blocks.map(|from| Made { from, conversion, cached, held });
            Ok(())
        }
        Err(reason) => {
            looked.clear();
            place.remove(NEW);
            Err(reason)
        }
    }
}

impl OwnIndex {
    /// Whether an index is as this server's Cyrus would write it. Only records that are not
    /// as they were at the last look are read.
    fn fits(
        &mut self,
        index: &mut IndexFile<'_>,
        form: &Form,
        blocks: Option<&Arc<Blocks>>,
        misread: impl Fn(&Record) -> bool,
    ) -> Result<bool, String> {
        let header = index.header().clone();
        let other_crc = form.header_file_crc.is_some_and(|crc| crc != header.header_file_crc);
        if header.minor != form.minor || other_crc || !self.global.is_empty() {
            return Ok(false);
        }
        let shape = Shape::of(&header);
        let numbers = match (&self.fits, blocks) {
            (Some((before, shape_then, count)), Some(blocks)) if *shape_then == shape => {
                touched(&header, *count, blocks.differing(before), 1)
            }
            _ => once(0..header.num_records).collect(),
        };
        let mut fits = true;
        for numbers in numbers {
            let look = |_, record: Record| fits &= !misread(&record) && !record.is_archived();
            index.each(numbers, look).map_err(|e| format!("{NAME}: {e}"))?;
        }
        if fits {
            self.fits = blocks.map(|blocks| (Arc::clone(blocks), shape, header.num_records));
        }
        Ok(fits)
    }
}

/// Where Cyrus has put what it has parsed of messages: of archived ones elsewhere.
struct Caches {
    directories: [Arc<StagedDirectory>; 2],
    files: [Option<File>; 2],
}

impl Caches {
    /// Whether the message of a record has a message/global.
    fn has_global(&mut self, record: &Record) -> io::Result<bool> {
        let [cache, archive] = &mut self.files;
        let [of_cache, of_archive] = &self.directories;
        let (file, directory) =
            if record.is_archived() { (archive, of_archive) } else { (cache, of_cache) };
        let file = match file {
            Some(file) => file,
            None => file.insert(directory.open("cyrus.cache")?),
        };
        has_global(file, record.cache_offset)
    }
}

/// Whether the message of the cache record at `offset` has a message/global; or there is
/// no such record, and nobody can tell.
fn has_global(file: &File, offset: u64) -> io::Result<bool> {
    // Nearly all that is looked for lies within the first length.
    for length in [4 << 10, 1 << 20] {
        let mut bytes = vec![0; length];
        let read = file.read_at(&mut bytes, offset)?;
        if let Some(parsed) = cache::bodystructure(bytes.get(..read).unwrap_or_default()) {
            return Ok(cache::has_global(parsed));
        }
    }
    Ok(true)
}

/// The version of a file that lies here: these bytes of it, in ascending order, may differ
/// from an older one.
fn refreshed(older: &Blocks, file: &File, changed: &[Range<u64>]) -> io::Result<Blocks> {
    let size = file.metadata()?.len();
    let mut patching = Patching::of(older, size);
    let mut buffer = vec![0; READ];
    for range in changed {
        let mut at = range.start / BLOCK as u64 * BLOCK as u64;
        while at < range.end {
            let end = range.end.next_multiple_of(BLOCK as u64).min(size).min(at + READ as u64);
            let length = usize::try_from(end.saturating_sub(at)).unwrap_or_default();
            let bytes = buffer.get_mut(..length).unwrap_or_default();
            file.read_exact_at(bytes, at)?;
            patching.put(at, bytes).map_err(io::Error::other)?;
            at += READ as u64;
        }
    }
    patching.finish().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_written_in_places_is_the_version_that_hashing_it_gives() {
        let file = tempfile::tempfile().unwrap();
        let mut bytes: Vec<u8> = (0..20 * READ / 8 + 77).map(|n| (n / 7 % 251) as u8).collect();
        file.write_all_at(&bytes, 0).unwrap();
        let nothing = Blocks::of(&[]);
        let all = 0..bytes.len() as u64;
        let first = refreshed(&nothing, &file, &[all]).unwrap();
        assert_eq!(first, Blocks::of(&bytes));
        let mut changed = Vec::new();
        for at in [0, BLOCK + 1, READ - 1, bytes.len() - 1] {
            bytes[at] ^= 1;
            changed.push(at as u64..at as u64 + 1);
        }
        changed.push(bytes.len() as u64..bytes.len() as u64 + 5);
        bytes.extend([9; 5]);
        file.write_all_at(&bytes, 0).unwrap();
        assert_eq!(refreshed(&first, &file, &changed).unwrap(), Blocks::of(&bytes));
    }
}
