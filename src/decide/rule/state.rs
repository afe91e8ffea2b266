//! The state of one rule on one group: from a verdict a moment to firing and back.
//!
//! `step(input, now)` is the whole of it: no clock, no channel, no memory of samples. Absent data
//! neither fires nor resolves: a firing group that goes silent becomes `unknown` and is the same
//! firing when its data return. What belongs to windows and limits (capturing, cooling) is not here.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::{Rule, Side};
use crate::decide::labels::Labels;
use crate::decide::time::Time;

/// The word for a state, as in every output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
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

impl Phase {
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

/// Who left its peers, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blame {
    /// The member's labels.
    pub member: Arc<Labels>,
    /// High or low.
    pub side: Side,
}

impl Blame {
    /// Whether it is this member on this side. Frames share their labels, so mostly one look at an
    /// address tells.
    pub fn is(&self, member: &Arc<Labels>, side: Side) -> bool {
        self.side == side && (Arc::ptr_eq(&self.member, member) || self.member == *member)
    }
}

/// Where a rule stands with a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Not enough seen yet to judge.
    #[default]
    Warming,
    /// The trigger does not hold; it may not begin again before `rested`.
    Idle {
        /// When a next firing may begin.
        rested: Time,
    },
    /// The trigger has held since.
    Pending {
        /// Since when, without a break.
        since: Time,
    },
    /// It fires.
    Firing(Firing),
    /// The data stopped.
    Unknown {
        /// The firing that they left open.
        was: Option<Firing>,
    },
    /// It cannot fire.
    Inert,
}

/// A firing under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firing {
    /// When it fired.
    pub fired_at: Time,
    /// Since when its trigger has held.
    pub since: Time,
    /// Whom it blames.
    pub blame: Blame,
    /// Since when the clear has held.
    clear_since: Option<Time>,
    /// Somebody else is to blame since.
    other: Option<(Blame, Time)>,
}

impl State {
    /// Its word.
    pub const fn phase(&self) -> Phase {
        match self {
            Self::Warming => Phase::Warming,
            Self::Idle { .. } => Phase::Idle,
            Self::Pending { .. } => Phase::Pending,
            Self::Firing(_) => Phase::Firing,
            Self::Unknown { .. } => Phase::Unknown,
            Self::Inert => Phase::Inert,
        }
    }
}

/// What a moment shows of a group.
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
    /// A capture disturbs the group: nothing begins and nothing goes on; it may end if `clear`.
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
    /// Nothing to tell.
    Same,
    /// The word changed.
    Moved,
    /// A firing goes on after its data were away; no new incident.
    Resumed,
    /// It still fires, and now blames somebody else: an onset of its own.
    Reblamed,
}

impl State {
    /// One moment.
    pub fn step(&mut self, input: Input<'_>, holds: Holds, now: Time) -> Step {
        let before = self.phase();
        let step = match input {
            Input::Impossible => self.lose(Self::Inert),
            Input::Absent => self.lose(Self::Unknown { was: None }),
            Input::Disturbed { clear } => self.endure(clear, holds, now),
            Input::Judged { trigger, clear, newest } => self.judge(trigger, clear, newest, holds, now),
        };
        match step {
            Step::Same if self.phase() != before => Step::Moved,
            other => other,
        }
    }

    /// Data are gone or were never there: an open firing is remembered, not resolved.
    fn lose(&mut self, into: Self) -> Step {
        match std::mem::take(self) {
            Self::Firing(f) => *self = Self::Unknown { was: Some(f) },
            kept @ Self::Unknown { was: Some(_) } => *self = kept,
            // What never was judged is still warming; `unknown` says that something stopped.
            Self::Warming if into != Self::Inert => {}
            _ => *self = into,
        }
        Step::Same
    }

