//! One way in which arrivals and work are known (lines, counters or gauges), with the tests on it. What
//! they are made of differs in noise, so nothing that was learned on one is used for another.

mod since;

use std::collections::VecDeque;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::factor::bins::{Bin, Bins};
use crate::factor::cost_model::{CostModel, decoding_of};
use crate::factor::evidence::{Evidence, Factor, Grid, Side, WINDOWS};
use crate::factor::intake::{InterpretedReading, WorkSpan};
use crate::factor::pressure::{self, Pressure};
use crate::factor::residence::{self, Residence};
use crate::factor::share::{self, Share, culprits};
use crate::factor::speed::{self, Pending, Speed, WorkKind};
use crate::factor::tail::{LEAST_BOUND, Tail};
use crate::factor::work::{self, Tokens, Work};

/// A channel is young for so many seconds.
const YOUNG: f64 = 120.0;
/// Readings that are nearer to each other are of one poll, in seconds; how fast the time between polls is
/// learned, a poll.
const LEAST_INTERVAL: f64 = 0.2;
const INTERVAL_GAIN: f64 = 0.2;
/// The work of a request is measured on so many of them, and a speed while a rank was busy for this part of the time.
const MEASURED_REQUESTS: f64 = 6.0;
const MEASURED_PART: f64 = 0.4;
/// A second is learned after so many more healthy ones.
const LAG: i64 = 8;
/// While something departs that is not told yet, after so many.
const MOST_LAG: i64 = 60;

/// Shares that have departed for so many seconds, of more requests than what is usual rests on, are the
/// better guess of that.
const MOST_DOUBT: i64 = 24;

/// How well a source knows arrivals and work, before anything is learned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SourceQuality {
    /// How stale counts are, in seconds: servers publish every few dozen steps.
    pub staleness: f64,
    /// The standard deviation of the logarithm of a busy second's needed over spent.
    pub noise: f64,
    /// Whether arrivals are only inferred from what runs.
    pub is_inferred: bool,
    /// Whether a stretch of work is timed by single reports: one that is late makes its rank slow.
    pub is_timed_singly: bool,
    /// Whether the work of a stretch is only guessed from its last throughput.
    pub is_guessed: bool,
}

#[derive(Clone, Debug)]
pub struct Channel {
    /// The recent past.
    pub bins: Bins,
    pub known: LearnedState,
    quality: SourceQuality,
    /// When anything was last heard on it.
    pub heard: Option<f64>,
    /// The last second in which a rank had no room: arrivals are in doubt then.
    full: Option<i64>,
    /// Healthy seconds that were not learned yet.
    unlearned: VecDeque<Unlearned>,
    /// The usual time between two polls, in seconds; 0 where readings come as things happen.
    pub interval: f64,
}

/// What was learned of a site: to be kept over a restart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LearnedState {
    /// The cost model of all work, and of decoding alone.
    pub clock: CostModel,
    pub decoding: CostModel,
    /// Requests a rank.
    pub share: Share,
    /// Seconds for the same work.
    pub speed: Speed,
    /// Seconds of decoding a second.
    pub pace: Speed,
    /// Prompt tokens a request.
    pub work: Work,
    /// Computed tokens a request.
    pub misses: Work,
    /// Share joined with pace.
    pub pressure: Pressure,
    /// How long requests stay.
    #[serde(default)]
    pub residence: Residence,
    /// The tests' tails, in the order of [`TESTS`].
    pub tails: [Tail; TESTS.len()],
}

/// The tests with a statistic, by what they look at.
pub const TESTS: [Factor; 6] =
    [Factor::Share, Factor::Speed, Factor::Work, Factor::Work, Factor::Share, Factor::Speed];

/// What departs over so many seconds rests on several reports of a rank ...
const LASTS: i64 = 6;
/// ... and by so much (on the logarithm, 1.5 times) not on the mean of one that came very late and of usual ones.
const BY_HALF: f64 = 0.405;

