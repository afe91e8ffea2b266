//! The core as its users see it: [`Watch::handle`] takes an event and the time, and appends effects.
//!
//! It owns no socket, no file, no clock and no task. The running agent, a replay and the tests drive
//! this same code and differ only in the shell around it. Nothing here iterates an unordered map or
//! draws a random number, so a recording replays exactly.
//!
//! `causes` looks for the cause of what fired; `core` lets time pass and handles changes of state,
//! `joins` which incident a firing belongs to, `requests` decides on captures, `worth` whether a trouble is
//! worth one, `windows` takes in how they end, `messages` decides what of it is reported when, `incidents`
//! holds what fires, `kept` hands it to the next agent, `server` what is known of each server, and `status`
//! shows all of it.

mod causes;
mod core;
mod death;
mod escalation;
mod event;
mod follow_up;
mod history;
mod impact;
mod incidents;
mod joins;
mod kept;
mod messages;
mod requests;
mod server;
mod shown;
mod slowness;
mod standing;
mod status;
mod windows;
mod worth;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;

use self::core::Core;
pub use self::death::SERVER_DIED;
pub use self::event::{Effect, Event, ManualRequest, OpenWindow, ServerFact, WindowEvent};
pub use self::incidents::{ActiveIncident, Trigger};
pub use self::kept::KeptIncident;
pub use self::messages::LONGEST_COMPARISON;
use crate::capture::admit::Policy;
use crate::capture::facts::Facts;
use crate::capture::governor::Ledger;
use crate::capture::refusal::Refusal;
use crate::factor::{Mark, MarkEffect};
use crate::incident::{Incident, IncidentId, Marked};
use crate::rule::{LearnedServer, Rule};
use crate::signal::catalog::Catalog;
use crate::signal::intake::{Intake, UserSignals};
use crate::signal::metrics::Role;
use crate::signal::observation::{Observation, Problem};
use crate::signal::sample::TargetId;
use crate::signal::source::WatchedSource;
use crate::signal::store::{Bounds, SignalStore, StoredSeries};
use crate::signal::user_metric::ExtraPage;
use crate::status::{History, Scope, Silence, Status};
use skewtrap_trace::time::Time;

/// How often the shell sends [`Event::Tick`].
pub const TICK: Duration = Duration::from_millis(250);

/// Whether windows are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// On real servers.
    Live,
    /// On a recording: only the limits can refuse, and nothing is opened.
    Replay,
}

/// A server that is watched.
#[derive(Clone, Debug)]
pub struct WatchedTarget {
    pub name: Arc<str>,
    /// Its role, where the operator declares it.
    pub role: Option<Role>,
    /// Servers of one group have one window at a time; its own name when it is alone.
    pub group: Arc<str>,
    /// Whether one of its sources is a log.
    pub sees_log: bool,
}

/// What a core is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The rules, checked.
    pub rules: Vec<Rule>,
    /// The signals they may name.
    pub catalog: Arc<Catalog>,
    /// The user's own signals.
    pub own: UserSignals,
    /// The sources that are metrics pages beside the servers' own.
    pub pages: Vec<ExtraPage>,
    /// What is read.
    pub sources: Vec<WatchedSource>,
    /// The servers.
    pub targets: Vec<WatchedTarget>,
    /// What captures may cost.
    pub policy: Policy,
    /// Attempts of the last days.
    pub ledger: Ledger,
    /// The zone of log stamps.
    pub zone: TimeZone,
    /// Whether windows are opened.
    pub mode: Mode,
}

/// The core: numbers, the reader that fills them, and everything that is decided on them.
#[derive(Debug)]
pub struct Watch {
    store: SignalStore,
    intake: Intake,
    sources: Vec<WatchedSource>,
    /// The servers that have given no sample yet.
    unheard: Vec<TargetId>,
    core: Core,
}

impl Watch {
    /// A core that has seen nothing yet.
    pub fn new(setup: Setup, now: Time) -> Self {
        let mut store = SignalStore::new(setup.catalog.clone(), Bounds::default());
        for target in &setup.targets {
            store.add_target(target.name.clone(), target.role);
        }
        let mut intake = Intake::new(setup.zone.clone());
        intake.set_own(setup.own.clone());
        intake.set_pages(setup.pages.clone());
        for source in &setup.sources {
            intake.name_source(source.id, source.name.clone());
            if let Some(zone) = &source.zone {
                intake.set_zone(source.id, zone.clone());
            }
        }
        let sources = setup.sources.clone();
        let unheard = (0..setup.targets.len() as u16).map(TargetId).collect();
        let core = Core::new(setup, &mut store, now);
        Self { store, intake, sources, unheard, core }
    }

