//! `skewtrap tune`: how often each bound would have fired on a recording.
//!
//! Each rule runs in many copies at once, each with another bound of one condition, through the engine
//! that runs live; so `for`, chance, clear and guard count as they would.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use serde::Serialize;

use super::playback::{self, Recordings};
use super::rule_files::RuleSet;
use super::{Format, print_diagnostics};
use crate::config::condition::{can_clear, can_trigger};
use crate::config::file::{self, Config};
use crate::config::signal::user_signals_of;
use crate::observe::configuration;
use skewtrap_core::finding::Statistic;
use skewtrap_core::message::{counted, seconds as seconds_of};
use skewtrap_core::rule::{Change, Condition, Direction, Rule, RuleState};
use skewtrap_core::signal::catalog::Catalog;

/// Finds bounds on recordings: how often each would have fired, and the one for a given rate of false alarms.
#[derive(Debug, Args)]
pub struct TuneArgs {
    #[command(flatten)]
    recordings: Recordings,

    /// Rule files or folders, or `preset:NAME`. Default: the shipped default rules.
    #[arg(long, value_name = "PATH")]
    rules: Vec<String>,

    /// How many false alarms a day are tolerable, if nothing in the recordings is a true one.
    #[arg(long, value_name = "N", default_value_t = 1.0)]
    per_day: f64,

    #[command(flatten)]
    format: Format,
}

/// The result for one condition of one rule.
#[derive(Debug, Serialize)]
struct Tuned {
    /// Whether its signal, and a group of ranks, ever arrived.
    is_judged: bool,
    rule: String,
    /// What was varied: `max_over_mean(load)`.
    statistic: String,
    /// Where imbalance lies: `above` or `below` the bound.
    side: &'static str,
    /// The bound of the rule.
    bound: f64,
    /// The number of other conditions of the rule, which were not varied.
    others: usize,
    /// The most ranks of a group that it was judged on.
    ranks: usize,
    /// Every bound that was tried, from the one that fires first.
    tried: Vec<BoundResult>,
    /// The most sensitive bound for which it and all stricter ones stay within the limit; none of a recording
    /// that is too short to tell.
    advised: Option<f64>,
    /// Whether its bounds are learned from the servers: then none is to be set.
    is_learned: bool,
}

/// The result for one bound.
#[derive(Clone, Debug, Serialize)]
struct BoundResult {
    bound: f64,
    /// Whether so many ranks can cross it at all.
    is_reachable: bool,
    firings: usize,
    per_day: f64,
}

/// The result of the command.
#[derive(Debug, Serialize)]
struct Report {
    /// How long the recordings are.
    hours: f64,
    /// From how many hours on a bound is advised: shorter recordings do not tell the rate that is tolerable from none.
    advises_from_hours: f64,
    limit_per_day: f64,
    rules: Vec<Tuned>,
}

/// Factors on the distance between the rule's bound and the statistic's even value.
const FACTORS: [f64; 17] =
    [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0];

/// Runs the command.
///
/// # Errors
/// A file cannot be read, or is wrong.
pub fn run(args: &TuneArgs) -> anyhow::Result<ExitCode> {
    let inputs = args.recordings.files();
    if inputs.is_empty() {
        bail!(super::wrong("nothing to tune on: name a recording with --log, --metrics or --loads"));
    }
    if !(args.per_day.is_finite() && args.per_day >= 0.0) {
        bail!(super::wrong("--per-day takes a number of firings, 0 or more"));
    }
    let config = rules_of(&args.rules)?;
    let rules: Vec<Rule> = config.rules.into_iter().map(|c| c.rule).collect();
    let zone = args.recordings.zone()?;
    let varied: Vec<VariedCondition<'_>> =
        rules.iter().flat_map(|rule| VariedCondition::all_of(rule, &config.catalog)).collect();
    let copies: Vec<Rule> = varied.iter().flat_map(VariedCondition::copies).collect();
    let own = user_signals_of(&config.signals, &config.catalog, &[]);
    let set = RuleSet { rules: copies, catalog: config.catalog, own };
    let played = playback::recording(&inputs, set, zone)?;
    let seconds = played.end.signed_s_since(played.start);
    if seconds < 60.0 {
        bail!("the recordings cover {seconds:.0} s; bounds need at least minutes, better a day");
    }
    let advises_from_hours = advises_from(args.per_day);
    let is_enough = seconds / 3600.0 >= advises_from_hours;
    let report = Report {
        hours: seconds / 3600.0,
        advises_from_hours,
        limit_per_day: args.per_day,
        rules: varied
            .iter()
            .map(|varied| tuned_of(varied, &played.changes, seconds, args.per_day, is_enough))
            .collect(),
    };
    print(&report, args.format.is_json())?;
    Ok(ExitCode::SUCCESS)
}

