//! Aggregates the rows of a window into what a comparison needs: the busy time of each step, as a
//! union of intervals, and launches and time of each kernel. The rows are dropped after that.
//!
//! A kernel belongs to the last step that began before it. Kernels before the first step count for
//! the window and for no step.

use crate::digest::fnv1a;
use crate::kernel::{Family, family_of, short_name};
use crate::period::{self, Period};
use crate::rank::RankId;
use crate::step::{StepKind, StepMark, StepSource};
use crate::trace::{Activities, CollectiveId, RankTrace, Row};

/// Launches and time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// The number of launches.
    pub launches: u64,
    /// Nanoseconds in total; launches that overlap count each.
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
    /// The name as the profiler wrote it; of a summary, the name for people.
    pub name: String,
    /// Digest of the name as the profiler wrote it: equal for the same kernel on all ranks.
    pub digest: u64,
    /// The name for people.
    pub short: String,
    /// Its family.
    pub family: Family,
    /// The mean number of blocks of a launch; 0 if the trace does not say it.
    pub blocks: f64,
    /// By the kind of the step it ran in, in the order of [`StepKind::ALL`].
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
    /// From its start to that of the next step, nanoseconds.
    pub wall_ns: u64,
    /// Time in which any kernel ran, nanoseconds.
    pub busy_ns: u64,
    /// Time in which any kernel but communication ran, nanoseconds.
    pub work_ns: u64,
    /// The longest time in it without any kernel, nanoseconds; 0 in summaries of older releases, which do not tell it.
    pub longest_gap_ns: u64,
    /// Kernels, copies and fills in it.
    pub rows: u32,
    /// Launches by the host: a CUDA graph is one, whatever the number of its kernels. Equal to `rows`
    /// where the trace does not tell.
    pub launches: u32,
    /// What ran in it.
    pub kind: StepKind,
    /// Requests in its batch, if known.
    pub requests: Option<u32>,
    /// Tokens in its batch, if known.
    pub tokens: Option<u32>,
}

impl Step {
    /// Time without any kernel, nanoseconds.
    pub fn gap_ns(&self) -> u64 {
        self.wall_ns.saturating_sub(self.busy_ns)
    }
}

/// One collective call on one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Collective {
    /// Nanoseconds since the window's epoch.
    pub start: i64,
    /// Nanoseconds since the window's epoch.
    pub end: i64,
    /// Its identity, if the trace says it.
    pub id: Option<CollectiveId>,
    /// The index of the step it ran in.
    pub step: Option<u32>,
}

impl Collective {
    pub(crate) const fn duration_ns(self) -> i64 {
        self.end - self.start
    }
}

/// One rank's window, aggregated.
#[derive(Clone, Debug)]
pub struct RankProfile {
    /// The rank.
    pub rank: RankId,
    /// Nanoseconds since the Unix epoch (or the profile's own) of the window's time zero.
    pub epoch_ns: i64,
    /// First start and last end of a kernel, nanoseconds since the epoch of the window.
    pub window: (i64, i64),
    /// The number of rows that it was made from.
    pub rows: u64,
    /// Whether the trace tells launches by the host from kernels of graphs.
    pub knows_launches: bool,
    /// The mean time from one launch by the host to the next, nanoseconds, without the longest of each step,
    /// in which it waits; `None` if the trace does not say it.
    pub host_pace_ns: Option<u64>,
    /// What its profiler recorded beside kernels.
    pub activities: Activities,
    /// Time in which any kernel ran, over the whole window, nanoseconds.
    pub busy_ns: u64,
    /// Its steps, in order.
    pub steps: Vec<Step>,
    /// How the steps were found.
    pub source: StepSource,
    /// What delimits the steps, where they were found by a period.
    pub period: Option<Period>,
    /// Launches and time of each kernel inside of steps.
    pub kernels: Vec<KernelCost>,
    /// Its collective calls, in order.
    pub collectives: Vec<Collective>,
    /// Its streams, the busiest first.
    pub streams: Vec<i64>,
    /// The number of ranks, if the trace says it.
    pub world_size: Option<u32>,
    /// What a reader of the result must know, a sentence each.
    pub notes: Vec<String>,
    /// Whether a part of the window is missing.
    pub partial: bool,
}

