//! The Prometheus text format and OpenMetrics, sample by sample, without allocating, from a page that may
//! come in pieces.
//!
//! Complete where it matters to a scraper: names with colons, quoted UTF-8 names, escapes, commas, braces and
//! equals signs inside label values, timestamps, exemplars. A line that is none of this is counted, and a
//! page without a sample among bad lines is an error: a proxy's HTML page must not look like a server without
//! metrics. Types and help texts are skipped, because the catalog has its own.

use std::borrow::Cow;

use memchr::{memchr, memchr3};
use thiserror::Error;

use crate::signal::number;

#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// The metric's name as it stands in the page (escapes of a quoted name left in).
    pub name: &'a [u8],
    pub labels: LabelSet<'a>,
    /// Its value; may be NaN or infinite.
    pub value: f64,
    /// When it was taken, where the page says so and as it stands there: milliseconds since the epoch, in
    /// OpenMetrics seconds.
    pub timestamp: Option<f64>,
}

/// What becomes of the samples of a page.
pub trait Sink {
    /// Whether samples of this metric are taken. Of one that is not, the first line is read like any other
    /// and the lines after it only counted: most lines of a page are buckets that nobody asks for.
    fn wants(&mut self, name: &[u8]) -> bool;

    /// Takes a sample.
    fn take(&mut self, sample: &Sample<'_>);
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
    /// It does not end.
    #[error("it is longer than {} KiB", LONGEST_LINE / 1024)]
    TooLong,
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

/// A longer line is no sample: whoever sends one must not take memory for it.
const LONGEST_LINE: usize = 64 << 10;

/// Reads a page piece by piece, as it arrives.
#[derive(Debug, Default)]
pub struct Reader {
    /// The beginning of a line whose end has not come yet.
    partial: Vec<u8>,
    /// The metric that was last found not to be wanted.
    unwanted: Vec<u8>,
    page: Page,
    /// Lines so far.
    lines: usize,
    /// Whether anything but white space has come.
    has_begun: bool,
    is_html: bool,
}

impl Reader {
    /// Begins another page; buffers are kept.
    pub fn begin(&mut self) {
        let (mut partial, mut unwanted) =
            (std::mem::take(&mut self.partial), std::mem::take(&mut self.unwanted));
        partial.clear();
        unwanted.clear();
        *self = Self { partial, unwanted, ..Self::default() };
    }

    /// Reads a piece and gives the samples of its whole lines to `sink`.
    pub fn feed(&mut self, piece: &[u8], sink: &mut impl Sink) {
        if !self.has_begun {
            let Some(first) = piece.iter().find(|b| !b.is_ascii_whitespace()) else {
                return self.hold(piece);
            };
            (self.has_begun, self.is_html) = (true, *first == b'<');
        }
        if self.is_html {
            return;
        }
        let mut rest = piece;
        if !self.partial.is_empty() {
            let Some(end) = memchr(b'\n', rest) else { return self.hold(rest) };
            self.hold(&rest[..end]);
            rest = &rest[end + 1..];
            let mut whole = std::mem::take(&mut self.partial);
            for line in whole.split(|b| *b == b'\n') {
                self.line(line, sink);
            }
            whole.clear();
            self.partial = whole;
        }
        while let Some(end) = memchr(b'\n', rest) {
            self.line(&rest[..end], sink);
            rest = &rest[end + 1..];
        }
        self.hold(rest);
    }

    /// Keeps the beginning of a line, so much of it that one that is too long is known as such.
    fn hold(&mut self, beginning: &[u8]) {
        let room = (LONGEST_LINE + 1).saturating_sub(self.partial.len());
        self.partial.extend_from_slice(&beginning[..beginning.len().min(room)]);
    }

    /// Reads the last line, and gives what the page held.
    ///
    /// # Errors
    /// When the page is HTML, or holds bad lines and not one sample.
    pub fn finish(&mut self, sink: &mut impl Sink) -> Result<Page, PageError> {
        if self.is_html {
            return Err(PageError::Html);
        }
        let last = std::mem::take(&mut self.partial);
        if !last.is_empty() {
            // Before its first text a page is held as it is, blank lines and all.
            last.split(|b| *b == b'\n').for_each(|line| self.line(line, sink));
        }
        self.partial = last;
        match self.page.first_bad {
            Some((line, why)) if self.page.samples == 0 => {
                Err(PageError::NotMetrics { lines: self.page.bad, line, why })
            }
            _ => Ok(self.page.clone()),
        }
    }

    #[inline]
    fn line(&mut self, line: &[u8], sink: &mut impl Sink) {
        self.lines += 1;
        match line.first() {
            None | Some(b'#') => return,
            Some(_) if self.is_unwanted(line) => {
                self.page.samples += 1;
                return;
            }
            Some(_) if line.trim_ascii().is_empty() => return,
            Some(_) => {}
        }
        let found = if line.len() > LONGEST_LINE { Err(BadLine::TooLong) } else { sample(line) };
        match found {
            Ok(found) => {
                self.page.samples += 1;
                if sink.wants(found.name) {
                    sink.take(&found);
                } else {
                    self.unwanted.clear();
                    self.unwanted.extend_from_slice(found.name);
                }
            }
            Err(why) => {
                self.page.bad += 1;
                self.page.first_bad.get_or_insert((self.lines, why));
            }
        }
    }

    /// Whether the line is another one of the metric that is not wanted.
    #[inline]
    fn is_unwanted(&self, line: &[u8]) -> bool {
        let name = self.unwanted.as_slice();
        !name.is_empty() && line.starts_with(name) && line.get(name.len()).is_some_and(|b| !is_name(*b))
    }
}

/// Reads a page and gives each sample to `sink`.
///
/// # Errors
/// When the page is HTML, or holds bad lines and not one sample.
pub fn read(page: &[u8], sink: impl FnMut(&Sample<'_>)) -> Result<Page, PageError> {
    let (mut reader, mut all) = (Reader::default(), All(sink));
    reader.feed(page, &mut all);
    reader.finish(&mut all)
}

/// Takes every sample.
struct All<F>(F);

impl<F: FnMut(&Sample<'_>)> Sink for All<F> {
    fn wants(&mut self, _: &[u8]) -> bool {
        true
    }

    fn take(&mut self, sample: &Sample<'_>) {
        (self.0)(sample);
    }
}

/// Reads one line that is neither empty nor a comment.
fn sample(line: &[u8]) -> Result<Sample<'_>, BadLine> {
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
    let (value, timestamp) = value_of(rest)?;
    Ok(Sample { name, labels, value, timestamp })
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

fn value_of(rest: &[u8]) -> Result<(f64, Option<f64>), BadLine> {
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
    Ok((value, Some(stamp)))
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
        // Patterns: `strip_prefix` is a call for each byte where code is built to be small.
        let [b'=', after @ ..] = after else { return None };
        let [b'"', value @ ..] = after.trim_ascii_start() else { return None };
        let close = closing_quote(value, 0)?;
        let rest = match value[close + 1..].trim_ascii_start() {
            end @ ([] | [b'}', ..]) => end,
            [b',', rest @ ..] => rest.trim_ascii_start(),
            _ => return None,
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
        match c {
            '\\' => match chars.next() {
                Some('n') => out.push('\n'),
                Some(escaped @ ('\\' | '"')) => out.push(escaped),
                Some(other) => out.extend(['\\', other]),
                None => out.push('\\'),
            },
            _ => out.push(c),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(line: &str) -> (String, Vec<(String, String)>, f64, Option<f64>) {
        let mut found = Vec::new();
        let page = read(line.as_bytes(), |s| {
            let labels = s.labels.iter().map(|(n, v)| (n.into_owned(), v.into_owned())).collect();
            found.push((String::from_utf8_lossy(s.name).into_owned(), labels, s.value, s.timestamp));
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
            ("up 1 1795492086123", "up", &[], 1.0, Some(1_795_492_086_123.0)),
            ("up 1 1795492086.5\n# EOF\n", "up", &[], 1.0, Some(1_795_492_086.5)),
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

    /// Takes what begins with `up`.
    #[derive(Default)]
    struct Ups(Vec<(String, f64)>);

    impl Sink for Ups {
        fn wants(&mut self, name: &[u8]) -> bool {
            name.starts_with(b"up")
        }

        fn take(&mut self, sample: &Sample<'_>) {
            self.0.push((String::from_utf8_lossy(sample.name).into_owned(), sample.value));
        }
    }

    #[test]
    fn a_line_without_end_is_counted_and_takes_no_memory() {
        let (mut reader, mut ups) = (Reader::default(), Ups::default());
        reader.feed(b"up 1\nup{x=\"", &mut ups);
        for _ in 0..1000 {
            reader.feed(&[b'y'; 4096], &mut ups);
        }
        reader.feed(b"\"} 2\nup 3\n", &mut ups);
        assert!(reader.partial.capacity() <= 2 * LONGEST_LINE);
        assert_eq!(
            reader.finish(&mut ups),
            Ok(Page { samples: 2, bad: 1, first_bad: Some((2, BadLine::TooLong)) })
        );
    }

    #[test]
    fn of_a_metric_that_nobody_wants_only_the_first_line_is_read() {
        let page = b"a_bucket{le=\"1\"} 1\na_bucket{le=broken} x\na_bucket_sum 3\nup 1\nup_a{b=\"c\"} 2\n\
            a_bucket 4\nb 5\nb one\n";
        let (mut reader, mut ups) = (Reader::default(), Ups::default());
        reader.feed(page, &mut ups);
        assert_eq!(reader.finish(&mut ups), Ok(Page { samples: 8, bad: 0, first_bad: None }));
        assert_eq!(ups.0, [("up".to_owned(), 1.0), ("up_a".to_owned(), 2.0)]);
        reader.begin();
        reader.feed(b"a_bucket{le=broken} x\n", &mut ups);
        assert!(reader.finish(&mut ups).is_err(), "every page is read from its first line");
    }

    proptest! {
        #[test]
        fn however_a_page_is_cut_it_holds_the_same(
            lines in proptest::collection::vec(0_usize..9, 0..30),
            cuts in proptest::collection::vec(1_usize..40, 1..20),
        ) {
            let texts = ["up 1", "up{x=\"1\"} 2", "", "  ", "# HELP up", "a 1", "a{x=1} 2", "up one", "<html>"];
            let page = lines.iter().map(|l| texts[*l]).collect::<Vec<_>>().join("\n");
            let (mut whole, mut wanted) = (Reader::default(), Ups::default());
            whole.feed(page.as_bytes(), &mut wanted);
            let end = whole.finish(&mut wanted);
            let (mut pieces, mut found, mut rest) = (Reader::default(), Ups::default(), page.as_bytes());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, later) = rest.split_at((*cut).min(rest.len()));
                pieces.feed(piece, &mut found);
                rest = later;
            }
            prop_assert_eq!(pieces.finish(&mut found), end);
            prop_assert_eq!(found.0, wanted.0);
        }

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
