//! The numbers of one log line, or of one rank in one page: a value for each built-in signal that
//! was there. Reused from line to line, so that reading a line allocates nothing.

use crate::signal::catalog::BUILT_IN_COUNT;
use crate::signal::sample::{Signal, SignalSet};

const _: () = assert!(BUILT_IN_COUNT <= 128, "two words hold the built-in signals");

/// At most one value for each built-in signal.
#[derive(Clone, Debug)]
pub struct Fields {
    present: SignalSet,
    values: [f64; BUILT_IN_COUNT],
}

impl Default for Fields {
    fn default() -> Self {
        Self { present: SignalSet::default(), values: [0.0; BUILT_IN_COUNT] }
    }
}

impl Fields {
    /// Forgets every value.
    pub fn clear(&mut self) {
        self.present = SignalSet::default();
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.present.is_empty()
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.present.len()
    }

    /// Sets a value. Where two names of one signal stand in one line (`full token usage`,
    /// `swa token usage`) the larger wins. A NaN, or a signal that is not built in, is ignored.
    #[inline(always)]
    pub fn set(&mut self, signal: Signal, value: f64) {
        let at = usize::from(signal.0);
        if at >= BUILT_IN_COUNT || value.is_nan() {
            return;
        }
        let had = self.present.has(signal);
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
        (at < BUILT_IN_COUNT && self.present.has(signal)).then(|| self.values[at])
    }

    /// The signals that have a value.
    #[inline]
    pub fn present(&self) -> SignalSet {
        self.present
    }

    /// Signals and values, in the order of the catalog.
    pub fn iter(&self) -> impl Iterator<Item = (Signal, f64)> + '_ {
        self.present.iter().map(|signal| (signal, self.values[usize::from(signal.0)]))
    }
}
