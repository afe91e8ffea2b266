//! Compares the files of a capture: joins [`observe::trace`](crate::observe::trace), which opens them,
//! and the crate `skewtrap_trace`, which does not. `skewtrap compare` and the agent both call
//! [`run`].

mod load;
pub mod perfetto;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use regex::Regex;

use self::load::load;
use crate::act::bundle::{self, record_in};
use crate::act::retention::left_in_place;
use crate::observe::trace::folder::{self, TraceFile};
use crate::observe::trace::nsight::TempFolder;
use crate::observe::trace::{TraceError, open};
use skewtrap_core::capture::captured::CapturedFile;
use skewtrap_trace::operator::{HostTimes, slowest};
use skewtrap_trace::rank::{Axis, Rank, RankId, varying_axes};
use skewtrap_trace::{Comparison, ComparisonInput, RankProfile, Suspect, Verdict, compare, summary};

/// So many peers tell what a host usually does.
const PEERS_READ: usize = 3;

#[derive(Debug, Default)]
pub struct CompareRequest {
    /// Folders or files of the capture.
    pub paths: Vec<PathBuf>,
    /// Folders or files of the same ranks at a time without trouble; may be empty.
    pub baseline: Vec<PathBuf>,
    /// The same, but only what changed since is told, and no constant difference of a rank is taken out.
    pub reference: Vec<PathBuf>,
    /// Finds the rank in a file name, see [`skewtrap_trace::rank::match_file_name`].
    pub rank_regex: Option<Regex>,
    /// Ranks that the user gives.
    pub rank_overrides: RankOverrides,
    /// What the rule found.
    pub suspect: Option<Suspect>,
    /// Whether Ctrl-C in a terminal ends what is started for it, too.
    pub is_foreground: bool,
}

/// Ranks that the user gives; they override names and content of the files.
#[derive(Clone, Debug, Default)]
pub struct RankOverrides {
    /// By process id.
    pub pids: BTreeMap<u32, Rank>,
    /// By a part of the file name.
    pub files: Vec<(String, Rank)>,
}

/// A comparison and what it was made from.
pub struct Compared {
    /// The result.
    pub comparison: Comparison,
    /// Its input, with the kernels of each rank.
    pub input: ComparisonInput,
    /// The ranks of the profiles with all their axes, in the same order: those of the comparison lack the
    /// axes on which all agree.
    pub ranks: Vec<RankId>,
    /// Ranks whose files could not be read, likewise.
    pub unreadable: Vec<RankId>,
    /// Where the rows of each rank are, for a second reading.
    pub sources: Vec<(RankId, Vec<TraceSource>)>,
    /// Folders of temporary exports, removed when this is dropped.
    _exports: Vec<TempFolder>,
}

/// Where rows of a rank are.
#[derive(Clone, Debug)]
pub enum TraceSource {
    /// A Kineto file.
    Kineto(TraceFile),
    /// One process of an Nsight export.
    Nsight(PathBuf, u32),
    /// The summary of a rank, which has no rows.
    Summary(TraceFile),
}

impl TraceSource {
    /// The file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Kineto(file) | Self::Summary(file) => &file.path,
            Self::Nsight(path, _) => path,
        }
    }
}

/// Compares the ranks of a capture. `progress` is called with the number of bytes of each read from a
/// file, from several threads.
///
/// # Errors
/// When nothing can be read, or when the rank of a trace is unknown.
pub fn run(request: &CompareRequest, progress: &(dyn Fn(u64) + Sync)) -> Result<Compared, TraceError> {
    let mut loaded = load(&request.paths, request, progress)?;
    let ranks: Vec<RankId> =
        loaded.profiles.iter().map(|p| p.rank).chain(loaded.unreadable.iter().copied()).collect();
    let axes = varying_axes(&ranks);
    let mut notes = std::mem::take(&mut loaded.notes);
    let mut baseline = Vec::new();
    if !request.baseline.is_empty() {
        let before = load(&request.baseline, request, progress)?;
        notes.extend(before.notes.iter().map(|n| format!("baseline: {n}")));
        baseline = before.profiles;
    }
    let mut reference = Vec::new();
    if !request.reference.is_empty() {
        // One that was deleted meanwhile, or cannot be read, costs the change since then and not the verdict.
        match load(&request.reference, request, progress) {
            Ok(before) => reference = before.profiles,
            Err(error) => notes.push(format!("the baseline of this server could not be read: {error}")),
        }
    }
    loaded.profiles.sort_by_key(|p| p.rank);
    let ranks = loaded.profiles.iter().map(|p| p.rank).collect();
    for p in loaded.profiles.iter_mut().chain(&mut baseline).chain(&mut reference) {
        p.rank = p.rank.named_by(&axes);
    }
    let input = ComparisonInput {
        profiles: loaded.profiles,
        baseline,
        reference,
        suspect: request.suspect.clone(),
        notes,
        unreadable: loaded.unreadable.iter().map(|r| r.named_by(&axes)).collect(),
        period_kernel: loaded.period_kernel,
    };
    let sources: Vec<(RankId, Vec<TraceSource>)> =
        loaded.sources.into_iter().map(|(rank, of)| (rank.named_by(&axes), of)).collect();
    let mut comparison = compare(&input);
    name_operator(&mut comparison.verdict, &input, &sources);
    Ok(Compared {
        comparison,
        input,
        ranks,
        unreadable: loaded.unreadable,
        sources,
        _exports: loaded.exports,
    })
}

