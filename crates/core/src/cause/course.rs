//! What the store remembers of the members of a group, by signal: one source for each signal, the same
//! for all members, so that their numbers can be compared.

use std::collections::BTreeMap;

use crate::factor::PromptTokens;
use crate::signal::catalog::{self, Kind};
use crate::signal::sample::{Signal, Source};
use crate::signal::store::SignalStore;
use crate::signal::store::together::{Points, together};
use skewtrap_trace::labels::Labels;
use skewtrap_trace::time::Time;

/// The signals that candidates are judged by.
const READ: &[Signal] = &[
    catalog::RUNNING_REQS,
    catalog::QUEUE_REQS,
    catalog::KV_USAGE,
    catalog::USED_TOKENS,
    catalog::GEN_THROUGHPUT,
    catalog::ADMISSIONS,
    catalog::PREFILL_COMPUTE_TOKENS,
    catalog::PREFILL_CACHE_TOKENS,
    catalog::PROMPT_TOKENS,
    catalog::DECODE_TOKENS,
    catalog::RETRACTIONS,
    catalog::RETRACTED_REQS,
    catalog::DECODE_TRANSFER_REQS,
    catalog::PREFILL_INFLIGHT_REQS,
    catalog::GPU_BUSY,
    catalog::SCHEDULER_CPU,
    catalog::RUN_DELAY,
    catalog::THROTTLED,
    catalog::CPU_PRESSURE,
    catalog::GPU_SM_CLOCK,
    catalog::SENT_REQS,
];

/// A page that is read every so many seconds, or more often, tells when something began.
const DENSE_S: f64 = 3.0;

/// The samples of one signal of one member, in the order of time.
#[derive(Debug, Default)]
pub struct SampleStrip(Vec<(Time, f64)>);

/// A span of time: after the first instant, up to the second.
pub type Span = (Time, Time);

impl SampleStrip {
    /// Of a rate, each sample of which holds since the one before: the total over a span, and how many
    /// of its seconds are covered.
    pub fn total(&self, (from, to): Span) -> (f64, f64) {
        let (mut total, mut covered) = (0.0, 0.0);
        for pair in self.0.windows(2) {
            let (start, end) = (pair[0].0.max(from), pair[1].0.min(to));
            if end > start {
                let seconds = end.signed_s_since(start);
                (total, covered) = (total + pair[1].1 * seconds, covered + seconds);
            }
        }
        (total, covered)
    }

    /// Of a gauge, each sample of which holds until the next: its mean over a span.
    pub fn mean(&self, (from, to): Span) -> Option<f64> {
        let (mut area, mut width) = (0.0, 0.0);
        for (i, (at, value)) in self.0.iter().enumerate() {
            let end = self.0.get(i + 1).map_or(to, |next| next.0.min(to));
            let start = (*at).max(from);
            if end > start {
                let seconds = end.signed_s_since(start);
                (area, width) = (area + value * seconds, width + seconds);
            }
        }
        (width > 0.0).then(|| area / width)
    }

    /// The value as of a time.
    pub fn at(&self, at: Time) -> Option<f64> {
        self.0.partition_point(|s| s.0 <= at).checked_sub(1).map(|i| self.0[i].1)
    }

    /// How much a gauge grew over a span, what it lost meanwhile left out.
    pub fn growth(&self, (from, to): Span) -> f64 {
        let grew = |p: &[(Time, f64)]| (p[1].0 > from && p[1].0 <= to).then(|| (p[1].1 - p[0].1).max(0.0));
        self.0.windows(2).filter_map(grew).sum()
    }

    /// When it was first told after a time.
    pub fn first_after(&self, at: Time) -> Option<Time> {
        self.0.get(self.0.partition_point(|s| s.0 <= at)).map(|s| s.0)
    }

    /// When it was last told, up to a time.
    pub fn last(&self) -> Option<Time> {
        self.0.last().map(|s| s.0)
    }
}

/// One member of the group.
#[derive(Debug)]
pub struct Member {
    /// Its labels, as a finding has them.
    pub labels: Labels,
    /// When it last said itself how it is, where it does: a page is of another process, and goes on where a rank hangs.
    pub published: Option<Time>,
    /// When a page last listed it, where one does: that of a rank that is gone lists it no more.
    pub listed: Option<Time>,
    strips: BTreeMap<Signal, SampleStrip>,
}

static NOTHING: SampleStrip = SampleStrip(Vec::new());

impl Member {
    /// What is known of a signal: perhaps nothing.
    pub fn of(&self, signal: Signal) -> &SampleStrip {
        self.strips.get(&signal).unwrap_or(&NOTHING)
    }

