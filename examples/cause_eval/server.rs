//! A model of a server's ranks: a router, queues, chunked prefill before decode, continuous batching, a
//! KV cache with admission and retraction, a prefix cache. What it shows is text: log lines and pages.

use std::collections::VecDeque;
use std::fmt::Write as _;

use fastrand::Rng;

/// What is done to one rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Injected {
    RouterShare(f64),
    StickyKey(f64),
    LongPrompts(f64),
    CachedPrompts,
    SlowGpu(f64),
    StarvedHost(f64),
    Retraction(f64),
    Starved,
    Stuck,
    DeadPeer,
    /// Its cgroup lets its scheduler run for this share of the time.
    Throttled(f64),
    /// Others run on its scheduler's CPU: it waits so many seconds a step.
    Crowded(f64),
    Nothing,
}

/// How requests are placed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Router {
    RoundRobin,
    Random,
    Least,
}

/// A server and its traffic.
#[derive(Clone, Copy, Debug)]
pub struct World {
    pub ranks: usize,
    pub router: Router,
    /// Requests a second and rank.
    pub rate: f64,
}

/// What it shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shows {
    Log,
    Page,
    /// A page without the device timer and the scheduler's seconds.
    Bare,
    /// The same, and what the machine says of the processes and GPUs.
    Machine,
}

const KV: f64 = 200_000.0;
const CHUNK: f64 = 8192.0;
const MOST_RUNNING: usize = 256;
const PREFIX: f64 = 6000.0;
const NOISE: f64 = 0.05;
/// 2026-11-24 03:46:40 UTC.
pub const EPOCH: f64 = 1_795_492_000.0;

#[derive(Clone, Copy)]
struct Request {
    prompt: f64,
    cached: f64,
    left: f64,
    done: f64,
}

#[derive(Default)]
struct Rank {
    queue: VecDeque<Request>,
    run: Vec<Request>,
    batch: Vec<Request>,
    chunked: Option<(Request, f64)>,
    next: f64,
    is_decoding: bool,
    used: f64,
    steps: u32,
    generated: f64,
    line_at: f64,
    // What a page shows.
    gauges: (usize, usize),
    throughput: f64,
    admitted: f64,
    computed: f64,
    from_cache: f64,
    decoded: f64,
    retracted: f64,
    gpu_s: f64,
    cpu_s: f64,
    // What the machine says.
    delay_s: f64,
    throttled_s: f64,
}

/// A server in simulated time.
pub struct Server {
    world: World,
    shows: Shows,
    injected: Injected,
    rank: usize,
    from: f64,
    rng: Rng,
    ranks: Vec<Rank>,
    turn: usize,
    next_arrival: f64,
    now: f64,
}

fn normal(rng: &mut Rng) -> f64 {
    (-2.0 * (1.0 - rng.f64()).ln()).sqrt() * (std::f64::consts::TAU * rng.f64()).cos()
}

impl Server {
    pub fn new(world: World, shows: Shows, injected: Injected, rank: usize, from: f64, seed: u64) -> Self {
        let ranks = (0..world.ranks).map(|_| Rank { next: f64::INFINITY, ..Rank::default() }).collect();
        let rng = Rng::with_seed(seed);
        Self { world, shows, injected, rank, from, rng, ranks, turn: 0, next_arrival: 0.0, now: 0.0 }
    }

    fn holds(&self, rank: usize) -> bool {
        rank == self.rank && self.now >= self.from
    }

    /// Runs until `until` and gives the lines that were printed, each with its time.
    pub fn run(&mut self, until: f64) -> Vec<(f64, String)> {
        let mut lines = Vec::new();
        loop {
            let (first, at) = self.ranks.iter().enumerate().map(|(i, r)| (i, r.next)).fold(
                (usize::MAX, self.next_arrival),
                |best, this| if this.1 < best.1 { this } else { best },
            );
            if at > until {
                self.now = until;
                return lines;
            }
            self.now = at;
            if first == usize::MAX {
                let rate = self.world.rate * self.world.ranks as f64;
                self.next_arrival = at - (1.0 - self.rng.f64()).ln() / rate;
                self.arrive(&mut lines);
            } else {
                self.end_step(first, &mut lines);
                self.start(first, &mut lines);
            }
        }
    }

