//! Every member's differences from its peers in the last minutes, in which the onset is looked for.

use std::collections::VecDeque;
use std::time::Duration;

use super::{COURSES, Course, LOAD, SPEED};
use skewtrap_trace::time::Time;

/// How many ticks are kept.
const KEPT: usize = 150;
/// A member that is not measured for more ticks than this has fallen silent.
const SILENT: u32 = 3;

/// One member in one tick.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    load: f32,
    cached: f32,
    speed: f32,
    /// How long before the tick's end it was measured; `None` when it was not.
    age_s: Option<f32>,
}

impl Kept {
    /// Of a member's differences, and what cached prompts explain of them, in a tick that ended `now`
    /// and in which it was measured `at`.
    pub fn of(now: Time, at: Option<Time>, differences: &[f64; COURSES], cached: f64) -> Self {
        Self {
            load: differences[LOAD] as f32,
            cached: cached as f32,
            speed: differences[SPEED] as f32,
            age_s: at.map(|t| now.signed_s_since(t).max(0.0) as f32),
        }
    }
}

/// The last ticks, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    ticks: VecDeque<(Time, Vec<Kept>)>,
}

impl History {
    /// Keeps a tick that ended `now`.
    pub fn keep(&mut self, now: Time, members: Vec<Kept>) {
        if self.ticks.len() >= KEPT {
            self.ticks.pop_front();
        }
        self.ticks.push_back((now, members));
    }

    /// The clock was set by so many nanoseconds.
    pub fn shift(&mut self, by_ns: i64) {
        Time::shift_all(self.ticks.iter_mut().map(|tick| &mut tick.0), by_ns);
    }

    /// When `member` was measured, oldest first.
    pub fn times(&self, member: usize) -> impl Iterator<Item = Time> {
        self.measured(member).map(|(end, kept)| end - Duration::from_secs_f32(kept.age_s.unwrap_or(0.0)))
    }

    /// The differences of `member` at these times: positive when it has more work or, for its speed,
    /// is slower.
    pub fn of(&self, member: usize, course: Course) -> impl Iterator<Item = f64> {
        self.measured(member).map(move |(_, kept)| {
            f64::from(match course {
                Course::Load => kept.load,
                Course::Cached => kept.cached,
                Course::Speed => -kept.speed,
            })
        })
    }

    /// The ticks that count for a member. One in which it was not measured does not: a busy rank reports
    /// seldom, and its last value would look like a level. A member that has not been measured for
    /// longer has fallen silent, and that does count.
    fn measured(&self, member: usize) -> impl Iterator<Item = (Time, &Kept)> {
        let mut held = 0;
        self.ticks.iter().filter_map(move |(end, members)| {
            let kept = &members[member];
            held = if kept.age_s.is_some() { 0 } else { held + 1 };
            (held == 0 || held > SILENT).then_some((*end, kept))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(measured: &[Option<f64>]) -> Vec<(f64, f64)> {
        let mut history = History::default();
        for (i, at) in measured.iter().enumerate() {
            let now = Time::from_epoch_s(101.0 + i as f64);
            let member = Kept::of(now, at.map(Time::from_epoch_s), &[i as f64, 0.0, 0.0], 0.0);
            history.keep(now, vec![member]);
        }
        history.times(0).map(Time::epoch_s).zip(history.of(0, Course::Load)).collect()
    }

    #[test]
    fn differences_are_dated_to_when_they_were_measured() {
        assert_eq!(history(&[Some(100.5), Some(101.25)]), [(100.5, 0.0), (101.25, 1.0)]);
    }

    #[test]
    fn a_tick_without_a_measurement_is_no_point_of_the_course() {
        assert_eq!(history(&[Some(101.0), None, None, Some(104.0)]), [(101.0, 0.0), (104.0, 3.0)]);
    }

    #[test]
    fn a_member_that_fell_silent_is_taken_at_its_last_word() {
        let points = history(&[Some(101.0), None, None, None, None, None]);
        assert_eq!(points, [(101.0, 0.0), (105.0, 4.0), (106.0, 5.0)]);
    }
}
