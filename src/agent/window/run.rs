//! One window's state machine under its lock, and the tasks that carry out its outputs.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tracing::{error, info};

use super::log::Log;
use super::{Status, TargetHandle};
use crate::act::profile;
use crate::act::state::{State, WindowRow};
use crate::agent::cost::{Reach, instance_of};
use crate::agent::pool::HeldLease;
use crate::clock::Clock;
use crate::http::Server;
use crate::observe::server::facts;
use skewtrap_core::capture::facts::Sizes;
use skewtrap_core::capture::governor::AttemptEnd;
use skewtrap_core::capture::line::ProfileLine;
use skewtrap_core::capture::plan::StartRequest;
use skewtrap_core::capture::window::{Answer, Ending, Event, Output, SettlingTime, Window, WindowPhase};
use skewtrap_core::incident::Exchange;
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

/// How often time passes for the machine: a deadline may be late by this.
const TICK: Duration = Duration::from_millis(25);
/// How long asking a server what it is may hold up a stop.
const ASK_LIMIT: Duration = Duration::from_secs(1);
/// How long a server is asked that, and between two times, before what a dead agent left behind is stopped.
const WHO_LIMIT: Duration = Duration::from_secs(30);
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// How long the disk may hold up a stop that is being written down.
const NOTE_LIMIT: Duration = Duration::from_millis(250);
/// For so long after a start was sent whoever answers is the instance that accepted it.
const IDENTIFY_LIMIT: Duration = Duration::from_secs(2);
const IDENTIFY_AGAIN: Duration = Duration::from_millis(100);

/// A running window; clones share it.
#[derive(Clone, Debug)]
pub(super) struct WindowRun(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    server: Server,
    /// Its sizes, as the window was made for them.
    sizes: Sizes,
    request: StartRequest,
    state: State,
    clock: Clock,
    log: Log,
    ended: Notify,
    status: watch::Sender<Status>,
    lease: Option<HeldLease>,
    /// Held while the instance that accepted the start is asked for, a second or two at most.
    identity: tokio::sync::Mutex<()>,
    shared: Mutex<Shared>,
}

#[derive(Debug)]
struct Shared {
    window: Window,
    open: WindowRow,
    exchanges: Vec<Exchange>,
    ending: Option<Ending>,
    settling: SettlingTime,
    cancelled: bool,
    /// Whether a start is on its way and its answer not here yet.
    is_starting: bool,
    /// Whether the instance that accepted the start is another than the one that was known when it was granted.
    is_renewed: bool,
    /// Whether somebody will book the end; if not, the ticker does.
    attended: bool,
}

/// As long as it lives, the end of the window is booked by its owner.
#[derive(Debug)]
pub(super) struct OwnerGuard(WindowRun);

impl Drop for OwnerGuard {
    fn drop(&mut self) {
        self.0.lock().attended = false;
    }
}

impl WindowRun {
    pub(super) fn new(
        target: &TargetHandle,
        request: &StartRequest,
        window: Window,
        open: WindowRow,
        state: State,
        (clock, log): (Clock, Log),
        status: watch::Sender<Status>,
    ) -> Self {
        let settling = SettlingTime::opened(open.sent_at);
        let shared = Shared {
            window,
            open,
            exchanges: Vec::new(),
            ending: None,
            settling,
            cancelled: false,
            is_starting: false,
            is_renewed: false,
            attended: true,
        };
        Self(Arc::new(Inner {
            server: target.server.clone(),
            sizes: target.sizes,
            request: request.clone(),
            state,
            clock,
            log,
            ended: Notify::new(),
            status,
            lease: None,
            identity: tokio::sync::Mutex::default(),
            shared: Mutex::new(shared),
        }))
    }

