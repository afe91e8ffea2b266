//! The answer of a Prometheus-compatible server to an instant query, as samples.

use std::sync::Arc;

use serde::Deserialize;
use std::collections::BTreeMap;

use crate::printable::{LIMIT, printable};
use crate::signal::sample::{Sample, Signal};
use skewtrap_trace::labels::{LabelValue, Labels};
use skewtrap_trace::rank::{Axis, Rank};
use skewtrap_trace::time::Time;

#[derive(Deserialize)]
struct Answer {
    status: String,
    #[serde(default)]
    error: String,
    data: Option<Data>,
}

#[derive(Deserialize)]
#[serde(tag = "resultType", content = "result", rename_all = "lowercase")]
enum Data {
    Vector(Vec<Series>),
    Scalar((f64, String)),
    Matrix(serde::de::IgnoredAny),
    String(serde::de::IgnoredAny),
}

#[derive(Deserialize)]
struct Series {
    metric: BTreeMap<String, String>,
    value: (f64, String),
}

/// The samples of an answer. Labels named like a rank distinguish ranks (`dp_rank`, and vLLM's
/// `engine`); the others stay labels. Values that are no numbers are left out.
///
/// # Errors
/// The server's own words, or what is wrong with its answer.
pub fn samples_of(body: &[u8], signal: Signal) -> Result<Vec<Sample>, String> {
    let answer: Answer =
        serde_json::from_slice(body).map_err(|e| format!("its answer is not understood: {e}"))?;
    if answer.status != "success" {
        return Err(printable(&answer.error, LIMIT).into_owned());
    }
    match answer.data {
        Some(Data::Vector(series)) => Ok(series.iter().filter_map(|s| sample_of(s, signal)).collect()),
        Some(Data::Scalar(value)) => {
            Ok(sample_of(&Series { metric: BTreeMap::new(), value }, signal).into_iter().collect())
        }
        Some(Data::Matrix(_)) => {
            Err("it gives a range of values; ask for one, without `[5m]` at its end".into())
        }
        Some(Data::String(_)) => Err("it gives a text, not a number".into()),
        None => Err("its answer has no data".into()),
    }
}

fn sample_of(series: &Series, signal: Signal) -> Option<Sample> {
    let value = series.value.1.parse::<f64>().ok().filter(|v| v.is_finite())?;
    let (mut rank, mut extra) = (Rank::NONE, Labels::default());
    for (name, text) in series.metric.iter().filter(|(name, _)| *name != "__name__") {
        let axis = match name.as_str() {
            "engine" => Some(Axis::Dp),
            "moe_ep_rank" => Some(Axis::Ep),
            other => Axis::of_label(other),
        };
        match (axis, text.parse()) {
            (Some(axis), Ok(index)) => rank = rank.with(axis, index),
            _ => drop(extra.0.insert(name.as_str().into(), LabelValue::Text(printable(text, LIMIT).into()))),
        }
    }
    let extra = (!extra.0.is_empty()).then(|| Arc::new(extra));
    Some(Sample { rank, signal, value, at: Time::from_epoch_s(series.value.0), extra })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(body: &str) -> Result<String, String> {
        let samples = samples_of(body.as_bytes(), Signal(0))?;
        let one = |s: &Sample| {
            let extra = s.extra.as_ref().map_or(String::new(), |e| format!(" {e}"));
            format!("{:.1} {}{extra} {}", s.at.epoch_s(), s.rank, s.value)
        };
        Ok(samples.iter().map(one).collect::<Vec<_>>().join("; "))
    }

    #[test]
    fn a_vector_gives_a_sample_a_series_and_a_failure_gives_the_servers_words() {
        let vector = r#"{"status":"success","data":{"resultType":"vector","result":[
            {"metric":{"__name__":"x","dp_rank":"2","pod":"a"},"value":[1795492086.5,"3.5"]},
            {"metric":{"engine":"1"},"value":[1795492086.5,"NaN"]},
            {"metric":{"engine":"1"},"value":[1795492086.5,"4"]}]}}"#;
        assert_eq!(shown(vector), Ok("1795492086.5 DP2 pod=a 3.5; 1795492086.5 DP1 4".into()));
        let scalar = r#"{"status":"success","data":{"resultType":"scalar","result":[1.0,"7"]}}"#;
        assert_eq!(shown(scalar), Ok("1.0 engine 7".into()));
        let failed = r#"{"status":"error","errorType":"bad_data","error":"parse error at char 3"}"#;
        assert_eq!(shown(failed), Err("parse error at char 3".into()));
        let matrix = r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#;
        assert!(shown(matrix).is_err_and(|e| e.starts_with("it gives a range")));
        assert!(shown("<html>").is_err_and(|e| e.starts_with("its answer is not understood")));
    }
}
