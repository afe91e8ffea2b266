//! `skewtrap check`: every problem of rules and configurations at once, the settings in force and their
//! sources, and which rules could never fire on a given server.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use serde::Serialize;

use super::server_probe::{self, FoundMetric, Probe};
use super::{Format, config_path, print_diagnostics, rule_files, unless_closed};
use crate::config::condition::{Clause, describe};
use crate::config::diagnostic::Diagnostic;
use crate::config::effective::{Origin, Settings};
use crate::config::file::{self, Config};
use crate::config::rule::Notified;
use crate::config::signal::user_signals_of;
use crate::observe::configuration;
use skewtrap_core::message::counted;
use skewtrap_core::rule::Rule;
use skewtrap_core::status::{Reach, not_watched};
use skewtrap_trace::rank::{Rank, RankId, varying_axes};

mod reachability;
mod surroundings;

use reachability::reachability;

/// Checks configurations and rule files: every problem at once, and what holds in the end.
///
/// Exit status 0: nothing is wrong; 1: a problem was found; 2: a file cannot be read.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Configurations, rule files, or folders of rule files. Default: SKEWTRAP_CONFIG, or
    /// skewtrap.yaml where it is here, else the built-in defaults.
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// The same as a path, for those who write it as for the other commands
    #[arg(long, value_name = "FILE", hide = true)]
    config: Option<PathBuf>,
    /// A running server: which rules could never fire there, and why
    #[arg(long, value_name = "URL")]
    against: Option<String>,
    /// Print each rule in force, and the configuration, with the source of every value
    #[arg(long)]
    effective: bool,
    #[command(flatten)]
    format: Format,
}

/// The result of the command.
#[derive(Debug, Default, Serialize)]
struct Report {
    ok: bool,
    diagnostics: Vec<Diagnostic>,
    rules: Vec<RuleReport>,
    /// The settings beside the rules, one entry per file.
    configurations: Vec<ConfigurationReport>,
    /// Against a server: which of the user's own metrics its page has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    own_metrics: Vec<OwnMetricReport>,
    /// Against a server: why its ranks cannot be compared, where they cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_watched: Option<String>,
}

