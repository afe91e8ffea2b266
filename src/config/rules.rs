//! Lists of rules: the shipped presets, files and folders of the user, or inline rules.

use std::collections::BTreeMap;
use std::sync::Arc;

#[cfg(test)]
use schemars::JsonSchema;
use serde::Deserialize;

use super::de::{Field, TextOr, did_you_mean, read};
use super::diagnostic::{Diagnostic, Findings};
use super::effective::Settings;
use super::rule::{CheckedRule, Notified, RuleText, check, notified_by};
use super::tree::{self, Place};
use skewtrap_core::capture::CaptureSpec;
use skewtrap_core::signal::catalog::Catalog;

/// A file of rules.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct RulesText {
    /// The rules, or `preset:NAME` for a shipped one.
    #[cfg_attr(test, schemars(extend("x-required" = true)))]
    pub rules: Field<Vec<Field<RuleEntry>>>,
}

/// A rule, or the name of some.
pub type RuleEntry = TextOr<RuleText>;

/// The message for a list without rules.
pub const NO_RULES: &str = "there are no rules in it";

/// The hint for a list without rules.
pub const NO_RULES_HINT: &str =
    "name some, as in `rules: [preset:dp-load-skew]`; without `rules` the default ones are in force";

/// A shipped rule file.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// The file's name without `.yaml`; its first rule's, as a rule.
    pub name: &'static str,
    /// The file.
    pub text: &'static str,
    /// Its tests.
    pub test: &'static str,
    /// Whether it runs when the configuration names no rules.
    pub is_default: bool,
}

macro_rules! presets {
    ($($name:literal $is_default:literal)*) => {
        /// Every shipped rule.
        pub const PRESETS: &[Preset] = &[$(Preset {
            name: $name,
            text: include_str!(concat!("../../rules/", $name, ".yaml")),
            test: include_str!(concat!("../../rules/", $name, ".test.yaml")),
            is_default: $is_default,
        }),*];
    };
}

presets! {
    "dp-load-skew" true
    "stuck-rank" true
    "kv-usage-skew" false
    "starved-rank" false
    "queue-skew-idle-peer" false
    "slow-rank" false
    "crowded-scheduler" false
    "dp-attention-tokens" false
    "expert-imbalance" false
    "pd-pools" false
    "replica-skew" false
    "vllm-engine-skew" false
    "first-token-skew" false
    "cached-share-skew" false
    "retraction" false
}

/// Rules, and what is wrong with their files.
#[derive(Clone, Debug, Default)]
pub struct LoadedRules {
    /// The valid rules.
    pub rules: Vec<CheckedRule>,
    /// Errors and warnings of all files.
    pub diagnostics: Vec<Diagnostic>,
}

impl LoadedRules {
    /// Whether there is no error.
    pub fn is_ok(&self) -> bool {
        !self.diagnostics.iter().any(Diagnostic::is_error)
    }
}

/// The shipped rules that run by default.
pub fn shipped(catalog: &Catalog, capture: &CaptureSpec) -> LoadedRules {
    shipped_over(catalog, capture, &Settings::default())
}

/// Like [`shipped`]; `parent` holds the source of `capture`.
pub fn shipped_over(catalog: &Catalog, capture: &CaptureSpec, parent: &Settings) -> LoadedRules {
    let files: Vec<(String, &str)> =
        PRESETS.iter().filter(|p| p.is_default).map(|p| (preset_file(p.name), p.text)).collect();
    load_over(files.iter().map(|(name, text)| (name.as_str(), *text)), catalog, capture, parent)
}

/// The shipped rule of that name.
pub fn preset(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|p| p.name == name)
}

/// The name of a preset in messages.
pub fn preset_file(name: &str) -> String {
    format!("preset:{name}")
}

/// Reads the rule files at a path: one for a file, several for a folder. The error is a message.
pub type LoadRules<'a> = &'a dyn Fn(&str) -> Result<Vec<(String, String)>, String>;

/// The rule files that `named` stands for: a shipped rule (`preset:NAME`), a file or a folder. The error is
/// a message and a hint.
///
/// # Errors
/// There is no such preset, or `load` finds nothing.
pub fn files_named(
    named: &str,
    load: LoadRules<'_>,
) -> Result<Vec<(String, String)>, (String, Option<String>)> {
    let Some(name) = named.strip_prefix("preset:") else {
        return match load(named) {
            Ok(files) if files.is_empty() => Err((format!("no rule files in {named}"), None)),
            Ok(files) => Ok(files),
            Err(e) => Err((e, None)),
        };
    };
    match preset(name) {
        Some(Preset { text, .. }) => Ok(vec![(preset_file(name), (*text).to_owned())]),
        None => {
            let known: Vec<&str> = PRESETS.iter().map(|p| p.name).collect();
            Err((format!("no shipped rule is called `{name}`"), Some(did_you_mean(name, &known))))
        }
    }
}

