//! What watching costs the agent.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Registry, Unit};

use super::Pairs;
use crate::observe::effort::{Effort, Stage};

/// The name of the threads that read logs.
const LOG_THREAD: &str = "logs";

/// CPU time by stage, and how late pages are asked for.
pub(super) fn registry_of(effort: &Effort) -> Registry {
    let mut registry = Registry::with_prefix("skewtrap");
    let stages = Family::<Pairs, Counter<f64, AtomicU64>>::default();
    let counted = Stage::ALL.map(|stage| (stage.word(), effort.seconds(stage)));
    let (own, logs) = threads();
    // What the loop's thread did beside the counted stages: it sends requests, receives and waits.
    let rest = own - counted.iter().map(|(_, seconds)| seconds).sum::<f64>();
    for (stage, seconds) in counted.into_iter().chain([("scrape", rest), ("log", logs)]) {
        stages.get_or_create(&vec![("stage", stage.into())]).inc_by(seconds.max(0.0));
    }
    let help = "CPU time of watching, by stage (scrape, parse, rules, publish, log)";
    registry.register_with_unit("stage_cpu", help, Unit::Seconds, stages);
    let (scrapes, late) = effort.scrapes();
    registry.register("scrapes", "Requests for metrics pages and loads", ConstCounter::new(scrapes));
    let help =
        "Requests for metrics pages and loads that began late by a tenth of their interval, or not at all";
    registry.register("scrapes_late", help, ConstCounter::new(late));
    let help = "From when a metrics page or the loads were due to when they were asked for";
    registry.register_with_unit("scrape_lateness", help, Unit::Seconds, effort.lateness());
    registry
}

/// Seconds of CPU time of the first thread, and of those that read logs, as far as /proc can be read.
fn threads() -> (f64, f64) {
    let pid = std::process::id().to_string();
    let (mut own, mut logs) = (0.0, 0.0);
    for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let seconds = || cpu_s(&read("schedstat"));
        if task.file_name().to_str() == Some(&pid) {
            own += seconds();
        } else if read("comm").trim_end() == LOG_THREAD {
            logs += seconds();
        }
    }
    (own, logs)
}

/// The first number of a `schedstat`: nanoseconds on a processor.
fn cpu_s(schedstat: &str) -> f64 {
    let nanos: Option<u64> = schedstat.split_ascii_whitespace().next().and_then(|first| first.parse().ok());
    nanos.unwrap_or(0) as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_thread_is_the_first_number_in_nanoseconds() {
        assert_eq!(cpu_s("1500000000 12 7\n"), 1.5);
        assert_eq!(cpu_s(""), 0.0);
    }
}
