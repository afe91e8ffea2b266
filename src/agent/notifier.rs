//! The way of a message: planned, written to the outbox, handed to a delivery worker, deleted when it
//! was taken. What was not delivered before a crash goes out after it, the same bytes.

mod outgoing;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use self::outgoing::Outgoing;
use super::plan::Plan;
use super::receivers::UnusableReceiver;
use super::supervise::{Supervisor, TaskPlacement};
use crate::act::notify::retry::is_too_old;
use crate::act::notify::worker::workers;
use crate::act::notify::{Delivery, DeliveryOutcome, DeliveryReport, DeliveryResult, Planner, Receiver};
use crate::act::state::{OutboxRow, State};
use crate::clock::Clock;
use skewtrap_core::incident::{Incident, Record};
use skewtrap_core::message::{Origin, Update, utc};
use skewtrap_core::status::ReceiverStatus;
use skewtrap_trace::time::Time;

/// Why an incident of an agent before this one is resolved, and when what still fires is reported.
fn started_again(silenced_until: Option<Time>) -> String {
    let still = match silenced_until {
        None => "told as a new incident".to_owned(),
        Some(until) => format!("silenced until {}, and told as a new incident then", utc(until)),
    };
    format!("the agent was started again and no longer follows it; what still fires is {still}")
}

/// Sends messages about incidents.
#[derive(Debug)]
pub struct Notifier {
    planner: Planner,
    outgoing: Outgoing,
    state: State,
    statuses: BTreeMap<Arc<str>, ReceiverStatus>,
    /// Messages of an agent before this one that were dropped, and not counted yet.
    dropped: BTreeMap<Arc<str>, u64>,
}

impl Notifier {
    /// Starts a delivery worker for each receiver, and gives them what was left undelivered.
    pub fn start(
        plan: &Plan,
        origin: Origin,
        client: &reqwest::Client,
        (state, outbox): (State, Vec<OutboxRow>),
        clock: Clock,
        supervisor: &Supervisor,
        outcomes: &mpsc::Sender<DeliveryReport>,
    ) -> Self {
        let planner = Planner::new(&plan.receivers, plan.storm_cap, origin);
        let statuses = statuses_of(&plan.receivers, &plan.unusable);
        let now: crate::act::notify::worker::Now = Arc::new(move || clock.now());
        let (queues, all) = workers(plan.receivers.clone(), client, &now, outcomes);
        for worker in all {
            let cancel = supervisor.cancel();
            supervisor.keep("delivery worker", TaskPlacement::Background, move || {
                let (worker, cancel) = (worker.clone(), cancel.clone());
                async move {
                    tokio::select! {
                        () = cancel.cancelled() => true,
                        done = worker.run() => done,
                    }
                }
            });
        }
        // What a full queue does not take stays in the outbox and is offered again.
        let outgoing = Outgoing::new(move |delivery| drop(queues.hand_over(delivery)));
        let mut notifier = Self { planner, outgoing, state, statuses, dropped: BTreeMap::new() };
        notifier.take_in(outbox, clock.now());
        notifier
    }

    /// From now on messages lead to this page, or say why to none.
    pub fn set_page(&mut self, page: Result<String, String>) {
        self.planner.set_page(page);
    }

    /// Goes on with another state, whose outbox holds these rows; what waits in the one before moves there.
    pub fn switch_state(&mut self, state: State, outbox: Vec<OutboxRow>, now: Time) {
        let before = std::mem::replace(&mut self.state, state);
        let waiting = before.undelivered().unwrap_or_default();
        self.state.later(move |state| state.add_to_outbox(&waiting));
        self.take_in(outbox, now);
    }

    /// Takes in what an agent before this one did not deliver.
    fn take_in(&mut self, outbox: Vec<OutboxRow>, now: Time) {
        let rows = self.drop_unroutable(outbox);
        let rows = self.drop_unreadable(rows, now);
        for row in rows {
            self.count_pending(&row.receiver);
        }
        self.offer_again();
    }

