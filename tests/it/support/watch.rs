//! A core, what happens to it, and what it does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use serde_json::json;
use skewtrap::config::rules;
use skewtrap_core::capture::admit::{CapturePlan, Policy};
use skewtrap_core::capture::captured::{Captured, CapturedFile, Quality};
use skewtrap_core::capture::facts::{HealthAnswer, ServerFacts};
use skewtrap_core::capture::governor::{AttemptEnd, Ledger};
use skewtrap_core::capture::refusal::Refusal;
use skewtrap_core::capture::window::WindowPhase;
use skewtrap_core::capture::{CaptureSpec, HttpWindow};
use skewtrap_core::incident::{CaptureOutcome, Incident, IncidentId, StoredCapture, VerdictNote};
use skewtrap_core::message::{Message, Origin, Update};
use skewtrap_core::rule::Rule;
use skewtrap_core::signal::catalog::Catalog;
use skewtrap_core::signal::log_reader::Arrival;
use skewtrap_core::signal::observation::{Observation, SourceId};
use skewtrap_core::signal::sample::{Source, TargetId};
use skewtrap_core::signal::source::WatchedSource;
use skewtrap_core::watch::{
    Effect, Event, ManualRequest, Mode, ServerFact, Setup, Watch, WatchedTarget, WindowEvent,
};
use skewtrap_trace::labels::Labels;
use skewtrap_trace::time::Time;
use skewtrap_trace::verdict::{Confidence, Kind};

pub const RULE: &str = "rules:\n  - { name: skew, signal: load, trigger: { max_over_mean: 1.2, for: 0s }, clear: { max_over_mean: 1.1, for: 1s } }\n";

pub fn at(s: f64) -> Time {
    Time::from_epoch_s(1_795_492_000.0 + s)
}

pub struct Play {
    pub watch: Watch,
    pub starts: usize,
    pub refusals: usize,
    pub cleared: usize,
    /// The words of the states that the rule went through.
    pub states: Vec<&'static str>,
    /// What people were told, in order, ...
    pub told: Vec<Update>,
    /// How many messages each incident had, ...
    pub told_of: BTreeMap<Arc<str>, usize>,
    /// What was only renewed where it can be edited, ...
    pub edited: Vec<Update>,
    /// ... and the ids of the messages.
    pub ids: Vec<String>,
    /// The windows that were started.
    pub grants: Vec<CapturePlan>,
    /// Who is told of them, as their records keep it.
    pub receivers: Vec<Arc<str>>,
    /// Why wishes were refused.
    pub reasons: Vec<&'static str>,
    /// Firings that were seen to end.
    pub over: usize,
    pub fired: Option<Incident>,
    /// What was written last without a message.
    pub stored: Option<Incident>,
    /// The answer to who asked last.
    pub answer: Option<Result<IncidentId, Refusal>>,
}

/// These rules, or the shipped ones, and the signals that they may name.
pub fn loaded(text: Option<&str>) -> (Vec<Rule>, Arc<Catalog>) {
    let catalog = Arc::new(Catalog::default());
    let capture = CaptureSpec::Http(HttpWindow::default());
    let loaded = match text {
        Some(text) => rules::load([("rule", text)], &catalog, &capture),
        None => rules::shipped(&catalog, &capture),
    };
    assert!(loaded.is_ok(), "{:?}", loaded.diagnostics);
    (loaded.rules.into_iter().map(|c| c.rule).collect(), catalog)
}

/// A core with these rules, or the shipped ones.
pub fn core(text: Option<&str>, mode: Mode, now: Time) -> Watch {
    core_of(text, mode, Policy::default(), Ledger::default(), now)
}

/// One that may cost so much, after these attempts.
pub fn core_of(text: Option<&str>, mode: Mode, policy: Policy, ledger: Ledger, now: Time) -> Watch {
    Watch::new(Setup { policy, ledger, ..setup_on(&["server"], text, mode) }, now)
}

/// One that watches these servers.
pub fn core_on(servers: &[&str], text: Option<&str>, mode: Mode, now: Time) -> Watch {
    Watch::new(setup_on(servers, text, mode), now)
}

