//! Keeps the lease of the pool: takes it for one window after the other, and gives it back however long the store
//! is away meanwhile.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{Ask, HeldLease, Pool, TAKE_LIMIT, WAITING, gather};
use crate::act::state::{State, StateError};
use crate::agent::cost::{Reach, instance_of};
use crate::agent::plan::host;
use crate::agent::supervise::Supervisor;
use crate::agent::upload::LazyDestination;
use crate::clock::{Clock, wall_time};
use crate::config::store::{KubernetesLease, OnLeaseLoss, StoreConfig};
use crate::http::kubernetes::{Api, IDENTITY};
use crate::http::{Server, client};
use crate::serve::metrics::Metrics;
use crate::world::boot_time;
use skewtrap_core::capture::governor::{Budget, Estimate};
use skewtrap_core::capture::refusal::Refusal;
use skewtrap_core::fleet::gather::Gathered;
use skewtrap_core::fleet::lease::{
    Answer, GiveBackStep, Intent, LeaseRequest, LeaseRequestStep, LeaseReturn, Proof, StoreClock, WindowEnd,
};
use skewtrap_fleet::kubernetes::Access;
use skewtrap_fleet::lease::PoolLease;
use skewtrap_fleet::upload::Destination;

/// What giving it back may take before it is tried again.
const GIVE_BACK_LIMIT: Duration = Duration::from_secs(20);
/// Between the first two tries of that, and of looking up what an agent before this one left; then twice as
/// long each time.
const AGAIN: Duration = Duration::from_secs(5);
/// A lease is tried to be given back again after so long at most: a disk that hangs keeps a thread of each
/// try, and has a few hundred of them. Others wait no longer than its window may last.
const LONGEST_GIVE_BACK: Duration = Duration::from_secs(120);
/// What an agent before this one left is looked up again after so long at most.
const LONGEST_LOOK_UP: Duration = Duration::from_secs(600);
/// A request that was given up arrives within this, or never.
const LATE: Duration = Duration::from_secs(150);
/// The store's clock is measured anew after this, and people are told when it is far from ours.
const MEASURED_FOR: Duration = Duration::from_secs(600);
/// Of how many parts in a million two quartz clocks may differ.
const DRIFT: f64 = 200e-6;

/// Starts to keep the lease; gives what windows ask.
pub(in crate::agent) fn start(
    to: LazyDestination,
    budget: Budget,
    servers: Vec<(String, Server)>,
    state: &State,
    metrics: &Arc<Metrics>,
    supervisor: &Supervisor,
) -> Pool {
    let (asks, asked) = mpsc::channel(WAITING);
    let on_lease_loss = to.config().on_lease_loss;
    let budget = Arc::new(Mutex::new(budget));
    let keeper = LeaseKeeper::new(to, budget.clone(), servers, state.clone(), metrics.clone());
    supervisor.once("lease of the pool", keeper.run(asked, supervisor.cancel()));
    Pool { asks, on_lease_loss, budget }
}

/// When something is asked of the store, again and again until it answers.
#[derive(Clone, Copy, Debug)]
struct Retry {
    due: Instant,
    /// The pause before; `None` before its first silence.
    pause: Option<Duration>,
}

impl Retry {
    /// First after so long.
    fn after(wait: Duration) -> Self {
        Self { due: Instant::now() + wait, pause: None }
    }

    /// Whether the store has not been silent yet: its first silence is told.
    const fn is_first(&self) -> bool {
        self.pause.is_none()
    }

    /// The store was silent: again later, and later each time up to `longest`. Jittered, for agents that lost
    /// their store together.
    fn again(self, longest: Duration) -> Self {
        let pause = self.pause.map_or(AGAIN, |before| (2 * before).min(longest));
        Self { due: Instant::now() + pause.mul_f64(0.5 + fastrand::f64()), pause: Some(pause) }
    }
}

/// A lease that is to be given back.
struct Return {
    back: LeaseReturn,
    intent: Intent,
    end: WindowEnd,
    retry: Retry,
}

/// A lease of an agent before this one, which is to be looked up in the store and given back.
struct UnresolvedLease {
    /// The attempt whose window was closed, and how it ended; `None` for whichever the state knows to be closed.
    closed: Option<(String, WindowEnd)>,
    retry: Retry,
}

