//! The configuration that `skewtrap run` runs by: of a file or of the flags, with the targets that are discovered.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use tokio::time::MissedTickBehavior;

use super::{CHECK_FILES_EVERY, NODE_NEEDS_STORE, Role, RunArgs};
use crate::act::log_queue;
use crate::cli::config_path::{self, Unused};
use crate::cli::wrong;
use crate::config::diagnostic::Diagnostic;
use crate::config::discover::{self, Discover};
use crate::config::file::{self, Config};
use crate::config::target::Target;
use crate::observe::configuration;
use crate::observe::discover as asked;
use skewtrap_core::capture::CaptureSpec;

/// The file that the configuration is read from, if one is; and the one that is not, since a flag stands in its
/// place.
pub fn source_of(args: &RunArgs) -> (Option<PathBuf>, Option<Unused>) {
    let instead =
        [("--url", args.url.is_some()), ("--log", !args.log.is_empty()), ("--rules", !args.rules.is_empty())];
    let path = config_path::of(args.config.as_deref());
    match instead.into_iter().find(|(_, is_given)| *is_given) {
        Some((flag, _)) => (None, path.map(|path| Unused { path, flag })),
        None => (path, None),
    }
}

/// The configuration of a file, or of the flags alone.
///
/// # Errors
/// The configuration is wrong; every problem is printed.
pub fn config_of(args: &RunArgs) -> anyhow::Result<Config> {
    config_and_files(args).0
}

/// The configuration, and every file and folder that it was read from, even if it is wrong.
pub(super) fn config_and_files(args: &RunArgs) -> (anyhow::Result<Config>, ReadLog) {
    let seen = ReadLog::default();
    let config = config_from(args, &seen);
    (config, seen)
}

/// What was seen when a configuration was read.
#[derive(Debug, Default)]
pub(super) struct ReadLog {
    /// Every file and folder that it was read from.
    pub(super) files: RefCell<Vec<PathBuf>>,
    /// What is wrong, a line each, for whoever does not see standard error.
    pub(super) errors: RefCell<Vec<String>>,
}

fn config_from(args: &RunArgs, seen: &ReadLog) -> anyhow::Result<Config> {
    let mut config = match source_of(args).0 {
        Some(path) => {
            let mut config = read(&path, seen)?;
            discover(&mut config, path.parent().unwrap_or(Path::new(".")), seen)?;
            config
        }
        None => of_flags(args, seen)?,
    };
    if let Some(dir) = &args.output_dir {
        // Like every path of the command line from the folder where the agent is started; the server has another one.
        let dir = &std::path::absolute(dir).map_or_else(|_| dir.clone(), |dir| dir.display().to_string());
        let of_rules = config.rules.iter_mut().map(|checked| &mut checked.rule.capture);
        for capture in of_rules.chain([&mut config.capture]) {
            if let CaptureSpec::Http(http) | CaptureSpec::CudaProfilerApi(http) = capture {
                http.output_dir.get_or_insert_with(|| dir.clone());
            }
        }
    }
    if args.state_dir.is_some() {
        config.state_dir.clone_from(&args.state_dir);
    }
    if args.incident_dir.is_some() {
        config.incident_dir.clone_from(&args.incident_dir);
    }
    if let Some(listen) = &args.listen {
        if listen.parse::<SocketAddr>().is_err() {
            bail!(wrong(&format!(
                "`--listen {listen}` is no address and port: write an IP address, as in 127.0.0.1:9464"
            )));
        }
        config.listen.clone_from(listen);
    }
    Ok(config)
}

/// The file in which a list that is fetched is kept, so that the next agent has it at once.
pub(super) fn fetched_list(config: &Config) -> PathBuf {
    let state = config.state_dir.as_ref().map_or_else(crate::agent::plan::default_state_dir, PathBuf::from);
    state.join("discovered.json")
}

/// Fetches a list of targets again and again, and writes it where it is read whenever it changes.
pub(super) async fn fetch_list(from: Discover, every: Duration, path: PathBuf) {
    let mut told = String::new();
    // When the file is watched already.
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + CHECK_FILES_EVERY, every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let trouble = fetch_once(&from, &path).await.err().map_or_else(String::new, |e| format!("{e:#}"));
        if trouble != told && !trouble.is_empty() {
            let place = from.place();
            tracing::warn!("the list of targets at {place}: {trouble}; the targets of before are watched on");
        }
        told = trouble;
    }
}

