//! What was found is described, blamed anew where it must be, and followed to its end.

use super::{
    BecameUsual, CALM_FOR, Candidate, ClosedTrouble, Detector, GROSS, JOIN_VOTES, MOST_REBLAMES, MOST_USUAL,
    OpenTrouble, REBLAME_FACTOR, REBLAME_WITHIN, RESUMES_WITHIN, STANDING, STANDING_YOUNG, STANDS_FOR,
    StepContext,
};
use crate::factor::channel::{Channel, PRESSURE};
use crate::factor::evidence::{Factor, Side};
use crate::factor::impact::{Impact, estimate};
use crate::factor::onset::Onset;
use crate::factor::trouble::{Symptom, Trouble, TroubleChange};

/// More symptoms of one trouble are not kept.
const MOST_SYMPTOMS: usize = 64;

impl Detector {
    pub(super) fn describe(&self, channel: &Channel, c: &Candidate, moment: StepContext) -> Trouble {
        let StepContext { newest, now, pending, .. } = moment;
        let (factor, test, evidence, bound) = c.told();
        let (side, ranks) = match factor {
            Factor::Stuck => (Side::Low, vec![c.rank]),
            factor => channel.blame(factor, c.rank, evidence, newest),
        };
        let onset = match c.still {
            Some(at) => {
                // It moved last at `at` or up to a report later.
                let error = 0.5 * self.stuck.longest.clamp(1.0, 4.0) + 0.5 * channel.interval;
                Some(Onset { at, error })
            }
            None => {
                let past = self.past_beside(&ranks, self.open.iter().chain(&self.behind));
                let seen = (newest, pending);
                let own = channel.onset(test, factor, (side, &ranks), &past, seen);
                // Both tell of the same trouble: who knows better since when is believed.
                let slow = c
                    .made_by
                    .and_then(|_| channel.onset(c.test, c.factor, (c.evidence.side, &[c.rank]), &past, seen));
                own.into_iter().chain(slow).min_by(|a, b| a.error.total_cmp(&b.error))
            }
        };
        let is_of_stay = c.is_of_stay && c.made_by.is_none();
        // More pressure, by pace: slower.
        let side = if test == Some(PRESSURE) && factor == Factor::Speed { side.opposite() } else { side };
        let symptoms = ranks.iter().map(|r| Symptom { rank: *r, factor, side, seen: now }).collect();
        let impact = self.impact(&ranks, factor);
        Trouble {
            id: 0,
            factor,
            side,
            ranks,
            onset,
            fired: now,
            deviance: evidence.deviance,
            bound,
            effect: (test != Some(PRESSURE) && !is_of_stay).then_some(evidence.effect),
            window: evidence.window,
            impact,
            symptoms,
            reblamed: 0,
        }
    }

    fn impact(&self, ranks: &[usize], factor: Factor) -> Impact {
        estimate(&self.loads, ranks, factor == Factor::Stuck)
    }

    pub(super) fn follow(
        &mut self,
        channel: &mut Channel,
        candidates: &[Candidate],
        moment: StepContext,
    ) -> Vec<TroubleChange> {
        let StepContext { now, .. } = moment;
        self.closed.retain(|closed| now - closed.at < super::WAKE);
        let mut changes = self.follow_behind(channel, moment);
        let Some(front) = &self.open else { return changes };
        // Still open: what it may have left behind counts where the others' onsets are looked for.
        let (its, fresh) = self.attribute(channel, front, candidates, moment);
        let Some(mut open) = self.open.take() else { return changes };
        open.trouble.impact = self.impact(&open.trouble.ranks, open.trouble.factor);
        note_symptoms(&mut open.trouble, &its, now);
        open.note_deviance(&its);
        if let Some(change) = self.update_blame(&mut open, channel, &its, moment) {
            changes.push(change);
        }
        if self.has_ended(&mut open, channel, moment) {
            changes.push(self.close(open, channel, moment));
            self.open = self.behind.pop();
        } else {
            self.open = Some(open);
        }
        match fresh {
            Some(fresh) if self.is_seen_twice(&fresh, vec![fresh.seen()], moment) => {
                changes.push(self.found(channel, &fresh, moment))
            }
            Some(_) => {}
            None => self.suspected.clear(),
        }
        changes
    }

    /// Follows the troubles that go on behind the one that is told.
    fn follow_behind(&mut self, channel: &mut Channel, moment: StepContext) -> Vec<TroubleChange> {
        let mut changes = Vec::new();
        for mut open in std::mem::take(&mut self.behind) {
            if self.has_ended(&mut open, channel, moment) {
                changes.push(self.close(open, channel, moment));
            } else {
                self.behind.push(open);
            }
        }
        changes
    }

    /// Whether a trouble is over, usual by now, or was not observed for long.
    fn has_ended(&self, open: &mut OpenTrouble, channel: &Channel, moment: StepContext) -> bool {
        self.is_over(open, channel, moment)
            || self.is_standing(open, channel, moment)
            || is_unobserved(open, moment.now)
    }

