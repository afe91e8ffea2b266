//! The lease of a pool in an object of Kubernetes, over a double of its API server.

use std::sync::Arc;

use serde_json::Value;
use skewtrap::http::client::client;
use skewtrap_core::capture::governor::Budget;
use skewtrap_fleet::kubernetes::{Access, AccessNow, KubernetesLease};
use skewtrap_fleet::lease::PoolLease;

use crate::support::kubernetes::Kubernetes;
use crate::turns::{intent, taken, turns_of_many};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_take_turns_by_a_lease_of_kubernetes_whatever_conflicts_and_whichever_answers_are_lost() {
    let cluster = Kubernetes::default();
    let api = cluster.listen().await;
    assert_eq!(turns_of_many(|_| lease(&api), 4, 10).await.len(), 40);
    let undisturbed = cluster.conflicts();
    assert!(undisturbed > 0, "nobody was in anybody's way");
    let cluster = Kubernetes::default();
    let api = cluster.listen().await;
    cluster.loses_one_of(7);
    assert_eq!(turns_of_many(|_| lease(&api), 4, 10).await.len(), 40);
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
