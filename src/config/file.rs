//! `skewtrap.yaml`: everything the agent can be told, all of it optional.

use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::capture::{CaptureText, capture_of, default_http, texts};
use super::de::{Field, TextOr, did_you_mean, read};
use super::diagnostic::{Diagnostic, Findings};
use super::effective::Settings;
use super::quantity::{Bytes, Span};
use super::receiver::{self, Receiver, ReceiverText};
use super::rule::{Checked, RuleText};
use super::rules::{self, PRESETS, Preset, Used};
use super::secret::{SecretRef, SecretText, secret_of};
use super::signal::{self, OwnSignal, SignalText};
use super::target::{self, Target, TargetText};
use super::tree;
use crate::decide::capture::CaptureSpec;
use crate::decide::signal::catalog::{Catalog, Kind, Own};

/// The configuration of the agent.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FileText {
    /// The servers that are watched.
    targets: Field<Vec<Field<TargetText>>>,
    /// Signals of your own.
    signals: Field<Vec<Field<SignalText>>>,
    /// Rules: `preset:NAME`, a file, a folder, or a rule itself. Default: the shipped default rules.
    rules: Field<Vec<Field<TextOr<RuleText>>>>,
    /// What a rule captures that does not say so itself, and what is captured by hand or for an alert.
    /// Default: a window over HTTP of 10 steps.
    capture: Field<CaptureText>,
    /// Open no window, whatever fires.
    watch_only: Field<bool>,
    /// What captures may cost a day, over all rules and servers.
    budget: Field<BudgetText>,
    /// How much is kept.
    keep: Field<KeepText>,
    /// Who is told.
    receivers: Field<Vec<Field<ReceiverText>>>,
    /// At most this many new incidents are told of in a stretch of time.
    storm_cap: Field<StormText>,
    /// Folder for the agent's own state. Default `/var/lib/skewtrap`, or beside the user's data.
    state_dir: Field<String>,
    /// Folder for incidents. Default: `incidents` in `state_dir`.
    incident_dir: Field<String>,
    /// Where the API and the page are served. Default `127.0.0.1:9464`.
    listen: Field<String>,
    /// Where `/healthz`, `/readyz` and `/metrics` alone are served, without a token.
    metrics_listen: Field<String>,
    /// Names under which people reach the API and the page, beside `localhost` and addresses: without a
    /// port. A request that names another host is refused, so that a page elsewhere cannot reach it.
    hosts: Field<Vec<Field<String>>>,
    /// Token of the API; needed for what changes state, and for everything beyond loopback.
    token: Field<TextOr<SecretText>>,
    /// The zone of log stamps. Default: the agent's own.
    zone: Field<String>,
    /// How the agent logs.
    log: Field<LogFormatText>,
}

/// What captures may cost a day.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BudgetText {
    /// Stalled serving. Default 2m.
    stalled: Field<Span>,
    /// Bytes on disk. Default 20GiB.
    bytes: Field<Bytes>,
    /// Windows. Default 4.
    windows: Field<u32>,
    /// Within one incident, another window only when it is this many times worse. Default 1.5.
    worse_by: Field<f64>,
}

/// How much is kept.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KeepText {
    /// Incidents. Default 200.
    incidents: Field<u32>,
    /// None older. Default 30d.
    age: Field<Span>,
    /// Bytes, the server's files included. Default 50GiB.
    bytes: Field<Bytes>,
    /// No window opens with less room than this on the disk. Default 5GiB.
    min_free: Field<Bytes>,
}

/// The storm cap.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StormText {
    /// At most this many ... Default 20.
    incidents: Field<u32>,
    /// ... in any stretch of this length. Default 10m.
    per: Field<Span>,
}

/// How the agent logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormatText {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}

