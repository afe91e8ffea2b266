//! The lease of the pool as windows need it: asked for before a window is begun, checked right before its start is
//! sent, given back when it has ended. Without a store there is none, and nothing of it is asked.
//!
//! Whoever keeps it (`keeper`) is a task of its own, which alone speaks to the store.

#[cfg(feature = "fleet")]
pub mod gather;
#[cfg(feature = "fleet")]
mod keeper;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

#[cfg(feature = "fleet")]
pub(super) use self::keeper::start;
#[cfg(feature = "fleet")]
pub use self::keeper::{lease_of, try_out};
use crate::clock::Clock;
use crate::config::store::OnLeaseLoss;
use crate::world::boot_time;
use skewtrap_core::capture::admit::CaptureMethod;
use skewtrap_core::capture::governor::{Attempt, Budget, Estimate};
use skewtrap_core::capture::refusal::Refusal;
use skewtrap_core::capture::sizing::Sizing;
use skewtrap_core::fleet::gather::{Gathered, WindowManifest};
use skewtrap_core::fleet::lease::{GrantedLease, Intent, START_WITHIN, WindowEnd};
use skewtrap_trace::rank::Rank;

/// Takes and returns that may wait.
const WAITING: usize = 64;
/// What taking the lease may take: later a window would not show the onset, and half of its validity be over.
const TAKE_LIMIT: Duration = Duration::from_secs(5);
/// What the keeper may take for a lease, with what it was at: a little more than the store may, whose refusal
/// says more.
const ANSWER_LIMIT: Duration = TAKE_LIMIT.saturating_add(Duration::from_secs(1));

/// What is asked of the keeper.
#[derive(Debug)]
enum Ask {
    /// The lease, for a window; `None` where it may be opened without (`on_lease_loss: local_budget`).
    Take {
        intent: Box<Intent>,
        expected: Estimate,
        answer: oneshot::Sender<Result<Option<HeldLease>, Refusal>>,
    },
    /// The window has ended.
    GiveBack { intent: Box<Intent>, end: WindowEnd },
    /// A window of an agent before this one was closed: its attempt.
    Closed { attempt: String, end: WindowEnd },
    /// The agents of other nodes are to bring their ranks of a window.
    Announce(Box<WindowManifest>),
    /// What they brought is to be fetched into a folder, beside what is here; `None` where the pool has no such agents.
    Gather {
        manifest: Box<WindowManifest>,
        here: Vec<Rank>,
        folder: PathBuf,
        until: Instant,
        answer: oneshot::Sender<Option<Gathered>>,
    },
}

/// The lease of this agent's pool.
#[derive(Clone, Debug)]
pub struct Pool {
    asks: mpsc::Sender<Ask>,
    on_lease_loss: OnLeaseLoss,
    /// With what the lease is asked for.
    budget: Arc<Mutex<Budget>>,
}

/// The lease, held for one window.
#[derive(Clone, Debug)]
pub struct HeldLease {
    granted: Arc<GrantedLease>,
    /// The steady clock by which it was taken.
    steady: Clock,
    /// When it was asked for, by the time since the machine was started: the steady clock leaves out that in
    /// which it was suspended.
    boot: Duration,
    was_late: Arc<AtomicBool>,
}

/// The lease is not valid any more: nothing may be started under it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the lease of the pool was taken {:.0} s ago and is good for {} s; nothing was sent to the server: look for what held the agent up (its disk, its CPU limit, a suspended machine)",
    .0.as_secs_f64(),
    START_WITHIN.as_secs()
)]
pub struct LeaseOver(pub Duration);

impl HeldLease {
    /// Whether a window may be started now.
    ///
    /// # Errors
    /// It was taken too long ago.
    pub fn check(&self) -> Result<(), LeaseOver> {
        let by_boot = boot_time().saturating_sub(self.boot);
        let by_steady = self.steady.now().since(self.granted.asked_at);
        match self.granted.is_valid(self.steady.now()) && by_boot < START_WITHIN {
            true => Ok(()),
            false => Err(LeaseOver(by_steady.max(by_boot))),
        }
    }

    /// A start was answered: whether it may have left after the lease had ended. It stays known.
    pub fn check_answered(&self) -> bool {
        let is_late = self.check().is_err();
        self.was_late.fetch_or(is_late, Ordering::Relaxed);
        is_late
    }

    /// The note of a window that may have been open beside another of the pool.
    pub fn note(&self) -> Option<String> {
        let fence = self.granted.fence;
        self.was_late.load(Ordering::Relaxed).then(|| {
            format!(
                "the agent was held up between its last look at the lease of the pool (number {fence}) and the start, so another window of the pool may have been open at the same time; it was closed at once"
            )
        })
    }
}

/// What the lease is to be taken for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub attempt: &'a Attempt,
    /// What is to be done.
    pub method: &'a CaptureMethod,
    /// What the server is.
    pub instance: Option<&'a str>,
    /// What the windows before it cost there.
    pub before: Estimate,
}

impl Wanted<'_> {
    /// When it is to be over, and what it is expected to cost: as it was predicted, else as the windows before it.
    fn expected(&self) -> (Duration, Estimate) {
        let (deadline, predicted) = match self.method {
            CaptureMethod::Http(request) => {
                (request.deadline, request.sizing.as_deref().and_then(|sizing: &Sizing| sizing.predicted))
            }
            CaptureMethod::Nsys(nsys) => (nsys.duration, None),
            CaptureMethod::Command(command) => (command.time_limit, None),
        };
        (deadline, Estimate { stalled: predicted.unwrap_or(self.before.stalled), ..self.before })
    }
}

