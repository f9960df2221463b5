//! How to reach a host, as OpenSSH itself sees it.
//!
//! `ssh -G` prints the configuration that would be used for a host, with `Include`, `Match` and
//! canonical names applied.  Reading its output is the only way to agree with `ssh` in every corner; our
//! own parser would agree in most of them.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use super::destination::{Destination, check_name};
use super::error::TransportError;
use super::known_hosts::LookupName;
use super::options::ConnectOptions;
use super::text::one_line;

/// The way to a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// A TCP connection.
    Direct,
    /// Through these hosts, the first one first.
    Jump(Vec<Destination>),
    /// Through the standard input and output of a command of the user.
    Command(String),
}

/// `StrictHostKeyChecking`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StrictHostKey {
    /// Unknown keys are refused.  `ask`, the default of OpenSSH, means this too: nobody is there to ask.
    Yes,
    /// Unknown keys are added to the user's file.
    AcceptNew,
    /// Unknown keys are used and not written down.  Changed keys are refused all the same.
    No,
}

/// `AddressFamily`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressFamily {
    /// Both.
    Any,
    /// IPv4 only.
    Inet,
    /// IPv6 only.
    Inet6,
}

/// A host with everything needed to reach it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ResolvedHost {
    /// The host or alias as the user named it.
    pub alias: String,
    /// The real name or address.
    pub hostname: String,
    /// The port.
    pub port: u16,
    /// The remote user.
    pub user: String,
    /// Private keys, in the order to try them; some will not exist.
    pub identity_files: Vec<PathBuf>,
    /// Certificates for these keys.
    pub certificate_files: Vec<PathBuf>,
    /// The agent's socket.
    pub identity_agent: Option<PathBuf>,
    /// Use only those keys of the agent that are also among the files.
    pub identities_only: bool,
    /// The way.
    pub proxy: Proxy,
    /// Files with host keys of the user; the first one may be written to.
    pub user_known_hosts: Vec<PathBuf>,
    /// Files with host keys of the machine.
    pub global_known_hosts: Vec<PathBuf>,
    /// A list of host keys that are refused.
    pub revoked_host_keys: Option<PathBuf>,
    /// What to do with unknown host keys.
    pub strict: StrictHostKey,
    /// Host names are hashed when written.
    pub hash_known_hosts: bool,
    /// The name to look up host keys by, in place of the host name.
    pub host_key_alias: Option<String>,
    /// Time for the TCP connection.
    pub connect_timeout: Option<Duration>,
    /// Addresses to use.
    pub address_family: AddressFamily,
}

impl ResolvedHost {
    /// Names the host for messages: `bw2 (root@10.0.0.2:22)`.
    #[must_use]
    pub fn at(&self) -> String {
        let host = if self.hostname.contains(':') {
            format!("[{}]", self.hostname)
        } else {
            self.hostname.clone()
        };
        let full = format!("{}@{host}:{}", self.user, self.port);
        if self.alias == self.hostname { full } else { format!("{} ({full})", self.alias) }
    }

    /// The name the host has in known_hosts files.
    #[must_use]
    pub fn lookup_name(&self) -> LookupName {
        LookupName::new(&self.hostname, self.port, self.host_key_alias.as_deref())
    }

    /// What holds without any configuration.
    fn defaults(destination: &Destination, options: &ConnectOptions) -> Self {
        let in_ssh = |name: &str| options.home.as_ref().map(|home| home.join(".ssh").join(name));
        ResolvedHost {
            alias: destination.host().to_owned(),
            hostname: destination.host().to_owned(),
            port: destination.port().unwrap_or(22),
            user: destination.user().or(options.local_user.as_deref()).unwrap_or("root").to_owned(),
            identity_files: ["id_rsa", "id_ecdsa", "id_ed25519"]
                .into_iter()
                .filter_map(in_ssh)
                .collect(),
            certificate_files: Vec::new(),
            identity_agent: options.auth_sock.clone(),
            identities_only: false,
            proxy: Proxy::Direct,
            user_known_hosts: ["known_hosts", "known_hosts2"]
                .into_iter()
                .filter_map(in_ssh)
                .collect(),
            global_known_hosts: vec![
                PathBuf::from("/etc/ssh/ssh_known_hosts"),
                PathBuf::from("/etc/ssh/ssh_known_hosts2"),
            ],
            revoked_host_keys: None,
            strict: StrictHostKey::Yes,
            hash_known_hosts: false,
            host_key_alias: None,
            connect_timeout: None,
            address_family: AddressFamily::Any,
        }
    }

