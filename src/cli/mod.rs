//! The command line: one file per subcommand.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod compare;
pub mod play;
pub mod schema;
pub mod test;
pub mod tune;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use jiff::tz::TimeZone;

use crate::config::diagnostic::Diagnostic;
use crate::decide::signal::observation::SourceId;
use crate::decide::signal::sample::TargetId;
use crate::observe::replay::{Format, Input};

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
    Schema(schema::SchemaArgs),
    Test(test::TestArgs),
    Tune(tune::TuneArgs),
}

impl Cli {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// Whatever the subcommand could not do, as a chain of sentences.
    pub fn call(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Compare(args) => compare::run(args),
            Command::Schema(args) => schema::run(&args),
            Command::Test(args) => test::run(&args),
            Command::Tune(args) => tune::run(&args),
        }
    }
}

/// Prints an error chain as sentences on standard error; the exit status is 2 when the command
/// line or a file is wrong, else 1.
pub fn report(error: &anyhow::Error) -> ExitCode {
    anstream::eprintln!("error: {error:#}");
    ExitCode::from(1)
}

/// How results are printed, everywhere.
#[derive(Clone, Debug, Args)]
pub struct Output {
    /// How to print the result.
    #[arg(long, value_enum, default_value_t = OutputFormat::Text)]
    format: OutputFormat,

    /// Short for `--format json`.
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

/// For people or for machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

impl Output {
    /// Whether machines read it.
    pub fn is_json(&self) -> bool {
        self.json || self.format == OutputFormat::Json
    }
}

/// Recorded files of one server. They may be gzip.
#[derive(Clone, Debug, Args)]
pub struct Recordings {
    /// A server's log; lines may begin with `EPOCH<TAB>`.
    #[arg(long, value_name = "FILE")]
    log: Vec<PathBuf>,

    /// Metrics pages, each after a line `#@ EPOCH`.
    #[arg(long, value_name = "FILE")]
    metrics: Vec<PathBuf>,

    /// Answers of `/v1/loads`: `{"t": EPOCH, "body": ...}` a line.
    #[arg(long, value_name = "FILE")]
    loads: Vec<PathBuf>,

    /// The zone of the log's stamps, as in the time zone database.
    #[arg(long, value_name = "NAME")]
    tz: Option<String>,
}

impl Recordings {
    /// Every file with what it holds.
    pub fn inputs(&self) -> Vec<(Format, PathBuf)> {
        let all = [(Format::Log, &self.log), (Format::Metrics, &self.metrics), (Format::Loads, &self.loads)];
        all.into_iter().flat_map(|(f, paths)| paths.iter().map(move |p| (f, p.clone()))).collect()
    }

    /// The zone of the stamps.
    ///
    /// # Errors
    /// There is no such zone.
    pub fn zone(&self, default: TimeZone) -> anyhow::Result<TimeZone> {
        match &self.tz {
            None => Ok(default),
            Some(name) => TimeZone::get(name).map_err(|_| anyhow::anyhow!("there is no time zone `{name}`")),
        }
    }
}

/// A recording of the only server, as the replay wants it.
pub(crate) fn input(format: Format, path: &Path, index: usize) -> Input {
    Input { format, path: path.to_owned(), target: TargetId(0), source: SourceId(index as u16) }
}

/// Problems of files, on standard error.
pub(crate) fn print_diagnostics(diagnostics: &[Diagnostic]) {
    diagnostics.iter().for_each(|d| anstream::eprintln!("{d}"));
}
