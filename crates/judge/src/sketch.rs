//! Two plain tests on factors of load by log lines alone, after `bench/factors.py`: the sketch that the rules began as.
//!
//! *Share*: admissions against the rank's learned share in windows of several ages, as z-scores over a dispersion that
//! a median tracker learns. *Speed*: seconds that a cost model says a busy rank should have needed in ten, against its
//! peers and its own past. Both have one bound each, 8 and 6 standard deviations in the sketch.

use crate::engine::Outcome;

/// The sketch's own bounds.
const SHARE_BOUND: f64 = 8.0;
const SPEED_BOUND: f64 = 6.0;

/// Ages of the windows of shares, in seconds.
const AGES: [usize; 6] = [3, 5, 8, 12, 20, 40];
const GAIN: f64 = 0.005;
const MEDIAN_OF_SQUARE: f64 = 0.455;
const LEAST_DISPERSION: f64 = 0.15;
const FEWEST: f64 = 8.0;
const SHARE_WARM: usize = 60;
const MEMORY: f64 = 1800.0;

/// The window of speeds, in seconds, and when they may first fire.
const WINDOW: usize = 10;
const SPEED_WARM: usize = 90;
const MATERIAL: f64 = 0.22;
const STEPS_A_LINE: f64 = 40.0;
/// A rank is busy from so many running requests on.
const BUSY: f64 = 3.0;
/// Units of steps, decoded tokens, KV read and prompt tokens that make them alike in size.
const UNITS: [f64; 4] = [1e2, 1e3, 1e7, 1e4];
const LEAST_NOISE: f64 = 0.02;
const KEEP: f64 = 0.9995;

/// So many calm seconds end a firing.
const CALM: u32 = 10;

type Features = [f64; 4];

/// When the sketch fires, and whom it blames, at so many times its own bounds.
pub fn fired(out: &Outcome, times: f64) -> Vec<(usize, usize)> {
    let mut all = shares(out, times * SHARE_BOUND);
    all.extend(speeds(out, times * SPEED_BOUND));
    all.sort_unstable();
    all
}

/// Whether it fires now, with the hysteresis of both tests: a firing begins beyond the bound and ends after ten seconds
/// below half of it.
#[derive(Default)]
struct Alarm {
    is_on: bool,
    calm: u32,
}

impl Alarm {
    /// Whether a firing begins.
    fn begins(&mut self, score: f64, is_beyond: bool, bound: f64) -> bool {
        let begins = is_beyond && !self.is_on;
        if begins {
            (self.is_on, self.calm) = (true, 0);
        }
        if self.is_on {
            self.calm = if score < 0.5 * bound { self.calm + 1 } else { 0 };
            self.is_on = self.calm < CALM;
        }
        begins
    }
}

