//! Renderings of a comparison, each to an `impl Write`.

mod csv;
mod html;
pub mod perfetto;
mod terminal;

use std::io::{self, Write};

pub use self::csv::write_csv;
pub use self::html::{Context, History, Occasion, Series, write_html};
pub use self::terminal::write_terminal;
use crate::comparison::Comparison;

/// Writes the comparison as indented JSON with a newline at the end, the verdict first.
///
/// # Errors
/// When `out` fails.
pub fn write_json(out: &mut impl Write, comparison: &Comparison) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, comparison).map_err(io::Error::from)?;
    out.write_all(b"\n")
}
