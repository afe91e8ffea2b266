//! Whether the facts about a server allow a window on it now, and which ranks would be in it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::capture::facts::{Facts, HealthAnswer, ServerFacts};
use crate::capture::refusal::Refusal;
use crate::capture::verify::expected_ranks;
use crate::factor::Progress;
use skewtrap_trace::rank::{Axis, Rank};
use skewtrap_trace::time::Time;

/// Facts older than this open no window.
pub const FRESH: Duration = Duration::from_secs(30);

/// With idle ranks, the log must have been free of anybody else's window for this long.
pub const FOREIGN_QUIET: Duration = Duration::from_secs(60);

/// What pre-flight found: who is in the window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranks {
    /// Had work in the last moments.
    pub busy: Vec<Rank>,
    /// Had none.
    pub idle: Vec<Rank>,
}

/// What a window needs of the disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Bytes that a window may write.
    pub bytes: u64,
    /// Bytes that must stay free.
    pub floor: u64,
}

/// Checks what holds for every way to capture: known, fresh, healthy, nobody else's window, room.
pub fn check(facts: &Facts, need: Need, now: Time) -> Result<&ServerFacts, Refusal> {
    let server = server(facts)?;
    health(facts, now)?;
    if let Some((since, dir)) = facts.foreign.open_at(now) {
        return Err(Refusal::Foreign { since, dir: dir.to_owned() });
    }
    folders(facts, need, now)?;
    Ok(server)
}

/// What the server says of itself; refuses where it does not answer, which is no rank's trouble.
pub fn server(facts: &Facts) -> Result<&ServerFacts, Refusal> {
    let known = facts.server.as_ref();
    known.ok_or_else(|| match (facts.unanswered, facts.health.last()) {
        (Some(since), Some((_, HealthAnswer::Unhealthy(why)))) => {
            Refusal::NoAnswer { since, why: why.clone() }
        }
        (Some(since), _) => Refusal::NoAnswer { since, why: "it is asked again every few seconds".into() },
        (None, _) => Refusal::UnknownServer { why: "no answer to that yet, or none since it was lost; the agent's log says what was wrong with the last one".into() },
    })
}

/// Refuses as long as a rank has work and does not move, and for a while after: a window cannot be ended
/// on a rank that hangs. A rank without work is none of those.
pub fn progress(facts: &Facts) -> Result<(), Refusal> {
    // A stuck rank is reported before a suspected one.
    let mut doubt = Ok(());
    for (dp, progress) in &facts.progress {
        let rank = Rank::dp(*dp);
        match progress {
            Progress::Stuck(s) => {
                return Err(Refusal::RankStuck { rank, still: Duration::from_secs_f64(s.max(0.0)) });
            }
            Progress::Wakes(s) => {
                return Err(Refusal::RankWakes { rank, ago: Duration::from_secs_f64(s.max(0.0)) });
            }
            Progress::InDoubt(s) if doubt.is_ok() => {
                doubt = Err(Refusal::NoProgress { rank, still: Duration::from_secs_f64(s.max(0.0)) });
            }
            Progress::InDoubt(_) | Progress::Moves => {}
        }
    }
    doubt
}

/// The ranks of the server: by the sizes that it reports, else by who has reported work or its absence within
/// [`FRESH`]. A number between two of them is of a rank that is silent.
pub fn ranks_of(facts: &Facts, server: &ServerFacts, now: Time) -> Vec<Rank> {
    if server.engine.reports_its_sizes() {
        return expected_ranks(&server.sizes);
    }
    let reports = facts.last_work.iter().chain(&facts.last_idle).filter(|(_, at)| now.since(**at) <= FRESH);
    let reported = reports.filter_map(|(rank, _)| rank.get(Axis::Dp));
    // Who asked the server may have counted them too.
    let counted = (server.sizes.dp > 1).then_some([0, server.sizes.dp - 1]).into_iter().flatten();
    let numbers: Vec<u16> = reported.chain(counted).collect();
    match (numbers.iter().min(), numbers.iter().max()) {
        (Some(first), Some(last)) if first < last => (*first..=*last).map(Rank::dp).collect(),
        _ => vec![Rank::NONE],
    }
}

/// Which ranks would be in the window; refuses when none had work, or none has reported.
pub fn ranks(facts: &Facts, server: &ServerFacts, now: Time) -> Result<Ranks, Refusal> {
    let reported_at =
        facts.ranks_at.ok_or(Refusal::Stale { what: "the ranks' work", age: FRESH, limit: FRESH })?;
    fresh("the ranks' work", reported_at, now)?;
    let (busy, idle): (Vec<_>, Vec<_>) =
        ranks_of(facts, server, now).into_iter().partition(|rank| facts.is_busy(*rank, now));
    if busy.is_empty() { Err(Refusal::AllIdle) } else { Ok(Ranks { busy, idle }) }
}

fn fresh(what: &'static str, at: Time, now: Time) -> Result<(), Refusal> {
    let age = now.since(at);
    if age > FRESH { Err(Refusal::Stale { what, age, limit: FRESH }) } else { Ok(()) }
}

