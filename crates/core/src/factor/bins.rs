//! The recent past of every rank in bins of one second: what each factor needs, and nothing else.

use std::ops::RangeInclusive;

use crate::factor::evidence::WINDOWS;

/// Seconds that are kept. A power of two, longer than every window and every onset that is looked for.
pub const KEPT: usize = 256;

/// One second of one rank.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bin<N = f64> {
    /// Requests that came to this rank (fractional where inferred).
    pub arrivals: N,
    /// Sum of the logarithms of tokens an admission, each counted once an admission.
    pub work: N,
    /// The same of tokens that were not found in the cache.
    pub computed: N,
    /// Admissions in `work`.
    pub admitted: N,
    /// Sum over them of the requests that each one found on the rank.
    pub met: N,
    /// Seconds that the work done in this second should have taken, by the cost model.
    pub needed: N,
    /// The same for decoding alone: what it lacks of `spent` was spent on prompts, or on being slow.
    pub decoding: N,
    /// Seconds in which the rank was surely busy and its work known.
    pub spent: N,
    /// Seconds that its prompts should have taken, by the cost model, in the second in which they were told.
    pub prompts: N,
}

/// A bin as it is kept: a second's sums need no more digits than these, and hundreds of servers have a
/// thousand bins each.
type KeptBin = Bin<f32>;

/// A ring of bins for each rank, all ending at the same second. It takes memory once something is put into it.
#[derive(Clone, Debug, PartialEq)]
pub struct Bins {
    /// Empty until then.
    ranks: Vec<Vec<KeptBin>>,
    /// The second of the newest bin, and of the oldest that was ever opened.
    newest: i64,
    first: i64,
}

impl Bins {
    /// Empty bins of `ranks` ranks that begin at `second`.
    pub fn new(ranks: usize, second: i64) -> Self {
        Self { ranks: vec![Vec::new(); ranks], newest: second, first: second }
    }

    /// Forgets everything; what comes after `second` may be put in.
    pub fn begin_after(&mut self, second: i64) {
        self.ranks.iter_mut().for_each(|ring| *ring = Vec::new());
        (self.newest, self.first) = (second, second + 1);
    }

    /// The first second that is still kept.
    pub fn oldest(&self) -> i64 {
        self.first.max(self.newest - KEPT as i64 + 1)
    }

    /// Opens all bins up to `second`.
    pub fn advance(&mut self, second: i64) {
        if second - self.newest >= KEPT as i64 {
            self.first = second;
            self.newest = second;
            self.ranks.iter_mut().for_each(|r| r.fill(KeptBin::default()));
            return;
        }
        while self.newest < second {
            self.newest += 1;
            let i = slot(self.newest);
            self.ranks.iter_mut().filter_map(|r| r.get_mut(i)).for_each(|bin| *bin = KeptBin::default());
        }
    }

    /// The bin of `rank` at `second`; an empty one beyond what is kept.
    pub fn get(&self, rank: usize, second: i64) -> Bin {
        if second < self.oldest() || second > self.newest {
            Bin::default()
        } else {
            self.ranks[rank].get(slot(second)).map_or_else(Bin::default, Bin::of)
        }
    }

    /// What `rank` did in `seconds`.
    pub fn sum(&self, rank: usize, seconds: RangeInclusive<i64>) -> Bin {
        let mut sum = Bin::default();
        seconds.for_each(|second| sum.add(&self.get(rank, second)));
        sum
    }

    /// Changes the bin in which `at` lies. What is older than the ring is dropped.
    pub fn at(&mut self, rank: usize, at: f64, change: impl FnOnce(&mut Bin)) {
        let second = at.floor() as i64;
        self.advance(second);
        if second >= self.oldest() {
            let ring = &mut self.ranks[rank];
            if ring.is_empty() {
                *ring = vec![KeptBin::default(); KEPT];
            }
            let kept = &mut ring[slot(second)];
            let mut bin = Bin::of(kept);
            change(&mut bin);
            *kept = bin.kept();
        }
    }

    /// Spreads something evenly over `[from, to)`: `change` gets each bin and its part of the whole.
    pub fn spread(&mut self, rank: usize, from: f64, to: f64, mut change: impl FnMut(&mut Bin, f64)) {
        let whole = to - from;
        if whole <= 1e-9 || whole > KEPT as f64 {
            return self.at(rank, to, |b| change(b, 1.0));
        }
        let mut t = from;
        while t < to {
            let next = (t.floor() + 1.0).min(to);
            let part = (next - t) / whole;
            self.at(rank, t, |b| change(b, part));
            t = next;
        }
    }
}

/// The sums of every rank over the windows that end with one second. All tests look at the same windows, so
/// their bins are walked once.
#[derive(Clone, Debug)]
pub struct Sums<'a> {
    /// What is summed.
    pub bins: &'a Bins,
    /// The second with which all windows end.
    pub newest: i64,
    ranks: usize,
    /// By window and rank; of the windows only those that begin in time, which are the shorter ones.
    sums: Vec<Bin>,
    /// In the same order: pairs of requests that were admitted within the same second, each counted from both sides.
    pairs: Vec<f64>,
}

