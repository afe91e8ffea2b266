//! How a request is authorized, routed and answered.

use std::time::Duration;

use serde_json::json;

use crate::demo::exchange::{CallId, HttpFaultKind, Outcome, Request, Response};
use crate::demo::sglang::config::Version;
use crate::demo::sglang::order::Order;
use crate::demo::sglang::profile::Refusal;
use crate::demo::sglang::ranks::{Message, Rank};
use crate::demo::sglang::{World, lines, pages};
use skewtrap_trace::time::Time;

/// `SGLANG_HEALTH_CHECK_TIMEOUT`.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(20);
/// Duration of a page or a refusal.
const QUICK: Duration = Duration::from_millis(3);
/// Duration of a start after CUPTI is loaded, and of the first one.
const START: Duration = Duration::from_millis(12);
const FIRST_START: Duration = Duration::from_millis(85);

/// A pending request.
#[derive(Debug)]
pub struct Call {
    pub id: CallId,
    method: String,
    target: String,
    asked: Time,
    wait: Wait,
    fault: Option<HttpFaultKind>,
}

/// What a request waits for.
#[derive(Debug)]
enum Wait {
    /// A time.
    Until(Time, Response),
    /// The replies of all ranks, in the order of arrival; the server examines only the first one.
    Replies { kind: Kind, replies: Vec<Result<(), Refusal>> },
    /// Every rank: the page asks each of them, and none answers while it writes a trace.
    EveryRank(Page),
    /// A sign of state, checked at intervals.
    Health { check_at: Time },
    /// Nothing: it is never answered.
    Forever,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Start,
    Stop,
}

/// Pages that ask every rank, in some releases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    Loads,
    GetLoad,
    ServerInfo,
}

impl Call {
    /// The time of its next check.
    pub fn due(&self) -> Option<Time> {
        match &self.wait {
            Wait::Until(at, _) | Wait::Health { check_at: at } => Some(*at),
            Wait::Replies { .. } | Wait::EveryRank(_) | Wait::Forever => None,
        }
    }
}

impl World {
    /// Handles a request; `fault` affects its answer.
    pub(super) fn accept(&mut self, id: CallId, request: &Request, fault: Option<HttpFaultKind>) {
        let wait = if self.is_authorized(request) {
            self.route(id, request)
        } else {
            Wait::Until(self.now + QUICK, Response::json(401, &json!({"error": "Unauthorized"})))
        };
        self.track(id, request, wait, fault);
    }

    /// Answers a request with the status of a fault.
    pub(super) fn refuse_with(&mut self, id: CallId, request: &Request, status: u16) {
        let response = match status {
            401 => Response::json(401, &json!({"error": "Unauthorized"})),
            _ => {
                let bare = Response::bare(status, "");
                Response::text(status, bare.reason())
            }
        };
        self.track(id, request, Wait::Until(self.now + QUICK, response), None);
    }

    fn track(&mut self, id: CallId, request: &Request, wait: Wait, fault: Option<HttpFaultKind>) {
        let target = if request.query.is_empty() {
            request.path.clone()
        } else {
            format!("{}?{}", request.path, request.query)
        };
        self.calls.push(Call { id, method: request.method.clone(), target, asked: self.now, wait, fault });
        // Ranks that are not exporting reply at once, which needs the call to be registered (see `reply`).
        self.run_ranks();
    }

    /// Whether the key is right: since 0.5.9 an admin key, if there is one, guards the profile calls; the
    /// API key guards the rest except `/health` and `/metrics` (docs/engines.md).
    fn is_authorized(&self, request: &Request) -> bool {
        let c = &self.config;
        let key = request.bearer.as_deref();
        let path = request.path.as_str();
        if path.starts_with("/health") || path.starts_with("/metrics") {
            return true;
        }
        let profiles = matches!(path, "/start_profile" | "/stop_profile");
        let wanted = match (&c.admin_api_key, &c.api_key) {
            (Some(admin), _) if profiles && c.version >= Version::V0_5_9 => Some(admin),
            (_, plain) => plain.as_ref(),
        };
        wanted.is_none_or(|w| key == Some(w.as_str()))
    }

    fn route(&mut self, id: CallId, request: &Request) -> Wait {
        let version = self.config.version;
        let get = request.method == "GET";
        let known = |path: &str| match path {
            "/v1/loads" => version >= Version::V0_5_9,
            "/get_load" => version < Version::V0_5_23,
            "/server_info" => version >= Version::V0_5_9,
            "/metrics" => self.config.enable_metrics,
            "/health" | "/health_generate" | "/get_server_info" | "/get_model_info" | "/v1/models" => true,
            _ => false,
        };
        match request.path.as_str() {
            "/start_profile" | "/stop_profile" if !get && request.method != "POST" => {
                self.answer_soon(Response::method_not_allowed())
            }
            "/start_profile" => self.start(id, request),
            "/stop_profile" => self.stop(id),
            path if !known(path) => self.answer_soon(Response::not_found()),
            _ if !get => self.answer_soon(Response::method_not_allowed()),
            "/health" | "/health_generate" => Wait::Health { check_at: self.now + self.config.health_takes },
            "/metrics" => self.answer_soon(pages::metrics(self)),
            "/v1/loads" if version >= Version::V0_5_16 => self.answer_soon(pages::loads(self, request)),
            "/v1/loads" => Wait::EveryRank(Page::Loads),
            "/get_load" if version >= Version::V0_5_16 => self.answer_soon(pages::get_load(self)),
            "/get_load" => Wait::EveryRank(Page::GetLoad),
            "/server_info" | "/get_server_info" => Wait::EveryRank(Page::ServerInfo),
            path => self.answer_soon(pages::model(path)),
        }
    }

