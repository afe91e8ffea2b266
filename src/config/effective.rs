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
    /// What holds where the file is silent, from another one.
    #[serde(skip)]
    beneath: Vec<Setting>,
    /// All of them.
    pub all: Vec<Setting>,
}

impl Settings {
    /// None yet, of `file`.
    pub fn of(file: Arc<str>) -> Self {
        Self { file, beneath: Vec::new(), all: Vec::new() }
    }

    /// Likewise; where the file is silent, `other` may have spoken.
    pub fn over(file: Arc<str>, other: &Self) -> Self {
        Self { file, beneath: other.all.clone(), all: Vec::new() }
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

    /// Notes what holds where the file is silent.
    pub fn fallback(&mut self, key: &str, value: impl fmt::Display) {
        self.inherited(key, value, key);
    }

    /// Likewise; another file calls it `elsewhere`.
    pub fn inherited(&mut self, key: &str, value: impl fmt::Display, elsewhere: &str) {
        let value = value.to_string();
        let from = self.beneath.iter().find(|s| s.key == elsewhere && s.value == value);
        let origin = from.map_or(Origin::Default, |s| s.origin.clone());
        self.push(key, value, origin);
    }

    /// Notes what holds, whether the file says it (`place`) or not.
    pub fn note(&mut self, key: &str, value: impl fmt::Display, place: Option<Place>) {
        match place {
            Some(place) => self.given(key, value, place),
            None => self.fallback(key, value),
        }
    }

    /// Notes what may be missing.
    pub fn note_any<T: fmt::Display>(&mut self, key: &str, value: Option<T>, place: Option<Place>) {
        match value {
            Some(value) => self.note(key, value, place),
            None => self.note(key, "none", place),
        }
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
