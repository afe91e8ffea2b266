//! Looks after one server in the background, so that at the moment of firing only memory is asked:
//! its health and the room on its disks every ten seconds, what it is when it is (back) there.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::AgentEvent;
use super::clock::Clock;
use super::plan::{LOOK_AFTER, SitePlan};
use crate::observe::{artifact, server};
use skewtrap_core::capture::facts::{Answered, Folder};
use skewtrap_core::watch::ServerFact;

/// Until the server has answered once it is asked more often.
const FIRST: Duration = Duration::from_secs(2);

/// Looks until cancelled; it is finished for good then.
pub async fn run(
    site: SitePlan,
    tx: mpsc::Sender<AgentEvent>,
    clock: Clock,
    cancel: CancellationToken,
) -> bool {
    let Some(asked) = site.server.clone() else { return true };
    let mut is_known = false;
    let mut told: Option<String> = None;
    loop {
        for (server_path, ours) in site.folders() {
            // A disk that hangs must not keep the loop.
            let room = tokio::task::spawn_blocking(move || artifact::room(&ours)).await;
            let seen = room.unwrap_or_default();
            tell(&tx, &site, ServerFact::Folder(Folder { server_path, seen, at: clock.now() })).await;
        }
        let health = server::health(&asked).await;
        // Only where nobody listens is it gone: a server that exports a trace does not answer either.
        let is_gone = health == server::Health::NobodyListens;
        let health = health.answered();
        let is_well = matches!(health, Answered::Well(_));
        if is_gone && is_known {
            tell(&tx, &site, ServerFact::Lost).await;
        }
        // Whatever kept it from answering, it may be another one when it is back.
        is_known &= is_well;
        tell(&tx, &site, ServerFact::Health(health)).await;
        if !is_known && is_well {
            match server::facts(&asked, 1).await {
                Ok(facts) => {
                    is_known = true;
                    told = None;
                    tell(&tx, &site, ServerFact::Info(facts)).await;
                }
                Err(error) => {
                    let said = error.to_string();
                    if told.as_ref() != Some(&said) {
                        tracing::warn!(target = &*site.name, "{said}");
                        told = Some(said);
                    }
                }
            }
        }
        let pause = clock.real(if is_known { LOOK_AFTER } else { FIRST });
        tokio::select! {
            () = cancel.cancelled() => return true,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn tell(tx: &mpsc::Sender<AgentEvent>, site: &SitePlan, fact: ServerFact) {
    // The loop is gone only when the agent ends.
    let _ = tx.send(AgentEvent::Server { target: site.target, fact }).await;
}
