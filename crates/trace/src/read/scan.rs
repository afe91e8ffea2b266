//! Finds its way through one JSON event without building anything: where each wanted top-level key
//! of the event has its value, in any order and any layout. Everything else is stepped over, nested
//! values by counting brackets outside of strings.
//!
//! It does not validate what it steps over; it only never reads past the buffer and never loops.

use std::ops::Range;

use super::layout::Layout;

/// What came of looking at the start of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub enum Scan<T> {
    /// Found; the number of bytes it takes.
    Done(T, usize),
    /// The buffer ends inside it.
    More,
    /// Not JSON, at this offset.
    Bad(usize),
}

/// Where one event's values are. An empty range: the key is not there. String values are without
/// their quotes, escapes left as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// `ph`.
    pub ph: Range<usize>,
    /// `cat`.
    pub cat: Range<usize>,
    /// `name`.
    pub name: Range<usize>,
    /// `pid`.
    pub pid: Range<usize>,
    /// `tid`.
    pub tid: Range<usize>,
    /// `ts`.
    pub ts: Range<usize>,
    /// `dur`.
    pub dur: Range<usize>,
    /// `args`, with its braces.
    pub args: Range<usize>,
}

impl Places {
    /// Whether all but the arguments of a complete event are known.
    fn are_complete(&self) -> bool {
        ![&self.ph, &self.cat, &self.name, &self.ts, &self.dur, &self.tid].iter().any(|r| r.is_empty())
    }
}

/// What a byte means to one who steps over a value: 1 a quote, 2 an opening, 3 a closing bracket.
const CLASS: [u8; 256] = {
    let mut table = [0; 256];
    table[b'"' as usize] = 1;
    table[b'{' as usize] = 2;
    table[b'[' as usize] = 2;
    table[b'}' as usize] = 3;
    table[b']' as usize] = 3;
    table
};

/// The first byte at or after `at` that is no white space.
#[inline]
pub fn skip_space(b: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\n' | b'\r' | b'\t') = b.get(at) {
        at += 1;
    }
    at
}

