//! Reads one log line by line: which engine wrote it, when each line was written, and what it means.

use jiff::tz::TimeZone;

use crate::signal::fields::Fields;
use crate::signal::log_line::{Line, LineContent};
use crate::signal::sglang_line::Shapes;
use crate::signal::stamp::Clock;
use crate::signal::{number, sglang_line, vllm_line};
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

/// At most this many bytes of a line are read; longer lines are counted.
pub const MAX_LINE: usize = 64 << 10;

/// How a line arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Just now, at this time.
    Live(Time),
    /// Now, from a file's past: only its stamp says when it was written.
    Backlog(Time),
    /// From a recording: it may begin with `EPOCH<TAB>`, its arrival; else only its stamp counts.
    Recorded,
}

/// Reads one log.
#[derive(Debug)]
pub struct LogReader {
    clock: Clock,
    fields: Fields,
    shapes: Shapes,
    last: Time,
    /// The rank whose scheduler is dying, while its traceback goes on: the reason is in the last line.
    dying: Option<Rank>,
}

/// How a traceback begins; its lines bear no stamp.
const TRACEBACK: &[u8] = b"Traceback (most recent call last):";

/// A line with the time at which it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct DatedLine<'a> {
    /// When it was written, as well as can be known.
    pub at: Time,
    /// Its rank and its meaning; the numbers are in [`LogReader::fields`].
    pub line: Line<'a>,
}

impl LogReader {
    /// A reader for a log whose stamps are of `zone`.
    pub fn new(zone: TimeZone) -> Self {
        Self {
            clock: Clock::new(zone),
            fields: Fields::default(),
            shapes: Shapes::of_a_log(),
            last: Time::default(),
            dying: None,
        }
    }

    /// Reads a line (without its newline).
    pub fn read<'a>(&mut self, line: &'a [u8], arrival: Arrival) -> DatedLine<'a> {
        let (text, arrived) = match arrival {
            Arrival::Recorded => recorded(line),
            Arrival::Live(at) | Arrival::Backlog(at) => (line, Some(at)),
        };
        let line = self.line(text);
        let at = match arrived {
            Some(at) => self.clock.written_at(line.stamp, at, matches!(arrival, Arrival::Backlog(_))),
            None => line.stamp.and_then(|s| self.clock.instant(s, None)).unwrap_or(self.last),
        };
        self.last = at;
        DatedLine { at, line }
    }

    /// The numbers of the line that was read last.
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// Values so far that stood where a number should, and pairs that were cut in the middle.
    pub fn unreadable(&self) -> u64 {
        self.shapes.unreadable()
    }

    /// By how much the stamps of lines differ from their arrival, when the zone or a clock must be wrong, in words.
    pub fn disagreement(&self) -> Option<String> {
        self.clock.disagreement()
    }

    /// Whether they do.
    pub const fn disagrees(&self) -> bool {
        self.clock.disagrees()
    }

    fn line<'a>(&mut self, text: &'a [u8]) -> Line<'a> {
        let line = sglang_line::read_next(text, &mut self.fields, &mut self.shapes);
        if let Some(rank) = self.dying {
            return self.traceback_end(rank, line, text);
        }
        if let LineContent::Fatal(words) = line.content
            && words.ends_with(TRACEBACK)
        {
            self.dying = Some(line.rank);
            return Line { content: LineContent::Other, ..line };
        }
        if line.stamp.is_some() || line.content != LineContent::Other {
            return line;
        }
        vllm_line::read_next(text, &mut self.fields, &mut self.shapes.unreadable).unwrap_or(line)
    }

    /// `OSError: [Errno 28] No space left on device`, which ends a traceback and says why.
    fn traceback_end<'a>(&mut self, rank: Rank, line: Line<'a>, text: &'a [u8]) -> Line<'a> {
        if line.stamp.is_some() {
            self.dying = None;
            return line;
        }
        let word = text.split(|b| *b == b':' || *b == b' ').next().unwrap_or_default();
        let names_it = word.ends_with(b"Error") || word.ends_with(b"Exception");
        if !names_it {
            return Line { content: LineContent::Other, ..line };
        }
        self.dying = None;
        Line { rank, content: LineContent::Fatal(text), ..line }
    }
}

/// Takes `EPOCH<TAB>` off the front.
fn recorded(line: &[u8]) -> (&[u8], Option<Time>) {
    if !line.first().is_some_and(u8::is_ascii_digit) {
        return (line, None);
    }
    match number::leading(line) {
        Some((epoch, end)) if line.get(end) == Some(&b'\t') => {
            (&line[end + 1..], Some(Time::from_epoch_s(epoch)))
        }
        _ => (line, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signal::catalog;

    #[test]
    fn a_recorded_line_is_as_old_as_its_arrival_or_else_its_stamp() {
        let mut reader = LogReader::new(TimeZone::UTC);
        let line = "[2026-11-24 03:48:06 DP2] Decode batch, #running-req: 4, #queue-req: 1";
        let stamped = format!("1795492086.7102\t{line}");
        let dated = reader.read(stamped.as_bytes(), Arrival::Recorded);
        assert_eq!((dated.at, dated.line.rank), (Time::from_epoch_s(1_795_492_086.710_2), Rank::dp(2)));
        assert_eq!(reader.fields().get(catalog::QUEUE_REQS), Some(1.0));
        assert_eq!(reader.read(line.as_bytes(), Arrival::Recorded).at, Time::from_epoch_s(1_795_492_086.0));
        let no_stamp = reader.read(b"Traceback (most recent call last):", Arrival::Recorded);
        assert_eq!(no_stamp.at, Time::from_epoch_s(1_795_492_086.0), "it follows the line before");
        assert_eq!(no_stamp.line.content, LineContent::Other);
    }

    #[test]
    fn a_dying_scheduler_is_heard_with_the_reason_at_the_end_of_its_traceback() {
        let mut reader = LogReader::new(TimeZone::UTC);
        let text = "[2026-11-24 03:48:06 DP1] Scheduler hit an exception: Traceback (most recent call last):\n  File \"scheduler.py\", line 3342, in run_scheduler_process\n    scheduler.event_loop_overlap()\nOSError: [Errno 28] No space left on device: '/p/x.gz'\n\n[2026-11-24 03:48:06] SIGQUIT received. signum=None, frame=None. It usually means one child failed.\nRuntimeError: of a request, which kills nobody";
        let mut fatal = Vec::new();
        for line in text.split('\n') {
            let dated = reader.read(line.as_bytes(), Arrival::Recorded);
            if let LineContent::Fatal(words) = dated.line.content {
                fatal.push((dated.line.rank, String::from_utf8_lossy(words).into_owned()));
            }
        }
        assert_eq!(fatal.len(), 2, "{fatal:?}");
        assert_eq!(fatal[0], (Rank::dp(1), "OSError: [Errno 28] No space left on device: '/p/x.gz'".into()));
        assert!(fatal[1].1.starts_with("SIGQUIT received."));
    }

    #[test]
    fn a_log_of_either_engine_is_understood() {
        let mut reader = LogReader::new(TimeZone::UTC);
        let now = Arrival::Live(Time::from_epoch_s(1_795_492_087.0));
        let line = b"INFO 11-24 03:48:06 [loggers.py:257] Engine 001: Avg prompt throughput: 1.0 tokens/s, Running: 5 reqs";
        let dated = reader.read(line, now);
        assert_eq!((dated.line.rank, dated.at), (Rank::dp(1), Time::from_epoch_s(1_795_492_087.0)));
        assert_eq!(reader.fields().get(catalog::RUNNING_REQS), Some(5.0));
    }
}
