//! What can be wrong with a guard, with the messages of the CEL library turned into plain words.

use cel::ExecutionError;
use cel::Value;

use super::{MAX_BYTES, OURS};

/// Why a guard cannot be used, or could not be evaluated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuardError {
    /// Longer than [`MAX_BYTES`].
    #[error("the guard has {0} bytes; at most {MAX_BYTES} are allowed")]
    TooLong(usize),
    /// Not CEL. Line and column count from 1, inside the expression.
    #[error("the guard is not valid CEL at line {line}, column {column}: {message}")]
    Syntax {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What the parser stumbled over, in a few words.
        message: String,
    },
    /// Neither a signal nor a local name.
    #[error("unknown signal `{name}`{}", suggestion(.near.as_deref()))]
    UnknownSignal {
        /// As written.
        name: String,
        /// The nearest known one.
        near: Option<String>,
    },
    /// Not a function of guards.
    #[error("unknown function `{name}`{}", near.as_deref().map_or_else(known_functions, |near| suggestion(Some(near))))]
    UnknownFunction {
        /// As written.
        name: String,
        /// The nearest known one.
        near: Option<String>,
    },
    /// CEL itself would ignore the superfluous ones in silence.
    #[error("`{name}` takes {wanted} argument(s), not {given}")]
    Arguments {
        /// The function.
        name: String,
        /// How many it takes.
        wanted: usize,
        /// How many there are.
        given: usize,
    },
    /// It ran and gave something else than true or false.
    #[error(
        "the guard must give true or false, but gives {0}; compare it with something, as in `max(load) > 8`"
    )]
    NotBool(String),
    /// It could not run.
    #[error("the guard cannot be evaluated: {0}")]
    Runtime(String),
}

fn known_functions() -> String {
    let names: Vec<&str> = super::FUNCTIONS.iter().map(|(name, _)| *name).collect();
    format!("; there are {}", names.join(", "))
}

fn suggestion(near: Option<&str>) -> String {
    near.map_or_else(String::new, |n| format!("; did you mean `{n}`?"))
}

/// The parser's message in plain words.
pub(super) fn syntax_message(message: &str) -> String {
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

/// The interpreter's message in plain words.
pub(super) fn runtime_message(e: &ExecutionError) -> String {
    let kind = |v: &Value| type_name(&v.type_of().to_string());
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
            format!("it has {} where {} is wanted", type_name(got), type_name(want))
        }
        ExecutionError::NoSuchOverload(lacking) => {
            let operator = lacking.function().trim_matches('_').trim_start_matches(OURS);
            let kinds: Vec<&str> = lacking.argument_types().iter().map(|t| type_name(t)).collect();
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

/// A type of the language as the documentation calls it.
pub(super) fn type_name(kind: &str) -> &'static str {
    match kind {
        "map" => SIGNAL,
        "double" | "float" | "int" | "uint" => "a number",
        "string" => "a text",
        "bool" => "true or false",
        "list" => "a list",
        _ => "something else",
    }
}
