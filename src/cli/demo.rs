//! `skewtrap demo`: replays a recorded incident on a simulated server, about ten times faster than it
//! happened, beside the real agent.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use anyhow::Context;
use clap::Args;
use tokio_util::sync::CancellationToken;

use super::run::{RunArgs, config_of};
use super::wrong;
use crate::agent;
use crate::agent::plan::{Flags, Plan};
use crate::clock::{Clock, wall_time};
use crate::demo::incident;
use crate::demo::practice;
use crate::demo::shell::{RunningDouble, StageClock};
use crate::http::{body, client};
use skewtrap_core::capture::CaptureSpec;
use skewtrap_core::message::{Message, Origin, Update, deviation, terminal};
use skewtrap_core::rule::RuleState;
use skewtrap_core::signal::catalog;
use skewtrap_core::signal::loads;
use skewtrap_core::watch::Effect;
use skewtrap_trace::labels::Labels;
use skewtrap_trace::time::Time;

const SPEED: f64 = 10.0;
/// Interval between two lines of the ranks' load, in the time of the recording.
const LOAD_INTERVAL: Duration = Duration::from_secs(5);
/// The file that marks a folder of an earlier demo, which may be emptied.
const MARKER: &str = ".skewtrap-demo";
/// The load at which a bar is full. Its length grows with the root, so that 8 and 300 are both seen.
const FULL_LOAD: f64 = 400.0;
/// The simulated server hands out the recorded traces, whatever is asked for: they are of this many steps.
const STEPS: u32 = 20;
/// Characters of a full bar.
const BAR_WIDTH: f64 = 12.0;

/// Replays a recorded incident against a built-in simulated server, about ten times faster
/// than real: the ranks' load, the onset, the window, the verdict, the message, the bundle.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Where log, profiles and bundles go
    #[arg(long, value_name = "DIR", default_value = "skewtrap-demo")]
    out: PathBuf,
    /// Only the simulated server, in real time on this port, to try `skewtrap run` on (0: any port)
    ///
    /// It plays the recorded incident as if it happened now, for half an hour, one repetition after the
    /// other: nearly two minutes of even load, then DP2 gets most of the requests.
    #[arg(long, value_name = "PORT")]
    server: Option<u16>,
}

/// Plays the recording to its end.
///
/// # Errors
/// The folder cannot be used, or no local port can be had.
pub fn run(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    let out = empty_folder(&args.out)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if let Some(port) = args.server {
        runtime.block_on(serve(&out, port))?;
        return Ok(ExitCode::SUCCESS);
    }
    runtime.block_on(play(&out))?;
    print_result(&out)?;
    Ok(ExitCode::SUCCESS)
}

/// An empty folder; one of an earlier demo is emptied, any other is left alone.
fn empty_folder(out: &Path) -> anyhow::Result<PathBuf> {
    let is_ours = out.join(MARKER).exists();
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
    fs::write(out.join(MARKER), b"")?;
    fs::canonicalize(out).with_context(|| format!("cannot find {}", out.display()))
}

