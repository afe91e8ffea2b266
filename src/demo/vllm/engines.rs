//! vLLM's engines while a window is open on them: they count iterations and flush traces.

use std::sync::Arc;
use std::time::Duration;

use crate::demo::exchange::Effect;
use crate::demo::load::RankLoad;
use crate::demo::trace::Recorded;
use crate::demo::vllm::World;
use crate::demo::vllm::config::Version;
use skewtrap_trace::time::Time;

/// The options of `/start_profile`.
#[derive(Clone, Debug, Default)]
pub struct Session {
    pub prefix: Option<String>,
    pub max_iterations: Option<u64>,
    pub delay_iterations: u64,
}

/// One data-parallel engine.
#[derive(Debug, Default)]
pub struct Engine {
    pub open: Option<Open>,
    pub flush: Option<Flush>,
    pub next_step: Option<Time>,
}

/// A window in which torch records.
#[derive(Debug, Default)]
pub struct Open {
    pub skip: u64,
    pub limit: Option<u64>,
    pub prefix: Option<String>,
    pub steps: Vec<(u32, bool)>,
}

/// A trace being written.
#[derive(Debug)]
pub struct Flush {
    pub until: Time,
    pub files: Vec<(String, Arc<[u8]>)>,
}

impl World {
    pub(super) fn open(&mut self, i: usize, session: &Session) {
        let now = self.now;
        let engine = &mut self.engines[i];
        engine.open = Some(Open {
            skip: session.delay_iterations,
            limit: session.max_iterations.filter(|n| *n > 0),
            prefix: session.prefix.clone(),
            steps: Vec::new(),
        });
        engine.next_step = Some(now);
    }

    pub(super) fn advance_engine(&mut self, i: usize) {
        let now = self.now;
        if let Some(flush) = self.engines[i].flush.take_if(|f| f.until <= now) {
            let rank = i as u16;
            for (path, content) in flush.files {
                self.effects.push(Effect::File { path, content, rank });
            }
        }
        let load = self.config.load.at(i as u16, now);
        let engine = &mut self.engines[i];
        let Some(open) = &mut engine.open else { return };
        if engine.flush.is_some() || engine.next_step.is_some_and(|at| at > now) {
            return;
        }
        // An idle engine runs dummy batches, which the profiler does not count.
        engine.next_step = (load.running > 0).then(|| now + step_time(load));
        if load.running == 0 {
            return;
        }
        if open.skip > 0 {
            open.skip -= 1;
            return;
        }
        open.steps.push((load.running, false));
        if open.limit.is_some_and(|n| open.steps.len() as u64 >= n) {
            self.flush(i);
        }
    }

    pub(super) fn flush(&mut self, i: usize) {
        let Some(open) = self.engines[i].open.take() else { return };
        let files = self.files_of(i as u16, &open);
        let largest = files.iter().map(|(_, content)| content.len()).max().unwrap_or_default();
        let takes = match &self.config.export {
            Some(law) => law.takes(i as u16, largest),
            None => self.config.flush_per_step * open.steps.len().min(10_000) as u32,
        } + self.config.faults.slow_flush;
        self.engines[i].next_step = None;
        self.engines[i].flush = Some(Flush { until: self.now + takes, files });
    }

    fn files_of(&self, dp: u16, open: &Open) -> Vec<(String, Arc<[u8]>)> {
        let Some(dir) =
            self.config.profiler_dir.as_ref().filter(|_| !self.config.faults.missing.contains(&dp))
        else {
            return Vec::new();
        };
        let process = format!("VLLM::EngineCore_DP{dp}");
        let mut trace = Recorded { process, pid: 40 + u32::from(dp), steps: open.steps.clone() }
            .gzip_of(self.config.export.as_ref().map(|law| law.bytes(open.steps.len(), 2.5)));
        if self.config.faults.truncated.contains(&dp) {
            trace = trace[..trace.len() / 2].into();
        }
        let ns = self.now.nanos() + i64::from(dp);
        let prefix = open.prefix.as_ref().map_or_else(String::new, |p| format!("{p}_"));
        if self.config.version == Version::V0_11 {
            return vec![(format!("{dir}/host_4{dp}-rank-0.{ns}.pt.trace.json.gz"), trace)];
        }
        // The only worker of each data-parallel engine is rank0.
        let name = format!("{prefix}dp{dp}_pp0_tp0_dcp0_ep0_rank0");
        let table: Arc<[u8]> = b"Name    Self CUDA %    Self CUDA    # of Calls\n".as_slice().into();
        vec![
            (format!("{dir}/{name}.{ns}.pt.trace.json.gz"), trace),
            (format!("{dir}/{name}.profiler_out0.txt"), table),
        ]
    }
}

fn step_time(load: RankLoad) -> Duration {
    Duration::from_micros(5_000 + 100 * u64::from(load.running))
}
