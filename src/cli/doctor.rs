//! `skewtrap doctor`: runs the pre-flight checks against a live server and, on request, takes a window of
//! one step. It says what would be refused, and how to correct it.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::run::{RunArgs, config_of};
use super::{Format, wrong};
use crate::act::bundle::Bundles;
use crate::act::nsys::Nsys;
use crate::act::state::State;
use crate::agent::capture::CaptureStore;
use crate::agent::examine::{Examined, examine, take_one};
use crate::agent::plan::{Flags, Plan, SourcePlan, TargetPlan};
use crate::agent::window::TargetHandle;
use crate::clock::Clock;
use crate::observe::process::{ancestors, listener};
use skewtrap_core::capture::Limits;
use skewtrap_core::capture::admit::{Policy, admit, check};
use skewtrap_core::capture::captured::Captured;
use skewtrap_core::capture::facts::{Answered, Facts};
use skewtrap_core::capture::governor::{CaptureRequest, Ledger};
use skewtrap_core::capture::plan::{WindowNaming, plan};
use skewtrap_core::capture::preflight::{self, Need};
use skewtrap_core::capture::refusal::{Bytes, Span};
use skewtrap_core::capture::sizing::Knowledge;
use skewtrap_core::capture::verify::names_of;
use skewtrap_core::capture::{CaptureSpec, HttpWindow, nsys as nsys_words};
use skewtrap_core::incident::CaptureOutcome;
use skewtrap_core::rule::Rule;
use skewtrap_trace::time::Time;

/// Checks against a live server everything that a capture depends on, and says how to mend it
#[derive(Debug, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Take a window of one step to see that it works; it counts against the day's budget
    #[arg(long)]
    take_window: bool,
    /// Forget attempts whose time lies in the future, left by a clock that was wrong
    #[arg(long)]
    forget_future: bool,
    #[command(flatten)]
    format: Format,
}

/// The result of one check.
#[derive(Debug, Serialize)]
struct Check {
    target: String,
    /// Whether a capture may go on.
    ok: bool,
    what: &'static str,
    #[serde(rename = "said")]
    message: String,
}

