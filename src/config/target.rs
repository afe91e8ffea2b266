//! `targets:`: the servers that are watched.

pub mod pages;

use std::sync::Arc;
use std::time::Duration;

#[cfg(test)]
use schemars::JsonSchema;
use serde::Deserialize;

use self::pages::{MetricsPage, PageText};
use super::de::{Field, TextOr};
use super::diagnostic::Findings;
use super::effective::Settings;
use super::quantity::Span;
use super::secret::{SecretRef, SecretText, is_url, masked, scheme_hint, secret_of, shown_secret};
use super::tree::Place;
use skewtrap_core::capture::facts::ServerKind;
use skewtrap_core::signal::metrics::Role;

/// One server.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct TargetText {
    /// What it is called in messages and in the label `target`. Default: its host and port.
    name: Field<String>,
    /// Its address: `http://127.0.0.1:30000`.
    url: Field<String>,
    /// Which engine it runs. Default `auto`: asked. It is asked in any case, and where it says something else than is
    /// written that is warned of; `sglang` does no more. `vllm` and `tensorrt_llm` decide where `/v1/models` does not
    /// tell the two apart; with `tensorrt_llm` the load is read from `/metrics`, as the statistics of its iterations,
    /// which it gives once to whoever asks first. `dynamo` is a worker of Dynamo, by its system port: `/v1/loads` is
    /// not polled.
    engine: Field<EngineText>,
    /// Its role. Default: what it says itself.
    role: Field<Role>,
    /// Log files; `-` is standard input. Relative paths start from the folder of this file.
    logs: Field<Vec<Field<TextOr<LogText>>>>,
    /// Whether, or where, its metrics are read. Default `true`: at `/metrics`. A list names further pages for
    /// `signals` behind the server's own: a router's, DCGM's, the node exporter's.
    metrics: Field<TextOr<Vec<Field<TextOr<PageText>>>>>,
    /// Whether `/v1/loads` is polled. Default `true`.
    loads: Field<bool>,
    /// Whether `/proc` and the cgroups of its processes are read, where it runs on this machine and the agent sees
    /// them. Default `true`.
    host: Field<bool>,
    /// How often it is asked. Default 1s, 100ms at least.
    poll: Field<Span>,
    /// Key for everything but the profile calls, if it wants one.
    api_key: Field<TextOr<SecretText>>,
    /// Key for the profile calls, if it wants another.
    admin_api_key: Field<TextOr<SecretText>>,
    /// Certificate authorities beside the public ones. A relative path starts from the folder of this file.
    ca_file: Field<String>,
    /// Folders that the server calls otherwise than the agent.
    path_map: Field<Vec<Field<PathText>>>,
    /// Servers of one group have one window at a time among them. Default: its name.
    group: Field<String>,
}

/// A log file.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct LogText {
    /// Its path; `-` is standard input.
    #[cfg_attr(test, schemars(extend("x-required" = true)))]
    path: Field<String>,
    /// The zone of its stamps: `UTC`, `Europe/Berlin`. Default: the agent's own.
    zone: Field<String>,
    /// Read it from its beginning. Default: from its end.
    from_start: Field<bool>,
}

/// One folder under its two names.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct PathText {
    /// As the server calls it.
    #[cfg_attr(test, schemars(extend("x-required" = true)))]
    server: Field<String>,
    /// As the agent sees it.
    #[cfg_attr(test, schemars(extend("x-required" = true)))]
    agent: Field<String>,
}

/// Which engine a server runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum EngineText {
    /// Ask it.
    #[default]
    Auto,
    /// SGLang.
    Sglang,
    /// vLLM.
    Vllm,
    /// TensorRT-LLM (`trtllm-serve`).
    TensorrtLlm,
    /// A worker of Dynamo, by its system port.
    Dynamo,
}

impl EngineText {
    /// As it is written.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Sglang => "sglang",
            Self::Vllm => "vllm",
            Self::TensorrtLlm => "tensorrt_llm",
            Self::Dynamo => "dynamo",
        }
    }

    /// What is wrong where the server says that it is another engine than the one that is written.
    pub fn contradicted_by(self, engine: ServerKind) -> Option<String> {
        let (written, is) = (self.word(), engine.word());
        (self != Self::Auto && written != is).then(|| {
            format!(
                "`engine: {written}` is written, and the server says that it is {engine}: windows are those of {engine}; \
                 write `engine: {is}`, or leave it out"
            )
        })
    }
}