/// What each bound of one condition came to in a recording of `seconds`.
fn tuned_of(
    varied: &VariedCondition<'_>,
    changes: &[Change],
    seconds: f64,
    per_day: f64,
    is_enough: bool,
) -> Tuned {
    let of_copy = |i: usize| {
        let name = varied.copy_name(i);
        changes.iter().filter(move |c| *c.rule.name == *name)
    };
    let (rule, condition) = (varied.rule, varied.own());
    let ranks = (0..varied.bounds.len()).flat_map(&of_copy);
    let ranks = ranks.filter_map(|c| Some(c.numbers.as_ref()?.members.len())).max().unwrap_or(0);
    let tried = varied.bounds.iter().enumerate().map(|(i, &bound)| {
        let firings = of_copy(i).filter(|c| c.is_onset()).count();
        let is_reachable = is_reachable(condition, bound, ranks);
        BoundResult { bound, is_reachable, firings, per_day: firings as f64 / (seconds / 86_400.0) }
    });
    let tried: Vec<BoundResult> = tried.collect();
    // A rule whose signal or group never arrived fired at no bound, which says nothing about bounds.
    let is_judged =
        of_copy(0).any(|c| matches!(c.state, RuleState::Idle | RuleState::Pending | RuleState::Firing));
    let is_learned = condition.statistic == Statistic::Factors;
    Tuned {
        is_judged,
        is_learned,
        rule: rule.name.to_string(),
        statistic: format!("{}({})", condition.statistic, condition.signal_name),
        side: if condition.direction == Direction::Below { "below" } else { "above" },
        bound: condition.bound,
        others: rule.trigger.conditions.len() - 1,
        ranks,
        advised: advised_of(&tried, per_day).filter(|_| is_judged && !is_learned && is_enough),
        tried,
    }
}

fn print(report: &Report, json: bool) -> anyhow::Result<()> {
    if json {
        outln!("{}", serde_json::to_string_pretty(report)?)?;
        return Ok(());
    }
    report.rules.iter().try_for_each(|tuned| print_rule(tuned, report))?;
    print_caveats(report);
    Ok(())
}

fn print_rule(tuned: &Tuned, report: &Report) -> anyhow::Result<()> {
    outln!("{} over {:.2} h", title_of(tuned), report.hours)?;
    if let ([own], true, true) = (&tuned.tried[..], tuned.is_learned, tuned.is_judged) {
        outln!(
            "  as it is it fires {}, {:.1} a day; its bounds are learned from the servers and none is to be set: \
             what it is held to is `false_alarms` of the configuration (1 per day here)\n",
            counted(own.firings, "time"),
            own.per_day
        )?;
        return Ok(());
    }
    outln!("  {:>10}  {:>8}  {:>8}", "bound", "firings", "a day")?;
    for t in &tuned.tried {
        let is_own = (t.bound - tuned.bound).abs() < 1e-9;
        let mut mark = match (is_own, Some(t.bound) == tuned.advised) {
            (true, true) => "  <- the rule's, and advised",
            (true, false) => "  <- the rule's",
            (false, true) => "  <- advised",
            _ => "",
        }
        .to_owned();
        if !t.is_reachable {
            mark += &format!("  cannot be reached by {}", counted(tuned.ranks, "rank"));
        }
        outln!("  {:>10.3}  {:>8}  {:>8.1}{mark}", t.bound, t.firings, t.per_day)?;
    }
    match tuned.advised {
        Some(_) => {}
        None if !tuned.is_judged => {
            outln!("  never judged here: its signal, or a group of it, never arrived")?;
        }
        // What advice needs is said once, at the end.
        None if report.is_too_short() => {
            outln!("  none is advised: the recordings are too short")?;
        }
        None => outln!(
            "  no bound that {} can reach stays within {} a day here",
            counted(tuned.ranks, "rank"),
            report.limit_per_day
        )?,
    }
    outln!()?;
    Ok(())
}

