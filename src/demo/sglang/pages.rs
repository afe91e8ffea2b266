//! The pages: loads, metrics, server info.

use serde_json::{Value, json};

use crate::demo::exchange::{Request, Response};
use crate::demo::load::RankLoad;
use crate::demo::sglang::World;
use crate::demo::sglang::config::Version;
use crate::demo::sglang::ranks::{KV_TOKENS, Rank};

/// `/v1/loads`: live up to 0.5.12, from a snapshot later.
pub fn loads(world: &World, request: &Request) -> Response {
    if let Some(body) = recorded_loads(world) {
        return Response { content_type: Some("application/json"), ..Response::bare(200, &body) };
    }
    let wanted = request.parameter("dp_rank").and_then(|r| r.parse::<u16>().ok());
    let ranks: Vec<&Rank> = world.ranks.iter().filter(|r| wanted.is_none_or(|w| w == r.dp)).collect();
    if request.parameter("format") == Some("prometheus") {
        return Response::text(200, &loads_as_prometheus(world, &ranks));
    }
    let version = world.config.version;
    let loads: Vec<Value> = ranks.iter().map(|r| load_of(world, r)).collect();
    let mut page = json!({
        "timestamp": format!("{:.6}", jiff_time(world)), "version": version.text(), "loads": loads,
    });
    match version {
        Version::V0_5_9 => {
            let sum = |f: fn(RankLoad) -> u32| world.ranks.iter().map(|r| f(live(world, r))).sum::<u32>();
            page["dp_rank_count"] = json!(world.config.dp);
            page["aggregate"] = json!({
                "total_running_reqs": sum(|l| l.running), "total_waiting_reqs": sum(|l| l.waiting),
            });
        }
        Version::V0_5_23 => (page["accelerator"], page["num_accelerators"]) = (Value::Null, json!(1)),
        _ => {}
    }
    Response::json(200, &page)
}

fn recorded_loads(world: &World) -> Option<String> {
    let recorded = world.config.recorded_loads.as_ref()?;
    let after = recorded.partition_point(|(at, _)| *at <= world.now);
    recorded.get(after.saturating_sub(1)).map(|(_, body)| body.clone())
}

fn jiff_time(world: &World) -> jiff::Timestamp {
    jiff::Timestamp::from_nanosecond(i128::from(world.now.nanos())).unwrap_or_default()
}

fn live(world: &World, rank: &Rank) -> RankLoad {
    world.config.load.at(rank.dp, world.now)
}

fn load_of(world: &World, rank: &Rank) -> Value {
    let snapshots = world.config.version >= Version::V0_5_16;
    let (at, load) = if snapshots { rank.snapshot } else { (world.now, live(world, rank)) };
    let usage = (load.tokens as f64 / KV_TOKENS as f64 * 1e4).round() / 1e4;
    let mut row = json!({
        "dp_rank": rank.dp, "num_running_reqs": load.running, "num_waiting_reqs": load.waiting,
        "num_used_tokens": load.tokens, "max_total_num_tokens": KV_TOKENS, "max_running_requests": 256,
        "token_usage": usage, "gen_throughput": load.throughput, "cache_hit_rate": 0.0, "utilization": 0.0,
    });
    if snapshots {
        row["timestamp"] = json!(at.epoch_s());
        row["num_waiting_uncached_tokens"] = json!(0);
        row["num_total_tokens"] = json!(load.tokens);
        row["disaggregation"] = json!({"mode": "null"});
        row["queues"] = json!({"waiting": load.waiting, "grammar": 0, "paused": 0, "retracted": 0});
    }
    row
}

fn loads_as_prometheus(world: &World, ranks: &[&Rank]) -> String {
    let line = |name: &str, value: fn(RankLoad) -> f64| {
        let rows = ranks
            .iter()
            .map(|r| format!("sglang_{name}{{dp_rank=\"{}\"}} {}\n", r.dp, value(live(world, r))));
        format!("# TYPE sglang_{name} gauge\n{}", rows.collect::<String>())
    };
    line("num_running_reqs", |l| f64::from(l.running)) + &line("num_waiting_reqs", |l| f64::from(l.waiting))
}

/// `/get_load`: a number in the oldest release, a list later.
pub fn get_load(world: &World) -> Response {
    let loads = world.ranks.iter().map(|r| (r.dp, live(world, r)));
    if world.config.version == Version::V0_4_7 {
        let total: u32 = loads.map(|(_, l)| l.running + l.waiting).sum();
        return Response::json(200, &json!({"load": total}));
    }
    let rows: Vec<Value> = loads
        .map(|(dp, l)| {
            let mut row = json!({
                "dp_rank": dp, "num_reqs": l.running + l.waiting, "num_waiting_reqs": l.waiting, "num_tokens": l.tokens,
            });
            if world.config.version >= Version::V0_5_9 {
                row["ts_tic"] = json!(world.now.epoch_s());
            }
            if world.config.version >= Version::V0_5_16 {
                row["num_pending_tokens"] = json!(0);
            }
            row
        })
        .collect();
    Response::json(200, &Value::Array(rows))
}