/// Names the operator in which a blamed host loses its time, where the traces have CPU rows: they are read once
/// more for it, the rank's own and a few of its peers', so that no other comparison pays for them.
fn name_operator(verdict: &mut Verdict, input: &ComparisonInput, sources: &[(RankId, Vec<TraceSource>)]) {
    let (Some(rank), Some(lost_ms)) = (verdict.rank, verdict.lost_ms_per_step) else { return };
    if !verdict.blames_a_host() {
        return;
    }
    let has_cpu_rows = |p: &&RankProfile| p.activities.cpu && !p.steps.is_empty();
    let times = |p: &RankProfile| {
        let (_, files) = sources.iter().find(|(of, _)| *of == p.rank)?;
        let mut times = HostTimes::of_steps(p.steps.len());
        for file in files {
            let TraceSource::Kineto(file) = file else { return None };
            times.read(open(&file.path).ok()?).ok()?;
        }
        Some(times)
    };
    let own = input.profiles.iter().filter(has_cpu_rows).find(|p| p.rank == rank).and_then(times);
    let peers = input.profiles.iter().filter(has_cpu_rows).filter(|p| p.rank != rank).take(PEERS_READ);
    let Some(own) = own else { return };
    if let Some(operator) = slowest(&own, &peers.filter_map(times).collect::<Vec<_>>(), lost_ms) {
        verdict.name_operator(operator);
    }
}

impl Compared {
    /// Writes the summary of each rank into `folder`, which is created where it is missing; that of a
    /// rank whose file could not be read says so. Returns their paths.
    ///
    /// # Errors
    /// When one cannot be written.
    pub fn write_summaries(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        fs::create_dir_all(folder)?;
        let profiles = self.ranks.iter().copied().zip(&self.input.profiles);
        let lost: Vec<RankProfile> =
            self.unreadable.iter().map(|rank| RankProfile::unreadable(*rank)).collect();
        profiles
            .chain(lost.iter().map(|p| (p.rank, p)))
            .map(|(rank, profile)| {
                let path = folder.join(summary::file_name(rank));
                let mut out = BufWriter::new(File::create(&path)?);
                summary::write(&mut out, rank, profile)?;
                out.flush()?;
                Ok(path)
            })
            .collect()
    }
}

/// Where the ranks of a capture are: in its bundle, and, of `files` that could not be moved there, where the
/// server wrote them.
pub fn ranks_of(bundle: &Path, window: usize, files: &[CapturedFile]) -> Vec<PathBuf> {
    let in_bundle = bundle::ranks_of(bundle, window).into_iter().filter(|folder| folder.exists());
    in_bundle.chain(traces_left_in_place(files)).collect()
}

fn traces_left_in_place(files: &[CapturedFile]) -> impl Iterator<Item = PathBuf> {
    left_in_place(files).filter(|path| folder::is_trace(path))
}

/// The traces of a bundle, or of one folder of traces in it, that lie where the server wrote them.
///
/// # Errors
/// They are of several captures.
pub fn traces_beside(given: &Path) -> Result<Vec<PathBuf>, TraceError> {
    let (name, up) = (given.file_name().unwrap_or_default(), given.parent().unwrap_or(Path::new("")));
    let (record, only) = match record_in(given) {
        Some(record) => (record, None),
        None => match record_in(up) {
            Some(record) => (record, Some(name)),
            None => return Ok(Vec::new()),
        },
    };
    let captures = (1..).zip(record.incident.captures()).filter_map(|(window, outcome)| {
        let (folder, captured) = (bundle::traces_of(window), outcome.captured()?);
        let is_asked_for = only.is_none_or(|name| *name == *folder);
        (is_asked_for && !captured.files.is_empty()).then_some((folder, &captured.files))
    });
    let captures: Vec<_> = captures.collect();
    let found: Vec<PathBuf> = captures.iter().flat_map(|(_, files)| traces_left_in_place(files)).collect();
    if found.is_empty() || captures.len() == 1 {
        return Ok(found);
    }
    let folders: Vec<String> =
        captures.iter().map(|(folder, _)| given.join(folder).display().to_string()).collect();
    Err(TraceError::Nothing(format!(
        "{} holds {} captures: {}. Give one of them",
        given.display(),
        folders.len(),
        folders.join(", ")
    )))
}

/// The number of bytes that comparing `paths` reads, for a progress bar.
pub fn size_of(paths: &[PathBuf]) -> u64 {
    folder::inventory(paths).map_or(0, |i| i.files.iter().map(|f| f.size).sum())
}

/// The axes that `--rank` understands, for its error message.
pub fn rank_words() -> String {
    Axis::ALL.map(|a| a.word().to_ascii_lowercase()).join(", ")
}
