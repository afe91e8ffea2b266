//! What a refusal means to machines: its word, and whether and when the same request may be granted.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Refusal;

/// A condition that passes by itself is checked again after this.
const A_WHILE: Duration = Duration::from_secs(60);
/// A window of another agent may be over long before the latest end that it told: that is looked at again after this.
const TURN: Duration = Duration::from_secs(5);

impl Refusal {
    /// Whether it only says that something is not known yet: what is known a moment later may
    /// well allow the same request.
    pub const fn awaits_facts(&self) -> bool {
        matches!(
            self,
            Self::UnknownServer { .. }
                | Self::NoAnswer { .. }
                | Self::Stale { .. }
                | Self::LeftOpen { .. }
                | Self::NoProgress { .. }
        )
    }

    /// How long until the same request may be granted: what was left of a limit, or a while for
    /// conditions that pass by themselves. `None` where somebody has to change something, or it is unknown.
    pub fn again_in(&self) -> Option<Duration> {
        match self {
            Self::Cooldown { left, .. }
            | Self::RuleLimit { left, .. }
            | Self::DailyWindows { left, .. }
            | Self::Suppression { left, .. }
            | Self::PoolWindow { left, .. }
            | Self::PoolUnproven { left, .. }
            | Self::Silenced { left } => Some(*left),
            Self::OtherAgent { left, .. } => Some((*left).min(TURN)),
            Self::PoolBudget(spent) => spent.again_in(),
            Self::RankWakes { ago, .. } => Some(super::WAKES.saturating_sub(*ago)),
            Self::WindowOpen { .. }
            | Self::LeftOpen { .. }
            | Self::UnknownServer { .. }
            | Self::NoAnswer { .. }
            | Self::Stale { .. }
            | Self::Unhealthy { .. }
            | Self::Slow { .. }
            | Self::Foreign { .. }
            | Self::ForeignRecently { .. }
            | Self::AllIdle
            | Self::RankStuck { .. }
            | Self::NoProgress { .. }
            | Self::DiskLow { .. }
            | Self::DailyStall { .. }
            | Self::DailyBytes { .. }
            | Self::PoolLease { .. }
            | Self::KeepFull { .. }
            | Self::StateDisk => Some(A_WHILE),
            Self::WatchOnly
            | Self::SpansServers
            | Self::Cleared
            | Self::LittleImpact { .. }
            | Self::NotWorse { .. }
            | Self::FutureState { .. }
            | Self::NeedsLog { .. }
            | Self::BadFolder { .. }
            | Self::TooOld { .. }
            | Self::NoVersion
            | Self::Risk { .. }
            | Self::Never { .. }
            | Self::ProfileV2
            | Self::TooCostly { .. }
            | Self::ServerTimer { .. }
            | Self::UnknownDevice { .. }
            | Self::Suspended { .. } => None,
        }
    }

    /// Whether the same request is refused for the same reason after `wait` too, whatever the server does
    /// meanwhile.
    pub fn outlasts(&self, wait: Duration) -> bool {
        match self {
            Self::Cooldown { left, .. } | Self::RuleLimit { left, .. } | Self::DailyWindows { left, .. } => {
                *left > wait
            }
            Self::WatchOnly
            | Self::FutureState { .. }
            | Self::TooOld { .. }
            | Self::Risk { .. }
            | Self::Never { .. }
            | Self::ProfileV2
            | Self::Suspended { .. } => true,
            _ => false,
        }
    }

    /// Whether it follows from the configured pace: when a captured incident gets worse, no message is
    /// sent to say that the rule cools down.
    pub const fn is_by_configured_pace(&self) -> bool {
        matches!(self, Self::Cooldown { .. } | Self::Silenced { .. })
    }

