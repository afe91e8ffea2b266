//! From readings to factors: what one rank's lines, gauges or counters say about arrivals and about the
//! work of a stretch of time.
//!
//! Arrivals are admissions plus the growth of the queue, because in overload a rank admits what it
//! finishes, not what it is sent. Where admissions are not told, they follow from conservation:
//! `arrivals = growth of (running + waiting) + finished`, and what is finished from the tokens generated
//! (`tokens / tokens a request`, see [`crate::factor::turnover`]).

use crate::factor::clock::{FEATURES, Features};
use crate::factor::observation::{Counters, Decode, Gauges, Prefill};

/// A stretch between two reports that is longer says nothing, in seconds: a pause, a lost source.
const LONGEST_STRETCH: f64 = 30.0;
/// A batch of prompts takes no longer, in seconds: who came since the one before came between the two.
const LONGEST_BATCH: f64 = 1.0;
/// So few running requests may all end between two reports, and the rank idle unseen.
const SURELY_BUSY: f64 = 2.0;
/// From so many running requests on, silence is not idleness: the chance that all end within one report.
const SURELY_NOT_DONE: f64 = 6.0;

/// From this share of its KV cache on a rank may put running requests back into its queue.
const FULL: f64 = 0.95;

/// So many batches of the same size are no chance, and a prompt has no more of them before its rest, on average.
const LEAST_CHUNKS: u32 = 3;
const MOST_CHUNKS: u32 = 16;
/// After so many batches the older half is forgotten.
const MOST_BATCHES: u32 = 512;

/// How fast the usual number of steps between two reports that were read is learned, a report (the mean of the first).
const STEPS_GAIN: f64 = 0.02;
/// Without another report tokens are counted for so many times as many steps: one that tells the same is not seen.
const MOST_STEPS: f64 = 1.5;

/// A stretch of time in which a rank was busy, and what it did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stretch {
    /// From when.
    pub from: f64,
    /// Until when.
    pub to: f64,
    /// What was done.
    pub did: Features,
}

/// Requests that came, spread evenly over a stretch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Came {
    /// From when.
    pub from: f64,
    /// Until when.
    pub to: f64,
    /// How many; fractional or slightly negative where inferred.
    pub requests: f64,
    /// Tokens that were generated meanwhile, where the number rests on them.
    pub tokens: f64,
}

/// What admitted requests brought, as logarithms of tokens a request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Brought {
    /// Requests.
    pub admitted: f64,
    /// Those that each of them found on the rank, running or waiting; 0 where that is not told.
    pub met: f64,
    /// How many are told together, as one sum of tokens; `None` where running requests stand for them.
    pub together: Option<f64>,
    /// Logarithm of prompt tokens a request, cached or not.
    pub prompt: f64,
    /// Logarithm of those that were computed.
    pub computed: f64,
}

/// What a reading of one rank means.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Meaning {
    /// Requests that came to it.
    pub came: Option<Came>,
    /// A finished stretch of work.
    pub stretch: Option<Stretch>,
    /// What the admitted requests brought.
    pub work: Option<Brought>,
    /// Prompts that were computed, as part of a stretch that is told later.
    pub prompts: Option<Features>,
    /// Whether the rank has no room, so that requests which it puts back into its queue may count as new ones.
    pub is_full: bool,
}

/// What was last read of one rank's log lines.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lines {
    queue: Option<f64>,
    running: f64,
    kv: f64,
    /// When the stretch under way began, if it is known and the rank was busy ever since.
    since: Option<f64>,
    /// When any line last came.
    pub last: Option<f64>,
    /// When the last batch of prompts was begun.
    begun: Option<f64>,
    prefills: f64,
    prompt_tokens: f64,
    chunk: Chunk,
}

/// The largest batch of prompt tokens seen, which is where long prompts are cut off.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Chunk {
    tokens: f64,
    /// Batches of that size, and smaller ones since the first of them.
    times: u32,
    smaller: u32,
    /// Whether the last batch had that size.
    is_full: bool,
}

