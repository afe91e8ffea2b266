//! Windows against the double of vLLM, which has its own ways: a fixed folder, always a stop.

use std::path::Path;
use std::time::Duration;

use crate::support::agent::run;
use crate::support::stage;
use skewtrap::agent::capture::CaptureStore;
use skewtrap::agent::window::TargetHandle;
use skewtrap::demo::exchange::{HttpFault, HttpFaultKind, Request};
use skewtrap::demo::load::LoadTrack;
use skewtrap::demo::shell::RunningDouble;
use skewtrap::demo::vllm::{Config, Faults, Version, World};
use skewtrap::observe;
use skewtrap_core::capture::Limits;
use skewtrap_core::capture::admit::{CapturePlan, Policy, admit};
use skewtrap_core::capture::captured::Quality;
use skewtrap_core::capture::facts::{Facts, HealthAnswer};
use skewtrap_core::capture::governor::CaptureRequest;
use skewtrap_core::capture::{CaptureSpec, HttpWindow};
use skewtrap_core::incident::CaptureOutcome;
use skewtrap_trace::rank::Rank;
use tokio_util::sync::CancellationToken;

const BUSY: [(u32, u32); 2] = [(40, 2), (9, 0)];

struct Vllm {
    double: RunningDouble,
    store: CaptureStore,
    handle: TargetHandle,
    folder: String,
}

impl Vllm {
    async fn of(dir: &Path, version: Version, profiles: bool, faults: Faults) -> Self {
        let folder = dir.join("profiles").display().to_string();
        std::fs::create_dir_all(&folder).unwrap();
        let load = LoadTrack::constant(stage::begin(), &BUSY);
        let config = Config { faults, ..Config::new(version, 2, load, profiles.then_some(folder.as_str())) };
        let double = stage::play(World::new(config, stage::begin()), dir).await;
        let (store, handle) = (stage::store(dir), stage::handle(&double.url));
        Self { double, store, handle, folder }
    }

    async fn window(&self, incident: &str) -> stage::Kept {
        let info = observe::server::facts(&self.handle.server, 2).await.unwrap();
        let now = self.store.clock.now();
        let mut facts = Facts { server: Some(info), sees_log: true, ..Facts::default() };
        facts.health.answered(HealthAnswer::Healthy(Duration::from_millis(5)), now);
        facts.rank_seen(Rank::dp(0), true, now);
        facts.rank_seen(Rank::dp(1), true, now);
        let limits = Limits { cooldown: Duration::ZERO, captures: 9, per: Duration::from_secs(9) };
        let (target, firing, may_predate_start) = ("server", "", false);
        let request = CaptureRequest {
            rule: "r",
            limits: &limits,
            target,
            group: target,
            incident,
            firing,
            may_predate_start,
            times_bound: 2.0,
        };
        let policy = Policy { min_free: 0, output_dir: Some(self.folder.clone()), ..Policy::default() };
        let spec = CaptureSpec::Http(HttpWindow {
            num_steps: Some(10),
            accept_risk: vec!["server_timer".into()],
            ..HttpWindow::default()
        });
        let ledger = self.store.state.ledger().unwrap();
        let grant: CapturePlan =
            admit(&spec, &request, &ledger, &facts, &policy, None, now).unwrap().unwrap();
        let (links, _shown) = stage::links(None, &self.store, CancellationToken::new());
        let record = stage::record(incident, self.store.state.agent().clone(), now);
        stage::take(&self.store, &self.handle, &grant, record, std::future::ready(Vec::new()), links)
            .await
            .unwrap()
    }

    fn stops(&self) -> usize {
        self.double.requests().iter().filter(|r| r.path == "/stop_profile").count()
    }
}

#[tokio::test]
async fn two_windows_of_every_release_bring_the_files_of_both_engines_and_are_stopped_once_each() {
    for version in Version::ALL {
        let dir = tempfile::tempdir().unwrap();
        let vllm = Vllm::of(dir.path(), version, true, Faults::default()).await;
        for (n, incident) in ["i1", "i2"].into_iter().enumerate() {
            let kept = vllm.window(incident).await;
            let CaptureOutcome::Done(captured) = &kept.record.incident.capture else {
                panic!(
                    "{version:?} {incident}: {:#?}\n{:#?}",
                    kept.record.incident.capture, kept.record.exchanges
                )
            };
            let traces = captured.files.iter().filter(|f| f.path.ends_with(".pt.trace.json.gz"));
            assert_eq!(
                (captured.quality, vllm.stops()),
                (Quality::Usable, n + 1),
                "{version:?}: {captured:#?}"
            );
            assert!(traces.count() >= 2, "{version:?}: {captured:#?}");
        }
    }
}

#[tokio::test]
async fn a_server_that_was_not_launched_for_profiling_is_told_the_flag() {
    let dir = tempfile::tempdir().unwrap();
    let vllm = Vllm::of(dir.path(), Version::V0_33, false, Faults::default()).await;
    let kept = vllm.window("i1").await;
    let CaptureOutcome::Failed { why, .. } = &kept.record.incident.capture else { panic!("it fails") };
    assert!(why.contains("404") && why.contains("--profiler-config"), "{why}");
    assert_eq!(vllm.stops(), 0);
}

#[tokio::test]
async fn somebody_elses_session_answers_409_and_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let vllm = Vllm::of(dir.path(), Version::V0_33, true, Faults::default()).await;
    vllm.double.change(|engine, now| engine.request(now, &Request::post("/start_profile", "")).1);
    let kept = vllm.window("i1").await;
    let CaptureOutcome::Failed { why, .. } = &kept.record.incident.capture else { panic!("it fails") };
    assert!(why.contains("409") && why.contains("left alone"), "{why}");
    assert_eq!(vllm.stops(), 0);
}

#[tokio::test]
async fn a_stop_that_fails_is_not_repeated_because_a_second_one_has_crashed_engines() {
    let dir = tempfile::tempdir().unwrap();
    let http = vec![HttpFault::always("/stop_profile", HttpFaultKind::Status(500))];
    let faults = Faults { http, ..Faults::default() };
    let vllm = Vllm::of(dir.path(), Version::V0_19, true, faults).await;
    let kept = vllm.window("i1").await;
    assert_eq!(vllm.stops(), 1);
    assert!(kept.end.unproven.is_some(), "{:?}", kept.record.incident.capture);
}

#[tokio::test]
async fn an_engine_whose_file_never_came_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Faults { missing: vec![1], ..Faults::default() };
    let vllm = Vllm::of(dir.path(), Version::V0_33, true, faults).await;
    let kept = vllm.window("i1").await;
    let CaptureOutcome::Done(captured) = &kept.record.incident.capture else { panic!("it is partial") };
    assert_eq!((captured.quality, &captured.missing[..]), (Quality::Partial, &[Rank::dp(1).labels()][..]));
}

#[tokio::test]
async fn doctor_reads_from_the_metrics_which_engines_work() {
    let dir = tempfile::tempdir().unwrap();
    let vllm = Vllm::of(dir.path(), Version::V0_33, true, Faults::default()).await;
    let state = dir.path().join("doctor-state").display().to_string();
    let (_, said) = run(dir.path(), &["doctor", "--url", &vllm.double.url, "--state-dir", &state]).await;
    assert!(said.contains("dp 2") && said.contains("ranks: every rank has work"), "{said}");
    assert!(!said.contains("/v1/loads") && !said.contains("NO"), "{said}");
}
