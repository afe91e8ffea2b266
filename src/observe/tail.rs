//! Follows log files and standard input: the source of whole lines.
//!
//! One thread owns the files of a folder and the kernel's notices about them (`notices`), reads what is
//! there (`follow`) and hands over batches. Nothing else takes part, so that a line costs few system
//! calls, and a mount that hangs stops no other source. Notices decide only when to read; where there are
//! none (a network mount, a writer on the other side of an overlay) a timer does.

mod cut;
mod follow;
mod input;
mod notices;
#[cfg(test)]
mod paused;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

pub use self::cut::{KEPT, LineSplitter};
pub use self::follow::{Follow, Polled};
use self::notices::{Notices, Watched};
use super::Now;
use super::sender::{ObservationSender, ReceiverGone, size_of_one};
use skewtrap_core::signal::log_reader::Arrival;
use skewtrap_core::signal::observation::{Observation, Problem, ReportedProblem, SourceId};
use skewtrap_core::signal::sample::{Source, TargetId};

/// The longest time between two polls.
const TICK: Duration = Duration::from_millis(250);
/// On a busy log, lines of so long a time are read together and have one time of arrival; the first after a pause
/// is read at once. What a rank needed for its work is measured between such times, so this is as long as may be.
/// A recording of a slowed rank, its times rounded up with eight phases each: found two seconds later in one of
/// eight with 20 ms, in two with 30, in five with 40; with 100 ms healthy ranks fire. Waking
/// up is most of what a busy log costs.
const TOGETHER: Duration = Duration::from_millis(30);
/// The same where a line may fire a rule, open or close a window.
const IN_HASTE: Duration = Duration::from_millis(20);
/// A log is busy until so long after its last line.
const BUSY: Duration = Duration::from_millis(60);
/// Unless lines are handed over at once, what was read is handed over so long after the lines before it, so
/// that the loop is woken once for all of it; the clock evaluates rules no more often
/// ([`skewtrap_core::watch::TICK`]).
const GATHERED: Duration = Duration::from_millis(200);
/// Bytes of lines that are handed over at once.
const PLENTY: usize = 64 << 10;
/// Bytes that one poll reads; then other logs have their turn.
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

