//! The agent's loop: owns clock, tasks and shutdown, and carries out what the core asks for.
//!
//! Everything that happens arrives in one inbox; the core turns it into effects; each effect is a
//! method here. Nothing in the loop waits for the network or reads a large file: windows, bundles,
//! comparisons and deliveries are tasks of their own.

mod archive;
mod awaited;
mod begin;
pub mod capture;
mod commands;
pub mod compare;
pub mod cost;
mod effects;
pub mod examine;
pub mod history;
#[cfg(feature = "fleet")]
pub mod node;
mod notifier;
pub mod plan;
#[cfg_attr(not(feature = "fleet"), allow(dead_code, reason = "only a store has a lease"))]
pub mod pool;
mod probe;
pub mod receivers;
mod recovered;
mod reload;
pub mod report;
#[cfg(test)]
mod simulation;
mod startup;
#[cfg(feature = "fleet")]
pub mod stored;
mod supervise;
mod upkeep;
#[cfg(feature = "fleet")]
pub mod upload;
pub mod window;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use self::archive::{Archive, Samples};
use self::awaited::AwaitingDisk;
use self::begin::StartedAgent;
use self::capture::{CaptureStore, Taken};
use self::cost::Meter;
use self::notifier::Notifier;
use self::plan::{Plan, TargetPlan};
use self::reload::{ReloadRequester, Reloading};
pub use self::supervise::BackgroundRuntime;
use self::supervise::Supervisor;
use self::window::WindowSignal;
use crate::act::bundle::Bundles;
use crate::act::notify::DeliveryReport;
use crate::act::state::State;
use crate::clock::Clock;
use crate::config::receiver as configured;
use crate::http::Server;
use crate::http::body::Room;
use crate::observe::effort::{SourceCounters, Stage};
use crate::observe::sender::{ImmediateFlush, ObservationBatch};
use crate::serve::metrics::Metrics;
use crate::serve::published::Publisher;
use crate::serve::{Command, HandledAlerts};
use skewtrap_core::capture::CaptureSpec;
use skewtrap_core::capture::captured::CaptureKind;
use skewtrap_core::capture::governor::Budget;
use skewtrap_core::capture::keep::BundleSpace;
use skewtrap_core::incident::{CaptureOutcome, Incident, Record, VerdictNote};
use skewtrap_core::signal::catalog;
use skewtrap_core::signal::observation::{Observation, Problem};
use skewtrap_core::signal::sample::{Source, TargetId};
use skewtrap_core::status::{ChartHistory, ReloadProblem};
use skewtrap_core::watch::{Effect, Event, ServerFact, TICK, Watch, WindowEvent};
use skewtrap_trace::time::Time;

/// What was learned of the servers is saved so often: an agent that is killed and started again in the middle
/// of a trouble must not learn the trouble as usual.
const KEEP_LEARNED: Duration = Duration::from_secs(60);
/// Bytes of samples that may wait to be written into bundles: those of many ranks for some incidents.
const EVIDENCE_ROOM: usize = 64 << 20;
/// Events beside what the sources see that may wait.
const INBOX: usize = 1024;
/// Extra evaluations of waiting samples are at least this far apart.
const TOGETHER: Duration = Duration::from_millis(10);
/// What closing an open window may take at the end.
pub const GRACE: Duration = Duration::from_secs(12);
/// What the whole end may take, less the last writes: Kubernetes kills after 30 s.
const END: Duration = Duration::from_secs(22);
/// What the last writes of the state may take at the end.
const LAST_WRITES: Duration = Duration::from_secs(2);

/// Everything that happens.
#[derive(Debug)]
pub enum AgentEvent {
    /// Something was learned of a server.
    Server { target: TargetId, fact: ServerFact },
    /// A window made progress.
    Window {
        incident: Arc<str>,
        /// The progress.
        event: WindowEvent,
    },
    /// A capture asks for the evidence of its bundle.
    Evidence {
        incident: Box<Incident>,
        /// Its onset.
        since: Time,
        /// Where to send it.
        answer: oneshot::Sender<Samples>,
    },
    /// The ranks of a capture were compared.
    Compared {
        incident: Arc<str>,
        /// The number of the capture within it.
        window: usize,
        note: VerdictNote,
    },
    /// The ranks of a capture could not be compared.
    NotCompared { incident: Arc<str> },
    /// The ranks of a capture were compared that an agent before this one had begun.
    RecoveredCompared {
        /// The record of its incident.
        record: Box<Record>,
        /// What it said.
        note: VerdictNote,
    },
    /// The agent ends before a window was proven closed; the state has it.
    LeftOpen { incident: Arc<str> },
    /// A window that an agent before this one left behind was closed.
    Recovered {
        /// The record of its incident, as that agent left it.
        record: Box<Record>,
        /// The result of closing it.
        taken: Taken,
    },
    /// The bundle of an incident was begun.
    Bundled { incident: Arc<str>, path: String },
    /// The folder of the bundles was swept.
    Swept(BundleSpace),
}

