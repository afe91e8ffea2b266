//! Runs a program of the user for a capture: an argv, no shell, a time limit, and killed together with
//! all that it started.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use thiserror::Error;
use tokio::process::{Child, Command};

/// The environment variable that marks the processes of a capture, so that a later agent finds them.
pub const INCIDENT_VARIABLE: &str = "SKEWTRAP_INCIDENT";

/// How long after SIGTERM comes SIGKILL.
const GRACE: Duration = Duration::from_secs(2);

/// The program cannot be started.
#[derive(Debug, Error)]
#[error(
    "{program} cannot be started: {source}; capture.command.argv needs a program that the agent's user may run"
)]
pub struct CommandError {
    program: String,
    source: std::io::Error,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself.
    Exit(ExitStatus),
    /// It was killed at the time limit, or when the agent ended.
    Killed,
}

/// A running program, the first of its own process group.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// The process group.
    pub group: Option<i32>,
}

/// The values of the tokens.
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a> {
    /// `{incident}`.
    pub incident: &'a str,
    /// `{rank}`: `dp_rank=2`.
    pub rank: &'a str,
    /// `{output_dir}`: an empty folder; what it holds in the end goes into the bundle.
    pub output_dir: &'a Path,
}

/// Program and arguments with the tokens replaced; a value stays within its argument.
pub fn argv_of(argv: &[String], tokens: Tokens<'_>) -> Vec<String> {
    let folder = tokens.output_dir.display().to_string();
    let replaced = |word: &String| {
        word.replace("{incident}", tokens.incident)
            .replace("{rank}", tokens.rank)
            .replace("{output_dir}", &folder)
    };
    argv.iter().map(replaced).collect()
}

/// Starts a program for the incident.
///
/// # Errors
/// It cannot be started.
pub fn start(argv: &[String], incident: &str) -> Result<Running, CommandError> {
    let (program, args) = argv.split_first().map_or(("", &[][..]), |(p, a)| (p.as_str(), a));
    let child = Command::new(program)
        .args(args)
        .env(INCIDENT_VARIABLE, incident)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| CommandError { program: program.to_owned(), source })?;
    let group = child.id().and_then(|id| i32::try_from(id).ok());
    Ok(Running { child, group })
}

impl Running {
    /// Waits for its end, or for `until`, and then kills its whole group.
    pub async fn end(mut self, until: impl Future<Output = ()>) -> Ended {
        tokio::select! {
            status = self.child.wait() => {
                // What it started and left running is killed too.
                kill(self.group, Signal::KILL);
                return status.map_or(Ended::Killed, Ended::Exit);
            }
            () = until => {}
        }
        kill(self.group, Signal::TERM);
        let polite = tokio::time::timeout(GRACE, self.child.wait()).await;
        kill(self.group, Signal::KILL);
        if polite.is_err() {
            // It was killed, so this wait is short.
            let _ = self.child.wait().await;
        }
        Ended::Killed
    }
}

/// Kills a process group, if there is one.
pub fn kill(group: Option<i32>, signal: Signal) {
    if let Some(pid) = group.and_then(Pid::from_raw) {
        // It may have ended by itself.
        let _ = kill_process_group(pid, signal);
    }
}

/// Kills what an agent that is gone left running: the process group, if one of the marked processes
/// leads it, and each marked process.
pub fn kill_left_behind(group: Option<i32>, marked: &[u32]) {
    let is_marked = |group: &i32| u32::try_from(*group).is_ok_and(|leader| marked.contains(&leader));
    kill(group.filter(is_marked), Signal::KILL);
    for pid in marked.iter().filter_map(|pid| Pid::from_raw(i32::try_from(*pid).ok()?)) {
        // Most of them were killed with their group.
        let _ = kill_process(pid, Signal::KILL);
    }
}
