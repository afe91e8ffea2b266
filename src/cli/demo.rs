//! `skewtrap demo`: a recorded incident, played against the double about ten times faster than it
//! happened, and what the agent makes of it. The agent is the real one; only the server is not.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use tokio_util::sync::CancellationToken;

use super::run::{RunArgs, config_of};
use super::wrong;
use crate::agent;
use crate::agent::clock::Clock;
use crate::agent::plan::{Flags, Plan};
use crate::demo::incident;
use crate::demo::shell::RunningDouble;
use crate::http::client;
use skewtrap_core::capture::CaptureSpec;
use skewtrap_core::message::{Message, Origin, Update, terminal};
use skewtrap_core::rule::RuleState;
use skewtrap_core::signal::catalog;
use skewtrap_core::signal::loads;
use skewtrap_core::watch::Effect;
use skewtrap_trace::time::Time;

const SPEED: f64 = 10.0;
/// Between two lines of the ranks' load, in the recording's time.
const SHOWN_EVERY: Duration = Duration::from_secs(5);
/// A file by which a folder is known to be of an earlier demo, so that it may be replaced.
const MARK: &str = ".skewtrap-demo";
/// A bar of this width is this load.
const FULL: f64 = 120.0;
const WIDTH: f64 = 12.0;

/// Replays a recorded incident against a built-in double of the server, about ten times faster
/// than real: the ranks' load, the onset, the window, the verdict, the message, the bundle.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Where log, profiles and bundles go
    #[arg(long, value_name = "DIR", default_value = "skewtrap-demo")]
    out: PathBuf,
}

/// Plays it to its end.
///
/// # Errors
/// The folder cannot be used, or no local port can be had.
pub fn run(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    let out = fresh(&args.out)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(play(&out))?;
    finale(&out)?;
    Ok(ExitCode::SUCCESS)
}

/// An empty folder; one of an earlier demo is emptied, any other is left alone.
fn fresh(out: &Path) -> anyhow::Result<PathBuf> {
    let is_ours = out.join(MARK).exists();
    let is_empty = fs::read_dir(out).map_or(true, |mut entries| entries.next().is_none());
    if !is_ours && !is_empty {
        anyhow::bail!(wrong(&format!(
            "{} is there and not empty; choose another folder with --out",
            out.display()
        )));
    }
    if is_ours {
        fs::remove_dir_all(out).with_context(|| format!("cannot empty {}", out.display()))?;
    }
    fs::create_dir_all(out.join("profiles")).with_context(|| format!("cannot make {}", out.display()))?;
    fs::write(out.join(MARK), b"")?;
    fs::canonicalize(out).with_context(|| format!("cannot find {}", out.display()))
}

async fn play(out: &Path) -> anyhow::Result<()> {
    say("A recorded incident: SGLang 0.5.16, 4 data-parallel ranks on one H200; 113 s of it in about 12 s.");
    say(
        "From 03:48:41.3 on, a router sends DP2 seven requests for one of its peers'. Nobody tells skewtrap.\n",
    );
    let double = incident::start(out, SPEED).await.context("the double of the server did not start")?;
    let plan = plan(out, &double)?;
    let cancel = CancellationToken::new();
    // The sender is kept: a closed channel would be asked again and again.
    let (_reload, reloads) = tokio::sync::mpsc::channel(1);
    let run = agent::Run {
        clock: Clock::played(double.clock.now(), double.clock.speed()),
        cancel: cancel.clone(),
        reloads,
        on_effect: Box::new(show),
        reload: Box::new(|| anyhow::bail!("the demo has no configuration file")),
        serves: false,
    };
    let showing = tokio::spawn(show_load(double.url.clone(), double.clock));
    let finished = double.finished.clone();
    let ending = cancel.clone();
    tokio::spawn(async move {
        finished.cancelled().await;
        ending.cancel();
    });
    agent::run(plan, run).await?;
    showing.abort();
    Ok(())
}

