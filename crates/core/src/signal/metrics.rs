//! From a metrics page to the numbers of each rank.
//!
//! Rank labels are never folded away here: a page of two ranks gives two sets of fields. SGLang's
//! breakdown by priority is left out (only the total counts), and the histogram of expert counts,
//! whose bucket numbers are EP ranks, is turned into one counter for each of them.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use crate::signal::catalog::{self, Signal};
use crate::signal::exposition::{LabelSet, Page, PageError, Reader, Sample, Sink};
use crate::signal::fields::Fields;
use crate::signal::number;
use skewtrap_trace::rank::{Axis, Rank};

/// A metric that gives a signal, perhaps only with one label.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    signal: Signal,
    label: Option<(&'static [u8], &'static [u8])>,
}

/// By the full name of the metric. Most names of a page are not wanted.
static WANTED: LazyLock<BTreeMap<&'static [u8], Vec<Wanted>>> = LazyLock::new(|| {
    let mut wanted: BTreeMap<&[u8], Vec<Wanted>> = BTreeMap::new();
    for (signal, entry) in catalog::built_in() {
        for metric in entry.metrics {
            let (name, label) = match metric.trim_end_matches('}').split_once('{') {
                Some((name, label)) => (name, label.split_once('=')),
                None => (*metric, None),
            };
            let label = label.map(|(n, v)| (n.as_bytes(), v.as_bytes()));
            wanted.entry(name.as_bytes()).or_default().push(Wanted { signal, label });
        }
    }
    wanted
});

/// The most ranks that are read from one page; what further ones show is counted as bad.
pub const MOST_RANKS: usize = 4096;
/// The most buckets of expert counts that are read from one page.
const MOST_BUCKETS: usize = 1 << 16;

/// When the process that serves the page was started, where it says so: SGLang, which says it elsewhere, and
/// servers with several front ends do not.
const STARTED: &[u8] = b"process_start_time_seconds";

const EXPERT_BUCKET: &[u8] = b"sglang:eplb_gpu_physical_count_bucket";

/// The numbers of a page, kept from scrape to scrape so that only new ranks allocate.
#[derive(Debug, Default)]
pub struct Metrics {
    reader: Reader,
    numbers: Numbers,
}

/// A page that was read piece by piece as it arrived.
#[derive(Debug)]
pub struct ReadPage {
    /// Its numbers.
    pub metrics: Metrics,
    /// What it held, or why it is useless.
    pub read: Result<Page, PageError>,
}

impl Default for ReadPage {
    fn default() -> Self {
        Self { metrics: Metrics::default(), read: Ok(Page::default()) }
    }
}

/// What was found in the page so far.
#[derive(Debug, Default)]
struct Numbers {
    /// Boxed: a node of the map has room for eleven, and most servers have fewer ranks.
    ranks: BTreeMap<Rank, Box<Fields>>,
    experts: BTreeMap<(Vec<u8>, u32), f64>,
    role: Option<Role>,
    started: Option<f64>,
    families: u32,
    /// The metric of the last line, and the signals that it gives.
    last: Vec<u8>,
    wanted: &'static [Wanted],
    /// Whether the last line was of [`STARTED`].
    is_start: bool,
    /// Samples whose value is none.
    not_numbers: usize,
    /// Samples that were beyond a bound.
    beyond: u64,
}

/// What a server is for.
// SGLang says it in the label `engine_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Prefill and decode in one.
    Unified,
    /// Prefill only.
    Prefill,
    /// Decode only.
    Decode,
}

impl Role {
    /// As in rules, metrics and labels.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unified => "unified",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }

    /// The role that a word names; `null` is how SGLang's server info spells `unified`.
    pub fn of_word(word: &[u8]) -> Option<Self> {
        match word {
            b"unified" | b"null" => Some(Self::Unified),
            b"prefill" => Some(Self::Prefill),
            b"decode" => Some(Self::Decode),
            _ => None,
        }
    }
}

