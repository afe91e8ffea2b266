//! The `clear` of a rule: as it is written, or derived from the trigger.

use std::time::Duration;

use super::{Clause, ConditionText, Context, TriggerText, clause_of, describe, does_not_apply};
use crate::config::de::Field;
use crate::config::diagnostic::Findings;
use crate::config::effective::Settings;
use crate::config::quantity::Span;
use crate::config::tree::Place;
use skewtrap_core::rule::{Combine, Condition, Direction, Statistic, Trigger};

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
        settings.record_unset("clear", describe(Clause::Clear, &derived));
        return Some(derived);
    };
    let has_no_condition =
        text.all.is_absent() && text.any.is_absent() && text.as_condition().statistics().is_empty();
    let mut clear = if has_no_condition {
        let mut derived = derived_clear(trigger);
        settings.record_option("clear.within_chance", text.within_chance.get(), text.within_chance.place());
        derived.hold = settings.resolve("clear.for", &text.hold, Span(derived.hold)).0;
        check_lone_keys(&text.as_condition(), trigger, findings);
        if let Some((k, _)) = text.within_chance.placed() {
            let takes_it = |c: &&mut Condition| does_not_apply("within_chance", c.statistic).is_none();
            derived.conditions.iter_mut().filter(takes_it).for_each(|c| c.chance = Some(*k));
        }
        settings.record_unset("clear", describe(Clause::Clear, &derived));
        derived
    } else {
        clause_of(Clause::Clear, text, place, context, settings, findings)?
    };
    if text.all.is_absent() && text.any.is_absent() {
        // Side and smoothing that are not set are those of the trigger.
        inherit(&mut clear, trigger, &text.as_condition(), settings);
    }
    check_hysteresis(text, place, trigger, &clear, findings);
    Some(clear)
}

/// Of a clear that takes the trigger's statistics: what it says beside `for` and `within_chance` nobody reads.
fn check_lone_keys(text: &ConditionText, trigger: &Trigger, findings: &mut Findings<'_>) {
    for (name, at) in text.modifiers() {
        if name == "within_chance" {
            let odd: Vec<_> =
                trigger.conditions.iter().filter_map(|c| does_not_apply(name, c.statistic)).collect();
            if let Some((message, hint)) = odd.first().filter(|_| odd.len() == trigger.conditions.len()) {
                findings.error(at, message, Some((*hint).into()));
            }
        } else {
            let message = format!("the clear has `{name}` without a statistic, so it would do nothing");
            findings.error(at, message, Some("write the statistic and its bound beside it".into()));
        }
    }
}

fn inherit(clear: &mut Trigger, trigger: &Trigger, text: &ConditionText, settings: &mut Settings) {
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
    if let [c] = &clear.conditions[..] {
        if text.side.is_absent() {
            settings.record_unset("clear.side", c.side.word());
        }
        if text.smooth.is_absent() {
            settings.record_unset("clear.smooth", Span(c.smooth));
        }
    }
}

/// The bounds of the trigger, three quarters of its chance, for ten seconds or twice its `for`.
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
        if c.direction != t.direction {
            let (wanted, written) =
                if t.direction == Direction::Above { ("above", "below") } else { ("below", "above") };
            let message = format!(
                "the trigger compares {wanted} its bound and the clear {written} its own: the clear would not wait until the imbalance ends"
            );
            let hint = format!("a clear holds while its bound is not crossed: write `{wanted}`");
            findings.error(place, message, Some(hint));
            continue;
        }
        let looser = match t.direction {
            Direction::Above => c.bound > t.bound,
            Direction::Below => c.bound < t.bound,
        };
        let at = text.as_condition().statistics().first().map_or(place, |(_, at)| *at);
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
