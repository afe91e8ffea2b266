//! Windows against the doubles of TensorRT-LLM and of Dynamo's workers: a status that is no success, a stop
//! that is sent always, and nobody else's profile ever.

use std::path::Path;
use std::time::Duration;

use crate::support::agent::{Agent, run, skewtrap};
use crate::support::stage;
use skewtrap::agent::capture::CaptureStore;
use skewtrap::agent::window::TargetHandle;
use skewtrap::demo::ServerKind as Double;
use skewtrap::demo::exchange::{HttpFault, HttpFaultKind, Request};
use skewtrap::demo::load::LoadTrack;
use skewtrap::demo::shell::RunningDouble;
use skewtrap::demo::trtllm::{Config, Faults, World};
use skewtrap::demo::{dynamo, sglang, vllm};
use skewtrap::observe;
use skewtrap_core::capture::admit::{CapturePlan, Policy, admit};
use skewtrap_core::capture::captured::Quality;
use skewtrap_core::capture::facts::{Facts, Folder, HealthAnswer, ServerKind};
use skewtrap_core::capture::governor::CaptureRequest;
use skewtrap_core::capture::refusal::Refusal;
use skewtrap_core::capture::{CaptureSpec, HttpWindow, Limits};
use skewtrap_core::incident::{CaptureOutcome, Incident};
use skewtrap_trace::rank::Rank;
use tokio_util::sync::CancellationToken;

const BUSY: [(u32, u32); 2] = [(40, 2), (9, 0)];
const START: &str = "/engine/control/start_profile";
const STOP: &str = "/engine/control/stop_profile";

struct Beside {
    double: RunningDouble,
    store: CaptureStore,
    handle: TargetHandle,
    folder: String,
}

impl Beside {
    async fn of(dir: &Path, double: impl Into<Double>) -> Self {
        let folder = dir.join("profiles").display().to_string();
        std::fs::create_dir_all(&folder).unwrap();
        let double = stage::play(double, dir).await;
        let (store, handle) = (stage::store(dir), stage::handle(&double.url));
        Self { double, store, handle, folder }
    }

    async fn trtllm(dir: &Path, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::new(2, LoadTrack::constant(stage::begin(), &BUSY));
        change(&mut config);
        Self::of(dir, World::new(config, stage::begin())).await
    }

    async fn dynamo_sglang(dir: &Path, change: impl FnOnce(&mut sglang::Config)) -> Self {
        let mut config = stage::config(&BUSY);
        change(&mut config);
        Self::of(dir, dynamo::World::new(sglang::World::new(config, stage::begin()))).await
    }

    async fn dynamo_vllm(dir: &Path, profiles: bool) -> Self {
        let load = LoadTrack::constant(stage::begin(), &BUSY);
        let folder = dir.join("profiles").display().to_string();
        let config = vllm::Config::new(vllm::Version::V0_33, 2, load, profiles.then_some(folder.as_str()));
        Self::of(dir, dynamo::World::new(vllm::World::new(config, stage::begin()))).await
    }

    async fn facts(&self, busy: &[u16]) -> Facts {
        // As the agent asks: it learns of the ranks by what they report.
        let info = observe::server::facts(&self.handle.server, 1).await.unwrap();
        let now = self.store.clock.now();
        let mut facts = Facts { server: Some(info), sees_log: true, ..Facts::default() };
        facts.health.answered(HealthAnswer::Healthy(Duration::from_millis(5)), now);
        let seen = observe::artifact::room(Path::new(&self.folder));
        facts.folder_seen(Folder { server_path: self.folder.clone(), seen, at: now });
        (0..2).for_each(|rank| facts.rank_seen(Rank::dp(rank), busy.contains(&rank), now));
        facts
    }

