//! `skewtrap.yaml`: everything the agent can be told, all of it optional.

use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::capture::CaptureText;
use super::de::{Field, TextOr, read};
use super::diagnostic::{Diagnostic, Findings};
use super::effective::Settings;
use super::quantity::{Bytes, Span};
use super::receiver::{Receiver, ReceiverText};
use super::rule::Checked;
use super::rules::{LoadRules, RuleEntry};
use super::secret::{SecretRef, SecretText};
use super::signal::{OwnSignal, SignalText};
use super::target::{Target, TargetText};
use super::tree::{self, Node, Place, Value};
use skewtrap_core::capture::CaptureSpec;
use skewtrap_core::signal::catalog::Catalog;

mod check;

use check::check;

/// The configuration of the agent.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FileText {
    /// The servers that are watched.
    targets: Field<Vec<Field<TargetText>>>,
    /// Signals of your own.
    signals: Field<Vec<Field<SignalText>>>,
    /// Rules: `preset:NAME`, a file, a folder, or a rule itself. Default: the shipped default rules.
    rules: Field<Vec<Field<RuleEntry>>>,
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

/// The text of a configuration in which everything has its default.
pub const DEFAULTS: &str = "{}\n";

/// What to write instead of nothing.
const NOTHING: &str = "name a server and rules; `skewtrap init URL` writes a file to begin with";

/// Reads a configuration. `file` is what it is called; `load_rules` reads the rule files it names,
/// and relative paths are the loader's affair.
pub fn load(file: &str, text: &str, load_rules: LoadRules<'_>) -> Loaded {
    let mut findings = Findings::new(file, text);
    let parsed = match tree::parse(text) {
        // A file that was cut short must not read as "everything has its default".
        Ok(Node { value: Value::Null, .. }) => {
            findings.error(Place::default(), "the file says nothing", Some(NOTHING.into()));
            None
        }
        Ok(node) => read::<FileText>(&node, &mut findings),
        Err(e) => {
            findings.error(e.place, e.message, e.hint);
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

#[cfg(test)]
mod tests;
