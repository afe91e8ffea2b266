//! SGLang's log lines, of every version from 0.4.7 to 0.5.23.
//!
//! The rank prefix is an unordered set of words, because its order changed three times. Batch lines
//! are `key: value` pairs of which any may be missing, new or renamed; the catalog knows the keys.
//! Everything works on bytes, allocates nothing and converts only numbers that are wanted: a busy
//! server prints thousands of lines a second, and a replay reads millions. Most lines have the keys
//! of the line before, hence [`Shapes`].

use std::borrow::Cow;

use memchr::{memchr, memmem};

use crate::signal::catalog;
use crate::signal::catalog::Signal;
use crate::signal::fields::Fields;
use crate::signal::keys::{self, KeyTable};
use crate::signal::log_line::{
    Batch, BatchKind, Line, LineContent, PREFIX_LIMIT, Profile, is_quoted, unwrapped,
};
use crate::signal::number;
use crate::signal::stamp::{CIVIL_LEN, Stamp, is_civil};
use skewtrap_trace::rank::{Axis, Rank};

/// What the lines of one log had in common so far: the second in which they were written, and which
/// key came at which place. Only a guess that each line confirms or corrects, never a rule.
#[derive(Debug, Default)]
pub struct Shapes {
    /// One line on its own has nothing to learn for.
    learns: bool,
    civil: [u8; CIVIL_LEN],
    ranks: Vec<(ShortText, Rank)>,
    decode: Shape,
    prefill: Shape,
    /// Values of known keys that were no numbers, in other lines than those of batches.
    pub(super) unreadable: u64,
}

/// Places for ranks whose words are remembered: two to this power.
const RANK_BITS: u32 = 9;

impl Shapes {
    /// The rank that the words before the closing bracket name, and what comes behind it.
    fn rank<'a>(&mut self, rest: &'a [u8]) -> Option<(Rank, &'a [u8])> {
        let Some((letters, close)) = ShortText::before_bracket(rest).filter(|_| self.learns) else {
            let close = memchr(b']', rest)?;
            return Some((rank_of(&rest[..close]), &rest[close + 1..]));
        };
        let known = &mut self.ranks[letters.place()];
        if known.0 != letters {
            *known = (letters, rank_of(&rest[..close]));
        }
        Some((known.1, &rest[close + 1..]))
    }

    /// Values of known keys that were no numbers so far, and pairs that were cut before their colon.
    pub fn unreadable(&self) -> u64 {
        self.decode.unreadable + self.prefill.unreadable + self.unreadable
    }

    /// Whether a line of this log bore a stamp.
    const fn has_stamps(&self) -> bool {
        self.civil[0] != 0
    }

    /// For a log of many lines.
    pub fn of_a_log() -> Self {
        Self { learns: true, ranks: vec![Default::default(); 1 << RANK_BITS], ..Self::default() }
    }
}

/// Up to fifteen bytes as two numbers, which compare at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ShortText([u64; 2]);

impl ShortText {
    /// Those before the first `]`, and where it is; `None` when it is farther away.
    #[inline]
    fn before_bracket(bytes: &[u8]) -> Option<(Self, usize)> {
        const EACH: u128 = u128::MAX / 0xff;
        let all = u128::from_le_bytes(*bytes.first_chunk()?);
        let differs = all ^ (EACH * b']' as u128);
        // The lowest bit that is set is that of the first byte that does not differ.
        let same = differs.wrapping_sub(EACH) & !differs & (EACH << 7);
        let close = same.trailing_zeros() as usize / 8;
        let before = all & !(u128::MAX << (close * 8 % 128));
        (close < 16).then_some((Self([before as u64, (before >> 64) as u64]), close))
    }

    /// Their index in [`Shapes::ranks`].
    fn place(self) -> usize {
        let [low, high] = self.0;
        ((low ^ high.rotate_left(29)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - RANK_BITS)) as usize
    }
}

/// The keys of one kind of line, in their order, each with what stands between it and its value.
#[derive(Debug, Default)]
struct Shape {
    keys: Vec<Key>,
    /// What was unreadable in its lines so far.
    unreadable: u64,
}

