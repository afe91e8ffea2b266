//! Replays metrics pages and loads, one at a time.

use std::fmt;
use std::io::BufRead;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Input, Opened, ReplayError};
use skewtrap_core::signal::observation::Observation;
use skewtrap_trace::time::Time;

/// Reads a recording line by line and counts the lines.
struct Lines {
    input: Input,
    file: Opened,
    line: Vec<u8>,
    number: u64,
}

impl Lines {
    /// The next line with its newline; `false` at the end.
    fn advance(&mut self) -> Result<bool, ReplayError> {
        self.line.clear();
        let read = self.file.read_until(b'\n', &mut self.line);
        let read = read.map_err(|error| ReplayError::unread(&self.input.path, error))?;
        self.number += 1;
        Ok(read > 0)
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines")
            .field("input", &self.input)
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

/// Metrics pages that are being replayed.
#[derive(Debug)]
pub(super) struct MetricsRecording {
    lines: Lines,
    /// The time in the `#@` line that was read ahead, which is that of the page after it.
    next: Option<Time>,
    head: Option<(Time, Vec<u8>)>,
}

impl MetricsRecording {
    pub(super) fn new(input: Input, file: Opened) -> Self {
        Self { lines: Lines { input, file, line: Vec::new(), number: 0 }, next: None, head: None }
    }

    /// The time of the next page.
    pub(super) fn head(&mut self) -> Result<Option<Time>, ReplayError> {
        if self.head.is_none() {
            self.head = self.page()?;
        }
        Ok(self.head.as_ref().map(|h| h.0))
    }

    /// The next page.
    pub(super) fn take(&mut self) -> Option<Observation> {
        let Input { target, source, .. } = self.lines.input;
        self.head.take().map(|(at, body)| Observation::Page { target, source, body, at })
    }

    fn page(&mut self) -> Result<Option<(Time, Vec<u8>)>, ReplayError> {
        let mut body = Vec::new();
        while self.lines.advance()? {
            let line = &self.lines.line;
            if let Some(epoch) = epoch_of(line) {
                if let Some(at) = self.next.replace(epoch) {
                    return Ok(Some((at, body)));
                }
                body.clear();
            } else if self.next.is_some() {
                body.extend_from_slice(line);
            } else if !line.trim_ascii().is_empty() {
                return Err(ReplayError::NoEpoch {
                    path: self.lines.input.path.clone(),
                    line: self.lines.number,
                });
            }
        }
        Ok(self.next.take().map(|at| (at, body)))
    }
}

/// `#@ 1795492088.331`
fn epoch_of(line: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(line.strip_prefix(b"#@")?).ok()?;
    text.trim().parse().ok().map(Time::from_epoch_s)
}

/// Loads that are being replayed.
#[derive(Debug)]
pub(super) struct LoadsRecording {
    lines: Lines,
    head: Option<(Time, Vec<u8>)>,
    /// Whether a line was valid, so that it is a recording of loads.
    is_valid: bool,
    dropped: u64,
}

/// One recorded answer.
#[derive(Deserialize)]
struct Recorded<'a> {
    t: f64,
    #[serde(borrow)]
    body: &'a RawValue,
}

impl LoadsRecording {
    pub(super) fn new(input: Input, file: Opened) -> Self {
        let lines = Lines { input, file, line: Vec::new(), number: 0 };
        Self { lines, head: None, is_valid: false, dropped: 0 }
    }

    /// How many lines were cut or damaged.
    pub(super) const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The time of the next answer.
    pub(super) fn head(&mut self) -> Result<Option<Time>, ReplayError> {
        while self.head.is_none() && self.lines.advance()? {
            let line = self.lines.line.trim_ascii();
            if line.is_empty() {
                continue;
            }
            match serde_json::from_slice::<Recorded<'_>>(line) {
                Ok(recorded) => {
                    self.is_valid = true;
                    self.head = Some((Time::from_epoch_s(recorded.t), recorded.body.get().into()));
                }
                // A line that was only half written when the recorder stopped does not invalidate the others.
                Err(_) if self.is_valid => self.dropped += 1,
                Err(e) => {
                    return Err(ReplayError::NotLoads {
                        path: self.lines.input.path.clone(),
                        line: self.lines.number,
                        why: e.to_string(),
                    });
                }
            }
        }
        Ok(self.head.as_ref().map(|h| h.0))
    }

    /// The next answer.
    pub(super) fn take(&mut self) -> Option<Observation> {
        let Input { target, source, .. } = self.lines.input;
        self.head.take().map(|(at, body)| Observation::Loads { target, source, body, at })
    }
}