/// A window that is under way.
#[derive(Debug)]
struct Running {
    signals: mpsc::Sender<WindowSignal>,
    target: TargetId,
    means: CaptureKind,
    meter: Meter,
    /// Up to when its meter knows of the ranks' samples.
    metered_to: Time,
}

/// Signals to a window that may wait.
const SIGNALS: usize = 256;

impl Running {
    /// Passes a signal on. A window that takes no more is over; one that has too many waiting reads its
    /// server's log again before it sends anything.
    fn pass(&self, incident: &str, signal: WindowSignal) {
        if let Err(mpsc::error::TrySendError::Full(signal)) = self.signals.try_send(signal) {
            tracing::warn!(
                incident,
                ?signal,
                "a window has {SIGNALS} signals waiting, and this one did not reach it"
            );
        }
    }
}

/// A window of an agent before this one that is being closed.
#[derive(Debug)]
struct Closing {
    /// Its server; `None` where it is not configured any more.
    target: Option<TargetId>,
    meter: Meter,
    /// As for [`Running`].
    metered_to: Time,
}

/// Called with every effect, for what embeds the agent (the demo).
pub type OnEffect = Box<dyn FnMut(&Effect) + Send>;

/// Starts the uploads of bundles, and keeps the lease of the pool.
type StartStore = Box<dyn FnOnce(&Bundles, &State) -> Option<pool::Pool> + Send>;

pub struct Agent {
    watch: Watch,
    /// The disk of the state, where it has not answered yet.
    awaited: Option<AwaitingDisk>,
    clock: Clock,
    targets: Vec<TargetPlan>,
    store: CaptureStore,
    archive: Archive,
    notifier: Notifier,
    running: BTreeMap<Arc<str>, Running>,
    /// Windows of an agent before this one that are still being closed.
    closing: BTreeMap<String, Closing>,
    /// Used in place of the server of a target that has none.
    no_server: Server,
    supervisor: Supervisor,
    windows: CancellationToken,
    tx: mpsc::Sender<AgentEvent>,
    publisher: Publisher,
    chart_history: ChartHistory,
    started: Time,
    on_effect: OnEffect,
    metrics: Arc<Metrics>,
    effort: Arc<SourceCounters>,
    immediate: ImmediateFlush,
    /// How each probe is told that a source lost its server, in the order of the targets.
    probes: Vec<Arc<Notify>>,
    reload: ReadConfiguration,
    reloading: Reloading,
    /// Why the configuration could not be read again, the last time.
    reload_problem: Option<ReloadProblem>,
    /// The receivers as they were configured when it was started.
    configured: Vec<configured::Receiver>,
    /// What is captured where somebody asks for it.
    manual_capture: CaptureSpec,
    /// Whether what was learned still waits to be saved.
    learned_waits: Weak<()>,
    /// Whether room for bundles still waits to be made.
    room_waits: Weak<()>,
    /// Room for samples that wait to be written into bundles.
    evidence_room: Room,
    /// Nothing would keep count of windows, or take their files: none is opened, whatever the configuration says.
    only_watch: bool,
    /// The alerts of other systems that have asked for a capture.
    handled: Arc<HandledAlerts>,
    /// Servers of which the log has said that their ranks cannot be compared.
    of_one_load: BTreeSet<TargetId>,
    /// Servers of which that may have to be said, once their processes could be read.
    of_one_load_waits: BTreeSet<TargetId>,
}

/// Reads the configuration again; it may wait for a disk.
pub type ReadConfiguration = Arc<dyn Fn() -> anyhow::Result<Reload> + Send + Sync>;

