//! Time passes, rules are evaluated, changes of state become incidents, and silences hold or end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::event::{Effect, OpenWindow, ServerFact};
use super::incidents::{ActiveIncident, Incidents, Key, Trigger};
use super::server::Server;
use super::{Mode, Setup, TICK};
use crate::capture::admit::Policy;
use crate::capture::facts::ServerFacts;
use crate::capture::governor::{Budget, ClockJump, Ledger};
use crate::capture::line::ProfileLine;
use crate::capture::refusal::Reason;
use crate::capture::window::SettlingTime;
use crate::incident::CaptureOutcome;
use crate::message::{Update, utc};
use crate::printable::{LIMIT, printable_bytes};
use crate::rule::Change;
use crate::rule::Rule;
use crate::rule::{EVALUATION_INTERVAL, Engine, Suppression};
use crate::signal::intake::IntakeStep;
use crate::signal::sample::TargetId;
use crate::signal::store::SignalStore;
use crate::status::Silence;
use skewtrap_trace::time::Time;

/// Of a gap in the data of a recording, only the last part of this length is simulated tick by tick.
const WALKED_GAP: Duration = Duration::from_secs(300);
/// How often standing imbalances are looked for.
const COMPARED_EVERY: Duration = Duration::from_secs(10);
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
    /// Captures that wait for their warm-up, or for facts about the server: the incident, and when to
    /// decide again.
    pub(super) deferred: BTreeMap<Arc<str>, Time>,
    /// Incidents whose verdict asks for a second window.
    pub(super) follow_ups: BTreeSet<Arc<str>>,
    /// Incidents whose cause is looked for again: when, and how often it was looked for.
    pub(super) looks: BTreeMap<Arc<str>, (Time, usize)>,
    /// What fires, or fired a moment ago, by rules on levels that join troubles: such a level may outlive its trouble.
    pub(super) levels: BTreeMap<Key, Change>,
    /// Firings whose impact is still to be looked at, as they were reported.
    pub(super) unreported: BTreeMap<Arc<str>, Change>,
    /// Whether a capture may disturb the samples of a server.
    pub(super) is_disturbed: bool,
    pub(super) now: Time,
    evaluated_at: Time,
    /// When the findings of troubles that go on were brought up to date in a recording.
    followed_at: Time,
    /// When standing imbalances were looked for.
    compared_at: Time,
    swept: Time,
    changes: Vec<Change>,
}

impl Core {
    pub(super) fn new(setup: Setup, store: &mut SignalStore, now: Time) -> Self {
        let servers = setup.targets.into_iter().map(|t| Server::new(t.name, t.group, t.sees_log)).collect();
        let mut engine = Engine::new(setup.rules, store, now);
        engine.accept_false_alarms(setup.policy.budget.false_alarms);
        Self {
            engine,
            servers,
            incidents: Incidents::default(),
            ledger: setup.ledger,
            policy: setup.policy,
            mode: setup.mode,
            silences: Vec::new(),
            deferred: BTreeMap::new(),
            follow_ups: BTreeSet::new(),
            looks: BTreeMap::new(),
            levels: BTreeMap::new(),
            unreported: BTreeMap::new(),
            is_disturbed: false,
            now,
            evaluated_at: now,
            followed_at: now,
            compared_at: now,
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

    pub(super) fn fires_at_once(&self) -> bool {
        self.engine.shortest_interval() < EVALUATION_INTERVAL
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
                if at.is_past(self.evaluated_at, self.engine.shortest_interval()) || self.evaluated_at > at {
                    self.evaluate(store, at, out);
                }
            }
            IntakeStep::Due | IntakeStep::Recorded => {}
            IntakeStep::Read { target, rank, report, fields } => {
                let Some(server) = self.servers.get(usize::from(target.0)) else { return };
                self.engine.read(&server.name, rank, report, fields, at);
            }
            IntakeStep::Profile { target, rank, profile } => {
                let line = ProfileLine::from(profile);
                let Some(server) = self.servers.get_mut(usize::from(target.0)) else { return };
                if let Some(incident) = server.profile_line(rank, &line, at) {
                    out.push(Effect::ProfileLine { incident, rank, line });
                }
            }
            IntakeStep::Fatal { target, text, .. } => {
                self.server_dies(target, printable_bytes(text, LIMIT), at, out);
            }
            IntakeStep::Version { .. } => {}
            IntakeStep::Started { target, started } => {
                let Some(server) = self.servers.get_mut(usize::from(target.0)) else { return };
                if let Some(why) = server.started(started) {
                    let limit = server.facts.server.as_ref().and_then(limit_of);
                    self.engine.server_is(&server.name, limit, true, at);
                    self.restarted(target, why, at, out);
                }
            }
            IntakeStep::Problem { target, source, name, problem } => {
                let server = self.servers.get(usize::from(target.0)).map_or("server", |s| &*s.name);
                let message = match problem {
                    Some(problem) => format!("{server}: {problem}"),
                    None => format!("{server}: source {name} works again"),
                };
                out.push(Effect::SourceProblem { source, is_over: problem.is_none(), message });
            }
            IntakeStep::Stamps { target, source, disagreement } => {
                let server = self.servers.get(usize::from(target.0)).map_or("server", |s| &*s.name);
                let is_over = disagreement.is_none();
                let what =
                    disagreement.unwrap_or_else(|| "its lines are stamped as they arrive again".into());
                let message = format!("{server}: the log: {what}");
                out.push(Effect::SourceProblem { source, is_over, message });
            }
        }
    }

