//! One task per receiver, which tries its deliveries until they are accepted or too old.
//!
//! The messages of one incident go in their order; those of different incidents do not wait for
//! each other. A worker that panics during an attempt is started again by the supervisor and still
//! has its queue; in any case, what it has not delivered is in the outbox.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc, oneshot};

use super::retry::{GIVE_UP_AFTER, is_too_old, retry_at, tried_at};
use super::send::{Failure, send};
use super::{Delivery, DeliveryOutcome, DeliveryReport, DeliveryResult, Receiver};
use skewtrap_trace::time::Time;

/// Deliveries that may wait in memory for one receiver; the rest wait in the outbox.
const QUEUE_CAPACITY: usize = 256;

/// How long a worker waits until an outcome is in the outbox. Past this the disk has a problem, which
/// must not stop the messages.
const OUTBOX_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a message is not sent that waited too long: in the outbox of an agent that was down, say.
const OLD_NEWS: &str = "it is more than a day old, and nobody acts on news of that age";

/// How long an empty queue sleeps before it looks at the clock again.
const IDLE: Duration = Duration::from_secs(3600);

/// Where `now` comes from.
pub type Now = Arc<dyn Fn() -> Time + Send + Sync>;

/// Hands deliveries to the workers.
#[derive(Clone, Debug)]
pub struct DeliveryQueues {
    by_receiver: BTreeMap<Arc<str>, mpsc::Sender<Delivery>>,
}

impl DeliveryQueues {
    /// Gives a delivery to its receiver's worker.
    ///
    /// # Errors
    /// The delivery itself, when its receiver does not exist any more or its queue is full: it stays
    /// in the outbox, to be offered again.
    #[expect(clippy::result_large_err, reason = "the delivery is handed back, not an error's description")]
    pub fn hand_over(&self, delivery: Delivery) -> Result<(), Delivery> {
        match self.by_receiver.get(&delivery.receiver) {
            Some(queue) => queue.try_send(delivery).map_err(|e| match e {
                mpsc::error::TrySendError::Full(d) | mpsc::error::TrySendError::Closed(d) => d,
            }),
            None => Err(delivery),
        }
    }
}

/// A worker for each of these receivers, and the queues that feed them. When every clone of the
/// [`DeliveryQueues`] is dropped, each worker tries what is due once more and ends.
pub fn workers(
    receivers: Vec<Receiver>,
    client: &reqwest::Client,
    now: &Now,
    outcomes: &mpsc::Sender<DeliveryReport>,
) -> (DeliveryQueues, Vec<DeliveryWorker>) {
    let mut by_receiver = BTreeMap::new();
    let mut workers = Vec::new();
    for receiver in receivers {
        let (sender, incoming) = mpsc::channel(QUEUE_CAPACITY);
        by_receiver.insert(receiver.name.clone(), sender);
        workers.push(DeliveryWorker {
            receiver: Arc::new(receiver),
            client: client.clone(),
            now: now.clone(),
            outcomes: outcomes.clone(),
            queue: Arc::new(Mutex::new(Queue { incoming, waiting: VecDeque::new(), is_open: true })),
        });
    }
    (DeliveryQueues { by_receiver }, workers)
}

/// Sends one receiver its messages.
#[derive(Clone)]
pub struct DeliveryWorker {
    receiver: Arc<Receiver>,
    client: reqwest::Client,
    now: Now,
    outcomes: mpsc::Sender<DeliveryReport>,
    queue: Arc<Mutex<Queue>>,
}

