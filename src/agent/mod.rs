//! The loop: owns clock, tasks and shutdown; carries out what `decide` asks for.
//!
//! Everything that happens arrives in one inbox; the core turns it into effects; each effect is a
//! method here. Nothing in the loop waits for the network or reads a large file: windows, bundles,
//! comparisons and deliveries are tasks of their own.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod archive;
mod asked;
pub mod capture;
pub mod clock;
pub mod command;
pub mod compare;
pub mod examine;
pub mod history;
pub mod load;
pub mod look;
pub mod merged;
pub mod nsys;
pub mod plan;
pub mod post;
pub mod receivers;
pub mod report;
pub mod supervise;
pub mod task;
pub mod window;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::archive::{Archive, Job};
use self::asked::by_hand;
use self::capture::{Desk, Known};
use self::clock::{Clock, wall_time};
use self::plan::{Plan, SitePlan, SourcePlan};
use self::post::Post;
use self::supervise::Supervisor;
use self::task::Task;
use self::window::{Heard, Site};
use crate::act::bundle::Bundles;
use crate::act::nsys::Nsys;
use crate::act::state::State;
use crate::act::systemd;
use crate::decide::capture::admit::Grant;
use crate::decide::capture::keep::Keep;
use crate::decide::incident::{CaptureOutcome, Incident, Record, VerdictNote};
use crate::decide::rule::change::Change;
use crate::decide::signal::catalog;
use crate::decide::signal::observation::Observation;
use crate::decide::signal::sample::TargetId;
use crate::decide::status::Status;
use crate::decide::time::Time;
use crate::decide::watch::{Effect, Event, ServerFact, TICK, Watch, WindowNews};
use crate::explain::message::{Origin, Update};
use crate::http::client;
use crate::observe::{poll, promql, tail};
use crate::serve::metrics::Metrics;
use crate::serve::{self, Command, Doors, ServeConfig};

/// Observations that may wait; when it is full the sources wait, and say so.
const INBOX: usize = 1024;
/// What closing an open window may take at the end.
pub const GRACE: Duration = Duration::from_secs(12);
/// How far before the onset the evidence of a bundle reaches.
const BEFORE: Duration = Duration::from_secs(120);

/// Everything that happens.
#[derive(Debug)]
pub enum Inbox {
    /// A source saw something.
    Observed(Observation),
    /// A server was looked at.
    Server {
        /// Which.
        target: TargetId,
        /// What was seen.
        fact: ServerFact,
    },
    /// A window went on.
    Window {
        /// Its incident.
        incident: Arc<str>,
        /// How.
        news: WindowNews,
        /// Where its bundle lies.
        bundle: Option<String>,
    },
    /// A capture asks for the evidence of its bundle.
    Evidence {
        /// The incident.
        incident: Box<Incident>,
        /// Its onset.
        since: Time,
        /// Where it goes.
        answer: oneshot::Sender<Vec<u8>>,
    },
    /// The ranks of a capture were compared.
    Compared {
        /// Its incident.
        incident: Arc<str>,
        /// What it said.
        note: VerdictNote,
    },
}

/// A window that is under way.
#[derive(Debug)]
struct Running {
    heard: mpsc::Sender<Heard>,
    target: TargetId,
}

/// What the embedder of the agent (the demo) wants to see of it.
pub type OnEffect = Box<dyn FnMut(&Effect) + Send>;

/// The agent.
pub struct Agent {
    watch: Watch,
    clock: Clock,
    sites: Vec<SitePlan>,
    desk: Desk,
    archive: Archive,
    post: Post,
    running: BTreeMap<Arc<str>, Running>,
    supervisor: Supervisor,
    windows: CancellationToken,
    tx: mpsc::Sender<Inbox>,
    status: watch::Sender<Arc<Status>>,
    started: Time,
    on_effect: OnEffect,
    metrics: Arc<Metrics>,
    reload: Box<dyn Fn() -> anyhow::Result<Reload> + Send>,
    by_hand: Arc<crate::decide::rule::Rule>,
}

