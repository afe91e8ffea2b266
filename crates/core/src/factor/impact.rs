//! Impact: what a trouble costs the clients, which decides whether a window is spent on it.

use serde::{Deserialize, Serialize};

/// What is known of one rank's load.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Running requests.
    pub running: f64,
    /// Waiting requests.
    pub waiting: f64,
    /// Share of the KV cache in use, if known.
    pub kv_usage: Option<f64>,
}

/// Why a trouble hurts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// Requests wait on the blamed ranks while others have room.
    QueueBesideRoom,
    /// The blamed ranks hold more requests than their share.
    Excess,
    /// The blamed ranks could serve more while others are fuller.
    Unused,
    /// The blamed ranks do not move.
    Frozen,
    /// None of these.
    Little,
}

impl Reason {
    /// As in JSON: `queue_beside_room`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::QueueBesideRoom => "queue_beside_room",
            Self::Excess => "excess",
            Self::Unused => "unused",
            Self::Frozen => "frozen",
            Self::Little => "little",
        }
    }
}

/// How much a trouble hurts at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Impact {
    /// Requests that would be better off, were the load even.
    pub requests: f64,
    /// The same as a share of all requests, 0 to 1.
    pub share: f64,
    /// The main reason.
    pub reason: Reason,
}

/// A cache this full has no room.
const FULL: f64 = 0.95;

/// Estimates the impact of a trouble on `blamed`.
pub fn estimate(loads: &[Load], blamed: &[usize], is_frozen: bool) -> Impact {
    let all = |f: fn(&Load) -> f64| loads.iter().map(f).sum::<f64>();
    let total = all(|l| l.running + l.waiting);
    let theirs: f64 = blamed.iter().filter_map(|r| loads.get(*r)).map(|l| l.running + l.waiting).sum();
    let waiting: f64 = blamed.iter().filter_map(|r| loads.get(*r)).map(|l| l.waiting).sum();
    let fair = total * blamed.len() as f64 / loads.len().max(1) as f64;
    let has_room = loads
        .iter()
        .enumerate()
        .any(|(r, l)| !blamed.contains(&r) && l.waiting < 1.0 && l.kv_usage.is_none_or(|u| u < FULL));
    let (requests, reason) = match () {
        () if is_frozen => (theirs, Reason::Frozen),
        () if waiting >= 1.0 && has_room => (waiting.max(theirs - fair), Reason::QueueBesideRoom),
        () if theirs > fair => (theirs - fair, Reason::Excess),
        () if fair - theirs >= 1.0 => (fair - theirs, Reason::Unused),
        () => (0.0, Reason::Little),
    };
    Impact { requests, share: if total > 0.0 { (requests / total).min(1.0) } else { 0.0 }, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(running: f64, waiting: f64) -> Load {
        Load { running, waiting, kv_usage: None }
    }

    #[test]
    fn a_queue_on_one_rank_beside_idle_peers_is_harm() {
        let impact = estimate(&[load(60.0, 20.0), load(20.0, 0.0)], &[0], false);
        assert_eq!(impact.reason, Reason::QueueBesideRoom);
        assert_eq!(impact.requests, 30.0);
    }

    #[test]
    fn even_loads_are_no_harm() {
        assert_eq!(estimate(&[load(10.0, 0.0), load(10.0, 0.0)], &[0], false).reason, Reason::Little);
    }
}
