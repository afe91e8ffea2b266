//! What the loop publishes, and how the handlers ask for it.
//!
//! Whether the loop lives and which servers have given no sample is published every second: it is small.
//! Everything else grows with the servers and is built only when somebody asks, and then serves all who ask
//! within a second.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use skewtrap_core::status::{History, Status};
use skewtrap_trace::time::Time;

/// What was built serves whoever asks so soon after.
pub const FRESH: Duration = Duration::from_secs(1);
/// How long a handler waits for the loop; then it shows what was built last.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is published whether anybody asks or not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pulse {
    /// When the loop was last seen to live.
    pub at: Time,
    /// The servers that have given no sample yet.
    pub unheard: Arc<[Arc<str>]>,
}

/// The loop's end: it is told when something is wanted, and publishes it.
#[derive(Debug)]
pub struct Publisher {
    pulse: watch::Sender<Pulse>,
    status: Board<Arc<Status>>,
    history: Board<Arc<Vec<History>>>,
}

/// The handlers' end.
#[derive(Clone, Debug)]
pub struct Published {
    pulse: watch::Receiver<Pulse>,
    status: Reader<Arc<Status>>,
    history: Reader<Arc<Vec<History>>>,
}

/// What somebody asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// [`Publisher::publish`] is due.
    Status,
    /// [`Publisher::publish_history`] is due.
    History,
}

/// A publisher of which nobody has asked anything, and its readers' end.
pub fn publisher(pulse: Pulse) -> (Publisher, Published) {
    let (pulse, seen) = watch::channel(pulse);
    let ((status, statuses), (history, histories)) = (board(), board());
    (Publisher { pulse, status, history }, Published { pulse: seen, status: statuses, history: histories })
}

impl Publisher {
    /// Waits until somebody asks for something that is older than [`FRESH`].
    pub async fn wanted(&self) -> Wanted {
        tokio::select! {
            () = self.status.wanted() => Wanted::Status,
            () = self.history.wanted() => Wanted::History,
        }
    }

    /// The loop lives.
    pub fn beat(&self, pulse: Pulse) {
        self.pulse.send_replace(pulse);
    }

    /// Gives the status to all who wait for it.
    pub fn publish(&self, status: Status) {
        self.status.publish(Arc::new(status), Some(FRESH));
    }

    /// Gives the history to all who wait for it.
    pub fn publish_history(&self, history: Vec<History>) {
        self.history.publish(Arc::new(history), Some(FRESH));
    }

    /// Publishes a status that stands until it is replaced, for what has no loop: the pulse and the
    /// history are those of the status.
    pub fn stand(&self, status: Status) {
        let is_unheard =
            |t: &&skewtrap_core::status::TargetStatus| t.sources.iter().all(|s| s.last.is_none());
        let unheard = status.targets.iter().filter(is_unheard).map(|t| t.name.clone()).collect();
        self.beat(Pulse { at: status.at, unheard });
        self.history.publish(Arc::new(status.history.clone()), None);
        self.status.publish(Arc::new(status), None);
    }
}

impl Published {
    /// Whether the loop lives, and what has no sample.
    pub fn pulse(&self) -> Pulse {
        self.pulse.borrow().clone()
    }

    /// The status, at most [`FRESH`] old unless the loop hangs.
    pub async fn status(&self) -> Arc<Status> {
        self.status.read().await
    }

    /// The last minutes of what the page draws, at most [`FRESH`] old unless the loop hangs.
    pub async fn history(&self) -> Arc<Vec<History>> {
        self.history.read().await
    }
}

/// Something that is built when it is asked for.
#[derive(Debug)]
struct Board<T> {
    latest: watch::Sender<Edition<T>>,
    asked: Arc<Notify>,
}

#[derive(Clone, Debug)]
struct Reader<T> {
    latest: watch::Receiver<Edition<T>>,
    asked: Arc<Notify>,
}

#[derive(Debug)]
struct Edition<T> {
    content: T,
    /// `None`: it stands until it is replaced.
    until: Option<Instant>,
}

impl<T> Edition<T> {
    fn is_fresh(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() < until)
    }
}

fn board<T: Default>() -> (Board<T>, Reader<T>) {
    let nothing = Edition { content: T::default(), until: Some(Instant::now()) };
    let (latest, seen) = watch::channel(nothing);
    let asked = Arc::new(Notify::new());
    (Board { latest, asked: asked.clone() }, Reader { latest: seen, asked })
}

impl<T> Board<T> {
    async fn wanted(&self) {
        loop {
            self.asked.notified().await;
            // Several may have asked while it was built for the first of them.
            if !self.latest.borrow().is_fresh() {
                return;
            }
        }
    }

    fn publish(&self, content: T, fresh: Option<Duration>) {
        self.latest.send_replace(Edition { content, until: fresh.map(|d| Instant::now() + d) });
    }
}

impl<T: Clone> Reader<T> {
    async fn read(&self) -> T {
        let mut latest = self.latest.clone();
        {
            let edition = latest.borrow_and_update();
            if edition.is_fresh() {
                return edition.content.clone();
            }
        }
        self.asked.notify_one();
        // A loop that hangs or has ended: what was built last is shown, and says when it was true.
        let _ = timeout(PATIENCE, latest.changed()).await;
        latest.borrow().content.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A loop that numbers what it builds in the status's version.
    fn building(publisher: Publisher) -> Arc<AtomicU32> {
        let built = Arc::new(AtomicU32::new(0));
        let count = built.clone();
        tokio::spawn(async move {
            loop {
                match publisher.wanted().await {
                    Wanted::Status => {
                        let number = count.fetch_add(1, Ordering::Relaxed) + 1;
                        publisher.publish(Status { version: number.to_string().into(), ..Status::default() });
                    }
                    Wanted::History => publisher.publish_history(Vec::new()),
                }
            }
        });
        built
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_built_until_somebody_asks_and_then_once_a_second_for_all() {
        let (publisher, published) = publisher(Pulse::default());
        let built = building(publisher);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(built.load(Ordering::Relaxed), 0, "nobody has asked");
        for second in 1..=3 {
            let asking = (0..50).map(|_| {
                let published = published.clone();
                tokio::spawn(async move { published.status().await.version.to_string() })
            });
            for asked in asking.collect::<Vec<_>>() {
                assert_eq!(asked.await.expect("an answer"), second.to_string());
            }
            assert_eq!(built.load(Ordering::Relaxed), second);
            tokio::time::sleep(FRESH).await;
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(built.load(Ordering::Relaxed), 3, "nobody has asked again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_hangs_holds_nobody_up_for_long() {
        let (publisher, published) = publisher(Pulse::default());
        publisher.publish(Status { version: "old".into(), ..Status::default() });
        tokio::time::sleep(Duration::from_secs(5)).await;
        let asked = Instant::now();
        assert_eq!(&*published.status().await.version, "old");
        assert!(asked.elapsed() <= PATIENCE + Duration::from_millis(10), "{:?}", asked.elapsed());
    }
}
