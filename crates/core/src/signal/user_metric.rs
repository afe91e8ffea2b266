//! Signals that the user reads from metrics pages: any gauge, counter or histogram, of the server's own page or
//! of another one (a router's, DCGM's, the node exporter's), whose labels are mapped to ranks.
//!
//! Series of one rank that differ in other labels are added up, which is right for counters and histograms;
//! `labels` chooses one of several. Means and quantiles are of what was observed in the last seconds, from the
//! growth of the histogram (classic buckets: the text formats carry no native ones).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::signal::catalog;
use crate::signal::exposition::{self, LabelSet};
use crate::signal::number;
use crate::signal::observation::SourceId;
use crate::signal::sample::{Sample, Signal, TargetId};
use skewtrap_trace::fnv1a;
use skewtrap_trace::rank::{Axis, Rank};
use skewtrap_trace::time::Time;

/// The most ranks of one signal on one page.
pub const MOST_RANKS: usize = 4096;
/// The most buckets of one histogram.
const MOST_BUCKETS: usize = 256;
/// The most histograms and totals that are remembered between pages, over all pages, and the most series of counters.
const MOST_REMEMBERED: usize = 16_384;
/// So many series of one counter are remembered though the last page had none of them: a page may leave one out once.
const AWAY: usize = 16;

/// What of a metric the signal is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum MetricStat {
    #[default]
    Value,
    /// Growth per second of a counter.
    Rate,
    /// The mean of what a histogram or summary observed lately.
    Mean,
    /// The quantile (0 to 1) of what a histogram observed lately.
    Quantile(f64),
}

/// A signal of the user's, from metrics pages.
#[derive(Clone, Debug, PartialEq)]
pub struct UserMetric {
    pub signal: Signal,
    /// The metric's name; of a histogram without `_bucket`, `_sum` and `_count`.
    pub metric: Arc<str>,
    pub stat: MetricStat,
    /// Labels that a series must have.
    pub labels: Vec<(Arc<str>, Arc<str>)>,
    /// Means and quantiles are of about this time.
    pub over: Duration,
    /// Only of this server; `None` for every one.
    pub target: Option<TargetId>,
}

/// How the labels of a page name ranks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RankLabels(pub BTreeMap<Arc<str>, RankOf>);

/// What the value of a label says of the rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RankOf {
    /// The number at its end is the place on this axis.
    Number(Axis),
    /// These values are these ranks; series with others are somebody else's.
    Values(BTreeMap<Arc<str>, Rank>),
}

/// A page beside the server's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtraPage {
    /// What it is polled as.
    pub source: SourceId,
    /// How it names ranks.
    pub ranks: RankLabels,
    /// The address of the server beside whose own page it is read: a router's page names its workers by it.
    pub server: Arc<str>,
}

/// What is read for a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Value,
    Sum,
    Count,
    Bucket,
}

/// What one page has of one signal and rank.
#[derive(Clone, Debug, Default)]
struct PageValue {
    value: Option<f64>,
    sum: Option<f64>,
    count: Option<f64>,
    /// Cumulative counts by upper bound, in the order of the bounds' bits.
    buckets: BTreeMap<u64, f64>,
    /// Of a counter: each of its series, by a digest of its labels.
    series: Vec<(u64, f64)>,
}

/// A counter of several series. What they count is added up series by series: their sum would fall when one of them
/// leaves the page, as if all had begun anew, and leap when it is back.
#[derive(Debug, Default)]
struct Counted {
    total: f64,
    last: BTreeMap<u64, f64>,
}

/// Two earlier states of a histogram: what was observed since the older one is reported.
#[derive(Clone, Debug)]
struct Before {
    older: (Time, PageValue),
    newer: (Time, PageValue),
}

/// What further pages are looked through for without being asked: DCGM's clock, and what a router sent to each worker
/// (smg, and the sglang-router before it).
const UNASKED: [(Signal, &str); 3] = [
    (catalog::GPU_SM_CLOCK, "DCGM_FI_DEV_SM_CLOCK"),
    (catalog::SENT_REQS, "smg_worker_requests_total"),
    (catalog::SENT_REQS, "sgl_router_processed_requests_total"),
];
/// The label by which routers name a worker: its address, and `@N` behind it where it is the DP rank N of a server.
const WORKER: &str = "worker";

/// Reads the user's metrics, and remembers what growth is counted from.
#[derive(Debug, Default)]
pub struct UserMetrics {
    metrics: Vec<UserMetric>,
    /// How many of them are the user's.
    own: usize,
    parts: BTreeMap<Vec<u8>, Vec<(usize, Part)>>,
    pages: BTreeMap<SourceId, ExtraPage>,
    before: BTreeMap<(SourceId, Rank, usize), Before>,
    counted: BTreeMap<(SourceId, Rank, usize), Counted>,
    /// How many series all of [`Self::counted`] have.
    series: usize,
    seen: BTreeMap<(Rank, usize), PageValue>,
    /// Series and buckets of the last page that were beyond a bound.
    beyond: u64,
}

