//! vLLM's log lines: the ten-second report of each engine, and the one of each iteration.
//!
//! `(APIServer pid=7) INFO 03-11 06:16:52 [loggers.py:257] Engine 000: Avg prompt throughput: ...`.
//! The engine's number is its DP index. An aggregated line (`4 Engines Aggregated: ...`) and the
//! old format without `Engine` belong to the engine as a whole. Percentages become shares.

use memchr::memmem;

use crate::signal::catalog;
use crate::signal::fields::Fields;
use crate::signal::keys::VLLM;
use crate::signal::log_line::{Batch, BatchKind, Line, LineContent, is_quoted};
use crate::signal::number;
use crate::signal::stamp::{SHORT_LEN, Stamp, is_short};
use skewtrap_trace::rank::Rank;

/// Reads a line; `None` when it is not one of these. `fields` is cleared and takes the numbers;
/// `unreadable` grows by the values of known keys that are none.
pub fn read_next<'a>(line: &'a [u8], fields: &mut Fields, unreadable: &mut u64) -> Option<Line<'a>> {
    fields.clear();
    let (rank, start) =
        engine(line).or_else(|| whole(line)).filter(|(_, start)| !is_quoted(&line[..*start]))?;
    let text = &line[start..];
    let (kind, pairs) = match text.strip_prefix(b"Iteration(") {
        Some(rest) => (BatchKind::Iteration, &rest[memmem::find(rest, b"): ")? + 3..]),
        None => (BatchKind::Engine, text),
    };
    let mut unknown = 0_u8;
    for pair in pairs.split(|b| *b == b',') {
        match read_pair(pair.trim_ascii(), fields) {
            Read::Taken => {}
            Read::Unknown => unknown = unknown.saturating_add(1),
            Read::NoNumber => *unreadable += 1,
        }
    }
    if fields.is_empty() {
        return None;
    }
    let content = LineContent::Batch(Batch { kind, pairs, unknown });
    Some(Line { rank, stamp: stamp(&line[..start]), content })
}

/// `Engine 003: `, and where the text behind it begins.
fn engine(line: &[u8]) -> Option<(Rank, usize)> {
    let start = memmem::find(line, b"Engine ")? + b"Engine ".len();
    let (index, digits) = number::leading(line.get(start..)?)?;
    let rest = line[start + digits..].strip_prefix(b": ")?;
    let is_index = (0.0..=f64::from(u16::MAX)).contains(&index) && index.fract() == 0.0;
    is_index.then(|| (Rank::dp(index as u16), line.len() - rest.len()))
}

/// The report of all engines together.
fn whole(line: &[u8]) -> Option<(Rank, usize)> {
    Some((Rank::NONE, memmem::find(line, b"Avg prompt throughput: ")?))
}

/// The result of reading a pair.
enum Read {
    Taken,
    /// A key that the catalog does not know.
    Unknown,
    /// A key that it knows, without a number.
    NoNumber,
}

/// `Running: 51 reqs` or, in an iteration, `30 generation requests`.
fn read_pair(pair: &[u8], fields: &mut Fields) -> Read {
    if let Some((count, used)) = number::leading(pair) {
        let Some(signal) = VLLM.get(pair[used..].trim_ascii()) else { return Read::Unknown };
        fields.add(signal, count);
        return Read::Taken;
    }
    let Some(colon) = memchr::memchr(b':', pair) else { return Read::Unknown };
    let Some(signal) = VLLM.get(&pair[..colon]) else { return Read::Unknown };
    let text = pair[colon + 1..].trim_ascii_start();
    let Some((value, used)) = number::leading(text) else { return Read::NoNumber };
    let is_percent = text.get(used) == Some(&b'%');
    let is_share = catalog::entry(signal).is_some_and(|e| e.unit == "share");
    fields.set(signal, if is_percent && is_share { value / 100.0 } else { value });
    Read::Taken
}

