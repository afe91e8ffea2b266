//! What must be true of a configuration before it may run.

use std::sync::Arc;
use std::time::Duration;

use super::{Budget, Config, FileText, Keep, LogFormatText};
use crate::config::capture::{capture_of, default_http, texts};
use crate::config::de::{Field, did_you_mean};
use crate::config::diagnostic::{Diagnostic, Findings};
use crate::config::effective::Settings;
use crate::config::quantity::{Bytes, Span};
use crate::config::receiver::{self, Receiver};
use crate::config::rule::Checked;
use crate::config::rules::{self, LoadRules, RuleList, Used};
use crate::config::secret::{secret_of, shown_secret};
use crate::config::signal::{self, OwnSignal};
use crate::config::target::{self, Target};
use skewtrap_core::capture::CaptureSpec;
use skewtrap_core::signal::catalog::{Catalog, Kind, UserSignal};

/// Checks a whole configuration; `others` gets what is wrong with the files that it names.
pub(super) fn check(
    text: &FileText,
    load_rules: LoadRules<'_>,
    findings: &mut Findings<'_>,
    others: &mut Vec<Diagnostic>,
) -> Config {
    let mut settings = Settings::of(findings.file().clone());
    let targets = targets_of(text, findings);
    let signals = signals_of(text, &mut settings, findings);
    let catalog = Arc::new(catalog_of(&signals));
    let receivers = receivers_of(text, &mut settings, findings);
    let capture = capture_of(&text.capture, &CaptureSpec::Http(default_http()), &mut settings, findings);
    let rules = rules_of(text, &catalog, &capture, &settings, load_rules, findings, others);
    // A file of rules alone names receivers that its configuration will have.
    if !(text.targets.is_absent() && text.receivers.is_absent()) {
        check_notify(&rules, &receivers, findings, others);
    }
    note_rest(text, &mut settings);
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
        listen: listen_of("listen", &text.listen, "127.0.0.1:9464", &mut settings, findings),
        metrics_listen: text
            .metrics_listen
            .get()
            .map(|_| listen_of("metrics_listen", &text.metrics_listen, "", &mut settings, findings)),
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

fn signals_of(text: &FileText, settings: &mut Settings, findings: &mut Findings<'_>) -> Vec<OwnSignal> {
    let catalog = Catalog::default();
    let mut signals: Vec<OwnSignal> = Vec::new();
    for (s, place) in text.signals.get().into_iter().flatten().filter_map(Field::placed) {
        let is_built_in = |name: &str| catalog.signal_named(name).is_some();
        let Some(own) = signal::check(s, place, &is_built_in, settings, findings) else { continue };
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
        let _ = catalog.define(UserSignal { name: own.name.clone(), unit: own.unit.clone(), kind });
    }
    catalog
}

fn receivers_of(text: &FileText, settings: &mut Settings, findings: &mut Findings<'_>) -> Vec<Receiver> {
    let mut receivers: Vec<Receiver> = Vec::new();
    for (r, place) in text.receivers.get().into_iter().flatten().filter_map(Field::placed) {
        let Some(receiver) = receiver::check(r, place, settings, findings) else { continue };
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
    beneath: &Settings,
    load_rules: LoadRules<'_>,
    findings: &mut Findings<'_>,
    others: &mut Vec<Diagnostic>,
) -> Vec<Checked> {
    let Some((entries, place)) = text.rules.placed() else {
        return if text.rules.is_absent() {
            rules::shipped_over(catalog, capture, beneath).rules
        } else {
            Vec::new()
        };
    };
    if entries.is_empty() && text.targets.is_absent() {
        findings.error(place, rules::NONE, Some(rules::NONE_HINT.into()));
    } else if entries.is_empty() {
        let message = "no rules: nothing is captured but by hand or for an alert";
        findings.warn(place, message, Some(rules::NONE_HINT.into()));
    }
    let mut list =
        RuleList { catalog, capture, beneath, load_rules, used: Used::new(), rules: Vec::new(), others };
    list.check(entries, findings);
    list.rules
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

/// Notes what is taken as it is written.
fn note_rest(text: &FileText, settings: &mut Settings) {
    let any = |field: &Field<String>, other: &str| field.or(other.to_owned());
    settings.note(
        "state_dir",
        any(&text.state_dir, "/var/lib/skewtrap, or beside the user's data"),
        text.state_dir.place(),
    );
    settings.note(
        "incident_dir",
        any(&text.incident_dir, "incidents in state_dir"),
        text.incident_dir.place(),
    );
    if text.metrics_listen.is_absent() {
        settings.fallback("metrics_listen", "none");
    }
    let hosts = texts(&text.hosts).unwrap_or_default().join(", ");
    settings.note_any("hosts", (!hosts.is_empty()).then_some(hosts), text.hosts.place());
    settings.note_any("token", shown_secret(&text.token), text.token.place());
    settings.note("zone", any(&text.zone, "the agent's own"), text.zone.place());
    settings.note(
        "log",
        if text.log.get() == Some(&LogFormatText::Json) { "json" } else { "text" },
        text.log.place(),
    );
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
    key: &str,
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
    settings.take(key, field, default.to_owned())
}
