//! What is known about a server before a window is opened on it: its version and sizes, its
//! health, the room on its disks, who works, and who else profiles.
//!
//! The shell keeps these fresh in the background, so that at the moment of firing only memory is
//! consulted. Facts are observations with the time at which they were true; what follows from
//! them is decided in `preflight`.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use crate::capture::engine::ServerKind;
use crate::capture::line::{ForeignWindows, OwnLines, ProfileLine};
use crate::capture::prior::ModelSize;
use crate::factor::Progress;
pub use crate::signal::metrics::Role;
use skewtrap_trace::fnv1a;
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

/// A rank that had work within this long counts as busy.
pub const WORK_HORIZON: Duration = Duration::from_secs(2);
/// A line of the log may be read so long after it was true, when another source has newer news already.
const LATE: Duration = Duration::from_millis(250);

/// `/health` of SGLang answers 503 when the scheduler was silent for so long, and what watches it (a
/// router, a liveness probe) then takes the server out, or kills it.
const HEALTH_TIMER: Duration = Duration::from_secs(20);

/// A release, by its first three numbers: `0.4.7.post1` is 0.4.7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version(pub [u16; 3]);

impl Version {
    /// The release `major.minor.patch`.
    pub const fn new(major: u16, minor: u16, patch: u16) -> Self {
        Self([major, minor, patch])
    }

    /// Reads `0.5.16`, `v0.5.3+cu128`, `0.33.0rc1`, `0.13`; `None` when it starts with no number.
    pub fn of(text: &str) -> Option<Self> {
        let mut parts = text.trim().trim_start_matches('v').split('.').map(|part| {
            let digits = part.bytes().take_while(u8::is_ascii_digit).count();
            part[..digits].parse().ok()
        });
        let major = parts.next().flatten()?;
        let mut rest = || parts.next().flatten().unwrap_or(0);
        Some(Self([major, rest(), rest()]))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self([major, minor, patch]) = self;
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// How many ranks there are on each axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// Data parallel.
    pub dp: u16,
    /// Tensor parallel: of one replica, or of the whole server when it runs DP attention.
    pub tp: u16,
    /// Pipeline parallel.
    pub pp: u16,
    /// Expert parallel.
    pub ep: u16,
    /// Machines; the agent usually sees the files of one.
    pub nodes: u16,
    /// Whether the DP ranks are slices of one TP group, which then steps as one.
    pub dp_attention: bool,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { dp: 1, tp: 1, pp: 1, ep: 1, nodes: 1, dp_attention: false }
    }
}

/// What a server reports about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServerFacts {
    /// Which engine it runs.
    pub engine: ServerKind,
    /// Its release; `None` when it does not report one.
    pub version: Option<Version>,
    /// Its ranks.
    pub sizes: Sizes,
    /// Its part in a disaggregated deployment.
    pub role: Role,
    /// `cuda`, `cpu`, `hip`, ...
    pub device: String,
    /// Whether it runs on ROCm; `None` when that is unknown.
    pub rocm: Option<bool>,
    /// Whether `SGLANG_PROFILE_V2` is on; `None` when the server does not report it (most do not).
    pub profile_v2: Option<bool>,
    /// Whether the HTTP front end is the Rust one, which has no profile API.
    pub rust_front_end: bool,
    /// Changes when the server is started anew.
    pub instance: String,
    /// What it serves; empty when it does not say.
    #[serde(default)]
    pub model: String,
    /// `--watchdog-timeout`: a scheduler that is silent for so long is killed, and the server with it.
    #[serde(default)]
    pub watchdog: Option<Duration>,
    /// How large its model is, as far as anything tells.
    #[serde(default)]
    pub model_size: ModelSize,
}

impl ServerFacts {
    /// Reads an answer of `/server_info` or `/get_server_info` (SGLang). Absent sizes are one.
    pub fn of_server_info(info: &Value) -> Self {
        let size = |name: &str| info[name].as_u64().and_then(|n| u16::try_from(n).ok()).unwrap_or(1).max(1);
        let text = |name: &str| info[name].as_str().unwrap_or_default().to_owned();
        let device = text("device");
        Self {
            engine: ServerKind::Sglang,
            version: Version::of(&text("version")),
            sizes: Sizes {
                dp: size("dp_size"),
                tp: size("tp_size"),
                pp: size("pp_size"),
                ep: size("ep_size"),
                nodes: size("nnodes"),
                dp_attention: info["enable_dp_attention"].as_bool().unwrap_or(false),
            },
            role: match info["disaggregation_mode"].as_str() {
                Some("prefill") => Role::Prefill,
                Some("decode") => Role::Decode,
                _ => Role::Unified,
            },
            rocm: rocm_of(&device, &text("attention_backend")),
            profile_v2: profile_v2_of(info),
            rust_front_end: info["frontend"] == "rust",
            // The seed is drawn at each start unless it was given; the processes' numbers are told since 0.5.16,
            // how long the start took since 0.5.23. Not the model: a server that lives may load another.
            instance: format!(
                "{} {} {} {}",
                text("version"),
                info["random_seed"],
                info["scheduler_pids"],
                info["startup_time"]["tokenizer_e2e"]
            ),
            model_size: ModelSize::of_server_info(info, &text("model_path")),
            model: text("model_path"),
            watchdog: info["watchdog_timeout"]
                .as_f64()
                .filter(|s| *s > 0.0)
                .and_then(|s| Duration::try_from_secs_f64(s).ok()),
            device,
        }
    }

