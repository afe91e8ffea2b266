//! One task per receiver, which tries its deliveries until they are taken or too old.
//!
//! The messages of one incident go in their order, those of different incidents do not wait for
//! each other. A courier that dies in an attempt is started again by the supervisor and still has
//! its queue; what it has not delivered is in the outbox in any case.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc, oneshot};

use super::retry::{is_too_old, retry_at};
use super::send::{Failure, send};
use super::{Attempt, Delivery, Outcome, Receiver, Report};
use skewtrap_trace::time::Time;

/// Deliveries that may wait in memory for one receiver; the rest wait in the outbox.
const QUEUE: usize = 256;

/// The outbox is written within this, or the disk is in trouble that must not hold the post.
const WRITES: Duration = Duration::from_secs(5);

/// Where `now` comes from.
pub type Now = Arc<dyn Fn() -> Time + Send + Sync>;

/// Hands deliveries to the couriers.
#[derive(Clone, Debug)]
pub struct Couriers {
    inboxes: BTreeMap<Arc<str>, mpsc::Sender<Delivery>>,
}

impl Couriers {
    /// Hands a delivery over.
    ///
    /// # Errors
    /// The delivery itself, when its receiver does not exist any more or has too many waiting:
    /// it stays in the outbox, to be offered again.
    #[expect(clippy::result_large_err, reason = "the delivery is handed back, not an error's description")]
    pub fn hand_over(&self, delivery: Delivery) -> Result<(), Delivery> {
        match self.inboxes.get(&delivery.receiver) {
            Some(inbox) => inbox.try_send(delivery).map_err(|e| match e {
                mpsc::error::TrySendError::Full(d) | mpsc::error::TrySendError::Closed(d) => d,
            }),
            None => Err(delivery),
        }
    }

    /// Whether there is such a receiver.
    pub fn knows(&self, receiver: &str) -> bool {
        self.inboxes.contains_key(receiver)
    }
}

/// The couriers of these receivers, and the way to hand them deliveries. When every clone of the
/// [`Couriers`] is dropped, each courier tries what is due once more and ends.
pub fn couriers(
    receivers: Vec<Receiver>,
    client: &reqwest::Client,
    now: &Now,
    outcomes: &mpsc::Sender<Report>,
) -> (Couriers, Vec<DeliveryWorker>) {
    let mut inboxes = BTreeMap::new();
    let mut all = Vec::new();
    for receiver in receivers {
        let (inbox, incoming) = mpsc::channel(QUEUE);
        inboxes.insert(receiver.name.clone(), inbox);
        all.push(DeliveryWorker {
            receiver: Arc::new(receiver),
            client: client.clone(),
            now: now.clone(),
            outcomes: outcomes.clone(),
            desk: Arc::new(Mutex::new(Queue { incoming, queue: VecDeque::new(), open: true })),
        });
    }
    (Couriers { inboxes }, all)
}

/// Brings one receiver its messages.
#[derive(Clone)]
pub struct DeliveryWorker {
    receiver: Arc<Receiver>,
    client: reqwest::Client,
    now: Now,
    outcomes: mpsc::Sender<Report>,
    desk: Arc<Mutex<Queue>>,
}

/// What survives a courier that dies.
struct Queue {
    incoming: mpsc::Receiver<Delivery>,
    queue: VecDeque<Delivery>,
    open: bool,
}

impl fmt::Debug for DeliveryWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeliveryWorker").field("receiver", &self.receiver.name).finish_non_exhaustive()
    }
}

impl DeliveryWorker {
    /// The receiver's name.
    pub fn receiver(&self) -> Arc<str> {
        self.receiver.name.clone()
    }

    /// Delivers until nobody can hand over any more; then `true`: it is finished for good.
    pub async fn run(&self) -> bool {
        let mut desk = self.desk.lock().await;
        loop {
            let now = (self.now)();
            match next_of(&desk.queue) {
                Some((index, due)) if due <= now => self.attempt(&mut desk, index).await,
                next if desk.open => self.wait(&mut desk, next.map(|(_, due)| due.since(now))).await,
                // What is not due yet stays in the outbox for the next start.
                _ => return true,
            }
        }
    }

    async fn wait(&self, desk: &mut Queue, longest: Option<Duration>) {
        let timer = tokio::time::sleep(longest.unwrap_or(Duration::from_secs(3600)));
        tokio::select! {
            biased;
            delivery = desk.incoming.recv() => match delivery {
                Some(delivery) => desk.take(delivery),
                None => desk.open = false,
            },
            () = timer => {}
        }
    }

    /// Tries the delivery at `index`; it leaves the queue only with its outcome.
    async fn attempt(&self, desk: &mut Queue, index: usize) {
        let result = send(&self.client, &self.receiver, &desk.queue[index].message).await;
        let now = (self.now)();
        let delivery = &mut desk.queue[index];
        delivery.attempts += 1;
        let result = match result {
            Ok(()) => Attempt::Sent,
            Err(Failure::Never { why }) => Attempt::GivenUp { why },
            Err(Failure::Later { why, after }) => {
                delivery.due = retry_at(delivery.attempts, now).max(now + after.unwrap_or_default());
                if is_too_old(delivery.created, delivery.due) {
                    Attempt::GivenUp { why: format!("{why}; given up after {} attempts", delivery.attempts) }
                } else {
                    Attempt::Again { attempts: delivery.attempts, due: delivery.due, why }
                }
            }
        };
        let outcome =
            Outcome { key: delivery.key.clone(), receiver: self.receiver.name.clone(), at: now, result };
        if !matches!(outcome.result, Attempt::Again { .. }) {
            desk.queue.remove(index);
        }
        let key = outcome.key.clone();
        let (written, known) = oneshot::channel();
        // Nobody listens only when the agent is going away; the outbox then sends it again.
        let _ = self.outcomes.send(Report { outcome, _written: written }).await;
        // Dropped or out of time: either way the next one goes.
        let _ = tokio::time::timeout(WRITES, known).await;
        desk.catch_up(&key);
    }
}

impl Queue {
    /// What was offered while the message of `key` was on its way: it itself may be among it, and
    /// the outbox has learnt by now what became of it.
    fn catch_up(&mut self, key: &str) {
        while let Ok(delivery) = self.incoming.try_recv() {
            if *delivery.key != *key {
                self.take(delivery);
            }
        }
    }

    /// One that is queued already was offered again by the outbox's sweep.
    fn take(&mut self, delivery: Delivery) {
        if !self.queue.iter().any(|d| d.key == delivery.key) {
            self.queue.push_back(delivery);
        }
    }
}

/// The delivery to try next, and when: the first due among those that are the first of their incident.
fn next_of(queue: &VecDeque<Delivery>) -> Option<(usize, Time)> {
    let mut seen = BTreeSet::new();
    let firsts = queue.iter().enumerate().filter(|(_, d)| seen.insert(&*d.message.incident.id));
    firsts.map(|(index, d)| (index, d.due)).min_by_key(|&(_, due)| due)
}
