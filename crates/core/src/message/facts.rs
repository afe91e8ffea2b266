//! The facts of a message: answers to the same ten questions, a sentence each.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Origin;
use super::words::{
    blame_came_back, blamed_before, bytes, counted, deviation_bound, figure, rank_name, seconds, stood_still,
    utc, were,
};
use crate::amount::AtMost;
use crate::capture::captured::{Captured, Quality};
use crate::cause::{Cause, Certainty};
use crate::finding::{Finding, MemberValue, Statistic};
use crate::incident::{
    BeforeAndNow, CaptureOutcome, Death, EndReason, Escalation, FollowUp, Incident, Joined, STANDING,
};
use crate::signal::sample::SampleEvidence;
use skewtrap_trace::labels::Labels;

/// How many members are listed; the others are counted.
const MEMBERS_SHOWN: usize = 8;
/// What was seen so soon after the firing is what it fired by.
const LATER: Duration = Duration::from_secs(5);
/// The longest evidence, in characters.
const EVIDENCE_CHARS: usize = 300;

/// What a person needs to know, a sentence each. Only `how_much` may be empty: a capture that somebody
/// requested has no statistic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The rule, its severity and its description.
    pub rule: String,
    /// The estimated onset, its error, when the rule fired and cleared.
    pub since: String,
    /// The rank at fault, and its group.
    pub rank: String,
    /// The statistic, its bound, every member's value.
    pub how_much: String,
    /// What clients notice: what the whole server did before, and does now.
    #[serde(default, skip_serializing_if = "String::is_empty", alias = "harm")]
    pub impact: String,
    /// The log line or sample that first shows the deviation.
    pub evidence: String,
    /// Why, as far as the numbers tell without a capture, and what speaks for it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cause: String,
    /// What was looked at and is not the cause, and what cannot be known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub not_it: String,
    /// Where to look first, as long as it lasts and a cause is known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub next: String,
    /// What other rules found of the same trouble, in order.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub symptoms: String,
    /// That the server died, with the last line of its log about that.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub death: String,
    /// What was captured, or why not.
    pub capture: String,
    /// The result of comparing the ranks.
    pub verdict: String,
    /// What a person said that it was worth.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mark: String,
    /// What the window cost the server.
    pub cost: String,
    pub bundle: String,
    pub open: String,
}

impl Facts {
    /// The facts of an incident as it is now.
    pub fn of(incident: &Incident, origin: &Origin) -> Self {
        Self {
            rule: rule(incident),
            since: since(incident),
            rank: rank(incident),
            how_much: how_much(incident),
            impact: impact(incident),
            evidence: evidence(&incident.finding),
            cause: incident.cause.as_ref().map_or_else(String::new, cause),
            not_it: incident.cause.as_ref().map_or_else(String::new, not_it),
            next: next_step(incident).unwrap_or_default().to_owned(),
            symptoms: symptoms(incident),
            death: incident.died.as_ref().map_or_else(String::new, death),
            capture: captures(incident),
            verdict: verdict(incident),
            mark: mark(incident),
            cost: costs(incident),
            bundle: bundle(incident, origin),
            open: open(incident, origin),
        }
    }

    /// The names and sentences that are not empty, in reading order.
    pub fn lines(&self) -> Vec<(&'static str, &str)> {
        let all: [(&'static str, &str); 17] = [
            ("rule", &self.rule),
            ("since", &self.since),
            ("rank", &self.rank),
            ("how much", &self.how_much),
            ("impact", &self.impact),
            ("evidence", &self.evidence),
            ("cause", &self.cause),
            ("not it", &self.not_it),
            ("next", &self.next),
            ("symptoms", &self.symptoms),
            ("death", &self.death),
            ("capture", &self.capture),
            ("verdict", &self.verdict),
            ("mark", &self.mark),
            ("cost", &self.cost),
            ("bundle", &self.bundle),
            ("open", &self.open),
        ];
        all.into_iter().filter(|(_, sentence)| !sentence.is_empty()).collect()
    }
}

/// Where to look first, as long as it lasts and a cause is known.
pub fn next_step(incident: &Incident) -> Option<&'static str> {
    let lasts = incident.resolved_at.is_none() && incident.died.is_none();
    incident.cause.as_ref().filter(|_| lasts)?.kind.next_step()
}

