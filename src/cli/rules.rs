//! Rule files for the subcommands that need no whole configuration.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::bail;

use crate::config::capture::default_http;
use crate::config::rules::{self, LoadedRules};
use crate::observe::configuration;
use skewtrap_core::capture::CaptureSpec;
use skewtrap_core::rule::Rule;
use skewtrap_core::signal::catalog::Catalog;

/// Checked rules and the signals they are of.
#[derive(Debug)]
pub struct Ready {
    /// The rules.
    pub rules: Vec<Rule>,
    /// The signals.
    pub catalog: Arc<Catalog>,
}

/// The rules of these files and folders; the shipped ones when there are none.
///
/// # Errors
/// Every problem of every file, as one report.
pub fn load(paths: &[PathBuf]) -> anyhow::Result<Ready> {
    let catalog = Arc::new(Catalog::default());
    let capture = CaptureSpec::Http(default_http());
    let loaded = if paths.is_empty() {
        rules::shipped(&catalog, &capture)
    } else {
        let texts = paths.iter().map(|p| files_named(p)).collect::<anyhow::Result<Vec<_>>>()?.concat();
        rules::load(texts.iter().map(|(name, text)| (name.as_str(), text.as_str())), &catalog, &capture)
    };
    report(&loaded)?;
    let rules = loaded.rules.into_iter().map(|c| c.rule).collect();
    Ok(Ready { rules, catalog })
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

/// Names and texts of the rule files that a path of the command line means: `preset:NAME`, a file or a
/// folder.
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
