//! Polls a Prometheus-compatible server with one instant query.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Client;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::Now;
use super::poll::fetch;
use super::sender::ObservationSender;
use crate::http::Secret;
use crate::http::body::{self, Room};
use skewtrap_core::signal::observation::{Observation, Problem, ReportedProblem, SourceId};
use skewtrap_core::signal::promql::samples_of;
use skewtrap_core::signal::sample::{Sample, Signal, Source, TargetId};

/// One query.
#[derive(Clone, Debug)]
pub struct Config {
    /// The server that its samples belong to.
    pub target: TargetId,
    /// The source's id.
    pub source: SourceId,
    /// The signal that its samples are of.
    pub signal: Signal,
    /// The HTTP client.
    pub client: Client,
    /// The Prometheus server: `http://prometheus:9090`.
    pub url: Secret,
    /// That address for people, who may not see it.
    pub shown_url: Arc<str>,
    /// PromQL, an instant vector.
    pub query: Arc<str>,
    /// Sent as `Authorization: Bearer`.
    pub bearer: Option<Secret>,
    /// The interval.
    pub every: Duration,
}

/// Polls until cancelled, or until nobody receives observations. Returns `true`: it is finished for good.
pub async fn run(config: Config, sender: ObservationSender, cancel: CancellationToken, now: Now) -> bool {
    let mut ticks = tokio::time::interval(config.every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reported = ReportedProblem::default();
    loop {
        tokio::select! {
            () = cancel.cancelled() => return true,
            _ = ticks.tick() => {}
        }
        let answer = tokio::select! {
            () = cancel.cancelled() => return true,
            answer = ask(&config, sender.room()) => answer,
        };
        let Config { target, source, .. } = config;
        let at = (now)();
        let (samples, problem) = match answer {
            Ok(samples) => (Some(samples), None),
            Err(problem) => (None, Some(problem)),
        };
        let state = reported.changes_to(problem.clone()).then_some(Observation::State {
            target,
            source,
            kind: Source::Prometheus,
            problem,
            at,
        });
        let samples = samples.map(|samples| Observation::Samples { target, source, samples, at });
        for observation in state.into_iter().chain(samples) {
            if sender.send(observation).await.is_err() {
                return true;
            }
        }
    }
}

async fn ask(config: &Config, room: &Room) -> Result<Vec<Sample>, Problem> {
    let query_of = |url: &str| format!("{}/api/v1/query", url.trim_end_matches('/'));
    let mut request = config.client.get(query_of(config.url.reveal())).query(&[("query", &*config.query)]);
    if let Some(bearer) = &config.bearer {
        request = request.bearer_auth(bearer.reveal());
    }
    let timeout = config.every.mul_f64(0.9).min(Duration::from_secs(30));
    let failed = |why| Problem::BadQuery { url: config.shown_url.clone(), query: config.query.clone(), why };
    let shown = query_of(&config.shown_url);
    let body =
        fetch(request, shown.into(), timeout, "is that a Prometheus server's address?", (body::PAGE, room))
            .await;
    match body {
        // Prometheus answers 400 or 422 to a query that it cannot parse or execute.
        Err(Problem::Status { status: 400 | 422, .. }) => {
            Err(failed("the server does not understand it; try it on the server's own page".into()))
        }
        Err(problem) => Err(problem),
        Ok((body, _held)) => samples_of(&body, config.signal).map_err(failed),
    }
}
