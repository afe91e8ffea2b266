//! Judges the shipped rules: the whole core, as a replay drives it, over simulated servers.
//!
//! `--budgets 0.2,1,5 --seeds 1,2` prints the table of what each budget of false alarms is kept to instead, and
//! `--frontier` delays against false alarms as JSON, beside plainer detectors.
//!
//! Run it by `scripts/judge.sh`.
//!
//! `skewtrap-judge [--hours H] [--healthy N] [--runs N] [--only TEXT] [--sources log,loads,counted,metrics,both]
//! [--seed N] [--warm S] [--budget PER_DAY] [--own] [--standing] [-v]` prints firings and windows an hour in
//! healthy worlds (the first hour apart, imbalances told as standing apart, and from hour 4 on with the upper
//! 95 % bound of their rate a day), and for incidents how many were found, the first blame, delays, onsets
//! and clearing.

mod arrivals;
mod budgets;
mod engine;
mod frontier;
mod rivals;
mod rng;
mod score;
mod sketch;
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
    budget: f64,
    own: bool,
    standing: bool,
    budgets: Vec<f64>,
    seeds: Vec<u64>,
    frontier: bool,
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
        budget: 1.0,
        own: false,
        standing: false,
        budgets: Vec::new(),
        seeds: Vec::new(),
        frontier: false,
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
            "--budget" => o.budget = value()?.parse()?,
            "--own" => o.own = true,
            "--standing" => o.standing = true,
            "--budgets" => o.budgets = value()?.split(',').map(str::parse).collect::<Result<_, _>>()?,
            "--seeds" => o.seeds = value()?.split(',').map(str::parse).collect::<Result<_, _>>()?,
            "--frontier" => o.frontier = true,
            "-v" => o.verbose = true,
            other => bail!("unknown option {other}; the head of crates/judge/src/main.rs lists them"),
        }
    }
    if o.sources.is_empty() {
        bail!("--sources names none of log, loads, counted, metrics, both");
    }
    if o.seeds.is_empty() {
        o.seeds.push(o.seed);
    }
    Ok(o)
}

fn main() -> Result<()> {
    let o = options()?;
    let rules = score::shipped()?;
    if o.standing {
        standing(&o, &rules);
        return Ok(());
    }
    if !o.budgets.is_empty() {
        budgets::table(&o, &rules);
        return Ok(());
    }
    if o.frontier {
        frontier::print(&o, &rules);
        return Ok(());
    }
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
    o.sources.iter().map(|s| told(&out, world, s.1, rules, o.budget)).collect()
}

