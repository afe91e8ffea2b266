//! What a capture costs the server, measured beside it: `/health` is probed while the window is open
//! and until the server answers as it used to, and the loop passes on the ranks' samples.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::http::Server;
use crate::observe::server::{Health, facts, health};
use skewtrap_core::capture::facts::HealthAnswer;
use skewtrap_core::capture::line::ProfileLine;
use skewtrap_core::capture::stall::{StallMeter, UsualIntervals};
use skewtrap_core::capture::window::SettlingTime;
use skewtrap_core::signal::store::LoadReport;
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

/// Interval between two requests to `/health` while a window is open.
const PROBE: Duration = Duration::from_millis(500);
/// A server that is reached again is asked so often what it is before it is taken for the same.
const ASKED: u32 = 20;
/// How long after a window its server may take to answer as it used to.
pub const RECOVERY: Duration = Duration::from_secs(30);

/// So long samples are waited for that say what is usual.
const HABIT: Duration = Duration::from_secs(12);

/// How often it is asked whether all ranks have spoken.
const SIGN: Duration = Duration::from_millis(100);

/// The meter of one window; clones share it. The loop holds one, so that no sample has to wait for
/// the window's task.
#[derive(Clone, Debug)]
pub struct Meter {
    usual_health: Duration,
    clock: Clock,
    /// When it began, on a clock that nobody sets.
    began: (Clock, Time),
    shared: Arc<Mutex<StallMeter>>,
}

impl Meter {
    /// One that begins now; `usual_health` is the usual latency of `/health`, zero when it is not known; `samples`
    /// has the usual intervals of the ranks' samples.
    pub fn new(clock: Clock, usual_health: Duration, samples: UsualIntervals) -> Self {
        let (meter, steady) = (StallMeter::new(clock.now(), usual_health, samples), clock.steady());
        let began = (steady, steady.now());
        Self { usual_health, clock, began, shared: Arc::new(Mutex::new(meter)) }
    }

    /// The meter of a window that an agent before this one opened at `sent_at`: nothing usual is known of its
    /// server, and its export may lie before this agent's start.
    pub fn of_before(clock: Clock, sent_at: Time) -> Self {
        let mut meter = Self::new(clock, Duration::ZERO, UsualIntervals::new());
        meter.shared = Arc::new(Mutex::new(StallMeter::learning(clock.now())));
        let (steady, now) = meter.began;
        meter.began = (steady, now - clock.now().since(sent_at));
        meter
    }

    /// Whether an agent before this one opened the window.
    pub fn is_of_before(&self) -> bool {
        self.with(|meter| meter.learns())
    }

    /// A rank said something about its profile.
    pub fn heard(&self, rank: Rank, line: &ProfileLine) {
        let now = self.clock.now();
        match line {
            ProfileLine::Starts { .. } => {}
            ProfileLine::Stops => self.with(|meter| meter.export_begins(rank, now)),
            ProfileLine::Done { .. } => self.with(|meter| meter.export_ends(rank, now)),
        }
    }

    /// A rank's file shows when it was written.
    pub fn wrote(&self, rank: Rank, from: Time, until: Time) {
        self.with(|meter| meter.wrote(rank, from, until));
    }

    /// The longest silence of one rank so far; as for [`Self::stalled`], which closes the account.
    pub fn longest(&self) -> Duration {
        self.with(|meter| meter.longest().min(self.began.0.now().since(self.began.1)))
    }

    /// Silences shorter than this could not be seen, where no export is: by the intervals of the samples, and
    /// without any by the time since the window's start.
    pub fn unseen_below(&self) -> Duration {
        let so_far = self.began.0.now().since(self.began.1);
        self.with(|meter| meter.resolution()).map_or(so_far, |shown| shown.min(so_far))
    }

