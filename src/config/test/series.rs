//! Series in promtool's little language.

use super::{Series, SeriesText};
use crate::config::de::Field;
use crate::config::diagnostic::Findings;
use crate::config::tree::Place;
use skewtrap_trace::rank::{Axis, Rank};

/// The series of one entry: one, or one per rank.
pub(super) fn series_of(text: &SeriesText, place: Place, findings: &mut Findings<'_>) -> Vec<Series> {
    let Some((signal, at)) = text.signal.placed() else {
        findings.error(place, "the series has no `signal`", None);
        return Vec::new();
    };
    let axes = [
        (Axis::Dp, &text.dp_rank),
        (Axis::Tp, &text.tp_rank),
        (Axis::Pp, &text.pp_rank),
        (Axis::Ep, &text.ep_rank),
    ];
    let rank = axes.iter().fold(Rank::NONE, |rank, (axis, index)| match index.get() {
        Some(i) => rank.with(*axis, *i),
        None => rank,
    });
    let target = text.target.or("server".into());
    let one = |rank: Rank, text_of: &Field<String>, findings: &mut Findings<'_>| {
        let (values, at_values) = text_of.placed()?;
        let values = match values_of(values) {
            Ok(values) if values.is_empty() => {
                let hint = "write numbers, as in `20x60`; `_x60` is a minute of silence";
                findings.error(at_values, "nothing arrives by this series", Some(hint.into()));
                return None;
            }
            Ok(values) => values,
            Err(item) => {
                let hint =
                    "`20` once, `20x9` ten times, `0+2x9` climbing, `_` missing, `_x5` five times missing";
                findings.error(at_values, format!("`{item}` is no value"), Some(hint.into()));
                return None;
            }
        };
        let (signal, target, role) = (signal.clone(), target.clone(), text.role.get().copied());
        Some(Series { signal, place: at, rank, target, role, values })
    };
    match (text.values.is_absent(), text.ranks.get()) {
        (false, None) => one(rank, &text.values, findings).into_iter().collect(),
        (true, Some(ranks)) => {
            let numbered = ranks.iter().enumerate();
            numbered.filter_map(|(i, v)| one(rank.with(Axis::Dp, i as u16), v, findings)).collect()
        }
        _ => {
            findings.error(place, "a series has either `values` or `ranks`", None);
            Vec::new()
        }
    }
}

/// Reads promtool's notation: `a`, `axn`, `a+bxn`, `a-bxn`, `_`, `_xn`; `n` counts the values after
/// the first, for `_xn` all of them.
pub fn values_of(text: &str) -> Result<Vec<Option<f64>>, String> {
    let mut values = Vec::new();
    for item in text.split_whitespace() {
        let wrong = || item.to_owned();
        let (start, times) = match item.rsplit_once('x') {
            Some((start, times)) => (start, times.parse::<usize>().map_err(|_| wrong())?),
            None => (item, 0),
        };
        if times > 100_000 {
            return Err(wrong());
        }
        if start == "_" {
            values.extend(std::iter::repeat_n(None, times.max(usize::from(!item.contains('x')))));
            continue;
        }
        let (first, step) = first_and_step(start).ok_or_else(wrong)?;
        values.extend((0..=times).map(|i| Some(first + step * i as f64)));
    }
    Ok(values)
}

fn first_and_step(text: &str) -> Option<(f64, f64)> {
    if let Ok(value) = text.parse::<f64>() {
        return value.is_finite().then_some((value, 0.0));
    }
    let sign = text.char_indices().skip(1).find(|(_, c)| *c == '+' || *c == '-')?.0;
    let (first, step) = text.split_at(sign);
    let (first, step) = (first.parse::<f64>().ok()?, step.parse::<f64>().ok()?);
    (first.is_finite() && step.is_finite()).then_some((first, step))
}