/// One server, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Unique.
    pub name: Arc<str>,
    /// Without a trailing slash; `None` for a target that consists only of logs.
    pub url: Option<String>,
    /// Which engine, or `auto`.
    pub engine: EngineText,
    /// Declared role.
    pub role: Option<Role>,
    /// Its logs.
    pub logs: Vec<Log>,
    /// The address of its metrics, if they are read.
    pub metrics: Option<String>,
    /// Pages beside the server's own.
    pub pages: Vec<MetricsPage>,
    /// Whether its loads are polled.
    pub loads: bool,
    /// Whether its processes on this machine are looked at.
    pub host: bool,
    /// Interval between two polls.
    pub poll: Duration,
    /// For everything but the profile calls.
    pub api_key: Option<SecretRef>,
    /// For the profile calls.
    pub admin_api_key: Option<SecretRef>,
    /// Certificate authorities beside the public ones.
    pub ca_file: Option<String>,
    /// Pairs of the server's folder and the agent's; the longest matching one applies.
    pub path_map: Vec<(String, String)>,
    /// Targets of one group have at most one window open among them.
    pub group: Arc<str>,
    /// Whether a list named it, and not the configuration.
    pub is_discovered: bool,
    /// Where its settings came from.
    pub settings: Settings,
}

/// One log, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// `-` is standard input.
    pub path: String,
    /// The zone's name; `None` for the agent's own.
    pub zone: Option<String>,
    /// Whether to read it from its beginning.
    pub from_start: bool,
}

impl Target {
    /// The target of `--url` and `--log`, with every default.
    pub fn of(url: Option<&str>, logs: &[String]) -> Self {
        let url = url.map(|u| u.trim_end_matches('/').to_owned());
        let name: Arc<str> = url.as_deref().map_or("server", host_of).into();
        Self {
            metrics: url.as_deref().map(|u| format!("{u}/metrics")),
            pages: Vec::new(),
            loads: url.is_some(),
            host: true,
            url,
            engine: EngineText::Auto,
            role: None,
            logs: logs.iter().map(|p| Log { path: p.clone(), zone: None, from_start: false }).collect(),
            poll: Duration::from_secs(1),
            api_key: None,
            admin_api_key: None,
            ca_file: None,
            path_map: Vec::new(),
            group: name.clone(),
            name,
            is_discovered: false,
            settings: Settings::default(),
        }
    }
}

impl Target {
    /// Sets the engine, and what is read of a server of that engine by default.
    pub fn set_engine(&mut self, engine: EngineText) {
        self.engine = engine;
        match engine {
            // What is at /metrics is no page; the page is at another path, and where it is served it takes the
            // statistics away.
            EngineText::TensorrtLlm => self.metrics = None,
            EngineText::Dynamo => self.loads = false,
            EngineText::Auto | EngineText::Sglang | EngineText::Vllm => {}
        }
    }
}

fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

/// Checks one server.
pub fn check(text: &TargetText, place: Place, findings: &mut Findings<'_>) -> Option<Target> {
    let mut settings = Settings::of(findings.file().clone());
    let logs: Vec<Log> = text.logs.get().into_iter().flatten().filter_map(|l| log_of(l, findings)).collect();
    if let Some((url, at)) = text.url.placed()
        && !is_url(url)
    {
        let usual = "write `url: http://127.0.0.1:30000`; keys go into `api_key`";
        let hint = scheme_hint(url).unwrap_or_else(|| usual.to_owned());
        let message = format!("`{}` is no server's address", masked(url));
        // The line itself would show the password.
        match url.contains('@') {
            true => findings.error_hiding_line(at, message, Some(hint)),
            false => findings.error(at, message, Some(hint)),
        }
    }
    if text.url.is_absent() && text.logs.is_absent() {
        findings.error(place, "a target needs a `url`, or `logs`", None);
    }
    let mut target = Target::of(text.url.get().map(String::as_str), &[]);
    target.logs = logs;
    target.name = settings.resolve("name", &text.name, target.name.to_string()).into();
    check_name(&text.name, findings);
    settings.record_option("url", target.url.as_ref(), text.url.place());
    target.set_engine(text.engine.or(EngineText::Auto));
    target.role = text.role.get().copied();
    (target.metrics, target.pages) = pages::metrics_of(&text.metrics, &target, findings);
    target.loads = text.loads.or(target.loads);
    target.host = text.host.or(target.host);
    target.poll = settings.resolve("poll", &text.poll, Span(target.poll)).0;
    if let Some(at) = text.poll.place()
        && !(Duration::from_millis(100)..=Duration::from_secs(60)).contains(&target.poll)
    {
        findings.error(at, "`poll` must be between 100ms and 60s", None);
    }
    target.api_key = secret_of(&text.api_key, "`api_key`", findings);
    target.admin_api_key = secret_of(&text.admin_api_key, "`admin_api_key`", findings);
    target.ca_file = text.ca_file.get().map(|path| findings.beside(path));
    target.path_map =
        text.path_map.get().into_iter().flatten().filter_map(|p| path_of(p, findings)).collect();
    target.group = settings.resolve("group", &text.group, target.name.to_string()).into();
    record(text, &target, &mut settings);
    target.settings = settings;
    Some(target)
}