fn setup_on(servers: &[&str], text: Option<&str>, mode: Mode) -> Setup {
    let (rules, catalog) = loaded(text);
    let target = |name: &&str| {
        let name: Arc<str> = (*name).into();
        WatchedTarget { name: name.clone(), role: None, group: name, sees_log: true }
    };
    Setup {
        rules,
        catalog,
        own: Default::default(),
        pages: Vec::new(),
        sources: vec![WatchedSource {
            id: SourceId(0),
            target: TargetId(0),
            kind: Source::Loads,
            name: "loads".into(),
            zone: None,
        }],
        targets: servers.iter().map(target).collect(),
        policy: Policy::default(),
        ledger: Ledger::default(),
        zone: TimeZone::UTC,
        mode,
    }
}

/// That a window is over.
fn ended(outcome: CaptureOutcome, end: AttemptEnd) -> WindowEvent {
    WindowEvent::Ended(Box::new(StoredCapture { outcome, ..StoredCapture::failed(String::new(), end) }))
}

/// What `/v1/loads` of a server with two ranks says.
pub fn loads(now: Time, loads: [u32; 2]) -> Observation {
    loads_of(now, loads, [now, now])
}

/// What it says where each rank published its numbers at a time of its own.
pub fn loads_of(at: Time, loads: [u32; 2], published: [Time; 2]) -> Observation {
    let rank = |dp: usize| json!({"timestamp": published[dp].epoch_s(), "dp_rank": dp, "num_running_reqs": loads[dp], "num_waiting_reqs": 0});
    let body = json!({"version": "0.5.16", "loads": [rank(0), rank(1)]}).to_string().into_bytes();
    Observation::Loads { target: TargetId(0), source: SourceId(0), body, at }
}

impl Play {
    pub fn new() -> Self {
        Self::of(core(Some(RULE), Mode::Live, at(0.0)))
    }

    pub fn of(watch: Watch) -> Self {
        Self {
            watch,
            starts: 0,
            refusals: 0,
            cleared: 0,
            states: Vec::new(),
            told: Vec::new(),
            told_of: BTreeMap::new(),
            edited: Vec::new(),
            ids: Vec::new(),
            grants: Vec::new(),
            receivers: Vec::new(),
            reasons: Vec::new(),
            over: 0,
            fired: None,
            stored: None,
            answer: None,
        }
    }

    pub fn tell(&mut self, event: Event, now: f64) {
        let mut effects = Vec::new();
        self.watch.handle(event, at(now), &mut effects);
        self.note(effects, now);
    }

    fn note(&mut self, effects: Vec<Effect>, now: f64) {
        for effect in effects {
            match effect {
                Effect::Start { plan, receivers, .. } => {
                    self.receivers.extend(receivers);
                    self.starts += 1;
                    self.grants.push(*plan);
                }
                Effect::Refused { reason, .. } => {
                    self.refusals += 1;
                    self.reasons.push(reason.word());
                }
                Effect::Over { .. } => self.over += 1,
                Effect::Notify { update, incident, only_edits, .. } => {
                    if only_edits {
                        self.edited.push(update);
                    } else {
                        self.told.push(update);
                        *self.told_of.entry(incident.id.clone()).or_default() += 1;
                    }
                    self.ids.push(Message::of(&incident, update, at(now), &Origin::default()).id);
                    self.fired.get_or_insert(*incident);
                }
                Effect::Store { incident } => self.stored = Some(*incident),
                Effect::Cleared { .. } => self.cleared += 1,
                Effect::Changed { change, .. } => self.states.push(change.state.word()),
                _ => {}
            }
        }
    }

    /// The loads of two ranks, and a tick.
    pub fn second(&mut self, now: f64, of: [u32; 2]) {
        self.tell(Event::Observed(loads(at(now), of)), now);
        self.tell(Event::Tick, now + 0.3);
    }

    /// The configuration is read again.
    pub fn reload(&mut self, text: &str, now: f64) {
        let (rules, catalog) = loaded(Some(text));
        self.tell(Event::Reloaded { rules, catalog, own: Default::default() }, now);
    }

    /// A log line of each of the two ranks, and a tick.
    pub fn lines(&mut self, now: f64, loads: [u32; 2]) {
        let stamp = jiff::Timestamp::from_nanosecond(i128::from(at(now).nanos())).expect("a time");
        let line = |dp: usize| {
            let (stamp, running) = (stamp.strftime("%Y-%m-%d %H:%M:%S"), loads[dp]);
            format!(
                "[{stamp} DP{dp}] Decode batch, #running-req: {running}, #token: 100, token usage: 0.1, gen throughput (token/s): 9.0, #queue-req: 0\n"
            )
        };
        let lines = (line(0) + &line(1)).into_bytes();
        let (target, source, arrival) = (TargetId(0), SourceId(0), Arrival::Live(at(now)));
        self.tell(Event::Observed(Observation::Lines { target, source, lines, arrival }), now);
        self.tell(Event::Tick, now + 0.3);
    }

