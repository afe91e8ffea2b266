use std::time::Duration;

use super::*;
use crate::capture::captured::{Captured, Quality};
use crate::factor::Mark;
use crate::finding::{Finding, Measured, MemberValue, Side, Symptom};
use crate::incident::{CaptureOutcome, Death, EarlierCapture, Escalation, IncidentState, Marked, Refused};
use crate::rule::Severity;
use skewtrap_trace::rank::Rank;

fn at() -> Time {
    Time::from_epoch_s(1_795_492_126.1)
}

fn origin() -> Origin {
    Origin { host: "gpu-7".into(), page: Some("http://127.0.0.1:9464".into()), ..Origin::default() }
}

/// The sample as it was when it fired.
fn fired() -> Incident {
    let mut incident = sample(at());
    incident.state = IncidentState::Open;
    incident.capture = CaptureOutcome::Open { since: at(), expects: None };
    incident.verdict = None;
    // What is known at once.
    if let Some(impact) = &mut incident.impact {
        impact.at = at();
    }
    incident
}

fn resolved() -> Incident {
    let mut incident = sample(at());
    incident.state = IncidentState::Resolved;
    incident.resolved_at = Some(Time::from_epoch_s(1_795_492_197.0));
    incident
}

fn message(incident: &Incident, update: Update) -> Message {
    Message::of(incident, update, incident.resolved_at.unwrap_or(at()), &origin())
}

fn text(incident: &Incident, update: Update) -> String {
    anstream::adapter::strip_str(&terminal(&message(incident, update))).to_string()
}

#[test]
fn a_list_has_a_short_sentence_of_the_verdict_the_cause_the_window_and_the_mark() {
    let mut incident = resolved();
    let brief = Brief::of(&incident);
    assert!(brief.verdict.starts_with("DP2 has more to do than its peers") && brief.mark.is_empty());
    assert_eq!(brief.window, "A window was taken.");
    incident.marked = Some(Marked { mark: Mark::Useful, at: at() });
    let said = "useful, said at 2026-11-24 03:48:46.1 UTC";
    assert_eq!(Brief::of(&incident).mark, said);
    assert!(text(&incident, Update::Resolved).contains(said));
    incident.blame(Finding { rank: Rank::dp(0).labels(), ..incident.finding.clone() }, at());
    let of_another = Brief::of(&incident).verdict;
    assert!(
        of_another.ends_with("(compared while DP2 was blamed: it confirms nothing of DP0)"),
        "{of_another}"
    );
    incident.verdict = None;
    assert_eq!(Brief::of(&incident).window, "A window was taken; there is no verdict yet.");
    incident.capture = CaptureOutcome::Failed { why: "the server went away".into(), captured: None };
    assert_eq!(Brief::of(&incident).window, "The window failed: the server went away");
}

#[test]
fn what_came_back_is_told_with_how_long_it_seemed_over_and_each_end_has_a_message_of_its_own() {
    let mut incident = resolved();
    assert!(incident.come_back(Time::from_epoch_s(1_795_492_211.0)));
    assert_eq!((incident.state, incident.resolved_at), (IncidentState::Compared, None));
    let told = message(&incident, Update::Returned);
    assert_eq!(told.title, "dp-load-skew: it came back after 14 s on server (DP2)");
    assert!(
        told.facts
            .since
            .ends_with("; it seemed to be over at 2026-11-24 03:49:57.0 UTC and came back after 14 s"),
        "{told:?}"
    );
    let id = |incident: &Incident, update| super::id_of(incident, update);
    assert!(id(&incident, Update::Returned).ends_with(":returned"));
    assert!(id(&resolved(), Update::Resolved).ends_with(":resolved"));
    assert!(incident.resolve(Time::from_epoch_s(1_795_492_240.0)));
    assert!(id(&incident, Update::Resolved).ends_with(":resolved:2"));
    let told = message(&incident, Update::Resolved).facts.since;
    assert!(told.contains("came back after 14 s, over at 2026-11-24 03:50:40.0 UTC after"), "{told}");
    assert!(incident.come_back(Time::from_epoch_s(1_795_492_245.0)));
    assert!(id(&incident, Update::Returned).ends_with(":returned:2"));
    let told = message(&incident, Update::Returned).facts.since;
    assert!(
        told.ends_with(
            "; it seemed to be over 2 times, last at 2026-11-24 03:50:40.0 UTC, and came back after 5 s"
        ),
        "{told}"
    );
    // Whoever is told that it began is told that it came back.
    assert!(
        Update::Returned.tells(Update::Fired, &incident)
            && !Update::Returned.tells(Update::Resolved, &incident)
    );
    // It is the same alert, which fires again.
    let (first, back) =
        (alerts(&message(&fired(), Update::Fired)), alerts(&message(&incident, Update::Returned)));
    assert_eq!((&first[0].labels, &first[0].ends_at), (&back[0].labels, &back[0].ends_at));
    let json = serde_json::to_string(&incident).expect("plain data");
    assert_eq!(serde_json::from_str::<Incident>(&json).expect("its own JSON"), incident);
    // One that comes back for ever is not kept for ever.
    let mut at = 1_795_492_300.0;
    while incident.resolve(Time::from_epoch_s(at)) && incident.come_back(Time::from_epoch_s(at + 5.0)) {
        at += 10.0;
    }
    assert_eq!(incident.returned.len(), 32);
}

