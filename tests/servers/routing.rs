//! The route commands of `contrib/route`, with the real programs: mail goes through an MTA
//! and clients through a proxy all the while a user moves.

use crate::support::{Pushed, Servers, assert_same, fingerprint};
use lab::host::Host;
use lab::imap::Imap;
use lab::seed::Seed;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Where the route commands are on the hosts.
const COMMANDS: &str = "/usr/local/lib/mbcopy";

/// How an MTA is set up and used. All of it is shell on its host.
struct Mta {
    start: &'static str,
    /// The route command, with its arguments.
    command: &'static str,
    sendmail: &'static str,
    /// Prints how many messages wait.
    queued: &'static str,
    /// Prints how many were given up.
    bounced: &'static str,
}

const POSTFIX: &str = r#"
postconf -e compatibility_level=3.6 myhostname=mx mydestination= relay_domains=example.org \
    inet_protocols=ipv4 disable_dns_lookups=yes lmtp_host_lookup=native smtp_host_lookup=native \
    minimal_backoff_time=1s maximal_backoff_time=2s queue_run_delay=1s \
    maillog_file=/var/log/mail.log transport_maps="$MAP"
postconf -F '*/*/chroot = n'
# A message that was not yet put away when its time came waits for the next wake-up, 300 s.
postconf -F 'qmgr/unix/wakeup = 1'
test -z "$INITIAL" || $INITIAL
postfix start
"#;

const LMDB: Mta = Mta {
    start: "MAP=lmdb:/etc/postfix/mbcopy",
    command: "postfix lmdb:/etc/postfix/mbcopy example.org",
    sendmail: "sendmail",
    queued: "find /var/spool/postfix/{maildrop,incoming,active,deferred} -type f | wc -l",
    bounced: "grep -c status=bounced /var/log/mail.log || true",
};

const HASH: Mta = Mta {
    start: "MAP=hash:/etc/postfix/mbcopy",
    command: "postfix hash:/etc/postfix/mbcopy example.org",
    ..LMDB
};

const LDAP: Mta = Mta {
    start: "MAP=ldap:/etc/postfix/mbcopy-ldap.cf",
    command: "ldap ou=people,dc=example,dc=org -H ldap://127.0.0.1 -x \
              -D cn=admin,dc=example,dc=org -y /etc/mbcopy.ldap",
    ..LMDB
};

const SQL: Mta =
    Mta { start: "MAP=sqlite:/etc/postfix/mbcopy-sql.cf", command: SQL_COMMAND, ..LMDB };

const SQL_COMMAND: &str =
    "sql users userid host sqlite3 -bail -cmd '.timeout 4000' /etc/mbcopy.sqlite";

/// The table that Postfix and Dovecot ask. Both run as others than root.
const MAKE_TABLE: &str = r#"
rm -f /etc/mbcopy.sqlite
sqlite3 /etc/mbcopy.sqlite "CREATE TABLE users (userid text primary key, host text);
  INSERT INTO users VALUES ('$USER', '10.77.0.11'), ('another', '10.77.0.11');"
cat > /etc/postfix/mbcopy-sql.cf <<'END'
dbpath = /etc/mbcopy.sqlite
query = SELECT 'lmtp:inet:[' || host || ']:24' FROM users WHERE userid || '@example.org' = '%s'
END
"#;

const EXIM: Mta = Mta {
    start: "",
    command: "exim /etc/exim4/mbcopy example.org",
    sendmail: "/opt/exim/usr/sbin/exim4",
    queued: "/opt/exim/usr/sbin/exim4 -bpc",
    bounced: "grep -cE ' (\\*\\*|SMTP error.* 5[0-9][0-9]) ' /var/log/exim4/mainlog || true",
};