/// What a configuration that was read again changes.
pub struct Reload {
    /// The rules.
    pub rules: Vec<crate::decide::rule::Rule>,
    /// The signals.
    pub catalog: Arc<catalog::Catalog>,
    /// The patterns.
    pub patterns: Vec<crate::decide::signal::pattern::Pattern>,
}

/// How the agent is run.
pub struct Run {
    /// Its clock.
    pub clock: Clock,
    /// Ends it.
    pub cancel: CancellationToken,
    /// Each one reads the configuration again.
    pub reloads: mpsc::Receiver<()>,
    /// Hears of every effect.
    pub on_effect: OnEffect,
    /// Reads the configuration again.
    pub reload: Box<dyn Fn() -> anyhow::Result<Reload> + Send>,
    /// Whether the API is served.
    pub serves: bool,
}

/// Runs until cancelled; then closes what is open.
///
/// # Errors
/// The state or the bundles cannot be opened: another agent has them, or the disk forbids it.
pub async fn run(plan: Plan, run: Run) -> anyhow::Result<()> {
    let Run { clock, cancel, mut reloads, on_effect, reload, serves } = run;
    let state = State::open(&plan.state_dir)?;
    let bundles = Bundles::open(&plan.incident_dir, state.agent().clone())?;
    let desk = Desk { state: state.clone(), bundles: bundles.clone(), clock };
    let recovered = capture::recover(&desk, &known(&plan), &cancel).await?;
    let supervisor = Supervisor::default();
    let (tx, mut inbox) = mpsc::channel(INBOX);
    let (outcomes, mut delivered) = mpsc::channel(256);
    let origin = Origin { host: host(), page: serves.then(|| format!("http://{}", plan.listen)) };
    let client = client::client(None).context("no HTTP client")?;
    let post = Post::start(
        plan.receivers.clone(),
        plan.storm_cap,
        origin,
        &client,
        state.clone(),
        clock,
        &supervisor,
        &outcomes,
    );
    let (archive, jobs) = mpsc::unbounded_channel();
    let keep = Keep { count: plan.keep.incidents as usize, age: plan.keep.age, bytes: plan.keep.bytes };
    let archivist = tokio::spawn(archive::run(bundles, state.agent().clone(), keep, clock, jobs));
    let mut setup = plan.setup.clone();
    setup.ledger = state.ledger()?;
    let now = clock.now();
    let watch = Watch::new(setup, now);
    start_sources(&plan.sources, &supervisor, &tx, clock);
    for site in &plan.sites {
        let site = site.clone();
        let (tx, cancel) = (tx.clone(), supervisor.cancel());
        supervisor.keep("look", move || look::run(site.clone(), tx.clone(), clock, cancel.clone()));
    }
    let (status, shown) = watch::channel(Arc::new(Status::default()));
    let metrics = Arc::new(Metrics::default());
    let (commands, mut asked) = mpsc::channel(16);
    if serves {
        serve(&plan, shown, commands, metrics.clone(), &supervisor).await;
    }
    let mut agent = Agent {
        by_hand: Arc::new(by_hand(&plan)),
        watch,
        clock,
        sites: plan.sites,
        desk,
        archive,
        post,
        running: BTreeMap::new(),
        supervisor,
        windows: CancellationToken::new(),
        tx,
        status,
        started: now,
        on_effect,
        metrics,
        reload,
    };
    agent.tell_recovered(recovered);
    systemd::ready("watching");
    let mut tick = tokio::time::interval(clock.real(TICK));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut publish = tokio::time::interval(Duration::from_secs(1));
    let mut sweep = tokio::time::interval(Duration::from_secs(60));
    let mut effects = Vec::new();
    loop {
        tokio::select! {
            biased;
            () = cancel.cancelled() => break,
            Some(item) = inbox.recv() => agent.take(item, &mut effects),
            Some(outcome) = delivered.recv() => agent.post.delivered(&outcome),
            Some(()) = reloads.recv() => agent.reload_told(&mut effects),
            Some(command) = asked.recv() => agent.command(command, &mut effects),
            _ = tick.tick() => agent.watch.handle(Event::Tick, agent.clock.now(), &mut effects),
            _ = publish.tick() => agent.publish(),
            _ = sweep.tick() => agent.sweep(),
        }
        agent.carry_out(&mut effects);
    }
    agent.stop(&mut inbox, &mut delivered).await;
    drop(agent);
    let _ = tokio::time::timeout(GRACE, archivist).await;
    Ok(())
}

