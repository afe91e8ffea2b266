//! What a rule found when it fired: whom it blames, since when, on which side, and by which numbers;
//! with the words for statistics and sides that rules, findings and messages share.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

use crate::signal::sample::SampleEvidence;
use skewtrap_trace::Suspect;
use skewtrap_trace::labels::Labels;
use skewtrap_trace::time::Time;

/// What a rule found when it fired.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// The estimated onset.
    pub onset: Time,
    /// How far off that may be, in seconds.
    pub onset_error_s: f64,
    /// The blamed member: `{"dp_rank": 2}`.
    pub rank: Labels,
    /// On which side it left its peers.
    pub side: Side,
    /// What crossed its bound; `None`, and absent from the JSON, where no rule measured anything:
    /// somebody, or another system's alert, asked for the capture.
    #[serde(flatten, deserialize_with = "measured")]
    pub measured: Option<Measured>,
    /// Every member's value at that time, in the order of the members.
    pub members: Vec<MemberValue>,
    /// The numbers that show it, in a sentence.
    pub evidence: Option<String>,
    /// The blamed member's sample nearest to the onset.
    #[serde(default)]
    pub shown_by: Option<SampleEvidence>,
    /// Further members that are to blame for the same trouble.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<Labels>,
    /// What departed in the course of it, in order, where factors are watched: the first is the cause.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub symptoms: Vec<Symptom>,
    /// Its impact on the clients, where that is known.
    #[serde(flatten, with = "under_both_names")]
    pub impact: Option<Impact>,
}

/// The impact in JSON, where `schema_version` 1 called it `harm`: that name stays beside the new one as long
/// as the version does.
mod under_both_names {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Impact;

    #[derive(Deserialize, Serialize)]
    struct Named<H> {
        #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
        impact: Option<H>,
        #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
        harm: Option<H>,
    }

    pub(super) fn serialize<S: Serializer>(impact: &Option<Impact>, to: S) -> Result<S::Ok, S::Error> {
        Named { impact: impact.as_ref(), harm: impact.as_ref() }.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Impact>, D::Error> {
        let Named { impact, harm } = Named::deserialize(from)?;
        Ok(impact.or(harm))
    }
}

/// A factor of a member's load that departed from what is usual.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Symptom {
    /// When it was first seen.
    pub at: Time,
    pub rank: Labels,
    /// Which: `share`, `speed`, `work` or `stuck`.
    pub factor: Arc<str>,
    /// On which side; less speed is slower.
    pub side: Side,
}

/// The impact of a trouble on the clients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Impact {
    /// Requests that would be better off, were the load even, as a share of all.
    pub share: f64,
    /// How many that are.
    pub requests: f64,
    /// Why: `queue_beside_room`, `excess`, `unused`, `frozen` or `little`.
    pub reason: Arc<str>,
}

/// Between what departed, in words, and the members' numbers.
const THEN: &str = "; ";

impl Finding {
    /// Puts the members' numbers behind what was said of it already.
    pub fn add_numbers(&mut self, numbers: Option<String>) {
        let parts: Vec<String> = self.evidence.take().into_iter().chain(numbers).collect();
        self.evidence = (!parts.is_empty()).then(|| parts.join(THEN));
    }

    /// What departed, in words and without the members' numbers, where it was a factor.
    pub fn departure(&self) -> Option<&str> {
        let is_factor = self.measured.as_ref().is_some_and(|m| m.statistic == Statistic::Factors);
        self.evidence.as_deref().filter(|_| is_factor).and_then(|said| said.split(THEN).next())
    }

    /// One that blames a rank since `onset`, of which nothing else is known.
    pub fn of(rank: Labels, side: Side, onset: Time) -> Self {
        Self {
            onset,
            onset_error_s: 0.0,
            rank,
            side,
            measured: None,
            members: Vec::new(),
            evidence: None,
            shown_by: None,
            also: Vec::new(),
            symptoms: Vec::new(),
            impact: None,
        }
    }

    /// The finding of a capture that somebody asked for: since when, and why.
    pub fn requested(since: Time, why: Option<String>) -> Self {
        Self { evidence: why, ..Self::of(Labels::default(), Side::Both, since) }
    }

    /// What a comparison of the ranks' traces is to confirm.
    pub fn suspect(&self) -> Suspect {
        let is_of_work = |m: &Measured| match m.statistic {
            Statistic::Factors => ["share", "work"].contains(&&*m.signal),
            _ => &*m.signal == "load" || m.signal.ends_with("_reqs") || m.signal.ends_with("_tokens"),
        };
        let has_less = self.side == Side::Low && self.measured.as_ref().is_some_and(is_of_work);
        Suspect { rank: self.rank.clone(), has_less }
    }

    /// The values of the blamed member's peers.
    pub fn peers(&self) -> Vec<f64> {
        self.members.iter().filter(|m| m.rank != self.rank).map(|m| m.value).collect()
    }

    /// Whether a sample shows what is claimed of the blamed member: it is nearer to the member's value
    /// when the rule fired than to its peers'. Near the onset it may still have looked like them.
    pub fn is_shown_by(&self, shown: &SampleEvidence) -> bool {
        let own = self.members.iter().find(|m| m.rank == self.rank);
        let mut peers = self.peers();
        peers.sort_by(f64::total_cmp);
        match (own, peers.get(peers.len() / 2)) {
            (Some(own), Some(usual)) => (shown.value - own.value).abs() <= (shown.value - usual).abs(),
            _ => true,
        }
    }
}

