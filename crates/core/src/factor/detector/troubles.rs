//! Which trouble a departure belongs to: one that is under way, the wake of one that has ended, or none so far.
//!
//! A trouble ends when the factor that departed first is as usual again; what its ranks still have to work off
//! (a queue, a full batch, a router that makes up for it) is its wake. A departure belongs to a trouble if the
//! trouble explains it: it is of the same ranks and began with it or soon after, or it is the other side of
//! the same shift of requests. All others are troubles of their own, whatever else goes on.

use std::cell::{LazyCell, OnceCell};

use serde::{Deserialize, Serialize};

use super::{
    CALM, CALM_FOR, CALM_PART, Candidate, Detector, GROSS, MOST_REBLAMES, REBLAME_WITHIN, RECENT, StepContext,
};
use crate::factor::channel::{Channel, MISSES, PACE, PRESSURE, Past, SHARE, SPEED, TESTS, WORK};
use crate::factor::evidence::{Factor, Side, WINDOWS};
use crate::factor::onset::Onset;
use crate::factor::residence::Residence;
use crate::factor::trouble::Trouble;

/// What begins within so many seconds of a trouble's firing, or of its end, may come of it: routers and queues
/// answer within seconds.
const ANSWERS_WITHIN: f64 = 12.0;
const SETTLES_WITHIN: f64 = 6.0;
/// Caches are filled again by the sessions that come back: nearly all have within so many seconds of a trouble's end.
const REFILLS_WITHIN: f64 = 120.0;
/// By inferred arrivals a trouble is over after so many calm seconds, though its ranks' load departs as before.
const CALM_WHILE_BORNE: u32 = 20;
/// A rank that loses this much of its share (on the logarithm, to a fifth) long after it has become slow or its
/// requests heavy was taken out by somebody: routers that look at load answer sooner, or by less.
const TAKEN_OUT: f64 = -1.6;
/// A rank with so much less to do than its peers' mean (on part of it) is nearly idle.
const IDLE: f64 = 0.8;
/// What departs by so many times as much as a trouble, each in units of its bound, is no answer to it.
const MUCH_STRONGER: f64 = 2.0;
/// Shares of the last seconds tell whether a redirect has moved on to another rank.
const LATELY: i64 = 3;
/// It has where they depart by no more than this part of what they did.
const MOVED: f64 = 0.75;
/// More troubles than this are not followed at once.
const MOST_AT_ONCE: usize = 4;

/// A trouble under way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenTrouble {
    #[serde(rename = "incident")]
    pub(super) trouble: Trouble,
    /// The test that found it, by its place in [`TESTS`]; none for a rank that hangs.
    pub(super) test: Option<usize>,
    /// Seconds in a row in which the factor that departed first was as usual.
    pub(super) calm: u32,
    /// The largest effect of each test on the blamed ranks so far.
    pub(super) peaks: [f64; TESTS.len()],
    /// Seconds in which more ranks were to blame, and none since the first that said otherwise.
    pub(super) votes: u32,
    /// Whether nothing was seen of it since an agent before this one saved it: it may have ended meanwhile.
    #[serde(skip)]
    pub(super) is_unseen: bool,
    /// Whether it was found before anything usual was known.
    #[serde(default)]
    pub(super) is_young: bool,
    /// Since when the source in use knows too little to judge it.
    #[serde(skip)]
    pub(super) unjudged: Option<f64>,
}

/// A trouble that has ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClosedTrouble {
    #[serde(rename = "incident")]
    pub(super) trouble: Trouble,
    /// The test that found it, as of [`OpenTrouble`].
    pub(super) test: Option<usize>,
    /// When its factor was first seen to be as usual.
    pub(super) ended: f64,
    /// When it was taken to be over.
    pub(super) at: f64,
}

impl OpenTrouble {
    pub(super) fn new(trouble: Trouble, test: Option<usize>, is_young: bool) -> Self {
        let peaks = [0.0; TESTS.len()];
        Self { trouble, test, calm: 0, peaks, votes: 0, is_unseen: false, is_young, unjudged: None }
    }

