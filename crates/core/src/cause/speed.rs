//! Speed at equal work: a cost model of a step, learned from the group itself, says how long each rank
//! should have needed for what it did.

use super::course::{Member, Span};
use crate::factor::PromptTokens;
use crate::signal::catalog;
use std::time::Duration;

/// Length of a row.
const ROW: Duration = Duration::from_secs(3);
/// What a second of work is made of: steps, tokens generated, cached tokens attended by those steps,
/// prompt tokens computed, requests admitted.
const PARTS: usize = 5;
/// A row with fewer running requests than this may be idle in between.
const BUSY: f64 = 1.0;

/// What a rank did per second, over `seconds`.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    parts: [f64; PARTS],
    seconds: f64,
}

/// The rows of a member in a span.
pub fn rows(member: &Member, (from, to): Span) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut start = from;
    while start < to {
        let span = (start, (start + ROW).min(to));
        start = start + ROW;
        let (generated, seconds) = member.generated(span);
        let running = member.of(catalog::RUNNING_REQS).mean(span).unwrap_or(0.0);
        if seconds < 0.5 || running < BUSY {
            continue;
        }
        let rate = |signal| {
            let (total, covered) = member.of(signal).total(span);
            if covered > 0.0 { total / covered } else { 0.0 }
        };
        let generated = generated / seconds;
        let steps = generated / running;
        // The share of the cache goes back farther than the tokens where a rule watches it, and is as good:
        // a cost is learned for either.
        let held = if member.has(catalog::KV_USAGE) { catalog::KV_USAGE } else { catalog::USED_TOKENS };
        let held = member.of(held).mean(span).unwrap_or(0.0);
        let prompts =
            [catalog::PREFILL_COMPUTE_TOKENS, catalog::PREFILL_CACHE_TOKENS, catalog::PROMPT_TOKENS];
        let [computed, cached, all] = prompts.map(rate);
        let PromptTokens { computed, .. } = PromptTokens::of(computed, cached, all);
        let parts = [steps, generated, steps * held, computed, rate(catalog::ADMISSIONS)];
        rows.push(Row { parts, seconds });
    }
    rows
}

/// Seconds for one of each part, none of them negative.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Costs([f64; PARTS]);

impl Costs {
    /// Non-negative least squares by coordinate descent (Lawson and Hanson 1974 state the problem): each
    /// row's parts should make one second.
    pub fn fit<'a>(rows: impl Iterator<Item = &'a Row>) -> Option<Self> {
        let (mut products, mut sums, mut count) = ([[0.0; PARTS]; PARTS], [0.0; PARTS], 0);
        for row in rows {
            count += 1;
            for i in 0..PARTS {
                sums[i] += row.parts[i] * row.seconds;
                for (product, other) in products[i].iter_mut().zip(row.parts) {
                    *product += row.parts[i] * other * row.seconds;
                }
            }
        }
        if count < 10 {
            return None;
        }
        let mut costs = [0.0; PARTS];
        for _ in 0..2000 {
            for i in 0..PARTS {
                if products[i][i] > 0.0 {
                    let others: f64 = (0..PARTS).filter(|j| *j != i).map(|j| products[i][j] * costs[j]).sum();
                    // A little of ridge, so that parts that always go together share their cost.
                    costs[i] = f64::max(0.0, (sums[i] - others) / (products[i][i] * 1.001));
                }
            }
        }
        costs.iter().any(|c| *c > 0.0).then_some(Self(costs))
    }

    /// Seconds that the work of a second should take: below one where the rank is slower.
    fn speed(&self, row: &Row) -> f64 {
        self.0.iter().zip(row.parts).map(|(cost, part)| cost * part).sum()
    }

    /// The mean speed of rows, and its standard error from their scatter and `least`.
    pub fn mean_speed(&self, rows: &[Row], least: f64) -> Option<(f64, f64)> {
        let seconds: f64 = rows.iter().map(|r| r.seconds).sum();
        if seconds < 1.5 {
            return None;
        }
        let mean = rows.iter().map(|r| self.speed(r) * r.seconds).sum::<f64>() / seconds;
        let spread = rows.iter().map(|r| (self.speed(r) - mean).powi(2) * r.seconds).sum::<f64>() / seconds;
        let effective = (seconds / ROW.as_secs_f64()).max(1.0);
        Some((mean, spread.sqrt().max(least * mean) / effective.sqrt()))
    }

    /// The part of a request's time that goes into computing its prompt, by what rows did. While prompts are of one
    /// length, what each request costs and what its tokens cost cannot be told apart, and a fit lays both on either:
    /// the two are taken together.
    pub fn prompt_share(&self, rows: &[Row]) -> f64 {
        let of = |i: usize| rows.iter().map(|r| r.parts[i] * self.0[i] * r.seconds).sum::<f64>();
        let all: f64 = (0..PARTS).map(of).sum();
        if all > 0.0 { ((of(3) + of(4)) / all).clamp(0.05, 1.0) } else { 0.5 }
    }
}
