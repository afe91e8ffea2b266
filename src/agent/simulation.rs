//! The whole agent on paused time, beside the double, in a world that goes wrong: a network that drops,
//! delays, reorders, refuses, breaks and half-opens, a disk that stalls and refuses writes, a clock that
//! somebody sets, a server that dies and comes back as another instance with other ranks, somebody who
//! profiles there too, and an agent that is killed at any of its dealings with disk and network.
//!
//! At every moment: while a window of ours is open on the server its row is kept, nobody opens another
//! while one is open or its row is kept, and nobody else's profile is stopped. And in the end: without
//! faults every window is proven and captured; after the last fault everything is closed, or unproven
//! for a reason of a list, and the next window is granted, opened and captured.
//!
//! | variable | |
//! |---|---|
//! | `SKEWTRAP_SEEDS`  | how many seeds (100); `.ci/run` runs 300; `.ci/long` runs 10,000 |
//! | `SKEWTRAP_SEED`   | this seed alone, telling everything that happens |
//! | `SKEWTRAP_FAULTS` | of that seed only the faults with these numbers: `0,2` |
//!
//! Not in it: receivers of messages (crash.rs has them), the reader of logs and its threads (a reader on
//! paused time stands in), power cuts, nsys.

mod scenario;
mod tally;
mod world;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use self::scenario::{Fault, Kind, Scenario};
use self::tally::Tally;
use self::world::World;
use super::plan::{Flags, Plan};
use super::{OnEffect, Run, run};
use crate::act::state::State;
use crate::clock::Clock;
use crate::config::file::load;
use skewtrap_core::capture::admit::CaptureMethod;
use skewtrap_core::capture::plan::StartRequest;
use skewtrap_core::incident::CaptureOutcome;
use skewtrap_core::message::Update;
use skewtrap_core::watch::Effect;
use skewtrap_trace::time::Time;

/// So long after the last fault everything is closed or unproven, and the next window is captured:
/// the longest wait for an export, the quiet time after a window without a proof, and some firings.
const SETTLED_WITHIN: Duration = Duration::from_secs(660 + 600 + 300);
/// A window that is asked for again and again is refused for so long before somebody looks why.
const PATIENCE: Duration = Duration::from_secs(30);

/// Seeds that found something once, played in every run.
const FOUND: [u64; 16] =
    [9, 94, 113, 236, 562, 642, 989, 1397, 1478, 1822, 2951, 3732, 4562, 4994, 6334, 8298];

/// What the agent was seen to do.
#[derive(Debug, Default)]
struct ObservedActions {
    /// When the windows were started.
    started: BTreeMap<Arc<str>, Time>,
    /// The incidents whose capture was done, and when it was told.
    done: BTreeMap<Arc<str>, Time>,
    failed: BTreeMap<Arc<str>, String>,
    refused: BTreeMap<&'static str, u32>,
    /// The last refusal since the last start.
    refusal: Option<(&'static str, String)>,
}

/// How a life of the agent ended.
#[derive(Debug)]
enum End {
    /// It was killed, or was down.
    Dead,
    Ended(Result<(), String>),
    /// The run is over.
    Over,
    /// Somebody looks why nothing is captured, and does what the refusal says.
    Mend,
}

/// The result of a run.
#[derive(Debug)]
struct Outcome {
    violations: Vec<String>,
    tally: Tally,
    digest: u64,
}

thread_local! {
    static PANICS: Cell<u32> = const { Cell::new(0) };
}

/// A panic of the agent is caught by its runtime and would go unseen.
fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            before(info);
        }));
    });
}

fn play(scenario: &Scenario) -> Outcome {
    count_panics();
    let shm = Path::new("/dev/shm");
    let folder = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
    let folder = folder.expect("a folder");
    let dir = folder.path();
    std::fs::create_dir(dir.join("profiles")).expect("made");
    fastrand::seed(scenario.seed);
    PANICS.set(0);
    let world = World::new(scenario.clone(), dir.to_owned());
    crate::world::stand_in::set(Some(Arc::new(world.clone())));
    crate::http::exchange::stand_in::set(Some(Arc::new(world.clone())));
    let seen = Arc::new(Mutex::new(ObservedActions::default()));
    loop {
        match live(&world, scenario, dir, &seen) {
            End::Dead | End::Ended(Ok(())) => {}
            End::Ended(Err(why)) => {
                world.violated(format!("the agent ended by itself: {why}"));
                break;
            }
            End::Mend => {
                seen.lock().expect("no panic").refusal = None;
                mend(&world, dir);
            }
            End::Over => break,
        }
    }
    let tally = judge(&world, scenario, dir, &seen.lock().expect("no panic"));
    crate::world::stand_in::set(None);
    crate::http::exchange::stand_in::set(None);
    Outcome { violations: world.violations(), tally, digest: world.digest() }
}