fn shares(out: &Outcome, bound: f64) -> Vec<(usize, usize)> {
    let (seconds, ranks) = (out.loads.len(), out.loads.first().map_or(0, Vec::len));
    let mut came = vec![vec![0.0; ranks]; seconds + 1];
    for line in out.lines.iter().filter(|l| l.is_prefill && l.at >= 0.0) {
        came[(line.at as usize).min(seconds - 1) + 1][line.rank] += line.new_seqs;
    }
    let mut sums = came.clone();
    (1..=seconds).for_each(|s| (0..ranks).for_each(|r| sums[s][r] += sums[s - 1][r]));
    let (mut usual, mut dispersion) =
        (vec![1.0 / ranks as f64; ranks], vec![vec![1.0f64; ranks]; AGES.len()]);
    let (mut alarm, mut all) = (Alarm::default(), Vec::new());
    for s in 1..seconds {
        let whole: f64 = sums[s].iter().sum();
        if s <= SHARE_WARM {
            usual = sums[s].iter().map(|x| (x + 20.0 / ranks as f64) / (whole + 20.0)).collect();
        }
        let (mut z, mut best) = (vec![vec![0.0; ranks]; AGES.len()], (0.0, 0));
        for (k, age) in AGES.iter().enumerate().filter(|(_, age)| s >= **age) {
            let x: Vec<f64> = (0..ranks).map(|r| sums[s][r] - sums[s - age][r]).collect();
            let n: f64 = x.iter().sum();
            for r in (0..ranks).filter(|_| n >= FEWEST) {
                let p = usual[r];
                z[k][r] = (x[r] - n * p) / (n * p * (1.0 - p) + 0.5).sqrt();
                let score = z[k][r].abs() / dispersion[k][r].sqrt();
                best = if score > best.0 { (score, r) } else { best };
            }
        }
        if alarm.begins(best.0, s > SHARE_WARM && best.0 > bound, bound) {
            all.push((s, best.1));
        }
        if alarm.is_on {
            continue;
        }
        let (now, gain) = (&came[s], 1.0 / (s as f64).clamp(180.0, MEMORY));
        let total: f64 = now.iter().sum();
        let gain = if best.0 < 0.5 * bound && total > 0.0 { gain } else { 0.0 };
        usual.iter_mut().zip(now).for_each(|(p, x)| *p = (*p + gain * (x / total.max(1.0) - *p)).max(1e-3));
        let sum: f64 = usual.iter().sum();
        usual.iter_mut().for_each(|p| *p /= sum);
        for (d, z) in dispersion.iter_mut().zip(&z).filter(|_| s > SHARE_WARM / 2) {
            for (d, z) in d.iter_mut().zip(z) {
                let up = if z * z > MEDIAN_OF_SQUARE * *d { 1.0 } else { -1.0 };
                *d = (*d * (GAIN * up).exp()).max(LEAST_DISPERSION);
            }
        }
    }
    all
}

/// What is known of each rank's needed over spent seconds.
struct Usual {
    mean: Vec<f64>,
    variance: Vec<f64>,
}

impl Usual {
    fn learn(&mut self, rank: usize, ratio: f64, gain: f64, bound: f64) {
        let off = ratio - self.mean[rank];
        self.mean[rank] += gain * off.clamp(-0.5, 0.5);
        let square = (off * off).min(self.variance[rank] * bound * bound);
        self.variance[rank] += gain * (square - self.variance[rank]);
    }
}

/// What each rank did in each second, as far as its lines tell.
fn features_of(out: &Outcome) -> Vec<Vec<Features>> {
    let (seconds, ranks) = (out.loads.len(), out.loads.first().map_or(0, Vec::len));
    let mut did = vec![vec![[0.0; 4]; ranks]; seconds];
    for line in out.lines.iter().filter(|l| l.at >= 0.0) {
        let sum = &mut did[(line.at as usize).min(seconds - 1)][line.rank];
        let more = if line.is_prefill {
            [0.0, 0.0, 0.0, line.new_tokens]
        } else {
            [STEPS_A_LINE, STEPS_A_LINE * line.running, STEPS_A_LINE * line.used, 0.0]
        };
        (0..4).for_each(|i| sum[i] += more[i] / UNITS[i]);
    }
    did
}

