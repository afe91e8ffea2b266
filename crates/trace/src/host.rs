//! Whether a rank's host is slow, or has more to do: the law of host time.
//!
//! The *host time* of a step is its wall time without any kernel. What a healthy host needs grows with
//! the kernels that it launches one by one (a CUDA graph is one launch), and with the requests that it
//! prepares, samples and answers. So the time that a rank's own work accounts for is
//!
//! ```text
//! expected = max( host time per launch of the peers (median over ranks) x launches per step here,
//!                 host time per step of the peers (median) )
//! ratio    = host time per step here / expected
//! alike    = host time of the rank's steps / that of the peers' steps of equal kind and batch
//! ```
//!
//! Ranks that meet in collectives hold each other up, so there the peers' host time is no measure of what
//! their hosts need. Where a rank is slower by a little, its peers' hosts run ahead of their GPUs: the time
//! that they need is hidden behind the waiting in collectives, and only the last rank's GPU idles. Where a
//! rank is slower by far, its peers' hosts wait for it, too, and their GPUs idle like its own. What the
//! hosts of such ranks need is told by their launches:
//!
//! ```text
//! pace     = mean time between successive launches of a host, without the longest of each step, in
//!            which it waits (for the GPU, for requests, for the other ranks)
//! expected = pace of the peers (median over ranks) x launches per step here
//! ```
//!
//! Two H200 with SGLang 0.5.16 (TP, EP and DP attention): healthy ranks need up to 1.6 times that, ranks
//! whose scheduler was crowded by four busy loops 3.1 to 5.8 times, ranks whose scheduler was stopped for
//! half of the time 1.6 to 2.6 times.
//!
//! The longest step of each rank is left out of the ratio, so that no single pause decides. A ratio
//! below [`SLOWER`] is no finding. Above it, steps of equal kind and batch decide where both sides have
//! them: they differ in the host alone. Elsewhere the growth of the batch decides. Requests in flight are
//! their rate of arrival times the time that each takes (Little's law), so behind a slow host the batch
//! grows at most as much as the steps get longer: a batch that grew [`MORE_SENT`] times as much was sent
//! more, and a rank with equal batches has a slow host. Of the others, one is slow beyond
//! [`FAR_SLOWER`] and beyond [`BEYOND_BATCH`] times the growth of its batch, which is what a host would
//! need whose time is all spent per request. Between these the traces do not tell.
//!
//! A larger batch makes every step longer. A host that is stopped, or that waits for a CPU, loses its time in some of
//! them at once: its GPU idles far longer there than anywhere else. Where such *pauses* are most of what is beyond the
//! expectation, and the rest fits it, the host is slow whatever its batch: requests pile up behind it. One pause alone
//! makes no host slow, but a larger batch may have piled up behind it.
//!
//! ```text
//! usual  = max( lower quartile, over the rank's steps of the same kind, of the longest time without a kernel,
//!               median of the same over all steps of all peers )
//! pause  = the longest time without a kernel of a step, if it is at least 3 x usual
//! ```

use std::collections::HashMap;

use crate::profile::{RankProfile, Step};
use crate::stats::{RankStats, median};
use crate::step::MIN_STEPS;
use crate::step::StepKind;

/// Host time below this multiple of what the work accounts for is no finding: healthy ranks on one
/// busy machine differ by up to 1.7.
pub const SLOWER: f64 = 2.0;
/// The same where the rank's batches are larger: a host also prepares and answers each request, which
/// its launches do not show.
const FAR_SLOWER: f64 = 3.0;
/// How far the ratio must exceed the growth of the batch.
const BEYOND_BATCH: f64 = 1.25;
/// A batch that grew this many times as much as the steps got longer was sent more requests.
const MORE_SENT: f64 = 2.0;
/// Batches beyond this factor are larger.
const LARGER: f64 = 1.25;
/// The longest idle time of a step is a pause from this multiple of the usual one on.
const PAUSE: f64 = 3.0;
/// One pause may be a passing moment: it makes no host slow.
const MIN_PAUSES: usize = 2;
/// The excess must be this share of the peers' step, or nobody loses time by it.
const OF_STEP: f64 = 0.15;
/// Fewer steps of the peers alike are no comparison.
const MIN_ALIKE: usize = 2;
/// At most so many steps of a rank are compared one by one.
const MAX_STEPS: usize = 512;

