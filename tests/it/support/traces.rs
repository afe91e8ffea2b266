//! Traces with a known truth: a small simulated server whose ranks run layers of kernels, share a
//! batch or have their own, and meet in collectives that end together on all of them.
//!
//! The model is physics on purpose: what a slow rank costs its peers appears as their waiting,
//! not as a number written into their files.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// A reproducible source of noise (splitmix64).
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1))
    }

    /// Uniform in 0 to 1.
    pub fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A count with Poisson's law, as of requests that arrive at random.
    pub fn count(&mut self, mean: f64) -> f64 {
        let (mut left, mut n) = (self.unit(), 0.0);
        while left > (-mean).exp() {
            left *= self.unit();
            n += 1.0;
        }
        n
    }

    /// About normal, mean 1, relative deviation `sigma`, never below a fifth.
    pub fn about_one(&mut self, sigma: f64) -> f64 {
        let sum: f64 = (0..12).map(|_| self.unit()).sum::<f64>() - 6.0;
        (1.0 + sigma * sum).max(0.2)
    }
}

/// One simulated rank.
#[derive(Clone)]
pub struct Rank {
    /// `DP-2`, `TP-3`, `TP-1-DP-0`: the part of the file name.
    pub name: String,
    /// Ranks with the same number meet in collectives; `None`: in none.
    pub group: Option<u32>,
    /// Requests in its decode batches.
    pub batch: f64,
    /// Context per request, against the usual.
    pub context: f64,
    /// The share of its steps that are prefill.
    pub prefill: f64,
    /// Factors on the time of its kernels.
    pub slow: Slow,
    /// Microseconds that its host needs before it launches a layer.
    pub host_us: f64,
    /// The factor on the time that its host needs between steps.
    pub host: f64,
    /// The first steps of its window in which something else keeps its host busy, and the factor that
    /// this puts on the host's time.
    pub burst: (usize, f64),
    /// Microseconds that its host needs for each request of a batch.
    pub request_us: f64,
    /// Microseconds that its host needs for a prefill step beyond those of a decode step.
    pub prefill_us: f64,
    /// Microseconds for which its host runs, and those for which it is stopped after that, again and again.
    pub stopped: Option<(f64, f64)>,
    /// Its clock, microseconds ahead.
    pub clock_us: f64,
    /// Steps that its window misses at the start, and how many it holds.
    pub skip: usize,
    pub steps: usize,
    /// It has a file without any kernel.
    pub idle: bool,
}

/// Factors on kernel times.
#[derive(Clone, Copy)]
pub struct Slow {
    pub attention: f64,
    pub gemm: f64,
    pub moe: f64,
    pub rest: f64,
}

impl Slow {
    pub const NONE: Self = Self { attention: 1.0, gemm: 1.0, moe: 1.0, rest: 1.0 };

    pub const fn all(f: f64) -> Self {
        Self { attention: f, gemm: f, moe: f, rest: f }
    }
}

/// How the files are written.
#[derive(Clone)]
pub struct Style {
    /// Step annotations.
    pub annotated: bool,
    /// Whether annotations tell the batch.
    pub batch_told: bool,
    /// The collective's name.
    pub collective: &'static str,
    /// Sequence numbers in the collectives' arguments.
    pub numbered: bool,
    /// Grids in the arguments.
    pub grids: bool,
    /// Numbers of launches in the arguments.
    pub launches: bool,
    /// Relative noise of every kernel.
    pub noise: f64,
    pub seed: u64,
    /// CPU rows: the scheduler's loop, and inside of it the call that waits where a host is slow.
    pub cpu: bool,
    /// Layers of a step.
    pub layers: usize,
    /// Experts instead of a second dense layer.
    pub moe: bool,
    /// `world_size` in the metadata.
    pub world: u32,
    /// Capture id in the file names.
    pub id: &'static str,
}

impl Default for Style {
    fn default() -> Self {
        Self {
            annotated: true,
            batch_told: true,
            collective: "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
            numbered: false,
            grids: true,
            launches: true,
            noise: 0.03,
            seed: 1,
            cpu: false,
            layers: 4,
            moe: false,
            world: 1,
            id: "1795490401.123456",
        }
    }
}

impl Rank {
    pub fn new(name: impl Into<String>, group: Option<u32>) -> Self {
        Self {
            name: name.into(),
            group,
            batch: 8.0,
            context: 1.0,
            prefill: 0.0,
            slow: Slow::NONE,
            host_us: 1.0,
            host: 1.0,
            burst: (0, 1.0),
            request_us: 0.0,
            prefill_us: 0.0,
            stopped: None,
            clock_us: 0.0,
            skip: 0,
            steps: 12,
            idle: false,
        }
    }
}

struct Kernel {
    name: &'static str,
    us: f64,
    blocks: u32,
}

