//! What one log line means. The numbers of a batch line go into `Fields`; everything else borrows
//! from the line.

use std::borrow::Cow;

use crate::signal::stamp::Stamp;
use skewtrap_trace::rank::Rank;

/// A line, read.
#[derive(Clone, Debug, PartialEq)]
pub struct Line<'a> {
    /// The rank that printed it; [`Rank::NONE`] when the prefix names no axis.
    pub rank: Rank,
    /// Its civil time, if it bears one.
    pub stamp: Option<Stamp<'a>>,
    /// Its meaning.
    pub content: LineContent<'a>,
}

/// The meaning of a line.
#[derive(Clone, Debug, PartialEq)]
pub enum LineContent<'a> {
    /// A report of load; its numbers are in the reader's fields.
    Batch(Batch<'a>),
    /// Something about a profile, ours or somebody else's. It is rare and large, hence the box: the
    /// other lines, which are moved often, stay small.
    Profile(Box<Profile<'a>>),
    /// SGLang's engine-wide balance of the experts; its numbers are in the reader's fields.
    Balancedness,
    /// SGLang: so many running requests were put back into the queue, for want of KV room.
    Retraction(f64),
    /// The server is dying.
    Fatal(&'a [u8]),
    /// Nothing that matters here.
    Other,
}

/// Containers and wrappers write something in front of an engine's words; no sane one writes more than this.
pub const PREFIX_LIMIT: usize = 256;

/// Whether what stands before some words makes them somebody's text that the engine repeats: a request's prompt, a
/// path. Loggers put no quotes in front of their messages.
pub fn is_quoted(front: &[u8]) -> bool {
    const QUOTES: [u8; 4] = [b'\'', b'"', b'`', b'{'];
    let front = unwrapped(front);
    front.len() > PREFIX_LIMIT || front.iter().any(|b| QUOTES.contains(b))
}

/// What stands before the engine's words within `{"stream": "stdout", "log": "`, which containers and collectors of
/// logs write around a line; all of it where they have written nothing. The text is a string of the outermost object:
/// what a request brings is in an object that is open still, or has its quotes escaped.
pub fn unwrapped(front: &[u8]) -> &[u8] {
    let Some(inside) = front.strip_prefix(b"{") else { return front };
    let text_of = |key: &&[u8]| {
        let (before, value) = inside.split_at(memchr::memmem::find(inside, key)? + key.len());
        let text = value.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start().strip_prefix(b"\"")?;
        let count = |brace: u8| before.iter().filter(|b| **b == brace).count();
        (!before.contains(&b'\\') && count(b'{') == count(b'}')).then_some(text)
    };
    TEXT_KEYS.iter().find_map(text_of).unwrap_or(front)
}

/// Under which containers and collectors of logs write a line: Docker and Fluent Bit, Vector, zap, journald,
/// Google Cloud.
const TEXT_KEYS: [&[u8]; 5] = [b"\"log\"", b"\"message\"", b"\"msg\"", b"\"MESSAGE\"", b"\"textPayload\""];

/// A report of load.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch<'a> {
    /// What made the server print it.
    pub kind: BatchKind,
    /// Everything after the first words: `#running-req: 4, ...`.
    pub pairs: &'a [u8],
    /// How many keys the catalog does not know; [`Batch::pairs`] has them.
    pub unknown: u8,
}

/// Which kind of report it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchKind {
    /// SGLang, every so many decode steps.
    Decode,
    /// SGLang, every prefill batch.
    Prefill,
    /// vLLM, every ten seconds for each engine.
    Engine,
    /// vLLM, every iteration.
    Iteration,
}

impl<'a> Batch<'a> {
    /// Every key with its value, in the order of the line, the unknown ones included.
    pub fn iter(&self) -> impl Iterator<Item = (Cow<'a, str>, Cow<'a, str>)> + use<'a> {
        self.pairs.split(|b| *b == b',').filter_map(|pair| {
            let colon = memchr::memchr(b':', pair)?;
            let text = |bytes: &'a [u8]| String::from_utf8_lossy(bytes.trim_ascii());
            Some((text(&pair[..colon]), text(&pair[colon + 1..])))
        })
    }
}

/// Something about a profile on one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Profile<'a> {
    /// The window of this rank has begun.
    Starts {
        /// The folder of its file, in the server's view.
        dir: Cow<'a, str>,
        /// The profile id.
        id: Cow<'a, str>,
        /// Which stage only, as the server prints it: `EXTEND`, `DECODE`.
        stage: Option<Cow<'a, str>>,
    },
    /// The rank writes its file and serves nothing meanwhile.
    Stopping {
        /// Which stage only.
        stage: Option<Cow<'a, str>>,
    },
    /// The file is written.
    Done {
        /// Where, in the server's view.
        dir: Cow<'a, str>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collectors_own_text_is_unwrapped_and_what_a_request_brings_is_not() {
        let of_collectors = [
            r#"{"log":"INFO "#,
            r#"{"stream": "stdout", "log": "INFO "#,
            r#"{"kubernetes":{"labels":{"app":"vllm"}},"log":"INFO "#,
            r#"{"@timestamp":"2026-11-24","@metadata":{"beat":"x"},"message":"INFO "#,
            r#"{"_PID":"7","MESSAGE":"INFO "#,
        ];
        for front in of_collectors {
            assert_eq!(unwrapped(front.as_bytes()), b"INFO ", "{front}");
            assert!(!is_quoted(front.as_bytes()), "{front}");
        }
        for front in [
            r#"{"event":"request.received","obj":{"message":""#,
            r#"{"log":"{\"message\": \""#,
            r#"{"rid":"7","text":""#,
            r#"{"log":"prompt: '"#,
        ] {
            assert!(is_quoted(front.as_bytes()), "{front}");
        }
    }
}
