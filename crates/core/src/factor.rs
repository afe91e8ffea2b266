//! Tests on the factors of load instead of on load.
//!
//! Load is arrivals x work a request / speed, and heavy tails make it drift by chance. Its factors are each
//! clean in their own way, so a departure of one of them is found sooner, with fewer false alarms, and
//! names the cause.
//!
//! Readings ([`RankReading`]) get a meaning (`intake`: who came, what a stretch of work did), go into bins of
//! a second a rank (`bins`), and are tested (`share`, `speed`, `residence`, `work`, `pressure`, `stuck`) against bounds
//! that follow from this site's own tails and a budget of false alarms (`tail`). What passes its bound is
//! one [`Trouble`] with an onset, impact and symptoms ([`Detector`]). docs/factors.md has the method and
//! its sources. Times are seconds here, on a clock of the caller's; ranks are places in a group.

mod batches;
mod bins;
mod channel;
mod cost_model;
mod detector;
mod evidence;
mod impact;
mod intake;
mod marks;
mod observation;
mod onset;
mod pressure;
mod residence;
mod share;
mod speed;
mod spread;
mod standing;
mod stuck;
mod tail;
mod trouble;
mod turnover;
mod waits;
mod work;

pub use detector::{BecameUsual, Detector, Nearest, OpenTrouble, Saved, Settings};
pub use evidence::{Factor, Side};
pub use impact::{Impact, Reason};
pub use intake::Chunk;
pub use marks::{Mark, MarkEffect};
pub use observation::{Counters, Decode, Gauges, Prefill, PromptTokens, RankReading, Reading};
pub use onset::Onset;
pub use standing::Uneven;
pub use stuck::Progress;
pub use trouble::{Symptom, Trouble, TroubleChange};

/// The budget of false alarms of a server that nobody set another for.
pub const FALSE_ALARMS_PER_DAY: f64 = 1.0;
