//! The numbers of one log line, or of one rank in one page: a value for each built-in signal that
//! was there. Reused from line to line, so that reading a line allocates nothing.

use crate::decide::signal::catalog::BUILT_IN_COUNT;
use crate::decide::signal::sample::Signal;

/// At most one value for each built-in signal.
#[derive(Clone, Debug)]
pub struct Fields {
    present: u128,
    values: [f64; BUILT_IN_COUNT],
}

impl Default for Fields {
    fn default() -> Self {
        Self { present: 0, values: [0.0; BUILT_IN_COUNT] }
    }
}

impl Fields {
    /// Forgets every value.
    pub fn clear(&mut self) {
        self.present = 0;
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.present == 0
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.present.count_ones() as usize
    }

    /// Sets a value. Where two names of one signal stand in one line (`full token usage`,
    /// `swa token usage`) the larger wins. A NaN, or a signal that is not built in, is ignored.
    pub fn set(&mut self, signal: Signal, value: f64) {
        let at = usize::from(signal.0);
        if at >= BUILT_IN_COUNT || value.is_nan() {
            return;
        }
        let bit = 1_u128 << at;
        self.values[at] = if self.present & bit == 0 { value } else { self.values[at].max(value) };
        self.present |= bit;
    }

    /// Adds to a value, from zero.
    pub fn add(&mut self, signal: Signal, value: f64) {
        let at = usize::from(signal.0);
        if at >= BUILT_IN_COUNT || value.is_nan() {
            return;
        }
        let so_far = self.get(signal).unwrap_or(0.0);
        self.values[at] = so_far + value;
        self.present |= 1_u128 << at;
    }

    /// The value of a signal.
    pub fn get(&self, signal: Signal) -> Option<f64> {
        let at = usize::from(signal.0);
        (at < BUILT_IN_COUNT && self.present & (1_u128 << at) != 0).then(|| self.values[at])
    }

    /// Whether both signals have a value.
    pub fn has_both(&self, a: Signal, b: Signal) -> bool {
        debug_assert!(usize::from(a.0.max(b.0)) < BUILT_IN_COUNT, "built-in signals only");
        let both = 1_u128 << a.0 | 1_u128 << b.0;
        self.present & both == both
    }

    /// The signals that have a value, one bit each.
    pub fn present(&self) -> u128 {
        self.present
    }

    /// Signals and values, in the order of the catalog.
    pub fn iter(&self) -> impl Iterator<Item = (Signal, f64)> + '_ {
        // Two words one after the other are walked faster than a double one.
        let (mut left, mut next, mut from) = (self.present as u64, (self.present >> 64) as u64, 0);
        std::iter::from_fn(move || {
            if left == 0 {
                (left, next, from) = (next, 0, 64);
                if left == 0 {
                    return None;
                }
            }
            let at = from + left.trailing_zeros() as usize;
            left &= left - 1;
            Some((Signal(at as u16), self.values[at]))
        })
    }
}
