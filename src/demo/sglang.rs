//! SGLang's HTTP protocol and log, faults included, as a state machine over simulated time.
//!
//! [`World`] holds the ranks, the pending requests and the effects; the modules say how a rank steps
//! (`ranks`) and writes its trace (`exports`), how a request is routed and answered (`serving`), what the
//! pages show (`pages`) and what the log says (`lines`). It follows what was measured on real servers
//! (docs/engines.md); what varies there, the duration of an export, is set by [`ExportCost`].

mod config;
mod exports;
mod lines;
mod order;
mod pages;
mod profile;
mod ranks;
mod serving;

pub use crate::demo::trace::ExportLaw;
pub use config::{Config, ExportCost, Faults, Version};
pub use order::Order;

use crate::demo::exchange::{CallId, Effect, HttpFault, HttpFaultKind, Outcome, Request};
use ranks::Rank;
use serving::Call;
use skewtrap_trace::time::Time;

/// One SGLang server.
#[derive(Debug)]
pub struct World {
    config: Config,
    now: Time,
    state: ProcessState,
    ranks: Vec<Rank>,
    calls: Vec<Call>,
    next_call: u64,
    /// The number of lines of a recorded log that have been printed.
    replayed: usize,
    /// When a fault will kill the process.
    restart_at: Option<Time>,
    /// How often the process was started; each start draws another random seed.
    starts: u32,
    /// Whether torch's profiler has run in this process; the first start is slower.
    profiler_used: bool,
    effects: Vec<Effect>,
}

/// Whether the process runs.
#[derive(Clone, Debug, PartialEq)]
enum ProcessState {
    Up,
    Down { why: String, back_at: Option<Time> },
}

impl World {
    /// A server that comes up at `now`.
    pub fn new(config: Config, now: Time) -> Self {
        let mut world = Self {
            ranks: (0..config.dp).map(Rank::new).collect(),
            config,
            now,
            state: ProcessState::Up,
            calls: Vec::new(),
            next_call: 0,
            replayed: 0,
            restart_at: None,
            starts: 0,
            profiler_used: false,
            effects: Vec::new(),
        };
        world.boot_lines();
        world.settle();
        world
    }

