//! YAML text to types, with every problem of a file reported at once, in its place.
//!
//! Text becomes a [`tree`] in which everything knows its place; [`de`] reads the serde types of
//! the other files from it and collects every problem as a [`diagnostic`]; the `check` functions
//! turn those into the core's types; [`effective`] keeps where each value came from. Nothing here
//! reads a file or the environment: text and a loader are arguments.

pub mod capture;
pub mod condition;
pub mod de;
pub mod diagnostic;
pub mod effective;
pub mod file;
pub mod quantity;
pub mod receiver;
pub mod rule;
pub mod rules;
pub mod secret;
pub mod signal;
pub mod target;
pub mod test;
pub mod tree;
