//! The state and the bundles are read at the start on a thread of their own, for their disk may hang. Where it
//! does, the agent watches all the same: it keeps what it must in memory and opens no window, since nobody
//! knows which windows are open and how much of the budgets is used. When the disk is back it goes on as an
//! agent that was started at that moment, but for what was told meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{info, warn};

use super::archive::Job;
use super::capture::CaptureStore;
use super::plan::Plan;
use super::pool::Pool;
use super::startup::{self, Kept, Opened, Reading};
use super::window::TargetHandle;
use super::{Agent, StartStore};
use crate::act::bundle::Bundles;
use crate::act::state::State;
use crate::clock::Clock;
use crate::http::Secret;
use skewtrap_core::incident::{Incident, Record};
use skewtrap_core::rule::Rule;
use skewtrap_core::status::Scope;
use skewtrap_core::watch::{Effect, Event, Setup, Watch};
use skewtrap_trace::time::Time;

/// How long the start waits for the state. A disk takes milliseconds, and a second where thousands of bundles
/// are looked at; whoever waits longer does not see what the servers do.
pub(super) const OPEN_LIMIT: Duration = Duration::from_secs(3);

/// The state and the bundles while they are being read.
#[derive(Debug)]
pub(super) struct Opening {
    opened: JoinHandle<anyhow::Result<Opened>>,
    reading: Reading,
    since: Instant,
}

impl Opening {
    /// Begins to read what the plan names.
    pub(super) fn begin(plan: &Plan, clock: Clock) -> Self {
        let reading = Reading::of(&plan.state_dir);
        let (places, told) = (startup::Places::of(plan), reading.clone());
        let opened = crate::world::blocking(move || startup::open(&places, clock, &told));
        Self { opened, reading, since: Instant::now() }
    }

    /// Until everything is read.
    ///
    /// # Errors
    /// Another agent has the state, a later release wrote it, or it is broken.
    pub(super) async fn opened(&mut self) -> anyhow::Result<Opened> {
        (&mut self.opened).await?
    }

    /// What keeps the agent waiting, and since when.
    fn trouble(&self) -> String {
        let folder = self.reading.now().display().to_string();
        let s = self.since.elapsed().as_secs();
        format!(
            "the disk of the folder {folder} has not answered since the agent started {s} s ago: it watches, but opens no window and closes none that an agent before it left open, and what it tells is kept in memory only"
        )
    }
}

/// What is needed when the disk answers.
pub(super) struct AwaitingDisk {
    pub(super) opening: Opening,
    /// The core's part as it was configured last, without a ledger.
    pub(super) setup: Setup,
    /// The servers, as closing a window that was left behind needs them.
    pub(super) known: BTreeMap<String, TargetHandle>,
    /// Where the archive waits for its folders.
    pub(super) folders: oneshot::Sender<(Bundles, State)>,
    /// The API's own token.
    pub(super) token: Arc<OnceLock<Secret>>,
    pub(super) start_store: StartStore,
}

impl AwaitingDisk {
    /// The folders are there: whatever waits for them begins. Gives the lease of the pool, where there is a store.
    pub(super) fn begin(self, bundles: &Bundles, state: &State, token: Option<Secret>) -> Option<Pool> {
        let pool = (self.start_store)(bundles, state);
        // The archive ends only with the agent.
        let _ = self.folders.send((bundles.clone(), state.clone()));
        if let Some(token) = token {
            // It is set here alone.
            let _ = self.token.set(token);
        }
        pool
    }
}

/// Resolves when the pending state folder has been read; never if none is pending.
pub(super) async fn opened(awaited: &mut Option<AwaitingDisk>) -> anyhow::Result<Opened> {
    match awaited {
        Some(awaited) => awaited.opening.opened().await,
        None => std::future::pending().await,
    }
}

/// Tells that the agent goes on without its state.
pub(super) fn tell(opening: &Opening) {
    warn!("{}; when the disk answers, what it holds is taken over", opening.trouble());
}

