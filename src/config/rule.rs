//! A rule in YAML, and its check.
//!
//! `rules/README.md` is the manual of this language. The types here parse it and carry the JSON
//! schema; `check` turns them into [`Rule`]s and reports every problem.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

#[cfg(test)]
use schemars::JsonSchema;
use serde::Deserialize;

use super::capture::{CaptureText, capture_of};
use super::condition::{Context, TriggerText, check_factors, check_min_mean, clear_of, trigger_of};
use super::de::{Field, did_you_mean};
use super::diagnostic::Findings;
use super::effective::Settings;
use super::names::{Names, names_of};
use super::quantity::Span;
use super::tree::Place;
use skewtrap_core::capture::CaptureSpec;
use skewtrap_core::capture::Limits;
use skewtrap_core::rule::guard::GuardError;
use skewtrap_core::rule::{Guard, Rule, Severity, Statistic, Trigger};
use skewtrap_core::signal::catalog::Catalog;
use skewtrap_core::suggest::nearest;
use skewtrap_trace::labels::{LabelValue, Labels};
use skewtrap_trace::rank::Axis;

/// An impact on this share of the requests is worth a window.
const MIN_IMPACT: f64 = 0.05;

/// One rule.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct RuleText {
    /// Unique; state and budgets are kept under it. Lower-case letters, digits and `-`.
    #[cfg_attr(test, schemars(extend("x-required" = true)))]
    pub name: Field<String>,
    /// One sentence for people.
    about: Field<String>,
    /// The signal that is compared (`skewtrap signals` lists them).
    signal: Field<String>,
    /// The label, or labels, that distinguish the compared members. Default `dp_rank`.
    across: Field<Names>,
    /// Labels on which the members of a group agree. Default `[target, role]`.
    within: Field<Names>,
    /// When it fires.
    #[cfg_attr(test, schemars(extend("x-required" = true)))]
    trigger: Field<TriggerText>,
    /// When it stops firing. Default: the trigger's bounds (`departure` at 0.7 of its bound), `within_chance` at 0.75
    /// of `beyond_chance`, for 10s or twice the trigger's `for`, whichever is longer.
    clear: Field<TriggerText>,
    /// Keep firing this long after the clear held. Default 0s.
    keep_firing_for: Field<Span>,
    /// Rest this long after a firing before the next can begin. Default 0s.
    rearm_after: Field<Span>,
    /// No verdict on a group whose mean is below this. Default 0.
    min_mean: Field<f64>,
    /// No verdict on a group with fewer members. Default 2.
    min_members: Field<u32>,
    /// No window for a trouble whose impact, the share of all requests that would be better off were the load even, is
    /// smaller, where it is known (the rules on `factors`). Default 0.05.
    min_impact: Field<f64>,
    /// The old name of `min_impact`.
    #[cfg_attr(test, schemars(extend("deprecated" = true)))]
    min_harm: Field<f64>,
    /// What it finds while a trouble that a rule on `factors` tells is under way on its server, or has just ended, is a
    /// symptom of that trouble and no incident of its own. Default `false`.
    joins_trouble: Field<bool>,
    /// What else must be true, in CEL over the signals: `ranks(load) >= 2`.
    only_if: Field<String>,
    /// What to capture when it fires.
    capture: Field<CaptureText>,
    /// How often it may capture.
    limits: Field<LimitsText>,
    /// How bad it is. Default `warning`.
    severity: Field<Severity>,
    /// Names of receivers. Default: those that take every message.
    notify: Field<Names>,
    /// Free labels for routing.
    labels: Field<BTreeMap<String, Field<String>>>,
    /// `false` takes it out. Default `true`.
    enabled: Field<bool>,
}

/// How often a rule may open a window.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct LimitsText {
    /// At least this long between two windows. Default 10m.
    cooldown: Field<Span>,
    /// At most this many windows ... Default 4.
    captures: Field<u32>,
    /// ... in any stretch of this length. Default 24h.
    per: Field<Span>,
}

/// A valid rule, and the source of each of its settings.
#[derive(Clone, Debug)]
pub struct CheckedRule {
    /// The rule.
    pub rule: Rule,
    /// Its settings.
    pub settings: Settings,
    /// The file that it is in.
    pub file: Arc<str>,
    /// The place of its name.
    pub place: Place,
    /// Whether something of it was an error: then it is not what was meant.
    pub has_errors: bool,
}

