//! The detector of one group of ranks: readings in, once a second what changed. `follow` carries what it
//! found to its end.

use serde::{Deserialize, Serialize};

mod follow;

use crate::factor::channel::{Channel, Known, PRESSURE, Quality, Seen, TESTS};
use crate::factor::evidence::{Evidence, Factor, Side};
use crate::factor::harm::Load;
use crate::factor::incident::{Change, Incident};
use crate::factor::intake::{Levels, Lines, Meaning, Totals};
use crate::factor::observation::{Gauges, Observation, Reading};
use crate::factor::stuck::{Progress, Stuck};
use crate::factor::turnover::Turnover;

/// A source is used for so long after its last word, in seconds.
const SOURCE_PATIENCE: f64 = 20.0;
/// What is expected of lines, counters and gauges.
const QUALITY: [Quality; 3] = [
    Quality { staleness: 0.0, noise: 0.1, is_inferred: false },
    Quality { staleness: 0.5, noise: 0.1, is_inferred: false },
    Quality { staleness: 0.5, noise: 0.3, is_inferred: true },
];
/// The first seconds of a source, while a server fills, say nothing.
const WARM_UP: i64 = 8;
/// A load differs materially from its peers' mean by this part.
const MATERIAL_LOAD: f64 = 0.2;
/// What is this far beyond its bound needs no second look.
const GROSS: f64 = 1.5;
/// In its first seconds an incident may be blamed on another rank; later another rank only joins.
const REBLAME_WITHIN: f64 = 12.0;
/// At most so often.
const MOST_REBLAMES: u32 = 2;
/// Another rank is blamed if it is this much further beyond its bound.
const REBLAME_FACTOR: f64 = 1.6;
/// More ranks join after so many seconds in a row.
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
/// After an incident nothing is learned for so many seconds.
const REST: i64 = 15;

/// Nothing new from anybody for so long is a pause, which is slept off for so long, in seconds.
const PAUSE: f64 = 2.5;
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
    /// By lines, by counters, by gauges.
    pub channels: [Option<Known>; 3],
    /// Requests finished a token.
    pub turnover: Turnover,
    /// The longest healthy pause of a rank with work, in seconds.
    pub longest_pause: f64,
    /// Incidents so far, so that numbers are not used again.
    pub incidents: u64,
}

/// What is nearest to its bound now, for people who ask why nothing fires.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Nearest {
    /// In what.
    pub factor: Factor,
    /// Which rank.
    pub rank: usize,
    /// On which side.
    pub side: Side,
    /// How far it departs, in standard deviations of what is usual here.
    pub deviations: f64,
    /// From how many on it is told.
    pub bound: f64,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Detector {
    settings: Settings,
    lines: Vec<Lines>,
    levels: Vec<Levels>,
    totals: Vec<Totals>,
    turnover: Turnover,
    stuck: Stuck,
    /// By lines, by counters, by gauges: the best first.
    channels: [Option<Channel>; 3],
    loads: Vec<Load>,
    gauges_at: Option<f64>,
    open: Option<Open>,
    closed: Option<(f64, Incident)>,
    /// The first second that counts: of all, or after the last incident.
    since: i64,
    incidents: u64,
    /// What passed its bound in the last step, without being gross.
    suspected: Option<Factor>,
    /// Until when nothing is said, after a pause of all ranks.
    paused_until: f64,
    nearest: Option<Nearest>,
}

#[derive(Clone, Debug)]
struct Open {
    incident: Incident,
    calm: u32,
    /// The largest effect of each test on the blamed ranks so far.
    peaks: [f64; TESTS.len()],
    /// Seconds in a row in which more ranks were to blame.
    votes: u32,
}

/// The step under way.
#[derive(Clone, Copy, Debug)]
struct Moment<'a> {
    /// The newest finished second.
    newest: i64,
    now: f64,
    /// Each rank's stretch under way: needed at most, spent already.
    pending: &'a [(f64, f64)],
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
}

