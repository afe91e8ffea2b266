//! `skewtrap doctor`: all of pre-flight against a live server, and, asked to, a window of one step.
//! It says what would be refused, and how to mend it.

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
use crate::agent::clock::Clock;
use crate::agent::examine::{Examined, examine, take_one};
use crate::agent::plan::{Flags, Plan, SitePlan, SourcePlan};
use crate::agent::window::TargetHandle;
use crate::observe::process::{ancestors, listener};
use skewtrap_core::capture::Limits;
use skewtrap_core::capture::admit::{Policy, admit, check};
use skewtrap_core::capture::captured::Captured;
use skewtrap_core::capture::facts::{Answered, Facts};
use skewtrap_core::capture::governor::{CaptureRequest, Ledger};
use skewtrap_core::capture::plan::{Asker, plan};
use skewtrap_core::capture::preflight::{self, Need};
use skewtrap_core::capture::refusal::{Bytes, Span};
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

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Check {
    target: String,
    /// Whether a capture may go on.
    ok: bool,
    what: &'static str,
    said: String,
}

/// Looks, and prints. Exit status 1 when something would be refused.
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
            println!("{mark}  {}  {}: {}", check.target, check.what, check.said);
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
    for site in &plan.sites {
        let Some(server) = &site.server else {
            checks.add(site, true, "server", "only its logs are read; nothing is captured on it".into());
            continue;
        };
        let log = plan.sources.iter().find_map(|source| match source {
            SourcePlan::Tail(c) if c.target == site.target && c.path.as_os_str() != "-" => {
                Some(c.path.clone())
            }
            _ => None,
        });
        let examined = examine(server, site, log.as_deref(), clock).await;
        checks.server(site, &examined, clock.now());
        for rule in rules {
            checks.rule(site, &examined.facts, rule, &plan.setup.policy, clock.now());
        }
        if rules.iter().any(|r| matches!(r.capture, CaptureSpec::Nsys(_))) {
            checks.nsys(site, server.port().unwrap_or(0)).await;
        }
        if args.take_window {
            let site_of = TargetHandle {
                server: server.clone(),
                target: site.name.to_string(),
                paths: site.paths.clone(),
                default_dir: None,
                sees_log: site.sees_log,
                nsys: Nsys::new("nsys"),
            };
            checks.window(site, site_of, &examined.facts, plan, (clock, log)).await?;
        }
    }
    Ok(checks.0)
}

struct Checks(Vec<Check>);

impl Checks {
    fn add(&mut self, site: &SitePlan, ok: bool, what: &'static str, said: String) {
        self.0.push(Check { target: site.name.to_string(), ok, what, said });
    }

    /// What holds for every capture of this server.
    fn server(&mut self, site: &SitePlan, examined: &Examined, now: Time) {
        let facts = &examined.facts;
        match (&facts.server, &examined.info_error) {
            (Some(info), _) => {
                let version = info.version.map_or("of unknown version".to_owned(), |v| v.to_string());
                let s = info.sizes;
                let attention = if s.dp_attention { ", DP attention" } else { "" };
                let said =
                    format!("{} {version}, dp {} tp {} pp {}{attention}", info.engine, s.dp, s.tp, s.pp);
                self.add(site, true, "server", said);
            }
            (None, error) => self.add(site, false, "server", error.clone().unwrap_or_default()),
        }
        let health = match (facts.health.last(), facts.health.median()) {
            (Some((_, Answered::Well(took))), Some(median)) => {
                format!("answers in {}, usually {}", Span(*took), Span(median))
            }
            (Some((_, Answered::Ill(why))), _) => why.clone(),
            _ => "was not asked".into(),
        };
        self.add(site, matches!(facts.health.last(), Some((_, Answered::Well(_)))), "health", health);
        self.ranks(site, examined, now);
        self.log(site, examined);
        if site.folders.is_empty() {
            let said = "no capture.output_dir is declared: files are told apart by profile_id (0.5.15) or profile_prefix (0.5.7), and where they lie is the server's choice";
            self.add(site, true, "folder", said.into());
        }
        for folder in &facts.folders {
            let (ok, said) = match folder.seen {
                None => (true, "is out of the agent's sight: captures will be marked remote; give path_map if they share it".into()),
                Some(room) if !room.exists => (false, "is not there, and SGLang dies when it cannot write; create it, writable by the server".into()),
                Some(room) if !room.writable => (false, "takes no writes, and SGLang dies when it cannot write".into()),
                Some(room) => (true, format!("{} free", Bytes(room.free))),
            };
            self.add(site, ok, "folder", format!("{} {said}", folder.server_path));
        }
    }

    fn ranks(&mut self, site: &SitePlan, examined: &Examined, now: Time) {
        let Some(info) = &examined.facts.server else { return };
        let (ok, said) = match (&examined.loads_error, preflight::ranks(&examined.facts, info, now)) {
            (Some(error), _) => (false, format!("/v1/loads does not tell who works: {error}")),
            (None, Ok(ranks)) if ranks.idle.is_empty() => (true, "every rank has work".into()),
            (None, Ok(ranks)) => {
                let said = format!("{} work, {} idle", names_of(&ranks.busy), names_of(&ranks.idle));
                (true, said)
            }
            (None, Err(refusal)) => (false, refusal.to_string()),
        };
        self.add(site, ok, "ranks", said);
    }