impl UserMetrics {
    /// Replaces the signals; the growth of those that were there before is counted on.
    pub fn set_metrics(&mut self, mut metrics: Vec<UserMetric>) {
        self.parts.clear();
        self.own = metrics.len();
        metrics.extend(UNASKED.map(|(signal, metric)| UserMetric {
            signal,
            metric: metric.into(),
            stat: MetricStat::Value,
            labels: Vec::new(),
            over: Duration::from_secs(10),
            target: None,
        }));
        for (i, own) in metrics.iter().enumerate() {
            for (name, part) in parts_of(own) {
                self.parts.entry(name.into_bytes()).or_default().push((i, part));
            }
        }
        let place_of = |known: &UserMetric| metrics.iter().position(|own| own == known);
        let places: Vec<Option<usize>> = self.metrics.iter().map(place_of).collect();
        self.before = at_places(std::mem::take(&mut self.before), &places);
        self.counted = at_places(std::mem::take(&mut self.counted), &places);
        self.series = self.counted.values().map(|counted| counted.last.len()).sum();
        self.metrics = metrics;
    }

    /// Sets which sources are further pages, and how they name ranks.
    pub fn set_pages(&mut self, pages: Vec<ExtraPage>) {
        self.pages = pages.into_iter().map(|page| (page.source, page)).collect();
    }

    /// Whether a source is a page beside the server's own: the engine's metrics are not looked for there.
    pub fn is_further_page(&self, source: SourceId) -> bool {
        self.pages.contains_key(&source)
    }

    /// Whether a page of this server can have any of the signals.
    pub fn wants(&self, target: TargetId, source: SourceId) -> bool {
        let own = self.metrics[..self.own].iter().any(|m| m.target.is_none_or(|t| t == target));
        own || self.is_further_page(source)
    }

    /// Reads a page. The samples of the user's signals, and how many series were beyond a bound.
    ///
    /// # Errors
    /// When it is no metrics page.
    pub fn read(
        &mut self,
        (target, source): (TargetId, SourceId),
        body: &[u8],
        at: Time,
    ) -> Result<(Vec<Sample>, u64), exposition::PageError> {
        self.collect(Some(target), source, body)?;
        let seen = std::mem::take(&mut self.seen);
        let mut samples = Vec::new();
        for ((rank, place), seen) in seen {
            let own = &self.metrics[place];
            let value = match own.stat {
                _ if !seen.series.is_empty() => Some(self.count((source, rank, place), &seen.series)),
                MetricStat::Value | MetricStat::Rate => seen.value,
                MetricStat::Mean | MetricStat::Quantile(_) => self.lately((source, rank, place), seen, at),
            };
            let signal = self.metrics[place].signal;
            samples.extend(value.map(|value| Sample { rank, signal, value, at, extra: None }));
        }
        Ok((samples, std::mem::take(&mut self.beyond)))
    }

    /// The ranks for which a page has each of the signals, in their order.
    ///
    /// # Errors
    /// When it is no metrics page.
    pub fn ranks_on(&mut self, body: &[u8]) -> Result<Vec<Vec<Rank>>, exposition::PageError> {
        self.collect(None, SourceId::default(), body)?;
        let mut ranks = vec![Vec::new(); self.own];
        for ((rank, place), seen) in std::mem::take(&mut self.seen) {
            if place < self.own && is_complete(self.metrics[place].stat, &seen) {
                ranks[place].push(rank);
            }
        }
        Ok(ranks)
    }

