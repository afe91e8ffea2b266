//! Stuck: work is there, and the rank's own clock or counts stand still while its peers' move.
//!
//! No statistic and no bound to tune: a rank with work reports at least every few steps. How long its
//! longest pause is on this site is remembered, and a multiple of it is waited for.
//!
//! A rank without work that dates its reports says that it lives, too: SGLang's schedulers publish their load from the
//! idle loop. Whether a server's ranks do so, and how often, is learned from those that idle; only then does the clock
//! of one that stands still while most others' go on say that its scheduler died or hangs.

/// A rank reports something at least so often, in seconds, before anything is known.
const LEAST_PATIENCE: f64 = 3.5;
/// So many times the longest healthy pause are waited for.
const PATIENCE: f64 = 2.0;
/// A pause is unusual if it is so many times the longest healthy one.
const UNUSUAL: f64 = 1.1;
/// A rank that was not heard for so long may hang, in seconds.
const SILENCE: f64 = 1.0;
/// So may one whose work had not moved for so long when it was read last: it had not since the poll before.
const STOOD: f64 = 0.9;
/// Readings that are nearer to each other are of one poll, in seconds; how fast the time between two is
/// learned, a poll.
const LEAST_GAP: f64 = 0.2;
const INTERVAL_GAIN: f64 = 0.2;
/// After so many times the usual time between two readings, and so many seconds at least, some have failed.
const MISSED: f64 = 2.5;
const LEAST_MISSED: f64 = 2.5;
/// The longest pause is forgotten with this time constant, in seconds.
const MEMORY: f64 = 4.0 * 3600.0;
/// How fast reports are believed to have become older, a report.
const AGE_GAIN: f64 = 0.05;
/// Nothing is waited for longer than this.
const MOST_PATIENCE: f64 = 20.0;

/// A rank without work is waited for at least so long, in seconds: a first prompt may be compiled for.
const IDLE_PATIENCE: f64 = 20.0;
/// So many times the longest healthy pause between its reports it is waited for: they come in no step with its peers'.
const IDLE_PAUSES: f64 = 3.0;
/// A longer pause is learned as this one: an outage is no way of reporting.
const MOST_IDLE_PAUSE: f64 = 60.0;
/// Clocks of idle ranks are known to go on after so many reports.
const IDLE_REPORTS: u32 = 20;

/// How many requests end between two lines of a log is forgotten with this time constant, in seconds; somewhat more may
/// than have so far.
const ENDED_MEMORY: f64 = 3600.0;
const MORE_UNSEEN: f64 = 1.25;

/// A rank that moves again after it was stuck is not trusted for so long, in seconds: it may stop again.
const WAKES: f64 = 10.0;

/// How a rank gets on with its work, as far as its life signs tell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Progress {
    /// It moves, has no work, or too little is known of it.
    Moves,
    /// It has work and has stood still for unusually long, in seconds.
    InDoubt(f64),
    /// It is stuck: it has stood still among moving peers for so many seconds.
    Stuck(f64),
    /// It was stuck until so many seconds ago.
    Wakes(f64),
}

/// A rank's life signs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Liveness {
    /// When its work last moved, by its own clock where it has one.
    pub moved: Option<f64>,
    pub moved_read: Option<f64>,
    /// How old its reports are when they are read, at least, in seconds: a page that is always that old tells
    /// of a rank that moves all the while.
    pub age: f64,
    /// Requests that it has, by its last word.
    pub work: f64,
    pub read: Option<f64>,
    /// The usual time between two readings, in seconds; 0 before it is known.
    interval: f64,
    /// When it was read again after several readings had failed.
    unread: Option<f64>,
    /// When it was last seen to be stuck.
    pub stuck: Option<f64>,
    /// When its work moved again after that.
    pub resumed: Option<f64>,
    /// Whether what it reports bears its own time.
    pub is_dated: bool,
}

impl Liveness {
    /// For how long it had stood still when it was read last, by one clock.
    fn stood(&self) -> Option<f64> {
        Some(self.read? - self.moved_read?)
    }

    /// For how long it has stood still now, as far as its reports can tell.
    fn still(&self, now: f64) -> Option<f64> {
        self.moved.map(|moved| now - moved - self.age)
    }
}