/// What a configuration that was read again changes.
#[derive(Debug)]
pub struct Reload {
    pub rules: Vec<skewtrap_core::rule::Rule>,
    /// The signals.
    pub catalog: Arc<catalog::Catalog>,
    /// The user's own signals.
    pub own: skewtrap_core::signal::intake::UserSignals,
    /// The receivers; what is new of them needs a restart.
    pub receivers: Vec<configured::Receiver>,
    /// What is captured where somebody asks for it.
    pub manual_capture: CaptureSpec,
    /// What a day may cost.
    pub budget: Budget,
    /// Bytes that must stay free on every disk involved.
    pub min_free: u64,
    /// Whether no window is opened.
    pub watch_only: bool,
    /// What else has changed and needs a restart: the keys.
    pub waiting: Vec<String>,
    /// Whether the agent is to end, for another to begin with what changed beside that.
    pub begins_anew: bool,
}

/// How the agent is run.
pub struct Run {
    pub clock: Clock,
    /// Ends it.
    pub cancel: CancellationToken,
    /// At each notification the configuration is read again. One that comes while no agent runs is for the next.
    pub reloads: Arc<Notify>,
    /// Called with every effect.
    pub on_effect: OnEffect,
    /// Reads the configuration again.
    pub reload: ReadConfiguration,
    /// Whether the API is served.
    pub serves: bool,
    /// Where windows, deliveries and the API run, so that they do not wait for the loop; `None`: beside it
    /// on the same runtime.
    pub background: Option<Handle>,
}

/// Runs until cancelled; then closes what is open.
///
/// # Errors
/// The state cannot be opened: another agent has it, or it is broken. Where a folder cannot be written
/// the watching goes on without windows.
pub async fn run(plan: Plan, run: Run) -> anyhow::Result<()> {
    let StartedAgent { mut agent, mut inputs, archivist, mut effects } = begin::begin(plan, run).await?;
    let ended = agent.run_loop(&mut inputs, &mut effects).await;
    agent.save_ongoing();
    let limit = tokio::time::Instant::now() + END;
    agent.stop(&mut inputs).await;
    // That of the disk, where it answered after the start.
    let state = agent.store.state.clone();
    drop(agent);
    // What was delivered last would be sent again by the next agent, so that is written first. A disk that hangs keeps
    // nobody longer.
    let settle = |state: &State| {
        let state = state.clone();
        crate::world::blocking(move || state.settle(LAST_WRITES))
    };
    let is_settled = settle(&state).await.unwrap_or(false);
    let _ = tokio::time::timeout_at(limit, archivist).await;
    if is_settled {
        // What the archive had written down of its bundles.
        let _ = settle(&state).await;
    }
    ended
}

/// What the loop hears of.
struct Inputs {
    /// Ends it.
    cancel: CancellationToken,
    /// What receivers took.
    delivered: mpsc::Receiver<DeliveryReport>,
    /// At each notification the configuration is read again.
    reloads: Arc<Notify>,
    /// What people ask of it.
    requests: mpsc::Receiver<Command>,
    inbox: mpsc::Receiver<AgentEvent>,
    /// What the sources saw.
    sees: mpsc::Receiver<ObservationBatch>,
}

impl Agent {
    /// The loop, until it is cancelled.
    ///
    /// # Errors
    /// The state answered at last, and is another agent's.
    async fn run_loop(&mut self, inputs: &mut Inputs, effects: &mut Vec<Effect>) -> anyhow::Result<()> {
        let mut tick = tokio::time::interval(self.clock.real(TICK));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut pulse = tokio::time::interval(Duration::from_secs(1));
        let mut sweep = tokio::time::interval(Duration::from_secs(60));
        let mut keep_learned = tokio::time::interval(KEEP_LEARNED);
        keep_learned.reset();
        loop {
            let due = self.until_due();
            tokio::select! {
                biased;
                () = inputs.cancel.cancelled() => return Ok(()),
                Some(report) = inputs.delivered.recv() => self.delivered(report),
                // Another agent has the state, say: its windows are that agent's.
                opened = awaited::opened(&mut self.awaited) => self.take_over(opened?, effects),
                () = inputs.reloads.notified() => self.request_reload(ReloadRequester::Signal),
                read = reload::read(&mut self.reloading) => {
                    if self.reloaded(read, effects) {
                        // What changed since is for the agent after this one.
                        inputs.reloads.notify_one();
                        self.carry_out(effects);
                        return Ok(());
                    }
                }
                Some(command) = inputs.requests.recv() => self.command(command, effects),
                _ = tick.tick() => self.tick(effects),
                () = tokio::time::sleep(due.unwrap_or_default()), if due.is_some() => self.tick(effects),
                _ = pulse.tick() => {
                    self.metrics.queue("inbox", inputs.inbox.len() + inputs.sees.len());
                    self.every_second();
                }
                wanted = self.publisher.wanted() => {
                    self.effort.clone().count(Stage::Publish, || self.publish(wanted));
                }
                _ = sweep.tick() => self.sweep(),
                _ = keep_learned.tick() => self.keep_learned(),
                Some(item) = inputs.inbox.recv() => self.take(item, effects),
                // Last: a log that never ends must not keep the rest from its turn.
                Some(seen) = inputs.sees.recv() => self.observed(seen, effects),
            }
            self.carry_out(effects);
            self.immediate.set(self.is_immediate());
        }
    }
}