    fn answer_soon(&self, response: Response) -> Wait {
        Wait::Until(self.now + QUICK, response)
    }

    fn start(&mut self, call: CallId, request: &Request) -> Wait {
        let mut order = match Order::read(&request.body, self.config.version) {
            Ok(order) => order,
            Err(response) => return self.answer_soon(response),
        };
        if order.profile_id.is_none() {
            // `str(time.time())`.
            order.profile_id = Some(format!("{:?}", self.now.epoch_s()));
        }
        if let Some(delay) = self.config.faults.restart_after_start.take() {
            self.restart_at = Some(self.now + delay);
        }
        for rank in &mut self.ranks {
            rank.inbox.push_back(Message::Start { call, order: order.clone() });
        }
        Wait::Replies { kind: Kind::Start, replies: Vec::new() }
    }

    fn stop(&mut self, call: CallId) -> Wait {
        for rank in &mut self.ranks {
            rank.inbox.push_back(Message::Stop { call });
        }
        Wait::Replies { kind: Kind::Stop, replies: Vec::new() }
    }

    /// Duration of starting torch's profiler; longer the first time in a process.
    pub(super) const fn start_takes(&self) -> Duration {
        if self.profiler_used { START } else { FIRST_START }
    }

    /// A rank's reply to a start or a stop.
    pub(super) fn reply(&mut self, call: CallId, reply: Result<(), Refusal>) {
        let (now, wanted) = (self.now, self.ranks.len());
        let opened = self.ranks.iter().any(|r| r.profiler.open().is_some_and(|o| o.since == now));
        let start_takes = if opened { self.start_takes() } else { QUICK };
        let Some(call) = self.calls.iter_mut().find(|c| c.id == call) else { return };
        let Wait::Replies { kind, replies } = &mut call.wait else { return };
        replies.push(reply);
        if replies.len() < wanted {
            return;
        }
        let (response, takes) = match (replies[0], *kind) {
            (Err(_), _) => (Response::text(500, "Internal Server Error"), QUICK),
            (Ok(()), Kind::Start) => (Response::bare(200, "Start profiling.\n"), start_takes),
            (Ok(()), Kind::Stop) => {
                (Response::bare(200, "Stop profiling. This will take some time.\n"), QUICK)
            }
        };
        self.profiler_used |= opened;
        let refused = replies[0].err();
        call.wait = Wait::Until(now + takes, response);
        if let Some(refusal) = refused {
            self.log(None, &format!("ERROR:    Exception in ASGI application\nTraceback (most recent call last):\n  File \"/opt/site/sglang/srt/managers/tokenizer_control_mixin.py\", line 374, in _execute_profile\n    raise RuntimeError(result.message)\nRuntimeError: {refusal}"));
        }
    }

    pub(super) fn answer_due_calls(&mut self) {
        let mut waiting = std::mem::take(&mut self.calls);
        waiting.retain_mut(|call| self.advance_call(call));
        self.calls.append(&mut waiting);
    }

    /// Advances a pending call; returns whether it is still pending.
    fn advance_call(&mut self, call: &mut Call) -> bool {
        let now = self.now;
        match &call.wait {
            Wait::Forever | Wait::Replies { .. } => return true,
            Wait::Until(at, _) if *at > now => return true,
            Wait::Until(..) => {}
            Wait::EveryRank(_) if self.ranks.iter().any(|r| self.is_away(r)) => return true,
            Wait::EveryRank(page) => {
                let response = match page {
                    Page::Loads => pages::loads(self, &Request::get(&call.target)),
                    Page::GetLoad => pages::get_load(self),
                    Page::ServerInfo => pages::server_info(self),
                };
                call.wait = Wait::Until(now + QUICK, response);
                return true;
            }
            Wait::Health { check_at } if *check_at > now => return true,
            Wait::Health { .. } => match self.health(call.asked) {
                Some(response) => call.wait = Wait::Until(now, response),
                None => {
                    // The server checks once a second, whatever `health_takes` is.
                    call.wait = Wait::Health { check_at: now + Duration::from_secs(1) };
                    return true;
                }
            },
        }
        self.answer(call)
    }

    /// Whether a rank answers nothing now.
    fn is_away(&self, rank: &Rank) -> bool {
        rank.export.is_some() || self.config.faults.hung.contains(&rank.dp)
    }

    /// The server is healthy if a rank produces tokens, or if no rank is exporting.
    fn health(&self, asked: Time) -> Option<Response> {
        let idle_engine = self.ranks.iter().all(|r| r.export.is_none());
        if idle_engine || self.ranks.iter().any(|r| !self.is_blocked(r) && self.has_work(r)) {
            return Some(Response::bare(200, ""));
        }
        (self.now.since(asked) >= HEALTH_TIMEOUT).then(|| Response::bare(503, ""))
    }

    /// Sends the answer unless a fault delays it; returns whether the call is still pending.
    fn answer(&mut self, call: &mut Call) -> bool {
        let Wait::Until(_, response) = &call.wait else { return true };
        let response = response.clone();
        match call.fault.take() {
            Some(HttpFaultKind::NeverAfter) => {
                call.wait = Wait::Forever;
                return true;
            }
            Some(HttpFaultKind::Late(by)) => {
                call.wait = Wait::Until(self.now + by, response);
                return true;
            }
            Some(HttpFaultKind::ResetAfter) => self.done(call.id, Outcome::Reset),
            _ => {
                let port = 30_000 + (call.id.0 % 20_000) as u16;
                let line =
                    lines::access(port, &call.method, &call.target, response.status, response.reason());
                self.log(None, &line);
                self.done(call.id, Outcome::Answer(response));
            }
        }
        false
    }
}
