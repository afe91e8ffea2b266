//! From a change of state to a window: whether a capture is requested, and granted or refused.
//!
//! A capture is requested when a rule fires, when somebody asks for one, and when an incident that was
//! captured gets worse ([`super::escalation`]). The governor decides on each in the same way.

use std::sync::Arc;
use std::time::Duration;

use super::Mode;
use super::core::{Core, notify, notify_beginning};
use super::event::{Effect, ManualRequest, OpenWindow};
use super::incidents::{ActiveIncident, Trigger, key_of};
use super::joins::IncidentMatch;
use super::shown::shown_by;
use super::slowness;
use super::windows::notify_result;
use super::worth::impact_delay;
use crate::capture::CaptureSpec;
use crate::capture::admit::{self, CaptureMethod, CapturePlan, RequestKind};
use crate::capture::governor::{self, Attempt, AttemptEnd};
use crate::capture::preflight;
use crate::capture::refusal::Refusal;
use crate::capture::window::WindowPhase;
use crate::finding::Finding;
use crate::incident::{CaptureOutcome, CaptureState, EndReason, IncidentId, IncidentState, Refused};
use crate::message::Update;
use crate::rule::RuleState;
use crate::rule::times_bound;
use crate::rule::{Change, ChangeKind};
use crate::signal::sample::TargetId;
use crate::signal::store::SignalStore;
use skewtrap_trace::labels::LabelValue;
use skewtrap_trace::time::Time;

/// How bad a firing is at least, in multiples of its bound.
const AT_BOUND: f64 = 1.0;
/// The `target` of an incident whose group spans servers, where no label says which one is meant.
const SEVERAL_SERVERS: &str = "several servers";
/// A request that only lacked facts is repeated after this ...
const AGAIN: Duration = Duration::from_secs(1);
/// ... for as long as this: later, a window would no longer show the onset.
const AWAITED: Duration = Duration::from_secs(60);

impl Core {
    /// A rule's state changed.
    pub(super) fn changed(
        &mut self,
        store: &SignalStore,
        mut change: Change,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        if change.how == ChangeKind::Escalated {
            return self.escalated(store, change, now, out);
        }
        if change.how == ChangeKind::Reblamed {
            self.supersede_others(&change, out);
        }
        if change.is_onset()
            && let Some(finding) = change.finding.clone()
        {
            if change.rule.joins_trouble {
                self.levels.insert(key_of(&change), change.clone());
            }
            return match self.incident_of(&change) {
                IncidentMatch::New => self.fired(store, change, finding, now, out),
                IncidentMatch::Reopens(id) => self.reopen_incident(&id, change, finding, store, now, out),
                IncidentMatch::Continues(id) => self.continue_incident(store, &id, change, finding, now, out),
                IncidentMatch::SymptomOf(id) => self.join(&id, change, &finding, out),
            };
        }
        if change.state == RuleState::Idle {
            self.end_symptom(&change, out);
            if !self.may_still_fire(&change, now) {
                match self.is_out_of_sight(&change) {
                    true => self.incidents.firing_mut(&change).into_iter().for_each(|a| a.is_behind = true),
                    false => self.resolve(&change, out),
                }
            }
        }
        if let Some(active) = self.incidents.firing_mut(&change) {
            match change.state {
                RuleState::Firing => (active.away_since, active.taken_up) = (None, None),
                // Of one that was taken up nobody knows yet.
                RuleState::Idle | RuleState::Pending if active.taken_up.is_none() => active.away_since = None,
                RuleState::Idle | RuleState::Pending => {}
                RuleState::Warming | RuleState::Unknown | RuleState::Inert => {
                    active.away_since.get_or_insert(now);
                }
            }
        }
        let incident = self.incidents.firing(&change).map(|active| &active.incident);
        let capture = match incident.map(|i| &i.capture) {
            // That it would start was reported with the onset, and readers count windows by those lines.
            Some(CaptureOutcome::WouldStart) => CaptureState::Done,
            Some(capture) => capture.state(),
            None => CaptureState::None,
        };
        if change.how == ChangeKind::Resumed
            && let Some(incident) = incident
        {
            change.continue_from(&incident.finding);
        }
        out.push(Effect::Changed { change: Box::new(change), capture, why: None });
    }