/// What `skewtrap resume` and `skewtrap state forget-future` do.
fn mend(world: &World, dir: &Path) {
    world.say("somebody resumes captures and starts the agent again");
    let state = State::open(&dir.join("state")).expect("the agent has ended");
    state.resume(None).expect("written");
    state.forget_future(crate::clock::wall_time()).expect("written");
}

/// One life of the agent, or the time until it is started again.
fn live(world: &World, scenario: &Scenario, dir: &Path, seen: &Arc<Mutex<ObservedActions>>) -> End {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime");
    let end = runtime.block_on(async {
        world.enter();
        tokio::spawn(world.clone().drive());
        let end = if world.is_down() {
            while world.is_down() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            End::Dead
        } else {
            agent_lives(world, scenario, dir, seen).await
        };
        world.leave();
        end
    });
    // Whatever of the agent still runs is gone with it.
    drop(runtime);
    end
}

async fn agent_lives(
    world: &World,
    scenario: &Scenario,
    dir: &Path,
    seen: &Arc<Mutex<ObservedActions>>,
) -> End {
    world.say("the agent starts");
    let cancel = CancellationToken::new();
    let how = Run {
        clock: Clock::start(),
        cancel: cancel.clone(),
        reloads: Arc::default(),
        on_effect: note(world.clone(), seen.clone()),
        reload: Arc::new(|| anyhow::bail!("nothing is read again")),
        serves: false,
        background: None,
    };
    let agent = run(plan(scenario, dir), how);
    tokio::pin!(agent);
    let ended = |result: anyhow::Result<()>| End::Ended(result.map_err(|e| format!("{e:#}")));
    let asked = tokio::select! {
        biased;
        () = world.dies() => return End::Dead,
        result = &mut agent => return ended(result),
        () = world.told_to_end() => None,
        end = over(world, scenario, seen) => Some(end),
    };
    if matches!(asked, Some(End::Over)) {
        return End::Over;
    }
    world.say("the agent is told to end");
    cancel.cancel();
    tokio::select! {
        biased;
        () = world.dies() => End::Dead,
        result = &mut agent => match (asked, result) {
            (Some(End::Mend), Ok(())) => End::Mend,
            (_, result) => ended(result),
        },
    }
}

/// Until the run is over.
async fn over(world: &World, scenario: &Scenario, seen: &Arc<Mutex<ObservedActions>>) -> End {
    let calm = scenario.calm_from().max(Duration::from_secs(60));
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let past = world.elapsed().saturating_sub(calm);
        if past.is_zero() {
            continue;
        }
        let refusal = seen.lock().expect("no panic").refusal.clone();
        let needs_somebody =
            |(reason, _): &(&str, String)| matches!(*reason, "suspended" | "watch_only" | "future_state");
        if past > PATIENCE && refusal.as_ref().is_some_and(needs_somebody) {
            return End::Mend;
        }
        let settled = is_settled(world) && captured_since(world, seen, calm);
        if settled || past > SETTLED_WITHIN {
            return End::Over;
        }
    }
}

fn is_settled(world: &World) -> bool {
    world.open().is_empty() && world.rows().iter().all(|row| row.unproven.is_some())
}

/// Whether a window that was started after `calm` was captured.
fn captured_since(world: &World, seen: &Arc<Mutex<ObservedActions>>, calm: Duration) -> bool {
    let seen = seen.lock().expect("no panic");
    let from = world.now() - world.elapsed().saturating_sub(calm);
    seen.done.keys().any(|incident| seen.started.get(incident).is_some_and(|at| *at >= from))
}

fn plan(scenario: &Scenario, dir: &Path) -> Plan {
    let at = dir.display();
    let logs = if scenario.sees_log { format!(", logs: ['{at}/server.log']") } else { String::new() };
    let text = format!(
        "zone: UTC
targets: [{{ name: server, url: 'http://server.simulated:30000', poll: 1s, metrics: false{logs} }}]
rules:
  - {{ name: skew, signal: load, trigger: {{ max_over_mean: 1.3, for: 1s }}, clear: {{ max_over_mean: 1.2, for: 1s }}, limits: {{ cooldown: 2s, captures: 1000, per: 1h }} }}
capture: {{ http: {{ output_dir: '{at}/profiles', num_steps: 5, deadline: 3s, accept_risk: [server_timer] }} }}
budget: {{ windows: 10000, stalled: 20h, bytes: 1000GiB }}
keep: {{ min_free: 0B }}
state_dir: '{at}/state'
incident_dir: '{at}/incidents'
"
    );
    let loaded = load("skewtrap.yaml", &text, &|_| Ok(Vec::new()));
    let config = loaded.config.unwrap_or_else(|| panic!("{:?}", loaded.diagnostics));
    let plan = Plan::of(&config, &Flags::default()).expect("a plan");
    Plan { receivers: Vec::new(), ..plan }
}

