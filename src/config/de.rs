//! From a tree to types, collecting every problem instead of stopping at the first.
//!
//! A serde `Deserializer` over [`Node`]s. It knows the fields of the struct being read, so it
//! reports unknown and duplicate keys itself, with a suggestion, and goes on. What cannot be read
//! at all is reported where it is and becomes [`Field::Wrong`] in the field that holds it; the
//! fields beside it are still read. The same types carry the JSON schema.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess,
    Visitor,
};
use serde::{Deserialize, forward_to_deserialize_any};

use super::diagnostic::Findings;
use super::tree::{Key, Node, Place, Value};
use crate::decide::rule::guard::nearest;

/// A value with its place, or why there is none.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Field<T> {
    /// The file does not say.
    #[default]
    Absent,
    /// It says something that cannot be; already reported.
    Wrong(Place),
    /// It says this, here.
    Given(T, Place),
}

impl<T> Field<T> {
    /// The value.
    pub const fn get(&self) -> Option<&T> {
        match self {
            Self::Given(value, _) => Some(value),
            Self::Absent | Self::Wrong(_) => None,
        }
    }

    /// The value and its place.
    pub const fn placed(&self) -> Option<(&T, Place)> {
        match self {
            Self::Given(value, place) => Some((value, *place)),
            Self::Absent | Self::Wrong(_) => None,
        }
    }

    /// Where it is, right or wrong.
    pub const fn place(&self) -> Option<Place> {
        match self {
            Self::Given(_, place) | Self::Wrong(place) => Some(*place),
            Self::Absent => None,
        }
    }

    /// Whether the file does not mention it.
    pub const fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

impl<T: Clone> Field<T> {
    /// The value, or what holds when there is none.
    pub fn or(&self, default: T) -> T {
        self.get().cloned().unwrap_or(default)
    }
}

impl<T: JsonSchema> JsonSchema for Field<T> {
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }

    fn inline_schema() -> bool {
        T::inline_schema()
    }
}

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
    value: Option<&'n Node>,
    reader: Reader<'n, 's>,
}

impl<'n> MapAccess<'n> for Entries<'n, '_> {
    type Error = Failure;

    fn next_key_seed<K: DeserializeSeed<'n>>(&mut self, seed: K) -> Result<Option<K::Value>, Failure> {
        let Some((key, node)) = self.left.next() else { return Ok(None) };
        self.value = Some(node);
        seed.deserialize(StrDeserializer::new(&key.name)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'n>>(&mut self, seed: V) -> Result<V::Value, Failure> {
        let node = self.value.take().expect("serde asks for a value only after its key");
        seed.deserialize(Reader { node, ..self.reader })
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
            None => Err(de::Error::custom(format!("`{0}` wants its settings: `{0}: {{...}}`", self.variant))),
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

/// The name by which [`Field`] asks its deserializer for the place as well.
const FIELD: &str = "$placed";

/// Hands a [`Field`] its place (three numbers) and then its value.
struct Placed<'n, 's> {
    reader: Reader<'n, 's>,
    next: u8,
}

impl<'n> SeqAccess<'n> for Placed<'n, '_> {
    type Error = Failure;

    fn next_element_seed<T: DeserializeSeed<'n>>(&mut self, seed: T) -> Result<Option<T::Value>, Failure> {
        let place = self.reader.node.place;
        self.next += 1;
        match self.next {
            1 => seed.deserialize(place.line.into_deserializer()).map(Some),
            2 => seed.deserialize(place.column.into_deserializer()).map(Some),
            3 => seed.deserialize(place.width.into_deserializer()).map(Some),
            4 => seed.deserialize(self.reader).map(Some),
            _ => Ok(None),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_newtype_struct(FIELD, FieldVisitor(std::marker::PhantomData))
    }
}

struct FieldVisitor<T>(std::marker::PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for FieldVisitor<T> {
    type Value = Field<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Field<T>, A::Error> {
        let mut number = || parts.next_element().map(Option::unwrap_or_default);
        let place = Place { line: number()?, column: number()?, width: number()? };
        Ok(match parts.next_element::<T>() {
            Ok(Some(value)) => Field::Given(value, place),
            Ok(None) => Field::Absent,
            Err(_) => Field::Wrong(place),
        })
    }
}

/// The name by which [`TextOr`] asks whether there is a scalar.
const TEXT_OR: &str = "$text_or";

/// A text, or something with more to say: `across: dp_rank` and `across: [target, dp_rank]`.
#[derive(Clone, Debug, PartialEq)]
pub enum TextOr<T> {
    /// A scalar.
    Text(String),
    /// The longer form.
    More(T),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for TextOr<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_newtype_struct(TEXT_OR, TextOrVisitor(std::marker::PhantomData))
    }
}

struct TextOrVisitor<T>(std::marker::PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for TextOrVisitor<T> {
    type Value = TextOr<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or a longer form")
    }

    fn visit_str<E>(self, text: &str) -> Result<TextOr<T>, E> {
        Ok(TextOr::Text(text.to_owned()))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, d: D) -> Result<TextOr<T>, D::Error> {
        T::deserialize(d).map(TextOr::More)
    }
}

impl<T: JsonSchema> JsonSchema for TextOr<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("TextOr{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let more = generator.subschema_for::<T>();
        schemars::json_schema!({ "oneOf": [{ "type": "string" }, more] })
    }
}

#[cfg(test)]
mod tests;
