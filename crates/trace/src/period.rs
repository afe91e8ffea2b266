//! Finds steps without annotations: from a kernel that every rank runs equally often in a step.
//!
//! Kernels that run once (or 32 times) in every step have counts in one proportion on all ranks,
//! whatever the window and the load of each rank. The largest group of such kernels is the skeleton
//! of the step, and the lowest count that many of them share is once a step. Ranks that share their batch
//! run all kernels equally often, those of prefill, too, which are not in every step: a count by which
//! steps would run both prefill and decode is passed over. Where the count is in fact once a layer, regular
//! pauses between groups of layers delimit the step.
//!
//! Ranks that ran equally many collectives ran equally many steps, so there the counts of such a kernel are equal, and
//! one that runs by chance about as often as there are steps is told from them.
//!
//! The attention kernels in a step show whether it is prefill or decode.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::kernel::{Family, Phase, family_of, phase_of};
use crate::step::{MIN_STEPS, StepKind, StepMark};
use crate::trace::RankTrace;

/// What delimits the steps of ranks without annotations.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Period {
    /// The kernel that runs first in a step.
    pub kernel: String,
    /// How often it runs in a step.
    pub runs: usize,
}

/// Steps of several ranks, by the period of one kernel.
pub(crate) struct Periods {
    /// What delimits them.
    pub period: Period,
    /// Complete steps of each rank, in the order of the ranks; empty where the kernel does not run.
    pub marks: Vec<Vec<StepMark>>,
}

/// A kernel must run at least this often on each rank.
const MIN_RUNS: u64 = 4;
/// The same in a window in which most kernels run that often: it has three steps, the fewest that a window gets.
const MIN_RUNS_OF_FEW_STEPS: u64 = MIN_STEPS as u64;
/// With fewer collectives nothing tells whether ranks ran equally many steps.
const MIN_COLLECTIVES: u64 = 16;
/// The most names that are considered, the most frequent first: this bounds the work on a hostile file.
const MAX_NAMES: usize = 400;

/// Finds the steps of ranks that run the same program; `None` when no kernel is common to all. Where the
/// period of other ranks of the capture is `known`, it is that of these, too.
pub(crate) fn periods(traces: &[&RankTrace], known: Option<&Period>) -> Option<Periods> {
    let period = known.cloned().or_else(|| period_of(traces))?;
    let marks = traces.iter().map(|t| marks_of(&starts_of(t, &period.kernel), period.runs, t)).collect();
    Some(Periods { period, marks })
}

/// The period that ranks have in common.
fn period_of(traces: &[&RankTrace]) -> Option<Period> {
    let counts: Vec<HashMap<&str, u64>> = traces.iter().map(|t| counts_of(t)).collect();
    let present: Vec<usize> = (0..traces.len()).filter(|&i| !traces[i].rows.is_empty()).collect();
    let &reference = present.iter().max_by_key(|&&i| traces[i].rows.len())?;
    let mut names: Vec<(&str, Vec<u64>)> = counts[reference]
        .keys()
        .filter_map(|&name| {
            let runs: Option<Vec<u64>> = present.iter().map(|&i| counts[i].get(name).copied()).collect();
            runs.filter(|r| r.iter().all(|&n| n >= MIN_RUNS_OF_FEW_STEPS)).map(|r| (name, r))
        })
        .collect();
    let few_steps = has_few_steps(&names);
    if !few_steps {
        names.retain(|(_, runs)| runs.iter().all(|&n| n >= MIN_RUNS));
    }
    names.sort_by_key(|(name, runs)| (std::cmp::Reverse(runs.iter().sum::<u64>()), *name));
    names.truncate(MAX_NAMES);
    let ranks: Vec<&RankTrace> = present.iter().map(|&i| traces[i]).collect();
    let skeleton = skeleton_of(&names, traces[reference], ran_equal_steps(&ranks))?;
    let kernel = if few_steps {
        first_in_window(&skeleton.names, traces[reference])?
    } else {
        first_of_step(&skeleton.names, traces[reference])?
    };
    let runs = present
        .iter()
        .filter(|_| !skeleton.once_a_step)
        .map(|&i| runs_per_step(&starts_of(traces[i], kernel)))
        .reduce(|a, b| if a == b { a } else { 1 })
        .unwrap_or(1);
    Some(Period { kernel: kernel.to_owned(), runs })
}

