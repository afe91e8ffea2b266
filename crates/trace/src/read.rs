//! Readers of trace bytes into [`RankTrace`](crate::RankTrace), in bounded memory. Opening files,
//! and telling traces from other files, is left to the caller.

mod buffer;
pub(crate) mod event;
mod gzip;
mod json;
pub mod kineto;

pub use self::gzip::decompress;

/// The bytes are no profiler trace; the message says what they are instead.
#[derive(Debug, thiserror::Error)]
#[error("not a profiler trace: {0}")]
pub struct NotATrace(pub String);
