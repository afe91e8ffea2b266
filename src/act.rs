//! Changes the world: profile windows, incident bundles, state, notifications. The only code that can
//! hurt a server.

pub mod bundle;
pub mod command;
pub mod lease;
pub mod merge;
pub mod notify;
pub mod nsys;
pub mod profile;
pub mod retention;
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
