//! What the server's logs say up to this moment. The agent's loop passes their lines on too, but they may be
//! late: after a pause of the whole agent, and where too many wait. So the logs themselves are read before anything
//! is sent, and what the loop passes on afterwards is not told twice.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use crate::observe::profile_lines;
use skewtrap_core::capture::line::ProfileLine;
use skewtrap_trace::rank::Rank;

/// How long reading them may hold up what is to be sent.
const LIMIT: Duration = Duration::from_millis(500);
/// More lines than this about profiling are no window's.
const MOST: usize = 4096;

type Counts = BTreeMap<(Rank, ProfileLine), usize>;

/// The logs of one window's server, from its start on.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// Each with the byte behind which it is read; none where its length could not be had.
    files: Vec<(PathBuf, Option<u64>)>,
    lines: Mutex<Lines>,
}

#[derive(Debug, Default)]
struct Lines {
    /// What the window was told.
    told: Counts,
    /// What of that the loop is still to pass on.
    ahead: Counts,
}

impl Log {
    /// From their present ends on. One whose disk hangs keeps no other.
    pub(super) async fn from_now(paths: Vec<PathBuf>) -> Self {
        let measure = |path: PathBuf| {
            let measured = path.clone();
            (path, crate::world::blocking(move || std::fs::metadata(measured).map(|m| m.len())))
        };
        let measuring: Vec<_> = paths.into_iter().map(measure).collect();
        let (until, mut files) = (Instant::now() + LIMIT, Vec::new());
        for (path, length) in measuring {
            let from = match tokio::time::timeout_at(until, length).await {
                Ok(Ok(Ok(length))) => Some(length),
                _ => None,
            };
            files.push((path, from));
        }
        Self { files, lines: Mutex::default() }
    }

    /// From those bytes on, where other readers pass their lines on.
    pub(super) fn after(ends: Vec<(PathBuf, u64)>) -> Self {
        let files = ends.into_iter().map(|(path, end)| (path, Some(end))).collect();
        Self { files, lines: Mutex::default() }
    }

    /// Their lengths at the start, by their paths; and the first one's.
    pub(super) fn from(&self) -> (BTreeMap<PathBuf, u64>, Option<u64>) {
        let known = self.files.iter().filter_map(|(path, from)| Some((path.clone(), (*from)?)));
        (known.collect(), self.files.first().and_then(|(_, from)| *from))
    }

    /// A line is passed on; gives whether it is news.
    pub(super) fn is_news(&self, rank: Rank, line: &ProfileLine) -> bool {
        let (mut lines, key) = (self.lock(), (rank, line.clone()));
        if let Some(count) = lines.ahead.get_mut(&key).filter(|count| **count > 0) {
            *count -= 1;
            return false;
        }
        lines.tell(key);
        true
    }

    /// What they say that the window was not told yet, each in its order. One that cannot be read in time
    /// says nothing.
    pub(super) async fn news(&self) -> Vec<(Rank, ProfileLine)> {
        let read = |(path, from): &(PathBuf, Option<u64>)| {
            let (path, from) = (path.clone(), (*from)?);
            // Of more than can be read in time the newest lines say what is so now.
            Some(tokio::spawn(async move { profile_lines::recent(&path, Some(from)).await }))
        };
        let reading: Vec<_> = self.files.iter().filter_map(read).collect();
        let (until, mut written) = (Instant::now() + LIMIT, Vec::new());
        for lines in reading {
            if let Ok(Ok(Ok((lines, _)))) = tokio::time::timeout_at(until, lines).await {
                written.extend(lines);
            }
        }
        let mut lines = self.lock();
        let mut told = lines.told.clone();
        let mut news = Vec::new();
        for key in written {
            match told.get_mut(&key).filter(|count| **count > 0) {
                Some(count) => *count -= 1,
                None => news.push(key),
            }
        }
        for key in &news {
            lines.tell(key.clone());
            *lines.ahead.entry(key.clone()).or_default() += 1;
        }
        news
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        crate::world::lock(&self.lines)
    }
}

impl Lines {
    fn tell(&mut self, key: (Rank, ProfileLine)) {
        if self.told.len() < MOST {
            *self.told.entry(key).or_default() += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[tokio::test]
    async fn a_line_is_told_once_whether_it_is_read_or_passed_on_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server.log");
        let old = "[2026-11-24 03:48:52 DP1] Profiling starts. Traces will be saved to: /old (with profile id: 1)\n";
        std::fs::write(&path, old).unwrap();
        let log = Log::from_now(vec![path.clone()]).await;
        assert_eq!(log.from(), ([(path.clone(), old.len() as u64)].into(), Some(old.len() as u64)));
        assert_eq!(log.news().await, [], "what stood there before is of older windows");
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        writeln!(file, "[2026-11-24 03:48:53 DP2] Stop profiling...").unwrap();
        let stops = (Rank::dp(2), ProfileLine::Stops);
        assert_eq!(log.news().await, std::slice::from_ref(&stops));
        assert_eq!(log.news().await, []);
        assert!(!log.is_news(stops.0, &stops.1), "the window has it already");
        writeln!(file, "[2026-11-24 03:48:54 DP2] Stop profiling...").unwrap();
        assert!(log.is_news(stops.0, &stops.1), "another one");
        assert_eq!(log.news().await, []);
    }

    #[tokio::test]
    async fn of_more_than_can_be_read_before_a_stop_the_newest_lines_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server.log");
        std::fs::write(&path, "").unwrap();
        let log = Log::from_now(vec![path.clone()]).await;
        let mut text = format!("{}\n", "x".repeat(1 << 20)).repeat(17).into_bytes();
        text.extend(
            b"[2026-11-24 03:48:53 DP2] Profiling starts. Traces will be saved to: /other (with profile id: 17.5)\n",
        );
        std::fs::write(&path, text).unwrap();
        let starts = ProfileLine::Starts { dir: "/other".into(), id: Some("17.5".into()) };
        assert_eq!(log.news().await, [(Rank::dp(2), starts)]);
    }

    #[tokio::test]
    async fn every_log_of_a_server_is_read_and_one_that_is_missing_keeps_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["node0.log", "gone.log", "node1.log"].map(|name| dir.path().join(name));
        for path in [&paths[0], &paths[2]] {
            std::fs::write(path, "[2026-11-24 03:48:52 DP1] Stop profiling...\n").unwrap();
        }
        let log = Log::from_now(paths.to_vec()).await;
        for (path, rank) in [(&paths[0], 0), (&paths[2], 3)] {
            let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
            writeln!(file, "[2026-11-24 03:48:53 DP{rank}] Stop profiling...").unwrap();
        }
        let stops = |rank| (Rank::dp(rank), ProfileLine::Stops);
        assert_eq!(log.news().await, [stops(0), stops(3)]);
        assert_eq!(log.from().0.len(), 2);
    }
}