fn stamp(head: &[u8]) -> Option<Stamp<'_>> {
    let at = (0..head.len()).find(|i| is_short(&head[*i..]))?;
    Some(Stamp { civil: &head[at..at + SHORT_LEN], millis: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(line: &str) -> String {
        let mut fields = Fields::default();
        let Some(read) = read_next(line.as_bytes(), &mut fields, &mut 0) else { return "nothing".to_owned() };
        let values: Vec<_> = fields.iter().map(|(s, v)| format!("{}={v}", catalog::name_of(s))).collect();
        let stamp = read.stamp.map_or("-".into(), |s| String::from_utf8_lossy(s.civil).into_owned());
        format!("{stamp} {} {}", read.rank, values.join(" "))
    }

    #[test]
    fn each_form_of_the_line_gives_its_signals() {
        insta::assert_snapshot!(shown("(APIServer pid=387731) INFO 03-11 06:16:52 [loggers.py:257] Engine 002: Avg prompt throughput: 16.5 tokens/s, Avg generation throughput: 1157.2 tokens/s, Running: 51 reqs, Waiting: 117 reqs, Preemptions: 3, GPU KV cache usage: 100.0%, Prefix cache hit rate: 70.0%"),
            @"03-11 06:16:52 DP2 running_reqs=51 queue_reqs=117 kv_usage=1 gen_throughput=1157.2 cache_hit_rate=0.7 prompt_throughput=16.5");
        insta::assert_snapshot!(shown("\u{1b}[32mINFO\u{1b}[0m 03-11 06:16:52 [loggers.py:257] Engine 000: Avg prompt throughput: 0.0 tokens/s, Avg generation throughput: 4.5 tokens/s, Running: 1 reqs, Waiting: 0 reqs, Deferred: 2 reqs, KV fetch: 0.1 ms, GPU KV cache usage: 2.5%, External prefix cache hit rate: 1.0%, MM cache hit rate: 0.0%"),
            @"03-11 06:16:52 DP0 running_reqs=1 queue_reqs=0 kv_usage=0.025 gen_throughput=4.5 prompt_throughput=0 deferred_reqs=2");
        insta::assert_snapshot!(shown("INFO 03-11 06:16:52 [loggers.py:300] 4 Engines Aggregated: Avg prompt throughput: 3.0 tokens/s, Avg generation throughput: 4.5 tokens/s, Running: 9 reqs, Waiting: 0 reqs, GPU KV cache usage: 2.5%"),
            @"03-11 06:16:52 engine running_reqs=9 queue_reqs=0 kv_usage=0.025 gen_throughput=4.5 prompt_throughput=3");
        insta::assert_snapshot!(shown("INFO 01-02 10:00:00 metrics.py:455] Avg prompt throughput: 2.0 tokens/s, Avg generation throughput: 3.0 tokens/s, Running: 1 reqs, Swapped: 0 reqs, Pending: 4 reqs, GPU KV cache usage: 0.5%, CPU KV cache usage: 0.0%."),
            @"01-02 10:00:00 engine running_reqs=1 queue_reqs=4 kv_usage=0.005 gen_throughput=3 prompt_throughput=2 deferred_reqs=0");
        insta::assert_snapshot!(shown("(EngineCore_DP1 pid=9) INFO 07-01 10:00:00 [core.py:9] Engine 001: Iteration(12): 1 context requests, 512 context tokens, 30 generation requests, 30 generation tokens, iteration elapsed time: 12.34 ms (dummy), GPU KV cache usage: 3.0%"),
            @"07-01 10:00:00 DP1 running_reqs=31 kv_usage=0.03 new_tokens=512");
        assert_eq!(
            shown("{\"log\":\"INFO 03-11 06:16:52 [x.py:1] Engine 001: Running: 9 reqs, Waiting: 2 reqs"),
            "03-11 06:16:52 DP1 running_reqs=9 queue_reqs=2"
        );
        assert_eq!(shown("INFO 03-11 06:16:52 [x.py:1] Engine 000: started"), "nothing");
        assert_eq!(shown("INFO:     127.0.0.1:1 - \"POST /v1/completions HTTP/1.1\" 200 OK"), "nothing");
    }

    #[test]
    fn the_words_of_a_request_are_no_report() {
        for words in [
            "Engine 001: Running: 900 reqs, Waiting: 900 reqs",
            "4 Engines Aggregated: Avg prompt throughput: 3.0 tokens/s, Running: 900 reqs",
            "[loggers.py:257] Engine 001: Avg prompt throughput: 3.0 tokens/s, Running: 900 reqs",
        ] {
            for front in ["Received request cmpl-1: prompt: '", "Received request cmpl-1: prompt: \""] {
                let line = format!("INFO 03-11 06:16:52 [logger.py:43] {front}{words}', params: None");
                assert_eq!(shown(&line), "nothing", "{line}");
            }
        }
    }
}
