//! How large a window may be, by the silence that it may cost.
//!
//! A rank that writes its trace does not serve: SGLang exports inside the scheduler. The silence of a
//! rank is `steps x bytes a step x seconds a byte`, and all but the steps is learned from the windows
//! of that server: the sizes of the files say the bytes, what was seen of the stall says the seconds.
//! Both vary from window to window by factors, so they are tracked as logarithms, and a window is
//! sized by an upper quantile of their product (Aitchison and Brown, The Lognormal Distribution, 1957).
//!
//! Measured on SGLang 0.5.16, one H200, 21 windows of 3 to 60 steps: 1.0 to 1.6 s for each MB of a rank's own
//! gzip file on a healthy host, 3.6 to 4.8 s where the scheduler is starved; 8 to 13 kB a step with GPU rows
//! alone. Neither has a fixed part that shows. What stands in for both before a server's first window is in
//! [`prior`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::prior::{self, LogEstimate, ModelSize};

/// Fewer steps than this compare nothing.
pub const MIN_STEPS: u32 = 3;
/// From so many steps on a window of `ranks` ranks shows how a rank's host spends its time. With fewer it
/// shows how much GPU work the ranks have, and no more: host time varies from step to step. Of kernels alone
/// the last step has no end, so one more is needed.
pub fn telling_steps(ranks: usize, recorded: RecordingKind) -> u32 {
    let whole = skewtrap_trace::fewest_steps(ranks.max(2));
    whole as u32 + u32::from(recorded == RecordingKind::Gpu)
}
/// Steps of a window whose cost nobody can predict, and that says nothing else.
pub const DEFAULT_STEPS: u32 = 10;
/// What a window of the shipped rules may cost the slowest rank.
pub const DEFAULT_MAX_STALL: Duration = Duration::from_millis(300);

/// From so many times on a host that is slower than usual is a slow one: windows on it have a bound of their own.
pub const SLOW_FROM: f64 = 2.0;

/// No window may silence a rank for longer.
pub const MAX_STALL: Duration = Duration::from_secs(10);

/// A window that is sized has no more steps than this: a comparison gains nothing by them.
pub const MOST_STEPS: u32 = 100;
/// A server's first window has no more: it is sized by what is known of other servers.
pub const MOST_FIRST_STEPS: u32 = 30;

/// No rank was seen to write faster, seconds a byte: what looks faster was not seen from its beginning.
const LEAST_RATE: f64 = 0.8e-6;
/// The quantile that a prediction is, in standard deviations: 19 windows of 20 stay below it.
const QUANTILE: f64 = 1.65;
/// The weight of the newest window once several are known: prefill shares and loads change within hours.
const NEWEST: f64 = 0.3;
/// How far bytes a step and seconds a byte differ between windows of one server as long as few are
/// known (standard deviation of the logarithm): a factor of 1.3 and of 1.2, as was measured.
const FIRST_SPREAD: [f64; 2] = [0.26, 0.18];
/// They are never taken to differ by less: windows that happened to agree prove no precision.
const LEAST_SPREAD: f64 = 0.12;
/// The stamps of lines and files tell an export from this length on.
const SEEN_FROM: Duration = Duration::from_millis(20);
/// As much of what is booked may be no writing: steps that ended late, lines that waited for their batch. Of seven
/// windows beside a real server what was booked exceeded what clients saw by up to 170 ms.
const BOOKED_BEYOND: Duration = Duration::from_millis(200);
/// Silences that may have been no longer than known but for that raise the known rate to no more than so many times.
const MOST_RAISED: f64 = 1.5;

/// What is recorded, by its cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordingKind {
    /// GPU rows alone.
    Gpu,
    /// CPU rows alone, on a server that has no GPU: operators without launches and kernels.
    Cpu,
    /// CPU and GPU rows without stacks.
    CpuGpu,
    /// With Python stacks or shapes.
    Stacks,
}

impl RecordingKind {
    const ALL: [Self; 4] = [Self::Gpu, Self::Cpu, Self::CpuGpu, Self::Stacks];

    /// How many times as many bytes a step takes as with GPU rows alone: at least, and at most.
    const fn weight(self) -> (f64, f64) {
        match self {
            Self::Gpu => (1.0, 1.0),
            // A row for each operator and no kernel: 13 kB a layer were seen instead of 1.2.
            Self::Cpu => (8.0, 12.0),
            Self::CpuGpu => (1.4, 2.5),
            Self::Stacks => (6.6, 13.0),
        }
    }
}

