//! Parse, call one command, print the error and what to do, exit status.

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
