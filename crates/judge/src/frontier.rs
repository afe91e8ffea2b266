//! Delay against false alarms: the rules at several budgets, and plainer detectors at several bounds, over the same
//! healthy worlds and incidents, all by `/v1/loads` once a second (the rules by the log as well, the sketch that they
//! began as by the log alone).

use skewtrap_core::rule::Rule;

use crate::engine::{Outcome, simulate};
use crate::rivals::{self, LevelDetector};
use crate::score::{judge, told};
use crate::sketch;
use crate::spec::{Incident, World};
use crate::view::Source;
use crate::worlds::{self as list, guilty};
use crate::{Options, median};

/// Budgets a day at which the rules are tried.
const BUDGETS: [f64; 5] = [0.2, 1.0, 5.0, 25.0, 125.0];
/// Of the sketch so many times its own bounds are tried.
const SKETCH_BOUNDS: [f64; 7] = [0.5, 0.7, 0.85, 1.0, 1.25, 1.5, 2.0];
/// A plain detector fires after so many seconds beyond its bound, and again after as many calm ones.
const HELD: u32 = 3;
const CALM: u32 = 15;
/// What is not found within an incident counts as so many seconds.
const NOT_FOUND: f64 = 120.0;
/// Seconds at the beginning that count for nobody.
const WARM: usize = 3600;

/// The incidents that are looked for.
const KINDS: [&str; 8] =
    ["redirect 50 %", "redirect 25 %", "slow 4x", "slow 2x", "slow 1.5x", "hot prefix", "starved", "hung"];

struct Trial {
    world: World,
    script: Vec<Incident>,
    out: Outcome,
}

/// A point of a curve.
struct Point {
    method: String,
    bound: f64,
    false_alarms: f64,
    delay: f64,
    found: usize,
    of: usize,
}

/// Prints the points, one JSON object a line.
pub fn print(o: &Options, rules: &[Rule]) {
    let hours = o.hours.max(2.0);
    let seconds = (hours * 3600.0) as usize;
    let healthy: Vec<Trial> = list::healthy()
        .into_iter()
        .map(|(_, world)| Trial {
            out: simulate(&world, o.seed * 1000, seconds, &[]),
            world,
            script: Vec::new(),
        })
        .collect();
    let mut troubled = Vec::new();
    for (_, script) in list::incidents(o.warm).into_iter().filter(|(name, _)| KINDS.contains(name)) {
        for (_, world) in list::bases() {
            let end = script.iter().map(|i| i.until).fold(0.0, f64::max) as usize;
            let out = simulate(&world, o.seed * 1000 + 500, end + 1, &script);
            troubled.push(Trial { world, script: script.clone(), out });
        }
    }
    let days = healthy.len() as f64 * (seconds - WARM) as f64 / 86_400.0;
    for (name, source) in [("rules, log", Source::Log), ("rules, loads", Source::Loads)] {
        for budget in BUDGETS {
            let alarms = |t: &Trial| {
                let all = told(&t.out, &t.world, source, rules, budget);
                all.iter().filter(|t| !t.is_standing() && t.at > WARM as f64).count()
            };
            let delay = |t: &Trial| judge(&told(&t.out, &t.world, source, rules, budget), &t.script).delay;
            show(point(name, budget, days, healthy.iter().map(alarms).sum(), troubled.iter().map(delay)));
        }
    }
    let show_plain = |name: &str, bound: f64, firings: &dyn Fn(&Trial) -> Vec<(usize, usize)>| {
        let alarms = |t: &Trial| firings(t).iter().filter(|f| f.0 > WARM).count();
        let delay = |t: &Trial| {
            let right = guilty(&t.script);
            let from = t.script.iter().map(|i| i.from).fold(f64::INFINITY, f64::min);
            let first = firings(t).into_iter().find(|(at, rank)| *at as f64 > from && right.contains(rank));
            first.map(|(at, _)| at as f64 - from)
        };
        show(point(name, bound, days, healthy.iter().map(alarms).sum(), troubled.iter().map(delay)));
    };
    for times in SKETCH_BOUNDS {
        show_plain("sketch, log", times, &|t| sketch::fired(&t.out, times));
    }
    for (i, rival) in rivals::all().iter().enumerate() {
        for bound in rival.bounds() {
            let firings = |t: &Trial| fired(&mut *rivals::all().swap_remove(i), bound, &t.out);
            show_plain(rival.name(), bound, &firings);
        }
    }
}

fn point(
    method: &str,
    bound: f64,
    days: f64,
    alarms: usize,
    delays: impl Iterator<Item = Option<f64>>,
) -> Point {
    let delays: Vec<Option<f64>> = delays.collect();
    let found = delays.iter().flatten().count();
    let of = delays.len();
    let mut delays: Vec<f64> = delays.into_iter().map(|d| d.unwrap_or(NOT_FOUND).min(NOT_FOUND)).collect();
    Point {
        method: method.into(),
        bound,
        false_alarms: alarms as f64 / days,
        delay: median(&mut delays),
        found,
        of,
    }
}

fn show(p: Point) {
    println!(
        r#"{{"method":"{}","bound":{:.2},"false_alarms_a_day":{:.2},"delay_s":{:.1},"found":{},"of":{}}}"#,
        p.method, p.bound, p.false_alarms, p.delay, p.found, p.of
    );
}

/// When a plain detector fires, and whom it blames.
fn fired(rival: &mut dyn LevelDetector, bound: f64, out: &Outcome) -> Vec<(usize, usize)> {
    let (mut all, mut held, mut calm, mut is_firing) = (Vec::new(), 0, 0, false);
    for (second, pages) in out.loads.iter().enumerate() {
        let loads: Vec<f64> = pages.iter().map(|p| p.running + p.waiting).collect();
        let (score, rank) = rival.score(&loads);
        (held, calm) = if score > bound { (held + 1, 0) } else { (0, calm + 1) };
        if !is_firing && held >= HELD {
            is_firing = true;
            all.push((second + 1, rank));
        }
        is_firing &= calm < CALM;
    }
    all
}