impl Agent {
    fn take(&mut self, item: Inbox, effects: &mut Vec<Effect>) {
        let now = self.clock.now();
        match item {
            Inbox::Observed(seen) => self.watch.handle(Event::Observed(seen), now, effects),
            Inbox::Server { target, fact } => {
                self.watch.handle(Event::Server { target, fact }, now, effects);
            }
            Inbox::Window { incident, news, bundle } => {
                if let Some(path) = bundle {
                    self.watch.handle(Event::Bundled { incident: incident.clone(), path }, now, effects);
                }
                if let WindowNews::Ended { outcome, end } = &news {
                    self.running.remove(&incident);
                    self.count_window(&incident, outcome, end.stalled);
                }
                self.watch.handle(Event::Window { incident, news }, now, effects);
            }
            Inbox::Evidence { incident, since, answer } => {
                // A capture that is gone does not need it.
                let _ = answer.send(self.evidence(&incident, since));
            }
            Inbox::Compared { incident, note } => {
                self.watch.handle(Event::Compared { incident, note }, now, effects);
            }
        }
    }

    fn carry_out(&mut self, effects: &mut Vec<Effect>) {
        for effect in effects.drain(..) {
            (self.on_effect)(&effect);
            match effect {
                Effect::Start { incident, target, grant } => self.start(*incident, target, *grant),
                Effect::Changed { change, capture, why } => self.changed(&change, capture, why.as_deref()),
                Effect::Cleared { incident } => self.hear(&incident, Heard::Cleared),
                Effect::ProfileLine { incident, rank, line } => {
                    self.hear(&incident, Heard::Line { rank, line })
                }
                Effect::Dying { target, line } => {
                    error!(target = self.site_name(target), "the server's log says that it dies: {line}");
                    self.hear_on(target, &Heard::Gone(line));
                }
                Effect::Notify { incident, update, receivers } => self.notify(*incident, update, &receivers),
                Effect::Trouble { said, is_over: true, .. } => info!("{said}"),
                Effect::Trouble { said, .. } => warn!("{said}"),
                Effect::Answered { .. } => {}
            }
        }
    }

    /// The attempt is written to the state by the task, before it sends anything.
    fn start(&mut self, incident: Incident, target: TargetId, grant: Grant) {
        let Some(site) = self.site(target) else { return };
        let (heard, hears) = mpsc::channel(256);
        self.running.insert(incident.id.clone(), Running { heard, target });
        let task = Task { incident, grant, site, desk: self.desk.clone(), tx: self.tx.clone() };
        self.supervisor.once(task.run(hears, self.windows.child_token()));
    }

    fn site(&self, target: TargetId) -> Option<Site> {
        let plan = self.sites.get(usize::from(target.0))?;
        let facts = self.watch.facts(target)?;
        site_of(plan, facts.health.median().unwrap_or_default())
    }

    fn changed(&self, change: &Change, capture: &str, why: Option<&str>) {
        let (rule, state) = (&*change.rule.name, change.state.word());
        info!(target = change.target.as_deref(), rule, state, "{}", change.text(capture, why));
        self.metrics.transition(&change.rule.name, change.state.into());
    }

    fn notify(&mut self, incident: Incident, update: Update, receivers: &[Arc<str>]) {
        if let (Update::Refused, CaptureOutcome::Refused { .. }) = (update, &incident.capture) {
            self.metrics.refusal(&incident.rule, "refused");
        }
        self.post.tell(&incident, update, receivers, self.clock);
        if update == Update::Captured {
            self.forget(&incident.id);
        }
        let waits = self.running.contains_key(&incident.id);
        let job = if update == Update::Fired && !waits {
            let evidence = self.evidence(&incident, incident.finding.onset);
            let record = Box::new(Record::new(self.desk.state.agent().clone(), incident));
            Job::Create { record, evidence, files: Vec::new(), done: None }
        } else {
            Job::Update(Box::new(incident))
        };
        // The archive ends only with the agent.
        let _ = self.archive.send(job);
    }

