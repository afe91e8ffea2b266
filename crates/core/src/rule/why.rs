//! The state of each rule on each group, with a sentence that says exactly what keeps it from firing.
//!
//! `skewtrap why`, the status page and the reasons of `inert` and `unknown` are made of this. Every
//! state has a reason.

use std::sync::Arc;

use serde::Serialize;

use super::compiled::CompiledRule;
use super::condition::{ConditionResult, Missing};
use super::group::{Group, LastEvaluation, Unjudged};
use super::quick_check::QuickCheck;
use super::state::{Firing, GroupState, RuleState};
use super::{Combine, Condition, Direction, Statistic};
use crate::signal::store::SignalStore;
use skewtrap_trace::labels::Labels;
use skewtrap_trace::rank::rank_name;
use skewtrap_trace::time::Time;

/// The state of one rule on one group, or without a group when none can be made.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    pub rule: Arc<str>,
    /// All labels of the group; `None` when there is none.
    pub group: Option<Labels>,
    pub state: RuleState,
    /// Since when it is in that state, where it is pending or fires.
    pub since: Option<Time>,
    /// When it was last evaluated.
    pub evaluated: Option<Time>,
    /// The statistic, the signal, its value and its bound, as of then.
    pub numbers: Option<Measured>,
    /// Why it does not fire, or since when it does.
    pub why: String,
}

/// The number that decided: that of the first condition that held, else of the first condition.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    pub statistic: Statistic,
    /// The signal that it summarises, as in rules: `load`.
    pub signal: Arc<str>,
    pub value: f64,
    pub bound: f64,
}

/// A rule's evaluations on those of its groups that are `wanted`. `inert` is the reason for which it has
/// no group, once that is certain.
pub(super) fn evaluations_of<'a>(
    compiled: &CompiledRule,
    groups: impl ExactSizeIterator<Item = (&'a Group, &'a QuickCheck)>,
    inert: Option<&str>,
    wanted: impl Fn(&Labels, RuleState) -> bool,
    now: Time,
) -> Vec<Evaluation> {
    let rule = compiled.rule.name.clone();
    if groups.len() == 0 {
        let (state, why) = match inert {
            Some(reason) => (RuleState::Inert, reason.to_owned()),
            None => {
                let signal = compiled.signal_name(0);
                (RuleState::Warming, format!("`{signal}` has not arrived from any rank yet"))
            }
        };
        return vec![Evaluation {
            rule,
            group: None,
            state,
            since: None,
            evaluated: None,
            numbers: None,
            why,
        }];
    }
    let evaluation = |(g, quick_check): (&Group, &QuickCheck)| Evaluation {
        rule: rule.clone(),
        group: Some((*g.labels).clone()),
        state: g.rule_state(),
        since: match &g.state {
            GroupState::Pending { since } => Some(*since),
            GroupState::Firing(f) => Some(f.fired_at),
            _ => None,
        },
        evaluated: quick_check.evaluated,
        numbers: measured(g, quick_check, compiled),
        why: why_of(g, quick_check, compiled, now),
    };
    groups.filter(|(g, _)| wanted(&g.labels, g.rule_state())).map(evaluation).collect()
}

fn measured(group: &Group, quick_check: &QuickCheck, compiled: &CompiledRule) -> Option<Measured> {
    let (deciding, reading) = match (quick_check.reading(), &group.last) {
        (Some(reading), _) => (0, reading),
        (None, LastEvaluation::Judged { trigger, .. }) => (trigger.deciding, &trigger.reading),
        _ => return None,
    };
    let condition = &compiled.rule.trigger.conditions[deciding];
    Some(Measured {
        statistic: condition.statistic,
        signal: condition.signal_name.clone(),
        value: reading.value,
        bound: condition.bound,
    })
}

fn why_of(group: &Group, quick_check: &QuickCheck, compiled: &CompiledRule, now: Time) -> String {
    if let Some(reading) = quick_check.reading() {
        return missing_links(group, compiled, &[ConditionResult::within_bound(*reading)], now);
    }
    match &group.last {
        LastEvaluation::Never => "not evaluated yet: no sample since the start".into(),
        LastEvaluation::Unjudged(unjudged @ Unjudged::TooFewMembers(_))
            if group.rule_state() == RuleState::Warming =>
        {
            format!("{}; waiting for more", group.reason_of(unjudged, compiled))
        }
        LastEvaluation::Unjudged(unjudged) => {
            let reason = group.reason_of(unjudged, compiled);
            match &group.state {
                GroupState::Unknown { interrupted: Some(f) } => {
                    format!("{reason}; what was {} may go on, and is judged again once data come", firing(f))
                }
                _ => reason,
            }
        }
        LastEvaluation::LowLoad(mean) => {
            let low = format!("the group's mean is {mean:.3}, below min_mean {}", compiled.rule.min_mean);
            match &group.state {
                GroupState::Firing(f) => {
                    let ends = ends_of(f, compiled, now);
                    format!("{}; {low}, and with so little load nothing is uneven: {ends}", firing(f))
                }
                _ => format!("{low}: too little load to judge"),
            }
        }
        LastEvaluation::Judged { trigger, guard } => match (&group.state, trigger.holds) {
            (GroupState::Firing(f), _) => format!("{}; {}", firing(f), ends_of(f, compiled, now)),
            (GroupState::Pending { since }, _) => format!(
                "the trigger holds for {:.1} s; it fires after {:.1} s",
                now.since(*since).as_secs_f64(),
                compiled.holds.trigger.as_secs_f64()
            ),
            (_, true) if *guard == Some(false) => {
                let source = compiled.rule.only_if.as_ref().map_or("", |g| g.source());
                format!("the trigger holds, but only_if does not: {source}")
            }
            (GroupState::Idle { rearmed_at }, true) if now < *rearmed_at => {
                format!("the trigger holds, but the rule rests until {rearmed_at} (rearm_after)")
            }
            (_, true) => "the trigger has just begun to hold".into(),
            (_, false) => missing_links(group, compiled, group.memory.results(), now),
        },
    }
}