struct LeaseKeeper {
    to: LazyDestination,
    budget: Arc<Mutex<Budget>>,
    steady: Clock,
    lease: Option<PoolLease>,
    measured: Option<(StoreClock, Instant)>,
    /// The takes of windows that have not ended.
    held: BTreeSet<String>,
    returns: Vec<Return>,
    unresolved: Vec<UnresolvedLease>,
    servers: Vec<(String, Server)>,
    state: State,
    metrics: Arc<Metrics>,
}

impl LeaseKeeper {
    fn new(
        to: LazyDestination,
        budget: Arc<Mutex<Budget>>,
        servers: Vec<(String, Server)>,
        state: State,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            to,
            budget,
            steady: Clock::start().steady(),
            lease: None,
            measured: None,
            held: BTreeSet::new(),
            returns: Vec::new(),
            unresolved: Vec::new(),
            servers,
            state,
            metrics,
        }
    }

    async fn run(mut self, mut asked: mpsc::Receiver<Ask>, cancel: CancellationToken) {
        self.look_at_clocks().await;
        self.find(None).await;
        loop {
            let retries = self.returns.iter().map(|r| r.retry).chain(self.unresolved.iter().map(|u| u.retry));
            let due = retries.map(|retry| retry.due).min();
            let ask = tokio::select! {
                ask = asked.recv() => ask,
                () = wait_until(due), if due.is_some() => {
                    self.find_due().await;
                    self.give_back_due(|_| true, GIVE_BACK_LIMIT).await;
                    continue;
                }
                () = cancel.cancelled() => break,
            };
            match ask {
                Some(ask) => self.on(ask).await,
                None => break,
            }
        }
        // Windows end before the agent does: what they gave back last is still told, once.
        while let Ok(Some(ask)) = tokio::time::timeout(Duration::from_secs(1), asked.recv()).await {
            if !matches!(ask, Ask::Take { .. }) {
                self.on(ask).await;
            }
        }
    }

    async fn on(&mut self, ask: Ask) {
        match ask {
            Ask::Take { intent, expected, answer } => {
                // A window that waits for a store which does not answer misses the onset.
                self.give_back_due(|back| back.retry.is_first(), TAKE_LIMIT).await;
                let taken = self.take(*intent, expected).await;
                if let Err(Ok(Some(held))) = answer.send(taken) {
                    // Its window is gone.
                    self.give_back(held.granted.intent.clone(), WindowEnd::default(), Duration::ZERO).await;
                }
            }
            Ask::GiveBack { intent, end } => self.give_back(*intent, end, Duration::ZERO).await,
            Ask::Closed { attempt, end } => self.find(Some((attempt, end))).await,
            Ask::Announce(manifest) => {
                let to = self.to.clone();
                tokio::spawn(async move { gather::announce(&to, &manifest).await });
            }
            Ask::Gather { manifest, here, folder, until, answer } => {
                let to = self.to.clone();
                tokio::spawn(async move {
                    let gathered =
                        async { gather::gather(&to.get().await?, &manifest, &here, &folder, until).await };
                    let gathered = gathered.await.unwrap_or_else(|error| {
                        // No word of it would read as if there were no such agents.
                        let remark = format!(
                            "whether the agents of other nodes brought them could not be asked ({error:#})"
                        );
                        Some(Gathered { remarks: vec![remark], ..Gathered::default() })
                    });
                    // Its window is gone.
                    let _ = answer.send(gathered);
                });
            }
        }
    }

    async fn lease(&mut self) -> anyhow::Result<PoolLease> {
        if let Some(lease) = &self.lease {
            return Ok(lease.clone());
        }
        let lease = lease_of(self.to.config(), &self.to.get().await?, self.state.agent());
        Ok(self.lease.insert(lease).clone())
    }

    async fn take(&mut self, intent: Intent, expected: Estimate) -> Result<Option<HeldLease>, Refusal> {
        let agent = self.state.agent().to_string();
        let nonce = format!("{agent}-{:016x}", fastrand::u64(..));
        let server = self.servers.iter().find(|(name, _)| *name == intent.target);
        let server = server.and_then(|(_, server)| server.address());
        let intent = Intent { agent, host: host(), server, nonce, ..intent };
        let (steady, boot) = (self.steady, boot_time());
        let step = match self.lease().await {
            Err(error) => LeaseRequestStep::Refused(Refusal::PoolLease { why: format!("{error:#}") }),
            Ok(mut lease) => {
                let budget = crate::world::lock(&self.budget).clone();
                let mut take = LeaseRequest::new(intent, budget, expected, self.clock());
                let known = ProofSources {
                    state: &self.state,
                    held: &self.held,
                    returns: &self.returns,
                    servers: &self.servers,
                };
                let asking = async {
                    let mut step = take.begin();
                    loop {
                        step = lease.take(&mut take, step, || steady.now()).await;
                        let LeaseRequestStep::Prove(open) = &step else { return step };
                        let proof = known.proof_of(open).await;
                        step = take.on(Answer::Proven(proof), steady.now());
                    }
                };
                let step = tokio::time::timeout(TAKE_LIMIT, asking)
                    .await
                    .unwrap_or_else(|_| LeaseRequest::gave_up());
                self.learn(&lease);
                if !matches!(step, LeaseRequestStep::Taken(_)) && take.may_have_it() {
                    // The request may have arrived, or still arrive. The answer does not wait for that.
                    let intent = take.intent().clone();
                    self.later(intent.clone(), WindowEnd::default(), Duration::ZERO);
                    self.later(intent, WindowEnd::default(), LATE);
                }
                step
            }
        };
        match step {
            LeaseRequestStep::Taken(granted) => {
                self.metrics.lease.tell(None);
                if let Some(before) = &granted.after_unproven {
                    warn!(
                        "the lease of the pool is taken over: the agent on {} has not said that its window on {} is closed",
                        before.host, before.target
                    );
                    self.metrics.pool_overlap("unproven");
                }
                info!(
                    attempt = granted.intent.attempt,
                    fence = granted.fence,
                    "the lease of the pool is taken"
                );
                self.held.insert(granted.intent.nonce.clone());
                let granted = Arc::from(granted);
                Ok(Some(HeldLease { granted, steady, boot, was_late: Arc::default() }))
            }
            LeaseRequestStep::Refused(refusal @ Refusal::PoolLease { .. }) => {
                self.metrics.lease.tell(Some(refusal.to_string()));
                match self.to.config().on_lease_loss {
                    OnLeaseLoss::Refuse => Err(refusal),
                    OnLeaseLoss::LocalBudget => {
                        warn!(
                            "a window is opened without the lease of the pool (on_lease_loss: local_budget): {refusal}"
                        );
                        Ok(None)
                    }
                }
            }
            LeaseRequestStep::Refused(refusal) => {
                self.metrics.lease.tell(None);
                Err(refusal)
            }
            _ => Err(Refusal::PoolLease { why: "it was left half way".into() }),
        }
    }

    /// The store's clock as it was measured, where that is not too long ago.
    fn clock(&self) -> Option<StoreClock> {
        let (clock, at) = self.measured?;
        let age = at.elapsed();
        (age < MEASURED_FOR)
            .then_some(StoreClock { error_s: clock.error_s + age.as_secs_f64() * DRIFT, ..clock })
    }

    fn learn(&mut self, lease: &PoolLease) {
        let before = self.lease.as_ref().and_then(PoolLease::clock);
        if lease.clock() != before
            && let Some(clock) = lease.clock()
        {
            self.measured = Some((clock, Instant::now()));
        }
        self.lease = Some(lease.clone());
    }

    /// Whether this host's clock is right, by the store's.
    async fn look_at_clocks(&mut self) {
        let Ok(mut lease) = self.lease().await else { return };
        let asked = tokio::time::timeout(GIVE_BACK_LIMIT, lease.measure(wall_time)).await;
        match asked {
            Ok(Ok(clock)) => {
                if let Some(complaint) = clock.complaint() {
                    warn!("{complaint}");
                }
            }
            // The uploads say what is wrong with the store.
            Ok(Err(error)) => info!("the clock of the store cannot be read: {error}"),
            Err(_) => info!("the store does not say what time it is within {} s", GIVE_BACK_LIMIT.as_secs()),
        }
    }

    /// Gives back what an agent before this one took: the lease of an attempt whose window was closed, or what its
    /// state knows to be closed, or never started. A store that is away is asked again.
    async fn find(&mut self, closed: Option<(String, WindowEnd)>) {
        self.unresolved.push(UnresolvedLease { closed, retry: Retry::after(Duration::ZERO) });
        self.find_due().await;
    }

    async fn find_due(&mut self) {
        let now = Instant::now();
        let (due, waiting) =
            std::mem::take(&mut self.unresolved).into_iter().partition(|u| u.retry.due <= now);
        self.unresolved = waiting;
        let due: Vec<UnresolvedLease> = due;
        if due.is_empty() {
            return;
        }
        // A window that is asked for waits no longer for a store that was silent before.
        let is_first = due.iter().any(|u| u.retry.is_first());
        let open = match self.open(if is_first { GIVE_BACK_LIMIT } else { TAKE_LIMIT }).await {
            Ok(open) => open.filter(|o| o.agent == **self.state.agent() && !self.held.contains(&o.nonce)),
            Err(why) => {
                if is_first {
                    warn!(
                        "what an agent before this one had of the lease of the pool is not given back yet ({why}); it is tried again"
                    );
                }
                let again =
                    |u: UnresolvedLease| UnresolvedLease { retry: u.retry.again(LONGEST_LOOK_UP), ..u };
                self.unresolved.extend(due.into_iter().map(again));
                return;
            }
        };
        let Some(open) = open else { return };
        let told = due.iter().filter_map(|u| u.closed.as_ref()).find(|(attempt, _)| *attempt == open.attempt);
        let end = match told {
            Some((_, end)) => Some(end.clone()),
            None if due.iter().any(|u| u.closed.is_none()) => end_of(&self.state, &open).await,
            None => None,
        };
        if let Some(end) = end {
            self.give_back(open, end, Duration::ZERO).await;
        }
    }

    /// The window of the pool that is, or may be, open.
    async fn open(&mut self, limit: Duration) -> Result<Option<Intent>, String> {
        let mut lease = self.lease().await.map_err(|error| format!("{error:#}"))?;
        match tokio::time::timeout(limit, lease.latest()).await {
            Ok(latest) => Ok(latest.map_err(|e| e.to_string())?.and_then(|latest| latest.state.open)),
            Err(_) => Err("the store does not answer".into()),
        }
    }

    async fn give_back(&mut self, intent: Intent, end: WindowEnd, after: Duration) {
        self.later(intent, end, after);
        self.give_back_due(|_| true, GIVE_BACK_LIMIT).await;
    }

    fn later(&mut self, intent: Intent, end: WindowEnd, after: Duration) {
        let back = LeaseReturn::new(intent.clone(), end.clone());
        self.returns.push(Return { back, intent, end, retry: Retry::after(after) });
    }

    /// Gives back what is due and wanted, each within `limit`.
    async fn give_back_due(&mut self, is_wanted: impl Fn(&Return) -> bool, limit: Duration) {
        let now = Instant::now();
        let (due, waiting): (Vec<Return>, Vec<Return>) =
            std::mem::take(&mut self.returns).into_iter().partition(|r| r.retry.due <= now && is_wanted(r));
        self.returns = waiting;
        for mut back in due {
            let step = match self.lease().await {
                Err(error) => GiveBackStep::Again(format!("{error:#}")),
                Ok(mut lease) => {
                    let asking = lease.give_back(&mut back.back);
                    let step = tokio::time::timeout(limit, asking).await;
                    self.learn(&lease);
                    step.unwrap_or_else(|_| GiveBackStep::Again("the store does not answer".into()))
                }
            };
            match step {
                GiveBackStep::Done { overtaken } => {
                    self.held.remove(&back.intent.nonce);
                    info!(attempt = back.intent.attempt, "the lease of the pool is given back");
                    if overtaken {
                        error!(
                            "while the window of {} was open, another agent took the lease of the pool over: two windows may have been open at once",
                            back.intent.target
                        );
                        self.metrics.pool_overlap("overtaken");
                    }
                }
                GiveBackStep::Again(why) => {
                    if back.retry.is_first() {
                        warn!("the lease of the pool is not given back yet ({why}); it is tried again");
                    }
                    let retry = back.retry.again(LONGEST_GIVE_BACK);
                    self.returns.push(Return { retry, ..back });
                }
                GiveBackStep::Read | GiveBackStep::Create { .. } => {}
            }
        }
    }
}