    /// A vLLM server of that release; it reports no sizes, so `engines` is the number of engines in its
    /// metrics.
    pub fn of_vllm(version: &str, engines: u16) -> Self {
        Self {
            engine: ServerKind::Vllm,
            version: Version::of(version),
            sizes: Sizes { dp: engines.max(1), ..Sizes::default() },
            role: Role::Unified,
            device: String::new(),
            rocm: None,
            profile_v2: Some(false),
            rust_front_end: false,
            instance: version.to_owned(),
            model: String::new(),
            watchdog: None,
            model_size: ModelSize::default(),
        }
    }

    /// A TensorRT-LLM server of that release; `ranks` is the number of attention-DP ranks in its statistics.
    pub fn of_tensorrt_llm(version: &str, ranks: u16) -> Self {
        let device = "cuda".to_owned();
        Self { engine: ServerKind::TensorrtLlm, device, ..Self::of_vllm(version, 1) }.with_ranks(ranks)
    }

    /// A worker of Dynamo with `engine`; it tells neither the release nor the sizes, so `ranks` is the number of
    /// ranks in its metrics.
    pub fn of_dynamo(engine: ServerKind, model: &str, ranks: u16) -> Self {
        Self {
            engine,
            version: None,
            instance: format!("dynamo {model}"),
            model: model.to_owned(),
            model_size: ModelSize::of_name(model),
            ..Self::of_vllm("", ranks)
        }
    }

    /// The same with so many ranks as are seen to have a load of their own. In TensorRT-LLM these are slices of one TP
    /// group.
    fn with_ranks(mut self, ranks: u16) -> Self {
        self.sizes.dp = self.sizes.dp.max(ranks);
        if self.engine == ServerKind::TensorrtLlm && self.sizes.dp > 1 {
            (self.sizes.tp, self.sizes.dp_attention) = (self.sizes.dp, true);
        }
        self
    }

    /// What release serves which model on what, as a number that is the same in every release of the
    /// agent: what a window cost holds for the same only.
    pub fn fingerprint(&self) -> u64 {
        let text =
            format!("{} {:?} {:?} {} {}", self.engine, self.version, self.sizes, self.device, self.model);
        fnv1a(text.bytes())
    }

    /// The soonest of the timers that a silent rank trips, and its name.
    pub fn smallest_timer(&self) -> (Duration, &'static str) {
        match self.watchdog.filter(|watchdog| *watchdog < HEALTH_TIMER) {
            Some(watchdog) => (watchdog, "--watchdog-timeout"),
            None => (HEALTH_TIMER, "the health check"),
        }
    }
}

/// torch calls ROCm `cuda` too, so the attention backend is the better evidence.
fn rocm_of(device: &str, attention_backend: &str) -> Option<bool> {
    const NVIDIA: [&str; 7] =
        ["flashinfer", "fa3", "fa4", "flashmla", "cutlass_mla", "trtllm_mla", "trtllm_mha"];
    match device {
        "hip" | "rocm" => Some(true),
        "cuda" if attention_backend.contains("aiter") => Some(true),
        "cuda" if NVIDIA.contains(&attention_backend) => Some(false),
        "cuda" | "" => None,
        _ => Some(false),
    }
}

/// Only a server with `SGLANG_EXPOSE_OWN_ENV_VARS` shows its environment.
fn profile_v2_of(info: &Value) -> Option<bool> {
    let environment = info.get("env_vars")?.as_object()?;
    let value = environment.get("SGLANG_PROFILE_V2").and_then(Value::as_str).unwrap_or("0");
    Some(matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on"))
}

/// How a server answers `/health`, compared with its own usual latency.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Health {
    recent: Vec<Duration>,
    last: Option<(Time, HealthAnswer)>,
}

