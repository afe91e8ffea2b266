//! Folds a window's rows into what the comparison needs: per step and kind of step the busy time
//! as a union of intervals, and per kernel its launches and time. After this the rows are gone.
//!
//! A kernel belongs to the step that began last before it. What runs before the first step began
//! is counted for the window and for no step.

use crate::collective::Collective;
use crate::kernel::{Family, family_of, short_name};
use crate::trace::{RankTrace, Row, StepKind, StepMark, StepSource, Who};

/// Launches and time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// How often.
    pub launches: u64,
    /// Nanoseconds in all; launches that overlap count each.
    pub time_ns: u64,
}

impl Cost {
    fn add(&mut self, row: Row) {
        self.launches += 1;
        self.time_ns += u64::from(row.dur);
    }
}

/// One kernel's cost on one rank.
#[derive(Clone, Debug)]
pub struct KernelCost {
    /// As the profiler wrote it.
    pub name: String,
    /// For people.
    pub short: String,
    /// What it does.
    pub family: Family,
    /// Mean blocks of a launch; 0 when the trace does not say.
    pub blocks: f64,
    /// By [`StepKind`].
    pub by_kind: [Cost; 4],
}

impl KernelCost {
    /// Over all steps.
    pub fn total(&self) -> Cost {
        self.by_kind.iter().fold(Cost::default(), |a, b| Cost {
            launches: a.launches + b.launches,
            time_ns: a.time_ns + b.time_ns,
        })
    }
}

/// One step of one rank.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Nanoseconds since the window's epoch.
    pub start: i64,
    /// Until the next step began, nanoseconds.
    pub wall_ns: u64,
    /// When any kernel ran, nanoseconds.
    pub busy_ns: u64,
    /// When any kernel but communication ran, nanoseconds.
    pub work_ns: u64,
    /// What it ran.
    pub kind: StepKind,
    /// Requests in its batch.
    pub requests: Option<u32>,
    /// Tokens in its batch.
    pub tokens: Option<u32>,
}

/// One rank's window, folded.
#[derive(Clone, Debug)]
pub struct RankProfile {
    /// Whose.
    pub who: Who,
    /// Nanoseconds since the Unix epoch (or the profile's own) of the window's time zero.
    pub epoch_ns: i64,
    /// First start and last end of a kernel, nanoseconds since the epoch of the window.
    pub window: (i64, i64),
    /// How many rows there were.
    pub rows: u64,
    /// When any kernel ran, over the whole window, nanoseconds.
    pub busy_ns: u64,
    /// Its steps, in order.
    pub steps: Vec<Step>,
    /// How steps were told apart.
    pub source: StepSource,
    /// Cost by kernel, inside of steps.
    pub kernels: Vec<KernelCost>,
    /// Its collectives, in order.
    pub collectives: Vec<Collective>,
    /// Its streams, the busiest first.
    pub streams: Vec<i64>,
    /// How many ranks the trace says there are.
    pub world_size: Option<u32>,
    /// What a reader of the result must know.
    pub notes: Vec<String>,
    /// Whether a part of the window is missing.
    pub partial: bool,
}

impl RankProfile {
    /// Length of the window in nanoseconds.
    pub fn window_ns(&self) -> u64 {
        u64::try_from(self.window.1 - self.window.0).unwrap_or(0)
    }

    /// How many steps of `kind`.
    pub fn count(&self, kind: StepKind) -> usize {
        self.steps.iter().filter(|s| s.kind == kind).count()
    }
}

/// The steps of a rank as its annotations tell them, if they do.
pub fn annotated(trace: &RankTrace) -> Option<(StepSource, &[StepMark])> {
    match (trace.gpu_steps.is_empty(), trace.cpu_steps.is_empty()) {
        (false, _) => Some((StepSource::GpuAnnotations, &trace.gpu_steps)),
        (true, false) => Some((StepSource::CpuAnnotations, &trace.cpu_steps)),
        (true, true) => None,
    }
}

