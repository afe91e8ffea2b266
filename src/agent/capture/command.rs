//! Captures by a program of the user's.

use std::path::PathBuf;

use super::{CaptureResult, CaptureStore};
use crate::act::command::{Ended, INCIDENT_VARIABLE, Tokens, argv_of, kill_left_behind, start};
use crate::act::state::{OpenMethod, StateError, WindowRow};
use crate::agent::window::{Links, WindowSignal};
use crate::http::Server;
use crate::observe::artifact::inspect;
use crate::observe::process::marked;
use skewtrap_core::amount::Span;
use skewtrap_core::capture::CommandWindow;
use skewtrap_core::capture::captured::{CaptureKind, Quality};
use skewtrap_core::capture::facts::ServerKind;
use skewtrap_core::capture::governor::Attempt;
use skewtrap_core::capture::verify::{Artifact, FileVerification};
use skewtrap_core::capture::window::WindowPhase;
use skewtrap_core::incident::{Exchange, Record};

/// Runs the program of `spec`.
///
/// # Errors
/// The state could not be written; then nothing was run.
pub async fn capture(
    store: &CaptureStore,
    server: &Server,
    spec: &CommandWindow,
    attempt: &Attempt,
    record: &Record,
    mut links: Links,
) -> Result<CaptureResult, StateError> {
    let clock = store.clock.steady();
    let mut window = WindowRow::of(attempt, OpenMethod::Command { group: None }, clock.now());
    let begun = crate::agent::window::begin(&store.state, attempt, &window, record, clock).await?;
    if let Err(late) = begun {
        return Ok(CaptureResult::never_sent(CaptureKind::Command, late, window.sent_at));
    }
    if let Err(over) = links.check_lease() {
        return Ok(CaptureResult::never_sent(CaptureKind::Command, over, window.sent_at));
    }
    let mut result =
        CaptureResult { means: CaptureKind::Command, sent_at: window.sent_at, ..CaptureResult::default() };
    let (bundles, incident, number) =
        (store.bundles.clone(), attempt.incident.clone(), record.incident.window());
    let made = crate::world::blocking(move || bundles.scratch(&incident, number)).await;
    let folder = match made.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())) {
        Ok(folder) => folder,
        Err(error) => {
            result.failure = Some(error.to_string());
            return Ok(result);
        }
    };
    let rank = record.incident.finding.rank.to_string();
    let argv = argv_of(&spec.argv, Tokens { incident: &attempt.incident, rank: &rank, output_dir: &folder });
    if let Err(unsent) = links.check_wanted() {
        return Ok(CaptureResult::never_sent(CaptureKind::Command, unsent, window.sent_at));
    }
    let running = match start(&argv, &attempt.incident) {
        Ok(running) => running,
        Err(error) => {
            result.failure = Some(error.to_string());
            return Ok(result);
        }
    };
    window.granted = true;
    window.method = OpenMethod::Command { group: running.group };
    // Without it a later agent finds the program all the same, by the mark in its environment.
    store.state.later(move |state| state.update(&window));
    links.show(WindowPhase::Open, store.clock.now());
    let (probe, _) = links.meter.probe(server.clone(), || None);
    let group = running.group;
    let ended = running.end(over(spec, &mut links)).await;
    // What left its group (a session of its own) still bears the mark.
    let incident = attempt.incident.clone();
    let left = crate::world::blocking(move || marked(INCIDENT_VARIABLE, &incident)).await.unwrap_or_default();
    kill_left_behind(group, &left);
    result.open = store.clock.now().since(result.sent_at);
    links.show(WindowPhase::Verifying, store.clock.now());
    probe.end(&links.cancel).await;
    result.book(&links);
    let answer = match ended {
        Ended::Exit(status) => status.to_string(),
        Ended::Killed => format!("killed after {}", Span(result.open)),
    };
    if ended == Ended::Killed || matches!(ended, Ended::Exit(status) if !status.success()) {
        result.failure = Some(format!("{} ended badly: {answer}", argv.first().map_or("", String::as_str)));
    }
    result.exchanges.push(Exchange {
        at: result.sent_at,
        request: argv.join(" "),
        body: None,
        answer,
        took_s: result.open.as_secs_f64(),
    });
    result.artifacts = crate::world::blocking(move || files_in(&folder)).await.unwrap_or_default();
    // A program that leaves no file may have done its work elsewhere.
    let quality = if result.artifacts.is_empty() { Quality::Unseen } else { Quality::Usable };
    result.verdict = FileVerification { quality, ..FileVerification::default() };
    Ok(result)
}

/// Until the program must end: its time is up, somebody closes the window, or the agent ends.
async fn over(spec: &CommandWindow, links: &mut Links) {
    let limit = tokio::time::sleep(spec.time_limit);
    tokio::pin!(limit);
    loop {
        tokio::select! {
            () = &mut limit => return,
            () = links.cancel.cancelled() => return,
            told = links.signals.recv() => match told {
                Some(WindowSignal::Close) => return,
                Some(_) => {}
                None => return limit.await,
            },
        }
    }
}

fn files_in(folder: &PathBuf) -> Vec<Artifact> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<Artifact> = entries
        .filter(|e| e.file_type().is_ok_and(|t| t.is_file()))
        .filter_map(|e| inspect(&e.path(), ServerKind::Sglang).ok())
        .collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

/// Ends the program that an agent before this one left behind, and all that it started: they bear
/// the incident in their environment, so that nobody else's process is taken for one of them.
pub async fn close(window: &WindowRow, group: Option<i32>) -> CaptureResult {
    let (incident, sent_at) = (window.incident.clone(), window.sent_at);
    let left = crate::world::blocking(move || marked(INCIDENT_VARIABLE, &incident)).await;
    let unproven = left.as_ref().err().map(|panic| format!("its processes could not be looked for: {panic}"));
    let left = left.unwrap_or_default();
    let mut why = "the agent died while the program of this capture ran".to_owned();
    if !left.is_empty() {
        kill_left_behind(group, &left);
        why += "; it was killed when the agent was back";
    }
    CaptureResult {
        means: CaptureKind::Command,
        failure: Some(why),
        unproven,
        sent_at,
        ..CaptureResult::default()
    }
}
