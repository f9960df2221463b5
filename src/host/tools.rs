//! Running Cyrus's own programs. Their exit codes prove nothing: several end
//! with 0 after errors. Whoever runs one reads back what it did.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where packages put Cyrus's programs.
const DIRECTORIES: [&str; 6] = [
    "/usr/lib/cyrus/bin",
    "/usr/cyrus/bin",
    "/usr/lib/cyrus-imapd",
    "/usr/libexec/cyrus-imapd",
    "/usr/local/cyrus/bin",
    "/usr/sbin",
];

/// Most of what one program may print that is kept, in bytes.
const MAX_OUTPUT: u64 = 256 << 20;

/// Cyrus's programs on this server.
#[derive(Debug, Clone)]
pub struct Tools {
    directories: Vec<PathBuf>,
}

/// What a program printed and how it ended.
#[derive(Debug)]
pub struct Output {
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
    /// Its exit status.
    pub status: std::process::ExitStatus,
}

/// Why a program gave no output.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It is not installed.
    #[error("Cyrus's program {0} was not found; name its directory by --cyrus-bin")]
    NotFound(String),
    /// It does not run.
    #[error("{program} does not run: {source}")]
    Run {
        /// The program.
        program: String,
        /// What the system says.
        source: io::Error,
    },
    /// It does not end.
    #[error("{program} did not end within {limit:?} and was killed")]
    Timeout {
        /// The program.
        program: String,
        /// How long it was allowed.
        limit: Duration,
    },
}

/// A change of a database.
#[derive(Debug, Clone, Copy)]
pub enum DbOp<'a> {
    /// Sets a key to a value.
    Set(&'a [u8], &'a [u8]),
    /// Removes a key.
    Delete(&'a [u8]),
}

impl Tools {
    /// The programs in `directory`, or where packages put them.
    pub fn new(directory: Option<PathBuf>) -> Self {
        let directories = match directory {
            Some(directory) => vec![directory],
            None => DIRECTORIES.iter().map(PathBuf::from).collect(),
        };
        Self { directories }
    }

    /// The path of a program.
    pub fn find(&self, program: &str) -> Result<PathBuf, ToolError> {
        self.directories
            .iter()
            .map(|d| d.join(program))
            .find(|p| p.is_file())
            .ok_or_else(|| ToolError::NotFound(program.into()))
    }

    /// Starts a program with `arguments` on the configuration `conf`.
    pub fn start<A: AsRef<OsStr>>(
        &self,
        conf: &Path,
        program: &str,
        arguments: &[A],
    ) -> Result<Child, ToolError> {
        Command::new(self.find(program)?)
            .arg("-C")
            .arg(conf)
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| ToolError::Run { program: program.into(), source })
    }

    /// Runs a program to its end, or kills it at `limit`.
    pub fn run<A: AsRef<OsStr>>(
        &self,
        conf: &Path,
        program: &str,
        arguments: &[A],
        input: Vec<u8>,
        limit: Duration,
    ) -> Result<Output, ToolError> {
        let mut child = self.start(conf, program, arguments)?;
        let broken = |source| ToolError::Run { program: program.into(), source };
        let stdin = child.stdin.take();
        let writer = std::thread::spawn(move || {
            // A program that has heard enough may close its input.
            stdin.map(|mut stdin| stdin.write_all(&input))
        });
        let stdout = child.stdout.take().map(collect);
        let stderr = child.stderr.take().map(collect);
        let began = Instant::now();
        let mut pause = Duration::from_micros(500);
        let status = loop {
            if let Some(status) = child.try_wait().map_err(broken)? {
                break status;
            }
            if began.elapsed() > limit {
                let _ = child.kill();
                let _ = child.wait();
                return Err(ToolError::Timeout { program: program.into(), limit });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        };
        let _ = writer.join();
        let text = |thread: Option<std::thread::JoinHandle<Vec<u8>>>| {
            thread.and_then(|t| t.join().ok()).unwrap_or_default()
        };
        Ok(Output { stdout: text(stdout), stderr: text(stderr), status })
    }

    /// Changes a database by one transaction of Cyrus's own database code
    /// (`cyr_dbtool [OPTIONS] FILE ENGINE batch`). What it says when it does not like the
    /// input is the error; that it says nothing does not prove success.
    pub fn change_database(
        &self,
        conf: &Path,
        database: &Path,
        engine: &str,
        options: &[&str],
        ops: &[DbOp<'_>],
    ) -> Result<(), ToolErrorOrText> {
        let mut arguments: Vec<&OsStr> = options.iter().map(OsStr::new).collect();
        arguments.extend([database.as_os_str(), OsStr::new(engine), OsStr::new("batch")]);
        let output =
            self.run(conf, "cyr_dbtool", &arguments, batch(ops), Duration::from_secs(120))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() && said.trim().is_empty() {
            Ok(())
        } else {
            Err(ToolErrorOrText::Text(format!("cyr_dbtool: {} {}", output.status, said.trim())))
        }
    }
}

/// A program that failed, or that said that it did.
#[derive(Debug, thiserror::Error)]
pub enum ToolErrorOrText {
    /// It gave no output.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// What it said.
    #[error("{0}")]
    Text(String),
}

fn collect(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = (&mut pipe).take(MAX_OUTPUT).read_to_end(&mut bytes);
        let _ = io::copy(&mut pipe, &mut io::sink());
        bytes
    })
}

