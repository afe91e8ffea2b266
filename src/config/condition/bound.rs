//! Finds bounds that a statistic can never cross, or always crosses.

use super::{Clause, Context};
use crate::config::diagnostic::Findings;
use crate::config::tree::Place;
use skewtrap_core::rule::{Condition, Direction, Statistic};
use skewtrap_core::signal::catalog::Catalog;

/// The robust z-score of the outlier of any group that is not exactly even is at least this.
const SMALLEST_OUTLIER: f64 = 1.0 / 1.4826;

/// The departure that healthy load reaches now and then (docs/departure.md).
const HEALTHY_DEPARTURE: f64 = 3.5;

/// How often a statistic crosses a bound, judged by its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Crossed {
    Always,
    Sometimes,
    Never,
}

fn crossed(c: &Condition, catalog: &Catalog) -> Crossed {
    let (low, high) = range_of(c, catalog);
    let (always, never) = match c.direction {
        Direction::Above => (c.bound < low, c.bound >= high),
        Direction::Below => (c.bound > high, c.bound <= low),
    };
    match (always || is_departure_at_zero(c), never) {
        (true, _) => Crossed::Always,
        (_, true) => Crossed::Never,
        _ => Crossed::Sometimes,
    }
}

/// Whether the bound of a trigger can be crossed and not crossed.
pub fn can_trigger(c: &Condition, catalog: &Catalog) -> bool {
    crossed(c, catalog) == Crossed::Sometimes
}

/// Whether the bound of a clear can hold, by itself or within chance, and can be crossed.
pub fn can_clear(c: &Condition, catalog: &Catalog) -> bool {
    clear_problem(c, catalog).is_none()
}

fn clear_problem(c: &Condition, catalog: &Catalog) -> Option<&'static str> {
    match crossed(c, catalog) {
        Crossed::Always if c.chance.is_some() && !is_departure_at_zero(c) => None,
        Crossed::Always => Some("this clear never holds, so the rule would fire for ever"),
        Crossed::Never => Some("this clear always holds, so the rule would stop firing at once"),
        Crossed::Sometimes => None,
    }
}

/// Reports what is wrong with the bound of a condition, at `at`.
pub(super) fn check_bound(
    clause: Clause,
    condition: &Condition,
    context: Context<'_>,
    at: Place,
    findings: &mut Findings<'_>,
) {
    let (low, high) = range_of(condition, context.catalog);
    let with_range = |wrong: &str| format!("{wrong}: {}", range_in_words(condition, low, high));
    let hint = percentage_hint(condition.bound, high);
    if clause == Clause::Clear {
        if let Some(wrong) = clear_problem(condition, context.catalog) {
            findings.error(at, with_range(wrong), hint);
        }
        return;
    }
    match crossed(condition, context.catalog) {
        Crossed::Always => {
            let usual = is_departure_at_zero(condition).then(|| "5 is rare on healthy load".into());
            let message = with_range("this bound is always exceeded");
            report_always_crossed(context, at, message, hint.or(usual), findings);
        }
        Crossed::Never => findings.error(at, with_range("this bound is never exceeded"), hint),
        Crossed::Sometimes => check_plausible(condition, context, high, at, findings),
    }
}

/// Reports a bound that is always crossed: an error if nothing else keeps the rule from firing, a warning
/// beside another condition or a guard, where the condition may be there to name the rank.
fn report_always_crossed(
    context: Context<'_>,
    at: Place,
    message: String,
    hint: Option<String>,
    findings: &mut Findings<'_>,
) {
    if context.has_other_conditions {
        findings.warn(at, message, hint)
    } else {
        findings.error(at, message, hint)
    }
}

/// Reports a `min_mean` that no group, or every group, reaches.
pub(in crate::config) fn check_min_mean(
    min_mean: f64,
    lead: &Condition,
    catalog: &Catalog,
    at: Place,
    findings: &mut Findings<'_>,
) {
    let (_, high) = catalog.range_of(lead.signal);
    if min_mean < 0.0 {
        findings.error(at, "no group's mean is below 0", Some("leave it out".into()));
    } else if min_mean >= high {
        let message = format!("no group has such a mean: `{}` is at most {high}", lead.signal_name);
        findings.error(at, message, percentage_hint(min_mean, high));
    }
}

