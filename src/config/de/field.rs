//! Values with their place, and texts that have a longer form.

#[cfg(test)]
use std::borrow::Cow;
use std::fmt;

#[cfg(test)]
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IntoDeserializer, SeqAccess, Visitor};

use super::{Failure, Reader};
use crate::config::tree::Place;

/// A value with its place, or why there is none.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Field<T> {
    /// The file does not set it.
    #[default]
    Absent,
    /// The file sets it to something invalid, which was reported.
    Wrong(Place),
    /// The file sets it to this, here.
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

    /// Where it is, valid or not.
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
    /// The value, or the default when there is none.
    pub fn or(&self, default: T) -> T {
        self.get().cloned().unwrap_or(default)
    }
}

#[cfg(test)]
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

/// The name by which [`Field`] asks its deserializer for the place as well.
pub(super) const FIELD: &str = "$placed";

/// Hands a [`Field`] its place (three numbers) and then its value.
pub(super) struct Placed<'n, 's> {
    pub(super) reader: Reader<'n, 's>,
    pub(super) next: u8,
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
pub(super) const TEXT_OR: &str = "$text_or";

/// A text, or a longer form of the same setting: `across: dp_rank` and `across: [target, dp_rank]`.
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

#[cfg(test)]
impl<T: JsonSchema> JsonSchema for TextOr<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("TextOr{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let more = generator.subschema_for::<T>();
        schemars::json_schema!({ "oneOf": [{ "type": "string" }, more] })
    }
}