fn note(world: World, seen: Arc<Mutex<ObservedActions>>) -> OnEffect {
    Box::new(move |effect| {
        let mut seen = seen.lock().expect("no panic");
        match effect {
            Effect::Start { incident, plan, .. } => {
                world.granted();
                if let CaptureMethod::Http(request) = &plan.method {
                    let StartRequest { form, ranks, .. } = request;
                    world.say(&format!("a window is granted: {form:?}, {ranks:?}"));
                }
                seen.started.insert(incident.id.clone(), world.now());
                seen.refusal = None;
            }
            Effect::Refused { reason, why, .. } => {
                world.say(&format!("refused: {why}"));
                *seen.refused.entry(reason.word()).or_default() += 1;
                seen.refusal = Some((reason.word(), why.clone()));
            }
            Effect::Notify { incident, update: Update::Captured | Update::Verdict, .. } => {
                match &incident.capture {
                    CaptureOutcome::Done(_) => {
                        world.say("captured");
                        seen.done.entry(incident.id.clone()).or_insert_with(|| world.now());
                    }
                    CaptureOutcome::Failed { why, .. } => {
                        world.say(&format!("failed: {why}"));
                        seen.failed.insert(incident.id.clone(), why.clone());
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    })
}

/// What must hold in the end; and the counts.
fn judge(world: &World, scenario: &Scenario, dir: &Path, seen: &ObservedActions) -> Tally {
    if PANICS.get() > 0 {
        world.violated(format!("{} panics", PANICS.get()));
    }
    let ledger = match State::open(&dir.join("state")).and_then(|state| state.ledger()) {
        Ok(ledger) => ledger,
        Err(error) => {
            // The last life may not have ended: its state is still locked only if something leaks.
            world.violated(format!("the state cannot be read in the end: {error}"));
            return Tally::default();
        }
    };
    let mut tally = Tally { runs: 1, refused: seen.refused.clone(), ..Tally::default() };
    for attempt in &ledger.attempts {
        tally.attempt(attempt.end.as_ref().map(|end| end.unproven.as_deref()));
    }
    for why in &tally.unlisted {
        world.violated(format!("unproven for a reason that is not in the list: {why}"));
    }
    if !is_settled(world) {
        let rows: Vec<_> = world.rows().into_iter().map(|row| (row.attempt, row.unproven)).collect();
        world.violated(format!("not settled in the end: open {:?}, rows {rows:?}", world.open()));
    }
    let calm = scenario.calm_from().max(Duration::from_secs(60));
    let from = world.now() - world.elapsed().saturating_sub(calm);
    let is_new = |incident: &&Arc<str>| seen.started.get(*incident).is_some_and(|at| *at >= from);
    if !seen.done.keys().any(|incident| is_new(&incident)) {
        let failed: Vec<_> = seen.failed.iter().filter(|(incident, _)| is_new(incident)).collect();
        world.violated(format!(
            "no window was captured after the last fault; the last refusal: {:?}; failed since: {failed:?}",
            seen.refusal
        ));
    }
    if scenario.faults.is_empty() && (tally.unproven() > 0 || !seen.failed.is_empty()) {
        world.violated(format!("without faults: {:?}, failed {:?}", tally.unproven, seen.failed));
    }
    tally.captured = seen.done.len() as u64;
    tally.unseen_stops = world.unseen_stops();
    tally.outdated = world.outdated();
    tally
}

/// The same run with as few faults as still make it fail.
fn shrunk(scenario: &Scenario) -> (Vec<usize>, Outcome) {
    let mut kept: Vec<usize> = (0..scenario.faults.len()).collect();
    let mut outcome = play(scenario);
    let mut i = 0;
    while i < kept.len() {
        let fewer: Vec<usize> = kept.iter().copied().filter(|fault| *fault != kept[i]).collect();
        let without = play(&scenario.only(&fewer));
        if without.violations.is_empty() {
            i += 1;
        } else {
            (kept, outcome) = (fewer, without);
        }
    }
    (kept, outcome)
}

fn number_of(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

fn one_seed(seed: u64) {
    let mut scenario = Scenario::of(seed);
    if let Ok(kept) = std::env::var("SKEWTRAP_FAULTS") {
        let kept: Vec<usize> = kept.split(',').filter_map(|number| number.trim().parse().ok()).collect();
        scenario = scenario.only(&kept);
    }
    eprintln!("{scenario}");
    let outcome = play(&scenario);
    eprintln!("{}", outcome.tally);
    assert!(outcome.violations.is_empty(), "{}", outcome.violations.join("\n"));
}

#[test]
fn a_window_is_one_of_the_instance_that_accepted_its_start_though_nobody_saw_the_one_before_end() {
    for seed in [1478, 3732] {
        let outcome = play(&Scenario::of(seed));
        assert_eq!(outcome.violations, Vec::<String>::new());
        assert_eq!(outcome.tally.outdated, 0, "seed {seed}");
    }
}

#[test]
fn whatever_goes_wrong_no_open_window_is_abandoned_and_the_next_one_comes() {
    if let Some(seed) = number_of("SKEWTRAP_SEED") {
        return one_seed(seed);
    }
    let count = number_of("SKEWTRAP_SEEDS").unwrap_or(100);
    let from = number_of("SKEWTRAP_SEEDS_FROM").unwrap_or(0);
    let seeds: Vec<u64> = FOUND
        .into_iter()
        .filter(|seed| !(from..from + count).contains(seed))
        .chain(from..from + count)
        .collect();
    let (next, began) = (AtomicUsize::new(0), Instant::now());
    let (tally, failed) = (Mutex::new(Tally::default()), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(16);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                    let scenario = Scenario::of(*seed);
                    let played = std::panic::catch_unwind(AssertUnwindSafe(|| play(&scenario)));
                    let violations = match played {
                        Ok(outcome) => {
                            tally.lock().expect("no panic").add(&outcome.tally);
                            outcome.violations
                        }
                        Err(_) => vec!["the simulation itself panicked".into()],
                    };
                    if !violations.is_empty() {
                        eprintln!("{scenario}\n  {}", violations.join("\n  "));
                        failed.lock().expect("no panic").push(scenario);
                    }
                }
            });
        }
    });
    let (tally, mut failed) = (tally.into_inner().expect("no panic"), failed.into_inner().expect("no panic"));
    let took = began.elapsed();
    println!(
        "{} seeds in {:.0} s, {} of them violate something\n{tally}",
        seeds.len(),
        took.as_secs_f64(),
        failed.len()
    );
    failed.sort_by_key(|scenario| scenario.seed);
    let told = failed.iter().take(2).map(|scenario| {
        let (kept, outcome) = shrunk(scenario);
        let numbers: Vec<String> = kept.iter().map(ToString::to_string).collect();
        format!(
            "{}\n  {}\n  replay: SKEWTRAP_SEED={} SKEWTRAP_FAULTS={} cargo test --lib simulation -- --nocapture",
            scenario.only(&kept),
            outcome.violations.join("\n  "),
            scenario.seed,
            numbers.join(",")
        )
    });
    let told: Vec<String> = told.collect();
    let seeds: Vec<u64> = failed.iter().map(|scenario| scenario.seed).collect();
    assert!(failed.is_empty(), "seeds {seeds:?}\n{}", told.join("\n"));
    if count >= 300 {
        tally.check();
    }
}

#[test]
fn a_disk_that_stalls_when_the_agent_starts_keeps_it_from_windows_and_not_from_watching() {
    let fault = |at: u64, lasts: u64, kind| Fault {
        at: Duration::from_secs(at),
        lasts: Duration::from_secs(lasts),
        kind,
    };
    for sees_log in [false, true] {
        // Killed again and again, so that windows are left open too.
        let kills = (0..4)
            .flat_map(|n| [fault(20 + n * 60, 1, Kind::Killed), fault(20 + n * 60, 40, Kind::DiskStalls)]);
        let scenario = Scenario { seed: 1, sees_log, idles: false, faults: kills.collect() };
        let outcome = play(&scenario);
        assert_eq!(outcome.violations, [] as [String; 0], "{scenario}");
        let refused = outcome.tally.refused.get("state_disk").copied().unwrap_or_default();
        assert!(refused > 0, "it saw what fires and opened nothing: {}", outcome.tally);
    }
}

#[test]
fn a_seed_gives_the_same_run_again() {
    for seed in [1, 2, 3] {
        let (first, second) = (play(&Scenario::of(seed)), play(&Scenario::of(seed)));
        assert_eq!(first.digest, second.digest, "seed {seed}");
    }
}
