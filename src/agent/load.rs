//! Loads a capture's ranks: whose each file is, all of them read on a few threads, each folded as
//! soon as its steps are known, so that of a rank only its fold stays.

use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::compare::{Piece, Request};
use crate::observe::trace::folder::{self, Format, Inventory, Manifest, TraceFile};
use crate::observe::trace::{TraceError, nsight, read_kineto};
use skewtrap_trace::period;
use skewtrap_trace::rank::Rank;
use skewtrap_trace::read::{kineto, naming};
use skewtrap_trace::step::{self, RankProfile};
use skewtrap_trace::trace::{Limit, RankTrace, StepSource, Who};

/// A capture's ranks, folded.
#[derive(Default)]
pub struct Loaded {
    /// Its ranks.
    pub profiles: Vec<RankProfile>,
    /// Where each rank's rows are.
    pub sources: Vec<(Who, Vec<Piece>)>,
    /// Ranks whose files could not be read.
    pub unreadable: Vec<Who>,
    /// What to say about the reading.
    pub notes: Vec<String>,
    /// The kernel whose period told the steps.
    pub period_kernel: Option<String>,
    /// Temporary exports, removed with this.
    pub exports: Vec<TempFolder>,
}

/// The files of one rank, before they are read.
struct Job {
    pieces: Vec<Piece>,
    who: Option<Who>,
}

/// One rank's rows, after they were read.
struct Read {
    pieces: Vec<Piece>,
    who: Who,
    trace: RankTrace,
    /// Folded at once when annotations tell its steps.
    folded: Option<RankProfile>,
}

