//! The built-in signals, and what each source calls them.
//!
//! This table is the only place that knows the servers' words. A log key, a metric or a field that
//! several versions spell differently is listed here under one name. `log` is for both kinds of
//! batch line, `decode` and `prefill` for one; a metric may ask for one label
//! (`name{mode=decode}`); a field of `/v1/loads` is a dotted path. Where a source gives one signal
//! under two names at once, the larger value counts. Counters are kept as rates: their unit is
//! already per second.

use super::{Entry, Fold, Kind, Signal, Silence};

macro_rules! signals {
    ($($id:ident $name:literal $unit:literal $kind:ident $silence:ident $fold:ident $meaning:literal
       { $($column:ident: [$($word:literal),*])* })*) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        enum Place { $($id),* }
        $(#[doc = concat!("`", $name, "` (", $unit, "): ", $meaning)]
        pub const $id: Signal = Signal(Place::$id as u16);)*
        /// The rows, in the order of their numbers.
        pub const BUILT_IN: &[Entry] = &[$(Entry {
            $($column: &[$($word),*],)*
            ..row($name, $unit, Kind::$kind, Silence::$silence, Fold::$fold, $meaning)
        }),*];
    };
}

signals! {
    RUNNING_REQS "running_reqs" "requests" Gauge Zero Sum "Requests in the running batch." {
        log: ["#running-req"] vllm: ["Running", "context requests", "generation requests"]
        metrics: ["sglang:num_running_reqs", "sglang_num_running_reqs", "vllm:num_requests_running", "trtllm_num_requests_running"]
        loads: ["num_running_reqs"] }
    QUEUE_REQS "queue_reqs" "requests" Gauge Zero Sum "Requests that wait for a place in the batch." {
        log: ["#queue-req"] vllm: ["Waiting", "Pending"]
        metrics: ["sglang:num_queue_reqs", "sglang_num_waiting_reqs", "vllm:num_requests_waiting", "trtllm_num_requests_waiting"]
        loads: ["num_waiting_reqs"] }
    LOAD "load" "requests" Gauge Zero Sum "Running plus queued requests: running_reqs + queue_reqs." {
        loads: ["num_reqs"] }
    KV_USAGE "kv_usage" "share" Gauge Zero Mean "Share of the KV cache in use; the fullest pool where there are several." {
        log: ["token usage", "full token usage", "swa token usage", "gpu token usage"]
        vllm: ["GPU KV cache usage"]
        metrics: ["sglang:token_usage", "sglang:full_token_usage", "sglang:swa_token_usage", "sglang_token_usage", "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "trtllm_kv_cache_utilization"]
        loads: ["token_usage"] }
    USED_TOKENS "used_tokens" "tokens" Gauge Zero Sum "Tokens that the KV cache holds for requests." {
        log: ["#token", "#full token", "#gpu token"]
        metrics: ["sglang:num_used_tokens", "sglang_num_used_tokens"]
        loads: ["num_used_tokens"] }
    TOTAL_TOKENS "total_tokens" "tokens" Gauge Zero Sum "Tokens of the running requests and of those that wait." {
        metrics: ["sglang_num_total_tokens"]
        loads: ["num_total_tokens", "num_tokens"] }
    ACTIVE_TOKENS "active_tokens" "tokens" Gauge Zero Sum "Tokens of the requests that are being served now." {
        loads: ["num_active_tokens"] }
    PENDING_TOKENS "pending_tokens" "tokens" Gauge Zero Sum "Uncached prompt tokens that wait to be prefilled." {
        log: ["#pending-token"]
        metrics: ["sglang_num_waiting_uncached_tokens"]
        loads: ["num_waiting_uncached_tokens", "num_pending_tokens"] }
    SWA_TOKENS "swa_tokens" "tokens" Gauge Zero Sum "Tokens in the sliding-window pool." {
        log: ["#swa token"] metrics: ["sglang:swa_used_tokens"] }
    CPU_TOKENS "cpu_tokens" "tokens" Gauge Zero Sum "Tokens that sparse attention keeps in host memory." {
        log: ["#cpu token"] }
    CPU_KV_USAGE "cpu_kv_usage" "share" Gauge Zero Mean "Share of the host's token pool in use." {
        log: ["cpu token usage"] }
    MAMBA_NUM "mamba_states" "states" Gauge Zero Sum "State-space slots in use." {
        log: ["mamba num"] metrics: ["sglang:mamba_used_tokens"] }
    MAMBA_USAGE "mamba_usage" "share" Gauge Zero Mean "Share of the state-space slots in use." {
        log: ["mamba usage"] metrics: ["sglang:mamba_usage"] }
    GEN_THROUGHPUT "gen_throughput" "tokens/s" Gauge Zero Sum "Generated tokens per second, as the server measures it between two of its reports." {
        decode: ["gen throughput (token/s)"] vllm: ["Avg generation throughput"]
        metrics: ["sglang:gen_throughput", "sglang_gen_throughput"]
        loads: ["gen_throughput"] }
    INPUT_THROUGHPUT "input_throughput" "tokens/s" Gauge Zero Sum "Prefilled tokens per second, as the server measures it." {
        prefill: ["input throughput (token/s)"] }
    NEW_SEQS "new_seqs" "requests" Gauge Zero Sum "Requests that entered with one prefill batch." {
        prefill: ["#new-seq"] }
    NEW_TOKENS "new_tokens" "tokens" Gauge Zero Sum "Prompt tokens computed in one prefill batch." {
        prefill: ["#new-token"] vllm: ["context tokens"] }
    CACHED_TOKENS "cached_tokens" "tokens" Gauge Zero Sum "Prompt tokens that one prefill batch found in the cache." {
        prefill: ["#cached-token"] }
    REPLAY_TOKENS "replay_tokens" "tokens" Gauge Zero Sum "Prompt tokens that one prefill batch computed again." {
        prefill: ["#replay-token"] }
    CUDA_GRAPH "cuda_graph" "0 or 1" Gauge Unknown Mean "Whether the batch ran from a captured graph." {
        log: ["cuda graph", "cpu graph", "npu graph", "musa graph"] metrics: ["sglang:is_cuda_graph"] }
    ACCEPT_LEN "accept_len" "tokens" Gauge Unknown Mean "Speculative tokens accepted per step." {
        decode: ["accept len"] metrics: ["sglang:spec_accept_length"] }
    ACCEPT_RATE "accept_rate" "share" Gauge Unknown Mean "Share of speculative tokens that were accepted." {
        decode: ["accept rate"] metrics: ["sglang:spec_accept_rate"] }
    CAP_LEN "cap_len" "tokens" Gauge Unknown Mean "Cap on speculative tokens per step." {
        decode: ["cap len"] metrics: ["sglang:spec_cap_length"] }
    BLOCK_ACCEPT_LEN "block_accept_len" "tokens" Gauge Unknown Mean "Speculative tokens accepted per block." {
        decode: ["block accept len"] metrics: ["sglang:spec_block_accept_length"] }
    PREALLOC_USAGE "prealloc_usage" "share" Gauge Zero Mean "Decode: share of the KV cache set aside for requests under way." {
        decode: ["pre-allocated usage"] metrics: ["sglang:pending_prealloc_token_usage"] }
    DECODE_PREALLOC_REQS "decode_prealloc_reqs" "requests" Gauge Zero Sum "Decode: requests that wait for KV space." {
        decode: ["#prealloc-req"]
        metrics: ["sglang:num_decode_prealloc_queue_reqs"]
        loads: ["disaggregation.decode_prealloc_queue_reqs"] }
    DECODE_TRANSFER_REQS "decode_transfer_reqs" "requests" Gauge Zero Sum "Decode: requests whose KV is on its way." {
        decode: ["#transfer-req"]
        metrics: ["sglang:num_decode_transfer_queue_reqs"]
        loads: ["disaggregation.decode_transfer_queue_reqs"] }
    HOST_RECEIVE_REQS "host_receive_reqs" "requests" Gauge Zero Sum "Decode: requests received into host memory." {
        decode: ["#host-receive-req"] metrics: ["sglang:num_decode_host_receive_queue_reqs"] }
    RETRACTED_REQS "retracted_reqs" "requests" Gauge Zero Sum "Requests thrown out of the batch for want of KV space." {
        decode: ["#retracted-req"] metrics: ["sglang:num_retracted_reqs"]
        loads: ["queues.retracted", "disaggregation.decode_retracted_queue_reqs"] }
    PAUSED_REQS "paused_reqs" "requests" Gauge Zero Sum "Requests that were paused." {
        metrics: ["sglang:num_paused_reqs"] loads: ["queues.paused"] }
    GRAMMAR_REQS "grammar_reqs" "requests" Gauge Zero Sum "Requests that wait for their grammar to be compiled." {
        metrics: ["sglang:num_grammar_queue_reqs"] loads: ["queues.grammar"] }
    PREFILL_BOOTSTRAP_REQS "prefill_bootstrap_reqs" "requests" Gauge Zero Sum "Prefill: requests that wait for the handshake with a decode server." {
        prefill: ["#unbootstrapped-req", "#prealloc-req", "#bootstrap-req"]
        metrics: ["sglang:num_prefill_prealloc_queue_reqs", "sglang:num_prefill_bootstrap_queue_reqs"]
        loads: ["disaggregation.prefill_bootstrap_queue_reqs", "disaggregation.prefill_prealloc_queue_reqs"] }
    PREFILL_INFLIGHT_REQS "prefill_inflight_reqs" "requests" Gauge Zero Sum "Prefill: requests whose KV is on its way to a decode server." {
        prefill: ["#transferring-req", "#inflight-req"]
        metrics: ["sglang:num_prefill_infight_queue_reqs", "sglang:num_prefill_inflight_queue_reqs"]
        loads: ["disaggregation.prefill_inflight_queue_reqs"] }
    OPTIMISTIC_REQS "optimistic_reqs" "requests" Gauge Zero Sum "Prefill: requests started before their handshake was done." {
        prefill: ["#optimistic-req"] }
    WAITING_IMAGE_REQS "waiting_image_reqs" "requests" Gauge Zero Sum "Requests that wait for an image encoder." {
        log: ["waiting-image-req"] }
    CACHE_HIT_RATE "cache_hit_rate" "share" Gauge Unknown Mean "Share of prompt tokens found in the prefix cache." {
        metrics: ["sglang:cache_hit_rate", "sglang_cache_hit_rate"] loads: ["cache_hit_rate"] vllm: ["Prefix cache hit rate"] }
    DECODE_TFLOPS "decode_tflops" "TFLOP/s" Gauge Zero Mean "Estimated arithmetic rate of decoding, per GPU." {
        decode: ["est. decode TFLOPS/s (per GPU)"] }
    PREFILL_TFLOPS "prefill_tflops" "TFLOP/s" Gauge Zero Mean "Estimated arithmetic rate of prefilling, per GPU." {
        prefill: ["est. prefill TFLOPS/s (per GPU)"] }
    READ_BANDWIDTH "read_bandwidth" "GB/s" Gauge Zero Mean "Estimated memory reads, per GPU." {
        decode: ["est. read BW (GB/s per GPU)"] }
    WRITE_BANDWIDTH "write_bandwidth" "GB/s" Gauge Zero Mean "Estimated memory writes, per GPU." {
        decode: ["est. write BW (GB/s per GPU)"] }
    FWD_OCCUPANCY "fwd_occupancy" "percent" Gauge Zero Mean "Share of time in which the GPU ran forward passes." {
        log: ["fwd occupancy"] metrics: ["sglang:fwd_occupancy"] }
    FWD_IDLE_OCCUPANCY "fwd_idle_occupancy" "percent" Gauge Zero Mean "Share of time in forward passes, idle ones included." {
        log: ["fwd+idle occupancy"] }
    DECODE_SEQ_LENS "decode_seq_lens" "tokens" Gauge Zero Sum "Sum of the sequence lengths of the decode batch: its attention work." {
        metrics: ["sglang:decode_sum_seq_lens"] }
    DECODE_TOKENS "decode_tokens" "tokens/s" Counter Zero Sum "Tokens decoded, from the server's counter." {
        metrics: ["sglang:realtime_tokens_total{mode=decode}", "vllm:generation_tokens_total"] loads: ["decode_moments.5"] }
    ADMISSIONS "admissions" "requests/s" Counter Zero Sum "Requests that left the queue for a first prefill, per second; by the log's prefill lines or the server's counter." {
        metrics: ["sglang:queue_time_seconds_count", "vllm:time_to_first_token_seconds_count"] }
    PREFILL_COMPUTE_TOKENS "prefill_compute_tokens" "tokens/s" Counter Zero Sum "Prompt tokens computed, from the server's counter or the log's prefill lines." {
        metrics: ["sglang:realtime_tokens_total{mode=prefill_compute}"] loads: ["total_prefill_uncached_tokens"] }
    PREFILL_CACHE_TOKENS "prefill_cache_tokens" "tokens/s" Counter Zero Sum "Prompt tokens taken from the cache, from the server's counter or the log's prefill lines." {
        metrics: ["sglang:realtime_tokens_total{mode=prefill_cache}", "vllm:prefix_cache_hits_total"] }
    PROMPT_TOKENS "prompt_tokens" "tokens/s" Counter Zero Sum "Prompt tokens processed (vLLM)." {
        metrics: ["vllm:prompt_tokens_total"] }
    PREFILL_BUSY_US "prefill_busy" "us/s" Counter Zero Mean "Microseconds spent prefilling per second." {
        loads: ["total_prefill_busy_us"] }
    RETRACTIONS "retractions" "requests/s" Counter Zero Sum "Requests thrown out of the batch per second." {
        metrics: ["sglang:num_retracted_requests_total", "vllm:num_preemptions_total"] }
    GPU_BUSY "gpu_busy" "s/s" Counter Zero Mean "Seconds of forward passes per second; waiting inside collectives counts." {
        metrics: ["sglang:gpu_execution_seconds_total", "sglang:forward_execution_seconds_total"] }
    SCHEDULER_IDLE "scheduler_idle" "s/s" Counter Unknown Mean "Seconds in which the scheduler had nothing to do, per second." {
        metrics: ["sglang:scheduler_idle_seconds_total"] }
    SCHEDULER_CPU "scheduler_cpu" "s/s" Counter Unknown Mean "CPU seconds of the scheduler process per second." {
        metrics: ["sglang:scheduler_process_cpu_seconds_total"] }
    DP_TOKENS_SCHEDULED "dp_attention_tokens_scheduled" "tokens/s" Counter Zero Sum "DP attention: tokens this rank ran." {
        metrics: ["sglang:dp_attention_tokens_total{kind=scheduled}"] }
    DP_TOKENS_IMBALANCE "dp_attention_tokens_imbalance" "tokens/s" Counter Zero Sum "DP attention: tokens that the busiest rank ran beyond this rank." {
        metrics: ["sglang:dp_attention_tokens_total{kind=imbalance}"] }
    DP_LOST_SHARE "dp_attention_lost_share" "share" Gauge Unknown Mean "DP attention: share of this rank's capacity lost to waiting for the busiest: imbalance / (scheduled + imbalance)." {}
    DP_PAIRS_SCHEDULED "dp_attention_pairs_scheduled" "pairs/s" Counter Zero Sum "DP attention: query-key pairs this rank attended." {
        metrics: ["sglang:dp_attention_pairs_total{kind=scheduled}"] }
    DP_PAIRS_IMBALANCE "dp_attention_pairs_imbalance" "pairs/s" Counter Zero Sum "DP attention: query-key pairs of the busiest rank beyond this rank." {
        metrics: ["sglang:dp_attention_pairs_total{kind=imbalance}"] }
    DP_PAIRS_LOST_SHARE "dp_attention_pairs_lost_share" "share" Gauge Unknown Mean "DP attention: share of attention capacity lost to waiting for the busiest rank." {}
    DP_STEPS_ACTIVE "dp_attention_steps_active" "steps/s" Counter Zero Mean "DP attention: steps in which this rank had tokens." {
        metrics: ["sglang:dp_attention_steps_total{rank_state=active}"] }
    DP_STEPS_IDLE "dp_attention_steps_idle" "steps/s" Counter Unknown Mean "DP attention: steps that this rank ran only to keep the others company." {
        metrics: ["sglang:dp_attention_steps_total{rank_state=idle}"] }
    DP_RATIO_SUM "dp_attention_ratio_sum" "1/s" Counter Unknown Mean "DP attention: sum of max over mean tokens of each step." {
        metrics: ["sglang:dp_attention_token_imbalance_ratio_sum"] }
    DP_RATIO_COUNT "dp_attention_ratio_count" "steps/s" Counter Unknown Mean "DP attention: steps whose ratio was measured." {
        metrics: ["sglang:dp_attention_token_imbalance_ratio_count"] }
    DP_RATIO "dp_attention_imbalance_ratio" "ratio" Gauge Unknown Mean "DP attention: mean of max over mean tokens per step, engine-wide (1 is balanced)." {}
    DP_SYNC_WAIT_SUM "dp_attention_sync_wait_sum" "s/s" Counter Unknown Mean "DP attention: seconds waited for the other ranks, per second." {
        metrics: ["sglang:dp_attention_sync_wait_seconds_sum"] }
    DP_SYNC_WAIT_COUNT "dp_attention_sync_wait_count" "steps/s" Counter Unknown Mean "DP attention: waits measured." {
        metrics: ["sglang:dp_attention_sync_wait_seconds_count"] }
    DP_SYNC_WAIT "dp_attention_sync_wait" "s" Gauge Unknown Mean "DP attention: mean wait for the other ranks per step; low on the slow rank, high on its peers." {}
    EXPERT_TOKENS "expert_tokens" "tokens/s" Counter Zero Sum "Tokens routed to the experts of one EP rank (rank label ep_rank)." {
        metrics: ["sglang:eplb_gpu_physical_count_bucket"] }
    EXPERT_BALANCEDNESS "expert_balancedness" "ratio" Gauge Unknown Mean "Mean over layers of mean load over maximum load of the EP ranks, engine-wide (1 is balanced)." {}
    EXPERT_BALANCEDNESS_AVERAGE "expert_balancedness_average" "ratio" Gauge Unknown Mean "The same, averaged over the shortest window that the server reports." {}
    VLLM_PROMPT_THROUGHPUT "prompt_throughput" "tokens/s" Gauge Zero Sum "vLLM's log line: prompt tokens per second over its interval." {
        vllm: ["Avg prompt throughput"] }
    DEFERRED_REQS "deferred_reqs" "requests" Gauge Zero Sum "vLLM: requests that wait for something other than a place." {
        vllm: ["Deferred", "Swapped"] }
    ROUTED_REQS "waiting_by_reason" "requests" Gauge Zero Sum "vLLM: waiting requests, all reasons together." {
        metrics: ["vllm:num_requests_waiting_by_reason"] }
    FINISHED "finished" "requests/s" Counter Zero Sum "vLLM: requests finished, for whatever reason." {
        metrics: ["vllm:request_success_total"] }
    DECODE_STEPS "decode_steps" "steps/s" Counter Zero Sum "Forward passes that decoded; vLLM: all iterations." {
        metrics: ["sglang:cuda_graph_passes_total{mode=decode_cuda_graph}", "sglang:cuda_graph_passes_total{mode=decode_none}", "vllm:iteration_tokens_total_count"] loads: ["decode_moments.0"] }
    PREFILL_STEPS "prefill_steps" "steps/s" Counter Zero Sum "Forward passes that prefilled." {
        metrics: ["sglang:cuda_graph_passes_total{mode=prefill_cuda_graph}", "sglang:cuda_graph_passes_total{mode=prefill_none}"] }
    RUN_DELAY "run_delay" "s/s" Counter Unknown Mean "Seconds in which the engine's process was ready and waited for a CPU, per second, from /proc." {}
    THROTTLED "throttled" "s/s" Counter Unknown Mean "Seconds in which the cgroup of the engine's process was throttled, per second." {}
    CPU_PRESSURE "cpu_pressure" "s/s" Counter Unknown Mean "Seconds in which something in the cgroup of the engine's process waited for a CPU, per second (PSI)." {}
    GPU_SM_CLOCK "gpu_sm_clock" "MHz" Gauge Unknown Mean "Clock of the GPU's multiprocessors, from a DCGM page." {}
    SENT_REQS "sent_reqs" "requests/s" Counter Unknown Sum "Requests that the router sent to the rank, per second, by the router's own counter (its page is one of `metrics`)." {}
    QUEUE_TIME_SUM "queue_time_sum" "s/s" Counter Unknown Mean "Seconds waited in the queue by requests that left it, per second." {
        metrics: ["sglang:queue_time_seconds_sum", "vllm:request_queue_time_seconds_sum"] }
    QUEUE_TIME_COUNT "queue_time_count" "requests/s" Counter Unknown Mean "vLLM: waits in the queue measured, when their requests end." {
        metrics: ["vllm:request_queue_time_seconds_count"] }
    QUEUE_TIME "queue_time" "s" Gauge Unknown Mean "Mean wait in the queue of the requests that left it (vLLM: that ended) between two readings." {}
    TTFT_SUM "time_to_first_token_sum" "s/s" Counter Unknown Mean "Seconds to the first token of requests that got it, per second." {
        metrics: ["sglang:time_to_first_token_seconds_sum", "vllm:time_to_first_token_seconds_sum"] }
    TTFT_COUNT "time_to_first_token_count" "requests/s" Counter Unknown Mean "SGLang: first tokens measured." {
        metrics: ["sglang:time_to_first_token_seconds_count"] }
    TTFT "time_to_first_token" "s" Gauge Unknown Mean "Mean time to the first token of the requests that got it between two readings; SGLang tells it for the whole server only." {}
    ITL_SUM "inter_token_latency_sum" "s/s" Counter Unknown Mean "Seconds between tokens, per second." {
        metrics: ["sglang:inter_token_latency_seconds_sum", "vllm:inter_token_latency_seconds_sum"] }
    ITL_COUNT "inter_token_latency_count" "tokens/s" Counter Unknown Mean "Pauses between tokens measured." {
        metrics: ["sglang:inter_token_latency_seconds_count", "vllm:inter_token_latency_seconds_count"] }
    ITL "inter_token_latency" "s" Gauge Unknown Mean "Mean time between two tokens of a request; SGLang tells it for the whole server only." {}
    CACHE_QUERIES "cache_queries" "tokens/s" Counter Unknown Sum "vLLM: prompt tokens looked up in the prefix cache." {
        metrics: ["vllm:prefix_cache_queries_total"] }
    CACHED_SHARE "cached_share" "share" Gauge Unknown Mean "Share of prompt tokens found in the prefix cache, of those prefilled between two readings." {}
}

/// How many built-in signals there are.
pub const BUILT_IN_COUNT: usize = BUILT_IN.len();

const fn row(
    name: &'static str,
    unit: &'static str,
    kind: Kind,
    silence: Silence,
    fold: Fold,
    meaning: &'static str,
) -> Entry {
    Entry {
        name,
        unit,
        kind,
        silence,
        fold,
        meaning,
        log: &[],
        decode: &[],
        prefill: &[],
        vllm: &[],
        metrics: &[],
        loads: &[],
    }
}
