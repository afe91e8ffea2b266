//! One rank's profile window as a reader fills it: kernel rows of 16 bytes each, step annotations,
//! and the identities of its collectives. Readers of any format (Kineto here, Nsight elsewhere) fill
//! this one model, and nothing behind it depends on the format.
//!
//! Times are integer nanoseconds on the rank's own clock. Rows may be added in any order.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use serde::{Deserialize, Serialize};

use crate::kernel::{Family, family_of};
use crate::printable::printable_bytes;
use crate::step::{StepMark, StepSource, parse_annotation};

/// One kernel, copy or fill on the GPU. A kernel longer than 4.29 s is cut to that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Nanoseconds since the window's [`RankTrace::epoch_ns`].
    pub start: i64,
    /// Duration, nanoseconds.
    pub dur: u32,
    /// Index into [`RankTrace::names`].
    pub name: u16,
    /// Index into [`RankTrace::streams`], and [`Self::SHARED`] where the host did not launch it by itself.
    stream: u16,
}

impl Row {
    /// Set where the row before it came of the same launch by the host: all kernels of a CUDA graph do.
    const SHARED: u16 = 1 << 15;

    /// Index into [`RankTrace::streams`].
    pub const fn stream(self) -> u16 {
        self.stream & !Self::SHARED
    }

    /// Whether the host launched it by itself, or as the first kernel of a graph.
    pub const fn is_launched(self) -> bool {
        self.stream & Self::SHARED == 0
    }

    /// The end, nanoseconds since the window's epoch.
    pub const fn end(self) -> i64 {
        self.start + self.dur as i64
    }
}

/// What identifies one collective call on all ranks that take part in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CollectiveId {
    /// Digest of the process group's name.
    pub group: u32,
    /// The sequence number inside the group.
    pub number: u64,
}

/// What a profiler recorded beside kernels. Each of them slows the host that is profiled, so host time
/// may be compared under the same activities only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Activities {
    /// Operators and calls of the CUDA runtime on the CPU.
    pub cpu: bool,
    /// Python functions.
    pub stacks: bool,
}

impl Activities {
    /// Adds what another file or event shows.
    pub fn add(&mut self, other: Self) {
        self.cpu |= other.cpu;
        self.stacks |= other.stacks;
    }
}

/// Bounds of one rank's window, so that memory stays bounded whatever a file holds. Rows beyond them
/// are dropped, and a note says so.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most rows.
    pub rows: usize,
    /// The most distinct kernel names.
    pub names: usize,
}

/// The most bytes of a kernel's name: those of templates have thousands.
const LONGEST_NAME: usize = 8192;

impl Default for Limits {
    fn default() -> Self {
        Self { rows: 4_000_000, names: usize::from(u16::MAX) }
    }
}

/// One rank's window. Readers fill it; [`RankWindow::new`](crate::RankWindow::new) ends the reading.
#[derive(Clone, Debug, Default)]
pub struct RankTrace {
    /// What rows are relative to: nanoseconds since the Unix epoch (or since the profile began).
    pub epoch_ns: i64,
    /// Kernels, copies and fills.
    pub rows: Vec<Row>,
    /// Kernel names as the profiler wrote them.
    pub names: Vec<String>,
    /// Stream numbers.
    pub streams: Vec<i64>,
    /// Whether a kernel is one of communication, by name.
    pub(crate) communicates: Vec<bool>,
    /// Blocks that all launches together had, by name: equal grids mean equal work.
    pub blocks: Vec<u64>,
    /// Steps annotated on the GPU's timeline.
    pub gpu_steps: Vec<StepMark>,
    /// Steps annotated on the CPU.
    pub cpu_steps: Vec<StepMark>,
    /// Identities of collectives, by the start and stream of their row.
    pub collective_ids: HashMap<(i64, u16), CollectiveId>,
    /// The number of ranks, if the trace says it.
    pub world_size: Option<u32>,
    /// What a reader of the result must know, a sentence each: a cut window, a truncated file.
    pub notes: Vec<String>,
    /// Whether a part of the file is missing.
    pub partial: bool,
    /// What the profiler recorded beside kernels.
    pub activities: Activities,
    /// When the host launched rows, in units of [`Self::TICK_NS`] since the first that was read.
    host_launches: Vec<i32>,
    first_launch_ns: Option<i64>,
    /// The launch by the host that the last row came of.
    last_launch: Option<u64>,
    name_ids: NameIds,
    stream_ids: HashMap<i64, u16>,
    /// The stream of the last row, which most often is that of the next.
    last_stream: Option<(i64, u16)>,
    dropped: u64,
    /// Rows of the file that could not be read.
    unreadable: u64,
}