#[test]
fn the_story_of_an_incident_reads_well_in_a_terminal() {
    insta::assert_snapshot!("terminal_fired", text(&fired(), Update::Fired));
    let mut captured = sample(at());
    captured.verdict = None;
    insta::assert_snapshot!("terminal_captured", text(&captured, Update::Captured));
    insta::assert_snapshot!("terminal_verdict", text(&sample(at()), Update::Verdict));
    insta::assert_snapshot!("terminal_resolved", text(&resolved(), Update::Resolved));
}

#[test]
fn a_refused_and_a_failed_capture_say_why_and_what_they_cost() {
    let mut incident = fired();
    incident.bundle = None;
    incident.capture = CaptureOutcome::Refused(Refused {
        reason: Reason::AllIdle,
        why: "all ranks are idle; a window would stay armed until the next traffic".into(),
    });
    insta::assert_snapshot!("terminal_refused", text(&incident, Update::Refused));
    let no_answer = Reason::NoAnswer;
    incident.capture = CaptureOutcome::Refused(Refused { reason: no_answer, why: "since 3:48".into() });
    let title = message(&incident, Update::Refused).title;
    assert!(title.ends_with("; no window (the server does not answer)"), "{title}");
    incident.capture = CaptureOutcome::Failed {
        why: "the server answered 500 to /start_profile: Profiling is already in progress".into(),
        captured: None,
    };
    insta::assert_snapshot!("terminal_failed", text(&incident, Update::Captured));
    let part = Captured {
        quality: Quality::Partial,
        missing: vec![Rank::dp(1).labels()],
        idle: vec![Rank::dp(1).labels()],
        notes: vec!["DP3's trace ends at byte 81920".into()],
        ..match sample(at()).capture {
            CaptureOutcome::Done(captured) => captured,
            other => panic!("the sample captured: {other:?}"),
        }
    };
    incident.capture =
        CaptureOutcome::Failed { why: "the deadline of 30 s passed".into(), captured: Some(part) };
    insta::assert_snapshot!("terminal_partial", text(&incident, Update::Captured));
}

#[test]
fn an_agent_whose_page_is_not_served_sends_no_link_and_says_why() {
    let why = "127.0.0.1:9464 is taken, and is another agent's";
    let origin = Origin { host: "gpu-7".into(), no_page: Some(why.into()), ..Origin::default() };
    let told = Message::of(&fired(), Update::Fired, at(), &origin);
    assert_eq!(told.page, None);
    assert_eq!(told.notes, [format!("no link to the agent's page: {why}")]);
    assert!(
        !told.facts.open.contains("skewtrap incidents"),
        "another agent would answer: {}",
        told.facts.open
    );
    let verdict = Message::of(&sample(at()), Update::Verdict, at(), &origin).facts.open;
    assert!(verdict.contains("report.html") && !verdict.contains("skewtrap incidents"), "{verdict}");
}

