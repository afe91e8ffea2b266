//! One log file, followed by its name through whatever rotates it, without losing a line.
//!
//! The reader is synchronous; its caller decides when to poll. Some rotation tool requires each of its
//! rules:
//! - The file behind the name is identified by device and inode; links are followed.
//! - When the name leads to another file, that file is opened at once, but the old one is read to its
//!   end first, and polled a little longer for a writer that still has it open.
//! - A file that shrank, or whose first bytes changed, was truncated.
//! - A file that appears later is read from its first line.

use std::collections::VecDeque;
use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt as _, MetadataExt, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::cut::{CHUNK, LineSplitter};

/// How many of its first bytes distinguish a file that was truncated and rewritten from one that grew.
const HEAD: usize = 64;
/// An old file is left for its successor when this many polls in a row read nothing from it.
const IDLE_POLLS: u32 = 3;
/// For this many ticks (two seconds) an old file is still polled for a late writer.
const LATE_TICKS: u32 = 8;
/// A file whose name is gone is closed after this many ticks (one minute).
const GONE_TICKS: u32 = 240;
/// Bytes that are asked of the system at once: a busy log has a few kB each time.
const READ: usize = 16 << 10;
/// The same between two looks at the file, when little has come and the buffer is most of what is touched.
const READ_ON: usize = 4 << 10;
/// Files that may wait to be read; lines of a rotation faster than that are lost.
const MOST_FILES: usize = 32;

const _: () = assert!(READ <= CHUNK, "what is read at once is fed at once");

/// Follows one name.
#[derive(Debug)]
pub struct Follow {
    path: PathBuf,
    /// The files that the name led to, in that order; the first is being read.
    files: VecDeque<OpenFile>,
    /// Files that were read to their end, still open for late writers.
    late: Vec<OpenFile>,
    /// Whether the name was looked up before.
    has_begun: bool,
    from_start: bool,
    long_lines: u64,
    truncations: u64,
    /// Bytes that were seen to be there, and were gone before they were read.
    unseen: u64,
    /// The file of the name for which there was no room yet.
    waits: Option<(u64, u64)>,
    /// Files that had another successor before there was room for them, or before they could be read.
    lost_files: u64,
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    id: (u64, u64),
    position: u64,
    head: Vec<u8>,
    cutter: LineSplitter,
    /// What lies before this position existed when the reader started: the backlog.
    backlog_end: u64,
    /// How long it was when it was looked at last.
    length: u64,
    idle: u32,
    ticks: u32,
}

/// The result of a poll.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Polled {
    /// Whether to poll again at once.
    pub more: bool,
    /// Whether there is no file of this name.
    pub is_missing: bool,
    /// Whether the lines belong to the backlog.
    pub is_backlog: bool,
}

impl Follow {
    /// A reader for `path`. A file that exists at the first poll is read from its end, unless
    /// `from_start`.
    pub fn new(path: &Path, from_start: bool) -> Self {
        Self {
            path: path.to_owned(),
            files: VecDeque::new(),
            late: Vec::new(),
            has_begun: false,
            from_start,
            long_lines: 0,
            truncations: 0,
            unseen: 0,
            waits: None,
            lost_files: 0,
        }
    }

    /// Appends whole lines to `out`, about `budget` bytes of them. `tick` says that a quarter of a second
    /// has passed since the last tick; timeouts count ticks.
    ///
    /// # Errors
    /// The file of the name exists and cannot be opened or read.
    pub fn poll(&mut self, budget: usize, tick: bool, out: &mut Vec<u8>) -> io::Result<Polled> {
        let is_missing = !self.look_up()?;
        let mut polled = Polled { is_missing, ..Polled::default() };
        let limit = out.len() + budget;
        if self.read_late(tick, limit, out) {
            polled.more = true;
            return Ok(polled);
        }
        while let Some(front) = self.files.front_mut() {
            polled.is_backlog = front.position < front.backlog_end;
            let read = front.read(limit, polled.is_backlog, out, &mut self.truncations, &mut self.unseen);
            if read.is_err() && (is_missing || self.files.len() > 1) {
                self.give_up(out);
                continue;
            }
            let is_cut_short = read?;
            if is_cut_short || out.len() >= limit {
                polled.more = true;
                break;
            }
            if !self.may_leave(is_missing, tick) {
                polled.more = self.files.len() > 1;
                break;
            }
            self.leave(out);
        }
        Ok(polled)
    }

