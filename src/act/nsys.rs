//! Runs the nsys of this machine: `sessions list`, `start`, `stop`. Never `shutdown` and never `cancel`,
//! which end or discard what others may need. No shell.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, SealFlags, memfd_create};
use thiserror::Error;
use tokio::process::Command;

use skewtrap_core::capture::nsys::{LONGEST_START, Session, Viewer, sessions_of_columns, sessions_of_json};
use skewtrap_core::capture::window::EXPORT_LIMIT;
use skewtrap_core::incident::Exchange;
use skewtrap_core::printable::printable;
use skewtrap_trace::time::Time;

/// For commands that answer at once.
const QUICK: Duration = Duration::from_secs(15);

/// nsys cannot be run, or does not list its sessions.
#[derive(Debug, Error)]
pub enum NsysError {
    /// It cannot be started.
    #[error(
        "nsys cannot be run ({program}: {source}); install Nsight Systems where the agent runs, the same version as the server's, and put its folder on the agent's PATH"
    )]
    NotInstalled {
        /// What was tried.
        program: String,
        source: std::io::Error,
    },
    /// The agent cannot catch what it prints.
    #[error(
        "nsys is not run: its output cannot be caught ({0}); are the agent's open files or its memory limited?"
    )]
    NoOutput(std::io::Error),
    /// It did not list its sessions.
    #[error(
        "nsys did not list its sessions: {output}; the agent must run as the server's user, with the server's TMPDIR"
    )]
    NoList {
        /// What it printed.
        output: String,
    },
}

/// How a command ended and what it printed.
#[derive(Clone, Debug)]
pub struct CommandOutput {
    /// The exit status; `None` when it did not end in time, or was killed.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// The most bytes of an output that are shown.
const OUTPUT_SHOWN: usize = 300;

impl CommandOutput {
    /// Both outputs on one line, for a message.
    pub fn summary(&self) -> String {
        let text = format!("{} {}", self.err.trim(), self.out.trim());
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let code = self.code.map_or("no exit".to_owned(), |c| format!("exit {c}"));
        if text.is_empty() { code } else { format!("{code}: {}", printable(&text, OUTPUT_SHOWN)) }
    }
}

/// The nsys of this machine.
#[derive(Clone, Debug)]
pub struct Nsys {
    program: PathBuf,
    /// For tests: variables of its environment.
    pub environment: Vec<(String, String)>,
}

impl Nsys {
    /// The program, by its path or its name on `PATH`.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), environment: Vec::new() }
    }

    /// All sessions: as JSON where this nsys has it, else by columns.
    ///
    /// # Errors
    /// nsys cannot be started, or does not list its sessions.
    pub async fn sessions(&self) -> Result<Vec<Session>, NsysError> {
        let json = self.run(&["sessions", "list", "-f", "json"], QUICK, true).await?;
        if json.code == Some(0)
            && let Some(sessions) = sessions_of_json(&json.out)
        {
            return Ok(sessions);
        }
        let plain = self.run(&["sessions", "list"], QUICK, true).await?;
        match plain.code {
            Some(0) => Ok(sessions_of_columns(&plain.out)),
            _ => Err(NsysError::NoList { output: plain.summary() }),
        }
    }

    /// Starts a collection in a session. The exit status proves nothing, so the caller must check the
    /// session's state.
    ///
    /// # Errors
    /// nsys cannot be started.
    pub async fn start(
        &self,
        id: &str,
        output: &Path,
        extra: &[String],
        at: Time,
    ) -> Result<(CommandOutput, Exchange), NsysError> {
        let mut args: Vec<String> =
            ["start", &format!("--session={id}"), "-o", &output.display().to_string()]
                .map(str::to_owned)
                .into();
        // `start` has its own defaults, and they sample the whole process tree.
        for (option, value) in [("--force-overwrite", "true"), ("--sample", "none"), ("--cpuctxsw", "none")] {
            if !extra.iter().any(|e| e.split('=').next() == Some(option)) {
                args.push(format!("{option}={value}"));
            }
        }
        args.extend(extra.iter().cloned());
        self.run_recorded(&args, LONGEST_START, at).await
    }

