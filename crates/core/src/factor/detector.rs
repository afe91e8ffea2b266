//! The detector of one group of ranks: readings in, once a second what changed. `follow` carries what it
//! found to its end, `troubles` tells one trouble from another.

use serde::{Deserialize, Serialize};

mod follow;
mod listen;
mod shifted;
mod troubles;

pub use self::troubles::{ClosedTrouble, OpenTrouble};

use crate::factor::channel::{
    Channel, Examination, LearnedState, MISSES, PACE, PRESSURE, SHARE, SourceQuality, TESTS, WORK,
};
use crate::factor::cost_model::decoding_of;
use crate::factor::evidence::{Evidence, Factor, Side};
use crate::factor::impact::Load;
use crate::factor::intake::{Levels, Lines, Totals, WorkSpan};
use crate::factor::marks::{Firing, Firings, Mark, MarkEffect};
use crate::factor::observation::Gauges;
use crate::factor::speed::Pending;
use crate::factor::standing::{Standing, Uneven};
use crate::factor::stuck::{Progress, Stuck};
use crate::factor::trouble::{Trouble, TroubleChange};
use crate::factor::turnover::Turnover;

/// A source is used for so long after its last word, in seconds.
const SOURCE_PATIENCE: f64 = 20.0;
/// The next best source keeps its past from so long after the last word of the better one on, so that it has one when
/// it is used.
const RESERVE_PATIENCE: f64 = 10.0;
/// The ways of knowing, the best first.
const LINES: usize = 0;
const COUNTERS: usize = 1;
/// Counters of work that do not tell who came (`/v1/loads` of SGLang from 0.5.23 on).
const WORK_COUNTERS: usize = 2;
const GAUGES: usize = 3;
const WAYS: usize = 4;
/// What is expected of each.
const QUALITY: [SourceQuality; WAYS] = [
    SourceQuality {
        staleness: 0.25,
        noise: 0.1,
        is_inferred: false,
        is_timed_singly: true,
        is_guessed: false,
    },
    SourceQuality {
        staleness: 0.5,
        noise: 0.1,
        is_inferred: false,
        is_timed_singly: false,
        is_guessed: false,
    },
    SourceQuality {
        staleness: 0.5,
        noise: 0.1,
        is_inferred: true,
        is_timed_singly: false,
        is_guessed: false,
    },
    SourceQuality { staleness: 0.5, noise: 0.3, is_inferred: true, is_timed_singly: false, is_guessed: true },
];
/// The first seconds of a source, while a server fills, say nothing.
const WARM_UP: i64 = 8;
/// A load differs materially from its peers' mean by this part.
const MATERIAL_LOAD: f64 = 0.2;
/// Of a rank that decodes more slowly, by this part: a burst of prompts alone is soon over.
const HEAVY_LOAD: f64 = 0.5;
/// Where the tokens that running requests hold stand for what they bring, a rank must hold so many times as
/// many in all.
const HELD_IN_ALL: f64 = 1.2;
/// What is this far beyond its bound needs no second look.
const GROSS: f64 = 1.5;
/// What comes this near to its bound (in deviances) may be a trouble that is not told yet.
const SUSPICIOUS: f64 = 0.5;
/// So many ranks that are not slow tell how speeds scatter while others are: of two, each is measured by the other.
const LEAST_PEERS: usize = 3;
/// In its first seconds an incident may be blamed on another rank; later another rank only joins.
const REBLAME_WITHIN: f64 = 12.0;
/// At most so often.
const MOST_REBLAMES: u32 = 2;
/// Another rank is blamed if it is this much further beyond its bound.
const REBLAME_FACTOR: f64 = 1.6;
/// More ranks join after so many seconds that say so, and none that says otherwise.
const JOIN_VOTES: u32 = 3;
/// An incident is over when nothing recent departs by more than this deviance (two standard deviations) ...
const CALM: f64 = 2.5;
/// ... or by no more than this part of what it was at most ...
const CALM_PART: f64 = 0.35;
/// ... for so many seconds.
const CALM_FOR: u32 = 6;
/// Recent is the window in which it was found, within these bounds, in seconds.
const RECENT: (i64, i64) = (5, 12);
/// What departs so soon after a trouble's end is its wake: the same incident returns.
const WAKE: f64 = 60.0;
/// An incident this old is what is usual now; one found before anything usual was known, sooner.
const STANDING: f64 = 900.0;
const STANDING_YOUNG: f64 = 180.0;
/// What it shows over its last seconds, so many, is what is usual from then on.
const STANDS_FOR: i64 = 120;
/// After an incident nothing is learned for so many seconds.
const REST: i64 = 15;

