//! How serde walks lists, mappings and choices of a tree.

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess,
    Visitor,
};

use super::{Failure, Reader};
use crate::config::tree::{Key, Node, Value};

pub(super) struct Items<'n, 's> {
    pub(super) items: std::slice::Iter<'n, Node>,
    pub(super) reader: Reader<'n, 's>,
}

impl<'n> SeqAccess<'n> for Items<'n, '_> {
    type Error = Failure;

    fn next_element_seed<T: DeserializeSeed<'n>>(&mut self, seed: T) -> Result<Option<T::Value>, Failure> {
        self.items.next().map(|node| seed.deserialize(Reader { node, ..self.reader })).transpose()
    }
}

pub(super) struct Entries<'n, 's> {
    pub(super) left: std::vec::IntoIter<&'n (Key, Node)>,
    pub(super) value: Option<&'n Node>,
    pub(super) reader: Reader<'n, 's>,
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

pub(super) struct Choice<'n, 's> {
    pub(super) variant: &'n str,
    pub(super) content: Option<&'n Node>,
    pub(super) reader: Reader<'n, 's>,
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
