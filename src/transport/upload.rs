//! Brings one small file to the other server: the agent's own program.
//!
//! The file is written under a random name in the target directory, created so that nothing existing is
//! opened, synced, checked, and only then renamed.  A file under the final name is therefore complete,
//! whenever the connection breaks.  SFTP here waits for answers and is not meant for bulk data.

use std::path::Path;
use std::time::Duration;

use russh::ChannelMsg;
use russh::keys::HashAlg;
use russh_sftp::client::SftpSession;
use russh_sftp::protocol::{FileAttributes, OpenFlags};
use tokio::io::AsyncWriteExt;

use super::error::TransportError;
use super::session::Session;
use super::text::{one_line, random_hex};

/// The largest file taken; it is held in memory.
const MAX_SIZE: u64 = 256 << 20;

/// What an upload did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UploadReport {
    /// The size of the file in bytes.
    pub size_bytes: u64,
    /// The SHA-256 of what was sent, in hexadecimal.
    pub sha256: String,
    /// The server has calculated the same; false if it has no `sha256sum`.
    pub hash_checked: bool,
}

/// Copies a local file to an absolute path of the server, with these permissions.
///
/// An existing file under that path is replaced.
pub async fn upload(
    session: &Session,
    local: &Path,
    remote: &str,
    mode: u32,
) -> Result<UploadReport, TransportError> {
    let task = Upload { session, local, remote };
    let Some((directory, name)) = remote.rsplit_once('/') else {
        return Err(task.failed("the remote path is not absolute"));
    };
    let odd = |c: char| c.is_control();
    if !remote.starts_with('/') || name.is_empty() || name.len() > 200 || remote.contains(odd) {
        return Err(task.failed("the remote path is not the absolute path of a file"));
    }
    let content = task.read_local().await?;
    let sha256: String =
        HashAlg::Sha256.digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
    let random = random_hex(8).map_err(|error| task.failed(&error.to_string()))?;
    let temporary = format!("{directory}/.{name}.{random}.tmp");

    let sftp = task.open_sftp().await?;
    let result = task.put(&sftp, &content, &sha256, &temporary, mode & 0o777).await;
    if result.is_err() {
        // Best effort: the name is random and ours.
        let _ = sftp.remove_file(temporary).await;
    }
    let _ = sftp.close().await;
    let hash_checked = result?;
    Ok(UploadReport { size_bytes: content.len() as u64, sha256, hash_checked })
}

struct Upload<'a> {
    session: &'a Session,
    local: &'a Path,
    remote: &'a str,
}