    /// Takes the messages out of the outbox whose receivers are in the configuration no more; gives the others.
    /// Those of a receiver that only lacks its secret wait for it.
    fn drop_unroutable(&mut self, rows: Vec<OutboxRow>) -> Vec<OutboxRow> {
        let is_known = |row: &OutboxRow| self.statuses.contains_key(&row.receiver);
        let (known, gone): (Vec<_>, Vec<_>) = rows.into_iter().partition(is_known);
        let mut counts: BTreeMap<Arc<str>, u64> = BTreeMap::new();
        for row in gone {
            *counts.entry(row.receiver.clone()).or_default() += 1;
            self.drop_message(row);
        }
        for (receiver, count) in counts {
            tracing::warn!(
                receiver = &*receiver,
                "{count} messages for it were dropped: no receiver of this name is configured any more"
            );
        }
        known
    }

    fn drop_message(&mut self, row: OutboxRow) {
        *self.dropped.entry(row.receiver).or_default() += 1;
        self.state.later(move |state| state.remove_from_outbox(&row.key));
    }

    /// Messages that another release wrote and this one cannot read stay for it, as long as anybody would act
    /// on them. Gives what stays.
    fn drop_unreadable(&mut self, rows: Vec<OutboxRow>, now: Time) -> Vec<OutboxRow> {
        let (mut kept, mut unread) = (Vec::new(), BTreeMap::<Arc<str>, u64>::new());
        for row in rows {
            let (key, receiver) = (row.key.clone(), row.receiver.clone());
            match Delivery::try_from(row.clone()) {
                Ok(_) => kept.push(row),
                Err(_) if !is_too_old(row.created, now) => {
                    *unread.entry(receiver).or_default() += 1;
                    kept.push(row);
                }
                Err(why) => {
                    tracing::warn!(
                        receiver = &*receiver,
                        "the message {key} is dropped: it is a day old and cannot be read ({why})"
                    );
                    self.drop_message(row);
                }
            }
        }
        for (receiver, count) in unread {
            tracing::warn!(
                receiver = &*receiver,
                "{count} messages for it were written by another release of the agent and cannot be read by this one; they wait a day for it"
            );
        }
        kept
    }

    /// How many messages were dropped since the last call, by their receiver.
    pub fn take_dropped(&mut self) -> BTreeMap<Arc<str>, u64> {
        std::mem::take(&mut self.dropped)
    }

    /// Sends a message about an incident to the receivers that are `named`, or to the default ones.
    pub fn send(&mut self, incident: &Incident, update: Update, named: &[Arc<str>], clock: Clock) {
        let deliveries = self.planned(incident, update, named, clock);
        self.post(deliveries);
    }

    /// Renews what was sent about an incident to receivers that can edit it in place.
    pub fn edit(&mut self, incident: &Incident, update: Update, named: &[Arc<str>], clock: Clock) {
        let deliveries = self.planner.plan_edits(incident, update, named, clock.now());
        self.post(deliveries);
    }

    /// Reports a capture that an agent before this one began, and that its incident is over.
    /// `silenced_until` is when messages about its rule are sent again, where it is silenced.
    pub fn send_recovered(&mut self, record: &mut Record, silenced_until: Option<Time>, clock: Clock) {
        // First: an alert without an end would stay open for a week.
        let was_open = record.incident.resolve(clock.now());
        // The result of an incident is told once: what a further window brought stands in its end.
        if !was_open || record.incident.window() == 1 {
            self.send(&record.incident, Update::Captured, &record.notify, clock);
        }
        if was_open {
            self.send_end(record, silenced_until, clock);
        }
    }

    /// Reports that an incident is over which an agent before this one left open.
    /// `silenced_until` is when messages about its rule are sent again, where it is silenced.
    ///
    /// `write` notes the end in the bundle: after the message's row, or a kill would lose it, and before the
    /// message leaves, or an agent after this one would tell it again in other words.
    pub fn send_left(
        &mut self,
        record: &mut Record,
        silenced_until: Option<Time>,
        clock: Clock,
        write: impl FnOnce(Incident) + Send + 'static,
    ) {
        if record.incident.resolve(clock.now()) {
            let deliveries = self.end_of(record, silenced_until, clock);
            for delivery in &deliveries {
                self.count_pending(&delivery.receiver);
            }
            let incident = record.incident.clone();
            self.outgoing.post_after(&self.state, deliveries, Instant::now(), move || write(incident));
        }
    }

