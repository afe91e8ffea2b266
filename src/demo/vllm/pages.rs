//! The stats line of the log, the metrics, and the other pages.

use serde_json::json;

use crate::demo::exchange::Response;
use crate::demo::load::RankLoad;
use crate::demo::vllm::World;
use crate::demo::vllm::config::Version;
use skewtrap_trace::time::Time;

/// Tokens that the KV cache of one engine holds.
const KV_TOKENS: f64 = 200_000.0;

/// `11-24 06:16:52`: no year.
pub fn stamp(at: Time) -> String {
    let time = jiff::Timestamp::from_nanosecond(i128::from(at.nanos())).unwrap_or_default();
    time.strftime("%m-%d %H:%M:%S").to_string()
}

/// One engine's stats.
pub fn log_line(at: Time, engine: usize, load: RankLoad) -> String {
    format!(
        "INFO {} [loggers.py:257] Engine {engine:03}: Avg prompt throughput: {:.1} tokens/s, Avg generation throughput: {:.1} tokens/s, Running: {} reqs, Waiting: {} reqs, GPU KV cache usage: {:.1}%, Prefix cache hit rate: 0.0%",
        stamp(at),
        load.throughput / 10.0,
        load.throughput,
        load.running,
        load.waiting,
        load.tokens as f64 / KV_TOKENS * 100.0
    )
}

/// `/metrics`, always on.
pub fn metrics(world: &World) -> Response {
    let mut page = String::new();
    let mut family = |name: &str, value: fn(RankLoad) -> f64| {
        page += &format!("# HELP vllm:{name} {name}\n# TYPE vllm:{name} gauge\n");
        for i in 0..world.config.dp {
            let value = value(world.config.load.at(i, world.now));
            page += &format!("vllm:{name}{{engine=\"{i}\",model_name=\"/models/tiny\"}} {value:?}\n");
        }
    };
    family("num_requests_running", |l| f64::from(l.running));
    family("num_requests_waiting", |l| f64::from(l.waiting));
    family("kv_cache_usage_perc", |l| l.tokens as f64 / KV_TOKENS);
    if world.config.version == Version::V0_11 {
        family("gpu_cache_usage_perc", |l| l.tokens as f64 / KV_TOKENS);
    }
    Response { content_type: Some("text/plain; version=0.0.4; charset=utf-8"), ..Response::bare(200, &page) }
}

/// `/v1/models`.
pub fn models() -> Response {
    Response::json(
        200,
        &json!({"object": "list", "data": [{"id": "/models/tiny", "object": "model", "owned_by": "vllm"}]}),
    )
}
