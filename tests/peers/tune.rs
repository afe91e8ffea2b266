//! `skewtrap tune` over a recording.

use crate::beside::recording;

#[test]
fn tune_counts_firings_for_each_bound_on_a_recording() {
    let Some(loads) = recording("sglang-0.5.16-dp4/loads.jsonl.gz") else { return };
    let out = assert_cmd::Command::cargo_bin("skewtrap")
        .expect("the binary is built")
        .args(["tune", "--loads", &loads.display().to_string(), "--rules", "preset:kv-usage-skew", "--json"])
        .output()
        .expect("it runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let tried = report["rules"][0]["tried"].as_array().expect("bounds");
    let firings: Vec<u64> = tried.iter().map(|t| t["firings"].as_u64().expect("a count")).collect();
    assert!(
        firings[0] >= 1 && firings.is_sorted_by(|a, b| a >= b),
        "a stricter bound never fires more: {firings:?}"
    );
}