#[test]
fn the_folder_is_told_from_the_first_message_on_and_in_the_last_one_that_nothing_was_captured() {
    let origin = Origin { incidents: Some("/data/incidents".into()), ..origin() };
    let mut incident = fired();
    incident.bundle = None;
    let of = |incident: &Incident, update| Message::of(incident, update, at(), &origin).facts;
    let folder = format!("/data/incidents/{} on gpu-7", incident.id);
    assert_eq!(of(&incident, Update::Fired).bundle, folder);
    incident.capture = CaptureOutcome::None;
    assert_eq!(of(&incident, Update::Fired).capture, "none yet");
    incident.resolved_at = Some(at());
    let told = of(&incident, Update::Resolved);
    assert_eq!((&*told.capture, &*told.bundle), ("none: this rule captures nothing", &*folder));
}

#[test]
fn the_numbers_beside_a_factor_are_called_what_they_are() {
    let mut incident = fired();
    let told = message(&incident, Update::Fired).facts.how_much;
    let said = "DP2 is sent 2.6 times its usual share of the requests (1.41 times the firing bound)";
    assert_eq!(told, format!("{said}; load when it fired: DP2 46, DP0 9, DP1 10, DP3 8"));
    // A release before wrote no name.
    incident.finding.measured.as_mut().expect("the sample has one").members_signal = None;
    let told = message(&incident, Update::Fired).facts.how_much;
    assert_eq!(told, format!("{said}; the rule's signal when it fired: DP2 46, DP0 9, DP1 10, DP3 8"));
}

#[test]
fn a_message_after_the_first_tells_how_things_are_now_and_what_clients_notice() {
    let told = message(&sample(at()), Update::Verdict).facts;
    assert!(
        told.how_much.ends_with(
            "; load when it fired: DP2 46, DP0 9, DP1 10, DP3 8; now: DP2 54, DP0 9, DP1 10, DP3 8"
        ),
        "{}",
        told.how_much
    );
    assert_eq!(
        told.impact,
        "before the onset and now: tokens a second of all ranks 4810 -> 3920, time to the first token 0.3 s -> 1.4 s, \
         queued requests 0.2 -> 23"
    );
    let over = message(&resolved(), Update::Resolved).facts;
    assert!(over.how_much.contains("; before it ended: DP2 54"), "{}", over.how_much);
    assert!(over.impact.starts_with("before the onset and shortly before its end: "), "{}", over.impact);
    // What is not known is not told.
    let mut unknown = fired();
    unknown.impact = None;
    assert_eq!(message(&unknown, Update::Fired).facts.impact, "");
    unknown.finding.impact =
        Some(crate::finding::Impact { share: 0.42, requests: 30.6, reason: "excess".into() });
    assert_eq!(
        message(&unknown, Update::Fired).facts.impact,
        "31 requests (42 % of all) would be served faster if the load were even"
    );
}

#[test]
fn the_death_of_a_server_is_told_with_its_last_line_and_whether_a_window_was_open() {
    let mut incident = fired();
    let line =
        "[2026-11-24 03:48:46] Received sigquit from a child process. It usually means the child failed.";
    incident.died = Some(Death { at: at(), line: line.into(), window_open: true });
    insta::assert_snapshot!("terminal_died", text(&incident, Update::Died));
    let told = message(&incident, Update::Died);
    assert_eq!(
        (told.id.ends_with(":died"), slack(&told)["text"].as_str().map(|t| t.starts_with("🔴"))),
        (true, Some(true))
    );
    incident.died.as_mut().expect("it died").window_open = false;
    let told = message(&incident, Update::Died);
    assert!(told.title.ends_with(" died") && told.facts.death.starts_with("no window"), "{told:?}");
    assert_eq!(alerts(&told)[0].annotations["death"], told.facts.death);
}

#[test]
fn the_evidence_is_the_line_or_the_sample_or_the_numbers() {
    let of = |change: fn(&mut Finding)| {
        let mut incident = fired();
        change(&mut incident.finding);
        message(&incident, Update::Fired).facts.evidence
    };
    assert!(of(|_| {}).starts_with("[2026-11-24 03:48:41 DP2 TP0] Decode batch, #running-req: 31"));
    let no_line = of(|f| f.shown_by.as_mut().expect("the sample has one").line = None);
    assert_eq!(
        no_line,
        "load 46 at 2026-11-24 03:48:41.9 UTC, by log; when it fired DP2 is sent 2.6 times its usual share of the requests; \
         load of DP2: 46, its peers 9 10 8"
    );
    let said = "DP2 is sent 2.6 times its usual share of the requests";
    assert_eq!(of(|f| f.shown_by = None), format!("{said}; load of DP2: 46, its peers 9 10 8"));
    assert_eq!(of(|f| (f.shown_by, f.evidence) = (None, None)), "no single line");
}

