//! How often the right cause is named, on a simulated server with causes injected (docs/evaluation.md).
//!
//! `cargo run --release --features cause_eval --example cause_eval [-- --runs N] [--seed S] [--verbose]` runs each
//! kind N times on each of three servers and by each of three sources, through the whole core with the
//! shipped rules, and prints the table.

#[path = "cause_eval/server.rs"]
mod server;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use fastrand::Rng;
use jiff::tz::TimeZone;
use server::{EPOCH, Injected, Router, Server, Shows, World};
use skewtrap::config::rules;
use skewtrap_core::capture::admit::Policy;
use skewtrap_core::capture::governor::Ledger;
use skewtrap_core::capture::{CaptureSpec, HttpWindow};
use skewtrap_core::cause::{self, Cause, CauseKind, Certainty};
use skewtrap_core::finding::{Finding, Measured, Side, Statistic};
use skewtrap_core::incident::Incident;
use skewtrap_core::signal::catalog::{self, Catalog};
use skewtrap_core::signal::log_reader::Arrival;
use skewtrap_core::signal::observation::{Observation, SourceId};
use skewtrap_core::signal::sample::{Sample, Source, TargetId};
use skewtrap_core::signal::source::WatchedSource;
use skewtrap_core::watch::{Event, Mode, Setup, Watch, WatchedTarget};
use skewtrap_trace::labels::Labels;
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

const WORLDS: [World; 3] = [
    World { ranks: 4, router: Router::RoundRobin, rate: 8.0 },
    World { ranks: 8, router: Router::Random, rate: 6.0 },
    World { ranks: 4, router: Router::Least, rate: 7.0 },
];
const SHOWS: [(&str, Shows); 4] =
    [("log", Shows::Log), ("page", Shows::Page), ("bare", Shows::Bare), ("machine", Shows::Machine)];
const KINDS: [&str; 13] = [
    "router share",
    "sticky key",
    "long prompts",
    "cached prompts",
    "slow GPU",
    "starved host",
    "retraction",
    "starved",
    "standing still",
    "dead peer",
    "nothing",
    "throttled cgroup",
    "crowded scheduler",
];
/// When it happens, at the earliest.
const HEALTHY: f64 = 130.0;
/// A firing later than this after it is none of it.
const LONGEST: f64 = 60.0;

fn injected(kind: usize, rng: &mut Rng) -> Injected {
    let mut between = |low: f64, high: f64| low + (high - low) * rng.f64();
    match kind {
        0 => Injected::RouterShare(between(0.33, 0.66)),
        1 => Injected::StickyKey(between(0.33, 0.66)),
        2 => Injected::LongPrompts(between(4.0, 8.0)),
        3 => Injected::CachedPrompts,
        4 => Injected::SlowGpu(between(2.0, 4.0)),
        5 => Injected::StarvedHost(between(0.03, 0.06)),
        6 => Injected::Retraction(between(0.08, 0.2)),
        7 => Injected::Starved,
        8 => Injected::Stuck,
        9 => Injected::DeadPeer,
        11 => Injected::Throttled(between(0.25, 0.5)),
        12 => Injected::Crowded(between(0.03, 0.06)),
        _ => Injected::Nothing,
    }
}

