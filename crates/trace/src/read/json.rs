//! The part of JSON that trace events need, read without building anything: where a member's value
//! is, its text and its number. Nested values are stepped over by counting brackets outside of
//! strings.
//!
//! What is stepped over is not validated; it is only certain that no byte outside of the buffer is
//! read and that every call makes progress.

use std::borrow::Cow;
use std::ops::Range;

/// The result of scanning the start of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub enum Scan<T> {
    /// What was scanned, and the offset one past its end.
    Done(T, usize),
    /// The buffer ends inside of it: more bytes are needed.
    More,
    /// Not JSON, at this offset.
    Bad(usize),
}

/// What a byte means while a value is stepped over: 1 a quote, 2 an opening bracket, 3 a closing
/// bracket, 0 anything else.
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

/// Like [`string_end`], by a search that pays off only for long strings.
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
pub(super) fn object_end(b: &[u8], at: usize) -> Option<usize> {
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

/// The value that starts at `b[at]`: the range of its content (a string without its quotes) and the
/// offset one past its end; `None` when the buffer ends inside of it.
#[inline]
pub fn value_at(b: &[u8], at: usize) -> Option<(Range<usize>, usize)> {
    match b.get(at)? {
        b'"' => long_string_end(b, at + 1).map(|end| (at + 1..end, end + 1)),
        b'{' | b'[' => nested_end(b, at).map(|end| (at..end, end)),
        _ => scalar_end(b, at).map(|end| (at..end, end)),
    }
}

/// The next key of an object, from just after the `{` or the last value on, and the offset at which
/// its value begins; `None` at the object's `}`, with the offset one past it.
#[inline]
pub(super) fn key_at(b: &[u8], at: usize) -> Scan<Option<Range<usize>>> {
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

/// The next member of an object, key and value, from just after the `{` or the last value on;
/// `None` at the object's `}`. Scanning continues at the returned offset.
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

/// Decimal microseconds as integer nanoseconds, read digit by digit: a double has too few digits for
/// an epoch in nanoseconds. Digits beyond the nanosecond are cut off; exponents are accepted.
pub fn nanos_from_micros(text: &[u8]) -> Option<i64> {
    plain_nanos(text).or_else(|| any_nanos(text))
}

/// The same of digits, a point and three digits, as Kineto writes them; so few fit for certain.
#[inline]
fn plain_nanos(text: &[u8]) -> Option<i64> {
    let (whole, rest) = text.split_last_chunk::<4>()?;
    if !(1..=14).contains(&whole.len()) || rest[0] != b'.' {
        return None;
    }
    let (mut value, mut are_digits) = (0i64, true);
    for &c in whole.iter().chain(&rest[1..]) {
        let digit = c.wrapping_sub(b'0');
        are_digits &= digit <= 9;
        value = value.wrapping_mul(10).wrapping_add(i64::from(digit));
    }
    are_digits.then_some(value)
}

fn any_nanos(text: &[u8]) -> Option<i64> {
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
    // After the decimal point: how many more digits there are down to a nanosecond.
    let mut digits_left: Option<i32> = None;
    let mut value: i64 = 0;
    let mut any = false;
    for &c in mantissa {
        match c {
            b'0'..=b'9' => {
                any = true;
                match &mut digits_left {
                    Some(left) if *left <= 0 => {}
                    Some(left) => {
                        *left -= 1;
                        value = value.checked_mul(10)?.checked_add(i64::from(c - b'0'))?;
                    }
                    None => value = value.checked_mul(10)?.checked_add(i64::from(c - b'0'))?,
                }
            }
            b'.' if digits_left.is_none() => digits_left = Some(3 + exponent),
            _ => return None,
        }
    }
    let shift = digits_left.unwrap_or(3 + exponent);
    let scale = 10i64.checked_pow(shift.unsigned_abs())?;
    let value = if shift >= 0 { value.checked_mul(scale)? } else { value / scale };
    any.then_some(if negative { -value } else { value })
}

/// Text as a decimal integer.
pub fn parse_integer(text: &[u8]) -> Option<i64> {
    // Eighteen digits fit for certain.
    if (1..=18).contains(&text.len()) && text.iter().all(u8::is_ascii_digit) {
        return Some(text.iter().fold(0, |n, digit| n * 10 + i64::from(digit - b'0')));
    }
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

/// A JSON string's content with its escapes resolved, or unchanged when an escape is invalid.
pub fn unescape(text: &[u8]) -> Cow<'_, [u8]> {
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
    fn integers_are_read_with_sign_and_space_and_nothing_else_is_one() {
        for text in [
            "0",
            "7",
            " 42 ",
            "-5",
            "+5",
            "999999999999999999",
            "9223372036854775807",
            "-9223372036854775808",
        ] {
            assert_eq!(parse_integer(text.as_bytes()), text.trim().parse().ok(), "{text}");
        }
        for text in ["", "-", "1.0", "9223372036854775808", "4x", "\u{a0}"] {
            assert_eq!(parse_integer(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn microseconds_become_nanoseconds_without_a_double() {
        let cases: &[(&str, Option<i64>)] = &[
            ("4635107391258.521", Some(4_635_107_391_258_521)),
            ("12345678901234.567", Some(12_345_678_901_234_567)),
            ("0.001", Some(1)),
            (".001", Some(1)),
            ("1.0o1", None),
            ("1-5.001", None),
            ("-12.345", Some(-12_345)),
            ("12.34", Some(12_340)),
            ("1.2345", Some(1_234)),
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
            assert_eq!(nanos_from_micros(text.as_bytes()), *wanted, "{text}");
        }
    }
}
