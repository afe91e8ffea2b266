//! The state of one rule on one group: from one judgement at a time to firing and back.
//!
//! [`GroupState::step`] is the whole of it: no clock, no channel, no memory of samples. Absent data neither
//! fire nor resolve: a firing group that goes silent becomes `unknown` and is the same firing when its data
//! return, unless that is so late that what happened in between is unknown. Windows and limits (capturing,
//! cooling down) are not part of it.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Rule;
use crate::finding::Side;
use skewtrap_trace::labels::Labels;
use skewtrap_trace::time::Time;

/// A firing whose data were absent for longer is not the same any more: the server was started again, or
/// other firings may have begun and ended meanwhile.
pub const RESUMES_WITHIN: Duration = Duration::from_secs(600);

/// The word for a state, as in every output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleState {
    /// Not enough seen yet to judge.
    Warming,
    /// The trigger does not hold.
    Idle,
    /// The trigger holds, not yet for long enough.
    Pending,
    /// It held for long enough and the clear has not.
    Firing,
    /// The data that it judged have stopped.
    Unknown,
    /// It cannot fire on what this server shows.
    Inert,
}

impl RuleState {
    /// Every state.
    pub const ALL: [Self; 6] =
        [Self::Warming, Self::Idle, Self::Pending, Self::Firing, Self::Unknown, Self::Inert];

    /// `firing`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Warming => "warming",
            Self::Idle => "idle",
            Self::Pending => "pending",
            Self::Firing => "firing",
            Self::Unknown => "unknown",
            Self::Inert => "inert",
        }
    }
}

// Written by hand: a derived schema would repeat the documentation of every state.
#[cfg(feature = "schema")]
impl schemars::JsonSchema for RuleState {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "RuleState".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let all = [Self::Warming, Self::Idle, Self::Pending, Self::Firing, Self::Unknown, Self::Inert];
        schemars::json_schema!({
            "description": "A rule's state.",
            "type": "string",
            "enum": all.map(Self::word)
        })
    }
}

/// The member that left its peers, and on which side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blame {
    /// The member's labels.
    pub member: Arc<Labels>,
    /// High or low.
    pub side: Side,
}

impl Blame {
    /// Whether it is this member on this side. Frames share their labels, so that comparing addresses
    /// mostly suffices.
    pub fn is(&self, member: &Arc<Labels>, side: Side) -> bool {
        self.side == side && (Arc::ptr_eq(&self.member, member) || self.member == *member)
    }
}

/// The state of a rule on a group, with what it remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum GroupState {
    /// Not enough seen yet to judge.
    #[default]
    Warming,
    /// The trigger does not hold.
    Idle {
        /// The next firing cannot begin before this time.
        rearmed_at: Time,
    },
    /// The trigger has held since.
    Pending {
        /// Since when, without a break.
        since: Time,
    },
    Firing(Firing),
    /// The data stopped.
    Unknown {
        /// The firing that they left open.
        interrupted: Option<Firing>,
    },
    /// It cannot fire.
    Inert,
}

/// A firing under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firing {
    pub fired_at: Time,
    /// Since when its trigger has held.
    pub since: Time,
    /// Whom it blames.
    pub blame: Blame,
    /// When the newest of the samples that it was judged by was measured.
    newest: Time,
    /// Since when the clear has held.
    clear_since: Option<Time>,
    /// Another member or side that has been to blame since.
    other: Option<(Blame, Time)>,
}

impl GroupState {
    /// The same without what it remembers.
    pub const fn rule_state(&self) -> RuleState {
        match self {
            Self::Warming => RuleState::Warming,
            Self::Idle { .. } => RuleState::Idle,
            Self::Pending { .. } => RuleState::Pending,
            Self::Firing(_) => RuleState::Firing,
            Self::Unknown { .. } => RuleState::Unknown,
            Self::Inert => RuleState::Inert,
        }
    }
}

/// How much a rule may do while a capture disturbs the samples of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suppression {
    /// The window is open: nothing begins to fire and nothing goes on pending, but a firing may clear.
    MayClear,
    /// The export stalls the server, or has just ended: no sample counts.
    Nothing,
}