    fn grant(&self, facts: &Facts, spec: HttpWindow) -> Result<CapturePlan, Refusal> {
        let limits = Limits { cooldown: Duration::ZERO, captures: 9, per: Duration::from_secs(9) };
        let (target, firing, may_predate_start) = ("server", "", false);
        let request = CaptureRequest {
            rule: "r",
            limits: &limits,
            target,
            group: target,
            incident: "i1",
            firing,
            may_predate_start,
            times_bound: 2.0,
        };
        let policy = Policy { min_free: 0, output_dir: Some(self.folder.clone()), ..Policy::default() };
        let ledger = self.store.state.ledger().unwrap();
        let now = self.store.clock.now();
        admit(&CaptureSpec::Http(spec), &request, &ledger, facts, &policy, None, now).map(|g| g.unwrap())
    }

    async fn window(&self) -> stage::Kept {
        let grant = self.grant(&self.facts(&[0, 1]).await, spec()).unwrap();
        self.take(&grant).await
    }

    async fn take(&self, grant: &CapturePlan) -> stage::Kept {
        let (links, _shown) = stage::links(None, &self.store, CancellationToken::new());
        let record = stage::record("i1", self.store.state.agent().clone(), self.store.clock.now());
        stage::take(&self.store, &self.handle, grant, record, std::future::ready(Vec::new()), links)
            .await
            .unwrap()
    }

    fn asked(&self, path: &str) -> usize {
        self.double.requests().iter().filter(|r| r.path == path).count()
    }

    /// Whether TensorRT-LLM has a window.
    async fn has_window(&self) -> bool {
        let (answer, waits) = tokio::sync::oneshot::channel();
        self.double.change(move |engine, _| {
            if let Double::TensorrtLlm(world) = engine {
                let _ = answer.send(world.has_window());
            }
            Vec::new()
        });
        waits.await.expect("the double is TensorRT-LLM")
    }
}

fn spec() -> HttpWindow {
    HttpWindow {
        num_steps: Some(10),
        deadline: Duration::from_secs(2),
        accept_risk: vec!["server_timer".into()],
        ..HttpWindow::default()
    }
}

fn failed(kept: &stage::Kept) -> String {
    stage::failed(&kept.record.incident.capture).0.to_owned()
}

#[tokio::test]
async fn a_window_of_tensorrt_llm_ends_by_its_steps_and_brings_the_whole_file_of_every_rank() {
    let dir = tempfile::tempdir().unwrap();
    let beside = Beside::trtllm(dir.path(), |_| {}).await;
    assert_eq!(beside.facts(&[0, 1]).await.server.unwrap().engine, ServerKind::TensorrtLlm);
    let kept = beside.window().await;
    let captured = stage::done(&kept.record.incident.capture);
    assert_eq!((captured.quality, captured.files.len()), (Quality::Usable, 2), "{captured:#?}");
    assert!(captured.files.iter().all(|f| f.path.ends_with(".json")), "{captured:#?}");
    let ranks: Vec<_> = captured.files.iter().map(|f| f.rank.clone()).collect();
    assert_eq!(ranks, [Some(Rank::dp(0).labels()), Some(Rank::dp(1).labels())]);
    assert_eq!((kept.end.unproven, beside.asked("/start_profile")), (None, 1));
    assert_eq!(beside.asked("/stop_profile"), 0, "{:#?}", kept.record.exchanges);
    assert!(!beside.has_window().await);
    let body = kept.record.exchanges[0].body.as_ref().expect("a body");
    assert_eq!((&body["num_steps"], &body["activities"]), (&10.into(), &serde_json::json!(["GPU"])));
    assert!(body["output_dir"].as_str().is_some_and(|d| d.starts_with(&beside.folder)), "{body}");
}

#[tokio::test]
async fn a_window_of_tensorrt_llm_whose_steps_never_come_is_stopped_at_its_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let beside = Beside::trtllm(dir.path(), |_| {}).await;
    let grant = beside.grant(&beside.facts(&[0, 1]).await, spec()).unwrap();
    beside.double.change(|engine, _| {
        if let Double::TensorrtLlm(world) = engine {
            world.set_load(&[(0, 0), (0, 0)]);
        }
        Vec::new()
    });
    let kept = beside.take(&grant).await;
    assert_eq!(beside.asked("/stop_profile"), 1, "{:#?}", kept.record.exchanges);
    assert!(!beside.has_window().await, "a start that is only pending is taken back");
    assert_eq!(kept.end.unproven, None, "{:#?}", kept.record.incident.capture);
}

