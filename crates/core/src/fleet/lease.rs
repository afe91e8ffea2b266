//! The lease of a pool: one window at a time, whichever of its agents opens it, and one budget for all.
//!
//! The lease is a sequence of numbered objects in the store. Each is created once, by a put that fails where the
//! name is taken, and holds all that is to be known; the one with the highest number holds. The number under which
//! an agent took the lease is its fencing number: it only grows, and no two agents have the same.
//!
//! No agent's wall clock matters. Who takes the lease starts its window within [`START_WITHIN`] of having asked, by
//! its own steady clock, or not at all. Who finds it taken counts from the moment at which the *store* stamped the
//! object, by the store's clock, which it measures with a write of its own ([`StoreClock`]).
//!
//! [`LeaseRequest`] and [`LeaseReturn`] decide; they say what to ask of the store next and are told what came of it.

mod give_back;
mod take;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::give_back::{GiveBackStep, LeaseReturn, WindowEnd};
pub use self::take::{Answer, LeaseRequest, LeaseRequestStep, Proof};
use crate::capture::governor::{Budget, Estimate};
use crate::capture::refusal::Refusal;
use skewtrap_trace::time::Time;

/// The version of the lease's objects.
pub const VERSION: u32 = 1;
/// A start is sent within this time of having asked for the lease, or not at all.
pub const START_WITHIN: Duration = Duration::from_secs(10);
/// Beside the error of a measured clock: how far the clocks of a store's own machines may be apart.
const ALLOWED_SKEW: Duration = Duration::from_secs(2);
/// A clock that differs from the store's by more is worth a message.
const NOTABLE_SKEW_S: f64 = 5.0;
const DAY: Duration = Duration::from_secs(86_400);
/// How often a take or a return is tried where others write at the same time.
const TRIES: u32 = 5;

/// The folder of a pool's lease.
pub fn lease_folder(pool: &str) -> String {
    format!("{pool}/lease")
}

/// The object of that number.
#[cfg(test)]
pub fn lease_object(pool: &str, number: u64) -> String {
    format!("{}/{number:012}.json", lease_folder(pool))
}

/// The number of an object of the lease.
pub fn lease_number(name: &str) -> Option<u64> {
    name.rsplit('/').next()?.strip_suffix(".json")?.parse().ok()
}

/// The object by which the agent of a host measures the store's clock: it is written over and over.
pub fn clock_object(pool: &str, agent: &str) -> String {
    format!("{pool}/clocks/{agent}")
}

/// What an object of the lease says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeaseState {
    /// The version of this form.
    pub lease: u32,
    /// The window that is, or may be, open.
    pub open: Option<Intent>,
    /// The windows of the last day, in their order.
    pub windows: Vec<PoolWindow>,
}

impl Default for LeaseState {
    fn default() -> Self {
        Self { lease: VERSION, open: None, windows: Vec::new() }
    }
}

impl LeaseState {
    /// What an object says; `None` where this version cannot read it.
    pub fn read(object: &[u8]) -> Option<Self> {
        serde_json::from_slice(object).ok().filter(|state: &Self| state.lease <= VERSION)
    }

    /// What is said of one that [`Self::read`] cannot read.
    pub fn unreadable(name: &str) -> String {
        format!(
            "{name} is no lease that this skewtrap can read: was it written by a newer one? Bring all agents of the pool to one release"
        )
    }

    pub fn object(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("plain data serialises")
    }

    /// Books a window, or corrects what was booked for it; windows older than a day are dropped.
    fn book(&mut self, window: PoolWindow) {
        let newest = window.at;
        match self.windows.iter_mut().find(|w| w.nonce == window.nonce) {
            Some(known) => *known = window,
            None => self.windows.push(window),
        }
        self.forget_old(newest);
    }

    /// Drops the windows that no agent's day has any more.
    fn forget_old(&mut self, now: Time) {
        // Twice a day: the clock of another agent may say that it is later.
        self.windows.retain(|w| now.since(w.at) < 2 * DAY);
    }

    /// Books how a window ended; one whose start was never sent cost nothing.
    fn book_end(&mut self, end: &WindowEnd, window: PoolWindow) {
        match end.was_sent {
            true => self.book(PoolWindow {
                stall_s: end.stall_s,
                bytes: end.bytes,
                end: if end.unproven.is_none() { ReportedEnd::Closed } else { ReportedEnd::Unknown },
                ..window
            }),
            false => self.windows.retain(|w| w.nonce != window.nonce),
        }
    }

    /// Whether the pool's budget allows another window.
    fn allows(&self, budget: &Budget, expected: Estimate, now: Time) -> Result<(), Refusal> {
        let in_pool = |refusal| Err(Refusal::PoolBudget(Box::new(refusal)));
        // A stamp in the future counts as spent just now.
        let today: Vec<&PoolWindow> = self.windows.iter().filter(|w| now.since(w.at) < DAY).collect();
        let spent = u32::try_from(today.len()).unwrap_or(u32::MAX);
        if spent >= budget.windows {
            let frees = today.iter().map(|w| DAY.saturating_sub(now.since(w.at))).min();
            return in_pool(Refusal::DailyWindows { spent, left: frees.unwrap_or(DAY) });
        }
        let stalled: f64 = today.iter().map(|w| w.stall_s).sum();
        if stalled + expected.stalled.as_secs_f64() > budget.stalled.as_secs_f64() {
            return in_pool(Refusal::DailyStall {
                spent_s: stalled,
                expected_s: expected.stalled.as_secs_f64(),
                budget_s: budget.stalled.as_secs_f64(),
            });
        }
        let bytes = today.iter().fold(0u64, |sum, w| sum.saturating_add(w.bytes));
        if bytes.saturating_add(expected.bytes) > budget.bytes {
            let expected = expected.bytes;
            return in_pool(Refusal::DailyBytes { spent: bytes, expected, budget: budget.bytes });
        }
        Ok(())
    }
}

