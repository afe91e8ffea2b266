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
use super::rule::signal_of;
use super::tree::Place;
use crate::decide::rule::{Combine, Condition, Direction, Side, Statistic, Trigger};
use crate::decide::signal::catalog::Catalog;

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

/// Checks a clear, or derives it from the trigger.
pub fn clear_of(
    text: &Field<TriggerText>,
    trigger: &Trigger,
    context: Context<'_>,
    settings: &mut Settings,
    findings: &mut Findings<'_>,
) -> Option<Trigger> {
    let Some((text, place)) = text.placed() else {
        if !text.is_absent() {
            return None;
        }
        let derived = derived_clear(trigger);
        settings.fallback("clear", describe(&derived));
        return Some(derived);
    };
    let has_no_condition =
        text.all.is_absent() && text.any.is_absent() && text.alone().statistics().is_empty();
    let mut clear = if has_no_condition {
        let mut derived = derived_clear(trigger);
        derived.hold = settings.take("clear.for", &text.hold, Span(derived.hold)).0;
        if let Some((k, _)) = text.within_chance.placed() {
            derived.conditions.iter_mut().for_each(|c| c.chance = Some(*k));
        }
        derived
    } else {
        part_of(Part::Clear, text, place, context, settings, findings)?
    };
    if text.all.is_absent() && text.any.is_absent() {
        // A clear that says nothing of these means the trigger's own.
        inherit(&mut clear, trigger, &text.alone());
    }
    check_hysteresis(text, place, trigger, &clear, findings);
    Some(clear)
}

fn inherit(clear: &mut Trigger, trigger: &Trigger, text: &ConditionText) {
    for c in &mut clear.conditions {
        let Some(own) =
            trigger.conditions.iter().find(|t| t.statistic == c.statistic && t.signal == c.signal)
        else {
            continue;
        };
        if text.side.is_absent() {
            c.side = own.side;
        }
        if text.smooth.is_absent() {
            c.smooth = own.smooth;
        }
    }
}

/// The trigger's own bounds, within three quarters of its chance, for ten seconds or twice its `for`.
fn derived_clear(trigger: &Trigger) -> Trigger {
    let conditions = trigger.conditions.iter().cloned().map(|mut c| {
        c.chance = c.chance.map(|k| k * 0.75);
        (c.hold, c.above_baseline) = (Duration::ZERO, None);
        if c.statistic == Statistic::Departure {
            c.bound *= 0.7;
        }
        c
    });
    Trigger {
        // Not (a and b) is (not a) or (not b).
        combine: match trigger.combine {
            Combine::All if trigger.conditions.len() > 1 => Combine::Any,
            _ => Combine::All,
        },
        conditions: conditions.collect(),
        hold: (trigger.hold * 2).max(Duration::from_secs(10)),
    }
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
            let conditions: Vec<Condition> = list
                .iter()
                .filter_map(Field::placed)
                .filter_map(|(c, at)| condition_of(part, c, at, context, settings, findings))
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
            let condition = condition_of(part, &alone, place, context, settings, findings)?;
            Some(Trigger { combine: Combine::All, conditions: vec![condition], hold })
        }
    }
}

impl ConditionText {
    /// The statistics that are given, with their places.
    fn statistics(&self) -> Vec<(Statistic, Place)> {
        let plain = Statistic::ALL
            .into_iter()
            .filter_map(|s| self.bound_field(s).and_then(Field::place).map(|p| (s, p)));
        let members = [(Statistic::AnyMember, &self.any_member), (Statistic::AllMembers, &self.all_members)];
        plain.chain(members.into_iter().filter_map(|(s, f)| f.place().map(|p| (s, p)))).collect()
    }