/// The life signs of all ranks.
#[derive(Clone, Debug, PartialEq)]
pub struct Stuck {
    /// Per rank.
    pub liveness: Vec<Liveness>,
    /// The longest healthy pause of a rank with work, in seconds.
    pub longest: f64,
    /// The same between two reports of ranks without work, and how many there were: how their clocks go on here.
    idle: (f64, u32),
    /// The most running requests of a rank that all ended between two lines of its log, and when that was last.
    ended: (f64, f64),
}

impl Stuck {
    /// For `ranks` ranks.
    pub fn new(ranks: usize) -> Self {
        Self { liveness: vec![Liveness::default(); ranks], longest: 0.0, idle: (0.0, 0), ended: (0.0, 0.0) }
    }

    /// Whether every rank was read since then, and has no work.
    pub fn is_idle(&self, since: f64) -> bool {
        self.liveness
            .iter()
            .all(|liveness| liveness.work < 1.0 && liveness.read.is_some_and(|read| read >= since))
    }

    /// Something of `rank` was read at `at`.
    pub fn read(&mut self, rank: usize, at: f64) {
        let liveness = &mut self.liveness[rank];
        let Some(gap) = liveness.read.replace(at).map(|before| at - before).filter(|gap| *gap > LEAST_GAP)
        else {
            return;
        };
        if liveness.interval == 0.0 {
            liveness.interval = gap;
        }
        let most = (MISSED * liveness.interval).max(LEAST_MISSED);
        if gap > most {
            liveness.unread = Some(at);
        }
        liveness.interval += INTERVAL_GAIN * (gap.min(most) - liveness.interval);
    }

    /// Whether `rank` was read all the time since its work moved last: else nobody knows how long its pause was.
    pub fn was_read(&self, rank: usize) -> bool {
        let liveness = &self.liveness[rank];
        liveness.unread.is_none_or(|unread| liveness.moved.is_some_and(|moved| moved >= unread))
    }

    /// The work of `rank` moved at `at`, as was read at `read`. A healthy pause before it is remembered.
    pub fn moved(&mut self, rank: usize, at: f64, read: f64, is_healthy: bool) {
        let liveness = &mut self.liveness[rank];
        if let Some(before) = liveness.moved {
            let pause = at - before;
            if pause <= 0.0 {
                return;
            }
            if liveness.stuck.is_some() {
                liveness.resumed.get_or_insert(at);
            }
            if is_healthy && liveness.work >= 1.0 {
                let forgotten = self.longest * (-pause / MEMORY).exp();
                self.longest = forgotten.max(pause.min(0.5 * MOST_PATIENCE));
            }
        }
        let age = (read - at).max(0.0);
        liveness.age = match liveness.moved {
            Some(_) => age.min(liveness.age + AGE_GAIN * (age - liveness.age)),
            None => age,
        };
        (liveness.moved, liveness.moved_read) = (Some(at), Some(read));
    }

    /// A report of `rank` bears its own time `at`. Between two of one that `is_idle` in both its clock is
    /// seen to go on. To be called before [`Self::moved`].
    pub fn dated(&mut self, rank: usize, at: f64, is_idle: bool) {
        let liveness = &mut self.liveness[rank];
        liveness.is_dated = true;
        let pause = liveness.moved.map_or(0.0, |before| at - before);
        if is_idle && pause > 0.0 {
            let (longest, reports) = self.idle;
            let longest = (longest * (-pause / MEMORY).exp()).max(pause.min(MOST_IDLE_PAUSE));
            self.idle = (longest, reports.saturating_add(1));
        }
    }

    /// So many running `requests` of a rank all ended between two lines of its log.
    pub fn ended_unseen(&mut self, at: f64, requests: f64) {
        if requests > 0.0 {
            self.ended = (requests.max(self.ended_by(at)), at);
        }
    }

    /// So many running requests may all end between two lines of a log: answers are short here.
    pub fn may_end_unseen(&self, at: f64) -> f64 {
        MORE_UNSEEN * self.ended_by(at)
    }

    /// The most that did, of which some is forgotten by `at`.
    fn ended_by(&self, at: f64) -> f64 {
        self.ended.0 * (-(at - self.ended.1).max(0.0) / ENDED_MEMORY).exp()
    }

    /// How long a rank without work may be silent; for ever where idle ranks are not known to report.
    fn idle_patience(&self) -> f64 {
        match self.idle {
            (longest, IDLE_REPORTS..) => (IDLE_PAUSES * longest.max(self.longest)).max(IDLE_PATIENCE),
            _ => f64::INFINITY,
        }
    }

