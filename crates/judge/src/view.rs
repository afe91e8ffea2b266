//! What a server shows of a world, as the bytes that its log, `/v1/loads` and `/metrics` would have.

use std::fmt::Write as _;

use skewtrap_core::signal::log_reader::Arrival;
use skewtrap_core::signal::observation::{Observation, SourceId};
use skewtrap_core::signal::sample::TargetId;
use skewtrap_trace::time::Time;

use crate::engine::{Line, Outcome, Page};

/// Second 0 of every world: 2026-11-24 00:00:00 UTC.
pub const START: f64 = 1_795_478_400.0;

/// What is read of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Log,
    Loads,
    /// `/v1/loads` of SGLang from 0.5.23 on, which counts work.
    Counted,
    Metrics,
    Both,
}

impl Source {
    pub const ALL: [(&'static str, Self); 5] = [
        ("log", Self::Log),
        ("loads", Self::Loads),
        ("counted", Self::Counted),
        ("metrics", Self::Metrics),
        ("both", Self::Both),
    ];
}

/// Calls `see` with everything that `source` hands over, second by second, in the order of time.
pub fn play(out: &Outcome, source: Source, kv: f64, mut see: impl FnMut(Observation)) {
    let target = TargetId(0);
    let mut next = 0;
    for second in 0..out.truth.len() {
        let now = second as f64 + 1.0;
        if matches!(source, Source::Log | Source::Both) {
            let mut text = String::new();
            while let Some(line) = out.lines.get(next).filter(|l| l.at <= now) {
                write_line(&mut text, line, kv);
                next += 1;
            }
            let lines = text.into_bytes();
            see(Observation::Lines { target, source: SourceId(0), lines, arrival: Arrival::Recorded });
        }
        let at = Time::from_epoch_s(START + now + 0.003 * (second % 7) as f64);
        if matches!(source, Source::Loads | Source::Counted | Source::Both) {
            let body = loads(&out.loads[second], START + now, kv, source == Source::Counted).into_bytes();
            see(Observation::Loads { target, source: SourceId(1), body, at });
        }
        if source == Source::Metrics {
            let body = metrics(&out.metrics[second], kv).into_bytes();
            see(Observation::Page { target, source: SourceId(2), body, at });
        }
    }
}

fn write_line(text: &mut String, l: &Line, kv: f64) {
    let day = l.at.max(0.0) as u64;
    let (hour, minute, second) = (day / 3600 % 24, day / 60 % 60, day % 60);
    let (at, rank, share) = (START + l.at, l.rank, (l.used / kv).min(1.0));
    // Writing into a string cannot fail.
    let _ = write!(
        text,
        "{at:.4}\t[2026-11-{:02} {hour:02}:{minute:02}:{second:02} DP{rank}] ",
        24 + day / 86_400
    );
    let (running, queue, throughput) = (l.running, l.queue, l.throughput);
    let _ = if l.is_prefill {
        let (seqs, new, cached) = (l.new_seqs, l.new_tokens.round(), l.cached_tokens.round());
        writeln!(
            text,
            "Prefill batch, #new-seq: {seqs}, #new-token: {new}, #cached-token: {cached}, token usage: {share:.2}, #running-req: {running}, #queue-req: {queue}, input throughput (token/s): {throughput:.2}"
        )
    } else {
        let used = l.used.round();
        writeln!(
            text,
            "Decode batch, #running-req: {running}, #token: {used}, token usage: {share:.2}, cuda graph: True, gen throughput (token/s): {throughput:.2}, #queue-req: {queue}"
        )
    };
}

fn loads(pages: &[Page], now: f64, kv: f64, is_counted: bool) -> String {
    let counted = |p: &Page| {
        let (steps, tokens, prompts) = (p.decode_steps, p.decode_tokens, p.prefill_tokens.round());
        format!(
            r#","total_prefill_uncached_tokens":{prompts},"decode_moments":[{steps},{tokens},0,0,0,{tokens}]"#
        )
    };
    let entry = |(rank, p): (usize, &Page)| {
        format!(
            r#"{{"timestamp":{:.4},"dp_rank":{rank},"num_running_reqs":{},"num_waiting_reqs":{},"num_used_tokens":{},"max_total_num_tokens":{kv},"token_usage":{:.4},"gen_throughput":{:.2}{}}}"#,
            START + p.stamp,
            p.running,
            p.waiting,
            p.used.round(),
            (p.used / kv).min(1.0),
            p.throughput,
            if is_counted { counted(p) } else { String::new() },
        )
    };
    let entries: Vec<String> = pages.iter().enumerate().map(entry).collect();
    format!(r#"{{"timestamp":{now:.4},"version":"0.5.16","loads":[{}]}}"#, entries.join(","))
}

fn metrics(pages: &[Page], kv: f64) -> String {
    let mut text = String::new();
    for (rank, p) in pages.iter().enumerate() {
        let mut put = |name: &str, mode: &str, value: f64| {
            let mode = if mode.is_empty() { String::new() } else { format!(",mode=\"{mode}\"") };
            let _ =
                writeln!(text, "sglang:{name}{{dp_rank=\"{rank}\",engine_type=\"unified\"{mode}}} {value}");
        };
        put("num_running_reqs", "", p.running);
        put("num_queue_reqs", "", p.waiting);
        put("num_used_tokens", "", p.used.round());
        put("token_usage", "", (p.used / kv).min(1.0));
        put("gen_throughput", "", (p.throughput * 100.0).round() / 100.0);
        put("queue_time_seconds_count", "", p.admissions);
        put("realtime_tokens_total", "prefill_compute", p.prefill_tokens.round());
        put("realtime_tokens_total", "prefill_cache", p.cached_tokens.round());
        put("realtime_tokens_total", "decode", p.decode_tokens);
        put("cuda_graph_passes_total", "decode_cuda_graph", p.decode_steps);
        put("cuda_graph_passes_total", "prefill_none", p.prefill_passes);
    }
    text
}
