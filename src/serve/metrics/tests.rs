use super::*;
use skewtrap_core::incident::Incident;
use skewtrap_core::message::sample;
use skewtrap_core::rule::Severity;
use skewtrap_core::signal::source::SourceState;
use skewtrap_core::status::*;
use skewtrap_trace::time::Time;

fn status() -> Status {
    let at = Time::from_epoch_s(1_795_492_130.0);
    let source = SourceStatus {
        kind: "loads".into(),
        place: "http://127.0.0.1:30000/v1/loads".into(),
        state: SourceState::Ok,
        problem: None,
        is_behind: false,
        remark: None,
        last: Some(at),
        lag_s: Some(0.02),
        samples: 520,
        dropped: 1,
    };
    let group = GroupStatus {
        target: "server".into(),
        group: serde_json::from_str(r#"{"role": "unified"}"#).expect("labels"),
        state: RuleState::Firing,
        why: "it fires".into(),
        since: Some(at),
        statistic: "max_over_mean of load".into(),
        value: Some(2.52),
        bound: Some(1.5),
        rank: None,
        incident: None,
        refused: None,
        again: None,
    };
    let rule = RuleStatus {
        name: "dp-load-skew".into(),
        about: None,
        severity: Severity::Warning,
        capture: "http, 10 steps".into(),
        groups: vec![group],
        last_evaluated: Some(at),
        silenced_until: None,
    };
    let limit = LimitStatus {
        of: "all rules".into(),
        used: 1,
        captures: 4,
        per_s: 86_400.0,
        cooldown_until: Some(at),
    };
    Status {
        version: "0.2.0".into(),
        started: Time::from_epoch_s(1_795_492_000.0),
        at,
        servers: 3,
        targets: vec![TargetStatus {
            name: "server".into(),
            sources: vec![source],
            ..TargetStatus::default()
        }],
        rules: vec![rule],
        incidents: vec![Incident { resolved_at: None, ..sample(at) }],
        budget: BudgetStatus {
            limits: vec![limit],
            bundle_bytes: 6_000_000,
            bundle_bytes_limit: Some(20_000_000_000),
            free_bytes: Some(90_000_000_000),
            ..BudgetStatus::default()
        },
        receivers: vec![ReceiverStatus {
            name: "oncall".into(),
            means: "webhook".into(),
            pending: 2,
            last_sent: None,
            problem: Some("no answer within 10 s".into()),
        }],
        ..Status::default()
    }
}

fn raised() -> Metrics {
    let metrics = Metrics::default();
    metrics.transition("dp-load-skew", RuleState::Firing);
    metrics.capture("dp-load-skew", "http", "done");
    metrics.refusal("dp-load-skew", "cooldown");
    metrics.stall("server", 0.4);
    metrics.message("oncall", "again");
    metrics.queue("inbox", 7);
    metrics.restarts(2);
    metrics.restarts(2);
    metrics.requests.get_or_create(&vec![("code", "200".into())]).inc();
    metrics
}

/// The page without the figures of the process and its threads, which are never the same; the samples of a metric
/// in a fixed order, which the library does not promise.
fn page() -> String {
    let text = raised().text(&status());
    let of_threads = ["scrape", "log", "state", "other"]
        .map(|stage| format!("skewtrap_stage_cpu_seconds_total{{stage=\"{stage}\"}}"));
    let is_steady = |l: &&str| !l.starts_with("process_") && !of_threads.iter().any(|own| l.starts_with(own));
    let mut lines: Vec<&str> = text.lines().filter(is_steady).collect();
    lines.chunk_by_mut(|a, b| a.starts_with('#') == b.starts_with('#')).for_each(|chunk| {
        if !chunk[0].starts_with('#') {
            chunk.sort_unstable();
        }
    });
    lines.join("\n")
}

#[test]
fn the_page_has_every_metric_with_its_help_and_unit() {
    insta::assert_snapshot!(page());
}

#[test]
fn the_process_shows_its_memory_and_its_cpu_time() {
    let text = raised().text(&status());
    let value = |name: &str| -> f64 {
        let line =
            text.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
        line.split(' ').nth(1).expect("a value").parse().expect("a number")
    };
    assert!(value("process_resident_memory_bytes ") > 1e6);
    assert!(value("process_cpu_seconds_total ") >= 0.0);
    assert!(value("process_open_fds ") >= 3.0);
}

#[test]
fn the_documentation_names_every_metric() {
    let docs = include_str!("../../../docs/api.md");
    let text = raised().text(&status());
    let names = text.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next());
    let missing: Vec<&str> = names.filter(|n| !docs.contains(&format!("`{n}"))).collect();
    assert!(missing.is_empty(), "docs/api.md does not name {missing:?}");
}

#[test]
fn sources_of_one_kind_are_up_only_together() {
    let mut status = status();
    let log = |place: &str, state| SourceStatus {
        kind: "log".into(),
        place: place.into(),
        state,
        problem: None,
        is_behind: false,
        remark: None,
        last: None,
        lag_s: None,
        samples: 5,
        dropped: 1,
    };
    status.targets[0].sources = vec![log("a", SourceState::Failing), log("b", SourceState::Ok)];
    let text = Metrics::default().text(&status);
    for line in [
        "skewtrap_source_up{target=\"server\",source=\"log\"} 0",
        "skewtrap_source_samples_total{target=\"server\",source=\"log\"} 10",
        "skewtrap_source_dropped_total{target=\"server\",source=\"log\"} 2",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
}