impl Detector {
    /// A detector that knows nothing yet.
    pub fn new(settings: Settings) -> Self {
        let n = settings.ranks;
        Self {
            settings,
            lines: vec![Lines::default(); n],
            levels: vec![Levels::default(); n],
            totals: vec![Totals::default(); n],
            turnover: Turnover::new(n),
            stuck: Stuck::new(n),
            channels: [None, None, None],
            loads: vec![Load::default(); n],
            gauges_at: None,
            open: None,
            closed: None,
            since: i64::MIN,
            incidents: 0,
            suspected: None,
            paused_until: f64::NEG_INFINITY,
            nearest: None,
        }
    }

    /// The trouble under way.
    pub fn open(&self) -> Option<&Incident> {
        self.open.as_ref().map(|open| &open.incident)
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
        let channel = self.channels.iter().flatten().next()?;
        Some(channel.known.tails.iter().map(|t| t.seconds).fold(0.0, f64::max))
    }

    /// What was learned so far, to be kept over a restart with the time at which it was saved.
    pub fn saved(&self) -> Saved {
        let known = |c: usize| self.channels[c].as_ref().map(|c| c.known.clone());
        Saved {
            channels: [known(0), known(1), known(2)],
            turnover: self.turnover.clone(),
            longest_pause: self.stuck.longest,
            incidents: self.incidents,
        }
    }

    /// A detector at `now` that knows what was `saved`. What was saved of another number of ranks is dropped.
    pub fn restored(settings: Settings, saved: Saved, now: f64) -> Self {
        let mut detector = Self::new(settings);
        let second = now.floor() as i64;
        for (c, known) in saved.channels.into_iter().enumerate() {
            if let Some(known) = known.filter(|k| k.share.usual.len() == settings.ranks) {
                let mut channel = Channel::new(settings.ranks, second, QUALITY[c]);
                channel.known = known;
                detector.channels[c] = Some(channel);
                detector.turnover = saved.turnover.clone();
                detector.since = second + WARM_UP;
            }
        }
        detector.stuck.longest = saved.longest_pause;
        detector.incidents = saved.incidents;
        detector
    }

    /// Takes in a reading. Readings of one rank and kind come in order. One of an unknown rank is ignored.
    pub fn observe(&mut self, o: &Observation) {
        if o.rank >= self.settings.ranks || !o.at.is_finite() {
            return;
        }
        let (at, rank) = (o.at, o.rank);
        match &o.what {
            Reading::Prefill(line) => {
                let meaning = self.lines[rank].prefill(at, line);
                self.take(0, rank, at, &meaning);
                self.line_seen(rank, at);
            }
            Reading::Decode(line) => {
                let meaning = self.lines[rank].decode(at, line);
                self.take(0, rank, at, &meaning);
                self.line_seen(rank, at);
            }
            Reading::Gauges(gauges) => self.gauges(rank, at, gauges),
            Reading::Counters(counters) => {
                let gauges =
                    self.levels[rank].last().filter(|l| at - l.0 < 1.0).map_or(Gauges::default(), |l| l.1);
                let is_still = self.totals[rank].same_counts(counters);
                let meaning = self.totals[rank].read(at, counters, &gauges);
                if !is_still {
                    self.stuck.moved(rank, at, self.open.is_none());
                }
                if meaning.came.is_some() {
                    self.take(1, rank, at, &meaning);
                }
            }
        }
    }

    fn line_seen(&mut self, rank: usize, at: f64) {
        if self.gauges_at.is_none_or(|g| at - g > SOURCE_PATIENCE) {
            let load = self.lines[rank].load();
            self.loads[rank] = Load { running: load, ..Load::default() };
            self.stuck.moved(rank, at, self.open.is_none());
            self.stuck.pulses[rank].read = Some(at);
            // A few requests may have ended since, unseen.
            self.stuck.pulses[rank].work = if load >= 6.0 { load } else { 0.0 };
        }
    }

