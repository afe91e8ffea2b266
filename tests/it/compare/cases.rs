//! Generated captures with a known truth: the verdict may be right or decline, never wrong.
//! Run with `--nocapture` for the table.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::support::comparison::{said, summarise_half};
use crate::support::traces as generator;
use crate::support::traces::{Rank, Slow, Style, write};
use skewtrap::agent::compare::{CompareRequest, run};
use skewtrap_trace::verdict::{Kind, Verdict};

/// What must come of a case: the kind, and the culprit's name where there is one.
#[derive(Clone, PartialEq)]
struct Truth(Kind, Option<String>);

struct Case {
    topic: &'static str,
    ranks: Vec<Rank>,
    style: Style,
    baseline: Option<Vec<Rank>>,
    truth: Truth,
    /// Where two ranks are in trouble at once either may be named.
    or: Option<Truth>,
    /// The words that the first cause's kernel must have.
    kernel: Option<&'static str>,
}

fn tp(n: usize) -> Vec<Rank> {
    (0..n).map(|i| Rank::new(format!("TP-{i}"), Some(0))).collect()
}

fn dp(n: usize) -> Vec<Rank> {
    (0..n).map(|i| Rank::new(format!("DP-{i}"), None)).collect()
}

fn case(topic: &'static str, ranks: Vec<Rank>, style: Style, truth: Truth) -> Case {
    Case { topic, ranks, style, baseline: None, truth, or: None, kernel: None }
}

fn slow(axis: &str, i: usize) -> Truth {
    Truth(Kind::SlowRank, Some(format!("{axis}{i}")))
}

fn uneven(axis: &str, i: usize) -> Truth {
    Truth(Kind::UnevenWork, Some(format!("{axis}{i}")))
}

const NOTHING: Truth = Truth(Kind::NoFinding, None);
const UNTOLD: Truth = Truth(Kind::InsufficientEvidence, None);

/// Names of one collective, old and new, of every library.
const COLLECTIVES: [&str; 6] = [
    "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
    "ncclKernel_AllReduce_RING_LL_Sum_bfloat(ncclWorkElem)",
    "void sglang::cross_device_reduce_1stage<__nv_bfloat16, 8>(sglang::RankData*)",
    "void deep_ep::internode_ll::combine<true, 7168, 9>(void*)",
    "void flashinfer::trtllm_allreduce_fusion::allreduce_fusion_kernel_oneshot_lamport<x>(y)",
    "nvshmemi_barrier_all_kernel",
];

fn tensor_parallel(out: &mut Vec<Case>) {
    let attention = Slow { attention: 1.8, ..Slow::NONE };
    for i in 0..8 {
        for (n, collective) in COLLECTIVES.into_iter().enumerate() {
            let mut ranks = tp(8);
            ranks[i].slow = attention;
            let (annotated, numbered) = (n % 2 == 0, n % 3 == 0);
            let style =
                Style { collective, annotated, numbered, seed: (i * 10 + n) as u64, ..Style::default() };
            let kernel = Some("_fwd_grouped_kernel_stage1");
            out.push(Case {
                kernel,
                ..case("TP: attention of one rank 1.8 times", ranks, style, slow("TP", i))
            });
        }
        let mut ranks = tp(8);
        ranks[i].slow = Slow::all(1.25);
        out.push(case("TP: one rank 1.25 times in all kernels", ranks, Style::default(), slow("TP", i)));
    }
    for seed in 0..20 {
        let style = Style { noise: 0.05, seed, annotated: seed % 2 == 0, ..Style::default() };
        out.push(case("TP: even, 5 % noise", tp(8), style, NOTHING));
    }
    for (n, offset) in [0.0, 700.0, 1000.0, 5000.0, 12_500.0, 20_000.0].into_iter().enumerate() {
        for shift in 0..5 {
            let mut ranks = tp(8);
            let i = (n + 3 * shift) % 8;
            ranks[i].slow = attention;
            for (j, r) in ranks.iter_mut().enumerate() {
                r.clock_us = if j % 2 == 1 { offset } else { -offset / 3.0 };
                r.skip = if j == (i + 1) % 8 || j == 5 { shift } else { 0 };
            }
            let style = Style { seed: (n * 7 + shift) as u64, annotated: shift % 2 == 1, ..Style::default() };
            out.push(case("TP: clock offsets to 20 ms, windows shifted", ranks, style, slow("TP", i)));
        }
    }
    for i in 0..8 {
        let mut ranks = tp(8);
        ranks[i].slow = attention;
        ranks.remove((i + 3) % 8);
        let style = Style { world: 8, seed: i as u64, ..Style::default() };
        out.push(case("TP: another rank's file missing", ranks, style, slow("TP", i)));
        let mut ranks = tp(8);
        ranks[i].slow = attention;
        let all = ranks.clone();
        let style = Style { world: 8, seed: i as u64, id: "gone", ..Style::default() };
        let _ = all;
        // The culprit's own file is missing: simulated with it, written without it.
        ranks[i].steps = 0;
        ranks[i].skip = 12;
        out.push(case("TP: the culprit's file missing", ranks, style, UNTOLD));
    }
}