fn print_caveats(report: &Report) {
    anstream::eprintln!(
        "every firing is counted as a false alarm: what is said here holds only if nothing in these recordings was a true incident"
    );
    if report.is_too_short() {
        anstream::eprintln!("{}", report.too_short());
    } else if report.hours < SURE * report.advises_from_hours {
        anstream::eprintln!(
            "{:.1} h tell the rates roughly: a bound that never fired here may still fire {:.1} times a day; from {:.0} h on it \
             is within {} a day",
            report.hours,
            SURE * 24.0 / report.hours,
            SURE * report.advises_from_hours,
            report.shown_per_day()
        );
    }
}

/// What never happened in a time happens in the long run less than so many times in it, at 95 % confidence (the rule of
/// three: Hanley and Lippman-Hand, JAMA 249, 1983).
const SURE: f64 = 3.0;

/// From how many hours on a recording tells so many firings a day from none at all: one is expected in it. Without any
/// that are tolerable, a day.
fn advises_from(per_day: f64) -> f64 {
    24.0 / if per_day > 0.0 { per_day } else { 1.0 }
}

impl Report {
    /// The rate that advice is about: no recording shows a rate of none.
    fn shown_per_day(&self) -> f64 {
        24.0 / self.advises_from_hours
    }

    fn is_too_short(&self) -> bool {
        self.hours < self.advises_from_hours
    }

    /// What the recordings are, and what advice needs.
    fn too_short(&self) -> String {
        format!(
            "the recordings cover {}; a bound for {} a day is advised from {:.0} h on, and sure from {:.0} h on",
            seconds_of(self.hours * 3600.0),
            self.shown_per_day(),
            self.advises_from_hours.ceil(),
            (SURE * self.advises_from_hours).ceil()
        )
    }
}

/// `dp-load-skew: max_over_mean(load) above its bound, its other condition as it is,`.
fn title_of(tuned: &Tuned) -> String {
    let Tuned { rule, statistic, side, .. } = tuned;
    match tuned.others {
        0 => format!("{rule}: {statistic}"),
        1 => format!("{rule}: {statistic} {side} its bound, the other condition as it is,"),
        n => format!("{rule}: {statistic} {side} its bound, the {n} other conditions as they are,"),
    }
}

fn rules_of(paths: &[String]) -> anyhow::Result<Config> {
    let text = match paths {
        [] => file::DEFAULTS.to_owned(),
        paths => {
            let list: Vec<String> =
                paths.iter().map(|p| serde_json::to_string(p).unwrap_or_default()).collect();
            format!("rules: [{}]\n", list.join(", "))
        }
    };
    let loaded = file::load("--rules", &text, &|p| configuration::rule_files(&PathBuf::from(p)));
    let diagnostics = loaded.diagnostics.into_iter().map(|d| d.without_lines_of("--rules"));
    print_diagnostics(&diagnostics.collect::<Vec<_>>());
    loaded.config.ok_or_else(|| super::wrong("the rules cannot be used"))
}

