//! The paths that only read: each returns a part of the published status.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::{ApiError, HUNG_AFTER, Shared, files};
use crate::clock::wall_time;
use skewtrap_core::incident::Incident;
use skewtrap_core::status::{History, RuleStatus, Status};

/// Whether the loop still publishes. Kubernetes restarts the agent when it does not.
pub(super) async fn healthz(State(shared): State<Shared>) -> Response {
    let age = wall_time().since(shared.context.published.pulse().at);
    if age > HUNG_AFTER {
        let why = format!("the agent's loop has published nothing for {} s", age.as_secs());
        return ApiError(StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    }
    // The watching goes on and open windows are stopped: a restart would mend nothing.
    match shared.context.metrics.troubled_disk() {
        Some(why) => format!("ok, but {why}\n").into_response(),
        None => "ok\n".into_response(),
    }
}

/// Whether every server has a source that gives samples. The answer names those that have none.
pub(super) async fn readyz(State(shared): State<Shared>) -> Response {
    let without_samples = shared.context.published.pulse().unheard;
    if without_samples.is_empty() {
        return "ready\n".into_response();
    }
    ApiError(StatusCode::SERVICE_UNAVAILABLE, format!("no sample yet from {}", without_samples.join(", ")))
        .into_response()
}

pub(super) async fn metrics(State(shared): State<Shared>) -> Response {
    let text = shared.context.metrics.text(&*shared.status().await);
    ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response()
}

pub(super) async fn status(State(shared): State<Shared>) -> Json<Value> {
    let status = shared.status().await;
    let mut value = serde_json::to_value(&*status).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        fields.remove("history");
    }
    Json(value)
}

pub(super) async fn history(State(shared): State<Shared>) -> Json<Vec<History>> {
    Json(shared.context.published.history().await.to_vec())
}

pub(super) async fn ranks(State(shared): State<Shared>) -> Json<Value> {
    let status = shared.status().await;
    let of_target = |t: &skewtrap_core::status::TargetStatus| -> Vec<Value> {
        t.ranks.iter().map(|r| json!({ "target": t.name, "rank": r.rank, "signals": r.signals })).collect()
    };
    Json(status.targets.iter().flat_map(of_target).collect())
}

/// One entry per server and signal: how many ranks have it, its sources and its range.
pub(super) async fn signals(State(shared): State<Shared>) -> Json<Value> {
    Json(signals_of(&*shared.status().await))
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

pub(super) async fn rules(State(shared): State<Shared>) -> Json<Vec<RuleStatus>> {
    Json(shared.status().await.rules.clone())
}

pub(super) async fn rule(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<Json<RuleStatus>, ApiError> {
    let status = shared.status().await;
    let found = status.rules.iter().find(|r| *r.name == *name);
    found
        .cloned()
        .map(Json)
        .ok_or_else(|| ApiError(StatusCode::NOT_FOUND, format!("there is no rule named {name}")))
}

/// The incidents in the agent's memory and those whose bundle still exists, newest first.
pub(super) async fn incidents(State(shared): State<Shared>) -> Json<Vec<Incident>> {
    let dir = shared.incident_dir.clone();
    let stored = tokio::task::spawn_blocking(move || files::incidents(&dir)).await.unwrap_or_default();
    let mut by_id: BTreeMap<Arc<str>, Incident> = stored.into_iter().map(|i| (i.id.clone(), i)).collect();
    by_id.extend(shared.status().await.incidents.iter().map(|i| (i.id.clone(), i.clone())));
    Json(by_id.into_values().rev().collect())
}

pub(super) async fn incident(
    State(shared): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<Incident>, ApiError> {
    let status = shared.status().await;
    if let Some(incident) = status.incidents.iter().find(|i| *i.id == *id) {
        return Ok(Json(incident.clone()));
    }
    let dir = shared.incident_dir.clone();
    let name = id.clone();
    let stored = tokio::task::spawn_blocking(move || files::incident(&dir, &name)).await.ok().flatten();
    stored.map(Json).ok_or_else(|| ApiError(StatusCode::NOT_FOUND, format!("there is no incident {id}")))
}
