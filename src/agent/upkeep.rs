//! What the loop does beside its events: it publishes its status, makes room for bundles, and ends.

use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use super::archive::Job;
use super::commands::Reply;
use super::{Agent, GRACE, Inputs};
use crate::act::log_queue;
use crate::act::notify::{DeliveryReport, DeliveryResult};
use crate::act::state::State;
use crate::act::systemd;
use crate::clock::wall_time;
use crate::observe::host;
use crate::serve::published::{Vitals, Wanted};
use crate::serve::{Action, CaptureBody, Command};
use skewtrap_core::capture::governor::{ClockJump, QUIET};
use skewtrap_core::incident::Record;
use skewtrap_core::signal::sample::TargetId;
use skewtrap_core::status::Scope;
use skewtrap_core::watch::{Effect, Event};
use skewtrap_trace::time::Time;

/// How long messages that wait are delivered at the end: a backlog may be of hours, and its rest is in the outbox.
const LAST_DELIVERIES: Duration = Duration::from_secs(2);
/// After so long the processes of servers on this machine were read, if they can be: once at the start, and once more.
const FIRST_READINGS: Duration = host::EVERY.saturating_add(Duration::from_secs(1));
/// So much of what the page draws is remembered.
const HISTORY: Duration = Duration::from_secs(600);

impl Agent {
    /// What the loop does every second, whoever asks: the same work for any number of servers.
    pub(super) fn every_second(&mut self) {
        self.store.state.retry_unwritten();
        self.metrics.disk.tell(self.disk_trouble());
        self.notifier.hand_over_overdue();
        self.metrics.without_row(self.notifier.without_row());
        self.metrics.log_lines_dropped(log_queue::dropped());
        let before = self.clock.now();
        if let Some(jump) = self.clock.follow(wall_time()) {
            warn!(jump_s = jump, "the wall clock was set; times from here on are the new clock's");
            self.clock_was_set(before);
        }
        self.metrics.restarts(self.supervisor.restarts());
        for target in std::mem::take(&mut self.of_one_load_waits) {
            self.warn_of_one_load(target);
        }
        let unheard = self.watch.unheard().cloned().collect();
        let unanswered = self.watch.unanswered().map(|(name, since)| (name.clone(), since)).collect();
        let behind = self.watch.behind().into_iter().cloned().collect();
        self.publisher.publish_vitals(Vitals { at: self.clock.now(), unheard, unanswered, behind });
        systemd::alive();
    }

    /// Limits go on as if nobody had set the clock.
    fn clock_was_set(&mut self, before: Time) {
        let now = self.clock.now();
        let jump =
            ClockJump { before, by_ns: now.nanos().saturating_sub(before.nanos()), started: self.started };
        self.started = Time::from_nanos(self.started.nanos().saturating_add(jump.by_ns));
        self.watch.handle(Event::ClockSet(jump), now, &mut Vec::new());
        // Written once or not at all: twice, it would move what was stamped since.
        self.store.state.later(move |state| state.clock_was_set(jump));
    }

    /// What is wrong with the disk of the state, and what that cost so far.
    pub(super) fn disk_trouble(&self) -> Option<String> {
        let state = &self.store.state;
        let hangs = state.hangs().map(|(folder, since)| {
            let (folder, s) = (folder.display(), since.as_secs());
            format!("the disk of the state folder {folder} has not come back from a write for {s} s")
        });
        let why = self.awaited_disk().or(hangs).or_else(|| state.failed())?;
        Some(match self.notifier.without_row() {
            0 => why,
            n => format!("{why}; {n} messages went out without being kept there, so a kill may repeat them"),
        })
    }

    /// Counts what the notifier dropped of an agent before this one.
    pub(super) fn count_dropped(&mut self) {
        for (receiver, count) in self.notifier.take_dropped() {
            self.metrics.messages_dropped(&receiver, count);
        }
    }

    /// Builds what somebody asked for.
    pub(super) fn publish(&mut self, wanted: Wanted) {
        let now = self.clock.now();
        match wanted {
            Wanted::History((scope, only)) => {
                let history = self.chart_history.lengthen(self.watch.history(&scope, only.as_deref(), now));
                self.publisher.publish_history((scope, only), history);
            }
            Wanted::Status(scope) => {
                let mut status = self.watch.overview(&scope, now);
                status.started = self.started;
                status.receivers = self.notifier.statuses();
                status.reload_problem = self.reload_problem.clone();
                let first = scope.places(self.targets.iter().map(|target| &target.name)).start;
                for (target, handle) in status.targets.iter_mut().zip(&self.targets[first..]) {
                    target.url = handle.server.as_ref().map(|s| s.base().to_owned()).unwrap_or_default();
                }
                self.publisher.publish(scope, status);
            }
        }
    }

