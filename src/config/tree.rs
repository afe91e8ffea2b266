//! YAML text as a tree in which every key and value has its place.
//!
//! The YAML parser stops at its first error, and people want all of them. So the text is first read
//! without a schema, duplicate keys included; `de` then checks the tree against the types, field by
//! field. Only a syntax error comes from the parser, and [`PARSER_MESSAGES`] rewords it for whoever
//! wrote the file.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_yaml::{Error, Location, Spanned};

/// Where something is in its file. Lines and columns count from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Line.
    pub line: u32,
    /// Column, in characters.
    pub column: u32,
    /// How many characters are worth underlining; at least one.
    pub width: u32,
}

/// A value and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Where it begins.
    pub place: Place,
    /// What it is.
    pub value: Value,
}

/// A YAML value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// A plain scalar that reads as a truth value.
    Bool(bool),
    /// A plain scalar that reads as a number, with its text: `1.10` stays that where a text is wanted.
    Number(f64, String),
    /// Any other scalar.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order of the file, duplicate keys included.
    Map(Vec<(Key, Node)>),
}

/// A key and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    /// Where it begins.
    pub place: Place,
    /// The key as text.
    pub name: String,
}

impl Value {
    /// What it is, for messages: `a list`.
    pub fn kind(&self) -> String {
        match self {
            Self::Null => "nothing".into(),
            Self::Bool(b) => format!("`{b}`"),
            Self::Number(_, text) => format!("the number {text}"),
            Self::Text(text) => format!("the text \"{}\"", shortened(text)),
            Self::List(_) => "a list".into(),
            Self::Map(_) => "a mapping".into(),
        }
    }
}

fn shortened(text: &str) -> String {
    let line = text.lines().next().unwrap_or("");
    if line.chars().count() <= 40 && line.len() == text.len() {
        line.to_owned()
    } else {
        format!("{}...", line.chars().take(37).collect::<String>())
    }
}

/// Text that is not YAML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// Where the parser stopped.
    pub place: Place,
    /// What is wrong.
    pub message: String,
    /// How to correct it.
    pub hint: Option<String>,
}

/// The limit of values in a file, aliases expanded. It stops files that expand without bound.
const MAX_NODES: usize = 100_000;

/// Reads `text`. Empty text is [`Value::Null`].
pub fn parse(text: &str) -> Result<Node, SyntaxError> {
    let options = serde_yaml::options! {
        duplicate_keys: serde_yaml::DuplicateKeyPolicy::PassThrough,
        strict_booleans: true,
        // `.nan` is reported by `de`, together with the other problems.
        non_finite_float_policy: serde_yaml::options::NonFiniteFloatPolicy::PassThrough,
        with_snippet: false,
        budget: serde_yaml::budget! { max_nodes: MAX_NODES },
    };
    match serde_yaml::from_str_with_options::<Spanned<RawValue>>(text, options) {
        Ok(spanned) => Ok(Source::new(text).node(spanned)),
        Err(_) if text.lines().all(|l| l.trim().is_empty() || l.trim_start().starts_with('#')) => {
            Ok(Node { place: Place { line: 1, column: 1, width: 1 }, value: Value::Null })
        }
        Err(e) => Err(not_yaml(&e, text)),
    }
}

fn place_of(l: &Location) -> Place {
    let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    Place { line: narrow(l.line()), column: narrow(l.column()), width: narrow(l.span().len()).max(1) }
}

/// The tree as the parser returns it: scalars are typed and their text is lost.
enum RawValue {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    List(Vec<Spanned<RawValue>>),
    Map(Vec<(Spanned<String>, Spanned<RawValue>)>),
}

