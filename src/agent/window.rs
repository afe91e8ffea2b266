//! Drives one window of an engine's own profiler: the state machine `capture::window` of the core
//! decides what to do, this does it and reports back what happened.
//!
//! Nothing is decided here. Every event (an answer, a tick, a file, a line) is given to the machine
//! under its lock, and its outputs are carried out. The ticks are made by a task of their own,
//! which outlives this one: whatever happens to this one, the window is stopped at its deadline.

mod files;
mod log;
mod run;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::files::Files;
use self::log::Log;
use self::run::WindowRun;
use crate::act::nsys::Nsys;
use crate::act::server_lock::{self, LockHolder, ServerLock};
use crate::act::state::{OpenMethod, State, StateError, WindowRow};
use crate::agent::cost::{Meter, Reach, instance_of};
use crate::agent::pool::{HeldLease, LeaseOver};
use crate::clock::Clock;
use crate::http::Server;
use crate::observe::artifact::written;
use crate::observe::profile_lines;
use skewtrap_core::capture::captured::Quality;
use skewtrap_core::capture::facts::ServerKind;
use skewtrap_core::capture::facts::Sizes;
use skewtrap_core::capture::governor::Attempt;
use skewtrap_core::capture::line::{ForeignWindows, ProfileLine};
use skewtrap_core::capture::path_map::PathMap;
use skewtrap_core::capture::plan::{StartMode, StartRequest};
use skewtrap_core::capture::size::PastWindow;
use skewtrap_core::capture::stall;
use skewtrap_core::capture::verify::{Artifact, FileVerification, verify_files};
use skewtrap_core::capture::window::{
    Ending, Event, Failure, OrphanedWindow, SETTLE, START_TIMEOUT, SettlingTime, Visibility, Window,
    WindowPhase,
};
use skewtrap_core::incident::{Exchange, Record};
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

/// Between two scans of the folder.
const SCAN: Duration = Duration::from_millis(100);

/// How long the times of the files are waited for at the end of a window.
const LOOK_LIMIT: Duration = Duration::from_secs(5);
/// Between two looks whether another agent's turn is over.
const LOCK_RETRY: Duration = Duration::from_secs(1);
/// How long the folder of the turns may take.
const LOCK_LIMIT: Duration = Duration::from_millis(500);
/// A window of a killed agent is over by its deadline, as far as others must wait for it, and this.
const LOCK_MARGIN: Duration = Duration::from_secs(10);

/// What a window was granted for is taken to last so long; after it nothing is sent.
const GRANT_LIMIT: Duration = Duration::from_secs(10);

/// A grant that was over before the disk of the state had taken its attempt: nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the disk of the state folder took {:.0} s to write the attempt down, more than the {} s that a grant is good for; nothing was sent to the server: look at that disk",
    .waited.as_secs_f64(),
    GRANT_LIMIT.as_secs()
)]
pub struct TooLate {
    /// From the grant until the attempt was written.
    pub waited: Duration,
}

/// Why a window that was granted was not started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsent {
    /// Its grant was over.
    #[error(transparent)]
    TooLate(#[from] TooLate),
    /// Somebody closed it, or the agent ends.
    #[error(
        "it was closed, or the agent told to end, before its start was sent; nothing was sent to the server"
    )]
    Closed,
    /// The server was started anew.
    #[error("the server was started anew after the window was granted ({0}); nothing was sent to it")]
    Gone(String),
    /// Somebody else was first.
    #[error(
        "somebody else opened a profile after the window was granted, writing to {0}; nothing was sent to the server"
    )]
    Foreign(String),
    /// The lease of the pool is over.
    #[error(transparent)]
    LeaseOver(#[from] LeaseOver),
}

/// What a window needs to know of its server.
#[derive(Clone, Debug)]
pub struct TargetHandle {
    /// Where it listens.
    pub server: Server,
    /// Its configured name.
    pub target: String,
    /// What it was when it last said so:
    /// [`ServerFacts::instance`](skewtrap_core::capture::facts::ServerFacts::instance).
    pub instance: Option<String>,
    pub sizes: Sizes,
    /// Its paths and ours.
    pub paths: PathMap,
    /// The folder of the files when none is sent: the server's view (`$SGLANG_TORCH_PROFILER_DIR`,
    /// vLLM's fixed folder); a log line that names another goes first.
    pub default_dir: Option<String>,
    /// Whether its log is read.
    pub sees_log: bool,
    /// Its logs that are files.
    pub logs: Vec<PathBuf>,
    /// The nsys of this machine.
    pub nsys: Nsys,
}

