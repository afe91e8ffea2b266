//! The lease of a pool in an object of Kubernetes, over a double of its API server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use skewtrap::http::client::client;
use skewtrap_core::capture::governor::{Budget, Estimate};
use skewtrap_core::capture::refusal::Refusal;
use skewtrap_core::fleet::lease::{
    Answer, GiveBack, GiveBackStep, Intent, Proof, Take, TakeStep, Turn, WindowEnd,
};
use skewtrap_fleet::kubernetes::{Access, AccessNow, KubernetesLease};
use skewtrap_fleet::lease::PoolLease;
use skewtrap_trace::time::Time;

use crate::support::kubernetes::Kubernetes;

fn access(api: &str, token: &str) -> AccessNow {
    let (client, api, token) = (client(None).expect("a client"), api.to_owned(), token.to_owned());
    Arc::new(move || {
        let (client, api, token) = (client.clone(), api.clone(), Some(token.clone()));
        Ok(Access { client, api, namespace: "prod".into(), token })
    })
}

fn lease(api: &str) -> PoolLease {
    PoolLease::in_kubernetes(KubernetesLease::new(access(api, "kubernetes-token"), "skewtrap-prod-a"))
}

fn intent(agent: &str, nonce: u32) -> Intent {
    let nonce = format!("{agent}-{nonce}");
    let (agent, host) = (agent.to_owned(), format!("host-of-{agent}"));
    Intent { attempt: nonce.clone(), agent, host, target: "server".into(), nonce, ..Intent::default() }
        .lasting(Duration::from_secs(30))
}

async fn taken(lease: &mut PoolLease, intent: Intent, budget: &Budget) -> Result<Turn, Refusal> {
    let began = Instant::now();
    let now = || Time::from_epoch_s(5_000.0) + began.elapsed();
    let mut take = Take::new(intent, budget.clone(), Estimate::default(), None);
    let mut step = take.begin();
    loop {
        step = lease.take(&mut take, step, now).await;
        step = match step {
            TakeStep::Taken(turn) => return Ok(*turn),
            // As the agent does it: what may have been taken is given back.
            TakeStep::Refused(refusal) => {
                if take.may_have_it() {
                    give_back(lease, take.intent().clone(), WindowEnd::default()).await;
                }
                return Err(refusal);
            }
            TakeStep::Prove(_) => take.on(Answer::Proven(Proof::None), now()),
            other => panic!("left half way: {other:?}"),
        };
    }
}

async fn give_back(lease: &mut PoolLease, intent: Intent, end: WindowEnd) {
    let mut back = GiveBack::new(intent, end);
    while lease.give_back(&mut back).await != (GiveBackStep::Done { overtaken: false }) {}
}

/// Agents that all want windows at the same time; gives the fences in the order of the windows.
async fn turns_of_many(api: &str, agents: u32, rounds: u32) -> Vec<u64> {
    let open = Arc::new(AtomicU32::new(0));
    let (fences, mut tasks) = (Arc::new(std::sync::Mutex::new(Vec::new())), Vec::new());
    for agent in 0..agents {
        let (mut lease, open, fences) = (lease(api), open.clone(), fences.clone());
        tasks.push(tokio::spawn(async move {
            let budget = Budget { windows: 10_000, ..Budget::default() };
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
                give_back(&mut lease, intent, end).await;
            }
        }));
    }
    for task in tasks {
        task.await.expect("no agent fails");
    }
    // Its answer may be lost, too.
    let mut reader = lease(api);
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_take_turns_by_a_lease_of_kubernetes_whatever_conflicts_and_whichever_answers_are_lost() {
    let cluster = Kubernetes::default();
    let api = cluster.listen().await;
    assert_eq!(turns_of_many(&api, 4, 10).await.len(), 40);
    let undisturbed = cluster.conflicts();
    assert!(undisturbed > 0, "nobody was in anybody's way");
    let cluster = Kubernetes::default();
    let api = cluster.listen().await;
    cluster.loses_one_of(7);
    assert_eq!(turns_of_many(&api, 4, 10).await.len(), 40);
    println!("80 windows of 4 agents: {undisturbed} and {} writes were refused", cluster.conflicts());
    let object = cluster.lease("skewtrap-prod-a").expect("there");
    assert_eq!(object["spec"]["holderIdentity"], Value::Null, "nobody holds it: {object}");
}

