//! Steps over a whole event at memory speed, by the line that ends it, once a writer has shown that
//! it ends every event so. The scanner stays the judge: what it sees decides whether a layout holds.

use super::scan::{Found, Scan, event_at, skip_space};

/// How a writer lays events out, learnt from its own events: every one ends with a line of its own,
/// a brace behind so many spaces, and no line before is alike. A raw line feed cannot be inside of a
/// JSON string, so such a line is always structure; that it is the event's own end, and not that
/// of something inside, is checked on every 64th event, and forgotten at the first that differs.
#[derive(Debug, Default)]
pub struct Layout {
    /// The last line's beginning: a line feed, the indent, a brace.
    closing: Option<memchr::memmem::Finder<'static>>,
    /// Events in a row that agreed.
    agreed: u32,
    /// Whether the layout did not hold: never tried again.
    broken: bool,
}

impl Layout {
    /// So many events must agree before the layout is relied on.
    const ENOUGH: u32 = 64;

    /// Scans the event at the start of `b`, the `events`-th of the file, and learns from it at times.
    pub fn scan(&mut self, b: &[u8], events: u64) -> Scan<Found> {
        if !self.wants_to_learn(events) {
            return event_at(b, self);
        }
        let scanned = event_at(b, &Self::default());
        if let Scan::Done(_, end) = scanned {
            self.learn(b, end);
        }
        scanned
    }

    /// Whether the next event is to be read in full and shown to [`Self::learn`].
    pub fn wants_to_learn(&self, events: u64) -> bool {
        !self.broken && (self.agreed < Self::ENOUGH || events.is_multiple_of(64))
    }

    /// Learns from an event that was stepped through in full: `b` begins with its brace, `end` is
    /// one past its last.
    pub fn learn(&mut self, b: &[u8], end: usize) {
        let Some(event) = b.get(..end) else { return };
        let line = memchr::memrchr(b'\n', event).map(|n| &event[n..]);
        let indented = line.filter(|l| l.len() > 2 && l[1..l.len() - 1].iter().all(|c| *c == b' '));
        match (&self.closing, indented) {
            (None, Some(line)) if self.agreed == 0 => {
                self.closing = Some(memchr::memmem::Finder::new(line).into_owned());
            }
            (Some(_), Some(_)) => {}
            _ => {
                *self = Self { broken: true, ..Self::default() };
                return;
            }
        }
        let first = self.closing.as_ref().and_then(|f| Some(f.find(event)? + f.needle().len()));
        if first == Some(end) {
            self.agreed += 1;
        } else {
            *self = Self { broken: true, ..Self::default() };
        }
    }

    /// One past the event's end, if the layout is relied on and what follows begins another event.
    #[inline]
    pub fn event_end(&self, b: &[u8], from: usize) -> Option<usize> {
        let closing = self.closing.as_ref().filter(|_| self.agreed >= Self::ENOUGH)?;
        let end = from + closing.find(b.get(from..)?)? + closing.needle().len();
        let comma = skip_space(b, end);
        let brace = skip_space(b, comma + 1);
        (b.get(comma) == Some(&b',') && b.get(brace) == Some(&b'{')).then_some(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn a_layout_is_relied_on_only_after_it_held_and_forgotten_when_it_breaks() {
        let event = "{\n    \"ph\": \"X\", \"cat\": \"cpu_op\",\n    \"args\": {\n      \"a\": 1\n    }\n  }";
        let text = format!("{event},\n  {event}");
        let mut layout = Layout::default();
        for _ in 0..Layout::ENOUGH {
            assert_eq!(layout.event_end(text.as_bytes(), 3), None);
            layout.learn(text.as_bytes(), event.len());
        }
        assert_eq!(layout.event_end(text.as_bytes(), 3), Some(event.len()));
        assert_eq!(event_at(text.as_bytes(), &layout), Scan::Done(Found::Unwanted, event.len()));
        // An event with a line inside that looks like its last one.
        let odd = "{\n    \"args\": {\n  }\n  }";
        layout.learn(odd.as_bytes(), odd.len());
        assert_eq!(layout.event_end(text.as_bytes(), 3), None);
        assert!(!layout.wants_to_learn(64));
    }
}
