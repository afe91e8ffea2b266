//! Agents that take turns by the lease in a store: a folder, and a real S3 server where there is one.

use std::time::Duration;

use skewtrap_core::capture::governor::Budget;
use skewtrap_fleet::Store;
use skewtrap_fleet::lease::PoolLease;
use skewtrap_trace::time::Time;

use crate::support::{Moto, client, environment};
use crate::turns::{intent, taken, turns_of_many};

fn store(address: &str, variables: Vec<(String, String)>) -> Store {
    Store::open(address, client(), variables).expect("an address")
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
    assert_eq!(turns_of_many(|agent| PoolLease::new(store.clone(), "prod", agent), 4, 5).await.len(), 20);
    held_and_unreadable(&store).await;
}

#[tokio::test]
async fn in_s3_agents_take_turns() {
    let Some(moto) = Moto::start(&[]).await else { return };
    moto.create("leases").await;
    let store = store("s3://leases/of/skewtrap", moto.variables());
    assert_eq!(turns_of_many(|agent| PoolLease::new(store.clone(), "prod", agent), 4, 3).await.len(), 12);
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
