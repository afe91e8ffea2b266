//! `skewtrap signals`: what the running agent measures, rank by rank.

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use super::Format;
use super::agent_client::AgentArgs;
use skewtrap_core::amount::Span;
use skewtrap_core::message::{figure, rank_name};
use skewtrap_core::signal::source::SourceState;
use skewtrap_core::status::{RankStatus, SignalStatus, Status, TargetStatus};
use skewtrap_core::suggest::unknown;
use skewtrap_trace::time::Time;

/// Lists the signals that the running agent measures, rank by rank, and the sources they come from
#[derive(Debug, Args)]
pub struct SignalsArgs {
    /// Only this server
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    #[command(flatten)]
    agent: AgentArgs,
    #[command(flatten)]
    format: Format,
}

/// Prints the table.
///
/// # Errors
/// The agent does not answer.
pub fn run(args: &SignalsArgs) -> anyhow::Result<ExitCode> {
    let mut status: Status = args.agent.get_of_all("status")?;
    if let Some(name) = &args.target {
        let known: Vec<&str> = status.targets.iter().map(|t| &*t.name).collect();
        if let Some(why) = unknown("target", name, &known) {
            bail!(why);
        }
        status.targets.retain(|t| *t.name == **name);
    }
    if args.format.is_json() {
        outln!("{}", serde_json::to_string_pretty(&status.targets)?)?;
    } else {
        let now = status.at;
        status.targets.iter().try_for_each(|t| out!("{}", text_of(t, now)))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn text_of(target: &TargetStatus, now: Time) -> String {
    // A server that is known only by its log has neither engine nor version.
    let engine = match target.engine_version.as_deref() {
        Some(version) => format!("{} {version}", target.engine),
        None if &*target.engine == "unknown" => "it has not said which engine it runs".into(),
        None => format!("{}, version unknown", target.engine),
    };
    let mut text = format!("{} {} ({engine})\n", target.name, target.url);
    for source in &target.sources {
        let state = match source.state {
            SourceState::Starting => "starting",
            SourceState::Ok => "ok",
            SourceState::Silent => "silent",
            SourceState::Failing => "failing",
        };
        let last = source.last.map(|at| format!(", last sample {} ago", age_of(at, now))).unwrap_or_default();
        let problem = source.problem.as_ref().map(|p| format!(": {p}")).unwrap_or_default();
        text += &format!("  {} {} {state}{last}{problem}\n", source.kind, source.place);
    }
    text + &table_of(target, now)
}

fn age_of(at: Time, now: Time) -> Span {
    Span(now.since(at))
}

/// A row per signal and source with the age of its values, a column per rank; `~` marks a rank that
/// went silent.
fn table_of(target: &TargetStatus, now: Time) -> String {
    let signals = target.ranks.iter().flat_map(|r| &r.signals);
    let series: BTreeSet<_> = signals.map(|(name, s)| (name, &s.source)).collect();
    let heads = ["", "source", "age"].map(str::to_owned).into_iter();
    let mut rows = vec![heads.chain(target.ranks.iter().map(|r| rank_name(&r.rank))).collect()];
    for (name, source) in series {
        let of_rank = |rank: &'_ RankStatus| rank.signals.get(name).filter(|s| s.source == *source).cloned();
        let values: Vec<Option<SignalStatus>> = target.ranks.iter().map(of_rank).collect();
        let times = || values.iter().flatten().map(|s| s.at);
        let ages = times().max().zip(times().min()).map_or_else(String::new, |(newest, oldest)| {
            let (young, old) = (age_of(newest, now).to_string(), age_of(oldest, now).to_string());
            if young == old { young } else { format!("{young} to {old}") }
        });
        let cells = values.iter().map(|value| match value {
            Some(s) => format!("{}{}", figure(s.value), if s.stale { "~" } else { "" }),
            None => "-".into(),
        });
        rows.push([name.to_string(), source.to_string(), ages].into_iter().chain(cells).collect::<Vec<_>>());
    }
    if rows.len() == 1 {
        return "  no rank has reported yet\n".into();
    }
    let columns = rows[0].len();
    let width = |c: usize| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(c, (cell, &w))| match c {
            0..=2 => format!("{cell:<w$}"),
            _ => format!("{cell:>w$}"),
        });
        format!("  {}\n", cells.collect::<Vec<_>>().join("  "))
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use skewtrap_core::status::SourceStatus;
    use skewtrap_trace::rank::Rank;

    #[test]
    fn each_signal_says_from_where_it_came_and_how_old_it_is_and_marks_the_silent_rank() {
        let now = Time::from_epoch_s(1_795_492_100.0);
        let ago = |s: f64| Time::from_epoch_s(1_795_492_100.0 - s);
        let signal = |value, age, stale, source: &str| SignalStatus {
            value,
            at: ago(age),
            stale,
            source: source.into(),
        };
        let rank = |i, load, age, stale| RankStatus {
            rank: Rank::dp(i).labels(),
            signals: [
                ("load".into(), signal(load, age, stale, "loads")),
                ("kv_usage".into(), signal(0.031, 4.0, stale, if i == 0 { "log" } else { "metrics" })),
            ]
            .into(),
        };
        let source = |kind: &str, place: &str, state, problem: Option<&str>, last| SourceStatus {
            kind: kind.into(),
            place: place.into(),
            state,
            problem: problem.map(Into::into),
            is_behind: false,
            remark: None,
            last,
            lag_s: None,
            samples: 0,
            dropped: 0,
        };
        let target = TargetStatus {
            name: "server".into(),
            url: "http://10.0.0.7:30000".into(),
            engine: "sglang".into(),
            engine_version: Some("0.5.16".into()),
            unanswered_since: None,
            sources: vec![
                source("log", "server.log", SourceState::Failing, Some("the file is not there"), None),
                source("loads", "http://10.0.0.7:30000/v1/loads", SourceState::Ok, None, Some(ago(0.25))),
            ],
            ranks: vec![rank(0, 9.0, 0.25, false), rank(1, 46.0, 0.25, false), rank(2, 0.0, 61.0, true)],
            not_watched: None,
        };
        insta::assert_snapshot!(text_of(&target, now), @r"
        server http://10.0.0.7:30000 (sglang 0.5.16)
          log server.log failing: the file is not there
          loads http://10.0.0.7:30000/v1/loads ok, last sample 250 ms ago
                    source   age               DP0    DP1     DP2
          kv_usage  log      4 s             0.031      -       -
          kv_usage  metrics  4 s                 -  0.031  0.031~
          load      loads    250 ms to 61 s      9     46      0~
        ");
    }
}
