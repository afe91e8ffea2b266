//! What each budget of false alarms is kept to, in healthy worlds from hour 4 on: the table of docs/factors.md.

use std::collections::BTreeMap;

use skewtrap_core::rule::Rule;

use crate::engine::simulate;
use crate::score::told;
use crate::worlds as list;
use crate::{LATE_HOURS, Options, upper_bound};

/// Firings from hour 4 on, by budget (its place) and source (its place), and in which worlds.
type Counts = BTreeMap<(usize, usize), BTreeMap<&'static str, f64>>;

/// Prints the table. A world is simulated once for all budgets and sources.
pub fn table(o: &Options, rules: &[Rule]) {
    let mut worlds = list::healthy();
    worlds.retain(|w| format!("healthy {}", w.0).contains(&o.only));
    let mut counts = Counts::new();
    for seed in &o.seeds {
        for (name, world) in &worlds {
            let out = simulate(world, seed * 1000, (o.hours * 3600.0) as usize, &[]);
            for (b, budget) in o.budgets.iter().enumerate() {
                for (s, source) in o.sources.iter().enumerate() {
                    let all = told(&out, world, source.1, rules, *budget);
                    let late = all.iter().filter(|t| !t.is_standing() && t.at > 3600.0 * LATE_HOURS);
                    for t in late {
                        *counts.entry((b, s)).or_default().entry(name).or_default() += 1.0;
                        if o.verbose {
                            eprintln!("{seed} {budget} {} {name}: {}", source.0, crate::words(t));
                        }
                    }
                }
            }
        }
    }
    let days = o.seeds.len() as f64 * (o.hours - LATE_HOURS).max(0.0) / 24.0;
    let row = |count: f64, days: f64| format!("{:.2}, {:.2}", count / days, upper_bound(count) / days);
    println!(
        "| `false_alarms` a day | by | firings in {:.1} days | a day, upper 95 % bound | most in one world | without that world a day, bound |",
        days * worlds.len() as f64
    );
    println!("|---|---|---|---|---|---|");
    for (b, budget) in o.budgets.iter().enumerate() {
        for (s, source) in o.sources.iter().enumerate() {
            let by_world = counts.remove(&(b, s)).unwrap_or_default();
            let all = by_world.values().fold(0.0, |sum, count| sum + count);
            let worst = by_world.iter().max_by(|a, b| a.1.total_cmp(b.1));
            let (name, most) = worst.map_or(("none", 0.0), |(name, most)| (*name, *most));
            println!(
                "| {budget} | {} | {all} | {} | {most} (`{name}`) | {} |",
                source.0,
                row(all, days * worlds.len() as f64),
                row(all - most, days * (worlds.len() as f64 - 1.0).max(1.0))
            );
        }
    }
}