/// The lease of a pool, where the configuration says that it is; `agent` asks.
pub fn lease_of(config: &StoreConfig, to: &Destination, agent: &str) -> PoolLease {
    let Some(KubernetesLease { name, namespace, api }) = config.lease.clone() else {
        return PoolLease::new(to.store.clone(), to.pool.clone(), agent);
    };
    let known = OnceLock::new();
    let access = move || {
        let Api { address, authorities, token, namespace } =
            Api::now(api.as_deref(), namespace.as_deref(), Path::new(IDENTITY)).map_err(|e| e.to_string())?;
        // It holds roots and connections.
        let client = match known.get() {
            Some(client) => client,
            None => {
                let made = client::client(authorities.as_deref()).map_err(|e| e.to_string())?;
                known.get_or_init(|| made)
            }
        };
        let token = token.map(|token| token.reveal().to_owned());
        Ok(Access { client: client.clone(), api: address, namespace, token })
    };
    PoolLease::in_kubernetes(skewtrap_fleet::kubernetes::KubernetesLease::new(Arc::new(access), name))
}

/// Whether a store can be written, read and listed and lets agents take turns, and whether its clock is ours.
///
/// # Errors
/// It cannot, and why.
pub async fn try_out(config: &StoreConfig, to: &Destination) -> Result<(), String> {
    to.store.try_out(&to.host).await.map_err(|e| e.to_string())?;
    if config.lease.is_none() {
        to.store.try_conditional_put(&to.host).await.map_err(|e| e.to_string())?;
    }
    let mut lease = lease_of(config, to, &to.host);
    lease.try_out().await.map_err(|e| e.to_string())?;
    let clock = lease.measure(wall_time).await.map_err(|e| e.to_string())?;
    clock.complaint().map_or(Ok(()), Err)
}