    /// Waits until every rank has spoken again, or until its silence is longer than any that is usual: a silence shows
    /// when it ends.
    pub async fn await_signs(&self, cancel: &CancellationToken) {
        let since = self.clock.now();
        let Some(longest) = self.with(|meter| meter.resolution()) else { return };
        let limit = since + longest.min(HABIT);
        while self.clock.now() < limit && !self.with(|meter| meter.has_heard_since(since)) {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(SIGN) => {}
            }
        }
    }

    /// The ranks spoke.
    pub fn record_samples(&self, samples: impl IntoIterator<Item = LoadReport>) {
        self.with(|meter| {
            samples
                .into_iter()
                .for_each(|(rank, source, at, has_work)| meter.sample(rank, source, at, has_work));
        });
    }

    /// What it cost so far, when the window was open and written as `settling` says.
    pub fn stalled(&self, settling: SettlingTime) -> Duration {
        let settled = settling.until.map(|until| until - SettlingTime::SETTLE);
        self.with(|meter| {
            if let (Some(closing), Some(exported)) = (settling.closing, settled) {
                meter.exported(closing, exported);
            }
            // A wall clock that was set meanwhile must not count as a stall.
            meter.stalled().min(self.began.0.now().since(self.began.1))
        })
    }

    /// Asks `/health` until it is ended. Through the channel comes whether the server, which is
    /// `instance` as far as the window knows by then, is reached.
    pub fn probe(
        &self,
        server: Server,
        instance: impl Fn() -> Option<String> + Send + Sync + 'static,
    ) -> (Probe, mpsc::Receiver<Reach>) {
        let (tell, hears) = mpsc::channel(4);
        let stop = CancellationToken::new();
        let task = tokio::spawn(probe(self.clone(), server, instance, stop.clone(), tell));
        (Probe { stop, task }, hears)
    }

    /// Waits until the server answers as it used to, at most [`RECOVERY`]; gives when it did.
    pub async fn recovery(&self, server: &Server, cancel: &CancellationToken) -> Option<Time> {
        let limit = self.clock.now() + RECOVERY;
        while self.clock.now() < limit && !cancel.is_cancelled() {
            match self.ask(server).await {
                // Before the usual latency is known (just after a start) there is nothing to compare with.
                Health::Answered(HealthAnswer::Healthy(took))
                    if self.usual_health.is_zero()
                        || took <= self.usual_health.saturating_mul(2).max(PROBE) =>
                {
                    let recovered = self.clock.now();
                    self.await_samples(cancel).await;
                    return Some(recovered);
                }
                Health::ConnectionRefused => return None,
                Health::Answered(_) => tokio::time::sleep(PROBE).await,
            }
        }
        None
    }

    /// Where no export was seen, the ranks' samples are the only witness of what the window cost: a few more
    /// of them say what is usual.
    async fn await_samples(&self, cancel: &CancellationToken) {
        let limit = self.clock.now() + HABIT;
        while self.clock.now() < limit && self.with(|meter| meter.wants_samples()) {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(PROBE) => {}
            }
        }
    }

    async fn ask(&self, server: &Server) -> Health {
        let asked = self.clock.now();
        let answer = health(server).await;
        let answered = self.clock.now();
        // A refused connection is not a stall: the server has ended.
        if answer != Health::ConnectionRefused {
            self.with(|meter| meter.health(asked, answered));
        }
        answer
    }

    fn with<T>(&self, act: impl FnOnce(&mut StallMeter) -> T) -> T {
        act(&mut crate::world::lock(&self.shared))
    }
}

/// The task that requests `/health` while a window is open.
#[derive(Debug)]
pub struct Probe {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Probe {
    /// Ends it. A request that is under way is awaited: it is the one that a stall delays.
    pub async fn end(self, cancel: &CancellationToken) {
        self.stop.cancel();
        let abort = self.task.abort_handle();
        tokio::select! {
            // It ends in any case; a panic in it costs a measurement.
            _ = self.task => {}
            () = cancel.cancelled() => abort.abort(),
        }
    }
}

/// Whether a server is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The connection was refused, or did not come about.
    Refused,
    /// It answers, again or still.
    Answers,
    /// It answers and is another instance than the one before; by what that shows.
    Another(String),
}

