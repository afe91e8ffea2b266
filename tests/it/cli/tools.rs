//! The tools around rules, through the real binary.

use std::fs;
use std::process::Output;

use assert_cmd::Command;

fn skewtrap(args: &[&str]) -> Output {
    let mut command = Command::cargo_bin("skewtrap").expect("the binary is built");
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(args).output().expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_shipped_rules_pass_their_tests() {
    let out = skewtrap(&["test", "rules"]);
    assert!(out.status.success(), "{}{}", text(&out.stdout), text(&out.stderr));
    assert!(!text(&out.stdout).contains("FAILED"));
}

#[test]
fn check_tells_every_error_and_exits_with_1() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("mine.yaml");
    fs::write(&file, "rules:\n  - name: a\n    signal: laod\n    trigger: { cv: 0.2 }\n  - naem: b\n")
        .expect("written");
    let out = skewtrap(&["check", &file.display().to_string()]);
    let told = text(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{told}");
    for wanted in ["mine.yaml:3:13", "did you mean `load`?", "mine.yaml:5:5", "did you mean `name`?"] {
        assert!(told.contains(wanted), "no {wanted} in:\n{told}");
    }
}

#[test]
fn check_tells_of_a_label_that_is_misspelled() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("mine.yaml");
    let rules = "rules:\n  - { name: a, signal: load, across: dp_rnak, trigger: { cv: 0.2 } }\n";
    fs::write(&file, rules).expect("written");
    let out = skewtrap(&["check", &file.display().to_string()]);
    let told = text(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{told}");
    for wanted in ["mine.yaml:2:38", "no built-in source has a label `dp_rnak`", "did you mean `dp_rank`?"] {
        assert!(told.contains(wanted), "no {wanted} in:\n{told}");
    }
    let own = "signals: [{ name: mine, pattern: 'x=(?<value>[0-9]+) pod=(?<pod>[a-z]+)' }]\n";
    fs::write(&file, format!("{own}{}", rules.replace("dp_rnak", "pod"))).expect("written");
    let out = skewtrap(&["check", &file.display().to_string()]);
    assert!(out.status.success(), "a pattern has labels of its own: {}", text(&out.stderr));
}

#[test]
fn check_shows_where_each_setting_comes_from() {
    let out = skewtrap(&["check", "rules/kv-usage-skew.yaml", "--effective"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let told = text(&out.stdout);
    let origin_of = |key: &str| told.lines().find(|l| l.trim_start().starts_with(key)).map(str::to_owned);
    assert!(origin_of("trigger.for").is_some_and(|l| l.contains("rules/kv-usage-skew.yaml:")), "{told}");
    assert!(origin_of("severity").is_some_and(|l| l.contains("warning")), "{told}");
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("skewtrap.yaml");
    fs::write(&file, "targets: [{ url: 'http://a:1', api_key: { env: KEY } }]\nkeep: { incidents: 9 }\n")
        .expect("written");
    let config = text(&skewtrap(&["check", &file.display().to_string(), "--effective"]).stdout);
    for wanted in ["target a:1:", "api_key", "{env: KEY}", "keep.incidents", "skewtrap.yaml:2"] {
        assert!(config.contains(wanted), "no {wanted} in:\n{config}");
    }
    assert!(origin_of("limits.cooldown").is_some_and(|l| l.ends_with("default")), "{told}");
}

#[test]
fn a_test_file_with_no_expectation_or_a_missed_one_fails() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("x.test.yaml");
    let run = |body: &str| {
        fs::write(&file, body).expect("written");
        skewtrap(&["test", &file.display().to_string()])
    };
    let series = "series: [{ signal: load, ranks: [20x30, 20x30] }]";
    let none = run(&format!("rules: preset:dp-load-skew\ntests:\n  - {{ name: t, {series} }}\n"));
    assert_eq!(none.status.code(), Some(1));
    assert!(text(&none.stderr).contains("it tests nothing"), "{}", text(&none.stderr));
    let missed = "expect: [{ at: 20s, state: firing, rank: { dp_rank: 1 } }]";
    let missed = run(&format!("rules: preset:dp-load-skew\ntests:\n  - {{ name: t, {series}, {missed} }}\n"));
    assert_eq!(missed.status.code(), Some(1));
    assert!(
        text(&missed.stdout).contains("at 20.0s it should be firing, but is idle"),
        "{}",
        text(&missed.stdout)
    );
}

#[test]
fn tune_varies_each_condition_of_a_rule_in_turn_with_the_others_as_they_are() {
    let log = "tests/data/recordings/dp4/server.stamped.log.gz";
    let args = ["tune", "--log", log, "--rules", "preset:kv-usage-skew"];
    let told = text(&skewtrap(&args).stdout);
    for title in [
        "kv-usage-skew: max_over_mean(kv_usage) above its bound, the other condition as it is, over",
        "kv-usage-skew: any_member(kv_usage) above its bound, the other condition as it is, over",
    ] {
        assert!(told.contains(title), "no `{title}` in:\n{told}");
    }
    assert_eq!(told.matches("<- the rule's").count(), 2, "{told}");
    let json = skewtrap(&[&args[..], &["--json"]].concat());
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    let of = |i: usize| -> Vec<u64> {
        let tried = report["rules"][i]["tried"].as_array().expect("bounds");
        tried.iter().map(|t| t["firings"].as_u64().expect("a count")).collect()
    };
    let at_own = |i: usize| {
        let tried = report["rules"][i]["tried"].as_array().expect("bounds");
        let own = tried.iter().find(|t| t["bound"] == report["rules"][i]["bound"]).expect("its own bound");
        own["firings"].clone()
    };
    assert_eq!(at_own(0), at_own(1), "at the rule's own bounds both tables are of the same rule");
    assert!(of(0) != of(1), "each bound matters in its own way");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_and_init_look_at_a_server() {
    let dir = tempfile::tempdir().expect("a folder");
    let double = skewtrap::demo::incident::start(dir.path(), 1.0).await.expect("the double starts");
    let url = double.url.clone();
    let rules = dir.path().join("rules.yaml");
    let preset = fs::read_to_string("rules/dp-attention-tokens.yaml").expect("a preset");
    fs::write(&rules, preset).expect("written");
    let beyond = dir.path().join("beyond.yaml");
    let rule = |name: &str, keys: &str| format!("  - {{ name: {name}, signal: load, {keys} }}\n");
    let of_sizes = [
        rule("high", "trigger: { max_over_mean: 100 }"),
        rule("either", "trigger: { any: [{ max_over_mean: 100 }, { cv: 0.5 }] }"),
        rule("both", "trigger: { all: [{ jain: 0.2 }, { cv: 0.5 }] }"),
        rule("stranger", "trigger: { cv: 0.5 }, only_if: 'value(load, 9) > 1'"),
        rule("spared", "trigger: { cv: 0.5 }, only_if: 'ranks(load) < 8 || value(load, 9) > 1'"),
        rule("alone", "within: [target, role, dp_rank], across: tp_rank, trigger: { cv: 0.5 }"),
        rule("many", "min_members: 9, trigger: { cv: 0.5 }"),
        rule("servers", "across: target, within: role, trigger: { cv: 0.5 }"),
    ];
    fs::write(&beyond, format!("rules:\n{}", of_sizes.concat())).expect("written");
    let owned = dir.path().join("owned.yaml");
    fs::write(
        &owned,
        format!(
            "targets: [{{ url: '{url}' }}]\nsignals:\n  running: {{ metric: 'sglang:num_running_reqs' }}\n  typo: {{ metric: 'sglang:num_runing_reqs' }}\nrules:\n{}{}",
            "  - { name: sees, signal: running, trigger: { cv: 0.5 } }\n",
            "  - { name: blind, signal: typo, trigger: { cv: 0.5 } }\n"
        ),
    )
    .expect("written");
    let owned = owned.display().to_string();
    let config = dir.path().join("skewtrap.yaml");
    let paths = (rules.display().to_string(), config.display().to_string(), beyond.display().to_string());
    let outputs = skewtrap::world::blocking(move || {
        let (rules, config, beyond) = paths;
        let default = skewtrap(&["check", "--against", &url, "--json"]);
        let attention = skewtrap(&["check", &rules, "--against", &url]);
        let sizes = skewtrap(&["check", &beyond, "--against", &url]);
        let own = skewtrap(&["check", &owned, "--against", &url]);
        let init = skewtrap(&["init", &url, "--out", &config]);
        let again = skewtrap(&["init", &url, "--out", &config]);
        let checked = skewtrap(&["check", &config, "--against", &url]);
        (default, attention, sizes, own, init, again, checked)
    });
    let (default, attention, sizes, own, init, again, checked) = outputs.await.expect("the tools ran");

    let report: serde_json::Value = serde_json::from_slice(&default.stdout).expect("JSON");
    assert!(default.status.success(), "{report:#}");
    assert!(report["rules"].as_array().expect("rules").iter().all(|r| r["could_fire"] == true), "{report:#}");

    let told = text(&attention.stdout);
    assert_eq!(attention.status.code(), Some(1), "{told}");
    assert!(
        told.contains("COULD NEVER FIRE") && told.contains("SGLANG_ENABLE_METRICS_DP_ATTENTION=1"),
        "{told}"
    );

    assert_eq!(sizes.status.code(), Some(1));
    insta::assert_snapshot!(text(&sizes.stdout));

    let told = text(&own.stdout);
    assert_eq!(own.status.code(), Some(1), "{told}");
    assert!(told.contains("signal running arrives from sglang:num_running_reqs: DP0, DP1"), "{told}");
    assert!(
        told.contains("no `sglang:num_runing_reqs`") && told.contains("it has `sglang:num_running_reqs`"),
        "{told}"
    );

    assert!(init.status.success(), "{}", text(&init.stderr));
    let written = fs::read_to_string(&config).expect("a configuration");
    assert!(written.contains("preset:dp-load-skew") && written.contains("engine: sglang"), "{written}");
    assert_eq!(again.status.code(), Some(2), "a file that is there stays");
    assert!(checked.status.success(), "{}{}", text(&checked.stdout), text(&checked.stderr));
}

#[test]
fn tests_of_rules_know_the_signals_that_users_own() {
    let dir = tempfile::tempdir().expect("a folder");
    let pages: String = (0..60)
        .map(|i| {
            // DP1's requests wait 2 s each from the thirtieth second on.
            let late = f64::from((i - 30).max(0)) * 2.0 * 5.0;
            let rank = |dp: u32, sum: f64| {
                format!(
                    "wait_seconds_sum{{dp_rank=\"{dp}\"}} {sum}\nwait_seconds_count{{dp_rank=\"{dp}\"}} {}\n",
                    5 * i
                )
            };
            format!(
                "#@ {}\n{}{}",
                1_795_492_000 + i,
                rank(0, f64::from(i) * 0.05),
                rank(1, f64::from(i) * 0.05 + late)
            )
        })
        .collect();
    fs::write(dir.path().join("pages.txt"), pages).expect("written");
    fs::write(
        dir.path().join("mine.yaml"),
        "rules: [{ name: mine, signal: wait, trigger: { max_minus_min: 0.5, for: 3s } },
                 { name: slow, signal: told, trigger: { max_minus_min: 5, for: 3s } }]\n",
    )
    .expect("written");
    fs::write(
        dir.path().join("mine.test.yaml"),
        "signals:
  wait: { metric: wait_seconds, stat: mean }
  told: { pattern: 'told=(?<value>[0-9]+) rank=(?<dp_rank>[0-9]+)' }
tests:
  - name: a rank whose requests wait fires by a metric of a page
    recording: { metrics: pages.txt }
    expect:
      - { rule: mine, at: '1795492028', state: idle }
      - { rule: mine, at: '1795492045', state: firing, rank: { dp_rank: 1 }, side: high }
  - name: and by the series of a test
    series: [{ signal: told, ranks: [1x20, 1x5 20x15] }]
    expect: [{ rule: slow, at: 15s, state: firing, rank: { dp_rank: 1 } }]
",
    )
    .expect("written");
    let out = skewtrap(&["test", &dir.path().display().to_string()]);
    assert!(out.status.success(), "{}{}", text(&out.stdout), text(&out.stderr));
}

#[test]
fn test_without_a_path_runs_what_lies_beside_the_rules_of_the_configuration() {
    let dir = tempfile::tempdir().expect("a directory");
    let run = || {
        let mut command = Command::cargo_bin("skewtrap").expect("the binary is built");
        command.current_dir(dir.path()).env_remove("SKEWTRAP_CONFIG").arg("test").output().expect("it runs")
    };
    let out = run();
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("name a file of tests"), "{}", text(&out.stderr));
    let write = |name: &str, of: &str| fs::write(dir.path().join(name), of).expect("written");
    fs::create_dir(dir.path().join("mine")).expect("a directory");
    write(
        "skewtrap.yaml",
        "targets: [{ url: 'http://127.0.0.1:30000' }]\nrules: [mine, alone.yaml, 'preset:slow-rank']\n",
    );
    write("mine/skew.yaml", "rules: [{ name: skew, signal: load, trigger: { max_over_mean: 1.5 } }]\n");
    write("alone.yaml", "rules: [{ name: alone, signal: load, trigger: { cv: 0.4 } }]\n");
    assert!(text(&run().stderr).contains("no *.test.yaml beside the rules that skewtrap.yaml names"));
    let test = |rule: &str| {
        format!(
            "tests:\n- name: it fires\n  series: [{{ signal: load, ranks: [1x20, 9x20] }}]\n  \
             expect: [{{ rule: {rule}, at: 15s, state: firing }}]\n"
        )
    };
    write("mine/skew.test.yaml", &test("skew"));
    write("alone.test.yaml", &test("alone"));
    let out = run();
    assert!(out.status.success(), "{}{}", text(&out.stdout), text(&out.stderr));
    assert!(text(&out.stderr).contains("2 tests, 0 failed"), "{}", text(&out.stderr));
    // A folder that is missing is an error, though the tests of the other pass.
    write("skewtrap.yaml", "targets: [{ url: 'http://127.0.0.1:30000' }]\nrules: [mine, missing]\n");
    let out = run();
    assert_eq!(out.status.code(), Some(1), "{}", text(&out.stderr));
    assert!(
        text(&out.stderr).contains("1 test, 0 failed, 1 file wrong and not run"),
        "{}",
        text(&out.stderr)
    );
}

#[test]
fn a_server_that_is_not_there_is_a_sentence_not_a_panic() {
    let out = skewtrap(&["check", "--against", "http://127.0.0.1:1"]);
    assert!(!out.status.success());
    let told = text(&out.stderr);
    assert!(told.contains("127.0.0.1:1") && !told.contains("panicked"), "{told}");
}

#[test]
fn an_address_that_is_none_is_said_to_be_none_and_a_server_that_is_away_to_be_away() {
    for command in [&["init", "foo"][..], &["check", "--against", "foo"]] {
        let out = skewtrap(command);
        let told = text(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{told}");
        assert!(told.contains("foo is no address of a server; write it as http://127.0.0.1:30000"), "{told}");
    }
    let told = text(&skewtrap(&["init", "http://127.0.0.1:9"]).stderr);
    assert!(told.contains("/server_info was not reached: Connection refused"), "{told}");
}

#[test]
fn test_counts_the_files_that_it_could_not_run() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("x.test.yaml");
    fs::write(&file, "tests:\n  - { name: a, series: [{ signal: load, ranks: [1x5, 1x5] }], expect: [] }\n")
        .expect("written");
    let out = skewtrap(&["test", &file.display().to_string()]);
    let told = text(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{told}");
    assert!(told.contains("the test expects nothing, so it tests nothing"), "{told}");
    assert!(told.contains("0 tests, 0 failed, 1 file wrong and not run"), "{told}");
}

#[test]
fn bad_bounds_types_and_names_are_all_told_at_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("bad.yaml");
    let rule = |keys: &str| format!("  - {{ signal: load, {keys} }}\n");
    let rules = [
        rule("name: a, trigger: { max_over_mean: high, for: 5 }, min_mean: lots"),
        rule("name: b, trigger: { cv: -1 }, only_if: mean(laod) > 2"),
        rule("name: c, trigger: { min_over_mean: 0.2 }, clear: { min_over_mean: 0.1 }"),
        rule("name: d, trigger: { cv: 0.5, gini: 0.5 }"),
        rule("name: d, trigger: { cv: 0.5 }"),
    ];
    fs::write(&file, format!("rules:\n{}", rules.concat())).expect("written");
    let told = text(&skewtrap(&["check", &file.display().to_string()]).stderr);
    for wanted in [
        "expected a number, found the text \"high\"",
        "expected a duration with its unit",
        "expected a number, found the text \"lots\"",
        "this bound is always exceeded: `cv` is 0 or more",
        "unknown signal `laod`; did you mean `load`?",
        "already holds where the trigger (0.2) fires: it would flap",
        "two statistics in one condition",
        "another rule is called `d`",
    ] {
        assert!(told.contains(wanted), "no `{wanted}` in:\n{told}");
    }
}

#[test]
fn several_sources_at_once_place_the_onset_where_each_alone_does() {
    let (loads, metrics) = ("src/demo/data/loads.jsonl.gz", "tests/data/recordings/dp4/metrics.txt.gz");
    let out = skewtrap(&["replay", "--loads", loads, "--metrics", metrics, "--json"]);
    let lines = text(&out.stdout);
    let firings: Vec<serde_json::Value> = lines
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON lines"))
        .filter(|l: &serde_json::Value| l["state"] == "firing")
        .collect();
    let firing = firings.iter().find(|f| f["rule"] == "dp-load-skew").expect("it fires");
    let error = firing["onset"].as_f64().expect("a time") - 1_795_492_121.33;
    assert!(error.abs() <= 2.0, "{firing}");
}

#[test]
fn tune_advises_nothing_for_a_rule_that_was_never_judged() {
    let out =
        skewtrap(&["tune", "--log", "tests/data/recordings/dp4/server.stamped.log.gz", "--rules", "rules"]);
    let told = text(&out.stdout);
    let of_experts = told.split("\n\n").find(|t| t.starts_with("expert-imbalance")).expect("it is told of");
    assert!(of_experts.contains("never judged here") && !of_experts.contains("advised"), "{of_experts}");
}

#[test]
fn a_folder_of_rules_may_name_receivers_of_its_configuration() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("mine.yaml");
    let rule = "rules:\n  - name: a\n    signal: load\n    across: dp_rank\n    trigger: { cv: 0.2 }\n    notify: [oncall]\n";
    fs::write(&file, rule).expect("written");
    let out = skewtrap(&["check", &file.display().to_string()]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    fs::write(&file, format!("{rule}receivers: [{{ name: other, stdout: {{}} }}]\n")).expect("written");
    let out = skewtrap(&["check", &file.display().to_string()]);
    assert!(text(&out.stderr).contains("no receiver is called `oncall`"), "{}", text(&out.stderr));
}

#[test]
fn an_address_that_is_none_is_refused_before_anything_starts() {
    for args in [
        &["run", "--url", "127.0.0.1:30000"][..],
        &["run", "--url", "http://127.0.0.1:99999"],
        &["why", "--agent", "127.0.0.1:9464"],
    ] {
        let out = skewtrap(args);
        let told = text(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{args:?}: {told}");
        assert!(told.contains("write http://HOST:PORT"), "{told}");
    }
}

#[test]
fn a_test_that_nothing_could_fail_fails_and_says_why() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("x.test.yaml");
    fs::write(dir.path().join("empty.log"), "").expect("written");
    let even = "series: [{ signal: load, ranks: [20x60, 20x60] }]";
    for (input, expect, wanted) in [
        (
            "recording: { log: empty.log }",
            "never: firing",
            "never firing proves nothing: up to 0.0s the rule was not judged (nothing of `load` arrives)",
        ),
        (
            "series: [{ signal: kv_usage, ranks: [0.2x60, 0.2x60] }]",
            "never: firing",
            "never firing proves nothing: up to 61.0s the rule was not judged (nothing of `load` arrives)",
        ),
        ("series: [{ signal: load, ranks: [20x60] }]", "never: firing", "has one member (dp_rank)"),
        (
            even,
            "never: firing, group: { target: b }",
            "no group target=b ever appears: there are server role=unified",
        ),
        (even, "at: 20s, state: warming, group: { target: b }", "no group target=b ever appears"),
        (
            even,
            "at: 20s, state: firing, rank: { dp_rank: 9 }",
            "it should be firing, but is idle; no rank dp_rank=9 ever appears",
        ),
        (even, "at: 200s, never: firing", "200.0s is after the end of what arrives, which is at 61.0s"),
        (even, "at: 200s, state: idle", "200.0s is after the end of what arrives, which is at 61.0s"),
        (even, "at: 900000000, state: idle", "is before the beginning of what arrives"),
    ] {
        let test = format!(
            "rules: preset:dp-load-skew\ntests:\n  - name: t\n    {input}\n    expect: [{{ {expect} }}]\n"
        );
        fs::write(&file, test).expect("written");
        let out = skewtrap(&["test", &file.display().to_string()]);
        let told = text(&out.stdout);
        assert_eq!(out.status.code(), Some(1), "{input} {expect}: {told}{}", text(&out.stderr));
        assert!(told.contains(wanted), "{input} {expect}: {told}");
    }
}

#[test]
fn a_preset_is_taken_wherever_a_file_of_rules_is() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("mine.yaml").display().to_string();
    let beside = dir.path().join("mine.test.yaml").display().to_string();
    fs::write(&file, "rules:\n  - preset:slow-rank\n").expect("written");
    let series = "series: [{ signal: gen_throughput, ranks: [900x30, 900x30] }, { signal: running_reqs, ranks: [9x30, 9x30] }]";
    fs::write(&beside, format!("tests:\n  - {{ name: t, {series}, expect: [{{ never: firing }}] }}\n"))
        .expect("written");
    let loads = "src/demo/data/loads.jsonl.gz";
    for args in [
        &["check", &file][..],
        &["check", "preset:slow-rank"],
        &["replay", "--loads", loads, "--rules", &file],
        &["replay", "--loads", loads, "--rules", "preset:slow-rank"],
        &["test", &beside],
    ] {
        let out = skewtrap(args);
        assert!(out.status.success(), "{args:?}: {}{}", text(&out.stdout), text(&out.stderr));
    }
    let told = text(&skewtrap(&["replay", "--loads", loads, "--rules", "preset:slow"]).stderr);
    assert!(told.contains("no shipped rule is called `slow`; did you mean `slow-rank`?"), "{told}");
}

#[test]
fn https_to_a_port_that_speaks_http_is_said_so() {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 512]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let told = text(&skewtrap(&["init", &format!("https://127.0.0.1:{port}")]).stderr);
    assert!(told.contains("that port speaks http, not https: write http://"), "{told}");
}

#[test]
fn output_into_a_pipe_that_is_closed_early_ends_the_command_with_the_status_of_what_it_found() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("wrong.yaml"), "rules: [{ naem: b }]\n").unwrap();
    for (arguments, status) in [
        (&["doctor", "--url", "http://127.0.0.1:9", "--state-dir", "state"][..], 1),
        (&["doctor", "--url", "http://127.0.0.1:9", "--state-dir", "state", "--json"], 1),
        (&["check", "wrong.yaml", "--json"], 1),
        (&["check", "--effective"], 0),
        (&["schema", "config"], 0),
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = crate::support::agent::skewtrap(dir.path())
            .args(arguments)
            .stdout(writer)
            .stderr(std::process::Stdio::piped())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}