/// A window that is over, as far as its cost goes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PastWindow {
    pub recorded: RecordingKind,
    /// Steps of each rank.
    pub steps: u32,
    /// The largest file of one rank, bytes.
    pub largest: u64,
    /// The longest silence of a rank that was seen.
    pub stall: Duration,
    /// How many times slower than usual the slowest rank's host was, at least 1; `None` where nobody knew.
    #[serde(default)]
    pub slowness: Option<f64>,
    /// What had been predicted.
    pub predicted: Option<Duration>,
    /// The release and model that ran, as a number: windows of another teach nothing.
    #[serde(default)]
    pub server: u64,
}

/// A number that is known up to a factor: its logarithm's mean and spread.
#[derive(Clone, Copy, Debug, PartialEq)]
struct LearnedEstimate {
    mean: f64,
    variance: f64,
    windows: u32,
}

impl LearnedEstimate {
    fn learn(&mut self, value: f64) {
        let x = value.max(1e-12).ln();
        self.windows += 1;
        if self.windows == 1 {
            self.mean = x;
            return;
        }
        let gain = NEWEST.max(1.0 / f64::from(self.windows));
        let off = x - self.mean;
        self.mean += gain * off;
        self.variance = (1.0 - gain) * (self.variance + gain * off * off);
    }

    const fn new(spread: f64) -> Self {
        Self { mean: 0.0, variance: spread * spread, windows: 0 }
    }

    fn variance(&self) -> f64 {
        // The mean of the last windows is uncertain itself.
        let gain = NEWEST.max(1.0 / f64::from(self.windows.max(1)));
        self.variance.max(LEAST_SPREAD * LEAST_SPREAD) * (1.0 + gain)
    }
}

/// What is known of a server's windows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WindowCosts {
    /// By what was recorded, in the order of [`RecordingKind::ALL`].
    bytes_per_step: [Option<LearnedEstimate>; 4],
    s_per_byte: Option<LearnedEstimate>,
    /// Seconds a byte as the last window showed them whose silence was surely its writing; else of the first one.
    surely: f64,
}

/// What stands in for what the windows of a server have not taught yet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CostPriors {
    /// Bytes of a step with GPU rows alone.
    pub bytes_per_step: LogEstimate,
    /// Seconds for each byte on a host as usual.
    pub s_per_byte: LogEstimate,
    /// How many times slower than usual the host of the slowest rank is now; `None` where nobody knows.
    pub slowness: Option<f64>,
}

impl Default for CostPriors {
    /// Of a server of which nothing is known.
    fn default() -> Self {
        Self {
            bytes_per_step: ModelSize::default().bytes_per_step(),
            s_per_byte: prior::seconds_per_byte(),
            slowness: None,
        }
    }
}

/// The longest silence of a rank that a window is expected to cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StallPrediction {
    /// As likely to be exceeded as not.
    pub likely: Duration,
    /// Exceeded by one window of twenty.
    pub upper: Duration,
}

/// A window that stays within its `max_stall`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Size {
    /// Steps of each rank.
    pub steps: u32,
    /// The longest silence of a rank that is expected.
    pub predicted: StallPrediction,
}

/// Even the smallest window would cost more than it may.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TooCostly {
    /// What [`MIN_STEPS`] are predicted to cost: the least `max_stall` that would allow them.
    pub needed: Duration,
}

impl WindowCosts {
    /// Whether some window taught what a step takes.
    pub const fn are_known(&self) -> bool {
        let [gpu, cpu, both, stacks] = &self.bytes_per_step;
        gpu.is_some() || cpu.is_some() || both.is_some() || stacks.is_some()
    }

    /// What past windows of a server taught, the oldest first.
    pub fn of(past: impl IntoIterator<Item = PastWindow>) -> Self {
        let mut costs = Self::default();
        past.into_iter().for_each(|window| costs.learn(&window));
        costs
    }

