//! A serde `Deserializer` over a [`Node`] that collects every problem instead of stopping at the first.
//!
//! It knows the fields of the struct that is being read, so it reports unknown and duplicate keys
//! itself, with a suggestion, and continues. A value that cannot be read is reported at its place and
//! becomes [`Field::Wrong`]; the fields beside it are still read. The same types carry the JSON schema.

use std::cell::RefCell;
use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess,
    Visitor,
};
use serde::{Deserialize, forward_to_deserialize_any};

use super::diagnostic::Findings;
use super::tree::{Key, Node, Place, Value};
use skewtrap_core::suggest::nearest;

mod field;
mod hint;

use field::{FIELD, Placed, TEXT_OR};
pub use field::{Field, TextOr};

/// Reads `T` from `node`; `None` when it has the wrong shape. All problems are added to `findings`.
pub fn read<'n, T: Deserialize<'n>>(node: &'n Node, findings: &mut Findings<'_>) -> Option<T> {
    read_among(node, &[], findings)
}

/// The same for a file of which some mappings are known: a key that stands in another one is told where it belongs.
pub fn read_among<'n, T: Deserialize<'n>>(
    node: &'n Node,
    mappings: &[(&str, &[&str])],
    findings: &mut Findings<'_>,
) -> Option<T> {
    let sink = RefCell::new(Vec::new());
    let read = T::deserialize(Reader { node, key: "", sink: &sink });
    for mut report in sink.into_inner() {
        if let Some(Unknown { mapping, key, known }) = &report.unknown {
            findings.note_unknown_key(*mapping, key);
            // A key of its own mapping that is written nearly so is the better guess.
            if nearest(key, known.iter().copied()).is_none() {
                report.hint = place_among(key, mappings).or(report.hint);
            }
        }
        match report.hides_line {
            true => findings.error_hiding_line(report.place, report.message, report.hint),
            false => findings.error(report.place, report.message, report.hint),
        }
    }
    read.ok()
}

/// Where a key belongs that is unknown where it stands.
fn place_among(key: &str, mappings: &[(&str, &[&str])]) -> Option<String> {
    let having = mappings.iter().filter(|(_, keys)| keys.contains(&key)).map(|(place, _)| *place);
    let places = having.collect::<Vec<_>>().join(" or ");
    (!places.is_empty()).then(|| format!("`{key}` belongs {places}"))
}

/// The keys of the mapping that `T` is read from.
pub fn keys_of<'n, T: Deserialize<'n>>() -> &'static [&'static str] {
    match T::deserialize(Keys) {
        Err(KeysOf(keys)) => keys,
        Ok(_) => &[],
    }
}

/// Reads nothing, and tells by its error which keys a struct has.
struct Keys;

#[derive(Debug)]
struct KeysOf(&'static [&'static str]);

impl fmt::Display for KeysOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("reads nothing")
    }
}

impl std::error::Error for KeysOf {}

impl de::Error for KeysOf {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self(&[])
    }
}

impl<'de> Deserializer<'de> for Keys {
    type Error = KeysOf;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, KeysOf> {
        Err(KeysOf(&[]))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, KeysOf> {
        Err(KeysOf(fields))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

struct Report {
    place: Place,
    message: String,
    hint: Option<String>,
    unknown: Option<Unknown>,
    /// Whether the line may hold a secret.
    hides_line: bool,
}

/// A key that its mapping does not know.
struct Unknown {
    /// Where the mapping begins.
    mapping: Place,
    key: String,
    known: Vec<&'static str>,
}

type Sink = RefCell<Vec<Report>>;

/// An error that is passed up through serde. Once reported, it only makes the field around it `Wrong`.
#[derive(Debug)]
pub enum Failure {
    /// What is wrong; not yet reported.
    Message(String),
    /// A value of the wrong type; this was expected. Not yet reported.
    Expected(String),
    /// Already reported.
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

/// Replaces the names of Rust types, which mean nothing to somebody who writes YAML.
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
    /// The key whose value it is, or that its list is of.
    key: &'n str,
    sink: &'s Sink,
}

impl<'n> Reader<'n, '_> {
    fn report(&self, place: Place, message: String, hint: Option<String>) {
        self.sink.borrow_mut().push(Report { place, message, hint, unknown: None, hides_line: false });
    }

    /// Reports a failure that was not reported yet, at the place of this node.
    fn placed<T>(&self, result: Result<T, Failure>) -> Result<T, Failure> {
        result.map_err(|failure| {
            let found = || self.node.value.kind();
            match failure {
                Failure::Message(message) => self.report(self.node.place, message, None),
                Failure::Expected(wanted) => {
                    let hint = hint::of_kind(&wanted, &self.node.value);
                    self.report(self.node.place, format!("expected {wanted}, found {}", found()), hint);
                }
                Failure::Reported => {}
            }
            Failure::Reported
        })
    }

    /// The entries of a mapping that has such keys; any, where none are named.
    fn entries(&self, wanted: &str, keys: &[&str]) -> Result<&'n [(Key, Node)], Failure> {
        match &self.node.value {
            Value::Map(entries) => Ok(entries),
            Value::Null => Ok(&[]),
            other => {
                // The address of a receiver may be its key.
                let hides_line = matches!(other, Value::Text(text) if text.contains("://"));
                let found = if hides_line { "an address".into() } else { other.kind() };
                let hint = hint::of_mapping(self.key, keys, other);
                let message = format!("expected {wanted}, found {found}");
                let place = self.node.place;
                self.sink.borrow_mut().push(Report { place, message, hint, unknown: None, hides_line });
                Err(Failure::Reported)
            }
        }
    }

    /// The entries without repeated keys and, given `known`, without unknown ones; both are reported.
    fn checked(
        &self,
        entries: &'n [(Key, Node)],
        known: Option<&'static [&'static str]>,
    ) -> Vec<&'n (Key, Node)> {
        let mut unique: Vec<&(Key, Node)> = Vec::with_capacity(entries.len());
        for entry in entries {
            let (key, _) = entry;
            if let Some((first, _)) = unique.iter().find(|(k, _)| k.name == key.name) {
                let message = format!("`{}` is given twice", key.name);
                self.report(
                    key.place,
                    message,
                    Some(format!("it was first given on line {}", first.place.line)),
                );
            } else if known.is_some_and(|k| !k.contains(&key.name.as_str())) {
                let hint = Some(did_you_mean(&key.name, known.unwrap_or_default()));
                let (place, message) = (key.place, format!("unknown key `{}`", key.name));
                let known = known.unwrap_or_default().to_vec();
                let unknown = Some(Unknown { mapping: self.node.place, key: key.name.clone(), known });
                self.sink.borrow_mut().push(Report { place, message, hint, unknown, hides_line: false });
            } else {
                unique.push(entry);
            }
        }
        unique
    }
}