/// Hashes kernel names eight bytes at a time, by the multiplication of FxHash: names are long, few,
/// and looked up for every row.
#[derive(Clone, Copy, Debug, Default)]
struct WordHash(u64);

impl Hasher for WordHash {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = mixed(self.0, word);
    }

    fn write(&mut self, bytes: &[u8]) {
        // Four words at a time have nothing to wait for in each other.
        let (blocks, bytes) = bytes.as_chunks::<32>();
        if !blocks.is_empty() {
            let mut lanes = [self.0, 1, 2, 3];
            for block in blocks {
                for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<8>().0) {
                    *lane = mixed(*lane, u64::from_le_bytes(*word));
                }
            }
            self.0 = lanes.into_iter().reduce(mixed).unwrap_or(self.0);
        }
        let (words, rest) = bytes.as_chunks::<8>();
        let mut last = [0u8; 8];
        last[..rest.len()].copy_from_slice(rest);
        for word in words.iter().chain(std::iter::once(&last)) {
            self.0 = mixed(self.0, u64::from_le_bytes(*word));
        }
    }
}

/// The index of each name by the hash of its bytes; the next free number where another name has the same.
///
/// A map from names would compare them by `==`, which is a call to `memcmp` for each row: musl, of which a static
/// binary is made, does that byte by byte.
#[derive(Clone, Debug, Default)]
struct NameIds(HashMap<u64, (Box<[u8]>, u16), BuildHasherDefault<WordHash>>);

impl NameIds {
    /// The index of `name`, or the place for [`Self::insert`].
    fn find(&self, name: &[u8]) -> Result<u16, u64> {
        let mut place = WordHash::default();
        place.write(name);
        let mut place = place.finish();
        while let Some((other, id)) = self.0.get(&place) {
            if is_same(other, name) {
                return Ok(*id);
            }
            place = place.wrapping_add(1);
        }
        Err(place)
    }

    fn insert(&mut self, place: u64, name: &[u8], id: u16) {
        self.0.insert(place, (name.into(), id));
    }
}

/// Whether two texts are the same, eight bytes at a time and without a call.
#[inline]
pub fn is_same(one: &[u8], other: &[u8]) -> bool {
    let ((words, rest), (others, other_rest)) = (one.as_chunks::<8>(), other.as_chunks::<8>());
    one.len() == other.len()
        && words.iter().zip(others).all(|(a, b)| u64::from_ne_bytes(*a) == u64::from_ne_bytes(*b))
        && rest.iter().zip(other_rest).all(|(a, b)| a == b)
}

const fn mixed(so_far: u64, word: u64) -> u64 {
    (so_far.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95)
}

impl RankTrace {
    /// Adds one row and returns it; `None` when the window is full. `start_ns` is absolute; `name` may
    /// be any bytes.
    pub fn push(
        &mut self,
        limits: Limits,
        name: &[u8],
        stream: i64,
        start_ns: i64,
        dur_ns: i64,
    ) -> Option<Row> {
        if self.rows.len() >= limits.rows {
            self.dropped += 1;
            return None;
        }
        if self.rows.is_empty() && self.gpu_steps.is_empty() && self.cpu_steps.is_empty() {
            self.epoch_ns = start_ns;
        }
        let name = self.name_id(limits, name)?;
        let next = u16::try_from(self.streams.len()).ok().filter(|n| *n < Row::SHARED)?;
        let stream = match self.last_stream {
            Some((last, id)) if last == stream => id,
            _ => {
                let id = *self.stream_ids.entry(stream).or_insert_with(|| {
                    self.streams.push(stream);
                    next
                });
                self.last_stream = Some((stream, id));
                id
            }
        };
        let dur = u32::try_from(dur_ns.max(0)).unwrap_or(u32::MAX);
        let row = Row { start: start_ns.saturating_sub(self.epoch_ns), dur, name, stream };
        self.rows.push(row);
        Some(row)
    }

