//! Captures to compare, and what was said of them, for the tests.

use std::path::{Path, PathBuf};

use skewtrap::agent::compare::{Compared, Request, run};
use skewtrap_trace::kernel::Family;
use skewtrap_trace::verdict::Kind;

pub fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

pub fn skew() -> PathBuf {
    here("src/demo/data/skew")
}

pub fn compared(paths: &[PathBuf]) -> Compared {
    run(&Request { paths: paths.to_vec(), ..Request::default() }, &|_| {}).expect("it compares")
}

pub fn refused(paths: &[PathBuf]) -> String {
    match run(&Request { paths: paths.to_vec(), ..Request::default() }, &|_| {}) {
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
