//! Labels, which identify a series: the target, the role, the ranks, and the groups of a user's own
//! pattern.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The value of one label. Rank indices are numbers, also in JSON.
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
    /// The labels of these names; absent ones are left out.
    pub fn pick<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Self {
        Self(
            names
                .into_iter()
                .filter_map(|n| self.0.get_key_value(n))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
        )
    }

    /// These labels, with the name of the server added.
    pub fn with_target(mut self, target: &Arc<str>) -> Self {
        self.0.insert("target".into(), LabelValue::Text(target.clone()));
        self
    }

    /// Whether all of `others` are among these labels, with the same values.
    pub fn contains(&self, others: &Self) -> bool {
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
