//! Loads the ranks of a capture: finds the rank of each file, reads the files on a few threads, and
//! aggregates each rank as soon as its steps are known, so that its rows do not stay in memory.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{CompareRequest, TraceSource};
use crate::observe::trace::folder::{self, Format, Inventory, Manifest, TraceFile};
use crate::observe::trace::{TraceError, nsight, read_kineto, read_summary};
use skewtrap_trace::rank::{Rank, RankId, match_file_name, parse_file_name, parse_process_name};
use skewtrap_trace::read::kineto;
use skewtrap_trace::{Limits, Profiles, RankProfile, RankTrace, RankWindow};

/// The ranks of a capture.
#[derive(Default)]
pub(super) struct LoadedRanks {
    pub(super) profiles: Vec<RankProfile>,
    /// Where the rows of each rank are.
    pub(super) sources: Vec<(RankId, Vec<TraceSource>)>,
    /// Ranks whose files could not be read.
    pub(super) unreadable: Vec<RankId>,
    /// Remarks about the reading.
    pub(super) notes: Vec<String>,
    /// The kernel whose period delimits the steps.
    pub(super) period_kernel: Option<String>,
    /// Temporary exports, removed when this is dropped.
    pub(super) exports: Vec<nsight::TempFolder>,
}

/// The files of one rank, before they are read.
struct Job {
    sources: Vec<TraceSource>,
    /// The rank, as far as it is known without the content.
    rank: Option<RankId>,
    /// Ranks by process, for a file whose name other files have, too: it is known by its process.
    by_process: Option<BTreeMap<u32, Rank>>,
}

/// One rank, after its files were read.
struct ReadRank {
    sources: Vec<TraceSource>,
    window: RankWindow,
}

