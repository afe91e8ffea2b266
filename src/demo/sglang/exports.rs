//! How a rank writes its trace: its duration, the partial files, the file names, and its failures.

use std::sync::Arc;
use std::time::Duration;

use crate::demo::exchange::{CallId, Effect};
use crate::demo::sglang::config::{Config, Version};
use crate::demo::sglang::order::Order;
use crate::demo::sglang::profile::{Closed, Refusal};
use crate::demo::sglang::{World, lines};
use crate::demo::trace::{Recorded, gzip};
use skewtrap_trace::time::Time;

/// The part of an export after which half of the file is on disk: it is not written atomically.
const FIRST_PART: f64 = 0.7;

/// A trace being written.
#[derive(Debug)]
pub struct Export {
    began: Time,
    first_part_at: Option<Time>,
    until: Time,
    files: Vec<(String, Arc<[u8]>)>,
    done_line: String,
    merge: Option<Merge>,
    reply_to: Option<CallId>,
}

/// A merge of all ranks' files that follows the first rank's export.
#[derive(Debug)]
struct Merge {
    id: String,
    /// `None` when a file name prefix keeps the merger from finding any file.
    path: Option<String>,
}

impl Merge {
    fn of(dir: &str, order: &Order) -> Self {
        let id = order.id().to_owned();
        let path = order.profile_prefix.is_none().then(|| format!("{dir}/merged-{id}.trace.json.gz"));
        Self { id, path }
    }
}

impl Export {
    /// The time of its next event.
    pub fn due(&self, watchdog: Duration) -> Time {
        self.first_part_at.unwrap_or(self.until).min(self.began + watchdog)
    }
}

impl World {
    pub(super) fn close_window(&mut self, i: usize, reply_to: Option<CallId>) -> Result<(), Refusal> {
        let closed = self.ranks[i].profiler.stop()?;
        let dp = self.ranks[i].dp;
        let dir = closed.order.output_dir.clone().unwrap_or_else(|| self.config.default_output_dir.clone());
        self.log(Some(dp), &lines::stops(closed.open.stage));
        if self.config.faults.unwritable.iter().any(|u| dir.starts_with(u.as_str())) {
            self.kill_scheduler(dp, &format!("PermissionError: [Errno 13] Permission denied: '{dir}'"));
            return Ok(());
        }
        let merges = closed.order.merge_profiles && dp == 0;
        let files = files_of(&self.config, dp, &dir, &closed);
        let takes = match &self.config.export.law {
            Some(law) => {
                let largest = files.iter().map(|(_, content)| content.len()).max().unwrap_or_default();
                law.takes(dp, largest) + self.config.faults.slow_export
            }
            None => self.export_time(i, &closed),
        };
        let takes = takes.mul_f64(self.config.faults.slowness(dp));
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

    /// How long the rank is busy writing what its window recorded.
    fn export_time(&self, i: usize, closed: &Closed) -> Duration {
        let (rank, cost) = (&self.ranks[i], &self.config.export);
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

    pub(super) fn advance_export(&mut self, i: usize) {
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
            self.kill_scheduler(dp, "OSError: [Errno 28] No space left on device");
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

    /// The merge reads the files that exist by now; a peer that is still writing is left out.
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
    let of_cpu = config.recorded_cpu_traces.as_ref().filter(|_| closed.order.records_cpu());
    let given = of_cpu.or(config.recorded_traces.as_ref()).and_then(|t| t.get(usize::from(dp)).cloned());
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
            .gzip_of(
                config
                    .export
                    .law
                    .as_ref()
                    .map(|law| law.bytes(closed.open.steps.len(), closed.order.weight())),
            )
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
