//! The messages about an incident: one for each of its updates.
//!
//! A [`Message`] is created once. It is the JSON body of the webhook (docs/notifications.md), it is
//! stored in the outbox unchanged, and Slack, Alertmanager and the terminal are rendered from it alone.
//! Whatever the update, its [`Facts`] answer the same ten questions, with "not yet" where that is the
//! answer. Who receives it is decided in `act::notify`.

mod alertmanager;
mod brief;
mod facts;
mod sample;
mod slack;
mod terminal;
mod words;

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::alertmanager::{Alert, LONGEST_ALERT, alerts};
pub use self::brief::Brief;
pub use self::facts::{Facts, next_step, serving};
pub use self::sample::sample;
pub use self::slack::slack;
pub use self::terminal::terminal;
pub use self::words::{bytes, counted, deviation, figure, rank_name, seconds, stood_still, utc};
use crate::capture::refusal::Reason;
use crate::incident::{CaptureOutcome, EndReason, Incident, Returned};
use skewtrap_trace::time::Time;

/// The version of the JSON body; raised when a field changes its meaning or goes away.
pub const SCHEMA_VERSION: u32 = 1;

/// A message that is sent so long after it was written says how old it is.
const LATE: Duration = Duration::from_secs(120);

/// What a message reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Update {
    /// A rule fired.
    Fired,
    /// No window was opened.
    Refused,
    /// The window is over: with files, or failed.
    Captured,
    /// What comparing the ranks said.
    Verdict,
    /// The rule fires no more.
    Resolved,
    /// The server's own log says that it died.
    Died,
    /// What was told to be over is not: it came back within a minute.
    Returned,
}

impl Update {
    /// As in JSON: `fired`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Fired => "fired",
            Self::Refused => "refused",
            Self::Captured => "captured",
            Self::Verdict => "verdict",
            Self::Resolved => "resolved",
            Self::Died => "died",
            Self::Returned => "returned",
        }
    }

    /// Whether its message is also that of `other`: with a verdict comes what was captured, and the
    /// first message says why nothing is, where that is known then. Who is told that it began is told that it
    /// came back.
    pub fn tells(self, other: Self, incident: &Incident) -> bool {
        match (self, other) {
            (Self::Verdict, Self::Captured) => true,
            (Self::Returned, Self::Fired) => true,
            (Self::Fired, Self::Refused) => incident.capture.refused().is_some(),
            _ => self == other,
        }
    }
}

/// The agent that sends a message: what is not part of the incident.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// The host (in Kubernetes: the pod) that holds the bundle.
    pub host: String,
    /// The address of the agent's page for people, without a slash at its end; `None` when there is none.
    pub page: Option<String>,
    /// Why there is no page, where there should be one: nobody must be led to another agent's.
    pub no_page: Option<String>,
    /// The folder that gets a folder for each incident; `None` where none is kept.
    pub incidents: Option<String>,
}

/// One message: the JSON body of the webhook.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// `INCIDENT:UPDATE`, or `INCIDENT:UPDATE:2` about its second capture, return or end; the same however
    /// often it is delivered.
    pub id: String,
    /// What happened.
    pub update: Update,
    /// Whether it is a sample of `skewtrap notify-test`.
    pub test: bool,
    /// When it happened.
    pub at: Time,
    /// The host (in Kubernetes: the pod) that holds the bundle.
    pub host: String,
    /// One line.
    pub title: String,
    /// What a person needs, a sentence each.
    pub facts: Facts,
    /// The incident on the agent's page.
    pub page: Option<String>,
    /// Remarks on the messages themselves (some were held back).
    pub notes: Vec<String>,
    /// The incident, as in `incident.json` and the API.
    pub incident: Incident,
}

impl Message {
    /// The message about `update`.
    pub fn of(incident: &Incident, update: Update, at: Time, origin: &Origin) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            id: id_of(incident, update),
            update,
            test: false,
            at,
            host: origin.host.clone(),
            title: title_of(incident, update),
            facts: Facts::of(incident, origin),
            page: origin.page.as_ref().map(|p| format!("{p}/#incident={}", incident.id)),
            notes: notes_of(incident, update, origin),
            incident: incident.clone(),
        }
    }

    /// The message as it is sent at `now`: one that could not be delivered for a while says so.
    pub fn sent_at(&self, now: Time) -> Cow<'_, Self> {
        let age = now.since(self.at);
        if age < LATE {
            return Cow::Borrowed(self);
        }
        let mut message = self.clone();
        message.notes.push(format!(
            "this message is {} old, since it could not be delivered before: see how things are now",
            seconds(age.as_secs_f64())
        ));
        Cow::Owned(message)
    }

    /// The JSON body of the webhook.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("a message has only string keys and finite numbers")
    }
}

