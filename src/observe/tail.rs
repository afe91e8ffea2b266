//! Follows log files and standard input: the source of whole lines.
//!
//! `follow` reads. It is woken here by the file system's notifications, and by a timer where there are
//! none (a network mount, a writer on the other side of an overlay). Notifications decide only when to
//! poll. Reading happens on the blocking pool, so that a mount that hangs stops no other source.

mod cut;
mod follow;

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

pub use self::cut::{Cutter, KEPT};
pub use self::follow::{Follow, Polled};
use super::Now;
use skewtrap_core::signal::log_reader::Arrival;
use skewtrap_core::signal::observation::{Observation, Problem, ReportedProblem, SourceId};
use skewtrap_core::signal::sample::{Source, TargetId};

/// The longest time between two polls.
const TICK: Duration = Duration::from_millis(250);
/// Bytes that one poll reads; then other sources have their turn.
const BUDGET: usize = 1 << 20;

/// One log.
#[derive(Clone, Debug)]
pub struct Config {
    /// The server that writes it.
    pub target: TargetId,
    /// The source's id.
    pub source: SourceId,
    /// The file; `-` is standard input.
    pub path: PathBuf,
    /// Whether a file that is there already is read from its beginning.
    pub from_start: bool,
}

/// Follows a log until cancelled, until standard input ends, or until nobody receives observations.
/// Returns `true`: it is finished for good.
pub async fn run(config: Config, tx: mpsc::Sender<Observation>, cancel: CancellationToken, now: Now) -> bool {
    if config.path.as_os_str() == "-" {
        return standard_input(config, tx, cancel, now).await;
    }
    let follow = Follow::new(&config.path, config.from_start);
    let reporter = Reporter { config, tx, now, reported: ReportedProblem::default() };
    tokio::select! {
        () = cancel.cancelled() => true,
        () = file(follow, reporter) => true,
    }
}

async fn file(mut follow: Follow, mut reporter: Reporter) {
    let (wake, mut woken) = mpsc::channel(1);
    let mut watch = Watch::new(wake);
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tick = true;
    loop {
        let (back, lines, polled) = match tokio::task::spawn_blocking(move || poll(follow, tick)).await {
            Ok(done) => done,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        };
        follow = back;
        let is_missing = matches!(&polled, Ok(p) if p.is_missing);
        let more = matches!(&polled, Ok(p) if p.more);
        if !reporter.report(lines, polled, follow.long_lines()).await {
            return;
        }
        if more {
            tick = false;
            continue;
        }
        watch.keep(&follow, tick, is_missing);
        tick = tokio::select! {
            _ = ticks.tick() => true,
            Some(()) = woken.recv() => false,
        };
    }
}

fn poll(mut follow: Follow, tick: bool) -> (Follow, Vec<u8>, std::io::Result<Polled>) {
    let mut lines = Vec::new();
    let polled = follow.poll(BUDGET, tick, &mut lines);
    (follow, lines, polled)
}

/// The file system's notifications; without them (limits, a mount that has none) the timer suffices.
struct Watch {
    watcher: Option<RecommendedWatcher>,
    folders: Vec<PathBuf>,
    ticks: u32,
}

impl Watch {
    fn new(wake: mpsc::Sender<()>) -> Self {
        // The channel has one slot: when it is full, the reader is woken already.
        let wake_reader = move |_: notify::Result<notify::Event>| {
            let _ = wake.try_send(());
        };
        Self { watcher: notify::recommended_watcher(wake_reader).ok(), folders: Vec::new(), ticks: 0 }
    }

    /// Watches the folders in which something must change. They are determined anew once a second, and at
    /// every tick while the file is missing, because links can be replaced and folders created.
    fn keep(&mut self, follow: &Follow, tick: bool, is_missing: bool) {
        self.ticks += u32::from(tick);
        let is_due = self.folders.is_empty() || tick && (is_missing || self.ticks.is_multiple_of(4));
        let Some(watcher) = self.watcher.as_mut().filter(|_| is_due) else { return };
        let folders = follow.folders();
        if folders == self.folders {
            return;
        }
        for old in self.folders.iter().filter(|f| !folders.contains(f)) {
            let _ = watcher.unwatch(old);
        }
        for new in folders.iter().filter(|f| !self.folders.contains(f)) {
            let _ = watcher.watch(new, RecursiveMode::NonRecursive);
        }
        self.folders = folders;
    }
}

/// Sends lines, and the source's problem when it changes.
struct Reporter {
    config: Config,
    tx: mpsc::Sender<Observation>,
    now: Now,
    reported: ReportedProblem,
}