fn data_parallel(out: &mut Vec<Case>) {
    for i in 0..4 {
        for (n, factor) in [3.0, 6.0, 20.0].into_iter().enumerate() {
            for annotated in [true, false] {
                let mut ranks = dp(4);
                ranks.iter_mut().enumerate().for_each(|(j, r)| r.batch = 6.0 + j as f64);
                ranks[i].batch = 8.0 * factor;
                // A window of fixed time shows fewer steps on the overloaded rank.
                ranks.iter_mut().for_each(|r| r.steps = 30);
                ranks[i].steps = 10;
                let style = Style { seed: (i * 10 + n) as u64, annotated, ..Style::default() };
                let kernel = Some("_fwd_grouped_kernel_stage1");
                out.push(Case {
                    kernel,
                    ..case("DP: one rank's batch 3 to 20 times", ranks, style, uneven("DP", i))
                });
            }
        }
        for (n, f) in [1.25, 1.4, 2.0].into_iter().enumerate() {
            let mut ranks = dp(4);
            ranks[i].slow = Slow::all(f);
            let style = Style { seed: (i * 10 + n) as u64, annotated: n != 1, ..Style::default() };
            out.push(case("DP: one rank slower at equal batch", ranks, style, slow("DP", i)));
        }
        let mut ranks = dp(4);
        ranks[i].context = 5.0;
        let style = Style { seed: i as u64, ..Style::default() };
        out.push(case("DP: one rank's contexts 5 times longer", ranks, style, uneven("DP", i)));
        let mut ranks = dp(4);
        ranks.iter_mut().for_each(|r| r.prefill = 0.1);
        ranks[i].prefill = 0.6;
        ranks.iter_mut().for_each(|r| r.steps = 20);
        let style = Style { seed: i as u64, ..Style::default() };
        out.push(case("DP: one rank prefills most", ranks, style, uneven("DP", i)));
        let mut ranks = dp(4);
        ranks[i].idle = true;
        out.push(case(
            "DP: one rank idle",
            ranks,
            Style::default(),
            Truth(Kind::IdleTail, Some(format!("DP{i}"))),
        ));
        // DP attention: batches of their own, and collectives in every layer.
        let mut ranks: Vec<Rank> =
            (0..4).map(|j| Rank::new(format!("TP-{j}-DP-{j}-EP-{j}"), Some(0))).collect();
        ranks[i].batch = 40.0;
        let style = Style { seed: i as u64, moe: true, ..Style::default() };
        out.push(case(
            "DP attention: one rank's batch 5 times",
            ranks,
            style,
            Truth(Kind::UnevenWork, Some(format!("DP{i} TP{i} EP{i}"))),
        ));
    }
    for seed in 0..20 {
        let mut ranks = dp(4);
        let mut noise = generator::Noise::new(seed + 500);
        ranks.iter_mut().for_each(|r| r.batch = (7.0 + 3.0 * noise.unit()).round());
        let style = Style { noise: 0.05, seed, annotated: seed % 3 != 0, ..Style::default() };
        out.push(case("DP: even, batches 7 to 10", ranks, style, NOTHING));
    }
}

