//! Reads a capture and explains it: the glue between `observe::trace`, which may open files, and
//! `explain`, which may not. `skewtrap compare` and the agent's own comparison both come through
//! here.
//!
//! What is read, and how, is in [`super::load`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use regex::Regex;

use super::load::{TempFolder, load};
use crate::observe::trace::TraceError;
use crate::observe::trace::folder::{self, TraceFile};
use skewtrap_trace::compare::{Study, compare, named_by, telling_axes};
use skewtrap_trace::labels::Labels;
use skewtrap_trace::rank::{Axis, Rank};
use skewtrap_trace::table::Comparison;
use skewtrap_trace::trace::Who;

/// What to compare.
#[derive(Debug, Default)]
pub struct Request {
    /// Folders or files of the capture.
    pub paths: Vec<PathBuf>,
    /// Folders or files of the same ranks at a better time.
    pub baseline: Vec<PathBuf>,
    /// Finds the rank in a file name.
    pub rank_regex: Option<Regex>,
    /// Ranks by process, or by file name.
    pub told: Told,
    /// The rank that the rule blamed.
    pub suspect: Option<Labels>,
}

/// Ranks that the user tells.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// By process.
    pub pids: BTreeMap<u32, Rank>,
    /// By a part of the file name.
    pub files: Vec<(String, Rank)>,
}

/// A comparison and what it was made of.
pub struct Compared {
    /// The result.
    pub comparison: Comparison,
    /// What it was made of: the ranks' kernels for the table.
    pub study: Study,
    /// Where each rank's rows are, for a second reading.
    pub sources: Vec<(Who, Vec<Piece>)>,
    /// Folders of temporary exports, removed with this.
    _exports: Vec<TempFolder>,
}

/// A file, or a process's part of one, that holds rows of a rank.
#[derive(Clone, Debug)]
pub enum Piece {
    /// A Kineto file.
    Kineto(TraceFile),
    /// One process of an Nsight export.
    Nsight(PathBuf, u32),
}

impl Piece {
    /// Where.
    pub fn path(&self) -> &Path {
        match self {
            Self::Kineto(file) => &file.path,
            Self::Nsight(path, _) => path,
        }
    }
}

/// Compares the ranks of a capture. `progress` is told the bytes read so far, from any thread.
///
/// # Errors
/// When nothing can be read, or when it cannot be told whose a trace is.
pub fn run(request: &Request, progress: &(dyn Fn(u64) + Sync)) -> Result<Compared, TraceError> {
    let mut loaded = load(&request.paths, request, progress)?;
    let axes = telling_axes(
        &loaded.profiles.iter().map(|p| p.who).chain(loaded.unreadable.clone()).collect::<Vec<_>>(),
    );
    let mut notes = std::mem::take(&mut loaded.notes);
    let mut baseline = Vec::new();
    if !request.baseline.is_empty() {
        let before = load(&request.baseline, request, progress)?;
        notes.extend(before.notes.iter().map(|n| format!("baseline: {n}")));
        baseline = before.profiles;
    }
    for p in loaded.profiles.iter_mut().chain(&mut baseline) {
        p.who = named_by(p.who, &axes);
    }
    loaded.profiles.sort_by_key(|p| p.who);
    let study = Study {
        profiles: loaded.profiles,
        baseline,
        suspect: request.suspect.clone(),
        notes,
        unreadable: loaded.unreadable.iter().map(|w| named_by(*w, &axes)).collect(),
        period_kernel: loaded.period_kernel,
    };
    let sources = loaded.sources.into_iter().map(|(who, pieces)| (named_by(who, &axes), pieces)).collect();
    Ok(Compared { comparison: compare(&study), study, sources, _exports: loaded.exports })
}

/// The bytes that reading `paths` will pass, for a progress bar.
pub fn size_of(paths: &[PathBuf]) -> u64 {
    folder::inventory(paths).map_or(0, |i| i.files.iter().map(|f| f.size).sum())
}

/// The axis words that `--rank` understands, for its error.
pub fn rank_words() -> String {
    Axis::ALL.map(|a| a.word().to_ascii_lowercase()).join(", ")
}