/// What a layer of this rank runs, in order; the collective comes after the 4th and the last.
fn layer(r: &Rank, style: &Style, extend: bool) -> Vec<Kernel> {
    let tokens = if extend { 300.0 } else { r.batch };
    let wide = |per: f64| (tokens * per).ceil().max(1.0) as u32;
    let dense = |us: f64| us * r.slow.gemm * (1.0 + tokens / 600.0);
    let (attention, attention_us) = if extend {
        ("_fwd_kernel", 30.0 + 0.05 * tokens)
    } else {
        ("_fwd_grouped_kernel_stage1", 9.0 + 0.9 * r.batch * r.context)
    };
    let kernel = |name, us, blocks| Kernel { name, us, blocks };
    let experts = if style.moe {
        kernel("fused_moe_kernel", 40.0 * r.slow.moe * (1.0 + tokens / 400.0), wide(4.0))
    } else {
        kernel("nvjet_tst_128x128_64x6_2x1_v_bz_coopA_TNT", dense(28.0), 132)
    };
    vec![
        kernel(
            "void flashinfer::norm::RMSNormKernel<8u, __nv_bfloat16>(__nv_bfloat16*)",
            3.0 * r.slow.rest,
            wide(1.0),
        ),
        kernel("nvjet_tst_128x64_64x8_1x2_h_bz_coopB_TNT", dense(14.0), 132),
        kernel(attention, attention_us * r.slow.attention, wide(8.0)),
        kernel("nvjet_tst_64x32_64x16_4x1_v_bz_splitK_TNT", dense(9.0), 132),
        kernel("void act_and_mul_kernel<__nv_bfloat16>(__nv_bfloat16*)", 4.0 * r.slow.rest, wide(2.0)),
        experts,
    ]
}

/// One GPU row of a rank, microseconds.
struct Row {
    name: String,
    start: f64,
    dur: f64,
    blocks: u32,
    stream: u32,
    number: Option<usize>,
}

