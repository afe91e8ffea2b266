//! One rule on one group: reads the group's frames, judges them, steps the state, and reports what
//! changed.

use std::sync::Arc;
use std::time::Duration;

use super::Rule;
use super::change::{Change, ChangeKind, Numbers};
use super::compiled::CompiledRule;
use super::condition::{ConditionMemory, ConditionResult, Detected, Judgement, Part, Reading};
use super::detector::GroupDetector;
use super::escalation::{EscalationWatch, times_bound};
use super::factors::{DetectorFindings, DetectorStatus, FactorDetectors, words_of};
use super::guard::GuardCache;
use super::state::{Firing, GroupState, Input, RuleState, Step, Suppression, has_lasted};
use crate::finding::{Finding, MemberValue, Side, Statistic};
use crate::signal::frame::Frame;
use crate::signal::store::{GroupId, SignalStore};
use skewtrap_trace::labels::{LabelValue, Labels};
use skewtrap_trace::rank::rank_name;
use skewtrap_trace::time::Time;

/// A group with too few members is inert after this time; before, ranks may still be arriving.
pub(super) const GRACE: Duration = Duration::from_secs(30);

/// Why what was pending is so no longer while its trigger may still hold.
const SET_BACK: &str = "a window disturbs the samples; what was pending begins anew once it is over";

/// Why a group is not judged.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Unjudged {
    /// This probe has no fresh data.
    NoData(usize),
    /// Fewer members than the rule wants.
    TooFewMembers(usize),
    /// The guard could not be evaluated.
    Guard(String),
}

/// What the last evaluation found, for `why` and the status.
#[derive(Clone, Debug)]
pub(super) enum LastEvaluation {
    Never,
    Unjudged(Unjudged),
    /// The group's mean is below `min_mean`.
    LowLoad(f64),
    Judged {
        trigger: Judgement,
        guard: Option<bool>,
    },
}

/// One group of one rule.
#[derive(Debug)]
pub(super) struct Group {
    /// All its labels, the target included.
    pub labels: Arc<Labels>,
    /// Its id in each probe's view, as of the store's generation.
    pub ids: Vec<Option<GroupId>>,
    pub state: GroupState,
    pub first_seen: Time,
    pub last: LastEvaluation,
    /// What single conditions remember from one evaluation to the next.
    pub memory: ConditionMemory,
    /// The detector, if a condition asks for departures.
    pub detector: Option<Box<GroupDetector>>,
    /// What the detector of factors says of the group while it fires nothing.
    pub detector_status: Option<DetectorStatus>,
    guard_cache: GuardCache,
    /// When it last stopped firing: no onset lies before.
    pub last_cleared: Time,
    /// The trouble of the factors that fired it last.
    trouble: Option<u64>,
    /// Which of the trigger's conditions fired it last.
    fired_by: usize,
    /// While it fires after a capture: whether it gets worse.
    pub escalation: Option<EscalationWatch>,
    /// Since when the clear has held, until it has once held for its time.
    clear_since: Option<Time>,
    /// Whether it once has. Before that, what fires may have begun before this agent was started.
    has_been_clear: bool,
    /// One for each probe; used only for rules with several, whose parts must be read at one time.
    frames: Vec<Frame>,
}

impl Group {
    pub fn new(labels: Arc<Labels>, probes: usize, now: Time) -> Self {
        Self {
            labels,
            ids: vec![None; probes],
            state: GroupState::default(),
            first_seen: now,
            last: LastEvaluation::Never,
            memory: ConditionMemory::default(),
            detector_status: None,
            guard_cache: GuardCache::default(),
            detector: None,
            last_cleared: Time::default(),
            trouble: None,
            fired_by: 0,
            escalation: None,
            clear_since: None,
            has_been_clear: false,
            frames: Vec::new(),
        }
    }

    /// The clock was set by so many nanoseconds.
    pub fn shift(&mut self, by_ns: i64) {
        self.state.shift(by_ns);
        self.memory.shift(by_ns);
        self.detector.iter_mut().for_each(|detector| detector.shift(by_ns));
        self.escalation.iter_mut().for_each(|watch| watch.shift(by_ns));
        Time::shift_all(self.clear_since.iter_mut().chain([&mut self.first_seen]), by_ns);
        // One that never fired has none.
        if self.last_cleared != Time::default() {
            self.last_cleared = self.last_cleared.shifted(by_ns);
        }
    }

    /// The server that it is on, where it is on one.
    pub fn target(&self) -> Option<&Arc<str>> {
        match self.labels.get("target")? {
            LabelValue::Text(name) => Some(name),
            LabelValue::Index(_) => None,
        }
    }

