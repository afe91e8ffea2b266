//! Notifications: which receivers a message goes to, and its delivery however long they are down.
//!
//! [`plan::Planner`] turns an incident's update into [`Delivery`]s, one per receiver. The agent writes
//! them to its durable outbox before it hands them to a [`worker::DeliveryWorker`], one task per
//! receiver, so that a dead one delays nothing else. Every [`DeliveryOutcome`] goes back to the outbox.
//! Secrets are held in [`Secret`] and never printed. Neither are addresses: that of a Slack webhook is
//! a secret itself.

pub mod plan;
pub mod retry;
pub mod send;
mod storm;
pub mod worker;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

pub use self::plan::{Planner, Route};
pub use self::storm::StormCap;
use crate::act::state::OutboxRow;
use crate::http::Secret;
use skewtrap_core::message::Message;
use skewtrap_trace::time::Time;

/// Where messages go.
#[derive(Clone, Debug)]
pub struct Receiver {
    /// Unique; rules name it.
    pub name: Arc<str>,
    /// How it is reached.
    pub means: Transport,
    /// Which messages it takes.
    pub route: Route,
    /// How long one attempt may take.
    pub timeout: Duration,
}

impl Receiver {
    /// What one attempt may take unless the configuration says otherwise.
    pub const TIMEOUT: Duration = Duration::from_secs(10);

    /// A receiver of every message.
    pub fn new(name: &str, means: Transport) -> Self {
        Self { name: name.into(), means, route: Route::default(), timeout: Self::TIMEOUT }
    }
}

/// How a receiver is reached, with its addresses and keys in hand.
pub type Transport = crate::config::receiver::Transport<Secret, Secret>;

/// One message for one receiver: a row of the outbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Delivery {
    /// `RECEIVER/INCIDENT:UPDATE`: unique, so that nothing is sent twice on purpose.
    pub key: Arc<str>,
    /// The receiver's name.
    pub receiver: Arc<str>,
    /// When it was first due.
    pub created: Time,
    /// When to try (again).
    pub due: Time,
    /// How many attempts were made.
    pub attempts: u32,
    /// The message, as it was when the update happened.
    pub message: Message,
}

impl From<&Delivery> for OutboxRow {
    fn from(delivery: &Delivery) -> Self {
        Self {
            key: delivery.key.clone(),
            receiver: delivery.receiver.clone(),
            created: delivery.created,
            due: delivery.due,
            attempts: delivery.attempts,
            body: delivery.message.json().into_bytes(),
        }
    }
}

impl TryFrom<OutboxRow> for Delivery {
    type Error = serde_json::Error;

    /// Fails where another version of the agent wrote a body that this one does not understand.
    fn try_from(row: OutboxRow) -> Result<Self, Self::Error> {
        Ok(Self {
            message: serde_json::from_slice(&row.body)?,
            key: row.key,
            receiver: row.receiver,
            created: row.created,
            due: row.due,
            attempts: row.attempts,
        })
    }
}

/// An attempt that ended, as the outbox must record it.
#[derive(Clone, Debug, PartialEq)]
pub struct DeliveryOutcome {
    /// The delivery's.
    pub key: Arc<str>,
    /// The receiver's name.
    pub receiver: Arc<str>,
    /// When the attempt ended.
    pub at: Time,
    /// How it ended.
    pub result: DeliveryResult,
}

/// An outcome that is not in the outbox yet. The worker sends nothing more before this is dropped, so
/// that a kill leaves at most one message which was accepted and is still in the outbox.
#[derive(Debug)]
pub struct DeliveryReport {
    /// The attempt that ended.
    pub outcome: DeliveryOutcome,
    /// Lets the worker go on, by being dropped.
    pub(crate) _acknowledge: oneshot::Sender<()>,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeliveryResult {
    /// Delivered: the row can go.
    Sent,
    /// The worker tries again by itself; the row takes the new `attempts` and `due`.
    Retry {
        /// How many attempts were made so far.
        attempts: u32,
        /// When it is tried next.
        due: Time,
        /// A sentence.
        why: String,
    },
    /// It is not tried again: the row can go.
    GivenUp {
        /// A sentence.
        why: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use skewtrap_core::message::{Origin, Update, sample};

    #[test]
    fn a_delivery_comes_back_from_the_outbox_as_it_went_in() {
        let now = Time::from_epoch_s(1_795_492_126.1);
        let message = Message::of(&sample(now), Update::Verdict, now, &Origin::default());
        let delivery = plan::delivery(&"oncall".into(), message, now);
        assert_eq!(Delivery::try_from(OutboxRow::from(&delivery)).expect("it parses"), delivery);
        let unreadable = OutboxRow { body: b"{}".to_vec(), ..OutboxRow::from(&delivery) };
        assert!(Delivery::try_from(unreadable).is_err());
    }
}