    /// Whether a trouble is so old that it is what is usual now. That a rank with work stands still never is.
    fn is_standing(&self, open: &OpenTrouble, channel: &Channel, moment: StepContext) -> bool {
        // What an agent before this one found is usual once this one has seen enough of it.
        let is_seen = !open.is_unseen && moment.newest - STANDS_FOR >= channel.bins.oldest();
        let now = moment.now;
        // Shares are learned only where no other trouble goes on: told as usual before, it would be found
        // again at once.
        let is_learned = self.open.is_none() && self.behind.is_empty();
        is_seen
            && open.unjudged.is_none()
            && (open.trouble.factor != Factor::Share || is_learned)
            && open.trouble.factor != Factor::Stuck
            && now - open.trouble.fired > if open.is_young { STANDING_YOUNG } else { STANDING }
    }

    /// A trouble is over, or what is usual now.
    fn close(&mut self, open: OpenTrouble, channel: &mut Channel, moment: StepContext) -> TroubleChange {
        let StepContext { newest, now, .. } = moment;
        if is_unobserved(&open, now) {
            self.since = newest + 1;
            self.note_unseen(open.trouble.id);
            return TroubleChange::Cleared(open.trouble);
        }
        let OpenTrouble { trouble, test, calm, .. } = open;
        self.since = newest + 1 - i64::from(calm.saturating_sub(1));
        if calm < CALM_FOR {
            self.since = newest + 1;
            if self.behind.is_empty() && self.open.is_none() {
                channel.takes_shares_for_usual(newest, STANDS_FOR, trouble.factor == Factor::Share);
            }
            channel.take_for_usual(&trouble.ranks, newest, STANDS_FOR);
            self.standing.begin_anew();
            let (id, factor) = (trouble.id, trouble.factor);
            let rank = trouble.ranks.first().copied().unwrap_or_default();
            self.became_usual.push(BecameUsual { id, factor, rank, at: now });
            if self.became_usual.len() > MOST_USUAL {
                self.became_usual.remove(0);
            }
            return TroubleChange::Standing(trouble);
        }
        if has_moved_requests(channel, &trouble, newest) {
            self.moved_until = now;
        }
        let ended = now - f64::from(calm);
        self.closed.push(ClosedTrouble { trouble: trouble.clone(), test, ended, at: now });
        TroubleChange::Cleared(trouble)
    }

    /// More ranks, or another one, for what is going on.
    fn update_blame(
        &self,
        open: &mut OpenTrouble,
        channel: &Channel,
        candidates: &[Candidate],
        moment: StepContext,
    ) -> Option<TroubleChange> {
        let StepContext { newest, now, .. } = moment;
        let OpenTrouble { trouble, votes, .. } = open;
        let stuck = candidates.iter().find(|c| c.factor == Factor::Stuck && trouble.ranks.contains(&c.rank));
        if let Some(stuck) = stuck.filter(|_| trouble.factor != Factor::Stuck) {
            // What departed first came of this.
            return Some(open.reblame(self.describe(channel, stuck, moment), stuck.test));
        }
        let is_early = now - trouble.fired <= REBLAME_WITHIN;
        let may_move = is_early && trouble.reblamed < MOST_REBLAMES;
        // It is slow because of what it is sent.
        let is_sent_more = |c: &&Candidate| c.made_by.is_some() && trouble.ranks.contains(&c.rank);
        let is_told_as_slow = (trouble.factor, trouble.side) == (Factor::Speed, Side::Low);
        if let Some(sent) = candidates.iter().find(is_sent_more).filter(|_| is_told_as_slow && may_move) {
            return Some(open.reblame(self.describe(channel, sent, moment), sent.told().1));
        }
        let is_another = |c: &&Candidate| c.factor == Factor::Share || !trouble.ranks.contains(&c.rank);
        let first = candidates.iter().find(is_another)?;
        let (side, ranks) = match first.factor {
            Factor::Stuck => (Side::Low, vec![first.rank]),
            factor => channel.blame(factor, first.rank, &first.evidence, newest),
        };
        let fresh: Vec<usize> = ranks.iter().copied().filter(|r| !trouble.ranks.contains(r)).collect();
        if fresh.is_empty() {
            return None;
        }
        let shares_one = fresh.len() < ranks.len();
        let half = (self.settings.ranks / 2).max(1);
        let may_join = trouble.ranks.len() + fresh.len() <= half;
        let is_like_it = side == trouble.side && first.factor == trouble.factor;
        // Ranks that depart in the same way at the same time are one trouble, though each is told by itself.
        let departs_too = |c: &Candidate| {
            (c.factor, c.test) == (first.factor, first.test)
                && c.evidence.side == first.evidence.side
                && trouble.ranks.contains(&c.rank)
        };
        let is_joined = first.factor != Factor::Share && candidates.iter().any(departs_too);
        if is_like_it && (shares_one || is_joined) {
            *votes = if may_join { *votes + 1 } else { 0 };
            if *votes < JOIN_VOTES {
                return None;
            }
            *votes = 0;
            trouble.ranks.extend(fresh);
            return Some(TroubleChange::Joined(trouble.clone()));
        }
        // Halves explain each other: more requests here were told first, and now the others are known to get none.
        let is_mirrored = (first.factor, trouble.factor) == (Factor::Share, Factor::Share)
            && (trouble.side, side) == (Side::High, Side::Low)
            && ranks.len() + trouble.ranks.len() == self.settings.ranks
            && !shares_one;
        if is_mirrored {
            *votes += 1;
            if *votes < JOIN_VOTES || !may_move {
                return None;
            }
            *votes = 0;
            return Some(open.reblame(self.describe(channel, first, moment), first.told().1));
        }
        *votes = 0;
        let blamed = candidates
            .iter()
            .filter(|c| trouble.ranks.contains(&c.rank))
            .map(|c| c.strength)
            .fold(0.5, f64::max);
        if may_move && !shares_one && first.strength > REBLAME_FACTOR * blamed {
            return Some(open.reblame(self.describe(channel, first, moment), first.told().1));
        }
        let is_same = (first.factor, side) == (trouble.factor, trouble.side);
        if !is_early
            && may_join
            && is_same
            && side == Side::High
            && first.factor == Factor::Share
            && ranks.len() == 1
            && first.strength > GROSS
        {
            trouble.ranks.extend(fresh);
            return Some(TroubleChange::Joined(trouble.clone()));
        }
        None
    }
}

