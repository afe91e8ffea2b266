//! What is known of a rank, of its requests, and of what it shows.

use std::collections::VecDeque;

pub(super) const START: f64 = -60.0;
pub(super) const HOT_PREFIX: f64 = 3000.0;

/// A line of a server's log.
#[derive(Clone, Copy, Debug, Default)]
pub struct Line {
    pub at: f64,
    pub rank: usize,
    pub is_prefill: bool,
    pub running: f64,
    pub queue: f64,
    pub used: f64,
    pub throughput: f64,
    pub new_seqs: f64,
    pub new_tokens: f64,
    pub cached_tokens: f64,
}

/// What a rank's gauges and counters say at a moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Page {
    pub running: f64,
    pub waiting: f64,
    pub used: f64,
    pub throughput: f64,
    pub stamp: f64,
    pub admissions: f64,
    pub prefill_tokens: f64,
    pub cached_tokens: f64,
    pub decode_tokens: f64,
    pub decode_steps: f64,
    pub prefill_passes: f64,
}

#[derive(Default)]
pub struct Outcome {
    pub lines: Vec<Line>,
    /// Per second, per rank: running and waiting as they are.
    pub truth: Vec<Vec<(f64, f64)>>,
    pub loads: Vec<Vec<Page>>,
    pub metrics: Vec<Vec<Page>>,
}

#[derive(Clone, Copy)]
pub(super) struct Request {
    pub(super) prompt: f64,
    pub(super) cached: f64,
    pub(super) out: f64,
    pub(super) done: f64,
    pub(super) session: Option<usize>,
    pub(super) turns: u32,
    pub(super) hot: bool,
}

impl Request {
    pub(super) fn shared(&self) -> f64 {
        if self.hot { HOT_PREFIX } else { 0.0 }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Running {
    pub(super) id: usize,
    pub(super) left: f64,
    pub(super) ctx: f64,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Busy {
    No,
    Prefill,
    Decode,
}

pub(super) struct Rank {
    pub(super) queue: VecDeque<usize>,
    pub(super) run: Vec<Running>,
    pub(super) used: f64,
    pub(super) ctx: f64,
    pub(super) next: f64,
    pub(super) busy: Busy,
    pub(super) batch: Vec<usize>,
    pub(super) chunked: Option<(usize, f64)>,
    pub(super) steps: u32,
    pub(super) generated: f64,
    pub(super) last_line: f64,
    pub(super) inflight: i64,
    pub(super) tokens_in: f64,
    pub(super) credit: f64,
    pub(super) tree: f64,
    pub(super) unpublished: u32,
    pub(super) idle_at: Option<f64>,
    pub(super) now: Page,
    pub(super) loads: Page,
    pub(super) metrics: Page,
}

impl Rank {
    pub(super) fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            run: Vec::new(),
            used: 0.0,
            ctx: 0.0,
            next: f64::INFINITY,
            busy: Busy::No,
            batch: Vec::new(),
            chunked: None,
            steps: 0,
            generated: 0.0,
            last_line: START,
            inflight: 0,
            tokens_in: 0.0,
            credit: 0.0,
            tree: 0.0,
            unpublished: 0,
            idle_at: None,
            now: Page::default(),
            loads: Page::default(),
            metrics: Page::default(),
        }
    }
    pub(super) fn publish_loads(&mut self, running: f64, at: f64) {
        self.loads = self.page(self.loads.throughput, running, at);
    }
    pub(super) fn publish_metrics(&mut self, running: f64, at: f64) {
        self.metrics = self.page(self.metrics.throughput, running, at);
    }

    /// What a page shows at `at`; its throughput is set apart, at a slower pace.
    fn page(&self, throughput: f64, running: f64, at: f64) -> Page {
        let waiting = self.queue.len() as f64;
        Page { running, waiting, used: self.used, throughput, stamp: at, ..self.now }
    }
}

#[derive(Clone, Copy, PartialEq)]
pub(super) struct FollowUp {
    pub(super) at: f64,
    pub(super) session: usize,
    pub(super) ctx: f64,
    pub(super) turns: u32,
}
impl Eq for FollowUp {}
impl PartialOrd for FollowUp {
    fn partial_cmp(&self, o: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(o))
    }
}
impl Ord for FollowUp {
    fn cmp(&self, o: &Self) -> std::cmp::Ordering {
        self.at.total_cmp(&o.at)
    }
}
