//! What a server shows, whatever the source: a log line, an entry of `/v1/loads`, a metrics page.
//!
//! Every field is optional, because sources, engines and versions differ in what they tell. Times are
//! seconds on one clock that the caller chooses (an epoch, or seconds since its start).

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RankReading {
    /// When it was read or, for a log line, when it arrived, in seconds.
    pub at: f64,
    /// The rank's place in its group, from 0.
    pub rank: usize,
    pub what: Reading,
}

/// The kinds of readings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reading {
    /// A `Prefill batch` line: requests were admitted.
    Prefill(Prefill),
    /// A `Decode batch` line: a fixed number of decode steps passed.
    Decode(Decode),
    /// So many running requests were put back into the queue, for want of KV room.
    Retraction(f64),
    /// Numbers of the moment: an entry of `/v1/loads`, or the gauges of a metrics page.
    Gauges(Gauges),
    /// Running totals of a metrics page.
    Counters(Counters),
}

/// SGLang's `Prefill batch` line.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Prefill {
    /// `#new-seq`: requests in this batch, one that continues a chunked prompt included.
    pub new_seqs: f64,
    /// `#new-token`: prompt tokens computed.
    pub new_tokens: f64,
    /// `#cached-token`: prompt tokens found in the prefix cache.
    pub cached_tokens: Option<f64>,
    /// `#running-req` before the batch.
    pub running: Option<f64>,
    /// `#queue-req` after the batch was taken.
    pub queue: Option<f64>,
}

/// SGLang's `Decode batch` line.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Decode {
    /// `#running-req`.
    pub running: f64,
    /// `#token`: tokens in the KV cache.
    pub tokens: Option<f64>,
    /// `gen throughput (token/s)` since the last such line.
    pub throughput: Option<f64>,
    /// `#queue-req`.
    pub queue: Option<f64>,
    /// `token usage`: the share of the KV cache in use, 0 to 1.
    pub kv_usage: Option<f64>,
}

/// Gauges of one rank at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gauges {
    /// Requests in the running batch.
    pub running: Option<f64>,
    /// Requests that wait.
    pub waiting: Option<f64>,
    /// Tokens in the KV cache.
    pub used_tokens: Option<f64>,
    /// Share of the KV cache in use, 0 to 1.
    pub kv_usage: Option<f64>,
    /// Generated tokens a second, as the rank last reported.
    pub throughput: Option<f64>,
    /// The rank's own time of the entry (`timestamp` in `/v1/loads`), on the same clock as `at`.
    pub stamp: Option<f64>,
    /// Requests retracted for want of KV room, now.
    pub retracted: Option<f64>,
}

impl Gauges {
    /// Requests that run or wait.
    pub fn load(&self) -> f64 {
        self.running.unwrap_or(0.0) + self.waiting.unwrap_or(0.0)
    }
}

/// Running totals of one rank. They may restart from zero.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counters {
    /// Requests admitted (`queue_time_seconds_count`; vLLM `time_to_first_token_seconds_count`).
    pub admissions: Option<f64>,
    /// Requests finished (vLLM `request_success_total`).
    pub finished: Option<f64>,
    /// Prompt tokens computed (`realtime_tokens_total{mode="prefill_compute"}`).
    pub computed_tokens: Option<f64>,
    /// Prompt tokens found in a cache (`mode="prefill_cache"`; vLLM `prefix_cache_hits_total`).
    pub cached_tokens: Option<f64>,
    /// All prompt tokens, computed or found in a cache (vLLM `prompt_tokens_total`).
    pub prompt_tokens: Option<f64>,
    /// Tokens generated (`mode="decode"`; vLLM `generation_tokens_total`).
    pub decode_tokens: Option<f64>,
    /// Decode steps (`cuda_graph_passes_total{mode=~"decode.*"}`; vLLM `iteration_tokens_total_count`).
    pub steps: Option<f64>,
    /// Prefill steps (`cuda_graph_passes_total{mode=~"prefill.*"}`).
    pub prefill_steps: Option<f64>,
}

/// The prompt tokens of a while.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PromptTokens {
    /// Computed or found in a cache.
    pub all: f64,
    pub computed: f64,
}

impl PromptTokens {
    /// From what the counters gained: SGLang counts those `computed` and those found in the cache, vLLM
    /// counts `all`, those found too.
    pub fn of(computed: f64, cached: f64, all: f64) -> Self {
        match all > 0.0 && computed == 0.0 {
            true => Self { all, computed: (all - cached).max(0.0) },
            false => Self { all: computed + cached, computed },
        }
    }
}

impl Counters {
    /// Whether they tell who came: requests admitted, or finished.
    pub fn tells_who_came(&self) -> bool {
        self.admissions.is_some() || self.finished.is_some()
    }
}