fn plan(out: &Path, double: &RunningDouble) -> anyhow::Result<Plan> {
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    let args = RunArgs::of_demo(
        &double.url,
        &text(double.log_path.clone()),
        &text(out.join("state")),
        &text(out.join("incidents")),
    );
    let mut config = config_of(&args)?;
    for target in &mut config.targets {
        target.poll = Duration::from_secs(1).div_f64(SPEED);
    }
    // So that the play also shows what a refusal says.
    config.budget.windows = 1;
    for checked in &mut config.rules {
        if let CaptureSpec::Http(http) = &mut checked.rule.capture {
            http.output_dir = Some(text(out.join("profiles")));
        }
    }
    let plan = Plan::of(&config, &Flags { from_start: true, ..Flags::default() })?;
    // The play is its own story on standard output.
    Ok(Plan { receivers: Vec::new(), ..plan })
}

/// The ranks' load, as the server says it, every few seconds of the recording.
async fn show_load(url: String, clock: crate::demo::shell::StageClock) {
    let Ok(client) = client::client(None) else { return };
    let mut next = clock.now();
    loop {
        next = next + SHOWN_EVERY;
        tokio::time::sleep(clock.until(next)).await;
        let Ok(answer) = client.get(format!("{url}/v1/loads")).send().await else { continue };
        let Ok(body) = answer.bytes().await else { continue };
        let Ok(loads) = loads::read(&body) else { continue };
        let ranks: Vec<String> = loads
            .ranks
            .iter()
            .map(|r| {
                let load = r.fields.get(catalog::LOAD).unwrap_or_else(|| {
                    r.fields.get(catalog::RUNNING_REQS).unwrap_or(0.0)
                        + r.fields.get(catalog::QUEUE_REQS).unwrap_or(0.0)
                });
                format!("{} {load:>4.0} {}", r.rank, bar(load))
            })
            .collect();
        say(&format!("{}  {}", hour_of(clock.now()), ranks.join("  ")));
    }
}

fn bar(load: f64) -> String {
    let filled = (load / FULL * WIDTH).round().clamp(0.0, WIDTH) as usize;
    format!("{:<width$}", "#".repeat(filled), width = WIDTH as usize)
}

fn show(effect: &Effect) {
    match effect {
        Effect::Changed { change, capture, why } if change.is_onset() => {
            let Some(finding) = &change.finding else { return };
            say(&format!(
                "\n{}  {} fires: {} is {} since {} (+-{:.1} s)",
                hour_of(change.at),
                change.rule.name,
                finding.rank,
                finding.side.word(),
                hour_of(finding.onset),
                finding.onset_error_s,
            ));
            if let Some(why) = why {
                say(&format!("            its capture is {capture}: {why}"));
            }
        }
        Effect::Changed { change, .. } if change.state == RuleState::Idle => {
            say(&format!("{}  {} is idle", hour_of(change.at), change.rule.name));
        }
        Effect::Start { incident, .. } => {
            say(&format!(
                "{}  one window is opened for incident {}",
                hour_of(incident.fired_at),
                incident.id
            ));
        }
        Effect::Notify { incident, update, .. } if matches!(update, Update::Captured | Update::Verdict) => {
            let origin = Origin::default();
            let message = Message::of(incident, *update, incident.fired_at, &origin);
            say(&format!("\n{}\n", terminal(&message)));
        }
        _ => {}
    }
}

fn finale(out: &Path) -> anyhow::Result<()> {
    let incidents = out.join("incidents");
    say("\nWhat is kept:");
    let mut folders: Vec<PathBuf> = fs::read_dir(&incidents)?.filter_map(|e| Some(e.ok()?.path())).collect();
    folders.sort();
    for folder in folders {
        let mut names: Vec<String> =
            fs::read_dir(&folder)?.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        say(&format!("  {}  ({})", folder.display(), names.join(", ")));
    }
    say("\nOpen the report.html of the first in a browser, or compare its ranks by hand:");
    say(&format!("  skewtrap compare {}/*dp-load-skew*", incidents.display()));
    Ok(())
}

fn hour_of(at: Time) -> String {
    let text = at.to_string();
    text.get(11..21).unwrap_or(&text).to_owned()
}

fn say(line: &str) {
    // A reader that went away does not stop the play.
    let _ = writeln!(anstream::stdout().lock(), "{line}");
}