fn other_shapes(out: &mut Vec<Case>) {
    for i in 0..4 {
        let mut ranks: Vec<Rank> = (0..4).map(|j| Rank::new(format!("TP-{j}-EP-{j}"), Some(0))).collect();
        ranks[i].slow = Slow { moe: 1.7, ..Slow::NONE };
        let style = Style { moe: true, seed: i as u64, ..Style::default() };
        let truth = Truth(Kind::UnevenWork, Some(format!("TP{i} EP{i}")));
        out.push(case("EP: hot experts on one rank", ranks, style, truth));
        // Two replicas of four ranks.
        let grid = || -> Vec<Rank> {
            (0..8).map(|j| Rank::new(format!("TP-{}-DP-{}", j % 4, j / 4), Some(j as u32 / 4))).collect()
        };
        let mut ranks = grid();
        ranks[4 + i].slow = Slow { attention: 1.8, ..Slow::NONE };
        let truth = Truth(Kind::SlowRank, Some(format!("DP1 TP{i}")));
        out.push(case(
            "DP x TP: one rank of a replica slow",
            ranks,
            Style { seed: i as u64, ..Style::default() },
            truth,
        ));
        let mut ranks = grid();
        (0..4).for_each(|j| ranks[j].batch = 60.0);
        let style = Style { seed: 40 + i as u64, ..Style::default() };
        out.push(case("DP x TP: one replica's batch larger", ranks, style, uneven("DP", 0)));
    }
    for seed in 0..4 {
        for (f, truth) in [(1.3, Truth(Kind::AllSlow, None)), (1.0, NOTHING)] {
            for make in [tp, dp] {
                let mut ranks = make(4);
                ranks.iter_mut().for_each(|r| r.slow = Slow::all(f));
                let style = Style { seed, ..Style::default() };
                let baseline = Some(make(4));
                out.push(Case {
                    baseline,
                    ..case("with a baseline: all 1.3 times, or as before", ranks, style, truth.clone())
                });
            }
        }
    }
}

/// Ranks whose host is slow, and ranks whose host has more to do.
fn host_bound(out: &mut Vec<Case>) {
    let style = |seed: usize, annotated: bool| Style { seed: seed as u64, annotated, ..Style::default() };
    for i in 0..4 {
        for annotated in [true, false] {
            for (n, factor) in [3.0, 5.0, 8.0].into_iter().enumerate() {
                let mut ranks = dp(4);
                ranks[i].host = factor;
                let topic = "DP: one host 3 to 8 times slower at equal batches";
                out.push(case(topic, ranks, style(i * 10 + n, annotated), slow("DP", i)));
            }
            // The same host gap twice: because of twenty times the requests, and because of a slow host
            // behind which three times the requests pile up.
            let mut ranks = dp(4);
            ranks.iter_mut().for_each(|r| r.request_us = 22.0);
            ranks[i].batch = 160.0;
            let topic = "DP: one host busy with 20 times the requests";
            out.push(case(topic, ranks, style(i + 20, annotated), uneven("DP", i)));
            let mut ranks = dp(4);
            ranks[i].batch = 24.0;
            ranks[i].host = 5.0;
            let topic = "DP: one slow host with the same gap and 3 times the requests";
            out.push(case(topic, ranks, style(i + 30, annotated), slow("DP", i)));
            // The same gap again: the host is stopped for half of the time, or prepares more prefill.
            for (n, stopped) in [(3_000.0, 4_000.0), (6_000.0, 6_000.0)].into_iter().enumerate() {
                let mut ranks = dp(4);
                ranks.iter_mut().for_each(|r| r.steps = 30);
                ranks[i].batch = 24.0;
                ranks[i].stopped = Some(stopped);
                let topic = "DP: one host stopped half of the time, requests pile up";
                out.push(case(topic, ranks, style(i + 60 + 20 * n, annotated), slow("DP", i)));
            }
            let mut ranks = dp(4);
            for r in &mut ranks {
                (r.steps, r.prefill, r.prefill_us) = (30, 0.1, 4_000.0);
            }
            (ranks[i].batch, ranks[i].prefill) = (120.0, 0.3);
            let topic = "DP: one host prepares three times the prefill of its peers";
            out.push(case(topic, ranks, style(i + 70, annotated), uneven("DP", i)));
            // Two ranks at once.
            let mut ranks = dp(4);
            let other = (i + 1) % 4;
            ranks[i].host = 6.0;
            ranks[other].batch = 100.0;
            out.push(Case {
                or: Some(uneven("DP", other)),
                ..case(
                    "both at once: DP, a slow host and a larger batch",
                    ranks,
                    style(i + 40, annotated),
                    slow("DP", i),
                )
            });
            let mut ranks = tp(4);
            ranks[i].host_us = 150.0;
            ranks[other].slow = Slow { attention: 2.5, ..Slow::NONE };
            let topic = "both at once: TP, a late host and slow attention";
            out.push(Case {
                or: Some(slow("TP", other)),
                ..case(topic, ranks, style(i + 50, annotated), slow("TP", i))
            });
        }
        let mut ranks = dp(4);
        ranks.iter_mut().for_each(|r| r.batch = 40.0);
        ranks[i].batch = 2.0;
        let truth = Truth(Kind::IdleTail, Some(format!("DP{i}")));
        out.push(case("DP: one rank drained to 2 requests", ranks, style(i, true), truth));
        // A window of a profiler that does not tell launches.
        let mut ranks = dp(4);
        ranks[i].host = 5.0;
        let blind = Style { launches: false, ..style(i, true) };
        out.push(case("DP: one host slower, launches unknown", ranks, blind, slow("DP", i)));
    }
    for i in 0..8 {
        for (n, late) in [60.0, 150.0].into_iter().enumerate() {
            let mut ranks = tp(8);
            ranks[i].host_us = late;
            let style = Style { numbered: n == 1, ..style(i * 2 + n, i % 2 == 0) };
            out.push(case("TP: one host launches every layer late", ranks, style, slow("TP", i)));
        }
    }
}

