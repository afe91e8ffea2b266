//! `trigger:` and `clear:` in YAML.
//!
//! A statistic is written as the key, its bound as the value: `{ max_over_mean: 1.5, for: 3s }`.
//! Several conditions go under `all:` or `any:`. A clear that is not written is derived from the
//! trigger.

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::de::Field;
use super::diagnostic::Findings;
use super::effective::Settings;
use super::quantity::Span;
use super::tree::Place;
use skewtrap_core::finding::Side;
use skewtrap_core::rule::{Combine, Condition, Direction, Trigger};
use skewtrap_core::signal::catalog::Catalog;

mod bound;
mod clear;
mod one;

pub(super) use bound::check_min_mean;
pub use bound::{can_clear, can_trigger};
pub use clear::clear_of;
use one::condition_of;

/// The keys that a condition has, whether it stands alone or in a list.
macro_rules! condition_keys {
    ($(#[$doc:meta])* $name:ident { $($more:tt)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $($more)*
            /// Another signal than the rule's.
            signal: Field<String>,
            /// Load-imbalance factor: 1 when even, n when one of n ranks has everything.
            max_over_mean: Field<f64>,
            /// 1 when even, 0 when a rank is idle; fires below.
            min_over_mean: Field<f64>,
            /// In the signal's unit.
            max_minus_min: Field<f64>,
            /// Standard deviation over mean.
            cv: Field<f64>,
            /// Gini coefficient: 0 when even.
            gini: Field<f64>,
            /// Jain's fairness index: 1 when even; fires below.
            jain: Field<f64>,
            /// 1 - mean/max: the share of capacity that waits for the fullest rank.
            lost_share: Field<f64>,
            /// Largest distance from the median in robust standard deviations.
            robust_z: Field<f64>,
            /// How far a rank's course has departed from its peers', in standard deviations of what is
            /// usual in this group, learned as it goes; 5 is rare on healthy load.
            departure: Field<f64>,
            /// Some member is `above` or `below` this.
            any_member: Field<MemberText>,
            /// Every member is `above` or `below` this.
            all_members: Field<MemberText>,
            /// Which side may be blamed.
            side: Field<SideText>,
            /// In a trigger: the excess must also be this many times what chance explains.
            beyond_chance: Field<f64>,
            /// In a clear: it suffices that the excess is within this many times what chance explains.
            within_chance: Field<f64>,
            /// The statistic must exceed what this group usually shows by this factor.
            above_baseline: Field<f64>,
            /// Average each member over this window first.
            smooth: Field<Span>,
        }
    };
}

condition_keys! {
    /// One condition of several.
    ConditionText {
        /// How long it must hold before it counts.
        #[serde(rename = "for")]
        hold: Field<Span>,
    }
}

condition_keys! {
    /// A condition, or several under `all` or `any`, and how long it must hold.
    TriggerText {
        /// How long it must hold without a break. Default 0s in a trigger, 10s in a clear.
        #[serde(rename = "for")]
        hold: Field<Span>,
        /// Every one of these must hold.
        all: Field<Vec<Field<ConditionText>>>,
        /// One of these must hold.
        any: Field<Vec<Field<ConditionText>>>,
    }
}

/// A bound on the members' own values.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MemberText {
    /// Larger than this.
    above: Field<f64>,
    /// Smaller than this.
    below: Field<f64>,
}

/// The side on which a member left its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SideText {
    /// Above its peers.
    High,
    /// Below its peers.
    Low,
    /// Either.
    Both,
}

impl From<SideText> for Side {
    fn from(text: SideText) -> Self {
        match text {
            SideText::High => Self::High,
            SideText::Low => Self::Low,
            SideText::Both => Self::Both,
        }
    }
}

impl TriggerText {
    /// Itself as a condition, without `for`, `all` and `any`.
    fn alone(&self) -> ConditionText {
        let t = self.clone();
        ConditionText {
            hold: Field::Absent,
            signal: t.signal,
            max_over_mean: t.max_over_mean,
            min_over_mean: t.min_over_mean,
            max_minus_min: t.max_minus_min,
            cv: t.cv,
            gini: t.gini,
            jain: t.jain,
            lost_share: t.lost_share,
            robust_z: t.robust_z,
            departure: t.departure,
            any_member: t.any_member,
            all_members: t.all_members,
            side: t.side,
            beyond_chance: t.beyond_chance,
            within_chance: t.within_chance,
            above_baseline: t.above_baseline,
            smooth: t.smooth,
        }
    }
}

