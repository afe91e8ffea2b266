//! Converts readings and passes each to the channel of its source.

use super::{
    COUNTERS, Detector, GAUGES, LINES, QUALITY, RESERVE_PATIENCE, SOURCE_PATIENCE, WARM_UP, WORK_COUNTERS,
};
use crate::factor::channel::Channel;
use crate::factor::impact::Load;
use crate::factor::intake::{ArrivalSpan, InterpretedReading, SURELY_NOT_DONE};
use crate::factor::observation::{Counters, Gauges, RankReading, Reading};

impl Detector {
    /// Takes in a reading. Readings of one rank and kind come in order. One of an unknown rank is ignored.
    pub fn observe(&mut self, o: &RankReading) {
        if o.rank >= self.settings.ranks || !o.at.is_finite() {
            return;
        }
        let (at, rank) = (o.at, o.rank);
        match &o.what {
            Reading::Prefill(line) => {
                let meaning = self.lines[rank].prefill(at, line);
                self.take(LINES, rank, at, &meaning);
                self.line_seen(rank, at);
            }
            Reading::Decode(line) => {
                let meaning = self.lines[rank].decode(at, line);
                self.take(LINES, rank, at, &meaning);
                self.line_seen(rank, at);
            }
            Reading::Retraction(requests) => self.lines[rank].put_back(*requests),
            Reading::Gauges(gauges) => self.gauges(rank, at, gauges),
            Reading::Counters(counters) => self.counters(rank, at, counters),
        }
    }

    fn counters(&mut self, rank: usize, at: f64, counters: &Counters) {
        let gauges = self.gauges[rank].filter(|l| at - l.0 < 1.0).map_or(Gauges::default(), |l| l.1);
        let tells_who_came = counters.tells_who_came();
        let totals = &mut self.totals[rank][usize::from(tells_who_came)];
        let is_still = totals.same_counts(counters);
        // A rank that says when it counted is timed by that.
        let counted = gauges.stamp.map_or(at, |stamp| stamp.min(at));
        let meaning = totals.read(counted, counters, &gauges, self.turnover.ratio());
        if !is_still {
            self.stuck.moved(rank, counted, at, self.may_teach_pause(rank));
        }
        if let Some(came) = meaning.came {
            self.counts_tokens = true;
            let way = if tells_who_came { COUNTERS } else { WORK_COUNTERS };
            self.note_turnover(rank, &came);
            self.take(way, rank, at, &meaning);
        }
    }

    fn line_seen(&mut self, rank: usize, at: f64) {
        if self.gauges_at.is_none_or(|g| at - g > SOURCE_PATIENCE) {
            if self.open.is_none() && self.may_teach_pause(rank) {
                self.stuck.ended_unseen(at, self.lines[rank].ended_unseen);
            }
            let load = self.lines[rank].load();
            let surely = self.lines[rank].surely_has(self.stuck.may_end_unseen(at));
            self.loads[rank] = Load { running: load, ..Load::default() };
            self.stuck.moved(rank, at, at, self.may_teach_pause(rank));
            let liveness = &mut self.stuck.liveness[rank];
            (liveness.read, liveness.is_dated) = (Some(at), false);
            // A few requests may have ended since, unseen.
            liveness.work = if surely >= SURELY_NOT_DONE { load } else { 0.0 };
        }
    }

    fn gauges(&mut self, rank: usize, at: f64, gauges: &Gauges) {
        self.gauges_at = Some(at);
        self.gauges[rank] = Some((at, *gauges));
        self.stuck.read(rank, at);
        let before = self.levels[rank].last();
        // Two sources of the same gauges differ in what they tell, and in how old it is: read in turns, the
        // numbers of a rank that hangs would seem to move. The one that dates them is followed.
        let is_dated = |(read, g): &(f64, Gauges)| g.stamp.is_some() && at - read < SOURCE_PATIENCE;
        if gauges.stamp.is_none() && before.as_ref().is_some_and(is_dated) {
            return;
        }
        let load = Load {
            running: gauges.running.unwrap_or(0.0),
            waiting: gauges.waiting.unwrap_or(0.0),
            kv_usage: gauges.kv_usage.or(self.loads[rank].kv_usage),
        };
        self.stuck.liveness[rank].work = load.running + load.waiting;
        self.loads[rank] = load;
        let meaning = self.levels[rank].read(at, gauges, self.turnover.ratio());
        let moved = match (gauges.stamp, before) {
            (Some(stamp), _) => Some(stamp),
            (None, Some((_, b))) if b == *gauges => None,
            _ => Some(at),
        };
        match gauges.stamp {
            Some(stamp) => {
                let was_idle = |(read, b): &(f64, Gauges)| at - read < SOURCE_PATIENCE && b.load() < 1.0;
                let is_idle = gauges.load() < 1.0 && before.as_ref().is_some_and(was_idle);
                self.stuck.dated(rank, stamp, is_idle && self.may_teach_pause(rank));
            }
            None => self.stuck.liveness[rank].is_dated = false,
        }
        if let Some(moved) = moved {
            self.stuck.moved(rank, moved, at, self.may_teach_pause(rank));
        }
        if let Some(came) = meaning.came.filter(|_| !self.counts_tokens) {
            self.note_turnover(rank, &came);
        }
        self.take(GAUGES, rank, at, &meaning);
    }

    /// Whether the pause of `rank` that is under way tells how long a rank with work may stand still: not one
    /// of all ranks (a restart, a window by hand), nor one in which nothing was read of it.
    fn may_teach_pause(&self, rank: usize) -> bool {
        let moved = self.stuck.liveness[rank].moved;
        let was_paused = self.paused.is_some_and(|(_, until)| moved.is_some_and(|moved| moved < until));
        self.open.is_none() && !was_paused && self.stuck.was_read(rank)
    }

    /// In health the growth of load beside the tokens generated tells how many a request takes.
    fn note_turnover(&mut self, rank: usize, came: &ArrivalSpan) {
        if self.open.is_none() && came.tokens > 0.0 {
            let growth = came.requests - self.turnover.ratio() * came.tokens;
            self.turnover.learn(rank, growth, came.tokens, came.to - came.from);
        }
    }

    fn take(&mut self, channel: usize, rank: usize, at: f64, meaning: &InterpretedReading) {
        let stretch = meaning.stretch.filter(|stretch| !self.is_paused_in(stretch));
        let meaning = &InterpretedReading { stretch, ..*meaning };
        let healthy = self.open.is_none();
        let second = at.floor() as i64;
        let ranks = self.settings.ranks;
        let is_there = |better: &Channel| better.heard.is_some_and(|heard| at - heard < RESERVE_PATIENCE);
        let is_kept = !self.channels[..channel].iter().flatten().any(|better| is_there(better));
        let channel = self.channels[channel].get_or_insert_with(|| begin(ranks, second, channel));
        channel.take(rank, at, meaning, healthy, is_kept);
        if self.since == i64::MIN {
            self.since = second + WARM_UP;
        }
    }
}

/// Out of the way of every reading, which would pay for the room that it takes on the stack.
#[cold]
#[inline(never)]
fn begin(ranks: usize, second: i64, way: usize) -> Box<Channel> {
    Box::new(Channel::new(ranks, second, QUALITY[way]))
}
