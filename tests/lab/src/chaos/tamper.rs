//! Broken promises of the runner's own making: each shows that a checker can fail.

use super::Scene;
use super::verdict::Kind;
use crate::host::Host;
use crate::imap::NewMessage;
use anyhow::{Context, Result};
use clap::ValueEnum;

/// What the runner breaks at the end of a run, before it judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Tamper {
    /// A flag of a quiet message is changed.
    Quiet,
    /// An acknowledged message is expunged.
    Message,
    /// An acknowledged message is there twice.
    Twice,
    /// An acknowledged folder is deleted.
    Folder,
    /// An acknowledged script is replaced.
    Script,
    /// An acknowledged subscription is turned round.
    Subscription,
    /// The route leads to the other server.
    Route,
    /// Somebody keeps the user's lock.
    Lock,
    /// A process of mbcopy stays.
    Process,
    /// A file stays in a stage.
    Stage,
}

impl Tamper {
    /// What must be found.
    pub fn kind(self) -> Kind {
        match self {
            Tamper::Quiet => Kind::Quiet,
            Tamper::Message | Tamper::Folder | Tamper::Script | Tamper::Subscription => Kind::Lost,
            Tamper::Twice => Kind::Undead,
            Tamper::Route => Kind::Serving,
            Tamper::Lock => Kind::Locked,
            Tamper::Process => Kind::Process,
            Tamper::Stage => Kind::Stage,
        }
    }

    pub(super) fn perform(self, scene: &Scene, end: &Host) -> Result<()> {
        let user = &scene.user;
        match self {
            Tamper::Quiet => {
                let mut imap = end.imap(user)?;
                imap.command("SELECT INBOX.a")?;
                imap.command("STORE 1 +FLAGS (tampered)")?;
            }
            Tamper::Message => {
                let mut imap = end.imap(user)?;
                imap.command("SELECT INBOX")?;
                imap.command("STORE * +FLAGS (\\Deleted)")?;
                imap.command("EXPUNGE")?;
            }
            Tamper::Twice => {
                let mut imap = end.imap(user)?;
                imap.command("SELECT INBOX")?;
                let reply = imap.command("FETCH * BODY.PEEK[]")?;
                let told = reply.numbered("FETCH").find_map(|(_, data)| data.first());
                let bytes = told.and_then(|data| data.get("BODY[]")).context("no message")?;
                let bytes = bytes.bytes().to_vec();
                imap.append("INBOX", &[NewMessage { bytes, ..NewMessage::default() }])?;
            }
            Tamper::Route => {
                let other = if *end == scene.source { &scene.target } else { &scene.source };
                let edit = format!("s/^{user} .*/{user} {other}/");
                scene.source.run(&["sed", "-i", &edit, "/var/lib/cyrus/route.map"])?;
            }
            Tamper::Folder => drop(end.imap(user)?.command("DELETE INBOX.new.c0")?),
            Tamper::Script => end.sieve(user)?.put("edited", "keep;\r\n")?,
            Tamper::Subscription => {
                let mut imap = end.imap(user)?;
                let on = imap.command("LIST (SUBSCRIBED) \"\" INBOX.sub.s0")?;
                let on = on.of("LIST").next().is_some();
                let verb = if on { "UNSUBSCRIBE" } else { "SUBSCRIBE" };
                imap.command(format!("{verb} INBOX.sub.s0"))?;
            }
            Tamper::Lock => {
                // Who started it goes on when the lock is held.
                let script = format!(
                    r#"perl -e 'use Fcntl;
                    pipe(my $hears, my $tells) or die;
                    if (!fork) {{
                        my ($path) = glob("/run/cyrus/lock/*/*U*{user}.lock");
                        open(my $file, ">>", $path) or die;
                        my $lock = pack("ssx4qqlx4", F_WRLCK, 0, 0, 0, 0);
                        fcntl($file, F_SETLKW, $lock) or die;
                        syswrite($tells, "held"); close($tells); sleep 20; exit;
                    }}
                    close($tells); <$hears> or die' >/dev/null 2>&1"#
                );
                end.run(&["sh", "-c", &script])?;
            }
            Tamper::Process => {
                let script = "exec -a mbcopy sleep 20 >/dev/null 2>&1 &";
                end.run(&["bash", "-c", script])?;
            }
            Tamper::Stage => {
                let stage = scene.target.data().join("spool/mail/.mbcopy/tampered/mail");
                std::fs::create_dir_all(&stage).context("making a stage")?;
                std::fs::write(stage.join(user), "left")?;
            }
        }
        Ok(())
    }
}
