//! What a seed says: how the agent is set up, and which faults come when.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;

/// One run, all of it.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub seed: u64,
    /// Whether the agent reads the server's log.
    pub sees_log: bool,
    /// Whether one rank is without work at times, so that the start cannot refuse a double.
    pub idles: bool,
    /// In the order of time.
    pub faults: Vec<Fault>,
}

/// A fault: from when, for how long, what.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    pub at: Duration,
    pub lasts: Duration,
    pub kind: Kind,
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// A request in `of` has this fate, with these odds in a hundred.
    Network { of: Requests, outcome: RequestOutcome, odds: u8 },
    /// The agent's disk takes no operation.
    DiskStalls,
    /// The agent's state refuses writes.
    DiskFails,
    /// The server's log is written late.
    LogLate,
    /// Somebody sets the wall clock, by so many seconds.
    Clock(f64),
    /// The server is killed and comes back, perhaps with another number of ranks.
    ServerDies { ranks: u16 },
    /// The server writes its traces slowly.
    SlowExport,
    /// The server's disk fills while it writes a trace.
    ServerDiskFull,
    /// A rank says that it wrote its file, and did not.
    FileMissing,
    /// Somebody opens a profile of their own and closes it at the end.
    Operator,
    /// The agent is killed and started again, at the latest at the end.
    Killed,
    /// The agent is killed in the so-manieth of its dealings with disk and network from then on.
    KilledAtStep(u32),
    /// The agent is ended as systemd does it.
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Requests {
    All,
    Start,
    Stop,
    Profile,
    Health,
    Pages,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RequestOutcome {
    /// The connection is refused.
    Refused,
    /// It is lost, and the client waits.
    Dropped,
    /// It arrives, and its answer is lost.
    HalfOpen,
    /// The connection breaks before it arrives.
    BrokenBefore,
    /// It arrives, and the connection breaks before the answer.
    BrokenAfter,
    /// It arrives late, perhaps after what was sent later.
    Late(u64),
    /// A proxy answers in place of the server.
    Proxy(u16),
    /// It arrives, and a proxy answers in place of the server.
    ProxyAfter(u16),
}

impl Requests {
    pub fn has(self, path: &str) -> bool {
        let (start, stop) =
            (path == "/start_profile", path.contains("stop_profile") || path == "/end_profile");
        match self {
            Self::All => true,
            Self::Start => start,
            Self::Stop => stop,
            Self::Profile => start || stop,
            Self::Health => path == "/health",
            Self::Pages => path != "/health" && !start && !stop,
        }
    }
}

impl Scenario {
    /// Every seventh seed has no faults: there everything must go well.
    pub fn of(seed: u64) -> Self {
        let mut dice = Rng::with_seed(seed);
        let sees_log = dice.u8(..3) > 0;
        let idles = sees_log && dice.bool();
        let count = if seed.is_multiple_of(7) { 0 } else { dice.usize(1..7) };
        let mut faults: Vec<Fault> = (0..count).map(|_| Fault::any(&mut dice)).collect();
        faults.sort_by_key(|fault| fault.at);
        Self { seed, sees_log, idles, faults }
    }

    /// Only the faults with these numbers.
    pub fn only(&self, kept: &[usize]) -> Self {
        let faults = self.faults.iter().enumerate().filter(|(i, _)| kept.contains(i));
        Self { faults: faults.map(|(_, fault)| fault.clone()).collect(), ..self.clone() }
    }

    /// When the last fault is over.
    pub fn calm_from(&self) -> Duration {
        self.faults.iter().map(|fault| fault.at + fault.lasts).max().unwrap_or_default()
    }
}

impl Fault {
    fn any(dice: &mut Rng) -> Self {
        let at = Duration::from_millis(dice.u64(5_000..150_000));
        let short = Duration::from_millis(dice.u64(200..8_000));
        let long = Duration::from_millis(dice.u64(2_000..60_000));
        let (kind, lasts) = match dice.u8(..24) {
            0..9 => (Kind::network(dice), if dice.bool() { short } else { long }),
            9 | 10 => (Kind::DiskStalls, if dice.bool() { short } else { long }),
            11 | 12 => (Kind::DiskFails, long),
            13 => (Kind::LogLate, long),
            14 => {
                (Kind::Clock(*dice.choice(&[-600.0, -90.0, -3.0, 2.0, 45.0, 3_600.0]).unwrap_or(&1.0)), short)
            }
            15 | 16 => (Kind::ServerDies { ranks: dice.u16(2..4) }, if dice.bool() { short } else { long }),
            17 => (Kind::SlowExport, long),
            18 => (if dice.bool() { Kind::ServerDiskFull } else { Kind::FileMissing }, long),
            19 | 20 => (Kind::Operator, if dice.bool() { short } else { long }),
            21 => (Kind::Killed, if dice.bool() { short } else { long }),
            22 => (Kind::KilledAtStep(dice.u32(..60)), short),
            _ => (Kind::Ended, short),
        };
        Self { at, lasts, kind }
    }
}

impl Kind {
    fn network(dice: &mut Rng) -> Self {
        let of = [
            Requests::All,
            Requests::Start,
            Requests::Stop,
            Requests::Profile,
            Requests::Profile,
            Requests::Health,
            Requests::Pages,
        ];
        let of = of[dice.usize(..of.len())];
        let status = [404, 500, 502, 503][dice.usize(..4)];
        let fates = [
            RequestOutcome::Refused,
            RequestOutcome::Dropped,
            RequestOutcome::HalfOpen,
            RequestOutcome::BrokenBefore,
            RequestOutcome::BrokenAfter,
            RequestOutcome::Late(dice.u64(50..9_000)),
            RequestOutcome::Proxy(status),
            RequestOutcome::ProxyAfter(status),
        ];
        let odds = if dice.bool() { 100 } else { dice.u8(20..90) };
        Self::Network { of, outcome: fates[dice.usize(..fates.len())], odds }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let log = if self.sees_log { "with its log" } else { "without a log" };
        let idles = if self.idles { ", a rank idles at times" } else { "" };
        write!(f, "seed {}: {log}{idles}", self.seed)?;
        for (i, fault) in self.faults.iter().enumerate() {
            let (at, lasts) = (fault.at.as_secs_f64(), fault.lasts.as_secs_f64());
            write!(f, "\n  fault {i}: at {at:.1} s for {lasts:.1} s: {:?}", fault.kind)?;
        }
        Ok(())
    }
}