async fn wait_until(due: Option<Instant>) {
    if let Some(due) = due {
        tokio::time::sleep_until(due).await;
    }
}

/// How the window of this agent's intent ended, where the state says that nothing is open: it was proven
/// closed, or never begun. `None` of one that may be open. One that was closed counts in the pool's budget,
/// whoever finds it first after a restart.
async fn end_of(state: &State, open: &Intent) -> Option<WindowEnd> {
    let (of, attempt) = (state.clone(), open.attempt.clone());
    let known = crate::world::blocking(move || Ok::<_, StateError>((of.ledger()?, of.knows(&attempt)?)));
    let (ledger, is_known) = known.await.ok()?.ok()?;
    let Some(known) = ledger.attempts.into_iter().find(|a| a.id == open.attempt) else {
        // A state that was copied to another host knows nothing of what is begun there, nor does this release
        // of a row that it cannot read.
        return (!is_known && open.host == host()).then(WindowEnd::default);
    };
    let end = known.end.filter(|end| end.unproven.is_none())?;
    Some(WindowEnd { was_sent: true, stall_s: end.stalled.as_secs_f64(), bytes: end.bytes, unproven: None })
}

/// What this agent knows of the windows of the pool.
struct ProofSources<'a> {
    state: &'a State,
    held: &'a BTreeSet<String>,
    returns: &'a [Return],
    servers: &'a [(String, Server)],
}

