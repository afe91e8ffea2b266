//! Counters out of a log's prefill lines: SGLang prints what each batch brought, and a ring keeps one
//! value of a burst, so sums over a time need totals.

use std::time::Duration;

use crate::signal::catalog;
use crate::signal::fields::Fields;
use skewtrap_trace::time::Time;

/// The totals become samples this often: finer than that, a line's own numbers say it.
const OFTEN: Duration = Duration::from_secs(1);
/// A batch of this size was seen so often when it counts as the chunk size.
const SEEN: u32 = 3;

/// What the prefill lines of one rank have brought so far.
#[derive(Clone, Debug, Default)]
pub struct Batches {
    admitted: f64,
    computed: f64,
    cached: f64,
    /// The largest batch in tokens, and how often it was seen.
    largest: (f64, u32),
    /// Whether the last batch was cut off: the next one's first request is then not new.
    is_cut: bool,
    told: Option<Time>,
}

impl Batches {
    /// Takes a line; the totals when they are due.
    pub fn take(&mut self, fields: &Fields, at: Time) -> Option<[(catalog::Signal, f64); 3]> {
        if let Some(new) = fields.get(catalog::NEW_SEQS) {
            let tokens = fields.get(catalog::NEW_TOKENS).unwrap_or(0.0);
            self.admitted += (new - f64::from(u8::from(self.is_cut))).max(0.0);
            self.computed += tokens;
            self.cached += fields.get(catalog::CACHED_TOKENS).unwrap_or(0.0);
            self.largest = match self.largest {
                (most, _) if tokens > most => (tokens, 1),
                (most, times) if tokens == most => (most, times.saturating_add(1)),
                unchanged => unchanged,
            };
            self.is_cut = self.largest.1 >= SEEN && tokens == self.largest.0;
        } else if self.told.is_none() {
            return None;
        }
        if self.told.is_some_and(|told| at >= told && at.since(told) < OFTEN) {
            return None;
        }
        self.told = Some(at);
        Some([
            (catalog::ADMISSIONS, self.admitted),
            (catalog::PREFILL_COMPUTE_TOKENS, self.computed),
            (catalog::PREFILL_CACHE_TOKENS, self.cached),
        ])
    }
}
