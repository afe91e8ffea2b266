//! What departs farthest, and what shows it.

use serde::Serialize;

use super::past::WAYS;
use super::spread::Distances;
use crate::finding::Side;

/// By chance, some reach farther than the quick sum of all courses does: by so much. First the load
/// alone, ...
const LUCK_OF_LOAD: f64 = 0.3;
/// ... more so where it falls short, ...
const LUCK_OF_LESS_LOAD: f64 = 0.6;
const LUCK_OF_MORE_CACHED: f64 = 0.3;
/// ... and the luckiest of busy ranks runs short of young requests often.
const LUCK_OF_FEWER_CACHED: f64 = 1.3;
/// At the slow scale: the sum, ...
const LUCK_OF_SLOW: f64 = 0.3;
/// ... the load alone, ...
const LUCK_OF_SLOW_LOAD: f64 = 0.5;
const LUCK_OF_LESS_SLOW_LOAD: f64 = 0.8;
/// ... and the speed alone.
const LUCK_OF_SPEED: f64 = 0.4;
/// What is over reaches no farther than this.
const MOST_OF_THE_PAST: f64 = 4.0;

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Course {
    /// Running and queued requests.
    Load,
    /// Running and queued requests that the tokens held do not explain: their prompts are cached.
    Cached,
    /// Tokens a second and request.
    Speed,
}

/// The farthest departure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evidence {
    /// How far, in standard deviations of what is usual in this group; for a trigger.
    pub value: f64,
    /// The same of the last seconds only, of any member; for a clear.
    pub lately: f64,
    /// The member, by its place among the members.
    pub member: usize,
    /// High when it has more work than its peers or gets less of it done.
    pub side: Side,
    /// What shows it most.
    pub course: Course,
}

impl Evidence {
    /// Takes what `member` shows at the quick scale if it reaches farther: as far as it looks out for a
    /// clear, as far as that is `believed` for a trigger.
    pub(super) fn raise_quick(
        &mut self,
        member: usize,
        seen: &Distances,
        (apparent, believed): ([f64; WAYS], [f64; WAYS]),
        is_over: bool,
    ) {
        self.lately = apparent.into_iter().fold(self.lately.max(seen.speed.abs() - LUCK_OF_SPEED), f64::max);
        let [surplus, load, cached] = believed.map(|value| limited(value, is_over));
        self.take(member, surplus, Course::Load, true);
        self.take(member, load, Course::Load, seen.load > 0.0);
        let course = if seen.cached > 0.0 { Course::Cached } else { Course::Load };
        self.take(member, cached, course, seen.cached > 0.0);
    }

    /// Likewise at the slow scale.
    pub(super) fn raise_slow(&mut self, member: usize, seen: &Distances, is_over: bool) {
        let load = seen.load.abs() - if seen.load > 0.0 { LUCK_OF_SLOW_LOAD } else { LUCK_OF_LESS_SLOW_LOAD };
        self.take(member, limited(seen.surplus - LUCK_OF_SLOW, is_over), Course::Load, true);
        self.take(member, limited(load, is_over), Course::Load, seen.load > 0.0);
        self.take(member, seen.speed.abs() - LUCK_OF_SPEED, Course::Speed, seen.speed < 0.0);
    }

    fn take(&mut self, member: usize, value: f64, course: Course, is_high: bool) {
        if value > self.value {
            let side = if is_high { Side::High } else { Side::Low };
            (self.value, self.member, self.side, self.course) = (value, member, side, course);
        }
    }
}

/// How far out a member looks at the quick scale: by all courses, by its load, and by what cached prompts
/// explain of it.
pub(super) fn apparent(seen: &Distances) -> [f64; WAYS] {
    let load = seen.load.abs() - if seen.load > 0.0 { LUCK_OF_LOAD } else { LUCK_OF_LESS_LOAD };
    let cached = (seen.cached - LUCK_OF_MORE_CACHED).max(-seen.cached - LUCK_OF_FEWER_CACHED);
    [seen.surplus, load, cached]
}

/// What is over may be far, but not new.
fn limited(value: f64, is_over: bool) -> f64 {
    if is_over { value.min(MOST_OF_THE_PAST) } else { value }
}