/// A rank of which another test shows this (three standard deviations) holds requests longer because of that.
const EXPLAINED: f64 = 4.5;
/// What departs by this deviance (four standard deviations) from what is looked at for another reason is no chance.
const BEYOND_CHANCE: f64 = 8.0;
/// A share that departs by this part of its bound counts beside another departure of the same rank.
const BESIDE: f64 = 0.5;
/// The place of the test on the requests that a rank is sent.
pub const SHARE: usize = 0;
/// The place of the test on the time that equal work takes or, of a rank with little to do, that requests stay.
pub const SPEED: usize = 1;
/// The place of the test on all the tokens of a request.
pub const WORK: usize = 2;
/// The place of the test on those that were computed.
pub const MISSES: usize = 3;
/// The place of the test that joins share with another factor.
pub const PRESSURE: usize = 4;
/// The place of the test on the pace of decoding alone. It is one only where nothing tells what a rank did
/// between two reports, so that the speed at equal work is a guess: more prompts slow decoding as well, so
/// that what departs is not a slow rank for certain, but a rank in trouble it is.
pub const PACE: usize = 5;
/// The nominal noise of a busy second's pace: prompts take a part of it that varies.
const PACE_NOISE: f64 = 0.3;
/// A joint departure of less than this in both (on the logarithm) is no trouble.
const MATERIAL: f64 = 0.18;

/// In what an onset is looked for.
#[derive(Clone, Debug)]
pub struct Past {
    /// No further back than this second.
    pub since: i64,
    /// Not at these ranks: they are in another trouble, or work one off.
    pub busy: Vec<usize>,
    /// Whether another trouble goes on, or ended a moment ago: it may have left the usual level of others behind.
    pub is_unsettled: bool,
}

/// The place of a window among [`WINDOWS`].
fn place_of(window: i64) -> usize {
    WINDOWS.iter().position(|w| *w == window).unwrap_or(0)
}

/// What the tests saw in a second.
#[derive(Clone, Debug)]
pub struct Examination {
    share: share::Examination,
    speed: speed::Examination,
    work: work::Examination,
    misses: work::Examination,
    pace: speed::Examination,
    pressure: pressure::Examination,
    residence: residence::Examination,
    /// The evidence of the pace, where it is a test.
    paced: Vec<Evidence>,
}

/// What is kept of a second until it is learned.
#[derive(Clone, Debug)]
struct TrainingSample {
    speed: speed::TrainingSample,
    work: work::TrainingSample,
    misses: work::TrainingSample,
    pace: speed::TrainingSample,
    pressure: Grid,
    residence: Grid,
    /// The strongest evidence of each of [`TESTS`].
    deviances: [f64; TESTS.len()],
}

/// A second of which the shares were not learned yet.
#[derive(Clone, Debug)]
struct Unlearned {
    second: i64,
    share: Grid,
    /// All else, until that was learned: doubt about the shares holds up nothing of it.
    training: Option<TrainingSample>,
    /// Whether the shares departed in a window that covers it.
    is_doubtful: bool,
}

impl Examination {
    fn into_training(self) -> (Grid, TrainingSample) {
        let deviances =
            self.evidence().map(|evidence| evidence.iter().map(|e| e.deviance).fold(0.0, f64::max));
        let training = TrainingSample {
            speed: self.speed.training,
            work: self.work.training,
            misses: self.misses.training,
            pace: self.pace.training,
            pressure: self.pressure.roots,
            residence: self.residence.roots,
            deviances,
        };
        (self.share.roots, training)
    }

    /// The evidence of each of [`TESTS`], per rank.
    pub fn evidence(&self) -> [&[Evidence]; TESTS.len()] {
        [
            &self.share.evidence,
            &self.speed.evidence,
            &self.work.evidence,
            &self.misses.evidence,
            &self.pressure.evidence,
            &self.paced,
        ]
    }

