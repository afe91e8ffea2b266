//! The detectors of factors, one for each server: fed with everything that the intake reads of its DP
//! ranks, stepped once a second of the data's clock, and read by the rules that name factors.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::amount::counted;
use crate::factor::{
    self, Counters, Decode, Detector, Factor, Gauges, Mark, MarkEffect, Nearest, Prefill, Progress, Reading,
    Settings,
};
use crate::finding::{Finding, Impact, Side, Symptom};
use crate::signal::catalog;
use crate::signal::fields::Fields;
use crate::signal::intake::Report;
use skewtrap_trace::labels::Labels;
use skewtrap_trace::rank::{Axis, Rank};
use skewtrap_trace::time::Time;

/// A second is looked at so long after its end: a poll that is made at the full second still counts.
const PATIENCE_S: f64 = 0.05;
/// A log that tells when its lines came has no more of them than this in a row at a full second.
const MOST_ON_THE_SECOND: u32 = 4;
/// Nanoseconds of a second.
const SECOND_NS: i64 = 1_000_000_000;
/// A gap that is longer is not walked second by second.
const WALKED_S: f64 = 300.0;
/// From so many seconds of a server on its bounds are its own rather than the prior's.
const CALIBRATED_S: f64 = 3600.0;
/// For so many seconds it is said what became usual.
const DAY_S: f64 = 86_400.0;
/// More ranks than this are not compared: the cost of a step grows with them.
pub const MOST_RANKS: usize = 256;

/// Which factors a condition asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FactorSet(u8);

impl FactorSet {
    /// None of them.
    pub const NONE: Self = Self(0);

    /// Also that one.
    #[must_use]
    pub const fn with(self, factor: Factor) -> Self {
        Self(self.0 | 1 << factor as u8)
    }

    /// Whether it is one of them.
    pub const fn has(self, factor: Factor) -> bool {
        self.0 & 1 << factor as u8 != 0
    }

    /// As in rules: `share, speed`.
    pub fn words(self) -> String {
        let words = Factor::ALL.into_iter().filter(|f| self.has(*f)).map(Factor::word);
        words.collect::<Vec<_>>().join(", ")
    }

    /// In a sentence: `the ranks' share of the requests and speed at equal work are`.
    pub fn nouns(self) -> String {
        let nouns: Vec<&str> = Factor::ALL.into_iter().filter(|f| self.has(*f)).map(Factor::noun).collect();
        match &nouns[..] {
            [first @ .., last] if !first.is_empty() => {
                format!("the ranks' {} and {last} are", first.join(", "))
            }
            nouns => format!("the ranks' {} is", nouns.concat()),
        }
    }
}

/// What was learned of a server, to be kept over a restart of the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LearnedServer {
    pub target: Arc<str>,
    /// When it was saved.
    pub at: Time,
    /// The DP indexes that it is of.
    pub ranks: Vec<u16>,
    /// What was learned.
    pub known: factor::Saved,
}

impl LearnedServer {
    /// The same by a clock that was set by so many nanoseconds.
    fn shifted(self, by_ns: i64) -> Self {
        let known = self.known.shifted(by_ns as f64 / SECOND_NS as f64);
        Self { at: self.at.shifted(by_ns), known, ..self }
    }
}

/// What is older than this is no longer taken to be usual.
const OLDEST_BASELINE: Duration = Duration::from_secs(7 * 86_400);

/// A trouble of which nothing was seen for longer is not the same any more.
pub const RESUMES_WITHIN: Duration = Duration::from_secs(600);

/// The detectors of all servers.
#[derive(Debug)]
pub struct FactorDetectors {
    false_alarms_per_day: f64,
    /// By how many nanoseconds the clock was set since the beginning. The detectors never see that: all times
    /// within are by a clock that nobody sets, and those that come in and go out here are not.
    set_by_ns: i64,
    servers: BTreeMap<Arc<str>, Box<ServerDetector>>,
    /// What an agent before this one learned of servers that have not come back yet.
    remembered: BTreeMap<Arc<str>, Box<LearnedServer>>,
    /// Whether a server holds the lines of a second that was not over when it was looked at last.
    holds_lines: bool,
    /// The moment at which all servers were looked at last.
    stepped: Option<(i64, bool)>,
}