impl Lines {
    /// Reads a `Prefill batch` line.
    pub fn prefill(&mut self, at: f64, line: &Prefill) -> Meaning {
        self.last = Some(at);
        let is_continued = self.chunk.is_continued_by(line);
        let own = (line.new_seqs - if is_continued { 1.0 } else { 0.0 }).max(0.0);
        let growth = self.growth(line.queue);
        let waiting = line.queue.unwrap_or(0.0);
        self.prefills += 1.0;
        self.prompt_tokens += line.new_tokens;
        if line.running.is_some_and(|n| n < 1.0) {
            self.since = None; // it was empty before, so perhaps idle
        }
        let tokens = line.new_tokens + line.cached_tokens.unwrap_or(0.0);
        let from = self.begun.replace(at).filter(|begun| at - begun < LONGEST_BATCH).unwrap_or(at);
        Meaning {
            came: Some(Came { from, to: at, requests: own + growth, tokens: 0.0 }),
            work: brought(own, line.new_seqs, tokens, line.new_tokens)
                .map(|brought| Brought { met: line.running.map_or(0.0, |n| n + waiting), ..brought }),
            prompts: Some([0.0, 0.0, 0.0, 1.0, line.new_tokens]),
            ..Meaning::default()
        }
    }

    /// Reads a `Decode batch` line.
    pub fn decode(&mut self, at: f64, line: &Decode) -> Meaning {
        self.last = Some(at);
        let growth = self.growth(line.queue);
        let kv = line.tokens.unwrap_or(0.0);
        let mean_running = 0.5 * (self.running + line.running);
        let did = [1.0, mean_running, 0.5 * (self.kv + kv), self.prefills, self.prompt_tokens];
        let stretch = self
            .since
            .filter(|from| at > *from && at - from < LONGEST_STRETCH)
            .map(|from| Stretch { from, to: at, did });
        (self.running, self.kv, self.prefills, self.prompt_tokens, self.since) =
            (line.running, kv, 0.0, 0.0, Some(at));
        let came = (growth != 0.0).then_some(Came { from: at, to: at, requests: growth, tokens: 0.0 });
        let is_full = line.kv_usage.is_some_and(|usage| usage >= FULL);
        Meaning { came, stretch, is_full, ..Meaning::default() }
    }

    /// The stretch under way as far as it is known: what it will have done at most when its line comes.
    pub fn pending(&self, now: f64) -> Option<Stretch> {
        let from = self.since.filter(|from| now - from < LONGEST_STRETCH)?;
        (self.running >= SURELY_NOT_DONE).then_some(Stretch {
            from,
            to: now,
            did: [1.0, self.running, self.kv, self.prefills, self.prompt_tokens],
        })
    }

    /// Requests at its last line.
    pub fn load(&self) -> f64 {
        self.running + self.queue.unwrap_or(0.0)
    }

    /// Running requests went back into the queue, where the next line counts them: nobody sent them. (A decode server of
    /// a disaggregated pair keeps them elsewhere; its log has no prefills, and is read as gauges.)
    pub fn put_back(&mut self, requests: f64) {
        let requests = requests.clamp(0.0, self.running);
        self.queue = self.queue.map(|queue| queue + requests);
    }

    fn growth(&mut self, queue: Option<f64>) -> f64 {
        let Some(now) = queue else { return 0.0 };
        now - self.queue.replace(now).unwrap_or(now)
    }
}

impl Chunk {
    /// Notes a batch. Whether its first sequence goes on with a prompt of the batch before, which was cut off. Prompts that
    /// all have one length make equal batches too: one at a time, with nobody behind them, and they leave no rest.
    fn is_continued_by(&mut self, line: &Prefill) -> bool {
        let was_full = self.is_full;
        self.is_full = line.new_tokens > self.tokens - 0.5;
        match () {
            () if line.new_tokens > self.tokens + 0.5 => {
                *self = Self { tokens: line.new_tokens, times: 1, smaller: 0, is_full: true };
            }
            () if self.is_full => self.times += 1,
            () => self.smaller += 1,
        }
        if self.times.max(self.smaller) > MOST_BATCHES {
            (self.times, self.smaller) = (self.times.div_ceil(2), self.smaller.div_ceil(2));
        }
        let is_alone = line.new_seqs <= 1.0 && line.queue.unwrap_or(0.0) < 1.0;
        let leaves_rests = self.smaller * MOST_CHUNKS >= self.times;
        was_full && self.times >= LEAST_CHUNKS && (leaves_rests || !is_alone)
    }
}

/// `admitted` of requests that are told `together`, with the tokens of all.
fn brought(admitted: f64, together: f64, prompt: f64, computed: f64) -> Option<Brought> {
    (admitted > 0.0 && prompt > 0.0).then(|| Brought {
        admitted,
        met: 0.0,
        together: Some(together),
        prompt: (prompt / together).ln(),
        computed: (computed / together).max(1.0).ln(),
    })
}

