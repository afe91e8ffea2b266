//! Stuck: work is there, and the rank's own clock or counts stand still while its peers' move.
//!
//! No statistic and no bound to tune: a rank with work reports at least every few steps. How long its
//! longest pause is on this site is remembered, and a multiple of it is waited for.

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
/// The longest pause is forgotten with this time constant, in seconds.
const MEMORY: f64 = 4.0 * 3600.0;
/// How fast reports are believed to have become older, a report.
const AGE_GAIN: f64 = 0.05;
/// Nothing is waited for longer than this.
const MOST_PATIENCE: f64 = 20.0;

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
pub struct Pulse {
    /// When its work last moved, by its own clock where it has one.
    pub moved: Option<f64>,
    /// When that was read.
    pub moved_read: Option<f64>,
    /// How old its reports are when they are read, at least, in seconds: a page that is always that old tells of a rank that
    /// moves all the while.
    pub age: f64,
    /// Requests that it has, by its last word.
    pub work: f64,
    /// When that was read.
    pub read: Option<f64>,
    /// When it was last seen to be stuck.
    pub stuck: Option<f64>,
}

impl Pulse {
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
    pub pulses: Vec<Pulse>,
    /// The longest healthy pause of a rank with work, in seconds.
    pub longest: f64,
}

impl Stuck {
    /// For `ranks` ranks.
    pub fn new(ranks: usize) -> Self {
        Self { pulses: vec![Pulse::default(); ranks], longest: 0.0 }
    }

    /// The work of `rank` moved at `at`, as was read at `read`. A healthy pause before it is remembered.
    pub fn moved(&mut self, rank: usize, at: f64, read: f64, is_healthy: bool) {
        let pulse = &mut self.pulses[rank];
        if let Some(before) = pulse.moved {
            let pause = at - before;
            if pause <= 0.0 {
                return;
            }
            if is_healthy && pulse.work >= 1.0 {
                let forgotten = self.longest * (-pause / MEMORY).exp();
                self.longest = forgotten.max(pause.min(0.5 * MOST_PATIENCE));
            }
        }
        let age = (read - at).max(0.0);
        pulse.age = match pulse.moved {
            Some(_) => age.min(pulse.age + AGE_GAIN * (age - pulse.age)),
            None => age,
        };
        (pulse.moved, pulse.moved_read) = (Some(at), Some(read));
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
            self.pulses.iter().filter(|p| p.work >= 1.0).filter_map(|p| p.still(now)).collect();
        let patience = self.patience();
        let moving = working.iter().filter(|still| **still < 0.5 * patience).count();
        2 * moving >= working.len() && working.iter().any(|s| *s > unusual && *s <= patience)
    }

    /// Remembers who is stuck now.
    pub fn note(&mut self, now: f64) {
        for (rank, still) in self.examine(now).into_iter().enumerate() {
            if still.is_some() {
                self.pulses[rank].stuck = Some(now);
            }
        }
    }

    /// How every rank gets on. Other than the test, it doubts a rank whatever its peers do, and as soon as
    /// what is read of it says that it stands still: who asks may wait a second, and ask again.
    pub fn progress(&self, now: f64) -> Vec<Progress> {
        let (unusual, patience) = (UNUSUAL * self.longest.max(1.0), self.patience());
        let stuck = self.examine(now);
        let of = |(pulse, stuck): (&Pulse, Option<f64>)| {
            if let Some(since) = stuck {
                return Progress::Stuck(now - since);
            }
            if let Some(ago) = pulse.stuck.map(|at| now - at).filter(|ago| *ago < WAKES) {
                return Progress::Wakes(ago);
            }
            let (Some(still), Some(stood)) = (pulse.still(now), pulse.stood()) else {
                return Progress::Moves;
            };
            match pulse.work >= 1.0 && (stood > unusual || still > patience) {
                true => Progress::InDoubt(still),
                false => Progress::Moves,
            }
        };
        self.pulses.iter().zip(stuck).map(of).collect()
    }

    /// Whether `rank`, which has work, was not heard for a while, and not yet for so long that it is stuck:
    /// whether it is slow or hangs is known when it is heard again, or is not.
    pub fn is_silent(&self, rank: usize, now: f64) -> bool {
        let pulse = &self.pulses[rank];
        let (Some(moved), Some(still)) = (pulse.moved, pulse.still(now)) else { return false };
        let read = pulse.read.unwrap_or(moved);
        let is_silent = now - read > SILENCE || pulse.stood().is_some_and(|stood| stood > STOOD);
        pulse.work >= 1.0 && is_silent && still <= self.patience()
    }

    /// Ranks that stand still with work while a peer moves (most of those with work, that is), and since when.
    pub fn examine(&self, now: f64) -> Vec<Option<f64>> {
        let patience = self.patience();
        let still = |p: &Pulse| p.still(now);
        let working: Vec<&Pulse> = self.pulses.iter().filter(|p| p.work >= 1.0).collect();
        let moving = working.iter().filter(|p| still(p).is_some_and(|s| s < 0.5 * patience)).count();
        self.pulses
            .iter()
            .map(|p| {
                let peers = working.len().saturating_sub(1).max(1);
                let alone = moving > 0 && 2 * moving >= peers;
                (p.work >= 1.0 && alone && still(p).is_some_and(|s| s > patience))
                    .then_some(p.moved)
                    .flatten()
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(seconds: i32, silent: &[usize]) -> Stuck {
        let mut stuck = Stuck::new(3);
        for s in 0..seconds {
            for r in 0..3 {
                stuck.pulses[r].work = 5.0;
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
                stuck.pulses[r].read = Some(f64::from(s));
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
        woken.pulses[1].read = Some(61.0);
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
        idle.pulses[1].work = 0.0;
        idle.pulses[1].stuck = None;
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
                (stuck.pulses[r].work, stuck.pulses[r].read) = (5.0, Some(at));
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
    fn nobody_is_stuck_while_all_stand_still() {
        assert_eq!(after(56, &[0, 1, 2]).examine(56.0), vec![None; 3]);
    }

    #[test]
    fn an_idle_rank_is_not_stuck() {
        let mut stuck = after(56, &[1]);
        stuck.pulses[1].work = 0.0;
        assert_eq!(stuck.examine(56.0), vec![None; 3]);
    }
}
