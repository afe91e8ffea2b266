//! `skewtrap compare`: which rank, which kernel, and why, from the traces of a capture.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use regex::Regex;

use crate::agent::compare::{self, Request, Told};
use crate::explain::report;
use crate::observe::trace::naming;

/// Compares the ranks of a capture: which rank, which kernel, and why.
///
/// Reads PyTorch profiler traces (.trace.json, .trace.json.gz) and Nsight Systems exports
/// (.sqlite; .nsys-rep where `nsys` is installed).
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Folder of a capture, or its files.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,

    /// The same ranks at a time when all was well.
    #[arg(long, value_name = "PATH")]
    baseline: Vec<PathBuf>,

    /// How to print the result.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,

    /// Short for `--format json`.
    #[arg(long, conflicts_with = "format")]
    json: bool,

    /// Finds the rank in file names: groups named dp, tp, pp, ep, or one group with a TP rank.
    #[arg(long, value_name = "REGEX")]
    rank_regex: Option<Regex>,

    /// Whose a process, or a file with this in its name, is: 743=dp1, nodeB=dp1-tp0. Repeatable.
    #[arg(long, value_name = "PID|PART=RANK")]
    rank: Vec<String>,
}

/// A form of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// For scripts; `docs/compare.md` documents it.
    Json,
}

/// Runs the comparison.
///
/// # Errors
/// When the traces cannot be read or an output cannot be written.
pub fn run(args: CompareArgs) -> anyhow::Result<ExitCode> {
    let request = Request {
        told: told(&args.rank)?,
        paths: args.paths,
        baseline: args.baseline,
        rank_regex: args.rank_regex,
        hypothesis: None,
    };
    let bar = progress_bar(&request);
    let compared = compare::run(&request, &|n| bar.inc(n));
    bar.finish_and_clear();
    let compared = compared?;
    let json = args.json || args.format == Format::Json;
    let written = if json {
        report::json::write(&mut std::io::stdout().lock(), &compared.comparison)
    } else {
        report::terminal::write(&mut anstream::stdout().lock(), &compared.comparison)
    };
    match written {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {}
        other => other.context("cannot write the result")?,
    }
    std::io::stdout().flush().ok();
    Ok(ExitCode::SUCCESS)
}

/// What `--rank` tells: a number before the `=` is a process, anything else a part of a file name.
fn told(words: &[String]) -> anyhow::Result<Told> {
    let mut told = Told::default();
    for word in words {
        let Some((key, rank)) = word.split_once('=') else {
            bail!(
                "--rank {word}: write a process or a part of a file name, then = and a rank, as in 743=dp1"
            );
        };
        let Some(rank) = naming::of_words(rank) else {
            bail!(
                "--rank {word}: `{rank}` is no rank; write one of {} and a number, as in dp1",
                compare::rank_words()
            );
        };
        match key.parse() {
            Ok(pid) => {
                told.pids.insert(pid, rank);
            }
            Err(_) => told.files.push((key.to_owned(), rank)),
        }
    }
    Ok(told)
}

/// A bar on a terminal when the input is long; nothing otherwise.
fn progress_bar(request: &Request) -> ProgressBar {
    const LONG: u64 = 20 << 20;
    let all: Vec<PathBuf> = request.paths.iter().chain(&request.baseline).cloned().collect();
    let size = if std::io::stderr().is_terminal() { compare::size_of(&all) } else { 0 };
    if size < LONG {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(size);
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} eta {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}
