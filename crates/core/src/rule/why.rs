//! Why a rule does not fire: the exact missing link, in words.
//!
//! `skewtrap why`, the status page and the reasons of `inert` and `unknown` are made of this. Where
//! a rule fires, it says so; silence without a reason does not exist.

use std::sync::Arc;

use serde::Serialize;

use super::condition::{Lack, Looked};
use super::engine::Entry;
use super::group::{Group, Running, Seen, Unjudged};
use super::state::{RuleState, State};
use super::{Combine, Condition, Direction, Statistic};
use crate::signal::store::SignalStore;
use skewtrap_trace::labels::Labels;
use skewtrap_trace::time::Time;

/// Where one rule stands with one group; with none at all when no group can be made.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// The rule.
    pub rule: Arc<str>,
    /// All labels of the group; `None` when there is none.
    pub group: Option<Labels>,
    /// Its state.
    pub state: RuleState,
    /// Since when the trigger has held, or the firing lasted.
    pub since: Option<Time>,
    /// When it was last evaluated.
    pub evaluated: Option<Time>,
    /// The statistic, the signal, its value and its bound, as of then.
    pub numbers: Option<Measured>,
    /// Why it does not fire, or that it does.
    pub why: String,
}

/// The number that decides.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// `max_over_mean`.
    pub statistic: &'static str,
    /// `load`.
    pub signal: Arc<str>,
    /// Its value.
    pub value: f64,
    /// Its bound.
    pub bound: f64,
}

/// A rule's standing with all its groups.
pub(super) fn standing_of(entry: &Entry, now: Time) -> Vec<Evaluation> {
    let rule = entry.running.rule.name.clone();
    if entry.groups.is_empty() {
        let (state, why) = match &entry.inert {
            Some(reason) => (RuleState::Inert, reason.clone()),
            None => (RuleState::Warming, "no rank has been seen yet".to_owned()),
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
    let standing = |g: &Group| Evaluation {
        rule: rule.clone(),
        group: Some(g.labels.clone()),
        state: g.phase(),
        since: match &g.state {
            State::Pending { since } => Some(*since),
            State::Firing(f) => Some(f.since),
            _ => None,
        },
        evaluated: g.evaluated,
        numbers: measured(g, &entry.running),
        why: why_of(g, &entry.running, now),
    };
    entry.groups.iter().map(standing).collect()
}

fn measured(group: &Group, running: &Running) -> Option<Measured> {
    let Seen::Judged { trigger, .. } = &group.seen else { return None };
    let condition = &running.rule.trigger.conditions[trigger.lead];
    Some(Measured {
        statistic: condition.statistic.name(),
        signal: condition.signal_name.clone(),
        value: trigger.reading.value,
        bound: condition.bound,
    })
}

fn why_of(group: &Group, running: &Running, now: Time) -> String {
    match &group.seen {
        Seen::Nothing => "not evaluated yet: no sample since the start".into(),
        Seen::Unjudged(unjudged @ Unjudged::Few(_)) if group.phase() == RuleState::Warming => {
            format!("{}; waiting for more", group.reason_of(unjudged, running))
        }
        Seen::Unjudged(unjudged) => group.reason_of(unjudged, running),
        Seen::Light(mean) => {
            format!(
                "the group's mean is {mean:.3}, below min_mean {}: too little load to judge",
                running.rule.min_mean
            )
        }
        Seen::Judged { trigger, guard } => match (&group.state, trigger.holds) {
            (State::Firing(f), _) => {
                let blame = &f.blame;
                let side = if blame.side == crate::finding::Side::Low { "low" } else { "high" };
                format!("it fires since {}: {} is {side}", f.since, blame.member)
            }
            (State::Pending { since }, _) => format!(
                "the trigger holds for {:.1} s; it fires after {:.1} s",
                now.since(*since).as_secs_f64(),
                running.holds.trigger.as_secs_f64()
            ),
            (_, true) if *guard == Some(false) => {
                let source = running.rule.only_if.as_ref().map_or("", |g| g.source());
                format!("the trigger holds, but only_if does not: {source}")
            }
            (State::Idle { rested }, true) if now < *rested => {
                format!("the trigger holds, but the rule rests until {rested} (rearm_after)")
            }
            (_, true) => "the trigger has just begun to hold".into(),
            (_, false) => missing_links(group, running, now),
        },
    }
}

fn is_warm(group: &Group) -> bool {
    group.watcher.as_ref().is_some_and(|w| w.is_warm())
}

/// What each condition lacks: of an `any` all, for one of them would suffice; of an `all` those that
/// do not hold.
fn missing_links(group: &Group, running: &Running, now: Time) -> String {
    let trigger = &running.rule.trigger;
    let mut links: Vec<String> = Vec::new();
    for (index, (condition, looked)) in trigger.conditions.iter().zip(group.held.looked()).enumerate() {
        let Some(lack) = looked.lacks else { continue };
        let link = match lack {
            Lack::Excess if condition.statistic == Statistic::Departure && !is_warm(group) => {
                let (name, signal) = (condition.statistic.name(), &condition.signal_name);
                format!("{name}({signal}) learns what is usual in this group, which takes about a minute")
            }
            Lack::Excess => missing_excess(condition, looked),
            Lack::Time => {
                let lasted = group.held.since(index).map_or(0.0, |since| now.since(since).as_secs_f64());
                let (for_s, holds) = (condition.hold.as_secs_f64(), beyond(condition, looked));
                format!("{holds}, for {lasted:.1} s of {for_s:.1} s")
            }
            Lack::Unusual => format!(
                "{}, but is not more than {} times what is usual here, or that is not known yet",
                beyond(condition, looked),
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
fn beyond(condition: &Condition, looked: &Looked) -> String {
    let sign = if condition.direction == Direction::Below { "<" } else { ">" };
    let (name, signal) = (condition.statistic.name(), &condition.signal_name);
    format!("{name}({signal}) {:.3} {sign} {}", looked.reading.value, condition.bound)
}

/// What keeps a condition within its bound.
fn missing_excess(condition: &Condition, looked: &Looked) -> String {
    let (name, signal, r) = (condition.statistic.name(), &condition.signal_name, &looked.reading);
    let (is_beyond, word) = match condition.direction {
        Direction::Above => (r.value > condition.bound, "above"),
        Direction::Below => (r.value < condition.bound, "below"),
    };
    if !is_beyond {
        return format!("{name}({signal}) is {:.3}, not {word} {}", r.value, condition.bound);
    }
    let beyond = beyond(condition, looked);
    if !r.beyond_bound {
        return format!(
            "{beyond}, but the member that left its peers is on the side that the rule does not blame"
        );
    }
    let k = condition.chance.unwrap_or_default();
    format!("{beyond}, but that is {:.1} times what chance explains, not more than {k}", r.times_chance)
}

/// Why no group can be made for a rule.
pub(super) fn no_group(running: &Running, store: &SignalStore) -> String {
    let look = running.looks[0];
    let signal = running.signal_name(0);
    match store.lacking(look.view).iter().next() {
        Some((label, series)) => format!(
            "`{signal}` arrives ({series} series) without the label `{label}` that the rule compares across"
        ),
        None if store.recorded() == 0 => "no source has delivered a single number yet".into(),
        None => format!("`{signal}` has never arrived; `skewtrap signals` shows what does"),
    }
}
