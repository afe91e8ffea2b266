//! Which known name an unknown one was probably meant to be.

/// The nearest of `known` to `name`, if it is near at all: one edit away where the name is short, a third of
/// its letters where it is long, or longer by its end. Two edits make any two short words alike (`foo` and
/// `log`).
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let allowed = match name.chars().count() {
        0..=4 => 1,
        letters => letters / 3,
    };
    let known: Vec<&str> = known.into_iter().collect();
    // A word that was cut short is nearer than its distance says.
    if let Some(longer) = known.iter().find(|k| name.len() >= 3 && k.starts_with(name)) {
        return Some((*longer).to_owned());
    }
    known
        .into_iter()
        .map(|k| (strsim::damerau_levenshtein(name, k), k))
        .filter(|(distance, k)| *distance <= allowed && *distance < k.chars().count())
        .min()
        .map(|(_, k)| k.to_owned())
}

/// The message that `name` is unknown, with the names that exist; `None` where it is known.
pub fn unknown(kind: &str, name: &str, known: &[&str]) -> Option<String> {
    if known.contains(&name) {
        return None;
    }
    Some(match nearest(name, known.iter().copied()) {
        Some(meant) => format!("no {kind} is called `{name}`; did you mean `{meant}`?"),
        None if known.is_empty() => format!("no {kind} is called `{name}`; there is none now"),
        None => format!("no {kind} is called `{name}`; there are {}", known.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use super::{nearest, unknown};

    #[test]
    fn a_name_that_is_unknown_is_answered_with_the_one_that_may_be_meant() {
        let known = ["dp-load-skew", "slow-rank"];
        assert_eq!(unknown("rule", "slow-rank", &known), None);
        let near = unknown("rule", "dp-laod-skew", &known).expect("it is unknown");
        assert_eq!(near, "no rule is called `dp-laod-skew`; did you mean `dp-load-skew`?");
        let far = unknown("rule", "x", &known).expect("it is unknown");
        assert_eq!(far, "no rule is called `x`; there are dp-load-skew, slow-rank");
        let none = unknown("target", "x", &[]).expect("it is unknown");
        assert_eq!(none, "no target is called `x`; there is none now");
    }

    #[test]
    fn a_short_name_is_near_by_one_edit_and_a_long_one_by_a_third_of_its_letters() {
        let known = ["log", "load", "role", "severity", "queue_reqs"];
        for (name, meant) in [
            ("laod", Some("load")),
            ("lo", Some("log")),
            ("severty", Some("severity")),
            ("queu_reqs", Some("queue_reqs")),
            ("queue", Some("queue_reqs")),
            ("foo", None),
            ("zone", None),
            ("colour", None),
        ] {
            assert_eq!(nearest(name, known).as_deref(), meant, "{name}");
        }
    }
}
