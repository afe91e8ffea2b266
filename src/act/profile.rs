//! The profile client: posts starts and stops of an engine's own profiler, and returns each answer with
//! a record of the exchange. What an answer means is decided in `skewtrap_core::capture::window`.

use std::time::Duration;

use reqwest::{RequestBuilder, Response};
use serde_json::Value;
use tokio::time::Instant;

use crate::http::exchange::{self, Unanswered};
use crate::http::{Server, body};
use skewtrap_core::capture::engine::{AnswerForm, ServerKind};
use skewtrap_core::capture::plan::StartRequest;
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
    let path = request.engine.start_path();
    let post = server.profile(path);
    let post = match (request.engine, &request.body) {
        (_, Some(body)) => post.json(body),
        // SGLang reads a JSON body in any case; vLLM takes one only since 0.33.
        (ServerKind::Sglang, None) => post.json(&Value::Object(serde_json::Map::new())),
        (_, None) => post,
    };
    let form = request.engine.answer_form();
    send(post, path, (request.body.clone(), form), START_TIMEOUT, at).await
}

/// Posts a stop to a server of that engine. Engines answer it when the export is done, which may take minutes.
pub async fn stop(server: &Server, engine: ServerKind, path: &str, at: Time) -> (Answer, Exchange) {
    let (answer, exchange) =
        send(server.profile(path), path, (None, engine.answer_form()), EXPORT_LIMIT, at).await;
    let answer = interpreted(engine, answer, exchange.took_s);
    let said = summary_of(&answer);
    (answer, Exchange { answer: said, ..exchange })
}

/// What the answer to a stop means that came after so long.
fn interpreted(engine: ServerKind, answer: Answer, took_s: f64) -> Answer {
    match answer {
        Answer::Ok if engine == ServerKind::TensorrtLlm && took_s >= GIVES_UP_AFTER_S => Answer::Lost {
            why: format!(
                "it was answered with success after {took_s:.0} s, as it is also when TensorRT-LLM has given up waiting for its ranks"
            ),
        },
        other => other,
    }
}

/// TensorRT-LLM answers a stop with success after 30 s, whether the window was closed or not.
const GIVES_UP_AFTER_S: f64 = 29.5;

async fn send(
    post: RequestBuilder,
    path: &str,
    (body, form): (Option<Value>, AnswerForm),
    limit: Duration,
    at: Time,
) -> (Answer, Exchange) {
    let sent = Instant::now();
    let answer = match exchange::send(post.timeout(limit)).await {
        Ok(response) => answer_of(response, form).await,
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
async fn answer_of(response: Response, form: AnswerForm) -> Answer {
    let status = response.status();
    if status.is_success() && form == AnswerForm::Status {
        return Answer::Ok;
    }
    if status.is_success() {
        return answer_in(&body::beginning(response, BODY_LIMIT).await, form);
    }
    let body = printable(&body::beginning(response, BODY_LIMIT).await, BODY_CHARS).into_owned();
    if status.is_server_error() {
        Answer::Failed { status: status.as_u16(), body }
    } else {
        Answer::Refused { status: status.as_u16(), body }
    }
}

/// What a body says of a request that was answered with success.
fn answer_in(body: &str, form: AnswerForm) -> Answer {
    let said: Option<Value> = serde_json::from_slice(body.as_bytes()).ok();
    let field = |name: &str| said.as_ref().and_then(|json| json.get(name));
    let error = || Answer::ErrorInBody { body: printable(body, BODY_CHARS).into_owned() };
    match form {
        AnswerForm::Status => Answer::Ok,
        AnswerForm::SuccessField if field("success").and_then(Value::as_bool) == Some(false) => error(),
        AnswerForm::SuccessField => Answer::Ok,
        AnswerForm::StatusField => match field("status").and_then(Value::as_str) {
            Some("ok") => Answer::Ok,
            Some(_) => error(),
            None => Answer::Lost {
                why: "it was answered with success, but not with the status that Dynamo gives".into(),
            },
        },
    }
}

fn summary_of(answer: &Answer) -> String {
    match answer {
        Answer::Ok => "200".into(),
        Answer::ErrorInBody { body } => format!("200 {}", body.trim()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_decides_where_a_status_alone_does_not() {
        use AnswerForm::{StatusField, SuccessField};
        let is_ok = |body: &str, form| answer_in(body, form) == Answer::Ok;
        assert!(is_ok(r#"{"status":"ok","message":"Profiling started"}"#, StatusField));
        assert!(is_ok(r#"{"message":"Profiling started"}"#, SuccessField));
        let erred = |body: &str, form| matches!(answer_in(body, form), Answer::ErrorInBody { .. });
        assert!(erred(r#"{"status":"error","message":"no profiler"}"#, StatusField));
        assert!(erred(r#"{"status":"accepted"}"#, StatusField), "a word that nobody knows is no success");
        assert!(erred(r#"{"success":false,"message":"busy"}"#, SuccessField));
        for body in ["", "OK", "{}", r#"{"message":"Profiling started"}"#, r#"{"status":7}"#] {
            assert!(matches!(answer_in(body, StatusField), Answer::Lost { .. }), "{body}");
        }
    }

    #[test]
    fn a_stop_that_tensorrt_llm_answers_when_it_has_given_up_proves_nothing() {
        let meant = |engine, took_s| interpreted(engine, Answer::Ok, took_s);
        assert_eq!(meant(ServerKind::TensorrtLlm, 12.0), Answer::Ok);
        assert!(matches!(meant(ServerKind::TensorrtLlm, 30.0), Answer::Lost { .. }));
        assert_eq!(meant(ServerKind::Sglang, 300.0), Answer::Ok);
    }
}
