//! Room on the disk of the state that is kept for the end of a window: a file that is only there to be
//! deleted when the disk is full. No window begins without it.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rusqlite::ErrorCode;
use tracing::warn;

use super::{State, StateError};

const NAME: &str = "reserve";
/// SQLite's log and index of a few writes.
const SIZE: usize = 512 << 10;

/// Makes the reserve where it is missing.
pub(super) fn keep(folder: &Path) -> std::io::Result<()> {
    let path = folder.join(NAME);
    if path.metadata().is_ok_and(|there| there.len() == SIZE as u64) {
        return Ok(());
    }
    let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&path);
    // Written, not only sized: a file with holes keeps no room.
    let written = file.and_then(|mut file| file.write_all(&vec![0; SIZE]));
    if written.is_err() {
        let _ = std::fs::remove_file(path);
    }
    written
}

/// Deletes the reserve; gives whether there was one.
pub(super) fn free(folder: &Path) -> bool {
    std::fs::remove_file(folder.join(NAME)).is_ok()
}

impl State {
    fn folder(&self) -> Option<&Path> {
        self.lock.as_ref().and_then(|_| self.file.parent())
    }

    /// Makes the reserve again where it was used.
    ///
    /// # Errors
    /// The disk has no room for it: then a window that begins could not be ended in the state.
    pub(super) fn keep_reserve(&self) -> Result<(), StateError> {
        // A copy in memory has its own.
        let Some(folder) = self.folder().filter(|_| self.read_only.is_none()) else { return Ok(()) };
        keep(folder).map_err(|source| StateError::NoRoom { folder: folder.to_owned(), source })
    }

    /// Does what the end of a window needs; on a full disk, once more with the reserve.
    pub(super) fn with_reserve(&self, write: impl Fn() -> Result<(), StateError>) -> Result<(), StateError> {
        let written = write();
        let is_full = matches!(&written, Err(StateError::Database { source, .. })
            if source.sqlite_error_code() == Some(ErrorCode::DiskFull));
        if !is_full {
            if written.is_ok() && self.folder().is_some_and(|folder| !folder.join(NAME).exists()) {
                // While there is room: somebody else may fill it again.
                self.use_log_again();
            }
            return written;
        }
        if self.folder().is_some_and(free) {
            warn!(
                "the disk of the state is full: the reserve is used for what is open, and no window begins"
            );
        }
        self.use_log_again();
        let written = write();
        self.use_log_again();
        written
    }

    /// Moves what is in SQLite's log into the database, after which the log's own space is used again: the
    /// next writes need none of the disk.
    fn use_log_again(&self) {
        // Where that needs room that is not there, the write itself says so.
        let _ = self.lock().query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(()));
    }
}