    /// How long a rank with work may be silent.
    pub fn patience(&self) -> f64 {
        (PATIENCE * self.longest).clamp(LEAST_PATIENCE, MOST_PATIENCE)
    }

    /// Whether a rank with work has stood still for longer than any did in health, while most of its peers
    /// moved, and not yet for so long that it is stuck: what else departs now may come of that.
    pub fn is_in_doubt(&self, now: f64) -> bool {
        let unusual = UNUSUAL * self.longest.max(1.0);
        let working: Vec<f64> =
            self.liveness.iter().filter(|p| p.work >= 1.0).filter_map(|p| p.still(now)).collect();
        let patience = self.patience();
        let moving = working.iter().filter(|still| **still < 0.5 * patience).count();
        2 * moving >= working.len() && working.iter().any(|s| *s > unusual && *s <= patience)
    }

    /// Remembers who is stuck now.
    pub fn note(&mut self, now: f64) {
        for (rank, still) in self.examine(now).into_iter().enumerate() {
            if still.is_some() {
                let liveness = &mut self.liveness[rank];
                (liveness.stuck, liveness.resumed) = (Some(now), None);
            }
        }
    }

    /// How every rank gets on. Other than the test, it doubts a rank whatever its peers do, and as soon as
    /// what is read of it says that it stands still: who asks may wait a second, and ask again.
    pub fn progress(&self, now: f64) -> Vec<Progress> {
        let (unusual, patience) = (UNUSUAL * self.longest.max(1.0), self.patience());
        let stuck = self.examine(now);
        let of = |(liveness, stuck): (&Liveness, Option<f64>)| {
            if let Some(since) = stuck {
                return Progress::Stuck(now - since);
            }
            if let Some(ago) = liveness.stuck.map(|at| now - at).filter(|ago| *ago < WAKES) {
                return Progress::Wakes(ago);
            }
            let (Some(still), Some(stood)) = (liveness.still(now), liveness.stood()) else {
                return Progress::Moves;
            };
            match liveness.work >= 1.0 && (stood > unusual || still > patience) {
                true => Progress::InDoubt(still),
                false => Progress::Moves,
            }
        };
        self.liveness.iter().zip(stuck).map(of).collect()
    }

    /// Whether `rank`, which has work, was not heard for a while, and not yet for so long that it is stuck:
    /// whether it is slow or hangs is known when it is heard again, or is not.
    pub fn is_silent(&self, rank: usize, now: f64) -> bool {
        let liveness = &self.liveness[rank];
        let (Some(moved), Some(still)) = (liveness.moved, liveness.still(now)) else { return false };
        let read = liveness.read.unwrap_or(moved);
        let is_silent = now - read > SILENCE || liveness.stood().is_some_and(|stood| stood > STOOD);
        liveness.work >= 1.0 && is_silent && still <= self.patience()
    }

