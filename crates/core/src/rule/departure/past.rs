//! What one member showed in the last ticks: whether it is on its way back, and how fast it left.

/// What is not at its farthest in so many ticks is on its way back.
const RECENT: usize = 4;
/// Nothing is believed to have gone farther than this, in standard deviations, ...
const STRIDE: f64 = 1.5;
/// ... in so many ticks: a burst of a few seconds does, and subsides. What stays is believed
/// when they are over.
const STRIDE_TICKS: usize = 3;
/// In how many ways the quick scale is looked at.
pub(super) const WAYS: usize = 3;

/// The last ticks of one member, newest first.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Past {
    /// Its load's difference from its peers.
    loads: [f64; RECENT],
    /// How far out it was at the quick scale, in each way.
    quick: [[f64; WAYS]; STRIDE_TICKS],
}

impl Past {
    /// Whether the load was farther out a moment ago than `load` is now, on either side. A burst that is
    /// over still shows, but is no onset.
    pub fn is_over(&self, load: f64) -> bool {
        self.loads.iter().any(|l| l.abs() > load.abs())
    }

    /// How far out at most it is believed to be at the quick scale, where it now looks to be `quick`.
    pub fn within_stride(&self, quick: [f64; WAYS]) -> [f64; WAYS] {
        let then = self.quick[STRIDE_TICKS - 1];
        std::array::from_fn(|way| quick[way].min(then[way].max(0.0) + STRIDE))
    }

    /// Keeps what it shows in this tick, as it looks.
    pub fn keep(&mut self, load: f64, quick: [f64; WAYS]) {
        self.loads.rotate_right(1);
        self.loads[0] = load;
        self.quick.rotate_right(1);
        self.quick[0] = quick;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_on_its_way_back_is_over_on_either_side() {
        let mut past = Past::default();
        let is_over = [3.0, 2.9, 4.0, 4.0, 3.9, -3.9, -4.0, -4.0].map(|load| {
            let is_over = past.is_over(load);
            past.keep(load, [0.0; WAYS]);
            is_over
        });
        assert_eq!(is_over, [false, true, false, false, true, true, false, false]);
    }

    fn believed(looks: impl IntoIterator<Item = f64>) -> Vec<f64> {
        let mut past = Past::default();
        let believe = |z| {
            let believed = past.within_stride([z; WAYS])[0];
            past.keep(0.0, [z; WAYS]);
            believed
        };
        looks.into_iter().map(believe).collect()
    }

    #[test]
    fn what_leaps_is_believed_three_ticks_later() {
        let looks = [0.0, 3.0, 6.0, 6.0, 6.0, 6.0];
        assert_eq!(believed(looks), [0.0, STRIDE, STRIDE, STRIDE, 3.0 + STRIDE, 6.0]);
        assert_eq!(believed([-3.0, -3.0, -3.0, 1.0]), [-3.0, -3.0, -3.0, 1.0], "a leap begins at nothing");
    }

    #[test]
    fn what_climbs_by_and_by_is_believed_at_once() {
        let departing = || (0..20).map(|tick| 0.5 * f64::from(tick));
        assert_eq!(believed(departing()), departing().collect::<Vec<_>>());
    }
}
