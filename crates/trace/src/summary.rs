//! The summary of a rank: its [`RankProfile`] as JSON, so that ranks can be compared where their traces
//! are not (`docs/summary.md`).
//!
//! A summary has all that [`compare()`](crate::compare()) reads of a trace, in whole nanoseconds, so the
//! verdict over summaries is that over the traces. What it leaves out is the full names of kernels, which
//! for templates are thousands of characters long: a digest tells equal ones.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use crate::kernel::Family;
use crate::period::Period;
use crate::printable::printable;
use crate::profile::{Collective, Cost, KernelCost, RankProfile, Step};
use crate::rank::RankId;
use crate::step::{StepKind, StepSource};
use crate::trace::{Activities, CollectiveId};

/// The version of the form. A reader takes this one and older ones.
pub const VERSION: u32 = 1;

/// The most bytes of a summary that are read.
const MOST_BYTES: u64 = 64 << 20;

/// The most bytes of a name or a note in a summary.
const LONGEST_TEXT: usize = 4096;

/// A file that is no summary which this version can read.
#[derive(Debug, thiserror::Error)]
pub enum NotASummary {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    /// It is no JSON of this form.
    #[error("it is no summary of a rank: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Its lists do not fit each other.
    #[error("it is no summary of a rank: {0}")]
    Inconsistent(&'static str),
    /// It is larger than any summary.
    #[error("it has more than {} MiB, which no summary of a rank has", MOST_BYTES >> 20)]
    TooLarge,
    /// It was written by a later version.
    #[error(
        "its form is version {found}, written by {by}; this skewtrap reads up to version {VERSION}: use the version that wrote it"
    )]
    Newer {
        /// Its version.
        found: u32,
        /// What wrote it.
        by: String,
    },
}

/// The file name of a rank's summary: `dp2-tp0.summary.json`, `pid743.summary.json`.
pub fn file_name(rank: RankId) -> String {
    format!("{}.summary.json", rank.word())
}

/// Whether a file of this name is a summary: `summary.json`, or any name that ends with
/// `.summary.json`.
pub fn is_file_name(name: &str) -> bool {
    let plain = name.strip_suffix(".gz").unwrap_or(name);
    plain == "summary.json" || plain.ends_with(".summary.json")
}

/// Writes the summary of `profile`, as that of the rank `rank`: a comparison leaves axes out on which all
/// ranks agree, a summary must have them all.
///
/// # Errors
/// When `out` fails.
pub fn write(out: &mut impl Write, rank: RankId, profile: &RankProfile) -> io::Result<()> {
    serde_json::to_writer(&mut *out, &SummaryText::new(rank, profile)).map_err(io::Error::from)?;
    out.write_all(b"\n")
}

/// Reads a summary.
///
/// # Errors
/// When it cannot be read, is none, or was written by a later version.
pub fn read(reader: impl Read) -> Result<RankProfile, NotASummary> {
    let mut bytes = Vec::new();
    reader.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(NotASummary::TooLarge);
    }
    // The version first: a later form may have other members.
    let head: Head = serde_json::from_slice(&bytes)?;
    if head.summary > VERSION {
        let by = printable(&head.written_by, 80).into_owned();
        return Err(NotASummary::Newer { found: head.summary, by });
    }
    serde_json::from_slice::<SummaryText>(&bytes)?.profile()
}

#[derive(Deserialize)]
struct Head {
    summary: u32,
    #[serde(default)]
    written_by: String,
}

/// The summary of one rank's profile window, as `skewtrap compare` writes and reads it. Times are whole
/// nanoseconds.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SummaryText {
    /// The version of this form: 1.
    summary: u32,
    /// What wrote it.
    written_by: String,
    /// The rank, by its index on each axis, or by its process.
    #[cfg_attr(feature = "schema", schemars(with = "std::collections::BTreeMap<String, u32>"))]
    rank: RankId,
    /// The window's time zero, since the Unix epoch (or since the profile began).
    epoch_ns: i64,
    /// First start and last end of a kernel, since the time zero.
    window_ns: (i64, i64),
    /// Kernels, copies and fills in the window.
    rows: u64,
    /// Time in which any kernel ran, over the whole window.
    busy_ns: u64,
    /// Whether the trace tells launches by the host from kernels of CUDA graphs.
    knows_launches: bool,
    /// The mean time from one launch by the host to the next, without the longest of each step, in which it
    /// waits, if the trace says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    host_pace_ns: Option<u64>,
    /// What the profiler recorded beside kernels.
    activities: Activities,
    /// The number of ranks, if the trace says it.
    world_size: Option<u32>,
    /// Whether a part of the window is missing.
    partial: bool,
    /// Remarks about the trace.
    notes: Vec<String>,
    /// Streams of the GPU, the busiest first.
    streams: Vec<i64>,
    /// How the steps were found.
    steps_from: StepSource,
    /// What delimits the steps, where they were found by a period.
    period: Option<Period>,
    /// The steps, in order.
    steps: Vec<StepText>,
    /// Launches and time of each kernel inside of steps.
    kernels: Vec<KernelText>,
    /// The collective calls, in order.
    collectives: CollectivesText,
}