    /// Replaces `%` tokens in a value; `None` if there is one this program does not know.
    fn expand(&self, text: &str, options: &ConnectOptions) -> Option<String> {
        let mut out = String::with_capacity(text.len());
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            match chars.next()? {
                '%' => out.push('%'),
                'h' => out.push_str(&self.hostname),
                'n' => out.push_str(&self.alias),
                'p' => out.push_str(&self.port.to_string()),
                'r' => out.push_str(&self.user),
                'k' => out.push_str(self.host_key_alias.as_deref().unwrap_or(&self.alias)),
                'd' => out.push_str(options.home.as_ref()?.to_str()?),
                'u' => out.push_str(options.local_user.as_ref()?),
                // SAFETY: getuid has no preconditions and cannot fail.
                'i' => out.push_str(&unsafe { libc::getuid() }.to_string()),
                _ => return None,
            }
        }
        Some(out)
    }

    /// Reads a file name, with `~` and tokens replaced.
    fn file(&self, text: &str, options: &ConnectOptions) -> Option<PathBuf> {
        let expanded = self.expand(text, options);
        if expanded.is_none() {
            tracing::debug!("{text} holds a token that is not supported, the file is not used");
        }
        let expanded = expanded?;
        match (expanded.strip_prefix("~/"), &options.home) {
            (Some(rest), Some(home)) => Some(home.join(rest)),
            (Some(_), None) => None,
            (None, _) => Some(PathBuf::from(expanded)),
        }
    }
}

/// Asks OpenSSH how to reach a host.
///
/// Without an `ssh` program the plain defaults hold, and the log says so.
pub async fn resolve(
    destination: &Destination,
    options: &ConnectOptions,
) -> Result<ResolvedHost, TransportError> {
    let Some(program) = &options.ssh_program else {
        return Ok(ResolvedHost::defaults(destination, options));
    };
    let failed =
        |reason: String| TransportError::Config { host: destination.host().to_owned(), reason };
    let mut command = tokio::process::Command::new(program);
    if let Some(config) = &options.ssh_config {
        command.arg("-F").arg(config);
    }
    command.arg("-G");
    if let Some(port) = destination.port() {
        command.arg("-p").arg(port.to_string());
    }
    if let Some(user) = destination.user() {
        command.arg("-l").arg(user);
    }
    command
        .arg("--")
        .arg(destination.host())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            tracing::debug!(
                "{} is not installed: the SSH configuration is not read, defaults are used for {destination}",
                program.display()
            );
            return Ok(ResolvedHost::defaults(destination, options));
        }
        Err(error) => return Err(failed(format!("{}: {error}", program.display()))),
    };
    let output = match tokio::time::timeout(options.config_timeout, child.wait_with_output()).await
    {
        Ok(output) => output.map_err(|error| failed(error.to_string()))?,
        Err(_) => {
            return Err(failed(format!(
                "`ssh -G` took more than {} s (does a Match exec hang?)",
                options.config_timeout.as_secs_f32()
            )));
        }
    };
    if !output.status.success() {
        return Err(failed(format!("{} ({})", one_line(&output.stderr, 300), output.status)));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    read_settings(&text, destination, options).map_err(failed)
}