    const fn bound_field(&self, statistic: Statistic) -> Option<&Field<f64>> {
        Some(match statistic {
            Statistic::MaxOverMean => &self.max_over_mean,
            Statistic::MinOverMean => &self.min_over_mean,
            Statistic::MaxMinusMin => &self.max_minus_min,
            Statistic::Cv => &self.cv,
            Statistic::Gini => &self.gini,
            Statistic::Jain => &self.jain,
            Statistic::LostShare => &self.lost_share,
            Statistic::RobustZ => &self.robust_z,
            Statistic::Departure => &self.departure,
            Statistic::AnyMember | Statistic::AllMembers => return None,
        })
    }

    /// The bound and the direction of a statistic that is given.
    fn bound(&self, statistic: Statistic, findings: &mut Findings<'_>) -> Option<(f64, Direction)> {
        let members = match statistic {
            Statistic::AnyMember => &self.any_member,
            Statistic::AllMembers => &self.all_members,
            _ => return Some((*self.bound_field(statistic)?.get()?, statistic.direction())),
        };
        let (text, place) = members.placed()?;
        match (text.above.get(), text.below.get()) {
            (Some(bound), None) => Some((*bound, Direction::Above)),
            (None, Some(bound)) => Some((*bound, Direction::Below)),
            _ => {
                let hint = format!("write `{}: {{ above: 0.9 }}` or `below`", statistic.name());
                findings.error(place, "exactly one of `above` and `below` is wanted", Some(hint));
                None
            }
        }
    }
}

impl fmt::Display for Statistic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn condition_of(
    part: Part,
    text: &ConditionText,
    place: Place,
    context: Context<'_>,
    settings: &mut Settings,
    findings: &mut Findings<'_>,
) -> Option<Condition> {
    let signal = signal_for(text, place, context, findings);
    let (statistic, at) = match text.statistics()[..] {
        [one] => one,
        [] => {
            let known: Vec<&str> = Statistic::ALL.iter().map(|s| s.name()).collect();
            findings.error(
                place,
                format!("the {part} names no statistic"),
                Some(format!("one of {}", known.join(", "))),
            );
            return None;
        }
        [(first, _), (second, at), ..] => {
            let hint = "several go into a list: `all: [{ cv: 0.3 }, { max_over_mean: 1.5 }]`";
            findings.error(
                at,
                format!("two statistics in one condition: `{first}` and `{second}`"),
                Some(hint.into()),
            );
            return None;
        }
    };
    let (bound, direction) = text.bound(statistic, findings)?;
    settings.given(&format!("{part}.{statistic}"), bound, at);
    check_bound(part, statistic, bound, at, findings);
    let side = side_of(text, statistic, direction, findings);
    let chance = chance_of(part, text, statistic, settings, findings);
    if let Some((k, at)) = text.above_baseline.placed() {
        settings.given(&format!("{part}.above_baseline"), k, at);
        if part == Part::Clear {
            findings.error(at, "only a trigger compares with the past", Some("take it out".into()));
        } else if *k < 1.0 {
            findings.error(at, "a factor below 1 is always exceeded", Some("write 1.2, say".into()));
        }
    }
    let smooth = text.smooth.get().map_or(Duration::ZERO, |s| s.0);
    let (signal, signal_name) = signal?;
    let above_baseline = text.above_baseline.get().copied();
    let hold = text.hold.get().map_or(Duration::ZERO, |s| s.0);
    Some(Condition {
        signal,
        signal_name,
        statistic,
        bound,
        direction,
        side,
        chance,
        above_baseline,
        smooth,
        hold,
    })
}

fn signal_for(
    text: &ConditionText,
    place: Place,
    context: Context<'_>,
    findings: &mut Findings<'_>,
) -> Option<(crate::decide::signal::sample::Signal, std::sync::Arc<str>)> {
    let named = if text.signal.is_absent() { context.signal } else { &text.signal };
    if named.is_absent() {
        let hint = "write `signal: load` in the rule or in the condition";
        findings.error(place, "no signal to look at", Some(hint.into()));
    }
    signal_of(named, context.catalog, findings)
}

