//! `skewtrap test`: unit tests of rules, in YAML beside them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::anyhow;
use clap::Args;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::play::{self, Played};
use super::rules::Ready;
use super::{Format as Output, print_diagnostics};
use crate::config::de::did_you_mean;
use crate::config::diagnostic::Diagnostic;
use crate::config::rules;
use crate::config::test::{self, Expect, Input, Test, TestFile, When};
use crate::decide::capture::CaptureSpec;
use crate::decide::labels::Labels;
use crate::decide::rule::{Change, Phase, Rule};
use crate::decide::signal::catalog::Catalog;
use crate::decide::time::Time;
use crate::observe::configuration;
use crate::observe::replay::Format;

/// Runs the tests of rules: `x.test.yaml`, beside `x.yaml`.
///
/// Exit status 0 when all pass, 1 when one fails or a file is wrong.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// Test files, or folders of them.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,

    #[command(flatten)]
    output: Output,
}

/// What came of one test.
#[derive(Debug, Serialize)]
struct Outcome {
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
    let mut files = Vec::new();
    for path in &args.paths {
        let found = configuration::test_files(path).map_err(|e| anyhow!(e))?;
        if found.is_empty() {
            return Err(anyhow!("no *.test.yaml in {}", path.display()));
        }
        files.extend(found);
    }
    let (mut outcomes, mut unread) = (Vec::new(), 0);
    for file in &files {
        match run_file(file) {
            Ok(mut of_file) => outcomes.append(&mut of_file),
            Err(diagnostics) => {
                print_diagnostics(&diagnostics);
                unread += 1;
            }
        }
    }
    tell(&outcomes, unread, args.output.is_json())?;
    let is_ok = unread == 0 && outcomes.iter().all(|o| o.passed);
    Ok(if is_ok { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn tell(outcomes: &[Outcome], unread: usize, json: bool) -> anyhow::Result<()> {
    if json {
        anstream::println!("{}", serde_json::to_string_pretty(outcomes)?);
        return Ok(());
    }
    for o in outcomes {
        anstream::println!("{} {}: {}", if o.passed { "ok    " } else { "FAILED" }, o.file, o.test);
        o.failures.iter().for_each(|f| anstream::println!("         {f}"));
    }
    let failed = outcomes.iter().filter(|o| !o.passed).count();
    let wrong = if unread == 0 { String::new() } else { format!(", {unread} files were wrong and not run") };
    anstream::eprintln!("{} tests, {failed} failed{wrong}", outcomes.len());
    Ok(())
}

fn run_file(path: &Path) -> Result<Vec<Outcome>, Vec<Diagnostic>> {
    let file = path.display().to_string();
    let text = configuration::read(path).map_err(|e| vec![Diagnostic::of_file(&file, e)])?;
    let base = path.parent().unwrap_or(Path::new(""));
    run_text(&file, &text, base)
}

/// Runs the tests of one file; rules and recordings are looked for in `base`.
fn run_text(file: &str, text: &str, base: &Path) -> Result<Vec<Outcome>, Vec<Diagnostic>> {
    let (tests, diagnostics) = test::load(file, text);
    let tests = tests.ok_or(diagnostics)?;
    let catalog = play::catalog();
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
    tests.tests.iter().map(|t| run_test(t, file, base, &rules, &catalog)).collect()
}

fn rules_of(
    tests: &TestFile,
    file: &str,
    base: &Path,
    catalog: &Catalog,
) -> Result<Vec<Rule>, Vec<Diagnostic>> {
    let beside = file.replace(".test.y", ".y");
    let of_file = |e: String| vec![Diagnostic::of_file(file, e)];
    let mut files = Vec::new();
    for name in &tests.rules {
        match name.strip_prefix("preset:").map(|n| (n, rules::preset(n))) {
            Some((_, Some(p))) => files.push((rules::preset_file(p.name), p.text.to_owned())),
            Some((n, None)) => return Err(of_file(format!("no shipped rule is called `{n}`"))),
            None => files.append(&mut configuration::rule_files(&base.join(name)).map_err(of_file)?),
        }
    }
    if tests.rules.is_empty() {
        files = configuration::rule_files(Path::new(&beside)).map_err(of_file)?;
    }
    let files = files.iter().map(|(n, t)| (n.as_str(), t.as_str()));
    let loaded = rules::load(files, catalog, &CaptureSpec::None);
    match loaded.is_ok() {
        true => Ok(loaded.rules.into_iter().map(|c| c.rule).collect()),
        false => Err(loaded.diagnostics),
    }
}

fn run_test(
    test: &Test,
    file: &str,
    base: &Path,
    rules: &[Rule],
    catalog: &Arc<Catalog>,
) -> Result<Outcome, Vec<Diagnostic>> {
    let ready = Ready { rules: rules.to_vec(), catalog: catalog.clone() };
    let played = match &test.input {
        Input::Series(series) => play::series(series, test.interval, ready).map_err(|name| {
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
            play::recording(&inputs, ready, zone)
                .map_err(|e| vec![Diagnostic::of_file(file, format!("{}: {e}", test.name))])?
        }
    };
    let failures: Vec<String> = test.expect.iter().filter_map(|e| unmet(e, &played)).collect();
    Ok(Outcome { file: file.to_owned(), test: test.name.clone(), passed: failures.is_empty(), failures })
}

/// What is wrong, if the expectation is not met.
fn unmet(expect: &Expect, played: &Played) -> Option<String> {
    let started = played.start;
    let time = |w: When| match w {
        When::After(d) => started + d,
        When::Epoch(s) => Time::from_epoch_s(s),
    };
    let until = expect.at.map_or(played.end, time);
    let here = format!("line {}", expect.place.line);
    let is_meant = |c: &&Change| {
        c.at <= until
            && expect.rule.as_ref().is_none_or(|r| **r == *c.rule.name)
            && has_labels(c, &expect.group)
    };
    if expect.never {
        let broken = played.changes.iter().filter(is_meant).find(|c| c.state == expect.state)?;
        let at = since_start(broken.at, started);
        return Some(format!(
            "{here}: never {}, but it was at {at}{}",
            expect.state.word(),
            blame_of(broken)
        ));
    }
    // The last change of each group counts.
    let mut last: BTreeMap<(Option<&str>, &Labels), &Change> = BTreeMap::new();
    for c in played.changes.iter().filter(is_meant) {
        last.insert((c.target.as_deref(), &c.group), c);
    }
    let at = since_start(until, started);
    let states: Vec<&&Change> = last.values().filter(|c| c.state == expect.state).collect();
    if states.is_empty() {
        if last.is_empty() && expect.state == Phase::Warming {
            return None;
        }
        let seen: Vec<String> = last.values().map(|c| format!("{}{}", c.state.word(), blame_of(c))).collect();
        let seen = if seen.is_empty() { "warming".to_owned() } else { seen.join(", ") };
        return Some(format!("{here}: at {at} it should be {}, but is {seen}", expect.state.word()));
    }
    let problems: Vec<String> =
        states.iter().map(|c| mismatch(expect, c, started, time)).collect::<Option<_>>()?;
    problems.into_iter().next().map(|p| format!("{here}: at {at} {p}"))
}

/// What one firing gets wrong; `None` when it is as expected.
fn mismatch(expect: &Expect, change: &Change, started: Time, time: impl Fn(When) -> Time) -> Option<String> {
    let finding = change.finding.as_ref()?;
    if let Some(rank) = &expect.rank
        && *rank != finding.rank
    {
        return Some(format!("it should blame {rank}, but blames {}", finding.rank));
    }
    if let Some(side) = expect.side
        && side != finding.side
    {
        let (wanted, blamed) = (side.word(), finding.side.word());
        return Some(format!("it should blame the {wanted} side, but blames {blamed}"));
    }
    let (onset, within) = expect.onset?;
    let off = finding.onset.signed_s_since(time(onset));
    (off.abs() > within.as_secs_f64()).then(|| {
        let told = since_start(finding.onset, started);
        format!("the onset should be {}, but is {told}, {off:+.1} s off", since_start(time(onset), started))
    })
}

fn has_labels(change: &Change, wanted: &Labels) -> bool {
    wanted.0.iter().all(|(name, value)| match &**name {
        "target" => change.target.as_deref().is_some_and(|t| t == value.to_string()),
        _ => change.group.get(name).is_some_and(|v| v.to_string() == value.to_string()),
    })
}

fn since_start(at: Time, started: Time) -> String {
    format!("{:.1}s", at.signed_s_since(started))
}

fn blame_of(change: &Change) -> String {
    change.finding.as_ref().map_or_else(String::new, |f| format!(" ({}, {})", f.rank, f.side.word()))
}
