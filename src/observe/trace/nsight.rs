//! Reads an Nsight Systems export (SQLite), one process at a time, read-only and immutable, so that
//! SQLite makes no journal beside the user's file. A report (`.nsys-rep`) is first exported by the
//! installed `nsys` into a temporary folder.
//!
//! An export contains the environment and the output of the profiled processes. Only kernel tables, the
//! times of launches, NVTX ranges and process names are read from it.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, geteuid, kill_process_group, test_kill_process};

use skewtrap_trace::{Limits, RankTrace};

use super::TraceError;
use super::folder::{Format, TraceFile};

/// How long an export may take; one of some gigabytes takes minutes.
const EXPORT_LIMIT: Duration = Duration::from_secs(600);
/// How often it is looked whether one has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// The last bytes of what it printed, which say why it failed, and how long they are waited for.
const PRINTED: usize = 4096;
const PRINTED_LIMIT: Duration = Duration::from_secs(1);
/// How temporary folders are called, before the process that made them and a number.
const EXPORT: &str = "skewtrap-export-";

/// A process that ran kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its process id.
    pub pid: u32,
    /// Its name, cut to 15 characters by Nsight.
    pub name: String,
}

/// An opened export.
pub struct Export {
    db: Connection,
    epoch_ns: i64,
}

fn failed(path: &Path, e: impl std::fmt::Display) -> TraceError {
    let what =
        format!("not an Nsight Systems export ({e}); export it again with `nsys export --type sqlite`");
    TraceError::File { path: path.to_owned(), what }
}

/// What a SQLite file without the tables of an export is, and what to give in its place.
fn other_database(path: &Path, tables: &[String]) -> TraceError {
    let has = |name: &str| tables.iter().any(|t| t == name);
    let what = if has("attempts") && has("outbox") {
        "the agent's own state, which holds no traces; give the folder of an incident (`skewtrap incidents` lists \
         them) or the traces of a capture"
            .to_owned()
    } else {
        let named = match tables {
            [] => "it has no tables".to_owned(),
            [first, ..] => format!("it has tables such as {first}"),
        };
        format!(
            "a SQLite database, but not an Nsight Systems export ({named}, and no StringIds); give the traces of a \
             capture (.trace.json, .trace.json.gz), a report (.nsys-rep), or its export by `nsys export --type sqlite`"
        )
    };
    TraceError::File { path: path.to_owned(), what }
}

fn tables_of(db: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut names =
        db.prepare("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name LIMIT 1000")?;
    names.query_map([], |row| row.get(0))?.collect()
}

/// The process id of a row, in SQL.
const PID: &str = "((globalPid >> 24) & 0xffffff)";

