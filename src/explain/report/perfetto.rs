//! A merged trace for ui.perfetto.dev (Chrome JSON, streamed) with only the ranks that matter. Each
//! rank is a labelled group; its rows are kernel families in one order on every rank, steps and the
//! cause first, so that the same row is at the same place everywhere and nobody pins rows by hand.
//!
//! Rows of one family on one stream never overlap, which the format demands of a track.

use std::io::{self, Write};

use crate::explain::kernel::Family;
use crate::explain::step::RankProfile;

/// One rank of the merged trace.
#[derive(Clone, Debug)]
pub struct Group {
    /// `DP2 (culprit)`.
    pub label: String,
    /// Streams, the busiest first.
    pub streams: Vec<i64>,
    /// Nanoseconds to take off its times: its clock against the reference's.
    pub clock_offset_ns: i64,
}

/// Writes the merged trace event by event.
pub struct Merged<W: Write> {
    out: W,
    groups: Vec<Group>,
    order: Vec<Family>,
    zero_ns: i64,
    any: bool,
}

/// Rows of a rank beyond this many streams share the last.
const MAX_STREAMS: usize = 16;

impl<W: Write> Merged<W> {
    /// Begins: names the groups and their rows. `zero_ns` becomes time 0; `first` are the families
    /// whose rows come first.
    ///
    /// # Errors
    /// When `out` fails.
    pub fn begin(mut out: W, groups: Vec<Group>, zero_ns: i64, first: &[Family]) -> io::Result<Self> {
        out.write_all(b"{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n")?;
        let mut order: Vec<Family> = first.to_vec();
        order.extend(Family::ALL.into_iter().filter(|f| !first.contains(f)));
        let mut merged = Self { out, groups, order, zero_ns, any: false };
        for rank in 0..merged.groups.len() {
            let label = merged.groups[rank].label.clone();
            merged.meta(rank, 0, "process_name", &format!("{{\"name\":{}}}", quoted(&label)))?;
            merged.meta(rank, 0, "process_sort_index", &format!("{{\"sort_index\":{rank}}}"))?;
            merged.row_name(rank, 1, "steps")?;
            let streams = merged.groups[rank].streams.len().clamp(1, MAX_STREAMS);
            for stream in 0..streams {
                for family in merged.order.clone() {
                    let name = match stream {
                        0 => family.name().to_owned(),
                        n => format!("{} (stream {})", family.name(), n + 1),
                    };
                    merged.row_name(rank, merged.row_of(family, stream), &name)?;
                }
            }
        }
        Ok(merged)
    }

    /// Adds one kernel; `start_ns` on the rank's own clock.
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
        let row = self.row_of(family, at);
        self.slice(rank, row, name, start_ns, dur_ns)
    }

    /// Adds a rank's steps.
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
            self.slice(rank, 1, &name, profile.epoch_ns + step.start, dur)?;
        }
        Ok(())
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

    fn row_of(&self, family: Family, stream: usize) -> usize {
        let place = self.order.iter().position(|f| *f == family).unwrap_or(0);
        2 + stream * self.order.len() + place
    }

    fn row_name(&mut self, rank: usize, row: usize, name: &str) -> io::Result<()> {
        self.meta(rank, row, "thread_name", &format!("{{\"name\":{}}}", quoted(name)))?;
        self.meta(rank, row, "thread_sort_index", &format!("{{\"sort_index\":{row}}}"))
    }

    fn meta(&mut self, rank: usize, row: usize, what: &str, args: &str) -> io::Result<()> {
        self.comma()?;
        let pid = rank + 1;
        write!(self.out, "{{\"ph\":\"M\",\"pid\":{pid},\"tid\":{row},\"name\":\"{what}\",\"args\":{args}}}")
    }

    fn slice(&mut self, rank: usize, row: usize, name: &str, start_ns: i64, dur_ns: i64) -> io::Result<()> {
        self.comma()?;
        let ts = start_ns - self.zero_ns - self.groups[rank].clock_offset_ns;
        let (ts, dur, pid) = (Micros(ts), Micros(dur_ns), rank + 1);
        let name = quoted(name);
        write!(
            self.out,
            "{{\"ph\":\"X\",\"pid\":{pid},\"tid\":{row},\"ts\":{ts},\"dur\":{dur},\"name\":{name}}}"
        )
    }

    fn comma(&mut self) -> io::Result<()> {
        if self.any {
            self.out.write_all(b",\n")?;
        }
        self.any = true;
        Ok(())
    }
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

/// The link that opens Perfetto with the key rows pinned, through its startup commands: put the
/// address of the trace (HTTPS, with CORS for ui.perfetto.dev) in the place of `TRACE`, or open
/// the link without `url` and drop the file on it.
pub fn link(first: &[Family]) -> String {
    let rows: Vec<&str> = std::iter::once("steps").chain(first.iter().map(|f| f.name())).collect();
    let pattern = format!("^({})( [0-9]+)?$", rows.join("|"));
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

    #[test]
    fn every_rank_has_the_same_rows_at_the_same_places_and_times_are_exact() {
        let group =
            |label: &str, offset| Group { label: label.into(), streams: vec![7], clock_offset_ns: offset };
        let groups = vec![group("DP2 (culprit)", 0), group("DP0", 500)];
        let mut m = Merged::begin(Vec::new(), groups, 1_000_000, &[Family::Gemm]).expect("writes");
        m.kernel(0, "a\"b", Family::Gemm, 7, 1_001_234, 56).expect("writes");
        m.kernel(1, "a\"b", Family::Gemm, 7, 1_001_734, 56).expect("writes");
        let text = String::from_utf8(m.end().expect("writes")).expect("utf-8");
        let doc: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let events = doc["traceEvents"].as_array().expect("a list");
        let rows = |pid: i64| -> Vec<(i64, String)> {
            events
                .iter()
                .filter(|e| e["pid"] == pid && e["name"] == "thread_name")
                .map(|e| (e["tid"].as_i64().expect("a number"), e["args"]["name"].to_string()))
                .collect()
        };
        assert_eq!(rows(1), rows(2));
        assert_eq!(rows(1)[..2], [(1, "\"steps\"".to_owned()), (2, "\"gemm\"".to_owned())]);
        assert_eq!(
            text.matches("\"ts\":1.234,\"dur\":0.056,\"name\":\"a\\\"b\"").count(),
            2,
            "clock-corrected: {text}"
        );
    }

    #[test]
    fn the_link_pins_rows_by_regular_expression() {
        let link = link(&[Family::Attention]);
        assert!(
            link.starts_with("https://ui.perfetto.dev/#!/?url=TRACE&startupCommands=%5B%7B%22id%22"),
            "{link}"
        );
        assert!(link.contains("PinTracksByRegex") && !link.contains(' '), "{link}");
    }
}
