//! `skewtrap run`: the agent beside a live server.

mod configuration;
mod generations;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use tracing_subscriber::filter::LevelFilter;

use self::configuration::config_and_files;
pub use self::configuration::{config_of, source_of};
use self::generations::{Generation, ListFetcher, Watched};
use super::wrong;
use crate::act::log_queue;
use crate::agent::BackgroundRuntime;
use crate::agent::plan::{Flags, Plan};
use crate::config::file::{Config, LogFormatText};
use crate::observe::changed::Changed;
use skewtrap_core::amount::Span;
use skewtrap_core::capture::CaptureSpec;
use skewtrap_core::capture::sizing::max_stall_words;

/// How often the files of the configuration are checked for changes.
const CHECK_FILES_EVERY: Duration = Duration::from_secs(1);

/// How often a node says to systemd that it lives, where that has not said how often.
#[cfg(feature = "fleet")]
const NODE_PULSE: Duration = Duration::from_secs(10);
/// What a node may take to end.
#[cfg(feature = "fleet")]
const NODE_GRACE: Duration = Duration::from_secs(2);

/// What a node's agent that has no store is told.
const NODE_NEEDS_STORE: &str = "`--role node` needs a store, in which it hears of windows: write `store: s3://BUCKET/PREFIX` and `pool:` as the agent beside the server has them, and give the file with --config";

/// Watches a server, and takes a window at the onset of an imbalance.
///
/// Without a configuration file it watches --url (through /v1/loads and /metrics) and --log with
/// the shipped rules. At start it prints what it may do to the server.
#[derive(Clone, Debug, Args)]
pub struct RunCommand {
    #[command(flatten)]
    args: RunArgs,
    /// What is logged: error, warn, info, debug, trace; SKEWTRAP_LOG has it otherwise [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<LevelFilter>,
}

/// What is watched, and where things are kept.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// The server, as http://127.0.0.1:30000
    #[arg(long, value_name = "URL", value_parser = super::server_url)]
    url: Option<String>,
    /// Its log (repeatable; - is standard input)
    #[arg(long, value_name = "FILE")]
    log: Vec<String>,
    /// A configuration file, instead of --url and --log [default: SKEWTRAP_CONFIG, else skewtrap.yaml here]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["url", "log"])]
    config: Option<PathBuf>,
    /// A rule file or folder, instead of the shipped rules (repeatable)
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    rules: Vec<PathBuf>,
    /// The folder that the server may write profiles below, as the server sees it; a relative one starts from
    /// the folder where the agent is started
    #[arg(long, value_name = "DIR")]
    output_dir: Option<String>,
    /// What this agent does: `agent` watches servers; `node` watches nothing and brings the summaries of this host's
    /// ranks into the store when another agent of its pool has a window open
    #[arg(long, value_enum, value_name = "ROLE", default_value_t = Role::Agent)]
    role: Role,
    /// What `--role node` calls this host, if not by its name
    #[arg(long, env = "SKEWTRAP_NODE", value_name = "NAME")]
    node: Option<String>,
    /// Do everything but open windows
    #[arg(long)]
    watch_only: bool,
    /// Read logs from their beginning
    #[arg(long)]
    from_start: bool,
    /// Where budgets, open windows and undelivered messages are kept
    #[arg(long, value_name = "DIR")]
    state_dir: Option<String>,
    /// Where incidents are kept
    #[arg(long, value_name = "DIR")]
    incident_dir: Option<String>,
    /// Address of the status page and the API
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<String>,
}

/// What an agent does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Role {
    /// Watches servers, and opens windows.
    #[default]
    Agent,
    /// Brings its host's ranks of other agents' windows.
    Node,
}

