//! A rule: what imbalance is, for which group of ranks, and what to do at its onset.
//!
//! These are the checked types that the core works with; their YAML form is in `config::rule`.
//! Data flows through the files in this order: a [`Frame`] of values, [`statistic`], [`condition`]
//! (bounds, side, chance, baseline), [`guard`], [`state`] (time), and [`engine`], which holds them
//! for every rule and group; [`why`] says what is missing when nothing fires, and [`worse`] whether
//! what fires has become worse since it was captured.

mod baseline;
pub mod change;
pub mod condition;
mod course;
pub mod departure;
pub mod engine;
mod group;
pub mod guard;
pub mod state;
pub mod statistic;
mod watcher;
pub mod why;
pub mod worse;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::change::{Change, ChangeLine};
pub use self::condition::Condition;
pub use self::engine::Engine;
pub use self::guard::Guard;
pub use self::state::Phase;
use self::statistic::Summary;
pub use self::statistic::{Direction, Statistic};
use crate::decide::capture::CaptureSpec;
use crate::decide::labels::Labels;
use crate::decide::time::Time;

/// One rule, checked.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Unique; state and budgets are kept under it.
    pub name: Arc<str>,
    /// One sentence for people.
    pub about: Option<String>,
    /// Label names that tell the compared members apart (`dp_rank`; or `target`, `dp_rank`).
    pub across: Vec<Arc<str>>,
    /// Label names on which the members of a group agree (`target`, `role`).
    pub within: Vec<Arc<str>>,
    /// When it fires.
    pub trigger: Trigger,
    /// When it stops firing.
    pub clear: Trigger,
    /// Keep firing this long after `clear` held.
    pub keep_firing_for: Duration,
    /// Rest this long after a firing before the next can begin.
    pub rearm_after: Duration,
    /// What else must be true, over the same signals, for it to fire.
    pub only_if: Option<Guard>,
    /// No verdict on a group whose mean (of the first condition's signal) is below this.
    pub min_mean: f64,
    /// No verdict on a group with fewer members.
    pub min_members: usize,
    /// What to capture when it fires.
    pub capture: CaptureSpec,
    /// How often it may capture.
    pub limits: Limits,
    /// How bad it is.
    pub severity: Severity,
    /// Names of receivers; empty means the configuration's default ones.
    pub notify: Vec<Arc<str>>,
    /// Free labels for routing.
    pub labels: Labels,
}

impl Rule {
    /// A number that changes when what the rule detects changes. What it does about it (capture,
    /// limits, receivers, texts) does not count: editing those keeps the state.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let detection = (
            (&self.across, &self.within, &self.trigger, &self.clear),
            (self.keep_firing_for, self.rearm_after, self.min_mean, self.min_members, &self.only_if),
        );
        format!("{detection:?}").hash(&mut hasher);
        hasher.finish()
    }

    /// The trigger's conditions, then the clear's.
    pub fn conditions(&self) -> impl Iterator<Item = &Condition> {
        self.trigger.conditions.iter().chain(&self.clear.conditions)
    }
}

/// Conditions and how they combine.
#[derive(Clone, Debug)]
pub struct Trigger {
    /// Whether all or any of the conditions must hold.
    pub combine: Combine,
    /// At least one.
    pub conditions: Vec<Condition>,
    /// How long it must hold without a break.
    pub hold: Duration,
}

/// How conditions combine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Combine {
    /// Every one must hold.
    All,
    /// One suffices.
    Any,
}

/// The side on which a member left its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Above.
    High,
    /// Below.
    Low,
    /// Either.
    Both,
}

impl Side {
    /// `high`, `low` or `both`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Low => "low",
            Self::Both => "both",
        }
    }
}

/// How often a rule may open a window.
#[derive(Clone, Debug)]
pub struct Limits {
    /// At least this long between two windows.
    pub cooldown: Duration,
    /// At most this many ...
    pub captures: u32,
    /// ... in any stretch of this length.
    pub per: Duration,
}

/// How bad a firing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// For the record.
    Info,
    /// Somebody should look today.
    Warning,
    /// Somebody should look now.
    Critical,
}

impl Severity {
    /// As in YAML and messages: `warning`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// What the engine is shown of a group: every member's value of one signal at one time.
#[derive(Debug, Default)]
pub struct Frame {
    /// Members in the order of their labels.
    pub members: Vec<Member>,
    /// Their values, in the same order.
    pub values: Vec<f64>,
    /// What every rule that looks starts from.
    pub summary: Summary,
    /// When the newest value was measured.
    pub newest: Time,
}

impl Frame {
    /// A frame of these members.
    pub fn of(members: Vec<Member>) -> Self {
        let mut frame = Self { members, ..Self::default() };
        frame.sum_up();
        frame
    }

    /// Takes in what the members say now; to be called when they have changed.
    pub fn sum_up(&mut self) {
        self.values.clear();
        self.values.extend(self.members.iter().map(|m| m.value));
        self.summary = Summary::of(&self.values);
        self.newest = self.members.iter().map(|m| m.at).max().unwrap_or_default();
    }

    /// Takes what another frame shows. Most often the members are the same ones: then only their
    /// numbers are copied.
    pub fn copy(&mut self, other: &Self) {
        let are_same = self.members.len() == other.members.len()
            && self.members.iter().zip(&other.members).all(|(a, b)| Arc::ptr_eq(&a.id, &b.id));
        if are_same {
            for (member, m) in self.members.iter_mut().zip(&other.members) {
                (member.value, member.at, member.stale) = (m.value, m.at, m.stale);
            }
        } else {
            self.members.clone_from(&other.members);
        }
        self.values.clone_from(&other.values);
        (self.summary, self.newest) = (other.summary, other.newest);
    }

    /// Shows nobody.
    pub fn clear(&mut self) {
        self.members.clear();
        self.sum_up();
    }
}

/// One member of a group.
#[derive(Clone, Debug)]
pub struct Member {
    /// The `across` labels: `dp_rank=2`; shared, so that showing a frame copies nothing.
    pub id: Arc<Labels>,
    /// Its value; 0 when it went silent while its peers are active (then `stale` is set).
    pub value: f64,
    /// When that was last measured.
    pub at: Time,
    /// Whether it went silent.
    pub stale: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::signal::rank::Rank;

    #[test]
    fn a_copy_shows_what_the_other_shows_whoever_was_in_it_before() {
        let frame = |values: &[f64]| {
            let member = |(i, value): (usize, &f64)| Member {
                id: Arc::new(Rank::dp(i as u16).labels()),
                value: *value,
                at: Time::from_epoch_s(100.0 + i as f64),
                stale: i == 1,
            };
            Frame::of(values.iter().enumerate().map(member).collect())
        };
        let (first, second) = (frame(&[1.0, 5.0]), frame(&[4.0, 2.0, 3.0]));
        let mut changed = Frame { members: first.members.clone(), ..Frame::default() };
        changed.members[0].value = 9.0;
        changed.sum_up();
        let mut copy = Frame::default();
        for source in [&first, &changed, &second, &first] {
            copy.copy(source);
            assert_eq!(format!("{copy:?}"), format!("{source:?}"));
        }
        assert_eq!((copy.summary.max, copy.newest), (5.0, Time::from_epoch_s(101.0)));
        copy.clear();
        assert_eq!((copy.members.len(), copy.summary, copy.newest), (0, Summary::default(), Time::default()));
    }
}