/// One step.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
struct StepText {
    kind: StepKind,
    /// Since the window's time zero.
    start_ns: i64,
    /// From its start to that of the next step.
    wall_ns: u64,
    /// Time in which any kernel ran.
    busy_ns: u64,
    /// Time in which any kernel but communication ran.
    work_ns: u64,
    /// The longest time in it without any kernel; 0 or absent where it was not noted.
    #[serde(default, skip_serializing_if = "is_zero")]
    longest_gap_ns: u64,
    /// Kernels, copies and fills in it.
    rows: u32,
    /// Launches by the host: a CUDA graph is one.
    launches: u32,
    /// Requests in its batch, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    requests: Option<u32>,
    /// Tokens in its batch, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tokens: Option<u32>,
}

/// One kernel.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
struct KernelText {
    /// Its name for people.
    kernel: String,
    family: Family,
    /// Digest (FNV-1a, 64 bits, hexadecimal) of its full name.
    digest: String,
    /// Blocks of a launch, mean; 0 if the trace does not say it.
    blocks_mean: f64,
    /// Launches and their time in all, by the kind of the step: extend, decode, idle, step.
    launches: [u64; 4],
    time_ns: [u64; 4],
}

/// The collective calls as columns, because there are hundreds of them in a step.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
struct CollectivesText {
    /// From the start of the call before it (of the first: from the window's time zero) to its start.
    after_ns: Vec<i64>,
    duration_ns: Vec<i64>,
    /// The indices of the steps of successive calls, each with the number of calls; null outside of any
    /// step.
    steps: Vec<(Option<u32>, u64)>,
    /// Process group and sequence number of each call; empty if the trace has them of no call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ids: Vec<Option<(u32, u64)>>,
}

impl SummaryText {
    fn new(rank: RankId, p: &RankProfile) -> Self {
        Self {
            summary: VERSION,
            written_by: concat!("skewtrap ", env!("CARGO_PKG_VERSION")).to_owned(),
            rank,
            epoch_ns: p.epoch_ns,
            window_ns: p.window,
            rows: p.rows,
            busy_ns: p.busy_ns,
            knows_launches: p.knows_launches,
            host_pace_ns: p.host_pace_ns,
            activities: p.activities,
            world_size: p.world_size,
            partial: p.partial,
            notes: p.notes.clone(),
            streams: p.streams.clone(),
            steps_from: p.source,
            period: p.period.clone(),
            steps: p.steps.iter().map(StepText::from).collect(),
            kernels: p.kernels.iter().map(KernelText::from).collect(),
            collectives: CollectivesText::new(&p.collectives),
        }
    }

    fn profile(self) -> Result<RankProfile, NotASummary> {
        self.check_times()?;
        let collectives = self.collectives.calls(self.steps.len())?;
        let kernels = self.kernels.into_iter().map(KernelText::cost).collect::<Result<_, _>>()?;
        Ok(RankProfile {
            rank: self.rank,
            epoch_ns: self.epoch_ns,
            window: self.window_ns,
            rows: self.rows,
            knows_launches: self.knows_launches,
            host_pace_ns: self.host_pace_ns,
            activities: self.activities,
            busy_ns: self.busy_ns,
            steps: self.steps.into_iter().map(Step::from).collect(),
            source: self.steps_from,
            period: self.period.map(|p| Period { kernel: shown(&p.kernel), runs: p.runs.max(1) }),
            kernels,
            collectives,
            streams: self.streams,
            world_size: self.world_size,
            notes: self.notes.iter().map(|note| shown(note)).collect(),
            partial: self.partial,
        })
    }
}

/// The longest step that is believed, nanoseconds: 2.4 hours. Sums over all steps stay far from the end
/// of the numbers.
const LONGEST_STEP_NS: u64 = 1 << 43;
/// The longest time between a window's time zero and anything in it, nanoseconds: two years.
const FARTHEST_NS: i64 = 1 << 56;

impl SummaryText {
    /// Refuses times with which sums would overflow: whoever writes into the folder chooses them.
    fn check_times(&self) -> Result<(), NotASummary> {
        let near = |ns: i64| (-FARTHEST_NS..=FARTHEST_NS).contains(&ns);
        if self.window_ns.1 < self.window_ns.0 {
            return Err(NotASummary::Inconsistent("its window ends before it begins"));
        }
        let step_fits = |s: &StepText| {
            near(s.start_ns)
                && s.wall_ns.max(s.busy_ns).max(s.work_ns).max(s.longest_gap_ns) <= LONGEST_STEP_NS
        };
        let kernel_fits = |k: &KernelText| {
            k.launches.iter().all(|n| *n <= 1 << 40) && k.time_ns.iter().all(|ns| *ns <= 1 << 56)
        };
        let calls = &self.collectives;
        let fits = near(self.window_ns.0)
            && near(self.window_ns.1)
            && self.epoch_ns.unsigned_abs() <= 1 << 62
            && self.host_pace_ns.is_none_or(|ns| ns <= LONGEST_STEP_NS)
            && self.steps.iter().all(step_fits)
            && self.kernels.iter().all(kernel_fits)
            && calls.after_ns.iter().all(|ns| near(*ns))
            && calls.duration_ns.iter().all(|ns| (0..=i64::from(u32::MAX)).contains(ns));
        if fits { Ok(()) } else { Err(NotASummary::Inconsistent("its times are beyond any window's")) }
    }
}