    /// Whether what `test` found on `rank` is that requests stay longer, and not the time that equal work took.
    pub fn is_of_stay(&self, test: usize, rank: usize) -> bool {
        test == SPEED && self.residence.evidence[rank].deviance >= self.speed.evidence[rank].deviance
    }

    /// The factor that `test` found departed on `rank`.
    pub fn factor(&self, test: usize, rank: usize) -> Factor {
        if test == PRESSURE && !self.pressure.is_share[rank] { Factor::Speed } else { TESTS[test] }
    }
}

impl Channel {
    /// For `ranks` ranks, beginning at `second`.
    pub fn new(ranks: usize, second: i64, quality: SourceQuality) -> Self {
        let known = LearnedState {
            clock: CostModel::default(),
            decoding: CostModel::default(),
            share: Share::new(ranks, quality.staleness),
            speed: Speed::new(ranks, quality.noise, WorkKind::All),
            pace: Speed::new(ranks, PACE_NOISE, WorkKind::Decoding),
            work: Work::new(ranks, Tokens::All),
            misses: Work::new(ranks, Tokens::Computed),
            pressure: Pressure::default(),
            residence: Residence::new(ranks),
            tails: [Tail::default(); TESTS.len()],
        };
        Self {
            bins: Bins::new(ranks, second),
            known,
            quality,
            heard: None,
            full: None,
            unlearned: VecDeque::new(),
            interval: 0.0,
        }
    }

    /// Takes what was `known` before for what is known. An agent of an earlier release knew nothing of stays.
    pub fn remember(&mut self, known: LearnedState) {
        let unknown = std::mem::replace(&mut self.known, known).residence;
        if !self.known.residence.is_of(self.known.share.usual.len()) {
            self.known.residence = unknown;
        }
    }

    /// Takes in what a reading means. Only healthy stretches teach the cost model. While a better source is there the
    /// recent past is not `kept`: it is most of the memory of a channel.
    pub fn take(
        &mut self,
        rank: usize,
        at: f64,
        meaning: &InterpretedReading,
        is_healthy: bool,
        is_kept: bool,
    ) {
        if !is_kept {
            self.bins.begin_after(at.floor() as i64);
        }
        if meaning.is_full {
            self.full = self.full.max(Some(at.floor() as i64));
        }
        if let Some(came) = meaning.came {
            self.hear(at);
            self.bins.spread(rank, came.from, came.to, |bin, part| bin.arrivals += part * came.requests);
        }
        if let Some(brought) = meaning.work {
            let (from, to) = meaning.came.map_or((at, at), |came| (came.from, came.to));
            let LearnedState { work, misses, .. } = &mut self.known;
            let of_one = |work: &Work, logarithm: f64| {
                brought.together.map_or(logarithm, |together| work.batches.of_one(together, logarithm))
            };
            let (prompt, computed) = (of_one(work, brought.prompt), of_one(misses, brought.computed));
            self.bins.spread(rank, from, to, |bin, part| {
                bin.work += part * brought.admitted * prompt;
                bin.computed += part * brought.admitted * computed;
                bin.admitted += part * brought.admitted;
                bin.met += part * brought.admitted * brought.met;
            });
            if let Some(together) = brought.together.filter(|_| is_healthy) {
                work.hear(rank, together, brought.prompt);
                misses.hear(rank, together, brought.computed);
            }
        }
        if let Some(needed) = meaning.prompts.and_then(|did| self.known.clock.needed(&did)) {
            self.bins.at(rank, at, |bin| bin.prompts += needed);
        }
        if let Some(WorkSpan { from, to, did }) = meaning.stretch {
            self.hear(at);
            let alone = decoding_of(&did);
            if let Some(needed) = self.known.clock.needed(&did) {
                let decoding = self.known.decoding.needed(&alone).unwrap_or(0.0);
                self.bins.spread(rank, from, to, |bin, part| {
                    bin.needed += part * needed;
                    bin.decoding += part * decoding;
                    bin.spent += part * (to - from);
                });
            }
            if is_healthy {
                self.known.decoding.learn(rank, &alone, to - from, self.known.pace.usual_factor(rank));
                self.known.clock.learn(rank, &did, to - from, self.known.speed.usual_factor(rank));
            }
        }
    }

