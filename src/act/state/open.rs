//! Opening the state: the folder's lock, the layout of the database, and what is done when the disk is
//! full or cannot be written.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use rusqlite::Connection;

use super::writer::Writer;
use super::{State, StateError, reserve};

impl State {
    /// Whether this process itself has the state in `folder` open.
    pub fn is_held_here(folder: &Path) -> bool {
        identity(&folder.join("lock")).is_some_and(|of| held().contains(&of))
    }

    /// Opens the state in `folder`, which is made if need be.
    ///
    /// # Errors
    /// Another agent uses it, it cannot be written, or a later release wrote it.
    pub fn open(folder: &Path) -> Result<Self, StateError> {
        let lock = lock(folder)?;
        let file = folder.join("state.sqlite");
        let opened = opened(&file).or_else(|error| {
            // A full disk: what was kept in reserve is enough to book the end of what is open.
            match reserve::free(folder) {
                true => opened(&file),
                false => Err(error),
            }
        });
        match opened {
            Ok(connection) => {
                // Without it no window begins, and the next try is then.
                let _ = reserve::keep(folder);
                Self::of(connection, file, Some(lock))
            }
            Err(error @ StateError::Newer { .. }) => Err(error),
            Err(error) => Self::copied(&file, lock, &error).ok_or(error),
        }
    }

    /// What the folder holds, in memory: nothing can be written, but what is open must be closed.
    fn copied(file: &Path, lock: FolderLock, error: &StateError) -> Option<Self> {
        if !file.exists() {
            return None;
        }
        let shm = Path::new("/dev/shm");
        let place = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
        let place =
            place.join(format!("skewtrap-state-{}-{}", std::process::id(), lock.0.metadata().ok()?.ino()));
        std::fs::DirBuilder::new().mode(0o700).create(&place).ok()?;
        let copy = place.join("state.sqlite");
        let wal = |file: &Path| PathBuf::from(format!("{}-wal", file.display()));
        let connection = std::fs::copy(file, &copy).ok().and_then(|_| {
            // What is not in the database yet; absent after a clean end.
            let _ = std::fs::copy(wal(file), wal(&copy));
            opened(&copy).ok()
        });
        // SQLite works on in what it has opened.
        let _ = std::fs::remove_dir_all(&place);
        let state = Self::of(connection?, file.to_owned(), Some(lock)).ok()?;
        Some(Self { read_only: Some(error.to_string().into()), ..state })
    }

    /// A state that ends with the process, for when no folder can be written. Limits counted in it do
    /// not survive a restart, so no window may be opened with it.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn in_memory() -> Result<Self, StateError> {
        Self::in_memory_as(None)
    }

    /// The same of an agent whose id is known: what it writes elsewhere is its own after a restart, too.
    ///
    /// # Errors
    /// As [`Self::in_memory`].
    pub fn in_memory_as(agent: Option<&str>) -> Result<Self, StateError> {
        let file = PathBuf::from("memory");
        let connection = Connection::open_in_memory()
            .map_err(|source| StateError::Database { file: file.clone(), source })?;
        prepare(&connection, &file)?;
        if let Some(agent) = agent {
            connection
                .execute("UPDATE meta SET value = ?1 WHERE name = 'agent'", [agent])
                .map_err(|source| StateError::Database { file: file.clone(), source })?;
        }
        Self::of(connection, file, None)
    }

    /// The state behind a connection that is prepared.
    fn of(connection: Connection, file: PathBuf, lock: Option<FolderLock>) -> Result<Self, StateError> {
        only_for_owner(&file);
        let agent: String = connection
            .query_row("SELECT value FROM meta WHERE name = 'agent'", [], |row| row.get(0))
            .map_err(|source| StateError::Database { file: file.clone(), source })?;
        Ok(Self {
            identity: identity(&file),
            file: Arc::new(file),
            connection: Arc::new(Mutex::new(connection)),
            agent: agent.into(),
            writer: Arc::new(Writer::start()),
            lock: lock.map(Arc::new),
            read_only: None,
            moved: Arc::default(),
        })
    }
}

