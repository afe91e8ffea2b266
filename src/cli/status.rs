//! `skewtrap status`: what the running agent sees and does, on one screen.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;

use super::Format;
use super::agent_client::AgentArgs;
use super::silence::silenced;
use skewtrap_core::message::{bytes, counted, figure, rank_name, seconds, utc};
use skewtrap_core::rule::RuleState;
use skewtrap_core::signal::source::SourceState;
use skewtrap_core::status::{Status, TargetStatus};

/// Shows what the running agent sees and does: servers, ranks, what fires, windows, silences.
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    agent: AgentArgs,
    #[command(flatten)]
    format: Format,
}

/// Prints the status.
///
/// # Errors
/// The agent does not answer.
pub fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let status: Status = args.agent.get_of_all("status")?;
    match args.format.is_json() {
        true => println!("{}", serde_json::to_string_pretty(&status)?),
        false => anstream::print!("{}", text_of(&status)),
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn text_of(status: &Status) -> String {
    let mut text = String::new();
    let mut line = |words: String| {
        let _ = writeln!(text, "{words}");
    };
    let only = if status.watch_only { ", opens no window (watch_only)" } else { "" };
    line(format!("skewtrap {}, running since {}{only}", status.version, utc(status.started)));
    status.targets.iter().for_each(|target| line(target_text(target)));
    let firing = status.rules.iter().flat_map(|rule| {
        let groups = rule.groups.iter().filter(|group| group.state == RuleState::Firing);
        groups.map(move |group| {
            let who = group.rank.as_ref().map(|rank| format!(": {}", rank_name(rank))).unwrap_or_default();
            let refused =
                group.refused.as_ref().map(|why| format!("; not captured: {why}")).unwrap_or_default();
            format!("fires: {} on {}{who}{refused}", rule.name, group.target)
        })
    });
    let firing: Vec<String> = firing.collect();
    match firing.is_empty() {
        true => line(format!("nothing fires, of {}", counted(status.rules.len(), "rule"))),
        false => firing.into_iter().for_each(&mut line),
    }
    for window in &status.windows {
        line(format!(
            "a window is open on {} since {} ({})",
            window.target,
            utc(window.since),
            window.incident
        ));
    }
    if let Some(all) = status.budget.limits.first() {
        let budget = &status.budget;
        line(format!(
            "budget of the last {} h: {} of {} windows, {} of {} of stalled serving, {} of {} written",
            figure(all.per_s / 3600.0),
            all.used,
            all.captures,
            seconds(budget.stalled_s),
            seconds(budget.stalled_s_limit),
            bytes(budget.written_bytes),
            bytes(budget.written_bytes_limit),
        ));
    }
    for silence in &status.silences {
        let what = silenced(silence.rule.as_deref(), silence.target.as_deref());
        line(format!("silenced: {what} until {}", utc(silence.until)));
    }
    for receiver in &status.receivers {
        if let Some(problem) = &receiver.problem {
            line(format!("receiver {} does not take messages: {problem}", receiver.name));
        }
    }
    text
}

fn target_text(target: &TargetStatus) -> String {
    let version = target.engine_version.as_deref().unwrap_or("of unknown version");
    let mut text =
        format!("{}: {} {version}, {}", target.name, target.engine, counted(target.ranks.len(), "rank"));
    let load = |signals: &str| {
        let of_rank = |rank: &skewtrap_core::status::RankStatus| {
            rank.signals.get(signals).map(|s| format!("{} {}", rank_name(&rank.rank), figure(s.value)))
        };
        target.ranks.iter().filter_map(of_rank).take(16).collect::<Vec<_>>().join(", ")
    };
    match load("load") {
        loads if loads.is_empty() => {}
        loads => text += &format!("; load {loads}"),
    }
    for source in target.sources.iter().filter(|s| s.state == SourceState::Failing) {
        let problem = source.problem.as_deref().unwrap_or("it gives nothing");
        text += &format!("\n  {} fails: {problem}", source.kind);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use skewtrap_core::status::Silence;
    use skewtrap_trace::time::Time;

    #[test]
    fn a_status_says_what_is_watched_what_fires_and_what_is_silenced() {
        let at = Time::from_epoch_s(1_795_492_126.1);
        let target =
            TargetStatus { name: "server".into(), engine: "sglang".into(), ..TargetStatus::default() };
        let silence = Silence { rule: Some("skew".into()), target: None, until: at, why: None };
        let status = Status {
            version: "0.2.0".into(),
            started: at,
            targets: vec![target],
            silences: vec![silence],
            ..Status::default()
        };
        insta::assert_snapshot!(text_of(&status), @r"
        skewtrap 0.2.0, running since 2026-11-24 03:48:46.1 UTC
        server: sglang of unknown version, 0 ranks
        nothing fires, of 0 rules
        silenced: skew on every server until 2026-11-24 03:48:46.1 UTC
        ");
    }
}
