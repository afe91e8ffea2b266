//! How many steps a window gets, and what it is predicted to cost: from what a rule asks for and what
//! the server's past windows taught ([`size`](super::size) has the law).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::HttpWindow;
use super::facts::{ServerFacts, ServerKind, Sizes};
use super::prior::{self, LogEstimate, ModelSize};
use super::refusal::Refusal;
use super::size::{
    CostPriors, DEFAULT_MAX_STALL, DEFAULT_STEPS, MAX_STALL, MIN_STEPS, PastWindow, RecordingKind, SLOW_FROM,
    StallPrediction, WindowCosts, telling_steps, written,
};
use crate::amount::{AtMost, Span};

/// A prediction is far off when the host slows down under the window: so many times must fit.
const TIMER_MARGIN: u32 = 3;

/// What is known when a window is sized.
#[derive(Clone, Copy, Debug, Default)]
pub struct SizingInputs {
    /// What the server's past windows taught.
    pub costs: WindowCosts,
    /// How many times slower than usual the host of its slowest rank is now; `None` where nobody knows.
    pub slowness: Option<f64>,
}

/// The size of a window, and what it was predicted to cost: its end is held against it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sizing {
    pub recorded: RecordingKind,
    /// Steps of each rank.
    pub steps: u32,
    /// How much slower than usual the slowest rank's host was; `None` where nobody knew.
    #[serde(default)]
    pub slowness: Option<f64>,
    /// The longest silence of a rank that is expected; `None` where nothing is known of such windows.
    pub predicted: Option<Duration>,
    /// What it may cost; `None` where a number of steps was asked for without a limit.
    pub max_stall: Option<Duration>,
    /// See [`PastWindow::server`].
    pub server: u64,
    /// From how many steps on it tells how hosts spend their time; 0 where an older release sized it.
    #[serde(default)]
    pub telling: u32,
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
        known: &SizingInputs,
    ) -> Result<Self, Refusal> {
        let recorded = recorded_by(spec, activities, server);
        let (steps, max_stall) = (spec.num_steps, bound_of(spec, known.slowness));
        let telling = telling_of(server, recorded);
        let sized = |steps, predicted| Self {
            recorded,
            telling,
            steps,
            slowness: known.slowness,
            predicted,
            max_stall,
            server: server.fingerprint(),
        };
        // Nothing of ours is written: nsys is, outside the ranks.
        if activities.iter().any(|a| a == "CUDA_PROFILER") {
            return Ok(sized(steps.unwrap_or(DEFAULT_STEPS), None));
        }
        // No window of another engine was measured: a careful one teaches.
        if server.engine != ServerKind::Sglang && !known.costs.are_known() {
            return Ok(sized(steps.unwrap_or(MIN_STEPS), None));
        }
        // Where the model runs on the cores that write, no host is ever known to be as usual.
        let slowness = known.slowness.filter(|times| *times > 1.0 || server.device != "cpu");
        let assumed = CostPriors { bytes_per_step: a_step_of(server), s_per_byte: rate_of(server), slowness };
        let (limit, timer) = server.smallest_timer();
        let allowed = max_stall.unwrap_or(DEFAULT_MAX_STALL).min(limit / TIMER_MARGIN);
        let fit = || known.costs.size(recorded, &assumed, allowed);
        let chosen = steps.unwrap_or_else(|| fit().map_or(MIN_STEPS, |size| size.steps));
        let predicted = |steps| known.costs.predicted(recorded, steps, &assumed);
        let upper = predicted(chosen).upper;
        if let Some(max_stall) = max_stall.filter(|most| upper > *most) {
            return Err(Refusal::TooCostly {
                asked: steps,
                steps: chosen,
                predicted: upper,
                telling: (telling, predicted(telling).upper),
                estimated: (!known.costs.are_known()).then(|| server.model_size.source()),
                max_stall,
                slow_host: slowness.filter(|times| *times >= SLOW_FROM),
            });
        }
        let is_accepted = spec.accept_risk.iter().any(|risk| risk == "server_timer");
        // That a host may be slow is what the margin is for.
        let usual = CostPriors { slowness: slowness.or(Some(1.0)), ..assumed };
        let likely = |steps| known.costs.predicted(recorded, steps, &usual).likely;
        if likely(chosen) * TIMER_MARGIN > limit && !is_accepted {
            return Err(Refusal::ServerTimer {
                steps: chosen,
                likely: likely(chosen),
                limit,
                timer,
                fewer: within(limit, likely(1)),
            });
        }
        Ok(sized(chosen, Some(upper)))
    }

    /// What such a window can and cannot show, and how long it may take, said before it opens.
    pub fn expectation(&self) -> String {
        let steps = match self.steps {
            1 => "1 step".to_owned(),
            n => format!("{n} steps"),
        };
        let cost = self.predicted.map_or_else(
            || {
                "what they silence a rank for is not known before a window of this server was seen; 5.5 s for each MB \
                 were seen of vLLM (once, on a CPU), and 1.8 s at most of nsys, which writes outside the ranks"
                    .to_owned()
            },
            |predicted| format!("predicted to silence no rank for more than {}", AtMost(predicted)),
        );
        match self.limit_of_telling() {
            Some(limit) => format!("{steps}, {cost}; {limit}"),
            None => format!("{steps}, {cost}"),
        }
    }

    /// What too few steps cannot show, and what would allow enough of them.
    pub fn limit_of_telling(&self) -> Option<String> {
        let telling = self.telling;
        if self.steps >= telling || self.predicted.is_none() {
            return None;
        }
        let key = match self.slowness.is_some_and(|times| times >= SLOW_FROM) {
            true => "max_stall_slow_host",
            false => "max_stall",
        };
        let more = match (self.max_stall, self.predicted) {
            (Some(_), Some(predicted)) => {
                let needed = predicted * telling / self.steps.max(1);
                match needed <= MAX_STALL {
                    true => format!("`{key}: {}` allows {telling}", written(needed)),
                    false => format!("no `{key}` allows {telling}"),
                }
            }
            _ => format!("write `num_steps: {telling}` or more"),
        };
        Some(format!(
            "so few steps may not confirm what fired: they show larger batches, and slower GPUs where ranks share a batch, not how hosts spend their time: {more}"
        ))
    }
}

