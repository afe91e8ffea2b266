//! Puts a double behind a real port, with a clock that may run faster than real time, a real log file and
//! real trace files. One task owns the double; the HTTP handlers send it requests and wait.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Uri, header};
use axum::response::Response as HttpResponse;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::demo::ServerKind;
use crate::demo::exchange::{CallId, Effect, Outcome, Request, Response};
use skewtrap_trace::time::Time;

/// How a double is put behind a port.
#[derive(Clone, Debug)]
pub struct Stage {
    /// The time of the double at its start.
    pub begin: Time,
    /// Seconds of the double's time per real second.
    pub speed: f64,
    /// The log file.
    pub log_path: PathBuf,
    /// The port to listen on; 0 for any.
    pub port: u16,
    /// The double's time at which `RunningDouble::finished` is cancelled.
    pub end: Option<Time>,
}

/// The clock of a double: real time, shifted and scaled.
#[derive(Clone, Copy, Debug)]
pub struct StageClock {
    began: Instant,
    begin: Time,
    speed: f64,
}

impl StageClock {
    /// The double's current time.
    pub fn now(&self) -> Time {
        self.begin + self.began.elapsed().mul_f64(self.speed)
    }

    /// The real time to wait until the double's time is `at`.
    pub fn until(&self, at: Time) -> Duration {
        let due = at.since(self.begin).div_f64(self.speed);
        due.saturating_sub(self.began.elapsed())
    }

    /// Seconds of the double's time per real second.
    pub const fn speed(&self) -> f64 {
        self.speed
    }
}

/// A listening double. Dropping it stops the double.
#[derive(Debug)]
pub struct RunningDouble {
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    /// The log it writes.
    pub log_path: PathBuf,
    pub clock: StageClock,
    /// Cancelled at `Stage::end`; the double continues to serve.
    pub finished: CancellationToken,
    journal: Arc<Mutex<Vec<JournalEntry>>>,
    commands: mpsc::UnboundedSender<Command>,
    stop: CancellationToken,
}

/// One received request, for assertions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalEntry {
    /// The double's time when it arrived.
    pub at: Time,
    /// `POST`.
    pub method: String,
    /// Path without query.
    pub path: String,
    /// The body as text.
    pub body: String,
}

type Change = Box<dyn FnOnce(&mut ServerKind, Time) -> Vec<Effect> + Send>;

enum Command {
    Request(Request, oneshot::Sender<Outcome>),
    Change(Change),
}

impl RunningDouble {
    /// Every request so far, in the order of arrival.
    pub fn requests(&self) -> Vec<JournalEntry> {
        self.journal.lock().map(|j| j.clone()).unwrap_or_default()
    }

    /// Kills the process: connections break and new ones are refused.
    pub fn kill(&self) {
        self.change(ServerKind::kill);
    }

    /// Starts the process again on the same port, without any of its former state.
    pub fn restart(&self) {
        self.change(ServerKind::restart);
    }

    /// Changes the double (its load, its faults) while it runs.
    pub fn change(&self, change: impl FnOnce(&mut ServerKind, Time) -> Vec<Effect> + Send + 'static) {
        // The task ends only with the double: then there is nothing left to change.
        let _ = self.commands.send(Command::Change(Box::new(change)));
    }
}

impl Drop for RunningDouble {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Starts `engine` on a local port. Needs a tokio runtime with its I/O and time drivers.
///
/// # Errors
/// The port is not available, or the log cannot be written.
pub async fn start(engine: impl Into<ServerKind>, stage: Stage) -> io::Result<RunningDouble> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, stage.port)).await?;
    let address = listener.local_addr()?;
    if let Some(dir) = stage.log_path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let log = OpenOptions::new().create(true).append(true).open(&stage.log_path)?;
    let clock = StageClock { began: Instant::now(), begin: stage.begin, speed: stage.speed };
    let (commands, inbox) = mpsc::unbounded_channel();
    let (finished, stop) = (CancellationToken::new(), CancellationToken::new());
    let journal = Arc::new(Mutex::new(Vec::new()));
    let mut task = DoubleTask {
        engine: engine.into(),
        clock,
        end: stage.end,
        finished: finished.clone(),
        log,
        waiting: HashMap::new(),
        journal: journal.clone(),
        port: Port { address, open: None, commands: commands.clone() },
    };
    task.port.open_with(listener);
    let stopped = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = task.run(inbox) => {}
            () = stopped.cancelled() => {}
        }
        task.port.close();
    });
    let url = format!("http://{address}");
    Ok(RunningDouble { url, log_path: stage.log_path, clock, finished, journal, commands, stop })
}

struct DoubleTask {
    engine: ServerKind,
    clock: StageClock,
    end: Option<Time>,
    finished: CancellationToken,
    log: File,
    waiting: HashMap<CallId, oneshot::Sender<Outcome>>,
    journal: Arc<Mutex<Vec<JournalEntry>>>,
    port: Port,
}