/// During a silence no message is sent. At its end the message that the rule fired follows, with a note.
fn notes_of(incident: &Incident, update: Update, origin: &Origin) -> Vec<String> {
    let is_late =
        update == Update::Fired && incident.capture.refused().is_some_and(|r| r.reason == Reason::Silenced);
    let late = is_late.then(|| "the silence in which it fired is over, and it still fires".to_owned());
    let no_link = origin.no_page.as_ref().map(|why| format!("no link to the agent's page: {why}"));
    late.into_iter().chain(no_link).collect()
}

/// The stable id of the message about `update`. A message about a further capture of the incident has
/// that capture's number at its end, and one about a further return or end the number of that.
pub fn id_of(incident: &Incident, update: Update) -> String {
    let number = match update {
        Update::Fired | Update::Died => 1,
        Update::Returned => incident.returned.len(),
        Update::Resolved => incident.returned.len() + 1,
        Update::Captured | Update::Verdict => incident.window(),
        Update::Refused => incident.refused_window(),
    };
    let id = format!("{}:{}", incident.id, update.word());
    if number > 1 { format!("{id}:{number}") } else { id }
}

/// `dp-load-skew: DP2 has 2.1 times the mean load on server`. Where the blame has moved it is one story, and says so:
/// `dp-load-skew: first DP2, now DP0: DP0 has ..`, or where it came back `for a time DP0, now DP2 again: ..`.
fn title_of(incident: &Incident, update: Update) -> String {
    let others = words::blamed_before(incident);
    let moved = match (others.is_empty(), update) {
        (true, _) | (_, Update::Died) => String::new(),
        (false, update) => {
            let now = if update == Update::Resolved { "then" } else { "now" };
            let (others, rank) = (others.join(" and "), rank_name(&incident.finding.rank));
            match words::blame_came_back(incident) {
                true => format!("for a time {others}, {now} {rank} again: "),
                false => format!("first {others}, {now} {rank}: "),
            }
        }
    };
    format!("{}: {moved}{}", incident.rule, headline(incident, update))
}

/// What happened, without the rule's name.
fn headline(incident: &Incident, update: Update) -> String {
    let target = &incident.target;
    let name = rank_name(&incident.finding.rank);
    // A replica is a server itself.
    let is_replica = *name == **target;
    let rank = match incident.finding.rank.0.is_empty() || is_replica {
        true => String::new(),
        false => format!(" ({name})"),
    };
    match update {
        Update::Fired if is_replica => words::deviation(&incident.finding),
        Update::Fired => format!("{} on {target}", words::deviation(&incident.finding)),
        Update::Refused if incident.refused_window() > 1 => {
            format!("it got worse, and nothing more is captured on {target}{rank}")
        }
        Update::Refused => {
            let why = incident.capture.refused().map(|r| r.reason.phrase());
            let why = why.filter(|why| !why.is_empty()).map_or_else(String::new, |why| format!(" ({why})"));
            match incident.finding.measured.is_some() {
                true => format!("{} on {target}; no window{why}", words::deviation(&incident.finding)),
                false => format!("no window on {target}{why}"),
            }
        }
        Update::Captured => match &incident.capture {
            CaptureOutcome::Done(c) => {
                let again = if incident.window() > 1 { " again," } else { "" };
                format!("captured{again} {} on {target}{rank}", words::counted(c.files.len(), "file"))
            }
            _ => format!("the capture on {target} failed{rank}"),
        },
        Update::Verdict => match &incident.verdict {
            Some(verdict) => {
                let before = verdict.of_another(&incident.finding).map(rank_name);
                let before = before.map_or_else(String::new, |b| format!(" (compared while {b} was blamed)"));
                format!("{} on {target}{before}", words::verdict_kind(verdict))
            }
            None => format!("no verdict on {target}"),
        },
        Update::Resolved => {
            let was = match (&incident.verdict, &incident.finding.measured) {
                (Some(verdict), _) => format!(" ({})", words::verdict_kind(verdict)),
                (None, Some(_)) => format!(" (was: {})", words::deviation(&incident.finding)),
                (None, None) => rank,
            };
            let usual = match incident.end {
                Some(EndReason::BecameUsual) => ": it goes on and counts as usual from now on",
                Some(EndReason::NotCompared) | None => "",
            };
            format!("resolved on {target}{was}{usual}")
        }
        Update::Returned => {
            let after = incident.returned.last().map(Returned::after).unwrap_or_default();
            format!("it came back after {} on {target}{rank}", words::seconds(after.as_secs_f64()))
        }
        Update::Died => {
            let window = incident.died.as_ref().is_some_and(|died| died.window_open);
            let window = if window { " while a window of the agent's was open" } else { "" };
            format!("{target} died{window}")
        }
    }
}

#[cfg(test)]
mod tests;
