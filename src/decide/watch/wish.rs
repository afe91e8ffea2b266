//! From a change of state to a window: whether one is wished for, granted or refused, and how its
//! incident goes on with what came of it.

use std::sync::Arc;
use std::time::Duration;

use super::Mode;
use super::core::{Core, tell};
use super::event::{Asked, Effect, OpenWindow, WindowNews};
use crate::decide::capture::CaptureSpec;
use crate::decide::capture::admit::{self, Grant, Means};
use crate::decide::capture::governor::{self, Attempt, AttemptEnd, Wish};
use crate::decide::capture::window::Phase as WindowPhase;
use crate::decide::incident::{CaptureOutcome, Finding, IncidentState, ShownBy, VerdictNote};
use crate::decide::labels::{LabelValue, Labels};
use crate::decide::rule::change::{Change, How};
use crate::decide::rule::{Phase, Side};
use crate::decide::signal::sample::TargetId;
use crate::decide::signal::store::SignalStore;
use crate::decide::time::Time;
use crate::explain::message::Update;

/// A wish that only lacked facts is looked at again after this ...
const AGAIN: Duration = Duration::from_secs(1);
/// ... for as long as this: later, a window would no longer show the onset.
const AWAITED: Duration = Duration::from_secs(60);
/// A badness beyond this says nothing more.
const WORST: f64 = 1_000.0;

impl Core {
    /// A rule's state changed.
    pub(super) fn changed(&mut self, store: &SignalStore, change: Change, now: Time, out: &mut Vec<Effect>) {
        if change.how == How::Reblamed {
            self.resolve(&change, out);
        }
        if change.is_onset()
            && let Some(finding) = change.finding.clone()
        {
            return self.fired(store, change, finding, now, out);
        }
        if change.state == Phase::Idle {
            self.resolve(&change, out);
        }
        let capture = self.incidents.firing(&change).map_or("none", |case| case.incident.capture.word());
        out.push(Effect::Changed { change: Box::new(change), capture, why: None });
    }