/// One metric of the user's against a server.
#[derive(Debug, Serialize)]
struct OwnMetricReport {
    signal: String,
    metric: String,
    /// The ranks of the page that have it.
    ranks: Vec<String>,
    /// Why there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

/// The settings of one configuration.
#[derive(Debug, Serialize)]
struct ConfigurationReport {
    file: String,
    settings: Settings,
    /// The settings of each server, by its name.
    targets: BTreeMap<String, Settings>,
}

/// One valid rule.
#[derive(Debug, Serialize)]
struct RuleReport {
    rule: String,
    file: String,
    /// Its trigger in one line.
    trigger: String,
    settings: Settings,
    /// Against a server: whether it could fire there.
    #[serde(skip_serializing_if = "Option::is_none")]
    could_fire: Option<bool>,
    /// Why it could not fire, or what it would read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    against: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// A file cannot be read, or the server was not reached.
pub fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let mut probe = args.against.as_deref().map(server_probe::probe).transpose()?;
    let mut report = Report { ok: true, ..Report::default() };
    let named: Vec<PathBuf> = args.paths.iter().chain(&args.config).cloned().collect();
    if let Some(tests) = named.iter().find(|path| path.to_string_lossy().ends_with(".test.yaml")) {
        bail!(super::wrong(&format!("{0} holds tests of rules: run `skewtrap test {0}`", tests.display())));
    }
    let paths = match named.is_empty() {
        true => config_path::of(None).into_iter().collect(),
        false => named,
    };
    let texts = texts_of(&paths)?;
    let mut seen: Vec<(String, String)> = Vec::new();
    let mut of_machine: Option<String> = None;
    // Receivers that files of rules alone name, and those of the configurations that were named.
    let (mut notified, mut configured) = (Vec::new(), None::<Vec<String>>);
    for (name, text, base) in texts {
        let loaded = configuration::load_text(&name, &text, &base).0;
        report.diagnostics.extend(loaded.diagnostics);
        // Also of a file with errors: what is wrong is told at once, and not as soon as the rest is mended.
        let Some(config) = loaded.draft else { continue };
        report.diagnostics.extend(surroundings::warnings(&name, &text, &config));
        match loaded.receivers {
            None => notified.extend(loaded.notified),
            Some(names) => configured.get_or_insert_default().extend(names),
        }
        if let Some(probe) = &mut probe {
            let own = user_signals_of(&config.signals, &config.catalog, &config.targets);
            probe.look_for(&own.metrics);
            report.own_metrics.extend(probe.own.iter().map(|own| own_metric(own, &config)));
        }
        let compares_processes = config.rules.iter().find(|checked| checked.rule.is_of_machine());
        of_machine = of_machine.or_else(|| compares_processes.map(|checked| checked.rule.name.to_string()));
        add_rules(&config, probe.as_ref(), &mut seen, &mut report);
        if loaded.config.is_some() {
            report.configurations.extend(configuration_of(&name, &config));
        }
    }
    check_receivers(&notified, configured, &mut report);
    report.not_watched =
        probe.as_ref().and_then(|probe| not_watched_on(probe, &report.rules, of_machine.as_deref()));
    let never_fires = report.rules.iter().any(|r| r.could_fire == Some(false));
    report.ok = !never_fires && !report.diagnostics.iter().any(Diagnostic::is_error);
    let status = if report.ok { ExitCode::SUCCESS } else { ExitCode::from(1) };
    unless_closed(print(&report, args), status)
}

/// Looks up the receivers that files of rules name: in the configurations that were named beside them, else in the one
/// that is here. Where there is none that can be read, nobody knows them.
fn check_receivers(notified: &[Notified], configured: Option<Vec<String>>, report: &mut Report) {
    if notified.is_empty() {
        return;
    }
    let here = config_path::of(None).filter(|_| configured.is_none());
    let known = match &here {
        Some(path) => configuration::load(Some(path)).ok().and_then(|loaded| loaded.receivers),
        None => configured,
    };
    let names: Vec<&str> = known.iter().flatten().map(String::as_str).collect();
    for one in notified.iter().filter(|one| !names.contains(&&*one.name)) {
        let diagnostic = match &known {
            Some(_) => {
                let (message, hint) = one.unknown_among(&names);
                let of = here.as_ref().map_or_else(String::new, |path| format!(" in {}", path.display()));
                Diagnostic::error_at(&one.file, one.place, format!("{message}{of}"), Some(hint))
            }
            None => Diagnostic::warning_at(
                &one.file,
                one.place,
                format!("whether there is a receiver `{}` is not known", one.name),
                Some("check the rules together with the configuration that defines it: `skewtrap check skewtrap.yaml RULES`".into()),
            ),
        };
        report.diagnostics.push(diagnostic);
    }
}

/// Why the ranks of the server cannot be compared, where they cannot.
fn not_watched_on(probe: &Probe, rules: &[RuleReport], of_machine: Option<&str>) -> Option<String> {
    let able: Vec<&str> = rules.iter().filter(|r| r.could_fire == Some(true)).map(|r| &*r.rule).collect();
    not_watched(probe.facts.engine, &probe.facts.sizes, Reach { able: Some(&able), of_machine })
}

/// Names and texts of the files, each with the folder that its relative paths start from. A folder
/// stands for its rule files.
fn texts_of(paths: &[PathBuf]) -> anyhow::Result<Vec<(String, String, PathBuf)>> {
    if paths.is_empty() {
        return Ok(vec![("(defaults)".into(), file::DEFAULTS.into(), PathBuf::new())]);
    }
    let mut texts = Vec::new();
    for path in paths {
        let base = if path.is_dir() { path.as_path() } else { path.parent().unwrap_or(Path::new("")) };
        let files = rule_files::files_named(path)?;
        texts.extend(files.into_iter().map(|(name, text)| (name, text, base.to_owned())));
    }
    Ok(texts)
}

/// The names of ranks, without the axes on which all agree.
fn names_of(ranks: &[Rank]) -> Vec<String> {
    let ids: Vec<RankId> = ranks.iter().map(|rank| RankId::Rank(*rank)).collect();
    let axes = varying_axes(&ids);
    ids.iter().map(|rank| rank.named_by(&axes).to_string()).collect()
}

fn own_metric(own: &FoundMetric, config: &Config) -> OwnMetricReport {
    OwnMetricReport {
        signal: config.catalog.name_of(own.signal).to_owned(),
        metric: own.metric.to_string(),
        ranks: names_of(&own.ranks),
        why: own.ranks.is_empty().then(|| own.remedy()),
    }
}

/// When a rule fires, in one line.
fn trigger_of(rule: &Rule) -> String {
    let guard =
        rule.only_if.as_ref().map_or_else(String::new, |guard| format!(", only if {}", guard.source()));
    format!("{}{guard}", describe(Clause::Trigger, &rule.trigger))
}

fn add_rules(config: &Config, probe: Option<&Probe>, seen: &mut Vec<(String, String)>, report: &mut Report) {
    for checked in &config.rules {
        let name = checked.rule.name.to_string();
        if let Some((_, file)) = seen.iter().find(|(n, f)| *n == name && **f != *checked.file) {
            let message = format!("another rule is called `{name}`, in {file}");
            report.diagnostics.push(Diagnostic::error_at(&checked.file, checked.place, message, None));
        }
        seen.push((name.clone(), checked.file.to_string()));
        // What stands there is not what was meant.
        if checked.has_errors {
            continue;
        }
        let found = probe.map(|p| reachability(&checked.rule, p));
        report.rules.push(RuleReport {
            rule: name,
            file: checked.file.to_string(),
            trigger: trigger_of(&checked.rule),
            settings: checked.settings.clone(),
            could_fire: found.as_ref().map(|f| f.is_ok()),
            against: found.map(|f| f.unwrap_or_else(|why| why)).unwrap_or_default(),
        });
    }
}

/// The settings of a configuration; `None` for a file of rules.
fn configuration_of(file: &str, config: &Config) -> Option<ConfigurationReport> {
    let sets_anything = config.settings.all.iter().any(|s| s.origin != Origin::Default);
    if config.targets.is_empty() && !sets_anything {
        return None;
    }
    let targets = config.targets.iter().map(|t| (t.name.to_string(), t.settings.clone())).collect();
    Some(ConfigurationReport { file: file.to_owned(), settings: config.settings.clone(), targets })
}

fn print(report: &Report, args: &CheckArgs) -> anyhow::Result<()> {
    if args.format.is_json() {
        outln!("{}", serde_json::to_string_pretty(report)?)?;
        return Ok(());
    }
    print_diagnostics(&report.diagnostics);
    if args.paths.is_empty() && args.config.is_none() && config_path::of(None).is_none() {
        anstream::eprintln!(
            "there is no skewtrap.yaml here (`skewtrap init URL` writes one): these are the built-in rules"
        );
    }
    for own in &report.own_metrics {
        let found = match &own.why {
            Some(why) => format!("does not arrive: {why}"),
            None => format!("arrives from {}: {}", own.metric, own.ranks.join(", ")),
        };
        outln!("signal {} {found}", own.signal)?;
    }
    for rule in &report.rules {
        outln!("{}: {}", rule.rule, rule.trigger)?;
        if args.effective {
            out!("{}", rule.settings)?;
        }
        match rule.could_fire {
            Some(true) => outln!("  could fire there:")?,
            Some(false) => outln!("  COULD NEVER FIRE there:")?,
            None => {}
        }
        rule.against.iter().try_for_each(|line| outln!("    {line}"))?;
    }
    if let Some(text) = &report.not_watched {
        outln!("NOT watched on that server: {text}")?;
    }
    for c in report.configurations.iter().filter(|_| args.effective) {
        out!("{}:\n{}", c.file, c.settings)?;
        c.targets.iter().try_for_each(|(name, settings)| out!("target {name}:\n{settings}"))?;
    }
    let errors = report.diagnostics.iter().filter(|d| d.is_error()).count();
    let (rules, warnings) = (report.rules.len(), report.diagnostics.len() - errors);
    let never = report.rules.iter().filter(|r| r.could_fire == Some(false)).count();
    anstream::eprint!(
        "{}, {}, {}",
        counted(rules, "rule"),
        counted(errors, "error"),
        counted(warnings, "warning")
    );
    match report.rules.iter().any(|r| r.could_fire.is_some()) {
        true => anstream::eprintln!(", {never} that could never fire on that server"),
        false => anstream::eprintln!(),
    }
    Ok(())
}
