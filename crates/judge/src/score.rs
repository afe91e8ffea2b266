//! One run of a world through the core with the shipped rules, and what it is worth against the truth.

use std::sync::Arc;

use anyhow::{Result, bail};
use jiff::tz::TimeZone;
use skewtrap::config::rules;
use skewtrap_core::capture::CaptureSpec;
use skewtrap_core::capture::admit::Policy;
use skewtrap_core::capture::governor::Ledger;
use skewtrap_core::finding::Finding;
use skewtrap_core::incident::STANDING;
use skewtrap_core::message::Update;
use skewtrap_core::rule::{Change, ChangeKind, Rule, RuleState};
use skewtrap_core::signal::catalog::Catalog;
use skewtrap_core::signal::observation::SourceId;
use skewtrap_core::signal::sample::{self, TargetId};
use skewtrap_core::signal::source::WatchedSource;
use skewtrap_core::watch::{Effect, Mode, Setup, Watch, WatchedTarget};
use skewtrap_trace::labels::{LabelValue, Labels};
use skewtrap_trace::time::Time;

use crate::engine::Outcome;
use crate::spec::{Incident, World};
use crate::view::{START, Source, play};
use crate::worlds::guilty;

/// What the rules told of one trouble.
#[derive(Clone, Debug)]
pub struct Told {
    pub at: f64,
    pub rule: String,
    pub rank: usize,
    pub what: String,
    pub side: &'static str,
    pub onset: (f64, f64),
    /// The ranks that its incident named, and since when: the blamed one, and those that it is told with.
    pub ranks: Vec<(f64, usize)>,
    pub cleared: Option<f64>,
    /// The capture's word when it fired, or when its capture was decided.
    pub capture: String,
    /// Whether a firing with other blame goes on with it.
    pub is_reblame: bool,
    /// How often it came back after it was told to be over.
    pub returns: usize,
}

impl Told {
    fn name(&mut self, finding: &Finding, at: f64) {
        for rank in [&finding.rank].into_iter().chain(&finding.also).filter_map(rank_of) {
            if !self.ranks.iter().any(|(_, known)| *known == rank) {
                self.ranks.push((at, rank));
            }
        }
    }

    /// Whether it is an imbalance that was there before anything could be compared.
    pub fn is_standing(&self) -> bool {
        self.rule == STANDING
    }

    /// Whether a window was spent on it.
    pub fn has_window(&self) -> bool {
        matches!(self.capture.as_str(), "would_start" | "done" | "open")
    }
}

/// The rules that run by default, as the binary carries them.
pub fn shipped() -> Result<Vec<Rule>> {
    let loaded = rules::shipped(&Catalog::default(), &CaptureSpec::default());
    if !loaded.is_ok() {
        bail!("the shipped rules have errors: {:?}", loaded.diagnostics);
    }
    Ok(loaded.rules.into_iter().map(|r| r.rule).collect())
}

fn setup(rules: Vec<Rule>, false_alarms: f64) -> Setup {
    let server: Arc<str> = "server".into();
    let kinds = [(0, sample::Source::Log), (1, sample::Source::Loads), (2, sample::Source::Metrics)];
    let source = |(id, kind)| WatchedSource {
        id: SourceId(id),
        target: TargetId(0),
        kind,
        name: "world".into(),
        zone: None,
    };
    let mut policy = Policy::default();
    policy.budget.false_alarms = false_alarms;
    Setup {
        rules,
        catalog: Arc::new(Catalog::default()),
        own: Default::default(),
        pages: Vec::new(),
        sources: kinds.map(source).into(),
        targets: vec![WatchedTarget { name: server.clone(), role: None, group: server, sees_log: true }],
        policy,
        ledger: Ledger::default(),
        zone: TimeZone::UTC,
        mode: Mode::Replay,
    }
}

/// Runs `out` through a fresh core as `source` shows it.
pub fn told(out: &Outcome, world: &World, source: Source, rules: &[Rule], false_alarms: f64) -> Vec<Told> {
    let mut watch = Watch::new(setup(rules.to_vec(), false_alarms), Time::default());
    let (mut all, mut effects): (Vec<Told>, Vec<Effect>) = (Vec::new(), Vec::new());
    play(out, source, world.kv, |seen| {
        let now = seen.at().unwrap_or_default();
        watch.observe(&seen, now, &mut effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Changed { change, capture, .. } => note(&mut all, &change, capture.word()),
                Effect::Notify { incident, update: Update::Fired, .. } if *incident.rule == *STANDING => {
                    all.extend(standing(&incident));
                }
                Effect::Store { incident } | Effect::Notify { incident, .. } => {
                    let fired = incident.fired_at.epoch_s() - START;
                    if let Some(t) = all.iter_mut().rev().find(|t| t.rule == *incident.rule && t.at == fired)
                    {
                        t.capture = incident.capture.word().into();
                        t.name(&incident.finding, now.epoch_s() - START);
                    }
                }
                _ => {}
            }
        }
    });
    all
}