    fn resolve(&mut self, change: &Change, out: &mut Vec<Effect>) {
        let Some(case) = self.incidents.resolve(change) else { return };
        out.push(Effect::Cleared { incident: case.incident.id.clone() });
        tell(case, Update::Resolved, out);
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
        let is_silenced = self.silences.iter().any(|s| {
            s.until > now
                && s.rule.as_ref().is_none_or(|r| *r == change.rule.name)
                && s.target.as_ref().is_none_or(|t| *t == name)
        });
        let finding = Finding { shown_by: shown_by(store, &change, &finding), ..finding };
        let case = self.incidents.open(&change, finding, name);
        case.is_silenced = is_silenced;
        let id = case.incident.id.clone();
        let warmup = match &case.rule.capture {
            CaptureSpec::Http(http) | CaptureSpec::CudaProfilerApi(http) => http.warmup,
            CaptureSpec::None | CaptureSpec::Nsys(_) | CaptureSpec::Command(_) => Duration::ZERO,
        };
        let mut wished = Vec::new();
        if is_silenced {
            case.incident.capture = CaptureOutcome::Refused { why: "the rule is silenced".into() };
        } else if warmup.is_zero() {
            self.wish(store, &id, target, now, &mut wished);
        } else {
            self.warming.insert(id.clone(), now + warmup);
        }
        let Some(case) = self.incidents.get_mut(&id) else { return };
        let capture = case.incident.capture.word();
        let why = match &case.incident.capture {
            CaptureOutcome::Refused { why } => Some(why.clone()),
            _ => None,
        };
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
                None => self.refuse(&id, "the rule cleared during the warm-up".into(), out),
            }
        }
    }

    fn was_refused(&self, id: &str) -> bool {
        let case = self.incidents.get(id);
        case.is_some_and(|c| matches!(c.incident.capture, CaptureOutcome::Refused { .. }))
    }

    /// One wish of an incident's rule, decided.
    fn wish(
        &mut self,
        store: &SignalStore,
        id: &Arc<str>,
        target: TargetId,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let Some(case) = self.incidents.get_mut(id) else { return };
        let (rule, badness) = (case.rule.clone(), badness_of(&case.incident.finding));
        let fired_at = case.incident.fired_at;
        let Some(server) = self.servers.get_mut(usize::from(target.0)) else { return };
        let (name, group) = (server.name.clone(), server.group.clone());
        let wish = Wish {
            rule: &rule.name,
            limits: &rule.limits,
            target: &name,
            group: &group,
            incident: id,
            badness,
        };
        if self.mode == Mode::Replay {
            return self.would(&rule.capture, &wish, id, now);
        }
        server.note_work(target, store, now);
        match admit::admit(&rule.capture, &wish, &self.ledger, &server.facts, &self.policy, now) {
            Ok(None) => {}
            Ok(Some(grant)) => self.start(id, target, grant, now, out),
            Err(refusal) => {
                if refusal.awaits_facts() && now.since(fired_at) < AWAITED {
                    self.warming.insert(id.clone(), now + AGAIN);
                }
                self.refuse(id, refusal.to_string(), out);
            }
        }
    }

    /// In a recording only the limits can refuse, and a window costs nothing but its place in them.
    fn would(&mut self, spec: &CaptureSpec, wish: &Wish<'_>, id: &Arc<str>, now: Time) {
        if *spec == CaptureSpec::None {
            return;
        }
        let expected = self.ledger.estimate(wish.target, 1);
        let decided = governor::decide(wish, &self.ledger, &self.policy.budget, expected, now);
        let outcome = match decided {
            Ok(()) => CaptureOutcome::WouldStart,
            Err(refusal) => CaptureOutcome::Refused { why: refusal.to_string() },
        };
        if outcome == CaptureOutcome::WouldStart {
            let end = AttemptEnd { at: now, stalled: Duration::ZERO, bytes: 0, unproven: None };
            self.ledger.attempts.push(Attempt { end: Some(end), ..attempt_of(wish, now) });
        }
        if let Some(case) = self.incidents.get_mut(id) {
            case.incident.capture = outcome;
        }
    }

    fn start(&mut self, id: &Arc<str>, target: TargetId, grant: Grant, now: Time, out: &mut Vec<Effect>) {
        self.ledger.attempts.push(grant.attempt.clone());
        let Some(case) = self.incidents.get_mut(id) else { return };
        case.incident.capture = CaptureOutcome::Open { since: now };
        if let Some(server) = self.servers.get_mut(usize::from(target.0)) {
            server.window_opened(open_window(id, &grant.means, now));
        }
        out.push(Effect::Start { incident: Box::new(case.incident.clone()), target, grant: Box::new(grant) });
    }

    fn refuse(&mut self, id: &Arc<str>, why: String, out: &mut Vec<Effect>) {
        let is_news = !self.was_refused(id);
        let Some(case) = self.incidents.get_mut(id) else { return };
        case.incident.capture = CaptureOutcome::Refused { why };
        // A wish that is looked at again and refused again is told once.
        if is_news {
            tell(case, Update::Refused, out);
        }
    }

    /// A wish by hand, or of another system's alert: an incident of its own, through the same
    /// governor as any other.
    pub(super) fn asked(&mut self, store: &SignalStore, asked: Asked, now: Time, out: &mut Vec<Effect>) {
        let Some(server) = self.servers.get(usize::from(asked.target.0)) else { return };
        let change = Change {
            at: now,
            rule: asked.rule,
            target: Some(server.name.clone()),
            group: asked.labels,
            state: Phase::Firing,
            how: How::Entered,
            since: now,
            finding: None,
            numbers: None,
            reason: None,
        };
        let finding = Finding {
            onset: asked.since.unwrap_or(now),
            onset_error_s: 0.0,
            rank: Labels::default(),
            side: Side::Both,
            statistic: "asked".into(),
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
        let Some(case) = self.incidents.get_mut(&id) else { return };
        let refused = match &case.incident.capture {
            CaptureOutcome::Refused { why } => Some(why.clone()),
            _ => None,
        };
        out.append(&mut start);
        out.push(Effect::Answered { incident: id, refused });
    }

    /// A window of ours went on.
    pub(super) fn window_news(&mut self, id: &Arc<str>, news: WindowNews, now: Time, out: &mut Vec<Effect>) {
        let server = self.servers.iter_mut().find(|s| s.window.as_ref().is_some_and(|w| w.incident == *id));
        if let Some(server) = server {
            server.window_news(&news, now);
        }
        let WindowNews::Ended { outcome, end } = news else { return };
        self.book(id, end);
        let Some(case) = self.incidents.get_mut(id) else { return };
        let outcome = *outcome;
        let came = matches!(outcome, CaptureOutcome::Done(_));
        case.incident.capture = outcome;
        if came && case.incident.state == IncidentState::Open {
            case.incident.state = IncidentState::Captured;
        }
        tell(case, Update::Captured, out);
    }

    /// What an attempt cost, on its account.
    fn book(&mut self, incident: &str, end: AttemptEnd) {
        let open = self.ledger.attempts.iter_mut().rev();
        if let Some(attempt) = open.into_iter().find(|a| a.incident == incident && a.end.is_none()) {
            attempt.end = Some(end);
        }
    }

    pub(super) fn compared(&mut self, id: &Arc<str>, note: VerdictNote, out: &mut Vec<Effect>) {
        let Some(case) = self.incidents.get_mut(id) else { return };
        case.incident.verdict = Some(note);
        if case.incident.state == IncidentState::Captured {
            case.incident.state = IncidentState::Compared;
        }
        tell(case, Update::Verdict, out);
    }
}

/// The blamed member's sample nearest to the onset.
fn shown_by(store: &SignalStore, change: &Change, finding: &Finding) -> Option<ShownBy> {
    let signal = store.catalog().signal_named(&finding.signal)?;
    let mut labels = change.group.clone();
    labels.0.extend(finding.rank.0.clone());
    if let Some(target) = &change.target {
        labels = labels.on(target);
    }
    store.nearest(&labels, signal, finding.onset)
}

/// How bad a finding is, in multiples of its bound; at least 1 for what fires.
pub(super) fn badness_of(finding: &Finding) -> f64 {
    let (value, bound) = (finding.value.abs(), finding.bound.abs());
    let ratio = if value >= bound { value / bound } else { bound / value };
    if ratio.is_finite() { ratio.clamp(1.0, WORST) } else { WORST }
}

fn attempt_of(wish: &Wish<'_>, now: Time) -> Attempt {
    Attempt {
        id: format!("{}/1", wish.incident),
        rule: wish.rule.to_owned(),
        target: wish.target.to_owned(),
        group: wish.group.to_owned(),
        incident: wish.incident.to_owned(),
        at: now,
        badness: wish.badness,
        end: None,
    }
}

fn open_window(incident: &Arc<str>, means: &Means, now: Time) -> OpenWindow {
    let (marks, deadline) = match means {
        Means::Http(request) => (Some(request.marks.clone()), request.deadline),
        Means::Nsys(nsys) => (None, nsys.duration),
        Means::Command(command) => (None, command.time_limit),
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
