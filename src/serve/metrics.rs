//! The agent's own metrics: counters that the agent raises as things happen, and gauges that are taken
//! from the published status at each scrape, so that the two cannot disagree.
//!
//! Every metric has a help text and a unit. docs/api.md lists them all, and a test checks that.

mod effort;
mod gauges;

use std::fmt;
use std::sync::{Arc, Mutex};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry, Unit};

use crate::observe::effort::SourceCounters;
use skewtrap_core::capture::captured::Captured;
use skewtrap_core::rule::RuleState;
use skewtrap_core::status::Status;

/// Label names with values.
type Pairs = Vec<(&'static str, String)>;
type Counters = Family<Pairs, Counter>;
type LastSeconds = Family<Pairs, Gauge<f64, std::sync::atomic::AtomicU64>>;
type Seconds = Family<Pairs, Counter<f64, std::sync::atomic::AtomicU64>>;

/// What is wrong with something that the watching goes on without, as it was told last; `/healthz` says so.
#[derive(Debug, Default)]
pub struct HealthProblem(Mutex<Option<String>>);

impl HealthProblem {
    /// From now on that is wrong; `None`: nothing is.
    pub fn tell(&self, why: Option<String>) {
        *crate::world::lock(&self.0) = why;
    }

    /// What is wrong, if anything is.
    pub fn told(&self) -> Option<String> {
        crate::world::lock(&self.0).clone()
    }
}

/// The counters. Cheap to raise, from any task.
pub struct Metrics {
    registry: Registry,
    transitions: Counters,
    captures: Counters,
    refusals: Counters,
    stall: Seconds,
    silence: LastSeconds,
    messages: Counters,
    without_row: Counter,
    log_lines_dropped: Counter,
    requests: Counters,
    restarts: Counter,
    queues: Family<Pairs, Gauge>,
    effort: Arc<SourceCounters>,
    /// What is wrong with a disk.
    pub disk: HealthProblem,
    /// Why the bundle of the last incident could not be written.
    pub bundles: HealthProblem,
    /// What is wrong with the store of incidents.
    pub store: HealthProblem,
    /// What is wrong with the lease of the pool.
    pub lease: HealthProblem,
    overlaps: Counters,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::of(Arc::default())
    }
}

impl Metrics {
    /// Counters beside those of `effort`.
    pub fn of(effort: Arc<SourceCounters>) -> Self {
        let mut registry = Registry::with_prefix("skewtrap");
        let r = &mut registry;
        Self {
            transitions: counted(r, "rule_transitions", "Changes of a rule's state, by the new state"),
            captures: counted(r, "captures", "Windows that ended, by rule, means and outcome (done, failed)"),
            refusals: counted(r, "capture_refusals", "Windows that were not opened, by rule and reason"),
            stall: timed(
                r,
                "capture_stall",
                "Serving time that windows and their exports cost a server, as far as the agent can tell",
            ),
            silence: timed(
                r,
                "window_stall",
                "Longest silence of a rank in the last window of a server, by kind: predicted before, seen after",
            ),
            messages: counted(
                r,
                "messages",
                "Attempts to deliver a message, by receiver and result (sent, again, given_up; dropped: the receiver is gone)",
            ),
            without_row: counted(
                r,
                "messages_without_row",
                "Messages handed over before the disk of the state had them: a kill may have lost or repeated them",
            ),
            log_lines_dropped: counted(
                r,
                "log_lines_dropped",
                "Lines of the log that were dropped because standard error was not read fast enough",
            ),
            requests: counted(r, "http_requests", "Requests that the agent answered, by status code"),
            restarts: counted(r, "task_restarts", "Tasks that ended or panicked and were started again"),
            overlaps: counted(
                r,
                "pool_overlaps",
                "Windows of the pool that may have been open at once, by how it was found (overtaken, unproven)",
            ),
            queues: counted(r, "queue_length", "Events that wait in a queue inside the agent"),
            effort,
            disk: HealthProblem::default(),
            bundles: HealthProblem::default(),
            store: HealthProblem::default(),
            lease: HealthProblem::default(),
            registry,
        }
    }
}

/// A new metric of the registry.
fn counted<M: Clone + Default + Metric>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