/// Where admissions are not told, the tokens that a running request holds in the cache stand for the work
/// that requests bring: both are told at the same moment, and how many run cancels out. As many requests are
/// heard anew as leave.
fn held_a_request(now: &Gauges, before: &Gauges, left: f64) -> Option<Brought> {
    let held = |g: &Gauges| Some(g.used_tokens? / g.running.filter(|n| *n >= SURELY_BUSY)?);
    let held = 0.5 * (held(now)? + held(before)?);
    (held >= 1.0 && left > 0.0).then(|| Brought {
        admitted: left,
        met: 0.0,
        together: None,
        prompt: held.ln(),
        computed: 0.0,
    })
}

/// What was last read of one rank's gauges.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Levels {
    last: Option<(f64, Gauges)>,
    /// When the throughput last changed: what it tells covers the time since then.
    fresh: Option<f64>,
    admitted_since: f64,
    prompts_since: f64,
    tokens_since: f64,
    /// Decode steps between two reports of the throughput that were read, usually: those of one (a server reports after so
    /// many steps), or of several that came between two polls. So it is never fewer than those of one.
    usual_steps: Option<f64>,
    /// Reports that taught it.
    reports: u32,
}

impl Levels {
    /// Reads gauges. `finished_a_token` turns tokens into finished requests.
    pub fn read(&mut self, at: f64, now: &Gauges, finished_a_token: f64) -> Meaning {
        let Some((before_at, before)) = self.last.replace((at, *now)) else { return Meaning::default() };
        let span = at - before_at;
        if span <= 1e-3 {
            return Meaning::default();
        }
        if span > LONGEST_STRETCH {
            self.fresh = None;
            return Meaning::default();
        }
        let load = |g: &Gauges| g.running.unwrap_or(0.0) + g.waiting.unwrap_or(0.0);
        let is_still = now.stamp.is_some() && now.stamp == before.stamp;
        let running = now.running.unwrap_or(0.0);
        let throughput = if running > 0.0 && !is_still { now.throughput.unwrap_or(0.0) } else { 0.0 };
        // A report that does not come says that its steps are not done yet: no more than those were decoded.
        let most = self.usual_steps.map_or(f64::INFINITY, |steps| MOST_STEPS * steps * running);
        let tokens = (throughput * span).min((most - self.tokens_since).max(0.0));
        self.tokens_since =
            if now.throughput == before.throughput { self.tokens_since + tokens } else { 0.0 };
        let requests = load(now) - load(&before) + finished_a_token * tokens;
        // Who waits has come, and no work was done for it.
        let queued = now.waiting.unwrap_or(0.0) - before.waiting.unwrap_or(0.0);
        self.admitted_since += requests - queued;
        // What fills the cache beyond the tokens generated and what finished requests gave back.
        if let (Some(used), Some(was)) = (now.used_tokens, before.used_tokens) {
            let held = before.running.filter(|n| *n >= 1.0).map_or(0.0, |n| was / n);
            self.prompts_since += used - was - tokens + finished_a_token * tokens * held;
        }
        let came = Some(Came { from: before_at, to: at, requests, tokens });
        let work = held_a_request(now, &before, finished_a_token * tokens);
        if running < SURELY_BUSY || before.running.unwrap_or(0.0) < SURELY_BUSY {
            self.fresh = None;
            return Meaning { came, work, ..Meaning::default() };
        }
        let mut stretch = None;
        if now.throughput != before.throughput {
            if let Some(from) = self.fresh.replace(at).filter(|from| at - from < LONGEST_STRETCH) {
                let busy = at - from;
                let batch = 0.5 * (running + before.running.unwrap_or(running));
                let steps = now.throughput.unwrap_or(0.0) / batch * busy;
                let did = [
                    steps,
                    steps * batch,
                    steps * now.used_tokens.unwrap_or(0.0),
                    self.admitted_since.max(0.0),
                    self.prompts_since.max(0.0),
                ];
                if steps > 0.0 {
                    self.reports = self.reports.saturating_add(1);
                    let usual = self.usual_steps.get_or_insert(steps);
                    *usual += STEPS_GAIN.max(1.0 / f64::from(self.reports)) * (steps - *usual);
                    stretch = Some(Stretch { from, to: at, did });
                }
            }
            self.admitted_since = 0.0;
            self.prompts_since = 0.0;
        }
        Meaning { came, stretch, work, ..Meaning::default() }
    }

