//! YAML text as a tree in which every key and value knows its place.
//!
//! The parser reports one error and stops; people want all of them. So the text is first read
//! without a schema, duplicates and all, and `de` then checks the tree against the types, field
//! by field.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_yaml::{Location, Spanned};

mod words;

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
pub struct NotYaml {
    /// Where the parser gave up.
    pub place: Place,
    /// What is wrong there.
    pub message: String,
    /// What would be right.
    pub hint: Option<String>,
}

/// A configuration has at most this many values, aliases expanded; a bomb has more.
const MAX_NODES: usize = 100_000;

/// Reads `text`. Empty text is [`Value::Null`].
pub fn parse(text: &str) -> Result<Node, NotYaml> {
    let options = serde_yaml::options! {
        duplicate_keys: serde_yaml::DuplicateKeyPolicy::PassThrough,
        strict_booleans: true,
        // `.nan` where a number is wanted is told with all the rest.
        non_finite_float_policy: serde_yaml::options::NonFiniteFloatPolicy::PassThrough,
        with_snippet: false,
        budget: serde_yaml::budget! { max_nodes: MAX_NODES },
    };
    match serde_yaml::from_str_with_options::<Spanned<Bare>>(text, options) {
        Ok(spanned) => Ok(Source::new(text).node(spanned)),
        Err(_) if text.lines().all(|l| l.trim().is_empty() || l.trim_start().starts_with('#')) => {
            Ok(Node { place: Place { line: 1, column: 1, width: 1 }, value: Value::Null })
        }
        Err(e) => Err(words::of(&e, text)),
    }
}

fn place_of(l: &Location) -> Place {
    let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    Place { line: narrow(l.line()), column: narrow(l.column()), width: narrow(l.span().len()).max(1) }
}

/// The tree as the parser gives it: scalars typed, their text lost.
enum Bare {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    List(Vec<Spanned<Bare>>),
    Map(Vec<(Spanned<String>, Spanned<Bare>)>),
}

impl<'de> Deserialize<'de> for Bare {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(BareVisitor)
    }
}

struct BareVisitor;

impl<'de> Visitor<'de> for BareVisitor {
    type Value = Bare;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML value")
    }

    fn visit_unit<E>(self) -> Result<Bare, E> {
        Ok(Bare::Null)
    }

    fn visit_none<E>(self) -> Result<Bare, E> {
        Ok(Bare::Null)
    }

    fn visit_bool<E>(self, b: bool) -> Result<Bare, E> {
        Ok(Bare::Bool(b))
    }

    fn visit_i64<E>(self, n: i64) -> Result<Bare, E> {
        Ok(Bare::Number(n as f64))
    }

    fn visit_u64<E>(self, n: u64) -> Result<Bare, E> {
        Ok(Bare::Number(n as f64))
    }

    fn visit_f64<E>(self, n: f64) -> Result<Bare, E> {
        Ok(Bare::Number(n))
    }

    fn visit_str<E>(self, s: &str) -> Result<Bare, E> {
        Ok(Bare::Text(s.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Bare, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Bare::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Bare, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Bare::Map(entries))
    }
}

/// The text, to read a number's own spelling from.
struct Source<'a> {
    text: &'a str,
}

impl<'a> Source<'a> {
    const fn new(text: &'a str) -> Self {
        Self { text }
    }

    fn node(&self, bare: Spanned<Bare>) -> Node {
        let place = place_of(&bare.referenced);
        let value = match bare.value {
            Bare::Null => Value::Null,
            Bare::Bool(b) => Value::Bool(b),
            Bare::Number(n) => Value::Number(n, self.spelling(&bare.defined, n)),
            Bare::Text(s) => Value::Text(s),
            Bare::List(items) => Value::List(items.into_iter().map(|i| self.node(i)).collect()),
            Bare::Map(entries) => Value::Map(
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