/// What the law says of one rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HostFinding {
    /// Nothing beyond what its launches account for.
    Fits,
    /// More than its launches account for, but its larger batches may need that.
    OfItsWork,
    /// More than its work accounts for.
    Slow,
    /// Either.
    Untold,
}

/// The host time of one rank against that of its peers, milliseconds per step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HostTime {
    /// The rank's.
    pub ms: f64,
    /// What its work accounts for.
    pub expected_ms: f64,
    /// `ms` over `expected_ms`, both without the longest step.
    pub ratio: f64,
    /// Whether the expectation is from the pace of the peers' launches, as it is of ranks that meet in
    /// collectives where the traces tell it.
    pub by_pace: bool,
    /// The factor against the peers' steps of equal kind and batch, and how many of theirs there are.
    pub alike: Option<(f64, usize)>,
    /// Pauses of the host, where they are most of what is beyond the expectation.
    pub pauses: Option<Pauses>,
    /// The finding.
    pub finding: HostFinding,
}

/// Times in which nothing ran on the rank's GPU, far longer than usual.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pauses {
    /// How many.
    pub count: usize,
    /// The longest, milliseconds.
    pub longest_ms: f64,
    /// All of them, milliseconds per step.
    pub ms: f64,
}

impl HostTime {
    /// What is beyond the expectation.
    pub fn beyond_ms(&self) -> f64 {
        self.ms - self.expected_ms
    }

    /// The number of things that are missing for full confidence.
    pub fn doubts(&self) -> usize {
        let near = self.ratio < 1.25 * SLOWER;
        let few = self.alike.is_some_and(|(_, n)| n < MIN_STEPS);
        usize::from(near) + usize::from(few)
    }
}

/// Judges the host time of rank `at`; `None` where there is nothing to compare it with, which ranks with
/// other activities of the profiler are not. Whether the ranks meet in collectives decides what the peers'
/// host time says. `growth` tells the factor by which its batches are larger
/// than its peers', `None` where nothing does.
pub fn host_time(
    profiles: &[&RankProfile],
    stats: &[&RankStats],
    at: usize,
    in_lockstep: bool,
    growth: impl FnOnce() -> Option<f64>,
) -> Option<HostTime> {
    let mine = OfRank::new(profiles[at])?;
    let is_peer = |i: &usize| is_peer(profiles, at, *i);
    let peers: Vec<OfRank> =
        (0..profiles.len()).filter(is_peer).filter_map(|i| OfRank::new(profiles[i])).collect();
    let of = |f: fn(&OfRank) -> f64| median(&peers.iter().map(f).collect::<Vec<_>>());
    let per_step = of(|h| h.ms)?;
    // Kernels of graphs are launched by one call: where a trace does not tell them, no cost per launch
    // is known, and equal launches are assumed.
    let known = profiles.iter().all(|p| p.knows_launches);
    let per_launch = of(|h| h.ms / h.launches).filter(|_| known);
    let paces: Option<Vec<f64>> =
        (0..profiles.len()).filter(is_peer).map(|i| Some(profiles[i].host_pace_ns? as f64 / 1e6)).collect();
    let pace = paces.as_deref().and_then(median).filter(|_| in_lockstep && known);
    let expected = match pace {
        Some(pace) => pace * mine.launches,
        None => per_step.max(per_launch.map_or(0.0, |ms| ms * mine.launches)),
    };
    let by_pace = pace.is_some();
    let ms = stats[at].split.host;
    let others: Vec<&RankProfile> = (0..profiles.len()).filter(is_peer).map(|i| profiles[i]).collect();
    let pauses = pauses_of(profiles[at], &others)
        .filter(|p| ms > expected && ms - p.ms < SLOWER * expected)
        .filter(|p| p.ms >= 0.5 * (ms - expected));
    let step = median(&(0..stats.len()).filter(is_peer).map(|i| stats[i].wall_ms).collect::<Vec<_>>())?;
    let ratio = mine.ms / expected.max(1e-6);
    if ms - expected < OF_STEP * step || ratio < SLOWER {
        return Some(HostTime {
            ms,
            expected_ms: expected,
            ratio,
            by_pace,
            alike: None,
            pauses,
            finding: HostFinding::Fits,
        });
    }
    // Of ranks that meet in collectives equal steps share their wall time.
    let alike = if by_pace { None } else { alike(profiles, at) };
    let growth = growth();
    let longer = ratio.max(stats[at].wall_ms / step.max(1e-6));
    let sent_more = growth.is_some_and(|g| g >= MORE_SENT * longer);
    let finding = match (alike, growth) {
        (Some((factor, _)), _) if factor >= FAR_SLOWER && sent_more => HostFinding::Untold,
        (Some((factor, _)), _) if factor >= SLOWER && !sent_more => HostFinding::Slow,
        (Some(_), _) => HostFinding::OfItsWork,
        (None, Some(g)) if g < LARGER => HostFinding::Slow,
        (None, Some(_)) if ratio < FAR_SLOWER || sent_more => HostFinding::OfItsWork,
        (None, Some(g)) if ratio >= BEYOND_BATCH * g => HostFinding::Slow,
        (None, _) => HostFinding::Untold,
    };
    let by_batch = matches!(finding, HostFinding::OfItsWork | HostFinding::Untold);
    let stood_still = pauses.is_some_and(|p| p.count >= MIN_PAUSES);
    let finding = if by_batch && stood_still { HostFinding::Slow } else { finding };
    Some(HostTime { ms, expected_ms: expected, ratio, by_pace, alike, pauses, finding })
}

