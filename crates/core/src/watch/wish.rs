//! From a change of state to a window: whether one is wished for, granted or refused, and how its
//! incident goes on with what came of it.

use std::sync::Arc;
use std::time::Duration;

use super::Mode;
use super::core::{Core, tell};
use super::event::{Effect, ManualRequest, OpenWindow};
use super::incidents::ActiveIncident;
use crate::capture::CaptureSpec;
use crate::capture::admit::{self, CaptureMethod, CapturePlan};
use crate::capture::governor::{self, Attempt, AttemptEnd};
use crate::capture::refusal::Refusal;
use crate::capture::window::WindowPhase;
use crate::finding::Finding;
use crate::finding::Side;
use crate::incident::{CaptureOutcome, Refused};
use crate::message::Update;
use crate::rule::{Change, How, RuleState, Statistic, times_bound};
use crate::signal::sample::ShownBy;
use crate::signal::sample::TargetId;
use crate::signal::store::SignalStore;
use skewtrap_trace::labels::{LabelValue, Labels};
use skewtrap_trace::time::Time;

/// A wish that only lacked facts is looked at again after this ...
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
        match change.how {
            How::Reblamed => self.resolve(&change, out),
            How::Escalated => return self.worsened(store, change, now, out),
            How::Entered | How::Resumed => {}
        }
        if change.is_onset()
            && let Some(finding) = change.finding.clone()
        {
            return self.fired(store, change, finding, now, out);
        }
        if change.state == RuleState::Idle {
            self.resolve(&change, out);
        }
        if let Some(case) = self.incidents.firing_mut(&change) {
            case.is_away = change.state != RuleState::Firing;
        }
        let incident = self.incidents.firing(&change).map(|case| &case.incident);
        let capture = match incident.map(|i| &i.capture) {
            // That it would start was told with the onset, and whoever counts windows counts those lines.
            Some(CaptureOutcome::WouldStart) => "done",
            Some(capture) => capture.word(),
            None => "none",
        };
        if change.how == How::Resumed
            && let Some(incident) = incident
        {
            change.continue_from(&incident.finding);
        }
        out.push(Effect::Changed { change: Box::new(change), capture, why: None });
    }

    fn resolve(&mut self, change: &Change, out: &mut Vec<Effect>) {
        let Some(case) = self.incidents.resolve(change) else { return };
        out.push(Effect::Cleared { incident: case.incident.id.clone() });
        tell(case, Update::Resolved, out);
        let (rule, target) = (case.rule.name.clone(), case.incident.target.clone());
        let firing = case.firing.clone();
        if self.ledger.over(&rule, &target, &firing, change.at) {
            out.push(Effect::Over { rule, target, firing, at: change.at });
        }
    }

    fn fired(
        &mut self,
        store: &SignalStore,
        change: Change,
        finding: Finding,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let target = self.target_of(&change, &finding);
        let name =
            self.servers.get(usize::from(target.0)).map_or_else(|| "server".into(), |s| s.name.clone());
        let silenced = self.silenced_until(&change.rule.name, &name, now);
        let finding = Finding { shown_by: shown_by(store, &change, &finding), ..finding };
        let case = self.incidents.open(&change, finding, name);
        case.silenced = silenced;
        let id = case.incident.id.clone();
        let warmup = match &case.rule.capture {
            CaptureSpec::Http(http) | CaptureSpec::CudaProfilerApi(http) => http.warmup,
            CaptureSpec::None | CaptureSpec::Nsys(_) | CaptureSpec::Command(_) => Duration::ZERO,
        };
        let mut wished = Vec::new();
        match silenced {
            Some(until) => self.refuse(&id, &Refusal::Silenced { left: until.since(now) }, &mut wished),
            None if warmup.is_zero() => self.wish(store, &id, target, now, &mut wished),
            None => drop(self.warming.insert(id.clone(), now + warmup)),
        }
        let Some(case) = self.incidents.get_mut(&id) else { return };
        let capture = case.incident.capture.word();
        let why = case.incident.capture.refused().map(|r| r.why.clone());
        // The start goes first: every microsecond between the line and the request counts. That it
        // was refused is told after what fired.
        let (starts, refusals): (Vec<_>, Vec<_>) =
            wished.into_iter().partition(|e| matches!(e, Effect::Start { .. }));
        out.extend(starts);
        tell(case, Update::Fired, out);
        out.extend(refusals);
        out.push(Effect::Changed { change: Box::new(change), capture, why });
    }

    /// The server on which a capture would be taken: the group's, or the blamed member's.
    fn target_of(&self, change: &Change, finding: &Finding) -> TargetId {
        let member = match finding.rank.get("target") {
            Some(LabelValue::Text(name)) => Some(name),
            _ => None,
        };
        let name = change.target.as_ref().or(member);
        let index = name.and_then(|n| self.servers.iter().position(|s| s.name == *n)).unwrap_or(0);
        TargetId(u16::try_from(index).unwrap_or(0))
    }

    /// Warm-ups that are over, and wishes that waited for facts: the rule still fires, or it was
    /// nothing.
    pub(super) fn look_again(&mut self, store: &SignalStore, now: Time, out: &mut Vec<Effect>) {
        let due: Vec<Arc<str>> =
            self.warming.iter().filter(|(_, at)| **at <= now).map(|(id, _)| id.clone()).collect();
        for id in due {
            self.warming.remove(&id);
            let firing = self.incidents.firing_now().find(|c| c.incident.id == id);
            let target = firing.and_then(|c| self.servers.iter().position(|s| s.name == c.incident.target));
            match target.and_then(|t| u16::try_from(t).ok()) {
                Some(target) => self.wish(store, &id, TargetId(target), now, out),
                None if self.was_refused(&id) => {}
                None => self.refuse(&id, &Refusal::Cleared, out),
            }
        }
    }

    pub(super) fn was_refused(&self, id: &str) -> bool {
        self.incidents.get(id).is_some_and(|c| c.incident.capture.refused().is_some())
    }

    /// The first wish of an incident's rule.
    fn wish(
        &mut self,
        store: &SignalStore,
        id: &Arc<str>,
        target: TargetId,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let Some(case) = self.incidents.get(id) else { return };
        let (badness, fired_at) = (badness_of(&case.incident.finding), case.incident.fired_at);
        let is_asked = case.is_asked;
        match self.decided(store, id, target, badness, now) {
            Ok(None) => {}
            Ok(Some(granted)) => self.start(id, target, granted, now, out),
            Err(refusal) => {
                // What was asked for is answered now: it is not looked at again.
                if refusal.awaits_facts() && !is_asked && now.since(fired_at) < AWAITED {
                    self.warming.insert(id.clone(), now + AGAIN);
                }
                self.refuse(id, &refusal, out);
                self.watch_worse(id, refusal.again_in(), now);
            }
        }
    }

    /// One wish, decided; `None` when the rule captures nothing.
    pub(super) fn decided(
        &mut self,
        store: &SignalStore,
        id: &Arc<str>,
        target: TargetId,
        badness: f64,
        now: Time,
    ) -> Result<Option<GrantedPlan>, Refusal> {
        let Some(case) = self.incidents.get(id) else { return Ok(None) };
        let Some(server) = self.servers.get_mut(usize::from(target.0)) else { return Ok(None) };
        if self.mode == Mode::Live {
            server.note_work(target, store, now);
        }
        let wish = case.wish(&server.name, &server.group, badness);
        let (spec, ledger, policy) = (&case.rule.capture, &self.ledger, &self.policy);
        if self.mode == Mode::Live {
            let granted = admit::admit(spec, &wish, ledger, &server.facts, policy, now)?;
            return Ok(granted.map(|grant| GrantedPlan::Window(Box::new(grant))));
        }
        // In a recording only the limits can refuse, and a window costs nothing but its place in them.
        if *spec == CaptureSpec::None {
            return Ok(None);
        }
        governor::decide(&wish, ledger, &policy.budget, ledger.estimate(wish.target, 1), now)?;
        let end = AttemptEnd { at: now, stalled: Duration::ZERO, bytes: 0, unproven: None };
        let attempt = Attempt { end: Some(end), ..admit::attempt_of(&wish, ledger, now) };
        Ok(Some(GrantedPlan::Recorded(Box::new(attempt))))
    }

    /// Starts what was granted.
    pub(super) fn start(
        &mut self,
        id: &Arc<str>,
        target: TargetId,
        granted: GrantedPlan,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let Some(case) = self.incidents.get_mut(id) else { return };
        let before = self.ledger.attempts.iter().rev().find(|a| *a.incident == **id).map(|a| a.badness);
        let outcome = match &granted {
            GrantedPlan::Window(_) => CaptureOutcome::Open { since: now },
            GrantedPlan::Recorded(_) => CaptureOutcome::WouldStart,
        };
        case.incident.capture_again(outcome, before);
        match granted {
            GrantedPlan::Window(grant) => {
                self.ledger.attempts.push(grant.attempt.clone());
                if let Some(server) = self.servers.get_mut(usize::from(target.0)) {
                    server.window_opened(open_window(id, &grant.means, now));
                }
                let (incident, receivers) = (Box::new(case.incident.clone()), case.rule.notify.clone());
                out.push(Effect::Start { incident, target, grant, receivers });
            }
            GrantedPlan::Recorded(attempt) => self.ledger.attempts.push(*attempt),
        }
        self.watch_worse(id, None, now);
    }

    pub(super) fn refuse(&mut self, id: &Arc<str>, refusal: &Refusal, out: &mut Vec<Effect>) {
        let Some(case) = self.incidents.get_mut(id) else { return };
        let refused = Refused::from(refusal);
        let before = case.incident.capture.refused().map(|r| r.reason.clone());
        if before.as_ref() != Some(&refused.reason) {
            out.push(refused_effect(case, refusal));
        }
        case.incident.capture = CaptureOutcome::Refused(refused);
        // A wish that is looked at again and refused again is told once; who asked has the answer.
        if before.is_none() && !case.is_asked {
            tell(case, Update::Refused, out);
        }
    }

    /// A wish by hand, or of another system's alert: an incident of its own, through the same
    /// governor as any other.
    pub(super) fn asked(
        &mut self,
        store: &SignalStore,
        asked: ManualRequest,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let Some(server) = self.servers.get(usize::from(asked.target.0)) else { return };
        let change = Change {
            at: now,
            rule: asked.rule,
            target: Some(server.name.clone()),
            group: asked.labels,
            state: RuleState::Firing,
            how: How::Entered,
            since: now,
            finding: None,
            numbers: None,
            reason: None,
            may_predate_start: false,
        };
        let finding = Finding {
            onset: asked.since.unwrap_or(now),
            onset_error_s: 0.0,
            rank: Labels::default(),
            side: Side::Both,
            statistic: Statistic::Other,
            signal: "".into(),
            value: 0.0,
            bound: 0.0,
            members: Vec::new(),
            evidence: Some(asked.why),
            shown_by: None,
        };
        let id = self.incidents.open_asked(&change, finding, server.name.clone());
        let mut start = Vec::new();
        self.wish(store, &id, asked.target, now, &mut start);
        let Some(case) = self.incidents.get(&id) else { return };
        let refused = case.incident.capture.refused().map(|r| r.why.clone());
        out.append(&mut start);
        if !matches!(case.incident.capture, CaptureOutcome::Open { .. }) {
            // Nobody was told that it began: the answer to the request is all that is said.
            self.incidents.resolve_asked(&id, now);
        }
        out.push(Effect::Answered { incident: id, refused });
    }

    /// What was asked for is there, or will not come.
    pub(super) fn asked_over(&mut self, id: &str, now: Time, out: &mut Vec<Effect>) {
        if let Some(case) = self.incidents.resolve_asked(id, now) {
            tell(case, Update::Resolved, out);
        }
    }
}

