//! How many steps a window gets, and what it is predicted to cost: from what a rule asks for and what
//! the server's past windows taught ([`size`](super::size) has the law).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::HttpWindow;
use super::facts::{ServerFacts, ServerKind};
use super::refusal::Refusal;
use super::size::{
    DEFAULT_MAX_STALL, DEFAULT_STEPS, MIN_STEPS, MOST_STEPS, PastWindow, Recorded, WindowCosts,
};

/// A prediction is far off when the host slows down under the window: so many times must fit.
const TIMER_MARGIN: u32 = 3;

/// What is known when a window is sized.
#[derive(Clone, Copy, Debug)]
pub struct Knowledge {
    /// What the server's past windows taught.
    pub costs: WindowCosts,
    /// How many times slower than usual the host of its slowest rank is now; 1 where nobody knows.
    pub slowness: f64,
}

impl Default for Knowledge {
    /// A server without past windows, on a host as usual.
    fn default() -> Self {
        Self { costs: WindowCosts::default(), slowness: 1.0 }
    }
}

/// The size of a window, and what it was predicted to cost: its end is held against it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sizing {
    /// What it records.
    pub recorded: Recorded,
    /// Steps of each rank.
    pub steps: u32,
    /// How much slower than usual the slowest rank's host was.
    pub slowness: f64,
    /// The longest silence of a rank that is expected; `None` where nothing is known of such windows.
    pub predicted: Option<Duration>,
    /// What it may cost; `None` where a number of steps was asked for without a limit.
    pub max_stall: Option<Duration>,
    /// See [`PastWindow::server`].
    pub server: u64,
}

impl Sizing {
    /// The window when it is over: its largest file of a rank, and the longest silence of one.
    pub const fn past(&self, largest: u64, stall: Duration) -> PastWindow {
        PastWindow {
            recorded: self.recorded,
            steps: self.steps,
            largest,
            stall,
            slowness: self.slowness,
            predicted: self.predicted,
            server: self.server,
        }
    }

    /// Sizes the window `spec` with these `activities` on `server`.
    ///
    /// # Errors
    /// It would cost more than it may, or so much that the server's own timers might end it.
    pub fn of(
        spec: &HttpWindow,
        activities: &[String],
        server: &ServerFacts,
        known: &Knowledge,
    ) -> Result<Self, Refusal> {
        let recorded = recorded_by(spec, activities, server);
        let (steps, max_stall) = (spec.num_steps, max_stall_of(spec));
        let sized = |steps, predicted| Self {
            recorded,
            steps,
            slowness: known.slowness.max(1.0),
            predicted,
            max_stall,
            server: server.fingerprint(),
        };
        // Nothing of ours is written: nsys is, outside the ranks.
        if activities.iter().any(|a| a == "CUDA_PROFILER") {
            return Ok(sized(steps.unwrap_or(DEFAULT_STEPS), None));
        }
        // No window of vLLM was measured: a careful one teaches.
        if server.engine == ServerKind::Vllm && !known.costs.are_known() {
            return Ok(sized(steps.unwrap_or(MIN_STEPS), None));
        }
        let (limit, timer) = server.smallest_timer();
        let allowed = max_stall.unwrap_or(DEFAULT_MAX_STALL).min(limit / TIMER_MARGIN);
        // What a step takes differs by a factor of a hundred between models: the first window is small.
        let most = if known.costs.are_known() { MOST_STEPS } else { MIN_STEPS };
        let fit = || known.costs.size(recorded, most, known.slowness, allowed);
        let chosen = steps.unwrap_or_else(|| fit().map_or(MIN_STEPS, |size| size.steps));
        let predicted = known.costs.predicted(recorded, chosen, known.slowness);
        if let Some(max_stall) = max_stall.filter(|most| predicted > *most) {
            return Err(Refusal::TooCostly { asked: steps, steps: chosen, predicted, max_stall });
        }
        let is_accepted = spec.accept_risk.iter().any(|risk| risk == "server_timer");
        if predicted * TIMER_MARGIN > limit && !is_accepted {
            return Err(Refusal::ServerTimer { steps: chosen, predicted, limit, timer });
        }
        Ok(sized(chosen, Some(predicted)))
    }
}