    pub fn facts(&mut self, now: f64) {
        let info = ServerFacts::of_server_info(&json!({"version": "0.5.16", "dp_size": 2, "device": "cuda"}));
        // Of a model so small that a first window of it stays below the default of `max_stall`.
        let model_size = info.model_size.with_config(&json!({"num_hidden_layers": 8}));
        let info = ServerFacts { model_size, ..info };
        for fact in
            [ServerFact::Info(info), ServerFact::Health(HealthAnswer::Healthy(Duration::from_millis(5)))]
        {
            self.tell(Event::Server { target: TargetId(0), fact }, now);
        }
    }

    /// The window that was started last runs, ends, and its export settles; 20 s later samples are
    /// trusted again.
    pub fn window_ends(&mut self, now: f64) {
        let grant = self.grants.last().expect("one was started");
        let incident: Arc<str> = grant.attempt.incident.as_str().into();
        let mut news = |event, s| self.tell(Event::Window { incident: incident.clone(), event }, s);
        for (phase, s) in [
            (WindowPhase::Open, 0.1),
            (WindowPhase::Stopping, 1.0),
            (WindowPhase::Exporting, 1.1),
            (WindowPhase::Verifying, 1.2),
        ] {
            news(WindowEvent::Entered(phase), now + s);
        }
        let end = AttemptEnd {
            at: at(now + 1.3),
            stalled: Duration::from_millis(500),
            bytes: 1000,
            unproven: None,
            cost: None,
            harm: None,
        };
        let outcome = CaptureOutcome::Done(Captured::default());
        news(ended(outcome, end), now + 1.3);
    }

    /// Another agent's window keeps the one that was started last from its server.
    pub fn held_up(&mut self, now: f64) {
        let incident: Arc<str> =
            self.grants.last().expect("one was started").attempt.incident.as_str().into();
        let refusal = Refusal::OtherAgent { process: 7, left: Duration::from_secs(75) };
        self.stored = None;
        let event = WindowEvent::Refused(Box::new(refusal));
        self.tell(Event::Window { incident, event }, now);
    }

    /// Somebody asks for a window.
    pub fn asked(&mut self, now: f64) {
        let capture = CaptureSpec::Http(HttpWindow::default());
        let (why, labels, since) = ("a look".into(), Labels::default(), None);
        let request = ManualRequest {
            target: TargetId(0),
            is_alert: false,
            is_baseline: false,
            capture,
            why,
            labels,
            since,
        };
        let mut effects = Vec::new();
        self.answer = Some(self.watch.request_capture(request, at(now), &mut effects));
        self.note(effects, now);
    }

    /// The window that was started last ends, with a file where its ranks can be compared.
    pub fn window_over(&mut self, now: f64, comparable: bool) -> Arc<str> {
        let incident: Arc<str> =
            self.grants.last().expect("one was started").attempt.incident.as_str().into();
        let end = AttemptEnd {
            at: at(now),
            stalled: Duration::ZERO,
            bytes: 1000,
            unproven: None,
            cost: None,
            harm: None,
        };
        let files = if comparable { vec![CapturedFile::default()] } else { Vec::new() };
        let outcome =
            CaptureOutcome::Done(Captured { files, quality: Quality::Usable, ..Captured::default() });
        self.tell(Event::Window { incident: incident.clone(), event: ended(outcome, end) }, now);
        incident
    }

    /// The ranks of its capture were compared.
    pub fn compared(&mut self, incident: &Arc<str>, now: f64) {
        let note = VerdictNote {
            kind: Kind::NoFinding,
            rank: None,
            by: None,
            sentence: "nothing".into(),
            lost_ms_per_step: None,
            confidence: Confidence::Low,
            confirms: None,
            suspect: None,
        };
        self.tell(Event::Compared { incident: incident.clone(), window: 1, note }, now);
    }

    pub fn health(&mut self, now: f64, answered: HealthAnswer) {
        self.tell(Event::Server { target: TargetId(0), fact: ServerFact::Health(answered) }, now);
    }
}
