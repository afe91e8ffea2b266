//! What was found is described, blamed anew where it must be, and followed to its end.

use super::{
    CALM, CALM_FOR, CALM_PART, Candidate, Detector, GROSS, JOIN_VOTES, MOST_REBLAMES, Moment, REBLAME_FACTOR,
    REBLAME_WITHIN, RECENT, STANDING, STANDING_YOUNG,
};
use crate::factor::channel::{Channel, PRESSURE, TESTS};
use crate::factor::evidence::{Factor, Side};
use crate::factor::harm::{Harm, estimate};
use crate::factor::incident::{Change, Incident, Symptom};
use crate::factor::onset::Onset;

impl Detector {
    pub(super) fn describe(&self, channel: &Channel, c: &Candidate, moment: Moment) -> Incident {
        let Moment { newest, now, pending, .. } = moment;
        let (side, ranks) = match c.factor {
            Factor::Stuck => (Side::Low, vec![c.rank]),
            factor => channel.blame(factor, c.rank, &c.evidence, newest),
        };
        let onset = match c.still {
            Some(at) => {
                // It moved last at `at` or up to a report later.
                let error = 0.5 * self.stuck.longest.clamp(1.0, 4.0) + 0.5 * channel.interval;
                Some(Onset { at, error })
            }
            None => channel.onset(c.test, c.factor, side, &ranks, newest, self.since, pending),
        };
        // More pressure, by pace: slower.
        let side = if c.test == Some(PRESSURE) && c.factor == Factor::Speed { opposite(side) } else { side };
        let symptoms =
            ranks.iter().map(|r| Symptom { rank: *r, factor: c.factor, side, seen: now }).collect();
        let harm = self.harm(&ranks, c.factor);
        Incident {
            id: 0,
            factor: c.factor,
            side,
            ranks,
            onset,
            fired: now,
            deviance: c.evidence.deviance,
            bound: c.bound,
            effect: (c.test != Some(PRESSURE)).then_some(c.evidence.effect),
            window: c.evidence.window,
            harm,
            symptoms,
            reblamed: 0,
        }
    }

    fn harm(&self, ranks: &[usize], factor: Factor) -> Harm {
        estimate(&self.loads, ranks, factor == Factor::Stuck)
    }

    pub(super) fn follow(
        &mut self,
        channel: &mut Channel,
        candidates: &[Candidate],
        moment: Moment,
    ) -> Vec<Change> {
        let Moment { newest, now, .. } = moment;
        let Some(mut open) = self.open.take() else { return Vec::new() };
        let mut changes = Vec::new();
        open.incident.harm = self.harm(&open.incident.ranks, open.incident.factor);
        note_symptoms(&mut open.incident, candidates, now);
        if let Some(change) =
            self.blame_again(&mut open.incident, &mut open.votes, channel, candidates, moment)
        {
            changes.push(change);
        }
        open.calm =
            if self.is_calm(channel, &open.incident, &mut open.peaks, moment) { open.calm + 1 } else { 0 };
        let patience = if channel.is_young() { STANDING_YOUNG } else { STANDING };
        if open.calm >= CALM_FOR || now - open.incident.fired > patience {
            self.since = newest - i64::from(open.calm.saturating_sub(1)) + 1;
            if open.calm >= CALM_FOR {
                self.closed = Some((now, open.incident.clone()));
                changes.push(Change::Cleared(open.incident));
            } else {
                self.since = newest + 1;
                changes.push(Change::Standing(open.incident));
            }
        } else {
            self.open = Some(open);
        }
        changes
    }