fn is_zero(ns: &u64) -> bool {
    *ns == 0
}

/// Text of a file, made safe to show.
fn shown(text: &str) -> String {
    printable(text, LONGEST_TEXT).into_owned()
}

impl From<&Step> for StepText {
    fn from(s: &Step) -> Self {
        Self {
            kind: s.kind,
            start_ns: s.start,
            wall_ns: s.wall_ns,
            busy_ns: s.busy_ns,
            work_ns: s.work_ns,
            longest_gap_ns: s.longest_gap_ns,
            rows: s.rows,
            launches: s.launches,
            requests: s.requests,
            tokens: s.tokens,
        }
    }
}

impl From<StepText> for Step {
    fn from(s: StepText) -> Self {
        Self {
            start: s.start_ns,
            wall_ns: s.wall_ns,
            busy_ns: s.busy_ns,
            work_ns: s.work_ns,
            longest_gap_ns: s.longest_gap_ns,
            rows: s.rows,
            launches: s.launches,
            kind: s.kind,
            requests: s.requests,
            tokens: s.tokens,
        }
    }
}

impl From<&KernelCost> for KernelText {
    fn from(k: &KernelCost) -> Self {
        Self {
            kernel: k.short.clone(),
            family: k.family,
            digest: format!("{:016x}", k.digest),
            blocks_mean: k.blocks,
            launches: k.by_kind.map(|c| c.launches),
            time_ns: k.by_kind.map(|c| c.time_ns),
        }
    }
}

impl KernelText {
    fn cost(self) -> Result<KernelCost, NotASummary> {
        let digest = u64::from_str_radix(&self.digest, 16).map_err(|_| {
            NotASummary::Inconsistent("the digest of a kernel's name is no hexadecimal number")
        })?;
        let short = shown(&self.kernel);
        let mut by_kind = [Cost::default(); 4];
        for (cost, (launches, time_ns)) in by_kind.iter_mut().zip(self.launches.into_iter().zip(self.time_ns))
        {
            *cost = Cost { launches, time_ns };
        }
        Ok(KernelCost {
            name: short.clone(),
            digest,
            short,
            family: self.family,
            blocks: self.blocks_mean,
            by_kind,
        })
    }
}

impl CollectivesText {
    fn new(calls: &[Collective]) -> Self {
        let mut steps: Vec<(Option<u32>, u64)> = Vec::new();
        let mut before = 0;
        let mut after_ns = Vec::with_capacity(calls.len());
        for call in calls {
            after_ns.push(call.start - before);
            before = call.start;
            match steps.last_mut().filter(|run| run.0 == call.step) {
                Some(run) => run.1 += 1,
                None => steps.push((call.step, 1)),
            }
        }
        let told = calls.iter().any(|c| c.id.is_some());
        let id_of = |c: &Collective| c.id.map(|id| (id.group, id.number));
        Self {
            after_ns,
            duration_ns: calls.iter().map(|c| c.duration_ns()).collect(),
            steps,
            ids: if told { calls.iter().map(id_of).collect() } else { Vec::new() },
        }
    }

    /// The calls, of a window with so many steps.
    fn calls(self, steps: usize) -> Result<Vec<Collective>, NotASummary> {
        let n = self.after_ns.len();
        let counted = self.steps.iter().try_fold(0u64, |sum, run| sum.checked_add(run.1));
        if self.duration_ns.len() != n
            || counted != Some(n as u64)
            || !(self.ids.is_empty() || self.ids.len() == n)
        {
            return Err(NotASummary::Inconsistent("its lists of collectives are of different lengths"));
        }
        if self.steps.iter().filter_map(|run| run.0).any(|step| step as usize >= steps) {
            return Err(NotASummary::Inconsistent("a collective lies in a step that is not there"));
        }
        let in_steps = self.steps.iter().flat_map(|&(step, count)| (0..count).map(move |_| step));
        let ids = self.ids.into_iter().chain(std::iter::repeat(None));
        let mut start = 0i64;
        let columns = self.after_ns.into_iter().zip(self.duration_ns).zip(in_steps).zip(ids);
        Ok(columns
            .map(|(((after, duration), step), id)| {
                start = start.saturating_add(after);
                let id = id.map(|(group, number)| CollectiveId { group, number });
                Collective { start, end: start.saturating_add(duration), id, step }
            })
            .collect())
    }
}
