//! Detects that files have changed since they were read.
//!
//! Their stamps are compared at each poll. That costs a few system calls, and also notices changes for
//! which a file system sends no notification (a network mount) and links that are replaced (a ConfigMap).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Time of modification, size and inode of a file; `None` when it does not exist.
type Stamp = Option<(SystemTime, u64, u64)>;

/// For each path the stamp of the file, or the stamps of all files in the folder.
type Snapshot = BTreeMap<PathBuf, Vec<(PathBuf, Stamp)>>;

/// Compares files and folders with what they were like before.
#[derive(Debug, Default)]
pub struct Changed {
    /// As of the last reported change.
    reported: Snapshot,
    /// As of the last poll.
    last: Snapshot,
}

impl Changed {
    /// Reports changes from now on.
    pub fn since_now(paths: &[PathBuf]) -> Self {
        let now = snapshot(paths);
        Self { reported: now.clone(), last: now }
    }

    /// Whether they differ from the last reported change and did not change since the last poll. A file
    /// that is being written is therefore reported once, at the second poll after the last write. A path
    /// that is new to `paths` has just been read, so it does not count as changed.
    pub fn poll(&mut self, paths: &[PathBuf]) -> bool {
        let now = snapshot(paths);
        self.reported.retain(|path, _| now.contains_key(path));
        for (path, files) in &now {
            self.reported.entry(path.clone()).or_insert_with(|| files.clone());
        }
        let (is_different, is_settled) = (now != self.reported, now == self.last);
        if is_different && is_settled {
            self.reported = now.clone();
        }
        self.last = now;
        is_different && is_settled
    }
}

fn snapshot(paths: &[PathBuf]) -> Snapshot {
    paths.iter().map(|path| (path.clone(), files_at(path))).collect()
}

fn files_at(path: &Path) -> Vec<(PathBuf, Stamp)> {
    let Ok(within) = fs::read_dir(path) else { return vec![(path.to_owned(), stamp_of(path))] };
    let files = within.filter_map(|e| Some(e.ok()?.path()));
    let mut files: Vec<(PathBuf, Stamp)> = files.map(|f| (f.clone(), stamp_of(&f))).collect();
    files.sort();
    files
}

fn stamp_of(path: &Path) -> Stamp {
    let file = fs::metadata(path).ok()?;
    Some((file.modified().ok()?, file.len(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_once_and_only_when_it_is_over() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("rules.yaml");
        fs::write(&file, "a").expect("written");
        let paths = [file.clone()];
        let mut changed = Changed::since_now(&paths);
        assert!(!changed.poll(&paths));
        fs::write(&file, "ab").expect("written");
        assert!(!changed.poll(&paths), "it may still be written");
        fs::write(&file, "abc").expect("written");
        assert!(!changed.poll(&paths), "it was");
        assert_eq!([changed.poll(&paths), changed.poll(&paths)], [true, false]);
    }

    #[test]
    fn a_file_that_comes_into_a_folder_or_goes_is_a_change() {
        let dir = tempfile::tempdir().expect("a folder");
        let paths = [dir.path().to_owned()];
        let mut changed = Changed::since_now(&paths);
        fs::write(dir.path().join("more.yaml"), "a").expect("written");
        assert_eq!([changed.poll(&paths), changed.poll(&paths)], [false, true]);
        fs::remove_file(dir.path().join("more.yaml")).expect("removed");
        assert_eq!([changed.poll(&paths), changed.poll(&paths)], [false, true]);
    }

    #[test]
    fn a_link_that_is_turned_is_a_change() {
        let dir = tempfile::tempdir().expect("a folder");
        let at = |name: &str| dir.path().join(name);
        for name in ["one", "two"] {
            fs::write(at(name), "same").expect("written");
        }
        std::os::unix::fs::symlink(at("one"), at("link")).expect("linked");
        let paths = [at("link")];
        let mut changed = Changed::since_now(&paths);
        std::os::unix::fs::symlink(at("two"), at("new")).expect("linked");
        fs::rename(at("new"), at("link")).expect("turned");
        assert_eq!([changed.poll(&paths), changed.poll(&paths)], [false, true]);
    }

    #[test]
    fn a_path_that_is_looked_at_for_the_first_time_has_not_changed() {
        let dir = tempfile::tempdir().expect("a folder");
        let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
        fs::write(&one, "a").expect("written");
        fs::write(&two, "b").expect("written");
        let mut changed = Changed::since_now(std::slice::from_ref(&one));
        let both = [one, two.clone()];
        assert_eq!([changed.poll(&both), changed.poll(&both)], [false, false]);
        fs::write(&two, "bc").expect("written");
        assert_eq!([changed.poll(&both), changed.poll(&both)], [false, true]);
    }
}
