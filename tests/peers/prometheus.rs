//! The source `prometheus` against a real Prometheus that scrapes a page of ours.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use skewtrap::clock::wall_time;
use skewtrap::http::Secret;
use skewtrap::http::client::client;
use skewtrap::observe::promql;
use skewtrap::observe::sender::{ObservationBatch, observation_channel};
use skewtrap_core::signal::observation::{Observation, Problem, SourceId};
use skewtrap_core::signal::sample::{Signal, TargetId};
use skewtrap_trace::rank::Rank;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::support::api::Agent;

const PAGE: &str = "# TYPE sglang:num_running_reqs gauge\n\
    sglang:num_running_reqs{dp_rank=\"0\",engine_type=\"unified\"} 9\n\
    sglang:num_running_reqs{dp_rank=\"1\",engine_type=\"unified\"} 46\n\
    sglang:num_running_reqs{dp_rank=\"2\",engine_type=\"unified\"} NaN\n";

/// A Prometheus that is killed at the end of the test.
struct Prometheus {
    process: Child,
    url: String,
    _dir: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Prometheus {
    /// `None`, loudly, where it is not installed.
    async fn scraping(page: &'static str) -> Option<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let exporter = listener.local_addr().unwrap();
        let router = Router::new().route("/metrics", get(move || async move { page }));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });

        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("prometheus.yml");
        std::fs::write(
            &config,
            format!(
                "global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}\n\
                 scrape_configs: [{{job_name: sglang, static_configs: [{{targets: ['{exporter}']}}]}}]\n"
            ),
        )
        .unwrap();
        let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let started = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(process) = started else {
            eprintln!("SKIPPED: the source `prometheus` against a real Prometheus (it is not installed)");
            return None;
        };
        Some(Self { process, url: format!("http://127.0.0.1:{port}"), _dir: dir })
    }

    /// Asks it a query ten times a second.
    fn asked(&self, query: &str) -> (mpsc::Receiver<ObservationBatch>, CancellationToken) {
        let (sender, rx) = observation_channel(64, 1 << 20);
        let cancel = CancellationToken::new();
        let config = promql::Config {
            target: TargetId(0),
            source: SourceId(0),
            signal: Signal(0),
            client: client(None).unwrap(),
            url: Secret::new(self.url.as_str()),
            shown_url: self.url.as_str().into(),
            query: query.into(),
            bearer: None,
            every: Duration::from_millis(200),
        };
        tokio::spawn(promql::run(config, sender, cancel.clone(), Arc::new(wall_time)));
        (rx, cancel)
    }
}

/// What comes until `wanted` says it is it, at most half a minute.
async fn until<T>(rx: &mut mpsc::Receiver<ObservationBatch>, wanted: impl Fn(Observation) -> Option<T>) -> T {
    let looking = async {
        loop {
            let seen = rx.recv().await.expect("the source lives");
            if let Some(found) = seen.observations.into_iter().find_map(&wanted) {
                return found;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), looking).await.expect("within 30 s")
}

#[tokio::test]
async fn a_query_gives_one_sample_per_rank_and_no_nan() {
    let Some(prometheus) = Prometheus::scraping(PAGE).await else { return };
    let (mut rx, _cancel) = prometheus.asked("sum by (dp_rank) ({__name__=\"sglang:num_running_reqs\"}) * 2");
    let samples = until(&mut rx, |seen| match seen {
        Observation::Samples { samples, .. } if !samples.is_empty() => Some(samples),
        _ => None,
    })
    .await;
    let values: BTreeMap<Rank, f64> = samples.iter().map(|s| (s.rank, s.value)).collect();
    assert_eq!(values, BTreeMap::from([(Rank::dp(0), 18.0), (Rank::dp(1), 92.0)]));
    let age = wall_time().since(samples[0].at);
    assert!(age < Duration::from_secs(60), "its time is Prometheus' own: {age:?}");
}

#[tokio::test]
async fn a_query_that_prometheus_refuses_and_a_prometheus_that_goes_are_told_once() {
    let Some(prometheus) = Prometheus::scraping(PAGE).await else { return };
    let (mut rx, _cancel) = prometheus.asked("sum by (dp_rank) (");
    let problem = |seen| match seen {
        Observation::State { problem: Some(problem), .. } => Some(problem),
        _ => None,
    };
    until(&mut rx, |seen| problem(seen).filter(|p| matches!(p, Problem::BadQuery { .. }))).await;

    let (mut rx, _cancel) = prometheus.asked("vector(1)");
    until(&mut rx, |seen| matches!(seen, Observation::Samples { .. }).then_some(())).await;
    drop(prometheus);
    let gone = until(&mut rx, problem).await;
    assert!(!matches!(gone, Problem::BadQuery { .. }), "{gone}");
    // The same problem again is no news: only another one, or its end, would be.
    let more = tokio::time::timeout(Duration::from_secs(1), rx.recv()).await;
    assert!(more.is_err(), "{more:?}");
}

#[tokio::test]
async fn the_metrics_are_taken_by_promtool() {
    let agent = Agent::start().await;
    let text = agent.http.get(agent.url("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(text.contains("skewtrap_source_samples_total{target=\"server\",source=\"loads\"} 7"), "{text}");
    assert!(text.ends_with("# EOF\n"));
    // promtool's lint reads the older text format, in which the name of a counter ends in _total.
    let mut old = String::new();
    for line in text.lines().filter(|l| !l.starts_with("# UNIT") && *l != "# EOF") {
        let counter = line.strip_prefix("# TYPE ").and_then(|l| l.strip_suffix(" counter"));
        let line = counter.map_or_else(|| line.to_owned(), |name| format!("# TYPE {name}_total counter"));
        if !line.starts_with("# HELP") {
            old.push_str(
                &line.replace(" info", " gauge").replace("skewtrap_build gauge", "skewtrap_build_info gauge"),
            );
            old.push('\n');
        }
    }
    let checked = std::process::Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn();
    let Ok(mut promtool) = checked else {
        eprintln!("SKIPPED: the metrics page against promtool (it is not installed)");
        return;
    };
    std::io::Write::write_all(&mut promtool.stdin.take().unwrap(), old.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let complaints: Vec<String> = String::from_utf8_lossy(&output.stderr)
        .lines()
        .filter(|l| !l.contains("no help text") && !l.is_empty())
        .map(str::to_owned)
        .collect();
    assert!(complaints.is_empty(), "{complaints:?}");
}