/// From how many steps on a window of this server tells how hosts spend their time.
fn telling_of(server: &ServerFacts, recorded: RecordingKind) -> u32 {
    let Sizes { dp, tp, pp, dp_attention, .. } = server.sizes;
    let replicas = if dp_attention { 1 } else { usize::from(dp) };
    telling_steps(replicas * usize::from(tp) * usize::from(pp), recorded)
}

/// How many steps of the server's windows are enough for a verdict on hosts.
pub fn steps_for_a_verdict(server: &ServerFacts) -> u32 {
    telling_of(server, recorded_by(&HttpWindow::default(), &["GPU".into()], server))
}

/// Bytes of a step of one rank before a window taught them: a pipeline's ranks share the layers.
fn a_step_of(server: &ServerFacts) -> LogEstimate {
    let of_all = server.model_size.bytes_per_step();
    LogEstimate { mean: of_all.mean - f64::from(server.sizes.pp.max(1)).ln(), ..of_all }
}

/// Seconds for a byte of it, before a window taught them.
fn rate_of(server: &ServerFacts) -> LogEstimate {
    match server.engine {
        ServerKind::Sglang if server.sizes.tp > 1 => prior::seconds_per_byte_together(),
        ServerKind::Sglang => prior::seconds_per_byte(),
        _ => prior::seconds_per_byte_of_vllm(),
    }
}

/// The most steps whose likely cost stays so far below a timer of the server's.
fn within(limit: Duration, of_one: Duration) -> u32 {
    let fit = limit.as_secs_f64() / (of_one.as_secs_f64() * f64::from(TIMER_MARGIN)).max(1e-9);
    fit.min(f64::from(super::risk::MAX_STEPS)) as u32
}

/// What a window may cost: what the rule says, or the default where it gives no steps either.
pub fn max_stall_of(spec: &HttpWindow) -> Option<Duration> {
    spec.max_stall.or_else(|| spec.num_steps.is_none().then_some(DEFAULT_MAX_STALL))
}

