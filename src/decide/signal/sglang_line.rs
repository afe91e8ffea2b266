//! SGLang's log lines, of every version from 0.4.7 to 0.5.23.
//!
//! The rank prefix is an unordered set of words, because its order changed three times. Batch lines
//! are `key: value` pairs of which any may be missing, new or renamed; the catalog knows the keys.
//! Everything works on bytes, allocates nothing and converts only numbers that are wanted: a busy
//! server prints thousands of lines a second, and a replay reads millions.

use std::borrow::Cow;

use memchr::{memchr, memmem};

use crate::decide::signal::catalog;
use crate::decide::signal::fields::Fields;
use crate::decide::signal::log_line::{Batch, BatchKind, Line, Profile, Says};
use crate::decide::signal::number;
use crate::decide::signal::rank::{Axis, Rank};
use crate::decide::signal::stamp::{CIVIL_LEN, Stamp, is_civil};
use crate::decide::signal::words::{self, Words};

/// Containers and wrappers write something in front of the bracket; no sane one writes more than this.
const PREFIX_LIMIT: usize = 256;

/// Reads a line (without its newline). `fields` is cleared and takes the numbers.
pub fn read<'a>(line: &'a [u8], fields: &mut Fields) -> Line<'a> {
    fields.clear();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    match bracket(line) {
        Some(prefix) => {
            let says = message(prefix.message, fields);
            Line { rank: prefix.rank, stamp: Some(prefix.stamp), says }
        }
        None => unstamped(line, fields),
    }
}

struct Prefix<'a> {
    stamp: Stamp<'a>,
    rank: Rank,
    message: &'a [u8],
}

/// Finds `[2026-11-24 03:48:06.123 DP2 TP0] message`, wherever it begins.
fn bracket(line: &[u8]) -> Option<Prefix<'_>> {
    let limit = line.len().min(PREFIX_LIMIT);
    let mut from = 0;
    while let Some(found) = memchr(b'[', &line[from..limit]) {
        let inside = &line[from + found + 1..];
        if is_civil(inside) {
            return stamped(inside);
        }
        from += found + 1;
    }
    None
}

fn stamped(inside: &[u8]) -> Option<Prefix<'_>> {
    let close = memchr(b']', inside)?;
    let (civil, mut rest) = inside[..close].split_at(CIVIL_LEN);
    let mut millis = None;
    if let [b'.' | b',', digits @ ..] = rest {
        let end = digits.iter().position(|b| !b.is_ascii_digit()).unwrap_or(digits.len());
        millis = digits[..end.min(3)].iter().try_fold(0_u16, |n, b| Some(n * 10 + u16::from(b - b'0')));
        rest = &digits[end..];
    }
    let message = inside[close + 1..].trim_ascii_start();
    Some(Prefix { stamp: Stamp { civil, millis }, rank: rank_of(rest), message })
}

/// The rank that words like `DP2 TP0 ATTN_CP1` name, in any order; other words say nothing.
fn rank_of(words: &[u8]) -> Rank {
    let mut rank = Rank::NONE;
    for word in words.split(|b| !(b.is_ascii_alphanumeric() || *b == b'_')) {
        let letters = word.iter().position(u8::is_ascii_digit).unwrap_or(word.len());
        let (name, index) = word.split_at(letters);
        if name.is_empty() || index.is_empty() || index.len() > 4 {
            continue;
        }
        let (Some(axis), Some((index, _))) = (Axis::of_word(name), number::leading(index)) else { continue };
        rank = rank.with(axis, index as u16);
    }
    rank
}

/// A line without a stamp: a logging configuration of the user's may print anything in front.
fn unstamped<'a>(line: &'a [u8], fields: &mut Fields) -> Line<'a> {
    let starts: [&[u8]; 5] =
        [b"Decode batch", b"Prefill batch", b"Profiling ", b"Stop profiling", b"[Expert Balancedness]"];
    let start = starts.into_iter().filter_map(|s| memmem::find(line, s)).min();
    let Some(start) = start else { return Line { rank: Rank::NONE, stamp: None, says: fatal(line) } };
    Line { rank: rank_of(&line[..start]), stamp: None, says: message(&line[start..], fields) }
}

fn message<'a>(text: &'a [u8], fields: &mut Fields) -> Says<'a> {
    if let Some(rest) = text.strip_prefix(b"Decode batch") {
        return batch(BatchKind::Decode, &words::DECODE, rest, fields);
    }
    if let Some(rest) = text.strip_prefix(b"Prefill batch") {
        return batch(BatchKind::Prefill, &words::PREFILL, rest, fields);
    }
    match text.first() {
        Some(b'P' | b'S') => profile(text).map_or_else(|| fatal(text), Says::Profile),
        Some(b'[') if text.starts_with(b"[Expert Balancedness]") => balancedness(text, fields),
        Some(b'I') if text.starts_with(b"INFO:  ") => Says::Other,
        _ => fatal(text),
    }
}

