//! What an admin decides about a run, also while it is going on.

use super::{Done, Failure, Of};
use crate::bulk::schedule::Control;
use crate::bulk::store::Store;
use crate::cli::Common;
use clap::Args;

/// Arguments of `mbcopy bulk pause` and `drain`.
#[derive(Debug, Args)]
pub(super) struct OfArgs {
    #[command(flatten)]
    of: Of,
}

/// Arguments of `mbcopy bulk resume`.
#[derive(Debug, Args)]
pub(super) struct GoArgs {
    #[command(flatten)]
    of: Of,
    /// Print one JSON document per line on standard output
    #[arg(long)]
    json: bool,
}

/// Arguments of `mbcopy bulk retry-failed`.
#[derive(Debug, Args)]
pub(super) struct RetryArgs {
    /// Top mailboxes, as `bulk status` shows them; none: all that are in trouble
    users: Vec<String>,
    #[command(flatten)]
    go: GoArgs,
}

/// Arguments of `mbcopy bulk skip`.
#[derive(Debug, Args)]
pub(super) struct SkipArgs {
    /// Top mailboxes, as `bulk status` shows them
    #[arg(required = true)]
    users: Vec<String>,
    #[command(flatten)]
    of: Of,
}

/// Arguments of `mbcopy bulk reverse`.
#[derive(Debug, Args)]
pub(super) struct ReverseArgs {
    /// Top mailboxes, as `bulk status` shows them
    #[arg(required_unless_present = "all")]
    users: Vec<String>,
    /// Everybody whom the run has moved
    #[arg(long, conflicts_with = "users")]
    all: bool,
    #[command(flatten)]
    go: GoArgs,
}

pub(super) fn pause(args: &OfArgs) -> Done {
    control(&args.of.open()?, Control::Paused, "paused: what is under way stops where it is safe")
}

pub(super) fn drain(args: &OfArgs) -> Done {
    control(
        &args.of.open()?,
        Control::Draining,
        "draining: it ends when what is under way has ended",
    )
}

fn control(store: &Store, control: Control, text: &str) -> Done {
    store.set_control(control)?;
    let idle = if store.is_coordinated()? { "" } else { " (nobody is at work on it now)" };
    println!("{}: {text}{idle}", store.name());
    Ok(0)
}

pub(super) fn resume(common: &Common, args: &GoArgs) -> Done {
    let store = args.of.open()?;
    store.go_forward()?;
    go(common, store, args.json)
}

/// The same, unless the admin has asked it to stop: that is for `resume` to lift.
fn go_unless_stopped(common: &Common, store: Store, json: bool) -> Done {
    let stopped = match store.control()? {
        Control::Paused => true,
        Control::Draining => store.is_coordinated()?,
        Control::Go => false,
    };
    if !stopped {
        return go(common, store, json);
    }
    println!("{}: {}; `mbcopy bulk resume` goes on", store.name(), store.control()?.word());
    Ok(0)
}

/// Goes on with it here, unless another process is at work on it.
fn go(common: &Common, store: Store, json: bool) -> Done {
    // Of a shared run this machine may have nothing to do with its moves.
    let elsewhere = store.is_coordinated()? && !super::start::was_started(&store)?;
    if store.is_coordinated_here() || elsewhere {
        store.set_control(Control::Go)?;
        println!("{}: goes on", store.name());
        return Ok(0);
    }
    super::start::go_on(common, store, json)
}

pub(super) fn retry(common: &Common, args: &RetryArgs) -> Done {
    let store = args.go.of.open()?;
    if args.users.is_empty() {
        if store.retry(None)? == 0 {
            return Err(Failure::usage(format!("nobody of {} is in trouble", store.name())));
        }
    } else {
        each(&store, &args.users, "tried again", |user| Ok(store.retry(Some(user))? > 0))?;
    }
    go_unless_stopped(common, store, args.go.json)
}

pub(super) fn skip(args: &SkipArgs) -> Done {
    let store = args.of.open()?;
    each(&store, &args.users, "taken out", |user| Ok(store.skip(user)?))?;
    println!("{}: {} taken out", store.name(), args.users.len());
    Ok(0)
}

pub(super) fn reverse(common: &Common, args: &ReverseArgs) -> Done {
    let store = args.go.of.open()?;
    if args.all {
        if store.reverse(None)? == 0 {
            return Err(Failure::usage(format!("{} has moved nobody", store.name())));
        }
        return go(common, store, args.go.json);
    }
    each(&store, &args.users, "moved back", |user| Ok(store.reverse(Some(user))? > 0))?;
    go_unless_stopped(common, store, args.go.json)
}

/// Does something with each of the users; the first with whom it cannot be done is
/// an error that says how he stands.
fn each(
    store: &Store,
    users: &[String],
    what: &str,
    does: impl Fn(&str) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    for user in users {
        if !does(user)? {
            let state = store.state_of(user)?;
            return Err(Failure::usage(match state {
                Some(state) => format!("{user} cannot be {what}: he is {}", state.word()),
                None => format!("{user} is not in the run {}", store.name()),
            }));
        }
    }
    Ok(())
}