    fn arrive(&mut self, lines: &mut Vec<(f64, String)>) {
        let is_on = self.now >= self.from;
        let mut prompt = (1500f64.ln() + 0.9 * normal(&mut self.rng)).exp().clamp(8.0, 16_000.0);
        let left = (180f64.ln() + 0.8 * normal(&mut self.rng)).exp().clamp(2.0, 2000.0).floor();
        let mut cached = if self.rng.f64() < 0.8 { prompt * 0.8 } else { 0.0 };
        let chance = self.rng.f64();
        let mut to = self.route();
        match self.injected {
            Injected::RouterShare(share) if is_on && chance < share => to = self.rank,
            Injected::StickyKey(share) if is_on && chance < share => {
                to = self.rank;
                (prompt, cached) = (PREFIX + 0.3 * prompt, PREFIX);
            }
            Injected::LongPrompts(factor) if is_on && to == self.rank => {
                (prompt, cached) = ((prompt * factor).min(30_000.0), cached * factor);
            }
            Injected::CachedPrompts if is_on && to == self.rank => cached = 0.0,
            _ => {}
        }
        let cached = cached.min(prompt - 1.0).max(0.0).floor();
        self.ranks[to].queue.push_back(Request { prompt: prompt.floor(), cached, left, done: 0.0 });
        if self.ranks[to].next == f64::INFINITY {
            self.start(to, lines);
        }
    }

    fn route(&mut self) -> usize {
        let is_out = |s: &Self, i| s.holds(i) && matches!(s.injected, Injected::Starved | Injected::DeadPeer);
        loop {
            let to = match self.world.router {
                Router::RoundRobin => {
                    self.turn = (self.turn + 1) % self.world.ranks;
                    self.turn
                }
                Router::Random => self.rng.usize(..self.world.ranks),
                Router::Least => {
                    let load = |r: &Rank| r.queue.len() + r.run.len() + r.batch.len();
                    let jitter = self.rng.usize(..self.world.ranks);
                    let open = (0..self.world.ranks).filter(|i| !is_out(self, *i));
                    open.min_by_key(|i| (load(&self.ranks[*i]), (i + jitter) % self.world.ranks)).unwrap_or(0)
                }
            };
            if !is_out(self, to) {
                return to;
            }
        }
    }

    fn room(&self, rank: usize) -> f64 {
        match self.injected {
            Injected::Retraction(left) if self.holds(rank) => KV * left,
            _ => KV,
        }
    }

    fn end_step(&mut self, at: usize, lines: &mut Vec<(f64, String)>) {
        let (now, room) = (self.now, self.room(at));
        let rank = &mut self.ranks[at];
        rank.next = f64::INFINITY;
        if !rank.is_decoding {
            let batch = std::mem::take(&mut rank.batch);
            rank.run.extend(batch);
            return;
        }
        let count = rank.run.len() as f64;
        (rank.generated, rank.decoded, rank.used) =
            (rank.generated + count, rank.decoded + count, rank.used + count);
        for request in &mut rank.run {
            (request.left, request.done) = (request.left - 1.0, request.done + 1.0);
        }
        let freed: f64 = rank.run.iter().filter(|r| r.left < 1.0).map(|r| r.prompt + r.done).sum();
        rank.run.retain(|r| r.left >= 1.0);
        rank.used -= freed;
        while rank.used > room && rank.run.len() > 1 {
            let mut last = rank.run.pop().expect("more than one");
            rank.used -= last.prompt + last.done;
            (last.prompt, last.cached, last.done) = (last.prompt + last.done, 0.0, 0.0);
            rank.retracted += 1.0;
            rank.queue.push_front(last);
        }
        rank.steps += 1;
        if rank.steps >= 40 {
            rank.throughput = rank.generated / (now - rank.line_at).max(1e-3);
            (rank.steps, rank.generated, rank.line_at) = (0, 0.0, now);
            rank.gauges = (rank.run.len(), rank.queue.len());
            let (running, queue, used, speed) =
                (rank.run.len(), rank.queue.len(), rank.used, rank.throughput);
            let usage = (used + KV - room) / KV;
            let text = format!(
                "Decode batch, #running-req: {running}, #token: {used:.0}, token usage: {usage:.2}, cuda graph: True, \
                 gen throughput (token/s): {speed:.2}, #queue-req: {queue}"
            );
            lines.push((now, self.line(at, &text)));
        }
    }

    fn line(&self, rank: usize, text: &str) -> String {
        let at = jiff::Timestamp::from_second((EPOCH + self.now) as i64).expect("a time of this century");
        format!("[{} DP{rank} TP0] {text}\n", at.strftime("%Y-%m-%d %H:%M:%S"))
    }

