//! READS the world: files, sockets, clocks. Changes nothing.

pub mod artifact;
pub mod changed;
pub mod configuration;
pub mod poll;
pub mod process;
pub mod profile_lines;
pub mod promql;
pub mod replay;
pub mod server;
pub mod tail;
pub mod trace;

use std::sync::Arc;

use skewtrap_trace::time::Time;

/// What the agent calls the present: sources stamp what they see with it.
pub type Now = Arc<dyn Fn() -> Time + Send + Sync>;