/// Rules of several files, each a name and its text. A name is used once over all of them.
pub fn load<'f>(
    files: impl IntoIterator<Item = (&'f str, &'f str)>,
    catalog: &Catalog,
    capture: &CaptureSpec,
) -> LoadedRules {
    load_over(files, catalog, capture, &Settings::default())
}

fn load_over<'f>(
    files: impl IntoIterator<Item = (&'f str, &'f str)>,
    catalog: &Catalog,
    capture: &CaptureSpec,
    parent: &Settings,
) -> LoadedRules {
    let mut diagnostics = Vec::new();
    let mut list = RuleList {
        catalog,
        capture,
        parent,
        load_rules: &refuse_file,
        used: UsedNames::new(),
        rules: Vec::new(),
        notified: Vec::new(),
        file_diagnostics: &mut diagnostics,
    };
    for (file, text) in files {
        list.check_file(file, text);
    }
    let rules = list.rules;
    LoadedRules { rules, diagnostics }
}

/// Refuses a path in a file of rules: it could name itself, and relative paths would start elsewhere.
fn refuse_file(path: &str) -> Result<Vec<(String, String)>, String> {
    Err(format!(
        "a file of rules holds rules and presets; name {path} in the configuration, or beside this file on the command line"
    ))
}

/// File and line at which each rule name was first used.
pub type UsedNames = BTreeMap<Arc<str>, (Arc<str>, u32)>;

/// Checks the rules of a list and of the files that it names.
pub struct RuleList<'a> {
    /// The signals that the rules may name.
    pub catalog: &'a Catalog,
    /// The capture of rules that set none.
    pub capture: &'a CaptureSpec,
    /// The settings of the including file, with the source of `capture`.
    pub parent: &'a Settings,
    /// Reads the files that the list names.
    pub load_rules: LoadRules<'a>,
    /// Names of the rules so far.
    pub used: UsedNames,
    /// Valid rules so far.
    pub rules: Vec<CheckedRule>,
    /// The receivers that rules name so far, those of rules with errors among them.
    pub notified: Vec<Notified>,
    /// Problems of the files that the list names.
    pub file_diagnostics: &'a mut Vec<Diagnostic>,
}

impl RuleList<'_> {
    /// Checks the entries of one list.
    pub fn check(&mut self, entries: &[Field<RuleEntry>], findings: &mut Findings<'_>) {
        for (entry, place) in entries.iter().filter_map(Field::placed) {
            match entry {
                TextOr::More(rule) => self.check_rule(rule, place, findings),
                TextOr::Text(named) => match files_named(named, self.load_rules) {
                    Ok(files) => files.iter().for_each(|(name, text)| self.check_file(name, text)),
                    Err((message, hint)) => findings.error(place, message, hint),
                },
            }
        }
    }

    /// Checks the rules of one file.
    fn check_file(&mut self, file: &str, text: &str) {
        let mut findings = Findings::new(file, text);
        let parsed = match tree::parse(text) {
            Ok(node) => read::<RulesText>(&node, &mut findings),
            Err(e) => {
                findings.error(e.place, e.message, e.hint);
                None
            }
        };
        let entries = parsed.as_ref().and_then(|r| r.rules.get()).map_or(&[][..], Vec::as_slice);
        if entries.is_empty() && findings.errors() == 0 {
            let place = parsed.as_ref().and_then(|r| r.rules.place()).unwrap_or_default();
            findings.error(place, NO_RULES, Some("begin with `rules:`, and a rule below".into()));
        }
        let outer = std::mem::replace(&mut self.load_rules, &refuse_file);
        self.check(entries, &mut findings);
        self.load_rules = outer;
        self.file_diagnostics.extend(findings.into_sorted());
    }

    fn check_rule(&mut self, text: &RuleText, place: Place, findings: &mut Findings<'_>) {
        let checked = check(text, place, self.catalog, self.capture, self.parent, findings);
        self.notified.extend(notified_by(text, findings.file()));
        if let Some((name, at)) = text.name.placed() {
            let here = (findings.file().clone(), at.line);
            if let Some((file, line)) = self.used.get(name.as_str()) {
                let hint = format!("it is at {file}:{line}; state is kept under the name");
                return findings.error(at, format!("another rule is called `{name}`"), Some(hint));
            }
            self.used.insert(name.as_str().into(), here);
        }
        self.rules.extend(checked);
    }
}

#[cfg(test)]
mod tests;
