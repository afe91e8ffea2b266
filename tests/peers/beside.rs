//! What lies beside the project, and may be missing.

use std::path::{Path, PathBuf};

/// A file or folder of the recordings, which lie beside the repository; `None`, said loudly, where
/// they do not.
pub fn recording(name: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = ["../shared/recordings", "../../shared/recordings"].map(|at| root.join(at).join(name));
    let found = found.into_iter().find(|path| path.exists());
    if found.is_none() {
        eprintln!("SKIPPED: the recording {name} is not beside this repository");
    }
    found
}

/// The first of these programs that is on the PATH.
pub fn installed(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).flat_map(|dir| names.iter().map(move |n| dir.join(n))).find(|p| p.is_file())
}