/// A hint for an unknown name: the nearest known one, or all of them.
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
        let left = self.checked(self.entries("a mapping", &[])?, None).into_iter();
        self.placed(visitor.visit_map(Entries { left, value: None, reader: self }))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        let wanted = format!("a mapping with {}", listed(fields));
        let left = self.checked(self.entries(&wanted, fields)?, Some(fields)).into_iter();
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
            let hint = hint::of_choice(self.key, variant).unwrap_or_else(|| did_you_mean(variant, variants));
            self.report(place, format!("unknown choice `{variant}`"), Some(hint));
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

struct Items<'n, 's> {
    items: std::slice::Iter<'n, Node>,
    reader: Reader<'n, 's>,
}

impl<'n> SeqAccess<'n> for Items<'n, '_> {
    type Error = Failure;

    fn next_element_seed<T: DeserializeSeed<'n>>(&mut self, seed: T) -> Result<Option<T::Value>, Failure> {
        self.items.next().map(|node| seed.deserialize(Reader { node, ..self.reader })).transpose()
    }
}

struct Entries<'n, 's> {
    left: std::vec::IntoIter<&'n (Key, Node)>,
    value: Option<(&'n str, &'n Node)>,
    reader: Reader<'n, 's>,
}

impl<'n> MapAccess<'n> for Entries<'n, '_> {
    type Error = Failure;

    fn next_key_seed<K: DeserializeSeed<'n>>(&mut self, seed: K) -> Result<Option<K::Value>, Failure> {
        let Some((key, node)) = self.left.next() else { return Ok(None) };
        self.value = Some((&key.name, node));
        seed.deserialize(StrDeserializer::new(&key.name)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'n>>(&mut self, seed: V) -> Result<V::Value, Failure> {
        let (key, node) = self.value.take().expect("serde asks for a value only after its key");
        seed.deserialize(Reader { node, key, ..self.reader })
    }
}

struct Choice<'n, 's> {
    variant: &'n str,
    content: Option<&'n Node>,
    reader: Reader<'n, 's>,
}

impl<'n, 's> EnumAccess<'n> for Choice<'n, 's> {
    type Error = Failure;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'n>>(self, seed: V) -> Result<(V::Value, Self), Failure> {
        let name: StrDeserializer<'_, Failure> = self.variant.into_deserializer();
        seed.deserialize(name).map(|variant| (variant, self))
    }
}

impl<'n> Choice<'n, '_> {
    fn content(&self) -> Result<Reader<'n, '_>, Failure> {
        match self.content {
            Some(node) => Ok(Reader { node, ..self.reader }),
            None => {
                let (Reader { node, key, .. }, variant) = (self.reader, self.variant);
                let hint = format!("write `{key}: {{ {variant}: {{}} }}`");
                let message = format!("`{variant}` wants its settings, which may be empty");
                self.reader.report(node.place, message, Some(hint));
                Err(Failure::Reported)
            }
        }
    }
}

impl<'n> VariantAccess<'n> for Choice<'n, '_> {
    type Error = Failure;

    fn unit_variant(self) -> Result<(), Failure> {
        match self.content.map(|n| &n.value) {
            None | Some(Value::Null) => Ok(()),
            Some(_) => Err(de::Error::custom(format!("`{}` takes no settings", self.variant))),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'n>>(self, seed: T) -> Result<T::Value, Failure> {
        seed.deserialize(self.content()?)
    }

    fn tuple_variant<V: Visitor<'n>>(self, _len: usize, visitor: V) -> Result<V::Value, Failure> {
        self.content()?.deserialize_any(visitor)
    }

    fn struct_variant<V: Visitor<'n>>(
        self,
        fields: &'static [&'static str],
        v: V,
    ) -> Result<V::Value, Failure> {
        self.content()?.deserialize_struct("", fields, v)
    }
}

#[cfg(test)]
mod tests;
