//! One rule on one group: looks at its frames, judges, steps the state, and tells what changed.

mod tell;
mod worse;

use std::sync::Arc;
use std::time::Duration;

use super::Rule;
use super::change::{Change, How};
use super::condition::{Held, Judgement, Part};
use super::engine::Suppression;
use super::guard::Answered;
use super::state::{Holds, Input, RuleState, State, Step, lasts};
use super::watcher::{Courses, Watcher};
use super::worse::Worsening;
use crate::finding::Side;
use crate::signal::frame::Frame;
use crate::signal::store::{GroupId, SignalStore, ViewId};
use skewtrap_trace::labels::Labels;
use skewtrap_trace::time::Time;

/// A group with too few members is called inert after this; ranks may still be arriving before.
pub(super) const GRACE: Duration = Duration::from_secs(30);

/// A view, as a condition looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Probe {
    pub view: ViewId,
    pub smooth: Duration,
}

/// A rule as the engine runs it: which looks its parts need.
#[derive(Debug)]
pub(super) struct Running {
    pub rule: Arc<Rule>,
    pub fingerprint: u64,
    pub holds: Holds,
    /// Distinct looks; the first is that of the trigger's first condition.
    pub looks: Vec<Probe>,
    /// For each condition of the trigger, of the clear, and each signal of the guard, its look.
    pub trigger: Vec<usize>,
    pub clear: Vec<usize>,
    pub guard: Vec<usize>,
    /// Looks from here on are welcome where they arrive, and no group lacks for want of them.
    pub required: usize,
    /// What the detector is fed, if a condition asks for departures.
    pub courses: Option<Courses>,
}

/// Why a group is not judged.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Unjudged {
    /// No fresh data of this look.
    Absent(usize),
    /// Fewer members than the rule wants.
    Few(usize),
    /// The guard could not be evaluated.
    Guard(String),
}

/// What the last evaluation saw, for `why` and the status.
#[derive(Clone, Debug)]
pub(super) enum Seen {
    Nothing,
    Unjudged(Unjudged),
    /// The group's mean is below `min_mean`.
    Light(f64),
    Judged {
        trigger: Judgement,
        guard: Option<bool>,
    },
}

/// One group of one rule.
#[derive(Debug)]
pub(super) struct Group {
    /// All its labels, the target included.
    pub labels: Labels,
    /// Its id in each look's view, as of the store's generation.
    pub ids: Vec<Option<GroupId>>,
    pub state: State,
    pub evaluated: Option<Time>,
    pub first_seen: Time,
    pub seen: Seen,
    /// Since when single conditions have held.
    pub held: Held,
    /// The detector, if a condition asks for departures.
    pub watcher: Option<Box<Watcher>>,
    answered: Answered,
    /// When it last stopped firing: no onset lies before.
    pub settled: Time,
    /// Which condition fired it last.
    fired_by: usize,
    /// While it fires after a capture: whether it gets worse.
    pub worse: Option<Worsening>,
    /// Since when the clear has held, until it once has for its time.
    calm_since: Option<Time>,
    /// Whether it has: before that, what fires may have fired already before this agent looked.
    was_calm: bool,
    /// One per look; only kept up for rules with several, whose parts must be seen at once.
    frames: Vec<Frame>,
}

impl Group {
    pub fn new(labels: Labels, looks: usize, now: Time) -> Self {
        Self {
            labels,
            ids: vec![None; looks],
            state: State::default(),
            evaluated: None,
            first_seen: now,
            seen: Seen::Nothing,
            held: Held::default(),
            answered: Answered::default(),
            watcher: None,
            settled: Time::default(),
            fired_by: 0,
            worse: None,
            calm_since: None,
            was_calm: false,
            frames: Vec::new(),
        }
    }

    pub fn phase(&self) -> RuleState {
        self.state.phase()
    }

