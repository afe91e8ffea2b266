//! Rules for the subcommands that need no configuration.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::bail;

use crate::config::rules::{self, LoadedRules};
use crate::observe::configuration;
use skewtrap_core::capture::{CaptureSpec, HttpWindow};
use skewtrap_core::rule::Rule;
use skewtrap_core::signal::catalog::Catalog;
use skewtrap_core::signal::intake::UserSignals;

/// Checked rules and the signals that they refer to.
#[derive(Clone, Debug)]
pub struct RuleSet {
    /// The rules.
    pub rules: Vec<Rule>,
    /// The signals.
    pub catalog: Arc<Catalog>,
    /// The user's own signals.
    pub own: UserSignals,
}

/// The rules of these files and folders; the shipped rules if `paths` is empty.
///
/// # Errors
/// A file is wrong; every problem is printed.
pub fn load(paths: &[PathBuf]) -> anyhow::Result<RuleSet> {
    let catalog = Arc::new(Catalog::default());
    let capture = CaptureSpec::Http(HttpWindow::default());
    let loaded = if paths.is_empty() {
        rules::shipped(&catalog, &capture)
    } else {
        let texts = paths.iter().map(|p| files_named(p)).collect::<anyhow::Result<Vec<_>>>()?.concat();
        rules::load(texts.iter().map(|(name, text)| (name.as_str(), text.as_str())), &catalog, &capture)
    };
    report(&loaded)?;
    let rules = loaded.rules.into_iter().map(|c| c.rule).collect();
    Ok(RuleSet { rules, catalog, own: UserSignals::default() })
}

fn report(loaded: &LoadedRules) -> anyhow::Result<()> {
    for diagnostic in &loaded.diagnostics {
        anstream::eprintln!("{diagnostic}");
    }
    if !loaded.is_ok() {
        let errors = loaded.diagnostics.iter().filter(|d| d.is_error()).count();
        bail!(super::wrong(&format!("{errors} errors in the rules; nothing was done")));
    }
    Ok(())
}

/// Names and texts of the rule files that an argument stands for: `preset:NAME`, a file or a folder.
///
/// # Errors
/// There is none, or one cannot be read.
pub fn files_named(path: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let named = path.to_string_lossy();
    let files = rules::files_named(&named, &|p| configuration::rule_files(Path::new(p)));
    files.map_err(|(message, hint)| {
        super::wrong(&hint.map_or_else(|| message.clone(), |h| format!("{message}; {h}")))
    })
}