fn rule(incident: &Incident) -> String {
    let about = incident.about.as_deref().map(|a| format!(": {a}")).unwrap_or_default();
    format!("{} ({}){about}", incident.rule, incident.severity.word())
}

fn since(incident: &Incident) -> String {
    let onset = incident.finding.onset;
    if *incident.rule == *STANDING {
        let over = incident.resolved_at.map_or_else(String::new, |end| format!(", over at {}", utc(end)));
        return format!("before {}, when its ranks were first compared{over}", utc(onset));
    }
    if incident.finding.measured.is_none() {
        return asked(incident);
    }
    let mut fired = format!(
        "{} ± {} s, fired {} later",
        utc(onset),
        figure(incident.finding.onset_error_s),
        seconds(incident.fired_at.since(onset).as_secs_f64())
    );
    if let Some(last) = incident.returned.last() {
        let after = seconds(last.after().as_secs_f64());
        fired += &match incident.returned.len() {
            1 => format!("; it seemed to be over at {} and came back after {after}", utc(last.ended)),
            n => format!(
                "; it seemed to be over {n} times, last at {}, and came back after {after}",
                utc(last.ended)
            ),
        };
    }
    match incident.resolved_at {
        Some(end) if incident.end == Some(EndReason::BecameUsual) => {
            let lasted = seconds(end.since(onset).as_secs_f64());
            format!("{fired}; it went on for {lasted} and counts as usual from now on, since {}", utc(end))
        }
        Some(end) if incident.ended_unseen => {
            format!(
                "{fired}; its end was not seen, since the agent was restarted: it was over at {}",
                utc(end)
            )
        }
        Some(end) if incident.end == Some(EndReason::NotCompared) => {
            format!(
                "{fired}; its end was not seen, since its ranks could not be compared any more: taken to be over at {}",
                utc(end)
            )
        }
        Some(end) => {
            format!("{fired}, over at {} after {}", utc(end), seconds(end.since(onset).as_secs_f64()))
        }
        None => fired,
    }
}

/// Of a window that somebody asked for, or of a server's death, nothing was measured, and no rule fired.
fn asked(incident: &Incident) -> String {
    let (onset, at) = (incident.finding.onset, incident.fired_at);
    let began = match (incident.is_by_hand(), at.since(onset) >= Duration::from_secs(1)) {
        (true, true) => format!("asked for at {}, for an alert of {}", utc(at), utc(onset)),
        (true, false) => format!("asked for at {}", utc(at)),
        (false, _) => utc(onset),
    };
    match incident.resolved_at {
        Some(end) => format!("{began}, over at {}", utc(end)),
        None => began,
    }
}

fn rank(incident: &Incident) -> String {
    if incident.finding.rank.0.is_empty() && incident.finding.members.is_empty() {
        return format!("none in particular, on {}", incident.target);
    }
    let group = incident.group.to_string();
    let group = if group.is_empty() { String::new() } else { format!(" ({group})") };
    let (rank, members) = (rank_name(&incident.finding.rank), incident.finding.members.len());
    // A replica is a server itself.
    let on = if *rank == *incident.target { String::new() } else { format!(" on {}", incident.target) };
    let before = blamed_before(incident);
    let last = incident.blamed_before.iter().rev().find(|b| b.rank != incident.finding.rank);
    let moved = last.map_or_else(String::new, |last| {
        let when = if blame_came_back(incident) { "for a time" } else { "first" };
        format!(
            "; {when} {} blamed, until {}: it is one trouble, and what stands here is of {rank}",
            were(&before),
            utc(last.until)
        )
    });
    format!("{rank} of {members}{on}{group}{moved}")
}