fn check_bound(part: Part, statistic: Statistic, bound: f64, at: Place, findings: &mut Findings<'_>) {
    let (low, high) = statistic.range();
    let always_even = match statistic.direction() {
        Direction::Above => bound < low,
        Direction::Below => bound > high,
    };
    let never = match statistic.direction() {
        Direction::Above => bound >= high,
        Direction::Below => bound <= low,
    };
    let range = match high.is_finite() {
        true => format!("`{statistic}` lies between {low} and {high}"),
        false => format!("`{statistic}` is {low} or more"),
    };
    if !bound.is_finite() || (always_even && part == Part::Trigger) {
        findings.error(at, format!("this bound is always exceeded: {range}"), None);
    } else if never && part == Part::Trigger {
        findings.error(at, format!("this bound is never exceeded: {range}"), None);
    }
}

fn side_of(
    text: &ConditionText,
    statistic: Statistic,
    direction: Direction,
    findings: &mut Findings<'_>,
) -> Side {
    let natural = match (statistic, direction) {
        (Statistic::AnyMember | Statistic::AllMembers, Direction::Below) => Side::Low,
        _ => statistic.side(),
    };
    let Some((asked, at)) = text.side.placed() else { return natural };
    let asked = Side::from(*asked);
    if natural != Side::Both && asked != natural {
        let (word, other) = match natural {
            Side::Low => ("low", "max_over_mean"),
            _ => ("high", "min_over_mean"),
        };
        let hint = format!("use `{other}`, or `max_minus_min`, `cv` or `robust_z` with `side: both`");
        findings.error(at, format!("`{statistic}` can only blame the {word} side"), Some(hint));
        return natural;
    }
    asked
}

fn chance_of(
    part: Part,
    text: &ConditionText,
    statistic: Statistic,
    settings: &mut Settings,
    findings: &mut Findings<'_>,
) -> Option<f64> {
    let (wanted, wrong, name) = match part {
        Part::Trigger => (&text.beyond_chance, &text.within_chance, "beyond_chance"),
        Part::Clear => (&text.within_chance, &text.beyond_chance, "within_chance"),
    };
    if let Some(at) = wrong.place() {
        findings.error(at, format!("a {part} has `{name}`"), None);
    }
    let (k, at) = wanted.placed()?;
    settings.given(&format!("{part}.{name}"), k, at);
    if *k <= 0.0 || !k.is_finite() {
        findings.error(at, format!("`{name}` is a positive number of times"), Some("3 to 6 is usual".into()));
    }
    if matches!(statistic, Statistic::AnyMember | Statistic::AllMembers) {
        findings.error(at, format!("`{statistic}` looks at single members; chance has no part in it"), None);
    }
    Some(*k)
}

fn check_hysteresis(
    text: &TriggerText,
    place: Place,
    trigger: &Trigger,
    clear: &Trigger,
    findings: &mut Findings<'_>,
) {
    for (c, t) in clear.conditions.iter().flat_map(|c| {
        trigger
            .conditions
            .iter()
            .filter(move |t| t.statistic == c.statistic && t.signal == c.signal)
            .map(move |t| (c, t))
    }) {
        let looser = match t.direction {
            Direction::Above => c.bound > t.bound,
            Direction::Below => c.bound < t.bound,
        };
        let at = text.alone().statistics().first().map_or(place, |(_, at)| *at);
        if looser {
            let message = format!(
                "the clear ({} {}) already holds where the trigger ({}) fires: it would flap",
                c.statistic, c.bound, t.bound
            );
            findings.error(at, message, Some(format!("write {} or a stricter bound", t.bound)));
        }
        if let (Some(within), Some(beyond)) = (c.chance, t.chance)
            && within > beyond
        {
            let at = text.within_chance.place().unwrap_or(at);
            let message =
                format!("`within_chance: {within}` already holds where `beyond_chance: {beyond}` fires");
            findings.error(at, message, Some(format!("write {beyond} or less")));
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