/// What was granted.
#[derive(Debug)]
pub(super) enum GrantedPlan {
    /// A window.
    Window(Box<CapturePlan>),
    /// In a recording: the place of one in the limits.
    Recorded(Box<Attempt>),
}

/// That a wish came to nothing: for the log and the counter.
pub(super) fn refused_effect(case: &ActiveIncident, refusal: &Refusal) -> Effect {
    let (incident, rule) = (case.incident.id.clone(), case.rule.name.clone());
    Effect::Refused { incident, rule, reason: refusal.word(), why: refusal.to_string() }
}

/// The blamed member's sample nearest to the onset.
fn shown_by(store: &SignalStore, change: &Change, finding: &Finding) -> Option<ShownBy> {
    let signal = store.catalog().signal_named(&finding.signal)?;
    let mut labels = change.group.clone();
    labels.0.extend(finding.rank.0.clone());
    if let Some(target) = &change.target {
        labels = labels.with_target(target);
    }
    store.nearest(&labels, signal, finding.onset)
}

/// How bad a finding is, in multiples of its bound; at least 1 for what fires.
pub(super) fn badness_of(finding: &Finding) -> f64 {
    times_bound(finding.value, finding.bound)
}

fn open_window(incident: &Arc<str>, means: &CaptureMethod, now: Time) -> OpenWindow {
    let (marks, deadline) = match means {
        CaptureMethod::Http(request) => (Some(request.marks.clone()), request.deadline),
        CaptureMethod::Nsys(nsys) => (None, nsys.duration),
        CaptureMethod::Command(command) => (None, command.time_limit),
    };
    OpenWindow {
        incident: incident.clone(),
        marks,
        means: means.word(),
        phase: WindowPhase::Starting,
        since: now,
        deadline,
    }
}
