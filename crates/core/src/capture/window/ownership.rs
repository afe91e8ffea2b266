//! What is recorded of a window: which ranks began and finished, what proves it ours, and somebody
//! else's windows that are in the way.

use std::collections::{BTreeMap, BTreeSet};

use crate::capture::line::{ForeignWindows, Marks, ProfileLine, same_folder};
use crate::capture::plan::{StartMode, StartRequest};
use crate::capture::verify::expected_of;
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

/// Lines that are kept while a start is unanswered: anybody may print more.
const MOST_PENDING: usize = 4096;

/// How far a rank's window has come, by its log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum RankProgress {
    /// No line.
    Nothing,
    /// `Profiling starts`.
    Begun(Time),
    /// `Stop profiling`.
    Stopped,
    /// `Profiling done`.
    Done,
}

/// What is recorded of a window.
#[derive(Clone, Debug)]
pub(super) struct Ownership {
    marks: Marks,
    expected: Vec<Rank>,
    busy: Vec<Rank>,
    form: StartMode,
    seen: BTreeMap<Rank, RankProgress>,
    whole: BTreeSet<Rank>,
    /// Ranks of which a file is there, whole or not.
    sighted: BTreeSet<Rank>,
    /// Lines while no mark can show, until the answer tells whose they are.
    pending: Vec<(Rank, ProfileLine, Time)>,
    /// The id that the server gave to a window whose mark is a prefix.
    adopted: Option<String>,
    pub(super) foreign: ForeignWindows,
    /// The start was answered with 2xx.
    pub(super) granted: bool,
    /// A line or a file bears a mark.
    pub(super) proven: bool,
    pub(super) doubled: bool,
}

impl Ownership {
    pub(super) fn new(request: &StartRequest) -> Self {
        let mut expected = request.ranks.busy.clone();
        expected.extend(&request.ranks.idle);
        expected.sort_unstable();
        Self {
            marks: request.marks.clone(),
            seen: expected.iter().map(|r| (*r, RankProgress::Nothing)).collect(),
            expected,
            busy: request.ranks.busy.clone(),
            form: request.form,
            whole: BTreeSet::new(),
            sighted: BTreeSet::new(),
            pending: Vec::new(),
            adopted: None,
            foreign: ForeignWindows::default(),
            granted: false,
            proven: false,
            doubled: false,
        }
    }

    /// Whether a stop of ours would be of our own window.
    pub(super) const fn is_ours(&self) -> bool {
        self.granted || self.proven
    }

    /// The start was granted: first lines without a mark are ours.
    pub(super) fn grant(&mut self) {
        self.granted = true;
        for (rank, line, at) in std::mem::take(&mut self.pending) {
            self.line(rank, &line, at);
        }
    }

    /// The start was not granted: they are somebody else's.
    pub(super) fn disown(&mut self) {
        for (rank, line, at) in std::mem::take(&mut self.pending) {
            self.foreign.line(rank, &line, at);
        }
    }

    /// Takes a line of the log.
    pub(super) fn line(&mut self, rank: Rank, line: &ProfileLine, at: Time) {
        if !self.marks.show_in_log() && !self.is_ours() {
            if self.pending.len() < MOST_PENDING {
                self.pending.push((rank, line.clone(), at));
            }
            return;
        }
        match line {
            ProfileLine::Starts { dir, id } => self.starts(rank, dir, id.as_deref(), at),
            ProfileLine::Stops => self.ends(rank, line, RankProgress::Stopped, at),
            ProfileLine::Done { dir } => match self.marks.dir.as_deref() {
                Some(ours) if same_folder(ours, dir) => self.note(rank, RankProgress::Done),
                Some(_) => self.foreign.line(rank, line, at),
                None => self.ends(rank, line, RankProgress::Done, at),
            },
        }
    }

    fn starts(&mut self, rank: Rank, dir: &str, id: Option<&str>, at: Time) {
        let line = || ProfileLine::Starts { dir: dir.to_owned(), id: id.map(str::to_owned) };
        if self.marks.show_in_log() {
            if !self.marks.bears(dir, id) {
                return self.foreign.line(rank, &line(), at);
            }
            self.proven = true;
        } else if self.adopted.is_some() && self.adopted.as_deref() != id {
            return self.foreign.line(rank, &line(), at);
        } else {
            self.adopted = id.map(str::to_owned);
        }
        if let Some(seen) = self.seen_of(rank) {
            self.doubled |= matches!(seen, RankProgress::Begun(_));
            self.set(rank, RankProgress::Begun(at));
        }
        // A rank has one profiler: what the log had of another one is over.
        self.foreign.over_on(rank);
    }

