//! A merged trace of several ranks for ui.perfetto.dev (Chrome JSON, streamed). Each rank is a labelled
//! group; its rows are kernel families in the same order on every rank, steps and the cause first, so
//! that ranks can be compared without pinning rows by hand.
//!
//! The viewer orders the threads of a process by `tid`, but puts the one whose `tid` equals the `pid`
//! first, and it drops a slice that begins inside another one and ends after it. Hence every row has
//! a number of its own, and kernels of one family that overlap on a stream (a launch may begin before
//! its predecessor ends) go to separate rows below.

use std::io::{self, Write};

use crate::kernel::Family;
use crate::printable::printable;
use crate::profile::RankProfile;

/// One rank of the merged trace.
#[derive(Clone, Debug)]
pub struct Group {
    /// `DP2 (culprit)`.
    pub label: String,
    /// Streams, the busiest first.
    pub streams: Vec<i64>,
    /// Its clock against that of the reference rank, nanoseconds: it is subtracted from its times.
    pub clock_offset_ns: i64,
}

/// Writes the merged trace event by event.
pub struct MergedTrace<W: Write> {
    out: W,
    groups: Vec<Group>,
    order: Vec<Family>,
    zero_ns: i64,
    any_event: bool,
    /// By rank and row: the time until which each of its lanes is occupied, on the rank's own clock.
    taken: Vec<Vec<[i64; LANES]>>,
    overlapped: u64,
}

/// Streams of a rank beyond this number share the last rows.
const MAX_STREAMS: usize = 16;
/// The most kernels of one family that may overlap on one stream.
const LANES: usize = 4;
/// The row of a rank's steps.
const STEPS: usize = 1;
/// The distance between the numbers of two ranks; more than a rank has rows.
const PID_STRIDE: usize = 1000;
const _: () = assert!(1 + MAX_STREAMS * Family::ALL.len() * LANES < PID_STRIDE);

impl<W: Write> MergedTrace<W> {
    /// Begins the document and names the groups. `zero_ns` becomes time 0; the rows of the families
    /// `first` come first.
    ///
    /// # Errors
    /// When `out` fails.
    pub fn begin(mut out: W, groups: Vec<Group>, zero_ns: i64, first: &[Family]) -> io::Result<Self> {
        out.write_all(b"{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n")?;
        let mut order: Vec<Family> = first.to_vec();
        order.extend(Family::ALL.into_iter().filter(|f| !first.contains(f)));
        let rows = MAX_STREAMS * order.len();
        let taken = vec![vec![[i64::MIN; LANES]; rows]; groups.len()];
        let mut merged = Self { out, groups, order, zero_ns, any_event: false, taken, overlapped: 0 };
        for rank in 0..merged.groups.len() {
            let label = merged.groups[rank].label.clone();
            merged.meta(rank, STEPS, "process_name", &format!("{{\"name\":{}}}", quoted(&label)))?;
            merged.meta(rank, STEPS, "process_sort_index", &format!("{{\"sort_index\":{rank}}}"))?;
            merged.row_name(rank, STEPS, "steps")?;
        }
        Ok(merged)
    }

    /// Adds one kernel of rank number `rank`; `start_ns` is on the rank's own clock.
    ///
    /// # Errors
    /// When the writer fails.
    pub fn kernel(
        &mut self,
        rank: usize,
        name: &str,
        family: Family,
        stream: i64,
        start_ns: i64,
        dur_ns: i64,
    ) -> io::Result<()> {
        let streams = &self.groups[rank].streams;
        let at = streams.iter().position(|s| *s == stream).unwrap_or(0).min(MAX_STREAMS - 1);
        let place = self.order.iter().position(|f| *f == family).unwrap_or(0);
        let lane = self.lane_of(rank, at * self.order.len() + place, start_ns, dur_ns);
        let row = STEPS + 1 + (at * self.order.len() + place) * LANES + lane.0;
        if lane.1 {
            let mut label = family.name().to_owned();
            if at > 0 {
                label.push_str(&format!(" (stream {})", at + 1));
            }
            if lane.0 > 0 {
                label.push_str(OVERLAPPING);
            }
            self.row_name(rank, row, &label)?;
        }
        self.slice(rank, row, &printable(name, usize::MAX), start_ns, dur_ns)
    }

    /// Adds the steps of rank number `rank`.
    ///
    /// # Errors
    /// When the writer fails.
    pub fn steps(&mut self, rank: usize, profile: &RankProfile) -> io::Result<()> {
        for step in &profile.steps {
            let mut name = step.kind.name().to_owned();
            if let Some(n) = step.requests {
                name.push_str(&format!(" bs={n}"));
            }
            let dur = i64::try_from(step.wall_ns).unwrap_or(i64::MAX);
            self.slice(rank, STEPS, &name, profile.epoch_ns + step.start, dur)?;
        }
        Ok(())
    }

