//! What a world is made of: traffic, router, ranks, incidents.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Router {
    RoundRobin,
    Random,
    PowerOfTwo,
    Least,
    CacheAware,
    Hash,
    LeastTokens,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    Poisson,
    /// Gamma gaps with this coefficient of variation, in tenths.
    Gamma(u32),
    /// Quiet 0.6x, bursts 2.5x, exponential stays of 40 and 10 s.
    Mmpp,
    Diurnal,
    /// 0.6x and 1.6x, five minutes each.
    Step,
    /// A fifth of the traffic steadily, the rest in batches every five minutes.
    Batch,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Trouble {
    Redirect {
        share: f64,
    },
    Slow {
        factor: f64,
    },
    Hot {
        share: f64,
    },
    Exclude,
    Hung,
    Oscillate {
        share: f64,
        other: usize,
        period: f64,
    },
    /// This rank's prompts grow by a factor (a world of our own).
    Long {
        factor: f64,
    },
}

#[derive(Clone, Copy, Debug)]
pub struct Incident {
    pub trouble: Trouble,
    pub rank: usize,
    pub from: f64,
    pub until: f64,
    /// Seconds over which it grows; 0 is at once.
    pub ramp: f64,
}

#[derive(Clone, Debug)]
pub struct World {
    pub ranks: usize,
    pub router: Router,
    pub traffic: Traffic,
    /// Requests a second and rank.
    pub per_rank: f64,
    pub turns: f64,
    pub lockstep: bool,
    pub weights: Vec<f64>,
    pub slowness: Vec<f64>,
    pub long_share: f64,
    pub kv: f64,
    /// Median and log-sd of prompts; of outputs.
    pub prompt: (f64, f64),
    pub output: (f64, f64),
    pub max_run: usize,
    pub chunk: f64,
    /// c0, c1, c2 of decode steps; p0, p1, p2 of prefill; relative noise.
    pub cost: [f64; 7],
    /// When the traffic's kind changes to another prompt and output scale (0: never).
    pub mix_change: f64,
}

impl Default for World {
    fn default() -> Self {
        Self {
            ranks: 4,
            router: Router::Random,
            traffic: Traffic::Poisson,
            per_rank: 8.0,
            turns: 1.0,
            lockstep: false,
            weights: Vec::new(),
            slowness: Vec::new(),
            long_share: 0.0,
            kv: 400_000.0,
            prompt: (800.0, 1.1),
            output: (200.0, 0.9),
            max_run: 256,
            chunk: 8192.0,
            cost: [0.008, 3e-5, 2e-8, 0.010, 4e-5, 1e-10, 0.05],
            mix_change: 0.0,
        }
    }
}