    /// The stretch since the throughput last changed, up to the last reading: what it will have done at most.
    pub fn pending(&self) -> Option<Stretch> {
        let ((at, now), from, steps) = (self.last?, self.fresh?, self.usual_steps?);
        let batch = now.running.filter(|n| *n >= SURELY_NOT_DONE)?;
        let did = [
            steps,
            steps * batch,
            steps * now.used_tokens.unwrap_or(0.0),
            self.admitted_since.max(0.0),
            self.prompts_since.max(0.0),
        ];
        (at > from && at - from < LONGEST_STRETCH).then_some(Stretch { from, to: at, did })
    }

    /// The last gauges and when they were read.
    pub fn last(&self) -> Option<(f64, Gauges)> {
        self.last
    }
}

/// What was last read of one rank's counters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    last: Option<(f64, Counters, Gauges)>,
    since: Option<f64>,
    did: Features,
}

impl Totals {
    /// Reads counters beside the gauges of the same page. Where no counter tells who came, tokens do:
    /// `finished_a_token` turns them into finished requests. Nothing is told where a counter restarted.
    pub fn read(&mut self, at: f64, now: &Counters, gauges: &Gauges, finished_a_token: f64) -> Meaning {
        let Some((before_at, before, levels)) = self.last.replace((at, *now, *gauges)) else {
            return Meaning::default();
        };
        let span = at - before_at;
        let gain = |a: Option<f64>, b: Option<f64>| Some(a? - b?);
        let growth = |f: fn(&Gauges) -> Option<f64>| gain(f(gauges), f(&levels));
        let admitted = gain(now.admissions, before.admissions);
        let finished = gain(now.finished, before.finished);
        let tokens = gain(now.decode_tokens, before.decode_tokens);
        let restarted = [admitted, finished, tokens].iter().flatten().any(|g| *g < 0.0);
        if span <= 1e-3 {
            return Meaning::default(); // the same report once more
        }
        if span > LONGEST_STRETCH || restarted {
            self.since = None;
            return Meaning::default();
        }
        let requests = match (finished, growth(|g| g.running), growth(|g| g.waiting), admitted) {
            (Some(f), Some(run), Some(wait), _) => Some(f + run + wait),
            (_, _, wait, Some(a)) => Some(a + wait.unwrap_or(0.0)),
            _ => None,
        };
        let came =
            requests.map(|requests| Came { from: before_at, to: at, requests, tokens: 0.0 }).or_else(|| {
                let (grown, tokens) = (growth(|g| g.running)? + growth(|g| g.waiting)?, tokens?);
                Some(Came { from: before_at, to: at, requests: grown + finished_a_token * tokens, tokens })
            });
        let cached = gain(now.cached_tokens, before.cached_tokens).unwrap_or(0.0);
        let load = |g: &Gauges| g.running.unwrap_or(0.0) + g.waiting.unwrap_or(0.0);
        let work = match (admitted, gain(now.prompt_tokens, before.prompt_tokens)) {
            (Some(a), Some(p)) if a >= 1.0 => brought(a, a, p + cached, p)
                .map(|brought| Brought { met: 0.5 * (load(gauges) + load(&levels)), ..brought }),
            (None, _) => tokens.and_then(|t| held_a_request(gauges, &levels, finished_a_token * t)),
            _ => None,
        };
        Meaning {
            came,
            stretch: self.stretch((before_at, &before, &levels), (at, now, gauges)),
            work,
            // By those that finished and run, one that is put back is none that came.
            is_full: finished.is_none()
                && admitted.is_some()
                && gauges.kv_usage.is_some_and(|usage| usage >= FULL),
            ..Meaning::default()
        }
    }

    /// Whether `now` says the same as the last reading: nothing moved.
    pub fn same_counts(&self, now: &Counters) -> bool {
        self.last.is_some_and(|(_, c, _)| c == *now)
    }

