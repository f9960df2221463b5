//! The name of the other server, as written on the command line.

use std::fmt;
use std::net::Ipv6Addr;

use super::error::TransportError;

/// Characters that mean something to a shell.  OpenSSH refuses them in host and user names too, since
/// 9.6, because both can end up in a `ProxyCommand`.
const SHELL_CHARACTERS: &str = "'`\"$\\;&<>|(){}*?!#~^,/@[]";

/// A server as the user named it: `[user@]host` or `ssh://[user@]host[:port]`.
///
/// The host may be an alias of the SSH configuration.  Host and user hold visible ASCII characters only,
/// none with a meaning to a shell, and do not begin with `-`, so neither can become an option or a
/// command of another program.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    user: Option<String>,
    host: String,
    port: Option<u16>,
}

impl Destination {
    /// Makes a destination from its parts.
    pub fn new(user: Option<&str>, host: &str, port: Option<u16>) -> Result<Self, TransportError> {
        let wrong = |reason: String| TransportError::BadDestination {
            text: super::text::one_line(host.as_bytes(), 80),
            reason,
        };
        check_name("host", host).map_err(wrong)?;
        if host.contains([':', '%']) && !is_ipv6(host) {
            return Err(wrong("only an IPv6 address may hold ':' or '%'".to_owned()));
        }
        if let Some(user) = user {
            check_name("user", user).map_err(wrong)?;
        }
        if port == Some(0) {
            return Err(wrong("port 0 does not exist".to_owned()));
        }
        Ok(Destination { user: user.map(str::to_owned), host: host.to_owned(), port })
    }

    /// Reads a destination that has no partition.
    pub fn parse(text: &str) -> Result<Self, TransportError> {
        match Self::parse_with_partition(text)? {
            (destination, None) => Ok(destination),
            (_, Some(_)) => Err(bad(
                text,
                "nothing may follow the host here; a port is written ssh://host:port, an IPv6 address in brackets",
            )),
        }
    }

    /// Reads `dest[:partition]`.
    ///
    /// In the plain form what follows the colon is the partition.  In the `ssh://` form a number right
    /// after the host is the port, so a partition whose name is a number needs the port before it
    /// (`ssh://host:22:2`).
    pub fn parse_with_partition(text: &str) -> Result<(Self, Option<String>), TransportError> {
        let (is_url, rest) = match text.strip_prefix("ssh://") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (user, rest) = match rest.rsplit_once('@') {
            Some((user, rest)) => (Some(user), rest),
            None => (None, rest),
        };
        let (host, tail) = if let Some(rest) = rest.strip_prefix('[') {
            let (host, tail) =
                rest.split_once(']').ok_or_else(|| bad(text, "the bracket is not closed"))?;
            if !is_ipv6(host) {
                return Err(bad(text, "only an IPv6 address belongs in brackets"));
            }
            (host, tail)
        } else {
            rest.split_at(rest.find(':').unwrap_or(rest.len()))
        };
        let tail = match tail {
            "" => None,
            tail => Some(
                tail.strip_prefix(':')
                    .ok_or_else(|| bad(text, "only :partition may follow the host"))?,
            ),
        };
        let (port, partition) = match tail {
            None => (None, None),
            Some(tail) if !is_url => (None, Some(tail)),
            Some(tail) => {
                let (first, second) = match tail.split_once(':') {
                    Some((first, second)) => (first, Some(second)),
                    None => (tail, None),
                };
                if !first.is_empty() && first.bytes().all(|byte| byte.is_ascii_digit()) {
                    let port = first.parse().map_err(|_| bad(text, "the port is above 65535"))?;
                    (Some(port), second)
                } else {
                    (None, Some(tail))
                }
            }
        };
        if let Some(partition) = partition {
            check_partition(partition).map_err(|reason| bad(text, reason))?;
        }
        let destination = Self::new(user, host, port).map_err(|error| match error {
            TransportError::BadDestination { reason, .. } => bad(text, &reason),
            other => other,
        })?;
        Ok((destination, partition.map(str::to_owned)))
    }

    /// The user, if one was given.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The host or alias, an IPv6 address without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, if one was given.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.port
    }
}

