//! What watching costs the agent.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Registry, Unit};

use super::Pairs;
use crate::observe::effort::{SourceCounters, Stage, process_cpu};

/// The names of the threads that read logs, and of the one that writes the state.
const LOG_THREAD: &str = "logs";
const STATE_THREAD: &str = "state";

/// CPU time by stage, and how late pages are asked for.
pub(super) fn registry_of(effort: &SourceCounters) -> Registry {
    let mut registry = Registry::with_prefix("skewtrap");
    let stages = Family::<Pairs, Counter<f64, AtomicU64>>::default();
    for (stage, seconds) in stages_of(effort) {
        stages.get_or_create(&vec![("stage", stage.into())]).inc_by(seconds.max(0.0));
    }
    let help = "CPU time by stage (scrape, parse, rules, publish, log, state, other): together the process's";
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

/// Seconds of CPU time of each stage. Their sum is the CPU time of the process.
fn stages_of(effort: &SourceCounters) -> Vec<(&'static str, f64)> {
    let counted = Stage::ALL.map(|stage| (stage.word(), effort.seconds(stage)));
    let Threads { own, logs, state } = threads();
    // What the loop's thread did beside the counted stages: it sends requests, receives and waits.
    let scrape = own - counted.iter().map(|(_, seconds)| seconds).sum::<f64>();
    // Windows, deliveries, the API's connections and what may block: many threads, of which most have ended.
    let other = process_cpu().as_secs_f64() - own - logs - state;
    counted
        .into_iter()
        .chain([("scrape", scrape), ("log", logs), ("state", state), ("other", other)])
        .collect()
}

/// Seconds of CPU time of the first thread, of those that read logs, and of the one that writes the state.
#[derive(Default)]
struct Threads {
    own: f64,
    logs: f64,
    state: f64,
}

/// As far as /proc can be read.
fn threads() -> Threads {
    let pid = std::process::id().to_string();
    let mut threads = Threads::default();
    for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let seconds = || cpu_s(&read("schedstat"));
        if task.file_name().to_str() == Some(&pid) {
            threads.own += seconds();
            continue;
        }
        match read("comm").trim_end() {
            LOG_THREAD => threads.logs += seconds(),
            STATE_THREAD => threads.state += seconds(),
            _ => {}
        }
    }
    threads
}

/// The first number of a `schedstat`: nanoseconds on a processor.
fn cpu_s(schedstat: &str) -> f64 {
    let nanos: Option<u64> = schedstat.split_ascii_whitespace().next().and_then(|first| first.parse().ok());
    nanos.unwrap_or(0) as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::observe::effort::thread_cpu;

    #[test]
    fn the_stages_add_up_to_the_process_whichever_thread_did_the_work() {
        let began = thread_cpu();
        let work = || {
            let mut x = 1_u64;
            while thread_cpu() < Duration::from_millis(200) {
                x = std::hint::black_box(x.wrapping_mul(3));
            }
        };
        for name in ["logs", "state", "anything"] {
            let thread = std::thread::Builder::new().name(name.into()).spawn(work);
            thread.expect("a thread").join().expect("it ends");
        }
        let spent = process_cpu() - began;
        assert!(spent >= Duration::from_millis(600), "three threads worked: {spent:?}");
        let sum: f64 = stages_of(&SourceCounters::default()).iter().map(|(_, seconds)| seconds).sum();
        let all = process_cpu().as_secs_f64();
        assert!((sum - all).abs() < 0.05 * all, "{sum} s of {all} s");
    }

    #[test]
    fn the_time_of_a_thread_is_the_first_number_in_nanoseconds() {
        assert_eq!(cpu_s("1500000000 12 7\n"), 1.5);
        assert_eq!(cpu_s(""), 0.0);
    }
}
