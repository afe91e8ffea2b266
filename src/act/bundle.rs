//! Incident bundles: one folder per incident, written so that a crash leaves no incomplete file under
//! its final name. Everything is written under a name that begins with a dot, synced, then renamed.
//!
//! ```text
//! <incident>/incident.json    the record, replaced as a whole when it changes
//!            evidence.jsonl   the minutes before the trigger
//!            traces/          captured files that could be moved in
//! ```
//! A further capture of an incident that escalated has an `evidence-2.jsonl` and a
//! `traces-2` of its own beside these; the one record lists all.
//!
//! Files that cannot be moved (another file system, another user's folder) are left where the
//! server wrote them and referenced. The server's folder itself is never removed here: a rank that
//! is still armed would write into it, and SGLang dies when it cannot.

mod baselines;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use thiserror::Error;
use tracing::warn;

use self::baselines::BaselineIndex;
use skewtrap_core::capture::captured::CapturedFile;
use skewtrap_core::capture::verify::Artifact;
use skewtrap_core::incident::{Incident, Record, StoredCapture};
use skewtrap_trace::time::Time;

const INCIDENT: &str = "incident.json";
const EVIDENCE: &str = "evidence.jsonl";
const TRACES: &str = "traces";
/// A bundle without a readable record may be another agent's that is being written; for so long nobody touches it.
const ABANDONED: Duration = Duration::from_secs(600);
/// Bytes of evidence that are written at once.
const EVIDENCE_BUFFER: usize = 64 << 10;

/// What `evidence.jsonl` is written from: megabytes of text, which are never held as a whole.
pub trait Evidence {
    /// Whether there is none.
    fn is_empty(&self) -> bool;

    /// Writes the file's content.
    ///
    /// # Errors
    /// As `out` has them.
    fn write(&self, out: &mut dyn Write) -> io::Result<()>;
}

impl<T: AsRef<[u8]> + ?Sized> Evidence for T {
    fn is_empty(&self) -> bool {
        self.as_ref().is_empty()
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(self.as_ref())
    }
}

/// A bundle could not be written.
#[derive(Debug, Error)]
#[error("the bundle {path} cannot be written: {source}; free some space or check incident_dir")]
pub struct BundleError {
    /// Which file or folder.
    path: PathBuf,
    source: io::Error,
}

impl BundleError {
    /// Whether only room is missing: that may come back, and no window opens without it.
    pub fn is_of_room(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// The folder of all bundles.
#[derive(Clone, Debug)]
pub struct Bundles {
    root: PathBuf,
    agent: Arc<str>,
    /// Held from reading a record until the changed record is written.
    writing: Arc<Mutex<()>>,
    baselines: Arc<Mutex<BaselineIndex>>,
}

/// An incomplete bundle that was found at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recovered {
    /// All of it was written; it got its final name.
    Completed(String),
    /// It has no valid record: it is kept as `<incident>.incomplete`.
    Marked(String),
}

impl Bundles {
    /// The bundles below `root`, which is created where it is missing.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn open(root: &Path, agent: Arc<str>) -> Result<Self, BundleError> {
        folders(root).map_err(|e| failed(root, e))?;
        Ok(Self::at(root, agent))
    }

    /// The bundles below `root`, whether or not it can be written: if not, each write fails.
    pub fn at(root: &Path, agent: Arc<str>) -> Self {
        Self { root: root.to_owned(), agent, writing: Arc::default(), baselines: Arc::default() }
    }

    /// Where all bundles are.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the bundle of an incident is, or will be.
    pub fn path(&self, incident: &str) -> PathBuf {
        self.root.join(incident)
    }

    /// Whether anything was written of an incident's bundle that is there still.
    pub fn is_begun(&self, incident: &str) -> bool {
        self.path(incident).is_dir() || self.partial(incident).is_dir()
    }

