//! The problems of a file: each with its place, the line it is in, and a hint.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::tree::Place;
use skewtrap_core::suggest::nearest;

/// How serious a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// The file is refused.
    Error,
    /// The file is accepted, but somebody should know.
    Warning,
}

/// One problem of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// How serious a problem is.
    pub level: Level,
    /// The file, as it was named.
    pub file: Arc<str>,
    /// Line, from 1; 0 when the whole file is meant.
    pub line: u32,
    /// Column, from 1.
    pub column: u32,
    /// What is wrong.
    pub message: String,
    /// How to correct it.
    pub hint: Option<String>,
    /// The line itself.
    pub snippet: Option<String>,
    /// How many characters of the line are underlined.
    pub width: u32,
}

impl Diagnostic {
    /// An error in a file whose text is not at hand: the line is not shown.
    pub fn error_at(file: &Arc<str>, place: Place, message: String, hint: Option<String>) -> Self {
        let (line, column, width) = (place.line, place.column, place.width);
        Self { level: Level::Error, file: file.clone(), line, column, message, hint, snippet: None, width }
    }

    /// A warning in such a file.
    pub fn warning_at(file: &Arc<str>, place: Place, message: String, hint: Option<String>) -> Self {
        Self { level: Level::Warning, ..Self::error_at(file, place, message, hint) }
    }

    /// An error of a whole file.
    pub fn of_file(file: &str, message: String) -> Self {
        Self::error_at(&file.into(), Place::default(), message, None)
    }

    /// The same where the file is none, but written for the flag that it is called by: its lines are nobody's.
    #[must_use]
    pub fn without_lines_of(self, flag: &str) -> Self {
        match *self.file == *flag {
            true => Self { line: 0, column: 0, snippet: None, ..self },
            false => self,
        }
    }

    /// The problem on one line, for a log or an answer: `skewtrap.yaml:4:3: message (hint)`.
    pub fn line_of(&self) -> String {
        let hint = self.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
        format!("{}:{}:{}: {}{hint}", self.file, self.line, self.column, self.message)
    }

    /// Whether it makes the file unusable.
    pub fn is_error(&self) -> bool {
        self.level == Level::Error
    }
}

impl fmt::Display for Diagnostic {
    /// As compilers do: place and message, the line with the place underlined, the hint.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Error => "error",
            Level::Warning => "warning",
        };
        match self.line {
            0 => write!(f, "{level}: {}: {}", self.file, self.message)?,
            line => write!(f, "{level}: {}:{line}:{}: {}", self.file, self.column, self.message)?,
        }
        if let Some(snippet) = &self.snippet {
            let gutter = " ".repeat(self.line.to_string().len());
            let before = " ".repeat(self.column.saturating_sub(1) as usize);
            let room = snippet.chars().count().saturating_sub(before.len()).max(1);
            let marks = "^".repeat((self.width as usize).clamp(1, room));
            write!(f, "\n {gutter} |\n {} | {snippet}\n {gutter} | {before}{marks}", self.line)?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  = {hint}")?;
        }
        Ok(())
    }
}

/// The problems found in one file, in the order in which they were found.
#[derive(Debug)]
pub struct Findings<'t> {
    file: Arc<str>,
    text: &'t str,
    found: Vec<Diagnostic>,
    /// Lines that hold secrets; no diagnostic shows them.
    hidden: BTreeSet<u32>,
    /// Keys that nobody knows, and where their mappings begin.
    unknown_keys: Vec<(Place, String)>,
}

/// The path as seen from the agent's working folder, where `file` names it.
pub fn beside(file: &Path, path: &str) -> String {
    let folder = file.parent().unwrap_or(Path::new(""));
    folder.join(path).display().to_string()
}

impl<'t> Findings<'t> {
    /// An empty list for `file`, whose content is `text`.
    pub fn new(file: &str, text: &'t str) -> Self {
        Self { file: file.into(), text, found: Vec::new(), hidden: BTreeSet::new(), unknown_keys: Vec::new() }
    }

    /// The file.
    pub fn file(&self) -> &Arc<str> {
        &self.file
    }

    /// A path that the file names: a relative one starts from the file's own folder, wherever the agent was started.
    pub fn beside(&self, path: &str) -> String {
        beside(Path::new(&*self.file), path)
    }

    /// Notes that the mapping at a place has a key that nobody knows, which was reported.
    pub fn note_unknown_key(&mut self, mapping: Place, key: &str) {
        self.unknown_keys.push((mapping, key.to_owned()));
    }

    /// Whether one of these keys, which the mapping at a place seems to lack, is there and misspelt: that was reported.
    pub fn is_misspelt(&self, mapping: Place, keys: &[&str]) -> bool {
        let here = |at: &Place| (at.line, at.column) == (mapping.line, mapping.column);
        let near = |key: &str| nearest(key, keys.iter().copied()).is_some();
        self.unknown_keys.iter().any(|(at, key)| here(at) && near(key))
    }

    /// Adds an error.
    pub fn error(&mut self, place: Place, message: impl Into<String>, hint: Option<String>) {
        self.add(Level::Error, place, message.into(), hint);
    }

    /// Adds a warning.
    pub fn warn(&mut self, place: Place, message: impl Into<String>, hint: Option<String>) {
        self.add(Level::Warning, place, message.into(), hint);
    }

    /// Adds an error whose line is not shown, because it holds a secret.
    pub fn error_hiding_line(&mut self, place: Place, message: impl Into<String>, hint: Option<String>) {
        self.add(Level::Error, place, message.into(), hint);
        if let Some(last) = self.found.last_mut() {
            last.snippet = None;
            self.hidden.insert(place.line);
        }
    }

    /// How many errors were found so far.
    pub fn errors(&self) -> usize {
        self.found.iter().filter(|d| d.is_error()).count()
    }

    /// All problems, in the order of the file.
    pub fn into_sorted(mut self) -> Vec<Diagnostic> {
        self.found.sort_by_key(|d| (d.line, d.column));
        for d in self.found.iter_mut().filter(|d| self.hidden.contains(&d.line)) {
            d.snippet = None;
        }
        self.found
    }

    fn add(&mut self, level: Level, place: Place, message: String, hint: Option<String>) {
        let line = usize::try_from(place.line).unwrap_or(0);
        let snippet = line.checked_sub(1).and_then(|n| self.text.lines().nth(n));
        self.found.push(Diagnostic {
            level,
            file: self.file.clone(),
            line: place.line,
            column: place.column,
            message,
            hint,
            // A tab would shift the underline below it.
            snippet: snippet.map(|s| s.trim_end().replace('\t', " ")),
            width: place.width,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diagnostic_shows_the_line_the_spot_and_what_would_be_right() {
        let text = "rules:\n  - name: x\n    severty: warning\n";
        let mut findings = Findings::new("rules.yaml", text);
        let place = Place { line: 3, column: 5, width: 7 };
        findings.error(place, "unknown key `severty`", Some("did you mean `severity`?".into()));
        findings.warn(Place { line: 2, column: 11, width: 99 }, "a short name", None);
        let all: Vec<String> = findings.into_sorted().iter().map(ToString::to_string).collect();
        insta::assert_snapshot!(all.join("\n"), @r"
        warning: rules.yaml:2:11: a short name
           |
         2 |   - name: x
           |           ^
        error: rules.yaml:3:5: unknown key `severty`
           |
         3 |     severty: warning
           |     ^^^^^^^
          = did you mean `severity`?
        ");
    }
}
