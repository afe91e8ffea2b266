//! What is asked of which release, and what is refused.

use serde_json::json;

use super::*;
use crate::capture::facts::{Folder, Room};
use crate::capture::refusal::Refusal;
use skewtrap_trace::rank::Rank;

fn now() -> Time {
    Time::from_epoch_s(1_000.0)
}

/// Facts of a server that reports `info`, with the ranks `busy` at work.
fn facts(info: Value, busy: &[u16]) -> Facts {
    let mut facts =
        Facts { server: Some(ServerFacts::of_server_info(&info)), sees_log: true, ..Facts::default() };
    facts.ranks_at = Some(now());
    busy.iter().for_each(|dp| facts.rank_seen(Rank::dp(*dp), true, now()));
    with_small_model(facts)
}

fn asked(spec: &HttpWindow, facts: &Facts) -> Result<StartRequest, Refusal> {
    plan(spec, facts, &SizingInputs::default(), WindowNaming { mark: "i1", output_dir: Some("/p/") }, now())
}

fn body(spec: &HttpWindow, facts: &Facts) -> String {
    asked(spec, facts).expect("it is allowed").body.expect("SGLang takes a body").to_string()
}

fn sglang(version: &str) -> Value {
    json!({"version": version, "dp_size": 2, "device": "cuda", "attention_backend": "fa3"})
}

/// A model so small that a first window of it stays below the default of `max_stall`.
fn with_small_model(facts: Facts) -> Facts {
    let config = json!({"num_hidden_layers": 8});
    let small =
        |server: ServerFacts| ServerFacts { model_size: server.model_size.with_config(&config), ..server };
    Facts { server: facts.server.map(small), ..facts }
}