const START_EXIM: &str = r#"
id Debian-exim >/dev/null 2>&1 || useradd -r Debian-exim
install -d -o Debian-exim /var/spool/exim4 /var/log/exim4 /etc/exim4
cat > /etc/exim4/exim4.conf <<'END'
primary_hostname = mx
exim_path = /opt/exim/usr/sbin/exim4
acl_smtp_rcpt = all
begin acl
all:
  accept
begin routers
mbcopy:
  driver = manualroute
  domains = example.org
  route_data = ${lookup{$local_part@$domain}lsearch{/etc/exim4/mbcopy}{$value byname}}
  transport = mbcopy_lmtp
begin transports
mbcopy_lmtp:
  driver = smtp
  protocol = lmtp
  port = 24
begin retry
* * F,1h,1s
END
$INITIAL
/opt/exim/usr/sbin/exim4 -bd -q1s
"#;

const START_SLAPD: &str = r#"
cat > /etc/ldap/mbcopy.conf <<'END'
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
include /etc/ldap/schema/misc.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile /run/slapd-mbcopy.pid
database mdb
suffix dc=example,dc=org
rootdn cn=admin,dc=example,dc=org
rootpw pw
directory /var/lib/ldap-mbcopy
END
rm -rf /var/lib/ldap-mbcopy; mkdir /var/lib/ldap-mbcopy
(umask 077; printf pw > /etc/mbcopy.ldap)
slapd -h ldap://127.0.0.1 -f /etc/ldap/mbcopy.conf
ldapadd -x -H ldap://127.0.0.1 -D cn=admin,dc=example,dc=org -y /etc/mbcopy.ldap <<END
dn: dc=example,dc=org
objectClass: domain
dc: example

dn: ou=people,dc=example,dc=org
objectClass: organizationalUnit
ou: people

dn: uid=$USER,ou=people,dc=example,dc=org
objectClass: inetOrgPerson
objectClass: inetLocalMailRecipient
uid: $USER
cn: $USER
sn: $USER
mailLocalAddress: $USER@example.org
mailHost: bw1
END
cat > /etc/postfix/mbcopy-ldap.cf <<'END'
server_host = ldap://127.0.0.1
version = 3
bind = no
search_base = ou=people,dc=example,dc=org
query_filter = (mailLocalAddress=%s)
result_attribute = mailHost
result_format = lmtp:inet:[%s]:24
END
"#;

/// A proxy: what sets it up, what starts it, and its route command.
struct Proxy {
    start: &'static str,
    daemon: &'static str,
    command: &'static str,
}

/// Dovecot, with this passdb.
const START_DOVECOT: &str = r#"
cat > /etc/dovecot/mbcopy.conf <<END
protocols = imap
listen = *
ssl = no
disable_plaintext_auth = no
log_path = /var/log/dovecot.log
passdb {
  $PASSDB
}
userdb {
  driver = static
  args = uid=nobody gid=nogroup home=/nonexistent
}
END
$INITIAL
dovecot -c /etc/dovecot/mbcopy.conf
"#;

const DOVECOT: Proxy = Proxy {
    start: r#"
PASSDB='driver = passwd-file
args = username_format=%u /etc/dovecot/mbcopy'
"#,
    daemon: START_DOVECOT,
    command: "dovecot /etc/dovecot/mbcopy",
};

const DOVECOT_SQL: Proxy = Proxy {
    start: r#"
PASSDB='driver = sql
args = /etc/dovecot/mbcopy-sql.conf'
cat > /etc/dovecot/mbcopy-sql.conf <<'END'
driver = sqlite
connect = /etc/mbcopy.sqlite
password_query = SELECT NULL AS password, 'y' AS nopassword, 'y' AS proxy, host FROM users WHERE userid = '%u'
END
"#,
    daemon: START_DOVECOT,
    command: SQL_COMMAND,
};

