//! What an agent has asked of a server for a window.

use std::time::Duration;

use skewtrap_core::capture::facts::ServerKind;
use skewtrap_core::capture::line::Marks;
use skewtrap_core::capture::plan::{StartMode, StartRequest};
use skewtrap_core::capture::preflight::Ranks;
use skewtrap_trace::rank::Rank;

/// So many steps on the `busy` ranks, for an incident, to be over within `deadline`.
pub fn of_steps(incident: &str, busy: Vec<Rank>, deadline: Duration) -> StartRequest {
    StartRequest {
        engine: ServerKind::Sglang,
        body: None,
        marks: Marks { dir: Some(format!("/p/skewtrap-{incident}")), prefix: None, id: None },
        folder: None,
        form: StartMode::Exact,
        ranks: Ranks { busy, idle: Vec::new() },
        deadline,
        hold: None,
        until_cleared: false,
        writes_files: true,
        merges: false,
        notes: Vec::new(),
        sizing: None,
    }
}
