//! How large a window may be, by the silence that it may cost.
//!
//! A rank that writes its trace does not serve: SGLang exports inside the scheduler. The silence of a
//! rank is `steps x bytes a step x seconds a byte`, and all but the steps is learned from the windows
//! of that server: the sizes of the files say the bytes, what was seen of the stall says the seconds.
//! Both vary from window to window by factors, so they are tracked as logarithms, and a window is
//! sized by an upper quantile of their product (Aitchison and Brown, The Lognormal Distribution, 1957).
//!
//! Measured on SGLang 0.5.16, one H200: 1.0 to 1.6 s for each MB of a rank's own gzip file on a
//! healthy host, up to 4.8 s where the scheduler is starved; 8 to 12 kB a step with GPU rows alone.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Fewer steps than this compare nothing.
pub const MIN_STEPS: u32 = 3;
/// Steps of a window whose cost nobody can predict, and that says nothing else.
pub const DEFAULT_STEPS: u32 = 10;
/// What a window of the shipped rules may cost the slowest rank.
pub const DEFAULT_MAX_STALL: Duration = Duration::from_millis(300);

/// A window that is sized has no more steps than this: a comparison gains nothing by them.
pub const MOST_STEPS: u32 = 100;

/// Before the first window of a server: bytes a step with GPU rows alone. Three such steps, written
/// at [`FIRST_S_PER_MB`], stay just below the default of `max_stall`.
const FIRST_BYTES_PER_STEP: f64 = 60e3;
/// Before a stall was seen: the slow end of what healthy hosts showed, seconds a MB.
const FIRST_S_PER_MB: f64 = 1.6;
/// The quantile that a prediction is, in standard deviations: 19 windows of 20 stay below it.
const QUANTILE: f64 = 1.65;
/// The weight of the newest window once several are known: prefill shares and loads change within hours.
const NEWEST: f64 = 0.3;
/// How far bytes a step and seconds a byte differ between windows of one server as long as few are
/// known (standard deviation of the logarithm): a factor of 1.3 and of 1.2, as was measured.
const FIRST_SPREAD: [f64; 2] = [0.26, 0.18];
/// They are never taken to differ by less: windows that happened to agree prove no precision.
const LEAST_SPREAD: f64 = 0.12;
/// Silences shorter than this cannot be distinguished from the server's own.
const SEEN_FROM: Duration = Duration::from_millis(150);

/// What is recorded, by its cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recorded {
    /// GPU rows alone.
    Gpu,
    /// CPU rows alone, on a server that has no GPU: operators without launches and kernels.
    Cpu,
    /// CPU and GPU rows without stacks.
    CpuGpu,
    /// With Python stacks or shapes.
    Stacks,
}

impl Recorded {
    /// How many times as many bytes a step takes as with GPU rows alone.
    const fn weight(self) -> f64 {
        match self {
            Self::Gpu | Self::Cpu => 1.0,
            Self::CpuGpu => 2.5,
            Self::Stacks => 13.0,
        }
    }
}

/// A window that is over, as far as its cost goes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PastWindow {
    /// What it recorded.
    pub recorded: Recorded,
    /// Steps of each rank.
    pub steps: u32,
    /// The largest file of one rank, bytes.
    pub largest: u64,
    /// The longest silence of a rank that was seen.
    pub stall: Duration,
    /// How many times slower than usual the slowest rank's host was, at least 1.
    pub slowness: f64,
    /// What had been predicted.
    pub predicted: Option<Duration>,
    /// The release and model that ran, as a number: windows of another teach nothing.
    #[serde(default)]
    pub server: u64,
}

/// A number that is known up to a factor: its logarithm's mean and spread.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Factor {
    mean: f64,
    variance: f64,
    windows: u32,
}

impl Factor {
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
    bytes_per_step: Option<Factor>,
    s_per_byte: Option<Factor>,
}

/// A window that stays within its `max_stall`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Size {
    /// Steps of each rank.
    pub steps: u32,
    /// The longest silence of a rank that is expected, as an upper quantile.
    pub predicted: Duration,
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
        self.bytes_per_step.is_some()
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
        let per_step = past.largest as f64 / (f64::from(past.steps) * past.recorded.weight());
        let per_byte = past.stall.as_secs_f64() / (past.largest as f64 * past.slowness.max(1.0));
        let [of_bytes, of_rate] = FIRST_SPREAD.map(Factor::new);
        self.bytes_per_step.get_or_insert(of_bytes).learn(per_step);
        // What was too short to be seen bounds the rate from above and says nothing else.
        if past.stall < SEEN_FROM {
            return;
        }
        // Far beyond what was predicted it is another rate from now on, and not an average with the old.
        if past.predicted.is_some_and(|predicted| past.stall > predicted * 2) {
            self.s_per_byte = None;
        }
        self.s_per_byte.get_or_insert(of_rate).learn(per_byte);
    }

    /// What a window of `steps` is predicted to cost its slowest rank.
    pub fn predicted(&self, recorded: Recorded, steps: u32, slowness: f64) -> Duration {
        let first_bytes = (FIRST_BYTES_PER_STEP.ln(), 0.0);
        let first_rate = ((FIRST_S_PER_MB / 1e6).ln(), 0.0);
        let known = |f: &Factor| (f.mean, f.variance());
        let (bytes, bytes_var) = self.bytes_per_step.as_ref().map_or(first_bytes, known);
        let (rate, rate_var) = self.s_per_byte.as_ref().map_or(first_rate, known);
        let upper = (bytes + rate + QUANTILE * (bytes_var + rate_var).sqrt()).exp();
        Duration::from_secs_f64(
            (upper * f64::from(steps) * recorded.weight() * slowness.max(1.0)).clamp(0.0, 3_600.0),
        )
    }

    /// The most steps, at most `most`, whose predicted cost stays within `max_stall`.
    ///
    /// # Errors
    /// When even [`MIN_STEPS`] would cost more.
    pub fn size(
        &self,
        recorded: Recorded,
        most: u32,
        slowness: f64,
        max_stall: Duration,
    ) -> Result<Size, TooCostly> {
        let needed = self.predicted(recorded, MIN_STEPS, slowness);
        if needed > max_stall {
            return Err(TooCostly { needed });
        }
        let one = self.predicted(recorded, 1, slowness).as_secs_f64().max(1e-9);
        let fit = (max_stall.as_secs_f64() / one).min(f64::from(u32::MAX)) as u32;
        let steps = fit.clamp(MIN_STEPS, most.max(MIN_STEPS));
        Ok(Size { steps, predicted: self.predicted(recorded, steps, slowness) })
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
