//! The way from the sources to the loop, bounded in bytes: a source that is faster than the loop waits.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::effort::Effort;
use crate::http::body::{Held, Room};
use skewtrap_core::signal::observation::Observation;

/// Observations that may wait for the loop.
pub const ITEMS: usize = 256;
/// Bytes of them.
pub const BYTES: usize = 32 << 20;

/// An observation whose bytes count until it is dropped.
#[derive(Debug)]
pub struct Seen {
    /// What was seen.
    pub observation: Observation,
    _held: Held,
}

/// Where a source hands over what it sees.
#[derive(Clone, Debug)]
pub struct Outlet {
    tx: mpsc::Sender<Seen>,
    room: Room,
    effort: Arc<Effort>,
}

/// Nobody receives observations any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// An outlet for at most `items` observations of `bytes` together, and its other end.
pub fn outlet(items: usize, bytes: usize) -> (Outlet, mpsc::Receiver<Seen>) {
    let (tx, rx) = mpsc::channel(items);
    (Outlet { tx, room: Room::new(bytes), effort: Arc::default() }, rx)
}

impl Outlet {
    /// Hands over an observation when there is room for it.
    ///
    /// # Errors
    /// Nobody receives it.
    pub async fn send(&self, observation: Observation) -> Result<(), Gone> {
        let held = self.room.hold(size_of(&observation)).await;
        self.send_held(observation, held).await
    }

    /// Hands over an observation if there is room for it now; gives it back if there is none.
    ///
    /// # Errors
    /// Nobody receives it.
    pub fn try_send(&self, observation: Observation) -> Result<Option<Observation>, Gone> {
        let Some(held) = self.room.try_hold(size_of(&observation)) else { return Ok(Some(observation)) };
        match self.tx.try_send(Seen { observation, _held: held }) {
            Ok(()) => Ok(None),
            Err(TrySendError::Full(seen)) => Ok(Some(seen.observation)),
            Err(TrySendError::Closed(_)) => Err(Gone),
        }
    }

    /// Hands over an observation whose bytes are held already.
    ///
    /// # Errors
    /// Nobody receives it.
    pub async fn send_held(&self, observation: Observation, held: Held) -> Result<(), Gone> {
        self.tx.send(Seen { observation, _held: held }).await.map_err(|_| Gone)
    }

    /// What the sources cost.
    pub fn effort(&self) -> &Arc<Effort> {
        &self.effort
    }

    /// The room of all sources together.
    pub fn room(&self) -> &Room {
        &self.room
    }
}

fn size_of(observation: &Observation) -> usize {
    match observation {
        Observation::Lines { lines, .. } => lines.capacity(),
        Observation::Page { body, .. } | Observation::Loads { body, .. } => body.capacity(),
        Observation::Samples { samples, .. } | Observation::Host { samples, .. } => size_of_val(&samples[..]),
        // Its memory is its source's, whether it waits or not.
        Observation::ReadPage { .. } | Observation::State { .. } => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use skewtrap_core::signal::log_reader::Arrival;
    use skewtrap_core::signal::observation::SourceId;
    use skewtrap_core::signal::sample::TargetId;

    fn lines(bytes: usize) -> Observation {
        let (target, source) = (TargetId(0), SourceId(0));
        Observation::Lines { target, source, lines: vec![b'x'; bytes], arrival: Arrival::Recorded }
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_is_faster_than_the_loop_waits_for_room_and_holds_it_until_it_is_taken_in() {
        let (outlet, mut rx) = outlet(100, 1000);
        for _ in 0..2 {
            outlet.send(lines(400)).await.expect("somebody receives");
        }
        let third = tokio::time::timeout(Duration::from_secs(5), outlet.send(lines(400))).await;
        assert!(third.is_err(), "800 of 1000 bytes wait already");
        let taken = rx.recv().await.expect("the first");
        let third = tokio::time::timeout(Duration::from_secs(5), outlet.send(lines(400))).await;
        assert!(third.is_err(), "it is being taken in");
        drop(taken);
        outlet.send(lines(400)).await.expect("there is room");
        drop(rx);
        assert_eq!(outlet.send(lines(1)).await, Err(Gone));
    }
}
