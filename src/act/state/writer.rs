//! The thread that writes what nobody waits for, so that a disk that hangs holds up neither the loop nor
//! the stop of a window. Writes keep their order; a read waits for those before it.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use tracing::{error, warn};

use super::{State, StateError};

/// Writes that may wait: a disk that hangs for long costs the rest.
const WAITING: usize = 4096;
/// A write that takes longer than this hangs.
const HANGS: Duration = Duration::from_secs(2);

type Write = Box<dyn FnOnce(&State) -> Result<(), StateError> + Send>;

/// The queue of a state, shared by its clones; the thread ends with the last of them.
#[derive(Debug)]
pub(super) struct Writer {
    queue: SyncSender<Job>,
    waiting: Arc<Waiting>,
    thread: Option<ThreadId>,
}

struct Job {
    state: State,
    write: Write,
}

#[derive(Debug, Default)]
struct Waiting {
    count: Mutex<(usize, Option<Instant>)>,
    changed: Condvar,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, (usize, Option<Instant>)> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    pub(super) fn start() -> Self {
        let (queue, jobs) = sync_channel(WAITING);
        let waiting = Arc::new(Waiting::default());
        let theirs = waiting.clone();
        let spawned = std::thread::Builder::new().name("state".into()).spawn(move || run(&jobs, &theirs));
        if let Err(error) = &spawned {
            warn!(%error, "the state has no thread of its own");
        }
        Self { queue, waiting, thread: spawned.ok().map(|handle| handle.thread().id()) }
    }
}

fn run(jobs: &Receiver<Job>, waiting: &Waiting) {
    while let Ok(Job { state, write }) = jobs.recv() {
        waiting.lock().1 = Some(Instant::now());
        if let Err(error) = write(&state) {
            error!("{error}");
        }
        drop(state);
        let mut count = waiting.lock();
        *count = (count.0.saturating_sub(1), None);
        waiting.changed.notify_all();
    }
}

impl State {
    /// Writes when the disk lets it, in the order of the calls; an error is logged.
    pub fn later(&self, write: impl FnOnce(&Self) -> Result<(), StateError> + Send + 'static) {
        self.writer.waiting.lock().0 += 1;
        let job = Job { state: self.clone(), write: Box::new(write) };
        if self.writer.queue.try_send(job).is_err() {
            self.writer.waiting.lock().0 -= 1;
            error!("the state in {} takes no writes, and too many wait: one is lost", self.file.display());
        }
    }

    /// Waits for the writes before: a read must see them.
    pub(super) fn written(&self) {
        if self.writer.thread == Some(std::thread::current().id()) {
            return;
        }
        let mut count = self.writer.waiting.lock();
        while count.0 > 0 {
            count = self.writer.waiting.changed.wait(count).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The folder whose disk hangs, and since when: a write has not come back for seconds.
    pub fn hangs(&self) -> Option<(PathBuf, Duration)> {
        let since = self.writer.waiting.lock().1?.elapsed();
        (since > HANGS).then(|| (self.file.parent().unwrap_or(&self.file).to_owned(), since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_write_that_hangs_holds_up_nobody_and_is_told() {
        let state = State::in_memory().unwrap();
        let (go, waits) = channel::<()>();
        let (wrote, hears) = channel();
        let said = wrote.clone();
        state.later(move |_| {
            let _ = waits.recv();
            let _ = said.send(1);
            Ok(())
        });
        state.later(move |_| {
            let _ = wrote.send(2);
            Ok(())
        });
        assert!(hears.try_recv().is_err(), "both calls came back though the first write hangs");
        go.send(()).unwrap();
        state.written();
        assert_eq!(hears.try_iter().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(state.hangs(), None);
    }
}