    fn collect(
        &mut self,
        target: Option<TargetId>,
        source: SourceId,
        body: &[u8],
    ) -> Result<(), exposition::PageError> {
        self.seen.clear();
        let Self { metrics, own: of_users, parts, pages, seen, beyond, .. } = self;
        let page = pages.get(&source);
        let most = if page.is_some() { metrics.len() } else { *of_users };
        let mut of_signal = vec![0usize; metrics.len()];
        let mut last: (Vec<u8>, &[(usize, Part)]) = (Vec::new(), &[]);
        exposition::read(body, |sample| {
            if last.0 != sample.name {
                last.0.clear();
                last.0.extend_from_slice(sample.name);
                last.1 = parts.get(sample.name).map_or(&[], Vec::as_slice);
            }
            if last.1.is_empty() || sample.value.is_nan() {
                return;
            }
            let Some(named) = rank_of(sample.labels, page.map(|page| &page.ranks)) else { return };
            for &(place, part) in last.1.iter().filter(|(place, _)| *place < most) {
                let own = &metrics[place];
                let is_of_worker = place >= *of_users && own.signal == catalog::SENT_REQS;
                let worker = page.filter(|page| is_of_worker && !page.ranks.0.contains_key(WORKER));
                let rank = match worker {
                    Some(page) => worker_of(sample.labels, &page.server),
                    None => Some(named),
                };
                let Some(rank) = rank else { continue };
                let here = own.target.is_none() || target.is_none() || own.target == target;
                if !here || !has_labels(sample.labels, &own.labels) {
                    continue;
                }
                let is_new = !seen.contains_key(&(rank, place));
                if is_new && of_signal[place] >= MOST_RANKS {
                    *beyond += 1;
                    continue;
                }
                of_signal[place] += usize::from(is_new);
                let seen = seen.entry((rank, place)).or_default();
                match part {
                    Part::Value => {
                        *seen.value.get_or_insert(0.0) += sample.value;
                        if own.stat == MetricStat::Rate || is_of_worker {
                            seen.series.push((digest_of(sample.labels), sample.value));
                        }
                    }
                    Part::Sum => *seen.sum.get_or_insert(0.0) += sample.value,
                    Part::Count => *seen.count.get_or_insert(0.0) += sample.value,
                    Part::Bucket => add_bucket(seen, sample, beyond),
                }
            }
        })?;
        Ok(())
    }

    /// The total of a counter of which a page has these series, first what they had and then what each of them grew.
    fn count(&mut self, key: (SourceId, Rank, usize), series: &[(u64, f64)]) -> f64 {
        let is_first = !self.counted.contains_key(&key);
        if is_first && self.counted.len() >= MOST_REMEMBERED {
            self.beyond += 1;
            return 0.0;
        }
        let counted = self.counted.entry(key).or_default();
        let had = counted.last.len();
        for &(id, value) in series {
            if let Some(last) = counted.last.get_mut(&id) {
                let before = std::mem::replace(last, value);
                counted.total += if value < before { value } else { value - before };
            } else if self.series - had + counted.last.len() >= MOST_REMEMBERED {
                self.beyond += 1;
            } else {
                counted.last.insert(id, value);
                counted.total += if is_first { value } else { 0.0 };
            }
        }
        if counted.last.len() > series.len() + AWAY {
            counted.last = series.iter().copied().collect();
        }
        self.series = self.series - had + counted.last.len();
        counted.total
    }

    /// The mean or quantile of what was observed since the older of two remembered states.
    fn lately(&mut self, key: (SourceId, Rank, usize), seen: PageValue, at: Time) -> Option<f64> {
        let own = &self.metrics[key.2];
        let restarted = |before: &PageValue| total(&seen) < total(before);
        let known = self.before.get_mut(&key).filter(|b| !restarted(&b.newer.1) && at > b.newer.0);
        let Some(before) = known else {
            if self.before.len() < MOST_REMEMBERED || self.before.contains_key(&key) {
                let now = (at, seen);
                self.before.insert(key, Before { older: now.clone(), newer: now });
            } else {
                self.beyond += 1;
            }
            return None;
        };
        let value = match own.stat {
            MetricStat::Quantile(q) => quantile(q, &before.older.1, &seen),
            _ => mean(&before.older.1, &seen),
        };
        if at.since(before.newer.0) >= own.over / 2 {
            before.older = std::mem::replace(&mut before.newer, (at, seen));
        }
        value
    }
}

/// What is remembered of each signal, at the places where these are now.
fn at_places<T>(
    all: BTreeMap<(SourceId, Rank, usize), T>,
    places: &[Option<usize>],
) -> BTreeMap<(SourceId, Rank, usize), T> {
    let now = |(source, rank, place): (SourceId, Rank, usize)| Some((source, rank, (*places.get(place)?)?));
    all.into_iter().filter_map(|(key, value)| Some((now(key)?, value))).collect()
}

fn parts_of(own: &UserMetric) -> Vec<(String, Part)> {
    let name = &*own.metric;
    match own.stat {
        MetricStat::Value => vec![(name.to_owned(), Part::Value)],
        // The text of OpenMetrics ends a counter's name in `_total`, its type line does not.
        MetricStat::Rate if name.ends_with("_total") => vec![(name.to_owned(), Part::Value)],
        MetricStat::Rate => vec![(name.to_owned(), Part::Value), (format!("{name}_total"), Part::Value)],
        MetricStat::Mean => vec![(format!("{name}_sum"), Part::Sum), (format!("{name}_count"), Part::Count)],
        MetricStat::Quantile(_) => vec![(format!("{name}_bucket"), Part::Bucket)],
    }
}