    fn resolve(&mut self, change: &Change, out: &mut Vec<Effect>) {
        if let Some(id) = self.incidents.firing(change).map(|active| active.incident.id.clone()) {
            self.resolve_incident(&id, change.at, out);
        }
    }

    /// An incident is over, and what it detected with it: the next one may be captured again.
    pub(super) fn resolve_incident(&mut self, id: &IncidentId, at: Time, out: &mut Vec<Effect>) {
        self.end_incident(id, at, out);
        let Some(active) = self.incidents.get(id) else { return };
        let (rule, target) = (active.incident.rule.clone(), active.incident.target.clone());
        let firing = active.firing.clone();
        if self.ledger.over(&rule, &target, &firing, at) {
            out.push(Effect::Over { rule, target, firing, at });
        }
    }

    /// An incident is over; what its rule detected may go on, under a rule that was read anew.
    pub(super) fn end_incident(&mut self, id: &IncidentId, at: Time, out: &mut Vec<Effect>) {
        self.unreported.remove(id);
        // It clears in its warm-up: its end says that nothing is captured.
        if self.deferred.remove(id).is_some() && !self.was_refused(id) {
            let _ = self.refuse(id, &Refusal::Cleared, out);
        }
        let end = self.end_of(id, at);
        if let Some(active) = self.incidents.get_mut(id).filter(|a| a.incident.found_stuck().is_some()) {
            let incident = &mut active.incident;
            let moved = self.engine.resumed(&incident.target, &incident.finding.rank);
            incident.moved_again = moved.filter(|at| *at >= incident.finding.onset);
        }
        let Some(active) = self.incidents.resolve(id, at, end) else { return };
        out.push(Effect::Cleared { incident: active.incident.id.clone() });
        notify(active, Update::Resolved, out);
        if active.silenced.is_some() {
            // What was told of it before the silence has a bundle, which must not stay open.
            out.push(Effect::Store { incident: Box::new(active.incident.clone()) });
        }
    }

    /// How an incident ends that is over now, where that is not that its rule saw it clear.
    fn end_of(&self, id: &str, at: Time) -> Option<EndReason> {
        let active = self.incidents.get(id)?;
        let became_usual = |trouble: u64| self.engine.became_usual(&active.incident.target, trouble);
        let ended_unseen = |trouble: u64| self.engine.ended_unseen(&active.incident.target, trouble);
        match active.incident.trouble.is_some_and(became_usual) {
            true => Some(EndReason::BecameUsual),
            false => (active.is_away_for_good(at) || active.incident.trouble.is_some_and(ended_unseen))
                .then_some(EndReason::NotCompared),
        }
    }

