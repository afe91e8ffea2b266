//! The lives of one `skewtrap run`: where the list of discovered targets changes, the agent is ended like any
//! other and begun anew with the new list. What it holds is on disk.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::configuration::{config_and_files, fetch_list, fetched_list};
use super::{CHECK_FILES_EVERY, RunArgs, announce};
use crate::agent::plan::{Flags, Plan, rules_of};
use crate::agent::{self, ReadConfiguration, Reload};
use crate::clock::Clock;
use crate::config::discover::Discover;
use crate::config::effective::Settings;
use crate::config::file::Config;
use crate::config::signal::{OwnSource, UserSignalConfig, user_signals_of};
use crate::config::target::Target;
use crate::config::tree::Place;
use crate::observe::changed::Changed;

/// What one life of the agent is begun with.
pub(super) struct Generation {
    pub(super) plan: Plan,
    /// Whether its configuration names a list of targets.
    pub(super) discovers: bool,
    /// All of them.
    pub(super) targets: Vec<Target>,
    /// What its configuration said.
    pub(super) settings: Settings,
    /// The user's own signals.
    pub(super) signals: Vec<UserSignalConfig>,
}

/// What all lives have in common.
pub(super) struct Watched {
    pub(super) args: RunArgs,
    /// The files of the configuration, as they were when it was read.
    pub(super) changed: Changed,
    pub(super) files: Arc<Mutex<Vec<PathBuf>>>,
    pub(super) fetching: Arc<Mutex<ListFetcher>>,
    pub(super) background: Handle,
}

impl Watched {
    /// Runs the agent until SIGTERM or SIGINT.
    pub(super) async fn watch(self, mut generation: Generation) -> anyhow::Result<()> {
        let cancel = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let stop = cancel.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            stop.cancel();
        });
        let Self { args, changed, files, fetching, background } = self;
        let reloads = Arc::new(Notify::new());
        // Over all lives: what changes while one ends is for the next.
        tokio::spawn(request_reloads(signal(SignalKind::hangup())?, changed, files.clone(), reloads.clone()));
        loop {
            let next = Arc::new(Mutex::new(None));
            let (discovers, targets) = (generation.discovers, without_places(&generation.targets));
            let reload = Rereading {
                args: args.clone(),
                files: files.clone(),
                fetching: fetching.clone(),
                discovers,
                targets: targets.clone(),
                settings: generation.settings,
                signals: Mutex::new(generation.signals),
                next: next.clone(),
            };
            let run = agent::Run {
                clock: Clock::start(),
                cancel: cancel.child_token(),
                reloads: reloads.clone(),
                on_effect: Box::new(|_| {}),
                reload: reload.reader(),
                serves: true,
                background: Some(background.clone()),
            };
            agent::run(generation.plan, run).await?;
            if cancel.is_cancelled() {
                return Ok(());
            }
            let Some(after) = crate::world::lock(&next).take() else { return Ok(()) };
            generation = after;
            tracing::info!("{}", told(&targets, &without_places(&generation.targets)));
            announce(&generation.plan);
        }
    }
}

/// Reads the configuration again for one life of the agent.
struct Rereading {
    args: RunArgs,
    files: Arc<Mutex<Vec<PathBuf>>>,
    fetching: Arc<Mutex<ListFetcher>>,
    discovers: bool,
    targets: Vec<Target>,
    settings: Settings,
    /// The user's own signals, as they were read last.
    signals: Mutex<Vec<UserSignalConfig>>,
    /// What the life after it is begun with.
    next: Arc<Mutex<Option<Generation>>>,
}

impl Rereading {
    fn reader(self) -> ReadConfiguration {
        Arc::new(move || self.read())
    }