/// The input of `cyr_dbtool batch`: one transaction, with literals, so that
/// keys and values may hold any byte (`imap/cyr_dbtool.c:batch_commands`).
fn batch(ops: &[DbOp<'_>]) -> Vec<u8> {
    let mut out = b"BEGIN\n".to_vec();
    let literal = |out: &mut Vec<u8>, bytes: &[u8]| {
        out.extend_from_slice(format!(" {{{}+}}\r\n", bytes.len()).as_bytes());
        out.extend_from_slice(bytes);
    };
    for op in ops {
        match op {
            DbOp::Set(key, value) => {
                out.extend_from_slice(b"SET");
                literal(&mut out, key);
                literal(&mut out, value);
            }
            DbOp::Delete(key) => {
                out.extend_from_slice(b"DELETE");
                literal(&mut out, key);
            }
        }
        out.push(b'\n');
    }
    out.extend_from_slice(b"COMMIT\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> (tempfile::TempDir, Tools) {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tool");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let tools = Tools::new(Some(dir.path().into()));
        (dir, tools)
    }

    #[test]
    fn a_program_reads_its_input_and_its_output_is_kept() {
        let (_dir, tools) = shell("cat; echo $1 $2 $3 >&2");
        let input = vec![b'x'; 1 << 20];
        let output = tools
            .run(Path::new("/c"), "tool", &["a"], input.clone(), Duration::from_secs(10))
            .unwrap();
        assert_eq!(output.stdout, input);
        assert_eq!(output.stderr, b"-C /c a\n");
    }

    #[test]
    fn a_program_that_hangs_is_killed() {
        let (_dir, tools) = shell("exec sleep 60");
        let none: [&str; 0] = [];
        let limit = Duration::from_millis(50);
        let error = tools.run(Path::new("/c"), "tool", &none, Vec::new(), limit).unwrap_err();
        assert!(matches!(error, ToolError::Timeout { .. }));
    }

    #[test]
    fn a_batch_holds_any_bytes() {
        let ops = [DbOp::Set(b"N\x1fa", b"%(A \r\n)"), DbOp::Delete(b"k")];
        let expected: &[u8] =
            b"BEGIN\nSET {3+}\r\nN\x1fa {7+}\r\n%(A \r\n)\nDELETE {1+}\r\nk\nCOMMIT\n";
        assert_eq!(batch(&ops), expected);
    }
}
