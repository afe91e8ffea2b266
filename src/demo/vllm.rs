//! vLLM's profile API, metrics and log, faults included, as a state machine over simulated time.
//!
//! The differences from SGLang that matter: the folder is fixed at launch, a window that ended by
//! `max_iterations` counts as open until `/stop_profile` is called, and the effect of a second start
//! depends on the release (docs/engines.md).

mod config;
mod engines;
mod pages;

use std::time::Duration;

pub use config::{Config, Faults, Version};

use engines::{Engine, Session};
use serde_json::{Value, json};

use crate::demo::exchange::{CallId, Effect, HttpFault, HttpFaultKind, Outcome, Request, Response};
use crate::demo::load::RankLoad;
use skewtrap_trace::time::Time;

/// Duration of a page or a refusal.
const QUICK: Duration = Duration::from_millis(3);
/// Duration of starting torch's profiler in every engine.
const START: Duration = Duration::from_millis(60);

/// One vLLM API server with its engines.
#[derive(Debug)]
pub struct World {
    config: Config,
    now: Time,
    up: bool,
    /// Whether the API server considers a window to be open.
    session: Option<Session>,
    engines: Vec<Engine>,
    calls: Vec<Call>,
    next_call: u64,
    next_report: Time,
    idle_reports: u32,
    effects: Vec<Effect>,
}

#[derive(Debug)]
struct Call {
    id: CallId,
    method: String,
    path: String,
    wait: Wait,
    fault: Option<HttpFaultKind>,
}

#[derive(Debug)]
enum Wait {
    Until(Time, Response),
    /// The flush of every engine, for a stop.
    Flushed,
    Forever,
}

impl World {
    /// A server that comes up at `now`.
    pub fn new(config: Config, now: Time) -> Self {
        let engines = (0..config.dp).map(|_| Engine::default()).collect();
        let next_report = now + config.log_interval;
        Self {
            config,
            now,
            up: true,
            session: None,
            engines,
            calls: Vec::new(),
            next_call: 0,
            next_report,
            idle_reports: 0,
            effects: Vec::new(),
        }
    }

    /// The faults from now on.
    pub const fn faults_mut(&mut self) -> &mut Faults {
        &mut self.config.faults
    }

    /// Its configuration.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Sets the load from now on.
    pub fn set_load(&mut self, engines: &[(u32, u32)]) {
        self.config.load.set_from(self.now, engines);
        self.settle();
    }

    /// Whether its port listens.
    pub const fn is_up(&self) -> bool {
        self.up
    }

    /// The engines with an open window.
    pub fn open_windows(&self) -> Vec<u16> {
        (0..self.config.dp).filter(|i| self.engines[usize::from(*i)].open.is_some()).collect()
    }

    /// A request arrives at `now`.
    pub fn request(&mut self, now: Time, request: &Request) -> (CallId, Vec<Effect>) {
        let mut effects = self.advance(now);
        let id = CallId(self.next_call);
        self.next_call += 1;
        let fault = if self.up { HttpFault::take(&mut self.config.faults.http, &request.path) } else { None };
        match fault {
            _ if !self.up => self.done(id, Outcome::Reset),
            Some(HttpFaultKind::ResetBefore) => self.done(id, Outcome::Reset),
            Some(HttpFaultKind::NeverBefore) => {}
            Some(HttpFaultKind::Status(status)) => {
                let response = Response::bare(status, "");
                let response = Response::text(status, response.reason());
                self.track(id, request, Wait::Until(self.now + QUICK, response), None);
            }
            fault => {
                let wait = self.route(request);
                self.track(id, request, wait, fault);
            }
        }
        self.settle();
        effects.append(&mut self.effects);
        (id, effects)
    }

    /// Does everything that is due by `now`.
    pub fn advance(&mut self, now: Time) -> Vec<Effect> {
        while let Some(at) = self.next_event().filter(|at| *at <= now) {
            self.now = self.now.max(at);
            self.settle();
        }
        self.now = self.now.max(now);
        std::mem::take(&mut self.effects)
    }

