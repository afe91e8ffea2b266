//! Gauges from the published status, and those of the process itself.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::Pairs;
use crate::observe::effort::process_cpu;
use skewtrap_core::rule::RuleState;
use skewtrap_core::signal::source::SourceState;
use skewtrap_core::status::{GroupStatus, SourceStatus, Status};
use skewtrap_trace::time::Time;

type Gauges = Family<Pairs, Gauge<f64, AtomicU64>>;

fn put(gauges: &Gauges, labels: Pairs, value: f64) {
    gauges.get_or_create(&labels).set(value);
}

/// The gauges of a status.
pub(super) fn registry_of(status: &Status) -> Registry {
    let mut registry = Registry::with_prefix("skewtrap");
    registry.register(
        "build",
        "The agent's version",
        Info::new(vec![("version", status.version.to_string())]),
    );
    let started = ConstGauge::new(status.started.epoch_s());
    registry.register_with_unit(
        "start_time",
        "When the agent started, since the epoch",
        Unit::Seconds,
        started,
    );
    servers(&mut registry, status);
    sources(&mut registry, status);
    rules(&mut registry, status);
    captures(&mut registry, status);
    receivers(&mut registry, status);
    let is_wrong = ConstGauge::new(f64::from(u8::from(status.reload_problem.is_some())));
    registry.register(
        "configuration_wrong",
        "Whether the configuration on disk could not be read again (1) or is in force (0)",
        is_wrong,
    );
    registry
}

fn servers(registry: &mut Registry, status: &Status) {
    let left_out = status.servers.saturating_sub(status.targets.len());
    let (all, left_out) = (ConstGauge::new(status.servers as f64), ConstGauge::new(left_out as f64));
    registry.register("servers", "Servers that are configured", all);
    registry.register(
        "servers_left_out",
        "Servers of which this answer has no sources, and of the groups of rules only those that fire",
        left_out,
    );
}

/// All sources of one kind of a server: two logs count as one `log`, which is up when both are.
#[derive(Default)]
struct SourcesOfKind {
    down: bool,
    samples: u64,
    dropped: u64,
    lag_s: Option<f64>,
    last: Option<Time>,
}

impl SourcesOfKind {
    fn add(&mut self, source: &SourceStatus) {
        self.down |= source.state != SourceState::Ok;
        self.samples += source.samples;
        self.dropped += source.dropped;
        self.lag_s = self.lag_s.into_iter().chain(source.lag_s).max_by(f64::total_cmp);
        self.last = self.last.max(source.last);
    }
}

fn sources(registry: &mut Registry, status: &Status) {
    let (up, lag, last) = (Gauges::default(), Gauges::default(), Gauges::default());
    let samples = Family::<Pairs, Counter>::default();
    let dropped = Family::<Pairs, Counter>::default();
    for target in &status.targets {
        let mut kinds: BTreeMap<&str, SourcesOfKind> = BTreeMap::new();
        for source in &target.sources {
            kinds.entry(&source.kind).or_default().add(source);
        }
        for (name, kind) in kinds {
            let labels = vec![("target", target.name.to_string()), ("source", name.to_owned())];
            put(&up, labels.clone(), f64::from(u8::from(!kind.down)));
            samples.get_or_create(&labels).inc_by(kind.samples);
            dropped.get_or_create(&labels).inc_by(kind.dropped);
            if let Some(seconds) = kind.lag_s {
                put(&lag, labels.clone(), seconds);
            }
            if let Some(at) = kind.last {
                put(&last, labels, at.epoch_s());
            }
        }
    }
    registry.register("source_up", "Whether a source gives samples (1) or not (0)", up);
    registry.register("source_samples", "Samples that a source gave", samples);
    registry.register(
        "source_dropped",
        "Lines, pages and values of a source that could not be used",
        dropped,
    );
    registry.register_with_unit(
        "source_lag",
        "From when a source's last sample was true to its arrival",
        Unit::Seconds,
        lag,
    );
    let help = "When a source last gave a sample, since the epoch";
    registry.register_with_unit("source_last_sample_timestamp", help, Unit::Seconds, last);
}

