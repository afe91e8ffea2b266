//! Takes a window of an Nsight Systems session that wraps the server already.
//!
//! The session is proven to be the target's, its state is read back after every command, and the
//! whole runs as a task of its own: it stops what it started though its caller is gone.

mod left;
mod report;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::warn;

pub use self::left::close;
use super::{CaptureResult, CaptureStore};
use crate::act::nsys::{CommandOutput, Nsys};
use crate::act::state::{OpenMethod, StateError, WindowRow};
use crate::agent::window::{Links, NOT_RECOVERED, TargetHandle, WindowSignal};
use crate::observe::process::{ancestors, listener, ranks_below};
use skewtrap_core::capture::NsysWindow;
use skewtrap_core::capture::captured::CaptureKind;
use skewtrap_core::capture::governor::Attempt;
use skewtrap_core::capture::nsys::{CollectionOwner, LONGEST_START, Readiness, Session, choose, owner_of};
use skewtrap_core::capture::window::{CANCEL_LIMIT, EXPORT_LIMIT, WindowPhase};
use skewtrap_core::incident::{Exchange, Record};
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

/// How long a start or a stop may take to show in the state.
const BEGIN: Duration = Duration::from_secs(10);
/// A stop that had no effect, or could not be sent, is sent again after this.
const AGAIN: Duration = Duration::from_secs(3);
const STATE_POLL: Duration = Duration::from_millis(100);

/// Takes the window of `spec`.
///
/// # Errors
/// The state could not be written; then nothing was started.
pub async fn capture(
    store: &CaptureStore,
    handle: &TargetHandle,
    spec: &NsysWindow,
    attempt: &Attempt,
    record: &Record,
    links: Links,
) -> Result<CaptureResult, StateError> {
    let clock = store.clock.steady();
    let method = OpenMethod::Nsys { session: String::new(), name: String::new() };
    let window = WindowRow::of(attempt, method, clock.now());
    let begun = crate::agent::window::begin(&store.state, attempt, &window, record, clock).await?;
    if let Err(late) = begun {
        return Ok(CaptureResult::never_sent(CaptureKind::Nsys, late, window.sent_at));
    }
    if let Err(over) = links.check_lease() {
        return Ok(CaptureResult::never_sent(CaptureKind::Nsys, over, window.sent_at));
    }
    let (store, handle, spec) = (store.clone(), handle.clone(), spec.clone());
    let (number, exchanges, cancel) = (record.incident.window(), Vec::new(), links.cancel.clone());
    let taking =
        NsysCapture { store: store.clone(), handle: handle.clone(), spec, window, number, links, exchanges };
    // A task of its own: a caller that is dropped does not leave a session collecting.
    let taken = tokio::spawn(taking.run());
    match taken.await {
        Ok(result) => Ok(result),
        // What it had begun is stopped as if the agent had died.
        Err(panic) => {
            warn!("the task of an nsys window failed: {panic}");
            let state = store.state.clone();
            let windows = crate::world::blocking(move || state.open_windows()).await;
            let windows = windows.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
            let left = windows.into_iter().find(|w| w.attempt == attempt.id);
            Ok(match left {
                Some(window) => {
                    let output = output_of(&store, &window.incident, number).await;
                    close(&handle.nsys, &window, &output, store.clock.now(), &cancel).await
                }
                None => CaptureResult {
                    means: CaptureKind::Nsys,
                    sent_at: store.clock.now(),
                    ..CaptureResult::default()
                },
            })
        }
    }
}

/// What a start is given as its output: ours alone, by the incident and the number of its capture.
pub async fn output_of(store: &CaptureStore, incident: &str, number: usize) -> PathBuf {
    let scratch = store.bundles.scratch_of(incident, number);
    let found = scratch.clone();
    let canonical = crate::world::blocking(move || found.canonicalize()).await;
    canonical.ok().and_then(Result::ok).unwrap_or(scratch).join("window")
}

