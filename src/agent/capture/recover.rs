//! Finishes at start what an agent before this one left undone. Bundles at once; windows each by a
//! task of its own beside the loop, for an export may take minutes, and the watching must not wait.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::{CaptureResult, CaptureStore, Finalizer, Taken, command, nsys, result_of};
use crate::act::bundle::BundleError;
use crate::act::nsys::Nsys;
use crate::act::state::{OpenMethod, WindowRow};
use crate::agent::cost::Meter;
use crate::agent::window::{self, Links, Status, TargetHandle, follow};
use crate::clock::Clock;
use crate::http::Server;
use crate::observe::artifact::inspect;
use crate::observe::profile_lines;
use skewtrap_core::capture::facts::{ServerKind, Sizes};
use skewtrap_core::capture::governor::AttemptEnd;
use skewtrap_core::capture::path_map::PathMap;
use skewtrap_core::capture::window::{CHANCE, EXPORT_LIMIT, SettlingTime, UNREACHED_LIMIT, WindowPhase};
use skewtrap_core::fleet::lease::WindowEnd;
use skewtrap_core::incident::{CaptureOutcome, Incident, Record};
use skewtrap_core::message::LONGEST_ALERT;
use skewtrap_trace::time::Time;

/// A capture that began longer ago was compared, or cannot be: a comparison takes minutes at the most, and
/// one that ends the agent must not end it at every start.
const COMPARED_WITHIN: Duration = Duration::from_secs(3600);

/// In place of a server for a window that no target is left for.
pub fn without_server(target: &str, no_server: &Server) -> TargetHandle {
    TargetHandle {
        server: no_server.clone(),
        target: target.to_owned(),
        instance: None,
        sizes: Sizes::default(),
        paths: PathMap::default(),
        default_dir: None,
        sees_log: false,
        logs: Vec::new(),
        nsys: Nsys::new("nsys"),
    }
}

/// What was found at start.
#[derive(Debug, Default)]
pub struct Found {
    /// Incidents that are finished now and have to be reported; each is remembered until
    /// [`crate::act::state::State::reported`] says that the message is in the outbox.
    pub finished: Vec<Record>,
    /// Windows that are, or may be, open, with their records: to be closed.
    pub left: Vec<(WindowRow, Record)>,
    /// Other incidents that were not over when that agent ended, nor so long ago that every receiver
    /// has forgotten them.
    pub open: Vec<Record>,
    /// Incidents of whose last capture people were told, and which was not compared when that agent ended.
    pub uncompared: Vec<Record>,
    /// Ends of attempts that the state does not take yet.
    pub unwritten: Vec<(String, AttemptEnd)>,
    /// Why the folder of the bundles takes no more of them.
    pub unwritable: Option<BundleError>,
}

impl Found {
    /// Books the end of an attempt: where the disk does not take it now, as soon as it does. The watching must
    /// begin all the same.
    fn book(&mut self, store: &CaptureStore, attempt: String, end: AttemptEnd) {
        if let Err(error) = store.state.end(&attempt, &end) {
            error!("{error}; the end of an earlier window is written as soon as the disk takes it");
            self.unwritten.push((attempt.clone(), end.clone()));
            store.state.write_until_done(move |state| state.end(&attempt, &end));
        }
    }
}

