//! A worker of Dynamo around the double of its engine: the routes of its system port, which pass profile calls on.
//!
//! What matters: whatever the method, a request to a profile route carries it out; a failure of vLLM is a 200 with
//! `"status": "error"`, an exception of SGLang a 500; nothing tells the release of the engine.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::demo::ServerKind;
use crate::demo::exchange::{CallId, Effect, Outcome, Request, Response};
use skewtrap_trace::time::Time;

/// The routes of its system port.
const ROUTES: &str = "/engine/control";
/// The fields of SGLang's start that Dynamo can pass on; another is an exception.
const FIELDS: [&str; 8] = [
    "output_dir",
    "start_step",
    "num_steps",
    "activities",
    "with_stack",
    "record_shapes",
    "profile_by_stage",
    "profile_id",
];

/// One worker.
#[derive(Debug)]
pub struct World {
    engine: Box<ServerKind>,
    calls: BTreeMap<CallId, Route>,
    garbles: bool,
}

/// What a request was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Profile { is_start: bool, is_vllm: bool },
    Metrics,
    Unknown,
    Health,
}

impl World {
    /// A worker with that engine.
    pub fn new(engine: impl Into<ServerKind>) -> Self {
        Self { engine: Box::new(engine.into()), calls: BTreeMap::new(), garbles: false }
    }

    /// The next answer of a profile route is none that Dynamo gives, as of a proxy in front of it.
    pub const fn garbles_next_profile_answer(&mut self) {
        self.garbles = true;
    }

    /// A request arrives.
    pub fn request(&mut self, now: Time, request: &Request) -> (CallId, Vec<Effect>) {
        let (route, passed) = self.passed_on(request);
        let (id, effects) = self.engine.request(now, &passed);
        self.calls.insert(id, route);
        (id, self.answered(effects))
    }

    /// Does everything that is due by `now`.
    pub fn advance(&mut self, now: Time) -> Vec<Effect> {
        let effects = self.engine.advance(now);
        self.answered(effects)
    }

    /// The time of the next event.
    pub fn next_event(&self) -> Option<Time> {
        self.engine.next_event()
    }

    /// As the engine's own.
    pub fn disk_error(&mut self, now: Time, rank: u16, error: &str) -> Vec<Effect> {
        let effects = self.engine.disk_error(now, rank, error);
        self.answered(effects)
    }

    /// The process is killed.
    pub fn kill(&mut self, now: Time) -> Vec<Effect> {
        let effects = self.engine.kill(now);
        self.answered(effects)
    }

    /// The process starts again.
    pub fn restart(&mut self, now: Time) -> Vec<Effect> {
        let effects = self.engine.restart(now);
        self.answered(effects)
    }

    fn passed_on(&self, request: &Request) -> (Route, Request) {
        let is_vllm = matches!(*self.engine, ServerKind::Vllm(_));
        let unknown = || (Route::Unknown, Request::get("/no-such-route"));
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_else(|_| json!({}));
        match request.path.strip_prefix(ROUTES) {
            Some("/start_profile") if is_vllm => {
                let prefix = body.get("profile_prefix").cloned();
                let body = prefix.map_or_else(String::new, |p| json!({"profile_prefix": p}).to_string());
                (Route::Profile { is_start: true, is_vllm }, Request::post("/start_profile", &body))
            }
            Some("/start_profile") => {
                let odd = body.as_object().is_none_or(|b| b.keys().any(|k| !FIELDS.contains(&k.as_str())));
                let path = if odd { "/no-such-route" } else { "/start_profile" };
                (Route::Profile { is_start: true, is_vllm }, Request::post(path, &body.to_string()))
            }
            Some("/stop_profile") => {
                (Route::Profile { is_start: false, is_vllm }, Request::post("/stop_profile", ""))
            }
            Some(_) => unknown(),
            None => match request.path.as_str() {
                "/metrics" => (Route::Metrics, request.clone()),
                "/health" | "/live" => (Route::Health, Request::get("/health")),
                _ => unknown(),
            },
        }
    }

    /// The answers of the engine as the worker gives them.
    fn answered(&mut self, effects: Vec<Effect>) -> Vec<Effect> {
        let garbles = &mut self.garbles;
        let rewritten = effects.into_iter().map(|effect| match effect {
            Effect::Done { call, outcome: Outcome::Answer(response) } => {
                let route = self.calls.remove(&call).unwrap_or(Route::Unknown);
                let is_profile = matches!(route, Route::Profile { .. });
                let response = match is_profile && std::mem::take(garbles) {
                    true => Response::text(200, "accepted"),
                    false => route.answer(response),
                };
                Effect::Done { call, outcome: Outcome::Answer(response) }
            }
            other => other,
        });
        rewritten.collect()
    }
}

impl Route {
    fn answer(self, response: Response) -> Response {
        let is_good = response.status == 200;
        match self {
            Self::Profile { is_start, .. } if is_good => {
                let message = if is_start { "Profiling started" } else { "Profiling stopped" };
                Response::json(200, &json!({"status": "ok", "message": message}))
            }
            Self::Profile { is_vllm: true, .. } => {
                Response::json(200, &json!({"status": "error", "message": response.body_text()}))
            }
            Self::Profile { .. } => {
                Response::json(500, &json!({"error": "Handler error", "message": response.body_text()}))
            }
            Self::Metrics => {
                let own = "# TYPE dynamo_component_uptime_seconds gauge\ndynamo_component_uptime_seconds{dynamo_component=\"backend\"} 12.5\n";
                let mut page = own.as_bytes().to_vec();
                page.extend(response.body);
                Response { body: page, ..Response::text(200, "") }
            }
            Self::Health => response,
            Self::Unknown => Response::text(404, "Route not found"),
        }
    }
}
