//! The Prometheus text format and OpenMetrics, sample by sample, without allocating.
//!
//! Complete where it matters to a scraper: names with colons, quoted UTF-8 names, escapes, commas, braces and
//! equals signs inside label values, timestamps, exemplars. A line that is none of this is counted, and a
//! page without a sample among bad lines is an error: a proxy's HTML page must not look like a server without
//! metrics. Types and help texts are skipped, because the catalog has its own.

use std::borrow::Cow;

use memchr::{memchr, memchr3};
use thiserror::Error;

use crate::signal::number;

/// One sample.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// The metric's name as it stands in the page (escapes of a quoted name left in).
    pub name: &'a [u8],
    /// Its labels.
    pub labels: LabelSet<'a>,
    /// Its value; may be NaN or infinite.
    pub value: f64,
    /// Milliseconds since the epoch, where the page says so.
    pub timestamp_ms: Option<i64>,
}

/// Labels, read when asked for.
#[derive(Clone, Copy, Debug)]
pub struct LabelSet<'a> {
    /// Between the braces.
    raw: &'a [u8],
}

/// What a page held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Samples that were read.
    pub samples: usize,
    /// Lines that are neither sample nor comment.
    pub bad: usize,
    /// The first of them: its number from 1 and what is wrong with it.
    pub first_bad: Option<(usize, BadLine)>,
}

/// What is wrong with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadLine {
    /// It does not begin with a name.
    #[error("it does not begin with a metric name")]
    Name,
    /// The label part is broken.
    #[error("its labels are not closed or not quoted")]
    Labels,
    /// No number where one must stand.
    #[error("its value is not a number")]
    Value,
    /// Something behind the value that is no timestamp.
    #[error("what follows its value is not a timestamp")]
    Timestamp,
}

/// Why a page is useless as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PageError {
    /// A web page.
    #[error("it answered with an HTML page, not with metrics; a proxy or a login page may stand in between")]
    Html,
    /// Anything else that has no sample.
    #[error("it answered with {lines} lines of which none is a metric (line {line}: {why})")]
    NotMetrics {
        /// Lines that are neither sample nor comment.
        lines: usize,
        /// The first of them.
        line: usize,
        /// What is wrong with it.
        why: BadLine,
    },
}

/// Reads a page and gives each sample to `sink`. Timestamps of OpenMetrics (a page that ends in
/// `# EOF`) are seconds, those of the older format milliseconds.
///
/// # Errors
/// When the page is HTML, or holds bad lines and not one sample.
pub fn read<'a>(page: &'a [u8], mut sink: impl FnMut(Sample<'a>)) -> Result<Page, PageError> {
    let body = page.trim_ascii_start();
    if body.first() == Some(&b'<') {
        return Err(PageError::Html);
    }
    let seconds = page.trim_ascii_end().ends_with(b"# EOF");
    let mut seen = Page::default();
    let mut number = 0;
    let mut rest = page;
    while !rest.is_empty() {
        let end = memchr(b'\n', rest).unwrap_or(rest.len());
        let line = &rest[..end];
        rest = &rest[(end + 1).min(rest.len())..];
        number += 1;
        match line.first() {
            None | Some(b'#') => continue,
            Some(_) if line.trim_ascii().is_empty() => continue,
            Some(_) => {}
        }
        match sample(line, seconds) {
            Ok(found) => {
                seen.samples += 1;
                sink(found);
            }
            Err(why) => {
                seen.bad += 1;
                seen.first_bad.get_or_insert((number, why));
            }
        }
    }
    match seen.first_bad {
        Some((line, why)) if seen.samples == 0 => Err(PageError::NotMetrics { lines: seen.bad, line, why }),
        _ => Ok(seen),
    }
}

/// Reads one line that is neither empty nor a comment.
fn sample(line: &[u8], seconds: bool) -> Result<Sample<'_>, BadLine> {
    let line = line.trim_ascii();
    let name_end = line.iter().position(|b| !is_name(*b)).unwrap_or(line.len());
    if line.first().is_some_and(u8::is_ascii_digit) {
        return Err(BadLine::Name);
    }
    let (mut name, mut rest) = line.split_at(name_end);
    rest = rest.trim_ascii_start();
    let mut labels = LabelSet { raw: b"" };
    if let [b'{', inside @ ..] = rest {
        let mut inside = inside;
        if name.is_empty() {
            (name, inside) = quoted_name(inside).ok_or(BadLine::Name)?;
        }
        (labels.raw, rest) = label_part(inside).ok_or(BadLine::Labels)?;
    }
    if name.is_empty() {
        return Err(BadLine::Name);
    }
    let (value, timestamp_ms) = value_of(rest, seconds)?;
    Ok(Sample { name, labels, value, timestamp_ms })
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':'
}

/// The labels up to the closing brace, and what stands behind it; `None` when one is broken.
fn label_part(inside: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut rest = inside.trim_ascii_start();
    loop {
        if let [b'}', behind @ ..] = rest {
            return Some((&inside[..inside.len() - rest.len()], behind));
        }
        rest = RawLabels::one(rest)?.1;
    }
}

