//! TensorRT-LLM's profile calls, iteration statistics and files (`trtllm-serve`), faults included, as a state
//! machine over simulated time.
//!
//! The differences from SGLang that matter: all ranks step together, a second start is refused with 409, a
//! stop of a window that has not begun takes it back, a stop of nothing is a 200, and the files bear no mark
//! of who asked.

mod config;

use std::sync::Arc;
use std::time::Duration;

pub use config::{Config, Faults};

use serde_json::{Value, json};

use crate::demo::exchange::{CallId, Effect, HttpFault, HttpFaultKind, Outcome, Request, Response};
use crate::demo::load::RankLoad;
use crate::demo::trace::Recorded;
use skewtrap_trace::time::Time;

/// Duration of a page or a refusal.
const QUICK: Duration = Duration::from_millis(3);
/// A stop is answered at the latest then.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// Recorded iterations, so that a window that nobody closes does not grow without end.
const MOST_STEPS: usize = 10_000;

/// One `trtllm-serve` with its ranks.
#[derive(Debug)]
pub struct World {
    config: Config,
    now: Time,
    up: bool,
    iteration: u64,
    next_step: Option<Time>,
    stats_at: Time,
    window: Option<Window>,
    export: Option<(Time, Window)>,
    windows: u64,
    /// Files that are still to be written.
    late: Vec<(Time, Effect)>,
    calls: Vec<Call>,
    next_call: u64,
    effects: Vec<Effect>,
}

/// A window that was asked for; it is open once it has an iteration.
#[derive(Clone, Debug)]
struct Window {
    dir: String,
    id: u64,
    skip: u64,
    limit: Option<u64>,
    writes: bool,
    /// Of each iteration the running requests of every rank.
    steps: Vec<Vec<u32>>,
    stops: bool,
}

#[derive(Debug)]
struct Call {
    id: CallId,
    wait: Wait,
    fault: Option<HttpFaultKind>,
}

#[derive(Debug)]
enum Wait {
    Until(Time, Response),
    /// The export, or this time.
    Exported(Time),
    Forever,
}

impl World {
    /// A server that comes up at `now`.
    pub fn new(config: Config, now: Time) -> Self {
        Self {
            config,
            now,
            up: true,
            iteration: 100,
            next_step: None,
            stats_at: now,
            window: None,
            export: None,
            windows: 0,
            late: Vec::new(),
            calls: Vec::new(),
            next_call: 0,
            effects: Vec::new(),
        }
    }

    /// The faults from now on.
    pub const fn faults_mut(&mut self) -> &mut Faults {
        &mut self.config.faults
    }

    /// Sets the load from now on.
    pub fn set_load(&mut self, ranks: &[(u32, u32)]) {
        self.config.load.set_from(self.now, ranks);
        self.settle();
    }

    /// Whether its port listens.
    pub const fn is_up(&self) -> bool {
        self.up
    }

    /// Whether a window is open, pending or being written.
    pub const fn has_window(&self) -> bool {
        self.window.is_some() || self.export.is_some()
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
                let wait = Wait::Until(self.now + QUICK, Response::text(status, "upstream error"));
                self.calls.push(Call { id, wait, fault: None });
            }
            fault => {
                let wait = self.route(request);
                self.calls.push(Call { id, wait, fault });
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
        let calls = self.calls.iter().filter_map(|call| match &call.wait {
            Wait::Until(at, _) | Wait::Exported(at) => Some(*at),
            Wait::Forever => None,
        });
        let step = match (&self.export, &self.window) {
            (Some((until, _)), _) => Some(*until),
            (None, Some(_)) => self.next_step.or_else(|| self.config.load.next_change(self.now)),
            (None, None) => None,
        };
        calls.chain(step).chain(self.late.iter().map(|(at, _)| *at)).min()
    }

    /// A trace could not be written: the loop of the executor ends with the exception, and the server with it.
    pub fn disk_error(&mut self, now: Time, rank: u16, error: &str) -> Vec<Effect> {
        self.kill(now, &format!("[TRT-LLM] [RANK {rank}] [E] Error in event loop: OSError: {error}"))
    }

    /// The process dies.
    pub fn kill(&mut self, now: Time, why: &str) -> Vec<Effect> {
        let mut effects = self.advance(now);
        self.log(why);
        for call in std::mem::take(&mut self.calls) {
            self.done(call.id, Outcome::Reset);
        }
        self.up = false;
        self.effects.push(Effect::Down);
        effects.append(&mut self.effects);
        effects
    }