/// Whether more kernels run [`MIN_RUNS_OF_FEW_STEPS`] times on every rank than any other number of times.
fn has_few_steps(names: &[(&str, Vec<u64>)]) -> bool {
    let mut alike: HashMap<&[u64], usize> = HashMap::new();
    names.iter().for_each(|(_, runs)| *alike.entry(runs).or_default() += 1);
    let most = alike.into_iter().max_by_key(|&(runs, n)| (n, runs));
    most.is_some_and(|(runs, _)| runs.iter().all(|&n| n == MIN_RUNS_OF_FEW_STEPS))
}

/// Whether the ranks ran equally many collectives, and so equally many steps.
fn ran_equal_steps(ranks: &[&RankTrace]) -> bool {
    let collectives = |t: &&RankTrace| {
        t.rows.iter().filter(|r| t.communicates.get(usize::from(r.name)) == Some(&true)).count() as u64
    };
    let counts: Vec<u64> = ranks.iter().map(collectives).collect();
    counts.iter().all(|&n| n >= MIN_COLLECTIVES) && equal(&counts)
}

/// Whether counts of one kernel are equal on all ranks, but for the run that the window cuts from some of them.
fn equal(runs: &[u64]) -> bool {
    let (least, most) = runs.iter().fold((u64::MAX, 0), |(l, m), &n| (l.min(n), m.max(n)));
    most.saturating_sub(least) <= 1 + most / 50
}

fn counts_of(trace: &RankTrace) -> HashMap<&str, u64> {
    let mut by_id = vec![0u64; trace.names.len()];
    for row in &trace.rows {
        by_id[usize::from(row.name)] += 1;
    }
    trace
        .names
        .iter()
        .zip(by_id)
        .map(|(n, c)| (n.as_str(), c))
        .filter(|(n, _)| family_of(n) != Family::Copy)
        .collect()
}

/// Kernels that run equally often on all ranks.
struct Skeleton<'a> {
    names: Vec<&'a str>,
    /// Whether others run so much more often that these cannot be once a layer.
    once_a_step: bool,
}

/// A layer runs its kernels up to about four times; models have more layers than this.
const LAYERS: f64 = 6.0;

