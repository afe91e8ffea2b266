//! Our exposition parser beside prometheus-parse: `cargo bench -p skewtrap-peers --bench exposition`.
//!
//! The page is what an SGLang server of 64 ranks serves. prometheus-parse gets the same page with
//! its colons turned to underscores, because it drops every name with a colon.

use std::fmt::Write;

use divan::Bencher;
use divan::counter::BytesCount;
use skewtrap_core::signal::exposition;
use skewtrap_core::signal::metrics::Metrics;

#[global_allocator]
static ALLOCATIONS: divan::AllocProfiler = divan::AllocProfiler::system();

fn main() {
    divan::main();
}

fn page() -> String {
    let mut page = String::new();
    let names = ["num_running_reqs", "num_queue_reqs", "token_usage", "gen_throughput", "cache_hit_rate"];
    for metric in 0..600 {
        let name =
            names.get(metric).map_or_else(|| format!("a_histogram_{metric}_bucket"), |n| (*n).to_owned());
        writeln!(page, "# HELP sglang:{name} What it means.\n# TYPE sglang:{name} gauge").expect("a string");
        for rank in 0..64 {
            writeln!(page, "sglang:{name}{{dp_rank=\"{rank}\",engine_type=\"unified\",model_name=\"/models/m\",moe_ep_rank=\"0\",pid=\"{}\",pp_rank=\"0\",tp_rank=\"0\"}} {}.0", 600 + rank, metric * rank)
                .expect("a string");
        }
    }
    page
}

#[divan::bench]
fn every_sample_and_label(bencher: Bencher) {
    let page = page();
    bencher.counter(BytesCount::of_str(&page)).bench_local(|| {
        let mut labels = 0;
        let read = exposition::read(page.as_bytes(), |sample| labels += sample.labels.raw_iter().count());
        (read.map(|p| p.samples), labels)
    });
}

#[divan::bench]
fn as_numbers_of_ranks(bencher: Bencher) {
    let page = page();
    let mut metrics = Metrics::default();
    bencher
        .counter(BytesCount::of_str(&page))
        .bench_local(|| metrics.read(page.as_bytes()).map(|p| p.samples));
}

#[divan::bench]
fn prometheus_parse(bencher: Bencher) {
    let page = page().replace("sglang:", "sglang_");
    bencher.counter(BytesCount::of_str(&page)).bench_local(|| {
        prometheus_parse::Scrape::parse(page.lines().map(|l| Ok(l.to_owned()))).map(|s| s.samples.len())
    });
}