/// A statistic that crossed its bound.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The statistic (`max_over_mean`).
    pub statistic: Statistic,
    /// The signal it summarises (`load`).
    pub signal: Arc<str>,
    pub value: f64,
    /// The bound it crossed.
    pub bound: f64,
    /// The signal whose values the members show, where `signal` is a factor, which is one number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub members_signal: Option<Arc<str>>,
}

/// Releases up to 0.1 wrote a statistic `asked`, or an empty one, where nothing was measured.
fn measured<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Measured>, D::Error> {
    let read = Option::<Measured>::deserialize(deserializer)?;
    Ok(read.filter(|m| m.statistic != Statistic::Other))
}

/// One member's value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberValue {
    /// `{"dp_rank": 2}`.
    pub rank: Labels,
    /// In the signal's unit.
    pub value: f64,
    /// Whether it went silent.
    pub stale: bool,
}

/// The side on which a member left its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Above its peers.
    High,
    /// Below its peers.
    Low,
    /// Either.
    Both,
}

impl Side {
    /// `high`, `low` or `both`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Low => "low",
            Self::Both => "both",
        }
    }
}

/// One number per group and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Statistic {
    /// The load-imbalance factor: 1 when even, n when one of n ranks has everything.
    MaxOverMean,
    /// 1 when even, 0 when a rank is idle.
    MinOverMean,
    /// In the signal's unit; 0 when even.
    MaxMinusMin,
    /// Coefficient of variation: population standard deviation over mean; 0 when even, sqrt(n-1) when
    /// one of n has everything.
    Cv,
    /// Gini coefficient: 0 when even, 1 - 1/n when one of n has everything.
    Gini,
    /// Jain's fairness index: 1 when even, 1/n when one of n has everything.
    Jain,
    /// 1 - mean/max: the share of the group's capacity that waits for its fullest rank; 0 when even.
    LostShare,
    /// The largest distance from the median in units of 1.4826 times the median absolute deviation.
    RobustZ,
    /// The member nearest to crossing the bound: some member is beyond it.
    AnyMember,
    /// The member farthest from crossing the bound: every member is beyond it.
    AllMembers,
    /// How far a member's course (its load, its tokens, its speed) has departed from its peers', in
    /// standard deviations of what is usual in this group; it has a memory, see `departure`.
    Departure,
    /// How many times its bound a factor of a member's load (what it is sent, its speed at equal work, the
    /// work of its requests, whether it moves) has departed from what is usual; see [`crate::factor`].
    Factors,
    /// None of these: what version 0.1 wrote into the finding of an incident that somebody asked for, and
    /// what a word that this version does not know is read as. No rule has it.
    #[serde(other, rename = "asked")]
    Other,
}

impl Statistic {
    /// Every statistic that a rule can have, in the order of the documentation.
    pub const ALL: [Self; 12] = [
        Self::MaxOverMean,
        Self::MinOverMean,
        Self::MaxMinusMin,
        Self::Cv,
        Self::Gini,
        Self::Jain,
        Self::LostShare,
        Self::RobustZ,
        Self::AnyMember,
        Self::AllMembers,
        Self::Departure,
        Self::Factors,
    ];

    /// As in YAML and JSON: `max_over_mean`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MaxOverMean => "max_over_mean",
            Self::MinOverMean => "min_over_mean",
            Self::MaxMinusMin => "max_minus_min",
            Self::Cv => "cv",
            Self::Gini => "gini",
            Self::Jain => "jain",
            Self::LostShare => "lost_share",
            Self::RobustZ => "robust_z",
            Self::AnyMember => "any_member",
            Self::AllMembers => "all_members",
            Self::Departure => "departure",
            Self::Factors => "factors",
            Self::Other => "asked",
        }
    }
}

impl fmt::Display for Statistic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_without_a_measurement_has_no_statistic_in_json_and_old_ones_are_read_so() {
        let asked = Finding::requested(Time::from_epoch_s(5.0), Some("a look".into()));
        let mut json = serde_json::to_value(&asked).expect("it serialises");
        assert!(json.get("statistic").is_none() && json.get("bound").is_none(), "{json}");
        assert_eq!(serde_json::from_value::<Finding>(json.clone()).expect("it is read"), asked);
        for (key, value) in [("statistic", "asked".into()), ("signal", "".into()), ("value", 0.0.into())] {
            json[key] = value;
        }
        json["bound"] = serde_json::json!(0.0);
        assert_eq!(serde_json::from_value::<Finding>(json.clone()).expect("an old one is read"), asked);
        json["statistic"] = "max_over_mean".into();
        let measured = serde_json::from_value::<Finding>(json).expect("it is read").measured;
        assert_eq!(measured.map(|m| m.statistic), Some(Statistic::MaxOverMean));
    }
    #[test]
    fn the_impact_of_a_finding_has_its_old_name_in_json_too_and_is_read_under_either() {
        let mut known = Finding::of(Labels::default(), Side::High, Time::from_epoch_s(5.0));
        known.impact = Some(Impact { share: 0.4, requests: 12.0, reason: "excess".into() });
        let json = serde_json::to_value(&known).expect("it serialises");
        assert_eq!((&json["impact"], &json["impact"]["share"]), (&json["harm"], &0.4.into()), "{json}");
        for name in ["impact", "harm"] {
            let mut json = json.clone();
            json.as_object_mut().expect("an object").remove(name);
            assert_eq!(serde_json::from_value::<Finding>(json).expect("it is read"), known);
        }
        known.impact = None;
        let json = serde_json::to_value(&known).expect("it serialises");
        assert!(json.get("impact").is_none() && json.get("harm").is_none(), "{json}");
        assert_eq!(serde_json::from_value::<Finding>(json).expect("it is read"), known);
    }
}