/// One server's.
#[derive(Debug, Default)]
struct ServerDetector {
    /// DP indexes in their order; a rank's place here is its number in the detector.
    ranks: Vec<u16>,
    /// Of the processes of one DP rank (tensor parallelism) one is listened to, for each kind of source.
    speakers: BTreeMap<(Kind, u16), Rank>,
    /// When a rank last published its loads: by the server's clock, and by ours.
    published: BTreeMap<u16, (f64, f64)>,
    /// What each rank had counted when it was read last, by each kind of source.
    counters: BTreeMap<(Kind, u16), Counters>,
    detector: Option<Box<Detector>>,
    /// Whether its log tells of prefills: one that does not is read as if its lines were polls.
    has_prefills: bool,
    /// The lines of a second, as a log without arrivals stamps them, until it is over.
    second: Vec<Line>,
    /// Lines in a row that a log which tells when its lines came had at a full second.
    on_the_second: Option<u32>,
    /// The last second that was looked at.
    stepped: f64,
    /// What an agent before this one learned, until the same ranks are seen again.
    known: Option<Box<LearnedServer>>,
    /// How many DP ranks it says that it has.
    limit: Option<u16>,
}

/// A line that waits until its second is over.
#[derive(Clone, Copy, Debug)]
struct Line {
    at: Time,
    dp: u16,
    rank: Rank,
    numbers: Numbers,
}

/// What the detector needs of the numbers of a rank.
#[derive(Clone, Copy, Debug)]
enum Numbers {
    Prefill(Prefill),
    /// With what they say where the log tells of no prefills.
    Decode(Decode, Gauges),
    /// So many requests were put back into the queue.
    Retraction(f64),
    /// Of a page or of loads; those say when they were published.
    Levels(Kind, Gauges, Counters, Option<(f64, Duration)>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Line,
    Loads,
    Page,
}

/// What the detector of a server holds against its ranks now.
#[derive(Clone, Copy, Debug)]
pub struct DetectorFindings<'a> {
    ranks: &'a [u16],
    /// By how many seconds the clock is ahead of the detector's times.
    ahead_s: f64,
    /// The trouble under way, by the detector's times.
    pub trouble: Option<&'a factor::Trouble>,
    /// What is nearest to its bound.
    pub nearest: Option<Nearest>,
    /// Whether the trouble seems to have ended a moment ago.
    pub is_calming: bool,
    /// Seconds from which bounds were learned.
    pub learned_s: Option<f64>,
    /// What became usual last, in the last day.
    became_usual: Option<factor::BecameUsual>,
    /// What the bounds have cost.
    pub cost: Cost,
}

/// How often a server's factors fired in the last day, and how many false alarms a day are accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Firings in the last day, useful ones too.
    pub fired: usize,
    /// False alarms a day.
    pub accepted: f64,
}

/// Why a detector tells nothing now, as plain data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DetectorStatus {
    /// The factor of the trouble under way.
    trouble: Option<Factor>,
    /// What is nearest to its bound, and its rank's DP index.
    nearest: Option<(Nearest, u16)>,
    learned_s: Option<f64>,
    /// In what a rank departs that counts as usual by now, its DP index, and since when.
    became_usual: Option<(Factor, u16, Time)>,
    cost: Cost,
}

impl DetectorStatus {
    /// In a sentence, for a condition that asks for `wanted`.
    pub fn words(&self, wanted: FactorSet) -> String {
        let site = match self.learned_s {
            None => "no source tells of arrivals or of work yet".to_owned(),
            Some(s) if s < CALIBRATED_S => format!(
                "the bounds are those of an unknown server for another {:.0} min: only large departures fire",
                (CALIBRATED_S - s) / 60.0
            ),
            Some(s) => format!("the bounds follow from {:.1} h of this server", s / 3600.0),
        };
        let Cost { fired, accepted } = self.cost;
        let alarms = if accepted == 1.0 { "alarm" } else { "alarms" };
        let fired = counted(fired, "firing");
        let site = format!(
            "{site}; {fired} of all rules on factors in 24 h here (budget: {accepted} false {alarms} a day)"
        );
        let usual = self.became_usual.filter(|(factor, ..)| wanted.has(*factor));
        let site = usual.map_or(site.clone(), |(factor, dp, at)| {
            format!(
                "{site}; DP{dp}'s {} counts as usual since {at}, when it had departed for long",
                factor.noun()
            )
        });
        match (self.trouble, self.nearest) {
            (Some(trouble), _) if !wanted.has(trouble) => {
                format!("a trouble of a rank's {} is already reported by another rule", trouble.noun())
            }
            // Only what the rule watches says how far it is from firing.
            (_, Some((nearest, _))) if !wanted.has(nearest.factor) => {
                format!("nothing departs of what it watches ({}); {site}", wanted.words())
            }
            (_, Some((Nearest { factor, deviations, bound, shows, .. }, dp))) => {
                let of = format!("DP{dp}'s {}", factor.noun());
                let needed = format!("the {bound:.1} standard deviations needed to fire");
                match (deviations >= bound, shows) {
                    (false, _) => format!(
                        "nothing departs from what is usual: nearest is {of}: {deviations:.1} of {needed}; {site}"
                    ),
                    (true, false) => format!(
                        "nothing departs that matters: {of} is {deviations:.1}, beyond {needed}, and its load does not show it; {site}"
                    ),
                    (true, true) => format!(
                        "nothing fires yet: {of} is {deviations:.1}, beyond {needed}, for less than two seconds, or as what an \
                         earlier trouble leaves behind; {site}"
                    ),
                }
            }
            _ => format!("nothing departs from what is usual; {site}"),
        }
    }
}