/// Reads the output of `ssh -G`.
fn read_settings(
    text: &str,
    destination: &Destination,
    options: &ConnectOptions,
) -> Result<ResolvedHost, String> {
    let mut host = ResolvedHost::defaults(destination, options);
    let settings: Vec<(&str, &str)> = text
        .lines()
        .map(|line| match line.split_once(' ') {
            Some((key, value)) => (key, value.trim()),
            None => (line, ""),
        })
        .collect();
    let last = |wanted: &str| {
        settings
            .iter()
            .rev()
            .find(|(key, value)| *key == wanted && !value.is_empty())
            .map(|(_, value)| *value)
    };
    // First what the tokens stand for, then the values that may hold tokens.
    if let Some(name) = last("hostname") {
        check_name("host", name)?;
        host.hostname = name.to_owned();
    }
    if let Some(user) = last("user") {
        check_name("user", user)?;
        host.user = user.to_owned();
    }
    if let Some(port) = last("port") {
        host.port = port
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| format!("{port:?} is no port"))?;
    }
    host.host_key_alias = last("hostkeyalias").map(str::to_owned);

    let files_of = |wanted: &str| -> Vec<PathBuf> {
        settings
            .iter()
            .filter(|(key, value)| *key == wanted && !value.is_empty() && *value != "none")
            .filter_map(|(_, value)| host.file(value, options))
            .collect()
    };
    let identity_files = files_of("identityfile");
    let certificate_files = files_of("certificatefile");
    let file_list = |wanted: &str| -> Vec<PathBuf> {
        split_file_list(last(wanted).unwrap_or_default())
            .iter()
            .filter(|name| *name != "none")
            .filter_map(|name| host.file(name, options))
            .collect()
    };
    let user_known_hosts = file_list("userknownhostsfile");
    let global_known_hosts = file_list("globalknownhostsfile");
    let revoked_host_keys = match last("revokedhostkeys") {
        None | Some("none") => None,
        Some(name) => Some(
            host.file(name, options)
                .ok_or_else(|| format!("RevokedHostKeys {name} holds an unknown token"))?,
        ),
    };
    let identity_agent = match last("identityagent") {
        None | Some("SSH_AUTH_SOCK") => options.auth_sock.clone(),
        Some("none") => None,
        Some(name) => match name.strip_prefix('$') {
            Some(variable) => {
                std::env::var_os(variable.trim_matches(['{', '}'])).map(PathBuf::from)
            }
            None => host.file(name, options),
        },
    };
    host.identity_files = identity_files;
    host.certificate_files = certificate_files;
    host.user_known_hosts = user_known_hosts;
    host.global_known_hosts = global_known_hosts;
    host.revoked_host_keys = revoked_host_keys;
    host.identity_agent = identity_agent;
    host.identities_only = last("identitiesonly") == Some("yes");
    host.hash_known_hosts = last("hashknownhosts") == Some("yes");
    host.strict = match last("stricthostkeychecking") {
        Some("accept-new") => StrictHostKey::AcceptNew,
        Some("no" | "false" | "off") => StrictHostKey::No,
        _ => StrictHostKey::Yes,
    };
    host.connect_timeout = last("connecttimeout")
        .and_then(|seconds| seconds.parse().ok())
        .filter(|seconds| *seconds > 0)
        .map(Duration::from_secs);
    host.address_family = match last("addressfamily") {
        Some("inet") => AddressFamily::Inet,
        Some("inet6") => AddressFamily::Inet6,
        _ => AddressFamily::Any,
    };
    let jump = last("proxyjump").filter(|jump| *jump != "none");
    let command = last("proxycommand").filter(|command| *command != "none");
    host.proxy = match (jump, command) {
        (Some(jump), _) => Proxy::Jump(read_jumps(jump)?),
        (None, Some(command)) => {
            if last("proxyusefdpass") == Some("yes") {
                return Err("ProxyUseFdpass is not supported".to_owned());
            }
            // The names go to a shell with the command; ssh -G has not looked at them.
            check_name("host", &host.hostname)?;
            check_name("host", &host.alias)?;
            check_name("user", &host.user)?;
            Proxy::Command(
                host.expand(command, options)
                    .ok_or_else(|| format!("ProxyCommand {command:?} holds an unknown token"))?,
            )
        }
        (None, None) => Proxy::Direct,
    };
    Ok(host)
}

/// Reads `ProxyJump`: hosts with commas, each `[user@]host[:port]` or a URL.
fn read_jumps(text: &str) -> Result<Vec<Destination>, String> {
    text.split(',')
        .map(|hop| {
            let hop = hop.trim();
            let url =
                if hop.starts_with("ssh://") { hop.to_owned() } else { format!("ssh://{hop}") };
            Destination::parse(&url).map_err(|error| format!("ProxyJump: {error}"))
        })
        .collect()
}

