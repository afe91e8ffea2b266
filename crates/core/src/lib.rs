//! Everything that skewtrap decides: no clock, no file, no task, no socket. `now` is an argument of
//! every decision, so what runs live runs on a recording, in simulated time, byte for byte the same.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod amount;
pub mod capture;
pub mod cause;
pub mod factor;
pub mod finding;
pub mod fleet;
pub mod incident;
pub mod message;
pub mod onset;
pub mod printable;
pub mod rule;
pub mod signal;
pub mod status;
pub mod suggest;
#[cfg(test)]
mod test_rng;
pub mod watch;