impl FactorDetectors {
    /// Detectors whose false alarms, all tests of a server together, are so many a day.
    pub fn new(false_alarms_per_day: f64) -> Self {
        Self {
            false_alarms_per_day,
            set_by_ns: 0,
            servers: BTreeMap::new(),
            remembered: BTreeMap::new(),
            holds_lines: false,
            stepped: None,
        }
    }

    /// The clock was set by so many nanoseconds.
    pub fn shift(&mut self, by_ns: i64) {
        self.set_by_ns = self.set_by_ns.saturating_add(by_ns);
    }

    /// A time by the clock that nobody sets.
    const fn steady(&self, at: Time) -> Time {
        at.shifted(self.set_by_ns.saturating_neg())
    }

    /// By how many seconds the clock is ahead of that one.
    fn ahead_s(&self) -> f64 {
        self.set_by_ns as f64 / SECOND_NS as f64
    }

    /// Takes in the numbers of one rank, read at `at`.
    pub fn take(&mut self, server: &Arc<str>, rank: Rank, report: Report, fields: &Fields, at: Time) {
        let Some(dp) = rank.get(Axis::Dp) else { return };
        let per_day = self.false_alarms_per_day;
        let numbers = Numbers::of(report, fields);
        let is_line = matches!(report, Report::Prefill | Report::Decode | Report::Retraction(_));
        let (is_at_second, at) = (at.nanos() % SECOND_NS == 0, self.steady(at));
        let mut take = |state: &mut ServerDetector| {
            if state.limit.is_some_and(|limit| dp >= limit) {
                return;
            }
            state.advance(at, per_day);
            if is_line && state.stamps_whole_seconds(is_at_second) {
                self.holds_lines = true;
                return state.second.push(Line { at, dp, rank, numbers });
            }
            state.take((dp, rank), &numbers, at.epoch_s(), per_day);
        };
        if let Some(state) = self.servers.get_mut(server) {
            return take(state);
        }
        let known = self.remembered.remove(server);
        let mut state = Box::new(ServerDetector { known, ..ServerDetector::default() });
        take(&mut state);
        self.servers.insert(server.clone(), state);
    }

    /// A server says what it is: so many DP ranks, where it tells, and with `is_another` another instance
    /// than before. Nothing that was under way with the one before, or with ranks that are gone, goes on.
    pub fn server_is(&mut self, server: &Arc<str>, limit: Option<u16>, is_another: bool, now: Time) {
        let (per_day, now) = (self.false_alarms_per_day, self.steady(now));
        if let Some(state) = self.servers.get_mut(server) {
            return state.is(limit, is_another, now.epoch_s(), per_day);
        }
        let known = self.remembered.remove(server);
        self.servers
            .insert(server.clone(), Box::new(ServerDetector { known, limit, ..ServerDetector::default() }));
    }