/// A receiver's deliveries. It survives a worker that panics.
struct Queue {
    incoming: mpsc::Receiver<Delivery>,
    waiting: VecDeque<Delivery>,
    /// Whether more may come in.
    is_open: bool,
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
        let mut queue = self.queue.lock().await;
        loop {
            let now = (self.now)();
            match next_of(&queue.waiting, now) {
                Some((index, due)) if due <= now => self.attempt(&mut queue, index).await,
                next if queue.is_open => self.wait(&mut queue, next.map(|(_, due)| due.since(now))).await,
                // What is not due yet stays in the outbox for the next start.
                _ => return true,
            }
        }
    }

    async fn wait(&self, queue: &mut Queue, longest: Option<Duration>) {
        let timer = tokio::time::sleep(longest.unwrap_or(IDLE));
        tokio::select! {
            biased;
            delivery = queue.incoming.recv() => match delivery {
                Some(delivery) => queue.add(delivery),
                None => queue.is_open = false,
            },
            () = timer => {}
        }
    }

    /// Tries the delivery at `index`; it leaves the queue only with its outcome.
    async fn attempt(&self, queue: &mut Queue, index: usize) {
        let waiting = &queue.waiting[index];
        let now = (self.now)();
        let result = match is_too_old(waiting.created, now) {
            true => Err(Failure::Never { why: OLD_NEWS.into() }),
            // For programs an id means one body, however often it is sent; they see its time.
            false if self.receiver.means.is_for_programs() => {
                send(&self.client, &self.receiver, &waiting.message).await
            }
            false => send(&self.client, &self.receiver, &waiting.message.sent_at(now)).await,
        };
        let now = (self.now)();
        let delivery = &mut queue.waiting[index];
        delivery.attempts += 1;
        let result = match result {
            Ok(()) => DeliveryResult::Sent,
            Err(Failure::Never { why }) => DeliveryResult::GivenUp { why },
            Err(Failure::Later { why, after }) => {
                let scheduled = retry_at(delivery.attempts, now, fastrand::f64());
                // A receiver that wants to be left alone until the message is old gets it at the last moment.
                let asked = now + after.unwrap_or_default().min(GIVE_UP_AFTER);
                delivery.due = scheduled.max(asked.min(delivery.created + GIVE_UP_AFTER));
                if is_too_old(delivery.created, delivery.due) {
                    let why = format!("{why}; given up after {} attempts", delivery.attempts);
                    DeliveryResult::GivenUp { why }
                } else {
                    DeliveryResult::Retry { attempts: delivery.attempts, due: delivery.due, why }
                }
            }
        };
        let outcome = DeliveryOutcome {
            key: delivery.key.clone(),
            receiver: self.receiver.name.clone(),
            at: now,
            result,
        };
        if !matches!(outcome.result, DeliveryResult::Retry { .. }) {
            queue.waiting.remove(index);
        }
        let key = outcome.key.clone();
        let (acknowledge, acknowledged) = oneshot::channel();
        // Nobody receives it only when the agent is stopping; the outbox then sends the message again.
        let _ = self.outcomes.send(DeliveryReport { outcome, _acknowledge: acknowledge }).await;
        // Whether the report was dropped or the time is up, the next delivery goes.
        let _ = tokio::time::timeout(OUTBOX_TIMEOUT, acknowledged).await;
        queue.drain_incoming(&key);
    }
}

impl Queue {
    /// Takes what was offered while the message with this key was being sent. The outbox may have
    /// offered that message itself again; it knows the outcome by now, so the copy is dropped.
    fn drain_incoming(&mut self, key: &str) {
        while let Ok(delivery) = self.incoming.try_recv() {
            if *delivery.key != *key {
                self.add(delivery);
            }
        }
    }

    /// The outbox offers all it has again and again, so a delivery may be queued already.
    fn add(&mut self, delivery: Delivery) {
        if !self.waiting.iter().any(|d| d.key == delivery.key) {
            self.waiting.push_back(delivery);
        }
    }
}

/// The delivery to try next, and when: the first due among those that are the first of their incident.
fn next_of(waiting: &VecDeque<Delivery>, now: Time) -> Option<(usize, Time)> {
    let mut incidents = BTreeSet::new();
    let firsts = waiting.iter().enumerate().filter(|(_, d)| incidents.insert(&*d.message.incident.id));
    firsts.map(|(index, d)| (index, tried_at(d.created, d.due, now))).min_by_key(|&(_, due)| due)
}
