//! Which sample of the blamed rank a message shows.

use std::time::Duration;

use crate::finding::{Finding, Statistic};
use crate::rule::Change;
use crate::signal::catalog;
use crate::signal::sample::SampleEvidence;
use crate::signal::store::SignalStore;

/// At how many instants after the onset a sample is looked for that shows what is claimed.
const LOOKED_FOR: u32 = 20;

/// The blamed member's sample nearest to the onset; where that does not show yet what is claimed, the
/// first one that does.
pub(super) fn shown_by(store: &SignalStore, change: &Change, finding: &Finding) -> Option<SampleEvidence> {
    let measured = finding.measured.as_ref()?;
    let signal = match measured.statistic {
        Statistic::Factors => catalog::LOAD,
        _ => store.catalog().signal_named(&measured.signal)?,
    };
    let mut labels = change.group.clone();
    labels.0.extend(finding.rank.0.clone());
    if let Some(target) = &change.target {
        labels = labels.with_target(target);
    }
    // In steps from the onset on: the course is followed to the time when it fired.
    let step = (change.at.since(finding.onset) / LOOKED_FOR).max(Duration::from_millis(500));
    let times = (0..=LOOKED_FOR).map(|i| finding.onset + step * i).take_while(|at| *at <= change.at + step);
    let mut near = times.filter_map(|at| store.nearest(&labels, signal, at));
    let first = near.next()?;
    if finding.is_shown_by(&first) {
        return Some(first);
    }
    near.find(|shown| finding.is_shown_by(shown)).or(Some(first))
}
