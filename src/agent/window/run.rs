//! One window's state machine under its lock, and the tasks that carry out its outputs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tracing::info;

use super::{Status, TargetHandle};
use crate::act::profile;
use crate::act::state::{OpenWindow, State};
use crate::clock::Clock;
use crate::http::Server;
use skewtrap_core::capture::governor::AttemptEnd;
use skewtrap_core::capture::plan::StartRequest;
use skewtrap_core::capture::window::{Answer, Distrust, Ending, Event, Output, Window};
use skewtrap_core::incident::Exchange;
use skewtrap_trace::time::Time;

/// How often time passes for the machine: a deadline may be late by this.
const TICK: Duration = Duration::from_millis(25);

/// A running window; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Run(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    server: Server,
    request: StartRequest,
    state: State,
    clock: Clock,
    ended: Notify,
    status: watch::Sender<Status>,
    shared: Mutex<Shared>,
}

#[derive(Debug)]
struct Shared {
    window: Window,
    open: OpenWindow,
    exchanges: Vec<Exchange>,
    ending: Option<Ending>,
    distrust: Distrust,
    cancelled: bool,
    /// Whether somebody will book the end; if not, the ticker does.
    attended: bool,
}

/// As long as it lives, the end of the window is booked by its owner.
#[derive(Debug)]
pub(super) struct Present(Run);

impl Drop for Present {
    fn drop(&mut self) {
        self.0.lock().attended = false;
    }
}

impl Run {
    pub(super) fn new(
        target: &TargetHandle,
        request: &StartRequest,
        window: Window,
        open: OpenWindow,
        state: State,
        clock: Clock,
        status: watch::Sender<Status>,
    ) -> Self {
        let distrust = Distrust::opened(open.sent_at);
        let shared = Shared {
            window,
            open,
            exchanges: Vec::new(),
            ending: None,
            distrust,
            cancelled: false,
            attended: true,
        };
        Self(Arc::new(Inner {
            server: target.server.clone(),
            request: request.clone(),
            state,
            clock,
            ended: Notify::new(),
            status,
            shared: Mutex::new(shared),
        }))
    }

    pub(super) fn now(&self) -> Time {
        self.0.clock.now()
    }

    /// Which instance of the server was asked to start.
    pub(super) fn instance(&self) -> Option<String> {
        self.lock().open.instance.clone()
    }

    pub(super) fn present(&self) -> Present {
        Present(self.clone())
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
            let phase = shared.window.phase();
            if phase != before {
                shared.distrust.entered(phase, now);
                info!(window = %shared.open.attempt, ?phase, "the window is {phase:?}");
                self.0.status.send_replace(Status { phase, distrust: shared.distrust });
            }
            outputs
        };
        self.carry_out(outputs, now);
    }

    pub(super) fn carry_out(&self, outputs: Vec<Output>, now: Time) {
        for output in outputs {
            match output {
                Output::Start => drop(tokio::spawn(self.clone().start(now))),
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
        {
            let mut shared = self.lock();
            shared.exchanges.push(exchange);
            shared.open.granted = answer == Answer::Ok;
            // A crash from here on finds that a stop may be sent. Nothing waits for the disk, least of all
            // under this lock, which the deadline needs.
            if shared.open.granted {
                let open = shared.open.clone();
                self.0.state.later(move |state| state.update(&open));
            }
        }
        self.handle(&Event::StartAnswered(answer));
    }

    async fn stop(self, path: &'static str, at: Time) {
        let (answer, exchange) = profile::stop(&self.0.server, path, at).await;
        self.lock().exchanges.push(exchange);
        self.handle(&Event::StopAnswered(answer));
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
                    stalled: self.now().since(shared.distrust.from),
                    bytes: 0,
                    unproven: ending.unproven.clone(),
                    cost: None,
                    harm: None,
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
        let status = Status { phase: shared.window.phase(), distrust: shared.distrust };
        (ending, shared.exchanges.clone(), status)
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // A panic in one task must not keep the others from closing the window.
        self.0.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