impl OpenTrouble {
    /// How far it departs now. The same departure shows in ever longer windows the longer it lasts, so what
    /// is compared is as many seconds of it as it was found in. That a rank hangs has no degrees.
    fn note_deviance(&mut self, candidates: &[Candidate]) {
        let trouble = &mut self.trouble;
        if trouble.factor == Factor::Stuck {
            return;
        }
        let of_it = |c: &Candidate| {
            let (factor, test, seen, _) = c.told();
            let is_it = (factor, test) == (trouble.factor, self.test) && trouble.ranks.contains(&c.rank);
            let part = trouble.window as f64 / seen.window.max(trouble.window).max(1) as f64;
            is_it.then_some(seen.deviance * part)
        };
        let now = candidates.iter().filter_map(of_it).max_by(f64::total_cmp);
        // What is no candidate departs by less than its bound.
        trouble.deviance = now.unwrap_or(trouble.deviance.min(trouble.bound));
    }

    /// Another rank or factor is to blame after all: everything that is told of the trouble is of that one.
    fn reblame(&mut self, told: Trouble, test: Option<usize>) -> TroubleChange {
        let before = &mut self.trouble;
        let symptoms = with_symptoms(std::mem::take(&mut before.symptoms), &told.symptoms);
        self.trouble =
            Trouble { id: before.id, fired: before.fired, symptoms, reblamed: before.reblamed + 1, ..told };
        self.test = test;
        TroubleChange::Reblamed(self.trouble.clone())
    }
}

/// Whether no source could judge a trouble for so long that nobody knows whether it goes on.
fn is_unobserved(open: &OpenTrouble, now: f64) -> bool {
    open.unjudged.is_some_and(|since| now - since > RESUMES_WITHIN)
}

/// Whether requests went to other ranks than usual while a trouble went on: they were sent there, or a router took them
/// away from a rank that was slow, or hung. Where arrivals are only inferred, nobody knows.
fn has_moved_requests(channel: &Channel, trouble: &Trouble, newest: i64) -> bool {
    let moves = |factor: Factor| matches!(factor, Factor::Share | Factor::Stuck);
    let is_told = moves(trouble.factor) || trouble.symptoms.iter().any(|symptom| moves(symptom.factor));
    let began = trouble.onset.map_or(trouble.fired - trouble.window as f64, |onset| onset.at);
    is_told || channel.is_inferred() || channel.have_shares_moved(began.floor() as i64, newest)
}

fn note_symptoms(trouble: &mut Trouble, candidates: &[Candidate], now: f64) {
    let symptom =
        |c: &Candidate| Symptom { rank: c.rank, factor: c.factor, side: c.evidence.side, seen: now };
    let seen: Vec<Symptom> = candidates.iter().map(symptom).collect();
    trouble.symptoms = with_symptoms(std::mem::take(&mut trouble.symptoms), &seen);
}

/// What departed, in order, each of it once, however often a trouble comes back.
pub(super) fn with_symptoms(mut known: Vec<Symptom>, more: &[Symptom]) -> Vec<Symptom> {
    for new in more {
        let is_it = |s: &Symptom| (s.rank, s.factor, s.side) == (new.rank, new.factor, new.side);
        if !known.iter().any(is_it) && known.len() < MOST_SYMPTOMS {
            known.push(*new);
        }
    }
    known
}
