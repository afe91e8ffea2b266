//! What a server's log reports about profiling: which rank's window began, stopped or was written.
//!
//! The lines carry no request id. A window is recognised by the folder or the id in its first line,
//! and its later lines by the rank that prints them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::printable::printable;
use crate::signal::log_line::Profile;
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

/// One profiling line of the log of a rank.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProfileLine {
    /// `Profiling starts. Traces will be saved to: DIR (with profile id: ID)`.
    Starts {
        /// The folder, as the server names it.
        dir: String,
        /// The id; old releases print none.
        id: Option<String>,
    },
    /// `Stop profiling...`: the window is closed, its export begins.
    Stops,
    /// `Profiling done. Traces are saved to: DIR`.
    Done {
        /// The folder, as the server names it.
        dir: String,
    },
}

/// No path is longer, on Linux.
const LONGEST_PATH: usize = 4096;

impl From<&Profile<'_>> for ProfileLine {
    fn from(line: &Profile<'_>) -> Self {
        // It is shown in refusals and messages, and anybody may have written it.
        let shown = |text: &str| printable(text, LONGEST_PATH).into_owned();
        match line {
            Profile::Starts { dir, id, .. } => {
                Self::Starts { dir: shown(dir), id: (!id.is_empty()).then(|| shown(id)) }
            }
            Profile::Stopping { .. } => Self::Stops,
            Profile::Done { dir } => Self::Done { dir: shown(dir) },
        }
    }
}

/// What makes a window recognisable as the agent's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// The folder that was sent, in the server's view; bears the incident's id.
    pub dir: Option<String>,
    /// The front part of file names that was sent.
    pub prefix: Option<String>,
    /// The profile id that was sent.
    pub id: Option<String>,
}

impl Marks {
    /// Whether a first line bears one of the marks.
    pub fn bears(&self, dir: &str, id: Option<&str>) -> bool {
        let same_dir = self.dir.as_deref().is_some_and(|d| same_folder(d, dir));
        let same_id = self.id.is_some() && self.id.as_deref() == id;
        same_dir || same_id
    }

    /// Whether a first line could show them at all: a prefix is in file names only.
    pub fn show_in_log(&self) -> bool {
        self.dir.is_some() || self.id.is_some()
    }

    /// Whether a file of that name, in the folder `dir` (server's view), is of this window.
    pub fn names(&self, dir: &str, file: &str) -> bool {
        // SGLang joins it with a hyphen, vLLM with an underscore.
        let starts = |mark: &Option<String>| {
            let rest = mark.as_deref().and_then(|m| file.strip_prefix(m));
            rest.is_some_and(|rest| rest.starts_with(['-', '_']))
        };
        let inside = self.dir.as_deref().is_some_and(|d| same_folder(d, dir));
        inside || starts(&self.prefix) || self.id.as_deref().is_some_and(|id| file.contains(id))
    }
}

/// Whether two paths of the server name one folder, a slash at the end aside.
pub fn same_folder(a: &str, b: &str) -> bool {
    a.trim_end_matches('/') == b.trim_end_matches('/')
}

/// How long a profile without an end in the log is taken to run. The form of a start that refuses doubles
/// goes on refusing one that really runs longer.
pub const FORGOTTEN: Duration = Duration::from_secs(3600);

/// Profiles of so many ranks are kept; a log may name any number of them.
const MOST_OPEN: usize = 4096;
/// Characters of a folder's name that are kept.
const LONGEST_DIR: usize = 1024;

/// Windows that somebody else opened, as far as the log tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForeignWindows {
    open: BTreeMap<Rank, (Time, String)>,
    last: Option<Time>,
}

impl ForeignWindows {
    /// Takes a line that belongs to no window of the agent's.
    pub fn line(&mut self, rank: Rank, line: &ProfileLine, at: Time) {
        self.last = self.last.max(Some(at));
        match line {
            ProfileLine::Starts { dir, .. } => {
                if self.open.len() < MOST_OPEN || self.open.contains_key(&rank) {
                    let dir = printable(dir, LONGEST_DIR).into_owned();
                    self.open.insert(rank, (at, dir));
                }
            }
            ProfileLine::Stops | ProfileLine::Done { .. } => {
                self.open.remove(&rank);
            }
        }
    }

