//! The thread that writes what nobody waits for, so that a disk that hangs holds up neither the loop nor
//! the stop of a window. Writes keep their order; a read waits for those before it.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tracing::{error, warn};

use skewtrap_core::incident::StoredCapture;

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
    unfinished: Mutex<Vec<Unfinished>>,
    /// Writes that wait for a stand-in of the disk.
    #[cfg(test)]
    held: stand_in::Held,
}

/// The end of a window that is not written yet.
#[derive(Debug)]
struct Unfinished {
    attempt: String,
    incident: String,
    stored: StoredCapture,
}

struct Job {
    state: State,
    write: Write,
}

#[derive(Debug, Default)]
struct Waiting {
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Progress {
    waiting: usize,
    /// Since when the write that is under way has been.
    since: Option<Instant>,
    /// Why the last write failed; `None` where it did not.
    failed: Option<String>,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
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
        let thread = spawned.ok().map(|handle| handle.thread().id());
        Self {
            queue,
            waiting,
            thread,
            unfinished: Mutex::default(),
            #[cfg(test)]
            held: stand_in::Held::default(),
        }
    }
}

fn run(jobs: &Receiver<Job>, waiting: &Waiting) {
    while let Ok(Job { state, write }) = jobs.recv() {
        waiting.lock().since = Some(Instant::now());
        let failed = write(&state).err().map(|error| error.to_string());
        if let Some(error) = &failed {
            error!("{error}");
        }
        drop(state);
        let mut progress = waiting.lock();
        *progress = Progress { waiting: progress.waiting.saturating_sub(1), since: None, failed };
        waiting.changed.notify_all();
    }
}

impl State {
    /// Writes when the disk lets it, in the order of the calls; an error is logged.
    pub fn later(&self, write: impl FnOnce(&Self) -> Result<(), StateError> + Send + 'static) {
        let job = Job { state: self.clone(), write: Box::new(write) };
        #[cfg(test)]
        if let Some(machine) = crate::world::stand_in::current() {
            return stand_in::later(&machine, job);
        }
        self.writer.waiting.lock().waiting += 1;
        if self.writer.queue.try_send(job).is_err() {
            self.writer.waiting.lock().waiting -= 1;
            error!("the state in {} takes no writes, and too many wait: one is lost", self.file.display());
        }
    }

    /// Writes the end of a window that could not be written, again and again until the disk takes it or the
    /// agent ends; the next agent looks at what is left.
    pub fn finish_later(&self, attempt: &str, incident: &str, stored: &StoredCapture) {
        let unfinished =
            Unfinished { attempt: attempt.into(), incident: incident.into(), stored: stored.clone() };
        self.writer.unfinished.lock().unwrap_or_else(PoisonError::into_inner).push(unfinished);
    }

    /// Tries again what [`Self::finish_later`] was given; to be called every second.
    pub fn retry_unfinished(&self) {
        let waiting =
            std::mem::take(&mut *self.writer.unfinished.lock().unwrap_or_else(PoisonError::into_inner));
        if waiting.is_empty() {
            return;
        }
        self.later(move |state| {
            for Unfinished { attempt, incident, stored } in waiting {
                if state.finish(&attempt, &incident, &stored).is_err() {
                    state.finish_later(&attempt, &incident, &stored);
                }
            }
            Ok(())
        });
    }

    /// Waits for the writes before: a read must see them.
    pub(super) fn written(&self) {
        #[cfg(test)]
        stand_in::written(self);
        if self.writer.thread == Some(std::thread::current().id()) {
            return;
        }
        let mut progress = self.writer.waiting.lock();
        while progress.waiting > 0 {
            progress = self.writer.waiting.changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for the writes before, at most for `limit`; gives whether they are done.
    pub fn settle(&self, limit: Duration) -> bool {
        let (waiting, progress) = (&self.writer.waiting, self.writer.waiting.lock());
        let waited = waiting.changed.wait_timeout_while(progress, limit, |progress| progress.waiting > 0);
        waited.unwrap_or_else(PoisonError::into_inner).0.waiting == 0
    }

    /// Like [`Self::later`]; gives what came of it, for whoever wants to wait.
    pub fn kept(
        &self,
        write: impl FnOnce(&Self) -> Result<(), StateError> + Send + 'static,
    ) -> oneshot::Receiver<Result<(), StateError>> {
        let (tell, told) = oneshot::channel();
        self.later(move |state| {
            // Where nobody waits any more, it is logged.
            match tell.send(write(state)) {
                Ok(()) => Ok(()),
                Err(result) => result,
            }
        });
        told
    }

    /// Why the last write failed, naming the file: its disk is full, say.
    pub fn failed(&self) -> Option<String> {
        self.writer.waiting.lock().failed.clone()
    }

    /// The folder whose disk hangs, and since when: a write has not come back for seconds.
    pub fn hangs(&self) -> Option<(PathBuf, Duration)> {
        let since = self.writer.waiting.lock().since?.elapsed();
        (since > HANGS).then(|| (self.file.parent().unwrap_or(&self.file).to_owned(), since))
    }
}

/// The same on a machine that a test put in place of the real one: writes wait for its disk, and are
/// lost with the agent.
#[cfg(test)]
mod stand_in {
    use std::collections::VecDeque;
    use std::fmt;
    use std::sync::{Arc, Mutex};

    use super::{Job, State, Write};
    use crate::world::stand_in::Machine;

    #[derive(Default)]
    pub(super) struct Held(Mutex<VecDeque<Write>>);

    impl fmt::Debug for Held {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Held")
        }
    }

    pub(super) fn later(machine: &Arc<dyn Machine>, job: Job) {
        let state = job.state.clone();
        state.writer.held.0.lock().expect("no panic").push_back(job.write);
        let machine = machine.clone();
        tokio::spawn(async move {
            machine.disk().await;
            written(&state);
        });
    }

    pub(super) fn written(state: &State) {
        let next = || state.writer.held.0.lock().expect("no panic").pop_front();
        while let Some(write) = next() {
            if let Err(error) = write(state) {
                tracing::error!("{error}");
            }
        }
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