    fn gauges(&mut self, rank: usize, at: f64, gauges: &Gauges) {
        self.gauges_at = Some(at);
        let before = self.levels[rank].last();
        let meaning = self.levels[rank].read(at, gauges, self.turnover.ratio());
        let moved = match (gauges.stamp, before) {
            (Some(stamp), _) => Some(stamp),
            (None, Some((_, b))) if b == *gauges => None,
            _ => Some(at),
        };
        if let Some(moved) = moved {
            self.stuck.moved(rank, moved, self.open.is_none());
        }
        let load = Load {
            running: gauges.running.unwrap_or(0.0),
            waiting: gauges.waiting.unwrap_or(0.0),
            kv_usage: gauges.kv_usage,
        };
        self.stuck.pulses[rank].work = load.running + load.waiting;
        self.stuck.pulses[rank].read = Some(at);
        self.loads[rank] = load;
        if let (Some(came), None) = (meaning.came, &self.open) {
            let growth = came.requests - self.turnover.ratio() * came.tokens;
            self.turnover.learn(rank, growth, came.tokens, came.to - came.from);
        }
        self.take(2, rank, at, &meaning);
    }

    fn take(&mut self, channel: usize, rank: usize, at: f64, meaning: &Meaning) {
        let healthy = self.open.is_none();
        let second = at.floor() as i64;
        let ranks = self.settings.ranks;
        let channel =
            self.channels[channel].get_or_insert_with(|| Channel::new(ranks, second, QUALITY[channel]));
        channel.take(rank, at, meaning, healthy);
        if self.since == i64::MIN {
            self.since = second + WARM_UP;
        }
    }

    /// How each rank gets on with its work.
    pub fn progress(&self, now: f64) -> Vec<Progress> {
        self.stuck.progress(now)
    }

    /// Looks at everything up to `now`; to be called once a second.
    pub fn step(&mut self, now: f64) -> Vec<Change> {
        self.stuck.note(now);
        let newest = now.floor() as i64 - 1;
        let Some(active) = (0..3).find(|c| {
            self.channels[*c].as_ref().and_then(|c| c.heard).is_some_and(|h| now - h < SOURCE_PATIENCE)
        }) else {
            return Vec::new();
        };
        // A pause of all ranks (an export, a source that stalls) and its wake say nothing about any of them.
        if self.stuck.pulses.iter().filter_map(|p| p.moved).fold(f64::NEG_INFINITY, f64::max) < now - PAUSE {
            self.paused_until = now + PAUSE_WAKE;
        }
        if now < self.paused_until {
            self.suspected = None;
            return Vec::new();
        }
        let pending = self.pending(active, now);
        let Some(mut channel) = self.channels[active].take() else { return Vec::new() };
        let moment = Moment { newest, now, pending: &pending };
        channel.bins.advance(newest);
        let seen = channel.examine(newest, self.since, &pending);
        let candidates = self.candidates(&channel, &seen, now);
        let changes = if self.open.is_some() {
            self.follow(&mut channel, &candidates, moment)
        } else {
            self.watch(&mut channel, &seen, &candidates, moment)
        };
        self.channels[active] = Some(channel);
        changes
    }

    fn pending(&self, active: usize, now: f64) -> Vec<(f64, f64)> {
        let clock = self.channels[active].as_ref().map(|c| &c.known.clock);
        let of = |rank: usize| {
            let stretch = match active {
                0 => self.lines[rank].pending(now)?,
                2 => self.levels[rank].pending()?,
                _ => return None,
            };
            Some((clock?.needed(&stretch.did)?, stretch.to - stretch.from))
        };
        (0..self.settings.ranks).map(|rank| of(rank).unwrap_or((0.0, 0.0))).collect()
    }

