//! Reads the world: files, sockets, clocks. Changes nothing.

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
use std::time::{SystemTime, UNIX_EPOCH};

use skewtrap_trace::time::Time;

/// The agent's clock, with which sources stamp what they read.
pub type Now = Arc<dyn Fn() -> Time + Send + Sync>;

/// The wall clock's present time.
pub fn wall_time() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time::from_nanos(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}