    /// Its word for counters and machines; docs/api.md lists them all.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::WatchOnly => Reason::WatchOnly,
            Self::StateDisk => Reason::StateDisk,
            Self::Silenced { .. } => Reason::Silenced,
            Self::SpansServers => Reason::SpansServers,
            Self::Cleared => Reason::Cleared,
            Self::LittleImpact { .. } => Reason::LittleImpact,
            Self::Cooldown { .. } => Reason::Cooldown,
            Self::RuleLimit { .. } => Reason::RuleLimit,
            Self::WindowOpen { .. } => Reason::WindowOpen,
            Self::LeftOpen { .. } => Reason::LeftOpen,
            Self::NotWorse { .. } => Reason::NotWorse,
            Self::DailyWindows { .. } => Reason::DailyWindows,
            Self::DailyStall { .. } => Reason::DailyStall,
            Self::DailyBytes { .. } => Reason::DailyBytes,
            Self::PoolWindow { .. } => Reason::PoolWindow,
            Self::PoolUnproven { .. } => Reason::PoolUnproven,
            Self::PoolBudget(_) => Reason::PoolBudget,
            Self::PoolLease { .. } => Reason::PoolLease,
            Self::OtherAgent { .. } => Reason::OtherAgent,
            Self::Suppression { .. } => Reason::Suppression,
            Self::FutureState { .. } => Reason::FutureState,
            Self::UnknownServer { .. } => Reason::UnknownServer,
            Self::NoAnswer { .. } => Reason::NoAnswer,
            Self::Stale { .. } => Reason::Stale,
            Self::Unhealthy { .. } => Reason::Unhealthy,
            Self::Slow { .. } => Reason::Slow,
            Self::Foreign { .. } => Reason::Foreign,
            Self::ForeignRecently { .. } => Reason::ForeignRecently,
            Self::AllIdle => Reason::AllIdle,
            Self::RankStuck { .. } | Self::RankWakes { .. } => Reason::RankStuck,
            Self::NoProgress { .. } => Reason::NoProgress,
            Self::NeedsLog { .. } => Reason::NeedsLog,
            Self::DiskLow { .. } => Reason::DiskLow,
            Self::BadFolder { .. } => Reason::BadFolder,
            Self::KeepFull { .. } => Reason::KeepFull,
            Self::TooOld { .. } => Reason::TooOld,
            Self::NoVersion => Reason::NoVersion,
            Self::Risk { .. } => Reason::Risk,
            Self::Never { .. } => Reason::Never,
            Self::ProfileV2 => Reason::ProfileV2,
            Self::TooCostly { .. } => Reason::TooCostly,
            Self::ServerTimer { .. } => Reason::ServerTimer,
            Self::UnknownDevice { .. } => Reason::UnknownDevice,
            Self::Suspended { .. } => Reason::Suspended,
        }
    }

    /// [`Self::reason`] as it is written: `cooldown`.
    pub const fn word(&self) -> &'static str {
        self.reason().word()
    }
}

/// Why a window was refused, as one word for counters and machines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// See [`Refusal::WatchOnly`].
    WatchOnly,
    /// See [`Refusal::StateDisk`].
    StateDisk,
    /// See [`Refusal::Silenced`].
    Silenced,
    /// See [`Refusal::SpansServers`].
    SpansServers,
    /// See [`Refusal::Cleared`].
    Cleared,
    /// See [`Refusal::LittleImpact`].
    #[serde(alias = "little_harm")]
    LittleImpact,
    /// See [`Refusal::Cooldown`].
    Cooldown,
    /// See [`Refusal::RuleLimit`].
    RuleLimit,
    /// See [`Refusal::WindowOpen`].
    WindowOpen,
    /// See [`Refusal::LeftOpen`].
    LeftOpen,
    /// See [`Refusal::NotWorse`].
    NotWorse,
    /// See [`Refusal::DailyWindows`].
    DailyWindows,
    /// See [`Refusal::DailyStall`].
    DailyStall,
    /// See [`Refusal::DailyBytes`].
    DailyBytes,
    /// See [`Refusal::PoolWindow`].
    PoolWindow,
    /// See [`Refusal::PoolUnproven`].
    PoolUnproven,
    /// See [`Refusal::PoolBudget`].
    PoolBudget,
    /// See [`Refusal::PoolLease`].
    PoolLease,
    /// See [`Refusal::OtherAgent`].
    OtherAgent,
    /// See [`Refusal::Suppression`].
    #[serde(rename = "quiet")]
    Suppression,
    /// See [`Refusal::FutureState`].
    FutureState,
    /// See [`Refusal::UnknownServer`].
    UnknownServer,
    /// See [`Refusal::NoAnswer`].
    NoAnswer,
    /// See [`Refusal::Stale`].
    #[serde(rename = "stale_facts")]
    Stale,
    /// See [`Refusal::Unhealthy`].
    Unhealthy,
    /// See [`Refusal::Slow`].
    Slow,
    /// See [`Refusal::Foreign`].
    #[serde(rename = "foreign_window")]
    Foreign,
    /// See [`Refusal::ForeignRecently`].
    ForeignRecently,
    /// See [`Refusal::AllIdle`].
    AllIdle,
    /// See [`Refusal::RankStuck`] and [`Refusal::RankWakes`].
    RankStuck,
    /// See [`Refusal::NoProgress`].
    NoProgress,
    /// See [`Refusal::NeedsLog`].
    NeedsLog,
    /// See [`Refusal::DiskLow`].
    DiskLow,
    /// See [`Refusal::BadFolder`].
    BadFolder,
    /// See [`Refusal::KeepFull`].
    KeepFull,
    /// See [`Refusal::TooOld`].
    TooOld,
    /// See [`Refusal::NoVersion`].
    NoVersion,
    /// See [`Refusal::Risk`].
    Risk,
    /// See [`Refusal::Never`].
    Never,
    /// See [`Refusal::ProfileV2`].
    ProfileV2,
    /// See [`Refusal::TooCostly`].
    TooCostly,
    /// See [`Refusal::ServerTimer`].
    ServerTimer,
    /// See [`Refusal::UnknownDevice`].
    UnknownDevice,
    /// See [`Refusal::Suspended`].
    #[serde(alias = "stood_down")]
    Suspended,
    /// A word of another release, or none.
    #[default]
    #[serde(rename = "", other)]
    Unknown,
}

