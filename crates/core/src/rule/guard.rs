//! Guards: `only_if: ranks(load) >= 2 && max(queue_reqs) > 10`, in CEL over the rule's signals.
//!
//! A signal is a map from rank to number. Four traps of the language are closed at load, so that a
//! guard that loads also runs: an expression has at most [`MAX_BYTES`] bytes (long chains overflow
//! the parser's stack), integer literals become doubles (CEL refuses `queue * 2` on a double),
//! unknown names and wrong argument counts are errors with a suggestion, and it is run once on
//! made-up data, because CEL checks no types before it runs.

mod check;
mod error;
mod library;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use cel::Value;
use cel::common::ast::IdedExpr;
use cel::objects::{Key, Map};

use self::check::Checker;
pub use self::error::GuardError;
use self::library::{ANY_RANK, LIBRARY, OURS};
use crate::signal::catalog::Catalog;
use crate::signal::frame::Frame;
use crate::signal::sample::Signal;
use skewtrap_trace::labels::{LabelValue, Labels};
use skewtrap_trace::time::Time;

/// The longest guard, in bytes; a chain like `1+1+...` of twice that overflows the parser's stack.
pub const MAX_BYTES: usize = 1000;

/// Functions with their numbers of arguments.
pub const FUNCTIONS: [(&str, usize); 8] =
    [("mean", 1), ("max", 1), ("min", 1), ("sum", 1), ("ranks", 1), ("age", 1), ("value", 2), ("share", 2)];

/// A guard that has been checked.
#[derive(Clone)]
pub struct Guard {
    source: Arc<str>,
    expression: Arc<IdedExpr>,
    /// Signals by their names in the expression, in the order of the frames that `holds` wants.
    signals: Vec<(Arc<str>, Signal)>,
    /// Ranks that it asks for by number.
    ranks: Vec<(Arc<str>, i64)>,
    /// Signals whose age it asks for.
    aged: Vec<Arc<str>>,
}

/// The last answer of a guard, with the numbers for which it was computed.
#[derive(Debug, Default)]
pub struct GuardCache {
    /// Of which of its signals, whose, and how much.
    numbers: Vec<(usize, Arc<Labels>, f64)>,
    answer: Option<bool>,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guard({})", self.source)
    }
}

impl PartialEq for Guard {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Guard {
    /// Parses and checks `source`, which may name the signals of `catalog`.
    ///
    /// # Errors
    /// What is wrong with it, the first thing first.
    pub fn new(source: &str, catalog: &Catalog) -> Result<Self, GuardError> {
        if source.len() > MAX_BYTES {
            return Err(GuardError::TooLong(source.len()));
        }
        let mut expression = cel::Env::stdlib().parser().parse(source).map_err(|e| syntax(&e))?;
        let Checker { signals, ranks, aged, .. } = Checker::new(catalog).check(&mut expression)?;
        let guard = Self { source: source.into(), expression: Arc::new(expression), signals, ranks, aged };
        guard.try_run()?;
        Ok(guard)
    }

    /// As the user wrote it.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The signals that it reads, in the order in which [`Guard::holds`] wants their frames.
    pub fn signals(&self) -> impl Iterator<Item = Signal> {
        self.signals.iter().map(|(_, s)| *s)
    }

    /// Their names, in the same order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.signals.iter().map(|(name, _)| &**name)
    }

    /// The ranks that it asks for by number, as in `value(load, 2)`: of which signal, and which.
    pub fn asked_ranks(&self) -> impl Iterator<Item = (&str, Signal, i64)> {
        let of = |name: &str| self.signals.iter().find(|(n, _)| **n == *name).map(|(_, s)| *s);
        self.ranks.iter().filter_map(move |(name, rank)| Some((&**name, of(name)?, *rank)))
    }

    /// Whether it is an `&&` of parts that are wholly evaluated, so that one of them that cannot be
    /// computed keeps it from ever being true.
    pub fn is_conjunction(&self) -> bool {
        check::is_conjunction(&self.expression)
    }

