//! What a refusal means to machines: its word, and whether and when the same wish may be granted.

use std::time::Duration;

use super::Refusal;

/// The word of [`Refusal::Silenced`].
pub const SILENCED: &str = "silenced";

/// What passes by itself is asked about again after this.
const A_WHILE: Duration = Duration::from_secs(60);

impl Refusal {
    /// Whether it only says that something is not known yet: what is known a moment later may
    /// well allow the same wish.
    pub const fn awaits_facts(&self) -> bool {
        matches!(self, Self::UnknownServer { .. } | Self::Stale { .. } | Self::LeftOpen { .. })
    }

    /// How long until the same wish may be granted: what was left of a limit, or a while where
    /// things pass by themselves. `None` where somebody must mend something, or nobody can tell.
    pub const fn again_in(&self) -> Option<Duration> {
        match self {
            Self::Cooldown { left, .. }
            | Self::RuleLimit { left, .. }
            | Self::DailyWindows { left, .. }
            | Self::Suppression { left, .. }
            | Self::Silenced { left } => Some(*left),
            Self::WindowOpen { .. }
            | Self::LeftOpen { .. }
            | Self::UnknownServer { .. }
            | Self::Stale { .. }
            | Self::Unhealthy { .. }
            | Self::Slow { .. }
            | Self::Foreign { .. }
            | Self::ForeignRecently { .. }
            | Self::AllIdle
            | Self::DiskLow { .. }
            | Self::DailyStall { .. }
            | Self::DailyBytes { .. }
            | Self::KeepFull { .. } => Some(A_WHILE),
            Self::WatchOnly
            | Self::Cleared
            | Self::NotWorse { .. }
            | Self::FutureState { .. }
            | Self::NeedsLog { .. }
            | Self::BadFolder { .. }
            | Self::TooOld { .. }
            | Self::NoVersion
            | Self::Risk { .. }
            | Self::Never { .. }
            | Self::ProfileV2 => None,
        }
    }

    /// Whether it is the pace that was agreed to, not news: when a captured incident gets worse,
    /// nobody is woken to hear that the rule cools down.
    pub const fn is_agreed(&self) -> bool {
        matches!(self, Self::Cooldown { .. } | Self::Silenced { .. })
    }

    /// One word for counters and machines; docs/api.md lists them all.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::WatchOnly => "watch_only",
            Self::Silenced { .. } => SILENCED,
            Self::Cleared => "cleared",
            Self::Cooldown { .. } => "cooldown",
            Self::RuleLimit { .. } => "rule_limit",
            Self::WindowOpen { .. } => "window_open",
            Self::LeftOpen { .. } => "left_open",
            Self::NotWorse { .. } => "not_worse",
            Self::DailyWindows { .. } => "daily_windows",
            Self::DailyStall { .. } => "daily_stall",
            Self::DailyBytes { .. } => "daily_bytes",
            Self::Suppression { .. } => "quiet",
            Self::FutureState { .. } => "future_state",
            Self::UnknownServer { .. } => "unknown_server",
            Self::Stale { .. } => "stale_facts",
            Self::Unhealthy { .. } => "unhealthy",
            Self::Slow { .. } => "slow",
            Self::Foreign { .. } => "foreign_window",
            Self::ForeignRecently { .. } => "foreign_recently",
            Self::AllIdle => "all_idle",
            Self::NeedsLog { .. } => "needs_log",
            Self::DiskLow { .. } => "disk_low",
            Self::BadFolder { .. } => "bad_folder",
            Self::KeepFull { .. } => "keep_full",
            Self::TooOld { .. } => "too_old",
            Self::NoVersion => "no_version",
            Self::Risk { .. } => "risk",
            Self::Never { .. } => "never",
            Self::ProfileV2 => "profile_v2",
        }
    }
}