/// Ranks for which the others wait in collectives, for one reason or two at once.
fn stragglers(out: &mut Vec<Case>) {
    let style = |seed: usize| Style {
        seed: 900 + seed as u64,
        annotated: seed.is_multiple_of(2),
        ..Style::default()
    };
    for i in 0..8 {
        let mut ranks = tp(8);
        ranks[i].host_us = 90.0;
        let numbered = Style { numbered: i % 2 == 1, noise: 0.05, ..style(i) };
        out.push(case("straggler: TP, a late host, 5 % noise", ranks, numbered, slow("TP", i)));
        let mut ranks = tp(8);
        ranks[i].slow = Slow { gemm: 1.6, ..Slow::NONE };
        out.push(case("straggler: TP, slow matrix products", ranks, style(i + 10), slow("TP", i)));
        // Both on one rank: either reason is true, the rank is the same.
        let mut ranks = tp(8);
        ranks[i].slow = Slow { attention: 1.8, ..Slow::NONE };
        ranks[i].host_us = 90.0;
        out.push(case("both at once: TP, one rank late and slow", ranks, style(i + 20), slow("TP", i)));
    }
    for i in 0..4 {
        for annotated in [true, false] {
            let style = |seed: usize| Style { annotated, ..style(seed) };
            let mut ranks = dp(4);
            ranks.iter_mut().for_each(|r| r.prefill = 0.2);
            ranks[i].host = 6.0;
            out.push(case("host-bound: DP, mixed steps", ranks, style(i + 30), slow("DP", i)));
            let mut ranks: Vec<Rank> = (0..4).map(|j| Rank::new(format!("TP-{j}-EP-{j}"), Some(0))).collect();
            ranks[i].host_us = 150.0;
            let experts = Style { moe: true, ..style(i + 40) };
            let truth = Truth(Kind::SlowRank, Some(format!("TP{i} EP{i}")));
            out.push(case("straggler: EP, a late host", ranks, experts, truth));
            let mut ranks = dp(4);
            ranks[i].batch = 60.0;
            ranks[i].host = 8.0;
            let topic = "both at once: DP, one rank's host slow and its batch larger";
            let both = Case { or: Some(uneven("DP", i)), ..case(topic, ranks, style(i + 50), slow("DP", i)) };
            out.push(both);
            let mut ranks = dp(4);
            ranks[i].host = 5.0;
            ranks[i].slow = Slow::all(1.4);
            let topic = "both at once: DP, one rank's host and GPU slow";
            out.push(case(topic, ranks, style(i + 60), slow("DP", i)));
        }
        let mut ranks: Vec<Rank> =
            (0..4).map(|j| Rank::new(format!("TP-{j}-DP-{j}-EP-{j}"), Some(0))).collect();
        ranks[i].host_us = 150.0;
        let truth = Truth(Kind::SlowRank, Some(format!("DP{i} TP{i} EP{i}")));
        out.push(case("straggler: DP attention, a late host", ranks, style(i + 70), truth));
    }
}

