//! How a rank works: it steps while it has requests, starts and stops its profiler before a step, reports
//! now and then, and does nothing else while it writes a trace (`exports`).

use std::collections::VecDeque;
use std::time::Duration;

use crate::demo::exchange::CallId;
use crate::demo::load::RankLoad;
use crate::demo::sglang::config::Version;
use crate::demo::sglang::exports::Export;
use crate::demo::sglang::order::Order;
use crate::demo::sglang::profile::{Profiler, Refusal, Stage, StepAction};
use crate::demo::sglang::{World, lines};
use skewtrap_trace::time::Time;

/// Tokens that the KV cache of one rank holds.
pub const KV_TOKENS: u64 = 200_000;

/// Decode batches for each prefill batch.
const DECODES_PER_PREFILL: u64 = 27;

/// A data-parallel rank with its tensor-parallel peers.
#[derive(Debug)]
pub struct Rank {
    pub dp: u16,
    pub profiler: Profiler,
    pub export: Option<Export>,
    /// Starts and stops that wait until an export has ended.
    pub inbox: VecDeque<Message>,
    /// The last report, which the gauges of `/metrics` show.
    pub reported: RankLoad,
    /// What `/v1/loads` shows, and its time.
    pub snapshot: (Time, RankLoad),
    forward: u64,
    pub next_step: Option<Time>,
    /// Time spent in steps since the window opened; the rest of the window was idle.
    pub busy_in_window: Duration,
    decodes: u32,
    last_running: u32,
    idle_since: Option<Time>,
    gauges_stale: bool,
}

/// A profile request as it reaches a rank.
#[derive(Clone, Debug)]
pub enum Message {
    Start { call: CallId, order: Order },
    Stop { call: CallId },
}

impl Rank {
    pub fn new(dp: u16) -> Self {
        Self {
            dp,
            profiler: Profiler::default(),
            export: None,
            inbox: VecDeque::new(),
            reported: RankLoad::default(),
            snapshot: (Time::default(), RankLoad::default()),
            // A warmed-up server: small absolute step numbers lie in the past.
            forward: 1_000,
            next_step: None,
            busy_in_window: Duration::ZERO,
            decodes: 0,
            last_running: 0,
            idle_since: None,
            gauges_stale: false,
        }
    }
}

impl World {
    /// The time of the next event of `rank`.
    pub(super) fn next_of_rank(&self, rank: &Rank) -> Option<Time> {
        if self.config.faults.hung.contains(&rank.dp) {
            return None;
        }
        if let Some(export) = &rank.export {
            return Some(export.due(self.config.watchdog));
        }
        if self.is_blocked(rank) {
            return None;
        }
        let wakes = rank.next_step.or_else(|| self.config.load.next_change(self.now));
        let publishes = rank.idle_since.filter(|_| rank.gauges_stale).map(|t| t + self.idle_publication());
        wakes.into_iter().chain(publishes).min()
    }

    pub(super) fn run_ranks(&mut self) {
        let hangs = |world: &Self, i: usize| world.config.faults.hung.contains(&world.ranks[i].dp);
        for i in 0..self.ranks.len() {
            if hangs(self, i) {
                continue;
            }
            if self.is_up() {
                self.advance_export(i);
            }
            while self.is_up() && self.ranks[i].export.is_none() {
                let Some(message) = self.ranks[i].inbox.pop_front() else { break };
                self.handle(i, message);
            }
        }
        for i in 0..self.ranks.len() {
            if self.is_up() && self.ranks[i].export.is_none() && !hangs(self, i) {
                self.step_if_due(i);
            }
        }
    }

    /// Whether an export blocks the rank: its own, or under DP attention that of any rank.
    pub(super) fn is_blocked(&self, rank: &Rank) -> bool {
        rank.export.is_some() || (self.config.dp_attention && self.ranks.iter().any(|r| r.export.is_some()))
    }

    pub(super) fn has_work(&self, rank: &Rank) -> bool {
        let works = |r: &Rank| self.config.load.at(r.dp, self.now).running > 0;
        if self.config.dp_attention { self.ranks.iter().any(works) } else { works(rank) }
    }

    fn idle_publication(&self) -> Duration {
        Duration::from_secs(if self.config.version >= Version::V0_5_16 { 5 } else { 30 })
    }

    fn step_if_due(&mut self, i: usize) {
        let rank = &self.ranks[i];
        if rank.next_step.is_some_and(|at| at > self.now) || self.is_blocked(rank) {
            return;
        }
        if self.has_work(rank) {
            self.step(i);
        } else {
            self.idle(i);
        }
    }

    fn idle(&mut self, i: usize) {
        let (now, publication) = (self.now, self.idle_publication());
        let rank = &mut self.ranks[i];
        rank.next_step = None;
        if rank.idle_since.is_none() {
            (rank.idle_since, rank.gauges_stale, rank.decodes) = (Some(now), true, 0);
            (rank.snapshot, rank.last_running) = ((now, RankLoad::default()), 0);
        }
        if rank.gauges_stale && rank.idle_since.is_some_and(|t| now >= t + publication) {
            (rank.reported, rank.gauges_stale) = (RankLoad::default(), false);
        }
    }

