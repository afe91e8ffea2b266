//! Writes the reports of a comparison into its bundle.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Context;

use super::compare::Compared;
use super::history;
use crate::act::bundle::numbered;
use skewtrap_core::incident::Incident;
use skewtrap_trace::report;

/// Writes `report.json` and `report.html` beside the traces; of a further capture of the incident,
/// `report-2.json` and `report-2.html`.
///
/// # Errors
/// One cannot be written.
pub fn write(
    bundle: &Path,
    window: usize,
    compared: &Compared,
    incident: Option<&Incident>,
) -> anyhow::Result<()> {
    let mut json = created(&bundle.join(numbered("report.json", window)))?;
    report::write_json(&mut json, &compared.comparison)?;
    json.flush()?;
    let mut html = created(&bundle.join(numbered("report.html", window)))?;
    let history = incident.and_then(|i| history::history_of(bundle, window, i));
    report::write_html(&mut html, &compared.comparison, history.as_ref())?;
    html.flush()?;
    Ok(())
}

fn created(path: &Path) -> anyhow::Result<BufWriter<File>> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(BufWriter::new(file))
}