/// Worlds that are uneven from their first second on: one incident of the right rank is told, and nothing else.
fn standing(o: &Options, rules: &[Rule]) {
    println!("standing: told of the right rank, of all runs; of another one; first after; other firings");
    for (name, world, rank) in list::standing() {
        let mut text = String::new();
        let runs = o.runs.max(1);
        let all: Vec<_> = (0..runs)
            .map(|k| run(&world, o.seed * 1000 + k as u64, (o.hours * 3600.0) as usize, &[], o, rules))
            .collect();
        for (i, (source, _)) in o.sources.iter().enumerate() {
            let told: Vec<&Told> = all.iter().flat_map(|run| &run[i]).collect();
            let stands: Vec<&&Told> = told.iter().filter(|t| t.is_standing()).collect();
            let right = stands.iter().filter(|t| t.rank == rank).count();
            let first = stands.iter().map(|t| t.at).fold(f64::INFINITY, f64::min);
            let (wrong, others) = (stands.len() - right, told.len() - stands.len());
            text += &format!("   {source} {right}/{runs}; {wrong}; {first:.0} s; {others}");
            if o.verbose {
                told.iter().for_each(|t| println!("    {source} {}", words(t)));
            }
        }
        println!("{name:30}{text}");
    }
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
    let mut sums: BTreeMap<&str, Vec<Row>> = BTreeMap::new();
    println!(
        "healthy: firings in hour 1 | an hour from hour 2 | windows an hour | firings from hour 4 on | standing, by source"
    );
    for (name, world) in &worlds {
        let mut rows = vec![Row::default(); o.sources.len()];
        let mut notes = Vec::new();
        for k in 0..o.healthy {
            let all = run(world, o.seed * 1000 + k as u64, (o.hours * 3600.0) as usize, &[], o, rules);
            for (i, told) in all.iter().enumerate() {
                rows[i].standing += told.iter().filter(|t| t.is_standing()).count();
                notes.extend(told.iter().map(|t| format!("    {} {}", o.sources[i].0, words(t))));
                let told: Vec<&Told> = told.iter().filter(|t| !t.is_standing()).collect();
                let after = |hour: f64| told.iter().filter(|t| t.at > 3600.0 * hour).count() as f64;
                let runs = o.healthy as f64;
                rows[i].first += (told.len() as f64 - after(1.0)) / runs;
                rows[i].then += after(1.0) / (o.hours - 1.0).max(1e-9) / runs;
                rows[i].windows += told.iter().filter(|t| t.has_window()).count() as f64 / o.hours / runs;
                rows[i].late += after(LATE_HOURS);
            }
        }
        let text: Vec<String> = rows
            .iter()
            .zip(&o.sources)
            .map(|(r, s)| {
                format!("{} {:.2}|{:.2}|{:.2}|{:.0}|{}", s.0, r.first, r.then, r.windows, r.late, r.standing)
            })
            .collect();
        println!("{name:26} {}", text.join("   "));
        if o.verbose {
            notes.iter().for_each(|n| println!("{n}"));
        }
        rows.iter().zip(&o.sources).for_each(|(r, s)| sums.entry(s.0).or_default().push(*r));
    }
    for (source, rows) in &sums {
        let n = rows.len() as f64;
        let mean = |f: fn(&Row) -> f64| rows.iter().map(f).sum::<f64>() / n;
        let worst = |f: fn(&Row) -> f64| rows.iter().map(f).fold(0.0, f64::max);
        println!(
            "== {source:9} hour 1 mean {:.2} worst {:.2}   from hour 2 mean {:.3} worst {:.2}   windows {:.3}",
            mean(|r| r.first),
            worst(|r| r.first),
            mean(|r| r.then),
            worst(|r| r.then),
            mean(|r| r.windows)
        );
        let days = n * o.healthy as f64 * (o.hours - LATE_HOURS).max(0.0) / 24.0;
        if days > 0.0 {
            let count = mean(|r| r.late) * n;
            println!(
                "   {source:9} from hour 4 on {count:.0} firings in {days:.1} days: {:.2} a day, at most {:.2} (95 %); budget {}",
                count / days,
                upper_bound(count) / days,
                o.budget
            );
        }
    }
}

/// Firings are counted apart from so many hours on: by then the bounds are the site's own.
const LATE_HOURS: f64 = 3.0;

/// What a world showed by one source.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    /// Firings in the first hour.
    first: f64,
    /// An hour after it.
    then: f64,
    /// Windows an hour.
    windows: f64,
    /// Firings from hour 4 on.
    late: f64,
    /// Imbalances that were told as standing.
    standing: usize,
}

/// The mean of which a Poisson variable is `count` or less in 5 % of cases (Garwood 1936), by bisection.
fn upper_bound(count: f64) -> f64 {
    let at_most = |mean: f64| {
        let (mut term, mut sum) = ((-mean).exp(), 0.0);
        for k in 0..=count as u32 {
            sum += term;
            term *= mean / f64::from(k + 1);
        }
        sum
    };
    let (mut low, mut high) = (count, 2.0 * count + 20.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        (low, high) = if at_most(middle) > 0.05 { (middle, high) } else { (low, middle) };
    }
    high
}

fn words(t: &Told) -> String {
    let (at, error) = t.onset;
    let ranks: Vec<usize> = t.ranks.iter().map(|r| r.1).collect();
    format!(
        "{:.0} s {} DP{ranks:?} {} {} since {at:.1} ± {error:.1}, capture {}, cleared {:?}",
        t.at, t.rule, t.what, t.side, t.capture, t.cleared
    )
}

fn incidents(o: &Options, rules: &[Rule]) {
    if o.runs == 0 {
        return;
    }
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
        "found {}/{n} first right {} delay {:.1} | wrong {:.2} tellings {:.2} back {:.2} before {}{named} | onset in ± {covered}/{} bias {:+.1} ± {:.1} | clears {:.0}",
        sum(&|v| usize::from(v.delay.is_some())),
        sum(&|v| usize::from(v.first_right)),
        median(&mut delays),
        sum(&|v| v.wrong) as f64 / n as f64,
        sum(&|v| v.tellings) as f64 / n as f64,
        sum(&|v| v.returns) as f64 / n as f64,
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
