//! What is decided on the numbers: time passes, rules are looked at, changes become incidents.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::event::{Effect, OpenWindow, ServerFact};
use super::incidents::{ActiveIncident, Incidents};
use super::server::Server;
use super::{Mode, Setup, TICK};
use crate::capture::admit::Policy;
use crate::capture::governor::Ledger;
use crate::capture::line::ProfileLine;
use crate::capture::window::Distrust;
use crate::message::Update;
use crate::rule::{Change, EVALUATION_INTERVAL, Engine, Rule, Suppression};
use crate::signal::intake::IntakeStep;
use crate::signal::sample::TargetId;
use crate::signal::store::SignalStore;
use crate::status::Silence;
use skewtrap_trace::time::Time;

/// In a recording, a gap of data longer than this is not walked tick by tick to its end.
const WALKED_GAP: Duration = Duration::from_secs(300);
/// How often ranks that are gone for good are forgotten.
const SWEEP: Duration = Duration::from_secs(60);

/// Everything but the numbers.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) engine: Engine,
    pub(super) servers: Vec<Server>,
    pub(super) incidents: Incidents,
    pub(super) ledger: Ledger,
    pub(super) policy: Policy,
    pub(super) mode: Mode,
    pub(super) silences: Vec<Silence>,
    /// Wishes that wait for their warm-up: the incident, and when to look again.
    pub(super) warming: BTreeMap<Arc<str>, Time>,
    pub(super) now: Time,
    looked: Time,
    swept: Time,
    changes: Vec<Change>,
}

