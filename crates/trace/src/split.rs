//! Where the wall time of a step goes: work on the GPU, waiting in collectives, a GPU that idles while
//! the host works, and a GPU without work; and how one rank's steps differ from its peers' in that.

use serde::Serialize;

use crate::profile::Step;
use crate::step::StepKind;

/// The wall time of a step, from its start to that of the next, milliseconds. The parts add up to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Split {
    /// Any kernel but communication ran.
    pub work: f64,
    /// Only communication ran: waiting for other ranks, and transfer.
    pub collectives: f64,
    /// No kernel ran although the step had requests: the host prepared the batch, launched kernels, or
    /// did not get to run.
    pub host: f64,
    /// No kernel ran, in steps without requests.
    pub no_work: f64,
}

impl Split {
    /// The mean over `steps`.
    pub fn of(steps: &[Step]) -> Self {
        let n = steps.len().max(1) as f64;
        let mut sum = Self::default();
        for s in steps {
            sum.work += s.work_ns as f64 / 1e6 / n;
            sum.collectives += s.busy_ns.saturating_sub(s.work_ns) as f64 / 1e6 / n;
            let gap = s.gap_ns() as f64 / 1e6 / n;
            if s.kind == StepKind::Idle { sum.no_work += gap } else { sum.host += gap }
        }
        sum
    }

    /// The whole step.
    pub fn wall(&self) -> f64 {
        self.work + self.collectives + self.host + self.no_work
    }

    /// One part, milliseconds.
    pub fn part(&self, part: Part) -> f64 {
        match part {
            Part::Work => self.work,
            Part::Collectives => self.collectives,
            Part::Host => self.host,
            Part::NoWork => self.no_work,
        }
    }

    /// The split whose every part is what `of` says.
    pub fn from_parts(of: impl Fn(Part) -> f64) -> Self {
        Self {
            work: of(Part::Work),
            collectives: of(Part::Collectives),
            host: of(Part::Host),
            no_work: of(Part::NoWork),
        }
    }
}

/// A part of a step's wall time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Work on the GPU.
    Work,
    /// Waiting in collectives, and transfer.
    Collectives,
    /// The GPU idles while the host works.
    Host,
    /// The GPU idles without work.
    NoWork,
}

impl Part {
    const ALL: [Self; 4] = [Self::Work, Self::Collectives, Self::Host, Self::NoWork];

    /// In a sentence, after "of that is".
    pub const fn phrase(self) -> &'static str {
        match self {
            Self::Work => "GPU work",
            Self::Collectives => "waiting in collectives",
            Self::Host => "host time before kernels",
            Self::NoWork => "idling without requests",
        }
    }
}

/// How the steps of the culprit differ from its peers'.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StepSplit {
    /// Its step, milliseconds.
    pub wall_ms: f64,
    /// The median of its peers' steps, milliseconds.
    pub peers_wall_ms: f64,
    /// What each part takes longer than on its peers (their median), milliseconds per step; negative
    /// where it takes less.
    pub beyond_ms: Split,
    /// The part that grew most.
    pub largest: Part,
    /// Its share of everything that grew, 0 to 1.
    pub largest_share: f64,
    /// The kind of step in which at least two thirds of its host time lie, where both kinds ran.
    pub host_in: Option<StepKind>,
}

impl StepSplit {
    /// The split of a rank, whose steps are `steps`, against the medians of its peers.
    pub fn new(mine: Split, peers: Split, peers_wall_ms: f64, steps: &[Step]) -> Self {
        let beyond = Split::from_parts(|part| mine.part(part) - peers.part(part));
        let grown: f64 = Part::ALL.iter().map(|p| beyond.part(*p).max(0.0)).sum();
        let largest = Part::ALL
            .into_iter()
            .max_by(|a, b| beyond.part(*a).total_cmp(&beyond.part(*b)))
            .unwrap_or(Part::Work);
        Self {
            wall_ms: mine.wall(),
            peers_wall_ms,
            beyond_ms: beyond,
            largest,
            largest_share: if grown > 0.0 { beyond.part(largest).max(0.0) / grown } else { 0.0 },
            host_in: host_in(steps),
        }
    }

    /// What the whole step takes longer, as a share of the peers' step.
    pub fn relative(&self) -> f64 {
        (self.wall_ms - self.peers_wall_ms) / self.peers_wall_ms.max(1e-9)
    }
}

/// The kind of step that holds at least two thirds of the host time, if others ran, too.
fn host_in(steps: &[Step]) -> Option<StepKind> {
    let gap = |kind: StepKind| -> u64 { steps.iter().filter(|s| s.kind == kind).map(Step::gap_ns).sum() };
    let total: u64 = steps.iter().map(Step::gap_ns).sum();
    let mixed = steps.iter().any(|s| s.kind != steps[0].kind);
    [StepKind::Extend, StepKind::Decode].into_iter().find(|k| mixed && 3 * gap(*k) >= 2 * total && total > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(kind: StepKind, wall_ns: u64, busy_ns: u64, work_ns: u64) -> Step {
        Step {
            start: 0,
            wall_ns,
            busy_ns,
            work_ns,
            longest_gap_ns: 0,
            rows: 1,
            launches: 1,
            kind,
            requests: None,
            tokens: None,
        }
    }

    #[test]
    fn the_parts_of_a_step_add_up_to_its_wall_time() {
        let steps = [
            step(StepKind::Decode, 10_000_000, 6_000_000, 4_000_000),
            step(StepKind::Idle, 2_000_000, 1_000_000, 0),
        ];
        let s = Split::of(&steps);
        assert_eq!((s.work, s.collectives, s.host, s.no_work), (2.0, 1.5, 2.0, 0.5));
        assert_eq!(s.wall(), 6.0);
    }

    #[test]
    fn the_part_that_grew_most_is_named_with_its_share_of_all_growth() {
        let of = |work, host| Split { work, host, ..Split::default() };
        let steps = [step(StepKind::Extend, 9, 1, 1), step(StepKind::Decode, 3, 1, 1)];
        let s = StepSplit::new(of(1.0, 20.0), of(0.5, 3.0), 3.5, &steps);
        assert_eq!((s.wall_ms, s.peers_wall_ms, s.largest), (21.0, 3.5, Part::Host));
        assert!((s.largest_share - 17.0 / 17.5).abs() < 1e-9);
        assert_eq!(s.host_in, Some(StepKind::Extend));
    }
}
