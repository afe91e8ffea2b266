//! The way from the sources to the loop, bounded in bytes: a source that is faster than the loop waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::effort::SourceCounters;
use crate::http::body::{HeldBytes, Room};
use skewtrap_core::signal::observation::Observation;

/// Observations that may wait for the loop.
pub const ITEMS: usize = 256;
/// Bytes of them.
pub const BYTES: usize = 32 << 20;

/// What a source hands over at once, in its order. Its bytes count until it is dropped.
#[derive(Debug)]
pub struct ObservationBatch {
    /// What was seen.
    pub observations: Vec<Observation>,
    _held: HeldBytes,
}

/// Whether lines are handed over as soon as they are read: where a rule fires at once, or a window is open.
/// Otherwise those of a busy log are gathered for as long as no rule is evaluated, since each time that they are
/// handed over wakes the loop.
#[derive(Clone, Debug, Default)]
pub struct ImmediateFlush(Arc<AtomicBool>);

impl ImmediateFlush {
    /// Says whether lines are handed over at once from now on.
    pub fn set(&self, is_immediate: bool) {
        self.0.store(is_immediate, Ordering::Relaxed);
    }

    /// Whether there is.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Where a source hands over what it sees.
#[derive(Clone, Debug)]
pub struct ObservationSender {
    tx: mpsc::Sender<ObservationBatch>,
    room: Room,
    effort: Arc<SourceCounters>,
    immediate: ImmediateFlush,
}

/// Nobody receives observations any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiverGone;

/// A channel for at most `items` observations of `bytes` together, its sending and its receiving end.
pub fn observation_channel(
    items: usize,
    bytes: usize,
) -> (ObservationSender, mpsc::Receiver<ObservationBatch>) {
    let (tx, rx) = mpsc::channel(items);
    (
        ObservationSender {
            tx,
            room: Room::new(bytes),
            effort: Arc::default(),
            immediate: ImmediateFlush::default(),
        },
        rx,
    )
}

impl ObservationSender {
    /// Hands over an observation when there is room for it.
    ///
    /// # Errors
    /// Nobody receives it.
    pub async fn send(&self, observation: Observation) -> Result<(), ReceiverGone> {
        self.send_all(vec![observation]).await
    }

    /// Hands over what belongs together when there is room for it.
    ///
    /// # Errors
    /// Nobody receives it.
    pub async fn send_all(&self, observations: Vec<Observation>) -> Result<(), ReceiverGone> {
        let _held = self.room.hold(size_of(&observations)).await;
        self.tx.send(ObservationBatch { observations, _held }).await.map_err(|_| ReceiverGone)
    }

    /// Hands over what belongs together if there is room for it now; gives it back if there is none.
    ///
    /// # Errors
    /// Nobody receives it.
    pub fn try_send(&self, observations: Vec<Observation>) -> Result<Option<Vec<Observation>>, ReceiverGone> {
        let Some(_held) = self.room.try_hold(size_of(&observations)) else { return Ok(Some(observations)) };
        match self.tx.try_send(ObservationBatch { observations, _held }) {
            Ok(()) => Ok(None),
            Err(TrySendError::Full(seen)) => Ok(Some(seen.observations)),
            Err(TrySendError::Closed(_)) => Err(ReceiverGone),
        }
    }

    /// Hands over an observation whose bytes are held already.
    ///
    /// # Errors
    /// Nobody receives it.
    pub async fn send_held(&self, observation: Observation, held: HeldBytes) -> Result<(), ReceiverGone> {
        let seen = ObservationBatch { observations: vec![observation], _held: held };
        self.tx.send(seen).await.map_err(|_| ReceiverGone)
    }

    /// Whether lines are handed over as soon as they are read.
    pub fn immediate(&self) -> &ImmediateFlush {
        &self.immediate
    }

    /// What the sources cost.
    pub fn effort(&self) -> &Arc<SourceCounters> {
        &self.effort
    }

    /// The room of all sources together.
    pub fn room(&self) -> &Room {
        &self.room
    }
}

fn size_of(observations: &[Observation]) -> usize {
    observations.iter().map(size_of_one).sum()
}

/// Bytes that an observation holds.
pub(super) fn size_of_one(observation: &Observation) -> usize {
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
        let (sender, mut rx) = observation_channel(100, 1000);
        for _ in 0..2 {
            sender.send(lines(400)).await.expect("somebody receives");
        }
        let third = tokio::time::timeout(Duration::from_secs(5), sender.send(lines(400))).await;
        assert!(third.is_err(), "800 of 1000 bytes wait already");
        let taken = rx.recv().await.expect("the first");
        let third = tokio::time::timeout(Duration::from_secs(5), sender.send(lines(400))).await;
        assert!(third.is_err(), "it is being taken in");
        drop(taken);
        sender.send(lines(400)).await.expect("there is room");
        drop(rx);
        assert_eq!(sender.send(lines(1)).await, Err(ReceiverGone));
    }
}
