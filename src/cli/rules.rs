//! Rule files for the subcommands that need no whole configuration.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::bail;

use crate::config::capture::default_http;
use crate::config::rules::{self, LoadedRules};
use crate::decide::capture::CaptureSpec;
use crate::decide::rule::Rule;
use crate::decide::signal::catalog::Catalog;

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
        let texts = texts_of(paths)?;
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

/// Names and texts of rule files; of a folder, those that end in `.yaml` or `.yml` but not in
/// `.test.yaml`, in the order of their names.
///
/// # Errors
/// One cannot be read.
pub fn texts_of(paths: &[PathBuf]) -> anyhow::Result<Vec<(String, String)>> {
    let mut texts = Vec::new();
    for path in paths {
        for file in files_of(path)? {
            let text = std::fs::read_to_string(&file)
                .map_err(|e| super::wrong(&format!("cannot read {}: {e}", file.display())))?;
            texts.push((file.display().to_string(), text));
        }
    }
    Ok(texts)
}

/// Likewise, of a path that a configuration in `folder` names.
///
/// # Errors
/// One cannot be read.
pub fn texts_beside(folder: &Path, path: &str) -> Result<Vec<(String, String)>, String> {
    texts_of(&[folder.join(path)]).map_err(|e| e.to_string())
}

/// The rule files that a path names.
///
/// # Errors
/// A folder cannot be listed.
pub fn files_of(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let listed =
        std::fs::read_dir(path).map_err(|e| super::wrong(&format!("cannot list {}: {e}", path.display())))?;
    let is_rules = |p: &PathBuf| {
        let name = p.to_string_lossy();
        (name.ends_with(".yaml") || name.ends_with(".yml")) && !name.contains(".test.y")
    };
    let mut files: Vec<PathBuf> = listed.filter_map(Result::ok).map(|e| e.path()).filter(is_rules).collect();
    files.sort();
    Ok(files)
}