#[tokio::test]
async fn a_held_lease_is_waited_for_by_the_clock_of_the_api_and_trouble_with_it_is_a_sentence() {
    let cluster = Kubernetes::default();
    let api = cluster.listen().await;
    let (mut first, mut second) = (lease(&api), lease(&api));
    taken(&mut first, intent("a", 1), &Budget::default()).await.expect("free");
    assert_eq!(cluster.lease("skewtrap-prod-a").expect("there")["spec"]["holderIdentity"], "host-of-a");
    let refused = taken(&mut second, intent("b", 1), &Budget::default()).await.expect_err("held").to_string();
    assert!(refused.contains("the agent on host-of-a has one on server, which is over in 11"), "{refused}");
    let clock = second.clock().expect("it was measured");
    assert!(clock.error_s < 5.0, "{clock:?}");
    let lease_as =
        |token: &str, name: &str| PoolLease::in_kubernetes(KubernetesLease::new(access(&api, token), name));
    let mut stranger = lease_as("of-nobody", "skewtrap-prod-a");
    let why = stranger.latest().await.expect_err("forbidden").to_string();
    assert!(why.contains("give it a role with `get`, `create` and `update` on `leases`"), "{why}");
    let mut away = lease("http://127.0.0.1:1");
    let refused = taken(&mut away, intent("b", 2), &Budget::default()).await.expect_err("away").to_string();
    assert!(refused.contains("the Lease skewtrap-prod-a of Kubernetes: Connection refused"), "{refused}");
}

#[tokio::test]
async fn a_trial_finds_a_missing_role_and_a_missing_namespace_and_writes_nothing() {
    let cluster = Kubernetes::default();
    let api = cluster.listen().await;
    let trial = async |namespace: &str| {
        let (api, namespace) = (api.clone(), namespace.to_owned());
        let access = access(&api, "kubernetes-token");
        let there: AccessNow = Arc::new(move || Ok(Access { namespace: namespace.clone(), ..access()? }));
        let tried = PoolLease::in_kubernetes(KubernetesLease::new(there, "skewtrap-prod-a")).try_out().await;
        tried.map_err(|e| e.to_string())
    };
    trial("prod").await.expect("it may be made");
    assert_eq!(cluster.lease("skewtrap-prod-a"), None, "nothing is kept");
    let why = trial("gone").await.expect_err("no such namespace");
    assert!(why.contains("has no namespace `gone`; create it"), "{why}");
    for verb in ["create", "update"] {
        cluster.forbid(&[verb]);
        let why = trial("prod").await.expect_err(verb);
        assert!(
            why.contains("give it a role with `get`, `create` and `update` on `leases`"),
            "{verb}: {why}"
        );
    }
    // Of one that is there only the update is asked for.
    cluster.forbid(&[]);
    taken(&mut lease(&api), intent("a", 1), &Budget::default()).await.expect("free");
    cluster.forbid(&["create"]);
    let before = cluster.lease("skewtrap-prod-a");
    trial("prod").await.expect("it is there");
    assert_eq!(cluster.lease("skewtrap-prod-a"), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_agents_of_a_pool_take_turns_by_a_lease_of_kubernetes() {
    let cluster = Kubernetes::default();
    let api = cluster.listen().await;
    let more = format!("lease: {{ kubernetes: {{ api: '{api}', namespace: prod }} }}\n");
    let root = tempfile::tempdir().expect("a folder");
    tokio::task::block_in_place(|| super::pool::one_window_at_a_time(root.path(), &more));
    let object = cluster.lease("skewtrap-prod-a").expect("there");
    let state = object["metadata"]["annotations"]["skewtrap/lease"].as_str().expect("a state");
    let state: Value = serde_json::from_str(state).expect("JSON");
    assert_eq!((&state["open"], &state["windows"][0]["end"]), (&Value::Null, &Value::from("closed")));
    assert!(!root.path().join("bucket/prod-a/lease").exists(), "nothing of it is in the store");
}
