//! One supervisor over every task: a task that ends or panics is started again, after a pause
//! that grows, and counted. Nothing it does can stop another task.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, warn};

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A task that lived this long before it ended starts over with the first pause.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// Starts tasks and starts them again.
#[derive(Clone, Debug, Default)]
pub struct Supervisor {
    tasks: TaskTracker,
    cancel: CancellationToken,
    restarts: Arc<AtomicU64>,
    /// Where tasks run that must not wait for the loop; `None`: where they are started.
    background: Option<Handle>,
}

/// Where a task runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskPlacement {
    /// On the loop's own thread, which costs no change of threads for what it hands over.
    Here,
    /// Beside the loop.
    Background,
}

/// The background runtime, with a thread of its own. It schedules like the loop's, so that every task of the agent is
/// compiled for one scheduler instead of two.
#[derive(Debug)]
pub struct BackgroundRuntime {
    handle: Handle,
    stop: CancellationToken,
    ended: mpsc::Receiver<()>,
}

impl BackgroundRuntime {
    /// Starts it.
    ///
    /// # Errors
    /// The system gives no thread or no descriptor.
    pub fn start() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (handle, stop) = (runtime.handle().clone(), CancellationToken::new());
        let (tell, ended) = mpsc::channel();
        let stopped = stop.clone();
        std::thread::Builder::new().name("background".into()).spawn(move || {
            runtime.block_on(stopped.cancelled());
            // Threads that wait for a disk may never come back.
            runtime.shutdown_background();
            drop(tell);
        })?;
        Ok(Self { handle, stop, ended })
    }

    /// Where tasks are handed to it.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Ends it: its tasks are dropped where they wait. One that blocks its thread is left behind after `grace`.
    pub fn end(self, grace: Duration) {
        self.stop.cancel();
        // The answer is the end of the channel, never a message.
        let _ = self.ended.recv_timeout(grace);
    }
}

impl Supervisor {
    /// One whose tasks run on that runtime, if there is one, unless they belong to the loop.
    pub fn with_background(background: Option<Handle>) -> Self {
        Self { background, ..Self::default() }
    }

    fn spawn<T>(&self, place: TaskPlacement, task: T) -> JoinHandle<T::Output>
    where
        T: Future + Send + 'static,
        T::Output: Send + 'static,
    {
        match &self.background {
            Some(background) if place == TaskPlacement::Background => self.tasks.spawn_on(task, background),
            _ => self.tasks.spawn(task),
        }
    }

    /// The token that every task watches.
    pub fn cancel(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// How many times a task was started again.
    pub fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }

    /// Keeps the task that `make` makes alive until cancellation. A task that returns `true` is
    /// finished for good (standard input ended) and is not started again.
    pub fn keep<F, T>(&self, name: &'static str, place: TaskPlacement, make: F)
    where
        F: Fn() -> T + Send + 'static,
        T: Future<Output = bool> + Send + 'static,
    {
        let (cancel, restarts, this) = (self.cancel.clone(), self.restarts.clone(), self.clone());
        self.spawn(place, async move {
            let mut pause = FIRST_PAUSE;
            loop {
                let began = tokio::time::Instant::now();
                let ended = this.spawn(place, make()).await;
                if cancel.is_cancelled() || matches!(ended, Ok(true)) {
                    return;
                }
                restarts.fetch_add(1, Ordering::Relaxed);
                pause = if began.elapsed() > HEALTHY_AFTER { FIRST_PAUSE } else { pause };
                let how = if ended.is_err() { "panicked" } else { "ended" };
                warn!(task = name, again_in_s = pause.as_secs(), "the task {how}; it is started again");
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        });
    }

    /// Runs a task once, beside the loop. What it was for is not done again where it panics, which is logged.
    pub fn once<T>(&self, name: &'static str, task: T)
    where
        T: Future<Output = ()> + Send + 'static,
    {
        let running = self.spawn(TaskPlacement::Background, task);
        self.spawn(TaskPlacement::Background, async move {
            if let Err(failed) = running.await {
                error!(task = name, "the task failed, and is not started again: {failed}");
            }
        });
    }

    /// Cancels every task and waits for them, at most `grace`. Whether all ended.
    pub async fn stop(&self, grace: Duration) -> bool {
        self.cancel.cancel();
        self.tasks.close();
        tokio::time::timeout(grace, self.tasks.wait()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_is_started_again_and_counted_until_it_finishes() {
        let supervisor = Supervisor::default();
        let runs = Arc::new(AtomicUsize::new(0));
        let seen = runs.clone();
        supervisor.keep("fragile", TaskPlacement::Here, move || {
            let seen = seen.clone();
            async move {
                let run = seen.fetch_add(1, Ordering::Relaxed);
                assert!(run > 1, "dies twice");
                true
            }
        });
        supervisor.tasks.close();
        supervisor.tasks.wait().await;
        assert_eq!(runs.load(Ordering::Relaxed), 3);
        assert_eq!(supervisor.restarts(), 2);
    }

    #[test]
    fn what_belongs_to_the_loop_runs_on_its_thread_and_the_rest_beside_it() {
        let background = BackgroundRuntime::start().expect("a runtime");
        let here = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let supervisor = Supervisor::with_background(Some(background.handle().clone()));
        let (tell, told) = std::sync::mpsc::channel();
        here.block_on(async {
            for place in [TaskPlacement::Here, TaskPlacement::Background] {
                let tell = tell.clone();
                supervisor.keep("task", place, move || {
                    let tell = tell.clone();
                    async move { tell.send((place, std::thread::current().id())).is_ok() }
                });
            }
            supervisor.tasks.close();
            supervisor.tasks.wait().await;
        });
        drop(tell);
        let own = std::thread::current().id();
        let mut ran: Vec<_> =
            told.iter().map(|(place, thread)| (place == TaskPlacement::Here, thread == own)).collect();
        ran.sort_unstable();
        assert_eq!(ran, [(false, false), (true, true)]);
    }

    #[tokio::test(start_paused = true)]
    async fn stopping_ends_a_task_that_waits_for_its_next_life() {
        let supervisor = Supervisor::default();
        supervisor.keep("short-lived", TaskPlacement::Here, || async { false });
        tokio::time::advance(Duration::from_secs(3)).await;
        assert!(supervisor.stop(Duration::from_secs(1)).await);
    }
}
