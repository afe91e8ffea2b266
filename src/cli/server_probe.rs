//! Probes a live server once, for `init` and `check --against`. It changes nothing on the server.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use crate::http::{Server, body, client};
use crate::observe::host;
use crate::observe::server::{self, InfoError};
use skewtrap_core::capture::facts::{ServerFacts, ServerKind};
use skewtrap_core::signal::exposition;
use skewtrap_core::signal::iteration_stats;
use skewtrap_core::signal::loads::Loads;
use skewtrap_core::signal::metrics::Metrics;
use skewtrap_core::signal::sample::Signal;
use skewtrap_core::signal::user_metric::{UserMetric, UserMetrics};
use skewtrap_core::suggest::nearest;
use skewtrap_trace::rank::Rank;

const LIMIT: Duration = Duration::from_secs(10);

/// The answers of a server.
#[derive(Debug)]
pub struct Probe {
    /// Its own description.
    pub facts: ServerFacts,
    /// The path of its load endpoint and the loads, or why there are none.
    pub loads: Result<(&'static str, Loads), String>,
    /// Its metrics, or why there are none.
    pub metrics: Result<Metrics, String>,
    /// Its metrics page, as it came.
    pub page: Vec<u8>,
    /// The user's own metrics, of those looked for.
    pub own: Vec<FoundMetric>,
    /// The ranks whose processes are seen from here; `None` where its address is none of this machine.
    pub processes: Option<Vec<Rank>>,
}

/// A metric of the user's on the server's page.
#[derive(Clone, Debug)]
pub struct FoundMetric {
    /// Which signal.
    pub signal: Signal,
    /// The metric's name.
    pub metric: Arc<str>,
    /// The ranks that have it; empty where the page does not.
    pub ranks: Vec<Rank>,
    /// Names on the page that begin alike.
    pub near: Option<String>,
}

impl FoundMetric {
    /// What is wrong where no rank has it.
    pub fn remedy(&self) -> String {
        let near = self.near.as_ref().map_or_else(String::new, |near| format!("; it has `{near}`"));
        format!(
            "the server's page has no `{}` with these labels and this `stat`{near} (pages beside it were not asked)",
            self.metric
        )
    }
}

impl Probe {
    /// Looks for the user's own metrics on the server's page.
    pub fn look_for(&mut self, own: &[UserMetric]) {
        let mut reader = UserMetrics::default();
        reader.set_metrics(own.to_vec());
        let ranks = reader.ranks_on(&self.page).unwrap_or_else(|_| vec![Vec::new(); own.len()]);
        let mut names = BTreeSet::new();
        let _ = exposition::read(&self.page, |s| {
            names.insert(String::from_utf8_lossy(s.name).into_owned());
        });
        let found = own.iter().zip(ranks).map(|(own, ranks)| FoundMetric {
            signal: own.signal,
            metric: own.metric.clone(),
            ranks,
            near: nearest(&own.metric, names.iter().map(String::as_str)),
        });
        self.own = found.collect();
    }
}

/// Probes the server at `url`.
///
/// # Errors
/// It does not answer, wants a key, or is no server that the agent knows.
pub fn probe(url: &str) -> anyhow::Result<Probe> {
    let is_address =
        reqwest::Url::parse(url).is_ok_and(|u| matches!(u.scheme(), "http" | "https") && u.has_host());
    if !is_address {
        anyhow::bail!(super::wrong(&format!(
            "{url} is no address of a server; write it as http://127.0.0.1:30000"
        )));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    runtime.block_on(async {
        let server = Server::new(client::client(None)?, url, None, None);
        let page = body_of(&server, "/metrics").await;
        let metrics = page.as_deref().map_err(String::clone).and_then(metrics_of);
        let page = page.unwrap_or_default();
        let engines = metrics.as_ref().map_or(1, |m| m.ranks().count().clamp(1, 1024) as u16);
        let facts = match server::facts(&server, engines).await {
            Err(InfoError::Key { url, .. }) => {
                return Err(super::wrong(&format!(
                    "{url} wants a key; write `targets: [{{ url: ..., api_key: {{ env: SERVER_KEY }} }}]` in skewtrap.yaml by hand, and see `skewtrap doctor`"
                )));
            }
            other => other?,
        };
        let loads = match facts.engine {
            ServerKind::Sglang => loads_of(&server).await,
            ServerKind::TensorrtLlm => iteration_stats::read(&page)
                .map(|loads| ("/metrics", loads))
                .ok_or_else(|| "/metrics has no iteration statistics; set enable_iter_perf_stats".into()),
            engine => Err(format!("{engine} has no such endpoint")),
        };
        let processes = host::ranks_of(url);
        Ok(Probe { facts, loads, metrics, page, own: Vec::new(), processes })
    })
}

async fn loads_of(server: &Server) -> Result<(&'static str, Loads), String> {
    let ask = |path| async move {
        let body = body_of(server, path).await?;
        iteration_stats::read_loads(&body).map(|loads| (path, loads)).map_err(|e| e.to_string())
    };
    server::first_loads_path(0, ask, Result::is_err).await.1
}

fn metrics_of(body: &[u8]) -> Result<Metrics, String> {
    let mut metrics = Metrics::default();
    metrics.read(body).map_err(|e| e.to_string())?;
    match metrics.families() {
        0 => Err("the page has none of the engine's metrics".into()),
        _ => Ok(metrics),
    }
}

async fn body_of(server: &Server, path: &str) -> Result<Vec<u8>, String> {
    let answer = server.get(path).timeout(LIMIT).send().await.map_err(|e| client::cause_of(&e))?;
    let status = answer.status();
    if !status.is_success() {
        return Err(format!("{path} answered {}", status.as_u16()));
    }
    body::read(answer, body::PAGE, LIMIT).await.map_err(|e| e.to_string())
}
