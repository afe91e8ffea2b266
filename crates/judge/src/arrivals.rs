//! Open-loop arrivals of a world: times, prompts, outputs.

use crate::rng::Rng;
use crate::spec::{Traffic, World};

#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub at: f64,
    pub prompt: f64,
    pub output: f64,
}

/// Arrivals in `[from, until)`, in order.
pub fn arrivals(world: &World, rng: &mut Rng, from: f64, until: f64) -> Vec<Arrival> {
    let times = times(world, rng, from, until);
    let one = |at: f64| {
        let changed = world.mix_change > 0.0 && at > world.mix_change;
        let (pm, om) = if changed { (0.4, 2.0) } else { (1.0, 1.0) };
        let mut prompt = (rng.normal((world.prompt.0 * pm).ln(), world.prompt.1)).exp().clamp(4.0, 30_000.0);
        let output = (rng.normal((world.output.0 * om).ln(), world.output.1)).exp().clamp(1.0, 4000.0);
        if world.long_share > 0.0 && rng.unit() < world.long_share {
            prompt = 40_000.0 + 60_000.0 * rng.unit();
        }
        Arrival { at, prompt, output }
    };
    times.into_iter().map(one).collect()
}

/// When requests arrive.
fn times(world: &World, rng: &mut Rng, from: f64, until: f64) -> Vec<f64> {
    let rate = world.per_rank * world.ranks as f64 / world.turns.max(1.0);
    match world.traffic {
        Traffic::Poisson => renewal(from, until, || rng.exponential(1.0 / rate)),
        Traffic::Gamma(tenths) => {
            let k = (10.0 / tenths as f64).powi(2);
            renewal(from, until, || rng.gamma(k, 1.0 / (rate * k)))
        }
        Traffic::Mmpp => {
            let (mut level, mut switch) = (0.6, from + rng.exponential(40.0));
            thinned(rng, 4.0 * rate, from, until, |t, rng| {
                while t > switch {
                    level = if level < 1.0 { 2.5 } else { 0.6 };
                    switch += rng.exponential(if level < 1.0 { 40.0 } else { 10.0 });
                }
                level / 4.0
            })
        }
        Traffic::Diurnal => thinned(rng, 4.0 * rate, from, until, |t, _| {
            (1.0 + 0.8 * (std::f64::consts::TAU * (t - from) / 2400.0).sin()) / 4.0
        }),
        Traffic::Step => thinned(rng, 4.0 * rate, from, until, |t, _| {
            (if (t / 300.0).floor() as i64 % 2 == 0 { 0.6 } else { 1.6 }) / 4.0
        }),
        Traffic::Batch => {
            let mut times = renewal(from, until, || rng.exponential(1.0 / (0.8 * rate)));
            let mut begin = from + 150.0;
            while begin < until {
                let requests = (rate * 30.0) as usize;
                let mut at = begin;
                times.extend((0..requests).map(|_| {
                    at += rng.exponential(0.002);
                    at
                }));
                begin += 300.0;
            }
            times.retain(|t| *t < until);
            times.sort_by(f64::total_cmp);
            times
        }
    }
}

/// A renewal process: each arrival `gap` after the one before.
fn renewal(from: f64, until: f64, mut gap: impl FnMut() -> f64) -> Vec<f64> {
    let mut at = from;
    let next = || {
        at += gap();
        (at < until).then_some(at)
    };
    std::iter::from_fn(next).collect()
}

/// A Poisson process whose rate varies, by thinning one of the constant rate `most` (Lewis and Shedler,
/// 1979): a candidate at `t` is kept with the probability `kept(t)`.
fn thinned(
    rng: &mut Rng,
    most: f64,
    from: f64,
    until: f64,
    mut kept: impl FnMut(f64, &mut Rng) -> f64,
) -> Vec<f64> {
    let (mut at, mut times) = (from, Vec::new());
    loop {
        at += rng.exponential(1.0 / most);
        // Asked beyond the end too: a seed names the same world in every version.
        let probability = kept(at, rng);
        if at >= until {
            return times;
        }
        if rng.unit() < probability {
            times.push(at);
        }
    }
}