    pub fn rule_state(&self) -> RuleState {
        self.state.rule_state()
    }

    /// Evaluates at `now`.
    pub fn evaluate(
        &mut self,
        compiled: &CompiledRule,
        store: &mut SignalStore,
        factors: &FactorDetectors,
        suppression: Option<Suppression>,
        scratch: &mut Vec<f64>,
        now: Time,
    ) -> Option<Change> {
        let findings =
            if compiled.reads_factors { self.target().and_then(|name| factors.findings(name)) } else { None };
        if let ([probe], [Some(id)]) = (&compiled.probes[..], &self.ids[..]) {
            let frame = store.frame(probe.view, *id, now, probe.smooth);
            return self.judge(
                compiled,
                std::slice::from_ref(frame),
                findings.as_ref(),
                suppression,
                scratch,
                now,
            );
        }
        let mut frames = std::mem::take(&mut self.frames);
        frames.resize_with(compiled.probes.len(), Frame::default);
        for ((probe, id), kept) in compiled.probes.iter().zip(&self.ids).zip(&mut frames) {
            match id {
                Some(id) => kept.copy(store.frame(probe.view, *id, now, probe.smooth)),
                None => kept.clear(),
            }
        }
        let change = self.judge(compiled, &frames, findings.as_ref(), suppression, scratch, now);
        self.frames = frames;
        change
    }

    fn judge(
        &mut self,
        compiled: &CompiledRule,
        frames: &[Frame],
        findings: Option<&DetectorFindings<'_>>,
        suppression: Option<Suppression>,
        scratch: &mut Vec<f64>,
        now: Time,
    ) -> Option<Change> {
        let rule = &compiled.rule;
        if let Some(unjudged) = unjudged(compiled, frames) {
            return self.cannot_judge(compiled, unjudged, now);
        }
        let first = &frames[0];
        let mean = first.summary.mean;
        let is_low_load = mean < rule.min_mean;
        let may_learn = matches!(self.state, GroupState::Warming | GroupState::Idle { .. })
            && !is_low_load
            && suppression.is_none();
        (self.memory.now, self.memory.may_learn) = (now, may_learn);
        if let (Some(inputs), false, None) = (compiled.detector_inputs, is_low_load, suppression) {
            self.detector.get_or_insert_default().observe(inputs, frames, now, may_learn);
        }
        let departure = self.detector.as_ref().and_then(|d| d.evidence());
        self.detector_status = findings.map(DetectorFindings::as_status);
        let detected = Detected { departure: departure.as_ref(), factors: findings };
        let read = compiled.trigger.iter().map(|p| &frames[*p]);
        let trigger = rule.trigger.judge(Part::Trigger, read, detected, &mut self.memory, scratch);
        let is_open =
            matches!(self.state, GroupState::Firing(_) | GroupState::Unknown { interrupted: Some(_) });
        // Only an open firing can clear, and before the first one it matters whether this agent saw it
        // begin: only then is judging the clear worth its time.
        let clear = is_low_load
            || (is_open || !self.has_been_clear) && {
                let read = compiled.clear.iter().map(|p| &frames[*p]);
                // The conditions of a clear have neither a `for` nor a baseline of their own.
                let memory = &mut ConditionMemory::default();
                rule.clear.judge(Part::Clear, read, detected, memory, scratch).holds
            };
        self.note_clear(clear, compiled.holds.clear, now);
        let mut blame = None;
        let mut guard = None;
        if trigger.holds && !is_low_load && suppression.is_none() {
            let frame = &frames[compiled.trigger[trigger.deciding]];
            blame = Some((&frame.members[trigger.reading.member].id, trigger.reading.side));
            match self.evaluate_guard(compiled, frames, blame, now) {
                Ok(answer) => guard = answer,
                Err(e) => return self.cannot_judge(compiled, Unjudged::Guard(e), now),
            }
            blame = blame.filter(|_| guard != Some(false));
            // A trouble of the factors is told from another by its number.
            let by_factors = rule.trigger.conditions[trigger.deciding].statistic == Statistic::Factors;
            if let (Some(named), [a, b], false) = (blame, &frame.members[..], by_factors) {
                blame = Some(self.state.resolve_pair([&a.id, &b.id], named));
            }
        }
        self.last = if is_low_load {
            LastEvaluation::LowLoad(mean)
        } else {
            LastEvaluation::Judged { trigger, guard }
        };
        let input = match suppression {
            None => Input::Judged { trigger: blame, clear, newest: first.newest },
            Some(suppression) => Input::Disturbed { clear: clear && suppression == Suppression::MayClear },
        };
        // What was about to fire and is set back would look like chance.
        let was_pending = self.rule_state() == RuleState::Pending;
        let set_back = suppression.filter(|_| was_pending).map(|_| SET_BACK.to_owned());
        let step = self.state.step(input, compiled.holds, now);
        let step =
            self.assign_trouble(step, rule, findings, blame.is_some().then_some(trigger.deciding), now);
        self.note(step, is_open, trigger.deciding, now);
        match step.how() {
            Some(how) => Some(self.change(how, compiled, Some((&trigger, frames)), findings, set_back, now)),
            None if self.escalation.is_none() => None,
            None if is_low_load || suppression.is_some() => {
                self.interrupt();
                None
            }
            None => self.escalated(compiled, frames, findings, &trigger, scratch, now),
        }
    }