/// A receiver that a rule names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notified {
    /// The receiver.
    pub name: Arc<str>,
    /// The file of the rule ...
    pub file: Arc<str>,
    /// ... and the place of the name there.
    pub place: Place,
}

impl Notified {
    /// That it is none of the receivers that are known: a message and a hint.
    pub fn unknown_among(&self, known: &[&str]) -> (String, String) {
        let hint = match known.is_empty() {
            true => "`receivers:` in the configuration defines them".to_owned(),
            false => did_you_mean(&self.name, known),
        };
        (format!("no receiver is called `{}`", self.name), hint)
    }
}

/// The receivers that a rule names, unless it is taken out.
pub fn notified_by(text: &RuleText, file: &Arc<str>) -> Vec<Notified> {
    let named = text.notify.placed().filter(|_| text.enabled.get() != Some(&false));
    let named = named.map(|(names, at)| names_of(names, at)).unwrap_or_default();
    named.into_iter().map(|(name, place)| Notified { name: name.into(), file: file.clone(), place }).collect()
}

/// Checks one rule. `None` when it is disabled, or invalid, which is reported in `findings`.
pub fn check(
    text: &RuleText,
    place: Place,
    catalog: &Catalog,
    default_capture: &CaptureSpec,
    parent: &Settings,
    findings: &mut Findings<'_>,
) -> Option<CheckedRule> {
    let errors_before = findings.errors();
    let mut settings = Settings::over(findings.file().clone(), parent);
    let name = check_name(&text.name, place, findings);
    settings.record_option("name", name.as_deref(), text.name.place());
    settings.record_option("about", text.about.get(), text.about.place());
    settings.record_option("signal", text.signal.get(), text.signal.place());
    let (across, within) = grouping_of(text, catalog, &mut settings, findings);
    let context = Context { signal: &text.signal, catalog, has_other_conditions: !text.only_if.is_absent() };
    let trigger = match text.trigger.placed() {
        Some((trigger, at)) => trigger_of(trigger, at, context, &mut settings, findings),
        None => {
            check_has_trigger(text, place, findings);
            None
        }
    };
    if let (Some(trigger), Some((min_mean, at))) = (&trigger, text.min_mean.placed()) {
        check_min_mean(*min_mean, &trigger.conditions[0], catalog, at, findings);
    }
    let clear = trigger.as_ref().and_then(|t| clear_of(&text.clear, t, context, &mut settings, findings));
    let only_if = guard_of(&text.only_if, catalog, &mut settings, findings);
    let capture = capture_of(&text.capture, default_capture, &mut settings, findings);
    let limits = limits_of(&text.limits, &mut settings, findings);
    let min_members = min_members_of(text, place, &mut settings, findings);
    let min_impact = min_impact_of(text, trigger.as_ref(), findings);
    let at = [&text.across.place(), &text.within.place(), &text.trigger.place()].into_iter().find_map(|p| *p);
    check_factors(trigger.as_ref(), &across, &within, at.unwrap_or(place), findings);
    let severity = text.severity.or(Severity::Warning);
    settings.record("severity", severity.word(), text.severity.place());
    let notify = notify_of(text, &mut settings);
    let labels = free_labels(&text.labels);
    settings.record_option("labels", (!labels.0.is_empty()).then_some(&labels), text.labels.place());
    settings.resolve("enabled", &text.enabled, true);
    if text.enabled.get() == Some(&false) {
        return None;
    }
    let rule = Rule {
        name: name?,
        about: text.about.get().cloned(),
        across,
        within,
        trigger: trigger?,
        clear: clear?,
        keep_firing_for: settings.resolve("keep_firing_for", &text.keep_firing_for, Span::default()).0,
        rearm_after: settings.resolve("rearm_after", &text.rearm_after, Span::default()).0,
        only_if,
        min_mean: settings.resolve("min_mean", &text.min_mean, 0.0),
        min_members,
        min_impact: settings.resolve("min_impact", min_impact, MIN_IMPACT),
        joins_trouble: settings.resolve("joins_trouble", &text.joins_trouble, false),
        capture,
        limits,
        severity,
        notify,
        labels,
    };
    let place = text.name.place().unwrap_or(place);
    let has_errors = findings.errors() > errors_before;
    Some(CheckedRule { rule, settings, file: findings.file().clone(), place, has_errors })
}