impl RunArgs {
    /// The arguments of the demo: a server, its log, and the folders of state and incidents.
    pub fn of_demo(url: &str, log: &str, state_dir: &str, incident_dir: &str) -> Self {
        Self {
            url: Some(url.into()),
            log: vec![log.into()],
            config: None,
            rules: Vec::new(),
            output_dir: None,
            role: Role::Agent,
            node: None,
            watch_only: false,
            from_start: true,
            state_dir: Some(state_dir.into()),
            incident_dir: Some(incident_dir.into()),
            listen: None,
        }
    }
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// The configuration is wrong, or the state cannot be opened.
pub fn run(command: &RunCommand) -> anyhow::Result<ExitCode> {
    let args = &command.args;
    let (config, read) = config_and_files(args);
    let (config, read) = (config?, read.files.into_inner());
    let _last_lines = log_queue::FlushAtEnd;
    start_logging(config.log, command.log_level);
    if args.role == Role::Node {
        return run_node(&config, args.node.clone());
    }
    let source = source_of(args);
    if config.targets.is_empty() && config.discover.is_none() {
        let file = source.0.as_ref().map_or_else(String::new, |path| path.display().to_string());
        bail!(wrong(&format!(
            "nothing to watch: {file} names no server; list one under `targets`, or name under `discover` where they are \
             listed (`skewtrap init URL` writes a file to begin with)"
        )));
    }
    let flags = Flags { watch_only: args.watch_only, from_start: args.from_start };
    match source {
        (Some(path), _) => {
            tracing::info!("the configuration is {}", path.display());
            if let Some((old, new)) =
                config.state_dir.as_deref().and_then(|dir| state_left_behind(&path, dir))
            {
                tracing::warn!(
                    "{} holds the state of an earlier agent, and is not read: a relative `state_dir` starts from the folder of \
                     the configuration, which makes it {}. To go on with it, move it there while no agent runs",
                    old.display(),
                    new.display()
                );
            }
        }
        (None, Some(unused)) => tracing::warn!("{unused}"),
        (None, None) => {}
    }
    let plan = Plan::of(&config, &flags).map_err(|e| wrong(&format!("{e:#}")))?;
    announce(&plan);
    raise_descriptor_limit();
    // Polling and decisions run on this thread, so that a sample changes no thread; requests of a window run
    // on the other and do not wait for them.
    let own = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let background = BackgroundRuntime::start()?;
    let mut fetching = ListFetcher::new(background.handle().clone());
    fetching.fetch_for(&config);
    let watched = Watched {
        args: args.clone(),
        changed: Changed::since_now(&read),
        files: Arc::new(Mutex::new(read)),
        fetching: Arc::new(Mutex::new(fetching)),
        background: background.handle().clone(),
    };
    let ended = own.block_on(watched.watch(Generation {
        plan,
        discovers: config.discover.is_some(),
        targets: config.targets,
        settings: config.settings,
        signals: config.signals,
    }));
    // A thread may be blocked on a pipe that nobody reads: do not wait for it without end.
    own.shutdown_timeout(Duration::from_secs(1));
    background.end(Duration::from_secs(1));
    ended.map(|()| ExitCode::SUCCESS)
}

#[cfg(not(feature = "fleet"))]
fn run_node(_: &Config, _: Option<String>) -> anyhow::Result<ExitCode> {
    bail!(wrong(
        "this binary was built without stores, which the role of a node needs: build it with `--features fleet`, or take a package"
    ))
}

#[cfg(feature = "fleet")]
fn run_node(config: &Config, name: Option<String>) -> anyhow::Result<ExitCode> {
    use tokio::signal::unix::{SignalKind, signal};
    use tokio_util::sync::CancellationToken;

    use crate::act::systemd;
    use crate::agent::node::{self, NodePlan};
    use skewtrap_core::capture::path_map::PathMap;
    let Some(store) = config.store.clone() else {
        bail!(wrong(NODE_NEEDS_STORE));
    };
    let paths = config.targets.iter().map(|target| {
        let map = target.path_map.iter().map(|(server, agent)| (server.clone(), PathBuf::from(agent)));
        (target.name.to_string(), PathMap(map.collect()))
    });
    let state = config.state_dir.as_ref().map_or_else(crate::agent::plan::default_state_dir, PathBuf::from);
    let name = name.unwrap_or_else(crate::agent::plan::host);
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        || name.starts_with('.')
    {
        bail!(wrong(&format!(
            "`{name}` is no name of a node: write letters, digits, `-`, `_` and `.` (--node)"
        )));
    }
    let plan = NodePlan { name, store, paths: paths.collect(), scratch: state.join("node") };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let cancel = CancellationToken::new();
        let (stop, mut terminate) = (cancel.clone(), signal(SignalKind::terminate())?);
        let mut hangups = signal(SignalKind::hangup())?;
        let mut pulse = tokio::time::interval(systemd::watchdog().unwrap_or(NODE_PULSE));
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => break,
                    _ = tokio::signal::ctrl_c() => break,
                    Some(()) = hangups.recv() => tracing::info!(
                        "a node reads its configuration at its start only: restart it for what has changed"
                    ),
                    // On the thread of the node itself: where that hangs, this does.
                    _ = pulse.tick() => systemd::alive(),
                }
            }
            systemd::stopping(NODE_GRACE);
            stop.cancel();
        });
        systemd::ready("bringing the ranks of this host");
        node::run(plan, cancel).await
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended.map(|()| ExitCode::SUCCESS)
}

