//! `skewtrap reload`: the running agent reads its configuration again.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::agent_client::AgentArgs;

/// Lets the running agent read its configuration again, and says what is in force or what is wrong.
#[derive(Debug, Args)]
pub struct ReloadArgs {
    #[command(flatten)]
    agent: AgentArgs,
}

/// Reloads.
///
/// # Errors
/// The agent does not answer, or the configuration is wrong: the old one stays in force.
pub fn run(args: &ReloadArgs) -> anyhow::Result<ExitCode> {
    let answer = args.agent.post("reload", &json!({}))?;
    outln!("{}", answer["said"].as_str().unwrap_or("done"))?;
    Ok(ExitCode::SUCCESS)
}