    /// Tells by which launch of the host the row that was pushed last came to run: the rows of one CUDA
    /// graph have one launch in common.
    pub fn launched_by(&mut self, launch: u64) {
        if self.last_launch == Some(launch)
            && let Some(row) = self.rows.last_mut()
        {
            row.stream |= Row::SHARED;
        }
        self.last_launch = Some(launch);
    }

    /// A launch takes microseconds; so finely windows of three minutes fit into four bytes a launch.
    const TICK_NS: i64 = 100;

    /// Adds the time of a launch by the host, nanoseconds on a clock of its own: only differences count.
    pub fn launched_at(&mut self, limits: Limits, at_ns: i64) {
        let since = at_ns.saturating_sub(*self.first_launch_ns.get_or_insert(at_ns)) / Self::TICK_NS;
        if let Some(at) = i32::try_from(since).ok().filter(|_| self.host_launches.len() < limits.rows) {
            self.host_launches.push(at);
        }
    }

    /// The mean time from one launch by the host to the next, nanoseconds, in a window of so many steps.
    /// Once in a step the host waits: for what the GPU computed, for requests, for the ranks beside it. So as
    /// many of the longest intervals as there are steps are left out. `None` where the trace does not tell.
    pub(crate) fn host_pace_ns(&mut self, steps: usize) -> Option<u64> {
        /// With fewer launches in a step the time between them is not what the host needs.
        const FEWEST_A_STEP: usize = 8;
        self.host_launches.sort_unstable();
        let mut intervals: Vec<u32> = self.host_launches.windows(2).map(|w| w[1].abs_diff(w[0])).collect();
        let kept = intervals.len().checked_sub(steps + 1)?;
        if steps == 0 || intervals.len() < FEWEST_A_STEP * steps {
            return None;
        }
        intervals.select_nth_unstable(kept);
        let ticks: u64 = intervals[..kept].iter().map(|i| u64::from(*i)).sum();
        Some(ticks * Self::TICK_NS.unsigned_abs() / kept as u64)
    }

    /// Whether the trace says which launches of the host its rows came of.
    pub(crate) const fn knows_launches(&self) -> bool {
        self.last_launch.is_some()
    }

    /// Adds a step annotation with absolute times; any other text is ignored.
    pub fn mark_step(&mut self, on_gpu: bool, text: &str, start_ns: i64, end_ns: i64) {
        let Some((kind, requests, tokens)) = parse_annotation(text) else { return };
        if self.rows.is_empty() && self.gpu_steps.is_empty() && self.cpu_steps.is_empty() {
            self.epoch_ns = start_ns;
        }
        let (start, end) = (start_ns.saturating_sub(self.epoch_ns), end_ns.saturating_sub(self.epoch_ns));
        let marks = if on_gpu { &mut self.gpu_steps } else { &mut self.cpu_steps };
        marks.push(StepMark { start, end, kind, requests, tokens });
    }

    /// The index of a name, made safe to show and added if it is new; `None` beyond the limits.
    fn name_id(&mut self, limits: Limits, name: &[u8]) -> Option<u16> {
        let place = match self.name_ids.find(name) {
            Ok(id) => return Some(id),
            Err(place) => place,
        };
        if self.names.len() >= limits.names {
            self.dropped += 1;
            return None;
        }
        let id = u16::try_from(self.names.len()).ok()?;
        let text = printable_bytes(name, LONGEST_NAME);
        self.communicates.push(family_of(&text) == Family::Communication);
        self.names.push(text);
        self.blocks.push(0);
        self.name_ids.insert(place, name, id);
        Some(id)
    }

