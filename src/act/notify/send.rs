//! Sends one message to one receiver, and decides what its answer means.

use std::error::Error as _;
use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use reqwest::{RequestBuilder, StatusCode};
use sha2::Sha256;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Semaphore;

use super::{Receiver, Transport};
use crate::http::client::cause_of;
use crate::http::{Secret, body};
use skewtrap_core::message::{Message, alerts, slack, terminal};
use skewtrap_core::printable::printable;
use skewtrap_trace::hex;

/// Bytes of a receiver's answer that are repeated in a message.
const ANSWER_CHARS: usize = 200;
/// How long they are waited for: the status, which decides, is known by then.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Why an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It may succeed later.
    #[error("{why}")]
    Later {
        /// A sentence without secrets.
        why: String,
        /// How long the receiver asked to wait (`Retry-After`).
        after: Option<Duration>,
    },
    /// This message will never be accepted.
    #[error("{why}")]
    Never {
        /// A sentence without secrets.
        why: String,
    },
}

impl Failure {
    fn later(why: impl Into<String>) -> Self {
        Self::Later { why: why.into(), after: None }
    }
}

/// Sends `message` to `receiver`, within its timeout.
///
/// # Errors
/// It was not reached, was too slow, or refused.
pub async fn send(client: &reqwest::Client, receiver: &Receiver, message: &Message) -> Result<(), Failure> {
    let attempt = async {
        match &receiver.means {
            Transport::Webhook { url, signing_key, bearer } => {
                let body = message.json();
                let signature = signing_key.as_ref().map(|key| signature_of(key, body.as_bytes()));
                let mut request = authorised(client.post(url.reveal()), bearer.as_ref());
                if let Some(signature) = signature {
                    request = request.header("X-Skewtrap-Signature-256", signature);
                }
                post(request, message, body).await
            }
            Transport::Slack { url } => {
                post(client.post(url.reveal()), message, slack(message).to_string()).await
            }
            Transport::Alertmanager { url, bearer } => {
                let body = serde_json::to_string(&alerts(message)).map_err(|e| never(e.to_string()))?;
                let url = format!("{}/api/v2/alerts", url.reveal().trim_end_matches('/'));
                post(authorised(client.post(url), bearer.as_ref()), message, body).await
            }
            Transport::Command { argv } => run(argv, message).await,
            Transport::Stdout { json } => print(message, *json).await,
        }
    };
    match tokio::time::timeout(receiver.timeout, attempt).await {
        Ok(result) => result,
        Err(_) => Err(Failure::later(format!("no answer within {} s", receiver.timeout.as_secs_f64()))),
    }
}

/// `sha256=` and the HMAC-SHA256 of the body in hexadecimal, as GitHub signs.
pub fn signature_of(key: &Secret, body: &[u8]) -> String {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(key.reveal().as_bytes()).expect("HMAC takes a key of any length");
    mac.update(body);
    format!("sha256={}", hex(&mac.finalize().into_bytes()))
}

fn authorised(request: RequestBuilder, bearer: Option<&Secret>) -> RequestBuilder {
    match bearer {
        Some(token) => request.header(AUTHORIZATION, format!("Bearer {}", token.reveal())),
        None => request,
    }
}

async fn post(request: RequestBuilder, message: &Message, body: String) -> Result<(), Failure> {
    let response = request
        .header(CONTENT_TYPE, "application/json")
        .header("Idempotency-Key", &message.id)
        .body(body)
        .send()
        .await
        .map_err(|e| unsent(&e))?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let after = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.trim().parse().ok());
    let answer = body::beginning(response, ANSWER_LIMIT).await;
    let answer = printable(answer.trim(), ANSWER_CHARS);
    Err(refused(status, &answer, after.map(Duration::from_secs)))
}

/// A wrong key or address can be corrected on the receiver's side, so the attempt is repeated; a body
/// that is refused will be refused again.
fn refused(status: StatusCode, answer: &str, after: Option<Duration>) -> Failure {
    let answer = if answer.is_empty() { String::new() } else { format!(": {answer}") };
    let why = match status.as_u16() {
        300..=399 => {
            return never(format!(
                "it answered {status}; redirects are not followed, give its final address"
            ));
        }
        401 | 403 => format!("it answered {status}{answer}; check the receiver's token or signing key"),
        404 => format!("it answered {status}{answer}; check the receiver's address"),
        408 | 425 | 429 | 500.. => format!("it answered {status}{answer}"),
        _ => return never(format!("it refused the message with {status}{answer}")),
    };
    Failure::Later { why, after }
}

fn never(why: String) -> Failure {
    Failure::Never { why }
}

/// A request that got no answer, as a sentence without the address.
fn unsent(error: &reqwest::Error) -> Failure {
    if error.is_builder() {
        return never("its address is no http or https URL".into());
    }
    // Only the outermost message of reqwest holds the address, which may be a secret.
    let cause = if error.source().is_some() { cause_of(error) } else { "the request failed".into() };
    Failure::later(format!("it cannot be reached: {cause}"))
}

async fn run(argv: &[String], message: &Message) -> Result<(), Failure> {
    let [program, arguments @ ..] = argv else {
        return Err(never("the command is empty".into()));
    };
    let mut child = tokio::process::Command::new(program)
        .args(arguments.iter().map(|a| filled_in(a, message)))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .process_group(0)
        .spawn()
        .map_err(|e| Failure::later(format!("{program} cannot be started: {e}")))?;
    let group = Group(child.id());
    if let Some(mut stdin) = child.stdin.take() {
        // A program may ignore its input, and then this write fails.
        let _ = stdin.write_all(message.json().as_bytes()).await;
    }
    let status = child.wait().await.map_err(|e| Failure::later(format!("{program} was lost: {e}")))?;
    std::mem::forget(group);
    if status.success() { Ok(()) } else { Err(Failure::later(format!("{program} ended with {status}"))) }
}

/// Kills a program's whole process group when dropped, unless the program ended by itself.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let pid = self.0.and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }
}

fn filled_in(argument: &str, message: &Message) -> String {
    argument
        .replace("{incident}", &message.incident.id)
        .replace("{update}", message.update.word())
        .replace("{rule}", &message.incident.rule)
        .replace("{target}", &message.incident.target)
}

/// One message at a time: when nobody reads our output, this blocks one thread and not one per attempt.
static PRINTING: Semaphore = Semaphore::const_new(1);

/// Prints on a thread of its own, because writing blocks when nobody reads our output.
async fn print(message: &Message, json: bool) -> Result<(), Failure> {
    let text = if json { message.json() + "\n" } else { terminal(message) };
    let permit = PRINTING.acquire().await.expect("it is never closed");
    let written = crate::world::blocking(move || {
        let _permit = permit;
        let mut out = anstream::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush())
    });
    match written.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(e)) => Err(Failure::later(format!("standard output cannot be written: {e}"))),
        Err(_) => Err(Failure::later("standard output cannot be written")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_the_published_test_vector() {
        // RFC 4231, test case 2.
        let key = Secret::new("Jefe");
        assert_eq!(
            signature_of(&key, b"what do ya want for nothing?"),
            "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn a_refusal_is_tried_again_only_where_somebody_can_mend_it() {
        for status in [401, 403, 404, 408, 429, 500, 502, 503] {
            let status = StatusCode::from_u16(status).expect("a status");
            assert!(matches!(refused(status, "", None), Failure::Later { .. }), "{status}");
        }
        for status in [301, 302, 400, 413, 422] {
            let status = StatusCode::from_u16(status).expect("a status");
            assert!(matches!(refused(status, "", None), Failure::Never { .. }), "{status}");
        }
    }
}