/// One answer to `/health`.
#[derive(Clone, Debug, PartialEq)]
pub enum HealthAnswer {
    /// It reported that it is healthy, after this long.
    Healthy(Duration),
    /// It did not; the reason.
    Unhealthy(String),
}

impl Health {
    /// The median is computed from at most this many good answers.
    const KEPT: usize = 31;

    /// Takes one answer; a bad one does not count towards the median.
    pub fn answered(&mut self, answer: HealthAnswer, at: Time) {
        if let HealthAnswer::Healthy(took) = answer {
            if self.recent.len() == Self::KEPT {
                self.recent.remove(0);
            }
            self.recent.push(took);
        }
        self.last = Some((at, answer));
    }

    /// The last answer and when it arrived.
    pub fn last(&self) -> Option<&(Time, HealthAnswer)> {
        self.last.as_ref()
    }

    /// The median latency of the recent good answers, the faster of two middle ones. A good answer takes 1.0
    /// s on SGLang 0.5.16.
    pub fn median(&self) -> Option<Duration> {
        let mut sorted = self.recent.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len().saturating_sub(1) / 2).copied()
    }
}

/// A folder of the server as the agent sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Folder {
    /// The server's name for it.
    pub server_path: String,
    /// Bytes free on it; `None` when the agent cannot see it.
    pub seen: Option<Room>,
    /// When that was read.
    pub at: Time,
}

/// What the agent sees of a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Whether it is there and a folder.
    pub exists: bool,
    /// Whether its file system takes writes.
    pub writable: bool,
    /// Bytes that an unprivileged process can still write.
    pub free: u64,
}

/// Everything known about one server at a time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// What it reports about itself; discarded when it stops answering, and read again once it answers.
    pub server: Option<ServerFacts>,
    /// Since when it has not answered; none while it does, and before it was asked.
    pub unanswered: Option<Time>,
    /// How it answers.
    pub health: Health,
    /// BASE and the server's temporary folder, as far as they are declared.
    pub folders: Vec<Folder>,
    /// When each rank last had work (running or queued requests, or a batch line).
    pub last_work: BTreeMap<Rank, Time>,
    /// How each DP rank gets on with its work.
    pub progress: Vec<(u16, Progress)>,
    /// When each rank was last seen without any.
    pub last_idle: BTreeMap<Rank, Time>,
    /// When the ranks' work, idle or not, was last reported.
    pub ranks_at: Option<Time>,
    /// Windows that somebody else opened.
    pub foreign: ForeignWindows,
    /// Whether the agent reads this server's log.
    pub sees_log: bool,
    /// Windows of the agent's own, so that their lines are not taken for somebody else's.
    pub own: OwnLines,
}

impl Facts {
    /// The clock was set by so many nanoseconds.
    pub fn shift(&mut self, by_ns: i64) {
        self.foreign.shift(by_ns);
        self.own.shift(by_ns);
        let ranks = self.last_work.values_mut().chain(self.last_idle.values_mut()).chain(&mut self.ranks_at);
        let health = self.health.last.iter_mut().map(|last| &mut last.0);
        let folders = self.folders.iter_mut().map(|folder| &mut folder.at);
        Time::shift_all(ranks.chain(health).chain(folders).chain(&mut self.unanswered), by_ns);
    }

    /// A rank was seen with or without work.
    pub fn rank_seen(&mut self, rank: Rank, has_work: bool, at: Time) {
        self.ranks_at = self.ranks_at.max(Some(at));
        let times = if has_work { &mut self.last_work } else { &mut self.last_idle };
        let last = times.entry(rank).or_insert(at);
        *last = (*last).max(at);
    }

    /// A profiling line of the log: of a window of the agent, or of another client's.
    pub fn profile_line(&mut self, rank: Rank, line: &ProfileLine, at: Time) {
        if !self.own.takes(rank, line, at) {
            self.foreign.line(rank, line, at);
        } else if matches!(line, ProfileLine::Done { .. }) {
            // A second start during our window let the rank continue recording under our marks; this line
            // shows that both have ended.
            self.foreign.over_on(rank);
        }
    }

    /// The server stopped answering: what it said about itself may no longer hold. What runs in it may
    /// run on: a refused connection is no proof of its end.
    pub fn server_lost(&mut self, now: Time) {
        self.server = None;
        self.unanswered.get_or_insert(now);
    }

    /// It is another instance: whatever ran in the one before is gone.
    pub fn server_restarted(&mut self) {
        self.foreign.forget_open();
        self.own.forget_begun();
    }

    /// Replaces or adds what is known of a folder.
    pub fn folder_seen(&mut self, folder: Folder) {
        match self.folders.iter_mut().find(|f| f.server_path == folder.server_path) {
            Some(known) => *known = folder,
            None => self.folders.push(folder),
        }
    }

