//! Writes the merged Perfetto trace of some ranks: reads their files a second time and writes each
//! kernel as it is read, so that memory does not grow with the traces.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::Path;

use crate::observe::trace::{TraceError, nsight, open};
use skewtrap_trace::kernel::{Family, family_of, short_name};
use skewtrap_trace::read::kineto;
use skewtrap_trace::report::perfetto::{Group, MergedTrace};
use skewtrap_trace::{Limits, RankId, RankProfile, RankTrace};

use super::{Compared, TraceSource};

/// Why the merged trace could not be written.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// A trace cannot be read again.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// A requested rank is not there.
    #[error("{0} is none of the ranks in these traces: {1}")]
    NoSuchRank(RankId, String),
    /// Of a rank there is no trace.
    #[error("of {0} there is only a summary, which has no kernel to draw: give its trace")]
    NoTrace(RankId),
    /// The output cannot be written.
    #[error("cannot write the merged trace: {0}")]
    Write(#[from] io::Error),
}

/// The families whose rows come first: the causes, then waiting.
pub fn first_families(compared: &Compared) -> Vec<Family> {
    let mut first: Vec<Family> =
        compared.comparison.verdict.causes.iter().map(|c| c.family).take(2).collect();
    first.push(Family::Communication);
    first.dedup();
    first
}

/// The profiles of `ranks`; of none, those of [`representative_ranks`].
///
/// [`representative_ranks`]: skewtrap_trace::Comparison::representative_ranks
///
/// # Errors
/// When one of them is not there.
pub fn profiles_of<'a>(compared: &'a Compared, ranks: &[RankId]) -> Result<Vec<&'a RankProfile>, MergeError> {
    let representative = compared.comparison.representative_ranks();
    let ranks = if ranks.is_empty() { &representative } else { ranks };
    ranks.iter().map(|r| profile_of(compared, *r)).collect()
}

/// Writes the ranks of `profiles`. Returns the number of kernels that a viewer may leave out because
/// too many overlap.
///
/// # Errors
/// When a trace cannot be read again, or the output cannot be written.
pub fn write<W: Write>(compared: &Compared, profiles: &[&RankProfile], out: W) -> Result<u64, MergeError> {
    let groups: Vec<Group> = profiles.iter().map(|p| group_of(compared, p)).collect();
    let starts = profiles.iter().zip(&groups).map(|(p, g)| p.epoch_ns + p.window.0 - g.clock_offset_ns);
    let zero = starts.min().unwrap_or(0);
    let mut merged = MergedTrace::begin(out, groups, zero, &first_families(compared))?;
    for (rank, profile) in profiles.iter().enumerate() {
        merged.steps(rank, profile)?;
        let sources = compared.sources.iter().find(|s| s.0 == profile.rank).map_or(&[][..], |s| &s.1);
        for source in sources {
            match source {
                TraceSource::Kineto(file) => kineto_rows(&file.path, rank, &mut merged)?,
                TraceSource::Nsight(path, pid) => nsight_rows(path, *pid, rank, &mut merged)?,
                TraceSource::Summary(_) => return Err(MergeError::NoTrace(profile.rank)),
            }
        }
    }
    let overlapped = merged.overlapped();
    merged.end()?;
    Ok(overlapped)
}

fn profile_of(compared: &Compared, rank: RankId) -> Result<&RankProfile, MergeError> {
    let profiles = &compared.input.profiles;
    profiles.iter().find(|p| p.rank == rank).ok_or_else(|| {
        let names: Vec<String> = profiles.iter().map(|p| p.rank.to_string()).collect();
        MergeError::NoSuchRank(rank, names.join(", "))
    })
}

fn group_of(compared: &Compared, p: &RankProfile) -> Group {
    let culprit = if compared.comparison.verdict.rank == Some(p.rank) { " (culprit)" } else { "" };
    let matched = compared.comparison.collectives.as_ref();
    let clock = matched.and_then(|m| m.ranks.iter().find(|r| r.rank == p.rank)).map(|r| r.clock.offset_ns());
    Group {
        label: format!("{}{culprit}", p.rank),
        streams: p.streams.clone(),
        clock_offset_ns: clock.unwrap_or(0),
    }
}

fn kineto_rows<W: Write>(path: &Path, rank: usize, merged: &mut MergedTrace<W>) -> Result<(), MergeError> {
    let mut failed = None;
    let mut known = Names::default();
    kineto::for_each_event(open(path)?, |header, event| {
        if !event.is_gpu_row() {
            return ControlFlow::Continue(());
        }
        let Some((ts, dur)) = event.times() else { return ControlFlow::Continue(()) };
        let (name, family) = known.get(&event.name());
        match merged.kernel(rank, name, family, event.stream(), header.base_ns.saturating_add(ts), dur) {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => {
                failed = Some(e);
                ControlFlow::Break(())
            }
        }
    })
    .map_err(TraceError::from)?;
    failed.map_or(Ok(()), |e| Err(e.into()))
}

fn nsight_rows<W: Write>(
    path: &Path,
    pid: u32,
    rank: usize,
    merged: &mut MergedTrace<W>,
) -> Result<(), MergeError> {
    let mut trace = RankTrace::default();
    nsight::Export::open(path)?.read(path, pid, Limits::default(), &mut trace)?;
    let mut known = Names::default();
    for row in &trace.rows {
        let (name, family) = known.get(trace.names[usize::from(row.name)].as_bytes());
        let stream = trace.streams[usize::from(row.stream())];
        merged.kernel(rank, name, family, stream, trace.epoch_ns + row.start, i64::from(row.dur))?;
    }
    Ok(())
}

/// The short name and the family of each kernel name, computed once.
#[derive(Default)]
struct Names(std::collections::HashMap<Box<[u8]>, (String, Family)>);

impl Names {
    fn get(&mut self, name: &[u8]) -> (&str, Family) {
        let entry = self.0.entry(name.into()).or_insert_with(|| {
            let text = String::from_utf8_lossy(name);
            (short_name(&text), family_of(&text))
        });
        (&entry.0, entry.1)
    }
}
