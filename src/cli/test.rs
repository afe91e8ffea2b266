//! `skewtrap test`: unit tests of rules, in YAML beside them.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::anyhow;
use clap::Args;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::play;
use super::rules::Ready;
use super::{Format as Output, print_diagnostics};
use crate::config::de::did_you_mean;
use crate::config::diagnostic::Diagnostic;
use crate::config::rules;
use crate::config::test::{self, Expect, Input, Test, TestFile};
use crate::config::tree::Place;
use crate::observe::configuration;
use crate::observe::replay::Format;
use skewtrap_core::capture::CaptureSpec;
use skewtrap_core::rule::Rule;
use skewtrap_core::signal::catalog::Catalog;

mod unmet;

use unmet::unmet;

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
    let is_meant = |e: &Expect, r: &Rule| e.rule.as_ref().is_none_or(|name| **name == *r.name);
    let failures: Vec<String> = test
        .expect
        .iter()
        .filter_map(|e| rules.iter().find(|r| is_meant(e, r)).and_then(|r| unmet(e, r, &played)))
        .collect();
    Ok(Outcome { file: file.to_owned(), test: test.name.clone(), passed: failures.is_empty(), failures })
}