/// A trouble of which nothing was heard for longer, in seconds, is not the same any more.
const RESUMES_WITHIN: f64 = 600.0;
/// So many troubles that became usual last, or whose end was not seen, are remembered.
const MOST_USUAL: usize = 8;

/// No second was looked at yet.
const NEVER: i64 = i64::MIN;
/// After a gap no more seconds than this are looked at, one by one.
const MOST_SECONDS: i64 = 20;
/// Nothing new from any rank for PAUSE seconds is a pause of all; after it nothing is tested for PAUSE_WAKE seconds.
const PAUSE: f64 = 2.5;
/// Where a source is polled more rarely: for so many polls.
const POLLS_MISSED: f64 = 2.5;
const PAUSE_WAKE: f64 = 6.0;

/// What a caller chooses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Ranks in the group, 2 to 256.
    pub ranks: usize,
    /// False alarms a day that are accepted, over all tests.
    pub false_alarms_per_day: f64,
}

/// What is kept over a restart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// By lines, by counters, by counters of work alone, by gauges.
    pub channels: [Option<LearnedState>; WAYS],
    /// Requests finished a token.
    pub turnover: Turnover,
    /// The longest healthy pause of a rank with work, in seconds.
    pub longest_pause: f64,
    /// Incidents so far, so that numbers are not used again.
    pub incidents: u64,
    /// The last firings, with what people said of them.
    #[serde(default)]
    pub firings: Firings,
    /// The troubles under way, the one that is told last.
    #[serde(default)]
    pub open: Vec<OpenTrouble>,
    /// Troubles that ended a moment ago: they may come back.
    #[serde(default)]
    pub closed: Vec<ClosedTrouble>,
}

/// What is nearest to its bound now, for people who ask why nothing fires.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Nearest {
    pub factor: Factor,
    pub rank: usize,
    pub side: Side,
    /// How far it departs, in standard deviations of what is usual here.
    pub deviations: f64,
    /// From how many on it is told.
    pub bound: f64,
    /// Whether it shows where it must: what is inferred from load, in load.
    pub shows: bool,
}

/// A trouble that has gone on for so long that it is what is usual.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BecameUsual {
    /// Its number.
    pub id: u64,
    /// In what its ranks departed.
    pub factor: Factor,
    /// The first of them.
    pub rank: usize,
    /// Since when it is usual.
    pub at: f64,
}

#[derive(Clone, Debug)]
pub struct Detector {
    settings: Settings,
    lines: Vec<Lines>,
    levels: Vec<Levels>,
    /// What each rank counts, by who says it: pages that tell who came, and reports of work alone. They count from
    /// different beginnings, and are as of different moments.
    totals: Vec<[Totals; 2]>,
    turnover: Turnover,
    /// Whether tokens are counted, so that the throughput need not be believed.
    counts_tokens: bool,
    stuck: Stuck,
    /// By each way of knowing, the best first. Boxed: one is kilobytes, and few are there.
    channels: [Option<Box<Channel>>; WAYS],
    loads: Vec<Load>,
    /// The way of knowing in use.
    active: Option<usize>,
    /// When one was in use last.
    heard: f64,
    gauges_at: Option<f64>,
    /// Each rank's gauges as they were read last, from whichever source.
    gauges: Vec<Option<(f64, Gauges)>>,
    /// The trouble under way that was found last: the one that is told.
    open: Option<OpenTrouble>,
    /// Troubles that still go on behind it, the oldest first.
    behind: Vec<OpenTrouble>,
    /// Troubles that ended a moment ago, the newest last.
    closed: Vec<ClosedTrouble>,
    /// Troubles that have gone on for so long that they are what is usual, the newest last.
    became_usual: Vec<BecameUsual>,
    /// The numbers of those whose end nobody could observe, the newest last.
    unseen_ends: Vec<u64>,
    /// When a trouble ended last in which ranks were sent others than their own requests.
    moved_until: f64,
    /// The first second that counts: of all, or after the last incident.
    since: i64,
    incidents: u64,
    firings: Firings,
    /// The last second that was looked at.
    examined: i64,
    /// What passed its bound in the last step, without being gross: by which test, on which rank.
    suspected: Vec<(Option<usize>, usize)>,
    /// Until when nothing is said, after a pause of all ranks.
    paused_until: f64,
    /// From when to when none of them moved, last, as far as it was seen.
    paused: Option<(f64, f64)>,
    nearest: Option<Nearest>,
    /// What was so before anything could be compared.
    standing: Standing,
}

