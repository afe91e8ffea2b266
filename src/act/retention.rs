//! Deletes old bundles, and only what provably belongs to this agent.
//!
//! The folders are read anew each time. A bundle is deleted only with a valid
//! `incident.json` of this agent's id; a server-written file only when the record lists it and its
//! path, size and inode are unchanged. No symlink is followed. What may not be deleted for lack of
//! permission is reported and still counts.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::act::bundle::{Bundles, record_in};
use skewtrap_core::capture::captured::CapturedFile;
use skewtrap_core::capture::keep::{Choice, Keep, KeptBundle, choose};
use skewtrap_core::incident::{CaptureOutcome, Record};
use skewtrap_trace::time::Time;

#[derive(Debug, Default)]
pub struct SweepResult {
    /// Incidents whose bundle was deleted.
    pub deleted: Vec<String>,
    /// Paths that could not be deleted, with the reason.
    pub stuck: Vec<(PathBuf, String)>,
    /// Bytes that all bundles still take.
    pub bytes_left: u64,
    /// Whether the next window would still exceed `keep.bytes`: then it must not open.
    pub over: bool,
}

/// Deletes the bundles that `keep` does not allow, so that a further window of `incoming` bytes fits.
pub fn sweep(bundles: &Bundles, agent: &str, keep: &Keep, incoming: u64, now: Time) -> SweepResult {
    let mut found = folders(bundles.root(), agent);
    let mut swept = SweepResult::default();
    let is_half_deleted = |f: &KeptBundle| deletion_path(bundles, &f.incident).exists();
    let half_deleted: Vec<String> =
        found.iter().filter(|f| is_half_deleted(f)).map(|f| f.incident.clone()).collect();
    delete(bundles, agent, half_deleted, &mut found, &mut swept);
    // Only trying shows what cannot be deleted; then the choice is made again without it.
    loop {
        let Choice { delete, bytes_left, over } = choose(&found, keep, incoming, now);
        (swept.bytes_left, swept.over) = (bytes_left, over);
        if delete.is_empty() {
            return swept;
        }
        self::delete(bundles, agent, delete, &mut found, &mut swept);
    }
}

fn delete(
    bundles: &Bundles,
    agent: &str,
    which: Vec<String>,
    found: &mut Vec<KeptBundle>,
    swept: &mut SweepResult,
) {
    for incident in which {
        match remove(bundles, &incident, agent) {
            Ok(()) => {
                found.retain(|f| f.incident != incident);
                swept.deleted.push(incident);
            }
            Err((path, why)) => {
                found.iter_mut().filter(|f| f.incident == incident).for_each(|f| f.undeletable = true);
                swept.stuck.push((path, why.to_string()));
            }
        }
    }
}

/// The name of a bundle while it is being deleted.
fn deletion_path(bundles: &Bundles, incident: &str) -> PathBuf {
    bundles.root().join(format!(".{incident}.deleted"))
}

/// The bundles of this agent that exist now.
pub fn folders(root: &Path, agent: &str) -> Vec<KeptBundle> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let folders = entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path());
    folders.filter_map(|folder| bundle_in(&folder, agent)).collect()
}

fn bundle_in(folder: &Path, agent: &str) -> Option<KeptBundle> {
    let name = folder.file_name()?.to_str()?;
    // A bundle whose deletion was interrupted still counts, and its deletion is tried again.
    let name = name.strip_prefix('.').and_then(|n| n.strip_suffix(".deleted")).unwrap_or(name);
    let record = record_in(folder).filter(|r| *r.agent == *agent && *r.incident.id == *name)?;
    let outside: u64 =
        external(&record.files).filter(|(path, file)| is_unchanged(path, file)).map(|(_, f)| f.size).sum();
    Some(KeptBundle {
        incident: name.to_owned(),
        at: record.incident.fired_at,
        bytes: size_of(folder).saturating_add(outside),
        pinned: folder.join("pinned").exists(),
        undeletable: is_unfinished(&record),
    })
}

fn is_unfinished(record: &Record) -> bool {
    matches!(record.incident.capture, CaptureOutcome::Open { .. })
}

/// Files that were left where the server wrote them.
fn external(files: &[CapturedFile]) -> impl Iterator<Item = (PathBuf, &CapturedFile)> {
    files
        .iter()
        .map(|f| (PathBuf::from(&f.path), f))
        .filter(|(path, f)| path.is_absolute() && f.inode.is_some())
}

/// The paths of those that are still what was captured.
pub fn left_in_place(files: &[CapturedFile]) -> impl Iterator<Item = PathBuf> {
    external(files).filter(|(path, listed)| is_unchanged(path, listed)).map(|(path, _)| path)
}

fn is_unchanged(path: &Path, listed: &CapturedFile) -> bool {
    fs::symlink_metadata(path)
        .is_ok_and(|m| m.is_file() && m.len() == listed.size && Some(m.ino()) == listed.inode)
}

/// Bytes below `folder`, without symlinks.
fn size_of(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.fold(0, |sum, entry| match entry.metadata() {
        Ok(m) if m.is_dir() => sum + size_of(&entry.path()),
        Ok(m) if m.is_file() => sum + m.len(),
        _ => sum,
    })
}

