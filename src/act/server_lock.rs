//! Turns of the agents that may profile one server: a file beside its profiles (or, where their folder is
//! out of sight, in this machine's temporary folder) that is locked while a window is open.
//!
//! An engine cannot tell its windows apart, and without a log an agent cannot either. The lock ends
//! with its process; what a killed agent left open is covered by the time that stands in the file.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use std::time::Duration;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use skewtrap_trace::printable::printable;
use skewtrap_trace::time::Time;

/// A turn; it ends when this is dropped, unless a window may be open then.
#[derive(Debug)]
pub struct ServerLock {
    file: File,
    is_open: bool,
}

impl ServerLock {
    /// A window is, or may be, open, or no more. What is dropped while one is leaves others to wait for the time that
    /// stands in the file.
    pub const fn set_open(&mut self, is_open: bool) {
        self.is_open = is_open;
    }
}

/// Who has the turn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LockHolder {
    /// The agent's id.
    pub agent: String,
    /// Its process, for people.
    pub process: u32,
    /// Its window is over by then.
    pub until: Time,
}

/// A turn that is said to last longer than this is not believed.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// An agent's id is 32 hexadecimal digits.
const LONGEST_NAME: usize = 64;

/// The file for the server at `address`, in `folder` where that is a folder.
pub fn path(folder: Option<&Path>, address: &str) -> PathBuf {
    let safe: String = address.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let folder = folder.filter(|f| f.is_dir()).map_or_else(std::env::temp_dir, Path::to_owned);
    folder.join(format!(".skewtrap-{safe}.lease"))
}

/// Takes the turn for `holder`; `Ok(Err(other))` when it is another's. Whoever may write there may have put
/// anything in its place: only a regular file is taken, and what it says is cleaned and bounded.
///
/// # Errors
/// The file cannot be opened or written, or it is none.
pub fn take(path: &Path, holder: &LockHolder, now: Time) -> io::Result<Result<ServerLock, LockHolder>> {
    let (mut file, is_writable) = opened(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.nlink() > 1 {
        return Err(io::Error::other(format!("{} is not a file of its own", path.display())));
    }
    // Agents of several users may take turns, whatever umask this one was started with.
    if metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o666 != 0o666 {
        // Not every file system keeps modes.
        let _ = file.set_permissions(Permissions::from_mode(0o666));
    }
    let locked = rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive);
    let mut text = Vec::new();
    (&file).take(4096).read_to_end(&mut text)?;
    let other = serde_json::from_slice::<LockHolder>(&text).ok().filter(|other| other.until <= now + LONGEST);
    let other =
        other.map(|other| LockHolder { agent: printable(&other.agent, LONGEST_NAME).into_owned(), ..other });
    match locked {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let unknown = LockHolder { agent: "unknown".into(), process: 0, until: now };
            return Ok(Err(other.unwrap_or(unknown)));
        }
        Err(error) => return Err(error.into()),
    }
    // Nobody has it, but one that was killed may have left its window open.
    if let Some(other) = other.filter(|other| other.agent != holder.agent && other.until > now) {
        return Ok(Err(other));
    }
    // One that is another's is held all the same; only a kill would not be noticed.
    if is_writable {
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(&serde_json::to_vec(holder)?)?;
    }
    Ok(Ok(ServerLock { file, is_open: false }))
}

/// Opens the file, and tells whether it can be written: where another user made it, reading it is enough to see who has
/// the turn, and to lock it.
fn opened(path: &Path) -> io::Result<(File, bool)> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    let open = |creates: bool, writes: bool| {
        let mut options = OpenOptions::new();
        options.create(creates).truncate(false).read(true).write(writes).mode(0o666).custom_flags(flags);
        options.open(path)
    };
    let refused = match open(true, true) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => error,
        opened => return opened.map(|file| (file, true)),
    };
    // In a folder for everybody the kernel may let nobody but its owner open a file in order to create it.
    let opened = open(false, true).map(|file| (file, true)).or_else(|_| Ok((open(false, false)?, false)));
    opened.map_err(|_: io::Error| refused)
}

