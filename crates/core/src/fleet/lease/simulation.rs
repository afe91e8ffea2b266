//! Agents of one pool, their store and their servers in a world that goes wrong: requests and answers are lost or
//! late, agents pause, die and come back, clocks are skewed and run at other speeds, some windows do not end by
//! themselves. From a seed, so that a schedule that fails is played again.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use super::*;
use crate::test_rng::TestRng;

/// True time, in microseconds.
type At = u64;

const S: u64 = 1_000_000;
const AGENTS: usize = 4;
const LENGTH: At = 3_600 * S;
/// A request that was not answered is given up after this.
const TIMEOUT: At = 3 * S;
const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
enum Request {
    Read,
    Stamp,
    Create(u64, Box<LeaseState>),
}

#[derive(Clone, Debug)]
enum Happens {
    /// An agent wants a window.
    Wants,
    /// A request reaches the store, whatever has become of its agent.
    AtStore {
        op: u64,
        request: Request,
        sent: At,
        answer_after: Option<At>,
    },
    /// What came of it, or the end of waiting.
    Answered {
        op: u64,
        answer: Box<Answer>,
    },
    /// The attempt is on disk: checked, and posted if it is still valid.
    Checks,
    /// The start leaves the agent.
    Posts,
    /// The server answered it.
    Started {
        window: usize,
    },
    /// The window is to end.
    Stops {
        window: usize,
    },
    /// The lease is given back, again.
    GivesBack,
    /// A take was given up whose request may still arrive: it is looked for later.
    LooksAgain {
        intent: Box<Intent>,
    },
    Dies,
    ComesBack,
}

enum Doing {
    Nothing,
    Taking(LeaseRequest),
    Holding(GrantedLease),
    GivingBack(LeaseReturn, Intent, WindowEnd),
    Dead,
}

struct Agent {
    doing: Doing,
    generation: u64,
    /// Steady seconds in a true one, and what it shows at the beginning.
    rate: f64,
    offset_s: f64,
    paused_until: At,
    cut_off_until: At,
    op: u64,
    began: At,
    /// Its state on disk: the window that may be open.
    on_disk: Option<(Intent, usize)>,
    /// Its windows that ended, by their nonces: its state on disk has them.
    ended: BTreeMap<String, WindowEnd>,
    looked_for: Vec<Intent>,
    /// When it came by the lease that it holds.
    holds_since: At,
}

struct Window {
    nonce: String,
    opened: At,
    closed: Option<At>,
    /// Whether its start left after its lease had ended.
    was_late: bool,
    may_hang: bool,
}

#[derive(Default, Debug, Clone, PartialEq)]
struct Outcome {
    windows: usize,
    refused: usize,
    by_pause: usize,
    after_unproven: usize,
    untold: Vec<String>,
    unbooked: Vec<String>,
    double_fences: Vec<String>,
}