fn remove(bundles: &Bundles, incident: &str, agent: &str) -> Result<(), (PathBuf, io::Error)> {
    let (folder, deleting) = (bundles.path(incident), deletion_path(bundles, incident));
    if !deleting.exists() {
        // The record is read again: the folder may have been replaced since the choice was made.
        let Some(record) = record_in(&folder).filter(|r| *r.agent == *agent) else { return Ok(()) };
        for (path, _) in external(&record.files).filter(|(path, file)| is_unchanged(path, file)) {
            fs::remove_file(&path).map_err(|e| (path.clone(), e))?;
            remove_emptied(&path, &record);
        }
        fs::rename(&folder, &deleting).map_err(|e| (folder.clone(), e))?;
    }
    // The record goes last, so that the bundle can be recognised as long as anything is left of it.
    let fail = |e| (deleting.clone(), e);
    let record = deleting.join("incident.json");
    for entry in fs::read_dir(&deleting).map_err(fail)?.flatten().filter(|e| e.path() != record) {
        let is_folder = entry.file_type().is_ok_and(|t| t.is_dir());
        // `remove_dir_all` removes a symlink, it does not follow it.
        let gone = if is_folder { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
        gone.map_err(|e| (entry.path(), e))?;
    }
    fs::remove_dir_all(&deleting).map_err(fail)
}

/// Deletes the bundle in that folder because it is in a store; whether it is gone.
pub fn remove_uploaded(bundles: &Bundles, folder: &Path) -> bool {
    let incident = folder.file_name().and_then(|n| n.to_str());
    let Some(record) = incident.and_then(|id| bundles.read(id)) else { return false };
    !is_unfinished(&record) && remove(bundles, &record.incident.id, &record.agent).is_ok()
}

/// The folder that the server made for a window of this incident, once it is empty.
fn remove_emptied(path: &Path, record: &Record) {
    let first = format!("skewtrap-{}", record.incident.id);
    let is_ours = |name: &str| name == first || name.starts_with(&format!("{first}-w"));
    let named = |p: &&Path| p.file_name().and_then(|n| n.to_str()).is_some_and(is_ours);
    if let Some(parent) = path.parent().filter(named) {
        // Fails when it is not empty, which is what should happen then.
        let _ = fs::remove_dir(parent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::act::record_of_a_test;

    const KEEP: Keep = Keep { count: 1, age: std::time::Duration::from_secs(1_000_000), bytes: 1 << 20 };

    fn now() -> Time {
        Time::from_epoch_s(1000.0)
    }

    fn external_file(path: &Path) -> CapturedFile {
        let found = fs::metadata(path).unwrap();
        CapturedFile {
            path: path.display().to_string(),
            size: found.len(),
            inode: Some(found.ino()),
            ..CapturedFile::default()
        }
    }

    #[test]
    fn only_own_bundles_and_listed_unchanged_files_are_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("incidents");
        let bundles = Bundles::open(&root, "agent".into()).unwrap();
        let server = dir.path().join("skewtrap-old");
        fs::create_dir(&server).unwrap();
        let (listed, changed) = (server.join("a.gz"), server.join("b.gz"));
        fs::write(&listed, b"one").unwrap();
        fs::write(&changed, b"two").unwrap();
        let second = dir.path().join("skewtrap-old-w2");
        fs::create_dir(&second).unwrap();
        fs::write(second.join("c.gz"), b"three").unwrap();
        let mut old = record_of_a_test("old", 1.0);
        old.files =
            vec![external_file(&listed), external_file(&changed), external_file(&second.join("c.gz"))];
        bundles.create(&old, b"").unwrap();
        fs::write(&changed, b"somebody wrote to it since").unwrap();
        bundles.create(&record_of_a_test("new", 2.0), b"").unwrap();
        let foreign = Record { agent: "another".into(), ..record_of_a_test("foreign", 0.0) };
        bundles.create(&foreign, b"").unwrap();
        fs::create_dir(root.join("holiday-photos")).unwrap();
        fs::create_dir(dir.path().join("precious")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("precious"), root.join("old").join("link")).unwrap();

        let swept = sweep(&bundles, "agent", &KEEP, 0, now());
        assert_eq!(swept.deleted, ["old"]);
        assert!(!root.join("old").exists() && !listed.exists());
        assert!(!second.exists(), "the folder of its second window was emptied, and is gone");
        assert!(changed.exists() && root.join("new").exists() && root.join("foreign").exists());
        assert!(root.join("holiday-photos").exists() && dir.path().join("precious").exists());
    }

    #[test]
    fn a_pinned_bundle_stays_and_blocks_when_the_limit_is_reached() {
        let dir = tempfile::tempdir().unwrap();
        let bundles = Bundles::open(dir.path(), "agent".into()).unwrap();
        bundles.create(&record_of_a_test("old", 1.0), &[b' '; 2000]).unwrap();
        fs::write(dir.path().join("old/pinned"), b"").unwrap();
        let keep = Keep { bytes: 2500, ..KEEP };
        let swept = sweep(&bundles, "agent", &keep, 1000, now());
        assert!(swept.deleted.is_empty() && swept.over);
        assert!(dir.path().join("old").exists());
    }
}
