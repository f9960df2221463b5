//! `mbcopy bulk PLAN`: begins a run, or goes on with it.

use super::sources::{self, Source, Sources};
use super::tell::{Metrics, Teller};
use super::{Done, Failure, How, INTERRUPTED, NOT_FINISHED, StartArgs, Whom, name_of};
use crate::bulk::attempt::Launcher;
use crate::bulk::plan::Line;
use crate::bulk::pulse::{self, Pace};
use crate::bulk::resolve::Planned;
use crate::bulk::run::{self, Finish, Options, Stop};
use crate::bulk::schedule::{Control, End, Limits};
use crate::bulk::sharing;
use crate::bulk::state::{Retries, State, Task};
use crate::bulk::status::Status;
use crate::bulk::store::{Coordinator, Count, Job, Mode, Order, Store, StoreError};
use crate::bulk::window::Windows;
use crate::cli::Common;
use crate::moves::journal::now_ms;
use crate::transport::Destination;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How often is looked whether it is to stop.
const A_MOMENT: Duration = Duration::from_millis(200);

/// The remark under which a run's options are kept.
const OPTIONS: &str = "options";

/// What a run was started with, to be started again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Started {
    how: How,
    config: PathBuf,
    source_conf: Option<PathBuf>,
    source_root: Option<PathBuf>,
    cyrus_bin: Option<PathBuf>,
    sources: Vec<Source>,
    from_program: String,
}

pub(super) fn start(common: &Common, args: StartArgs) -> Done {
    let lines = super::plan::lines(&args.whom)?;
    let teller = Teller::new(common, args.json);
    let (started, store, right) = in_runtime(patiently(&teller, &Stop::default(), async || {
        begin(common, &args, &lines, &teller).await
    }))??;
    go(&started, store, right, teller)
}

/// Does what needs the store, again while that is away, unless it is to stop.
async fn patiently<T>(
    teller: &Teller,
    stop: &Stop,
    mut does: impl AsyncFnMut() -> Result<T, Failure>,
) -> Result<T, Failure> {
    loop {
        let failure = match does().await {
            Err(failure) if failure.passing => failure,
            done => return done,
        };
        teller.away(&failure.text);
        let began = Instant::now();
        while began.elapsed() < run::STORE_AGAIN {
            if stop.load(Ordering::Relaxed) > 0 {
                return Err(Failure { code: INTERRUPTED, ..failure });
            }
            tokio::time::sleep(A_MOMENT).await;
        }
    }
}

/// What a run begins with, or goes on with.
async fn begin(
    common: &Common,
    args: &StartArgs,
    lines: &[Line],
    teller: &Teller,
) -> Result<(Started, Store, Coordinator), Failure> {
    let place = args.of.place()?;
    let name = match &args.of.run {
        Some(name) => name_of(name)?.to_owned(),
        None => default_name(&args.whom)?,
    };
    let before = match place.open(&name) {
        Ok(store) => Some(store),
        Err(StoreError::NoRun(_)) => None,
        Err(error) => return Err(error.into()),
    };
    let begun = before.is_some();
    let known = before.map(|store| started(&store)).transpose()?.flatten();
    let known = known.map(|started| started.sources).unwrap_or_default();
    let sizes = args.how.order != Order::Listed;
    let sources = Sources::ask(common, sizes, &known).await?;
    // Whoever means nobody leaves no run.
    let (users, nobody) = super::plan::resolve(lines, &sources.survey, &args.whom, begun)?;
    let store = place.create(&name)?;
    let right = store.coordinate_for(&sources::served(&sources.all), args.how.lease)?;
    let mode = args.how.mode();
    let added = store.add(&users, mode, !nobody.is_empty())?;
    let new_pass = store.begin(mode)?;
    store.order(args.how.order)?;
    // Whoever joins the others does what they do; a pause is for the admin to lift.
    if !store.is_coordinated_elsewhere()? {
        if store.control()? == Control::Draining {
            store.set_control(Control::Go)?;
        }
        store.go_forward()?;
    }
    let started = Started {
        how: args.how.clone(),
        config: std::path::absolute(&common.config).map_err(Failure::failed)?,
        source_conf: common.source_conf.clone(),
        source_root: common.source_root.clone(),
        cyrus_bin: common.cyrus_bin.clone(),
        sources: sources.all,
        from_program: common.from_program.clone(),
    };
    store.set_own_remark(OPTIONS, &serde_json::to_string(&started).map_err(Failure::failed)?)?;
    nobody.iter().for_each(|text| teller.say(text));
    if begun {
        teller.say(&format!(
            "going on with the run {name}: {} users, {} of them new{}",
            added.new + added.known,
            added.new,
            match added.gone {
                0 => String::new(),
                n => format!("; {n} are taken out, whom the plan does not name any more"),
            }
        ));
    } else if new_pass {
        teller.say(&format!("the run {name}: {} users", added.new));
    }
    if added.elsewhere > 0 {
        teller.say(&format!(
            "{} of them are in the run as users of other servers, and stay so",
            added.elsewhere
        ));
    }
    Ok((started, store, right))
}

