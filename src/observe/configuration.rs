//! Reads the configuration and the rule files that it names; `config` interprets them.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::config::file::{self, Loaded};

/// Reads the configuration at `path`; without one, everything has its default. Paths of rules are
/// relative to the configuration's own folder.
///
/// # Errors
/// The file cannot be read. Mistakes in it are in [`Loaded::diagnostics`].
pub fn load(path: Option<&Path>) -> Result<Loaded, String> {
    let Some(path) = path else {
        return Ok(file::load("(defaults)", file::DEFAULTS, &|p| rule_files(Path::new(p))));
    };
    let text = read(path)?;
    let base = path.parent().unwrap_or(Path::new("")).to_owned();
    Ok(load_text(&path.display().to_string(), &text, &base).0)
}

/// Reads the configuration `text` with the rule files that it names, which are relative to `base`; and the paths of
/// those, as far as they are no presets.
pub fn load_text(name: &str, text: &str, base: &Path) -> (Loaded, BTreeSet<PathBuf>) {
    let named = RefCell::new(BTreeSet::new());
    let loaded = file::load(name, text, &|path| {
        let path = base.join(path);
        let files = rule_files(&path);
        named.borrow_mut().insert(path);
        files
    });
    (loaded, named.into_inner())
}

/// The rule files at `path`, each a name and its text: the file itself, or every `*.yaml` of the
/// folder that is not a test.
///
/// # Errors
/// It does not exist or cannot be read.
pub fn rule_files(path: &Path) -> Result<Vec<(String, String)>, String> {
    let mut paths = Vec::new();
    if path.is_dir() {
        let entries = fs::read_dir(path).map_err(|e| cannot(path, &e))?;
        paths.extend(entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| is_rule_file(p)));
        paths.sort();
    } else {
        paths.push(path.to_owned());
    }
    paths.into_iter().map(|p| read(&p).map(|text| (p.display().to_string(), text))).collect()
}

/// The test files in the folder `path`, or the file `path` itself.
///
/// # Errors
/// It does not exist or cannot be read.
pub fn test_files(path: &Path) -> Result<Vec<PathBuf>, String> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path).map_err(|e| cannot(path, &e))?;
    let mut paths: Vec<PathBuf> =
        entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| is_test(p)).collect();
    paths.sort();
    Ok(paths)
}

/// A file's text.
///
/// # Errors
/// It does not exist, cannot be read, or is not UTF-8.
pub fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| cannot(path, &e))
}

fn is_rule_file(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "yaml" || e == "yml") && !is_test(path) && path.is_file()
}

fn is_test(path: &Path) -> bool {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    name.ends_with(".test.yaml") || name.ends_with(".test.yml")
}

fn cannot(path: &Path, e: &std::io::Error) -> String {
    format!("cannot read {}: {e}", path.display())
}
