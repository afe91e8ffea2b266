//! What is started with the agent: its state and bundles, sources, probes of the servers, the API.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio::sync::{Notify, mpsc};
use tracing::{error, info, warn};

use super::capture::{CaptureStore, Found, find};
use super::plan::{Plan, SourcePlan, TargetPlan};
use super::supervise::{Supervisor, TaskPlacement};
use super::window::TargetHandle;
use super::{AgentEvent, StartStore, probe};
use crate::act::bundle::Bundles;
use crate::act::nsys::Nsys;
use crate::act::state::{OutboxRow, State, StateError};
use crate::clock::Clock;
use crate::http::{Secret, Server};
use crate::observe::sender::ObservationSender;
use crate::observe::trace::nsight::remove_leftovers;
use crate::observe::{host, poll, promql, tail};
use crate::serve::metrics::Metrics;
use crate::serve::{self, AlertKey, ApiContext, ServeConfig};
use skewtrap_core::capture::facts::Sizes;
use skewtrap_core::capture::governor::Ledger;
use skewtrap_core::capture::window::EXPORT_LIMIT;
use skewtrap_core::incident::{CaptureOutcome, Incident};
use skewtrap_core::rule::LearnedServer;
use skewtrap_core::status::Silence;
use skewtrap_core::watch::KeptIncident;

/// The folders that are opened at the start, and whose servers they know.
#[derive(Debug)]
pub(super) struct Places {
    state_dir: PathBuf,
    incident_dir: PathBuf,
    /// The servers that may have been called otherwise before, by name and address.
    servers: Vec<(String, String)>,
    /// Whether the API needs a token of the agent's own.
    wants_token: bool,
}

impl Places {
    /// Those of a plan.
    pub(super) fn of(plan: &Plan) -> Self {
        // Addresses of pods are used again: the next pod there is another server.
        let named = plan.targets.iter().filter(|target| !target.is_discovered);
        let servers = named.filter_map(|target| {
            let address = target.server.as_ref()?.address()?;
            Some((target.name.to_string(), address))
        });
        let is_local = plan.listen.parse::<SocketAddr>().is_ok_and(|listen| listen.ip().is_loopback());
        Self {
            state_dir: plan.state_dir.clone(),
            incident_dir: plan.incident_dir.clone(),
            servers: servers.collect(),
            // On loopback, where none is configured.
            wants_token: plan.token.is_none() && is_local,
        }
    }
}

/// Which folder is being read, for people.
#[derive(Clone, Debug)]
pub(super) struct Reading(Arc<Mutex<PathBuf>>);

impl Reading {
    /// It begins with that one.
    pub(super) fn of(folder: &Path) -> Self {
        Self(Arc::new(Mutex::new(folder.to_owned())))
    }

    fn goes_on_with(&self, folder: &Path) {
        folder.clone_into(&mut crate::world::lock(&self.0));
    }

    /// The one that is being read.
    pub(super) fn now(&self) -> PathBuf {
        crate::world::lock(&self.0).clone()
    }
}

/// What an agent before this one kept, for the core.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) ledger: Ledger,
    pub(super) silences: Vec<Silence>,
    pub(super) learned_servers: Vec<LearnedServer>,
    pub(super) incidents: Vec<KeptIncident>,
}

/// How long what an earlier life of this agent does is waited for: its longest wait is for the answer to a stop.
const EARLIER_LIFE: Duration = Duration::from_secs(EXPORT_LIMIT.as_secs() + 60);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What the folders hold.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) state: State,
    pub(super) bundles: Bundles,
    pub(super) found: Found,
    pub(super) kept: Kept,
    pub(super) outbox: Vec<OutboxRow>,
    pub(super) token: Option<Secret>,
    /// The alerts of other systems that have asked for a capture.
    pub(super) alerts: Vec<AlertKey>,
    /// Nothing would keep count of windows, or take their files.
    pub(super) only_watch: bool,
}

impl Opened {
    /// Nothing, for as long as the folders cannot be read.
    pub(super) fn nothing(plan: &Plan) -> anyhow::Result<Self> {
        let state = State::in_memory()?;
        let bundles = Bundles::at(&plan.incident_dir, state.agent().clone());
        let (found, kept) = Default::default();
        let (outbox, alerts) = Default::default();
        Ok(Self { state, bundles, found, kept, outbox, token: None, alerts, only_watch: false })
    }
}

