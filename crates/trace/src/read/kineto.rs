//! Reads a Kineto trace (the JSON of the PyTorch profiler) as a stream: a scanner of its own with
//! 256 KiB of buffer, for every layout and key order that any version of Kineto writes.
//!
//! Only GPU rows, step annotations and process names are read; CPU operators are stepped over. Of a
//! file that ends too early everything before its end is used, and the trace is marked as partial.
//! No size that a file claims is trusted: an event or a number of names beyond its bound is an error
//! or a note.

use std::borrow::Cow;
use std::io::Read;
use std::ops::ControlFlow;
use std::sync::LazyLock;

use crate::rank::{Rank, parse_process_name};
use crate::trace::{Activities, CollectiveId, Limits, RankTrace, Row};

use super::NotATrace;
use super::buffer::StreamBuffer;
use super::event::{Fields, Layout, Scanned, Wanted, launches, scan_event};
use super::json::{self, Scan};

/// The longest single event, in bytes.
const MAX_EVENT: usize = 16 << 20;

/// The argument that says by which call of the host a kernel was launched.
static LAUNCH: LazyLock<memchr::memmem::Finder<'static>> =
    LazyLock::new(|| memchr::memmem::Finder::new(b"\"correlation\""));
/// The argument that says how many blocks a kernel launched.
static GRID: LazyLock<memchr::memmem::Finder<'static>> =
    LazyLock::new(|| memchr::memmem::Finder::new(b"\"grid\""));

/// The argument that says which call of its group a collective is.
static NUMBER: LazyLock<memchr::memmem::Finder<'static>> =
    LazyLock::new(|| memchr::memmem::Finder::new(b"\"Seq\""));

/// One event of the stream: views of the raw bytes of its values.
pub struct Event<'a> {
    bytes: &'a [u8],
    fields: Fields,
}

impl<'a> Event<'a> {
    /// The category.
    fn cat(&self) -> &'a [u8] {
        &self.bytes[self.fields.cat.clone()]
    }

    /// The phase: `X` for a complete event, `M` for metadata.
    fn ph(&self) -> &'a [u8] {
        &self.bytes[self.fields.ph.clone()]
    }

    /// The name with its JSON escapes resolved.
    pub fn name(&self) -> Cow<'a, [u8]> {
        json::unescape(self.raw_name())
    }

    fn raw_name(&self) -> &'a [u8] {
        &self.bytes[self.fields.name.clone()]
    }

    /// The stream of a GPU row, which is its `tid`; -1 where that is not a number.
    pub fn stream(&self) -> i64 {
        json::parse_integer(&self.bytes[self.fields.tid.clone()]).unwrap_or(-1)
    }

    /// The arguments with their braces; empty when there are none.
    fn args(&self) -> &'a [u8] {
        &self.bytes[self.fields.args.clone()]
    }

    /// Start and duration in nanoseconds, the start relative to [`Header::base_ns`]; `None` where they
    /// are not readable.
    pub fn times(&self) -> Option<(i64, i64)> {
        let ts = json::nanos_from_micros(&self.bytes[self.fields.ts.clone()])?;
        let dur = &self.bytes[self.fields.dur.clone()];
        let dur = if dur.is_empty() { 0 } else { json::nanos_from_micros(dur)? };
        Some((ts, dur))
    }

    /// Whether it lasted for a time.
    pub fn is_complete(&self) -> bool {
        self.ph() == b"X"
    }

    /// Whether it is a kernel, copy or fill on the GPU.
    pub fn is_gpu_row(&self) -> bool {
        matches!(self.cat(), b"kernel" | b"gpu_memcpy" | b"gpu_memset" | b"Kernel" | b"Memcpy" | b"Memset")
            && self.ph() == b"X"
    }
}

/// What the document says outside of its events.
#[derive(Clone, Debug, Default)]
pub struct Header {
    /// `baseTimeNanoseconds`: what every start is relative to, nanoseconds since the Unix epoch.
    pub base_ns: i64,
    /// `distributedInfo.rank` and `.world_size`.
    pub distributed: Option<(u32, u32)>,
    /// What the profiler recorded beside kernels; known once the events were read.
    pub activities: Activities,
}

/// How the stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// At the end of the document, or where the visitor stopped.
    Complete,
    /// Too early, for this reason; the events before are good.
    Truncated(String),
}

