//! Some of the raw lines behind a rank's numbers: the evidence of an onset shows the line that was
//! printed nearest to it. Bounded in lines and bytes; most lines cost one comparison.

use std::collections::VecDeque;
use std::time::Duration;

use crate::printable::printable_bytes;
use skewtrap_trace::time::Time;

/// A line sooner than this after one that was kept is not kept.
const APART: Duration = Duration::from_secs(2);
/// Together they reach back about as far as an onset is looked for.
const MOST: usize = 64;
/// Of a line so many bytes are kept.
const LENGTH: usize = 512;

/// The last lines of one rank.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    kept: VecDeque<(Time, Vec<u8>)>,
    /// Until then lines are not kept.
    next: Time,
}

impl Lines {
    /// Keeps a line, unless one was kept a moment ago.
    #[inline]
    pub fn offer(&mut self, at: Time, line: &[u8]) {
        if at >= self.next || self.next.since(at) > APART {
            self.keep(at, line);
        }
    }

    /// The clock was set by so many nanoseconds.
    pub fn shift(&mut self, by_ns: i64) {
        Time::shift_all(self.kept.iter_mut().map(|kept| &mut kept.0).chain([&mut self.next]), by_ns);
    }

    fn keep(&mut self, at: Time, line: &[u8]) {
        self.next = at + APART;
        // The newest takes the memory of the oldest.
        let oldest = if self.kept.len() == MOST { self.kept.pop_front() } else { None };
        let mut bytes = oldest.map(|(_, bytes)| bytes).unwrap_or_default();
        bytes.clear();
        bytes.extend_from_slice(&line[..line.len().min(LENGTH)]);
        self.kept.push_back((at, bytes));
    }

    /// The line that was printed nearest to `at`.
    pub fn nearest(&self, at: Time) -> Option<(Time, String)> {
        let nearest = self.kept.iter().min_by_key(|(t, _)| t.nanos().abs_diff(at.nanos()))?;
        Some((nearest.0, printable_bytes(&nearest.1, LENGTH)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_every_two_seconds_is_kept_cut_to_its_bound_and_the_oldest_go() {
        let at = |s: f64| Time::from_epoch_s(1000.0 + s);
        let mut lines = Lines::default();
        for tenth in 0..3_000 {
            let t = f64::from(tenth) / 10.0;
            lines.offer(at(t), format!("line of {t:.1} {}", "x".repeat(1000)).as_bytes());
        }
        assert_eq!(lines.kept.len(), MOST);
        let (t, line) = lines.nearest(at(250.7)).unwrap();
        assert_eq!((t, line.len()), (at(250.0), LENGTH));
        assert!(line.starts_with("line of 250.0 x"));
        assert_eq!(lines.nearest(at(0.0)).unwrap().0, at(172.0), "the older ones are gone");
        lines.offer(at(400.0), b"a \x1b]0;title\x07 \xe2\x80\xae prompt");
        assert_eq!(lines.nearest(at(400.0)).unwrap().1, "a \u{fffd}]0;title\u{fffd} \u{fffd} prompt");
        // A clock that was set back does not stop the keeping.
        lines.offer(at(10.0), b"after the jump");
        assert_eq!(lines.nearest(at(10.0)).unwrap().1, "after the jump");
    }
}
