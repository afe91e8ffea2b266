//! Takes the lease of a pool.

use std::time::Duration;

use super::{
    ALLOWED_SKEW, GrantedLease, Intent, Latest, LeaseState, PoolWindow, ReportedEnd, START_WITHIN,
    StoreClock, TRIES, VERSION, WindowEnd,
};
use crate::capture::governor::{Budget, Estimate, QUIET};
use crate::capture::refusal::Refusal;
use skewtrap_trace::time::Time;

/// No window is believed to last longer.
const LONGEST_S: f64 = 86_400.0;

/// What is to be done next.
#[derive(Clone, Debug, PartialEq)]
pub enum LeaseRequestStep {
    /// Read the newest object: [`Answer::Latest`].
    Read,
    /// Measure the store's clock: [`Answer::Measured`].
    Measure,
    /// Find out whether that window is known to be closed: [`Answer::Proven`].
    Prove(Box<Intent>),
    /// Create the object of that number, if there is none: [`Answer::Created`] or [`Answer::Exists`].
    Create {
        number: u64,
        /// What it says.
        state: LeaseState,
    },
    Taken(Box<GrantedLease>),
    /// No window may open.
    Refused(Refusal),
}

/// What came of a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The newest object, if there is one.
    Latest(Option<Box<Latest>>),
    /// The store's clock beside the steady one.
    Measured(StoreClock),
    /// What is known of the end of the window.
    Proven(Proof),
    Created,
    /// Somebody else has created it.
    Exists,
    /// Nothing is known of what came of it, and why.
    Lost(String),
}

/// What is known of the end of a window that the lease says may be open.
#[derive(Clone, Debug, PartialEq)]
pub enum Proof {
    /// Nothing: it may be open.
    None,
    /// It was one's own: it ended so, or was never begun.
    Ended(WindowEnd),
    /// Its server is not the one any more in which it was opened.
    ServerGone,
}

/// A take of the lease under way. All times are of one steady clock of this process; only the stamps of objects are
/// the store's.
#[derive(Clone, Debug)]
pub struct LeaseRequest {
    intent: Intent,
    budget: Budget,
    expected: Estimate,
    clock: Option<StoreClock>,
    latest: Option<Box<Latest>>,
    proof: Proof,
    after_unproven: Option<Intent>,
    /// When the object was asked for that is being created, and its number.
    asked: Option<(u64, Time)>,
    tries: u32,
}

impl LeaseRequest {
    /// For a window of `intent`, which is expected to cost so much; with the store's clock where it was measured
    /// beside the steady one.
    pub fn new(intent: Intent, budget: Budget, expected: Estimate, clock: Option<StoreClock>) -> Self {
        Self {
            intent,
            budget,
            expected,
            clock,
            latest: None,
            proof: Proof::None,
            after_unproven: None,
            asked: None,
            tries: 0,
        }
    }

    /// The first step.
    pub const fn begin(&self) -> LeaseRequestStep {
        LeaseRequestStep::Read
    }

    /// The next step.
    pub fn on(&mut self, answer: Answer, now: Time) -> LeaseRequestStep {
        match answer {
            Answer::Latest(latest) => self.found(latest, now),
            Answer::Measured(clock) => {
                self.clock = Some(clock);
                self.decide(now)
            }
            Answer::Proven(proof) => {
                self.proof = proof;
                match self.proof {
                    Proof::Ended(_) | Proof::ServerGone => self.create(now),
                    Proof::None => self.wait(now),
                }
            }
            Answer::Created => match self.asked {
                Some((fence, asked_at)) => self.taken(fence, asked_at),
                None => lost("the store answered what was not asked".into()),
            },
            Answer::Exists => self.again(),
            // The answer may be lost and the object there.
            Answer::Lost(_) if self.asked.is_some() && self.tries < TRIES => {
                self.tries += 1;
                LeaseRequestStep::Read
            }
            Answer::Lost(why) => lost(why),
        }
    }

    fn again(&mut self) -> LeaseRequestStep {
        self.tries += 1;
        match self.tries < TRIES {
            true => LeaseRequestStep::Read,
            false => lost(format!("other agents wrote it {TRIES} times meanwhile")),
        }
    }

    fn taken(&self, fence: u64, asked_at: Time) -> LeaseRequestStep {
        let after_unproven = self.after_unproven.clone();
        LeaseRequestStep::Taken(Box::new(GrantedLease {
            fence,
            intent: self.intent.clone(),
            asked_at,
            after_unproven,
        }))
    }