    /// Stops the collection of a session. Returns when the report is written, which may take minutes.
    ///
    /// # Errors
    /// nsys cannot be started.
    pub async fn stop(&self, id: &str, at: Time) -> Result<(CommandOutput, Exchange), NsysError> {
        self.run_recorded(&["stop".to_owned(), format!("--session={id}")], EXPORT_LIMIT, at).await
    }

    async fn run_recorded(
        &self,
        args: &[String],
        limit: Duration,
        at: Time,
    ) -> Result<(CommandOutput, Exchange), NsysError> {
        let started = Instant::now();
        let words: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = self.run(&words, limit, false).await?;
        let exchange = Exchange {
            at,
            request: format!("{} {}", self.program.display(), args.join(" ")),
            body: None,
            answer: output.summary(),
            took_s: started.elapsed().as_secs_f64(),
        };
        Ok((output, exchange))
    }

    /// What decides which sessions this nsys can list.
    pub fn viewer(&self) -> Viewer {
        let set = self.environment.iter().find(|(name, _)| name == "TMPDIR").map(|(_, value)| value.clone());
        let tmpdir = set.or_else(|| std::env::var("TMPDIR").ok()).unwrap_or_else(|| "/tmp".into());
        Viewer { user: rustix::process::geteuid().as_raw(), tmpdir }
    }

    /// Runs nsys. `may_kill`: the command may be killed when it takes longer than `limit`. A `stop` must
    /// not: it goes on writing the report, which would be lost. A pipe that nobody reads after the agent
    /// died would end it too, and so would Ctrl-C in the terminal. Therefore its output goes to files in
    /// memory, and it has its own process group.
    async fn run(&self, args: &[&str], limit: Duration, may_kill: bool) -> Result<CommandOutput, NsysError> {
        let fail = |source| NsysError::NotInstalled { program: self.program.display().to_string(), source };
        let (out, err) =
            (in_memory().map_err(NsysError::NoOutput)?, in_memory().map_err(NsysError::NoOutput)?);
        let mut child = Command::new(&self.program)
            .args(args)
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(out.try_clone().map_err(NsysError::NoOutput)?)
            .stderr(err.try_clone().map_err(NsysError::NoOutput)?)
            .process_group(0)
            .kill_on_drop(may_kill)
            .spawn()
            .map_err(fail)?;
        Ok(match tokio::time::timeout(limit, child.wait()).await {
            Ok(Ok(status)) => CommandOutput { code: status.code(), out: text(&out), err: text(&err) },
            Ok(Err(error)) => CommandOutput { code: None, out: String::new(), err: error.to_string() },
            Err(_) => CommandOutput { code: None, out: text(&out), err: "it did not end in time".into() },
        })
    }
}

/// What nsys prints is cut off behind so many bytes.
const PRINTED: u64 = 1 << 20;

/// A file in memory that cannot grow: whatever is printed, the agent's memory is bounded.
fn in_memory() -> std::io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file: File = memfd_create("skewtrap-nsys", flags)?.into();
    file.set_len(PRINTED)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK)?;
    Ok(file)
}

/// What was printed so far. The program may go on printing, so the place in the file is left alone.
fn text(file: &File) -> String {
    let mut bytes = vec![0; PRINTED as usize];
    // Reading back from memory does not fail in practice; if it does, treat it as no output.
    let read = file.read_at(&mut bytes, 0).unwrap_or_default();
    // The file has its full length from the start; what was not written is zero.
    let printed = memchr::memchr(0, &bytes[..read]).unwrap_or(read);
    String::from_utf8_lossy(&bytes[..printed]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_prints_without_end_costs_a_bounded_memory() {
        let shell = Nsys::new("sh");
        let prints = ["-c", "echo first; head -c 3000000 /dev/zero | tr '\\0' x; echo last >&2; exit 3"];
        let output = shell.run(&prints, Duration::from_secs(60), true).await.unwrap();
        assert_eq!((output.code, output.err.lines().last()), (Some(3), Some("last")));
        assert!(output.out.starts_with("first\nxxx") && output.out.len() <= PRINTED as usize);
    }
}
