//! `skewtrap signals`: what the running agent measures, rank by rank.

use std::collections::BTreeSet;
use std::process::ExitCode;

use clap::Args;

use super::Format;
use super::client::AgentArgs;
use crate::decide::status::{SourceState, Status, TargetStatus};
use crate::explain::message::{figure, rank_name};

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
/// The agent cannot be asked.
pub fn run(args: &SignalsArgs) -> anyhow::Result<ExitCode> {
    let mut status: Status = args.agent.get("status")?;
    if let Some(name) = &args.target {
        status.targets.retain(|t| *t.name == **name);
    }
    if args.format.is_json() {
        println!("{}", serde_json::to_string_pretty(&status.targets)?);
    } else {
        status.targets.iter().for_each(|t| anstream::print!("{}", text_of(t)));
    }
    Ok(ExitCode::SUCCESS)
}

fn text_of(target: &TargetStatus) -> String {
    // Of a server that is known by its log alone neither is known.
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
        let problem = source.problem.as_ref().map(|p| format!(": {p}")).unwrap_or_default();
        text += &format!("  {} {} {state}{problem}\n", source.kind, source.place);
    }
    text + &table_of(target)
}

/// A row per signal, a column per rank; `~` marks a rank that went silent.
fn table_of(target: &TargetStatus) -> String {
    let names: BTreeSet<_> = target.ranks.iter().flat_map(|r| r.signals.keys()).collect();
    let mut rows =
        vec![std::iter::once(String::new()).chain(target.ranks.iter().map(|r| rank_name(&r.rank))).collect()];
    for name in names {
        let cells = target.ranks.iter().map(|r| match r.signals.get(name) {
            Some(s) => format!("{}{}", figure(s.value), if s.stale { "~" } else { "" }),
            None => "-".into(),
        });
        rows.push(std::iter::once(name.to_string()).chain(cells).collect::<Vec<String>>());
    }
    if rows.len() == 1 {
        return "  no rank has reported yet\n".into();
    }
    let columns = rows[0].len();
    let width = |c: usize| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(c, (cell, &w))| match c {
            0 => format!("{cell:<w$}"),
            _ => format!("{cell:>w$}"),
        });
        format!("  {}\n", cells.collect::<Vec<_>>().join("  "))
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::signal::rank::Rank;
    use crate::decide::status::{RankStatus, SignalStatus, SourceStatus};
    use crate::decide::time::Time;

    #[test]
    fn the_table_has_a_column_per_rank_and_marks_the_silent_one() {
        let signal =
            |value, stale| SignalStatus { value, at: Time::default(), stale, source: "loads".into() };
        let rank = |i, load, stale| RankStatus {
            rank: Rank::dp(i).labels(),
            signals: [("load".into(), signal(load, stale)), ("kv_usage".into(), signal(0.031, stale))].into(),
        };
        let target = TargetStatus {
            name: "server".into(),
            url: "http://10.0.0.7:30000".into(),
            engine: "sglang".into(),
            engine_version: Some("0.5.16".into()),
            sources: vec![SourceStatus {
                kind: "log".into(),
                place: "server.log".into(),
                state: SourceState::Failing,
                problem: Some("the file is not there".into()),
                last: None,
                lag_s: None,
                samples: 0,
                dropped: 0,
            }],
            ranks: vec![rank(0, 9.0, false), rank(1, 46.0, false), rank(2, 0.0, true)],
        };
        insta::assert_snapshot!(text_of(&target), @r"
        server http://10.0.0.7:30000 (sglang 0.5.16)
          log server.log failing: the file is not there
                      DP0    DP1     DP2
          kv_usage  0.031  0.031  0.031~
          load          9     46      0~
        ");
    }
}
