//! Keeps up what clients notice of the incidents that go on, so that a message tells how things are and not only how
//! they were when the rule fired.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::core::Core;
use super::incidents::{ActiveIncident, ImpactProbe};
use super::server::Server;
use crate::finding::{Finding, MemberValue};
use crate::incident::{BeforeAndNow, Impact};
use crate::rule::Engine;
use crate::signal::catalog;
use crate::signal::sample::{Signal, Source, TargetId};
use crate::signal::store::SignalStore;
use crate::signal::store::together::{Points, together};
use skewtrap_trace::labels::Labels;
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

/// Between two looks at an incident that goes on.
const EVERY: Duration = Duration::from_secs(5);
/// What was usual: so long up to the onset, less its error.
const BEFORE: Duration = Duration::from_secs(30);
/// What is now: so long up to now.
const NOW: Duration = Duration::from_secs(5);
/// A rank that has told nothing for so long is in no sum, and without it there is none.
const UNKNOWN: Duration = Duration::from_secs(20);
/// A member that has told nothing for so long is silent.
const SILENT: Duration = Duration::from_secs(10);
/// So many members are looked at, the blamed one first: as many as a message shows.
const MOST_MEMBERS: usize = 8;
/// Sources of the numbers, the first that has both spans.
const SOURCES: [Source; 3] = [Source::Loads, Source::Metrics, Source::Log];

impl Core {
    /// Looks again at the incidents that go on, those that are due.
    pub(super) fn follow_impact(&mut self, store: &SignalStore, now: Time) {
        let (servers, engine) = (&self.servers, &self.engine);
        for active in self.incidents.firing_now_mut() {
            let is_due = active.incident.impact.as_ref().is_none_or(|known| now.since(known.at) >= EVERY);
            if is_due && !is_clearing(engine, active, now) {
                look(store, servers, active, now);
            }
        }
    }

    /// Looks at one incident, whatever is due.
    pub(super) fn refresh_impact(&mut self, store: &SignalStore, id: &str, now: Time) {
        let Some(active) = self.incidents.get_mut(id) else { return };
        if active.incident.resolved_at.is_none() && !is_clearing(&self.engine, active, now) {
            look(store, &self.servers, active, now);
        }
    }
}

/// Whether it seems to be over: what clients notice from then on is not of it.
fn is_clearing(engine: &Engine, active: &ActiveIncident, now: Time) -> bool {
    let incident = &active.incident;
    let is_calming = incident.trouble.is_some_and(|trouble| engine.is_calming(&incident.target, trouble));
    is_calming || engine.is_clearing(&incident.rule, &active.group, now)
}

fn look(store: &SignalStore, servers: &[Server], active: &mut ActiveIncident, now: Time) {
    let incident = &mut active.incident;
    let Some(place) = servers.iter().position(|server| server.name == incident.target) else { return };
    // What clients notice of a window of ours is not the trouble's.
    let is_disturbed = servers[place].window.is_some() || servers[place].settling.is_some();
    let Ok(target) = u16::try_from(place).map(TargetId) else { return };
    let finding = &incident.finding;
    if is_disturbed || finding.measured.is_none() {
        return;
    }
    let error = Duration::from_secs_f64(finding.onset_error_s.clamp(0.0, 10.0));
    let spans =
        Spans { before: (finding.onset - error - BEFORE, finding.onset - error), now: (now - NOW, now) };
    let of = |impact_probes: &mut Option<ImpactProbe>, signals: &[Signal]| {
        let first = || signals.iter().find_map(|signal| noticed_first(store, target, *signal, spans));
        if impact_probes.is_none() {
            *impact_probes = first();
        }
        let of = (*impact_probes)?;
        level_now(store, target, &of, spans).map(|now| BeforeAndNow { before: of.before, now })
    };
    let [tokens, first_token, waiting] = &mut active.impact_probes;
    let impact = Impact {
        at: now,
        tokens_per_s: of(tokens, &[catalog::DECODE_TOKENS, catalog::GEN_THROUGHPUT]),
        first_token_s: of(first_token, &[catalog::TTFT]),
        waiting_reqs: of(waiting, &[catalog::QUEUE_REQS]),
        members: members_now(store, &incident.target, finding, now),
    };
    incident.impact = Some(impact);
}

/// The stretches of time that are compared.
#[derive(Clone, Copy)]
struct Spans {
    before: (Time, Time),
    now: (Time, Time),
}

/// The first source that has a number of a whole server in both spans.
fn noticed_first(store: &SignalStore, target: TargetId, signal: Signal, spans: Spans) -> Option<ImpactProbe> {
    SOURCES.iter().find_map(|&source| {
        let (ranks, points) = points_of(store, target, (signal, source), spans.before.0, spans.now.1);
        mean(&points, spans.now)?;
        Some(ImpactProbe { signal, source, ranks, before: mean(&points, spans.before)? })
    })
}

