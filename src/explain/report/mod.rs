//! Renderings of a comparison, each to an `impl Write` it is given.

pub mod json;
pub mod terminal;
