//! Steps of a rank: what is admitted, prefilled, decoded, retracted and finished.

use std::cmp::Reverse;

use super::Engine;
use super::Line;
use super::rank::{Busy, FollowUp, Running};
use crate::spec::Trouble;

impl Engine<'_> {
    fn finish(&mut self, r: usize, id: usize, ctx: f64, now: f64) {
        let q = self.requests[id];
        let rank = &mut self.ranks[r];
        rank.used -= ctx - q.shared();
        rank.inflight -= 1;
        rank.tokens_in -= q.prompt + q.out;
        if let Some(session) = q.session.filter(|_| q.turns > 0) {
            let at = now + self.rng.normal(15f64.ln(), 1.0).exp();
            self.later.push(Reverse(FollowUp { at, session, ctx, turns: q.turns - 1 }));
        }
    }

    pub(super) fn end_step(&mut self, r: usize, now: f64) {
        self.ranks[r].next = f64::INFINITY;
        match self.ranks[r].busy {
            Busy::Prefill => {
                for id in std::mem::take(&mut self.ranks[r].batch) {
                    let q = self.requests[id];
                    if q.out - q.done <= 1.0 {
                        self.finish(r, id, q.prompt, now);
                    } else {
                        let ctx = q.prompt + q.done;
                        self.ranks[r].run.push(Running { id, left: q.out - q.done - 1.0, ctx });
                        self.ranks[r].ctx += ctx;
                    }
                }
            }
            Busy::Decode => self.end_decode(r, now),
            Busy::No => {}
        }
        self.ranks[r].busy = Busy::No;
    }

    fn end_decode(&mut self, r: usize, now: f64) {
        let rank = &mut self.ranks[r];
        let n = rank.run.len() as f64;
        rank.generated += n;
        rank.used += n;
        rank.ctx += n;
        rank.now.decode_tokens += n;
        rank.now.decode_steps += 1.0;
        let mut j = 0;
        while j < self.ranks[r].run.len() {
            let x = &mut self.ranks[r].run[j];
            x.left -= 1.0;
            x.ctx += 1.0;
            if x.left > 0.0 {
                j += 1;
                continue;
            }
            let x = self.ranks[r].run.swap_remove(j);
            self.ranks[r].ctx -= x.ctx;
            self.finish(r, x.id, x.ctx, now);
        }
        let kv = self.world.kv;
        let rank = &mut self.ranks[r];
        while rank.used > kv && rank.run.len() > 1 {
            let x = rank.run.pop().expect("more than one");
            let q = &mut self.requests[x.id];
            rank.used -= x.ctx - q.shared();
            rank.ctx -= x.ctx;
            q.done = x.ctx - q.prompt;
            q.cached = 0.0;
            rank.queue.push_front(x.id);
        }
        rank.steps += 1;
        rank.unpublished += 1;
        if rank.unpublished >= 15 {
            rank.unpublished = 0;
            rank.publish_loads(rank.run.len() as f64, now);
        }
        if rank.steps >= 40 {
            let throughput = rank.generated / (now - rank.last_line).max(1e-3);
            rank.loads.throughput = throughput;
            rank.metrics.throughput = throughput;
            rank.publish_metrics(rank.run.len() as f64, now);
            if now >= 0.0 {
                let (running, queue, used) = (rank.run.len() as f64, rank.queue.len() as f64, rank.used);
                self.out.lines.push(Line {
                    at: now,
                    rank: r,
                    running,
                    queue,
                    used,
                    throughput,
                    ..Line::default()
                });
            }
            rank.steps = 0;
            rank.generated = 0.0;
            rank.last_line = now;
        }
    }

    pub(super) fn start(&mut self, woke: usize, now: f64) {
        let all = if self.world.lockstep { 0..self.ranks.len() } else { woke..woke + 1 };
        if all.clone().any(|r| self.ranks[r].busy != Busy::No) {
            return;
        }
        let mut longest: f64 = 0.0;
        for r in all.clone() {
            let dt = self.start_one(r, now);
            longest = longest.max(dt);
        }
        if self.world.lockstep && longest > 0.0 {
            all.for_each(|r| self.ranks[r].next = now + longest);
        }
    }

    /// Starts what rank `r` can do and returns how long it takes; 0 if it has nothing to do.
    fn start_one(&mut self, r: usize, now: f64) -> f64 {
        let (slow, hung_until) = self.troubles_of(r, now);
        let [c0, c1, c2, p0, p1, p2, noise] = self.world.cost;
        let was = self.ranks[r].run.len();
        let batch = self.admit(r);
        let rank = &mut self.ranks[r];
        let mut dt = if batch.seqs > 0.0 {
            rank.busy = Busy::Prefill;
            let dt = (p0 + p1 * batch.new + p2 * batch.pairs) * slow;
            rank.now.admissions += batch.admitted;
            rank.now.prefill_tokens += batch.new;
            rank.now.cached_tokens += batch.cached;
            rank.now.prefill_passes += 1.0;
            rank.publish_loads(was as f64 + batch.seqs, now);
            rank.publish_metrics(was as f64, now);
            if now >= 0.0 {
                self.out.lines.push(Line {
                    at: now,
                    rank: r,
                    is_prefill: true,
                    running: was as f64,
                    queue: rank.queue.len() as f64,
                    used: rank.used,
                    throughput: batch.new / dt.max(1e-3),
                    new_seqs: batch.seqs,
                    new_tokens: batch.new,
                    cached_tokens: batch.cached,
                });
            }
            dt
        } else if was > 0 {
            rank.busy = Busy::Decode;
            (c0 + c1 * was as f64 + c2 * rank.ctx) * slow
        } else {
            if rank.idle_at.is_none() {
                rank.idle_at = Some(now);
                rank.publish_loads(0.0, now);
            }
            return 0.0;
        };
        dt *= 1.0 + noise * self.rng.normal(0.0, 1.0);
        if self.rng.unit() < 2e-4 {
            dt += 0.05 + 0.25 * self.rng.unit();
        }
        dt = dt.max(5e-4);
        if let Some(until) = hung_until {
            dt += until - now;
        }
        self.ranks[r].next = now + dt;
        dt
    }

    /// How many times slower rank `r` is at `now`, and until when it hangs.
    fn troubles_of(&self, r: usize, now: f64) -> (f64, Option<f64>) {
        let mut slow = self.world.slowness.get(r).copied().unwrap_or(1.0);
        let mut hung_until = None;
        for i in self.incidents.iter().filter(|i| i.rank == r && now >= i.from && now < i.until) {
            match i.trouble {
                Trouble::Slow { factor } if i.ramp > 0.0 => {
                    slow *= 1.0 + (factor - 1.0) * ((now - i.from) / i.ramp).min(1.0)
                }
                Trouble::Slow { factor } => slow *= factor,
                Trouble::Hung => hung_until = Some(i.until),
                _ => {}
            }
        }
        (slow, hung_until)
    }

    /// Takes as many prompts from the queue of rank `r` as fit into one batch, a prompt that was cut first.
    fn admit(&mut self, r: usize) -> PrefillBatch {
        let (chunk, kv, max_run) = (self.world.chunk, self.world.kv, self.world.max_run);
        let rank = &mut self.ranks[r];
        let was = rank.run.len();
        let mut batch = PrefillBatch::default();
        if let Some((id, left)) = rank.chunked.take() {
            let part = left.min(chunk);
            batch.new += part;
            batch.pairs += part * (self.requests[id].prompt - (left - part));
            batch.seqs += 1.0;
            if left > part {
                rank.chunked = Some((id, left - part));
            } else {
                rank.batch.push(id);
            }
        }
        while rank.chunked.is_none() && batch.new < chunk && was + rank.batch.len() < max_run {
            let Some(&id) = rank.queue.front() else { break };
            let q = self.requests[id];
            let need = q.prompt + q.done - q.shared();
            if rank.used + need + 0.2 * (q.out - q.done) > kv && was + rank.batch.len() > 0 {
                break;
            }
            rank.queue.pop_front();
            rank.used += need;
            let todo = q.prompt + q.done - q.cached;
            batch.cached += q.cached;
            batch.seqs += 1.0;
            batch.admitted += 1.0;
            if todo > chunk - batch.new + 1.0 {
                let part = chunk - batch.new;
                batch.new += part;
                batch.pairs += part * part;
                rank.chunked = Some((id, todo - part));
            } else {
                batch.new += todo;
                batch.pairs += todo * (q.prompt + q.done);
                rank.batch.push(id);
            }
        }
        batch
    }
}

/// What a prefill step computes.
#[derive(Clone, Copy, Debug, Default)]
struct PrefillBatch {
    /// Requests in it, a cut one too.
    seqs: f64,
    /// Those that came from the queue.
    admitted: f64,
    /// Tokens to compute.
    new: f64,
    /// Tokens found in the cache.
    cached: f64,
    /// Pairs of tokens that attention computes.
    pairs: f64,
}
