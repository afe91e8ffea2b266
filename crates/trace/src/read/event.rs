//! Scans one trace event at a time: where each needed top-level value is, in any key order and any
//! layout. Irrelevant events (most of a file) are stepped over at memory speed once the file's own
//! layout is known.

use std::ops::Range;

use crate::trace::{Activities, is_same};

use super::json::{Scan, key_at, object_end, skip_space, value_at};

/// Where the values of one event are in the buffer; an empty range where the event lacks the key.
/// Strings are without their quotes, their escapes unresolved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    pub ph: Range<usize>,
    pub cat: Range<usize>,
    pub name: Range<usize>,
    pub tid: Range<usize>,
    pub ts: Range<usize>,
    pub dur: Range<usize>,
    /// With its braces.
    pub args: Range<usize>,
}

impl Fields {
    /// Whether all but the arguments of a complete event are known.
    fn are_complete(&self) -> bool {
        ![&self.ph, &self.cat, &self.name, &self.ts, &self.dur, &self.tid].iter().any(|r| r.is_empty())
    }
}

/// One event of the stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Scanned {
    /// It may be needed: where its values are.
    Relevant(Fields),
    /// Its phase or category is of no use here but for what it says about the profiler; it was stepped
    /// over.
    Irrelevant(Activities),
}

/// Whether events of this phase are irrelevant: flows, counters and instants are.
fn irrelevant_ph(ph: &[u8]) -> bool {
    !matches!(ph, b"X" | b"M")
}

/// Which events of a trace are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// Rows of the GPU, step annotations, names of processes.
    #[default]
    GpuRows,
    /// The same, and when the host launched rows of the GPU.
    Window,
    /// What the host did: operators, calls of the driver, Python functions, annotations.
    Operators,
}

impl Wanted {
    /// Whether events of this category are irrelevant.
    fn is_irrelevant(self, cat: &[u8]) -> bool {
        match self {
            // `cpu_op` and `python_function` are most of a file: two bytes tell them.
            Self::GpuRows | Self::Window if matches!(cat, [b'c', b'p', ..] | [b'p', b'y', ..]) => true,
            Self::Window if is_call(cat) => false,
            Self::GpuRows | Self::Window => !matches!(
                cat,
                b"kernel"
                    | b"gpu_memcpy"
                    | b"gpu_memset"
                    | b"Kernel"
                    | b"Memcpy"
                    | b"Memset"
                    | b"user_annotation"
                    | b"gpu_user_annotation"
            ),
            Self::Operators => !matches!(
                cat,
                b"cpu_op" | b"cuda_runtime" | b"cuda_driver" | b"python_function" | b"user_annotation"
            ),
        }
    }
}

/// Whether events of this category are calls of the driver by the host.
fn is_call(cat: &[u8]) -> bool {
    matches!(cat, b"cuda_runtime" | b"cuda_driver")
}

/// Whether a call by the host, of this category and name, puts a row on the GPU: kernels, graphs, copies and
/// fills do.
pub fn launches(cat: &[u8], name: &[u8]) -> bool {
    is_call(cat) && (has(name, b"Launch") || name.ends_with(b"Async") && has(name, b"Mem"))
}

/// Whether a short text has a word in it.
fn has(text: &[u8], word: &[u8]) -> bool {
    let mut begins = memchr::memchr_iter(word[0], text);
    begins.any(|at| text[at..].starts_with(word))
}

/// What an event of an irrelevant category says about the profiler: `cpu_op`, `python_function`. Windows
/// of kernels alone have neither.
fn activities_of(cat: &[u8]) -> Activities {
    Activities { cpu: matches!(cat, [b'c', b'p', ..]), stacks: matches!(cat, [b'p', b'y', ..]) }
}

/// Scans the event at the start of `b` (its opening brace), number `events` of the file; `layout`
/// learns from it until it can be relied on.
pub fn scan_event(b: &[u8], layout: &mut Layout, events: u64) -> Scan<Scanned> {
    if !layout.must_verify(events) {
        return event_at(b, layout);
    }
    let scanned = event_at(b, &Layout::of(layout.wanted));
    if let Scan::Done(_, end) = scanned {
        layout.learn(b, end);
    }
    scanned
}

