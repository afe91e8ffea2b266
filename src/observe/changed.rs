//! Whether files that were read have changed since.
//!
//! Looked at by their stamps, again and again: that also notices what a file system tells nobody of
//! (a mount over the network) and links that are turned (a ConfigMap), and costs a few system calls.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// When, how large, and which file it is; `None` when it is not there.
type Stamp = Option<(SystemTime, u64, u64)>;

/// What is at a path: its own stamp, or that of every file in it, by name.
type Seen = BTreeMap<PathBuf, Vec<(PathBuf, Stamp)>>;

/// What some files and folders were like.
#[derive(Debug, Default)]
pub struct Changed {
    told: Seen,
    last: Seen,
}

impl Changed {
    /// As they are now.
    pub fn since_now(paths: &[PathBuf]) -> Self {
        let now = seen(paths);
        Self { told: now.clone(), last: now }
    }

    /// Whether they are other than when that was last told, and no longer change: a file that is
    /// being written is told of at the look after the last write, and once. A path that was not among
    /// those of the last look has just been read for the first time, and is as it should be.
    pub fn look(&mut self, paths: &[PathBuf]) -> bool {
        let now = seen(paths);
        self.told.retain(|path, _| now.contains_key(path));
        for (path, files) in &now {
            self.told.entry(path.clone()).or_insert_with(|| files.clone());
        }
        let (is_other, is_settled) = (now != self.told, now == self.last);
        if is_other && is_settled {
            self.told = now.clone();
        }
        self.last = now;
        is_other && is_settled
    }
}

fn seen(paths: &[PathBuf]) -> Seen {
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
        assert!(!changed.look(&paths));
        fs::write(&file, "ab").expect("written");
        assert!(!changed.look(&paths), "it may still be written");
        fs::write(&file, "abc").expect("written");
        assert!(!changed.look(&paths), "it was");
        assert_eq!([changed.look(&paths), changed.look(&paths)], [true, false]);
    }

    #[test]
    fn a_file_that_comes_into_a_folder_or_goes_is_a_change() {
        let dir = tempfile::tempdir().expect("a folder");
        let paths = [dir.path().to_owned()];
        let mut changed = Changed::since_now(&paths);
        fs::write(dir.path().join("more.yaml"), "a").expect("written");
        assert_eq!([changed.look(&paths), changed.look(&paths)], [false, true]);
        fs::remove_file(dir.path().join("more.yaml")).expect("removed");
        assert_eq!([changed.look(&paths), changed.look(&paths)], [false, true]);
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
        assert_eq!([changed.look(&paths), changed.look(&paths)], [false, true]);
    }

    #[test]
    fn a_path_that_is_looked_at_for_the_first_time_has_not_changed() {
        let dir = tempfile::tempdir().expect("a folder");
        let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
        fs::write(&one, "a").expect("written");
        fs::write(&two, "b").expect("written");
        let mut changed = Changed::since_now(std::slice::from_ref(&one));
        let both = [one, two.clone()];
        assert_eq!([changed.look(&both), changed.look(&both)], [false, false]);
        fs::write(&two, "bc").expect("written");
        assert_eq!([changed.look(&both), changed.look(&both)], [false, true]);
    }
}
