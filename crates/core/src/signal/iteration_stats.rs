//! TensorRT-LLM's iteration statistics (`GET /metrics` of `trtllm-serve`): a JSON list with an entry for
//! every iteration since somebody last asked, under attention DP one for each rank.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use crate::signal::catalog;
use crate::signal::fields::Fields;
use crate::signal::loads::{self, Loads, LoadsError, RankLoad};
use crate::signal::metrics::MOST_RANKS;
use skewtrap_trace::rank::Rank;

/// One iteration, of one rank. Every release has more fields; those that one lacks are absent.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Iteration {
    iter: Option<u64>,
    attention_dp_rank: Option<u16>,
    num_active_requests: Option<f64>,
    num_queued_requests: Option<f64>,
    inflight_batching_stats: Option<Batch>,
    kv_cache_stats: Option<KvCache>,
}

/// What ran in it, and what waited.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Batch {
    num_context_requests: Option<f64>,
    num_gen_requests: Option<f64>,
    num_paused_requests: Option<f64>,
    num_queued_context_requests: Option<f64>,
    num_queued_gen_requests: Option<f64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct KvCache {
    used_num_blocks: Option<f64>,
    max_num_blocks: Option<f64>,
}

/// Reads what is polled as loads: an answer of SGLang, or these statistics in its place.
///
/// # Errors
/// It is neither, or names no rank's load.
pub fn read_loads(body: &[u8]) -> Result<Loads, LoadsError> {
    loads::read(body).or_else(|error| read(body).filter(|l| !l.ranks.is_empty()).ok_or(error))
}

/// Reads an answer; `None` where it is none. One without entries is good: nothing ran since somebody asked.
pub fn read(body: &[u8]) -> Option<Loads> {
    let iterations: Vec<Iteration> = serde_json::from_slice(body).ok()?;
    if iterations.iter().any(|i| i.iter.is_none() && i.num_active_requests.is_none()) {
        return None;
    }
    // The newest entry of each rank; they stand in the order in which they were made.
    let mut newest: BTreeMap<u16, &Iteration> = BTreeMap::new();
    let mut bad = 0;
    for iteration in &iterations {
        let rank = iteration.attention_dp_rank.unwrap_or(0);
        if newest.len() >= MOST_RANKS && !newest.contains_key(&rank) {
            bad += 1;
        } else {
            newest.insert(rank, iteration);
        }
    }
    // A server without attention DP numbers its only one too.
    let is_alone = newest.keys().all(|rank| *rank == 0);
    let ranks = newest.into_iter().map(|(rank, iteration)| RankLoad {
        rank: if is_alone { Rank::NONE } else { Rank::dp(rank) },
        age: Duration::ZERO,
        role: None,
        published_s: None,
        fields: fields_of(iteration, is_alone),
    });
    Some(Loads { ranks: ranks.filter(|r| !r.fields.is_empty()).collect(), bad, version: None })
}

/// What is outside the batch is of the whole engine, and under attention DP only copied to every rank.
fn fields_of(iteration: &Iteration, is_alone: bool) -> Fields {
    let sum = |parts: &[Option<f64>]| {
        parts.iter().any(Option::is_some).then(|| parts.iter().flatten().sum::<f64>())
    };
    let batch = iteration.inflight_batching_stats.as_ref();
    let running =
        batch.and_then(|b| sum(&[b.num_context_requests, b.num_gen_requests, b.num_paused_requests]));
    let waiting = batch.and_then(|b| sum(&[b.num_queued_context_requests, b.num_queued_gen_requests]));
    let of_all = |number: Option<f64>| number.filter(|_| is_alone);
    let usage = of_all(iteration.kv_cache_stats.as_ref().and_then(|kv| {
        let (used, all) = (kv.used_num_blocks?, kv.max_num_blocks?);
        (all > 0.0).then(|| used / all)
    }));
    let mut fields = Fields::default();
    for (signal, value) in [
        (catalog::RUNNING_REQS, running.or_else(|| of_all(iteration.num_active_requests))),
        (catalog::QUEUE_REQS, waiting.or_else(|| of_all(iteration.num_queued_requests))),
        (catalog::KV_USAGE, usage),
    ] {
        if let Some(value) = value.filter(|v| v.is_finite()) {
            fields.set(signal, value);
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(body: &str) -> String {
        let loads = read(body.as_bytes()).expect("statistics");
        let rank = |r: &RankLoad| {
            let fields: Vec<_> =
                r.fields.iter().map(|(s, v)| format!("{}={v}", catalog::name_of(s))).collect();
            format!("{} {}", r.rank, fields.join(" "))
        };
        loads.ranks.iter().map(rank).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_newest_iteration_of_each_attention_dp_rank_counts_and_numbers_of_the_whole_engine_are_left_out() {
        insta::assert_snapshot!(shown(r#"[
            {"iter":153,"attentionDpRank":0,"numActiveRequests":9,"inflightBatchingStats":{"numContextRequests":9,"numGenRequests":9}},
            {"iter":154,"attentionDpRank":0,"numActiveRequests":12,"kvCacheStats":{"usedNumBlocks":3,"maxNumBlocks":10},
             "inflightBatchingStats":{"numContextRequests":1,"numGenRequests":11,"numPausedRequests":0,"numQueuedContextRequests":2,"numQueuedGenRequests":0}},
            {"iter":154,"attentionDpRank":1,"numActiveRequests":12,"kvCacheStats":{"usedNumBlocks":3,"maxNumBlocks":10},
             "inflightBatchingStats":{"numContextRequests":0,"numGenRequests":3,"numPausedRequests":1,"numQueuedContextRequests":0,"numQueuedGenRequests":0}}]"#), @"
        DP0 running_reqs=12 queue_reqs=2
        DP1 running_reqs=4 queue_reqs=0
        ");
    }

    #[test]
    fn a_server_without_attention_dp_is_one_rank_and_older_releases_tell_less() {
        insta::assert_snapshot!(shown(r#"[{"iter":154,"iterLatencyMS":7.0,"numActiveRequests":1,"numQueuedRequests":2,
            "kvCacheStats":{"usedNumBlocks":3,"maxNumBlocks":12}}]"#), @"engine running_reqs=1 queue_reqs=2 kv_usage=0.25");
        assert_eq!(shown("[]"), "", "nothing ran since somebody asked");
    }

    #[test]
    fn other_json_is_no_statistics() {
        for body in ["{}", "[{\"dp_rank\":0,\"num_reqs\":3}]", "[1]", "", "trtllm_num_requests_running 1"] {
            assert!(read(body.as_bytes()).is_none(), "{body}");
        }
    }
}
