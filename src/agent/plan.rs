//! From a configuration to what the agent is made of: the core's setup, the sources to follow, the
//! servers to probe, the receivers. Secrets are read here, once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::tz::TimeZone;
use sha2::{Digest as _, Sha256};

use super::receivers::{self, UnusableReceiver, secret_of};
use crate::act::notify::{Receiver, StormCap};
use crate::config::file::{Config, Keep};
use crate::config::receiver as configured;
use crate::config::signal::{OwnSource, UserSignalConfig, user_signals_of};
use crate::config::store::StoreConfig;
use crate::config::target::{EngineText, Target};
use crate::http::{Secret, Server, client};
use crate::observe::{host, poll, promql, tail};
use skewtrap_core::capture::CaptureSpec;
use skewtrap_core::capture::admit::Policy;
use skewtrap_core::capture::facts::ServerKind;
use skewtrap_core::capture::governor::Ledger;
use skewtrap_core::capture::path_map::PathMap;
use skewtrap_core::rule::Rule;
use skewtrap_core::signal::observation::SourceId;
use skewtrap_core::signal::sample::{Source, TargetId};
use skewtrap_core::signal::source::WatchedSource;
use skewtrap_core::signal::user_metric::ExtraPage;
use skewtrap_core::watch::{Mode, Setup, WatchedTarget};

/// Sources of this id and above are the servers' processes, one for each server.
const FIRST_HOST: u16 = u16::MAX / 2 + 1;

/// What the command line adds to a configuration.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--watch-only`.
    pub watch_only: bool,
    /// `--from-start`.
    pub from_start: bool,
}

/// Everything the agent needs to start.
#[derive(Debug)]
pub struct Plan {
    /// The core's part, without the ledger.
    pub setup: Setup,
    /// The servers.
    pub targets: Vec<TargetPlan>,
    /// What is followed.
    pub sources: Vec<SourcePlan>,
    /// The receivers of messages.
    pub receivers: Vec<Receiver>,
    /// Receivers that lack their secret.
    pub unusable: Vec<UnusableReceiver>,
    /// The receivers as they are configured: a reload is compared with them.
    pub configured: Vec<configured::Receiver>,
    /// How many new incidents are reported to a receiver.
    pub storm_cap: StormCap,
    /// How much is kept of bundles.
    pub keep: Keep,
    /// Where incidents are uploaded.
    pub store: Option<StoreConfig>,
    /// The folder of the state.
    pub state_dir: PathBuf,
    /// The folder of the bundles.
    pub incident_dir: PathBuf,
    /// The API's address.
    pub listen: String,
    /// Health and metrics alone.
    pub metrics_listen: Option<String>,
    /// Names under which the API is reached.
    pub hosts: Vec<String>,
    /// The page's address for people, where the configuration says it.
    pub external_url: Option<String>,
    /// The API's token.
    pub token: Option<Secret>,
    /// What is captured where a person, or an alert of another system, asks for it.
    pub manual_capture: CaptureSpec,
    /// Sentences for the operator, logged at start.
    pub notes: Vec<String>,
}

/// One server.
#[derive(Clone, Debug)]
pub struct TargetPlan {
    pub target: TargetId,
    pub name: Arc<str>,
    /// Where it is; `None` for a target that is only logs.
    pub server: Option<Server>,
    /// Whether a list named it, and not the configuration.
    pub is_discovered: bool,
    /// Which engine the configuration says that it runs.
    pub engine: EngineText,
    /// Its paths and ours.
    pub paths: PathMap,
    /// Folders whose room is watched, in the server's view.
    pub folders: Vec<String>,
    /// Where the agent itself writes what a window captures.
    pub kept_in: PathBuf,
    /// Whether its log is read.
    pub sees_log: bool,
    /// Its logs that are files.
    pub logs: Vec<PathBuf>,
}

impl TargetPlan {
    /// Every folder whose room a window needs: its name for people, and the agent's path.
    pub fn folders(&self) -> Vec<(String, PathBuf)> {
        let servers = self.folders.iter().map(|path| (path.clone(), self.paths.agent_view(path)));
        servers.chain([(self.kept_in.display().to_string(), self.kept_in.clone())]).collect()
    }
}

#[derive(Clone, Debug)]
pub enum SourcePlan {
    /// A log.
    Tail(tail::Config),
    /// Loads or metrics.
    Poll(poll::Config),
    Query(promql::Config),
    /// The engine's processes on this machine.
    Host(host::Config),
}

