//! `skewtrap.yaml`: every setting of the agent, all of them optional.

use std::sync::Arc;
use std::time::Duration;

#[cfg(test)]
use schemars::JsonSchema;
use serde::Deserialize;

use super::address;
use super::capture::{CaptureText, HttpText, capture_of, texts};
use super::condition::TriggerText;
use super::de::{Field, TextOr, did_you_mean, keys_of, read_among};
use super::diagnostic::{Diagnostic, Findings};
use super::discover::{self, Discover, DiscoverText};
use super::effective::Settings;
use super::quantity::{Bytes, Span};
use super::receiver::{self, Receiver, ReceiverText};
use super::rule::{CheckedRule, LimitsText, Notified, RuleText};
use super::rules::{self, LoadRules, RuleEntry, RuleList, UsedNames};
use super::secret::{SecretRef, SecretText, secret_of, shown_secret};
use super::signal::{OwnSource, SignalsText, UserSignalConfig, catalog_of, signals_of};
use super::store::{self, LeaseText, OnLeaseLoss, StoreConfig, UploadText};
use super::target::{self, Target, TargetText};
use super::tree::{self, Node, Place, Value};
use skewtrap_core::capture::governor::Budget;
use skewtrap_core::capture::{CaptureSpec, HttpWindow};
use skewtrap_core::factor::FALSE_ALARMS_PER_DAY;
use skewtrap_core::signal::catalog::Catalog;

/// The configuration of the agent.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct FileText {
    /// The servers that are watched.
    targets: Field<Vec<Field<TargetText>>>,
    /// Targets beside those, which come and go while the agent runs.
    discover: Field<DiscoverText>,
    /// Signals of your own.
    signals: Field<SignalsText>,
    /// Rules: `preset:NAME`, a file, a folder, or a rule itself. Default: the shipped default rules.
    rules: Field<Vec<Field<RuleEntry>>>,
    /// What a rule captures that does not say so itself, and what is captured by hand or for an alert.
    /// Default: a window over HTTP of as many steps as `max_stall` allows.
    capture: Field<CaptureText>,
    /// Open no window, whatever fires.
    watch_only: Field<bool>,
    /// What captures may cost a day, over all rules and servers.
    budget: Field<BudgetText>,
    /// How much is kept.
    keep: Field<KeepText>,
    /// Where the incidents of many agents are brought together: `s3://BUCKET/PREFIX`, `gs://`, `az://` or
    /// `file:///FOLDER`. Credentials come from the environment. Default: none.
    store: Field<String>,
    /// The pool of servers that this agent belongs to, by which the store is divided. Default `default`.
    pool: Field<String>,
    /// What becomes of windows when the store does not say whether another agent of the pool has one open:
    /// `refuse` (default), or `local_budget`.
    on_lease_loss: Field<OnLeaseLoss>,
    /// Where the lease of the pool is, by which its agents open one window at a time. Default: in the store.
    lease: Field<LeaseText>,
    /// What is uploaded into the store, and how fast.
    upload: Field<UploadText>,
    /// Who is notified.
    receivers: Field<Vec<Field<ReceiverText>>>,
    /// At most this many new incidents are told of in a stretch of time.
    storm_cap: Field<StormText>,
    /// Folder for the agent's own state. Default `~/.local/state/skewtrap` (or what `$STATE_DIRECTORY`, else
    /// `$XDG_STATE_HOME` says; of the systemd service `/var/lib/skewtrap`).
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
    /// Address under which people reach the page, through a proxy say: links in messages lead there.
    /// Default: made of `listen` and the host's name.
    external_url: Field<String>,
    /// Token of the API; needed for what changes state, and for everything beyond loopback.
    token: Field<TextOr<SecretText>>,
    /// The zone of log stamps. Default: the agent's own.
    zone: Field<String>,
    /// How the agent logs.
    log: Field<LogFormatText>,
}

/// What captures may cost a day.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
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
    /// False alarms that the shipped rules may raise on each server: `1 per day`, `0.2 per day`, `2 per week`.
    /// Their bounds follow from it and from what is usual there. Default 1 per day.
    false_alarms: Field<String>,
}

