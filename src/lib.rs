//! skewtrap sits beside an LLM server, watches how much work each rank has, and the moment the
//! ranks drift apart takes one short profile of exactly that moment, then says which rank, which
//! kernel, and why.
//!
//! ```text
//!  log files ─┐                                                        ┌─ notify ──> people
//!  /metrics  ─┼─> source ─> signal ─> rule ─> onset ─> incident ─> capture ─> verify ─> compare ─> report
//!  /v1/loads ─┘   (bytes)   (rings)  (states) (since,   (bundle)   (window)   (files)   (verdict)
//!  PromQL    ─┘                               who)         └──────── state (SQLite)
//! ```
//!
//! Four verbs, in the order in which data flows. A folder says what its code may do to the world:
//!
//! | folder | may |
//! |---|---|
//! | [`observe`] | read files, sockets and clocks; change nothing |
//! | [`decide`]  | nothing: pure, `now` is an argument |
//! | [`act`]     | change the world; the only code that can hurt a server |
//! | [`explain`] | nothing: pure, writes to an `impl Write` it is given |
//!
//! [`agent`] owns the loop, the clock and the tasks; [`serve`] shows its state over HTTP; [`cli`]
//! is one file per subcommand; [`http`] is how servers are spoken to; [`config`] turns YAML into types; [`demo`] is a double of the
//! engines. `tests/it/borders.rs` and `clippy.toml` hold these borders.

pub mod act;
pub mod agent;
pub mod cli;
pub mod config;
pub mod demo;
pub mod http;
pub mod observe;
pub mod serve;