fn firing(f: &Firing) -> String {
    format!("firing since {}: {} is {}", f.fired_at, rank_name(&f.blame.member), f.blame.side.word())
}

/// What ends a firing, and how far that is.
fn ends_of(f: &Firing, compiled: &CompiledRule, now: Time) -> String {
    let hold = compiled.holds.clear.as_secs_f64();
    if let Some(lasted) = f.clear_for(now).map(|lasted| lasted.as_secs_f64()) {
        return format!("it has been clear for {lasted:.1} s, and ends after {hold:.1} s");
    }
    let kept = |c: &Condition| match c.statistic {
        Statistic::Factors => format!("{} as usual again", c.factors.nouns()),
        statistic => {
            let word = if c.direction == Direction::Below { "at least" } else { "at most" };
            let chance = c.chance.map(|k| format!(" (or within {k} times what chance explains)"));
            let (name, bound) = (statistic.name(), c.bound);
            format!("{name}({}) is {word} {bound}{}", c.signal_name, chance.unwrap_or_default())
        }
    };
    let clear = &compiled.rule.clear;
    let mut kept: Vec<String> = clear.conditions.iter().map(kept).collect();
    kept.dedup();
    let kept = kept.join(if clear.combine == Combine::All { " and " } else { " or " });
    format!("it ends once {kept} for {hold:.1} s")
}

fn is_warm(group: &Group) -> bool {
    group.detector.as_ref().is_some_and(|d| d.is_warm())
}

/// What each condition that does not hold is missing.
fn missing_links(group: &Group, compiled: &CompiledRule, results: &[ConditionResult], now: Time) -> String {
    let trigger = &compiled.rule.trigger;
    let mut links: Vec<String> = Vec::new();
    for (index, (condition, result)) in trigger.conditions.iter().zip(results).enumerate() {
        let Some(missing) = result.missing else { continue };
        let link = match missing {
            Missing::Excess if condition.statistic == Statistic::Departure && !is_warm(group) => {
                let (name, signal) = (condition.statistic.name(), &condition.signal_name);
                format!("{name}({signal}) learns what is usual in this group, which takes about a minute")
            }
            Missing::Excess if condition.statistic == Statistic::Factors => match &group.detector_status {
                Some(status) => status.words(condition.factors),
                None => "no line, no `/v1/loads` and no metrics page has told of two DP ranks yet".into(),
            },
            Missing::Excess => missing_excess(condition, result),
            Missing::Time => {
                let lasted = group.memory.since(index).map_or(0.0, |since| now.since(since).as_secs_f64());
                let (for_s, holds) = (condition.hold.as_secs_f64(), beyond(condition, result));
                format!("{holds}, for {lasted:.1} s of {for_s:.1} s")
            }
            Missing::Unusual => format!(
                "{}, but is not more than {} times what is usual here, or that is not known yet",
                beyond(condition, result),
                condition.above_baseline.unwrap_or(1.0)
            ),
        };
        if !links.contains(&link) {
            links.push(link);
        }
    }
    match (trigger.combine, links.len()) {
        (Combine::Any, 2..) => format!("none of its conditions holds: {}", links.join("; ")),
        _ => links.join("; "),
    }
}

/// `max_over_mean(load) 2.600 > 1.5`.
fn beyond(condition: &Condition, result: &ConditionResult) -> String {
    let sign = if condition.direction == Direction::Below { "<" } else { ">" };
    let (name, signal) = (condition.statistic.name(), &condition.signal_name);
    format!("{name}({signal}) {:.3} {sign} {}", result.reading.value, condition.bound)
}

/// Why a condition's value is not an excess: within its bound, on the wrong side, or within chance.
fn missing_excess(condition: &Condition, result: &ConditionResult) -> String {
    let (name, signal, r) = (condition.statistic.name(), &condition.signal_name, &result.reading);
    let (is_beyond, word) = match condition.direction {
        Direction::Above => (r.value > condition.bound, "above"),
        Direction::Below => (r.value < condition.bound, "below"),
    };
    if !is_beyond {
        return format!("{name}({signal}) is {:.3}, not {word} {}", r.value, condition.bound);
    }
    let beyond = beyond(condition, result);
    if !r.beyond_bound {
        return format!(
            "{beyond}, but the member that left its peers is on the side that the rule does not blame"
        );
    }
    let k = condition.chance.unwrap_or_default();
    format!("{beyond}, but that is {:.1} times what chance explains, not more than {k}", r.times_chance)
}

/// Why no group can be made for a rule.
pub(super) fn no_group(compiled: &CompiledRule, store: &SignalStore) -> String {
    let probe = compiled.probes[0];
    let signal = compiled.signal_name(0);
    match store.lacking(probe.view).iter().next() {
        Some((label, series)) => format!(
            "`{signal}` arrives ({series} series) without the label `{label}` that the rule compares across"
        ),
        None if store.recorded() == 0 => "no source has delivered a single number yet".into(),
        None if compiled.rule.is_of_machine() => format!(
            "`{signal}` has never arrived: it is read of the ranks' processes, by an agent on the server's machine and in \
             its PID namespace that sees two of them or more"
        ),
        None => format!("`{signal}` has never arrived; `skewtrap signals` shows what does"),
    }
}
