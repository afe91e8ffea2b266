//! Captures to compare, and what was said of them, for the tests.

use std::path::{Path, PathBuf};

use serde_json::Value;
use skewtrap::agent::compare::{CompareRequest, Compared, RankOverrides, TraceSource, run};
use skewtrap_trace::kernel::Family;
use skewtrap_trace::rank::Rank;
use skewtrap_trace::summary;
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

/// All that a comparison says but for remarks about the reading of files.
pub fn said(c: &Compared) -> Value {
    let mut json = serde_json::to_value(&c.comparison).expect("it serialises");
    json["notes"] = Value::Null;
    // What the CPU did is not in a summary, so no operator is named from one.
    let verdict = &mut json["verdict"];
    if !verdict["operator"].take().is_null() {
        let sentence = verdict["sentence"].as_str().expect("a sentence");
        let (without, _) = sentence.split_once(" Most of it is in `").expect("it names the operator");
        verdict["sentence"] = without.into();
    }
    json
}

/// Writes the summaries of all ranks into `summaries`; into `mixture` those of every other rank, and the
/// traces of the rest.
pub fn summarise_half(c: &Compared, summaries: &Path, mixture: &Path) {
    let written = c.write_summaries(summaries).expect("they can be written");
    assert_eq!(written.len(), c.ranks.len() + c.unreadable.len());
    for (i, rank) in c.ranks.iter().enumerate() {
        let named = c.input.profiles[i].rank;
        let sources = &c.sources.iter().find(|s| s.0 == named).expect("it was read from somewhere").1;
        let is_trace = i % 2 == 0 && sources.iter().all(|s| matches!(s, TraceSource::Kineto(_)));
        let copied: Vec<PathBuf> = if is_trace {
            sources.iter().map(|s| s.path().to_owned()).collect()
        } else {
            vec![summaries.join(summary::file_name(*rank))]
        };
        for path in copied {
            std::fs::copy(&path, mixture.join(path.file_name().expect("a name"))).expect("copied");
        }
    }
    for rank in &c.unreadable {
        let name = summary::file_name(*rank);
        std::fs::copy(summaries.join(&name), mixture.join(&name)).expect("copied");
    }
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