    /// Whether nothing is remembered of its trigger's only condition as long as that does not hold, so that judging the
    /// group again changes nothing but what was read.
    pub fn is_calm(&self) -> bool {
        let does_not_hold = matches!(&self.last, LastEvaluation::Judged { trigger, .. } if !trigger.holds);
        let is_idle = matches!(self.state, GroupState::Idle { .. });
        is_idle
            && does_not_hold
            && self.has_been_clear
            && self.escalation.is_none()
            && self.memory.since(0).is_none()
    }

    /// It was judged without being touched: its trigger's only condition showed this and did not hold.
    pub fn was_calm(&mut self, reading: Reading) {
        let trigger = Judgement { holds: false, deciding: 0, reading };
        self.last = LastEvaluation::Judged { trigger, guard: None };
        self.memory.note(0, ConditionResult::within_bound(reading));
    }

    /// Whether this agent has seen it calm for as long as its clear wants.
    pub const fn has_been_clear(&self) -> bool {
        self.has_been_clear
    }

    /// Whether it fires, and its clear has begun to hold.
    pub fn is_clearing(&self, now: Time) -> bool {
        matches!(&self.state, GroupState::Firing(firing) if firing.clear_for(now).is_some())
    }

    /// Once the clear has held for its time, this agent sees the beginning of whatever fires later.
    fn note_clear(&mut self, clear: bool, hold: Duration, now: Time) {
        self.has_been_clear = self.has_been_clear || has_lasted(&mut self.clear_since, clear, hold, now);
    }

    /// A firing of the factors is of one trouble: another one on the same rank and side is another firing.
    fn assign_trouble(
        &mut self,
        step: Step,
        rule: &Rule,
        findings: Option<&DetectorFindings<'_>>,
        deciding: Option<usize>,
        now: Time,
    ) -> Step {
        let fires_by = deciding.filter(|_| self.rule_state() == RuleState::Firing);
        let by_factors = fires_by.is_some_and(|i| rule.trigger.conditions[i].statistic == Statistic::Factors);
        let trouble = findings.filter(|_| by_factors).and_then(|t| t.trouble).map(|t| t.id);
        match (step, self.trouble, trouble) {
            (Step::Same, Some(before), Some(now_told)) if before != now_told => {
                self.trouble = trouble;
                self.state.blame_anew(now);
                Step::Reblamed
            }
            (Step::Same | Step::Resumed, ..) => step,
            (Step::Moved | Step::Reblamed, ..) => {
                if self.rule_state() == RuleState::Firing {
                    self.trouble = trouble;
                }
                step
            }
        }
    }

    /// Keeps what a step means for later firings.
    fn note(&mut self, step: Step, was_open: bool, deciding: usize, now: Time) {
        if was_open && self.rule_state() == RuleState::Idle {
            self.last_cleared = now;
        }
        let is_new = match step {
            Step::Reblamed => true,
            Step::Moved => self.rule_state() == RuleState::Firing,
            Step::Same | Step::Resumed => false,
        };
        if is_new {
            self.fired_by = deciding;
        }
        if is_new || self.rule_state() == RuleState::Idle {
            self.escalation = None;
        }
    }

    /// The guard's answer; `None` without a guard, and during a firing, which it allowed when it began.
    fn evaluate_guard(
        &mut self,
        compiled: &CompiledRule,
        frames: &[Frame],
        blame: Option<(&Arc<Labels>, Side)>,
        now: Time,
    ) -> Result<Option<bool>, String> {
        let (Some(guard), Some((member, side))) = (&compiled.rule.only_if, blame) else { return Ok(None) };
        if let GroupState::Firing(f) = &self.state
            && f.blame.is(member, side)
        {
            return Ok(None);
        }
        let read = compiled.guard.iter().map(|p| &frames[*p]);
        guard.holds_cached(&mut self.guard_cache, read, now).map(Some).map_err(|e| e.to_string())
    }