    /// An attempt to deliver a message ended.
    pub(super) fn delivered(&mut self, report: DeliveryReport) {
        let result = match &report.outcome.result {
            DeliveryResult::Sent => "sent",
            DeliveryResult::Retry { .. } => "again",
            DeliveryResult::GivenUp { .. } => "given_up",
        };
        self.metrics.message(&report.outcome.receiver, result);
        self.notifier.delivered(report);
    }

    /// Keeps what was learned, and the incidents that are open, for an agent after this one.
    pub(super) fn save_ongoing(&self) {
        let (learned, open) = (self.watch.learned_servers(self.clock.now()), self.watch.kept_incidents());
        self.store.state.later(move |state| state.save_known(&learned, &open));
    }

    /// The same from time to time: not again while that of before still waits for a disk that hangs, for all
    /// of it is held in memory until then.
    pub(super) fn keep_learned(&mut self) {
        if self.learned_waits.strong_count() > 0 {
            return;
        }
        let waits = Arc::new(());
        self.learned_waits = Arc::downgrade(&waits);
        let (learned, open) = (self.watch.learned_servers(self.clock.now()), self.watch.kept_incidents());
        self.store.state.later(move |state| {
            let saved = state.save_known(&learned, &open);
            drop(waits);
            saved
        });
    }

    /// The same of one server, of which something is told.
    pub(super) fn save_ongoing_of(&self, target: &Arc<str>, has_learned: bool) {
        let now = self.clock.now();
        let learned = if has_learned { self.watch.learned_of(target, now) } else { None };
        let (target, open) = (target.clone(), self.watch.kept_incidents_of(target));
        self.store.state.later(move |state| state.save_known_of(&target, learned.as_ref(), &open));
    }

    /// For the page, often enough that the store has forgotten nothing in between, whether it is open or
    /// not; server by server, so that the whole is never held twice.
    fn remember_course(&mut self) {
        let now = self.clock.now();
        for target in &self.targets {
            let scope = Scope { target: Some(target.name.clone()), ..Scope::ALL };
            self.chart_history.remember(&self.watch.history(&scope, None, now));
        }
        self.chart_history.forget_before(now - HISTORY);
    }

    pub(super) fn sweep(&mut self) {
        self.remember_course();
        if self.store.state.hangs().is_none() {
            self.notifier.offer_again();
        }
        let now = self.clock.now();
        let tidy = move |state: &State| state.prune(now).and_then(|()| state.release(now - QUIET, None));
        self.store.state.later(tidy);
        self.make_room();
    }

    /// Has the bundles evicted that a window of the size learned so far would leave no room for.
    pub(super) fn make_room(&mut self) {
        let coming = self.targets.iter().map(|handle| {
            let info = self.watch.facts(handle.target).and_then(|f| f.server.as_ref());
            let ranks = info.map_or(1, |s| usize::from(s.sizes.dp) * usize::from(s.sizes.tp));
            self.watch.ledger().estimate(&handle.name, ranks).bytes
        });
        if self.room_waits.strong_count() > 0 {
            return;
        }
        let waits = Arc::new(());
        self.room_waits = Arc::downgrade(&waits);
        // The archive ends only with the agent.
        let _ = self.archive.send(Job::MakeRoom(coming.max().unwrap_or(0), waits));
    }

    /// Until when messages about a record's rule and server are silenced, if they are.
    pub(super) fn silenced_until(&self, record: &Record) -> Option<Time> {
        let incident = &record.incident;
        self.watch.silenced_until(&incident.rule, &incident.target, self.clock.now())
    }

    /// Says in the log, once, that nothing can be compared on a server: whoever starts the agent sees it there first.
    pub(super) fn warn_of_one_load(&mut self, target: TargetId) {
        if self.of_one_load.contains(&target) {
            return;
        }
        // What can be compared on it depends on what is read of its processes, which may be a moment later.
        if self.clock.now().since(self.started) < FIRST_READINGS {
            self.of_one_load_waits.insert(target);
            return;
        }
        if let Some(why) = self.watch.not_watched_on(target) {
            self.of_one_load.insert(target);
            let name = self.targets.get(usize::from(target.0)).map_or("", |plan| &plan.name);
            warn!(target = name, "NOT watched: {why}");
        }
    }