fn speeds(out: &Outcome, bound: f64) -> Vec<(usize, usize)> {
    let (seconds, ranks) = (out.loads.len(), out.loads.first().map_or(0, Vec::len));
    let did = features_of(out);
    let is_busy = |s: usize, r: usize| out.loads[s][r].running >= BUSY;
    let mut usual = Usual { mean: vec![0.0; ranks], variance: vec![0.05 * 0.05; ranks] };
    let (mut normal, mut right, mut cost) = ([[0.0; 4]; 4], [0.0; 4], None::<Features>);
    let (mut alarm, mut all) = (Alarm::default(), Vec::new());
    for s in WINDOW..seconds {
        let window = s - WINDOW..s;
        let is_full = |r: usize| window.clone().all(|s| is_busy(s, r));
        let of =
            |r: usize| -> Features { std::array::from_fn(|i| window.clone().map(|s| did[s][r][i]).sum()) };
        let full: Vec<usize> = (0..ranks).filter(|r| is_full(*r)).collect();
        if let Some(cost) = cost.filter(|_| !full.is_empty()) {
            let needed = |r: usize| of(r).iter().zip(cost).map(|(x, c)| x * c).sum::<f64>();
            let least = 0.02 * WINDOW as f64;
            let mut logs: Vec<f64> =
                full.iter().map(|r| (needed(*r).max(least) / WINDOW as f64).ln()).collect();
            let mut sorted = logs.clone();
            sorted.sort_by(f64::total_cmp);
            let n = sorted.len();
            let control = if n < 3 { sorted[n - 1] } else { 0.5 * (sorted[(n - 1) / 2] + sorted[n / 2]) };
            logs.iter_mut().for_each(|d| *d -= control);
            let score = |(r, d): (&usize, &f64)| {
                let z = (usual.mean[*r] - d) / (usual.variance[*r] + LEAST_NOISE * LEAST_NOISE).sqrt();
                (z, *r, usual.mean[*r] - d)
            };
            let scores = full.iter().zip(&logs).map(score);
            let (z, rank, drop) = scores.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((0.0, 0, 0.0));
            if alarm.begins(z, s > SPEED_WARM && z > bound && drop > MATERIAL, bound) {
                all.push((s, rank));
            }
            if !alarm.is_on {
                let gain = 1.0 / (s as f64).clamp(60.0, 900.0);
                full.iter().zip(&logs).for_each(|(r, d)| usual.learn(*r, *d, gain, bound));
            }
        }
        if alarm.is_on || s % 2 != 0 {
            continue;
        }
        for x in full.iter().map(|r| of(*r)) {
            for i in 0..4 {
                (0..4).for_each(|j| normal[i][j] = KEEP * normal[i][j] + x[i] * x[j]);
                right[i] = KEEP * right[i] + x[i] * WINDOW as f64;
            }
        }
        if s % 10 == 0 && s > 30 {
            cost = solved(&normal, &right).or(cost);
        }
    }
    all
}

/// Least squares with coefficients that are not negative: the most negative one is taken out until none is.
fn solved(normal: &[[f64; 4]; 4], right: &Features) -> Option<Features> {
    let mut active: Vec<usize> = (0..4).collect();
    while !active.is_empty() {
        let solution = eliminated(normal, right, &active)?;
        let least = (0..active.len()).min_by(|a, b| solution[*a].total_cmp(&solution[*b]))?;
        if solution[least] >= 0.0 {
            let mut cost = [0.0; 4];
            active.iter().zip(&solution).for_each(|(i, c)| cost[*i] = *c);
            return Some(cost);
        }
        active.remove(least);
    }
    None
}

/// Gaussian elimination on the normal equations of the `active` features.
fn eliminated(normal: &[[f64; 4]; 4], right: &Features, active: &[usize]) -> Option<Vec<f64>> {
    let row = |i: &usize| {
        let own = |j: &usize| normal[*i][*j] + if i == j { 1e-6 } else { 0.0 };
        active.iter().map(own).chain([right[*i]]).collect::<Vec<f64>>()
    };
    let mut rows: Vec<Vec<f64>> = active.iter().map(row).collect();
    let n = rows.len();
    for i in 0..n {
        let pivot = (i..n).max_by(|a, b| rows[*a][i].abs().total_cmp(&rows[*b][i].abs()))?;
        rows.swap(i, pivot);
        for j in (0..n).filter(|j| *j != i) {
            let factor = rows[j][i] / rows[i][i];
            let pivot = rows[i].clone();
            rows[j].iter_mut().zip(pivot).for_each(|(x, y)| *x -= factor * y);
        }
    }
    (0..n).map(|i| Some(rows[i][n] / rows[i][i]).filter(|x| x.is_finite())).collect()
}