/// How much is kept.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
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
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct StormText {
    /// At most this many ... Default 20.
    incidents: Field<u32>,
    /// ... in any stretch of this length. Default 10m.
    per: Field<Span>,
}

/// How the agent logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
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
    /// Where further ones are listed.
    pub discover: Option<Discover>,
    /// User-defined signals.
    pub signals: Vec<UserSignalConfig>,
    /// The built-in signals and the user-defined ones.
    pub catalog: Arc<Catalog>,
    /// The rules, each with the sources of its settings.
    pub rules: Vec<CheckedRule>,
    /// The default capture: for rules without their own, and for manual requests.
    pub capture: CaptureSpec,
    /// What captures may cost.
    pub budget: Budget,
    /// How much is kept.
    pub keep: Keep,
    /// Where incidents are uploaded.
    pub store: Option<StoreConfig>,
    /// Who is notified.
    pub receivers: Vec<Receiver>,
    /// How many new incidents are reported at most, and in which time.
    pub storm_cap: (u32, Duration),
    /// Whether no window may open.
    pub watch_only: bool,
    /// `None`: a default that depends on the user.
    pub state_dir: Option<String>,
    /// `None`: `incidents` in the state folder.
    pub incident_dir: Option<String>,
    /// Address of the API.
    pub listen: String,
    /// Address of health and metrics alone.
    pub metrics_listen: Option<String>,
    /// Host names that the API accepts, beside `localhost` and addresses.
    pub hosts: Vec<String>,
    /// Address of the page for people, without a slash at its end.
    pub external_url: Option<String>,
    /// Token of the API.
    pub token: Option<SecretRef>,
    /// Zone of log stamps; `None` for the agent's own.
    pub zone: Option<String>,
    /// How the agent logs.
    pub log: LogFormatText,
    /// Where the settings of the file itself came from.
    pub settings: Settings,
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

/// A configuration, if it is valid, and its errors and warnings.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// `None` when any error was found.
    pub config: Option<Config>,
    /// What could be read of it, also where an error was found: to look for further problems, never to run on. `None`
    /// where it is no configuration at all.
    pub draft: Option<Config>,
    /// The receivers that its rules name, those of rules with errors among them.
    pub notified: Vec<Notified>,
    /// The names of its receivers, those with errors among them; `None` of a file of rules alone.
    pub receivers: Option<Vec<String>>,
    /// Errors and warnings of all files.
    pub diagnostics: Vec<Diagnostic>,
}

/// The text of a configuration that sets nothing.
pub const DEFAULTS: &str = "{}\n";

/// The hint for an empty file.
const EMPTY_FILE_HINT: &str = "name a server and rules; `skewtrap init URL` writes a file to begin with";

/// Reads a configuration. `file` is its name in messages; `load_rules` reads the rule files that it
/// names and resolves relative paths.
pub fn load(file: &str, text: &str, load_rules: LoadRules<'_>) -> Loaded {
    let mut findings = Findings::new(file, text);
    let parsed = match tree::parse(text) {
        // An empty file is more likely cut short than meant as "all defaults".
        Ok(Node { value: Value::Null, .. }) => {
            findings.error(Place::default(), "the file says nothing", Some(EMPTY_FILE_HINT.into()));
            None
        }
        Ok(node) => read_among::<FileText>(&node, &mappings(), &mut findings),
        Err(e) => {
            findings.error(e.place, e.message, e.hint);
            None
        }
    };
    let Some(parsed) = parsed else {
        let diagnostics = findings.into_sorted();
        return Loaded { config: None, draft: None, notified: Vec::new(), receivers: None, diagnostics };
    };
    let mut file_diagnostics = Vec::new();
    let (config, notified) = check(&parsed, load_rules, &mut findings, &mut file_diagnostics);
    let mut diagnostics = findings.into_sorted();
    diagnostics.append(&mut file_diagnostics);
    let is_ok = !diagnostics.iter().any(Diagnostic::is_error);
    let names = || names_of(&parsed).into_iter().map(ToOwned::to_owned).collect();
    let receivers = is_configuration(&parsed).then(names);
    Loaded { config: is_ok.then(|| config.clone()), draft: Some(config), notified, receivers, diagnostics }
}

