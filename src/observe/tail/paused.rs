//! Follows logs on paused time, for simulations: no thread, no notices, the same reader.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{BUDGET, Config, Follow};
use crate::observe::Now;
use crate::observe::sender::ObservationSender;
use skewtrap_core::signal::log_reader::Arrival;
use skewtrap_core::signal::observation::Observation;

const EVERY: Duration = Duration::from_millis(50);

pub(super) async fn run(
    configs: Vec<Config>,
    sender: ObservationSender,
    cancel: CancellationToken,
    now: Now,
) -> bool {
    let mut logs: Vec<_> = configs.into_iter().map(|c| (Follow::new(&c.path, c.from_start), c)).collect();
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            biased;
            () = cancel.cancelled() => return true,
            _ = tick.tick() => {}
        }
        for (follow, config) in &mut logs {
            let mut lines = Vec::new();
            let Ok(polled) = follow.poll(BUDGET, true, &mut lines) else { continue };
            if lines.is_empty() {
                continue;
            }
            let at = now();
            let arrival = if polled.is_backlog { Arrival::Backlog(at) } else { Arrival::Live(at) };
            let Config { target, source, .. } = *config;
            if sender.send(Observation::Lines { target, source, lines, arrival }).await.is_err() {
                return true;
            }
        }
    }
}
