//! Accepts a limited number of connections and closes slow ones: a client that opens connections and
//! sends nothing, or a byte now and then, must not block the others. When all places are taken, whoever
//! comes gets that of the oldest connection: a probe of `/healthz` never waits for half-open requests.

use std::collections::VecDeque;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use tokio::io::{self, AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// How many connections are open at once.
const MAX_CONNECTIONS: usize = 128;
/// A request must be complete this long after the connection was opened, or after the last response.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests that are being answered may still take when the agent stops.
const GRACE: Duration = Duration::from_secs(2);

/// Serves until cancelled.
pub(super) async fn serve(listener: TcpListener, router: Router, cancel: CancellationToken) {
    let listener = Bounded { listener, open: VecDeque::new() };
    let shutdown = cancel.clone();
    let serving = axum::serve(listener, router)
        .with_graceful_shutdown(async move { shutdown.cancelled().await })
        .into_future();
    let deadline = async {
        cancel.cancelled().await;
        sleep(GRACE).await;
    };
    tokio::select! {
        _ = pin!(serving) => {}
        () = deadline => {}
    }
}

/// At most [`MAX_CONNECTIONS`] at once; the next one takes the place of the oldest.
struct Bounded {
    listener: TcpListener,
    /// Those that may still be open, the oldest first.
    open: VecDeque<Weak<Place>>,
}

/// A connection's place; cancelled when another gets it.
struct Place(CancellationToken);

impl Bounded {
    fn place(&mut self) -> Arc<Place> {
        self.open.retain(|place| place.strong_count() > 0);
        if self.open.len() >= MAX_CONNECTIONS
            && let Some(oldest) = self.open.pop_front().and_then(|place| place.upgrade())
        {
            oldest.0.cancel();
        }
        let place = Arc::new(Place(CancellationToken::new()));
        self.open.push_back(Arc::downgrade(&place));
        place
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (stream, address) = Listener::accept(&mut self.listener).await;
        let due = Box::pin(sleep(REQUEST_TIMEOUT));
        let place = self.place();
        let lost = Box::pin(place.0.clone().cancelled_owned());
        (Connection { stream, due, lost, _place: place }, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        TcpListener::local_addr(&self.listener)
    }
}

/// A connection that is closed when nothing was sent on it for [`REQUEST_TIMEOUT`]. What arrives does not
/// count: otherwise a byte every few seconds would keep it open for ever.
struct Connection {
    stream: TcpStream,
    due: Pin<Box<Sleep>>,
    /// Ready when another connection got its place.
    lost: Pin<Box<WaitForCancellationFutureOwned>>,
    _place: Arc<Place>,
}

impl Connection {
    fn is_overdue(&mut self, cx: &mut Context<'_>) -> bool {
        self.lost.as_mut().poll(cx).is_ready() || self.due.as_mut().poll(cx).is_ready()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_overdue(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        if result.is_ready() {
            self.due.as_mut().reset(Instant::now() + REQUEST_TIMEOUT);
        } else if self.is_overdue(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// An address that answers every request with 404.
    async fn listening() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("an address");
        let address = listener.local_addr().expect("its address");
        tokio::spawn(serve(listener, Router::new(), CancellationToken::new()));
        address
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_comes_byte_by_byte_is_cut_off() {
        let mut stream = TcpStream::connect(listening().await).await.expect("connected");
        stream.write_all(b"GET /").await.expect("sent");
        let began = Instant::now();
        let mut answer = [0; 16];
        while began.elapsed() < REQUEST_TIMEOUT * 6 {
            tokio::select! {
                _ = stream.read(&mut answer) => break,
                () = sleep(Duration::from_secs(4)) => drop(stream.write_all(b"a").await),
            }
        }
        assert!(began.elapsed() < REQUEST_TIMEOUT * 2, "it held its place for {:?}", began.elapsed());
    }

    #[tokio::test]
    async fn half_open_requests_in_any_number_keep_nobody_waiting() {
        let address = listening().await;
        let began = std::time::Instant::now();
        let mut half_open = Vec::new();
        for _ in 0..3 * MAX_CONNECTIONS {
            let mut stream = TcpStream::connect(address).await.expect("connected");
            stream.write_all(b"GET /healthz HTTP/1.1\r\n").await.expect("sent");
            half_open.push(stream);
        }
        let mut probe = TcpStream::connect(address).await.expect("connected");
        probe.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("sent");
        let mut answer = [0; 1024];
        let count = probe.read(&mut answer).await.expect("an answer");
        assert!(answer[..count].starts_with(b"HTTP/1.1 404"), "{:?}", &answer[..count]);
        assert!(began.elapsed() < REQUEST_TIMEOUT, "it waited {:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_used_stays_open() {
        let mut stream = TcpStream::connect(listening().await).await.expect("connected");
        for _ in 0..4 {
            sleep(Duration::from_secs(8)).await;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("sent");
            let mut answer = [0; 1024];
            let count = stream.read(&mut answer).await.expect("an answer");
            assert!(answer[..count].starts_with(b"HTTP/1.1 404"), "{:?}", &answer[..count]);
        }
    }
}
