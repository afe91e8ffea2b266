//! `metrics:` of a target: where its own page is, and the pages beside it with what their labels say of ranks.

use std::collections::BTreeMap;

#[cfg(test)]
use schemars::JsonSchema;
use serde::Deserialize;

use super::super::de::{Field, TextOr, did_you_mean};
use super::super::diagnostic::Findings;
use super::super::secret::{is_url, scheme_hint};
use super::super::tree::Place;
use super::Target;
use skewtrap_core::signal::user_metric::{RankLabels, RankOf};
use skewtrap_trace::rank::{Axis, Rank};

/// A page beside the server's own.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct PageText {
    /// Its address: `http://127.0.0.1:9400/metrics`.
    #[cfg_attr(test, schemars(extend("x-required" = true)))]
    url: Field<String>,
    /// What its labels say of ranks: `gpu: dp_rank` takes the number at the end of the label's value, a
    /// mapping names a rank for each value: `worker_id: { "http://w0:30000": { dp_rank: 0 } }`.
    ranks: Field<BTreeMap<String, Field<TextOr<BTreeMap<String, Field<RankText>>>>>>,
}

/// A rank by its places.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct RankText {
    /// The rank's place on an axis.
    dp_rank: Field<u16>,
    /// The rank's place on an axis.
    tp_rank: Field<u16>,
    /// The rank's place on an axis.
    pp_rank: Field<u16>,
    /// The rank's place on an axis.
    ep_rank: Field<u16>,
    /// The rank's place on an axis.
    attn_cp_rank: Field<u16>,
    /// The rank's place on an axis.
    moe_dp_rank: Field<u16>,
}

impl RankText {
    fn rank(&self) -> Rank {
        let place = |axis| match axis {
            Axis::Dp => &self.dp_rank,
            Axis::Tp => &self.tp_rank,
            Axis::Pp => &self.pp_rank,
            Axis::Ep => &self.ep_rank,
            Axis::AttnCp => &self.attn_cp_rank,
            Axis::MoeDp => &self.moe_dp_rank,
        };
        let given = Axis::ALL.into_iter().filter_map(|axis| Some((axis, *place(axis).get()?)));
        given.fold(Rank::NONE, |rank, (axis, index)| rank.with(axis, index))
    }
}

/// `metrics`, as it is written.
pub type MetricsText = TextOr<Vec<Field<TextOr<PageText>>>>;

/// A page beside the server's own, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetricsPage {
    /// Its address.
    pub url: String,
    /// What its labels say of ranks.
    pub ranks: RankLabels,
}

/// The address of the server's own page, if it is read, and the pages beside it.
pub fn metrics_of(
    text: &Field<MetricsText>,
    target: &Target,
    findings: &mut Findings<'_>,
) -> (Option<String>, Vec<MetricsPage>) {
    match text.placed() {
        None => (target.metrics.clone(), Vec::new()),
        Some((TextOr::Text(word), place)) => (own_page(word, place, target, findings), Vec::new()),
        Some((TextOr::More(entries), _)) => {
            let mut entries = entries.iter().filter_map(Field::placed);
            // The first is the server's own, unless it is written as a page beside it.
            let mut rest = Vec::new();
            let own = match entries.next() {
                Some((TextOr::Text(word), place)) => own_page(word, place, target, findings),
                Some((page @ TextOr::More(_), place)) => {
                    rest.push((page, place));
                    target.metrics.clone()
                }
                None => None,
            };
            rest.extend(entries);
            (own, rest.into_iter().filter_map(|(p, at)| further_page(p, at, findings)).collect())
        }
    }
}

fn own_page(word: &str, place: Place, target: &Target, findings: &mut Findings<'_>) -> Option<String> {
    match word {
        "true" => target.metrics.clone(),
        "false" => None,
        url if is_url(url) => Some(url.to_owned()),
        path if path.starts_with('/') => target.url.as_ref().map(|u| format!("{u}{path}")),
        _ => {
            findings.error(
                place,
                "`metrics` is `true`, `false`, a path, an address, or a list of pages",
                None,
            );
            None
        }
    }
}

fn further_page(page: &TextOr<PageText>, place: Place, findings: &mut Findings<'_>) -> Option<MetricsPage> {
    let (url, ranks) = match page {
        TextOr::Text(url) => (Some(url), RankLabels::default()),
        TextOr::More(text) => (text.url.get(), rank_labels(text, findings)),
    };
    let Some(url) = url.filter(|u| is_url(u)) else {
        let usual =
            "write `url: http://127.0.0.1:9400/metrics`; the server's own page comes first in the list";
        let hint = url.and_then(|url| scheme_hint(url)).unwrap_or_else(|| usual.to_owned());
        findings.error(place, "a further metrics page needs its address", Some(hint));
        return None;
    };
    Some(MetricsPage { url: url.clone(), ranks })
}

fn rank_labels(text: &PageText, findings: &mut Findings<'_>) -> RankLabels {
    let mut labels = RankLabels::default();
    for (name, (of, place)) in
        text.ranks.get().into_iter().flatten().filter_map(|(n, f)| Some((n, f.placed()?)))
    {
        let of = match of {
            TextOr::Text(word) => match Axis::of_label(word) {
                Some(axis) => RankOf::Number(axis),
                None => {
                    let known = Axis::ALL.map(Axis::label);
                    let message = format!("`{word}` is no axis of ranks");
                    findings.error(place, message, Some(did_you_mean(word, &known)));
                    continue;
                }
            },
            TextOr::More(values) => {
                let ranks = values.iter().filter_map(|(value, rank)| Some((value, rank.placed()?)));
                let mut named = BTreeMap::new();
                for (value, (rank, at)) in ranks {
                    if rank.rank().is_none() {
                        findings.error(
                            at,
                            format!("which rank is `{value}`?"),
                            Some("write `{ dp_rank: 0 }`".into()),
                        );
                    }
                    named.insert(value.as_str().into(), rank.rank());
                }
                RankOf::Values(named)
            }
        };
        labels.0.insert(name.as_str().into(), of);
    }
    labels
}
