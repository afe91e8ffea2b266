//! The start of the agent: folders are opened, tasks begin, and the loop gets what it hears of.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, Weak};

use anyhow::Context;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::awaited::{self, AwaitingDisk, OPEN_LIMIT, Opening};
use super::capture::CaptureStore;
use super::notifier::Notifier;
use super::plan::{self, Plan};
use super::reload::Reloading;
use super::startup::{self, Opened};
use super::supervise::Supervisor;
use super::{Agent, EVIDENCE_ROOM, INBOX, Inputs, Run, archive};
use crate::act::systemd;
use crate::clock::Clock;
use crate::http::body::Room;
use crate::http::{Server, client};
use crate::observe::sender::{self, observation_channel};
use crate::serve::metrics::Metrics;
use crate::serve::published::{Vitals, publisher};
use crate::serve::{ApiContext, HandledAlerts};
use skewtrap_core::capture::keep::Keep;
use skewtrap_core::message::Origin;
use skewtrap_core::status::ChartHistory;
use skewtrap_core::watch::Effect;

/// An agent that has begun.
pub(super) struct StartedAgent {
    pub(super) agent: Agent,
    pub(super) inputs: Inputs,
    /// Writes bundles; it ends with the agent.
    pub(super) archivist: JoinHandle<()>,
    /// What is to be carried out of what an agent before it left.
    pub(super) effects: Vec<Effect>,
}

/// Opens what it needs and begins its tasks.
///
/// # Errors
/// As for [`super::run`].
pub(super) async fn begin(plan: Plan, run: Run) -> anyhow::Result<StartedAgent> {
    let Run { clock, cancel, reloads, on_effect, reload, serves, background } = run;
    let (opening, opened, awaits_state) = open(&plan, clock).await?;
    let Opened { state, bundles, found, kept, outbox, token, alerts, only_watch } = opened;
    let mut store = CaptureStore { state: state.clone(), bundles: bundles.clone(), clock, pool: None };
    let supervisor = Supervisor::with_background(background);
    let (tx, inbox) = mpsc::channel(INBOX);
    let (outcomes, delivered) = mpsc::channel(256);
    let client = client::client(None).context("no HTTP client")?;
    let mut notifier = Notifier::start(
        &plan,
        origin_of(&plan),
        &client,
        (state.clone(), outbox),
        clock,
        &supervisor,
        &outcomes,
    );
    let (archive, jobs) = mpsc::unbounded_channel();
    let (folders, until_there) = oneshot::channel();
    let keep = Keep { count: plan.keep.incidents as usize, age: plan.keep.age, bytes: plan.keep.bytes };
    let mut setup = plan.setup.clone();
    setup.policy.watch_only |= only_watch;
    setup.policy.awaits_state = awaits_state;
    let now = clock.now();
    let watch = awaited::watch_of(setup, kept, now);
    let (sender, sees) = observation_channel(sender::ITEMS, sender::BYTES);
    startup::sources(&plan.sources, &supervisor, &sender, clock);
    let probes = startup::probes(&plan.targets, &supervisor, &tx, clock);
    let unheard = startup::names(&plan.targets);
    let (publisher, published) = publisher(Vitals { at: now, unheard, ..Vitals::default() });
    let (effort, immediate) = (sender.effort().clone(), sender.immediate().clone());
    let metrics = Arc::new(Metrics::of(effort.clone()));
    let archivist = tokio::spawn(archive::run(until_there, keep, clock, jobs, tx.clone(), metrics.clone()));
    let start_store = startup::store(&plan, clock, &metrics, &supervisor);
    let own_token = Arc::new(OnceLock::new());
    let (commands, requests) = mpsc::channel(16);
    let handled = Arc::new(HandledAlerts::default());
    handled.add_earlier(alerts);
    if serves {
        let context = ApiContext { published, commands, metrics: metrics.clone(), alerts: handled.clone() };
        let served = startup::serving(&plan, context, &supervisor, own_token.clone()).await;
        let page = |at: SocketAddr| {
            plan.external_url.clone().unwrap_or_else(|| plan::page(&at.to_string(), &plan::host()))
        };
        notifier.set_page(served.map(page));
    }
    let no_server = Server::new(client, "", None, None);
    let known = startup::known(&plan, &no_server);
    let awaited = AwaitingDisk {
        opening,
        setup: plan.setup,
        known: known.clone(),
        folders,
        token: own_token,
        start_store,
    };
    let awaited = match awaits_state {
        true => Some(awaited),
        false => {
            store.pool = awaited.begin(&bundles, &state, token);
            None
        }
    };
    let mut agent = Agent {
        manual_capture: plan.manual_capture,
        only_watch,
        learned_waits: Weak::new(),
        room_waits: Weak::new(),
        evidence_room: Room::new(EVIDENCE_ROOM),
        of_one_load: BTreeSet::new(),
        of_one_load_waits: BTreeSet::new(),
        reload_problem: None,
        handled,
        configured: plan.configured,
        watch,
        awaited,
        clock,
        targets: plan.targets,
        store,
        archive,
        notifier,
        running: BTreeMap::new(),
        closing: BTreeMap::new(),
        no_server,
        supervisor,
        windows: CancellationToken::new(),
        tx,
        publisher,
        chart_history: ChartHistory::default(),
        started: now,
        on_effect,
        metrics,
        effort,
        immediate,
        probes,
        reload,
        reloading: Reloading::default(),
    };
    let mut effects = Vec::new();
    agent.count_dropped();
    agent.recover(found, &known, &mut effects);
    systemd::ready("watching");
    let inputs = Inputs { cancel, delivered, reloads, requests, inbox, sees };
    Ok(StartedAgent { agent, inputs, archivist, effects })
}

/// What the folders hold, and whether they have not answered yet: then the agent goes on with nothing, and opens them
/// as soon as they do.
async fn open(plan: &Plan, clock: Clock) -> anyhow::Result<(Opening, Opened, bool)> {
    let mut opening = Opening::begin(plan, clock);
    match tokio::time::timeout(OPEN_LIMIT, opening.opened()).await.ok().transpose()? {
        Some(opened) => Ok((opening, opened, false)),
        None => {
            awaited::tell(&opening);
            Ok((opening, Opened::nothing(plan)?, true))
        }
    }
}

fn origin_of(plan: &Plan) -> Origin {
    let incidents = Some(plan.incident_dir.display().to_string());
    Origin { host: plan::host(), incidents, ..Origin::default() }
}
