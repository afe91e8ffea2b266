//! Agents that take turns by the lease in a store: a folder, and a real S3 server where there is one.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use skewtrap_core::capture::governor::{Budget, Estimate};
use skewtrap_core::capture::refusal::Refusal;
use skewtrap_core::fleet::lease::{
    Answer, GiveBack, GiveBackStep, Intent, Proof, Take, TakeStep, Turn, WindowEnd,
};
use skewtrap_fleet::Store;
use skewtrap_fleet::lease::PoolLease;
use skewtrap_trace::time::Time;

use crate::support::{Moto, client, environment};

fn store(address: &str, variables: Vec<(String, String)>) -> Store {
    Store::open(address, client(), variables).expect("an address")
}

fn now_from(began: Instant) -> impl Fn() -> Time {
    move || Time::from_epoch_s(5_000.0) + began.elapsed()
}

fn intent(agent: &str, nonce: u32) -> Intent {
    let nonce = format!("{agent}-{nonce}");
    let (agent, host, target) = (agent.to_owned(), format!("host-of-{agent}"), "server".to_owned());
    Intent { attempt: nonce.clone(), agent, host, target, nonce, ..Intent::default() }
        .lasting(Duration::from_secs(30))
}

async fn taken(lease: &mut PoolLease, intent: Intent, budget: &Budget) -> Result<Turn, Refusal> {
    let now = now_from(Instant::now());
    let mut take = Take::new(intent, budget.clone(), Estimate::default(), None);
    let mut step = take.begin();
    loop {
        step = lease.take(&mut take, step, &now).await;
        step = match step {
            TakeStep::Taken(turn) => return Ok(*turn),
            TakeStep::Refused(refusal) => return Err(refusal),
            TakeStep::Prove(_) => take.on(Answer::Proven(Proof::None), now()),
            other => panic!("left half way: {other:?}"),
        };
    }
}

/// Agents that all want windows at the same time; gives the fences in the order of the windows.
async fn turns_of_many(store: &Store, agents: u32, rounds: u32) -> Vec<u64> {
    let open = Arc::new(AtomicU32::new(0));
    let fences = Arc::new(Mutex::new(Vec::new()));
    let budget = Budget { windows: 10_000, ..Budget::default() };
    let tasks: Vec<_> = (0..agents)
        .map(|agent| {
            let (store, open, fences, budget) = (store.clone(), open.clone(), fences.clone(), budget.clone());
            tokio::spawn(async move {
                let mut lease = PoolLease::new(store, "prod", format!("agent{agent}"));
                let (mut nonce, mut windows) = (0, 0);
                while windows < rounds {
                    nonce += 1;
                    let intent = intent(&format!("agent{agent}"), nonce);
                    let Ok(turn) = taken(&mut lease, intent.clone(), &budget).await else { continue };
                    assert_eq!(open.fetch_add(1, Ordering::SeqCst), 0, "another window is open");
                    fences.lock().expect("whole").push(turn.fence);
                    tokio::task::yield_now().await;
                    open.fetch_sub(1, Ordering::SeqCst);
                    windows += 1;
                    let end = WindowEnd { was_sent: true, stall_s: 0.1, ..WindowEnd::default() };
                    let mut back = GiveBack::new(intent, end);
                    while lease.give_back(&mut back).await != (GiveBackStep::Done { overtaken: false }) {}
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no agent fails");
    }
    let mut lease = PoolLease::new(store.clone(), "prod", "reader");
    let latest = lease.latest().await.expect("read").expect("there");
    assert_eq!(latest.state.open, None);
    assert_eq!(latest.state.windows.len(), (agents * rounds) as usize, "each window is booked once");
    let fences = fences.lock().expect("whole").clone();
    assert!(fences.is_sorted_by(|a, b| a < b), "fencing numbers only grow: {fences:?}");
    fences
}

async fn held_and_unreadable(store: &Store) {
    let mut first = PoolLease::new(store.clone(), "held", "a");
    let mut second = PoolLease::new(store.clone(), "held", "b");
    taken(&mut first, intent("a", 1), &Budget::default()).await.expect("free");
    let refused = taken(&mut second, intent("b", 1), &Budget::default()).await.expect_err("held").to_string();
    assert!(refused.contains("the agent on host-of-a has one on server, which is over in 11"), "{refused}");
    let clock = second.clock().expect("it was measured");
    assert!(clock.error_s < 5.0, "{clock:?}");
    store.put("held/lease/000000000002.json", r#"{"lease":9}"#.into()).await.expect("stored");
    let refused =
        taken(&mut second, intent("b", 2), &Budget::default()).await.expect_err("unread").to_string();
    assert!(
        refused.contains("held/lease/000000000002.json is no lease that this skewtrap can read: was it written by a newer one?"),
        "{refused}"
    );
    store.try_conditional_put("node7").await.expect("a name is given once");
}

#[tokio::test]
async fn in_a_folder_agents_take_turns() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = store(&format!("file://{}", dir.path().display()), environment());
    assert_eq!(turns_of_many(&store, 4, 5).await.len(), 20);
    held_and_unreadable(&store).await;
}

#[tokio::test]
async fn in_s3_agents_take_turns() {
    let Some(moto) = Moto::start(&[]).await else { return };
    moto.create("leases").await;
    let store = store("s3://leases/of/skewtrap", moto.variables());
    assert_eq!(turns_of_many(&store, 4, 3).await.len(), 12);
    held_and_unreadable(&store).await;
}

#[tokio::test]
async fn a_clock_ten_minutes_off_is_told_and_costs_no_turn() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = store(&format!("file://{}", dir.path().display()), environment());
    let mut lease = PoolLease::new(store.clone(), "prod", "a");
    let wall = || {
        Time::from_nanos(
            i64::try_from(std::time::UNIX_EPOCH.elapsed().expect("later").as_nanos()).expect("fits"),
        )
    };
    let right = lease.measure(wall).await.expect("measured");
    assert_eq!(right.complaint(), None);
    let wrong = lease.measure(|| wall() + Duration::from_secs(600)).await.expect("measured");
    let told = wrong.complaint().expect("ten minutes");
    assert!(told.starts_with("the clock of this host is 600 s ahead of that of the store"), "{told}");
    // `taken` goes by a clock that is years off.
    taken(&mut lease, intent("a", 1), &Budget::default()).await.expect("free");
}

#[tokio::test]
async fn a_bucket_that_is_not_there_and_a_store_that_is_away_are_sentences_of_a_refusal() {
    let away = vec![
        ("AWS_ENDPOINT_URL".to_owned(), "http://127.0.0.1:1".to_owned()),
        ("AWS_ALLOW_HTTP".to_owned(), "true".to_owned()),
        ("AWS_ACCESS_KEY_ID".to_owned(), "AKIAPLANTED".to_owned()),
        ("AWS_SECRET_ACCESS_KEY".to_owned(), "secret".to_owned()),
    ];
    let mut lease = PoolLease::new(store("s3://traces/x", away), "prod", "a");
    let refused = taken(&mut lease, intent("a", 1), &Budget::default()).await.expect_err("away").to_string();
    assert!(
        refused.starts_with(
            "whether another agent of the pool has a window open cannot be told: s3://traces/x: "
        ),
        "{refused}"
    );
    let Some(moto) = Moto::start(&[]).await else { return };
    let mut lease = PoolLease::new(store("s3://nowhere/x", moto.variables()), "prod", "a");
    let refused =
        taken(&mut lease, intent("a", 1), &Budget::default()).await.expect_err("no bucket").to_string();
    assert!(refused.contains("s3://nowhere/x: the bucket is not there"), "{refused}");
}