/// Runs the server to practise on until its end or Ctrl-C.
async fn serve(out: &Path, port: u16) -> anyhow::Result<()> {
    let double = practice::start(out, port, wall_time())
        .await
        .with_context(|| format!("the simulated server cannot listen on port {port}"))?;
    let (even, period) = (practice::EVEN.as_secs(), practice::PERIOD.as_secs());
    print_line(&format!("A simulated SGLang server with 4 ranks listens on {}; Ctrl-C ends it.", double.url));
    print_line(&format!(
        "After {even} s most of the requests go to DP2; {} s later it begins anew.",
        period - even
    ));
    print_line("It plays a recording: a window brings the recorded traces, whenever it is opened.\n");
    print_line("In another terminal:");
    // Lines that a shell takes as they are, however wide the terminal is.
    let command = [
        format!("  skewtrap run --url {}", double.url),
        format!("    --log {}", double.log_path.display()),
        format!("    --output-dir {}", out.join("profiles").display()),
        format!("    --state-dir {}", out.join("state").display()),
        format!("    --incident-dir {}", out.join("incidents").display()),
    ];
    let _ = writeln!(anstream::stdout().lock(), "{}", command.join(" \\\n"));
    let finished = double.finished.clone();
    tokio::select! {
        () = finished.cancelled() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    Ok(())
}

async fn play(out: &Path) -> anyhow::Result<()> {
    print_line(
        "A recorded incident: SGLang 0.5.16, 4 data-parallel ranks on one H200; 113 s of it in about 12 s.",
    );
    print_line(
        "From 03:48:41.3 on, a router sends DP2 seven requests for one of its peers'. skewtrap is not informed.\n",
    );
    let double = incident::start(out, SPEED).await.context("the simulated server did not start")?;
    let plan = plan(out, &double)?;
    let cancel = CancellationToken::new();
    let blamed = Blamed::default();
    let shown = blamed.clone();
    let clock = double.clock;
    let run = agent::Run {
        clock: Clock::played(double.clock.now(), double.clock.speed()),
        cancel: cancel.clone(),
        reloads: Arc::default(),
        on_effect: Box::new(move |effect| {
            let was_firing = shown.lock().is_ok_and(|rank| rank.is_some());
            note_blamed(effect, &shown);
            print_effect(effect, clock, was_firing);
        }),
        reload: Arc::new(|| anyhow::bail!("the demo has no configuration file")),
        serves: false,
        background: None,
    };
    let load_printer = tokio::spawn(print_load(double.url.clone(), double.clock, blamed));
    let finished = double.finished.clone();
    let cancel_at_end = cancel.clone();
    tokio::spawn(async move {
        finished.cancelled().await;
        cancel_at_end.cancel();
    });
    agent::run(plan, run).await?;
    load_printer.abort();
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
    // One story: another rule that fires on the same skew would only show a refusal.
    config.rules.retain(|checked| &*checked.rule.name == "dp-load-skew");
    for checked in &mut config.rules {
        if let CaptureSpec::Http(http) = &mut checked.rule.capture {
            http.output_dir = Some(text(out.join("profiles")));
            (http.num_steps, http.max_stall) = (Some(STEPS), None);
        }
    }
    let plan = Plan::of(&config, &Flags { from_start: true, ..Flags::default() })?;
    // The demo prints to standard output itself.
    Ok(Plan { receivers: Vec::new(), ..plan })
}

/// Prints the load of the ranks every few seconds of the recording, as the server reports it.
async fn print_load(url: String, clock: StageClock, blamed: Blamed) {
    let Ok(client) = client::client(None) else { return };
    let mut next = clock.now();
    loop {
        next = next + LOAD_INTERVAL;
        tokio::time::sleep(clock.until(next)).await;
        let Ok(answer) = client.get(format!("{url}/v1/loads")).send().await else { continue };
        let Ok(body) = body::read(answer, body::PAGE, LOAD_INTERVAL).await else { continue };
        let Ok(loads) = loads::read(&body) else { continue };
        let ranks: Vec<String> = loads
            .ranks
            .iter()
            .map(|r| {
                let load = r.fields.get(catalog::LOAD).unwrap_or_else(|| {
                    r.fields.get(catalog::RUNNING_REQS).unwrap_or(0.0)
                        + r.fields.get(catalog::QUEUE_REQS).unwrap_or(0.0)
                });
                let is_blamed = blamed.lock().is_ok_and(|rank| rank.as_ref() == Some(&r.rank.labels()));
                let style = if is_blamed { GUILTY } else { Style::new() };
                format!("{style}{} {load:>4.0} {}{style:#}", r.rank, bar(load))
            })
            .collect();
        print_line(&format!("{}  {}", time_of_day(clock.now()), ranks.join("  ")));
    }
}

/// The rank that a rule blames while it fires.
type Blamed = Arc<Mutex<Option<Labels>>>;

/// How its bar is drawn.
const GUILTY: Style = Style::new().bold().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Red)));

fn note_blamed(effect: &Effect, blamed: &Blamed) {
    let Effect::Changed { change, .. } = effect else { return };
    if let Ok(mut rank) = blamed.lock() {
        *rank = match change.state {
            RuleState::Idle => None,
            _ => change.finding.as_ref().map(|finding| finding.rank.clone()).or(rank.take()),
        };
    }
}

fn bar(load: f64) -> String {
    let filled = ((load / FULL_LOAD).sqrt() * BAR_WIDTH).round().clamp(0.0, BAR_WIDTH) as usize;
    format!("{:<width$}", "#".repeat(filled), width = BAR_WIDTH as usize)
}