#[test]
fn the_webhook_body_is_what_the_documentation_shows() {
    let value: serde_json::Value =
        serde_json::from_str(&message(&sample(at()), Update::Verdict).json()).expect("it is JSON");
    insta::assert_json_snapshot!("webhook_verdict", value);
}

#[test]
fn the_example_of_the_documentation_is_a_message_of_this_version() {
    let docs = include_str!("../../../../docs/notifications.md");
    let (_, rest) = docs.split_once("```json\n").expect("it shows one");
    let (json, _) = rest.split_once("```").expect("it ends");
    let shown: Message = serde_json::from_str(json).expect("it is a message");
    assert_eq!(shown.schema_version, SCHEMA_VERSION);
    assert_eq!(shown.facts, message(&sample(at()), Update::Verdict).facts);
}

#[test]
fn a_message_survives_the_outbox() {
    let before = message(&resolved(), Update::Resolved);
    assert_eq!(serde_json::from_str::<Message>(&before.json()).expect("it parses"), before);
}

#[test]
fn slack_gets_blocks_within_its_limits_and_with_its_escapes() {
    insta::assert_json_snapshot!("slack_fired", slack(&message(&fired(), Update::Fired)));
    let mut incident = fired();
    incident.rule = "r".repeat(400).into();
    incident.finding.shown_by = None;
    incident.finding.evidence = Some("<b>&\u{1f}".repeat(200));
    let body = slack(&message(&incident, Update::Fired));
    let header = body["blocks"][0]["text"]["text"].as_str().expect("a header");
    assert_eq!(header.chars().count(), 150);
    for block in body["blocks"].as_array().expect("blocks") {
        let section = block["text"]["text"].as_str().unwrap_or_default();
        assert!(section.chars().count() <= 3000, "{}", section.chars().count());
        assert!(!section.contains("<b>"), "{section}");
    }
}

#[test]
fn every_update_of_an_incident_is_the_same_alert_with_a_newer_end() {
    let first = alerts(&message(&fired(), Update::Fired)).remove(0);
    let last = alerts(&message(&resolved(), Update::Resolved)).remove(0);
    assert_eq!(first.labels, last.labels);
    assert_eq!(first.starts_at, last.starts_at);
    assert!(first.ends_at > last.ends_at);
    insta::assert_json_snapshot!("alertmanager_resolved", last);
}

#[test]
fn an_incident_that_becomes_graver_is_one_open_alert_and_the_milder_one_ends_at_once() {
    let mut incident = fired();
    incident.raise(Severity::Warning, at());
    assert_eq!(alerts(&message(&incident, Update::Fired)).len(), 1, "it was a warning before");
    let milder = alerts(&message(&incident, Update::Fired)).remove(0);
    incident.raise(Severity::Critical, Time::from_epoch_s(1_795_492_140.0));
    // As it is kept over a restart.
    let json = serde_json::to_string(&incident).expect("plain data");
    let mut incident: Incident = serde_json::from_str(&json).expect("its own JSON");
    let told = alerts(&message(&incident, Update::Fired));
    assert_eq!(told.iter().map(|a| &*a.labels["severity"]).collect::<Vec<_>>(), ["critical", "warning"]);
    assert_eq!(told[1].labels, milder.labels);
    assert_eq!(told[1].ends_at, "2026-11-24T03:49:00.000Z");
    assert!(told[0].ends_at > told[1].ends_at);
    incident.resolve(Time::from_epoch_s(1_795_492_197.0));
    let ends: Vec<String> =
        alerts(&message(&incident, Update::Resolved)).into_iter().map(|a| a.ends_at).collect();
    assert_eq!(ends, ["2026-11-24T03:49:57.000Z", "2026-11-24T03:49:00.000Z"]);
}