/// A configuration that may run.
#[derive(Clone, Debug)]
pub struct Config {
    /// The servers.
    pub targets: Vec<Target>,
    /// Signals of the user's own.
    pub signals: Vec<OwnSignal>,
    /// The built-in signals and those.
    pub catalog: Arc<Catalog>,
    /// The rules, each with the sources of its settings.
    pub rules: Vec<Checked>,
    /// What a window asks for where nothing closer says it: the rules' default, and windows by hand.
    pub capture: CaptureSpec,
    /// What captures may cost.
    pub budget: Budget,
    /// How much is kept.
    pub keep: Keep,
    /// Who is told.
    pub receivers: Vec<Receiver>,
    /// New incidents told of, at most, and in which time.
    pub storm_cap: (u32, Duration),
    /// Whether no window may open.
    pub watch_only: bool,
    /// `None`: the shell chooses.
    pub state_dir: Option<String>,
    /// `None`: `incidents` in the state folder.
    pub incident_dir: Option<String>,
    /// Address of the API.
    pub listen: String,
    /// Address of health and metrics alone.
    pub metrics_listen: Option<String>,
    /// Names under which the API is reached, beside `localhost` and addresses.
    pub hosts: Vec<String>,
    /// Token of the API.
    pub token: Option<SecretRef>,
    /// Zone of log stamps; `None` for the agent's own.
    pub zone: Option<String>,
    /// How the agent logs.
    pub log: LogFormatText,
    /// Where the settings of the file itself came from.
    pub settings: Settings,
}

/// What captures may cost a day.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// Stalled serving.
    pub stalled: Duration,
    /// Bytes on disk.
    pub bytes: u64,
    /// Windows.
    pub windows: u32,
    /// How much worse an incident must get for another window.
    pub worse_by: f64,
}

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Incidents.
    pub incidents: u32,
    /// Age.
    pub age: Duration,
    /// Bytes.
    pub bytes: u64,
    /// Floor of free disk space.
    pub min_free: u64,
}

/// A configuration, if it may run, and everything that is wrong or odd.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// `None` when any error was found.
    pub config: Option<Config>,
    /// Errors and warnings of all files.
    pub diagnostics: Vec<Diagnostic>,
}

/// Files of rules by the path that the configuration names: one for a file, several for a folder.
pub type LoadRules<'a> = &'a dyn Fn(&str) -> Result<Vec<(String, String)>, String>;

/// Reads a configuration. `file` is what it is called; `load_rules` reads the rule files it names,
/// and relative paths are the loader's affair.
pub fn load(file: &str, text: &str, load_rules: LoadRules<'_>) -> Loaded {
    let mut findings = Findings::new(file, text);
    let parsed = match tree::parse(text) {
        Ok(node) => read::<FileText>(&node, &mut findings),
        Err(e) => {
            findings.error(e.place, e.message, None);
            None
        }
    };
    let Some(parsed) = parsed else {
        return Loaded { config: None, diagnostics: findings.into_sorted() };
    };
    let mut others = Vec::new();
    let config = check(&parsed, load_rules, &mut findings, &mut others);
    let mut diagnostics = findings.into_sorted();
    diagnostics.append(&mut others);
    let is_ok = !diagnostics.iter().any(Diagnostic::is_error);
    Loaded { config: is_ok.then_some(config), diagnostics }
}

fn check(
    text: &FileText,
    load_rules: LoadRules<'_>,
    findings: &mut Findings<'_>,
    others: &mut Vec<Diagnostic>,
) -> Config {
    let mut settings = Settings::of(findings.file().clone());
    let targets = targets_of(text, findings);
    let signals = signals_of(text, findings);
    let catalog = Arc::new(catalog_of(&signals));
    let receivers = receivers_of(text, findings);
    let capture = capture_of(&text.capture, &CaptureSpec::Http(default_http()), &mut settings, findings);
    let rules = rules_of(text, &catalog, &capture, load_rules, findings, others);
    // A file of rules alone names receivers that its configuration will have.
    if !(text.targets.is_absent() && text.receivers.is_absent()) {
        check_notify(&rules, &receivers, findings, others);
    }
    let storm = text.storm_cap.get().cloned().unwrap_or_default();
    let minutes = |m: u64| Span(Duration::from_secs(60 * m));
    Config {
        budget: budget_of(text, &mut settings, findings),
        keep: keep_of(text, &mut settings),
        storm_cap: (
            settings.take("storm_cap.incidents", &storm.incidents, 20),
            settings.take("storm_cap.per", &storm.per, minutes(10)).0,
        ),
        watch_only: settings.take("watch_only", &text.watch_only, false),
        state_dir: text.state_dir.get().cloned(),
        incident_dir: text.incident_dir.get().cloned(),
        listen: listen_of(&text.listen, "127.0.0.1:9464", &mut settings, findings),
        metrics_listen: text
            .metrics_listen
            .get()
            .map(|_| listen_of(&text.metrics_listen, "", &mut settings, findings)),
        hosts: hosts_of(text, findings),
        token: secret_of(&text.token, "`token`", findings),
        zone: target::zone_of(&text.zone, findings),
        log: text.log.or(LogFormatText::Text),
        targets,
        signals,
        catalog,
        rules,
        capture,
        receivers,
        settings,
    }
}

