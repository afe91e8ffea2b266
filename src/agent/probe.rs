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

/// How long a disk may take to answer, before the probing goes on without it.
const LOOK_LIMIT: Duration = Duration::from_secs(2);

/// What is told of a folder whose disk has not answered: no window opens.
const UNANSWERED: Room = Room { exists: true, writable: false, free: 0 };

/// What was seen of a folder serves all servers' probes for so long.
const SEEN_FOR: Duration = Duration::from_secs(5);

/// The room in folders, which servers mostly share: each is looked at once for all of them, so that a disk
/// that hangs holds one thread, and keeps nobody from what is elsewhere.
#[derive(Clone, Debug, Default)]
pub struct Rooms(Arc<std::sync::Mutex<BTreeMap<PathBuf, LastLook>>>);

/// When a folder was looked at last, and what was seen. It is locked for as long as somebody looks.
type LastLook = Arc<Mutex<Option<(Instant, Option<Room>)>>>;

impl Rooms {
    /// `None` where the agent does not see the folder. One whose disk does not answer takes no files either.
    async fn of(&self, folder: PathBuf) -> Option<Room> {
        let last = crate::world::lock(&self.0).entry(folder.clone()).or_default().clone();
        let looking = async move {
            let mut last = last.lock_owned().await;
            if let Some((at, room)) = *last
                && at.elapsed() < SEEN_FOR
            {
                return room;
            }
            let look = move || {
                let room = artifact::room(&folder);
                // Also where nobody waits for it any more.
                *last = Some((Instant::now(), room));
                room
            };
            crate::world::blocking(look).await.unwrap_or_default()
        };
        tokio::time::timeout(LOOK_LIMIT, looking).await.unwrap_or(Some(UNANSWERED))
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
        let look = |ours| {
            let rooms = rooms.clone();
            tokio::spawn(async move { rooms.of(ours).await })
        };
        let looks: Vec<_> = target.folders().into_iter().map(|(path, ours)| (path, look(ours))).collect();
        for (server_path, look) in looks {
            let seen = look.await.unwrap_or_default();
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::world::stand_in::{self, Machine, Until};
    use skewtrap_trace::time::Time;

    /// A machine whose first look at a disk never comes back.
    #[derive(Default)]
    struct FirstHangs(AtomicUsize);

    impl Machine for FirstHangs {
        fn wall_time(&self) -> Time {
            Time::default()
        }

        fn disk(&self) -> Until {
            match self.0.fetch_add(1, Ordering::Relaxed) {
                0 => Box::pin(std::future::pending()),
                _ => Box::pin(std::future::ready(())),
            }
        }

        fn worked(&self) -> Until {
            Box::pin(std::future::ready(()))
        }

        fn disk_fails(&self) -> bool {
            false
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_hangs_is_looked_at_once_and_keeps_no_other_from_being_looked_at() {
        let machine = Arc::new(FirstHangs::default());
        stand_in::set(Some(machine.clone()));
        let (rooms, dir) = (Rooms::default(), tempfile::tempdir().expect("a folder"));
        let hung = tokio::spawn({
            let rooms = rooms.clone();
            async move { rooms.of("/hangs".into()).await }
        });
        tokio::task::yield_now().await;
        let limit = Duration::from_secs(10);
        let seen = tokio::time::timeout(limit, rooms.of(dir.path().to_owned())).await;
        assert!(seen.expect("it waits for no other disk").is_some());
        assert_eq!(
            tokio::time::timeout(limit, hung).await.expect("in time").expect("it ends"),
            Some(UNANSWERED)
        );
        let again = tokio::time::timeout(limit, rooms.of("/hangs".into())).await;
        assert_eq!(again.expect("in time"), Some(UNANSWERED), "as far as anybody knows");
        assert_eq!(machine.0.load(Ordering::Relaxed), 2, "no second thread waits for it");
        stand_in::set(None);
    }
}