/// Simulates the ranks and writes a file for each of them into `dir`.
pub fn write(dir: &Path, ranks: &[Rank], style: &Style) {
    let total = ranks.iter().map(|r| r.skip + r.steps).max().unwrap_or(0);
    let mut noise = Noise::new(style.seed);
    let mut now = vec![0.0f64; ranks.len()];
    let mut rows: Vec<Vec<Row>> = ranks.iter().map(|_| Vec::new()).collect();
    let mut marks: Vec<Vec<(f64, f64, String)>> = ranks.iter().map(|_| Vec::new()).collect();
    let mut operators: Vec<Vec<(&'static str, f64, f64)>> = ranks.iter().map(|_| Vec::new()).collect();
    let mut number = 0;
    for step in 0..total {
        let extend: Vec<bool> = ranks
            .iter()
            .map(|r| ((step + 1) as f64 * r.prefill).floor() > (step as f64 * r.prefill).floor())
            .collect();
        let jitter = noise.unit() * 300.0;
        meet(ranks, &mut now);
        for (i, (at, r)) in now.iter_mut().zip(ranks).enumerate() {
            let burst = if (r.skip..r.skip + r.burst.0).contains(&step) { r.burst.1 } else { 1.0 };
            let usual = 700.0 + jitter + noise.unit() * 20.0;
            let begun = *at;
            let prefill = if extend[i] { r.prefill_us } else { 0.0 };
            *at = awake(r, *at + usual * r.host * burst + r.request_us * r.batch + prefill);
            if style.cpu && kept(r, step) {
                let waits = 0.02 * usual + (r.host - 1.0) * usual;
                operators[i].push(("scheduler.event_loop", begun, *at - begun));
                operators[i].push(("recv_requests", begun, waits));
            }
        }
        let begun = now.clone();
        for _ in 0..style.layers {
            let layers: Vec<Vec<Kernel>> =
                (0..ranks.len()).map(|i| layer(&ranks[i], style, extend[i])).collect();
            for k in 0..layers[0].len() {
                for (i, r) in ranks.iter().enumerate() {
                    let host = if k == 0 { r.host_us } else { 0.0 };
                    run(r, step, &layers[i][k], style, &mut noise, host, &mut now[i], &mut rows[i]);
                }
                if k == 3 || k + 1 == layers[0].len() {
                    collective(ranks, step, style, &mut noise, &mut now, &mut rows, number);
                    number += 1;
                }
            }
        }
        for (i, r) in ranks.iter().enumerate() {
            let sampling = Kernel {
                name: "void at::native::(anonymous namespace)::cunn_SoftMaxForward<4, float>(float*)",
                us: (8.0 + 0.2 * r.batch) * r.slow.rest,
                blocks: r.batch.ceil() as u32,
            };
            let end = now[i];
            run(r, step, &sampling, style, &mut noise, 0.0, &mut now[i], &mut rows[i]);
            let sort = Kernel { name: "my_topk_renorm", us: 6.0 * r.slow.rest, blocks: 1 };
            run(r, step, &sort, style, &mut noise, 0.0, &mut now[i], &mut rows[i]);
            if style.annotated && kept(r, step) {
                let bs = r.batch.round();
                let text = match (extend[i], style.batch_told) {
                    (true, true) => "step[EXTEND bs=1 toks=300]".to_owned(),
                    (false, true) => format!("step[DECODE bs={bs}]"),
                    (true, false) => "step[EXTEND]".to_owned(),
                    (false, false) => "step[DECODE]".to_owned(),
                };
                marks[i].push((begun[i], end, text));
            }
        }
    }
    for (i, r) in ranks.iter().enumerate() {
        let text = file(r, i, style, &rows[i], &marks[i], &operators[i]);
        fs::write(dir.join(format!("{}-{}.trace.json", style.id, r.name)), text)
            .expect("the folder is writable");
    }
}

fn kept(r: &Rank, step: usize) -> bool {
    !r.idle && step >= r.skip && step < r.skip + r.steps
}

/// When the host, which wants to go on at `at`, runs again.
fn awake(r: &Rank, at: f64) -> f64 {
    let Some((runs, stands)) = r.stopped else { return at };
    let since = at % (runs + stands);
    if since < runs { at } else { at + runs + stands - since }
}

/// Ranks of a group begin a step together: they share the scheduler.
fn meet(ranks: &[Rank], now: &mut [f64]) {
    for i in 0..ranks.len() {
        let Some(group) = ranks[i].group else { continue };
        let last =
            (0..ranks.len()).filter(|&j| ranks[j].group == Some(group)).map(|j| now[j]).fold(0.0, f64::max);
        now[i] = last;
    }
}

#[allow(clippy::too_many_arguments)]
fn run(
    r: &Rank,
    step: usize,
    k: &Kernel,
    style: &Style,
    noise: &mut Noise,
    host: f64,
    now: &mut f64,
    rows: &mut Vec<Row>,
) {
    let dur = k.us * noise.about_one(style.noise);
    *now = awake(r, *now + host);
    if kept(r, step) {
        rows.push(Row { name: k.name.into(), start: *now, dur, blocks: k.blocks, stream: 7, number: None });
    }
    *now += dur + 1.1;
}

fn collective(
    ranks: &[Rank],
    step: usize,
    style: &Style,
    noise: &mut Noise,
    now: &mut [f64],
    rows: &mut [Vec<Row>],
    number: usize,
) {
    let transfer = 12.0 * noise.about_one(style.noise);
    let arrived = now.to_vec();
    for (i, r) in ranks.iter().enumerate() {
        let Some(group) = r.group else { continue };
        let last = (0..ranks.len())
            .filter(|&j| ranks[j].group == Some(group))
            .map(|j| arrived[j])
            .fold(0.0, f64::max);
        let end = last + transfer;
        if kept(r, step) {
            let row = Row {
                name: style.collective.into(),
                start: arrived[i],
                dur: end - arrived[i],
                blocks: 8,
                stream: 20,
                number: style.numbered.then_some(number),
            };
            rows[i].push(row);
        }
        now[i] = end + 1.1;
    }
}

fn file(
    r: &Rank,
    index: usize,
    style: &Style,
    rows: &[Row],
    marks: &[(f64, f64, String)],
    operators: &[(&'static str, f64, f64)],
) -> String {
    let mut out = format!(
        "{{\"schemaVersion\": 1, \"distributedInfo\": {{\"backend\": \"nccl\", \"rank\": {}, \"world_size\": {}}}, \
         \"baseTimeNanoseconds\": 1790000000000000000, \"traceEvents\": [\n",
        if style.world > 1 { index } else { 0 },
        style.world
    );
    let micros = |us: f64| format!("{:.3}", 5_432_109_876_000.0 / 1e3 + us + r.clock_us);
    for (n, row) in rows.iter().enumerate() {
        let _ = write!(
            out,
            "{{\"ph\":\"X\",\"cat\":\"kernel\",\"name\":\"{}\",\"pid\":{index},\"tid\":{},\"ts\":{},\"dur\":{:.3},\"args\":{{\"stream\":{}",
            row.name,
            row.stream,
            micros(row.start),
            row.dur,
            row.stream
        );
        if style.launches {
            let _ = write!(out, ",\"correlation\": {n}");
        }
        if style.grids {
            let _ = write!(out, ",\"grid\":[{},1,1]", row.blocks);
        }
        if let Some(n) = row.number {
            let _ = write!(out, ",\"Process Group Name\":\"0\",\"Seq\":{n}");
        }
        out.push_str("}},\n");
    }
    for (name, start, dur) in operators {
        let _ = writeln!(
            out,
            "{{\"ph\":\"X\",\"cat\":\"cpu_op\",\"name\":\"{name}\",\"pid\":1,\"tid\":1,\"ts\":{},\"dur\":{dur:.3}}},",
            micros(*start)
        );
    }
    for (start, end, text) in marks {
        let _ = writeln!(
            out,
            "{{\"args\":{{}},\"name\":\"{text}\",\"dur\":{:.3},\"ts\":\"{}\",\"cat\":\"gpu_user_annotation\",\"ph\":\"X\",\"pid\":{index},\"tid\":7}},",
            end - start,
            micros(*start)
        );
    }
    out.push_str("{\"ph\":\"i\",\"name\":\"Record Window End\",\"ts\":0}\n]}\n");
    out
}