/// What one evaluation found of a group.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Both parts of the rule were judged.
    Judged {
        /// Whom the trigger blames, if it holds.
        trigger: Option<(&'a Arc<Labels>, Side)>,
        /// Whether the clear holds.
        clear: bool,
        /// When the newest of the judged samples was measured.
        newest: Time,
    },
    /// A capture disturbs the group: a firing may end if `clear`, and nothing else may happen.
    Disturbed {
        /// Whether the clear holds and may count.
        clear: bool,
    },
    /// The group has no fresh data.
    Absent,
    /// The group cannot be judged at all.
    Impossible,
}

/// How long things must last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holds {
    /// The trigger, before it fires.
    pub trigger: Duration,
    /// The clear, before it stops; `keep_firing_for` included.
    pub clear: Duration,
    /// The rest after that.
    pub rearm: Duration,
}

impl Holds {
    /// Those of a rule.
    pub fn of(rule: &Rule) -> Self {
        Self {
            trigger: rule.trigger.hold,
            clear: rule.clear.hold + rule.keep_firing_for,
            rearm: rule.rearm_after,
        }
    }
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing to report.
    Same,
    /// The state is another than before.
    Moved,
    /// A firing goes on after its data were absent; no new incident.
    Resumed,
    /// It still fires, and now blames another member or side: a new onset.
    Reblamed,
}

impl GroupState {
    /// Blames the same member for another trouble: a firing of its own, with its own onset.
    pub fn blame_anew(&mut self, now: Time) {
        if let Self::Firing(firing) = self {
            (firing.since, firing.fired_at, firing.clear_since, firing.other) = (now, now, None, None);
        }
    }