/// Streams the relevant events of a trace to `visit`, which may stop the reading. `visit` gets the
/// header as far as it was read before the event.
///
/// # Errors
/// When the bytes are not a trace at all.
pub fn for_each_event<R: Read>(
    reader: R,
    visit: impl FnMut(&Header, Event<'_>) -> ControlFlow<()>,
) -> Result<(Header, Ending), NotATrace> {
    for_each_wanted(reader, Wanted::GpuRows, visit)
}

/// The same for the events that are `wanted`.
pub(crate) fn for_each_wanted<R: Read>(
    reader: R,
    wanted: Wanted,
    mut visit: impl FnMut(&Header, Event<'_>) -> ControlFlow<()>,
) -> Result<(Header, Ending), NotATrace> {
    let mut buffer = StreamBuffer::new(reader);
    let mut header = Header::default();
    let mut activities = Activities::default();
    // A byte order mark is three bytes; a shorter file has none.
    let _ = buffer.fill_to(4);
    if buffer.data().starts_with(&[0xef, 0xbb, 0xbf]) {
        buffer.consume(3);
    }
    match buffer.peek() {
        Some(b'[') => {
            buffer.consume(1);
            let end = read_events(&mut buffer, wanted, &header, &mut activities, &mut visit)?;
            header.activities = activities;
            return Ok((header, end));
        }
        Some(b'{') => buffer.consume(1),
        Some(_) => return Err(NotATrace("it does not begin with a JSON object".into())),
        None => return Err(NotATrace(why_empty(&buffer))),
    }
    let mut seen_events = false;
    loop {
        match next_key(&mut buffer) {
            Ok(Some(name)) if name == "traceEvents" => {
                seen_events = true;
                match buffer.peek() {
                    Some(b'[') => buffer.consume(1),
                    _ => return Err(NotATrace("`traceEvents` is not a list".into())),
                }
                let end = read_events(&mut buffer, wanted, &header, &mut activities, &mut visit)?;
                header.activities = activities;
                if let Ending::Truncated(_) = end {
                    return Ok((header, end));
                }
            }
            Ok(Some(name)) => {
                if let Err(why) = read_header_value(&mut buffer, &name, &mut header) {
                    return truncated_or_foreign(seen_events, header, why);
                }
            }
            Ok(None) if seen_events => return Ok((header, Ending::Complete)),
            Ok(None) => return Err(NotATrace("it has no `traceEvents`".into())),
            Err(why) => return truncated_or_foreign(seen_events, header, why),
        }
    }
}

/// Why there is no first byte.
fn why_empty<R: Read>(buffer: &StreamBuffer<R>) -> String {
    if buffer.offset() == 0 { "it is empty".into() } else { buffer.end_reason() }
}

/// After the events a broken document is a truncated trace, before them it is no trace at all.
fn truncated_or_foreign(
    seen_events: bool,
    header: Header,
    why: String,
) -> Result<(Header, Ending), NotATrace> {
    if seen_events { Ok((header, Ending::Truncated(why))) } else { Err(NotATrace(why)) }
}

/// Reads the events inside `[...]`, from just after the bracket.
fn read_events<R: Read>(
    buffer: &mut StreamBuffer<R>,
    wanted: Wanted,
    header: &Header,
    activities: &mut Activities,
    visit: &mut impl FnMut(&Header, Event<'_>) -> ControlFlow<()>,
) -> Result<Ending, NotATrace> {
    let mut layout = Layout::of(wanted);
    let mut seen = 0u64;
    loop {
        match buffer.peek() {
            Some(b',') => buffer.consume(1),
            Some(b']') => {
                buffer.consume(1);
                return Ok(Ending::Complete);
            }
            Some(b'{') => match scan_event(buffer.data(), &mut layout, seen) {
                Scan::Done(scanned, end) => {
                    seen += 1;
                    let flow = match scanned {
                        Scanned::Relevant(fields) => visit(header, Event { bytes: buffer.data(), fields }),
                        Scanned::Irrelevant(seen) => {
                            activities.add(seen);
                            ControlFlow::Continue(())
                        }
                    };
                    buffer.consume(end);
                    if flow.is_break() {
                        return Ok(Ending::Complete);
                    }
                }
                Scan::More => {
                    if let Err(why) = buffer.grow(MAX_EVENT) {
                        return Ok(Ending::Truncated(why));
                    }
                }
                Scan::Bad(at) => {
                    return Ok(Ending::Truncated(format!(
                        "byte {} is not JSON",
                        buffer.offset() + at as u64
                    )));
                }
            },
            Some(_) => return Ok(Ending::Truncated(format!("byte {} is not JSON", buffer.offset()))),
            None => return Ok(Ending::Truncated(buffer.end_reason())),
        }
    }
}

/// The next key of the top-level object, its colon consumed; `None` at the object's end.
fn next_key<R: Read>(buffer: &mut StreamBuffer<R>) -> Result<Option<String>, String> {
    if buffer.peek() == Some(b',') {
        buffer.consume(1);
    }
    match buffer.peek() {
        Some(b'}') => return Ok(None),
        Some(b'"') => {}
        Some(_) => return Err(format!("byte {} is not JSON", buffer.offset())),
        None => return Err(buffer.end_reason()),
    }
    loop {
        match json::value_at(buffer.data(), 0) {
            Some((range, end)) => {
                let name = String::from_utf8_lossy(&buffer.data()[range]).into_owned();
                buffer.consume(end);
                if buffer.peek() != Some(b':') {
                    return Err(format!("byte {} is not JSON", buffer.offset()));
                }
                buffer.consume(1);
                return Ok(Some(name));
            }
            None => buffer.grow(1 << 16)?,
        }
    }
}

/// Consumes a top-level value other than the events, and keeps the two that matter.
fn read_header_value<R: Read>(
    buffer: &mut StreamBuffer<R>,
    name: &str,
    header: &mut Header,
) -> Result<(), String> {
    buffer.peek();
    loop {
        match json::value_at(buffer.data(), 0) {
            Some((_, 0)) => return Err(format!("byte {} is not JSON", buffer.offset())),
            Some((range, end)) => {
                let value = &buffer.data()[range];
                match name {
                    "baseTimeNanoseconds" => header.base_ns = json::parse_integer(value).unwrap_or(0),
                    "distributedInfo" => {
                        let number =
                            |key: &[u8]| u32::try_from(json::parse_integer(json::member(value, key)?)?).ok();
                        header.distributed = number(b"rank").zip(number(b"world_size"));
                    }
                    _ => {}
                }
                buffer.consume(end);
                return Ok(());
            }
            None => buffer.grow(MAX_EVENT)?,
        }
    }
}

/// Adds the rows and step annotations of one file to `trace`. A rank may have several files: SGLang
/// can write one for each stage.
///
/// # Errors
/// When the bytes are not a trace at all.
pub fn read<R: Read>(reader: R, limits: Limits, trace: &mut RankTrace) -> Result<FileInfo, NotATrace> {
    let mut info = FileInfo::default();
    let mut unreadable_rows = 0u64;
    // Some writers sort the keys: a base that comes after the events is added to the epoch at the end.
    let mut known_base_ns = 0;
    let is_first_file = trace.rows.is_empty() && trace.gpu_steps.is_empty() && trace.cpu_steps.is_empty();
    let (header, end) = for_each_wanted(reader, Wanted::Window, |header, event| {
        known_base_ns = header.base_ns;
        add_event(header.base_ns, &event, limits, trace, &mut info, &mut unreadable_rows);
        ControlFlow::Continue(())
    })?;
    if is_first_file && known_base_ns == 0 && header.base_ns != 0 {
        trace.epoch_ns = trace.epoch_ns.saturating_add(header.base_ns);
    }
    info.distributed = header.distributed;
    trace.activities.add(header.activities);
    if let Some((_, world)) = header.distributed {
        trace.world_size = Some(world);
    }
    if unreadable_rows > 0 {
        trace.notes.push(format!("{unreadable_rows} GPU rows have no readable time and were left out"));
    }
    if let Ending::Truncated(why) = end {
        trace.partial = true;
        trace.notes.push(format!("the file ends too early ({why}): what is readable was used"));
    }
    Ok(info)
}

/// What the content of a file says about the rank that it is of.
#[derive(Clone, Debug, Default)]
pub struct FileInfo {
    /// `distributedInfo.rank` and `.world_size`.
    pub distributed: Option<(u32, u32)>,
    /// Names of processes: `sglang::scheduler_DP3`.
    pub processes: Vec<String>,
    /// The process that was profiled.
    pub pid: Option<u32>,
}

/// Several ranks are merged in one file: its rows cannot be told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("several ranks are merged in it")]
pub struct SeveralRanks;

impl FileInfo {
    /// The rank that the content names, if it names one.
    ///
    /// # Errors
    /// When the processes in it are of several ranks.
    pub fn rank(&self) -> Result<Option<Rank>, SeveralRanks> {
        let mut ranks: Vec<Rank> = self.processes.iter().filter_map(|p| parse_process_name(p)).collect();
        ranks.sort_unstable();
        ranks.dedup();
        match (ranks.as_slice(), self.distributed) {
            ([_, _, ..], _) => Err(SeveralRanks),
            ([rank], _) => Ok(Some(*rank)),
            // A data-parallel replica calls itself rank 0 of 1, which tells it from no other.
            ([], Some((rank, world))) if world > 1 => Ok(u16::try_from(rank).ok().map(Rank::tp)),
            ([], _) => Ok(None),
        }
    }
}

fn add_event(
    base_ns: i64,
    event: &Event<'_>,
    limits: Limits,
    trace: &mut RankTrace,
    info: &mut FileInfo,
    unreadable_rows: &mut u64,
) {
    if event.is_gpu_row() {
        let Some((ts, dur)) = event.times() else {
            *unreadable_rows += 1;
            return;
        };
        if let Some(row) = trace.push(limits, &event.name(), event.stream(), base_ns.saturating_add(ts), dur)
        {
            add_row_args(event.args(), row, trace);
        }
        return;
    }
    match event.cat() {
        cat if launches(cat, event.raw_name()) => {
            if let Some((ts, _)) = event.times() {
                trace.launched_at(limits, ts);
            }
        }
        cat @ (b"gpu_user_annotation" | b"user_annotation") if event.ph() == b"X" => {
            let text = event.raw_name();
            if matches!(text.first(), Some(b's' | b'e' | b'P'))
                && let (Ok(text), Some((ts, dur))) = (std::str::from_utf8(text), event.times())
            {
                let start = base_ns.saturating_add(ts);
                trace.mark_step(cat == b"gpu_user_annotation", text, start, start.saturating_add(dur));
            }
        }
        b"" if event.ph() == b"M" && event.raw_name() == b"process_name" => {
            if let Some(name) = json::member(event.args(), b"name") {
                let name = String::from_utf8_lossy(name).into_owned();
                if info.processes.len() < 64 && !info.processes.contains(&name) {
                    info.processes.push(name);
                }
            }
        }
        // Kineto has no other field for it that every version writes: it sorts the process by its number.
        b"" if info.pid.is_none() && event.ph() == b"M" && event.raw_name() == b"process_sort_index" => {
            let number = json::member(event.args(), b"sort_index").and_then(json::parse_integer);
            info.pid = number.and_then(|n| u32::try_from(n).ok());
        }
        _ => {}
    }
}

/// Reads a row's launch grid and, of a collective, its process group and sequence number.
fn add_row_args(args: &[u8], row: Row, trace: &mut RankTrace) {
    if args.is_empty() {
        return;
    }
    let name = usize::from(row.name);
    // Kineto writes `correlation` before `grid`: together they are looked for in one pass.
    let launch = LAUNCH.find(args);
    if let Some(at) = launch {
        let digits = args[at + 13..].trim_ascii_start().strip_prefix(b":").unwrap_or_default();
        if let Some(number) = leading_number(digits.trim_ascii_start()) {
            trace.launched_by(number);
        }
    }
    let behind = launch.unwrap_or(0);
    let grid = GRID.find(&args[behind..]).map(|at| at + behind).or_else(|| GRID.find(&args[..behind]));
    if let Some(at) = grid {
        trace.blocks[name] = trace.blocks[name].saturating_add(product_of(&args[at + 6..]));
    }
    // Most writers leave the number out: then nothing else is looked for.
    if !trace.communicates[name] || NUMBER.find(args).is_none() {
        return;
    }
    let group = json::member(args, b"Process Group Name");
    let number = json::member(args, b"Seq").and_then(json::parse_integer);
    if let (Some(group), Some(number)) = (group, number) {
        // FNV-1a: the groups of a run are few, and only equality counts.
        let group = group.iter().fold(0x811c_9dc5u32, |h, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193));
        let number = number.unsigned_abs();
        trace.collective_ids.insert((row.start, row.stream()), CollectiveId { group, number });
    }
}

/// The number that `b` begins with.
fn leading_number(b: &[u8]) -> Option<u64> {
    let digits = b.iter().take(19).take_while(|c| c.is_ascii_digit()).count();
    (digits > 0).then(|| b[..digits].iter().fold(0, |n, c| n * 10 + u64::from(c - b'0')))
}

/// The product of the numbers in `: [a, b, c]`.
fn product_of(b: &[u8]) -> u64 {
    let Some(open) = memchr::memchr(b'[', &b[..b.len().min(8)]) else { return 0 };
    let Some(close) = memchr::memchr(b']', &b[open..b.len().min(open + 48)]) else { return 0 };
    b[open + 1..open + close]
        .split(|c| *c == b',')
        .map(|n| json::parse_integer(n).map_or(0, i64::unsigned_abs))
        .fold(1, u64::saturating_mul)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_of_a_file_names_its_rank_unless_it_is_ambiguous() {
        let info = |processes: &[&str], distributed| FileInfo {
            processes: processes.iter().map(|p| (*p).to_owned()).collect(),
            distributed,
            pid: None,
        };
        let dp3 = "sglang::scheduler_DP3";
        assert_eq!(info(&[dp3, "python3"], Some((0, 1))).rank(), Ok(Some(Rank::dp(3))));
        assert_eq!(info(&[], Some((5, 8))).rank(), Ok(Some(Rank::tp(5))));
        assert_eq!(info(&[], Some((0, 1))).rank(), Ok(None), "a replica calls itself rank 0 of 1");
        assert_eq!(info(&[dp3, "sglang::scheduler_DP1"], None).rank(), Err(SeveralRanks));
    }
}