/// The event at the start of `b`. As soon as its `ph` or `cat` shows that it is irrelevant, the rest
/// is stepped over; a known `layout` makes that one search.
fn event_at(b: &[u8], layout: &Layout) -> Scan<Scanned> {
    let mut fields = Fields::default();
    let mut at = 1;
    if let Some(opening) = &layout.opening
        && let Some((ph, after)) = opening.phase(b)
    {
        if irrelevant_ph(&b[ph.clone()]) {
            return step_over(b, after, layout, Activities::default());
        }
        if let Some((cat, after)) = opening.category(b, &ph) {
            if layout.wanted.is_irrelevant(&b[cat.clone()]) {
                return step_over(b, after, layout, activities_of(&b[cat]));
            }
            (fields.ph, fields.cat, at) = (ph, cat, after);
        }
    }
    loop {
        let (key, from) = match key_at(b, at) {
            Scan::Done(Some(key), from) => (key, from),
            Scan::Done(None, end) => return Scan::Done(Scanned::Relevant(fields), end),
            Scan::More => return Scan::More,
            Scan::Bad(offset) => return Scan::Bad(offset),
        };
        let key = &b[key];
        if key == b"args" && fields.are_complete() {
            // Kineto writes `args` last: they reach to the event's own closing brace.
            if let Some(end) = layout.end_of_event(b, from) {
                fields.args = from..end - 1;
                return Scan::Done(Scanned::Relevant(fields), end);
            }
        }
        let value = match value_at(b, from) {
            Some((value, end)) if end > from => {
                at = end;
                value
            }
            Some(_) => return Scan::Bad(from),
            None => return Scan::More,
        };
        match key {
            b"ph" if irrelevant_ph(&b[value.clone()]) => {
                return step_over(b, at, layout, Activities::default());
            }
            b"cat" if layout.wanted.is_irrelevant(&b[value.clone()]) => {
                let activities = activities_of(&b[value]);
                return step_over(b, at, layout, activities);
            }
            b"ph" => fields.ph = value,
            b"cat" => fields.cat = value,
            b"name" if is_call(&b[fields.cat.clone()]) && layout.wanted == Wanted::Window => {
                if !launches(&b[fields.cat.clone()], &b[value.clone()]) {
                    return step_over(b, at, layout, Activities::default());
                }
                fields.name = value;
            }
            b"name" => fields.name = value,
            b"tid" => fields.tid = value,
            b"ts" => {
                fields.ts = value;
                // Of a launch nothing else is needed.
                if layout.wanted == Wanted::Window
                    && launches(&b[fields.cat.clone()], &b[fields.name.clone()])
                {
                    return match step_over(b, at, layout, Activities::default()) {
                        Scan::Done(_, end) => Scan::Done(Scanned::Relevant(fields), end),
                        other => other,
                    };
                }
            }
            b"dur" => fields.dur = value,
            b"args" => fields.args = value,
            _ => {}
        }
    }
}

/// Steps over the rest of an irrelevant event, from `at` on.
fn step_over(b: &[u8], at: usize, layout: &Layout, activities: Activities) -> Scan<Scanned> {
    if let Some(end) = layout.end_of_event(b, at) {
        return Scan::Done(Scanned::Irrelevant(activities), end);
    }
    match object_end(b, at) {
        Some(end) => Scan::Done(Scanned::Irrelevant(activities), end),
        None => Scan::More,
    }
}

/// How the writer of a file lays its events out, learnt from the events themselves. Kineto ends
/// every event with a line of its own (an indent and a brace), and no earlier line of the event is
/// like it, so the end of an event can be found by one search for that line.
///
/// A raw line feed cannot occur inside of a JSON string, so such a line is always structure. That it
/// is the end of the event itself, and not of an object inside, is checked on every 64th event; at
/// the first event that differs the layout is given up for the rest of the file.
#[derive(Debug, Default)]
pub struct Layout {
    /// The line that ends an event: a line feed, the indent, a brace.
    closing: Option<memchr::memmem::Finder<'static>>,
    /// How many events in a row had this layout.
    agreed: u32,
    /// Whether an event had another layout: it is not learnt again.
    broken: bool,
    /// Which of the events are wanted.
    wanted: Wanted,
    /// How events begin; one that begins otherwise is read key by key.
    opening: Option<Opening>,
}