    /// Takes one event; what is to be done is appended to `out`.
    pub fn handle(&mut self, event: Event, now: Time, out: &mut Vec<Effect>) {
        let Self { store, intake, core, .. } = self;
        match event {
            Event::Observed(mut seen) => {
                seen.came_by(now);
                Self::read_into(intake, store, core, &seen, out);
                core.evaluate_live(store, now, out);
            }
            Event::Tick => core.advance(store, now, out),
            Event::Server { target, fact } => core.server_fact(store, target, fact, now, out),
            Event::Window { incident, event } => core.window_event(&incident, event, now, out),
            Event::Compared { incident, window, note } => core.compared(&incident, window, note, now, out),
            Event::NotCompared { incident } => core.not_compared(&incident, now, out),
            Event::Reloaded { rules, catalog, own } => {
                store.set_catalog(catalog);
                intake.set_own(own);
                core.reloaded(store, rules, now, out);
            }
            Event::PolicyChanged { budget, min_free, watch_only } => {
                core.policy_changed(budget, min_free, watch_only);
            }
            Event::Silenced(silence) => core.silenced(silence, now),
            Event::Resumed(target) => drop(core.ledger.resume(target.as_deref())),
            Event::ClockSet(jump) => core.clock_was_set(store, jump),
            Event::LeftBehind { target, attempt, window } => core.left_behind(target, attempt, window, now),
            Event::Bundled { incident, path } => {
                if let Some(known) = core.incidents.get_mut(&incident) {
                    known.incident.bundle.get_or_insert(path);
                }
            }
            Event::Swept(space) => core.policy.bundles = Some(space),
        }
    }

    /// A capture that somebody, or an alert of another system, asks for: an incident of its own,
    /// through the same governor as any other. Gives the incident whose window is being opened.
    ///
    /// # Errors
    /// Why no window opens now.
    pub fn request_capture(
        &mut self,
        request: ManualRequest,
        now: Time,
        out: &mut Vec<Effect>,
    ) -> Result<IncidentId, Refusal> {
        self.core.request_capture(&self.store, request, now, out)
    }

    /// Why the ranks of a server cannot be compared, where they cannot, and what can be watched there.
    pub fn not_watched_on(&self, target: TargetId) -> Option<String> {
        status::not_watched_on(&self.core, target)
    }

    /// How many windows were opened within the last 24 hours, by rules and by hand, and how many may be.
    pub fn windows_of_a_day(&self, now: Time) -> (u32, u32) {
        status::windows_of_a_day(&self.core, now)
    }

    /// Takes one observation by reference, so that a replay can use its buffer again.
    pub fn observe(&mut self, seen: &Observation, now: Time, out: &mut Vec<Effect>) {
        self.read(seen, out);
        self.evaluate(now, out);
    }

    /// The first half of [`Self::observe`]: reads an observation and records its numbers. In a replay
    /// rules are evaluated meanwhile: recorded lines carry their own time, and are evaluated whenever it
    /// moves on, so that the result does not depend on the pieces in which the file was read.
    pub fn read(&mut self, seen: &Observation, out: &mut Vec<Effect>) {
        Self::read_into(&mut self.intake, &mut self.store, &mut self.core, seen, out);
    }

    /// The second half: evaluates live samples, once all that arrived together are recorded.
    pub fn evaluate(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.core.evaluate_live(&mut self.store, now, out);
    }

    fn read_into(
        intake: &mut Intake,
        store: &mut SignalStore,
        core: &mut Core,
        seen: &Observation,
        out: &mut Vec<Effect>,
    ) {
        intake.take(seen, store, |store, at, step| core.step(store, at, step, out));
    }

    /// The time up to which it has handled events.
    pub fn now(&self) -> Time {
        self.core.now
    }

    /// When an extra [`Event::Tick`] is due: samples that arrived too soon after others of their
    /// group wait to be evaluated.
    pub const fn due(&self) -> Option<Time> {
        self.core.due()
    }

    /// Whether a rule can fire at the very sample that shows it.
    pub fn fires_at_once(&self) -> bool {
        self.core.fires_at_once()
    }

    /// What the store remembers of an incident's group since then: the evidence of its bundle.
    pub fn evidence(&self, incident: &Incident, since: Time) -> Vec<StoredSeries> {
        let is_one_server = self.core.servers.iter().any(|s| s.name == incident.target);
        let group = match is_one_server {
            true => incident.group.clone().with_target(&incident.target),
            false => incident.group.clone(),
        };
        self.store.series_since(&group, since)
    }

    /// Everything that is shown.
    pub fn status(&self, now: Time) -> Status {
        Status { history: self.history(&Scope::ALL, None, now), ..self.overview(&Scope::ALL, now) }
    }

    /// Everything that is shown of some servers but the history, which is as long as the rest together.
    pub fn overview(&self, scope: &Scope, now: Time) -> Status {
        status::status_of(&self.core, &self.store, status::sources_of(self, scope, now), scope, now)
    }

    /// The last minutes of the load, and of whatever else a rule watches, on some servers; with `only`, the
    /// lines of that signal alone.
    pub fn history(&self, scope: &Scope, only: Option<&str>, now: Time) -> Vec<History> {
        history::history_of(&self.core, &self.store, scope, only, now)
    }