    /// The process starts again.
    pub fn restart(&mut self, now: Time) -> Vec<Effect> {
        let mut effects = if self.up { self.kill(now, "restarted") } else { self.advance(now) };
        let next_call = self.next_call;
        *self = Self::new(self.config.clone(), self.now);
        self.next_call = next_call;
        effects.push(Effect::Up);
        effects
    }

    fn route(&mut self, request: &Request) -> Wait {
        let post = request.method == "POST";
        let response = match request.path.as_str() {
            "/start_profile" | "/stop_profile" if !post => Response::method_not_allowed(),
            "/start_profile" => self.start(&request.body),
            "/stop_profile" => return self.stop(),
            "/health" => Response::bare(200, ""),
            "/version" => Response::json(200, &json!({"version": "1.3.0"})),
            "/v1/models" => Response::json(
                200,
                &json!({"object": "list", "data": [{"id": "/models/tiny", "object": "model", "owned_by": "tensorrt_llm"}]}),
            ),
            "/metrics" => self.statistics(),
            _ => Response::not_found(),
        };
        Wait::Until(self.now + QUICK, response)
    }

    fn start(&mut self, body: &[u8]) -> Response {
        let body: Value = match body {
            [] => json!({}),
            body => match serde_json::from_slice(body) {
                Ok(body) => body,
                Err(_) => return Response::json(422, &json!({"detail": [{"msg": "JSON decode error"}]})),
            },
        };
        const FIELDS: [&str; 4] = ["output_dir", "num_steps", "start_step", "activities"];
        let odd = body.as_object().is_none_or(|b| b.keys().any(|key| !FIELDS.contains(&key.as_str())));
        if odd || body["num_steps"].as_i64() == Some(0) {
            return Response::json(422, &json!({"detail": [{"msg": "Input should be valid"}]}));
        }
        if !self.config.has_profiler {
            return Response::json(200, &json!({"message": "Profiling started"}));
        }
        if self.config.faults.start_errs {
            return Response::json(200, &json!({"success": false, "message": "worker did not answer"}));
        }
        if self.has_window() {
            let message = "Profiling is already in progress (or a pending start has been scheduled); call stop_profile first before starting a new window.";
            return Response::json(409, &json!({"success": false, "message": message}));
        }
        self.windows += 1;
        let only_nsys = body["activities"] == json!(["CUDA_PROFILER"]);
        self.window = Some(Window {
            dir: body["output_dir"].as_str().unwrap_or("/tmp").to_owned(),
            id: self.windows,
            skip: body["start_step"].as_u64().unwrap_or(0),
            limit: body["num_steps"].as_u64(),
            writes: !only_nsys,
            steps: Vec::new(),
            stops: false,
        });
        self.next_step = Some(self.now + QUICK);
        Response::json(200, &json!({"message": "Profiling started"}))
    }

    fn stop(&mut self) -> Wait {
        let stopped = Response::json(200, &json!({"message": "Profiling stopped"}));
        match &mut self.window {
            Some(_) if self.config.faults.ignores_stop => return Wait::Exported(self.now + STOP_LIMIT),
            Some(window) if window.steps.is_empty() => self.window = None,
            Some(window) => {
                window.stops = true;
                self.next_step = Some(self.now);
                return Wait::Exported(self.now + STOP_LIMIT);
            }
            None if self.export.is_some() => return Wait::Exported(self.now + STOP_LIMIT),
            None => {}
        }
        Wait::Until(self.now + QUICK, stopped)
    }

    /// `/metrics`: what ran since somebody asked, once.
    fn statistics(&mut self) -> Response {
        let ranks = self.loads();
        let since = std::mem::replace(&mut self.stats_at, self.now);
        let ran = self.config.has_stats && self.export.is_none() && self.now > since && is_busy(&ranks);
        if !ran {
            return Response::json(200, &json!([]));
        }
        self.iteration += 1;
        let rows = ranks.iter().take(if self.config.attention_dp { usize::MAX } else { 1 });
        let rows = rows.enumerate().map(|(rank, load)| {
            json!({
                "iter": self.iteration, "iterLatencyMS": 7.0, "attentionDpRank": rank, "numActiveRequests": load.running,
                "numQueuedRequests": load.waiting, "gpuMemUsage": 76_665_782_272_u64,
                "kvCacheStats": {"usedNumBlocks": load.tokens / 32, "maxNumBlocks": 6_250, "tokensPerBlock": 32},
                "inflightBatchingStats": {
                    "numContextRequests": 0, "numGenRequests": load.running, "numPausedRequests": 0,
                    "numQueuedContextRequests": load.waiting, "numQueuedGenRequests": 0,
                },
            })
        });
        Response::json(200, &Value::Array(rows.collect()))
    }

