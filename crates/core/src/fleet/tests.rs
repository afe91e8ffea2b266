use super::*;
use crate::finding::{Finding, Side};
use crate::incident::{Death, Escalation, Exchange, FollowUp, Joined, Refused, VerdictNote};
use skewtrap_trace::rank::Rank;
use skewtrap_trace::verdict::Confidence;

fn incident(id: &str, dp: u16) -> Incident {
    let at = Time::from_epoch_s(1_795_492_125.0);
    let finding = Finding { onset_error_s: 0.5, ..Finding::of(Rank::dp(dp).labels(), Side::High, at) };
    Incident::new(id.into(), "dp-load-skew".into(), "server".into(), at, finding)
}

#[test]
fn an_incident_lies_under_its_pool_and_the_day_on_which_it_fired() {
    let incident = incident("20261124T034845Z-dp-load-skew-3f9a", 2);
    let day = "prod/incidents/2026-11-24/20261124T034845Z-dp-load-skew-3f9a";
    assert_eq!(folder_of("prod", &incident), day);
    let index = "prod/index/2026-11-24/20261124T034845Z-dp-load-skew-3f9a.jsonl";
    assert_eq!(index_of("prod", &incident), index);
}

#[test]
fn of_a_bundle_summaries_and_rows_of_kernels_are_stored_and_the_rest_stays_here_unless_it_is_said() {
    let nothing = Share::default();
    let (raw, secrets) = (Share { raw: true, ..nothing }, Share { secrets: true, ..nothing });
    let stored = |path: &str, share| object_of(path, share);
    assert_eq!(stored("summaries/dp2-tp0.summary.json", nothing).as_deref(), Some("dp2-tp0/summary.json"));
    assert_eq!(stored("summaries-2/dp2.summary.json", nothing).as_deref(), Some("dp2/summary-2.json"));
    assert_eq!(stored("kernels-2.csv", nothing).as_deref(), Some("kernels-2.csv"));
    for path in ["evidence.jsonl", "traces/x-TP-0.trace.json.gz", "server.log", "report.html"] {
        assert_eq!(stored(path, nothing), None, "{path}");
        assert_eq!(stored(path, secrets), None, "{path}");
        assert_eq!(stored(path, raw).as_deref(), Some(path));
    }
    for path in [
        "traces/a.nsys-rep",
        "traces/a.qdrep",
        "traces/a.sqlite",
        "traces/a.sqlite-wal",
        "traces/a.qdstrm",
        "left/a.arrow",
        "left/x",
        "left-2/x",
    ] {
        assert_eq!(stored(path, raw), None, "{path}");
        assert_eq!(stored(path, secrets).as_deref(), Some(path));
    }
    for path in ["incident.json", ".incident.json.partial", ".x/y", "pinned", "a/b/c", ""] {
        assert_eq!(stored(path, Share { raw: true, secrets: true }), None, "{path}");
    }
}

#[test]
fn a_record_leaves_its_host_without_text_of_logs_and_without_what_was_said_to_the_server() {
    let mut incident = incident("one", 2);
    let at = incident.fired_at;
    incident.died = Some(Death { at, line: "prompt: my secret".into(), window_open: false });
    incident.capture = CaptureOutcome::Failed { why: "it answered: my secret".into(), captured: None };
    let mut record = Record::new("agent".into(), incident);
    record.exchanges.push(Exchange {
        at,
        request: "nsys --token=my secret".into(),
        body: None,
        answer: "my secret".into(),
        took_s: 0.1,
    });
    let text = |r: &Record| serde_json::to_string(r).expect("it serialises");
    let shared_text = text(&shared(&record, Share::default()));
    assert!(!shared_text.contains("my secret"), "{shared_text}");
    assert!(shared_text.contains("dp-load-skew"));
    assert_eq!(shared(&record, Share { raw: true, secrets: false }), record);
}

#[test]
fn the_labels_of_an_alert_that_asked_for_a_window_stay_on_its_host_and_those_of_a_rule_leave_it() {
    use skewtrap_trace::labels::{LabelValue, Labels};
    let group = Labels([("customer".into(), LabelValue::Text("my secret".into()))].into());
    let of = |rule: &str| {
        let incident = Incident { rule: rule.into(), group: group.clone(), ..incident("one", 2) };
        Record::new("agent".into(), incident)
    };
    let by_alert = of(crate::incident::BY_HAND);
    assert_eq!(shared(&by_alert, Share::default()).incident.group, Labels::default());
    assert_eq!(shared(&by_alert, Share { raw: true, secrets: false }), by_alert);
    assert_eq!(shared(&of("dp-load-skew"), Share::default()).incident.group, group);
}

