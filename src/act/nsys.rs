//! Runs the nsys that is on the machine: `sessions list`, `start`, `stop`. Never `shutdown`, never
//! `cancel` (both end or discard what others may want), no shell.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::process::Command;

use skewtrap_core::capture::nsys::{LONGEST_START, Session, Viewer, sessions_of_columns, sessions_of_json};
use skewtrap_core::capture::window::EXPORT_LIMIT;
use skewtrap_core::incident::Exchange;
use skewtrap_trace::time::Time;

const QUICK: Duration = Duration::from_secs(15);

/// nsys cannot be run, or cannot be talked to.
#[derive(Debug, Error)]
pub enum NsysError {
    /// There is none.
    #[error(
        "nsys cannot be run ({program}: {source}); install Nsight Systems where the agent runs, the same version as the server's, and put its folder on the agent's PATH"
    )]
    NotInstalled {
        /// What was tried.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// It did not list its sessions.
    #[error(
        "nsys did not list its sessions: {said}; the agent must run as the server's user, with the server's TMPDIR"
    )]
    NoList {
        /// Its words.
        said: String,
    },
}

/// What a command printed.
#[derive(Clone, Debug)]
pub struct Said {
    /// The exit status; `None` when it did not end in time, or was killed.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Said {
    /// Both outputs on one line, for a message.
    pub fn words(&self) -> String {
        let text = format!("{} {}", self.err.trim(), self.out.trim());
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let code = self.code.map_or("no exit".to_owned(), |c| format!("exit {c}"));
        if text.is_empty() { code } else { format!("{code}: {}", text.chars().take(300).collect::<String>()) }
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
    /// There is no nsys, or it lists nothing.
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
            _ => Err(NsysError::NoList { said: plain.words() }),
        }
    }

    /// Starts a collection of a session. The exit status proves nothing: read the state back.
    ///
    /// # Errors
    /// There is no nsys.
    pub async fn start(
        &self,
        id: &str,
        output: &Path,
        extra: &[String],
        at: Time,
    ) -> Result<(Said, Exchange), NsysError> {
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
        self.told(&args, LONGEST_START, at).await
    }

    /// Stops the collection of a session; answers when the report is generated, minutes perhaps.
    ///
    /// # Errors
    /// There is no nsys.
    pub async fn stop(&self, id: &str, at: Time) -> Result<(Said, Exchange), NsysError> {
        self.told(&["stop".to_owned(), format!("--session={id}")], EXPORT_LIMIT, at).await
    }

    async fn told(&self, args: &[String], limit: Duration, at: Time) -> Result<(Said, Exchange), NsysError> {
        let begun = Instant::now();
        let words: Vec<&str> = args.iter().map(String::as_str).collect();
        let said = self.run(&words, limit, false).await?;
        let exchange = Exchange {
            at,
            request: format!("{} {}", self.program.display(), args.join(" ")),
            body: None,
            answer: said.words(),
            took_s: begun.elapsed().as_secs_f64(),
        };
        Ok((said, exchange))
    }

    /// By what this nsys decides which sessions it shows.
    pub fn viewer(&self) -> Viewer {
        let set = self.environment.iter().find(|(name, _)| name == "TMPDIR").map(|(_, value)| value.clone());
        let tmpdir = set.or_else(|| std::env::var("TMPDIR").ok()).unwrap_or_else(|| "/tmp".into());
        Viewer { user: rustix::process::geteuid().as_raw(), tmpdir }
    }

    /// `harmless`: it may be killed when it hangs. A `stop` that is given up goes on writing the
    /// report, and killing it would lose that; so would a pipe that nobody reads any more, when the
    /// agent dies, or the terminal's Ctrl-C. Hence files in memory, and a process group of its own.
    async fn run(&self, args: &[&str], limit: Duration, harmless: bool) -> Result<Said, NsysError> {
        let fail = |source| NsysError::NotInstalled { program: self.program.display().to_string(), source };
        let (mut out, mut err) = (in_memory().map_err(fail)?, in_memory().map_err(fail)?);
        let mut child = Command::new(&self.program)
            .args(args)
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(out.try_clone().map_err(fail)?)
            .stderr(err.try_clone().map_err(fail)?)
            .process_group(0)
            .kill_on_drop(harmless)
            .spawn()
            .map_err(fail)?;
        Ok(match tokio::time::timeout(limit, child.wait()).await {
            Ok(Ok(status)) => Said { code: status.code(), out: text(&mut out), err: text(&mut err) },
            Ok(Err(error)) => Said { code: None, out: String::new(), err: error.to_string() },
            Err(_) => Said { code: None, out: text(&mut out), err: "it did not end in time".into() },
        })
    }
}

fn in_memory() -> std::io::Result<File> {
    Ok(rustix::fs::memfd_create("skewtrap-nsys", rustix::fs::MemfdFlags::CLOEXEC)?.into())
}

/// What was printed so far.
fn text(file: &mut File) -> String {
    let mut bytes = Vec::new();
    let read = file.rewind().and_then(|()| file.read_to_end(&mut bytes));
    // What memory does not give back was not printed.
    read.map_or_else(|_| String::new(), |_| String::from_utf8_lossy(&bytes).into_owned())
}
