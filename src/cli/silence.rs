//! `skewtrap silence`: no captures and no messages for a while.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::agent_client::AgentArgs;
use crate::config::quantity::duration_of;

/// Holds back the captures and messages of a rule, or of all rules, for a while.
#[derive(Debug, Args)]
pub struct SilenceArgs {
    /// Only this rule
    rule: Option<String>,
    /// For how long: 2h, 1h30m, 3d; or --end
    #[arg(long = "for", value_name = "DURATION", value_parser = span, required_unless_present = "end")]
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
}

/// Begins or ends a silence.
///
/// # Errors
/// The agent does not answer, or has no such rule or server.
pub fn run(args: &SilenceArgs) -> anyhow::Result<ExitCode> {
    let for_s = args.duration.unwrap_or_default().as_secs_f64();
    let body = json!({ "rule": args.rule, "target": args.target, "for_s": for_s, "why": args.why });
    let answer = args.agent.post("silence", &body)?;
    let what = silenced(args.rule.as_deref(), args.target.as_deref());
    anstream::println!("{what}: {}", answer["said"].as_str().unwrap_or("done"));
    Ok(ExitCode::SUCCESS)
}

/// What a silence is of: `dp-load-skew on every server`.
pub(super) fn silenced(rule: Option<&str>, target: Option<&str>) -> String {
    format!("{} on {}", rule.unwrap_or("every rule"), target.unwrap_or("every server"))
}

fn span(text: &str) -> Result<Duration, String> {
    duration_of(text).ok_or_else(|| "write a number with its unit, as in 2h, 1h30m or 3d".to_owned())
}
