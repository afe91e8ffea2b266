//! What the search for a cause works on, and what it finds.

use std::time::Duration;

use super::course::{Course, Member, Span};
use super::terms::{Spans, Terms};
use super::{CauseKind, Certainty};
use crate::finding::Finding;
use skewtrap_trace::time::Time;

/// A rank that tells nothing for so long while its peers do has stopped.
const STOPPED: Duration = Duration::from_secs(3);
/// The same for a log: lines come every forty steps.
const SILENT: Duration = Duration::from_secs(5);

/// Everything about one incident.
#[derive(Debug)]
pub struct Case<'a> {
    pub course: &'a Course,
    pub terms: &'a Terms<'a>,
    pub spans: Spans,
    pub blamed: usize,
    pub finding: &'a Finding,
    pub capture_at: Option<Time>,
    pub now: Time,
}

impl Case<'_> {
    pub fn blamed(&self) -> &Member {
        &self.course.members[self.blamed]
    }

    pub fn peers(&self) -> impl Iterator<Item = (usize, &Member)> {
        self.course.members.iter().enumerate().filter(|(i, _)| *i != self.blamed)
    }

    /// The last seconds of a span's end.
    pub fn lately(&self) -> Span {
        ((self.now - STOPPED).max(self.spans.after.0), self.now)
    }

    /// Whether a rank that used to say itself how it is does so no more.
    pub fn publishes_no_more(&self, member: &Member) -> bool {
        member.published.is_some_and(|last| self.has_stopped(last))
    }

    /// Whether a rank says itself how it is.
    pub fn publishes(&self, member: &Member) -> bool {
        member.published.is_some() && !self.publishes_no_more(member)
    }

    /// Whether it is known to have left: what listed it does so no more, or nothing else tells of it than
    /// what is silent.
    pub fn has_left(&self, member: &Member) -> bool {
        member.listed.map_or(member.published.is_none(), |last| self.has_stopped(last))
    }

    fn has_stopped(&self, last: Time) -> bool {
        self.now.since(last) >= STOPPED
    }

    pub fn is_silent(&self, member: &Member) -> bool {
        let limit = if self.course.is_log { SILENT } else { STOPPED };
        member.last_report().is_none_or(|last| self.now.since(last) >= limit)
    }
}

/// A candidate that holds.
pub struct Found {
    pub kind: CauseKind,
    pub certainty: Certainty,
    pub support: Vec<String>,
    pub explains: Option<f64>,
    pub unknown: Vec<String>,
    /// A peer that the cause is about.
    pub peer: Option<usize>,
    /// What is special about the requests that it gets more of.
    pub requests: Requests,
}

/// What is special about the requests of a rank that gets more of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Requests {
    /// Nothing that shows.
    #[default]
    Any,
    /// Its cache answers more of them than before.
    Cached,
    /// The router did not send them.
    NotRouted,
}

impl Found {
    pub fn new(kind: CauseKind, is_sure: bool, support: String) -> Self {
        let certainty = if is_sure { Certainty::Likely } else { Certainty::Consistent };
        Self {
            kind,
            certainty,
            support: vec![support],
            explains: None,
            unknown: Vec::new(),
            peer: None,
            requests: Requests::Any,
        }
    }
}
