//! Messages on their way from the loop to the delivery workers: a message's row is in the outbox before a
//! worker has it, or a kill in between would lose it or send it twice. Only while the disk of the state
//! hangs is a message handed over without its row, after a bounded wait, and counted.
//!
//! The state's writer thread hands over what it has written, so the loop waits for no disk.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::act::notify::{Delivery, DeliveryReport};
use crate::act::state::{OutboxRow, State, StateError};

/// How long a message waits for its row. A disk takes milliseconds; one that takes this long hangs, and
/// people must be told all the same.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// Hands a message to the worker of its receiver.
type HandOver = Box<dyn Fn(Delivery) + Send + Sync>;

/// Messages whose rows are being written. Clones share them.
#[derive(Clone)]
pub(super) struct Outgoing(Arc<Inner>);

struct Inner {
    hand_over: HandOver,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    /// In the order of their posting.
    batches: VecDeque<Batch>,
    /// Keys of messages whose end is known but not yet on the disk.
    ended: BTreeSet<Arc<str>>,
    /// Incidents with a message whose row could not be written.
    unwritten: BTreeSet<Arc<str>>,
    /// Messages that were handed over without a row.
    without_row: u64,
}

struct Batch {
    number: u64,
    since: Instant,
    deliveries: Vec<Delivery>,
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing").field("waiting", &self.0.lock().batches.len()).finish_non_exhaustive()
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        crate::world::lock(&self.waiting)
    }

    /// Hands over the batches at the front that `is_next` allows, under the lock: the messages of one
    /// incident must stay in their order, whoever hands them over.
    fn hand_over(&self, keeps_row: bool, is_next: impl Fn(&Batch) -> bool) {
        let mut waiting = self.lock();
        while let Some(batch) = waiting.batches.pop_front_if(|batch| is_next(batch)) {
            if !keeps_row {
                waiting.without_row += batch.deliveries.len() as u64;
            }
            batch.deliveries.into_iter().for_each(&self.hand_over);
        }
    }
}

