//! One connection to a server that is kept from request to request, for what is asked every second.
//!
//! The general client keeps, for each of its connections, a buffer as large as the largest answer of late,
//! and a task. With hundreds of servers that is most of what the agent would hold; here a connection is read
//! by whoever asks, through a buffer of [`BUFFER`] bytes. Proxies and TLS stay the general client's.

use std::error::Error;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use hyper::body::{Body as _, Bytes, Frame, Incoming};
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper::header::{ACCEPT, AUTHORIZATION, HOST, HeaderValue, USER_AGENT};
use hyper::http::uri::{Authority, Uri};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::body::BodyError;
use super::client::{USER_AGENT as AGENT, goes_through_a_proxy, root_cause};
use super::{Secret, Server};

/// Bytes of an answer that are taken from the system at once.
const BUFFER: usize = 8 << 10;

/// A server and the connection to it.
#[derive(Debug)]
pub struct KeptConnection {
    authority: Authority,
    /// What stands before every path that is asked for.
    prefix: String,
    key: Option<Secret>,
    open: Option<Open>,
}

/// A connection, which makes progress only while it is polled.
#[derive(Debug)]
struct Open {
    sender: SendRequest<String>,
    connection: Pin<Box<Connection<TokioIo<TcpStream>, String>>>,
    has_ended: bool,
}

/// Why there is no answer, or no whole one.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// No answer came.
    #[error("{0}")]
    NoAnswer(String),
    /// Its body was not read.
    #[error(transparent)]
    Body(#[from] BodyError),
}

impl KeptConnection {
    /// For a server that is reached directly and without TLS; `None` for any other.
    pub fn of(server: &Server) -> Option<Self> {
        #[cfg(test)]
        if super::exchange::stand_in::current().is_some() {
            return None;
        }
        let uri: Uri = server.base.parse().ok()?;
        let authority = uri.authority().filter(|a| !a.as_str().contains('@'))?;
        let is_plain = uri.scheme_str() == Some("http") && !goes_through_a_proxy();
        is_plain.then(|| Self {
            authority: authority.clone(),
            prefix: uri.path_and_query().map_or("", |p| p.as_str()).trim_end_matches('/').to_owned(),
            key: server.api_key.clone(),
            open: None,
        })
    }

    /// Asks for `path`, and gives the body of a good answer to `each`, piece by piece as it arrives.
    ///
    /// # Errors
    /// No answer within this time, or one whose body is too large, too slow or breaks off.
    pub async fn get(
        &mut self,
        (path, accept): (&str, &'static str),
        (limit, within): (usize, Duration),
        mut each: impl FnMut(&[u8]),
    ) -> Result<StatusCode, Failed> {
        let asking = async {
            let request = self.request(path, accept)?;
            let kept = self.open.take().filter(|open| !open.has_ended && !open.sender.is_closed());
            let answer = match kept {
                // A server closes a connection when it likes: then the request was not taken.
                Some(open) => open.ask(request.clone()).await.ok(),
                None => None,
            };
            let (mut open, answer) = match answer {
                Some(answer) => answer,
                None => self.connect().await?.ask(request).await?,
            };
            let status = answer.status();
            if status == StatusCode::OK {
                open.read(answer.into_body(), limit, &mut each).await?;
                self.open = Some(open);
            }
            Ok(status)
        };
        timeout(within, asking).await.unwrap_or(Err(Failed::Body(BodyError::TooSlow { within })))
    }

    fn request(&self, path: &str, accept: &'static str) -> Result<Request<String>, Failed> {
        let unusable = |e: &(dyn Error + 'static)| Failed::NoAnswer(root_cause(e));
        let path = match [&self.prefix, path].concat() {
            root if root.is_empty() => "/".to_owned(),
            path => path,
        };
        let mut request = Request::get(path)
            .header(HOST, self.authority.as_str())
            .header(ACCEPT, accept)
            .header(USER_AGENT, AGENT)
            .body(String::new())
            .map_err(|e| unusable(&e))?;
        if let Some(key) = &self.key {
            let mut bearer =
                HeaderValue::try_from(format!("Bearer {}", key.reveal())).map_err(|e| unusable(&e))?;
            bearer.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, bearer);
        }
        Ok(request)
    }

    async fn connect(&self) -> Result<Open, Failed> {
        let host = self.authority.host().trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((host, self.authority.port_u16().unwrap_or(80))).await;
        let stream = stream.map_err(|e| Failed::NoAnswer(root_cause(&e)))?;
        // Small requests must not wait for more.
        stream.set_nodelay(true).map_err(|e| Failed::NoAnswer(root_cause(&e)))?;
        let made = Builder::new().max_buf_size(BUFFER).handshake(TokioIo::new(stream)).await;
        let (sender, connection) = made.map_err(|e| Failed::NoAnswer(root_cause(&e)))?;
        Ok(Open { sender, connection: Box::pin(connection), has_ended: false })
    }
}

impl Open {
    async fn ask(mut self, request: Request<String>) -> Result<(Self, Response<Incoming>), Failed> {
        // A connection takes a request only once it has shown that it wants one.
        let ready = driven(&mut self.connection, &mut self.has_ended, self.sender.ready()).await;
        ready.and_then(OkOrCause::ok_or_cause).map_err(Failed::NoAnswer)?;
        let sent = self.sender.send_request(request);
        let answer = driven(&mut self.connection, &mut self.has_ended, sent).await;
        let answer = answer.and_then(OkOrCause::ok_or_cause).map_err(Failed::NoAnswer)?;
        Ok((self, answer))
    }

