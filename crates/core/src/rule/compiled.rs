//! A checked rule with what the engine needs to evaluate it: which signals it reads, and through
//! which views of the store.

use std::sync::Arc;
use std::time::Duration;

use super::Rule;
use super::condition::Condition;
use super::detector::DetectorInputs;
use super::state::Holds;
use crate::finding::Statistic;
use crate::signal::catalog;
use crate::signal::store::{SignalStore, ViewId};

/// No group is evaluated more often than this,
pub const EVALUATION_INTERVAL: Duration = Duration::from_millis(100);
/// or this where its rule fires at the very sample that shows it: lines of a busy log come that often.
const AT_ONCE_INTERVAL: Duration = Duration::from_millis(15);

/// One read of a view: the group's values, averaged over `smooth` (zero for the latest ones).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Probe {
    pub view: ViewId,
    pub smooth: Duration,
}

/// A rule with the probes that its parts read.
#[derive(Debug)]
pub(super) struct CompiledRule {
    pub rule: Arc<Rule>,
    pub fingerprint: u64,
    pub holds: Holds,
    /// No group is evaluated more often than this.
    pub interval: Duration,
    /// Each distinct probe once; the first is that of the trigger's first condition.
    pub probes: Vec<Probe>,
    /// For each condition of the trigger, of the clear, and each signal of the guard, its probe.
    pub trigger: Vec<usize>,
    pub clear: Vec<usize>,
    pub guard: Vec<usize>,
    /// Probes from this index on are optional inputs: their absence does not block evaluation.
    pub required: usize,
    /// What the detector is fed, if a condition asks for departures.
    pub detector_inputs: Option<DetectorInputs>,
    /// Whether a condition asks for factors.
    pub reads_factors: bool,
    /// Whether one condition on one probe decides, without anything that it must remember while it does not hold.
    pub allows_glances: bool,
}

/// Whether the very sample that shows something can fire it: nothing must last, and nothing is an average or is
/// measured by what was usual before. Factors are looked at once a second.
fn fires_at_once(rule: &Rule) -> bool {
    let is_of_now = |c: &Condition| {
        let looks_back = matches!(c.statistic, Statistic::Factors | Statistic::Departure);
        c.hold.is_zero() && c.smooth.is_zero() && c.above_baseline.is_none() && !looks_back
    };
    rule.trigger.hold.is_zero() && rule.trigger.conditions.iter().any(is_of_now)
}

impl CompiledRule {
    pub fn new(rule: Arc<Rule>, store: &mut SignalStore) -> Self {
        let mut probes = Vec::new();
        let mut probe_of = |signal, smooth| {
            let probe = Probe { view: store.subscribe(signal, &rule.across, &rule.within), smooth };
            probes.iter().position(|p| *p == probe).unwrap_or_else(|| {
                probes.push(probe);
                probes.len() - 1
            })
        };
        let mut probes_of = |conditions: &[Condition]| -> Vec<usize> {
            conditions.iter().map(|c| probe_of(c.signal, c.smooth)).collect()
        };
        let trigger = probes_of(&rule.trigger.conditions);
        let clear = probes_of(&rule.clear.conditions);
        let guard = match &rule.only_if {
            Some(guard) => guard.signals().map(|s| probe_of(s, Duration::ZERO)).collect(),
            None => Vec::new(),
        };
        let of_departure = rule.conditions().enumerate().find(|(_, c)| c.statistic == Statistic::Departure);
        let inputs = of_departure.map(|(i, condition)| {
            let load = trigger.iter().chain(&clear).copied().nth(i).unwrap_or(0);
            (condition.signal, DetectorInputs { load, ..DetectorInputs::default() })
        });
        // What is read from here on is optional.
        let required = trigger.iter().chain(&clear).chain(&guard).max().map_or(0, |last| last + 1);
        let detector_inputs = inputs.map(|(signal, inputs)| match signal == catalog::LOAD {
            true => inputs.with_optional(&mut |signal| probe_of(signal, Duration::ZERO)),
            false => inputs,
        });
        let reads_factors = rule.conditions().any(|c| c.statistic == Statistic::Factors);
        let conditions = rule.trigger.conditions.iter().zip(&trigger);
        for (_, probe) in
            conditions.chain(rule.clear.conditions.iter().zip(&clear)).filter(|(c, _)| c.statistic.sorts())
        {
            store.keep_in_order(probes[*probe].view);
        }
        let is_single = rule.trigger.conditions.len() == 1 && probes.len() == 1;
        let has_baseline = rule.trigger.conditions.iter().any(|c| c.above_baseline.is_some());
        let allows_glances = is_single && detector_inputs.is_none() && !reads_factors && !has_baseline;
        let (fingerprint, holds) = (rule.fingerprint(), Holds::of(&rule));
        let interval = if fires_at_once(&rule) { AT_ONCE_INTERVAL } else { EVALUATION_INTERVAL };
        Self {
            rule,
            fingerprint,
            holds,
            interval,
            probes,
            trigger,
            clear,
            guard,
            required,
            detector_inputs,
            reads_factors,
            allows_glances,
        }
    }

    /// The name of a probe's signal, for messages.
    pub fn signal_name(&self, probe: usize) -> &str {
        let conditions = self.rule.trigger.conditions.iter().zip(&self.trigger);
        let clears = self.rule.clear.conditions.iter().zip(&self.clear);
        let named = conditions.chain(clears).find(|(_, p)| **p == probe).map(|(c, _)| &*c.signal_name);
        let guard = || {
            let guard = self.rule.only_if.as_ref()?;
            guard.names().zip(&self.guard).find(|(_, p)| **p == probe).map(|(n, _)| n)
        };
        named.or_else(guard).unwrap_or("?")
    }
}