/// A key and what is between it and its value, `#running-req: `, as far as it fits into 32 bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Key {
    words: [u128; 2],
    masks: [u128; 2],
    len: usize,
    signal: Option<Signal>,
}

impl Key {
    /// `None` for one that is too long to be remembered.
    fn new(text: &[u8], signal: Option<Signal>) -> Option<Self> {
        let mut bytes = [0; 32];
        let mut mask = [0; 32];
        bytes.get_mut(..text.len())?.copy_from_slice(text);
        mask[..text.len()].fill(0xff);
        Some(Self { words: words_of(&bytes), masks: words_of(&mask), len: text.len(), signal })
    }

    /// Whether `text` begins with it. Without a branch or a call: keys are short, and there are many.
    #[inline]
    fn begins(&self, text: &[u8]) -> bool {
        let mut last = [0; 32];
        let bytes = text.first_chunk().unwrap_or_else(|| {
            last[..text.len()].copy_from_slice(text);
            &last
        });
        let [low, high] = words_of(bytes);
        let differs = (low ^ self.words[0]) & self.masks[0] | (high ^ self.words[1]) & self.masks[1];
        self.len > 0 && differs == 0
    }
}

#[inline(always)]
fn words_of(bytes: &[u8; 32]) -> [u128; 2] {
    let (words, _) = bytes.as_chunks();
    [u128::from_le_bytes(words[0]), u128::from_le_bytes(words[1])]
}

/// Keys beyond this many are looked up in every line; a line has about a dozen.
const MOST_KEYS: usize = 40;

/// Reads a single line (without its newline). `fields` is cleared and takes the numbers.
pub fn read<'a>(line: &'a [u8], fields: &mut Fields) -> Line<'a> {
    read_next(line, fields, &mut Shapes::default())
}

/// Reads the next line of a log whose earlier lines left `shapes`.
pub fn read_next<'a>(line: &'a [u8], fields: &mut Fields, shapes: &mut Shapes) -> Line<'a> {
    fields.clear();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    match bracket(line, shapes) {
        Some(prefix) => {
            let content = match message(prefix.message, fields, shapes) {
                LineContent::Profile(_) | LineContent::Fatal(_) | LineContent::Retraction(_)
                    if !is_own_place(prefix.front) =>
                {
                    LineContent::Other
                }
                LineContent::Batch(_) | LineContent::Balancedness if is_quoted(prefix.front) => {
                    fields.clear();
                    LineContent::Other
                }
                content => content,
            };
            Line { rank: prefix.rank, stamp: Some(prefix.stamp), content }
        }
        None => unstamped(line, fields, shapes),
    }
}

struct Prefix<'a> {
    /// What stands before the bracket.
    front: &'a [u8],
    stamp: Stamp<'a>,
    rank: Rank,
    message: &'a [u8],
}

/// Finds `[2026-11-24 03:48:06.123 DP2 TP0] message`, wherever it begins.
fn bracket<'a>(line: &'a [u8], shapes: &mut Shapes) -> Option<Prefix<'a>> {
    let limit = line.len().min(PREFIX_LIMIT);
    let mut from = 0;
    // Most lines begin with it.
    let mut next = if line.first() == Some(&b'[') { Some(0) } else { memchr(b'[', &line[..limit]) };
    while let Some(found) = next {
        let (front, inside) = (&line[..from + found], &line[from + found + 1..]);
        if inside.first_chunk() == Some(&shapes.civil) {
            return stamped(front, inside, shapes);
        }
        if is_civil(inside) {
            shapes.civil.copy_from_slice(&inside[..CIVIL_LEN]);
            return stamped(front, inside, shapes);
        }
        from += found + 1;
        next = memchr(b'[', &line[from..limit]);
    }
    None
}

