//! The real binary in a folder of its own, what it says, and what it answers.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

/// The program, at home in `dir` and with nothing of the test's own environment that matters to it.
pub fn skewtrap(dir: &Path) -> Command {
    at_home(dir, env!("CARGO_BIN_EXE_skewtrap"))
}

fn at_home(dir: &Path, program: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(dir).env("NO_COLOR", "1").env("HOME", dir).stdin(Stdio::null());
    for name in ["STATE_DIRECTORY", "XDG_STATE_HOME", "SKEWTRAP_TOKEN", "SKEWTRAP_AGENT", "SKEWTRAP_LOG"] {
        command.env_remove(name);
    }
    command
}

/// The same, run to its end: its exit status, and all that it said.
pub async fn run(dir: &Path, args: &[&str]) -> (i32, String) {
    let mut command = tokio::process::Command::from(skewtrap(dir));
    let output = command.args(args).output().await.expect("it runs");
    let said =
        String::from_utf8(output.stdout).expect("text") + &String::from_utf8(output.stderr).expect("text");
    (output.status.code().expect("it ends by itself"), said)
}

/// An agent beside an empty log, and what it says.
pub struct Agent {
    process: Child,
    said: Receiver<String>,
}

impl Agent {
    pub fn start(dir: &Path, arguments: &[&str]) -> Self {
        fs::write(dir.join("server.log"), "").expect("written");
        let mut command = skewtrap(dir);
        command.arg("run").args(arguments);
        Self::of(command)
    }

    /// One with variables of its environment.
    pub fn with(dir: &Path, environment: &[(&str, &str)], arguments: &[&str]) -> Self {
        fs::write(dir.join("server.log"), "").expect("written");
        let mut command = skewtrap(dir);
        command.envs(environment.iter().copied()).arg("run").args(arguments);
        Self::of(command)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(id, signal).expect("it is sent");
    }

    /// One for which the disk of `folder` hangs; `None`, said loudly, where this user may not mount one.
    #[cfg(feature = "fleet")]
    pub fn beside_hung_disk(dir: &Path, folder: &Path, arguments: &[&str]) -> Option<Self> {
        // A file system in user space that nobody serves, in a mount namespace of its own: it is gone with the agent.
        let script = "exec 3<>/dev/fuse && mount -i -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 hung \"$0\" && exec \"$@\"";
        let with_mount = || {
            let mut command = at_home(dir, "unshare");
            command.args(["-m", "sh", "-c", script]).arg(folder);
            command
        };
        if !with_mount().arg("true").stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
            eprintln!("SKIPPED: a disk that hangs (no file system can be mounted here)");
            return None;
        }
        let mut command = with_mount();
        command.args([env!("CARGO_BIN_EXE_skewtrap"), "run"]).args(arguments);
        Some(Self::of(command))
    }

    fn of(mut command: Command) -> Self {
        let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
        let stderr = BufReader::new(process.stderr.take().expect("a pipe"));
        let (tx, said) = channel();
        thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| tx.send(line)));
        Self { process, said }
    }

    /// What it says up to a line that holds `words`, that line included.
    pub fn until(&mut self, words: &str) -> Vec<String> {
        let mut heard = Vec::new();
        loop {
            let line = self.said.recv_timeout(Duration::from_secs(60));
            let line = line.unwrap_or_else(|_| panic!("it never said `{words}`, only {heard:#?}"));
            let is_it = line.contains(words);
            heard.push(line);
            if is_it {
                return heard;
            }
        }
    }

    /// What stands behind `words` in the first line that holds them.
    pub fn behind(&mut self, words: &str) -> String {
        let heard = self.until(words);
        heard.last().and_then(|line| line.split_once(words)).expect("it holds them").1.to_owned()
    }
}

/// Sends a request as it is written to `http://ADDRESS`; the whole answer.
pub fn answer_to(url: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(url.trim().trim_start_matches("http://")).expect("it listens");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
