//! Reading an existing log to its end: `cargo bench -p skewtrap-peers --bench tail`.
//!
//! Compares our reader with linemux and with the simplest reader possible. `crates/peers/tests/it/linemux.rs` shows
//! what linemux loses in rotations; this shows its speed.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};

use divan::Bencher;
use divan::counter::BytesCount;
use linemux::MuxedLines;
use skewtrap::observe::tail::Follow;
use tempfile::NamedTempFile;

const LINES: usize = 100_000;

fn main() {
    divan::main();
}

fn log() -> (NamedTempFile, BytesCount) {
    let mut file = NamedTempFile::new().expect("a file");
    let line = "[2026-11-24 03:48:06 DP2 TP0] Decode batch, #running-req: 44, #token: 66740, token usage: 0.10, cuda graph: True, gen throughput (token/s): 2712.03, #queue-req: 3\n";
    file.write_all(line.repeat(LINES).as_bytes()).expect("written");
    (file, BytesCount::new(line.len() * LINES))
}

#[divan::bench]
fn ours(bencher: Bencher) {
    let (log, bytes) = log();
    bencher.counter(bytes).bench_local(|| {
        let mut follow = Follow::new(log.path(), true);
        let (mut out, mut lines) = (Vec::new(), 0);
        loop {
            out.clear();
            let polled = follow.poll(1 << 20, false, &mut out).expect("readable");
            lines += memchr::memchr_iter(b'\n', &out).count();
            if !polled.more {
                assert_eq!(lines, LINES);
                return;
            }
        }
    });
}

#[divan::bench]
fn simplest(bencher: Bencher) {
    let (log, bytes) = log();
    bencher.counter(bytes).bench_local(|| {
        let mut reader = BufReader::new(File::open(log.path()).expect("readable"));
        let (mut line, mut lines) = (Vec::new(), 0);
        while reader.read_until(b'\n', &mut line).expect("readable") > 0 {
            lines += 1;
            line.clear();
        }
        assert_eq!(lines, LINES);
    });
}

#[divan::bench(sample_count = 10)]
fn linemux(bencher: Bencher) {
    let (log, bytes) = log();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    bencher.counter(bytes).bench_local(|| {
        runtime.block_on(async {
            let mut lines = MuxedLines::new().expect("notices are to be had");
            lines.add_file_from_start(log.path()).await.expect("the file is there");
            for _ in 0..LINES {
                lines.next_line().await.expect("a line").expect("a line");
            }
        });
    });
}