/// The step under way.
#[derive(Clone, Copy, Debug)]
struct StepContext<'a> {
    /// The newest finished second.
    newest: i64,
    now: f64,
    /// The way of knowing.
    way: usize,
    /// Each rank's stretch under way.
    pending: &'a [Pending],
}

/// What one test has against one rank, in units of its bound.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    factor: Factor,
    /// The place of its test in [`TESTS`], if it has one.
    test: Option<usize>,
    rank: usize,
    evidence: Evidence,
    bound: f64,
    strength: f64,
    /// For a rank that stands still: since when.
    still: Option<f64>,
    /// Whether it is that requests stay longer on a rank with little to do: how much slower it is, is not known then.
    is_of_stay: bool,
    /// For a rank that is slow: that it is sent more, where that is so, and beyond which bound. Larger
    /// batches take longer than any cost model that has seen few of them says, and nobody sends a rank more
    /// because it is slow.
    made_by: Option<(Evidence, f64)>,
}

impl Candidate {
    /// Which test saw which rank depart.
    fn seen(&self) -> (Option<usize>, usize) {
        (self.test, self.rank)
    }

    /// What is told of it: the factor, the place of its test, what that saw, and beyond which bound.
    fn told(&self) -> (Factor, Option<usize>, &Evidence, f64) {
        match &self.made_by {
            Some((share, bound)) => (Factor::Share, Some(SHARE), share, *bound),
            None => (self.factor, self.test, &self.evidence, self.bound),
        }
    }
}

/// For how long a source that is read tells nothing new at most, in seconds.
fn pause_of(channel: &Channel) -> f64 {
    PAUSE.max(POLLS_MISSED * channel.interval)
}

impl Detector {
    /// A detector that knows nothing yet.
    pub fn new(settings: Settings) -> Self {
        let n = settings.ranks;
        Self {
            settings,
            lines: vec![Lines::default(); n],
            levels: vec![Levels::default(); n],
            totals: vec![Default::default(); n],
            turnover: Turnover::new(n),
            counts_tokens: false,
            stuck: Stuck::new(n),
            channels: [const { None }; WAYS],
            loads: vec![Load::default(); n],
            active: None,
            heard: f64::NEG_INFINITY,
            gauges_at: None,
            gauges: vec![None; n],
            open: None,
            behind: Vec::new(),
            closed: Vec::new(),
            became_usual: Vec::new(),
            unseen_ends: Vec::new(),
            moved_until: f64::NEG_INFINITY,
            since: i64::MIN,
            incidents: 0,
            firings: Firings::default(),
            examined: NEVER,
            suspected: Vec::new(),
            paused_until: f64::NEG_INFINITY,
            paused: None,
            nearest: None,
            standing: Standing::new(n),
        }
    }

    /// This detector in the place of the one `before`, of other ranks of the same server: the numbers of its
    /// troubles are not used again, and of those that go on nobody will see the end.
    #[must_use]
    pub fn after(mut self, before: &Self) -> Self {
        self.incidents = before.incidents;
        self.unseen_ends.clone_from(&before.unseen_ends);
        before.behind.iter().chain(&before.open).for_each(|open| self.note_unseen(open.trouble.id));
        self
    }

