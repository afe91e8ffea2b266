//! The profile client: posts starts and stops of an engine's own profiler, and returns each answer with
//! a record of the exchange. What an answer means is decided in `skewtrap_core::capture::window`.

use std::time::Duration;

use reqwest::{RequestBuilder, Response};
use serde_json::Value;
use tokio::time::Instant;

use crate::http::exchange::{self, Unanswered};
use crate::http::{Server, body};
use skewtrap_core::capture::facts::ServerKind;
use skewtrap_core::capture::plan::{START, StartRequest};
use skewtrap_core::capture::window::{Answer, EXPORT_LIMIT, START_TIMEOUT};
use skewtrap_core::incident::Exchange;
use skewtrap_core::printable::printable;
use skewtrap_trace::time::Time;

/// Characters of an answer's body that are kept.
const BODY_CHARS: usize = 400;
/// How long a refusal's words are waited for: its status, which decides, is known by then.
const BODY_LIMIT: Duration = Duration::from_secs(2);

/// Posts the start.
pub async fn start(server: &Server, request: &StartRequest, at: Time) -> (Answer, Exchange) {
    let post = server.profile(START);
    let post = match (request.engine, &request.body) {
        (_, Some(body)) => post.json(body),
        // SGLang reads a JSON body in any case; vLLM takes one only since 0.33.
        (ServerKind::Sglang, None) => post.json(&Value::Object(serde_json::Map::new())),
        (ServerKind::Vllm, None) => post,
    };
    send(post, START, request.body.clone(), START_TIMEOUT, at).await
}

/// Posts a stop. Engines answer it when the export is done, which may take minutes.
pub async fn stop(server: &Server, path: &str, at: Time) -> (Answer, Exchange) {
    send(server.profile(path), path, None, EXPORT_LIMIT, at).await
}

async fn send(
    post: RequestBuilder,
    path: &str,
    body: Option<Value>,
    limit: Duration,
    at: Time,
) -> (Answer, Exchange) {
    let sent = Instant::now();
    let answer = match exchange::send(post.timeout(limit)).await {
        Ok(response) => answer_of(response).await,
        Err(Unanswered::Refused { .. }) => Answer::ConnectionRefused,
        Err(Unanswered::NotSent { why, .. }) => Answer::NotSent { why },
        Err(Unanswered::TimedOut { .. }) => Answer::TimedOut,
        Err(Unanswered::Lost { why }) => Answer::Lost { why },
    };
    let took_s = sent.elapsed().as_secs_f64();
    let exchange =
        Exchange { at, request: format!("POST {path}"), body, answer: summary_of(&answer), took_s };
    (answer, exchange)
}

/// The status decides; a body that breaks off changes nothing about it.
async fn answer_of(response: Response) -> Answer {
    let status = response.status();
    if status.is_success() {
        return Answer::Ok;
    }
    let body = printable(&body::beginning(response, BODY_LIMIT).await, BODY_CHARS).into_owned();
    if status.is_server_error() {
        Answer::Failed { status: status.as_u16(), body }
    } else {
        Answer::Refused { status: status.as_u16(), body }
    }
}

fn summary_of(answer: &Answer) -> String {
    match answer {
        Answer::Ok => "200".into(),
        Answer::Refused { status, body } | Answer::Failed { status, body } if body.trim().is_empty() => {
            status.to_string()
        }
        Answer::Refused { status, body } | Answer::Failed { status, body } => {
            format!("{status} {}", body.trim())
        }
        Answer::ConnectionRefused => "the connection is refused".into(),
        Answer::NotSent { why } => format!("not sent: {why}"),
        Answer::TimedOut => "no answer in time".into(),
        Answer::Lost { why } => format!("the connection broke: {why}"),
    }
}