impl Reporter {
    /// Returns whether anybody still receives observations.
    async fn report(&mut self, lines: Vec<u8>, polled: std::io::Result<Polled>, long_lines: u64) -> bool {
        let path: Arc<str> = self.config.path.to_string_lossy().into();
        let (problem, is_backlog) = match polled {
            Err(e) => (Some(Problem::Unreadable { path, why: e.to_string() }), false),
            Ok(polled) if polled.is_missing => (Some(Problem::NoFile { path }), polled.is_backlog),
            Ok(polled) if long_lines > 0 => {
                (Some(Problem::LongLines { path, lines: long_lines }), polled.is_backlog)
            }
            Ok(polled) => (None, polled.is_backlog),
        };
        let at = (self.now)();
        let Config { target, source, .. } = self.config;
        if !lines.is_empty() {
            let arrival = if is_backlog { Arrival::Backlog(at) } else { Arrival::Live(at) };
            if self.tx.send(Observation::Lines { target, source, lines, arrival }).await.is_err() {
                return false;
            }
        }
        if !self.reported.changes_to(problem.clone()) {
            return true;
        }
        self.tx.send(Observation::State { target, source, kind: Source::Log, problem, at }).await.is_ok()
    }
}

/// Standard input is read on a thread of its own, because a read of it cannot be interrupted.
async fn standard_input(
    config: Config,
    tx: mpsc::Sender<Observation>,
    cancel: CancellationToken,
    now: Now,
) -> bool {
    let Config { target, source, .. } = config;
    let (chunks, mut lines_of) = mpsc::channel::<Vec<u8>>(8);
    std::thread::spawn(move || read_all(&mut std::io::stdin().lock(), &chunks));
    loop {
        let lines = tokio::select! {
            () = cancel.cancelled() => return true,
            lines = lines_of.recv() => lines,
        };
        let at = (now)();
        let observation = match lines {
            Some(lines) => Observation::Lines { target, source, lines, arrival: Arrival::Live(at) },
            None => {
                Observation::State { target, source, kind: Source::Log, problem: Some(Problem::Ended), at }
            }
        };
        let is_last = matches!(observation, Observation::State { .. });
        if tx.send(observation).await.is_err() || is_last {
            return true;
        }
    }
}

fn read_all(input: &mut impl Read, chunks: &mpsc::Sender<Vec<u8>>) {
    let (mut cutter, mut buffer) = (Cutter::default(), vec![0; cut::CHUNK]);
    loop {
        let read = match input.read(&mut buffer) {
            Ok(read) => read,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => 0,
        };
        let mut lines = Vec::new();
        if read == 0 {
            cutter.flush(&mut lines);
        } else {
            cutter.feed(&buffer[..read], &mut lines);
        }
        let is_over = !lines.is_empty() && chunks.blocking_send(lines).is_err();
        if is_over || read == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use skewtrap_trace::time::Time;

    #[tokio::test]
    async fn lines_that_are_appended_arrive_and_a_missing_file_is_told_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("later/server.log");
        let (tx, mut rx) = mpsc::channel(16);
        let cancel = CancellationToken::new();
        let config =
            Config { target: TargetId(0), source: SourceId(3), path: path.clone(), from_start: false };
        let now: Now = Arc::new(|| Time::from_epoch_s(5.0));
        let task = tokio::spawn(run(config, tx, cancel.clone(), now));
        let first = rx.recv().await.expect("a problem");
        assert!(
            matches!(first, Observation::State { problem: Some(Problem::NoFile { .. }), .. }),
            "{first:?}"
        );
        std::fs::create_dir(path.parent().expect("a parent")).expect("made");
        let mut file = std::fs::File::create(&path).expect("made");
        file.write_all(b"one\ntw").expect("written");
        let mut lines = Vec::new();
        let mut is_well = false;
        file.write_all(b"o\nthree\n").expect("written");
        while lines != b"one\ntwo\nthree\n" || !is_well {
            match rx.recv().await.expect("the task lives") {
                Observation::Lines { lines: more, arrival, .. } => {
                    assert_eq!(arrival, Arrival::Live(Time::from_epoch_s(5.0)));
                    lines.extend(more);
                }
                Observation::State { problem, .. } => is_well = problem.is_none(),
                other => panic!("{other:?}"),
            }
        }
        cancel.cancel();
        assert!(task.await.expect("it ends"));
    }

    #[test]
    fn standard_input_gives_whole_lines_and_its_rest_at_the_end() {
        let (chunks, mut lines) = mpsc::channel(8);
        read_all(&mut &b"one\ntwo\nrest"[..], &chunks);
        drop(chunks);
        let mut all = Vec::new();
        while let Some(more) = lines.blocking_recv() {
            all.extend(more);
        }
        assert_eq!(all, b"one\ntwo\nrest\n");
    }
}
