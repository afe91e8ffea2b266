//! `skewtrap replay`: runs the core over recordings, in simulated time.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;

use super::playback::{self, Recordings};
use super::{Format, rule_files};
use crate::observe::replay::{Format as RecordingFormat, Replay};
use skewtrap_core::signal::observation::Observation;
use skewtrap_core::watch::{Effect, Watch, WatchedTarget};

/// What a rule would have done on recorded logs, metrics and loads, and when.
///
/// Files may be gzip. A log line that does not begin with its EPOCH arrived at the time in the line.
/// Several files are merged in the order of their times.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    #[command(flatten)]
    recordings: Recordings,
    /// A rule file or a folder of them, instead of the shipped rules (repeatable)
    #[arg(long, value_name = "PATH")]
    rules: Vec<PathBuf>,
    #[command(flatten)]
    format: Format,
}

/// Runs the command.
///
/// # Errors
/// A recording or a rule file cannot be read.
pub fn run(args: &ReplayArgs) -> anyhow::Result<ExitCode> {
    let files = args.recordings.files();
    if files.is_empty() {
        bail!(super::wrong("nothing to replay: name a recording with --log, --metrics or --loads"));
    }
    let zone = args.recordings.zone()?;
    let inputs = playback::inputs_of(&files);
    let sees_log = files.iter().any(|(format, _)| *format == RecordingFormat::Log);
    let server = WatchedTarget { sees_log, ..playback::watched("server", None) };
    let ready = rule_files::load(&args.rules)?;
    let watch = playback::core_of(ready, vec![server], playback::sources_of(&inputs), zone.clone());
    let replay = Replay::open(&inputs, &zone).map_err(|e| super::wrong(&e.to_string()))?;
    replay_all(replay, watch, args.format.is_json())
}

fn replay_all(mut replay: Replay, mut watch: Watch, json: bool) -> anyhow::Result<ExitCode> {
    let mut out = BufWriter::new(io::stdout().lock());
    let played = play_all(&mut replay, &mut watch, json, &mut out);
    out.flush()?;
    let counts = watch.counts();
    let dropped = counts.dropped + replay.dropped();
    anstream::eprintln!("{} lines, {} samples, {dropped} dropped", counts.lines, counts.samples);
    played?;
    if counts.samples == 0 {
        bail!(
            "nothing was understood, so no rule was judged: a log is SGLang's or vLLM's, of a server under load; metrics are pages after `#@ EPOCH`, loads are {{\"t\": EPOCH, \"body\": ANSWER}} a line"
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn play_all(replay: &mut Replay, watch: &mut Watch, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let mut effects = Vec::new();
    while let Some(seen) = replay.next_observation().map_err(|e| super::wrong(&e.to_string()))? {
        watch.observe(&seen, seen.at().unwrap_or_default(), &mut effects);
        for effect in effects.drain(..) {
            print_effect(&effect, json, out).context("cannot write to standard output")?;
        }
        if let Observation::Lines { lines, .. } = seen {
            replay.recycle(lines);
        }
    }
    Ok(())
}

fn print_effect(effect: &Effect, json: bool, out: &mut impl Write) -> io::Result<()> {
    match effect {
        Effect::Changed { change, capture, why } if json => {
            serde_json::to_writer(&mut *out, &change.line(capture, why.as_deref()))?;
            out.write_all(b"\n")
        }
        Effect::Changed { change, capture, why } => {
            // `done` would read as if something had been captured.
            let capture = if *capture == "done" { "would have started already" } else { capture };
            writeln!(out, "{}  {}", change.at, change.text(capture, why.as_deref()))
        }
        Effect::SourceProblem { message, .. } => {
            anstream::eprintln!("{message}");
            Ok(())
        }
        _ => Ok(()),
    }
}
