//! The paths that change something: each request becomes a [`Command`] to the agent's loop, and its
//! answer becomes the response.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{ApiError, Shared};
use skewtrap_core::factor::Mark;
use skewtrap_core::printable::{LIMIT, printable};
use skewtrap_trace::labels::Labels;
use skewtrap_trace::time::Time;

/// The agent's loop answers at once; if it takes longer than this, it hangs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest silence.
const LONGEST_SILENCE_S: f64 = 30.0 * 24.0 * 3600.0;

/// A request to the agent's loop.
#[derive(Debug)]
pub struct Command {
    /// What to do.
    pub action: Action,
    /// Takes the answer; the client may have gone in the meantime.
    pub answer: oneshot::Sender<Answer>,
}

/// What the agent's loop can be asked to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Open a window; the governor decides on it as on any other.
    Capture(CaptureBody),
    /// Stop the agent's own open window on one server, or on all.
    Stop {
        /// Only this server.
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
        duration: Duration,
        why: Option<String>,
    },
    /// Windows may open again where one hurt the server.
    Resume {
        /// Only on this server.
        target: Option<Arc<str>>,
    },
    /// Protect an incident's bundle from deletion, or end that.
    Pin {
        /// The incident's id.
        incident: Arc<str>,
        /// Whether it is protected.
        pinned: bool,
    },
    /// Say what an incident was worth, so that the bounds of its server follow.
    Mark {
        /// The incident's id.
        incident: Arc<str>,
        /// What it was worth.
        mark: Mark,
    },
}

/// A capture that a person or an alert requests.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaptureBody {
    /// The server's name; not needed where there is only one.
    pub target: Option<Arc<str>>,
    /// Why, for the incident and the messages.
    pub reason: Option<String>,
    /// Forward steps per rank instead of the configured ones.
    pub num_steps: Option<u32>,
    /// Whether later captures of the server are compared with this one.
    pub baseline: bool,
    /// The alert that asks for it; `None` where a person does.
    #[serde(skip)]
    pub alert: Option<AlertOrigin>,
}

/// An alert: its fingerprint, and since when it fires.
pub type AlertKey = (String, String);

/// What is known of an alert of another system that asks for a capture.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AlertOrigin {
    pub key: AlertKey,
    pub labels: Labels,
    /// Since when it has been firing.
    pub since: Option<Time>,
}

/// The loop's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done, or has begun.
    Done {
        /// A sentence.
        message: String,
        /// The incident that it is about.
        incident: Option<Arc<str>>,
    },
    /// It is not possible now.
    Refused {
        /// A sentence that says what would help.
        why: String,
    },
    /// The request is wrong.
    Wrong {
        /// A sentence.
        why: String,
    },
    /// What the request names does not exist.
    Missing {
        /// A sentence.
        why: String,
    },
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let (status, why) = match self {
            Self::Done { message, incident } => {
                return Json(json!({ "said": message, "incident": incident })).into_response();
            }
            Self::Refused { why } => (StatusCode::CONFLICT, why),
            Self::Wrong { why } => (StatusCode::BAD_REQUEST, why),
            Self::Missing { why } => (StatusCode::NOT_FOUND, why),
        };
        ApiError(status, why).into_response()
    }
}

/// Sends a command to the loop and waits for its answer.
pub(super) async fn send_command(shared: &Shared, action: Action) -> Result<Answer, ApiError> {
    let (answer, answered) = oneshot::channel();
    let sent = shared.context.commands.try_send(Command { action, answer });
    if sent.is_err() {
        return Err(no_answer());
    }
    match tokio::time::timeout(ANSWER_TIMEOUT, answered).await {
        Ok(Ok(answer)) => Ok(answer),
        _ => Err(no_answer()),
    }
}

fn no_answer() -> ApiError {
    let why = format!("the agent did not answer within {} s; see its log", ANSWER_TIMEOUT.as_secs());
    ApiError(StatusCode::SERVICE_UNAVAILABLE, why)
}

/// A body as JSON, or what is wrong with it.
pub(super) fn body<T: DeserializeOwned>(json: Result<Json<Value>, JsonRejection>) -> Result<T, ApiError> {
    let Json(value) = json.map_err(|e| ApiError(e.status(), e.body_text()))?;
    let wrong = |why: String| ApiError(StatusCode::UNPROCESSABLE_ENTITY, printable(&why, LIMIT).into_owned());
    // A list would be taken for the fields in their order, and an empty one for a request without any.
    if !value.is_object() {
        return Err(wrong("the body must be a JSON object".into()));
    }
    serde_json::from_value(value).map_err(|e| wrong(format!("the body is not understood: {e}")))
}

pub(super) async fn capture(
    State(shared): State<Shared>,
    json: Result<Json<Value>, JsonRejection>,
) -> Result<Answer, ApiError> {
    let request: CaptureBody = body(json)?;
    if request.num_steps == Some(0) {
        return Ok(Answer::Wrong { why: "`num_steps` must be at least 1".into() });
    }
    send_command(&shared, Action::Capture(request)).await
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct StopBody {
    target: Option<Arc<str>>,
}

pub(super) async fn stop(
    State(shared): State<Shared>,
    json: Result<Json<Value>, JsonRejection>,
) -> Result<Answer, ApiError> {
    send_command(&shared, Action::Stop { target: body::<StopBody>(json)?.target }).await
}

pub(super) async fn resume(
    State(shared): State<Shared>,
    json: Result<Json<Value>, JsonRejection>,
) -> Result<Answer, ApiError> {
    send_command(&shared, Action::Resume { target: body::<StopBody>(json)?.target }).await
}

pub(super) async fn reload(State(shared): State<Shared>) -> Result<Answer, ApiError> {
    send_command(&shared, Action::Reload).await
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
    json: Result<Json<Value>, JsonRejection>,
) -> Result<Answer, ApiError> {
    let SilenceBody { rule, target, for_s, why } = body(json)?;
    if !(0.0..=LONGEST_SILENCE_S).contains(&for_s) {
        return Ok(Answer::Wrong { why: "`for_s` is 0 (end it) to 2592000 (30 days) seconds".into() });
    }
    let duration = Duration::from_secs_f64(for_s);
    send_command(&shared, Action::Silence { rule, target, duration, why }).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PinBody {
    pinned: bool,
}

pub(super) async fn pin(
    State(shared): State<Shared>,
    Path(id): Path<String>,
    json: Result<Json<Value>, JsonRejection>,
) -> Result<Answer, ApiError> {
    send_command(&shared, Action::Pin { incident: id.into(), pinned: body::<PinBody>(json)?.pinned }).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MarkBody {
    mark: Mark,
}

pub(super) async fn mark(
    State(shared): State<Shared>,
    Path(id): Path<String>,
    json: Result<Json<Value>, JsonRejection>,
) -> Result<Answer, ApiError> {
    send_command(&shared, Action::Mark { incident: id.into(), mark: body::<MarkBody>(json)?.mark }).await
}
