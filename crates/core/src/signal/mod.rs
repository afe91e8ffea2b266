//! What a rank is and what it measures.
//!
//! ```text
//!  log lines ── log_line, sglang_line, vllm_line, pattern ─┐
//!  /metrics ─── exposition ── metrics ─────────────────────┼─> Fields, Sample ─> store ─> views ─> Frame
//!  /v1/loads ── loads ─────────────────────────────────────┤    (catalog)        (rings, silence,
//!  PromQL ───── promql ────────────────────────────────────┘                      precedence)
//! ```

pub mod catalog;
pub mod exposition;
pub mod fields;
pub mod frame;
pub mod intake;
pub mod loads;
pub mod log_line;
pub mod log_reader;
pub mod metrics;
pub mod number;
pub mod observation;
pub mod pattern;
pub mod promql;
pub mod rate;
pub mod ring;
pub mod sample;
pub mod sglang_line;
pub mod source;
pub mod stamp;
pub mod store;
pub mod vllm_line;
pub mod words;