    fn log(&mut self, site: &SitePlan, examined: &Examined) {
        let (ok, said) = match (site.sees_log, &examined.log_error, examined.facts.foreign.open()) {
            (false, ..) => (true, "is not read: other people's windows are not seen, and a doubtful start cannot be proven; give it with --log".into()),
            (true, Some(error), _) => (false, format!("cannot be read: {error}")),
            (true, None, Some((_, dir))) => (false, format!("somebody else's profile is open, writing to {dir}")),
            (true, None, None) => (true, "is read; nobody else's profile is open".into()),
        };
        self.add(site, ok, "log", said);
    }

    /// What one rule would ask for now.
    fn rule(&mut self, site: &SitePlan, facts: &Facts, rule: &Rule, policy: &Policy, now: Time) {
        let name = &rule.name;
        let said = match (&rule.capture, check(&rule.capture)) {
            (CaptureSpec::None, _) => Ok("captures nothing".to_owned()),
            (_, Err(refusal)) => Err(refusal.to_string()),
            (CaptureSpec::Http(http), Ok(())) => asked(http, facts, policy, now),
            (spec, Ok(())) => Ok(format!("captures by {}", word_of(spec))),
        };
        let ok = said.is_ok();
        self.add(site, ok, "rule", format!("{name}: {}", said.unwrap_or_else(|why| why)));
    }

    async fn nsys(&mut self, site: &SitePlan, port: u16) {
        let wanted = skewtrap_core::capture::NsysSession::OfTarget;
        let nsys = Nsys::new("nsys");
        let said = match nsys.sessions().await {
            Err(error) => Err(error.to_string()),
            Ok(sessions) => {
                let chain = listener(port).map(ancestors).unwrap_or_default();
                let chosen = nsys_words::choose(&wanted, &sessions, &chain, &nsys.viewer(), port);
                chosen
                    .map(|s| format!("session {} ({}, {})", s.name, s.id, s.state))
                    .map_err(|e| e.to_string())
            }
        };
        let ok = said.is_ok();
        self.add(site, ok, "nsys", said.unwrap_or_else(|why| why));
    }

    /// A window of one step, with all that a real one has.
    async fn window(
        &mut self,
        site: &SitePlan,
        target: TargetHandle,
        facts: &Facts,
        plan: &Plan,
        (clock, log): (Clock, Option<std::path::PathBuf>),
    ) -> anyhow::Result<()> {
        let state = State::open(&plan.state_dir)?;
        let bundles = Bundles::open(&plan.incident_dir, state.agent().clone())?;
        let desk = CaptureStore { state: state.clone(), bundles, clock };
        let now = clock.now();
        let limits =
            Limits { cooldown: Duration::ZERO, captures: u32::MAX, per: Duration::from_secs(86_400) };
        let incident = format!("doctor-{}", now.nanos() / 1_000_000);
        let wish = CaptureRequest {
            rule: "by hand",
            limits: &limits,
            target: &site.name,
            group: &site.name,
            incident: &incident,
            firing: "",
            may_carry_on: false,
            badness: 1.0,
        };
        let spec = CaptureSpec::Http(HttpWindow { num_steps: 1, ..HttpWindow::default() });
        let ledger: Ledger = state.ledger()?;
        match admit(&spec, &wish, &ledger, facts, &plan.setup.policy, now) {
            Err(refusal) => self.add(site, false, "window", refusal.to_string()),
            Ok(None) => {}
            Ok(Some(grant)) => {
                let habit = facts.health.median().unwrap_or_default();
                let cancel = CancellationToken::new();
                let stop = cancel.clone();
                tokio::spawn(async move {
                    let _ = tokio::signal::ctrl_c().await;
                    stop.cancel();
                });
                let kept = take_one(&desk, &target, log, &grant, habit, cancel)
                    .await
                    .context("no window was taken")?;
                state.delete_incident(&incident)?;
                let (ok, said) = told(&kept.record.incident.capture);
                self.add(
                    site,
                    ok,
                    "window",
                    format!("{said}; see {}", desk.bundles.path(&incident).display()),
                );
            }
        }
        Ok(())
    }
}

/// The request that a rule would send now, or why it would not.
fn asked(http: &HttpWindow, facts: &Facts, policy: &Policy, now: Time) -> Result<String, String> {
    let need = Need { bytes: 0, floor: policy.min_free };
    preflight::check(facts, need, now).map_err(|r| r.to_string())?;
    let asker = Asker { mark: "INCIDENT", output_dir: policy.output_dir.as_deref() };
    let request = plan(http, facts, asker, now).map_err(|r| r.to_string())?;
    let body = request.body.map_or_else(|| "without a body".to_owned(), |b| b.to_string());
    Ok(format!(
        "would post /start_profile {body}, and stop it after {} at the latest",
        Span(request.deadline)
    ))
}

const fn word_of(spec: &CaptureSpec) -> &'static str {
    match spec {
        CaptureSpec::None => "nothing",
        CaptureSpec::Http(_) => "http",
        CaptureSpec::Nsys(_) => "nsys",
        CaptureSpec::CudaProfilerApi(_) => "cuda_profiler_api",
        CaptureSpec::Command(_) => "command",
    }
}

fn told(outcome: &CaptureOutcome) -> (bool, String) {
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
