//! `skewtrap doctor` against a double: what it says of a good server, and of everything that is wrong.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::support::agent::{run, skewtrap};
use crate::support::stage::{Stage, config, until};
use skewtrap::clock::wall_time;
use skewtrap::demo::sglang::{Config, Faults};

const BUSY: [(u32, u32); 2] = [(9, 0), (8, 0)];

async fn doctor(dir: &Path, url: &str, more: &[&str]) -> (i32, String) {
    let (log, state) = (dir.join("server.log"), dir.join("doctor-state"));
    let (log, state) = (log.display().to_string(), state.display().to_string());
    let fixed = ["doctor", "--url", url, "--log", &log, "--state-dir", &state];
    run(dir, &[&fixed, more].concat()).await
}

#[tokio::test]
async fn a_good_server_passes_and_its_one_step_window_brings_every_file() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::of(config(&BUSY), dir.path()).await;
    let base = stage.base();
    let (code, said) = doctor(dir.path(), &stage.double.url, &["--output-dir", &base, "--take-window"]).await;
    assert_eq!(code, 0, "{said}");
    for wanted in
        ["SGLang 0.5.16, dp 2", "every rank has work", "would post /start_profile", "window: 2 files"]
    {
        assert!(said.contains(wanted), "{wanted} is missing in\n{said}");
    }
    let starts = stage.double.requests().into_iter().filter(|r| r.path == "/start_profile").count();
    assert_eq!(starts, 1);
    assert!(stage.is_closed_and_alive().await);
}

#[tokio::test]
async fn what_would_be_refused_is_said_with_what_mends_it_and_nothing_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { profile_v2: true, ..config(&[(0, 0), (0, 0)]) };
    let stage = Stage::of(config, dir.path()).await;
    let missing = dir.path().join("nowhere").display().to_string();
    let (code, said) =
        doctor(dir.path(), &stage.double.url, &["--output-dir", &missing, "--take-window"]).await;
    assert_eq!(code, 1, "{said}");
    for wanted in
        ["no rank had work in the last 2 s", "nowhere is not there", "create it, writable by the server"]
    {
        assert!(said.contains(wanted), "{wanted} is missing in\n{said}");
    }
    assert!(stage.double.requests().iter().all(|r| r.path != "/start_profile"));
}

#[tokio::test]
async fn an_idle_server_is_told_in_one_warning_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::of(config(&[(0, 0), (0, 0)]), dir.path()).await;
    let (code, said) = doctor(dir.path(), &stage.double.url, &["--output-dir", &stage.base()]).await;
    assert_eq!(code, 0, "a warning is no failure: {said}");
    let idle: Vec<&str> = said.lines().filter(|line| line.contains("no rank had work")).collect();
    assert_eq!(idle.len(), 1, "{said}");
    assert!(idle[0].starts_with("warn") && idle[0].contains("send the server a request or two"), "{said}");
}

#[tokio::test]
async fn doctor_says_which_configuration_it_reads_and_which_it_does_not_and_where_the_log_goes() {
    let dir = tempfile::tempdir().unwrap();
    let file = "targets: [{ name: mine, url: 'http://127.0.0.1:9' }]\n";
    std::fs::write(dir.path().join("skewtrap.yaml"), file).unwrap();
    let doctor = |args: &[&str]| {
        let mut command = assert_cmd::Command::cargo_bin("skewtrap").unwrap();
        let output = command.current_dir(dir.path()).env_remove("SKEWTRAP_CONFIG").arg("doctor").args(args);
        let output = output.output().unwrap();
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
    };
    let read = doctor(&[]);
    assert!(read.contains("the configuration is skewtrap.yaml"), "{read}");
    assert!(read.contains("add `logs: [/path/of/its.log]` to target `mine` in skewtrap.yaml"), "{read}");
    let unread = doctor(&["--url", "http://127.0.0.1:9"]);
    assert!(unread.contains("skewtrap.yaml is not used, because --url was given"), "{unread}");
    assert!(unread.contains("give it with --log"), "{unread}");
}