    /// Whether `test` looks at what departed first.
    fn is_own(&self, test: usize) -> bool {
        // What was found by load and pace together is over when neither departs.
        if self.test.is_some_and(is_joint) {
            return TESTS[test] != Factor::Work;
        }
        let is_same = TESTS[test] == self.trouble.factor && !is_joint(test);
        // A cache that long prompts have emptied is filled again after they have ended: of the two tests on the work
        // of a request the one that found it counts.
        self.test == Some(test) || is_same && self.trouble.factor != Factor::Work
    }

    /// The side on which `test` sees what departed: less speed is what more requests make of it.
    fn side_of(&self, test: usize) -> Side {
        let is_told_as_speed = self.trouble.factor == Factor::Speed;
        let sees_speed = TESTS[test] == Factor::Speed;
        if is_told_as_speed == sees_speed { self.trouble.side } else { self.trouble.side.opposite() }
    }

    /// In which of the windows enough requests come to tell how long they stay, where that is what departed; `None` of
    /// another trouble, and of ranks to which too few come for any.
    fn seconds_of_stay(&self, residence: &Residence) -> Option<i64> {
        let is_of_stay =
            self.test == Some(SPEED) && self.trouble.ranks.iter().all(|r| residence.is_light(*r));
        let ranks = || self.trouble.ranks.iter();
        let needed = ranks().map(|r| residence.seconds_for_enough(*r)).fold(0.0, f64::max);
        WINDOWS.into_iter().find(|window| is_of_stay && *window as f64 >= needed)
    }

    /// Whether `channel` knows what is usual: it may have been found by another source, which is silent now.
    fn can_be_judged(&self, channel: &Channel) -> bool {
        !channel.is_young() || self.is_young
    }

    /// Counts the seconds in which what departed first is as usual, and whether that is long enough to say that it
    /// is over.
    fn count_calm(
        &mut self,
        channel: &Channel,
        is_stuck: bool,
        has_backlog: bool,
        patience: u32,
        moment: StepContext,
    ) -> bool {
        // Inferred rates fluctuate more, so they are looked at for longer.
        let least = if channel.is_inferred() { 2 * RECENT.0 } else { RECENT.0 };
        // How long requests stay on a rank with little to do shows in as many seconds as bring enough of
        // them, in however many it was found.
        let stay = self.seconds_of_stay(&channel.known.residence);
        let recent = stay.map_or_else(|| self.trouble.window.clamp(least, RECENT.1), |s| s.max(least));
        let from = moment.newest - recent + 1;
        if from < channel.bins.oldest() {
            // An agent before this one found it, and too little was seen since.
            return false;
        }
        let seen = channel.examine(moment.newest, from, moment.pending);
        let mut is_calm = !(is_stuck && self.trouble.factor == Factor::Stuck);
        let mut is_known = true;
        for (test, found) in seen.evidence().iter().enumerate() {
            if !self.is_own(test) {
                continue;
            }
            let side = self.side_of(test);
            for rank in self.trouble.ranks.iter().copied().filter(|r| *r < found.len()) {
                let evidence = found[rank];
                let peak = &mut self.peaks[test];
                *peak = peak.max(evidence.effect.abs());
                let is_small = evidence.deviance < CALM || evidence.effect.abs() < CALM_PART * *peak;
                is_calm &= is_small || evidence.side != side;
                is_known &= channel.is_measured(test, rank, from..moment.newest + 1);
            }
        }
        match (is_calm, is_known || !(has_backlog || stay.is_some())) {
            (false, _) => (self.calm, self.is_unseen) = (0, false),
            (true, true) => self.calm += 1,
            // A rank with a backlog that admits nobody tells nothing of the work of its requests.
            (true, false) => {}
        }
        self.calm >= patience
    }
}