    /// Evaluates at `now`.
    pub fn evaluate(
        &mut self,
        running: &Running,
        store: &mut SignalStore,
        quiet: Option<Suppression>,
        sorted: &mut Vec<f64>,
        now: Time,
    ) -> Option<Change> {
        self.evaluated = Some(now);
        if let ([look], [Some(id)]) = (&running.looks[..], &self.ids[..]) {
            let frame = store.frame(look.view, *id, now, look.smooth);
            return self.judge(running, std::slice::from_ref(frame), quiet, sorted, now);
        }
        let mut frames = std::mem::take(&mut self.frames);
        frames.resize_with(running.looks.len(), Frame::default);
        for ((look, id), kept) in running.looks.iter().zip(&self.ids).zip(&mut frames) {
            match id {
                Some(id) => kept.copy(store.frame(look.view, *id, now, look.smooth)),
                None => kept.clear(),
            }
        }
        let change = self.judge(running, &frames, quiet, sorted, now);
        self.frames = frames;
        change
    }

    fn judge(
        &mut self,
        running: &Running,
        frames: &[Frame],
        quiet: Option<Suppression>,
        sorted: &mut Vec<f64>,
        now: Time,
    ) -> Option<Change> {
        let rule = &running.rule;
        if let Some(unjudged) = unjudged(running, frames) {
            return self.lack(running, unjudged, now);
        }
        let lead = &frames[0];
        let mean = lead.summary.mean;
        let is_light = mean < rule.min_mean;
        let may_learn =
            matches!(self.state, State::Warming | State::Idle { .. }) && !is_light && quiet.is_none();
        (self.held.now, self.held.may_learn) = (now, may_learn);
        if let (Some(courses), false, None) = (running.courses, is_light, quiet) {
            self.watcher.get_or_insert_default().observe(courses, frames, now, may_learn);
        }
        let departed = self.watcher.as_ref().and_then(|w| w.evidence());
        let looks = running.trigger.iter().map(|l| &frames[*l]);
        let trigger = rule.trigger.judge(Part::Trigger, looks, departed.as_ref(), &mut self.held, sorted);
        let is_open = matches!(self.state, State::Firing(_) | State::Unknown { was: Some(_) });
        // Only an open firing can clear, and before the first one it is of interest whether this agent
        // saw it begin: only then is the second look worth its time.
        let clear = is_light
            || (is_open || !self.was_calm) && {
                let looks = running.clear.iter().map(|l| &frames[*l]);
                // A clear has neither times nor a past of its own.
                rule.clear.judge(Part::Clear, looks, departed.as_ref(), &mut Held::default(), sorted).holds
            };
        self.note_calm(clear, running.holds.clear, now);
        let mut blame = None;
        let mut guard = None;
        if trigger.holds && !is_light && quiet.is_none() {
            let frame = &frames[running.trigger[trigger.lead]];
            blame = Some((&frame.members[trigger.reading.member].id, trigger.reading.side));
            match self.ask_guard(running, frames, blame, now) {
                Ok(answer) => guard = answer,
                Err(e) => return self.lack(running, Unjudged::Guard(e), now),
            }
            blame = blame.filter(|_| guard != Some(false));
        }
        self.seen = if is_light { Seen::Light(mean) } else { Seen::Judged { trigger, guard } };
        let input = match quiet {
            None => Input::Judged { trigger: blame, clear, newest: lead.newest },
            Some(quiet) => Input::Disturbed { clear: clear && quiet == Suppression::MayClear },
        };
        let step = self.state.step(input, running.holds, now);
        self.note(step, is_open, trigger.lead, now);
        match step.how() {
            Some(how) => Some(self.change(how, running, Some((&trigger, frames)), None, now)),
            None if self.worse.is_none() => None,
            None if is_light || quiet.is_some() => {
                self.interrupt();
                None
            }
            None => self.worsened(running, frames, &trigger, sorted, now),
        }
    }

    /// Once the clear has held for its time, whatever fires later is seen to begin.
    fn note_calm(&mut self, clear: bool, hold: Duration, now: Time) {
        self.was_calm = self.was_calm || lasts(&mut self.calm_since, clear, hold, now);
    }