/// Which file lies there, whatever its name: one that was put in its place, a backup say, is another.
pub(super) fn identity(file: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(file).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// The layout of the database: raised when an older release could not work with what this one writes.
const LAYOUT: i64 = 1;

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    INSERT OR IGNORE INTO meta VALUES ('agent', lower(hex(randomblob(16))));
    CREATE TABLE IF NOT EXISTS attempts (id TEXT PRIMARY KEY, at INTEGER NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS windows (attempt TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS incidents (id TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS silences (body TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS outbox (
        key TEXT PRIMARY KEY, receiver TEXT NOT NULL, created INTEGER NOT NULL, due INTEGER NOT NULL,
        attempts INTEGER NOT NULL, body BLOB NOT NULL
    ) WITHOUT ROWID;
";

/// Creates the tables where they are missing.
fn prepare(connection: &Connection, file: &Path) -> Result<(), StateError> {
    let broken = |source| StateError::Database { file: file.to_owned(), source };
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(broken)?;
    if found > LAYOUT {
        return Err(StateError::Newer { file: file.to_owned(), found, known: LAYOUT });
    }
    // WAL: a reader (`skewtrap incidents` beside the agent) never blocks the writer.
    // Rows are written and seldom read again: pages of 512 KiB are cached, not of two megabytes.
    let settings = "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA busy_timeout = 2000;
        PRAGMA cache_size = -512;";
    connection.execute_batch(settings).map_err(broken)?;
    // Only what is not there is written: on a full disk an agent must still learn what is open.
    if found == LAYOUT {
        return Ok(());
    }
    connection
        .execute_batch(&format!("BEGIN; {TABLES} PRAGMA user_version = {LAYOUT}; COMMIT;"))
        .map_err(broken)
}

fn opened(file: &Path) -> Result<Connection, StateError> {
    let broken = |source| StateError::Database { file: file.to_owned(), source };
    let connection = Connection::open(file).map_err(broken)?;
    prepare(&connection, file)?;
    Ok(connection)
}

/// Messages may hold what the users of the server wrote. SQLite gives its further files the same mode.
fn only_for_owner(file: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let path = PathBuf::from(format!("{}{suffix}", file.display()));
        let _ = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600));
    }
}

/// The lock of a state folder.
#[derive(Debug)]
pub(super) struct FolderLock(pub(super) File);

/// The lock files that this process holds, by device and inode.
static HELD: Mutex<BTreeSet<(u64, u64)>> = Mutex::new(BTreeSet::new());

fn held() -> MutexGuard<'static, BTreeSet<(u64, u64)>> {
    crate::world::lock(&HELD)
}

fn identity_of(file: &File) -> Option<(u64, u64)> {
    file.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

impl Drop for FolderLock {
    /// A program that is being started has a copy of the file until it runs, and would keep the lock with it.
    fn drop(&mut self) {
        // Together: who finds that it is not held here finds it free.
        let mut held = held();
        identity_of(&self.0).map(|of| held.remove(&of));
        let _ = rustix::fs::flock(&self.0, rustix::fs::FlockOperation::Unlock);
    }
}

/// Takes the folder's lock, which the kernel releases when the process ends, however it ends.
fn lock(folder: &Path) -> Result<FolderLock, StateError> {
    let fail = |source| StateError::Folder { folder: folder.to_owned(), source };
    // Messages may hold what the users of the server wrote, so only the owner may enter.
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(fail)?;
    let path = folder.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .read(true)
        .mode(0o600)
        .open(&path)
        .map_err(fail)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let holder = std::fs::read_to_string(&path).unwrap_or_default();
            return Err(StateError::InUse { folder: folder.to_owned(), holder: holder.trim().to_owned() });
        }
        Err(e) => return Err(fail(e.into())),
    }
    // Who holds it is for people: a disk that is full must not keep the agent from its open windows.
    let _ = file
        .set_len(0)
        .and_then(|()| (&file).write_all(format!("process {}\n", std::process::id()).as_bytes()));
    held().extend(identity_of(&file));
    Ok(FolderLock(file))
}
