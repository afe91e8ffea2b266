//! What the server's log says up to this moment. The agent's loop passes its lines on too, but they may be
//! late: after a pause of the whole agent, and where too many wait. So the log itself is read before anything
//! is sent, and what the loop passes on afterwards is not told twice.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::observe::profile_lines;
use skewtrap_core::capture::line::ProfileLine;
use skewtrap_trace::rank::Rank;

/// How long reading it may hold up what is to be sent.
const LIMIT: Duration = Duration::from_millis(500);
/// More lines than this about profiling are no window's.
const MOST: usize = 4096;

type Counts = BTreeMap<(Rank, ProfileLine), usize>;

/// The log of one window's server, from its start on.
#[derive(Debug, Default)]
pub(super) struct Log {
    path: Option<PathBuf>,
    from: Option<u64>,
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
    /// From its present end on.
    pub(super) async fn from_now(path: Option<PathBuf>) -> Self {
        let Some(path) = path else { return Self::default() };
        let measured = path.clone();
        let measuring = crate::world::blocking(move || std::fs::metadata(measured).map(|m| m.len()));
        let from = match tokio::time::timeout(LIMIT, measuring).await {
            Ok(Ok(Ok(length))) => Some(length),
            _ => None,
        };
        Self { path: Some(path), from, lines: Mutex::default() }
    }

    /// From that byte on, where another reader passes its lines on.
    pub(super) fn after(path: Option<PathBuf>, from: u64) -> Self {
        Self { path, from: Some(from), lines: Mutex::default() }
    }

    /// Its length at the start.
    pub(super) const fn from(&self) -> Option<u64> {
        self.from
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

    /// What it says that the window was not told yet, in its order. A log that cannot be read in time says
    /// nothing.
    pub(super) async fn news(&self) -> Vec<(Rank, ProfileLine)> {
        let (Some(path), Some(from)) = (&self.path, self.from) else { return Vec::new() };
        let read = tokio::time::timeout(LIMIT, profile_lines::after(path, from)).await;
        let Ok(Ok((written, _))) = read else { return Vec::new() };
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
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
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
        let log = Log::from_now(Some(path.clone())).await;
        assert_eq!(log.from(), Some(old.len() as u64));
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
}
