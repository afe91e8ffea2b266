//! PURE: from kernel rows to a verdict a person can act on, and its renderings to an `impl Write`.

pub mod message;