/// Opens the state and the bundles and reads what is in them: all of it may wait for a disk. On a volume that
/// cannot be written nothing would keep count of windows or take their files, so the watching goes on without
/// any.
pub(super) fn open(places: &Places, clock: Clock, reading: &Reading) -> anyhow::Result<Opened> {
    let mut only_watch = false;
    let state = match open_state(&places.state_dir) {
        // Its windows are that agent's.
        Err(error @ (StateError::InUse { .. } | StateError::Newer { .. })) => return Err(error.into()),
        Err(error) => {
            only_watch = true;
            tell_only_watch(&error);
            State::in_memory_as(Some(&id_without_state(&places.incident_dir)))?
        }
        Ok(state) => state,
    };
    if let Some(why) = state.read_only() {
        error!(
            "{why}; what it holds was read, so windows that are open are closed, but no other is opened until that is corrected and the agent is restarted"
        );
        only_watch = true;
    }
    match state.servers_are(&places.servers) {
        Ok(renamed) => renamed.iter().for_each(|(old, new)| {
            info!("{new} is the server that was called {old}: its windows and limits are taken over");
        }),
        // A disk that takes no writes is told above, and by every write after this one.
        Err(error) => warn!("{error}"),
    }
    let token = places.wants_token.then(|| own_token(&places.state_dir)).flatten();
    let agent = state.agent().clone();
    let temp = std::env::temp_dir();
    reading.goes_on_with(&temp);
    // An export holds the environment of the profiled processes.
    remove_leftovers(&temp);
    reading.goes_on_with(&places.incident_dir);
    let bundles = Bundles::open(&places.incident_dir, agent.clone()).unwrap_or_else(|error| {
        only_watch = true;
        tell_only_watch(&error);
        Bundles::at(&places.incident_dir, agent)
    });
    let found = find(&CaptureStore { state: state.clone(), bundles: bundles.clone(), clock, pool: None })?;
    if let Some(error) = &found.unwritable {
        only_watch = true;
        tell_only_watch(error);
    }
    let mut incidents = state.open_incidents()?;
    bring_up_to_date(&mut incidents, &found, &bundles);
    reading.goes_on_with(&places.state_dir);
    let mut ledger = state.ledger()?;
    for (id, end) in &found.unwritten {
        let attempt = ledger.attempts.iter_mut().find(|attempt| attempt.id == *id);
        attempt.into_iter().for_each(|attempt| attempt.end = Some(end.clone()));
    }
    let kept = Kept { ledger, silences: state.silences()?, learned_servers: state.baselines()?, incidents };
    // What is undelivered waits in it, whether or not it can be read now.
    let outbox = state.undelivered().unwrap_or_default();
    let alerts = state.alerts().unwrap_or_default();
    Ok(Opened { state, bundles, found, kept, outbox, token, alerts, only_watch })
}