fn batch<'a>(kind: BatchKind, words: &Words, rest: &'a [u8], fields: &mut Fields) -> Says<'a> {
    let pairs = after_iteration(rest);
    let unknown = read_pairs(pairs, words, fields);
    if fields.is_empty() {
        return Says::Other;
    }
    Says::Batch(Batch { kind, pairs, unknown })
}

/// Skips `. `, `, ` and ` [1234], ` between `Decode batch` and the first pair.
fn after_iteration(rest: &[u8]) -> &[u8] {
    let mut at = 0;
    if rest.starts_with(b" [") {
        at = memchr(b']', rest).map_or(0, |end| end + 1);
    }
    while matches!(rest.get(at), Some(b'.' | b',' | b' ' | b':')) {
        at += 1;
    }
    &rest[at..]
}

/// Reads `key: value, ` pairs; returns how many keys are unknown. A value never holds a comma.
fn read_pairs(pairs: &[u8], words: &Words, fields: &mut Fields) -> u8 {
    let (mut at, mut unknown) = (0, 0_u8);
    while let Some(colon) = memchr(b':', &pairs[at..]) {
        let key = &pairs[at..at + colon];
        let mut value = at + colon + 1;
        while pairs.get(value) == Some(&b' ') {
            value += 1;
        }
        match words.get(key) {
            Some(signal) => {
                if let Some((number, used)) = number_of(&pairs[value..]) {
                    fields.set(signal, number);
                    value += used;
                }
            }
            None => unknown = unknown.saturating_add(1),
        }
        let Some(comma) = memchr(b',', &pairs[value..]) else { break };
        at = value + comma + 1;
        while pairs.get(at) == Some(&b' ') {
            at += 1;
        }
    }
    unknown
}

/// A number, or `True` and `False` as 1 and 0.
fn number_of(value: &[u8]) -> Option<(f64, usize)> {
    match value.first()? {
        b'T' if value.starts_with(b"True") => Some((1.0, 4)),
        b'F' if value.starts_with(b"False") => Some((0.0, 5)),
        _ => number::leading(value),
    }
}

fn profile(text: &[u8]) -> Option<Profile<'_>> {
    if let Some(rest) = text.strip_prefix(b"Profiling starts") {
        let (stage, rest) = split_once(rest, b". Traces will be saved to: ")?;
        let stage = stage.strip_prefix(b" for ").filter(|s| *s != b"True").map(lossy);
        let (dir, id) = split_once(rest, b" (with profile id: ")?;
        let id = id.trim_ascii_end();
        return Some(Profile::Starts {
            dir: lossy(dir),
            id: lossy(id.strip_suffix(b")").unwrap_or(id)),
            stage,
        });
    }
    if let Some(rest) = text.strip_prefix(b"Profiling done. Traces are saved to: ") {
        let end =
            [&b" Merged trace: "[..], b" Merge failed: "].into_iter().filter_map(|s| memmem::find(rest, s));
        let dir = &rest[..end.min().unwrap_or(rest.len())];
        return Some(Profile::Done { dir: lossy(dir.trim_ascii_end()) });
    }
    let rest = text.strip_prefix(b"Stop profiling")?;
    let stage = rest.strip_prefix(b"-").map(|s| &s[..memmem::find(s, b"...").unwrap_or(s.len())]);
    Some(Profile::Stopping { stage: stage.map(lossy) })
}

/// `forward_pass_id=N current_pass_balancedness=F last_10_average_balancedness=F ...`; the sizes of
/// the windows vary, the first is the shortest.
fn balancedness<'a>(text: &'a [u8], fields: &mut Fields) -> Says<'a> {
    for pair in text.split(|b| *b == b' ') {
        let Some((key, value)) = split_once(pair, b"=") else { continue };
        let Some((value, _)) = number::leading(value) else { continue };
        if key == b"current_pass_balancedness" {
            fields.set(catalog::EXPERT_BALANCEDNESS, value);
        } else if key.starts_with(b"last_") && fields.get(catalog::EXPERT_BALANCEDNESS_AVERAGE).is_none() {
            fields.set(catalog::EXPERT_BALANCEDNESS_AVERAGE, value);
        }
    }
    if fields.is_empty() { Says::Other } else { Says::Balancedness }
}

/// The last words of a server.
fn fatal(text: &[u8]) -> Says<'_> {
    let dying = text.starts_with(b"Scheduler hit an exception")
        || memmem::find(text, b"Received sigquit from a child process").is_some()
        || memmem::find(text, b"atchdog timeout").is_some();
    if dying { Says::Fatal(text) } else { Says::Other }
}

fn split_once<'a>(text: &'a [u8], by: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = memmem::find(text, by)?;
    Some((&text[..at], &text[at + by.len()..]))
}

fn lossy(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

#[cfg(test)]
mod tests;
