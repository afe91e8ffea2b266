//! Carries out what the core asks for. Nothing here waits for the network or reads a large file.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::archive::{Job, Samples};
use super::begin::site_of;
use super::cost::Meter;
use super::task::Task;
use super::window::WindowSignal;
use super::{Agent, Running};
use skewtrap_core::capture::admit::CapturePlan;
use skewtrap_core::capture::stall::habits;
use skewtrap_core::incident::{CaptureOutcome, Incident, Record};
use skewtrap_core::message::Update;
use skewtrap_core::rule::Change;
use skewtrap_core::signal::sample::TargetId;
use skewtrap_core::watch::Effect;
use skewtrap_trace::time::Time;

/// How far before the onset the evidence of a bundle reaches.
const BEFORE: Duration = Duration::from_secs(120);
/// How far back the habit of the ranks' samples is learned from.
const HABIT: Duration = Duration::from_secs(120);
/// A sample may arrive this long after it was true.
const LATE: Duration = Duration::from_secs(10);

impl Agent {
    pub(super) fn carry_out(&mut self, effects: &mut Vec<Effect>) {
        for effect in effects.drain(..) {
            (self.on_effect)(&effect);
            match effect {
                Effect::Start { incident, target, grant, receivers } => {
                    self.start(*incident, target, *grant, receivers);
                }
                Effect::Changed { change, capture, why } => self.changed(&change, capture, why.as_deref()),
                Effect::Cleared { incident } => self.hear(&incident, WindowSignal::Cleared),
                Effect::Refused { incident, rule, reason, why } => {
                    info!(incident = &*incident, rule = &*rule, reason, "no capture: {why}");
                    self.metrics.refusal(&rule, reason);
                }
                Effect::Over { rule, target, firing, at } => {
                    // Without it what fires after a restart would be taken for the same.
                    if let Err(error) = self.desk.state.end_firing(&rule, &target, &firing, at) {
                        error!("{error}");
                    }
                }
                Effect::ProfileLine { incident, rank, line } => {
                    self.hear(&incident, WindowSignal::Line { rank, line })
                }
                Effect::Dying { target, line } => {
                    error!(target = self.site_name(target), "the server's log says that it dies: {line}");
                    self.hear_on(target, &WindowSignal::Gone(line));
                }
                Effect::Notify { incident, update, receivers } => self.notify(*incident, update, &receivers),
                // The archive ends only with the agent.
                Effect::Keep { incident } => drop(self.archive.send(Job::Update(incident))),
                Effect::Trouble { said, is_over: true, .. } => info!("{said}"),
                Effect::Trouble { said, .. } => warn!("{said}"),
                Effect::Answered { .. } => {}
            }
        }
    }

    /// The attempt is written to the state by the task, before it sends anything.
    fn start(&mut self, incident: Incident, target: TargetId, grant: CapturePlan, notify: Vec<Arc<str>>) {
        let (Some(plan), Some(facts)) = (self.sites.get(usize::from(target.0)), self.watch.facts(target))
        else {
            return;
        };
        let (site, now) = (site_of(plan, &self.nowhere), self.clock.now());
        let usual = habits(self.watch.store().load_reports(target, now - HABIT));
        let meter = Meter::new(self.clock, facts.health.median().unwrap_or_default(), usual);
        let (heard, hears) = mpsc::channel(256);
        let means = grant.means.word();
        let running = Running { heard, target, means, meter: meter.clone(), heard_to: now };
        self.running.insert(incident.id.clone(), running);
        let task =
            Task { incident, notify, grant, site, desk: self.desk.clone(), meter, tx: self.tx.clone() };
        self.supervisor.once(task.run(hears, self.windows.child_token()));
    }

    /// The ranks may have spoken: the meters of the windows on their server hear of it.
    pub(super) fn tell_meters(&mut self) {
        let now = self.clock.now();
        for running in self.running.values_mut() {
            running.meter.spoken(self.watch.store().load_reports(running.target, running.heard_to));
            running.heard_to = now - LATE;
        }
    }

    fn changed(&self, change: &Change, capture: &str, why: Option<&str>) {
        let (rule, state) = (&*change.rule.name, change.state.word());
        info!(target = change.target.as_deref(), rule, state, "{}", change.text(capture, why));
        if change.is_transition() {
            self.metrics.transition(&change.rule.name, change.state.into());
        }
    }

    fn notify(&mut self, incident: Incident, update: Update, receivers: &[Arc<str>]) {
        self.post.tell(&incident, update, receivers, self.clock);
        if update == Update::Captured {
            self.forget(&incident.id);
        }
        let waits = self.running.contains_key(&incident.id);
        let job = if update == Update::Fired && !waits {
            let evidence = self.evidence(&incident, incident.finding.onset);
            let record = Record::new(self.desk.state.agent().clone(), incident).told_to(receivers.to_vec());
            let record = Box::new(record);
            Job::Create { record, evidence }
        } else {
            Job::Update(Box::new(incident))
        };
        // The archive ends only with the agent.
        let _ = self.archive.send(job);
    }

    /// The group's samples from two minutes before the onset on; they are put into words elsewhere.
    pub(super) fn evidence(&self, incident: &Incident, onset: Time) -> Samples {
        let seen = self.watch.evidence(incident, onset - BEFORE);
        Samples { catalog: self.watch.store().catalog().clone(), seen }
    }

    pub(super) fn hear(&self, incident: &str, told: WindowSignal) {
        if let Some(running) = self.running.get(incident) {
            // A window that hears nothing any more is over; one with 256 things to hear has enough.
            let _ = running.heard.try_send(told);
        }
    }

    fn hear_on(&self, target: TargetId, told: &WindowSignal) {
        for running in self.running.values().filter(|r| r.target == target) {
            let _ = running.heard.try_send(told.clone());
        }
    }

    fn site_name(&self, target: TargetId) -> &str {
        self.sites.get(usize::from(target.0)).map_or("server", |s| &s.name)
    }

    /// A window of ours ended.
    pub(super) fn window_over(&mut self, incident: &str, outcome: &CaptureOutcome, stalled: Duration) {
        let running = self.running.remove(incident);
        if let (Some(known), Some(running)) = (self.watch.incident(incident), running) {
            self.metrics.capture(&known.rule, running.means, outcome.word());
            self.metrics.stall(&known.target, stalled.as_secs_f64());
        }
        // What it brought may leave too little room for the next one.
        self.make_room();
    }
}