/// The very bytes with which events begin whose first two keys are the phase and the category, so that one comparison
/// takes the place of reading them.
#[derive(Debug)]
struct Opening {
    /// From the brace to the phase.
    to_phase: Box<[u8]>,
    /// From behind the phase to the category.
    to_category: Box<[u8]>,
}

impl Opening {
    /// That of an event, if it has one.
    fn of(event: &[u8]) -> Option<Self> {
        let string_of = |key: &[u8], at: usize| match key_at(event, at) {
            Scan::Done(Some(found), from)
                if event[found.clone()] == *key && event.get(from) == Some(&b'"') =>
            {
                value_at(event, from)
            }
            _ => None,
        };
        let (phase, after) = string_of(b"ph", 1)?;
        let (category, _) = string_of(b"cat", after)?;
        let to_category = event[phase.end..category.start].into();
        Some(Self { to_phase: event[..phase.start].into(), to_category })
    }

    /// Where the phase of an event is, which is one letter, and the offset one past its quote.
    #[inline]
    fn phase(&self, b: &[u8]) -> Option<(Range<usize>, usize)> {
        let at = self.to_phase.len();
        let is_letter = b.get(at).is_some_and(u8::is_ascii_alphabetic) && b.get(at + 1) == Some(&b'"');
        (is_letter && is_same(&b[..at], &self.to_phase)).then_some((at..at + 1, at + 2))
    }

    /// The same of the category behind that phase.
    #[inline]
    fn category(&self, b: &[u8], phase: &Range<usize>) -> Option<(Range<usize>, usize)> {
        let from = phase.end + self.to_category.len();
        let has_it = b.get(phase.end..from).is_some_and(|between| is_same(between, &self.to_category));
        // From its opening quote on.
        has_it.then(|| value_at(b, from - 1)).flatten()
    }
}

impl Layout {
    /// How many events must agree before the layout is relied on.
    const ENOUGH: u32 = 64;

    /// Of a file of which these events are wanted.
    pub fn of(wanted: Wanted) -> Self {
        Self { wanted, ..Self::default() }
    }

    /// Whether the next event, number `events` of the file, must be scanned in full and passed to
    /// [`Self::learn`].
    fn must_verify(&self, events: u64) -> bool {
        !self.broken && (self.agreed < Self::ENOUGH || events.is_multiple_of(64))
    }

    /// Learns from an event that was scanned in full: `b` begins with its opening brace, `end` is one
    /// past its closing brace.
    fn learn(&mut self, b: &[u8], end: usize) {
        let Some(event) = b.get(..end) else { return };
        if self.opening.is_none() {
            self.opening = Opening::of(event);
        }
        let line = memchr::memrchr(b'\n', event).map(|n| &event[n..]);
        let indented = line.filter(|l| l.len() > 2 && l[1..l.len() - 1].iter().all(|c| *c == b' '));
        match (&self.closing, indented) {
            (None, Some(line)) if self.agreed == 0 => {
                self.closing = Some(memchr::memmem::Finder::new(line).into_owned());
            }
            (Some(_), Some(_)) => {}
            _ => {
                *self = Self { broken: true, ..Self::of(self.wanted) };
                return;
            }
        }
        let first = self.closing.as_ref().and_then(|f| Some(f.find(event)? + f.needle().len()));
        if first == Some(end) {
            self.agreed += 1;
        } else {
            *self = Self { broken: true, ..Self::of(self.wanted) };
        }
    }