    /// Whether it is true now. `frames` are those of [`Guard::signals`].
    pub fn holds<'f>(&self, frames: impl Iterator<Item = &'f Frame>, now: Time) -> Result<bool, GuardError> {
        let variables = self.signals.iter().zip(frames).map(|((name, _), frame)| {
            let fresh = frame.members.iter().filter(|m| !m.stale).map(|m| m.at).max();
            let age = fresh.map_or(f64::INFINITY, |at| now.since(at).as_secs_f64());
            let map =
                frame.members.iter().map(|m| (key_of(m.id.0.values()), Value::Float(m.value))).collect();
            (name, map, age)
        });
        self.run(variables)
    }

    /// Likewise, from `cache` where the numbers are still the same: CEL is slow, and rules are evaluated
    /// more often than samples come.
    pub fn holds_cached<'f>(
        &self,
        cache: &mut GuardCache,
        frames: impl Iterator<Item = &'f Frame> + Clone,
        now: Time,
    ) -> Result<bool, GuardError> {
        let of_one = |(i, frame): (usize, &'f Frame)| frame.members.iter().map(move |m| (i, m));
        let members = || frames.clone().enumerate().flat_map(of_one);
        let mut shown = members();
        let is_same = |(of, id, value): &(usize, Arc<Labels>, f64)| {
            shown.next().is_some_and(|(i, m)| i == *of && Arc::ptr_eq(&m.id, id) && m.value == *value)
        };
        if let Some(answer) = cache.answer
            && cache.numbers.iter().all(is_same)
            && shown.next().is_none()
        {
            return Ok(answer);
        }
        let answer = self.holds(frames.clone(), now)?;
        cache.numbers.clear();
        cache.numbers.extend(members().map(|(i, m)| (i, m.id.clone(), m.value)));
        // An age changes without a new sample.
        cache.answer = self.aged.is_empty().then_some(answer);
        Ok(answer)
    }

    /// Runs it on made-up data: every rank from 0 to 255, and any other name, has a value.
    fn try_run(&self) -> Result<(), GuardError> {
        let map: HashMap<Key, Value> = (0..256)
            .map(|i| (Key::Int(i), Value::Float(1.0 + i as f64)))
            .chain([(Key::from(ANY_RANK), Value::Float(1.0))])
            .collect();
        self.run(self.signals.iter().map(|(name, _)| (name, map.clone(), 0.1))).map(|_| ())
    }

    fn run<'n>(
        &self,
        variables: impl Iterator<Item = (&'n Arc<str>, HashMap<Key, Value>, f64)>,
    ) -> Result<bool, GuardError> {
        let mut context = LIBRARY.new_inner_scope();
        for (name, map, age) in variables {
            if self.aged.contains(name) {
                context.add_variable_from_value(age_of(name), Value::Float(age));
            }
            context.add_variable_from_value(name.to_string(), Value::Map(Map { map: Arc::new(map) }));
        }
        match context.resolve(&self.expression) {
            Ok(Value::Bool(b)) => Ok(b),
            Ok(other) => Err(GuardError::NotBool(error::type_name(&other.type_of().to_string()).into())),
            Err(e) => Err(GuardError::Runtime(error::runtime_message(&e))),
        }
    }
}

/// The hidden variable behind `age(load)`; `@` keeps it apart from every name that a user can write.
fn age_of(signal: &str) -> String {
    format!("@age_{signal}")
}

fn key_of<'l>(mut labels: impl Iterator<Item = &'l LabelValue>) -> Key {
    let Some(first) = labels.next() else { return Key::from("engine") };
    let mut text = match (first, labels.next()) {
        (LabelValue::Index(i), None) => return Key::Int(i64::from(*i)),
        (only, None) => return Key::from(only.to_string()),
        (one, Some(two)) => format!("{one}/{two}"),
    };
    for label in labels {
        text.push('/');
        text.push_str(&label.to_string());
    }
    Key::from(text)
}

fn syntax(errors: &cel::ParseErrors) -> GuardError {
    let first = errors.errors.first();
    let at = |n: isize| usize::try_from(n).unwrap_or(1).max(1);
    let (line, column) = first.map_or((1, 1), |e| (at(e.pos.0), at(e.pos.1)));
    GuardError::Syntax { line, column, message: error::syntax_message(first.map_or("", |e| e.msg.as_str())) }
}

#[cfg(test)]
mod tests;
