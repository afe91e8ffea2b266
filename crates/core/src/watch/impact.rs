//! Keeps up what clients notice of the incidents that go on, so that a message tells how things are and not only how
//! they were when the rule fired.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::core::Core;
use crate::finding::{Finding, MemberValue};
use crate::incident::{BeforeAndNow, Impact, Incident};
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
/// A member that has told nothing for so long is silent.
const SILENT: Duration = Duration::from_secs(10);
/// So many members are looked at, the blamed one first: as many as a message shows.
const MOST_MEMBERS: usize = 8;
/// Sources of the numbers, the first that has both spans.
const SOURCES: [Source; 3] = [Source::Loads, Source::Metrics, Source::Log];

impl Core {
    /// Looks again at the incidents that go on, those that are due.
    pub(super) fn follow_impact(&mut self, store: &SignalStore, now: Time) {
        let servers = &self.servers;
        for active in self.incidents.firing_now_mut() {
            let incident = &mut active.incident;
            let is_due = incident.impact.as_ref().is_none_or(|known| now.since(known.at) >= EVERY);
            if is_due && incident.finding.measured.is_some() {
                let place = servers.iter().position(|server| server.name == incident.target);
                look(store, place, incident, now);
            }
        }
    }

    /// Looks at one incident, whatever is due.
    pub(super) fn refresh_impact(&mut self, store: &SignalStore, id: &str, now: Time) {
        let servers = &self.servers;
        let Some(active) = self.incidents.get_mut(id) else { return };
        let place = servers.iter().position(|server| server.name == active.incident.target);
        if active.incident.finding.measured.is_some() && active.incident.resolved_at.is_none() {
            look(store, place, &mut active.incident, now);
        }
    }
}

fn look(store: &SignalStore, place: Option<usize>, incident: &mut Incident, now: Time) {
    let Some(target) = place.and_then(|place| u16::try_from(place).ok()).map(TargetId) else { return };
    let finding = &incident.finding;
    let error = Duration::from_secs_f64(finding.onset_error_s.clamp(0.0, 10.0));
    let spans =
        Spans { before: (finding.onset - error - BEFORE, finding.onset - error), now: (now - NOW, now) };
    let known = incident.impact.as_ref();
    // What was before is forgotten after minutes: it stays as it was first seen.
    let of = |signals: &[Signal], known: Option<BeforeAndNow>| {
        let seen = || signals.iter().find_map(|signal| before_and_now(store, target, *signal, spans));
        match known {
            Some(BeforeAndNow { before, .. }) => {
                let now = signals.iter().find_map(|signal| level_now(store, target, *signal, spans));
                now.map(|now| BeforeAndNow { before, now })
            }
            None => seen(),
        }
    };
    let impact = Impact {
        at: now,
        tokens_per_s: of(
            &[catalog::DECODE_TOKENS, catalog::GEN_THROUGHPUT],
            known.and_then(|known| known.tokens_per_s),
        ),
        first_token_s: of(&[catalog::TTFT], known.and_then(|known| known.first_token_s)),
        waiting_reqs: of(&[catalog::QUEUE_REQS], known.and_then(|known| known.waiting_reqs)),
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

/// A number of a whole server in both spans, by one source.
fn before_and_now(
    store: &SignalStore,
    target: TargetId,
    signal: Signal,
    spans: Spans,
) -> Option<BeforeAndNow> {
    SOURCES.iter().find_map(|source| {
        let points = points_of(store, target, signal, *source, spans.before.0);
        let (before, now) = (mean(&points, spans.before)?, mean(&points, spans.now)?);
        Some(BeforeAndNow { before, now })
    })
}

fn level_now(store: &SignalStore, target: TargetId, signal: Signal, spans: Spans) -> Option<f64> {
    let of = |source: &Source| mean(&points_of(store, target, signal, *source, spans.now.0), spans.now);
    SOURCES.iter().find_map(of)
}

/// All ranks of a server together.
fn points_of(store: &SignalStore, target: TargetId, signal: Signal, source: Source, since: Time) -> Points {
    let mut ranks: BTreeMap<Rank, Points> = BTreeMap::new();
    for (rank, of, line) in store.lines_of(target, signal, since) {
        if of == source {
            ranks.insert(rank, line.collect());
        }
    }
    ranks.retain(|_, points| !points.is_empty());
    together(ranks, catalog::entry(signal))
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
