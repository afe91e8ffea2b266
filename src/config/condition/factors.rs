//! `factors:` in YAML.

use std::sync::Arc;

use super::ConditionText;
use crate::config::de::{TextOr, did_you_mean};
use crate::config::diagnostic::Findings;
use crate::config::names::names_of;
use crate::config::tree::Place;
use skewtrap_core::factor::Factor;
use skewtrap_core::rule::{FactorSet, Statistic, Trigger};

/// The factors that a condition names; none where it names none.
pub(super) fn factors_of(text: &ConditionText, findings: &mut Findings<'_>) -> FactorSet {
    let Some((names, place)) = text.factors.placed() else { return FactorSet::NONE };
    let all = [Factor::Share, Factor::Speed, Factor::Work, Factor::Stuck];
    let words: Vec<&str> = all.iter().map(|f| f.word()).chain(["any"]).collect();
    let mut set = FactorSet::NONE;
    if matches!(names, TextOr::More(list) if list.is_empty()) {
        findings.error(place, "an empty list of factors", Some("write `any`, or some of them".into()));
    }
    for (name, at) in names_of(names, place) {
        match all.iter().find(|f| f.word() == name) {
            Some(factor) => set = set.with(*factor),
            None if name == "any" => set = all.into_iter().fold(set, FactorSet::with),
            None => findings.error(at, format!("`{name}` is no factor"), Some(did_you_mean(name, &words))),
        }
    }
    set
}

/// Factors are known of the DP ranks of one server each.
pub fn check_factors(
    trigger: Option<&Trigger>,
    across: &[Arc<str>],
    within: &[Arc<str>],
    at: Place,
    findings: &mut Findings<'_>,
) {
    let reads = trigger.is_some_and(|t| t.conditions.iter().any(|c| c.statistic == Statistic::Factors));
    let fits = across.iter().map(|a| &**a).eq(["dp_rank"]) && within.iter().any(|w| &**w == "target");
    if reads && !fits {
        let message = "`factors` compares the DP ranks of one server";
        let hint = "write `across: dp_rank` and `within: [target, role]`, which are the defaults";
        findings.error(at, message, Some(hint.into()));
    }
}
