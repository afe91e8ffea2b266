//! The kernel's notices (inotify) that something changed in a folder. Where there are none, waiting takes
//! its longest time, and reading goes on by the timer.

use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};

use super::Follow;

/// Ticks after which the folders are determined anew: links can be replaced.
const KEEP_TICKS: u32 = 4;

/// The kernel's queue of notices.
#[derive(Debug)]
pub struct Notices {
    queue: Option<OwnedFd>,
}

/// The folders that are watched for one log.
#[derive(Debug, Default)]
pub struct Watched {
    folders: Vec<PathBuf>,
    /// Each folder's number in the queue, and the names in it that matter; none: all of them.
    watches: Vec<(i32, Vec<OsString>)>,
    ticks: u32,
}

/// Something changed in a folder.
#[derive(Clone, Copy, Debug)]
pub struct Notice<'a> {
    /// The folder's number; `None` when notices were lost, and everything may have changed.
    folder: Option<i32>,
    name: Option<&'a OsStr>,
}

impl Watched {
    /// Whether a notice may be about this log.
    pub fn concerns(&self, notice: Notice<'_>) -> bool {
        let Some(folder) = notice.folder else { return true };
        let is_named = |names: &[OsString]| match notice.name {
            Some(name) if !names.is_empty() => names.iter().any(|n| n == name),
            _ => true,
        };
        self.watches.iter().any(|(number, names)| *number == folder && is_named(names))
    }
}

impl Notices {
    /// An empty queue.
    pub fn new() -> Self {
        let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK);
        let lacks = |e: &rustix::io::Errno| {
            tracing::info!("the kernel gives no notices of files ({e}); logs are read four times a second");
        };
        Self { queue: queue.inspect_err(lacks).ok() }
    }

    /// Waits until there is a notice, and returns whether there is one.
    pub fn wait(&self, longest: Duration) -> bool {
        let Some(queue) = &self.queue else {
            std::thread::sleep(longest);
            return false;
        };
        let longest = Timespec::try_from(longest).ok();
        poll(&mut [PollFd::new(queue, PollFlags::IN)], longest.as_ref()).is_ok_and(|ready| ready > 0)
    }

    /// Hands over the notices that have come.
    pub fn take(&mut self, mut each: impl FnMut(Notice<'_>)) {
        let Some(queue) = &self.queue else { return };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(queue.as_fd(), &mut buffer);
        loop {
            let Ok(event) = reader.next() else { return };
            let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
            let is_overflow = event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW);
            each(Notice { folder: (!is_overflow).then(|| event.wd()), name });
            // One read takes all that has come; another would only find that there is no more.
            if reader.is_buffer_empty() {
                return;
            }
        }
    }

    /// Watches the folders in which something must change for this log. They are determined anew once a
    /// second, and at every tick while the file is missing, because links can be replaced and folders
    /// created.
    pub fn keep(
        &mut self,
        watched: &mut Watched,
        follow: &Follow,
        path: &Path,
        tick: bool,
        is_missing: bool,
    ) {
        watched.ticks += u32::from(tick);
        let is_due =
            watched.folders.is_empty() || tick && (is_missing || watched.ticks.is_multiple_of(KEEP_TICKS));
        let Some(queue) = self.queue.as_ref().filter(|_| is_due) else { return };
        let folders = follow.folders();
        if folders == watched.folders && !is_missing {
            return;
        }
        // A folder that is watched already keeps its number; one that no log needs any more costs a
        // notice now and then.
        let flags = WatchFlags::MODIFY
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::ATTRIB
            | WatchFlags::MOVE_SELF
            | WatchFlags::DELETE_SELF
            | WatchFlags::ONLYDIR;
        let target = path.canonicalize().ok();
        let names: Vec<OsString> = [Some(path), target.as_deref()]
            .into_iter()
            .flatten()
            .filter_map(|path| path.file_name().map(OsStr::to_owned))
            .collect();
        let names = if is_missing { Vec::new() } else { names };
        let watch = |folder: &PathBuf| {
            inotify::add_watch(queue, folder, flags).ok().map(|number| (number, names.clone()))
        };
        watched.watches = folders.iter().filter_map(watch).collect();
        watched.folders = folders;
    }
}
