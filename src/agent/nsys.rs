//! Takes a window of an Nsight Systems session that wraps the server already.
//!
//! The session is proven to be the target's, its state is read back after every command, and the
//! whole runs as a task of its own: it stops what it started though its caller is gone.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::act::nsys::{Nsys, Said};
use crate::act::state::{OpenMeans, OpenWindow, StateError};
use crate::agent::capture::{Came, Desk};
use crate::agent::window::{Heard, Links, Site, Status};
use crate::decide::capture::NsysWindow;
use crate::decide::capture::facts::Engine;
use crate::decide::capture::governor::Attempt;
use crate::decide::capture::nsys::{Readiness, Session, choose, generated, importer_error};
use crate::decide::capture::stall::StallMeter;
use crate::decide::capture::verify::{Artifact, Verdict};
use crate::decide::capture::window::{Blind, EXPORT_LIMIT, Phase};
use crate::decide::incident::{Exchange, Quality, Record};
use crate::decide::signal::rank::Rank;
use crate::decide::time::Time;
use crate::observe::artifact::inspect;
use crate::observe::process::{ancestors, listener, ranks_below};
use crate::observe::server::health;

/// How long a start may take to show in the state.
const BEGIN: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(100);

/// Takes the window of `spec`.
///
/// # Errors
/// The state could not be written; then nothing was started.
pub async fn capture(
    desk: &Desk,
    site: &Site,
    spec: &NsysWindow,
    attempt: &Attempt,
    record: &Record,
    links: Links,
) -> Result<Came, StateError> {
    let means = OpenMeans::Nsys { session: String::new(), name: String::new() };
    let window = OpenWindow {
        attempt: attempt.id.clone(),
        incident: attempt.incident.clone(),
        target: attempt.target.clone(),
        means,
        sent_at: desk.clock.now(),
        granted: false,
    };
    desk.state.begin(attempt, &window, Some(record))?;
    let taking = Taking {
        desk: desk.clone(),
        site: site.clone(),
        spec: spec.clone(),
        window,
        cancel: links.cancel.clone(),
        status: links.status,
        exchanges: Vec::new(),
    };
    // A task of its own: dropped or panicking callers do not leave a session collecting.
    let taken = tokio::spawn(taking.run(links.heard)).await;
    Ok(taken.unwrap_or_else(|panic| Came {
        means: "nsys",
        failure: Some(format!("the window's task failed: {panic}")),
        unproven: Some("the window's task failed".into()),
        sent_at: desk.clock.now(),
        ..Came::default()
    }))
}

struct Taking {
    desk: Desk,
    site: Site,
    spec: NsysWindow,
    window: OpenWindow,
    cancel: CancellationToken,
    status: tokio::sync::watch::Sender<Status>,
    exchanges: Vec<Exchange>,
}

/// A window that failed: a sentence, and whether something may still collect.
struct Failed {
    why: String,
    unproven: bool,
}

impl Failed {
    fn closed(why: impl ToString) -> Self {
        Self { why: why.to_string(), unproven: false }
    }
}

impl Taking {
    async fn run(mut self, heard: mpsc::Receiver<Heard>) -> Came {
        let mut came = Came { means: "nsys", sent_at: self.desk.clock.now(), ..Came::default() };
        match self.collect(heard, &mut came).await {
            Ok(report) => self.verify(&report, &mut came).await,
            Err(Failed { why, unproven }) => {
                came.unproven = unproven.then(|| why.clone());
                came.failure = Some(why);
            }
        }
        self.show(Phase::Ended);
        came.exchanges = std::mem::take(&mut self.exchanges);
        came
    }

    fn show(&self, phase: Phase) {
        let now = self.desk.clock.now();
        self.status.send_modify(|status| {
            status.phase = phase;
            match phase {
                Phase::Stopping | Phase::Exporting => {
                    status.blind.closing.get_or_insert(now);
                }
                Phase::Verifying | Phase::Ended => status.blind.exported(now),
                Phase::Starting | Phase::Doubtful | Phase::Unknown | Phase::Open => {
                    status.blind = Blind::opened(status.blind.from);
                }
            }
        });
    }