/// What a window may cost: what the rule says, or the default where it gives no steps either.
pub fn max_stall_of(spec: &HttpWindow) -> Option<Duration> {
    spec.max_stall.or_else(|| spec.num_steps.is_none().then_some(DEFAULT_MAX_STALL))
}

/// What `steps` of a window are predicted to cost before a server's first: for who reads a rule.
pub fn before_the_first(spec: &HttpWindow, steps: u32) -> Duration {
    let activities = spec.activities.clone().unwrap_or_else(|| vec!["GPU".into()]);
    WindowCosts::default().predicted(recorded(spec, &activities, false), steps, 1.0)
}

fn recorded_by(spec: &HttpWindow, activities: &[String], server: &ServerFacts) -> Recorded {
    // vLLM is told at its launch what to record.
    if server.engine == ServerKind::Vllm {
        return Recorded::CpuGpu;
    }
    recorded(spec, activities, server.device == "cpu")
}

fn recorded(spec: &HttpWindow, activities: &[String], without_gpu: bool) -> Recorded {
    let only = |one: &str| activities.iter().all(|a| a == one);
    match () {
        () if spec.with_stack || spec.record_shapes => Recorded::Stacks,
        () if only("GPU") => Recorded::Gpu,
        () if only("CPU") && without_gpu => Recorded::Cpu,
        () if activities.iter().all(|a| a == "CPU" || a == "GPU") => Recorded::CpuGpu,
        // Of the others nothing was measured.
        () => Recorded::Stacks,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::capture::size::written;

    const MS: Duration = Duration::from_millis(1);

    fn server(device: &str, watchdog_s: u64) -> ServerFacts {
        let info = json!({"version": "0.5.16", "device": device, "watchdog_timeout": watchdog_s});
        ServerFacts::of_server_info(&info)
    }

    fn taught(windows: &[(u32, u64, u32)]) -> Knowledge {
        let past = windows.iter().map(|&(steps, largest, stall_ms)| PastWindow {
            recorded: Recorded::Gpu,
            steps,
            largest,
            stall: MS * stall_ms,
            slowness: 1.0,
            predicted: None,
            server: 0,
        });
        Knowledge { costs: WindowCosts::of(past), slowness: 1.0 }
    }

    fn sized(spec: &HttpWindow, known: &Knowledge) -> Result<Sizing, Refusal> {
        Sizing::of(spec, &["GPU".into()], &server("cuda", 300), known)
    }

    #[test]
    fn a_window_without_steps_gets_as_many_as_its_stall_allows() {
        let spec = HttpWindow::default();
        let first = sized(&spec, &Knowledge::default()).expect("it fits");
        assert_eq!((first.steps, first.max_stall), (MIN_STEPS, Some(DEFAULT_MAX_STALL)));
        let known = taught(&[(30, 300_000, 330); 5]);
        let next = sized(&spec, &known).expect("it fits");
        assert!(next.steps > 15 && next.predicted.is_some_and(|p| p <= DEFAULT_MAX_STALL), "{next:?}");
        let long = HttpWindow { max_stall: Some(MS * 5_000), ..HttpWindow::default() };
        assert_eq!(sized(&long, &Knowledge::default()).map(|first| first.steps), Ok(MIN_STEPS));
        let slow = sized(&spec, &Knowledge { slowness: 4.0, ..known }).expect("it fits");
        assert!(slow.steps < next.steps / 2, "{slow:?}");
    }

    #[test]
    fn what_even_three_steps_would_exceed_is_refused_with_the_value_that_allows_them() {
        let known = taught(&[(3, 3_000_000, 3_600); 3]);
        let refusal = sized(&HttpWindow::default(), &known).expect_err("too costly");
        let Refusal::TooCostly { predicted, .. } = refusal.clone() else { panic!("{refusal}") };
        let enough = HttpWindow { max_stall: Some(predicted), ..HttpWindow::default() };
        assert!(refusal.to_string().contains(&format!("`max_stall: {}`", written(predicted))), "{refusal}");
        assert_eq!(sized(&enough, &known).map(|s| s.steps), Ok(MIN_STEPS));
    }

    #[test]
    fn steps_are_taken_as_they_are_asked_for_unless_a_stall_is_written_beside_them() {
        let ten = HttpWindow { num_steps: Some(10), ..HttpWindow::default() };
        let alone = sized(&ten, &Knowledge::default()).expect("as ever");
        assert!((alone.steps, alone.max_stall) == (10, None) && alone.predicted > Some(DEFAULT_MAX_STALL));
        let beside = HttpWindow { max_stall: Some(DEFAULT_MAX_STALL), ..ten };
        let refusal = sized(&beside, &Knowledge::default()).expect_err("too costly");
        insta::assert_snapshot!(refusal, @"10 steps are predicted to silence the slowest rank for 960 ms, and `max_stall` allows 300 ms; write fewer steps or leave `num_steps` out, or allow it with `max_stall: 960ms`");
        assert!(sized(&beside, &taught(&[(10, 100_000, 0); 4])).is_ok(), "what it was seen to cost fits");
    }

    #[test]
    fn a_window_that_might_trip_a_timer_of_the_servers_is_refused() {
        let spec = HttpWindow { num_steps: Some(900), ..HttpWindow::default() };
        let known = taught(&[(900, 9_000_000, 11_000); 3]);
        let health = sized(&spec, &known).expect_err("the health check");
        insta::assert_snapshot!(health, @"900 steps are predicted to silence a rank for 16 s, and three times that exceeds the health check of 20 s, which would take the server down; record fewer steps, or write accept_risk: [server_timer]");
        let short = HttpWindow { num_steps: Some(150), ..HttpWindow::default() };
        assert!(sized(&short, &known).is_ok());
        let accepted = HttpWindow { accept_risk: vec!["server_timer".into()], ..spec };
        assert!(sized(&accepted, &known).is_ok());
        let refusal = Sizing::of(&short, &["GPU".into()], &server("cuda", 5), &known).expect_err("watchdog");
        assert!(refusal.to_string().contains("--watchdog-timeout"), "{refusal}");
    }

    #[test]
    fn what_is_recorded_tells_what_a_step_takes() {
        let of = |names: &[&str], device: &str| {
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            recorded_by(&HttpWindow::default(), &names, &server(device, 300))
        };
        assert_eq!(of(&["GPU"], "cuda"), Recorded::Gpu);
        assert_eq!(of(&["CPU", "GPU"], "cuda"), Recorded::CpuGpu);
        assert_eq!(of(&["CPU"], "cuda"), Recorded::CpuGpu, "with launches");
        assert_eq!(of(&["CPU"], "cpu"), Recorded::Cpu);
        assert_eq!(of(&["MEM"], "cuda"), Recorded::Stacks);
    }

    #[test]
    fn of_vllm_and_nsys_nothing_is_predicted_before_a_window_was_seen() {
        let spec = HttpWindow::default();
        let vllm = ServerFacts::of_vllm("0.33.0", 2);
        let first = Sizing::of(&spec, &[], &vllm, &Knowledge::default()).expect("a careful one");
        assert_eq!((first.steps, first.predicted), (MIN_STEPS, None));
        let later = Sizing::of(&spec, &[], &vllm, &taught(&[(3, 20_000, 0); 2])).expect("it fits");
        assert!(later.steps > MIN_STEPS && later.predicted.is_some(), "{later:?}");
        let nsys = Sizing::of(&spec, &["CUDA_PROFILER".into()], &server("cuda", 300), &Knowledge::default());
        assert_eq!(nsys.map(|n| (n.steps, n.predicted)), Ok((DEFAULT_STEPS, None)));
    }
}