/// The closing quote of the string whose first character is at `at`.
#[inline]
fn string_end(b: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match b.get(at)? {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// The same for strings that are long more often than not.
#[inline]
fn long_string_end(b: &[u8], mut at: usize) -> Option<usize> {
    loop {
        at += memchr::memchr2(b'"', b'\\', b.get(at..)?)?;
        if b[at] == b'"' {
            return Some(at);
        }
        at += 2;
    }
}

/// One past the end of the object or array that opens at `at`.
#[inline]
fn nested_end(b: &[u8], at: usize) -> Option<usize> {
    end_from(b, at, 0)
}

/// One past the end of the object that `at` is inside of, outside of strings.
fn object_end(b: &[u8], at: usize) -> Option<usize> {
    end_from(b, at, 1)
}

#[inline]
fn end_from(b: &[u8], mut at: usize, mut depth: u32) -> Option<usize> {
    loop {
        let rest = b.get(at..)?;
        at += rest.iter().position(|&c| CLASS[usize::from(c)] != 0)?;
        match CLASS[usize::from(b[at])] {
            1 => at = string_end(b, at + 1)?,
            2 => depth += 1,
            _ => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
        }
        at += 1;
    }
}

/// One past the end of a number, `true`, `false` or `null` that begins at `at`.
#[inline]
fn scalar_end(b: &[u8], at: usize) -> Option<usize> {
    let rest = b.get(at..)?;
    rest.iter().position(|c| matches!(c, b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t')).map(|n| at + n)
}

/// The value at the start of `b[at..]`: its content, and one past its end.
#[inline]
pub fn value_at(b: &[u8], at: usize) -> Option<(Range<usize>, usize)> {
    match b.get(at)? {
        b'"' => long_string_end(b, at + 1).map(|end| (at + 1..end, end + 1)),
        b'{' | b'[' => nested_end(b, at).map(|end| (at..end, end)),
        _ => scalar_end(b, at).map(|end| (at..end, end)),
    }
}

/// A key inside an object, from just after the `{` or the last value on, and where its value
/// begins: `None` at the object's `}`, then the place is one past it.
#[inline]
fn key_at(b: &[u8], at: usize) -> Scan<Option<Range<usize>>> {
    let mut at = skip_space(b, at);
    if b.get(at) == Some(&b',') {
        at = skip_space(b, at + 1);
    }
    match b.get(at) {
        None => return Scan::More,
        Some(b'}') => return Scan::Done(None, at + 1),
        Some(b'"') => {}
        Some(_) => return Scan::Bad(at),
    }
    let Some(key_end) = string_end(b, at + 1) else { return Scan::More };
    let colon = skip_space(b, key_end + 1);
    match b.get(colon) {
        None => Scan::More,
        Some(b':') => Scan::Done(Some(at + 1..key_end), skip_space(b, colon + 1)),
        Some(_) => Scan::Bad(colon),
    }
}

/// A key and its value inside an object, from just after the `{` or the last value on:
/// `None` at its `}`. The last number is where to go on.
#[inline]
pub fn member_at(b: &[u8], at: usize) -> Scan<Option<(Range<usize>, Range<usize>)>> {
    match key_at(b, at) {
        Scan::Done(Some(key), from) => match value_at(b, from) {
            Some((value, end)) if end > from => Scan::Done(Some((key, value)), end),
            Some(_) => Scan::Bad(from),
            None => Scan::More,
        },
        Scan::Done(None, end) => Scan::Done(None, end),
        Scan::More => Scan::More,
        Scan::Bad(at) => Scan::Bad(at),
    }
}

/// What an event turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// One that may be wanted, and where its values are.
    Wanted(Places),
    /// One that is not: stepped over.
    Unwanted,
}

/// Whether an event can be unwanted by its `ph` alone: flows, counters and instants are.
fn unwanted_ph(ph: &[u8]) -> bool {
    !matches!(ph, b"X" | b"M")
}

/// Whether an event can be unwanted by its `cat` alone.
fn unwanted_cat(cat: &[u8]) -> bool {
    !matches!(
        cat,
        b"kernel"
            | b"gpu_memcpy"
            | b"gpu_memset"
            | b"Kernel"
            | b"Memcpy"
            | b"Memset"
            | b"user_annotation"
            | b"gpu_user_annotation"
    )
}

/// The event that begins with the `{` at the start of `b`. As soon as its `ph` or `cat` tells that
/// nobody wants it, the rest is stepped over; `layout` makes that fast where it is known.
pub fn event_at(b: &[u8], layout: &Layout) -> Scan<Found> {
    let mut places = Places::default();
    let mut at = 1;
    loop {
        let (key, from) = match key_at(b, at) {
            Scan::Done(Some(key), from) => (key, from),
            Scan::Done(None, end) => return Scan::Done(Found::Wanted(places), end),
            Scan::More => return Scan::More,
            Scan::Bad(offset) => return Scan::Bad(offset),
        };
        let key = &b[key];
        if key == b"args" && places.are_complete() {
            // Nothing is missing but the arguments: they last until the event's end.
            if let Some(end) = layout.event_end(b, from) {
                places.args = from..end - 1;
                return Scan::Done(Found::Wanted(places), end);
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
            b"ph" if unwanted_ph(&b[value.clone()]) => return step_over(b, at, layout),
            b"cat" if unwanted_cat(&b[value.clone()]) => return step_over(b, at, layout),
            b"ph" => places.ph = value,
            b"cat" => places.cat = value,
            b"name" => places.name = value,
            b"pid" => places.pid = value,
            b"tid" => places.tid = value,
            b"ts" => places.ts = value,
            b"dur" => places.dur = value,
            b"args" => places.args = value,
            _ => {}
        }
    }
}

fn step_over(b: &[u8], at: usize, layout: &Layout) -> Scan<Found> {
    if let Some(end) = layout.event_end(b, at) {
        return Scan::Done(Found::Unwanted, end);
    }
    match object_end(b, at) {
        Some(end) => Scan::Done(Found::Unwanted, end),
        None => Scan::More,
    }
}

/// The value of `key` at the top level of the object in `b` (braces included).
pub fn member<'a>(b: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let mut at = 1;
    while let Scan::Done(Some((k, value)), next) = member_at(b, at) {
        if &b[k] == key {
            return b.get(value);
        }
        at = next;
    }
    None
}

/// Decimal microseconds as nanoseconds, digit by digit: a double has not enough of them.
/// Beyond the nanosecond it truncates. Exponents are read, too.
pub fn nanos_of_micros(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.split_first()? {
        (b'-', rest) => (true, rest),
        (b'+', rest) => (false, rest),
        _ => (false, text),
    };
    let (mantissa, exponent) = match digits.iter().position(|c| matches!(c, b'e' | b'E')) {
        Some(e) => (&digits[..e], std::str::from_utf8(&digits[e + 1..]).ok()?.parse::<i32>().ok()?),
        None => (digits, 0),
    };
    if !(-40..=40).contains(&exponent) {
        return None;
    }
    // How many more digits to take after the point until a nanosecond is reached.
    let mut room: Option<i32> = None;
    let mut value: i64 = 0;
    let mut any = false;
    for &c in mantissa {
        match c {
            b'0'..=b'9' => {
                any = true;
                match &mut room {
                    Some(left) if *left <= 0 => {}
                    Some(left) => {
                        *left -= 1;
                        value = value.checked_mul(10)?.checked_add(i64::from(c - b'0'))?;
                    }
                    None => value = value.checked_mul(10)?.checked_add(i64::from(c - b'0'))?,
                }
            }
            b'.' if room.is_none() => room = Some(3 + exponent),
            _ => return None,
        }
    }
    let shift = room.unwrap_or(3 + exponent);
    let scale = 10i64.checked_pow(shift.unsigned_abs())?;
    let value = if shift >= 0 { value.checked_mul(scale)? } else { value / scale };
    any.then_some(if negative { -value } else { value })
}

/// An integer.
pub fn integer_of(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

/// A JSON string's content with its escapes resolved; as it is when they are broken.
pub fn unescaped(text: &[u8]) -> std::borrow::Cow<'_, [u8]> {
    if memchr::memchr(b'\\', text).is_none() {
        return text.into();
    }
    let quoted = [b"\"", text, b"\""].concat();
    match serde_json::from_slice::<String>(&quoted) {
        Ok(s) => s.into_bytes().into(),
        Err(_) => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn microseconds_become_nanoseconds_without_a_double() {
        let cases: &[(&str, Option<i64>)] = &[
            ("4635107391258.521", Some(4_635_107_391_258_521)),
            ("9007199254740993.123", Some(9_007_199_254_740_993_123)),
            ("12", Some(12_000)),
            ("-1.5", Some(-1_500)),
            ("0.0009", Some(0)),
            ("1.25e3", Some(1_250_000)),
            ("15e-1", Some(1_500)),
            (".5", Some(500)),
            ("", None),
            ("-", None),
            ("abc", None),
            ("1.2.3", None),
            ("99999999999999999999", None),
            ("1e99", None),
        ];
        for (text, wanted) in cases {
            assert_eq!(nanos_of_micros(text.as_bytes()), *wanted, "{text}");
        }
    }

    #[test]
    fn keys_are_found_in_any_order_and_layout() {
        for text in [
            r#"{"ph":"X","cat":"kernel","name":"a\"}b","ts":1.5,"dur":"2","args":{"x":[1,"}"]}}"#,
            "{\n \"args\" : {\"x\":\n[1 , \"}\"]},\n\"dur\": \"2\" ,\"ts\" :1.5\n,\"name\":\"a\\\"}b\",\"cat\":\"kernel\", \"ph\":\"X\"\n}",
        ] {
            let b = text.as_bytes();
            let Scan::Done(Found::Wanted(p), end) = event_at(b, &Layout::default()) else { panic!("{text}") };
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