/// Who is compared, and within which group.
fn grouping_of(
    text: &RuleText,
    catalog: &Catalog,
    settings: &mut Settings,
    findings: &mut Findings<'_>,
) -> (Vec<Arc<str>>, Vec<Arc<str>>) {
    let has_own_labels = catalog.has_own();
    let across = labels_of("across", &text.across, &["dp_rank"], has_own_labels, settings, findings);
    let within: Vec<&str> =
        ["target", "role"].into_iter().filter(|w| !across.iter().any(|a| **a == **w)).collect();
    let within = labels_of("within", &text.within, &within, has_own_labels, settings, findings);
    check_grouping(text, &across, &within, findings);
    (across, within)
}

fn check_has_trigger(text: &RuleText, place: Place, findings: &mut Findings<'_>) {
    if text.trigger.is_absent() && !findings.is_misspelt(place, &["trigger"]) {
        let hint = "write for example `trigger: { max_over_mean: 1.5, beyond_chance: 4, for: 3s }`";
        let at = text.name.place().unwrap_or(place);
        findings.error(at, "the rule has no `trigger`", Some(hint.into()));
    }
}

fn min_members_of(
    text: &RuleText,
    place: Place,
    settings: &mut Settings,
    findings: &mut Findings<'_>,
) -> usize {
    let min_members = settings.resolve("min_members", &text.min_members, 2);
    if min_members < 2 {
        let at = text.min_members.place().unwrap_or(place);
        findings.error(at, "one member has no peers to be compared with", Some("write 2 or more".into()));
    }
    min_members as usize
}

/// The receivers that the rule names; none means those that take every message.
fn notify_of(text: &RuleText, settings: &mut Settings) -> Vec<Arc<str>> {
    let named = text.notify.placed().map(|(names, at)| names_of(names, at)).unwrap_or_default();
    let names: Vec<&str> = named.iter().map(|(name, _)| *name).collect();
    let shown = if names.is_empty() { "who takes every message".to_owned() } else { names.join(", ") };
    settings.record("notify", shown, text.notify.place());
    names.into_iter().map(Into::into).collect()
}

/// `min_impact`, or what is written under its old name.
fn min_impact_of<'t>(
    text: &'t RuleText,
    trigger: Option<&Trigger>,
    findings: &mut Findings<'_>,
) -> &'t Field<f64> {
    if let Some(at) = text.min_harm.place() {
        match text.min_impact.is_absent() {
            true => {
                findings.warn(at, "`min_harm` is called `min_impact` now", Some("write `min_impact`".into()))
            }
            false => findings.error(
                at,
                "`min_harm` is the old name of `min_impact`, which is set too",
                Some("take `min_harm` out".into()),
            ),
        }
    }
    let field = if text.min_impact.is_absent() { &text.min_harm } else { &text.min_impact };
    if let Some((share, at)) = field.placed()
        && !(0.0..=1.0).contains(share)
    {
        let hint = Some("write 0.05, say".into());
        findings.error(at, "`min_impact` is a share of the requests, from 0 to 1", hint);
    }
    let knows_impact = trigger.is_none_or(|t| t.conditions.iter().any(|c| c.statistic == Statistic::Factors));
    if let Some(at) = field.place()
        && !knows_impact
    {
        let message = "`min_impact` applies to rules on `factors` only: the impact of no other is known";
        findings.warn(at, message, Some("take it out; `limits` says how often this rule captures".into()));
    }
    field
}

fn check_name(name: &Field<String>, place: Place, findings: &mut Findings<'_>) -> Option<Arc<str>> {
    match name {
        Field::Given(name, at) => {
            let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            if name.is_empty() || name.len() > 80 || !name.chars().all(fits) {
                let message = format!("`{name}` is no name for a rule: it becomes part of file names");
                findings.error(*at, message, Some("use lower-case letters, digits and `-`".into()));
                return None;
            }
            Some(name.as_str().into())
        }
        Field::Absent if findings.is_misspelt(place, &["name"]) => None,
        Field::Absent => {
            findings.error(place, "the rule has no `name`", Some("write `name: dp-load-skew`, say".into()));
            None
        }
        Field::Wrong(_) => None,
    }
}