    /// An incident that an agent before this one told goes on: its end is told to those who know of it.
    pub fn goes_on(&mut self, incident: &Incident) {
        self.planner.take_over(&incident.id);
    }

    fn send_end(&mut self, record: &Record, silenced_until: Option<Time>, clock: Clock) {
        let deliveries = self.end_of(record, silenced_until, clock);
        self.post(deliveries);
    }

    fn end_of(&mut self, record: &Record, silenced_until: Option<Time>, clock: Clock) -> Vec<Delivery> {
        self.planner.take_over(&record.incident.id);
        let note = started_again(silenced_until);
        let mut deliveries = self.planned(&record.incident, Update::Resolved, &record.notify, clock);
        for delivery in &mut deliveries {
            delivery.message.notes.push(note.clone());
        }
        deliveries
    }

    fn planned(
        &mut self,
        incident: &Incident,
        update: Update,
        named: &[Arc<str>],
        clock: Clock,
    ) -> Vec<Delivery> {
        if let Some(warning) = self.planner.unknown_receivers(&incident.rule, named) {
            tracing::error!("{warning}");
        }
        self.planner.plan(incident, update, named, clock.now())
    }

    /// Has messages written to the outbox and handed over.
    fn post(&mut self, deliveries: Vec<Delivery>) {
        for delivery in &deliveries {
            self.count_pending(&delivery.receiver);
        }
        self.outgoing.post(&self.state, deliveries, Instant::now());
    }

    /// The message about a capture is in the outbox: no later agent reports it again.
    pub fn reported(&self, incident: &Arc<str>) {
        self.outgoing.reported(&self.state, incident);
    }

    /// Hands over what has waited too long for a disk that hangs.
    pub fn hand_over_overdue(&self) {
        self.outgoing.hand_over_overdue(Instant::now());
    }

    /// Hands over everything, for the agent ends.
    pub fn hand_over_all(&self) {
        self.outgoing.hand_over_all();
    }

    /// Whether messages wait for their rows in the outbox.
    pub fn is_writing(&self) -> bool {
        self.outgoing.is_waiting()
    }

    /// How many messages went out without a row in the outbox: a kill may have lost or repeated them.
    pub fn without_row(&self) -> u64 {
        self.outgoing.without_row()
    }

    /// Takes the result of an attempt; its delivery worker goes on when that is in the outbox.
    pub fn delivered(&mut self, report: DeliveryReport) {
        let outcome = &report.outcome;
        self.note(outcome);
        let (key, state) = (outcome.key.clone(), &self.state);
        match &outcome.result {
            DeliveryResult::Sent => {
                self.outgoing.attempted(state, report, true, move |state| state.remove_from_outbox(&key));
            }
            DeliveryResult::GivenUp { why } => {
                tracing::warn!(receiver = &*outcome.receiver, message = &*outcome.key, "given up: {why}");
                self.outgoing.attempted(state, report, true, move |state| state.remove_from_outbox(&key));
            }
            DeliveryResult::Retry { attempts, due, why } => {
                if *attempts == 1 {
                    tracing::warn!(receiver = &*outcome.receiver, "not delivered, tried again: {why}");
                }
                let (attempts, due) = (*attempts, *due);
                let write = move |state: &State| state.reschedule(&key, attempts, due);
                self.outgoing.attempted(state, report, false, write);
            }
        }
    }

    /// Offers the delivery workers what the outbox holds; they recognise what they have already.
    pub fn offer_again(&self) {
        self.outgoing.offer_again(&self.state);
    }

    /// The state of each receiver, for the page and the metrics.
    pub fn statuses(&self) -> Vec<ReceiverStatus> {
        self.statuses.values().cloned().collect()
    }

