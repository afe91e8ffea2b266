//! Drives a double without socket and clock: time jumps from event to event, and files are kept in
//! memory. For tests that never sleep.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::demo::ServerKind;
use crate::demo::exchange::{CallId, Effect, Outcome, Request};
use skewtrap_trace::time::Time;

/// A double in simulated time, with its effects so far.
#[derive(Debug)]
pub struct Simulated {
    /// The double.
    pub engine: ServerKind,
    /// The simulated time.
    pub now: Time,
    /// Its log: time and text of each line.
    pub log: Vec<(Time, String)>,
    /// Its files by path.
    pub files: BTreeMap<String, Arc<[u8]>>,
    /// The requests that have ended.
    pub ended: BTreeMap<CallId, (Time, Outcome)>,
    /// How often the process died.
    pub deaths: u32,
}

/// An answer and its duration.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Status code; 0 when the connection broke.
    pub status: u16,
    /// The body as text.
    pub body: String,
    /// From the request to the answer.
    pub took: Duration,
}

impl Simulated {
    /// Starts `engine` at the simulated time `now`.
    pub fn new(engine: impl Into<ServerKind>, now: Time) -> Self {
        let mut simulated = Self {
            engine: engine.into(),
            now,
            log: Vec::new(),
            files: BTreeMap::new(),
            ended: BTreeMap::new(),
            deaths: 0,
        };
        simulated.run_until(now);
        simulated
    }

    /// Sends a request and does not wait.
    pub fn send(&mut self, request: &Request) -> CallId {
        let (id, effects) = self.engine.request(self.now, request);
        self.take(effects);
        id
    }

    /// Sends a request and lets time pass until it ends; `None` when it has not ended after `patience`.
    pub fn ask_for(&mut self, request: &Request, patience: Duration) -> Option<Answer> {
        let (asked, until) = (self.now, self.now + patience);
        let id = self.send(request);
        while !self.ended.contains_key(&id) {
            let Some(at) = self.engine.next_event().filter(|at| *at <= until) else {
                self.run_until(until);
                break;
            };
            self.run_until(at);
        }
        self.answer(id, asked)
    }

    /// Sends a request and waits for up to ten minutes of simulated time.
    pub fn ask(&mut self, request: &Request) -> Option<Answer> {
        self.ask_for(request, Duration::from_secs(600))
    }

    /// The answer to a request sent at `asked`, if it has ended.
    pub fn answer(&self, id: CallId, asked: Time) -> Option<Answer> {
        let (at, outcome) = self.ended.get(&id)?;
        let took = at.since(asked);
        Some(match outcome {
            Outcome::Answer(r) => Answer { status: r.status, body: r.body_text(), took },
            Outcome::Reset => Answer { status: 0, body: String::new(), took },
        })
    }

    /// Lets `d` pass.
    pub fn wait(&mut self, d: Duration) {
        self.run_until(self.now + d);
    }

    /// Lets time pass until `at`.
    pub fn run_until(&mut self, at: Time) {
        while let Some(next) = self.engine.next_event().filter(|next| *next <= at) {
            self.now = self.now.max(next);
            let effects = self.engine.advance(self.now);
            self.take(effects);
        }
        self.now = self.now.max(at);
        let effects = self.engine.advance(self.now);
        self.take(effects);
    }

    /// Changes the double now: `ServerKind::kill`, `ServerKind::restart`, its faults, its load.
    pub fn apply(&mut self, change: impl FnOnce(&mut ServerKind, Time) -> Vec<Effect>) {
        let effects = change(&mut self.engine, self.now);
        self.take(effects);
    }

    /// The log lines that hold `part`.
    pub fn lines_with(&self, part: &str) -> Vec<&str> {
        self.log.iter().map(|(_, l)| l.as_str()).filter(|l| l.contains(part)).collect()
    }

    /// The names of the files in `dir`, in order.
    pub fn files_in(&self, dir: &str) -> Vec<&str> {
        self.files.keys().filter_map(|p| p.strip_prefix(dir)?.strip_prefix('/')).collect()
    }

    fn take(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Log { at, line } => self.log.push((at, line)),
                Effect::File { path, content, .. } => {
                    self.files.insert(path, content);
                }
                Effect::Done { call, outcome } => {
                    self.ended.insert(call, (self.now, outcome));
                }
                Effect::Down => self.deaths += 1,
                Effect::Up => {}
            }
        }
    }
}