    fn stretch(
        &mut self,
        (before_at, before, levels): (f64, &Counters, &Gauges),
        (at, now, gauges): (f64, &Counters, &Gauges),
    ) -> Option<Stretch> {
        let busy = |g: &Gauges| g.running.unwrap_or(0.0) >= SURELY_BUSY;
        if !busy(gauges) || !busy(levels) {
            self.since = None;
            return None;
        }
        let gain = |a: Option<f64>, b: Option<f64>| (a.unwrap_or(0.0) - b.unwrap_or(0.0)).max(0.0);
        let tokens = gain(now.decode_tokens, before.decode_tokens);
        let batch = 0.5 * (gauges.running.unwrap_or(1.0) + levels.running.unwrap_or(1.0));
        let steps = if now.steps.is_some() { gain(now.steps, before.steps) } else { tokens / batch };
        let prefills = gain(now.prefill_steps, before.prefill_steps);
        let prompts = gain(now.prompt_tokens, before.prompt_tokens);
        let from = match self.since {
            Some(from) => from,
            None => {
                self.since = Some(before_at);
                self.did = [0.0; FEATURES];
                before_at
            }
        };
        let kv = gauges.used_tokens.or(gauges.kv_usage.map(|u| u * 1e5)).unwrap_or(0.0);
        let more = [steps, tokens, steps * kv, prefills, prompts];
        self.did.iter_mut().zip(more).for_each(|(sum, m)| *sum += m);
        if steps + prefills + prompts <= 0.0 {
            return None; // not reported yet: the stretch goes on
        }
        self.since = Some(at);
        let did = std::mem::replace(&mut self.did, [0.0; FEATURES]);
        (at - from < LONGEST_STRETCH).then_some(Stretch { from, to: at, did })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefill(new_seqs: f64, new_tokens: f64, queue: f64) -> Prefill {
        Prefill { new_seqs, new_tokens, queue: Some(queue), running: Some(8.0), cached_tokens: None }
    }

    #[test]
    fn a_growing_queue_counts_as_arrivals_though_nothing_more_is_admitted() {
        let mut lines = Lines::default();
        lines.prefill(0.0, &prefill(1.0, 500.0, 0.0));
        let came = lines.prefill(1.0, &prefill(1.0, 500.0, 7.0)).came.unwrap();
        assert_eq!(came.requests, 8.0);
    }

    #[test]
    fn requests_that_are_put_back_into_the_queue_are_no_arrivals() {
        let mut lines = Lines::default();
        let decode = |queue| Decode { running: 8.0, queue: Some(queue), ..Decode::default() };
        lines.decode(0.0, &decode(1.0));
        lines.put_back(3.0);
        assert_eq!(lines.decode(1.0, &decode(5.0)).came.unwrap().requests, 1.0);
        // Admitted anew, they leave the queue again.
        assert_eq!(lines.prefill(2.0, &prefill(3.0, 900.0, 2.0)).came.unwrap().requests, 0.0);
    }

    #[test]
    fn the_rest_of_a_chunked_prompt_is_no_arrival() {
        let mut lines = Lines::default();
        for i in 0..3 {
            lines.prefill(f64::from(i), &prefill(1.0, 8192.0, 0.0));
        }
        let came = lines.prefill(4.0, &prefill(1.0, 300.0, 0.0)).came.unwrap();
        assert_eq!(came.requests, 0.0);
    }

    #[test]
    fn on_a_rank_with_a_queue_every_full_batch_cuts_a_prompt_off() {
        let mut lines = Lines::default();
        let mut batch =
            |i: i32| lines.prefill(f64::from(i), &prefill(3.0, 8192.0, 5.0)).came.unwrap().requests;
        let came: Vec<f64> = (0..100).map(&mut batch).collect();
        assert!(came[3..].iter().all(|came| *came == 2.0), "{came:?}");
    }

    #[test]
    fn prompts_that_all_have_one_length_are_arrivals_each() {
        let mut lines = Lines::default();
        let came =
            (0..20).map(|i| lines.prefill(f64::from(i), &prefill(1.0, 2048.0, 0.0)).came.unwrap().requests);
        assert_eq!(came.sum::<f64>(), 20.0);
        // A health check now and then leaves no rest either.
        lines.prefill(20.0, &prefill(1.0, 1.0, 0.0));
        assert_eq!(lines.prefill(21.0, &prefill(1.0, 2048.0, 0.0)).came.unwrap().requests, 1.0);
        assert_eq!(lines.prefill(22.0, &prefill(1.0, 2048.0, 0.0)).came.unwrap().requests, 1.0);
    }

    #[test]
    fn a_stretch_in_which_the_rank_was_empty_says_nothing_about_speed() {
        let mut lines = Lines::default();
        let decode = Decode { running: 8.0, ..Decode::default() };
        lines.decode(0.0, &decode);
        assert!(lines.decode(1.0, &decode).stretch.is_some());
        lines.prefill(1.5, &Prefill { running: Some(0.0), ..prefill(1.0, 10.0, 0.0) });
        assert!(lines.decode(3.0, &decode).stretch.is_none());
    }

    #[test]
    fn a_rank_without_room_puts_arrivals_in_doubt_unless_who_finished_is_counted() {
        let line = |usage| Decode { running: 8.0, kv_usage: Some(usage), ..Decode::default() };
        let is_full = [0.9, 0.99].map(|usage| Lines::default().decode(1.0, &line(usage)).is_full);
        assert_eq!(is_full, [false, true]);
        let polled = |counters: Counters| {
            let mut totals = Totals::default();
            let gauges = Gauges { running: Some(8.0), kv_usage: Some(0.99), ..Gauges::default() };
            totals.read(0.0, &counters, &gauges, 0.0);
            totals.read(1.0, &counters, &gauges, 0.0).is_full
        };
        assert!(polled(Counters { admissions: Some(5.0), ..Counters::default() }));
        assert!(!polled(Counters { finished: Some(5.0), ..Counters::default() }));
    }

    #[test]
    fn finished_requests_and_growth_make_arrivals() {
        let mut totals = Totals::default();
        let gauges = |running| Gauges { running: Some(running), waiting: Some(0.0), ..Gauges::default() };
        totals.read(0.0, &Counters { finished: Some(10.0), ..Counters::default() }, &gauges(4.0), 0.0);
        let came = totals
            .read(1.0, &Counters { finished: Some(13.0), ..Counters::default() }, &gauges(6.0), 0.0)
            .came
            .unwrap();
        assert_eq!(came.requests, 5.0);
    }

    #[test]
    fn requests_that_wait_are_no_work_that_was_done() {
        let mut levels = Levels::default();
        let gauges = |waiting, throughput| Gauges {
            running: Some(8.0),
            waiting: Some(waiting),
            throughput: Some(throughput),
            ..Gauges::default()
        };
        for (at, waiting, throughput) in [(0.0, 0.0, 400.0), (1.0, 0.0, 320.0), (2.0, 0.0, 240.0)] {
            levels.read(at, &gauges(waiting, throughput), 0.0);
        }
        levels.read(3.0, &gauges(20.0, 240.0), 0.0);
        let under_way = levels.pending().unwrap();
        let finished = levels.read(4.0, &gauges(40.0, 80.0), 0.0).stretch.unwrap();
        assert_eq!([under_way.did[3], finished.did[3]], [0.0; 2]);
    }

    #[test]
    fn a_report_that_does_not_come_has_no_more_steps_than_the_usual_one() {
        let mut levels = Levels::default();
        let gauges =
            |throughput| Gauges { running: Some(8.0), throughput: Some(throughput), ..Gauges::default() };
        for (at, throughput) in [(0.0, 400.0), (1.0, 320.0), (2.0, 240.0), (3.0, 240.0), (4.0, 240.0)] {
            levels.read(at, &gauges(throughput), 0.0);
        }
        // Thirty a second: since the report after the second second, none have been done for two.
        let stretch = levels.pending().unwrap();
        assert_eq!((stretch.from, stretch.to, stretch.did[0]), (2.0, 4.0, 30.0));
    }

    #[test]
    fn a_counter_that_restarts_tells_nothing() {
        let mut totals = Totals::default();
        totals.read(
            0.0,
            &Counters { admissions: Some(10.0), ..Counters::default() },
            &Gauges::default(),
            0.0,
        );
        let m = totals.read(
            1.0,
            &Counters { admissions: Some(1.0), ..Counters::default() },
            &Gauges::default(),
            0.0,
        );
        assert_eq!(m, Meaning::default());
    }

    #[test]
    fn where_only_work_is_counted_tokens_tell_who_finished() {
        let mut totals = Totals::default();
        let gauges = |running| Gauges { running: Some(running), waiting: Some(0.0), ..Gauges::default() };
        let counters = |tokens| Counters { decode_tokens: Some(tokens), ..Counters::default() };
        totals.read(0.0, &counters(1000.0), &gauges(4.0), 0.01);
        let came = totals.read(1.0, &counters(1300.0), &gauges(6.0), 0.01).came.unwrap();
        assert_eq!((came.requests, came.tokens), (5.0, 300.0));
    }
}