/// Whether the host of rank `i` may be compared with that of rank `at`: it was profiled with the same activities.
fn is_peer(profiles: &[&RankProfile], at: usize, i: usize) -> bool {
    i != at && profiles[i].activities == profiles[at].activities
}

/// One rank, per step, without its longest step.
#[derive(Clone, Copy)]
struct OfRank {
    ms: f64,
    launches: f64,
}

impl OfRank {
    fn new(p: &RankProfile) -> Option<Self> {
        let with_work = || p.steps.iter().filter(|s| s.kind != StepKind::Idle);
        let n = with_work().count();
        if n < MIN_STEPS {
            return None;
        }
        let gap: u64 = with_work().map(Step::gap_ns).sum();
        let longest = with_work().max_by_key(|s| s.gap_ns())?;
        let launches: u64 = with_work().map(|s| u64::from(s.launches)).sum();
        let rest = (n - 1) as f64;
        Some(Self {
            ms: (gap - longest.gap_ns()) as f64 / 1e6 / rest,
            launches: (launches.saturating_sub(u64::from(longest.launches)) as f64 / rest).max(1.0),
        })
    }
}

/// The pauses of a rank; `None` where there are none.
fn pauses_of(mine: &RankProfile, peers: &[&RankProfile]) -> Option<Pauses> {
    let with_work = |p: &RankProfile| -> Vec<(StepKind, f64)> {
        let of = |s: &Step| (s.kind, s.longest_gap_ns as f64 / 1e6);
        p.steps.iter().filter(|s| s.kind != StepKind::Idle).map(of).collect()
    };
    let theirs: Vec<f64> = peers.iter().flat_map(|p| with_work(p)).map(|(_, ms)| ms).collect();
    let typical = median(&theirs)?;
    let steps = with_work(mine);
    let lower_quartile = |kind: StepKind| {
        let mut of_kind: Vec<f64> = steps.iter().filter(|s| s.0 == kind).map(|s| s.1).collect();
        of_kind.sort_by(f64::total_cmp);
        of_kind.get(of_kind.len().saturating_sub(1) / 4).copied().unwrap_or(0.0)
    };
    let usual = StepKind::ALL.map(|kind| lower_quartile(kind).max(typical));
    let is_pause = |s: &&(StepKind, f64)| s.1 > 0.0 && s.1 >= PAUSE * usual[s.0 as usize];
    let pauses: Vec<f64> = steps.iter().filter(is_pause).map(|s| s.1).collect();
    (!pauses.is_empty()).then(|| Pauses {
        count: pauses.len(),
        longest_ms: pauses.iter().copied().fold(0.0, f64::max),
        ms: pauses.iter().sum::<f64>() / steps.len() as f64,
    })
}

