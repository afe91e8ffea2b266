//! Generates small but complete Kineto traces, as torch's profiler writes them, for the steps of a double:
//! process names, step annotations, and the kernels of an attention layer.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use flate2::Compression;
use flate2::write::GzEncoder;

/// The limit of steps in a trace, so that a window that is open for minutes does not fill the disk.
const MAX_STEPS: usize = 400;

/// Exports by the size of a rank's file, as on a real server (docs/engines.md).
#[derive(Clone, Debug)]
pub struct ExportLaw {
    /// Bytes of a step with GPU rows alone; with CPU rows it is two and a half times that, with stacks
    /// thirteen times.
    pub bytes_per_step: f64,
    /// Seconds for each megabyte, rank by rank.
    pub s_per_mb: Vec<f64>,
}

impl ExportLaw {
    /// How long a rank writes so many bytes.
    pub fn takes(&self, rank: u16, bytes: usize) -> Duration {
        let rate = self.s_per_mb.get(usize::from(rank)).copied().unwrap_or(1.1);
        Duration::from_secs_f64((bytes as f64 / 1e6 * rate).max(0.001))
    }

    /// The bytes of so many steps that take so many times as much as with GPU rows alone.
    pub fn bytes(&self, steps: usize, weight: f64) -> usize {
        (self.bytes_per_step * steps as f64 * weight) as usize
    }
}

/// The recording of a window on one rank.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    /// `sglang::scheduler_DP2`.
    pub process: String,
    /// Its process id.
    pub pid: u32,
    /// Each step's batch size, and whether it was a prefill.
    pub steps: Vec<(u32, bool)>,
}

impl Recorded {
    /// The trace as gzip.
    pub fn gzip(&self) -> Arc<[u8]> {
        gzip(self.json().to_string().as_bytes())
    }

    /// The trace as gzip of about that many bytes, or of as many as it takes: what a real one has more of
    /// is stood for by blanks that are not compressed.
    pub fn gzip_of(&self, bytes: Option<usize>) -> Arc<[u8]> {
        let (compressed, mut text) = (self.gzip(), self.json().to_string().into_bytes());
        let Some(bytes) = bytes.filter(|bytes| *bytes > text.len()) else { return compressed };
        text.resize(bytes, b' ');
        let mut encoder = GzEncoder::new(Vec::new(), Compression::none());
        encoder.write_all(&text).and_then(|()| encoder.finish()).map(Into::into).unwrap_or(compressed)
    }

    /// The trace as JSON. Attention grows with the batch and the rest does not, as in the recorded
    /// incident.
    pub fn json(&self) -> Value {
        let mut events = self.names();
        let mut at = 1_000_000.0;
        for (n, &(batch, prefill)) in self.steps.iter().take(MAX_STEPS).enumerate() {
            let kernels = [
                ("_fwd_grouped_kernel_stage1", 8.0 + 1.4 * f64::from(batch)),
                ("nvjet_tst_64x8_64x16_2x1_v_bz_TNT", 31.0),
                ("void flashinfer::norm::FusedAddRMSNormKernel<8u, __nv_bfloat16>", 4.0),
            ];
            let busy: f64 = kernels.iter().map(|(_, us)| us).sum();
            events.push(self.step(n, at, busy + 40.0, batch, prefill));
            let mut start = at + 20.0;
            for (i, (name, us)) in kernels.iter().enumerate() {
                let correlation = n * 10 + i + 1;
                events.push(json!({
                    "ph": "X", "cat": "kernel", "name": name, "pid": 0, "tid": 7, "ts": start, "dur": us,
                    "args": {"device": 0, "context": 1, "stream": 7, "correlation": correlation,
                             "grid": [batch.max(1), 1, 1], "block": [128, 1, 1]},
                }));
                events.push(json!({
                    "ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "pid": self.pid, "tid": self.pid,
                    "ts": start - 8.0, "dur": 3.0, "args": {"cbid": 211, "correlation": correlation},
                }));
                start += us;
            }
            at += 3_000.0 + 160.0 * f64::from(batch);
        }
        json!({
            "schemaVersion": 1,
            "deviceProperties": [{"id": 0, "name": "NVIDIA H200", "totalGlobalMem": 150_109_880_320_u64,
                                  "computeMajor": 9, "computeMinor": 0, "numSms": 132}],
            "distributedInfo": {"backend": "nccl", "rank": 0, "world_size": 1},
            "displayTimeUnit": "ms",
            "baseTimeNanoseconds": 1_790_857_026_000_000_000_u64,
            "traceEvents": events,
            "traceName": "/tmp/tmpdouble.json",
        })
    }

    fn names(&self) -> Vec<Value> {
        let meta = |name: &str, pid: u32, key: &str, value: &str| json!({"name": name, "ph": "M", "ts": 0, "pid": pid, "tid": 0, "args": {key: value}});
        vec![
            meta("process_name", self.pid, "name", &self.process),
            meta("process_labels", self.pid, "labels", "CPU"),
            meta("process_name", 0, "name", &self.process),
            meta("process_labels", 0, "labels", "GPU 0"),
        ]
    }

    fn step(&self, n: usize, ts: f64, dur: f64, batch: u32, prefill: bool) -> Value {
        let name = if prefill {
            format!("step[EXTEND bs=1 toks={}]", 200 + n)
        } else {
            format!("step[DECODE bs={batch}]")
        };
        json!({"ph": "X", "cat": "user_annotation", "name": name, "pid": self.pid, "tid": self.pid,
               "ts": ts, "dur": dur, "args": {"External id": n + 1, "Ev Idx": n}})
    }
}

/// Compresses `bytes` without name and time, so that equal input gives equal output.
pub fn gzip(bytes: &[u8]) -> Arc<[u8]> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).map(Into::into).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_generated_trace_is_whole_gzip_of_whole_json_and_names_its_rank() {
        let recorded = Recorded {
            process: "sglang::scheduler_DP2".into(),
            pid: 636,
            steps: vec![(239, false), (1, true)],
        };
        let mut text = String::new();
        flate2::read::GzDecoder::new(&*recorded.gzip()).read_to_string(&mut text).unwrap();
        let trace: Value = serde_json::from_str(&text).unwrap();
        let kernels =
            trace["traceEvents"].as_array().unwrap().iter().filter(|e| e["cat"] == "kernel").count();
        assert_eq!(kernels, 6);
        assert!(text.contains("sglang::scheduler_DP2") && text.contains("step[DECODE bs=239]"));
    }
}
