//! By which axes the ranks of a server are shown.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::signal::store::SeriesStatus;
use skewtrap_trace::labels::{LabelValue, Labels};
use skewtrap_trace::rank::Axis;

/// The axes of a server on which all its ranks have the same index. `/v1/loads` does not name them,
/// `/metrics` does; left out, what both say of one rank stands together.
#[derive(Debug, Default)]
pub(super) struct Axes(BTreeSet<Arc<str>>);

impl Axes {
    pub(super) fn of(server: &str, standing: &[SeriesStatus]) -> Self {
        let own = standing.iter().filter(|s| &*s.target == server);
        Self::among(own.flat_map(|s| &s.latest).map(|reading| &reading.of))
    }

    /// A data-parallel rank is named even where there is only one.
    fn among<'a>(ranks: impl Iterator<Item = &'a Labels>) -> Self {
        let mut seen: BTreeMap<&Arc<str>, BTreeSet<&LabelValue>> = BTreeMap::new();
        for (name, value) in ranks.flat_map(|rank| &rank.0) {
            seen.entry(name).or_default().insert(value);
        }
        let others = &Axis::ALL[1..];
        let is_axis = |name: &str| others.iter().any(|axis| axis.label() == name);
        let same = seen.into_iter().filter(|(name, values)| values.len() == 1 && is_axis(name));
        Self(same.map(|(name, _)| name.clone()).collect())
    }

    /// What tells this rank from the others.
    pub(super) fn telling(&self, mut rank: Labels) -> Labels {
        rank.0.retain(|name, _| !self.0.contains(name));
        rank
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skewtrap_trace::rank::Rank;

    fn told(ranks: &[Rank]) -> Vec<String> {
        let labels: Vec<Labels> = ranks.iter().map(|r| r.labels()).collect();
        let axes = Axes::among(labels.iter());
        let told: BTreeSet<String> = labels.into_iter().map(|l| axes.telling(l).to_string()).collect();
        told.into_iter().collect()
    }

    #[test]
    fn a_rank_that_two_sources_name_differently_is_one_rank() {
        let full = |dp| Rank::dp(dp).with(Axis::Tp, 0).with(Axis::Pp, 0).with(Axis::Ep, 0);
        assert_eq!(told(&[Rank::dp(0), Rank::dp(1), full(0), full(1)]), ["dp_rank=0", "dp_rank=1"]);
        assert_eq!(told(&[Rank::dp(0), full(0)]), ["dp_rank=0"]);
    }

    #[test]
    fn an_axis_that_tells_ranks_apart_stays() {
        let ranks = [Rank::dp(0).with(Axis::Tp, 0), Rank::dp(0).with(Axis::Tp, 1)];
        assert_eq!(told(&ranks), ["dp_rank=0 tp_rank=0", "dp_rank=0 tp_rank=1"]);
    }
}
