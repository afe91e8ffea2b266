//! Bounds that no number can reach, or every number does.

use super::Part;
use crate::config::diagnostic::Findings;
use crate::config::tree::Place;
use crate::decide::rule::{Direction, Statistic};

pub(super) fn check_bound(
    part: Part,
    statistic: Statistic,
    bound: f64,
    at: Place,
    findings: &mut Findings<'_>,
) {
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