/// Where the quote closes whose text begins at `from`. Labels are short: a loop is quicker than a search
/// that first sets itself up.
fn closing_quote(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        at += bytes.get(at..)?.iter().position(|b| matches!(b, b'"' | b'\\'))?;
        if bytes[at] == b'"' {
            return Some(at);
        }
        at += 2;
    }
}

/// `{"my.metric", a="b"}`: the name stands first, in quotes.
fn quoted_name(raw: &[u8]) -> Option<(&[u8], &[u8])> {
    let raw = raw.trim_ascii_start();
    let inside = raw.strip_prefix(b"\"")?;
    let close = closing_quote(inside, 0)?;
    let rest = inside[close + 1..].trim_ascii_start();
    let rest = rest.strip_prefix(b",").unwrap_or(rest);
    Some((&inside[..close], rest))
}

fn value_of(rest: &[u8], seconds: bool) -> Result<(f64, Option<i64>), BadLine> {
    let rest = rest.trim_ascii_start();
    let end = memchr3(b' ', b'\t', b'#', rest).unwrap_or(rest.len());
    let value = number::whole(&rest[..end]).ok_or(BadLine::Value)?;
    let after = rest[end..].trim_ascii_start();
    if after.is_empty() || after[0] == b'#' {
        return Ok((value, None));
    }
    let end = memchr3(b' ', b'\t', b'#', after).unwrap_or(after.len());
    let stamp = number::whole(&after[..end]).filter(|t| t.is_finite()).ok_or(BadLine::Timestamp)?;
    let rest = after[end..].trim_ascii_start();
    if !(rest.is_empty() || rest[0] == b'#') {
        return Err(BadLine::Timestamp);
    }
    Ok((value, Some(if seconds { (stamp * 1e3).round() as i64 } else { stamp as i64 })))
}

impl<'a> LabelSet<'a> {
    /// Names and values as they stand in the page, escapes left in.
    pub fn raw_iter(self) -> RawLabels<'a> {
        RawLabels { rest: self.raw }
    }

    /// Names and values, escapes resolved.
    pub fn iter(self) -> impl Iterator<Item = (Cow<'a, str>, Cow<'a, str>)> {
        self.raw_iter().map(|(name, value)| (unescape(name), unescape(value)))
    }

    /// The raw value of a label with a plain name.
    pub fn get(self, name: &[u8]) -> Option<&'a [u8]> {
        self.raw_iter().find(|(n, _)| *n == name).map(|(_, v)| v)
    }
}

/// Name and value, escapes left in.
type RawLabel<'a> = (&'a [u8], &'a [u8]);

/// Iterates over labels.
#[derive(Clone, Debug)]
pub struct RawLabels<'a> {
    rest: &'a [u8],
}

impl<'a> RawLabels<'a> {
    /// The label at the front, and what is left.
    fn one(rest: &'a [u8]) -> Option<(RawLabel<'a>, &'a [u8])> {
        let (name, after) = if let [b'"', inside @ ..] = rest {
            let close = closing_quote(inside, 0)?;
            (&inside[..close], inside[close + 1..].trim_ascii_start())
        } else {
            let equals = rest.iter().position(|b| *b == b'=')?;
            (rest[..equals].trim_ascii_end(), &rest[equals..])
        };
        let value = after.strip_prefix(b"=")?.trim_ascii_start().strip_prefix(b"\"")?;
        let close = closing_quote(value, 0)?;
        let rest = value[close + 1..].trim_ascii_start();
        let rest = match rest {
            [] | [b'}', ..] => rest,
            _ => rest.strip_prefix(b",")?.trim_ascii_start(),
        };
        (!name.is_empty()).then_some(((name, &value[..close]), rest))
    }
}

impl<'a> Iterator for RawLabels<'a> {
    type Item = RawLabel<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.rest.trim_ascii_start();
        if rest.is_empty() {
            return None;
        }
        let (label, rest) = Self::one(rest)?;
        self.rest = rest;
        Some(label)
    }
}