impl Reason {
    /// As in JSON: `cooldown`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::WatchOnly => "watch_only",
            Self::StateDisk => "state_disk",
            Self::Silenced => "silenced",
            Self::SpansServers => "spans_servers",
            Self::Cleared => "cleared",
            Self::LittleImpact => "little_impact",
            Self::Cooldown => "cooldown",
            Self::RuleLimit => "rule_limit",
            Self::WindowOpen => "window_open",
            Self::LeftOpen => "left_open",
            Self::NotWorse => "not_worse",
            Self::DailyWindows => "daily_windows",
            Self::DailyStall => "daily_stall",
            Self::DailyBytes => "daily_bytes",
            Self::PoolWindow => "pool_window",
            Self::PoolUnproven => "pool_unproven",
            Self::PoolBudget => "pool_budget",
            Self::PoolLease => "pool_lease",
            Self::OtherAgent => "other_agent",
            Self::Suppression => "quiet",
            Self::FutureState => "future_state",
            Self::UnknownServer => "unknown_server",
            Self::NoAnswer => "no_answer",
            Self::Stale => "stale_facts",
            Self::Unhealthy => "unhealthy",
            Self::Slow => "slow",
            Self::Foreign => "foreign_window",
            Self::ForeignRecently => "foreign_recently",
            Self::AllIdle => "all_idle",
            Self::RankStuck => "rank_stuck",
            Self::NoProgress => "no_progress",
            Self::NeedsLog => "needs_log",
            Self::DiskLow => "disk_low",
            Self::BadFolder => "bad_folder",
            Self::KeepFull => "keep_full",
            Self::TooOld => "too_old",
            Self::NoVersion => "no_version",
            Self::Risk => "risk",
            Self::Never => "never",
            Self::ProfileV2 => "profile_v2",
            Self::TooCostly => "too_costly",
            Self::ServerTimer => "server_timer",
            Self::UnknownDevice => "unknown_device",
            Self::Suspended => "suspended",
            Self::Unknown => "",
        }
    }

    /// In a title, for people: `cooldown`, `the server does not answer`. Empty where it is unknown.
    pub fn phrase(self) -> String {
        match self {
            Self::NoAnswer => "the server does not answer".into(),
            Self::UnknownServer => "the server has not said what it is".into(),
            Self::Stale => "what is known of the server is too old".into(),
            _ => self.word().replace('_', " "),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_reads_as_it_is_written_and_a_word_of_another_release_is_unknown() {
        for reason in [Reason::Stale, Reason::Suppression, Reason::Foreign, Reason::SpansServers] {
            let json = serde_json::to_value(reason).expect("it serialises");
            assert_eq!(json, reason.word());
            assert_eq!(serde_json::from_value::<Reason>(json).expect("it is read"), reason);
        }
        // Words of releases before this one, as incidents on disk have them.
        for (word, reason) in [("stood_down", Reason::Suspended), ("little_harm", Reason::LittleImpact)] {
            assert_eq!(serde_json::from_value::<Reason>(word.into()).expect("it is read"), reason);
        }
        assert_eq!(serde_json::from_str::<Reason>("\"of_tomorrow\"").expect("it is read"), Reason::Unknown);
    }
}