impl Metrics {
    /// Reads a page; [`Metrics::ranks`] has its numbers.
    ///
    /// # Errors
    /// When it is no metrics page.
    pub fn read(&mut self, page: &[u8]) -> Result<Page, PageError> {
        self.begin();
        self.feed(page);
        self.finish()
    }

    /// Begins a page that is fed piece by piece.
    pub fn begin(&mut self) {
        self.reader.begin();
        self.numbers.begin();
    }

    /// Reads the next piece of the page.
    pub fn feed(&mut self, piece: &[u8]) {
        self.reader.feed(piece, &mut self.numbers);
    }

    /// The page has ended.
    ///
    /// # Errors
    /// When it is no metrics page.
    pub fn finish(&mut self) -> Result<Page, PageError> {
        let seen = self.reader.finish(&mut self.numbers)?;
        self.numbers.keep_experts();
        self.numbers.ranks.retain(|_, fields| !fields.is_empty());
        let bad = seen.bad + self.numbers.not_numbers + self.numbers.beyond as usize;
        Ok(Page { bad, ..seen })
    }

    /// Every rank of the last page with its numbers; those without a rank label are [`Rank::NONE`]'s.
    pub fn ranks(&self) -> impl Iterator<Item = (Rank, &Fields)> {
        self.numbers.ranks.iter().map(|(rank, fields)| (*rank, &**fields))
    }

    /// The role that the page's `engine_type` names.
    pub fn role(&self) -> Option<Role> {
        self.numbers.role
    }

    /// When the server's process was started, in seconds since the epoch by its own clock.
    pub fn started(&self) -> Option<f64> {
        self.numbers.started
    }

    /// How many wanted metrics the page had: 0 means that this is not an engine's page.
    pub fn families(&self) -> u32 {
        self.numbers.families
    }
}

impl Sink for Numbers {
    fn wants(&mut self, name: &[u8]) -> bool {
        if self.last != name {
            self.last.clear();
            self.last.extend_from_slice(name);
            self.wanted = WANTED.get(name).map_or(&[], Vec::as_slice);
            self.families += u32::from(!self.wanted.is_empty());
            self.is_start = name == STARTED;
        }
        !self.wanted.is_empty() || self.is_start
    }

    fn take(&mut self, sample: &Sample<'_>) {
        if sample.value.is_nan() {
            self.not_numbers += 1;
        } else if self.is_start {
            self.started = Some(sample.value);
        } else {
            self.keep(self.wanted, sample);
        }
    }
}

impl Numbers {
    fn begin(&mut self) {
        // Those of the last page take no places from those of this one.
        if self.ranks.len() > MOST_RANKS / 2 {
            self.ranks.clear();
        }
        self.ranks.values_mut().for_each(|fields| fields.clear());
        self.experts.clear();
        self.last.clear();
        (self.wanted, self.is_start, self.role, self.started) = (&[], false, None, None);
        (self.families, self.not_numbers, self.beyond) = (0, 0, 0);
    }

    fn keep(&mut self, wanted: &[Wanted], sample: &Sample<'_>) {
        if sample.name == EXPERT_BUCKET {
            return self.keep_bucket(sample);
        }
        if sample.labels.get(b"priority").is_some_and(|p| !p.is_empty()) {
            return;
        }
        let has = |(name, value): (&[u8], &[u8])| sample.labels.get(name) == Some(value);
        let mut fields = None;
        for one in wanted.iter().filter(|w| w.label.is_none_or(has)) {
            let (rank, role) = *fields.get_or_insert_with(|| identity(sample.labels));
            self.role = role.or(self.role);
            if self.ranks.len() >= MOST_RANKS && !self.ranks.contains_key(&rank) {
                self.beyond += 1;
                return;
            }
            let fields = self.ranks.entry(rank).or_default();
            match one.signal {
                catalog::GPU_BUSY
                | catalog::ROUTED_REQS
                | catalog::FINISHED
                | catalog::DECODE_STEPS
                | catalog::TTFT_SUM
                | catalog::TTFT_COUNT
                | catalog::ITL_SUM
                | catalog::ITL_COUNT
                | catalog::PREFILL_STEPS => fields.add(one.signal, sample.value),
                _ => fields.set(one.signal, sample.value),
            }
        }
    }