/// Windows of a few steps of healthy servers: batches and contexts as random arrival leaves them, one
/// host busy with something else for some steps. One moment is no cause.
fn few_steps(out: &mut Vec<Case>) {
    for seed in 0..60u64 {
        let mut noise = generator::Noise::new(seed + 7000);
        let mut ranks = dp(4);
        let steps = 3 + (seed % 5) as usize;
        for r in &mut ranks {
            r.steps = steps;
            r.batch = noise.count(12.0).max(1.0);
            // The mean of as many contexts, each with a deviation of its own mean.
            r.context = noise.about_one(1.0 / r.batch.sqrt());
            r.prefill = if noise.unit() < 0.5 { 0.2 } else { 0.0 };
        }
        if seed % 3 > 0 {
            ranks[(seed % 4) as usize].burst = (5, 2.0 + 2.0 * noise.unit());
        }
        let style = Style { seed, annotated: seed % 2 == 0, ..Style::default() };
        out.push(Case {
            or: Some(UNTOLD),
            ..case("few steps: healthy, one host busy for a moment", ranks, style, NOTHING)
        });
    }
}

fn untellable(out: &mut Vec<Case>) {
    for i in 0..4 {
        let style = || Style { seed: i as u64, ..Style::default() };
        let mut ranks = tp(4);
        ranks.iter_mut().for_each(|r| r.steps = 2);
        ranks[i].slow = Slow::all(1.5);
        out.push(case("untellable: two steps", ranks, style(), UNTOLD));
        // At equal batches only the dense layers are slower: neither more work nor a slow GPU.
        let mut ranks = dp(4);
        ranks[i].slow = Slow { gemm: 1.6, ..Slow::NONE };
        out.push(case("untellable: DP, only dense kernels slower", ranks, style(), UNTOLD));
        // The batch is not told, the grids are not either: all slower may be either.
        let mut ranks = dp(4);
        ranks[i].slow = Slow::all(1.5);
        let blind = Style { grids: false, batch_told: false, ..style() };
        out.push(case("untellable: DP, all slower, batches unknown", ranks, blind, UNTOLD));
        // One rank only prefills, its peers only decode.
        let mut ranks = dp(4);
        ranks.iter_mut().for_each(|r| r.steps = 5);
        ranks[i].prefill = 1.0;
        out.push(case("untellable: DP, no kind of step in common", ranks, style(), UNTOLD));
        // Pipeline stages run different layers.
        let mut ranks: Vec<Rank> = (0..4).map(|j| Rank::new(format!("TP-0-PP-{j}"), None)).collect();
        ranks[i].slow = Slow::all(1.5);
        out.push(case("untellable: pipeline stages without a baseline", ranks, style(), UNTOLD));
    }
}

fn verdict_of(dir: &Path, c: &Case) -> Verdict {
    let at = |name: &str| -> PathBuf {
        let path = dir.join(name);
        std::fs::create_dir_all(&path).expect("temporary folders can be made");
        path
    };
    let now = at("now");
    write(&now, &c.ranks, &c.style);
    for gone in c.ranks.iter().filter(|r| r.steps == 0) {
        std::fs::remove_file(now.join(format!("{}-{}.trace.json", c.style.id, gone.name)))
            .expect("was written");
    }
    let mut request = CompareRequest { paths: vec![now], ..CompareRequest::default() };
    if let Some(before) = &c.baseline {
        let then = at("then");
        write(&then, before, &Style { seed: c.style.seed + 77, ..c.style.clone() });
        request.baseline = vec![then];
    }
    let compared = run(&request, &|_| {}).expect("the traces are readable");
    let (summaries, mixture) = (at("summaries"), at("mixture"));
    summarise_half(&compared, &summaries, &mixture);
    for of_summaries in [summaries, mixture] {
        let again = CompareRequest {
            paths: vec![of_summaries],
            baseline: request.baseline.clone(),
            ..CompareRequest::default()
        };
        let seen = run(&again, &|_| {}).expect("the summaries are readable");
        assert_eq!(said(&seen), said(&compared), "{} (seed {})", c.topic, c.style.seed);
    }
    compared.comparison.verdict
}