    /// What was learned of every server so far.
    pub fn learned_servers(&self, now: Time) -> Vec<LearnedServer> {
        let now = self.steady(now);
        let learned = self.servers.iter().filter_map(|(target, server)| server.learned_at(target, now));
        // A server that did not come back yet is not forgotten; one that came back with other ranks is learned anew.
        let mut remembered: Vec<&LearnedServer> = self
            .servers
            .iter()
            .filter(|(target, server)| server.learned_at(target, now).is_none())
            .filter_map(|(_, server)| server.known.as_deref())
            .chain(self.remembered.values().map(|b| &**b))
            .collect();
        remembered.sort_by(|a, b| a.target.cmp(&b.target));
        let all = learned.chain(remembered.into_iter().cloned());
        all.map(|learned_at| learned_at.shifted(self.set_by_ns)).collect()
    }

    /// What was learned of a server so far.
    pub fn learned_of(&self, server: &str, now: Time) -> Option<LearnedServer> {
        let (target, server) = self.servers.get_key_value(server)?;
        Some(server.learned_at(target, self.steady(now))?.shifted(self.set_by_ns))
    }

    /// Remembers what an agent before this one learned, unless it is too old.
    pub fn remember(&mut self, learned_servers: Vec<LearnedServer>, now: Time) {
        let fresh = learned_servers.into_iter().filter(|b| now.since(b.at) <= OLDEST_BASELINE);
        let steady = fresh.map(|learned_at| learned_at.shifted(self.set_by_ns.saturating_neg()));
        self.remembered = steady.map(|b| (b.target.clone(), Box::new(b))).collect();
    }

    /// A person says what the firing was worth that was told of `server` at `told`; what that taught.
    pub fn mark(&mut self, server: &str, told: Time, mark: Mark, now: Time) -> Option<MarkEffect> {
        let [told, now] = [told, now].map(|time| self.steady(time).epoch_s());
        self.servers.get_mut(server)?.detector.as_mut()?.mark(told, mark, now)
    }

    /// Looks at every second that is over at `now`. Seconds are over for all servers at once: between two
    /// of those moments no server is visited.
    pub fn step(&mut self, now: Time) {
        let now = self.steady(now);
        let moment = moment_of(now.epoch_s());
        if self.stepped == Some(moment) && !self.holds_lines {
            return;
        }
        self.stepped = Some(moment);
        self.holds_lines = false;
        for server in self.servers.values_mut() {
            server.advance(now, self.false_alarms_per_day);
            self.holds_lines |= !server.second.is_empty();
        }
    }

    /// How the DP ranks of a server get on with their work; none where only one is known.
    pub fn progress(&self, server: &str, now: Time) -> Vec<(u16, Progress)> {
        let Some(server) = self.servers.get(server) else { return Vec::new() };
        let now = self.steady(now).epoch_s();
        let progress = server.detector.iter().flat_map(|detector| detector.progress(now));
        server.ranks.iter().copied().zip(progress).collect()
    }

    /// When a DP rank that was stuck moved again, if it has not been stuck since.
    pub fn resumed(&self, server: &str, rank: &Labels) -> Option<Time> {
        let server = self.servers.get(server)?;
        let place = server.ranks.iter().position(|dp| Rank::dp(*dp).labels() == *rank)?;
        Some(Time::from_epoch_s(server.detector.as_ref()?.resumed(place)? + self.ahead_s()))
    }

    /// Whether the trouble of that number goes on, on `server`.
    pub fn is_open(&self, server: &str, trouble: u64) -> bool {
        let detector = self.servers.get(server).and_then(|server| server.detector.as_ref());
        detector.is_some_and(|detector| detector.is_open(trouble))
    }

    /// In what the ranks of the trouble of that number depart, on `server`, and whether it seems to have
    /// ended a moment ago.
    pub fn trouble(&self, server: &str, trouble: u64) -> Option<(Factor, bool)> {
        self.servers.get(server)?.detector.as_ref()?.trouble(trouble)
    }

    /// Whether the trouble of that number has gone on for so long, on `server`, that it counts as usual.
    pub fn became_usual(&self, server: &str, trouble: u64) -> bool {
        let detector = self.servers.get(server).and_then(|server| server.detector.as_ref());
        detector.is_some_and(|detector| detector.became_usual().iter().any(|usual| usual.id == trouble))
    }

    /// Whether the trouble of that number ended, on `server`, since nobody could observe it any more.
    pub fn ended_unseen(&self, server: &str, trouble: u64) -> bool {
        let detector = self.servers.get(server).and_then(|server| server.detector.as_ref());
        detector.is_some_and(|detector| detector.ended_unseen(trouble))
    }