#[test]
fn where_the_blame_moves_every_message_tells_one_story_first_one_rank_then_the_other() {
    let mut incident = fired();
    let other = Finding { rank: Rank::dp(0).labels(), ..incident.finding.clone() };
    incident.blame(other, Time::from_epoch_s(1_795_492_139.0));
    let told = message(&incident, Update::Fired);
    assert_eq!(
        told.title,
        "dp-load-skew: first DP2, now DP0: DP0 is sent more than its usual share of requests on server"
    );
    assert_eq!(
        told.facts.rank,
        "DP0 of 4 on server (role=unified); first DP2 was blamed, until 2026-11-24 03:48:59.0 UTC: it is one trouble, and \
         what stands here is of DP0"
    );
    let end = Incident { verdict: None, ..incident.clone() };
    assert_eq!(
        message(&end, Update::Resolved).title,
        "dp-load-skew: first DP2, then DP0: resolved on server (was: DP0 is sent more than its usual share of requests)"
    );
    // Back again: nobody else is to blame.
    incident.blame(fired().finding, Time::from_epoch_s(1_795_492_145.0));
    let told = message(&incident, Update::Fired);
    assert!(
        told.title.starts_with("dp-load-skew: for a time DP0, now DP2 again: DP2 is sent"),
        "{}",
        told.title
    );
    let json = serde_json::to_string(&incident).expect("plain data");
    assert_eq!(serde_json::from_str::<Incident>(&json).expect("its own JSON"), incident);
    // However often it goes to and fro.
    for i in 0..40 {
        let rank = Rank::dp(i % 3).labels();
        incident.blame(Finding { rank, ..fired().finding }, at());
    }
    assert_eq!(incident.blamed_before.len(), 8);
}

#[test]
fn a_verdict_says_for_which_blame_it_was_made_and_confirms_no_other() {
    let mut incident = sample(at());
    assert!(
        message(&incident, Update::Verdict).facts.verdict.ends_with("(high confidence, confirms the rule)")
    );
    let other = Finding { rank: Rank::dp(0).labels(), ..incident.finding.clone() };
    incident.blame(other, Time::from_epoch_s(1_795_492_139.0));
    let told = message(&incident, Update::Verdict);
    assert!(
        told.facts
            .verdict
            .ends_with("(high confidence; compared while DP2 was blamed: it confirms nothing of DP0)"),
        "{}",
        told.facts.verdict
    );
    assert!(told.title.ends_with("on server (compared while DP2 was blamed)"), "{}", told.title);
    let json = serde_json::to_value(&incident).expect("plain data");
    assert_eq!(
        (&json["verdict"]["confirms"], &json["verdict"]["suspect"]["rank"]["dp_rank"]),
        (&serde_json::Value::Null, &2.into())
    );
    // A comparison that had begun before the blame moved is no other.
    let late = sample(at()).verdict.expect("it was compared");
    incident.conclude(1, late);
    assert_eq!(incident.verdict.as_ref().and_then(|v| v.confirms), None);
    // The opposite of the same rank is another blame, too.
    let mut starved = sample(at());
    starved.blame(Finding { side: Side::Low, ..starved.finding.clone() }, at());
    let told = message(&starved, Update::Verdict).facts.verdict;
    assert!(told.contains("compared while DP2 was blamed for the opposite: it confirms nothing"), "{told}");
}

#[test]
fn of_a_rank_that_hangs_it_is_told_for_how_long_it_stands_still_and_what_is_usual() {
    let mut incident = fired();
    let finding = &mut incident.finding;
    finding.evidence = Some("has work and has not moved while its peers did; load of DP2: 46".into());
    let measured = finding.measured.as_mut().expect("it was measured");
    (measured.signal, measured.value) = ("stuck".into(), 2.0);
    (incident.impact, incident.usual_pause_s) = (None, Some(1.4));
    let told = message(&incident, Update::Fired).facts.how_much;
    assert!(
        told.starts_with(
            "has work and has not moved while its peers did (it had stood still for 4.2 s when that was found; ranks with \
             work have paused for 1.4 s at most here); load when it fired: DP2 46"
        ),
        "{told}"
    );
    assert!(!told.contains("times the bound"), "{told}");
    // `stuck-rank` went on with what another rule had told before: since then it was no longer slow, but hung.
    incident.fired_at = incident.finding.onset - Duration::from_secs(30);
    let at = incident.finding.onset + Duration::from_secs(8);
    let (rank, side) = (incident.finding.rank.clone(), Side::Low);
    incident.finding.symptoms = vec![Symptom { at, rank, factor: "stuck".into(), side }];
    incident.usual_pause_s = None;
    assert!(incident.resolve(incident.finding.onset + Duration::from_secs(95)));
    let told = message(&incident, Update::Resolved).facts.how_much;
    assert!(told.contains("(it had stood still for 8 s when that was found); load"), "{told}");
    // It moved for a while before that counted as the end.
    incident.moved_again = Some(incident.finding.onset + Duration::from_secs(79));
    let told = message(&incident, Update::Resolved).facts.how_much;
    assert!(told.contains("(it had stood still for 8 s when that was found, 79 s in all); load"), "{told}");
}

