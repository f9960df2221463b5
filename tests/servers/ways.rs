//! The ways of bulk data: from the source's agent to the coordinator by memory or by a pipe,
//! and by several channels to a target that is far.

use crate::bulk::shell;
use crate::support::{Pushed, Servers, assert_same, fingerprint};
use lab::fingerprint::Fingerprint;
use lab::host::Host;
use lab::seed::{Seed, Size};
use std::process::Child;
use std::time::{Duration, Instant};

/// Carries bytes to a server and back, each direction 40 ms late.
const LATE: &str = r#"use IO::Socket::INET; use Time::HiRes qw(time);
my $server = IO::Socket::INET->new(PeerAddr => shift) or die;
my @ways = ([*STDIN, $server, []], [$server, *STDOUT, []]);
while (@ways) {
    my ($read, $wait) = ("", undef);
    vec($read, fileno($_->[0]), 1) = 1 for @ways;
    for (@ways) { next unless @{$_->[2]}; my $due = $_->[2][0][0] - time; $wait = $due if !defined $wait || $due < $wait }
    $wait = 0 if defined $wait && $wait < 0;
    select($read, undef, undef, $wait);
    for (@ways) {
        if (vec($read, fileno($_->[0]), 1)) {
            exit unless sysread($_->[0], my $piece, 65536);
            push @{$_->[2]}, [time + 0.04, $piece];
        }
        while (@{$_->[2]} && $_->[2][0][0] <= time) {
            my $piece = (shift @{$_->[2]})->[1];
            while (length $piece) { my $n = syswrite($_->[1], $piece) or exit; substr($piece, 0, $n) = "" }
        }
    }
}"#;

/// Where the source's ssh is told of the way.
const WAY: &str = "etc/ssh/ssh_config.d/way.conf";

/// The target's authorized_keys.
const KEYS: &str = "/root/.ssh/authorized_keys";

/// The processes of the target's agent and of its further channels.
const AGENTS: &str = "mbcopy agent";

/// A user with 12 MB in small and large messages, and a long way to the target.
struct Far {
    servers: Servers,
    before: Fingerprint,
}

impl Far {
    fn new() -> Far {
        let servers = Servers::fresh();
        servers.accounts(&["far"]);
        Seed::new(&servers.source, "far").small().unwrap();
        Seed::new(&servers.source, "far").bulk(120, Size::Median(20_000), 2).unwrap();
        Seed::new(&servers.source, "far").bulk(30, Size::Fixed(400_000), 2).unwrap();
        let before = fingerprint(&servers.source, "far", &[]);
        let way = format!("ProxyCommand perl /tmp/late.pl {}:22", servers.target.ip());
        let root = servers.source.root().unwrap();
        std::fs::write(root.join("tmp/late.pl"), LATE).unwrap();
        std::fs::create_dir_all(root.join("etc/ssh/ssh_config.d")).unwrap();
        std::fs::write(root.join(WAY), format!("Host bw2\n  {way}\n")).unwrap();
        Far { servers, before }
    }

    /// Begins to push him, slowly enough to be looked at.
    fn begin(&self) -> Child {
        let command = ["mbcopy", "push", "user.far", "bw2", "--json", "--bwlimit", "4000000"];
        self.servers.source.spawn(&command).unwrap()
    }

    #[track_caller]
    fn assert_moved(&self) {
        assert_same(&self.before, &fingerprint(&self.servers.target, "far", &[]), &[]);
        until_lanes(&self.servers.target, |there| there == 0);
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        shell(&self.servers.source, &format!("rm -f /{WAY}"));
        shell(&self.servers.target, &format!("test ! -e {KEYS}.all || mv {KEYS}.all {KEYS}"));
    }
}

/// How many further channels there are.
fn lanes(target: &Host) -> usize {
    let agents = shell(target, &format!("pgrep -cf '^{AGENTS}' || true"));
    agents.trim().parse::<usize>().unwrap().saturating_sub(1)
}

