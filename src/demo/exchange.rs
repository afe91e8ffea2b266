//! The inputs and outputs of a double: requests, answers, effects, and faults of the connection. Sockets
//! are in `shell`.

use std::sync::Arc;
use std::time::Duration;

use skewtrap_trace::time::Time;

/// One HTTP request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `POST`.
    pub method: String,
    /// Without the query.
    pub path: String,
    /// The part after the `?`, or empty.
    pub query: String,
    /// The token of `Authorization: Bearer`.
    pub bearer: Option<String>,
    pub body: Vec<u8>,
}

impl Request {
    /// A GET.
    pub fn get(target: &str) -> Self {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Self { method: "GET".into(), path: path.into(), query: query.into(), ..Self::default() }
    }

    /// A POST; an empty `body` means none.
    pub fn post(target: &str, body: &str) -> Self {
        Self { method: "POST".into(), body: body.as_bytes().to_vec(), ..Self::get(target) }
    }

    /// The value of one parameter of the query.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.split('&').filter_map(|p| p.split_once('=')).find(|(k, _)| *k == name).map(|(_, v)| v)
    }
}

/// One HTTP answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Its `Content-Type`; SGLang sends none with some plain bodies.
    pub content_type: Option<&'static str>,
    pub body: Vec<u8>,
}

impl Response {
    /// A body without a content type.
    pub fn bare(status: u16, body: &str) -> Self {
        Self { status, content_type: None, body: body.into() }
    }

    /// Plain text.
    pub fn text(status: u16, body: &str) -> Self {
        Self { content_type: Some("text/plain; charset=utf-8"), ..Self::bare(status, body) }
    }

    /// JSON.
    pub fn json(status: u16, body: &serde_json::Value) -> Self {
        Self { content_type: Some("application/json"), ..Self::bare(status, &body.to_string()) }
    }

    /// FastAPI's answer to an unknown path.
    pub fn not_found() -> Self {
        Self::json(404, &serde_json::json!({"detail": "Not Found"}))
    }

    /// FastAPI's answer to a known path with another method.
    pub fn method_not_allowed() -> Self {
        Self::json(405, &serde_json::json!({"detail": "Method Not Allowed"}))
    }

    pub fn body_text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The reason phrase of the access log.
    pub const fn reason(&self) -> &'static str {
        match self.status {
            200 => "OK",
            400 => "Bad Request",
            401 => "Unauthorized",
            404 => "Not Found",
            405 => "Method Not Allowed",
            409 => "Conflict",
            500 => "Internal Server Error",
            503 => "Service Unavailable",
            _ => "",
        }
    }
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Answer(Response),
    /// The connection broke before the answer.
    Reset,
}

/// Identifies a request within one double.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// What a double does.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// It prints a line of its log (several for a traceback), without the last newline.
    Log {
        /// When it was printed.
        at: Time,
        /// The text of the line.
        line: String,
    },
    /// It writes or overwrites a file; missing folders are created.
    File {
        /// The path, as the request named it.
        path: String,
        /// The whole content for now; a file that is still being written has only its first part.
        content: Arc<[u8]>,
        /// The data-parallel rank that writes.
        rank: u16,
    },
    /// It ends a request.
    Done { call: CallId, outcome: Outcome },
    /// The process dies: its port refuses connections.
    Down,
    /// The process listens (again).
    Up,
}

/// A fault of the connection between client and server, on one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpFault {
    /// The path that it affects.
    pub path: String,
    /// What happens.
    pub kind: HttpFaultKind,
    /// How many requests it affects.
    pub times: u32,
}

/// What happens to a request with a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HttpFaultKind {
    /// This status with a plain body; the request has no effect.
    Status(u16),
    /// The connection breaks before the request takes effect (an idle keep-alive that timed out).
    ResetBefore,
    /// The request takes effect and the connection breaks before the answer.
    ResetAfter,
    /// The request has no effect and is never answered.
    NeverBefore,
    /// The request takes effect and is never answered.
    NeverAfter,
    /// The answer is delayed by this much.
    Late(Duration),
}

impl HttpFault {
    /// A fault that affects every request.
    pub fn always(path: &str, kind: HttpFaultKind) -> Self {
        Self { path: path.into(), kind, times: u32::MAX }
    }

    /// A fault that affects the next request only.
    pub fn once(path: &str, kind: HttpFaultKind) -> Self {
        Self { path: path.into(), kind, times: 1 }
    }

    /// Takes the first fault that affects `path`, and counts it down.
    pub fn take(faults: &mut [Self], path: &str) -> Option<HttpFaultKind> {
        let fault = faults.iter_mut().find(|f| f.times > 0 && f.path == path)?;
        if fault.times != u32::MAX {
            fault.times -= 1;
        }
        Some(fault.kind.clone())
    }
}
