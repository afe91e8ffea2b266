//! The answers of `/v1/loads` and of the older `/get_load`, of every version.
//!
//! Newer answers say when each rank published its numbers. What matters is their age by the
//! server's own clock, so that a server whose clock is off is not taken for a stale one.

use std::sync::LazyLock;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use thiserror::Error;

use crate::signal::catalog::{self, BUILT_IN, Signal};
use crate::signal::fields::Fields;
use crate::signal::metrics::{MOST_RANKS, Role};
use skewtrap_trace::rank::Rank;

/// An answer, read.
#[derive(Clone, Debug, Default)]
pub struct Loads {
    /// Each rank's numbers.
    pub ranks: Vec<RankLoad>,
    /// Values that stood where a number should.
    pub bad: u64,
    /// The server's version, where it says so.
    pub version: Option<String>,
}

/// One rank's numbers.
#[derive(Clone, Debug)]
pub struct RankLoad {
    /// CollectionOwner.
    pub rank: Rank,
    /// How old they were when the answer was made; zero where the server does not say.
    pub age: Duration,
    /// Its role, where the server says so.
    pub role: Option<Role>,
    /// When the rank published them, in seconds of the server's clock, where it says so.
    pub published_s: Option<f64>,
    /// What they are.
    pub fields: Fields,
}

/// Why an answer is useless.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LoadsError {
    /// Not JSON.
    #[error("it answered with something that is not JSON ({0}); is this an SGLang server?")]
    NotJson(String),
    /// JSON of another shape.
    #[error("it answered with JSON that holds no load of any rank")]
    NoLoads,
}

/// Fields of the answers with the signals they mean, as paths.
static FIELDS: LazyLock<Vec<(Vec<&'static str>, Signal)>> = LazyLock::new(|| {
    let paths = |e: &catalog::Entry| e.loads.iter().map(|p| p.split('.').collect()).collect::<Vec<_>>();
    BUILT_IN
        .iter()
        .enumerate()
        .flat_map(|(i, e)| paths(e).into_iter().map(move |p| (p, Signal(i as u16))))
        .collect()
});

/// Reads an answer.
///
/// # Errors
/// When it is not JSON, or names no rank's load.
pub fn read(body: &[u8]) -> Result<Loads, LoadsError> {
    let body: Value = serde_json::from_slice(body).map_err(|e| LoadsError::NotJson(e.to_string()))?;
    let loads = of_value(&body);
    if loads.ranks.is_empty() { Err(LoadsError::NoLoads) } else { Ok(loads) }
}

fn of_value(body: &Value) -> Loads {
    let mut bad = 0;
    let mut ranks_of = |ranks: &[Value], now| -> Vec<RankLoad> {
        bad += ranks.len().saturating_sub(MOST_RANKS) as u64;
        ranks.iter().take(MOST_RANKS).filter_map(|r| rank_of(r, now, &mut bad)).collect()
    };
    let (ranks, version) = match body {
        Value::Array(ranks) => (ranks_of(ranks, None), None),
        Value::Number(_) => (single(body), None),
        Value::Object(map) => {
            let version = map.get("version").and_then(Value::as_str).map(str::to_owned);
            let now = map.get("timestamp").and_then(epoch_s);
            let ranks = match map.get("loads").and_then(Value::as_array) {
                Some(ranks) => ranks_of(ranks, now),
                None if map.contains_key("num_reqs") => ranks_of(std::slice::from_ref(body), None),
                None => map.get("load").map(single).unwrap_or_default(),
            };
            (ranks, version)
        }
        _ => Default::default(),
    };
    Loads { ranks, bad, version }
}

/// SGLang 0.4 answers with one number for the whole server.
fn single(load: &Value) -> Vec<RankLoad> {
    let Some(load) = load.as_f64() else { return Vec::new() };
    let mut fields = Fields::default();
    fields.set(catalog::LOAD, load);
    vec![RankLoad { rank: Rank::NONE, age: Duration::ZERO, role: None, published_s: None, fields }]
}

