//! What departs farthest, and what shows it.

use serde::Serialize;

use super::spread::Seen;
use crate::decide::onset::Manner;
use crate::decide::rule::Side;

/// Courses together, the slower scale and the speed reach farther by chance: each by so much.
const TOGETHER: f64 = 0.3;
/// The luckiest of busy ranks runs short of young requests often: that must reach farther yet.
const FEWER_CACHED: f64 = 1.0;
const SLOW_LOAD: f64 = 0.5;
const SPEED_ALONE: f64 = 0.4;
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

impl Course {
    /// How it leaves its peers, for `onset::locate`.
    pub fn manner(self) -> Manner {
        if self == Self::Speed { Manner::Jumps } else { Manner::Accumulates }
    }
}

/// The farthest departure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evidence {
    /// How far, in standard deviations of what is usual in this group; for a trigger.
    pub value: f64,
    /// The same of the last seconds only, of any member; for a clear.
    pub lately: f64,
    /// Whose, by its place among the members.
    pub member: usize,
    /// High when it has more work than its peers or gets less of it done.
    pub side: Side,
    /// What shows it most.
    pub course: Course,
}

impl Evidence {
    /// Takes what `member` shows at the quick (0) or the slow scale, if it reaches farther.
    pub(super) fn raise(&mut self, member: usize, scale: usize, seen: &Seen, is_over: bool) {
        let surplus = seen.surplus - TOGETHER;
        self.take(member, limited(surplus, is_over), Course::Load, true);
        if scale == 0 {
            let cached = (seen.cached - TOGETHER).max(-seen.cached - FEWER_CACHED);
            let speed = seen.speed.abs() - SPEED_ALONE;
            self.lately = self.lately.max(seen.load.abs()).max(surplus).max(cached).max(speed);
            self.take(member, limited(seen.load.abs(), is_over), Course::Load, seen.load > 0.0);
            let course = if seen.cached > 0.0 { Course::Cached } else { Course::Load };
            self.take(member, limited(cached, is_over), course, seen.cached > 0.0);
        } else {
            let slow = limited(seen.load.abs() - SLOW_LOAD, is_over);
            self.take(member, slow, Course::Load, seen.load > 0.0);
            self.take(member, seen.speed.abs() - SPEED_ALONE, Course::Speed, seen.speed < 0.0);
        }
    }

    fn take(&mut self, member: usize, value: f64, course: Course, is_high: bool) {
        if value > self.value {
            let side = if is_high { Side::High } else { Side::Low };
            (self.value, self.member, self.side, self.course) = (value, member, side, course);
        }
    }
}

/// What is over may be far, but not new.
fn limited(value: f64, is_over: bool) -> f64 {
    if is_over { value.min(MOST_OF_THE_PAST) } else { value }
}
