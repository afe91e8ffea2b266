//! `skewtrap compare`: which rank, which kernel, and why, from the traces of a capture.

use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;
use regex::Regex;

use super::Format;
use crate::agent::compare::{self, CompareRequest, Compared, RankOverrides, perfetto};
use crate::agent::history;
use crate::config::store::is_store;
use crate::observe::trace::nsight::TempFolder;
use skewtrap_core::message::{bytes, seconds};
use skewtrap_trace::rank::{RankId, parse_rank};
use skewtrap_trace::report::{self, History};

/// Compares the ranks of a capture: which rank, which kernel, and why.
///
/// Reads PyTorch profiler traces (.trace.json, .trace.json.gz) and Nsight Systems exports
/// (.sqlite; .nsys-rep where `nsys` is installed), and summaries of ranks (.summary.json).
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Folder of a capture, or its files; or where an incident lies in a store, as
    /// s3://BUCKET/PREFIX/POOL/incidents/DATE/ID: its summaries are fetched and compared.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,

    /// The same ranks at a time when all was well.
    #[arg(long, value_name = "PATH")]
    baseline: Vec<PathBuf>,

    #[command(flatten)]
    format: Format,

    /// Write a report for a browser: one file, no network.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Write a merged trace of the relevant ranks for ui.perfetto.dev.
    #[arg(long, value_name = "FILE")]
    perfetto: Option<PathBuf>,

    /// Ranks of the merged trace, as dp1,dp2; default: the culprit, one in the middle, the best.
    #[arg(long, value_name = "RANK", value_delimiter = ',', requires = "perfetto")]
    perfetto_ranks: Vec<String>,

    /// Write the table of kernels per rank.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,

    /// Write a summary of each rank (a few KB) into this folder: `compare` reads it instead of the trace.
    #[arg(long, value_name = "DIR")]
    summary_out: Option<PathBuf>,

    /// Finds the rank in file names: groups named dp, tp, pp, ep, or one group with a TP rank.
    #[arg(long, value_name = "REGEX")]
    rank_regex: Option<Regex>,

    /// The rank of a process, or of files with this in their name: 743=dp1, nodeB=dp1-tp0. Repeatable.
    #[arg(long, value_name = "PID|PART=RANK")]
    rank: Vec<String>,
}

/// Runs the comparison.
///
/// # Errors
/// When the traces cannot be read or an output cannot be written.
pub fn run(mut args: CompareArgs) -> anyhow::Result<ExitCode> {
    // Kept until everything is read.
    let _fetched = fetch_stored(&mut args.paths)?;
    // A bundle knows which rule fired and how its signal went.
    let incident = args.paths.first().and_then(|p| history::incident_of(p));
    let history = incident.as_ref().and_then(|i| history::history_of(args.paths.first()?, 1, i));
    for given in args.paths.clone() {
        args.paths.extend(compare::traces_beside(&given).map_err(|e| super::wrong(&e.to_string()))?);
    }
    for given in args.baseline.clone() {
        args.baseline.extend(compare::traces_beside(&given).map_err(|e| super::wrong(&e.to_string()))?);
    }
    let request = CompareRequest {
        is_foreground: true,
        rank_overrides: rank_overrides(&args.rank)?,
        paths: args.paths.clone(),
        baseline: args.baseline.clone(),
        reference: Vec::new(),
        rank_regex: args.rank_regex.clone(),
        suspect: incident.as_ref().map(|i| i.finding.suspect()),
    };
    let perfetto_ranks =
        args.perfetto_ranks.iter().map(|w| rank_id(w)).collect::<anyhow::Result<Vec<_>>>()?;
    let progress = Progress::of(&request);
    let compared = compare::run(&request, &|bytes| progress.iter().for_each(|line| line.add(bytes)));
    drop(progress);
    let compared = compared.map_err(|e| super::wrong(&format!("{:#}", anyhow::Error::from(e))))?;
    let written = if args.format.is_json() {
        report::write_json(&mut std::io::stdout().lock(), &compared.comparison)
    } else {
        report::write_terminal(&mut anstream::stdout().lock(), &compared.comparison)
    };
    match written {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {}
        other => other.context("cannot write the result")?,
    }
    std::io::stdout().flush().ok();
    write_files(&args, &compared, history.as_ref(), &perfetto_ranks)?;
    Ok(ExitCode::SUCCESS)
}

/// Fetches what lies in stores, and puts the folders into which it was fetched in the place of their addresses.
fn fetch_stored(paths: &mut [PathBuf]) -> anyhow::Result<Vec<TempFolder>> {
    let mut fetched = Vec::new();
    for path in paths {
        let Some(address) = path.to_str().filter(|p| is_store(p)) else { continue };
        let folder = TempFolder::new().context("cannot create a temporary folder")?;
        fetch(address, folder.path())?;
        *path = folder.path().to_owned();
        fetched.push(folder);
    }
    Ok(fetched)
}