    /// The imbalance that was there before anything could be compared, if one is; `None` while nobody can say.
    pub fn standing(&self) -> Option<Option<Uneven>> {
        self.standing.is_known().then(|| self.standing.uneven())
    }

    /// The trouble under way.
    pub fn open(&self) -> Option<&Trouble> {
        self.open.as_ref().filter(|open| !open.is_unseen).map(|open| &open.trouble)
    }

    /// Whether the trouble of that number goes on, told or behind the one that is.
    pub fn is_open(&self, id: u64) -> bool {
        self.open.iter().chain(&self.behind).any(|open| open.trouble.id == id)
    }

    /// In what the ranks of the trouble of that number depart, and whether it seems to have ended a moment
    /// ago; `None` of one that has, or of which nothing was seen yet.
    pub fn trouble(&self, id: u64) -> Option<(Factor, bool)> {
        let all = self.open.iter().chain(&self.behind);
        let open = all.filter(|open| !open.is_unseen).find(|open| open.trouble.id == id)?;
        Some((open.trouble.factor, open.calm > 0))
    }

    /// The troubles that became what is usual, the last ones.
    pub fn became_usual(&self) -> &[BecameUsual] {
        &self.became_usual
    }

    /// Whether what is under way seems to have ended a moment ago.
    pub fn is_calming(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.calm > 0)
    }

    /// What was nearest to its bound in the last second.
    pub fn nearest(&self) -> Option<Nearest> {
        self.nearest
    }

    /// Seconds from which the bounds were learned so far; `None` while no source tells enough.
    pub fn learned_s(&self) -> Option<f64> {
        let channel = self.in_use()?;
        Some(channel.known.tails.iter().map(|t| t.seconds).fold(0.0, f64::max))
    }

    /// What is known by the source in use; before the first second that was looked at, by the best one.
    fn in_use(&self) -> Option<&Channel> {
        match self.active {
            Some(active) => self.channels[active].as_deref(),
            None => self.channels.iter().flatten().next().map(|channel| &**channel),
        }
    }

    /// What was learned so far, to be kept over a restart with the time at which it was saved.
    pub fn saved(&self) -> Saved {
        let known = |c: usize| self.channels[c].as_ref().map(|c| c.known.clone());
        Saved {
            channels: std::array::from_fn(known),
            turnover: self.turnover.clone(),
            longest_pause: self.stuck.longest,
            incidents: self.incidents,
            firings: self.firings.clone(),
            open: self.behind.iter().chain(&self.open).cloned().collect(),
            closed: self.closed.clone(),
        }
    }

    /// A detector at `now` that knows what was `saved`. What was saved of another number of ranks is dropped.
    pub fn restored(settings: Settings, saved: Saved, now: f64) -> Self {
        let mut detector = Self { heard: now, ..Self::new(settings) };
        let second = now.floor() as i64;
        for (c, known) in saved.channels.into_iter().enumerate() {
            if let Some(known) = known.filter(|k| k.share.usual.len() == settings.ranks) {
                let mut channel = Channel::new(settings.ranks, second, QUALITY[c]);
                channel.remember(known);
                detector.channels[c] = Some(Box::new(channel));
                detector.turnover = saved.turnover.clone();
                detector.since = second + WARM_UP;
            }
        }
        detector.stuck.longest = saved.longest_pause;
        detector.incidents = saved.incidents;
        detector.firings = saved.firings;
        // Without what was usual before nobody could say when they are over.
        let is_known = detector.channels.iter().any(Option::is_some);
        let is_there = |open: &OpenTrouble| open.trouble.ranks.iter().all(|r| *r < settings.ranks);
        let open = saved.open.into_iter().filter(|open| is_known && is_there(open));
        detector.behind = open.map(|open| OpenTrouble { is_unseen: true, calm: 0, ..open }).collect();
        detector.open = detector.behind.pop();
        let is_recent = |closed: &ClosedTrouble| is_known && now - closed.at < WAKE;
        detector.closed = saved.closed.into_iter().filter(is_recent).collect();
        detector.moved_until =
            detector.closed.iter().map(|closed| closed.at).fold(detector.moved_until, f64::max);
        detector
    }

    /// How each rank gets on with its work.
    pub fn progress(&self, now: f64) -> Vec<Progress> {
        self.stuck.progress(now)
    }

    /// When a rank that was stuck moved again, if it has not been stuck since.
    pub fn resumed(&self, rank: usize) -> Option<f64> {
        self.stuck.liveness.get(rank)?.resumed
    }

    /// Looks at everything up to `now`; to be called once a second.
    pub fn step(&mut self, now: f64) -> Vec<TroubleChange> {
        self.stuck.note(now);
        let Some(active) = (0..WAYS).find(|c| {
            self.channels[*c].as_ref().and_then(|c| c.heard).is_some_and(|h| now - h < SOURCE_PATIENCE)
        }) else {
            return self.end_after_a_gap(now);
        };
        (self.active, self.heard) = (Some(active), now);
        let Some(mut channel) = self.channels[active].take() else { return Vec::new() };
        let changes = self.step_on(active, &mut channel, now);
        self.channels[active] = Some(channel);
        changes
    }

    /// Where nothing is heard nobody knows whether a trouble goes on; after long it is over.
    fn end_after_a_gap(&mut self, now: f64) -> Vec<TroubleChange> {
        if now - self.heard <= RESUMES_WITHIN {
            return Vec::new();
        }
        self.closed.clear();
        let open: Vec<OpenTrouble> = self.behind.drain(..).chain(self.open.take()).collect();
        open.iter().for_each(|open| self.note_unseen(open.trouble.id));
        open.into_iter().map(|open| TroubleChange::Cleared(open.trouble)).collect()
    }

    /// The end of the trouble of that number was not seen.
    fn note_unseen(&mut self, id: u64) {
        self.unseen_ends.push(id);
        if self.unseen_ends.len() > MOST_USUAL {
            self.unseen_ends.remove(0);
        }
    }

    /// Whether the trouble of that number ended since nobody could observe it any more: it may go on.
    pub fn ended_unseen(&self, id: u64) -> bool {
        self.unseen_ends.contains(&id)
    }

    /// Looks at the seconds of `channel` that became complete.
    fn step_on(&mut self, active: usize, channel: &mut Channel, now: f64) -> Vec<TroubleChange> {
        let over = now.floor() as i64 - 1;
        // A line tells of its moment, a poll of the time since the one before.
        let newest = if active == LINES { over } else { over.min(channel.told_until()) };
        // A pause of all ranks (an export, a source that stalls) and its wake say nothing about any of them.
        let pause = pause_of(channel);
        let moved = self.stuck.liveness.iter().filter_map(|p| p.moved).fold(f64::NEG_INFINITY, f64::max);
        // Where nobody has work nothing moves either, and a trouble is over.
        let is_idle = self.open.is_some() && self.stuck.is_idle(now - pause);
        if moved < now - pause && !is_idle {
            self.paused_until = now + PAUSE_WAKE;
            self.paused = Some((moved, now));
        }
        if now < self.paused_until {
            self.suspected.clear();
            self.examined = newest;
            return Vec::new();
        }
        let (pending, none) =
            (self.pending(active, channel, now), vec![Pending::default(); self.settings.ranks]);
        channel.bins.advance(newest);
        let mut changes = Vec::new();
        let from =
            if self.examined == NEVER { newest } else { (self.examined + 1).max(newest - MOST_SECONDS + 1) };
        for second in from..=newest {
            let pending = if second == newest { &pending } else { &none };
            let moment = StepContext { newest: second, now, way: active, pending };
            let seen = channel.examine(second, self.since, pending);
            let candidates = self.candidates(channel, &seen, moment);
            changes.extend(if self.open.is_some() {
                self.learn_noise_of_peers(channel, &seen);
                self.follow(channel, &candidates, moment)
            } else {
                self.watch(channel, seen, &candidates, moment)
            });
        }
        self.examined = newest;
        // A trouble is told by itself, and says nothing of what stands but that it may end it.
        let is_calm = self.open.is_none() && self.behind.is_empty() && self.closed.is_empty();
        if is_calm || self.standing.is_told() {
            // The next line may still tell who came in the newest second.
            (from - 1..newest).for_each(|second| self.standing.note(&channel.bins, second, &self.loads));
        }
        changes
    }

    fn pending(&self, active: usize, channel: &Channel, now: f64) -> Vec<Pending> {
        let known = &channel.known;
        let of = |rank: usize| {
            let stretch = match active {
                LINES => self.lines[rank].pending(now)?,
                GAUGES => self.levels[rank].pending()?,
                _ => return None,
            };
            if self.is_paused_in(&stretch) {
                return None;
            }
            let needed = known.clock.needed(&stretch.did)?;
            let decoding = known.decoding.needed(&decoding_of(&stretch.did)).unwrap_or(0.0);
            Some(Pending { needed, decoding, spent: stretch.to - stretch.from })
        };
        (0..self.settings.ranks).map(|rank| of(rank).unwrap_or_default()).collect()
    }

    /// Whether no rank moved in a part of `stretch`. What is told of it depends on who reports first, and
    /// from gauges it is guessed from a throughput that was of another stretch: it says nothing of the rank's
    /// own speed.
    fn is_paused_in(&self, stretch: &WorkSpan) -> bool {
        self.paused.is_some_and(|(from, to)| stretch.from < to && from < stretch.to)
    }

    /// What passed its bound, the strongest first.
    fn candidates(&mut self, channel: &Channel, seen: &Examination, moment: StepContext) -> Vec<Candidate> {
        let StepContext { newest, now, .. } = moment;
        let per_test = self.per_test(channel);
        // What is inferred from load, or from what load does to pace, must show in load.
        let shows = |test: usize, rank: usize, side: Side| match test {
            PACE => self.shows(rank, Side::High, HEAVY_LOAD),
            PRESSURE => self.shows(rank, side, MATERIAL_LOAD),
            // A router that minds the cache moves sessions to the rank with the least to do, where their past is not:
            // that rank computes several times as much a request for some seconds, and nobody waits for it.
            MISSES if side == Side::High => self.shows(rank, Side::High, 0.0),
            // One long prompt in a small batch is as many tokens a request for as long as it is decoded.
            WORK if channel.is_inferred() => self.holds_more(rank),
            _ => {
                !channel.is_inferred()
                    || TESTS[test] != Factor::Share
                    || self.shows(rank, side, MATERIAL_LOAD)
            }
        };
        let mut all = Vec::new();
        let mut nearest = None;
        let mut most = 0.0;
        for (test, found) in seen.evidence().into_iter().enumerate() {
            for (rank, evidence) in found.iter().enumerate() {
                let bound = channel.bound_for(test, per_test, evidence);
                let strength = evidence.deviance / bound;
                let is_shown = strength >= 1.0 && shows(test, rank, evidence.side);
                if strength > most {
                    most = strength;
                    let (factor, side) = (seen.factor(test, rank), evidence.side);
                    let [deviations, bound] = [evidence.deviance, bound].map(|d| (2.0 * d).sqrt());
                    let shows = is_shown || strength < 1.0;
                    nearest = Some(Nearest { factor, rank, side, deviations, bound, shows });
                }
                if is_shown {
                    let factor = seen.factor(test, rank);
                    let is_slow = (factor, evidence.side) == (Factor::Speed, Side::Low);
                    let made_by = is_slow.then(|| channel.sent_more(seen, rank, per_test, newest)).flatten();
                    let is_of_stay = seen.is_of_stay(test, rank);
                    let (test, evidence, still) = (Some(test), *evidence, None);
                    all.push(Candidate {
                        factor,
                        test,
                        rank,
                        evidence,
                        bound,
                        strength,
                        still,
                        is_of_stay,
                        made_by,
                    });
                }
            }
        }
        self.nearest = nearest;
        for (rank, still) in self.stuck.examine(now).into_iter().enumerate() {
            if let Some(since) = still {
                let evidence =
                    Evidence { deviance: 100.0, side: Side::Low, effect: -5.0, window: (now - since) as i64 };
                all.push(Candidate {
                    factor: Factor::Stuck,
                    test: None,
                    rank,
                    evidence,
                    bound: 50.0,
                    strength: 2.0,
                    still,
                    is_of_stay: false,
                    made_by: None,
                });
            }
        }
        // A rank that hangs is also slow, beyond all bounds.
        let hangs = |c: &Candidate| c.factor == Factor::Stuck;
        all.sort_by(|a, b| hangs(b).cmp(&hangs(a)).then(b.strength.total_cmp(&a.strength)));
        all
    }

    /// Whether `rank` has more (or less) to do than its peers' mean, by the part `by`.
    fn shows(&self, rank: usize, side: Side, by: f64) -> bool {
        let load = |l: &Load| l.running + l.waiting;
        let peers: f64 =
            self.loads.iter().enumerate().filter(|(r, _)| *r != rank).map(|(_, l)| load(l)).sum();
        let mean = peers / (self.loads.len() - 1).max(1) as f64;
        match side {
            Side::High => load(&self.loads[rank]) > (1.0 + by) * mean,
            Side::Low => load(&self.loads[rank]) < (1.0 - by) * mean,
        }
    }

    /// While ranks are slow, the scatter of their peers' speeds is learned on: where it grows and nothing is
    /// learned, one false trouble begets the next.
    fn learn_noise_of_peers(&self, channel: &mut Channel, seen: &Examination) {
        let open = || self.behind.iter().chain(&self.open).map(|open| &open.trouble);
        let is_slow = |rank: usize| open().any(|trouble| trouble.ranks.contains(&rank));
        let peers = (0..self.settings.ranks).filter(|rank| !is_slow(*rank)).count();
        if peers >= LEAST_PEERS && open().all(|trouble| trouble.factor == Factor::Speed) {
            channel.learn_noise_of_speed(seen, is_slow);
        }
    }

    /// Whether `rank` holds more tokens in its cache than its peers' mean, where they tell.
    fn holds_more(&self, rank: usize) -> bool {
        let held = |rank: usize| self.gauges[rank].and_then(|(_, gauges)| gauges.used_tokens);
        let peers = || (0..self.settings.ranks).filter(|r| *r != rank).filter_map(held);
        let most = HELD_IN_ALL * peers().sum::<f64>() / peers().count().max(1) as f64;
        held(rank).is_none_or(|own| own >= most)
    }

    fn watch(
        &mut self,
        channel: &mut Channel,
        seen: Examination,
        candidates: &[Candidate],
        moment: StepContext,
    ) -> Vec<TroubleChange> {
        let StepContext { newest, now, .. } = moment;
        self.closed.retain(|closed| now - closed.at < WAKE);
        let Some(at) = candidates.iter().position(|c| !self.is_aftereffect(channel, c, moment)) else {
            self.suspected.clear();
            // What a trouble leaves behind is not what is usual.
            if candidates.is_empty() && (newest >= self.since + REST || self.closed.is_empty()) {
                let strength = self.nearest.map_or(0.0, |n| (n.deviations / n.bound).powi(2));
                channel.learn(newest, seen, strength >= SUSPICIOUS);
            }
            return Vec::new();
        };
        // Whether the later ones are part of a wake is asked once they are the first: it costs a search each.
        let (first, all) = (candidates[at], candidates[at..].iter().map(Candidate::seen).collect());
        if !self.is_confirmed(&first, all, moment) {
            return Vec::new();
        }
        let (factor, _, seen_of_it, _) = first.told();
        let stands = self.standing.told_of() == Some(first.rank);
        if factor == Factor::Share && channel.evens_out(first.rank, seen_of_it.effect, stands) {
            // An imbalance is over that was taken for usual.
            channel.relearn_shares(newest, seen_of_it.window);
            self.since = newest + 1 - seen_of_it.window;
            self.suspected.clear();
            return Vec::new();
        }
        vec![self.found(channel, &first, moment)]
    }

    /// Whether what departs is told: at once where it is gross, else when it is seen twice in a row.
    fn is_confirmed(&mut self, c: &Candidate, all: Vec<(Option<usize>, usize)>, moment: StepContext) -> bool {
        self.is_seen_twice(c, all, moment) || c.strength >= GROSS && !self.may_hang(c, moment)
    }

    /// Whether the same test saw the same rank depart a second before as well, of which `all` is what it sees
    /// now: two ranks that chance moves in turn are no trouble of either.
    fn is_seen_twice(
        &mut self,
        c: &Candidate,
        all: Vec<(Option<usize>, usize)>,
        moment: StepContext,
    ) -> bool {
        !self.may_hang(c, moment) && std::mem::replace(&mut self.suspected, all).contains(&c.seen())
    }

    /// A rank that hangs is also sent less, and slow: a second or two later it is known to hang.
    fn may_hang(&self, c: &Candidate, moment: StepContext) -> bool {
        c.factor != Factor::Stuck
            && (self.stuck.is_in_doubt(moment.now) || self.stuck.is_silent(c.rank, moment.now))
    }

    /// A trouble was found. It is one that ended a moment ago where that was of the same ranks.
    fn found(&mut self, channel: &mut Channel, c: &Candidate, moment: StepContext) -> TroubleChange {
        let now = moment.now;
        self.suspected.clear();
        let excess = c.test.map_or(0.0, |t| c.evidence.deviance - channel.known.tails[t].level);
        self.firings.note(Firing { at: now, way: moment.way, test: c.test, excess, mark: None });
        channel.fired(c.test, c.evidence.deviance);
        let (trouble, (_, test, ..)) = (self.describe(channel, c, moment), c.told());
        let returned =
            self.closed.iter().rposition(|old| old.is_same(&trouble, test)).map(|i| self.closed.remove(i));
        let change = match returned {
            Some(ClosedTrouble { trouble: old, .. }) => TroubleChange::Returned(Trouble {
                id: old.id,
                symptoms: follow::with_symptoms(old.symptoms, &trouble.symptoms),
                ..trouble
            }),
            None => {
                self.incidents += 1;
                TroubleChange::Fired(Trouble { id: self.incidents, ..trouble })
            }
        };
        let open = OpenTrouble::new(change.trouble().clone(), test, channel.is_young());
        if let Some(before) = self.open.replace(open) {
            self.behind.push(before);
        }
        change
    }

    /// A person says of the firing that a rule told at `told` what it was worth; what was said of it before is
    /// taken back. `None` where it is not remembered, or had no bound.
    pub fn mark(&mut self, told: f64, mark: Mark, now: f64) -> Option<MarkEffect> {
        let firing = self.firings.told_at(told)?;
        let (test, said) = (firing.test?, firing.mark);
        let channel = self.channels.get_mut(firing.way)?.as_mut()?;
        let per_test = self.settings.false_alarms_per_day / channel.tests() as f64;
        let before = (2.0 * channel.bound(test, per_test)).sqrt();
        let tail = channel.known.tails.get_mut(test)?;
        if said != Some(mark) {
            for (mark, by) in said.map(|s| (s, -1.0)).into_iter().chain([(mark, 1.0)]) {
                match mark {
                    Mark::Useful => tail.useful(firing.excess, by, now - firing.at),
                    Mark::Noise => tail.noise(by),
                }
            }
            firing.mark = Some(mark);
        }
        Some(MarkEffect { before, after: (2.0 * channel.bound(test, per_test)).sqrt() })
    }

    /// How often it fired in the day before `now`.
    pub fn fired_in_a_day(&self, now: f64) -> usize {
        self.firings.in_a_day(now)
    }

    /// What each test of `channel` may cost a day.
    fn per_test(&self, channel: &Channel) -> f64 {
        self.settings.false_alarms_per_day / channel.tests() as f64
    }

    /// The bounds of the tests with a tail now, as deviances, in the order of [`TESTS`].
    pub fn bounds(&self) -> Option<[f64; TESTS.len()]> {
        let channel = self.in_use()?;
        let per_test = self.per_test(channel);
        Some(std::array::from_fn(|test| channel.bound(test, per_test)))
    }
}

#[cfg(test)]
mod tests;