/// Folds a window. Without `marks` the whole window is one step, and its source is
/// [`StepSource::PerSecond`]: only figures per second make sense then.
pub fn fold(who: Who, mut trace: RankTrace, source: StepSource, marks: &[StepMark]) -> RankProfile {
    let window = window_of(&trace.rows);
    let whole =
        [StepMark { start: window.0, end: window.1, kind: StepKind::Step, requests: None, tokens: None }];
    let marks = if marks.is_empty() && !trace.rows.is_empty() { &whole[..] } else { marks };
    let all = marks;
    let marks = if trace.partial { whole_steps(all, &trace.rows) } else { all };
    // An annotated step's sampling runs after its annotation; a counted one ends where it ends.
    let last_end = match (source, all.get(marks.len())) {
        (_, Some(cut)) => cut.start,
        (StepSource::Period, None) => marks.last().map_or(0, |m| m.end),
        (_, None) => i64::MAX,
    };
    let families: Vec<Family> = trace.names.iter().map(|n| family_of(n)).collect();
    let mut steps: Vec<Step> = marks
        .iter()
        .enumerate()
        .map(|(i, m)| {
            let until = marks.get(i + 1).map_or(window.1.max(m.end).min(last_end), |n| n.start);
            let wall_ns = u64::try_from(until - m.start).unwrap_or(0);
            let (kind, requests, tokens) = (m.kind, m.requests, m.tokens);
            Step { start: m.start, wall_ns, busy_ns: 0, work_ns: 0, kind, requests, tokens }
        })
        .collect();
    let mut by_name = vec![[Cost::default(); 4]; trace.names.len()];
    let mut by_stream = vec![0u64; trace.streams.len()];
    let mut launches = vec![0u64; trace.names.len()];
    let (mut busy_until, mut work_until, mut busy_ns) = (i64::MIN, i64::MIN, 0);
    let mut collectives = Vec::new();
    let mut next = 0;
    for &row in &trace.rows {
        while marks.get(next).is_some_and(|m| m.start <= row.start) {
            next += 1;
        }
        let name = usize::from(row.name);
        let busy = newly_covered(&mut busy_until, row);
        busy_ns += busy;
        by_stream[usize::from(row.stream)] += u64::from(row.dur);
        launches[name] += 1;
        let communicates = families[name] == Family::Communication;
        let work = if communicates { 0 } else { newly_covered(&mut work_until, row) };
        let step = next.checked_sub(1).filter(|_| row.start < last_end);
        if communicates {
            let sequence = trace.sequences.get(&(row.start, row.stream)).copied();
            let step = step.map(|s| s as u32);
            collectives.push(Collective { start: row.start, end: row.end(), name: row.name, sequence, step });
        }
        if let Some(at) = step {
            let step = &mut steps[at];
            step.busy_ns += busy;
            step.work_ns += work;
            by_name[name][step.kind as usize].add(row);
        }
    }
    let mut streams: Vec<(u64, i64)> = by_stream.into_iter().zip(trace.streams.iter().copied()).collect();
    streams.sort_unstable_by_key(|s| std::cmp::Reverse(s.0));
    let kernels = std::mem::take(&mut trace.names)
        .into_iter()
        .enumerate()
        .map(|(i, name)| KernelCost {
            short: short_name(&name),
            name,
            family: families[i],
            blocks: trace.blocks[i] as f64 / launches[i].max(1) as f64,
            by_kind: by_name[i],
        })
        .collect();
    RankProfile {
        who,
        epoch_ns: trace.epoch_ns,
        window,
        rows: trace.rows.len() as u64,
        busy_ns,
        steps,
        source,
        kernels,
        collectives,
        streams: streams.into_iter().map(|s| s.1).collect(),
        world_size: trace.world_size,
        notes: trace.notes,
        partial: trace.partial,
    }
}

/// The steps before the one in which the rows of a window that was cut end: annotations often come
/// first in a file, so there are more of them than of steps whose kernels were read.
fn whole_steps<'a>(marks: &'a [StepMark], rows: &[Row]) -> &'a [StepMark] {
    let last = rows.last().map_or(i64::MIN, |r| r.start);
    let begun = marks.iter().take_while(|m| m.start <= last).count();
    &marks[..if begun > 1 { begun - 1 } else { begun }]
}

/// First start and last end.
fn window_of(rows: &[Row]) -> (i64, i64) {
    let start = rows.first().map_or(0, |r| r.start);
    (start, rows.iter().map(|r| r.end()).max().unwrap_or(start))
}

/// How much of `row` nothing before it covered; rows come in the order of their start.
fn newly_covered(until: &mut i64, row: Row) -> u64 {
    let from = row.start.max(*until);
    let new = row.end() - from;
    if new <= 0 {
        return 0;
    }
    *until = row.end();
    new as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rank::Rank;
    use crate::trace::Limit;

    #[test]
    fn busy_time_is_a_union_and_waiting_is_no_work() {
        let mut t = RankTrace::default();
        let limit = Limit::default();
        // Two streams overlap from 50 to 100; NCCL runs alone from 200 to 260.
        t.mark(true, "step[DECODE bs=3]", 0, 100);
        t.push(limit, b"_fwd_kernel", 7, 0, 100);
        t.push(limit, b"nvjet_x", 8, 50, 80);
        t.push(limit, b"ncclDevKernel_AllReduce", 9, 200, 60);
        t.mark(true, "step[DECODE bs=5]", 300, 400);
        t.push(limit, b"nvjet_x", 8, 300, 10);
        t.finish();
        let marks = t.gpu_steps.clone();
        let p = fold(Who::Rank(Rank::dp(1)), t, StepSource::GpuAnnotations, &marks);
        let seen: Vec<_> = p.steps.iter().map(|s| (s.busy_ns, s.work_ns, s.wall_ns, s.requests)).collect();
        assert_eq!(seen, [(190, 130, 300, Some(3)), (10, 10, 100, Some(5))]);
        assert_eq!(p.busy_ns, 200);
        assert_eq!(p.collectives.len(), 1);
        let gemm = p.kernels.iter().find(|k| k.family == Family::Gemm).expect("is there");
        assert_eq!(gemm.by_kind[StepKind::Decode as usize], Cost { launches: 2, time_ns: 90 });
    }

    #[test]
    fn of_a_cut_window_only_steps_whose_kernels_were_all_read_count() {
        let mut t = RankTrace::default();
        t.partial = true;
        for step in 0..5 {
            t.mark(true, "step[DECODE bs=3]", step * 100, step * 100 + 90);
        }
        for start in [0, 50, 100, 150, 200] {
            t.push(Limit::default(), b"_fwd_kernel", 7, start, 40);
        }
        t.finish();
        let marks = t.gpu_steps.clone();
        let p = fold(Who::Rank(Rank::dp(1)), t, StepSource::GpuAnnotations, &marks);
        assert_eq!(
            p.steps.iter().map(|s| (s.start, s.wall_ns, s.busy_ns)).collect::<Vec<_>>(),
            [(0, 100, 80), (100, 100, 80)]
        );
        assert_eq!(p.kernels[0].total().launches, 4, "the third step was cut");
    }
}
