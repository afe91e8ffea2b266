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

/// One that failed says why.
type Write = Box<dyn FnOnce(&State) -> Result<(), String> + Send>;
type Repeated = Box<dyn Fn(&State) -> Result<(), StateError> + Send>;

/// The queue of a state, shared by its clones; the thread ends with the last of them.
pub(super) struct Writer {
    queue: SyncSender<Job>,
    waiting: Arc<Waiting>,
    thread: Option<ThreadId>,
    /// Writes that failed and are tried again.
    unwritten: Mutex<Vec<Repeated>>,
    /// Writes that wait for a stand-in of the disk.
    #[cfg(test)]
    held: stand_in::Held,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("waiting", &self.waiting).finish_non_exhaustive()
    }
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
        crate::world::lock(&self.progress)
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
            unwritten: Mutex::default(),
            #[cfg(test)]
            held: stand_in::Held::default(),
        }
    }
}

fn run(jobs: &Receiver<Job>, waiting: &Waiting) {
    while let Ok(Job { state, write }) = jobs.recv() {
        waiting.lock().since = Some(Instant::now());
        let failed = write(&state).err();
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
        self.queue_or_lose(Box::new(move |state| write(state).map_err(|error| error.to_string())));
    }

    fn queue_or_lose(&self, write: Write) {
        if !self.queue(write) {
            error!("the state in {} takes no writes, and too many wait: one is lost", self.file.display());
        }
    }

    /// Gives whether the write waits now: too many may.
    fn queue(&self, write: Write) -> bool {
        let job = Job { state: self.clone(), write };
        #[cfg(test)]
        if let Some(machine) = crate::world::stand_in::current() {
            stand_in::later(&machine, job);
            return true;
        }
        self.writer.waiting.lock().waiting += 1;
        let is_queued = self.writer.queue.try_send(job).is_ok();
        if !is_queued {
            self.writer.waiting.lock().waiting -= 1;
        }
        is_queued
    }

    /// Writes when the disk lets it, and where that fails again and again until the disk takes it or the
    /// agent ends; the next agent looks at what is left.
    pub fn write_until_done(&self, write: impl Fn(&Self) -> Result<(), StateError> + Send + 'static) {
        self.write_again(vec![Box::new(write)]);
    }

    /// [`Self::write_until_done`] of the end of a window.
    pub fn finish_later(&self, attempt: &str, incident: &str, stored: &StoredCapture) {
        let (attempt, incident, stored) = (attempt.to_owned(), incident.to_owned(), stored.clone());
        self.write_until_done(move |state| state.finish(&attempt, &incident, &stored));
    }

    /// Tries again what failed; to be called every second.
    pub fn retry_unwritten(&self) {
        let unwritten = self.take_unwritten();
        if !unwritten.is_empty() {
            self.write_again(unwritten);
        }
    }

    /// The same at once.
    ///
    /// # Errors
    /// The disk does not take all of it.
    pub(super) fn write_what_failed(&self) -> Result<(), StateError> {
        self.write_all(self.take_unwritten())
    }

    fn take_unwritten(&self) -> Vec<Repeated> {
        std::mem::take(&mut *crate::world::lock(&self.writer.unwritten))
    }

    fn write_again(&self, writes: Vec<Repeated>) {
        let writes = Arc::new(Mutex::new(writes));
        let taken = writes.clone();
        let take = move || std::mem::take(&mut *crate::world::lock(&taken));
        let rest = take.clone();
        if !self.queue(Box::new(move |state| state.write_all(take()).map_err(|error| error.to_string()))) {
            // They are tried again when fewer wait.
            crate::world::lock(&self.writer.unwritten).extend(rest());
        }
    }

    /// Writes each; what fails is kept for another try.
    fn write_all(&self, writes: Vec<Repeated>) -> Result<(), StateError> {
        let mut failed = Ok(());
        for write in writes {
            if let Err(error) = write(self) {
                failed = Err(error);
                crate::world::lock(&self.writer.unwritten).push(write);
            }
        }
        failed
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
    pub fn write_and_report(
        &self,
        write: impl FnOnce(&Self) -> Result<(), StateError> + Send + 'static,
    ) -> oneshot::Receiver<Result<(), StateError>> {
        let (tell, told) = oneshot::channel();
        self.queue_or_lose(Box::new(move |state| {
            let result = write(state);
            let failed = result.as_ref().copied().map_err(ToString::to_string);
            // Nobody may wait any more.
            let _ = tell.send(result);
            failed
        }));
        told
    }

    /// How many writes wait.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.writer.waiting.lock().waiting
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
    fn a_write_that_fails_is_told_and_one_that_must_be_written_is_tried_until_it_is() {
        let state = State::in_memory().unwrap();
        let refused = || StateError::Vanished { folder: "/gone".into() };
        let mut kept = state.write_and_report(move |_| Err(refused()));
        state.written();
        assert!(kept.try_recv().is_ok_and(|result| result.is_err()), "whoever waits is told");
        assert!(state.failed().is_some_and(|why| why.contains("/gone")), "and everybody else");
        let tries = Arc::new(Mutex::new(0));
        let tried = tries.clone();
        state.write_until_done(move |_| {
            let mut tries = tried.lock().unwrap();
            *tries += 1;
            if *tries < 3 { Err(refused()) } else { Ok(()) }
        });
        for tick in 1..=4 {
            state.written();
            assert_eq!(*tries.lock().unwrap(), tick.min(3));
            assert_eq!(state.failed().is_some(), tick < 3);
            state.retry_unwritten();
        }
    }

    #[test]
    fn what_must_be_written_outlives_a_disk_that_hangs_until_too_many_writes_wait() {
        let state = State::in_memory().unwrap();
        let (go, waits) = channel::<()>();
        state.later(move |_| {
            let _ = waits.recv();
            Ok(())
        });
        (0..WAITING + 2).for_each(|_| state.later(|_| Ok(())));
        let (wrote, hears) = channel();
        state.write_until_done(move |_| {
            let _ = wrote.send(());
            Ok(())
        });
        state.retry_unwritten();
        go.send(()).unwrap();
        state.written();
        state.retry_unwritten();
        state.written();
        assert_eq!(hears.try_iter().count(), 1, "it was written, once");
    }

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
