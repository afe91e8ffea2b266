//! A standing imbalance: ranks that have been uneven for as long as they are compared, so that no test tells a
//! beginning. One incident for information: no window shows how it began.

use std::sync::Arc;

use super::core::{Core, notify};
use super::event::Effect;
use crate::factor::{self, Factor};
use crate::finding::{Finding, Measured, MemberValue, Side, Statistic};
use crate::incident::{Incident, STANDING};
use crate::rule::Severity;
use skewtrap_trace::rank::{Rank, rank_name};
use skewtrap_trace::time::Time;

impl Core {
    /// Opens the incident of each server whose ranks are found to have been uneven all the time, and ends those of
    /// servers on which they are no more. Where nobody can say, as after a start, nothing changes.
    pub(super) fn follow_standing(&mut self, now: Time, out: &mut Vec<Effect>) {
        for place in 0..self.servers.len() {
            let name = self.servers[place].name.clone();
            let Some(found) = self.engine.standing(&name) else { continue };
            let found = found.map(|(uneven, ranks)| (uneven.rank, uneven.side, finding_of(&uneven, ranks)));
            let open = self.incidents.standing(&name).map(|active| active.incident.clone());
            match (open, found) {
                (None, Some((.., finding))) => self.open_standing(name, finding, now, out),
                (Some(open), None) => self.resolve_incident(&open.id, now, out),
                (Some(open), Some((.., finding))) if !is_same(&open.finding, &finding) => {
                    self.resolve_incident(&open.id, now, out);
                    self.open_standing(name, finding, now, out);
                }
                _ => {}
            }
        }
    }

    fn open_standing(&mut self, server: Arc<str>, finding: Finding, now: Time, out: &mut Vec<Effect>) {
        let silenced = self.silenced_until(STANDING, &server, now);
        let about = "The ranks have been uneven for as long as they are compared: this did not begin now, and no window is opened.";
        let incident = Incident {
            about: Some(about.into()),
            severity: Severity::Info,
            ..Incident::new("".into(), STANDING.into(), server, now, finding)
        };
        let active = self.incidents.open_standing(incident, silenced);
        notify(active, crate::message::Update::Fired, out);
        if silenced.is_some() {
            out.push(Effect::Store { incident: Box::new(active.incident.clone()) });
        }
    }
}

fn is_same(a: &Finding, b: &Finding) -> bool {
    (&a.rank, a.side) == (&b.rank, b.side)
}

fn finding_of(uneven: &factor::Uneven, ranks: &[u16]) -> Finding {
    let labels = |place: usize| Rank::dp(ranks.get(place).copied().unwrap_or_default()).labels();
    let member =
        |(place, value): (usize, &f64)| MemberValue { rank: labels(place), value: *value, stale: false };
    let (rank, loads) = (labels(uneven.rank), &uneven.loads);
    let since = Time::from_epoch_s(uneven.since);
    let what = match (uneven.factor, uneven.side) {
        (Factor::Share, _) => format!("is sent {:.2} times as many requests as its peers", uneven.times),
        (Factor::Work, _) => format!("gets requests of {:.2} times its peers' tokens", uneven.times),
        (_, factor::Side::High) => {
            format!("takes {:.2} times as long as its peers for the same work", uneven.times)
        }
        (_, factor::Side::Low) => format!("takes {:.2} of its peers' time for the same work", uneven.times),
    };
    let (statistic, side, sign) = match uneven.side {
        factor::Side::High => (Statistic::MaxOverMean, Side::High, 1.0),
        factor::Side::Low => (Statistic::MinOverMean, Side::Low, -1.0),
    };
    let n = loads.len() as f64;
    let value = loads[uneven.rank] * n / loads.iter().sum::<f64>().max(1e-9);
    // The excess of one rank over its part has an impact on that part of all requests.
    let bound = 1.0 + sign * uneven.worth * n;
    Finding {
        rank: rank.clone(),
        side,
        measured: Some(Measured { statistic, signal: "load".into(), value, bound, members_signal: None }),
        members: loads.iter().enumerate().map(member).collect(),
        ..Finding::requested(
            since,
            Some(format!(
                "standing, its beginning is before the agent's first look: {} {what}; {:.0} % of all requests would be served faster if the load were even",
                rank_name(&rank),
                100.0 * uneven.impact
            )),
        )
    }
}
