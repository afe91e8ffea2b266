//! What the log lines of one rank mean.

use super::{
    ArrivalSpan, Chunk, FULL, InterpretedReading, LONGEST_STRETCH, RequestTokens, SURELY_NOT_DONE, WorkSpan,
    brought,
};
use crate::factor::observation::{Decode, Prefill};

/// A batch of prompts takes no longer, in seconds: who came since the one before came between the two.
const LONGEST_BATCH: f64 = 1.0;
/// A rank that was silent for so long, in seconds, and is empty then has ended what it had unseen; after a
/// longer silence than [`LONGEST_STRETCH`] it may have started anew.
const LEAST_SILENCE: f64 = 1.0;

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
    /// Requests in its batch by its last line, with those that were admitted since.
    batch: f64,
    /// How many of those had all ended when the last line found the batch empty; 0 where it did not.
    pub ended_unseen: f64,
}

impl Lines {
    /// Reads a `Prefill batch` line.
    pub fn prefill(&mut self, at: f64, line: &Prefill) -> InterpretedReading {
        let was_silent = self.last.replace(at).map_or(0.0, |last| at - last);
        let is_empty = line.running.is_some_and(|n| n < 1.0);
        let has_ended = is_empty && (LEAST_SILENCE..LONGEST_STRETCH).contains(&was_silent);
        self.ended_unseen = if has_ended { self.batch } else { 0.0 };
        self.batch = line.running.unwrap_or(self.batch) + line.new_seqs;
        let is_continued = self.chunk.is_continued_by(line);
        let own = (line.new_seqs - if is_continued { 1.0 } else { 0.0 }).max(0.0);
        let growth = self.growth(line.queue);
        let waiting = line.queue.unwrap_or(0.0);
        self.prefills += 1.0;
        self.prompt_tokens += line.new_tokens;
        if is_empty {
            self.since = None; // it was empty before, so perhaps idle
        }
        let tokens = line.new_tokens + line.cached_tokens.unwrap_or(0.0);
        let from = self.begun.replace(at).filter(|begun| at - begun < LONGEST_BATCH).unwrap_or(at);
        InterpretedReading {
            came: Some(ArrivalSpan { from, to: at, requests: own + growth, tokens: 0.0 }),
            work: brought(own, line.new_seqs, tokens, line.new_tokens)
                .map(|brought| RequestTokens { met: line.running.map_or(0.0, |n| n + waiting), ..brought }),
            prompts: Some([0.0, 0.0, 0.0, 1.0, line.new_tokens]),
            ..InterpretedReading::default()
        }
    }

    /// Reads a `Decode batch` line.
    pub fn decode(&mut self, at: f64, line: &Decode) -> InterpretedReading {
        self.last = Some(at);
        (self.batch, self.ended_unseen) = (line.running, 0.0);
        let growth = self.growth(line.queue);
        let kv = line.tokens.unwrap_or(0.0);
        let mean_running = 0.5 * (self.running + line.running);
        let did = [1.0, mean_running, 0.5 * (self.kv + kv), self.prefills, self.prompt_tokens];
        let stretch = self
            .since
            .filter(|from| at > *from && at - from < LONGEST_STRETCH)
            .map(|from| WorkSpan { from, to: at, did });
        (self.running, self.kv, self.prefills, self.prompt_tokens, self.since) =
            (line.running, kv, 0.0, 0.0, Some(at));
        let came = (growth != 0.0).then_some(ArrivalSpan { from: at, to: at, requests: growth, tokens: 0.0 });
        let is_full = line.kv_usage.is_some_and(|usage| usage >= FULL);
        InterpretedReading { came, stretch, is_full, ..InterpretedReading::default() }
    }

    /// The stretch under way as far as it is known: what it will have done at most when its line comes.
    pub fn pending(&self, now: f64) -> Option<WorkSpan> {
        let from = self.since.filter(|from| now - from < LONGEST_STRETCH)?;
        (self.running >= SURELY_NOT_DONE).then_some(WorkSpan {
            from,
            to: now,
            did: [1.0, self.running, self.kv, self.prefills, self.prompt_tokens],
        })
    }

    /// Requests at its last line.
    pub fn load(&self) -> f64 {
        self.running + self.queue.unwrap_or(0.0)
    }

    /// Of those the ones that it surely still has until another line comes, where so many running ones may
    /// all end without one. Who waits is told of when it is admitted.
    pub fn surely_has(&self, may_end: f64) -> f64 {
        self.queue.unwrap_or(0.0) + if self.running > may_end { self.running } else { 0.0 }
    }

    /// Running requests went back into the queue, where the next line counts them: nobody sent them. (A
    /// decode server of a disaggregated pair keeps them elsewhere; its log has no prefills, and is read as
    /// gauges.)
    pub fn put_back(&mut self, requests: f64) {
        let requests = requests.clamp(0.0, self.running);
        self.batch = (self.batch - requests).max(0.0);
        self.queue = self.queue.map(|queue| queue + requests);
    }

    fn growth(&mut self, queue: Option<f64>) -> f64 {
        let Some(now) = queue else { return 0.0 };
        now - self.queue.replace(now).unwrap_or(now)
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
    fn one_batch_that_is_larger_by_a_token_does_not_make_every_rest_an_arrival() {
        let mut lines = Lines::default();
        for tokens in [8192.0, 300.0, 8192.0, 300.0, 8192.0, 300.0, 8193.0, 300.0] {
            lines.prefill(0.0, &prefill(1.0, tokens, 0.0));
        }
        lines.prefill(1.0, &prefill(1.0, 8192.0, 0.0));
        assert_eq!(lines.prefill(2.0, &prefill(1.0, 300.0, 0.0)).came.unwrap().requests, 0.0);
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
    fn a_rank_without_room_puts_arrivals_in_doubt() {
        let line = |usage| Decode { running: 8.0, kv_usage: Some(usage), ..Decode::default() };
        let is_full = [0.9, 0.99].map(|usage| Lines::default().decode(1.0, &line(usage)).is_full);
        assert_eq!(is_full, [false, true]);
    }
}
