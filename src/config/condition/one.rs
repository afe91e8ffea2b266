//! One condition: its statistic, its bound, whom it may blame and what chance has in it.

use std::sync::Arc;
use std::time::Duration;

use super::bound::check_bound;
use super::{ConditionText, Context, Part};
use crate::config::de::Field;
use crate::config::diagnostic::Findings;
use crate::config::effective::Settings;
use crate::config::quantity::Span;
use crate::config::rule::signal_of;
use crate::config::tree::Place;
use skewtrap_core::finding::Side;
use skewtrap_core::rule::{Condition, Direction, Statistic};
use skewtrap_core::signal::sample::Signal;

impl ConditionText {
    /// The statistics that are given, with their places.
    pub(super) fn statistics(&self) -> Vec<(Statistic, Place)> {
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
            Statistic::AnyMember | Statistic::AllMembers | Statistic::Other => return None,
        })
    }

    /// The bound of a statistic that is given, its direction and its place.
    fn bound(&self, statistic: Statistic, findings: &mut Findings<'_>) -> Option<(f64, Direction, Place)> {
        let members = match statistic {
            Statistic::AnyMember => &self.any_member,
            Statistic::AllMembers => &self.all_members,
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

/// Checks one condition, whose settings are noted below `key`.
pub(super) fn condition_of(
    part: Part,
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
    let (bound, direction, at) = text.bound(statistic, findings)?;
    settings.given(&format!("{key}.{statistic}"), sign_of(statistic, direction, bound), at);
    let side = side_of(text, statistic, direction, findings);
    let chance = chance_of(part, key, text, statistic, settings, findings);
    if let Some((k, at_factor)) = text.above_baseline.placed() {
        if part == Part::Clear {
            findings.error(at_factor, "only a trigger compares with the past", Some("take it out".into()));
        } else if *k < 1.0 {
            findings.error(at_factor, "a factor below 1 is always exceeded", Some("write 1.2, say".into()));
        }
    }
    let smooth = text.smooth.get().map_or(Duration::ZERO, |s| s.0);
    // Of an unknown signal, which is told already, the bound is looked at as far as it goes.
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
    };
    note(part, key, text, &condition, context, settings);
    check_bound(part, &condition, context, at, findings);
    is_known.then_some(condition)
}

/// A bound on members as it is written, any other as a number.
fn sign_of(statistic: Statistic, direction: Direction, bound: f64) -> String {
    match (statistic, direction) {
        (Statistic::AnyMember | Statistic::AllMembers, Direction::Above) => format!("above {bound}"),
        (Statistic::AnyMember | Statistic::AllMembers, Direction::Below) => format!("below {bound}"),
        _ => bound.to_string(),
    }
}

/// Notes what a condition says beside its bound and its chance.
fn note(
    part: Part,
    key: &str,
    text: &ConditionText,
    c: &Condition,
    context: Context<'_>,
    settings: &mut Settings,
) {
    let place = text.signal.place().or_else(|| context.signal.place());
    settings.note(&format!("{key}.signal"), &c.signal_name, place);
    // A clear that says nothing of these takes the trigger's, which is noted there.
    let is_inherited = key == "clear";
    if !is_inherited || !text.side.is_absent() {
        settings.note(&format!("{key}.side"), c.side.word(), text.side.place());
    }
    if !is_inherited || !text.smooth.is_absent() {
        settings.note(&format!("{key}.smooth"), Span(c.smooth), text.smooth.place());
    }
    if part == Part::Trigger {
        settings.note_any(&format!("{key}.above_baseline"), c.above_baseline, text.above_baseline.place());
    }
    if key != "trigger" && key != "clear" {
        settings.note(&format!("{key}.for"), Span(c.hold), text.hold.place());
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
        findings.error(place, "no signal to look at", Some(hint.into()));
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
    key: &str,
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
    settings.note_any(&format!("{key}.{name}"), wanted.get(), wanted.place());
    let (k, at) = wanted.placed()?;
    if *k <= 0.0 || !k.is_finite() {
        findings.error(at, format!("`{name}` is a positive number of times"), Some("3 to 6 is usual".into()));
    }
    if matches!(statistic, Statistic::AnyMember | Statistic::AllMembers) {
        findings.error(at, format!("`{statistic}` looks at single members; chance has no part in it"), None);
    }
    Some(*k)
}