    pub(super) fn command(&mut self, command: Command, effects: &mut Vec<Effect>) {
        // Whoever asked was told that nothing came of it, and may have asked again.
        if command.answer.is_closed() {
            return;
        }
        let alert = match &command.action {
            Action::Capture(CaptureBody { alert: Some(alert), .. }) => Some(alert.key.clone()),
            _ => None,
        };
        let reply = self.answer(command.action, effects);
        if let Some(alert) = alert {
            self.handled.insert(alert);
            let all = self.handled.all();
            self.store.state.later(move |state| state.save_alerts(&all));
        }
        self.publisher.invalidate();
        match reply {
            // Nobody may be waiting any more.
            Reply::Now(answer) => drop(command.answer.send(answer)),
            Reply::Later(answer) => self.supervisor.once("command", async move {
                let _ = command.answer.send(answer.await);
            }),
        }
    }

    /// Closes open windows, sends what can be sent at once, ends every task.
    pub(super) async fn stop(&mut self, Inputs { cancel, inbox, sees, delivered, .. }: &mut Inputs) {
        // To systemd nothing stops where another agent begins in this process: it would kill that after its time limit.
        match cancel.is_cancelled() {
            true => systemd::stopping(GRACE),
            false => systemd::status("beginning anew with what changed in the configuration"),
        }
        self.windows.cancel();
        let limit = tokio::time::Instant::now() + GRACE;
        let mut effects = Vec::new();
        while !self.running.is_empty() || !self.closing.is_empty() {
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(limit) => break,
                Some(item) = inbox.recv() => self.take(item, &mut effects),
                // The log says when a window is closed.
                Some(seen) = sees.recv() => self.observed(seen, &mut effects),
            }
            self.carry_out(&mut effects);
        }
        // What can be delivered at once is; the rest is in the outbox, unless its disk hangs.
        let limit = tokio::time::Instant::now() + LAST_DELIVERIES;
        loop {
            let until = limit.min(tokio::time::Instant::now() + Duration::from_millis(200));
            match tokio::time::timeout_at(until, delivered.recv()).await {
                Ok(Some(report)) => self.delivered(report),
                Err(_) if self.notifier.is_writing() => self.notifier.hand_over_all(),
                Ok(None) | Err(_) => break,
            }
            if tokio::time::Instant::now() >= limit {
                break;
            }
        }
        if !self.supervisor.stop(Duration::from_secs(2)).await {
            warn!("some tasks did not end in 2 s and are left behind");
        }
        // What was delivered meanwhile would be sent again by the next agent.
        while let Ok(report) = delivered.try_recv() {
            self.delivered(report);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::act::notify::DeliveryOutcome;
    use crate::agent::archive::Samples;
    use crate::agent::begin::begin;
    use crate::agent::plan::{Flags, Plan};
    use crate::agent::{EVIDENCE_ROOM, Run, StartedAgent};
    use crate::clock::Clock;
    use crate::config::file::load;
    use skewtrap_core::capture::facts::ServerFacts;
    use skewtrap_core::signal::catalog;
    use skewtrap_core::signal::observation::{Observation, SourceId};
    use skewtrap_core::signal::sample::Sample;
    use skewtrap_core::watch::ServerFact;
    use skewtrap_trace::rank::Rank;
    use tokio::sync::oneshot;

    /// One that has begun and watches nothing.
    async fn begun(dir: &std::path::Path) -> StartedAgent {
        let at = dir.display();
        let text = format!(
            "targets: [{{ url: 'http://127.0.0.1:9' }}]\nstate_dir: '{at}/state'\nincident_dir: '{at}/incidents'\n"
        );
        let loaded = load("skewtrap.yaml", &text, &|_| Ok(Vec::new()));
        let config = loaded.config.unwrap_or_else(|| panic!("{:?}", loaded.diagnostics));
        let run = Run {
            clock: Clock::start(),
            cancel: tokio_util::sync::CancellationToken::new(),
            reloads: std::sync::Arc::default(),
            on_effect: Box::new(|_| {}),
            reload: std::sync::Arc::new(|| anyhow::bail!("nothing is read again")),
            serves: false,
            background: None,
        };
        begin(Plan::of(&config, &Flags::default()).expect("a plan"), run).await.expect("it begins")
    }

    #[tokio::test]
    async fn a_backlog_that_goes_on_being_delivered_does_not_keep_the_agent_from_ending() {
        let dir = tempfile::tempdir().expect("a folder");
        let StartedAgent { mut agent, mut inputs, .. } = begun(dir.path()).await;
        let (tx, delivered) = tokio::sync::mpsc::channel(1);
        inputs.delivered = delivered;
        let delivering = tokio::spawn(async move {
            for number in 0.. {
                let (_acknowledge, waits) = oneshot::channel();
                let (key, receiver) = (format!("hook/{number}").into(), "hook".into());
                let outcome =
                    DeliveryOutcome { key, receiver, at: Time::default(), result: DeliveryResult::Sent };
                if tx.send(DeliveryReport { outcome, _acknowledge }).await.is_err() {
                    return;
                }
                // As a worker does.
                let _ = waits.await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let ended = tokio::time::timeout(Duration::from_secs(20), agent.stop(&mut inputs)).await;
        delivering.abort();
        assert!(ended.is_ok(), "it goes on for as long as anything is delivered");
    }

    #[tokio::test]
    async fn what_is_saved_every_minute_waits_once_for_a_disk_that_hangs() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut agent = begun(dir.path()).await.agent;
        let (goes_on, waits) = std::sync::mpsc::channel::<()>();
        agent.store.state.later(move |_| {
            let _ = waits.recv();
            Ok(())
        });
        let before = agent.store.state.waiting();
        for _ in 0..100 {
            agent.keep_learned();
        }
        assert_eq!(agent.store.state.waiting() - before, 1);
        drop(goes_on);
        assert!(agent.store.state.settle(Duration::from_secs(20)));
        agent.keep_learned();
        assert!(agent.store.state.settle(Duration::from_secs(20)));
    }

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_is_not_done() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut agent = begun(dir.path()).await.agent;
        let silence = |answer| {
            let duration = Duration::from_secs(60);
            Command { action: Action::Silence { rule: None, target: None, duration, why: None }, answer }
        };
        // Told that nothing came of it, whoever asked asks again.
        let (answer, waits) = oneshot::channel();
        drop(waits);
        agent.command(silence(answer), &mut Vec::new());
        assert_eq!(agent.watch.silences().len(), 0);
        let (answer, _waits) = oneshot::channel();
        agent.command(silence(answer), &mut Vec::new());
        assert_eq!(agent.watch.silences().len(), 1);
    }

    #[tokio::test]
    async fn that_nothing_can_be_compared_is_said_once_the_processes_could_be_read() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut agent = begun(dir.path()).await.agent;
        let info = serde_json::json!({"version": "0.5.16", "dp_size": 1, "tp_size": 8});
        let fact = ServerFact::Info(ServerFacts::of_server_info(&info));
        agent.take(crate::agent::AgentEvent::Server { target: TargetId(0), fact }, &mut Vec::new());
        agent.every_second();
        assert!(agent.of_one_load.is_empty(), "its processes may be read in a moment");
        agent.started = agent.started - FIRST_READINGS;
        agent.every_second();
        assert!(agent.of_one_load.contains(&TargetId(0)), "nothing of it can be compared");
    }

    #[tokio::test]
    async fn samples_that_wait_for_a_hung_disk_have_a_bounded_room() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut agent = begun(dir.path()).await.agent;
        let now = agent.clock.now();
        let sample = |rank| Sample {
            rank: Rank::dp(rank),
            signal: catalog::RUNNING_REQS,
            value: 4.0,
            at: now,
            extra: None,
        };
        let samples = (0..4).map(sample).collect();
        let seen = Observation::Samples { target: TargetId(0), source: SourceId(0), samples, at: now };
        agent.watch.handle(Event::Observed(seen), now, &mut Vec::new());
        let mut incident = crate::act::record_of_a_test("i1", 1.0).incident;
        incident.target = agent.targets[0].name.clone();
        let copied = agent.evidence(&incident, now);
        assert_eq!(copied.seen.len(), 4);
        let held = agent.evidence_room.try_hold(EVIDENCE_ROOM - Samples::bytes_of(&copied.seen));
        assert!(held.is_some() && agent.evidence(&incident, now).seen.is_empty(), "the room is full");
        // Written, and forgotten.
        drop(copied);
        assert_eq!(agent.evidence(&incident, now).seen.len(), 4);
    }
}