/// The statistic with its bound, then the blamed member, then the others in their order. Empty for a
/// finding without a measurement.
fn how_much(incident: &Incident) -> String {
    let finding = &incident.finding;
    let Some(measured) = &finding.measured else { return String::new() };
    let shown = members(finding, &finding.members);
    // A factor is found in arrivals and work; what the members show is the signal of the rule.
    let link = match (&measured.members_signal, measured.statistic) {
        (Some(signal), _) => format!("; {signal} when it fired: "),
        (None, Statistic::Factors) => "; the rule's signal when it fired: ".into(),
        (None, _) => ": ".into(),
    };
    let bound = deviation_bound(measured);
    // What departed in words, where a factor did: a number of times a bound says nothing by itself.
    let measured = match (finding.departure(), stood_still(incident)) {
        (Some(said), Some(still)) => format!("{} ({still})", one_line(said)),
        (None, Some(still)) => still,
        (Some(said), None) => {
            format!("{} ({} times the firing bound)", one_line(said), figure(measured.value))
        }
        (None, None) => bound,
    };
    let since = incident.impact.as_ref().filter(|impact| impact.at.since(incident.fired_at) >= LATER);
    let since = since.map(|impact| members(finding, &impact.members)).filter(|shown| !shown.is_empty());
    let word = if incident.resolved_at.is_some() { "before it ended" } else { "now" };
    let since = since.map_or_else(String::new, |shown| format!("; {word}: {shown}"));
    if shown.is_empty() { measured } else { format!("{measured}{link}{shown}{since}") }
}