impl Pool {
    /// What a day may cost from the next lease on: what is spent is in the store, what may be is each agent's.
    pub fn set_budget(&self, budget: Budget) {
        *crate::world::lock(&self.budget) = budget;
    }

    /// The lease, for a window; `None` where it may be opened without.
    ///
    /// # Errors
    /// No window may be opened in the pool now.
    pub async fn take(&self, wanted: Wanted<'_>) -> Result<Option<HeldLease>, Refusal> {
        let (deadline, expected) = wanted.expected();
        let intent = Intent {
            target: wanted.attempt.target.clone(),
            instance: wanted.instance.map(str::to_owned),
            attempt: wanted.attempt.id.clone(),
            expected_stall_s: expected.stalled.as_secs_f64(),
            ..Intent::default()
        };
        let intent = Box::new(intent.lasting(deadline));
        let (answer, answered) = oneshot::channel();
        let gone = || Refusal::PoolLease {
            why: "the task that keeps it has ended: the agent ends, or its log says why".into(),
        };
        let asking = async {
            self.asks.send(Ask::Take { intent, expected, answer }).await.map_err(|_| gone())?;
            answered.await.map_err(|_| gone())?
        };
        // The keeper may be busy with a store that does not answer; what it takes later it gives back.
        match tokio::time::timeout(ANSWER_LIMIT, asking).await {
            Ok(taken) => taken,
            Err(_) => self.without_lease(Refusal::PoolLease {
                why: format!("the store did not answer within {} s", ANSWER_LIMIT.as_secs()),
            }),
        }
    }

    /// What the configuration says of a window for which the store does not answer.
    fn without_lease(&self, refusal: Refusal) -> Result<Option<HeldLease>, Refusal> {
        match self.on_lease_loss {
            OnLeaseLoss::Refuse => Err(refusal),
            OnLeaseLoss::LocalBudget => {
                tracing::warn!(
                    "a window is opened without the lease of the pool (on_lease_loss: local_budget): {refusal}"
                );
                Ok(None)
            }
        }
    }

    /// The window has ended; whoever waits in the pool need not wait longer.
    pub async fn give_back(&self, held: &HeldLease, end: WindowEnd) {
        let intent = Box::new(held.granted.intent.clone());
        // The keeper is gone only when the agent ends: the next one tells what its state knows.
        let _ = self.asks.send(Ask::GiveBack { intent, end }).await;
    }

    /// Has the agents of other nodes bring their ranks of a window.
    pub async fn announce(&self, manifest: &WindowManifest) {
        // As above.
        let _ = self.asks.send(Ask::Announce(Box::new(manifest.clone()))).await;
    }

    /// Fetches what they brought into `folder`, and waits for it until then at the latest; `here` are the ranks whose
    /// files this agent has. `None` where the pool has no such agents.
    pub async fn gather(
        &self,
        manifest: &WindowManifest,
        here: Vec<Rank>,
        folder: PathBuf,
        until: Instant,
    ) -> Option<Gathered> {
        let (answer, gathered) = oneshot::channel();
        let manifest = Box::new(manifest.clone());
        self.asks.send(Ask::Gather { manifest, here, folder, until, answer }).await.ok()?;
        gathered.await.ok()?
    }

    /// A window of an agent before this one was closed.
    pub async fn closed(&self, attempt: &str, end: WindowEnd) {
        // As above.
        let _ = self.asks.send(Ask::Closed { attempt: attempt.to_owned(), end }).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::act::attempt_of_a_test;
    use crate::world::stand_in::{self, Machine};
    use skewtrap_core::capture::CommandWindow;
    use skewtrap_trace::time::Time;

    #[test]
    fn a_window_is_expected_to_cost_the_pool_what_the_windows_before_it_did() {
        let time_limit = Duration::from_secs(7);
        let method = CaptureMethod::Command(CommandWindow { argv: Vec::new(), time_limit });
        let attempt = attempt_of_a_test("i1/1");
        let before = Estimate { stalled: Duration::from_secs(3), bytes: 1 << 30 };
        let wanted = Wanted { attempt: &attempt, method: &method, instance: None, before };
        assert_eq!(wanted.expected(), (time_limit, before));
    }

    /// A machine whose wall clock somebody sets, and that is suspended.
    #[derive(Default)]
    struct Suspended {
        set_by_s: Mutex<f64>,
        suspended: Mutex<Duration>,
    }

    impl Machine for Suspended {
        fn wall_time(&self) -> Time {
            Time::from_epoch_s(1_795_492_100.0 + *self.set_by_s.lock().expect("whole"))
        }

        fn boot_time(&self) -> Duration {
            Duration::from_secs(1000) + *self.suspended.lock().expect("whole")
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_wall_clock_that_is_set_ends_no_lease_and_a_machine_that_was_suspended_does() {
        let machine = Arc::new(Suspended::default());
        stand_in::set(Some(machine.clone()));
        let steady = Clock::start().steady();
        let asked_at = steady.now();
        let granted = GrantedLease { fence: 1, intent: Intent::default(), asked_at, after_unproven: None };
        let held = HeldLease { granted: granted.into(), steady, boot: boot_time(), was_late: Arc::default() };
        *machine.set_by_s.lock().expect("whole") += 3600.0;
        assert_eq!(held.check(), Ok(()));
        // Set back, it hides nothing.
        *machine.set_by_s.lock().expect("whole") -= 7200.0;
        *machine.suspended.lock().expect("whole") = Duration::from_secs(60);
        assert_eq!(held.check(), Err(LeaseOver(Duration::from_secs(60))));
        stand_in::set(None);
    }
}