fn targets_of(text: &FileText, findings: &mut Findings<'_>) -> Vec<Target> {
    let mut targets: Vec<Target> = Vec::new();
    for (t, place) in text.targets.get().into_iter().flatten().filter_map(Field::placed) {
        let Some(target) = target::check(t, place, findings) else { continue };
        if targets.iter().any(|other| other.name == target.name) {
            let hint = "give each its own `name`".to_owned();
            findings.error(place, format!("two targets are called `{}`", target.name), Some(hint));
        }
        targets.push(target);
    }
    targets
}

fn signals_of(text: &FileText, findings: &mut Findings<'_>) -> Vec<OwnSignal> {
    let catalog = Catalog::default();
    let mut signals: Vec<OwnSignal> = Vec::new();
    for (s, place) in text.signals.get().into_iter().flatten().filter_map(Field::placed) {
        let is_built_in = |name: &str| catalog.signal_named(name).is_some();
        let Some(own) = signal::check(s, place, &is_built_in, findings) else { continue };
        if signals.iter().any(|other| other.name == own.name) {
            findings.error(place, format!("two signals are called `{}`", own.name), None);
        }
        signals.push(own);
    }
    signals
}

fn catalog_of(signals: &[OwnSignal]) -> Catalog {
    let mut catalog = Catalog::default();
    for own in signals {
        let kind = match own.kind {
            signal::KindText::Gauge => Kind::Gauge,
            signal::KindText::Counter => Kind::Counter,
        };
        // Names were checked; what would be one signal too many is then an unknown signal in a rule.
        let _ = catalog.define(Own { name: own.name.clone(), unit: own.unit.clone(), kind });
    }
    catalog
}

fn receivers_of(text: &FileText, findings: &mut Findings<'_>) -> Vec<Receiver> {
    let mut receivers: Vec<Receiver> = Vec::new();
    for (r, place) in text.receivers.get().into_iter().flatten().filter_map(Field::placed) {
        let Some(receiver) = receiver::check(r, place, findings) else { continue };
        if receivers.iter().any(|other| other.name == receiver.name) {
            findings.error(place, format!("two receivers are called `{}`", receiver.name), None);
        }
        receivers.push(receiver);
    }
    receivers
}

fn rules_of(
    text: &FileText,
    catalog: &Catalog,
    capture: &CaptureSpec,
    load_rules: LoadRules<'_>,
    findings: &mut Findings<'_>,
    others: &mut Vec<Diagnostic>,
) -> Vec<Checked> {
    let Some(entries) = text.rules.get() else {
        return if text.rules.is_absent() { rules::shipped(catalog, capture).rules } else { Vec::new() };
    };
    let (mut checked, mut used) = (Vec::new(), Used::new());
    for (entry, place) in entries.iter().filter_map(Field::placed) {
        match entry {
            TextOr::More(rule) => {
                let rule = [Field::Given(rule.clone(), place)];
                rules::check_all(&rule, catalog, capture, &mut used, findings, &mut checked);
            }
            TextOr::Text(path) => match files_of(path, load_rules) {
                Ok(files) => {
                    let files = files.iter().map(|(n, t)| (n.as_str(), t.as_str()));
                    let mut loaded = rules::load_beside(files, catalog, capture, &mut used);
                    checked.append(&mut loaded.rules);
                    others.append(&mut loaded.diagnostics);
                }
                Err((message, hint)) => findings.error(place, message, hint),
            },
        }
    }
    checked
}