/// Whether that path is standard input.
fn is_input(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// The logs of one folder, which one thread reads: two folders may be two mounts, of which one hangs.
/// Standard input is read for itself.
pub fn by_folder(configs: impl IntoIterator<Item = Config>) -> Vec<Vec<Config>> {
    let (input, files): (Vec<_>, Vec<_>) = configs.into_iter().partition(|config| is_input(&config.path));
    let mut folders: BTreeMap<Option<PathBuf>, Vec<Config>> = BTreeMap::new();
    for config in files {
        folders.entry(config.path.parent().map(Path::to_owned)).or_default().push(config);
    }
    input.into_iter().map(|config| vec![config]).chain(folders.into_values()).collect()
}

/// Follows logs until cancelled, until standard input ends, or until nobody receives observations.
/// Returns whether it is finished for good; it is not after a panic.
pub async fn run(
    configs: Vec<Config>,
    sender: ObservationSender,
    cancel: CancellationToken,
    now: Now,
) -> bool {
    let (input, files): (Vec<_>, Vec<_>) = configs.into_iter().partition(|c| is_input(&c.path));
    if let Some(input) = input.into_iter().next() {
        return input::follow(input, sender, cancel, now).await;
    }
    #[cfg(test)]
    if crate::world::stand_in::current().is_some() {
        return paused::run(files, sender, cancel, now).await;
    }
    let reading = Reading {
        logs: files.into_iter().map(Log::new).collect(),
        notices: Notices::new(),
        reporter: Reporter::new(sender, now),
        cancel: cancel.clone(),
        read: None,
    };
    let (ends, ended) = oneshot::channel();
    let thread = std::thread::Builder::new().name("logs".into()).spawn(move || {
        reading.run();
        // Nobody waits for it once it is cancelled.
        let _ = ends.send(());
    });
    if let Err(error) = thread {
        tracing::error!("no thread can be started to read the logs: {error}");
        return false;
    }
    tokio::select! {
        () = cancel.cancelled() => true,
        ended = ended => ended.is_ok(),
    }
}

/// The thread.
struct Reading {
    logs: Vec<Log>,
    notices: Notices,
    reporter: Reporter,
    cancel: CancellationToken,
    /// When lines were read last.
    read: Option<Instant>,
}

/// One log and what was reported of it.
struct Log {
    config: Config,
    /// As problems name it.
    path: Arc<str>,
    follow: Follow,
    reported: ReportedProblem,
    watched: Watched,
    /// Whether something may have changed.
    is_due: bool,
    /// Whether it had lines a moment ago.
    is_busy: bool,
    truncations: u64,
    lost_files: u64,
}

impl Log {
    fn new(config: Config) -> Self {
        let follow = Follow::new(&config.path, config.from_start);
        let (reported, watched) = Default::default();
        let path = config.path.to_string_lossy().into();
        Self {
            config,
            path,
            follow,
            reported,
            watched,
            is_due: true,
            is_busy: false,
            truncations: 0,
            lost_files: 0,
        }
    }
}

impl Reading {
    fn run(mut self) {
        let mut ticked: Option<Instant> = None;
        while !self.cancel.is_cancelled() {
            let tick = ticked.is_none_or(|at| at.elapsed() >= TICK);
            if tick {
                ticked = Some(Instant::now());
            }
            match self.turn(tick) {
                Err(ReceiverGone) => return,
                Ok(true) => {}
                Ok(false) => {
                    let rest = TICK.saturating_sub(ticked.map_or(TICK, |at| at.elapsed()));
                    if self.wait(rest).is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Reads the logs in which something may have changed, all at a tick; returns whether one has more.
    fn turn(&mut self, tick: bool) -> Result<bool, ReceiverGone> {
        if tick {
            self.take_notices();
        }
        let mut more = false;
        for log in self.logs.iter_mut().filter(|log| tick || log.is_due) {
            let mut lines = Vec::new();
            let polled = log.follow.poll(BUDGET, tick, &mut lines);
            log.is_due = matches!(&polled, Ok(p) if p.more);
            log.is_busy |= !lines.is_empty();
            more |= log.is_due;
            let is_missing = matches!(&polled, Ok(p) if p.is_missing);
            if !lines.is_empty() {
                self.read = Some(Instant::now());
            }
            self.reporter.report(log, lines, polled)?;
            self.notices.keep(&mut log.watched, &log.follow, &log.config.path, tick, is_missing);
        }
        self.reporter.hand_over()?;
        Ok(more)
    }

    /// Waits until something may have changed. While lines come they are waited for together, and then read
    /// without asking the kernel for its notices first: on a busy log there is something, and a notice of a line
    /// that was read already would only make it look in vain.
    fn wait(&mut self, longest: Duration) -> Result<(), ReceiverGone> {
        while self.read.is_some_and(|at| at.elapsed() < BUSY) {
            let is_immediate = self.reporter.sender.immediate().get();
            std::thread::sleep(if is_immediate { IN_HASTE } else { TOGETHER });
            let has_read = self.read_on()?;
            if self.logs.len() > 1 && self.take_notices() || has_read {
                return Ok(());
            }
            self.reporter.hand_over()?;
        }
        self.logs.iter_mut().for_each(|log| log.is_busy = false);
        let longest = self.reporter.until_due().map_or(longest, |due| due.min(longest));
        if self.notices.wait(longest) {
            self.take_notices();
        }
        Ok(())
    }

    /// Reads what was appended to the logs that had lines a moment ago; returns whether there was anything.
    fn read_on(&mut self) -> Result<bool, ReceiverGone> {
        let mut has_read = false;
        for log in self.logs.iter_mut().filter(|log| log.is_busy) {
            let mut lines = Vec::new();
            // An error, like everything else that is not a line, is for the next turn to find.
            has_read |= log.follow.read_on(BUDGET, &mut lines).unwrap_or(false);
            if !lines.is_empty() {
                self.read = Some(Instant::now());
                self.reporter.lines(log, lines, false)?;
            }
        }
        Ok(has_read)
    }

    /// Notes which logs the notices concern that have come; returns whether there are any.
    fn take_notices(&mut self) -> bool {
        let logs = &mut self.logs;
        self.notices.take(|notice| {
            for log in logs.iter_mut() {
                log.is_due |= log.watched.concerns(notice);
            }
        });
        logs.iter().any(|log| log.is_due)
    }
}

/// Hands over lines, and a source's problem when it changes.
struct Reporter {
    sender: ObservationSender,
    now: Now,
    runtime: Handle,
    /// What was read and not handed over, and how many bytes it has.
    gathered: Vec<Observation>,
    bytes: usize,
    /// When something was handed over last.
    handed_over: Option<Instant>,
}

impl Reporter {
    fn new(sender: ObservationSender, now: Now) -> Self {
        let (gathered, bytes, handed_over) = Default::default();
        Self { sender, now, runtime: Handle::current(), gathered, bytes, handed_over }
    }

    fn report(
        &mut self,
        log: &mut Log,
        lines: Vec<u8>,
        polled: std::io::Result<Polled>,
    ) -> Result<(), ReceiverGone> {
        let path = log.path.clone();
        self.warn_of_loss(log, &path);
        let (long_lines, lost_files) = (log.follow.long_lines(), log.follow.lost_files());
        let is_backlog = matches!(&polled, Ok(polled) if polled.is_backlog);
        let problem = match polled {
            Err(e) if e.kind() == std::io::ErrorKind::InvalidInput => {
                Some(Problem::NotAFile { path, what: e.to_string() })
            }
            Err(e) => Some(Problem::Unreadable { path, why: e.to_string() }),
            Ok(polled) if polled.is_missing => Some(Problem::NoFile { path }),
            Ok(_) if lost_files > 0 => Some(Problem::LostFiles { path, files: lost_files }),
            Ok(_) if long_lines > 0 => Some(Problem::LongLines { path, lines: long_lines }),
            Ok(_) => None,
        };
        if !lines.is_empty() {
            self.lines(log, lines, is_backlog)?;
        }
        if !log.reported.changes_to(problem.clone()) {
            return Ok(());
        }
        let at = (self.now)();
        let Config { target, source, .. } = log.config;
        self.gathered.push(Observation::State { target, source, kind: Source::Log, problem, at });
        self.send()
    }

    fn lines(&mut self, log: &Log, lines: Vec<u8>, is_backlog: bool) -> Result<(), ReceiverGone> {
        let at = (self.now)();
        let Config { target, source, .. } = log.config;
        let arrival = if is_backlog { Arrival::Backlog(at) } else { Arrival::Live(at) };
        let observation = Observation::Lines { target, source, lines, arrival };
        self.bytes += size_of_one(&observation);
        self.gathered.push(observation);
        if self.bytes >= PLENTY { self.send() } else { Ok(()) }
    }

    /// Until when what was gathered may wait; `None` where nothing was.
    fn until_due(&self) -> Option<Duration> {
        let rest = || GATHERED.saturating_sub(self.handed_over.map_or(GATHERED, |at| at.elapsed()));
        (!self.gathered.is_empty()).then(rest)
    }

    /// Hands over what was gathered, if that is due.
    fn hand_over(&mut self) -> Result<(), ReceiverGone> {
        match self.until_due() {
            Some(rest) if rest.is_zero() || self.sender.immediate().get() => self.send(),
            _ => Ok(()),
        }
    }

    /// Waits while the loop is behind.
    fn send(&mut self) -> Result<(), ReceiverGone> {
        self.handed_over = Some(Instant::now());
        self.bytes = 0;
        match self.sender.try_send(std::mem::take(&mut self.gathered))? {
            None => Ok(()),
            Some(waiting) => self.runtime.block_on(self.sender.send_all(waiting)),
        }
    }

    fn warn_of_loss(&self, log: &mut Log, path: &str) {
        let lost = log.follow.lost_files();
        if std::mem::replace(&mut log.lost_files, lost) != lost {
            tracing::warn!(
                "log {path} is rotated faster than it can be read, or its old files cannot be read: {lost} of them were lost so far"
            );
        }
        let truncations = log.follow.truncations();
        if std::mem::replace(&mut log.truncations, truncations) != truncations {
            let unseen = log.follow.unseen();
            tracing::info!(
                "log {path} was truncated ({truncations} times by now); so far at least {unseen} bytes were gone before they could be read"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::observe::sender::observation_channel;
    use skewtrap_trace::time::Time;

    #[tokio::test]
    async fn lines_that_are_appended_arrive_and_a_missing_file_is_told_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("later/server.log");
        let (tx, mut rx) = observation_channel(16, 1 << 20);
        let cancel = CancellationToken::new();
        let config =
            Config { target: TargetId(0), source: SourceId(3), path: path.clone(), from_start: false };
        let now: Now = Arc::new(|| Time::from_epoch_s(5.0));
        let task = tokio::spawn(run(vec![config], tx, cancel.clone(), now));
        let first = rx.recv().await.expect("a problem").observations.remove(0);
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
            for observation in rx.recv().await.expect("the task lives").observations {
                match observation {
                    Observation::Lines { lines: more, arrival, .. } => {
                        assert_eq!(arrival, Arrival::Live(Time::from_epoch_s(5.0)));
                        lines.extend(more);
                    }
                    Observation::State { problem, .. } => is_well = problem.is_none(),
                    other => panic!("{other:?}"),
                }
            }
        }
        cancel.cancel();
        assert!(task.await.expect("it ends"));
    }

    #[tokio::test]
    async fn lines_that_come_soon_after_others_are_handed_over_together_unless_they_are_wanted_at_once() {
        let (tx, mut rx) = observation_channel(16, 1 << 20);
        let immediate = tx.immediate().clone();
        let (target, source) = (TargetId(0), SourceId(3));
        let log = Log::new(Config { target, source, path: "server.log".into(), from_start: false });
        let mut reporter = Reporter::new(tx, Arc::new(|| Time::from_epoch_s(5.0)));
        let mut read = |line: &str, reporter: &mut Reporter| {
            reporter.lines(&log, line.as_bytes().to_vec(), false).expect("somebody receives");
            reporter.hand_over().expect("somebody receives");
            rx.try_recv().map_or(0, |seen| seen.observations.len())
        };
        assert_eq!(read("one\n", &mut reporter), 1, "the first after a pause");
        reporter.handed_over = Some(Instant::now() + Duration::from_secs(3600));
        assert_eq!(read("two\n", &mut reporter), 0);
        assert_eq!(reporter.until_due(), Some(GATHERED));
        immediate.set(true);
        assert_eq!(read("three\n", &mut reporter), 2, "each with its own time of arrival");
        immediate.set(false);
        reporter.handed_over = Some(Instant::now() + Duration::from_secs(3600));
        assert_eq!(read(&"much\n".repeat(PLENTY), &mut reporter), 1);
        assert_eq!(reporter.until_due(), None);
    }

    #[test]
    fn standard_input_is_read_for_itself_and_no_log_beside_it_is_lost() {
        let config = |path: &str| Config {
            target: TargetId(0),
            source: SourceId(3),
            path: path.into(),
            from_start: false,
        };
        let groups = by_folder(["-", "server.log", "-", "/var/log/a.log", "/var/log/b.log"].map(config));
        let paths: Vec<Vec<&str>> =
            groups.iter().map(|g| g.iter().filter_map(|c| c.path.to_str()).collect()).collect();
        assert_eq!(
            paths,
            [vec!["-"], vec!["-"], vec!["server.log"], vec!["/var/log/a.log", "/var/log/b.log"]]
        );
    }
}