impl Upload<'_> {
    fn failed(&self, reason: &str) -> TransportError {
        TransportError::Upload {
            at: self.session.at().to_owned(),
            local: self.local.to_owned(),
            remote: one_line(self.remote.as_bytes(), 200),
            reason: one_line(reason.as_bytes(), 300),
        }
    }

    async fn read_local(&self) -> Result<Vec<u8>, TransportError> {
        let local = self.local.to_owned();
        let reading = tokio::task::spawn_blocking(move || {
            let size = std::fs::metadata(&local)?.len();
            if size > MAX_SIZE {
                return Err(std::io::Error::other("the file is larger than 256 MiB"));
            }
            std::fs::read(&local)
        });
        reading.await.map_err(|error| self.failed(&error.to_string()))?.map_err(|source| {
            TransportError::File { verb: "read", path: self.local.to_owned(), source }
        })
    }

    async fn open_sftp(&self) -> Result<SftpSession, TransportError> {
        let mut channel = self.session.open_channel("open a channel for sftp").await?;
        let connection = self.session.connection();
        channel.request_subsystem(true, "sftp").await.map_err(|_| connection.lost())?;
        // into_stream() would take a refusal for silence.
        let answer = async {
            loop {
                match channel.wait().await {
                    Some(ChannelMsg::Success) => return Some(true),
                    Some(ChannelMsg::Failure) => return Some(false),
                    Some(_) => {}
                    None => return None,
                }
            }
        };
        match tokio::time::timeout(connection.answer_limit, answer).await {
            Ok(Some(true)) => {}
            Ok(Some(false)) => {
                return Err(self.failed(
                    "that server has no sftp (Subsystem sftp in sshd_config); install mbcopy there instead",
                ));
            }
            Ok(None) => return Err(connection.lost()),
            Err(_) => return Err(self.failed("sftp did not start in time")),
        }
        SftpSession::new(channel.into_stream())
            .await
            .map_err(|error| self.failed(&format!("sftp does not work there ({error})")))
    }

    async fn put(
        &self,
        sftp: &SftpSession,
        content: &[u8],
        sha256: &str,
        temporary: &str,
        mode: u32,
    ) -> Result<bool, TransportError> {
        let failed = |doing: &str, error: &dyn std::fmt::Display| {
            self.failed(&format!("{doing} {temporary}: {error}"))
        };
        sftp.set_timeout(60);
        let private = FileAttributes { permissions: Some(0o600), ..FileAttributes::empty() };
        let mut file = sftp
            .open_with_flags_and_attributes(
                temporary,
                OpenFlags::CREATE | OpenFlags::EXCLUDE | OpenFlags::WRITE,
                private,
            )
            .await
            .map_err(|error| failed("cannot create", &error))?;
        file.write_all(content).await.map_err(|error| failed("cannot write", &error))?;
        file.flush().await.map_err(|error| failed("cannot write", &error))?;
        file.set_metadata(FileAttributes { permissions: Some(mode), ..FileAttributes::empty() })
            .await
            .map_err(|error| failed("cannot set the permissions of", &error))?;
        file.sync_all().await.map_err(|error| failed("cannot sync", &error))?;
        let size = file.metadata().await.map_err(|error| failed("cannot look at", &error))?.size;
        if size != Some(content.len() as u64) {
            let reason = format!("{size:?} bytes in place of {}", content.len());
            return Err(failed("what arrived is wrong in", &reason));
        }
        file.close().await.map_err(|error| failed("cannot close", &error))?;

        let hash_checked = match self.remote_hash(temporary).await? {
            Some(found) if found == sha256 => true,
            Some(found) => {
                let reason = format!("SHA-256 {found} in place of {sha256}");
                return Err(failed("what arrived is wrong in", &reason));
            }
            None => false,
        };
        self.rename(sftp, temporary).await?;
        Ok(hash_checked)
    }

    /// Asks the server for the SHA-256 of a file; `None` if it has no program for that.
    async fn remote_hash(&self, path: &str) -> Result<Option<String>, TransportError> {
        let words = ["sha256sum", "--", path];
        let running = self.session.run(&words, 4096);
        let Ok(output) = tokio::time::timeout(Duration::from_secs(60), running).await else {
            return Err(self.failed("sha256sum took more than 60 s there"));
        };
        let output = match output {
            Ok(output) => output,
            // A server that allows sftp but no commands.
            Err(TransportError::Refused { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        if !output.status.success() {
            tracing::debug!(
                "no sha256sum on {}: {}, {}",
                self.session.at(),
                output.status,
                one_line(output.stderr.as_bytes(), 200)
            );
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&output.stdout);
        // A backslash at the begin means that the name after the hash is escaped.
        let hash = text.split_ascii_whitespace().next().map(|hash| hash.trim_start_matches('\\'));
        Ok(hash
            .filter(|hash| hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()))
            .map(str::to_owned))
    }

    /// Gives the file its final name.  SFTP itself cannot replace a file, `mv` can, and at one stroke.
    async fn rename(&self, sftp: &SftpSession, temporary: &str) -> Result<(), TransportError> {
        let failed = |reason: &dyn std::fmt::Display| {
            self.failed(&format!("cannot give {temporary} its name: {reason}"))
        };
        let Err(first) = sftp.rename(temporary, self.remote).await else {
            return Ok(());
        };
        match sftp.symlink_metadata(self.remote).await {
            Ok(existing) if existing.is_regular() => {}
            Ok(_) => return Err(failed(&"something that is no file has that name")),
            Err(_) => return Err(failed(&first)),
        }
        let words = ["mv", "-f", "--", temporary, self.remote];
        let moving = self.session.run(&words, 4096);
        match tokio::time::timeout(Duration::from_secs(60), moving).await {
            Ok(Ok(output)) if output.status.success() => Ok(()),
            Ok(Err(TransportError::Refused { .. })) => {
                // No commands here: the old file goes away a moment before the new one comes.
                sftp.remove_file(self.remote).await.map_err(|error| failed(&error))?;
                sftp.rename(temporary, self.remote).await.map_err(|error| failed(&error))
            }
            Ok(Ok(output)) => Err(failed(&format!("mv: {}, {}", output.status, output.stderr))),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(failed(&"mv took more than 60 s")),
        }
    }
}
