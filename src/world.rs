//! Where the agent meets its machine: threads that may wait for a disk, and the wall clock. A test may
//! put a machine of its own in their place, for its own thread, so that the whole agent runs on paused
//! time: the same seed gives the same run.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::task::JoinHandle;

use skewtrap_trace::time::Time;

/// The wall clock's present time.
pub fn wall_time() -> Time {
    #[cfg(test)]
    if let Some(machine) = stand_in::current() {
        return machine.wall_time();
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time::from_nanos(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

/// The time since the machine was started, that in which it was suspended included. Nobody can set it.
pub fn boot_time() -> Duration {
    #[cfg(test)]
    if let Some(machine) = stand_in::current() {
        return machine.boot_time();
    }
    let since = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::try_from(since).unwrap_or_default()
}

/// Locks what several threads share. A panic in one of them must not keep the others from going on.
pub fn lock<T: ?Sized>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs work that may wait for a disk on a thread where it holds up nobody else.
#[expect(clippy::disallowed_methods, reason = "the one place")]
pub fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    #[cfg(test)]
    if let Some(machine) = stand_in::current() {
        return tokio::spawn(async move {
            machine.disk().await;
            let result = work();
            machine.worked().await;
            result
        });
    }
    // Boxed: the task is compiled for each result instead of for each caller.
    let work: Box<dyn FnOnce() -> T + Send> = Box::new(work);
    tokio::task::spawn_blocking(work)
}

/// A machine that a test puts in place of the real one, for its own thread.
#[cfg(test)]
pub mod stand_in {
    use std::cell::RefCell;
    use std::future::Future;
    use std::pin::Pin;
    use std::sync::Arc;

    use super::{Duration, Time};

    /// Until something has happened.
    pub type Until = Pin<Box<dyn Future<Output = ()> + Send>>;

    /// A machine; what is not said of it goes well.
    pub trait Machine: Send + Sync {
        /// What its wall clock shows.
        fn wall_time(&self) -> Time;
        /// For how long it has run, suspended or not.
        fn boot_time(&self) -> Duration {
            Duration::ZERO
        }
        /// Until its disk takes an operation.
        fn disk(&self) -> Until {
            Box::pin(std::future::ready(()))
        }
        /// Until the news of it has come back.
        fn worked(&self) -> Until {
            Box::pin(std::future::ready(()))
        }
        /// Whether its disk refuses writes.
        fn disk_fails(&self) -> bool {
            false
        }
    }

    thread_local! {
        static MACHINE: RefCell<Option<Arc<dyn Machine>>> = const { RefCell::new(None) };
    }

    /// From now on this thread runs on that machine; with `None`, on the real one again.
    pub fn set(machine: Option<Arc<dyn Machine>>) {
        MACHINE.set(machine);
    }

    /// The machine of this thread, where it is not the real one.
    pub fn current() -> Option<Arc<dyn Machine>> {
        MACHINE.with_borrow(Clone::clone)
    }
}
