//! What a connection may be told from outside.

use std::path::PathBuf;
use std::time::Duration;

/// Settings of one connection, and the few facts about the local user it depends on.
///
/// The library does not look at the environment by itself; the program calls [`ConnectOptions::from_env`]
/// once and may change fields afterwards.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// The program asked for the configuration; `None` uses the built-in defaults only.
    pub ssh_program: Option<PathBuf>,
    /// A configuration file instead of the user's (`ssh -F`).
    pub ssh_config: Option<PathBuf>,
    /// The home directory, for `~` in file names.
    pub home: Option<PathBuf>,
    /// The name of the local user, who is the remote user if nothing else is said.
    pub local_user: Option<String>,
    /// The socket of the authentication agent (`SSH_AUTH_SOCK`).
    pub auth_sock: Option<PathBuf>,
    /// Time for one TCP connection; `ConnectTimeout` of the SSH configuration goes first.
    pub connect_timeout: Duration,
    /// Time from the first byte to agreed keys, and for opening a channel.
    pub handshake_timeout: Duration,
    /// Time for all authentication attempts together, with whatever an agent asks its user.
    pub auth_timeout: Duration,
    /// Time for `ssh -G`, which may run the commands of `Match exec`.
    pub config_timeout: Duration,
    /// How far the peer may send ahead on one channel, in bytes.
    ///
    /// russh refills at half, so half of this divided by the round trip time is the download ceiling.
    pub window_size: u32,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        ConnectOptions {
            ssh_program: Some(PathBuf::from("ssh")),
            ssh_config: None,
            home: None,
            local_user: None,
            auth_sock: None,
            connect_timeout: Duration::from_secs(15),
            handshake_timeout: Duration::from_secs(30),
            auth_timeout: Duration::from_secs(60),
            config_timeout: Duration::from_secs(10),
            window_size: 64 << 20,
        }
    }
}

impl ConnectOptions {
    /// Takes user, home directory and agent socket from the process.
    ///
    /// User and home come from the password database first and from the environment second, as in
    /// OpenSSH: under `sudo -u cyrus` the environment may still speak of somebody else.
    #[must_use]
    pub fn from_env() -> Self {
        let (name, home) = passwd_entry();
        let from_env = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        ConnectOptions {
            home: home.or_else(|| from_env("HOME").map(PathBuf::from)),
            local_user: name.or_else(|| from_env("USER")?.into_string().ok()),
            auth_sock: from_env("SSH_AUTH_SOCK").map(PathBuf::from),
            ..ConnectOptions::default()
        }
    }
}

/// Name and home directory of the real user in the password database.
fn passwd_entry() -> (Option<String>, Option<PathBuf>) {
    use std::ffi::{CStr, OsStr};
    use std::os::unix::ffi::OsStrExt;

    let mut buffer = vec![0 as libc::c_char; 16 << 10];
    // SAFETY: passwd holds only numbers and pointers, for which zero is a valid value.
    let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
    let mut found: *mut libc::passwd = std::ptr::null_mut();
    // SAFETY: all pointers are valid for the call, and the length is that of the buffer.
    let status = unsafe {
        libc::getpwuid_r(
            libc::getuid(),
            &raw mut entry,
            buffer.as_mut_ptr(),
            buffer.len(),
            &raw mut found,
        )
    };
    if status != 0 || found.is_null() || entry.pw_name.is_null() || entry.pw_dir.is_null() {
        return (None, None);
    }
    // SAFETY: on success both point to terminated strings inside `buffer`, which is still alive.
    let (name, home) = unsafe { (CStr::from_ptr(entry.pw_name), CStr::from_ptr(entry.pw_dir)) };
    (name.to_str().ok().map(str::to_owned), Some(PathBuf::from(OsStr::from_bytes(home.to_bytes()))))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_user_and_the_home() {
        let options = ConnectOptions::from_env();
        assert!(options.local_user.is_some_and(|user| !user.is_empty()));
        assert!(options.home.is_some_and(|home| home.is_absolute()));
    }
}