    /// The time of the next event, if no request comes before it.
    pub fn next_event(&self) -> Option<Time> {
        if !self.up {
            return None;
        }
        let engines = self.engines.iter().filter_map(|e| match (&e.flush, &e.open) {
            (Some(flush), _) => Some(flush.until),
            (None, Some(_)) => e.next_step.or_else(|| self.config.load.next_change(self.now)),
            (None, None) => None,
        });
        let calls = self.calls.iter().filter_map(|c| match &c.wait {
            Wait::Until(at, _) => Some(*at),
            Wait::Flushed | Wait::Forever => None,
        });
        engines.chain(calls).chain([self.next_report]).min()
    }

    /// A trace could not be written: the engine dies, and the API server with it.
    pub fn disk_error(&mut self, now: Time, rank: u16, error: &str) -> Vec<Effect> {
        let line = format!(
            "(EngineCore_DP{rank} pid=4{rank}) ERROR EngineCore encountered a fatal error. OSError: {error}"
        );
        let mut effects = self.advance(now);
        self.effects.push(Effect::Log { at: self.now, line });
        self.die();
        effects.append(&mut self.effects);
        effects
    }

    /// The process dies.
    pub fn kill(&mut self, now: Time, why: &str) -> Vec<Effect> {
        let mut effects = self.advance(now);
        self.log(why);
        self.die();
        effects.append(&mut self.effects);
        effects
    }

    /// The process starts again.
    pub fn restart(&mut self, now: Time) -> Vec<Effect> {
        let mut effects = self.advance(now);
        if self.up {
            self.die();
        }
        let next_call = self.next_call;
        *self = Self::new(self.config.clone(), self.now);
        self.next_call = next_call;
        effects.push(Effect::Up);
        effects
    }

    fn die(&mut self) {
        for call in std::mem::take(&mut self.calls) {
            self.done(call.id, Outcome::Reset);
        }
        self.up = false;
        self.effects.push(Effect::Down);
    }

    fn track(&mut self, id: CallId, request: &Request, wait: Wait, fault: Option<HttpFaultKind>) {
        let (method, path) = (request.method.clone(), request.path.clone());
        self.calls.push(Call { id, method, path, wait, fault });
    }

    fn route(&mut self, request: &Request) -> Wait {
        let post = request.method == "POST";
        let lacks_key =
            request.bearer.as_deref() != self.config.api_key.as_deref() && self.config.api_key.is_some();
        match request.path.as_str() {
            "/start_profile" | "/stop_profile" if self.config.profiler_dir.is_none() => {
                self.answer_soon(Response::not_found())
            }
            "/start_profile" | "/stop_profile" if !post => self.answer_soon(Response::method_not_allowed()),
            "/start_profile" => self.start(&request.body),
            "/stop_profile" => self.stop(),
            path if path.starts_with("/v1/") && lacks_key => {
                self.answer_soon(Response::json(401, &json!({"error": "Unauthorized"})))
            }
            "/health" => self.answer_soon(Response::bare(200, "")),
            "/metrics" => self.answer_soon(pages::metrics(self)),
            "/version" => {
                self.answer_soon(Response::json(200, &json!({"version": self.config.version.text()})))
            }
            "/v1/models" => self.answer_soon(pages::models()),
            _ => self.answer_soon(Response::not_found()),
        }
    }

    fn answer_soon(&self, response: Response) -> Wait {
        Wait::Until(self.now + QUICK, response)
    }

    fn start(&mut self, body: &[u8]) -> Wait {
        let session = match self.read_session(body) {
            Ok(session) => session,
            Err(response) => return self.answer_soon(response),
        };
        self.log_route("api_router.py:29", "Starting profiler...");
        match (self.session.is_some(), self.config.version) {
            (true, Version::V0_33) => {
                let message =
                    "A profiling session is already active. Call /stop_profile before starting a new one.";
                return self.answer_soon(Response::json(409, &json!({"error": message})));
            }
            // Ignored, whether or not its engines still record.
            (true, Version::V0_19) => {}
            (true | false, _) => {
                for i in 0..self.engines.len() {
                    self.open(i, &session);
                }
                self.session = Some(session);
            }
        }
        self.log_route("api_router.py:31", "Profiler started.");
        Wait::Until(self.now + START, Response::bare(200, ""))
    }