    /// The same under the lease of the pool; for one that was just made.
    pub(super) fn under(mut self, lease: Option<HeldLease>) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.0) {
            inner.lease = lease;
        }
        self
    }

    pub(super) fn now(&self) -> Time {
        self.0.clock.now()
    }

    /// Which instance of the server was asked to start.
    pub(super) fn instance(&self) -> Option<String> {
        self.lock().open.instance.clone()
    }

    pub(super) fn present(&self) -> OwnerGuard {
        OwnerGuard(self.clone())
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.lock().cancelled
    }

    pub(super) fn cancel(&self) {
        self.lock().cancelled = true;
        self.handle(&Event::Cancel);
    }

    /// Until the window is over.
    pub(super) async fn ended(&self) {
        loop {
            let notified = self.0.ended.notified();
            if self.lock().ending.is_some() {
                return;
            }
            notified.await;
        }
    }

    /// Gives the machine an event and carries out its outputs.
    pub(super) fn handle(&self, event: &Event) {
        let now = self.now();
        let outputs = {
            let mut shared = self.lock();
            let before = shared.window.phase();
            let outputs = shared.window.on(event, now);
            self.note_stops(&mut shared);
            let phase = shared.window.phase();
            if phase != before {
                shared.settling.entered(phase, now);
                info!(window = %shared.open.attempt, "the window is {}", word_of(phase));
                self.0.status.send_replace(Status { phase, settling: shared.settling });
            }
            outputs
        };
        self.carry_out(outputs, now);
    }

    /// The next agent must know what was sent and what was seen to end. Nothing waits for the disk.
    fn note_stops(&self, shared: &mut Shared) {
        let (stops, ended) = (shared.window.stops(), shared.open.ended || shared.window.has_ended());
        if (&stops, ended) != (&shared.open.stops, shared.open.ended) {
            (shared.open.stops, shared.open.ended) = (stops, ended);
            let open = shared.open.clone();
            self.0.state.later(move |state| state.update(&open));
        }
    }

    /// A line of the log was passed on; gives whether it is news.
    pub(super) fn is_news(&self, rank: Rank, line: &ProfileLine) -> bool {
        self.0.log.is_news(rank, line)
    }

    pub(super) fn carry_out(&self, outputs: Vec<Output>, now: Time) {
        for output in outputs {
            match output {
                Output::Start => {
                    self.lock().is_starting = true;
                    drop(tokio::spawn(self.clone().start(now)));
                }
                Output::Stop { path } => drop(tokio::spawn(self.clone().stop(path, now))),
                Output::Finish(ending) => {
                    self.lock().ending = Some(ending);
                    self.0.ended.notify_waiters();
                }
            }
        }
    }

    async fn start(self, at: Time) {
        let (answer, exchange) = profile::start(&self.0.server, &self.0.request, at).await;
        let is_granted = answer == Answer::Ok;
        if let Some(note) = self.0.lease.as_ref().filter(|l| l.check_answered()).and_then(HeldLease::note) {
            error!("{note}");
            self.handle(&Event::Close);
        }
        {
            let mut shared = self.lock();
            shared.exchanges.push(exchange);
            shared.open.granted = is_granted;
        }
        // A stop that follows at once asks which instance it is for.
        let identifying = self.0.identity.lock().await;
        self.lock().is_starting = false;
        self.handle(&Event::StartAnswered(answer));
        {
            let mut shared = self.lock();
            shared.open.refused_double = shared.window.is_refused_double();
            // A crash from here on finds whether a stop may be sent. Nothing waits for the disk, least of all
            // under this lock, which the deadline needs.
            if is_granted || shared.open.refused_double {
                let open = shared.open.clone();
                self.0.state.later(move |state| state.update(&open));
            }
        }
        if is_granted {
            self.identify(at + IDENTIFY_LIMIT).await;
        }
        drop(identifying);
    }

    /// Records the instance that accepted the start; the polled one may be stale. Whoever answers later than `until`
    /// may have come after the start.
    async fn identify(&self, until: Time) {
        let Some(polled) = self.instance() else { return };
        let engines = self.0.sizes.dp.max(1);
        while self.now() < until {
            match tokio::time::timeout(ASK_LIMIT, facts(&self.0.server, engines)).await {
                Ok(Ok(facts)) if facts.instance == polled => return,
                Ok(Ok(facts)) => {
                    info!("the server was started anew just before the start of this window");
                    {
                        let mut shared = self.lock();
                        shared.open.instance = Some(facts.instance);
                        shared.is_renewed = true;
                        let open = shared.open.clone();
                        self.0.state.later(move |state| state.update(&open));
                    }
                    if facts.sizes != self.0.sizes {
                        self.handle(&Event::OtherRanks);
                    }
                    return;
                }
                // It has ended since: who listens there from now on has not heard of this window.
                Ok(Err(error)) if error.is_refused() => return,
                Ok(Err(_)) | Err(_) => tokio::time::sleep(IDENTIFY_AGAIN).await,
            }
        }
    }

    /// The rest of the agent saw the server started anew. Where that was before the start of this window, the
    /// instance that accepted it is the new one, and only an instance after that one ends the window.
    pub(super) async fn restarted(self, why: String) {
        while self.lock().is_starting {
            tokio::time::sleep(IDENTIFY_AGAIN).await;
        }
        drop(self.0.identity.lock().await);
        if !self.lock().is_renewed {
            return self.handle(&Event::Gone(why));
        }
        let instance = self.instance();
        while self.lock().ending.is_none() {
            let asked = instance_of(&self.0.server, instance.as_deref());
            match tokio::time::timeout(ASK_LIMIT, asked).await {
                Ok(Some(Reach::Another(why))) => return self.handle(&Event::Gone(why)),
                Ok(Some(Reach::Answers)) => return,
                Ok(Some(Reach::Refused) | None) | Err(_) => tokio::time::sleep(ASK_AGAIN).await,
            }
        }
    }

    async fn stop(self, path: &'static str, at: Time) {
        // It may be withheld for half a minute: an agent that is killed meanwhile has sent none.
        if !self.confirm_stop().await || !self.record_stop_leaving().await {
            return self.handle(&Event::StopWithheld);
        }
        let (answer, exchange) = profile::stop(&self.0.server, self.0.request.engine, path, at).await;
        self.lock().exchanges.push(exchange);
        self.handle(&Event::StopAnswered(answer));
    }

    /// Has it written down that the stop leaves now; gives whether it is still right. A disk that hangs holds it up
    /// for a moment only.
    async fn record_stop_leaving(&self) -> bool {
        self.handle(&Event::StopLeaves);
        let written = self.0.state.write_and_report(|_| Ok(()));
        let _ = tokio::time::timeout(NOTE_LIMIT, written).await;
        self.lock().window.confirms_stop()
    }

    /// Whether a stop that was decided is right by what log and server say at this moment: the decision may
    /// be of before a pause of the whole agent, and the server may have been started anew.
    async fn confirm_stop(&self) -> bool {
        let (news, who) = tokio::join!(self.0.log.news(), self.identify_instance());
        for (rank, line) in news {
            self.handle(&Event::Log { rank, line });
        }
        who.iter().for_each(|event| self.handle(event));
        self.lock().window.confirms_stop()
    }

    /// What the server says that it is, where that decides about a stop. No answer says nothing, except of a
    /// window that was left behind: there the server has had time to become another.
    async fn identify_instance(&self) -> Option<Event> {
        drop(self.0.identity.lock().await);
        let instance = self.instance()?;
        let left_behind = self.lock().window.is_left_behind();
        let until = self.now() + WHO_LIMIT;
        loop {
            let asked = instance_of(&self.0.server, Some(&instance));
            match tokio::time::timeout(ASK_LIMIT, asked).await {
                Ok(Some(Reach::Another(why))) => return Some(Event::Gone(why)),
                Ok(Some(Reach::Answers | Reach::Refused)) => return None,
                Ok(None) | Err(_) if !left_behind => return None,
                Ok(None) | Err(_) => {}
            }
            // Nobody listens, or it has ended: the stop waits.
            if !self.lock().window.confirms_stop() {
                return None;
            }
            if self.now() >= until {
                return Some(Event::Unidentified);
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// The deadline's own task: it ticks until the window is over, whatever becomes of the rest, and
    /// books the end when nobody is left to do so.
    pub(super) async fn tick(self) {
        let mut tick = tokio::time::interval(TICK);
        loop {
            tick.tick().await;
            self.handle(&Event::Tick);
            let shared = self.lock();
            let Some(ending) = &shared.ending else { continue };
            if !shared.attended {
                let end = AttemptEnd {
                    at: self.now(),
                    stalled: self.now().since(shared.settling.from),
                    unproven: ending.unproven.clone(),
                    ..AttemptEnd::default()
                };
                let attempt = shared.open.attempt.clone();
                self.0.state.later(move |state| state.end(&attempt, &end));
            }
            return;
        }
    }

    pub(super) fn result(&self) -> (Ending, Vec<Exchange>, Status) {
        let shared = self.lock();
        let ending =
            shared.ending.clone().unwrap_or(Ending { failure: None, unproven: None, notes: Vec::new() });
        let status = Status { phase: shared.window.phase(), settling: shared.settling };
        (ending, shared.exchanges.clone(), status)
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // A panic in one task must not keep the others from closing the window.
        crate::world::lock(&self.0.shared)
    }
}

/// What a window does in a phase.
const fn word_of(phase: WindowPhase) -> &'static str {
    match phase {
        WindowPhase::Starting => "being started",
        WindowPhase::Doubtful => "in doubt: its start failed, and whether it runs all the same is looked for",
        WindowPhase::Unknown => "in doubt: its start was not answered, and whether it runs is looked for",
        WindowPhase::Open => "open",
        WindowPhase::Stopping => "being stopped",
        WindowPhase::Exporting => "being written by the server",
        WindowPhase::Verifying => "closed, and its files are looked at",
        WindowPhase::Ended => "over",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::act::nsys::Nsys;
    use crate::act::state::OpenMethod;
    use crate::act::{attempt_of_a_test, request_of_a_test};
    use crate::http::client::client;
    use skewtrap_core::capture::governor::Attempt;
    use skewtrap_core::capture::window::Visibility;

    #[tokio::test]
    async fn the_next_agent_knows_which_stops_were_sent() {
        let (state, clock) = (State::in_memory().expect("a state"), Clock::start());
        let target = TargetHandle {
            server: Server::new(client(None).expect("a client"), "http://127.0.0.1:1", None, None),
            target: "server".into(),
            instance: None,
            sizes: Sizes::default(),
            paths: Default::default(),
            default_dir: None,
            sees_log: true,
            logs: Vec::new(),
            nsys: Nsys::new("nsys"),
        };
        let attempt = Attempt { at: clock.now(), ..attempt_of_a_test("a1") };
        let open = WindowRow::of(&attempt, OpenMethod::Http(request_of_a_test()), clock.now());
        state.begin(&attempt, &open, None).expect("it is written");
        let (window, _) =
            Window::start(&request_of_a_test(), Visibility { log: true, files: false }, clock.now());
        let (status, _) =
            watch::channel(Status { phase: window.phase(), settling: SettlingTime::opened(clock.now()) });
        let log = Log::from_now(Vec::new()).await;
        let run =
            WindowRun::new(&target, &request_of_a_test(), window, open, state.clone(), (clock, log), status);
        run.handle(&Event::StartAnswered(Answer::Ok));
        run.handle(&Event::Tick);
        let stops_noted = || {
            let [left] = &state.open_windows().expect("it is read")[..] else { panic!("one window is open") };
            left.stops.as_ref().map(|stops| stops.count)
        };
        assert_eq!(stops_noted(), None, "it was decided, and has not left");
        run.handle(&Event::StopLeaves);
        assert_eq!(stops_noted(), Some(1));
        run.cancel();
        run.handle(&Event::StopWithheld);
        assert_eq!(stops_noted(), None, "nothing was sent");
    }
}