const NGINX: Proxy = Proxy {
    start: r#"
cat > /etc/nginx/nginx.conf <<'END'
load_module modules/ngx_mail_module.so;
worker_processes 1;
pid /run/nginx.pid;
events {}
http {
  access_log off;
  map $http_auth_user $mbcopy { default 10.77.0.11; include /etc/nginx/mbcopy.map; }
  server {
    listen 127.0.0.1:9143;
    location = /auth {
      add_header Auth-Status OK;
      add_header Auth-Server $mbcopy;
      add_header Auth-Port 143;
      return 204;
    }
  }
}
mail {
  auth_http 127.0.0.1:9143/auth;
  server { listen 143; protocol imap; }
}
END
touch /etc/nginx/mbcopy.map
"#,
    daemon: "nginx",
    command: "nginx /etc/nginx/mbcopy.map",
};

/// Two servers, and a host with an MTA or a proxy, or both, for one user.
struct Routed {
    servers: Servers,
    mx: Host,
    user: String,
    /// What mbcopy is told to run.
    route: String,
}

impl Drop for Routed {
    fn drop(&mut self) {
        let _ = self.mx.down();
    }
}

impl Routed {
    fn new(user: &str, mta: Option<&Mta>, proxy: Option<&Proxy>) -> Routed {
        let servers = Servers::fresh();
        servers.accounts(&[user]);
        Seed::new(&servers.source, user).small().unwrap();
        // What a test that was killed has left.
        let _ = Host::new("mx").down();
        Host::new("mx").up_alone().expect("`make lab` builds the root mx");
        // Its address is known from now on.
        let mx = Host::new("mx");
        let contrib = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/route");
        for host in [&mx, &servers.source] {
            host.run(&["mkdir", "-p", COMMANDS]).unwrap();
            for file in std::fs::read_dir(&contrib).unwrap() {
                let file = file.unwrap();
                let name = file.file_name().into_string().unwrap();
                host.install(&file.path(), &format!("{COMMANDS}/{name}")).unwrap();
            }
        }
        let commands = mta.map(|m| m.command).into_iter().chain(proxy.map(|p| p.command));
        let on = |command: &str| format!("{COMMANDS}/on mx {COMMANDS}/{command}");
        let route: Vec<String> = commands.map(on).collect();
        let routed = Routed { servers, mx, user: user.into(), route: route.join(" && ") };
        routed.run(
            "rm -f /etc/{postfix,exim4,dovecot,nginx}/mbcopy* /var/log/mail.log \
             /var/log/exim4/mainlog /run/stop /run/sent; rm -rf /var/spool/exim4 \
             /var/spool/postfix/{maildrop,incoming,active,deferred,bounce,defer}/*",
        );
        if let Some(mta) = mta {
            let start = match (mta.sendmail, mta.command.starts_with("ldap")) {
                ("sendmail", true) => format!("{START_SLAPD}\n{}\nINITIAL=\n{POSTFIX}", mta.start),
                _ if mta.command == SQL_COMMAND => {
                    format!("{MAKE_TABLE}\n{}\n{POSTFIX}", mta.start)
                }
                ("sendmail", _) => format!("{}\n{POSTFIX}", mta.start),
                _ => START_EXIM.into(),
            };
            routed.begin(&start, mta.command);
        }
        if let Some(proxy) = proxy {
            let table = if proxy.command == SQL_COMMAND { MAKE_TABLE } else { "" };
            routed.begin(&format!("{table}\n{}\n{}", proxy.start, proxy.daemon), proxy.command);
        }
        routed
    }

    /// Runs a script on the MTA's host, which daemons may outlive.
    fn run(&self, script: &str) -> String {
        let script = format!(
            "set -e; {{ {script}\n}} > /run/said 2>&1 < /dev/null || {{ cat /run/said; exit 1; }}; cat /run/said"
        );
        let output = self.mx.exec(&["bash", "-c", &script]).unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{script}\n{said}");
        said
    }

    /// Starts a program with the user's line in its map, as an admin would put it there.
    fn begin(&self, start: &str, command: &str) {
        let user = &self.user;
        let initial = format!("{COMMANDS}/{command}");
        self.run(&format!(
            "export MBCOPY_USER={user} MBCOPY_NEW_SERVER=bw1 USER={user}\nINITIAL='{initial}'\n{start}"
        ));
    }

