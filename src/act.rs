//! Changes the world: profile windows, incident bundles, state, notifications. The only code that can
//! hurt a server.

pub mod bundle;
pub mod command;
pub mod log_queue;
pub mod merge;
pub mod notify;
pub mod nsys;
pub mod profile;
pub mod retention;
pub mod server_lock;
pub mod state;
pub mod systemd;

/// A resolved incident, for tests.
#[cfg(test)]
pub fn record_of_a_test(id: &str, fired_at_s: f64) -> skewtrap_core::incident::Record {
    use skewtrap_core::finding::{Finding, Measured, Side, Statistic};
    use skewtrap_core::incident::{Incident, IncidentState, Record};
    use skewtrap_trace::rank::Rank;
    use skewtrap_trace::time::Time;

    let fired_at = Time::from_epoch_s(fired_at_s);
    let finding = Finding {
        onset_error_s: 0.5,
        measured: Some(Measured {
            statistic: Statistic::MaxOverMean,
            signal: "load".into(),
            value: 2.1,
            bound: 1.5,
            members_signal: None,
        }),
        ..Finding::of(Rank::dp(2).labels(), Side::High, fired_at)
    };
    let (rule, target) = ("dp-load-skew".into(), "server".into());
    let incident = Incident {
        state: IncidentState::Resolved,
        resolved_at: Some(fired_at),
        ..Incident::new(id.into(), rule, target, fired_at, finding)
    };
    Record::new("agent".into(), incident)
}

/// An attempt at the first window of the incident `i1`, in the first second of all.
#[cfg(test)]
pub fn attempt_of_a_test(id: &str) -> skewtrap_core::capture::governor::Attempt {
    skewtrap_core::capture::governor::Attempt {
        id: id.into(),
        rule: "dp-load-skew".into(),
        target: "server".into(),
        group: "server".into(),
        incident: "i1".into(),
        firing: String::new(),
        at: skewtrap_trace::time::Time::default(),
        times_bound: 1.0,
        over_at: None,
        end: None,
    }
}

/// What is asked of a server for a window on DP0 that must be stopped at once.
#[cfg(test)]
pub fn request_of_a_test() -> skewtrap_core::capture::plan::StartRequest {
    use skewtrap_core::capture::{facts, line, plan, preflight};
    plan::StartRequest {
        engine: facts::ServerKind::Sglang,
        body: None,
        marks: line::Marks { dir: Some("/p/skewtrap-i1".into()), prefix: None, id: None },
        folder: None,
        form: plan::StartMode::Plain,
        ranks: preflight::Ranks { busy: vec![skewtrap_trace::rank::Rank::dp(0)], idle: Vec::new() },
        deadline: std::time::Duration::ZERO,
        hold: None,
        until_cleared: false,
        writes_files: true,
        merges: false,
        notes: Vec::new(),
        sizing: None,
    }
}
