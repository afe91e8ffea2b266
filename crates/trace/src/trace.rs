//! One rank's window as a reader hands it over: kernel rows in 16 bytes each, step annotations,
//! and what is known about its collectives. Both readers (Kineto, Nsight) fill this one model;
//! everything behind it no longer knows where a row came from.
//!
//! Times are integer nanoseconds on the rank's own clock. Rows come in any order.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::kernel::is_communication;
use crate::labels::{LabelValue, Labels};
use crate::rank::{Axis, Rank};

/// Whose window it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Who {
    /// A rank.
    Rank(Rank),
    /// A process whose rank nobody told: Nsight cuts process names.
    Pid(u32),
}

impl Who {
    /// As labels: `{"dp_rank": 2}`, `{"pid": 743}`.
    pub fn labels(self) -> Labels {
        match self {
            Self::Rank(rank) => rank.labels(),
            Self::Pid(pid) => Labels([("pid".into(), LabelValue::Index(pid))].into_iter().collect()),
        }
    }

    /// Its index on an axis; a process has none.
    pub fn get(self, axis: Axis) -> Option<u16> {
        match self {
            Self::Rank(rank) => rank.get(axis),
            Self::Pid(_) => None,
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rank(rank) => rank.fmt(f),
            Self::Pid(pid) => write!(f, "process {pid}"),
        }
    }
}

impl Serialize for Who {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Rank(rank) => rank.serialize(s),
            Self::Pid(pid) => {
                let mut map = s.serialize_map(Some(1))?;
                map.serialize_entry("pid", pid)?;
                map.end()
            }
        }
    }
}

/// One kernel, copy or fill on the GPU. A window longer than 584 years or a single kernel longer
/// than 4.29 s (it is cut to that) would not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Nanoseconds since the window's [`RankTrace::epoch_ns`].
    pub start: i64,
    /// Nanoseconds.
    pub dur: u32,
    /// Index into [`RankTrace::names`].
    pub name: u16,
    /// Index into [`RankTrace::streams`].
    pub stream: u16,
}

impl Row {
    /// When it ended, nanoseconds since the window's epoch.
    pub const fn end(self) -> i64 {
        self.start + self.dur as i64
    }
}

/// Which kind of step the model ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// Prefill.
    Extend,
    /// Decode.
    Decode,
    /// A batch without requests, run to keep other ranks' collectives company.
    Idle,
    /// Any other, or not told.
    Step,
}

impl StepKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Extend, Self::Decode, Self::Idle, Self::Step];

    /// Its name in JSON, CSV and on screen.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Extend => "extend",
            Self::Decode => "decode",
            Self::Idle => "idle",
            Self::Step => "step",
        }
    }
}

/// An annotated step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepMark {
    /// Nanoseconds since the window's epoch.
    pub start: i64,
    /// Nanoseconds since the window's epoch.
    pub end: i64,
    /// What it ran.
    pub kind: StepKind,
    /// Requests in the batch, where the annotation says.
    pub requests: Option<u32>,
    /// Tokens in the batch, where the annotation says.
    pub tokens: Option<u32>,
}

/// What a step annotation says, if the text is one: `step[DECODE bs=32]`,
/// `step[EXTEND bs=1 toks=293]` (SGLang 0.5.12 and later),
/// `execute_context_1(512)_generation_8(8)` (vLLM), `ProfilerStep#12` (any PyTorch loop).
pub fn step_of(text: &str) -> Option<(StepKind, Option<u32>, Option<u32>)> {
    if let Some(inside) = text.strip_prefix("step[") {
        let inside = inside.strip_suffix(']').unwrap_or(inside);
        let mut words = inside.split(' ');
        let kind = match words.next()? {
            "EXTEND" | "MIXED" | "PREFILL" => StepKind::Extend,
            "DECODE" | "VERIFY" | "TARGET_VERIFY" => StepKind::Decode,
            "IDLE" => StepKind::Idle,
            _ => StepKind::Step,
        };
        let number = |key: &str| {
            inside
                .split(' ')
                .find_map(|w| w.strip_prefix(key))
                .and_then(|v| v.strip_prefix('=')?.parse().ok())
        };
        return Some((kind, number("bs"), number("toks")));
    }
    if let Some(rest) = text.strip_prefix("execute_context_") {
        let (context, generation) = rest.split_once("_generation_")?;
        let parts = |s: &str| -> Option<(u32, u32)> {
            let (n, tokens) = s.split_once('(')?;
            Some((n.parse().ok()?, tokens.trim_end_matches(')').parse().ok()?))
        };
        let ((prefills, new), (decodes, one)) = (parts(context)?, parts(generation)?);
        let kind = if prefills > 0 { StepKind::Extend } else { StepKind::Decode };
        return Some((kind, Some(prefills + decodes), Some(new + one)));
    }
    text.strip_prefix("ProfilerStep#").map(|_| (StepKind::Step, None, None))
}