/// The same in words: `300 ms`, or `300 ms (2 s where its host is slow)`.
pub fn max_stall_words(spec: &HttpWindow) -> Option<String> {
    let usual = max_stall_of(spec)?;
    let slow = spec.max_stall_slow_host.filter(|slow| *slow > usual);
    let slow = slow.map_or_else(String::new, |slow| format!(" ({} where its host is slow)", Span(slow)));
    Some(format!("{}{slow}", Span(usual)))
}

/// The `max_stall` that fits a server: what the steps that a verdict needs are predicted to silence a rank for, on
/// hosts that are measured to be as usual, rounded up to tenths of a second and no less than the default. `None` where
/// nothing tells how large its model is, or nothing was measured of its engine.
pub fn max_stall_for(server: &ServerFacts) -> Option<Duration> {
    let model = &server.model_size;
    let is_known = model.layers.is_some() || model.weights_gb.is_some() || model.billions.is_some();
    if server.engine != ServerKind::Sglang || server.device == "cpu" || !is_known {
        return None;
    }
    let slowness = Some(prior::LEAST_MEASURED);
    let assumed = CostPriors { bytes_per_step: a_step_of(server), s_per_byte: rate_of(server), slowness };
    let spec = HttpWindow::default();
    let recorded = recorded_by(&spec, &["GPU".into()], server);
    let needed = WindowCosts::default().predicted(recorded, telling_of(server, recorded), &assumed).upper;
    let tenths = (needed.as_secs_f64() * 10.0).ceil();
    Some(Duration::from_secs_f64(tenths / 10.0).clamp(DEFAULT_MAX_STALL, MAX_STALL))
}

/// The same on a host that is so many times slower than usual.
fn bound_of(spec: &HttpWindow, slowness: Option<f64>) -> Option<Duration> {
    let usual = max_stall_of(spec);
    let slow = spec.max_stall_slow_host.filter(|_| slowness.is_some_and(|times| times >= SLOW_FROM));
    slow.map_or(usual, |slow| Some(usual.map_or(slow, |usual| usual.max(slow))))
}

/// What `steps` of a window are predicted to cost before a server's first, for who reads a rule, when no
/// server is known: on a server whose model has 32 dense layers (8 billion parameters).
pub fn before_the_first(spec: &HttpWindow, steps: u32) -> Duration {
    of_a_usual_model(spec, steps, None).upper
}

fn of_a_usual_model(spec: &HttpWindow, steps: u32, slowness: Option<f64>) -> StallPrediction {
    let activities = spec.activities.clone().unwrap_or_else(|| vec!["GPU".into()]);
    let model = ModelSize { layers: Some(32), is_dense: Some(true), ..ModelSize::default() };
    let assumed = CostPriors { bytes_per_step: model.bytes_per_step(), slowness, ..CostPriors::default() };
    WindowCosts::default().predicted(recorded(spec, &activities, false), steps, &assumed)
}

/// Whether a number of steps is likely to be refused before a server's first window, by the timers that
/// every server has; and how many would not be.
pub fn fewer_before_the_first(spec: &HttpWindow, steps: u32) -> Option<u32> {
    let limit = ServerFacts::of_vllm("", 1).smallest_timer().0;
    let is_accepted = spec.accept_risk.iter().any(|risk| risk == "server_timer");
    let fewer = within(limit, of_a_usual_model(spec, 1, Some(1.0)).likely);
    (steps > fewer && !is_accepted).then_some(fewer)
}

fn recorded_by(spec: &HttpWindow, activities: &[String], server: &ServerFacts) -> RecordingKind {
    // vLLM is told at its launch what to record.
    match server.engine {
        ServerKind::Vllm | ServerKind::DynamoVllm => return RecordingKind::CpuGpu,
        // It always records shapes.
        ServerKind::TensorrtLlm => return RecordingKind::Stacks,
        ServerKind::Sglang | ServerKind::DynamoSglang => {}
    }
    recorded(spec, activities, server.device == "cpu")
}

