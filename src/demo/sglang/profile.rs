//! The profiler of one rank, as SGLang's scheduler keeps it: the request, the open window, and the steps
//! that start and stop it. It follows `profiler_manager.py` field by field, because the surprises (a
//! refused request that starts all the same, an armed window that no stop disarms) come from fields that
//! outlive each other.

use crate::demo::sglang::config::Version;
use crate::demo::sglang::order::Order;
use skewtrap_trace::time::Time;

/// The two stages of `profile_by_stage`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Prefill batches.
    Extend,
    /// Decode batches.
    Decode,
}

impl Stage {
    /// The word in file names and log lines.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Extend => "EXTEND",
            Self::Decode => "DECODE",
        }
    }
}

/// A window that is open on this rank.
#[derive(Clone, Debug, PartialEq)]
pub struct Open {
    /// Start of the recording; a second start discards what was recorded before.
    pub since: Time,
    /// Batch size of each step recorded, and whether it was a prefill.
    pub steps: Vec<(u32, bool)>,
    pub stage: Option<Stage>,
}

/// A window that was just closed.
#[derive(Clone, Debug, PartialEq)]
pub struct Closed {
    /// What was recorded.
    pub open: Open,
    /// The request that opened it.
    pub order: Order,
}

/// Why a start or a stop was refused, in SGLang's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A window is open.
    #[error("Profiling is already in progress. Call /stop_profile first.")]
    InProgress,
    /// No window is open.
    #[error("Profiling is not in progress. Call /start_profile first.")]
    NotInProgress,
}

/// What the profiler of a rank does before a forward step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepAction {
    /// Nothing.
    None,
    /// The window opens with this step.
    Start(Option<Stage>),
    /// The window closes before this step.
    Stop,
    /// A by-stage window without a number of steps: `None` is compared with a number, and raises.
    Crash,
}

/// The profiler of one rank.
#[derive(Clone, Debug, Default)]
pub struct Profiler {
    order: Order,
    open: Option<Open>,
    start_at: Option<u64>,
    stop_at: Option<u64>,
    by_stage: bool,
    stage_steps: u64,
}

impl Profiler {
    /// The window that is open, if any.
    pub const fn open(&self) -> Option<&Open> {
        self.open.as_ref()
    }

    /// The latest accepted request, whether or not its window is open.
    pub const fn order(&self) -> &Order {
        &self.order
    }

    /// Accepts a request; `forward` is the number of the last step.
    ///
    /// # Errors
    /// While a window is open.
    pub fn configure(&mut self, order: Order, forward: u64, version: Version) -> Result<(), Refusal> {
        if self.open.is_some() {
            return Err(Refusal::InProgress);
        }
        let steps = order.num_steps.filter(|n| *n > 0);
        let starts_later = order.start_step.filter(|s| *s > 0 && version > Version::V0_4_7);
        if let Some(step) = starts_later {
            self.start_at = Some(step.max(forward + 1));
        }
        self.by_stage = order.profile_by_stage;
        self.stage_steps = 0;
        self.stop_at = steps.filter(|_| !order.profile_by_stage).map(|n| match starts_later {
            Some(step) => step.max(forward + 1).saturating_add(n),
            // Up to 0.5.15 the step at which it stops was counted but not recorded.
            None => forward + n + u64::from(version >= Version::V0_5_16),
        });
        self.order = order;
        Ok(())
    }

    /// Opens the window. If one is open already, its recording is lost, and its folder and id stay.
    pub fn start(&mut self, now: Time, stage: Option<Stage>) {
        self.open = Some(Open { since: now, steps: Vec::new(), stage });
    }

    /// Forgets an open window without writing it.
    pub fn forget(&mut self) {
        self.open = None;
    }

    /// Closes the window.
    ///
    /// # Errors
    /// When none is open; an armed one stays armed.
    pub fn stop(&mut self) -> Result<Closed, Refusal> {
        let open = self.open.take().ok_or(Refusal::NotInProgress)?;
        self.start_at = None;
        self.by_stage = false;
        Ok(Closed { open, order: self.order.clone() })
    }

    /// What to do before step `forward`.
    pub fn before_step(&self, forward: u64, stage: Stage) -> StepAction {
        if self.by_stage {
            return self.before_step_by_stage(stage);
        }
        if self.open.is_some() && self.stop_at.is_some_and(|at| at <= forward) {
            StepAction::Stop
        } else if self.start_at == Some(forward) {
            StepAction::Start(None)
        } else {
            StepAction::None
        }
    }

    // The first decode batch cuts a prefill window short, so that on a server with mixed load only decode
    // files appear (docs/engines.md): the double opens decode windows only.
    fn before_step_by_stage(&self, stage: Stage) -> StepAction {
        let Some(wanted) = self.order.num_steps else {
            return StepAction::Crash;
        };
        match &self.open {
            Some(_) if self.stage_steps >= wanted => StepAction::Stop,
            None if stage == Stage::Decode && self.stage_steps < wanted => StepAction::Start(Some(stage)),
            _ => StepAction::None,
        }
    }

    /// A step ran.
    pub fn after_step(&mut self, batch: u32, stage: Stage) {
        if let Some(open) = &mut self.open {
            open.steps.push((batch, stage == Stage::Extend));
            if open.stage.is_none_or(|s| s == stage) {
                self.stage_steps += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(num_steps: Option<u64>, start_step: Option<u64>) -> Order {
        Order { num_steps, start_step, ..Order::default() }
    }

    /// How many steps a window records when a rank simply keeps stepping.
    fn steps_recorded(version: Version, start_step: Option<u64>) -> usize {
        let mut profiler = Profiler::default();
        profiler.configure(order(Some(5), start_step), 100, version).unwrap();
        if start_step.is_none() || version == Version::V0_4_7 {
            profiler.start(Time::default(), None);
        }
        for forward in 101..200 {
            match profiler.before_step(forward, Stage::Decode) {
                StepAction::Stop => return profiler.stop().unwrap().open.steps.len(),
                StepAction::Start(stage) => profiler.start(Time::default(), stage),
                StepAction::None | StepAction::Crash => {}
            }
            profiler.after_step(8, Stage::Decode);
        }
        0
    }

    #[test]
    fn without_start_step_one_step_is_missing_up_to_0_5_15_and_with_it_none_ever_is() {
        let table: Vec<_> = Version::ALL
            .iter()
            .map(|v| (v.text(), steps_recorded(*v, None), steps_recorded(*v, Some(1))))
            .collect();
        assert_eq!(
            table,
            [("0.4.7.post1", 4, 4), ("0.5.3", 4, 5), ("0.5.9", 4, 5), ("0.5.16", 5, 5), ("0.5.23", 5, 5)]
        );
    }

    #[test]
    fn a_stop_does_not_disarm_a_window_that_waits_for_its_step() {
        let mut profiler = Profiler::default();
        profiler.configure(order(Some(5), Some(1)), 100, Version::V0_5_16).unwrap();
        assert_eq!(profiler.stop(), Err(Refusal::NotInProgress));
        assert_eq!(profiler.before_step(101, Stage::Decode), StepAction::Start(None));
    }
}