fn level_now(store: &SignalStore, target: TargetId, of: &ImpactProbe, spans: Spans) -> Option<f64> {
    // One that is silent for a moment still holds what it told last.
    let since = spans.now.1 - UNKNOWN;
    let (ranks, points) = points_of(store, target, (of.signal, of.source), since, spans.now.1);
    (ranks == of.ranks).then(|| mean(&points, spans.now))?
}

/// Those ranks of a server that told something of late: how many, and all of them together.
fn points_of(
    store: &SignalStore,
    target: TargetId,
    (signal, source): (Signal, Source),
    since: Time,
    now: Time,
) -> (usize, Points) {
    let mut ranks: BTreeMap<Rank, Points> = BTreeMap::new();
    for (rank, of, line) in store.lines_of(target, signal, since) {
        if of == source {
            ranks.insert(rank, line.collect());
        }
    }
    ranks.retain(|_, points| points.last().is_some_and(|last| !now.is_past(last.0, UNKNOWN)));
    (ranks.len(), together(ranks, catalog::entry(signal)))
}

fn mean(points: &Points, (from, to): (Time, Time)) -> Option<f64> {
    let within: Vec<f64> =
        points.iter().filter(|(at, _)| *at > from && *at <= to).map(|point| point.1).collect();
    (!within.is_empty()).then(|| within.iter().sum::<f64>() / within.len() as f64)
}

/// What each member shows now of the signal that the finding shows; of members that are several ranks, nothing.
fn members_now(store: &SignalStore, target: &Arc<str>, finding: &Finding, now: Time) -> Vec<MemberValue> {
    let measured = finding.measured.as_ref();
    let name = measured.map_or("", |m| m.members_signal.as_deref().unwrap_or(&m.signal));
    let Some(signal) = store.catalog().signal_named(name) else { return Vec::new() };
    let is_rank = |labels: &Labels| labels.get("target").is_none();
    if !finding.members.iter().all(|member| is_rank(&member.rank)) {
        return Vec::new();
    }
    let value_of = |member: &MemberValue| {
        let shown = store.nearest(&member.rank.clone().with_target(target), signal, now)?;
        Some(MemberValue {
            rank: member.rank.clone(),
            value: shown.value,
            stale: now.since(shown.at) >= SILENT,
        })
    };
    let (blamed, others): (Vec<_>, Vec<_>) = finding.members.iter().partition(|m| m.rank == finding.rank);
    blamed.into_iter().chain(others).take(MOST_MEMBERS).filter_map(value_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signal::catalog::Catalog;
    use crate::signal::fields::Fields;
    use crate::signal::store::Bounds;

    const TARGET: TargetId = TargetId(0);
    const ONSET: u32 = 60;

    fn at(s: u32) -> Time {
        Time::from_epoch_s(1_000.0 + f64::from(s))
    }

    fn spans(now: u32) -> Spans {
        Spans { before: (at(ONSET) - BEFORE, at(ONSET)), now: (at(now) - NOW, at(now)) }
    }

    /// Two ranks by two sources until `until`, the second of them by the log until `silent_from` only.
    fn store(until: u32, silent_from: u32) -> SignalStore {
        let mut store = SignalStore::new(Arc::new(Catalog::default()), Bounds::default());
        store.add_target("server".into(), None);
        for s in 0..=until {
            for rank in 0..2 {
                let waiting = if s > ONSET && rank == 1 { 50.0 } else { 1.0 };
                let mut fields = Fields::default();
                fields.set(catalog::QUEUE_REQS, waiting);
                fields.set(catalog::GEN_THROUGHPUT, 100.0);
                if rank == 0 || s < silent_from {
                    store.record(TARGET, Rank::dp(rank), Source::Log, &fields, at(s), at(s));
                }
            }
        }
        store
    }

    #[test]
    fn a_rank_that_falls_silent_is_held_for_a_while_and_then_no_sum_leaves_it_out() {
        let store = store(120, 66);
        let first =
            noticed_first(&store, TARGET, catalog::QUEUE_REQS, spans(65)).expect("both spans are told");
        assert_eq!((first.ranks, first.before), (2, 2.0));
        assert_eq!(level_now(&store, TARGET, &first, spans(65)), Some(51.0));
        assert_eq!(
            level_now(&store, TARGET, &first, spans(84)),
            Some(51.0),
            "it had fifty when it fell silent"
        );
        assert_eq!(level_now(&store, TARGET, &first, spans(90)), None, "nobody knows");
    }

    #[test]
    fn what_is_now_is_of_the_signal_and_source_of_what_was_before() {
        let mut store = store(70, 200);
        let first =
            noticed_first(&store, TARGET, catalog::GEN_THROUGHPUT, spans(65)).expect("both spans are told");
        assert_eq!((first.source, first.before), (Source::Log, 200.0));
        // A source that comes later, and would be asked first, says something else.
        for rank in 0..2 {
            let mut fields = Fields::default();
            fields.set(catalog::GEN_THROUGHPUT, 7.0);
            store.record(TARGET, Rank::dp(rank), Source::Loads, &fields, at(70), at(70));
        }
        assert_eq!(level_now(&store, TARGET, &first, spans(70)), Some(200.0));
    }
}
