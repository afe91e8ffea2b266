//! `trigger:` and `clear:` in YAML.
//!
//! A statistic is written as the key, its bound as the value: `{ max_over_mean: 1.5, for: 3s }`.
//! Several conditions go under `all:` or `any:`. A clear that is not written is derived from the
//! trigger. What bounds make sense is in `bound`, the derived clear in `clear`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

#[cfg(test)]
use schemars::JsonSchema;
use serde::Deserialize;

use super::de::Field;
use super::diagnostic::Findings;
use super::effective::Settings;
use super::names::Names;
use super::quantity::Span;
use super::signal::signal_of;
use super::tree::Place;
use skewtrap_core::factor::Factor;
use skewtrap_core::finding::Side;
use skewtrap_core::rule::{Combine, Condition, Direction, FactorSet, Statistic, Trigger};
use skewtrap_core::signal::catalog::Catalog;
use skewtrap_core::signal::sample::Signal;

mod bound;
mod clear;
mod factors;

use bound::check_bound;
pub(super) use bound::check_min_mean;
pub use bound::{can_clear, can_trigger};
pub use clear::clear_of;
pub(super) use factors::check_factors;
use factors::factors_of;

/// The keys that a condition has, whether it stands alone or in a list.
macro_rules! condition_keys {
    ($(#[$doc:meta])* $name:ident { $($more:tt)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, Deserialize)]
        #[cfg_attr(test, derive(JsonSchema))]
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
            /// Factors of a rank's load that depart from what is usual on this server: `any`, or some of
            /// `share`, `speed`, `work` and `stuck`.
            factors: Field<Names>,
            /// Some member is `above` or `below` this.
            any_member: Field<MemberText>,
            /// Every member is `above` or `below` this.
            all_members: Field<MemberText>,
            /// Which side may be blamed.
            side: Field<Side>,
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
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct MemberText {
    /// Larger than this.
    above: Field<f64>,
    /// Smaller than this.
    below: Field<f64>,
}

impl TriggerText {
    /// The condition that stands directly in it, without `for`, `all` and `any`.
    fn as_condition(&self) -> ConditionText {
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
            factors: t.factors,
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

/// What a condition is checked against.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The rule's own signal.
    pub signal: &'a Field<String>,
    /// All signals.
    pub catalog: &'a Catalog,
    /// Whether a guard, or another condition of `all`, must be true as well.
    pub has_other_conditions: bool,
}

/// Which part of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clause {
    /// When it begins to fire.
    Trigger,
    /// When it stops.
    Clear,
}

impl fmt::Display for Clause {
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
    clause_of(Clause::Trigger, text, place, context, settings, findings)
}

fn clause_of(
    clause: Clause,
    text: &TriggerText,
    place: Place,
    context: Context<'_>,
    settings: &mut Settings,
    findings: &mut Findings<'_>,
) -> Option<Trigger> {
    let default = if clause == Clause::Trigger { Duration::ZERO } else { Duration::from_secs(10) };
    let hold = settings.resolve(&format!("{clause}.for"), &text.hold, Span(default)).0;
    if let Some(at) = text.hold.place()
        && hold > Duration::from_secs(3600)
    {
        findings.error(at, "`for` is longer than an hour; an onset that old is no onset", None);
    }
    let own = text.as_condition();
    let listed = [(&text.all, Combine::All), (&text.any, Combine::Any)];
    let mut given =
        listed.into_iter().filter_map(|(list, combine)| list.placed().map(|(l, at)| (l, at, combine)));
    match (given.next(), given.next()) {
        (Some((list, at, combine)), None) => {
            if let Some((name, at)) = own.statistics().first() {
                let message = format!("`{name}` beside a list of conditions");
                findings.error(*at, message, Some("put it into the list".into()));
            }
            // A `within_chance` or a `smooth` beside the list would be read by none of its conditions.
            for (name, at) in own.modifiers() {
                let message = format!("`{name}` beside a list of conditions");
                findings.error(at, message, Some("put it into the list".into()));
            }
            if list.is_empty() {
                findings.error(at, "an empty list of conditions", None);
            }
            let is_one_of_all = combine == Combine::All && list.len() > 1;
            let context =
                Context { has_other_conditions: context.has_other_conditions || is_one_of_all, ..context };
            let conditions: Vec<Condition> = list
                .iter()
                .enumerate()
                .filter_map(|(i, c)| c.placed().map(|(c, at)| (i, c, at)))
                .filter_map(|(i, c, at)| {
                    let key = format!("{clause}.{}.{i}", if combine == Combine::All { "all" } else { "any" });
                    condition_of(clause, &key, c, at, context, settings, findings)
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
                condition_of(clause, &clause.to_string(), &own, place, context, settings, findings)?;
            Some(Trigger { combine: Combine::All, conditions: vec![condition], hold })
        }
    }
}

fn hold_suffix(hold: Duration) -> String {
    if hold.is_zero() { String::new() } else { format!(" for {}", Span(hold)) }
}

/// A trigger or a clear in one line, for people.
pub fn describe(clause: Clause, trigger: &Trigger) -> String {
    let word = if trigger.combine == Combine::All { " and " } else { " or " };
    let conditions: Vec<String> = trigger
        .conditions
        .iter()
        .map(|c| {
            let (clears, hold) = (clause == Clause::Clear, hold_suffix(c.hold));
            if c.statistic == Statistic::Factors {
                let verb = if clears { "is as usual" } else { "departs from what is usual" };
                return format!("a rank's {} {verb}{hold}", listed(c.factors));
            }
            let sign = match (c.direction, clears) {
                (Direction::Above, false) => ">",
                (Direction::Above, true) => "<=",
                (Direction::Below, false) => "<",
                (Direction::Below, true) => ">=",
            };
            let chance = c.chance.map_or_else(String::new, |k| format!(" (chance {k})"));
            let usual = c.above_baseline.map_or_else(String::new, |f| format!(" (baseline {f})"));
            let smooth =
                if c.smooth.is_zero() { String::new() } else { format!(" (smooth {})", Span(c.smooth)) };
            format!("{}({}) {sign} {}{chance}{usual}{smooth}{hold}", c.statistic, c.signal_name, c.bound)
        })
        .collect();
    format!("{}{}", conditions.join(word), hold_suffix(trigger.hold))
}

/// `share of the requests, speed at equal work or work a request`.
fn listed(factors: FactorSet) -> String {
    let nouns: Vec<&str> = Factor::ALL.into_iter().filter(|f| factors.has(*f)).map(Factor::noun).collect();
    match &nouns[..] {
        [others @ .., last] if !others.is_empty() => format!("{} or {last}", others.join(", ")),
        nouns => nouns.concat(),
    }
}

impl ConditionText {
    /// The statistics that the condition names, with their places.
    fn statistics(&self) -> Vec<(Statistic, Place)> {
        let plain = Statistic::ALL
            .into_iter()
            .filter_map(|s| self.bound_field(s).and_then(Field::place).map(|p| (s, p)));
        let members = [(Statistic::AnyMember, &self.any_member), (Statistic::AllMembers, &self.all_members)];
        let factors = self.factors.place().map(|p| (Statistic::Factors, p));
        plain
            .chain(factors)
            .chain(members.into_iter().filter_map(|(s, f)| f.place().map(|p| (s, p))))
            .collect()
    }

    /// The keys that change how a statistic is read, with their places.
    fn modifiers(&self) -> Vec<(&'static str, Place)> {
        let all = [
            ("signal", self.signal.place()),
            ("side", self.side.place()),
            ("beyond_chance", self.beyond_chance.place()),
            ("within_chance", self.within_chance.place()),
            ("above_baseline", self.above_baseline.place()),
            ("smooth", self.smooth.place()),
        ];
        all.into_iter().filter_map(|(name, at)| Some((name, at?))).collect()
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
            Statistic::AnyMember | Statistic::AllMembers | Statistic::Factors | Statistic::Other => {
                return None;
            }
        })
    }

    /// The bound of a statistic, its direction and its place.
    fn bound(&self, statistic: Statistic, findings: &mut Findings<'_>) -> Option<(f64, Direction, Place)> {
        let members = match statistic {
            Statistic::AnyMember => &self.any_member,
            Statistic::AllMembers => &self.all_members,
            // Its value is in multiples of today's bound.
            Statistic::Factors => return Some((1.0, Direction::Above, self.factors.place()?)),
            _ => {
                let (bound, at) = self.bound_field(statistic)?.placed()?;
                return Some((*bound, statistic.direction(), at));
            }
        };
        let (text, place) = members.placed()?;
        match (text.above.placed(), text.below.placed()) {
            (Some((bound, at)), None) => Some((*bound, Direction::Above, at)),
            (None, Some((bound, at))) => Some((*bound, Direction::Below, at)),
            _ => {
                let hint = format!("write `{}: {{ above: 0.9 }}` or `below`", statistic.name());
                findings.error(place, "exactly one of `above` and `below` is wanted", Some(hint));
                None
            }
        }
    }
}

/// Checks one condition and records its settings under `key`.
fn condition_of(
    clause: Clause,
    key: &str,
    text: &ConditionText,
    place: Place,
    context: Context<'_>,
    settings: &mut Settings,
    findings: &mut Findings<'_>,
) -> Option<Condition> {
    let signal = signal_for(text, place, context, findings);
    let statistic = match text.statistics()[..] {
        [(one, _)] => one,
        [] => {
            let known: Vec<&str> = Statistic::ALL.iter().map(|s| s.name()).collect();
            if !findings.is_misspelt(place, &known) {
                let hint = format!("one of {}", known.join(", "));
                findings.error(place, format!("the {clause} names no statistic"), Some(hint));
            }
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
    let (bound, direction, at) = text.bound(statistic, findings)?;
    let factors = factors_of(text, findings);
    let bound_shown = match statistic {
        Statistic::Factors => factors.words(),
        _ => bound_text(statistic, direction, bound),
    };
    settings.record_set(&format!("{key}.{statistic}"), bound_shown, at);
    let side = side_of(text, statistic, direction, findings);
    check_modifiers(text, statistic, findings);
    let chance = chance_of(clause, key, text, settings, findings);
    if let Some((k, at_factor)) = text.above_baseline.placed() {
        if clause == Clause::Clear {
            findings.error(at_factor, "only a trigger compares with the past", Some("take it out".into()));
        } else if *k < 1.0 {
            findings.error(at_factor, "a factor below 1 is always exceeded", Some("write 1.2, say".into()));
        }
    }
    let smooth = text.smooth.get().map_or(Duration::ZERO, |s| s.0);
    // An unknown signal is reported by now; its bound is still checked as far as possible.
    let is_known = signal.is_some();
    let (signal, signal_name) = signal.unwrap_or((Signal(u16::MAX), "".into()));
    let above_baseline = text.above_baseline.get().copied();
    let hold = text.hold.get().map_or(Duration::ZERO, |s| s.0);
    let condition = Condition {
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
        factors,
    };
    record(clause, key, text, &condition, context, settings);
    check_bound(clause, &condition, context, at, findings);
    // Without a factor it could never hold.
    let is_complete = is_known && (statistic != Statistic::Factors || factors != FactorSet::NONE);
    is_complete.then_some(condition)
}

/// Whether a key changes how this statistic is read; else a message that says so, and a hint.
fn does_not_apply(name: &str, statistic: Statistic) -> Option<(String, &'static str)> {
    let is_chance = matches!(name, "beyond_chance" | "within_chance");
    let is_plain = matches!(name, "above_baseline" | "smooth");
    match statistic {
        Statistic::Factors if name == "beyond_chance" => Some((
            "`factors` has a learned bound; `beyond_chance` does not apply".to_owned(),
            "remove it; `budget.false_alarms` sets the bound",
        )),
        Statistic::Factors if is_chance || is_plain => Some((
            format!("`{name}` does not apply to `factors`"),
            "remove it; their bound is learned, and `budget.false_alarms` sets it",
        )),
        Statistic::Departure if is_chance => Some((
            format!("`{name}` does not apply to `departure`"),
            "remove it; a departure is in standard deviations of what is usual, chance included",
        )),
        Statistic::AnyMember | Statistic::AllMembers if is_chance => Some((
            format!("`{name}` does not apply to `{statistic}`, which compares no members with each other"),
            "remove it",
        )),
        _ => None,
    }
}

fn check_modifiers(text: &ConditionText, statistic: Statistic, findings: &mut Findings<'_>) {
    for (name, at) in text.modifiers() {
        if let Some((message, hint)) = does_not_apply(name, statistic) {
            findings.error(at, message, Some(hint.into()));
        }
    }
}

/// The bound as it is written: with its direction for members, as a number otherwise.
fn bound_text(statistic: Statistic, direction: Direction, bound: f64) -> String {
    match (statistic, direction) {
        (Statistic::AnyMember | Statistic::AllMembers, Direction::Above) => format!("above {bound}"),
        (Statistic::AnyMember | Statistic::AllMembers, Direction::Below) => format!("below {bound}"),
        _ => bound.to_string(),
    }
}

/// Records the settings of a condition beside its bound and its chance.
fn record(
    clause: Clause,
    key: &str,
    text: &ConditionText,
    c: &Condition,
    context: Context<'_>,
    settings: &mut Settings,
) {
    let place = text.signal.place().or_else(|| context.signal.place());
    settings.record(&format!("{key}.signal"), &c.signal_name, place);
    // A clear that does not set these takes those of the trigger, which are recorded there.
    let is_inherited = key == "clear";
    if !is_inherited || !text.side.is_absent() {
        settings.record(&format!("{key}.side"), c.side.word(), text.side.place());
    }
    if !is_inherited || !text.smooth.is_absent() {
        settings.record(&format!("{key}.smooth"), Span(c.smooth), text.smooth.place());
    }
    if clause == Clause::Trigger {
        settings.record_option(
            &format!("{key}.above_baseline"),
            c.above_baseline,
            text.above_baseline.place(),
        );
    }
    if key != "trigger" && key != "clear" {
        settings.record(&format!("{key}.for"), Span(c.hold), text.hold.place());
    }
}

fn signal_for(
    text: &ConditionText,
    place: Place,
    context: Context<'_>,
    findings: &mut Findings<'_>,
) -> Option<(Signal, Arc<str>)> {
    let named = if text.signal.is_absent() { context.signal } else { &text.signal };
    if named.is_absent() {
        let hint = "write `signal: load` in the rule or in the condition";
        findings.error(place, "no signal to compare", Some(hint.into()));
    }
    signal_of(named, context.catalog, findings)
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
    let Some((&asked, at)) = text.side.placed() else { return natural };
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
    clause: Clause,
    key: &str,
    text: &ConditionText,
    settings: &mut Settings,
    findings: &mut Findings<'_>,
) -> Option<f64> {
    let (wanted, wrong, name) = match clause {
        Clause::Trigger => (&text.beyond_chance, &text.within_chance, "beyond_chance"),
        Clause::Clear => (&text.within_chance, &text.beyond_chance, "within_chance"),
    };
    if let Some(at) = wrong.place() {
        findings.error(at, format!("a {clause} has `{name}`"), None);
    }
    settings.record_option(&format!("{key}.{name}"), wanted.get(), wanted.place());
    let (k, at) = wanted.placed()?;
    if *k <= 0.0 || !k.is_finite() {
        findings.error(at, format!("`{name}` is a positive number of times"), Some("3 to 6 is usual".into()));
    }
    Some(*k)
}

#[cfg(test)]
mod tests;
