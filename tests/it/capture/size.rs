//! Windows on doubles whose exports take as long as their files are large: what they cost is predicted
//! from those before, and stays within what it may.

use std::time::Duration;

use crate::support::stage::{SPEED, Stage, config};
use skewtrap::demo::sglang::{Config, ExportCost, ExportLaw};
use skewtrap_core::capture::size::{MIN_STEPS, PastWindow};
use skewtrap_core::capture::{CaptureSpec, HttpWindow};
use tokio_util::sync::CancellationToken;

const BUSY: [(u32, u32); 2] = [(9, 0), (12, 0)];
/// Far more than what the machine of a test adds to a stall.
const MAX_STALL: Duration = Duration::from_millis(900);

/// The steps and costs of five windows in a row on a server that writes so much and so fast, or the word
/// of the refusal that ended them. Rates are the agent's seconds.
async fn windows(
    weights_gb: f64,
    kb_per_step: f64,
    s_per_mb: [f64; 2],
) -> (Vec<PastWindow>, Option<&'static str>) {
    let dir = tempfile::tempdir().unwrap();
    let s_per_mb = s_per_mb.map(|rate| rate * SPEED).to_vec();
    let law = Some(ExportLaw { bytes_per_step: kb_per_step * 1e3, s_per_mb });
    let export = ExportCost { law, ..ExportCost::default() };
    let stage = Stage::of(Config { export, weights_gb, ..config(&BUSY) }, dir.path()).await;
    let spec = HttpWindow { max_stall: Some(MAX_STALL), ..HttpWindow::default() };
    let mut past = Vec::new();
    for number in 0..5 {
        let incident = format!("i{number}");
        let plan = match stage.grant(CaptureSpec::Http(spec.clone()), &[0, 1], &incident).await {
            Ok(plan) => plan,
            Err(refusal) => return (past, Some(refusal.word())),
        };
        let kept = stage.take(&plan, CancellationToken::new()).await;
        past.push(kept.end.cost.unwrap_or_else(|| panic!("it teaches nothing: {kept:?}")));
    }
    (past, None)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn windows_grow_to_what_they_may_cost_and_no_further() {
    let mut told = Vec::new();
    for (weights_gb, kb_per_step, s_per_mb) in
        [(0.01, 10.0, [1.1, 1.6]), (0.5, 20.0, [1.6, 1.0]), (40.0, 60.0, [1.5, 1.0])]
    {
        let (past, refused) = windows(weights_gb, kb_per_step, s_per_mb).await;
        told.push(format!("{kb_per_step} kB a step, {s_per_mb:?} s/MB: {past:#?}"));
        let why = told.join("\n");
        assert_eq!(refused, None, "{why}");
        for window in &past {
            // What the law says, and the limit, with what a busy machine adds or hears late.
            let by_size = window.largest as f64 / 1e6 * s_per_mb.into_iter().fold(0.0, f64::max);
            let seen = window.stall.as_secs_f64();
            assert!(seen > by_size / 2.0, "{seen} s for what takes {by_size} s: {why}");
            assert!(window.stall <= MAX_STALL * 3 / 2, "{why}");
            assert!(window.predicted.is_some_and(|predicted| predicted <= MAX_STALL), "{why}");
        }
        let [first, .., last] = &past[..] else { panic!("{why}") };
        assert!(first.steps >= MIN_STEPS && last.steps > first.steps, "{why}");
    }
    println!("{}", told.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_steps_are_heavy_gets_one_window_at_the_most() {
    let (past, refused) = windows(40.0, 600.0, [1.1, 1.6]).await;
    assert_eq!((refused, past.len()), (Some("suspended"), 1), "{past:#?}");
    assert!(past[0].steps < 8, "{past:#?}");
}
