//! Probes one server in the background, so that at the moment of firing everything is known already: its
//! health and the room on its disks every ten seconds, and, whenever it starts to answer and every five
//! minutes, what it is.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::AgentEvent;
use super::plan::{PROBE_EVERY, TargetPlan};
use crate::clock::Clock;
use crate::observe::{artifact, server};
use skewtrap_core::capture::facts::{Folder, HealthAnswer, Room};
use skewtrap_core::watch::ServerFact;

/// Until the server has answered once it is probed more often.
const FIRST: Duration = Duration::from_secs(2);

/// What a server says of itself is asked again after so long: one that is started anew within a second may
/// answer every poll.
const KNOWN_FOR: Duration = Duration::from_secs(300);

/// What was seen of a folder serves all servers' probes for so long.
const SEEN_FOR: Duration = Duration::from_secs(5);

/// The room in folders, which servers mostly share: each is looked at once for all of them, so that a disk
/// that hangs holds one thread.
#[derive(Clone, Debug, Default)]
pub struct Rooms(Arc<Mutex<BTreeMap<PathBuf, (Instant, Option<Room>)>>>);

impl Rooms {
    async fn of(&self, folder: PathBuf) -> Option<Room> {
        let mut known = self.0.lock().await;
        if let Some((at, room)) = known.get(&folder)
            && at.elapsed() < SEEN_FOR
        {
            return *room;
        }
        let ours = folder.clone();
        // A disk that hangs must not keep the loop.
        let room = crate::world::blocking(move || artifact::room(&ours)).await.unwrap_or_default();
        known.insert(folder, (Instant::now(), room));
        room
    }
}

/// Probes until cancelled; it is finished for good then. When a source reports through `lost` that nobody
/// answered it, the server is asked again what it is, and until it has said so nothing is known of it.
pub async fn run(
    target: TargetPlan,
    tx: mpsc::Sender<AgentEvent>,
    clock: Clock,
    rooms: Rooms,
    lost: Arc<Notify>,
    cancel: CancellationToken,
) -> bool {
    let Some(address) = target.server.clone() else { return true };
    let mut is_known = false;
    let mut asked_at = Instant::now();
    let mut warned: Option<String> = None;
    loop {
        for (server_path, ours) in target.folders() {
            let seen = rooms.of(ours).await;
            send(&tx, &target, ServerFact::Folder(Folder { server_path, seen, at: clock.now() })).await;
        }
        let health = server::health_now_and_then(&address).await;
        // Only a refused connection shows that it is gone: a server that exports a trace does not answer
        // either.
        let is_gone = health == server::Health::ConnectionRefused;
        let health = health.answered();
        let is_well = matches!(health, HealthAnswer::Healthy(_));
        if is_gone {
            send(&tx, &target, ServerFact::Lost).await;
        }
        // Whatever the reason for its silence, it may be another server when it is back.
        is_known &= is_well;
        send(&tx, &target, ServerFact::Health(health)).await;
        if is_well && (!is_known || asked_at.elapsed() >= KNOWN_FOR) {
            match server::facts(&address, 1).await {
                Ok(facts) => {
                    is_known = true;
                    asked_at = Instant::now();
                    let contradiction = target.engine.contradicted_by(facts.engine);
                    if let Some(why) = contradiction.as_ref().filter(|_| warned != contradiction) {
                        tracing::warn!(target = &*target.name, "{why}");
                    }
                    warned = contradiction;
                    send(&tx, &target, ServerFact::Info(facts)).await;
                }
                Err(error) => {
                    let message = error.to_string();
                    if warned.as_ref() != Some(&message) {
                        tracing::warn!(target = &*target.name, "{message}");
                        warned = Some(message);
                    }
                }
            }
        }
        let pause = clock.real(if is_known { PROBE_EVERY } else { FIRST });
        tokio::select! {
            () = cancel.cancelled() => return true,
            () = tokio::time::sleep(pause) => {}
            // A poll found nobody there: whoever answers next may be another instance.
            () = lost.notified() => is_known = false,
        }
    }
}

async fn send(tx: &mpsc::Sender<AgentEvent>, target: &TargetPlan, fact: ServerFact) {
    // The loop is gone only when the agent ends.
    let _ = tx.send(AgentEvent::Server { target: target.target, fact }).await;
}
