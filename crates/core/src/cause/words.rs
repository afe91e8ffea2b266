//! The sentences of a cause. They use the words and units of the engines' own pages.

use super::case::{Case, Found, Requests};
use super::machine::Departure;
use super::terms::Term;
use super::{Cause, CauseKind, Certainty};
use crate::signal::catalog;
use skewtrap_trace::rank::rank_name;
use skewtrap_trace::time::Time;

/// Where the rule saw a slow rank.
pub const UNSHOWN_SPEED: &str = "by how much it is slower now: the last minute alone does not show it";

pub const UNTOLD_BY_LOG: &str =
    "whether it gets no requests or has left: a log does not tell; the server's --enable-metrics would";
pub const PUBLISHES_NO_MORE: &str =
    "whether it stands still or has left: `py-spy dump --pid PID` of its scheduler would show";
pub const STOPPED_BY_LOG: &str =
    "whether it stands still or has left: a log does not tell; --enable-metrics would";
pub const NO_DEVICE_TIMER: &str = "whether its GPU or its host is slow: the device timer is not exposed; \
                                   --enable-metrics with SGLANG_ENABLE_METRICS_DEVICE_TIMER=1 would show it";

pub const NO_HOST: &str = "whether its process waits for a CPU: the agent does not see the engine's processes; \
                           beside them, in their PID namespace, it would";

/// What departs by less than so many seconds beside the onset departs with it: courses are looked at in seconds.
const WITH_THE_ONSET_S: f64 = 1.0;

/// `its process waited for a CPU 0.01 -> 0.62 s a second, at most 0.01 -> 0.02 on a peer`.
pub fn machine(d: &Departure) -> String {
    machine_of("its", d)
}

/// The same of a peer: `DP1's process waited for a CPU ...`.
pub fn machine_of_peer(case: &Case<'_>, peer: usize, d: &Departure) -> String {
    machine_of(&format!("{}'s", rank_name(&case.course.members[peer].labels)), d)
}

fn machine_of(whose: &str, d: &Departure) -> String {
    let (what, unit) = match d.signal {
        catalog::RUN_DELAY => (format!("{whose} process waited for a CPU"), "s a second"),
        catalog::THROTTLED => (format!("{whose} cgroup was throttled"), "s a second"),
        catalog::CPU_PRESSURE => (format!("{whose} cgroup waited for CPUs"), "s a second"),
        _ => (format!("the clock of {whose} GPU was"), "MHz"),
    };
    let [a, b, c, d] = [d.own.0, d.own.1, d.peer.0, d.peer.1].map(number);
    format!("{what} {a} -> {b} {unit}, at most {c} -> {d} on a peer")
}

/// A cause of which nothing is known yet.
pub fn empty(at: Time) -> Cause {
    Cause {
        kind: CauseKind::Unknown,
        statement: String::new(),
        certainty: Certainty::Unknown,
        support: Vec::new(),
        explains: None,
        ruled_out: Vec::new(),
        unknown: Vec::new(),
        step_slowdown: None,
        host_slowdown: None,
        at,
    }
}