    fn read(&self) -> anyhow::Result<Reload> {
        let (config, seen) = config_and_files(&self.args);
        let (new, errors) = (seen.files.into_inner(), seen.errors.into_inner());
        {
            // A broken file names no other files, so those that it named before are still watched.
            let mut files = crate::world::lock(&self.files);
            match &config {
                Ok(_) => *files = new,
                Err(_) => {
                    let fresh: Vec<PathBuf> = new.into_iter().filter(|n| !files.contains(n)).collect();
                    files.extend(fresh);
                }
            }
        }
        let config = config.map_err(|error| match errors.is_empty() {
            true => error,
            false => error.context(errors.join("; ")),
        })?;
        let discovers = config.discover.is_some();
        let has_other_targets = without_places(&config.targets) != self.targets;
        let is_other_list = (discovers || self.discovers) && has_other_targets;
        let begins_anew =
            is_other_list || !keep_their_series(&crate::world::lock(&self.signals), &config.signals);
        if begins_anew {
            // One that cannot be followed, for want of a key say, ends nothing.
            let flags = Flags { watch_only: self.args.watch_only, from_start: false };
            let plan = Plan::of(&config, &flags)?;
            let (targets, settings) = (config.targets.clone(), config.settings.clone());
            let signals = config.signals.clone();
            *crate::world::lock(&self.next) =
                Some(Generation { plan, discovers, targets, settings, signals });
        }
        let mut waiting = Vec::new();
        if !begins_anew {
            waiting.extend(has_other_targets.then(|| "targets".to_owned()));
            waiting
                .extend(self.settings.changed_in(&config.settings).into_iter().filter(|k| needs_restart(k)));
        }
        crate::world::lock(&self.signals).clone_from(&config.signals);
        crate::world::lock(&self.fetching).fetch_for(&config);
        Ok(Reload {
            rules: rules_of(&config),
            catalog: config.catalog.clone(),
            own: user_signals_of(&config.signals, &config.catalog, &config.targets),
            receivers: config.receivers,
            manual_capture: config.capture,
            watch_only: self.args.watch_only || config.watch_only,
            min_free: config.keep.min_free,
            budget: config.budget,
            waiting,
            begins_anew,
        })
    }
}

/// Whether what a key says is in force from the start of an agent only. Receivers have sentences of their own.
fn needs_restart(key: &str) -> bool {
    const READ_AGAIN: [&str; 6] = ["budget", "capture", "discover", "receivers", "signals", "watch_only"];
    let top = key.split(['.', '[']).next().unwrap_or_default();
    // Queries are begun with the agent, and so is the room that is looked after where windows write.
    let is_begun = key.contains(".prometheus.") || key.ends_with(".output_dir");
    is_begun || key != "keep.min_free" && !READ_AGAIN.contains(&top)
}

/// Whether the series of the user's signals go on being theirs where the signals are read anew: each has a
/// number by its place, so further ones may only follow behind, and queries go on being asked as they were at
/// the start.
fn keep_their_series(before: &[UserSignalConfig], now: &[UserSignalConfig]) -> bool {
    let numbered = |of: &UserSignalConfig| (of.name.clone(), of.kind);
    let queries = |all: &[UserSignalConfig]| -> Vec<UserSignalConfig> {
        let are_asked = all.iter().filter(|s| matches!(s.source, OwnSource::Prometheus { .. }));
        are_asked.map(|signal| UserSignalConfig { place: Place::default(), ..signal.clone() }).collect()
    };
    let is_there = before.iter().zip(now).all(|(before, now)| numbered(before) == numbered(now));
    before.len() <= now.len() && is_there && queries(before) == queries(now)
}

/// Targets to be compared, in the order of their names: in which line a setting stands makes no other target.
fn without_places(targets: &[Target]) -> Vec<Target> {
    let mut targets: Vec<Target> =
        targets.iter().map(|target| Target { settings: Settings::default(), ..target.clone() }).collect();
    targets.sort_by(|a, b| a.name.cmp(&b.name));
    targets
}

