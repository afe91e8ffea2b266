//! What to write in place of a value of the wrong shape, where that is simple to say.

use crate::config::tree::Value;
use skewtrap_core::rule::Statistic;

/// How what was written becomes the kind that is expected.
pub(super) fn of_kind(wanted: &str, found: &Value) -> Option<String> {
    match (wanted, found) {
        ("a list", Value::Text(text)) if !text.contains('\n') => {
            Some(format!("a list of one is written [{text}]"))
        }
        ("a list", Value::Map(entries)) => {
            let (first, _) = entries.first()?;
            Some(format!("each entry of a list begins with a dash: `- {}: ...`", first.name))
        }
        _ => None,
    }
}

/// How the value of `key` becomes the mapping that is expected there, one with these keys.
pub(super) fn of_mapping(key: &str, keys: &[&str], found: &Value) -> Option<String> {
    let Value::Text(text) = found else { return None };
    if keys.contains(&"max_over_mean") {
        return Some(match comparison(text) {
            Some((statistic, bound)) => format!("write `{key}: {{ {statistic}: {bound} }}`"),
            None => format!("write for example `{key}: {{ max_over_mean: 1.5, for: 3s }}`"),
        });
    }
    if keys.contains(&"url") && !key.is_empty() && text.contains("://") {
        // The variable and not the address, which may be a key.
        return Some(format!("write `{key}: {{ url: {{ env: {}_URL }} }}`", key.to_uppercase()));
    }
    None
}

/// `max_over_mean > 2`: the statistic and its bound.
fn comparison(text: &str) -> Option<(&str, f64)> {
    let (statistic, bound) = text.split_once(['>', '<'])?;
    let statistic = statistic.trim();
    let is_known = Statistic::ALL.iter().any(|s| s.name() == statistic);
    Some((statistic, bound.trim().parse().ok()?)).filter(|_| is_known)
}

/// What to write for a word that is no choice of `key`.
pub(super) fn of_choice(key: &str, word: &str) -> Option<String> {
    (key == "log" && word.contains('/'))
        .then(|| "`log` is the agent's log format; the server's log goes under `targets[].logs`".to_owned())
}
