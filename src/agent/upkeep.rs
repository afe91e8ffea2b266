//! What the loop does beside its events: it publishes its status, makes room for bundles, closes what
//! an agent before it left open, reads its configuration again, and ends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::archive::Job;
use super::capture::task::compared;
use super::capture::{Found, Taken, close, without_server};
use super::commands::Reply;
use super::cost::Meter;
use super::window::TargetHandle;
use super::{Agent, AgentEvent, Closing, GRACE};
use crate::act::notify::{DeliveryReport, DeliveryResult};
use crate::act::state::{OpenMethod, OpenWindow, State};
use crate::act::systemd;
use crate::clock::wall_time;
use crate::observe::outlet::Seen;
use crate::serve::Command;
use crate::serve::published::{Pulse, Wanted};
use skewtrap_core::capture::captured::Means;
use skewtrap_core::capture::governor::{ClockJump, QUIET};
use skewtrap_core::capture::window::WindowPhase;
use skewtrap_core::incident::{Record, VerdictNote};
use skewtrap_core::message::Update;
use skewtrap_core::signal::sample::TargetId;
use skewtrap_core::status::Scope;
use skewtrap_core::watch::{self, Effect, Event, WindowEvent};
use skewtrap_trace::time::Time;

/// So much of what the page draws is remembered.
const HISTORY: Duration = Duration::from_secs(600);