impl Export {
    /// Opens an export.
    ///
    /// # Errors
    /// When it is no SQLite file or has no kernels in it.
    pub fn open(path: &Path) -> Result<Self, TraceError> {
        let absolute =
            path.canonicalize().map_err(|why| TraceError::Unreadable { path: path.to_owned(), why })?;
        let mut uri = String::from("file:");
        for byte in absolute.to_string_lossy().bytes() {
            match byte {
                b'/' | b'-' | b'_' | b'.' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                    uri.push(char::from(byte))
                }
                _ => uri.push_str(&format!("%{byte:02x}")),
            }
        }
        uri.push_str("?mode=ro&immutable=1");
        let flags =
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(&uri, flags).map_err(|e| failed(path, e))?;
        // Every export has the table of strings; tables without rows are left out of an export.
        let tables = tables_of(&db).map_err(|e| failed(path, e))?;
        if !tables.iter().any(|name| name == "StringIds") {
            return Err(other_database(path, &tables));
        }
        let kernels = db.query_row("SELECT count(*) FROM CUPTI_ACTIVITY_KIND_KERNEL", [], |r| r.get(0));
        if kernels.unwrap_or(0i64) == 0 {
            let what = "the Nsight export has no GPU kernels: was CUDA traced (`--trace=cuda`, and `--cuda-graph-trace=node` for CUDA graphs) while the GPU worked?".into();
            return Err(TraceError::File { path: path.to_owned(), what });
        }
        let epoch_ns = db
            .query_row("SELECT utcEpochNs FROM TARGET_INFO_SESSION_START_TIME", [], |r| r.get(0))
            .unwrap_or(0);
        Ok(Self { db, epoch_ns })
    }

    /// The processes that ran kernels, ordered by process id.
    ///
    /// # Errors
    /// When the tables are not as Nsight writes them.
    pub fn processes(&self, path: &Path) -> Result<Vec<Process>, TraceError> {
        let sql = format!("SELECT DISTINCT {PID} FROM CUPTI_ACTIVITY_KIND_KERNEL ORDER BY 1");
        let mut statement = self.db.prepare(&sql).map_err(|e| failed(path, e))?;
        let pids: Result<Vec<u32>, _> = statement.query_map([], |r| r.get(0)).and_then(Iterator::collect);
        let name = |pid: u32| -> String {
            self.db
                .query_row("SELECT name FROM PROCESSES WHERE pid = ?", [pid], |r| r.get(0))
                .unwrap_or_default()
        };
        Ok(pids
            .map_err(|e| failed(path, e))?
            .into_iter()
            .map(|pid| Process { pid, name: name(pid) })
            .collect())
    }

    /// Adds the rows of one process to `trace`.
    ///
    /// # Errors
    /// When the tables are not as Nsight writes them.
    pub fn read(
        &self,
        path: &Path,
        pid: u32,
        limits: Limits,
        trace: &mut RankTrace,
    ) -> Result<(), TraceError> {
        let has_demangled =
            self.db.prepare("SELECT demangledName FROM CUPTI_ACTIVITY_KIND_KERNEL LIMIT 1").is_ok();
        let has_launches =
            self.db.prepare("SELECT correlationId FROM CUPTI_ACTIVITY_KIND_KERNEL LIMIT 1").is_ok();
        let launch = if has_launches { "correlationId" } else { "NULL" };
        let name = if has_demangled { "demangledName" } else { "shortName" };
        let sql = format!(
            "SELECT k.start, k.end, k.streamId, k.gridX * k.gridY * k.gridZ, s.value, {launch} \
             FROM CUPTI_ACTIVITY_KIND_KERNEL k JOIN StringIds s ON s.id = k.{name} WHERE {PID} = ? ORDER BY k.start"
        );
        self.add_rows(&sql, pid, limits, trace).map_err(|e| failed(path, e))?;
        // An absent table would have no rows.
        for (table, name) in
            [("CUPTI_ACTIVITY_KIND_MEMCPY", "Memcpy"), ("CUPTI_ACTIVITY_KIND_MEMSET", "Memset")]
        {
            let sql =
                format!("SELECT start, end, streamId, 0, '{name}', {launch} FROM {table} WHERE {PID} = ?");
            match self.add_rows(&sql, pid, limits, trace) {
                Ok(()) | Err(rusqlite::Error::SqliteFailure(_, _)) => {}
                Err(e) => return Err(failed(path, e)),
            }
        }
        self.add_launches(pid, limits, trace);
        self.add_steps(pid, trace);
        Ok(())
    }

    /// Adds when the host launched something, where the calls of the driver were recorded.
    fn add_launches(&self, pid: u32, limits: Limits, trace: &mut RankTrace) {
        let sql = "SELECT r.start FROM CUPTI_ACTIVITY_KIND_RUNTIME r JOIN StringIds s ON s.id = r.nameId \
                   WHERE ((r.globalTid >> 24) & 0xffffff) = ? AND (s.value LIKE '%Launch%' OR s.value LIKE '%Mem%Async%')";
        // A table that was not recorded is absent.
        let Ok(mut statement) = self.db.prepare(sql) else { return };
        let Ok(starts) = statement.query_map([pid], |r| r.get::<_, i64>(0)) else { return };
        for start in starts {
            match start {
                Ok(start) => trace.launched_at(limits, start),
                Err(_) => trace.unreadable_row(),
            }
        }
    }

    fn add_rows(&self, sql: &str, pid: u32, limits: Limits, trace: &mut RankTrace) -> rusqlite::Result<()> {
        let mut statement = self.db.prepare(sql)?;
        let mut rows = statement.query([pid])?;
        while let Some(row) = rows.next()? {
            let (start, end): (i64, i64) = (row.get(0)?, row.get(1)?);
            let blocks = row.get::<_, Option<i64>>(3)?.unwrap_or(0).unsigned_abs();
            let at = self.epoch_ns.saturating_add(start);
            if let Some(r) =
                trace.push(limits, row.get_ref(4)?.as_bytes()?, row.get(2)?, at, end.saturating_sub(start))
            {
                let sum = &mut trace.blocks[usize::from(r.name)];
                *sum = sum.saturating_add(blocks);
                if let Some(launch) = row.get::<_, Option<i64>>(5)? {
                    trace.launched_by(launch.unsigned_abs());
                }
            }
        }
        Ok(())
    }

    /// Adds the steps that NVTX ranges delimit, where the engine emits them.
    fn add_steps(&self, pid: u32, trace: &mut RankTrace) {
        let sql = "SELECT e.start, e.end, coalesce(e.text, s.value) FROM NVTX_EVENTS e LEFT JOIN StringIds s ON s.id = e.textId \
                   WHERE ((e.globalTid >> 24) & 0xffffff) = ? AND e.end IS NOT NULL \
                   AND (coalesce(e.text, s.value) LIKE 'step[%' OR coalesce(e.text, s.value) LIKE 'execute_context_%')";
        let Ok(mut statement) = self.db.prepare(sql) else { return };
        let Ok(marks) = statement
            .query_map([pid], |r| Ok((r.get::<_, i64>(0)?, r.get::<_, i64>(1)?, r.get::<_, String>(2)?)))
        else {
            return;
        };
        for mark in marks {
            let Ok((start, end, text)) = mark else {
                trace.unreadable_row();
                continue;
            };
            trace.mark_step(
                false,
                &text,
                self.epoch_ns.saturating_add(start),
                self.epoch_ns.saturating_add(end),
            );
        }
    }
}

