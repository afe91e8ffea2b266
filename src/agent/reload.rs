//! The configuration, read again while the agent runs: beside the loop, for its files may lie on a disk that hangs.

use std::time::Duration;

use anyhow::anyhow;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::{Agent, Reload, receivers};
use crate::act::systemd;
use crate::serve::Answer;
use skewtrap_core::capture::admit::Policy;
use skewtrap_core::status::ReloadProblem;
use skewtrap_core::watch::{Effect, Event, Setup};

/// How long an answer waits for the files: less than whoever asked waits for it.
const READ_LIMIT: Duration = Duration::from_secs(3);

/// Who wants it to be read.
#[derive(Debug)]
pub(super) enum ReloadRequester {
    /// A signal, or a file that has changed.
    Signal,
    /// Somebody who waits for the answer.
    Api(oneshot::Sender<Answer>),
}

/// A reading that is under way, and who waits for one.
#[derive(Debug, Default)]
pub(super) struct Reloading {
    reading: Option<JoinHandle<anyhow::Result<Reload>>>,
    /// Who wanted it before it began.
    requesters: Vec<ReloadRequester>,
    /// Who wanted one since: the files may have changed after they were read.
    next: Vec<ReloadRequester>,
}

/// Until the configuration was read; for ever where nobody reads it.
pub(super) async fn read(reloading: &mut Reloading) -> anyhow::Result<Reload> {
    let Some(reading) = &mut reloading.reading else { return std::future::pending().await };
    let read = reading.await;
    reloading.reading = None;
    read.unwrap_or_else(|panic| Err(anyhow!("the configuration could not be read: {panic}")))
}

impl Agent {
    /// The configuration is to be read again.
    pub(super) fn request_reload(&mut self, requester: ReloadRequester) {
        if matches!(requester, ReloadRequester::Signal) {
            systemd::reloading();
        }
        // Who waits no longer is told nothing, and one signal is as good as two.
        self.reloading.next.retain(|waiting| match (waiting, &requester) {
            (ReloadRequester::Signal, ReloadRequester::Signal) => false,
            (ReloadRequester::Signal, ReloadRequester::Api(_)) => true,
            (ReloadRequester::Api(answer), _) => !answer.is_closed(),
        });
        self.reloading.next.push(requester);
        self.begin_reading();
    }

    /// Begins to read it, where somebody waits for that and nobody reads it yet.
    fn begin_reading(&mut self) {
        if self.reloading.reading.is_some() || self.reloading.next.is_empty() {
            return;
        }
        self.reloading.requesters = std::mem::take(&mut self.reloading.next);
        let reload = self.reload.clone();
        self.reloading.reading = Some(crate::world::blocking(move || reload()));
    }

    /// The configuration was read again: what it says is in force from now on, unless it is wrong. Whether
    /// the agent is to end and begin anew with it.
    pub(super) fn reloaded(&mut self, read: anyhow::Result<Reload>, effects: &mut Vec<Effect>) -> bool {
        let begins_anew = read.as_ref().is_ok_and(|new| new.begins_anew);
        let taken = self.take_configuration(read, effects);
        for requester in std::mem::take(&mut self.reloading.requesters) {
            match requester {
                ReloadRequester::Signal => {
                    tell(&taken);
                    systemd::ready("watching");
                }
                ReloadRequester::Api(answer) => {
                    // Who asked was told that it takes longer.
                    if answer.send(answer_of(&taken)).is_err() {
                        tell(&taken);
                    }
                }
            }
        }
        self.publisher.invalidate();
        if begins_anew {
            for requester in std::mem::take(&mut self.reloading.next) {
                if let ReloadRequester::Api(answer) = requester {
                    let message = "the agent begins anew with what changed, and reads it again".into();
                    // Who waits no longer is told nothing.
                    let _ = answer.send(Answer::Done { message, incident: None });
                }
            }
        } else {
            self.begin_reading();
        }
        begins_anew
    }

    /// Gives how many rules there are now, and what is not in force before a restart.
    fn take_configuration(
        &mut self,
        read: anyhow::Result<Reload>,
        effects: &mut Vec<Effect>,
    ) -> anyhow::Result<(usize, Vec<String>)> {
        let problem =
            |error: &anyhow::Error| ReloadProblem { at: self.clock.now(), why: format!("{error:#}") };
        self.reload_problem = read.as_ref().err().map(problem);
        let new = read?;
        let count = new.rules.len();
        if let Some(awaited) = &mut self.awaited {
            let (rules, catalog, own) = (new.rules.clone(), new.catalog.clone(), new.own.clone());
            let policy = Policy {
                budget: new.budget.clone(),
                min_free: new.min_free,
                watch_only: new.watch_only,
                ..awaited.setup.policy.clone()
            };
            awaited.setup = Setup { rules, catalog, own, policy, ..awaited.setup.clone() };
        }
        if let Some(pool) = &self.store.pool {
            pool.set_budget(new.budget.clone());
        }
        let watch_only = new.watch_only || self.only_watch;
        let policy = Event::PolicyChanged { budget: new.budget, min_free: new.min_free, watch_only };
        self.watch.handle(policy, self.clock.now(), effects);
        let event = Event::Reloaded { rules: new.rules, catalog: new.catalog, own: new.own };
        self.watch.handle(event, self.clock.now(), effects);
        self.manual_capture = new.manual_capture;
        let mut waiting = receivers::waiting(&self.configured, &new.receivers);
        if !new.waiting.is_empty() {
            let keys = new.waiting.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
            waiting.push(format!("changed, and not in force until the agent is restarted: {keys}"));
        }
        for sentence in &waiting {
            warn!("{sentence}");
        }
        Ok((count, waiting))
    }
}

fn tell(taken: &anyhow::Result<(usize, Vec<String>)>) {
    match taken {
        Ok((rules, _)) => info!("the configuration was read again; {rules} rules are in force"),
        Err(error) => warn!("{error:#}; the old rules stay in force"),
    }
}

fn answer_of(taken: &anyhow::Result<(usize, Vec<String>)>) -> Answer {
    match taken {
        Ok((rules, waiting)) => {
            let rules = format!("{rules} rules are in force");
            let message = [std::slice::from_ref(&rules), waiting].concat().join("; ");
            Answer::Done { message, incident: None }
        }
        Err(error) => Answer::Wrong { why: format!("{error:#}; the old rules stay in force") },
    }
}

/// The answer to who wants it to be read, when it was.
pub(super) async fn answer_when_read(answer: oneshot::Receiver<Answer>) -> Answer {
    match tokio::time::timeout(READ_LIMIT, answer).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Answer::Refused { why: "the agent ends, and reads nothing again".into() },
        Err(_) => Answer::Refused {
            why: "the disk of the configuration does not answer; the old rules stay in force until it does, and what it says then is in the log".into(),
        },
    }
}