impl ClosedTrouble {
    /// Whether what `test` found is this trouble again. Load and pace together tell that their rank bears more, or
    /// less, than its peers, and not by which factor.
    pub(super) fn is_same(&self, found: &Trouble, test: Option<usize>) -> bool {
        let (old, new) = (&self.trouble, found);
        let shares_rank = new.ranks.iter().any(|r| old.ranks.contains(r));
        let is_unsure = [self.test, test].into_iter().flatten().any(is_joint);
        let bears = |i: &Trouble| load_side(i.factor, i.side);
        shares_rank
            && match is_unsure {
                true => bears(old) == bears(new),
                false => (old.factor, old.side) == (new.factor, new.side),
            }
    }
}

/// The requests that came to a rank in the last seconds.
fn lately(channel: &Channel, rank: usize, moment: StepContext) -> f64 {
    channel.arrivals(rank, moment.newest - LATELY + 1, moment.newest)
}

/// Whether `test` joins load with pace.
const fn is_joint(test: usize) -> bool {
    test == PRESSURE || test == PACE
}

/// Whether a departure of that factor gives its rank more to do, or less: who is slower has more to do for the same.
fn load_side(factor: Factor, side: Side) -> Side {
    if factor == Factor::Speed { side.opposite() } else { side }
}

/// What departs, with what is found out about it once that is asked for.
struct Case<'a> {
    channel: &'a Channel,
    c: &'a Candidate,
    moment: StepContext<'a>,
    blamed: OnceCell<(Side, Vec<usize>)>,
    onset: OnceCell<Option<Onset>>,
}

impl Case<'_> {
    /// Who is to blame, and on which side of what its test measures.
    fn measured(&self) -> (Side, &[usize]) {
        let c = self.c;
        let blame = || self.channel.blame(c.factor, c.rank, &c.evidence, self.moment.newest);
        let (side, ranks) = self.blamed.get_or_init(blame);
        (*side, ranks)
    }

    /// The same, and on which side of its factor: more pressure by pace is less speed.
    fn blamed(&self) -> (Side, &[usize]) {
        let (side, ranks) = self.measured();
        let is_pace = self.c.test == Some(PRESSURE) && self.c.factor == Factor::Speed;
        (if is_pace { side.opposite() } else { side }, ranks)
    }

    /// Since when it departs, as far as `past` goes back.
    fn onset_in(&self, past: &Past) -> Option<Onset> {
        let Case { channel, c, moment, .. } = *self;
        channel.onset(c.test, c.factor, self.measured(), past, (moment.newest, moment.pending))
    }

    /// Since when it is seen, where no onset is found.
    fn window_began(&self) -> f64 {
        self.moment.now - self.c.evidence.window as f64
    }
}

impl Detector {
    /// Whether a trouble is over, a second later.
    pub(super) fn is_over(&self, open: &mut OpenTrouble, channel: &Channel, moment: StepContext) -> bool {
        let stuck = self.stuck.examine(moment.now);
        let ranks = &open.trouble.ranks;
        let is_stuck = ranks.iter().any(|r| stuck.get(*r).is_some_and(Option::is_some));
        let has_backlog = ranks.iter().any(|r| self.shows(*r, Side::High, super::MATERIAL_LOAD));
        // Who came is only inferred: as long as the load itself departs, that they came evenly is no proof.
        let bears = load_side(open.trouble.factor, open.trouble.side);
        let is_borne = || ranks.iter().any(|r| self.shows(*r, bears, super::HEAVY_LOAD));
        let patience = if channel.is_inferred() && is_borne() { CALM_WHILE_BORNE } else { CALM_FOR };
        // Of a source that tells of nobody, though somebody has work, nothing is seen.
        let pause = super::pause_of(channel);
        let is_silent = channel.heard.is_none_or(|heard| heard < moment.now - pause);
        let is_blind = is_silent && !self.stuck.is_idle(moment.now - pause);
        if open.trouble.factor != Factor::Stuck && (is_blind || !open.can_be_judged(channel)) {
            open.unjudged.get_or_insert(moment.now);
            return false;
        }
        open.unjudged = None;
        open.count_calm(channel, is_stuck, has_backlog, patience, moment)
    }