    /// `evidence.jsonl`: the group's samples from two minutes before the onset on.
    fn evidence(&self, incident: &Incident, onset: Time) -> Vec<u8> {
        let mut lines = Vec::new();
        let catalog = self.watch.store().catalog().clone();
        for seen in self.watch.evidence(incident, onset - BEFORE) {
            let line = serde_json::json!({
                "t": seen.at, "signal": catalog.name_of(seen.signal), "rank": seen.rank,
                "value": seen.value, "source": seen.source,
            });
            lines.extend_from_slice(line.to_string().as_bytes());
            lines.push(b'\n');
        }
        lines
    }

    fn hear(&self, incident: &str, told: Heard) {
        if let Some(running) = self.running.get(incident) {
            // A window that hears nothing any more is over; one with 256 things to hear has enough.
            let _ = running.heard.try_send(told);
        }
    }

    fn hear_on(&self, target: TargetId, told: &Heard) {
        for running in self.running.values().filter(|r| r.target == target) {
            let _ = running.heard.try_send(told.clone());
        }
    }

    fn site_name(&self, target: TargetId) -> &str {
        self.sites.get(usize::from(target.0)).map_or("server", |s| &s.name)
    }

    fn count_window(&self, incident: &str, outcome: &CaptureOutcome, stalled: Duration) {
        if let Some(known) = self.watch.incident(incident) {
            self.metrics.capture(&known.rule, "http", outcome.word());
            self.metrics.stall(&known.target, stalled.as_secs_f64());
        }
    }

    fn publish(&mut self) {
        if let Some(jump) = self.clock.follow(wall_time()) {
            warn!(jump_s = jump, "the wall clock was set; times from here on are the new clock's");
        }
        let mut status = self.watch.status(self.clock.now());
        status.started = self.started;
        status.receivers = self.post.standing();
        for (target, site) in status.targets.iter_mut().zip(&self.sites) {
            target.url = site.server.as_ref().map(|s| s.base().to_owned()).unwrap_or_default();
        }
        self.metrics.restarts(self.supervisor.restarts());
        self.status.send_replace(Arc::new(status));
        systemd::alive();
    }

    fn sweep(&self) {
        let _ = self.post.offer_again();
        if let Err(error) = self.desk.state.prune(self.clock.now()) {
            error!("{error}");
        }
        let _ = self.archive.send(Job::MakeRoom(0));
    }

    /// Windows that an agent before this one left open are closed by now: people are told.
    fn tell_recovered(&mut self, records: Vec<Record>) {
        for record in records {
            warn!(
                incident = &*record.incident.id,
                "a window was left open by an agent before this one; it is closed"
            );
            self.post.tell(&record.incident, Update::Captured, &[], self.clock);
            self.forget(&record.incident.id);
        }
    }

    /// The message of a capture is in the outbox: nothing of it can be lost any more.
    fn forget(&self, incident: &str) {
        if let Err(error) = self.desk.state.forget(incident) {
            error!("{error}");
        }
    }

    fn reload_told(&mut self, effects: &mut Vec<Effect>) {
        systemd::reloading();
        match self.reload_now(effects) {
            Ok(rules) => info!("the configuration was read again; {rules} rules are in force"),
            Err(error) => warn!("{error:#}; the old rules stay in force"),
        }
        systemd::ready("watching");
    }

    fn command(&mut self, command: Command, effects: &mut Vec<Effect>) {
        let answer = self.answer(command.ask, effects);
        // Nobody may be waiting any more.
        let _ = command.answer.send(answer);
    }