async fn fetch_once(from: &Discover, path: &Path) -> anyhow::Result<()> {
    let text = asked::list(from).await?;
    discover::targets_of(&text).map_err(anyhow::Error::msg)?;
    let path = path.to_owned();
    let written = crate::world::blocking(move || -> std::io::Result<()> {
        if std::fs::read_to_string(&path).is_ok_and(|known| known == text) {
            return Ok(());
        }
        let partial = path.with_extension("partial");
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        std::fs::write(&partial, &text)?;
        std::fs::rename(partial, &path)
    });
    Ok(written.await??)
}

/// Adds the targets of the file that lists them, if there is one. One that is not there yet lists none.
fn discover(config: &mut Config, beside: &Path, seen: &ReadLog) -> anyhow::Result<()> {
    let path = match &config.discover {
        None => return Ok(()),
        Some(Discover::File(file)) => beside.join(file),
        Some(_) => fetched_list(config),
    };
    seen.files.borrow_mut().push(path.clone());
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            tracing::warn!("{} is not there: no target is discovered before it is", path.display());
            return Ok(());
        }
        Err(e) => bail!(wrong(&format!("cannot read {}: {e}", path.display()))),
    };
    let found = discover::targets_of(&text).map_err(|why| wrong(&format!("{}: {why}", path.display())))?;
    for target in found {
        if config.targets.iter().any(|known| known.name == target.name) {
            bail!(wrong(&format!("{}: a target is called `{}` already", path.display(), target.name)));
        }
        config.targets.push(Target { is_discovered: true, ..target });
    }
    Ok(())
}

fn of_flags(args: &RunArgs, seen: &ReadLog) -> anyhow::Result<Config> {
    if args.role == Role::Node {
        bail!(wrong(NODE_NEEDS_STORE));
    }
    if args.url.is_none() && args.log.is_empty() {
        bail!(wrong(
            "nothing to watch: give --url http://127.0.0.1:30000, --log FILE, or --config FILE; there is no skewtrap.yaml here (`skewtrap init URL` writes one)"
        ));
    }
    let rule_paths: Vec<String> = args.rules.iter().map(|p| p.display().to_string()).collect();
    let text = if rule_paths.is_empty() {
        file::DEFAULTS.to_owned()
    } else {
        format!("rules: {}", serde_json::to_string(&rule_paths)?)
    };
    let mut config = checked(RULES_FLAG, &text, Path::new(""), seen)?;
    config.targets = vec![Target::of(args.url.as_deref(), &args.log)];
    Ok(config)
}

fn read(path: &Path, seen: &ReadLog) -> anyhow::Result<Config> {
    seen.files.borrow_mut().push(path.to_owned());
    let text =
        std::fs::read_to_string(path).map_err(|e| wrong(&format!("cannot read {}: {e}", path.display())))?;
    checked(&path.display().to_string(), &text, path.parent().unwrap_or(Path::new(".")), seen)
}

fn checked(name: &str, text: &str, beside: &Path, seen: &ReadLog) -> anyhow::Result<Config> {
    let load = |path: &str| {
        seen.files.borrow_mut().push(beside.join(path));
        configuration::rule_files(&beside.join(path))
    };
    let loaded = file::load(name, text, &load);
    let diagnostics = loaded.diagnostics.into_iter().map(|d| d.without_lines_of(RULES_FLAG));
    let diagnostics: Vec<Diagnostic> = diagnostics.collect();
    for diagnostic in &diagnostics {
        log_queue::print(&diagnostic.to_string());
    }
    let errors = diagnostics.iter().filter(|d| d.is_error());
    seen.errors.borrow_mut().extend(errors.map(Diagnostic::line_of));
    loaded.config.ok_or_else(|| match name {
        RULES_FLAG => wrong("what --rules names cannot be used"),
        file => wrong(&format!("{file} is wrong")),
    })
}

/// What the configuration that is made of the flags is called: only its rules can be wrong.
const RULES_FLAG: &str = "--rules";