    /// The imbalance of a server that was there before anything could be compared, with the DP indexes of its
    /// ranks; `None` while nobody can say whether there is one.
    pub fn standing(&self, server: &str) -> Option<Option<(factor::Uneven, &[u16])>> {
        let server = self.servers.get(server)?;
        let uneven = server.detector.as_ref()?.standing()?;
        let by_the_clock =
            |uneven: factor::Uneven| factor::Uneven { since: uneven.since + self.ahead_s(), ..uneven };
        Some(uneven.map(|uneven| (by_the_clock(uneven), &server.ranks[..])))
    }

    /// What is held against the ranks of a server.
    pub fn findings(&self, server: &str) -> Option<DetectorFindings<'_>> {
        let server = self.servers.get(server)?;
        let detector = server.detector.as_ref()?;
        Some(DetectorFindings {
            ranks: &server.ranks,
            ahead_s: self.ahead_s(),
            trouble: detector.open(),
            nearest: detector.nearest(),
            is_calming: detector.is_calming(),
            learned_s: detector.learned_s(),
            became_usual: detector
                .became_usual()
                .last()
                .filter(|usual| server.stepped - usual.at < DAY_S)
                .copied(),
            cost: Cost {
                fired: detector.fired_in_a_day(server.stepped),
                accepted: self.false_alarms_per_day,
            },
        })
    }
}

impl ServerDetector {
    fn learned_at(&self, target: &Arc<str>, now: Time) -> Option<LearnedServer> {
        let detector = self.detector.as_ref()?;
        let (target, ranks) = (target.clone(), self.ranks.clone());
        detector.learned_s().map(|_| LearnedServer { target, at: now, ranks, known: detector.saved() })
    }

    /// Whether a line is of a log that stamps whole seconds. One that tells when its lines came has a line at
    /// a full second now and then, which must not wait: what comes after it would be read before it.
    fn stamps_whole_seconds(&mut self, is_at_second: bool) -> bool {
        if !is_at_second {
            self.on_the_second = Some(0);
            return false;
        }
        let in_a_row = self.on_the_second.map_or(u32::MAX, |lines| lines.saturating_add(1));
        self.on_the_second = (in_a_row <= MOST_ON_THE_SECOND).then_some(in_a_row);
        self.on_the_second.is_none()
    }

    /// Looks at every second that is over at `now`.
    fn advance(&mut self, now: Time, per_day: f64) {
        self.spread_second(now, per_day);
        self.step(now.epoch_s());
    }

    /// Lines that bear only their second are spread evenly over it, as they came: a stretch of work that
    /// is timed by whole seconds would seem to take none, or twice its time.
    fn spread_second(&mut self, now: Time, per_day: f64) {
        if self.second.last().is_none_or(|l| now.nanos() < l.at.nanos() + SECOND_NS) {
            return;
        }
        let mut lines = std::mem::take(&mut self.second);
        for second in lines.chunk_by(|a, b| a.at == b.at) {
            for (i, line) in second.iter().enumerate() {
                let within = (i as f64 + 0.5) / second.len() as f64;
                self.take((line.dp, line.rank), &line.numbers, line.at.epoch_s() + within, per_day);
            }
        }
        lines.clear();
        self.second = lines;
    }

