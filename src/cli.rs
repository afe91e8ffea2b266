//! The command line: one file per subcommand.
//!
//! What several subcommands share: `agent_client` speaks to the running agent, `server_probe` to a server,
//! `rule_files` reads rules, `config_path` finds the configuration, and `playback` plays recordings through the core.

/// `print!`, with an error in the place of a panic.
macro_rules! out {
    ($($text:tt)*) => { $crate::cli::write_out(format_args!($($text)*)) };
}

/// `println!`, likewise.
macro_rules! outln {
    () => { $crate::cli::write_out(format_args!("\n")) };
    ($($text:tt)*) => { $crate::cli::write_out(format_args!("{}\n", format_args!($($text)*))) };
}

mod agent_client;
mod capture;
mod check;
mod compare;
mod config_path;
mod demo;
#[cfg(feature = "dist")]
mod dist;
mod doctor;
mod fleet;
mod incidents;
mod init;
mod mcp;
mod notify_test;
mod playback;
mod reload;
mod replay;
mod resume;
mod rule_files;
mod run;
pub mod schema;
mod server_probe;
mod signals;
mod silence;
mod status;
mod test;
mod top;
mod tune;
mod why;

use std::fmt;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::secret::{is_url, scheme_hint};
use skewtrap_core::printable::printable;

/// Catches the onset of load imbalance between the ranks of an LLM server, takes one short
/// bounded profile of it, and says which rank, which kernel and why.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Colours: only on a terminal, or as it is said here
    #[arg(long, value_enum, global = true, default_value_t = Color::Auto, value_name = "WHEN")]
    color: Color,
}

/// When output has colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Color {
    Auto,
    Always,
    Never,
}