    async fn read(
        &mut self,
        mut body: Incoming,
        limit: usize,
        each: &mut impl FnMut(&[u8]),
    ) -> Result<(), Failed> {
        let too_large = || Failed::Body(BodyError::TooLarge { limit });
        if body.size_hint().lower() > limit as u64 {
            return Err(too_large());
        }
        let mut left = limit;
        loop {
            let frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
            let frame = driven(&mut self.connection, &mut self.has_ended, frame).await;
            let broken = |why| Failed::Body(BodyError::Broken { why });
            let Some(frame) = frame.map_err(broken)? else { return Ok(()) };
            let frame: Frame<Bytes> = frame.ok_or_cause().map_err(broken)?;
            let Some(piece) = frame.data_ref() else { continue };
            left = left.checked_sub(piece.len()).ok_or_else(too_large)?;
            each(piece);
        }
    }
}

/// Waits for something that the connection brings, and drives the connection meanwhile.
async fn driven<T>(
    connection: &mut Pin<Box<Connection<TokioIo<TcpStream>, String>>>,
    has_ended: &mut bool,
    wanted: impl Future<Output = T>,
) -> Result<T, String> {
    let mut wanted = pin!(wanted);
    poll_fn(|cx| {
        let mut end = None;
        if !*has_ended && let Poll::Ready(ended) = connection.as_mut().poll(cx) {
            *has_ended = true;
            end = Some(ended);
        }
        match (wanted.as_mut().poll(cx), end) {
            (Poll::Ready(found), _) => Poll::Ready(Ok(found)),
            (Poll::Pending, Some(Err(error))) => Poll::Ready(Err(root_cause(&error))),
            (Poll::Pending, _) if *has_ended => Poll::Ready(Err("the connection was closed".into())),
            (Poll::Pending, _) => Poll::Pending,
        }
    })
    .await
}

/// An error as the words of its cause.
trait OkOrCause<T> {
    fn ok_or_cause(self) -> Result<T, String>;
}

impl<T> OkOrCause<T> for Result<T, hyper::Error> {
    fn ok_or_cause(self) -> Result<T, String> {
        self.map_err(|error| root_cause(&error))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::http::client;

    const SOON: Duration = Duration::from_secs(20);

    /// A server that answers each request on a connection with `answer`, `times` on each connection, and
    /// how many connections it had.
    async fn server(answer: &'static [u8], times: usize) -> (KeptConnection, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("an address");
        let base = format!("http://{}", listener.local_addr().expect("its address"));
        let connections = Arc::new(AtomicUsize::new(0));
        let seen = connections.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                seen.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    for _ in 0..times {
                        let _ = stream.read(&mut [0; 4096]).await;
                        let _ = stream.write_all(answer).await;
                    }
                });
            }
        });
        let server =
            Server::new(client::client(None).expect("a client"), &base, Some(Secret::new("k")), None);
        (KeptConnection::of(&server).expect("plain http"), connections)
    }

    async fn ask(kept: &mut KeptConnection, limit: usize) -> Result<(StatusCode, Vec<u8>), Failed> {
        let mut body = Vec::new();
        let asked = kept.get(("/metrics", "*/*"), (limit, SOON), |piece| body.extend_from_slice(piece)).await;
        asked.map(|status| (status, body))
    }

    #[tokio::test]
    async fn one_connection_serves_every_request_and_one_that_was_closed_is_replaced() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nup 1\n";
        let (mut kept, connections) = server(answer, 3).await;
        for asked in 1..=7_usize {
            let (status, body) = ask(&mut kept, 100).await.expect("an answer");
            assert_eq!((status, body), (StatusCode::OK, b"up 1\n".to_vec()));
            assert_eq!(connections.load(Ordering::SeqCst), asked.div_ceil(3));
        }
    }

    #[tokio::test]
    async fn an_answer_in_chunks_and_one_that_ends_with_its_connection_are_read() {
        let chunks =
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nup \r\n2\r\n1\n\r\n0\r\n\r\n";
        let (mut kept, connections) = server(chunks, 2).await;
        for _ in 0..2 {
            assert_eq!(ask(&mut kept, 100).await.expect("an answer").1, b"up 1\n");
        }
        assert_eq!(connections.load(Ordering::SeqCst), 1);
        let (mut kept, _) = server(b"HTTP/1.0 200 OK\r\n\r\nup 2\n", 1).await;
        for _ in 0..2 {
            assert_eq!(ask(&mut kept, 100).await.expect("an answer").1, b"up 2\n");
        }
    }

    #[tokio::test]
    async fn what_is_no_good_answer_is_said() {
        let (mut kept, _) = server(b"HTTP/1.1 503 Busy\r\ncontent-length: 3\r\n\r\nno\n", 1).await;
        assert_eq!(ask(&mut kept, 100).await.expect("an answer"), (StatusCode::SERVICE_UNAVAILABLE, vec![]));
        let (mut kept, _) = server(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n", 1).await;
        assert!(matches!(ask(&mut kept, 100).await, Err(Failed::Body(BodyError::TooLarge { limit: 100 }))));
        let (mut kept, _) = server(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nup", 1).await;
        assert!(matches!(ask(&mut kept, 100).await, Err(Failed::Body(BodyError::Broken { .. }))));
        let server = Server::new(client::client(None).expect("a client"), "http://127.0.0.1:1", None, None);
        let refused = ask(&mut KeptConnection::of(&server).expect("plain http"), 100)
            .await
            .expect_err("nobody listens");
        assert!(refused.to_string().starts_with("Connection refused"), "{refused}");
    }

    #[tokio::test]
    async fn the_path_of_the_address_stands_before_the_one_that_is_asked_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("an address");
        let address = listener.local_addr().expect("its address");
        let asked = tokio::spawn(async move {
            let mut lines = Vec::new();
            for _ in 0..3 {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut request = vec![0; 4096];
                let read = stream.read(&mut request).await.expect("a request");
                let line = request[..read].split(|b| *b == b'\r').next().unwrap_or_default();
                lines.push(String::from_utf8_lossy(line).into_owned());
                let _ = stream.write_all(b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n").await;
            }
            lines
        });
        for (base, path) in [("/metrics", ""), ("", ""), ("/at/", "/v1/loads")] {
            let base = format!("http://{address}{base}");
            let server = Server::new(client::client(None).expect("a client"), &base, None, None);
            let mut kept = KeptConnection::of(&server).expect("plain http");
            let got = kept.get((path, "*/*"), (100, SOON), |_| ()).await;
            assert_eq!(got.expect("an answer"), StatusCode::NOT_FOUND);
        }
        let wanted = ["GET /metrics HTTP/1.1", "GET / HTTP/1.1", "GET /at/v1/loads HTTP/1.1"];
        assert_eq!(asked.await.expect("it ends"), wanted);
    }

    #[test]
    fn tls_and_credentials_in_an_address_are_left_to_the_general_client() {
        let client = client::client(None).expect("a client");
        for base in ["https://a:1", "http://user:word@a:1", "a", ""] {
            assert!(KeptConnection::of(&Server::new(client.clone(), base, None, None)).is_none(), "{base}");
        }
    }
}