    /// Creates the bundle of `record` with its evidence, or brings the record of an existing one up to date: the
    /// files, exchanges and processes in it stay.
    ///
    /// # Errors
    /// It cannot be written; then there is nothing under its name.
    pub fn create(&self, record: &Record, evidence: &dyn Evidence) -> Result<PathBuf, BundleError> {
        let path = self.path(&record.incident.id);
        if path.is_dir() {
            let window = record.incident.window();
            let evidence_of = path.join(numbered(EVIDENCE, window));
            // A capture that was refused at first and is made now gets the evidence of now.
            let is_late = record.incident.worse_of(window).is_some();
            if !evidence_of.exists() || is_late && !evidence.is_empty() {
                let partial = path.join(format!(".{}.partial", numbered(EVIDENCE, window)));
                write_evidence(&partial, evidence)
                    .and_then(|()| fs::rename(&partial, &evidence_of))
                    .and_then(|()| sync(&path))
                    .map_err(|e| failed(&evidence_of, e))?;
            }
            return self.write_over(record).map(|()| path);
        }
        let partial = self.partial(&record.incident.id);
        let fail = |e| failed(&partial, e);
        if partial.exists() {
            fs::remove_dir_all(&partial).map_err(fail)?;
        }
        folders(&partial).map_err(fail)?;
        // The record first: with it a bundle that a crash left here can be completed.
        write_synced(&partial.join(INCIDENT), &json(record)).map_err(fail)?;
        let evidence_of = partial.join(numbered(EVIDENCE, record.incident.window()));
        write_evidence(&evidence_of, evidence).map_err(fail)?;
        sync(&partial).map_err(fail)?;
        fs::rename(&partial, &path).and_then(|()| sync(&self.root)).map_err(|e| failed(&path, e))?;
        self.note_baseline(&record.incident);
        Ok(path)
    }

    /// Replaces the record of a bundle as a whole.
    ///
    /// # Errors
    /// It cannot be written; the old one stays.
    pub fn write(&self, record: &Record) -> Result<(), BundleError> {
        let _writing = crate::world::lock(&self.writing);
        self.replace(record)
    }

    /// Replaces the record of a bundle but for what captures brought.
    fn write_over(&self, record: &Record) -> Result<(), BundleError> {
        let _writing = crate::world::lock(&self.writing);
        let mut record = record.clone();
        match self.there(&record.incident.id) {
            Ok(there) => there.into_iter().for_each(|there| record.keep_captured(there)),
            Err(error) if error.source.kind() == io::ErrorKind::InvalidData => {
                self.set_aside(&record.incident.id)?
            }
            Err(error) => return Err(error),
        }
        self.replace(&record)
    }

    /// Of a record that cannot be read nothing is known to be kept: it was cut off, or is of a later release.
    /// It stays in the bundle for people, and a new one takes its place.
    fn set_aside(&self, incident: &str) -> Result<(), BundleError> {
        let path = self.path(incident).join(INCIDENT);
        let aside = path.with_extension("json.unreadable");
        warn!("{} cannot be read: it is kept as {}, and written anew", path.display(), aside.display());
        fs::rename(&path, &aside).map_err(|e| failed(&aside, e))
    }

    /// Brings the incident in a record up to date; what else is in it stays. Without a bundle there is
    /// nothing to do. Returns whether there is one.
    ///
    /// # Errors
    /// It cannot be read or written; the old one stays.
    pub fn update(&self, incident: Incident) -> Result<bool, BundleError> {
        let _writing = crate::world::lock(&self.writing);
        let there = match self.there(&incident.id) {
            Err(error) if error.source.kind() == io::ErrorKind::InvalidData => {
                self.set_aside(&incident.id)?;
                let mut new = Record::new(self.agent.clone(), incident.clone());
                new.files =
                    incident.capture.captured().map(|captured| captured.files.clone()).unwrap_or_default();
                Some(new)
            }
            there => there?,
        };
        let Some(mut record) = there else { return Ok(false) };
        let path = || self.path(&incident.id).display().to_string();
        let bundle = incident.bundle.clone().unwrap_or_else(path);
        record.incident = Incident { bundle: Some(bundle), ..incident };
        self.replace(&record).map(|()| true)
    }