    /// Takes in a rank's numbers.
    fn take(&mut self, (dp, rank): (u16, Rank), numbers: &Numbers, at: f64, per_day: f64) {
        let kind = match numbers {
            Numbers::Prefill(_) | Numbers::Decode(..) | Numbers::Retraction(_) => Kind::Line,
            Numbers::Levels(kind, ..) => *kind,
        };
        let speaker = self.speakers.entry((kind, dp)).or_insert(rank);
        if rank < *speaker {
            *speaker = rank;
        } else if rank != *speaker {
            return;
        }
        if let Numbers::Levels(kind, _, counters, _) = *numbers {
            let before = self.counters.insert((kind, dp), counters);
            if before.is_some_and(|before| begins_anew(&before, &counters)) {
                // Engines that do not say which instance they are (vLLM, TensorRT-LLM) are known by that alone.
                self.is(self.limit, true, at, per_day);
                self.speakers.insert((kind, dp), rank);
                self.counters.insert((kind, dp), counters);
            }
        }
        let Some((place, is_new)) = self.place_of(dp, at, per_day) else { return };
        if let Some(known) = self.known.take_if(|k| is_new && k.ranks == self.ranks) {
            let settings = Settings { ranks: self.ranks.len(), false_alarms_per_day: per_day };
            self.detector = Some(detector_of(settings, Some((known, at))));
        }
        let published = match numbers {
            Numbers::Levels(.., Some((published, age))) => {
                Some(self.stamp_of(dp, *published, at - age.as_secs_f64()))
            }
            _ => None,
        };
        let Some(detector) = &mut self.detector else { return };
        let mut observe = |what: Reading| detector.observe(&factor::RankReading { at, rank: place, what });
        match *numbers {
            Numbers::Prefill(prefill) => {
                self.has_prefills = true;
                observe(Reading::Prefill(prefill));
            }
            Numbers::Decode(_, gauges) if !self.has_prefills => {
                observe(Reading::Gauges(Gauges { stamp: Some(at), ..gauges }));
            }
            Numbers::Decode(decode, _) => observe(Reading::Decode(decode)),
            Numbers::Retraction(requests) => observe(Reading::Retraction(requests)),
            Numbers::Levels(_, gauges, counters, _) => {
                observe(Reading::Gauges(Gauges { stamp: published, ..gauges }));
                if counters != Counters::default() {
                    observe(Reading::Counters(counters));
                }
            }
        }
    }

    /// The number of a rank. A rank that was not there before makes a new detector: what is usual among
    /// four ranks is not what is usual among five.
    fn place_of(&mut self, dp: u16, at: f64, per_day: f64) -> Option<(usize, bool)> {
        if let Ok(place) = self.ranks.binary_search(&dp) {
            return Some((place, false));
        }
        if self.ranks.len() >= MOST_RANKS {
            return None;
        }
        self.ranks.push(dp);
        self.ranks.sort_unstable();
        let ranks = self.ranks.len();
        let settings = Settings { ranks, false_alarms_per_day: per_day };
        self.detector = new_detector(settings, self.detector.take());
        self.stepped = at.floor();
        self.ranks.binary_search(&dp).ok().map(|place| (place, true))
    }

    /// When a rank published its loads, by our clock. What was published once has one time, however
    /// often it is read and however long an answer took.
    fn stamp_of(&mut self, dp: u16, published: f64, ours: f64) -> f64 {
        let known = self.published.entry(dp).or_insert((published, ours));
        if known.0 != published {
            *known = (published, ours);
        }
        known.1
    }

    fn is(&mut self, limit: Option<u16>, is_another: bool, now: f64, per_day: f64) {
        self.limit = limit;
        let is_there = |dp: u16| limit.is_none_or(|limit| dp < limit);
        let goes_on = self.ranks.iter().all(|dp| is_there(*dp));
        if goes_on && !is_another {
            return;
        }
        self.ranks.retain(|dp| is_there(*dp));
        self.speakers.clear();
        self.published.clear();
        self.counters.clear();
        self.second.clear();
        let settings = Settings { ranks: self.ranks.len(), false_alarms_per_day: per_day };
        let before = self.detector.take();
        self.detector = match before {
            Some(detector) if goes_on => {
                let mut saved = detector.saved();
                saved.open.clear();
                saved.closed.clear();
                Some(Box::new(Detector::restored(settings, saved, now)))
            }
            before => new_detector(settings, before),
        };
    }

    fn step(&mut self, now: f64) {
        let Some(detector) = &mut self.detector else { return };
        if now - self.stepped > WALKED_S || now < self.stepped - WALKED_S {
            self.stepped = now.floor() - 1.0;
        }
        while self.stepped + 1.0 + PATIENCE_S <= now {
            self.stepped += 1.0;
            detector.step(self.stepped + PATIENCE_S);
        }
    }
}

/// Whether a rank counts from zero again, as only another process does: nothing has grown, and something is
/// less than half of what it was.
fn begins_anew(before: &Counters, now: &Counters) -> bool {
    let totals = |of: &Counters| {
        let Counters {
            admissions,
            finished,
            prompt_tokens,
            computed_tokens,
            cached_tokens,
            decode_tokens,
            steps,
            prefill_steps,
        } = *of;
        let tokens = [prompt_tokens, computed_tokens, cached_tokens, decode_tokens];
        tokens.into_iter().chain([admissions, finished, steps, prefill_steps])
    };
    let pairs = || totals(before).zip(totals(now)).filter_map(|(before, now)| before.zip(now));
    pairs().all(|(before, now)| now <= before) && pairs().any(|(before, now)| now < 0.5 * before)
}

