//! Drives one window of an engine's own profiler: `decide::capture::window` says what to do, this
//! does it and tells it what happened.
//!
//! Nothing here decides. Whoever learns something (an answer, a tick, a file, a line) hands it to
//! the machine under its lock and carries out what comes back. The ticks come from a task of their
//! own, which outlives this one: whatever becomes of it, the window is stopped at its deadline.

mod files;
mod run;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::files::Files;
use self::run::Run;
use crate::act::nsys::Nsys;
use crate::act::state::{OpenMeans, OpenWindow, State, StateError};
use crate::agent::clock::Clock;
use crate::decide::capture::facts::{Answered, Engine};
use crate::decide::capture::governor::Attempt;
use crate::decide::capture::line::ProfileLine;
use crate::decide::capture::path_map::PathMap;
use crate::decide::capture::plan::StartRequest;
use crate::decide::capture::stall::StallMeter;
use crate::decide::capture::verify::{Artifact, Verdict, verdict_of};
use crate::decide::capture::window::{Blind, Ending, Event, Phase, Sight, Window};
use crate::decide::incident::{Exchange, Quality, Record};
use crate::decide::signal::rank::Rank;
use crate::decide::time::Time;
use crate::http::Server;
use crate::observe::server::{Health, health};

/// Between two looks at the folder.
const LOOK: Duration = Duration::from_millis(100);
/// Between two questions to `/health` while a window is open.
const PROBE: Duration = Duration::from_millis(500);
/// How long after a window its server may take to answer as it used to.
const RECOVERY: Duration = Duration::from_secs(30);

/// What a window needs to know of its server.
#[derive(Clone, Debug)]
pub struct Site {
    /// Where it listens.
    pub server: Server,
    /// Its configured name.
    pub target: String,
    /// Its paths and ours.
    pub paths: PathMap,
    /// Where files lie when no folder is sent: the server's view (`$SGLANG_TORCH_PROFILER_DIR`,
    /// vLLM's fixed folder); a log line that names another goes first.
    pub default_dir: Option<String>,
    /// Whether its log is read.
    pub sees_log: bool,
    /// The nsys of this machine.
    pub nsys: Nsys,
    /// The habit of `/health`.
    pub health: Duration,
    /// The usual interval of each rank's samples while it has work.
    pub usual: BTreeMap<Rank, Duration>,
}

/// What the rest of the agent tells a window.
#[derive(Clone, Debug)]
pub enum Heard {
    /// The server's log said something of profiling.
    Line {
        /// Who printed it.
        rank: Rank,
        /// What.
        line: ProfileLine,
    },
    /// A sample of a rank that had work arrived.
    Sample(Rank),
    /// The rule cleared.
    Cleared,
    /// Somebody wants it closed now.
    Close,
    /// The server was started anew, or died.
    Gone(String),
}

/// How far a window has come, for the rest of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its phase.
    pub phase: Phase,
    /// Which samples not to trust.
    pub blind: Blind,
}

/// What became of a window.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub ending: Ending,
    /// What was sent and what came back.
    pub exchanges: Vec<Exchange>,
    /// The files that bear its marks, read to their ends.
    pub artifacts: Vec<Artifact>,
    /// What they amount to.
    pub verdict: Verdict,
    /// The folder in the server's view, as far as it is known.
    pub folder: Option<String>,
    /// Whether the agent sees that folder.
    pub remote: bool,
    /// When the start was sent.
    pub sent_at: Time,
    /// From the start to the stop, or to the end by itself.
    pub open: Duration,
    /// Serving that it cost.
    pub stalled: Duration,
    /// From the end until the server answered as it used to; `None` when it did not in 30 s.
    pub recovered: Option<Duration>,
}

/// Opens a window: writes the attempt, sends the start, and sees it through to its end.
///
/// # Errors
/// The state could not be written; then nothing was sent.
pub async fn open(
    site: &Site,
    request: &StartRequest,
    attempt: &Attempt,
    record: &Record,
    state: &State,
    clock: Clock,
    links: Links,
) -> Result<Outcome, StateError> {
    let window = OpenWindow {
        attempt: attempt.id.clone(),
        incident: attempt.incident.clone(),
        target: attempt.target.clone(),
        means: OpenMeans::Http(request.clone()),
        sent_at: clock.now(),
        granted: false,
    };
    let files = Files::new(site, request);
    state.begin(attempt, &window, Some(record))?;
    let now = clock.now();
    let (machine, start) = Window::start(request, sight(site, &files), now);
    let run = Run::new(site, request, machine, window, state.clone(), clock, links.status.clone());
    run.carry_out(vec![start], now);
    Ok(see_through(site, request, run, files, links).await)
}

/// Closes a window that an agent before this one left behind. `lines` are what its server's log
/// said of profiling since, and `moved` the files that are in the bundle already: both are told
/// before anything is decided, for they may prove that nothing is open any more.
pub async fn resume(
    site: &Site,
    request: &StartRequest,
    window: OpenWindow,
    lines: Vec<(Rank, ProfileLine)>,
    moved: Vec<PathBuf>,
    desk: (&State, Clock),
    links: Links,
) -> Outcome {
    let (state, clock) = desk;
    let mut files = Files::of_before(site, request, window.sent_at, moved);
    let (sight, sent_at, now) = (sight(site, &files), window.sent_at, clock.now());
    let mut machine = Window::resume(request, sight, sent_at, window.granted, now);
    for (rank, line) in lines {
        machine.recall(&Event::Log { rank, line }, sent_at);
    }
    // Twice: what has not changed between two looks is read.
    for _ in 0..2 {
        files.look().await.iter().for_each(|event| machine.recall(event, now));
    }
    let run = Run::new(site, request, machine, window, state.clone(), clock, links.status.clone());
    see_through(site, request, run, files, links).await
}