/// One in seconds.
fn timed<M: Clone + Default + Metric>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register_with_unit(name, help, Unit::Seconds, metric.clone());
    metric
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// A group of `rule` is now in `state`.
    pub fn transition(&self, rule: &str, state: RuleState) {
        self.transitions.get_or_create(&vec![("rule", rule.into()), ("state", state.word().into())]).inc();
    }

    /// A window ended: `done` or `failed`.
    pub fn capture(&self, rule: &str, means: &str, outcome: &str) {
        let labels = vec![("rule", rule.into()), ("means", means.into()), ("outcome", outcome.into())];
        self.captures.get_or_create(&labels).inc();
    }

    /// A window was not opened; `reason` is a word of a small fixed set, not a sentence.
    pub fn refusal(&self, rule: &str, reason: &str) {
        self.refusals.get_or_create(&vec![("rule", rule.into()), ("reason", reason.into())]).inc();
    }

    /// A window and its export cost `target` so many seconds of serving.
    pub fn stall(&self, target: &str, seconds: f64) {
        self.stall.get_or_create(&vec![("target", target.into())]).inc_by(seconds.max(0.0));
    }

    /// The longest silence of a rank in a window of `target`, and what it had been predicted to be.
    pub fn silence(&self, target: &str, captured: &Captured) {
        for (kind, s) in [("seen", captured.longest_stall_s), ("predicted", captured.predicted_stall_s)] {
            let labels = vec![("target", target.into()), ("kind", kind.into())];
            match s {
                Some(s) => drop(self.silence.get_or_create(&labels).set(s)),
                // Of the last window, and not of one before it.
                None => drop(self.silence.remove(&labels)),
            }
        }
    }

    /// An attempt to deliver ended: `sent`, `again` or `given_up`.
    pub fn message(&self, receiver: &str, result: &str) {
        self.messages.get_or_create(&vec![("receiver", receiver.into()), ("result", result.into())]).inc();
    }

    /// So many messages were dropped unsent.
    pub fn messages_dropped(&self, receiver: &str, count: u64) {
        let labels = vec![("receiver", receiver.into()), ("result", "dropped".into())];
        self.messages.get_or_create(&labels).inc_by(count);
    }

    /// The supervisor's count of restarts so far.
    pub fn restarts(&self, so_far: u64) {
        self.restarts.inc_by(so_far.saturating_sub(self.restarts.get()));
    }

    /// How many messages were handed over without a row in the outbox so far.
    pub fn without_row(&self, so_far: u64) {
        self.without_row.inc_by(so_far.saturating_sub(self.without_row.get()));
    }

    /// How many lines of the log were dropped so far.
    pub fn log_lines_dropped(&self, so_far: u64) {
        self.log_lines_dropped.inc_by(so_far.saturating_sub(self.log_lines_dropped.get()));
    }

    /// Two windows of the pool may have been open at once; `found` says how that is known.
    pub fn pool_overlap(&self, found: &'static str) {
        self.overlaps.get_or_create(&vec![("found", found.into())]).inc();
    }

    /// A queue's length now.
    pub fn queue(&self, queue: &str, length: usize) {
        let length = i64::try_from(length).unwrap_or(i64::MAX);
        self.queues.get_or_create(&vec![("queue", queue.into())]).set(length);
    }

    /// Everything in the OpenMetrics text format.
    pub fn text(&self, status: &Status) -> String {
        let mut text = String::with_capacity(8 * 1024);
        let shown = encode_registry(&mut text, &self.registry)
            .and_then(|()| encode_registry(&mut text, &gauges::registry_of(status)))
            .and_then(|()| encode_registry(&mut text, &effort::registry_of(&self.effort)))
            .and_then(|()| encode_registry(&mut text, &gauges::process()))
            .and_then(|()| encode_eof(&mut text));
        shown.expect("writing to a string cannot fail");
        text
    }
}

/// Counts the responses by status code.
pub(super) async fn count(State(metrics): State<Arc<Metrics>>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    metrics.requests.get_or_create(&vec![("code", response.status().as_str().to_owned())]).inc();
    response
}

#[cfg(test)]
mod tests;