/// The mappings whose keys are sought at another level, and how each is called.
fn mappings() -> [(&'static str, &'static [&'static str]); 9] {
    [
        ("at the top of the file", keys_of::<FileText>()),
        ("under `targets[]`", keys_of::<TargetText>()),
        ("under `rules[]`", keys_of::<RuleText>()),
        ("under `rules[].trigger`", keys_of::<TriggerText>()),
        ("under `rules[].limits`", keys_of::<LimitsText>()),
        ("under `capture.http`", keys_of::<HttpText>()),
        ("under `budget`", keys_of::<BudgetText>()),
        ("under `keep`", keys_of::<KeepText>()),
        ("under `storm_cap`", keys_of::<StormText>()),
    ]
}

/// Checks a whole configuration; problems of the files that it names go into `file_diagnostics`.
fn check(
    text: &FileText,
    load_rules: LoadRules<'_>,
    findings: &mut Findings<'_>,
    file_diagnostics: &mut Vec<Diagnostic>,
) -> (Config, Vec<Notified>) {
    let mut settings = Settings::of(findings.file().clone());
    let targets = targets_of(text, findings);
    let signals = signals_of(&text.signals, &mut settings, findings);
    let catalog = Arc::new(catalog_of(&signals));
    let receivers = receivers_of(text, &mut settings, findings);
    let capture =
        capture_of(&text.capture, &CaptureSpec::Http(HttpWindow::default()), &mut settings, findings);
    let (rules, notified) =
        rules_of(text, &catalog, &capture, &settings, load_rules, findings, file_diagnostics);
    // A file of rules alone names receivers that only its configuration defines.
    if is_configuration(text) {
        check_notify(&notified, &names_of(text), findings, file_diagnostics);
    }
    check_targets(&rules, &signals, &targets, findings, file_diagnostics);
    record_rest(text, &mut settings);
    let storm = text.storm_cap.get().cloned().unwrap_or_default();
    let minutes = |m: u64| Span(Duration::from_secs(60 * m));
    let config = Config {
        budget: budget_of(text, &mut settings, findings),
        keep: keep_of(text, &mut settings),
        store: store::store_of(
            &text.store,
            &text.pool,
            (&text.upload, &text.on_lease_loss, &text.lease),
            &mut settings,
            findings,
        ),
        storm_cap: (
            settings.resolve("storm_cap.incidents", &storm.incidents, 20),
            settings.resolve("storm_cap.per", &storm.per, minutes(10)).0,
        ),
        watch_only: settings.resolve("watch_only", &text.watch_only, false),
        state_dir: text.state_dir.get().map(|path| findings.beside(path)),
        incident_dir: text.incident_dir.get().map(|path| findings.beside(path)),
        listen: address::listen_of("listen", &text.listen, "127.0.0.1:9464", &mut settings, findings),
        metrics_listen: text
            .metrics_listen
            .get()
            .map(|_| address::listen_of("metrics_listen", &text.metrics_listen, "", &mut settings, findings)),
        hosts: address::hosts_of(&text.hosts, findings),
        external_url: address::external_url_of(&text.external_url, findings),
        token: secret_of(&text.token, "`token`", findings),
        zone: target::zone_of(&text.zone, findings),
        log: text.log.or(LogFormatText::Text),
        targets,
        discover: discover::check(&text.discover, findings),
        signals,
        catalog,
        rules,
        capture,
        receivers,
        settings,
    };
    (config, notified)
}

/// Whether it says more than rules.
fn is_configuration(text: &FileText) -> bool {
    !(text.targets.is_absent() && text.receivers.is_absent())
}

/// The names of the receivers, those with errors among them.
fn names_of(text: &FileText) -> Vec<&str> {
    let receivers = text.receivers.get().into_iter().flatten().filter_map(Field::get);
    receivers.filter_map(|receiver| receiver.name.get()).map(String::as_str).collect()
}

fn targets_of(text: &FileText, findings: &mut Findings<'_>) -> Vec<Target> {
    if let Some((list, place)) = text.targets.placed()
        && list.is_empty()
    {
        let hint = "list a server; without a configuration `skewtrap run --url` watches one";
        findings.error(place, "no target: nothing would be watched", Some(hint.into()));
    }
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

fn receivers_of(text: &FileText, settings: &mut Settings, findings: &mut Findings<'_>) -> Vec<Receiver> {
    let mut receivers: Vec<Receiver> = Vec::new();
    let mut names: Vec<&str> = Vec::new();
    for (r, place) in text.receivers.get().into_iter().flatten().filter_map(Field::placed) {
        let name = r.name.get().map(String::as_str);
        if let Some(name) = name.filter(|name| names.contains(name)) {
            findings.error(place, format!("two receivers are called `{name}`"), None);
        }
        names.extend(name);
        receivers.extend(receiver::check(r, place, settings, findings));
    }
    receivers
}

fn rules_of(
    text: &FileText,
    catalog: &Catalog,
    capture: &CaptureSpec,
    parent: &Settings,
    load_rules: LoadRules<'_>,
    findings: &mut Findings<'_>,
    file_diagnostics: &mut Vec<Diagnostic>,
) -> (Vec<CheckedRule>, Vec<Notified>) {
    let Some((entries, place)) = text.rules.placed() else {
        let rules = match text.rules.is_absent() {
            true => rules::shipped_over(catalog, capture, parent).rules,
            false => Vec::new(),
        };
        return (rules, Vec::new());
    };
    if entries.is_empty() && text.targets.is_absent() {
        findings.error(place, rules::NO_RULES, Some(rules::NO_RULES_HINT.into()));
    } else if entries.is_empty() {
        let message = "no rules: nothing is captured but by hand or for an alert";
        findings.warn(place, message, Some(rules::NO_RULES_HINT.into()));
    }
    let mut list = RuleList {
        catalog,
        capture,
        parent,
        load_rules,
        used: UsedNames::new(),
        rules: Vec::new(),
        notified: Vec::new(),
        file_diagnostics,
    };
    list.check(entries, findings);
    (list.rules, list.notified)
}

/// Reports a receiver that does not exist, in the file of the rule that names it.
fn check_notify(
    notified: &[Notified],
    known: &[&str],
    findings: &mut Findings<'_>,
    file_diagnostics: &mut Vec<Diagnostic>,
) {
    for one in notified.iter().filter(|one| !known.contains(&&*one.name)) {
        let (message, hint) = one.unknown_among(known);
        if one.file == *findings.file() {
            findings.error(one.place, message, Some(hint));
        } else {
            file_diagnostics.push(Diagnostic::error_at(&one.file, one.place, message, Some(hint)));
        }
    }
}

/// Reports, where there are several servers, a rule that captures without saying on which one, and a query
/// that does not name the server of its ranks.
fn check_targets(
    rules: &[CheckedRule],
    signals: &[UserSignalConfig],
    targets: &[Target],
    findings: &mut Findings<'_>,
    file_diagnostics: &mut Vec<Diagnostic>,
) {
    if targets.len() < 2 {
        return;
    }
    for CheckedRule { rule, file, place, .. } in rules {
        let names_target = rule.across.iter().chain(&rule.within).any(|label| &**label == "target");
        if names_target || rule.capture == CaptureSpec::None {
            continue;
        }
        let message = format!("rule {} captures, and its group spans servers", rule.name);
        let hint = "name `target` in `across` or `within`, or write `capture: none`".to_owned();
        if *file == *findings.file() {
            findings.error(*place, message, Some(hint));
        } else {
            file_diagnostics.push(Diagnostic::error_at(file, *place, message, Some(hint)));
        }
    }
    let known: Vec<&str> = targets.iter().map(|t| &*t.name).collect();
    for own in signals.iter().filter(|s| matches!(s.source, OwnSource::Prometheus { .. })) {
        match &own.target {
            None => {
                let message = format!(
                    "the query of signal {} needs `target`: which server are its samples of?",
                    own.name
                );
                findings.error(own.place, message, Some("write `target: NAME`".into()));
            }
            Some(name) if !known.contains(&&**name) => {
                let message = format!("no target is called `{name}`");
                findings.error(own.place, message, Some(did_you_mean(name, &known)));
            }
            Some(_) => {}
        }
    }
}

fn budget_of(text: &FileText, settings: &mut Settings, findings: &mut Findings<'_>) -> Budget {
    let text = text.budget.get().cloned().unwrap_or_default();
    let default = Budget::default();
    let budget = Budget {
        stalled: settings.resolve("budget.stalled", &text.stalled, Span(default.stalled)).0,
        bytes: settings.resolve("budget.bytes", &text.bytes, Bytes(default.bytes)).0,
        windows: settings.resolve("budget.windows", &text.windows, default.windows),
        worse_by: settings.resolve("budget.worse_by", &text.worse_by, default.worse_by),
        false_alarms: false_alarms_of(&text.false_alarms, settings, findings),
    };
    if let Some(place) = text.worse_by.place()
        && budget.worse_by <= 1.0
    {
        findings.error(place, "`worse_by` is a factor above 1", Some("write 1.5, say".into()));
    }
    budget
}

/// `1 per day`, as a number a day.
fn false_alarms_of(text: &Field<String>, settings: &mut Settings, findings: &mut Findings<'_>) -> f64 {
    const DAYS: [(&str, f64); 3] = [("hour", 1.0 / 24.0), ("day", 1.0), ("week", 7.0)];
    let Some((words, place)) = text.placed() else {
        settings.record_unset("budget.false_alarms", "1 per day");
        return FALSE_ALARMS_PER_DAY;
    };
    settings.record_set("budget.false_alarms", words, place);
    let rate = words.split_once(" per ").and_then(|(number, unit)| {
        let number: f64 = number.trim().parse().ok()?;
        let (_, days) = DAYS.into_iter().find(|(word, _)| *word == unit.trim())?;
        Some(number / days)
    });
    match rate.filter(|r| (0.01..=100.0).contains(r)) {
        Some(rate) => rate,
        None => {
            let message = format!("`{words}` is no budget of false alarms between 0.01 and 100 a day");
            findings.error(place, message, Some("write `1 per day`, `0.2 per day` or `2 per week`".into()));
            FALSE_ALARMS_PER_DAY
        }
    }
}

fn keep_of(text: &FileText, settings: &mut Settings) -> Keep {
    let text = text.keep.get().cloned().unwrap_or_default();
    Keep {
        incidents: settings.resolve("keep.incidents", &text.incidents, 200),
        age: settings.resolve("keep.age", &text.age, Span(Duration::from_secs(30 * 86_400))).0,
        bytes: settings.resolve("keep.bytes", &text.bytes, Bytes(50 << 30)).0,
        min_free: settings.resolve("keep.min_free", &text.min_free, Bytes(5 << 30)).0,
    }
}

/// Records the settings that need no check.
fn record_rest(text: &FileText, settings: &mut Settings) {
    let any = |field: &Field<String>, other: &str| field.or(other.to_owned());
    settings.record(
        "state_dir",
        any(&text.state_dir, "/var/lib/skewtrap, or beside the user's data"),
        text.state_dir.place(),
    );
    settings.record(
        "incident_dir",
        any(&text.incident_dir, "incidents in state_dir"),
        text.incident_dir.place(),
    );
    if text.metrics_listen.is_absent() {
        settings.record_unset("metrics_listen", "none");
    }
    let discover = text.discover.get().map(DiscoverText::shown);
    settings.record_option("discover", discover, text.discover.place());
    let hosts = texts(&text.hosts).unwrap_or_default().join(", ");
    settings.record_option("hosts", (!hosts.is_empty()).then_some(hosts), text.hosts.place());
    settings.record_option("external_url", text.external_url.get().cloned(), text.external_url.place());
    settings.record_option("token", shown_secret(&text.token), text.token.place());
    settings.record("zone", any(&text.zone, "the agent's own"), text.zone.place());
    settings.record(
        "log",
        if text.log.get() == Some(&LogFormatText::Json) { "json" } else { "text" },
        text.log.place(),
    );
}

#[cfg(test)]
mod tests;