/// The same for the same labels.
fn digest_of(labels: LabelSet<'_>) -> u64 {
    let bytes = labels.raw_iter().flat_map(|(name, value)| name.iter().chain(b"=").chain(value).chain(b","));
    fnv1a(bytes.copied())
}

fn is_complete(stat: MetricStat, seen: &PageValue) -> bool {
    match stat {
        MetricStat::Value | MetricStat::Rate => seen.value.is_some(),
        MetricStat::Mean => seen.sum.is_some() && seen.count.is_some(),
        MetricStat::Quantile(_) => !seen.buckets.is_empty(),
    }
}

fn has_labels(labels: LabelSet<'_>, wanted: &[(Arc<str>, Arc<str>)]) -> bool {
    wanted
        .iter()
        .all(|(name, value)| labels.get(name.as_bytes()).is_some_and(|v| exposition::unescape(v) == **value))
}

/// The rank that labels name; `None` for a series that is somebody else's.
fn rank_of(labels: LabelSet<'_>, ranks: Option<&RankLabels>) -> Option<Rank> {
    let mut rank = crate::signal::metrics::rank_named(labels);
    for (name, of) in ranks.into_iter().flat_map(|r| &r.0) {
        let Some(value) = labels.get(name.as_bytes()) else { continue };
        match of {
            RankOf::Number(axis) => {
                let digits = value.iter().rev().take_while(|b| b.is_ascii_digit()).count();
                let index = std::str::from_utf8(&value[value.len() - digits..]).ok()?.parse().ok()?;
                rank = rank.with(*axis, index);
            }
            RankOf::Values(values) => {
                let named = values.get(&*exposition::unescape(value))?;
                for axis in Axis::ALL {
                    rank = named.get(axis).map_or(rank, |index| rank.with(axis, index));
                }
            }
        }
    }
    Some(rank)
}

/// The rank that a router's label `worker` names, where it is one of this server: `http://10.0.0.7:30000`, and
/// `http://10.0.0.7:30000@2` for DP rank 2.
fn worker_of(labels: LabelSet<'_>, server: &str) -> Option<Rank> {
    let worker = exposition::unescape(labels.get(WORKER.as_bytes())?);
    let (address, index) = match worker.rsplit_once('@') {
        Some((address, index)) => (address, Some(index.parse().ok()?)),
        None => (&*worker, None),
    };
    let is_same = address.trim_end_matches('/').eq_ignore_ascii_case(server.trim_end_matches('/'));
    is_same.then(|| index.map_or(Rank::NONE, Rank::dp))
}

fn add_bucket(seen: &mut PageValue, sample: &exposition::Sample<'_>, beyond: &mut u64) {
    let Some(le) = sample.labels.get(b"le").and_then(number::whole) else { return };
    let key = order_of(le);
    if seen.buckets.len() >= MOST_BUCKETS && !seen.buckets.contains_key(&key) {
        *beyond += 1;
        return;
    }
    *seen.buckets.entry(key).or_default() += sample.value;
}

/// Bits that sort as the numbers do.
fn order_of(value: f64) -> u64 {
    let bits = value.to_bits();
    if bits >> 63 == 1 { !bits } else { bits | 1 << 63 }
}

fn number_of(order: u64) -> f64 {
    f64::from_bits(if order >> 63 == 1 { order & !(1 << 63) } else { !order })
}

/// What never falls but when the server restarts.
fn total(seen: &PageValue) -> f64 {
    seen.count.or_else(|| seen.buckets.values().last().copied()).unwrap_or(0.0)
}

/// The mean of what was observed in between; `None` where nothing was.
fn mean(before: &PageValue, now: &PageValue) -> Option<f64> {
    let count = now.count? - before.count?;
    (count > 0.0).then_some((now.sum? - before.sum?) / count)
}

/// The quantile of what was observed in between, on a straight line through its bucket, as Prometheus'
/// `histogram_quantile` has it; above the last finite bound that bound.
fn quantile(q: f64, before: &PageValue, now: &PageValue) -> Option<f64> {
    let grown = |le: &u64, n: f64| n - before.buckets.get(le).copied().unwrap_or(0.0);
    let (last, all) = now.buckets.iter().next_back()?;
    let all = grown(last, *all);
    if all <= 0.0 {
        return None;
    }
    let wanted = q * all;
    let mut below = (0.0, 0.0);
    for (le, n) in &now.buckets {
        let (bound, n) = (number_of(*le), grown(le, *n));
        if n >= wanted {
            let share = if n > below.1 { (wanted - below.1) / (n - below.1) } else { 1.0 };
            return Some(if bound.is_finite() { below.0 + (bound - below.0) * share } else { below.0 });
        }
        below = (if bound.is_finite() { bound } else { below.0 }, n);
    }
    None
}

#[cfg(test)]
mod tests;