impl Bins {
    /// The sums over all windows that end with `newest`, of which this is the newest bin at most, and begin
    /// at `since` or later.
    pub fn sums(&self, newest: i64, since: i64) -> Sums<'_> {
        let ranks = self.ranks.len();
        let first = since.max(self.oldest());
        let windows = WINDOWS.iter().take_while(|length| newest + 1 - **length >= first).count();
        let mut sums = vec![Bin::default(); windows * ranks];
        let mut pairs = vec![0.0; windows * ranks];
        for (rank, ring) in self.ranks.iter().enumerate() {
            let mut sum = Bin::default();
            let mut paired = 0.0;
            let mut from = newest + 1;
            for (window, length) in WINDOWS[..windows].iter().enumerate() {
                while from > newest + 1 - length {
                    from -= 1;
                    // A rank of which nothing came has no bins.
                    if let Some(bin) = ring.get(slot(from)) {
                        let bin = Bin::of(bin);
                        sum.add(&bin);
                        paired += bin.pairs();
                    }
                }
                sums[window * ranks + rank] = sum;
                pairs[window * ranks + rank] = paired;
            }
        }
        Sums { bins: self, newest, ranks, sums, pairs }
    }
}

impl Sums<'_> {
    /// Each window's place in [`WINDOWS`], its length in seconds, and the sums of all ranks.
    pub fn windows(&self) -> impl Iterator<Item = (usize, i64, &[Bin])> {
        let sums = self.sums.chunks_exact(self.ranks.max(1));
        WINDOWS.iter().enumerate().zip(sums).map(|((place, length), sums)| (place, *length, sums))
    }

    /// Pairs of requests of `rank` that were admitted within the same second of the window at `place`, each
    /// counted from both sides.
    pub fn pairs(&self, place: usize, rank: usize) -> f64 {
        self.pairs[place * self.ranks + rank]
    }
}

impl<N: Copy> Bin<N> {
    /// The same in other numbers.
    #[inline(always)]
    fn map<M>(&self, to: impl Fn(N) -> M) -> Bin<M> {
        Bin {
            arrivals: to(self.arrivals),
            work: to(self.work),
            computed: to(self.computed),
            admitted: to(self.admitted),
            met: to(self.met),
            needed: to(self.needed),
            decoding: to(self.decoding),
            spent: to(self.spent),
            prompts: to(self.prompts),
        }
    }
}

impl Bin {
    /// Pairs of its requests, each counted from both sides.
    pub fn pairs(&self) -> f64 {
        self.admitted * (self.admitted - 1.0).max(0.0)
    }

    #[inline(always)]
    fn of(kept: &KeptBin) -> Self {
        kept.map(f64::from)
    }

    fn kept(&self) -> KeptBin {
        self.map(|n| n as f32)
    }

    #[inline(always)]
    fn add(&mut self, other: &Self) {
        self.arrivals += other.arrivals;
        self.work += other.work;
        self.computed += other.computed;
        self.admitted += other.admitted;
        self.met += other.met;
        self.needed += other.needed;
        self.decoding += other.decoding;
        self.spent += other.spent;
        self.prompts += other.prompts;
    }
}

fn slot(second: i64) -> usize {
    second.rem_euclid(KEPT as i64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spread_over_two_seconds_and_a_half_keeps_its_sum() {
        let mut bins = Bins::new(1, 0);
        bins.spread(0, 1.5, 4.0, |b, part| b.arrivals += 5.0 * part);
        let sum: f64 = (0..10).map(|s| bins.get(0, s).arrivals).sum();
        assert!((sum - 5.0).abs() < 1e-6);
        assert!((bins.get(0, 1).arrivals - 1.0).abs() < 1e-6);
        assert!((bins.get(0, 2).arrivals - 2.0).abs() < 1e-6);
    }

    #[test]
    fn a_window_that_begins_too_early_has_no_sums() {
        let mut bins = Bins::new(2, 0);
        for s in 0..10 {
            bins.at(1, f64::from(s), |b| b.arrivals = 1.0);
        }
        let sums = |newest, since| -> Vec<(i64, f64)> {
            bins.sums(newest, since).windows().map(|(_, length, sums)| (length, sums[1].arrivals)).collect()
        };
        assert_eq!(sums(9, 4), [(2, 2.0), (3, 3.0), (4, 4.0), (6, 6.0)]);
        assert_eq!(sums(9, 5), [(2, 2.0), (3, 3.0), (4, 4.0)]);
        assert_eq!(sums(1, -9), [(2, 2.0)], "nothing is known of what was before the first bin");
        assert_eq!(sums(9, 9), []);
    }

    #[test]
    fn what_begins_anew_knows_nothing_of_before_and_takes_no_memory_until_something_comes() {
        let mut bins = Bins::new(2, 0);
        bins.at(0, 1.0, |b| b.arrivals = 3.0);
        bins.begin_after(1);
        assert!(bins.ranks.iter().all(|ring| ring.capacity() == 0));
        assert_eq!(bins.get(0, 1), Bin::default());
        bins.at(0, 1.9, |b| b.arrivals = 1.0);
        assert_eq!(bins.get(0, 1), Bin::default(), "half a second is no second");
        for second in 2..8 {
            bins.at(0, second as f64, |b| b.arrivals = 2.0);
        }
        let windows = |newest| -> Vec<(i64, f64, f64)> {
            let sums = bins.sums(newest, 0);
            sums.windows().map(|(_, length, of)| (length, of[0].arrivals, of[1].arrivals)).collect()
        };
        assert_eq!(windows(4), [(2, 4.0, 0.0), (3, 6.0, 0.0)], "no window reaches further back");
    }

    #[test]
    fn a_second_beyond_the_ring_reads_as_empty() {
        let mut bins = Bins::new(1, 0);
        bins.at(0, 1.0, |b| b.arrivals = 3.0);
        bins.advance(1 + KEPT as i64);
        assert_eq!(bins.get(0, 1), Bin::default());
    }
}