/// Of the names whose counts are in one proportion on all ranks, those that share the lowest common
/// count by which prefill and decode are told apart.
fn skeleton_of<'a>(
    names: &[(&'a str, Vec<u64>)],
    trace: &RankTrace,
    equal_steps: bool,
) -> Option<Skeleton<'a>> {
    let members = |seed: &[u64]| -> Vec<&(&'a str, Vec<u64>)> {
        names.iter().filter(|(_, runs)| proportional(seed, runs)).collect()
    };
    let best = if equal_steps {
        names.iter().filter(|(_, runs)| equal(runs)).collect()
    } else {
        names
            .iter()
            .map(|(_, runs)| (members(runs), runs.iter().sum::<u64>()))
            .max_by_key(|(m, total)| (m.len(), std::cmp::Reverse(*total)))?
            .0
    };
    let sum = |runs: &[u64]| runs.iter().sum::<u64>() as f64;
    let alike = |a: f64, b: f64| (a - b).abs() <= (0.015 * a.max(b)).max(2.0);
    let mut groups: Vec<(f64, Vec<&'a str>)> = Vec::new();
    for (name, runs) in &best {
        let total = sum(runs);
        match groups.iter_mut().find(|g| alike(g.0, total)) {
            Some(group) => group.1.push(name),
            None => groups.push((total, vec![name])),
        }
    }
    groups.sort_by(|a, b| a.0.total_cmp(&b.0));
    let enough = (best.len() as f64 * 0.15).max(2.0);
    let large: Vec<usize> = (0..groups.len()).filter(|&i| groups[i].1.len() as f64 >= enough).collect();
    let told_apart = large.iter().copied().find(|&i| !delimits_badly(&groups[i].1, trace));
    let chosen = told_apart
        .or(large.first().copied())
        .or_else(|| (0..groups.len()).max_by_key(|&i| groups[i].1.len()))?;
    let often = groups.iter().filter(|g| g.0 >= LAYERS * groups[chosen].0).map(|g| g.1.len()).sum::<usize>();
    let (_, names) = groups.swap_remove(chosen);
    Some(Skeleton { names, once_a_step: often as f64 >= enough })
}

/// Whether these kernels delimit no steps: much of what ran lies in steps with both prefill and decode, or
/// before the first and after the last step lies more than the two steps that the window cuts.
fn delimits_badly(names: &[&str], trace: &RankTrace) -> bool {
    let Some(kernel) = first_of_step(names, trace) else { return false };
    let starts = starts_of(trace, kernel);
    let phases: Vec<Option<Phase>> = trace.names.iter().map(|n| phase_of(n)).collect();
    let mut seen = vec![(false, false, 0usize); starts.len()];
    let (mut next, mut before) = (0, 0);
    for row in &trace.rows {
        while starts.get(next).is_some_and(|s| *s <= row.start) {
            next += 1;
        }
        let Some(step) = next.checked_sub(1) else {
            before += 1;
            continue;
        };
        seen[step].2 += 1;
        match phases[usize::from(row.name)] {
            Some(Phase::Extend) => seen[step].0 = true,
            Some(Phase::Decode) => seen[step].1 = true,
            None => {}
        }
    }
    let mixed: usize = seen.iter().filter(|s| s.0 && s.1).map(|s| s.2).sum();
    let after = seen.last().map_or(0, |s| s.2);
    let longest = seen.iter().rev().skip(1).map(|s| s.2).max().unwrap_or(0);
    4 * mixed > trace.rows.len() || 2 * (before + after) > 5 * longest
}

/// Whether the counts of two kernels are in one proportion on all ranks. A window may cut a step at
/// either end, hence the slack of 1.5 runs.
fn proportional(a: &[u64], b: &[u64]) -> bool {
    let scale = b.iter().sum::<u64>() as f64 / a.iter().sum::<u64>() as f64;
    a.iter().zip(b).all(|(&x, &y)| {
        let slack = 1.5 / x.min(y) as f64 + 0.01;
        (y as f64 / (x as f64 * scale) - 1.0).abs() <= slack
    })
}

/// The kernel that comes first in a step: of those that take turns with most of `names`, the one before which the
/// GPU pauses longest. One that most often runs once in a step, but not in all of them, takes no turns.
fn first_of_step<'a>(names: &[&'a str], trace: &RankTrace) -> Option<&'a str> {
    let mut pauses = vec![(0i64, 0i64); trace.names.len()];
    let mut until = trace.rows.first()?.start;
    for row in &trace.rows {
        let (sum, n) = &mut pauses[usize::from(row.name)];
        *sum += (row.start - until).max(0);
        *n += 1;
        until = until.max(row.end());
    }
    let mean = |name: &str| {
        let at = trace.names.iter().position(|n| n == name);
        at.map_or(0, |i| pauses[i].0 / pauses[i].1.max(1))
    };
    let longest = |names: &[&'a str]| names.iter().copied().max_by_key(|n| (mean(n), std::cmp::Reverse(*n)));
    let runs = |name: &str| {
        let at = trace.names.iter().position(|n| n == name);
        at.map_or(0, |i| pauses[i].1)
    };
    let mut alike: HashMap<i64, Vec<&'a str>> = HashMap::new();
    names.iter().for_each(|n| alike.entry(runs(n)).or_default().push(n));
    let (_, usual) = alike.into_iter().max_by_key(|(runs, names)| (names.len(), *runs))?;
    longest(&taking_turns(names, longest(&usual)?, trace))
}

/// Of those that take turns, the kernel that runs first in the window: a window begins with a step, and where it
/// ends with one, too, the last step is seen whole.
fn first_in_window<'a>(names: &[&'a str], trace: &RankTrace) -> Option<&'a str> {
    let turns = taking_turns(names, first_of_step(names, trace)?, trace);
    trace.rows.iter().find_map(|row| {
        let name = trace.names[usize::from(row.name)].as_str();
        turns.iter().copied().find(|n| *n == name)
    })
}

/// Those of `names` that run once from each run of `kernel` to the next; it is one of them.
fn taking_turns<'a>(names: &[&'a str], kernel: &str, trace: &RankTrace) -> Vec<&'a str> {
    // By name: in which turn it ran last, and whether it ran in each of them once.
    let mut last: Vec<Option<(usize, bool)>> = vec![None; trace.names.len()];
    let first = trace.names.iter().position(|n| n == kernel);
    let mut turn = 0;
    for row in &trace.rows {
        let name = usize::from(row.name);
        turn += usize::from(Some(name) == first);
        last[name] = Some(match last[name] {
            None => (turn, turn <= 1),
            Some((before, once)) => (turn, once && turn == before + 1),
        });
    }
    let takes_turns = |name: &&str| {
        let at = trace.names.iter().position(|n| n == name).and_then(|i| last[i]);
        at.is_some_and(|(in_turn, once)| once && in_turn + 1 >= turn)
    };
    names.iter().copied().filter(takes_turns).collect()
}

fn starts_of(trace: &RankTrace, kernel: &str) -> Vec<i64> {
    let Some(id) = trace.names.iter().position(|n| n == kernel) else { return Vec::new() };
    trace.rows.iter().filter(|r| usize::from(r.name) == id).map(|r| r.start).collect()
}