/// Records the settings that `check` has not recorded itself.
fn record(text: &TargetText, target: &Target, settings: &mut Settings) {
    settings.record("engine", target.engine.word(), text.engine.place());
    settings.record("role", target.role.map_or("what it says itself", Role::word), text.role.place());
    let logs = target.logs.iter().map(|log| {
        let zone = log.zone.as_ref().map_or_else(String::new, |z| format!(" ({z})"));
        format!("{}{zone}{}", log.path, if log.from_start { " from its start" } else { "" })
    });
    let logs = logs.collect::<Vec<_>>().join(", ");
    settings.record_option("logs", (!logs.is_empty()).then_some(logs), text.logs.place());
    let metrics = target.metrics.iter().chain(target.pages.iter().map(|p| &p.url));
    let metrics = metrics.map(String::as_str).collect::<Vec<_>>().join(", ");
    settings.record_option("metrics", (!metrics.is_empty()).then_some(metrics), text.metrics.place());
    settings.record("loads", target.loads, text.loads.place());
    settings.record("host", target.host, text.host.place());
    settings.record_option("api_key", shown_secret(&text.api_key), text.api_key.place());
    settings.record_option("admin_api_key", shown_secret(&text.admin_api_key), text.admin_api_key.place());
    settings.record_option("ca_file", target.ca_file.as_ref(), text.ca_file.place());
    let paths: Vec<String> =
        target.path_map.iter().map(|(server, agent)| format!("{server} is {agent}")).collect();
    settings.record_option("path_map", (!paths.is_empty()).then(|| paths.join(", ")), text.path_map.place());
}

/// Whether a target may be called so.
pub fn is_target_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 80
        && !name.contains(|c: char| c.is_whitespace() || c.is_control() || "/\\\"".contains(c))
}

fn check_name(name: &Field<String>, findings: &mut Findings<'_>) {
    if let Some((name, place)) = name.placed()
        && !is_target_name(name)
    {
        findings.error(
            place,
            "a target's name has 1 to 80 characters, none of them a space, quote or slash",
            None,
        );
    }
}

fn log_of(field: &Field<TextOr<LogText>>, findings: &mut Findings<'_>) -> Option<Log> {
    let (log, place) = field.placed()?;
    let log = match log {
        TextOr::Text(path) => Log { path: path_of_log(path, findings), zone: None, from_start: false },
        TextOr::More(text) => {
            let Some(path) = text.path.get() else {
                findings.error(place, "a log needs its `path`", None);
                return None;
            };
            Log {
                path: path_of_log(path, findings),
                zone: zone_of(&text.zone, findings),
                from_start: text.from_start.or(false),
            }
        }
    };
    if log.path.is_empty() {
        findings.error(place, "an empty path", None);
        return None;
    }
    Some(log)
}

/// Standard input is no path.
fn path_of_log(path: &str, findings: &Findings<'_>) -> String {
    if path.is_empty() || path == "-" { path.to_owned() } else { findings.beside(path) }
}

/// Checks the name of a time zone.
pub fn zone_of(field: &Field<String>, findings: &mut Findings<'_>) -> Option<String> {
    let (zone, place) = field.placed()?;
    if zone != "local" && jiff::tz::TimeZone::get(zone).is_err() {
        let hint = "write a name of the time zone database: `UTC`, `Europe/Berlin`";
        findings.error(place, format!("no time zone `{zone}`"), Some(hint.into()));
    }
    (zone != "local").then(|| zone.clone())
}

fn path_of(field: &Field<PathText>, findings: &mut Findings<'_>) -> Option<(String, String)> {
    let (text, place) = field.placed()?;
    let (Some(server), Some(agent)) = (text.server.get(), text.agent.get()) else {
        findings.error(place, "a path map has `server` and `agent`: one folder under its two names", None);
        return None;
    };
    for (path, at) in [text.server.placed(), text.agent.placed()].into_iter().flatten() {
        if !path.starts_with('/') {
            findings.error(at, format!("`{path}` is no absolute path"), None);
        }
    }
    Some((server.trim_end_matches('/').to_owned(), agent.trim_end_matches('/').to_owned()))
}
