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
//! This package is the shell: everything that touches the world. Decisions and reports are in two pure
//! crates, without a runtime, HTTP or a database in their manifests, and take `now`, bytes and writers
//! as arguments.
//!
//! | where | what it may do |
//! |---|---|
//! | `skewtrap_core`  | decide: signals, rules, capture policy, incidents, messages; `now` is an argument |
//! | `skewtrap_trace` | read traces, compare ranks, report; writes to an `impl Write` that it is given |
//! | [`observe`] | read files, sockets and clocks; change nothing |
//! | [`act`]     | change the world; the only code that can harm a server |
//! | [`agent`]   | run: the loop, the clock and the tasks |
//! | [`serve`]   | show the agent's state over HTTP |
//!
//! [`cli`] has one file per subcommand, [`http`] is the client for servers, [`config`] turns YAML into
//! types, and [`demo`] simulates the engines.

pub mod act;
pub mod agent;
pub mod cli;
pub mod clock;
pub mod config;
pub mod demo;
pub mod http;
pub mod observe;
pub mod serve;
pub mod world;
