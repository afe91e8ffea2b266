//! What a rank is and what it measures.
//!
//! ```text
//!  log lines ── log_reader: sglang_line, vllm_line, pattern ─┐
//!  /metrics ─── exposition ── metrics ───────────────────────┼─> Fields, Sample ─> store ─> views ─> Frame
//!  /v1/loads ── loads ───────────────────────────────────────┤    (catalog)        (rings, silence,
//!  own metrics  user_metric ──────────────────────────────────┤
//!  PromQL ───── promql ──────────────────────────────────────┘                      precedence)
//! ```
//!
//! [`intake`] leads what the sources hand over through the readers into the store.

pub mod catalog;
pub mod exposition;
pub mod fields;
pub mod frame;
pub mod intake;
pub mod iteration_stats;
mod keys;
pub mod loads;
pub mod log_line;
pub mod log_reader;
pub mod metrics;
mod number;
pub mod observation;
pub mod pattern;
pub mod promql;
pub mod sample;
pub mod sglang_line;
pub mod source;
mod stamp;
pub mod store;
pub mod user_metric;
mod vllm_line;