impl RankProfile {
    /// Stands for a rank whose file could not be read.
    pub fn unreadable(rank: RankId) -> Self {
        let mut trace = RankTrace::default();
        trace.partial = true;
        trace.notes.push("its trace could not be read".to_owned());
        aggregate(rank, trace, StepSource::PerSecond, &[])
    }

    /// Length of the window in nanoseconds.
    pub fn window_ns(&self) -> u64 {
        u64::try_from(self.window.1 - self.window.0).unwrap_or(0)
    }

    /// The number of steps of `kind`.
    pub fn count(&self, kind: StepKind) -> usize {
        self.steps.iter().filter(|s| s.kind == kind).count()
    }
}

/// A rank whose rows were read. Annotated steps are aggregated at once, so that only the profile is
/// kept in memory; without annotations the rows wait until those of all ranks are known.
#[derive(Debug)]
pub struct RankWindow {
    rank: RankId,
    rows: Rows,
}

#[derive(Debug)]
enum Rows {
    Aggregated(RankProfile),
    Waiting(RankTrace),
}

impl RankWindow {
    /// Ends the reading of `trace`, and aggregates it where annotations tell its steps.
    pub fn new(rank: RankId, mut trace: RankTrace) -> Self {
        trace.finish();
        let steps = trace.annotated_steps().map(|(source, marks)| (source, marks.to_vec()));
        let rows = match steps {
            Some((source, marks)) => Rows::Aggregated(aggregate(rank, trace, source, &marks)),
            None => Rows::Waiting(trace),
        };
        Self { rank, rows }
    }

    /// A rank that was aggregated before: read from its [summary](crate::summary).
    pub fn of_summary(profile: RankProfile) -> Self {
        Self { rank: profile.rank, rows: Rows::Aggregated(profile) }
    }

    /// The rank.
    pub fn rank(&self) -> RankId {
        self.rank
    }
}

/// The profiles of a capture.
#[derive(Debug, Default)]
pub struct Profiles {
    /// In the order of the windows that they were made from.
    pub ranks: Vec<RankProfile>,
    /// The kernel whose period delimits the steps of ranks without annotations, if there were such ranks
    /// and such a kernel.
    pub period_kernel: Option<String>,
}

impl Profiles {
    /// Aggregates the windows of a capture. The steps of ranks without annotations are found by the
    /// period of a kernel that all of them run.
    pub fn new(windows: Vec<RankWindow>) -> Self {
        let waiting: Vec<&RankTrace> = windows
            .iter()
            .filter_map(|w| match &w.rows {
                Rows::Waiting(trace) => Some(trace),
                Rows::Aggregated(_) => None,
            })
            .collect();
        let known = windows.iter().find_map(|w| match &w.rows {
            Rows::Aggregated(profile) => profile.period.as_ref(),
            Rows::Waiting(_) => None,
        });
        let periods = if waiting.is_empty() { None } else { period::periods(&waiting, known) };
        let period = periods.as_ref().map(|p| p.period.clone()).or_else(|| known.cloned());
        let mut marks = periods.map(|p| p.marks).unwrap_or_default().into_iter();
        let ranks = windows
            .into_iter()
            .map(|window| match window.rows {
                Rows::Aggregated(profile) => profile,
                Rows::Waiting(trace) => match marks.next().filter(|m| !m.is_empty()) {
                    Some(marks) => {
                        let profile = aggregate(window.rank, trace, StepSource::Period, &marks);
                        RankProfile { period: period.clone(), ..profile }
                    }
                    None => aggregate(window.rank, trace, StepSource::PerSecond, &[]),
                },
            })
            .collect();
        Self { ranks, period_kernel: period.map(|p| p.kernel) }
    }
}