    /// A row of the file could not be read, and is left out.
    pub fn unreadable_row(&mut self) {
        self.unreadable += 1;
    }

    /// Ends the reading: sorts rows and steps and frees what only reading needed.
    /// [`RankWindow::new`](crate::RankWindow::new) calls it.
    pub fn finish(&mut self) {
        if self.dropped > 0 {
            self.partial = true;
            self.notes.push(format!(
                "the window was cut: {} kernels beyond the first {} were not read",
                self.dropped,
                self.rows.len()
            ));
        }
        if self.unreadable > 0 {
            self.partial = true;
            let rows = if self.unreadable == 1 { "row" } else { "rows" };
            self.notes
                .push(format!("{} {rows} of the file could not be read and are left out", self.unreadable));
        }
        self.rows.sort_unstable_by_key(|r| (r.start, r.stream(), r.dur));
        self.rows.shrink_to_fit();
        for marks in [&mut self.gpu_steps, &mut self.cpu_steps] {
            marks.sort_unstable_by_key(|m| (m.start, m.end));
            // A step is annotated once per stream: equal annotations that overlap are one step.
            marks.dedup_by(|b, a| {
                b.start < a.end && (b.kind, b.requests, b.tokens) == (a.kind, a.requests, a.tokens)
            });
        }
        (self.dropped, self.unreadable) = (0, 0);
        self.name_ids = NameIds::default();
        self.stream_ids = HashMap::new();
        self.last_stream = None;
    }

    /// The annotated steps; those on the GPU's timeline are preferred, because they delimit kernels
    /// and not launches. `None` without annotations.
    pub(crate) fn annotated_steps(&self) -> Option<(StepSource, &[StepMark])> {
        match (self.gpu_steps.is_empty(), self.cpu_steps.is_empty()) {
            (false, _) => Some((StepSource::GpuAnnotations, &self.gpu_steps)),
            (true, false) => Some((StepSource::CpuAnnotations, &self.cpu_steps)),
            (true, true) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_same_hash_are_told_apart() {
        let mut ids = NameIds::default();
        let place = ids.find(b"first").unwrap_err();
        ids.insert(place, b"another", 3);
        let free = ids.find(b"first").unwrap_err();
        assert_eq!(free, place.wrapping_add(1));
        ids.insert(free, b"first", 4);
        assert_eq!(ids.find(b"first"), Ok(4));
        for (one, other) in [("abcdefgh", "abcdefgi"), ("abc", "abd"), ("abcdefgh", "abcdefghi")] {
            assert!(is_same(one.as_bytes(), one.as_bytes()) && !is_same(one.as_bytes(), other.as_bytes()));
        }
    }

    #[test]
    fn a_full_window_is_cut_and_says_so() {
        let mut t = RankTrace::default();
        let limits = Limits { rows: 2, names: 10 };
        for i in 0..5 {
            t.push(limits, b"k", 7, i * 10, 5);
        }
        t.finish();
        assert_eq!((t.rows.len(), t.partial), (2, true));
        assert_eq!(t.notes, ["the window was cut: 3 kernels beyond the first 2 were not read"]);
    }

    #[test]
    fn the_pace_of_a_host_leaves_out_where_it_waits_once_a_step() {
        let mut t = RankTrace::default();
        // Ten steps of 20 launches, 30 us apart; then the host waits for 5 ms.
        for launch in 0..200i64 {
            t.launched_at(Limits::default(), launch * 30_000 + launch / 20 * 5_000_000);
        }
        assert_eq!(t.host_pace_ns(10), Some(30_000));
        // A host that is stopped for 40 ms in every second interval is slow.
        let mut stopped = RankTrace::default();
        for launch in 0..200i64 {
            stopped.launched_at(Limits::default(), launch * 30_000 + launch / 2 * 40_000_000);
        }
        assert!(stopped.host_pace_ns(10).is_some_and(|ns| ns > 15_000_000));
        assert_eq!(t.host_pace_ns(100), None, "two launches a step tell nothing");
        assert_eq!(RankTrace::default().host_pace_ns(3), None);
    }
}
