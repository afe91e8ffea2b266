//! Ten minutes of what the page draws. The rings of the store reach back as far as rules look, which is
//! less; what is older is remembered here, in the page's own coarse steps.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{History, HistoryLine};
use skewtrap_trace::labels::Labels;
use skewtrap_trace::time::Time;

/// Values of one line: ten minutes in steps of two seconds.
pub const POINTS: usize = 300;
/// Lines that are remembered, at 1.2 kB each; those beyond show what the store has.
const MOST_LINES: usize = 2_000;

/// A line is of a signal, a server and a rank.
type Key = (Arc<str>, Arc<str>, Labels);

/// What was drawn before.
#[derive(Debug, Default)]
pub struct ChartHistory {
    lines: BTreeMap<Key, Line>,
}

/// The oldest value first, `NaN` where nothing was measured; the last one is of `end`.
#[derive(Debug)]
struct Line {
    end: Time,
    values: Vec<f32>,
}

impl ChartHistory {
    /// Remembers a part of the history.
    ///
    /// The values of every history are of times that are whole multiples of its step: those of two calls are
    /// of the same times.
    pub fn remember(&mut self, recent: &[History]) {
        for history in recent {
            for line in &history.lines {
                let key = key_of(history, line);
                if self.lines.len() >= MOST_LINES && !self.lines.contains_key(&key) {
                    continue;
                }
                let values = self.joined(&key, history, line);
                let values = values.into_iter().map(|v| v.map_or(f32::NAN, |v| v as f32)).collect();
                self.lines.insert(key, Line { end: history.end, values });
            }
        }
    }

    /// A part of the history, lengthened by what is remembered.
    pub fn lengthen(&self, mut recent: Vec<History>) -> Vec<History> {
        for history in &mut recent {
            for mut line in std::mem::take(&mut history.lines) {
                line.values = self.joined(&key_of(history, &line), history, &line);
                history.lines.push(line);
            }
        }
        recent
    }

    /// Forgets the lines of ranks that have given nothing since.
    pub fn forget_before(&mut self, time: Time) {
        self.lines.retain(|_, line| line.end >= time);
    }

    fn joined(&self, key: &Key, history: &History, line: &HistoryLine) -> Vec<Option<f64>> {
        let passed = |old: &Line| history.end.signed_s_since(old.end) / history.step_s;
        let is_continued = |old: &&Line| (0.0..POINTS as f64).contains(&passed(old));
        match self.lines.get(key).filter(is_continued) {
            Some(old) => joined(&old.values, passed(old).round() as usize, &line.values),
            None => joined(&[], 0, &line.values),
        }
    }
}

fn key_of(history: &History, line: &HistoryLine) -> Key {
    (history.signal.clone(), line.target.clone(), line.rank.clone())
}

/// [`POINTS`] values that end where `recent` does; `old` ended `passed` steps earlier.
fn joined(old: &[f32], passed: usize, recent: &[Option<f64>]) -> Vec<Option<f64>> {
    let value_at = |back: usize| {
        let recent = recent.len().checked_sub(back + 1).and_then(|i| recent[i]);
        let remembered = || {
            let back = back.checked_sub(passed)?;
            let value = old[old.len().checked_sub(back + 1)?];
            (!value.is_nan()).then_some(f64::from(value))
        };
        recent.or_else(remembered)
    };
    (0..POINTS).rev().map(value_at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(end: f64, values: &[Option<f64>]) -> Vec<History> {
        let line = HistoryLine { target: "a".into(), rank: Labels::default(), values: values.to_vec() };
        vec![History { signal: "load".into(), end: Time::from_epoch_s(end), step_s: 2.0, lines: vec![line] }]
    }

    fn last(course: &mut ChartHistory, end: f64, values: &[Option<f64>], count: usize) -> Vec<Option<f64>> {
        let recent = history(end, values);
        course.remember(&recent);
        let shown = course.lengthen(recent);
        assert_eq!(shown[0].lines[0].values.len(), POINTS);
        shown[0].lines[0].values[POINTS - count..].to_vec()
    }

    #[test]
    fn what_the_store_has_forgotten_is_remembered_at_its_place() {
        let mut course = ChartHistory::default();
        last(&mut course, 100.0, &[Some(1.0), None, Some(3.0)], 3);
        let shown = last(&mut course, 104.0, &[None, Some(5.0)], 6);
        assert_eq!(shown, [None, Some(1.0), None, Some(3.0), None, Some(5.0)]);
    }

    #[test]
    fn a_clock_that_went_back_or_ten_minutes_without_a_look_forget_what_was_before() {
        for end in [90.0, 100.0 + 2.0 * POINTS as f64] {
            let mut course = ChartHistory::default();
            last(&mut course, 100.0, &[Some(1.0)], 1);
            assert_eq!(last(&mut course, end, &[None], POINTS), vec![None; POINTS], "{end}");
        }
    }

    #[test]
    fn a_look_at_one_server_forgets_none_of_another_and_a_rank_that_is_gone_is_forgotten_in_the_end() {
        let mut course = ChartHistory::default();
        last(&mut course, 100.0, &[Some(1.0)], 1);
        let mut other = history(102.0, &[Some(7.0)]);
        other[0].lines[0].target = "b".into();
        course.remember(&other);
        assert_eq!(last(&mut course, 102.0, &[None], 2), [Some(1.0), None]);
        course.forget_before(Time::from_epoch_s(103.0));
        assert!(course.lines.is_empty());
    }
}
