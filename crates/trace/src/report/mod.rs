//! Renderings of a comparison, each to an `impl Write` it is given.

pub mod csv;
pub mod html;
pub mod json;
pub mod perfetto;
pub mod terminal;