#[tokio::test]
async fn somebody_elses_window_on_tensorrt_llm_answers_409_and_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let beside = Beside::trtllm(dir.path(), |_| {}).await;
    beside.double.change(|engine, now| engine.request(now, &Request::post("/start_profile", "{}")).1);
    let why = failed(&beside.window().await);
    assert!(why.contains("409") && why.contains("left alone"), "{why}");
    assert_eq!(beside.asked("/stop_profile"), 0);
    assert!(beside.has_window().await);
}

#[tokio::test]
async fn a_start_that_tensorrt_llm_answers_with_an_error_in_its_body_is_no_success() {
    let dir = tempfile::tempdir().unwrap();
    let beside = Beside::trtllm(dir.path(), |c| c.faults.start_errs = true).await;
    let kept = beside.window().await;
    let why = failed(&kept);
    assert!(why.contains("with success and with an error") && why.contains("worker did not answer"), "{why}");
    assert!(kept.end.unproven.is_some(), "{kept:#?}");
    assert_eq!(beside.asked("/stop_profile"), 0);
}

#[tokio::test]
async fn a_start_whose_answer_is_lost_is_stopped_on_every_engine() {
    let reset = |path: &str| vec![HttpFault::always(path, HttpFaultKind::ResetAfter)];
    let dir = tempfile::tempdir().unwrap();
    let beside = Beside::trtllm(dir.path(), |c| {
        c.load = LoadTrack::constant(stage::begin(), &[(0, 0), (0, 0)]);
        c.faults.http = reset("/start_profile");
    })
    .await;
    let kept = beside.window().await;
    assert_eq!(beside.asked("/stop_profile"), 1, "{:#?}", kept.record.exchanges);
    assert!(!beside.has_window().await);
    let dir = tempfile::tempdir().unwrap();
    let beside = Beside::dynamo_sglang(dir.path(), |c| c.faults.http = reset("/start_profile")).await;
    let kept = beside.window().await;
    // Its steps ended it, and its files show that: no stop is needed then.
    let captured = stage::done(&kept.record.incident.capture);
    assert_eq!((captured.quality, kept.end.unproven), (Quality::Usable, None), "{captured:#?}");
}

#[tokio::test]
async fn a_backend_without_profiler_answers_with_success_and_its_capture_is_broken() {
    let dir = tempfile::tempdir().unwrap();
    let beside = Beside::trtllm(dir.path(), |c| c.has_profiler = false).await;
    let kept = beside.window().await;
    assert!(
        !matches!(&kept.record.incident.capture, CaptureOutcome::Done(c) if c.quality == Quality::Usable),
        "{:#?}",
        kept.record.incident.capture
    );
    assert_eq!(beside.asked("/stop_profile"), 1, "a stop is sent all the same");
}

#[tokio::test]
async fn a_file_of_tensorrt_llm_that_is_cut_off_or_missing_makes_its_capture_partial() {
    let files_with = |faults: Faults| async move {
        let dir = tempfile::tempdir().unwrap();
        let beside = Beside::trtllm(dir.path(), |c| c.faults = faults).await;
        let kept = beside.window().await;
        let captured = stage::done(&kept.record.incident.capture);
        (captured.quality, captured.files.len())
    };
    let (cut, missing) = tokio::join!(
        files_with(Faults { truncated: vec![1], ..Faults::default() }),
        files_with(Faults { missing: vec![1], ..Faults::default() }),
    );
    assert_eq!((cut, missing), ((Quality::Partial, 2), (Quality::Partial, 1)));
}