/// Nothing can be compared.
pub fn nothing_known(at: Time) -> Cause {
    Cause {
        statement: "unknown: fewer than two ranks have numbers to compare".into(),
        unknown: vec![
            "the server's log, or --enable-metrics, would show what each rank gets and does".into(),
        ],
        ..empty(at)
    }
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

fn number(value: f64) -> String {
    if value.abs() >= 10.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

fn clock(at: Time) -> String {
    match jiff::Timestamp::from_nanosecond(i128::from(at.nanos())) {
        Ok(t) => t.strftime("%H:%M:%S").to_string(),
        Err(_) => at.to_string(),
    }
}

/// `the router sends DP2 more`.
pub fn statement(case: &Case<'_>, found: &Found) -> String {
    let rank = rank_name(&case.finding.rank);
    let peer = found.peer.map(|i| rank_name(&case.course.members[i].labels));
    match found.kind {
        CauseKind::MoreRequests => match found.requests {
            Requests::Any => format!("the router sends {rank} more"),
            Requests::Cached => format!("the router sends {rank} more, requests whose prefix it has cached"),
            Requests::NotRouted => format!("{rank} gets more requests, and not from the router"),
        },
        CauseKind::FewerRequests if !found.unknown.is_empty() => {
            format!("the router sends {rank} nothing, or it has left")
        }
        CauseKind::FewerRequests if found.requests == Requests::NotRouted => {
            format!("{rank} gets fewer requests, though the router sends it as many as before")
        }
        CauseKind::FewerRequests => format!("the router sends {rank} fewer requests"),
        CauseKind::LongerPrompts => format!("the prompts of {rank} are longer"),
        CauseKind::CacheMisses => format!("the prompts of {rank} are found less often in its cache"),
        CauseKind::Slower => format!("{rank} is slower at equal work"),
        CauseKind::SlowGpu => format!("the GPU of {rank} is slower at equal work"),
        CauseKind::SlowHost => match peer {
            Some(peer) => format!("the host of {peer} is slow, and all ranks got slower with it"),
            None => format!("the host of {rank} is slow: its GPU waits"),
        },
        CauseKind::Stuck if !found.unknown.is_empty() => {
            format!("{rank} fell silent: it stands still, or has left")
        }
        CauseKind::Stuck => format!("{rank} has work and stands still"),
        CauseKind::Memory => format!("{rank} has no room in its KV cache"),
        CauseKind::Transfer => format!("{rank} waits for KV caches to be transferred"),
        CauseKind::PeerLeft => match peer {
            Some(peer) if peer == rank => format!("{rank} has left"),
            Some(peer) if !found.unknown.is_empty() => {
                format!("{peer} fell silent: it stands still, or has left, and its requests go to the others")
            }
            Some(peer) => format!("{peer} has left, and its requests go to the others"),
            None => "a rank has left".into(),
        },
        CauseKind::Capture => "somebody's profile disturbed the server".into(),
        CauseKind::Unknown => "unknown".into(),
    }
}

/// `its share of requests 25 % -> 61 %, from 03:48:38 on, 2.6 s before the onset`.
pub fn change(case: &Case<'_>, kind: CauseKind, term: Term, departed: Option<Time>) -> String {
    let mut text = course(kind, term);
    if let Some(at) = departed {
        let before = case.finding.onset.signed_s_since(at);
        let when = match () {
            () if before.abs() <= case.finding.onset_error_s.max(WITH_THE_ONSET_S) => "with the onset".into(),
            () if before > 0.0 => format!("{before:.1} s before the onset"),
            () => format!("{:.1} s after the onset", -before),
        };
        text += &format!(", from {} on, {when}", clock(at));
    }
    text
}

fn course(kind: CauseKind, term: Term) -> String {
    let ((b, a), (pb, pa)) = (term.own, term.peers);
    match kind {
        CauseKind::LongerPrompts => format!(
            "tokens per prompt {} -> {}, its peers' {} -> {}",
            number(b),
            number(a),
            number(pb),
            number(pa)
        ),
        CauseKind::CacheMisses => format!(
            "share of prompt tokens found in its cache {} -> {}, its peers' {} -> {}",
            percent(1.0 - b),
            percent(1.0 - a),
            percent(1.0 - pb),
            percent(1.0 - pa)
        ),
        CauseKind::Slower => format!(
            "speed at equal work {} -> {}, its peers' {} -> {}",
            number(b),
            number(a),
            number(pb),
            number(pa)
        ),
        _ => format!("its share of requests {} -> {}", percent(b), percent(a)),
    }
}

/// `the router's own counter: its share 25 % -> 61 % of what was sent`.
pub fn sent(term: &Term) -> String {
    let (before, after) = term.own;
    format!("the router's own counter: its share {} -> {} of what was sent", percent(before), percent(after))
}

/// Lists what did not change by more than `noted` standard errors, with its numbers; the cache as well if it
/// is asked about.
pub fn rule_out(
    cause: &mut Cause,
    case: &Case<'_>,
    factors: &[(CauseKind, Term)],
    (noted, with_cache): (f64, bool),
) {
    for (kind, term) in factors.iter().filter(|(_, t)| t.own != (0.0, 0.0) && t.z.abs() < noted) {
        cause.ruled_out.push(course(*kind, *term));
    }
    let usage = case.course.members[case.blamed].of(catalog::KV_USAGE).at(case.now);
    if let Some(usage) = usage.filter(|u| with_cache && *u < 0.8) {
        cause.ruled_out.push(format!("KV cache {} full", percent(usage)));
    }
}

/// Nothing showed.
pub fn unknown(cause: &mut Cause, case: &Case<'_>) {
    cause.statement = "unknown: nothing that is exposed departed with the onset".into();
    if !case.course.has(catalog::ADMISSIONS) {
        let text = "requests and tokens per request: not exposed; the server's log or --enable-metrics would show them";
        cause.unknown.push(text.into());
    }
    if !case.course.has(catalog::GPU_BUSY) {
        cause.unknown.push(NO_DEVICE_TIMER.into());
    }
    if !case.course.has(catalog::RUN_DELAY) {
        cause.unknown.push(NO_HOST.into());
    }
    cause.unknown.push("whether outputs are longer: no engine says so before they end".into());
}

pub fn last_told(since: Option<Time>, running: f64, usual: f64) -> String {
    let when =
        since.map_or_else(|| "nothing was heard of it".into(), |at| format!("nothing since {}", clock(at)));
    if usual > 0.0 {
        format!("{when}, with {} requests running then, {} usually", number(running), number(usual))
    } else {
        when
    }
}

pub fn stands_still(running: f64) -> String {
    format!("no token in the last seconds, with {} requests running", number(running))
}

pub fn less_cpu(before: f64, after: f64) -> String {
    format!("CPU seconds of its scheduler per second {} -> {}", number(before), number(after))
}

pub fn gpu_seconds(growth: f64) -> String {
    format!("GPU seconds for the same work times {}", number(growth.exp()))
}

pub fn between(growth: f64, slowness: f64) -> String {
    let part = (growth / slowness).clamp(0.0, 1.0);
    format!("whether its GPU or its host is slow: GPU seconds explain {} of it", percent(part))
}

pub fn full(own: f64, before: f64, peers: f64, thrown: f64, waiting: f64) -> String {
    format!(
        "KV cache {} -> {} full, its peers' at most {}; {} retracted, {} waiting",
        percent(before),
        percent(own),
        percent(peers),
        number(thrown),
        number(waiting)
    )
}

pub fn transfers(before: f64, after: f64, peers: f64) -> String {
    format!(
        "requests in transfer {} -> {}, its peers' at most {}",
        number(before),
        number(after),
        number(peers)
    )
}

pub fn profiled(at: Time) -> String {
    format!("a profile was open at {}", clock(at))
}