    /// The names of the servers that have given no sample yet.
    pub fn unheard(&mut self) -> impl Iterator<Item = &Arc<str>> {
        if !self.unheard.is_empty() {
            let is_heard = |s: &&WatchedSource| self.intake.stats_of(s.id).last.is_some();
            let heard: BTreeSet<TargetId> = self.sources.iter().filter(is_heard).map(|s| s.target).collect();
            self.unheard.retain(|target| !heard.contains(target));
        }
        self.unheard.iter().filter_map(|target| self.store.target_name(*target))
    }

    /// The servers that do not answer, and since when.
    pub fn unanswered(&self) -> impl Iterator<Item = (&Arc<str>, Time)> {
        self.core.servers.iter().filter_map(|s| Some((&s.name, s.facts.unanswered?)))
    }

    /// The servers with whose answers the agent is behind.
    pub fn behind(&self) -> BTreeSet<&Arc<str>> {
        let is_behind =
            |s: &&WatchedSource| matches!(self.intake.problem_of(s.id), Some(Problem::Behind { .. }));
        self.sources.iter().filter(is_behind).filter_map(|s| self.store.target_name(s.target)).collect()
    }

    /// What is known of a server.
    pub fn facts(&self, target: TargetId) -> Option<&Facts> {
        self.core.servers.get(usize::from(target.0)).map(|s| &s.facts)
    }

    /// The names of the rules.
    pub fn rule_names(&self) -> impl Iterator<Item = &str> {
        self.core.engine.rules().map(|rule| &*rule.name)
    }

    /// An incident that is in memory.
    pub fn incident(&self, id: &str) -> Option<&Incident> {
        self.core.incidents.get(id).map(|c| &c.incident)
    }

    /// What was learned of the factors of every server, as it outlives the agent.
    pub fn learned_servers(&self, now: Time) -> Vec<LearnedServer> {
        self.core.engine.learned_servers(now)
    }

    /// The same of one server.
    pub fn learned_of(&self, target: &str, now: Time) -> Option<LearnedServer> {
        self.core.engine.learned_of(target, now)
    }

    /// Goes on with what an agent before this one learned; to be called before anything is observed.
    pub fn remember(&mut self, learned_servers: Vec<LearnedServer>, now: Time) {
        self.core.engine.remember(learned_servers, now);
    }

    /// The incidents whose rules fire, with what was told of them, as they outlive the agent.
    pub fn kept_incidents(&self) -> Vec<KeptIncident> {
        self.core.kept(|_| true)
    }

    /// The same of one server.
    pub fn kept_incidents_of(&self, target: &str) -> Vec<KeptIncident> {
        self.core.kept(|incident| *incident.target == *target)
    }

    /// Goes on with the incidents that an agent before this one left open; to be called before anything is
    /// observed. Of several of the same firing the first one goes on.
    pub fn take_up(&mut self, kept: Vec<KeptIncident>, now: Time) {
        self.core.take_up(kept, now);
    }

    /// A capture of an incident that was taken up had ended before this agent began: `known` is what its bundle says.
    /// Where the incident is resolved the caller tells it, with the end.
    pub fn adopt_capture_result(&mut self, known: &Incident, out: &mut Vec<Effect>) {
        self.core.adopt_capture_result(known, out);
    }

    /// A person says what an incident was worth. What it taught its server's bounds; `None` where its rule has a bound
    /// that somebody wrote, or its firing is no longer remembered.
    pub fn mark(&mut self, id: &str, mark: Mark, now: Time, out: &mut Vec<Effect>) -> Option<MarkEffect> {
        let incident = &mut self.core.incidents.get_mut(id)?.incident;
        incident.trouble?;
        let effect = self.core.engine.mark(&incident.target, incident.fired_at, mark, now)?;
        incident.marked = Some(Marked { mark, at: now });
        out.push(Effect::Store { incident: Box::new(incident.clone()) });
        Some(effect)
    }

    /// The silences that hold, as they outlive the agent.
    pub fn silences(&self) -> &[Silence] {
        &self.core.silences
    }

    /// Until when a rule on a server is silenced, if it is.
    pub fn silenced_until(&self, rule: &str, target: &str, now: Time) -> Option<Time> {
        self.core.silenced_until(rule, target, now)
    }

    /// The numbers.
    pub fn store(&self) -> &SignalStore {
        &self.store
    }

    /// The attempts, for what the shell must know of them.
    pub fn ledger(&self) -> &Ledger {
        self.core.ledger()
    }

    /// Lines, samples and drops so far.
    pub fn counts(&self) -> Counts {
        let taken = self.intake.counts();
        Counts {
            lines: taken.lines,
            samples: self.store.recorded(),
            dropped: self.store.dropped() + taken.bad,
            evaluations: self.core.evaluations(),
        }
    }
}

/// What went through a core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Log lines read.
    pub lines: u64,
    /// Samples recorded.
    pub samples: u64,
    /// Lines, pages and samples that could not be read, or had no place.
    pub dropped: u64,
    /// Evaluations of rules.
    pub evaluations: u64,
}

#[cfg(test)]
mod tests;