    /// Buckets are cumulative: `le="3.0"` counts ranks 0 to 3.
    fn keep_bucket(&mut self, sample: &Sample<'_>) {
        let le = sample.labels.get(b"le").and_then(number::whole).filter(|le| le.is_finite());
        let Some(le) = le else { return };
        let layer = sample.labels.get(b"layer").unwrap_or(b"").to_vec();
        let bucket = (layer, le as u32);
        if self.experts.len() >= MOST_BUCKETS && !self.experts.contains_key(&bucket) {
            self.beyond += 1;
            return;
        }
        *self.experts.entry(bucket).or_default() += sample.value;
    }

    fn keep_experts(&mut self) {
        let mut below: (&[u8], f64) = (b"", 0.0);
        for ((layer, index), cumulative) in &self.experts {
            if below.0 != layer.as_slice() {
                below = (layer, 0.0);
            }
            let rank = u16::try_from(*index).ok().map(|index| Rank::NONE.with(Axis::Ep, index));
            let has_room = |rank: &Rank| self.ranks.len() < MOST_RANKS || self.ranks.contains_key(rank);
            let Some(rank) = rank.filter(has_room) else {
                self.beyond += 1;
                continue;
            };
            let fields = self.ranks.entry(rank).or_default();
            fields.add(catalog::EXPERT_TOKENS, cumulative - below.1);
            below.1 = *cumulative;
        }
    }
}

/// The rank that labels name.
pub(crate) fn rank_named(labels: LabelSet<'_>) -> Rank {
    identity(labels).0
}