    /// From the session to the path of the report.
    async fn collect(
        &mut self,
        mut heard: mpsc::Receiver<Heard>,
        came: &mut Came,
    ) -> Result<PathBuf, Failed> {
        let nsys = self.site.nsys.clone();
        let session = self.session(&nsys, came).await?;
        let output = self.output()?;
        self.window.means = OpenMeans::Nsys { session: session.id.clone(), name: session.name.clone() };
        self.window.sent_at = self.desk.clock.now();
        self.desk.state.update(&self.window).map_err(Failed::closed)?;
        came.sent_at = self.window.sent_at;
        self.show(Phase::Starting);
        let started = nsys.start(&session.id, &output, &self.spec.args, came.sent_at).await;
        let (said, exchange) = started.map_err(Failed::closed)?;
        self.exchanges.push(exchange);
        let state = wait_for(&nsys, &session.id, BEGIN, |r| r == Readiness::Collecting).await;
        if state != Some(Readiness::Collecting) {
            return Err(not_begun(&session, &said, state));
        }
        self.window.granted = true;
        self.desk.state.update(&self.window).map_err(|e| Failed { why: e.to_string(), unproven: true })?;
        self.show(Phase::Open);
        let (meter, stop_probing) = self.probe();
        self.hold(&mut heard).await;
        self.show(Phase::Stopping);
        let stopped_at = self.desk.clock.now();
        came.open = stopped_at.since(came.sent_at);
        let report = self.stop(&nsys, &session, stopped_at).await;
        stop_probing.cancel();
        came.stalled = meter.await.map(|m| m.stalled()).unwrap_or_default();
        report
    }

    async fn session(&self, nsys: &Nsys, came: &mut Came) -> Result<Session, Failed> {
        // Read anew before every start: ids change when a server is launched again.
        let sessions = nsys.sessions().await.map_err(Failed::closed)?;
        let port = self.site.server.port().unwrap_or(0);
        let chain = listener(port).map(ancestors).unwrap_or_default();
        let session = choose(&self.spec.session, &sessions, &chain, port).map_err(Failed::closed)?.clone();
        // Every rank is below the launcher, which is below nsys.
        let root = chain.iter().rev().find(|p| p.argv.iter().take(2).any(|a| a.ends_with("nsys")));
        let ranks: BTreeMap<u32, Rank> = root.map(|p| ranks_below(p.pid)).unwrap_or_default();
        came.processes = ranks.into_iter().map(|(pid, rank)| (pid, rank.labels())).collect();
        match session.readiness() {
            Readiness::Ready => Ok(session),
            Readiness::Gone => {
                Err(Failed::closed(format!("the application of nsys session {} is gone", session.name)))
            }
            Readiness::Collecting | Readiness::Busy => Err(Failed::closed(format!(
                "nsys session {} is in state {}: somebody else collects or generates there, and it is left alone",
                session.name, session.state
            ))),
        }
    }

    fn output(&self) -> Result<PathBuf, Failed> {
        let folder = self.desk.bundles.scratch(&self.window.incident).map_err(Failed::closed)?;
        Ok(folder.join("window"))
    }

    async fn hold(&self, heard: &mut mpsc::Receiver<Heard>) {
        let over = tokio::time::sleep(self.spec.duration);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => return,
                () = self.cancel.cancelled() => return,
                told = heard.recv() => match told {
                    Some(Heard::Close | Heard::Gone(_)) => return,
                    Some(_) => {}
                    None => return over.await,
                },
            }
        }
    }

    fn probe(&self) -> (tokio::task::JoinHandle<StallMeter>, CancellationToken) {
        let stop = CancellationToken::new();
        let (stopped, server, clock) = (stop.clone(), self.site.server.clone(), self.desk.clock);
        let mut meter = StallMeter::new(clock.now(), self.site.health, BTreeMap::new());
        let task = tokio::spawn(async move {
            while !stopped.is_cancelled() {
                let asked = clock.now();
                let _ = health(&server).await;
                meter.health(asked, clock.now());
                tokio::time::sleep(LOOK * 5).await;
            }
            meter
        });
        (task, stop)
    }

    async fn stop(&mut self, nsys: &Nsys, session: &Session, at: Time) -> Result<PathBuf, Failed> {
        let open = |why: String| Failed { why, unproven: true };
        let stopped = nsys.stop(&session.id, at).await.map_err(|e| open(e.to_string()))?;
        let (said, exchange) = stopped;
        self.exchanges.push(exchange);
        self.show(Phase::Exporting);
        // A stop that took nothing shows soon; generating takes minutes.
        let stopped = wait_for(nsys, &session.id, BEGIN, |r| r != Readiness::Collecting).await;
        let state = match stopped {
            Some(Readiness::Busy) => {
                wait_for(nsys, &session.id, EXPORT_LIMIT, |r| r == Readiness::Ready || r == Readiness::Gone)
                    .await
            }
            other => other,
        };
        match state {
            Some(Readiness::Collecting) => {
                return Err(open(format!(
                    "nsys was told to stop session {} ({}), and it still collects; stop it by hand: nsys stop --session={}",
                    session.name,
                    said.words(),
                    session.id
                )));
            }
            Some(Readiness::Busy) => {
                let limit = EXPORT_LIMIT.as_secs();
                return Err(open(format!(
                    "nsys had not generated the report of session {} after {limit} s",
                    session.name
                )));
            }
            Some(Readiness::Ready | Readiness::Gone) | None => {}
        }
        self.show(Phase::Verifying);
        report_of(&said)
    }

    async fn verify(&self, report: &Path, came: &mut Came) {
        came.notes.push(
            "the report holds the environment and the output of the server: treat it as a secret (its mode is 0600)".into(),
        );
        if let Err(error) = std::fs::set_permissions(report, std::fs::Permissions::from_mode(0o600)) {
            came.notes.push(format!("the mode of {} could not be set to 0600: {error}", report.display()));
        }
        let path = report.to_owned();
        let read = tokio::task::spawn_blocking(move || inspect(&path, Engine::Sglang)).await;
        match read {
            Ok(Ok(artifact)) => {
                let quality = if artifact.whole { Quality::Usable } else { Quality::Broken };
                came.verdict = Verdict { quality, ..Verdict::default() };
                came.artifacts = vec![Artifact { rank: None, ..artifact }];
            }
            Ok(Err(error)) => {
                came.failure = Some(format!(
                    "nsys says that its report is {}, where the agent cannot read it ({error}); it must share the server's file system",
                    report.display()
                ));
            }
            Err(panic) => came.failure = Some(format!("the report could not be read: {panic}")),
        }
    }
}

