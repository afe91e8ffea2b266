//! What a test says of a rank in a second.

use serde::{Deserialize, Serialize};

/// What makes load, and what each test looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Factor {
    /// Requests a rank is sent.
    Share,
    /// Seconds it takes for the same work.
    Speed,
    /// Work a request.
    Work,
    /// Room for requests: a full KV cache, a queue.
    Room,
    /// Work is there and nothing moves.
    Stuck,
}

impl Factor {
    /// Every one, in the order in which they are told.
    pub const ALL: [Self; 5] = [Self::Share, Self::Speed, Self::Work, Self::Room, Self::Stuck];

    /// As in rules and JSON: `share`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Share => "share",
            Self::Speed => "speed",
            Self::Work => "work",
            Self::Room => "room",
            Self::Stuck => "stuck",
        }
    }

    /// Of a rank, in a sentence: `DP2's share of the requests`.
    pub const fn noun(self) -> &'static str {
        match self {
            Self::Share => "share of the requests",
            Self::Speed => "speed at equal work",
            Self::Work => "work a request",
            Self::Room => "room for requests",
            Self::Stuck => "progress",
        }
    }

    /// The factor of that word.
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.word() == word)
    }
}

/// More or less of it than usual. More of [`Factor::Speed`] is faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Side {
    /// More.
    High,
    /// Less.
    Low,
}

impl Side {
    /// The other one.
    pub const fn opposite(self) -> Self {
        match self {
            Self::High => Self::Low,
            Self::Low => Self::High,
        }
    }
}

/// The strongest evidence of one test against one rank, over all windows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evidence {
    /// Half a squared normal deviate: the log-likelihood that it departed, in units of this site's noise.
    pub deviance: f64,
    pub side: Side,
    /// The logarithm of what is over what should be, in that window.
    pub effect: f64,
    /// The window's length in seconds.
    pub window: i64,
}

impl Evidence {
    /// No evidence.
    pub const NONE: Self = Self { deviance: 0.0, side: Side::High, effect: 0.0, window: 0 };

    /// The stronger one.
    pub fn or(self, other: Self) -> Self {
        if other.deviance > self.deviance { other } else { self }
    }
}

/// The windows that the tests look at, in seconds: all ages at once on a logarithmic grid, which loses
/// little against every age (FOCuS, Romano et al. 2023, is exact) and keeps a dispersion for each.
pub const WINDOWS: [i64; 12] = [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96];

/// A number for each window and rank, or NaN where nothing was measured. Kept flat: a detector makes a few
/// of them every second and keeps them until they are learned.
#[derive(Clone, Debug, Default)]
pub struct Grid {
    ranks: usize,
    cells: Box<[f64]>,
}

impl Grid {
    /// Nothing was measured yet.
    pub fn new(windows: usize, ranks: usize) -> Self {
        Self { ranks, cells: vec![f64::NAN; windows * ranks].into() }
    }

    /// The numbers of one window.
    pub fn row(&self, window: usize) -> &[f64] {
        &self.cells[window * self.ranks..(window + 1) * self.ranks]
    }

    /// See [`Self::row`].
    pub fn row_mut(&mut self, window: usize) -> &mut [f64] {
        &mut self.cells[window * self.ranks..(window + 1) * self.ranks]
    }

    /// The numbers of all windows.
    pub fn rows(&self) -> impl Iterator<Item = &[f64]> {
        self.cells.chunks_exact(self.ranks.max(1))
    }
}

/// Those of `row` that were measured.
pub fn measured(row: &[f64]) -> impl Iterator<Item = f64> {
    row.iter().copied().filter(|x| !x.is_nan())
}

/// For each of some values the median of the others, with its buffers. NaN is no value.
#[derive(Clone, Debug, Default)]
pub struct PeerMedians {
    order: Vec<(f64, usize)>,
    medians: Vec<f64>,
}

impl PeerMedians {
    /// The medians, NaN where there are no others. One sort for all.
    pub fn of(&mut self, values: &[f64]) -> &[f64] {
        let Self { order, medians } = self;
        order.clear();
        order.extend(values.iter().enumerate().filter(|(_, v)| !v.is_nan()).map(|(r, v)| (*v, r)));
        order.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let without = |place: usize| {
            let peers = order.len() - usize::from(place < order.len());
            let at = |i: usize| order[if i < place { i } else { i + 1 }].0;
            match peers {
                0 => f64::NAN,
                n if n % 2 == 1 => at(n / 2),
                n => 0.5 * (at(n / 2 - 1) + at(n / 2)),
            }
        };
        // A rank that was not measured has all the others as peers.
        medians.clear();
        medians.resize(values.len(), without(order.len()));
        order.iter().enumerate().for_each(|(place, (_, r))| medians[*r] = without(place));
        medians
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: f64 = f64::NAN;

    #[test]
    fn the_median_of_peers_leaves_each_one_out_itself() {
        let mut medians = PeerMedians::default();
        assert_eq!(medians.of(&[1.0, 9.0, NONE, 3.0, 5.0]), [5.0, 3.0, 4.0, 5.0, 3.0]);
    }

    #[test]
    fn one_alone_has_no_peers() {
        let mut medians = PeerMedians::default();
        let medians = medians.of(&[1.0, NONE]);
        assert!(medians[0].is_nan() && medians[1] == 1.0, "{medians:?}");
    }
}
