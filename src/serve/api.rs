//! The paths that only read: each returns a part of the published status.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::metrics::HealthProblem;
use super::published::Vitals;
use super::{ApiError, HUNG_AFTER, Query, Shared, files};
use crate::clock::wall_time;
use skewtrap_core::incident::Incident;
use skewtrap_core::message::{Brief, Facts, Origin, next_step, utc};
use skewtrap_core::status::{RuleStatus, Scope, Status};

/// Whether the loop still publishes. Kubernetes restarts the agent when it does not.
pub(super) async fn healthz(State(shared): State<Shared>) -> Response {
    let age = wall_time().since(shared.context.published.vitals().at);
    if age > HUNG_AFTER {
        let why = format!("the agent's loop has published nothing for {} s", age.as_secs());
        return ApiError(StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    }
    // The watching goes on and open windows are stopped: a restart would mend nothing.
    let metrics = &shared.context.metrics;
    match [&metrics.disk, &metrics.bundles, &metrics.lease, &metrics.store]
        .into_iter()
        .find_map(HealthProblem::told)
    {
        Some(why) => format!("ok, but {why}\n").into_response(),
        None => "ok\n".into_response(),
    }
}

/// Whether every server has a source that gives samples. The answer names those that have none. One that does not
/// answer any more takes nobody's page away: what was seen of it is what people want to look at then.
pub(super) async fn readyz(State(shared): State<Shared>) -> Response {
    let Vitals { unheard, unanswered, behind, .. } = shared.context.published.vitals();
    if !unheard.is_empty() {
        let why = format!("no sample yet from {}", unheard.join(", "));
        return ApiError(StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    }
    let silent = unanswered
        .iter()
        .take(SERVERS)
        .map(|(name, since)| format!("{name} has not answered since {}", utc(*since)));
    let left = (!behind.is_empty()).then(|| {
        let names = behind.iter().take(SERVERS).map(|name| &**name).collect::<Vec<_>>().join(", ");
        format!("the agent is behind, and skips answers of {names}")
    });
    let but: Vec<String> = silent.chain(left).collect();
    match but.is_empty() {
        true => "ready\n".into_response(),
        false => format!("ready, but {}\n", but.join(", ")).into_response(),
    }
}

/// Which servers somebody asks about.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Asked {
    /// Only this one.
    target: Option<Arc<str>>,
    /// Those behind this one.
    after: Option<Arc<str>>,
    /// So many at most.
    limit: Option<usize>,
}

/// So many servers are shown where nobody says how many: an answer has a bounded size.
const SERVERS: usize = 25;

/// So many servers have metrics in one answer; `after` gives the next ones.
const SERVERS_MEASURED: usize = 250;

impl Asked {
    fn scope(self) -> Scope {
        let Self { target, after, limit } = self;
        Scope { target, after, limit: limit.unwrap_or(SERVERS), ranks: true }
    }
}

/// The same of a history.
#[derive(Debug, Default, Deserialize)]
pub(super) struct AskedHistory {
    target: Option<Arc<str>>,
    after: Option<Arc<str>>,
    limit: Option<usize>,
    /// The lines of this signal alone.
    signal: Option<Arc<str>>,
}

/// An answer that is a list says in a header how it goes on.
type Listed<T> = ([(HeaderName, String); 1], Json<T>);

fn listed<T>(status: &Status, list: T) -> Listed<T> {
    ([(NEXT, status.next.as_deref().unwrap_or_default().to_owned())], Json(list))
}

/// What `after` takes to go on; empty where nothing follows.
const NEXT: HeaderName = HeaderName::from_static("x-next");

/// The agent's own metrics: what bears a server's name is of [`SERVERS_MEASURED`] servers at most.
pub(super) async fn metrics(State(shared): State<Shared>, Query(asked): Query<Asked>) -> Response {
    let limit = asked.limit.unwrap_or(SERVERS_MEASURED).min(SERVERS_MEASURED);
    let scope = Scope { limit, ranks: false, ..asked.scope() };
    let status = shared.context.published.status(scope).await;
    let text = shared.context.metrics.text(&status);
    ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response()
}

pub(super) async fn status(State(shared): State<Shared>, Query(asked): Query<Asked>) -> Response {
    let status = shared.context.published.status(asked.scope()).await;
    match status_text(&status) {
        Ok(text) => json_text(text),
        Err(error) => error.into_response(),
    }
}

/// A status as JSON, its incidents with their short sentences. The history is a path of its own.
fn status_text(status: &Status) -> Result<String, ApiError> {
    let bare = Status { history: Vec::new(), incidents: Vec::new(), ..status.clone() };
    let text = serde_json::to_string(&bare).map_err(unwritten)?;
    // In a string the quotes are escaped, so this is the list itself.
    let list = format!("\"incidents\":{}", briefly(status.incidents.iter())?);
    Ok(text.replacen("\"incidents\":[]", &list, 1))
}

/// A list of incidents as JSON, with their short sentences.
fn briefly<'a>(incidents: impl Iterator<Item = &'a Incident>) -> Result<String, ApiError> {
    let one = |incident: &Incident| with(incident, "brief", &Brief::of(incident));
    Ok(format!("[{}]", incidents.map(one).collect::<Result<Vec<_>, _>>()?.join(",")))
}

/// An incident as JSON with one more field. The text is put together: another way to write so large a type would
/// make the program a tenth of a megabyte larger.
fn with(incident: &Incident, name: &str, value: &impl Serialize) -> Result<String, ApiError> {
    let mut text = serde_json::to_string(incident).map_err(unwritten)?;
    text.pop();
    text += &format!(",\"{name}\":{}}}", serde_json::to_string(value).map_err(unwritten)?);
    Ok(text)
}

