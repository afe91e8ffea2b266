//! `skewtrap replay`: the same core over recordings, in simulated time.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use jiff::tz::TimeZone;

use super::{Format, rules};
use crate::decide::capture::admit::Policy;
use crate::decide::capture::governor::Ledger;
use crate::decide::signal::observation::{Observation, SourceId};
use crate::decide::signal::sample::TargetId;
use crate::decide::time::Time;
use crate::decide::watch::{Effect, Mode, Setup, Watch, WatchedTarget};
use crate::observe::replay::{Format as RecordingFormat, Input, Replay};

/// What a rule would have done on recorded logs, metrics and loads, and when.
///
/// Files may be gzip. A log line that begins with EPOCH and a tab arrived then, otherwise at the time in
/// the line. A metrics file is pages, each after a line `#@ EPOCH`; a loads file has
/// {"t": EPOCH, "body": ANSWER} a line. Several files are merged in the order of their times.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// A recorded log (repeatable; - is standard input)
    #[arg(long, value_name = "FILE")]
    log: Vec<PathBuf>,
    /// Recorded metrics pages (repeatable)
    #[arg(long, value_name = "FILE")]
    metrics: Vec<PathBuf>,
    /// Recorded answers of /v1/loads (repeatable)
    #[arg(long, value_name = "FILE")]
    loads: Vec<PathBuf>,
    /// A rule file or a folder of them, instead of the shipped rules (repeatable)
    #[arg(long, value_name = "PATH")]
    rules: Vec<PathBuf>,
    /// Zone of log stamps that bear none
    #[arg(long, value_name = "NAME", default_value = "UTC")]
    tz: String,
    #[command(flatten)]
    format: Format,
}

/// Runs it.
///
/// # Errors
/// A recording or a rule file cannot be read.
pub fn run(args: &ReplayArgs) -> anyhow::Result<ExitCode> {
    let inputs = inputs_of(args);
    if inputs.is_empty() {
        bail!(super::wrong("nothing to replay: name a recording with --log, --metrics or --loads"));
    }
    let zone = TimeZone::get(&args.tz).map_err(|_| {
        super::wrong(&format!("--tz {}: there is no such zone; write it as Europe/Berlin", args.tz))
    })?;
    let loaded = rules::load(&args.rules)?;
    let setup = Setup {
        rules: loaded.rules,
        catalog: loaded.catalog,
        patterns: Vec::new(),
        sources: inputs.iter().map(|i| (i.source, name_of(&i.path))).collect(),
        targets: vec![WatchedTarget {
            name: "server".into(),
            role: None,
            group: "server".into(),
            sees_log: !args.log.is_empty(),
        }],
        policy: Policy::default(),
        ledger: Ledger::default(),
        zone: zone.clone(),
        mode: Mode::Replay,
    };
    let replay = Replay::open(&inputs, &zone)?;
    play(replay, Watch::new(setup, Time::default()), args.format.is_json())
}

fn play(mut replay: Replay, mut watch: Watch, json: bool) -> anyhow::Result<ExitCode> {
    let mut out = BufWriter::new(io::stdout().lock());
    let mut effects = Vec::new();
    while let Some(seen) = replay.next_observation()? {
        watch.observe(&seen, seen.at().unwrap_or_default(), &mut effects);
        for effect in effects.drain(..) {
            show(&effect, json, &mut out).context("cannot write to standard output")?;
        }
        if let Observation::Lines { lines, .. } = seen {
            replay.recycle(lines);
        }
    }
    out.flush()?;
    let counts = watch.counts();
    anstream::eprintln!("{} lines, {} samples, {} dropped", counts.lines, counts.samples, counts.dropped);
    if counts.samples == 0 {
        anstream::eprintln!(
            "nothing was understood, so no rule was judged: a log is SGLang's or vLLM's, of a server under load; metrics are pages after `#@ EPOCH`, loads are {{\"t\": EPOCH, \"body\": ANSWER}} a line"
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn show(effect: &Effect, json: bool, out: &mut impl Write) -> io::Result<()> {
    match effect {
        Effect::Changed { change, capture, why } if json => {
            serde_json::to_writer(&mut *out, &change.line(capture, why.as_deref()))?;
            out.write_all(b"\n")
        }
        Effect::Changed { change, capture, why } => {
            writeln!(out, "{}  {}", change.at, change.text(capture, why.as_deref()))
        }
        Effect::Trouble { said, .. } => {
            anstream::eprintln!("{said}");
            Ok(())
        }
        _ => Ok(()),
    }
}

fn inputs_of(args: &ReplayArgs) -> Vec<Input> {
    let all = [
        (&args.log, RecordingFormat::Log),
        (&args.metrics, RecordingFormat::Metrics),
        (&args.loads, RecordingFormat::Loads),
    ];
    let paths = all.into_iter().flat_map(|(paths, format)| paths.iter().map(move |p| (p.clone(), format)));
    paths
        .enumerate()
        .map(|(n, (path, format))| Input {
            format,
            path,
            target: TargetId(0),
            source: SourceId(u16::try_from(n).unwrap_or(u16::MAX)),
        })
        .collect()
}

fn name_of(path: &Path) -> Arc<str> {
    path.display().to_string().into()
}
