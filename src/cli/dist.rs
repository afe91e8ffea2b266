//! What packages ship beside the program: completions of shells and manual pages, from the definitions of
//! the command line.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;

/// Prints the completions of a shell.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// Of which shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Writes the manual pages, one for each command.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The folder to write them to
    #[arg(value_name = "DIR")]
    out: PathBuf,
}

/// Prints the completions.
///
/// # Errors
/// None.
pub fn completions(args: &CompletionsArgs) -> anyhow::Result<ExitCode> {
    clap_complete::generate(args.shell, &mut Cli::command(), "skewtrap", &mut std::io::stdout());
    Ok(ExitCode::SUCCESS)
}

/// Writes the pages.
///
/// # Errors
/// The folder cannot be written.
pub fn man(args: &ManArgs) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    clap_mangen::generate_to(Cli::command(), &args.out)
        .with_context(|| format!("cannot write to {}", args.out.display()))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completions_know_the_commands_and_each_command_has_a_page() {
        let mut text = Vec::new();
        clap_complete::generate(Shell::Bash, &mut Cli::command(), "skewtrap", &mut text);
        assert!(String::from_utf8_lossy(&text).contains("notify-test"));
        let dir = tempfile::tempdir().expect("a folder");
        man(&ManArgs { out: dir.path().to_owned() }).expect("written");
        assert!(dir.path().join("skewtrap-run.1").is_file() && dir.path().join("skewtrap.1").is_file());
    }
}