    fn found(&mut self, latest: Option<Box<Latest>>, now: Time) -> LeaseRequestStep {
        let own =
            latest.as_ref().and_then(|l| l.state.open.as_ref()).filter(|o| o.nonce == self.intent.nonce);
        if let (Some(own), Some((number, asked_at))) = (own, self.asked)
            && own.fence == number
        {
            return self.taken(number, asked_at);
        }
        self.latest = latest;
        (self.proof, self.after_unproven) = (Proof::None, None);
        self.decide(now)
    }

    /// By what the newest object says. Where it says something, the store's clock must be known.
    fn decide(&mut self, now: Time) -> LeaseRequestStep {
        let Some(latest) = &self.latest else { return self.create(now) };
        let state = &latest.state;
        if state.open.is_none() && state.windows.is_empty() {
            return self.create(now);
        }
        if self.clock.is_none() {
            return LeaseRequestStep::Measure;
        }
        let Some(open) = &state.open else { return self.create(now) };
        // Its own agent knows better than any clock.
        match open.agent == self.intent.agent || self.left(open, latest.stamped_at, now).is_zero() {
            true => LeaseRequestStep::Prove(Box::new(open.clone())),
            false => self.wait(now),
        }
    }

    /// How long the window before may still be open, if its agent lives.
    fn left(&self, open: &Intent, stamped_at: Time, now: Time) -> Duration {
        let Some(clock) = self.clock else { return Duration::MAX };
        let lasts = Duration::from_secs_f64(open.lasts_s.clamp(0.0, LONGEST_S));
        (stamped_at + lasts + ALLOWED_SKEW).since(clock.at_least(now))
    }

    /// Nobody can tell that the window before is closed.
    fn wait(&mut self, now: Time) -> LeaseRequestStep {
        let Some(latest) = &self.latest else { return self.create(now) };
        let Some(open) = &latest.state.open else { return self.create(now) };
        let (host, target) = (open.host.clone(), open.target.clone());
        let left = self.left(open, latest.stamped_at, now);
        if !left.is_zero() {
            return LeaseRequestStep::Refused(Refusal::PoolWindow { host, target, left });
        }
        let quiet = self.left(open, latest.stamped_at + QUIET, now);
        if !quiet.is_zero() {
            return LeaseRequestStep::Refused(Refusal::PoolUnproven { host, target, left: quiet });
        }
        self.after_unproven = Some(open.clone());
        self.create(now)
    }

    fn create(&mut self, now: Time) -> LeaseRequestStep {
        let (number, mut state) = match &self.latest {
            None => (1, LeaseState::default()),
            Some(latest) => (latest.number + 1, latest.state.clone()),
        };
        if let (Some(open), Some(latest)) = (state.open.take(), &self.latest) {
            let booked = state.windows.iter().find(|w| w.nonce == open.nonce).cloned();
            let window = booked.clone().unwrap_or_else(|| PoolWindow::of(&open, latest.stamped_at));
            // Of one that is not one's own nobody has said what it cost.
            let stall_s = open.expected_stall_s;
            match &self.proof {
                Proof::Ended(end) => state.book_end(end, window),
                Proof::ServerGone | Proof::None if booked.is_some() => {}
                Proof::ServerGone => {
                    state.book(PoolWindow { stall_s, end: ReportedEnd::ServerGone, ..window });
                }
                Proof::None => state.book(PoolWindow { stall_s, end: ReportedEnd::Unknown, ..window }),
            }
        }
        if let Some(now) = self.clock.map(|clock| clock.at_least(now)) {
            // Also where no window is booked for days: the place of the lease may hold little.
            state.forget_old(now);
            if let Err(refusal) = state.allows(&self.budget, self.expected, now) {
                return LeaseRequestStep::Refused(refusal);
            }
        }
        state.lease = VERSION;
        self.intent.fence = number;
        state.open = Some(self.intent.clone());
        // Of two requests for one number the first may be the one that was carried out.
        let asked_at = self.asked.filter(|(asked, _)| *asked == number).map_or(now, |(_, at)| at);
        self.asked = Some((number, asked_at));
        LeaseRequestStep::Create { number, state }
    }

    /// Whether an object may be there that says that this one has the lease: then it is to be given back.
    pub const fn may_have_it(&self) -> bool {
        self.asked.is_some()
    }

    /// What it was to be taken for.
    pub const fn intent(&self) -> &Intent {
        &self.intent
    }

    /// The store did not answer in time: refused.
    pub fn gave_up() -> LeaseRequestStep {
        lost(format!("the store did not answer within {} s", START_WITHIN.as_secs() / 2))
    }
}

fn lost(why: String) -> LeaseRequestStep {
    LeaseRequestStep::Refused(Refusal::PoolLease { why })
}
