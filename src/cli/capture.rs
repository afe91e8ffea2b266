//! `skewtrap capture start`, `baseline` and `stop`: a manual capture through the running agent and its limits.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::Format;
use super::agent_client::AgentArgs;

/// Opens or closes a window by hand, through the running agent and within its limits
#[derive(Debug, Args)]
pub struct CaptureArgs {
    #[command(subcommand)]
    action: Action,
}

/// Which window is asked for.
#[derive(Debug, Args)]
struct WindowArgs {
    /// The server's name; needed where there are several
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// Forward steps per rank instead of the configured ones
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    num_steps: Option<u32>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Opens a window now; it ends by its steps, at its deadline, or with `skewtrap capture stop`
    Start {
        #[command(flatten)]
        agent: AgentArgs,
        #[command(flatten)]
        window: WindowArgs,
        /// Why, for the incident and the messages
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        #[command(flatten)]
        format: Format,
    },
    /// Takes a window of the healthy server now, with which its later captures are compared
    Baseline {
        #[command(flatten)]
        agent: AgentArgs,
        #[command(flatten)]
        window: WindowArgs,
        #[command(flatten)]
        format: Format,
    },
    /// Closes the agent's own open window; other people's are left alone
    Stop {
        #[command(flatten)]
        agent: AgentArgs,
        /// The server's name; without, every one
        #[arg(long, value_name = "NAME")]
        target: Option<String>,
        #[command(flatten)]
        format: Format,
    },
}

/// Sends the request and prints the answer. Exit status 1 when the agent refuses.
///
/// # Errors
/// No agent answers, or it refuses.
pub fn run(args: &CaptureArgs) -> anyhow::Result<ExitCode> {
    let (answer, format) = match &args.action {
        Action::Start { agent, window: WindowArgs { target, num_steps }, reason, format } => {
            let body = json!({ "target": target, "num_steps": num_steps, "reason": reason });
            (agent.post("capture", &body)?, format)
        }
        Action::Baseline { agent, window: WindowArgs { target, num_steps }, format } => {
            let body = json!({ "target": target, "num_steps": num_steps, "baseline": true });
            (agent.post("capture", &body)?, format)
        }
        Action::Stop { agent, target, format } => (agent.post("stop", &json!({ "target": target }))?, format),
    };
    if format.is_json() {
        outln!("{answer}")?;
        return Ok(ExitCode::SUCCESS);
    }
    outln!("{}", answer["said"].as_str().unwrap_or("done"))?;
    if let Some(incident) = answer["incident"].as_str() {
        outln!("incident {incident}")?;
    }
    Ok(ExitCode::SUCCESS)
}
