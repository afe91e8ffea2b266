//! Ranks: the index on each axis of parallelism that a rank has, and how names spell it.

mod names;

use std::collections::BTreeMap;
use std::fmt;

use serde::de::Error;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::labels::{LabelValue, Labels};
use crate::printable::printable;

pub use self::names::{TraceFileName, match_file_name, parse_file_name, parse_process_name, parse_rank};

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

    /// The axis of a label.
    pub fn of_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|axis| axis.label() == label)
    }

    /// The axis that a log prefix or a file name calls `word`.
    pub fn of_word(word: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.word().as_bytes() == word)
    }
}

/// A rank's name for people, everywhere the same: `DP2 TP0`. Labels that are not of a rank are written
/// as they are: `pod=a DP2`; a server's name is its name: `chat-0`.
pub fn rank_name(rank: &Labels) -> String {
    let mut words: Vec<String> = Vec::new();
    for (name, value) in &rank.0 {
        words.push(match (Axis::of_label(name), value) {
            (Some(axis), LabelValue::Index(i)) => format!("{}{i}", axis.word()),
            _ if &**name == "target" => value.to_string(),
            _ => format!("{name}={value}"),
        });
    }
    if words.is_empty() { "the engine".into() } else { words.join(" ") }
}

/// A rank's index on each axis it has; an axis of size one is usually not named at all.
///
/// Stored as the index plus one, zero for an axis that the rank lacks: ranks are compared and looked
/// up with every sample, and twelve bytes are two machine words.
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

    /// A hash, for tables of ranks.
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

    /// The rank that labels name: `dp_rank=2`; `None` where they have no index of an axis.
    pub fn from_labels(labels: &Labels) -> Option<Self> {
        let mut rank = Self::NONE;
        for axis in Axis::ALL {
            if let Some(LabelValue::Index(i)) = labels.get(axis.label()) {
                rank = rank.with(axis, u16::try_from(*i).ok()?);
            }
        }
        (!rank.is_none()).then_some(rank)
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
        rank_of_indices(BTreeMap::deserialize(d)?).map_err(D::Error::custom)
    }
}

/// What a trace, a profile or a verdict is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RankId {
    /// A rank, by its indices.
    Rank(Rank),
    /// A process whose rank is unknown: Nsight cuts process names to 15 characters.
    Pid(u32),
}

impl RankId {
    /// As labels: `{"dp_rank": 2}`, `{"pid": 743}`.
    pub fn labels(self) -> Labels {
        match self {
            Self::Rank(rank) => rank.labels(),
            Self::Pid(pid) => Labels([("pid".into(), LabelValue::Index(pid))].into_iter().collect()),
        }
    }

    /// The index on an axis; a process has none.
    pub fn get(self, axis: Axis) -> Option<u16> {
        match self {
            Self::Rank(rank) => rank.get(axis),
            Self::Pid(_) => None,
        }
    }

    /// The same rank, named by `axes` only: of ranks that are all TP0, `TP0 DP2` is `DP2`. Without
    /// axes the name stays.
    pub fn named_by(self, axes: &[Axis]) -> Self {
        match self {
            Self::Rank(rank) if !axes.is_empty() => Self::Rank(
                rank.iter().filter(|(a, _)| axes.contains(a)).fold(Rank::NONE, |r, (a, i)| r.with(a, i)),
            ),
            other => other,
        }
    }

    /// As users write it, and as names of files have it: `dp2-tp0`, `pid743`, `engine`.
    pub fn word(self) -> String {
        match self {
            Self::Rank(Rank::NONE) => "engine".to_owned(),
            Self::Rank(rank) => rank.to_string().to_ascii_lowercase().replace(' ', "-"),
            Self::Pid(pid) => format!("pid{pid}"),
        }
    }

    /// The rank, unless it is a process.
    pub(crate) fn rank(self) -> Option<Rank> {
        match self {
            Self::Rank(rank) => Some(rank),
            Self::Pid(_) => None,
        }
    }
}

impl fmt::Display for RankId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rank(rank) => rank.fmt(f),
            Self::Pid(pid) => write!(f, "process {pid}"),
        }
    }
}

impl Serialize for RankId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Rank(rank) => rank.serialize(s),
            Self::Pid(pid) => {
                let mut map = s.serialize_map(Some(1))?;
                map.serialize_entry("pid", pid)?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for RankId {
    /// `{"dp_rank": 2}`, `{"pid": 743}`.
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let indices = BTreeMap::<String, u32>::deserialize(d)?;
        if let Some(pid) = indices.get("pid").filter(|_| indices.len() == 1) {
            return Ok(Self::Pid(*pid));
        }
        rank_of_indices(indices).map(Self::Rank).map_err(D::Error::custom)
    }
}

/// The rank with these indices, each under the label of its axis.
fn rank_of_indices(indices: BTreeMap<String, u32>) -> Result<Rank, String> {
    indices.into_iter().try_fold(Rank::NONE, |rank, (label, index)| {
        let axis = Axis::of_label(&label);
        let axis = axis.ok_or_else(|| format!("no axis is called {}", printable(&label, 80)))?;
        let index = u16::try_from(index).map_err(|_| format!("{index} is no index of a rank"))?;
        Ok(rank.with(axis, index))
    })
}

/// The axes on which `ranks` differ: the others are not needed to name them.
pub fn varying_axes(ranks: &[RankId]) -> Vec<Axis> {
    let ranks: Vec<Rank> = ranks.iter().filter_map(|id| id.rank()).collect();
    Axis::ALL.into_iter().filter(|&a| ranks.iter().any(|r| r.get(a) != ranks[0].get(a))).collect()
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

    #[test]
    fn ranks_are_named_by_the_axes_on_which_they_differ() {
        let ranks = [0, 2].map(|dp| RankId::Rank(Rank::dp(dp).with(Axis::Tp, 0)));
        let axes = varying_axes(&ranks);
        assert_eq!(ranks.map(|r| r.named_by(&axes).to_string()), ["DP0", "DP2"]);
        assert_eq!(ranks[0].named_by(&varying_axes(&ranks[..1])).to_string(), "DP0 TP0");
        assert_eq!(Rank::from_labels(&ranks[1].labels()), Some(Rank::dp(2).with(Axis::Tp, 0)));
        assert_eq!(varying_axes(&[]), []);
    }
}
