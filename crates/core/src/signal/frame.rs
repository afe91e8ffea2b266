//! The values of a group at one time: every member's value of one signal, and the summary from which
//! statistics are computed.

use std::sync::Arc;

use skewtrap_trace::labels::Labels;
use skewtrap_trace::time::Time;

/// Every member's value of one signal at one time.
#[derive(Debug, Default)]
pub struct Frame {
    /// Members in the order of their labels.
    pub members: Vec<Member>,
    /// Their values, in the same order.
    pub values: Vec<f64>,
    /// The summary of the values.
    pub summary: Summary,
    /// When the newest value was measured.
    pub newest: Time,
    /// The values in ascending order, where a statistic of the group's view wants them so.
    pub(crate) sorted: Vec<f64>,
}

impl Frame {
    /// A frame of these members.
    pub fn of(members: Vec<Member>) -> Self {
        let mut frame = Self { members, ..Self::default() };
        frame.sum_up();
        frame
    }

    /// Brings values, summary and time up to date; to be called when the members have changed.
    pub fn sum_up(&mut self) {
        self.values.clear();
        self.values.extend(self.members.iter().map(|m| m.value));
        self.summary = Summary::of(&self.values);
        self.newest = self.members.iter().map(|m| m.at).max().unwrap_or_default();
        self.sorted.clear();
    }

    /// Puts the values in order, once for all statistics that want them so.
    pub fn sort(&mut self) {
        sort_into(&self.values, &mut self.sorted);
    }

    /// The values in ascending order; in `scratch`, where they were not put in order before.
    #[inline]
    pub fn in_order<'a>(&'a self, scratch: &'a mut Vec<f64>) -> &'a [f64] {
        if self.sorted.len() == self.values.len() {
            return &self.sorted;
        }
        sort_into(&self.values, scratch);
        scratch
    }

    /// Becomes a copy of another frame. Most often the members are the same: then only their numbers
    /// are copied.
    pub fn copy(&mut self, other: &Self) {
        let are_same = self.members.len() == other.members.len()
            && self.members.iter().zip(&other.members).all(|(a, b)| Arc::ptr_eq(&a.id, &b.id));
        if are_same {
            for (member, m) in self.members.iter_mut().zip(&other.members) {
                (member.value, member.at, member.stale) = (m.value, m.at, m.stale);
            }
        } else {
            self.members.clone_from(&other.members);
        }
        self.values.clone_from(&other.values);
        self.sorted.clone_from(&other.sorted);
        (self.summary, self.newest) = (other.summary, other.newest);
    }

    /// Removes all members.
    pub fn clear(&mut self) {
        self.members.clear();
        self.sum_up();
    }
}

fn sort_into(values: &[f64], sorted: &mut Vec<f64>) {
    sorted.clear();
    sorted.extend_from_slice(values);
    sorted.sort_unstable_by(f64::total_cmp);
}

/// One member of a group.
#[derive(Clone, Debug)]
pub struct Member {
    /// The `across` labels: `dp_rank=2`; shared, so that showing a frame copies nothing.
    pub id: Arc<Labels>,
    /// Its value; 0 when it went silent while its peers report (then `stale` is set).
    pub value: f64,
    /// When that was last measured.
    pub at: Time,
    /// Whether it went silent.
    pub stale: bool,
}

/// What every statistic is computed from; made once for a group and a time, however many rules read
/// it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Summary {
    /// How many values.
    pub n: usize,
    /// Their mean; 0 for none.
    pub mean: f64,
    /// The largest; 0 for none.
    pub max: f64,
    pub argmax: usize,
    /// The smallest; 0 for none.
    pub min: f64,
    pub argmin: usize,
}

impl Summary {
    /// The summary of `values`, in one pass.
    pub fn of(values: &[f64]) -> Self {
        let Some(&first) = values.first() else { return Self::default() };
        let mut s = Self { n: values.len(), mean: 0.0, max: first, argmax: 0, min: first, argmin: 0 };
        let mut sum = 0.0;
        for (i, &v) in values.iter().enumerate() {
            sum += v;
            if v > s.max {
                (s.max, s.argmax) = (v, i);
            }
            if v < s.min {
                (s.min, s.argmin) = (v, i);
            }
        }
        s.mean = sum / values.len() as f64;
        s
    }

    /// One end of the values: the largest where `high`, else the smallest.
    pub(crate) const fn end(&self, high: bool) -> f64 {
        if high { self.max } else { self.min }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skewtrap_trace::rank::Rank;

    #[test]
    fn a_copy_shows_what_the_other_shows_whoever_was_in_it_before() {
        let frame = |values: &[f64]| {
            let member = |(i, value): (usize, &f64)| Member {
                id: Arc::new(Rank::dp(i as u16).labels()),
                value: *value,
                at: Time::from_epoch_s(100.0 + i as f64),
                stale: i == 1,
            };
            Frame::of(values.iter().enumerate().map(member).collect())
        };
        let (first, second) = (frame(&[1.0, 5.0]), frame(&[4.0, 2.0, 3.0]));
        let mut changed = Frame { members: first.members.clone(), ..Frame::default() };
        changed.members[0].value = 9.0;
        changed.sum_up();
        changed.sort();
        let mut copy = Frame::default();
        for source in [&first, &changed, &second, &first] {
            copy.copy(source);
            assert_eq!(format!("{copy:?}"), format!("{source:?}"));
        }
        assert_eq!((copy.summary.max, copy.newest), (5.0, Time::from_epoch_s(101.0)));
        copy.clear();
        assert_eq!((copy.members.len(), copy.summary, copy.newest), (0, Summary::default(), Time::default()));
    }
}