/// What a trace says about one collective beyond its times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sequence {
    /// Digest of the process group's name.
    pub group: u32,
    /// Its number inside the group.
    pub number: u64,
}

/// Where step marks came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StepSource {
    /// Annotations on the GPU's own timeline.
    GpuAnnotations,
    /// Annotations on the CPU: a step's kernels run a little later than it says.
    CpuAnnotations,
    /// The period of a kernel that every rank runs equally often in a step.
    Period,
    /// Nothing tells steps apart: figures are per second.
    PerSecond,
}

/// How many rows one rank may hold. Beyond, its window is cut, and says so: memory stays bounded
/// whatever the file claims.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Rows of one rank.
    pub rows: usize,
    /// Distinct kernel names of one rank.
    pub names: usize,
}

impl Default for Limit {
    fn default() -> Self {
        Self { rows: 4_000_000, names: usize::from(u16::MAX) }
    }
}

/// One rank's window.
#[derive(Clone, Debug, Default)]
pub struct RankTrace {
    /// Nanoseconds since the Unix epoch (or since the profile began) to which rows are relative.
    pub epoch_ns: i64,
    /// Kernels, copies and fills.
    pub rows: Vec<Row>,
    /// Kernel names as the profiler wrote them.
    pub names: Vec<String>,
    /// Stream numbers.
    pub streams: Vec<i64>,
    /// Whether a name is one of communication.
    pub communicates: Vec<bool>,
    /// Blocks launched in all, by name: equal grids mean equal work.
    pub blocks: Vec<u64>,
    /// Steps annotated on the GPU's timeline.
    pub gpu_steps: Vec<StepMark>,
    /// Steps annotated on the CPU.
    pub cpu_steps: Vec<StepMark>,
    /// Sequence numbers of collectives, by the start and stream of their row.
    pub sequences: HashMap<(i64, u16), Sequence>,
    /// How many ranks the trace says there are.
    pub world_size: Option<u32>,
    /// What a reader of the result must know: a cut window, a truncated file.
    pub notes: Vec<String>,
    /// Whether a part of the file is missing.
    pub partial: bool,
    name_ids: HashMap<Box<[u8]>, u16, BuildHasherDefault<WordHash>>,
    stream_ids: HashMap<i64, u16>,
    dropped: u64,
}

/// Hashes kernel names eight bytes at a time (the multiplication of FxHash): they are long, there
/// are few, and every row looks one up.
#[derive(Clone, Copy, Debug, Default)]
struct WordHash(u64);

impl Hasher for WordHash {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }

    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        let mut last = [0u8; 8];
        last[..rest.len()].copy_from_slice(rest);
        for word in words.iter().chain(std::iter::once(&last)) {
            self.0 = (self.0.rotate_left(5) ^ u64::from_le_bytes(*word)).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
    }
}

impl RankTrace {
    /// Adds one row; `start_ns` is absolute. `name` may be any bytes. Returns the row's place, or
    /// `None` when the window is full.
    pub fn push(
        &mut self,
        limit: Limit,
        name: &[u8],
        stream: i64,
        start_ns: i64,
        dur_ns: i64,
    ) -> Option<Row> {
        if self.rows.len() >= limit.rows {
            self.dropped += 1;
            return None;
        }
        if self.rows.is_empty() && self.gpu_steps.is_empty() && self.cpu_steps.is_empty() {
            self.epoch_ns = start_ns;
        }
        let name = self.name_id(limit, name)?;
        let next = u16::try_from(self.streams.len()).ok()?;
        let stream = *self.stream_ids.entry(stream).or_insert_with(|| {
            self.streams.push(stream);
            next
        });
        let dur = u32::try_from(dur_ns.max(0)).unwrap_or(u32::MAX);
        let row = Row { start: start_ns.saturating_sub(self.epoch_ns), dur, name, stream };
        self.rows.push(row);
        Some(row)
    }