#[test]
fn of_a_window_by_hand_no_rule_fired_and_no_rank_asked() {
    let finding = Finding::requested(at(), Some("a look".into()));
    let mut incident = Incident::new("x".into(), "by hand".into(), "server".into(), at(), finding);
    let told = |incident: &Incident| message(incident, Update::Captured).facts.since;
    assert_eq!(told(&incident), "asked for at 2026-11-24 03:48:46.1 UTC");
    incident.resolve(Time::from_epoch_s(1_795_492_130.0));
    assert_eq!(told(&incident), "asked for at 2026-11-24 03:48:46.1 UTC, over at 2026-11-24 03:48:50.0 UTC");
    // An alert of another system has begun before.
    incident.finding.onset = Time::from_epoch_s(1_795_492_066.0);
    assert!(told(&incident).starts_with(
        "asked for at 2026-11-24 03:48:46.1 UTC, for an alert of 2026-11-24 03:47:46.0 UTC, over"
    ));
}

#[test]
fn of_an_end_that_no_agent_saw_only_that_is_said() {
    let incident = Incident { ended_unseen: true, ..resolved() };
    let told = message(&incident, Update::Resolved).facts.since;
    let said =
        "; its end was not seen, since the agent was restarted: it was over at 2026-11-24 03:49:57.0 UTC";
    assert!(told.ends_with(said), "{told}");
}

