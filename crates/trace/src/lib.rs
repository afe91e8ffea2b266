//! From the profiler traces of an LLM server's ranks to a verdict that a person can act on: which
//! rank costs the time, in which kernels, and how sure that is.
//!
//! ```text
//!  bytes ─> read ─> trace ─> step ─> evidence ─> judge ─> compare ─> table ─> report
//!          (rows)          (steps)  (figures)            (verdict)         (text, HTML, CSV, Perfetto)
//! ```
//!
//! Nothing here opens a file, reads a clock or starts a thread: [`read`] takes an `impl Read`,
//! [`report`] writes to an `impl Write`.

pub mod clock;
pub mod collective;
pub mod compare;
pub mod conclude;
pub mod evidence;
pub mod judge;
pub mod kernel;
pub mod kind;
pub mod labels;
pub mod period;
pub mod rank;
pub mod read;
pub mod report;
pub mod step;
pub mod table;
pub mod time;
pub mod trace;
pub mod verdict;
