//! From a tree to types, collecting every problem instead of stopping at the first.
//!
//! A serde `Deserializer` over [`Node`]s. It knows the fields of the struct being read, so it
//! reports unknown and duplicate keys itself, with a suggestion, and goes on. What cannot be read
//! at all is reported where it is and becomes [`Field::Wrong`] in the field that holds it; the
//! fields beside it are still read. The same types carry the JSON schema.

use std::cell::RefCell;
use std::fmt;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};

use super::diagnostic::Findings;
use super::tree::{Key, Node, Place, Value};
use skewtrap_core::rule::guard::nearest;

mod access;
mod field;

use access::{Choice, Entries, Items};
use field::{FIELD, Placed, TEXT_OR};
pub use field::{Field, TextOr};

/// Reads `T` from `node`; `None` when nothing could be made of it. All problems are in `findings`.
pub fn read<'n, T: Deserialize<'n>>(node: &'n Node, findings: &mut Findings<'_>) -> Option<T> {
    let sink = RefCell::new(Vec::new());
    let read = T::deserialize(Reader { node, sink: &sink });
    for report in sink.into_inner() {
        findings.error(report.place, report.message, report.hint);
    }
    read.ok()
}

struct Report {
    place: Place,
    message: String,
    hint: Option<String>,
}

type Sink = RefCell<Vec<Report>>;

/// An error on its way up; once reported it only makes values `Wrong`.
#[derive(Debug)]
pub enum Failure {
    /// What is wrong, not yet placed.
    Message(String),
    /// Something of the wrong type; this was wanted.
    Expected(String),
    /// In the findings already.
    Reported,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message(message) => f.write_str(message),
            Self::Expected(wanted) => write!(f, "expected {wanted}"),
            Self::Reported => f.write_str("reported"),
        }
    }
}

impl std::error::Error for Failure {}

impl de::Error for Failure {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::Message(message.to_string())
    }

    fn missing_field(field: &'static str) -> Self {
        Self::custom(format!("`{field}` is missing"))
    }

    fn invalid_type(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::Expected(in_plain_words(&expected.to_string()))
    }

    fn invalid_value(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::Expected(in_plain_words(&expected.to_string()))
    }
}

/// Rust's names of types mean nothing to whom writes YAML.
fn in_plain_words(expected: &str) -> String {
    match expected {
        "f64" | "f32" => "a number".into(),
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more".into(),
        "a string" => "a text".into(),
        "a boolean" => "`true` or `false`".into(),
        "a sequence" => "a list".into(),
        "a map" => "a mapping".into(),
        other => other.into(),
    }
}

#[derive(Clone, Copy)]
struct Reader<'n, 's> {
    node: &'n Node,
    sink: &'s Sink,
}

impl<'n> Reader<'n, '_> {
    fn report(&self, place: Place, message: String, hint: Option<String>) {
        self.sink.borrow_mut().push(Report { place, message, hint });
    }

    /// Passes a result on; a failure that nobody has placed yet is placed here.
    fn placed<T>(&self, result: Result<T, Failure>) -> Result<T, Failure> {
        result.map_err(|failure| {
            let found = || self.node.value.kind();
            match failure {
                Failure::Message(message) => self.report(self.node.place, message, None),
                Failure::Expected(wanted) => {
                    self.report(self.node.place, format!("expected {wanted}, found {}", found()), None);
                }
                Failure::Reported => {}
            }
            Failure::Reported
        })
    }

    fn entries(&self, wanted: &str) -> Result<&'n [(Key, Node)], Failure> {
        match &self.node.value {
            Value::Map(entries) => Ok(entries),
            Value::Null => Ok(&[]),
            other => {
                self.report(self.node.place, format!("expected {wanted}, found {}", other.kind()), None);
                Err(Failure::Reported)
            }
        }
    }

    /// The entries without those that are repeated or, where `known` says so, unknown; both reported.
    fn checked(&self, entries: &'n [(Key, Node)], known: Option<&[&str]>) -> Vec<&'n (Key, Node)> {
        let mut kept: Vec<&(Key, Node)> = Vec::with_capacity(entries.len());
        for entry in entries {
            let (key, _) = entry;
            if let Some((first, _)) = kept.iter().find(|(k, _)| k.name == key.name) {
                let message = format!("`{}` is given twice", key.name);
                self.report(
                    key.place,
                    message,
                    Some(format!("it was first given on line {}", first.place.line)),
                );
            } else if known.is_some_and(|k| !k.contains(&key.name.as_str())) {
                let hint = did_you_mean(&key.name, known.unwrap_or_default());
                self.report(key.place, format!("unknown key `{}`", key.name), Some(hint));
            } else {
                kept.push(entry);
            }
        }
        kept
    }
}