/// Aggregates a window by the steps in `marks`. Without marks the whole window is one step, and
/// `source` must be [`StepSource::PerSecond`].
fn aggregate(rank: RankId, mut trace: RankTrace, source: StepSource, marks: &[StepMark]) -> RankProfile {
    let window = extent_of(&trace.rows);
    let whole =
        [StepMark { start: window.0, end: window.1, kind: StepKind::Step, requests: None, tokens: None }];
    let marks = if marks.is_empty() && !trace.rows.is_empty() { &whole[..] } else { marks };
    let all_marks = marks;
    let marks = if trace.partial { complete_steps(all_marks, &trace.rows) } else { all_marks };
    // The sampling of an annotated step runs after its annotation, so the last step has no end; a
    // step found by its period ends where the next one would begin.
    let last_end = match (source, all_marks.get(marks.len())) {
        (_, Some(cut)) => cut.start,
        (StepSource::Period, None) => marks.last().map_or(0, |m| m.end),
        (_, None) => i64::MAX,
    };
    let mut totals = RowTotals::of(&trace, steps_of(marks, window.1, last_end));
    let mut next = 0;
    for &row in &trace.rows {
        while marks.get(next).is_some_and(|m| m.start <= row.start) {
            next += 1;
        }
        totals.add(row, next, row.start < last_end, &trace);
    }
    let mut streams: Vec<(u64, i64)> =
        totals.by_stream.iter().copied().zip(trace.streams.iter().copied()).collect();
    streams.sort_unstable_by_key(|s| std::cmp::Reverse(s.0));
    let kernels = totals.kernels(std::mem::take(&mut trace.names), &trace.blocks);
    RankProfile {
        rank,
        epoch_ns: trace.epoch_ns,
        window,
        rows: trace.rows.len() as u64,
        knows_launches: trace.knows_launches(),
        host_pace_ns: if source == StepSource::PerSecond { None } else { trace.host_pace_ns(marks.len()) },
        activities: trace.activities,
        busy_ns: totals.busy_ns,
        steps: totals.steps,
        source,
        period: None,
        kernels,
        collectives: totals.collectives,
        streams: streams.into_iter().map(|s| s.1).collect(),
        world_size: trace.world_size,
        notes: trace.notes,
        partial: trace.partial,
    }
}

/// The steps that `marks` begin, each until the next; the last until `window_end` and at most until `last_end`.
fn steps_of(marks: &[StepMark], window_end: i64, last_end: i64) -> Vec<Step> {
    let step = |(i, m): (usize, &StepMark)| {
        let until = marks.get(i + 1).map_or(window_end.max(m.end).min(last_end), |n| n.start);
        Step {
            start: m.start,
            wall_ns: u64::try_from(until - m.start).unwrap_or(0),
            busy_ns: 0,
            work_ns: 0,
            longest_gap_ns: 0,
            rows: 0,
            launches: 0,
            kind: m.kind,
            requests: m.requests,
            tokens: m.tokens,
        }
    };
    marks.iter().enumerate().map(step).collect()
}

/// What the rows of a rank add up to, taken in the order of their starts.
struct RowTotals {
    families: Vec<Family>,
    steps: Vec<Step>,
    by_name: Vec<[Cost; 4]>,
    launches: Vec<u64>,
    by_stream: Vec<u64>,
    collectives: Vec<Collective>,
    busy_ns: u64,
    busy_until: i64,
    work_until: i64,
}

impl RowTotals {
    fn of(trace: &RankTrace, steps: Vec<Step>) -> Self {
        let names = trace.names.len();
        Self {
            families: trace.names.iter().map(|n| family_of(n)).collect(),
            steps,
            by_name: vec![[Cost::default(); 4]; names],
            launches: vec![0; names],
            by_stream: vec![0; trace.streams.len()],
            collectives: Vec::new(),
            busy_ns: 0,
            busy_until: i64::MIN,
            work_until: i64::MIN,
        }
    }

