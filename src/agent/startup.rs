//! What is started with the agent: its state and bundles, sources, probes of the servers, the API.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::{Notify, mpsc};
use tracing::{error, info, warn};

use super::capture::KnownTarget;
use super::plan::{Plan, SourcePlan, TargetPlan};
use super::supervise::{Place, Supervisor};
use super::window::TargetHandle;
use super::{AgentEvent, probe};
use crate::act::bundle::Bundles;
use crate::act::nsys::Nsys;
use crate::act::state::{State, StateError};
use crate::clock::Clock;
use crate::http::{Secret, Server};
use crate::observe::outlet::Outlet;
use crate::observe::{host, poll, promql, tail};
use crate::serve::metrics::Metrics;
use crate::serve::published::Published;
use crate::serve::{self, ApiContext, Command, ServeConfig};

/// The state and the bundles. On a volume that cannot be written nothing would keep count of windows or
/// take their files, so the watching goes on without any.
pub(super) fn open(plan: &mut Plan) -> Result<(State, Bundles), StateError> {
    let state = match State::open(&plan.state_dir) {
        // Its windows are that agent's.
        Err(error @ (StateError::InUse { .. } | StateError::Newer { .. })) => return Err(error),
        Err(error) => {
            only_watch(plan, &error);
            State::in_memory()?
        }
        Ok(state) => state,
    };
    if let Some(why) = state.read_only() {
        error!(
            "{why}; what it holds was read, so windows that are open are closed, but no other is opened until that is corrected and the agent is restarted"
        );
        plan.setup.policy.watch_only = true;
    }
    let addresses = plan.targets.iter().filter_map(|target| {
        let address = target.server.as_ref()?.address()?;
        Some((target.name.to_string(), address))
    });
    match state.servers_are(&addresses.collect::<Vec<_>>()) {
        Ok(renamed) => renamed.iter().for_each(|(old, new)| {
            tracing::info!(
                "{new} is the server that was called {old}: its windows and limits are taken over"
            );
        }),
        // A disk that takes no writes is told above, and by every write after this one.
        Err(error) => tracing::warn!("{error}"),
    }
    let agent = state.agent().clone();
    let bundles = Bundles::open(&plan.incident_dir, agent.clone()).unwrap_or_else(|error| {
        only_watch(plan, &error);
        Bundles::at(&plan.incident_dir, agent)
    });
    Ok((state, bundles))
}

fn only_watch(plan: &mut Plan, error: &dyn std::error::Error) {
    error!(
        "{error}; the agent keeps watching, but opens no window until that is corrected and the agent is restarted"
    );
    plan.setup.policy.watch_only = true;
}

/// A server as captures need it; `no_server` stands in where a target has none.
pub(super) fn handle_of(plan: &TargetPlan, no_server: &Server) -> TargetHandle {
    TargetHandle {
        server: plan.server.as_ref().unwrap_or(no_server).clone(),
        target: plan.name.to_string(),
        instance: None,
        paths: plan.paths.clone(),
        default_dir: None,
        sees_log: plan.sees_log,
        log: plan.log.clone(),
        nsys: Nsys::new("nsys"),
    }
}

/// The servers, as closing a window that was left behind needs them.
pub(super) fn known(plan: &Plan, no_server: &Server) -> BTreeMap<String, KnownTarget> {
    let log_of = |target| {
        plan.sources.iter().find_map(|source| match source {
            SourcePlan::Tail(c) if c.target == target && c.path.as_os_str() != "-" => Some(c.path.clone()),
            _ => None,
        })
    };
    let known = |target: &TargetPlan| KnownTarget {
        handle: handle_of(target, no_server),
        log: log_of(target.target),
    };
    plan.targets.iter().map(|target| (target.name.to_string(), known(target))).collect()
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
        supervisor.keep("probe", Place::Aside, move || {
            probe::run(target.clone(), tx.clone(), clock, rooms.clone(), told.clone(), cancel.clone())
        });
        lost
    };
    targets.iter().map(start).collect()
}

/// Follows what is to be followed.
pub(super) fn sources(sources: &[SourcePlan], supervisor: &Supervisor, outlet: &Outlet, clock: Clock) {
    let now: crate::observe::Now = Arc::new(move || clock.now());
    let mut logs = Vec::new();
    for source in sources.iter().cloned() {
        let (outlet, cancel, now) = (outlet.clone(), supervisor.cancel(), now.clone());
        match source {
            SourcePlan::Tail(c) => logs.push(c),
            SourcePlan::Poll(c) => {
                supervisor.keep("poll", Place::Here, move || {
                    poll::run(c.clone(), outlet.clone(), cancel.clone(), now.clone())
                });
            }
            SourcePlan::Host(c) => {
                supervisor.keep("host", Place::Aside, move || {
                    host::run(c.clone(), outlet.clone(), cancel.clone(), now.clone())
                });
            }
            SourcePlan::Query(c) => {
                supervisor.keep("query", Place::Here, move || {
                    promql::run(c.clone(), outlet.clone(), cancel.clone(), now.clone())
                });
            }
        }
    }
    for logs in tail::by_folder(logs) {
        let (outlet, cancel, now) = (outlet.clone(), supervisor.cancel(), now.clone());
        supervisor.keep("log", Place::Here, move || {
            tail::run(logs.clone(), outlet.clone(), cancel.clone(), now.clone())
        });
    }
}

/// Serves the status page and the API.
pub(super) async fn serving(
    plan: &Plan,
    published: Published,
    commands: mpsc::Sender<Command>,
    metrics: Arc<Metrics>,
    supervisor: &Supervisor,
) {
    let parsed = |text: &str| {
        text.parse::<SocketAddr>().map_err(|e| warn!("`listen: {text}` is no address: {e}")).ok()
    };
    let Some(listen) = parsed(&plan.listen) else { return };
    let config = ServeConfig {
        listen,
        metrics_listen: plan.metrics_listen.as_deref().and_then(parsed),
        token: token_of(plan, listen),
        hosts: plan.hosts.clone(),
        incident_dir: plan.incident_dir.clone(),
    };
    let (server, problems) =
        serve::ApiServer::bind(&config, ApiContext { published, commands, metrics }).await;
    for problem in problems {
        warn!("{problem}; the watching goes on without it");
    }
    if let Some(address) = server.address() {
        info!("status page and API on http://{address}");
    }
    if let Some(address) = server.metrics_address() {
        info!("health and metrics alone on http://{address}");
    }
    supervisor.once(server.run(supervisor.cancel()));
}

/// The configured token; on loopback, where none is configured, the agent's own.
fn token_of(plan: &Plan, listen: SocketAddr) -> Option<Secret> {
    if plan.token.is_some() || !listen.ip().is_loopback() {
        return plan.token.clone();
    }
    let own = serve::token::own(&plan.state_dir);
    own.map_err(|e| warn!("{e}; nothing can be changed through the API: set `token`, or correct that")).ok()
}