/// How a window is spoken with.
#[derive(Debug)]
pub struct Links {
    /// What it hears.
    pub heard: mpsc::Receiver<Heard>,
    /// What it shows.
    pub status: watch::Sender<Status>,
    /// The agent ends.
    pub cancel: CancellationToken,
}

fn sight(site: &Site, files: &Files) -> Sight {
    Sight { log: site.sees_log, files: files.in_sight() }
}

async fn see_through(
    site: &Site,
    request: &StartRequest,
    run: Run,
    mut files: Files,
    links: Links,
) -> Outcome {
    let Links { mut heard, cancel, .. } = links;
    let present = run.present();
    let mut meter = StallMeter::new(run.now(), site.health, site.usual.clone());
    let ticker = tokio::spawn(run.clone().tick());
    let (probes, mut probed) = mpsc::channel(8);
    let prober = tokio::spawn(probe(run.clone(), site.server.clone(), probes));
    let mut look = tokio::time::interval(LOOK);
    let mut hears = true;
    loop {
        tokio::select! {
            biased;
            () = run.ended() => break,
            () = cancel.cancelled(), if !run.is_cancelled() => run.cancel(),
            told = heard.recv(), if hears => match told {
                Some(told) => hear(&run, &mut files, &mut meter, told),
                None => hears = false,
            },
            Some((asked, answered)) = probed.recv() => meter.health(asked, answered),
            _ = look.tick() => files.look().await.iter().for_each(|event| run.handle(event)),
        }
    }
    prober.abort();
    files.look().await;
    let ended_at = run.now();
    let recovered = recovery(site, &run, &mut meter, &cancel).await;
    // The ticker ends by itself once the window has; a panic in it was this window's, and is over.
    let _ = ticker.await;
    drop(present);
    outcome(request, &run, files, meter.stalled(), recovered.map(|at| at.since(ended_at)))
}

fn hear(run: &Run, files: &mut Files, meter: &mut StallMeter, told: Heard) {
    let event = match told {
        Heard::Line { rank, line } => {
            if let ProfileLine::Starts { dir, .. } = &line {
                files.learn(dir);
            }
            Event::Log { rank, line }
        }
        Heard::Sample(rank) => return meter.sample(rank, run.now()),
        Heard::Cleared => Event::Cleared,
        Heard::Close => Event::Close,
        Heard::Gone(why) => Event::Gone(why),
    };
    run.handle(&event);
}

/// Asks `/health` while the window is open. A server where nobody listens three times running is
/// gone, and its windows with it.
async fn probe(run: Run, server: Server, probes: mpsc::Sender<(Time, Time)>) {
    let mut refused = 0;
    loop {
        tokio::time::sleep(PROBE).await;
        let asked = run.now();
        match health(&server).await {
            Health::NobodyListens => refused += 1,
            Health::Answered(_) => refused = 0,
        }
        if refused == 3 {
            run.handle(&Event::Gone("nobody listens there any more".into()));
        }
        if probes.send((asked, run.now())).await.is_err() {
            return;
        }
    }
}

/// Waits until the server answers as it used to; gives when it did.
async fn recovery(
    site: &Site,
    run: &Run,
    meter: &mut StallMeter,
    cancel: &CancellationToken,
) -> Option<Time> {
    let limit = run.now() + RECOVERY;
    while run.now() < limit && !cancel.is_cancelled() {
        let asked = run.now();
        let answer = health(&site.server).await;
        meter.health(asked, run.now());
        match answer {
            // A habit that is not known yet (just after a start) is no measure.
            Health::Answered(Answered::Well(took))
                if site.health.is_zero() || took <= site.health.saturating_mul(2).max(PROBE) =>
            {
                return Some(run.now());
            }
            Health::NobodyListens => return None,
            Health::Answered(_) => tokio::time::sleep(PROBE).await,
        }
    }
    None
}

fn outcome(
    request: &StartRequest,
    run: &Run,
    files: Files,
    stalled: Duration,
    recovered: Option<Duration>,
) -> Outcome {
    let (folder, remote) = (files.server_dir().map(str::to_owned), files.is_remote());
    let artifacts = files.into_artifacts();
    let mut expected = request.ranks.busy.clone();
    expected.extend(&request.ranks.idle);
    let mut verdict = verdict_of(&expected, &request.ranks.idle, &artifacts);
    if remote || !request.writes_files {
        verdict = Verdict { quality: Quality::Unseen, ..Verdict::default() };
    }
    if request.engine == Engine::Sglang && !request.ranks.idle.is_empty() {
        verdict.idle.clone_from(&request.ranks.idle);
    }
    let (ending, exchanges, status) = run.result();
    Outcome {
        ending,
        exchanges,
        artifacts,
        verdict,
        folder,
        remote,
        sent_at: status.blind.from,
        open: status.blind.closing.unwrap_or(run.now()).since(status.blind.from),
        stalled,
        recovered,
    }
}