#[tokio::test]
async fn the_files_of_ranks_that_nobody_has_told_of_are_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let beside = Beside::trtllm(dir.path(), |c| {
        (c.ranks, c.attention_dp) = (4, false);
        // Two seconds of ours: the double's time runs five times as fast.
        c.faults.late = vec![(3, Duration::from_secs(10))];
    })
    .await;
    let mut facts = beside.facts(&[]).await;
    facts.server = observe::server::facts(&beside.handle.server, 1).await.ok();
    facts.rank_seen(Rank::NONE, true, beside.store.clock.now());
    let kept = beside.take(&beside.grant(&facts, spec()).unwrap()).await;
    let captured = stage::done(&kept.record.incident.capture);
    assert_eq!((captured.quality, captured.files.len()), (Quality::Usable, 4), "{captured:#?}");
}

#[tokio::test]
async fn a_rank_that_is_seen_in_the_statistics_and_wrote_no_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let beside = Beside::trtllm(dir.path(), |c| c.faults.missing = vec![1]).await;
    let mut facts = beside.facts(&[0, 1]).await;
    facts.server = observe::server::facts(&beside.handle.server, 1).await.ok();
    let kept = beside.take(&beside.grant(&facts, spec()).unwrap()).await;
    let captured = stage::done(&kept.record.incident.capture);
    let missing: Vec<String> = captured.missing.iter().map(ToString::to_string).collect();
    assert_eq!((captured.quality, missing.len()), (Quality::Partial, 1), "{captured:#?}");
    assert!(missing[0].contains("dp_rank=1"), "{missing:?}");
}

#[tokio::test]
async fn tensorrt_llm_and_dynamo_are_refused_what_their_profile_calls_do_not_have() {
    let dir = tempfile::tempdir().unwrap();
    let beside = Beside::trtllm(dir.path(), |_| {}).await;
    let facts = beside.facts(&[0, 1]).await;
    let stacks = HttpWindow { with_stack: true, accept_risk: vec!["with_stack".into()], ..spec() };
    let why = beside.grant(&facts, stacks).unwrap_err().to_string();
    assert!(why.contains("with_stack on TensorRT-LLM"), "{why}");
    let dir = tempfile::tempdir().unwrap();
    let beside = Beside::dynamo_sglang(dir.path(), |_| {}).await;
    let why = beside.grant(&beside.facts(&[0]).await, spec()).unwrap_err().to_string();
    assert!(why.contains("DP1 had no work"), "a rank would stay armed: {why}");
}

#[tokio::test]
async fn whether_vllm_or_tensorrt_llm_runs_there_is_told_by_the_server_or_the_configuration_and_never_guessed()
 {
    let dir = tempfile::tempdir().unwrap();
    let fails = HttpFault::always("/v1/models", HttpFaultKind::Status(503));
    let beside = Beside::trtllm(dir.path(), |c| c.faults.http = vec![fails]).await;
    let why = observe::server::facts(&beside.handle.server, 1).await.unwrap_err().to_string();
    assert!(why.contains("`engine: vllm` or `engine: tensorrt_llm`"), "{why}");
    for engine in [ServerKind::TensorrtLlm, ServerKind::Vllm] {
        let server = beside.handle.server.clone().with_engine(Some(engine));
        assert_eq!(observe::server::facts(&server, 1).await.unwrap().engine, engine);
    }
    let dir = tempfile::tempdir().unwrap();
    let lost = HttpFault::always("/v1/models", HttpFaultKind::ResetAfter);
    let beside = Beside::trtllm(dir.path(), |c| c.faults.http = vec![lost]).await;
    let why = observe::server::facts(&beside.handle.server, 1).await.unwrap_err().to_string();
    assert!(why.contains("/v1/models was not reached"), "{why}");
}

#[tokio::test]
async fn a_worker_of_dynamo_is_known_by_its_metrics_and_no_profile_route_is_asked_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let beside = Beside::dynamo_sglang(dir.path(), |_| {}).await;
    assert_eq!(beside.facts(&[0, 1]).await.server.unwrap().engine, ServerKind::DynamoSglang);
    let dir = tempfile::tempdir().unwrap();
    let vllm = Beside::dynamo_vllm(dir.path(), true).await;
    assert_eq!(vllm.facts(&[0, 1]).await.server.unwrap().engine, ServerKind::DynamoVllm);
    for beside in [beside, vllm] {
        assert!(beside.double.requests().iter().all(|r| !r.path.starts_with("/engine")));
    }
}