impl Agent {
    /// What the loop does every second, whoever asks: the same work for any number of servers.
    pub(super) fn beat(&mut self) {
        self.store.state.retry_unwritten();
        self.metrics.disk.tell(self.disk_trouble());
        self.notifier.hand_over_overdue();
        self.metrics.without_row(self.notifier.without_row());
        let before = self.clock.now();
        if let Some(jump) = self.clock.follow(wall_time()) {
            warn!(jump_s = jump, "the wall clock was set; times from here on are the new clock's");
            self.clock_was_set(before);
        }
        self.metrics.restarts(self.supervisor.restarts());
        let unheard = self.watch.unheard().cloned().collect();
        let unanswered = self.watch.unanswered().map(|(name, since)| (name.clone(), since)).collect();
        let behind = self.watch.behind().into_iter().cloned().collect();
        self.publisher.beat(Pulse { at: self.clock.now(), unheard, unanswered, behind });
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
                let history = self.course.lengthen(self.watch.history(&scope, only.as_deref(), now));
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
    pub(super) fn save_what_goes_on(&self) {
        let (learned, open) = (self.watch.baselines(self.clock.now()), self.watch.kept_incidents());
        self.store.state.later(move |state| state.save_known(&learned, &open));
    }

    /// The same of one server, of which something is told.
    pub(super) fn save_what_goes_on_at(&self, target: &Arc<str>, has_learned: bool) {
        let now = self.clock.now();
        let learned = if has_learned { self.watch.baseline_of(target, now) } else { None };
        let (target, open) = (target.clone(), self.watch.kept_incidents_of(target));
        self.store.state.later(move |state| state.save_known_of(&target, learned.as_ref(), &open));
    }

    /// For the page, often enough that the store has forgotten nothing in between, whether it is open or
    /// not; server by server, so that the whole is never held twice.
    fn remember_course(&mut self) {
        let now = self.clock.now();
        for target in &self.targets {
            let scope = Scope { target: Some(target.name.clone()), ..Scope::ALL };
            self.course.remember(&self.watch.history(&scope, None, now));
        }
        self.course.forget_before(now - HISTORY);
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
    pub(super) fn make_room(&self) {
        let coming = self.targets.iter().map(|handle| {
            let info = self.watch.facts(handle.target).and_then(|f| f.server.as_ref());
            let ranks = info.map_or(1, |s| usize::from(s.sizes.dp) * usize::from(s.sizes.tp));
            self.watch.ledger().estimate(&handle.name, ranks).bytes
        });
        // The archive ends only with the agent.
        let _ = self.archive.send(Job::MakeRoom(coming.max().unwrap_or(0)));
    }

    /// Whether an incident that an agent before this one left is under way here. One that was over may come back,
    /// but whatever is still to be told of it is told.
    fn goes_on(&self, record: &Record) -> bool {
        self.watch.incident(&record.incident.id).is_some_and(|incident| incident.resolved_at.is_none())
    }

    /// Reports what an agent before this one left finished, and closes the windows that it left open,
    /// each by a task of its own.
    pub(super) fn recover(
        &mut self,
        found: Found,
        known: &BTreeMap<String, TargetHandle>,
        effects: &mut Vec<Effect>,
    ) {
        for open in self.watch.kept_incidents() {
            self.notifier.goes_on(&open.incident);
        }
        for record in found.finished {
            // Also where it is resolved: the verdict is put on the incident that the core has, which may come back.
            self.watch.ended_before(&record.incident, effects);
            match self.goes_on(&record) {
                false => self.report_closed(record),
                true => {
                    if record.incident.verdict.is_none() && record.incident.capture.is_comparable() {
                        self.compare_recovered(record);
                    }
                }
            }
        }
        let is_over = |record: &Record| !self.goes_on(record);
        for mut record in found.open.into_iter().filter(is_over).collect::<Vec<_>>() {
            let silenced_until = self.silenced_until(&record);
            let bundles = self.store.bundles.clone();
            self.notifier.send_left(&mut record, silenced_until, self.clock, move |incident| {
                if let Err(error) = bundles.update(incident) {
                    error!("{error}");
                }
            });
        }
        for (window, record) in found.left {
            let (id, target) = (window.incident.clone(), window.target.clone());
            warn!(
                incident = id,
                "an agent before this one left a window open on {target}; it is closed first"
            );
            self.left_behind(&window);
            let meter = Meter::of_before(self.clock, window.sent_at);
            let place = self.targets.iter().find(|s| *s.name == *target).map(|handle| handle.target);
            let closing = Closing { target: place, meter: meter.clone(), metered_to: self.clock.now() };
            self.closing.insert(id.clone(), closing);
            let (tx, store) = (self.tx.clone(), self.store.clone());
            let known = known.get(&target).cloned().or_else(|| self.without_server(&window));
            let cancel = self.windows.child_token();
            self.supervisor.once("window left behind", async move {
                match tokio::spawn(close(store, known, window, record.clone(), (meter, cancel))).await {
                    // The loop is gone only when the agent ends.
                    Ok(taken) => {
                        let record = Box::new(record);
                        drop(tx.send(AgentEvent::Recovered { record, taken }).await);
                    }
                    Err(panic) => {
                        error!(
                            incident = id,
                            "closing the window failed ({panic}); no other opens on {target} until a restart"
                        );
                    }
                }
            });
        }
    }

    /// What was opened on this machine is closed without its server.
    fn without_server(&self, window: &OpenWindow) -> Option<TargetHandle> {
        let needs_server = matches!(window.method, OpenMethod::Http(_));
        (!needs_server).then(|| without_server(&window.target, &self.no_server))
    }

    fn left_behind(&mut self, window: &OpenWindow) {
        let Some(handle) = self.targets.iter().find(|s| *s.name == *window.target) else { return };
        let (marks, means, deadline) = match &window.method {
            OpenMethod::Http(request) => (Some(request.marks.clone()), request.means(), request.deadline),
            OpenMethod::Nsys { .. } => (None, Means::Nsys, Duration::ZERO),
            OpenMethod::Command { .. } => (None, Means::Command, Duration::ZERO),
        };
        let (incident, since) = (Arc::from(window.incident.as_str()), window.sent_at);
        let open = watch::OpenWindow { incident, marks, means, phase: WindowPhase::Unknown, since, deadline };
        let (target, attempt): (TargetId, _) = (handle.target, window.attempt.clone());
        let event = Event::LeftBehind { target, attempt, window: open };
        self.watch.handle(event, self.clock.now(), &mut Vec::new());
    }

    /// A window of an agent before this one is closed.
    pub(super) fn recovered(&mut self, mut record: Record, taken: Taken, effects: &mut Vec<Effect>) {
        self.closing.remove(&*record.incident.id);
        let Taken::Stored { capture, problem } = taken else { return };
        let incident = record.incident.id.clone();
        if let Some(problem) = &problem {
            error!(incident = &*incident, "{problem}");
        }
        self.metrics.stall(&record.incident.target, capture.end.stalled.as_secs_f64());
        capture.outcome.captured().inspect(|c| self.metrics.silence(&record.incident.target, c));
        record.incident.captured(&capture);
        let is_comparable = record.incident.capture.is_comparable();
        let event = WindowEvent::Ended(capture);
        let goes_on = self.watch.incident(&incident).is_some();
        self.watch.handle(Event::Window { incident, event }, self.clock.now(), effects);
        if !goes_on {
            // The core, which books the attempt and trusts the server again, does not know this incident.
            self.report_closed(record);
        } else if is_comparable {
            self.compare_recovered(record);
        }
        self.make_room();
    }

    fn report_closed(&mut self, mut record: Record) {
        warn!(
            incident = &*record.incident.id,
            "a window was left open by an agent before this one; it is closed"
        );
        let silenced_until = self.silenced_until(&record);
        self.notifier.send_recovered(&mut record, silenced_until, self.clock);
        self.notifier.reported(&record.incident.id);
        // The archive ends only with the agent.
        let _ = self.archive.send(Job::Captured(Box::new(record.incident.clone())));
        if record.incident.verdict.is_none() && record.incident.capture.is_comparable() {
            self.compare_recovered(record);
        }
    }

    /// Its ranks are compared like those of any other capture.
    fn compare_recovered(&self, record: Record) {
        let (tx, bundles) = (self.tx.clone(), self.store.bundles.clone());
        self.supervisor.once("comparison", async move {
            match compared(&bundles, record.incident.clone()).await {
                // The loop is gone only when the agent ends; the report lies in the bundle.
                Some(note) => {
                    let record = Box::new(record);
                    drop(tx.send(AgentEvent::RecoveredCompared { record, note }).await);
                }
                None => not_compared(&tx, record).await,
            }
        });
    }

    /// What comparing them said: told, and kept in the bundle. No core follows that incident any more.
    pub(super) fn recovered_verdict(
        &mut self,
        mut record: Record,
        note: VerdictNote,
        effects: &mut Vec<Effect>,
    ) {
        if self.watch.incident(&record.incident.id).is_some() {
            let (incident, window) = (record.incident.id.clone(), record.incident.window());
            let event = Event::Compared { incident, window, note };
            return self.watch.handle(event, self.clock.now(), effects);
        }
        record.incident.verdict = Some(note);
        self.notifier.send(&record.incident, Update::Verdict, &record.notify, self.clock);
        // As above.
        let _ = self.archive.send(Job::Update(Box::new(record.incident)));
    }

    /// Until when messages about a record's rule and server are silenced, if they are.
    pub(super) fn silenced_until(&self, record: &Record) -> Option<Time> {
        let incident = &record.incident;
        self.watch.silenced_until(&incident.rule, &incident.target, self.clock.now())
    }

    pub(super) fn reload_signalled(&mut self, effects: &mut Vec<Effect>) {
        systemd::reloading();
        match self.reload_now(effects) {
            Ok((rules, _)) => info!("the configuration was read again; {rules} rules are in force"),
            Err(error) => warn!("{error:#}; the old rules stay in force"),
        }
        systemd::ready("watching");
    }

    /// Says in the log, once, that nothing can be compared on a server: whoever starts the agent sees it there first.
    pub(super) fn warn_of_one_load(&mut self, target: TargetId) {
        if self.of_one_load.contains(&target) {
            return;
        }
        if let Some(why) = self.watch.not_watched_on(target) {
            self.of_one_load.insert(target);
            let name = self.targets.get(usize::from(target.0)).map_or("", |plan| &plan.name);
            warn!(target = name, "NOT watched: {why}");
        }
    }

    pub(super) fn command(&mut self, command: Command, effects: &mut Vec<Effect>) {
        let reply = self.answer(command.action, effects);
        self.publisher.outdate();
        match reply {
            // Nobody may be waiting any more.
            Reply::Now(answer) => drop(command.answer.send(answer)),
            Reply::Later(answer) => self.supervisor.once("command", async move {
                let _ = command.answer.send(answer.await);
            }),
        }
    }

    /// Closes open windows, sends what can be sent at once, ends every task.
    pub(super) async fn stop(
        &mut self,
        inbox: &mut mpsc::Receiver<AgentEvent>,
        sees: &mut mpsc::Receiver<Seen>,
        delivered: &mut mpsc::Receiver<DeliveryReport>,
    ) {
        systemd::stopping(GRACE);
        self.windows.cancel();
        let limit = tokio::time::Instant::now() + GRACE;
        let mut effects = Vec::new();
        while !self.running.is_empty() || !self.closing.is_empty() {
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(limit) => break,
                Some(item) = inbox.recv() => self.take(item, &mut effects),
                // The log says when a window is closed.
                Some(seen) = sees.recv() => self.observed(&seen, &mut effects),
            }
            self.carry_out(&mut effects);
        }
        // What can be delivered at once is; the rest is in the outbox, unless its disk hangs.
        loop {
            match tokio::time::timeout(Duration::from_millis(200), delivered.recv()).await {
                Ok(Some(report)) => self.delivered(report),
                Err(_) if self.notifier.is_writing() => self.notifier.hand_over_all(),
                Ok(None) | Err(_) => break,
            }
        }
        if !self.supervisor.stop(Duration::from_secs(2)).await {
            warn!("some tasks did not end in 2 s and are left behind");
        }
    }
}

/// An incident that goes on is told of its capture without a verdict.
async fn not_compared(tx: &mpsc::Sender<AgentEvent>, record: Record) {
    // The loop is gone only when the agent ends.
    let _ = tx.send(AgentEvent::NotCompared { incident: record.incident.id }).await;
}
