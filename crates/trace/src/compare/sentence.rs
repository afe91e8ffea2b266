//! The sentence that people read first: which rank, how much longer its steps take, and where that time
//! goes.

use crate::enough::TooFewSteps;
use crate::ms::Ms;
use crate::rank::RankId;
use crate::split::{Part, StepSplit};
use crate::step::StepKind;
use crate::verdict::{Kind, Place, Verdict};

/// Steps that differ by less are called equal: then the sentence is about the work alone.
const WORTH_TELLING: f64 = 0.15;

/// Beside host time GPU work that differs by less than this share of it is not told.
const NOISE: f64 = 0.01;

/// Batches that differ by a smaller factor are not told.
const WORTH_COUNTING: f64 = 1.2;

/// What the sentence needs beside the verdict.
#[derive(Clone, Copy, Debug)]
pub struct SentenceInput<'a> {
    /// By how much longer its GPU works in each step than its peers', milliseconds.
    pub work_ms: f64,
    /// The requests of its batches and of its peers', where the steps tell them.
    pub batches: Option<(f64, f64)>,
    /// The reason for insufficient evidence.
    pub doubt: Option<&'a String>,
    /// Where that is steps alone: what is there, and what is needed.
    pub too_few: Option<TooFewSteps>,
}

/// The verdict about `rank`: what is concluded first, then what shows it.
pub fn of(v: &Verdict, rank: RankId, told: SentenceInput<'_>) -> String {
    let SentenceInput { work_ms, batches, doubt, too_few } = told;
    let lost = v.lost_ms_per_step.unwrap_or(0.0);
    match (v.kind, v.by) {
        (Kind::UnevenWork, _) => {
            format!("{rank} has more to do than its peers: {}.", more(v, work_ms, batches))
        }
        (Kind::SlowRank, Some(Place::Host)) => {
            let beyond = format!("{} of host time a step are beyond what its work accounts for", Ms(lost));
            match steps(v, work_ms) {
                shown if shown.is_empty() => format!("{rank} is slowed by its host: {beyond}."),
                shown => format!("{rank} is slowed by its host{shown}; {beyond}."),
            }
        }
        (Kind::SlowRank, _) => {
            format!("{rank} is slower than its peers at the same work{}.", steps(v, work_ms))
        }
        _ if let Some(few) = too_few => format!(
            "The traces do not tell: the window has {} step{} on the rank with the fewest, which may show a passing moment; about {} steps on every rank would tell.",
            few.steps,
            if few.steps == 1 { "" } else { "s" },
            few.needed
        ),
        _ => {
            let why =
                doubt.map_or("the evidence is contradictory", |why| why.strip_prefix("but ").unwrap_or(why));
            format!("The traces do not tell: {}, which is no finding, because {why}.", seen(v, rank))
        }
    }
}

/// In what a rank differs, where that is no finding.
pub fn seen(v: &Verdict, rank: RankId) -> String {
    let lost = Ms(v.lost_ms_per_step.unwrap_or(0.0));
    match v.by {
        Some(Place::Host) => {
            format!("the GPU of {rank} idles {lost} a step longer than its launches account for")
        }
        _ => format!("{rank} has {lost} more GPU work a step than its peers"),
    }
}

/// Where the time of its steps goes: `: its steps take 21.9 ms, its peers' 4.0; 97 % of that ..`.
fn steps(v: &Verdict, work_ms: f64) -> String {
    // Beside what a host loses a few microseconds of work say nothing.
    let is_noise = v.by == Some(Place::Host) && work_ms.abs() < NOISE * v.lost_ms_per_step.unwrap_or(0.0);
    let work = if is_noise { String::new() } else { work(v, work_ms) };
    match &v.step {
        Some(s) if s.relative() >= WORTH_TELLING && s.largest != Part::Work => format!(
            ": its steps take {}, its peers' {}; {:.0} % of the difference is {}{}{}{work}",
            Ms(s.wall_ms),
            Ms(s.peers_wall_ms),
            s.largest_share * 100.0,
            s.largest.phrase(),
            place(s),
            if is_noise { "" } else { "; beside that " },
        ),
        _ if is_noise => String::new(),
        _ => format!(": {work}"),
    }
}