    /// What passed its bound, the strongest first.
    fn candidates(&mut self, channel: &Channel, seen: &Seen, now: f64) -> Vec<Candidate> {
        let per_test = self.settings.false_alarms_per_day / TESTS.len() as f64;
        // What is inferred from load, or from what load does to pace, must show in load.
        let is_seen =
            |test: usize| test != PRESSURE && (!channel.is_inferred() || TESTS[test] != Factor::Share);
        let mut all = Vec::new();
        self.nearest = None;
        let mut most = 0.0;
        for (test, found) in seen.evidence().into_iter().enumerate() {
            let bound = channel.known.tails[test].bound(per_test);
            for (rank, evidence) in found.iter().enumerate() {
                let strength = evidence.deviance / bound;
                if strength > most {
                    most = strength;
                    let (factor, side) = (seen.factor(test, rank), evidence.side);
                    let [deviations, bound] = [evidence.deviance, bound].map(|d| (2.0 * d).sqrt());
                    self.nearest = Some(Nearest { factor, rank, side, deviations, bound });
                }
                if strength >= 1.0 && (is_seen(test) || self.shows(rank, evidence.side)) {
                    let factor = seen.factor(test, rank);
                    all.push(Candidate {
                        factor,
                        test: Some(test),
                        rank,
                        evidence: *evidence,
                        bound,
                        strength,
                        still: None,
                    });
                }
            }
        }
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
                });
            }
        }
        all.sort_by(|a, b| b.strength.total_cmp(&a.strength));
        all
    }

    /// Whether `rank` has more (or less) to do than its peers' mean, by a material part.
    fn shows(&self, rank: usize, side: Side) -> bool {
        let load = |l: &Load| l.running + l.waiting;
        let peers: f64 =
            self.loads.iter().enumerate().filter(|(r, _)| *r != rank).map(|(_, l)| load(l)).sum();
        let mean = peers / (self.loads.len() - 1).max(1) as f64;
        match side {
            Side::High => load(&self.loads[rank]) > (1.0 + MATERIAL_LOAD) * mean,
            Side::Low => load(&self.loads[rank]) < (1.0 - MATERIAL_LOAD) * mean,
        }
    }

    fn watch(
        &mut self,
        channel: &mut Channel,
        seen: &Seen,
        candidates: &[Candidate],
        moment: Moment,
    ) -> Vec<Change> {
        let Moment { newest, now, .. } = moment;
        let Some(first) = candidates.first().copied() else {
            self.suspected = None;
            if newest >= self.since + REST || self.closed.is_none() {
                channel.learn(newest, seen);
            }
            return Vec::new();
        };
        // A rank that hangs is also sent less, and slow: a second or two later it is known to hang.
        if first.factor != Factor::Stuck && self.stuck.is_in_doubt(now) {
            return Vec::new();
        }
        let seen_before = self.suspected == Some(first.factor);
        self.suspected = Some(first.factor);
        if first.strength < GROSS && !seen_before {
            return Vec::new();
        }
        for (test, tail) in channel.known.tails.iter_mut().enumerate() {
            tail.fired(first.test == Some(test), first.evidence.deviance);
        }
        self.suspected = None;
        let incident = self.describe(channel, &first, moment);
        let returned = match self.closed.take() {
            Some((at, old)) if now - at < WAKE && old.ranks.iter().any(|r| incident.ranks.contains(r)) => {
                Some(old)
            }
            other => {
                self.closed = other;
                None
            }
        };
        let change = match returned {
            Some(old) => {
                let incident = Incident {
                    id: old.id,
                    symptoms: [old.symptoms.clone(), incident.symptoms.clone()].concat(),
                    ..incident
                };
                self.open =
                    Some(Open { incident: incident.clone(), calm: 0, votes: 0, peaks: [0.0; TESTS.len()] });
                Change::Returned(incident)
            }
            None => {
                self.incidents += 1;
                let incident = Incident { id: self.incidents, ..incident };
                self.open =
                    Some(Open { incident: incident.clone(), calm: 0, votes: 0, peaks: [0.0; TESTS.len()] });
                Change::Fired(incident)
            }
        };
        vec![change]
    }

    /// The bounds of the tests with a tail now, as deviances, in the order of [`TESTS`].
    pub fn bounds(&self) -> Option<[f64; 5]> {
        let channel = self.channels.iter().flatten().next()?;
        let per_test = self.settings.false_alarms_per_day / TESTS.len() as f64;
        Some([0, 1, 2, 3, 4].map(|i| channel.known.tails[i].bound(per_test)))
    }
}

#[cfg(test)]
mod tests;