struct NsysCapture {
    store: CaptureStore,
    handle: TargetHandle,
    spec: NsysWindow,
    window: WindowRow,
    /// Of the capture within its incident.
    number: usize,
    links: Links,
    exchanges: Vec<Exchange>,
}

/// A window that failed: a sentence, and whether something may still collect.
struct Failed {
    why: String,
    unproven: bool,
    /// The agent ends before its stop was sent: the next one sends it.
    left_open: bool,
}

impl Failed {
    fn closed(why: impl ToString) -> Self {
        Self { why: why.to_string(), unproven: false, left_open: false }
    }

    fn open(why: impl ToString) -> Self {
        Self { unproven: true, ..Self::closed(why) }
    }

    /// No stop was sent.
    fn unsent(unsent: StopUnsent) -> Self {
        Self { why: unsent.why, unproven: !unsent.is_over, left_open: unsent.is_cancelled }
    }
}

/// A stop for which no program could be started.
struct StopUnsent {
    why: String,
    /// The agent ends, and did not try for as long as it might have.
    is_cancelled: bool,
    /// The collection has ended without it.
    is_over: bool,
}

/// A collection that is to be stopped.
struct Collection<'a> {
    session: &'a str,
    /// What the session is called.
    name: &'a str,
    /// When its start was sent.
    sent_at: Time,
}

/// Stops a session. Nothing else bounds its window, so where the program cannot be started for want of memory, files or
/// processes it is tried again, and in the last moments of an agent too; unless another client collects there by then.
async fn stop_session(
    nsys: &Nsys,
    &Collection { session: id, name, sent_at }: &Collection<'_>,
    at: Time,
    cancel: &CancellationToken,
) -> Result<(CommandOutput, Exchange), StopUnsent> {
    let until = tokio::time::Instant::now() + EXPORT_LIMIT;
    let cancelled = async {
        cancel.cancelled().await;
        tokio::time::sleep(CANCEL_LIMIT).await;
    };
    tokio::pin!(cancelled);
    let mut is_told = false;
    loop {
        let error = match nsys.stop(id, at).await {
            Ok(stopped) => return Ok(stopped),
            Err(error) => error,
        };
        if tokio::time::Instant::now() >= until {
            return Err(StopUnsent { why: error.to_string(), is_cancelled: false, is_over: false });
        }
        if !std::mem::replace(&mut is_told, true) {
            let s = AGAIN.as_secs();
            warn!("nsys session {id} is not stopped yet: {error}; it is tried again every {s} s");
        }
        tokio::select! {
            () = tokio::time::sleep(AGAIN) => {}
            () = &mut cancelled => {
                return Err(StopUnsent { why: error.to_string(), is_cancelled: true, is_over: false });
            }
        }
        let began = left::began(name).await;
        if owner_of(began, sent_at) == CollectionOwner::Theirs {
            let why = format!(
                "{error}; before nsys session {name} could be stopped its collection had ended, and another client has started one there, which is left alone"
            );
            return Err(StopUnsent { why, is_cancelled: false, is_over: true });
        }
    }
}

/// The result of reading a session's state.
#[derive(Clone, Debug, PartialEq, Eq)]
enum SessionState {
    Is(Readiness),
    /// It is not in the list.
    Absent,
    /// There was no list, and why.
    Unread(String),
}

impl SessionState {
    const fn is(&self, wanted: Readiness) -> bool {
        matches!(
            (self, wanted),
            (Self::Is(Readiness::Collecting), Readiness::Collecting)
                | (Self::Is(Readiness::Ready), Readiness::Ready)
                | (Self::Is(Readiness::Busy), Readiness::Busy)
                | (Self::Is(Readiness::Gone), Readiness::Gone)
        )
    }
}