struct World {
    rng: TestRng,
    queue: BinaryHeap<Reverse<(At, u64)>>,
    events: BTreeMap<u64, (usize, Option<u64>, Happens)>,
    next: u64,
    now: At,
    store: BTreeMap<u64, (LeaseState, Time)>,
    agents: Vec<Agent>,
    windows: Vec<Window>,
    /// Who has said that two windows may have been open at once: the nonces.
    told: BTreeSet<String>,
    /// During which time which turn was valid.
    valid: Vec<(At, At, String)>,
    outcome: Outcome,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = TestRng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        for _ in 0..4 {
            rng.uniform();
        }
        let agents = (0..AGENTS)
            .map(|_| Agent {
                doing: Doing::Nothing,
                generation: 0,
                rate: 1.0 + (rng.uniform() - 0.5) * 4e-4,
                offset_s: (rng.uniform() - 0.5) * 1e6,
                paused_until: 0,
                cut_off_until: 0,
                op: 0,
                began: 0,
                on_disk: None,
                ended: BTreeMap::new(),
                looked_for: Vec::new(),
                holds_since: 0,
            })
            .collect();
        let mut world = Self {
            rng,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            next: 0,
            now: 0,
            store: BTreeMap::new(),
            agents,
            windows: Vec::new(),
            told: BTreeSet::new(),
            valid: Vec::new(),
            outcome: Outcome::default(),
        };
        for agent in 0..AGENTS {
            let after = world.up_to(60 * S);
            world.later(after, agent, Happens::Wants);
            if world.chance(0.5) {
                let after = world.up_to(LENGTH);
                world.later(after, agent, Happens::Dies);
            }
        }
        world
    }

    fn up_to(&mut self, most: At) -> At {
        (self.rng.uniform() * most as f64) as At
    }

    fn chance(&mut self, p: f64) -> bool {
        self.rng.uniform() < p
    }

    fn later(&mut self, after: At, agent: usize, what: Happens) {
        let of_store = matches!(what, Happens::AtStore { .. });
        let generation = (!of_store).then_some(self.agents[agent].generation);
        self.next += 1;
        self.queue.push(Reverse((self.now + after, self.next)));
        self.events.insert(self.next, (agent, generation, what));
    }

    /// The steady clock of an agent.
    fn steady(&self, agent: usize) -> Time {
        let agent = &self.agents[agent];
        Time::from_epoch_s(2e6 + agent.offset_s + self.now as f64 / S as f64 * agent.rate)
    }

    fn store_now(&mut self) -> Time {
        // Its machines are up to a second apart, and it stamps whole seconds.
        let s = self.now as f64 / S as f64 + self.rng.uniform() - 0.5;
        Time::from_epoch_s((1_795_000_000.0 + s).floor())
    }

    fn run(mut self) -> Outcome {
        while let Some(Reverse((at, number))) = self.queue.pop() {
            let Some((agent, generation, what)) = self.events.remove(&number) else { continue };
            if at > LENGTH {
                break;
            }
            self.now = at;
            let of = &self.agents[agent];
            if generation.is_some_and(|g| g != of.generation) {
                continue;
            }
            if generation.is_some() && of.paused_until > at && !matches!(what, Happens::Dies) {
                let after = of.paused_until - at;
                self.later(after, agent, what);
                continue;
            }
            self.happens(agent, what);
        }
        self.judged()
    }

    fn ask(&mut self, agent: usize, request: Request) {
        self.next += 1;
        let op = self.next;
        self.agents[agent].op = op;
        let cut_off = self.agents[agent].cut_off_until > self.now;
        let is_lost = cut_off || self.chance(0.03);
        let late = if self.chance(0.03) { self.up_to(100 * S) } else { 0 };
        let reaches = late + self.up_to(S / 5);
        let answer_after = match cut_off || self.chance(0.05) {
            true => None,
            false => Some(self.up_to(S / 5)),
        };
        if !is_lost {
            let sent = self.now;
            self.later(reaches, agent, Happens::AtStore { op, request, sent, answer_after });
        }
        self.later(
            TIMEOUT,
            agent,
            Happens::Answered { op, answer: Box::new(Answer::Lost("no answer".into())) },
        );
    }

    fn at_store(&mut self, agent: usize, op: u64, request: Request, sent: At, answer_after: Option<At>) {
        let stamp = self.store_now();
        let answer = match request {
            Request::Read => {
                Answer::Latest(self.store.last_key_value().map(|(number, (state, stamped_at))| {
                    Box::new(Latest { number: *number, state: state.clone(), stamped_at: *stamped_at })
                }))
            }
            Request::Create(number, _) if self.store.contains_key(&number) => Answer::Exists,
            Request::Create(number, state) => {
                self.store.insert(number, (*state, stamp));
                Answer::Created
            }
            Request::Stamp => {
                let of = &self.agents[agent];
                let at = |t: At| Time::from_epoch_s(2e6 + of.offset_s + t as f64 / S as f64 * of.rate);
                let answered = self.now + answer_after.unwrap_or(0);
                Answer::Measured(StoreClock::measured(at(sent), at(answered), stamp, Duration::from_secs(1)))
            }
        };
        if let Some(after) = answer_after {
            // An answer to an agent that has died meanwhile is dropped with its generation.
            self.later(after, agent, Happens::Answered { op, answer: Box::new(answer) });
        }
    }

    fn happens(&mut self, agent: usize, what: Happens) {
        match what {
            Happens::AtStore { op, request, sent, answer_after } => {
                self.at_store(agent, op, request, sent, answer_after);
            }
            Happens::Answered { op, answer } if op == self.agents[agent].op => self.answered(agent, *answer),
            Happens::Answered { .. } => {}
            Happens::Wants => self.wants(agent),
            Happens::Checks => self.checks(agent),
            Happens::Posts => self.posts(agent),
            Happens::Started { window } => self.started(agent, window),
            Happens::Stops { window } => self.stops(agent, window),
            Happens::GivesBack => {
                if let Doing::GivingBack(..) = &self.agents[agent].doing {
                    self.ask(agent, Request::Read);
                }
            }
            Happens::LooksAgain { intent } => self.agents[agent].looked_for.push(*intent),
            Happens::Dies => self.dies(agent),
            Happens::ComesBack => self.comes_back(agent),
        }
        self.trouble(agent);
    }

    /// At any moment an agent may be paused or cut off from the store.
    fn trouble(&mut self, agent: usize) {
        if self.chance(0.005) {
            let pause = match self.chance(0.3) {
                true => self.up_to(1_500 * S),
                false => self.up_to(30 * S),
            };
            self.agents[agent].paused_until = self.now + pause;
        }
        if self.chance(0.005) {
            let cut = self.up_to(300 * S);
            self.agents[agent].cut_off_until = self.now + cut;
        }
    }

    fn wants(&mut self, agent: usize) {
        let after = 5 * S + self.up_to(120 * S);
        self.later(after, agent, Happens::Wants);
        if !matches!(self.agents[agent].doing, Doing::Nothing) {
            return;
        }
        if let Some(intent) = self.agents[agent].looked_for.pop() {
            return self.give_back(agent, intent, WindowEnd::default());
        }
        self.next += 1;
        let nonce = format!("{agent}-{}", self.next);
        let intent = Intent { agent: agent.to_string(), host: agent.to_string(), nonce, ..Intent::default() };
        let budget = Budget { windows: 1_000_000, ..Budget::default() };
        let take = LeaseRequest::new(intent.lasting(DEADLINE), budget, Estimate::default(), None);
        self.agents[agent].doing = Doing::Taking(take);
        self.agents[agent].began = self.now;
        self.ask(agent, Request::Read);
    }

    fn answered(&mut self, agent: usize, answer: Answer) {
        let now = self.steady(agent);
        match &mut self.agents[agent].doing {
            Doing::Taking(take) => {
                let step = take.on(answer, now);
                self.step(agent, step);
            }
            Doing::GivingBack(back, intent, end) => {
                let again = (intent.clone(), end.clone());
                match back.on(answer) {
                    GiveBackStep::Read => self.ask(agent, Request::Read),
                    GiveBackStep::Create { number, state } => {
                        self.ask(agent, Request::Create(number, state));
                    }
                    GiveBackStep::Again(_) => {
                        let after = 5 * S + self.up_to(20 * S);
                        self.later(after, agent, Happens::GivesBack);
                    }
                    GiveBackStep::Done { overtaken } => {
                        if overtaken {
                            self.told.insert(again.0.nonce);
                        }
                        self.agents[agent].doing = Doing::Nothing;
                    }
                }
            }
            Doing::Nothing | Doing::Holding(_) | Doing::Dead => {}
        }
    }

    fn step(&mut self, agent: usize, step: LeaseRequestStep) {
        let waited = self.now - self.agents[agent].began;
        match step {
            LeaseRequestStep::Taken(turn) => self.taken(agent, *turn),
            LeaseRequestStep::Refused(_) => self.refused(agent),
            _ if waited > 5 * S => self.refused(agent),
            LeaseRequestStep::Read => self.ask(agent, Request::Read),
            LeaseRequestStep::Measure => self.ask(agent, Request::Stamp),
            LeaseRequestStep::Create { number, state } => {
                self.ask(agent, Request::Create(number, Box::new(state)))
            }
            LeaseRequestStep::Prove(open) => {
                // Its own, of which its disk knows nothing: nothing was sent.
                let of = &self.agents[agent];
                let proof = match open.agent == agent.to_string() && of.on_disk.is_none() {
                    true => Proof::Ended(of.ended.get(&open.nonce).cloned().unwrap_or_default()),
                    false => Proof::None,
                };
                self.answered(agent, Answer::Proven(proof));
            }
        }
    }

    fn refused(&mut self, agent: usize) {
        self.outcome.refused += 1;
        let Doing::Taking(take) = std::mem::replace(&mut self.agents[agent].doing, Doing::Nothing) else {
            return;
        };
        if take.may_have_it() {
            self.later(125 * S, agent, Happens::LooksAgain { intent: Box::new(take.intent().clone()) });
            self.give_back(agent, take.intent().clone(), WindowEnd::default());
        }
    }

    fn taken(&mut self, agent: usize, turn: GrantedLease) {
        if let Some(before) = &turn.after_unproven {
            self.told.insert(before.nonce.clone());
        }
        self.agents[agent].holds_since = self.now;
        self.agents[agent].doing = Doing::Holding(turn);
        // Until the disk has written the attempt.
        let after = if self.chance(0.02) { self.up_to(15 * S) } else { self.up_to(S / 10) };
        self.later(after, agent, Happens::Checks);
    }

    fn checks(&mut self, agent: usize) {
        let now = self.steady(agent);
        let Doing::Holding(turn) = &self.agents[agent].doing else { return };
        if !turn.is_valid(now) {
            let intent = turn.intent.clone();
            self.leaves(agent);
            return self.give_back(agent, intent, WindowEnd::default());
        }
        let intent = turn.intent.clone();
        self.agents[agent].on_disk = Some((intent, usize::MAX));
        // A pause between the check and the request: what no lease can prevent.
        if self.chance(0.03) {
            let pause = self.up_to(1_500 * S);
            self.agents[agent].paused_until = self.now + pause;
        }
        self.later(1_000, agent, Happens::Posts);
    }

    fn posts(&mut self, agent: usize) {
        let now = self.steady(agent);
        let Doing::Holding(turn) = &self.agents[agent].doing else { return };
        let (nonce, was_late) = (turn.intent.nonce.clone(), !turn.is_valid(now));
        let may_hang = self.chance(0.2);
        let opened = self.now + self.up_to(S / 20);
        let closed = match may_hang {
            true => None,
            false => Some(opened + S / 2 + self.up_to(5 * S)),
        };
        self.windows.push(Window { nonce, opened, closed, was_late, may_hang });
        let window = self.windows.len() - 1;
        if let Some((_, known)) = &mut self.agents[agent].on_disk {
            *known = window;
        }
        let after = opened - self.now + self.up_to(S / 20);
        self.later(after, agent, Happens::Started { window });
    }

    fn started(&mut self, agent: usize, window: usize) {
        let now = self.steady(agent);
        let Doing::Holding(turn) = &self.agents[agent].doing else { return };
        // Found late: it is told, and stopped at once.
        let after = match turn.is_valid(now) {
            false => {
                self.told.insert(turn.intent.nonce.clone());
                0
            }
            true => match self.windows[window].closed {
                Some(closed) => closed.saturating_sub(self.now) + S / 10,
                None => DEADLINE.as_micros() as At,
            },
        };
        self.later(after, agent, Happens::Stops { window });
    }

    fn stops(&mut self, agent: usize, window: usize) {
        let now = self.now;
        let closed = &mut self.windows[window].closed;
        *closed = Some(closed.unwrap_or(now).min(now));
        let Doing::Holding(turn) = &self.agents[agent].doing else { return };
        let intent = turn.intent.clone();
        self.leaves(agent);
        self.agents[agent].on_disk = None;
        self.ends(agent, intent);
    }

    /// A window has ended: its state has it, and the lease is given back.
    fn ends(&mut self, agent: usize, intent: Intent) {
        let end = WindowEnd { was_sent: true, ..WindowEnd::default() };
        self.agents[agent].ended.insert(intent.nonce.clone(), end.clone());
        self.give_back(agent, intent, end);
    }

    fn give_back(&mut self, agent: usize, intent: Intent, end: WindowEnd) {
        self.agents[agent].doing =
            Doing::GivingBack(LeaseReturn::new(intent.clone(), end.clone()), intent, end);
        self.ask(agent, Request::Read);
    }

    /// The agent holds its turn no more.
    fn leaves(&mut self, agent: usize) {
        let of = &self.agents[agent];
        let Doing::Holding(turn) = &of.doing else { return };
        let ends_s = (turn.asked_at + START_WITHIN).epoch_s() - 2e6 - of.offset_s;
        let until = ((ends_s / of.rate * S as f64) as At).min(self.now);
        if until > of.holds_since {
            self.valid.push((of.holds_since, until, turn.intent.nonce.clone()));
        }
    }

    fn dies(&mut self, agent: usize) {
        self.leaves(agent);
        let of = &mut self.agents[agent];
        of.generation += 1;
        (of.doing, of.paused_until) = (Doing::Dead, 0);
        of.looked_for.clear();
        if self.chance(0.8) {
            let after = match self.chance(0.3) {
                true => self.up_to(1_500 * S),
                false => self.up_to(30 * S),
            };
            self.later(after, agent, Happens::ComesBack);
        }
    }

    /// It closes what its disk says that it may have left open, and says so.
    fn comes_back(&mut self, agent: usize) {
        self.agents[agent].doing = Doing::Nothing;
        let after = self.up_to(60 * S);
        self.later(after, agent, Happens::Wants);
        let Some((intent, window)) = self.agents[agent].on_disk.take() else { return };
        let now = self.now;
        if let Some(window) = self.windows.get_mut(window) {
            window.closed = Some(window.closed.unwrap_or(now).min(now));
        }
        self.ends(agent, intent);
    }

    /// Whether the pool's own list says that nobody told its end: `skewtrap fleet` shows that.
    fn is_booked_unknown(&self, window: &Window) -> bool {
        let booked = self.store.values().flat_map(|(state, _)| &state.windows);
        booked.filter(|w| w.nonce == window.nonce).any(|w| w.end == ReportedEnd::Unknown)
    }

    fn judged(mut self) -> Outcome {
        for agent in 0..AGENTS {
            self.leaves(agent);
        }
        let mut outcome = std::mem::take(&mut self.outcome);
        outcome.windows = self.windows.len();
        self.valid.sort();
        for pair in self.valid.windows(2) {
            if pair[1].0 < pair[0].1 {
                outcome.double_fences.push(format!("{} and {}", pair[0].2, pair[1].2));
            }
        }
        // Whose lease is not open any more counts in the pool's budget, whoever ended that.
        if let Some((state, _)) = self.store.values().next_back() {
            let is_open = |w: &Window| state.open.as_ref().is_some_and(|open| open.nonce == w.nonce);
            let is_booked = |w: &Window| state.windows.iter().any(|booked| booked.nonce == w.nonce);
            let lost = self.windows.iter().filter(|w| !is_open(w) && !is_booked(w));
            outcome.unbooked.extend(lost.map(|w| w.nonce.clone()));
        }
        for (i, first) in self.windows.iter().enumerate() {
            for second in &self.windows[i + 1..] {
                let (first, second) =
                    if first.opened <= second.opened { (first, second) } else { (second, first) };
                if first.closed.is_some_and(|closed| closed <= second.opened) {
                    continue;
                }
                match first.was_late || second.was_late {
                    true => outcome.by_pause += 1,
                    false => outcome.after_unproven += 1,
                }
                let is_explained = first.was_late || second.was_late || first.may_hang;
                let is_told =
                    [first, second].iter().any(|w| self.told.contains(&w.nonce) || self.is_booked_unknown(w));
                if !is_explained || !is_told {
                    outcome.untold.push(format!(
                        "{} and {}: explained {is_explained}, told {is_told}",
                        first.nonce, second.nonce
                    ));
                }
            }
        }
        outcome
    }
}

