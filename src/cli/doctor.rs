//! `skewtrap doctor`: runs the pre-flight checks against a live server and, on request, takes a window of
//! one step. It says what would be refused, and how to correct it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::agent_client::AgentArgs;
use super::run::{RunArgs, config_of, source_of};
use super::status::spent;
use super::{Format, silence, unless_closed, wrong};
use crate::act::bundle::Bundles;
use crate::act::nsys::Nsys;
use crate::act::state::{State, StateError};
use crate::agent::capture::CaptureStore;
use crate::agent::examine::{Examined, examine, take_one};
use crate::agent::plan::{Flags, Plan, SourcePlan, TargetPlan};
use crate::agent::window::TargetHandle;
use crate::clock::Clock;
use crate::http::Server;
use crate::observe::host;
use crate::observe::process::{ancestors, listener};
use skewtrap_core::amount::{Bytes, Span};
use skewtrap_core::capture::Limits;
use skewtrap_core::capture::admit::{Policy, admit, check};
use skewtrap_core::capture::captured::Captured;
use skewtrap_core::capture::facts::{Facts, HealthAnswer};
use skewtrap_core::capture::governor::{CaptureRequest, Ledger};
use skewtrap_core::capture::plan::{WindowNaming, plan};
use skewtrap_core::capture::preflight::{self, Need};
use skewtrap_core::capture::prior::LEAST_MEASURED;
use skewtrap_core::capture::refusal::Refusal;
use skewtrap_core::capture::sizing::{Sizing, SizingInputs};
use skewtrap_core::capture::verify::names_of;
use skewtrap_core::capture::{CaptureSpec, HttpWindow, nsys as nsys_words};
use skewtrap_core::incident::{BY_HAND, CaptureOutcome};
use skewtrap_core::message::serving;
use skewtrap_core::rule::{Condition, Rule};
use skewtrap_core::signal::catalog;
use skewtrap_core::status::{Reach, Status, not_watched};
use skewtrap_trace::time::Time;

/// Checks against a live server everything that a capture depends on, and says how to correct it
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
    level: Level,
    what: &'static str,
    #[serde(rename = "said")]
    message: String,
}

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Level {
    Ok,
    /// A capture may go on, and would be worth less than it could be.
    Warn,
    /// A capture would be refused, or harm the server.
    Error,
}

impl Level {
    const fn mark(self) -> &'static str {
        match self {
            Self::Ok => "ok  ",
            Self::Warn => "warn",
            Self::Error => "NO  ",
        }
    }
}

impl From<bool> for Level {
    fn from(is_ok: bool) -> Self {
        if is_ok { Self::Ok } else { Self::Error }
    }
}

