//! YAML text to checked types, reporting every problem of a file at once, each with its place.
//!
//! A text is parsed into a `tree` in which every key and value has a place. `de` reads the serde
//! types of the other modules from that tree and collects every problem as a `diagnostic`; the
//! `check` functions turn those types into the core's; `effective` keeps the source of every value.
//! Nothing here reads a file or the environment: the text and a loader of files are arguments.

pub(crate) mod address;
pub(crate) mod capture;
pub(crate) mod condition;
pub(crate) mod de;
pub(crate) mod diagnostic;
pub mod discover;
pub(crate) mod effective;
pub mod file;
mod names;
pub(crate) mod quantity;
pub(crate) mod receiver;
pub(crate) mod rule;
pub mod rules;
pub(crate) mod secret;
pub(crate) mod signal;
pub mod store;
pub(crate) mod target;
pub mod test;
pub(crate) mod tree;