/// Reads and folds the ranks of a capture.
///
/// # Errors
/// When nothing can be read, or when it cannot be told whose a trace is.
pub fn load(
    paths: &[PathBuf],
    request: &Request,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Loaded, TraceError> {
    let inventory = folder::inventory(paths)?;
    let mut loaded = Loaded { notes: inventory.notes.clone(), ..Loaded::default() };
    let jobs = jobs_of(&inventory, request, &mut loaded)?;
    fits_nothing(&inventory, &jobs, request, &mut loaded.notes);
    let reads = read_all(jobs, progress, &mut loaded)?;
    fold_all(reads, &mut loaded);
    Ok(loaded)
}

/// Groups files by rank, as far as anything but their content tells it.
fn jobs_of(inventory: &Inventory, request: &Request, loaded: &mut Loaded) -> Result<Vec<Job>, TraceError> {
    let mut by_rank: BTreeMap<Rank, Vec<TraceFile>> = BTreeMap::new();
    let mut jobs = Vec::new();
    for file in &inventory.files {
        match file.format {
            Format::Kineto => {
                match rank_of_file(&file.name(), request, &inventory.manifest, &mut loaded.notes) {
                    Some(rank) => by_rank.entry(rank).or_default().push(file.clone()),
                    None => jobs.push(Job { pieces: vec![Piece::Kineto(file.clone())], who: None }),
                }
            }
            Format::NsightSqlite | Format::NsightReport => {
                let path = export_of(file, loaded)?;
                let export = nsight::Export::open(&path).map_err(|e| e.about(&file.path))?;
                for process in export.processes(&path)? {
                    let who = who_of_process(&process, request, &inventory.manifest);
                    jobs.push(Job { pieces: vec![Piece::Nsight(path.clone(), process.pid)], who: Some(who) });
                }
            }
        }
    }
    for (rank, files) in by_rank {
        twice(rank, &files)?;
        jobs.push(Job { pieces: files.into_iter().map(Piece::Kineto).collect(), who: Some(Who::Rank(rank)) });
    }
    Ok(jobs)
}

/// Says which of the ranks that the user told fit no file and no process.
fn fits_nothing(inventory: &Inventory, jobs: &[Job], request: &Request, notes: &mut Vec<String>) {
    let names: Vec<String> = inventory.files.iter().map(TraceFile::name).collect();
    for (part, rank) in &request.told.files {
        if !names.iter().any(|n| n.contains(part.as_str())) {
            notes.push(format!("--rank {part}={rank}: no file has {part} in its name"));
        }
    }
    let is_of = |pid: u32| move |p: &Piece| matches!(p, Piece::Nsight(_, of) if *of == pid);
    for (&pid, rank) in &request.told.pids {
        if !jobs.iter().flat_map(|j| &j.pieces).any(is_of(pid)) {
            notes.push(format!("--rank {pid}={rank}: no process {pid} ran kernels"));
        }
    }
    if let Some(regex) = &request.rank_regex
        && !names.iter().any(|n| naming::of_regex(regex, n).is_some())
    {
        notes.push(format!("--rank-regex {regex} finds a rank in no file name"));
    }
}

/// Refuses a rank with two files that are not the stages of one capture.
fn twice(rank: Rank, files: &[TraceFile]) -> Result<(), TraceError> {
    if files.len() < 2 || files.iter().all(|f| naming::named(&f.name()).capture.is_some()) {
        return Ok(());
    }
    let names: Vec<String> = files.iter().map(TraceFile::name).collect();
    Err(TraceError::Nothing(format!(
        "{rank} has {} files ({}): these are several captures; give the files of one",
        files.len(),
        names.join(", ")
    )))
}

fn rank_of_file(name: &str, request: &Request, manifest: &Manifest, notes: &mut Vec<String>) -> Option<Rank> {
    let told = request.told.files.iter().find(|(part, _)| name.contains(part.as_str())).map(|(_, r)| *r);
    let found = told
        .or_else(|| request.rank_regex.as_ref().and_then(|r| naming::of_regex(r, name)))
        .or_else(|| manifest.files.get(name).copied());
    if found.is_some() {
        return found;
    }
    let named = naming::named(name);
    named.rank.or_else(|| {
        let number = named.number?;
        let note = "files name ranks by number only: they are called TP ranks here".to_owned();
        if !notes.contains(&note) {
            notes.push(note);
        }
        Some(Rank::tp(number))
    })
}

fn who_of_process(process: &nsight::Process, request: &Request, manifest: &Manifest) -> Who {
    let told = request.told.pids.get(&process.pid).or_else(|| manifest.pids.get(&process.pid)).copied();
    told.or_else(|| naming::of_process(&process.name)).map_or(Who::Pid(process.pid), Who::Rank)
}

/// The SQLite file of an Nsight capture: itself, or what it is inflated or exported to.
fn export_of(file: &TraceFile, loaded: &mut Loaded) -> Result<PathBuf, TraceError> {
    let packed = file.path.extension().is_some_and(|e| e == "gz");
    if file.format == Format::NsightSqlite && !packed {
        return Ok(file.path.clone());
    }
    let temp = TempFolder::new().map_err(|why| TraceError::Unreadable { path: file.path.clone(), why })?;
    let out = if packed {
        let out = temp.0.join("export.sqlite");
        let unreadable = |why| TraceError::Unreadable { path: file.path.clone(), why };
        let mut to = std::fs::File::create(&out).map_err(unreadable)?;
        std::io::copy(&mut crate::observe::trace::open(&file.path)?, &mut to).map_err(unreadable)?;
        out
    } else {
        nsight::export(&file.path, &temp.0)?
    };
    loaded.exports.push(temp);
    Ok(out)
}

/// A folder that goes when this goes.
pub struct TempFolder(PathBuf);

impl TempFolder {
    /// Nobody else may look inside: an export holds the profiled process's environment.
    fn new() -> std::io::Result<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        loop {
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("skewtrap-export-{}-{n}", std::process::id()));
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        // What is left in a temporary folder does no harm.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Reads all jobs on a few threads. A file of a known rank that cannot be read makes that rank
/// missing; when none can be read, the first error is the answer.
fn read_all(
    jobs: Vec<Job>,
    progress: &(dyn Fn(u64) + Sync),
    loaded: &mut Loaded,
) -> Result<Vec<Read>, TraceError> {
    let limit = limit_for(jobs.len());
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4).min(jobs.len().max(1));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(at) else { break };
                    let result = read_one(job, limit, progress);
                    results.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((at, result));
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
                let name = jobs[at].pieces[0].path().display();
                loaded.notes.push(format!("left out {name}: several ranks are merged in it"));
            }
            Err(e) => {
                loaded.notes.push(e.to_string());
                loaded.unreadable.extend(jobs[at].who);
                first_error.get_or_insert(e);
            }
        }
    }
    name_the_nameless(&mut reads, loaded)?;
    match first_error {
        Some(e) if reads.is_empty() => Err(e),
        None if reads.is_empty() => Err(TraceError::Nothing(format!(
            "no trace of one rank is among them: {}",
            loaded.notes.join("; ")
        ))),
        _ => Ok(reads),
    }
}

