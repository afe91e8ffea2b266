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
