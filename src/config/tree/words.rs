//! What the parser says of text that is not YAML, in words for whom wrote it.

use serde_yaml::Error;

use super::{MAX_NODES, NotYaml, Place, place_of};

/// What the parser's messages have in them, what is wrong then, and what would be right.
const WORDS: &[(&str, &str, &str)] = &[
    (
        "mapping values are not allowed",
        "a `: ` that cannot stand here",
        "is the line indented as those above it? A text with `: ` in it wants quotes",
    ),
    (
        "did not find expected '-' indicator",
        "this line is indented otherwise than the list that it is in",
        "give it the indentation of the list's other items",
    ),
    (
        "did not find expected key",
        "this line is indented otherwise than the mapping that it is in",
        "give it the indentation of the keys above; a text that begins with a quote ends with it",
    ),
    ("',' or ']'", "the list lacks a comma or its `]`", "write it as `[a, b]`"),
    ("',' or '}'", "the mapping lacks a comma or its `}`", "write it as `{ a: 1, b: 2 }`"),
    ("tab", "a tab", "YAML is indented with spaces"),
    ("unclosed quote", "a quote that is not closed", "a text that begins with a quote ends with it"),
    (
        "quoted scalar",
        "a text in quotes with more behind it, or a `\\` that means nothing",
        "put all of it between the quotes, and `'` around a text with `\\`",
    ),
    (
        "illegal placement of ':'",
        "a `:` inside a list or mapping that is still open",
        "close it with `]` or `}`",
    ),
    ("unexpected character", "a character that cannot begin a value", "put the text in quotes"),
    ("misplaced bracket", "a bracket that closes nothing", "take it out"),
    ("start any token", "a character that cannot begin a value", "put the text in quotes"),
];

/// What is wrong with `text`, in its place.
pub(super) fn of(e: &Error, text: &str) -> NotYaml {
    let place = e.location().map_or_else(Place::default, |l| place_of(&l));
    let own = |place, message: &str, hint: &str| NotYaml {
        place,
        message: message.into(),
        hint: Some(hint.into()),
    };
    match innermost(e) {
        Error::MultipleDocuments { .. } => {
            let hint = "a file is one document: take out the `---`, or make two files of it";
            own(separator(text, place), "a second document begins here", hint)
        }
        Error::UnknownAnchor { .. } => {
            own(place, "an alias `*name` without its `&name`", "write the value itself")
        }
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. } => {
            let message = format!("more than {MAX_NODES} values, aliases written out");
            own(place, &message, "no configuration is so large; what repeats by `*name` counts each time")
        }
        other => {
            let said = other.to_string();
            match WORDS.iter().find(|(part, ..)| said.contains(part)) {
                Some((_, message, hint)) => own(place, message, hint),
                None => NotYaml { place, message: format!("not YAML: {}", bare(&said)), hint: None },
            }
        }
    }
}

/// The error itself, below what says by which aliases the parser came there.
fn innermost(e: &Error) -> &Error {
    match e {
        Error::WithSnippet { error, .. } | Error::AliasError { error, .. } => innermost(error),
        other => other,
    }
}

/// The parser's message without the place that it repeats.
fn bare(said: &str) -> &str {
    said.split(" at line ").next().unwrap_or(said).trim_start_matches("error: ").trim()
}

/// The line `---` above `place`, which is where the parser noticed.
fn separator(text: &str, place: Place) -> Place {
    let lines = text.lines().take(place.line as usize).enumerate();
    let last = lines.filter(|(_, l)| l.starts_with("---")).last();
    last.map_or(place, |(i, _)| Place { line: i as u32 + 1, column: 1, width: 3 })
}
