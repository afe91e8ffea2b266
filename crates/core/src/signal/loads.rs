//! The answers of `/v1/loads` and of the older `/get_load`, of every version.
//!
//! Newer answers say when each rank published its numbers. What matters is their age by the
//! server's own clock, so that a server whose clock is off is not taken for a stale one.

use std::fmt;
use std::sync::LazyLock;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use thiserror::Error;

use crate::signal::catalog::{self, Signal};
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
    pub rank: Rank,
    /// How old they were when the answer was made; zero where the server does not say.
    pub age: Duration,
    /// Its role, where the server says so.
    pub role: Option<Role>,
    /// When the rank published them, in seconds of the server's clock, where it says so.
    pub published_s: Option<f64>,
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
    catalog::built_in().flat_map(|(signal, e)| paths(e).into_iter().map(move |p| (p, signal))).collect()
});

/// Keys that are read beside those of [`FIELDS`].
const OTHER_KEYS: [&str; 8] =
    ["version", "timestamp", "loads", "num_reqs", "load", "dp_rank", "disaggregation", "mode"];

/// Every key that is read, in alphabetical order.
static KEYS: LazyLock<Vec<&'static str>> = LazyLock::new(|| {
    let mut keys: Vec<&str> = FIELDS.iter().flat_map(|(path, _)| path.iter().copied()).collect();
    keys.extend(OTHER_KEYS);
    keys.sort_unstable();
    keys.dedup();
    keys
});

/// A JSON value of which only the keys that are read are kept: an answer is mostly others, every second.
#[derive(Debug)]
enum Json {
    Null,
    /// Its value, and where it is a whole number that is not negative, that number.
    Number(f64, Option<u64>),
    Text(String),
    List(Vec<Self>),
    Map(Vec<(&'static str, Self)>),
    Other,
}

impl Json {
    fn get(&self, key: &str) -> Option<&Self> {
        let Self::Map(entries) = self else { return None };
        // Of a key that is there twice the last counts.
        entries.iter().rev().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    /// What stands under `key`: a name, or a place in a list.
    fn step_into(&self, key: &str) -> Option<&Self> {
        match self {
            Self::List(items) => items.get(key.parse::<usize>().ok()?),
            _ => self.get(key),
        }
    }

    fn as_f64(&self) -> Option<f64> {
        if let Self::Number(number, _) = self { Some(*number) } else { None }
    }

    fn as_u64(&self) -> Option<u64> {
        if let Self::Number(_, whole) = self { *whole } else { None }
    }

    fn as_str(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_u64<E>(self, number: u64) -> Result<Json, E> {
        Ok(Json::Number(number as f64, Some(number)))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Json, E> {
        Ok(Json::Number(number as f64, u64::try_from(number).ok()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Json, E> {
        Ok(Json::Number(number, None))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Json::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut entries = Vec::new();
        while let Some(WantedKey(key)) = map.next_key()? {
            match key {
                Some(key) => entries.push((key, map.next_value()?)),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Json::Map(entries))
    }
}

/// A key, if it is read.
struct WantedKey(Option<&'static str>);

impl<'de> Deserialize<'de> for WantedKey {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl Visitor<'_> for KeyVisitor {
            type Value = WantedKey;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_str<E>(self, key: &str) -> Result<WantedKey, E> {
                Ok(WantedKey(KEYS.binary_search(&key).ok().map(|place| KEYS[place])))
            }
        }
        json.deserialize_str(KeyVisitor)
    }
}

/// Reads an answer.
///
/// # Errors
/// When it is not JSON, or names no rank's load.
pub fn read(body: &[u8]) -> Result<Loads, LoadsError> {
    let body: Json = serde_json::from_slice(body).map_err(|e| LoadsError::NotJson(e.to_string()))?;
    let loads = of_value(&body);
    if loads.ranks.is_empty() { Err(LoadsError::NoLoads) } else { Ok(loads) }
}

fn of_value(body: &Json) -> Loads {
    let mut bad = 0;
    let mut ranks_of = |ranks: &[Json], now| -> Vec<RankLoad> {
        bad += ranks.len().saturating_sub(MOST_RANKS) as u64;
        ranks.iter().take(MOST_RANKS).filter_map(|r| rank_of(r, now, &mut bad)).collect()
    };
    let (ranks, version) = match body {
        Json::List(ranks) => (ranks_of(ranks, None), None),
        Json::Number(..) => (single(body), None),
        Json::Map(_) => {
            let version = body.get("version").and_then(Json::as_str).map(str::to_owned);
            let now = body.get("timestamp").and_then(epoch_s);
            let ranks = match body.get("loads") {
                Some(Json::List(ranks)) => ranks_of(ranks, now),
                _ if body.get("num_reqs").is_some() => ranks_of(std::slice::from_ref(body), None),
                _ => body.get("load").map(single).unwrap_or_default(),
            };
            (ranks, version)
        }
        _ => Default::default(),
    };
    Loads { ranks, bad, version }
}

/// SGLang 0.4 answers with one number for the whole server.
fn single(load: &Json) -> Vec<RankLoad> {
    let Some(load) = load.as_f64() else { return Vec::new() };
    let mut fields = Fields::default();
    fields.set(catalog::LOAD, load);
    vec![RankLoad { rank: Rank::NONE, age: Duration::ZERO, role: None, published_s: None, fields }]
}

/// One rank's numbers; `bad` grows by what stands in their place and is none. `null` says that the
/// server has no such number.
fn rank_of(load: &Json, now_s: Option<f64>, bad: &mut u64) -> Option<RankLoad> {
    if !matches!(load, Json::Map(_)) {
        return None;
    }
    let mut fields = Fields::default();
    for (path, signal) in FIELDS.iter() {
        match path.iter().try_fold(load, |at, key| at.step_into(key)) {
            None | Some(Json::Null) => {}
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
    let index = load.get("dp_rank").and_then(Json::as_u64).and_then(|i| u16::try_from(i).ok());
    let published = load.get("timestamp").and_then(epoch_s);
    let age = now_s.zip(published).map_or(0.0, |(now, then)| now - then);
    let mode = load.get("disaggregation").and_then(|d| d.get("mode")).and_then(Json::as_str);
    (!fields.is_empty()).then(|| RankLoad {
        rank: index.map_or(Rank::NONE, Rank::dp),
        age: Duration::try_from_secs_f64(age).unwrap_or_default(),
        role: mode.and_then(|m| Role::of_word(m.as_bytes())),
        published_s: published,
        fields,
    })
}

/// Epoch seconds from a number or from RFC 3339 text.
fn epoch_s(value: &Json) -> Option<f64> {
    match value {
        Json::Text(text) => text.parse::<Timestamp>().ok().map(|t| t.as_nanosecond() as f64 / 1e9),
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
        insta::assert_snapshot!(shown(r#"{"timestamp":1795491565.0,"version":"0.5.23","loads":[{"timestamp":1795491565.0,"dp_rank":0,
            "num_running_reqs":5,"decode_moments":[233.0,1293.0,3339625.0,7401.0,18539789.0,1293.0]}]}"#),
            @"DP0 0.000s running_reqs=5 decode_tokens=1293 decode_steps=233");
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