/// Runs the checks and prints them. Exit status 1 when a capture would be refused.
///
/// # Errors
/// The configuration is wrong, or the state cannot be opened.
pub fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let (file, unused) = source_of(&args.run);
    if let Some(unused) = unused {
        anstream::eprintln!("{unused}");
    }
    let config = config_of(&args.run)?;
    if let Some(file) = &file {
        anstream::eprintln!("the configuration is {}", file.display());
    }
    let plan = Plan::of(&config, &Flags::default()).map_err(|e| wrong(&format!("{e:#}")))?;
    let rules: Vec<Rule> = config.rules.iter().map(|c| c.rule.clone()).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let checks = runtime.block_on(all(args, &plan, &rules, file));
    // A disk that hangs keeps a thread, which is not waited for.
    runtime.shutdown_background();
    let mut checks = checks?;
    // What an agent has used up already it alone knows. One that does not answer is not this command's matter.
    if let Some(Ok(status)) =
        AgentArgs::running(&plan.state_dir).map(|agent| agent.get_of_all::<Status>("status"))
    {
        checks.extend(used_up(&status));
    }
    let is_ok = checks.iter().all(|c| c.ok);
    unless_closed(print(&checks, args.format), if is_ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(checks: &[Check], format: Format) -> anyhow::Result<()> {
    for check in checks {
        if format.is_json() {
            outln!("{}", serde_json::to_string(check)?)?;
        } else {
            let mark = check.level.mark();
            outln!("{mark}  {}  {}: {}", check.target, check.what, check.message)?;
        }
    }
    Ok(())
}

async fn all(
    args: &DoctorArgs,
    plan: &Plan,
    rules: &[Rule],
    file: Option<PathBuf>,
) -> anyhow::Result<Vec<Check>> {
    let clock = Clock::start();
    let mut checks = Checks { all: Vec::new(), file };
    if args.forget_future {
        State::open(&plan.state_dir)?.forget_future(clock.now())?;
    }
    let signals = Signals::listen(args.take_window)?;
    let cancel = &signals.cancel;
    for target in &plan.targets {
        let Some(server) = &target.server else {
            checks.add(target, true, "server", "only its logs are read; nothing is captured on it".into());
            continue;
        };
        let tail = plan.sources.iter().find_map(|source| match source {
            SourcePlan::Tail(c) if c.target == target.target && c.path.as_os_str() != "-" => Some(c),
            _ => None,
        });
        let own = tail.and_then(|c| plan.setup.sources.iter().find(|named| named.id == c.source));
        let zone = own.and_then(|named| named.zone.as_ref()).unwrap_or(&plan.setup.zone);
        let log = tail.map(|c| c.path.clone());
        let examined = tokio::select! {
            biased;
            () = cancel.cancelled() => break,
            examined = examine(server, target, (log.as_deref(), zone), clock) => examined,
        };
        checks.server(target, &examined, clock.now());
        checks.watched(target, &examined.facts, rules, (server, plan.targets.len()));
        for rule in rules {
            checks.rule(target, &examined.facts, rule, &plan.setup.policy, clock.now());
        }
        if rules.iter().any(|r| matches!(r.capture, CaptureSpec::Nsys(_))) {
            checks.nsys(target, server.port().unwrap_or(0)).await;
        }
        if args.take_window {
            let handle = handle_of(server, target, &examined.facts);
            checks.window(target, handle, &examined.facts, plan, (clock, log), &signals).await?;
        }
    }
    #[cfg(feature = "fleet")]
    if let Some(store) = plan.store.as_ref().filter(|_| !cancel.is_cancelled()) {
        tokio::select! {
            biased;
            () = cancel.cancelled() => {}
            () = checks.store(store) => {}
        }
    }
    if let Some(last) = plan.targets.last().filter(|_| cancel.is_cancelled()) {
        checks.add(
            last,
            false,
            "end",
            "a signal ended this: what is not told above was not looked at".into(),
        );
    }
    Ok(checks.all)
}

fn handle_of(server: &Server, target: &TargetPlan, facts: &Facts) -> TargetHandle {
    TargetHandle {
        server: server.clone(),
        target: target.name.to_string(),
        instance: facts.server.as_ref().map(|s| s.instance.clone()),
        sizes: facts.server.as_ref().map(|s| s.sizes).unwrap_or_default(),
        paths: target.paths.clone(),
        default_dir: None,
        sees_log: target.sees_log,
        logs: target.logs.clone(),
        nsys: Nsys::new("nsys"),
    }
}

/// What would end this program, where it opens windows: none stays open, and no other is opened.
struct Signals {
    /// Cancelled by the first one.
    cancel: CancellationToken,
    /// A window is open, or being closed: then a second one ends nothing either.
    has_window: Arc<AtomicBool>,
}

impl Signals {
    /// Where no windows are opened a signal just ends the program. Otherwise the second one does so whatever this hangs
    /// at, which is why it is waited for on a thread of its own.
    fn listen(takes_windows: bool) -> std::io::Result<Self> {
        let (cancel, has_window) = (CancellationToken::new(), Arc::new(AtomicBool::new(false)));
        let signals = Self { cancel: cancel.clone(), has_window: has_window.clone() };
        if !takes_windows {
            return Ok(signals);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let [mut interrupt, mut terminate, mut hangup] = {
            let _of = runtime.enter();
            [
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
                signal(SignalKind::hangup())?,
            ]
        };
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                        _ = hangup.recv() => {}
                    }
                    if cancel.is_cancelled() && !has_window.load(Ordering::SeqCst) {
                        std::process::exit(1);
                    }
                    cancel.cancel();
                }
            });
        })?;
        Ok(signals)
    }
}

/// Why the rules of a running agent open no window at the moment, though the server would take one.
fn used_up(status: &Status) -> Vec<Check> {
    let only = status.watch_only.then(|| ("watch only", "it opens no window, whatever fires".to_owned()));
    let budget = spent(status).into_iter().map(|why| ("budget", why));
    let silenced = status.silences.iter().map(|silence| ("silence", silence::line_of(silence)));
    let found = only.into_iter().chain(budget).chain(silenced);
    let check = |(what, message)| Check {
        target: "the running agent".into(),
        ok: true,
        level: Level::Warn,
        what,
        message,
    };
    found.map(check).collect()
}

struct Checks {
    all: Vec<Check>,
    /// The configuration that was read, if it was one.
    file: Option<PathBuf>,
}

