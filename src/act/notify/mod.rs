//! Tells people: which receivers a message goes to, and how it gets there however long they are down.
//!
//! [`plan::Planner`] turns an incident's update into [`Delivery`]s, one per receiver, which the
//! agent writes to its durable outbox before it hands them to a [`courier::DeliveryWorker`], one task per
//! receiver, so that a dead one delays nothing else. Every [`Outcome`] goes back to the outbox.
//! Secrets live in [`Secret`] and are printed nowhere, nor are addresses: Slack's is a secret.

pub mod courier;
pub mod plan;
pub mod retry;
pub mod send;
mod storm;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

pub use self::plan::{Planner, Route};
pub use self::storm::StormCap;
use crate::act::state::OutboxRow;
pub use crate::http::{Secret, client};
use skewtrap_core::message::Message;
use skewtrap_trace::time::Time;

/// Who is told.
#[derive(Clone, Debug)]
pub struct Receiver {
    /// Unique; rules name it.
    pub name: Arc<str>,
    /// How.
    pub means: Means,
    /// Which messages it takes.
    pub route: Route,
    /// How long one attempt may take.
    pub timeout: Duration,
}

impl Receiver {
    /// What one attempt may take unless the configuration says otherwise.
    pub const TIMEOUT: Duration = Duration::from_secs(10);

    /// A receiver of every message.
    pub fn new(name: &str, means: Means) -> Self {
        Self { name: name.into(), means, route: Route::default(), timeout: Self::TIMEOUT }
    }
}

/// How a receiver is told.
#[derive(Clone, Debug)]
pub enum Means {
    /// The JSON of docs/notifications.md, posted.
    Webhook {
        /// Where; it may carry a key, so it is a secret.
        url: Secret,
        /// Signs the body: `X-Skewtrap-Signature-256`.
        signing_key: Option<Secret>,
        /// `Authorization: Bearer ...`.
        bearer: Option<Secret>,
    },
    /// A Slack incoming webhook.
    Slack {
        /// Its address, which is its key.
        url: Secret,
    },
    /// Alertmanager's v2 API.
    Alertmanager {
        /// Its base address: `http://alertmanager:9093`.
        url: Secret,
        /// `Authorization: Bearer ...`.
        bearer: Option<Secret>,
    },
    /// A program, without a shell; it reads the JSON on standard input.
    Command {
        /// Program and arguments; `{incident}`, `{update}`, `{rule}` and `{target}` are replaced.
        argv: Vec<String>,
    },
    /// Standard output.
    Stdout {
        /// The JSON on one line instead of text.
        json: bool,
    },
}

impl Means {
    /// The word in the configuration: `webhook`.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Webhook { .. } => "webhook",
            Self::Slack { .. } => "slack",
            Self::Alertmanager { .. } => "alertmanager",
            Self::Command { .. } => "command",
            Self::Stdout { .. } => "stdout",
        }
    }
}

/// One message on its way to one receiver: a row of the outbox.
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
    /// How often it was tried.
    pub attempts: u32,
    /// What to say, as it was when it happened.
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

    /// Fails where another version of the agent left a body that this one does not understand.
    fn try_from(parcel: OutboxRow) -> Result<Self, Self::Error> {
        Ok(Self {
            message: serde_json::from_slice(&parcel.body)?,
            key: parcel.key,
            receiver: parcel.receiver,
            created: parcel.created,
            due: parcel.due,
            attempts: parcel.attempts,
        })
    }
}

/// What came of an attempt: what the outbox must learn.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The delivery's.
    pub key: Arc<str>,
    /// The receiver's name.
    pub receiver: Arc<str>,
    /// When the attempt ended.
    pub at: Time,
    /// How it ended.
    pub result: Attempt,
}

/// An outcome on its way to the outbox. The courier sends nothing more before this is dropped: a
/// kill then finds at most one message that was taken and is not crossed out yet.
#[derive(Debug)]
pub struct Report {
    /// What came of the attempt.
    pub outcome: Outcome,
    /// Tells the courier, by being dropped.
    _written: oneshot::Sender<()>,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// Delivered: the row can go.
    Sent,
    /// It will be tried again by itself; the row learns its new `attempts` and `due`.
    Again {
        /// How often it was tried by now.
        attempts: u32,
        /// When it is tried next.
        due: Time,
        /// A sentence.
        why: String,
    },
    /// It never will be: the row can go.
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
        let strange = OutboxRow { body: b"{}".to_vec(), ..OutboxRow::from(&delivery) };
        assert!(Delivery::try_from(strange).is_err());
    }
}