fn not_begun(session: &Session, said: &Said, state: Option<Readiness>) -> Failed {
    let now = match state {
        None => "the session is gone".to_owned(),
        Some(state) => format!("its state is {state:?}").to_lowercase(),
    };
    Failed::closed(format!(
        "nsys did not begin to collect in session {} ({}); {now}",
        session.name,
        said.words()
    ))
}

/// Where the report is, by nsys's own words; a `.qdstrm` is none yet.
fn report_of(said: &Said) -> Result<PathBuf, Failed> {
    let path = generated(&said.out)
        .ok_or_else(|| Failed::closed(format!("nsys stopped and named no report: {}", said.words())))?;
    if path.ends_with(".qdstrm") {
        let why = importer_error(&said.err).unwrap_or_else(|| "it says nothing about it".into());
        return Err(Failed::closed(format!(
            "nsys recorded the window but could not import it ({why}); import it where a whole Nsight Systems is installed: QdstrmImporter -i {path}"
        )));
    }
    Ok(PathBuf::from(path))
}

/// Reads the state of a session until it is as wanted; the last one otherwise.
async fn wait_for(
    nsys: &Nsys,
    id: &str,
    limit: Duration,
    wanted: impl Fn(Readiness) -> bool,
) -> Option<Readiness> {
    let until = tokio::time::Instant::now() + limit;
    loop {
        let sessions = nsys.sessions().await.unwrap_or_default();
        let state = sessions.iter().find(|s| s.id == id).map(Session::readiness);
        if state.is_none_or(&wanted) || tokio::time::Instant::now() >= until {
            return state;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Closes a collection that an agent before this one left behind: only one that it had seen begin.
pub async fn close(nsys: &Nsys, window: &OpenWindow, id: &str, name: &str, clock_now: Time) -> Came {
    let mut came = Came { means: "nsys", sent_at: window.sent_at, ..Came::default() };
    let sessions = nsys.sessions().await.unwrap_or_default();
    let collecting =
        sessions.iter().any(|s| s.id == id && s.name == name && s.readiness() == Readiness::Collecting);
    let why = match (collecting, window.granted) {
        (false, _) => "the agent died during this window; its session collects no more".to_owned(),
        (true, false) => {
            let why = format!(
                "the agent died while it started session {name}, and something collects there: if it is nobody's, stop it with nsys stop --session={id}"
            );
            came.unproven = Some(why.clone());
            why
        }
        (true, true) => match nsys.stop(id, clock_now).await {
            Ok((said, exchange)) => {
                came.exchanges.push(exchange);
                let place = generated(&said.out).unwrap_or_else(|| said.words());
                format!(
                    "the agent died during this window and stopped it when it was back; nsys says: {place}"
                )
            }
            Err(error) => {
                came.unproven = Some(error.to_string());
                error.to_string()
            }
        },
    };
    came.failure = Some(why);
    came
}