/// A signal from the rest of the agent to a window.
#[derive(Clone, Debug)]
pub enum WindowSignal {
    /// A line about profiling in the server's log.
    Line {
        /// The rank that printed it.
        rank: Rank,
        /// The line, read.
        line: ProfileLine,
    },
    /// The rule cleared.
    Cleared,
    /// An operator closes it now.
    Close,
    /// The server's own log says that it dies.
    Dying(String),
    /// The server was started anew.
    Gone(String),
}

/// Sends every profiling line of a log behind the byte `from`, until nobody receives them.
pub async fn follow(log: PathBuf, mut from: u64, sender: mpsc::Sender<WindowSignal>) {
    loop {
        let (lines, end) = profile_lines::after(&log, from).await.unwrap_or((Vec::new(), from));
        from = end;
        for (rank, line) in lines {
            if sender.send(WindowSignal::Line { rank, line }).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How far a window has come, for the rest of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    pub phase: WindowPhase,
    /// Which samples not to trust.
    pub settling: SettlingTime,
}

/// The result of a window.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub ending: Ending,
    /// What was sent, and the answers.
    pub exchanges: Vec<Exchange>,
    /// The files that bear its marks, read to their ends.
    pub artifacts: Vec<Artifact>,
    /// Whether they are complete.
    pub verdict: FileVerification,
    /// The folder in the server's view, as far as it is known.
    pub folder: Option<String>,
    /// Whether the agent sees that folder.
    pub remote: bool,
    /// When the start was sent.
    pub sent_at: Time,
    /// From the start to the stop, or to the end by itself.
    pub open: Duration,
    /// Serving that it cost.
    pub stalled: Duration,
    /// The longest silence of one rank.
    pub longest: Duration,
    /// What it was sized by, and what it is to teach; `None` where it was not seen to record what was
    /// asked for.
    pub past: Option<PastWindow>,
    /// From the end until the server answered as it used to; `None` when it did not in 30 s.
    pub recovered: Option<Duration>,
}

impl Outcome {
    /// Whether its window may be open still.
    pub fn may_be_open(&self) -> bool {
        self.ending.unproven.is_some() || self.ending.failure == Some(Failure::Cancelled)
    }
}

/// Opens a window: writes the attempt, sends the start, and sees it through to its end; or tells why
/// nothing was sent.
///
/// # Errors
/// The state could not be written; then nothing was sent.
pub async fn open(
    target: &TargetHandle,
    request: &StartRequest,
    attempt: &Attempt,
    record: &Record,
    state: &State,
    clock: Clock,
    mut links: Links,
) -> Result<Result<Outcome, Unsent>, StateError> {
    // Its deadline does not move when somebody sets the wall clock.
    let clock = clock.steady();
    let (files, log) = tokio::join!(Files::new(target, request), Log::from_now(target.logs.clone()));
    let (logs_from, log_from) = log.from();
    let window = WindowRow {
        instance: target.instance.clone(),
        log_from,
        logs_from,
        ..WindowRow::of(attempt, OpenMethod::Http(request.clone()), clock.now())
    };
    let mut server_lock = match lock_server(target, request, state, clock.now()).await {
        Ok(server_lock) => server_lock,
        Err(LockHolder { agent, process, until }) => {
            return Err(StateError::Leased { agent, process, until });
        }
    };
    if let Err(late) = begin(state, attempt, &window, record, clock).await? {
        return Ok(Err(late.into()));
    }
    let early = match drain_before_start(&log, &mut links).await {
        Ok(early) => early,
        Err(why) => return Ok(Err(why)),
    };
    if let Err(over) = links.check_lease() {
        return Ok(Err(over.into()));
    }
    // Whatever becomes of this task.
    server_lock.set_open(true);
    let now = clock.now();
    let (machine, start) = Window::start(request, visibility(target, request, &files), now);
    let run =
        WindowRun::new(target, request, machine, window, state.clone(), (clock, log), links.status.clone())
            .under(links.lease.clone());
    early.iter().for_each(|event| run.handle(event));
    run.carry_out(vec![start], now);
    let outcome = run_to_end(target, request, run, files, links).await;
    server_lock.end(outcome.may_be_open()).await;
    Ok(Ok(outcome))
}

/// What came between a grant and its start, which the disk may have held up: for the window, or why it is
/// not to be started.
async fn drain_before_start(log: &Log, links: &mut Links) -> Result<Vec<Event>, Unsent> {
    let mut lines = Vec::new();
    let mut events = Vec::new();
    while let Ok(signal) = links.signals.try_recv() {
        match signal {
            WindowSignal::Line { rank, line } => {
                if log.is_news(rank, &line) {
                    lines.push((rank, line));
                }
            }
            WindowSignal::Close => return Err(Unsent::Closed),
            WindowSignal::Gone(why) => return Err(Unsent::Gone(why)),
            WindowSignal::Cleared => events.push(Event::Cleared),
            WindowSignal::Dying(why) => events.push(Event::Dying(why)),
        }
    }
    lines.extend(log.news().await);
    if links.cancel.is_cancelled() {
        return Err(Unsent::Closed);
    }
    let mut foreign = ForeignWindows::default();
    for (rank, line) in &lines {
        foreign.line(*rank, line, Time::default());
    }
    if let Some((_, dir)) = foreign.open() {
        return Err(Unsent::Foreign(dir.to_owned()));
    }
    events.extend(lines.into_iter().map(|(rank, line)| Event::Log { rank, line }));
    Ok(events)
}

/// Writes the attempt, on a thread that may wait for the disk: the only wait of a window for it. Tells
/// whether its grant, of `window.sent_at`, was over meanwhile: then its end is still to be written.
///
/// # Errors
/// It could not be written: then nothing may be sent.
pub async fn begin(
    state: &State,
    attempt: &Attempt,
    window: &WindowRow,
    record: &Record,
    clock: Clock,
) -> Result<Result<(), TooLate>, StateError> {
    let granted_at = window.sent_at;
    let (state, attempt, window, record) = (state.clone(), attempt.clone(), window.clone(), record.clone());
    let begun = crate::world::blocking(move || state.begin(&attempt, &window, Some(&record))).await;
    begun.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
    let waited = clock.now().since(granted_at);
    Ok(if waited > GRANT_LIMIT { Err(TooLate { waited }) } else { Ok(()) })
}

/// This agent's turn on a server, where there is one. Giving it back writes into a folder that may hang, so a
/// thread that may wait for it does that.
#[derive(Debug)]
pub struct Turn(Option<ServerLock>);

impl Turn {
    fn set_open(&mut self, is_open: bool) {
        self.0.iter_mut().for_each(|lease| lease.set_open(is_open));
    }

    /// Gives it back, before another window asks for it; a folder that hangs is not waited for long.
    pub async fn end(mut self, may_be_open: bool) {
        self.set_open(may_be_open);
        if let Some(lease) = self.0.take() {
            let giving_back = crate::world::blocking(move || drop(lease));
            let _ = tokio::time::timeout(LOCK_LIMIT, giving_back).await;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(lease) = self.0.take().filter(|_| tokio::runtime::Handle::try_current().is_ok()) {
            drop(crate::world::blocking(move || drop(lease)));
        }
    }
}

/// Takes this agent's turn on the server. A folder that hangs or cannot be written costs the turns, not
/// the window: it is rare that two agents watch one server.
async fn lock_server(
    handle: &TargetHandle,
    request: &StartRequest,
    state: &State,
    now: Time,
) -> Result<Turn, LockHolder> {
    let folder = request
        .marks
        .dir
        .as_deref()
        .and_then(|dir| handle.paths.agent_view(dir).parent().map(std::path::Path::to_owned));
    let address = handle.server.address().unwrap_or_default();
    let until = now + START_TIMEOUT + request.deadline + LOCK_MARGIN;
    let holder = LockHolder { agent: state.agent().to_string(), process: std::process::id(), until };
    let taking = crate::world::blocking(move || {
        server_lock::take(&server_lock::path(folder.as_deref(), &address), &holder, now)
    });
    match tokio::time::timeout(LOCK_LIMIT, taking).await {
        Ok(Ok(Ok(Ok(lease)))) => Ok(Turn(Some(lease))),
        Ok(Ok(Ok(Err(other)))) => Err(other),
        Ok(Ok(Err(error))) => {
            warn!(%error, "whether another agent has a window open on this server cannot be told");
            Ok(Turn(None))
        }
        Ok(Err(_)) | Err(_) => {
            warn!("whether another agent has a window open on this server cannot be told: its folder hangs");
            Ok(Turn(None))
        }
    }
}

/// Waits for this agent's turn to close what an agent before it left behind: without a log a stop cannot tell whose
/// profile it ends. `None` where the agent ends before.
pub async fn wait_for_server_lock(
    handle: &TargetHandle,
    request: &StartRequest,
    (state, clock): (&State, Clock),
    cancel: &CancellationToken,
) -> Option<Turn> {
    let mut is_told = false;
    loop {
        let other = match lock_server(handle, request, state, clock.now()).await {
            Ok(mut server_lock) => {
                server_lock.set_open(true);
                return Some(server_lock);
            }
            Err(other) => other,
        };
        if !std::mem::replace(&mut is_told, true) {
            warn!(
                "another agent (process {}) has, or may have, a window open on {}; the one that was left open there is closed after it",
                other.process, handle.target
            );
        }
        tokio::select! {
            () = cancel.cancelled() => return None,
            () = tokio::time::sleep(LOCK_RETRY) => {}
        }
    }
}

/// Closes a window that an agent before this one left behind. `lines` are the lines about profiling
/// in its server's logs since, which end at `log_ends`, and `moved` the files that are in the bundle already:
/// both are taken into account before anything is decided, for they may prove that nothing is open any more.
pub async fn resume(
    target: &TargetHandle,
    request: &StartRequest,
    window: WindowRow,
    (lines, log_ends): (Vec<(Rank, ProfileLine)>, Vec<(PathBuf, u64)>),
    moved: Vec<PathBuf>,
    store: (&State, Clock),
    links: Links,
) -> Outcome {
    let (state, clock) = (store.0, store.1.steady());
    let files = Files::of_before(target, request, window.sent_at, moved).await;
    let (visibility, sent_at, now) = (visibility(target, request, &files), window.sent_at, clock.now());
    let left = OrphanedWindow {
        sent_at,
        granted: window.granted,
        refused_double: window.refused_double,
        stops: window.stops.clone(),
        ended: window.ended,
    };
    let mut machine = Window::resume(request, visibility, &left, now);
    let mut writing = BTreeSet::new();
    for (rank, line) in lines {
        match &line {
            ProfileLine::Stops => drop(writing.insert(rank)),
            ProfileLine::Starts { .. } | ProfileLine::Done { .. } => drop(writing.remove(&rank)),
        }
        machine.recall(&Event::Log { rank, line }, sent_at);
    }
    // When they began is not known to better than a second: they write since now at the latest.
    writing.into_iter().for_each(|rank| links.meter.heard(rank, &ProfileLine::Stops));
    // Twice: a file that has not changed between two scans is read.
    for _ in 0..2 {
        files.scan(|event| machine.recall(&event, now)).await;
    }
    // Nothing is sent to another instance than the one that was asked to start.
    let reach = instance_of(&target.server, window.instance.as_deref()).await;
    let reach = reach.map(event_of);
    let log = Log::after(log_ends);
    let run =
        WindowRun::new(target, request, machine, window, state.clone(), (clock, log), links.status.clone());
    reach.iter().for_each(|event| run.handle(event));
    run_to_end(target, request, run, files, links).await
}

/// The connections of a window with the rest of the agent.
#[derive(Debug)]
pub struct Links {
    pub signals: mpsc::Receiver<WindowSignal>,
    /// Its status, for others.
    pub status: watch::Sender<Status>,
    /// What measures its cost.
    pub meter: Meter,
    /// The agent ends.
    pub cancel: CancellationToken,
    /// The lease of the pool, where one is needed.
    pub lease: Option<HeldLease>,
}

impl Links {
    /// Whether the pool still lets a window be started.
    ///
    /// # Errors
    /// Its lease is over.
    pub fn check_lease(&self) -> Result<(), LeaseOver> {
        self.lease.as_ref().map_or(Ok(()), HeldLease::check)
    }

    /// Whether a window is still to be started, whatever held it up since it was granted: to be asked right before.
    ///
    /// # Errors
    /// Somebody closed it, the agent ends, its server is another one, or the lease of the pool is over.
    pub fn check_wanted(&mut self) -> Result<(), Unsent> {
        while let Ok(signal) = self.signals.try_recv() {
            match signal {
                WindowSignal::Close => return Err(Unsent::Closed),
                WindowSignal::Gone(why) => return Err(Unsent::Gone(why)),
                WindowSignal::Line { .. } | WindowSignal::Cleared | WindowSignal::Dying(_) => {}
            }
        }
        if self.cancel.is_cancelled() {
            return Err(Unsent::Closed);
        }
        Ok(self.check_lease()?)
    }

    /// Shows the phase that a capture by other means than the engine's own profiler is in.
    pub fn show(&self, phase: WindowPhase, now: Time) {
        self.status.send_modify(|status| {
            status.phase = phase;
            status.settling.entered(phase, now);
        });
    }

    /// What the capture cost so far.
    pub fn stalled(&self) -> Duration {
        self.meter.stalled(self.status.borrow().settling)
    }
}

/// The note of a capture where [`Meter::recovery`] waited in vain.
pub const NOT_RECOVERED: &str =
    "the server did not answer /health as it used to within 30 s of the window's end";

fn visibility(target: &TargetHandle, request: &StartRequest, files: &Files) -> Visibility {
    Visibility { log: target.sees_log && request.engine.tells_in_its_log(), files: files.are_visible() }
}

async fn run_to_end(
    target: &TargetHandle,
    request: &StartRequest,
    run: WindowRun,
    files: Files,
    links: Links,
) -> Outcome {
    let Links { mut signals, cancel, meter, .. } = links;
    let present = run.present();
    let ticker = tokio::spawn(run.clone().tick());
    let known = run.clone();
    let (probe, mut reached) = meter.probe(target.server.clone(), move || known.instance());
    let scanning = tokio::spawn(scan(run.clone(), files.clone()));
    let mut is_connected = true;
    loop {
        tokio::select! {
            biased;
            () = run.ended() => break,
            () = cancel.cancelled(), if !run.is_cancelled() => run.cancel(),
            signal = signals.recv(), if is_connected => match signal {
                Some(signal) => forward_signal(&run, &files, &meter, signal),
                None => is_connected = false,
            },
            Some(reach) = reached.recv() => run.handle(&event_of(reach)),
        }
    }
    let ended_at = run.now();
    probe.end(&cancel).await;
    scanning.abort();
    // A folder that hangs has shown what it will.
    let _ = tokio::time::timeout(SETTLE, files.scan(drop)).await;
    let recovered = meter.recovery(&target.server, &cancel).await;
    // The ticker ends by itself once the window has; a panic in it was this window's, and is over.
    let _ = ticker.await;
    drop(present);
    let remote = files.is_remote().await;
    outcome(request, &run, &files, remote, &meter, recovered.map(|at| at.since(ended_at))).await
}

/// Looks for its files until the window is over; a task of its own, for a folder may hang and a file take long.
async fn scan(run: WindowRun, files: Files) {
    loop {
        files.scan(|event| run.handle(&event)).await;
        tokio::time::sleep(SCAN).await;
    }
}

fn event_of(reach: Reach) -> Event {
    match reach {
        Reach::Refused => Event::Unreachable,
        Reach::Answers => Event::Answers,
        Reach::Another(why) => Event::Gone(why),
    }
}

fn forward_signal(run: &WindowRun, files: &Files, meter: &Meter, signal: WindowSignal) {
    let event = match signal {
        WindowSignal::Line { rank, line } => {
            meter.heard(rank, &line);
            if let ProfileLine::Starts { dir, .. } = &line {
                files.learn(dir);
            }
            if !run.is_news(rank, &line) {
                return;
            }
            Event::Log { rank, line }
        }
        WindowSignal::Cleared => Event::Cleared,
        WindowSignal::Close => Event::Close,
        WindowSignal::Dying(why) => Event::Dying(why),
        WindowSignal::Gone(why) => return drop(tokio::spawn(run.clone().restarted(why))),
    };
    run.handle(&event);
}

async fn outcome(
    request: &StartRequest,
    run: &WindowRun,
    files: &Files,
    remote: bool,
    meter: &Meter,
    recovered: Option<Duration>,
) -> Outcome {
    let folder = files.server_dir();
    let artifacts = files.artifacts();
    let mut expected = request.ranks.busy.clone();
    expected.extend(&request.ranks.idle);
    let mut verdict = verify_files(&expected, &request.ranks.idle, &artifacts);
    if remote || !request.writes_files {
        verdict = FileVerification { quality: Quality::Unseen, ..FileVerification::default() };
    }
    if request.engine == ServerKind::Sglang && !request.ranks.idle.is_empty() {
        verdict.idle.clone_from(&request.ranks.idle);
    }
    let (ending, exchanges, status) = run.result();
    let stopped_at = exchanges.iter().find(|e| e.request.contains("stop_profile")).map(|e| e.at);
    let of_ranks: Vec<_> = artifacts.iter().filter_map(|a| Some((a.rank?, a.path.clone()))).collect();
    let times = crate::world::blocking(move || -> Vec<_> {
        of_ranks.into_iter().filter_map(|(rank, path)| Some((rank, written(Path::new(&path))?))).collect()
    });
    // A folder that hangs withholds the stalls that it would show, not the result.
    let times = tokio::time::timeout(LOOK_LIMIT, times).await.ok().and_then(Result::ok);
    let predicted = request.sizing.as_deref().and_then(|sizing| sizing.predicted);
    let unseen = predicted.filter(|_| meter.is_of_before());
    for (rank, (made, changed)) in times.unwrap_or_default() {
        let began = stall::writing_began(made, changed, stopped_at, unseen);
        let Some(from) = began.map(|from| from.max(status.settling.from)) else { continue };
        // The clock of a file server may be another one.
        if made.is_none_or(|made| made >= status.settling.from) && changed <= run.now() {
            meter.wrote(rank, from, changed);
        }
    }
    let stalled = meter.stalled(status.settling);
    let longest = meter.longest();
    // One that a stop cut short has fewer steps than were asked for.
    let is_cut = stopped_at.is_some() && request.form == StartMode::Exact || request.until_cleared;
    let largest = artifacts.iter().map(|a| a.size).max().filter(|_| ending.failure.is_none() && !is_cut);
    let past = request.sizing.as_deref().zip(largest).map(|(sizing, largest)| sizing.past(largest, longest));
    Outcome {
        ending,
        exchanges,
        artifacts,
        verdict,
        folder,
        remote,
        sent_at: status.settling.from,
        open: status.settling.closing.unwrap_or(run.now()).since(status.settling.from),
        stalled,
        longest,
        past,
        recovered,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::world::stand_in;

    /// A machine whose disk takes no operation.
    struct Hung;

    impl stand_in::Machine for Hung {
        fn wall_time(&self) -> Time {
            Time::default()
        }

        fn disk(&self) -> stand_in::Until {
            Box::pin(std::future::pending())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_folder_that_hangs_while_a_turn_is_given_back_holds_up_nobody() {
        let dir = tempfile::tempdir().expect("a folder");
        let holder =
            |agent: &str| LockHolder { agent: agent.into(), process: 7, until: Time::from_epoch_s(10.0) };
        let taken = |name: &str| {
            let lease = server_lock::take(&dir.path().join(name), &holder(name), Time::default());
            Turn(Some(lease.expect("it is written").expect("nobody has it")))
        };
        let (ended, dropped) = (taken("ended"), taken("dropped"));
        stand_in::set(Some(Arc::new(Hung)));
        let begun = tokio::time::Instant::now();
        ended.end(false).await;
        drop(dropped);
        assert!(begun.elapsed() <= LOCK_LIMIT, "{:?}", begun.elapsed());
        stand_in::set(None);
        for name in ["ended", "dropped"] {
            let left = std::fs::read(dir.path().join(name)).expect("it is there");
            assert!(!left.is_empty(), "this thread has waited for the folder of {name}");
        }
    }
}
