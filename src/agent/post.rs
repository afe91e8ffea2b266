//! The way of a message: planned, written to the outbox, handed to a courier, crossed out when it
//! was taken. What was not delivered before a crash goes out after it, the same bytes.

use tokio::sync::mpsc;

use super::clock::Clock;
use super::supervise::Supervisor;
use crate::act::notify::courier::{Couriers, couriers};
use crate::act::notify::{Attempt, Delivery, Outcome, Planner, Receiver, StormCap};
use crate::act::state::{Parcel, State};
use crate::decide::incident::Incident;
use crate::explain::message::{Origin, Update};

/// Sends messages.
#[derive(Debug)]
pub struct Post {
    planner: Planner,
    couriers: Couriers,
    state: State,
}

impl Post {
    /// Starts a courier for each receiver, and gives them what was left undelivered.
    pub fn start(
        receivers: Vec<Receiver>,
        cap: StormCap,
        origin: Origin,
        client: &reqwest::Client,
        state: State,
        clock: Clock,
        supervisor: &Supervisor,
        outcomes: &mpsc::Sender<Outcome>,
    ) -> Self {
        let planner = Planner::new(&receivers, cap, origin);
        let now: crate::act::notify::courier::Now = std::sync::Arc::new(move || clock.now());
        let (couriers, all) = couriers(receivers, client, &now, outcomes);
        for courier in all {
            supervisor.keep("courier", move || {
                let courier = courier.clone();
                async move { courier.run().await }
            });
        }
        let post = Self { planner, couriers, state };
        post.offer_again();
        post
    }

    /// Tells whoever is to hear of it.
    pub fn tell(&mut self, incident: &Incident, update: Update, named: &[std::sync::Arc<str>], clock: Clock) {
        let deliveries = self.planner.plan(incident, update, named, clock.now());
        let parcels: Vec<Parcel> = deliveries.iter().map(Parcel::from).collect();
        if let Err(error) = self.state.post(&parcels) {
            tracing::error!("{error}; the messages go out, but would not survive a crash");
        }
        for delivery in deliveries {
            // One whose queue is full stays in the outbox and is offered again.
            let _ = self.couriers.hand_over(delivery);
        }
    }

    /// What came of an attempt.
    pub fn delivered(&self, outcome: &Outcome) {
        let written = match &outcome.result {
            Attempt::Sent => self.state.delivered(&outcome.key),
            Attempt::GivenUp { why } => {
                tracing::warn!(receiver = &*outcome.receiver, message = &*outcome.key, "given up: {why}");
                self.state.delivered(&outcome.key)
            }
            Attempt::Again { attempts, due, why } => {
                if *attempts == 1 {
                    tracing::warn!(receiver = &*outcome.receiver, "not delivered, tried again: {why}");
                }
                self.state.again(&outcome.key, *attempts, *due)
            }
        };
        if let Err(error) = written {
            tracing::error!("{error}");
        }
    }

    /// Offers the couriers what the outbox holds; what they have already they know.
    pub fn offer_again(&self) {
        match self.state.undelivered() {
            Ok(parcels) => {
                for parcel in parcels {
                    if let Ok(delivery) = Delivery::try_from(parcel) {
                        let _ = self.couriers.hand_over(delivery);
                    }
                }
            }
            Err(error) => tracing::error!("{error}"),
        }
    }
}