    /// Takes the cost of a window that is over.
    pub fn learn(&mut self, past: &PastWindow) {
        if past.largest == 0 || past.steps == 0 {
            return;
        }
        let per_step = past.largest as f64 / f64::from(past.steps);
        let [of_bytes, of_rate] = FIRST_SPREAD.map(LearnedEstimate::new);
        let bytes = &mut self.bytes_per_step[past.recorded as usize];
        if bytes.is_some_and(|bytes| per_step > 2.0 * bytes.mean.exp()) {
            *bytes = None;
        }
        bytes.get_or_insert(of_bytes).learn(per_step);
        // What was too short to be seen bounds the rate from above and says nothing else.
        if past.stall < SEEN_FROM {
            return;
        }
        let slowness = past.slowness.unwrap_or(1.0).max(1.0);
        let rate_of = |stall: Duration| stall.as_secs_f64() / (past.largest as f64 * slowness);
        let per_byte = rate_of(past.stall).max(LEAST_RATE);
        let known = self.s_per_byte.map_or(per_byte, |rate| rate.mean.exp());
        let is_far_beyond = past.predicted.is_some_and(|predicted| past.stall > predicted * 2);
        // A small file's silence is mostly not its writing: it raises what is known, and does not replace it,
        // nor do many of them together.
        let may_be_known = rate_of(past.stall.saturating_sub(BOOKED_BEYOND)) <= known && !is_far_beyond;
        let is_sure = self.s_per_byte.is_none() || !may_be_known;
        let most = if is_sure {
            f64::INFINITY
        } else {
            known.max(self.surely * MOST_RAISED).min(known * MOST_RAISED)
        };
        let per_byte = per_byte.min(most);
        let times = per_byte / known;
        // What a host's slowdown was measured to be below that says little of how it writes.
        let is_told = past.slowness.is_some_and(|times| times <= 1.0 || times >= SLOW_FROM);
        if is_far_beyond || is_told && !(0.5..=2.0).contains(&times) {
            // It is another rate from now on, and not an average with the old.
            self.s_per_byte = None;
        } else if times > 2.0 {
            // Nobody knew of the host: it was slow, and not the writing.
            return;
        }
        if is_sure || per_byte < self.surely {
            self.surely = per_byte;
        }
        self.s_per_byte.get_or_insert(of_rate).learn(per_byte);
    }

    /// Bytes of a step: of windows that recorded the same, else of others, by how much more that is at most.
    fn a_step_of(&self, recorded: RecordingKind, assumed: &CostPriors) -> LogEstimate {
        let known = |kind: RecordingKind| {
            let factor = self.bytes_per_step[kind as usize].as_ref()?;
            Some(LogEstimate { mean: factor.mean, variance: factor.variance() })
        };
        known(recorded).unwrap_or_else(|| {
            let other = RecordingKind::ALL.into_iter().find_map(|kind| Some((kind.weight().0, known(kind)?)));
            let (least, guess) = other.unwrap_or((1.0, assumed.bytes_per_step));
            LogEstimate { mean: guess.mean + (recorded.weight().1 / least).ln(), ..guess }
        })
    }

    /// What a window of `steps` is predicted to cost its slowest rank.
    pub fn predicted(&self, recorded: RecordingKind, steps: u32, assumed: &CostPriors) -> StallPrediction {
        let known = |f: &LearnedEstimate| LogEstimate { mean: f.mean, variance: f.variance() };
        let bytes = self.a_step_of(recorded, assumed);
        let rate = self.s_per_byte.as_ref().map_or(assumed.s_per_byte, known);
        let one = bytes.and(rate).and(prior::slowness(assumed.slowness));
        let times = f64::from(steps);
        let after = |deviations: f64| {
            let log = one.mean + deviations * one.variance.sqrt();
            Duration::from_secs_f64((log.exp() * times).clamp(0.0, 3_600.0))
        };
        StallPrediction { likely: after(0.0), upper: after(QUANTILE) }
    }

    /// As many steps as are predicted to stay within `max_stall`.
    ///
    /// # Errors
    /// When even [`MIN_STEPS`] would cost more.
    pub fn size(
        &self,
        recorded: RecordingKind,
        assumed: &CostPriors,
        max_stall: Duration,
    ) -> Result<Size, TooCostly> {
        let needed = self.predicted(recorded, MIN_STEPS, assumed).upper;
        if needed > max_stall {
            return Err(TooCostly { needed });
        }
        // What a step takes differs by a factor of a hundred between models.
        let most = if self.are_known() { MOST_STEPS } else { MOST_FIRST_STEPS };
        let one = self.predicted(recorded, 1, assumed).upper.as_secs_f64().max(1e-9);
        let fit = (max_stall.as_secs_f64() / one).min(f64::from(u32::MAX)) as u32;
        let steps = fit.clamp(MIN_STEPS, most);
        Ok(Size { steps, predicted: self.predicted(recorded, steps, assumed) })
    }
}

/// A stall as it is written under `max_stall`, rounded up to two figures: `1300ms`.
pub fn written(stall: Duration) -> String {
    let ms = stall.as_secs_f64() * 1e3;
    let unit = 10_f64.powi((ms.max(1.0).log10().floor() as i32 - 1).max(0));
    format!("{:.0}ms", (ms / unit).ceil() * unit)
}

#[cfg(test)]
mod tests;