impl std::fmt::Display for SessionState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Is(state) => write!(f, "its state is {}", state.word()),
            Self::Absent => f.write_str("the session is gone"),
            Self::Unread(why) => write!(f, "its state cannot be read ({why})"),
        }
    }
}

impl NsysCapture {
    async fn run(mut self) -> CaptureResult {
        let mut result = CaptureResult {
            means: CaptureKind::Nsys,
            sent_at: self.store.clock.now(),
            ..CaptureResult::default()
        };
        let collected = self.collect(&mut result).await;
        if self.window.granted
            && self.links.meter.recovery(&self.handle.server, &self.links.cancel).await.is_none()
        {
            result.notes.push(NOT_RECOVERED.into());
        }
        if self.window.granted {
            self.links.meter.await_signs(&self.links.cancel).await;
            result.book(&self.links);
        }
        match collected {
            Ok(report) => report::verify(&report, &mut result).await,
            Err(Failed { why, unproven, left_open }) => {
                result.left_open = left_open;
                result.unproven = unproven.then(|| why.clone());
                result.failure = Some(why);
            }
        }
        self.show(WindowPhase::Ended);
        result.exchanges = std::mem::take(&mut self.exchanges);
        result
    }

    fn show(&self, phase: WindowPhase) {
        self.links.show(phase, self.store.clock.now());
    }

    /// From the session to the path of the report.
    async fn collect(&mut self, result: &mut CaptureResult) -> Result<PathBuf, Failed> {
        let nsys = self.handle.nsys.clone();
        let session = self.session(&nsys, result).await?;
        let (bundles, incident, number) =
            (self.store.bundles.clone(), self.window.incident.clone(), self.number);
        let made = crate::world::blocking(move || bundles.scratch(&incident, number)).await;
        made.map_err(Failed::closed)?.map_err(Failed::closed)?;
        let output = output_of(&self.store, &self.window.incident, self.number).await;
        self.window.method = OpenMethod::Nsys { session: session.id.clone(), name: session.name.clone() };
        self.window.sent_at = self.store.clock.now();
        // Without its session a later agent could not stop it, so nothing is started before it is written.
        let (state, window) = (self.store.state.clone(), self.window.clone());
        let written = crate::world::blocking(move || state.update(&window)).await;
        written.map_err(Failed::closed)?.map_err(Failed::closed)?;
        // The list, `/proc` and the disk may have held it up.
        self.links.check_wanted().map_err(Failed::closed)?;
        result.sent_at = self.window.sent_at;
        self.begin(&nsys, &session, &output, result).await?;
        self.show(WindowPhase::Open);
        let (probe, _) = self.links.meter.probe(self.handle.server.clone(), || None);
        self.hold().await;
        self.show(WindowPhase::Stopping);
        let stopped_at = self.store.clock.now();
        result.open = stopped_at.since(result.sent_at);
        let report = self.stop(&nsys, &session, stopped_at, result).await;
        probe.end(&self.links.cancel).await;
        report
    }

    /// Starts the collection and reads back that it is ours.
    async fn begin(
        &mut self,
        nsys: &Nsys,
        session: &Session,
        output: &std::path::Path,
        result: &mut CaptureResult,
    ) -> Result<(), Failed> {
        let (at, until) = (result.sent_at, tokio::time::Instant::now() + LONGEST_START);
        let (answer, exchange) =
            nsys.start(&session.id, output, &self.spec.args, at).await.map_err(Failed::closed)?;
        self.exchanges.push(exchange);
        let seen = wait_for(nsys, &session.id, BEGIN, |s| s.is(Readiness::Collecting)).await;
        // A refused start although it collects: another client started it just before.
        let refused = answer.code.is_some_and(|code| code != 0);
        match seen {
            SessionState::Is(Readiness::Collecting) if !refused => {}
            SessionState::Is(Readiness::Collecting) => {
                return Err(Failed::closed(format!(
                    "nsys refused to start session {} ({}), which another client has started; it is left alone",
                    session.name,
                    answer.summary()
                )));
            }
            // It may have begun: what is ours is stopped.
            SessionState::Unread(_) | SessionState::Is(Readiness::Busy) if !refused => {
                self.send_stop(nsys, session, self.store.clock.now()).await?;
                return Err(Failed::open(not_begun(session, &answer, &seen)));
            }
            SessionState::Is(Readiness::Ready) if !refused => {
                return Err(self.begins_late(nsys, session, &answer, (at, until), result).await);
            }
            _ => return Err(Failed::closed(not_begun(session, &answer, &seen))),
        }
        self.window.granted = true;
        let window = self.window.clone();
        self.store.state.later(move |state| state.update(&window));
        Ok(())
    }