    /// Whether `c` is what a trouble that ended a moment ago leaves behind: what its ranks show while they work
    /// off what they were given meanwhile, and what a router makes up for.
    pub(super) fn is_aftereffect(&self, channel: &Channel, c: &Candidate, moment: StepContext) -> bool {
        self.is_left_behind(&Case { channel, c, moment, blamed: OnceCell::new(), onset: OnceCell::new() })
    }

    fn is_left_behind(&self, case: &Case) -> bool {
        let Case { c, moment, .. } = *case;
        if c.factor == Factor::Stuck {
            return false;
        }
        // A trouble leaves requests on other ranks than their past is on, and its end again: what is computed anew says
        // nothing then. That prompts became longer is seen by all their tokens.
        if c.test == Some(MISSES) && moment.now - self.moved_until < REFILLS_WITHIN {
            return true;
        }
        self.closed.iter().any(|old| {
            if self.is_left_idle(&old.trouble, case) {
                return false;
            }
            let (side, ranks) = case.blamed();
            let is_of_its_ranks = ranks.iter().chain([&c.rank]).any(|r| old.trouble.ranks.contains(r));
            // Shares add up: what one rank had too much of shows as too little of others, and of itself while it
            // works that off, as long as the windows reach into it.
            let is_remainder = (c.factor, old.trouble.factor) == (Factor::Share, Factor::Share)
                && side == old.trouble.side.opposite()
                && self.onset_of(case).is_none_or(|o| o.at - o.error <= old.ended + SETTLES_WITHIN);
            if is_remainder || !is_of_its_ranks {
                return is_remainder;
            }
            // The windows may still reach into it.
            let is_seen_again = (c.factor, side) == (old.trouble.factor, old.trouble.side);
            if is_seen_again && old.trouble.factor != Factor::Stuck {
                return (self.since as f64) < old.ended - 1.0 && self.began(case) <= old.ended;
            }
            let is_working_off = old.trouble.factor == Factor::Stuck
                && moment.now - old.at < (old.at - old.trouble.fired).max(super::REST as f64);
            is_working_off || self.began(case) <= old.ended + SETTLES_WITHIN
        })
    }

    /// Sorts what departs: what belongs to the trouble that is told, `front`, and the strongest of what no trouble
    /// explains, under way or just over.
    pub(super) fn attribute(
        &self,
        channel: &Channel,
        front: &OpenTrouble,
        candidates: &[Candidate],
        moment: StepContext,
    ) -> (Vec<Candidate>, Option<Candidate>) {
        let is_full = self.behind.len() + 1 >= MOST_AT_ONCE;
        let (mut its, mut fresh) = (Vec::new(), None);
        for c in candidates {
            let case = Case { channel, c, moment, blamed: OnceCell::new(), onset: OnceCell::new() };
            let is_left = LazyCell::new(|| self.is_left_behind(&case));
            let is_behind = LazyCell::new(|| self.behind.iter().any(|open| self.explains(open, &case)));
            let is_of_its_ranks = front.trouble.ranks.contains(&c.rank);
            let is_it = is_of_its_ranks && front.test == c.test;
            // What a trouble before has left on another rank is no part of this one.
            let may_be_it = || (is_of_its_ranks || !*is_left) && !*is_behind;
            if is_it || may_be_it() && self.explains(front, &case) {
                its.push(*c);
            } else if fresh.is_none() && !is_full && may_begin(c) && !*is_left && !*is_behind {
                fresh = Some(*c);
            }
        }
        (its, fresh)
    }