    /// More ranks, or another one, for what is going on.
    fn blame_again(
        &self,
        incident: &mut Incident,
        votes: &mut u32,
        channel: &Channel,
        candidates: &[Candidate],
        moment: Moment,
    ) -> Option<Change> {
        let Moment { newest, now, .. } = moment;
        let stuck = candidates.iter().find(|c| c.factor == Factor::Stuck && incident.ranks.contains(&c.rank));
        if let Some(stuck) = stuck.filter(|_| incident.factor != Factor::Stuck) {
            // What departed first came of this.
            let told = self.describe(channel, stuck, moment);
            incident.symptoms.extend(told.symptoms);
            (incident.factor, incident.side, incident.ranks) = (told.factor, told.side, told.ranks);
            (incident.onset, incident.harm, incident.effect) = (told.onset, told.harm, told.effect);
            incident.reblamed += 1;
            return Some(Change::Reblamed(incident.clone()));
        }
        let first =
            candidates.iter().find(|c| c.factor == Factor::Share || !incident.ranks.contains(&c.rank))?;
        let (side, ranks) = match first.factor {
            Factor::Stuck => (Side::Low, vec![first.rank]),
            factor => channel.blame(factor, first.rank, &first.evidence, newest),
        };
        let fresh: Vec<usize> = ranks.iter().copied().filter(|r| !incident.ranks.contains(r)).collect();
        if fresh.is_empty() {
            return None;
        }
        let is_early = now - incident.fired <= REBLAME_WITHIN;
        let shares_one = fresh.len() < ranks.len();
        let half = (self.settings.ranks / 2).max(1);
        let may_join = incident.ranks.len() + fresh.len() <= half;
        if shares_one && side == incident.side && first.factor == incident.factor {
            *votes = if may_join { *votes + 1 } else { 0 };
            if *votes < JOIN_VOTES {
                return None;
            }
            *votes = 0;
            incident.ranks.extend(fresh);
            return Some(Change::Joined(incident.clone()));
        }
        *votes = 0;
        let blamed = candidates
            .iter()
            .filter(|c| incident.ranks.contains(&c.rank))
            .map(|c| c.strength)
            .fold(0.5, f64::max);
        if is_early
            && !shares_one
            && incident.reblamed < MOST_REBLAMES
            && first.strength > REBLAME_FACTOR * blamed
        {
            let told = self.describe(channel, first, moment);
            incident.symptoms.extend(told.symptoms);
            (incident.factor, incident.side, incident.ranks, incident.onset) =
                (told.factor, told.side, told.ranks, told.onset);
            incident.reblamed += 1;
            return Some(Change::Reblamed(incident.clone()));
        }
        if !is_early
            && may_join
            && side == Side::High
            && first.factor == Factor::Share
            && ranks.len() == 1
            && first.strength > GROSS
        {
            incident.ranks.extend(fresh);
            return Some(Change::Joined(incident.clone()));
        }
        None
    }

    fn is_calm(
        &self,
        channel: &Channel,
        incident: &Incident,
        peaks: &mut [f64; TESTS.len()],
        moment: Moment,
    ) -> bool {
        let Moment { newest, now, pending, .. } = moment;
        if self.stuck.examine(now).iter().any(Option::is_some) {
            return false;
        }
        let recent = incident.window.clamp(RECENT.0, RECENT.1);
        let seen = channel.examine(newest, newest - recent + 1, pending);
        let mut is_calm = true;
        for (found, peak) in seen.evidence().iter().zip(peaks) {
            for evidence in incident.ranks.iter().filter_map(|r| found.get(*r)) {
                *peak = peak.max(evidence.effect.abs());
                is_calm &= evidence.deviance < CALM || evidence.effect.abs() < CALM_PART * *peak;
            }
        }
        is_calm
    }
}

fn opposite(side: Side) -> Side {
    match side {
        Side::High => Side::Low,
        Side::Low => Side::High,
    }
}

fn note_symptoms(incident: &mut Incident, candidates: &[Candidate], now: f64) {
    for c in candidates {
        let known = |s: &Symptom| s.rank == c.rank && s.factor == c.factor && s.side == c.evidence.side;
        if !incident.symptoms.iter().any(known) && incident.symptoms.len() < 64 {
            incident.symptoms.push(Symptom {
                rank: c.rank,
                factor: c.factor,
                side: c.evidence.side,
                seen: now,
            });
        }
    }
}
