//! What the counters of one rank mean.

use super::{
    ArrivalSpan, FULL, InterpretedReading, LONGEST_STRETCH, RequestTokens, SURELY_BUSY, WorkSpan, brought,
    held_a_request,
};
use crate::factor::clock::{FEATURES, Features};
use crate::factor::observation::{Counters, Gauges};

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
    pub fn read(
        &mut self,
        at: f64,
        now: &Counters,
        gauges: &Gauges,
        finished_a_token: f64,
    ) -> InterpretedReading {
        let Some((before_at, before, levels)) = self.last.replace((at, *now, *gauges)) else {
            return InterpretedReading::default();
        };
        let span = at - before_at;
        let gain = |a: Option<f64>, b: Option<f64>| Some(a? - b?);
        let growth = |f: fn(&Gauges) -> Option<f64>| gain(f(gauges), f(&levels));
        let admitted = gain(now.admissions, before.admissions);
        let finished = gain(now.finished, before.finished);
        let tokens = gain(now.decode_tokens, before.decode_tokens);
        let restarted = [admitted, finished, tokens].iter().flatten().any(|g| *g < 0.0);
        if span <= 1e-3 {
            return InterpretedReading::default(); // the same report once more
        }
        if span > LONGEST_STRETCH || restarted {
            self.since = None;
            return InterpretedReading::default();
        }
        let requests = match (finished, growth(|g| g.running), growth(|g| g.waiting), admitted) {
            (Some(f), Some(run), Some(wait), _) => Some(f + run + wait),
            (_, _, wait, Some(a)) => Some(a + wait.unwrap_or(0.0)),
            _ => None,
        };
        let came = requests
            .map(|requests| ArrivalSpan { from: before_at, to: at, requests, tokens: 0.0 })
            .or_else(|| {
                let (grown, tokens) = (growth(|g| g.running)? + growth(|g| g.waiting)?, tokens?);
                Some(ArrivalSpan {
                    from: before_at,
                    to: at,
                    requests: grown + finished_a_token * tokens,
                    tokens,
                })
            });
        let cached = gain(now.cached_tokens, before.cached_tokens).unwrap_or(0.0);
        let work = match (admitted, gain(now.prompt_tokens, before.prompt_tokens)) {
            (Some(a), Some(p)) if a >= 1.0 => brought(a, a, p + cached, p)
                .map(|brought| RequestTokens { met: 0.5 * (gauges.load() + levels.load()), ..brought }),
            (None, _) => tokens.and_then(|t| held_a_request(gauges, &levels, finished_a_token * t)),
            _ => None,
        };
        InterpretedReading {
            came,
            stretch: self.stretch((before_at, &before, &levels), (at, now, gauges)),
            work,
            // By those that finished and run, one that is put back is none that came.
            is_full: finished.is_none()
                && admitted.is_some()
                && gauges.kv_usage.is_some_and(|usage| usage >= FULL),
            ..InterpretedReading::default()
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
    ) -> Option<WorkSpan> {
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
        (at - from < LONGEST_STRETCH).then_some(WorkSpan { from, to: at, did })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_without_room_puts_arrivals_in_doubt_unless_who_finished_is_counted() {
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
        assert_eq!(m, InterpretedReading::default());
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
