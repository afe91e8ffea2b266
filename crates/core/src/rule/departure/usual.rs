//! What is usual between the members of a group: the constant difference of each from its peers.
//!
//! A difference that has always been there is not an onset, so it is learned and taken off. It is
//! learned in blocks that count only half a minute to two minutes later, and only if nothing
//! suspicious happened meanwhile, so that what leads up to an onset never becomes usual. A group whose
//! members differ no more than chance explains has no usual differences at all (empirical Bayes
//! shrinkage, Efron and Morris 1975), so that learning does not add noise where there is nothing
//! to learn. Costs nothing per sample beyond a sum.

use std::collections::VecDeque;

use super::COURSES;

/// Ticks in a block.
const BLOCK: u32 = 30;
/// Blocks that wait before they count.
const LATE: usize = 3;
/// Blocks count at once until this many ticks have: before that nothing is usual.
const EARLY: f64 = 1.5 * BLOCK as f64;
/// Older blocks fade with this memory, in ticks.
const MEMORY: f64 = 1200.0;
/// For about how many ticks a course remembers itself; so much fewer are its independent values.
const PERSISTENCE: [f64; COURSES] = [10.0, 10.0, 3.0];

/// The usual difference of every member from its peers, on every course.
#[derive(Clone, Debug, Default)]
pub(super) struct Usual {
    offsets: Vec<[f64; COURSES]>,
    block: Vec<[f64; COURSES]>,
    ticks: u32,
    is_spoiled: bool,
    waiting: VecDeque<Vec<[f64; COURSES]>>,
    sums: Vec<[f64; COURSES]>,
    weight: f64,
}

impl Usual {
    pub fn new(members: usize) -> Self {
        let zero = vec![[0.0; COURSES]; members];
        Self { offsets: zero.clone(), block: zero.clone(), sums: zero, ..Self::default() }
    }

    /// The usual difference of `member`.
    pub fn of(&self, member: usize) -> &[f64; COURSES] {
        &self.offsets[member]
    }

    /// Takes one tick's differences. `spread` is their variance; `may_learn` is false while the group is
    /// under suspicion.
    pub fn learn(&mut self, differences: &[[f64; COURSES]], spread: &[f64; COURSES], may_learn: bool) {
        self.is_spoiled |= !may_learn;
        for (sum, d) in self.block.iter_mut().zip(differences) {
            (0..COURSES).for_each(|c| sum[c] += d[c]);
        }
        self.ticks += 1;
        if self.ticks == BLOCK {
            self.end_block(spread);
        }
    }

    fn end_block(&mut self, spread: &[f64; COURSES]) {
        let empty = vec![[0.0; COURSES]; self.block.len()];
        let block = std::mem::replace(&mut self.block, empty);
        self.ticks = 0;
        if std::mem::take(&mut self.is_spoiled) {
            // The blocks that wait led up to the suspicion.
            self.waiting.clear();
            return;
        }
        self.waiting.push_back(block);
        if self.waiting.len() <= LATE && self.weight > EARLY {
            return;
        }
        let Some(counted) = self.waiting.pop_front() else { return };
        let fade = (-f64::from(BLOCK) / MEMORY).exp();
        self.weight = self.weight * fade + f64::from(BLOCK);
        for (sum, new) in self.sums.iter_mut().zip(&counted) {
            (0..COURSES).for_each(|c| sum[c] = sum[c] * fade + new[c]);
        }
        (0..COURSES).for_each(|c| self.shrink(c, spread[c]));
    }

    /// The means, drawn towards zero as far as chance explains how they differ.
    fn shrink(&mut self, c: usize, spread: f64) {
        let n = self.sums.len() as f64;
        let by_chance = spread * 2.0 * PERSISTENCE[c] / self.weight;
        let seen = self.sums.iter().map(|s| (s[c] / self.weight).powi(2)).sum::<f64>() / n;
        let real = (seen - by_chance).max(0.0);
        let keep = if real > 0.0 { real / (real + by_chance) } else { 0.0 };
        for (offset, sum) in self.offsets.iter_mut().zip(&self.sums) {
            offset[c] = keep * sum[c] / self.weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(usual: &mut Usual, ticks: u32, difference: f64, may_learn: bool) {
        for i in 0..ticks {
            let wiggle = if i % 2 == 0 { 0.5 } else { -0.5 };
            let d = [[difference + wiggle, 0.0, 0.0], [-difference - wiggle, 0.0, 0.0]];
            usual.learn(&d, &[0.25, 0.0, 0.0], may_learn);
        }
    }

    #[test]
    fn a_constant_difference_becomes_usual() {
        let mut usual = Usual::new(2);
        run(&mut usual, 600, 3.0, true);
        assert!((usual.of(0)[0] - 3.0).abs() < 0.1 && (usual.of(1)[0] + 3.0).abs() < 0.1, "{usual:?}");
    }

    #[test]
    fn a_difference_within_chance_is_none() {
        let mut usual = Usual::new(2);
        run(&mut usual, 600, 0.05, true);
        assert_eq!(usual.of(0)[0], 0.0);
    }

    #[test]
    fn what_leads_up_to_a_doubt_is_never_learned() {
        let mut usual = Usual::new(2);
        run(&mut usual, 60, 0.0, true);
        run(&mut usual, 90, 3.0, true);
        run(&mut usual, 600, 3.0, false);
        assert_eq!(usual.of(0)[0], 0.0);
    }
}