    /// The number of kernels for which no row was free, so that a viewer may leave them out: the rows
    /// of the file are out of order, or too many kernels of one family overlap on one stream.
    pub fn overlapped(&self) -> u64 {
        self.overlapped
    }

    /// Ends the document and gives the writer back.
    ///
    /// # Errors
    /// When the writer fails.
    pub fn end(mut self) -> io::Result<W> {
        self.out.write_all(b"\n]}\n")?;
        self.out.flush()?;
        Ok(self.out)
    }

    /// A lane of the row that is free at `start_ns`, and whether this is its first use.
    fn lane_of(&mut self, rank: usize, place: usize, start_ns: i64, dur_ns: i64) -> (usize, bool) {
        let lanes = &mut self.taken[rank][place];
        let free = lanes.iter().position(|until| *until <= start_ns);
        if free.is_none() {
            self.overlapped += 1;
        }
        let lane = free.unwrap_or(LANES - 1);
        let first = lanes[lane] == i64::MIN;
        lanes[lane] = lanes[lane].max(start_ns.saturating_add(dur_ns));
        (lane, first)
    }

    fn row_name(&mut self, rank: usize, row: usize, name: &str) -> io::Result<()> {
        self.meta(rank, row, "thread_name", &format!("{{\"name\":{}}}", quoted(name)))?;
        self.meta(rank, row, "thread_sort_index", &format!("{{\"sort_index\":{row}}}"))
    }

    fn meta(&mut self, rank: usize, row: usize, what: &str, args: &str) -> io::Result<()> {
        self.comma()?;
        let pid = pid_of(rank);
        let row = pid + row;
        write!(self.out, "{{\"ph\":\"M\",\"pid\":{pid},\"tid\":{row},\"name\":\"{what}\",\"args\":{args}}}")
    }

    fn slice(&mut self, rank: usize, row: usize, name: &str, start_ns: i64, dur_ns: i64) -> io::Result<()> {
        self.comma()?;
        let ts = start_ns - self.zero_ns - self.groups[rank].clock_offset_ns;
        let (ts, dur, pid) = (Micros(ts), Micros(dur_ns), pid_of(rank));
        let row = pid + row;
        let name = quoted(name);
        write!(
            self.out,
            "{{\"ph\":\"X\",\"pid\":{pid},\"tid\":{row},\"ts\":{ts},\"dur\":{dur},\"name\":{name}}}"
        )
    }

    fn comma(&mut self) -> io::Result<()> {
        if self.any_event {
            self.out.write_all(b",\n")?;
        }
        self.any_event = true;
        Ok(())
    }
}

/// Follows the family in the label of a row for overlapping kernels.
const OVERLAPPING: &str = ", overlapping";

/// The number of the group of rank number `rank`; its rows are numbered from it.
fn pid_of(rank: usize) -> usize {
    (rank + 1) * PID_STRIDE
}

/// Nanoseconds as decimal microseconds, exactly.
struct Micros(i64);