/// The SQLite file of an Nsight capture, with the temporary folder it was put in where the given file
/// had to be decompressed or exported first. In the foreground `nsys` ends with this process by Ctrl-C in a terminal;
/// elsewhere it has a process group of its own, which is killed where it takes too long.
///
/// # Errors
/// When that fails: no `nsys`, no room.
pub fn sqlite_of(file: &TraceFile, is_foreground: bool) -> Result<(PathBuf, Option<TempFolder>), TraceError> {
    let is_gzip = file.path.extension().is_some_and(|e| e == "gz");
    if file.format == Format::NsightSqlite && !is_gzip {
        return Ok((file.path.clone(), None));
    }
    let unreadable = |why| TraceError::Unreadable { path: file.path.clone(), why };
    let temp = TempFolder::new().map_err(unreadable)?;
    let out = if is_gzip {
        let out = temp.path.join("export.sqlite");
        let mut to = File::create(&out).map_err(unreadable)?;
        io::copy(&mut super::open(&file.path)?, &mut to).map_err(unreadable)?;
        out
    } else {
        export_by("nsys".as_ref(), EXPORT_LIMIT, is_foreground, &file.path, &temp.path)?
    };
    Ok((out, Some(temp)))
}

/// Exports a report into `dir` with that `nsys`, and returns the path of the export.
fn export_by(
    program: &OsStr,
    limit: Duration,
    is_foreground: bool,
    report: &Path,
    dir: &Path,
) -> Result<PathBuf, TraceError> {
    let out = dir.join(report.with_extension("sqlite").file_name().unwrap_or_default());
    let fail = |what: String| TraceError::File { path: report.to_owned(), what };
    let mut nsys = Command::new(program);
    if !is_foreground {
        nsys.process_group(0);
    }
    let mut nsys = nsys
        .args(["export", "--type", "sqlite", "-f", "true", "-o"])
        .arg(&out)
        .arg(report)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| {
            fail(format!(
                "an Nsight report needs `nsys export`, which cannot be run here ({e}): install Nsight Systems, or run `nsys export --type sqlite {}` where it is and give the .sqlite",
                report.display()
            ))
        })?;
    let printed = nsys.stderr.take().map(read_last);
    let ended = ended_within(&mut nsys, limit, is_foreground)
        .map_err(|e| fail(format!("`nsys export` cannot be waited for: {e}")))?;
    let Some(status) = ended else {
        let limit = limit.as_secs();
        return Err(fail(format!(
            "`nsys export` did not end within {limit} s and was killed; run `nsys export --type sqlite {}` by hand and give the .sqlite",
            report.display()
        )));
    };
    if !status.success() || !out.exists() {
        let printed =
            printed.and_then(|printed| printed.recv_timeout(PRINTED_LIMIT).ok()).unwrap_or_default();
        let printed = String::from_utf8_lossy(&printed);
        let last = printed.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("no message");
        return Err(fail(format!("`nsys export` failed: {last}")));
    }
    Ok(out)
}

