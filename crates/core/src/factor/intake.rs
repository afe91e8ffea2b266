//! From readings to factors: what one rank's lines, gauges or counters say about arrivals and about the
//! work of a stretch of time.
//!
//! Arrivals are admissions plus the growth of the queue, because in overload a rank admits what it
//! finishes, not what it is sent. Where admissions are not told, they follow from conservation:
//! `arrivals = growth of (running + waiting) + finished`, and what is finished from the tokens generated
//! (`tokens / tokens a request`, see [`crate::factor::turnover`]).

mod chunk;
mod levels;
mod lines;
mod totals;

pub use chunk::Chunk;
pub use levels::Levels;
pub use lines::Lines;
pub use totals::Totals;

use crate::factor::cost_model::Features;
use crate::factor::observation::Gauges;

/// A stretch between two reports that is longer says nothing, in seconds: a pause, a lost source.
const LONGEST_STRETCH: f64 = 30.0;
/// So few running requests may all end between two reports, and the rank idle unseen.
const SURELY_BUSY: f64 = 2.0;
/// From so many running requests on, silence is not idleness: the chance that all end within one report.
pub const SURELY_NOT_DONE: f64 = 6.0;
/// From this share of its KV cache on a rank may put running requests back into its queue.
const FULL: f64 = 0.95;

/// A stretch of time in which a rank was busy, and what it did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WorkSpan {
    pub from: f64,
    /// Until when.
    pub to: f64,
    /// What was done.
    pub did: Features,
}

/// Requests that came, spread evenly over a stretch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ArrivalSpan {
    pub from: f64,
    /// Until when.
    pub to: f64,
    /// How many; fractional or slightly negative where inferred.
    pub requests: f64,
    /// Tokens that were generated meanwhile, where the number rests on them.
    pub tokens: f64,
}

/// What admitted requests brought, as logarithms of tokens a request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RequestTokens {
    /// Requests.
    pub admitted: f64,
    /// Those that each of them found on the rank, running or waiting; 0 where that is not told.
    pub met: f64,
    /// How many are told together, as one sum of tokens; `None` where running requests stand for them.
    pub together: Option<f64>,
    /// Logarithm of prompt tokens a request, cached or not.
    pub prompt: f64,
    /// Logarithm of those that were computed.
    pub computed: f64,
}

/// What a reading of one rank means.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct InterpretedReading {
    /// Requests that came to it.
    pub came: Option<ArrivalSpan>,
    /// A finished stretch of work.
    pub stretch: Option<WorkSpan>,
    /// What the admitted requests brought.
    pub work: Option<RequestTokens>,
    /// Prompts that were computed, as part of a stretch that is told later.
    pub prompts: Option<Features>,
    /// Whether the rank has no room, so that requests which it puts back into its queue may count as new ones.
    pub is_full: bool,
}

/// `admitted` of requests that are told `together`, with the tokens of all.
fn brought(admitted: f64, together: f64, prompt: f64, computed: f64) -> Option<RequestTokens> {
    (admitted > 0.0 && prompt > 0.0).then(|| RequestTokens {
        admitted,
        met: 0.0,
        together: Some(together),
        prompt: (prompt / together).ln(),
        computed: (computed / together).max(1.0).ln(),
    })
}

/// Where admissions are not told, the tokens that a running request holds in the cache stand for the work
/// that requests bring: both are told at the same moment, and how many run cancels out. As many requests are
/// heard anew as leave.
fn held_a_request(now: &Gauges, before: &Gauges, left: f64) -> Option<RequestTokens> {
    let held = |g: &Gauges| Some(g.used_tokens? / g.running.filter(|n| *n >= SURELY_BUSY)?);
    let held = 0.5 * (held(now)? + held(before)?);
    (held >= 1.0 && left > 0.0).then(|| RequestTokens {
        admitted: left,
        met: 0.0,
        together: None,
        prompt: held.ln(),
        computed: 0.0,
    })
}