/// What a condition is read against.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The rule's own signal.
    pub signal: &'a Field<String>,
    /// All signals.
    pub catalog: &'a Catalog,
    /// Whether something else must be true as well: a guard, or another condition of `all`.
    pub others_decide: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Trigger,
    Clear,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Trigger { "trigger" } else { "clear" })
    }
}

/// Checks a trigger.
pub fn trigger_of(
    text: &TriggerText,
    place: Place,
    context: Context<'_>,
    settings: &mut Settings,
    findings: &mut Findings<'_>,
) -> Option<Trigger> {
    part_of(Part::Trigger, text, place, context, settings, findings)
}

fn part_of(
    part: Part,
    text: &TriggerText,
    place: Place,
    context: Context<'_>,
    settings: &mut Settings,
    findings: &mut Findings<'_>,
) -> Option<Trigger> {
    let default = if part == Part::Trigger { Duration::ZERO } else { Duration::from_secs(10) };
    let hold = settings.take(&format!("{part}.for"), &text.hold, Span(default)).0;
    if let Some(at) = text.hold.place()
        && hold > Duration::from_secs(3600)
    {
        findings.error(at, "`for` is longer than an hour; an onset that old is no onset", None);
    }
    let alone = text.alone();
    let listed = [(&text.all, Combine::All), (&text.any, Combine::Any)];
    let mut given =
        listed.into_iter().filter_map(|(list, combine)| list.placed().map(|(l, at)| (l, at, combine)));
    match (given.next(), given.next()) {
        (Some((list, at, combine)), None) => {
            if let Some((name, at)) = alone.statistics().first() {
                let message = format!("`{name}` beside a list of conditions");
                findings.error(*at, message, Some("put it into the list".into()));
            }
            if list.is_empty() {
                findings.error(at, "an empty list of conditions", None);
            }
            let is_one_of_all = combine == Combine::All && list.len() > 1;
            let context = Context { others_decide: context.others_decide || is_one_of_all, ..context };
            let conditions: Vec<Condition> = list
                .iter()
                .enumerate()
                .filter_map(|(i, c)| c.placed().map(|(c, at)| (i, c, at)))
                .filter_map(|(i, c, at)| {
                    let key = format!("{part}.{}.{i}", if combine == Combine::All { "all" } else { "any" });
                    condition_of(part, &key, c, at, context, settings, findings)
                })
                .collect();
            let complete = conditions.len() == list.len() && !list.is_empty();
            complete.then_some(Trigger { combine, conditions, hold })
        }
        (Some(_), Some((_, at, _))) => {
            findings.error(at, "`all` and `any` in one place", Some("use one of them".into()));
            None
        }
        (None, _) if !text.all.is_absent() || !text.any.is_absent() => None,
        (None, _) => {
            let condition =
                condition_of(part, &part.to_string(), &alone, place, context, settings, findings)?;
            Some(Trigger { combine: Combine::All, conditions: vec![condition], hold })
        }
    }
}

fn lasting(hold: Duration) -> String {
    if hold.is_zero() { String::new() } else { format!(" for {}", Span(hold)) }
}

/// In one line, as it could be written.
pub fn describe(trigger: &Trigger) -> String {
    let word = if trigger.combine == Combine::All { " and " } else { " or " };
    let conditions: Vec<String> = trigger
        .conditions
        .iter()
        .map(|c| {
            let sign = if c.direction == Direction::Above { ">" } else { "<" };
            let chance = c.chance.map_or_else(String::new, |k| format!(" (chance {k})"));
            let usual = c.above_baseline.map_or_else(String::new, |f| format!(" (baseline {f})"));
            let hold = lasting(c.hold);
            format!("{}({}) {sign} {}{chance}{usual}{hold}", c.statistic, c.signal_name, c.bound)
        })
        .collect();
    format!("{}{}", conditions.join(word), lasting(trigger.hold))
}

#[cfg(test)]
mod tests;
