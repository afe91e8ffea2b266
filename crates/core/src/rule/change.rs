//! What the engine reports: the state of a rule on a group has changed, and by which numbers.

use std::fmt::Write as _;
use std::sync::Arc;

use serde::Serialize;

use super::Rule;
use super::state::RuleState;
use crate::factor::Factor;
use crate::finding::{Finding, Measured, MemberValue, Side, Statistic};
use skewtrap_trace::labels::Labels;
use skewtrap_trace::rank::rank_name;
use skewtrap_trace::time::Time;

/// One change of state, with the inputs that made it.
#[derive(Clone, Debug)]
pub struct Change {
    pub at: Time,
    pub rule: Arc<Rule>,
    /// The server; `None` where the group spans several, or the rule has no group.
    pub target: Option<Arc<str>>,
    /// The group's labels, without the target.
    pub group: Labels,
    /// The state it is in now.
    pub state: RuleState,
    /// How it got there.
    pub how: ChangeKind,
    /// Since when the trigger has held (pending and firing), else `at`.
    pub since: Time,
    /// What was found; only when firing.
    pub finding: Option<Finding>,
    /// The numbers that were judged, if any.
    pub numbers: Option<Numbers>,
    /// Why, for `unknown` and `inert`.
    pub reason: Option<String>,
    /// The trouble of the factors that fired it, by its number among its server's.
    pub trouble: Option<u64>,
    /// Whether the firing may have begun before this agent was started: the trigger has held since so
    /// soon after the group was first seen that its clear could not have held in between.
    pub may_predate_start: bool,
}

/// How a state was entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// From another state.
    Entered,
    /// The data of a firing were absent and are back: the same firing.
    Resumed,
    /// It still fires, but blames another member or side: a new firing.
    Reblamed,
    /// It still fires, and is worse by the margin than when it was captured: the same firing.
    #[serde(rename = "worsened")]
    Escalated,
    /// The trouble of an incident that was taken to be over came back soon: the same incident.
    Returned,
    /// It still fires, and by its impact it was decided whether a window is spent on it: the same firing.
    Weighed,
}

/// What a condition showed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Numbers {
    /// Which condition of the rule's trigger, by its place there.
    #[serde(skip)]
    pub condition: usize,
    pub statistic: Statistic,
    /// `load`.
    pub signal: Arc<str>,
    /// The statistic's value.
    pub value: f64,
    pub bound: f64,
    /// Every member's value.
    pub members: Vec<MemberValue>,
    /// The signal that these are of, where `signal` is a factor.
    #[serde(skip)]
    pub members_signal: Option<Arc<str>>,
}

impl Numbers {
    /// The statistic, without the members' values.
    pub fn measured(&self) -> Measured {
        Measured {
            statistic: self.statistic,
            signal: self.signal.clone(),
            value: self.value,
            bound: self.bound,
            members_signal: self.members_signal.clone(),
        }
    }
}

impl Change {
    /// Whether it begins an incident: it fires, and not merely again after a gap in the data.
    pub fn is_onset(&self) -> bool {
        self.state == RuleState::Firing && matches!(self.how, ChangeKind::Entered | ChangeKind::Reblamed)
    }

    /// Whether the rule entered a state, as opposed to becoming worse in the one it is in.
    pub fn is_transition(&self) -> bool {
        !matches!(self.how, ChangeKind::Escalated | ChangeKind::Weighed)
    }

    /// Takes the finding of the firing that it continues, with the numbers as they are now.
    pub fn continue_from(&mut self, found: &Finding) {
        if let Some(numbers) = &self.numbers {
            let (measured, members) = (Some(numbers.measured()), numbers.members.clone());
            self.finding = Some(Finding { measured, members, ..found.clone() });
        }
    }

    /// In words, but for the time: `dp-load-skew  firing  role=unified  max_over_mean(load) 2.63
    /// against 2.00  DP2 is high since ...`. `capture` and `why` are those of [`Self::line`].
    pub fn text(&self, capture: &str, why: Option<&str>) -> String {
        let mut text = format!("{:<20} {:<8}", self.rule.name, self.state.word());
        let mut part = |words: std::fmt::Arguments<'_>| {
            text.push_str("  ");
            // Writing into a string cannot fail.
            let _ = text.write_fmt(words);
        };
        if !self.group.0.is_empty() {
            part(format_args!("{}", self.group));
        }
        match &self.numbers {
            // Of a rank that hangs it is always the same, and of what does not fire that of some other factor.
            Some(n)
                if n.statistic == Statistic::Factors
                    && (self.finding.is_none() || *n.signal == *Factor::Stuck.word()) => {}
            Some(n) if n.statistic == Statistic::Factors => {
                part(format_args!("{} {:.2} times the firing bound", n.signal, n.value));
            }
            Some(n) => {
                part(format_args!("{}({}) {:.2} against {:.2}", n.statistic, n.signal, n.value, n.bound))
            }
            None => {}
        }
        if let Some(f) = &self.finding {
            let side = f.side.word();
            let rank = rank_name(&f.rank);
            part(format_args!("{rank} is {side} since {} (± {:.1} s)", f.onset, f.onset_error_s));
        }
        if self.how == ChangeKind::Resumed {
            part(format_args!("it goes on"));
        }
        if self.how == ChangeKind::Returned {
            part(format_args!("it came back"));
        }
        if self.how == ChangeKind::Escalated {
            part(format_args!("it got worse"));
        }
        if self.how == ChangeKind::Weighed {
            part(format_args!("its impact was looked at"));
        }
        if self.state == RuleState::Firing {
            part(format_args!("capture: {}", capture.replace('_', " ")));
        }
        for reason in [why, self.reason.as_deref()].into_iter().flatten() {
            part(format_args!("({reason})"));
        }
        text
    }

    /// As the line of `replay --format json`. `capture` is the word of the window's state and `why`
    /// the reason of a refusal.
    pub fn line<'a>(&'a self, capture: &'a str, why: Option<&'a str>) -> ChangeLine<'a> {
        let finding = self.finding.as_ref();
        let numbers = self.numbers.as_ref();
        ChangeLine {
            at: self.at,
            target: self.target.as_deref(),
            rule: &self.rule.name,
            group: &self.group,
            state: self.state,
            onset: finding.map(|f| f.onset),
            onset_error_s: finding.map(|f| f.onset_error_s),
            rank: finding.map(|f| &f.rank),
            side: finding.map(|f| f.side),
            statistic: numbers.map(|n| n.statistic),
            value: numbers.map(|n| n.value),
            bound: numbers.map(|n| n.bound),
            capture,
            why,
            resumed: matches!(self.how, ChangeKind::Resumed | ChangeKind::Returned),
            returned: self.how == ChangeKind::Returned,
            got_worse: self.how == ChangeKind::Escalated,
            reason: self.reason.as_deref(),
        }
    }
}

/// One line of `replay --format json`; others rely on its names.
#[derive(Clone, Debug, Serialize)]
pub struct ChangeLine<'a> {
    pub at: Time,
    pub target: Option<&'a str>,
    pub rule: &'a str,
    pub group: &'a Labels,
    pub state: RuleState,
    pub onset: Option<Time>,
    pub onset_error_s: Option<f64>,
    pub rank: Option<&'a Labels>,
    pub side: Option<Side>,
    pub statistic: Option<Statistic>,
    pub value: Option<f64>,
    pub bound: Option<f64>,
    pub capture: &'a str,
    pub why: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub resumed: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub returned: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub got_worse: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a str>,
}