fn health(facts: &Facts, now: Time) -> Result<(), Refusal> {
    let Some((at, answer)) = facts.health.last() else {
        return Err(Refusal::Stale { what: "the server's health", age: FRESH, limit: FRESH });
    };
    fresh("the server's health", *at, now)?;
    match answer {
        HealthAnswer::Unhealthy(answer) => Err(Refusal::Unhealthy { answer: answer.clone() }),
        HealthAnswer::Healthy(took) => {
            let median = facts.health.median().unwrap_or(*took);
            if is_slow(*took, median) { Err(Refusal::Slow { took: *took, median }) } else { Ok(()) }
        }
    }
}

/// Whether an answer is far slower than usual: more than 2 s and more than three times the median.
pub fn is_slow(took: Duration, median: Duration) -> bool {
    took > Duration::from_secs(2) && took > median * 3
}

fn folders(facts: &Facts, need: Need, now: Time) -> Result<(), Refusal> {
    for folder in &facts.folders {
        fresh("the room on the server's disks", folder.at, now)?;
        let path = || folder.server_path.clone();
        match folder.seen {
            None => {}
            Some(room) if !room.exists => {
                return Err(Refusal::BadFolder { path: path(), why: "is not there, or is no folder" });
            }
            Some(room) if !room.writable => {
                return Err(Refusal::BadFolder {
                    path: path(),
                    why: "is on a file system that takes no writes",
                });
            }
            Some(room) if room.free < need.floor.saturating_add(need.bytes) => {
                return Err(Refusal::DiskLow {
                    path: path(),
                    free: room.free,
                    need: need.bytes,
                    floor: need.floor,
                });
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// For a start that cannot refuse a double: the log was free of anybody else's window for a while.
pub fn quiet(facts: &Facts, now: Time) -> Result<(), Refusal> {
    match facts.foreign.last() {
        Some(last) if now.since(last) < FOREIGN_QUIET => {
            Err(Refusal::ForeignRecently { ago: now.since(last) })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::facts::{Folder, Room, Sizes};
    use crate::capture::line::ProfileLine;
    use serde_json::json;

    const NEED: Need = Need { bytes: 100, floor: 1000 };

    fn at(s: f64) -> Time {
        Time::from_epoch_s(1000.0 + s)
    }

    fn good() -> Facts {
        let mut facts = Facts {
            server: Some(ServerFacts::of_server_info(&json!({"version": "0.5.16", "dp_size": 2}))),
            sees_log: true,
            ..Facts::default()
        };
        facts.health.answered(HealthAnswer::Healthy(Duration::from_secs(1)), at(-1.0));
        facts.folder_seen(Folder {
            server_path: "/p".into(),
            seen: Some(Room { exists: true, writable: true, free: 5000 }),
            at: at(-1.0),
        });
        facts.rank_seen(Rank::dp(0), true, at(-1.0));
        facts.rank_seen(Rank::dp(1), true, at(-1.0));
        facts
    }

    /// What a change to good facts makes of the decision.
    fn verdict(change: impl FnOnce(&mut Facts)) -> String {
        let mut facts = good();
        change(&mut facts);
        let decided = check(&facts, NEED, at(0.0)).and_then(|s| ranks(&facts, s, at(0.0)));
        decided.map_or_else(|r| r.word().to_owned(), |_| "ok".to_owned())
    }

    #[test]
    fn one_wrong_fact_is_enough_to_refuse() {
        assert_eq!(verdict(|_| {}), "ok");
        assert_eq!(verdict(|f| f.server_lost(at(0.0))), "no_answer");
        assert_eq!(verdict(|f| f.server = None), "unknown_server");
        assert_eq!(verdict(|f| f.health = crate::capture::facts::Health::default()), "stale_facts");
        assert_eq!(
            verdict(|f| f.health.answered(HealthAnswer::Unhealthy("503".into()), at(0.0))),
            "unhealthy"
        );
        let slow = HealthAnswer::Healthy(Duration::from_secs(8));
        assert_eq!(verdict(|f| f.health.answered(slow, at(0.0))), "slow");
        let starts = ProfileLine::Starts { dir: "/x".into(), id: None };
        let forged = |f: &mut Facts| f.profile_line(Rank::dp(0), &starts, at(-3600.0));
        assert_eq!(verdict(forged), "ok", "a start that never ends, which anybody may have written");
        assert_eq!(verdict(|f| f.profile_line(Rank::dp(0), &starts, at(-20.0))), "foreign_window");
        assert_eq!(verdict(|f| f.folders[0].at = at(-31.0)), "stale_facts");
        let room = |exists, writable, free| Some(Room { exists, writable, free });
        assert_eq!(verdict(|f| f.folders[0].seen = room(false, true, 5000)), "bad_folder");
        assert_eq!(verdict(|f| f.folders[0].seen = room(true, false, 5000)), "bad_folder");
        assert_eq!(verdict(|f| f.folders[0].seen = room(true, true, 1099)), "disk_low");
        assert_eq!(verdict(|f| f.folders[0].seen = None), "ok", "out of sight is no refusal");
        assert_eq!(verdict(|f| f.ranks_at = Some(at(-31.0))), "stale_facts");
        assert_eq!(verdict(|f| f.last_work.clear()), "all_idle");
    }

    #[test]
    fn a_server_that_stopped_is_told_as_that_and_since_when() {
        let mut facts = good();
        facts.server_lost(at(5.0));
        facts.health.answered(HealthAnswer::Unhealthy("cannot connect to it".into()), at(15.0));
        facts.server_lost(at(15.0));
        let refused = server(&facts).expect_err("it is gone");
        insta::assert_snapshot!(refused, @"the server has not answered since 1970-01-01 00:16:45.0 UTC (cannot connect to it): see whether its process runs, and what its log says last; no window is opened before it answers again");
        assert_eq!(refused.word(), "no_answer");
    }

    #[test]
    fn a_rank_that_does_not_move_refuses_and_the_one_that_is_stuck_is_named() {
        let with = |all: &[Progress]| {
            let facts = Facts { progress: (0..).zip(all.iter().copied()).collect(), ..good() };
            progress(&facts)
        };
        use Progress::{InDoubt, Moves, Stuck, Wakes};
        assert_eq!(with(&[]), Ok(()), "nothing is known of any");
        assert_eq!(with(&[Moves, Moves]), Ok(()));
        let refused = with(&[InDoubt(2.0), Moves, Stuck(5.0)]).unwrap_err();
        assert_eq!((refused.word(), refused.awaits_facts()), ("rank_stuck", false));
        insta::assert_snapshot!(refused, @"DP2 has not moved for 5 s while its peers have; a window cannot be ended on a rank that hangs, so none is opened before it has moved again for 10 s");
        let refused = with(&[Moves, Wakes(3.0)]).unwrap_err();
        assert_eq!((refused.word(), refused.again_in()), ("rank_stuck", Some(Duration::from_secs(7))));
        let refused = with(&[Moves, InDoubt(1.5)]).unwrap_err();
        assert_eq!((refused.word(), refused.awaits_facts()), ("no_progress", true));
        insta::assert_snapshot!(refused, @"DP1 has work and nothing has been seen of its progress for 1.5 s; a window cannot be ended on a rank that hangs, so it is looked at again in a second");
    }

    #[test]
    fn a_good_answer_of_one_second_is_no_sign_of_illness() {
        assert!(!is_slow(Duration::from_millis(1_300), Duration::from_millis(1_000)));
        assert!(
            !is_slow(Duration::from_millis(1_900), Duration::from_millis(2)),
            "one hiccup of a fast server"
        );
        assert!(is_slow(Duration::from_secs(8), Duration::from_secs(1)));
    }

    #[test]
    fn busy_and_idle_ranks_are_told_apart() {
        let mut facts = good();
        facts.last_work.insert(Rank::dp(0), at(-9.0));
        let server = facts.server.clone().unwrap();
        let ranks = ranks(&facts, &server, at(0.0)).unwrap();
        assert_eq!((ranks.busy, ranks.idle), (vec![Rank::dp(1)], vec![Rank::dp(0)]));
        assert_eq!(server.sizes, Sizes { dp: 2, ..Sizes::default() });
    }

    #[test]
    fn ranks_that_the_engine_does_not_count_are_counted_by_what_they_report() {
        use crate::capture::facts::ServerKind;
        for server in [
            ServerFacts::of_dynamo(ServerKind::DynamoSglang, "m", 1),
            ServerFacts::of_tensorrt_llm("1.3.0", 1),
            ServerFacts::of_vllm("0.33.0", 1),
        ] {
            let mut facts = Facts { server: Some(server.clone()), ..Facts::default() };
            let of = |facts: &Facts, s| ranks(facts, &server, at(s)).map(|r| (r.busy, r.idle));
            assert_eq!(of(&facts, 0.0).unwrap_err().word(), "stale_facts", "no rank has reported");
            facts.rank_seen(Rank::dp(0), true, at(-1.0));
            assert_eq!(of(&facts, 0.0), Ok((vec![Rank::NONE], vec![])), "it has one");
            facts.rank_seen(Rank::dp(1), false, at(-1.0));
            assert_eq!(of(&facts, 0.0), Ok((vec![Rank::dp(0)], vec![Rank::dp(1)])));
            facts.rank_seen(Rank::dp(3), true, at(-1.0));
            let silent = of(&facts, 0.0).unwrap();
            assert_eq!(silent, (vec![Rank::dp(0), Rank::dp(3)], vec![Rank::dp(1), Rank::dp(2)]));
            facts.rank_seen(Rank::dp(0), true, at(40.0));
            assert_eq!(of(&facts, 40.0), Ok((vec![Rank::NONE], vec![])), "the others are gone");
        }
    }

    #[test]
    fn the_form_that_cannot_refuse_a_double_asks_for_a_quiet_minute() {
        let mut facts = good();
        assert_eq!(quiet(&facts, at(0.0)), Ok(()));
        facts.profile_line(Rank::dp(0), &ProfileLine::Stops, at(-59.0));
        assert_eq!(quiet(&facts, at(0.0)).unwrap_err().word(), "foreign_recently");
        assert_eq!(quiet(&facts, at(1.0)), Ok(()));
    }
}