    /// nsys took a start and nothing came of it so far. What begins by `until` is ours and is stopped at once, for
    /// the window's time is over; what begins later nobody would stop, so that is not proven then.
    async fn begins_late(
        &mut self,
        nsys: &Nsys,
        session: &Session,
        answer: &CommandOutput,
        (at, until): (Time, tokio::time::Instant),
        result: &mut CaptureResult,
    ) -> Failed {
        self.show(WindowPhase::Unknown);
        let left = until.saturating_duration_since(tokio::time::Instant::now());
        let decided = |s: &SessionState| matches!(s, SessionState::Is(state) if *state != Readiness::Ready);
        let seen = wait_for(nsys, &session.id, left, decided).await;
        let waited = self.store.clock.now().since(at).as_secs();
        match seen {
            SessionState::Is(Readiness::Collecting) => {
                self.show(WindowPhase::Stopping);
                match self.stop(nsys, session, self.store.clock.now(), result).await {
                    Err(failed @ Failed { unproven: true, .. }) => failed,
                    _ => Failed::closed(format!(
                        "nsys began to collect in session {} only {waited} s after it was told to, too late for this window, and was stopped at once",
                        session.name
                    )),
                }
            }
            SessionState::Absent | SessionState::Is(Readiness::Gone) => {
                Failed::closed(not_begun(session, answer, &seen))
            }
            SessionState::Unread(_) | SessionState::Is(Readiness::Ready | Readiness::Busy) => {
                Failed::open(format!(
                    "{} after {waited} s, though the start was taken, so it may begin yet: look with `nsys sessions list`, and stop it by hand: nsys stop --session={}",
                    not_begun(session, answer, &seen),
                    session.id
                ))
            }
        }
    }

    async fn session(&self, nsys: &Nsys, result: &mut CaptureResult) -> Result<Session, Failed> {
        // Read anew before every start: ids change when a server is launched again.
        let sessions = nsys.sessions().await.map_err(Failed::closed)?;
        let port = self.handle.server.port().unwrap_or(0);
        // All of /proc is walked.
        let walk = crate::world::blocking(move || {
            let chain = listener(port).map(ancestors).unwrap_or_default();
            // Every rank is below the launcher, which is below nsys.
            let root = chain.iter().rev().find(|p| p.argv.iter().take(2).any(|a| a.ends_with("nsys")));
            let ranks: BTreeMap<u32, Rank> = root.map(|p| ranks_below(p.pid)).unwrap_or_default();
            (chain, ranks)
        });
        let (chain, ranks) = walk.await.map_err(Failed::closed)?;
        let chosen = choose(&self.spec.session, &sessions, &chain, &nsys.viewer(), port);
        let session = chosen.map_err(Failed::closed)?.clone();
        result.processes = ranks.into_iter().map(|(pid, rank)| (pid, rank.labels())).collect();
        match session.readiness() {
            Readiness::Ready => Ok(session),
            Readiness::Gone => {
                Err(Failed::closed(format!("the application of nsys session {} is gone", session.name)))
            }
            Readiness::Collecting | Readiness::Busy => Err(Failed::closed(format!(
                "nsys session {} is in state {}: another client collects or generates there, and it is left alone",
                session.name, session.state
            ))),
        }
    }

