//! The built-in signals with those that a configuration adds.

use std::collections::BTreeMap;
use std::sync::Arc;

use thiserror::Error;

use super::{BUILT_IN, BUILT_IN_COUNT, Kind, Signal, entry, name_of, signal_named};

/// The built-in signals and the user's own behind them. Numbers never change while the agent runs,
/// so that a reload can only add.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    own: Vec<Own>,
    by_name: BTreeMap<Arc<str>, Signal>,
}

/// A signal that the configuration defines (by a pattern or a query).
#[derive(Clone, Debug, PartialEq)]
pub struct Own {
    /// The name in rules.
    pub name: Arc<str>,
    /// Free text.
    pub unit: Arc<str>,
    /// What its source counts.
    pub kind: Kind,
}

/// Why a signal cannot be defined.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DefineError {
    /// The name belongs to a built-in signal.
    #[error("signal `{0}` is built in; give your own another name")]
    BuiltIn(Arc<str>),
    /// Too many.
    #[error("more than {} signals of your own; remove some", u16::MAX as usize - BUILT_IN_COUNT)]
    Full,
}

impl Catalog {
    /// Adds a signal of the user's; one that is there already keeps its number and takes the new
    /// unit and kind.
    ///
    /// # Errors
    /// When the name is a built-in one's, or there are too many.
    pub fn define(&mut self, own: Own) -> Result<Signal, DefineError> {
        if signal_named(&own.name).is_some() {
            return Err(DefineError::BuiltIn(own.name));
        }
        if let Some(&signal) = self.by_name.get(&own.name) {
            self.own[usize::from(signal.0) - BUILT_IN_COUNT] = own;
            return Ok(signal);
        }
        let number = u16::try_from(BUILT_IN_COUNT + self.own.len()).map_err(|_| DefineError::Full)?;
        self.by_name.insert(own.name.clone(), Signal(number));
        self.own.push(own);
        Ok(Signal(number))
    }

    /// The signal that `name` means.
    pub fn signal_named(&self, name: &str) -> Option<Signal> {
        signal_named(name).or_else(|| self.by_name.get(name).copied())
    }

    /// The name of a signal; `?` for a number that was never given out.
    pub fn name_of(&self, signal: Signal) -> &str {
        match self.own_of(signal) {
            Some(own) => &own.name,
            None => name_of(signal),
        }
    }

    /// The unit of a signal's values.
    pub fn unit_of(&self, signal: Signal) -> &str {
        match self.own_of(signal) {
            Some(own) => &own.unit,
            None => entry(signal).map_or("", |e| e.unit),
        }
    }

    /// The numbers between which a signal's values lie, as far as its unit says. Of a signal of the
    /// user's nothing is known.
    pub fn range_of(&self, signal: Signal) -> (f64, f64) {
        match entry(signal).map(|e| e.unit) {
            Some("share" | "0 or 1") => (0.0, 1.0),
            Some("percent") => (0.0, 100.0),
            Some(_) => (0.0, f64::INFINITY),
            None => (f64::NEG_INFINITY, f64::INFINITY),
        }
    }

    /// What the sources of a signal count.
    pub fn kind_of(&self, signal: Signal) -> Kind {
        match self.own_of(signal) {
            Some(own) => own.kind,
            None => entry(signal).map_or(Kind::Gauge, |e| e.kind),
        }
    }

    /// Every name, the built-in ones first: what a typo is compared with.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        BUILT_IN.iter().map(|e| e.name).chain(self.own.iter().map(|o| &*o.name))
    }

    /// How many signals there are.
    pub fn len(&self) -> usize {
        BUILT_IN_COUNT + self.own.len()
    }

    /// Never: the built-in ones are always there.
    pub fn is_empty(&self) -> bool {
        false
    }

    fn own_of(&self, signal: Signal) -> Option<&Own> {
        usize::from(signal.0).checked_sub(BUILT_IN_COUNT).and_then(|i| self.own.get(i))
    }
}
