//! The detectors to beat, as in `simload.py`, with any bound.

use super::run::{Firing, Line, Log};

/// A detector of the textbooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Textbook {
    /// max/mean above the bound for 5 s.
    Static,
    /// The same, with min/mean scaled to it on the low side.
    StaticBothSides,
    /// CUSUM of log(max/mean), standardised on its first 120 s, slack 0.5.
    Cusum,
    /// EWMA (0.1) of every rank's standardised log deviation.
    Ewma,
    /// Page-Hinkley on log(max/mean).
    PageHinkley,
}

const BASELINE: usize = 120;

impl Textbook {
    pub fn name(self) -> &'static str {
        match self {
            Self::Static => "static max/mean 5 s",
            Self::StaticBothSides => "static, both sides",
            Self::Cusum => "CUSUM of the ratio",
            Self::Ewma => "EWMA per rank",
            Self::PageHinkley => "Page-Hinkley",
        }
    }

    pub fn sweep() -> Vec<(Self, f64)> {
        let mut all = Vec::new();
        for b in [1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 2.2, 2.4, 2.7] {
            all.push((Self::Static, b));
            all.push((Self::StaticBothSides, b));
        }
        all.extend([20.0, 40.0, 70.0, 100.0, 130.0, 180.0, 250.0].map(|b| (Self::Cusum, b)));
        all.extend([2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0].map(|b| (Self::Ewma, b)));
        all.extend([3.0, 4.5, 6.0, 7.5, 9.0, 12.0, 16.0].map(|b| (Self::PageHinkley, b)));
        all
    }

    /// An episode begins when the statistic crosses the bound after a minute below it.
    pub fn firings(self, log: &Log, bound: f64) -> Vec<Firing> {
        let frames: Vec<(i64, Vec<f64>)> =
            log.seconds().map(|(t, lines)| (t, lines.iter().map(Line::load).collect())).collect();
        let loads: Vec<&[f64]> = frames.iter().map(|(_, l)| &l[..]).collect();
        let statistic = self.statistic(&loads);
        let (mut firings, mut last) = (Vec::new(), None::<usize>);
        for (i, (s, rank)) in statistic.iter().enumerate() {
            if i < BASELINE || *s <= bound {
                continue;
            }
            if last.is_none_or(|l| i - l > 60) {
                let at = frames[i].0 as f64;
                firings.push(Firing { at, onset: at - 5.0, rank: *rank, by: String::new() });
            }
            last = Some(i);
        }
        firings
    }

    fn statistic(self, loads: &[&[f64]]) -> Vec<(f64, usize)> {
        match self {
            Self::Static => held(loads.iter().map(|l| (ratio(l), largest(l)))),
            Self::StaticBothSides => held(loads.iter().map(|l| both(l))),
            Self::Cusum => {
                let z = standardised(loads.iter().map(|l| ratio(l).ln()).collect());
                let mut s = 0.0_f64;
                z.iter()
                    .zip(loads)
                    .map(|(z, l)| {
                        s = (s + z - 0.5).max(0.0);
                        (s, largest(l))
                    })
                    .collect()
            }
            Self::Ewma => ewma(loads),
            Self::PageHinkley => {
                let (mut mean, mut sum, mut least) = (0.0, 0.0_f64, 0.0_f64);
                loads
                    .iter()
                    .enumerate()
                    .map(|(i, l)| {
                        let r = ratio(l).ln();
                        mean += (r - mean) / (i + 1) as f64;
                        sum += r - mean - 0.02;
                        least = least.min(sum);
                        (sum - least, largest(l))
                    })
                    .collect()
            }
        }
    }
}

fn mean(l: &[f64]) -> f64 {
    l.iter().sum::<f64>() / l.len() as f64
}

fn ratio(l: &[f64]) -> f64 {
    l.iter().copied().fold(0.0, f64::max) / mean(l).max(1.0)
}

fn largest(l: &[f64]) -> usize {
    (0..l.len()).max_by(|a, b| l[*a].total_cmp(&l[*b])).unwrap_or(0)
}

fn both(l: &[f64]) -> (f64, usize) {
    let smallest = (0..l.len()).min_by(|a, b| l[*a].total_cmp(&l[*b])).unwrap_or(0);
    let m = mean(l) + 0.5;
    let high = (l[largest(l)] + 0.5) / m;
    let low = 1.0 + 0.35 * (m / (l[smallest] + 0.5)).ln();
    if high >= low { (high, largest(l)) } else { (low, smallest) }
}

fn held(values: impl Iterator<Item = (f64, usize)>) -> Vec<(f64, usize)> {
    let v: Vec<(f64, usize)> = values.collect();
    (0..v.len())
        .map(|i| (v[i.saturating_sub(4)..=i].iter().map(|x| x.0).fold(f64::INFINITY, f64::min), v[i].1))
        .collect()
}

fn standardised(y: Vec<f64>) -> Vec<f64> {
    let b = &y[..BASELINE.min(y.len())];
    let m = mean(b);
    let sd = (b.iter().map(|v| (v - m).powi(2)).sum::<f64>() / b.len() as f64).sqrt().max(1e-3);
    y.iter().map(|v| (v - m) / sd).collect()
}

fn ewma(loads: &[&[f64]]) -> Vec<(f64, usize)> {
    let n = loads.first().map_or(0, |l| l.len());
    let logs: Vec<Vec<f64>> = loads.iter().map(|l| l.iter().map(|v| v.ln_1p()).collect()).collect();
    let mut out = vec![(0.0, 0); loads.len()];
    for r in 0..n {
        let z = standardised(logs.iter().map(|l| l[r] - mean(l)).collect());
        let mut e = 0.0_f64;
        for (o, z) in out.iter_mut().zip(z) {
            e += 0.1 * (z - e);
            if e.abs() > o.0 {
                *o = (e.abs(), r);
            }
        }
    }
    out
}