    /// Whom a firing blames where it blamed one of two members before: that one is high and that the other is low is
    /// one imbalance, whichever of several conditions says it.
    pub fn resolve_pair<'a>(
        &self,
        [a, b]: [&'a Arc<Labels>; 2],
        (member, side): (&'a Arc<Labels>, Side),
    ) -> (&'a Arc<Labels>, Side) {
        let Self::Firing(firing) = self else { return (member, side) };
        let other = if *member == *a { b } else { a };
        let is_opposite =
            matches!((firing.blame.side, side), (Side::High, Side::Low) | (Side::Low, Side::High));
        if is_opposite && firing.blame.member == *other { (other, firing.blame.side) } else { (member, side) }
    }

    /// The clock was set by so many nanoseconds.
    pub fn shift(&mut self, by_ns: i64) {
        match self {
            Self::Idle { rearmed_at: at } | Self::Pending { since: at } => *at = at.shifted(by_ns),
            Self::Firing(firing) | Self::Unknown { interrupted: Some(firing) } => {
                let Firing { fired_at, since, newest, clear_since, other, .. } = firing;
                let other = other.iter_mut().map(|other| &mut other.1);
                Time::shift_all(other.chain(clear_since).chain([fired_at, since, newest]), by_ns);
            }
            Self::Warming | Self::Unknown { interrupted: None } | Self::Inert => {}
        }
    }

    /// Takes the result of one evaluation.
    pub fn step(&mut self, input: Input<'_>, holds: Holds, now: Time) -> Step {
        let before = self.rule_state();
        let step = match input {
            Input::Impossible => self.on_absent(Self::Inert),
            Input::Absent => self.on_absent(Self::Unknown { interrupted: None }),
            Input::Disturbed { clear } => self.on_disturbed(clear, holds, now),
            Input::Judged { trigger, clear, newest } => self.judge(trigger, clear, newest, holds, now),
        };
        match step {
            Step::Same if self.rule_state() != before => Step::Moved,
            other => other,
        }
    }

    /// The group has no data, or cannot be judged: an open firing is remembered, not resolved.
    fn on_absent(&mut self, into: Self) -> Step {
        match std::mem::take(self) {
            Self::Firing(f) => *self = Self::Unknown { interrupted: Some(f) },
            kept @ Self::Unknown { interrupted: Some(_) } => *self = kept,
            // A group that was never judged is still warming; `unknown` says that something stopped.
            Self::Warming if into != Self::Inert => {}
            _ => *self = into,
        }
        Step::Same
    }

    /// A capture disturbs the samples: what is pending starts anew, and a firing may only clear.
    fn on_disturbed(&mut self, clear: bool, holds: Holds, now: Time) -> Step {
        match self {
            Self::Pending { .. } => *self = Self::Idle { rearmed_at: now },
            Self::Firing(f) => {
                f.other = None;
                if f.has_cleared(clear, holds, now) {
                    *self = Self::Idle { rearmed_at: now + holds.rearm };
                }
            }
            _ => {}
        }
        Step::Same
    }

    fn judge(
        &mut self,
        trigger: Option<(&Arc<Labels>, Side)>,
        clear: bool,
        newest: Time,
        holds: Holds,
        now: Time,
    ) -> Step {
        let mut resumed = Step::Same;
        match self {
            Self::Warming | Self::Inert | Self::Unknown { interrupted: None } => {
                *self = Self::Idle { rearmed_at: now }
            }
            Self::Unknown { interrupted: Some(f) } if newest.since(f.newest) > RESUMES_WITHIN => {
                *self = Self::Idle { rearmed_at: now };
                return Step::Same;
            }
            Self::Unknown { interrupted: Some(f) } => {
                // Time without data counts neither for the clear nor for another's blame.
                f.clear_since = None;
                f.other = None;
                *self = Self::Firing(f.clone());
                resumed = Step::Resumed;
            }
            Self::Idle { .. } | Self::Pending { .. } | Self::Firing(_) => {}
        }
        match self {
            Self::Firing(f) => {
                f.newest = f.newest.max(newest);
                if f.has_cleared(clear, holds, now) {
                    *self = Self::Idle { rearmed_at: now + holds.rearm };
                } else if let Some(blame) = trigger
                    && f.blames_another(blame, holds, now)
                {
                    return Step::Reblamed;
                } else if trigger.is_none() {
                    f.other = None;
                }
            }
            Self::Idle { rearmed_at } => match trigger {
                Some(blame) if now >= *rearmed_at && holds.trigger.is_zero() => {
                    *self = fired(blame, now, newest, now)
                }
                Some(_) if now >= *rearmed_at => *self = Self::Pending { since: now },
                _ => {}
            },
            Self::Pending { since } => match trigger {
                None => *self = Self::Idle { rearmed_at: now },
                // One old sample that is judged again and again does not prove that the trigger holds on.
                Some(blame) if now.since(*since) >= holds.trigger && newest > *since => {
                    *self = fired(blame, *since, newest, now);
                }
                Some(_) => {}
            },
            Self::Warming | Self::Unknown { .. } | Self::Inert => {}
        }
        // A firing that cleared in this same step was not resumed.
        if matches!(self, Self::Firing(_)) { resumed } else { Step::Same }
    }
}

fn fired((member, side): (&Arc<Labels>, Side), since: Time, newest: Time, now: Time) -> GroupState {
    let blame = Blame { member: member.clone(), side };
    GroupState::Firing(Firing { fired_at: now, since, blame, newest, clear_since: None, other: None })
}

/// Whether what `is` true now has been true for as long as `hold`; `since` remembers since when.
pub(super) fn has_lasted(since: &mut Option<Time>, is: bool, hold: Duration, now: Time) -> bool {
    if !is {
        *since = None;
        return false;
    }
    now.since(*since.get_or_insert(now)) >= hold
}

impl Firing {
    fn has_cleared(&mut self, clear: bool, holds: Holds, now: Time) -> bool {
        has_lasted(&mut self.clear_since, clear, holds.clear, now)
    }

    /// For how long its clear has held.
    pub(super) fn clear_for(&self, now: Time) -> Option<Duration> {
        self.clear_since.map(|since| now.since(since))
    }

    /// Whether another member, or the other side, has been to blame for as long as a firing needs;
    /// if so, it is blamed from here on.
    fn blames_another(&mut self, (member, side): (&Arc<Labels>, Side), holds: Holds, now: Time) -> bool {
        if self.blame.is(member, side) {
            self.other = None;
            return false;
        }
        let same = self.other.as_ref().is_some_and(|(b, _)| b.is(member, side));
        if !same {
            self.other = Some((Blame { member: member.clone(), side }, now));
        }
        let lasted = self.other.as_ref().is_some_and(|(_, since)| now.since(*since) >= holds.trigger);
        if lasted && let Some((blame, since)) = self.other.take() {
            self.blame = blame;
            self.since = since;
            self.fired_at = now;
            self.clear_since = None;
        }
        lasted
    }
}

#[cfg(test)]
mod tests;
