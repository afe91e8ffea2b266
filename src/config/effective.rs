//! The settings in force: every value with its source.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::de::Field;
use super::tree::Place;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The built-in default.
    Default,
    /// A file and its line.
    File(Arc<str>, u32),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(file, line) => write!(f, "{file}:{line}"),
        }
    }
}

/// One setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// Its path: `trigger.for`.
    pub key: String,
    /// As it would be written.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
}

/// Settings, in the order in which they were checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Settings {
    #[serde(skip)]
    file: Arc<str>,
    /// Settings of the file that includes this one; they apply where this one is silent.
    #[serde(skip)]
    parent: Vec<Setting>,
    /// All of them.
    pub all: Vec<Setting>,
}

impl Settings {
    /// An empty list for `file`.
    pub fn of(file: Arc<str>) -> Self {
        Self { file, parent: Vec::new(), all: Vec::new() }
    }

    /// An empty list for `file`, which inherits the settings of `other` where it is silent.
    pub fn over(file: Arc<str>, other: &Self) -> Self {
        Self { file, parent: other.all.clone(), all: Vec::new() }
    }

    /// The keys whose values differ in `other`, as they are written.
    pub fn changed_in(&self, other: &Self) -> Vec<String> {
        let key_of = |s: &Setting| (s.key.clone(), s.value.clone());
        let values = |of: &Self| of.all.iter().map(key_of).collect::<BTreeMap<_, _>>();
        let (before, now) = (values(self), values(other));
        let keys = before.keys().chain(now.keys().filter(|key| !before.contains_key(*key)));
        keys.filter(|key| before.get(*key) != now.get(*key)).cloned().collect()
    }

    /// The field's value or the default; records which of them applies.
    pub fn resolve<T: Clone + fmt::Display>(&mut self, key: &str, field: &Field<T>, default: T) -> T {
        match field.placed() {
            Some((value, place)) => {
                self.record_set(key, value, place);
                value.clone()
            }
            None => {
                self.record_unset(key, &default);
                default
            }
        }
    }

    /// Records a value that the file sets.
    pub fn record_set(&mut self, key: &str, value: impl fmt::Display, place: Place) {
        self.push(key, value.to_string(), Origin::File(self.file.clone(), place.line));
    }

    /// Records a value that the file does not set: the inherited one or the default.
    pub fn record_unset(&mut self, key: &str, value: impl fmt::Display) {
        self.record_inherited(key, value, key);
    }

    /// Like [`Self::record_unset`], for a setting that the including file has under `parent_key`.
    pub fn record_inherited(&mut self, key: &str, value: impl fmt::Display, parent_key: &str) {
        let value = value.to_string();
        let from = self.parent.iter().find(|s| s.key == parent_key && s.value == value);
        let origin = from.map_or(Origin::Default, |s| s.origin.clone());
        self.push(key, value, origin);
    }

    /// Records a value that the file sets at `place`, or does not set.
    pub fn record(&mut self, key: &str, value: impl fmt::Display, place: Option<Place>) {
        match place {
            Some(place) => self.record_set(key, value, place),
            None => self.record_unset(key, value),
        }
    }

    /// Like [`Self::record`]; a missing value is shown as `none`.
    pub fn record_option<T: fmt::Display>(&mut self, key: &str, value: Option<T>, place: Option<Place>) {
        match value {
            Some(value) => self.record(key, value, place),
            None => self.record(key, "none", place),
        }
    }

    fn push(&mut self, key: &str, value: String, origin: Origin) {
        self.all.push(Setting { key: key.to_owned(), value, origin });
    }
}

impl fmt::Display for Settings {
    /// One line per setting: key, value and origin, in columns.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width =
            |of: fn(&Setting) -> &str| self.all.iter().map(|s| of(s).chars().count()).max().unwrap_or(0);
        let (keys, values) = (width(|s| &s.key), width(|s| &s.value).min(40));
        for s in &self.all {
            writeln!(f, "  {:keys$}  {:values$}  {}", s.key, s.value, s.origin)?;
        }
        Ok(())
    }
}
