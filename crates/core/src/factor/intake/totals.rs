//! What the counters of one rank mean.

use super::{
    ArrivalSpan, FULL, InterpretedReading, LONGEST_STRETCH, RequestTokens, SURELY_BUSY, WorkSpan, brought,
    held_a_request,
};
use crate::factor::cost_model::{FEATURES, Features};
use crate::factor::observation::{Counters, Gauges, PromptTokens};

/// Tokens that were found in the cache before their prompts are counted are no more: those of the longest prompts.
const MOST_FOUND_EARLY: f64 = 1e6;
/// Requests are counted when they are admitted, their tokens once they are computed: where a reading falls
/// between, it shows fewer tokens a request than chance makes of usual ones, by so many standard deviations
/// of the mean of their logarithms (one request's is nominally 1), and says something together with the next
/// ones, so many seconds of them at most.
const BEYOND_CHANCE: f64 = 3.0;
const COMPUTED_WITHIN: f64 = 5.0;
/// How fast the usual tokens a request are learned, a reading, on the logarithm.
const GAIN: f64 = 0.05;

/// What was last read of one rank's counters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    last: Option<(f64, Counters, Gauges)>,
    since: Option<f64>,
    did: Features,
    /// Prompt tokens that were found in a cache, of prompts that were not counted when that was.
    found_early: f64,
    /// What was admitted, and is not told yet.
    untold: Option<Untold>,
    /// The logarithm of the usual tokens a request.
    usual: Option<f64>,
}