    fn hear(&mut self, at: f64) {
        let gap = self.heard.map_or(0.0, |before| at - before);
        // All ranks are told of at once.
        if gap > LEAST_INTERVAL {
            self.interval += INTERVAL_GAIN * (gap - self.interval);
        }
        self.heard = Some(self.heard.map_or(at, |before| before.max(at)));
    }

    /// The last second of which a poll told, at least its greater part.
    pub fn told_until(&self) -> i64 {
        self.heard.map_or(i64::MIN / 2, |heard| (heard + 0.5).floor() as i64 - 1)
    }

    /// What each test sees in windows from `since` to `newest`.
    pub fn examine(&self, newest: i64, since: i64, pending: &[Pending]) -> Examination {
        let sums = self.bins.sums(newest, since);
        let SourceQuality { is_inferred, is_guessed, .. } = self.quality;
        let share = self.known.share.examine(&sums, self.full, is_inferred);
        let mut crowding = share.crowding;
        if is_guessed {
            // A report that tells of a window may have begun before it, in a crowd that is gone.
            (0..speed::WINDOW_COUNT - 1).rev().for_each(|w| crowding[w] = crowding[w].max(crowding[w + 1]));
        }
        let of_speed = if is_guessed { &crowding[..] } else { &[] };
        let mut speed = self.known.speed.examine(&sums, pending, of_speed, is_guessed);
        let pace = self.known.pace.examine(&sums, pending, &crowding, is_guessed);
        let paced = if self.quality.is_guessed { pace.evidence.clone() } else { Vec::new() };
        let pressure = self.pressure(&share, &pace);
        let work = self.known.work.examine(&sums, is_inferred);
        let misses = self.known.misses.examine(&sums, is_inferred);
        let is_more = |e: &Evidence| e.side == Side::High && e.deviance >= EXPLAINED;
        let is_explained =
            |r: usize| [&share.evidence, &work.evidence, &misses.evidence].iter().any(|e| is_more(&e[r]));
        let residence = self.known.residence.examine(&sums, is_explained);
        for (speed, stay) in speed.evidence.iter_mut().zip(&residence.evidence) {
            *speed = speed.or(*stay);
        }
        Examination { share, speed, work, misses, pace, pressure, residence, paced }
    }

    fn pressure(&self, share: &share::Examination, pace: &speed::Examination) -> pressure::Examination {
        let LearnedState { share: shares, pace: paces, pressure, .. } = &self.known;
        let both = |w: usize, r: usize| {
            let came = share.roots.row(w)[r] / shares.noise(r, w, 0.0, share.is_in_doubt[w]).sqrt();
            (came, -pace.training.roots.row(w)[r] / paces.dispersion(r, w).sqrt())
        };
        // The share left by a material part, or the pace did.
        let effect = |r: usize| {
            let (by_share, by_pace) = (share.evidence[r].effect, pace.effects[r]);
            let most = if by_share.abs() > by_pace.abs() { by_share } else { by_pace };
            (paces.known(r) && most.abs() >= MATERIAL).then_some(most)
        };
        let effects: Vec<Option<f64>> = (0..shares.usual.len()).map(effect).collect();
        let known = |w: usize| shares.known_part(share.totals[w]);
        pressure.examine(speed::WINDOW_COUNT, both, known, &effects)
    }