impl Color {
    const fn choice(self) -> anstream::ColorChoice {
        match self {
            Self::Auto => anstream::ColorChoice::Auto,
            Self::Always => anstream::ColorChoice::Always,
            Self::Never => anstream::ColorChoice::Never,
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::RunCommand>),
    Demo(demo::DemoArgs),
    Replay(replay::ReplayArgs),
    Compare(compare::CompareArgs),
    Check(check::CheckArgs),
    Capture(capture::CaptureArgs),
    Resume(resume::ResumeArgs),
    Doctor(Box<doctor::DoctorArgs>),
    Test(test::TestArgs),
    Tune(tune::TuneArgs),
    Why(why::WhyArgs),
    Signals(signals::SignalsArgs),
    Incidents(incidents::IncidentsArgs),
    Status(status::StatusArgs),
    Top(top::TopArgs),
    Fleet(fleet::FleetArgs),
    Mcp(mcp::McpArgs),
    Silence(silence::SilenceArgs),
    Reload(reload::ReloadArgs),
    NotifyTest(notify_test::NotifyTestArgs),
    Schema(schema::SchemaArgs),
    Init(init::InitArgs),
    #[cfg(feature = "dist")]
    Completions(dist::CompletionsArgs),
    #[cfg(feature = "dist")]
    Man(dist::ManArgs),
}

impl Cli {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// What the subcommand could not do, as a chain of sentences.
    pub fn call(self) -> anyhow::Result<ExitCode> {
        self.color.choice().write_global();
        match self.command {
            Command::Run(args) => run::run(&args),
            Command::Demo(args) => demo::run(&args),
            Command::Replay(args) => replay::run(&args),
            Command::Compare(args) => compare::run(args),
            Command::Check(args) => check::run(&args),
            Command::Capture(args) => capture::run(&args),
            Command::Resume(args) => resume::run(&args),
            Command::Doctor(args) => doctor::run(&args),
            Command::Test(args) => test::run(&args),
            Command::Tune(args) => tune::run(&args),
            Command::Why(args) => why::run(&args),
            Command::Signals(args) => signals::run(&args),
            Command::Incidents(args) => incidents::run(&args),
            Command::Status(args) => status::run(&args),
            Command::Top(args) => top::run(&args),
            Command::Fleet(args) => fleet::run(&args),
            Command::Mcp(args) => mcp::run(&args),
            Command::Silence(args) => silence::run(&args),
            Command::Reload(args) => reload::run(&args),
            Command::NotifyTest(args) => notify_test::run(&args),
            Command::Schema(args) => schema::run(&args),
            Command::Init(args) => init::run(&args),
            #[cfg(feature = "dist")]
            Command::Completions(args) => dist::completions(&args),
            #[cfg(feature = "dist")]
            Command::Man(args) => dist::man(&args),
        }
    }
}

/// Writes to standard output, which may be closed (`| head`): then the command ends there, and that is no error; one
/// whose exit status says more than that it ended asks [`unless_closed`].
///
/// # Errors
/// It cannot be written.
fn write_out(text: fmt::Arguments<'_>) -> anyhow::Result<()> {
    anstream::stdout().lock().write_fmt(text).context("cannot write to standard output")
}

/// The exit status of a command whose result was printed so: a reader that has seen enough (`| head`) changes none.
///
/// # Errors
/// It could not be printed for another reason.
fn unless_closed(printed: anyhow::Result<()>, status: ExitCode) -> anyhow::Result<ExitCode> {
    match printed {
        Err(error) if !is_closed(&error) => Err(error),
        _ => Ok(status),
    }
}

fn is_closed(error: &anyhow::Error) -> bool {
    let broken_pipe = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
    error.chain().filter_map(|e| e.downcast_ref()).any(broken_pipe)
}

/// `--format text|json`, and `--json` for short.
#[derive(Clone, Copy, Debug, Args)]
pub struct Format {
    /// How to write the result
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    format: Kind,
    /// Short for --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    Text,
    Json,
}

impl Format {
    /// Whether the result is written as JSON.
    pub fn is_json(self) -> bool {
        self.json || self.format == Kind::Json
    }
}

/// The command line or a file is wrong: exit status 2.
#[derive(Debug)]
pub struct UsageError(String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// Parses the address of a server on the command line.
///
/// # Errors
/// It is not an HTTP address; the message says what one looks like.
pub fn server_url(text: &str) -> Result<String, String> {
    if is_url(text) {
        return Ok(text.to_owned());
    }
    if let Some(hint) = scheme_hint(text) {
        return Err(hint);
    }
    Err("write http://HOST:PORT, as in http://127.0.0.1:30000; keys go into the configuration".to_owned())
}

/// An error that makes the exit status 2.
pub fn wrong(message: &str) -> anyhow::Error {
    UsageError(message.to_owned()).into()
}

/// Prints an error chain as sentences on standard error; the exit status is 2 when the command
/// line or a file is wrong, else 1. A closed standard output (`| head`) is no error.
pub fn report(error: &anyhow::Error) -> ExitCode {
    if is_closed(error) {
        return ExitCode::SUCCESS;
    }
    anstream::eprintln!("error: {}", clean(&format!("{error:#}")));
    ExitCode::from(if error.downcast_ref::<UsageError>().is_some() { 2 } else { 1 })
}

/// A line of an error is cut off behind so many bytes.
const LONGEST_LINE: usize = 4096;

/// Errors quote what is in files and what servers answer: nothing of that may steer the terminal.
fn clean(text: &str) -> String {
    text.lines().map(|line| printable(line, LONGEST_LINE)).collect::<Vec<_>>().join("\n")
}

/// Prints the problems of files on standard error.
pub(crate) fn print_diagnostics(diagnostics: &[crate::config::diagnostic::Diagnostic]) {
    diagnostics.iter().for_each(|d| anstream::eprintln!("{d}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_error_quotes_does_not_steer_the_terminal_and_keeps_its_lines() {
        assert_eq!(
            clean("two\nlines of \u{1b}]0;x\u{7}\u{202e}"),
            "two\nlines of \u{fffd}]0;x\u{fffd}\u{fffd}"
        );
    }
}