/// Why the agent begins anew: how two lists of targets differ, for people, else that signals do. A server at
/// another address is another one.
fn told(before: &[Target], now: &[Target]) -> String {
    if before == now {
        return "signals were removed, put before others or asked for otherwise: the agent begins anew"
            .into();
    }
    let key = |target: &Target| (target.name.clone(), target.url.clone());
    let missing = |of: &[Target], without: &[Target]| {
        of.iter().filter(|t| !without.iter().any(|other| key(other) == key(t))).count()
    };
    let (came, went) = (missing(now, before), missing(before, now));
    let same = |t: &&Target| before.iter().any(|other| key(other) == key(t));
    let changed = now.iter().filter(same).filter(|t| !before.contains(t)).count();
    let others = if changed > 0 { format!(", {changed} changed") } else { String::new() };
    format!("the list of targets has changed: {came} came, {went} went{others}")
}

/// Fetches the list of targets from where the configuration says that it is, if it is fetched.
pub(super) struct ListFetcher {
    background: Handle,
    /// From where, and into which file.
    of: Option<(Discover, PathBuf)>,
    task: Option<AbortHandle>,
}

impl ListFetcher {
    /// One that fetches nothing, and will on that runtime.
    pub(super) fn new(background: Handle) -> Self {
        Self { background, of: None, task: None }
    }

    /// Goes on as this configuration says.
    pub(super) fn fetch_for(&mut self, config: &Config) {
        let from = config.discover.clone().and_then(|from| Some((from.every()?, from)));
        let of = from.as_ref().map(|(_, from)| (from.clone(), fetched_list(config)));
        if of == self.of {
            return;
        }
        if let Some(before) = self.task.take() {
            before.abort();
        }
        if let (Some((every, from)), Some((_, path))) = (from, &of) {
            let task = self.background.spawn(fetch_list(from, every, path.clone()));
            self.task = Some(task.abort_handle());
        }
        self.of = of;
    }
}

/// Requests that the configuration be read again at every SIGHUP, and whenever a file that it was read from has
/// changed.
async fn request_reloads(
    mut hangups: Signal,
    mut changed: Changed,
    files: Arc<Mutex<Vec<PathBuf>>>,
    reloads: Arc<Notify>,
) {
    let current_files = || crate::world::lock(&files).clone();
    let mut ticks = tokio::time::interval(CHECK_FILES_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        let is_hangup = tokio::select! {
            hangup = hangups.recv() => hangup.is_some(),
            _ = ticks.tick() => false,
        };
        let files_now = current_files();
        // A file system that hangs must not hang the agent.
        let check = crate::world::blocking(move || {
            let is_changed = if is_hangup {
                changed = Changed::since_now(&files_now);
                true
            } else {
                changed.poll(&files_now)
            };
            (changed, is_changed)
        });
        let Ok((back, is_changed)) = check.await else { return };
        changed = back;
        if is_changed {
            // A request that is pending will read the newest files.
            reloads.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skewtrap_core::signal::catalog::Kind;

    #[test]
    fn signals_may_be_added_behind_the_others_and_anything_else_would_mix_their_series() {
        let signal = |name: &str, kind, source| UserSignalConfig {
            name: name.into(),
            unit: "".into(),
            kind,
            target: None,
            place: Place::default(),
            source,
        };
        let pattern = |name: &str| signal(name, Kind::Gauge, OwnSource::Pattern("a (?<value>[0-9]+)".into()));
        let (a, b, c) = (pattern("a"), pattern("b"), pattern("c"));
        let both = [a.clone(), b.clone()];
        assert!(keep_their_series(&both, &both));
        assert!(keep_their_series(&both, &[a.clone(), b.clone(), c.clone()]), "one more");
        let line = Place { line: 7, ..Place::default() };
        assert!(keep_their_series(&both, &[UserSignalConfig { place: line, ..a.clone() }, b.clone()]));
        for mixed in [
            vec![b.clone()],
            vec![a.clone()],
            vec![b.clone(), a.clone()],
            vec![c, a.clone(), b.clone()],
            vec![a, UserSignalConfig { kind: Kind::Counter, ..b }],
        ] {
            assert!(!keep_their_series(&both, &mixed), "{mixed:?}");
        }
    }
}