/// The host time of the rank's steps over that of its peers' steps of the same kind with about as many
/// requests and tokens, and how many steps of the peers that are. The longest step is left out.
fn alike(profiles: &[&RankProfile], at: usize) -> Option<(f64, usize)> {
    let mut theirs: HashMap<StepKind, Vec<(&Step, bool)>> = HashMap::new();
    for i in (0..profiles.len()).filter(|i| is_peer(profiles, at, *i)) {
        for s in sample(&profiles[i].steps) {
            theirs.entry(s.kind).or_default().push((s, false));
        }
    }
    let mut pairs: Vec<(f64, f64)> = Vec::new();
    for s in sample(&profiles[at].steps) {
        let mut equal = Vec::new();
        for (other, used) in theirs.get_mut(&s.kind).into_iter().flatten().filter(|o| is_alike(s, o.0)) {
            *used = true;
            equal.push(other.gap_ns() as f64);
        }
        pairs.extend(median(&equal).map(|typical| (s.gap_ns() as f64, typical)));
    }
    let used = theirs.values().flatten().filter(|o| o.1).count();
    if used < MIN_ALIKE {
        return None;
    }
    if pairs.len() < MIN_STEPS {
        return None;
    }
    pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
    pairs.pop();
    let (mine, typical) = pairs.iter().fold((0.0, 0.0), |sum, p| (sum.0 + p.0, sum.1 + p.1));
    (typical > 0.0).then(|| (mine / typical, used))
}

fn sample(steps: &[Step]) -> impl Iterator<Item = &Step> {
    steps.iter().step_by(steps.len().div_ceil(MAX_STEPS).max(1)).filter(|s| s.requests.is_some())
}

/// Whether two steps of one kind give the host about the same to do. Prefill tokens are work of the GPU
/// more than of the host, so they may differ more than requests.
fn is_alike(a: &Step, b: &Step) -> bool {
    let within = |x: u32, y: u32, factor: f64, slack: f64| {
        let (low, high) = (f64::from(x.min(y)), f64::from(x.max(y)));
        high <= factor * low + slack
    };
    let (Some(x), Some(y)) = (a.requests, b.requests) else { return false };
    let tokens = match (a.tokens, b.tokens) {
        (Some(x), Some(y)) => within(x, y, 4.0, 0.0),
        _ => a.kind != StepKind::Extend,
    };
    let slack = if a.kind == StepKind::Extend { 2.0 } else { 1.0 };
    within(x, y, 1.5, slack) && tokens
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rank::{Rank, RankId};
    use crate::step::StepSource;
    use crate::trace::Activities;

    /// A rank whose steps have so many requests, and so many milliseconds of host time beside five of kernels.
    fn profile(dp: u16, cpu: bool, requests: u32, host_ms: u64) -> RankProfile {
        let wall_ns = (host_ms + 5) * 1_000_000;
        let step = |i: i64| Step {
            start: i * wall_ns as i64,
            wall_ns,
            busy_ns: 5_000_000,
            work_ns: 5_000_000,
            longest_gap_ns: 1_000_000,
            rows: 100,
            launches: 100,
            kind: StepKind::Decode,
            requests: Some(requests),
            tokens: Some(requests),
        };
        RankProfile {
            steps: (0..20).map(step).collect(),
            activities: Activities { cpu, stacks: false },
            knows_launches: true,
            source: StepSource::Period,
            ..RankProfile::unreadable(RankId::Rank(Rank::dp(dp)))
        }
    }

    #[test]
    fn only_steps_under_the_same_activities_are_alike() {
        // DP0's batches are 2.5 times DP1's, and so is its host time. DP2 and DP3 are not slowed by the CPU's profiler.
        let all = [
            profile(0, true, 10, 10),
            profile(1, true, 4, 4),
            profile(2, false, 10, 3),
            profile(3, false, 10, 3),
        ];
        let judged = |all: &[RankProfile]| {
            let stats: Vec<RankStats> = all.iter().map(RankStats::new).collect();
            let (profiles, stats): (Vec<&RankProfile>, Vec<&RankStats>) = all.iter().zip(&stats).unzip();
            host_time(&profiles, &stats, 0, false, || Some(2.5)).expect("it has a peer")
        };
        let of_two = judged(&all[..2]);
        assert_eq!((of_two.alike, of_two.finding), (None, HostFinding::OfItsWork));
        assert_eq!(judged(&all), of_two);
        let alike = judged(&all.map(|profile| RankProfile { activities: Activities::default(), ..profile }));
        assert_eq!(alike.finding, HostFinding::Slow, "of ranks under the same activities equal steps decide");
    }
}
