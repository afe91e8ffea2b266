//! The signal around an incident's onset, from the evidence in its bundle: what the report's chart
//! shows. A bundle without evidence has a report without a chart.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::act::bundle::numbered;
use skewtrap_core::finding::{Finding, Statistic};
use skewtrap_core::incident::Incident;
use skewtrap_trace::labels::{LabelValue, Labels};
use skewtrap_trace::report::{History, Series};
use skewtrap_trace::time::Time;

/// The incident of a bundle; `None` when there is none, or it is of another version.
pub fn incident_of(dir: &Path) -> Option<Incident> {
    serde_json::from_slice(&std::fs::read(dir.join("incident.json")).ok()?).ok()
}

/// One line of `evidence.jsonl`.
#[derive(Deserialize)]
struct Evidence {
    t: Time,
    signal: String,
    rank: Labels,
    #[serde(default)]
    source: String,
    value: f64,
}

/// How much before the onset and after the firing is shown.
const BEFORE: Duration = Duration::from_secs(60);
const AFTER: Duration = Duration::from_secs(60);
/// The longest line of evidence that is read, in bytes.
const MAX_LINE: usize = 64 << 10;

/// The signal of the rule around the onset, from a bundle's evidence; of a further capture, around
/// the time at which it had got worse. Broken lines are passed over.
pub fn history_of(dir: &Path, window: usize, incident: &Incident) -> Option<History> {
    let file = File::open(dir.join(numbered("evidence.jsonl", window))).ok()?;
    let finding = &incident.finding;
    let signal = shown_signal(finding)?;
    let worse = incident.worse_of(window).map(|w| w.at);
    let (begin, end) = worse.map_or((finding.onset, incident.fired_at), |at| (at, at));
    let (from, until) = (begin - BEFORE, end + AFTER);
    let mut series: BTreeMap<(Labels, String), Vec<(Time, f64)>> = BTreeMap::new();
    for line in BufReader::new(file).split(b'\n').map_while(Result::ok).filter(|l| l.len() <= MAX_LINE) {
        let Ok(e) = serde_json::from_slice::<Evidence>(&line) else { continue };
        if e.signal == signal && e.t >= from && e.t <= until && e.value.is_finite() {
            series.entry((e.rank, e.source)).or_default().push((e.t, e.value));
        }
    }
    let mut history = History {
        signal: signal.to_string(),
        onset: finding.onset,
        fired_at: incident.fired_at,
        worse_at: worse,
        window: incident.capture.captured().map(|c| {
            let open = Duration::try_from_secs_f64(c.open_s).unwrap_or_default();
            (c.started_at, c.started_at + open)
        }),
        shown_by: finding.shown_by.as_ref().filter(|_| worse.is_none()).map(|s| {
            let sample = format!("{signal} {:.3} at {}, by {}", s.value, s.at, s.source.word());
            s.line.as_ref().map_or_else(|| sample.clone(), |line| format!("{sample}: {line}"))
        }),
        series: Vec::new(),
    };
    for (rank, mut points) in one_of_each(series) {
        points.sort_by_key(|p| p.0);
        let shared: Vec<bool> =
            rank.0.iter().filter_map(|(k, v)| Some(finding.rank.0.get(k)? == v)).collect();
        let blamed = !shared.is_empty() && shared.iter().all(|same| *same);
        history.series.push(Series { label: label_of(&rank), blamed, points });
    }
    (!history.series.is_empty()).then_some(history)
}

/// What is drawn of a finding: what was measured, or of a factor, which no source gives, the load. Without a
/// measurement there is nothing to draw.
fn shown_signal(finding: &Finding) -> Option<&str> {
    let measured = finding.measured.as_ref()?;
    Some(match measured.statistic {
        Statistic::Factors => "load",
        _ => &measured.signal,
    })
}

/// One series a rank, the one with the most points: several sources give the same values, each with
/// labels of its own. Ranks are called by the labels on which they differ.
fn one_of_each(series: BTreeMap<(Labels, String), Vec<(Time, f64)>>) -> BTreeMap<Labels, Vec<(Time, f64)>> {
    let mut values: BTreeMap<Arc<str>, BTreeSet<LabelValue>> = BTreeMap::new();
    for (name, value) in series.keys().flat_map(|(rank, _)| &rank.0) {
        values.entry(name.clone()).or_default().insert(value.clone());
    }
    let tells = |name: &str| values.get(name).is_some_and(|seen| seen.len() > 1);
    let mut ranks: BTreeMap<Labels, Vec<(Time, f64)>> = BTreeMap::new();
    for ((mut rank, _), points) in series {
        if rank.0.keys().any(|name| tells(name)) {
            rank.0.retain(|name, _| tells(name));
        }
        let longest = ranks.entry(rank).or_default();
        if points.len() > longest.len() {
            *longest = points;
        }
    }
    ranks
}

/// `DP2` of `{"dp_rank": 2}`.
fn label_of(rank: &Labels) -> String {
    let words = rank.0.iter().map(|(name, value)| match (name.strip_suffix("_rank"), value) {
        (Some(axis), LabelValue::Index(i)) => format!("{}{i}", axis.to_ascii_uppercase()),
        _ => format!("{name} {value}"),
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, u32)]) -> Labels {
        Labels(pairs.iter().map(|(k, v)| ((*k).into(), LabelValue::Index(*v))).collect())
    }

    #[test]
    fn a_rank_that_two_sources_tell_of_is_one_line() {
        let point = |n: i64| (Time::from_nanos(n), n as f64);
        let series = BTreeMap::from([
            ((labels(&[("dp_rank", 0)]), "loads".into()), vec![point(1)]),
            ((labels(&[("dp_rank", 0), ("tp_rank", 0)]), "metrics".into()), vec![point(1), point(2)]),
            ((labels(&[("dp_rank", 1), ("tp_rank", 0)]), "metrics".into()), vec![point(3)]),
        ]);
        let one = one_of_each(series);
        assert_eq!(
            one.iter().map(|(r, p)| (label_of(r), p.len())).collect::<Vec<_>>(),
            [("DP0".into(), 2), ("DP1".into(), 1)]
        );
        let alone = BTreeMap::from([((labels(&[("dp_rank", 0)]), String::new()), vec![point(1)])]);
        assert_eq!(one_of_each(alone).keys().map(label_of).collect::<Vec<_>>(), ["DP0"]);
    }

    #[test]
    fn of_a_factor_the_load_is_drawn_and_of_a_request_by_hand_nothing() {
        let mut finding = skewtrap_core::message::sample(Time::from_epoch_s(1.0)).finding;
        assert_eq!(shown_signal(&finding), Some("load"));
        let measured = finding.measured.as_mut().expect("the sample was measured");
        (measured.statistic, measured.signal) = (Statistic::Factors, "share".into());
        assert_eq!(shown_signal(&finding), Some("load"));
        measured_as_kv(&mut finding);
        assert_eq!(shown_signal(&finding), Some("kv_usage"));
        finding.measured = None;
        assert_eq!(shown_signal(&finding), None);
    }

    fn measured_as_kv(finding: &mut Finding) {
        let measured = finding.measured.as_mut().expect("the sample was measured");
        (measured.statistic, measured.signal) = (Statistic::MaxOverMean, "kv_usage".into());
    }
}