    /// Adds the files that a capture stored, and how they came, to the record of its incident; the
    /// incident itself stays as the core last reported it. Without a bundle there is nothing to do.
    ///
    /// # Errors
    /// It cannot be read or written; the old one stays.
    pub fn add_files(&self, incident: &str, stored: &StoredCapture) -> Result<(), BundleError> {
        let _writing = crate::world::lock(&self.writing);
        let Some(mut record) = self.there(incident)? else { return Ok(()) };
        record.add_files(stored);
        self.replace(&record)
    }

    fn replace(&self, record: &Record) -> Result<(), BundleError> {
        let path = self.path(&record.incident.id);
        let partial = path.join(format!(".{INCIDENT}.partial"));
        write_synced(&partial, &json(record))
            .and_then(|()| fs::rename(&partial, path.join(INCIDENT)))
            .and_then(|()| sync(&path))
            .map_err(|e| failed(&path, e))?;
        self.note_baseline(&record.incident);
        Ok(())
    }

    /// Only a baseline waits for who reads all records.
    fn note_baseline(&self, incident: &Incident) {
        if incident.is_baseline {
            self.index().note(incident);
        }
    }

    fn index(&self) -> MutexGuard<'_, BaselineIndex> {
        crate::world::lock(&self.baselines)
    }

    /// Moves the files of the incident's capture number `window` (from 1) into the bundle, and references
    /// those that cannot be moved.
    ///
    /// # Errors
    /// The bundle itself cannot be written.
    pub fn adopt(
        &self,
        incident: &str,
        window: usize,
        files: &[Artifact],
    ) -> Result<Vec<CapturedFile>, BundleError> {
        let traces = self.path(incident).join(traces_of(window));
        if !files.is_empty() {
            folders(&traces).map_err(|e| failed(&traces, e))?;
        }
        let adopted = files.iter().map(|file| adopt_one(&traces, window, file)).collect();
        sync(&self.path(incident)).map_err(|e| failed(&traces, e))?;
        self.clear_scratch(incident, window);
        Ok(adopted)
    }

    /// What is still in the scratch folder goes into the bundle as it is, to be deleted with it.
    fn clear_scratch(&self, incident: &str, window: usize) {
        let scratch = self.scratch_of(incident, window);
        if scratch.exists() && fs::remove_dir(&scratch).is_err() {
            // Fails when the bundle has such a folder already; then the scratch folder stays.
            let _ = fs::rename(&scratch, self.path(incident).join(numbered("left", window)));
        }
    }

    /// The path of the folder that [`Self::scratch`] creates.
    pub fn scratch_of(&self, incident: &str, window: usize) -> PathBuf {
        self.root.join(numbered(&format!(".{incident}.scratch"), window))
    }

    /// The files that lie in the scratch folder of a capture of an incident.
    pub fn scratched(&self, incident: &str, window: usize) -> Vec<PathBuf> {
        let folder = self.scratch_of(incident, window);
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let plain = entries.filter(|e| e.file_type().is_ok_and(|t| t.is_file()));
        let mut files: Vec<PathBuf> = plain.map(|e| e.path()).collect();
        files.sort();
        files
    }

    /// Creates a folder for what other programs write during the incident's capture number `window`, on
    /// the same file system as its bundle. [`Self::adopt`] removes it.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn scratch(&self, incident: &str, window: usize) -> Result<PathBuf, BundleError> {
        let path = self.scratch_of(incident, window);
        folders(&path).and_then(|()| path.canonicalize()).map_err(|e| failed(&path, e))
    }

    /// The record of a bundle of this agent.
    pub fn read(&self, incident: &str) -> Option<Record> {
        self.there(incident).ok().flatten()
    }

    /// The same, told from a record that cannot be read.
    fn there(&self, incident: &str) -> Result<Option<Record>, BundleError> {
        let path = self.path(incident).join(INCIDENT);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|e| failed(&path, e))?,
        };
        let record: Record = serde_json::from_slice(&bytes)
            .map_err(|e| failed(&path, io::Error::new(io::ErrorKind::InvalidData, e)))?;
        Ok(Some(record).filter(|record| record.agent == self.agent))
    }

    /// The same with the very bytes that it was read from.
    pub fn read_with_bytes(&self, incident: &str) -> Option<(Record, Vec<u8>)> {
        let bytes = fs::read(self.path(incident).join(INCIDENT)).ok()?;
        let record: Record = serde_json::from_slice(&bytes).ok()?;
        (record.agent == self.agent).then_some((record, bytes))
    }

    /// The records of all of this agent's bundles.
    fn records(&self) -> impl Iterator<Item = Record> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter_map(|name| self.read(&name).filter(|r| *r.incident.id == *name))
    }

    /// The records of this agent's incidents that fired at `since` or later, in the order of their ids.
    pub fn fired_since(&self, since: Time) -> Vec<Record> {
        let mut found: Vec<Record> = self.records().filter(|r| r.incident.fired_at >= since).collect();
        found.sort_by(|a, b| a.incident.id.cmp(&b.incident.id));
        found
    }

    /// The files in the `traces` folder of the incident's capture number `window`, whether its record
    /// lists them or not.
    pub fn traces(&self, incident: &str, window: usize) -> Vec<PathBuf> {
        let entries =
            fs::read_dir(self.path(incident).join(traces_of(window))).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        files.sort();
        files
    }

    /// Completes the bundles that a crash left incomplete, with their own record or one of `known`, and
    /// marks those that have neither. Those of other agents, which may share the folder, stay as they are. One that
    /// cannot be written keeps no other from being completed.
    pub fn recover(&self, known: &[Record], now: Time) -> (Vec<Recovered>, Vec<BundleError>) {
        let (mut found, mut errors) = (Vec::new(), Vec::new());
        // That there is no such folder, whoever opened it has told.
        if !self.root.is_dir() {
            return (found, errors);
        }
        let entries = match fs::read_dir(&self.root) {
            Err(error) => {
                errors.push(failed(&self.root, error));
                return (found, errors);
            }
            Ok(entries) => entries,
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(incident) = partial_of(&name) else { continue };
            let known = known.iter().find(|record| *record.incident.id == *incident);
            match self.recover_one(&entry.path(), incident, known, now) {
                Ok(recovered) => found.extend(recovered),
                Err(error) => errors.push(error),
            }
        }
        self.index().clear();
        (found, errors)
    }

    fn recover_one(
        &self,
        partial: &Path,
        incident: &str,
        known: Option<&Record>,
        now: Time,
    ) -> Result<Option<Recovered>, BundleError> {
        let fail = |e| failed(partial, e);
        let there = record_in(partial).filter(|record| *record.incident.id == *incident);
        if there.as_ref().is_some_and(|record| record.agent != self.agent) {
            return Ok(None);
        }
        // Of another user: it is neither ours nor left behind.
        let denied = |e: io::Error| e.kind() == io::ErrorKind::PermissionDenied;
        if there.is_none() && fs::read(partial.join(INCIDENT)).is_err_and(denied) {
            return Ok(None);
        }
        let mut whole = there.is_some();
        if let Some(record) = known.filter(|_| !whole) {
            write_synced(&partial.join(INCIDENT), &json(record)).map_err(fail)?;
            whole = true;
        }
        if !whole && !is_older(partial, ABANDONED, now) {
            return Ok(None);
        }
        if !whole && is_empty(partial) {
            // Killed before a byte of its record was written, and the state does not know it.
            return fs::remove_dir_all(partial).map(|()| None).map_err(fail);
        }
        let (target, recovered) = if whole && !self.path(incident).exists() {
            (self.path(incident), Recovered::Completed(incident.to_owned()))
        } else {
            (self.root.join(format!("{incident}.incomplete")), Recovered::Marked(incident.to_owned()))
        };
        if target.exists() {
            fs::remove_dir_all(partial).map_err(fail)?;
        } else {
            fs::rename(partial, &target).map_err(|e| failed(&target, e))?;
        }
        Ok(Some(recovered))
    }

    fn partial(&self, incident: &str) -> PathBuf {
        self.root.join(format!(".{incident}.partial"))
    }
}