/// What the holder of the lease is about to do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Intent {
    /// The agent's id.
    pub agent: String,
    pub host: String,
    /// The configured name of the server.
    pub target: String,
    /// Where the server listens, as its agent reaches it: hosts may have several of one name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// What the server is, as it says itself: another instance has no window of this one.
    pub instance: Option<String>,
    /// The attempt, in the agent's own state.
    pub attempt: String,
    /// Tells this take of the lease from every other.
    pub nonce: String,
    /// The fencing number: that of the object by which the lease was taken.
    pub fence: u64,
    /// So many seconds after the store stamped the object, the window was stopped, if its agent lives.
    pub lasts_s: f64,
    /// What the window is expected to stall.
    pub expected_stall_s: f64,
    /// Why it may still be open though its agent has ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unproven: Option<String>,
}

impl Intent {
    /// For how long a window is taken to be open that is to be stopped after `deadline`.
    #[must_use]
    pub fn lasting(self, deadline: Duration) -> Self {
        let until_started = START_WITHIN + crate::capture::window::START_TIMEOUT;
        Self { lasts_s: (until_started + deadline + START_WITHIN).as_secs_f64(), ..self }
    }
}

/// A window of the pool's last day.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoolWindow {
    /// The number under which the lease was taken for it.
    pub fence: u64,
    /// The host of its agent.
    pub host: String,
    pub target: String,
    pub attempt: String,
    /// As in its [`Intent`].
    pub nonce: String,
    /// When the lease was taken, by the store's clock.
    pub at: Time,
    /// Seconds of serving that it cost; what was expected where its end is not known.
    pub stall_s: f64,
    /// Bytes that it wrote.
    pub bytes: u64,
    /// What is known of its end.
    pub end: ReportedEnd,
}

impl PoolWindow {
    /// The window of an intent that was taken at `at`, of which nothing else is known.
    fn of(intent: &Intent, at: Time) -> Self {
        Self {
            fence: intent.fence,
            host: intent.host.clone(),
            target: intent.target.clone(),
            attempt: intent.attempt.clone(),
            nonce: intent.nonce.clone(),
            at,
            stall_s: 0.0,
            bytes: 0,
            end: ReportedEnd::Unknown,
        }
    }
}

/// What is known of the end of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReportedEnd {
    /// Its agent has said that it is closed.
    Closed,
    /// Another agent has found that its server is not the one any more in which it was opened.
    ServerGone,
    /// Nobody has said that it is closed.
    Unknown,
}

/// The newest object of the lease.
#[derive(Clone, Debug, PartialEq)]
pub struct Latest {
    pub number: u64,
    /// What it says.
    pub state: LeaseState,
    /// When it was written, by the store's clock.
    pub stamped_at: Time,
}

/// What the store's clock says, measured by a write.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StoreClock {
    /// How far it is ahead of ours, in seconds; negative where it is behind.
    pub ahead_s: f64,
    /// By how much that may be wrong.
    pub error_s: f64,
}

impl StoreClock {
    /// From a write that was begun at `sent` and answered at `answered`, both by our clock, and stamped at `stamp` by
    /// the store's, to `resolution`.
    pub fn measured(sent: Time, answered: Time, stamp: Time, resolution: Duration) -> Self {
        let took = answered.since(sent).as_secs_f64();
        // Written at any moment between the two; a stamp is cut to its resolution.
        let ahead_s = stamp.signed_s_since(sent) - took / 2.0 + resolution.as_secs_f64() / 2.0;
        Self { ahead_s, error_s: (took + resolution.as_secs_f64()) / 2.0 }
    }

    /// How old something is at most that the store stamped at `stamped_at`, when ours says `now`.
    pub fn age_at_most(&self, stamped_at: Time, now: Time) -> Duration {
        Time::from_epoch_s(now.epoch_s() + self.ahead_s + self.error_s).since(stamped_at)
    }

    /// What it says at least when ours says `now`.
    fn at_least(&self, now: Time) -> Time {
        Time::from_epoch_s(now.epoch_s() + self.ahead_s - self.error_s)
    }

    /// A sentence where the clocks are so far apart that people should know; ours is the wall clock then.
    pub fn complaint(&self) -> Option<String> {
        let apart = self.ahead_s.abs() - self.error_s;
        let (seconds, side) = (self.ahead_s.abs(), if self.ahead_s > 0.0 { "behind" } else { "ahead of" });
        (apart > NOTABLE_SKEW_S).then(|| {
            format!(
                "the clock of this host is {seconds:.0} s {side} that of the store: incidents bear wrong times, and a store refuses requests whose time is wrong by 15 minutes; check its time synchronisation (the lease of the pool goes by the store's clock and is not affected)"
            )
        })
    }
}

/// The lease, taken: a window may be started while it is valid.
#[derive(Clone, Debug, PartialEq)]
pub struct GrantedLease {
    /// The fencing number.
    pub fence: u64,
    /// What it was taken for.
    pub intent: Intent,
    /// Just before it was asked for, by a steady clock.
    pub asked_at: Time,
    /// Whether the window of a holder before was never told closed.
    pub after_unproven: Option<Intent>,
}

impl GrantedLease {
    /// Whether a window may still be started, by the steady clock that [`LeaseRequest`] was given.
    pub fn is_valid(&self, now: Time) -> bool {
        now.since(self.asked_at) < START_WITHIN
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
