//! Whether an expectation of a test is met; one that nothing could break is not.

use std::collections::BTreeMap;

use crate::cli::play::Played;
use crate::config::test::{Expect, When};
use skewtrap_core::rule::{Change, Rule, RuleState};
use skewtrap_trace::labels::Labels;
use skewtrap_trace::time::Time;

/// What is wrong, if what is expected of `rule` is not met.
pub(super) fn unmet(expect: &Expect, rule: &Rule, played: &Played) -> Option<String> {
    let why = outside(expect, played)
        .or_else(|| nowhere(expect, rule, played))
        .or_else(|| if expect.never { broken(expect, rule, played) } else { missed(expect, rule, played) })?;
    Some(format!("line {}: {why}", expect.place.line))
}

/// The time of an expectation; its end if it names none.
fn until(expect: &Expect, played: &Played) -> Time {
    expect.at.map_or(played.end, |w| time_of(w, played))
}

fn time_of(when: When, played: &Played) -> Time {
    match when {
        When::After(d) => played.start + d,
        When::Epoch(s) => Time::from_epoch_s(s),
    }
}

/// A time at which nothing is known.
fn outside(expect: &Expect, played: &Played) -> Option<String> {
    let (at, told) = (until(expect, played), |t: Time| since_start(t, played.start));
    if at > played.end {
        return Some(format!(
            "{} is after the end of what arrives, which is at {}",
            told(at),
            told(played.end)
        ));
    }
    (at < played.start).then(|| format!("{} is before the beginning of what arrives", told(at)))
}

/// A group that never appears.
fn nowhere(expect: &Expect, rule: &Rule, played: &Played) -> Option<String> {
    let groups = played.groups_of(rule);
    if expect.group.0.is_empty()
        || groups.iter().any(|(target, group)| has_labels(target, group, &expect.group))
    {
        return None;
    }
    let there: Vec<String> = groups.iter().map(|(target, group)| format!("{target} {group}")).collect();
    let there = match there.is_empty() {
        true => why_unjudged(rule, played),
        false => format!("there are {}", there.join(", ")),
    };
    Some(format!("no group {} ever appears: {there}", expect.group))
}

/// Changes of the meant group up to the expectation's time.
fn meant<'p>(expect: &'p Expect, rule: &'p Rule, played: &'p Played) -> impl Iterator<Item = &'p Change> {
    let until = until(expect, played);
    played.changes.iter().filter(move |c| {
        let target = c.target.as_deref().unwrap_or_default();
        c.at <= until && rule.name == c.rule.name && has_labels(target, &c.group, &expect.group)
    })
}

/// What was never to be, and was; or could not have been.
fn broken(expect: &Expect, rule: &Rule, played: &Played) -> Option<String> {
    let (started, state) = (played.start, expect.state.word());
    if let Some(broken) = meant(expect, rule, played).find(|c| c.state == expect.state) {
        let at = since_start(broken.at, started);
        return Some(format!("never {state}, but it was at {at}{}", blame_of(broken)));
    }
    let is_judged = meant(expect, rule, played).any(|c| is_verdict(c.state));
    let at = since_start(until(expect, played), started);
    (!is_judged).then(|| {
        format!(
            "never {state} proves nothing: up to {at} the rule was not judged ({})",
            why_unjudged(rule, played)
        )
    })
}

const fn is_verdict(state: RuleState) -> bool {
    matches!(state, RuleState::Idle | RuleState::Pending | RuleState::Firing)
}

/// Why a rule came to no verdict.
fn why_unjudged(rule: &Rule, played: &Played) -> String {
    let missing: Vec<String> = rule
        .conditions()
        .map(|c| &*c.signal_name)
        .filter(|name| !played.standing.iter().any(|s| s.signal == **name))
        .map(|name| format!("nothing of `{name}` arrives"))
        .collect();
    if let Some(first) = missing.first() {
        return first.clone();
    }
    let of_rule = played.status.rules.iter().filter(|r| r.name == rule.name).flat_map(|r| &r.groups);
    of_rule.map(|g| g.why.clone()).next().unwrap_or_else(|| "no rank was seen".into())
}

/// A state that was to be, and was not.
fn missed(expect: &Expect, rule: &Rule, played: &Played) -> Option<String> {
    // The last change of each group counts.
    let mut last: BTreeMap<(Option<&str>, &Labels), &Change> = BTreeMap::new();
    for c in meant(expect, rule, played) {
        last.insert((c.target.as_deref(), &c.group), c);
    }
    let at = since_start(until(expect, played), played.start);
    let states: Vec<&&Change> = last.values().filter(|c| c.state == expect.state).collect();
    if states.is_empty() {
        if last.is_empty() && expect.state == RuleState::Warming && !played.groups_of(rule).is_empty() {
            return None;
        }
        let seen: Vec<String> = last.values().map(|c| format!("{}{}", c.state.word(), blame_of(c))).collect();
        let seen = match seen.is_empty() {
            true => format!("warming ({})", why_unjudged(rule, played)),
            false => seen.join(", "),
        };
        let stranger = expect.rank.as_ref().and_then(|r| stranger(r, played)).unwrap_or_default();
        return Some(format!("at {at} it should be {}, but is {seen}{stranger}", expect.state.word()));
    }
    let problems: Vec<String> = states.iter().map(|c| mismatch(expect, c, played)).collect::<Option<_>>()?;
    problems.into_iter().next().map(|p| format!("at {at} {p}"))
}

/// A rank to be blamed that is not among those that were seen.
fn stranger(rank: &Labels, played: &Played) -> Option<String> {
    let mut ranks = played.standing.iter().flat_map(|s| s.latest.iter().map(|r| (s.target.as_str(), &r.of)));
    (!ranks.any(|(target, of)| has_labels(target, of, rank)))
        .then(|| format!("; no rank {rank} ever appears"))
}

/// What one firing gets wrong; `None` when it is as expected.
fn mismatch(expect: &Expect, change: &Change, played: &Played) -> Option<String> {
    let finding = change.finding.as_ref()?;
    if let Some(rank) = &expect.rank
        && *rank != finding.rank
    {
        let stranger = stranger(rank, played).unwrap_or_default();
        return Some(format!("it should blame {rank}, but blames {}{stranger}", finding.rank));
    }
    if let Some(side) = expect.side
        && side != finding.side
    {
        let (wanted, blamed) = (side.word(), finding.side.word());
        return Some(format!("it should blame the {wanted} side, but blames {blamed}"));
    }
    let (onset, within) = expect.onset?;
    let (started, wanted) = (played.start, time_of(onset, played));
    let off = finding.onset.signed_s_since(wanted);
    (off.abs() > within.as_secs_f64()).then(|| {
        let told = since_start(finding.onset, started);
        format!("the onset should be {}, but is {told}, {off:+.1} s off", since_start(wanted, started))
    })
}

fn has_labels(target: &str, group: &Labels, wanted: &Labels) -> bool {
    wanted.0.iter().all(|(name, value)| match &**name {
        "target" => *target == value.to_string(),
        _ => group.get(name).is_some_and(|v| v.to_string() == value.to_string()),
    })
}

fn since_start(at: Time, started: Time) -> String {
    format!("{:.1}s", at.signed_s_since(started))
}

fn blame_of(change: &Change) -> String {
    change.finding.as_ref().map_or_else(String::new, |f| format!(" ({}, {})", f.rank, f.side.word()))
}