    fn push(&self, more: &[&str]) -> Pushed {
        let route = ["--route-command", &self.route, "--route-timeout", "20s"];
        self.servers.push(&format!("user.{}", self.user), &[&route[..], more].concat())
    }

    /// Sends messages until `/run/stop` is there.
    fn send(&self, mta: &Mta) -> std::process::Child {
        let (sendmail, user) = (mta.sendmail, &self.user);
        let script = format!(
            "n=0; while [ ! -e /run/stop ]; do n=$((n+1)); \
             printf 'Subject: flow-%s-\\n\\nhello\\n' $n | \
             {sendmail} -i -f sender@example.net {user}@example.org && echo $n >> /run/sent; \
             sleep 0.2; done"
        );
        self.mx.spawn(&["sh", "-c", &script]).unwrap()
    }

    /// Ends the sending; every message is on `home` once, and none was given up.
    fn all_arrive(&self, mta: &Mta, mut sending: std::process::Child, home: &Host) {
        self.run("touch /run/stop");
        sending.wait().unwrap();
        let sent = self.run("cat /run/sent; rm -f /run/stop /run/sent");
        let began = Instant::now();
        while self.run(mta.queued).trim() != "0" {
            assert!(began.elapsed() < Duration::from_secs(90), "{}", self.run("mailq"));
            std::thread::sleep(Duration::from_millis(200));
        }
        assert_eq!(self.run(mta.bounced).trim(), "0", "something was given up");
        let mut imap = home.imap(&self.user).unwrap();
        imap.command("SELECT INBOX").unwrap();
        let all: Vec<&str> = sent.split_whitespace().collect();
        assert!(all.len() > 10, "only {} messages were sent", all.len());
        for n in &all {
            let found = imap.command(format!("SEARCH SUBJECT flow-{n}-")).unwrap();
            let copies = found.of("SEARCH").map(|uids| uids.len() - 1).sum::<usize>();
            assert_eq!(copies, 1, "message {n} of {}", all.len());
        }
        println!("{} messages went through, each is there once", all.len());
        imap.logout();
    }

