//! Counters out of a log's prefill lines: SGLang prints what each batch brought, and a ring keeps one
//! value of a burst, so sums over a time need totals.

use std::time::Duration;

use crate::factor::{Chunk, Prefill};
use crate::signal::catalog;
use crate::signal::fields::Fields;
use skewtrap_trace::time::Time;

/// The totals become samples this often: finer than that, a line's own numbers say it.
const OFTEN: Duration = Duration::from_secs(1);

/// What the prefill lines of one rank have brought so far.
#[derive(Clone, Debug, Default)]
pub struct Batches {
    admitted: f64,
    computed: f64,
    cached: f64,
    chunk: Chunk,
    told: Option<Time>,
}

impl Batches {
    /// Takes a line; the totals when they are due.
    pub fn take(&mut self, fields: &Fields, at: Time) -> Option<[(catalog::Signal, f64); 3]> {
        if let Some(new) = fields.get(catalog::NEW_SEQS) {
            let of = |signal| fields.get(signal).unwrap_or(0.0);
            let line = Prefill {
                new_seqs: new,
                new_tokens: of(catalog::NEW_TOKENS),
                queue: fields.get(catalog::QUEUE_REQS),
                ..Prefill::default()
            };
            let is_continued = self.chunk.is_continued_by(&line);
            self.admitted += (new - f64::from(u8::from(is_continued))).max(0.0);
            self.computed += line.new_tokens;
            self.cached += of(catalog::CACHED_TOKENS);
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

    /// The clock was set by so many nanoseconds.
    pub fn shift(&mut self, by_ns: i64) {
        Time::shift_all(&mut self.told, by_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(lines: u32, tokens: f64) -> f64 {
        let mut batches = Batches::default();
        let mut total = 0.0;
        for i in 0..lines {
            let mut fields = Fields::default();
            fields.set(catalog::NEW_SEQS, 1.0);
            fields.set(catalog::NEW_TOKENS, tokens);
            fields.set(catalog::QUEUE_REQS, 0.0);
            if let Some(totals) = batches.take(&fields, Time::from_epoch_s(1_000.0 + 2.0 * f64::from(i))) {
                total = totals[0].1;
            }
        }
        total
    }

    #[test]
    fn prompts_that_all_have_one_length_are_admitted_each() {
        assert_eq!(admitted(20, 2_048.0), 20.0);
    }
}