    /// After everything that arrived together was recorded.
    pub(super) fn evaluate_live(&mut self, store: &mut SignalStore, now: Time, out: &mut Vec<Effect>) {
        if self.mode == Mode::Live {
            self.evaluate(store, now, out);
        }
    }

    /// Evaluates what the last samples touched.
    fn evaluate(&mut self, store: &mut SignalStore, now: Time, out: &mut Vec<Effect>) {
        (self.now, self.evaluated_at) = (now, now);
        self.suppress_disturbed(now);
        self.engine.on_samples(store, now, &mut self.changes);
        self.handle_changes(store, now, out);
        // In a recording whose lines are close together no tick is walked.
        if self.mode == Mode::Replay {
            self.resolve_superseded(now, out);
            self.resolve_stale_adopted(now, out);
            self.tell_levels_left(store, now, out);
            self.poll_standing(now, out);
            let is_due = now.is_past(self.followed_at, EVALUATION_INTERVAL) || self.followed_at > now;
            if !self.deferred.is_empty() || is_due && self.incidents.is_any_firing() {
                self.followed_at = now;
                self.follow_troubles(out);
            }
            if !self.deferred.is_empty() {
                self.retry_requests(store, now, out);
            }
            if !self.looks.is_empty() {
                self.refresh_due_causes(store, now, out);
            }
        }
    }

    /// Lets time pass up to `now`, and evaluates what time alone changes.
    pub(super) fn advance(&mut self, store: &mut SignalStore, now: Time, out: &mut Vec<Effect>) {
        (self.now, self.evaluated_at) = (now, now);
        self.suppress_disturbed(now);
        self.engine.tick(store, now, &mut self.changes);
        self.handle_changes(store, now, out);
        self.follow_troubles(out);
        self.poll_standing(now, out);
        self.resolve_superseded(now, out);
        self.resolve_stale_adopted(now, out);
        self.tell_levels_left(store, now, out);
        self.retry_requests(store, now, out);
        self.request_follow_ups(store, now, out);
        self.refresh_due_causes(store, now, out);
        // A recording is walked at its own times, which must not show in what is found.
        if self.mode == Mode::Live {
            self.follow_impact(store, now);
        }
        self.end_silences(now, out);
        self.notify_due_results(now, out);
        if now.since(self.swept) >= SWEEP || self.swept > now {
            self.swept = now;
            store.sweep(now);
        }
    }

    /// What stands for ten minutes need not be looked for every second.
    fn poll_standing(&mut self, now: Time, out: &mut Vec<Effect>) {
        if now.is_past(self.compared_at, COMPARED_EVERY) || self.compared_at > now {
            self.compared_at = now;
            self.follow_standing(now, out);
        }
    }