#[cfg(feature = "fleet")]
fn fetch(address: &str, folder: &Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let count = runtime
        .block_on(crate::agent::stored::fetch(address, folder))
        .map_err(|e| super::wrong(&format!("{e:#}")))?;
    let ranks = skewtrap_core::message::counted(count, "rank");
    anstream::eprintln!("fetched the summaries of {ranks} from {address}");
    Ok(())
}

#[cfg(not(feature = "fleet"))]
fn fetch(address: &str, _: &Path) -> anyhow::Result<()> {
    bail!(super::wrong(&format!(
        "{address} is a store, and this binary was built without stores; rebuild with `--features fleet` or install a package"
    )))
}

/// Writes the files that the options name.
fn write_files(
    args: &CompareArgs,
    compared: &Compared,
    history: Option<&History>,
    perfetto_ranks: &[RankId],
) -> anyhow::Result<()> {
    if let Some(path) = &args.html {
        let mut out = create(path)?;
        let context = report::Context { history, ..report::Context::default() };
        report::write_html(&mut out, &compared.comparison, context)?;
        out.flush().with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &args.csv {
        let mut out = create(path)?;
        report::write_csv(&mut out, &compared.input.profiles)?;
        out.flush().with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(folder) = &args.summary_out {
        compared
            .write_summaries(folder)
            .with_context(|| format!("cannot write the summaries into {}", folder.display()))?;
    }
    if let Some(path) = &args.perfetto {
        let ranks =
            perfetto::profiles_of(compared, perfetto_ranks).map_err(|e| super::wrong(&e.to_string()))?;
        let overlapped = perfetto::write(compared, &ranks, create(path)?)?;
        if overlapped > 0 {
            anstream::eprintln!(
                "{overlapped} kernels overlap more than Perfetto can draw; it may leave them out"
            );
        }
        let link = report::perfetto::link(&perfetto::first_families(compared));
        anstream::eprintln!(
            "Open {} in https://ui.perfetto.dev; with the key rows pinned, once it is served:\n{link}",
            path.display()
        );
    }
    Ok(())
}

fn create(path: &Path) -> anyhow::Result<BufWriter<File>> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(BufWriter::with_capacity(1 << 16, file))
}

/// A rank or a process, as users write it.
fn rank_id(word: &str) -> anyhow::Result<RankId> {
    match word.parse() {
        Ok(pid) => Ok(RankId::Pid(pid)),
        Err(_) => parse_rank(word)
            .map(RankId::Rank)
            .ok_or_else(|| super::wrong(&format!("`{word}` is no rank; write dp1, tp3 or a process"))),
    }
}

/// The arguments of `--rank`: a number before the `=` is a process, anything else a part of a file name.
fn rank_overrides(words: &[String]) -> anyhow::Result<RankOverrides> {
    let mut overrides = RankOverrides::default();
    for word in words {
        let Some((key, rank)) = word.split_once('=') else {
            bail!(super::wrong(&format!(
                "--rank {word}: write a process or a part of a file name, then = and a rank, as in 743=dp1"
            )));
        };
        let Some(rank) = parse_rank(rank) else {
            bail!(super::wrong(&format!(
                "--rank {word}: `{rank}` is no rank; write one of {} and a number, as in dp1",
                compare::rank_words()
            )));
        };
        match key.parse() {
            Ok(pid) => {
                overrides.pids.insert(pid, rank);
            }
            Err(_) => overrides.files.push((key.to_owned(), rank)),
        }
    }
    Ok(overrides)
}

/// A line on a terminal that says how much is read when the input is long; it is cleared when this is dropped.
struct Progress {
    total: u64,
    done: AtomicU64,
    began: Instant,
    /// Milliseconds after the beginning.
    drawn: AtomicU64,
}

impl Progress {
    /// Shorter inputs are read before anybody wonders, in bytes.
    const LONG: u64 = 20 << 20;
    /// Between two drawings, in milliseconds.
    const EVERY: u64 = 100;

    fn of(request: &CompareRequest) -> Option<Self> {
        let all: Vec<PathBuf> = request.paths.iter().chain(&request.baseline).cloned().collect();
        let total = if std::io::stderr().is_terminal() { compare::size_of(&all) } else { 0 };
        let [done, drawn] = [AtomicU64::new(0), AtomicU64::new(0)];
        (total >= Self::LONG).then(|| Self { total, done, began: Instant::now(), drawn })
    }

    /// So many bytes more are read, by any thread.
    fn add(&self, read: u64) {
        let done = self.done.fetch_add(read, Relaxed) + read;
        let (now, drawn) = (self.began.elapsed().as_millis() as u64, self.drawn.load(Relaxed));
        let is_due = now >= drawn + Self::EVERY;
        if is_due && self.drawn.compare_exchange(drawn, now, Relaxed, Relaxed).is_ok() {
            let rate = done as f64 * 1e3 / now as f64;
            let left = self.total.saturating_sub(done) as f64 / rate;
            eprint!(
                "\r\x1b[2K{} of {}, {} a second, {} left",
                bytes(done),
                bytes(self.total),
                bytes(rate as u64),
                seconds(left)
            );
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        eprint!("\r\x1b[2K");
    }
}