/// What this machine has started the run with, if it has.
fn started(store: &Store) -> Result<Option<Started>, Failure> {
    let text = store.own_remark(OPTIONS)?.unwrap_or_default();
    Ok(serde_json::from_str(&text).ok())
}

/// Whether this machine has started the run.
pub(super) fn was_started(store: &Store) -> Result<bool, Failure> {
    Ok(started(store)?.is_some())
}

/// Goes on with a run as it was started last.
pub(super) fn go_on(common: &Common, store: Store, json: bool) -> Done {
    let teller = Teller::new(common, json);
    let (started, right) = in_runtime(patiently(&teller, &Stop::default(), async || {
        let started = started(&store)?.ok_or_else(|| {
            let name = store.name();
            Failure::usage(format!("the run {name} was never started here: start it first"))
        })?;
        let right = store.coordinate_for(&sources::served(&started.sources), started.how.lease)?;
        store.set_control(Control::Go)?;
        Ok((started, right))
    }))??;
    go(&started, store, right, teller)
}

fn go(started: &Started, store: Store, right: Coordinator, mut teller: Teller) -> Done {
    let how = &started.how;
    let windows = how.window.as_deref().unwrap_or_default();
    let windows: Windows = match windows {
        "" => Windows::default(),
        text => text.parse().map_err(Failure::usage)?,
    };
    let common = Common {
        config: started.config.clone(),
        source_conf: started.source_conf.clone(),
        source_root: started.source_root.clone(),
        cyrus_bin: started.cyrus_bin.clone(),
        from: Vec::new(),
        from_program: started.from_program.clone(),
        verbose: 0,
        quiet: false,
    };
    let push = how.of_each(store.name(), store.directory());
    let mut options = Options {
        limits: Limits {
            jobs: usize::from(how.jobs),
            max_failures: how.max_failures,
            windows,
            pause: how.retry_after,
        },
        retries: Retries { attempts: how.attempts, pause: how.retry_after },
        launcher: Launcher {
            back: how.of_each_back(store.directory()),
            ..launcher(&common, &started.sources, push, store.attempts())?
        },
        paces: Vec::new(),
    };
    teller.metrics = Metrics::start(how)?;
    in_runtime(async {
        let stop = Stop::default();
        tokio::spawn(watch_signals(Arc::clone(&stop)));
        let ready = async || Ok((store.again()?, paces(how, &store)?));
        let (of_metrics, paces) = patiently(&teller, &stop, ready).await?;
        (teller.store, options.paces) = (Some(of_metrics), paces);
        let began = Instant::now();
        let finish = run::run(&store, &right, &options, &mut teller, &stop).await?;
        end(how, &store, right, finish, began, &mut teller, &stop).await
    })?
}

