//! Parses the command line, runs one command, prints its error, and sets the exit status.

use std::process::ExitCode;

use clap::Parser;
use skewtrap::cli::{Cli, report};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.call() {
        Ok(code) => code,
        Err(error) => report(&error),
    }
}