/// Whether nothing was made or removed in a folder for so long.
fn is_older(folder: &Path, than: Duration, now: Time) -> bool {
    let changed = fs::metadata(folder).map(|metadata| metadata.mtime().saturating_mul(1_000_000_000));
    changed.is_ok_and(|changed| now.since(Time::from_nanos(changed)) >= than)
}

/// Whether a folder has no file with anything in it.
fn is_empty(folder: &Path) -> bool {
    let Ok(mut entries) = fs::read_dir(folder) else { return false };
    entries.all(|entry| entry.and_then(|entry| entry.metadata()).is_ok_and(|m| m.is_file() && m.len() == 0))
}

/// The record in a folder, if there is a valid one.
pub fn record_in(folder: &Path) -> Option<Record> {
    serde_json::from_slice(&fs::read(folder.join(INCIDENT)).ok()?).ok()
}

/// The folder of a bundle for summaries that came from other nodes.
pub fn gathered_of(bundle: &Path, window: usize) -> PathBuf {
    bundle.join(numbered("gathered", window))
}

/// Where the ranks of a capture are: its files, and the summaries that came from other nodes.
pub fn ranks_of(bundle: &Path, window: usize) -> Vec<PathBuf> {
    let gathered = gathered_of(bundle, window);
    let is_there = gathered.is_dir();
    [bundle.join(traces_of(window))].into_iter().chain(is_there.then_some(gathered)).collect()
}

