//! Closes what an agent before this one left collecting.

use std::path::PathBuf;
use std::time::Duration;

use super::{Seen, report, wait_for};
use crate::act::nsys::Nsys;
use crate::act::state::{OpenMeans, OpenWindow};
use crate::agent::capture::Came;
use crate::decide::capture::nsys::{Readiness, generated};
use crate::decide::capture::window::EXPORT_LIMIT;
use crate::decide::time::Time;

/// A start whose agent died may show in the state only after this.
const LATE: Duration = Duration::from_secs(3);
/// A collection that was not seen to begin is taken for ours when its start was sent no longer ago:
/// the session was ready a moment before, and afterwards nobody looked.
const OURS: Duration = Duration::from_secs(600);

/// Stops the collection of `window`, if its session still collects and it is ours.
pub async fn close(nsys: &Nsys, window: &OpenWindow, now: Time) -> Came {
    let mut came = Came { means: "nsys", sent_at: window.sent_at, ..Came::default() };
    let OpenMeans::Nsys { session, name } = &window.means else { return came };
    let died = "the agent died during this window";
    let age = now.since(window.sent_at);
    // Without a session nothing was started yet.
    let seen = match (session.is_empty(), window.granted) {
        (true, _) => Seen::Absent,
        (false, true) => wait_for(nsys, session, Duration::ZERO, |_| true).await,
        (false, false) => wait_for(nsys, session, LATE, |s| s.is(Readiness::Collecting)).await,
    };
    let seen = match seen {
        // Its stop was sent, and the report is being generated.
        Seen::Is(Readiness::Busy) => wait_for(nsys, session, EXPORT_LIMIT, |s| !s.is(Readiness::Busy)).await,
        other => other,
    };
    match seen {
        Seen::Is(Readiness::Collecting) if window.granted || age < OURS => {
            stop(nsys, session, now, &mut came).await
        }
        Seen::Is(Readiness::Collecting) => {
            let why = format!(
                "{died}, just as it started nsys session {name}, and something has collected there since: if it is nobody's, stop it with nsys stop --session={session}"
            );
            came.unproven = Some(why.clone());
            came.failure = Some(why);
        }
        Seen::Unread(why) => {
            let why =
                format!("{died}, and whether nsys session {name} still collects cannot be read ({why})");
            came.unproven = Some(why.clone());
            came.failure = Some(why);
        }
        Seen::Is(_) | Seen::Absent => came.failure = Some(format!("{died}; its session collects no more")),
    }
    came
}

async fn stop(nsys: &Nsys, session: &str, now: Time, came: &mut Came) {
    let mut why = "the agent died during this window and stopped it when it was back".to_owned();
    match nsys.stop(session, now).await {
        Ok((said, exchange)) => {
            came.exchanges.push(exchange);
            match generated(&said.out) {
                Some(path) => report::verify(&PathBuf::from(path), came).await,
                None => why = format!("{why}; nsys says: {}", said.words()),
            }
            if wait_for(nsys, session, super::BEGIN, |s| !s.is(Readiness::Collecting))
                .await
                .is(Readiness::Collecting)
            {
                came.unproven =
                    Some(format!("nsys was told to stop session {session}, and it still collects"));
            }
        }
        Err(error) => {
            came.unproven = Some(error.to_string());
            why = error.to_string();
        }
    }
    came.failure.get_or_insert(why);
}