fn stamped<'a>(front: &'a [u8], inside: &'a [u8], shapes: &mut Shapes) -> Option<Prefix<'a>> {
    let (civil, mut rest) = inside.split_at(CIVIL_LEN);
    let mut millis = None;
    if let [b'.' | b',', digits @ ..] = rest {
        let end = digits.iter().position(|b| !b.is_ascii_digit()).unwrap_or(digits.len());
        millis = digits[..end.min(3)].iter().try_fold(0_u16, |n, b| Some(n * 10 + u16::from(b - b'0')));
        rest = &digits[end..];
    }
    let (rank, message) = shapes.rank(rest)?;
    Some(Prefix { front, stamp: Stamp { civil, millis }, rank, message: message.trim_ascii_start() })
}

/// Whether what stands before the engine's words is nothing, or what containers and loggers write there.
/// A line that quotes a request has its user's words behind quotes or other text, and those are never
/// taken for the engine's own.
fn is_own_place(front: &[u8]) -> bool {
    const LEVELS: [&[u8]; 5] = [b"DEBUG", b"INFO", b"WARNING", b"ERROR", b"CRITICAL"];
    let front = unwrapped(front).trim_ascii_end();
    if front.is_empty() {
        return true;
    }
    if is_quoted(front) {
        return false;
    }
    match front {
        [.., b'|' | b']' | b')'] | [.., b']', b':'] => true,
        [.., b' ', b'F' | b'P'] => {
            let stream = &front[..front.len() - 2];
            stream.ends_with(b"stdout") || stream.ends_with(b"stderr")
        }
        _ => front.split(|b| !b.is_ascii_alphanumeric()).any(|word| LEVELS.contains(&word)),
    }
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
fn unstamped<'a>(line: &'a [u8], fields: &mut Fields, shapes: &mut Shapes) -> Line<'a> {
    const LOADS: [&[u8]; 3] = [b"Decode batch", b"Prefill batch", b"[Expert Balancedness]"];
    const EVENTS: [&[u8]; 6] = [
        b"Profiling ",
        b"Stop profiling",
        b"Scheduler hit an exception",
        b"Received sigquit from a child process",
        b"SIGQUIT received.",
        b"Scheduler watchdog timeout (",
    ];
    let first = |starts: &[&[u8]]| starts.iter().filter_map(|s| memmem::find(line, s)).min();
    let load = first(&LOADS).filter(|at| !is_quoted(&line[..*at]));
    // A log with stamps has one on each of the engine's lines: what has none is somebody else's text.
    let event =
        || if shapes.has_stamps() { None } else { first(&EVENTS).filter(|at| is_own_place(&line[..*at])) };
    let Some(start) = load.or_else(event) else {
        return Line { rank: Rank::NONE, stamp: None, content: LineContent::Other };
    };
    Line { rank: rank_of(&line[..start]), stamp: None, content: message(&line[start..], fields, shapes) }
}

fn message<'a>(text: &'a [u8], fields: &mut Fields, shapes: &mut Shapes) -> LineContent<'a> {
    if let Some(rest) = text.strip_prefix(b"Decode batch") {
        return batch(BatchKind::Decode, &keys::DECODE, rest, fields, shapes);
    }
    if let Some(rest) = text.strip_prefix(b"Prefill batch") {
        return batch(BatchKind::Prefill, &keys::PREFILL, rest, fields, shapes);
    }
    match text.first() {
        Some(b'P' | b'S') => profile(text).map_or_else(|| fatal(text), |p| LineContent::Profile(Box::new(p))),
        Some(b'[') if text.starts_with(b"[Expert Balancedness]") => {
            balancedness(text, fields, &mut shapes.unreadable)
        }
        Some(b'I') if text.starts_with(b"INFO:  ") => LineContent::Other,
        Some(b'K') => retraction(text).map_or(LineContent::Other, LineContent::Retraction),
        _ => fatal(text),
    }
}

