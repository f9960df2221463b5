//! The SSH transport against a real sshd, a private one on 127.0.0.1 for each test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mbcopy::transport::{
    ConnectOptions, Destination, ExecOptions, ExitStatus, HostKeyVerdict, RemoteProcess, Session,
    TransportError, WhenFull, upload,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const INSTALL: &str = "these tests need OpenSSH: apt-get install openssh-server openssh-client";

/// A private sshd with its own keys, and a client configuration that knows it as `srv`.
struct Server {
    dir: tempfile::TempDir,
    port: u16,
    sshd: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.sshd.kill();
        let _ = self.sshd.wait();
    }
}

fn sshd_program() -> PathBuf {
    ["/usr/sbin/sshd", "/usr/local/sbin/sshd", "/usr/bin/sshd"]
        .iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
        .expect(INSTALL)
}

fn keygen(file: &Path, arguments: &[&str]) {
    let status = Command::new("ssh-keygen")
        .args(["-q", "-f"])
        .arg(file)
        .args(arguments)
        .stdin(Stdio::null())
        .status()
        .expect(INSTALL);
    assert!(status.success());
}

fn user() -> String {
    ConnectOptions::from_env().local_user.unwrap()
}

impl Server {
    fn start() -> Self {
        Self::start_with("")
    }

    /// Starts an sshd with more lines in its configuration; they come first and so win.
    fn start_with(extra: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for (name, arguments) in [
            ("host_ed25519", vec!["-t", "ed25519", "-N", ""]),
            ("host_rsa", vec!["-t", "rsa", "-b", "2048", "-N", ""]),
            ("id", vec!["-t", "ed25519", "-N", "", "-C", "the good key"]),
        ] {
            keygen(&path(name), &arguments);
        }
        std::fs::copy(path("id.pub"), path("authorized_keys")).unwrap();
        if user() == "root" {
            // sshd wants this directory and Debian makes it only at boot.
            let _ = std::fs::DirBuilder::new().recursive(true).mode(0o755).create("/run/sshd");
        }
        let show = |name: &str| path(name).display().to_string();
        // sshd takes no second line about the same subsystem.
        let sftp = if extra.contains("Subsystem") { "" } else { "Subsystem sftp internal-sftp\n" };
        for _ in 0..20 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            std::fs::write(
                path("sshd_config"),
                format!(
                    "{extra}\nListenAddress 127.0.0.1\nPort {port}\nHostKey {}\nHostKey {}\nPidFile none\n\
                     AuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n\
                     PasswordAuthentication no\nKbdInteractiveAuthentication no\nMaxStartups 100\n\
                     {sftp}LogLevel VERBOSE\n",
                    show("host_ed25519"),
                    show("host_rsa"),
                    show("authorized_keys"),
                ),
            )
            .unwrap();
            let log = std::fs::File::create(path("sshd.log")).unwrap();
            let mut sshd = Command::new(sshd_program())
                .args(["-D", "-e", "-f"])
                .arg(path("sshd_config"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .expect(INSTALL);
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_secs(10) && sshd.try_wait().unwrap().is_none() {
                if speaks_ssh(port) {
                    let server = Server { dir, port, sshd };
                    server.trust("host_ed25519.pub");
                    server.configure("");
                    return server;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = sshd.kill();
            let _ = sshd.wait();
        }
        panic!(
            "sshd does not start: {}",
            std::fs::read_to_string(path("sshd.log")).unwrap_or_default()
        );
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// Makes `known_hosts` hold exactly this host key.
    fn trust(&self, key: &str) {
        let line = format!("[127.0.0.1]:{} {}", self.port, self.read(key));
        self.write("known_hosts", &line);
    }

    fn fingerprint(&self, key: &str) -> String {
        let output = Command::new("ssh-keygen").arg("-lf").arg(self.path(key)).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.split(' ').nth(1).unwrap().to_owned()
    }

    /// Writes the client's configuration; what is given comes first and so wins.
    fn configure(&self, extra: &str) {
        let text = self.host_block("srv", extra);
        self.write("ssh_config", &text);
    }

    fn host_block(&self, alias: &str, extra: &str) -> String {
        format!(
            "Host {alias}\n{extra}\nHostName 127.0.0.1\nPort {}\nUser {}\nUserKnownHostsFile {}\n\
             GlobalKnownHostsFile /dev/null\nIdentityFile {}\nIdentitiesOnly yes\nIdentityAgent none\n",
            self.port,
            user(),
            self.path("known_hosts").display(),
            self.path("id").display(),
        )
    }

    fn options(&self) -> ConnectOptions {
        ConnectOptions {
            ssh_config: Some(self.path("ssh_config")),
            auth_sock: None,
            ..ConnectOptions::from_env()
        }
    }

    async fn try_connect(&self) -> Result<Session, TransportError> {
        Session::connect(&Destination::parse("srv").unwrap(), &self.options()).await
    }

    async fn connect(&self) -> Session {
        match self.try_connect().await {
            Ok(session) => session,
            Err(error) => panic!("{error}\nsshd says:\n{}", self.read("sshd.log")),
        }
    }

    async fn refusal(&self) -> TransportError {
        self.try_connect().await.expect_err("this must not connect")
    }
}

fn speaks_ssh(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
        return false;
    };
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut banner = [0; 4];
    stream.read_exact(&mut banner).is_ok() && &banner == b"SSH-"
}

/// Bytes that do not repeat within any buffer.
fn noise(count: usize, seed: u64) -> Bytes {
    let mut bytes = vec![0; count];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    Bytes::from(bytes)
}

/// Sends bytes through a process that echoes, and checks what comes back.
async fn echo(process: RemoteProcess, bytes: Bytes) {
    let RemoteProcess { mut stdin, mut stdout, mut exit, .. } = process;
    let wanted = blake3::hash(&bytes);
    let length = bytes.len();
    let sending = tokio::spawn(async move {
        let mut rest = bytes;
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(1 << 20));
            stdin.send(piece).await.unwrap();
        }
        stdin.finish().await.unwrap();
    });
    let mut hasher = blake3::Hasher::new();
    let mut count = 0;
    while let Some(piece) = stdout.recv().await.unwrap() {
        count += piece.len();
        hasher.update(&piece);
    }
    sending.await.unwrap();
    assert_eq!(count, length);
    assert_eq!(hasher.finalize(), wanted);
    assert!(exit.wait().await.unwrap().success());
}

async fn within<T>(seconds: u64, doing: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(seconds), doing).await.expect("this must not hang")
}

