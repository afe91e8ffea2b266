//! `skewtrap resume`: windows may open again on a server that one of them hurt.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::Format;
use super::agent_client::AgentArgs;

/// Lets windows open again on a server where one cost far more than predicted, or where the server
/// died in it
#[derive(Debug, Args)]
pub struct ResumeArgs {
    #[command(flatten)]
    agent: AgentArgs,
    /// The server's name; without, every one
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    #[command(flatten)]
    format: Format,
}

/// Sends the request and prints the answer.
///
/// # Errors
/// No agent answers.
pub fn run(args: &ResumeArgs) -> anyhow::Result<ExitCode> {
    let answer = args.agent.post("resume", &json!({ "target": args.target }))?;
    if args.format.is_json() {
        outln!("{answer}")?;
    } else {
        outln!("{}", answer["said"].as_str().unwrap_or("done"))?;
    }
    Ok(ExitCode::SUCCESS)
}