fn files_of(path: &str, load: LoadRules<'_>) -> Result<Vec<(String, String)>, (String, Option<String>)> {
    let Some(name) = path.strip_prefix("preset:") else {
        return match load(path) {
            Ok(files) if files.is_empty() => Err((format!("no rule files in {path}"), None)),
            Ok(files) => Ok(files),
            Err(e) => Err((e, None)),
        };
    };
    match rules::preset(name) {
        Some(Preset { text, .. }) => Ok(vec![(rules::preset_file(name), (*text).to_owned())]),
        None => {
            let known: Vec<&str> = PRESETS.iter().map(|p| p.name).collect();
            Err((format!("no shipped rule is called `{name}`"), Some(did_you_mean(name, &known))))
        }
    }
}

/// A rule that notifies nobody who exists is an error where the rule is written.
fn check_notify(
    rules: &[Checked],
    receivers: &[Receiver],
    findings: &mut Findings<'_>,
    others: &mut Vec<Diagnostic>,
) {
    let known: Vec<&str> = receivers.iter().map(|r| &*r.name).collect();
    for checked in rules {
        for (name, place) in checked.rule.notify.iter().zip(&checked.notify_places) {
            if known.contains(&&**name) {
                continue;
            }
            let message = format!("no receiver is called `{name}`");
            let hint = match known.is_empty() {
                true => "`receivers:` in the configuration defines them".to_owned(),
                false => did_you_mean(name, &known),
            };
            if checked.file == *findings.file() {
                findings.error(*place, message, Some(hint));
            } else {
                others.push(Diagnostic::error_at(&checked.file, *place, message, Some(hint)));
            }
        }
    }
}

fn budget_of(text: &FileText, settings: &mut Settings, findings: &mut Findings<'_>) -> Budget {
    let text = text.budget.get().cloned().unwrap_or_default();
    let budget = Budget {
        stalled: settings.take("budget.stalled", &text.stalled, Span(Duration::from_secs(120))).0,
        bytes: settings.take("budget.bytes", &text.bytes, Bytes(20 << 30)).0,
        windows: settings.take("budget.windows", &text.windows, 4),
        worse_by: settings.take("budget.worse_by", &text.worse_by, 1.5),
    };
    if let Some(place) = text.worse_by.place()
        && budget.worse_by <= 1.0
    {
        findings.error(place, "`worse_by` is a factor above 1", Some("write 1.5, say".into()));
    }
    budget
}

fn keep_of(text: &FileText, settings: &mut Settings) -> Keep {
    let text = text.keep.get().cloned().unwrap_or_default();
    Keep {
        incidents: settings.take("keep.incidents", &text.incidents, 200),
        age: settings.take("keep.age", &text.age, Span(Duration::from_secs(30 * 86_400))).0,
        bytes: settings.take("keep.bytes", &text.bytes, Bytes(50 << 30)).0,
        min_free: settings.take("keep.min_free", &text.min_free, Bytes(5 << 30)).0,
    }
}

fn hosts_of(text: &FileText, findings: &mut Findings<'_>) -> Vec<String> {
    let of_a_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    for (host, place) in text.hosts.get().into_iter().flatten().filter_map(Field::placed) {
        if host.is_empty() || !host.chars().all(of_a_name) {
            let hint = "write the name alone, without scheme and port: `gpu7.example.com`";
            findings.error(place, format!("`{host}` is no host name"), Some(hint.into()));
        }
    }
    texts(&text.hosts).unwrap_or_default()
}

fn listen_of(
    field: &Field<String>,
    default: &str,
    settings: &mut Settings,
    findings: &mut Findings<'_>,
) -> String {
    if let Some((address, place)) = field.placed()
        && address.parse::<std::net::SocketAddr>().is_err()
    {
        let hint = "write `127.0.0.1:9464`, or `0.0.0.0:9464` with a `token`";
        findings.error(place, format!("`{address}` is no address and port"), Some(hint.into()));
    }
    settings.take("listen", field, default.to_owned())
}

#[cfg(test)]
mod tests;
