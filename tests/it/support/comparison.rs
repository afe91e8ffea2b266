//! Captures to compare, and what was said of them, for the tests.

use std::path::{Path, PathBuf};

use skewtrap::agent::compare::{CompareRequest, Compared, RankOverrides, run};
use skewtrap_trace::kernel::Family;
use skewtrap_trace::rank::Rank;
use skewtrap_trace::verdict::Kind;

pub fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

pub fn skew() -> PathBuf {
    here("src/demo/data/skew")
}

pub fn compared(paths: &[PathBuf]) -> Compared {
    run(&CompareRequest { paths: paths.to_vec(), ..CompareRequest::default() }, &|_| {}).expect("it compares")
}

pub fn refused(paths: &[PathBuf]) -> String {
    match run(&CompareRequest { paths: paths.to_vec(), ..CompareRequest::default() }, &|_| {}) {
        Ok(c) => panic!("it should be refused, but said: {}", c.comparison.verdict.sentence),
        Err(e) => e.to_string(),
    }
}

pub fn named(c: &Compared) -> (Kind, Option<String>, Option<Family>, String) {
    let v = &c.comparison.verdict;
    let cause = v.causes.first();
    let kernel = cause.map_or_else(String::new, |c| c.kernel.clone());
    (v.kind, v.rank.map(|r| r.to_string()), cause.map(|c| c.family), kernel)
}

pub fn attention_of(rank: &str) -> (Kind, Option<String>, Option<Family>, String) {
    (Kind::UnevenWork, Some(rank.into()), Some(Family::Attention), "_fwd_grouped_kernel_stage1".into())
}

/// What a rank loses for each step, as the verdict has it.
pub fn lost(c: &Compared) -> Option<f64> {
    c.comparison.verdict.lost_ms_per_step
}

/// What must be said of the Nsight window whose process 743 is rank 1, the one with more work.
pub fn check_nsight(path: PathBuf) {
    let c = compared(std::slice::from_ref(&path));
    assert_eq!(named(&c), attention_of("process 743"), "{path:?}");
    let busy = |pid: u32| {
        c.comparison.ranks.iter().find(|r| r.rank.to_string() == format!("process {pid}")).map(|r| r.busy_ms)
    };
    assert!([742, 744, 745].iter().all(|p| busy(*p) > busy(743)), "in all it is the least busy");
    let pids =
        [(742, 0), (743, 1), (744, 2), (745, 3)].map(|(pid, dp)| (pid, Rank::dp(dp))).into_iter().collect();
    let rank_overrides = RankOverrides { pids, ..RankOverrides::default() };
    let c = run(&CompareRequest { paths: vec![path], rank_overrides, ..CompareRequest::default() }, &|_| {})
        .expect("it compares");
    assert_eq!(named(&c), attention_of("DP1"));
}