/// The blamed member's value first, then those of the others.
fn members(finding: &Finding, values: &[MemberValue]) -> String {
    let (blamed, others): (Vec<_>, Vec<_>) = values.iter().partition(|m| m.rank == finding.rank);
    let shown: Vec<String> = blamed
        .into_iter()
        .chain(others)
        .take(MEMBERS_SHOWN)
        .map(|m| {
            format!("{} {}{}", rank_name(&m.rank), figure(m.value), if m.stale { " (silent)" } else { "" })
        })
        .collect();
    let more = values.len().saturating_sub(MEMBERS_SHOWN);
    let more = if more > 0 && !shown.is_empty() { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

/// `31 requests (42 % of all) would be served faster if the load were even; before the onset and now: tokens a
/// second of all ranks 4100 -> 3200`.
fn impact(incident: &Incident) -> String {
    let mut parts: Vec<String> = Vec::new();
    if let Some(impact) = incident.finding.impact.as_ref().filter(|impact| impact.requests >= 1.0) {
        parts.push(format!(
            "{} ({:.0} % of all) would be served faster if the load were even",
            counted(impact.requests.round() as usize, "request"),
            impact.share * 100.0
        ));
    }
    let seen = incident.impact.as_ref();
    let course = |name: &str, course: Option<BeforeAndNow>, word: fn(f64) -> String| {
        course.map(|c| format!("{name} {} -> {}", word(c.before), word(c.now)))
    };
    let numbers = [
        course("tokens a second of all ranks", seen.and_then(|i| i.tokens_per_s), figure),
        course("time to the first token", seen.and_then(|i| i.first_token_s), seconds),
        course("queued requests", seen.and_then(|i| i.waiting_reqs), figure),
    ];
    let numbers: Vec<String> = numbers.into_iter().flatten().collect();
    if !numbers.is_empty() {
        let now = if incident.resolved_at.is_some() { "shortly before its end" } else { "now" };
        parts.push(format!("before the onset and {now}: {}", numbers.join(", ")));
    }
    one_line(&parts.join("; "))
}

/// The log line that showed the deviation, else the sample, else the numbers.
fn evidence(finding: &Finding) -> String {
    let numbers = finding.evidence.as_deref();
    let text = match finding.shown_by.as_ref().filter(|shown| finding.is_shown_by(shown)) {
        Some(SampleEvidence { line: Some(line), .. }) => line.clone(),
        Some(SampleEvidence { at, value, source, line: None }) => {
            let measured = finding.measured.as_ref();
            let signal = measured.map_or("", |m| m.members_signal.as_deref().unwrap_or(&m.signal));
            let sample = format!("{signal} {} at {}, by {}", figure(*value), utc(*at), source.word());
            numbers.map_or_else(|| sample.clone(), |numbers| format!("{sample}; when it fired {numbers}"))
        }
        None => numbers.unwrap_or("no single line").to_owned(),
    };
    one_line(&text)
}

fn one_line(text: &str) -> String {
    let line: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(EVIDENCE_CHARS + 1).collect();
    match line.char_indices().nth(EVIDENCE_CHARS) {
        Some((cut, _)) => format!("{}…", &line[..cut]),
        None => line,
    }
}

/// `the router sends DP2 more (likely): its share of requests 25 % -> 61 %; explains 94 % of it`.
fn cause(cause: &Cause) -> String {
    let mut text = match cause.certainty {
        Certainty::Likely => format!("{} (likely)", cause.statement),
        Certainty::Consistent => format!("consistent with: {}", cause.statement),
        Certainty::Unknown => cause.statement.clone(),
    };
    if !cause.support.is_empty() {
        text += &format!(": {}", cause.support.join("; "));
    }
    if let Some(explains) = cause.explains {
        text += &format!("; explains {:.0} % of it", explains * 100.0);
    }
    one_line(&text)
}

fn not_it(cause: &Cause) -> String {
    let mut parts = Vec::new();
    if !cause.ruled_out.is_empty() {
        parts.push(format!("ruled out: {}", cause.ruled_out.join("; ")));
    }
    if !cause.unknown.is_empty() {
        parts.push(format!("unknown: {}", cause.unknown.join("; ")));
    }
    one_line(&parts.join(". "))
}

/// `kv-usage-skew: DP1 is high from 12:00:05 to 12:01:10, max_over_mean(kv_usage) 2.10 against 1.40`.
fn symptoms(incident: &Incident) -> String {
    let one = |joined: &Joined| {
        let until = joined.until.map_or_else(String::new, |until| format!(" to {}", utc(until)));
        let (rank, side, from) = (rank_name(&joined.rank), joined.side.word(), utc(joined.at));
        let what = if joined.what.is_empty() { String::new() } else { format!(", {}", joined.what) };
        format!("{}: {rank} is {side} from {from}{until}{what}", joined.rule)
    };
    one_line(&incident.joined.iter().map(one).collect::<Vec<_>>().join("; "))
}

/// What whoever restarts the server wants to know first: whether the agent may have had a part in it.
fn death(death: &Death) -> String {
    let window = match death.window_open {
        true => "a window of the agent's was open then",
        false => "no window of the agent's was open then",
    };
    one_line(&format!("{window}; at {} the server's log said: {}", utc(death.at), death.line))
}

/// The last capture, and its relation to those before.
fn captures(incident: &Incident) -> String {
    let mut text = match incident.capture {
        // What is wanted of the incident's rule is decided until it ends.
        CaptureOutcome::None if incident.resolved_at.is_some() => "none: this rule captures nothing".into(),
        _ => capture(&incident.capture),
    };
    let window = incident.window();
    if let Some(Escalation { at, times_bound, window: requested, refused, .. }) = &incident.worse {
        let worse = format!("it got worse, {} times its bound at {}", figure(*times_bound), utc(*at));
        match refused {
            Some(refused) if *requested > window => {
                text += &format!("; {worse}, and was not captured again: {}", refused.why);
            }
            None if *requested == window => text = format!("{worse}, and was captured again: {text}"),
            _ => {}
        }
    }
    if let Some(FollowUp { why, refused, .. }) = &incident.follow_up {
        match refused {
            Some(refused) => {
                text += &format!("; a second window was asked for ({why}) and refused: {}", refused.why)
            }
            None if incident.is_follow_up(window) => text = format!("{why}: {text}"),
            None => {}
        }
    }
    for (number, earlier) in (1..).zip(&incident.earlier) {
        let before = capture(&earlier.capture);
        text += &format!("; capture {number}, at {} times its bound: {before}", figure(earlier.times_bound));
        if let Some(verdict) = &earlier.verdict {
            text += &format!("; {}", verdict.sentence);
            if let Some(other) = verdict.of_another(&incident.finding) {
                text += &format!(" ({})", compared_before(other, &incident.finding.rank));
            }
        }
    }
    text
}

fn capture(outcome: &CaptureOutcome) -> String {
    match outcome {
        CaptureOutcome::None => "none yet".into(),
        CaptureOutcome::WouldStart => "a window would open here (this is a recording)".into(),
        CaptureOutcome::Refused(refused) => format!("refused: {}", refused.why),
        CaptureOutcome::Open { since, .. } => format!("a window is open since {}", utc(*since)),
        CaptureOutcome::Done(captured) => files(captured),
        CaptureOutcome::Failed { why, captured: None } => format!("failed: {why}"),
        CaptureOutcome::Failed { why, captured: Some(captured) } => {
            format!("failed: {why}; {}", files(captured))
        }
    }
}

fn files(captured: &Captured) -> String {
    let quality = match captured.quality {
        Quality::Usable => "every rank's file is whole",
        Quality::Partial => "some are missing or cut",
        Quality::Broken => "none is usable",
        Quality::Unseen => "none can be seen from here",
    };
    let size: u64 = captured.files.iter().map(|f| f.size).sum();
    let mut text = format!(
        "{} by {}, {}: {quality}",
        counted(captured.files.len(), "file"),
        captured.means.word(),
        bytes(size)
    );
    let names = |ranks: &[Labels]| ranks.iter().map(rank_name).collect::<Vec<_>>().join(", ");
    if !captured.missing.is_empty() {
        text += &format!("; nothing from {}", names(&captured.missing));
    }
    if !captured.idle.is_empty() {
        text += &format!("; idle meanwhile: {}", names(&captured.idle));
    }
    for note in &captured.notes {
        text += "; ";
        text += note;
    }
    text
}

fn verdict(incident: &Incident) -> String {
    if let Some(verdict) = &incident.verdict {
        let confirms = match (verdict.of_another(&incident.finding), verdict.confirms) {
            (Some(other), _) => format!("; {}", compared_before(other, &incident.finding.rank)),
            (None, Some(true)) => ", confirms the rule".to_owned(),
            (None, Some(false)) => ", does not confirm the rule".to_owned(),
            (None, None) => String::new(),
        };
        return format!("{} ({} confidence{confirms})", verdict.sentence, verdict.confidence.name());
    }
    match incident.capture {
        CaptureOutcome::Done(_) | CaptureOutcome::Failed { captured: Some(_), .. } => "not compared yet",
        CaptureOutcome::Open { .. } => "not yet: the window is open",
        CaptureOutcome::None if incident.resolved_at.is_none() => "none yet",
        _ => "none: there is nothing to compare",
    }
    .into()
}

/// `noise, said at 2026-11-24 03:50:00 UTC`.
pub(super) fn mark(incident: &Incident) -> String {
    incident.marked.map_or_else(String::new, |said| format!("{}, said at {}", said.mark.word(), utc(said.at)))
}

/// What a verdict is that was made for another blame.
pub(super) fn compared_before(other: &Labels, now: &Labels) -> String {
    match (rank_name(other), rank_name(now)) {
        (before, now) if before == now => {
            format!(
                "compared while {before} was blamed for the opposite: it confirms nothing of what is told now"
            )
        }
        (before, now) => format!("compared while {before} was blamed: it confirms nothing of {now}"),
    }
}

/// The cost of the last capture, and of all together.
fn costs(incident: &Incident) -> String {
    let stalled: f64 = incident.captures().filter_map(CaptureOutcome::captured).map(|c| c.stall_s).sum();
    // After a restart, an incident that is captured already can have its first capture when it got worse.
    let is_first = incident.window() == 1 && incident.worse_of(1).is_none();
    let reason = match () {
        () if incident.is_follow_up(incident.window()) => "its first verdict",
        () if incident.finding.measured.is_none() => "it was asked for",
        () if is_first => "the rule fired",
        () => "it had got worse",
    };
    let last = cost(&incident.capture, reason);
    match incident.window() {
        1 => last,
        count => format!("{last}; {count} captures cost {} together", seconds(stalled)),
    }
}

fn cost(outcome: &CaptureOutcome, reason: &str) -> String {
    match outcome {
        CaptureOutcome::Done(c) | CaptureOutcome::Failed { captured: Some(c), .. } => format!(
            "{}{}; the window began {} after {reason} and was open {}",
            serving(c),
            silence(c),
            seconds(c.start_delay_s),
            seconds(c.open_s)
        ),
        CaptureOutcome::Open { expects: Some(expects), .. } => expects.clone(),
        CaptureOutcome::Open { .. } => "not known before the window closes".into(),
        CaptureOutcome::Failed { captured: None, .. } => "unknown: the window failed".into(),
        _ => "nothing".into(),
    }
}

/// The serving that a capture cost: `0.4 s of serving`; `unknown: ..` where nothing was seen and shorter silences could
/// not be.
pub fn serving(captured: &Captured) -> String {
    let stalled = seconds(captured.stall_s);
    match captured.unseen_stall_below_s.map(seconds) {
        Some(below) if captured.stall_s == 0.0 => {
            format!("unknown: no silence of {below} or longer was seen, and shorter ones could not be")
        }
        Some(below) => {
            format!("at least {stalled} of serving (silences shorter than {below} could not be seen)")
        }
        None => format!("{stalled} of serving"),
    }
}

/// What was seen beside what was predicted.
fn silence(captured: &Captured) -> String {
    let at_most = |s: f64| AtMost(Duration::try_from_secs_f64(s).unwrap_or_default());
    match (captured.longest_stall_s, captured.predicted_stall_s) {
        (None, _) => String::new(),
        (Some(seen), None) => format!(", no rank silent for more than {} (not predicted)", at_most(seen)),
        (Some(seen), Some(predicted)) => {
            format!(", no rank silent for more than {} (predicted {})", at_most(seen), at_most(predicted))
        }
    }
}

/// Every incident has its folder from the firing on, also where nothing is captured.
fn bundle(incident: &Incident, origin: &Origin) -> String {
    let kept = || Some(format!("{}/{}", origin.incidents.as_deref()?, incident.id));
    match incident.bundle.clone().or_else(kept) {
        Some(path) if origin.host.is_empty() => path,
        Some(path) => format!("{path} on {}", origin.host),
        None => "none is kept".into(),
    }
}

fn open(incident: &Incident, origin: &Origin) -> String {
    let window = incident.window();
    // Whoever asked the agent at that address would be answered by another one.
    let by_command = match &origin.no_page {
        None => format!("skewtrap incidents {}", incident.id),
        Some(_) => "the files in its folder: this agent answers no command".to_owned(),
    };
    // The captures of a bundle are compared one by one.
    let (number, traces) = match window {
        1 => (String::new(), String::new()),
        n => (format!("-{n}"), format!("/traces-{n}")),
    };
    match (&incident.bundle, &incident.verdict) {
        (Some(path), Some(_)) => {
            format!("{path}/report{number}.html in a browser, or: {by_command}")
        }
        (Some(path), None) if matches!(incident.capture, CaptureOutcome::Done(_)) => {
            format!("skewtrap compare {path}{traces}")
        }
        _ => by_command,
    }
}