impl DoubleTask {
    async fn run(&mut self, mut inbox: mpsc::UnboundedReceiver<Command>) {
        loop {
            let now = self.clock.now();
            if self.end.is_some_and(|end| now >= end) {
                self.end = None;
                self.finished.cancel();
            }
            let effects = self.engine.advance(now);
            self.carry_out(effects).await;
            let next = self.engine.next_event().into_iter().chain(self.end).min();
            let pause = next.map_or(Duration::from_secs(3600), |at| self.clock.until(at));
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(command) => self.handle(command).await,
                    None => return,
                },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn handle(&mut self, command: Command) {
        let now = self.clock.now();
        let effects = match command {
            Command::Change(change) => change(&mut self.engine, now),
            Command::Request(request, answer) => {
                let body = String::from_utf8_lossy(&request.body).into_owned();
                let entry = JournalEntry {
                    at: now,
                    method: request.method.clone(),
                    path: request.path.clone(),
                    body,
                };
                if let Ok(mut journal) = self.journal.lock() {
                    journal.push(entry);
                }
                let (id, effects) = self.engine.request(now, &request);
                self.waiting.insert(id, answer);
                effects
            }
        };
        self.carry_out(effects).await;
    }

    async fn carry_out(&mut self, effects: Vec<Effect>) {
        let mut log = String::new();
        let mut failed = None;
        for effect in effects {
            match effect {
                Effect::Log { line, .. } => log = log + &line + "\n",
                Effect::File { path, content, rank } => {
                    if let Err(e) = write(Path::new(&path), &content) {
                        failed = failed.or(Some((rank, format!("{e}: '{path}'"))));
                    }
                }
                Effect::Done { call, outcome } => {
                    // The real server writes its log line before the answer.
                    self.print(&mut log);
                    if let Some(answer) = self.waiting.remove(&call) {
                        // The client may have gone away.
                        let _ = answer.send(outcome);
                    }
                }
                Effect::Down => {
                    self.waiting.clear();
                    self.port.close();
                }
                Effect::Up => self.port.open().await,
            }
        }
        self.print(&mut log);
        if let Some((rank, error)) = failed {
            let effects = self.engine.disk_error(self.clock.now(), rank, &error);
            Box::pin(self.carry_out(effects)).await;
        }
    }

    fn print(&mut self, log: &mut String) {
        // The log cannot be written only if the test removed its folder: nothing to report.
        let _ = self.log.write_all(log.as_bytes());
        log.clear();
    }
}

fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::write(path, content)
}

/// The listening socket, closed when the process dies and opened by a restart.
struct Port {
    address: SocketAddr,
    open: Option<CancellationToken>,
    commands: mpsc::UnboundedSender<Command>,
}

impl Port {
    async fn open(&mut self) {
        // Another task may not have closed the old socket yet.
        for _ in 0..100 {
            if let Ok(listener) = TcpListener::bind(self.address).await {
                return self.open_with(listener);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn open_with(&mut self, listener: TcpListener) {
        let closed = CancellationToken::new();
        let (commands, gone) = (self.commands.clone(), closed.clone());
        let app = Router::new().fallback(move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| {
            forward(commands.clone(), gone.clone(), request_of(&method, &uri, &headers, &body))
        });
        let serving = closed.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = std::future::IntoFuture::into_future(axum::serve(listener, app)) => {}
                () = serving.cancelled() => {}
            }
        });
        self.open = Some(closed);
    }

    fn close(&mut self) {
        if let Some(closed) = self.open.take() {
            closed.cancel();
        }
    }
}

fn request_of(method: &Method, uri: &Uri, headers: &HeaderMap, body: &Bytes) -> Request {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()?.strip_prefix("Bearer "));
    Request {
        method: method.to_string(),
        path: uri.path().to_owned(),
        query: uri.query().unwrap_or_default().to_owned(),
        bearer: bearer.map(str::to_owned),
        body: body.to_vec(),
    }
}

async fn forward(
    commands: mpsc::UnboundedSender<Command>,
    gone: CancellationToken,
    request: Request,
) -> HttpResponse {
    let (answer, waits) = oneshot::channel();
    let sent = !gone.is_cancelled() && commands.send(Command::Request(request, answer)).is_ok();
    match waits.await {
        Ok(Outcome::Answer(response)) if sent => http_of(response),
        // Unwinding ends the connection's task without an answer and without a panic message; the client
        // sees a broken connection.
        _ => std::panic::resume_unwind(Box::new("the double breaks the connection")),
    }
}

fn http_of(response: Response) -> HttpResponse {
    let mut http = HttpResponse::new(Body::from(response.body));
    if let Ok(status) = axum::http::StatusCode::from_u16(response.status) {
        *http.status_mut() = status;
    }
    if let Some(kind) = response.content_type {
        http.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    }
    http.headers_mut().insert(header::SERVER, header::HeaderValue::from_static("uvicorn"));
    http
}