/// One rank's numbers; `bad` grows by what stands in their place and is none. `null` says that the
/// server has no such number.
fn rank_of(load: &Value, now_s: Option<f64>, bad: &mut u64) -> Option<RankLoad> {
    let map = load.as_object()?;
    let mut fields = Fields::default();
    for (path, signal) in FIELDS.iter() {
        match path.iter().try_fold(load, |at, key| at.get(key)) {
            None | Some(Value::Null) => {}
            Some(value) => match value.as_f64() {
                Some(number) => fields.set(*signal, number),
                None => *bad += 1,
            },
        }
    }
    // /get_load counts the waiting requests among `num_reqs`.
    if let (None, Some(all), Some(waiting)) =
        (fields.get(catalog::RUNNING_REQS), fields.get(catalog::LOAD), fields.get(catalog::QUEUE_REQS))
    {
        fields.set(catalog::RUNNING_REQS, (all - waiting).max(0.0));
    }
    let index = map.get("dp_rank").and_then(Value::as_u64).and_then(|i| u16::try_from(i).ok());
    let published = map.get("timestamp").and_then(epoch_s);
    let age = now_s.zip(published).map_or(0.0, |(now, then)| now - then);
    let mode = load.pointer("/disaggregation/mode").and_then(Value::as_str);
    (!fields.is_empty()).then(|| RankLoad {
        rank: index.map_or(Rank::NONE, Rank::dp),
        age: Duration::try_from_secs_f64(age).unwrap_or_default(),
        role: mode.and_then(|m| Role::of_word(m.as_bytes())),
        published_s: published,
        fields,
    })
}

/// Epoch seconds from a number or from RFC 3339 text.
fn epoch_s(value: &Value) -> Option<f64> {
    match value {
        Value::String(text) => text.parse::<Timestamp>().ok().map(|t| t.as_nanosecond() as f64 / 1e9),
        other => other.as_f64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(body: &str) -> String {
        let loads = read(body.as_bytes()).expect("an answer with loads");
        let rank = |r: &RankLoad| {
            let fields: Vec<_> =
                r.fields.iter().map(|(s, v)| format!("{}={v}", catalog::name_of(s))).collect();
            format!("{} {:.3}s {}", r.rank, r.age.as_secs_f64(), fields.join(" "))
        };
        loads.ranks.iter().map(rank).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn every_versions_answer_gives_its_signals() {
        insta::assert_snapshot!(shown(r#"{"timestamp":"2026-11-24T03:48:06.363171+00:00","version":"0.5.16","loads":[
            {"timestamp":1795492086.260684,"dp_rank":0,"num_running_reqs":3,"num_waiting_reqs":2,"num_used_tokens":70,
             "num_total_tokens":90,"token_usage":0.25,"gen_throughput":812.5,"cache_hit_rate":0.0,
             "disaggregation":{"mode":"null","decode_transfer_queue_reqs":1},"queues":{"retracted":1,"paused":0}},
            {"timestamp":1795492096.0,"dp_rank":1,"num_running_reqs":0,"num_waiting_reqs":0}]}"#), @r"
        DP0 0.102s running_reqs=3 queue_reqs=2 kv_usage=0.25 used_tokens=70 total_tokens=90 gen_throughput=812.5 decode_transfer_reqs=1 retracted_reqs=1 paused_reqs=0 cache_hit_rate=0
        DP1 0.000s running_reqs=0 queue_reqs=0
        ");
        insta::assert_snapshot!(shown(r#"{"timestamp":"2026-11-24T03:39:25+00:00","version":"0.5.23","accelerator":null,"num_accelerators":1,
            "loads":[{"timestamp":1795491565.0,"dp_rank":1,"num_running_reqs":6,"num_waiting_reqs":1,"num_active_tokens":502,
            "total_prefill_uncached_tokens":25091,"total_prefill_busy_us":11760343,"decode_moments":null}]}"#),
            @"DP1 0.000s running_reqs=6 queue_reqs=1 active_tokens=502 prefill_compute_tokens=25091 prefill_busy=11760343");
        insta::assert_snapshot!(shown(r#"[{"dp_rank":0,"num_reqs":5,"num_waiting_reqs":2,"num_tokens":7,"num_pending_tokens":4,"ts_tic":139.4}]"#),
            @"DP0 0.000s running_reqs=3 queue_reqs=2 load=5 total_tokens=7 pending_tokens=4");
        insta::assert_snapshot!(shown("12"), @"engine 0.000s load=12");
        insta::assert_snapshot!(shown(r#"{"load": 3}"#), @"engine 0.000s load=3");
    }

    #[test]
    fn an_answer_without_loads_is_an_error_that_says_so() {
        assert_eq!(read(b"{\"detail\":\"Not Found\"}").err(), Some(LoadsError::NoLoads));
        assert_eq!(read(b"[]").err(), Some(LoadsError::NoLoads));
        let error = read(b"<html>").expect_err("not JSON").to_string();
        assert!(error.starts_with("it answered with something that is not JSON"), "{error}");
    }
}