    async fn hold(&mut self) {
        let over = tokio::time::sleep(self.spec.duration);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => return,
                () = self.links.cancel.cancelled() => return,
                signal = self.links.signals.recv() => match signal {
                    Some(WindowSignal::Close | WindowSignal::Gone(_)) => return,
                    Some(_) => {}
                    None => return over.await,
                },
            }
        }
    }

    async fn stop(
        &mut self,
        nsys: &Nsys,
        session: &Session,
        at: Time,
        result: &mut CaptureResult,
    ) -> Result<PathBuf, Failed> {
        let mut answer = self.send_stop(nsys, session, at).await?;
        self.show(WindowPhase::Exporting);
        let ended = |s: &SessionState| {
            matches!(s, SessionState::Is(state) if *state != Readiness::Collecting)
                || *s == SessionState::Absent
        };
        // A stop that had no effect is noticed soon; generating takes minutes.
        let mut seen = wait_for(nsys, &session.id, AGAIN, ended).await;
        if seen.is(Readiness::Collecting) {
            answer = self.send_stop(nsys, session, self.store.clock.now()).await?;
            seen = wait_for(nsys, &session.id, BEGIN, ended).await;
        }
        if seen.is(Readiness::Busy) {
            seen = wait_for(nsys, &session.id, EXPORT_LIMIT, |s| ended(s) && !s.is(Readiness::Busy)).await;
        }
        match &seen {
            SessionState::Is(Readiness::Collecting) | SessionState::Unread(_) => {
                return Err(Failed::open(format!(
                    "nsys was asked to stop session {} ({}), and {}; stop it by hand: nsys stop --session={}",
                    session.name,
                    answer.summary(),
                    if seen.is(Readiness::Collecting) {
                        "it still collects".into()
                    } else {
                        seen.to_string()
                    },
                    session.id
                )));
            }
            SessionState::Is(Readiness::Busy) => {
                let limit = EXPORT_LIMIT.as_secs();
                return Err(Failed::open(format!(
                    "nsys had not generated the report of session {} after {limit} s",
                    session.name
                )));
            }
            SessionState::Is(Readiness::Ready | Readiness::Gone) | SessionState::Absent => {}
        }
        self.show(WindowPhase::Verifying);
        let gone = matches!(seen, SessionState::Is(Readiness::Gone) | SessionState::Absent);
        report::path_of(&answer, gone, result).await
    }

    async fn send_stop(&mut self, nsys: &Nsys, session: &Session, at: Time) -> Result<CommandOutput, Failed> {
        let of = Collection { session: &session.id, name: &session.name, sent_at: self.window.sent_at };
        let stopped = stop_session(nsys, &of, at, &self.links.cancel).await;
        let (answer, exchange) = stopped.map_err(Failed::unsent)?;
        self.exchanges.push(exchange);
        Ok(answer)
    }
}

fn not_begun(session: &Session, output: &CommandOutput, seen: &SessionState) -> String {
    format!("nsys did not begin to collect in session {} ({}); {seen}", session.name, output.summary())
}

/// Reads the state of a session until it is as wanted; the last one otherwise.
async fn wait_for(
    nsys: &Nsys,
    id: &str,
    limit: Duration,
    wanted: impl Fn(&SessionState) -> bool,
) -> SessionState {
    let until = tokio::time::Instant::now() + limit;
    loop {
        let seen = match nsys.sessions().await {
            Ok(sessions) => {
                let found = sessions.iter().find(|s| s.id == id);
                found.map_or(SessionState::Absent, |s| SessionState::Is(s.readiness()))
            }
            Err(error) => SessionState::Unread(error.to_string()),
        };
        if wanted(&seen) || seen == SessionState::Absent || tokio::time::Instant::now() >= until {
            return seen;
        }
        tokio::time::sleep(STATE_POLL).await;
    }
}
