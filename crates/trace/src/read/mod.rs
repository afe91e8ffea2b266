//! Readers of trace bytes into the one model of [`crate::trace`], in bounded memory: Kineto JSON,
//! gzip or not, and whose trace a file is by its name. What is a file and what is not is the
//! caller's business.

pub mod inflate;
pub mod kineto;
mod layout;
pub mod naming;
pub mod scan;
mod window;

pub use self::inflate::inflated;

/// The bytes are no profiler trace; the message says what they are instead.
#[derive(Debug, thiserror::Error)]
#[error("not a profiler trace: {0}")]
pub struct NotATrace(pub String);