/// The number of runs between regular pauses: 32 for a kernel of 32 layers, 1 without such pauses.
fn runs_per_step(starts: &[i64]) -> usize {
    let gaps: Vec<i64> = starts.windows(2).map(|w| w[1] - w[0]).collect();
    let Some(usual) = median(&gaps) else { return 1 };
    let pauses = pauses_in(&gaps, usual);
    let spans: Vec<usize> = pauses.windows(2).map(|w| w[1] - w[0]).collect();
    let mut counted: HashMap<usize, usize> = HashMap::new();
    spans.iter().for_each(|s| *counted.entry(*s).or_default() += 1);
    match counted.into_iter().max_by_key(|&(span, n)| (n, span)) {
        Some((span, n)) if span >= 2 && n >= 2 && n * 5 >= spans.len() * 4 => span,
        _ => 1,
    }
}

fn pauses_in(gaps: &[i64], usual: i64) -> Vec<usize> {
    (0..gaps.len()).filter(|&i| gaps[i] > usual.saturating_mul(3)).collect()
}

/// The middle one; of an even number the upper of the two.
pub fn median(values: &[i64]) -> Option<i64> {
    let mut sorted = values.to_vec();
    let middle = sorted.len() / 2;
    (!sorted.is_empty()).then(|| *sorted.select_nth_unstable(middle).1)
}

fn marks_of(starts: &[i64], every: usize, trace: &RankTrace) -> Vec<StepMark> {
    let firsts: Vec<i64> = if every > 1 {
        let gaps: Vec<i64> = starts.windows(2).map(|w| w[1] - w[0]).collect();
        let usual = median(&gaps).unwrap_or(0);
        let after: Vec<usize> = pauses_in(&gaps, usual).into_iter().map(|i| i + 1).collect();
        // A window that opens at the first layer of a step has a complete first step.
        let leading = after.first().filter(|&&i| i == every).map(|_| 0);
        leading.into_iter().chain(after).map(|i| starts[i]).collect()
    } else {
        starts.to_vec()
    };
    let mark = |(start, end)| StepMark { start, end, kind: StepKind::Step, requests: None, tokens: None };
    // The last start begins a step that the end of the window may have cut.
    let mut marks: Vec<StepMark> = firsts.windows(2).map(|w| mark((w[0], w[1]))).collect();
    // Of the fewest steps that a window gets each one is needed; without what follows it, its host time is not known.
    if marks.len() + 1 == MIN_STEPS && is_last_whole(&firsts, trace) {
        let end = trace.rows.iter().map(|r| r.end()).max().unwrap_or(0);
        marks.extend(firsts.last().map(|&start| mark((start, end))));
    }
    set_kinds(&mut marks, trace);
    marks
}

/// Whether of what runs once in each step that begins at one of `firsts` four fifths also run after the last of them: a
/// window that cuts it lacks what samples its tokens, and a batch of another kind a few.
fn is_last_whole(firsts: &[i64], trace: &RankTrace) -> bool {
    let mut runs = vec![vec![0u32; firsts.len()]; trace.names.len()];
    for row in &trace.rows {
        if let Some(step) = firsts.partition_point(|s| *s <= row.start).checked_sub(1) {
            runs[usize::from(row.name)][step] += 1;
        }
    }
    let once = runs.iter().filter_map(|of| of.split_last()).filter(|(_, rest)| rest.iter().all(|n| *n == 1));
    let kernels = once.clone().count();
    let missing = once.filter(|(last, _)| **last != 1).count();
    kernels > 1 && 5 * missing <= kernels
}

