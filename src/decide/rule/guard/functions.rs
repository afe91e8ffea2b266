//! What a guard may call: folds over a signal, and one rank of it.

use cel::objects::Key;
use cel::{ExecutionError, FunctionContext, Value};

use super::{ANY_RANK, words};

pub(super) type Fold = fn(&FunctionContext<'_, '_>, &Value) -> Result<f64, ExecutionError>;
pub(super) type Pick = fn(&FunctionContext<'_, '_>, &Value, Value) -> Result<f64, ExecutionError>;

/// The numbers of a signal; none at all is "no data", an error and not a false.
fn numbers(f: &FunctionContext<'_, '_>, v: &Value) -> Result<Vec<f64>, ExecutionError> {
    let Value::Map(m) = v else {
        return Err(f.error(format!("takes a signal, not {}", words::word_of(&v.type_of().to_string()))));
    };
    let numbers: Vec<f64> =
        m.map.values().filter_map(|v| if let Value::Float(x) = v { Some(*x) } else { None }).collect();
    if numbers.is_empty() { Err(f.error("the signal has no data")) } else { Ok(numbers) }
}

pub(super) fn mean(f: &FunctionContext<'_, '_>, v: &Value) -> Result<f64, ExecutionError> {
    numbers(f, v).map(|x| x.iter().sum::<f64>() / x.len() as f64)
}

pub(super) fn max(f: &FunctionContext<'_, '_>, v: &Value) -> Result<f64, ExecutionError> {
    numbers(f, v).map(|x| x.into_iter().fold(f64::NEG_INFINITY, f64::max))
}

pub(super) fn min(f: &FunctionContext<'_, '_>, v: &Value) -> Result<f64, ExecutionError> {
    numbers(f, v).map(|x| x.into_iter().fold(f64::INFINITY, f64::min))
}

pub(super) fn sum(f: &FunctionContext<'_, '_>, v: &Value) -> Result<f64, ExecutionError> {
    numbers(f, v).map(|x| x.iter().sum())
}

pub(super) fn ranks(f: &FunctionContext<'_, '_>, v: &Value) -> Result<f64, ExecutionError> {
    numbers(f, v).map(|x| x.len() as f64)
}

pub(super) fn value(f: &FunctionContext<'_, '_>, v: &Value, rank: Value) -> Result<f64, ExecutionError> {
    numbers(f, v)?;
    let Value::Map(m) = v else { return Err(f.error("no signal")) };
    let key = match &rank {
        Value::Float(x) => Key::Int(*x as i64),
        Value::Int(i) => Key::Int(*i),
        Value::String(s) => Key::from(s.to_string()),
        other => {
            return Err(f.error(format!(
                "a rank is a number or a text, not {}",
                words::word_of(&other.type_of().to_string())
            )));
        }
    };
    match m.map.get(&key).or_else(|| m.map.get(&Key::from(ANY_RANK))) {
        Some(Value::Float(x)) => Ok(*x),
        _ => {
            let there = m.map.len();
            Err(f.error(format!("there is no rank {key} among the {there} of the group")))
        }
    }
}

pub(super) fn share(f: &FunctionContext<'_, '_>, v: &Value, rank: Value) -> Result<f64, ExecutionError> {
    let (own, all) = (value(f, v, rank)?, sum(f, v)?);
    Ok(if all > 0.0 { own / all } else { 0.0 })
}
