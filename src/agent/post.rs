//! The way of a message: planned, written to the outbox, handed to a courier, crossed out when it
//! was taken. What was not delivered before a crash goes out after it, the same bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::clock::Clock;
use super::plan::Plan;
use super::receivers::Mute;
use super::supervise::Supervisor;
use crate::act::notify::courier::{Couriers, couriers};
use crate::act::notify::{Attempt, Delivery, Outcome, Planner, Receiver, Report};
use crate::act::state::{Parcel, State};
use crate::decide::incident::Incident;
use crate::decide::status::ReceiverStatus;
use crate::explain::message::{Origin, Update};

/// Sends messages.
#[derive(Debug)]
pub struct Post {
    planner: Planner,
    couriers: Couriers,
    state: State,
    standing: BTreeMap<Arc<str>, ReceiverStatus>,
}

impl Post {
    /// Starts a courier for each receiver, and gives them what was left undelivered.
    pub fn start(
        plan: &Plan,
        origin: Origin,
        client: &reqwest::Client,
        state: State,
        clock: Clock,
        supervisor: &Supervisor,
        outcomes: &mpsc::Sender<Report>,
    ) -> Self {
        let planner = Planner::new(&plan.receivers, plan.storm_cap, origin);
        let standing = standings(&plan.receivers, &plan.mute);
        let now: crate::act::notify::courier::Now = Arc::new(move || clock.now());
        let (couriers, all) = couriers(plan.receivers.clone(), client, &now, outcomes);
        for courier in all {
            let cancel = supervisor.cancel();
            supervisor.keep("courier", move || {
                let (courier, cancel) = (courier.clone(), cancel.clone());
                async move {
                    tokio::select! {
                        () = cancel.cancelled() => true,
                        done = courier.run() => done,
                    }
                }
            });
        }
        let mut post = Self { planner, couriers, state, standing };
        for parcel in post.offer_again() {
            post.waits(&parcel);
        }
        post
    }

    /// Tells whoever is to hear of it.
    pub fn tell(&mut self, incident: &Incident, update: Update, named: &[Arc<str>], clock: Clock) {
        if let Some(complaint) = self.planner.complaint(&incident.rule, named) {
            tracing::error!("{complaint}");
        }
        let deliveries = self.planner.plan(incident, update, named, clock.now());
        let parcels: Vec<Parcel> = deliveries.iter().map(Parcel::from).collect();
        if let Err(error) = self.state.post(&parcels) {
            tracing::error!("{error}; the messages go out, but would not survive a crash");
        }
        for delivery in deliveries {
            self.waits(&delivery.receiver);
            // One whose queue is full stays in the outbox and is offered again.
            let _ = self.couriers.hand_over(delivery);
        }
    }

    /// What came of an attempt: its courier goes on when the report is dropped here.
    pub fn delivered(&mut self, report: Report) {
        let outcome = &report.outcome;
        self.note(outcome);
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

    /// Offers the couriers what the outbox holds; what they have already they know. Whose it is.
    pub fn offer_again(&self) -> Vec<Arc<str>> {
        let parcels = self.state.undelivered().unwrap_or_else(|error| {
            tracing::error!("{error}");
            Vec::new()
        });
        let offered = parcels.into_iter().filter_map(|p| Delivery::try_from(p).ok()).map(|delivery| {
            let receiver = delivery.receiver.clone();
            let _ = self.couriers.hand_over(delivery);
            receiver
        });
        offered.collect()
    }

    /// How each receiver is, for the page and the metrics.
    pub fn standing(&self) -> Vec<ReceiverStatus> {
        self.standing.values().cloned().collect()
    }

    fn waits(&mut self, receiver: &Arc<str>) {
        if let Some(standing) = self.standing.get_mut(receiver) {
            standing.pending += 1;
        }
    }

    fn note(&mut self, outcome: &Outcome) {
        let Some(standing) = self.standing.get_mut(&outcome.receiver) else { return };
        match &outcome.result {
            Attempt::Again { why, .. } => standing.problem = Some(why.clone()),
            Attempt::GivenUp { why } => {
                standing.problem = Some(why.clone());
                standing.pending = standing.pending.saturating_sub(1);
            }
            Attempt::Sent => {
                standing.problem = None;
                standing.last_sent = Some(outcome.at);
                standing.pending = standing.pending.saturating_sub(1);
            }
        }
    }
}

/// How each receiver is before anything was sent: one that lacks its secret fails already.
fn standings(receivers: &[Receiver], mute: &[Mute]) -> BTreeMap<Arc<str>, ReceiverStatus> {
    let standing = |name: &Arc<str>, means: &str, problem| {
        let (name, means) = (name.clone(), means.into());
        (name.clone(), ReceiverStatus { name, means, pending: 0, last_sent: None, problem })
    };
    let told = receivers.iter().map(|r| standing(&r.name, r.means.word(), None));
    let untold = mute.iter().map(|m| standing(&m.name, m.means, Some(m.to_string())));
    told.chain(untold).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::act::notify::Means;
    use crate::http::Secret;

    #[test]
    fn a_receiver_without_its_secret_stands_among_the_others_and_fails() {
        let source = Secret::from_env("SKEWTRAP_NO_SUCH_VARIABLE").expect_err("it is not set");
        let mute = [Mute { name: "team".into(), means: "slack", source }];
        let standing = standings(&[Receiver::new("out", Means::Stdout { json: false })], &mute);
        assert_eq!(standing["out"].problem, None);
        let team = &standing["team"];
        assert_eq!(&*team.means, "slack");
        let problem = team.problem.as_deref().expect("it fails");
        assert!(
            problem.contains("SKEWTRAP_NO_SUCH_VARIABLE") && problem.contains("told nothing"),
            "{problem}"
        );
    }
}