impl ProofSources<'_> {
    /// What is known of the end of the window of an intent.
    async fn proof_of(&self, open: &Intent) -> Proof {
        if open.agent == **self.state.agent() {
            let end = match self.returns.iter().find(|r| r.intent.nonce == open.nonce) {
                Some(back) => Some(back.end.clone()).filter(|end| end.unproven.is_none()),
                None if self.held.contains(&open.nonce) => None,
                None => end_of(self.state, open).await,
            };
            return end.map_or(Proof::None, Proof::Ended);
        }
        // An agent that lost its state: the server beside it may be another one by now. One of the same name
        // elsewhere, beside another agent of this host, says nothing of it.
        let is_there = |(name, server): &&(String, Server)| {
            *name == open.target
                && open.host == host()
                && open.server.is_some()
                && open.server == server.address()
        };
        let Some((_, server)) = self.servers.iter().find(is_there) else { return Proof::None };
        match instance_of(server, open.instance.as_deref()).await {
            Some(Reach::Another(_)) => Proof::ServerGone,
            _ => Proof::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::act::attempt_of_a_test;
    use crate::agent::pool::Wanted;
    use skewtrap_core::capture::CommandWindow;
    use skewtrap_core::capture::admit::CaptureMethod;
    use skewtrap_core::fleet::lease::START_WITHIN;
    use skewtrap_trace::time::Time;

    fn keeper(bucket: &Path, state: &State) -> LeaseKeeper {
        let config = StoreConfig::of(&format!("file://{}", bucket.display()), "p");
        LeaseKeeper::new(
            LazyDestination::new(config),
            Arc::default(),
            Vec::new(),
            state.clone(),
            Arc::default(),
        )
    }

    fn intent(attempt: &str) -> Intent {
        Intent { attempt: attempt.into(), target: "server".into(), ..Intent::default() }
            .lasting(Duration::from_secs(30))
    }

    #[tokio::test]
    async fn the_lease_of_a_window_that_was_closed_while_the_store_was_away_is_given_back_when_it_answers() {
        let dir = tempfile::tempdir().expect("a folder");
        let (bucket, away) = (dir.path().join("bucket"), dir.path().join("away"));
        std::fs::create_dir(&bucket).expect("a folder");
        let state = State::in_memory().expect("a state");
        keeper(&bucket, &state)
            .take(intent("i1/1"), Estimate::default())
            .await
            .expect("taken")
            .expect("held");
        // The agent after it closes the window.
        let mut next = keeper(&bucket, &state);
        std::fs::rename(&bucket, &away).expect("gone");
        let end = WindowEnd { was_sent: true, ..WindowEnd::default() };
        next.find(Some(("i1/1".into(), end))).await;
        assert_eq!(next.unresolved.len(), 1, "it is tried again");
        std::fs::rename(&away, &bucket).expect("back");
        assert!(next.open(GIVE_BACK_LIMIT).await.expect("it answers").is_some());
        next.unresolved[0].retry.due = Instant::now();
        next.find_due().await;
        assert_eq!((next.unresolved.len(), next.returns.len()), (0, 0));
        assert_eq!(next.open(GIVE_BACK_LIMIT).await, Ok(None));
    }

    #[tokio::test]
    async fn only_the_state_of_the_same_host_proves_that_a_window_was_never_begun() {
        let state = State::in_memory().expect("a state");
        let here = Intent { host: host(), ..intent("i1/1") };
        let elsewhere = Intent { host: "another".into(), ..here.clone() };
        assert_eq!(end_of(&state, &here).await, Some(WindowEnd::default()));
        assert_eq!(end_of(&state, &elsewhere).await, None, "a copy of the state knows nothing of it");
        let attempt = attempt_of_a_test("i1/1");
        let method = crate::act::state::OpenMethod::Command { group: None };
        let window = crate::act::state::WindowRow::of(&attempt, method, Time::default());
        state.begin(&attempt, &window, None).expect("written");
        assert_eq!(end_of(&state, &here).await, None, "it may be open");
    }

    #[tokio::test]
    async fn a_store_that_stays_away_is_asked_less_and_less_to_take_a_lease_back_and_takes_it_when_it_answers()
     {
        let dir = tempfile::tempdir().expect("a folder");
        let (bucket, away) = (dir.path().join("bucket"), dir.path().join("away"));
        std::fs::create_dir(&bucket).expect("a folder");
        let state = State::in_memory().expect("a state");
        let mut keeper = keeper(&bucket, &state);
        let held = keeper.take(intent("i1/1"), Estimate::default()).await.expect("taken").expect("held");
        std::fs::rename(&bucket, &away).expect("gone");
        // Nothing can be created where it was.
        std::fs::write(&bucket, "").expect("written");
        let mut pauses = Vec::new();
        keeper.later(held.granted.intent.clone(), WindowEnd::default(), Duration::ZERO);
        for _ in 0..7 {
            keeper.returns[0].retry.due = Instant::now();
            keeper.give_back_due(|_| true, GIVE_BACK_LIMIT).await;
            pauses.push(keeper.returns[0].retry.due.duration_since(Instant::now()));
        }
        assert!(pauses[0] < AGAIN * 2, "{pauses:?}");
        let longest = [LONGEST_GIVE_BACK / 2, LONGEST_GIVE_BACK * 2];
        assert!(pauses[6] > longest[0] - AGAIN && pauses[6] < longest[1], "{pauses:?}");
        std::fs::remove_file(&bucket).expect("removed");
        std::fs::rename(&away, &bucket).expect("back");
        keeper.returns[0].retry.due = Instant::now();
        keeper.give_back_due(|_| true, GIVE_BACK_LIMIT).await;
        assert_eq!((keeper.returns.len(), keeper.open(GIVE_BACK_LIMIT).await), (0, Ok(None)));
    }

    /// A machine whose disk takes no operation.
    struct Hung;

    impl crate::world::stand_in::Machine for Hung {
        fn wall_time(&self) -> Time {
            Time::from_epoch_s(1_795_492_100.0)
        }

        fn disk(&self) -> crate::world::stand_in::Until {
            Box::pin(std::future::pending())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_on_a_disk_that_hangs_refuses_windows_in_time() {
        let dir = tempfile::tempdir().expect("a folder");
        let state = State::in_memory().expect("a state");
        crate::world::stand_in::set(Some(Arc::new(Hung)));
        let mut keeper = keeper(dir.path(), &state);
        for _ in 0..3 {
            let asked = Instant::now();
            let refused = keeper.take(intent("i1/1"), Estimate::default()).await;
            assert!(asked.elapsed() <= TAKE_LIMIT, "{:?}", asked.elapsed());
            let refused = refused.expect_err("nobody knows of other windows").to_string();
            assert!(refused.contains("the disk does not answer"), "{refused}");
        }
        crate::world::stand_in::set(None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_keeper_that_is_busy_with_a_store_that_does_not_answer_keeps_no_window_waiting() {
        let dir = tempfile::tempdir().expect("a folder");
        let state = State::in_memory().expect("a state");
        crate::world::stand_in::set(Some(Arc::new(Hung)));
        // At its start it looks at the store's clock, and for what it had before.
        let to = keeper(dir.path(), &state).to;
        let supervisor = Supervisor::default();
        let pool = start(to, Budget::default(), Vec::new(), &state, &Arc::default(), &supervisor);
        let attempt = attempt_of_a_test("i1/1");
        let method =
            CaptureMethod::Command(CommandWindow { argv: vec!["true".into()], time_limit: START_WITHIN });
        let asked = Instant::now();
        let wanted =
            Wanted { attempt: &attempt, method: &method, instance: None, before: Estimate::default() };
        let refused = pool.take(wanted).await.expect_err("nobody knows of other windows").to_string();
        assert!(asked.elapsed() <= TAKE_LIMIT + Duration::from_secs(1), "{:?}", asked.elapsed());
        assert!(refused.contains("the store did not answer within 6 s"), "{refused}");
        crate::world::stand_in::set(None);
    }

    #[tokio::test]
    async fn only_the_server_at_the_same_address_proves_that_the_one_of_a_window_is_gone() {
        use crate::demo::load::LoadTrack;
        use crate::demo::sglang::{Config, Version, World};
        use crate::demo::shell::{self, Stage};
        let dir = tempfile::tempdir().expect("a folder");
        let begin = Time::from_epoch_s(1_795_492_100.0);
        let config = Config::new(Version::V0_5_16, 1, LoadTrack::constant(begin, &[(300, 0)]));
        let stage = Stage { begin, speed: 5.0, log_path: dir.path().join("server.log"), port: 0, end: None };
        let double = shell::start(World::new(config, begin), stage).await.expect("it starts");
        let server = Server::new(client::unpooled(None).expect("a client"), &double.url, None, None);
        let here = server.address();
        let (state, servers) = (State::in_memory().expect("a state"), [("server".to_owned(), server)]);
        let known = ProofSources { state: &state, held: &BTreeSet::new(), returns: &[], servers: &servers };
        let open = |server: Option<&str>| Intent {
            agent: "another".into(),
            host: host(),
            instance: Some("the one before".into()),
            server: server.map(str::to_owned),
            ..intent("i1/1")
        };
        assert_eq!(known.proof_of(&open(here.as_deref())).await, Proof::ServerGone);
        assert_eq!(known.proof_of(&open(Some("127.0.0.1:1"))).await, Proof::None, "another of that name");
        assert_eq!(known.proof_of(&open(None)).await, Proof::None, "an agent of before did not say where");
    }
}
