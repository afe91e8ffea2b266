//! Notifies systemd: ready, alive, reloading, stopping. Where systemd did not start the agent all of it
//! does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// The agent has started to watch; `status` is shown by `systemctl status`.
pub fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// A line for `systemctl status`.
pub fn status(status: &str) {
    notify(&[NotifyState::Status(status)]);
}

/// The configuration is being read again; [`ready`] says when that is done.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
}

/// The agent is stopping; it may take `grace` to close an open window.
pub fn stopping(grace: Duration) {
    let grace = u32::try_from(grace.as_micros()).unwrap_or(u32::MAX);
    notify(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(grace)]);
}

/// How often the loop should call [`alive`]: half of what systemd allows; `None` without a watchdog.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|allowed| allowed / 2)
}

/// The loop still runs.
pub fn alive() {
    notify(&[NotifyState::Watchdog]);
}

/// A systemd that cannot be reached is no reason to stop watching.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd could not be notified");
    }
}