/// Requests whose tokens may not all be counted yet.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Untold {
    since: f64,
    admitted: f64,
    prompts: PromptTokens,
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
            self.untold = None;
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
        let prompts = self.prompts(
            gain(now.computed_tokens, before.computed_tokens),
            gain(now.cached_tokens, before.cached_tokens),
            gain(now.prompt_tokens, before.prompt_tokens),
        );
        let work = match (admitted, prompts) {
            (Some(a), Some(prompts)) => self
                .brought(at, a, prompts)
                .map(|brought| RequestTokens { met: 0.5 * (gauges.load() + levels.load()), ..brought }),
            (None, _) => tokens.and_then(|t| held_a_request(gauges, &levels, finished_a_token * t)),
            _ => None,
        };
        InterpretedReading {
            came,
            stretch: self.stretch(
                (before_at, &before, &levels),
                (at, now, gauges),
                prompts.map_or(0.0, |prompts| prompts.computed.max(0.0)),
            ),
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

    /// What the requests of this reading and of those before it that are not told yet brought, once it is all counted.
    fn brought(&mut self, at: f64, admitted: f64, prompts: PromptTokens) -> Option<RequestTokens> {
        let now = Untold { since: at, admitted, prompts };
        let Untold { since, admitted, prompts } = match self.untold.take() {
            Some(before) => Untold {
                since: before.since,
                admitted: before.admitted + admitted,
                prompts: PromptTokens {
                    all: before.prompts.all + prompts.all,
                    computed: before.prompts.computed + prompts.computed,
                },
            },
            None => now,
        };
        // Tokens of requests that were told before: the rest of a long prompt.
        if admitted < 1.0 {
            return None;
        }
        let of_chance = BEYOND_CHANCE / admitted.sqrt();
        let least = self.usual.map_or(0.0, |usual| (usual - of_chance).exp() * admitted);
        if prompts.all < least && at - since < COMPUTED_WITHIN {
            self.untold = Some(Untold { since, admitted, prompts });
            return None;
        }
        let brought = brought(admitted, admitted, prompts.all, prompts.computed)?;
        let usual = self.usual.get_or_insert(brought.prompt);
        *usual += GAIN * (brought.prompt - *usual);
        Some(brought)
    }

    /// The prompt tokens of a reading, from what the counters gained.
    fn prompts(
        &mut self,
        computed: Option<f64>,
        cached: Option<f64>,
        all: Option<f64>,
    ) -> Option<PromptTokens> {
        let cached = cached.unwrap_or(0.0).max(0.0);
        if computed.is_some() {
            return computed.map(|computed| PromptTokens::of(computed, cached, 0.0));
        }
        // vLLM counts what it finds when it schedules a request, and its prompt when that is computed.
        let (all, found) = (all?.max(0.0), cached + self.found_early);
        // A long prompt may be computed over several readings; one that was given up is counted by none.
        self.found_early = (found - all).clamp(0.0, if all > 0.0 { cached } else { MOST_FOUND_EARLY });
        Some(if all > 0.0 { PromptTokens::of(0.0, found, all) } else { PromptTokens::default() })
    }

    fn stretch(
        &mut self,
        (before_at, before, levels): (f64, &Counters, &Gauges),
        (at, now, gauges): (f64, &Counters, &Gauges),
        prompts: f64,
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

    /// What vLLM's counters mean after one admission of 1000 prompt tokens, when each reading gained so many
    /// prompt tokens and found so many in the cache.
    fn brought_by(gains: &[(f64, f64)]) -> RequestTokens {
        let mut totals = Totals::default();
        let mut counters = Counters {
            admissions: Some(10.0),
            prompt_tokens: Some(5e4),
            cached_tokens: Some(4e4),
            ..Counters::default()
        };
        totals.read(0.0, &counters, &Gauges::default(), 0.0);
        let mut work = None;
        for (i, (prompt, found)) in gains.iter().enumerate() {
            counters.prompt_tokens = counters.prompt_tokens.map(|tokens| tokens + prompt);
            counters.cached_tokens = counters.cached_tokens.map(|tokens| tokens + found);
            if *prompt > 0.0 {
                counters.admissions = counters.admissions.map(|n| n + 1.0);
            }
            work = totals.read(i as f64 + 1.0, &counters, &Gauges::default(), 0.0).work.or(work);
        }
        work.expect("a request was admitted")
    }

    #[test]
    fn where_all_prompt_tokens_are_counted_those_found_in_the_cache_are_among_them() {
        let work = brought_by(&[(1000.0, 800.0)]);
        assert!((work.prompt.exp() - 1000.0).abs() < 1e-6, "{work:?}");
        assert!((work.computed.exp() - 200.0).abs() < 1e-6, "{work:?}");
        // They are found when a request is scheduled, and its prompt is counted once it is computed, some
        // readings later.
        for between in 0..3 {
            let readings = std::iter::once((0.0, 800.0)).chain(std::iter::repeat_n((0.0, 0.0), between));
            let work = brought_by(&readings.chain([(1000.0, 0.0)]).collect::<Vec<_>>());
            assert!((work.prompt.exp() - 1000.0).abs() < 1e-6, "{between}: {work:?}");
            assert!((work.computed.exp() - 200.0).abs() < 1e-6, "{between}: {work:?}");
        }
    }

    #[test]
    fn tokens_that_are_counted_after_their_requests_were_are_told_with_them() {
        let mut totals = Totals::default();
        let (mut counters, mut at) = (Counters::default(), 0.0);
        let mut read = |admitted: f64, computed: f64| {
            let more = |total: Option<f64>, gain: f64| Some(total.unwrap_or(100.0) + gain);
            counters.admissions = more(counters.admissions, admitted);
            counters.computed_tokens = more(counters.computed_tokens, computed);
            at += 1.0;
            totals
                .read(at, &counters, &Gauges::default(), 0.0)
                .work
                .map(|w| (w.admitted, w.prompt.exp().round()))
        };
        assert_eq!([read(1.0, 80.0), read(4.0, 320.0)], [None, Some((4.0, 80.0))]);
        // A batch of prompts under way.
        assert_eq!([read(26.0, 100.0), read(0.0, 0.0), read(0.0, 1_980.0)], [None, None, Some((26.0, 80.0))]);
        assert_eq!(read(0.0, 80.0), None, "the rest of a long prompt");
        assert_eq!(read(1.0, 10.0), Some((1.0, 10.0)), "a short prompt");
        let shorter: Vec<_> = (0..6).filter_map(|_| read(9.0, 90.0)).collect();
        assert_eq!(shorter, [(54.0, 10.0)], "prompts have become short");
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