    pub(super) fn fired(
        &mut self,
        store: &SignalStore,
        change: Change,
        finding: Finding,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let target = self.target_of(&change, &finding);
        let server = target.and_then(|t| self.servers.get(usize::from(t.0)));
        let name = server.map_or_else(|| SEVERAL_SERVERS.into(), |s| s.name.clone());
        let silenced = self.silenced_until(&change.rule.name, &name, now);
        let finding = Finding { shown_by: shown_by(store, &change, &finding), ..finding };
        let active = self.incidents.open(&change, finding, name);
        active.silenced = silenced;
        let id = active.incident.id.clone();
        self.note_usual_pause(&id, now);
        self.look_for_cause(store, &id, now);
        let Some(active) = self.incidents.get_mut(&id) else { return };
        let look = impact_delay(active);
        let warmup = match &active.capture {
            CaptureSpec::Http(http) | CaptureSpec::CudaProfilerApi(http) => http.warmup,
            CaptureSpec::None | CaptureSpec::Nsys(_) | CaptureSpec::Command(_) => Duration::ZERO,
        }
        .max(look);
        let mut started = Vec::new();
        match silenced {
            Some(until) => {
                let _ = self.refuse(&id, &Refusal::Silenced { left: until.since(now) }, &mut started);
            }
            None => match target {
                None if active.capture == CaptureSpec::None => {}
                None => {
                    let _ = self.refuse(&id, &Refusal::SpansServers, &mut started);
                }
                Some(_) if active.capture == CaptureSpec::None => {}
                Some(target) if warmup.is_zero() => {
                    let _ = self.request(store, &id, target, now, &mut started);
                }
                Some(target) => match self.foreseen(store, &id, target, warmup, now) {
                    Some(refusal) => {
                        let _ = self.refuse(&id, &refusal, &mut started);
                        self.watch_escalation(&id, refusal.again_in(), now);
                    }
                    None => {
                        self.deferred.insert(id.clone(), now + warmup);
                        if !look.is_zero() {
                            self.unreported.insert(id.clone(), change.clone());
                        }
                    }
                },
            },
        }
        let Some(active) = self.incidents.get_mut(&id) else { return };
        let capture = match self.unreported.contains_key(&id) {
            true => CaptureState::Undecided,
            false => active.incident.capture.state(),
        };
        let why = active.incident.capture.refused().map(|r| r.why.clone());
        // The start goes first: every microsecond between the line and the request counts. A refusal
        // is a line of the message that it fired, and logged after it.
        let (starts, refusals): (Vec<_>, Vec<_>) =
            started.into_iter().partition(|e| matches!(e, Effect::Start { .. }));
        out.extend(starts);
        notify_beginning(active, out);
        out.extend(refusals);
        out.push(Effect::Changed { change: Box::new(change), capture, why });
    }

    /// How long a rank that hangs has stood still says something beside what is usual there. Of one without work
    /// nothing is known to be.
    pub(super) fn note_usual_pause(&mut self, id: &IncidentId, now: Time) {
        let Some(active) = self.incidents.get_mut(id) else { return };
        let incident = &mut active.incident;
        let has_work = incident.finding.impact.as_ref().is_none_or(|impact| impact.requests >= 1.0);
        if incident.found_stuck().is_some() && has_work {
            incident.usual_pause_s = self.engine.usual_pause_s(&incident.target, now);
        }
    }

    /// The server on which a capture would be taken: the only one there is, the group's, or the blamed
    /// member's. `None` where a group spans several servers and no label says which one is meant.
    fn target_of(&self, change: &Change, finding: &Finding) -> Option<TargetId> {
        if self.servers.len() == 1 {
            return Some(TargetId(0));
        }
        let member = match finding.rank.get("target") {
            Some(LabelValue::Text(name)) => Some(name),
            _ => None,
        };
        let name = change.target.as_ref().or(member)?;
        self.target_named(name)
    }

    /// The server of that name.
    pub(super) fn target_named(&self, name: &str) -> Option<TargetId> {
        let index = self.servers.iter().position(|server| *server.name == *name)?;
        u16::try_from(index).ok().map(TargetId)
    }

    /// Warm-ups that are over, and requests that waited for facts: decided now if the rule still fires.
    pub(super) fn retry_requests(&mut self, store: &SignalStore, now: Time, out: &mut Vec<Effect>) {
        let due: Vec<Arc<str>> =
            self.deferred.iter().filter(|(_, at)| **at <= now).map(|(id, _)| id.clone()).collect();
        for id in due {
            self.deferred.remove(&id);
            if self.defer_low_impact(&id, now, out) {
                continue;
            }
            let firing = self.incidents.firing_now().find(|c| c.incident.id == id);
            match firing.and_then(|active| self.target_named(&active.incident.target)) {
                Some(target) => {
                    if self.request(store, &id, target, now, out)
                        && let Some(active) = self.incidents.get_mut(&id)
                    {
                        notify_result(active, Update::Refused, out);
                    }
                }
                None if self.was_refused(&id) => {}
                // Its end says so.
                None => {
                    let _ = self.refuse(&id, &Refusal::Cleared, out);
                }
            }
            if let Some(change) = self.unreported.remove(&id) {
                self.report_weighed(&id, change, now, out);
            }
        }
    }

    /// A firing continues an incident that was reported already: with other blame, or of another rule.
    pub(super) fn reconsider(&mut self, store: &SignalStore, id: &IncidentId, now: Time) {
        self.look_for_cause(store, id, now);
        self.request_if_undecided(id, now);
    }

