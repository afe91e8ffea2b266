//! How a rank works: it steps while it has requests, obeys its profiler before each step, reports
//! now and then, and does nothing at all while it writes a trace.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::decide::time::Time;
use crate::demo::exchange::{CallId, Effect};
use crate::demo::load::RankLoad;
use crate::demo::sglang::config::{Config, Version};
use crate::demo::sglang::order::Order;
use crate::demo::sglang::profile::{Closed, Profiler, Refusal, Stage, Turn};
use crate::demo::sglang::{World, lines};
use crate::demo::trace::{Recorded, gzip};

/// Tokens that the KV cache of one rank holds.
pub const KV_TOKENS: u64 = 200_000;

/// One prefill batch comes with about so many decode batches.
const DECODES_PER_PREFILL: u64 = 27;

/// The part of an export after which half of the file is on the disk: it is not written in one go.
const FIRST_PART: f64 = 0.7;

/// A data-parallel rank with its tensor-parallel peers.
#[derive(Debug)]
pub struct Rank {
    pub dp: u16,
    pub profiler: Profiler,
    pub export: Option<Export>,
    /// Starts and stops that wait for the end of an export.
    pub inbox: VecDeque<Message>,
    /// What the gauges of `/metrics` show: what it last reported.
    pub reported: RankLoad,
    /// What `/v1/loads` shows, and since when.
    pub snapshot: (Time, RankLoad),
    forward: u64,
    next_step: Option<Time>,
    /// Time spent in steps since the window opened; the rest of the window it idled.
    busy_in_window: Duration,
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

/// A trace being written.
#[derive(Debug)]
pub struct Export {
    began: Time,
    first_part_at: Option<Time>,
    pub until: Time,
    files: Vec<(String, Arc<[u8]>)>,
    done_line: String,
    merge: Option<Merge>,
    reply_to: Option<CallId>,
}

/// A merge of all ranks' files that follows the first rank's export.
#[derive(Debug)]
struct Merge {
    id: String,
    /// Nowhere when a prefix hides every file from the merger.
    path: Option<String>,
}

impl Merge {
    fn of(dir: &str, order: &Order) -> Self {
        let id = order.id().to_owned();
        let path = order.profile_prefix.is_none().then(|| format!("{dir}/merged-{id}.trace.json.gz"));
        Self { id, path }
    }
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
    /// When `rank` does something next of its own accord.
    pub(super) fn next_of_rank(&self, rank: &Rank) -> Option<Time> {
        if let Some(export) = &rank.export {
            let killed_at = export.began + self.config.watchdog;
            return Some(export.first_part_at.unwrap_or(export.until).min(killed_at));
        }
        if self.is_blocked(rank) {
            return None;
        }
        let wakes = rank.next_step.or_else(|| self.config.load.next_change(self.now));
        let publishes = rank.idle_since.filter(|_| rank.gauges_stale).map(|t| t + self.idle_publication());
        wakes.into_iter().chain(publishes).min()
    }

    pub(super) fn ranks_do_what_is_due(&mut self) {
        for i in 0..self.ranks.len() {
            if self.is_up() {
                self.export_goes_on(i);
            }
            while self.is_up() && self.ranks[i].export.is_none() {
                let Some(message) = self.ranks[i].inbox.pop_front() else { break };
                self.obey(i, message);
            }
        }
        for i in 0..self.ranks.len() {
            if self.is_up() && self.ranks[i].export.is_none() {
                self.step_if_due(i);
            }
        }
    }

