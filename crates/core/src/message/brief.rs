//! What lists show of an incident: a short sentence each.

use serde::Serialize;

use super::facts::{compared_before, mark};
use super::words::utc;
use crate::cause::Certainty;
use crate::incident::{CaptureOutcome, Incident};

/// The sentences of an incident in a list; empty where there is nothing to say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Brief {
    /// What the comparison of the ranks says.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub verdict: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cause: String,
    /// Why no window came, or what came of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub window: String,
    /// What a person said that it was worth.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mark: String,
}

impl Brief {
    pub fn of(incident: &Incident) -> Self {
        Self {
            verdict: verdict(incident),
            cause: cause(incident),
            window: window(incident),
            mark: mark(incident),
        }
    }
}

fn verdict(incident: &Incident) -> String {
    let Some(verdict) = &incident.verdict else { return String::new() };
    match verdict.of_another(&incident.finding) {
        Some(other) => {
            format!("{} ({})", verdict.sentence, compared_before(other, &incident.finding.rank))
        }
        None => verdict.sentence.clone(),
    }
}

fn cause(incident: &Incident) -> String {
    incident.cause.as_ref().map_or_else(String::new, |cause| {
        let certainty = match cause.certainty {
            Certainty::Likely => "Likely cause",
            Certainty::Consistent => "Consistent with",
            Certainty::Unknown => "Cause",
        };
        format!("{certainty}: {}", cause.statement)
    })
}

fn window(incident: &Incident) -> String {
    match &incident.capture {
        CaptureOutcome::None | CaptureOutcome::WouldStart => String::new(),
        CaptureOutcome::Refused(refused) => format!("No window: {}", refused.why),
        CaptureOutcome::Failed { why, .. } => format!("The window failed: {why}"),
        CaptureOutcome::Open { since, .. } => format!("A window is open since {}.", utc(*since)),
        CaptureOutcome::Done(_) if incident.verdict.is_some() => "A window was taken.".into(),
        CaptureOutcome::Done(_) => "A window was taken; there is no verdict yet.".into(),
    }
}