#[test]
fn a_rule_label_cannot_take_the_place_of_what_the_incident_is() {
    let mut incident = fired();
    incident.labels = serde_json::from_str(r#"{"severity": "none", "1 team": "infra"}"#).expect("labels");
    let labels = alerts(&message(&incident, Update::Fired)).remove(0).labels;
    assert_eq!(labels["severity"], "warning");
    assert_eq!(labels["_1_team"], "infra");
}

#[test]
fn a_wide_group_is_counted_not_listed_and_the_blamed_rank_comes_first() {
    let mut incident = fired();
    incident.finding.members = (0..64)
        .map(|i| crate::finding::MemberValue { rank: Rank::dp(i).labels(), value: 1.0, stale: i == 3 })
        .collect();
    incident.finding.rank = Rank::dp(40).labels();
    let line = message(&incident, Update::Fired).facts.how_much;
    assert!(line.contains(": DP40 1, DP0 1, DP1 1, DP2 1, DP3 1 (silent)"), "{line}");
    assert!(line.ends_with(" and 56 more"), "{line}");
}

#[test]
fn numbers_and_durations_read_as_people_say_them() {
    for (value, text) in [(46.0, "46"), (2.1004, "2.1"), (0.032, "0.032"), (1520.4, "1520"), (0.0, "0")] {
        assert_eq!(figure(value), text);
    }
}

#[test]
fn a_title_says_in_words_what_is_uneven_and_the_statistic_stands_in_the_details() {
    let title = |statistic, signal: &str, side, values: &[f64]| {
        let mut incident = fired();
        let finding = &mut incident.finding;
        let measured =
            Measured { statistic, signal: signal.into(), value: 0.0, bound: 0.9, members_signal: None };
        (finding.side, finding.measured, finding.rank) = (side, Some(measured), Rank::dp(0).labels());
        let member =
            |(i, value): (u16, &f64)| MemberValue { rank: Rank::dp(i).labels(), value: *value, stale: false };
        finding.members = (0..).zip(values).map(member).collect();
        message(&incident, Update::Fired).title
    };
    use crate::finding::Statistic as S;
    use Side::{High, Low};
    for (statistic, signal, side, values, says) in [
        (S::MinOverMean, "load", Low, &[0.0, 6.0, 5.0][..], "DP0 gets almost no requests (0 of 11)"),
        (S::MinOverMean, "load", Low, &[3.0, 6.0, 5.0], "DP0 gets fewer requests than its peers (3 of 14)"),
        (
            S::MaxOverMean,
            "running_reqs",
            High,
            &[20.0, 6.0, 5.0],
            "DP0 has most of the running requests (20 of 31)",
        ),
        (S::Departure, "load", High, &[9.0, 6.0, 5.0], "DP0 has more requests than its peers (9 of 20)"),
        (
            S::Departure,
            "load",
            High,
            &[6.0, 6.0, 8.0],
            "DP0 gets less done than its peers, at 6 of 20 requests",
        ),
        (
            S::MaxMinusMin,
            "kv_usage",
            High,
            &[0.93, 0.3, 0.31],
            "DP0's kv usage is above its peers' (0.93, theirs about 0.3)",
        ),
        (S::AnyMember, "kv_usage", High, &[0.93, 0.3], "DP0's kv usage is 0.93, above 0.9"),
        (S::AllMembers, "kv_usage", High, &[0.93, 0.95], "every rank's kv usage is above 0.9"),
    ] {
        assert_eq!(title(statistic, signal, side, values), format!("dp-load-skew: {says} on server"));
    }
}

#[test]
fn a_line_whose_number_does_not_show_what_is_claimed_is_no_evidence() {
    let mut incident = fired();
    incident.finding.shown_by.as_mut().expect("the sample has one").value = 12.0;
    let evidence = message(&incident, Update::Fired).facts.evidence;
    let said = "DP2 is sent 2.6 times its usual share of the requests";
    assert_eq!(evidence, format!("{said}; load of DP2: 46, its peers 9 10 8"));
}

#[test]
fn a_window_by_hand_blames_nobody() {
    let finding = Finding::requested(at(), Some("a look".into()));
    let mut incident = Incident::new("x".into(), "by hand".into(), "server".into(), at(), finding);
    incident.capture = sample(at()).capture;
    let told = message(&incident, Update::Captured);
    assert_eq!(told.title, "by hand: captured 4 files on server");
    assert_eq!(told.facts.rank, "none in particular, on server");
    assert_eq!(told.facts.how_much, "");
}

#[test]
fn a_sample_ends_by_itself_in_alertmanager_and_is_named_as_a_test() {
    let told = Message { test: true, ..message(&sample(at()), Update::Verdict) };
    let alert = alerts(&told).remove(0);
    assert_eq!((&*alert.labels["alertname"], &*alert.labels["test"]), ("SkewtrapTest", "true"));
    let end: jiff::Timestamp = alert.ends_at.parse().expect("a time");
    let began: jiff::Timestamp = alert.starts_at.parse().expect("a time");
    assert_eq!(end.duration_since(began).as_secs(), 120);
}

#[test]
fn a_capture_in_which_nothing_could_be_seen_costs_an_unknown_time_and_never_nothing() {
    let mut incident = sample(at());
    let CaptureOutcome::Done(captured) = incident.capture.clone() else { unreachable!("the sample is done") };
    let mut cost = |stall_s| {
        let unseen_stall_below_s = Some(1.8);
        let capture = Captured { stall_s, longest_stall_s: None, unseen_stall_below_s, ..captured.clone() };
        incident.capture = CaptureOutcome::Done(capture);
        Facts::of(&incident, &Origin::default()).cost
    };
    let unknown = cost(0.0);
    assert!(
        unknown.starts_with(
            "unknown: no silence of 1.8 s or longer was seen, and shorter ones could not be; the window"
        ),
        "{unknown}"
    );
    let some = cost(2.5);
    assert!(
        some.starts_with("at least 2.5 s of serving (silences shorter than 1.8 s could not be seen); the")
    );
}

/// One that got worse after its capture, ten minutes later, and was captured again.
fn captured_again() -> Incident {
    let mut incident = sample(at());
    let worse_at = at() + std::time::Duration::from_secs(600);
    let CaptureOutcome::Done(first) = incident.capture.clone() else { unreachable!("the sample is done") };
    let again = Captured { started_at: worse_at, start_delay_s: 0.002, open_s: 0.8, stall_s: 0.5, ..first };
    let again = CaptureOutcome::Done(again);
    incident.capture_again(again, Some(1.68));
    let (window, refused) = (incident.window(), None);
    incident.worse = Some(Escalation { at: worse_at, value: 4.5, times_bound: 3.0, window, refused });
    incident
}

#[test]
fn a_second_capture_of_an_incident_is_told_beside_the_first_with_an_id_of_its_own() {
    let mut incident = captured_again();
    insta::assert_snapshot!("terminal_captured_again", text(&incident, Update::Captured));
    let id = |incident: &Incident, update| message(incident, update).id;
    assert!(id(&incident, Update::Captured).ends_with(":captured:2"));
    assert!(id(&incident, Update::Verdict).ends_with(":verdict:2"));
    assert!(id(&incident, Update::Resolved).ends_with(":resolved"));
    let refused = Refused { reason: Reason::Unhealthy, why: "the server is not healthy (503)".into() };
    let at = at() + std::time::Duration::from_secs(900);
    incident.worse = Some(Escalation { at, value: 7.5, times_bound: 5.0, window: 3, refused: Some(refused) });
    insta::assert_snapshot!("terminal_refused_again", text(&incident, Update::Refused));
    assert!(id(&incident, Update::Refused).ends_with(":refused:3"));
}

#[test]
fn the_windows_of_an_incident_survive_its_json_and_one_of_before_has_none() {
    let incident = captured_again();
    let json = serde_json::to_string(&incident).expect("plain data");
    assert_eq!(serde_json::from_str::<Incident>(&json).expect("its own JSON"), incident);
    let before = serde_json::to_value(sample(at())).expect("plain data");
    assert!(before.get("earlier").is_none() && before.get("worse").is_none());
    let refused: CaptureOutcome =
        serde_json::from_str(r#"{"state": "refused", "why": "the rule cools down"}"#).expect("of before");
    assert_eq!(refused.refused().map(|r| r.why.as_str()), Some("the rule cools down"));
    assert_eq!(
        incident.earlier.iter().map(|e: &EarlierCapture| e.capture.word()).collect::<Vec<_>>(),
        ["done"]
    );
}

#[test]
fn a_message_that_could_not_be_delivered_for_long_says_how_old_it_is() {
    let message = message(&fired(), Update::Fired);
    assert_eq!(*message.sent_at(message.at + Duration::from_secs(60)), message);
    let late = message.sent_at(message.at + Duration::from_secs(2 * 3600)).into_owned();
    assert!(late.notes[0].starts_with("this message is 2 h old"), "{:?}", late.notes);
    assert_eq!((late.id, late.facts), (message.id, message.facts));
}

#[test]
fn of_a_few_ranks_that_were_seen_later_no_more_are_counted_than_were_seen() {
    let mut incident = fired();
    let all = |n: u16| {
        (0..n).map(|i| MemberValue { rank: Rank::dp(i).labels(), value: 9.0, stale: false }).collect()
    };
    incident.finding.members = all(12);
    let impact = incident.impact.as_mut().expect("the sample has one");
    (impact.at, impact.members) = (at() + Duration::from_secs(8), all(3));
    let told = message(&incident, Update::Captured).facts.how_much;
    assert!(told.contains("DP7 9 and 4 more; now: DP2 9, DP0 9, DP1 9"), "{told}");
    assert!(!told.ends_with("more"), "{told}");
}

#[test]
fn a_section_of_slack_stays_within_its_limit_whatever_must_be_escaped() {
    let mut incident = fired();
    let text = "<&>".repeat(300);
    incident.about = Some(text.clone());
    incident.bundle = Some(text.clone());
    incident.capture = CaptureOutcome::Failed { why: text.clone(), captured: None };
    incident.finding.evidence = Some(text);
    incident.finding.shown_by = None;
    let body = slack(&message(&incident, Update::Fired));
    let lengths = body["blocks"]
        .as_array()
        .expect("blocks")
        .iter()
        .map(|block| block["text"]["text"].as_str().map_or(0, |text| text.chars().count()));
    let longest = lengths.max();
    assert!(longest <= Some(3000), "Slack refuses the message: {longest:?}");
    assert!(body.to_string().contains("&lt;&amp;&gt;") && !body.to_string().contains("&lt…"), "{body}");
}

#[test]
fn an_alert_never_ends_before_it_began_whatever_the_clock_did() {
    let mut incident = resolved();
    incident.resolved_at = Some(at() - Duration::from_secs(3600));
    let alert = &alerts(&message(&incident, Update::Resolved))[0];
    assert_eq!(alert.ends_at, alert.starts_at, "Alertmanager refuses another");
}