/// What to write instead of `name`.
pub fn did_you_mean(name: &str, known: &[&str]) -> String {
    match nearest(name, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("known here: {}", known.join(", ")),
    }
}

impl<'de> Deserializer<'de> for Reader<'de, '_> {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.placed(match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(b) => visitor.visit_bool(*b),
            Value::Number(n, _) if !n.is_finite() => Err(Failure::Expected("a finite number".into())),
            Value::Number(n, _) if n.fract() == 0.0 && (0.0..9e15).contains(n) => {
                visitor.visit_u64(*n as u64)
            }
            Value::Number(n, _) => visitor.visit_f64(*n),
            Value::Text(s) => visitor.visit_borrowed_str(s),
            Value::List(items) => visitor.visit_seq(Items { items: items.iter(), reader: self }),
            Value::Map(entries) => visitor.visit_map(Entries {
                left: self.checked(entries, None).into_iter(),
                value: None,
                reader: self,
            }),
        })
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match &self.node.value {
            Value::Number(_, spelling) => self.placed(visitor.visit_borrowed_str(spelling)),
            Value::Bool(b) => self.placed(visitor.visit_str(if *b { "true" } else { "false" })),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        v: V,
    ) -> Result<V::Value, Failure> {
        if name == FIELD {
            return v.visit_seq(Placed { reader: self, next: 0 });
        }
        if name == TEXT_OR && matches!(self.node.value, Value::Text(_) | Value::Number(..) | Value::Bool(_)) {
            return self.deserialize_str(v);
        }
        self.placed(v.visit_newtype_struct(self))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        let left = self.checked(self.entries("a mapping")?, None).into_iter();
        self.placed(visitor.visit_map(Entries { left, value: None, reader: self }))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        let wanted = format!("a mapping with {}", listed(fields));
        let left = self.checked(self.entries(&wanted)?, Some(fields)).into_iter();
        self.placed(visitor.visit_map(Entries { left, value: None, reader: self }))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        let (place, variant, content) = match &self.node.value {
            Value::Map(entries) if entries.len() == 1 => {
                (entries[0].0.place, entries[0].0.name.as_str(), Some(&entries[0].1))
            }
            Value::Map(entries) if entries.len() > 1 => {
                let message =
                    format!("exactly one of {} is wanted here, not {}", listed(variants), entries.len());
                self.report(entries[1].0.place, message, None);
                return Err(Failure::Reported);
            }
            Value::Text(text) => (self.node.place, text.as_str(), None),
            other => {
                let message = format!("expected one of {}, found {}", listed(variants), other.kind());
                self.report(self.node.place, message, None);
                return Err(Failure::Reported);
            }
        };
        if !variants.contains(&variant) {
            self.report(place, format!("unknown choice `{variant}`"), Some(did_you_mean(variant, variants)));
            return Err(Failure::Reported);
        }
        self.placed(visitor.visit_enum(Choice { variant, content, reader: self }))
    }

    forward_to_deserialize_any! {

        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct
        seq tuple tuple_struct identifier ignored_any
    }
}

fn listed(names: &[&str]) -> String {
    names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
