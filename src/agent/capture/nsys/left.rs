//! Closes what an agent before this one left collecting, and nothing of anybody else's.
//!
//! The list of sessions shows that one collects, not who started it: a name, an id and a state are the same
//! whoever started it, and our `-o` shows in a report only once it is there. What proves a collection ours is
//! when it began ([`owner_of`]): the session was ready when its state was read, just before our start was sent.
//! Where that can be read, it decides at once, however long ago it was. Where it cannot, a collection that
//! was seen to begin is ours; one that was not is taken for ours for ten minutes, and afterwards left to
//! people, to whom it is reported.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{AGAIN, Collection, SessionState, report, stop_session, wait_for};
use crate::act::nsys::Nsys;
use crate::act::state::{OpenMethod, WindowRow};
use crate::agent::capture::CaptureResult;
use crate::observe::process::{collecting_since, runs_with};
use skewtrap_core::capture::captured::CaptureKind;
use skewtrap_core::capture::nsys::{CollectionOwner, LONGEST_START, Readiness, generated, owner_of};
use skewtrap_core::capture::window::EXPORT_LIMIT;
use skewtrap_trace::time::Time;

/// A start whose agent died may show in the state only after this.
const LATE: Duration = Duration::from_secs(3);
/// A collection whose begin is unknown is taken for ours when our start was sent no longer ago than
/// this: the session was ready a moment before that.
const OURS: Duration = Duration::from_secs(600);

/// Stops the collection of `window`, if its session still collects and it is ours. `output` is what
/// its start was given.
pub async fn close(
    nsys: &Nsys,
    window: &WindowRow,
    output: &Path,
    now: Time,
    cancel: &CancellationToken,
) -> CaptureResult {
    let mut result =
        CaptureResult { means: CaptureKind::Nsys, sent_at: window.sent_at, ..CaptureResult::default() };
    let OpenMethod::Nsys { session, name } = &window.method else { return result };
    let died = "the agent died during this window";
    let age = now.since(window.sent_at);
    let collection = Collection { session, name, sent_at: window.sent_at };
    // Without a session nothing was started yet.
    let seen = match (session.is_empty(), window.granted) {
        (true, _) => SessionState::Absent,
        (false, true) => wait_for(nsys, session, Duration::ZERO, |_| true).await,
        (false, false) => {
            started(output).await;
            wait_for(nsys, session, LATE, |s| s.is(Readiness::Collecting)).await
        }
    };
    let seen = match seen {
        SessionState::Unread(why) => match read_again(nsys, session, why, cancel).await {
            Some(seen) => seen,
            None => {
                result.left_open = true;
                return result;
            }
        },
        seen => seen,
    };
    let seen = match seen {
        // Its stop was sent, and the report is being generated.
        SessionState::Is(Readiness::Busy) => {
            wait_for(nsys, session, EXPORT_LIMIT, |s| !s.is(Readiness::Busy)).await
        }
        other => other,
    };
    let began = if seen.is(Readiness::Collecting) { began(name).await } else { None };
    match (seen, owner_of(began, window.sent_at)) {
        (SessionState::Is(Readiness::Collecting), CollectionOwner::Theirs) => {
            let since = began.map(|at| format!(" since {at}")).unwrap_or_default();
            let why = format!(
                "{died}; its session {name} collects{since}, which is not when this window was started: that is another client's, and is left alone"
            );
            // A start whose effect was not observed may still be on its way.
            result.unproven = (!window.granted).then(|| why.clone());
            result.failure = Some(why);
        }
        (SessionState::Is(Readiness::Collecting), CollectionOwner::Ours) => {
            stop(nsys, &collection, now, cancel, &mut result).await
        }
        (SessionState::Is(Readiness::Collecting), CollectionOwner::Unknown)
            if window.granted || age < OURS =>
        {
            stop(nsys, &collection, now, cancel, &mut result).await
        }
        (SessionState::Is(Readiness::Collecting), CollectionOwner::Unknown) => {
            let why = format!(
                "{died}, just as it started nsys session {name}, and something has collected there since: if it is not in use, stop it with nsys stop --session={session}"
            );
            result.unproven = Some(why.clone());
            result.failure = Some(why);
        }
        (SessionState::Unread(why), _) => {
            let why =
                format!("{died}, and whether nsys session {name} still collects cannot be read ({why})");
            result.unproven = Some(why.clone());
            result.failure = Some(why);
        }
        (SessionState::Is(_) | SessionState::Absent, _) => {
            result.failure = Some(format!("{died}; its session collects no more"))
        }
    }
    result
}

/// The state of a session of which there was no list: whatever killed the agent before may be over in a
/// moment, and nobody else would stop what it left. Asked for as long as a stop is tried; `None`: this agent
/// ends before, and the next one asks.
async fn read_again(
    nsys: &Nsys,
    session: &str,
    why: String,
    cancel: &CancellationToken,
) -> Option<SessionState> {
    let until = tokio::time::Instant::now() + EXPORT_LIMIT;
    warn!(
        "whether nsys session {session} still collects cannot be read yet ({why}); it is tried again every {} s",
        AGAIN.as_secs()
    );
    loop {
        tokio::select! {
            () = tokio::time::sleep(AGAIN) => {}
            () = cancel.cancelled() => return None,
        }
        let seen = wait_for(nsys, session, Duration::ZERO, |_| true).await;
        if !matches!(seen, SessionState::Unread(_)) || tokio::time::Instant::now() >= until {
            return Some(seen);
        }
    }
}

/// Waits for a start whose agent died: it outlives that agent and may take effect at any time.
async fn started(output: &Path) {
    let (word, until) = (output.display().to_string(), tokio::time::Instant::now() + LONGEST_START);
    loop {
        let word = word.clone();
        let runs = crate::world::blocking(move || runs_with(&word)).await;
        if !runs.unwrap_or(false) || tokio::time::Instant::now() >= until {
            return;
        }
        tokio::time::sleep(super::STATE_POLL).await;
    }
}

/// When the session's collection began, where that can be seen.
pub(super) async fn began(name: &str) -> Option<Time> {
    let name = name.to_owned();
    // All of /proc is walked.
    crate::world::blocking(move || collecting_since(&name)).await.ok().flatten()
}

async fn stop(
    nsys: &Nsys,
    collection: &Collection<'_>,
    now: Time,
    cancel: &CancellationToken,
    result: &mut CaptureResult,
) {
    let session = collection.session;
    let mut why = "the agent died during this window and stopped it when it was back".to_owned();
    match stop_session(nsys, collection, now, cancel).await {
        Ok((answer, exchange)) => {
            result.exchanges.push(exchange);
            match generated(&answer.out) {
                Some(path) => report::verify(&PathBuf::from(path), result).await,
                None => why = format!("{why}; nsys says: {}", answer.summary()),
            }
            if wait_for(nsys, session, super::BEGIN, |s| !s.is(Readiness::Collecting))
                .await
                .is(Readiness::Collecting)
            {
                result.unproven =
                    Some(format!("nsys was asked to stop session {session}, and it still collects"));
            }
        }
        Err(unsent) => {
            result.left_open = unsent.is_cancelled;
            result.unproven = (!unsent.is_over).then(|| unsent.why.clone());
            why = unsent.why;
        }
    }
    result.failure.get_or_insert(why);
}
