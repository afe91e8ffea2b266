//! The sentence that people read first: which rank, how much longer its steps take, and where that time
//! goes.

use crate::ms::Ms;
use crate::rank::RankId;
use crate::split::{Part, StepSplit};
use crate::step::StepKind;
use crate::verdict::{Kind, Place, Verdict};

/// Steps that differ by less are called equal: then the sentence is about the work alone.
const WORTH_TELLING: f64 = 0.15;

/// The verdict about `rank`, whose GPU works `work_ms` longer in each step than its peers'; `doubt` is
/// the reason for insufficient evidence.
pub fn of(v: &Verdict, rank: RankId, work_ms: f64, doubt: Option<&String>) -> String {
    let lost = v.lost_ms_per_step.unwrap_or(0.0);
    match (v.kind, v.by) {
        (Kind::UnevenWork, _) => format!("{rank} has more to do than its peers{}.", steps(v, work_ms)),
        (Kind::SlowRank, Some(Place::Host)) => format!(
            "{rank} is slowed by its host{}; {} of host time a step are beyond what its work accounts for.",
            steps(v, work_ms),
            Ms(lost)
        ),
        (Kind::SlowRank, _) => {
            format!("{rank} is slower than its peers at the same work{}.", steps(v, work_ms))
        }
        (_, by) => {
            let why = doubt.map(String::as_str).unwrap_or("the evidence is contradictory");
            let what = if by == Some(Place::Host) { " of host time" } else { "" };
            format!(
                "{rank} stands out by {}{what} per step, but the traces do not tell why: {why}.",
                Ms(lost)
            )
        }
    }
}

/// Where the time of its steps goes: `: its steps take 21.9 ms, its peers' 4.0; 97 % of that ..`.
fn steps(v: &Verdict, work_ms: f64) -> String {
    let work = work(v, work_ms);
    match &v.step {
        Some(s) if s.relative() >= WORTH_TELLING && s.largest != Part::Work => format!(
            ": its steps take {}, its peers' {}; {:.0} % of the difference is {}{}{}; beside that {work}",
            Ms(s.wall_ms),
            Ms(s.peers_wall_ms),
            s.largest_share * 100.0,
            s.largest.phrase(),
            place(s),
            // Host time sounds like a slow host.
            if v.kind == Kind::UnevenWork && s.largest == Part::Host {
                ", which its work accounts for"
            } else {
                ""
            },
        ),
        _ => format!(": {work}"),
    }
}

/// In which steps the host time lies, where that tells something.
fn place(s: &StepSplit) -> &'static str {
    match s.host_in.filter(|_| s.largest == Part::Host) {
        Some(StepKind::Extend) => ", in prefill steps",
        Some(StepKind::Decode) => ", in decode steps",
        _ => "",
    }
}

/// `0.56 ms more GPU work a step (+120 %), 69 % of it in attention (_fwd_grouped_kernel_stage1)`.
fn work(v: &Verdict, work_ms: f64) -> String {
    if v.by == Some(Place::Host) {
        let sign = if work_ms < 0.0 { "-" } else { "+" };
        return format!("GPU work {sign}{}", Ms(work_ms.abs()));
    }
    let percent = v.lost_share.unwrap_or(0.0) * 100.0;
    let most = v.causes.first().map_or_else(String::new, |c| {
        format!(", {:.0} % of it in {} ({})", c.share.min(1.0) * 100.0, c.family.name(), c.kernel)
    });
    format!("{} of GPU work a step beyond their median (+{percent:.0} %){most}", Ms(work_ms))
}
