//! The functions that a guard may call.

use std::sync::LazyLock;

use cel::objects::Key;
use cel::{Context, ExecutionError, FunctionContext, Value};

use super::error::type_name;

/// What every guard may call. Made once: CEL's own library has hundreds of functions.
pub(super) static LIBRARY: LazyLock<Context<'static, 'static>> = LazyLock::new(|| {
    let mut context = Context::default();
    let folds = [("mean", mean as Fold), ("max", max), ("min", min), ("sum", sum), ("ranks", ranks)];
    for (name, function) in folds {
        let added = context
            .add_function(&format!("{OURS}{name}"), move |f: &FunctionContext<'_, '_>, v: Value| {
                function(f, &v)
            });
        added.expect("the prefix keeps our names apart from CEL's");
    }
    for (name, function) in [("value", value as Pick), ("share", share)] {
        let added = context.add_function(
            &format!("{OURS}{name}"),
            move |f: &FunctionContext<'_, '_>, v: Value, rank: Value| function(f, &v, rank),
        );
        added.expect("the prefix keeps our names apart from CEL's");
    }
    context
});

/// Set before our functions' names inside CEL: its own library has a `value`.
pub(super) const OURS: &str = "rank_";

/// Only in made-up data: stands for every rank that has a name instead of a number.
pub(super) const ANY_RANK: &str = "*";

type Fold = fn(&FunctionContext<'_, '_>, &Value) -> Result<f64, ExecutionError>;
type Pick = fn(&FunctionContext<'_, '_>, &Value, Value) -> Result<f64, ExecutionError>;

/// The numbers of a signal; none at all is "no data", an error and not a false.
fn numbers(f: &FunctionContext<'_, '_>, v: &Value) -> Result<Vec<f64>, ExecutionError> {
    let Value::Map(m) = v else {
        return Err(f.error(format!("takes a signal, not {}", type_name(&v.type_of().to_string()))));
    };
    let numbers: Vec<f64> =
        m.map.values().filter_map(|v| if let Value::Float(x) = v { Some(*x) } else { None }).collect();
    if numbers.is_empty() { Err(f.error("the signal has no data")) } else { Ok(numbers) }
}

fn mean(f: &FunctionContext<'_, '_>, v: &Value) -> Result<f64, ExecutionError> {
    numbers(f, v).map(|x| x.iter().sum::<f64>() / x.len() as f64)
}

fn max(f: &FunctionContext<'_, '_>, v: &Value) -> Result<f64, ExecutionError> {
    numbers(f, v).map(|x| x.into_iter().fold(f64::NEG_INFINITY, f64::max))
}

fn min(f: &FunctionContext<'_, '_>, v: &Value) -> Result<f64, ExecutionError> {
    numbers(f, v).map(|x| x.into_iter().fold(f64::INFINITY, f64::min))
}

fn sum(f: &FunctionContext<'_, '_>, v: &Value) -> Result<f64, ExecutionError> {
    numbers(f, v).map(|x| x.iter().sum())
}

fn ranks(f: &FunctionContext<'_, '_>, v: &Value) -> Result<f64, ExecutionError> {
    numbers(f, v).map(|x| x.len() as f64)
}

fn value(f: &FunctionContext<'_, '_>, v: &Value, rank: Value) -> Result<f64, ExecutionError> {
    numbers(f, v)?;
    let Value::Map(m) = v else { return Err(f.error("no signal")) };
    let key = match &rank {
        Value::Float(x) => Key::Int(*x as i64),
        Value::Int(i) => Key::Int(*i),
        Value::String(s) => Key::from(s.to_string()),
        other => {
            return Err(f.error(format!(
                "a rank is a number or a text, not {}",
                type_name(&other.type_of().to_string())
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

fn share(f: &FunctionContext<'_, '_>, v: &Value, rank: Value) -> Result<f64, ExecutionError> {
    let (own, all) = (value(f, v, rank)?, sum(f, v)?);
    Ok(if all > 0.0 { own / all } else { 0.0 })
}