    /// The group cannot be judged now: for the time being, or at all.
    fn cannot_judge(&mut self, compiled: &CompiledRule, unjudged: Unjudged, now: Time) -> Option<Change> {
        self.clear_since = None;
        let was_judged = !matches!(self.state, GroupState::Warming | GroupState::Inert);
        let is_too_few = matches!(unjudged, Unjudged::TooFewMembers(_));
        let input = match is_too_few && !was_judged {
            true if now.since(self.first_seen) < GRACE => None,
            true => Some(Input::Impossible),
            false => Some(Input::Absent),
        };
        let reason = self.reason_of(&unjudged, compiled);
        self.last = LastEvaluation::Unjudged(unjudged);
        self.interrupt();
        let step = self.state.step(input?, compiled.holds, now);
        step.how().map(|how| self.change(how, compiled, None, None, Some(reason), now))
    }

    /// Why it is not judged, as a sentence.
    pub fn reason_of(&self, unjudged: &Unjudged, compiled: &CompiledRule) -> String {
        let across = compiled.rule.across.join(", ");
        match unjudged {
            Unjudged::NoData(probe) => {
                format!("no fresh `{}` from any rank of {}", compiled.signal_name(*probe), self.name())
            }
            Unjudged::TooFewMembers(1) => {
                format!("{} has one member ({across}); there is nothing to compare it with", self.name())
            }
            Unjudged::TooFewMembers(n) => {
                format!(
                    "{} has {n} members ({across}); the rule wants {}",
                    self.name(),
                    compiled.rule.min_members
                )
            }
            Unjudged::Guard(e) => e.clone(),
        }
    }

    /// Its name in messages.
    fn name(&self) -> String {
        if self.labels.0.is_empty() { "the group".into() } else { format!("the group {}", self.labels) }
    }

    /// Its firing was captured, or an attempt was made, at `mark` times its bound: from now on it is
    /// reported once it is `by` times worse than that.
    pub fn watch_escalation(&mut self, compiled: &CompiledRule, mark: f64, by: f64) {
        if matches!(self.state, GroupState::Firing(_) | GroupState::Unknown { interrupted: Some(_) }) {
            let settles = compiled.rule.trigger.conditions[self.fired_by].settles();
            self.escalation = Some(EscalationWatch::new(mark, by, settles));
        }
    }

    /// Whether the condition that fired has become worse, on the member and the side that it blamed:
    /// another condition, member or side is no measure of that.
    fn escalated(
        &mut self,
        compiled: &CompiledRule,
        frames: &[Frame],
        findings: Option<&DetectorFindings<'_>>,
        trigger: &Judgement,
        scratch: &mut Vec<f64>,
        now: Time,
    ) -> Option<Change> {
        let (GroupState::Firing(firing), Some(escalation)) = (&self.state, &mut self.escalation) else {
            return None;
        };
        let deciding = self.fired_by;
        let condition = &compiled.rule.trigger.conditions[deciding];
        let frame = &frames[compiled.trigger[deciding]];
        let reading = if trigger.deciding == deciding {
            trigger.reading
        } else {
            let departure = self.detector.as_ref().and_then(|d| d.evidence());
            condition.read(frame, Detected { departure: departure.as_ref(), factors: findings }, scratch)
        };
        let is_same = condition.is_exceeded(&reading)
            && frame.members.get(reading.member).is_some_and(|m| firing.blame.is(&m.id, reading.side));
        // The rest of the trigger and the guard must hold too, as at the onset: a firing lasts until it
        // clears, and is by itself no reason for another window.
        let times = (is_same && trigger.holds).then(|| times_bound(reading.value, condition.bound));
        let guard_cache = &mut self.guard_cache;
        let mut allows = || {
            let read = compiled.guard.iter().map(|p| &frames[*p]);
            let guard = compiled.rule.only_if.as_ref();
            guard.is_none_or(|guard| guard.holds_cached(guard_cache, read, now) == Ok(true))
        };
        let times = times.filter(|times| *times < escalation.threshold() || allows());
        let hold = compiled.holds.trigger.max(condition.hold);
        let is_worse = escalation.observe(times, frame.newest, hold, now);
        let judged = Judgement { holds: true, deciding, reading };
        is_worse.then(|| {
            self.change(ChangeKind::Escalated, compiled, Some((&judged, frames)), findings, None, now)
        })
    }