    fn step(&mut self, i: usize) {
        let load = self.config.load.at(self.ranks[i].dp, self.now);
        let forward = self.ranks[i].forward + 1;
        let new_work = load.running > self.ranks[i].last_running;
        let prefills = new_work || (load.running > 0 && forward.is_multiple_of(DECODES_PER_PREFILL));
        let stage = if prefills { Stage::Extend } else { Stage::Decode };
        match self.ranks[i].profiler.before_step(forward, stage) {
            StepAction::None => {}
            StepAction::Start(stage) => self.open_window(i, stage),
            // The step runs after the file is written.
            StepAction::Stop => return self.close_window(i, None).unwrap_or_default(),
            StepAction::Crash => {
                let dp = self.ranks[i].dp;
                return self.kill_scheduler(
                    dp,
                    "TypeError: '>' not supported between instances of 'int' and 'NoneType'",
                );
            }
        }
        let takes = self.step_time(i, load);
        let now = self.now;
        let rank = &mut self.ranks[i];
        rank.forward = forward;
        rank.profiler.after_step(load.running, stage);
        rank.busy_in_window += takes;
        rank.next_step = Some(now + takes);
        (rank.last_running, rank.idle_since) = (load.running, None);
        if load.running > 0 {
            self.report(i, load, stage);
        }
    }

    /// About what was measured: 3 ms, and 30 us for each request (160 us while profiled).
    fn step_time(&self, i: usize, own: RankLoad) -> Duration {
        let batch = if self.config.dp_attention {
            self.ranks.iter().map(|r| self.config.load.at(r.dp, self.now).running).max().unwrap_or(0)
        } else {
            own.running
        };
        let each = if self.ranks[i].profiler.open().is_some() { 160 } else { 30 };
        let usual = Duration::from_micros(3_000 + each * u64::from(batch));
        usual.mul_f64(self.config.faults.slowness(self.ranks[i].dp))
    }

    fn report(&mut self, i: usize, load: RankLoad, stage: Stage) {
        let now = self.now;
        let interval = self.config.decode_log_interval.max(1);
        let version = self.config.version;
        let usage = load.tokens as f64 / KV_TOKENS as f64;
        let rank = &mut self.ranks[i];
        let line = match stage {
            Stage::Extend => Some(lines::prefill(version, load, usage, 200 + (rank.forward % 200) as u32)),
            Stage::Decode => {
                rank.decodes += 1;
                rank.decodes.is_multiple_of(interval).then(|| lines::decode(version, load, usage))
            }
        };
        if stage == Stage::Extend || rank.decodes.is_multiple_of(15) {
            rank.snapshot = (now, load);
        }
        let Some(line) = line else { return };
        rank.reported = load;
        if self.config.recorded_log.is_none() && !self.config.faults.silent.contains(&rank.dp) {
            let dp = rank.dp;
            self.log(Some(dp), &line);
        }
    }

    fn handle(&mut self, i: usize, message: Message) {
        match message {
            Message::Stop { .. } if self.config.profile_v2 => {
                self.kill_scheduler(self.ranks[i].dp, "NotImplementedError");
            }
            Message::Stop { call } => {
                if let Err(refusal) = self.close_window(i, Some(call)) {
                    self.reply(call, Err(refusal));
                }
            }
            Message::Start { call, order } => self.handle_start(i, call, order),
        }
    }

    fn handle_start(&mut self, i: usize, call: CallId, order: Order) {
        let version = self.config.version;
        let dp = self.ranks[i].dp;
        if self.config.profile_v2 {
            let sound = order.profile_by_stage && order.start_step.is_none() && !order.merge_profiles;
            if !sound || self.ranks[i].profiler.open().is_some() {
                return self.kill_scheduler(dp, "AssertionError");
            }
        }
        let waits = order.profile_by_stage || order.start_step.is_some_and(|s| s > 0);
        let starts = order.starts_anything();
        let rank = &mut self.ranks[i];
        let was_open = rank.profiler.open().is_some();
        let configured = rank.profiler.configure(order, rank.forward, version);
        if waits {
            return self.reply(call, configured);
        }
        // Like the real server, this ignores the refusal and starts the window.
        if was_open && self.config.faults.torch_raises_on_second_start {
            let error = "RuntimeError: Profiler is already enabled on this thread";
            if version < Version::V0_5_16 {
                return self.kill_scheduler(dp, error);
            }
            self.ranks[i].profiler.forget();
            return self.reply(call, Err(Refusal::InProgress));
        }
        if starts {
            self.open_window(i, None);
            // Starting torch's profiler delays the next step.
            let ready = self.now + self.start_takes();
            self.ranks[i].next_step = self.ranks[i].next_step.map(|at| at.max(ready));
        }
        self.reply(call, Ok(()));
    }

    fn open_window(&mut self, i: usize, stage: Option<Stage>) {
        let now = self.now;
        let rank = &mut self.ranks[i];
        rank.profiler.start(now, stage);
        rank.busy_in_window = Duration::ZERO;
        let order = rank.profiler.order();
        let dir = order.output_dir.as_deref().unwrap_or(&self.config.default_output_dir);
        let line = lines::starts(self.config.version, stage, dir, order.id());
        let dp = rank.dp;
        self.log(Some(dp), &line);
    }
}
