//! Gives the lease of a pool back, with what its window cost.

use super::{Answer, Intent, Latest, LeaseState, PoolWindow, ReportedEnd, TRIES, VERSION};

/// How a window ended for which the lease was taken.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WindowEnd {
    /// Whether its start was sent.
    pub was_sent: bool,
    /// Seconds of serving that it cost.
    pub stall_s: f64,
    /// Bytes that it wrote.
    pub bytes: u64,
    /// Why it may still be open.
    pub unproven: Option<String>,
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq)]
pub enum GiveBackStep {
    /// Read the newest object.
    Read,
    /// Create the object of that number, if there is none.
    Create {
        number: u64,
        /// What it says.
        state: Box<LeaseState>,
    },
    /// It is given back; with whether somebody else has taken the lease since.
    Done {
        /// Somebody took it although this window was not given back: two may have been open at once.
        overtaken: bool,
    },
    /// The store says nothing: to be tried again from the beginning.
    Again(String),
}

/// A return of the lease under way.
#[derive(Clone, Debug)]
pub struct LeaseReturn {
    intent: Intent,
    end: WindowEnd,
    is_overtaken: bool,
    tries: u32,
}

impl LeaseReturn {
    /// Of a lease that was taken, or may have been, for this.
    pub fn new(intent: Intent, end: WindowEnd) -> Self {
        Self { intent, end, is_overtaken: false, tries: 0 }
    }

    /// The first step.
    pub const fn begin(&self) -> GiveBackStep {
        GiveBackStep::Read
    }

    /// The next step.
    pub fn on(&mut self, answer: Answer) -> GiveBackStep {
        match answer {
            Answer::Latest(Some(latest)) => self.found(*latest),
            Answer::Latest(None) | Answer::Created => GiveBackStep::Done { overtaken: self.is_overtaken },
            Answer::Exists => {
                self.tries += 1;
                match self.tries < TRIES {
                    true => GiveBackStep::Read,
                    false => GiveBackStep::Again(format!("other agents wrote it {TRIES} times meanwhile")),
                }
            }
            Answer::Measured(_) | Answer::Proven(_) => GiveBackStep::Read,
            Answer::Lost(why) => GiveBackStep::Again(why),
        }
    }

    fn found(&mut self, latest: Latest) -> GiveBackStep {
        let Latest { number, mut state, stamped_at } = latest;
        let booked = state.windows.iter().find(|w| w.nonce == self.intent.nonce).cloned();
        let done = GiveBackStep::Done { overtaken: self.is_overtaken };
        match state.open.as_ref().filter(|open| open.nonce == self.intent.nonce) {
            Some(open) if open.unproven.is_some() && self.end.unproven.is_some() => return done,
            Some(open) => {
                self.intent.fence = open.fence;
                state.open = self.end.unproven.as_ref().map(|why| Intent {
                    unproven: Some(why.clone()),
                    lasts_s: 0.0,
                    ..self.intent.clone()
                });
            }
            // It is given back already, or was never taken.
            None if booked.as_ref().is_none_or(|b| b.end == ReportedEnd::Closed) => return done,
            None if self.is_overtaken && self.end.unproven.is_some() => return done,
            // Who took the lease over has booked this window.
            None => self.is_overtaken = self.end.was_sent,
        }
        let window = booked.unwrap_or_else(|| PoolWindow::of(&self.intent, stamped_at));
        state.book_end(&self.end, window);
        state.lease = VERSION;
        GiveBackStep::Create { number: number + 1, state: Box::new(state) }
    }
}
