//! A discrete-event model of an LLM server's ranks, after `bench/worlds/engine.py`: FIFO queue, prefill
//! before decode, chunked prefill, continuous batching, a KV cache with admission and retraction,
//! prefix caches of sessions, seven routers. An event is an arrival or the end of a rank's step.

mod rank;
mod route;
mod step;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

pub use rank::{Line, Outcome, Page};

use crate::arrivals::{Arrival, arrivals};
use crate::rng::Rng;
use crate::spec::{Incident, Trouble, World};
use rank::{FollowUp, HOT_PREFIX, Rank, Request, START};

struct Engine<'a> {
    world: &'a World,
    incidents: &'a [Incident],
    rng: Rng,
    weights: Vec<f64>,
    ranks: Vec<Rank>,
    requests: Vec<Request>,
    homes: Vec<Option<usize>>,
    later: BinaryHeap<Reverse<FollowUp>>,
    out: Outcome,
}

/// Simulates `seconds` of `world` (after a minute to fill it).
pub fn simulate(world: &World, seed: u64, seconds: usize, incidents: &[Incident]) -> Outcome {
    let mut rng = Rng::new(seed);
    let list = arrivals(world, &mut rng, START, seconds as f64);
    let sum: f64 = if world.weights.is_empty() { world.ranks as f64 } else { world.weights.iter().sum() };
    let weights = (0..world.ranks).map(|r| world.weights.get(r).copied().unwrap_or(1.0) / sum).collect();
    let ranks = (0..world.ranks).map(|_| Rank::new()).collect();
    let mut e = Engine {
        world,
        incidents,
        rng,
        weights,
        ranks,
        requests: Vec::new(),
        homes: Vec::new(),
        later: BinaryHeap::new(),
        out: Outcome::default(),
    };
    e.run(&list, seconds);
    e.out
}

impl Engine<'_> {
    fn run(&mut self, list: &[Arrival], seconds: usize) {
        let end = seconds as f64;
        let (mut next_arrival, mut sampled) = (0, 0usize);
        loop {
            let (mut t, mut what) = (end + 1.0, None);
            if let Some(a) = list.get(next_arrival)
                && a.at < t
            {
                (t, what) = (a.at, Some(usize::MAX));
            }
            if let Some(Reverse(f)) = self.later.peek()
                && f.at < t
            {
                (t, what) = (f.at, Some(usize::MAX - 1));
            }
            let looked = if self.world.lockstep { 1 } else { self.ranks.len() };
            for (r, rank) in self.ranks[..looked].iter().enumerate() {
                if rank.next < t {
                    (t, what) = (rank.next, Some(r));
                }
            }
            while sampled < seconds && sampled as f64 + 1.0 <= t {
                self.sample(sampled as f64 + 1.0);
                sampled += 1;
            }
            let Some(what) = what.filter(|_| t <= end) else { return };
            let woke = if what >= usize::MAX - 1 {
                let dest = if what == usize::MAX {
                    let a = list[next_arrival];
                    next_arrival += 1;
                    self.arrive_new(a)
                } else {
                    self.arrive_again()
                };
                self.ranks[dest].idle_at = None;
                dest
            } else {
                if self.world.lockstep {
                    (0..self.ranks.len()).for_each(|r| self.end_step(r, t));
                } else {
                    self.end_step(what, t);
                }
                what
            };
            self.start(woke, t);
        }
    }

    fn sample(&mut self, ts: f64) {
        for rank in &mut self.ranks {
            if rank.idle_at.is_some_and(|i| ts - i > 1.0) && !self.world.lockstep {
                rank.metrics.running = 0.0;
                rank.metrics.waiting = 0.0;
                rank.metrics.used = rank.used;
                rank.metrics.throughput = 0.0;
            }
        }
        let chunked = |r: &Rank| (r.chunked.is_some() && r.batch.is_empty()) as usize;
        self.out.truth.push(
            self.ranks
                .iter()
                .map(|r| ((r.run.len() + r.batch.len() + chunked(r)) as f64, r.queue.len() as f64))
                .collect(),
        );
        self.out.loads.push(self.ranks.iter().map(|r| r.loads).collect());
        self.out.metrics.push(self.ranks.iter().map(|r| r.metrics).collect());
    }

    fn arrive_new(&mut self, a: Arrival) -> usize {
        let (mut session, mut turns) = (None, 0);
        if self.world.turns > 1.0 {
            session = Some(self.homes.len());
            self.homes.push(None);
            while self.rng.unit() > 1.0 / self.world.turns && turns < 40 {
                turns += 1;
            }
        }
        self.place(a.at, a.prompt, a.output, session, turns, 0.0)
    }

    fn arrive_again(&mut self) -> usize {
        let Reverse(f) = self.later.pop().expect("peeked");
        let prompt = f.ctx + self.rng.normal(120f64.ln(), 0.9).exp();
        let out = (1.0 + self.rng.normal(200f64.ln(), 0.9).exp()).min(4000.0);
        self.place(f.at, prompt, out, Some(f.session), f.turns, f.ctx)
    }

    fn place(
        &mut self,
        now: f64,
        prompt: f64,
        out: f64,
        session: Option<usize>,
        turns: u32,
        prev: f64,
    ) -> usize {
        let mut prompt = prompt.min(self.world.kv * 0.8);
        let (mut dest, mut hot, mut excluded) = (None, false, None);
        for k in 0..self.incidents.len() {
            let i = self.incidents[k];
            if now < i.from || now >= i.until {
                continue;
            }
            let grown = if i.ramp > 0.0 { ((now - i.from) / i.ramp).min(1.0) } else { 1.0 };
            match i.trouble {
                Trouble::Redirect { share } if dest.is_none() && self.rng.unit() < share * grown => {
                    dest = Some(i.rank)
                }
                Trouble::Hot { share } if dest.is_none() && self.rng.unit() < share * grown => {
                    dest = Some(i.rank);
                    hot = true;
                    prompt = HOT_PREFIX + (prompt * 0.3).min(2000.0);
                }
                Trouble::Exclude => excluded = Some(i.rank),
                Trouble::Oscillate { share, other, period }
                    if dest.is_none() && self.rng.unit() < share * grown =>
                {
                    dest = Some(if ((now - i.from) / period) as i64 % 2 == 0 { i.rank } else { other });
                }
                _ => {}
            }
        }
        let dest = dest.unwrap_or_else(|| self.route(session, prev / prompt, excluded));
        if let Some(i) = self.incidents.iter().find(|i| i.rank == dest && now >= i.from && now < i.until)
            && let Trouble::Long { factor } = i.trouble
        {
            prompt = (prompt * factor).min(self.world.kv * 0.3);
        }
        let home = session.and_then(|s| self.homes[s]);
        let cached = if hot {
            HOT_PREFIX
        } else if home == Some(dest) {
            prev
        } else {
            0.0
        };
        self.ranks[dest].tree += prompt - cached;
        if let Some(s) = session {
            self.homes[s] = Some(dest);
        }
        let id = self.requests.len();
        self.requests.push(Request {
            prompt,
            cached: cached.min(prompt - 1.0),
            out,
            done: 0.0,
            session,
            turns,
            hot,
        });
        let rank = &mut self.ranks[dest];
        rank.inflight += 1;
        rank.tokens_in += prompt + out;
        rank.queue.push_back(id);
        dest
    }
}
