//! What goes into the core ([`Event`]) and what it asks for ([`Effect`]).

use std::sync::Arc;
use std::time::Duration;

use crate::capture::CaptureSpec;
use crate::capture::admit::CapturePlan;
use crate::capture::captured::CaptureKind;
use crate::capture::facts::{Folder, HealthAnswer, ServerFacts};
use crate::capture::governor::{Budget, ClockJump};
use crate::capture::keep::BundleSpace;
use crate::capture::line::{Marks, ProfileLine};
use crate::capture::refusal::{Reason, Refusal};
use crate::capture::window::WindowPhase;
use crate::incident::{CaptureState, Incident, StoredCapture, VerdictNote};
use crate::message::Update;
use crate::rule::{Change, Rule};
use crate::signal::catalog::Catalog;
use crate::signal::intake::UserSignals;
use crate::signal::observation::{Observation, SourceId};
use crate::signal::sample::TargetId;
use crate::status::Silence;
use skewtrap_trace::labels::Labels;
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// A source saw something.
    Observed(Observation),
    /// Time passed.
    Tick,
    /// Something was learned of a server.
    Server {
        target: TargetId,
        /// What was observed.
        fact: ServerFact,
    },
    /// A window made progress.
    Window {
        incident: Arc<str>,
        /// The progress.
        event: WindowEvent,
    },
    /// The ranks of a capture were compared.
    Compared {
        incident: Arc<str>,
        /// The number of the capture within it.
        window: usize,
        note: VerdictNote,
    },
    /// The ranks of a capture could not be compared.
    NotCompared { incident: Arc<str> },
    /// The configuration was read anew.
    Reloaded {
        /// The new rules.
        rules: Vec<Rule>,
        /// The signals they may name.
        catalog: Arc<Catalog>,
        /// The user's own signals.
        own: UserSignals,
    },
    /// What the configuration that was read anew says of windows.
    PolicyChanged {
        /// What a day may cost.
        budget: Budget,
        /// Bytes that must stay free on every disk involved.
        min_free: u64,
        /// Whether none is opened.
        watch_only: bool,
    },
    /// Captures and messages are silenced.
    Silenced(Silence),
    /// Somebody says that windows may open again where one hurt the server; `None` for every server.
    Resumed(Option<Arc<str>>),
    /// The wall clock was set.
    ClockSet(ClockJump),
    /// An agent before this one left a window open; it is being closed.
    LeftBehind {
        /// On which server.
        target: TargetId,
        attempt: String,
        /// The window, as far as is known.
        window: OpenWindow,
    },
    /// The bundle of an incident was begun.
    Bundled { incident: Arc<str>, path: String },
    /// The folder of the bundles was swept.
    Swept(BundleSpace),
}

/// What was observed of a server.
#[derive(Clone, Debug)]
pub enum ServerFact {
    /// What it reports about itself.
    Info(ServerFacts),
    /// It does not answer any more.
    Lost,
    /// How it answered `/health`.
    Health(HealthAnswer),
    Folder(Folder),
}

/// The progress of a window.
#[derive(Clone, Debug)]
pub enum WindowEvent {
    /// It entered a phase.
    Entered(WindowPhase),
    /// It is over: what it captured and how it ended.
    Ended(Box<StoredCapture>),
    /// Nothing was sent: another agent of the pool has a window open, or its lease cannot be had.
    Refused(Box<Refusal>),
}

/// A capture that no rule of the agent's asks for.
#[derive(Clone, Debug)]
pub struct ManualRequest {
    /// On which server.
    pub target: TargetId,
    /// Whether an alert of another system asks, and not a person.
    pub is_alert: bool,
    /// Whether later captures of the server are to be compared with it.
    pub is_baseline: bool,
    pub capture: CaptureSpec,
    /// Why, in words: the alert's summary.
    pub why: String,
    /// The alert's labels.
    pub labels: Labels,
    /// Since when the alert has been firing.
    pub since: Option<Time>,
}

/// What the shell has to do.
#[derive(Debug)]
pub enum Effect {
    /// A rule's state changed: a log line, and a line of the replay.
    Changed {
        change: Box<Change>,
        /// How far its capture is.
        capture: CaptureState,
        /// Why it is refused.
        why: Option<String>,
    },
    /// Write the attempt to the state, then open the window.
    Start {
        /// The incident it belongs to, as it is now.
        incident: Box<Incident>,
        /// On which server.
        target: TargetId,
        /// What is to be done.
        plan: Box<CapturePlan>,
        /// The rule's receivers: kept with it, for an agent after this one.
        receivers: Vec<Arc<str>>,
    },
    /// The rule of an open window cleared.
    Cleared { incident: Arc<str> },
    /// A capture was refused, for the log and the counter. [`Self::Notify`] is what people read.
    Refused {
        incident: Arc<str>,
        rule: Arc<str>,
        /// The reason, as one word.
        reason: Reason,
        /// A sentence that says what would help.
        why: String,
    },
    /// What was captured stopped firing: what fires from now on is a new firing.
    Over {
        rule: Arc<str>,
        target: Arc<str>,
        /// What fired, as its attempts have it.
        firing: String,
        at: Time,
    },
    /// A server's log has a line about profiling while a window of the agent is open on it.
    ProfileLine {
        /// The window's incident.
        incident: Arc<str>,
        /// The rank that printed it.
        rank: Rank,
        /// The line, read.
        line: ProfileLine,
    },
    /// A server's log shows that it is dying.
    Dying { target: TargetId, line: String },
    /// A server is proven to be another instance than before: what ran in the one before is gone.
    Restarted {
        target: TargetId,
        /// By what that shows.
        why: String,
    },
    /// Send a message about the incident, and store the incident.
    Notify {
        /// The incident as it is now.
        incident: Box<Incident>,
        /// What is new.
        update: Update,
        /// Its three messages are told, or will be: it only renews what a receiver can edit in place.
        only_edits: bool,
        /// The rule's receivers.
        receivers: Vec<Arc<str>>,
    },
    /// Store the incident, whose change is not reported to receivers.
    Store {
        /// The incident as it is now.
        incident: Box<Incident>,
    },
    /// A source's problem began, changed or ended; reported once for each change.
    SourceProblem {
        source: SourceId,
        /// Whether it works again.
        is_over: bool,
        /// A sentence.
        message: String,
    },
}

/// A window of ours that is under way.
#[derive(Clone, Debug)]
pub struct OpenWindow {
    pub incident: Arc<str>,
    /// What marks its lines in the log; `None` for means that leave none there.
    pub marks: Option<Marks>,
    /// By what it captures.
    pub means: CaptureKind,
    /// How far it is.
    pub phase: WindowPhase,
    pub since: Time,
    /// When it is stopped at the latest.
    pub deadline: Duration,
}