    /// The oldest one that may be open at `now`: a start whose end never came is believed for
    /// [`FORGOTTEN`] only, for anybody who can write into the log can write one.
    pub fn open_at(&self, now: Time) -> Option<(Time, &str)> {
        let believed = self.open.values().filter(|(at, _)| now.since(*at) < FORGOTTEN);
        believed.min().map(|(at, dir)| (*at, dir.as_str()))
    }

    /// The oldest one that is open: since when, and where it writes.
    pub fn open(&self) -> Option<(Time, &str)> {
        self.open.values().min().map(|(at, dir)| (*at, dir.as_str()))
    }

    /// Whether one is open on that rank.
    pub fn is_open_on(&self, rank: Rank) -> bool {
        self.open.contains_key(&rank)
    }

    /// When one was last seen in the log.
    pub const fn last(&self) -> Option<Time> {
        self.last
    }

    /// Whatever ran on that rank is over: a rank has one profiler.
    pub fn over_on(&mut self, rank: Rank) {
        self.open.remove(&rank);
    }

    /// The clock was set by so many nanoseconds.
    pub fn shift(&mut self, by_ns: i64) {
        Time::shift_all(self.open.values_mut().map(|open| &mut open.0).chain(&mut self.last), by_ns);
    }

    /// The server has ended, and these windows with it.
    pub fn forget_open(&mut self) {
        self.open.clear();
    }
}

/// Distinguishes the lines of the agent's own windows from those of others, by their marks and by
/// when our windows opened and ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnLines {
    /// The last windows: an armed rank may begin long after its window was given up.
    windows: Vec<OwnWindow>,
    /// Ranks on which one of ours began and is not written yet, and where it writes.
    begun: BTreeMap<Rank, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct OwnWindow {
    marks: Marks,
    opened: Time,
    ended: Option<Time>,
    /// The id that the server gave to a window whose mark is in no line.
    adopted: Option<Option<String>>,
    /// Of a window that an agent before this one opened, whose first lines may stand in the log before the
    /// place where this agent began to read: the ranks of which another begin or an end was seen since.
    seen_since: Option<BTreeSet<Rank>>,
}

impl OwnWindow {
    /// Whether a first line of that time can be of this window.
    fn may_begin(&self, at: Time) -> bool {
        at + OwnLines::LAG >= self.opened
    }

    /// A prefix shows in no line: what begins while such a window is open is taken for ours, as
    /// long as it is one window, by its id.
    fn adopts(&mut self, id: Option<&str>, at: Time) -> bool {
        let open = self.may_begin(at) && self.ended.is_none_or(|ended| at <= ended);
        if self.marks.show_in_log() || !open {
            return false;
        }
        self.adopted.get_or_insert_with(|| id.map(str::to_owned)).as_deref() == id
    }
}

impl OwnLines {
    /// The clock was set by so many nanoseconds.
    pub fn shift(&mut self, by_ns: i64) {
        for window in &mut self.windows {
            Time::shift_all(window.ended.iter_mut().chain([&mut window.opened]), by_ns);
        }
    }

    const KEPT: usize = 8;
    /// Stamps of a log may be whole seconds.
    const LAG: Duration = Duration::from_secs(2);

    /// A window with these marks is being started.
    pub fn opened(&mut self, marks: Marks, at: Time) {
        if self.windows.len() == Self::KEPT {
            self.windows.remove(0);
        }
        self.windows.push(OwnWindow { marks, opened: at, ended: None, adopted: None, seen_since: None });
    }

    /// A window with these marks was left open by an agent before this one.
    pub fn left_behind(&mut self, marks: Marks, at: Time) {
        self.opened(marks, at);
        if let Some(window) = self.windows.last_mut() {
            window.seen_since = Some(BTreeSet::new());
        }
    }

    /// Whether a window may have begun on the rank before this agent read its log; it is asked once of a rank.
    fn begun_before(&mut self, rank: Rank) -> bool {
        let mut left = self.windows.iter_mut().filter_map(|window| window.seen_since.as_mut());
        left.any(|seen| seen.len() < MOST_OPEN && seen.insert(rank))
    }

    pub fn ended(&mut self, at: Time) {
        if let Some(window) = self.windows.last_mut() {
            window.ended.get_or_insert(at);
        }
    }

    /// The server has ended, and every window on it.
    pub fn forget_begun(&mut self) {
        self.begun.clear();
        self.windows.iter_mut().for_each(|window| window.seen_since = None);
    }

