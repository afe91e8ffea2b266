//! Reads a Kineto trace (the JSON of the PyTorch profiler, gzip or not) in a stream: own scanner,
//! 256 KiB of buffer, every layout and key order that any version of Kineto writes.
//!
//! Only GPU rows, step annotations and process names are taken; a CPU operator is stepped over. A
//! file that ends too early gives what it has, marked. Nothing here trusts a size that the file
//! claims: an event, a name, a ratio of compression beyond its bound is an error or a note.

use std::io::Read;
use std::ops::ControlFlow;
use std::sync::LazyLock;

use crate::trace::{Limit, RankTrace, Sequence};

use super::NotATrace;
use super::layout::Layout;
use super::scan::{self, Found, Places, Scan};
use super::window::Window;

/// Longest single event, in bytes.
const MAX_EVENT: usize = 16 << 20;

/// Where a row says how many blocks it launched.
static GRID: LazyLock<memchr::memmem::Finder<'static>> =
    LazyLock::new(|| memchr::memmem::Finder::new(b"\"grid\""));

/// One event of the stream, as raw bytes of its values.
pub struct Event<'a> {
    /// The buffer.
    bytes: &'a [u8],
    /// Where in it.
    places: Places,
}

impl<'a> Event<'a> {
    /// `cat`.
    pub fn cat(&self) -> &'a [u8] {
        &self.bytes[self.places.cat.clone()]
    }

    /// `ph`.
    pub fn ph(&self) -> &'a [u8] {
        &self.bytes[self.places.ph.clone()]
    }

    /// `name`, escapes unresolved.
    pub fn name(&self) -> &'a [u8] {
        &self.bytes[self.places.name.clone()]
    }

    /// `tid`: the stream of a GPU row. Kineto writes numbers; words count as stream -1.
    pub fn tid(&self) -> i64 {
        scan::integer_of(&self.bytes[self.places.tid.clone()]).unwrap_or(-1)
    }

    /// `args`, with its braces; empty when there are none.
    pub fn args(&self) -> &'a [u8] {
        &self.bytes[self.places.args.clone()]
    }

    /// `ts` and `dur` in nanoseconds, relative to the trace's base.
    pub fn times(&self) -> Option<(i64, i64)> {
        let ts = scan::nanos_of_micros(&self.bytes[self.places.ts.clone()])?;
        let dur = &self.bytes[self.places.dur.clone()];
        let dur = if dur.is_empty() { 0 } else { scan::nanos_of_micros(dur)? };
        Some((ts, dur))
    }

    /// Whether it is a row of the GPU's timeline.
    pub fn is_gpu_row(&self) -> bool {
        matches!(self.cat(), b"kernel" | b"gpu_memcpy" | b"gpu_memset" | b"Kernel" | b"Memcpy" | b"Memset")
            && self.ph() == b"X"
    }
}

/// What the document says outside of its events.
#[derive(Clone, Debug, Default)]
pub struct Head {
    /// `baseTimeNanoseconds`: what every `ts` is relative to.
    pub base_ns: i64,
    /// `distributedInfo.rank` and `.world_size`.
    pub distributed: Option<(u32, u32)>,
}

/// How the stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// As it should.
    Whole,
    /// Too early, and why: what was read so far is good.
    Cut(String),
}