    /// An incident that goes on and was not captured may be yet.
    pub(super) fn request_if_undecided(&mut self, id: &IncidentId, now: Time) {
        let is_undecided = self.is_undecided(id);
        let active = self.incidents.get(id).filter(|active| is_undecided && active.silenced.is_none());
        if let Some(active) = active {
            self.deferred.insert(id.clone(), now + impact_delay(active));
        }
    }

    /// Whether a window is wanted of an incident that has none so far.
    pub(super) fn is_undecided(&self, id: &str) -> bool {
        self.incidents.get(id).is_some_and(|active| {
            active.capture != CaptureSpec::None
                && matches!(active.incident.capture, CaptureOutcome::None | CaptureOutcome::Refused(_))
        })
    }

    pub(super) fn was_refused(&self, id: &str) -> bool {
        self.incidents.get(id).is_some_and(|c| c.incident.capture.refused().is_some())
    }

    /// The first request of an incident's rule; whether it is refused, for good and not before.
    fn request(
        &mut self,
        store: &SignalStore,
        id: &Arc<str>,
        target: TargetId,
        now: Time,
        out: &mut Vec<Effect>,
    ) -> bool {
        self.refresh_cause(store, id, now);
        let Some(active) = self.incidents.get(id) else { return false };
        let (times_bound, fired_at) = (times_bound_of(&active.incident.finding), active.incident.fired_at);
        match self.decide(store, id, target, times_bound, now) {
            Ok(None) => {}
            Ok(Some(granted)) => self.start(id, target, granted, now, out),
            Err(refusal) => {
                if refusal.awaits_facts() && now.since(fired_at) < AWAITED {
                    self.deferred.insert(id.clone(), now + AGAIN);
                }
                let is_news = self.refuse(id, &refusal, out) && !self.deferred.contains_key(id);
                self.watch_escalation(id, refusal.again_in(), now);
                return is_news;
            }
        }
        false
    }

    /// The refusal that a request after `wait` will meet in any case: people are told of it at once.
    fn foreseen(
        &mut self,
        store: &SignalStore,
        id: &Arc<str>,
        target: TargetId,
        wait: Duration,
        now: Time,
    ) -> Option<Refusal> {
        let times_bound = times_bound_of(&self.incidents.get(id)?.incident.finding);
        self.decide(store, id, target, times_bound, now).err().filter(|refusal| refusal.outlasts(wait))
    }

    /// Decides on one request; `None` when nothing is to be captured.
    pub(super) fn decide(
        &mut self,
        store: &SignalStore,
        id: &Arc<str>,
        target: TargetId,
        times_bound: f64,
        now: Time,
    ) -> Result<Option<Granted>, Refusal> {
        let Some(spec) = self.incidents.get(id).map(|active| active.capture.clone()) else { return Ok(None) };
        self.decide_request(RequestKind::First, &spec, store, (id, target), times_bound, now)
    }

    /// Decides on one request for the window `spec`; `None` when nothing is to be captured.
    pub(super) fn decide_request(
        &mut self,
        kind: RequestKind,
        spec: &CaptureSpec,
        store: &SignalStore,
        (id, target): (&Arc<str>, TargetId),
        times_bound: f64,
        now: Time,
    ) -> Result<Option<Granted>, Refusal> {
        let Some(active) = self.incidents.get(id).filter(|_| *spec != CaptureSpec::None) else {
            return Ok(None);
        };
        // Here, so that none opens in a silence that began after the firing either. Who asks for one gets it.
        if !active.trigger.is_manual()
            && let Some(until) = self.silenced_until(&active.incident.rule, &active.incident.target, now)
        {
            return Err(Refusal::Silenced { left: until.since(now) });
        }
        let Some(server) = self.servers.get_mut(usize::from(target.0)) else { return Ok(None) };
        server.facts.progress = self.engine.progress(&server.name, now);
        if self.mode == Mode::Live {
            server.note_work(target, store, now);
        }
        let request = active.request(&server.name, &server.group, times_bound);
        let (ledger, policy) = (&self.ledger, &self.policy);
        let slowness = match active.trigger {
            Trigger::Manual => slowness::beside(self.incidents.causes_on(&active.incident.target)),
            _ => slowness::of(active.incident.cause.as_ref()),
        };
        if self.mode == Mode::Live {
            let granted =
                admit::admit_request(kind, spec, &request, ledger, &server.facts, policy, slowness, now)?;
            return Ok(granted.map(|plan| Granted::Window(Box::new(plan))));
        }
        // In a recording only the limits can refuse, and a rank that hangs in it; a window costs nothing but
        // its place in the limits.
        governor::decide(&request, ledger, &policy.budget, ledger.estimate(request.target, 1), now)?;
        if !matches!(spec, CaptureSpec::Command(_)) {
            preflight::progress(&server.facts)?;
        }
        let end = AttemptEnd { at: now, ..AttemptEnd::default() };
        let attempt = Attempt { end: Some(end), ..admit::attempt_of(&request, ledger, now) };
        Ok(Some(Granted::Recorded(Box::new(attempt))))
    }

