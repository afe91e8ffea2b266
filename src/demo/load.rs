//! The load of each rank over time: given as phases, or recorded.

use std::time::Duration;

use serde::Deserialize;

use skewtrap_trace::time::Time;

/// The load of one rank at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RankLoad {
    /// Requests in the running batch.
    pub running: u32,
    /// Requests in the queue.
    pub waiting: u32,
    /// Tokens in the KV cache.
    pub tokens: u64,
    /// Output tokens a second.
    pub throughput: f64,
}

impl RankLoad {
    /// `running` requests of about 480 tokens each, and `waiting` behind them.
    pub fn of(running: u32, waiting: u32) -> Self {
        Self { running, waiting, tokens: u64::from(running) * 480, throughput: f64::from(running) * 90.0 }
    }
}

/// The load of every rank over time: a step function that holds its last value for ever.
#[derive(Clone, Debug, Default)]
pub struct LoadTrack {
    points: Vec<(Time, Vec<RankLoad>)>,
}

impl LoadTrack {
    /// Phases that follow each other: how long each lasts, and each rank's `(running, waiting)`.
    pub fn phases(start: Time, phases: &[(Duration, &[(u32, u32)])]) -> Self {
        let mut at = start;
        let mut points = Vec::new();
        for (lasts, ranks) in phases {
            points.push((at, ranks.iter().map(|&(r, w)| RankLoad::of(r, w)).collect()));
            at = at + *lasts;
        }
        Self { points }
    }

    /// The same `(running, waiting)` of each rank for ever.
    pub fn constant(start: Time, ranks: &[(u32, u32)]) -> Self {
        Self::phases(start, &[(Duration::ZERO, ranks)])
    }

    /// From the lines of a loads file, `{"t": EPOCH, "body": <answer of /v1/loads>}` each.
    ///
    /// # Errors
    /// A line has another form.
    pub fn recorded(lines: &str) -> Result<Self, serde_json::Error> {
        let points = lines
            .lines()
            .map(|line| {
                let page: RecordedPage = serde_json::from_slice(line.as_bytes())?;
                Ok((Time::from_epoch_s(page.t), page.body.loads.into_iter().map(Into::into).collect()))
            })
            .collect::<Result<_, serde_json::Error>>()?;
        Ok(Self { points })
    }

    /// From answers of `/v1/loads`, each with its time.
    ///
    /// # Errors
    /// One has another form.
    pub fn answers(answers: &[(Time, String)]) -> Result<Self, serde_json::Error> {
        let point = |(at, body): &(Time, String)| {
            let body: RecordedBody = serde_json::from_slice(body.as_bytes())?;
            Ok((*at, body.loads.into_iter().map(Into::into).collect()))
        };
        Ok(Self { points: answers.iter().map(point).collect::<Result<_, serde_json::Error>>()? })
    }

    /// From `at` on no request reaches `rank` any more, and those that it has end one after the other
    /// over `lasts`, as on a real server whose answers are long.
    #[must_use]
    pub fn with_drained(mut self, rank: u16, at: Time, lasts: Duration) -> Self {
        let before = self.at(rank, at);
        for left in (0..before.running).rev() {
            let gone = f64::from(before.running - left) / f64::from(before.running);
            let when = at + lasts.mul_f64(gone);
            let mut ranks = self.of_all(when).to_vec();
            if let Some(own) = ranks.get_mut(usize::from(rank)) {
                *own = RankLoad::of(left, 0);
            }
            self.points.retain(|(t, _)| *t < when);
            self.points.push((when, ranks));
        }
        self
    }

    fn of_all(&self, now: Time) -> &[RankLoad] {
        let after = self.points.partition_point(|(t, _)| *t <= now);
        after.checked_sub(1).map_or(&[], |i| &self.points[i].1)
    }

    /// The load of `rank` at `now`.
    pub fn at(&self, rank: u16, now: Time) -> RankLoad {
        let after = self.points.partition_point(|(t, _)| *t <= now);
        after
            .checked_sub(1)
            .and_then(|i| self.points[i].1.get(usize::from(rank)))
            .copied()
            .unwrap_or_default()
    }

    /// The time of the next change after `now`.
    pub fn next_change(&self, now: Time) -> Option<Time> {
        self.points.get(self.points.partition_point(|(t, _)| *t <= now)).map(|(t, _)| *t)
    }

    /// Replaces the load from `now` on.
    pub fn set_from(&mut self, now: Time, ranks: &[(u32, u32)]) {
        self.points.retain(|(t, _)| *t < now);
        self.points.push((now, ranks.iter().map(|&(r, w)| RankLoad::of(r, w)).collect()));
    }
}

#[derive(Deserialize)]
struct RecordedPage {
    t: f64,
    body: RecordedBody,
}

#[derive(Deserialize)]
struct RecordedBody {
    loads: Vec<RecordedLoad>,
}

#[derive(Deserialize)]
struct RecordedLoad {
    num_running_reqs: u32,
    num_waiting_reqs: u32,
    num_used_tokens: u64,
    gen_throughput: f64,
}

impl From<RecordedLoad> for RankLoad {
    fn from(l: RecordedLoad) -> Self {
        Self {
            running: l.num_running_reqs,
            waiting: l.num_waiting_reqs,
            tokens: l.num_used_tokens,
            throughput: l.gen_throughput,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_track_holds_each_phase_until_the_next_and_the_last_for_ever() {
        let start = Time::from_epoch_s(100.0);
        let second = Duration::from_secs(1);
        let track = LoadTrack::phases(start, &[(second, &[(1, 0), (2, 0)]), (second, &[(3, 4), (0, 0)])]);
        assert_eq!(track.at(0, Time::from_epoch_s(99.9)), RankLoad::default());
        assert_eq!(track.at(1, start).running, 2);
        assert_eq!(track.next_change(start), Some(start + second));
        assert_eq!(track.at(0, start + second * 60).waiting, 4);
        assert_eq!(track.next_change(start + second), None);
    }
}
