//! Lists the traces in the folder of a capture, with a note about every other file. Looks one level
//! deeper when the folder itself has no trace, and refuses files of two captures.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use skewtrap_trace::labels::Labels;
use skewtrap_trace::rank::{Rank, parse_file_name};
use skewtrap_trace::summary;

use super::TraceError;

/// The most files of one comparison.
const MAX_FILES: usize = 1024;

/// The agent's own files in a bundle.
const BUNDLE_FILES: [&str; 6] =
    ["incident.json", "manifest.json", "evidence.jsonl", "report.json", "report.html", "server.log"];

/// The format of a trace file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// PyTorch profiler JSON, gzip or not.
    Kineto,
    /// An Nsight Systems export.
    NsightSqlite,
    /// An Nsight Systems report, to be exported first.
    NsightReport,
    /// The summary of a rank ([`skewtrap_trace::summary`]).
    Summary,
}

#[derive(Clone, Debug)]
pub struct TraceFile {
    /// As given, or inside of the given folder.
    pub path: PathBuf,
    /// By name, or by content.
    pub format: Format,
    /// In bytes.
    pub size: u64,
}

impl TraceFile {
    /// The last part of its path.
    pub fn name(&self) -> String {
        self.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

/// The ranks that the files of a bundle name.
#[derive(Clone, Debug, Default)]
pub struct Manifest {
    /// Ranks by file name.
    pub files: BTreeMap<String, Rank>,
    /// Ranks by process.
    pub pids: BTreeMap<u32, Rank>,
}

/// The content of a capture's folder.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// The traces, ordered by path.
    pub files: Vec<TraceFile>,
    /// What the bundle says about ranks.
    pub manifest: Manifest,
    /// Which files were left out, and why.
    pub notes: Vec<String>,
}

/// Lists the traces that `paths` (files or folders) hold.
///
/// # Errors
/// When a path does not exist, when there is no trace, when several captures are mixed.
pub fn inventory(paths: &[PathBuf]) -> Result<Inventory, TraceError> {
    if paths.is_empty() {
        return Err(TraceError::Nothing("none of its traces is there any more".into()));
    }
    let mut found = Inventory::default();
    for path in paths {
        let meta = fs::metadata(path).map_err(|why| TraceError::Unreadable { path: path.clone(), why })?;
        if meta.is_dir() {
            add_folder(path, &mut found)?;
        } else {
            // One that is named may be a pipe: `<(zcat ...)`.
            match classify(path)? {
                FileKind::Trace(format) => {
                    found.files.push(TraceFile { path: path.clone(), format, size: meta.len() });
                }
                FileKind::LeftOut(why) => {
                    let what = format!("this is {why}: give the traces of the ranks");
                    return Err(TraceError::File { path: path.clone(), what });
                }
                FileKind::Bundle | FileKind::Other => {
                    let what =
                        "this is no profiler trace (.trace.json, .trace.json.gz, .sqlite, .nsys-rep) and no summary of one (.summary.json)".into();
                    return Err(TraceError::File { path: path.clone(), what });
                }
            }
            read_manifests(path.parent().unwrap_or(Path::new(".")), &mut found);
        }
    }
    if found.files.is_empty() {
        let given = paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
        let left =
            if found.notes.is_empty() { String::new() } else { format!(" ({})", found.notes.join("; ")) };
        return Err(TraceError::Nothing(format!("no profiler trace in {given}{left}")));
    }
    prefer_exports(&mut found);
    if found.files.len() > MAX_FILES {
        return Err(TraceError::Nothing(format!(
            "{} traces are more than {MAX_FILES}, the most that one comparison takes: name those of the ranks in question",
            found.files.len()
        )));
    }
    check_one_capture(&found)?;
    found.files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// Whether a file is a trace, or the summary of one.
pub fn is_trace(path: &Path) -> bool {
    matches!(classify(path), Ok(FileKind::Trace(_)))
}

enum FileKind {
    Trace(Format),
    /// A related file, and what it is.
    LeftOut(&'static str),
    /// One of the agent's own.
    Bundle,
    Other,
}

/// Adds the traces of a folder, or else of the one folder below it that has any.
fn add_folder(dir: &Path, found: &mut Inventory) -> Result<(), TraceError> {
    let before = found.files.len();
    let below = list(dir, found)?;
    read_manifests(dir, found);
    if found.files.len() > before {
        return Ok(());
    }
    // A bundle keeps its files one level down.
    let mut with_traces = Vec::new();
    for sub in below {
        let mut inside = Inventory::default();
        list(&sub, &mut inside)?;
        if !inside.files.is_empty() {
            read_manifests(&sub, &mut inside);
            with_traces.push((sub, inside));
        }
    }
    let summaries = |inside: &Inventory| inside.files.iter().all(|f| f.format == Format::Summary);
    // Summaries beside traces are of the same ranks; alone they may lie in a folder for each rank.
    if with_traces.iter().any(|(_, inside)| !summaries(inside)) {
        with_traces.retain(|(_, inside)| !summaries(inside));
    }
    let of_ranks = with_traces.iter().all(|(_, inside)| summaries(inside));
    if with_traces.len() > 1 && !of_ranks {
        let names: Vec<String> = with_traces.iter().map(|(p, _)| p.display().to_string()).collect();
        return Err(TraceError::Nothing(format!(
            "{} holds {} captures: {}. Give one of them",
            dir.display(),
            names.len(),
            names.join(", ")
        )));
    }
    for (_, inside) in with_traces {
        found.files.extend(inside.files);
        found.notes.extend(inside.notes);
        found.manifest.files.extend(inside.manifest.files);
        found.manifest.pids.extend(inside.manifest.pids);
    }
    Ok(())
}

/// Adds the traces of one folder, and returns the folders below it.
fn list(dir: &Path, found: &mut Inventory) -> Result<Vec<PathBuf>, TraceError> {
    let unreadable = |why| TraceError::Unreadable { path: dir.to_owned(), why };
    let mut below = Vec::new();
    let mut entries: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(dir).map_err(unreadable)? {
        entries.push(entry.map_err(unreadable)?.path());
    }
    entries.sort();
    let mut other = 0usize;
    for path in entries {
        let Ok(meta) = fs::metadata(&path) else { continue };
        if meta.is_dir() {
            below.push(path);
            continue;
        }
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        // A pipe would be waited for.
        let kind = if meta.is_file() { classify(&path)? } else { FileKind::LeftOut("not a file") };
        match kind {
            FileKind::Trace(format) => found.files.push(TraceFile { path, format, size: meta.len() }),
            FileKind::LeftOut(why) => found.notes.push(format!("left out {name}: {why}")),
            FileKind::Bundle => {}
            FileKind::Other => other += usize::from(!name.starts_with('.')),
        }
    }
    if other > 0 && !found.files.is_empty() {
        found.notes.push(format!("left out {other} other file{}", if other == 1 { "" } else { "s" }));
    }
    Ok(below)
}

/// What a file is, by its name and, for JSON of any other name, by its first bytes.
fn classify(path: &Path) -> Result<FileKind, TraceError> {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let plain = name.strip_suffix(".gz").unwrap_or(&name);
    if plain.starts_with("merged-") && plain.ends_with(".json") {
        return Ok(FileKind::LeftOut("a merged trace, whose rows no longer carry their ranks"));
    }
    if name.contains("async_llm") {
        return Ok(FileKind::LeftOut("the trace of the front end, which has no GPU"));
    }
    if plain.starts_with("rpd-") {
        return Ok(FileKind::LeftOut("an RPD trace, which is not supported"));
    }
    if name.ends_with(".pickle") {
        return Ok(FileKind::LeftOut("a memory snapshot"));
    }
    if plain == "server_args.json" {
        return Ok(FileKind::LeftOut("the server's arguments"));
    }
    if BUNDLE_FILES.contains(&name.as_str()) {
        return Ok(FileKind::Bundle);
    }
    if summary::is_file_name(&name) {
        return Ok(FileKind::Trace(Format::Summary));
    }
    if name.ends_with(".qdstrm") {
        return Ok(FileKind::LeftOut("an Nsight report whose import failed; import it with Nsight Systems"));
    }
    if name.ends_with(".nsys-rep") {
        return Ok(FileKind::Trace(Format::NsightReport));
    }
    if name.ends_with(".sqlite") || name.ends_with(".sqlite.gz") {
        return Ok(FileKind::Trace(Format::NsightSqlite));
    }
    if plain.ends_with(".trace.json") {
        return Ok(FileKind::Trace(Format::Kineto));
    }
    if plain.ends_with(".json") {
        return Ok(if looks_like_trace(path)? { FileKind::Trace(Format::Kineto) } else { FileKind::Other });
    }
    Ok(FileKind::Other)
}

/// Whether a JSON file of any name begins like a trace.
fn looks_like_trace(path: &Path) -> Result<bool, TraceError> {
    let mut head = Vec::new();
    let reader = super::open(path)?;
    // A file that cannot be decompressed is no trace; that is no error of the others.
    let _ = reader.take(64 << 10).read_to_end(&mut head);
    let has = |word: &[u8]| memchr::memmem::find(&head, word).is_some();
    Ok(has(b"\"traceEvents\"") || has(b"\"schemaVersion\"") && has(b"\"deviceProperties\""))
}

/// Drops a report whose export is there: both have the same content.
fn prefer_exports(found: &mut Inventory) {
    let stem = |file: &TraceFile| {
        let name = file.name();
        let plain = name.strip_suffix(".gz").unwrap_or(&name);
        let stem = plain.strip_suffix(".sqlite").or_else(|| plain.strip_suffix(".nsys-rep")).unwrap_or(plain);
        file.path.with_file_name(stem)
    };
    let exports = found.files.iter().filter(|f| f.format == Format::NsightSqlite);
    let exported: BTreeSet<PathBuf> = exports.map(stem).collect();
    found.files.retain(|f| f.format != Format::NsightReport || !exported.contains(&stem(f)));
}

/// Refuses files of several captures, whose ranks would be compared across time.
fn check_one_capture(found: &Inventory) -> Result<(), TraceError> {
    let captures: BTreeSet<String> = found
        .files
        .iter()
        .filter(|f| f.format != Format::Summary)
        .filter_map(|f| parse_file_name(&f.name()).capture)
        .collect();
    if captures.len() > 1 {
        let names: Vec<&str> = captures.iter().map(String::as_str).take(8).collect();
        return Err(TraceError::Nothing(format!(
            "these files belong to {} captures ({}{}): give the files of one",
            captures.len(),
            names.join(", "),
            if captures.len() > 8 { ", ..." } else { "" }
        )));
    }
    Ok(())
}

/// The part of `incident.json`, or of a `manifest.json` written by hand, that names ranks.
#[derive(Default, Deserialize)]
#[serde(default)]
struct ManifestFile {
    files: Vec<FileEntry>,
    #[serde(alias = "pids")]
    processes: BTreeMap<String, Labels>,
}

#[derive(Deserialize)]
struct FileEntry {
    path: String,
    #[serde(default)]
    rank: Option<Labels>,
}

/// Reads what the agent wrote beside the traces or one level up; absent or unreadable files are
/// ignored.
fn read_manifests(dir: &Path, found: &mut Inventory) {
    let up = dir.parent().map(Path::to_owned).unwrap_or_default();
    for path in ["incident.json", "manifest.json"].iter().flat_map(|n| [dir.join(n), up.join(n)]) {
        let Ok(text) = fs::read(&path) else { continue };
        let Ok(parsed) = serde_json::from_slice::<ManifestFile>(&text) else { continue };
        for entry in parsed.files {
            let name = Path::new(&entry.path).file_name().map(|n| n.to_string_lossy().into_owned());
            if let (Some(name), Some(rank)) = (name, entry.rank.as_ref().and_then(Rank::from_labels)) {
                found.manifest.files.insert(name, rank);
            }
        }
        for (pid, labels) in parsed.processes {
            if let (Ok(pid), Some(rank)) = (pid.parse(), Rank::from_labels(&labels)) {
                found.manifest.pids.insert(pid, rank);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_among_the_files_is_named_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a-DP-0.trace.json"), r#"{"traceEvents":[]}"#).unwrap();
        let pipe = dir.path().join("a-DP-1.trace.json");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let found = inventory(&[dir.path().to_owned()]).unwrap();
        assert_eq!(found.files.len(), 1);
        assert_eq!(found.notes, ["left out a-DP-1.trace.json: not a file"]);
    }
}