/// A core that goes on with what an agent before it kept.
pub(super) fn watch_of(setup: Setup, kept: Kept, now: Time) -> Watch {
    let Kept { ledger, silences, learned_servers, incidents } = kept;
    let mut watch = Watch::new(Setup { ledger, ..setup }, now);
    for silence in silences {
        watch.handle(Event::Silenced(silence), now, &mut Vec::new());
    }
    watch.remember(learned_servers, now);
    watch.take_up(incidents, now);
    watch
}

impl Agent {
    /// What is wrong with the disk that the agent waits for since its start.
    pub(super) fn awaited_disk(&self) -> Option<String> {
        self.awaited.as_ref().map(|awaited| awaited.opening.trouble())
    }

    /// The disk of the state answers: what it holds counts from now on, and what was told and learned without
    /// it is added.
    pub(super) fn take_over(&mut self, opened: Opened, effects: &mut Vec<Effect>) {
        let Some(awaited) = self.awaited.take() else { return };
        let (mut setup, known) = (awaited.setup.clone(), awaited.known.clone());
        let Opened { state, bundles, found, mut kept, outbox, token, alerts, only_watch } = opened;
        info!("the disk of the state answers: its windows, limits and messages are taken over");
        let now = self.clock.now();
        setup.policy.watch_only |= only_watch;
        self.only_watch = only_watch;
        setup.policy.awaits_state = false;
        let rules = setup.rules.clone();
        let told = self.unresolved(now);
        self.add_learned(&mut kept, now);
        self.watch = watch_of(setup, kept, now);
        self.store =
            CaptureStore { state: state.clone(), bundles: bundles.clone(), clock: self.clock, pool: None };
        self.notifier.switch_state(state.clone(), outbox, now);
        self.count_dropped();
        let budget = awaited.setup.policy.budget.clone();
        self.store.pool = awaited.begin(&bundles, &state, token);
        if let Some(pool) = &self.store.pool {
            // It may have been read again meanwhile.
            pool.set_budget(budget);
        }
        self.handled.add_earlier(alerts);
        let all = self.handled.all();
        state.later(move |state| state.save_alerts(&all));
        self.recover(found, &known, effects);
        for incident in told {
            if self.watch.incident(&incident.id).is_none() {
                self.end_without_core(incident, &rules);
            }
        }
        // What was known of the servers is gone with the core that knew it.
        self.probes.iter().for_each(|probe| probe.notify_one());
        self.metrics.disk.tell(self.disk_trouble());
        self.save_ongoing();
        self.make_room();
    }

    /// The incidents that are not over.
    fn unresolved(&self, now: Time) -> Vec<Incident> {
        let scope = Scope { limit: 0, ranks: false, ..Scope::ALL };
        let all = self.watch.overview(&scope, now).incidents;
        all.into_iter().filter(|incident| incident.resolved_at.is_none()).collect()
    }

    /// Adds what was learned without the disk to what it holds, which counts where both know something.
    fn add_learned(&self, kept: &mut Kept, now: Time) {
        kept.silences.extend(self.watch.silences().iter().cloned());
        let known: BTreeSet<_> =
            kept.learned_servers.iter().map(|baseline| baseline.target.clone()).collect();
        let learned = self.watch.learned_servers(now).into_iter();
        kept.learned_servers.extend(learned.filter(|baseline| !known.contains(&baseline.target)));
        kept.incidents.extend(self.watch.kept_incidents());
    }

    /// Tells the end of an incident that was told without the disk, and that the core does not go on with: one
    /// from before the start is of the same firing.
    fn end_without_core(&mut self, incident: Incident, rules: &[Rule]) {
        let notify = rules.iter().find(|rule| rule.name == incident.rule).map(|rule| rule.notify.clone());
        let mut record =
            Record::new(self.store.state.agent().clone(), incident).notifying(notify.unwrap_or_default());
        let silenced_until = self.silenced_until(&record);
        let archive = self.archive.clone();
        self.notifier.send_left(&mut record, silenced_until, self.clock, move |incident| {
            // Behind its creation, which waited for the disk.
            let _ = archive.send(Job::Update(Box::new(incident)));
        });
    }
}
