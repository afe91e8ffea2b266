//! What `replay` says of recordings that are missing, damaged or cut, through the real binary.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;

fn replay(args: &[&str]) -> Output {
    let mut command = Command::cargo_bin("skewtrap").expect("the binary is built");
    command.current_dir(env!("CARGO_MANIFEST_DIR")).arg("replay").args(args).output().expect("it runs")
}

fn told(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// A folder for recordings.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path: PathBuf = self.0.path().join(name);
        fs::write(&path, bytes).expect("written");
        path.display().to_string()
    }
}

/// Lines of two ranks, a second apart.
fn log(seconds: u32) -> String {
    let line = |i: u32| {
        let (second, rank) = (i / 2, i % 2);
        let clock = format!("{:02}:{:02}", second / 60, second % 60);
        format!(
            "[2026-11-24 03:{clock} DP{rank}] Decode batch, #running-req: {}, #queue-req: 0\n",
            20 + i * 7 % 5
        )
    };
    (0..2 * seconds).map(line).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    zipped.write_all(bytes).expect("into memory");
    zipped.finish().expect("into memory")
}

const LOADS: &str = r#"{"t": 1795492086.5, "body": {"loads": [{"dp_rank": 0, "num_running_reqs": 3, "num_waiting_reqs": 1}]}}
"#;

#[test]
fn a_recording_that_is_missing_is_named_with_exit_status_2() {
    for kind in ["--log", "--metrics", "--loads"] {
        let out = replay(&[kind, "/nowhere/server.log"]);
        assert_eq!(out.status.code(), Some(2), "{}", told(&out));
        assert!(told(&out).contains("cannot read /nowhere/server.log: No such file"), "{}", told(&out));
    }
}

#[test]
fn a_recording_of_which_nothing_was_understood_is_a_failure() {
    let folder = Folder::new();
    let empty = folder.file("empty.log", b"");
    for log in ["README.md", &empty] {
        let out = replay(&["--log", log]);
        assert_eq!(out.status.code(), Some(1), "{log}: {}", told(&out));
        assert!(told(&out).contains(" lines, 0 samples, "), "{log}: {}", told(&out));
        assert!(told(&out).contains("nothing was understood, so no rule was judged"), "{}", told(&out));
    }
}

#[test]
fn a_gzip_that_breaks_off_is_read_up_to_there_and_summed_up() {
    let folder = Folder::new();
    let whole = gzip(log(3000).as_bytes());
    let cut = folder.file("server.log.gz", &whole[..whole.len() * 2 / 3]);
    let loads = folder.file("loads.jsonl", LOADS.as_bytes());
    for args in [&["--log", &cut][..], &["--log", &cut, "--loads", &loads]] {
        let out = replay(args);
        let told = told(&out);
        assert_eq!(out.status.code(), Some(2), "{told}");
        assert!(told.contains("server.log.gz breaks off in the middle of its gzip data"), "{told}");
        let sums = told.lines().find(|l| l.ends_with(" 1 dropped")).expect(&told);
        let lines: u32 = sums.split(' ').next().and_then(|n| n.parse().ok()).expect("a count");
        assert!((3000..6000).contains(&lines), "{sums}");
    }
}

#[test]
fn a_line_of_loads_that_was_cut_is_dropped_and_counted() {
    let folder = Folder::new();
    let (half, _) = LOADS.split_at(40);
    let loads = folder.file("loads.jsonl", format!("{LOADS}{half}\n{LOADS}{half}").as_bytes());
    let out = replay(&["--loads", &loads]);
    assert!(out.status.success(), "{}", told(&out));
    assert!(told(&out).contains("0 lines, 6 samples, 2 dropped"), "{}", told(&out));
    let out = replay(&["--loads", &folder.file("other.jsonl", half.as_bytes())]);
    assert_eq!(out.status.code(), Some(2), "{}", told(&out));
    assert!(told(&out).contains("line 1 is not"), "{}", told(&out));
}