    /// Appends what was written since to the one file that is being read, without looking whether it was
    /// truncated or the name leads elsewhere: for a busy log between two [`Self::poll`]s. Returns whether
    /// there was anything.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read_on(&mut self, budget: usize, out: &mut Vec<u8>) -> io::Result<bool> {
        let is_rotated = self.files.len() > 1 || !self.late.is_empty();
        let Some(only) = self.files.front_mut().filter(|_| !is_rotated) else { return Ok(false) };
        if only.position < only.backlog_end {
            return Ok(false);
        }
        let before = only.position;
        only.read_chunks::<READ_ON>(out.len() + budget, false, out)?;
        Ok(only.position > before)
    }

    /// How many lines were cut so far.
    pub fn long_lines(&self) -> u64 {
        let open = self.files.iter().chain(&self.late).map(|f| f.cutter.long_lines());
        self.long_lines + open.sum::<u64>()
    }

    /// How often the file was truncated under the reader.
    pub fn truncations(&self) -> u64 {
        self.truncations
    }

    /// How many bytes at least were gone before they could be read, when the file was truncated.
    pub fn unseen(&self) -> u64 {
        self.unseen
    }

    /// How many files were rotated away before they were read to their ends: there was no room to open them, or they
    /// could not be read.
    pub fn lost_files(&self) -> u64 {
        self.lost_files
    }

    /// The folders in which a change can matter: the one with the name and the one with the file that it
    /// leads to; where a folder is missing, its nearest existing parent.
    pub fn folders(&self) -> Vec<PathBuf> {
        let target = self.path.canonicalize().ok();
        let mut folders: Vec<PathBuf> = Vec::new();
        for path in [Some(self.path.as_path()), target.as_deref()].into_iter().flatten() {
            let parents =
                path.ancestors().skip(1).map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p });
            let there = parents.into_iter().find(|p| p.is_dir()).map(Path::to_owned);
            folders.extend(there.filter(|p| !folders.contains(p)));
        }
        folders
    }

    /// Opens the file of this name, if it is another one than before. Returns whether there is a file.
    fn look_up(&mut self) -> io::Result<bool> {
        let is_first = !std::mem::replace(&mut self.has_begun, true);
        let metadata = match std::fs::metadata(&self.path) {
            Ok(metadata) => metadata,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(false);
            }
            Err(e) => return Err(e),
        };
        if let Some(what) = kind_of(&metadata) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let id = id_of(&metadata);
        if self.files.iter().any(|f| f.id == id) {
            return Ok(true);
        }
        let is_full = self.files.len() >= MOST_FILES;
        let waited = std::mem::replace(&mut self.waits, is_full.then_some(id));
        self.lost_files += u64::from(waited.is_some_and(|waited| waited != id));
        if is_full {
            return Ok(true);
        }
        // A link was pointed back to a file that is still open: reading that one goes on.
        if let Some(back) = self.late.iter().position(|f| f.id == id_of(&metadata)) {
            let old = self.late.swap_remove(back);
            self.files.push_back(old);
            return Ok(true);
        }
        match OpenFile::new(&self.path, is_first && !self.from_start, is_first) {
            Ok(open) => self.files.push_back(open),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        }
        Ok(true)
    }

    /// Whether the first file, at whose end we are, has a successor or lost its name long ago.
    fn may_leave(&mut self, is_missing: bool, tick: bool) -> bool {
        let has_next = self.files.len() > 1;
        let Some(front) = self.files.front_mut() else { return false };
        if has_next {
            front.idle += 1;
            return front.idle >= IDLE_POLLS;
        }
        front.ticks = if is_missing { front.ticks + u32::from(tick) } else { 0 };
        front.ticks >= GONE_TICKS
    }

    fn leave(&mut self, out: &mut Vec<u8>) {
        let Some(mut old) = self.files.pop_front() else { return };
        old.cutter.flush(out);
        old.ticks = 0;
        self.late.push(old);
    }

    /// The first file cannot be read, and its name leads to another one or to none: a file server answers so
    /// for one that was deleted. What it may have held besides is lost, and nobody waits for it.
    fn give_up(&mut self, out: &mut Vec<u8>) {
        let Some(mut old) = self.files.pop_front() else { return };
        old.cutter.flush(out);
        self.long_lines += old.cutter.long_lines();
        self.lost_files += 1;
    }

    /// Reads what late writers added to old files, and closes those to which nothing was added for long.
    /// One that cannot be read any more is closed as well: its end was read before. Returns whether there is more than
    /// `limit` allows.
    fn read_late(&mut self, tick: bool, limit: usize, out: &mut Vec<u8>) -> bool {
        for old in self.late.iter_mut().filter(|old| old.ticks < LATE_TICKS) {
            let before = old.position;
            let read = old.read(limit, false, out, &mut self.truncations, &mut self.unseen);
            old.ticks = match &read {
                Err(_) => LATE_TICKS,
                Ok(_) if old.position > before => 0,
                Ok(_) => old.ticks + u32::from(tick),
            };
            if read.is_ok_and(|has_more| has_more) {
                return true;
            }
        }
        let long_lines = &mut self.long_lines;
        self.late.retain_mut(|old| {
            let stays = old.ticks < LATE_TICKS;
            if !stays {
                old.cutter.flush(out);
                *long_lines += old.cutter.long_lines();
            }
            stays
        });
        false
    }
}