    /// Adds a row at whose start the first `begun` steps had begun; it belongs to the last of them where that goes on.
    fn add(&mut self, row: Row, begun: usize, goes_on: bool, trace: &RankTrace) {
        let name = usize::from(row.name);
        note_gap(&mut self.steps[..begun], self.busy_until, row.start);
        let busy = newly_covered(&mut self.busy_until, row);
        self.busy_ns += busy;
        self.by_stream[usize::from(row.stream())] += u64::from(row.dur);
        self.launches[name] += 1;
        let is_communication = self.families[name] == Family::Communication;
        let work = if is_communication { 0 } else { newly_covered(&mut self.work_until, row) };
        let step = begun.checked_sub(1).filter(|_| goes_on);
        if is_communication {
            let id = trace.collective_ids.get(&(row.start, row.stream())).copied();
            let step = step.map(|s| s as u32);
            self.collectives.push(Collective { start: row.start, end: row.end(), id, step });
        }
        if let Some(at) = step {
            let step = &mut self.steps[at];
            step.busy_ns += busy;
            step.rows += 1;
            step.launches += u32::from(row.is_launched());
            step.work_ns += work;
            self.by_name[name][step.kind as usize].add(row);
        }
    }

    /// What each kernel cost: of `names`, with the `blocks` of all their launches.
    fn kernels(&self, names: Vec<String>, blocks: &[u64]) -> Vec<KernelCost> {
        let cost = |(i, name): (usize, String)| KernelCost {
            short: short_name(&name),
            digest: fnv1a(name.bytes()),
            name,
            family: self.families[i],
            blocks: blocks[i] as f64 / self.launches[i].max(1) as f64,
            by_kind: self.by_name[i],
        };
        names.into_iter().enumerate().map(cost).collect()
    }
}

/// Of a window that was cut, the steps before the one in which its rows end: annotations often come
/// first in a file, so there are annotations of steps whose kernels were not read.
fn complete_steps<'a>(marks: &'a [StepMark], rows: &[Row]) -> &'a [StepMark] {
    let last = rows.last().map_or(i64::MIN, |r| r.start);
    let begun = marks.iter().take_while(|m| m.start <= last).count();
    &marks[..if begun > 1 { begun - 1 } else { begun }]
}

/// First start and last end.
fn extent_of(rows: &[Row]) -> (i64, i64) {
    let start = rows.first().map_or(0, |r| r.start);
    (start, rows.iter().map(|r| r.end()).max().unwrap_or(start))
}

/// Notes the time without any kernel from `from` to `until` in the last of the steps that have begun, and the
/// part before that one began in the step before it.
fn note_gap(begun: &mut [Step], from: i64, until: i64) {
    let mut until = until;
    for step in begun.iter_mut().rev().take(2) {
        let gap = until.saturating_sub(from.max(step.start));
        step.longest_gap_ns = step.longest_gap_ns.max(u64::try_from(gap).unwrap_or(0));
        until = until.min(step.start);
    }
}

/// The time of `row` that no row before it covered; rows are ordered by their start.
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
    use crate::trace::Limits;

    #[test]
    fn busy_time_is_a_union_and_waiting_is_no_work() {
        let mut t = RankTrace::default();
        let limits = Limits::default();
        // Two streams overlap from 50 to 100; NCCL runs alone from 200 to 260.
        t.mark_step(true, "step[DECODE bs=3]", 0, 100);
        t.push(limits, b"_fwd_kernel", 7, 0, 100);
        t.push(limits, b"nvjet_x", 8, 50, 80);
        t.push(limits, b"ncclDevKernel_AllReduce", 9, 200, 60);
        t.mark_step(true, "step[DECODE bs=5]", 300, 400);
        t.push(limits, b"nvjet_x", 8, 300, 10);
        t.finish();
        let marks = t.gpu_steps.clone();
        let p = aggregate(RankId::Rank(Rank::dp(1)), t, StepSource::GpuAnnotations, &marks);
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
            t.mark_step(true, "step[DECODE bs=3]", step * 100, step * 100 + 90);
        }
        for start in [0, 50, 100, 150, 200] {
            t.push(Limits::default(), b"_fwd_kernel", 7, start, 40);
        }
        t.finish();
        let marks = t.gpu_steps.clone();
        let p = aggregate(RankId::Rank(Rank::dp(1)), t, StepSource::GpuAnnotations, &marks);
        assert_eq!(
            p.steps.iter().map(|s| (s.start, s.wall_ns, s.busy_ns)).collect::<Vec<_>>(),
            [(0, 100, 80), (100, 100, 80)]
        );
        assert_eq!(p.kernels[0].total().launches, 4, "the third step was cut");
    }
}
