//! One name, or several, in YAML.

use super::de::{Field, TextOr};
use super::tree::Place;

/// One name, or a list of them.
pub type Names = TextOr<Vec<Field<String>>>;

/// The valid names, each with its place; a single name is at `at`.
pub fn names_of(names: &Names, at: Place) -> Vec<(&str, Place)> {
    match names {
        TextOr::Text(name) => vec![(name, at)],
        TextOr::More(list) => list.iter().filter_map(Field::placed).map(|(n, p)| (n.as_str(), p)).collect(),
    }
}
