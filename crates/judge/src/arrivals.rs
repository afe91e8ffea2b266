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
    let turns = world.turns.max(1.0);
    let rate = world.per_rank * world.ranks as f64 / turns;
    let mut times = Vec::new();
    let mut t = from;
    match world.traffic {
        Traffic::Poisson => loop {
            t += rng.exponential(1.0 / rate);
            if t >= until {
                break;
            }
            times.push(t);
        },
        Traffic::Gamma(tenths) => {
            let k = (10.0 / tenths as f64).powi(2);
            loop {
                t += rng.gamma(k, 1.0 / (rate * k));
                if t >= until {
                    break;
                }
                times.push(t);
            }
        }
        Traffic::Mmpp => {
            let (mut level, mut switch) = (0.6, from + rng.exponential(40.0));
            loop {
                t += rng.exponential(1.0 / (4.0 * rate));
                while t > switch {
                    level = if level < 1.0 { 2.5 } else { 0.6 };
                    switch += rng.exponential(if level < 1.0 { 40.0 } else { 10.0 });
                }
                if t >= until {
                    break;
                }
                if rng.unit() < level / 4.0 {
                    times.push(t);
                }
            }
        }
        Traffic::Diurnal | Traffic::Step => loop {
            t += rng.exponential(1.0 / (4.0 * rate));
            if t >= until {
                break;
            }
            let level = match world.traffic {
                Traffic::Diurnal => 1.0 + 0.8 * (std::f64::consts::TAU * (t - from) / 2400.0).sin(),
                _ if (t / 300.0).floor() as i64 % 2 == 0 => 0.6,
                _ => 1.6,
            };
            if rng.unit() < level / 4.0 {
                times.push(t);
            }
        },
        Traffic::Batch => {
            loop {
                t += rng.exponential(1.0 / (0.8 * rate));
                if t >= until {
                    break;
                }
                times.push(t);
            }
            let mut x = from + 150.0;
            while x < until {
                let mut b = x;
                for _ in 0..(rate * 30.0) as usize {
                    b += rng.exponential(0.002);
                    times.push(b);
                }
                x += 300.0;
            }
            times.retain(|t| *t < until);
            times.sort_by(f64::total_cmp);
        }
    }
    times
        .into_iter()
        .map(|at| {
            let changed = world.mix_change > 0.0 && at > world.mix_change;
            let (pm, om) = if changed { (0.4, 2.0) } else { (1.0, 1.0) };
            let mut prompt =
                (rng.normal((world.prompt.0 * pm).ln(), world.prompt.1)).exp().clamp(4.0, 30_000.0);
            let output = (rng.normal((world.output.0 * om).ln(), world.output.1)).exp().clamp(1.0, 4000.0);
            if world.long_share > 0.0 && rng.unit() < world.long_share {
                prompt = 40_000.0 + 60_000.0 * rng.unit();
            }
            Arrival { at, prompt, output }
        })
        .collect()
}