// ---- commands ----------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn a_good_key_runs_commands_and_their_status_comes_back() {
    let server = Server::start();
    let session = server.connect().await;
    assert!(session.at().starts_with("srv ("), "{}", session.at());
    let output = session.run(&["echo", "hello"], 100).await.unwrap();
    assert_eq!(output.stdout, b"hello\n");
    assert!(output.status.success());
    for (script, status) in [
        ("exit 3", ExitStatus::Code(3)),
        ("kill -TERM $$", ExitStatus::Signal("TERM".to_owned())),
        ("exec no-such-command-here", ExitStatus::Code(127)),
    ] {
        let output = session.run(&["sh", "-c", script], 100).await.unwrap();
        assert_eq!(output.status, status, "{script}");
    }
    assert!(session.round_trip().await.unwrap() < Duration::from_secs(5));
    let error = session.run(&["seq", "1000000"], 1000).await.unwrap_err();
    assert!(matches!(error, TransportError::Overrun { limit: 1000, .. }));
    assert!(session.run(&["a\0b"], 1).await.is_err());
    assert!(session.run::<&str>(&[], 1).await.is_err());
    session.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn words_reach_the_command_unchanged() {
    let server = Server::start();
    let session = server.connect().await;
    let odd = [
        "",
        " ",
        "a b",
        "'",
        "''",
        "\"",
        "$HOME",
        "`id`",
        "$(id)",
        "\\",
        "*",
        "~",
        "-n",
        "\n",
        "a=b",
        "&",
        ";",
        "#",
        "!",
        "é\u{1b}[0m",
    ];
    let mut words = vec!["printf", "%s\\0"];
    words.extend(odd);
    let output = session.run(&words, 10_000).await.unwrap();
    let seen: Vec<&[u8]> = output.stdout.split(|byte| *byte == 0).collect();
    let wanted: Vec<&[u8]> = odd.iter().map(|w| w.as_bytes()).chain([&b""[..]]).collect();
    assert_eq!(seen, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_mebibytes_go_through_cat_and_back() {
    let server = Server::start();
    let session = server.connect().await;
    let begin = Instant::now();
    within(120, async {
        echo(session.exec(&["cat"]).await.unwrap(), noise(64 << 20, 1)).await;
    })
    .await;
    eprintln!("64 MiB there and back in {:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn new_keys_under_way_disturb_nothing() {
    let server = Server::start_with("RekeyLimit 1M");
    let session = server.connect().await;
    within(60, async {
        let a = session.exec(&["cat"]).await.unwrap();
        let b = session.exec(&["cat"]).await.unwrap();
        tokio::join!(echo(a, noise(12 << 20, 10)), echo(b, noise(12 << 20, 11)));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_processes_share_a_connection() {
    let server = Server::start();
    let session = server.connect().await;
    within(120, async {
        let a = session.exec(&["cat"]).await.unwrap();
        let b = session.exec(&["cat"]).await.unwrap();
        let c = session.exec(&["cat"]).await.unwrap();
        let (a, b, c) = (
            tokio::spawn(echo(a, noise(24 << 20, 2))),
            tokio::spawn(echo(b, noise(24 << 20, 3))),
            tokio::spawn(echo(c, noise(10, 4))),
        );
        // A connection lives as long as its processes.
        drop(session);
        a.await.unwrap();
        b.await.unwrap();
        c.await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_streams_are_tokio_streams() {
    let server = Server::start();
    let session = server.connect().await;
    let bytes = noise(5_000_001, 5);
    let mut process = session.exec(&["cat"]).await.unwrap();
    let (mut stdin, sent) = (process.stdin, bytes.clone());
    let sending = tokio::spawn(async move {
        for piece in sent.chunks(777_777) {
            stdin.write_all(piece).await.unwrap();
        }
        stdin.shutdown().await.unwrap();
        stdin.shutdown().await.unwrap();
    });
    let mut back = Vec::new();
    within(60, process.stdout.read_to_end(&mut back)).await.unwrap();
    sending.await.unwrap();
    assert!(back == bytes);

    // What was written and not flushed arrives too.
    let mut process = session.exec(&["wc", "-c"]).await.unwrap();
    process.stdin.write_all(&bytes).await.unwrap();
    drop(process.stdin);
    let mut count = String::new();
    within(60, process.stdout.read_to_string(&mut count)).await.unwrap();
    assert_eq!(count.trim(), "5000001");
    assert!(process.exit.wait().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_error_is_bounded_and_harmless() {
    let server = Server::start();
    let session = server.connect().await;
    let script = "head -c 3000000 /dev/zero | tr '\\0' x >&2; printf '\\033]0;evil\\007\\n' >&2";
    let output = within(60, session.run(&["sh", "-c", script], 10)).await.unwrap();
    assert!(output.stderr.len() < 34 << 10, "{}", output.stderr.len());
    assert!(output.stderr.starts_with('['), "{:.80}", output.stderr);
    assert!(output.stderr.ends_with("x\\x1b]0;evil\\x07\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn writing_to_a_process_that_has_ended_does_not_hang() {
    let server = Server::start();
    let session = server.connect().await;
    let mut process = session.exec(&["true"]).await.unwrap();
    let error = within(30, async {
        loop {
            if let Err(error) = process.stdin.send(noise(1 << 20, 6)).await {
                return error;
            }
        }
    })
    .await;
    assert!(matches!(error, TransportError::ProcessEnded { .. }), "{error}");
    assert!(process.exit.wait().await.unwrap().success());
    // The same when the window is full already and nobody will open it again.
    let mut process = session.exec(&["sleep", "1"]).await.unwrap();
    within(30, async { while process.stdin.send(noise(1 << 20, 7)).await.is_ok() {} }).await;
    assert!(session.run(&["true"], 1).await.unwrap().status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_nobody_reads_stalls_the_others_only_if_told_so() {
    let server = Server::start();
    let session = server.connect().await;
    let flood = ["head", "-c", "300000000", "/dev/zero"];

    // Output that was dropped is thrown away.
    let mut dropped = session.exec(&flood).await.unwrap();
    drop(dropped.stdout);
    let run = within(60, session.run(&["echo", "a"], 10)).await.unwrap();
    assert_eq!(run.stdout, b"a\n");
    assert!(within(60, dropped.exit.wait()).await.unwrap().success());

    // With a budget that closes, the others go on and the reader hears about it.
    let closing = ExecOptions { stdout_budget: 1 << 20, when_full: WhenFull::Close };
    let mut over = session.exec_with(&flood, &closing).await.unwrap();
    let run = within(60, session.run(&["echo", "b"], 10)).await.unwrap();
    assert_eq!(run.stdout, b"b\n");
    // Nothing is read before it is too much: what is read makes room for more.
    assert!(matches!(within(60, over.exit.wait()).await, Err(TransportError::Overrun { .. })));
    let mut kept = 0;
    let error = within(60, async {
        loop {
            match over.stdout.recv().await {
                Ok(Some(piece)) => kept += piece.len(),
                Ok(None) => panic!("a cut output looks complete"),
                Err(error) => return error,
            }
        }
    })
    .await;
    assert!(matches!(error, TransportError::Overrun { .. }), "{error}");
    assert!(kept <= 1 << 20, "{kept}");

    // A budget that stalls loses nothing.
    let stalling = ExecOptions { stdout_budget: 1 << 20, when_full: WhenFull::Stall };
    let mut slow = session.exec_with(&flood, &stalling).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut count = 0;
    within(120, async {
        while let Some(piece) = slow.stdout.recv().await.unwrap() {
            count += piece.len();
        }
    })
    .await;
    assert_eq!(count, 300_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_process_is_closed_on_the_other_side() {
    let server = Server::start();
    let session = server.connect().await;
    let mark = server.path("mark");
    let script =
        format!("echo; while printf x; do sleep 0.1; done; echo gone > {}", mark.display());
    let script = format!("trap '' PIPE; {script}");
    let mut process = session.exec(&["sh", "-c", &script]).await.unwrap();
    process.stdout.recv().await.unwrap();
    drop(process);
    within(30, async {
        while !mark.exists() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert!(!session.is_closed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_connection_is_an_error_and_not_the_end_of_the_output() {
    let server = Server::start();
    let session = server.connect().await;
    let script = "echo begin; kill -9 $PPID; sleep 5";
    let mut process = session.exec(&["sh", "-c", script]).await.unwrap();
    let error = within(30, async {
        loop {
            match process.stdout.recv().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("a cut output looks complete"),
                Err(error) => return error,
            }
        }
    })
    .await;
    assert!(matches!(error, TransportError::Disconnected { .. }), "{error}");
    assert!(error.is_retryable());
    assert!(process.exit.wait().await.is_err());
    assert!(process.stdin.send(Bytes::from_static(b"x")).await.is_err());
    assert!(within(30, session.run(&["true"], 1)).await.is_err());
    assert!(session.is_closed());
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_channels_are_refused_with_a_hint() {
    let server = Server::start_with("MaxSessions 1");
    let session = server.connect().await;
    let _first = session.exec(&["cat"]).await.unwrap();
    let error = match session.exec(&["cat"]).await {
        Ok(_) => panic!("MaxSessions does not work"),
        Err(error) => error.to_string(),
    };
    assert!(error.contains("MaxSessions"), "{error}");
}

// ---- host keys ---------------------------------------------------------------------------------

fn verdict(error: &TransportError) -> &HostKeyVerdict {
    match error {
        TransportError::HostKey(problem) => &problem.verdict,
        other => panic!("not about the host key: {other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_host_is_refused_with_its_fingerprint() {
    let server = Server::start();
    server.write("known_hosts", "other ssh-ed25519 AAAA\n");
    let error = server.refusal().await;
    assert!(matches!(verdict(&error), HostKeyVerdict::Unknown { .. }));
    assert!(!error.is_retryable());
    let text = error.to_string();
    for part in [
        "is unknown",
        "ssh-ed25519",
        &server.fingerprint("host_ed25519.pub"),
        &server.path("known_hosts").display().to_string(),
        &format!("`ssh -p {} {}@srv`", server.port, user()),
        &format!("ssh-keyscan -p {} 127.0.0.1", server.port),
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert_eq!(server.read("known_hosts"), "other ssh-ed25519 AAAA\n");
    assert!(!server.read("sshd.log").contains("Accepted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_host_key_is_refused_whatever_the_configuration_says() {
    let server = Server::start();
    keygen(&server.path("wrong"), &["-t", "ed25519", "-N", ""]);
    server.trust("wrong.pub");
    let before = format!("# a comment\n{}", server.read("known_hosts"));
    server.write("known_hosts", &before);
    for strict in ["yes", "accept-new", "no"] {
        server.configure(&format!("StrictHostKeyChecking {strict}"));
        let error = server.refusal().await;
        assert!(matches!(verdict(&error), HostKeyVerdict::Changed { .. }), "{error}");
        let text = error.to_string();
        for part in [
            "HAS CHANGED",
            &server.fingerprint("host_ed25519.pub"),
            &format!("{}:2", server.path("known_hosts").display()),
            &format!("ssh-keygen -R '[127.0.0.1]:{}'", server.port),
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
    }
    assert_eq!(server.read("known_hosts"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn accept_new_writes_the_key_down_and_no_does_not() {
    let server = Server::start();
    for hash in ["no", "yes"] {
        server.write("known_hosts", "");
        server.configure("StrictHostKeyChecking no");
        server.connect().await;
        assert_eq!(server.read("known_hosts"), "");
        server.configure(&format!("StrictHostKeyChecking accept-new\nHashKnownHosts {hash}"));
        server.connect().await;
        let written = server.read("known_hosts");
        assert_eq!(written.lines().count(), 1, "{written}");
        assert_eq!(written.starts_with("|1|"), hash == "yes", "{written}");
        server.configure("StrictHostKeyChecking yes");
        server.connect().await;
        // And the real ssh agrees with what was written.
        let ssh = Command::new("ssh")
            .arg("-F")
            .arg(server.path("ssh_config"))
            .args(["-o", "BatchMode=yes", "srv", "true"])
            .status()
            .unwrap();
        assert!(ssh.success());
        assert_eq!(server.read("known_hosts"), written);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_key_of_another_type_is_asked_for() {
    let server = Server::start();
    server.trust("host_rsa.pub");
    server.connect().await;
    let pattern = format!("*.0.0.1,[127.*]:* {}", server.read("host_rsa.pub"));
    server.write("known_hosts", &pattern);
    server.connect().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hides_its_known_keys_is_not_new() {
    let server = Server::start();
    // A key type the server does not have stands for one that an impostor does not have.
    keygen(&server.path("wrong"), &["-t", "ecdsa", "-N", ""]);
    server.trust("wrong.pub");
    let before = server.read("known_hosts");
    for strict in ["accept-new", "no"] {
        server.configure(&format!("StrictHostKeyChecking {strict}"));
        let error = server.refusal().await;
        assert!(error.to_string().contains("ecdsa-sha2-nistp256"), "{error}");
    }
    assert_eq!(server.read("known_hosts"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_keys_and_authorities() {
    let server = Server::start();
    let trusted = server.read("known_hosts");
    let key = server.read("host_ed25519.pub");
    server.write("known_hosts", &format!("{trusted}@revoked * {key}"));
    let error = server.refusal().await;
    assert!(matches!(verdict(&error), HostKeyVerdict::Revoked { .. }), "{error}");
    assert!(error.to_string().contains("known_hosts:2"), "{error}");

    server.write("known_hosts", &trusted);
    server.write("revoked", &key);
    server.configure(&format!("RevokedHostKeys {}", server.path("revoked").display()));
    let error = server.refusal().await;
    assert!(matches!(verdict(&error), HostKeyVerdict::Revoked { .. }), "{error}");

    server.configure("");
    server.write("known_hosts", &format!("@cert-authority * {key}"));
    let error = server.refusal().await.to_string();
    assert!(error.contains("host certificates are not supported"), "{error}");
}

// ---- authentication ----------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn a_key_the_server_does_not_know_is_named() {
    let server = Server::start();
    keygen(&server.path("other"), &["-t", "ed25519", "-N", ""]);
    std::fs::copy(server.path("other.pub"), server.path("authorized_keys")).unwrap();
    let error = server.refusal().await.to_string();
    for part in [
        "does not let us in",
        &server.fingerprint("id.pub"),
        &server.path("id").display().to_string(),
        "publickey",
        "authorized_keys",
    ] {
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
    std::fs::remove_file(server.path("id")).unwrap();
    std::fs::remove_file(server.path("id.pub")).unwrap();
    let error = server.refusal().await.to_string();
    assert!(error.contains("there was no key to offer"), "{error}");
}

/// A private ssh-agent.
struct Agent {
    process: Child,
    socket: PathBuf,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Agent {
    fn start(dir: &Path) -> Self {
        let socket = dir.join("agent");
        let process = Command::new("ssh-agent")
            .arg("-D")
            .arg("-a")
            .arg(&socket)
            .stdout(Stdio::null())
            .spawn()
            .expect(INSTALL);
        let begin = Instant::now();
        while !socket.exists() && begin.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(10));
        }
        Agent { process, socket }
    }

    fn add(&self, key: &Path, passphrase: &str) {
        let ask = key.with_extension("ask");
        let mut file = std::fs::File::create(&ask).unwrap();
        writeln!(file, "#!/bin/sh\necho '{passphrase}'").unwrap();
        file.set_permissions(PermissionsExt::from_mode(0o700)).unwrap();
        drop(file);
        let status = Command::new("ssh-add")
            .arg("-q")
            .arg(key)
            .env("SSH_AUTH_SOCK", &self.socket)
            .env("SSH_ASKPASS", ask)
            .env("SSH_ASKPASS_REQUIRE", "force")
            .stdin(Stdio::null())
            .status()
            .expect(INSTALL);
        assert!(status.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_key_needs_the_agent() {
    let server = Server::start();
    for name in ["id", "id.pub"] {
        std::fs::remove_file(server.path(name)).unwrap();
    }
    keygen(&server.path("id"), &["-t", "ed25519", "-N", "secret"]);
    std::fs::copy(server.path("id.pub"), server.path("authorized_keys")).unwrap();
    let error = server.refusal().await.to_string();
    let advice = format!("`ssh-add {}`", server.path("id").display());
    assert!(error.contains("is encrypted") && error.contains(&advice), "{error}");

    let agent = Agent::start(server.dir.path());
    server.configure(&format!("IdentityAgent {}", agent.socket.display()));
    let error = server.refusal().await.to_string();
    assert!(error.contains("is encrypted"), "{error}");
    agent.add(&server.path("id"), "secret");
    server.connect().await;

    // Found through SSH_AUTH_SOCK, with the private half in the agent only.
    std::fs::remove_file(server.path("id")).unwrap();
    server.configure("IdentityAgent SSH_AUTH_SOCK");
    let options = ConnectOptions { auth_sock: Some(agent.socket.clone()), ..server.options() };
    let srv = Destination::parse("srv").unwrap();
    Session::connect(&srv, &options).await.unwrap();

    // IdentitiesOnly keeps the agent's other keys at home.
    std::fs::remove_file(server.path("id.pub")).unwrap();
    let error = Session::connect(&srv, &options).await.unwrap_err().to_string();
    assert!(error.contains("IdentitiesOnly"), "{error}");
    server.configure("IdentityAgent SSH_AUTH_SOCK\nIdentitiesOnly no");
    Session::connect(&srv, &options).await.unwrap();
    drop(agent);
    let error = Session::connect(&srv, &options).await.unwrap_err().to_string();
    assert!(error.contains("the agent at"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rsa_and_ecdsa_keys_work_from_files_and_from_the_agent() {
    let server = Server::start();
    for (name, arguments) in [
        ("k_rsa", vec!["-t", "rsa", "-b", "2048", "-N", ""]),
        ("k_pem", vec!["-t", "rsa", "-b", "2048", "-m", "PEM", "-N", ""]),
        ("k_ecdsa", vec!["-t", "ecdsa", "-N", ""]),
    ] {
        let agent_dir = tempfile::tempdir().unwrap();
        keygen(&server.path(name), &arguments);
        std::fs::copy(server.path(&format!("{name}.pub")), server.path("authorized_keys")).unwrap();
        server.configure(&format!("IdentityFile {}", server.path(name).display()));
        server.connect().await;
        let agent = Agent::start(agent_dir.path());
        agent.add(&server.path(name), "");
        server.configure(&format!("IdentitiesOnly no\nIdentityAgent {}", agent.socket.display()));
        server.connect().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_users_work() {
    let server = Server::start();
    keygen(&server.path("ca"), &["-t", "ed25519", "-N", ""]);
    let signed = Command::new("ssh-keygen")
        .args(["-q", "-s"])
        .arg(server.path("ca"))
        .args(["-I", "test", "-n", &user()])
        .arg(server.path("id.pub"))
        .status()
        .unwrap();
    assert!(signed.success());
    server.write("authorized_keys", &format!("cert-authority {}", server.read("ca.pub")));
    server.connect().await;
    let agent = Agent::start(server.dir.path());
    agent.add(&server.path("id"), "");
    std::fs::remove_file(server.path("id-cert.pub")).unwrap();
    server.configure(&format!("IdentityAgent {}", agent.socket.display()));
    server.connect().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_up_after_some_keys_is_explained() {
    let server = Server::start_with("MaxAuthTries 2");
    let agent = Agent::start(server.dir.path());
    for number in 0..5 {
        let key = server.path(&format!("k{number}"));
        keygen(&key, &["-t", "ed25519", "-N", ""]);
        agent.add(&key, "");
    }
    std::fs::remove_file(server.path("id")).unwrap();
    server.configure(&format!("IdentitiesOnly no\nIdentityAgent {}", agent.socket.display()));
    let error = within(30, server.refusal()).await.to_string();
    assert!(error.contains("IdentitiesOnly yes"), "{error}");
    assert!(error.contains("Too many authentication failures"), "{error}");
}

// ---- the way there -----------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_port_and_a_silent_one() {
    let options = ConnectOptions {
        ssh_config: Some(PathBuf::from("/dev/null")),
        handshake_timeout: Duration::from_millis(400),
        ..ConnectOptions::from_env()
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let destination = Destination::new(Some("joe"), "127.0.0.1", Some(port)).unwrap();
    for greeting in ["", "SSH-2.0-OpenSSH_9.2\r\n"] {
        let connecting = Session::connect(&destination, &options);
        let accepting = listener.try_clone().unwrap();
        let server = tokio::task::spawn_blocking(move || {
            let (mut stream, _) = accepting.accept().unwrap();
            stream.write_all(greeting.as_bytes()).unwrap();
            stream
        });
        let error = within(10, connecting).await.unwrap_err();
        let mut stream = within(10, server).await.unwrap();
        assert!(matches!(error, TransportError::Timeout { .. }), "{error}");
        assert!(error.to_string().contains(&format!("joe@127.0.0.1:{port}")), "{error}");
        // The connection is given up, not left behind.
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let closed = tokio::task::spawn_blocking(move || stream.read_to_end(&mut Vec::new()));
        within(10, closed).await.unwrap().unwrap();
    }
    drop(listener);
    let error = Session::connect(&destination, &options).await.unwrap_err();
    assert!(matches!(error, TransportError::Connect { .. }), "{error}");
    assert!(error.is_retryable());
    let nowhere = Destination::parse("no-such-host.invalid").unwrap();
    let error = Session::connect(&nowhere, &options).await.unwrap_err();
    assert!(matches!(error, TransportError::Resolve { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn something_that_is_no_ssh_server() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().take(1) {
            let _ = stream.unwrap().write_all(b"* OK [CAPABILITY IMAP4rev1] Cyrus\r\n");
        }
    });
    let options = ConnectOptions {
        ssh_config: Some(PathBuf::from("/dev/null")),
        ..ConnectOptions::from_env()
    };
    let destination = Destination::new(None, "127.0.0.1", Some(port)).unwrap();
    let error = within(20, Session::connect(&destination, &options)).await.unwrap_err();
    assert!(matches!(error, TransportError::Handshake { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn through_a_jump_host() {
    let jump = Server::start();
    let server = Server::start();
    let config = |proxy: &str| {
        let text = server.host_block("srv", proxy)
            + &jump.host_block("jump", "")
            + &jump.host_block("jump2", "");
        server.write("ssh_config", &text);
    };
    config("ProxyJump jump");
    let session = server.connect().await;
    within(60, async {
        echo(session.exec(&["cat"]).await.unwrap(), noise(20 << 20, 8)).await;
    })
    .await;
    assert!(jump.read("sshd.log").contains("Accepted publickey"));
    drop(session);

    // In a row, the second time over the first.
    config("ProxyJump jump,jump2");
    let before = jump.read("sshd.log").matches("Accepted publickey").count();
    let session = server.connect().await;
    assert!(session.run(&["true"], 1).await.unwrap().status.success());
    let after = jump.read("sshd.log").matches("Accepted publickey").count();
    assert_eq!(after - before, 2);

    // The jump host's key is checked as well.
    jump.write("known_hosts", "");
    let error = server.refusal().await;
    assert!(matches!(verdict(&error), HostKeyVerdict::Unknown { .. }), "{error}");

    // A configuration that sends each host through itself.
    server.write("ssh_config", "Host *\nProxyJump loop%h\n");
    server.write("ssh_config", "Host *\nHostName 127.0.0.1\nProxyJump again\n");
    let error = within(60, server.refusal()).await;
    assert!(error.to_string().contains("more than 5 jump hosts"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jump_host_that_cannot_go_on() {
    let jump = Server::start();
    let server = Server::start();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = server.host_block("srv", &format!("ProxyJump jump\nPort {closed}"))
        + &jump.host_block("jump", "");
    server.write("ssh_config", &text);
    let error = within(30, server.refusal()).await;
    let text = error.to_string();
    assert!(matches!(error, TransportError::Proxy { .. }), "{text}");
    assert!(text.contains("jump (") && text.contains(&closed.to_string()), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn through_a_proxy_command() {
    let jump = Server::start();
    let server = Server::start();
    let command = format!(
        "ProxyCommand ssh -F {} -o BatchMode=yes -W %h:%p jump",
        server.path("ssh_config").display()
    );
    let text = server.host_block("srv", &command) + &jump.host_block("jump", "");
    server.write("ssh_config", &text);
    let session = server.connect().await;
    within(60, async {
        echo(session.exec(&["cat"]).await.unwrap(), noise(8 << 20, 9)).await;
    })
    .await;
    server.configure("ProxyCommand sh -c 'echo the bastion is closed >&2; exit 1'");
    let error = within(30, server.refusal()).await.to_string();
    assert!(error.contains("the bastion is closed"), "{error}");
}

// ---- uploads -----------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn uploads_are_complete_or_not_there() {
    let server = Server::start();
    let session = server.connect().await;
    let local = server.path("local");
    let there = server.path("there");
    std::fs::create_dir(&there).unwrap();
    let target = there.join("agent 'x'");
    let remote = target.to_str().unwrap();
    for (round, mode) in [(1_u64, 0o500), (2, 0o755)] {
        let bytes = noise(3_000_000, round);
        std::fs::write(&local, &bytes).unwrap();
        let report = within(60, upload(&session, &local, remote, mode)).await.unwrap();
        assert_eq!(report.size_bytes, 3_000_000);
        assert!(report.hash_checked);
        assert!(std::fs::read(&target).unwrap() == bytes);
        assert_eq!(target.metadata().unwrap().permissions().mode() & 0o7777, mode);
        assert_eq!(std::fs::read_dir(&there).unwrap().count(), 1);
    }
    let deep = there.join("missing/agent");
    let error = upload(&session, &local, deep.to_str().unwrap(), 0o500).await.unwrap_err();
    assert!(error.to_string().contains("cannot create"), "{error}");
    let error = upload(&session, &local, there.to_str().unwrap(), 0o500).await.unwrap_err();
    assert!(error.to_string().contains("that is no file has that name"), "{error}");
    for wrong in ["relative", "/", "/a/", "/a\n/b"] {
        assert!(upload(&session, &local, wrong, 0o500).await.is_err(), "{wrong:?}");
    }
    assert_eq!(std::fs::read_dir(&there).unwrap().count(), 1);
    let leftovers = std::fs::read_dir(server.dir.path())
        .unwrap()
        .filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_string_lossy().ends_with(".tmp")
        })
        .count();
    assert_eq!(leftovers, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_sftp_says_so() {
    let server = Server::start_with("Subsystem sftp /bin/false");
    let session = server.connect().await;
    let local = server.path("id.pub");
    let error = within(60, upload(&session, &local, "/nowhere/agent", 0o500))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("sftp does not work there"), "{error}");
}
