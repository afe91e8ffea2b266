//! `skewtrap replay`: runs the core over recordings, in simulated time.

use std::collections::VecDeque;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;

use super::playback::{self, Recordings};
use super::{Format, rule_files};
use crate::observe::replay::{Format as RecordingFormat, Replay};
use skewtrap_core::incident::CaptureState;
use skewtrap_core::rule::{Change, ChangeKind};
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
    /// Print also why: the cause of each incident whenever it is looked for, a line beginning with `cause`
    /// (as JSON, one with the key `cause`)
    #[arg(long)]
    causes: bool,
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
    replay_all(replay, watch, ReplayOutput { json: args.format.is_json(), causes: args.causes })
}

/// What is printed.
#[derive(Clone, Copy, Debug)]
struct ReplayOutput {
    json: bool,
    causes: bool,
}

fn replay_all(mut replay: Replay, mut watch: Watch, form: ReplayOutput) -> anyhow::Result<ExitCode> {
    let mut out = BufWriter::new(io::stdout().lock());
    let played = play_all(&mut replay, &mut watch, form, &mut out);
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

fn play_all(
    replay: &mut Replay,
    watch: &mut Watch,
    form: ReplayOutput,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let mut effects = Vec::new();
    let mut lines = Lines::default();
    while let Some(seen) = replay.next_observation().map_err(|e| super::wrong(&e.to_string()))? {
        watch.observe(&seen, seen.at().unwrap_or_default(), &mut effects);
        for effect in effects.drain(..) {
            lines.take(effect);
        }
        while let Some(effect) = lines.next() {
            print_effect(&effect, form, out).context("cannot write to standard output")?;
        }
        if let Observation::Lines { lines, .. } = seen {
            replay.recycle(lines);
        }
    }
    for effect in lines.waiting {
        print_effect(&effect, form, out).context("cannot write to standard output")?;
    }
    Ok(())
}

/// The lines in their order. One whose impact is still being looked at waits for the decision, so that
/// each state change is one line that says what came of it.
#[derive(Debug, Default)]
struct Lines {
    waiting: VecDeque<Effect>,
}

impl Lines {
    fn take(&mut self, effect: Effect) {
        let Effect::Changed { change, capture, why } = effect else { return self.waiting.push_back(effect) };
        let same = |other: &Change| {
            (&other.rule.name, &other.target, &other.group)
                == (&change.rule.name, &change.target, &change.group)
        };
        let undecided = self.waiting.iter_mut().find_map(|e| match e {
            Effect::Changed { change, capture, why }
                if *capture == CaptureState::Undecided && same(change) =>
            {
                Some((capture, why))
            }
            _ => None,
        });
        match (undecided, change.how) {
            (Some((waiting, reason)), ChangeKind::Weighed) => (*waiting, *reason) = (capture, why),
            (None, ChangeKind::Weighed) => {}
            (undecided, _) => {
                if let Some((waiting, reason)) = undecided {
                    (*waiting, *reason) =
                        (CaptureState::Refused, Some("it cleared before its impact was known".into()));
                }
                self.waiting.push_back(Effect::Changed { change, capture, why });
            }
        }
    }

    fn next(&mut self) -> Option<Effect> {
        let waits =
            |e: &Effect| matches!(e, Effect::Changed { capture, .. } if *capture == CaptureState::Undecided);
        self.waiting.pop_front_if(|e| !waits(e))
    }
}

fn print_effect(effect: &Effect, form: ReplayOutput, out: &mut impl Write) -> io::Result<()> {
    match effect {
        Effect::Changed { change, capture, why } if form.json => {
            serde_json::to_writer(&mut *out, &change.line(capture.word(), why.as_deref()))?;
            out.write_all(b"\n")
        }
        Effect::Changed { change, capture, why } => {
            // `done` would read as if something had been captured.
            let capture = match capture {
                CaptureState::Done => "would have started already",
                capture => capture.word(),
            };
            writeln!(out, "{:.3}  {}", change.at, change.text(capture, why.as_deref()))
        }
        Effect::Store { incident } if form.causes => match &incident.cause {
            Some(cause) if form.json => {
                let line = serde_json::json!({ "at": cause.at, "incident": incident.id, "rule": incident.rule,
                    "rank": incident.finding.rank, "cause": cause });
                writeln!(out, "{line}")
            }
            Some(cause) => {
                let why = cause.support.join("; ");
                writeln!(out, "cause  {} ({}): {why}", cause.statement, cause.certainty.word())
            }
            None => Ok(()),
        },
        Effect::SourceProblem { message, .. } => {
            anstream::eprintln!("{message}");
            Ok(())
        }
        _ => Ok(()),
    }
}
