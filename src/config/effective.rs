//! What holds, and why: every setting with its value and where it came from.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::de::Field;
use super::tree::Place;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Nobody said otherwise.
    Default,
    /// A file and its line.
    File(Arc<str>, u32),
    /// The command line: the flag.
    Flag(Arc<str>),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(file, line) => write!(f, "{file}:{line}"),
            Self::Flag(flag) => write!(f, "{flag}"),
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

/// Settings in the order in which they were looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Settings {
    #[serde(skip)]
    file: Arc<str>,
    /// All of them.
    pub all: Vec<Setting>,
}

impl Settings {
    /// None yet, of `file`.
    pub fn of(file: Arc<str>) -> Self {
        Self { file, all: Vec::new() }
    }

    /// A field's value or the default, noted either way.
    pub fn take<T: Clone + fmt::Display>(&mut self, key: &str, field: &Field<T>, default: T) -> T {
        match field.placed() {
            Some((value, place)) => {
                self.given(key, value, place);
                value.clone()
            }
            None => {
                self.fallback(key, &default);
                default
            }
        }
    }

    /// Notes what the file says.
    pub fn given(&mut self, key: &str, value: impl fmt::Display, place: Place) {
        self.push(key, value.to_string(), Origin::File(self.file.clone(), place.line));
    }

    /// Notes a default.
    pub fn fallback(&mut self, key: &str, value: impl fmt::Display) {
        self.push(key, value.to_string(), Origin::Default);
    }

    /// Notes what the command line says; it wins over a note with the same key.
    pub fn flag(&mut self, key: &str, value: impl fmt::Display, flag: &str) {
        self.all.retain(|s| s.key != key);
        self.push(key, value.to_string(), Origin::Flag(flag.into()));
    }

    fn push(&mut self, key: &str, value: String, origin: Origin) {
        self.all.push(Setting { key: key.to_owned(), value, origin });
    }
}

impl fmt::Display for Settings {
    /// A line each: key, value, origin, in columns.
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