/// Resolves `\\`, `\"` and `\n`; borrows when there is nothing to resolve.
pub fn unescape(raw: &[u8]) -> Cow<'_, str> {
    let text = String::from_utf8_lossy(raw);
    if memchr(b'\\', raw).is_none() {
        return text;
    }
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, c == '\\') {
            (_, false) => out.push(c),
            _ => match chars.next() {
                Some('n') => out.push('\n'),
                Some(escaped @ ('\\' | '"')) => out.push(escaped),
                Some(other) => out.extend(['\\', other]),
                None => out.push('\\'),
            },
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(line: &str) -> (String, Vec<(String, String)>, f64, Option<i64>) {
        let mut found = Vec::new();
        let page = read(line.as_bytes(), |s| {
            let labels = s.labels.iter().map(|(n, v)| (n.into_owned(), v.into_owned())).collect();
            found.push((String::from_utf8_lossy(s.name).into_owned(), labels, s.value, s.timestamp_ms));
        });
        assert_eq!(page.map(|p| (p.samples, p.bad)), Ok((1, 0)), "{line}");
        found.remove(0)
    }

    fn labels(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn every_line_that_the_formats_allow_is_one_sample() {
        for (line, name, wanted, value, stamp) in [
            (
                "sglang:num_running_reqs{dp_rank=\"2\"} 4.0",
                "sglang:num_running_reqs",
                &[("dp_rank", "2")][..],
                4.0,
                None,
            ),
            ("up 1", "up", &[], 1.0, None),
            ("up{} 1", "up", &[], 1.0, None),
            ("up {x=\"1\"} 1", "up", &[("x", "1")], 1.0, None),
            ("up{x=\"1\",} 1", "up", &[("x", "1")], 1.0, None),
            ("up{ x = \"1\" , y=\"2\" }   1", "up", &[("x", "1"), ("y", "2")], 1.0, None),
            ("up{m=\"x,y\"} 1", "up", &[("m", "x,y")], 1.0, None),
            ("up{m=\"x}y\"} 1", "up", &[("m", "x}y")], 1.0, None),
            ("up{m=\"x=y\"} 1", "up", &[("m", "x=y")], 1.0, None),
            (r#"up{m="x\"y",n="a\\b\nc"} 1"#, "up", &[("m", "x\"y"), ("n", "a\\b\nc")], 1.0, None),
            ("up 1 1795492086123", "up", &[], 1.0, Some(1_795_492_086_123)),
            ("up 1 1795492086.5\n# EOF\n", "up", &[], 1.0, Some(1_795_492_086_500)),
            (
                "up_bucket{le=\"1\"} 3 # {trace=\"a b\"} 0.5 1.0\n# EOF",
                "up_bucket",
                &[("le", "1")],
                3.0,
                None,
            ),
            ("{\"my.metric\", a=\"b\"} 1", "my.metric", &[("a", "b")], 1.0, None),
            ("{\"my.metric\",\"a b\"=\"c\"} 1", "my.metric", &[("a b", "c")], 1.0, None),
            ("up +Inf", "up", &[], f64::INFINITY, None),
            ("up 1.5e-3\r", "up", &[], 1.5e-3, None),
        ] {
            assert_eq!(one(line), (name.to_owned(), labels(wanted), value, stamp), "{line}");
        }
        assert!(one("up NaN").2.is_nan());
    }

    #[test]
    fn a_bad_line_is_counted_and_the_others_are_kept() {
        for (line, why) in [
            ("up one", BadLine::Value),
            ("up", BadLine::Value),
            ("up{x=\"1} 2", BadLine::Labels),
            ("up{x=1} 2", BadLine::Labels),
            ("up{x} 2", BadLine::Labels),
            ("up{=\"1\"} 2", BadLine::Labels),
            ("up 1 soon", BadLine::Timestamp),
            ("up 1 2 3", BadLine::Timestamp),
            ("{x=\"1\"} 2", BadLine::Name),
            ("1up 2", BadLine::Name),
            ("!", BadLine::Name),
        ] {
            let page = format!("# HELP a b\n\ngood 1\n{line}\ngood 2\n");
            let mut count = 0;
            let seen = read(page.as_bytes(), |_| count += 1);
            assert_eq!(seen, Ok(Page { samples: 2, bad: 1, first_bad: Some((4, why)) }), "{line}");
            assert_eq!(count, 2);
        }
    }

    #[test]
    fn a_page_that_is_no_metrics_page_is_an_error_and_an_empty_one_is_not() {
        let html = "\n<!DOCTYPE html>\n<html><body>502 Bad Gateway</body></html>";
        assert_eq!(read(html.as_bytes(), |_| ()), Err(PageError::Html));
        let json = "{\"detail\":\"Not Found\"}\n";
        let error = read(json.as_bytes(), |_| ()).expect_err("no sample");
        assert_eq!(
            error.to_string(),
            "it answered with 1 lines of which none is a metric (line 1: its labels are not closed or not quoted)"
        );
        assert_eq!(read(b"", |_| ()), Ok(Page::default()));
        assert_eq!(read(b"# EOF\n", |_| ()), Ok(Page::default()));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(page in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&page, |s| s.labels.iter().for_each(drop));
        }

        #[test]
        fn no_text_of_its_own_signs_makes_it_panic(page in "[a:1 {}\"\\\\=,#\n.]{0,60}") {
            let _ = read(page.as_bytes(), |s| s.labels.iter().for_each(drop));
        }

        #[test]
        fn what_is_written_is_read(value in any::<f64>(), text in "\\PC{0,20}") {
            let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let line = format!("a:b{{x=\"{escaped}\",y=\"1\"}} {value}");
            let found = one(&line);
            prop_assert_eq!(found.1, labels(&[("x", &text), ("y", "1")]));
            prop_assert!(found.2 == value || found.2.is_nan() && value.is_nan());
        }
    }
}