    fn count_pending(&mut self, receiver: &Arc<str>) {
        if let Some(status) = self.statuses.get_mut(receiver) {
            status.pending += 1;
        }
    }

    fn note(&mut self, outcome: &DeliveryOutcome) {
        let Some(status) = self.statuses.get_mut(&outcome.receiver) else { return };
        match &outcome.result {
            DeliveryResult::Retry { why, .. } => status.problem = Some(why.clone()),
            DeliveryResult::GivenUp { why } => {
                status.problem = Some(why.clone());
                status.pending = status.pending.saturating_sub(1);
            }
            DeliveryResult::Sent => {
                status.problem = None;
                status.last_sent = Some(outcome.at);
                status.pending = status.pending.saturating_sub(1);
            }
        }
    }
}

/// The state of each receiver before anything was sent: one that lacks its secret fails already.
fn statuses_of(receivers: &[Receiver], unusable: &[UnusableReceiver]) -> BTreeMap<Arc<str>, ReceiverStatus> {
    let status_of = |name: &Arc<str>, means: &str, problem| {
        let (name, means) = (name.clone(), means.into());
        (name.clone(), ReceiverStatus { name, means, pending: 0, last_sent: None, problem })
    };
    let reachable = receivers.iter().map(|r| status_of(&r.name, r.means.word(), None));
    let without_secret = unusable.iter().map(|m| status_of(&m.name, m.means, Some(m.to_string())));
    reachable.chain(without_secret).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::act::notify::Transport;
    use crate::agent::plan::Flags;
    use crate::config::file::load;
    use crate::http::{Secret, client};
    use skewtrap_core::message::{Message, sample};
    use std::time::Duration;

    /// A post whose receivers, `oncall` and `team`, do not answer.
    fn notifier(dir: &std::path::Path) -> (Notifier, State, Clock) {
        let text = "targets: [{ url: 'http://127.0.0.1:30000' }]\nreceivers:\n\
                    - { name: oncall, by_default: false, webhook: { url: 'http://127.0.0.1:9' } }\n\
                    - { name: team, webhook: { url: 'http://127.0.0.1:9' } }\n";
        let config = load("skewtrap.yaml", text, &|_| Ok(Vec::new())).config.expect("it is right");
        let plan = Plan::of(&config, &Flags::default()).expect("a plan");
        let (state, clock) = (State::open(dir).expect("a state"), Clock::start());
        let (client, supervisor) = (client::client(None).expect("a client"), Supervisor::default());
        let (outcomes, _) = mpsc::channel(16);
        let origin = Origin::default();
        let outbox = state.undelivered().expect("the outbox");
        let notifier =
            Notifier::start(&plan, origin, &client, (state.clone(), outbox), clock, &supervisor, &outcomes);
        (notifier, state, clock)
    }

    fn queued(state: &State) -> Vec<(Arc<str>, Message)> {
        let rows = state.undelivered().expect("the outbox");
        rows.iter().map(|p| (p.receiver.clone(), serde_json::from_slice(&p.body).expect("JSON"))).collect()
    }

    #[tokio::test]
    async fn what_an_agent_before_left_open_is_told_to_its_rules_receivers_and_ends() {
        let dir = tempfile::tempdir().expect("a folder");
        let (mut notifier, state, clock) = notifier(dir.path());
        let mut incident = sample(clock.now());
        incident.resolved_at = None;
        let mut record = Record::new("agent".into(), incident).notifying(vec!["oncall".into()]);
        notifier.send_recovered(&mut record.clone(), None, clock);
        let sent = queued(&state);
        let updates: Vec<_> = sent.iter().map(|(who, m)| (&**who, m.update)).collect();
        assert_eq!(updates, [("oncall", Update::Captured), ("oncall", Update::Resolved)]);
        assert!(sent.iter().all(|(_, m)| m.incident.resolved_at.is_some()), "neither opens an alert");
        assert!(sent[1].1.notes.contains(&started_again(None)), "{:?}", sent[1].1.notes);
        record.incident.id = "another".into();
        notifier.send_left(&mut record, None, clock, |_| ());
        notifier.send_left(&mut record, None, clock, |_| ());
        let sent = queued(&state);
        let updates: Vec<_> = sent[2..].iter().map(|(who, m)| (&**who, m.update)).collect();
        assert_eq!(updates, [("oncall", Update::Resolved)], "once");
    }

    #[tokio::test]
    async fn an_end_that_is_told_within_a_silence_promises_no_message_before_it_is_over() {
        let dir = tempfile::tempdir().expect("a folder");
        let (mut notifier, state, clock) = notifier(dir.path());
        let mut incident = sample(clock.now());
        incident.resolved_at = None;
        let mut record = Record::new("agent".into(), incident);
        notifier.send_left(&mut record, Some(Time::from_epoch_s(1_795_492_000.0)), clock, |_| ());
        let [(_, message)] = &queued(&state)[..] else { panic!("there is one message") };
        assert_eq!(message.update, Update::Resolved, "no receiver keeps the alert for ever");
        let note_end =
            "what still fires is silenced until 2026-11-24 03:46:40.0 UTC, and told as a new incident then";
        assert!(message.notes.iter().any(|note| note.ends_with(note_end)), "{:?}", message.notes);
    }

    #[tokio::test]
    async fn messages_for_receivers_that_are_gone_are_dropped_and_counted() {
        let dir = tempfile::tempdir().expect("a folder");
        let (_, state, clock) = notifier(dir.path());
        let message = Message::of(&sample(clock.now()), Update::Fired, clock.now(), &Origin::default());
        let row = |to: &str| {
            let delivery = crate::act::notify::plan::delivery(&to.into(), message.clone(), clock.now());
            crate::act::state::OutboxRow::from(&delivery)
        };
        state.add_to_outbox(&[row("oncall"), row("retired")]).expect("written");
        // The writer may still have it.
        assert!(state.settle(std::time::Duration::from_secs(5)));
        drop(state);
        let (mut notifier, state, _) = notifier(dir.path());
        let waiting: Vec<_> = queued(&state).into_iter().map(|(receiver, _)| receiver).collect();
        assert_eq!(waiting, ["oncall".into()], "the other waits for nobody");
        assert_eq!(notifier.take_dropped(), BTreeMap::from([("retired".into(), 1)]));
    }

    #[tokio::test]
    async fn messages_of_another_release_wait_for_it_for_a_day() {
        let dir = tempfile::tempdir().expect("a folder");
        let (_, state, clock) = notifier(dir.path());
        let row = |key: &str, age_h: u64| {
            let created = clock.now() - Duration::from_secs(age_h * 3600);
            let body = b"{\"words\": \"of another release\"}".to_vec();
            OutboxRow { key: key.into(), receiver: "oncall".into(), created, due: created, attempts: 0, body }
        };
        state.add_to_outbox(&[row("new", 1), row("old", 25)]).expect("written");
        assert!(state.settle(Duration::from_secs(5)));
        drop(state);
        let (mut notifier, state, _) = notifier(dir.path());
        let keys: Vec<_> = state.undelivered().expect("the outbox").into_iter().map(|row| row.key).collect();
        assert_eq!(keys, ["new".into()]);
        assert_eq!(notifier.take_dropped(), BTreeMap::from([("oncall".into(), 1)]));
    }

    #[test]
    fn a_receiver_without_its_secret_stands_among_the_others_and_fails() {
        let source = Secret::from_env("SKEWTRAP_NO_SUCH_VARIABLE").expect_err("it is not set");
        let unusable = [UnusableReceiver { name: "team".into(), means: "slack", source }];
        let statuses = statuses_of(&[Receiver::new("out", Transport::Stdout { json: false })], &unusable);
        assert_eq!(statuses["out"].problem, None);
        let team = &statuses["team"];
        assert_eq!(&*team.means, "slack");
        let problem = team.problem.as_deref().expect("it fails");
        assert!(
            problem.contains("SKEWTRAP_NO_SUCH_VARIABLE") && problem.contains("gets no messages"),
            "{problem}"
        );
    }
}