    fn start(&mut self, at: usize, lines: &mut Vec<(f64, String)>) {
        let (now, room) = (self.now, self.room(at));
        if self.holds(at) && matches!(self.injected, Injected::Stuck | Injected::DeadPeer) {
            self.ranks[at].next = f64::INFINITY;
            if self.injected == Injected::DeadPeer {
                self.ranks[at].queue.clear();
            } else {
                self.ranks[at].next = now + 1e6;
            }
            return;
        }
        let rank = &mut self.ranks[at];
        let was = rank.run.len();
        let (mut new, mut seqs, mut cached, mut pairs) = (0.0, 0u32, 0.0, 0.0);
        if let Some((request, left)) = rank.chunked.take() {
            let part = left.min(CHUNK);
            (new, pairs, seqs) = (part, part * request.prompt, 1);
            if left > part { rank.chunked = Some((request, left - part)) } else { rank.batch.push(request) }
        }
        while rank.chunked.is_none() && new < CHUNK && was + rank.batch.len() < MOST_RUNNING {
            let Some(request) = rank.queue.front().copied() else { break };
            if rank.used + request.prompt + 0.2 * request.left > room && was + rank.batch.len() > 0 {
                break;
            }
            rank.queue.pop_front();
            rank.used += request.prompt;
            let todo = request.prompt - request.cached;
            (seqs, cached, rank.admitted) = (seqs + 1, cached + request.cached, rank.admitted + 1.0);
            let part = todo.min(CHUNK - new);
            (new, pairs) = (new + part, pairs + part * request.prompt);
            if todo > part { rank.chunked = Some((request, todo - part)) } else { rank.batch.push(request) }
        }
        let mut gpu = if seqs > 0 {
            rank.is_decoding = false;
            (rank.computed, rank.from_cache) = (rank.computed + new, rank.from_cache + cached);
            rank.gauges = (was, rank.queue.len());
            0.010 + 4e-5 * new + 1e-10 * pairs
        } else if was > 0 {
            rank.is_decoding = true;
            0.008 + 3e-5 * was as f64 + 2e-8 * rank.used
        } else {
            rank.gauges = (0, 0);
            return;
        };
        gpu *= 1.0 + NOISE * normal(&mut self.rng);
        let (mut host, mut cpu) = (0.001, 0.9);
        let (mut waits, mut throttled) = (0.04 * gpu * self.rng.f64(), 0.0);
        if self.holds(at) {
            match self.injected {
                Injected::SlowGpu(factor) => gpu *= factor,
                Injected::StarvedHost(wait) | Injected::Crowded(wait) => {
                    (host, cpu) = (wait * (0.7 + 0.6 * self.rng.f64()), 0.45);
                    waits = host;
                }
                Injected::Throttled(share) => {
                    throttled = (gpu + host) * (1.0 / share - 1.0);
                    (host, cpu) = (host + throttled, 0.9 * share);
                }
                _ => {}
            }
        }
        let rank = &mut self.ranks[at];
        let took = (gpu + host).max(1e-3);
        (rank.gpu_s, rank.cpu_s) = (rank.gpu_s + gpu, rank.cpu_s + cpu * took);
        (rank.delay_s, rank.throttled_s) = (rank.delay_s + waits, rank.throttled_s + throttled);
        rank.next = now + took;
        if seqs > 0 {
            let usage = (rank.used + KV - room) / KV;
            let queue = rank.queue.len();
            let text = format!(
                "Prefill batch, #new-seq: {seqs}, #new-token: {new:.0}, #cached-token: {cached:.0}, token usage: {usage:.2}, \
                 #running-req: {was}, #queue-req: {queue}, "
            );
            lines.push((now, self.line(at, &text)));
        }
    }

    /// What the machine says of each rank: seconds waited for a CPU, seconds throttled, the GPU's clock.
    pub fn machine(&self) -> Vec<(f64, f64, f64)> {
        let of = |(i, r): (usize, &Rank)| {
            let slower = match self.injected {
                Injected::SlowGpu(factor) if self.holds(i) => factor,
                _ => 1.0,
            };
            (r.delay_s, r.throttled_s, 1980.0 / slower)
        };
        self.ranks.iter().enumerate().map(of).collect()
    }

    /// The metrics page as of now.
    pub fn page(&mut self) -> String {
        let mut text = String::new();
        for i in 0..self.ranks.len() {
            if self.holds(i) && self.injected == Injected::DeadPeer {
                continue;
            }
            let room = self.room(i);
            let r = &self.ranks[i];
            let usage = (r.used + KV - room) / KV;
            let all = [
                ("num_running_reqs", "", r.gauges.0 as f64),
                ("num_queue_reqs", "", r.gauges.1 as f64),
                ("token_usage", "", usage),
                ("num_used_tokens", "", r.used),
                ("gen_throughput", "", r.throughput),
                ("queue_time_seconds_count", "", r.admitted),
                ("realtime_tokens_total", ",mode=\"prefill_compute\"", r.computed),
                ("realtime_tokens_total", ",mode=\"prefill_cache\"", r.from_cache),
                ("realtime_tokens_total", ",mode=\"decode\"", r.decoded),
                ("num_retracted_requests_total", "", r.retracted),
                ("forward_execution_seconds_total", ",category=\"forward\"", r.gpu_s),
                ("scheduler_process_cpu_seconds_total", "", r.cpu_s),
            ];
            let shown = if matches!(self.shows, Shows::Bare | Shows::Machine) { 10 } else { 12 };
            for (name, more, value) in &all[..shown] {
                let _ =
                    writeln!(text, "sglang:{name}{{dp_rank=\"{i}\",engine_type=\"unified\"{more}}} {value}");
            }
        }
        text
    }
}
