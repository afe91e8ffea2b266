//! `skewtrap check`: every problem of rules and configurations at once, the settings in force and their
//! sources, and which rules could never fire on a given server.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use serde::Serialize;

use super::server_probe::{self, FoundMetric, Probe};
use super::{Format, config_path, print_diagnostics, rule_files};
use crate::config::condition::{Clause, describe};
use crate::config::diagnostic::Diagnostic;
use crate::config::effective::{Origin, Settings};
use crate::config::file::{self, Config};
use crate::config::signal::own_signals_of;
use crate::observe::configuration;
use skewtrap_core::message::counted;
use skewtrap_core::rule::Rule;
use skewtrap_trace::rank::{Rank, RankId, varying_axes};

mod reachability;
mod surroundings;

use reachability::reachability;

/// Checks configurations and rule files: every problem at once, and what holds in the end.
///
/// Exit status 0 when nothing is wrong, 1 otherwise.
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
    for (name, text, base) in texts {
        let loaded = file::load(&name, &text, &|p| configuration::rule_files(&base.join(p)));
        report.diagnostics.extend(loaded.diagnostics);
        if let Some(config) = loaded.config {
            report.diagnostics.extend(surroundings::warnings(&name, &text, &config));
            if let Some(probe) = &mut probe {
                let own = own_signals_of(&config.signals, &config.catalog, &config.targets);
                probe.look_for(&own.metrics);
                report.own_metrics.extend(probe.own.iter().map(|own| own_metric(own, &config)));
            }
            add_rules(&config, probe.as_ref(), &mut seen, &mut report);
            report.configurations.extend(configuration_of(&name, &config));
        }
    }
    let never_fires = report.rules.iter().any(|r| r.could_fire == Some(false));
    report.ok = !never_fires && !report.diagnostics.iter().any(Diagnostic::is_error);
    print(&report, args)?;
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::from(1) })
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
        anstream::println!("{}", serde_json::to_string_pretty(report)?);
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
        anstream::println!("signal {} {found}", own.signal);
    }
    for rule in &report.rules {
        anstream::println!("{}: {}", rule.rule, rule.trigger);
        if args.effective {
            anstream::print!("{}", rule.settings);
        }
        match rule.could_fire {
            Some(true) => anstream::println!("  could fire there:"),
            Some(false) => anstream::println!("  COULD NEVER FIRE there:"),
            None => {}
        }
        rule.against.iter().for_each(|line| anstream::println!("    {line}"));
    }
    for c in report.configurations.iter().filter(|_| args.effective) {
        anstream::print!("{}:\n{}", c.file, c.settings);
        c.targets.iter().for_each(|(name, settings)| anstream::print!("target {name}:\n{settings}"));
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
