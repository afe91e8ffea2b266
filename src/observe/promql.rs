//! Asks a Prometheus-compatible server one instant query again and again.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Client;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::Now;
use super::poll::fetch;
use crate::http::Secret;
use skewtrap_core::signal::observation::{Observation, Problem, SourceId};
use skewtrap_core::signal::promql::samples_of;
use skewtrap_core::signal::sample::{Sample, Signal, Source, TargetId};

/// One query.
#[derive(Clone, Debug)]
pub struct Config {
    /// Of which server its samples are.
    pub target: TargetId,
    /// Which source.
    pub source: SourceId,
    /// The signal that it gives.
    pub signal: Signal,
    /// The client.
    pub client: Client,
    /// The Prometheus server: `http://prometheus:9090`.
    pub url: Arc<str>,
    /// PromQL, an instant vector.
    pub query: Arc<str>,
    /// Sent as `Authorization: Bearer`.
    pub bearer: Option<Secret>,
    /// How often.
    pub every: Duration,
}

/// Asks until cancelled; whether it is finished for good.
pub async fn run(config: Config, tx: mpsc::Sender<Observation>, cancel: CancellationToken, now: Now) -> bool {
    let mut ticks = tokio::time::interval(config.every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = None;
    loop {
        tokio::select! {
            () = cancel.cancelled() => return true,
            _ = ticks.tick() => {}
        }
        let answer = tokio::select! {
            () = cancel.cancelled() => return true,
            answer = ask(&config) => answer,
        };
        let Config { target, source, .. } = config;
        let at = (now)();
        let (samples, problem) = match answer {
            Ok(samples) => (Some(samples), None),
            Err(problem) => (None, Some(problem)),
        };
        let state = Problem::is_news(problem.as_ref(), told.as_ref()).then(|| {
            told.clone_from(&problem);
            Observation::State { target, source, kind: Source::Prometheus, problem, at }
        });
        let samples = samples.map(|samples| Observation::Samples { target, source, samples, at });
        for observation in state.into_iter().chain(samples) {
            if tx.send(observation).await.is_err() {
                return true;
            }
        }
    }
}

async fn ask(config: &Config) -> Result<Vec<Sample>, Problem> {
    let url = format!("{}/api/v1/query", config.url.trim_end_matches('/'));
    let mut request = config.client.get(&url).query(&[("query", &*config.query)]);
    if let Some(bearer) = &config.bearer {
        request = request.bearer_auth(bearer.reveal());
    }
    let timeout = config.every.mul_f64(0.9).min(Duration::from_secs(30));
    let failed = |why| Problem::BadQuery { url: config.url.clone(), query: config.query.clone(), why };
    let body = fetch(request, url.into(), timeout, "is that a Prometheus server's address?").await;
    match body {
        // Prometheus answers 400 with its words for a query that it does not understand.
        Err(Problem::Status { status: 400 | 422, .. }) => {
            Err(failed("the server does not understand it; try it on the server's own page".into()))
        }
        Err(problem) => Err(problem),
        Ok(body) => samples_of(&body, config.signal).map_err(failed),
    }
}