#[tokio::test]
async fn windows_behind_dynamo_bring_every_ranks_file_by_the_workers_own_routes() {
    let dir = tempfile::tempdir().unwrap();
    let beside = Beside::dynamo_sglang(dir.path(), |_| {}).await;
    let kept = beside.window().await;
    let captured = stage::done(&kept.record.incident.capture);
    assert_eq!((captured.quality, captured.files.len()), (Quality::Usable, 2), "{captured:#?}");
    assert_eq!((beside.asked(START), beside.asked("/start_profile"), kept.end.unproven), (1, 0, None));
    assert_eq!(beside.asked(STOP), 0, "{:#?}", kept.record.exchanges);
    let dir = tempfile::tempdir().unwrap();
    let beside = Beside::dynamo_vllm(dir.path(), true).await;
    let kept = beside.window().await;
    let captured = stage::done(&kept.record.incident.capture);
    assert_eq!(captured.quality, Quality::Usable, "{captured:#?}");
    assert_eq!((beside.asked(START), beside.asked(STOP), kept.end.unproven), (1, 1, None));
}

#[tokio::test]
async fn an_error_in_the_body_of_a_200_of_dynamo_is_no_success() {
    let dir = tempfile::tempdir().unwrap();
    let beside = Beside::dynamo_vllm(dir.path(), false).await;
    let kept = beside.window().await;
    failed(&kept);
    let told = &kept.record.exchanges[0].answer;
    assert!(told.contains("\"status\":\"error\""), "{told}");
    assert!(kept.end.unproven.is_some(), "part of it may have begun: {kept:#?}");
    assert_eq!(beside.asked(STOP), 1, "nothing but a stop ends what began of it");
}

#[tokio::test]
async fn somebody_elses_profile_behind_dynamo_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let beside = Beside::dynamo_sglang(dir.path(), |_| {}).await;
    let theirs = r#"{"output_dir":"/tmp/theirs","start_step":1,"num_steps":1000000}"#;
    beside.double.change(|engine, now| engine.request(now, &Request::post(START, theirs)).1);
    let kept = beside.window().await;
    assert!(failed(&kept).contains("500"), "{:#?}", kept.record.incident.capture);
    assert_eq!(beside.asked(STOP), 0);
}

#[tokio::test]
async fn an_answer_of_dynamo_without_a_status_is_taken_for_lost_and_the_window_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let beside = Beside::dynamo_vllm(dir.path(), true).await;
    beside.double.change(|engine, _| {
        if let Double::Dynamo(world) = engine {
            world.garbles_next_profile_answer();
        }
        Vec::new()
    });
    let kept = beside.window().await;
    assert_eq!(beside.asked(STOP), 1, "{:#?}", kept.record.exchanges);
    let told = &kept.record.exchanges[0].answer;
    assert!(told.contains("not with the status"), "{told}");
}

#[tokio::test]
async fn init_check_and_doctor_know_tensorrt_llm() {
    let dir = tempfile::tempdir().unwrap();
    let beside = Beside::trtllm(dir.path(), |_| {}).await;
    let url = &beside.double.url;
    let (code, said) = run(dir.path(), &["init", url]).await;
    let written = std::fs::read_to_string(dir.path().join("skewtrap.yaml")).unwrap_or_default();
    assert!(code == 0 && written.contains("engine: tensorrt_llm"), "{said}\n{written}");
    let (code, said) = run(dir.path(), &["check", "skewtrap.yaml", "--against", url]).await;
    assert_eq!(code, 0, "{said}");
    let (_, said) = run(dir.path(), &["doctor", "--url", url, "--output-dir", &beside.folder]).await;
    for wanted in ["TensorRT-LLM 1.3.0", "every rank has work", "would post /start_profile"] {
        assert!(said.contains(wanted), "{wanted} is missing in\n{said}");
    }
    assert_eq!(beside.asked("/start_profile"), 0);
}

