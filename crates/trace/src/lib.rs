//! From the profiler traces of an LLM server's ranks to a verdict that a person can act on: which
//! rank costs the time, in which kernels, and how sure that is.
//!
//! ```text
//!  bytes ─> read ─> RankTrace ─> RankProfile ──> compare ──> Comparison ─> report
//!                  (rows, steps) (per step and kernel)       (verdict, tables)
//! ```
//!
//! Nothing here opens a file, reads a clock or starts a thread: [`read`] takes an `impl Read`,
//! [`report`] writes to an `impl Write`. A reader for another format fills a [`RankTrace`] itself.
//!
//! ```
//! use skewtrap_trace::read::{decompress, kineto};
//! use skewtrap_trace::{
//!     ComparisonInput, Limits, Profiles, Rank, RankId, RankTrace, RankWindow, VerdictKind, compare, rank,
//! };
//!
//! /// Stands for a file of the PyTorch profiler: 40 decode steps, each with one kernel of attention.
//! fn trace(requests: u32, kernel_us: u32) -> String {
//!     let mut events = Vec::new();
//!     for step in 0..40 {
//!         for (category, name, us) in [
//!             ("gpu_user_annotation", format!("step[DECODE bs={requests}]"), 900),
//!             ("kernel", "_fwd_grouped_kernel_stage1".to_owned(), kernel_us + step % 3),
//!         ] {
//!             let at = step * 1000;
//!             events.push(format!(
//!                 r#"{{"ph":"X","cat":"{category}","name":"{name}","tid":7,"ts":{at},"dur":{us}}}"#
//!             ));
//!         }
//!     }
//!     format!(r#"{{"traceEvents":[{}]}}"#, events.join(","))
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let files = [
//!     ("id-DP-0.trace.json", trace(8, 300)),
//!     ("id-DP-1.trace.json", trace(20, 450)),
//!     ("id-DP-2.trace.json", trace(8, 300)),
//! ];
//! let mut windows = Vec::new();
//! for (name, bytes) in &files {
//!     let mut rows = RankTrace::default();
//!     kineto::read(decompress(bytes.as_bytes())?, Limits::default(), &mut rows)?;
//!     let rank = rank::parse_file_name(name).rank.ok_or("no rank in the name")?;
//!     windows.push(RankWindow::new(RankId::Rank(rank), rows));
//! }
//! let input = ComparisonInput { profiles: Profiles::new(windows).ranks, ..ComparisonInput::default() };
//! let verdict = compare(&input).verdict;
//! assert_eq!(verdict.kind, VerdictKind::UnevenWork);
//! assert_eq!(verdict.rank, Some(RankId::Rank(Rank::dp(1))));
//! # Ok(())
//! # }
//! ```

#![warn(missing_docs)] // a library for others too
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod collective;
mod compare;
mod comparison;
mod diagnosis;
mod digest;
mod enough;
mod host;
pub mod kernel;
pub mod labels;
mod ms;
pub mod operator;
mod period;
mod period_fit;
pub mod printable;
mod profile;
pub mod rank;
pub mod read;
pub mod report;
mod since;
mod split;
mod stats;
mod step;
pub mod summary;
pub mod time;
mod trace;
pub mod verdict;

pub use self::collective::{ClockOffset, MatchedBy, MatchedCollectives, RankWait};
pub use self::compare::compare;
pub use self::comparison::{Comparison, ComparisonInput, KernelLine, KindLine, RankLine, Suspect};
pub use self::digest::{fnv1a, hex};
pub use self::enough::fewest_steps;
pub use self::kernel::Family;
pub use self::period::Period;
pub use self::profile::{Collective, Cost, KernelCost, Profiles, RankProfile, RankWindow, Step};
pub use self::rank::{Axis, Rank, RankId};
pub use self::since::Since;
pub use self::split::{Part, Split, StepSplit};
pub use self::stats::median;
pub use self::step::{StepKind, StepMark, StepSource};
pub use self::trace::{Activities, CollectiveId, Limits, RankTrace, Row};
pub use self::verdict::{Cause, Confidence, Kind as VerdictKind, Place, Verdict};
