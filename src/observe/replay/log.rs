//! Replays a log: whole lines in large chunks, or up to a given time when recordings are merged.

use std::fmt;
use std::io::{self, Read};

use jiff::tz::TimeZone;
use memchr::{memchr, memrchr};

use super::{Input, Opened, ReplayError};
use crate::observe::tail::KEPT;
use skewtrap_core::signal::log_reader::{Arrival, LogReader};
use skewtrap_core::signal::observation::Observation;
use skewtrap_trace::time::Time;

/// Bytes of one read: enough that system calls cost little, and still within the processor's cache.
const CHUNK: u64 = 256 << 10;

/// A log being replayed.
pub(super) struct LogRecording {
    input: Input,
    file: Opened,
    /// What was read and is not in an observation yet: whole lines first.
    held: Vec<u8>,
    /// How many bytes of `held` are in an observation already.
    taken: usize,
    spare: Vec<u8>,
    reader: LogReader,
    /// Why it cannot be read on; returned after everything before it.
    broken: Option<io::Error>,
    dropped: u64,
}

impl fmt::Debug for LogRecording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogRecording").field("input", &self.input).finish_non_exhaustive()
    }
}

impl LogRecording {
    pub(super) fn new(input: Input, file: Opened, zone: TimeZone) -> Self {
        let reader = LogReader::new(zone);
        Self { input, file, held: Vec::new(), taken: 0, spare: Vec::new(), reader, broken: None, dropped: 0 }
    }

    pub(super) fn recycle(&mut self, mut buffer: Vec<u8>) {
        buffer.clear();
        self.spare = buffer;
    }

    /// The next whole lines, as many as fit.
    pub(super) fn chunk(&mut self) -> Result<Option<Observation>, ReplayError> {
        let mut lines = std::mem::take(&mut self.spare);
        lines.extend_from_slice(&self.held[self.taken..]);
        (self.taken, self.held) = (0, Vec::new());
        loop {
            let read = self.read_into(&mut lines)?;
            if read == 0 {
                break;
            }
            if let Some(end) = memrchr(b'\n', &lines) {
                self.held = lines.split_off(end + 1);
                break;
            }
            lines.truncate(KEPT);
        }
        Ok((!lines.is_empty()).then(|| self.observation(lines)))
    }

    /// The time of the next line.
    pub(super) fn head(&mut self) -> Result<Option<Time>, ReplayError> {
        Ok(self.line()?.map(|(at, _)| at))
    }

    /// The next line, and the lines after it that were written up to `until`.
    pub(super) fn lines_until(&mut self, until: Option<Time>) -> Result<Option<Observation>, ReplayError> {
        let mut lines = Vec::new();
        while let Some((at, end)) = self.line()? {
            if !lines.is_empty() && (until.is_some_and(|until| at > until) || lines.len() as u64 >= CHUNK) {
                break;
            }
            lines.extend_from_slice(&self.held[self.taken..end]);
            self.taken = end;
        }
        Ok((!lines.is_empty()).then(|| self.observation(lines)))
    }

    /// The time of the next line, and where it ends in `held`.
    fn line(&mut self) -> Result<Option<(Time, usize)>, ReplayError> {
        loop {
            let rest = &self.held[self.taken..];
            if let Some(end) = memchr(b'\n', rest) {
                let at = self.reader.read(&rest[..end], Arrival::Recorded).at;
                return Ok(Some((at, self.taken + end + 1)));
            }
            let mut held = std::mem::take(&mut self.held);
            held.drain(..self.taken);
            self.taken = 0;
            let read = self.read_into(&mut held);
            self.held = held;
            let read = read?;
            if memchr(b'\n', &self.held).is_none() {
                self.held.truncate(KEPT);
            }
            if read == 0 {
                let rest = &self.held;
                let last = (!rest.is_empty()).then(|| self.reader.read(rest, Arrival::Recorded).at);
                return Ok(last.map(|at| (at, self.held.len())));
            }
        }
    }

    /// How many lines were cut where the recording breaks off.
    pub(super) const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Reads on. When the file turns out to be broken, what could be read before is returned first, and the
    /// error with the next call.
    fn read_into(&mut self, buffer: &mut Vec<u8>) -> Result<usize, ReplayError> {
        let before = buffer.len();
        let read = match self.broken.take() {
            Some(error) => Err(error),
            None => self.file.by_ref().take(CHUNK).read_to_end(buffer),
        };
        match read {
            Ok(read) => Ok(read),
            Err(error) if buffer.len() > before => {
                self.broken = Some(error);
                Ok(buffer.len() - before)
            }
            Err(error) => {
                self.dropped += u64::from(before > 0);
                Err(ReplayError::unread(&self.input.path, error))
            }
        }
    }

    fn observation(&self, lines: Vec<u8>) -> Observation {
        let Input { target, source, .. } = self.input;
        Observation::Lines { target, source, lines, arrival: Arrival::Recorded }
    }
}