/// An imbalance that was there before anything could be compared: no rule tells it.
fn standing(incident: &skewtrap_core::incident::Incident) -> Option<Told> {
    let finding = &incident.finding;
    Some(Told {
        at: incident.fired_at.epoch_s() - START,
        rule: incident.rule.to_string(),
        rank: rank_of(&finding.rank)?,
        what: finding.evidence.clone().unwrap_or_default(),
        side: finding.side.word(),
        onset: (finding.onset.epoch_s() - START, finding.onset_error_s),
        ranks: Vec::new(),
        cleared: None,
        capture: incident.capture.word().into(),
        is_reblame: false,
        returns: 0,
    })
}

fn rank_of(labels: &Labels) -> Option<usize> {
    match labels.get("dp_rank") {
        Some(LabelValue::Index(rank)) => usize::try_from(*rank).ok(),
        _ => None,
    }
}

fn note(all: &mut Vec<Told>, change: &Change, capture: &str) {
    let at = change.at.epoch_s() - START;
    let rule = change.rule.name.to_string();
    if (change.state != RuleState::Firing || change.how == ChangeKind::Reblamed)
        && let Some(t) = all.iter_mut().rev().find(|t| t.rule == rule && t.cleared.is_none())
    {
        t.cleared = Some(at);
    }
    if change.how == ChangeKind::Weighed
        && let Some(t) = all.iter_mut().rev().find(|t| t.rule == rule && t.cleared.is_none())
    {
        t.capture = capture.into();
    }
    if change.how == ChangeKind::Returned
        && let Some(t) = all.iter_mut().rev().find(|t| t.rule == rule && t.cleared.is_some())
    {
        t.returns += 1;
        t.cleared = None;
    }
    let Some(finding) = change.finding.as_ref().filter(|_| change.is_onset()) else { return };
    let Some(rank) = rank_of(&finding.rank) else { return };
    let mut told = Told {
        at,
        rule,
        rank,
        what: finding
            .measured
            .as_ref()
            .map_or_else(String::new, |m| format!("{}({})", m.statistic, m.signal)),
        side: finding.side.word(),
        onset: (finding.onset.epoch_s() - START, finding.onset_error_s),
        ranks: Vec::new(),
        cleared: None,
        capture: capture.into(),
        is_reblame: change.how == ChangeKind::Reblamed,
        returns: 0,
    };
    told.name(finding, at);
    all.push(told);
}

/// What one incident run showed.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Seconds to the first telling that blames a right rank, before the end.
    pub delay: Option<f64>,
    /// The first telling in the incident blamed a right rank.
    pub first_right: bool,
    pub wrong: usize,
    pub tellings: usize,
    pub before: usize,
    pub all_named: bool,
    /// Onset error and its stated ±.
    pub onset: Option<(f64, f64)>,
    /// Seconds from the end to clearing.
    pub clearing: Option<f64>,
    /// How often an incident came back after it was told to be over.
    pub returns: usize,
}

pub fn judge(told: &[Told], script: &[Incident]) -> Verdict {
    let a = script.iter().map(|i| i.from).fold(f64::INFINITY, f64::min);
    let b = script.iter().map(|i| i.until).fold(0.0, f64::max);
    let right = guilty(script);
    let told: Vec<&Told> = told.iter().filter(|t| !t.is_standing()).collect();
    let told = || told.iter().copied();
    let during: Vec<&Told> = told().filter(|t| t.at > a && t.at <= b).collect();
    let after: Vec<&Told> = told().filter(|t| t.at > b && t.at <= b + 45.0).collect();
    let hit = during.iter().find(|t| right.contains(&t.rank));
    let all = || during.iter().chain(&after);
    Verdict {
        delay: hit.map(|t| t.at - a),
        first_right: during.first().is_some_and(|t| right.contains(&t.rank)),
        wrong: all().filter(|t| !right.contains(&t.rank)).count(),
        tellings: all().filter(|t| !t.is_reblame).count(),
        before: told().filter(|t| t.at <= a).count(),
        all_named: right
            .iter()
            .all(|r| during.iter().any(|t| t.ranks.iter().any(|(at, rank)| rank == r && *at <= b))),
        onset: hit.map(|t| (t.onset.0 - a, t.onset.1)),
        returns: all().map(|t| t.returns).sum(),
        clearing: during.last().and_then(|t| t.cleared).map(|c| c - b),
    }
}
