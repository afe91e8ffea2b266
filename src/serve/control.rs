//! What people ask of the agent: each request becomes a [`Command`], its answer the response.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::oneshot;

use super::{Problem, Shared};
use skewtrap_trace::labels::Labels;
use skewtrap_trace::time::Time;

/// The agent's loop answers at once; longer than this it hangs.
const PATIENCE: Duration = Duration::from_secs(5);
/// A silence is at most this long.
const LONGEST_SILENCE_S: f64 = 30.0 * 24.0 * 3600.0;

/// Something that is asked of the agent's loop.
#[derive(Debug)]
pub struct Command {
    /// What.
    pub ask: Ask,
    /// Where the answer goes; nobody may be waiting for it any more.
    pub answer: oneshot::Sender<Answer>,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// Open a window, through the governor like any other.
    Capture(CaptureBody),
    /// Stop our own open window of this server, or of every one.
    Stop {
        /// The server's name.
        target: Option<Arc<str>>,
    },
    /// Read the configuration again.
    Reload,
    /// No captures and no messages for a while; a duration of zero ends the silence.
    Silence {
        /// Only this rule.
        rule: Option<Arc<str>>,
        /// Only this server.
        target: Option<Arc<str>>,
        /// For how long.
        lasting: Duration,
        /// Why.
        why: Option<String>,
    },
    /// Keep an incident's bundle from eviction, or no longer.
    Pin {
        /// The incident's id.
        incident: Arc<str>,
        /// Whether it is kept.
        pinned: bool,
    },
}

/// A window that somebody outside the rules wants.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaptureBody {
    /// The server's name; may be absent where there is only one.
    pub target: Option<Arc<str>>,
    /// Why, for the incident and the messages.
    pub reason: Option<String>,
    /// Forward steps per rank instead of the configured ones.
    pub num_steps: Option<u32>,
    /// Labels of the alert that asked for it.
    #[serde(skip)]
    pub labels: Labels,
    /// Since when the alert has been firing.
    #[serde(skip)]
    pub since: Option<Time>,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// It is done, or under way.
    Done {
        /// A sentence.
        said: String,
        /// The incident that it is about.
        incident: Option<Arc<str>>,
    },
    /// It makes sense, but not now.
    Refused {
        /// A sentence with what would mend it.
        why: String,
    },
    /// It makes no sense.
    Wrong {
        /// A sentence.
        why: String,
    },
    /// What it names does not exist.
    Missing {
        /// A sentence.
        why: String,
    },
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let (status, why) = match self {
            Self::Done { said, incident } => {
                return Json(json!({ "said": said, "incident": incident })).into_response();
            }
            Self::Refused { why } => (StatusCode::CONFLICT, why),
            Self::Wrong { why } => (StatusCode::BAD_REQUEST, why),
            Self::Missing { why } => (StatusCode::NOT_FOUND, why),
        };
        Problem(status, why).into_response()
    }
}

/// Asks the loop and waits for its answer.
pub(super) async fn asked(shared: &Shared, ask: Ask) -> Result<Answer, Problem> {
    let (answer, answered) = oneshot::channel();
    let sent = shared.doors.commands.try_send(Command { ask, answer });
    if sent.is_err() {
        return Err(hangs());
    }
    match tokio::time::timeout(PATIENCE, answered).await {
        Ok(Ok(answer)) => Ok(answer),
        _ => Err(hangs()),
    }
}

fn hangs() -> Problem {
    let why = format!("the agent did not answer within {} s; see its log", PATIENCE.as_secs());
    Problem(StatusCode::SERVICE_UNAVAILABLE, why)
}

/// A body as JSON, or what is wrong with it.
pub(super) fn body<T>(json: Result<Json<T>, JsonRejection>) -> Result<T, Problem> {
    json.map(|Json(value)| value).map_err(|e| Problem(e.status(), e.body_text()))
}

pub(super) async fn capture(
    State(shared): State<Shared>,
    json: Result<Json<CaptureBody>, JsonRejection>,
) -> Result<Answer, Problem> {
    let request = body(json)?;
    if request.num_steps == Some(0) {
        return Ok(Answer::Wrong { why: "`num_steps` must be at least 1".into() });
    }
    asked(&shared, Ask::Capture(request)).await
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct StopBody {
    target: Option<Arc<str>>,
}

pub(super) async fn stop(
    State(shared): State<Shared>,
    json: Result<Json<StopBody>, JsonRejection>,
) -> Result<Answer, Problem> {
    asked(&shared, Ask::Stop { target: body(json)?.target }).await
}

pub(super) async fn reload(State(shared): State<Shared>) -> Result<Answer, Problem> {
    asked(&shared, Ask::Reload).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SilenceBody {
    rule: Option<Arc<str>>,
    target: Option<Arc<str>>,
    for_s: f64,
    why: Option<String>,
}

pub(super) async fn silence(
    State(shared): State<Shared>,
    json: Result<Json<SilenceBody>, JsonRejection>,
) -> Result<Answer, Problem> {
    let SilenceBody { rule, target, for_s, why } = body(json)?;
    if !(0.0..=LONGEST_SILENCE_S).contains(&for_s) {
        return Ok(Answer::Wrong { why: "`for_s` is 0 (end it) to 2592000 (30 days) seconds".into() });
    }
    let lasting = Duration::from_secs_f64(for_s);
    asked(&shared, Ask::Silence { rule, target, lasting, why }).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PinBody {
    pinned: bool,
}

pub(super) async fn pin(
    State(shared): State<Shared>,
    Path(id): Path<String>,
    json: Result<Json<PinBody>, JsonRejection>,
) -> Result<Answer, Problem> {
    asked(&shared, Ask::Pin { incident: id.into(), pinned: body(json)?.pinned }).await
}