#[test]
fn in_no_schedule_do_two_hold_a_valid_fence_and_each_window_is_booked_and_each_open_pair_told() {
    #[expect(clippy::disallowed_methods, reason = "a test says how much of it is run")]
    let seeds = std::env::var("SKEWTRAP_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(300u64);
    let mut all = Outcome::default();
    for seed in 0..seeds {
        let outcome = World::new(seed).run();
        assert_eq!(outcome.double_fences, Vec::<String>::new(), "seed {seed}");
        assert_eq!(outcome.untold, Vec::<String>::new(), "seed {seed}");
        assert_eq!(outcome.unbooked, Vec::<String>::new(), "seed {seed}");
        all.windows += outcome.windows;
        all.refused += outcome.refused;
        all.by_pause += outcome.by_pause;
        all.after_unproven += outcome.after_unproven;
    }
    println!(
        "{seeds} schedules of an hour: {} windows, {} refusals; two open at once by a pause between check and start {} times, by a window that nobody could prove closed for ten minutes {} times; each told",
        all.windows, all.refused, all.by_pause, all.after_unproven
    );
    assert!(
        all.windows > 10 * seeds as usize && (all.by_pause > 0 || seeds < 300),
        "the schedules are of use: {all:?}"
    );
    assert_eq!(World::new(7).run(), World::new(7).run(), "the same seed gives the same schedule");
}