    /// Logs in through the proxy and looks, again and again; what it was refused, and when.
    fn look(
        &self,
        stop: &Arc<AtomicBool>,
    ) -> std::thread::JoinHandle<(u32, Vec<(Instant, String)>)> {
        let (ip, user, stop) = (self.mx.ip().to_owned(), self.user.clone(), Arc::clone(stop));
        std::thread::spawn(move || {
            let (mut looks, mut refused, mut seen) = (0, Vec::new(), 0);
            while !stop.load(Ordering::Relaxed) {
                match look_once(&ip, &user) {
                    Ok(count) => {
                        assert!(count >= seen, "{count} messages after {seen}");
                        (looks, seen) = (looks + 1, count);
                    }
                    Err(error) => refused.push((Instant::now(), format!("{error:#}"))),
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            (looks, refused)
        })
    }

    /// Who is seen through the proxy is he of this server: at once, but for Dovecot, which
    /// looks at its file once a second.
    fn leads_to(&self, home: &Host) {
        let here = look_once(home.ip(), &self.user).unwrap();
        let began = Instant::now();
        loop {
            match look_once(self.mx.ip(), &self.user) {
                Ok(there) if there == here => return,
                other => assert!(began.elapsed() < Duration::from_secs(2), "{here} {other:?}"),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// How many messages are in the INBOX.
fn look_once(ip: &str, user: &str) -> anyhow::Result<u64> {
    let mut imap = Imap::connect(ip, Duration::from_secs(10))?;
    imap.login(user, "pw")?;
    let selected = imap.command("SELECT INBOX")?;
    imap.logout();
    Ok(selected.numbered("EXISTS").map(|(count, _)| count).sum())
}

/// Mail flows through the MTA while the user moves, and while he comes back.
fn mail_flows(user: &str, mta: &Mta) {
    let routed = Routed::new(user, Some(mta), None);
    let Servers { source, target } = &routed.servers;
    let sending = routed.send(mta);
    std::thread::sleep(Duration::from_secs(1));
    routed.push(&[]).expect(0);
    let moved = look_once(target.ip(), user).unwrap();
    let began = Instant::now();
    while look_once(target.ip(), user).unwrap() <= moved {
        assert!(began.elapsed() < Duration::from_secs(30), "nothing is led to the new server");
        std::thread::sleep(Duration::from_millis(200));
    }
    routed.servers.mbcopy(&["reverse", &format!("user.{user}")]).expect(0);
    std::thread::sleep(Duration::from_secs(1));
    routed.all_arrive(mta, sending, source);
}

/// Clients of the proxy see the whole user, before and after, and after a route that failed.
fn clients_follow(user: &str, proxy: &Proxy) {
    let mut routed = Routed::new(user, None, Some(proxy));
    let before = fingerprint(&routed.servers.source, user, &[]);
    routed.leads_to(&routed.servers.source);
    let whole = std::mem::take(&mut routed.route);
    // The route is changed, and then something else fails: it leads back.
    routed.route = format!("{whole} && test $MBCOPY_ACTION = restore");
    routed.push(&[]).expect(1).says(&["the route command", "bw1 serves the user now"]);
    routed.leads_to(&routed.servers.source);
    assert_same(&before, &fingerprint(&routed.servers.source, user, &[]), &[]);
    routed.route = whole;
    routed.servers.arm("Routed");
    routed.push(&[]);
    assert!(routed.servers.disarm());
    routed.leads_to(&routed.servers.target);
    routed.servers.mbcopy(&["abort", &format!("user.{user}")]).expect(0);
    routed.leads_to(&routed.servers.source);

    let stop = Arc::default();
    let looking = routed.look(&stop);
    std::thread::sleep(Duration::from_millis(500));
    routed.push(&[]).expect(0);
    std::thread::sleep(Duration::from_secs(3));
    stop.store(true, Ordering::Relaxed);
    let (looks, refused) = looking.join().unwrap();
    println!("{looks} looks; refused: {refused:?}");
    assert!(looks > 3, "{refused:?}");
    // One who was let in before, and looked after; Dovecot looks at its file once a second.
    if let [(first, _), .., (last, _)] = &refused[..] {
        assert!(last.duration_since(*first) < Duration::from_secs(2), "{refused:?}");
    }
    routed.leads_to(&routed.servers.target);
    assert_same(&before, &fingerprint(&routed.servers.target, user, &[]), &[]);
}

#[test]
fn mail_flows_through_postfix_with_a_map_in_lmdb() {
    mail_flows("lmdb", &LMDB);
}

#[test]
fn clients_follow_through_dovecot() {
    clients_follow("dove", &DOVECOT);
}

#[test]
#[ignore = "a minute"]
fn mail_flows_through_postfix_with_a_map_in_hash() {
    mail_flows("hash", &HASH);
}

#[test]
#[ignore = "a minute"]
fn mail_flows_through_postfix_by_a_directory() {
    mail_flows("ldap", &LDAP);
}

#[test]
#[ignore = "a minute"]
fn mail_flows_through_exim() {
    mail_flows("exim", &EXIM);
}

#[test]
#[ignore = "a minute"]
fn mail_flows_through_postfix_by_a_table() {
    mail_flows("sqlp", &SQL);
}

#[test]
#[ignore = "a minute"]
fn clients_follow_through_dovecot_by_a_table() {
    clients_follow("sqld", &DOVECOT_SQL);
}

#[test]
#[ignore = "a minute"]
fn clients_follow_through_nginx() {
    clients_follow("nginx", &NGINX);
}