/// What is right; the second says whether it must be likely, or may be consistent with.
fn is_right(kind: usize, shows: Shows, cause: &Cause) -> bool {
    let has_cache = || cause.support.iter().any(|s| s.contains("cache"));
    match (kind, cause.kind) {
        (0, CauseKind::MoreRequests)
        | (2, CauseKind::LongerPrompts)
        | (3, CauseKind::CacheMisses)
        | (6, CauseKind::Memory)
        | (7, CauseKind::FewerRequests)
        | (8, CauseKind::Stuck)
        | (9, CauseKind::PeerLeft) => true,
        (1, CauseKind::MoreRequests) => has_cache(),
        (4, CauseKind::SlowGpu) | (5 | 11 | 12, CauseKind::SlowHost) => {
            matches!(shows, Shows::Page | Shows::Machine)
        }
        (4 | 5 | 11 | 12, CauseKind::Slower) => matches!(shows, Shows::Log | Shows::Bare),
        (9, CauseKind::Stuck) => shows == Shows::Log,
        // A log does not tell a rank that gets nothing from one that is gone.
        (7, CauseKind::PeerLeft) | (9, CauseKind::FewerRequests) => shows == Shows::Log,
        (10, _) => cause.certainty != Certainty::Likely,
        _ => false,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Score {
    Right,
    Consistent,
    Unknown,
    Wrong,
    NotFired,
}

fn score(kind: usize, shows: Shows, rank: usize, found: Option<&Incident>) -> Score {
    let Some(incident) = found else { return Score::NotFired };
    let Some(cause) = &incident.cause else { return Score::Unknown };
    let right = is_right(kind, shows, cause);
    // In these two the rule may blame another rank than the one it happens to.
    let is_blamed = incident.finding.rank == Rank::dp(rank as u16).labels() || kind == 9 || kind == 10;
    match (cause.certainty, right && is_blamed) {
        (_, true) if kind == 10 => Score::Right,
        (Certainty::Likely, true) => Score::Right,
        // That the router sends more is true, and only half of the answer.
        (Certainty::Likely, false) if kind == 1 && is_blamed && cause.kind == CauseKind::MoreRequests => {
            Score::Consistent
        }
        (Certainty::Likely, false) => Score::Wrong,
        // What a log cannot tell, it must not tell as certain.
        (Certainty::Consistent, true) if shows == Shows::Log && matches!(kind, 7..=9) => Score::Right,
        (Certainty::Consistent, true) => Score::Consistent,
        _ => Score::Unknown,
    }
}

/// Several rules may fire. The incident that blames the rank counts, else the first; but a cause that is
/// confidently wrong counts in whichever it is.
fn judge(kind: usize, shows: Shows, rank: usize, all: Vec<Incident>) -> (Option<Incident>, Score) {
    let scored = |i: Incident| (score(kind, shows, rank, Some(&i)), i);
    let mut scored: Vec<(Score, Incident)> = all.into_iter().map(scored).collect();
    scored.sort_by_key(|(_, i)| i.fired_at);
    let is_wrong = scored.iter().position(|s| s.0 == Score::Wrong);
    let of_rank = scored.iter().position(|s| s.1.finding.rank == Rank::dp(rank as u16).labels());
    if scored.is_empty() {
        return (None, Score::NotFired);
    }
    let (score, incident) = scored.swap_remove(is_wrong.or(of_rank).unwrap_or(0));
    (Some(incident), score)
}

fn setup() -> Setup {
    let catalog = Arc::new(Catalog::default());
    let loaded = rules::shipped(&catalog, &CaptureSpec::Http(HttpWindow::default()));
    let name: Arc<str> = "server".into();
    Setup {
        rules: loaded.rules.into_iter().map(|c| c.rule).collect(),
        catalog,
        own: Default::default(),
        pages: Vec::new(),
        sources: vec![WatchedSource {
            id: SourceId(0),
            target: TargetId(0),
            kind: Source::Log,
            name: "log".into(),
            zone: None,
        }],
        targets: vec![WatchedTarget { name: name.clone(), role: None, group: name, sees_log: true }],
        policy: Policy::default(),
        ledger: Ledger::default(),
        zone: TimeZone::UTC,
        mode: Mode::Live,
    }
}

/// One server from its start until ten seconds after the firing: every incident of it.
fn run(kind: usize, world: World, shows: Shows, seed: u64) -> (usize, Vec<Incident>) {
    let mut rng = Rng::with_seed(seed);
    let injected = injected(kind, &mut rng);
    let rank = rng.usize(..world.ranks);
    let from = HEALTHY + 10.0 * rng.f64();
    let mut server = Server::new(world, shows, injected, rank, from, seed ^ 0x5eed);
    let at = |s: f64| Time::from_epoch_s(EPOCH + s);
    let mut watch = Watch::new(setup(), at(0.0));
    let mut out = Vec::new();
    let (target, source) = (TargetId(0), SourceId(0));
    let mut fired: Option<f64> = None;
    let mut now = 0.0;
    while now < from + LONGEST {
        now += 0.25;
        let lines = server.run(now);
        if shows == Shows::Log {
            for (s, line) in lines {
                let arrival = Arrival::Live(at(s));
                let seen = Observation::Lines { target, source, lines: line.into_bytes(), arrival };
                watch.observe(&seen, at(s), &mut out);
            }
        } else if now % 1.0 == 0.0 {
            let seen = Observation::Page { target, source, body: server.page().into_bytes(), at: at(now) };
            watch.observe(&seen, at(now), &mut out);
        }
        if shows == Shows::Machine && now % 3.0 == 0.0 {
            watch.observe(&machine_of(&server, at(now)), at(now), &mut out);
        }
        watch.handle(Event::Tick, at(now), &mut out);
        out.clear();
        if injected == Injected::Nothing {
            if now >= from + 10.0 {
                return (rank, vec![by_chance(&watch, rank, at(from), at(now), &mut rng)]);
            }
            continue;
        }
        if fired.is_none() && now > from {
            let mut incidents = watch.status(at(now)).incidents.into_iter();
            fired = incidents.any(|i| i.fired_at >= at(from)).then_some(now);
        }
        if fired.is_some_and(|when| now >= when + 9.75) {
            break;
        }
    }
    let incidents = watch.status(at(now)).incidents.into_iter();
    (rank, incidents.filter(|i| fired.is_some() && i.fired_at >= at(from)).collect())
}

/// What the machine says of the ranks.
fn machine_of(server: &Server, at: Time) -> Observation {
    let of_rank = |(rank, (delay, throttled, clock)): (usize, (f64, f64, f64))| {
        let signals =
            [(catalog::RUN_DELAY, delay), (catalog::THROTTLED, throttled), (catalog::GPU_SM_CLOCK, clock)];
        signals.map(|(signal, value)| Sample { rank: Rank::dp(rank as u16), signal, value, at, extra: None })
    };
    let samples = server.machine().into_iter().enumerate().flat_map(of_rank).collect();
    Observation::Host { target: TargetId(0), source: SourceId(1), samples, at }
}

/// A false alarm: a rank and a second at random.
fn by_chance(watch: &Watch, rank: usize, onset: Time, now: Time, rng: &mut Rng) -> Incident {
    let mut finding = Finding::requested(onset, None);
    finding.rank = Rank::dp(rank as u16).labels();
    finding.onset_error_s = 2.0;
    finding.side = if rng.bool() { Side::High } else { Side::Low };
    let (statistic, signal) = (Statistic::Departure, "load".into());
    finding.measured = Some(Measured { statistic, signal, value: 5.1, bound: 5.0, members_signal: None });
    let group = Labels::default().with_target(&"server".into());
    let cause = cause::explain(watch.store(), &group, &finding, cause::Past::default(), now);
    Incident { cause, ..Incident::new("by-chance".into(), "none".into(), "server".into(), now, finding) }
}

fn main() {
    let (mut runs, mut seed, mut verbose, mut only) = (8, 1, false, None);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--runs" => runs = args.next().and_then(|n| n.parse().ok()).expect("--runs needs a number"),
            "--seed" => seed = args.next().and_then(|n| n.parse().ok()).expect("--seed needs a number"),
            "--only" => only = args.next(),
            "--verbose" => verbose = true,
            other => panic!("{other}: only --runs N, --seed S, --only KIND and --verbose are known"),
        }
    }
    let mut jobs = Vec::new();
    for kind in (0..KINDS.len()).filter(|k| only.as_ref().is_none_or(|o| KINDS[*k] == o)) {
        for (shown, (_, shows)) in SHOWS.iter().enumerate() {
            for world in 0..WORLDS.len() {
                for n in 0..runs {
                    let of = seed * 1_000_003 + ((kind * 4 + shown) * 3 + world) as u64 * 1009 + n;
                    jobs.push((kind, shown, *shows, world, of));
                }
            }
        }
    }
    let (next, results) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let work = || {
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let &(kind, _, shows, world, seed) = job;
            let (rank, all) = run(kind, WORLDS[world], shows, seed);
            let (found, score) = judge(kind, shows, rank, all);
            results.lock().expect("no thread panics").insert(*job_key(job), (rank, found, score));
        }
    };
    thread::scope(|s| (0..2).for_each(|_| drop(s.spawn(work))));
    print(&results.into_inner().expect("no thread panics"), verbose);
}

