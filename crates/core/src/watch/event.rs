//! What the core is told, and what it asks for. Everything that happens goes through these two.

use std::sync::Arc;
use std::time::Duration;

use crate::capture::admit::CapturePlan;
use crate::capture::facts::{Answered, Folder, ServerFacts};
use crate::capture::governor::AttemptEnd;
use crate::capture::keep::BundleSpace;
use crate::capture::line::{Marks, ProfileLine};
use crate::capture::window::WindowPhase;
use crate::incident::{CaptureOutcome, Incident, VerdictNote};
use crate::message::Update;
use crate::rule::{Change, Rule};
use crate::signal::catalog::Catalog;
use crate::signal::observation::{Observation, SourceId};
use crate::signal::pattern::Pattern;
use crate::signal::sample::TargetId;
use crate::status::Silence;
use skewtrap_trace::labels::Labels;
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

/// Something happened.
#[derive(Debug)]
pub enum Event {
    /// A source saw something.
    Observed(Observation),
    /// Time passed.
    Tick,
    /// A server was looked at.
    Server {
        /// Which.
        target: TargetId,
        /// What was seen.
        fact: ServerFact,
    },
    /// A window went on.
    Window {
        /// Its incident.
        incident: Arc<str>,
        /// How.
        news: WindowNews,
    },
    /// The ranks of a capture were compared.
    Compared {
        /// Its incident.
        incident: Arc<str>,
        /// The number of the capture within it.
        window: usize,
        /// What it said.
        note: VerdictNote,
    },
    /// The ranks of a capture could not be compared.
    NotCompared {
        /// Its incident.
        incident: Arc<str>,
    },
    /// A bundle was written.
    Bundled {
        /// Its incident.
        incident: Arc<str>,
        /// Where.
        path: String,
    },
    /// Somebody wants a window: by hand, or an alert of another system.
    ManualRequest(ManualRequest),
    /// The configuration was read anew.
    Reloaded {
        /// The new rules.
        rules: Vec<Rule>,
        /// The signals they may name.
        catalog: Arc<Catalog>,
        /// The user's own patterns.
        patterns: Vec<Pattern>,
    },
    /// Captures and messages are silenced.
    Silenced(Silence),
    /// An agent before this one left a window open; it is being closed.
    LeftBehind {
        /// On which server.
        target: TargetId,
        /// Its attempt.
        attempt: String,
        /// The window, as far as is known.
        window: OpenWindow,
    },
    /// The folder of the bundles was swept.
    Swept(BundleSpace),
}

/// What was seen of a server.
#[derive(Clone, Debug)]
pub enum ServerFact {
    /// What it says of itself.
    Info(ServerFacts),
    /// It does not answer any more.
    Lost,
    /// How it answered `/health`.
    Health(Answered),
    /// One of its folders.
    Folder(Folder),
}

/// How a window goes on.
#[derive(Clone, Debug)]
pub enum WindowNews {
    /// It entered a phase.
    Entered(WindowPhase),
    /// It is over.
    Ended {
        /// What came of it.
        outcome: Box<CaptureOutcome>,
        /// What it cost.
        end: AttemptEnd,
    },
}

/// A wish for a window that no rule of the agent's had.
#[derive(Clone, Debug)]
pub struct ManualRequest {
    /// On which server.
    pub target: TargetId,
    /// Stands in for a rule: its limits, its capture, its name.
    pub rule: Arc<Rule>,
    /// Why, in words: the alert's summary.
    pub why: String,
    /// The alert's labels.
    pub labels: Labels,
    /// Since when the alert fires.
    pub since: Option<Time>,
}

/// Something is to be done.
#[derive(Debug)]
pub enum Effect {
    /// A rule's state changed: a log line, and a line of the replay.
    Changed {
        /// The change.
        change: Box<Change>,
        /// The capture's word: docs/api.md has those of a replay.
        capture: &'static str,
        /// Why it is refused.
        why: Option<String>,
    },
    /// Write the attempt to the state, then open the window.
    Start {
        /// The incident it belongs to, as it stands.
        incident: Box<Incident>,
        /// On which server.
        target: TargetId,
        /// What was granted.
        grant: Box<CapturePlan>,
        /// The rule's receivers: kept with it, for an agent after this one.
        receivers: Vec<Arc<str>>,
    },
    /// The rule of an open window cleared.
    Cleared {
        /// The incident.
        incident: Arc<str>,
    },
    /// A wish for a capture was refused: for the log and the counter; who is told of it is said by
    /// [`Self::Notify`].
    Refused {
        /// The incident.
        incident: Arc<str>,
        /// Its rule.
        rule: Arc<str>,
        /// A word of a small fixed set.
        reason: &'static str,
        /// A sentence with what would mend it.
        why: String,
    },
    /// What was captured was seen to end: what fires from now on is something new.
    Over {
        /// The rule.
        rule: Arc<str>,
        /// The server.
        target: Arc<str>,
        /// What fired, as its attempts have it.
        firing: String,
        /// When.
        at: Time,
    },
    /// A server's log said something of profiling while a window of ours is open on it.
    ProfileLine {
        /// The window's incident.
        incident: Arc<str>,
        /// Who printed it.
        rank: Rank,
        /// What.
        line: ProfileLine,
    },
    /// A server's log says that it dies.
    Dying {
        /// Which.
        target: TargetId,
        /// The line.
        line: String,
    },
    /// Tell people, and keep the incident.
    Notify {
        /// As it stands.
        incident: Box<Incident>,
        /// What is new.
        update: Update,
        /// The rule's receivers.
        receivers: Vec<Arc<str>>,
    },
    /// Keep the incident as it stands; it is no news.
    Keep {
        /// As it stands.
        incident: Box<Incident>,
    },
    /// What came of a wish that was asked for.
    Answered {
        /// Its incident.
        incident: Arc<str>,
        /// Why no window opens.
        refused: Option<String>,
    },
    /// A source's trouble began, changed or ended: said once a change.
    Trouble {
        /// Which source.
        source: SourceId,
        /// Whether it works again.
        is_over: bool,
        /// A sentence.
        said: String,
    },
}

/// A window of ours that is under way.
#[derive(Clone, Debug)]
pub struct OpenWindow {
    /// Its incident.
    pub incident: Arc<str>,
    /// By what it is recognised; `None` for means that leave no line in the log.
    pub marks: Option<Marks>,
    /// `http`, `nsys`, `cuda_profiler_api`, `command`.
    pub means: &'static str,
    /// How far it is.
    pub phase: WindowPhase,
    /// Since when.
    pub since: Time,
    /// When it is stopped at the latest.
    pub deadline: Duration,
}
