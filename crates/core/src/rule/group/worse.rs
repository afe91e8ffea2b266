//! A group that fires after a capture: is it getting worse?

use super::{Group, Running};
use crate::rule::change::{Change, How};
use crate::rule::condition::Judgement;
use crate::rule::state::State;
use crate::rule::worse::{Worsening, times_bound};
use crate::signal::frame::Frame;
use skewtrap_trace::time::Time;

impl Group {
    /// Its firing was captured, or tried to be, at `mark` times its bound: from now on it is told
    /// when it is `by` times worse.
    pub fn watch_worse(&mut self, running: &Running, mark: f64, by: f64) {
        if matches!(self.state, State::Firing(_) | State::Unknown { was: Some(_) }) {
            let settles = running.rule.trigger.conditions[self.fired_by].settles();
            self.worse = Some(Worsening::new(mark, by, settles));
        }
    }

    /// The condition that fired, on the member and the side that it blamed: another condition,
    /// member or side is no measure of whether this one got worse.
    pub(super) fn worsened(
        &mut self,
        running: &Running,
        frames: &[Frame],
        trigger: &Judgement,
        sorted: &mut Vec<f64>,
        now: Time,
    ) -> Option<Change> {
        let (State::Firing(firing), Some(worse)) = (&self.state, &mut self.worse) else { return None };
        let lead = self.fired_by;
        let (condition, frame) = (&running.rule.trigger.conditions[lead], &frames[running.trigger[lead]]);
        let reading = if trigger.lead == lead {
            trigger.reading
        } else {
            let departed = self.watcher.as_ref().and_then(|w| w.evidence());
            condition.read(frame, departed.as_ref(), sorted)
        };
        let is_same = condition.is_exceeded(&reading)
            && frame.members.get(reading.member).is_some_and(|m| firing.blame.is(&m.id, reading.side));
        // The rest of the trigger must hold, too, and the guard, as at the onset: a firing lasts until
        // it clears, and is no reason for a window by itself.
        let times = (is_same && trigger.holds).then(|| times_bound(reading.value, condition.bound));
        let answered = &mut self.answered;
        let mut allows = || {
            let looks = running.guard.iter().map(|l| &frames[*l]);
            let guard = running.rule.only_if.as_ref();
            guard.is_none_or(|guard| guard.still_holds(answered, looks, now) == Ok(true))
        };
        let times = times.filter(|times| *times < worse.needed() || allows());
        let hold = running.holds.trigger.max(condition.hold);
        let told = worse.look(times, frame.newest, hold, now);
        let judged = Judgement { holds: true, lead, reading };
        told.then(|| self.change(How::Worsened, running, Some((&judged, frames)), None, now))
    }

    pub(super) fn interrupt(&mut self) {
        if let Some(worse) = &mut self.worse {
            worse.interrupt();
        }
    }
}