/// The id of an agent whose state keeps none: its next start must know its bundles, or nobody would delete
/// them or end their incidents.
fn id_without_state(incident_dir: &Path) -> String {
    let of = format!("{}:{}", super::plan::host(), incident_dir.display());
    let digest = Sha256::digest(of.as_bytes());
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Opens the state; where an earlier life of this agent has it still, once that is done. A stop of its may be
/// answered only when everything is exported, and the next life must know how.
fn open_state(folder: &Path) -> Result<State, StateError> {
    let until = Instant::now() + EARLIER_LIFE;
    let mut is_told = false;
    loop {
        let is_ours = State::is_held_here(folder);
        match State::open(folder) {
            Err(StateError::InUse { .. }) if is_ours && Instant::now() < until => {
                if !std::mem::replace(&mut is_told, true) {
                    warn!(
                        "a window of the agent before this one is still being closed; until that is done nothing is opened"
                    );
                }
                std::thread::sleep(LOOK_AGAIN);
            }
            opened => return opened,
        }
    }
}

/// The incidents that are open are kept now and then, and not where the disk is full: the bundle of one may know
/// how its capture ended. What the state has of that is told yet.
fn bring_up_to_date(incidents: &mut [KeptIncident], found: &Found, bundles: &Bundles) {
    let is_known = |id: &str| {
        let left = found.left.iter().map(|(_, record)| record);
        found.finished.iter().chain(left).any(|record| *record.incident.id == *id)
    };
    let is_open = |incident: &Incident| matches!(incident.capture, CaptureOutcome::Open { .. });
    for kept in incidents.iter_mut().filter(|kept| is_open(&kept.incident) && !is_known(&kept.incident.id)) {
        let there = bundles.read(&kept.incident.id).map(|record| record.incident);
        if let Some(there) = there.filter(|there| !is_open(there)) {
            kept.captured_since(there);
        }
    }
}

fn tell_only_watch(error: &dyn std::error::Error) {
    error!(
        "{error}; the agent keeps watching, but opens no window until that is corrected and the agent is restarted"
    );
}

/// The agent's own token, which programs on this machine read.
fn own_token(state_dir: &Path) -> Option<Secret> {
    let own = serve::token::own(state_dir);
    own.map_err(|e| warn!("{e}; nothing can be changed through the API: set `token`, or correct that")).ok()
}

/// A server as captures need it; `no_server` stands in where a target has none.
pub(super) fn handle_of(plan: &TargetPlan, no_server: &Server) -> TargetHandle {
    TargetHandle {
        server: plan.server.as_ref().unwrap_or(no_server).clone(),
        target: plan.name.to_string(),
        instance: None,
        sizes: Sizes::default(),
        paths: plan.paths.clone(),
        default_dir: None,
        sees_log: plan.sees_log,
        logs: plan.logs.clone(),
        nsys: Nsys::new("nsys"),
    }
}

/// The servers, as closing a window that was left behind needs them.
pub(super) fn known(plan: &Plan, no_server: &Server) -> BTreeMap<String, TargetHandle> {
    plan.targets.iter().map(|target| (target.name.to_string(), handle_of(target, no_server))).collect()
}

/// What the servers are called.
pub(super) fn names(targets: &[TargetPlan]) -> Arc<[Arc<str>]> {
    targets.iter().map(|target| target.name.clone()).collect()
}

/// Starts a probe of each server; gives, in their order, how each is told that a source lost its server.
pub(super) fn probes(
    targets: &[TargetPlan],
    supervisor: &Supervisor,
    tx: &mpsc::Sender<AgentEvent>,
    clock: Clock,
) -> Vec<Arc<Notify>> {
    let rooms = probe::Rooms::default();
    let start = |target: &TargetPlan| {
        let (target, tx, cancel) = (target.clone(), tx.clone(), supervisor.cancel());
        let (rooms, lost) = (rooms.clone(), Arc::new(Notify::new()));
        let told = lost.clone();
        supervisor.keep("probe", TaskPlacement::Background, move || {
            probe::run(target.clone(), tx.clone(), clock, rooms.clone(), told.clone(), cancel.clone())
        });
        lost
    };
    targets.iter().map(start).collect()
}

/// Follows what is to be followed.
pub(super) fn sources(
    sources: &[SourcePlan],
    supervisor: &Supervisor,
    sender: &ObservationSender,
    clock: Clock,
) {
    let now: crate::observe::Now = Arc::new(move || clock.now());
    let mut logs = Vec::new();
    for source in sources.iter().cloned() {
        let (sender, cancel, now) = (sender.clone(), supervisor.cancel(), now.clone());
        match source {
            SourcePlan::Tail(c) => logs.push(c),
            SourcePlan::Poll(c) => {
                supervisor.keep("poll", TaskPlacement::Here, move || {
                    poll::run(c.clone(), sender.clone(), cancel.clone(), now.clone())
                });
            }
            SourcePlan::Host(c) => {
                supervisor.keep("host", TaskPlacement::Background, move || {
                    host::run(c.clone(), sender.clone(), cancel.clone(), now.clone())
                });
            }
            SourcePlan::Query(c) => {
                supervisor.keep("query", TaskPlacement::Here, move || {
                    promql::run(c.clone(), sender.clone(), cancel.clone(), now.clone())
                });
            }
        }
    }
    for logs in tail::by_folder(logs) {
        let (sender, cancel, now) = (sender.clone(), supervisor.cancel(), now.clone());
        supervisor.keep("log", TaskPlacement::Here, move || {
            tail::run(logs.clone(), sender.clone(), cancel.clone(), now.clone())
        });
    }
}

/// What starts the uploads of bundles and keeps the lease of the pool, when their folders are there.
pub(super) fn store(
    plan: &Plan,
    clock: Clock,
    metrics: &Arc<Metrics>,
    supervisor: &Supervisor,
) -> StartStore {
    #[cfg(feature = "fleet")]
    {
        let (config, metrics, supervisor) = (plan.store.clone(), metrics.clone(), supervisor.clone());
        let budget = plan.setup.policy.budget.clone();
        let servers = plan.targets.iter().filter_map(|t| Some((t.name.to_string(), t.server.clone()?)));
        let servers = servers.collect();
        Box::new(move |bundles, state| {
            let to = config.map(super::upload::LazyDestination::new);
            super::upload::start(to.clone(), bundles, clock, &metrics, &supervisor);
            Some(super::pool::start(to?, budget, servers, state, &metrics, &supervisor))
        })
    }
    #[cfg(not(feature = "fleet"))]
    {
        let _ = (plan, clock, metrics, supervisor);
        Box::new(|_, _| None)
    }
}

/// Serves the status page and the API: where, or why not.
pub(super) async fn serving(
    plan: &Plan,
    context: ApiContext,
    supervisor: &Supervisor,
    own_token: Arc<OnceLock<Secret>>,
) -> Result<SocketAddr, String> {
    let parsed = |text: &str| {
        let no_address = |e| format!("`listen: {text}` is no address: {e}");
        text.parse::<SocketAddr>().map_err(no_address).inspect_err(|why| warn!("{why}"))
    };
    let listen = parsed(&plan.listen)?;
    let config = ServeConfig {
        listen,
        metrics_listen: plan.metrics_listen.as_deref().and_then(|text| parsed(text).ok()),
        token: plan.token.clone(),
        own_token,
        hosts: plan.hosts.clone(),
        incident_dir: plan.incident_dir.clone(),
    };
    let (server, problems) = serve::ApiServer::bind(&config, context).await;
    for problem in &problems {
        warn!("{problem}; the watching goes on without it");
    }
    let served = server.address().ok_or_else(|| {
        warn!("messages have no link to a page, since this agent serves none");
        format!("it is not served, for {listen} cannot be listened at (is another agent there?)")
    });
    if let Some(address) = server.address() {
        info!("status page and API on http://{address}");
    }
    // Nobody waits for the disk.
    let (state_dir, address) = (plan.state_dir.clone(), server.address());
    drop(crate::world::blocking(move || serve::token::keep_address(&state_dir, address)));
    if let Some(address) = server.metrics_address() {
        info!("health and metrics alone on http://{address}");
    }
    supervisor.once("API", server.run(supervisor.cancel()));
    served
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::act::state::{OpenMethod, WindowRow};
    use skewtrap_core::incident::Record;

    fn places(dir: &Path) -> Places {
        let (state_dir, incident_dir) = (dir.join("state"), dir.join("incidents"));
        Places { state_dir, incident_dir, servers: Vec::new(), wants_token: false }
    }

    fn opened(dir: &Path) -> Opened {
        let places = places(dir);
        open(&places, Clock::start(), &Reading::of(&places.state_dir)).expect("the agent watches")
    }

    /// An incident that fires, as the state keeps it.
    fn kept(incident: &Incident) -> KeptIncident {
        serde_json::from_value(serde_json::json!({
            "incident": incident, "rule": incident.rule, "group": {}, "firing": "", "is_told": false,
            "silenced": null, "refusal_reported": 0, "is_behind": false,
        }))
        .expect("its words")
    }

    #[test]
    fn a_state_that_an_earlier_life_of_this_agent_still_has_is_waited_for() {
        let dir = tempfile::tempdir().expect("a folder");
        let before = opened(dir.path());
        let (tell, told) = std::sync::mpsc::channel();
        let folder = dir.path().to_owned();
        let next = std::thread::spawn(move || {
            tell.send(()).expect("somebody waits");
            opened(&folder).only_watch
        });
        told.recv().expect("it begins");
        std::thread::sleep(3 * LOOK_AGAIN);
        assert!(!next.is_finished(), "it waits");
        drop(before);
        assert!(!next.join().expect("it goes on"));
        assert!(!State::is_held_here(&dir.path().join("state")));
    }

    #[test]
    fn the_bundles_of_an_agent_without_a_state_are_its_own_at_its_next_start() {
        let dir = tempfile::tempdir().expect("a folder");
        // No folder can be made there.
        std::fs::write(dir.path().join("state"), "").expect("written");
        {
            let Opened { state, bundles, only_watch, .. } = opened(dir.path());
            assert!(only_watch);
            let mut record = crate::act::record_of_a_test("i1", 1.0);
            record.agent = state.agent().clone();
            bundles.create(&record, b"").expect("written");
        }
        let next = opened(dir.path());
        let known: Vec<_> = next.bundles.fired_since(skewtrap_trace::time::Time::default());
        assert_eq!(known.iter().map(|record| &*record.incident.id).collect::<Vec<_>>(), ["i1"]);
    }

    #[test]
    fn an_incident_that_was_kept_before_its_capture_ended_is_as_its_bundle_says() {
        let dir = tempfile::tempdir().expect("a folder");
        let now = Clock::start().now();
        {
            let Opened { state, bundles, .. } = opened(dir.path());
            let mut record = crate::act::record_of_a_test("i1", 1.0);
            record.agent = state.agent().clone();
            record.incident.capture = CaptureOutcome::Open { since: now, expects: None };
            state.save_known(&[], &[kept(&record.incident)]).expect("written");
            // The disk was full from then on.
            record.incident.capture = CaptureOutcome::Failed { why: "it failed".into(), captured: None };
            bundles.create(&record, b"").expect("written");
        }
        let [there] = &opened(dir.path()).kept.incidents[..] else { panic!("one is kept") };
        assert_eq!(there.incident.capture.word(), "failed");
    }

    #[test]
    fn a_bundle_that_cannot_be_completed_keeps_no_window_from_being_closed() {
        let dir = tempfile::tempdir().expect("a folder");
        let now = Clock::start().now();
        {
            let Opened { state, .. } = opened(dir.path());
            let mut record = crate::act::record_of_a_test("i1", 1.0);
            record.agent = state.agent().clone();
            record.incident.capture = CaptureOutcome::Open { since: now, expects: None };
            let attempt = crate::act::attempt_of_a_test("i1/1");
            let window = WindowRow::of(&attempt, OpenMethod::Command { group: None }, now);
            state.begin(&attempt, &window, Some(&record)).expect("written");
            // Killed while its record was written, to a disk that now takes no writes.
            std::fs::create_dir_all(dir.path().join("incidents/.i1.partial/incident.json"))
                .expect("a folder");
        }
        let Opened { found, only_watch, .. } = opened(dir.path());
        let left: Vec<_> = found.left.iter().map(|(window, _)| &*window.attempt).collect();
        assert_eq!((left, only_watch), (vec!["i1/1"], true));
    }

    #[test]
    fn what_the_state_alone_knows_of_a_capture_stays_there_as_long_as_its_bundle_cannot_be_written() {
        let dir = tempfile::tempdir().expect("a folder");
        let in_the_way = dir.path().join("incidents/i1/incident.json");
        {
            let Opened { state, .. } = opened(dir.path());
            let record = Record { agent: state.agent().clone(), ..crate::act::record_of_a_test("i1", 1.0) };
            state.save_incident(&record).expect("written");
            state.reported("i1").expect("written");
            std::fs::create_dir_all(&in_the_way).expect("a folder");
        }
        let rows = || {
            let Opened { state, bundles, .. } = opened(dir.path());
            state.settle(Duration::from_secs(5));
            (state.unfinished_incidents().expect("readable").len(), bundles.read("i1").is_some())
        };
        assert_eq!(rows(), (1, false));
        std::fs::remove_dir(&in_the_way).expect("removed");
        assert_eq!(rows(), (0, true));
    }

    #[test]
    fn a_state_that_takes_no_writes_ends_no_agent_that_finds_something_to_finish() {
        let dir = tempfile::tempdir().expect("a folder");
        {
            let Opened { state, .. } = opened(dir.path());
            state.save_incident(&crate::act::record_of_a_test("i1", 1.0)).expect("written");
            state.reported("i1").expect("written");
        }
        let database = dir.path().join("state/state.sqlite");
        let other = rusqlite::Connection::open(database).expect("the same database");
        let refuse = "CREATE TRIGGER full BEFORE DELETE ON incidents BEGIN SELECT RAISE(ABORT, 'full'); END";
        other.execute_batch(refuse).expect("made");
        let Opened { state, .. } = opened(dir.path());
        state.settle(std::time::Duration::from_secs(5));
        assert!(state.failed().is_some(), "it is told");
        other.execute_batch("DROP TRIGGER full").expect("gone");
        state.retry_unwritten();
        assert_eq!(state.unfinished_incidents().expect("readable"), [], "and done as soon as it can be");
    }
}