impl Checks {
    fn add(&mut self, target: &TargetPlan, level: impl Into<Level>, what: &'static str, message: String) {
        let level = level.into();
        self.all.push(Check {
            target: target.name.to_string(),
            ok: level != Level::Error,
            level,
            what,
            message,
        });
    }

    /// Checks that concern every capture on this server.
    /// Whether incidents can be uploaded.
    #[cfg(feature = "fleet")]
    async fn store(&mut self, config: &crate::config::store::StoreConfig) {
        let tried = match crate::agent::upload::destination(config) {
            Err(why) => Err(format!("{why:#}")),
            Ok(to) => crate::agent::pool::try_out(config, &to).await,
        };
        let ok = tried.is_ok();
        let message = tried.err().unwrap_or_else(|| {
            format!(
                "{} can be written, read and listed, and lets the agents of a pool take turns",
                config.address
            )
        });
        self.all.push(Check { target: config.pool.clone(), level: ok.into(), what: "store", message, ok });
    }

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
                if let Some(why) = target.engine.contradicted_by(info.engine) {
                    self.add(target, Level::Warn, "engine", why);
                }
                if info.device == "cpu" {
                    let message = "it runs without a GPU (device cpu): windows would show no kernels, only what its host does, and \
                                   verdicts would mostly lack evidence; what is told of loads and causes is as good as elsewhere";
                    self.add(target, Level::Warn, "device", message.into());
                }
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
            (Some((_, HealthAnswer::Healthy(took))), Some(median)) => {
                format!("answers in {}, usually {}", Span(*took), Span(median))
            }
            (Some((_, HealthAnswer::Unhealthy(why))), _) => why.clone(),
            _ => "was not asked".into(),
        };
        self.add(
            target,
            matches!(facts.health.last(), Some((_, HealthAnswer::Healthy(_)))),
            "health",
            health,
        );
        self.ranks(target, examined, now);
        self.log(target, examined);
        if target.folders.is_empty() {
            let message = "no capture.output_dir is declared: the server chooses the folder (SGLANG_TORCH_PROFILER_DIR, else /tmp), which cannot be checked beforehand, and SGLang dies when it cannot write; which of its files are of a window is told by profile_id (SGLang 0.5.15 and newer) or profile_prefix (0.5.7)";
            self.add(target, Level::Warn, "folder", message.into());
        }
        for folder in &facts.folders {
            let (level, message) = match folder.seen {
                None if is_here(target) => (Level::Error, "is not there, and SGLang dies when it cannot write; create it, writable by the server, or give path_map if the server sees other folders".into()),
                None => (Level::Warn, "is not visible to the agent: captures will be marked remote; give path_map if they share it".into()),
                Some(room) if !room.exists => (Level::Error, "is not there, and SGLang dies when it cannot write; create it, writable by the server".into()),
                Some(room) if !room.writable => (Level::Error, "takes no writes, and SGLang dies when it cannot write".into()),
                Some(room) => (Level::Ok, format!("{} free", Bytes(room.free))),
            };
            self.add(target, level, "folder", format!("{} {message}", folder.server_path));
        }
    }

    fn ranks(&mut self, target: &TargetPlan, examined: &Examined, now: Time) {
        let Some(info) = &examined.facts.server else { return };
        let (level, message) = match (&examined.loads_error, preflight::ranks(&examined.facts, info, now)) {
            (Some(error), _) => (Level::Error, format!("/v1/loads does not show which ranks work: {error}")),
            (None, Ok(ranks)) if ranks.idle.is_empty() => (Level::Ok, "every rank has work".into()),
            (None, Ok(ranks)) => {
                let message = format!("{} work, {} idle", names_of(&ranks.busy), names_of(&ranks.idle));
                (Level::Ok, message)
            }
            (None, Err(refusal @ Refusal::AllIdle)) => (Level::Warn, format!("{refusal}: {IDLE}")),
            (None, Err(refusal)) => (Level::Error, refusal.to_string()),
        };
        self.add(target, level, "ranks", message);
    }

    fn log(&mut self, target: &TargetPlan, examined: &Examined) {
        let (level, message) = match (target.sees_log, &examined.log_error, examined.facts.foreign.open()) {
            (false, ..) => {
                let how = match &self.file {
                    Some(file) => format!(
                        "add `logs: [/path/of/its.log]` to target `{}` in {}",
                        target.name,
                        file.display()
                    ),
                    None => "give it with --log".to_owned(),
                };
                (
                    Level::Warn,
                    format!(
                        "is not read: other people's windows are not seen, and a doubtful start cannot be proven; {how}"
                    ),
                )
            }
            (true, Some(error), _) => (Level::Error, format!("cannot be read, {error}")),
            (true, None, Some((_, dir))) => {
                (Level::Error, format!("another client's profile is open, writing to {dir}"))
            }
            (true, None, None) => (Level::Ok, "is read; nobody else's profile is open".into()),
        };
        self.add(target, level, "log", message);
        if let Some(stamps) = &examined.log_stamps {
            self.add(target, Level::Warn, "log", stamps.clone());
        }
    }

    /// What of the server can be watched: silence is no health where nothing can fire.
    fn watched(
        &mut self,
        target: &TargetPlan,
        facts: &Facts,
        rules: &[Rule],
        (server, servers): (&Server, usize),
    ) {
        let Some(info) = &facts.server else { return };
        let of_machine = rules.iter().find(|rule| rule.is_of_machine());
        let sees_processes = || host::ranks_of(server.base()).is_some_and(|ranks| ranks.len() > 1);
        let over_servers =
            rules.iter().filter(|rule| servers > 1 && rule.across.iter().any(|l| &**l == "target"));
        let able: Vec<&str> =
            over_servers.chain(of_machine.filter(|_| sees_processes())).map(|rule| &*rule.name).collect();
        // What a rule on signals of the user's own could do is not looked at here.
        let is_own = |condition: &Condition| catalog::entry(condition.signal).is_none();
        let is_looked_at = !rules.iter().any(|rule| rule.conditions().any(is_own));
        let able = (is_looked_at && (!able.is_empty() || of_machine.is_some())).then_some(&able[..]);
        let reach = Reach { able, of_machine: of_machine.map(|rule| &*rule.name) };
        if let Some(text) = not_watched(info.engine, &info.sizes, reach) {
            self.add(target, Level::Warn, "watched", text);
        }
    }

    /// The request that a rule would send now.
    fn rule(&mut self, target: &TargetPlan, facts: &Facts, rule: &Rule, policy: &Policy, now: Time) {
        let name = &rule.name;
        let message = match (&rule.capture, check(&rule.capture)) {
            (CaptureSpec::None, _) => Ok("captures nothing".to_owned()),
            (_, Err(refusal)) => Err(refusal.to_string()),
            // Of every rule the same would be said, that the server said nothing or has nothing to do.
            (CaptureSpec::Http(_), Ok(())) if facts.server.is_none() => return,
            (CaptureSpec::Http(http), Ok(())) => match request_preview(http, facts, policy, now) {
                Err(Refusal::AllIdle) => return,
                preview => preview.map_err(|refusal| refusal.to_string()),
            },
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
        (clock, log): (Clock, Option<PathBuf>),
        signals: &Signals,
    ) -> anyhow::Result<()> {
        if plan.store.is_some() {
            let why = "none is taken here: with a `store` windows are opened under the lease of the pool, which the running agent takes; ask it for one: `skewtrap capture start --reason \"a look\"`";
            self.add(target, false, "window", why.into());
            return Ok(());
        }
        let state = match State::open(&plan.state_dir) {
            Err(StateError::InUse { folder, holder }) => {
                let message = format!(
                    "an agent runs here ({holder}) and keeps the budget of windows in {}; ask that agent for one: `skewtrap capture start --reason \"a look\"`",
                    folder.display()
                );
                self.add(target, false, "window", message);
                return Ok(());
            }
            state => state?,
        };
        if let Some(why) = state.read_only() {
            let message = format!("none is taken, for nothing of it could be written down: {why}");
            self.add(target, false, "window", message);
            return Ok(());
        }
        let bundles = Bundles::open(&plan.incident_dir, state.agent().clone())?;
        let store = CaptureStore { state: state.clone(), bundles, clock, pool: None };
        let now = clock.now();
        let limits =
            Limits { cooldown: Duration::ZERO, captures: u32::MAX, per: Duration::from_secs(86_400) };
        let incident = format!("doctor-{}", now.nanos() / 1_000_000);
        let request = CaptureRequest {
            rule: BY_HAND,
            limits: &limits,
            target: &target.name,
            group: &target.name,
            incident: &incident,
            firing: "",
            may_predate_start: false,
            times_bound: 1.0,
        };
        let spec = CaptureSpec::Http(HttpWindow { num_steps: Some(1), ..HttpWindow::default() });
        let ledger: Ledger = state.ledger()?;
        match admit(&spec, &request, &ledger, facts, &plan.setup.policy, Some(1.0), now) {
            Err(refusal) => self.add(target, false, "window", refusal.to_string()),
            Ok(None) => {}
            Ok(Some(capture_plan)) => {
                let usual_health = facts.health.median().unwrap_or_default();
                signals.has_window.store(true, Ordering::SeqCst);
                let cancel = signals.cancel.clone();
                let taken = take_one(&store, &handle, log, &capture_plan, usual_health, cancel).await;
                signals.has_window.store(false, Ordering::SeqCst);
                let outcome = taken.context("no window was taken")?;
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

/// What is said of a server without traffic.
const IDLE: &str = "send the server a request or two, and run doctor again meanwhile";

/// Whether the server is on this machine and sees its folders, as far as its address and the
/// configuration say.
fn is_here(target: &TargetPlan) -> bool {
    let url = target.server.as_ref().and_then(|server| reqwest::Url::parse(server.base()).ok());
    let host = url.and_then(|url| url.host_str().map(ToOwned::to_owned));
    host.is_some_and(|host| host == "localhost" || host == "[::1]" || host.starts_with("127."))
}

/// The request that a rule would send now, or why it would not.
fn request_preview(http: &HttpWindow, facts: &Facts, policy: &Policy, now: Time) -> Result<String, Refusal> {
    let need = Need { bytes: 0, floor: policy.min_free };
    preflight::check(facts, need, now)?;
    let asker = WindowNaming { mark: "INCIDENT", output_dir: policy.output_dir.as_deref() };
    // What past windows taught is the running agent's; this is what it would say before the first.
    let hosts_as_usual = SizingInputs { slowness: Some(LEAST_MEASURED), ..SizingInputs::default() };
    let request = plan(http, facts, &hosts_as_usual, asker, now)?;
    let expects = request.sizing.as_deref().map_or_else(String::new, Sizing::expectation);
    let source = facts.server.as_ref().map_or_else(String::new, |server| server.model_size.source());
    let path = request.engine.start_path();
    let body = request.body.map_or_else(|| "without a body".to_owned(), |b| b.to_string());
    Ok(format!(
        "would post {path} {body}, and stop it after {} at the latest: {expects} (estimated {source}, with hosts as usual, before the server's first windows teach more)",
        Span(request.deadline)
    ))
}

fn outcome_text(outcome: &CaptureOutcome) -> (bool, String) {
    let brought = |c: &Captured| {
        let bytes: u64 = c.files.iter().map(|f| f.size).sum();
        let notes = if c.notes.is_empty() { String::new() } else { format!(" ({})", c.notes.join("; ")) };
        format!("{} files, {}, {}{notes}", c.files.len(), Bytes(bytes), serving(c))
    };
    match outcome {
        CaptureOutcome::Done(captured) => (true, brought(captured)),
        CaptureOutcome::Failed { why, captured } => {
            (false, captured.as_ref().map_or_else(|| why.clone(), |c| format!("{why}; {}", brought(c))))
        }
        CaptureOutcome::Open { .. } => {
            (false, "it may be open still: the next agent that has this state closes it, so start one".into())
        }
        other => (false, format!("it ended as {}", other.word())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skewtrap_core::status::{LimitStatus, Silence};

    #[test]
    fn what_a_running_agent_has_used_up_is_warned_of() {
        let at = Time::from_epoch_s(1_795_492_086.0);
        let limit = |of: &str, used, until| LimitStatus {
            of: of.into(),
            used,
            captures: 4,
            per_s: 86_400.0,
            cooldown_until: until,
        };
        let later = Some(at + Duration::from_secs(60));
        let mut status = Status { at, ..Status::default() };
        status.budget.limits = vec![limit("all rules", 3, None), limit("past", 1, Some(at))];
        assert!(used_up(&status).is_empty());
        status.budget.limits = vec![limit("all rules", 4, None), limit("dp-load-skew", 1, later)];
        let rule = Some("slow-rank".into());
        status.silences = vec![Silence { rule, target: None, until: at, why: None }];
        (status.watch_only, status.budget.stalled_s, status.budget.stalled_s_limit) = (true, 61.0, 60.0);
        let told = used_up(&status);
        assert_eq!(told[0].message, "it opens no window, whatever fires");
        assert_eq!(told[1].message, "61 s of 60 s of stalled serving of the last 24 h are used");
        let told = &told[2..];
        assert_eq!(told[0].message, "all rules: 4 of 4 windows of the last 24 h are used");
        assert!(told[1].message.starts_with("dp-load-skew: cools down, none before "));
        assert!(told[2].message.starts_with("slow-rank on every server until "));
        assert!(told.iter().all(|check| check.level == Level::Warn && check.ok));
    }
}