#[test]
fn every_release_is_asked_in_its_own_words() {
    let spec = HttpWindow { num_steps: Some(10), ..HttpWindow::default() };
    insta::assert_snapshot!(body(&spec, &facts(sglang("0.5.23"), &[0, 1])), @r#"{"activities":["GPU"],"num_steps":10,"output_dir":"/p/skewtrap-i1","profile_id":"skewtrap-i1","record_shapes":false,"start_step":1,"with_stack":false}"#);
    insta::assert_snapshot!(body(&spec, &facts(sglang("0.5.9"), &[0, 1])), @r#"{"activities":["GPU"],"num_steps":10,"output_dir":"/p/skewtrap-i1","profile_prefix":"skewtrap-i1","record_shapes":false,"start_step":1,"with_stack":false}"#);
    insta::assert_snapshot!(body(&spec, &facts(sglang("0.4.7.post1"), &[0, 1])), @r#"{"activities":["GPU"],"num_steps":11,"output_dir":"/p/skewtrap-i1","record_shapes":false,"with_stack":false}"#);
}

#[test]
fn with_an_idle_rank_no_start_step_is_sent() {
    let spec = HttpWindow { num_steps: Some(10), ..HttpWindow::default() };
    let idle = asked(&spec, &facts(sglang("0.5.16"), &[1])).unwrap();
    insta::assert_snapshot!(idle.body.unwrap().to_string(), @r#"{"activities":["GPU"],"num_steps":10,"output_dir":"/p/skewtrap-i1","profile_id":"skewtrap-i1","record_shapes":false,"with_stack":false}"#);
    assert_eq!((idle.form, &idle.ranks.idle[..]), (StartMode::Plain, &[Rank::dp(0)][..]));
    assert_eq!(asked(&spec, &facts(sglang("0.5.16"), &[])).unwrap_err(), Refusal::AllIdle);
}

#[test]
fn idle_ranks_of_a_server_with_dp_attention_step_along() {
    let info = json!({"version": "0.5.16", "dp_size": 2, "tp_size": 2, "enable_dp_attention": true,
        "device": "cuda"});
    let planned = asked(&HttpWindow::default(), &facts(info, &[1])).unwrap();
    assert_eq!((planned.form, &planned.body.unwrap()["start_step"]), (StartMode::Exact, &json!(1)));
}

#[test]
fn a_cpu_server_is_asked_for_what_it_has() {
    let info = json!({"version": "0.5.23", "dp_size": 2, "device": "cpu"});
    let spec = HttpWindow { max_stall: Some(Duration::from_secs(5)), ..HttpWindow::default() };
    let planned = asked(&spec, &facts(info.clone(), &[1])).unwrap();
    assert_eq!(planned.body.unwrap()["activities"], json!(["CPU"]));
    let refused = asked(&HttpWindow::default(), &facts(info, &[1])).expect_err("operators take more room");
    assert_eq!(refused.word(), "too_costly");
}

#[test]
fn an_activity_that_torch_may_not_have_there_is_never_asked_for() {
    let of = |device: Value, activities: &[&str]| {
        let info = json!({"version": "0.5.16", "dp_size": 2, "device": device});
        let asked_for = activities.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>();
        let spec =
            HttpWindow { activities: (!asked_for.is_empty()).then_some(asked_for), ..HttpWindow::default() };
        asked(&spec, &facts(info, &[0, 1])).map_err(|r| r.word())
    };
    assert_eq!(of(Value::Null, &[]).unwrap_err(), "unknown_device");
    assert_eq!(of(json!("npu"), &[]).unwrap_err(), "unknown_device");
    assert!(of(Value::Null, &["GPU"]).is_ok(), "the operator knows");
    assert_eq!(of(json!("cpu"), &["CPU", "GPU"]).unwrap_err(), "never");
    assert_eq!(of(json!("hip"), &[]).unwrap().body.unwrap()["activities"], json!(["GPU"]));
}

#[test]
fn a_window_that_says_nothing_is_sized_by_what_it_may_cost() {
    let planned = asked(&HttpWindow::default(), &facts(sglang("0.5.16"), &[0, 1])).unwrap();
    let sizing = planned.sizing.expect("it is sized");
    assert_eq!(planned.body.unwrap()["num_steps"], json!(sizing.steps));
    assert!(sizing.predicted.unwrap() <= crate::capture::size::DEFAULT_MAX_STALL);
}

#[test]
fn merge_profiles_is_never_sent() {
    let spec = HttpWindow { merge_profiles: true, ..HttpWindow::default() };
    assert!(!body(&spec, &facts(sglang("0.5.23"), &[0, 1])).contains("merge"));
}

#[test]
fn without_a_folder_files_are_told_apart_by_id_or_prefix_or_not_taken_at_all() {
    let spec = HttpWindow::default();
    let bare = |version| {
        let naming = WindowNaming { mark: "i1", output_dir: None };
        plan(&spec, &facts(sglang(version), &[0, 1]), &SizingInputs::default(), naming, now())
    };
    assert_eq!(bare("0.5.16").unwrap().marks.id.as_deref(), Some("skewtrap-i1"));
    assert_eq!(bare("0.5.9").unwrap().marks.prefix.as_deref(), Some("skewtrap-i1"));
    assert_eq!(bare("0.5.5").unwrap_err().word(), "never");
}

#[test]
fn what_a_release_does_not_know_is_refused_with_the_first_that_does() {
    let spec = HttpWindow { detailed_annotations: true, ..HttpWindow::default() };
    let refusal = asked(&spec, &facts(sglang("0.5.16"), &[0, 1])).unwrap_err();
    insta::assert_snapshot!(refusal, @"SGLang 0.5.16 does not know detailed_annotations; 0.5.23 is the first release that has it");
}

#[test]
fn dangers_are_refused_until_they_are_accepted_by_name() {
    // Stacks cost more than the default allows.
    let default = || HttpWindow { max_stall: Some(Duration::from_secs(6)), ..HttpWindow::default() };
    let cases: [(&str, HttpWindow); 4] = [
        ("with_stack", HttpWindow { with_stack: true, ..default() }),
        ("profile_by_stage", HttpWindow { profile_by_stage: true, ..default() }),
        ("start_step", HttpWindow { start_step: Some(5), ..default() }),
        ("mem_on_rocm", HttpWindow { activities: Some(vec!["MEM".into()]), ..default() }),
    ];
    let info = json!({"version": "0.5.16", "device": "hip"});
    for (name, spec) in cases {
        let refusal = asked(&spec, &facts(info.clone(), &[0])).unwrap_err();
        assert!(matches!(refusal, Refusal::Risk { name: n, .. } if n == name), "{name}: {refusal}");
        let accepted = HttpWindow { accept_risk: vec![name.into()], ..spec };
        assert!(asked(&accepted, &facts(info.clone(), &[0])).is_ok(), "{name} was accepted");
    }
}

#[test]
fn no_window_can_be_configured_without_bounds() {
    let default = HttpWindow::default;
    let odd = [
        HttpWindow { num_steps: Some(0), ..default() },
        HttpWindow { num_steps: Some(1001), ..default() },
        HttpWindow { deadline: Duration::ZERO, ..default() },
        HttpWindow { deadline: Duration::from_secs(31), ..default() },
        HttpWindow { activities: Some(vec!["FOO".into()]), ..default() },
        HttpWindow { activities: Some(vec!["CUDA_PROFILER".into(), "GPU".into()]), ..default() },
        HttpWindow { accept_risk: vec!["all".into()], ..default() },
    ];
    for spec in odd {
        assert_eq!(asked(&spec, &facts(sglang("0.5.16"), &[0, 1])).unwrap_err().word(), "never", "{spec:?}");
    }
}

#[test]
fn profile_v2_and_the_rust_front_end_are_refused() {
    let v2 = json!({"version": "0.5.23", "device": "cuda", "env_vars": {"SGLANG_PROFILE_V2": "true"}});
    assert_eq!(asked(&HttpWindow::default(), &facts(v2, &[0])).unwrap_err(), Refusal::ProfileV2);
    let rust = json!({"version": "0.5.23", "frontend": "rust"});
    assert_eq!(asked(&HttpWindow::default(), &facts(rust, &[0])).unwrap_err().word(), "never");
}

#[test]
fn an_old_release_without_start_step_is_asked_only_with_its_log_in_sight() {
    let mut facts = facts(sglang("0.4.7"), &[0, 1]);
    facts.sees_log = false;
    assert_eq!(asked(&HttpWindow::default(), &facts).unwrap_err().word(), "needs_log");
}

#[test]
fn without_a_log_only_the_form_that_refuses_doubles_is_asked() {
    let unwitnessed = |busy: &[u16]| Facts { sees_log: false, ..facts(sglang("0.5.16"), busy) };
    assert_eq!(asked(&HttpWindow::default(), &unwitnessed(&[0, 1])).unwrap().form, StartMode::Exact);
    let refusal = asked(&HttpWindow::default(), &unwitnessed(&[1])).unwrap_err();
    assert_eq!(refusal.word(), "needs_log");
    insta::assert_snapshot!(refusal, @"DP0 had no work in the last 2 s (idle, starved or silent), so the start that refuses to replace somebody else's profile cannot be used, and that is safe only when the agent reads the server's log; give it with --log, or under `logs` of the target");
}

#[test]
fn a_vllm_window_is_held_and_takes_a_body_only_where_there_is_one() {
    let mut facts = facts(json!({}), &[0, 1]);
    facts.server = Some(ServerFacts::of_vllm("0.19.0", 2));
    let spec = HttpWindow { num_steps: Some(10), ..HttpWindow::default() };
    let old = asked(&spec, &facts).unwrap();
    assert_eq!((old.body, old.form, old.hold), (None, StartMode::Held, Some(Duration::from_millis(500))));
    facts.server = Some(ServerFacts::of_vllm("0.33.0", 2));
    let new = asked(&spec, &facts).unwrap();
    insta::assert_snapshot!(new.body.unwrap().to_string(), @r#"{"max_iterations":10,"profile_prefix":"skewtrap-i1"}"#);
    let spec = HttpWindow { with_stack: true, ..spec };
    assert_eq!(asked(&spec, &facts).unwrap_err().word(), "never");
}

#[test]
fn tensorrt_llm_and_dynamo_are_asked_only_what_every_release_of_theirs_takes() {
    let spec = HttpWindow { num_steps: Some(10), ..HttpWindow::default() };
    let of = |server: ServerFacts| with_folder(Facts { server: Some(server), ..facts(json!({}), &[0, 1]) });
    let request = asked(&spec, &of(ServerFacts::of_tensorrt_llm("1.3.0", 2))).unwrap();
    insta::assert_snapshot!(request.body.unwrap().to_string(), @r#"{"activities":["GPU"],"num_steps":10,"output_dir":"/p/skewtrap-i1"}"#);
    assert_eq!((request.form, request.hold), (StartMode::Plain, None));
    let request = asked(&spec, &of(ServerFacts::of_dynamo(ServerKind::DynamoSglang, "m", 2))).unwrap();
    insta::assert_snapshot!(request.body.unwrap().to_string(), @r#"{"activities":["GPU"],"num_steps":10,"output_dir":"/p/skewtrap-i1","record_shapes":false,"start_step":1,"with_stack":false}"#);
    assert_eq!((request.form, request.hold), (StartMode::Exact, None), "it ends by its steps");
    let request = asked(&spec, &of(ServerFacts::of_dynamo(ServerKind::DynamoVllm, "m", 2))).unwrap();
    insta::assert_snapshot!(request.body.unwrap().to_string(), @r#"{"profile_prefix":"skewtrap-i1"}"#);
    assert_eq!((request.form, request.hold), (StartMode::Held, Some(Duration::from_millis(500))));
}

/// The same with `/p` in the agent's sight.
fn with_folder(facts: Facts) -> Facts {
    let seen = Some(Room { exists: true, writable: true, free: 1 << 40 });
    Facts { folders: vec![Folder { server_path: "/p".into(), seen, at: now() }], ..facts }
}

#[test]
fn tensorrt_llm_is_asked_for_no_window_whose_end_the_agent_would_not_see() {
    let server = Some(ServerFacts::of_tensorrt_llm("1.3.0", 2));
    let seen = with_folder(Facts { server, ..facts(json!({}), &[0, 1]) });
    let spec = || HttpWindow { num_steps: Some(10), ..HttpWindow::default() };
    assert!(asked(&spec(), &seen).is_ok());
    let elsewhere = HttpWindow { output_dir: Some("/other".into()), ..spec() };
    let mut hidden = seen.clone();
    hidden.folders[0].seen = None;
    for (spec, facts) in
        [(elsewhere, &seen), (spec(), &hidden), (spec(), &Facts { folders: vec![], ..seen.clone() })]
    {
        let refusal = asked(&spec, facts).unwrap_err().to_string();
        assert!(refusal.contains("the agent does not see") && refusal.contains("path_map"), "{refusal}");
    }
}

#[test]
fn a_worker_of_dynamo_with_an_idle_rank_is_asked_for_no_window() {
    let server = Some(ServerFacts::of_dynamo(ServerKind::DynamoSglang, "m", 1));
    let mut facts = Facts { server, ..facts(json!({}), &[0]) };
    facts.rank_seen(Rank::dp(1), false, now());
    let refusal = asked(&HttpWindow { num_steps: Some(10), ..HttpWindow::default() }, &facts).unwrap_err();
    assert!(refusal.to_string().contains("DP1 had no work"), "{refusal}");
}

#[test]
fn an_engine_whose_files_bear_no_mark_is_asked_for_no_window_without_a_folder() {
    let spec = HttpWindow { num_steps: Some(10), ..HttpWindow::default() };
    let naming = WindowNaming { mark: "i1", output_dir: None };
    for server in
        [ServerFacts::of_tensorrt_llm("1.3.0", 2), ServerFacts::of_dynamo(ServerKind::DynamoSglang, "m", 2)]
    {
        let facts = Facts { server: Some(server), ..facts(json!({}), &[0, 1]) };
        let refusal = plan(&spec, &facts, &SizingInputs::default(), naming, now()).unwrap_err().to_string();
        assert!(refusal.contains("set capture.output_dir"), "{refusal}");
    }
}

#[test]
fn a_deadline_that_is_shorter_than_any_window_that_is_held_bounds_it_all_the_same() {
    let deadline = Duration::from_millis(120);
    let spec = HttpWindow { num_steps: Some(10), deadline, ..HttpWindow::default() };
    for server in [ServerFacts::of_vllm("0.32.0", 2), ServerFacts::of_dynamo(ServerKind::DynamoVllm, "m", 2)]
    {
        let mut facts = facts(sglang("0.5.16"), &[0, 1]);
        facts.server = Some(server);
        let asked = asked(&spec, &facts).expect("it is allowed");
        assert_eq!(asked.hold, Some(deadline));
    }
}
