//! `skewtrap test`: unit tests of rules, in YAML beside them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{anyhow, bail};
use clap::Args;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::playback::{self, Playback};
use super::rule_files::RuleSet;
use super::{Format as OutputFormat, config_path, print_diagnostics, unless_closed};
use crate::config::de::did_you_mean;
use crate::config::diagnostic::Diagnostic;
use crate::config::rules;
use crate::config::signal::{catalog_of, user_signals_of};
use crate::config::test::{self, Expect, Input, Test, TestFile, When};
use crate::config::tree::Place;
use crate::observe::configuration;
use crate::observe::replay::Format;
use skewtrap_core::capture::CaptureSpec;
use skewtrap_core::message::counted;
use skewtrap_core::rule::{Change, Rule, RuleState};
use skewtrap_core::signal::catalog::Catalog;
use skewtrap_trace::labels::Labels;
use skewtrap_trace::time::Time;

/// Runs the tests of rules: `x.test.yaml`, beside `x.yaml`.
///
/// Exit status 0 when all pass, 1 when one fails or a file is wrong.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// Test files, or folders of them [default: the folders and files of rules that the configuration found here names]
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,

    #[command(flatten)]
    output: OutputFormat,
}

/// The result of one test.
#[derive(Debug, Serialize)]
struct TestResult {
    file: String,
    test: String,
    passed: bool,
    /// Each expectation that was not met, in a sentence.
    failures: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// A path cannot be read.
pub fn run(args: &TestArgs) -> anyhow::Result<ExitCode> {
    let (mut files, mut unread) = match args.paths.is_empty() {
        true => of_configuration()?,
        false => (Vec::new(), 0),
    };
    for path in &args.paths {
        if !path.exists() {
            let what = format!("there is no {}: name a file of tests, or a folder of them", path.display());
            bail!(super::wrong(&what));
        }
        let found = configuration::test_files(path).map_err(|e| anyhow!(e))?;
        if found.is_empty() {
            return Err(anyhow!("no *.test.yaml in {}", path.display()));
        }
        files.extend(found);
    }
    let mut results = Vec::new();
    for file in &files {
        match run_file(file) {
            Ok(mut of_file) => results.append(&mut of_file),
            Err(diagnostics) => {
                print_diagnostics(&diagnostics);
                unread += 1;
            }
        }
    }
    let is_ok = unread == 0 && results.iter().all(|o| o.passed);
    let status = if is_ok { ExitCode::SUCCESS } else { ExitCode::from(1) };
    unless_closed(print(&results, unread, args.output.is_json()), status)
}

/// The tests beside the rules that the configuration found here names, and how many configurations are wrong.
fn of_configuration() -> anyhow::Result<(Vec<PathBuf>, usize)> {
    let Some(config) = config_path::of(None) else {
        bail!(super::wrong("there is no skewtrap.yaml here: name a file of tests, or a folder of them"));
    };
    let name = config.display().to_string();
    let text = configuration::read(&config).map_err(|e| anyhow!(e))?;
    let base = config.parent().unwrap_or(Path::new(""));
    let (loaded, named) = configuration::load_text(&name, &text, base);
    let is_wrong = loaded.diagnostics.iter().any(Diagnostic::is_error);
    if is_wrong {
        print_diagnostics(&loaded.diagnostics);
    }
    let mut files = Vec::new();
    for path in named {
        match path.is_dir() {
            true => files.extend(configuration::test_files(&path).map_err(|e| anyhow!(e))?),
            false => files.extend(Some(path.with_extension("test.yaml")).filter(|tests| tests.exists())),
        }
    }
    if files.is_empty() && !is_wrong {
        bail!(super::wrong(&format!("no *.test.yaml beside the rules that {name} names")));
    }
    Ok((files, usize::from(is_wrong)))
}

fn print(results: &[TestResult], unread: usize, json: bool) -> anyhow::Result<()> {
    if json {
        outln!("{}", serde_json::to_string_pretty(results)?)?;
        return Ok(());
    }
    for o in results {
        outln!("{} {}: {}", if o.passed { "ok    " } else { "FAILED" }, o.file, o.test)?;
        o.failures.iter().try_for_each(|f| outln!("         {f}"))?;
    }
    let failed = results.iter().filter(|o| !o.passed).count();
    let wrong =
        if unread == 0 { String::new() } else { format!(", {} wrong and not run", counted(unread, "file")) };
    anstream::eprintln!("{}, {failed} failed{wrong}", counted(results.len(), "test"));
    Ok(())
}

fn run_file(path: &Path) -> Result<Vec<TestResult>, Vec<Diagnostic>> {
    let file = path.display().to_string();
    let text = configuration::read(path).map_err(|e| vec![Diagnostic::of_file(&file, e)])?;
    let has = |key: &str| text.lines().any(|line| line.starts_with(key));
    if has("rules:") && !has("tests:") && !file.ends_with(".test.yaml") {
        let tests = path.with_extension("test.yaml");
        return Err(vec![Diagnostic::of_file(
            &file,
            format!(
                "it holds rules and no tests; the tests of its rules belong into {} (docs/howto/write-a-rule.md)",
                tests.display()
            ),
        )]);
    }
    let base = path.parent().unwrap_or(Path::new(""));
    run_text(&file, &text, base)
}

/// Runs the tests of one file; relative paths of rules and recordings start from `base`.
fn run_text(file: &str, text: &str, base: &Path) -> Result<Vec<TestResult>, Vec<Diagnostic>> {
    let (tests, diagnostics) = test::load(file, text);
    let tests = tests.ok_or(diagnostics)?;
    let catalog = Arc::new(catalog_of(&tests.signals));
    let own = user_signals_of(&tests.signals, &catalog, &[]);
    let rules = rules_of(&tests, file, base, &catalog)?;
    let names: Vec<&str> = rules.iter().map(|r| &*r.name).collect();
    let mut wrong = Vec::new();
    for expect in tests.tests.iter().flat_map(|t| &t.expect) {
        match &expect.rule {
            Some(name) if !names.contains(&name.as_str()) => {
                let (message, hint) = test::unknown_rule(name, &names);
                wrong.push(Diagnostic::error_at(&file.into(), expect.place, message, Some(hint)));
            }
            None if rules.len() > 1 => {
                let message = format!("which rule? There are {}", names.join(", "));
                wrong.push(Diagnostic::error_at(&file.into(), expect.place, message, None));
            }
            _ => {}
        }
    }
    if !wrong.is_empty() {
        return Err(wrong);
    }
    let ready = RuleSet { rules, catalog, own };
    tests.tests.iter().map(|t| run_test(t, file, base, &ready)).collect()
}

fn rules_of(
    tests: &TestFile,
    file: &str,
    base: &Path,
    catalog: &Catalog,
) -> Result<Vec<Rule>, Vec<Diagnostic>> {
    let wrong = |message: String, hint: Option<String>| {
        vec![Diagnostic::error_at(&file.into(), Place::default(), message, hint)]
    };
    let beside = file.replace(".test.y", ".y");
    let named = match tests.rules.is_empty() {
        true => rules::files_named(&beside, &|p| configuration::rule_files(Path::new(p))).map(|f| vec![f]),
        false => {
            let load = |p: &str| configuration::rule_files(&base.join(p));
            tests.rules.iter().map(|name| rules::files_named(name, &load)).collect()
        }
    };
    let files = named.map_err(|(message, hint)| wrong(message, hint))?.concat();
    let files = files.iter().map(|(n, t)| (n.as_str(), t.as_str()));
    let loaded = rules::load(files, catalog, &CaptureSpec::None);
    match loaded.is_ok() {
        true => Ok(loaded.rules.into_iter().map(|c| c.rule).collect()),
        false => Err(loaded.diagnostics),
    }
}

fn run_test(test: &Test, file: &str, base: &Path, rules: &RuleSet) -> Result<TestResult, Vec<Diagnostic>> {
    let (ready, catalog, rules) = (rules.clone(), &rules.catalog, &rules.rules);
    let played = match &test.input {
        Input::Series(series) => playback::series(series, test.interval, ready).map_err(|name| {
            let place = series.iter().find(|s| s.signal == name).map_or_else(Default::default, |s| s.place);
            let names: Vec<&str> = catalog.names().collect();
            let hint = did_you_mean(&name, &names);
            vec![Diagnostic::error_at(&file.into(), place, format!("unknown signal `{name}`"), Some(hint))]
        })?,
        Input::Recording { logs, metrics, loads, zone } => {
            let zone = zone.as_deref().and_then(|z| TimeZone::get(z).ok()).unwrap_or(TimeZone::UTC);
            let inputs = [(Format::Log, logs), (Format::Metrics, metrics), (Format::Loads, loads)];
            let inputs: Vec<(Format, PathBuf)> = inputs
                .into_iter()
                .flat_map(|(f, paths)| paths.iter().map(move |p| (f, base.join(p))))
                .collect();
            playback::recording(&inputs, ready, zone)
                .map_err(|e| vec![Diagnostic::of_file(file, format!("{}: {e}", test.name))])?
        }
    };
    let is_meant = |e: &Expect, r: &Rule| e.rule.as_ref().is_none_or(|name| **name == *r.name);
    let failures: Vec<String> = test
        .expect
        .iter()
        .filter_map(|e| rules.iter().find(|r| is_meant(e, r)).and_then(|r| unmet(e, r, &played)))
        .collect();
    Ok(TestResult { file: file.to_owned(), test: test.name.clone(), passed: failures.is_empty(), failures })
}

/// Why an expectation of `rule` is not met; `None` when it is. One that nothing could violate is not met.
fn unmet(expect: &Expect, rule: &Rule, played: &Playback) -> Option<String> {
    let why =
        outside_the_input(expect, played).or_else(|| missing_group(expect, rule, played)).or_else(|| {
            if expect.never {
                violated_never(expect, rule, played)
            } else {
                missed_state(expect, rule, played)
            }
        })?;
    Some(format!("line {}: {why}", expect.place.line))
}

/// The time of an expectation; the end of the input if it names none.
fn until(expect: &Expect, played: &Playback) -> Time {
    expect.at.map_or(played.end, |w| time_of(w, played))
}

fn time_of(when: When, played: &Playback) -> Time {
    match when {
        When::After(d) => played.start + d,
        When::Epoch(s) => Time::from_epoch_s(s),
    }
}

/// An expectation at a time outside the input.
fn outside_the_input(expect: &Expect, played: &Playback) -> Option<String> {
    let (at, shown) = (until(expect, played), |t: Time| since_start(t, played.start));
    if at > played.end {
        return Some(format!(
            "{} is after the end of what arrives, which is at {}",
            shown(at),
            shown(played.end)
        ));
    }
    (at < played.start).then(|| format!("{} is before the beginning of what arrives", shown(at)))
}

/// An expectation of a group that never appears.
fn missing_group(expect: &Expect, rule: &Rule, played: &Playback) -> Option<String> {
    let groups = played.groups_of(rule);
    if expect.group.0.is_empty()
        || groups.iter().any(|(target, group)| has_labels(target, group, &expect.group))
    {
        return None;
    }
    let there: Vec<String> = groups.iter().map(|(target, group)| format!("{target} {group}")).collect();
    let there = match there.is_empty() {
        true => why_unjudged(rule, played),
        false => format!("there are {}", there.join(", ")),
    };
    Some(format!("no group {} ever appears: {there}", expect.group))
}

/// State changes of the expectation's group, up to its time.
fn changes_of<'p>(
    expect: &'p Expect,
    rule: &'p Rule,
    played: &'p Playback,
) -> impl Iterator<Item = &'p Change> {
    let until = until(expect, played);
    played.changes.iter().filter(move |c| {
        let target = c.target.as_deref().unwrap_or_default();
        c.at <= until && rule.name == c.rule.name && has_labels(target, &c.group, &expect.group)
    })
}