impl Plan {
    /// Makes it.
    ///
    /// # Errors
    /// A secret, a file of certificates or a zone cannot be had.
    pub fn of(config: &Config, flags: &Flags) -> Result<Self> {
        let watch_only = flags.watch_only || config.watch_only;
        let mut captures = config.rules.iter().map(|c| &c.rule.capture).chain([&config.capture]);
        let output_dir = captures.find_map(output_dir_of);
        let state_dir = config.state_dir.as_ref().map_or_else(default_state_dir, PathBuf::from);
        let incident_dir =
            config.incident_dir.as_ref().map_or_else(|| state_dir.join("incidents"), PathBuf::from);
        // Readers of a message do not know where the agent was started.
        let incident_dir = std::path::absolute(&incident_dir).unwrap_or(incident_dir);
        let mut targets = Vec::new();
        let mut sources = Vec::new();
        let mut named = Vec::new();
        let mut clients = Clients::default();
        let mut pages = Vec::new();
        for (index, target) in config.targets.iter().enumerate() {
            let id = TargetId(u16::try_from(index).context("more than 65535 targets")?);
            let plan = target_plan(id, target, output_dir.as_deref(), &incident_dir, &mut clients)?;
            let page = match config.signals.iter().any(|own| own.is_on_a_page_of(&target.name)) {
                true => poll::Page::Whole,
                false => poll::Page::Metrics,
            };
            add_sources(target, (&plan, page), flags, &mut sources, &mut named, &mut clients)?;
            sources.extend(host_of_target(target, &plan));
            pages.extend(add_pages(target, &plan, &mut sources, &mut named, &mut clients)?);
            targets.push(plan);
        }
        add_queries(config, &mut sources, &mut named, &mut clients)?;
        let (receivers, unusable) = receivers::told(&config.receivers);
        Ok(Self {
            setup: setup_of(config, output_dir, watch_only, named, pages)?,
            targets,
            sources,
            receivers,
            configured: config.receivers.clone(),
            storm_cap: StormCap { incidents: config.storm_cap.0, per: config.storm_cap.1 },
            keep: config.keep,
            store: config.store.clone(),
            state_dir,
            incident_dir,
            listen: config.listen.clone(),
            metrics_listen: config.metrics_listen.clone(),
            // A proxy passes on the name under which people reach the page.
            hosts: config
                .hosts
                .iter()
                .cloned()
                .chain(config.external_url.as_deref().and_then(host_of))
                .collect(),
            external_url: config.external_url.clone(),
            token: config.token.as_ref().map(secret_of).transpose()?,
            manual_capture: config.capture.clone(),
            notes: unusable.iter().map(ToString::to_string).collect(),
            unusable,
        })
    }
}

fn setup_of(
    config: &Config,
    output_dir: Option<String>,
    watch_only: bool,
    sources: Vec<WatchedSource>,
    pages: Vec<ExtraPage>,
) -> Result<Setup> {
    let budget = config.budget.clone();
    let zone = match &config.zone {
        Some(name) => TimeZone::get(name).with_context(|| format!("zone {name}"))?,
        None => TimeZone::try_system().unwrap_or(TimeZone::UTC),
    };
    Ok(Setup {
        rules: rules_of(config),
        catalog: config.catalog.clone(),
        own: user_signals_of(&config.signals, &config.catalog, &config.targets),
        pages,
        sources,
        targets: config.targets.iter().map(watched).collect(),
        policy: Policy {
            budget,
            min_free: config.keep.min_free,
            output_dir,
            watch_only,
            ..Policy::default()
        },
        ledger: Ledger::default(),
        zone,
        mode: Mode::Live,
    })
}

/// The rules of a configuration.
pub fn rules_of(config: &Config) -> Vec<Rule> {
    config.rules.iter().map(|c| c.rule.clone()).collect()
}

fn watched(target: &Target) -> WatchedTarget {
    WatchedTarget {
        name: target.name.clone(),
        role: target.role,
        group: target.group.clone(),
        sees_log: !target.logs.is_empty(),
    }
}

fn output_dir_of(spec: &CaptureSpec) -> Option<String> {
    match spec {
        CaptureSpec::Http(http) | CaptureSpec::CudaProfilerApi(http) => http.output_dir.clone(),
        CaptureSpec::None | CaptureSpec::Nsys(_) | CaptureSpec::Command(_) => None,
    }
}