    /// What a step means for the firings to come.
    fn note(&mut self, step: Step, was_open: bool, lead: usize, now: Time) {
        if was_open && self.phase() == RuleState::Idle {
            self.settled = now;
        }
        let is_new = match step {
            Step::Reblamed => true,
            Step::Moved => self.phase() == RuleState::Firing,
            Step::Same | Step::Resumed => false,
        };
        if is_new {
            self.fired_by = lead;
        }
        if is_new || self.phase() == RuleState::Idle {
            self.worse = None;
        }
    }

    /// What the guard says; nothing without one, or when it was asked before this same firing began.
    fn ask_guard(
        &mut self,
        running: &Running,
        frames: &[Frame],
        blame: Option<(&Arc<Labels>, Side)>,
        now: Time,
    ) -> Result<Option<bool>, String> {
        let (Some(guard), Some((member, side))) = (&running.rule.only_if, blame) else { return Ok(None) };
        if let State::Firing(f) = &self.state
            && f.blame.is(member, side)
        {
            return Ok(None);
        }
        let looks = running.guard.iter().map(|l| &frames[*l]);
        guard.still_holds(&mut self.answered, looks, now).map(Some).map_err(|e| e.to_string())
    }

    /// The group cannot be judged now: for the time being, or at all.
    fn lack(&mut self, running: &Running, unjudged: Unjudged, now: Time) -> Option<Change> {
        self.calm_since = None;
        let was_judged = !matches!(self.state, State::Warming | State::Inert);
        let is_few = matches!(unjudged, Unjudged::Few(_));
        let input = match is_few && !was_judged {
            true if now.since(self.first_seen) < GRACE => None,
            true => Some(Input::Impossible),
            false => Some(Input::Absent),
        };
        let reason = self.reason_of(&unjudged, running);
        self.seen = Seen::Unjudged(unjudged);
        self.interrupt();
        let step = self.state.step(input?, running.holds, now);
        step.how().map(|how| self.change(how, running, None, Some(reason), now))
    }

    /// In words, with what would mend it.
    pub fn reason_of(&self, unjudged: &Unjudged, running: &Running) -> String {
        let across = running.rule.across.join(", ");
        match unjudged {
            Unjudged::Absent(look) => {
                format!("no fresh `{}` from any rank of {}", running.signal_name(*look), self.name())
            }
            Unjudged::Few(1) => {
                format!("{} has one member ({across}); there is nothing to compare it with", self.name())
            }
            Unjudged::Few(n) => {
                format!(
                    "{} has {n} members ({across}); the rule wants {}",
                    self.name(),
                    running.rule.min_members
                )
            }
            Unjudged::Guard(e) => e.clone(),
        }
    }

    /// For messages.
    fn name(&self) -> String {
        if self.labels.0.is_empty() { "the group".into() } else { format!("the group {}", self.labels) }
    }
}

impl Step {
    /// How a state was entered; `None` where it is the same as before.
    const fn how(self) -> Option<How> {
        match self {
            Self::Same => None,
            Self::Moved => Some(How::Entered),
            Self::Resumed => Some(How::Resumed),
            Self::Reblamed => Some(How::Reblamed),
        }
    }
}

fn unjudged(running: &Running, frames: &[Frame]) -> Option<Unjudged> {
    let empty = frames[..running.required].iter().position(|f| f.members.is_empty());
    let few = frames[0].members.len();
    match empty {
        Some(look) => Some(Unjudged::Absent(look)),
        None if few < running.rule.min_members => Some(Unjudged::Few(few)),
        None => None,
    }
}

impl Running {
    /// What a look's signal is called.
    pub fn signal_name(&self, look: usize) -> &str {
        let conditions = self.rule.trigger.conditions.iter().zip(&self.trigger);
        let clears = self.rule.clear.conditions.iter().zip(&self.clear);
        let named = conditions.chain(clears).find(|(_, l)| **l == look).map(|(c, _)| &*c.signal_name);
        let guard = || {
            let guard = self.rule.only_if.as_ref()?;
            guard.names().zip(&self.guard).find(|(_, l)| **l == look).map(|(n, _)| n)
        };
        named.or_else(guard).unwrap_or("?")
    }
}