/// Says how a run has ended.
async fn end(
    how: &How,
    store: &Store,
    right: Coordinator,
    finish: Finish,
    began: Instant,
    teller: &mut Teller,
    stop: &Stop,
) -> Done {
    patiently(teller, stop, async || Ok(store.set_paces(&[])?)).await?;
    if finish != Finish::Abandoned
        && let Err(error) = store.leave(right)
    {
        // Then the lease ends by itself.
        teller.say(&error.to_string());
    }
    let look = async || {
        let status = Status::of(store, now_ms())?;
        Ok((status, store.counts_of_ours()?, store.rolls_back()?, store.reached()?))
    };
    let (status, counts, back, reached) = patiently(teller, stop, look).await?;
    teller.metrics_now(&status);
    if finish != Finish::Abandoned && status.ended == status.users {
        end_sharing(how, store, &reached, teller).await;
    }
    let waiting = left(&counts);
    if back && waiting > 0 {
        teller.say(&format!(
            "{waiting} others wait: nobody is moved beside a `reverse --all`; the same command, or \
             `mbcopy bulk resume`, goes on with them"
        ));
    }
    let code = exit_code(finish, &counts, how.mode(), back);
    teller.summary(finish, &status, began.elapsed(), code);
    Ok(code)
}

fn in_runtime<T>(future: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.map_err(Failure::failed)?.block_on(future))
}

/// Watches the targets, if their load matters.
fn paces(how: &How, store: &Store) -> Result<Vec<watch::Receiver<Pace>>, StoreError> {
    let ceiling = how.ceiling();
    if !ceiling.is_any() {
        return Ok(Vec::new());
    }
    let watch = |target| pulse::watch(target, ceiling, usize::from(how.jobs));
    Ok(targets(how, &store.destinations()?).into_iter().map(watch).collect())
}

/// The servers of these places.
fn targets(how: &How, places: &[String]) -> Vec<pulse::Target> {
    let mut hosts = BTreeSet::new();
    let parsed = places.iter().filter_map(|place| Destination::parse_with_partition(place).ok());
    let new = parsed.filter(|(destination, _)| hosts.insert(destination.host().to_owned()));
    new.map(|(destination, _)| how.watched(destination)).collect()
}

/// Nobody is left who could share anything.
async fn end_sharing(how: &How, store: &Store, reached: &[String], teller: &Teller) {
    for target in targets(how, reached) {
        if let Err(error) = sharing::end(&target, how.share_of(store)).await {
            let host = target.destination.host();
            teller.say(&format!(
                "{host}: what was kept to be linked is still there, and may be removed, \
                 .mbcopy/shared in each partition: {error}"
            ));
        }
    }
}

fn sum(counts: &[Count], which: impl Fn(State) -> bool) -> u64 {
    counts.iter().filter(|count| which(count.state)).map(|count| count.users).sum()
}

/// Users with whom something is to be done still.
fn left(counts: &[Count]) -> u64 {
    sum(counts, |state| !state.is_end())
}

/// The exit code of a run, by the users of the servers that it was started for:
/// nothing but 0 and 3 means that all was done. `mode`: of this machine's own pass;
/// `back`: it only moves back.
fn exit_code(finish: Finish, counts: &[Count], mode: Mode, back: bool) -> u8 {
    let sum = |which: fn(State) -> bool| sum(counts, which);
    let (left, troubled) = (left(counts), sum(State::is_trouble));
    // Whoever is copied only was not moved.
    let copied = match mode {
        Mode::Copy => 0,
        _ => sum(|state| state == State::Copied),
    };
    match finish {
        Finish::Interrupted | Finish::Abandoned => INTERRUPTED,
        Finish::Ended(End::Drained) if left > 0 => NOT_FINISHED,
        Finish::Ended(End::Over) if back && left > 0 && troubled == 0 => NOT_FINISHED,
        Finish::Ended(_) if left > 0 || copied > 0 || troubled > 0 => 1,
        Finish::Ended(_) if sum(|state| state == State::MovedWithLosses) > 0 => 3,
        Finish::Ended(_) => 0,
    }
}

