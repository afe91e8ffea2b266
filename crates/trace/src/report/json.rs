//! The comparison as JSON, the verdict first: what scripts read. `docs/compare.md` documents it.

use std::io::{self, Write};

use crate::table::Comparison;

/// Writes the comparison, indented, with a newline at the end.
///
/// # Errors
/// When `out` fails.
pub fn write(out: &mut impl Write, comparison: &Comparison) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, comparison).map_err(io::Error::from)?;
    out.write_all(b"\n")
}
