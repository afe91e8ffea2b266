//! `cargo run -p skewtrap-trace --example compare -- TRACE...`: compares traces of the PyTorch
//! profiler, one or more files of each rank, and prints the verdict.
#![allow(clippy::disallowed_methods)] // the crate opens no files, its users do

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::path::Path;

use skewtrap_trace::rank::{parse_file_name, varying_axes};
use skewtrap_trace::read::{decompress, kineto};
use skewtrap_trace::{ComparisonInput, Limits, Profiles, RankId, RankTrace, RankWindow, compare};

fn main() -> Result<(), Box<dyn Error>> {
    let mut traces: BTreeMap<RankId, RankTrace> = BTreeMap::new();
    for path in std::env::args().skip(1) {
        let name = Path::new(&path).file_name().unwrap_or_default().to_string_lossy();
        let rank = match parse_file_name(&name).rank {
            Some(rank) => rank,
            None => rank_inside(&path)?.ok_or_else(|| format!("{path}: of which rank is this?"))?,
        };
        let trace = traces.entry(RankId::Rank(rank)).or_default();
        kineto::read(decompress(File::open(&path)?)?, Limits::default(), trace)?;
    }
    let ranks: Vec<RankId> = traces.keys().copied().collect();
    let axes = varying_axes(&ranks);
    let windows =
        traces.into_iter().map(|(rank, trace)| RankWindow::new(rank.named_by(&axes), trace)).collect();
    let profiles = Profiles::new(windows);
    let comparison = compare(&ComparisonInput {
        profiles: profiles.ranks,
        period_kernel: profiles.period_kernel,
        ..ComparisonInput::default()
    });
    let verdict = &comparison.verdict;
    println!("{} (confidence {})", verdict.kind.title(), verdict.confidence.name());
    println!("{}", verdict.sentence);
    for point in verdict.points().iter().chain(&comparison.remarks()) {
        println!("- {point}");
    }
    Ok(())
}

/// The rank that the content of a file names.
fn rank_inside(path: &str) -> Result<Option<skewtrap_trace::Rank>, Box<dyn Error>> {
    let info = kineto::read(decompress(File::open(path)?)?, Limits::default(), &mut RankTrace::default())?;
    Ok(info.rank()?)
}