/// All ranks together hold so many rows at most, 16 bytes each: about 100 MB.
const MAX_ROWS: usize = 6_000_000;

fn limit_for(ranks: usize) -> Limit {
    let rows = (MAX_ROWS / ranks.max(1)).max(20_000);
    Limit { rows, ..Limit::default() }
}

/// Reads one rank; `None` when the file turns out to be a merged trace.
fn read_one(job: &Job, limit: Limit, progress: &(dyn Fn(u64) + Sync)) -> Result<Option<Read>, TraceError> {
    let mut trace = RankTrace::default();
    let mut facts = kineto::Facts::default();
    for piece in &job.pieces {
        match piece {
            Piece::Kineto(file) => facts = read_kineto(&file.path, limit, &mut trace, progress)?,
            Piece::Nsight(path, pid) => nsight::Export::open(path)?.read(path, *pid, limit, &mut trace)?,
        }
    }
    let mut ranks: Vec<Rank> = facts.processes.iter().filter_map(|p| naming::of_process(p)).collect();
    ranks.sort_unstable();
    ranks.dedup();
    if ranks.len() > 1 {
        return Ok(None);
    }
    trace.finish();
    let told = ranks.first().copied().or_else(|| match facts.distributed {
        // A replica calls itself rank 0 of 1: that names nobody.
        Some((rank, world)) if world > 1 => u16::try_from(rank).ok().map(Rank::tp),
        _ => None,
    });
    let who = job.who.or(told.map(Who::Rank)).unwrap_or(Who::Rank(Rank::NONE));
    let folded = step::annotated(&trace)
        .map(|(source, marks)| (source, marks.to_vec()))
        .map(|(source, marks)| step::fold(who, std::mem::take(&mut trace), source, &marks));
    Ok(Some(Read { pieces: job.pieces.clone(), who, trace, folded }))
}

/// Refuses traces that nothing names, and two traces of one name.
fn name_the_nameless(reads: &mut [Read], loaded: &mut Loaded) -> Result<(), TraceError> {
    let nameless: Vec<String> = reads
        .iter()
        .filter(|r| r.who == Who::Rank(Rank::NONE))
        .map(|r| r.pieces[0].path().display().to_string())
        .collect();
    if !nameless.is_empty() && reads.len() > 1 {
        let shown = nameless.iter().take(8).cloned().collect::<Vec<_>>().join("\n  ");
        return Err(TraceError::Nothing(format!(
            "neither name nor content tells whose these {} traces are; say it with --rank-regex or --rank PART=dp1:\n  {shown}",
            nameless.len()
        )));
    }
    reads.sort_by_key(|r| r.who);
    if let Some(pair) = reads.windows(2).find(|w| w[0].who == w[1].who) {
        let (a, b) = (pair[0].pieces[0].path().display(), pair[1].pieces[0].path().display());
        return Err(TraceError::Nothing(format!(
            "both {a} and {b} are of {}: these are several captures; give the files of one",
            pair[0].who
        )));
    }
    if reads.iter().any(|r| matches!(r.who, Who::Pid(_))) {
        loaded
            .notes
            .push("no manifest tells the ranks of these processes; say it with --rank PID=dp1".into());
    }
    Ok(())
}

/// Folds what annotations did not fold, by the period of a common kernel.
fn fold_all(reads: Vec<Read>, loaded: &mut Loaded) {
    let waiting: Vec<&RankTrace> = reads.iter().filter(|r| r.folded.is_none()).map(|r| &r.trace).collect();
    let periods = if waiting.is_empty() { None } else { period::periods(&waiting) };
    loaded.period_kernel = periods.as_ref().map(|p| p.kernel.clone());
    let mut marks = periods.map(|p| p.marks).unwrap_or_default().into_iter();
    for read in reads {
        let profile = match read.folded {
            Some(profile) => profile,
            None => match marks.next().filter(|m| !m.is_empty()) {
                Some(marks) => step::fold(read.who, read.trace, StepSource::Period, &marks),
                None => step::fold(read.who, read.trace, StepSource::PerSecond, &[]),
            },
        };
        loaded.sources.push((read.who, read.pieces));
        if profile.rows == 0 && profile.partial {
            loaded.notes.push(format!("{}: {}", profile.who, profile.notes.join("; ")));
            loaded.unreadable.push(profile.who);
        } else {
            loaded.profiles.push(profile);
        }
    }
}