fn labels_of(
    key: &str,
    names: &Field<Names>,
    default: &[&str],
    has_own_labels: bool,
    settings: &mut Settings,
    findings: &mut Findings<'_>,
) -> Vec<Arc<str>> {
    let Some((names, place)) = names.placed() else {
        settings.record_unset(key, default.join(", "));
        return default.iter().map(|d| (*d).into()).collect();
    };
    let names = names_of(names, place);
    let all: Vec<&str> = names.iter().map(|(n, _)| *n).collect();
    settings.record_set(key, all.join(", "), place);
    let known: Vec<&str> = Axis::ALL.iter().map(|a| a.label()).chain(["target", "role"]).collect();
    for (name, at) in &names {
        if known.contains(name) {
            continue;
        }
        let message = format!("no built-in source has a label `{name}`");
        // Patterns and queries have labels of their own; a name that is almost a known one is doubtful all the same.
        match has_own_labels {
            false => findings.error(*at, message, Some(did_you_mean(name, &known))),
            true if nearest(name, known.iter().copied()).is_some() => {
                findings.warn(*at, message, Some(did_you_mean(name, &known)));
            }
            true => {}
        }
    }
    all.into_iter().map(Arc::from).collect()
}

fn check_grouping(text: &RuleText, across: &[Arc<str>], within: &[Arc<str>], findings: &mut Findings<'_>) {
    let place = text.across.place().or_else(|| text.within.place()).unwrap_or_default();
    if across.is_empty() {
        findings.error(place, "`across` names no label: nothing would be compared", None);
    }
    if let Some(both) = across.iter().find(|a| within.contains(a)) {
        let message =
            format!("`{both}` cannot be in `across` and in `within`: every group would have one member");
        let hint = match &**both {
            "target" => Some("to compare servers with each other write `within: [role]`".to_owned()),
            _ => None,
        };
        findings.error(place, message, hint);
    }
}

fn guard_of(
    text: &Field<String>,
    catalog: &Catalog,
    settings: &mut Settings,
    findings: &mut Findings<'_>,
) -> Option<Guard> {
    settings.record_option("only_if", text.get(), text.place());
    let (source, place) = text.placed()?;
    match Guard::new(source, catalog) {
        Ok(guard) => Some(guard),
        Err(GuardError::Syntax { line: 1, column, message }) => {
            let column = place.column + u32::try_from(column).unwrap_or(1) - 1;
            findings.error(Place { column, width: 1, ..place }, format!("not valid CEL: {message}"), None);
            None
        }
        Err(e) => {
            findings.error(narrowed(place, source, &e), e.to_string(), None);
            None
        }
    }
}

/// The place of the unknown name itself, if it can be found in the first line of the guard.
fn narrowed(place: Place, source: &str, e: &GuardError) -> Place {
    let (GuardError::UnknownSignal { name, .. }
    | GuardError::UnknownFunction { name, .. }
    | GuardError::Arguments { name, .. }) = e
    else {
        return place;
    };
    match source.lines().next().and_then(|l| l.find(name.as_str())) {
        Some(at) => Place {
            column: place.column + source[..at].chars().count() as u32,
            width: name.chars().count() as u32,
            ..place
        },
        None => place,
    }
}

fn limits_of(text: &Field<LimitsText>, settings: &mut Settings, findings: &mut Findings<'_>) -> Limits {
    let text = text.get().cloned().unwrap_or_default();
    let hours = |h: u64| Span(Duration::from_secs(h * 3600));
    let limits = Limits {
        cooldown: settings.resolve("limits.cooldown", &text.cooldown, Span(Duration::from_secs(600))).0,
        captures: settings.resolve("limits.captures", &text.captures, 4),
        per: settings.resolve("limits.per", &text.per, hours(24)).0,
    };
    if limits.captures == 0
        && let Some(place) = text.captures.place()
    {
        findings.error(place, "no capture at all", Some("write `capture: none` instead".into()));
    }
    if let Some(place) = text.per.place()
        && limits.per < limits.cooldown
    {
        findings.error(
            place,
            "`per` is shorter than `cooldown`: the number of captures would not matter",
            None,
        );
    }
    limits
}

fn free_labels(text: &Field<BTreeMap<String, Field<String>>>) -> Labels {
    let given = text.get().into_iter().flatten();
    let label = |(k, v): (&String, &Field<String>)| {
        v.get().map(|v| (Arc::from(k.as_str()), LabelValue::Text(v.as_str().into())))
    };
    Labels(given.filter_map(label).collect())
}
