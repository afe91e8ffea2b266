//! `skewtrap silence`: no captures and no messages for a while; without arguments, which silences hold, and why.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use serde_json::json;

use super::agent_client::AgentArgs;
use super::{Format, wrong};
use crate::config::quantity::duration_of;
use skewtrap_core::message::utc;
use skewtrap_core::status::{Silence, Status};

/// Holds back the captures and messages of a rule, or of all rules, for a while; without arguments, lists
/// what is silenced
#[derive(Debug, Args)]
pub struct SilenceArgs {
    /// Only this rule
    rule: Option<String>,
    /// For how long: 2h, 1h30m, 3d; or --end
    #[arg(long = "for", value_name = "DURATION", value_parser = span)]
    duration: Option<Duration>,
    /// End the silence now
    #[arg(long, conflicts_with = "duration")]
    end: bool,
    /// Only on this server
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// Why, for those who see it on the page
    #[arg(long, value_name = "TEXT")]
    why: Option<String>,
    #[command(flatten)]
    agent: AgentArgs,
    #[command(flatten)]
    format: Format,
}

/// Begins or ends a silence, or lists those that hold.
///
/// # Errors
/// The agent does not answer, or has no such rule or server; or nothing says for how long.
pub fn run(args: &SilenceArgs) -> anyhow::Result<ExitCode> {
    if args.duration.is_none() && !args.end {
        if args.rule.is_some() || args.target.is_some() || args.why.is_some() {
            bail!(wrong("for how long? write `--for 2h`, or `--end` to end the silence"));
        }
        return list(args);
    }
    let for_s = args.duration.unwrap_or_default().as_secs_f64();
    let body = json!({ "rule": args.rule, "target": args.target, "for_s": for_s, "why": args.why });
    let answer = args.agent.post("silence", &body)?;
    if args.format.is_json() {
        outln!("{answer}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let what = silenced(args.rule.as_deref(), args.target.as_deref());
    outln!("{what}: {}", answer["said"].as_str().unwrap_or("done"))?;
    Ok(ExitCode::SUCCESS)
}

fn list(args: &SilenceArgs) -> anyhow::Result<ExitCode> {
    let silences = args.agent.get::<Status>("status")?.silences;
    if args.format.is_json() {
        outln!("{}", serde_json::to_string_pretty(&silences)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    if silences.is_empty() {
        anstream::eprintln!("nothing is silenced; `skewtrap silence RULE --for 2h` begins a silence");
    }
    silences.iter().try_for_each(|silence| outln!("{}", line_of(silence)))?;
    Ok(ExitCode::SUCCESS)
}

/// `dp-load-skew on every server until 2026-11-24 03:48:46.1 UTC (load test)`.
pub(super) fn line_of(silence: &Silence) -> String {
    let what = silenced(silence.rule.as_deref(), silence.target.as_deref());
    let why = silence.why.as_ref().map_or_else(String::new, |why| format!(" ({why})"));
    format!("{what} until {}{why}", utc(silence.until))
}

/// What a silence is of: `dp-load-skew on every server`.
pub(super) fn silenced(rule: Option<&str>, target: Option<&str>) -> String {
    format!("{} on {}", rule.unwrap_or("every rule"), target.unwrap_or("every server"))
}

fn span(text: &str) -> Result<Duration, String> {
    duration_of(text).ok_or_else(|| "write a number with its unit, as in 2h, 1h30m or 3d".to_owned())
}