impl OpenFile {
    fn new(path: &Path, at_end: bool, is_backlog: bool) -> io::Result<Self> {
        let mut file = open_to_read(path)?;
        let metadata = file.metadata()?;
        if let Some(what) = kind_of(&metadata) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let mut open = Self {
            id: id_of(&metadata),
            position: 0,
            head: Vec::new(),
            cutter: LineSplitter::default(),
            backlog_end: if is_backlog { metadata.len() } else { 0 },
            length: metadata.len(),
            idle: 0,
            ticks: 0,
            file: file.try_clone()?,
        };
        if at_end && metadata.len() > 0 {
            open.position = file.seek(SeekFrom::Start(metadata.len()))?;
            let mut last = [0];
            file.read_at(&mut last, open.position - 1)?;
            if last != *b"\n" {
                open.cutter = LineSplitter::inside_a_line();
            }
            open.remember_head()?;
        }
        Ok(open)
    }

    /// Reads to the file's end, or until `out` holds `limit` bytes; returns whether the limit came first.
    /// Reading a backlog stops at the backlog's end.
    fn read(
        &mut self,
        limit: usize,
        is_backlog: bool,
        out: &mut Vec<u8>,
        truncations: &mut u64,
        unseen: &mut u64,
    ) -> io::Result<bool> {
        let length = self.length;
        if self.was_truncated()? {
            *truncations += 1;
            *unseen += length.saturating_sub(self.position);
            self.cutter.flush(out);
            (self.position, self.backlog_end) = (0, 0);
            self.head.clear();
            self.file.seek(SeekFrom::Start(0))?;
        }
        self.read_chunks::<READ>(limit, is_backlog, out)
    }