/// A `never` that was violated, or that could not have been violated.
fn violated_never(expect: &Expect, rule: &Rule, played: &Playback) -> Option<String> {
    let (started, state) = (played.start, expect.state.word());
    if let Some(broken) = changes_of(expect, rule, played).find(|c| c.state == expect.state) {
        let at = since_start(broken.at, started);
        return Some(format!("never {state}, but it was at {at}{}", blame_of(broken)));
    }
    let is_judged = changes_of(expect, rule, played).any(|c| is_judged_state(c.state));
    let at = since_start(until(expect, played), started);
    (!is_judged).then(|| {
        format!(
            "never {state} proves nothing: up to {at} the rule was not judged ({})",
            why_unjudged(rule, played)
        )
    })
}

const fn is_judged_state(state: RuleState) -> bool {
    matches!(state, RuleState::Idle | RuleState::Pending | RuleState::Firing)
}

/// Why a rule was never judged.
fn why_unjudged(rule: &Rule, played: &Playback) -> String {
    let missing: Vec<String> = rule
        .conditions()
        .map(|c| &*c.signal_name)
        .filter(|name| !played.series.iter().any(|s| s.signal == **name))
        .map(|name| format!("nothing of `{name}` arrives"))
        .collect();
    if let Some(first) = missing.first() {
        return first.clone();
    }
    let of_rule = played.status.rules.iter().filter(|r| r.name == rule.name).flat_map(|r| &r.groups);
    of_rule.map(|g| g.why.clone()).next().unwrap_or_else(|| "no rank was seen".into())
}