/// Runs the checks and prints them. Exit status 1 when a capture would be refused.
///
/// # Errors
/// The configuration is wrong, or the state cannot be opened.
pub fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let config = config_of(&args.run)?;
    let plan = Plan::of(&config, &Flags::default()).map_err(|e| wrong(&format!("{e:#}")))?;
    let rules: Vec<Rule> = config.rules.iter().map(|c| c.rule.clone()).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let checks = runtime.block_on(all(args, &plan, &rules))?;
    for check in &checks {
        if args.format.is_json() {
            println!("{}", serde_json::to_string(check)?);
        } else {
            let mark = if check.ok { "ok" } else { "NO" };
            println!("{mark}  {}  {}: {}", check.target, check.what, check.message);
        }
    }
    Ok(if checks.iter().all(|c| c.ok) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn all(args: &DoctorArgs, plan: &Plan, rules: &[Rule]) -> anyhow::Result<Vec<Check>> {
    let clock = Clock::start();
    let mut checks = Checks(Vec::new());
    if args.forget_future {
        State::open(&plan.state_dir)?.forget_future(clock.now())?;
    }
    for target in &plan.targets {
        let Some(server) = &target.server else {
            checks.add(target, true, "server", "only its logs are read; nothing is captured on it".into());
            continue;
        };
        let log = plan.sources.iter().find_map(|source| match source {
            SourcePlan::Tail(c) if c.target == target.target && c.path.as_os_str() != "-" => {
                Some(c.path.clone())
            }
            _ => None,
        });
        let examined = examine(server, target, log.as_deref(), clock).await;
        checks.server(target, &examined, clock.now());
        for rule in rules {
            checks.rule(target, &examined.facts, rule, &plan.setup.policy, clock.now());
        }
        if rules.iter().any(|r| matches!(r.capture, CaptureSpec::Nsys(_))) {
            checks.nsys(target, server.port().unwrap_or(0)).await;
        }
        if args.take_window {
            let handle = TargetHandle {
                server: server.clone(),
                target: target.name.to_string(),
                instance: examined.facts.server.as_ref().map(|s| s.instance.clone()),
                paths: target.paths.clone(),
                default_dir: None,
                sees_log: target.sees_log,
                nsys: Nsys::new("nsys"),
            };
            checks.window(target, handle, &examined.facts, plan, (clock, log)).await?;
        }
    }
    Ok(checks.0)
}

struct Checks(Vec<Check>);

impl Checks {
    fn add(&mut self, target: &TargetPlan, ok: bool, what: &'static str, message: String) {
        self.0.push(Check { target: target.name.to_string(), ok, what, message });
    }

    /// Checks that concern every capture on this server.
    fn server(&mut self, target: &TargetPlan, examined: &Examined, now: Time) {
        let facts = &examined.facts;
        match (&facts.server, &examined.info_error) {
            (Some(info), _) => {
                let version = info.version.map_or("of unknown version".to_owned(), |v| v.to_string());
                let s = info.sizes;
                let attention = if s.dp_attention { ", DP attention" } else { "" };
                let message =
                    format!("{} {version}, dp {} tp {} pp {}{attention}", info.engine, s.dp, s.tp, s.pp);
                self.add(target, true, "server", message);
                let (limit, timer) = info.smallest_timer();
                let message = format!(
                    "{timer} of {} is the smallest known; no window may cost a third of it",
                    Span(limit)
                );
                self.add(target, true, "timers", message);
            }
            (None, error) => self.add(target, false, "server", error.clone().unwrap_or_default()),
        }
        let health = match (facts.health.last(), facts.health.median()) {
            (Some((_, Answered::Well(took))), Some(median)) => {
                format!("answers in {}, usually {}", Span(*took), Span(median))
            }
            (Some((_, Answered::Ill(why))), _) => why.clone(),
            _ => "was not asked".into(),
        };
        self.add(target, matches!(facts.health.last(), Some((_, Answered::Well(_)))), "health", health);
        self.ranks(target, examined, now);
        self.log(target, examined);
        if target.folders.is_empty() {
            let message = "no capture.output_dir is declared: files are told apart by profile_id (0.5.15) or profile_prefix (0.5.7), and where they lie is the server's choice";
            self.add(target, true, "folder", message.into());
        }
        for folder in &facts.folders {
            let (ok, message) = match folder.seen {
                None => (true, "is out of the agent's sight: captures will be marked remote; give path_map if they share it".into()),
                Some(room) if !room.exists => (false, "is not there, and SGLang dies when it cannot write; create it, writable by the server".into()),
                Some(room) if !room.writable => (false, "takes no writes, and SGLang dies when it cannot write".into()),
                Some(room) => (true, format!("{} free", Bytes(room.free))),
            };
            self.add(target, ok, "folder", format!("{} {message}", folder.server_path));
        }
    }

    fn ranks(&mut self, target: &TargetPlan, examined: &Examined, now: Time) {
        let Some(info) = &examined.facts.server else { return };
        let (ok, message) = match (&examined.loads_error, preflight::ranks(&examined.facts, info, now)) {
            (Some(error), _) => (false, format!("/v1/loads does not tell who works: {error}")),
            (None, Ok(ranks)) if ranks.idle.is_empty() => (true, "every rank has work".into()),
            (None, Ok(ranks)) => {
                let message = format!("{} work, {} idle", names_of(&ranks.busy), names_of(&ranks.idle));
                (true, message)
            }
            (None, Err(refusal)) => (false, refusal.to_string()),
        };
        self.add(target, ok, "ranks", message);
    }

    fn log(&mut self, target: &TargetPlan, examined: &Examined) {
        let (ok, message) = match (target.sees_log, &examined.log_error, examined.facts.foreign.open()) {
            (false, ..) => (true, "is not read: other people's windows are not seen, and a doubtful start cannot be proven; give it with --log".into()),
            (true, Some(error), _) => (false, format!("cannot be read: {error}")),
            (true, None, Some((_, dir))) => (false, format!("somebody else's profile is open, writing to {dir}")),
            (true, None, None) => (true, "is read; nobody else's profile is open".into()),
        };
        self.add(target, ok, "log", message);
    }

    /// The request that a rule would send now.
    fn rule(&mut self, target: &TargetPlan, facts: &Facts, rule: &Rule, policy: &Policy, now: Time) {
        let name = &rule.name;
        let message = match (&rule.capture, check(&rule.capture)) {
            (CaptureSpec::None, _) => Ok("captures nothing".to_owned()),
            (_, Err(refusal)) => Err(refusal.to_string()),
            (CaptureSpec::Http(http), Ok(())) => request_preview(http, facts, policy, now),
            (spec, Ok(())) => Ok(format!("captures by {}", spec.word())),
        };
        let ok = message.is_ok();
        self.add(target, ok, "rule", format!("{name}: {}", message.unwrap_or_else(|why| why)));
    }

    async fn nsys(&mut self, target: &TargetPlan, port: u16) {
        let wanted = skewtrap_core::capture::NsysSession::OfTarget;
        let nsys = Nsys::new("nsys");
        let message = match nsys.sessions().await {
            Err(error) => Err(error.to_string()),
            Ok(sessions) => {
                let chain = listener(port).map(ancestors).unwrap_or_default();
                let chosen = nsys_words::choose(&wanted, &sessions, &chain, &nsys.viewer(), port);
                chosen
                    .map(|s| format!("session {} ({}, {})", s.name, s.id, s.state))
                    .map_err(|e| e.to_string())
            }
        };
        let ok = message.is_ok();
        self.add(target, ok, "nsys", message.unwrap_or_else(|why| why));
    }

    /// Takes a window of one step, with everything that a real one has.
    async fn window(
        &mut self,
        target: &TargetPlan,
        handle: TargetHandle,
        facts: &Facts,
        plan: &Plan,
        (clock, log): (Clock, Option<std::path::PathBuf>),
    ) -> anyhow::Result<()> {
        let state = State::open(&plan.state_dir)?;
        let bundles = Bundles::open(&plan.incident_dir, state.agent().clone())?;
        let store = CaptureStore { state: state.clone(), bundles, clock };
        let now = clock.now();
        let limits =
            Limits { cooldown: Duration::ZERO, captures: u32::MAX, per: Duration::from_secs(86_400) };
        let incident = format!("doctor-{}", now.nanos() / 1_000_000);
        let request = CaptureRequest {
            rule: "by hand",
            limits: &limits,
            target: &target.name,
            group: &target.name,
            incident: &incident,
            firing: "",
            may_predate_start: false,
            badness: 1.0,
        };
        let spec = CaptureSpec::Http(HttpWindow { num_steps: Some(1), ..HttpWindow::default() });
        let ledger: Ledger = state.ledger()?;
        match admit(&spec, &request, &ledger, facts, &plan.setup.policy, 1.0, now) {
            Err(refusal) => self.add(target, false, "window", refusal.to_string()),
            Ok(None) => {}
            Ok(Some(capture_plan)) => {
                let habit = facts.health.median().unwrap_or_default();
                let cancel = CancellationToken::new();
                let stop = cancel.clone();
                tokio::spawn(async move {
                    let _ = tokio::signal::ctrl_c().await;
                    stop.cancel();
                });
                let outcome = take_one(&store, &handle, log, &capture_plan, habit, cancel)
                    .await
                    .context("no window was taken")?;
                let (ok, message) = outcome_text(&outcome);
                self.add(
                    target,
                    ok,
                    "window",
                    format!("{message}; see {}", store.bundles.path(&incident).display()),
                );
            }
        }
        Ok(())
    }
}

/// The request that a rule would send now, or why it would not.
fn request_preview(http: &HttpWindow, facts: &Facts, policy: &Policy, now: Time) -> Result<String, String> {
    let need = Need { bytes: 0, floor: policy.min_free };
    preflight::check(facts, need, now).map_err(|r| r.to_string())?;
    let asker = WindowNaming { mark: "INCIDENT", output_dir: policy.output_dir.as_deref() };
    // What past windows taught is the running agent's; this is what it would say before the first.
    let request = plan(http, facts, &Knowledge::default(), asker, now).map_err(|r| r.to_string())?;
    let predicted = request.sizing.and_then(|sizing| sizing.predicted);
    let cost = predicted.map_or_else(
        || "is not known before a window was seen".into(),
        |p| format!("is predicted to be {} before the server's first windows teach more", Span(p)),
    );
    let body = request.body.map_or_else(|| "without a body".to_owned(), |b| b.to_string());
    Ok(format!(
        "would post /start_profile {body}, and stop it after {} at the latest; the longest silence of a rank {cost}",
        Span(request.deadline)
    ))
}

fn outcome_text(outcome: &CaptureOutcome) -> (bool, String) {
    let brought = |c: &Captured| {
        let bytes: u64 = c.files.iter().map(|f| f.size).sum();
        let notes = if c.notes.is_empty() { String::new() } else { format!(" ({})", c.notes.join("; ")) };
        format!("{} files, {}, {:.1} s of serving{notes}", c.files.len(), Bytes(bytes), c.stall_s)
    };
    match outcome {
        CaptureOutcome::Done(captured) => (true, brought(captured)),
        CaptureOutcome::Failed { why, captured } => {
            (false, captured.as_ref().map_or_else(|| why.clone(), |c| format!("{why}; {}", brought(c))))
        }
        other => (false, format!("it ended as {}", other.word())),
    }
}