/// `/server_info` and `/get_server_info`.
pub fn server_info(world: &World) -> Response {
    let c = &world.config;
    let states: Vec<Value> = world
        .ranks
        .iter()
        .map(|r| {
            let load = live(world, r);
            let mut state = json!({
                "last_gen_throughput": load.throughput, "dp_size": c.dp, "tp_size": c.tp,
                "memory_usage": {"weight": c.weights_gb, "kvcache": 3.05, "token_capacity": KV_TOKENS},
            });
            if c.version == Version::V0_4_7 {
                state["load"] = json!(load.running + load.waiting);
            }
            state
        })
        .collect();
    let mut page = json!({
        "version": c.version.text(), "model_path": "/models/tiny", "served_model_name": "/models/tiny",
        "tp_size": c.tp, "dp_size": c.dp, "pp_size": 1, "ep_size": 1, "nnodes": 1, "node_rank": 0,
        "enable_dp_attention": c.dp_attention, "disaggregation_mode": "null", "load_balance_method": "round_robin",
        "enable_metrics": c.enable_metrics, "decode_log_interval": c.decode_log_interval,
        "watchdog_timeout": c.watchdog.as_secs(), "device": "cuda", "random_seed": 1000 + world.starts, "host": "127.0.0.1", "port": 30000,
        "max_total_num_tokens": KV_TOKENS, "internal_states": states,
    });
    if c.version >= Version::V0_5_16 {
        page["scheduler_pids"] = world.ranks.iter().map(|r| 633 + u32::from(r.dp)).collect();
    }
    if c.version >= Version::V0_5_23 {
        page["frontend"] = json!("python");
    }
    Response::json(200, &page)
}

/// `/v1/models` and `/get_model_info`.
pub fn model(path: &str) -> Response {
    let page = match path {
        "/v1/models" => {
            json!({"object": "list", "data": [{"id": "/models/tiny", "object": "model", "owned_by": "sglang"}]})
        }
        _ => json!({"model_path": "/models/tiny", "tokenizer_path": "/models/tiny", "is_generation": true}),
    };
    Response::json(200, &page)
}

/// `/metrics`: the last report of each rank, which may be older than its load.
pub fn metrics(world: &World) -> Response {
    let mut page = String::new();
    let mut family = |name: &str, help: &str, value: fn(RankLoad) -> f64| {
        page += &format!("# HELP sglang:{name} {help}\n# TYPE sglang:{name} gauge\n");
        for (labels, load) in series(world) {
            page += &format!("sglang:{name}{{{labels}}} {:?}\n", value(load));
        }
    };
    family("num_running_reqs", "The number of running requests.", |l| f64::from(l.running));
    family("num_queue_reqs", "The number of requests in the waiting queue.", |l| f64::from(l.waiting));
    family("num_used_tokens", "The number of used tokens.", |l| l.tokens as f64);
    family("token_usage", "The token usage.", |l| l.tokens as f64 / KV_TOKENS as f64);
    family("gen_throughput", "The generation throughput (token/s).", |l| l.throughput);
    family("cache_hit_rate", "The prefix cache hit rate.", |_| 0.0);
    Response { content_type: Some("text/plain; version=0.0.4; charset=utf-8"), ..Response::bare(200, &page) }
}

/// Labels and values: one series that all ranks overwrite in 0.4.7, one for each rank later.
fn series(world: &World) -> Vec<(String, RankLoad)> {
    let c = &world.config;
    let common = "engine_type=\"unified\",model_name=\"/models/tiny\"";
    if c.version == Version::V0_4_7 {
        return world.ranks.last().map(|r| (common.to_owned(), r.reported)).into_iter().collect();
    }
    let labels = |r: &Rank| {
        let dp = if c.dp > 1 { format!("dp_rank=\"{}\",", r.dp) } else { String::new() };
        let ep = if c.version >= Version::V0_5_9 { ",moe_ep_rank=\"0\"" } else { "" };
        format!("{dp}{common}{ep},pp_rank=\"0\",tp_rank=\"{}\"", c.tp_ranks(r.dp).start)
    };
    world.ranks.iter().map(|r| (labels(r), r.reported)).collect()
}