    /// The deviance from which `test` tells, where it may be wrong so often a day. Counts have the tails that theory
    /// gives them; how late single reports come nobody knows before it was seen.
    pub fn bound(&self, test: usize, per_day: f64) -> f64 {
        let tail = &self.known.tails[test];
        let is_unknown = self.quality.is_timed_singly && TESTS[test] == Factor::Speed;
        if is_unknown { tail.cautious_bound(per_day) } else { tail.bound(per_day) }
    }

    /// The same for what was seen: a departure of half and more that lasts is no single report that came late.
    pub fn bound_for(&self, test: usize, per_day: f64, evidence: &Evidence) -> f64 {
        let lasts = evidence.window >= LASTS && evidence.effect.abs() >= BY_HALF;
        if lasts { self.known.tails[test].bound(per_day) } else { self.bound(test, per_day) }
    }

    /// Whether arrivals are only inferred.
    pub fn is_inferred(&self) -> bool {
        self.quality.is_inferred
    }

    /// How many tests it has.
    pub fn tests(&self) -> usize {
        if self.quality.is_guessed { TESTS.len() } else { TESTS.len() - 1 }
    }

    /// Whether a rank whose usual share is that of an imbalance is on its way back, by the logarithm of its
    /// share over the usual one: the end of that, not the beginning of one. `is_told` says that its imbalance
    /// is told to stand.
    pub fn evens_out(&self, rank: usize, effect: f64, is_told: bool) -> bool {
        self.known.share.evens_out(rank, effect, is_told)
    }

    /// A trouble has lasted for so long that the shares are usual from now on; `is_of_shares`: it is one of
    /// theirs, after which they may come back.
    pub fn takes_shares_for_usual(&mut self, newest: i64, window: i64, is_of_shares: bool) {
        if is_of_shares {
            self.known.share.remember_usual();
        }
        self.relearn_shares(newest, window);
    }

    /// The shares of the last `window` seconds up to `newest` are what is usual from now on.
    pub fn relearn_shares(&mut self, newest: i64, window: i64) {
        self.unlearned.clear();
        let came =
            |rank| (newest - window + 1..=newest).map(|s| self.bins.get(rank, s).arrivals.max(0.0)).sum();
        let counts: Vec<f64> = (0..self.known.share.usual.len()).map(came).collect();
        self.known.share.relearn(&counts);
    }

    /// What `ranks` show in the last `window` seconds up to `newest`, but for their shares, is what is usual
    /// from now on.
    pub fn take_for_usual(&mut self, ranks: &[usize], newest: i64, window: i64) {
        self.unlearned.clear();
        let all = 0..self.known.share.usual.len();
        let sums: Vec<Bin> = all.map(|r| self.bins.sum(r, newest - window + 1..=newest)).collect();
        let LearnedState { speed, pace, work, misses, residence, .. } = &mut self.known;
        speed.take_for_usual(ranks, &sums);
        pace.take_for_usual(ranks, &sums);
        work.take_for_usual(ranks, &sums);
        misses.take_for_usual(ranks, &sums);
        residence.take_for_usual(ranks, &self.bins, newest - window + 1..=newest);
    }

    /// Whether its noise is not known yet.
    pub fn is_young(&self) -> bool {
        self.known.share.seconds < YOUNG
    }

