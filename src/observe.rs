//! Reads the world: files, sockets, clocks. Changes nothing.

pub mod artifact;
pub mod changed;
pub mod configuration;
pub mod discover;
pub mod effort;
pub mod host;
pub mod model;
pub mod poll;
pub mod process;
pub mod profile_lines;
pub mod promql;
pub mod replay;
pub mod sender;
pub mod server;
pub mod tail;
pub mod trace;

use std::sync::Arc;

use skewtrap_trace::time::Time;

/// The agent's clock, with which sources stamp what they read.
pub type Now = Arc<dyn Fn() -> Time + Send + Sync>;