/// The folder in a bundle for the traces of capture number `window`: `traces`, `traces-2`.
pub fn traces_of(window: usize) -> String {
    numbered(TRACES, window)
}

/// `evidence.jsonl` for an incident's first capture, `evidence-2.jsonl` for the second.
pub fn numbered(name: &str, window: usize) -> String {
    match name.rsplit_once('.') {
        _ if window <= 1 => name.to_owned(),
        Some((stem, extension)) => format!("{stem}-{window}.{extension}"),
        None => format!("{name}-{window}"),
    }
}

fn partial_of(name: &OsStr) -> Option<&str> {
    name.to_str()?.strip_prefix('.')?.strip_suffix(".partial")
}

/// `rename` only: a copy of gigabytes can fail halfway.
fn adopt_one(traces: &Path, window: usize, file: &Artifact) -> CapturedFile {
    let source = Path::new(&file.path);
    let Some(name) = source.file_name() else { return file.captured(file.path.clone(), true) };
    let target = traces.join(name);
    let is_plain = fs::symlink_metadata(source).is_ok_and(|m| m.is_file() && m.ino() == file.inode);
    let moved = source == target || (is_plain && !target.exists() && fs::rename(source, &target).is_ok());
    if moved {
        file.captured(format!("{}/{}", traces_of(window), name.to_string_lossy()), false)
    } else {
        file.captured(file.path.clone(), true)
    }
}

fn json(record: &Record) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(record).expect("plain data with text keys serialises");
    bytes.push(b'\n');
    bytes
}

/// Creates a folder that only its owner can enter; an existing one stays as it is.
fn folders(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Only the owner can read a bundle: evidence and traces may hold what the server's users wrote.
fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = new_file(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn write_evidence(path: &Path, evidence: &dyn Evidence) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(EVIDENCE_BUFFER, new_file(path)?);
    evidence.write(&mut out)?;
    out.into_inner()?.sync_all()
}

fn new_file(path: &Path) -> io::Result<File> {
    File::options().create(true).truncate(true).write(true).mode(0o600).open(path)
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn failed(path: &Path, source: io::Error) -> BundleError {
    BundleError { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
