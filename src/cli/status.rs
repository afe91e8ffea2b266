//! `skewtrap status`: what the running agent sees and does, on one screen.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::Format;
use super::agent_client::AgentArgs;
use super::silence;
use skewtrap_core::message::{bytes, counted, figure, rank_name, seconds, utc};
use skewtrap_core::rule::RuleState;
use skewtrap_core::signal::source::SourceState;
use skewtrap_core::status::{RuleStatus, SignalStatus, Status, TargetStatus};
use skewtrap_trace::time::Time;

/// Shows what the running agent sees and does: servers, ranks, what fires, windows, silences.
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    agent: AgentArgs,
    #[command(flatten)]
    format: Format,
}

/// Prints the status.
///
/// # Errors
/// The agent does not answer.
pub fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let status: Status = args.agent.get_of_all("status")?;
    match args.format.is_json() {
        true => outln!("{}", serde_json::to_string_pretty(&status)?)?,
        false => out!("{}", text_of(&status))?,
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn text_of(status: &Status) -> String {
    let mut text = String::new();
    let mut line = |words: String| {
        let _ = writeln!(text, "{words}");
    };
    let only = if status.watch_only { ", opens no window (watch_only)" } else { "" };
    line(format!("skewtrap {}, running since {}{only}", status.version, utc(status.started)));
    status.targets.iter().for_each(|target| line(target_text(target, status.at)));
    firing_lines(status).into_iter().for_each(&mut line);
    not_watched_lines(status).into_iter().for_each(|text| line(format!("NOT watched: {text}")));
    for window in &status.windows {
        line(format!(
            "a window is open on {} since {} ({})",
            window.target,
            utc(window.since),
            window.incident
        ));
    }
    budget_line(status).into_iter().for_each(&mut line);
    spent(status).into_iter().for_each(|text| line(format!("no window for now: {text}")));
    for silence in &status.silences {
        line(format!("silenced: {}", silence::line_of(silence)));
    }
    for receiver in &status.receivers {
        if let Some(problem) = &receiver.problem {
            // What is wrong with it may name it itself.
            let named = format!("receiver {}: ", receiver.name);
            let problem = problem.strip_prefix(&named).unwrap_or(problem);
            line(format!("receiver {} does not take messages: {problem}", receiver.name));
        }
    }
    if let Some(problem) = &status.reload_problem {
        line(format!(
            "the configuration on disk is wrong, and the one before it in force ({}): {}",
            problem.at, problem.why
        ));
    }
    text
}

fn firing_lines(status: &Status) -> Vec<String> {
    let firing = status.rules.iter().flat_map(|rule| {
        let groups = rule.groups.iter().filter(|group| group.state == RuleState::Firing);
        groups.map(move |group| {
            let who = group.rank.as_ref().map(|rank| format!(": {}", rank_name(rank))).unwrap_or_default();
            let refused =
                group.refused.as_ref().map(|why| format!("; not captured: {why}")).unwrap_or_default();
            format!("fires: {} on {}{who}{refused}", rule.name, group.target)
        })
    });
    let firing: Vec<String> = firing.collect();
    if !firing.is_empty() {
        return firing;
    }
    let unable = match status.rules.iter().filter(|rule| cannot_fire(rule)).count() {
        0 => String::new(),
        n => format!("; {n} of them cannot fire here: `skewtrap why` says why"),
    };
    vec![format!("nothing fires, of {}{unable}", counted(status.rules.len(), "rule"))]
}

fn budget_line(status: &Status) -> Option<String> {
    let budget = &status.budget;
    let all = budget.limits.first()?;
    Some(format!(
        "budget of the last {} h: {} of {} windows, {} of {} of stalled serving, {} of {} written",
        figure(all.per_s / 3600.0),
        all.used,
        all.captures,
        seconds(budget.stalled_s),
        seconds(budget.stalled_s_limit),
        bytes(budget.written_bytes),
        bytes(budget.written_bytes_limit),
    ))
}

/// Which budgets are used up, and which rules rest: for these the server gets no window now.
pub(super) fn spent(status: &Status) -> Vec<String> {
    let budget = &status.budget;
    let is_spent = |used: f64, limit: f64| limit > 0.0 && used >= limit;
    let of_serving = is_spent(budget.stalled_s, budget.stalled_s_limit).then(|| {
        let (used, limit) = (seconds(budget.stalled_s), seconds(budget.stalled_s_limit));
        format!("{used} of {limit} of stalled serving of the last 24 h are used")
    });
    let of_bytes = is_spent(budget.written_bytes as f64, budget.written_bytes_limit as f64).then(|| {
        let (used, limit) = (bytes(budget.written_bytes), bytes(budget.written_bytes_limit));
        format!("{used} of {limit} that windows may write, of the last 24 h, are used")
    });
    let of_windows = budget.limits.iter().filter_map(|limit| {
        let hours = figure(limit.per_s / 3600.0);
        let used = (limit.used >= limit.captures).then(|| {
            format!(
                "{}: {} of {} windows of the last {hours} h are used",
                limit.of, limit.used, limit.captures
            )
        });
        let rests = limit.cooldown_until.filter(|until| *until > status.at);
        used.or_else(|| rests.map(|until| format!("{}: cools down, none before {}", limit.of, utc(until))))
    });
    of_serving.into_iter().chain(of_bytes).chain(of_windows).collect()
}

/// Whether a rule has nothing on any server that it could be judged on.
fn cannot_fire(rule: &RuleStatus) -> bool {
    !rule.groups.is_empty() && rule.groups.iter().all(|group| group.state == RuleState::Inert)
}

/// What cannot be watched, the servers of which the same holds together.
pub(super) fn not_watched_lines(status: &Status) -> Vec<String> {
    let mut texts: Vec<(&str, Vec<&str>)> = Vec::new();
    let told = status.targets.iter().filter_map(|t| Some((&*t.name, t.not_watched.as_deref()?)));
    for (name, text) in told {
        match texts.iter_mut().find(|(known, _)| *known == text) {
            Some((_, names)) => names.push(name),
            None => texts.push((text, vec![name])),
        }
    }
    let of_servers = |(text, names): (&str, Vec<&str>)| {
        let more = names.len().saturating_sub(SERVERS_NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let named = names.iter().take(SERVERS_NAMED).copied().collect::<Vec<_>>().join(", ");
        format!("{named}{more}: {text}")
    };
    texts.into_iter().map(of_servers).collect()
}

/// How many servers of which the same holds are named; the others are counted.
const SERVERS_NAMED: usize = 4;

/// The numbers of a server are of now where the newest is no older.
const OF_NOW: Duration = Duration::from_secs(10);

fn target_text(target: &TargetStatus, now: Time) -> String {
    let version = target.engine_version.as_deref().unwrap_or("of unknown version");
    // What it said of itself counts no longer where it does not answer.
    let engine = match target.unanswered_since {
        Some(_) => String::new(),
        None => format!("{} {version}, ", target.engine),
    };
    let mut text = format!("{}: {engine}{}", target.name, counted(target.rank_count(), "rank"));
    if let Some(why) = target.why_old() {
        text += &format!("; {why}");
    }
    let newest = target.ranks.iter().filter_map(|rank| rank.signals.get("load")).map(|s| s.at).max();
    let age = newest.map(|at| now.since(at)).filter(|age| *age > OF_NOW);
    let old = age.map_or_else(String::new, |age| format!(" {} ago", seconds(age.as_secs_f64())));
    let is_old = age.is_some();
    let load = || {
        let of_rank = |rank: &skewtrap_core::status::RankStatus| {
            let age = |s: &SignalStatus| now.since(s.at);
            let silent = |s: &SignalStatus| match (is_old, s.stale, age(s) > OF_NOW) {
                (true, ..) | (_, false, false) => String::new(),
                (_, true, false) => " (silent)".to_owned(),
                (.., true) => format!(" ({} ago)", seconds(age(s).as_secs_f64())),
            };
            rank.signals
                .get("load")
                .map(|s| format!("{} {}{}", rank_name(&rank.rank), figure(s.value), silent(s)))
        };
        target.ranks.iter().filter_map(of_rank).take(16).collect::<Vec<_>>().join(", ")
    };
    match load() {
        loads if loads.is_empty() => {}
        loads => text += &format!("; load{old} {loads}"),
    }
    for source in target.sources.iter().filter(|s| s.state == SourceState::Failing) {
        let problem = source.problem.as_deref().unwrap_or("it gives nothing");
        let fails = if source.is_behind { "is behind" } else { "fails" };
        text += &format!("\n  {} {fails}: {problem}", source.kind);
    }
    for (kind, remark) in target.sources.iter().filter_map(|s| Some((&s.kind, s.remark.as_ref()?))) {
        text += &format!("\n  {kind}: {remark}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use skewtrap_core::rule::Severity;
    use skewtrap_core::status::{GroupStatus, RankStatus, Silence, SourceStatus};
    use skewtrap_trace::rank::Rank;

    #[test]
    fn a_status_says_what_is_not_watched_once_for_all_servers_alike_and_which_rules_cannot_fire() {
        let target = |name: &str, not_watched: Option<&str>| TargetStatus {
            name: name.into(),
            engine: "sglang".into(),
            not_watched: not_watched.map(ToOwned::to_owned),
            ..TargetStatus::default()
        };
        let rule = |name: &str, states: &[RuleState]| {
            let group = |state: &RuleState| GroupStatus {
                target: "a".into(),
                group: Default::default(),
                state: *state,
                why: String::new(),
                since: None,
                statistic: String::new(),
                value: None,
                bound: None,
                rank: None,
                incident: None,
                refused: None,
                again: None,
            };
            RuleStatus {
                name: name.into(),
                about: None,
                severity: Severity::Warning,
                capture: "none".into(),
                groups: states.iter().map(group).collect(),
                last_evaluated: None,
                silenced_until: None,
            }
        };
        let one_load = Some("its 8 ranks show one load");
        let names: Vec<String> = (0..6).map(|i| format!("s{i}")).collect();
        let mut targets: Vec<TargetStatus> = names.iter().map(|name| target(name, one_load)).collect();
        targets.push(target("even", None));
        let status = Status {
            targets,
            rules: vec![
                rule("inert", &[RuleState::Inert]),
                rule("partly", &[RuleState::Inert, RuleState::Idle]),
                rule("unseen", &[]),
            ],
            ..Status::default()
        };
        let text = text_of(&status);
        assert!(
            text.contains("nothing fires, of 3 rules; 1 of them cannot fire here: `skewtrap why` says why\n"),
            "{text}"
        );
        assert!(
            text.contains("NOT watched: s0, s1, s2, s3 and 2 more: its 8 ranks show one load\n"),
            "{text}"
        );
        assert_eq!(text.matches("NOT watched").count(), 1, "{text}");
    }

    #[test]
    fn the_numbers_of_a_server_that_does_not_answer_say_how_old_they_are() {
        let at = Time::from_epoch_s(1_795_492_126.1);
        let signal = |value| SignalStatus { value, at, stale: value > 7.0, source: "loads".into() };
        let rank = |dp: u16, value| RankStatus {
            rank: Rank::dp(dp).labels(),
            signals: [("load".into(), signal(value))].into(),
        };
        let target = TargetStatus {
            name: "server".into(),
            engine: "sglang".into(),
            ranks: vec![rank(0, 7.0), rank(1, 9.0)],
            ..TargetStatus::default()
        };
        let now = at + Duration::from_secs(2);
        assert!(target_text(&target, now).ends_with("; load DP0 7, DP1 9 (silent)"), "one rank is silent");
        let mut frozen = target.clone();
        frozen.ranks[1].signals.get_mut("load").expect("it has one").at = at - Duration::from_secs(34);
        assert!(
            target_text(&frozen, now).ends_with("; load DP0 7, DP1 9 (36 s ago)"),
            "its clock stands still"
        );
        let behind = TargetStatus { sources: vec![left_source()], ..target.clone() };
        let text = target_text(&behind, now);
        assert!(text.contains("sglang of unknown version") && !text.contains("NOT answered"), "{text}");
        assert!(text.contains("; answers, but the agent is BEHIND with what it says; load"), "{text}");
        assert!(text.ends_with("\n  loads is behind: the agent is behind"), "{text}");
        let odd = SourceStatus {
            kind: "log".into(),
            state: SourceState::Ok,
            remark: Some("its lines are stamped 1 h before they arrive".into()),
            is_behind: false,
            ..left_source()
        };
        let text = target_text(&TargetStatus { sources: vec![odd], ..target.clone() }, now);
        assert!(text.ends_with("\n  log: its lines are stamped 1 h before they arrive"), "{text}");
        let lost = TargetStatus { unanswered_since: Some(at + Duration::from_secs(1)), ..target };
        let text = target_text(&lost, at + Duration::from_secs(82));
        let told = "; has NOT answered since 2026-11-24 03:48:47.1 UTC; load 82 s ago DP0 7, DP1 9";
        assert!(text.ends_with(told), "{text}");
    }

    /// One whose answers the agent has no room for.
    fn left_source() -> SourceStatus {
        SourceStatus {
            kind: "loads".into(),
            place: "http://10.0.0.7:30000/v1/loads".into(),
            state: SourceState::Failing,
            problem: Some("the agent is behind".into()),
            is_behind: true,
            remark: None,
            last: None,
            lag_s: None,
            samples: 0,
            dropped: 0,
        }
    }

    #[test]
    fn a_status_says_what_is_watched_what_fires_and_what_is_silenced() {
        let at = Time::from_epoch_s(1_795_492_126.1);
        let target =
            TargetStatus { name: "server".into(), engine: "sglang".into(), ..TargetStatus::default() };
        let silence =
            Silence { rule: Some("skew".into()), target: None, until: at, why: Some("a test".into()) };
        let status = Status {
            version: "0.2.0".into(),
            started: at,
            targets: vec![target],
            silences: vec![silence],
            ..Status::default()
        };
        insta::assert_snapshot!(text_of(&status), @r"
        skewtrap 0.2.0, running since 2026-11-24 03:48:46.1 UTC
        server: sglang of unknown version, 0 ranks
        nothing fires, of 0 rules
        silenced: skew on every server until 2026-11-24 03:48:46.1 UTC (a test)
        ");
    }
}
