//! Which rank: its index on each parallelism axis it has.

use std::fmt;

use std::collections::BTreeMap;

use serde::de::Error;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::labels::{LabelValue, Labels};

/// An axis of parallelism on which ranks are numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Axis {
    /// Data parallel (SGLang `DP`, vLLM's `engine`).
    Dp,
    /// Tensor parallel.
    Tp,
    /// Pipeline parallel.
    Pp,
    /// Expert parallel.
    Ep,
    /// Attention context parallel.
    AttnCp,
    /// Data parallel inside the MoE layers.
    MoeDp,
}

impl Axis {
    /// Every axis, in the order in which ranks are written.
    pub const ALL: [Self; 6] = [Self::Dp, Self::Tp, Self::Pp, Self::Ep, Self::AttnCp, Self::MoeDp];

    /// The label that carries the index: `dp_rank`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Dp => "dp_rank",
            Self::Tp => "tp_rank",
            Self::Pp => "pp_rank",
            Self::Ep => "ep_rank",
            Self::AttnCp => "attn_cp_rank",
            Self::MoeDp => "moe_dp_rank",
        }
    }

    /// The word in log prefixes and file names: `DP`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Dp => "DP",
            Self::Tp => "TP",
            Self::Pp => "PP",
            Self::Ep => "EP",
            Self::AttnCp => "ATTN_CP",
            Self::MoeDp => "MOE_DP",
        }
    }

    /// The axis that a log prefix or a file name calls `word`.
    pub fn of_word(word: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.word().as_bytes() == word)
    }
}

/// A rank's index on each axis it has; an axis of size one is usually not named at all.
///
/// Kept as the index plus one, zero for an axis that it has not: ranks are compared and looked up
/// with every sample, and twelve bytes are two words.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rank([u16; 6]);

impl Rank {
    /// A rank with no axis: the engine as a whole.
    pub const NONE: Self = Self([0; 6]);

    /// The data-parallel rank `index`.
    pub const fn dp(index: u16) -> Self {
        Self::NONE.with(Axis::Dp, index)
    }

    /// The tensor-parallel rank `index`.
    pub const fn tp(index: u16) -> Self {
        Self::NONE.with(Axis::Tp, index)
    }

    /// This rank, with its index (at most 65,534) on one more axis.
    pub const fn with(mut self, axis: Axis, index: u16) -> Self {
        self.0[axis as usize] = index.saturating_add(1);
        self
    }

    /// The index on `axis`, if it has one.
    pub const fn get(self, axis: Axis) -> Option<u16> {
        self.0[axis as usize].checked_sub(1)
    }

    /// Whether it names no axis.
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// A number that spreads ranks well, for a table of them.
    pub fn mixed(self) -> u64 {
        let [a, b, c, d, e, f] = self.0.map(u64::from);
        let (low, high) = (a | b << 16 | c << 32 | d << 48, e | f << 16);
        // Fibonacci hashing (Knuth, TAOCP 3, 6.4), once for each word.
        low.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ high.wrapping_mul(0xc2b2_ae3d_27d4_eb4f)
    }

    /// Axes and indices, in the order of [`Axis::ALL`].
    pub fn iter(self) -> impl Iterator<Item = (Axis, u16)> {
        Axis::ALL.into_iter().filter_map(move |a| self.get(a).map(|i| (a, i)))
    }

    /// As labels: `dp_rank=2 tp_rank=0`.
    pub fn labels(self) -> Labels {
        Labels(self.iter().map(|(a, i)| (a.label().into(), LabelValue::Index(u32::from(i)))).collect())
    }
}

impl fmt::Debug for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rank({self})")
    }
}

impl fmt::Display for Rank {
    /// `DP2 TP0`; `engine` when it names no axis.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_none() {
            return f.write_str("engine");
        }
        for (n, (axis, index)) in self.iter().enumerate() {
            write!(f, "{}{}{index}", if n > 0 { " " } else { "" }, axis.word())?;
        }
        Ok(())
    }
}

impl Serialize for Rank {
    /// `{"dp_rank": 2}`.
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(None)?;
        for (axis, index) in self.iter() {
            map.serialize_entry(axis.label(), &index)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Rank {
    /// `{"dp_rank": 2}`.
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        BTreeMap::<String, u16>::deserialize(d)?.into_iter().try_fold(Self::NONE, |rank, (label, index)| {
            let axis = Axis::ALL.into_iter().find(|a| a.label() == label);
            axis.map(|a| rank.with(a, index))
                .ok_or_else(|| D::Error::custom(format!("no axis is called {label}")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_prints_and_serialises_only_the_axes_it_has() {
        let rank = Rank::dp(2).with(Axis::Tp, 0);
        assert_eq!(rank.to_string(), "DP2 TP0");
        let json = serde_json::to_string(&rank).expect("ranks serialise");
        assert_eq!(json, r#"{"dp_rank":2,"tp_rank":0}"#);
        assert_eq!(serde_json::from_str::<Rank>(&json).expect("and back"), rank);
        assert_eq!(Axis::of_word(b"ATTN_CP"), Some(Axis::AttnCp));
    }
}
