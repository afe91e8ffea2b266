//! What the gauges of one rank mean.

use super::{
    ArrivalSpan, InterpretedReading, LONGEST_STRETCH, SURELY_BUSY, SURELY_NOT_DONE, WorkSpan, held_a_request,
};
use crate::factor::cost_model::Features;
use crate::factor::observation::Gauges;

/// How fast the usual number of steps between two reports that were read is learned, a report (the mean of the first).
const STEPS_GAIN: f64 = 0.02;
/// Without another report tokens are counted for so many times as many steps: one that tells the same is not seen.
const MOST_STEPS: f64 = 1.5;

/// What was last read of one rank's gauges.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Levels {
    last: Option<(f64, Gauges)>,
    /// When the throughput last changed: what it tells covers the time since then.
    fresh: Option<f64>,
    admitted_since: f64,
    prompts_since: f64,
    tokens_since: f64,
    /// Decode steps between two reports of the throughput that were read, usually: those of one (a server
    /// reports after so many steps), or of several that came between two polls. So it is never fewer than
    /// those of one.
    usual_steps: Option<f64>,
    /// Reports that taught it.
    reports: u32,
}

impl Levels {
    /// Reads gauges. `finished_a_token` turns tokens into finished requests.
    pub fn read(&mut self, at: f64, now: &Gauges, finished_a_token: f64) -> InterpretedReading {
        let Some((before_at, before)) = self.last.replace((at, *now)) else {
            return InterpretedReading::default();
        };
        let span = at - before_at;
        if span <= 1e-3 {
            return InterpretedReading::default();
        }
        if span > LONGEST_STRETCH {
            self.fresh = None;
            return InterpretedReading::default();
        }
        let is_still = now.stamp.is_some() && now.stamp == before.stamp;
        let running = now.running.unwrap_or(0.0);
        let throughput = if running > 0.0 && !is_still { now.throughput.unwrap_or(0.0) } else { 0.0 };
        // A report that does not come says that its steps are not done yet: no more than those were decoded.
        let most = self.usual_steps.map_or(f64::INFINITY, |steps| MOST_STEPS * steps * running);
        let tokens = (throughput * span).min((most - self.tokens_since).max(0.0));
        self.tokens_since =
            if now.throughput == before.throughput { self.tokens_since + tokens } else { 0.0 };
        let requests = now.load() - before.load() + finished_a_token * tokens;
        // Who waits has come, and no work was done for it.
        let queued = now.waiting.unwrap_or(0.0) - before.waiting.unwrap_or(0.0);
        self.admitted_since += requests - queued;
        // What fills the cache beyond the tokens generated and what finished requests gave back.
        if let (Some(used), Some(was)) = (now.used_tokens, before.used_tokens) {
            let held = before.running.filter(|n| *n >= 1.0).map_or(0.0, |n| was / n);
            self.prompts_since += used - was - tokens + finished_a_token * tokens * held;
        }
        let came = Some(ArrivalSpan { from: before_at, to: at, requests, tokens });
        let work = held_a_request(now, &before, finished_a_token * tokens);
        if running < SURELY_BUSY || before.running.unwrap_or(0.0) < SURELY_BUSY {
            self.fresh = None;
            return InterpretedReading { came, work, ..InterpretedReading::default() };
        }
        let mut stretch = None;
        if now.throughput != before.throughput {
            if let Some(from) = self.fresh.replace(at).filter(|from| at - from < LONGEST_STRETCH) {
                let busy = at - from;
                let batch = 0.5 * (running + before.running.unwrap_or(running));
                let steps = now.throughput.unwrap_or(0.0) / batch * busy;
                let did = self.done_in(steps, batch, now);
                if steps > 0.0 {
                    self.reports = self.reports.saturating_add(1);
                    let usual = self.usual_steps.get_or_insert(steps);
                    *usual += STEPS_GAIN.max(1.0 / f64::from(self.reports)) * (steps - *usual);
                    stretch = Some(WorkSpan { from, to: at, did });
                }
            }
            self.admitted_since = 0.0;
            self.prompts_since = 0.0;
        }
        InterpretedReading { came, stretch, work, ..InterpretedReading::default() }
    }

    /// The stretch since the throughput last changed, up to the last reading: what it will have done at most.
    pub fn pending(&self) -> Option<WorkSpan> {
        let ((at, now), from, steps) = (self.last?, self.fresh?, self.usual_steps?);
        let batch = now.running.filter(|n| *n >= SURELY_NOT_DONE)?;
        let did = self.done_in(steps, batch, &now);
        (at > from && at - from < LONGEST_STRETCH).then_some(WorkSpan { from, to: at, did })
    }

    /// What so many steps on a batch did, and what was admitted meanwhile.
    fn done_in(&self, steps: f64, batch: f64, now: &Gauges) -> Features {
        [
            steps,
            steps * batch,
            steps * now.used_tokens.unwrap_or(0.0),
            self.admitted_since.max(0.0),
            self.prompts_since.max(0.0),
        ]
    }

    /// The last gauges and when they were read.
    pub fn last(&self) -> Option<(f64, Gauges)> {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