    fn endure(&mut self, clear: bool, holds: Holds, now: Time) -> Step {
        match self {
            Self::Pending { .. } => *self = Self::Idle { rested: now },
            Self::Firing(f) => {
                f.other = None;
                if f.has_cleared(clear, holds, now) {
                    *self = Self::Idle { rested: now + holds.rearm };
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
            Self::Warming | Self::Inert | Self::Unknown { was: None } => *self = Self::Idle { rested: now },
            Self::Unknown { was: Some(f) } => {
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
                if f.has_cleared(clear, holds, now) {
                    *self = Self::Idle { rested: now + holds.rearm };
                } else if let Some(blame) = trigger
                    && f.blames_another(blame, holds, now)
                {
                    return Step::Reblamed;
                } else if trigger.is_none() {
                    f.other = None;
                }
            }
            Self::Idle { rested } => match trigger {
                Some(blame) if now >= *rested && holds.trigger.is_zero() => *self = fired(blame, now, now),
                Some(_) if now >= *rested => *self = Self::Pending { since: now },
                _ => {}
            },
            Self::Pending { since } => match trigger {
                None => *self = Self::Idle { rested: now },
                // One old sample, looked at again and again, is no proof that it lasts.
                Some(blame) if now.since(*since) >= holds.trigger && newest > *since => {
                    *self = fired(blame, *since, now);
                }
                Some(_) => {}
            },
            Self::Warming | Self::Unknown { .. } | Self::Inert => {}
        }
        resumed
    }
}

fn fired((member, side): (&Arc<Labels>, Side), since: Time, now: Time) -> State {
    let blame = Blame { member: member.clone(), side };
    State::Firing(Firing { fired_at: now, since, blame, clear_since: None, other: None })
}

/// Whether what `is` true now has been for as long as `hold`; `since` remembers since when.
pub(super) fn lasts(since: &mut Option<Time>, is: bool, hold: Duration, now: Time) -> bool {
    if !is {
        *since = None;
        return false;
    }
    now.since(*since.get_or_insert(now)) >= hold
}

impl Firing {
    fn has_cleared(&mut self, clear: bool, holds: Holds, now: Time) -> bool {
        lasts(&mut self.clear_since, clear, holds.clear, now)
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
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::decide::signal::rank::Rank;

    const HOLDS: Holds = Holds {
        trigger: Duration::from_secs(3),
        clear: Duration::from_secs(5),
        rearm: Duration::from_secs(2),
    };

    fn t(s: u64) -> Time {
        Time::from_nanos(0) + Duration::from_secs(1000 + s)
    }

    /// Plays a second per letter: `.` even, `0`..`9` that rank high, `a`..`j` that rank low, `_` absent,
    /// `x` disturbed and clear, `X` disturbed and not clear, `!` impossible. Returns what was told, with when.
    fn play(script: &str) -> String {
        let mut state = State::default();
        let mut told = Vec::new();
        for (s, letter) in script.chars().enumerate() {
            let now = t(s as u64);
            let member;
            let input = match letter {
                '_' => Input::Absent,
                '!' => Input::Impossible,
                'x' => Input::Disturbed { clear: true },
                'X' => Input::Disturbed { clear: false },
                '.' => Input::Judged { trigger: None, clear: true, newest: now },
                // Neither: between the two bounds.
                '-' => Input::Judged { trigger: None, clear: false, newest: now },
                c => {
                    let (index, side) = match c.to_digit(10) {
                        Some(d) => (d, Side::High),
                        None => (c as u32 - 'a' as u32, Side::Low),
                    };
                    member = Arc::new(Rank::dp(index as u16).labels());
                    Input::Judged { trigger: Some((&member, side)), clear: false, newest: now }
                }
            };
            let word = match state.step(input, HOLDS, now) {
                Step::Same => continue,
                Step::Moved => state.phase().word().to_owned(),
                Step::Resumed => "resumed".to_owned(),
                Step::Reblamed => "reblamed".to_owned(),
            };
            let whom = match &state {
                State::Firing(f) => format!("({} {:?})", f.blame.member, f.blame.side),
                _ => String::new(),
            };
            told.push(format!("{s}:{word}{whom}"));
        }
        told.join(" ")
    }

    #[test]
    fn a_rule_fires_after_its_for_and_clears_after_its_own() {
        assert_eq!(play(".22222......."), "0:idle 1:pending 4:firing(dp_rank=2 High) 11:idle");
    }

    #[test]
    fn a_break_in_the_trigger_starts_its_for_again() {
        assert_eq!(play(".22-2222"), "0:idle 1:pending 3:idle 4:pending 7:firing(dp_rank=2 High)");
    }

    #[test]
    fn between_the_bounds_a_firing_goes_on() {
        assert_eq!(play(".2222....-....."), "0:idle 1:pending 4:firing(dp_rank=2 High)");
    }

    #[test]
    fn absent_data_neither_fire_nor_resolve() {
        assert_eq!(play(".22_____2"), "0:idle 1:pending 3:unknown 8:pending");
        assert_eq!(
            play(".2222________2....."),
            "0:idle 1:pending 4:firing(dp_rank=2 High) 5:unknown 13:resumed(dp_rank=2 High)"
        );
        assert_eq!(
            play(".2222____......"),
            "0:idle 1:pending 4:firing(dp_rank=2 High) 5:unknown 9:resumed(dp_rank=2 High) 14:idle",
            "the clear counts from when data are back"
        );
        assert_eq!(play("____."), "4:idle", "what never came has not stopped");
    }

    #[test]
    fn another_rank_or_side_that_lasts_fires_anew_without_passing_through_idle() {
        assert_eq!(
            play(".2222211111"),
            "0:idle 1:pending 4:firing(dp_rank=2 High) 9:reblamed(dp_rank=1 High)"
        );
        assert_eq!(play(".22222112111"), "0:idle 1:pending 4:firing(dp_rank=2 High)");
        assert_eq!(play(".22222cccc"), "0:idle 1:pending 4:firing(dp_rank=2 High) 9:reblamed(dp_rank=2 Low)");
    }

    #[test]
    fn a_capture_begins_nothing_and_may_end_a_firing() {
        assert_eq!(play(".22XXX2222"), "0:idle 1:pending 3:idle 6:pending 9:firing(dp_rank=2 High)");
        assert_eq!(play(".2222xxxxxx"), "0:idle 1:pending 4:firing(dp_rank=2 High) 10:idle");
    }

    #[test]
    fn after_a_firing_a_rule_rests_before_it_begins_again() {
        assert_eq!(play(".2222......2222"), "0:idle 1:pending 4:firing(dp_rank=2 High) 10:idle 12:pending");
    }

    #[test]
    fn what_cannot_be_judged_is_inert_until_it_can() {
        assert_eq!(play("!!.!"), "0:inert 2:idle 3:inert");
    }

    #[test]
    fn one_sample_looked_at_for_long_does_not_fire() {
        let mut state = State::default();
        let member = Arc::new(Rank::dp(1).labels());
        for s in 0..60 {
            let input = Input::Judged { trigger: Some((&member, Side::High)), clear: false, newest: t(0) };
            state.step(input, HOLDS, t(s));
        }
        assert_eq!(state.phase(), Phase::Pending);
    }

    #[test]
    fn a_zero_for_fires_at_once() {
        let mut state = State::default();
        let member = Arc::new(Rank::dp(1).labels());
        let holds = Holds { trigger: Duration::ZERO, ..HOLDS };
        let input = Input::Judged { trigger: Some((&member, Side::High)), clear: false, newest: t(0) };
        assert_eq!(state.step(input, holds, t(0)), Step::Moved);
        assert_eq!(state.phase(), Phase::Firing);
    }

    proptest! {
        #[test]
        fn no_firing_begins_without_three_seconds_of_trigger_before_it(script in "[.\\-12ab_xX!]{0,80}") {
            let told = play(&script);
            for word in told.split(' ').filter(|w| w.contains(":firing")) {
                let at: usize = word.split(':').next().and_then(|n| n.parse().ok()).expect("a second");
                let before = &script[at.saturating_sub(3)..=at];
                prop_assert!(before.len() == 4 && before.chars().all(|c| "12ab".contains(c)), "{word} in {script}");
            }
        }

        #[test]
        fn no_firing_ends_without_its_clear_holding_for_long(script in "[.\\-12ab_xX]{0,80}") {
            let told = play(&script);
            let words: Vec<&str> = told.split(' ').collect();
            for pair in words.windows(2).filter(|p| p[1].ends_with(":idle") && !p[0].contains("pending") && !p[0].contains("unknown")) {
                let at: usize = pair[1].split(':').next().and_then(|n| n.parse().ok()).expect("a second");
                if at >= 5 {
                    prop_assert!(script[at - 5..=at].chars().all(|c| ".x".contains(c)), "{} in {script}", pair[1]);
                }
            }
        }
    }
}
