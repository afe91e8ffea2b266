//! Whole captures of real servers, of which the repository holds the parts that matter.

use std::path::PathBuf;

use crate::beside::recording;
use crate::support::comparison::{attention_of, check_nsight, compared, lost, named, skew};
use skewtrap::agent::compare::{CompareRequest, RankOverrides, run};
use skewtrap_trace::verdict::{Kind, Place};
use skewtrap_trace::{Part, Rank, RankId};

#[test]
fn the_whole_window_while_the_backlog_drained_says_what_its_part_says() {
    let Some(draining) = recording("sglang-0.5.16-dp4/traces/draining") else { return };
    let c = compared(&[draining]);
    assert_eq!(named(&c), attention_of("DP2"));
    assert!(lost(&c) < lost(&compared(&[skew()])));
}

#[test]
fn the_whole_nsight_window_says_what_its_part_says() {
    let Some(window) = recording("sglang-0.5.16-dp4-nsys/window.sqlite.gz") else { return };
    check_nsight(window);
}

/// The folder of a window: the one under `parent` whose name ends so.
fn window(parent: &str, ending: &str) -> Option<PathBuf> {
    let folders = std::fs::read_dir(recording(parent)?).expect("a folder");
    folders.flatten().map(|f| f.path()).find(|p| p.to_string_lossy().ends_with(ending))
}

#[test]
fn a_stopped_or_crowded_scheduler_is_a_slow_host_and_long_prompts_are_uneven_work() {
    let parent = "sglang-0.5.16-dp4-troubles/traces";
    for (ending, kind, rank, by) in [
        ("37e1", Kind::UnevenWork, Some("DP1"), Some(Place::Gpu)),
        ("c7f5", Kind::UnevenWork, Some("DP1"), Some(Place::Gpu)),
        ("6cf5", Kind::SlowRank, Some("DP0"), Some(Place::Host)),
        ("8f9c", Kind::InsufficientEvidence, None, None),
        ("e845", Kind::SlowRank, Some("DP2"), Some(Place::Host)),
        ("5582", Kind::SlowRank, Some("DP2"), Some(Place::Host)),
        ("0ff8", Kind::UnevenWork, Some("DP3"), Some(Place::Gpu)),
    ] {
        let Some(window) = window(parent, ending) else { return };
        let v = compared(&[window]).comparison.verdict;
        let seen = (v.kind, v.rank.map(|r| r.to_string()), v.by);
        assert_eq!(seen, (kind, rank.map(str::to_owned), by), "{ending}: {}", v.sentence);
    }
}

#[test]
fn windows_of_kernels_alone_say_what_windows_with_everything_say() {
    let of = |name| {
        let window = window("sglang-0.5.16-dp4-kernels/traces", name)?;
        Some(compared(&[window]))
    };
    let (Some(alone), Some(both)) = (of("skew2-gpu-30"), of("skew2-both-10")) else { return };
    assert_eq!(named(&alone), attention_of("DP2"));
    assert_eq!(named(&both), attention_of("DP2"));
    assert_eq!(alone.comparison.verdict.confidence, both.comparison.verdict.confidence);
    let slow = of("slow0-gpu-30").expect("beside the others").comparison.verdict;
    assert_eq!(
        (slow.kind, slow.rank, slow.by),
        (Kind::SlowRank, Some(RankId::Rank(Rank::dp(0))), Some(Place::Host))
    );
    let step = slow.step.expect("a culprit has one");
    assert!(step.beyond_ms.host > 25.0 && step.largest == Part::Host, "{step:?}");
    let healthy = of("healthy-gpu-10").expect("beside the others").comparison.verdict;
    assert_eq!((healthy.kind, healthy.rank), (Kind::NoFinding, None));
}

#[test]
fn two_engines_of_vllm_that_call_their_files_rank0_are_told_apart_by_process() {
    let Some(traces) = recording("vllm-0.32-cpu-dp2/traces") else { return };
    let v = compared(std::slice::from_ref(&traces)).comparison.verdict;
    assert_eq!((v.kind, v.rank), (Kind::IdleTail, Some(RankId::Pid(3466))), "{}", v.sentence);
    let pids = [(3460, Rank::dp(1)), (3466, Rank::dp(0))].into_iter().collect();
    let rank_overrides = RankOverrides { pids, ..RankOverrides::default() };
    let named =
        run(&CompareRequest { paths: vec![traces], rank_overrides, ..CompareRequest::default() }, &|_| {})
            .expect("it compares");
    assert_eq!(named.comparison.verdict.rank, Some(RankId::Rank(Rank::dp(0))));
}