    /// Whether `open` explains what departs.
    fn explains(&self, open: &OpenTrouble, case: &Case) -> bool {
        let trouble = &open.trouble;
        let Case { channel, c, moment, .. } = *case;
        if c.factor == Factor::Stuck {
            // That a rank hangs explains what it, and who was sent its requests, showed first.
            let is_answer = trouble.factor == Factor::Share && moment.now <= trouble.fired + ANSWERS_WITHIN;
            return trouble.ranks.contains(&c.rank) || is_answer;
        }
        let (side, ranks) = case.blamed();
        let is_of_its_ranks = ranks.iter().chain([&c.rank]).any(|r| trouble.ranks.contains(r));
        if trouble.factor == Factor::Stuck && (is_of_its_ranks || c.factor == Factor::Share) {
            return true;
        }
        if is_of_its_ranks && (c.factor, side) == (trouble.factor, trouble.side) {
            return true;
        }
        if self.is_beyond_answer(trouble, case) {
            return false;
        }
        if !is_of_its_ranks && self.is_much_stronger(trouble, case) {
            return false;
        }
        let began = LazyCell::new(|| self.began_beside(open, case));
        if *began <= trouble.fired + ANSWERS_WITHIN {
            return true;
        }
        if self.is_left_idle(trouble, case) {
            return false;
        }
        if !is_of_its_ranks {
            // A redirect that moves from rank to rank is one trouble.
            let is_redirect = c.factor == Factor::Share && trouble.factor == Factor::Share;
            return is_redirect && side == trouble.side && self.has_moved_on(channel, trouble, moment);
        }
        if open.calm > 0 {
            return *began <= moment.now - f64::from(open.calm) + SETTLES_WITHIN;
        }
        let is_someone_elses = c.factor == Factor::Share
            && trouble.factor != Factor::Share
            && (side == Side::High || c.evidence.effect < TAKEN_OUT);
        !is_someone_elses
    }

    /// Whether what departs is that ranks are sent more than an answer to `trouble` could give them: somebody
    /// sends it to them. Routers keep the requests of a rank that is slow, or has heavy ones, where they are,
    /// or spread them over the others.
    fn is_beyond_answer(&self, trouble: &Trouble, case: &Case) -> bool {
        let Case { channel, c, moment, .. } = *case;
        if c.test != Some(SHARE) || !matches!(trouble.factor, Factor::Speed | Factor::Work) || !may_begin(c) {
            return false;
        }
        let (side, ranks) = case.blamed();
        side == Side::High
            && !ranks.iter().any(|r| trouble.ranks.contains(r))
            && channel.is_sent_beyond(ranks, &trouble.ranks, c.evidence.window, moment.newest)
    }

    /// Whether ranks of which nothing was told depart far beyond what `trouble` itself does now: no answer is
    /// larger than what it answers to. By then the blame moves no more. What others compute anew, or are
    /// sent, may well be an answer to a rank that is slow, and a redirect may move from rank to rank.
    fn is_much_stronger(&self, trouble: &Trouble, case: &Case) -> bool {
        let Case { channel, c, moment, .. } = *case;
        let is_early = moment.now - trouble.fired <= REBLAME_WITHIN && trouble.reblamed < MOST_REBLAMES;
        // As [`OpenTrouble::note_deviance`]: what lasts shows in ever longer windows.
        let part = trouble.window as f64 / c.evidence.window.max(trouble.window).max(1) as f64;
        let is_stronger = c.strength * part >= MUCH_STRONGER * (trouble.deviance / trouble.bound).max(1.0);
        let is_own = || match c.test {
            Some(SPEED | WORK) => true,
            Some(SHARE) => {
                trouble.factor == Factor::Share
                    && case.blamed().0 == Side::High
                    && !self.has_moved_on(channel, trouble, moment)
            }
            _ => false,
        };
        !is_early && is_stronger && may_begin(c) && is_own()
    }

    /// Whether what departs is that a rank which `trouble` had given too much to do is nearly idle and still
    /// gets next to nothing. Routers that look at load send less to a rank with a backlog, and more once it
    /// has none: somebody took it out.
    fn is_left_idle(&self, trouble: &Trouble, case: &Case) -> bool {
        let Case { channel, c, moment, .. } = *case;
        let gets_nothing = || {
            let all: f64 = (0..self.settings.ranks).map(|rank| lately(channel, rank, moment)).sum();
            lately(channel, c.rank, moment) < TAKEN_OUT.exp() * channel.known.share.usual[c.rank] * all
        };
        trouble.factor != Factor::Stuck
            && load_side(trouble.factor, trouble.side) == Side::High
            && c.factor == Factor::Share
            && c.evidence.side == Side::Low
            && c.evidence.effect < TAKEN_OUT
            && trouble.ranks.contains(&c.rank)
            && self.shows(c.rank, Side::Low, IDLE)
            && gets_nothing()
    }

