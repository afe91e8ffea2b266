//! Writes the merged Perfetto trace of the ranks that matter: reads their files a second time and
//! passes each kernel on as it comes, so that memory does not grow with the traces.

use std::io::{self, Write};
use std::ops::ControlFlow;

use crate::observe::trace::{TraceError, nsight, open};
use skewtrap_trace::kernel::{Family, family_of, short_name};
use skewtrap_trace::read::{kineto, scan};
use skewtrap_trace::report::perfetto::{Group, Merged};
use skewtrap_trace::step::RankProfile;
use skewtrap_trace::trace::{Limit, RankTrace, Who};

use super::compare::{Compared, Piece};

/// Why the merged trace could not be written.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// A trace cannot be read again.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// A rank that was asked for is not there.
    #[error("{0} is none of the ranks in these traces: {1}")]
    NoSuchRank(Who, String),
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

/// The windows of the ranks `whom` (default: culprit, a middle one, the best).
///
/// # Errors
/// When one of them is not there.
pub fn chosen<'a>(compared: &'a Compared, whom: &[Who]) -> Result<Vec<&'a RankProfile>, MergeError> {
    let telling = compared.comparison.telling_ranks();
    let whom = if whom.is_empty() { &telling } else { whom };
    whom.iter().map(|w| profile_of(compared, *w)).collect()
}

/// Writes the ranks whose windows are `profiles`. Gives the number of kernels that a viewer may
/// leave out because no row was free for them.
///
/// # Errors
/// When a trace cannot be read again, or the output cannot be written.
pub fn write<W: Write>(compared: &Compared, profiles: &[&RankProfile], out: W) -> Result<u64, MergeError> {
    let groups: Vec<Group> = profiles.iter().map(|p| group_of(compared, p)).collect();
    let starts = profiles.iter().zip(&groups).map(|(p, g)| p.epoch_ns + p.window.0 - g.clock_offset_ns);
    let zero = starts.min().unwrap_or(0);
    let mut merged = Merged::begin(out, groups, zero, &first_families(compared))?;
    for (rank, profile) in profiles.iter().enumerate() {
        merged.steps(rank, profile)?;
        let pieces = compared.sources.iter().find(|s| s.0 == profile.who).map_or(&[][..], |s| &s.1);
        for piece in pieces {
            match piece {
                Piece::Kineto(file) => kineto_rows(&file.path, rank, &mut merged)?,
                Piece::Nsight(path, pid) => nsight_rows(path, *pid, rank, &mut merged)?,
            }
        }
    }
    let crowded = merged.crowded();
    merged.end()?;
    Ok(crowded)
}

fn profile_of(compared: &Compared, who: Who) -> Result<&RankProfile, MergeError> {
    let profiles = &compared.study.profiles;
    profiles.iter().find(|p| p.who == who).ok_or_else(|| {
        let names: Vec<String> = profiles.iter().map(|p| p.who.to_string()).collect();
        MergeError::NoSuchRank(who, names.join(", "))
    })
}

fn group_of(compared: &Compared, p: &RankProfile) -> Group {
    let culprit = if compared.comparison.verdict.rank == Some(p.who) { " (culprit)" } else { "" };
    let matched = compared.comparison.collectives.as_ref();
    let clock = matched.and_then(|m| m.ranks.iter().find(|r| r.rank == p.who)).map(|r| r.clock.offset_ns());
    Group {
        label: format!("{}{culprit}", p.who),
        streams: p.streams.clone(),
        clock_offset_ns: clock.unwrap_or(0),
    }
}

fn kineto_rows<W: Write>(
    path: &std::path::Path,
    rank: usize,
    merged: &mut Merged<W>,
) -> Result<(), MergeError> {
    let mut failed = None;
    let mut known = Names::default();
    kineto::events(open(path)?, |head, event| {
        if !event.is_gpu_row() {
            return ControlFlow::Continue(());
        }
        let Some((ts, dur)) = event.times() else { return ControlFlow::Continue(()) };
        let (name, family) = known.of(&scan::unescaped(event.name()));
        match merged.kernel(rank, name, family, event.tid(), head.base_ns.saturating_add(ts), dur) {
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
    path: &std::path::Path,
    pid: u32,
    rank: usize,
    merged: &mut Merged<W>,
) -> Result<(), MergeError> {
    let mut trace = RankTrace::default();
    nsight::Export::open(path)?.read(path, pid, Limit::default(), &mut trace)?;
    let mut known = Names::default();
    for row in &trace.rows {
        let (name, family) = known.of(trace.names[usize::from(row.name)].as_bytes());
        let stream = trace.streams[usize::from(row.stream)];
        merged.kernel(rank, name, family, stream, trace.epoch_ns + row.start, i64::from(row.dur))?;
    }
    Ok(())
}

/// Names once told apart.
#[derive(Default)]
struct Names(std::collections::HashMap<Box<[u8]>, (String, Family)>);

impl Names {
    fn of(&mut self, name: &[u8]) -> (&str, Family) {
        let entry = self.0.entry(name.into()).or_insert_with(|| {
            let text = String::from_utf8_lossy(name);
            (short_name(&text), family_of(&text))
        });
        (&entry.0, entry.1)
    }
}