impl fmt::Display for Destination {
    /// Writes a form that [`Destination::parse`] reads again.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.port.is_some() {
            f.write_str("ssh://")?;
        }
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        if self.host.contains(':') {
            write!(f, "[{}]", self.host)?;
        } else {
            f.write_str(&self.host)?;
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

fn bad(text: &str, reason: &str) -> TransportError {
    TransportError::BadDestination {
        text: super::text::one_line(text.as_bytes(), 80),
        reason: reason.to_owned(),
    }
}

/// Says why a host or user name is refused.
pub(super) fn check_name(what: &str, name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err(format!("the {what} is empty"));
    }
    if name.starts_with('-') {
        return Err(format!("a {what} may not begin with '-'"));
    }
    if name.len() > 255 {
        return Err(format!("the {what} is too long"));
    }
    if let Some(c) = name.chars().find(|c| !c.is_ascii_graphic() || SHELL_CHARACTERS.contains(*c)) {
        return Err(format!("a {what} may not hold {c:?}"));
    }
    if what == "user" && name.contains(':') {
        return Err("a user may not hold ':'; passwords are not taken".to_owned());
    }
    Ok(())
}

fn check_partition(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("the partition after ':' is empty");
    }
    if name.contains(':') {
        return Err("an IPv6 address needs brackets, as in [fe80::1]:partition");
    }
    if name.starts_with('-') || name.len() > 64 {
        return Err("this is not the name of a partition");
    }
    if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        Ok(())
    } else {
        Err("a partition name holds letters, digits, '-', '_' and '.' only")
    }
}

/// Tells whether this is an IPv6 address, with or without a zone (`fe80::1%eth0`).
fn is_ipv6(host: &str) -> bool {
    let (address, zone) = match host.split_once('%') {
        Some((address, zone)) => (address, Some(zone)),
        None => (host, None),
    };
    address.parse::<Ipv6Addr>().is_ok()
        && zone.is_none_or(|zone| {
            !zone.is_empty()
                && zone.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Option<String>, String, Option<u16>, Option<String>) {
        let (d, partition) = Destination::parse_with_partition(text).unwrap();
        (d.user, d.host, d.port, partition)
    }

    fn want(
        user: Option<&str>,
        host: &str,
        port: Option<u16>,
        partition: Option<&str>,
    ) -> (Option<String>, String, Option<u16>, Option<String>) {
        let own = |text: Option<&str>| text.map(str::to_owned);
        (own(user), host.to_owned(), port, own(partition))
    }

    #[test]
    fn reads_every_form() {
        assert_eq!(read("bw2"), want(None, "bw2", None, None));
        assert_eq!(read("bw2:p2"), want(None, "bw2", None, Some("p2")));
        assert_eq!(read("bw2:2"), want(None, "bw2", None, Some("2")));
        assert_eq!(
            read("root@bw2.example.net:default"),
            want(Some("root"), "bw2.example.net", None, Some("default"))
        );
        assert_eq!(read("ssh://bw2"), want(None, "bw2", None, None));
        assert_eq!(read("ssh://u@bw2:2222"), want(Some("u"), "bw2", Some(2222), None));
        assert_eq!(read("ssh://bw2:2222:p2"), want(None, "bw2", Some(2222), Some("p2")));
        assert_eq!(read("ssh://bw2:p2"), want(None, "bw2", None, Some("p2")));
        assert_eq!(read("ssh://bw2:22:2"), want(None, "bw2", Some(22), Some("2")));
        assert_eq!(read("[2001:db8::1]"), want(None, "2001:db8::1", None, None));
        assert_eq!(read("r@[2001:db8::1]:p"), want(Some("r"), "2001:db8::1", None, Some("p")));
        assert_eq!(
            read("ssh://[fe80::1%eth0]:24:p"),
            want(None, "fe80::1%eth0", Some(24), Some("p"))
        );
    }

    #[test]
    fn refuses_what_could_mean_something_else() {
        for text in [
            "",
            "-oProxyCommand=x",
            "-l@host",
            "a@-host",
            "@host",
            "user@",
            "ho st",
            "ho\tst",
            "ho\nst",
            "host\u{7f}",
            "hôst",
            "host;id",
            "$(id)",
            "`id`@host",
            "u:pw@host",
            "host/path",
            "fe80::1",
            "2001:db8::1:p",
            "[host]",
            "[::1",
            "[::1]p",
            "[::1%]",
            "[::1%a;b]",
            "host:",
            "host:a b",
            "host:../x",
            "host:-x",
            "ssh://",
            "ssh://host:0",
            "ssh://host:65536",
            "ssh://host:22:",
            "ssh://host:22:a:b",
            "ssh://host::p",
            "ssh://host/",
        ] {
            let error = Destination::parse_with_partition(text).expect_err(text);
            let shown = error.to_string();
            assert!(!shown.contains('\n') && !shown.contains('\u{7f}'), "{shown:?}");
        }
        assert!(Destination::parse("bw2:p2").is_err());
    }

    #[test]
    fn displays_what_it_reads() {
        for text in ["bw2", "u@bw2", "ssh://u@bw2:2222", "[::1]", "ssh://[::1]:22"] {
            assert_eq!(Destination::parse(text).unwrap().to_string(), text);
        }
    }
}