    /// One past the event's end, if the layout is relied on and another event follows.
    #[inline]
    fn end_of_event(&self, b: &[u8], from: usize) -> Option<usize> {
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
    use crate::read::json::member;

    #[test]
    fn a_layout_is_relied_on_only_after_it_held_and_forgotten_when_it_breaks() {
        let event = "{\n    \"ph\": \"X\", \"cat\": \"cpu_op\",\n    \"args\": {\n      \"a\": 1\n    }\n  }";
        let text = format!("{event},\n  {event}");
        let mut layout = Layout::default();
        for _ in 0..Layout::ENOUGH {
            assert_eq!(layout.end_of_event(text.as_bytes(), 3), None);
            layout.learn(text.as_bytes(), event.len());
        }
        assert_eq!(layout.end_of_event(text.as_bytes(), 3), Some(event.len()));
        let cpu = Activities { cpu: true, stacks: false };
        assert_eq!(event_at(text.as_bytes(), &layout), Scan::Done(Scanned::Irrelevant(cpu), event.len()));
        // An event with a line inside that looks like its last one.
        let odd = "{\n    \"args\": {\n  }\n  }";
        layout.learn(odd.as_bytes(), odd.len());
        assert_eq!(layout.end_of_event(text.as_bytes(), 3), None);
        assert!(!layout.must_verify(64));
    }

    #[test]
    fn an_event_that_begins_like_those_before_is_read_as_one_that_does_not() {
        let head = "{\n    \"ph\": \"X\", \"cat\": \"kernel\",";
        let rest = " \"name\": \"a\", \"ts\": 1.5, \"dur\": 2, \"tid\": 7\n  }";
        let mut layout = Layout::default();
        let known = format!("{head}{rest}");
        layout.learn(known.as_bytes(), known.len());
        assert!(layout.opening.is_some());
        let heads = [
            head.to_owned(),
            head.replace("kernel", "cpu_op"),
            head.replace("kernel", "ker\\\"nel"),
            head.replace("kernel", ""),
            head.replace('X', "s"),
            head.replace('X', "M"),
            head.replace('X', ""),
            head.replace('X', "\\\""),
            head.replace("\"cat\"", "\"tac\""),
            head.replace("    ", " "),
            "{\n    \"ph\": \"X\",".to_owned(),
        ];
        for head in heads {
            let text = format!("{head}{rest}");
            for cut in 1..=text.len() {
                let b = &text.as_bytes()[..cut];
                assert_eq!(event_at(b, &layout), event_at(b, &Layout::default()), "{}", &text[..cut]);
            }
        }
    }

    #[test]
    fn keys_are_found_in_any_order_and_layout() {
        for text in [
            r#"{"ph":"X","cat":"kernel","name":"a\"}b","ts":1.5,"dur":"2","args":{"x":[1,"}"]}}"#,
            "{\n \"args\" : {\"x\":\n[1 , \"}\"]},\n\"dur\": \"2\" ,\"ts\" :1.5\n,\"name\":\"a\\\"}b\",\"cat\":\"kernel\", \"ph\":\"X\"\n}",
        ] {
            let b = text.as_bytes();
            let Scan::Done(Scanned::Relevant(p), end) = event_at(b, &Layout::default()) else {
                panic!("{text}")
            };
            assert_eq!(end, b.len());
            let s = |r: Range<usize>| std::str::from_utf8(&b[r]).expect("utf-8").to_owned();
            assert_eq!((s(p.ph), s(p.cat), s(p.name)), ("X".into(), "kernel".into(), "a\\\"}b".into()));
            assert_eq!((s(p.ts), s(p.dur)), ("1.5".into(), "2".into()));
            assert_eq!(member(&b[p.args], b"x").expect("is there")[0], b'[');
        }
    }

    #[test]
    fn every_prefix_of_an_event_asks_for_more_and_nothing_panics() {
        let text = br#"{"ph":"X","name":"a\"b","ts":1.5,"args":{"x":[1,"}"]}}"#;
        for n in 1..text.len() {
            assert_eq!(event_at(&text[..n], &Layout::default()), Scan::More, "{n}");
        }
        for bad in [&b"{]"[..], b"{\"a\" 1}", b"{\"a\":,}", b"{:}"] {
            assert!(
                matches!(event_at(bad, &Layout::default()), Scan::Bad(_)),
                "{:?}",
                String::from_utf8_lossy(bad)
            );
        }
    }
}
