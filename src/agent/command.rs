//! Captures by a program of the user's.

use std::path::PathBuf;

use crate::act::command::{Ended, MARK, Tokens, argv_of, kill_left_behind, start};
use crate::act::state::{OpenMeans, OpenWindow, StateError};
use crate::agent::capture::{Came, Desk};
use crate::agent::window::Links;
use crate::decide::capture::CommandWindow;
use crate::decide::capture::facts::Engine;
use crate::decide::capture::governor::Attempt;
use crate::decide::capture::refusal::Span;
use crate::decide::capture::verify::{Artifact, Verdict};
use crate::decide::incident::{Exchange, Quality, Record};
use crate::decide::time::Time;
use crate::observe::artifact::inspect;
use crate::observe::process::variable;

/// Runs the program of `spec`.
///
/// # Errors
/// The state could not be written; then nothing was run.
pub async fn capture(
    desk: &Desk,
    spec: &CommandWindow,
    attempt: &Attempt,
    record: &Record,
    links: Links,
) -> Result<Came, StateError> {
    let mut window = OpenWindow {
        attempt: attempt.id.clone(),
        incident: attempt.incident.clone(),
        target: attempt.target.clone(),
        means: OpenMeans::Command { group: None },
        sent_at: desk.clock.now(),
        granted: false,
    };
    desk.state.begin(attempt, &window, Some(record))?;
    let mut came = Came { means: "command", sent_at: window.sent_at, ..Came::default() };
    let folder = match desk.bundles.scratch(&attempt.incident) {
        Ok(folder) => folder,
        Err(error) => {
            came.failure = Some(error.to_string());
            return Ok(came);
        }
    };
    let rank = record.incident.finding.rank.to_string();
    let argv = argv_of(&spec.argv, Tokens { incident: &attempt.incident, rank: &rank, output_dir: &folder });
    let running = match start(&argv, &attempt.incident) {
        Ok(running) => running,
        Err(error) => {
            came.failure = Some(error.to_string());
            return Ok(came);
        }
    };
    window.granted = true;
    window.means = OpenMeans::Command { group: running.group };
    desk.state.update(&window)?;
    let ended = running.end(async {
        tokio::select! {
            () = tokio::time::sleep(spec.time_limit) => {}
            () = links.cancel.cancelled() => {}
        }
    });
    let ended = ended.await;
    came.open = desk.clock.now().since(came.sent_at);
    let answer = match ended {
        Ended::Exit(status) => status.to_string(),
        Ended::Killed => format!("killed after {}", Span(came.open)),
    };
    if ended == Ended::Killed || matches!(ended, Ended::Exit(status) if !status.success()) {
        came.failure = Some(format!("{} ended badly: {answer}", argv.first().map_or("", String::as_str)));
    }
    came.exchanges.push(Exchange {
        at: came.sent_at,
        request: argv.join(" "),
        body: None,
        answer,
        took_s: came.open.as_secs_f64(),
    });
    came.artifacts = tokio::task::spawn_blocking(move || files_in(&folder)).await.unwrap_or_default();
    // A program that leaves no file may have done its work elsewhere.
    let quality = if came.artifacts.is_empty() { Quality::Unseen } else { Quality::Usable };
    came.verdict = Verdict { quality, ..Verdict::default() };
    Ok(came)
}

fn files_in(folder: &PathBuf) -> Vec<Artifact> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<Artifact> = entries
        .filter(|e| e.file_type().is_ok_and(|t| t.is_file()))
        .filter_map(|e| inspect(&e.path(), Engine::Sglang).ok())
        .collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

/// Ends a program that an agent before this one left behind, if it still runs and is ours.
pub fn close(window: &OpenWindow, group: Option<i32>, sent_at: Time) -> Came {
    let ours = |group: &i32| {
        let pid = u32::try_from(*group).ok();
        pid.and_then(|pid| variable(pid, MARK)).is_some_and(|incident| incident == window.incident)
    };
    let mut why = "the agent died while the program of this capture ran".to_owned();
    if let Some(group) = group.filter(ours) {
        kill_left_behind(group);
        why += "; it was killed when the agent was back";
    }
    Came { means: "command", failure: Some(why), sent_at, ..Came::default() }
}