impl<'de> Deserialize<'de> for RawValue {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = RawValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML value")
    }

    fn visit_unit<E>(self) -> Result<RawValue, E> {
        Ok(RawValue::Null)
    }

    fn visit_none<E>(self) -> Result<RawValue, E> {
        Ok(RawValue::Null)
    }

    fn visit_bool<E>(self, b: bool) -> Result<RawValue, E> {
        Ok(RawValue::Bool(b))
    }

    fn visit_i64<E>(self, n: i64) -> Result<RawValue, E> {
        Ok(RawValue::Number(n as f64))
    }

    fn visit_u64<E>(self, n: u64) -> Result<RawValue, E> {
        Ok(RawValue::Number(n as f64))
    }

    fn visit_f64<E>(self, n: f64) -> Result<RawValue, E> {
        Ok(RawValue::Number(n))
    }

    fn visit_str<E>(self, s: &str) -> Result<RawValue, E> {
        Ok(RawValue::Text(s.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<RawValue, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(RawValue::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawValue, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(RawValue::Map(entries))
    }
}

/// The text of the file, from which the spelling of a number is taken.
struct Source<'a> {
    text: &'a str,
}

impl<'a> Source<'a> {
    const fn new(text: &'a str) -> Self {
        Self { text }
    }

    fn node(&self, bare: Spanned<RawValue>) -> Node {
        let place = place_of(&bare.referenced);
        let value = match bare.value {
            RawValue::Null => Value::Null,
            RawValue::Bool(b) => Value::Bool(b),
            RawValue::Number(n) => Value::Number(n, self.spelling(&bare.defined, n)),
            RawValue::Text(s) => Value::Text(s),
            RawValue::List(items) => Value::List(items.into_iter().map(|i| self.node(i)).collect()),
            RawValue::Map(entries) => Value::Map(
                entries
                    .into_iter()
                    .map(|(k, v)| (Key { place: place_of(&k.referenced), name: k.value }, self.node(v)))
                    .collect(),
            ),
        };
        Node { place, value }
    }

    fn spelling(&self, at: &Location, n: f64) -> String {
        let span = at.span();
        let slice = span.byte_offset().zip(span.byte_len()).and_then(|(offset, len)| {
            let start = usize::try_from(offset).ok()?;
            self.text.get(start..start + usize::try_from(len).ok()?)
        });
        slice.map_or_else(|| n.to_string(), |s| s.trim().to_owned())
    }
}

/// A part of a parser message, what it means for the author of the file, and how to correct it.
const PARSER_MESSAGES: &[(&str, &str, &str)] = &[
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

/// Rewords an error of the parser.
fn not_yaml(e: &Error, text: &str) -> SyntaxError {
    let place = e.location().map_or_else(Place::default, |l| place_of(&l));
    let message_text = innermost(e).to_string();
    if let Some(error) = indentation(text, place, &message_text) {
        return error;
    }
    let own = |place, message: &str, hint: &str| SyntaxError {
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
            let message_text = other.to_string();
            match PARSER_MESSAGES.iter().find(|(part, ..)| message_text.contains(part)) {
                Some((_, message, hint)) => own(place, message, hint),
                None => SyntaxError {
                    place,
                    message: format!("not YAML: {}", without_place(&message_text)),
                    hint: None,
                },
            }
        }
    }
}

/// The error itself, without the wrappers that name the aliases on the way to it.
fn innermost(e: &Error) -> &Error {
    match e {
        Error::WithSnippet { error, .. } | Error::AliasError { error, .. } => innermost(error),
        other => other,
    }
}

/// The message of the parser without the place, which we report ourselves.
fn without_place(message_text: &str) -> &str {
    message_text.split(" at line ").next().unwrap_or(message_text).trim_start_matches("error: ").trim()
}

/// What is wrong with a line's beginning. The parser stops behind a tab, and where an indentation is odd
/// it tells of the list or the mapping that it expected to go on.
fn indentation(text: &str, place: Place, message: &str) -> Option<SyntaxError> {
    let is_of_lines = ["mapping values are not", "did not find expected", "tab", "start any token"];
    if !is_of_lines.iter().any(|part| message.contains(part)) {
        return None;
    }
    let lines: Vec<&str> = text.lines().collect();
    let near = (place.line as usize).saturating_sub(1).min(lines.len());
    let begins_with_tab = |i: &usize| {
        let line = lines[*i];
        line[..line.len() - line.trim_start().len()].contains('\t') && !line.trim().is_empty()
    };
    if let Some(tabbed) = (near..lines.len().min(near + 2)).find(begins_with_tab) {
        let column = lines[tabbed].find('\t')? as u32 + 1;
        return Some(SyntaxError {
            place: Place { line: tabbed as u32 + 1, column, width: 1 },
            message: "a tab".into(),
            hint: Some("YAML is indented with spaces".into()),
        });
    }
    // A key within two columns of the key above it, which the line was meant to stand below.
    let (line, above) = (
        lines.get(near)?,
        near.checked_sub(1).and_then(|i| lines[..=i].iter().rev().find(|l| !l.trim().is_empty()))?,
    );
    let column_of = |line: &str| line.len() - line.trim_start_matches([' ', '-']).len();
    let key_of = |line: &str| {
        let (key, _) = line.trim_start_matches([' ', '-']).split_once(':')?;
        let is_key = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        is_key.then(|| key.to_owned())
    };
    let (key, key_above) = (key_of(line)?, key_of(above)?);
    let (column, wanted) = (column_of(line), column_of(above));
    let is_item = line.trim_start().starts_with('-');
    (!is_item && column != wanted && column.abs_diff(wanted) <= 2).then(|| SyntaxError {
        place: Place { line: near as u32 + 1, column: column as u32 + 1, width: key.len() as u32 },
        message: format!("`{key}` is indented by {column} spaces, and the key above it by {wanted}"),
        hint: Some(format!("align with `{key_above}`")),
    })
}

/// The line `---` above `place`; the parser notices a second document only after it.
fn separator(text: &str, place: Place) -> Place {
    let lines = text.lines().take(place.line as usize).enumerate();
    let last = lines.filter(|(_, l)| l.starts_with("---")).last();
    last.map_or(place, |(i, _)| Place { line: i as u32 + 1, column: 1, width: 3 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(node: &Node, index: usize) -> &(Key, Node) {
        match &node.value {
            Value::Map(entries) => &entries[index],
            other => panic!("not a mapping: {other:?}"),
        }
    }

    #[test]
    fn keys_and_values_know_their_places_and_numbers_their_spelling() {
        let tree = parse("a: 1.10\nb:\n  - x\n  - {c: yes, d: true}\n").expect("YAML");
        let (key, value) = entry(&tree, 0);
        assert_eq!((key.place, key.name.as_str()), (Place { line: 1, column: 1, width: 1 }, "a"));
        assert_eq!(value.value, Value::Number(1.1, "1.10".into()));
        assert_eq!(value.place, Place { line: 1, column: 4, width: 4 });
        let Value::List(items) = &entry(&tree, 1).1.value else { panic!("not a list") };
        assert_eq!(entry(&items[1], 0).1.value, Value::Text("yes".into()), "`yes` is a text, as in YAML 1.2");
        assert_eq!(entry(&items[1], 1).1.value, Value::Bool(true));
        assert_eq!(entry(&items[1], 1).1.place, Place { line: 4, column: 17, width: 4 });
    }

    #[test]
    fn duplicate_keys_are_kept_for_the_checker_to_report() {
        let tree = parse("a: 1\na: 2\n").expect("YAML");
        assert_eq!(entry(&tree, 1).0.place, Place { line: 2, column: 1, width: 1 });
    }

    #[test]
    fn text_that_is_not_yaml_says_where() {
        let error = parse("rules:\n  - name: a\n   - b\n").expect_err("not YAML");
        assert_eq!(error.place.line, 3, "{error:?}");
        assert_eq!(error.message, "this line is indented otherwise than the list that it is in");
        assert!(parse("").is_ok() && parse("# nothing\n").is_ok());
    }

    #[test]
    fn what_is_no_yaml_is_told_without_the_parsers_own_words() {
        for (text, line, wanted) in [
            ("a: 1\n---\nb: 2\n", 2, "a second document begins here"),
            ("a: b: c\n", 1, "a `: ` that cannot stand here"),
            ("a: [b, c\nx: 1\n", 2, "a `:` inside a list or mapping that is still open"),
            ("a: {b: 1\nx: 1\n", 2, "the mapping lacks a comma or its `}`"),
            ("a:\n\t- b\n", 2, "a tab"),
            ("a: \"b\n", 1, "a quote that is not closed"),
            ("a: \"b\" c\n", 1, "a text in quotes with more behind it"),
            ("a: *b\n", 1, "an alias `*name` without its `&name`"),
            ("a: @b\n", 1, "a character that cannot begin a value"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.message.starts_with(wanted), "{text:?}: {error:?}");
            assert!(error.place.line == line && error.hint.is_some(), "{text:?}: {error:?}");
        }
    }

    #[test]
    fn a_line_that_is_indented_a_little_otherwise_is_told_what_to_align_with() {
        for (spaces, line) in [(3, 4), (5, 4), (2, 4)] {
            let text =
                format!("rules:\n  - name: r\n    signal: load\n{}trigger: {{}}\n", " ".repeat(spaces));
            let error = parse(&text).expect_err("not YAML");
            assert_eq!((error.place.line, error.place.column as usize), (line, spaces + 1), "{error:?}");
            assert_eq!(error.hint.as_deref(), Some("align with `signal`"), "{spaces}: {error:?}");
        }
        let error = parse("rules:\n  - name: r\n    signal: load\n\ttrigger: {}\n").expect_err("not YAML");
        assert_eq!((error.place, &*error.message), (Place { line: 4, column: 1, width: 1 }, "a tab"));
    }

    #[test]
    fn a_bomb_of_aliases_is_refused() {
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x]\n");
        for i in 1..12 {
            let refs = vec![format!("*a{}", i - 1); 9].join(",");
            bomb.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
        }
        let error = parse(&bomb).expect_err("a bomb");
        assert!(error.message.starts_with("more than 100000 values"), "{error:?}");
    }
}