    /// Ranks that stand still while a peer moves, and since when: with work while most of those with work do, or by
    /// their own clock while most others' go on.
    pub fn examine(&self, now: f64) -> Vec<Option<f64>> {
        let (patience, idle_patience) = (self.patience(), self.idle_patience());
        let is_working = |p: &Liveness| p.work >= 1.0;
        let bears = |p: &Liveness| if is_working(p) { patience } else { idle_patience };
        let moves = |p: &Liveness| p.still(now).is_some_and(|s| s < 0.5 * bears(p));
        let is_most_of = |moving: usize, peers: usize| moving > 0 && 2 * moving >= peers.max(1);
        let working = self.liveness.iter().filter(|p| is_working(p));
        let is_most_work_moving =
            is_most_of(working.clone().filter(|p| moves(p)).count(), working.count().saturating_sub(1));
        // Where idle ranks are not known to report, that one with work does proves nothing of them.
        let clocks = self.liveness.iter().filter(|p| p.is_dated && idle_patience.is_finite());
        let is_most_time_moving =
            is_most_of(clocks.clone().filter(|p| moves(p)).count(), clocks.count().saturating_sub(1));
        let of = |p: &Liveness| {
            let by_work = is_working(p) && is_most_work_moving;
            // Idle peers say nothing of how long a step may take, of a first prompt say.
            let limit = if by_work { patience } else { idle_patience };
            let is_alone = by_work || p.is_dated && is_most_time_moving;
            (is_alone && p.still(now).is_some_and(|s| s > limit)).then_some(p.moved).flatten()
        };
        self.liveness.iter().map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(seconds: i32, silent: &[usize]) -> Stuck {
        let mut stuck = Stuck::new(3);
        for s in 0..seconds {
            for r in 0..3 {
                stuck.liveness[r].work = 5.0;
                if s < 50 || !silent.contains(&r) {
                    stuck.moved(r, f64::from(s), f64::from(s), true);
                }
            }
        }
        stuck
    }

    #[test]
    fn a_rank_with_work_that_stands_still_among_moving_peers_is_stuck() {
        assert_eq!(after(56, &[1]).examine(56.0), vec![None, Some(49.0), None]);
    }

    #[test]
    fn when_a_rank_that_was_stuck_moved_again_is_known_however_long_it_has_moved_since() {
        let mut stuck = after(56, &[1]);
        stuck.note(56.0);
        assert_eq!(stuck.liveness[1].resumed, None);
        (57..80).for_each(|s| stuck.moved(1, f64::from(s), f64::from(s), true));
        assert_eq!(stuck.liveness[1].resumed, Some(57.0));
        assert_eq!(stuck.liveness[0].resumed, None, "it was never stuck");
    }

    #[test]
    fn before_it_is_stuck_it_is_in_doubt() {
        let stuck = after(52, &[1]);
        assert_eq!([51.5, 52.5, 53.5].map(|now| stuck.is_in_doubt(now)), [true, true, false]);
        assert!(!after(52, &[]).is_in_doubt(51.5));
    }

    /// What is read once a second of three ranks with work, of which `silent` ones stand still from 50 s on.
    fn read(until: i32, silent: &[usize]) -> Stuck {
        let mut stuck = after(50, &[]);
        for s in 50..=until {
            for r in 0..3 {
                if !silent.contains(&r) {
                    stuck.moved(r, f64::from(s), f64::from(s), true);
                }
                stuck.liveness[r].read = Some(f64::from(s));
            }
            stuck.note(f64::from(s));
        }
        stuck
    }

    #[test]
    fn a_rank_with_work_that_stands_still_is_doubted_by_the_second_reading_then_stuck_then_not_trusted_yet() {
        let of = |until: i32, now: f64| read(until, &[1]).progress(now)[1];
        assert_eq!(of(50, 50.9), Progress::Moves, "one reading without progress is usual");
        assert_eq!(of(51, 51.5), Progress::InDoubt(2.5));
        assert_eq!(of(53, 53.0), Progress::Stuck(4.0));
        let mut woken = read(60, &[1]);
        woken.moved(1, 61.0, 61.0, false);
        woken.liveness[1].read = Some(61.0);
        assert_eq!(woken.progress(61.5)[1], Progress::Wakes(1.5));
        woken.moved(1, 70.0, 70.0, false);
        assert_eq!(woken.progress(70.0)[1], Progress::Moves);
    }

    #[test]
    fn doubt_asks_no_peers_and_spares_who_moves_or_has_no_work() {
        let all = read(55, &[0, 1, 2]);
        assert_eq!(
            all.progress(55.0),
            [Progress::InDoubt(6.0); 3],
            "nobody is stuck, and no window may open"
        );
        let mut idle = read(55, &[1]);
        idle.liveness[1].work = 0.0;
        idle.liveness[1].stuck = None;
        assert_eq!(idle.progress(55.0), [Progress::Moves; 3]);
        let silent = read(55, &[]);
        assert_eq!(silent.progress(59.0)[0], Progress::InDoubt(4.0), "its source says nothing more");
        assert_eq!(Stuck::new(3).progress(59.0), [Progress::Moves; 3], "nothing is known yet");
    }

    #[test]
    fn a_rank_that_was_not_heard_for_a_second_may_be_slow_or_hang() {
        let stuck = after(52, &[1]);
        assert_eq!([49.9, 50.5, 53.5].map(|now| stuck.is_silent(1, now)), [false, true, false]);
        assert!(!stuck.is_silent(0, 51.5));
    }

    #[test]
    fn a_rank_whose_page_is_old_when_it_is_read_moves_as_long_as_each_reading_says_so() {
        let mut stuck = Stuck::new(2);
        let mut read = |at: f64, stamp: f64| {
            (0..2).for_each(|r| {
                (stuck.liveness[r].work, stuck.liveness[r].read) = (5.0, Some(at));
                stuck.moved(r, stamp, at, true);
            });
            let now = at + 0.05;
            (stuck.is_silent(0, now), stuck.is_in_doubt(now), stuck.progress(now)[0])
        };
        // What is read once a second was published a second and a half before.
        (0..20).for_each(|s| {
            assert_eq!(read(f64::from(s), f64::from(s) - 1.5), (false, false, Progress::Moves))
        });
        assert!(read(20.0, 17.5).0, "the same page once more");
    }

    #[test]
    fn a_pause_in_which_a_rank_was_not_read_does_not_say_how_long_it_may_stand_still() {
        let mut stuck = Stuck::new(2);
        for s in (0..100).filter(|s| !(50..53).contains(s)) {
            let at = f64::from(s);
            (0..2).for_each(|r| stuck.read(r, at));
            assert_eq!(stuck.was_read(0), s != 53, "{s}");
            let was_read = stuck.was_read(0);
            stuck.moved(0, at, at, was_read);
        }
        assert_eq!(stuck.patience(), LEAST_PATIENCE);
        // One that is always read so seldom may.
        let mut seldom = Stuck::new(1);
        for s in 0..40 {
            seldom.read(0, f64::from(5 * s));
            assert!(seldom.was_read(0));
            seldom.moved(0, f64::from(5 * s), f64::from(5 * s), true);
        }
    }

    #[test]
    fn nobody_is_stuck_while_all_stand_still() {
        assert_eq!(after(56, &[0, 1, 2]).examine(56.0), vec![None; 3]);
    }

    /// Three ranks without work that report every `every` seconds with their own time, of which `silent` ones
    /// do not from 100 s on.
    fn idle(until: i32, every: f64, silent: &[usize]) -> Stuck {
        let mut stuck = Stuck::new(3);
        for s in 0..=until {
            let s = f64::from(s);
            for r in 0..3 {
                stuck.liveness[r].read = Some(s);
                let stamp = (s / every).floor() * every;
                if s < 100.0 || !silent.contains(&r) {
                    stuck.dated(r, stamp, true);
                    stuck.moved(r, stamp, s, true);
                }
            }
        }
        stuck
    }

    #[test]
    fn an_idle_rank_whose_own_clock_stands_still_while_its_peers_go_on_is_told_and_a_frozen_server_is_nobodys()
     {
        assert_eq!(idle(118, 1.0, &[1]).examine(118.0), vec![None; 3]);
        assert_eq!(idle(121, 1.0, &[1]).examine(121.0), vec![None, Some(99.0), None]);
        assert_eq!(idle(200, 1.0, &[0, 1, 2]).examine(200.0), vec![None; 3]);
        // Ranks that report every half a minute are waited for as long.
        assert_eq!(idle(600, 30.0, &[]).examine(629.0), vec![None; 3]);
        assert_eq!(idle(700, 30.0, &[1]).examine(729.0)[1], Some(90.0));
    }

    #[test]
    fn where_idle_ranks_report_nothing_the_old_clock_of_one_says_nothing() {
        let mut stuck = Stuck::new(3);
        for s in 0..200 {
            for r in 0..3 {
                stuck.liveness[r].work = if r == 1 && s > 50 { 0.0 } else { 5.0 };
                if r != 1 || s <= 50 {
                    stuck.dated(r, f64::from(s), false);
                    stuck.moved(r, f64::from(s), f64::from(s), true);
                }
            }
        }
        assert_eq!(stuck.examine(200.0), vec![None; 3]);
    }

    #[test]
    fn a_rank_that_is_killed_with_work_is_told_though_no_peer_has_any() {
        let mut stuck = idle(130, 1.0, &[1]);
        stuck.liveness[1].work = 3.0;
        assert_eq!(stuck.examine(130.0), vec![None, Some(99.0), None]);
    }

    #[test]
    fn a_rank_with_the_only_request_may_take_its_time() {
        let mut stuck = idle(108, 1.0, &[1]);
        stuck.liveness[1].work = 1.0;
        assert_eq!(stuck.examine(108.0), vec![None; 3]);
    }

    #[test]
    fn an_outage_is_no_way_of_reporting() {
        let mut stuck = idle(90, 1.0, &[]);
        for r in 0..3 {
            stuck.dated(r, 900.0, true);
            stuck.moved(r, 900.0, 900.0, true);
        }
        assert!(stuck.idle_patience() <= 3.0 * MOST_IDLE_PAUSE);
    }

    #[test]
    fn an_idle_rank_is_not_stuck() {
        let mut stuck = after(56, &[1]);
        stuck.liveness[1].work = 0.0;
        assert_eq!(stuck.examine(56.0), vec![None; 3]);
    }
}