    /// Learns from what was seen in a healthy second, once some more have passed in health: a trouble that is
    /// not told yet must not become usual meanwhile. While something departs half as far as it must to be told
    /// (`is_suspicious`), or the shares by what no bound is below, what was seen waits, for a minute at most: a mild
    /// trouble would teach its own noise, and raise what it is measured by as fast as it grows.
    ///
    /// Shares that departed in a window teach nobody what is usual in its seconds, unless they still do when those have
    /// waited for that long: on a young server, whose bounds are high, a trouble may come and go untold, and
    /// few requests stand against it.
    pub fn learn(&mut self, newest: i64, seen: Examination, is_suspicious: bool) {
        let departs = seen.share.most.map(|deviance| deviance >= LEAST_BOUND);
        let longest =
            WINDOWS.into_iter().zip(departs).rfind(|(_, departs)| *departs).map(|(window, _)| window);
        let (share, training) = seen.into_training();
        self.unlearned.push_back(Unlearned {
            second: newest,
            share,
            training: Some(training),
            is_doubtful: false,
        });
        let before = |waits: bool| newest - if waits { MOST_LAG } else { LAG };
        let due = self.unlearned.iter_mut().take_while(|of| of.second <= before(is_suspicious));
        let due: Vec<(i64, TrainingSample)> =
            due.filter_map(|of| Some((of.second, of.training.take()?))).collect();
        due.iter().for_each(|(second, training)| self.learn_now(*second, training));
        if let Some(window) = longest {
            let covered = self.unlearned.iter_mut().rev().take_while(|of| of.second > newest - window);
            covered.for_each(|of| of.is_doubtful = true);
        }
        if longest.is_some() && self.has_been_wrong(newest) {
            return;
        }
        let waits = is_suspicious || longest.is_some();
        while let Some(of) = self.unlearned.pop_front_if(|of| of.second <= before(waits)) {
            self.known.share.learn(&self.bins, of.second, &of.share, longest.is_some() || !of.is_doubtful);
        }
    }

    /// Whether the seconds up to `newest` whose shares are in doubt know better what is usual than what was
    /// learned before them, as those of an agent that began in a skew: then they are what is usual.
    fn has_been_wrong(&mut self, newest: i64) -> bool {
        let Some(first) = self.unlearned.iter().find(|of| of.is_doubtful).map(|of| of.second) else {
            return false;
        };
        let came: f64 =
            (0..self.known.share.usual.len()).map(|r| self.arrivals(r, first, newest).max(0.0)).sum();
        let knows_better =
            self.is_young() && newest - first >= MOST_DOUBT && came > self.known.share.requests;
        if knows_better {
            self.relearn_shares(newest, newest + 1 - first);
        }
        knows_better
    }

    /// A trouble was found: it may have begun in seconds that were not learned yet.
    pub fn fired(&mut self, test: Option<usize>, deviance: f64) {
        self.unlearned.clear();
        for (place, tail) in self.known.tails.iter_mut().enumerate() {
            tail.fired(test == Some(place), deviance);
        }
    }

    /// Learns how the speeds of the ranks scatter that are not `slow`; what is usual of each stays.
    pub fn learn_noise_of_speed(&mut self, seen: &Examination, slow: impl Fn(usize) -> bool) {
        self.known.speed.learn_noise(&seen.speed.training, &slow);
        self.known.pace.learn_noise(&seen.pace.training, &slow);
    }

    /// All but the shares.
    fn learn_now(&mut self, newest: i64, training: &TrainingSample) {
        self.known.speed.learn(&training.speed);
        self.known.work.learn(&training.work);
        self.known.misses.learn(&training.misses);
        self.known.pressure.learn(&training.pressure);
        self.known.pace.learn(&training.pace);
        self.known.residence.learn(&self.bins, newest, &training.residence);
        for (tail, deviance) in self.known.tails.iter_mut().zip(training.deviances) {
            tail.learn(deviance);
        }
    }

    /// Who is to blame for what `rank` shows in `factor`, and on which side.
    pub fn blame(&self, factor: Factor, rank: usize, evidence: &Evidence, newest: i64) -> (Side, Vec<usize>) {
        if factor != Factor::Share {
            return (evidence.side, vec![rank]);
        }
        let w = place_of(evidence.window);
        let sums_of = |seconds: i64| -> Vec<f64> {
            let ranks = 0..self.known.share.usual.len();
            ranks.map(|r| self.arrivals(r, newest - seconds + 1, newest)).collect()
        };
        let (sums, now) = (sums_of(evidence.window), sums_of((evidence.window / 2).max(2)));
        // Dispersion below nominal is a router's doing, and what departs is no longer routed by it alone.
        let dispersion = self.known.share.dispersion(rank, w, 0.0).max(1.0);
        culprits(&sums, &now, &self.known.share.usual, dispersion, 0.25 * evidence.deviance.min(16.0))
    }