    /// Whether `rank` had work within [`WORK_HORIZON`] and was not seen without any since, or just
    /// before: a rank that has run dry is the imbalance, and the start that waits for its next step would
    /// leave it armed. A key with fewer axes applies to every rank that agrees with it (`DP2` for `DP2 TP1`).
    pub fn is_busy(&self, rank: Rank, now: Time) -> bool {
        self.last_work.iter().any(|(key, at)| {
            let ran_dry = self.last_idle.get(key).is_some_and(|idle| *idle + LATE >= *at);
            speaks_for(*key, rank) && now.since(*at) <= WORK_HORIZON && !ran_dry
        })
    }
}

/// Whether what was observed for `key` applies to `rank`: the axes that both have agree.
pub fn speaks_for(key: Rank, rank: Rank) -> bool {
    key.iter().all(|(axis, index)| rank.get(axis).is_none_or(|i| i == index))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_release_is_read_from_every_way_of_writing_it() {
        for (text, wanted) in [
            ("0.5.16", Some(Version::new(0, 5, 16))),
            ("0.4.7.post1", Some(Version::new(0, 4, 7))),
            ("v0.5.3+cu128", Some(Version::new(0, 5, 3))),
            ("0.13", Some(Version::new(0, 13, 0))),
            ("0.33.0rc1", Some(Version::new(0, 33, 0))),
            ("main", None),
            ("", None),
        ] {
            assert_eq!(Version::of(text), wanted, "{text}");
        }
        assert!(Version::new(0, 5, 9) < Version::new(0, 5, 16));
    }

    #[test]
    fn a_server_info_gives_sizes_mode_and_what_it_does_not_tell_stays_unknown() {
        let facts = ServerFacts::of_server_info(&json!({
            "version": "0.5.16", "dp_size": 4, "tp_size": 8, "enable_dp_attention": true,
            "disaggregation_mode": "decode", "device": "cuda", "attention_backend": "triton", "random_seed": 7
        }));
        assert_eq!(facts.sizes, Sizes { dp: 4, tp: 8, dp_attention: true, ..Sizes::default() });
        assert_eq!((facts.role, facts.rocm, facts.profile_v2), (Role::Decode, None, None));
        let v2 = ServerFacts::of_server_info(&json!({"env_vars": {"SGLANG_PROFILE_V2": "1"}}));
        assert_eq!(v2.profile_v2, Some(true));
    }

    #[test]
    fn a_bad_answer_does_not_enter_the_habit_of_health() {
        let mut health = Health::default();
        for ms in [1000, 1001, 990] {
            health.answered(HealthAnswer::Healthy(Duration::from_millis(ms)), Time::from_nanos(1));
        }
        health.answered(HealthAnswer::Unhealthy("503".into()), Time::from_nanos(2));
        assert_eq!(health.median(), Some(Duration::from_millis(1000)));
        assert_eq!(health.last(), Some(&(Time::from_nanos(2), HealthAnswer::Unhealthy("503".into()))));
    }

    #[test]
    fn a_rank_that_has_just_run_dry_has_no_work_however_lately_it_had_some() {
        let mut facts = Facts::default();
        let at = |s: f64| Time::from_epoch_s(1000.0 + s);
        facts.rank_seen(Rank::dp(1), true, at(-1.0));
        assert!(facts.is_busy(Rank::dp(1), at(0.0)));
        facts.rank_seen(Rank::dp(1), false, at(-0.9));
        assert!(!facts.is_busy(Rank::dp(1), at(0.0)));
        facts.rank_seen(Rank::dp(1), true, at(-0.8));
        assert!(!facts.is_busy(Rank::dp(1), at(0.0)), "a line that came late");
        facts.rank_seen(Rank::dp(1), true, at(-0.2));
        assert!(facts.is_busy(Rank::dp(1), at(0.0)));
    }

    #[test]
    fn a_dp_rank_speaks_for_its_tensor_parallel_ranks_and_for_no_other() {
        use skewtrap_trace::rank::Axis;
        let mut facts = Facts::default();
        let now = Time::from_epoch_s(10.0);
        facts.rank_seen(Rank::dp(1), true, Time::from_epoch_s(9.0));
        facts.rank_seen(Rank::dp(0), true, Time::from_epoch_s(7.0));
        assert!(facts.is_busy(Rank::dp(1).with(Axis::Tp, 3), now));
        assert!(!facts.is_busy(Rank::dp(0).with(Axis::Tp, 3), now), "its work is 3 s old");
        assert!(!facts.is_busy(Rank::dp(2), now), "it was never seen with work");
    }
}