/// Reads and aggregates the ranks of a capture.
///
/// # Errors
/// When nothing can be read, or when the rank of a trace is unknown.
pub(super) fn load(
    paths: &[PathBuf],
    request: &CompareRequest,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<LoadedRanks, TraceError> {
    let inventory = folder::inventory(paths)?;
    let mut loaded = LoadedRanks { notes: inventory.notes.clone(), ..LoadedRanks::default() };
    let jobs = jobs_of(&inventory, request, &mut loaded)?;
    note_unused_overrides(&inventory, &jobs, request, &mut loaded.notes);
    let reads = read_all(jobs, progress, &mut loaded)?;
    aggregate(reads, &mut loaded);
    Ok(loaded)
}

/// Groups the files by rank, as far as names, the bundle or the user give it.
fn jobs_of(
    inventory: &Inventory,
    request: &CompareRequest,
    loaded: &mut LoadedRanks,
) -> Result<Vec<Job>, TraceError> {
    let mut by_rank: BTreeMap<Rank, Vec<TraceFile>> = BTreeMap::new();
    let mut jobs = Vec::new();
    for file in &inventory.files {
        match file.format {
            Format::Kineto => {
                match rank_of_file(&file.name(), request, &inventory.manifest, &mut loaded.notes) {
                    Some(rank) => by_rank.entry(rank).or_default().push(file.clone()),
                    None => jobs.push(Job {
                        sources: vec![TraceSource::Kineto(file.clone())],
                        rank: None,
                        by_process: None,
                    }),
                }
            }
            Format::Summary => {
                let given = request.rank_overrides.files.iter().find(|(part, _)| file.name().contains(part));
                jobs.push(Job {
                    sources: vec![TraceSource::Summary(file.clone())],
                    rank: given.map(|(_, rank)| RankId::Rank(*rank)),
                    by_process: None,
                });
            }
            Format::NsightSqlite | Format::NsightReport => {
                let (path, temp) = nsight::sqlite_of(file, request.is_foreground)?;
                loaded.exports.extend(temp);
                let export = nsight::Export::open(&path).map_err(|e| e.about(&file.path))?;
                for process in export.processes(&path)? {
                    let rank = rank_of_process(&process, request, &inventory.manifest);
                    let sources = vec![TraceSource::Nsight(path.clone(), process.pid)];
                    jobs.push(Job { sources, rank: Some(rank), by_process: None });
                }
            }
        }
    }
    for (rank, files) in by_rank {
        if are_engines(&files) {
            let mut known = inventory.manifest.pids.clone();
            known.extend(&request.rank_overrides.pids);
            loaded.notes.retain(|note| note != BY_NUMBER);
            loaded.notes.push(format!(
                "{} files call themselves rank {}, as the engines of vLLM do: they are told apart by process; which engine a process is says --rank PID=dp0",
                files.len(),
                parse_file_name(&files[0].name()).number.unwrap_or(0)
            ));
            jobs.extend(files.into_iter().map(|file| Job {
                sources: vec![TraceSource::Kineto(file)],
                rank: None,
                by_process: Some(known.clone()),
            }));
            continue;
        }
        check_one_capture(rank, &files)?;
        let sources = files.into_iter().map(TraceSource::Kineto).collect();
        jobs.push(Job { sources, rank: Some(RankId::Rank(rank)), by_process: None });
    }
    Ok(jobs)
}

/// Notes which ranks given by the user match no file and no process.
fn note_unused_overrides(
    inventory: &Inventory,
    jobs: &[Job],
    request: &CompareRequest,
    notes: &mut Vec<String>,
) {
    let names: Vec<String> = inventory.files.iter().map(TraceFile::name).collect();
    for (part, rank) in &request.rank_overrides.files {
        if !names.iter().any(|n| n.contains(part.as_str())) {
            notes.push(format!("--rank {part}={rank}: no file has {part} in its name"));
        }
    }
    if jobs.iter().any(|j| j.by_process.is_some()) {
        // Their processes are known only once they were read.
        return;
    }
    let is_of = |pid: u32| move |s: &TraceSource| matches!(s, TraceSource::Nsight(_, of) if *of == pid);
    for (&pid, rank) in &request.rank_overrides.pids {
        if !jobs.iter().flat_map(|j| &j.sources).any(is_of(pid)) {
            notes.push(format!("--rank {pid}={rank}: no process {pid} ran kernels"));
        }
    }
    if let Some(regex) = &request.rank_regex
        && !names.iter().any(|n| match_file_name(regex, n).is_some())
    {
        notes.push(format!("--rank-regex {regex} finds a rank in no file name"));
    }
}

/// Whether several files have one number and nothing else to tell them apart by: every DP engine of vLLM
/// calls its file `rank0`.
fn are_engines(files: &[TraceFile]) -> bool {
    let by_number_alone = |f: &TraceFile| {
        let name = parse_file_name(&f.name());
        name.rank.is_none() && name.number.is_some()
    };
    files.len() > 1 && files.iter().all(by_number_alone)
}

/// Refuses several files of one rank, unless they are the stages of one capture.
fn check_one_capture(rank: Rank, files: &[TraceFile]) -> Result<(), TraceError> {
    if files.len() < 2 || files.iter().all(|f| parse_file_name(&f.name()).capture.is_some()) {
        return Ok(());
    }
    let names: Vec<String> = files.iter().map(TraceFile::name).collect();
    Err(TraceError::Nothing(format!(
        "{rank} has {} files ({}): these are several captures; give the files of one",
        files.len(),
        names.join(", ")
    )))
}

/// Said of files with a number and no axis.
const BY_NUMBER: &str = "files name ranks by number only: they are called TP ranks here";

fn rank_of_file(
    name: &str,
    request: &CompareRequest,
    manifest: &Manifest,
    notes: &mut Vec<String>,
) -> Option<Rank> {
    let given =
        request.rank_overrides.files.iter().find(|(part, _)| name.contains(part.as_str())).map(|(_, r)| *r);
    let found = given
        .or_else(|| request.rank_regex.as_ref().and_then(|r| match_file_name(r, name)))
        .or_else(|| manifest.files.get(name).copied());
    if found.is_some() {
        return found;
    }
    let named = parse_file_name(name);
    named.rank.or_else(|| {
        let number = named.number?;
        let note = BY_NUMBER.to_owned();
        if !notes.contains(&note) {
            notes.push(note);
        }
        Some(Rank::tp(number))
    })
}

fn rank_of_process(process: &nsight::Process, request: &CompareRequest, manifest: &Manifest) -> RankId {
    let given =
        request.rank_overrides.pids.get(&process.pid).or_else(|| manifest.pids.get(&process.pid)).copied();
    given.or_else(|| parse_process_name(&process.name)).map_or(RankId::Pid(process.pid), RankId::Rank)
}

/// Reads all jobs on a few threads. A file of a known rank that cannot be read makes that rank
/// missing; when no file can be read, the first error is returned.
fn read_all(
    jobs: Vec<Job>,
    progress: &(dyn Fn(u64) + Sync),
    loaded: &mut LoadedRanks,
) -> Result<Vec<ReadRank>, TraceError> {
    let limits = limits_for(jobs.len());
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4).min(jobs.len().max(1));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(at) else { break };
                    let result = read_one(job, limits, progress);
                    crate::world::lock(&results).push((at, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    results.sort_by_key(|r| r.0);
    let (mut reads, mut first_error) = (Vec::new(), None);
    for (at, result) in results {
        match result {
            Ok(Some(read)) => reads.push(read),
            Ok(None) => {
                let name = jobs[at].sources[0].path().display();
                loaded.notes.push(format!("left out {name}: {}", kineto::SeveralRanks));
            }
            Err(e) => {
                loaded.notes.push(e.to_string());
                loaded.unreadable.extend(jobs[at].rank);
                first_error.get_or_insert(e);
            }
        }
    }
    check_ranks(&mut reads, loaded)?;
    match first_error {
        Some(e) if reads.is_empty() => Err(e),
        None if reads.is_empty() => Err(TraceError::Nothing(format!(
            "no trace of one rank is among them: {}",
            loaded.notes.join("; ")
        ))),
        _ => Ok(reads),
    }
}

/// The most rows of all ranks together, 16 bytes each: about 100 MB.
const MAX_ROWS: usize = 6_000_000;

fn limits_for(ranks: usize) -> Limits {
    let rows = (MAX_ROWS / ranks.max(1)).max(20_000);
    Limits { rows, ..Limits::default() }
}

/// Reads one rank; `None` when the file turns out to be a merged trace.
fn read_one(
    job: &Job,
    limits: Limits,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Option<ReadRank>, TraceError> {
    if let [TraceSource::Summary(file)] = job.sources.as_slice() {
        let read = read_summary(&file.path, progress)?;
        let profile = RankProfile { rank: job.rank.unwrap_or(read.rank), ..read };
        return Ok(Some(ReadRank { sources: job.sources.clone(), window: RankWindow::of_summary(profile) }));
    }
    let mut trace = RankTrace::default();
    let mut info = kineto::FileInfo::default();
    for source in &job.sources {
        match source {
            TraceSource::Kineto(file) => info = read_kineto(&file.path, limits, &mut trace, progress)?,
            TraceSource::Nsight(path, pid) => {
                nsight::Export::open(path)?.read(path, *pid, limits, &mut trace)?
            }
            TraceSource::Summary(_) => {}
        }
    }
    let Ok(named) = info.rank() else { return Ok(None) };
    let by_process = |known: &BTreeMap<u32, Rank>| {
        let pid = info.pid?;
        Some(known.get(&pid).map_or(RankId::Pid(pid), |rank| RankId::Rank(*rank)))
    };
    let rank = job
        .rank
        .or_else(|| named.map(RankId::Rank))
        .or_else(|| job.by_process.as_ref().and_then(by_process))
        .unwrap_or(RankId::Rank(Rank::NONE));
    Ok(Some(ReadRank { sources: job.sources.clone(), window: RankWindow::new(rank, trace) }))
}

/// Orders the traces by rank; refuses traces of unknown rank, and two traces of one rank.
fn check_ranks(reads: &mut [ReadRank], loaded: &mut LoadedRanks) -> Result<(), TraceError> {
    let unknown: Vec<String> = reads
        .iter()
        .filter(|r| r.window.rank() == RankId::Rank(Rank::NONE))
        .map(|r| r.sources[0].path().display().to_string())
        .collect();
    if !unknown.is_empty() && reads.len() > 1 {
        let shown = unknown.iter().take(8).cloned().collect::<Vec<_>>().join("\n  ");
        return Err(TraceError::Nothing(format!(
            "neither names nor content identify the ranks of these {} traces; give them with --rank-regex or --rank PART=dp1:\n  {shown}",
            unknown.len()
        )));
    }
    reads.sort_by_key(|r| r.window.rank());
    if let Some(pair) = reads.windows(2).find(|w| w[0].window.rank() == w[1].window.rank()) {
        let (a, b) = (pair[0].sources[0].path().display(), pair[1].sources[0].path().display());
        return Err(TraceError::Nothing(format!(
            "both {a} and {b} are of {}: these are several captures; give the files of one",
            pair[0].window.rank()
        )));
    }
    if reads.iter().any(|r| matches!(r.window.rank(), RankId::Pid(_))) {
        let note = "no manifest names the ranks of these processes; give them with --rank PID=dp1";
        if !loaded.notes.iter().any(|n| n.contains("--rank PID=")) {
            loaded.notes.push(note.into());
        }
    }
    Ok(())
}

/// Aggregates the ranks; one without any row in a truncated file counts as unreadable.
fn aggregate(reads: Vec<ReadRank>, loaded: &mut LoadedRanks) {
    let (sources, windows): (Vec<_>, Vec<_>) =
        reads.into_iter().map(|r| ((r.window.rank(), r.sources), r.window)).unzip();
    let profiles = Profiles::new(windows);
    loaded.sources = sources;
    loaded.period_kernel = profiles.period_kernel;
    for profile in profiles.ranks {
        if profile.rows == 0 && profile.partial {
            loaded.notes.push(format!("{}: {}", profile.rank, profile.notes.join("; ")));
            loaded.unreadable.push(profile.rank);
        } else {
            loaded.profiles.push(profile);
        }
    }
}
