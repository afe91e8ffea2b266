//! The doors of the running agent, through the real binary: its addresses, its token, its names.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

/// The program, at home in `dir` and with nothing of the test's own environment that matters to it.
fn skewtrap(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skewtrap"));
    command.current_dir(dir).env("NO_COLOR", "1").env("HOME", dir).stdin(Stdio::null());
    for name in ["STATE_DIRECTORY", "XDG_STATE_HOME", "SKEWTRAP_TOKEN", "SKEWTRAP_AGENT", "SKEWTRAP_LOG"] {
        command.env_remove(name);
    }
    command
}

fn words_of(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// An agent beside an empty log, and what it says.
struct Agent {
    process: Child,
    said: Receiver<String>,
}

impl Agent {
    fn start(dir: &Path, arguments: &[&str]) -> Self {
        fs::write(dir.join("server.log"), "").expect("written");
        let mut process = skewtrap(dir)
            .arg("run")
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let stderr = BufReader::new(process.stderr.take().expect("a pipe"));
        let (tx, said) = channel();
        thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| tx.send(line)));
        Self { process, said }
    }

    /// The rest of the first line that holds `words`.
    fn until(&mut self, words: &str) -> String {
        let mut heard = Vec::new();
        loop {
            let line = self.said.recv_timeout(Duration::from_secs(60));
            let line = line.unwrap_or_else(|_| panic!("it never said `{words}`, only {heard:#?}"));
            if let Some((_, rest)) = line.split_once(words) {
                return rest.to_owned();
            }
            heard.push(line);
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn on_loopback_the_agent_makes_its_own_token_and_the_command_line_finds_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut agent = Agent::start(dir.path(), &["--log", "server.log", "--listen", "127.0.0.1:0"]);
    let url = agent.until("status page and API on ");
    let asked = skewtrap(dir.path()).args(["capture", "stop", "--agent", &url]).output().expect("it runs");
    let said = words_of(&asked);
    assert!(said.contains("no window of the agent's is open"), "it is let in: {said}");
    let elsewhere = skewtrap(dir.path())
        .args(["capture", "stop", "--state-dir", "elsewhere", "--agent", &url])
        .output()
        .expect("it runs");
    assert!(words_of(&elsewhere).contains("this needs a token"), "{}", words_of(&elsewhere));
}

/// Asks under a name that is not an address.
fn get(url: &str, host: &str, path: &str) -> String {
    let address = url.trim().trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).expect("it listens");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn a_name_of_the_configuration_reaches_the_agent_and_another_does_not() {
    let dir = tempfile::tempdir().expect("a folder");
    let config =
        "targets: [{ name: server, logs: [server.log] }]\nlisten: 127.0.0.1:0\nhosts: [gpu7.example.com]\n";
    fs::write(dir.path().join("skewtrap.yaml"), config).expect("written");
    let mut agent = Agent::start(dir.path(), &["--config", "skewtrap.yaml"]);
    let url = agent.until("status page and API on ");
    let known = get(&url, "GPU7.example.com:9464", "/api/v1/status");
    assert!(known.starts_with("HTTP/1.1 200"), "{known}");
    let unknown = get(&url, "evil.example", "/api/v1/status");
    assert!(unknown.starts_with("HTTP/1.1 421") && unknown.contains("`hosts`"), "{unknown}");
}

#[test]
fn a_source_that_never_gave_a_sample_is_in_the_metrics_and_down() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut agent = Agent::start(dir.path(), &["--log", "missing.log", "--listen", "127.0.0.1:0"]);
    let url = agent.until("status page and API on ");
    // The status is published about once a second.
    let mut page = (0..100).map(|_| {
        thread::sleep(Duration::from_millis(100));
        get(&url, "localhost", "/metrics")
    });
    let page = page.find(|page| page.contains("skewtrap_source_up{")).expect("it is shown");
    for line in [
        "skewtrap_source_up{target=\"server\",source=\"log\"} 0",
        "skewtrap_source_samples_total{target=\"server\",source=\"log\"} 0",
        "skewtrap_queue_length{queue=\"inbox\"}",
    ] {
        assert!(page.contains(line), "{line} is not in {page}");
    }
}

#[test]
fn an_address_that_is_none_ends_the_agent_before_it_begins() {
    let dir = tempfile::tempdir().expect("a folder");
    let ran = assert_cmd::Command::from_std(skewtrap(dir.path()))
        .args(["run", "--log", "server.log", "--listen", "localhost:9464"])
        .timeout(Duration::from_secs(20))
        .output()
        .expect("it runs");
    assert_eq!(ran.status.code(), Some(2), "{}", words_of(&ran));
    assert!(
        words_of(&ran).contains("`--listen localhost:9464` is no address and port"),
        "{}",
        words_of(&ran)
    );
}