#[tokio::test]
async fn beside_a_running_agent_doctor_names_the_command_that_asks_it_for_a_window() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::of(config(&BUSY), dir.path()).await;
    let _agent = skewtrap::act::state::State::open(&dir.path().join("doctor-state")).unwrap();
    let base = stage.base();
    let (code, said) = doctor(dir.path(), &stage.double.url, &["--output-dir", &base, "--take-window"]).await;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("`skewtrap capture start --reason"), "{said}");
    assert!(!said.contains("--state-dir"), "another folder has another budget: {said}");
    assert!(stage.double.requests().iter().all(|r| r.path != "/start_profile"));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_said_in_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let (code, said) = doctor(dir.path(), "http://127.0.0.1:9", &[]).await;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("http://127.0.0.1:9/server_info was not reached"), "{said}");
    assert!(said.contains("health: cannot connect to it"), "{said}");
}

#[tokio::test]
async fn a_log_whose_stamps_are_of_another_zone_is_warned_of_with_what_mends_it() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::of(config(&BUSY), dir.path()).await;
    let (log, state) = (dir.path().join("of-another-zone.log"), dir.path().join("doctor-state"));
    // Written now, and stamped an hour ago.
    let stamp = (wall_time() - Duration::from_secs(3600)).to_string();
    std::fs::write(
        &log,
        format!("[{} DP0 TP0] Decode batch, #running-req: 4, #queue-req: 0\n", &stamp[..19]),
    )
    .unwrap();
    let state = state.display().to_string();
    let mut said_of = Vec::new();
    for zone in ["UTC", "Etc/GMT+1"] {
        let (url, log) = (&stage.double.url, log.display());
        let text = format!("zone: {zone}\ntargets: [{{ name: server, url: '{url}', logs: ['{log}'] }}]\n");
        std::fs::write(dir.path().join("of-zone.yaml"), text).unwrap();
        let (code, said) =
            run(dir.path(), &["doctor", "--config", "of-zone.yaml", "--state-dir", &state]).await;
        assert_eq!(code, 0, "a warning is no failure: {said}");
        said_of.push(
            said.lines().filter(|line| line.contains("stamped")).map(str::to_owned).collect::<Vec<_>>(),
        );
    }
    let told = "warn  server  log: its lines are stamped 1 h before they arrive: is `zone`";
    assert!(matches!(&said_of[0][..], [line] if line.starts_with(told)), "{said_of:?}");
    assert!(said_of[1].is_empty(), "{said_of:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_store_doctor_takes_no_window_beside_the_lease_of_the_pool() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::of(config(&BUSY), dir.path()).await;
    let (url, base, log) = (&stage.double.url, stage.base(), stage.double.log_path.display());
    let (file, store) = (dir.path().join("skewtrap.yaml"), dir.path().join("store"));
    let target = format!("targets: [{{ name: server, url: \"{url}\", logs: [\"{log}\"] }}]");
    std::fs::create_dir(&store).unwrap();
    std::fs::write(&file, format!("{target}\nstore: 'file://{}'\npool: p\n", store.display())).unwrap();
    let (file, state) = (file.display().to_string(), dir.path().join("state").display().to_string());
    let fixed = ["doctor", "--config", &file, "--state-dir", &state, "--output-dir", &base];
    let (code, said) = run(dir.path(), &[&fixed[..], &["--take-window"]].concat()).await;
    assert!(code == 1 && said.contains("under the lease of the pool"), "{said}");
    assert!(stage.double.requests().iter().all(|r| r.path != "/start_profile"));
}