    /// In a recording no clock ticks: the time between two samples is simulated here.
    fn walk_to(&mut self, store: &mut SignalStore, at: Time, out: &mut Vec<Effect>) {
        if self.now == Time::default() {
            self.now = at;
        }
        if at.is_past(self.now, WALKED_GAP) {
            self.now = at - WALKED_GAP;
        }
        while at > self.now + TICK {
            self.advance(store, self.now + TICK, out);
        }
    }

    /// Informs the engine for which servers a capture disturbs the samples. While none does, no server is
    /// visited: this runs for every sample of any of them.
    fn suppress_disturbed(&mut self, now: Time) {
        if !std::mem::take(&mut self.is_disturbed) {
            return;
        }
        for server in &mut self.servers {
            let Some(settling) = &server.settling else { continue };
            let suppression = match (settling.trusts(now), settling.may_clear(now)) {
                (true, _) => None,
                (false, true) => Some(Suppression::MayClear),
                (false, false) => Some(Suppression::Nothing),
            };
            self.engine.set_suppression(&server.name, suppression);
            self.is_disturbed |= suppression.is_some();
            if suppression.is_none() {
                server.settling = None;
            }
        }
    }

    fn handle_changes(&mut self, store: &SignalStore, now: Time, out: &mut Vec<Effect>) {
        if self.changes.is_empty() {
            return;
        }
        let mut changes = std::mem::take(&mut self.changes);
        for change in changes.drain(..) {
            self.changed(store, change, now, out);
        }
        self.changes = changes;
    }

    /// The wall clock was set. Everything that is waited for goes on as if nobody had, and all that is remembered is as
    /// long ago as before; what people were told, and until when they silenced something, keeps its times.
    pub(super) fn clock_was_set(&mut self, store: &mut SignalStore, jump: ClockJump) {
        let by_ns = jump.by_ns;
        self.ledger.clock_was_set(jump);
        store.shift(by_ns);
        self.engine.shift(by_ns);
        self.incidents.shift(by_ns);
        self.servers.iter_mut().for_each(|server| server.shift(by_ns));
        let looks = self.looks.values_mut().map(|(fired, _)| fired);
        Time::shift_all(self.deferred.values_mut().chain(looks), by_ns);
        let Self { now, evaluated_at, followed_at, compared_at, swept, .. } = self;
        Time::shift_all([now, evaluated_at, followed_at, compared_at, swept], by_ns);
    }

    pub(super) fn server_fact(
        &mut self,
        store: &mut SignalStore,
        target: TargetId,
        fact: ServerFact,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let Some(server) = self.servers.get_mut(usize::from(target.0)) else { return };
        let mut limit = None;
        if let ServerFact::Info(info) = &fact {
            limit = limit_of(info);
            store.note_role(target, info.role);
            store.limit_ranks(target, limit);
            if let Some(dp) = limit {
                store.expect_ranks(target, dp, now);
            }
        }
        let answers = matches!(fact, ServerFact::Info(_));
        server.was_lost |= matches!(fact, ServerFact::Lost);
        let another = server.learn(fact, now);
        if answers {
            self.engine.server_is(&server.name, limit, another.is_some(), now);
        }
        // A server that is about to end still answers for a moment.
        let is_back = answers && std::mem::take(&mut server.was_lost);
        match another {
            Some(why) => self.restarted(target, why, now, out),
            None if is_back => self.server_is_back(target, now, out),
            None => {}
        }
    }

    /// A server is proven to be another instance than before.
    fn restarted(&mut self, target: TargetId, why: String, now: Time, out: &mut Vec<Effect>) {
        if let Some(server) = self.servers.get(usize::from(target.0)) {
            self.ledger.release(&server.name);
            out.push(Effect::Restarted { target, why });
            self.server_is_back(target, now, out);
        }
    }

