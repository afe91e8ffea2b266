//! A rule: what imbalance is, for which group of ranks, and what to do at its onset.
//!
//! These are the checked types that the core works with; their YAML form is in `config::rule`.
//! Data flows through the files in this order: a `Frame` of values, [`statistic`], [`condition`]
//! (bounds, side, chance, baseline) with its [`detector`], [`guard`], [`state`] (time), [`group`]
//! (one rule on one group), and [`engine`], which holds them for every rule and group. [`locate`]
//! finds the onset of what fired in the store, [`escalation`] whether what fires has become worse
//! since it was captured, and [`why`] says what is missing when nothing fires.

mod baseline;
mod change;
mod compiled;
mod condition;
mod departure;
mod detector;
mod engine;
mod escalation;
mod factors;
mod group;
pub mod guard;
mod locate;
mod quick_check;
mod state;
mod statistic;
mod why;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::change::{Change, ChangeKind, ChangeLine, Numbers};
pub use self::compiled::EVALUATION_INTERVAL;
pub use self::condition::Condition;
pub use self::engine::Engine;
pub use self::escalation::times_bound;
pub use self::factors::{FactorSet, LearnedServer, MOST_RANKS};
pub use self::guard::Guard;
pub use self::state::{RESUMES_WITHIN, RuleState, Suppression};
pub use self::statistic::Direction;
pub use self::why::{Evaluation, Measured};
use crate::capture::{CaptureSpec, Limits};
pub use crate::finding::Statistic;
use crate::signal::catalog;
use skewtrap_trace::labels::Labels;

/// One rule, checked.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Unique among the rules; states and budgets are kept under it.
    pub name: Arc<str>,
    /// One sentence for people.
    pub about: Option<String>,
    /// Label names that distinguish the compared members (`dp_rank`; or `target`, `dp_rank`).
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
    /// A group whose mean (of the first condition's signal) is below this is not judged.
    pub min_mean: f64,
    /// A group with fewer members is not judged.
    pub min_members: usize,
    /// Where the impact of a trouble is known: no window is spent on one of a smaller share of the
    /// requests.
    pub min_impact: f64,
    /// Whether what it finds while a trouble of the factors is under way on its server, or has just ended, is a
    /// symptom of that trouble instead of an incident of its own.
    pub joins_trouble: bool,
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
    /// A number that changes when what the rule detects changes; it is compared within one process only.
    /// What the rule does about it (capture, limits, receivers, texts) is not part of it: editing those
    /// keeps the state.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let detection = (
            (&self.across, &self.within, &self.trigger, &self.clear),
            (self.keep_firing_for, self.rearm_after, self.min_mean, self.min_members, &self.only_if),
        );
        format!("{detection:?}").hash(&mut hasher);
        hasher.finish()
    }

    /// Whether it compares what the machine tells of the ranks' processes.
    pub fn is_of_machine(&self) -> bool {
        self.trigger.conditions.iter().any(|c| catalog::OF_MACHINE.contains(&c.signal))
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

/// How bad a firing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