/// The range of a condition's statistic over all groups.
fn range_of(c: &Condition, catalog: &Catalog) -> (f64, f64) {
    let (low, high) = catalog.range_of(c.signal);
    match c.statistic {
        Statistic::AnyMember | Statistic::AllMembers => (low, high),
        Statistic::MaxMinusMin => (0.0, high - low),
        other => other.range(),
    }
}

fn range_in_words(c: &Condition, low: f64, high: f64) -> String {
    let what = match c.statistic {
        Statistic::AnyMember | Statistic::AllMembers => format!("`{}`", c.signal_name),
        Statistic::MaxMinusMin if high.is_finite() => format!("`{}` of `{}`", c.statistic, c.signal_name),
        other => format!("`{other}`"),
    };
    if c.statistic == Statistic::Departure {
        return format!("{what} is above 0 in every group");
    }
    if high.is_finite() {
        format!("{what} lies between {low} and {high}")
    } else {
        format!("{what} is {low} or more")
    }
}

/// A hint for a percentage that is given for a share.
fn percentage_hint(bound: f64, high: f64) -> Option<String> {
    let is_percentage = high == 1.0 && bound > 1.0 && bound <= 100.0;
    is_percentage.then(|| format!("it is a share, not a percentage: did you mean {}?", bound / 100.0))
}

fn is_departure_at_zero(c: &Condition) -> bool {
    c.statistic == Statistic::Departure && c.bound <= 0.0
}

/// Warns of bounds that a trigger can cross but that are hardly meant.
fn check_plausible(c: &Condition, context: Context<'_>, high: f64, at: Place, findings: &mut Findings<'_>) {
    let is_of_members = matches!(c.statistic, Statistic::AnyMember | Statistic::AllMembers);
    if c.statistic == Statistic::Departure && c.bound < HEALTHY_DEPARTURE {
        let message =
            format!("healthy load departs by {HEALTHY_DEPARTURE} now and then: this would fire on it");
        return findings.warn(at, message, Some("5 is rare on healthy load".into()));
    }
    if is_of_members && high == 100.0 && c.bound > 0.0 && c.bound < 1.0 {
        let message = format!("`{}` is in percent, from 0 to 100", c.signal_name);
        let hint = format!("did you mean {}?", c.bound * 100.0);
        return findings.warn(at, message, Some(hint));
    }
    // With these, chance or the past decides rather than the bound.
    if c.chance.is_some() || c.above_baseline.is_some() {
        return;
    }
    let Some(usual) = typical_bound(c.statistic) else { return };
    let even = if c.statistic == Statistic::RobustZ { SMALLEST_OUTLIER } else { c.statistic.even() };
    let is_even = match c.direction {
        Direction::Above => c.bound <= even,
        Direction::Below => c.bound >= even,
    };
    if !is_even {
        return;
    }
    let message = format!("`{}` is beyond {} as soon as two members differ at all", c.statistic, c.bound);
    match usual {
        Some(usual) => {
            let hint = format!("write {usual}, say, or add `beyond_chance: 4`");
            report_always_crossed(context, at, message, Some(hint), findings);
        }
        // For a rare event, any difference may be worth reporting.
        None => findings.warn(at, message, Some("write how far apart they may be".into())),
    }
}

/// A typical bound to suggest, if there is one; `None` for statistics without an even value.
const fn typical_bound(statistic: Statistic) -> Option<Option<f64>> {
    Some(match statistic {
        Statistic::MaxOverMean => Some(1.5),
        Statistic::MinOverMean => Some(0.2),
        Statistic::Jain => Some(0.7),
        Statistic::Cv => Some(0.4),
        Statistic::Gini | Statistic::LostShare => Some(0.3),
        Statistic::RobustZ => Some(6.0),
        Statistic::MaxMinusMin => None,
        Statistic::AnyMember
        | Statistic::AllMembers
        | Statistic::Departure
        | Statistic::Factors
        | Statistic::Other => {
            return None;
        }
    })
}
