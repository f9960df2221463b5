//! Which Cyrus is installed here. Its own `cyr_info` tells, which takes tens of milliseconds
//! to start; what it said is kept beside the journals, for as long as it is the same program.

use super::tools::Tools;
use std::fs::Metadata;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// The program that tells.
const PROGRAM: &str = "cyr_info";

/// How long it may take.
const LIMIT: Duration = Duration::from_secs(10);

/// What it said, in the directory of the journals.
const KEPT: &str = "cyrus-version";

/// The version of Cyrus's programs, as `3.6.1`; none: they do not tell. `state` is the
/// directory of the journals; where there is none yet, nothing is kept.
pub fn version(tools: &Tools, conf: &Path, state: Option<&Path>) -> Option<String> {
    let kept = state.map(|directory| directory.join(KEPT));
    let identity = installed(tools);
    let known = || read(kept.as_deref()?, identity.as_deref()?);
    if let Some(version) = known() {
        return Some(version);
    }
    let said = tools.run(conf, PROGRAM, &["version"], Vec::new(), LIMIT).ok()?.stdout;
    let version = parse(&String::from_utf8_lossy(&said))?.to_owned();
    if let (Some(kept), Some(identity)) = (kept, identity) {
        // The next one asks again.
        let _ = write(&kept, &identity, &version);
    }
    Some(version)
}

/// Keeps what was said when the directory of the journals was not there yet.
pub fn keep(tools: &Tools, state: &Path, version: &str) {
    let kept = state.join(KEPT);
    if let (false, Some(identity)) = (kept.exists(), installed(tools)) {
        let _ = write(&kept, &identity, version);
    }
}

/// The identity of the program that is installed.
fn installed(tools: &Tools) -> Option<String> {
    let program = std::fs::metadata(tools.find(PROGRAM).ok()?);
    program.ok().map(|metadata| identity(&metadata))
}

/// What tells a program from the one that an upgrade puts in its place.
fn identity(program: &Metadata) -> String {
    let m = program;
    let numbers = [m.dev(), m.ino(), m.size()];
    let times = [m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()];
    let words = numbers.map(|n| n.to_string()).into_iter().chain(times.map(|t| t.to_string()));
    words.collect::<Vec<_>>().join(" ")
}

fn read(kept: &Path, identity: &str) -> Option<String> {
    let text = std::fs::read_to_string(kept).ok()?;
    let (of, version) = text.strip_suffix('\n')?.split_once('\n')?;
    // Half a line is no version.
    (of == identity && parse(version) == Some(version)).then(|| version.to_owned())
}

fn write(kept: &Path, identity: &str, version: &str) -> std::io::Result<()> {
    let directory = kept.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    write!(file, "{identity}\n{version}\n")?;
    file.persist(kept)?;
    Ok(())
}

/// The version in what the program says: `Cyrus IMAP 3.6.1-4+deb12u3`.
fn parse(said: &str) -> Option<&str> {
    let is_version = |w: &&str| w.starts_with(|c: char| c.is_ascii_digit());
    let version = said.split_whitespace().find(is_version)?;
    version.split(['-', '+']).next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    /// A program that tells a version and counts how often it is asked.
    fn install(directory: &Path, version: &str) {
        let program = directory.join(PROGRAM);
        let asked = directory.join("asked");
        let script =
            format!("#!/bin/sh\necho x >> {}\necho Cyrus IMAP {version}\n", asked.display());
        // As a package manager does: another file takes the name.
        let new = directory.join("new");
        std::fs::write(&new, script).unwrap();
        std::fs::set_permissions(&new, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::rename(new, program).unwrap();
    }

    struct Server {
        directory: tempfile::TempDir,
        state: PathBuf,
    }

    impl Server {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let state = directory.path().join("mbcopy");
            std::fs::create_dir(&state).unwrap();
            install(directory.path(), "3.6.1-4+deb12u3");
            Self { directory, state }
        }

        fn version(&self, state: Option<&Path>) -> Option<String> {
            let path = self.directory.path();
            version(&Tools::new(Some(path.into())), &path.join("imapd.conf"), state)
        }

        fn asked(&self) -> usize {
            let asked = std::fs::read_to_string(self.directory.path().join("asked"));
            asked.map_or(0, |lines| lines.lines().count())
        }
    }

    #[test]
    fn a_program_is_asked_once_until_another_takes_its_place() {
        let server = Server::new();
        for _ in 0..3 {
            assert_eq!(server.version(Some(&server.state)).as_deref(), Some("3.6.1"));
        }
        assert_eq!(server.asked(), 1);
        install(server.directory.path(), "3.10.2");
        for _ in 0..2 {
            assert_eq!(server.version(Some(&server.state)).as_deref(), Some("3.10.2"));
        }
        assert_eq!(server.asked(), 2);
    }

    #[test]
    fn whatever_is_kept_the_version_is_right() {
        let server = Server::new();
        let kept = server.state.join(KEPT);
        server.version(Some(&server.state));
        let whole = std::fs::read(&kept).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&kept, &whole[..length]).unwrap();
            assert_eq!(server.version(Some(&server.state)).as_deref(), Some("3.6.1"), "{length}");
        }
        std::fs::write(&kept, b"\xff\n\n").unwrap();
        assert_eq!(server.version(Some(&server.state)).as_deref(), Some("3.6.1"));
    }

    #[test]
    fn where_nothing_can_be_kept_it_is_asked_each_time() {
        let server = Server::new();
        let missing = server.directory.path().join("missing");
        for state in [None, Some(&*missing), None] {
            assert_eq!(server.version(state).as_deref(), Some("3.6.1"));
        }
        assert_eq!(server.asked(), 3);
        assert!(!missing.exists());
        std::fs::create_dir(&missing).unwrap();
        let tools = Tools::new(Some(server.directory.path().into()));
        keep(&tools, &missing, "3.6.1");
        assert_eq!(server.version(Some(&missing)).as_deref(), Some("3.6.1"));
        assert_eq!(server.asked(), 3);
    }
}
