//! The messages of an incident: to each receiver at most three messages. The first says that it began, at
//! once, and why nothing is captured where that is known already; the second is the result; the third
//! is its end. The death of the server, if its log tells of one, is a message of its own, at most one an
//! incident. What comes after the result (a further window, its verdict, its refusal) only renews
//! what a receiver can edit in place, and stands in the last message.

use std::time::Duration;

use skewtrap_trace::time::Time;

/// The result waits this long for its verdict. Comparing the ranks takes seconds; nobody can do anything
/// with the files before, and one message with both is better than two.
pub const LONGEST_COMPARISON: Duration = Duration::from_secs(60);

/// How far the story of an incident is.
#[derive(Clone, Copy, Debug, Default)]
pub struct MessageProgress {
    /// Its beginning was told.
    has_begun: bool,
    /// The result was told.
    is_told: bool,
    /// A capture waits for its verdict: until when.
    awaited: Option<Time>,
}

impl MessageProgress {
    /// The messages of an incident that an earlier agent has begun to report.
    pub(super) const fn resumed(has_begun: bool, is_told: bool) -> Self {
        Self { has_begun, is_told, awaited: None }
    }

    /// The clock was set by so many nanoseconds.
    pub(super) fn shift(&mut self, by_ns: i64) {
        Time::shift_all(&mut self.awaited, by_ns);
    }

    /// Whether its beginning was told.
    pub(super) const fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Its beginning is told now; whether it was before.
    pub(super) fn begin(&mut self) -> bool {
        std::mem::replace(&mut self.has_begun, true)
    }

    /// Whether its result was told, or will be at once.
    pub(super) const fn is_told(&self) -> bool {
        self.is_told
    }

    /// A capture ended whose ranks are being compared.
    pub(super) fn await_verdict(&mut self, now: Time) {
        if !self.is_told {
            self.awaited = Some(now + LONGEST_COMPARISON);
        }
    }

    /// Whether a result waits for its verdict.
    pub(super) const fn is_awaiting(&self) -> bool {
        self.awaited.is_some()
    }

    /// Whether it has waited long enough.
    pub(super) fn is_due(&self, now: Time) -> bool {
        self.awaited.is_some_and(|due| due <= now)
    }

    /// The result is told now; whether one was before.
    pub(super) fn tell(&mut self) -> bool {
        let was_told = self.is_told;
        (self.is_told, self.awaited) = (true, None);
        was_told
    }
}
