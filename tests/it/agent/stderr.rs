//! An agent whose log nobody reads goes on, and stops its windows.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use crate::support::agent::skewtrap;
use crate::support::stage;
use skewtrap::demo::sglang::World;

/// A pipe that takes nothing more: its end that is read, and the other.
fn full_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    let (reader, mut writer) = std::io::pipe().unwrap();
    let flags = fcntl_getfl(&writer).unwrap();
    fcntl_setfl(&writer, flags | OFlags::NONBLOCK).unwrap();
    for size in [4096, 1] {
        while writer.write_all(&vec![b'x'; size]).is_ok() {}
    }
    fcntl_setfl(&writer, flags).unwrap();
    (reader, writer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_is_stopped_at_its_deadline_though_nobody_reads_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().display();
    fs::create_dir_all(dir.path().join("profiles")).unwrap();
    let double = stage::play(World::new(stage::config(&[(9, 0), (8, 0)]), stage::begin()), dir.path()).await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let yaml = format!(
        "targets: [{{ name: server, url: '{}', logs: ['{at}/server.log'], poll: 200ms }}]
capture: {{ http: {{ output_dir: '{at}/profiles', num_steps: 1000, deadline: 500ms, accept_risk: [server_timer] }} }}
rules: [{{ name: skew, signal: load, trigger: {{ max_over_mean: 5, for: 60s }} }}]
keep: {{ min_free: 1MiB }}
state_dir: '{at}/state'
incident_dir: '{at}/incidents'
listen: 127.0.0.1:{port}
",
        double.url
    );
    fs::write(dir.path().join("skewtrap.yaml"), yaml).unwrap();
    let (_reader, writer) = full_pipe();
    let mut command = skewtrap(dir.path());
    // Every sample is a line.
    command.args(["run", "--config", "skewtrap.yaml", "--log-level", "trace"]);
    let agent = command.stdout(Stdio::null()).stderr(writer).spawn().unwrap();
    let _agent = stage::Running(agent);
    let posts = |path: &str| double.requests().iter().filter(|r| r.path == path).count();
    let begun = || double.requests().iter().filter(|r| r.path.starts_with("/v1/loads")).count() > 10;
    stage::until(dir.path(), "a watch of the ranks", begun, String::new).await;
    let taken = Command::new(env!("CARGO_BIN_EXE_skewtrap"))
        .args(["capture", "start", "--agent", &format!("http://127.0.0.1:{port}"), "--state-dir"])
        .arg(dir.path().join("state"))
        .output()
        .unwrap();
    assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
    let sent = || format!("{:#?}", double.requests());
    stage::until(dir.path(), "the stop", || posts("/stop_profile") > 0, sent).await;
    assert_eq!(posts("/start_profile"), 1);
}

#[test]
fn a_configuration_that_is_read_again_is_answered_for_though_nobody_reads_what_is_wrong_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().display();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let yaml = format!(
        "targets: [{{ name: server, logs: ['{at}/server.log'] }}]
rules: [{{ name: skew, signal: load, trigger: {{ max_over_mean: 5, for: 60s }} }}]
state_dir: '{at}/state'
incident_dir: '{at}/incidents'
listen: 127.0.0.1:{port}
"
    );
    let file = dir.path().join("skewtrap.yaml");
    fs::write(dir.path().join("server.log"), "").unwrap();
    fs::write(&file, &yaml).unwrap();
    let (_reader, writer) = full_pipe();
    let mut command = skewtrap(dir.path());
    let agent = command.args(["run", "--config", "skewtrap.yaml"]).stdout(Stdio::null()).stderr(writer);
    let _agent = stage::Running(agent.spawn().unwrap());
    let asked = |command: &str| {
        let url = format!("http://127.0.0.1:{port}");
        let output =
            skewtrap(dir.path()).args([command, "--agent", &url, "--state-dir", "state"]).output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let is_up = (0..600).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        asked("status").contains("of 1 rule")
    });
    assert!(is_up, "{}", asked("status"));
    fs::write(&file, yaml.replace("max_over_mean", "max_over_meen")).unwrap();
    let told = asked("reload");
    assert!(told.contains("max_over_meen"), "{told}");
}