fn target_plan(
    id: TargetId,
    target: &Target,
    output_dir: Option<&str>,
    incident_dir: &Path,
    clients: &mut Clients,
) -> Result<TargetPlan> {
    let server = target.url.as_ref().map(|url| server_of(target, url, clients)).transpose()?;
    let map = target.path_map.iter().map(|(server, agent)| (server.clone(), PathBuf::from(agent)));
    Ok(TargetPlan {
        target: id,
        name: target.name.clone(),
        server,
        is_discovered: target.is_discovered,
        engine: target.engine,
        paths: PathMap(map.collect()),
        folders: output_dir.into_iter().map(str::to_owned).collect(),
        kept_in: incident_dir.to_owned(),
        sees_log: !target.logs.is_empty(),
        logs: target
            .logs
            .iter()
            .map(|log| &log.path)
            .filter(|path| *path != "-")
            .map(PathBuf::from)
            .collect(),
    })
}

fn server_of(target: &Target, base: &str, clients: &mut Clients) -> Result<Server> {
    let key = |place: &Option<_>| place.as_ref().map(secret_of).transpose();
    let (asking, profiling) = clients.trusting(target.ca_file.as_deref())?;
    let server = Server::new(asking, base, key(&target.api_key)?, key(&target.admin_api_key)?);
    let engine = match target.engine {
        EngineText::Vllm => Some(ServerKind::Vllm),
        EngineText::TensorrtLlm => Some(ServerKind::TensorrtLlm),
        EngineText::Auto | EngineText::Sglang | EngineText::Dynamo => None,
    };
    Ok(server.with_profile_client(profiling).with_engine(engine))
}

/// The HTTP clients, one pair for all servers with the same authorities: each holds roots, a resolver and
/// its connections.
#[derive(Debug, Default)]
struct Clients(BTreeMap<Option<String>, (reqwest::Client, reqwest::Client)>);

impl Clients {
    /// The client that asks and the one for profile calls.
    fn trusting(&mut self, ca_file: Option<&str>) -> Result<(reqwest::Client, reqwest::Client)> {
        let ca_file = ca_file.map(str::to_owned);
        if let Some(known) = self.0.get(&ca_file) {
            return Ok(known.clone());
        }
        let authorities = ca_file.as_deref().map(Path::new);
        let made = (client::client(authorities)?, client::unpooled(authorities)?);
        self.0.insert(ca_file, made.clone());
        Ok(made)
    }
}

fn next_source(
    named: &mut Vec<WatchedSource>,
    target: TargetId,
    kind: Source,
    name: &str,
) -> Result<SourceId> {
    let number = u16::try_from(named.len()).ok().filter(|number| *number < FIRST_HOST);
    let id = SourceId(number.with_context(|| {
        format!("more than {FIRST_HOST} logs, pages and queries: watch fewer servers with one agent")
    })?);
    named.push(WatchedSource { id, target, kind, name: name.into(), zone: None });
    Ok(id)
}

fn add_sources(
    target: &Target,
    (plan, page): (&TargetPlan, poll::Page),
    flags: &Flags,
    sources: &mut Vec<SourcePlan>,
    named: &mut Vec<WatchedSource>,
    clients: &mut Clients,
) -> Result<()> {
    let every = target.poll;
    let phase = phase_of(&target.name);
    if let (Some(url), Some(server)) = (&target.url, &plan.server) {
        if target.loads {
            let (page, path) = match target.engine {
                EngineText::TensorrtLlm => (poll::Page::Iterations, "/metrics"),
                _ => (poll::Page::Loads, "/v1/loads"),
            };
            let source = next_source(named, plan.target, Source::Loads, &format!("{url}{path}"))?;
            let config = poll::Config {
                target: plan.target,
                source,
                server: server.clone(),
                page,
                every,
                // Between two pages, so that every half of an interval brings numbers.
                phase: (phase + 0.5).fract(),
            };
            sources.push(SourcePlan::Poll(config));
        }
        if let Some(metrics) = &target.metrics {
            let source = next_source(named, plan.target, Source::Metrics, metrics)?;
            let server = server_of(target, metrics, clients)?;
            let target = plan.target;
            let config = poll::Config { target, source, server, page, every, phase };
            sources.push(SourcePlan::Poll(config));
        }
    }
    for log in &target.logs {
        let source = next_source(named, plan.target, Source::Log, &log.path)?;
        let zone = log.zone.as_ref().map(|name| TimeZone::get(name).with_context(|| format!("zone {name}")));
        if let (Some(zone), Some(named)) = (zone.transpose()?, named.last_mut()) {
            named.zone = Some(zone);
        }
        let from_start = log.from_start || flags.from_start;
        let path = PathBuf::from(&log.path);
        sources.push(SourcePlan::Tail(tail::Config { target: plan.target, source, path, from_start }));
    }
    Ok(())
}

