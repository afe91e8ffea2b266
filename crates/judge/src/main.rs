//! Judges the shipped rules: the whole core, as a replay drives it, over simulated servers.
//!
//! `skewtrap-judge [--hours H] [--healthy N] [--runs N] [--only TEXT] [--sources log,loads,metrics,both]
//! [--seed N] [--warm S] [--own] [-v]` prints firings and windows an hour in healthy worlds (the first hour
//! apart), and for incidents how many were found, the first blame, delays, onsets and clearing.

mod arrivals;
mod engine;
mod rng;
mod score;
mod spec;
mod view;
mod worlds;

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use skewtrap_core::rule::Rule;

use crate::engine::simulate;
use crate::score::{Told, Verdict, judge, told};
use crate::spec::{Incident, Trouble, World};
use crate::view::Source;
use crate::worlds as list;

struct Options {
    hours: f64,
    healthy: usize,
    runs: usize,
    only: String,
    sources: Vec<(&'static str, Source)>,
    seed: u64,
    warm: f64,
    own: bool,
    verbose: bool,
}

fn options() -> Result<Options> {
    let mut o = Options {
        hours: 4.0,
        healthy: 1,
        runs: 8,
        only: String::new(),
        sources: Source::ALL.to_vec(),
        seed: 1,
        warm: 400.0,
        own: false,
        verbose: false,
    };
    let mut args = std::env::args().skip(1);
    while let Some(a) = args.next() {
        let mut value = || args.next().with_context(|| format!("{a} wants a value"));
        match a.as_str() {
            "--hours" => o.hours = value()?.parse()?,
            "--healthy" => o.healthy = value()?.parse()?,
            "--runs" => o.runs = value()?.parse()?,
            "--only" => o.only = value()?,
            "--sources" => {
                let wanted = value()?;
                o.sources.retain(|s| wanted.split(',').any(|w| w == s.0));
            }
            "--seed" => o.seed = value()?.parse()?,
            "--warm" => o.warm = value()?.parse()?,
            "--own" => o.own = true,
            "-v" => o.verbose = true,
            other => bail!("unknown option {other}; see crates/judge/src/main.rs"),
        }
    }
    if o.sources.is_empty() {
        bail!("--sources names none of log, loads, metrics, both");
    }
    Ok(o)
}

fn main() -> Result<()> {
    let o = options()?;
    let rules = score::shipped()?;
    healthy(&o, &rules);
    incidents(&o, &rules);
    Ok(())
}

/// One run of a world, judged by each source.
fn run(
    world: &World,
    seed: u64,
    seconds: usize,
    script: &[Incident],
    o: &Options,
    rules: &[Rule],
) -> Vec<Vec<Told>> {
    let out = simulate(world, seed, seconds, script);
    o.sources.iter().map(|s| told(&out, world, s.1, rules)).collect()
}

fn healthy(o: &Options, rules: &[Rule]) {
    let mut worlds = list::healthy();
    if o.own {
        worlds.extend(list::own());
    }
    worlds.retain(|w| format!("healthy {}", w.0).contains(&o.only));
    if worlds.is_empty() || o.healthy == 0 {
        return;
    }
    let mut sums: BTreeMap<&str, Vec<(f64, f64, f64)>> = BTreeMap::new();
    println!("healthy: firings in hour 1 | an hour from hour 2 | windows an hour, by source");
    for (name, world) in &worlds {
        let mut rows = vec![(0.0, 0.0, 0.0); o.sources.len()];
        let mut notes = Vec::new();
        for k in 0..o.healthy {
            let all = run(world, o.seed * 1000 + k as u64, (o.hours * 3600.0) as usize, &[], o, rules);
            for (i, told) in all.iter().enumerate() {
                let early = told.iter().filter(|t| t.at <= 3600.0).count() as f64;
                rows[i].0 += early / o.healthy as f64;
                rows[i].1 += (told.len() as f64 - early) / (o.hours - 1.0).max(1e-9) / o.healthy as f64;
                rows[i].2 +=
                    told.iter().filter(|t| t.has_window()).count() as f64 / o.hours / o.healthy as f64;
                notes.extend(told.iter().map(|t| format!("    {} {}", o.sources[i].0, words(t))));
            }
        }
        let text: Vec<String> = rows
            .iter()
            .zip(&o.sources)
            .map(|(r, s)| format!("{} {:.2}|{:.2}|{:.2}", s.0, r.0, r.1, r.2))
            .collect();
        println!("{name:26} {}", text.join("   "));
        if o.verbose {
            notes.iter().for_each(|n| println!("{n}"));
        }
        rows.iter().zip(&o.sources).for_each(|(r, s)| sums.entry(s.0).or_default().push(*r));
    }
    for (source, rows) in &sums {
        let n = rows.len() as f64;
        let mean = |f: fn(&(f64, f64, f64)) -> f64| rows.iter().map(f).sum::<f64>() / n;
        let worst = |f: fn(&(f64, f64, f64)) -> f64| rows.iter().map(f).fold(0.0, f64::max);
        println!(
            "== {source:9} hour 1 mean {:.2} worst {:.2}   from hour 2 mean {:.3} worst {:.2}   windows {:.3}",
            mean(|r| r.0),
            worst(|r| r.0),
            mean(|r| r.1),
            worst(|r| r.1),
            mean(|r| r.2)
        );
    }
}

fn words(t: &Told) -> String {
    let (at, error) = t.onset;
    format!(
        "{:.0} s {} DP{:?} {} {} since {at:.1} ± {error:.1}, capture {}, cleared {:?}",
        t.at, t.rule, t.ranks, t.what, t.side, t.capture, t.cleared
    )
}

fn incidents(o: &Options, rules: &[Rule]) {
    let mut bases = list::bases();
    if o.own {
        bases.extend(list::own_bases());
    }
    let mut totals: BTreeMap<&str, Vec<(String, Verdict)>> = BTreeMap::new();
    for (name, script) in list::incidents(o.warm) {
        for (base, world) in &bases {
            let title = format!("{name} | {base}");
            if !title.contains(&o.only) || (name == "two ranks" && world.ranks < 4) {
                continue;
            }
            let script: Vec<_> =
                script.iter().map(|i| Incident { rank: i.rank % world.ranks, ..*i }).collect();
            let script = fix_other(script, world);
            let end = script.iter().map(|i| i.until).fold(0.0, f64::max) + 80.0;
            let mut rows: Vec<Vec<Verdict>> = vec![Vec::new(); o.sources.len()];
            for k in 0..o.runs {
                let all = run(world, o.seed * 1000 + 500 + k as u64, end as usize, &script, o, rules);
                for (i, told) in all.iter().enumerate() {
                    let v = judge(told, &script);
                    if o.verbose {
                        println!("  {title} {} run {k}: {v:?}", o.sources[i].0);
                        told.iter().for_each(|t| println!("      {}", words(t)));
                    }
                    rows[i].push(v);
                }
            }
            for (i, vs) in rows.into_iter().enumerate() {
                println!("{title:32} {:8} {}", o.sources[i].0, line(&vs, name));
                totals
                    .entry(o.sources[i].0)
                    .or_default()
                    .extend(vs.into_iter().map(|v| (name.to_string(), v)));
            }
        }
    }
    for (source, all) in &totals {
        println!("== {source}");
        let mut names: Vec<&str> = Vec::new();
        all.iter().for_each(|(n, _)| {
            if !names.contains(&n.as_str()) {
                names.push(n)
            }
        });
        for n in names {
            let vs: Vec<Verdict> = all.iter().filter(|x| x.0 == n).map(|x| x.1.clone()).collect();
            println!("   {n:20} {}", line(&vs, n));
        }
        let core: Vec<Verdict> = all
            .iter()
            .filter(|x| !x.0.starts_with("drift 10") && !x.0.starts_with("own"))
            .map(|x| x.1.clone())
            .collect();
        println!("   all                  {}", line(&core, ""));
    }
}

fn fix_other(script: Vec<Incident>, world: &World) -> Vec<Incident> {
    script
        .into_iter()
        .map(|i| match i.trouble {
            Trouble::Oscillate { share, other, period } => Incident {
                trouble: Trouble::Oscillate {
                    share,
                    other: if other % world.ranks == i.rank { 0 } else { other % world.ranks },
                    period,
                },
                ..i
            },
            _ => i,
        })
        .collect()
}

fn line(vs: &[Verdict], name: &str) -> String {
    let n = vs.len();
    let sum = |f: &dyn Fn(&Verdict) -> usize| vs.iter().map(f).sum::<usize>();
    let mut delays: Vec<f64> = vs.iter().map(|v| v.delay.unwrap_or(f64::INFINITY)).collect();
    let onsets: Vec<(f64, f64)> = vs.iter().filter_map(|v| v.onset).collect();
    let covered = onsets.iter().filter(|(e, w)| e.abs() <= *w).count();
    let mut widths: Vec<f64> = onsets.iter().map(|o| o.1).collect();
    let mut errors: Vec<f64> = onsets.iter().map(|o| o.0).collect();
    let mut clearing: Vec<f64> = vs.iter().map(|v| v.clearing.unwrap_or(f64::INFINITY)).collect();
    let named = if name == "two ranks" {
        format!(" named {}", sum(&|v| usize::from(v.all_named)))
    } else {
        String::new()
    };
    format!(
        "found {}/{n} first right {} delay {:.1} | wrong {:.2} tellings {:.2} before {}{named} | onset in ± {covered}/{} bias {:+.1} ± {:.1} | clears {:.0}",
        sum(&|v| usize::from(v.delay.is_some())),
        sum(&|v| usize::from(v.first_right)),
        median(&mut delays),
        sum(&|v| v.wrong) as f64 / n as f64,
        sum(&|v| v.tellings) as f64 / n as f64,
        sum(&|v| v.before),
        onsets.len(),
        median(&mut errors),
        median(&mut widths),
        median(&mut clearing)
    )
}

fn median(v: &mut [f64]) -> f64 {
    v.sort_by(f64::total_cmp);
    if v.is_empty() { f64::NAN } else { v[v.len() / 2] }
}