    /// Its configuration.
    pub const fn config(&self) -> &Config {
        &self.config
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
    pub fn is_up(&self) -> bool {
        self.state == ProcessState::Up
    }

    /// Why the process died; `None` while it runs.
    pub fn cause_of_death(&self) -> Option<&str> {
        match &self.state {
            ProcessState::Up => None,
            ProcessState::Down { why, .. } => Some(why),
        }
    }

    /// The data-parallel ranks with an open window.
    pub fn open_windows(&self) -> Vec<u16> {
        self.ranks.iter().filter(|r| r.profiler.open().is_some()).map(|r| r.dp).collect()
    }

    /// The open windows: rank, since when, and the request that opened it.
    pub fn open_orders(&self) -> Vec<(u16, Time, &Order)> {
        let open = |r: &'_ Rank| r.profiler.open().map(|open| open.since);
        self.ranks.iter().filter_map(|r| Some((r.dp, open(r)?, r.profiler.order()))).collect()
    }

    /// The data-parallel ranks that are writing a trace.
    pub fn exporting(&self) -> Vec<u16> {
        self.ranks.iter().filter(|r| r.export.is_some()).map(|r| r.dp).collect()
    }

    /// A request arrives at `now`; an [`Effect::Done`] of this or of a later call ends it.
    pub fn request(&mut self, now: Time, request: &Request) -> (CallId, Vec<Effect>) {
        let mut effects = self.advance(now);
        let id = CallId(self.next_call);
        self.next_call += 1;
        if self.is_up() {
            match HttpFault::take(&mut self.config.faults.http, &request.path) {
                Some(HttpFaultKind::ResetBefore) => self.done(id, Outcome::Reset),
                Some(HttpFaultKind::NeverBefore) => {}
                Some(HttpFaultKind::Status(status)) => self.refuse_with(id, request, status),
                fault => self.accept(id, request, fault),
            }
            self.settle();
        } else {
            self.done(id, Outcome::Reset);
        }
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
        if let ProcessState::Down { back_at, .. } = &self.state {
            return *back_at;
        }
        let ranks = self.ranks.iter().filter_map(|r| self.next_of_rank(r));
        let calls = self.calls.iter().filter_map(Call::due);
        ranks.chain(calls).chain(self.next_recorded_line()).chain(self.restart_at).min()
    }

    /// A file of `rank` could not be written: an uncaught exception, and the server dies.
    pub fn disk_error(&mut self, now: Time, rank: u16, error: &str) -> Vec<Effect> {
        let mut effects = self.advance(now);
        self.kill_scheduler(rank, &format!("OSError: {error}"));
        effects.append(&mut self.effects);
        effects
    }

    /// The process dies.
    pub fn kill(&mut self, now: Time, why: &str) -> Vec<Effect> {
        let mut effects = self.advance(now);
        self.die(why);
        effects.append(&mut self.effects);
        effects
    }

    /// The process starts again, without any of its former state.
    pub fn restart(&mut self, now: Time) -> Vec<Effect> {
        let mut effects = self.advance(now);
        if self.is_up() {
            self.die("restarted");
        }
        self.come_back();
        self.settle();
        effects.append(&mut self.effects);
        effects
    }

    /// The process starts again with so many data-parallel ranks.
    pub fn restart_with(&mut self, now: Time, dp: u16) -> Vec<Effect> {
        let mut effects = self.kill(now, "restarted");
        self.config.dp = dp;
        effects.append(&mut self.restart(now));
        effects
    }

    /// Does everything that is due at `self.now`.
    fn settle(&mut self) {
        if let ProcessState::Down { back_at, .. } = &self.state {
            if back_at.is_none_or(|at| at > self.now) {
                return;
            }
            self.come_back();
        }
        if self.restart_at.is_some_and(|at| at <= self.now) {
            let back_at = self.now + self.config.faults.restart_takes;
            self.die("restarted");
            if let ProcessState::Down { back_at: slot, .. } = &mut self.state {
                *slot = Some(back_at);
            }
            return;
        }
        self.print_recorded_lines();
        self.run_ranks();
        if self.is_up() {
            self.answer_due_calls();
        }
    }

    fn kill_scheduler(&mut self, dp: u16, error: &str) {
        self.log(Some(dp), &lines::scheduler_exception(error));
        self.log(None, lines::sigquit(self.config.version));
        self.die(error);
    }

    fn die(&mut self, why: &str) {
        for call in std::mem::take(&mut self.calls) {
            self.done(call.id, Outcome::Reset);
        }
        self.state = ProcessState::Down { why: why.to_owned(), back_at: None };
        self.restart_at = None;
        self.effects.push(Effect::Down);
    }

    fn come_back(&mut self) {
        self.ranks = (0..self.config.dp).map(Rank::new).collect();
        self.profiler_used = false;
        self.starts += 1;
        // Lines that the recording has for the time of the outage are skipped.
        let now = self.now;
        self.replayed =
            self.config.recorded_log.as_ref().map_or(0, |l| l.partition_point(|(at, _)| *at <= now));
        self.state = ProcessState::Up;
        self.effects.push(Effect::Up);
        self.boot_lines();
    }

    fn boot_lines(&mut self) {
        if self.config.recorded_log.is_some() {
            return;
        }
        let c = &self.config;
        let args = format!(
            "server_args=ServerArgs(model_path='/models/tiny', tp_size={}, pp_size=1, dp_size={}, enable_dp_attention={}, host='127.0.0.1', port=30000, enable_metrics={}, decode_log_interval={})",
            c.tp,
            c.dp,
            python(c.dp_attention),
            python(c.enable_metrics),
            c.decode_log_interval
        );
        self.log(None, &args);
        self.log(None, "The server is fired up and ready to roll!");
    }

    fn log(&mut self, dp: Option<u16>, message: &str) {
        let line = lines::prefix(&self.config, self.now, dp) + message;
        self.effects.push(Effect::Log { at: self.now, line });
    }

    fn done(&mut self, call: CallId, outcome: Outcome) {
        self.effects.push(Effect::Done { call, outcome });
    }

    fn next_recorded_line(&self) -> Option<Time> {
        self.config.recorded_log.as_ref()?.get(self.replayed).map(|(at, _)| *at)
    }

    fn print_recorded_lines(&mut self) {
        let Some(recorded) = self.config.recorded_log.clone() else { return };
        while let Some((at, line)) = recorded.get(self.replayed).filter(|(at, _)| *at <= self.now) {
            self.effects.push(Effect::Log { at: *at, line: line.clone() });
            self.replayed += 1;
        }
    }
}

const fn python(value: bool) -> &'static str {
    if value { "True" } else { "False" }
}