impl Core {
    pub(super) fn new(setup: Setup, store: &mut SignalStore, now: Time) -> Self {
        let servers = setup.targets.into_iter().map(|t| Server::new(t.name, t.group, t.sees_log)).collect();
        Self {
            engine: Engine::new(setup.rules, store, now),
            servers,
            incidents: Incidents::default(),
            ledger: setup.ledger,
            policy: setup.policy,
            mode: setup.mode,
            silences: Vec::new(),
            warming: BTreeMap::new(),
            now,
            looked: now,
            swept: now,
            changes: Vec::new(),
        }
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub(super) fn evaluations(&self) -> u64 {
        self.engine.evaluation_count()
    }

    pub(super) const fn due(&self) -> Option<Time> {
        self.engine.due()
    }

    /// One step of taking an observation in.
    pub(super) fn step(
        &mut self,
        store: &mut SignalStore,
        at: Time,
        step: IntakeStep<'_>,
        out: &mut Vec<Effect>,
    ) {
        match step {
            IntakeStep::Due if self.mode == Mode::Replay => self.walk_to(store, at, out),
            IntakeStep::Recorded if self.mode == Mode::Replay => {
                if at.is_past(self.looked, EVALUATION_INTERVAL) || self.looked > at {
                    self.pulse(store, at, out);
                }
            }
            IntakeStep::Due | IntakeStep::Recorded => {}
            IntakeStep::Profile { target, rank, profile } => {
                let line = ProfileLine::from(profile);
                let Some(server) = self.servers.get_mut(usize::from(target.0)) else { return };
                if let Some(incident) = server.profile_line(rank, &line, at) {
                    out.push(Effect::ProfileLine { incident, rank, line });
                }
            }
            IntakeStep::Fatal { target, text, .. } => {
                out.push(Effect::Dying { target, line: String::from_utf8_lossy(text).into_owned() });
            }
            IntakeStep::Version { .. } => {}
            IntakeStep::Problem { target, source, problem } => {
                let server = self.servers.get(usize::from(target.0)).map_or("server", |s| &*s.name);
                let said = match problem {
                    Some(problem) => format!("{server}: {problem}"),
                    None => format!("{server}: its source works again"),
                };
                out.push(Effect::Trouble { source, is_over: problem.is_none(), said });
            }
        }
    }

    /// After everything that came together was recorded.
    pub(super) fn pulse_live(&mut self, store: &mut SignalStore, now: Time, out: &mut Vec<Effect>) {
        if self.mode == Mode::Live {
            self.pulse(store, now, out);
        }
    }

    /// Looks at what the last samples touched.
    fn pulse(&mut self, store: &mut SignalStore, now: Time, out: &mut Vec<Effect>) {
        (self.now, self.looked) = (now, now);
        self.hush(now);
        self.engine.on_samples(store, now, &mut self.changes);
        self.tell_changes(store, now, out);
    }

    /// Lets time pass up to `now`: what time alone changes is looked at.
    pub(super) fn pass(&mut self, store: &mut SignalStore, now: Time, out: &mut Vec<Effect>) {
        (self.now, self.looked) = (now, now);
        self.hush(now);
        self.engine.tick(store, now, &mut self.changes);
        self.tell_changes(store, now, out);
        self.look_again(store, now, out);
        self.unsilence(now, out);
        if now.since(self.swept) >= SWEEP || self.swept > now {
            self.swept = now;
            store.sweep(now);
        }
    }

    /// In a recording no clock ticks: the time between two samples is walked here.
    fn walk_to(&mut self, store: &mut SignalStore, at: Time, out: &mut Vec<Effect>) {
        if self.now == Time::default() {
            self.now = at;
        }
        if at.is_past(self.now, WALKED_GAP) {
            self.now = at - WALKED_GAP;
        }
        while at > self.now + TICK {
            self.pass(store, self.now + TICK, out);
        }
    }

    /// Tells the engine which servers a capture disturbs.
    fn hush(&mut self, now: Time) {
        for server in &mut self.servers {
            let Some(blind) = &server.blind else { continue };
            let quiet = match (blind.trusts(now), blind.may_clear(now)) {
                (true, _) => None,
                (false, true) => Some(Suppression::MayClear),
                (false, false) => Some(Suppression::Nothing),
            };
            self.engine.set_suppression(&server.name, quiet);
            if quiet.is_none() {
                server.blind = None;
            }
        }
    }

    fn tell_changes(&mut self, store: &SignalStore, now: Time, out: &mut Vec<Effect>) {
        if self.changes.is_empty() {
            return;
        }
        let mut changes = std::mem::take(&mut self.changes);
        for change in changes.drain(..) {
            self.changed(store, change, now, out);
        }
        self.changes = changes;
    }

    pub(super) fn server_fact(
        &mut self,
        store: &mut SignalStore,
        target: TargetId,
        fact: ServerFact,
        now: Time,
    ) {
        let Some(server) = self.servers.get_mut(usize::from(target.0)) else { return };
        if let ServerFact::Info(info) = &fact {
            store.note_role(target, info.role);
            store.expect_ranks(target, info.sizes.dp, now);
        }
        server.seen(fact, now);
    }

    pub(super) fn reloaded(
        &mut self,
        store: &mut SignalStore,
        rules: Vec<Rule>,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        for rule in self.engine.reload(rules, store, now) {
            for case in self.incidents.resolve_rule(&rule, now) {
                out.push(Effect::Cleared { incident: case.incident.id.clone() });
                tell(&case, Update::Resolved, out);
            }
        }
    }

    pub(super) fn bundled(&mut self, id: &str, path: String) {
        if let Some(case) = self.incidents.get_mut(id) {
            case.incident.bundle = Some(path);
        }
    }

    /// A window that an agent before this one left open: it disturbs like one of ours, and keeps
    /// others out until it is closed.
    pub(super) fn left_behind(&mut self, target: TargetId, attempt: String, window: OpenWindow, now: Time) {
        self.ledger.left_behind.insert(attempt);
        if let Some(server) = self.servers.get_mut(usize::from(target.0)) {
            server.window_opened(window);
            server.blind = Some(Distrust::opened(now));
        }
    }
}

/// A message about a case, unless it is silenced.
pub(super) fn tell(case: &ActiveIncident, update: Update, out: &mut Vec<Effect>) {
    if case.silenced.is_none() {
        let (incident, receivers) = (case.incident.clone(), case.rule.notify.clone());
        out.push(Effect::Notify { incident: Box::new(incident), update, receivers });
    }
}
