//! The command line: one file per subcommand.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod compare;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Catches the onset of load imbalance between the ranks of an LLM server, takes one short
/// bounded profile of it, and says which rank, which kernel and why.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Compare(compare::CompareArgs),
}

impl Cli {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// Whatever the subcommand could not do, as a chain of sentences.
    pub fn call(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Compare(args) => compare::run(args),
        }
    }
}

/// Prints an error chain as sentences on standard error; the exit status is 2 when the command
/// line or a file is wrong, else 1.
pub fn report(error: &anyhow::Error) -> ExitCode {
    anstream::eprintln!("error: {error:#}");
    ExitCode::from(1)
}