fn recorded(spec: &HttpWindow, activities: &[String], without_gpu: bool) -> RecordingKind {
    let only = |one: &str| activities.iter().all(|a| a == one);
    match () {
        () if spec.with_stack || spec.record_shapes => RecordingKind::Stacks,
        () if only("GPU") => RecordingKind::Gpu,
        () if only("CPU") && without_gpu => RecordingKind::Cpu,
        () if activities.iter().all(|a| a == "CPU" || a == "GPU") => RecordingKind::CpuGpu,
        // Of the others nothing was measured.
        () => RecordingKind::Stacks,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::capture::size::written;

    const MS: Duration = Duration::from_millis(1);

    /// A server whose model has so many layers.
    fn server_of(layers: u32, watchdog_s: u64) -> ServerFacts {
        let info = json!({"version": "0.5.16", "device": "cuda", "watchdog_timeout": watchdog_s});
        let mut server = ServerFacts::of_server_info(&info);
        let config = json!({"num_hidden_layers": layers});
        server.model_size = server.model_size.with_config(&config);
        server
    }

    fn taught(windows: &[(u32, u64, u32)]) -> SizingInputs {
        let past = windows.iter().map(|&(steps, largest, stall_ms)| PastWindow {
            recorded: RecordingKind::Gpu,
            steps,
            largest,
            stall: MS * stall_ms,
            slowness: Some(1.0),
            predicted: None,
            server: 0,
        });
        SizingInputs { costs: WindowCosts::of(past), slowness: None }
    }

    fn sized(spec: &HttpWindow, layers: u32, known: &SizingInputs) -> Result<Sizing, Refusal> {
        Sizing::of(spec, &["GPU".into()], &server_of(layers, 300), known)
    }

    #[test]
    fn a_first_window_gets_the_steps_that_its_model_and_its_hosts_allow() {
        let spec = HttpWindow::default();
        let first =
            |layers, slowness| sized(&spec, layers, &SizingInputs { slowness, ..SizingInputs::default() });
        let steps = |layers, slowness| first(layers, slowness).map_or(0, |sized| sized.steps);
        let table = [8, 16, 32, 80].map(|n| [Some(1.0), None, Some(4.0)].map(|slowness| steps(n, slowness)));
        // Known to be as fast as usual, not known, known to be slow; 0 is refused.
        assert_eq!(table, [[14, 4, 3], [7, 0, 0], [3, 0, 0], [0, 0, 0]]);
        let long = HttpWindow { max_stall: Some(MS * 5_000), ..HttpWindow::default() };
        let most = sized(&long, 8, &SizingInputs { slowness: Some(1.0), ..SizingInputs::default() });
        assert_eq!(most.map(|first| first.steps), Ok(super::super::size::MOST_FIRST_STEPS));
    }

    #[test]
    fn the_stall_that_fits_a_server_allows_the_steps_that_a_verdict_needs_and_no_tenth_more() {
        for layers in [8, 16, 32, 64, 80] {
            let server = server_of(layers, 300);
            let fits = max_stall_for(&server).expect("its layers are known");
            let steps = |max_stall| {
                let spec = HttpWindow { max_stall: Some(max_stall), ..HttpWindow::default() };
                let known = SizingInputs { slowness: Some(prior::LEAST_MEASURED), ..SizingInputs::default() };
                sized(&spec, layers, &known).map_or(0, |sized| sized.steps)
            };
            let telling = steps_for_a_verdict(&server);
            assert!(steps(fits) >= telling, "{layers}: {fits:?} allows {}", steps(fits));
            let less = fits.checked_sub(MS * 100).expect("more than a tenth");
            assert!(fits == DEFAULT_MAX_STALL || steps(less) < telling, "{layers}: {less:?} would do");
        }
        let unknown = ServerFacts::of_server_info(&json!({"version": "0.5.16", "device": "cuda"}));
        assert_eq!(max_stall_for(&unknown), None, "nothing tells how large its model is");
        assert_eq!(max_stall_for(&ServerFacts::of_vllm("0.33.0", 2)), None);
    }

    #[test]
    fn the_table_of_the_documentation_is_what_is_computed() {
        // Four ranks apart, two and four that meet in collectives: `docs/window-cost.md`, "Which max_stall".
        let row = |layers: u32| {
            [(4, 1), (1, 2), (1, 4)].map(|(dp, tp)| {
                let mut server = server_of(layers, 300);
                (server.sizes.dp, server.sizes.tp, server.model_size.is_dense) = (dp, tp, Some(true));
                max_stall_for(&server).expect("its layers are known").as_millis()
            })
        };
        assert_eq!(
            [8, 16, 32, 48, 64, 80, 96].map(row),
            [
                [300, 400, 300],
                [500, 700, 600],
                [900, 1_300, 1_100],
                [1_300, 2_000, 1_600],
                [1_700, 2_600, 2_200],
                [2_200, 3_300, 2_700],
                [2_600, 3_900, 3_200],
            ]
        );
    }

    #[test]
    fn a_window_without_steps_gets_as_many_as_its_stall_allows() {
        let spec = HttpWindow::default();
        let known = taught(&[(30, 300_000, 330); 5]);
        let next = sized(&spec, 80, &known).expect("it fits");
        assert!(next.steps == 5 && next.predicted.is_some_and(|p| p <= DEFAULT_MAX_STALL), "{next:?}");
        let usual = sized(&spec, 80, &SizingInputs { slowness: Some(1.0), ..known }).expect("it fits");
        assert!(usual.steps > 15 && usual.limit_of_telling().is_none(), "{usual:?}");
        let slow = sized(&spec, 80, &SizingInputs { slowness: Some(4.0), ..known }).expect("it fits");
        assert!(slow.steps < usual.steps / 2, "{slow:?}");
    }

    #[test]
    fn what_a_window_may_cost_a_slow_host_is_said_beside_the_usual() {
        let words = |slow: Option<u32>| {
            let slow = slow.map(|ms| MS * ms);
            max_stall_words(&HttpWindow { max_stall_slow_host: slow, ..HttpWindow::default() })
        };
        assert_eq!(words(None).as_deref(), Some("300 ms"));
        assert_eq!(words(Some(2_000)).as_deref(), Some("300 ms (2 s where its host is slow)"));
        assert_eq!(words(Some(100)).as_deref(), Some("300 ms"), "it is never less");
        let ten = HttpWindow { num_steps: Some(10), ..HttpWindow::default() };
        assert_eq!(max_stall_words(&ten), None);
    }

    #[test]
    fn what_few_steps_show_of_a_slow_host_names_the_bound_of_slow_hosts_and_the_steps_that_its_ranks_need() {
        // As of two H200: six steps of which five are whole, and two ranks need ten.
        let spec = HttpWindow { max_stall_slow_host: Some(MS * 900), ..HttpWindow::default() };
        let known = SizingInputs { slowness: Some(3.4), ..SizingInputs::default() };
        let limit = |tp: u16, dp_attention: bool| {
            let mut server = server_of(16, 300);
            (server.sizes.tp, server.sizes.dp, server.sizes.dp_attention) = (tp, tp, dp_attention);
            let opened = Sizing::of(&spec, &["GPU".into()], &server, &known).expect("it fits");
            let limit = opened.limit_of_telling().unwrap_or_default();
            let (_, allows) = limit.split_once(": `max_stall_slow_host: ").expect(&limit);
            let (bound, steps) = allows.split_once("ms` allows ").expect(&limit);
            let larger: u32 = bound.parse().expect("milliseconds");
            let spec = HttpWindow { max_stall_slow_host: Some(MS * larger), ..HttpWindow::default() };
            let then = Sizing::of(&spec, &["GPU".into()], &server, &known).expect("it fits");
            assert_eq!(then.limit_of_telling(), None, "{limit}");
            steps.parse::<u32>().expect("steps")
        };
        assert_eq!((limit(2, true), limit(4, true)), (11, 9));
    }

    #[test]
    fn what_few_steps_cannot_show_is_said_with_the_value_that_would_show_it() {
        let first = sized(&HttpWindow::default(), 8, &SizingInputs::default()).expect("it fits");
        insta::assert_snapshot!(first.expectation(), @"4 steps, predicted to silence no rank for more than 244 ms; so few steps may not confirm what fired: they show larger batches, and slower GPUs where ranks share a batch, not how hosts spend their time: `max_stall: 670ms` allows 11");
        let enough = first.predicted.expect("it is") * first.telling / first.steps + MS;
        let spec = HttpWindow { max_stall: Some(enough), ..HttpWindow::default() };
        assert_eq!(sized(&spec, 8, &SizingInputs::default()).map(|s| s.steps), Ok(first.telling));
        let dear = taught(&[(3, 3_000_000, 3_600); 3]);
        let most =
            HttpWindow { num_steps: Some(3), max_stall: Some(MS * 10_000_000), ..HttpWindow::default() };
        let dear = sized(&most, 8, &dear).expect("it is allowed").expectation();
        assert!(dear.ends_with("no `max_stall` allows 11"), "{dear}");
        let three = HttpWindow { num_steps: Some(3), ..HttpWindow::default() };
        let three = sized(&three, 8, &SizingInputs::default()).expect("as it is written");
        assert!(three.expectation().contains("write `num_steps: 11` or more"), "{}", three.expectation());
    }

    #[test]
    fn what_even_three_steps_would_exceed_is_refused_with_the_value_that_allows_them() {
        let known = taught(&[(3, 1_000_000, 1_200); 3]);
        let refusal = sized(&HttpWindow::default(), 8, &known).expect_err("too costly");
        let Refusal::TooCostly { predicted, .. } = refusal.clone() else { panic!("{refusal}") };
        let enough = HttpWindow { max_stall: Some(predicted), ..HttpWindow::default() };
        assert!(refusal.to_string().contains(&format!("`max_stall: {}`", written(predicted))), "{refusal}");
        assert_eq!(sized(&enough, 8, &known).map(|s| s.steps), Ok(MIN_STEPS));
    }

    #[test]
    fn a_refusal_says_by_what_the_cost_was_estimated() {
        let large = sized(&HttpWindow::default(), 32, &SizingInputs::default()).expect_err("too costly");
        insta::assert_snapshot!(large, @"even 3 steps are predicted (estimated from its 32 layers) to silence the slowest rank for 730 ms, and `max_stall` allows 300 ms; allow it with `max_stall: 730ms`, or with `max_stall: 2700ms`, which allows the 11 steps that also show how hosts spend their time");
        let info = json!({"version": "0.5.16", "device": "cuda"});
        let unknown = ServerFacts::of_server_info(&info);
        let sized = |spec: &HttpWindow| Sizing::of(spec, &["GPU".into()], &unknown, &SizingInputs::default());
        let refusal = sized(&HttpWindow::default()).expect_err("too costly");
        insta::assert_snapshot!(refusal, @"even 3 steps are predicted (estimated carefully, for nothing tells how large its model is) to silence the slowest rank for 7.3 s, and `max_stall` allows 300 ms; allow it with `max_stall: 7300ms`");
        let written = HttpWindow { num_steps: Some(10), ..HttpWindow::default() };
        assert_eq!(sized(&written).map(|s| s.steps), Ok(10), "who writes steps takes their cost");
    }

    #[test]
    fn a_slow_host_has_a_bound_of_its_own_which_its_refusal_names() {
        let on = |spec: &HttpWindow, slowness| {
            sized(spec, 32, &SizingInputs { slowness: Some(slowness), ..SizingInputs::default() })
        };
        let usual = HttpWindow::default();
        let refusal = on(&usual, 3.5).expect_err("too costly");
        insta::assert_snapshot!(refusal, @"even 3 steps are predicted (estimated from its 32 layers) to silence the slowest rank, whose host is 3.5 times slower than usual now, for 901 ms, and 300 ms are allowed for it; allow it with `max_stall_slow_host: 910ms`, or with `max_stall_slow_host: 3400ms`, which allows the 11 steps that also show how hosts spend their time");
        let Refusal::TooCostly { predicted, telling, .. } = refusal else { panic!("{refusal}") };
        for (bound, steps) in [(predicted + MS, MIN_STEPS), (telling.1 + MS, telling.0)] {
            let spec = HttpWindow { max_stall_slow_host: Some(bound), ..usual.clone() };
            let opened = on(&spec, 3.5).expect("it is allowed");
            assert_eq!((opened.steps, opened.max_stall), (steps, Some(bound)));
            // A host as usual has the usual bound.
            let healthy = on(&spec, 1.0).expect("it fits");
            assert_eq!((healthy.steps, healthy.max_stall), (MIN_STEPS, Some(DEFAULT_MAX_STALL)));
        }
        let less = HttpWindow { max_stall_slow_host: Some(MS * 10), ..usual };
        assert_eq!(on(&less, 1.0).map(|s| s.max_stall), Ok(Some(DEFAULT_MAX_STALL)));
        assert!(matches!(on(&less, 3.5), Err(Refusal::TooCostly { max_stall: DEFAULT_MAX_STALL, .. })));
    }

    #[test]
    fn steps_are_taken_as_they_are_asked_for_unless_a_stall_is_written_beside_them() {
        let ten = HttpWindow { num_steps: Some(10), ..HttpWindow::default() };
        let alone = sized(&ten, 8, &SizingInputs::default()).expect("as ever");
        assert!((alone.steps, alone.max_stall) == (10, None) && alone.predicted > Some(DEFAULT_MAX_STALL));
        let beside = HttpWindow { max_stall: Some(DEFAULT_MAX_STALL), ..ten };
        let refusal = sized(&beside, 8, &SizingInputs::default()).expect_err("too costly");
        insta::assert_snapshot!(refusal, @"10 steps are predicted (estimated from its 8 layers) to silence the slowest rank for 608 ms, and `max_stall` allows 300 ms; write fewer steps or leave `num_steps` out, or allow it with `max_stall: 610ms`");
        assert!(sized(&beside, 8, &taught(&[(10, 100_000, 0); 4])).is_err(), "its exports were not seen");
        assert!(sized(&beside, 8, &taught(&[(10, 50_000, 55); 4])).is_ok(), "what it was seen to cost fits");
    }

    #[test]
    fn a_window_that_might_trip_a_timer_of_the_servers_is_refused_with_the_steps_that_would_not() {
        let spec = HttpWindow { num_steps: Some(900), ..HttpWindow::default() };
        let known = taught(&[(900, 9_000_000, 11_000); 3]);
        let health = sized(&spec, 8, &known).expect_err("the health check");
        insta::assert_snapshot!(health, @"900 steps are likely to silence a rank for 11 s, and three times that exceeds the health check of 20 s, which would take the server down; write `num_steps: 545` or less, `max_stall` in its place, or accept the danger with `accept_risk: [server_timer]`");
        let Refusal::ServerTimer { fewer, .. } = health else { panic!("{health}") };
        let fits = |steps| sized(&HttpWindow { num_steps: Some(steps), ..spec.clone() }, 8, &known).is_ok();
        assert!(fits(fewer) && !fits(fewer + 1), "{fewer}");
        let accepted = HttpWindow { accept_risk: vec!["server_timer".into()], ..spec.clone() };
        assert!(sized(&accepted, 8, &known).is_ok());
        let refusal = Sizing::of(
            &HttpWindow { num_steps: Some(fewer), ..spec },
            &["GPU".into()],
            &server_of(8, 5),
            &known,
        );
        let refusal = refusal.expect_err("watchdog");
        assert!(refusal.to_string().contains("--watchdog-timeout"), "{refusal}");
    }

    #[test]
    fn a_hundred_steps_open_on_a_small_model_before_any_window_has_taught_it() {
        let hundred = HttpWindow { num_steps: Some(100), ..HttpWindow::default() };
        assert!(sized(&hundred, 8, &SizingInputs::default()).is_ok());
        let large = sized(&hundred, 80, &SizingInputs::default()).expect_err("the health check");
        assert!(large.to_string().contains("`num_steps: 53` or less"), "{large}");
    }

    /// Windows of real servers whose ranks meet in collectives, on hosts as usual: layers, whether the model is dense,
    /// steps, and the silence that clients saw (`docs/window-cost.md`, two and four H200).
    const TOGETHER: [(u32, bool, u32, u32); 19] = [
        (8, true, 30, 440),
        (8, true, 30, 420),
        (8, true, 30, 410),
        (8, true, 60, 830),
        (8, false, 30, 610),
        (8, false, 30, 580),
        (8, false, 30, 620),
        (8, false, 30, 590),
        (8, false, 60, 1_150),
        (8, false, 30, 1_140),
        (10, true, 30, 610),
        (10, true, 60, 1_120),
        (16, false, 30, 1_080),
        (16, false, 60, 2_140),
        (16, false, 30, 1_070),
        (16, false, 60, 2_470),
        (16, false, 30, 1_130),
        (16, false, 30, 980),
        (16, false, 60, 1_810),
    ];

    #[test]
    fn ranks_that_meet_in_collectives_are_silent_for_less_than_predicted_and_for_more_than_a_quarter_of_it() {
        let predicted = |layers, is_dense: bool, steps| {
            let mut server = server_of(layers, 300);
            server.model_size.is_dense = Some(is_dense);
            server.sizes.tp = 2;
            let spec =
                HttpWindow { num_steps: Some(steps), max_stall: Some(MS * 10_000), ..HttpWindow::default() };
            // As where the machine says that no process waits for a CPU.
            let known = SizingInputs { slowness: Some(prior::LEAST_MEASURED), ..SizingInputs::default() };
            Sizing::of(&spec, &["GPU".into()], &server, &known)
                .expect("it fits")
                .predicted
                .expect("by layers")
        };
        for (layers, is_dense, steps, seen) in TOGETHER {
            let (predicted, seen) = (predicted(layers, is_dense, steps), MS * seen);
            assert!(seen <= predicted && predicted <= 4 * seen, "{layers} {steps}: {seen:?}, {predicted:?}");
        }
        // Batches beyond the largest of the server's CUDA graphs have a launch for each kernel, and take more.
        let without_graphs = [(30, 840), (30, 970), (60, 2_050), (60, 1_930)];
        for (steps, seen) in without_graphs {
            assert!(MS * seen <= predicted(8, true, steps).mul_f64(1.25), "{steps}");
        }
        // Three steps of 16 layers, which cost a tenth of a second, were predicted to cost 676 ms before.
        assert!(predicted(16, false, 3) <= MS * 310, "{:?}", predicted(16, false, 3));
        assert!(predicted(8, false, 5) <= DEFAULT_MAX_STALL, "{:?}", predicted(8, false, 5));
    }

    #[test]
    fn the_ranks_of_a_pipeline_share_the_layers() {
        let spec = HttpWindow::default();
        let known = SizingInputs { slowness: Some(1.0), ..SizingInputs::default() };
        let mut server = server_of(32, 300);
        server.sizes.pp = 4;
        let piped = Sizing::of(&spec, &["GPU".into()], &server, &known);
        assert_eq!(piped.map(|p| p.steps), sized(&spec, 8, &known).map(|s| s.steps));
    }

    #[test]
    fn what_is_recorded_tells_what_a_step_takes() {
        let of = |names: &[&str], device: &str| {
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            recorded_by(
                &HttpWindow::default(),
                &names,
                &ServerFacts { device: device.into(), ..server_of(8, 300) },
            )
        };
        assert_eq!(of(&["GPU"], "cuda"), RecordingKind::Gpu);
        assert_eq!(of(&["CPU", "GPU"], "cuda"), RecordingKind::CpuGpu);
        assert_eq!(of(&["CPU"], "cuda"), RecordingKind::CpuGpu, "with launches");
        assert_eq!(of(&["CPU"], "cpu"), RecordingKind::Cpu);
        assert_eq!(of(&["MEM"], "cuda"), RecordingKind::Stacks);
    }

    #[test]
    fn of_vllm_and_nsys_nothing_is_predicted_before_a_window_was_seen() {
        let spec = HttpWindow::default();
        let vllm = ServerFacts::of_vllm("0.33.0", 2);
        let first = Sizing::of(&spec, &[], &vllm, &SizingInputs::default()).expect("a careful one");
        assert_eq!((first.steps, first.predicted), (MIN_STEPS, None));
        let later = Sizing::of(&spec, &[], &vllm, &taught(&[(6, 20_000, 25); 3])).expect("it fits");
        assert!(later.steps > MIN_STEPS && later.predicted.is_some(), "{later:?}");
        let nsys = Sizing::of(&spec, &["CUDA_PROFILER".into()], &server_of(8, 300), &SizingInputs::default());
        assert_eq!(nsys.map(|n| (n.steps, n.predicted)), Ok((DEFAULT_STEPS, None)));
    }
}