    fn loads(&self) -> Vec<RankLoad> {
        let of = |rank| if self.config.attention_dp { rank } else { 0 };
        (0..self.config.ranks).map(|rank| self.config.load.at(of(rank), self.now)).collect()
    }

    fn settle(&mut self) {
        if !self.up {
            return;
        }
        self.step();
        let mut waiting = std::mem::take(&mut self.calls);
        waiting.retain_mut(|call| self.advance_call(call));
        self.calls.append(&mut waiting);
    }

    /// The loop of the executor, as far as a window is concerned: an export runs inside it.
    fn step(&mut self) {
        if let Some((_, window)) = self.export.take_if(|(until, _)| *until <= self.now) {
            self.write(&window);
        }
        let due = self.late.extract_if(.., |(at, _)| *at <= self.now).map(|(_, file)| file);
        self.effects.extend(due);
        let (now, ranks) = (self.now, self.loads());
        let Some(window) = self.window.as_mut().filter(|_| self.export.is_none()) else { return };
        if self.next_step.is_some_and(|at| at > now) {
            return;
        }
        if window.stops || window.limit.is_some_and(|most| window.steps.len() as u64 >= most) {
            let steps = window.steps.len().min(1_000) as u32;
            let takes = self.config.export_per_step * steps;
            self.export = self.window.take().map(|window| (now + takes, window));
            return;
        }
        // Without work the loop waits for a request.
        self.next_step = is_busy(&ranks).then(|| now + step_time(&ranks));
        if self.next_step.is_none() {
        } else if window.skip > 0 {
            window.skip -= 1;
        } else if window.steps.len() < MOST_STEPS {
            window.steps.push(ranks.iter().map(|load| load.running).collect());
        }
    }

    fn write(&mut self, window: &Window) {
        for rank in (0..self.config.ranks).filter(|_| window.writes) {
            if self.config.faults.missing.contains(&rank) {
                continue;
            }
            let of_rank = |running: &Vec<u32>| (running[usize::from(rank)], false);
            let recorded = Recorded {
                process: "python3".into(),
                pid: 70 + u32::from(rank),
                steps: window.steps.iter().map(of_rank).collect(),
            };
            let mut text = recorded.json().to_string().into_bytes();
            if self.config.faults.truncated.contains(&rank) {
                // In the middle of an event, wherever that is.
                text.truncate(text.len() / 2);
                text.push(b',');
            }
            let (dir, id) = (&window.dir, window.id);
            let path = format!("{dir}/trtllm-trace-1795492{id:03}-7993d8{id:02x}-rank-{rank}.json");
            let file = Effect::File { path, content: Arc::from(text), rank };
            match self.config.faults.late.iter().find(|(late, _)| *late == rank) {
                Some((_, by)) => self.late.push((self.now + *by, file)),
                None => self.effects.push(file),
            }
        }
    }

    fn advance_call(&mut self, call: &mut Call) -> bool {
        let response = match &call.wait {
            Wait::Forever => return true,
            Wait::Until(at, _) if *at > self.now => return true,
            Wait::Until(_, response) => response.clone(),
            Wait::Exported(limit) if self.has_window() && *limit > self.now => return true,
            Wait::Exported(_) => Response::json(200, &json!({"message": "Profiling stopped"})),
        };
        match call.fault.take() {
            Some(HttpFaultKind::NeverAfter) => call.wait = Wait::Forever,
            Some(HttpFaultKind::Late(by)) => call.wait = Wait::Until(self.now + by, response),
            Some(HttpFaultKind::ResetAfter) => {
                self.done(call.id, Outcome::Reset);
                return false;
            }
            _ => {
                self.done(call.id, Outcome::Answer(response));
                return false;
            }
        }
        true
    }

    fn log(&mut self, line: &str) {
        self.effects.push(Effect::Log { at: self.now, line: line.to_owned() });
    }

    fn done(&mut self, call: CallId, outcome: Outcome) {
        self.effects.push(Effect::Done { call, outcome });
    }
}

fn is_busy(ranks: &[RankLoad]) -> bool {
    ranks.iter().any(|load| load.running > 0)
}

/// Every rank waits for the one with the most to do.
fn step_time(ranks: &[RankLoad]) -> Duration {
    let most = ranks.iter().map(|load| load.running).max().unwrap_or_default();
    Duration::from_micros(5_000 + 100 * u64::from(most))
}