    /// Whether the line is of a window of ours.
    pub fn takes(&mut self, rank: Rank, line: &ProfileLine, at: Time) -> bool {
        match line {
            ProfileLine::Starts { dir, id } => {
                let id = id.as_deref();
                let marked = self.windows.iter().any(|w| w.marks.bears(dir, id) && w.may_begin(at));
                // A second one on the same rank cannot be attributed, because ours began only once: it counts
                // as another client's.
                let own = marked
                    || (!self.begun.contains_key(&rank)
                        && self.windows.last_mut().is_some_and(|w| w.adopts(id, at)));
                // What began there before is over.
                let left = self.windows.iter_mut().filter_map(|window| window.seen_since.as_mut());
                for seen in left.filter(|seen| seen.len() < MOST_OPEN) {
                    seen.insert(rank);
                }
                if own {
                    self.begun.insert(rank, dir.clone());
                } else {
                    self.begun.remove(&rank);
                }
                own
            }
            ProfileLine::Stops => {
                let own = self.begun.contains_key(&rank) || self.begun_before(rank);
                if own {
                    // Where it writes was in a line that this agent did not read.
                    self.begun.entry(rank).or_default();
                }
                own
            }
            ProfileLine::Done { dir } => {
                let began = self.begun.get(&rank).is_some_and(|d| d.is_empty() || same_folder(d, dir));
                let marked =
                    self.windows.iter().any(|w| w.marks.dir.as_deref().is_some_and(|d| same_folder(d, dir)));
                if began {
                    self.begun.remove(&rank);
                }
                began || marked
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_ours_by_folder_or_id_never_by_chance() {
        let marks = Marks { dir: Some("/p/skewtrap-x/".into()), prefix: None, id: Some("skewtrap-x".into()) };
        assert!(marks.bears("/p/skewtrap-x", Some("1795.1")));
        assert!(marks.bears("/elsewhere", Some("skewtrap-x")));
        assert!(!marks.bears("/p/skewtrap-xy", Some("1795.1")));
        assert!(!Marks::default().bears("/tmp", None), "no mark bears nothing");
    }

    #[test]
    fn a_file_is_ours_by_its_folder_its_prefix_or_its_id() {
        let marks = Marks { dir: None, prefix: Some("st-1".into()), id: None };
        assert!(marks.names("/tmp", "st-1-1795492133.33-TP-0-DP-2.trace.json.gz"));
        assert!(marks.names("/tmp", "st-1_dp0_pp0_tp0_rank0.17.pt.trace.json.gz"));
        assert!(!marks.names("/tmp", "1795492133.33-TP-0-DP-2.trace.json.gz"));
        assert!(!marks.names("/tmp", "st-11-1795492133.33-TP-0.trace.json.gz"));
    }

    #[test]
    fn somebody_elses_window_is_open_until_every_rank_of_it_stopped() {
        let mut foreign = ForeignWindows::default();
        let starts = ProfileLine::Starts { dir: "/data/busy5".into(), id: None };
        foreign.line(Rank::dp(0), &starts, Time::from_nanos(5));
        foreign.line(Rank::dp(1), &starts, Time::from_nanos(6));
        foreign.line(Rank::dp(0), &ProfileLine::Stops, Time::from_nanos(7));
        assert_eq!(foreign.open(), Some((Time::from_nanos(6), "/data/busy5")));
        foreign.line(Rank::dp(1), &ProfileLine::Done { dir: "/data/busy5".into() }, Time::from_nanos(8));
        assert_eq!((foreign.open(), foreign.last()), (None, Some(Time::from_nanos(8))));
    }

    #[test]
    fn a_log_that_names_any_number_of_ranks_does_not_fill_the_memory() {
        let mut foreign = ForeignWindows::default();
        let at = Time::from_epoch_s(1000.0);
        let start = ProfileLine::Starts { dir: "/p".repeat(100_000), id: None };
        for dp in 0..u16::MAX {
            foreign.line(Rank::dp(dp), &start, at);
        }
        assert_eq!(foreign.open.len(), MOST_OPEN);
        assert!(foreign.open.values().all(|(_, dir)| dir.len() <= 4 * LONGEST_DIR));
        foreign.line(Rank::dp(0), &ProfileLine::Stops, at);
        assert!(!foreign.is_open_on(Rank::dp(0)), "what is kept ends as before");
    }
}