impl Outgoing {
    pub(super) fn new(hand_over: impl Fn(Delivery) + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner { hand_over: Box::new(hand_over), waiting: Mutex::default() }))
    }

    /// Has rows written for these messages, and then the messages handed over.
    pub(super) fn post(&self, state: &State, deliveries: Vec<Delivery>, now: Instant) {
        if !deliveries.is_empty() {
            self.post_after(state, deliveries, now, || ());
        }
    }

    /// The same; between the two, what else must be on a disk before anybody reads the messages is written.
    pub(super) fn post_after(
        &self,
        state: &State,
        deliveries: Vec<Delivery>,
        now: Instant,
        write: impl FnOnce() + Send + 'static,
    ) {
        let rows: Vec<OutboxRow> = deliveries.iter().map(OutboxRow::from).collect();
        let incidents: BTreeSet<_> =
            deliveries.iter().map(|delivery| delivery.message.incident.id.clone()).collect();
        let number = {
            let mut waiting = self.0.lock();
            let number = waiting.next;
            waiting.next += 1;
            waiting.batches.push_back(Batch { number, since: now, deliveries });
            number
        };
        let inner = self.0.clone();
        state.later(move |state| {
            let written = state.add_to_outbox(&rows);
            if written.is_err() {
                inner.lock().unwritten.extend(incidents);
            }
            write();
            // A full disk must not keep the message back either.
            inner.hand_over(written.is_ok(), |batch| batch.number <= number);
            written
        });
    }

    /// Notes that the messages about an incident's capture are in the outbox, unless they are not: then an
    /// agent after this one tells it again, which is better than that nobody ever does.
    pub(super) fn reported(&self, state: &State, incident: &Arc<str>) {
        let (inner, incident) = (self.0.clone(), incident.clone());
        state.later(move |state| match inner.lock().unwritten.remove(&incident) {
            true => Ok(()),
            false => state.reported(&incident),
        });
    }

    /// Hands over what has waited for its row too long.
    pub(super) fn hand_over_overdue(&self, now: Instant) {
        self.0.hand_over(false, |batch| now.saturating_duration_since(batch.since) >= PATIENCE);
    }

    /// Hands over everything: the agent ends, and the disk may never come back.
    pub(super) fn hand_over_all(&self) {
        self.0.hand_over(false, |_| true);
    }

    /// Whether messages wait for their rows.
    pub(super) fn is_waiting(&self) -> bool {
        !self.0.lock().batches.is_empty()
    }

    /// How many messages were handed over without a row so far: a kill may have lost or repeated them.
    pub(super) fn without_row(&self) -> u64 {
        self.0.lock().without_row
    }

    /// Has the end of an attempt written, with which its worker goes on to its next message: of each
    /// receiver's messages a kill can repeat one.
    pub(super) fn attempted(
        &self,
        state: &State,
        report: DeliveryReport,
        is_over: bool,
        write: impl FnOnce(&State) -> Result<(), StateError> + Send + 'static,
    ) {
        let key = report.outcome.key.clone();
        if is_over {
            self.0.lock().ended.insert(key.clone());
        }
        let inner = self.0.clone();
        state.later(move |state| {
            let written = write(state);
            if written.is_ok() {
                inner.lock().ended.remove(&key);
            }
            drop(report);
            written
        });
    }

    /// Offers the workers all that the outbox holds; they recognise what they have already.
    pub(super) fn offer_again(&self, state: &State) {
        let inner = self.0.clone();
        state.later(move |state| {
            for row in state.undelivered()? {
                let waiting = inner.lock();
                if !waiting.ended.contains(&row.key)
                    && let Ok(delivery) = Delivery::try_from(row)
                {
                    (inner.hand_over)(delivery);
                }
            }
            Ok(())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::act::notify::plan::delivery;
    use crate::act::notify::{DeliveryOutcome, DeliveryResult};
    use skewtrap_core::message::{Message, Origin, Update, sample};
    use skewtrap_trace::time::Time;
    use std::sync::mpsc::{Receiver, Sender, channel};

    const NOW: Time = Time::from_nanos(1_795_492_000_000_000_000);

    /// What is handed over, each with whether its row was in the outbox then, and the order of the keys.
    fn outgoing(state: &State) -> (Outgoing, Receiver<(Arc<str>, Option<bool>)>) {
        let (handed, hears) = channel();
        let (state, handed) = (state.clone(), Mutex::new(handed));
        let outgoing = Outgoing::new(move |delivery: Delivery| {
            let on_writer = std::thread::current().name() == Some("state");
            // Read on the writer's thread only: elsewhere it would wait for the disk that hangs.
            let has_row = on_writer
                .then(|| state.undelivered().expect("the outbox").iter().any(|row| row.key == delivery.key));
            handed.lock().expect("no panic").send((delivery.key, has_row)).expect("the test listens");
        });
        (outgoing, hears)
    }

    fn messages(updates: &[Update]) -> Vec<Delivery> {
        let of = |update: &Update| {
            delivery(&"oncall".into(), Message::of(&sample(NOW), *update, NOW, &Origin::default()), NOW)
        };
        updates.iter().map(of).collect()
    }

    /// Keeps the writer busy until something is sent, as a disk that hangs does.
    fn hang(state: &State) -> Sender<()> {
        let (go, waits) = channel();
        state.later(move |_| {
            let _ = waits.recv();
            Ok(())
        });
        go
    }

    #[test]
    fn a_message_is_handed_over_when_its_row_is_in_the_outbox_and_not_before() {
        let state = State::in_memory().expect("a state");
        let (outgoing, hears) = outgoing(&state);
        let (disk, now) = (hang(&state), Instant::now());
        outgoing.post(&state, messages(&[Update::Fired, Update::Resolved]), now);
        outgoing.hand_over_overdue(now + PATIENCE - Duration::from_millis(1));
        assert!(hears.try_recv().is_err() && outgoing.is_waiting(), "no row, so nothing is handed over");
        disk.send(()).expect("it waits");
        assert!(state.settle(PATIENCE));
        let handed: Vec<_> = hears.try_iter().collect();
        assert_eq!(handed.len(), 2);
        assert!(handed.iter().all(|(_, has_row)| *has_row == Some(true)), "{handed:?}");
        assert_eq!((outgoing.without_row(), outgoing.is_waiting()), (0, false));
    }

    #[test]
    fn what_must_be_written_first_is_written_after_the_row_and_before_the_message_leaves() {
        let state = State::in_memory().expect("a state");
        let (outgoing, hears) = outgoing(&state);
        let hears = Arc::new(Mutex::new(hears));
        let (its, theirs, (tell, told)) = (state.clone(), hears.clone(), channel());
        outgoing.post_after(&state, messages(&[Update::Resolved]), Instant::now(), move || {
            let rows = its.undelivered().expect("the outbox").len();
            let left = theirs.lock().expect("no panic").try_iter().count();
            tell.send((rows, left)).expect("the test listens");
        });
        assert!(state.settle(PATIENCE));
        assert_eq!(told.try_recv(), Ok((1, 0)));
        assert_eq!(hears.lock().expect("no panic").try_iter().count(), 1);
    }

    #[test]
    fn while_the_disk_hangs_messages_go_after_a_bounded_wait_in_their_order_once_and_are_counted() {
        let state = State::in_memory().expect("a state");
        let (outgoing, hears) = outgoing(&state);
        let (disk, now) = (hang(&state), Instant::now());
        let expected = messages(&[Update::Fired, Update::Captured, Update::Resolved]);
        let keys: Vec<Arc<str>> = expected.iter().map(|delivery| delivery.key.clone()).collect();
        for (n, delivery) in (0..).zip(expected) {
            outgoing.post(&state, vec![delivery], now + Duration::from_millis(n));
        }
        outgoing.hand_over_overdue(now + PATIENCE + Duration::from_millis(1));
        assert_eq!(hears.try_iter().map(|(key, _)| key).collect::<Vec<_>>(), keys[..2], "two are overdue");
        assert_eq!(outgoing.without_row(), 2);
        disk.send(()).expect("it waits");
        assert!(state.settle(PATIENCE));
        assert_eq!(hears.try_iter().collect::<Vec<_>>(), [(keys[2].clone(), Some(true))], "the third, once");
        assert_eq!(outgoing.without_row(), 2);
        assert_eq!(state.undelivered().expect("the outbox").len(), 3, "their rows are written late");
    }

    #[test]
    fn a_capture_whose_message_could_not_be_written_is_not_noted_as_reported() {
        let dir = tempfile::tempdir().expect("a folder");
        let state = State::open(dir.path()).expect("a state");
        let (outgoing, hears) = outgoing_blind();
        let incident = sample(NOW);
        let record = skewtrap_core::incident::Record::new("agent".into(), incident.clone());
        state.save_incident(&record).expect("written");
        let reported = || state.unfinished_incidents().expect("readable")[0].1;
        let other = rusqlite::Connection::open(dir.path().join("state.sqlite")).expect("the same database");
        other.execute_batch("ALTER TABLE outbox RENAME TO elsewhere").expect("renamed");
        outgoing.post(&state, messages(&[Update::Captured]), Instant::now());
        outgoing.reported(&state, &incident.id);
        assert!(state.settle(PATIENCE) && !reported(), "its row failed");
        assert_eq!((hears.try_iter().count(), outgoing.without_row()), (1, 1), "it is sent all the same");
        other.execute_batch("ALTER TABLE elsewhere RENAME TO outbox").expect("renamed");
        outgoing.post(&state, messages(&[Update::Captured]), Instant::now());
        outgoing.reported(&state, &incident.id);
        assert!(state.settle(PATIENCE) && reported());
    }

    /// What is handed over, whatever is in the outbox then.
    fn outgoing_blind() -> (Outgoing, Receiver<Arc<str>>) {
        let (handed, hears) = channel();
        let handed = Mutex::new(handed);
        let hand = move |delivery: Delivery| {
            handed.lock().expect("no panic").send(delivery.key).expect("the test listens");
        };
        (Outgoing::new(hand), hears)
    }

    #[test]
    fn what_is_delivered_is_not_offered_again_though_its_row_is_still_there() {
        let state = State::in_memory().expect("a state");
        let (outgoing, hears) = outgoing(&state);
        outgoing.post(&state, messages(&[Update::Fired, Update::Resolved]), Instant::now());
        assert!(state.settle(PATIENCE));
        let keys: Vec<Arc<str>> = hears.try_iter().map(|(key, _)| key).collect();
        let disk = hang(&state);
        outgoing.offer_again(&state);
        let (acknowledge, mut acknowledged) = tokio::sync::oneshot::channel();
        let (key, receiver, result) = (keys[0].clone(), "oncall".into(), DeliveryResult::Sent);
        let report = DeliveryReport {
            outcome: DeliveryOutcome { key: key.clone(), receiver, at: NOW, result },
            _acknowledge: acknowledge,
        };
        outgoing.attempted(&state, report, true, move |state| state.remove_from_outbox(&key));
        use tokio::sync::oneshot::error::TryRecvError::{Closed, Empty};
        assert_eq!(acknowledged.try_recv(), Err(Empty), "its end is not on the disk yet");
        disk.send(()).expect("it waits");
        assert!(state.settle(PATIENCE));
        assert_eq!(hears.try_iter().map(|(key, _)| key).collect::<Vec<_>>(), keys[1..]);
        assert_eq!(acknowledged.try_recv(), Err(Closed), "the worker goes on");
        assert_eq!(state.undelivered().expect("the outbox").len(), 1);
    }
}