/// The rank and the role that labels name; vLLM's `engine` is its DP index.
fn identity(labels: LabelSet<'_>) -> (Rank, Option<Role>) {
    let (mut rank, mut role) = (Rank::NONE, None);
    for (name, value) in labels.raw_iter() {
        let axis = match name {
            b"dp_rank" | b"engine" => Axis::Dp,
            b"tp_rank" => Axis::Tp,
            b"pp_rank" => Axis::Pp,
            b"moe_ep_rank" | b"ep_rank" => Axis::Ep,
            b"attn_cp_rank" => Axis::AttnCp,
            b"moe_dp_rank" => Axis::MoeDp,
            b"engine_type" => {
                role = Role::of_word(value);
                continue;
            }
            _ => continue,
        };
        if let Some((index, end)) = number::leading(value)
            && end == value.len()
            && (0.0..=f64::from(u16::MAX)).contains(&index)
        {
            rank = rank.with(axis, index as u16);
        }
    }
    (rank, role)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(page: &str) -> Metrics {
        let mut metrics = Metrics::default();
        metrics.read(page.as_bytes()).expect("a metrics page");
        metrics
    }

    fn of(metrics: &Metrics, rank: Rank) -> Vec<(&'static str, f64)> {
        metrics
            .ranks()
            .filter(|r| r.0 == rank)
            .flat_map(|r| r.1.iter())
            .map(|(s, v)| (catalog::name_of(s), v))
            .collect()
    }

    #[test]
    fn each_rank_keeps_its_own_numbers_and_priorities_are_left_out() {
        let metrics = read(
            "sglang:num_running_reqs{dp_rank=\"0\",engine_type=\"decode\",priority=\"\"} 4\n\
             sglang:num_running_reqs{dp_rank=\"0\",engine_type=\"decode\",priority=\"1\"} 3\n\
             sglang:num_running_reqs{dp_rank=\"1\",engine_type=\"decode\",tp_rank=\"1\"} 9\n\
             sglang:token_usage{dp_rank=\"0\"} 0.2\nsglang:swa_token_usage{dp_rank=\"0\"} 0.5\n\
             sglang:gen_throughput{dp_rank=\"0\"} NaN\n\
             sglang:realtime_tokens_total{dp_rank=\"0\",mode=\"decode\"} 70\n",
        );
        assert_eq!(
            of(&metrics, Rank::dp(0)),
            [("running_reqs", 4.0), ("kv_usage", 0.5), ("decode_tokens", 70.0)]
        );
        assert_eq!(of(&metrics, Rank::dp(1).with(Axis::Tp, 1)), [("running_reqs", 9.0)]);
        assert_eq!(metrics.role(), Some(Role::Decode));
    }

    #[test]
    fn vllm_engines_are_dp_ranks() {
        let metrics = read(
            "vllm:num_requests_running{engine=\"1\",model_name=\"m\"} 51.0\n\
             vllm:num_requests_waiting{engine=\"1\",model_name=\"m\"} 117.0\n\
             vllm:kv_cache_usage_perc{engine=\"1\",model_name=\"m\"} 0.99\n",
        );
        assert_eq!(
            of(&metrics, Rank::dp(1)),
            [("running_reqs", 51.0), ("queue_reqs", 117.0), ("kv_usage", 0.99)]
        );
    }

    #[test]
    fn the_buckets_of_the_expert_histogram_are_ep_ranks() {
        let metrics = read(
            "sglang:eplb_gpu_physical_count_bucket{layer=\"0\",le=\"0.0\"} 10\n\
             sglang:eplb_gpu_physical_count_bucket{layer=\"0\",le=\"1.0\"} 40\n\
             sglang:eplb_gpu_physical_count_bucket{layer=\"0\",le=\"+Inf\"} 40\n\
             sglang:eplb_gpu_physical_count_bucket{layer=\"1\",le=\"0.0\"} 1\n\
             sglang:eplb_gpu_physical_count_bucket{layer=\"1\",le=\"1.0\"} 3\n",
        );
        assert_eq!(of(&metrics, Rank::NONE.with(Axis::Ep, 0)), [("expert_tokens", 11.0)]);
        assert_eq!(of(&metrics, Rank::NONE.with(Axis::Ep, 1)), [("expert_tokens", 32.0)]);
    }

    #[test]
    fn a_rank_that_left_the_page_is_gone() {
        let mut metrics = read("sglang:num_running_reqs{dp_rank=\"0\"} 4\n");
        metrics.read(b"sglang:num_running_reqs{dp_rank=\"1\"} 4\n").expect("a page");
        assert_eq!(metrics.ranks().map(|r| r.0).collect::<Vec<_>>(), [Rank::dp(1)]);
    }

    #[test]
    fn ranks_beyond_what_a_server_can_have_take_no_memory_and_are_counted() {
        let page: String = (0..20_000)
            .map(|i| {
                format!("sglang:num_running_reqs{{dp_rank=\"{}\",tp_rank=\"{}\"}} 1\n", i / 100, i % 100)
            })
            .collect();
        let mut metrics = Metrics::default();
        let read = metrics.read(page.as_bytes()).unwrap();
        assert_eq!((metrics.ranks().count(), read.bad), (MOST_RANKS, 20_000 - MOST_RANKS));
        metrics.read(b"sglang:num_running_reqs{dp_rank=\"0\"} 1\n").unwrap();
        assert_eq!(metrics.ranks().count(), 1, "nothing of them is kept");
    }

    #[test]
    fn experts_beyond_the_ranks_that_a_server_can_have_take_no_memory_and_are_counted() {
        let page: String = (0..MOST_RANKS + 50)
            .map(|i| format!("{}{{le=\"{i}\"}} {i}\n", String::from_utf8_lossy(EXPERT_BUCKET)))
            .collect();
        let mut metrics = Metrics::default();
        let read = metrics.read(page.as_bytes()).unwrap();
        assert_eq!((metrics.ranks().count(), read.bad), (MOST_RANKS, 50));
    }
}
