//! What a group tells when its state changed: the finding, and the numbers that made it.

use super::{Group, Running};
use crate::finding::{Finding, MemberValue};
use crate::rule::change::{Change, How, Numbers};
use crate::rule::condition::Judgement;
use crate::rule::state::{Firing, State};
use crate::rule::statistic::Statistic;
use crate::signal::frame::Frame;
use skewtrap_trace::labels::LabelValue;
use skewtrap_trace::time::Time;

impl Group {
    /// The onset as the detector sees it, else since when the trigger has held; the engine, which can
    /// look back in the store, may do better.
    fn finding_of(&self, firing: &Firing, since: Time, numbers: &Numbers) -> Finding {
        let watcher = self.watcher.as_ref();
        let is_departure = &*numbers.statistic == Statistic::Departure.name();
        let located = watcher.filter(|_| is_departure).and_then(|w| w.onset(&w.evidence()?, self.settled));
        Finding {
            onset: located.map_or(since, |o| o.at),
            onset_error_s: located.map_or(0.0, |o| o.error_s),
            rank: (*firing.blame.member).clone(),
            side: firing.blame.side,
            statistic: numbers.statistic.clone(),
            signal: numbers.signal.clone(),
            value: numbers.value,
            bound: numbers.bound,
            members: numbers.members.clone(),
            evidence: None,
            shown_by: None,
        }
    }

    pub(super) fn change(
        &self,
        how: How,
        running: &Running,
        judged: Option<(&Judgement, &[Frame])>,
        reason: Option<String>,
        now: Time,
    ) -> Change {
        let numbers = judged.map(|(judgement, frames)| numbers_of(running, judgement, frames));
        let (since, finding) = match &self.state {
            State::Firing(f) => {
                // A condition with a `for` of its own has held since before the trigger did.
                let since =
                    judged.and_then(|(j, _)| self.held.since(j.lead)).map_or(f.since, |s| s.min(f.since));
                let begins = numbers.as_ref().filter(|_| how != How::Worsened);
                (since, begins.map(|n| self.finding_of(f, since, n)))
            }
            State::Pending { since } => (*since, None),
            _ => (now, None),
        };
        let target = self.labels.get("target").and_then(|t| match t {
            LabelValue::Text(name) => Some(name.clone()),
            LabelValue::Index(_) => None,
        });
        let mut group = self.labels.clone();
        group.0.remove("target");
        let (rule, state) = (running.rule.clone(), self.phase());
        let may_carry_on = !self.was_calm;
        Change { at: now, rule, target, group, state, how, since, finding, numbers, reason, may_carry_on }
    }
}

fn numbers_of(running: &Running, judgement: &Judgement, frames: &[Frame]) -> Numbers {
    let condition = &running.rule.trigger.conditions[judgement.lead];
    let members = frames[running.trigger[judgement.lead]].members.iter();
    Numbers {
        statistic: condition.statistic.name().into(),
        signal: condition.signal_name.clone(),
        value: judgement.reading.value,
        bound: condition.bound,
        members: members
            .map(|m| MemberValue { rank: (*m.id).clone(), value: m.value, stale: m.stale })
            .collect(),
    }
}
