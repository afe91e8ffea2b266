//! Writes the reports of a comparison into its bundle.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Context;

use super::compare::Compared;
use super::history;
use crate::explain::report;

/// Writes `report.json` and `report.html` beside the traces.
///
/// # Errors
/// One cannot be written.
pub fn write(bundle: &Path, compared: &Compared) -> anyhow::Result<()> {
    let mut json = created(&bundle.join("report.json"))?;
    report::json::write(&mut json, &compared.comparison)?;
    json.flush()?;
    let mut html = created(&bundle.join("report.html"))?;
    let history = history::incident_of(bundle).and_then(|i| history::history_of(bundle, &i));
    report::html::write(&mut html, &compared.comparison, history.as_ref())?;
    html.flush()?;
    Ok(())
}

fn created(path: &Path) -> anyhow::Result<BufWriter<File>> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(BufWriter::new(file))
}
