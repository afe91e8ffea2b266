//! What several tests share: doubles behind real ports, the real binary, and recordings.

pub mod agent;
pub mod api;
pub mod comparison;
#[cfg(feature = "fleet")]
pub mod kubernetes;
pub mod nsys;
pub mod receiver;
pub mod request;
pub mod stage;
pub mod traces;
pub mod watch;

use std::time::Duration;

/// Polls until it is so, at most half a minute.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !is_so().await {
        assert!(tokio::time::Instant::now() < deadline, "not within 30 s: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