/// How attempts are started; `push`: options of each.
pub(super) fn launcher(
    common: &Common,
    sources: &[Source],
    push: Vec<OsString>,
    outputs: PathBuf,
) -> Result<Launcher, Failure> {
    let mut options: Vec<OsString> = vec!["--config".into(), common.config.clone().into()];
    let others = [
        ("--source-conf", &common.source_conf),
        ("--source-root", &common.source_root),
        ("--cyrus-bin", &common.cyrus_bin),
    ];
    for (option, value) in others {
        if let Some(value) = value {
            options.extend([option.into(), value.clone().into()]);
        }
    }
    let from = sources::routes(sources);
    if !from.is_empty() {
        options.extend(["--from-program".into(), OsString::from(&common.from_program)]);
    }
    let program = std::env::current_exe().map_err(Failure::failed)?;
    Ok(Launcher { program, common: options, push, back: Vec::new(), outputs, from })
}

/// An attempt that no store knows of.
pub(super) fn job(user: &Planned, number: i64) -> Job {
    Job {
        attempt: number,
        user: number,
        mailbox: user.mailbox.clone(),
        source: user.source.clone(),
        place: user.place(),
        task: Task::Move,
        pid: 0,
        started: now_ms(),
        resumes: false,
    }
}

/// A name made of the plan's and the destination's.
fn default_name(whom: &Whom) -> Result<String, Failure> {
    let plan = whom.plan.as_deref().unwrap_or_default();
    if plan == "-" {
        return Err(Failure::usage("a run of standard input needs a name: --run NAME"));
    }
    let plan =
        std::path::Path::new(plan).file_name().map(|name| name.to_string_lossy().into_owned());
    let to = whom.to.as_deref().map_or(String::new(), |to| format!("-to-{to}"));
    let fits = |c: char| if c.is_ascii_alphanumeric() || "._-@".contains(c) { c } else { '_' };
    let name: String = format!("{}{to}", plan.unwrap_or_default()).chars().map(fits).collect();
    Ok(name.trim_start_matches('.').chars().take(128).collect())
}

/// SIGINT and SIGTERM stop what is under way where it is safe; once more, and
/// nothing is waited for.
async fn watch_signals(stop: Stop) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut int), Ok(mut term)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    loop {
        tokio::select! {
            _ = int.recv() => {}
            _ = term.recv() => {}
        }
        match stop.fetch_add(1, Ordering::Relaxed) {
            0 => eprintln!(
                "mbcopy: stopping what is under way where it is safe; once more waits for nothing"
            ),
            _ => eprintln!("mbcopy: waiting for nothing; what is under way goes on by itself"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_done_ends_well() {
        use State::{Copied, Failed, Moved, MovedWithLosses, Reversed, Waiting};
        let over = Finish::Ended(End::Over);
        let code = |finish, states: &[State], mode, back| {
            let count = |state: &State| Count { state: *state, users: 2, messages: 0, bytes: 0 };
            exit_code(finish, &states.iter().map(count).collect::<Vec<_>>(), mode, back)
        };
        assert_eq!(code(over, &[Moved, Reversed], Mode::Move, false), 0);
        assert_eq!(code(over, &[Moved, MovedWithLosses], Mode::Move, false), 3);
        assert_eq!(code(over, &[Moved, Copied], Mode::Move, false), 1);
        assert_eq!(code(over, &[Moved, Copied], Mode::Copy, false), 0);
        assert_eq!(code(Finish::Ended(End::Drained), &[Moved, Waiting], Mode::Move, false), 5);
        assert_eq!(code(Finish::Interrupted, &[Moved, Waiting], Mode::Move, false), 7);
        // After a rollback others wait.
        assert_eq!(code(over, &[Reversed, Waiting], Mode::Move, true), 5);
        assert_eq!(code(over, &[Reversed, Waiting, Failed], Mode::Move, true), 1);
        assert_eq!(code(over, &[Reversed], Mode::Move, true), 0);
    }
}