#[track_caller]
fn until_lanes(target: &Host, wanted: impl Fn(usize) -> bool) -> usize {
    let limit = Instant::now() + Duration::from_secs(20);
    loop {
        let there = lanes(target);
        if wanted(there) {
            return there;
        }
        assert!(Instant::now() < limit, "{there} further channels");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn end(running: Child) -> Pushed {
    Pushed::from(running.wait_with_output().unwrap())
}

#[test]
fn several_channels_fill_a_long_way() {
    let far = Far::new();
    let running = far.begin();
    let there = until_lanes(&far.servers.target, |there| there > 3);
    println!("{there} further channels");
    assert_eq!(end(running).expect(0).report().unwrap()["outcome"], "done");
    far.assert_moved();
}

#[test]
fn a_copy_that_is_nice_lets_others_go_first() {
    let servers = Servers::fresh();
    servers.accounts(&["nice"]);
    Seed::new(&servers.source, "nice").bulk(30, Size::Fixed(400_000), 2).unwrap();
    let before = fingerprint(&servers.source, "nice", &[]);
    let push = ["mbcopy", "push", "user.nice", "bw2", "--json", "--bwlimit", "4000000"];
    for (last, wanted) in [(&["--copy-only"][..], "0"), (&["--nice"], "10")] {
        let running = servers.source.spawn(&[&push[..], last].concat()).unwrap();
        let limit = Instant::now() + Duration::from_secs(20);
        let urgency = loop {
            let writers = "ps -eLo ni=,comm= | awk '$2 ~ /^writer-/ {print $1}' | sort -u";
            let there = shell(&servers.target, writers);
            if !there.is_empty() {
                break there;
            }
            assert!(Instant::now() < limit, "nothing is written");
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(urgency.trim(), wanted);
        end(running).expect(0);
        if wanted == "0" {
            servers.source.run(&["mbcopy", "abort", "user.nice"]).unwrap();
        }
    }
    assert_same(&before, &fingerprint(&servers.target, "nice", &[]), &[]);
}

#[test]
fn a_channel_that_ends_is_told_and_the_same_push_goes_on() {
    let far = Far::new();
    let (source, target) = (&far.servers.source, &far.servers.target);
    let running = far.begin();
    until_lanes(target, |there| there > 3);
    // Something is on the way on each of them.
    std::thread::sleep(Duration::from_millis(700));
    shell(target, &format!("pkill -9 -nf '^{AGENTS}'"));
    let broken = end(running);
    assert_ne!(broken.code, 0, "{}", broken.stdout);
    broken.says(&["bw2", "channel", "the source serves the user"]);
    source.imap("far").unwrap().command("EXAMINE INBOX").unwrap();
    until_lanes(target, |there| there == 0);
    far.servers.push("user.far", &[]).expect(0);
    far.assert_moved();
}

#[test]
fn a_key_that_is_confined_to_the_agent_has_several_channels_too() {
    let far = Far::new();
    let target = &far.servers.target;
    let confined = r#"sed 's/^/restrict,command="mbcopy agent --role target" /'"#;
    shell(target, &format!("cp {KEYS} {KEYS}.all; {confined} {KEYS}.all > {KEYS}"));
    let running = far.begin();
    until_lanes(target, |there| there > 3);
    assert_eq!(end(running).expect(0).report().unwrap()["outcome"], "done");
    far.assert_moved();
}

/// The most that the source's agent was seen to have written, in bytes.
fn written(source: &Host, running: &mut Child) -> u64 {
    let io = "grep -h wchar $(pgrep -f 'mbcopy agent --role source' | sed 's|.*|/proc/&/io|')";
    let mut most = 0;
    while running.try_wait().unwrap().is_none() {
        let told = shell(source, &format!("{io} 2>/dev/null || true"));
        let now = told.split_whitespace().filter_map(|word| word.parse().ok()).max();
        most = most.max(now.unwrap_or(0));
        std::thread::sleep(Duration::from_millis(50));
    }
    most
}

#[test]
fn bulk_data_is_read_from_the_agents_memory_where_that_is_allowed() {
    let servers = Servers::fresh();
    let confined = ["setpriv", "--bounding-set=-sys_ptrace"];
    for (user, before, lends) in [("free", &[][..], true), ("confined", &confined[..], false)] {
        servers.accounts(&[user]);
        Seed::new(&servers.source, user).bulk(40, Size::Fixed(200_000), 2).unwrap();
        let print = fingerprint(&servers.source, user, &[]);
        let mailbox = format!("user.{user}");
        let push = ["mbcopy", "push", &mailbox, "bw2", "--bwlimit", "4000000"];
        let mut running = servers.source.spawn(&[before, &push].concat()).unwrap();
        let most = written(&servers.source, &mut running);
        end(running).expect(0);
        println!("{user}: {most} bytes by the pipe");
        assert_eq!(most < 2_000_000, lends, "{user}: {most} bytes by the pipe of 8,000,000");
        assert!(most > 0, "the agent was not seen");
        assert_same(&print, &fingerprint(&servers.target, user, &[]), &[]);
    }
}
