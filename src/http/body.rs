//! Reads bodies to a limit and a deadline. Every answer is read here: a server that streams for ever, or
//! a byte now and then, takes neither memory nor time.
//!
//! Most limits say how much is worth reading; [`Room`] says how much may wait at once for the loop to take it
//! in, from all of the sources together.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Response;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::client::cause_of;

/// The most bytes of an answer in which a server says what it is.
pub const INFO: usize = 1 << 20;
/// The most bytes of an answer with the loads of all ranks: a thousand of them take one.
pub const LOADS: usize = 4 << 20;
/// The most bytes of a metrics page: twice what a server with a thousand ranks sends.
pub const PAGE: usize = 24 << 20;
/// The most bytes of an answer of which only a sentence is shown.
pub const SENTENCE: usize = 4 << 10;

/// Why a body was not read.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It is longer than it may be.
    #[error("its answer is larger than {} KiB and was not read further", .limit / 1024)]
    TooLarge {
        /// The most bytes.
        limit: usize,
    },
    /// It did not end in time.
    #[error("its answer did not end within {} s", .within.as_secs_f64())]
    TooSlow {
        /// The deadline.
        within: Duration,
    },
    /// The connection broke.
    #[error("its answer broke off: {why}")]
    Broken {
        /// The client's words.
        why: String,
    },
}

/// The whole body, if it is at most `limit` bytes long and ends `within` this time.
///
/// # Errors
/// It is too large, too slow, or broke off.
pub async fn read(response: Response, limit: usize, within: Duration) -> Result<Vec<u8>, BodyError> {
    let mut body = Vec::new();
    read_pieces(response, limit, within, |piece| body.extend_from_slice(piece)).await?;
    Ok(body)
}

/// The same, each piece given to `each` as it arrives.
///
/// # Errors
/// As [`read`].
pub async fn read_pieces(
    mut response: Response,
    limit: usize,
    within: Duration,
    mut each: impl FnMut(&[u8]),
) -> Result<(), BodyError> {
    let too_large = || BodyError::TooLarge { limit };
    let reading = async {
        if response.content_length().is_some_and(|length| length > limit as u64) {
            return Err(too_large());
        }
        let mut left = limit;
        while let Some(piece) = response.chunk().await.map_err(|e| BodyError::Broken { why: cause_of(&e) })? {
            left = left.checked_sub(piece.len()).ok_or_else(too_large)?;
            each(&piece);
        }
        Ok(())
    };
    in_time(within, reading).await
}

/// The beginning of a body as text, for a sentence about it: what comes within `within`, at most
/// [`SENTENCE`] bytes. A body that never ends costs no more than that.
pub async fn beginning(mut response: Response, within: Duration) -> String {
    let mut body = Vec::new();
    let reading = async {
        while let Ok(Some(chunk)) = response.chunk().await {
            let room = SENTENCE - body.len();
            body.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if body.len() == SENTENCE {
                break;
            }
        }
    };
    // What came until then is shown.
    let _ = timeout(within, reading).await;
    String::from_utf8_lossy(&body).into_owned()
}

/// The JSON of a body, `None` where it is none.
///
/// # Errors
/// As [`read`].
pub async fn json(response: Response, limit: usize, within: Duration) -> Result<Option<Value>, BodyError> {
    Ok(serde_json::from_slice(&read(response, limit, within).await?).ok())
}

async fn in_time<T>(
    within: Duration,
    reading: impl Future<Output = Result<T, BodyError>>,
) -> Result<T, BodyError> {
    timeout(within, reading).await.unwrap_or(Err(BodyError::TooSlow { within }))
}

/// Bytes that may be held at once.
#[derive(Clone, Debug)]
pub struct Room {
    bytes: Arc<Semaphore>,
    whole: u32,
}

impl Room {
    /// Room for `bytes`.
    pub fn new(bytes: usize) -> Self {
        let whole = u32::try_from(bytes.min(Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
        Self { bytes: Arc::new(Semaphore::new(whole as usize)), whole }
    }

    /// Waits until there is room for `bytes`; all of it, for what is larger than the whole.
    pub async fn hold(&self, bytes: usize) -> HeldBytes {
        let count = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.whole);
        HeldBytes(self.bytes.clone().acquire_many_owned(count).await.ok())
    }

    /// Room for `bytes`, if there is any now.
    pub fn try_hold(&self, bytes: usize) -> Option<HeldBytes> {
        let count = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.whole);
        self.bytes.clone().try_acquire_many_owned(count).ok().map(|held| HeldBytes(Some(held)))
    }

    /// Bytes that are free.
    pub fn free(&self) -> usize {
        self.bytes.available_permits()
    }
}

/// Bytes that are held; dropped, they are free again.
#[derive(Debug, Default)]
pub struct HeldBytes(Option<OwnedSemaphorePermit>);

impl HeldBytes {
    /// Holds these as well.
    pub fn add(&mut self, more: Self) {
        match (&mut self.0, more.0) {
            (Some(held), Some(more)) => held.merge(more),
            (held @ None, more) => *held = more,
            (Some(_), None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use super::*;
    use crate::http::client;

    /// The answer of a server that sends `piece` again and again for ever, `pause` apart.
    async fn endless(piece: &'static [u8], pause: Duration) -> Response {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("an address");
        let address = listener.local_addr().expect("its address");
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
            while stream.write_all(piece).await.is_ok() {
                tokio::time::sleep(pause).await;
            }
        });
        let client = client::client(None).expect("a client");
        client.get(format!("http://{address}/")).send().await.expect("an answer")
    }

    #[tokio::test]
    async fn a_server_that_streams_for_ever_is_read_to_the_limit() {
        let answer = endless(&[b'x'; 64 << 10], Duration::ZERO).await;
        let read = read(answer, 1 << 20, Duration::from_secs(60)).await;
        assert!(matches!(read, Err(BodyError::TooLarge { limit }) if limit == 1 << 20), "{read:?}");
        let answer = endless(&[b'y'; 64 << 10], Duration::ZERO).await;
        assert_eq!(beginning(answer, Duration::from_secs(60)).await, "y".repeat(SENTENCE));
    }

    #[tokio::test]
    async fn a_server_that_sends_a_byte_now_and_then_is_read_to_the_deadline() {
        let within = Duration::from_millis(200);
        let answer = endless(b"z", Duration::from_millis(20)).await;
        let asked = Instant::now();
        let read = read(answer, 1 << 20, within).await;
        assert!(matches!(read, Err(BodyError::TooSlow { .. })), "{read:?}");
        assert!(asked.elapsed() < within * 10, "{:?}", asked.elapsed());
        let answer = endless(b"z", Duration::from_millis(20)).await;
        assert!(beginning(answer, within).await.starts_with('z'));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_held_is_free_again_when_it_is_dropped() {
        let room = Room::new(100);
        let mut held = room.hold(40).await;
        held.add(room.hold(40).await);
        assert_eq!(room.free(), 20);
        assert!(timeout(Duration::from_secs(1), room.hold(30)).await.is_err(), "there is no room");
        drop(held);
        drop(room.hold(1_000).await);
        assert_eq!(room.free(), 100);
    }
}
