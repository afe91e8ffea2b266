//! How much slower than usual the host of a server's slowest rank is: its own export of a window takes so much longer.

use crate::capture::prior;
use crate::cause::{Cause, CauseKind, Certainty};

/// A host that is slow, as nobody knows how much, writes a trace so many times slower than usual: 3.6 to 4.8 s for
/// each MB instead of 1.0 to 1.6.
const SLOW_HOST: f64 = 4.0;

/// As far as the cause of an incident tells; `None` where nobody knows.
pub(super) fn of(cause: Option<&Cause>) -> Option<f64> {
    let cause = cause?;
    match cause.kind {
        CauseKind::SlowHost | CauseKind::Slower => Some(by_machine_or_work(cause).unwrap_or(SLOW_HOST)),
        CauseKind::Stuck => Some(SLOW_HOST),
        // Likely means that it explains most of the gap: then no host does.
        _ if cause.certainty == Certainty::Likely => Some(1.0),
        _ => by_machine_or_work(cause),
    }
}

/// The same for a window that a person asks for, by the causes of all incidents that fire on its server: it has no
/// trouble of its own, but meets theirs.
pub(super) fn beside<'a>(causes: impl Iterator<Item = Option<&'a Cause>>) -> Option<f64> {
    let told: Vec<Option<f64>> = causes.map(of).collect();
    match told.iter().flatten().copied().reduce(f64::max) {
        Some(times) if times > 1.0 => Some(times),
        _ if told.contains(&None) => None,
        _ => Some(1.0),
    }
}

/// By the machine, else by how much longer work takes: a host may be slow though no process waits for a CPU.
fn by_machine_or_work(cause: &Cause) -> Option<f64> {
    let by_work = cause.step_slowdown.map(prior::host_behind);
    match cause.host_slowdown {
        Some(times) if times > 1.0 => Some(times),
        Some(_) => by_work.or(Some(prior::LEAST_MEASURED)),
        None => by_work,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skewtrap_trace::time::Time;

    fn cause(kind: CauseKind, certainty: Certainty, host_slowdown: Option<f64>) -> Cause {
        Cause {
            kind,
            statement: String::new(),
            certainty,
            support: Vec::new(),
            explains: None,
            ruled_out: Vec::new(),
            unknown: Vec::new(),
            step_slowdown: None,
            host_slowdown,
            at: Time::default(),
        }
    }

    #[test]
    fn a_window_by_hand_is_sized_for_the_slowest_host_of_the_incidents_that_it_meets() {
        let crowded = cause(CauseKind::SlowHost, Certainty::Likely, Some(5.0));
        let routed = cause(CauseKind::MoreRequests, Certainty::Likely, None);
        let unknown = cause(CauseKind::Unknown, Certainty::Unknown, None);
        assert_eq!(beside([].into_iter()), Some(1.0), "nothing is wrong");
        assert_eq!(beside([Some(&routed)].into_iter()), Some(1.0));
        assert_eq!(beside([Some(&routed), Some(&crowded), None].into_iter()), Some(5.0));
        for untold in [None, Some(&unknown)] {
            assert_eq!(beside([Some(&routed), untold].into_iter()), None, "a host may be why");
        }
    }
}