    /// Starts what was granted.
    pub(super) fn start(
        &mut self,
        id: &Arc<str>,
        target: TargetId,
        granted: Granted,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let Some(active) = self.incidents.get_mut(id) else { return };
        let before = self.ledger.attempts.iter().rev().find(|a| *a.incident == **id).map(|a| a.times_bound);
        if active.messages.is_awaiting() {
            // Its verdict comes too late for the message: the next capture takes the place of this one.
            notify_result(active, Update::Captured, out);
        }
        let outcome = match &granted {
            Granted::Window(plan) => CaptureOutcome::Open { since: now, expects: plan.method.expects() },
            Granted::Recorded(_) => CaptureOutcome::WouldStart,
        };
        active.incident.capture_again(outcome, before);
        match granted {
            Granted::Window(plan) => {
                self.ledger.attempts.push(plan.attempt.clone());
                if let Some(server) = self.servers.get_mut(usize::from(target.0)) {
                    server.window_opened(open_window(id, &plan.method, now));
                }
                let (incident, receivers) = (Box::new(active.incident.clone()), active.notify.clone());
                out.push(Effect::Start { incident, target, plan, receivers });
            }
            Granted::Recorded(attempt) => self.ledger.attempts.push(*attempt),
        }
        self.watch_escalation(id, None, now);
    }

    /// Notes and logs a refusal; whether it is the first of this incident.
    pub(super) fn refuse(&mut self, id: &Arc<str>, refusal: &Refusal, out: &mut Vec<Effect>) -> bool {
        let Some(active) = self.incidents.get_mut(id) else { return false };
        let refused = Refused::from(refusal);
        let before = active.incident.capture.refused().map(|r| r.reason);
        if before != Some(refused.reason) {
            out.push(refused_effect(active, refusal));
        }
        active.incident.capture = CaptureOutcome::Refused(refused);
        before.is_none()
    }

    /// See [`super::Watch::request_capture`].
    pub(super) fn request_capture(
        &mut self,
        store: &SignalStore,
        request: ManualRequest,
        now: Time,
        out: &mut Vec<Effect>,
    ) -> Result<IncidentId, Refusal> {
        let target = request.target;
        let Some(server) = self.servers.get(usize::from(target.0)) else {
            return Err(Refusal::UnknownServer { why: "it is not configured".into() });
        };
        let name = server.name.clone();
        let id = self.incidents.open_manual(request, name, now);
        let granted = self.decide(store, &id, target, AT_BOUND, now).and_then(|granted| {
            let (what, why) = ("capture: none".into(), "there is no window to open".into());
            granted.ok_or(Refusal::Never { what, why })
        });
        match granted {
            Ok(granted) => {
                self.start(&id, target, granted, now, out);
                Ok(id)
            }
            Err(refusal) => {
                self.refuse(&id, &refusal, out);
                // Its beginning was not reported, so its end is not reported either: the caller gets the
                // refusal.
                self.incidents.resolve_manual(&id, now);
                Err(refusal)
            }
        }
    }