/// A state that was expected and not reached.
fn missed_state(expect: &Expect, rule: &Rule, played: &Playback) -> Option<String> {
    // The last change of each group counts.
    let mut last: BTreeMap<(Option<&str>, &Labels), &Change> = BTreeMap::new();
    for c in changes_of(expect, rule, played) {
        last.insert((c.target.as_deref(), &c.group), c);
    }
    let at = since_start(until(expect, played), played.start);
    let states: Vec<&&Change> = last.values().filter(|c| c.state == expect.state).collect();
    if states.is_empty() {
        if last.is_empty() && expect.state == RuleState::Warming && !played.groups_of(rule).is_empty() {
            return None;
        }
        let seen: Vec<String> = last.values().map(|c| format!("{}{}", c.state.word(), blame_of(c))).collect();
        let seen = match seen.is_empty() {
            true => format!("warming ({})", why_unjudged(rule, played)),
            false => seen.join(", "),
        };
        let unseen = expect.rank.as_ref().and_then(|r| unseen_rank(r, played)).unwrap_or_default();
        return Some(format!("at {at} it should be {}, but is {seen}{unseen}", expect.state.word()));
    }
    let problems: Vec<String> = states.iter().map(|c| mismatch(expect, c, played)).collect::<Option<_>>()?;
    problems.into_iter().next().map(|p| format!("at {at} {p}"))
}

