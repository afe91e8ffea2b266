//! `skewtrap top`: the running agent on a terminal, again and again. It reads the API and changes nothing.

#[cfg(feature = "top")]
mod screen;
#[cfg(feature = "top")]
mod terminal;

use std::process::ExitCode;

use clap::Args;

use super::agent_client::AgentArgs;

/// Shows the ranks, the rules and the incidents of the running agent, live; q ends it
#[cfg_attr(
    not(feature = "top"),
    doc = "(not in this build: `cargo install --path . --features top`, or a package)"
)]
#[derive(Debug, Args)]
pub struct TopArgs {
    #[command(flatten)]
    #[cfg_attr(not(feature = "top"), allow(dead_code))]
    agent: AgentArgs,
}

/// Shows it until the user ends it.
///
/// # Errors
/// The agent does not answer at first, or standard output is no terminal.
#[cfg(feature = "top")]
pub fn run(args: &TopArgs) -> anyhow::Result<ExitCode> {
    terminal::show(&args.agent)?;
    Ok(ExitCode::SUCCESS)
}

/// Says that it was built without it.
///
/// # Errors
/// Always.
#[cfg(not(feature = "top"))]
pub fn run(_: &TopArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!(super::wrong(
        "this binary was built without `top`; rebuild with `--features top` or install a package. `skewtrap status` prints the same once"
    ))
}