#[test]
fn what_is_no_number_is_dropped_and_counted_in_every_kind_of_recording() {
    let folder = Folder::new();
    let batch =
        "[2026-11-24 03:48:06 DP0] Decode batch, #running-req: 4, #queue-req: 1, gen throughput (token/s): 5";
    let bad = batch.replace(": 5", ": nan").replace("#queue-req: 1", "#queue-req: many");
    let cut = &batch[..batch.find("ue-req: 1").expect("it is there")];
    let vllm = "INFO 03-11 06:16:52 [loggers.py:257] Engine 000: Avg prompt throughput: 0.0 tokens/s, Running: nan reqs";
    let log = folder.file("server.log", format!("{batch}\n{bad}\n{vllm}\n{cut}").as_bytes());
    let out = replay(&["--log", &log]);
    assert!(told(&out).contains(" 4 dropped"), "{}", told(&out));
    let page = "#@ 1795492086.5\nsglang:num_running_reqs{dp_rank=\"0\"} NaN\nsglang:num_running_reqs{dp_rank=\"1\"} 3\nsglang:num_runn";
    let out = replay(&["--metrics", &folder.file("metrics.txt", page.as_bytes())]);
    assert!(told(&out).contains("0 lines, 1 samples, 2 dropped"), "{}", told(&out));
    let wrong = LOADS.replace("\"num_running_reqs\": 3", "\"num_running_reqs\": \"3\"");
    let out = replay(&["--loads", &folder.file("loads.jsonl", wrong.as_bytes())]);
    assert!(told(&out).contains(" 1 dropped"), "{}", told(&out));
}

#[test]
fn a_line_without_end_is_read_to_its_bound_and_counted() {
    let folder = Folder::new();
    let (before, after) = (log(1), log(2));
    let long = "x".repeat(3 << 20);
    let log = folder.file("server.log", format!("{before}{long}\n{after}").as_bytes());
    let loads = folder.file("loads.jsonl", LOADS.as_bytes());
    for args in [&["--log", &log][..], &["--log", &log, "--loads", &loads]] {
        let out = replay(args);
        assert!(told(&out).contains("7 lines, ") && told(&out).contains(" 1 dropped"), "{}", told(&out));
    }
}

#[test]
fn whole_recordings_of_real_servers_drop_nothing() {
    let dir = Path::new("tests/data/recordings");
    let path = |name: &str| dir.join(name).display().to_string();
    for log in ["dp4/server.stamped.log.gz", "cpu-dp2/server.log.gz"] {
        let out = replay(&["--log", &path(log)]);
        assert!(told(&out).contains(" 0 dropped"), "{}", told(&out));
    }
    for loads in ["dp4/loads.jsonl.gz", "cpu-dp2/loads.jsonl.gz"] {
        let out = replay(&["--loads", &path(loads)]);
        assert!(told(&out).contains(" 0 dropped"), "{}", told(&out));
    }
}

#[test]
fn a_firing_whose_data_were_away_for_a_while_goes_on_with_its_onset_and_one_capture() {
    let folder = Folder::new();
    let mut whole = String::new();
    let file = fs::File::open("src/demo/data/loads.jsonl.gz").expect("the demo's recording");
    flate2::read::MultiGzDecoder::new(file).read_to_string(&mut whole).expect("whole gzip");
    // It fires at ...126.6; then nothing comes for five seconds.
    let at = |line: &str| -> f64 {
        let t: serde_json::Value = serde_json::from_str(line).expect("JSON");
        t["t"].as_f64().expect("a time")
    };
    let with_gap: String = whole
        .lines()
        .filter(|l| !(1_795_492_127.0..1_795_492_132.0).contains(&at(l)))
        .fold(String::new(), |text, line| text + line + "\n");
    let said = replay(&["--loads", &folder.file("loads.jsonl", with_gap.as_bytes())]);
    let said = String::from_utf8(said.stdout).expect("text");
    let goes_on = said.lines().find(|l| l.contains("it goes on")).expect("its data came back");
    assert!(goes_on.contains("capture: would have started already"), "nothing was captured: {goes_on}");
    let lines = |text: &str| -> Vec<serde_json::Value> {
        let out = replay(&["--loads", &folder.file("loads.jsonl", text.as_bytes()), "--json"]);
        let of_rule = |l: &serde_json::Value| l["rule"] == "dp-load-skew";
        let stdout = String::from_utf8(out.stdout).expect("text");
        stdout.lines().map(|l| serde_json::from_str(l).expect("JSON")).filter(of_rule).collect()
    };
    let (whole, broken) = (lines(&whole), lines(&with_gap));
    let states = |lines: &[serde_json::Value]| -> Vec<String> {
        lines.iter().map(|l| l["state"].as_str().expect("a word").to_owned()).collect()
    };
    assert_eq!(states(&whole), ["idle", "firing", "idle"]);
    assert_eq!(states(&broken), ["idle", "firing", "unknown", "firing", "idle"]);
    let (first, back) = (&broken[1], &broken[3]);
    assert_eq!((&first["capture"], &first["resumed"]), (&"would_start".into(), &serde_json::Value::Null));
    assert_eq!((&back["capture"], &back["resumed"]), (&"done".into(), &true.into()));
    for key in ["onset", "onset_error_s", "rank", "side"] {
        assert_eq!(first[key], back[key], "{key}");
    }
    assert_eq!(broken.iter().filter(|l| l["capture"] == "would_start").count(), 1);
}