impl Agent {
    /// How long until samples that wait may be evaluated. Thousands of groups wait each for another
    /// moment: those that are close together are evaluated together.
    fn until_due(&self) -> Option<Duration> {
        let due = self.watch.due()?;
        Some(self.clock.real(due.since(self.clock.now())).max(TOGETHER))
    }

    /// Whether a line matters at once: it may fire a rule, or open or close a window.
    fn is_immediate(&self) -> bool {
        self.watch.fires_at_once() || !self.running.is_empty() || !self.closing.is_empty()
    }

    /// A server that does not answer a poll of its loads may be another instance when it answers again, long
    /// before the next probe: a window must not be sized by what the one before said.
    fn mark_unanswering_lost(&mut self, seen: &Observation, effects: &mut Vec<Effect>) {
        let &Observation::State {
            target, kind: Source::Loads, problem: Some(Problem::NoAnswer { .. }), ..
        } = seen
        else {
            return;
        };
        let now = self.clock.now();
        self.watch.handle(Event::Server { target, fact: ServerFact::Lost }, now, effects);
        if let Some(probe) = self.probes.get(usize::from(target.0)) {
            probe.notify_one();
        }
    }

    /// A source saw something, which is evaluated together. Its bytes count until it is taken in.
    fn observed(&mut self, mut seen: ObservationBatch, effects: &mut Vec<Effect>) {
        seen.observations.iter().for_each(|seen| self.mark_unanswering_lost(seen, effects));
        let now = self.clock.now();
        seen.observations.iter_mut().for_each(|seen| seen.came_by(now));
        self.effort.count(Stage::Parse, || {
            seen.observations.iter().for_each(|seen| self.watch.read(seen, effects));
        });
        self.effort.count(Stage::Rules, || self.watch.evaluate(now, effects));
        self.update_meters();
    }

    /// Time passes.
    fn tick(&mut self, effects: &mut Vec<Effect>) {
        let now = self.clock.now();
        self.effort.count(Stage::Rules, || self.watch.handle(Event::Tick, now, effects));
    }

    fn take(&mut self, item: AgentEvent, effects: &mut Vec<Effect>) {
        let now = self.clock.now();
        match item {
            AgentEvent::Server { target, fact } => {
                self.watch.handle(Event::Server { target, fact }, now, effects);
                self.warn_of_one_load(target);
            }
            AgentEvent::Window { incident, event } => {
                if let WindowEvent::Refused(_) = &event {
                    self.running.remove(&incident);
                }
                if let WindowEvent::Ended(stored) = &event {
                    if let CaptureOutcome::Failed { why, .. } = &stored.outcome {
                        tracing::warn!(incident = &*incident, "the capture failed: {why}");
                    }
                    self.window_over(&incident, &stored.outcome, stored.end.stalled);
                }
                self.watch.handle(Event::Window { incident, event }, now, effects);
            }
            AgentEvent::Evidence { incident, since, answer } => {
                // A capture that is gone does not need it.
                let _ = answer.send(self.evidence(&incident, since));
            }
            AgentEvent::Compared { incident, window, note } => {
                self.watch.handle(Event::Compared { incident, window, note }, now, effects);
            }
            AgentEvent::NotCompared { incident } => {
                self.watch.handle(Event::NotCompared { incident }, now, effects);
            }
            AgentEvent::LeftOpen { incident } => drop(self.running.remove(&incident)),
            AgentEvent::Recovered { record, taken } => self.recovered(*record, taken, effects),
            AgentEvent::RecoveredCompared { record, note } => self.recovered_verdict(*record, note, effects),
            AgentEvent::Bundled { incident, path } => {
                self.watch.handle(Event::Bundled { incident, path }, now, effects);
            }
            AgentEvent::Swept(space) => self.watch.handle(Event::Swept(space), now, effects),
        }
    }
}