/// More work: larger batches and what they cost the GPU, then what becomes of the steps. Their largest part may be host
/// time, which would sound like a slow host if it came first.
fn more(v: &Verdict, work_ms: f64, batches: Option<(f64, f64)>) -> String {
    let larger = batches.filter(|(own, peers)| *own >= WORTH_COUNTING * peers);
    let batches = larger.map_or_else(String::new, |(own, peers)| {
        format!("its batches have {own:.1} requests, theirs {peers:.1}; ")
    });
    let work = work(v, work_ms);
    let steps = match &v.step {
        Some(s) if s.relative() >= WORTH_TELLING && s.largest != Part::Work => format!(
            "; its steps take {}, theirs {}, and {:.0} % of the difference is {}{}{}",
            Ms(s.wall_ms),
            Ms(s.peers_wall_ms),
            s.largest_share * 100.0,
            s.largest.phrase(),
            place(s),
            if s.largest == Part::Host { ", which its work accounts for" } else { "" },
        ),
        _ => String::new(),
    };
    format!("{batches}{work}{steps}")
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rank::Rank;
    use crate::split::Split;
    use crate::verdict::Confidence;

    /// A rank with more to do, most of whose longer steps is host time.
    fn verdict() -> Verdict {
        let mut v = Verdict::without_rank(Kind::UnevenWork, Confidence::High, String::new());
        let split = |work, host| {
            Split::from_parts(|part| match part {
                Part::Work => work,
                Part::Host => host,
                _ => 0.0,
            })
        };
        v.by = Some(Place::Gpu);
        v.lost_share = Some(1.2);
        v.step = Some(StepSplit::new(split(1.0, 20.9), split(0.5, 3.5), 4.0, &[]));
        v
    }

    #[test]
    fn beside_what_a_host_loses_microseconds_of_work_are_not_told() {
        let mut v = verdict();
        (v.kind, v.by, v.lost_ms_per_step, v.step) = (Kind::SlowRank, Some(Place::Host), Some(14.6), None);
        let told = |v: &Verdict, work_ms| {
            of(
                v,
                RankId::Rank(Rank::tp(1)),
                SentenceInput { work_ms, batches: None, doubt: None, too_few: None },
            )
        };
        let beyond = "14.6 ms of host time a step are beyond what its work accounts for.";
        assert_eq!(told(&v, -0.0021), format!("TP1 is slowed by its host: {beyond}"));
        assert_eq!(told(&v, 0.4), format!("TP1 is slowed by its host: GPU work +0.40 ms; {beyond}"));
        v.step = verdict().step;
        let both = told(&v, -0.0021);
        assert!(both.contains("host time before kernels; 14.6 ms of host time"), "{both}");
        assert!(told(&v, 0.4).contains("; beside that GPU work +0.40 ms; "), "{both}");
    }

    #[test]
    fn too_few_steps_say_how_many_there_are_and_how_many_are_needed_and_name_no_rank() {
        let mut v = verdict();
        v.kind = Kind::InsufficientEvidence;
        let too_few = Some(TooFewSteps { steps: 3, needed: 8 });
        let doubt = "but all its kernels are 1.30 times slower".to_owned();
        let told = |v: &Verdict, too_few| {
            let doubt = Some(&doubt);
            of(v, RankId::Rank(Rank::dp(2)), SentenceInput { work_ms: 0.1, batches: None, doubt, too_few })
        };
        for by in [Place::Gpu, Place::Host] {
            v.by = Some(by);
            let few = told(&v, too_few);
            assert!(few.contains(" has 3 steps ") && few.contains("about 8 steps on every rank"), "{few}");
            assert!(!few.contains("DP2"), "{few}");
            let other = told(&v, None);
            assert!(other.contains("no finding, because all its kernels are 1.30"), "{other}");
        }
    }

    #[test]
    fn more_work_is_said_by_the_work_first_and_host_time_that_it_accounts_for_last() {
        let rank = RankId::Rank(Rank::dp(2));
        let told = of(
            &verdict(),
            rank,
            SentenceInput { work_ms: 0.5, batches: Some((46.0, 9.0)), doubt: None, too_few: None },
        );
        let (work, host) = (told.find("of GPU work"), told.find("host time"));
        assert!(
            told.starts_with(
                "DP2 has more to do than its peers: its batches have 46.0 requests, theirs 9.0; "
            ),
            "{told}"
        );
        assert!(work.is_some() && work < host, "{told}");
        assert!(told.ends_with("host time before kernels, which its work accounts for."), "{told}");
        let alike = of(
            &verdict(),
            rank,
            SentenceInput { work_ms: 0.5, batches: Some((10.0, 9.0)), doubt: None, too_few: None },
        );
        assert!(alike.starts_with("DP2 has more to do than its peers: 0.50 ms of GPU work"), "{alike}");
    }
}
