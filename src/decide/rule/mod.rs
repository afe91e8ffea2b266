//! A rule: what imbalance is, for which group of ranks, and what to do at its onset.
//!
//! These are the checked types that the core works with; their YAML form is in `config::rule`.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::decide::capture::CaptureSpec;
use crate::decide::labels::Labels;
use crate::decide::signal::sample::Signal;
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

/// One statistic of one signal against its bounds.
#[derive(Clone, Debug)]
pub struct Condition {
    /// The signal whose values, one a member, the statistic summarises.
    pub signal: Signal,
    /// Which number.
    pub statistic: Statistic,
    /// Its bound; for a trigger it is exceeded, for a clear it is kept.
    pub bound: f64,
    /// Which side may be blamed.
    pub side: Side,
    /// In a trigger: the excess must also be more than this many times what random arrival
    /// explains. In a clear: it suffices that it is within this many.
    pub chance: Option<f64>,
    /// The statistic must exceed the group's own learned baseline by this factor.
    pub above_baseline: Option<f64>,
    /// Values are averaged over this window first; zero for none.
    pub smooth: Duration,
}

/// One number per group and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Statistic {
    /// The load-imbalance factor: 1 when even, n when one of n ranks has everything.
    MaxOverMean,
    /// 1 when even, 0 when a rank is idle.
    MinOverMean,
    /// In the signal's unit.
    MaxMinusMin,
    /// Coefficient of variation: standard deviation over mean.
    Cv,
    /// Gini coefficient, 0 when even.
    Gini,
    /// Jain's fairness index, 1 when even, 1/n when one of n has everything.
    Jain,
    /// 1 - mean/max: the share of the group's capacity that waits for its fullest rank.
    LostShare,
    /// The largest distance from the median in units of the median absolute deviation.
    RobustZ,
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

/// What the engine is shown of a group: every member's value of one signal at one time.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    /// Members in the order of their labels.
    pub members: Vec<Member>,
}

/// One member of a group.
#[derive(Clone, Debug)]
pub struct Member {
    /// The `across` labels: `dp_rank=2`.
    pub id: Labels,
    /// Its value; 0 when it went silent while its peers are active (then `stale` is set).
    pub value: f64,
    /// When that was last measured.
    pub at: Time,
    /// Whether it went silent.
    pub stale: bool,
}