    /// Whether a rank is kept from stepping by an export: its own, or under DP attention anybody's.
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
            Turn::None => {}
            Turn::Start(stage) => self.open_window(i, stage),
            // The step runs once the file is written.
            Turn::Stop => return self.close_window(i, None).unwrap_or_default(),
            Turn::Crash => {
                let dp = self.ranks[i].dp;
                return self.scheduler_dies(
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

    /// About what was measured: 3 ms and a little for each request, five times that little while profiled.
    fn step_time(&self, i: usize, own: RankLoad) -> Duration {
        let batch = if self.config.dp_attention {
            self.ranks.iter().map(|r| self.config.load.at(r.dp, self.now).running).max().unwrap_or(0)
        } else {
            own.running
        };
        let each = if self.ranks[i].profiler.open().is_some() { 160 } else { 30 };
        Duration::from_micros(3_000 + each * u64::from(batch))
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
        if self.config.recorded_log.is_none() {
            let dp = rank.dp;
            self.log(Some(dp), &line);
        }
    }

    fn obey(&mut self, i: usize, message: Message) {
        match message {
            Message::Stop { .. } if self.config.profile_v2 => {
                self.scheduler_dies(self.ranks[i].dp, "NotImplementedError");
            }
            Message::Stop { call } => {
                if let Err(refusal) = self.close_window(i, Some(call)) {
                    self.reply(call, Err(refusal));
                }
            }
            Message::Start { call, order } => self.obey_start(i, call, order),
        }
    }

    fn obey_start(&mut self, i: usize, call: CallId, order: Order) {
        let version = self.config.version;
        let dp = self.ranks[i].dp;
        if self.config.profile_v2 {
            let sound = order.profile_by_stage && order.start_step.is_none() && !order.merge_profiles;
            if !sound || self.ranks[i].profiler.open().is_some() {
                return self.scheduler_dies(dp, "AssertionError");
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
        // The refusal is dropped here, as the server drops it, and the window starts all the same.
        if was_open && self.config.faults.torch_raises_on_second_start {
            let error = "RuntimeError: Profiler is already enabled on this thread";
            if version < Version::V0_5_16 {
                return self.scheduler_dies(dp, error);
            }
            self.ranks[i].profiler.forget();
            return self.reply(call, Err(Refusal::InProgress));
        }
        if starts {
            self.open_window(i, None);
            // Starting torch's profiler keeps the rank from its next step.
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

    fn close_window(&mut self, i: usize, reply_to: Option<CallId>) -> Result<(), Refusal> {
        let closed = self.ranks[i].profiler.stop()?;
        let dp = self.ranks[i].dp;
        let dir = closed.order.output_dir.clone().unwrap_or_else(|| self.config.default_output_dir.clone());
        self.log(Some(dp), &lines::stops(closed.open.stage));
        if self.config.faults.unwritable.iter().any(|u| dir.starts_with(u.as_str())) {
            self.scheduler_dies(dp, &format!("PermissionError: [Errno 13] Permission denied: '{dir}'"));
            return Ok(());
        }
        let takes = self.export_time(&self.ranks[i], &closed);
        let merges = closed.order.merge_profiles && dp == 0;
        let files = files_of(&self.config, dp, &dir, &closed);
        if merges {
            self.log(Some(dp), "Starting profile merge...");
        }
        self.ranks[i].next_step = None;
        self.ranks[i].export = Some(Export {
            began: self.now,
            first_part_at: Some(self.now + takes.mul_f64(FIRST_PART)),
            until: self.now + takes,
            files,
            done_line: format!("Profiling done. Traces are saved to: {dir}"),
            merge: merges.then(|| Merge::of(&dir, &closed.order)),
            reply_to,
        });
        Ok(())
    }

    fn export_time(&self, rank: &Rank, closed: &Closed) -> Duration {
        let cost = self.config.export;
        if !closed.order.records_a_trace() {
            return Duration::from_millis(1);
        }
        let window = self.now.since(closed.open.since);
        let idle = window.saturating_sub(rank.busy_in_window).as_secs_f64();
        let weight: f64 = closed.open.steps.iter().map(|(batch, _)| 1.0 + f64::from(*batch) / 20.0).sum();
        let (stacks, idle_rate) =
            if closed.order.with_stack() { (cost.stacks, cost.idle_stacks) } else { (1.0, cost.idle) };
        let seconds =
            cost.base.as_secs_f64() + cost.per_step.as_secs_f64() * weight * stacks + idle * idle_rate;
        let merge = if closed.order.merge_profiles && rank.dp == 0 { cost.merge } else { 1.0 };
        Duration::from_secs_f64(seconds * merge) + self.config.faults.slow_export
    }

    fn export_goes_on(&mut self, i: usize) {
        let Some(export) = &mut self.ranks[i].export else { return };
        if export.until > self.now && self.now >= export.began + self.config.watchdog {
            return self.watchdog_kills(i);
        }
        if export.first_part_at.is_some_and(|at| at <= self.now) {
            export.first_part_at = None;
            self.write_first_part(i);
        }
        if self.is_up() && self.ranks[i].export.as_ref().is_some_and(|e| e.until <= self.now) {
            self.end_export(i);
        }
    }

    fn write_first_part(&mut self, i: usize) {
        let rank = &self.ranks[i];
        let (dp, gone) = (rank.dp, self.config.faults.missing.contains(&rank.dp));
        for (path, content) in rank.export.iter().filter(|_| !gone).flat_map(|e| &e.files) {
            let content = content[..content.len() / 2].into();
            self.effects.push(Effect::File { path: path.clone(), content, rank: dp });
        }
        if self.config.faults.disk_full {
            self.scheduler_dies(dp, "OSError: [Errno 28] No space left on device");
        }
    }

    fn end_export(&mut self, i: usize) {
        let dp = self.ranks[i].dp;
        let Some(export) = self.ranks[i].export.take() else { return };
        let faults = &self.config.faults;
        let stays_half = faults.truncated.contains(&dp) || faults.missing.contains(&dp);
        if !stays_half {
            for (path, content) in &export.files {
                self.effects.push(Effect::File { path: path.clone(), content: content.clone(), rank: dp });
            }
        }
        let tail = export.merge.map_or_else(String::new, |m| self.merge(dp, &m));
        self.log(Some(dp), &(export.done_line + &tail));
        if let Some(call) = export.reply_to {
            self.reply(call, Ok(()));
        }
    }

    // The merge reads what lies there by now: a peer that still writes is dropped.
    fn merge(&mut self, dp: u16, merge: &Merge) -> String {
        let id = &merge.id;
        let Some(path) = &merge.path else {
            return format!(" Merge failed: No trace files found for profile_id: {id}");
        };
        let whole = self.ranks.iter().filter(|r| r.export.is_none()).count();
        let merged = format!(r#"{{"traceEvents":[],"merged_from":"{id}","files":{whole}}}"#);
        self.effects.push(Effect::File { path: path.clone(), content: gzip(merged.as_bytes()), rank: dp });
        format!(" Merged trace: {path} (Events: 0, Files: {whole})")
    }

    fn watchdog_kills(&mut self, i: usize) {
        let seconds = self.config.watchdog.as_secs();
        let line = format!("Scheduler watchdog timeout (self.watchdog_timeout={seconds}, self.soft=False)");
        let dp = self.ranks[i].dp;
        self.log(Some(dp), &line);
        self.log(
            None,
            "Subprocess scheduler_0 (pid=3262) crashed with exit code -3. Triggering SIGQUIT for cleanup...",
        );
        self.log(None, lines::sigquit(self.config.version));
        self.die("watchdog timeout");
    }
}

/// The files that a rank and its tensor-parallel peers write.
fn files_of(config: &Config, dp: u16, dir: &str, closed: &Closed) -> Vec<(String, Arc<[u8]>)> {
    if !closed.order.records_a_trace() {
        return Vec::new();
    }
    let given = config.recorded_traces.as_ref().and_then(|t| t.get(usize::from(dp)).cloned());
    let named = |tp: u16| {
        let process = if config.dp > 1 {
            format!("sglang::scheduler_DP{dp}")
        } else {
            format!("sglang::scheduler_TP{tp}")
        };
        let generated = || {
            Recorded {
                process,
                pid: 633 + u32::from(dp) * 8 + u32::from(tp),
                steps: closed.open.steps.clone(),
            }
            .gzip()
        };
        (format!("{dir}/{}", file_name(config, dp, tp, closed)), given.clone().unwrap_or_else(generated))
    };
    config.tp_ranks(dp).map(named).collect()
}

fn file_name(config: &Config, dp: u16, tp: u16, closed: &Closed) -> String {
    let stage = closed.open.stage.map_or_else(String::new, |s| match config.version {
        _ if config.profile_v2 => format!("-{}", s.word().to_lowercase()),
        Version::V0_4_7 => format!("-ForwardMode.{}", s.word()),
        _ => format!("-{}", s.word()),
    });
    let id = closed.order.id();
    let named_by_dp = config.dp > 1 && config.version >= Version::V0_5_9;
    let dp = if named_by_dp { format!("-DP-{dp}") } else { String::new() };
    let prefix = closed.order.profile_prefix.as_ref().map_or_else(String::new, |p| format!("{p}-"));
    format!("{prefix}{id}-TP-{tp}{dp}{stage}.trace.json.gz")
}