    /// Whether the ranks that were sent too many, or too few, requests have had their share lately.
    fn has_moved_on(&self, channel: &Channel, trouble: &Trouble, moment: StepContext) -> bool {
        let all: f64 = (0..self.settings.ranks).map(|rank| lately(channel, rank, moment)).sum();
        let theirs: f64 = trouble.ranks.iter().map(|rank| lately(channel, *rank, moment)).sum();
        let usual: f64 = trouble.ranks.iter().map(|r| channel.known.share.usual[*r]).sum();
        let now = ((theirs + 0.5) / (usual * all + 0.5)).ln();
        match trouble.side {
            Side::High => now < MOVED * trouble.effect.unwrap_or(MOVED).abs(),
            Side::Low => now > -MOVED * trouble.effect.unwrap_or(MOVED).abs(),
        }
    }

    /// When what departs began, as early as its onset may be.
    fn began(&self, case: &Case) -> f64 {
        self.onset_of(case).map_or_else(|| case.window_began(), |o| o.at)
    }

    /// The same of the time since `open` began, and surely no earlier: what may have begun with it is no trouble of its
    /// own.
    fn began_beside(&self, open: &OpenTrouble, case: &Case) -> f64 {
        let past = self.past_beside(case.blamed().1, std::iter::once(open));
        case.onset_in(&past).map_or_else(|| case.window_began(), |o| o.at - o.error)
    }

    /// Since when it departs. It is looked for once: that is most of what it costs to tell troubles apart.
    fn onset_of(&self, case: &Case) -> Option<Onset> {
        *case.onset.get_or_init(|| case.onset_in(&self.past_of(case.blamed().1)))
    }

    /// In what the onset of a trouble of `ranks` is looked for.
    pub(super) fn past_of(&self, ranks: &[usize]) -> Past {
        let is_unsettled = self.open.is_some() || !self.behind.is_empty() || !self.closed.is_empty();
        Past { since: self.since, busy: self.busy_with_others(ranks), is_unsettled }
    }

    /// The same beside troubles that go on, since the latest of them began: the health before it would make the level
    /// that it left behind the beginning of what departs now. What began with it, or before, is explained by
    /// it either way.
    pub(super) fn past_beside<'a>(
        &self,
        ranks: &[usize],
        others: impl Iterator<Item = &'a OpenTrouble>,
    ) -> Past {
        let past = self.past_of(ranks);
        let began = others.filter_map(|open| open.trouble.onset).map(|o| (o.at - o.error).floor() as i64);
        Past { since: began.fold(past.since, i64::max), ..past }
    }

    /// Ranks that work off a trouble that has just ended, or are in another one: what they show says nothing of
    /// the onset of one of `ranks`.
    fn busy_with_others(&self, ranks: &[usize]) -> Vec<usize> {
        let open = self.open.iter().chain(&self.behind).map(|open| &open.trouble);
        let all = open.chain(self.closed.iter().map(|closed| &closed.trouble));
        let mut busy: Vec<usize> =
            all.flat_map(|trouble| trouble.ranks.iter().copied()).filter(|r| !ranks.contains(r)).collect();
        busy.sort_unstable();
        busy.dedup();
        // Somebody must be left to compare with.
        if busy.len() + ranks.len() < self.settings.ranks { busy } else { Vec::new() }
    }
}

/// Whether `c` may be a trouble of its own beside one that is under way. Load and pace answer to any trouble on any
/// rank, so what joins them does not count, and of the rest only what is beyond doubt: nothing was learned since.
fn may_begin(c: &Candidate) -> bool {
    c.factor == Factor::Stuck || c.strength >= GROSS && !matches!(c.test, Some(PRESSURE | PACE))
}