    /// Resolves a manual incident: its window was captured, or will not be.
    pub(super) fn manual_is_over(&mut self, id: &str, now: Time, out: &mut Vec<Effect>) {
        if let Some(active) = self.incidents.resolve_manual(id, now) {
            notify(active, Update::Resolved, out);
        }
    }

    /// A window that was granted here was refused by the pool before anything was sent: it was no attempt.
    pub(super) fn refused_by_pool(
        &mut self,
        id: &Arc<str>,
        refusal: &Refusal,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let open = |a: &Attempt| *a.incident == **id && a.end.is_none();
        if let Some(attempt) = self.ledger.attempts.iter().rposition(open) {
            self.ledger.attempts.remove(attempt);
        }
        let Some(active) = self.incidents.get_mut(id) else { return };
        if let Some(before) = active.incident.earlier.pop() {
            // The capture before stays what it is; what asked for this one is refused.
            let window = active.incident.next_window();
            if active.incident.state != IncidentState::Resolved {
                let is_compared = before.verdict.is_some();
                active.incident.state =
                    if is_compared { IncidentState::Compared } else { IncidentState::Captured };
            }
            (active.incident.capture, active.incident.verdict) = (before.capture, before.verdict);
            let worse = active.incident.worse.clone().filter(|worse| worse.window == window);
            let follow_up = active.incident.follow_up.as_mut().filter(|second| second.window == window);
            match (worse, follow_up) {
                (Some(worse), _) => drop(self.escalation_refused(id, worse, refusal, out)),
                (None, Some(second)) => {
                    second.refused = Some(Refused::from(refusal));
                    out.push(refused_effect(active, refusal));
                    notify_result(active, Update::Refused, out);
                }
                (None, None) => out.push(refused_effect(active, refusal)),
            }
            // Its bundle says that a window is open.
            out.extend(
                self.incidents.get(id).map(|a| Effect::Store { incident: Box::new(a.incident.clone()) }),
            );
            return self.watch_escalation(id, refusal.again_in(), now);
        }
        let is_manual = active.trigger.is_manual();
        let again = now + refusal.again_in().map_or(AWAITED, |left| left.clamp(AGAIN, AWAITED));
        if !is_manual && again.since(active.incident.fired_at) < AWAITED {
            self.deferred.insert(id.clone(), again);
        }
        let window = active.incident.window();
        if active.refusal_reported < window {
            active.refusal_reported = window;
            self.refuse(id, refusal, out);
            if let Some(active) = self.incidents.get_mut(id) {
                notify_result(active, Update::Refused, out);
            }
        } else {
            // Asked for again and refused again: that is kept, and not told anew.
            active.incident.capture = CaptureOutcome::Refused(Refused::from(refusal));
            out.push(Effect::Store { incident: Box::new(active.incident.clone()) });
        }
        if is_manual {
            self.manual_is_over(id, now, out);
        }
    }
}

#[derive(Debug)]
pub(super) enum Granted {
    Window(Box<CapturePlan>),
    /// In a recording: the place of one in the limits.
    Recorded(Box<Attempt>),
}

/// A refusal, for the log and the counter.
pub(super) fn refused_effect(active: &ActiveIncident, refusal: &Refusal) -> Effect {
    let (incident, rule) = (active.incident.id.clone(), active.incident.rule.clone());
    Effect::Refused { incident, rule, reason: refusal.reason(), why: refusal.to_string() }
}

/// How bad a finding is, in multiples of its bound; at least 1 for what fires.
fn times_bound_of(finding: &Finding) -> f64 {
    finding.measured.as_ref().map_or(AT_BOUND, |m| times_bound(m.value, m.bound))
}

fn open_window(incident: &Arc<str>, method: &CaptureMethod, now: Time) -> OpenWindow {
    let (marks, deadline) = match method {
        CaptureMethod::Http(request) => (Some(request.marks.clone()), request.deadline),
        CaptureMethod::Nsys(nsys) => (None, nsys.duration),
        CaptureMethod::Command(command) => (None, command.time_limit),
    };
    OpenWindow {
        incident: incident.clone(),
        marks,
        means: method.means(),
        phase: WindowPhase::Starting,
        since: now,
        deadline,
    }
}