async fn probe(
    meter: Meter,
    server: Server,
    instance: impl Fn() -> Option<String> + Send + Sync,
    stop: CancellationToken,
    tell: mpsc::Sender<Reach>,
) {
    let (mut was_refused, mut asked) = (false, 0);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PROBE) => {}
        }
        let reach = match meter.ask(&server).await {
            Health::ConnectionRefused => Reach::Refused,
            Health::Answered(_) if !was_refused => Reach::Answers,
            // Before anything is sent to it again: is it the same?
            Health::Answered(_) => match instance_of(&server, instance().as_deref()).await {
                Some(reach) => reach,
                None if asked < ASKED => {
                    asked += 1;
                    continue;
                }
                None => Reach::Answers,
            },
        };
        was_refused = reach == Reach::Refused;
        asked = 0;
        // If the channel is full this reading is dropped; the next one supersedes it.
        let _ = tell.try_send(reach);
    }
}

/// Whether the server is still `instance`; `None` when it does not say what it is.
pub async fn instance_of(server: &Server, instance: Option<&str>) -> Option<Reach> {
    let Some(before) = instance else { return Some(Reach::Answers) };
    match facts(server, 1).await {
        Ok(now) if now.instance != before => Some(Reach::Another(
            "it is another instance: what it says of itself (its random seed, release or model) changed"
                .into(),
        )),
        Ok(_) => Some(Reach::Answers),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use skewtrap_core::capture::stall::usual_intervals;
    use skewtrap_core::signal::catalog;
    use skewtrap_core::signal::fields::Fields;
    use skewtrap_core::signal::sample::Source;
    use skewtrap_core::signal::store::{Bounds, SignalStore};

    #[tokio::test(start_paused = true)]
    async fn what_no_sample_would_show_is_said_and_a_silence_that_ends_after_the_window_is_waited_for() {
        let begun = Time::from_epoch_s(10_000.0);
        let blind = Meter::new(Clock::anchored(begun), Duration::ZERO, UsualIntervals::new());
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(blind.unseen_below(), Duration::from_secs(3), "nothing at all could be seen");
        let usual = UsualIntervals::from([((Rank::dp(0), Source::Log), Duration::from_secs(2))]);
        let meter = Meter::new(Clock::anchored(begun), Duration::ZERO, usual);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(meter.unseen_below(), Duration::from_secs(3));
        let speaks = meter.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let at = begun + Duration::from_secs(7);
            speaks.record_samples([(Rank::dp(0), Source::Log, at, true)]);
        });
        meter.await_signs(&CancellationToken::new()).await;
        assert_eq!(meter.longest(), Duration::from_secs(5), "seven seconds, two of them usual");
    }

    #[tokio::test(start_paused = true)]
    async fn a_rank_that_falls_silent_during_a_window_costs_what_its_samples_miss() {
        let begun = Time::from_epoch_s(10_000.0);
        let clock = Clock::anchored(begun);
        let mut store = SignalStore::new(Arc::default(), Bounds::default());
        let target = store.add_target("server".into(), None);
        let mut running = Fields::default();
        running.set(catalog::RUNNING_REQS, 9.0);
        let speak = |store: &mut SignalStore, s: f64| {
            let at = Time::from_epoch_s(10_000.0 + s);
            store.record(target, Rank::dp(1), Source::Log, &running, at, at);
        };
        for s in -30..=0 {
            speak(&mut store, f64::from(s));
        }
        let usual = usual_intervals(store.load_reports(target, begun - Duration::from_secs(120)));
        let meter = Meter::new(clock, Duration::ZERO, usual);
        tokio::time::advance(Duration::from_secs(20)).await;
        for s in [1.0, 2.0, 9.5, 10.5] {
            speak(&mut store, s);
            meter.record_samples(store.load_reports(target, begun));
        }
        let settling =
            SettlingTime { from: begun, closing: Some(begun), until: Some(begun + Duration::from_secs(20)) };
        assert_eq!(meter.stalled(settling), Duration::from_millis(6_500));
    }
}