#[test]
fn the_rank_that_ran_other_kinds_of_steps_than_its_peers_is_the_one_that_is_named() {
    for odd in 0..4 {
        let mut ranks = dp(4);
        ranks.iter_mut().for_each(|r| r.steps = 5);
        ranks[odd].prefill = 1.0;
        let dir = tempfile::tempdir().expect("a temporary folder");
        let v = verdict_of(dir.path(), &case("kinds", ranks, Style::default(), UNTOLD));
        let wanted = format!("DP{odd} ran other kinds of steps than its peers");
        assert!(v.kind == Kind::InsufficientEvidence && v.sentence.contains(&wanted), "{}", v.sentence);
    }
}

#[test]
fn the_operator_that_keeps_a_slow_host_is_named_where_the_traces_have_cpu_rows() {
    let mut ranks = dp(4);
    ranks[2].host = 6.0;
    for cpu in [true, false] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let style = Style { cpu, ..Style::default() };
        let v = verdict_of(dir.path(), &case("operators", ranks.clone(), style, slow("DP", 2)));
        assert_eq!((v.kind, v.rank.map(|r| r.to_string()).as_deref()), (Kind::SlowRank, Some("DP2")));
        assert_eq!(v.operator.as_ref().map(|o| o.name.as_str()), cpu.then_some("recv_requests"), "{v:?}");
        assert_eq!(v.sentence.contains(" Most of it is in `recv_requests`: "), cpu, "{}", v.sentence);
    }
}

#[test]
fn generated_captures_are_judged_right_or_declined_never_wrong() {
    let mut cases = Vec::new();
    tensor_parallel(&mut cases);
    data_parallel(&mut cases);
    other_shapes(&mut cases);
    host_bound(&mut cases);
    stragglers(&mut cases);
    few_steps(&mut cases);
    untellable(&mut cases);
    let mut table: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
    let mut wrong = Vec::new();
    for c in &cases {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let v = verdict_of(dir.path(), c);
        let seen = Truth(v.kind, v.rank.map(|r| r.to_string()));
        let cause = v.causes.first().map_or("", |k| k.kernel.as_str());
        let kernel_right = c.kernel.is_none_or(|k| cause.contains(k));
        let column = match () {
            () if (seen == c.truth || Some(&seen) == c.or.as_ref())
                && (kernel_right || v.kind == Kind::InsufficientEvidence) =>
            {
                0
            }
            () if v.kind == Kind::InsufficientEvidence => 2,
            () => 1,
        };
        if column > 0 {
            let what = if column == 1 { "WRONG" } else { "declined" };
            let (kind, rank) = (c.truth.0.name(), c.truth.1.as_deref().unwrap_or("nobody"));
            wrong.push((
                column,
                format!(
                    "{what}: {} (seed {}): {kind} of {rank}, said: {} {:?}",
                    c.topic, c.style.seed, v.sentence, v.reasons
                ),
            ));
        }
        table.entry(c.topic).or_default()[column] += 1;
    }
    println!("{:<52} {:>6} {:>6} {:>9}", "generated captures", "right", "wrong", "declined");
    for (topic, [right, bad, declined]) in &table {
        println!("{topic:<52} {right:>6} {bad:>6} {declined:>9}");
    }
    let sum = |i: usize| table.values().map(|t| t[i]).sum::<usize>();
    println!("{:<52} {:>6} {:>6} {:>9}", "all", sum(0), sum(1), sum(2));
    wrong.iter().for_each(|w| println!("{}", w.1));
    assert!(cases.len() >= 200, "only {} cases", cases.len());
    assert_eq!(sum(1), 0, "wrong verdicts");
    assert!(sum(2) * 20 <= cases.len(), "{} of {} declined", sum(2), cases.len());
}
