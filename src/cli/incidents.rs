//! `skewtrap incidents`: the incidents of the running agent.

use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::agent_client::AgentArgs;
use super::{Format, wrong};
use skewtrap_core::factor::Mark;
use skewtrap_core::finding::Statistic;
use skewtrap_core::incident::{CaptureOutcome, EndReason, Incident};
use skewtrap_core::message::{Message, Origin, Update, counted, figure, rank_name, terminal, utc};
use skewtrap_core::watch::SERVER_DIED;

/// Lists the incidents of the running agent, shows one, keeps one from being evicted, or says what one was worth
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct IncidentsArgs {
    #[command(subcommand)]
    command: Option<IncidentsCommand>,
    /// Show this incident; the beginning of its id is enough where no other begins alike
    id: Option<String>,
    /// Never evict its bundle
    #[arg(long, requires = "id", conflicts_with = "unpin")]
    pin: bool,
    /// Let its bundle be evicted again
    #[arg(long, requires = "id")]
    unpin: bool,
    #[command(flatten)]
    agent: AgentArgs,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, Subcommand)]
enum IncidentsCommand {
    /// Say what an incident was worth: noise raises the bound of its test on its server
    Mark(MarkArgs),
}

#[derive(Debug, Args)]
struct MarkArgs {
    /// The incident; the beginning of its id is enough where no other begins alike
    id: String,
    /// What it was worth
    worth: MarkValue,
    #[command(flatten)]
    agent: AgentArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum MarkValue {
    /// Worth a look: it does not count as noise that the bound must exceed
    Useful,
    /// Not worth one: the bound of its test rises by about a tenth, four times at most, forgotten over weeks
    Noise,
}

/// Prints the incidents.
///
/// # Errors
/// The agent does not answer, or has no such incident.
pub fn run(args: &IncidentsArgs) -> anyhow::Result<ExitCode> {
    if let Some(IncidentsCommand::Mark(mark)) = &args.command {
        let said = match mark.worth {
            MarkValue::Useful => Mark::Useful,
            MarkValue::Noise => Mark::Noise,
        };
        let id = whole_id(&mark.agent, &mark.id)?;
        let answer = mark.agent.post(&format!("incidents/{id}/mark"), &json!({ "mark": said }))?;
        eprintln!("{}", answer["said"].as_str().unwrap_or("done"));
        return Ok(ExitCode::SUCCESS);
    }
    match &args.id {
        None => list(args)?,
        Some(id) if args.pin || args.unpin => {
            let id = whole_id(&args.agent, id)?;
            let answer = args.agent.post(&format!("incidents/{id}/pin"), &json!({ "pinned": args.pin }))?;
            eprintln!("{}", answer["said"].as_str().unwrap_or("done"));
        }
        Some(id) => show(args, id)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The id that begins so, of those that the agent lists, which are the newest ones.
fn whole_id(agent: &AgentArgs, beginning: &str) -> anyhow::Result<String> {
    // Where the list cannot be had the id may be whole: the request for it says what is the matter.
    let incidents: Vec<Incident> = agent.get("incidents").unwrap_or_default();
    chosen(beginning, incidents.iter().map(|incident| &*incident.id)).map_err(|why| wrong(&why))
}

/// The only one of `ids` that begins so. What is none of them may be one that the agent keeps beside its list.
fn chosen<'a>(beginning: &str, ids: impl Iterator<Item = &'a str>) -> Result<String, String> {
    let alike: Vec<&str> = ids.filter(|id| id.starts_with(beginning)).collect();
    match alike[..] {
        [] => Ok(beginning.to_owned()),
        [one] => Ok(one.to_owned()),
        _ if alike.contains(&beginning) => Ok(beginning.to_owned()),
        _ => Err(format!(
            "{} begin with `{beginning}`:\n  {}",
            counted(alike.len(), "incident"),
            alike.join("\n  ")
        )),
    }
}

fn list(args: &IncidentsArgs) -> anyhow::Result<()> {
    let incidents: Vec<Incident> = args.agent.get("incidents")?;
    if args.format.is_json() {
        outln!("{}", serde_json::to_string_pretty(&incidents)?)?;
        return Ok(());
    }
    if incidents.is_empty() {
        eprintln!("none: nothing has fired, and nothing is kept from before");
    }
    incidents.iter().try_for_each(|i| out!("{}", line_of(i)))?;
    Ok(())
}

fn show(args: &IncidentsArgs, id: &str) -> anyhow::Result<()> {
    let id = whole_id(&args.agent, id)?;
    let incident: Incident = args.agent.get(&format!("incidents/{id}"))?;
    if args.format.is_json() {
        outln!("{}", serde_json::to_string_pretty(&incident).context("the incident is no JSON")?)?;
    } else {
        out!("{}", terminal(&message_of(&incident)))?;
    }
    Ok(())
}

/// The latest message about an incident.
fn message_of(incident: &Incident) -> Message {
    let update = match (incident.resolved_at, &incident.verdict, incident.capture.word()) {
        (Some(_), ..) => Update::Resolved,
        (None, Some(_), _) => Update::Verdict,
        (None, None, "done" | "failed") => Update::Captured,
        (None, None, "refused") => Update::Refused,
        (None, None, _) if incident.died.is_some() => Update::Died,
        _ => Update::Fired,
    };
    let at = incident.resolved_at.unwrap_or(incident.fired_at);
    let mut message = Message::of(incident, update, at, &Origin::default());
    message.notes.extend(match incident.resolved_at {
        Some(end) if incident.end == Some(EndReason::BecameUsual) => {
            Some(format!("it counts as usual since {}", utc(end)))
        }
        Some(end) => Some(format!("it is over since {}", utc(end))),
        None if incident.is_by_hand() => None,
        None if *incident.rule == *SERVER_DIED => Some("the server has not answered since".to_owned()),
        None => Some("it still fires".to_owned()),
    });
    message
}

fn line_of(incident: &Incident) -> String {
    let finding = &incident.finding;
    let rank = rank_name(&finding.rank);
    let found = match &finding.measured {
        None if incident.is_by_hand() => "a window that was asked for".to_owned(),
        None => "its log says that it died".to_owned(),
        Some(m) if m.statistic == Statistic::Factors => {
            format!("{rank} {} {}", m.signal, finding.side.word())
        }
        Some(m) => format!("{rank} {} {}", m.statistic, figure(m.value)),
    };
    let now = match (incident.resolved_at, incident.is_by_hand()) {
        (Some(_), true) => "over",
        (None, true) => "under way",
        (Some(_), false) => "resolved",
        (None, false) => "firing",
    };
    let verdict = incident.verdict.as_ref().map(|v| format!("\n    {}", v.sentence)).unwrap_or_default();
    let words: Vec<&str> = incident.captures().map(CaptureOutcome::word).collect();
    format!(
        "{}  {}  {} on {}: {found}, capture {}, {now}{verdict}\n",
        incident.id,
        utc(incident.fired_at),
        incident.rule,
        incident.target,
        words.join(" then "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use skewtrap_core::message::sample;
    use skewtrap_trace::time::Time;

    #[test]
    fn a_line_says_when_what_whom_and_what_came_of_it() {
        insta::assert_snapshot!(line_of(&sample(Time::from_epoch_s(1_795_492_126.1))), @r"
        20261124T034846Z-dp-load-skew-test  2026-11-24 03:48:46.1 UTC  dp-load-skew on server: DP2 share high, capture done, firing
            DP2 has more to do than its peers: its batches have 31.0 requests, theirs 9.0; 1.9 ms of GPU work a step beyond their median (+48 %), 61 % of it in attention (_fwd_grouped_kernel_stage1).
        ");
        let mut again = sample(Time::from_epoch_s(1_795_492_126.1));
        again.capture_again(
            CaptureOutcome::Failed { why: "the server went away".into(), captured: None },
            Some(1.7),
        );
        assert!(line_of(&again).contains("capture done then failed, firing"), "{}", line_of(&again));
    }

    #[test]
    fn the_beginning_of_an_id_is_enough_where_it_is_one_incidents_alone() {
        let ids =
            ["20261124T034846Z-skew-3f9a", "20261124T034846Z-skew-3f9a-2", "20261124T051200Z-skew-77b0"];
        let of = |beginning: &str| chosen(beginning, ids.into_iter());
        assert_eq!(of("20261124T05").as_deref(), Ok(ids[2]));
        assert_eq!(of(ids[0]).as_deref(), Ok(ids[0]), "a whole id is meant though another begins with it");
        assert_eq!(of("2025").as_deref(), Ok("2025"), "the agent says that it has none");
        let several = of("20261124T03").expect_err("two begin so");
        assert_eq!(several, format!("2 incidents begin with `20261124T03`:\n  {}\n  {}", ids[0], ids[1]));
    }

    #[test]
    fn an_incident_says_whether_it_still_fires() {
        let at = Time::from_epoch_s(1_795_492_126.1);
        let mut incident = sample(at);
        let last = |incident: &Incident| message_of(incident).notes.pop();
        assert_eq!(last(&incident).as_deref(), Some("it still fires"));
        incident.resolve(at);
        assert_eq!(last(&incident).as_deref(), Some("it is over since 2026-11-24 03:48:46.1 UTC"));
    }
}
