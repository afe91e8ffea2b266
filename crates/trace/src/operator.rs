//! In which operator a slow host spends its time, from the CPU rows of traces.
//!
//! Rows of the host nest: what runs inside of an operator is in its time, too. So of all names that take
//! longer on the blamed rank than on its peers, several tell the same time; the one that is named is the
//! innermost, which takes the least and still nearly all of it.

use std::collections::HashMap;
use std::io::Read;
use std::ops::ControlFlow;

use serde::Serialize;

use crate::read::NotATrace;
use crate::read::event::Wanted;
use crate::read::kineto::for_each_wanted;
use crate::stats::median;
use crate::step::parse_annotation;

/// The most names that are counted: this bounds the work on a hostile file.
const MAX_NAMES: usize = 20_000;
/// An operator that takes less than this share of the host time that is lost does not explain it.
const EXPLAINS: f64 = 0.5;
/// The share of the largest excess that the innermost operator still has.
const NEARLY_ALL: f64 = 0.8;

/// The operator in which a host spends the time that it loses.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Operator {
    /// As the profiler wrote it.
    pub name: String,
    /// Milliseconds in it per step.
    pub ms_per_step: f64,
    /// The same of its peers, their median.
    pub peers_ms_per_step: f64,
}

/// How long a rank's host was in each operator.
#[derive(Clone, Debug, Default)]
pub struct HostTimes {
    by_name: HashMap<Vec<u8>, u64>,
    steps: usize,
}

impl HostTimes {
    /// Of a rank whose window had so many steps.
    pub fn of_steps(steps: usize) -> Self {
        Self { steps, ..Self::default() }
    }

    /// Adds the CPU rows of a trace.
    ///
    /// # Errors
    /// When the bytes are not a trace at all.
    pub fn read(&mut self, reader: impl Read) -> Result<(), NotATrace> {
        for_each_wanted(reader, Wanted::Operators, |_, event| {
            let name = event.name();
            let is_step = || std::str::from_utf8(&name).is_ok_and(|text| parse_annotation(text).is_some());
            if event.is_complete()
                && let Some((_, ns)) = event.times()
                && !is_step()
            {
                self.add(&name, u64::try_from(ns).unwrap_or(0));
            }
            ControlFlow::Continue(())
        })?;
        Ok(())
    }

    fn add(&mut self, name: &[u8], ns: u64) {
        if let Some(sum) = self.by_name.get_mut(name) {
            *sum = sum.saturating_add(ns);
        } else if self.by_name.len() < MAX_NAMES {
            self.by_name.insert(name.to_vec(), ns);
        }
    }

    fn ms_per_step(&self, name: &[u8]) -> f64 {
        let ns = self.by_name.get(name).copied().unwrap_or(0);
        ns as f64 / 1e6 / self.steps.max(1) as f64
    }
}

/// The operator in which `own` spends most of the `lost_ms` that its steps take longer by its host.
pub fn slowest(own: &HostTimes, peers: &[HostTimes], lost_ms: f64) -> Option<Operator> {
    let excess = |name: &Vec<u8>| {
        let of_peers: Vec<f64> = peers.iter().map(|peer| peer.ms_per_step(name)).collect();
        let typical = median(&of_peers)?;
        Some((own.ms_per_step(name) - typical, typical))
    };
    let all: Vec<(&Vec<u8>, f64, f64)> =
        own.by_name.keys().filter_map(|name| excess(name).map(|(ms, typical)| (name, ms, typical))).collect();
    let most = all.iter().map(|o| o.1).fold(0.0, f64::max);
    if most < EXPLAINS * lost_ms || most <= 0.0 {
        return None;
    }
    let nearly_all = all.into_iter().filter(|o| o.1 >= NEARLY_ALL * most);
    let total = |o: &(&Vec<u8>, f64, f64)| o.1 + o.2;
    let (name, ms, typical) =
        nearly_all.min_by(|a, b| total(a).total_cmp(&total(b)).then_with(|| a.0.cmp(b.0)))?;
    Some(Operator {
        name: String::from_utf8_lossy(name).into_owned(),
        ms_per_step: ms + typical,
        peers_ms_per_step: typical,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(rows: &[(&str, &str, u32)]) -> HostTimes {
        let event = |(cat, name, us): &(&str, &str, u32)| {
            format!(r#"{{"ph":"X","cat":"{cat}","name":"{name}","tid":1,"ts":1,"dur":{us}}}"#)
        };
        let events: Vec<String> = rows.iter().map(event).collect();
        let mut times = HostTimes::of_steps(2);
        let text = format!(r#"{{"traceEvents":[{}]}}"#, events.join(","));
        times.read(text.as_bytes()).expect("a trace");
        times
    }

    #[test]
    fn the_innermost_operator_that_takes_nearly_all_of_the_lost_time_is_named() {
        let slow = times(&[
            ("user_annotation", "step[DECODE bs=8]", 24_000),
            ("user_annotation", "scheduler.event_loop", 22_000),
            ("cpu_op", "recv_requests", 20_400),
            ("cpu_op", "aten::nonzero", 19_000),
            ("cpu_op", "aten::add", 500),
            ("kernel", "recv_requests", 90_000),
        ]);
        let usual = times(&[
            ("user_annotation", "step[DECODE bs=8]", 4_000),
            ("user_annotation", "scheduler.event_loop", 2_000),
            ("cpu_op", "recv_requests", 400),
            ("cpu_op", "aten::add", 500),
        ]);
        let peers = [usual.clone(), usual.clone(), slow.clone()];
        let named = slowest(&slow, &peers, 10.0).expect("one explains it");
        assert_eq!((named.name.as_str(), named.ms_per_step), ("aten::nonzero", 9.5));
        assert_eq!(named.peers_ms_per_step, 0.0);
        assert_eq!(slowest(&usual, &peers, 10.0), None, "nothing of it is longer");
        assert_eq!(slowest(&slow, &peers, 25.0), None, "none explains half of what is lost");
        assert_eq!(slowest(&slow, &[], 10.0), None, "there is nobody to compare with");
    }
}
