//! The labels that tell series apart: the target, the role, the ranks, and what a user's own
//! pattern names.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// One label's value. Rank indices are numbers, everywhere, JSON included.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LabelValue {
    /// A rank index.
    Index(u32),
    /// Anything else.
    Text(Arc<str>),
}

impl fmt::Display for LabelValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(i) => write!(f, "{i}"),
            Self::Text(t) => f.write_str(t),
        }
    }
}

/// Label names with values, ordered by name: `{"dp_rank": 2}`, `{"target": "a", "role": "unified"}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Labels(pub BTreeMap<Arc<str>, LabelValue>);

impl Labels {
    /// The labels that `names` picks, in the order of their names; those absent are left out.
    pub fn pick<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Self {
        Self(
            names
                .into_iter()
                .filter_map(|n| self.0.get_key_value(n))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
        )
    }

    /// These, of the server of that name.
    pub fn on(mut self, target: &Arc<str>) -> Self {
        self.0.insert("target".into(), LabelValue::Text(target.clone()));
        self
    }

    /// Whether every one of `others` is among them, with the same value.
    pub fn carry(&self, others: &Self) -> bool {
        others.0.iter().all(|(name, value)| self.0.get(name) == Some(value))
    }

    /// The value of one label.
    pub fn get(&self, name: &str) -> Option<&LabelValue> {
        self.0.get(name)
    }
}

impl fmt::Display for Labels {
    /// `dp_rank=2 role=unified`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, value)) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(" ")?;
            }
            write!(f, "{name}={value}")?;
        }
        Ok(())
    }
}
