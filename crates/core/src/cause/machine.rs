//! What the machine says: the engine's process waits for a CPU, its cgroup is throttled, its GPU's clock is low.

use super::case::Case;
use super::course::{Member, Span};
use crate::signal::catalog;
use crate::signal::sample::Signal;

/// A process that waits for this share of the time more than before is starved.
const STARVED: f64 = 0.1;
/// Peers whose number changed by half as much or more show something of the whole machine.
const ALONE: f64 = 0.5;
/// A clock below this share of what it was is low.
const LOW_CLOCK: f64 = 0.9;

/// A signal of the machine on one rank, mostly the blamed one, before and after the onset.
#[derive(Clone, Copy, Debug)]
pub struct Departure {
    pub signal: Signal,
    /// The rank's value before and after.
    pub own: (f64, f64),
    /// The peer's that changed most.
    pub peer: (f64, f64),
    /// By which factor, in logarithms, it makes everything slower.
    pub slows: f64,
    /// Whether it changed, on this rank alone.
    pub departed: bool,
}

/// What keeps the host of the blamed rank from running.
pub fn host(case: &Case<'_>) -> Vec<Departure> {
    host_of(case, case.blamed)
}

/// What keeps the host of member `at` from running.
pub fn host_of(case: &Case<'_>, at: usize) -> Vec<Departure> {
    catalog::OF_MACHINE
        .into_iter()
        .filter_map(|signal| {
            let share = |m: &Member, span: Span| {
                let (seconds, covered) = m.of(signal).total(span);
                (covered >= 1.0).then(|| seconds / covered)
            };
            let mut found = departure(case, at, signal, share, |(before, after)| (after - before).max(0.0))?;
            // What is left of each second to run in: on a machine that was crowded before, a little more waiting takes
            // more of it.
            let runs = |waits: f64| 1.0 - waits.clamp(0.0, 0.95);
            found.slows = (runs(found.own.0) / runs(found.own.1)).ln().max(0.0);
            found.departed &= found.own.1 - found.own.0 >= STARVED;
            Some(found)
        })
        .collect()
}

/// How many times slower than usual the slowest host is, as the machine says: by the process that waits most for a CPU,
/// and 1 where every rank's process was looked at and hardly waits. `None` where nobody knows.
pub fn slowest_host(case: &Case<'_>) -> Option<f64> {
    let hosts: Vec<_> = (0..case.course.members.len()).map(|i| host_of(case, i)).collect();
    let slow = hosts.iter().flatten().filter(|d| d.departed).map(|d| d.slows.exp()).max_by(f64::total_cmp);
    let runs = |host: &Vec<Departure>| {
        let mut waits = host.iter().filter(|d| d.signal != catalog::CPU_PRESSURE);
        host.iter().any(|d| d.signal == catalog::RUN_DELAY) && waits.all(|d| d.own.1 < STARVED)
    };
    slow.or_else(|| (!hosts.is_empty() && hosts.iter().all(runs)).then_some(1.0))
}

/// The clock of the blamed rank's GPU.
pub fn clock(case: &Case<'_>) -> Option<Departure> {
    let mean = |m: &Member, span: Span| m.of(catalog::GPU_SM_CLOCK).mean(span).filter(|clock| *clock > 0.0);
    let fall = |(before, after): (f64, f64)| (before - after).max(0.0);
    let mut found = departure(case, case.blamed, catalog::GPU_SM_CLOCK, mean, fall)?;
    found.slows = (found.own.0 / found.own.1).ln();
    found.departed &= found.own.1 < LOW_CLOCK * found.own.0;
    Some(found)
}

fn departure(
    case: &Case<'_>,
    at: usize,
    signal: Signal,
    of: impl Fn(&Member, Span) -> Option<f64>,
    change: impl Fn((f64, f64)) -> f64,
) -> Option<Departure> {
    // The machine is looked at every few seconds: what a look before the onset told is held beyond it, and the
    // first look after it still tells of the time before. Both would thin out what changed.
    let after = |m: &Member| Some((m.of(signal).first_after(case.spans.after.0)?, case.spans.after.1));
    let both = |m: &Member| Some((of(m, case.spans.before)?, of(m, after(m)?)?));
    let members = &case.course.members;
    let own = both(&members[at])?;
    let peers = members.iter().enumerate().filter(|(i, _)| *i != at).filter_map(|(_, m)| both(m));
    let peer = peers.max_by(|a, b| change(*a).total_cmp(&change(*b)))?;
    let departed = change(own) > 0.0 && change(peer) < ALONE * change(own);
    Some(Departure { signal, own, peer, slows: 0.0, departed })
}