#[tokio::test]
async fn an_engine_that_the_server_contradicts_is_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::of(config(&BUSY), dir.path()).await;
    let doctor = async |engine: &str| {
        let text = format!(
            "targets: [{{ name: mine, url: '{}', engine: {engine} }}]\nstate_dir: state\n",
            stage.double.url
        );
        std::fs::write(dir.path().join("skewtrap.yaml"), text).unwrap();
        let (_, said) = run(dir.path(), &["doctor", "--config", "skewtrap.yaml"]).await;
        said.lines().find(|line| line.contains("  engine: ")).map(str::to_owned)
    };
    let told = doctor("vllm").await.expect("a warning");
    assert!(
        told.starts_with(
            "warn  mine  engine: `engine: vllm` is written, and the server says that it is SGLang"
        ),
        "{told}"
    );
    assert_eq!(doctor("sglang").await, None);
    assert_eq!(doctor("auto").await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_ends_doctor_in_a_window_closes_that_and_no_other_is_opened() {
    for signal in ["INT", "TERM", "HUP"] {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let faults = Faults { slow_export: Duration::from_secs(60), ..Faults::default() };
        let slow = Stage::of(Config { faults, ..config(&BUSY) }, first.path()).await;
        let other = Stage::of(config(&BUSY), second.path()).await;
        let log = |stage: &Stage| stage.double.log_path.display().to_string();
        let (url, other_url) = (&slow.double.url, &other.double.url);
        let text = format!(
            "targets:\n- {{ name: a, url: '{url}', logs: ['{}'] }}\n- {{ name: b, url: '{other_url}', logs: ['{}'] }}\n",
            log(&slow),
            log(&other)
        );
        std::fs::write(first.path().join("skewtrap.yaml"), text).unwrap();
        let mut command = tokio::process::Command::from(skewtrap(first.path()));
        command.args(["doctor", "--config", "skewtrap.yaml", "--state-dir", "doctor-state", "--take-window"]);
        command.args(["--output-dir", &slow.base()]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let doctor = command.spawn().unwrap();
        let posts =
            |stage: &Stage, path: &str| stage.double.requests().iter().filter(|r| r.path == path).count();
        let id = doctor.id().unwrap().to_string();
        let (output, ()) = tokio::join!(doctor.wait_with_output(), async {
            until(first.path(), "a window", || posts(&slow, "/start_profile") > 0, String::new).await;
            std::process::Command::new("kill").args(["-s", signal, &id]).status().unwrap();
        });
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!(output.status.code(), Some(1), "{signal}: {said}");
        // It was seen through to its end, or is left to the next agent: what became of it is told.
        assert!(said.contains("  a  window: "), "{signal}: {said}");
        assert_eq!(posts(&other, "/start_profile"), 0, "{signal}: {said}");
        assert!(said.contains("a signal ended this"), "{signal}: {said}");
    }
}

#[cfg(feature = "fleet")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_ends_a_doctor_whose_store_does_not_answer() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::of(config(&BUSY), dir.path()).await;
    let store = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", store.local_addr().unwrap());
    let (url, log) = (&stage.double.url, stage.double.log_path.display());
    let text = format!(
        "targets: [{{ name: server, url: '{url}', logs: ['{log}'] }}]\nstore: 's3://bucket'\npool: p\n"
    );
    std::fs::write(dir.path().join("skewtrap.yaml"), text).unwrap();
    let mut command = tokio::process::Command::from(skewtrap(dir.path()));
    command.args(["doctor", "--config", "skewtrap.yaml", "--state-dir", "state", "--take-window"]);
    command.env("AWS_ENDPOINT_URL", endpoint).env("AWS_ALLOW_HTTP", "true");
    command.env("AWS_ACCESS_KEY_ID", "k").env("AWS_SECRET_ACCESS_KEY", "s").env("AWS_REGION", "r");
    let mut doctor = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let _asked =
        tokio::time::timeout(Duration::from_secs(60), store.accept()).await.expect("it asks").unwrap();
    let id = rustix::process::Pid::from_raw(doctor.id().unwrap().try_into().unwrap()).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(5), doctor.wait()).await;
    assert_eq!(ended.expect("it ends").unwrap().code(), Some(1));
}
