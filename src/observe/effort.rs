//! What watching costs: CPU time by stage, and how late requests begin.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::metrics::histogram::Histogram;
use rustix::time::{ClockId, clock_gettime};

/// Upper bounds of the buckets of lateness, in seconds.
const LATENESS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
/// A request is late when it begins later than this part of its interval.
const LATE: f64 = 0.1;

/// A part of the work whose CPU time is counted where it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Reading pages, answers and log lines.
    Parse,
    /// Evaluating rules, and what follows from them.
    Rules,
    /// Building what somebody asked for.
    Publish,
}

impl Stage {
    pub const ALL: [Self; 3] = [Self::Parse, Self::Rules, Self::Publish];

    /// As in metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Parse => "parse",
            Self::Rules => "rules",
            Self::Publish => "publish",
        }
    }
}

/// Counted by the sources and the loop together.
#[derive(Debug)]
pub struct SourceCounters {
    spent_ns: [AtomicU64; Stage::ALL.len()],
    scrapes: AtomicU64,
    late: AtomicU64,
    lateness: Histogram,
}

impl Default for SourceCounters {
    fn default() -> Self {
        let (spent_ns, scrapes, late) = Default::default();
        Self { spent_ns, scrapes, late, lateness: Histogram::new(LATENESS) }
    }
}

impl SourceCounters {
    /// A request begins, so long after it was due, of a page that is asked for `every` so often.
    pub fn begins(&self, after: Duration, every: Duration) {
        self.scrapes.fetch_add(1, Ordering::Relaxed);
        self.late.fetch_add(u64::from(after > every.mul_f64(LATE)), Ordering::Relaxed);
        self.lateness.observe(after.as_secs_f64());
    }

    /// So many requests were not sent because the one before them took too long.
    pub fn missed(&self, requests: u32) {
        self.late.fetch_add(u64::from(requests), Ordering::Relaxed);
    }

    /// A stage took this CPU time.
    pub fn spent(&self, stage: Stage, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(0);
        self.spent_ns[stage as usize].fetch_add(took, Ordering::Relaxed);
    }

    /// Does something and counts its CPU time.
    pub fn count<T>(&self, stage: Stage, work: impl FnOnce() -> T) -> T {
        let began = thread_cpu();
        let done = work();
        self.spent(stage, thread_cpu().saturating_sub(began));
        done
    }

    /// Seconds of CPU time of a stage so far.
    pub fn seconds(&self, stage: Stage) -> f64 {
        self.spent_ns[stage as usize].load(Ordering::Relaxed) as f64 / 1e9
    }

    /// Requests for pages and loads so far, and how many began late or not at all.
    pub fn scrapes(&self) -> (u64, u64) {
        (self.scrapes.load(Ordering::Relaxed), self.late.load(Ordering::Relaxed))
    }

    /// How late requests began.
    pub fn lateness(&self) -> Histogram {
        self.lateness.clone()
    }
}

/// The CPU time of this thread so far.
pub fn thread_cpu() -> Duration {
    cpu_of(ClockId::ThreadCPUTime)
}

/// The CPU time of all threads of this process so far, of those that ended too.
pub fn process_cpu() -> Duration {
    cpu_of(ClockId::ProcessCPUTime)
}

fn cpu_of(clock: ClockId) -> Duration {
    let now = clock_gettime(clock);
    let nanos = now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_begins_after_a_tenth_of_its_interval_is_late() {
        let effort = SourceCounters::default();
        let second = Duration::from_secs(1);
        effort.begins(Duration::from_millis(100), second);
        effort.begins(Duration::from_millis(101), second);
        effort.begins(Duration::from_millis(101), second * 5);
        assert_eq!(effort.scrapes(), (3, 1));
    }

    #[test]
    fn work_shows_in_the_cpu_time_of_its_thread() {
        let effort = SourceCounters::default();
        let busy = || {
            let began = thread_cpu();
            let mut x = 1_u64;
            while thread_cpu() - began < Duration::from_millis(2) {
                x = std::hint::black_box(x.wrapping_mul(3));
            }
        };
        effort.count(Stage::Rules, busy);
        let seconds = Stage::ALL.map(|stage| effort.seconds(stage));
        assert!(seconds[1] >= 0.002 && seconds[0] == 0.0 && seconds[2] == 0.0, "{seconds:?}");
    }
}