/// Streams the events of a trace to `take`, which may stop it. `take` sees the head as far as it
/// was read by then.
///
/// # Errors
/// When the bytes are not a trace at all.
pub fn events<R: Read>(
    reader: R,
    mut take: impl FnMut(&Head, Event<'_>) -> ControlFlow<()>,
) -> Result<(Head, End), NotATrace> {
    let mut window = Window::new(reader);
    let mut head = Head::default();
    // A byte order mark is three bytes; a shorter file has none.
    let _ = window.fill_to(4);
    if window.data().starts_with(&[0xef, 0xbb, 0xbf]) {
        window.skip(3);
    }
    match window.peek() {
        Some(b'[') => {
            window.skip(1);
            let end = array(&mut window, &head, &mut take)?;
            return Ok((head, end));
        }
        Some(b'{') => window.skip(1),
        Some(_) => return Err(NotATrace("it does not begin with a JSON object".into())),
        None => return Err(NotATrace(opened_as(&window))),
    }
    let mut seen_events = false;
    loop {
        match key(&mut window) {
            Ok(Some(name)) if name == "traceEvents" => {
                seen_events = true;
                match window.peek() {
                    Some(b'[') => window.skip(1),
                    _ => return Err(NotATrace("`traceEvents` is not a list".into())),
                }
                if let end @ End::Cut(_) = array(&mut window, &head, &mut take)? {
                    return Ok((head, end));
                }
            }
            Ok(Some(name)) => {
                if let Err(why) = other_value(&mut window, &name, &mut head) {
                    return cut_or_foreign(seen_events, head, why);
                }
            }
            Ok(None) if seen_events => return Ok((head, End::Whole)),
            Ok(None) => return Err(NotATrace("it has no `traceEvents`".into())),
            Err(why) => return cut_or_foreign(seen_events, head, why),
        }
    }
}

/// Why nothing is there.
fn opened_as<R: Read>(window: &Window<R>) -> String {
    if window.offset() == 0 { "it is empty".into() } else { window.why_it_ends() }
}

fn cut_or_foreign(seen_events: bool, head: Head, why: String) -> Result<(Head, End), NotATrace> {
    if seen_events { Ok((head, End::Cut(why))) } else { Err(NotATrace(why)) }
}

/// The events inside `[...]`, from just after its opening.
fn array<R: Read>(
    window: &mut Window<R>,
    head: &Head,
    take: &mut impl FnMut(&Head, Event<'_>) -> ControlFlow<()>,
) -> Result<End, NotATrace> {
    let mut layout = Layout::default();
    let mut seen = 0u64;
    loop {
        match window.peek() {
            Some(b',') => window.skip(1),
            Some(b']') => {
                window.skip(1);
                return Ok(End::Whole);
            }
            Some(b'{') => match layout.scan(window.data(), seen) {
                Scan::Done(found, end) => {
                    seen += 1;
                    let flow = match found {
                        Found::Wanted(places) => take(head, Event { bytes: window.data(), places }),
                        Found::Unwanted => ControlFlow::Continue(()),
                    };
                    window.skip(end);
                    if flow.is_break() {
                        return Ok(End::Whole);
                    }
                }
                Scan::More => {
                    if let Err(why) = window.grow(MAX_EVENT) {
                        return Ok(End::Cut(why));
                    }
                }
                Scan::Bad(at) => {
                    return Ok(End::Cut(format!("byte {} is not JSON", window.offset() + at as u64)));
                }
            },
            Some(_) => return Ok(End::Cut(format!("byte {} is not JSON", window.offset()))),
            None => return Ok(End::Cut(window.why_it_ends())),
        }
    }
}

/// The next key of the document's own object, its colon passed; `None` at its end.
fn key<R: Read>(window: &mut Window<R>) -> Result<Option<String>, String> {
    if window.peek() == Some(b',') {
        window.skip(1);
    }
    match window.peek() {
        Some(b'}') => return Ok(None),
        Some(b'"') => {}
        Some(_) => return Err(format!("byte {} is not JSON", window.offset())),
        None => return Err(window.why_it_ends()),
    }
    loop {
        match scan::value_at(window.data(), 0) {
            Some((range, end)) => {
                let name = String::from_utf8_lossy(&window.data()[range]).into_owned();
                window.skip(end);
                if window.peek() != Some(b':') {
                    return Err(format!("byte {} is not JSON", window.offset()));
                }
                window.skip(1);
                return Ok(Some(name));
            }
            None => window.grow(1 << 16)?,
        }
    }
}

/// Steps over a value outside of the events, and keeps the two that matter.
fn other_value<R: Read>(window: &mut Window<R>, name: &str, head: &mut Head) -> Result<(), String> {
    window.peek();
    loop {
        match scan::value_at(window.data(), 0) {
            Some((_, 0)) => return Err(format!("byte {} is not JSON", window.offset())),
            Some((range, end)) => {
                let value = &window.data()[range];
                match name {
                    "baseTimeNanoseconds" => head.base_ns = scan::integer_of(value).unwrap_or(0),
                    "distributedInfo" => {
                        let number =
                            |key: &[u8]| u32::try_from(scan::integer_of(scan::member(value, key)?)?).ok();
                        head.distributed = number(b"rank").zip(number(b"world_size"));
                    }
                    _ => {}
                }
                window.skip(end);
                return Ok(());
            }
            None => window.grow(MAX_EVENT)?,
        }
    }
}

/// Reads one rank's file into its window.
///
/// # Errors
/// When the bytes are not a trace at all.
pub fn read<R: Read>(reader: R, limit: Limit, trace: &mut RankTrace) -> Result<Facts, NotATrace> {
    let mut facts = Facts::default();
    let mut odd_rows = 0u64;
    // A base that comes after the events (some writers sort keys) is added to the epoch at the end.
    let mut base_seen = 0;
    let first = trace.rows.is_empty() && trace.gpu_steps.is_empty() && trace.cpu_steps.is_empty();
    let (head, end) = events(reader, |head, event| {
        base_seen = head.base_ns;
        take(head.base_ns, &event, limit, trace, &mut facts, &mut odd_rows);
        ControlFlow::Continue(())
    })?;
    if first && base_seen == 0 && head.base_ns != 0 {
        trace.epoch_ns = trace.epoch_ns.saturating_add(head.base_ns);
    }
    facts.distributed = head.distributed;
    if let Some((_, world)) = head.distributed {
        trace.world_size = Some(world);
    }
    if odd_rows > 0 {
        trace.notes.push(format!("{odd_rows} GPU rows have no readable time and were left out"));
    }
    if let End::Cut(why) = end {
        trace.partial = true;
        trace.notes.push(format!("the file ends too early ({why}): what is readable was used"));
    }
    Ok(facts)
}

/// What a file says about whose it is.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// `distributedInfo.rank` and `.world_size`.
    pub distributed: Option<(u32, u32)>,
    /// Names of processes: `sglang::scheduler_DP3`.
    pub processes: Vec<String>,
}

fn take(base: i64, event: &Event<'_>, limit: Limit, trace: &mut RankTrace, facts: &mut Facts, odd: &mut u64) {
    if event.is_gpu_row() {
        let Some((ts, dur)) = event.times() else {
            *odd += 1;
            return;
        };
        let name = scan::unescaped(event.name());
        if let Some(row) = trace.push(limit, &name, event.tid(), base.saturating_add(ts), dur) {
            row_args(event.args(), row, trace);
        }
        return;
    }
    match event.cat() {
        cat @ (b"gpu_user_annotation" | b"user_annotation") if event.ph() == b"X" => {
            let text = event.name();
            if matches!(text.first(), Some(b's' | b'e' | b'P'))
                && let (Ok(text), Some((ts, dur))) = (std::str::from_utf8(text), event.times())
            {
                let start = base.saturating_add(ts);
                trace.mark(cat == b"gpu_user_annotation", text, start, start.saturating_add(dur));
            }
        }
        b"" if event.ph() == b"M" && event.name() == b"process_name" => {
            if let Some(name) = scan::member(event.args(), b"name") {
                let name = String::from_utf8_lossy(name).into_owned();
                if facts.processes.len() < 64 && !facts.processes.contains(&name) {
                    facts.processes.push(name);
                }
            }
        }
        _ => {}
    }
}

/// What is wanted of a row's arguments: its grid, and a collective's place in its group.
fn row_args(args: &[u8], row: crate::trace::Row, trace: &mut RankTrace) {
    if args.is_empty() {
        return;
    }
    let name = usize::from(row.name);
    if let Some(at) = GRID.find(args) {
        trace.blocks[name] = trace.blocks[name].saturating_add(product_of(&args[at + 6..]));
    }
    if !trace.communicates[name] {
        return;
    }
    let group = scan::member(args, b"Process Group Name");
    let number = scan::member(args, b"Seq").and_then(scan::integer_of);
    if let (Some(group), Some(number)) = (group, number) {
        let group = group.iter().fold(0x811c_9dc5u32, |h, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193));
        let number = number.unsigned_abs();
        trace.sequences.insert((row.start, row.stream), Sequence { group, number });
    }
}

/// The product of the numbers in `: [a, b, c]`.
fn product_of(b: &[u8]) -> u64 {
    let Some(open) = memchr::memchr(b'[', &b[..b.len().min(8)]) else { return 0 };
    let Some(close) = memchr::memchr(b']', &b[open..b.len().min(open + 48)]) else { return 0 };
    b[open + 1..open + close]
        .split(|c| *c == b',')
        .map(|n| scan::integer_of(n).map_or(0, i64::unsigned_abs))
        .fold(1, u64::saturating_mul)
}