fn rules(registry: &mut Registry, status: &Status) {
    let (states, evaluated) = (Gauges::default(), Gauges::default());
    let (values, bounds) = (Gauges::default(), Gauges::default());
    for rule in &status.rules {
        for state in RuleState::ALL {
            let groups = rule.groups.iter().filter(|g| g.state == state).count();
            put(
                &states,
                vec![("rule", rule.name.to_string()), ("state", state.word().into())],
                groups as f64,
            );
        }
        if let Some(at) = rule.last_evaluated {
            put(&evaluated, vec![("rule", rule.name.to_string())], at.epoch_s());
        }
        for group in &rule.groups {
            let labels = group_labels(&rule.name, group);
            if let Some(value) = group.value {
                put(&values, labels.clone(), value);
            }
            if let Some(bound) = group.bound {
                put(&bounds, labels, bound);
            }
        }
    }
    registry.register("rule_groups", "Groups of a rule that are in a state", states);
    registry.register("rule_value", "The statistic of a group, in its own unit", values);
    registry.register("rule_bound", "What the statistic of a group must pass to fire", bounds);
    let help = "When a rule was last evaluated, since the epoch";
    registry.register_with_unit("rule_last_evaluation_timestamp", help, Unit::Seconds, evaluated);
}

fn group_labels(rule: &str, group: &GroupStatus) -> Pairs {
    vec![("rule", rule.to_owned()), ("target", group.target.to_string()), ("group", group.group.to_string())]
}

fn captures(registry: &mut Registry, status: &Status) {
    let open = status.incidents.iter().filter(|i| i.resolved_at.is_none()).count();
    registry.register("incidents_open", "Incidents whose rule still fires", ConstGauge::new(open as f64));
    let windows = ConstGauge::new(status.windows.len() as f64);
    registry.register("windows_open", "Windows that are under way", windows);
    let left = Gauges::default();
    for limit in &status.budget.limits {
        let labels = vec![("limit", limit.of.to_string())];
        put(&left, labels, f64::from(limit.captures.saturating_sub(limit.used)));
    }
    registry.register("captures_left", "Windows that a limit still allows", left);
    let bytes = |count: u64| ConstGauge::new(count as f64);
    let taken = bytes(status.budget.bundle_bytes);
    registry.register_with_unit("bundles", "What the incident bundles take", Unit::Bytes, taken);
    if let Some(limit) = status.budget.bundle_bytes_limit {
        registry.register_with_unit("bundles_limit", "What the bundles may take", Unit::Bytes, bytes(limit));
    }
    if let Some(free) = status.budget.free_bytes {
        registry.register_with_unit(
            "bundles_free",
            "What is free where the bundles lie",
            Unit::Bytes,
            bytes(free),
        );
    }
}

fn receivers(registry: &mut Registry, status: &Status) {
    let (pending, failing) = (Gauges::default(), Gauges::default());
    for receiver in &status.receivers {
        let labels = vec![("receiver", receiver.name.to_string())];
        put(&pending, labels.clone(), receiver.pending as f64);
        put(&failing, labels, f64::from(u8::from(receiver.problem.is_some())));
    }
    registry.register("receiver_pending", "Messages that wait for a receiver", pending);
    registry.register("receiver_failing", "Whether a receiver's last attempt failed (1) or not (0)", failing);
}

/// The process's memory, CPU time and descriptors, as far as /proc can be read.
pub(super) fn process() -> Registry {
    let mut registry = Registry::with_prefix("process");
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if let Some(kib) = resident_kib(&text) {
        let resident = ConstGauge::new(kib as f64 * 1024.0);
        registry.register_with_unit("resident_memory", "Resident memory", Unit::Bytes, resident);
    }
    let seconds = ConstCounter::new(process_cpu().as_secs_f64());
    registry.register_with_unit("cpu", "User and system time", Unit::Seconds, seconds);
    if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
        registry.register("open_fds", "Open file descriptors", ConstGauge::new(entries.count() as f64));
    }
    registry
}

/// `VmRSS:     21504 kB`
fn resident_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}