/// How a program ended; `None` where it did not in time, and was killed; with all that it started, where it has a
/// process group of its own.
fn ended_within(program: &mut Child, limit: Duration, is_foreground: bool) -> io::Result<Option<ExitStatus>> {
    let until = Instant::now() + limit;
    loop {
        if let Some(status) = program.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= until {
            break;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    if is_foreground {
        program.kill()?;
    } else if let Some(group) = i32::try_from(program.id()).ok().and_then(Pid::from_raw) {
        // It may have ended a moment ago.
        let _ = kill_process_group(group, Signal::KILL);
    }
    program.wait().map(|_| None)
}

/// Reads to the end on a thread of its own, or the program would wait for it, and gives the last of it.
fn read_last(mut from: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let (mut last, mut piece) = (Vec::new(), [0; PRINTED]);
        while let Ok(read @ 1..) = from.read(&mut piece) {
            last.extend_from_slice(&piece[..read]);
            last.drain(..last.len().saturating_sub(PRINTED));
        }
        // Nobody may be waiting any more.
        let _ = tell.send(last);
    });
    told
}

/// A temporary folder, removed when this is dropped. It is locked until then: the kernel ends that with the process.
pub struct TempFolder {
    path: PathBuf,
    _lock: File,
}

/// Removes the folders below `temp` that killed processes of this user left behind.
pub fn remove_leftovers(temp: &Path) {
    for entry in std::fs::read_dir(temp).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(EXPORT)) else { continue };
        let maker = rest.split_once('-').and_then(|(pid, _)| pid.parse().ok());
        let is_ours = entry.metadata().is_ok_and(|m| m.is_dir() && m.uid() == geteuid().as_raw());
        if is_ours
            && maker.is_some_and(|pid| !is_another_alive(pid))
            && let Ok(_held) = lock(&entry.path())
        {
            // Tried again at the next start.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether there is such a process beside this one. A release before this one did not lock its folders.
fn is_another_alive(pid: u32) -> bool {
    let other = i32::try_from(pid).ok().filter(|_| pid != std::process::id()).and_then(Pid::from_raw);
    other.is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH))
}

/// Locks a folder, unless another process, or another part of this one, has it.
fn lock(folder: &Path) -> io::Result<File> {
    let folder = File::open(folder)?;
    flock(&folder, FlockOperation::NonBlockingLockExclusive)?;
    Ok(folder)
}

