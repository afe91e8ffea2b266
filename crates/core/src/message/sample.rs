//! A made-up incident, for `skewtrap notify-test`, the documentation and tests.

use crate::capture::captured::{CaptureKind, Captured, CapturedFile, Quality};
use crate::cause::{Cause, CauseKind, Certainty};
use crate::finding::{Finding, Measured, MemberValue, Side, Statistic};
use crate::incident::{BeforeAndNow, CaptureOutcome, Impact, Incident, IncidentState, VerdictNote};
use crate::signal::sample::{SampleEvidence, Source};
use skewtrap_trace::Suspect;
use skewtrap_trace::labels::{LabelValue, Labels};
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;
use skewtrap_trace::verdict::{Confidence, Kind};

/// A captured and compared incident that fired at `fired_at`: DP2 of four ranks has five times the load
/// of its peers.
pub fn sample(fired_at: Time) -> Incident {
    let id = format!("{}-dp-load-skew-test", stamp(fired_at));
    let bundle = format!("/var/lib/skewtrap/incidents/{id}");
    let about =
        "One DP rank is sent more or less than its share, works slower than usual, or gets heavier requests.";
    let mut incident =
        Incident::new(id.into(), "dp-load-skew".into(), "server".into(), fired_at, finding(fired_at));
    incident.about = Some(about.into());
    incident.group = Labels([("role".into(), LabelValue::Text("unified".into()))].into());
    incident.state = IncidentState::Compared;
    incident.cause = Some(cause(fired_at));
    incident.impact = Some(impact(fired_at));
    incident.capture = CaptureOutcome::Done(captured(fired_at));
    incident.verdict = Some(verdict());
    incident.bundle = Some(bundle);
    incident
}

fn finding(fired_at: Time) -> Finding {
    let onset = fired_at - std::time::Duration::from_millis(4_200);
    let values = [9.0, 10.0, 46.0, 8.0];
    Finding {
        onset,
        onset_error_s: 0.8,
        rank: Rank::dp(2).labels(),
        side: Side::High,
        measured: Some(Measured {
            statistic: Statistic::Factors,
            signal: "share".into(),
            value: 1.41,
            bound: 1.0,
            members_signal: Some("load".into()),
        }),
        members: (0..4).map(|i| member(i, values[usize::from(i)])).collect(),
        evidence: Some(
            "DP2 is sent 2.6 times its usual share of the requests; load of DP2: 46, its peers 9 10 8".into(),
        ),
        shown_by: Some(SampleEvidence {
            at: onset,
            value: 46.0,
            source: Source::Log,
            line: Some(
                "[2026-11-24 03:48:41 DP2 TP0] Decode batch, #running-req: 31, #token: 20481, token usage: 0.31, \
                 gen throughput (token/s): 1204.11, #queue-req: 15"
                    .into(),
            ),
        }),
        also: Vec::new(),
        symptoms: Vec::new(),
        impact: None,
    }
}

fn verdict() -> VerdictNote {
    VerdictNote {
        kind: Kind::UnevenWork,
        rank: Some(Rank::dp(2).labels()),
        by: None,
        sentence: "DP2 has more to do than its peers: its batches have 31.0 requests, theirs 9.0; 1.9 ms of GPU work a \
                   step beyond their median (+48 %), 61 % of it in attention (_fwd_grouped_kernel_stage1)."
            .into(),
        lost_ms_per_step: Some(1.9),
        confidence: Confidence::High,
        confirms: Some(true),
        suspect: Some(Suspect { rank: Rank::dp(2).labels(), has_less: false }),
    }
}

/// Eight seconds later.
fn impact(fired_at: Time) -> Impact {
    let values = [9.0, 10.0, 54.0, 8.0];
    let course = |before, now| Some(BeforeAndNow { before, now });
    Impact {
        at: fired_at + std::time::Duration::from_secs(8),
        tokens_per_s: course(4_810.0, 3_920.0),
        first_token_s: course(0.31, 1.4),
        waiting_reqs: course(0.2, 23.0),
        members: (0..4).map(|i| member(i, values[usize::from(i)])).collect(),
    }
}

fn cause(at: Time) -> Cause {
    Cause {
        kind: CauseKind::MoreRequests,
        statement: "the router sends DP2 more".into(),
        certainty: Certainty::Likely,
        support: vec!["its share of requests 25 % -> 66 %, from 03:48:41 on".into()],
        explains: Some(0.97),
        ruled_out: vec![
            "tokens per prompt 264 -> 274, its peers' 268 -> 283".into(),
            "speed at equal work 0.98 -> 0.97, its peers' 1.01 -> 0.99".into(),
        ],
        unknown: Vec::new(),
        step_slowdown: None,
        host_slowdown: None,
        at,
    }
}

fn stamp(at: Time) -> String {
    match jiff::Timestamp::from_nanosecond(i128::from(at.nanos())) {
        Ok(t) => t.strftime("%Y%m%dT%H%M%SZ").to_string(),
        Err(_) => "00000000T000000Z".into(),
    }
}

fn member(index: u16, value: f64) -> MemberValue {
    MemberValue { rank: Rank::dp(index).labels(), value, stale: false }
}

fn captured(fired_at: Time) -> Captured {
    let file = |i: u16| CapturedFile {
        path: format!("traces/1795492126.4-TP-0-DP-{i}.trace.json.gz"),
        size: 1_410_337 + 90_000 * u64::from(i),
        sha256: "0".repeat(64),
        rank: Some(Rank::dp(i).labels()),
        whole: true,
        ..CapturedFile::default()
    };
    Captured {
        means: CaptureKind::Http,
        started_at: fired_at,
        start_delay_s: 0.012,
        open_s: 0.9,
        stall_s: 0.4,
        quality: Quality::Usable,
        files: (0..4).map(file).collect(),
        ..Captured::default()
    }
}