#[tokio::test]
async fn init_and_doctor_know_a_worker_of_dynamo() {
    let dir = tempfile::tempdir().unwrap();
    let beside = Beside::dynamo_sglang(dir.path(), |_| {}).await;
    let url = &beside.double.url;
    let (code, said) = run(dir.path(), &["init", url]).await;
    let written = std::fs::read_to_string(dir.path().join("skewtrap.yaml")).unwrap_or_default();
    assert!(code == 0 && written.contains("engine: dynamo"), "{said}\n{written}");
    let (_, said) = run(dir.path(), &["doctor", "--url", url, "--output-dir", &beside.folder]).await;
    for wanted in ["SGLang behind Dynamo", "would post /engine/control/start_profile"] {
        assert!(said.contains(wanted), "{wanted} is missing in\n{said}");
    }
    assert!(beside.double.requests().iter().all(|r| !r.path.starts_with("/engine")));
}

/// What an agent with a rule on `load` says until a line holds `words`, and then all of its incidents.
async fn agent_beside(dir: &Path, beside: &Beside, engine: &str, words: &'static str) -> Vec<Incident> {
    let (at, url, folder) = (dir.display(), &beside.double.url, &beside.folder);
    let text = format!(
        "targets:\n  - {{ name: served, url: '{url}', engine: {engine}, poll: 200ms }}\nrules:\n  - {{ name: skew, signal: load, across: dp_rank, trigger: {{ max_over_mean: 1.3, for: 1s }}, capture: {{ http: {{ num_steps: 10, deadline: 2s }} }} }}\ncapture: {{ http: {{ output_dir: '{folder}' }} }}\nkeep: {{ min_free: 0B }}\nreceivers: []\nstate_dir: '{at}/agent'\nincident_dir: '{at}/kept'\nlisten: 127.0.0.1:0\n"
    );
    std::fs::write(dir.join("skewtrap.yaml"), text).unwrap();
    let dir = dir.to_owned();
    let heard = skewtrap::world::blocking(move || {
        let mut agent = Agent::start(&dir, &["--config", "skewtrap.yaml"]);
        let address = agent.behind("status page and API on ").trim().to_owned();
        agent.until(words);
        // The outcome may be on its way.
        for _ in 0..2_000 {
            let output = skewtrap(&dir).args(["incidents", "--json", "--agent", &address]).output().unwrap();
            let incidents: Vec<Incident> = serde_json::from_slice(&output.stdout)
                .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
            let is_told =
                |i: &Incident| matches!(i.capture, CaptureOutcome::Done(_) | CaptureOutcome::Refused(_));
            if incidents.iter().any(is_told) {
                return incidents;
            }
        }
        panic!("no outcome was ever told");
    });
    heard.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_beside_tensorrt_llm_sees_the_skew_in_its_statistics_and_takes_one_window() {
    let dir = tempfile::tempdir().unwrap();
    let load = LoadTrack::constant(stage::begin(), &[(60, 9), (9, 0)]);
    let beside = Beside::trtllm(dir.path(), |c| c.load = load).await;
    let incidents = agent_beside(dir.path(), &beside, "tensorrt_llm", "the window is over").await;
    let captured = stage::done(&incidents[0].capture);
    assert_eq!((captured.quality, captured.files.len()), (Quality::Usable, 2), "{captured:#?}");
    let asked = ["/start_profile", "/stop_profile", "/v1/loads"].map(|path| beside.asked(path));
    assert_eq!(asked, [1, 0, 0], "its steps end the window");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_beside_a_worker_of_dynamo_with_an_idle_rank_arms_nothing_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let load = LoadTrack::constant(stage::begin(), &[(60, 9), (0, 0)]);
    let beside = Beside::dynamo_sglang(dir.path(), |c| c.load = load).await;
    let incidents = agent_beside(dir.path(), &beside, "dynamo", "no capture").await;
    let CaptureOutcome::Refused(refused) = &incidents[0].capture else {
        panic!("{:#?}", incidents[0].capture)
    };
    assert!(refused.why.contains("DP1 had no work"), "{}", refused.why);
    assert_eq!((beside.asked(START), beside.asked(STOP)), (0, 0));
}
