//! `skewtrap why`: the state of each rule of the running agent, and the reason.

use std::process::ExitCode;

use clap::Args;

use super::agent_client::AgentArgs;
use super::silence;
use super::status::not_watched_lines;
use super::{Format, wrong};
use skewtrap_core::message::{figure, utc};
use skewtrap_core::rule::RuleState;
use skewtrap_core::status::{GroupStatus, RuleStatus, Silence, Status};

/// Says of each rule of the running agent where it is, and why it does not fire
#[derive(Debug, Args)]
pub struct WhyArgs {
    /// Only this rule
    rule: Option<String>,
    #[command(flatten)]
    agent: AgentArgs,
    #[command(flatten)]
    format: Format,
}

/// Prints the rules' states and reasons.
///
/// # Errors
/// The agent does not answer, or has no such rule.
pub fn run(args: &WhyArgs) -> anyhow::Result<ExitCode> {
    let status: Status = args.agent.get_of_all("status")?;
    let status = only(status, args.rule.as_deref())?;
    if args.format.is_json() {
        outln!("{}", serde_json::to_string_pretty(&status.rules)?)?;
    } else {
        out!("{}", rules_text(&status))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The status with the rule of that name alone, where one is named.
///
/// # Errors
/// The agent has no such rule.
pub(super) fn only(mut status: Status, rule: Option<&str>) -> anyhow::Result<Status> {
    let Some(name) = rule else { return Ok(status) };
    let known: Vec<String> = status.rules.iter().map(|r| r.name.to_string()).collect();
    status.rules.retain(|r| *r.name == *name);
    if status.rules.is_empty() {
        return Err(wrong(&format!("the agent has no rule `{name}`; it has {}", known.join(", "))));
    }
    Ok(status)
}

/// The rules' states and reasons, and what no rule can watch.
pub(super) fn rules_text(status: &Status) -> String {
    let rules = status.rules.iter().map(|rule| text_of(rule, &status.silences));
    let not_watched = not_watched_lines(status).into_iter().map(|text| format!("\nNOT watched: {text}\n"));
    rules.chain(not_watched).collect()
}

fn text_of(rule: &RuleStatus, silences: &[Silence]) -> String {
    let mut text = format!("{}\n", rule.name);
    let own = silences.iter().filter(|silence| silence.rule.as_ref().is_none_or(|of| *of == rule.name));
    for silence in own {
        text += &format!("  silenced: {}\n", silence::line_of(silence));
    }
    if rule.groups.is_empty() {
        text += "  it has seen no group of ranks yet\n";
    }
    // Groups with the same text are listed together.
    let mut texts: Vec<(String, Vec<String>)> = Vec::new();
    for group in &rule.groups {
        let (who, what) = (name_of(group), state_text(group));
        match texts.iter_mut().find(|(words, _)| *words == what) {
            Some((_, names)) => names.push(who),
            None => texts.push((what, vec![who])),
        }
    }
    let of_groups = |(what, who): &(String, Vec<String>)| match who.join(", ") {
        // No group of ranks is there.
        nobody if nobody.is_empty() => format!("  {what}"),
        who => format!("  {who}: {what}"),
    };
    text + &texts.iter().map(of_groups).collect::<String>()
}

fn name_of(group: &GroupStatus) -> String {
    let labels = group.group.to_string();
    match (group.target.is_empty(), labels.is_empty()) {
        (_, true) => group.target.to_string(),
        (true, false) => labels,
        (false, false) => format!("{} {labels}", group.target),
    }
}

fn state_text(group: &GroupStatus) -> String {
    let since = group.since.map(|s| format!(" since {}", utc(s))).unwrap_or_default();
    let why_has_value = group.why.contains(&group.statistic.replacen(" of ", "(", 1));
    let value = match (group.value, group.bound) {
        // Of what does not fire `why` says how far it is from that.
        (Some(value), _) if group.statistic.starts_with("factors of ") => match group.state {
            // A firing counts as at its bound until it has cleared.
            RuleState::Firing if value <= 1.0 => {
                "    it is below its firing bound now, and has not cleared yet\n".into()
            }
            RuleState::Firing => format!("    it is {} times the firing bound\n", figure(value)),
            _ => String::new(),
        },
        (Some(value), Some(bound)) if !why_has_value => {
            format!("    {} is {}, fires at {}\n", group.statistic, figure(value), figure(bound))
        }
        _ => String::new(),
    };
    let refused = group.refused.as_ref().map(|why| format!("    no window: {why}\n")).unwrap_or_default();
    let again = group.again.as_ref().map(|how| format!("    {how}\n")).unwrap_or_default();
    let state = match group.state {
        RuleState::Inert => "inert (it cannot fire here)",
        state => state.word(),
    };
    format!("{state}{since}\n    {}\n{value}{refused}{again}", group.why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use skewtrap_core::rule::Severity;
    use skewtrap_trace::time::Time;

    #[test]
    fn every_group_says_where_it_is_and_why_and_those_alike_together_once() {
        let group = GroupStatus {
            target: "server".into(),
            group: serde_json::from_str(r#"{"role": "unified"}"#).expect("labels"),
            state: RuleState::Pending,
            why: "the excess holds for 1.2 s of 3 s".into(),
            since: Some(Time::from_epoch_s(1_795_492_121.3)),
            statistic: "max_over_mean of load".into(),
            value: Some(1.82),
            bound: Some(1.5),
            rank: None,
            incident: None,
            refused: Some("the server is not healthy (503); a profile would add to its trouble".into()),
            again: None,
        };
        let rule = RuleStatus {
            name: "dp-load-skew".into(),
            about: None,
            severity: Severity::Warning,
            capture: "none".into(),
            groups: vec![group],
            last_evaluated: None,
            silenced_until: None,
        };
        insta::assert_snapshot!(text_of(&rule, &[]), @r"
        dp-load-skew
          server role=unified: pending since 2026-11-24 03:48:41.3 UTC
            the excess holds for 1.2 s of 3 s
            max_over_mean of load is 1.82, fires at 1.5
            no window: the server is not healthy (503); a profile would add to its trouble
        ");
        let idle = |role: &str| GroupStatus {
            group: serde_json::from_str(&format!(r#"{{"role": "{role}"}}"#)).expect("labels"),
            state: RuleState::Idle,
            why: "max_over_mean(load) is 1.100, not above 1.5".into(),
            since: None,
            refused: None,
            ..rule.groups[0].clone()
        };
        let alike = RuleStatus { groups: vec![idle("prefill"), idle("decode")], ..rule.clone() };
        insta::assert_snapshot!(text_of(&alike, &[]), @r"
        dp-load-skew
          server role=prefill, server role=decode: idle
            max_over_mean(load) is 1.100, not above 1.5
        ");
        let silence = Silence {
            rule: None,
            target: None,
            until: Time::from_epoch_s(1_795_492_126.1),
            why: Some("load test".into()),
        };
        let text = text_of(&rule, &[silence]);
        assert!(
            text.contains(
                "  silenced: every rule on every server until 2026-11-24 03:48:46.1 UTC (load test)\n"
            ),
            "{text}"
        );
        let factors = |state, why: &str| GroupStatus {
            state,
            why: why.into(),
            statistic: "factors of load".into(),
            since: None,
            refused: None,
            ..rule.groups[0].clone()
        };
        let groups = vec![factors(RuleState::Idle, "nothing departs from what is usual")];
        insta::assert_snapshot!(text_of(&RuleStatus { groups, ..rule.clone() }, &[]), @r"
        dp-load-skew
          server role=unified: idle
            nothing departs from what is usual
        ");
        let groups = vec![factors(RuleState::Firing, "firing since then: DP2 is high")];
        let text = text_of(&RuleStatus { groups, ..rule.clone() }, &[]);
        assert!(
            text.ends_with("    firing since then: DP2 is high\n    it is 1.82 times the firing bound\n"),
            "{text}"
        );
        // A firing counts as at its bound as long as it has not cleared.
        let mut fallen = factors(RuleState::Firing, "firing since then: DP2 is high");
        fallen.value = Some(1.0);
        let text = text_of(&RuleStatus { groups: vec![fallen], ..rule.clone() }, &[]);
        assert!(text.ends_with("    it is below its firing bound now, and has not cleared yet\n"), "{text}");
        insta::assert_snapshot!(text_of(&RuleStatus { groups: Vec::new(), ..rule }, &[]), @r"
        dp-load-skew
          it has seen no group of ranks yet
        ");
    }
}