/// What of a record may leave its host as it is: what agents say and what names things.
const LEAVES: [&str; 11] = [
    "/agent",
    "/skewtrap",
    "/id",
    "/rule",
    "/about",
    "/target",
    "/bundle",
    "/joined/0/rule",
    "/joined/0/what",
    "/verdict/sentence",
    "/follow_up/why",
];

/// Where in a JSON value texts are.
fn texts(value: &serde_json::Value, at: String, found: &mut Vec<String>) {
    match value {
        serde_json::Value::String(_) => found.push(at),
        serde_json::Value::Array(list) => {
            list.iter().enumerate().for_each(|(n, v)| texts(v, format!("{at}/{n}"), found));
        }
        serde_json::Value::Object(map) => map.iter().for_each(|(k, v)| texts(v, format!("{at}/{k}"), found)),
        _ => {}
    }
}

#[test]
fn no_text_of_a_record_leaves_its_host_that_somebody_else_may_have_written() {
    let refused = || Refused { reason: Default::default(), why: "why".into() };
    let captured = || crate::incident::Captured { notes: vec!["note".into()], ..Default::default() };
    let failed = CaptureOutcome::Failed { why: "why".into(), captured: Some(captured()) };
    let mut incident = incident("one", 2);
    let at = incident.fired_at;
    incident.about = Some("about".into());
    incident.bundle = Some("/bundle".into());
    incident.finding.evidence = Some("what somebody wrote".into());
    incident.died = Some(Death { at, line: "a line".into(), window_open: false });
    let worse = Escalation { at, value: 2.0, times_bound: 1.5, window: 2, refused: Some(refused()) };
    incident.worse = Some(worse);
    incident.follow_up = Some(FollowUp { at, window: 2, why: "why".into(), refused: Some(refused()) });
    let rank = Rank::dp(1).labels();
    let (rule, what) = ("other".into(), "a number".into());
    incident.joined = vec![Joined { at, rule, rank, side: Side::High, what, until: None }];
    incident.verdict = Some(VerdictNote {
        kind: Kind::NoFinding,
        rank: None,
        by: None,
        sentence: "one".into(),
        lost_ms_per_step: None,
        confidence: Confidence::Low,
        confirms: None,
        suspect: None,
    });
    let again = |capture| crate::incident::EarlierCapture { times_bound: 1.2, capture, verdict: None };
    incident.earlier = vec![again(failed), again(CaptureOutcome::Refused(refused()))];
    incident.capture = CaptureOutcome::Done(captured());
    let whole = serde_json::to_value(Record::new("agent".into(), incident)).expect("it serialises");
    let mut paths = Vec::new();
    texts(&whole, String::new(), &mut paths);
    let mut tried = 0;
    for path in paths.iter().filter(|path| !LEAVES.contains(&path.as_str())) {
        let mut planted = whole.clone();
        *planted.pointer_mut(path).expect("it is there") = "my secret".into();
        // Where only some words may stand it is no record.
        let Ok(record) = serde_json::from_value::<Record>(planted) else { continue };
        let text = serde_json::to_string(&shared(&record, Share::default())).expect("it serialises");
        assert!(!text.contains("my secret"), "{path}: {text}");
        tried += 1;
    }
    assert!(tried >= 9, "{tried} of {paths:?}");
}

#[test]
fn an_incident_has_ended_when_it_is_resolved_and_what_it_captured_was_compared() {
    let mut record = Record::new("agent".into(), incident("one", 2));
    let at = |s: f64| Time::from_epoch_s(1_795_492_200.0 + s);
    assert!(!is_ended(&record, at(1e6), 600.0), "it fires");
    record.incident.resolve(at(0.0));
    assert!(is_ended(&record, at(0.0), 600.0));
    record.incident.capture = CaptureOutcome::Open { since: at(0.0), expects: None };
    assert!(!is_ended(&record, at(1e6), 600.0), "a window is open");
    let files = vec![crate::incident::CapturedFile::default()];
    record.incident.capture = CaptureOutcome::Done(crate::incident::Captured { files, ..Default::default() });
    assert!(!is_ended(&record, at(599.0), 600.0), "its ranks may still be compared");
    assert!(is_ended(&record, at(600.0), 600.0));
    record.incident.verdict = Some(VerdictNote {
        kind: Kind::NoFinding,
        rank: None,
        by: None,
        sentence: String::new(),
        lost_ms_per_step: None,
        confidence: Confidence::Low,
        confirms: None,
        suspect: None,
    });
    assert!(is_ended(&record, at(1.0), 600.0));
}