fn batch<'a>(
    kind: BatchKind,
    words: &KeyTable,
    rest: &'a [u8],
    fields: &mut Fields,
    shapes: &mut Shapes,
) -> LineContent<'a> {
    let shape = if kind == BatchKind::Prefill { &mut shapes.prefill } else { &mut shapes.decode };
    let pairs = after_iteration(rest);
    let unknown = read_pairs(pairs, words, fields, shape, shapes.learns);
    if fields.is_empty() {
        return LineContent::Other;
    }
    LineContent::Batch(Batch { kind, pairs, unknown })
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
fn read_pairs(pairs: &[u8], words: &KeyTable, fields: &mut Fields, shape: &mut Shape, learns: bool) -> u8 {
    let (mut rest, mut unknown) = (pairs, 0_u8);
    for place in 0.. {
        let Some((signal, used)) = shape.key(place, rest, words, learns) else {
            shape.unreadable += u64::from(!rest.trim_ascii().is_empty());
            break;
        };
        rest = &rest[used..];
        match signal {
            Some(signal) => {
                if let Some((number, used)) = number_of(rest) {
                    fields.set(signal, number);
                    rest = &rest[used..];
                } else {
                    shape.unreadable += 1;
                }
            }
            None => unknown = unknown.saturating_add(1),
        }
        if let [b',', b' ', after @ ..] = rest {
            rest = after;
            continue;
        }
        let Some(comma) = memchr(b',', rest) else { break };
        rest = rest[comma + 1..].trim_ascii_start();
    }
    unknown
}

impl Shape {
    /// The signal of the key that `rest` begins with, and where its value begins.
    #[inline]
    fn key(
        &mut self,
        place: usize,
        rest: &[u8],
        words: &KeyTable,
        learns: bool,
    ) -> Option<(Option<Signal>, usize)> {
        if let Some(key) = self.keys.get(place)
            && key.begins(rest)
        {
            return Some((key.signal, key.len));
        }
        let colon = memchr(b':', rest)?;
        let signal = words.get(&rest[..colon]);
        let value = rest.len() - rest[colon + 1..].trim_ascii_start().len();
        if learns && place < MOST_KEYS {
            self.keys.resize(self.keys.len().max(place + 1), Key::default());
            self.keys[place] = Key::new(&rest[..value], signal).unwrap_or_default();
        }
        Some((signal, value))
    }
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
fn balancedness<'a>(text: &'a [u8], fields: &mut Fields, unreadable: &mut u64) -> LineContent<'a> {
    for pair in text.split(|b| *b == b' ') {
        let Some((key, value)) = split_once(pair, b"=") else { continue };
        let Some((value, _)) = number::leading(value) else {
            *unreadable += u64::from(key.ends_with(b"_balancedness"));
            continue;
        };
        if key == b"current_pass_balancedness" {
            fields.set(catalog::EXPERT_BALANCEDNESS, value);
        } else if key.starts_with(b"last_") && fields.get(catalog::EXPERT_BALANCEDNESS_AVERAGE).is_none() {
            fields.set(catalog::EXPERT_BALANCEDNESS_AVERAGE, value);
        }
    }
    if fields.is_empty() { LineContent::Other } else { LineContent::Balancedness }
}

/// `KV cache pool is full. Retract requests. #retracted_reqs: 2, ...`
fn retraction(text: &[u8]) -> Option<f64> {
    let rest = text.strip_prefix(b"KV cache pool is full. Retract requests. ")?;
    let (_, count) = split_once(rest, b"#retracted_reqs: ")?;
    Some(number::leading(count)?.0)
}

/// Whether the message is the end of a server. It begins with these words: elsewhere they are quoted.
fn fatal(text: &[u8]) -> LineContent<'_> {
    const LAST_WORDS: [&[u8]; 3] =
        [b"Scheduler hit an exception", b"Received sigquit from a child process", b"SIGQUIT received."];
    let dying = LAST_WORDS.into_iter().any(|words| text.starts_with(words)) || is_watchdog(text);
    if dying { LineContent::Fatal(text) } else { LineContent::Other }
}

/// `Watchdog timeout (...)`, and since 0.5 the watched one in front: `Scheduler watchdog timeout (...)`. A
/// soft watchdog only reports.
fn is_watchdog(text: &[u8]) -> bool {
    let word = text.iter().position(|b| !b.is_ascii_alphanumeric()).unwrap_or(text.len());
    let rest = text[word..].strip_prefix(b" watchdog timeout (");
    let rest = rest.or_else(|| text.strip_prefix(b"Watchdog timeout ("));
    rest.is_some_and(|rest| memmem::find(rest, b"self.soft=True").is_none())
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
