//! Writes the reports of a comparison into its bundle.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Context;

use super::compare::Compared;
use super::history;
use crate::act::bundle::numbered;
use skewtrap_core::incident::Incident;
use skewtrap_core::message::{Facts, Origin, rank_name};
use skewtrap_trace::report::{self, ReportIncident};

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
    let incident = incident.map(|i| occasion_of(bundle, window, i));
    let context = report::Context { incident: incident.as_ref(), history: history.as_ref() };
    report::write_html(&mut html, &compared.comparison, context)?;
    html.flush()?;
    Ok(())
}

/// What the report says of the incident, with links to the other files of its bundle.
fn occasion_of(bundle: &Path, window: usize, incident: &Incident) -> ReportIncident {
    let captured = incident.capture.captured();
    let own = ["incident.json", "report.json", "evidence.jsonl"].map(|name| match name {
        "incident.json" => name.to_owned(),
        _ => numbered(name, window),
    });
    let own = own.into_iter().filter(|name| bundle.join(name).exists() || name.starts_with("report"));
    let traces = captured.iter().flat_map(|c| &c.files).filter(|f| !f.path.starts_with('/')).map(|f| {
        let words =
            f.rank.as_ref().map_or_else(|| f.path.clone(), |rank| format!("trace of {}", rank_name(rank)));
        (words, f.path.clone())
    });
    ReportIncident {
        incident: incident.id.to_string(),
        server: incident.target.to_string(),
        rule: incident.rule.to_string(),
        about: incident.about.clone(),
        began: incident.finding.onset,
        began_error_s: incident.finding.onset_error_s,
        fired: incident.fired_at,
        window: captured.map(|c| c.started_at),
        facts: facts_of(incident),
        links: own.map(|name| (name.clone(), name)).chain(traces).collect(),
    }
}

/// Why it happened and what the window cost, as messages say it.
fn facts_of(incident: &Incident) -> Vec<(&'static str, String)> {
    let facts = Facts::of(incident, &Origin::default());
    let cost = incident.capture.captured().map(|_| facts.cost);
    let told = [("cause", facts.cause), ("not it", facts.not_it), ("cost", cost.unwrap_or_default())];
    told.into_iter().filter(|(_, sentence)| !sentence.is_empty()).collect()
}

fn created(path: &Path) -> anyhow::Result<BufWriter<File>> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(BufWriter::new(file))
}
