//! What the language's library says of a guard, in words for whom writes one.

use cel::ExecutionError;
use cel::Value;

use super::OURS;

/// What the parser stumbled over.
pub(super) fn of_syntax(message: &str) -> String {
    let message = message.trim_start_matches("Syntax error: ");
    let message = message.split(", expecting").next().unwrap_or(message);
    let message = message.split(" expecting").next().unwrap_or(message);
    let quoted = |s: &str| s.split('\'').nth(1).map(str::to_owned);
    if message.contains("<EOF>") {
        return "it ends where something must follow".into();
    }
    if let Some(text) = message.strip_prefix("token recognition error at: ").and_then(quoted) {
        return format!("`{text}` cannot stand here");
    }
    if let Some((wanted, found)) = message.strip_prefix("missing ").and_then(|m| m.split_once(" at ")) {
        let (wanted, found) = (quoted(wanted), quoted(found));
        if let (Some(wanted), Some(found)) = (wanted, found) {
            return format!("`{wanted}` is missing before `{found}`");
        }
    }
    match quoted(message) {
        Some(text) => format!("`{}` does not fit here", text.chars().take(40).collect::<String>()),
        None => message.to_owned(),
    }
}

/// Why it could not be evaluated.
pub(super) fn of_run(e: &ExecutionError) -> String {
    let kind = |v: &Value| word_of(&v.type_of().to_string());
    match e {
        ExecutionError::FunctionError { function, message } => {
            format!("`{}`: {message}", function.trim_start_matches(OURS))
        }
        ExecutionError::NoSuchKey(key) => format!("there is no rank {key} in the group"),
        ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => "it divides by zero".into(),
        ExecutionError::ValuesNotComparable(a, b) => {
            format!("{} cannot be compared with {}", kind(a), kind(b))
        }
        ExecutionError::UnsupportedBinaryOperator(operator, a, b) => {
            format!("`{operator}` cannot take {} and {}", kind(a), kind(b))
        }
        ExecutionError::UnexpectedType { got, want } => {
            format!("it has {} where {} is wanted", word_of(got), word_of(want))
        }
        ExecutionError::NoSuchOverload(lacking) => {
            let operator = lacking.function().trim_matches('_').trim_start_matches(OURS);
            let kinds: Vec<&str> = lacking.argument_types().iter().map(|t| word_of(t)).collect();
            let advice = match kinds.contains(&SIGNAL) {
                true => "; of a signal, take `mean(load)`, `max(load)` or `value(load, 2)`",
                false => "",
            };
            format!("`{operator}` cannot take {}{advice}", kinds.join(" and "))
        }
        other => other.to_string().replace(OURS, ""),
    }
}

/// A signal is a map from rank to number.
const SIGNAL: &str = "a signal";

/// The language's types in the words of the manual.
pub(super) fn word_of(kind: &str) -> &'static str {
    match kind {
        "map" => SIGNAL,
        "double" | "float" | "int" | "uint" => "a number",
        "string" => "a text",
        "bool" => "true or false",
        "list" => "a list",
        _ => "something else",
    }
}