/// Splits a list of file names as `ssh -G` prints it: with spaces, and without the quotes that names
/// with spaces had.  A part that is not the begin of a path therefore belongs to the name before it.
fn split_file_list(text: &str) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for part in text.split(' ') {
        let begins = Path::new(part).is_absolute() || part.starts_with('~') || part == "none";
        match names.last_mut() {
            Some(name) if !begins => {
                name.push(' ');
                name.push_str(part);
            }
            _ if part.is_empty() => {}
            _ => names.push(part.to_owned()),
        }
    }
    names
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn options() -> ConnectOptions {
        ConnectOptions {
            home: Some(PathBuf::from("/home/joe")),
            local_user: Some("joe".to_owned()),
            auth_sock: Some(PathBuf::from("/run/agent")),
            ..ConnectOptions::default()
        }
    }

    fn settings(text: &str) -> Result<ResolvedHost, String> {
        read_settings(text, &Destination::parse("bw2").unwrap(), &options())
    }

    #[test]
    fn reads_what_ssh_prints() {
        let host = settings(
            "user root\nhostname 10.0.0.2\nport 2222\nidentityfile ~/.ssh/id_%r\nidentityfile /k/a b\n\
             identityfile /k/%Z\nidentitiesonly yes\nuserknownhostsfile /h/kh /h/kh 2\nglobalknownhostsfile none\n\
             stricthostkeychecking accept-new\nconnecttimeout 7\nhostkeyalias al\nidentityagent ~/ag\n\
             addressfamily inet6\nproxyjump joe@j1:23,[::1]:24\nproxycommand ignored\nhashknownhosts yes\n",
        )
        .unwrap();
        assert_eq!(host.at(), "bw2 (root@10.0.0.2:2222)");
        assert_eq!(host.lookup_name().as_str(), "al");
        assert_eq!(host.identity_files, ["/home/joe/.ssh/id_root", "/k/a b"].map(PathBuf::from));
        assert_eq!(host.user_known_hosts, ["/h/kh", "/h/kh 2"].map(PathBuf::from));
        assert!(host.global_known_hosts.is_empty());
        assert_eq!(host.strict, StrictHostKey::AcceptNew);
        assert_eq!(host.connect_timeout, Some(Duration::from_secs(7)));
        assert_eq!(host.identity_agent, Some(PathBuf::from("/home/joe/ag")));
        assert_eq!(host.address_family, AddressFamily::Inet6);
        assert!(host.identities_only && host.hash_known_hosts);
        let hops =
            ["ssh://joe@j1:23", "ssh://[::1]:24"].map(|hop| Destination::parse(hop).unwrap());
        assert_eq!(host.proxy, Proxy::Jump(hops.to_vec()));
    }

    #[test]
    fn fills_in_the_proxy_command() {
        let host = settings(
            "hostname 10.0.0.2\nport 24\nuser u\nproxycommand nc -X 5 %h %p %r %n 100%%\n",
        )
        .unwrap();
        assert_eq!(host.proxy, Proxy::Command("nc -X 5 10.0.0.2 24 u bw2 100%".to_owned()));
        assert!(settings("proxycommand nc %Q\n").is_err());
        assert!(settings("proxycommand nc %").is_err());
        assert_eq!(settings("proxycommand none\nproxyjump none").unwrap().proxy, Proxy::Direct);
    }

    #[test]
    fn refuses_names_that_are_dangerous() {
        for text in [
            "hostname a;id\nproxycommand nc %h\n",
            "hostname -oX\n",
            "user a`b`\n",
            "port 0\n",
            "port 70000\n",
            "proxyjump -x\n",
            "proxyjump a,,b\n",
        ] {
            assert!(settings(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn defaults_without_any_output() {
        let host = settings("").unwrap();
        assert_eq!(host.at(), "joe@bw2:22");
        assert_eq!(host.strict, StrictHostKey::Yes);
        assert_eq!(host.identity_agent, Some(PathBuf::from("/run/agent")));
        let host = settings("identityagent none\nstricthostkeychecking false").unwrap();
        assert_eq!((host.identity_agent, host.strict), (None, StrictHostKey::No));
    }

    #[tokio::test]
    async fn asks_the_real_ssh() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config");
        std::fs::write(
            &config,
            "Match originalhost other user u2\n  Port 2202\nHost other\n  HostName 127.0.0.9\n  Port 2201\n  User u1\n\
             Host hop\n  ProxyJump a,b:23\n",
        )
        .unwrap();
        let options = ConnectOptions { ssh_config: Some(config.clone()), ..options() };
        let resolve_text =
            async |text: &str| resolve(&Destination::parse(text).unwrap(), &options).await;
        assert_eq!(resolve_text("other").await.unwrap().at(), "other (u1@127.0.0.9:2201)");
        assert_eq!(resolve_text("u2@other").await.unwrap().at(), "other (u2@127.0.0.9:2202)");
        assert_eq!(resolve_text("ssh://other:7").await.unwrap().at(), "other (u1@127.0.0.9:7)");
        assert_eq!(resolve_text("[::1]").await.unwrap().hostname, "::1");
        assert!(
            matches!(resolve_text("hop").await.unwrap().proxy, Proxy::Jump(hops) if hops.len() == 2)
        );
        std::fs::write(&config, "NoSuchOption yes\n").unwrap();
        let error = resolve_text("other").await.unwrap_err().to_string();
        assert!(error.to_lowercase().contains("nosuchoption"), "{error}");
    }

    #[tokio::test]
    async fn a_hanging_configuration_is_killed_and_a_missing_ssh_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config");
        std::fs::write(&config, "Match exec \"sleep 30\"\n  Port 2202\n").unwrap();
        let mut options = ConnectOptions {
            ssh_config: Some(config),
            config_timeout: Duration::from_millis(300),
            ..options()
        };
        let destination = Destination::parse("bw2").unwrap();
        let error = resolve(&destination, &options).await.unwrap_err();
        assert!(error.to_string().contains("took more than 0.3 s"), "{error}");
        options.ssh_program = Some(PathBuf::from("no-such-ssh-program"));
        assert_eq!(resolve(&destination, &options).await.unwrap().at(), "joe@bw2:22");
    }
}