#[test]
fn a_line_of_the_index_survives_its_way_and_is_made_safe_to_show() {
    let line = IndexLine::new("prod", "node7", &incident("one", 2));
    assert_eq!(IndexLine::read(&line.object()), Some(line.clone()));
    assert_eq!(line.object().iter().filter(|b| **b == b'\n').count(), 1);
    let text = String::from_utf8(line.object()).expect("JSON");
    assert!(
        text.contains(r#""open_s":0.0,"stall_s":0.0"#),
        "nothing was captured, which cost nothing: {text}"
    );
    let hostile = IndexLine { host: "a\u{1b}[2Jb".into(), ..line.clone() };
    let read = IndexLine::read(&hostile.object()).expect("it is a line");
    assert_eq!(&*read.host, "a\u{fffd}[2Jb");
    let later = IndexLine { index: VERSION + 1, ..line };
    assert_eq!(IndexLine::read(&later.object()), None);
    assert_eq!(IndexLine::read(b"nonsense"), None);
}

#[test]
fn ranks_that_are_blamed_again_are_named_with_their_host() {
    let line = |host: &str, id: &str, dp| IndexLine::new("prod", host, &incident(id, dp));
    let captured = IndexLine { windows: 1, stall_s: 0.25, bytes: 1000, ..line("node1", "a", 2) };
    let refused = IndexLine { refused: Some("cooldown".into()), ..line("node2", "c", 2) };
    let view = FleetView::new([
        captured.clone(),
        line("node1", "b", 2),
        line("node1", "d", 3),
        refused,
        // The same incident again, as a later agent wrote it.
        captured,
    ]);
    assert_eq!((view.all.incidents, view.all.captured, view.all.bytes), (4, 1, 1000));
    let offenders: Vec<_> =
        view.repeat_offenders.iter().map(|o| (&*o.host, &*o.rank, o.tally.incidents)).collect();
    assert_eq!(offenders, [("node1", "DP2", 2)]);
    let hosts: Vec<_> = view.hosts.iter().map(|t| (&*t.name, t.incidents)).collect();
    assert_eq!(hosts, [("node1", 3), ("node2", 1)]);
    assert_eq!(view.refusals.iter().map(|t| &*t.name).collect::<Vec<_>>(), ["cooldown"]);
    assert_eq!(view.causes.iter().map(|t| &*t.name).collect::<Vec<_>>(), ["unknown"]);
}

#[test]
fn nobody_is_blamed_again_by_windows_that_were_asked_for_or_by_the_death_of_a_server() {
    let at = Time::from_epoch_s(1_795_492_125.0);
    let of_none = |id: &str, rule: &str| {
        let finding = Finding::requested(at, None);
        IndexLine::new("prod", "node1", &Incident::new(id.into(), rule.into(), "server".into(), at, finding))
    };
    let lines =
        [("a", "by hand"), ("b", "by hand"), ("c", "server-died")].map(|(id, rule)| of_none(id, rule));
    let view = FleetView::new(lines);
    assert_eq!((view.all.incidents, view.repeat_offenders), (3, Vec::new()));
}

#[test]
fn the_line_of_a_log_that_shows_a_finding_stays_on_its_host() {
    let mut incident = crate::message::sample(Time::from_epoch_s(1_795_492_125.0));
    let line = incident.finding.shown_by.as_ref().and_then(|shown| shown.line.clone()).expect("a line");
    let text = |incident: Incident, share| {
        serde_json::to_string(&shared(&Record::new("agent".into(), incident), share)).expect("it serialises")
    };
    assert!(!text(incident.clone(), Share::default()).contains(&line));
    assert!(text(incident.clone(), Share { raw: true, secrets: false }).contains(&line));
    // What the agent itself says of the numbers goes with it.
    incident.finding.evidence = Some("DP2 has 46".into());
    assert!(text(incident, Share::default()).contains("DP2 has 46"));
}