type Job = (usize, usize, Shows, usize, u64);
type Key = (usize, usize, usize, u64);

fn job_key(job: &Job) -> Box<Key> {
    Box::new((job.0, job.1, job.3, job.4))
}

fn print(results: &BTreeMap<Key, (usize, Option<Incident>, Score)>, verbose: bool) {
    if verbose {
        for ((kind, shown, world, seed), (rank, found, score)) in results {
            let cause = found.as_ref().and_then(|i| i.cause.as_ref());
            println!("{score:?} {} by {} on {world} seed {seed}: DP{rank}", KINDS[*kind], SHOWS[*shown].0);
            if let (Some(i), Some(c)) = (found, cause) {
                println!(
                    "    {} blamed {} {}: {} ({}) {:?}",
                    i.rule,
                    i.finding.rank,
                    i.finding.side.word(),
                    c.statement,
                    c.certainty.word(),
                    c.explains
                );
                println!("    for {:?}\n    not {:?}\n    unknown {:?}", c.support, c.ruled_out, c.unknown);
            }
        }
    }
    println!(
        "| injected | by | right | consistent | unknown | confidently wrong | not fired |\n|---|---|---|---|---|---|---|"
    );
    let mut sum: BTreeMap<Score, usize> = BTreeMap::new();
    for (kind, name) in KINDS.iter().enumerate() {
        for (shown, (by, _)) in SHOWS.iter().enumerate() {
            let of: Vec<Score> =
                results.iter().filter(|(k, _)| (k.0, k.1) == (kind, shown)).map(|(_, r)| r.2).collect();
            let count = |s| of.iter().filter(|o| **o == s).count();
            let all =
                [Score::Right, Score::Consistent, Score::Unknown, Score::Wrong, Score::NotFired].map(count);
            of.iter().for_each(|s| *sum.entry(*s).or_default() += 1);
            if !of.is_empty() {
                println!(
                    "| {} | {by} | {} | {} | {} | {} | {} |",
                    name, all[0], all[1], all[2], all[3], all[4]
                );
            }
        }
    }
    let fired: usize = sum.iter().filter(|(s, _)| **s != Score::NotFired).map(|(_, n)| n).sum();
    let part = |s| 100.0 * *sum.get(&s).unwrap_or(&0) as f64 / fired.max(1) as f64;
    println!(
        "\n{fired} incidents: right {:.1} %, consistent {:.1} %, unknown {:.1} %, confidently wrong {:.1} %; {} did not fire",
        part(Score::Right),
        part(Score::Consistent),
        part(Score::Unknown),
        part(Score::Wrong),
        sum.get(&Score::NotFired).unwrap_or(&0)
    );
}