    /// That `rank` is sent more than its share, where that is beyond what chance does to a rank that is looked at for
    /// another reason: by half of the deviance at which it would be told alone, which is given as its bound.
    /// Where arrivals are only inferred, what is slow shows in them too.
    pub fn sent_more(
        &self,
        seen: &Examination,
        rank: usize,
        per_day: f64,
        newest: i64,
    ) -> Option<(Evidence, f64)> {
        let evidence = seen.share.evidence[rank];
        let enough = (BESIDE * self.bound(SHARE, per_day)).max(LEAST_BOUND);
        let is_more = !self.is_inferred() && evidence.side == Side::High && evidence.deviance >= enough;
        let is_blamed = || {
            let (side, ranks) = self.blame(Factor::Share, rank, &evidence, newest);
            side == Side::High && ranks.contains(&rank)
        };
        (is_more && is_blamed()).then_some((evidence, enough))
    }

    /// Whether `ranks` are sent more than they would be if `others` got nothing and the rest kept its
    /// proportions: by half as much again, and beyond chance, in the last `window` seconds up to `newest`.
    pub fn is_sent_beyond(&self, ranks: &[usize], others: &[usize], window: i64, newest: i64) -> bool {
        let share = |ranks: &[usize]| ranks.iter().map(|r| self.known.share.usual[*r]).sum::<f64>();
        let came = |rank: usize| self.arrivals(rank, newest - window + 1, newest).max(0.0);
        let all: f64 = (0..self.known.share.usual.len()).map(came).sum();
        let theirs: f64 = ranks.iter().map(|r| came(*r)).sum();
        let most = share(ranks) / (1.0 - share(others)).max(1e-9);
        let w = place_of(window);
        // An answer is no longer routed as usual: no count is believed to be more regular than chance.
        let noise = |r: &usize| self.known.share.dispersion(*r, w, all);
        let dispersion = ranks.iter().map(noise).fold(1.0, f64::max);
        most < 1.0
            && theirs > BY_HALF.exp() * most * all
            && share::binomial_deviance(theirs, all, most) / dispersion >= BEYOND_CHANCE
    }

    /// Whether `test` could tell anything of `rank` in `seconds`: of a rank that admits too few requests the work of
    /// each is not known, and of one that reports too rarely its speed.
    pub fn is_measured(&self, test: usize, rank: usize, seconds: Range<i64>) -> bool {
        let length = (seconds.end - seconds.start) as f64;
        let sum = |of: fn(&Bin) -> f64| seconds.clone().map(|s| of(&self.bins.get(rank, s))).sum::<f64>();
        match TESTS[test] {
            Factor::Work => sum(|bin| bin.admitted) >= MEASURED_REQUESTS,
            Factor::Speed => {
                sum(|bin| bin.spent) > MEASURED_PART * length
                    || self.known.residence.is_measured(rank, sum(|bin| bin.admitted))
            }
            Factor::Share | Factor::Room | Factor::Stuck => true,
        }
    }

    /// Whether the ranks' shares in the seconds `from..=to` were others than usual, beyond what chance does.
    pub fn have_shares_moved(&self, from: i64, to: i64) -> bool {
        let ranks = 0..self.known.share.usual.len();
        let counts: Vec<f64> = ranks.map(|r| self.arrivals(r, from, to).max(0.0)).collect();
        self.known.share.have_moved(&counts)
    }

    /// Requests that came to `rank` in the seconds `from..=to`.
    pub fn arrivals(&self, rank: usize, from: i64, to: i64) -> f64 {
        (from..=to).map(|s| self.bins.get(rank, s).arrivals).sum()
    }
}

#[cfg(test)]
mod tests;