impl Drop for ServerLock {
    fn drop(&mut self) {
        // Emptied, so that the next agent need not wait for the time in it; where that fails, it does.
        if !self.is_open {
            let _ = self.file.set_len(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: f64) -> Time {
        Time::from_epoch_s(s)
    }

    fn holder(agent: &str) -> LockHolder {
        LockHolder { agent: agent.into(), process: 7, until: at(10.0) }
    }

    #[test]
    fn two_agents_on_one_server_take_turns() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(Some(dir.path()), "http://127.0.0.1:30000");
        let first = take(&path, &holder("a"), at(1.0)).unwrap().unwrap();
        assert_eq!(take(&path, &holder("b"), at(2.0)).unwrap().unwrap_err(), holder("a"));
        drop(first);
        take(&path, &holder("b"), at(3.0)).unwrap().expect("it is free again");
    }

    #[test]
    fn agents_of_two_users_take_turns() {
        let dir = tempfile::tempdir().unwrap();
        let allow = |path: &Path, mode| {
            std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        };
        allow(dir.path(), 0o755);
        let path = path(Some(dir.path()), "http://127.0.0.1:30000");
        let mut first = take(&path, &holder("a"), at(1.0)).unwrap().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o666, "whatever the umask is");
        // An earlier release made it for its own user alone.
        allow(&path, 0o444);
        let take_as_another = || {
            let path = path.clone();
            let taking = std::thread::spawn(move || {
                if rustix::process::geteuid().is_root() {
                    let (same, other) = (rustix::process::Uid::ROOT, rustix::process::Uid::from_raw(65534));
                    rustix::thread::set_thread_res_uid(same, other, same).unwrap();
                }
                take(&path, &holder("b"), at(2.0)).unwrap()
            });
            taking.join().unwrap()
        };
        assert_eq!(take_as_another().unwrap_err(), holder("a"));
        first.set_open(true);
        drop(first);
        assert_eq!(take_as_another().unwrap_err(), holder("a"), "it may have left its window open");
        allow(&path, 0o666);
        drop(take(&path, &holder("a"), at(2.0)).unwrap().unwrap());
        allow(&path, 0o444);
        let second = take_as_another().expect("it is free");
        take(&path, &holder("a"), at(3.0)).unwrap().unwrap_err();
        drop(second);
    }

    #[test]
    fn what_a_killed_agent_may_have_left_open_is_waited_for_by_others_and_not_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(Some(dir.path()), "http://127.0.0.1:30000");
        std::fs::write(&path, serde_json::to_vec(&holder("a")).unwrap()).unwrap();
        assert_eq!(take(&path, &holder("b"), at(9.0)).unwrap().unwrap_err(), holder("a"));
        drop(take(&path, &holder("a"), at(9.0)).unwrap().expect("its own"));
        std::fs::write(&path, serde_json::to_vec(&holder("a")).unwrap()).unwrap();
        take(&path, &holder("b"), at(10.0)).unwrap().expect("its time is over");
    }

    #[test]
    fn what_may_be_open_when_a_turn_ends_is_waited_for_like_that_of_a_killed_agent() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(Some(dir.path()), "http://127.0.0.1:30000");
        let mut first = take(&path, &holder("a"), at(1.0)).unwrap().unwrap();
        first.set_open(true);
        drop(first);
        assert_eq!(take(&path, &holder("b"), at(9.0)).unwrap().unwrap_err(), holder("a"));
        let mut again = take(&path, &holder("a"), at(9.0)).unwrap().expect("its own");
        again.set_open(true);
        again.set_open(false);
        drop(again);
        take(&path, &holder("b"), at(9.0)).unwrap().expect("it is closed");
    }

    #[test]
    fn what_somebody_put_in_its_place_is_neither_followed_nor_believed_nor_shown_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(Some(dir.path()), "127.0.0.1:30000");
        let victim = dir.path().join("victim");
        let put = |text: &[u8]| std::fs::write(&path, text).unwrap();
        std::fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        take(&path, &holder("a"), at(1.0)).unwrap_err();
        std::fs::remove_file(&path).unwrap();
        std::fs::hard_link(&victim, &path).unwrap();
        take(&path, &holder("a"), at(1.0)).unwrap_err();
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
        std::fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        take(&path, &holder("a"), at(1.0)).unwrap_err();
        std::fs::remove_file(&path).unwrap();
        put(&serde_json::to_vec(&LockHolder { until: at(9e9), ..holder("b") }).unwrap());
        drop(take(&path, &holder("a"), at(1.0)).unwrap().expect("no window lasts for ever"));
        put(&serde_json::to_vec(&holder("\u{1b}]0;b\u{7}")).unwrap());
        let other = take(&path, &holder("a"), at(1.0)).unwrap().unwrap_err();
        assert!(!other.agent.contains('\u{1b}'), "{other:?}");
    }

    #[test]
    fn servers_have_files_of_their_own_and_a_folder_out_of_sight_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        assert_ne!(path(Some(dir.path()), "http://a:1"), path(Some(dir.path()), "http://a:2"));
        let gone = path(Some(&dir.path().join("gone")), "http://a:1");
        assert!(gone.starts_with(std::env::temp_dir()));
    }
}