    pub(super) fn reloaded(
        &mut self,
        store: &mut SignalStore,
        rules: Vec<Rule>,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        for rule in self.engine.reload(rules, store, now) {
            for id in self.incidents.firing_of_rule(&rule) {
                self.end_incident(&id, now, out);
            }
        }
        // Nobody looks for a standing imbalance any more, or sees its end.
        if !self.engine.reads_factors() {
            let standing = self.incidents.firing_now().filter(|a| matches!(a.trigger, Trigger::Standing));
            for id in standing.map(|active| active.incident.id.clone()).collect::<Vec<_>>() {
                self.end_incident(&id, now, out);
            }
        }
    }

    /// Windows are opened by these limits from now on; one that is open goes on.
    pub(super) fn policy_changed(&mut self, budget: Budget, min_free: u64, watch_only: bool) {
        self.engine.accept_false_alarms(budget.false_alarms);
        self.policy = Policy { budget, min_free, watch_only, ..self.policy.clone() };
    }

    /// Begins a silence, which replaces one for the same rule and server. A silence whose end is now only
    /// ends the existing one.
    pub(super) fn silenced(&mut self, silence: Silence, now: Time) {
        self.silences.retain(|s| s.rule != silence.rule || s.target != silence.target);
        if silence.until > now {
            self.silences.push(silence);
        }
    }

    /// Until when the captures of a rule on a server are silenced, if they are.
    pub(super) fn silenced_until(&self, rule: &str, target: &str, now: Time) -> Option<Time> {
        let holds = self.silences.iter().filter(|s| s.until > now && s.covers(rule, target));
        holds.map(|s| s.until).max()
    }

    /// Forgets the silences that are over, and reports what still fires. An incident whose data are
    /// absent may be over too: it is reported once data arrive again and show that it continues.
    pub(super) fn end_silences(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.silences.retain(|s| s.until > now);
        let silenced = self
            .incidents
            .firing_now()
            .filter(|active| active.silenced.is_some() && active.away_since.is_none());
        let outlived = silenced
            .filter(|active| {
                self.silenced_until(&active.incident.rule, &active.incident.target, now).is_none()
            })
            .map(|active| active.incident.id.clone());
        for id in outlived.collect::<Vec<_>>() {
            let Some(active) = self.incidents.get_mut(&id) else { continue };
            let until = active.silenced.take();
            refused_in_silence(active, until);
            notify_beginning(active, out);
        }
    }

    /// A window that an agent before this one left open: it disturbs samples like one of ours, and no
    /// other window opens on the server until it is closed.
    pub(super) fn left_behind(&mut self, target: TargetId, attempt: String, window: OpenWindow, now: Time) {
        self.ledger.left_behind.insert(attempt);
        if let Some(server) = self.servers.get_mut(usize::from(target.0)) {
            server.window_left(window);
            server.settling = Some(SettlingTime::opened(now));
            self.is_disturbed = true;
        }
    }
}

/// How many DP ranks a server has, where that is to be believed.
fn limit_of(server: &ServerFacts) -> Option<u16> {
    server.engine.reports_its_sizes().then_some(server.sizes.dp)
}

/// A silence that held until then is over: the refusal of a window in it says so from now on.
pub(super) fn refused_in_silence(active: &mut ActiveIncident, until: Option<Time>) {
    let what = if active.messages.has_begun() { "came back" } else { "fired" };
    if let (Some(until), CaptureOutcome::Refused(refused)) = (until, &mut active.incident.capture)
        && refused.reason == Reason::Silenced
    {
        refused.why = format!("it was silenced until {} when it {what}", utc(until));
    }
}

/// Tells that an incident began; where that was told before, that it is back. During a silence neither is.
pub(super) fn notify_beginning(active: &mut ActiveIncident, out: &mut Vec<Effect>) {
    if active.silenced.is_none() {
        let update = if active.messages.begin() { Update::Returned } else { Update::Fired };
        notify(active, update, out);
    }
}

/// A message about an incident, unless it is silenced.
pub(super) fn notify(active: &ActiveIncident, update: Update, out: &mut Vec<Effect>) {
    if active.silenced.is_none() {
        let (incident, receivers) = (active.incident.clone(), active.notify.clone());
        out.push(Effect::Notify { incident: Box::new(incident), update, only_edits: false, receivers });
    }
}