    /// Closes open windows, says what is known, ends every task.
    async fn stop(
        &mut self,
        inbox: &mut mpsc::Receiver<Inbox>,
        delivered: &mut mpsc::Receiver<crate::act::notify::Outcome>,
    ) {
        systemd::stopping(GRACE);
        self.windows.cancel();
        let limit = tokio::time::Instant::now() + GRACE;
        let mut effects = Vec::new();
        while !self.running.is_empty() {
            let Ok(Some(item)) = tokio::time::timeout_at(limit, inbox.recv()).await else { break };
            self.take(item, &mut effects);
            self.carry_out(&mut effects);
        }
        // What can be delivered at once is; the rest is in the outbox.
        while let Ok(Some(outcome)) = tokio::time::timeout(Duration::from_millis(200), delivered.recv()).await
        {
            self.post.delivered(&outcome);
        }
        if !self.supervisor.stop(Duration::from_secs(2)).await {
            warn!("some tasks did not end in 2 s and are left behind");
        }
    }
}

fn site_of(plan: &SitePlan, health: Duration) -> Option<Site> {
    Some(Site {
        server: plan.server.clone()?,
        target: plan.name.to_string(),
        paths: plan.paths.clone(),
        default_dir: None,
        sees_log: plan.sees_log,
        nsys: Nsys::new("nsys"),
        health,
        usual: BTreeMap::new(),
    })
}

/// The servers, as closing a window that was left behind needs them.
fn known(plan: &Plan) -> BTreeMap<String, Known> {
    let log_of = |target| {
        plan.sources.iter().find_map(|source| match source {
            SourcePlan::Tail(c) if c.target == target && c.path.as_os_str() != "-" => Some(c.path.clone()),
            _ => None,
        })
    };
    let sites = plan.sites.iter().filter_map(|site| {
        let known = Known { site: site_of(site, Duration::ZERO)?, log: log_of(site.target) };
        Some((site.name.to_string(), known))
    });
    sites.collect()
}

fn start_sources(sources: &[SourcePlan], supervisor: &Supervisor, tx: &mpsc::Sender<Inbox>, clock: Clock) {
    let (seen, mut sees) = mpsc::channel(INBOX);
    let onward = tx.clone();
    supervisor.once(async move {
        while let Some(observation) = sees.recv().await {
            if onward.send(Inbox::Observed(observation)).await.is_err() {
                return;
            }
        }
    });
    let now: crate::observe::Now = Arc::new(move || clock.now());
    for source in sources.iter().cloned() {
        let (seen, cancel, now) = (seen.clone(), supervisor.cancel(), now.clone());
        match source {
            SourcePlan::Tail(c) => {
                supervisor
                    .keep("log", move || tail::run(c.clone(), seen.clone(), cancel.clone(), now.clone()));
            }
            SourcePlan::Poll(c) => {
                supervisor
                    .keep("poll", move || poll::run(c.clone(), seen.clone(), cancel.clone(), now.clone()));
            }
            SourcePlan::Query(c) => {
                supervisor
                    .keep("query", move || promql::run(c.clone(), seen.clone(), cancel.clone(), now.clone()));
            }
        }
    }
}

async fn serve(
    plan: &Plan,
    status: watch::Receiver<Arc<Status>>,
    commands: mpsc::Sender<Command>,
    metrics: Arc<Metrics>,
    supervisor: &Supervisor,
) {
    let parsed = |text: &str| text.parse().map_err(|e| warn!("`listen: {text}` is no address: {e}")).ok();
    let Some(listen) = parsed(&plan.listen) else { return };
    let config = ServeConfig {
        listen,
        metrics_listen: plan.metrics_listen.as_deref().and_then(parsed),
        token: plan.token.clone(),
        hosts: Vec::new(),
        incident_dir: plan.incident_dir.clone(),
    };
    match serve::Server::bind(&config, Doors { status, commands, metrics }).await {
        Ok(server) => {
            if let Some(address) = server.address() {
                info!("status page and API on http://{address}");
            }
            let cancel = supervisor.cancel();
            supervisor.once(server.run(cancel));
        }
        Err(error) => warn!("{error}; the watching goes on without the API"),
    }
}

fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
