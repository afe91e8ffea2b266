//! Posts starts and stops of an engine's own profiler, and says what became of each.
//!
//! The engines differ in `sglang` and `vllm`; the meaning of the answers is decided in
//! `decide::capture::window`.

use std::time::{Duration, Instant};

use reqwest::{RequestBuilder, Response};

use crate::act::{sglang, vllm};
use crate::http::Server;
use skewtrap_core::capture::facts::ServerKind;
use skewtrap_core::capture::plan::{START, StartRequest};
use skewtrap_core::capture::window::{Answer, EXPORT_LIMIT, START_TIMEOUT};
use skewtrap_core::incident::Exchange;
use skewtrap_trace::time::Time;

/// So much of a body is kept of an answer.
const BODY: usize = 400;

/// Posts the start.
pub async fn start(server: &Server, request: &StartRequest, at: Time) -> (Answer, Exchange) {
    let post = match request.engine {
        ServerKind::Sglang => sglang::start(server, request),
        ServerKind::Vllm => vllm::start(server, request),
    };
    send(post, START, request.body.clone(), START_TIMEOUT, at).await
}

/// Posts a stop; engines answer it when the export is done, minutes later perhaps.
pub async fn stop(server: &Server, engine: ServerKind, path: &str, at: Time) -> (Answer, Exchange) {
    let post = match engine {
        ServerKind::Sglang => sglang::stop(server, path),
        ServerKind::Vllm => vllm::stop(server, path),
    };
    send(post, path, None, EXPORT_LIMIT, at).await
}

async fn send(
    post: RequestBuilder,
    path: &str,
    body: Option<serde_json::Value>,
    limit: Duration,
    at: Time,
) -> (Answer, Exchange) {
    let begun = Instant::now();
    let answer = match post.timeout(limit).send().await {
        Ok(response) => answer_of(response).await,
        Err(error) => failure_of(&error),
    };
    let took_s = begun.elapsed().as_secs_f64();
    let exchange = Exchange { at, request: format!("POST {path}"), body, answer: words_of(&answer), took_s };
    (answer, exchange)
}

/// The status is in; a body that breaks off changes nothing about it.
async fn answer_of(response: Response) -> Answer {
    let status = response.status();
    if status.is_success() {
        return Answer::Ok;
    }
    let body = response.text().await.unwrap_or_default();
    let body = body.chars().take(BODY).collect();
    if status.is_server_error() {
        Answer::Failed { status: status.as_u16(), body }
    } else {
        Answer::Refused { status: status.as_u16(), body }
    }
}

fn failure_of(error: &reqwest::Error) -> Answer {
    let why = innermost(error);
    match (error.is_connect(), error.is_timeout()) {
        (true, _) if is_refused(error) => Answer::NobodyListens,
        (true, _) => Answer::NotSent { why },
        // Built wrongly: it never left.
        _ if error.is_builder() => Answer::NotSent { why },
        (false, true) => Answer::TimedOut,
        (false, false) => Answer::Lost { why },
    }
}

/// The client's own words without the address, in which a key could hide.
fn innermost(error: &reqwest::Error) -> String {
    let mut source: &dyn std::error::Error = error;
    while let Some(deeper) = source.source() {
        source = deeper;
    }
    source.to_string()
}

fn is_refused(error: &reqwest::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if inner
            .downcast_ref::<std::io::Error>()
            .is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
        {
            return true;
        }
        source = inner.source();
    }
    false
}

fn words_of(answer: &Answer) -> String {
    match answer {
        Answer::Ok => "200".into(),
        Answer::Refused { status, body } | Answer::Failed { status, body } if body.trim().is_empty() => {
            status.to_string()
        }
        Answer::Refused { status, body } | Answer::Failed { status, body } => {
            format!("{status} {}", body.trim())
        }
        Answer::NobodyListens => "nobody listens there".into(),
        Answer::NotSent { why } => format!("not sent: {why}"),
        Answer::TimedOut => "no answer in time".into(),
        Answer::Lost { why } => format!("the connection broke: {why}"),
    }
}
