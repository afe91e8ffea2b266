//! What a change says beyond its state: since when, and by which numbers.

use crate::finding::Finding;
use crate::rule::change::Change;
use crate::rule::course;
use crate::rule::group::{Group, Running};
use crate::rule::statistic::Statistic;
use crate::signal::store::SignalStore;

/// A firing's onset and evidence, from what the store remembers.
pub(super) fn refined(mut change: Change, running: &Running, group: &Group, store: &SignalStore) -> Change {
    let (now, since) = (change.at, change.since);
    let Some(finding) = &mut change.finding else { return change };
    let conditions = &running.rule.trigger.conditions;
    let condition = conditions.iter().find(|c| c.statistic.name() == &*finding.statistic);
    let Some(condition) = condition else { return change };
    if condition.statistic != Statistic::Departure {
        let signal = condition.signal;
        let found =
            course::onset_of(store, &group.labels, signal, &finding.rank, finding.side, (group.settled, now));
        match found.filter(|o| o.at <= since) {
            Some(onset) => (finding.onset, finding.onset_error_s) = (onset.at, onset.error_s),
            // At the latest when the trigger began to hold; how much sooner, the samples do not tell.
            None => {
                let from = course::looked_back_to(group.settled, now);
                finding.onset_error_s = since.signed_s_since(from).max(1.0);
            }
        }
    }
    finding.evidence = evidence_of(finding);
    change
}

/// The numbers in a sentence: `dp_rank=2 61, the others 20 19 21`.
fn evidence_of(finding: &Finding) -> Option<String> {
    let blamed = finding.members.iter().find(|m| m.rank == finding.rank)?;
    let mut text = format!("{} of {}: {}, its peers", finding.signal, finding.rank, short(blamed.value));
    for m in finding.members.iter().filter(|m| m.rank != finding.rank).take(16) {
        text.push(' ');
        text.push_str(&short(m.value));
    }
    Some(text)
}

fn short(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value}") } else { format!("{value:.3}") }
}