/// A detector that knows nothing of its ranks, in the place of the one `before`.
fn new_detector(settings: Settings, before: Option<Box<Detector>>) -> Option<Box<Detector>> {
    let new = (settings.ranks >= 2).then(|| detector_of(settings, None))?;
    Some(match before {
        Some(before) => Box::new(new.after(&before)),
        None => new,
    })
}

/// A detector, with what was known before. Out of the way of every line, which would pay for the room that it
/// takes on the stack.
#[cold]
#[inline(never)]
fn detector_of(settings: Settings, known: Option<(Box<LearnedServer>, f64)>) -> Box<Detector> {
    Box::new(match known {
        Some((known, at)) => {
            let mut saved = known.known;
            if at - known.at.epoch_s() > RESUMES_WITHIN.as_secs_f64() {
                saved.open.clear();
            }
            Detector::restored(settings, saved, at)
        }
        None => Detector::new(settings),
    })
}

/// Which of the moments between which nothing becomes due: a second is over for lines at its end, and for
/// the detectors [`PATIENCE_S`] later.
fn moment_of(now: f64) -> (i64, bool) {
    (now.floor() as i64, now.floor() + PATIENCE_S <= now)
}

impl DetectorFindings<'_> {
    /// The DP index of a number of the detector's.
    pub fn dp(&self, rank: usize) -> Option<u16> {
        self.ranks.get(rank).copied()
    }

    /// What is kept for those who ask why nothing fires.
    pub fn as_status(&self) -> DetectorStatus {
        let nearest = self.nearest.and_then(|n| Some((n, self.dp(n.rank)?)));
        DetectorStatus {
            trouble: self.trouble.map(|t| t.factor),
            nearest,
            learned_s: self.learned_s,
            became_usual: self.became_usual.and_then(|usual| {
                Some((usual.factor, self.dp(usual.rank)?, Time::from_epoch_s(usual.at + self.ahead_s)))
            }),
            cost: self.cost,
        }
    }

    /// How many times its bound the statistic is, in standard deviations: of the trouble, or else of what
    /// is nearest to its bound.
    pub fn times_bound(&self) -> f64 {
        match (self.trouble, self.nearest) {
            (Some(trouble), _) => (trouble.deviance / trouble.bound).max(0.0).sqrt(),
            (None, Some(nearest)) => nearest.deviations / nearest.bound.max(1e-9),
            (None, None) => 0.0,
        }
    }

    /// What the finding of a firing says of the trouble: since when, who else, what departed in which
    /// order, and what it costs.
    pub fn describe(&self, finding: &mut Finding) {
        let Some(trouble) = self.trouble else { return };
        if let Some(onset) = trouble.onset {
            finding.onset = Time::from_epoch_s(onset.at + self.ahead_s);
            finding.onset_error_s = onset.error;
        }
        self.update(finding);
    }

    /// What changes of it while the trouble goes on.
    pub fn update(&self, finding: &mut Finding) {
        let Some(trouble) = self.trouble else { return };
        let labels = |rank: usize| self.dp(rank).map_or_else(Labels::default, |dp| Rank::dp(dp).labels());
        let others = trouble.ranks.iter().map(|r| labels(*r)).filter(|l| *l != finding.rank);
        finding.also = others.collect();
        let symptom = |s: &factor::Symptom| Symptom {
            at: Time::from_epoch_s(s.seen + self.ahead_s),
            rank: labels(s.rank),
            factor: s.factor.word().into(),
            side: side_of(s.side),
        };
        finding.symptoms = trouble.symptoms.iter().map(symptom).collect();
        let factor::Impact { requests, share, reason } = trouble.impact;
        finding.impact = Some(Impact { share, requests, reason: reason.word().into() });
    }
}

/// The side in a finding's words.
pub fn side_of(side: factor::Side) -> Side {
    match side {
        factor::Side::High => Side::High,
        factor::Side::Low => Side::Low,
    }
}