/// The folder of a state that an agent kept while relative paths started from where it was started (0.1), and
/// the one that is used now and holds none.
fn state_left_behind(configuration: &Path, state_dir: &str) -> Option<(PathBuf, PathBuf)> {
    let new = PathBuf::from(state_dir);
    let folder = configuration.parent().filter(|folder| !folder.as_os_str().is_empty())?;
    let old = new.strip_prefix(folder).ok()?.to_owned();
    let holds_state = |dir: &Path| dir.join("state.sqlite").exists();
    (holds_state(&old) && !holds_state(&new)).then_some((old, new))
}

/// Every server takes two or three connections: with the usual soft limit of 1,024 a few hundred could not be
/// asked.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where it cannot be raised, the sources that lack a connection say so.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Logs what the agent may do to the server, before it does anything.
fn announce(plan: &Plan) {
    for note in &plan.notes {
        tracing::warn!("{note}");
    }
    for target in &plan.targets {
        let place = target.server.as_ref().map_or("its logs", |s| s.base());
        tracing::info!("watching {} ({place})", target.name);
    }
    let policy = &plan.setup.policy;
    if policy.watch_only {
        return tracing::info!("--watch-only: no window is opened, whatever fires");
    }
    for rule in &plan.setup.rules {
        match &rule.capture {
            CaptureSpec::None => tracing::info!("rule {} opens no window", rule.name),
            capture => tracing::info!("rule {} may open {}", rule.name, may_do(capture)),
        }
    }
    let folder = policy.output_dir.as_deref().unwrap_or("the server's own profile folder");
    tracing::info!(
        "windows write to {folder}; at most {} a day, one at a time, and {} of stalled serving a day; incidents are kept in {}",
        policy.budget.windows,
        Span(policy.budget.stalled),
        plan.incident_dir.display()
    );
}

fn may_do(spec: &CaptureSpec) -> String {
    match spec {
        CaptureSpec::None => "no window".into(),
        CaptureSpec::Http(http) => {
            let steps = match http.num_steps {
                Some(steps) => format!("{steps} steps"),
                None => format!("as many steps as cost a rank {}", max_stall_words(http).unwrap_or_default()),
            };
            format!("a window of {steps}, stopped after {} at the latest", Span(http.deadline))
        }
        CaptureSpec::CudaProfilerApi(_) => "a window of the CUDA profiler API".into(),
        CaptureSpec::Nsys(nsys) => format!("an nsys window of {}", Span(nsys.duration)),
        CaptureSpec::Command(command) => format!("{} (a program)", command.argv.join(" ")),
    }
}

fn start_logging(format: LogFormatText, level: Option<LevelFilter>) {
    use tracing_subscriber::filter::Targets;
    use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
    use tracing_subscriber::util::SubscriberInitExt as _;
    let has_colours = match anstream::ColorChoice::global() {
        anstream::ColorChoice::Always | anstream::ColorChoice::AlwaysAnsi => true,
        anstream::ColorChoice::Never => false,
        anstream::ColorChoice::Auto => std::io::IsTerminal::is_terminal(&std::io::stderr()),
    };
    let usual = Targets::new().with_default(LevelFilter::INFO);
    let asked = match level {
        Some(level) => Ok(Targets::new().with_default(level)),
        None => std::env::var("SKEWTRAP_LOG").map_or(Ok(usual.clone()), |text| text.parse()),
    };
    let (filter, wrong) = asked.map_or_else(|e| (usual, Some(e)), |filter| (filter, None));
    let queue = log_queue::to_stderr().ok();
    let writer = move || -> Box<dyn std::io::Write> {
        match &queue {
            Some(queue) => Box::new(queue.clone()),
            // Without a thread of its own, as every other program.
            None => Box::new(std::io::stderr()),
        }
    };
    let lines =
        tracing_subscriber::fmt::layer().with_writer(writer).with_target(false).with_ansi(has_colours);
    let lines = match format {
        LogFormatText::Text => lines.boxed(),
        LogFormatText::Json => lines.json().boxed(),
    };
    let set = tracing_subscriber::registry().with(lines.with_filter(filter)).try_init();
    // A second start in one process (a test) keeps the first one's log.
    drop(set);
    if let Some(e) = wrong {
        tracing::warn!(
            "SKEWTRAP_LOG is not understood ({e}); it takes levels like `debug` or `skewtrap::act=debug,info`"
        );
    }
}