/// Completes what needs no server, and finds what does.
///
/// # Errors
/// The state cannot be read.
pub fn find(store: &CaptureStore) -> anyhow::Result<Found> {
    let pending = store.state.unfinished_incidents()?;
    let known: Vec<Record> = pending.iter().map(|(record, _)| record.clone()).collect();
    let (recovered, errors) = store.bundles.recover(&known, store.clock.now());
    for recovered in recovered {
        warn!(?recovered, "a bundle was half written");
    }
    let mut found = Found::default();
    // Whatever is wrong with a bundle: a window that was left open must be closed.
    for error in errors {
        error!("{error}; it stays half written until the next start");
        found.unwritable = found.unwritable.or((!error.is_of_room()).then_some(error));
    }
    let reported: BTreeSet<_> = pending
        .iter()
        .filter(|(_, reported)| *reported)
        .map(|(record, _)| record.incident.id.clone())
        .collect();
    let mut records: BTreeMap<_, _> = known.into_iter().map(|r| (r.incident.id.clone(), r)).collect();
    // What was given up without a proof is not closed again: what runs there now may be somebody else's.
    let windows = store.state.open_windows()?.into_iter().filter(|window| window.unproven.is_none());
    for window in windows {
        let record = records.remove(&*window.incident);
        match record {
            Some(record) if matches!(record.incident.capture, CaptureOutcome::Open { .. }) => {
                let record = with_end(store, record);
                found.left.push((window, record));
            }
            // A release before this one wrote its bundle, and died before it booked the end.
            Some(record) => {
                found.book(store, window.attempt, end_of(&record, store.clock.now()));
                found.finished.push(complete(store, record).0);
            }
            None => {
                let unproven = Some("its incident is not in the state".to_owned());
                let end = AttemptEnd { at: store.clock.now(), unproven, ..AttemptEnd::default() };
                found.book(store, window.attempt, end);
            }
        }
    }
    for mut record in records.into_values() {
        if reported.contains(&record.incident.id) {
            let id = record.incident.id.clone();
            if complete(store, record).1 {
                store.state.write_until_done(move |state| state.delete_incident(&id));
            }
            continue;
        }
        // It was stored, and no message about it is in the outbox yet.
        if matches!(record.incident.capture, CaptureOutcome::Open { .. }) {
            let why = "the agent died during this capture, and its window was closed at its deadline".into();
            record.incident.capture = CaptureOutcome::Failed { why, captured: None };
        }
        found.finished.push(complete(store, record).0);
    }
    let ids = found.finished.iter().chain(found.left.iter().map(|(_, record)| record));
    let ids: BTreeSet<_> = ids.map(|record| record.incident.id.clone()).collect();
    let now = store.clock.now();
    let others = store.bundles.fired_since(now - LONGEST_ALERT).into_iter();
    for record in others.filter(|record| !ids.contains(&record.incident.id)) {
        if was_being_compared(&record.incident, now) {
            found.uncompared.push(record.clone());
        }
        if record.incident.resolved_at.is_none() {
            found.open.push(record);
        }
    }
    Ok(found)
}

/// Whether the ranks of an incident's last capture may have been under comparison a moment ago.
fn was_being_compared(incident: &Incident, now: Time) -> bool {
    let began = incident.capture.captured().map(|captured| captured.started_at);
    incident.verdict.is_none()
        && incident.capture.is_comparable()
        && began.is_some_and(|began| now.since(began) < COMPARED_WITHIN)
}

/// The state's record of a window is older than its bundle: the rule may have cleared meanwhile.
fn with_end(store: &CaptureStore, mut record: Record) -> Record {
    if let Some(end) = store.bundles.read(&record.incident.id).and_then(|there| there.incident.resolved_at) {
        record.incident.resolve(end);
    }
    record
}

/// Brings a bundle up to what the state knows; one that knows more (a verdict, its end) stays. Gives
/// what the bundle has now, and whether it has it: if not, only the state does.
fn complete(store: &CaptureStore, record: Record) -> (Record, bool) {
    let record = with_end(store, record);
    let written = match store.bundles.read(&record.incident.id) {
        Some(there)
            if there.incident.window() >= record.incident.window()
                && !matches!(there.incident.capture, CaptureOutcome::Open { .. }) =>
        {
            return (there, true);
        }
        Some(_) => store.bundles.write(&record),
        None => store.bundles.create(&record, b"").map(|_| ()),
    };
    if let Err(error) = &written {
        error!(%error, "an incident's bundle could not be completed");
    }
    (record, written.is_ok())
}

fn end_of(record: &Record, now: Time) -> AttemptEnd {
    let (stalled, bytes) = record.incident.capture.captured().map_or((Duration::ZERO, 0), |captured| {
        let stalled = Duration::try_from_secs_f64(captured.stall_s).unwrap_or_default();
        (stalled, captured.files.iter().map(|f| f.size).sum())
    });
    AttemptEnd { at: now, stalled, bytes, ..AttemptEnd::default() }
}

/// Closes one window that an agent before this one left behind, on the server that is `known` by
/// its target's name.
pub async fn close(
    store: CaptureStore,
    known: Option<TargetHandle>,
    window: WindowRow,
    record: Record,
    links: (Meter, CancellationToken),
) -> Taken {
    let attempt = window.attempt.clone();
    let result = match known {
        Some(known) => closed(&store, known, window, &record, links).await,
        None => match given_up(&window, store.clock, &links.1).await {
            Some(result) => result,
            None => return Taken::LeftOpen,
        },
    };
    let (merged, problem, pool) = (None, None, store.pool.clone());
    let taken = Finalizer { store, attempt: attempt.clone(), record, result, merged, problem }.run().await;
    if let (Some(pool), Taken::Stored { capture, .. }) = (pool, &taken) {
        let end = WindowEnd { was_sent: true, ..super::task::end_of(capture) };
        pool.closed(&attempt, end).await;
    }
    taken
}