/// This machine's name.
pub fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Where people find the status page: an agent that listens on every address is found by its name.
pub fn page(listen: &str, host: &str) -> String {
    match listen.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_unspecified() => format!("http://{host}:{}", address.port()),
        _ => format!("http://{listen}"),
    }
}

/// Which part of the interval passes before a server is asked: always the same for one server and one
/// agent's host, spread evenly over servers and hosts.
fn phase_of(target: &str) -> f64 {
    let of = [host(), target.to_owned()].join("\0");
    let digest = Sha256::digest(of.as_bytes());
    f64::from(u16::from_be_bytes([digest[0], digest[1]])) / f64::from(u16::MAX)
}

/// Follows the pages beside the server's own. The server's key is not for them.
fn add_pages(
    target: &Target,
    plan: &TargetPlan,
    sources: &mut Vec<SourcePlan>,
    named: &mut Vec<WatchedSource>,
    clients: &mut Clients,
) -> Result<Vec<ExtraPage>> {
    let phase = phase_of(&target.name);
    let mut pages = Vec::new();
    for page in &target.pages {
        let source = next_source(named, plan.target, Source::Page, &page.url)?;
        let server = Server::new(clients.trusting(target.ca_file.as_deref())?.0, &page.url, None, None);
        let address = target.url.as_deref().unwrap_or_default().into();
        let (target, every) = (plan.target, target.poll);
        let page_kind = poll::Page::Whole;
        sources.push(SourcePlan::Poll(poll::Config {
            target,
            source,
            server,
            page: page_kind,
            every,
            phase,
        }));
        pages.push(ExtraPage { source, ranks: page.ranks.clone(), server: address });
    }
    Ok(pages)
}

/// The engine's processes, where the server is on this machine. They are nobody's configured source: what they
/// do not show is said where a cause is.
fn host_of_target(target: &Target, plan: &TargetPlan) -> Option<SourcePlan> {
    let port = host::port_here(target.url.as_deref().filter(|_| target.host)?)?;
    let source = SourceId(FIRST_HOST.checked_add(plan.target.0)?);
    Some(SourcePlan::Host(host::Config { target: plan.target, source, port }))
}

/// The server whose ranks a query reports: the only one there is, or the one that it names.
fn target_of(config: &Config, own: &UserSignalConfig) -> Option<TargetId> {
    let index = match &config.targets[..] {
        [] | [_] => 0,
        several => several.iter().position(|t| Some(&t.name) == own.target.as_ref())?,
    };
    u16::try_from(index).ok().map(TargetId)
}

fn add_queries(
    config: &Config,
    sources: &mut Vec<SourcePlan>,
    named: &mut Vec<WatchedSource>,
    clients: &mut Clients,
) -> Result<()> {
    for own in &config.signals {
        let OwnSource::Prometheus { url, query, every, bearer } = &own.source else { continue };
        let Some(signal) = config.catalog.signal_named(&own.name) else { continue };
        let target = target_of(config, own)
            .with_context(|| format!("the query of signal {} names no target that there is", own.name))?;
        let name = format!("the query of signal {}", own.name);
        let source = next_source(named, target, Source::Prometheus, &name)?;
        sources.push(SourcePlan::Query(promql::Config {
            target,
            source,
            signal,
            client: clients.trusting(None)?.0,
            url: receivers::address_of(url)?,
            shown_url: url.to_string().into(),
            query: query.as_str().into(),
            bearer: bearer.as_ref().map(secret_of).transpose()?,
            every: *every,
        }));
    }
    Ok(())
}

/// `$STATE_DIRECTORY` under systemd, else `$XDG_STATE_HOME/skewtrap`, else `~/.local/state/skewtrap`.
pub fn default_state_dir() -> PathBuf {
    let of = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    of("STATE_DIRECTORY")
        .or_else(|| of("XDG_STATE_HOME").map(|p| p.join("skewtrap")))
        .or_else(|| of("HOME").map(|p| p.join(".local/state/skewtrap")))
        .unwrap_or_else(|| PathBuf::from("/var/lib/skewtrap"))
}

/// Between two probes of a server in the background.
pub const PROBE_EVERY: Duration = Duration::from_secs(10);

/// The name of the host in an address.
fn host_of(url: &str) -> Option<String> {
    url.parse::<reqwest::Url>().ok()?.host_str().map(ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_links_to_a_page_that_its_reader_can_open() {
        assert_eq!(page("127.0.0.1:9464", "node7"), "http://127.0.0.1:9464");
        assert_eq!(page("0.0.0.0:9464", "node7"), "http://node7:9464");
        assert_eq!(page("[::]:9464", "node7"), "http://node7:9464");
    }
}
