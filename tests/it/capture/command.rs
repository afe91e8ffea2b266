//! A capture by a program of the user's.

use std::time::Duration;

use crate::support::stage::{Stage, config};
use skewtrap::act::command::INCIDENT_VARIABLE;
use skewtrap::observe::process::marked;
use skewtrap_core::capture::{CaptureSpec, CommandWindow};
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_its_time_limit_a_program_is_ended_with_all_that_it_started_in_sessions_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::of(config(&[(9, 0), (9, 0)]), dir.path()).await;
    let started = dir.path().join("started");
    let script = format!("setsid sleep 600 & echo $! > {}; sleep 600", started.display());
    let argv = ["sh", "-c", &script].map(str::to_owned).to_vec();
    let spec = CaptureSpec::Command(CommandWindow { argv, time_limit: Duration::from_secs(1) });
    let incident = format!("detached-{}", std::process::id());
    let grant = stage.grant(spec, &[0, 1], &incident).await.unwrap();
    let kept = stage.take(&grant, CancellationToken::new()).await;
    assert!(started.exists(), "it ran: {kept:?}");
    assert_eq!(marked(INCIDENT_VARIABLE, &incident), Vec::<u32>::new(), "nothing of it runs any more");
    assert_eq!(kept.end.unproven, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_whose_agent_ends_before_it_is_started_is_not_started() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::of(config(&[(9, 0), (9, 0)]), dir.path()).await;
    let started = dir.path().join("started");
    let argv = ["touch", &started.display().to_string()].map(str::to_owned).to_vec();
    let spec = CaptureSpec::Command(CommandWindow { argv, time_limit: Duration::from_secs(5) });
    let grant = stage.grant(spec, &[0, 1], "not-started").await.unwrap();
    let cancel = CancellationToken::new();
    cancel.cancel();
    let kept = stage.take(&grant, cancel).await;
    assert!(!started.exists(), "{kept:?}");
    assert!(stage.store.state.open_windows().unwrap().is_empty());
}