/// An expected rank that never appeared in the input.
fn unseen_rank(rank: &Labels, played: &Playback) -> Option<String> {
    let mut ranks = played.series.iter().flat_map(|s| s.latest.iter().map(|r| (s.target.as_str(), &r.of)));
    (!ranks.any(|(target, of)| has_labels(target, of, rank)))
        .then(|| format!("; no rank {rank} ever appears"))
}

/// How a firing differs from the expectation; `None` when it does not.
fn mismatch(expect: &Expect, change: &Change, played: &Playback) -> Option<String> {
    let finding = change.finding.as_ref()?;
    if let Some(rank) = &expect.rank
        && *rank != finding.rank
    {
        let unseen = unseen_rank(rank, played).unwrap_or_default();
        return Some(format!("it should blame {rank}, but blames {}{unseen}", finding.rank));
    }
    if let Some(side) = expect.side
        && side != finding.side
    {
        let (wanted, blamed) = (side.word(), finding.side.word());
        return Some(format!("it should blame the {wanted} side, but blames {blamed}"));
    }
    let (onset, within) = expect.onset?;
    let (started, wanted) = (played.start, time_of(onset, played));
    let off = finding.onset.signed_s_since(wanted);
    (off.abs() > within.as_secs_f64()).then(|| {
        let shown = since_start(finding.onset, started);
        format!("the onset should be {}, but is {shown}, {off:+.1} s off", since_start(wanted, started))
    })
}

fn has_labels(target: &str, group: &Labels, wanted: &Labels) -> bool {
    wanted.0.iter().all(|(name, value)| match &**name {
        "target" => *target == value.to_string(),
        _ => group.get(name).is_some_and(|v| v.to_string() == value.to_string()),
    })
}

fn since_start(at: Time, started: Time) -> String {
    format!("{:.1}s", at.signed_s_since(started))
}

fn blame_of(change: &Change) -> String {
    change.finding.as_ref().map_or_else(String::new, |f| format!(" ({}, {})", f.rank, f.side.word()))
}
