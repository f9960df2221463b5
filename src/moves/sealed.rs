//! Files that are there whole or not at all, and are never misread: written
//! beside their place, synced, renamed into it, and sealed by a hash.

use crate::fault::{self, Point};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Writes `value` to `path`; durable on return.
pub fn save(path: &Path, value: &impl Serialize) -> io::Result<()> {
    fault::check(Point::SealedWrite)?;
    save_bytes(path, &serde_json::to_vec(value)?)
}

/// Writes `value` to `path`, durable some time later: what may as well be missing.
pub fn save_in_time(path: &Path, value: &impl Serialize) -> io::Result<()> {
    write(path, &serde_json::to_vec(value)?, |_| Ok(()))
}

/// Writes bytes to `path`; durable on return.
pub fn save_bytes(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write(path, bytes, File::sync_all)
}

fn write(path: &Path, bytes: &[u8], sync: impl Fn(&File) -> io::Result<()>) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    std::fs::create_dir_all(directory)?;
    let mut file = File::create(&temporary)?;
    file.write_all(blake3::hash(bytes).as_bytes())?;
    file.write_all(bytes)?;
    sync(&file)?;
    std::fs::rename(&temporary, path)?;
    sync(&File::open(directory)?)
}

/// Reads what [`save`] wrote; refuses what is not exactly that.
pub fn load<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&load_bytes(path)?)?)
}

/// Reads what [`save_bytes`] wrote; refuses what is not exactly that.
pub fn load_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut sealed = std::fs::read(path)?;
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the file is damaged");
    let (seal, bytes) = sealed.split_first_chunk::<32>().ok_or_else(damaged)?;
    if blake3::hash(bytes).as_bytes() != seal {
        return Err(damaged());
    }
    sealed.drain(..32);
    Ok(sealed)
}

/// A path, byte by byte: not every path is text.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PathBytes(Vec<u8>);

impl From<&Path> for PathBytes {
    fn from(path: &Path) -> Self {
        Self(path.as_os_str().as_bytes().to_vec())
    }
}

impl PathBytes {
    /// As a path.
    pub fn path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_comes_back_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/on/the/way/plan");
        let value = vec![(b"N\x1fkey".to_vec(), PathBytes::from(Path::new("/a b")))];
        save(&path, &value).unwrap();
        assert_eq!(load::<Vec<(Vec<u8>, PathBytes)>>(&path).unwrap(), value);
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            assert!(load::<Vec<(Vec<u8>, PathBytes)>>(&path).is_err(), "byte {at} flipped");
            std::fs::write(&path, &good[..at]).unwrap();
            assert!(load::<Vec<(Vec<u8>, PathBytes)>>(&path).is_err(), "torn at {at}");
        }
    }
}