impl std::fmt::Display for Micros {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let n = self.0.unsigned_abs();
        write!(f, "{sign}{}.{:03}", n / 1000, n % 1000)
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A link that opens Perfetto with the rows of steps and of the families `first` pinned, by its startup
/// commands. Replace `TRACE` by the address of the trace (HTTPS, with CORS for ui.perfetto.dev), or
/// open the link without `url` and drop the file on the page.
pub fn link(first: &[Family]) -> String {
    let rows: Vec<&str> = std::iter::once("steps").chain(first.iter().map(|f| f.name())).collect();
    let pattern = format!("^({})({OVERLAPPING})?( [0-9]+)?$", rows.join("|"));
    let commands = format!("[{{\"id\":\"dev.perfetto.PinTracksByRegex\",\"args\":[{}]}}]", quoted(&pattern));
    let mut encoded = String::new();
    for byte in commands.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                encoded.push(char::from(byte))
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    format!("https://ui.perfetto.dev/#!/?url=TRACE&startupCommands={encoded}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(
        groups: Vec<Group>,
        add: impl FnOnce(&mut MergedTrace<Vec<u8>>),
    ) -> (String, Vec<serde_json::Value>) {
        let mut m = MergedTrace::begin(Vec::new(), groups, 1_000_000, &[Family::Gemm]).expect("writes");
        add(&mut m);
        let text = String::from_utf8(m.end().expect("writes")).expect("utf-8");
        let doc: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let events = doc["traceEvents"].as_array().expect("a list").clone();
        (text, events)
    }

    fn group(label: &str, offset: i64) -> Group {
        Group { label: label.into(), streams: vec![7, 9], clock_offset_ns: offset }
    }

    /// The rows of a group as the viewer orders them: the main thread, then by number.
    fn rows(events: &[serde_json::Value], pid: i64) -> Vec<String> {
        let mut rows: Vec<(bool, i64, String)> = events
            .iter()
            .filter(|e| e["pid"] == pid && e["name"] == "thread_name")
            .map(|e| {
                (e["tid"] != e["pid"], e["tid"].as_i64().expect("a number"), e["args"]["name"].to_string())
            })
            .collect();
        rows.sort();
        rows.into_iter().map(|r| r.2.trim_matches('"').to_owned()).collect()
    }

    #[test]
    fn every_rank_has_its_rows_in_one_order_and_times_are_exact() {
        let (text, events) = written(vec![group("DP2 (culprit)", 0), group("DP0", 500)], |m| {
            m.kernel(0, "a\"b", Family::Gemm, 7, 1_001_234, 56).expect("writes");
            m.kernel(0, "x", Family::Attention, 9, 1_001_234, 56).expect("writes");
            m.kernel(0, "x", Family::Attention, 7, 1_001_234, 56).expect("writes");
            m.kernel(1, "x", Family::Attention, 9, 1_001_734, 56).expect("writes");
            m.kernel(1, "x", Family::Attention, 7, 1_001_734, 56).expect("writes");
            m.kernel(1, "a\"b", Family::Gemm, 7, 1_001_734, 56).expect("writes");
        });
        let wanted = ["steps", "gemm", "attention", "attention (stream 2)"];
        assert_eq!(
            (rows(&events, 1000), rows(&events, 2000)),
            (wanted.map(str::to_owned).into(), wanted.map(str::to_owned).into())
        );
        let same = "\"ts\":1.234,\"dur\":0.056,\"name\":\"a\\\"b\"";
        assert_eq!(text.matches(same).count(), 2, "clock-corrected: {text}");
    }

    #[test]
    fn kernels_that_overlap_on_a_stream_never_share_a_row() {
        let mut overlapped = 0;
        let (_, events) = written(vec![group("DP0", 0)], |m| {
            for (start, dur) in [(0, 100), (90, 100), (100, 10), (110, 10), (115, 100)] {
                m.kernel(0, "k", Family::Gemm, 7, start, dur).expect("writes");
            }
            for start in 0..6 {
                m.kernel(0, "k", Family::Copy, 7, start, 100).expect("writes");
            }
            overlapped = m.overlapped();
        });
        let tids = |from: i64| -> Vec<i64> {
            let slices = events.iter().filter(|e| e["ph"] == "X");
            slices
                .map(|e| e["tid"].as_i64().expect("a number") - from)
                .filter(|t| (0..4).contains(t))
                .collect()
        };
        assert_eq!(tids(1002), [0, 1, 0, 0, 2], "the third begins where the first ends");
        assert_eq!(overlapped, 2, "six at a time are more than there are rows");
        assert_eq!(rows(&events, 1000)[1..4], ["gemm", "gemm, overlapping", "gemm, overlapping"]);
    }

    #[test]
    fn the_link_pins_rows_by_regular_expression() {
        let link = link(&[Family::Attention]);
        let (address, encoded) = link.split_once("&startupCommands=").expect("has commands");
        assert_eq!(address, "https://ui.perfetto.dev/#!/?url=TRACE");
        let decoded = percent_decoded(encoded);
        let commands: serde_json::Value = serde_json::from_str(&decoded).expect("JSON");
        assert_eq!(commands[0]["id"], "dev.perfetto.PinTracksByRegex");
        let pattern = regex::Regex::new(commands[0]["args"][0].as_str().expect("a pattern")).expect("valid");
        for row in ["steps", "steps 1001", "attention 1006", "attention, overlapping 1007"] {
            assert!(pattern.is_match(row), "{row}");
        }
        for row in ["gemm 1002", "attention (stream 2) 1042", "DP2 (culprit) 1000"] {
            assert!(!pattern.is_match(row), "{row}");
        }
    }

    fn percent_decoded(text: &str) -> String {
        let mut out = Vec::new();
        let mut rest = text.as_bytes();
        while let [byte, tail @ ..] = rest {
            rest = tail;
            if let (b'%', [high, low, tail @ ..]) = (*byte, tail) {
                let hex = [*high, *low];
                out.push(u8::from_str_radix(std::str::from_utf8(&hex).expect("ASCII"), 16).expect("hex"));
                rest = tail;
            } else {
                out.push(*byte);
            }
        }
        String::from_utf8(out).expect("UTF-8")
    }
}