impl TempFolder {
    /// Readable by this user only: an export contains the environment of the profiled processes.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new() -> io::Result<Self> {
        Self::within(&std::env::temp_dir())
    }

    fn within(temp: &Path) -> io::Result<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        loop {
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = temp.join(format!("{EXPORT}{}-{n}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path).and_then(|()| lock(&path)) {
                // Another process may have taken it for a leftover a moment before.
                Ok(lock) if path.exists() => return Ok(Self { path, _lock: lock }),
                Ok(_) => {}
                Err(e) if matches!(e.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::WouldBlock) => {}
                Err(e) => return Err(e),
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        // A leftover is removed at the next start of an agent.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::OpenOptionsExt as _;

    use skewtrap_trace::rank::{Rank, RankId};
    use skewtrap_trace::{Profiles, RankWindow};

    use super::*;

    /// A program in place of nsys.
    fn fake(dir: &Path, script: &str) -> PathBuf {
        let path = dir.join("nsys");
        let mut file =
            File::options().create(true).write(true).truncate(true).mode(0o755).open(&path).expect("made");
        std::io::Write::write_all(&mut file, format!("#!/bin/sh\n{script}\n").as_bytes()).expect("written");
        path
    }

    #[test]
    fn an_export_that_does_not_end_is_killed_with_what_it_started_and_one_that_fails_says_why() {
        let dir = tempfile::tempdir().expect("a folder");
        let export = |script: &str, limit| {
            let program = fake(dir.path(), script);
            export_by(program.as_os_str(), limit, false, Path::new("w.nsys-rep"), dir.path())
                .map_err(|e| e.to_string())
        };
        let limit = Duration::from_secs(60);
        let exported = export("cp \"$0\" \"$7\"", limit).expect("an export");
        assert_eq!(exported, dir.path().join("w.sqlite"));
        std::fs::remove_file(exported).expect("removed");
        let flood = "yes 'a line of many' | head -c 300000 >&2; echo 'no such report' >&2; exit 1";
        let why = export(flood, limit).expect_err("it fails");
        assert!(why.contains("`nsys export` failed: no such report"), "{why}");
        let began = std::time::Instant::now();
        let why = export("sleep 30 & sleep 30", Duration::from_millis(200)).expect_err("it does not end");
        assert!(began.elapsed() < Duration::from_secs(20), "{why}");
        assert!(why.contains("did not end within"), "{why}");
    }

    #[test]
    fn only_in_the_foreground_an_export_is_in_the_process_group_that_a_terminal_interrupts() {
        let dir = tempfile::tempdir().expect("a folder");
        let program = fake(dir.path(), "cut -d ' ' -f 5 /proc/$$/stat > \"$7\"");
        let group_where = |is_foreground| {
            let limit = Duration::from_secs(60);
            let out =
                export_by(program.as_os_str(), limit, is_foreground, Path::new("w.nsys-rep"), dir.path());
            std::fs::read_to_string(out.expect("an export")).expect("read").trim().to_owned()
        };
        let ours = rustix::process::getpgrp().as_raw_nonzero().to_string();
        assert_eq!([true, false].map(|foreground| group_where(foreground) == ours), [true, false]);
    }

    #[test]
    fn what_a_killed_process_left_of_an_export_is_removed_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut gone = Command::new("true").spawn().expect("started");
        gone.wait().expect("it ends");
        let leftover = |pid: u32, number: u32| {
            let path = dir.path().join(format!("{EXPORT}{pid}-{number}"));
            std::fs::create_dir(&path).expect("made");
            std::fs::write(path.join("w.sqlite"), "secrets").expect("written");
            path
        };
        // In a container each life of an agent may have the same id.
        let left = [leftover(gone.id(), 0), leftover(std::process::id(), 999_999)];
        let other = dir.path().join("skewtrap-exports");
        std::fs::create_dir(&other).expect("made");
        let alive = [leftover(std::os::unix::process::parent_id(), 0), other];
        let ours = TempFolder::within(dir.path()).expect("made");
        remove_leftovers(dir.path());
        assert_eq!(left.map(|path| path.exists()), [false; 2]);
        assert_eq!(alive.map(|path| path.exists()), [true; 2]);
        assert!(ours.path().exists());
    }

    #[test]
    fn the_pace_of_a_host_is_that_of_its_own_launches() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("w.sqlite");
        let db = Connection::open(&path).expect("a database");
        db.execute_batch(
            "CREATE TABLE StringIds (id INTEGER, value TEXT);
             INSERT INTO StringIds VALUES (1, 'embedding'), (2, 'layer'), (3, 'cudaLaunchKernel_v7000'), (4, 'cudaEventQuery_v3020');
             CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER, end INTEGER, streamId INTEGER, globalPid INTEGER,
                 shortName INTEGER, gridX INTEGER, gridY INTEGER, gridZ INTEGER, correlationId INTEGER);
             CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start INTEGER, end INTEGER, globalTid INTEGER, nameId INTEGER);",
        )
        .expect("made");
        db.execute_batch("BEGIN").expect("one transaction");
        for process in [7i64, 8] {
            // Ten steps of twenty launches each; process 8 needs twice as long for each.
            for i in 0..200i64 {
                let at = i * 20_000 * (process - 6) + i / 20 * 3_000_000;
                let kernel = if i % 20 == 0 { 1 } else { 2 };
                let global = process << 24;
                db.execute(
                    "INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (?, ?, 7, ?, ?, 1, 1, 1, ?)",
                    (at + 9_000, at + 14_000, global, kernel, i),
                )
                .expect("added");
                for (start, call) in [(at, 3), (at + 5_000, 4)] {
                    db.execute(
                        "INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES (?, ?, ?, ?)",
                        (start, start + 1_000, global + 1, call),
                    )
                    .expect("added");
                }
            }
        }
        db.execute_batch("COMMIT").expect("written");
        drop(db);
        let export = Export::open(&path).expect("an export");
        let windows = [7u32, 8].map(|pid| {
            let mut trace = RankTrace::default();
            export.read(&path, pid, Limits::default(), &mut trace).expect("readable");
            RankWindow::new(RankId::Rank(Rank::tp(pid as u16 - 7)), trace)
        });
        let paces: Vec<_> = Profiles::new(windows.into()).ranks.iter().map(|p| p.host_pace_ns).collect();
        assert_eq!(paces, [Some(20_000), Some(40_000)]);
    }
}