    fn interrupt(&mut self) {
        if let Some(escalation) = &mut self.escalation {
            escalation.interrupt();
        }
    }

    /// What fired, with the detector's onset, or else the time since when the trigger has held;
    /// [`locate`](super::locate) improves on the latter with what the store remembers.
    fn finding_of(
        &self,
        firing: &Firing,
        since: Time,
        numbers: &Numbers,
        findings: Option<&DetectorFindings<'_>>,
    ) -> Finding {
        let detector = self.detector.as_ref();
        let is_departure = numbers.statistic == Statistic::Departure;
        let located =
            detector.filter(|_| is_departure).and_then(|d| d.onset(&d.evidence()?, self.last_cleared));
        let mut finding = Finding {
            onset_error_s: located.map_or(0.0, |o| o.error_s),
            measured: Some(numbers.measured()),
            members: numbers.members.clone(),
            ..Finding::of((*firing.blame.member).clone(), firing.blame.side, located.map_or(since, |o| o.at))
        };
        if let (Statistic::Factors, Some(findings)) = (numbers.statistic, findings) {
            findings.describe(&mut finding);
            finding.evidence =
                findings.trouble.map(|trouble| format!("{} {}", rank_name(&finding.rank), words_of(trouble)));
        }
        finding
    }

    fn change(
        &self,
        how: ChangeKind,
        compiled: &CompiledRule,
        judged: Option<(&Judgement, &[Frame])>,
        findings: Option<&DetectorFindings<'_>>,
        reason: Option<String>,
        now: Time,
    ) -> Change {
        let mut numbers = judged.map(|(judgement, frames)| numbers_of(compiled, judgement, frames));
        if let (Some(numbers), Some(findings)) = (&mut numbers, findings)
            && numbers.statistic == Statistic::Factors
            && let Some(factor) = findings.trouble.map(|t| t.factor).or(findings.nearest.map(|n| n.factor))
        {
            numbers.members_signal = Some(std::mem::replace(&mut numbers.signal, factor.word().into()));
        }
        let (since, finding) = match &self.state {
            GroupState::Firing(f) => {
                // A condition with a `for` of its own has held since before the trigger did.
                let since = judged
                    .and_then(|(j, _)| self.memory.since(j.deciding))
                    .map_or(f.since, |s| s.min(f.since));
                let begins = numbers.as_ref().filter(|_| how != ChangeKind::Escalated);
                (since, begins.map(|n| self.finding_of(f, since, n, findings)))
            }
            GroupState::Pending { since } => (*since, None),
            _ => (now, None),
        };
        let target = self.target().cloned();
        let mut group = (*self.labels).clone();
        group.0.remove("target");
        let (rule, state) = (compiled.rule.clone(), self.rule_state());
        let (trouble, may_predate_start) = (self.trouble, !self.has_been_clear);
        Change {
            at: now,
            rule,
            target,
            group,
            state,
            how,
            since,
            finding,
            numbers,
            reason,
            trouble,
            may_predate_start,
        }
    }
}

fn numbers_of(compiled: &CompiledRule, judgement: &Judgement, frames: &[Frame]) -> Numbers {
    let condition = &compiled.rule.trigger.conditions[judgement.deciding];
    let members = frames[compiled.trigger[judgement.deciding]].members.iter();
    Numbers {
        condition: judgement.deciding,
        statistic: condition.statistic,
        signal: condition.signal_name.clone(),
        value: judgement.reading.value,
        bound: condition.bound,
        members: members
            .map(|m| MemberValue { rank: (*m.id).clone(), value: m.value, stale: m.stale })
            .collect(),
        members_signal: None,
    }
}

impl Step {
    /// How a state was entered; `None` where it is the same as before.
    const fn how(self) -> Option<ChangeKind> {
        match self {
            Self::Same => None,
            Self::Moved => Some(ChangeKind::Entered),
            Self::Resumed => Some(ChangeKind::Resumed),
            Self::Reblamed => Some(ChangeKind::Reblamed),
        }
    }
}

fn unjudged(compiled: &CompiledRule, frames: &[Frame]) -> Option<Unjudged> {
    let empty = frames[..compiled.required].iter().position(|f| f.members.is_empty());
    let members = frames[0].members.len();
    match empty {
        Some(probe) => Some(Unjudged::NoData(probe)),
        None if members < compiled.rule.min_members => Some(Unjudged::TooFewMembers(members)),
        None => None,
    }
}