    /// Whether it has a signal at all.
    pub fn has(&self, signal: Signal) -> bool {
        self.strips.contains_key(&signal)
    }

    /// When it last reported its work.
    pub fn last_report(&self) -> Option<Time> {
        [catalog::RUNNING_REQS, catalog::QUEUE_REQS].iter().filter_map(|s| self.of(*s).last()).max()
    }

    /// Tokens generated over a span, with the seconds that are covered.
    pub fn generated(&self, span: Span) -> (f64, f64) {
        let counter = self.of(catalog::DECODE_TOKENS).total(span);
        if counter.1 > 0.0 { counter } else { self.of(catalog::GEN_THROUGHPUT).total(span) }
    }

    /// Prompt tokens over a span.
    pub fn prompts(&self, span: Span) -> PromptTokens {
        let total = |signal| self.of(signal).total(span).0;
        let [computed, cached, all] =
            [catalog::PREFILL_COMPUTE_TOKENS, catalog::PREFILL_CACHE_TOKENS, catalog::PROMPT_TOKENS]
                .map(total);
        PromptTokens::of(computed, cached, all)
    }
}

/// Whether a source tells often enough for the seconds around an onset.
fn is_dense(samples: &[(Time, f64)]) -> bool {
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else { return false };
    last.0.signed_s_since(first.0) <= DENSE_S * samples.len() as f64
}

/// The members of a group.
#[derive(Debug)]
pub struct Course {
    /// In the order of their labels.
    pub members: Vec<Member>,
    /// Whether the ranks' work is known from a log alone, where a rank without work prints nothing.
    pub is_log: bool,
}

impl Course {
    /// The members of `group` that are named as `like` is, and their samples since `since`.
    pub fn of(store: &SignalStore, group: &Labels, like: &Labels, since: Time, now: Time) -> Self {
        type BySource = BTreeMap<Source, BTreeMap<skewtrap_trace::rank::Rank, Points>>;
        let mut found: BTreeMap<Signal, BTreeMap<Labels, BySource>> = BTreeMap::new();
        let of_members = match like.0.is_empty() {
            true => Vec::new(),
            false => store.series_of_members(group, like, |signal| READ.contains(&signal), since),
        };
        for (member, series) in of_members {
            let known: Points = series.samples.iter().filter(|(at, _)| *at <= now).copied().collect();
            if !known.is_empty() {
                let of_member = found.entry(series.signal).or_default().entry(member).or_default();
                of_member.entry(series.source).or_default().insert(series.rank, known);
            }
        }
        let mut members: BTreeMap<Labels, BTreeMap<Signal, SampleStrip>> = BTreeMap::new();
        let mut last_by: BTreeMap<Labels, [Option<Time>; 2]> = BTreeMap::new();
        for (labels, sources) in found.get(&catalog::RUNNING_REQS).into_iter().flatten() {
            let last = [Source::Loads, Source::Metrics].map(|source| {
                let points = sources.get(&source).into_iter().flat_map(BTreeMap::values);
                points.filter_map(|points| points.last()).map(|point| point.0).max()
            });
            last_by.insert(labels.clone(), last);
        }
        let mut is_log = true;
        for (signal, of_members) in found {
            // The source that most members have; a page before a log, for a page goes on where a rank has nothing to
            // log; then the one that tells most.
            let mut told: BTreeMap<Source, (usize, bool, usize)> = BTreeMap::new();
            for (source, ranks) in of_members.values().flatten() {
                let longest = ranks.values().max_by_key(|samples| samples.len());
                let Some(samples) = longest else { continue };
                let entry = told.entry(*source).or_insert((0, *source != Source::Log, 0));
                *entry = (entry.0 + 1, entry.1 && is_dense(samples), entry.2 + samples.len());
            }
            let Some((&best, _)) = told.iter().max_by_key(|(_, told)| **told) else { continue };
            is_log &= signal != catalog::RUNNING_REQS || best == Source::Log;
            for (labels, mut sources) in of_members {
                if let Some(ranks) = sources.remove(&best) {
                    let points = together(ranks, catalog::BUILT_IN.get(usize::from(signal.0)));
                    members.entry(labels).or_default().insert(signal, SampleStrip(points));
                }
            }
        }
        let member = |(labels, strips)| {
            let [published, listed] = last_by.get(&labels).copied().unwrap_or_default();
            Member { published, listed, labels, strips }
        };
        let members = members.into_iter().map(member).collect();
        Self { members, is_log }
    }

    /// Whether any member has a signal.
    pub fn has(&self, signal: Signal) -> bool {
        self.members.iter().any(|m| m.has(signal))
    }
}

const _: () = assert!(matches!(catalog::BUILT_IN[catalog::ADMISSIONS.0 as usize].kind, Kind::Counter));
