//! The numbers of one log line, or of one rank in one page: a value for each built-in signal that
//! was there. Reused from line to line, so that reading a line allocates nothing.

use crate::signal::catalog::BUILT_IN_COUNT;
use crate::signal::sample::Signal;

/// Which built-in signals, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Set([u64; 2]);

impl Set {
    /// These two.
    pub const fn of_both(a: Signal, b: Signal) -> Self {
        let mut set = Self([0; 2]);
        set.0[a.0 as usize / 64] |= 1 << (a.0 % 64);
        set.0[b.0 as usize / 64] |= 1 << (b.0 % 64);
        set
    }

    /// Whether all of `others` are in it.
    #[inline]
    pub const fn has_all(self, others: Self) -> bool {
        others.0[0] & !self.0[0] == 0 && others.0[1] & !self.0[1] == 0
    }

    /// Adds a signal; one that is not built in is ignored.
    pub fn insert(&mut self, signal: Signal) {
        if let Some(word) = self.0.get_mut(usize::from(signal.0) / 64) {
            *word |= 1 << (signal.0 % 64);
        }
    }

    #[inline]
    fn has(self, at: usize) -> bool {
        self.0[at / 64] >> (at % 64) & 1 == 1
    }
}

const _: () = assert!(BUILT_IN_COUNT <= 128, "two words hold the built-in signals");

/// At most one value for each built-in signal.
#[derive(Clone, Debug)]
pub struct Fields {
    present: Set,
    values: [f64; BUILT_IN_COUNT],
}

impl Default for Fields {
    fn default() -> Self {
        Self { present: Set::default(), values: [0.0; BUILT_IN_COUNT] }
    }
}

impl Fields {
    /// Forgets every value.
    pub fn clear(&mut self) {
        self.present = Set::default();
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.present == Set::default()
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.present.0.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// Sets a value. Where two names of one signal stand in one line (`full token usage`,
    /// `swa token usage`) the larger wins. A NaN, or a signal that is not built in, is ignored.
    #[inline(always)]
    pub fn set(&mut self, signal: Signal, value: f64) {
        let at = usize::from(signal.0);
        if at >= BUILT_IN_COUNT || value.is_nan() {
            return;
        }
        let had = self.present.has(at);
        self.values[at] = if had { self.values[at].max(value) } else { value };
        self.present.insert(signal);
    }

    /// Adds to a value, from zero.
    pub fn add(&mut self, signal: Signal, value: f64) {
        let at = usize::from(signal.0);
        if at >= BUILT_IN_COUNT || value.is_nan() {
            return;
        }
        let so_far = self.get(signal).unwrap_or(0.0);
        self.values[at] = so_far + value;
        self.present.insert(signal);
    }

    /// The value of a signal.
    pub fn get(&self, signal: Signal) -> Option<f64> {
        let at = usize::from(signal.0);
        (at < BUILT_IN_COUNT && self.present.has(at)).then(|| self.values[at])
    }

    /// The signals that have a value.
    #[inline]
    pub fn present(&self) -> Set {
        self.present
    }

    /// Signals and values, in the order of the catalog.
    pub fn iter(&self) -> impl Iterator<Item = (Signal, f64)> + '_ {
        let ([mut left, mut next], mut from) = (self.present.0, 0);
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
