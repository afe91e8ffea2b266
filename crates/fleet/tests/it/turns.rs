//! Agents that take turns by the lease of a pool, wherever it is kept. The tests of the whole program use it too.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use skewtrap_core::capture::governor::{Budget, Estimate};
use skewtrap_core::capture::refusal::Refusal;
use skewtrap_core::fleet::lease::{
    Answer, GiveBackStep, GrantedLease, Intent, LeaseRequest, LeaseRequestStep, LeaseReturn, Proof, WindowEnd,
};
use skewtrap_fleet::lease::PoolLease;
use skewtrap_trace::time::Time;

pub fn intent(agent: &str, nonce: u32) -> Intent {
    let nonce = format!("{agent}-{nonce}");
    let (agent, host, target) = (agent.to_owned(), format!("host-of-{agent}"), "server".to_owned());
    Intent { attempt: nonce.clone(), agent, host, target, nonce, ..Intent::default() }
        .lasting(Duration::from_secs(30))
}

pub async fn taken(lease: &mut PoolLease, intent: Intent, budget: &Budget) -> Result<GrantedLease, Refusal> {
    let began = Instant::now();
    let now = || Time::from_epoch_s(5_000.0) + began.elapsed();
    let mut take = LeaseRequest::new(intent, budget.clone(), Estimate::default(), None);
    let mut step = take.begin();
    loop {
        step = lease.take(&mut take, step, now).await;
        step = match step {
            LeaseRequestStep::Taken(turn) => return Ok(*turn),
            // As the agent does it: what may have been taken is given back.
            LeaseRequestStep::Refused(refusal) => {
                if take.may_have_it() {
                    give_back(lease, take.intent().clone(), WindowEnd::default()).await;
                }
                return Err(refusal);
            }
            LeaseRequestStep::Prove(_) => take.on(Answer::Proven(Proof::None), now()),
            other => panic!("left half way: {other:?}"),
        };
    }
}

pub async fn give_back(lease: &mut PoolLease, intent: Intent, end: WindowEnd) {
    let mut back = LeaseReturn::new(intent, end);
    while lease.give_back(&mut back).await != (GiveBackStep::Done { overtaken: false }) {}
}

/// Agents that all want windows at the same time, each by its own `lease_of`; gives the fences in the order of the
/// windows.
pub async fn turns_of_many(lease_of: impl Fn(&str) -> PoolLease, agents: u32, rounds: u32) -> Vec<u64> {
    let open = Arc::new(AtomicU32::new(0));
    let (fences, mut tasks) = (Arc::new(Mutex::new(Vec::new())), Vec::new());
    for agent in (0..agents).map(|number| format!("agent{number}")) {
        let (mut lease, open, fences) = (lease_of(&agent), open.clone(), fences.clone());
        tasks.push(tokio::spawn(async move {
            let budget = Budget { windows: 10_000, ..Budget::default() };
            let (mut nonce, mut windows) = (0, 0);
            while windows < rounds {
                nonce += 1;
                let intent = intent(&agent, nonce);
                let Ok(turn) = taken(&mut lease, intent.clone(), &budget).await else { continue };
                assert_eq!(open.fetch_add(1, Ordering::SeqCst), 0, "another window is open");
                fences.lock().expect("whole").push(turn.fence);
                tokio::task::yield_now().await;
                open.fetch_sub(1, Ordering::SeqCst);
                windows += 1;
                let end = WindowEnd { was_sent: true, stall_s: 0.1, ..WindowEnd::default() };
                give_back(&mut lease, intent, end).await;
            }
        }));
    }
    for task in tasks {
        task.await.expect("no agent fails");
    }
    // Its answer may be lost, too.
    let mut reader = lease_of("reader");
    let latest = match reader.latest().await {
        Ok(latest) => latest,
        Err(_) => reader.latest().await.expect("read"),
    };
    let latest = latest.expect("there");
    assert_eq!(latest.state.open, None);
    assert_eq!(latest.state.windows.len(), (agents * rounds) as usize, "each window is booked once");
    let fences = fences.lock().expect("whole").clone();
    assert!(fences.is_sorted_by(|a, b| a < b), "fencing numbers only grow: {fences:?}");
    fences
}
