//! `skewtrap check`: everything that is wrong with rule files and configurations, at once.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::rules::{files_of, signals_of, texts_of};
use super::wrong;
use crate::config::capture::default_http;
use crate::config::condition::describe;
use crate::config::diagnostic::Diagnostic;
use crate::config::file;
use crate::config::rule::Checked;
use crate::config::rules;
use crate::decide::capture::CaptureSpec;
use crate::decide::signal::catalog::Catalog;

/// Checks rule files, folders of them, and configurations: every error and warning at once, and
/// what is in force.
///
/// A file with `rules:` as its only key is a rule file; any other is a configuration.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Files and folders
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Print each rule in force with the source of every value
    #[arg(long)]
    effective: bool,
}

/// Checks; exit status 1 when anything is wrong.
///
/// # Errors
/// A file cannot be read.
pub fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let mut errors = 0;
    let mut warnings = 0;
    let mut files = 0;
    for path in &args.paths {
        for file in files_of(path)? {
            files += 1;
            let (checked, diagnostics) = checked(&file)?;
            for diagnostic in &diagnostics {
                anstream::eprintln!("{diagnostic}");
            }
            errors += diagnostics.iter().filter(|d| d.is_error()).count();
            warnings += diagnostics.iter().filter(|d| !d.is_error()).count();
            for rule in &checked {
                anstream::println!("{}: {}", rule.rule.name, describe(&rule.rule.trigger));
                if args.effective {
                    anstream::println!("{}", rule.settings);
                }
            }
        }
    }
    anstream::eprintln!("{files} files, {errors} errors, {warnings} warnings");
    Ok(ExitCode::from(u8::from(errors > 0)))
}

fn checked(path: &Path) -> anyhow::Result<(Vec<Checked>, Vec<Diagnostic>)> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|e| wrong(&format!("cannot read {name}: {e}")))?;
    if is_rules(&text) {
        let catalog = Catalog::default();
        let names: Vec<&str> = catalog.names().collect();
        let of = |name: &str| catalog.signal_named(name);
        let capture = CaptureSpec::Http(default_http());
        let loaded = rules::load([(name.as_str(), text.as_str())], signals_of(&of, &names), &capture);
        return Ok((loaded.rules, loaded.diagnostics));
    }
    let beside = path.parent().unwrap_or(Path::new("."));
    let load = |path: &str| texts_of(&[beside.join(path)]).map_err(|e| e.to_string());
    let loaded = file::load(&name, &text, &load);
    Ok((loaded.config.map(|c| c.rules).unwrap_or_default(), loaded.diagnostics))
}

/// Whether the only key at the left margin is `rules`.
fn is_rules(text: &str) -> bool {
    let mut keys = text.lines().filter(|l| l.starts_with(|c: char| c.is_ascii_alphabetic()));
    keys.clone().next().is_some() && keys.all(|l| l.starts_with("rules:"))
}
