//! Bounds that no number can reach, or every number does.

use super::{Context, Part};
use crate::config::diagnostic::Findings;
use crate::config::tree::Place;
use skewtrap_core::rule::{Condition, Direction, Statistic};
use skewtrap_core::signal::catalog::Catalog;

/// The outlier of a group that is not exactly even is always so far from the median, at least.
const ANY_OUTLIER: f64 = 1.0 / 1.4826;

/// Healthy load comes up to this now and then (docs/detection.md).
const HEALTHY_DEPARTURE: f64 = 3.5;

/// When the statistic is beyond a bound, as far as its range says.
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
    match (always || is_no_departure(c), never) {
        (true, _) => Crossed::Always,
        (_, true) => Crossed::Never,
        _ => Crossed::Sometimes,
    }
}

/// Whether a trigger's bound divides what the statistic can show.
pub fn can_trigger(c: &Condition, catalog: &Catalog) -> bool {
    crossed(c, catalog) == Crossed::Sometimes
}

/// Whether a clear's bound can be kept, by itself or within chance, and can be crossed.
pub fn can_clear(c: &Condition, catalog: &Catalog) -> bool {
    wrong_with_clear(c, catalog).is_none()
}

fn wrong_with_clear(c: &Condition, catalog: &Catalog) -> Option<&'static str> {
    match crossed(c, catalog) {
        Crossed::Always if c.chance.is_some() && !is_no_departure(c) => None,
        Crossed::Always => Some("this clear never holds, so the rule would fire for ever"),
        Crossed::Never => Some("this clear always holds, so the rule would stop firing at once"),
        Crossed::Sometimes => None,
    }
}

/// Says what is wrong with a condition's bound, which stands at `at`.
pub(super) fn check_bound(
    part: Part,
    condition: &Condition,
    context: Context<'_>,
    at: Place,
    findings: &mut Findings<'_>,
) {
    let (low, high) = range_of(condition, context.catalog);
    let in_words = |wrong: &str| format!("{wrong}: {}", range_in_words(condition, low, high));
    let hint = hundredth_of(condition.bound, high);
    if part == Part::Clear {
        if let Some(wrong) = wrong_with_clear(condition, context.catalog) {
            findings.error(at, in_words(wrong), hint);
        }
        return;
    }
    match crossed(condition, context.catalog) {
        Crossed::Always => {
            let usual = is_no_departure(condition).then(|| "5 is rare on healthy load".into());
            let message = in_words("this bound is always exceeded");
            always_crossed(context, at, message, hint.or(usual), findings);
        }
        Crossed::Never => findings.error(at, in_words("this bound is never exceeded"), hint),
        Crossed::Sometimes => check_sense(condition, context, high, at, findings),
    }
}

/// An error where nothing else keeps the rule from firing; beside another condition or a guard it may
/// be there to name the rank.
fn always_crossed(
    context: Context<'_>,
    at: Place,
    message: String,
    hint: Option<String>,
    findings: &mut Findings<'_>,
) {
    if context.others_decide { findings.warn(at, message, hint) } else { findings.error(at, message, hint) }
}

/// Says that no group's mean reaches `min_mean`.
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
        findings.error(at, message, hundredth_of(min_mean, high));
    }
}

/// The numbers between which a condition's statistic lies, whatever the group.
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

/// What was meant by a percentage of something that ends at 1.
fn hundredth_of(bound: f64, high: f64) -> Option<String> {
    let is_percentage = high == 1.0 && bound > 1.0 && bound <= 100.0;
    is_percentage.then(|| format!("it is a share, not a percentage: did you mean {}?", bound / 100.0))
}

fn is_no_departure(c: &Condition) -> bool {
    c.statistic == Statistic::Departure && c.bound <= 0.0
}

/// Bounds that a trigger can cross and that are odd all the same.
fn check_sense(c: &Condition, context: Context<'_>, high: f64, at: Place, findings: &mut Findings<'_>) {
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
    // With these the bound is not what decides.
    if c.chance.is_some() || c.above_baseline.is_some() {
        return;
    }
    let Some(usual) = usual_of(c.statistic) else { return };
    let even = if c.statistic == Statistic::RobustZ { ANY_OUTLIER } else { c.statistic.even() };
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
            always_crossed(context, at, message, Some(hint), findings);
        }
        // Of a number that is rare, any difference may be worth a word.
        None => findings.warn(at, message, Some("write how far apart they may be".into())),
    }
}

/// A bound that is usual, if any is; `None` for what may be even anywhere.
const fn usual_of(statistic: Statistic) -> Option<Option<f64>> {
    Some(match statistic {
        Statistic::MaxOverMean => Some(1.5),
        Statistic::MinOverMean => Some(0.2),
        Statistic::Jain => Some(0.7),
        Statistic::Cv => Some(0.4),
        Statistic::Gini | Statistic::LostShare => Some(0.3),
        Statistic::RobustZ => Some(6.0),
        Statistic::MaxMinusMin => None,
        Statistic::AnyMember | Statistic::AllMembers | Statistic::Departure | Statistic::Other => {
            return None;
        }
    })
}