    fn read_session(&self, body: &[u8]) -> Result<Session, Response> {
        let launch = Session { max_iterations: self.config.max_iterations, ..Session::default() };
        if self.config.version < Version::V0_33 || body.is_empty() {
            return Ok(launch);
        }
        let refuse = |why: &str| Response::json(400, &json!({"error": {"message": why, "code": 400}}));
        let body: Value = serde_json::from_slice(body).map_err(|_| refuse("JSON decode error"))?;
        let prefix = body["profile_prefix"].as_str().map(str::to_owned);
        let sound = |p: &String| {
            (1..=128).contains(&p.len())
                && p.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        if prefix.as_ref().is_some_and(|p| !sound(p)) {
            return Err(refuse("profile_prefix must match [A-Za-z0-9._-]{1,128}"));
        }
        Ok(Session {
            prefix,
            max_iterations: body["max_iterations"].as_u64().or(launch.max_iterations),
            delay_iterations: body["delay_iterations"].as_u64().unwrap_or(0),
        })
    }

    fn stop(&mut self) -> Wait {
        self.log_route("api_router.py:39", "Stopping profiler...");
        if self.session.take().is_none() && self.config.version < Version::V0_33 {
            if self.config.faults.stop_without_start_kills {
                self.log("(EngineCore_DP0 pid=40) Fatal Python error: Segmentation fault");
                self.die();
                return Wait::Forever;
            }
            return self.answer_soon(Response::text(500, "Internal Server Error"));
        }
        for i in 0..self.engines.len() {
            self.flush(i);
        }
        Wait::Flushed
    }

    fn settle(&mut self) {
        if !self.up {
            return;
        }
        for i in 0..self.engines.len() {
            self.advance_engine(i);
        }
        while self.next_report <= self.now {
            self.report();
        }
        let mut waiting = std::mem::take(&mut self.calls);
        waiting.retain_mut(|call| self.advance_call(call));
        self.calls.append(&mut waiting);
    }

    fn report(&mut self) {
        let loads: Vec<RankLoad> = (0..self.config.dp).map(|i| self.config.load.at(i, self.now)).collect();
        let idle = loads.iter().all(|l| l.running == 0 && l.waiting == 0);
        self.idle_reports = if idle { self.idle_reports + 1 } else { 0 };
        if self.idle_reports < 2 {
            for (i, load) in loads.iter().enumerate() {
                let line = pages::log_line(self.now, i, *load);
                self.log(&line);
            }
        }
        self.next_report = self.next_report + self.config.log_interval;
    }

    fn advance_call(&mut self, call: &mut Call) -> bool {
        let response = match &call.wait {
            Wait::Forever => return true,
            Wait::Until(at, _) if *at > self.now => return true,
            Wait::Until(_, response) => response.clone(),
            Wait::Flushed if self.engines.iter().any(|e| e.flush.is_some()) => return true,
            Wait::Flushed => {
                self.log_route("api_router.py:41", "Profiler stopped.");
                Response::bare(200, "")
            }
        };
        match call.fault.take() {
            Some(HttpFaultKind::NeverAfter) => call.wait = Wait::Forever,
            Some(HttpFaultKind::Late(by)) => call.wait = Wait::Until(self.now + by, response),
            Some(HttpFaultKind::ResetAfter) => {
                self.done(call.id, Outcome::Reset);
                return false;
            }
            _ => {
                let (status, reason) = (response.status, response.reason());
                self.log(&format!(
                    "(APIServer pid=387731) INFO:     127.0.0.1:4{} - \"{} {} HTTP/1.1\" {status} {reason}",
                    call.id.0 % 10_000,
                    call.method,
                    call.path
                ));
                self.done(call.id, Outcome::Answer(response));
                return false;
            }
        }
        true
    }

    fn log_route(&mut self, place: &str, message: &str) {
        let line = format!("INFO {} [{place}] {message}", pages::stamp(self.now));
        self.log(&line);
    }

    fn log(&mut self, line: &str) {
        let line =
            if line.starts_with('(') { line.to_owned() } else { format!("(APIServer pid=387731) {line}") };
        self.effects.push(Effect::Log { at: self.now, line });
    }

    fn done(&mut self, call: CallId, outcome: Outcome) {
        self.effects.push(Effect::Done { call, outcome });
    }
}