/// A loose bound may fire once and never clear, so its low rate counts only if all stricter bounds have a
/// low rate, too. One that nothing can cross is no advice.
fn advised_of(tried: &[BoundResult], limit_per_day: f64) -> Option<f64> {
    let quiet = tried.iter().rev().take_while(|t| t.per_day <= limit_per_day);
    quiet.last().filter(|t| t.is_reachable).map(|t| t.bound)
}

/// Whether a group of so many ranks can cross `bound`; of an unknown number nobody knows.
fn is_reachable(condition: &Condition, bound: f64, ranks: usize) -> bool {
    match (condition.statistic.utmost(ranks), condition.direction) {
        _ if ranks == 0 => true,
        (Some(utmost), Direction::Above) => bound < utmost,
        (Some(utmost), Direction::Below) => bound > utmost,
        (None, _) => true,
    }
}

/// One condition of a rule, and the bounds to try for it.
struct VariedCondition<'a> {
    rule: &'a Rule,
    index: usize,
    /// From the most sensitive one.
    bounds: Vec<f64>,
}

impl<'a> VariedCondition<'a> {
    /// Every condition of the rule's trigger.
    fn all_of(rule: &'a Rule, catalog: &Catalog) -> Vec<Self> {
        let indices = 0..rule.trigger.conditions.len();
        indices.map(|index| Self { rule, index, bounds: Vec::new() }.with_bounds(catalog)).collect()
    }

    /// Keeps the bounds that `check` would accept together with the clears that follow from them, and
    /// always the rule's own.
    fn with_bounds(mut self, catalog: &Catalog) -> Self {
        let (own, even) = (self.own(), self.own().statistic.even());
        if own.statistic == Statistic::Factors {
            self.bounds = vec![own.bound];
            return self;
        }
        let is_possible = |bound: f64| {
            let clears_well = |c: &Condition| !self.moves(c) || can_clear(&self.moved(c, bound), catalog);
            can_trigger(&Condition { bound, ..own.clone() }, catalog)
                && self.rule.clear.conditions.iter().all(clears_well)
        };
        let bounds =
            FACTORS.into_iter().map(|f| if f == 1.0 { own.bound } else { even + (own.bound - even) * f });
        let mut bounds: Vec<f64> = bounds.filter(|b| *b == own.bound || is_possible(*b)).collect();
        bounds.sort_by(f64::total_cmp);
        bounds.dedup();
        if own.direction == Direction::Below {
            bounds.reverse();
        }
        self.bounds = bounds;
        self
    }

    fn own(&self) -> &'a Condition {
        &self.rule.trigger.conditions[self.index]
    }

    fn copies(&self) -> impl Iterator<Item = Rule> {
        self.bounds.iter().enumerate().map(|(i, bound)| self.copy(i, *bound))
    }

    /// The rule with another bound of this condition.
    fn copy(&self, i: usize, bound: f64) -> Rule {
        let mut copy = self.rule.clone();
        copy.name = self.copy_name(i).into();
        copy.trigger.conditions[self.index].bound = bound;
        // The clear moves along; otherwise a stricter trigger could stop at once.
        for clear in copy.clear.conditions.iter_mut().filter(|c| self.moves(c)) {
            *clear = self.moved(clear, bound);
        }
        copy
    }

    fn moves(&self, clear: &Condition) -> bool {
        let key = |c: &Condition| (c.statistic, c.signal, c.direction);
        key(clear) == key(self.own())
    }

    /// The clear for a trigger at `bound`, scaled from the even value as the trigger is, so that it stays
    /// on its side of the even value and behind the trigger.
    fn moved(&self, clear: &Condition, bound: f64) -> Condition {
        let (own, even) = (self.own().bound, clear.statistic.even());
        if own == bound || own == even {
            return clear.clone();
        }
        let factor = (bound - even) / (own - even);
        Condition { bound: even + (clear.bound - even) * factor, ..clear.clone() }
    }

    fn copy_name(&self, i: usize) -> String {
        format!("{}#{}.{i}", self.rule.name, self.index)
    }
}

#[cfg(test)]
mod tests;