fn unwritten(error: serde_json::Error) -> ApiError {
    ApiError(StatusCode::INTERNAL_SERVER_ERROR, format!("it cannot be written: {error}"))
}

fn json_text(text: String) -> Response {
    ([(CONTENT_TYPE, "application/json")], text).into_response()
}

pub(super) async fn history(State(shared): State<Shared>, Query(asked): Query<AskedHistory>) -> Response {
    let AskedHistory { target, after, limit, signal } = asked;
    let scope = Asked { target, after, limit }.scope();
    Json(&*shared.context.published.history((scope, signal)).await).into_response()
}

pub(super) async fn ranks(State(shared): State<Shared>, Query(asked): Query<Asked>) -> Listed<Value> {
    let status = shared.context.published.status(asked.scope()).await;
    let of_target = |t: &skewtrap_core::status::TargetStatus| -> Vec<Value> {
        t.ranks.iter().map(|r| json!({ "target": t.name, "rank": r.rank, "signals": r.signals })).collect()
    };
    listed(&status, status.targets.iter().flat_map(of_target).collect())
}

/// One entry per server and signal: how many ranks have it, its sources and its range.
pub(super) async fn signals(State(shared): State<Shared>, Query(asked): Query<Asked>) -> Listed<Value> {
    let status = shared.context.published.status(asked.scope()).await;
    listed(&status, signals_of(&status))
}

fn signals_of(status: &Status) -> Value {
    let mut found = Vec::new();
    for target in &status.targets {
        let mut by_name: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for (name, signal) in target.ranks.iter().flat_map(|r| &r.signals) {
            by_name.entry(name).or_default().push(signal);
        }
        for (name, values) in by_name {
            let sources: BTreeSet<&str> = values.iter().map(|s| &*s.source).collect();
            let range = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), s| {
                (low.min(s.value), high.max(s.value))
            });
            found.push(json!({
                "target": target.name, "signal": name, "ranks": values.len(), "sources": sources,
                "min": range.0, "max": range.1, "stale": values.iter().filter(|s| s.stale).count(),
                "last": values.iter().map(|s| s.at).max(),
            }));
        }
    }
    Value::Array(found)
}

pub(super) async fn rules(
    State(shared): State<Shared>,
    Query(asked): Query<Asked>,
) -> Listed<Vec<RuleStatus>> {
    let status = shared.context.published.status(Scope { ranks: false, ..asked.scope() }).await;
    listed(&status, status.rules.clone())
}

pub(super) async fn rule(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    Query(asked): Query<Asked>,
) -> Result<Listed<RuleStatus>, ApiError> {
    let status = shared.context.published.status(Scope { ranks: false, ..asked.scope() }).await;
    let found = status.rules.iter().find(|r| *r.name == *name);
    found
        .cloned()
        .map(|rule| listed(&status, rule))
        .ok_or_else(|| ApiError(StatusCode::NOT_FOUND, format!("there is no rule named {name}")))
}

const MEMORY_ONLY: &str = "The disk of incident_dir does not answer: only the incidents in the agent's memory are listed, and those whose bundles are kept there are missing.";

/// Why a list lacks something; empty where it is whole.
const INCOMPLETE: HeaderName = HeaderName::from_static("x-incomplete");

/// The incidents in the agent's memory and those whose bundle still exists, newest first.
pub(super) async fn incidents(State(shared): State<Shared>) -> Result<Response, ApiError> {
    let dir = shared.incident_dir.clone();
    // Where the disk hangs or fails, those in memory are told all the same.
    let (stored, lacks) = match shared.bundle_disk.read(Box::new(move || files::incidents(&dir))).await {
        Ok(Ok(stored)) => (stored, ""),
        Ok(Err(_)) | Err(_) => (Vec::new(), MEMORY_ONLY),
    };
    let mut by_id: BTreeMap<Arc<str>, Incident> = stored.into_iter().map(|i| (i.id.clone(), i)).collect();
    by_id.extend(shared.agent().await.incidents.iter().map(|i| (i.id.clone(), i.clone())));
    let list = json_text(briefly(by_id.values().rev())?);
    Ok(([(INCOMPLETE, lacks)], list).into_response())
}

/// An incident as JSON, with the sentences of its messages, and where to look first.
fn with_facts(incident: &Incident, folder: &std::path::Path) -> Result<Response, ApiError> {
    let origin = Origin { incidents: Some(folder.display().to_string()), ..Origin::default() };
    let mut json = with(incident, "facts", &Facts::of(incident, &origin))?;
    if let Some(next) = next_step(incident) {
        json.pop();
        json += &format!(",\"next\":{}}}", serde_json::to_string(next).map_err(unwritten)?);
    }
    Ok(json_text(json))
}

pub(super) async fn incident(
    State(shared): State<Shared>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let status = shared.agent().await;
    if let Some(incident) = status.incidents.iter().find(|i| *i.id == *id) {
        return with_facts(incident, &shared.incident_dir);
    }
    let dir = shared.incident_dir.clone();
    let name = id.clone();
    let stored = shared.bundle_disk.read(Box::new(move || files::incident(&dir, &name))).await?;
    let missing = || ApiError(StatusCode::NOT_FOUND, format!("there is no incident {id}"));
    with_facts(&stored.ok_or_else(missing)?, &shared.incident_dir)
}