    /// Adds a step annotation with absolute times.
    pub fn mark(&mut self, on_gpu: bool, text: &str, start_ns: i64, end_ns: i64) {
        let Some((kind, requests, tokens)) = step_of(text) else { return };
        if self.rows.is_empty() && self.gpu_steps.is_empty() && self.cpu_steps.is_empty() {
            self.epoch_ns = start_ns;
        }
        let (start, end) = (start_ns.saturating_sub(self.epoch_ns), end_ns.saturating_sub(self.epoch_ns));
        let marks = if on_gpu { &mut self.gpu_steps } else { &mut self.cpu_steps };
        marks.push(StepMark { start, end, kind, requests, tokens });
    }

    /// The place of a name, made if it is new; `None` beyond the limit.
    fn name_id(&mut self, limit: Limit, name: &[u8]) -> Option<u16> {
        if let Some(&id) = self.name_ids.get(name) {
            return Some(id);
        }
        if self.names.len() >= limit.names {
            self.dropped += 1;
            return None;
        }
        let id = u16::try_from(self.names.len()).ok()?;
        let text = String::from_utf8_lossy(name).into_owned();
        self.communicates.push(is_communication(&text));
        self.names.push(text);
        self.blocks.push(0);
        self.name_ids.insert(name.into(), id);
        Some(id)
    }

    /// Ends the reading: sorts what must be sorted and gives back what only reading needed.
    pub fn finish(&mut self) {
        if self.dropped > 0 {
            self.partial = true;
            self.notes.push(format!(
                "the window was cut: {} kernels beyond the first {} were not read",
                self.dropped,
                self.rows.len()
            ));
        }
        self.rows.sort_unstable_by_key(|r| (r.start, r.stream, r.dur));
        self.rows.shrink_to_fit();
        for marks in [&mut self.gpu_steps, &mut self.cpu_steps] {
            marks.sort_unstable_by_key(|m| (m.start, m.end));
            // One step is annotated once per stream: overlapping twins are one.
            marks.dedup_by(|b, a| {
                b.start < a.end && (b.kind, b.requests, b.tokens) == (a.kind, a.requests, a.tokens)
            });
        }
        self.name_ids = HashMap::default();
        self.stream_ids = HashMap::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_of_both_engines_tell_kind_requests_and_tokens() {
        let cases = [
            ("step[DECODE bs=32]", Some((StepKind::Decode, Some(32), None))),
            ("step[EXTEND bs=1 toks=293]", Some((StepKind::Extend, Some(1), Some(293)))),
            ("step[IDLE bs=0]", Some((StepKind::Idle, Some(0), None))),
            ("step[DRAFT]", Some((StepKind::Step, None, None))),
            ("execute_context_0(0)_generation_8(8)", Some((StepKind::Decode, Some(8), Some(8)))),
            ("execute_context_1(512)_generation_8(8)", Some((StepKind::Extend, Some(9), Some(520)))),
            ("ProfilerStep#4", Some((StepKind::Step, None, None))),
            ("scheduler.run_batch", None),
            ("execute_context_x(0)_generation_8(8)", None),
        ];
        for (text, wanted) in cases {
            assert_eq!(step_of(text), wanted, "{text}");
        }
    }

    #[test]
    fn a_full_window_is_cut_and_says_so() {
        let mut t = RankTrace::default();
        let limit = Limit { rows: 2, names: 10 };
        for i in 0..5 {
            t.push(limit, b"k", 7, i * 10, 5);
        }
        t.finish();
        assert_eq!((t.rows.len(), t.partial), (2, true));
        assert_eq!(t.notes, ["the window was cut: 3 kernels beyond the first 2 were not read"]);
    }
}
