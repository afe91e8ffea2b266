//! `skewtrap check`: everything wrong with rules and configurations at once, what holds in the end and
//! where it comes from, and which rules could never fire on a given server.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::probe::{self, Probe};
use super::{Format, print_diagnostics};
use crate::config::condition::describe;
use crate::config::diagnostic::Diagnostic;
use crate::config::effective::Settings;
use crate::config::file::{self, Config};
use crate::decide::capture::facts::Engine;
use crate::decide::rule::{Condition, Rule};
use crate::decide::signal::catalog;
use crate::decide::signal::rank::{Axis, Rank};
use crate::decide::signal::sample::Signal;
use crate::observe::configuration;

/// Checks configurations and rule files: every problem at once, and what holds in the end.
///
/// Exit status 0 when nothing is wrong, 1 otherwise.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Configurations, rule files, or folders of rule files. Default: the built-in defaults.
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// A running server: which rules could never fire there, and why
    #[arg(long, value_name = "URL")]
    against: Option<String>,
    /// Print each rule in force with the source of every value
    #[arg(long)]
    effective: bool,
    #[command(flatten)]
    format: Format,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    diagnostics: Vec<Diagnostic>,
    rules: Vec<RuleReport>,
}

/// One rule that may run.
#[derive(Debug, Serialize)]
struct RuleReport {
    rule: String,
    file: String,
    /// In one line: what it fires at.
    trigger: String,
    settings: Settings,
    /// Against a server: whether it could fire there.
    #[serde(skip_serializing_if = "Option::is_none")]
    could_fire: Option<bool>,
    /// Why not, or what it would read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    against: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// A file cannot be read, or the server was not reached.
pub fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let probe = args.against.as_deref().map(probe::ask).transpose()?;
    let mut report = Report { ok: true, diagnostics: Vec::new(), rules: Vec::new() };
    let texts = texts_of(&args.paths)?;
    let mut seen: Vec<(String, String)> = Vec::new();
    for (name, text, base) in texts {
        let loaded = file::load(&name, &text, &|p| configuration::rule_files(&base.join(p)));
        report.diagnostics.extend(loaded.diagnostics);
        if let Some(config) = loaded.config {
            add(&config, probe.as_ref(), &mut seen, &mut report);
        }
    }
    let never = report.rules.iter().any(|r| r.could_fire == Some(false));
    report.ok = !never && !report.diagnostics.iter().any(Diagnostic::is_error);
    tell(&report, args)?;
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Names and texts, with the folder that their own paths start from. A folder means its rule files.
fn texts_of(paths: &[PathBuf]) -> anyhow::Result<Vec<(String, String, PathBuf)>> {
    if paths.is_empty() {
        return Ok(vec![("(defaults)".into(), String::new(), PathBuf::new())]);
    }
    let mut texts = Vec::new();
    for path in paths {
        let base = if path.is_dir() { path.as_path() } else { path.parent().unwrap_or(Path::new("")) };
        let files = configuration::rule_files(path).map_err(|e| super::wrong(&e))?;
        if files.is_empty() {
            return Err(super::wrong(&format!("no rule files in {}", path.display())));
        }
        texts.extend(files.into_iter().map(|(name, text)| (name, text, base.to_owned())));
    }
    Ok(texts)
}

fn add(config: &Config, probe: Option<&Probe>, seen: &mut Vec<(String, String)>, report: &mut Report) {
    for checked in &config.rules {
        let name = checked.rule.name.to_string();
        if let Some((_, file)) = seen.iter().find(|(n, f)| *n == name && **f != *checked.file) {
            let message = format!("another rule is called `{name}`, in {file}");
            report.diagnostics.push(Diagnostic::error_at(&checked.file, checked.place, message, None));
        }
        seen.push((name.clone(), checked.file.to_string()));
        let found = probe.map(|p| against(&checked.rule, p));
        report.rules.push(RuleReport {
            rule: name,
            file: checked.file.to_string(),
            trigger: describe(&checked.rule.trigger),
            settings: checked.settings.clone(),
            could_fire: found.as_ref().map(|f| f.is_ok()),
            against: found.map(|f| f.unwrap_or_else(|why| why)).unwrap_or_default(),
        });
    }
}

fn tell(report: &Report, args: &CheckArgs) -> anyhow::Result<()> {
    if args.format.is_json() {
        anstream::println!("{}", serde_json::to_string_pretty(report)?);
        return Ok(());
    }
    print_diagnostics(&report.diagnostics);
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
    let errors = report.diagnostics.iter().filter(|d| d.is_error()).count();
    let (rules, warnings) = (report.rules.len(), report.diagnostics.len() - errors);
    let never = report.rules.iter().filter(|r| r.could_fire == Some(false)).count();
    anstream::eprint!("{rules} rules, {errors} errors, {warnings} warnings");
    match report.rules.iter().any(|r| r.could_fire.is_some()) {
        true => anstream::eprintln!(", {never} that could never fire on that server"),
        false => anstream::eprintln!(),
    }
    Ok(())
}

/// What a rule would read on a server, or why it could never fire there.
fn against(rule: &Rule, probe: &Probe) -> Result<Vec<String>, Vec<String>> {
    let (mut reads, mut lacks) = (Vec::new(), Vec::new());
    for (signal, name) in signals_of(rule) {
        match found(signal, probe) {
            Some((source, ranks)) => {
                reads.push(format!("`{name}` from {source}"));
                if let Some(why) = too_few(rule, &name, &ranks) {
                    lacks.push(why);
                }
            }
            None => lacks.push(format!("`{name}` does not arrive: {}", remedy(signal, probe))),
        }
    }
    lacks.dedup();
    if lacks.is_empty() { Ok(reads) } else { Err(lacks) }
}

/// The signals without which a rule cannot fire.
fn signals_of(rule: &Rule) -> Vec<(Signal, String)> {
    let named = |c: &Condition| (c.signal, c.signal_name.to_string());
    let guard = rule.only_if.iter().flat_map(|g| g.signals().zip(g.names()).map(|(s, n)| (s, n.to_owned())));
    let mut all: Vec<(Signal, String)> = rule.conditions().map(named).chain(guard).collect();
    all.sort();
    all.dedup();
    all
}

/// Where a signal comes from, and of which ranks.
fn found(signal: Signal, probe: &Probe) -> Option<(String, Vec<Rank>)> {
    let operands = catalog::DERIVED.iter().find(|d| d.signal == signal);
    let has = |fields: &crate::decide::signal::fields::Fields| {
        fields.get(signal).is_some()
            || operands.is_some_and(|d| fields.get(d.a).is_some() && fields.get(d.b).is_some())
    };
    if let Ok((path, loads)) = &probe.loads {
        let ranks: Vec<Rank> = loads.ranks.iter().filter(|r| has(&r.fields)).map(|r| r.rank).collect();
        if !ranks.is_empty() {
            return Some(((*path).to_owned(), ranks));
        }
    }
    let metrics = probe.metrics.as_ref().ok()?;
    let ranks: Vec<Rank> = metrics.ranks().filter(|(_, f)| has(f)).map(|(r, _)| r).collect();
    (!ranks.is_empty()).then(|| ("/metrics".to_owned(), ranks))
}

/// Whether the ranks of one server leave nothing to compare.
fn too_few(rule: &Rule, signal: &str, ranks: &[Rank]) -> Option<String> {
    let across: Vec<&str> = rule.across.iter().map(|a| &**a).collect();
    if across.contains(&"target") {
        return None;
    }
    let axes: Vec<Axis> = Axis::ALL.into_iter().filter(|a| across.contains(&a.label())).collect();
    if axes.len() < across.len() {
        return None;
    }
    let mut members: Vec<Vec<u16>> =
        ranks.iter().filter_map(|r| axes.iter().map(|a| r.get(*a)).collect()).collect();
    members.sort();
    members.dedup();
    let label = across.join(", ");
    match members.len() {
        0 => Some(format!("`{signal}` arrives without the label `{label}`: {}", no_label(&axes))),
        n if n < rule.min_members => {
            Some(format!("the group has {n} member ({label}): there is nothing to compare it with"))
        }
        _ => None,
    }
}

fn no_label(axes: &[Axis]) -> String {
    match axes.first() {
        Some(Axis::Dp) => "the server runs one DP rank (--dp-size), or is older than 0.4.10".into(),
        Some(axis) => format!("no source numbers ranks by {}", axis.word()),
        None => "no source has it".into(),
    }
}

/// Which flag brings a signal.
fn remedy(signal: Signal, probe: &Probe) -> String {
    let name = catalog::name_of(signal);
    let Some(entry) = catalog::entry(signal) else {
        return "it is one of your own: its pattern or query must match".into();
    };
    if probe.facts.engine == Engine::Vllm {
        return "this server is vLLM, whose metrics do not have it".into();
    }
    let flag = match name {
        n if n.starts_with("dp_attention") => {
            "start the server (0.5.23 or newer, with DP attention) with --enable-metrics and SGLANG_ENABLE_METRICS_DP_ATTENTION=1"
        }
        "gpu_busy" | "fwd_occupancy" | "fwd_idle_occupancy" => {
            "start the server with --enable-metrics and SGLANG_ENABLE_METRICS_DEVICE_TIMER=1"
        }
        "expert_tokens" => {
            "start the server with --enable-metrics and SGLANG_EPLB_HEATMAP_COLLECTION_INTERVAL above 0"
        }
        n if n.starts_with("expert_balancedness") => {
            "start the server with --expert-balancedness-report-mode server_log (0.5.23), or --enable-expert-distribution-metrics"
        }
        n if n.starts_with("decode_prealloc") || n.starts_with("decode_transfer") => {
            "only decode servers of a disaggregated deployment have it"
        }
        n if n.starts_with("prefill_bootstrap") || n.starts_with("prefill_inflight") => {
            "only prefill servers of a disaggregated deployment have it"
        }
        _ if probe.metrics.is_err() && !entry.metrics.is_empty() => "start the server with --enable-metrics",
        _ if !entry.log.is_empty() || !entry.decode.is_empty() || !entry.prefill.is_empty() => {
            "only its log has it: give the log with --log, or under `logs`"
        }
        _ => "this version of the server does not report it",
    };
    let why = match &probe.metrics {
        Err(e) if !entry.metrics.is_empty() => format!(" (/metrics: {e})"),
        _ => String::new(),
    };
    format!("{flag}{why}")
}