fn print_effect(effect: &Effect, clock: StageClock, was_firing: bool) {
    match effect {
        Effect::Changed { change, capture, why } if change.is_onset() => {
            let Some(finding) = &change.finding else { return };
            print_line(&format!(
                "\n{}  {} fires: {}, since {} ± {:.1} s",
                time_of_day(change.at),
                change.rule.name,
                finding.evidence.clone().unwrap_or_else(|| deviation(finding)),
                time_of_day(finding.onset),
                finding.onset_error_s,
            ));
            if let Some(why) = why {
                print_line(&format!("            its capture is {}: {why}", capture.word()));
            }
        }
        Effect::Changed { change, .. } if change.state == RuleState::Idle && was_firing => {
            print_line(&format!("{}  {} fires no more", time_of_day(change.at), change.rule.name));
        }
        Effect::Start { incident, .. } => {
            print_line(&format!(
                "{}  one window is opened for incident {}: {STEPS} steps, as recorded; windows of yours are bounded by \
                 what they may cost (`max_stall`)",
                time_of_day(clock.now()),
                incident.id
            ));
        }
        Effect::Notify { incident, update, .. } if matches!(update, Update::Captured | Update::Verdict) => {
            let origin = Origin::default();
            let mut message = Message::of(incident, *update, incident.fired_at, &origin);
            // The demo's agent ends with the demo: no command can ask it afterwards.
            if let Some(bundle) = &incident.bundle {
                message.facts.open =
                    format!("{bundle}/report.html in a browser, or: skewtrap compare {bundle}");
            }
            print_line(&format!("\n{}\n", terminal(&message)));
        }
        _ => {}
    }
}

fn print_result(out: &Path) -> anyhow::Result<()> {
    let incidents = out.join("incidents");
    print_line("\nWhat is stored:");
    let mut folders: Vec<PathBuf> = fs::read_dir(&incidents)?.filter_map(|e| Some(e.ok()?.path())).collect();
    folders.sort();
    for folder in folders {
        let mut names: Vec<String> =
            fs::read_dir(&folder)?.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        print_line(&format!("  {}  ({})", folder.display(), names.join(", ")));
    }
    print_line("\nOpen its report.html in a browser, or compare its ranks by hand:");
    print_line(&format!("  skewtrap compare {}/*dp-load-skew*", incidents.display()));
    print_line("\nNext, on a server of yours (SGLang or vLLM):");
    print_line("  skewtrap init http://127.0.0.1:30000     look at it, and write skewtrap.yaml");
    print_line("  skewtrap doctor                          may a window open there? it takes none");
    print_line("  skewtrap run --watch-only                watch and tell, and open no window yet");
    Ok(())
}

fn time_of_day(at: Time) -> String {
    let text = at.to_string();
    text.get(11..21).unwrap_or(&text).to_owned()
}

fn print_line(line: &str) {
    let width = rustix::termios::tcgetwinsize(std::io::stdout()).ok().map(|size| usize::from(size.ws_col));
    let text = match width.filter(|width| *width >= 40) {
        Some(width) => line.split('\n').map(|one| wrapped(one, width)).collect::<Vec<_>>().join("\n"),
        None => line.to_owned(),
    };
    // A closed standard output does not stop the demo.
    let _ = writeln!(anstream::stdout().lock(), "{text}");
}

/// A line cut at spaces to the width of the terminal; what follows stands below a message's sentences.
fn wrapped(line: &str, width: usize) -> String {
    const INDENT: &str = "            ";
    let seen = |text: &str| anstream::adapter::strip_str(text).to_string().chars().count();
    if seen(line) <= width {
        return line.to_owned();
    }
    let (mut text, mut column) = (String::new(), 0);
    for word in line.split_inclusive(' ') {
        let length = seen(word.trim_end());
        if column + length > width && column > INDENT.len() {
            text.truncate(text.trim_end().len());
            text.push('\n');
            text.push_str(INDENT);
            column = INDENT.len();
        }
        text.push_str(word);
        column += seen(word);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_cut_at_spaces_and_goes_on_below_the_sentences() {
        let line = "  verdict   DP2 has more to do than its peers, most of it in attention";
        assert_eq!(
            wrapped(line, 44),
            "  verdict   DP2 has more to do than its\n            peers, most of it in attention"
        );
        assert_eq!(wrapped("short", 44), "short");
    }

    #[test]
    fn bars_of_a_light_and_of_a_heavy_load_are_both_seen_and_none_is_full_before_the_peak() {
        let hashes = |load: f64| bar(load).matches('#').count();
        assert_eq!((hashes(0.0), hashes(8.0), hashes(40.0), hashes(195.0), hashes(335.0)), (0, 2, 4, 8, 11));
    }
}