/// The result of a window whose server is no target any more, once nothing would stop it even where that became one
/// again; `None` where the agent ends before.
async fn given_up(window: &WindowRow, clock: Clock, cancel: &CancellationToken) -> Option<CaptureResult> {
    let target = &window.target;
    error!(
        incident = window.incident,
        "a window may be open on {target}, which is no target any more, so it cannot be stopped: make that server a target again and start the agent anew"
    );
    // What was opened on this machine is closed without a server.
    let OpenMethod::Http(request) = &window.method else { return None };
    // Later than `CHANCE` only a log could show that what runs there is still ours.
    let had_log = window.log_from.is_some() || !window.logs_from.is_empty();
    let after = request.deadline + if had_log { UNREACHED_LIMIT } else { CHANCE + EXPORT_LIMIT };
    tokio::select! {
        () = cancel.cancelled() => return None,
        () = tokio::time::sleep(after.saturating_sub(clock.now().since(window.sent_at))) => {}
    }
    let why = format!("{target} is no target any more, and nothing shows that its window ended");
    error!(incident = window.incident, "{why}; it is given up, and other windows may open");
    Some(CaptureResult {
        means: request.means(),
        failure: Some(format!(
            "{why}; if it is still there and nobody profiles it, send it /stop_profile by hand"
        )),
        unproven: Some(why),
        sent_at: window.sent_at,
        ..CaptureResult::default()
    })
}

async fn closed(
    store: &CaptureStore,
    handle: TargetHandle,
    window: WindowRow,
    record: &Record,
    (meter, cancel): (Meter, CancellationToken),
) -> CaptureResult {
    match window.method.clone() {
        OpenMethod::Http(request) => {
            let of = (&store.state, store.clock);
            let Some(server_lock) = window::wait_for_server_lock(&handle, &request, of, &cancel).await else {
                return CaptureResult { left_open: true, ..CaptureResult::default() };
            };
            let (mut lines, mut ends) = (Lines::new(), Vec::new());
            for (index, log) in handle.logs.iter().enumerate() {
                let (of_log, end) = since(log, window.log_from(log, index == 0)).await;
                lines.extend(of_log);
                ends.push((log.clone(), end));
            }
            let (bundles, incident) = (store.bundles.clone(), record.incident.id.clone());
            let number = record.incident.window();
            let moved = crate::world::blocking(move || bundles.traces(&incident, number)).await;
            // A read that panics leaves them where they are.
            let moved = moved.unwrap_or_default();
            let status =
                Status { phase: WindowPhase::Unknown, settling: SettlingTime::opened(window.sent_at) };
            let (sender, signals) = mpsc::channel(1024);
            let readers: Vec<_> = ends
                .iter()
                .map(|(log, end)| tokio::spawn(follow(log.clone(), *end, sender.clone())))
                .collect();
            drop(sender);
            let links = Links { signals, status: watch::Sender::new(status), meter, cancel, lease: None };
            let state = (&store.state, store.clock);
            let outcome = window::resume(&handle, &request, window, (lines, ends), moved, state, links).await;
            readers.iter().for_each(tokio::task::JoinHandle::abort);
            server_lock.end(outcome.may_be_open()).await;
            result_of(outcome, &request)
        }
        OpenMethod::Nsys { .. } => {
            let output = nsys::output_of(store, &window.incident, record.incident.window()).await;
            let result = nsys::close(&handle.nsys, &window, &output, store.clock.now(), &cancel).await;
            with_scratched(store, result, record).await
        }
        OpenMethod::Command { group } => {
            let result = command::close(&window, group).await;
            with_scratched(store, result, record).await
        }
    }
}

/// What the dead agent's window had written so far is kept with the rest.
async fn with_scratched(store: &CaptureStore, mut result: CaptureResult, record: &Record) -> CaptureResult {
    let known: Vec<String> = result.artifacts.iter().map(|a| a.path.clone()).collect();
    let (bundles, incident) = (store.bundles.clone(), record.incident.id.clone());
    let window = record.incident.window();
    let read = crate::world::blocking(move || -> Vec<_> {
        let files = bundles.scratched(&incident, window).into_iter();
        let new = files.filter(|f| !known.iter().any(|k| Path::new(k) == f));
        new.filter_map(|f| inspect(&f, ServerKind::Sglang).ok()).collect()
    });
    // A read that panics leaves them to go into the bundle unlisted.
    result.artifacts.extend(read.await.unwrap_or_default());
    result
}

type Lines = Vec<(skewtrap_trace::rank::Rank, skewtrap_core::capture::line::ProfileLine)>;

/// The last lines about profiling of a log behind its byte `from`, and where it ends; nothing where it cannot
/// be read. What stands before was written before the window, and is of older ones.
async fn since(log: &Path, from: Option<u64>) -> (Lines, u64) {
    profile_lines::recent(log, from).await.unwrap_or_else(|error| {
        warn!(log = %log.display(), %error, "the log cannot be read for what became of a window");
        Default::default()
    })
}