/// Sets the kind of each step by the attention kernels in it.
fn set_kinds(marks: &mut [StepMark], trace: &RankTrace) {
    let phases: Vec<Option<Phase>> = trace.names.iter().map(|n| phase_of(n)).collect();
    let mut at = 0;
    for row in &trace.rows {
        while at < marks.len() && marks[at].end <= row.start {
            at += 1;
        }
        let Some(mark) = marks.get_mut(at).filter(|m| m.start <= row.start) else { continue };
        match (phases[usize::from(row.name)], mark.kind) {
            (Some(Phase::Extend), StepKind::Step | StepKind::Decode) => mark.kind = StepKind::Extend,
            (Some(Phase::Decode), StepKind::Step) => mark.kind = StepKind::Decode,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Limits;

    /// Steps of 20 ms, each with its embedding, sampling and four layers; those in `prefills` run the kernels
    /// of prefill, of which there are more names.
    fn trace(steps: usize, prefills: &[usize]) -> RankTrace {
        let mut t = RankTrace::default();
        for step in 0..steps {
            let mut at = step as i64 * 20_000_000;
            let mut push = |name: &str| {
                t.push(Limits::default(), name.as_bytes(), 7, at, 50_000);
                at += 60_000;
            };
            let prefill = prefills.contains(&step);
            ["embedding", "positions"].into_iter().for_each(&mut push);
            for _ in 0..8 {
                push("rms_norm");
                push(if prefill { "_fwd_kernel" } else { "_fwd_grouped_kernel_stage1" });
                push("all_reduce");
            }
            if prefill {
                (0..6).for_each(|i| push(&format!("prefill_only_{i}")));
            }
            ["softmax", "argmax"].into_iter().for_each(&mut push);
        }
        t.finish();
        t
    }

    /// A rank's window of so many steps of 90 ms: prefill, and decode from the second on, with 16 collectives each.
    /// `index` runs so many times in each step in turn, as its batch wants.
    fn in_lockstep(steps: usize, index: &[usize]) -> RankTrace {
        let mut t = RankTrace::default();
        for step in 0..steps {
            let mut at = step as i64 * 90_000_000;
            let mut push = |name: &str| {
                t.push(Limits::default(), name.as_bytes(), 7, at, 50_000);
                at += 60_000;
            };
            (0..index[step % index.len()]).for_each(|_| push("index"));
            ["embedding", "positions"].into_iter().for_each(&mut push);
            (0..8 * usize::from(step > 0)).for_each(|i| push(&format!("decode_only_{}", i / 8)));
            for _ in 0..8 {
                push("rms_norm");
                push(if step == 0 { "_fwd_kernel" } else { "_fwd_grouped_kernel_stage1" });
                push("ncclDevKernel_AllReduce");
                push("ncclDevKernel_AllGather");
            }
            ["softmax", "argmax", "penalty"].into_iter().for_each(&mut push);
            // Most runs of others are in a proportion of their own.
            (0..index[step % index.len()]).for_each(|_| push("fill_int"));
            (0..index[step % index.len()] * 2).for_each(|i| push(&format!("fill_{}", i % 4)));
        }
        t.finish();
        t
    }

    #[test]
    fn ranks_that_ran_equally_many_collectives_have_equally_many_steps() {
        let (a, b) = (in_lockstep(6, &[1, 2, 1, 2, 1, 2]), in_lockstep(6, &[1, 1, 1, 1, 0, 1]));
        let found = periods(&[&a, &b], None).expect("a period");
        let steps: Vec<usize> = found.marks.iter().map(Vec::len).collect();
        assert_eq!(steps, [5, 5], "{:?}", found.period);
        let off = found.marks.iter().flatten().map(|m| (m.end - m.start).abs_diff(90_000_000)).max();
        assert!(off.is_some_and(|ns| ns < 1_000_000), "{:?}", found.marks);
    }

    #[test]
    fn a_kernel_of_all_steps_but_one_delimits_none() {
        let (a, b) = (in_lockstep(6, &[0]), in_lockstep(6, &[0]));
        let names = ["embedding", "softmax", "argmax", "penalty", "decode_only_0"];
        assert_eq!(taking_turns(&names, "embedding", &a), &names[..4]);
        let found = periods(&[&a, &b], None).expect("a period");
        assert_eq!(found.marks[0].len(), 5, "{:?}", found.period);
    }

    #[test]
    fn a_window_of_three_steps_has_three_unless_it_cuts_the_last() {
        let (mut a, b) = (trace(3, &[]), trace(3, &[0]));
        let found = periods(&[&a, &b], None).expect("a period");
        assert_eq!(found.marks.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3], "{:?}", found.period);
        assert_eq!(found.marks[0][2].end, a.rows.last().expect("some").end());
        a.rows.pop();
        let cut = periods(&[&a, &b], None).expect("a period");
        assert_eq!(cut.marks.iter().map(Vec::len).collect::<Vec<_>>(), [2, 3], "{:?}", cut.period);
    }

    #[test]
    fn steps_of_ranks_with_one_batch_are_not_those_of_their_prefills() {
        for prefills in [(0..6).collect::<Vec<_>>(), vec![3, 8, 9, 15, 21, 26]] {
            let (a, b) = (trace(30, &prefills), trace(30, &prefills));
            let found = periods(&[&a, &b], None).expect("a period");
            assert_eq!(found.period.runs, 1, "{:?}", found.period);
            let of = |kind| found.marks[0].iter().filter(|m| m.kind == kind).count();
            assert_eq!((of(StepKind::Extend), of(StepKind::Decode)), (6, 23), "{:?}", found.period);
        }
    }
}
