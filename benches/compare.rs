//! `cargo bench --bench compare [-- FOLDER]`: CPU seconds and peak memory of comparing a capture,
//! beside what inflating its files alone takes. Without a folder it makes eight ranks of Kineto JSON
//! in the layout that torch writes, about 20 MB each before gzip.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use skewtrap::observe::trace::open;

/// CPU seconds of this process and of its children that ended, to a hundredth.
fn cpu_s() -> (f64, f64) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<f64> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .map(|f| f.parse().unwrap_or(0.0))
        .collect();
    let of = |i: usize| fields.get(i).copied().unwrap_or(0.0) / 100.0;
    (of(11) + of(12), of(13) + of(14))
}

/// Peak memory of a running process in MB.
fn peak_mb(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

/// One rank's file; the rank `slow` takes longer in attention and arrives last.
fn write_rank(dir: &Path, rank: usize, steps: usize) {
    let mut text = String::from(
        "{\n  \"schemaVersion\": 1,\n  \"baseTimeNanoseconds\": 1790000000000000000,\n  \"traceEvents\": [\n",
    );
    let mut now = 5_432_109_876_000.0;
    for step in 0..steps {
        for layer in 0..32 {
            let late = if rank == 3 { 50.0 } else { 0.0 };
            let names = [
                ("nvjet_tst_128x64_64x8", 21.0),
                ("_fwd_grouped_kernel_stage1", 62.0 + late),
                ("ncclDevKernel_AllReduce", 70.0 - late),
            ];
            for (name, us) in names {
                let us = us + f64::from((step * 31 + layer * 7) as u32 % 13) / 10.0;
                let _ = write!(
                    text,
                    "  {{\n    \"ph\": \"X\", \"cat\": \"cpu_op\", \"name\": \"aten::mm\", \"pid\": 4000, \"tid\": 4000,\n    \"ts\": {now:.3}, \"dur\": 15.001,\n    \"args\": {{\n      \"External id\": {step},\"Record function id\": 0, \"Input Dims\": [[64, 4096], [4096, 1536]], \"Ev Idx\": {layer}\n    }}\n  }},\n  {{\n    \"ph\": \"X\", \"cat\": \"kernel\", \"name\": \"{name}\", \"pid\": {rank}, \"tid\": 7,\n    \"ts\": {now:.3}, \"dur\": {us:.3},\n    \"args\": {{\n      \"External id\": 7,\"queued\": 0, \"device\": {rank}, \"context\": 1,\n      \"stream\": 7, \"correlation\": {layer},\n      \"grid\": [512, 1, 1],\n      \"block\": [256, 1, 1]\n    }}\n  }},\n"
                );
                now += us + 1.1;
            }
        }
        now += 4000.0;
    }
    text.push_str("  {\n    \"name\": \"Record Window End\", \"ph\": \"i\", \"s\": \"g\",\n    \"pid\": \"\", \"tid\": \"\", \"ts\": 1.0\n  }\n  ]\n}\n");
    let file = fs::File::create(dir.join(format!("bench-TP-{rank}.trace.json.gz"))).expect("writable");
    let mut gz = GzEncoder::new(file, Compression::default());
    gz.write_all(text.as_bytes()).expect("writable");
    gz.finish().expect("writable");
}

fn main() {
    let given = std::env::args().skip(1).find(|a| !a.starts_with("--")).map(PathBuf::from);
    let temporary = tempfile::tempdir().expect("a temporary folder");
    let dir = given.clone().unwrap_or_else(|| temporary.path().to_owned());
    if given.is_none() {
        (0..8).for_each(|rank| write_rank(&dir, rank, 300));
    }
    let mut bytes = 0u64;
    let before = cpu_s().0;
    let mut buffer = vec![0; 256 << 10];
    for entry in fs::read_dir(&dir).expect("a folder").flatten() {
        let mut from = open(&entry.path()).expect("readable");
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            bytes += n as u64;
        }
    }
    let inflating = cpu_s().0 - before;
    println!("{:.0} MB of JSON; inflating alone {inflating:.2} CPU-s", bytes as f64 / 1e6);
    for _ in 0..3 {
        let (before, started) = (cpu_s().1, Instant::now());
        let mut child = Command::new(env!("CARGO_BIN_EXE_skewtrap"))
            .arg("compare")
            .arg(&dir)
            .stdout(Stdio::null())
            .spawn()
            .expect("it runs");
        let mut peak = 0.0f64;
        while child.try_wait().expect("it is ours").is_none() {
            peak = peak.max(peak_mb(child.id()));
            std::thread::sleep(Duration::from_millis(5));
        }
        let (cpu, wall) = (cpu_s().1 - before, started.elapsed().as_secs_f64());
        println!("skewtrap compare: {cpu:.2} CPU-s, {wall:.2} s wall, peak {peak:.0} MB");
    }
}