    /// The same of a file that was not truncated, so many bytes at once.
    fn read_chunks<const AT_ONCE: usize>(
        &mut self,
        limit: usize,
        is_backlog: bool,
        out: &mut Vec<u8>,
    ) -> io::Result<bool> {
        let mut chunk = [0; AT_ONCE];
        loop {
            let most = if is_backlog { self.backlog_end.saturating_sub(self.position) } else { u64::MAX };
            let most = AT_ONCE.min(usize::try_from(most).unwrap_or(AT_ONCE));
            let read = match self.file.read(&mut chunk[..most]) {
                Ok(read) => read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            if read == 0 {
                return Ok(is_backlog && self.position >= self.backlog_end);
            }
            self.idle = 0;
            self.position += read as u64;
            self.cutter.feed(&chunk[..read], out);
            if self.head.len() < HEAD {
                self.remember_head()?;
            }
            if out.len() >= limit {
                return Ok(true);
            }
            // At the end of the file; another read would only say so.
            if read < most && !is_backlog {
                return Ok(false);
            }
        }
    }

    /// Whether it is shorter than what was read, or begins differently.
    fn was_truncated(&mut self) -> io::Result<bool> {
        self.length = self.file.metadata()?.len();
        if self.length < self.position {
            return Ok(true);
        }
        let mut head = [0; HEAD];
        let read = self.file.read_at(&mut head[..self.head.len()], 0)?;
        Ok(head[..read] != self.head[..])
    }

    fn remember_head(&mut self) -> io::Result<()> {
        let len = usize::try_from(self.position).unwrap_or(HEAD).min(HEAD);
        self.head.resize(len, 0);
        let read = self.file.read_at(&mut self.head, 0)?;
        self.head.truncate(read);
        Ok(())
    }
}

/// Opens it so that reading leaves no time of access, which would be written to the disk after each line; the kernel
/// grants that to the file's owner only.
fn open_to_read(path: &Path) -> io::Result<File> {
    // A FIFO that takes the file's place must not hold the reader up until somebody writes.
    let open = |flags: OFlags| {
        let flags = (OFlags::NONBLOCK | flags).bits().cast_signed();
        File::options().read(true).custom_flags(flags).open(path)
    };
    match open(OFlags::NOATIME) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => open(OFlags::empty()),
        opened => opened,
    }
}

/// What it is, when it is no file: such a thing has no past, and opening it may wait for ever.
fn kind_of(metadata: &Metadata) -> Option<&'static str> {
    let kind = metadata.file_type();
    match () {
        () if kind.is_file() => None,
        () if kind.is_fifo() => Some("a FIFO"),
        () if kind.is_socket() => Some("a socket"),
        () if kind.is_dir() => Some("a folder"),
        () => Some("a device"),
    }
}

fn id_of(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A file whose reading fails, as one does that was deleted on a file server.
    fn unreadable(folder: &Path) -> OpenFile {
        OpenFile {
            file: File::open(folder).expect("a folder"),
            id: (0, 0),
            position: 0,
            head: Vec::new(),
            cutter: LineSplitter::default(),
            backlog_end: 0,
            length: 0,
            idle: 0,
            ticks: 0,
        }
    }

    #[test]
    fn a_rotated_file_that_cannot_be_read_keeps_nobody_from_its_successors() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("server.log");
        let mut file = File::create(&path).expect("made");
        for is_late in [true, false] {
            let mut follow = Follow::new(&path, false);
            let mut out = Vec::new();
            follow.poll(1 << 20, false, &mut out).expect("readable");
            match is_late {
                true => follow.late.push(unreadable(folder.path())),
                false => follow.files.push_front(unreadable(folder.path())),
            }
            file.write_all(b"after it\n").expect("written");
            while follow.poll(1 << 20, true, &mut out).is_ok_and(|polled| polled.more) {}
            assert_eq!(String::from_utf8_lossy(&out), "after it\n", "late: {is_late}");
            assert_eq!(
                follow.lost_files(),
                u64::from(!is_late),
                "nothing is missing of one that was read to its end"
            );
        }
    }

    #[test]
    fn an_unreadable_file_that_its_name_still_leads_to_is_told_and_one_that_is_gone_is_left() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("server.log");
        File::create(&path).expect("made");
        let mut follow = Follow::new(&path, false);
        let mut out = Vec::new();
        follow.poll(1 << 20, false, &mut out).expect("readable");
        let id = follow.files[0].id;
        follow.files[0] = OpenFile { id, ..unreadable(folder.path()) };
        follow.poll(1 << 20, true, &mut out).expect_err("it is what is to be read");
        std::fs::remove_file(&path).expect("removed");
        assert!(follow.poll(1 << 20, true, &mut out).expect("there is none").is_missing);
        std::fs::write(&path, "after it\n").expect("written");
        while follow.poll(1 << 20, true, &mut out).expect("readable").more {}
        assert_eq!(String::from_utf8_lossy(&out), "after it\n");
    }
}