    /// Later lines carry no id: they belong to whoever has the window open on that rank.
    fn ends(&mut self, rank: Rank, line: &ProfileLine, seen: RankProgress, at: Time) {
        if self.foreign.is_open_on(rank) || !self.is_ours() {
            return self.foreign.line(rank, line, at);
        }
        self.note(rank, seen);
    }

    fn note(&mut self, rank: Rank, seen: RankProgress) {
        if self.seen_of(rank).is_some_and(|before| before < seen) {
            self.set(rank, seen);
        }
    }

    /// Takes a file that bears the marks.
    pub(super) fn file(&mut self, rank: Option<Rank>, whole: bool) {
        self.proven = true;
        if let Some(rank) = rank.and_then(|r| expected_of(&self.expected, r)) {
            self.sighted.insert(rank);
            if whole {
                self.whole.insert(rank);
            }
        }
    }

    fn seen_of(&self, rank: Rank) -> Option<RankProgress> {
        self.seen.get(&expected_of(&self.expected, rank)?).copied()
    }

    fn set(&mut self, rank: Rank, seen: RankProgress) {
        if let Some(rank) = expected_of(&self.expected, rank) {
            self.seen.insert(rank, seen);
        }
    }

    fn closed(&self, rank: Rank) -> bool {
        self.whole.contains(&rank) || self.seen.get(&rank).is_some_and(|s| *s >= RankProgress::Stopped)
    }

    fn written(&self, rank: Rank) -> bool {
        self.whole.contains(&rank) || self.seen.get(&rank) == Some(&RankProgress::Done)
    }

    /// Whether no rank records any more.
    pub(super) fn all_closed(&self) -> bool {
        self.expected.iter().all(|r| self.closed(*r))
    }

    /// Whether every rank has written its file.
    pub(super) fn all_written(&self) -> bool {
        self.expected.iter().all(|r| self.written(*r))
    }

    /// Whether the ranks that had work record no more.
    pub(super) fn busy_closed(&self) -> bool {
        self.busy.iter().all(|r| self.closed(*r))
    }

    /// Whether the whole file of every rank is in sight.
    pub(super) fn all_files(&self) -> bool {
        self.expected.iter().all(|r| self.whole.contains(r))
    }

    /// Whether the whole file of every rank that had work is in sight.
    pub(super) fn busy_files(&self) -> bool {
        self.busy.iter().all(|r| self.whole.contains(r))
    }

    /// Whether a file of every rank is there, whole or still being written.
    pub(super) fn all_sighted(&self) -> bool {
        self.expected.iter().all(|r| self.sighted.contains(r))
    }

    /// Ranks whose file nobody has seen.
    pub(super) fn unsighted(&self) -> Vec<Rank> {
        self.expected.iter().copied().filter(|r| !self.sighted.contains(r)).collect()
    }

    /// Ranks that the log shows to have begun and not to have stopped.
    pub(super) fn recording(&self) -> Vec<Rank> {
        let begun = |rank: &Rank| matches!(self.seen[rank], RankProgress::Begun(_)) && !self.closed(*rank);
        self.expected.iter().copied().filter(begun).collect()
    }

    /// Ranks that began after `at` and have not stopped: their window outlived a stop.
    pub(super) fn began_after(&self, at: Time) -> bool {
        self.seen.values().any(|s| matches!(s, RankProgress::Begun(begun) if *begun > at))
    }

    /// Ranks whose window was granted and never began, while others' did: armed, and a stop does
    /// not disarm them. Only the form with `start_step` arms.
    pub(super) fn armed(&self) -> Vec<Rank> {
        let any = self.seen.values().any(|s| *s != RankProgress::Nothing);
        if self.form != StartMode::Exact || !any {
            return Vec::new();
        }
        self.expected
            .iter()
            .copied()
            .filter(|r| self.seen[r] == RankProgress::Nothing && !self.whole.contains(r))
            .collect()
    }

    /// Whether some rank records, as far as can be told: it began, or begins without steps of its own.
    pub(super) fn any_open(&self) -> bool {
        self.not_closed()
            .iter()
            .any(|r| self.form == StartMode::Plain || matches!(self.seen[r], RankProgress::Begun(_)))
    }

    /// Ranks whose end nothing shows.
    pub(super) fn not_closed(&self) -> Vec<Rank> {
        self.expected.iter().copied().filter(|r| !self.closed(*r)).collect()
    }
}