/// What departed, in a sentence without its subject: `is sent 2.1 times its usual share of the requests`.
pub fn words_of(trouble: &factor::Trouble) -> String {
    let high = trouble.side == factor::Side::High;
    // Of two ranks the one to blame may be the other than the one that was measured: then the number is not its own.
    let own = trouble.effect.filter(|effect| (*effect > 0.0) == high);
    let times = |sign: f64| own.map(|e| format!("{:.1} times", (sign * e).exp()));
    match (trouble.factor, high) {
        (Factor::Share, _) => match times(1.0) {
            Some(times) => format!("is sent {times} its usual share of the requests"),
            None => format!("is sent {} requests than its usual share", if high { "more" } else { "fewer" }),
        },
        (Factor::Speed, false) => match times(-1.0) {
            Some(times) => format!("takes {times} as long as usual for the same work"),
            None => "takes longer than usual for the same work".into(),
        },
        (Factor::Speed, true) => "works faster than usual at the same work".into(),
        (Factor::Work, _) => match times(1.0) {
            Some(times) => format!("gets requests of {times} the usual work each"),
            None => format!("gets requests of {} work than usual", if high { "more" } else { "less" }),
        },
        (Factor::Room, _) => "has no room left for requests".into(),
        // By its last word it has nothing to do.
        (Factor::Stuck, _) if trouble.impact.requests < 1.0 => "shows no sign of life while its peers do: its scheduler \
            process died or hangs, and requests that are sent to it wait for ever; look whether the process still runs, and at \
            its stacks with `py-spy dump --pid PID`"
            .into(),
        (Factor::Stuck, _) => "has work and has not moved while its peers did; no window is opened, since a rank \
            that hangs cannot end one: see its stacks before the engine's watchdog kills it, with `py-spy dump --pid PID` \
            of its scheduler process (without py-spy: `kill -3 PID` where faulthandler is on)"
            .into(),
    }
}

impl Numbers {
    fn of(report: Report, fields: &Fields) -> Self {
        match report {
            Report::Prefill => Self::Prefill(prefill_of(fields)),
            Report::Decode => Self::Decode(decode_of(fields), gauges_of(fields)),
            Report::Retraction(requests) => Self::Retraction(requests),
            Report::Loads { published_s, age } => {
                let published = published_s.map(|published| (published, age));
                Self::Levels(Kind::Loads, gauges_of(fields), counters_of(fields), published)
            }
            Report::Page => Self::Levels(Kind::Page, gauges_of(fields), counters_of(fields), None),
        }
    }
}

fn prefill_of(fields: &Fields) -> Prefill {
    Prefill {
        new_seqs: fields.get(catalog::NEW_SEQS).unwrap_or(0.0),
        new_tokens: fields.get(catalog::NEW_TOKENS).unwrap_or(0.0),
        cached_tokens: fields.get(catalog::CACHED_TOKENS),
        running: fields.get(catalog::RUNNING_REQS),
        queue: fields.get(catalog::QUEUE_REQS),
    }
}

fn decode_of(fields: &Fields) -> Decode {
    Decode {
        running: fields.get(catalog::RUNNING_REQS).unwrap_or(0.0),
        tokens: fields.get(catalog::USED_TOKENS),
        throughput: fields.get(catalog::GEN_THROUGHPUT),
        queue: fields.get(catalog::QUEUE_REQS),
        kv_usage: fields.get(catalog::KV_USAGE),
    }
}

fn gauges_of(fields: &Fields) -> Gauges {
    Gauges {
        // The oldest servers tell only the sum of both.
        running: fields.get(catalog::RUNNING_REQS).or_else(|| fields.get(catalog::LOAD)),
        waiting: fields.get(catalog::QUEUE_REQS),
        used_tokens: fields.get(catalog::USED_TOKENS),
        kv_usage: fields.get(catalog::KV_USAGE),
        throughput: fields.get(catalog::GEN_THROUGHPUT),
        stamp: None,
        retracted: fields.get(catalog::RETRACTED_REQS),
    }
}

fn counters_of(fields: &Fields) -> Counters {
    Counters {
        admissions: fields.get(catalog::ADMISSIONS),
        finished: fields.get(catalog::FINISHED),
        computed_tokens: fields.get(catalog::PREFILL_COMPUTE_TOKENS),
        cached_tokens: fields.get(catalog::PREFILL_CACHE_TOKENS),
        prompt_tokens: fields.get(catalog::PROMPT_TOKENS),
        decode_tokens: fields.get(catalog::DECODE_TOKENS),
        steps: fields.get(catalog::DECODE_STEPS),
        prefill_steps: fields.get(catalog::PREFILL_STEPS),
    }
}

#[cfg(test)]
mod tests;
