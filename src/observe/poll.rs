//! Polls a server: its metrics page, its loads.
//!
//! Each request has a timeout shorter than the interval, so that a server that hangs is reported and
//! requests never pile up. Answers are interpreted in the core; here only their status matters.

use std::sync::Arc;
use std::time::Duration;

use reqwest::{RequestBuilder, StatusCode};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Now;
use super::outlet::Outlet;
use super::server::{LOADS_PATHS, first_loads_path};
use crate::http::body::{self, BodyError, Held, Room};
use crate::http::Server;
use crate::http::exchange;
use skewtrap_core::signal::observation::{Observation, Problem, ReportedProblem, SourceId};
use skewtrap_core::signal::sample::{Source, TargetId};

/// When neither endpoint of loads was there, this many turns pass before the next request.
const PAUSE_TURNS: u32 = 60;

/// What is polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// The server's address is that of its metrics page.
    Metrics,
    /// `/v1/loads`, or `/get_load` of older servers.
    Loads,
}

/// One polled endpoint.
#[derive(Clone, Debug)]
pub struct Config {
    /// The server.
    pub target: TargetId,
    /// The source's id.
    pub source: SourceId,
    /// Where to send requests; for metrics the base address is the page's own
    /// (`http://host:30000/metrics`).
    pub server: Server,
    /// What to poll.
    pub page: Page,
    /// The interval.
    pub every: Duration,
}

/// Polls until cancelled, or until nobody receives observations. Returns `true`: it is finished for good.
pub async fn run(config: Config, outlet: Outlet, cancel: CancellationToken, now: Now) -> bool {
    let mut poller = Poller::new(config, outlet.room().clone(), now);
    let mut next = Instant::now() + poller.config.every.mul_f64(fastrand::f64() * 0.5);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return true,
            () = tokio::time::sleep_until(next) => {}
        }
        let every = poller.config.every;
        // A random part, so that many agents do not poll one server at the same moment.
        next = Instant::now() + every.mul_f64(0.95 + fastrand::f64() * 0.1);
        let observations = tokio::select! {
            () = cancel.cancelled() => return true,
            observations = poller.turn() => observations,
        };
        for (observation, held) in observations {
            if outlet.send_held(observation, held).await.is_err() {
                return true;
            }
        }
    }
}

struct Poller {
    config: Config,
    room: Room,
    now: Now,
    reported: ReportedProblem,
    /// Which of [`LOADS_PATHS`] answered last.
    path: usize,
    /// Turns to skip.
    pause: u32,
}

impl Poller {
    fn new(config: Config, room: Room, now: Now) -> Self {
        Self { config, room, now, reported: ReportedProblem::default(), path: 0, pause: 0 }
    }

    /// One request, and what there is to report.
    async fn turn(&mut self) -> Vec<(Observation, Held)> {
        if self.pause > 0 {
            self.pause -= 1;
            return Vec::new();
        }
        let answer = match self.config.page {
            Page::Metrics => {
                let request = self.config.server.get("").header("accept", "text/plain;version=0.0.4");
                self.ask(request, self.config.server.base().into(), NO_METRICS).await
            }
            Page::Loads => self.loads().await,
        };
        let Config { target, source, page, .. } = self.config;
        let at = (self.now)();
        let kind = if page == Page::Metrics { Source::Metrics } else { Source::Loads };
        let (body, problem) = match answer {
            Ok(body) => (Some(body), None),
            Err(problem) => (None, Some(problem)),
        };
        let is_change = self.reported.changes_to(problem.clone());
        // The end of a problem is reported by the core, once it could read the page.
        let problem = problem.filter(|_| is_change);
        let state = |problem| Observation::State { target, source, kind, problem: Some(problem), at };
        let mut observations: Vec<_> = problem.map(state).map(|o| (o, Held::default())).into_iter().collect();
        observations.extend(body.map(|(body, held)| match page {
            Page::Metrics => (Observation::Page { target, source, body, at }, held),
            Page::Loads => (Observation::Loads { target, source, body, at }, held),
        }));
        observations
    }

    async fn loads(&mut self) -> Result<(Vec<u8>, Held), Problem> {
        let base: Arc<str> = self.config.server.base().into();
        let url = |path: &str| -> Arc<str> { format!("{base}{path}").into() };
        let is_missing = |answer: &Result<_, Problem>| matches!(answer, Err(Problem::NotFound { .. }));
        let ask = |path| self.ask(self.config.server.get(path), url(path), NO_LOADS);
        let (path, answer) = first_loads_path(self.path, ask, is_missing).await;
        if is_missing(&answer) {
            let url = url(LOADS_PATHS[self.path]);
            (self.path, self.pause) = (0, PAUSE_TURNS);
            return Err(Problem::NotFound { url, hint: NO_LOADS });
        }
        self.path = path;
        answer
    }

    async fn ask(
        &self,
        request: RequestBuilder,
        url: Arc<str>,
        hint: &'static str,
    ) -> Result<(Vec<u8>, Held), Problem> {
        let timeout = self.config.every.mul_f64(0.9);
        let limit = if self.config.page == Page::Metrics { body::PAGE } else { body::LOADS };
        fetch(request, url, timeout, hint, (limit, &self.room)).await
    }
}

const NO_METRICS: &str =
    "SGLang serves metrics only with --enable-metrics; start it so, or set `metrics: false`";
const NO_LOADS: &str =
    "neither /v1/loads nor /get_load is there (vLLM has none); its metrics and its log are still read";

/// Sends a request and reads its whole body, or returns what is wrong.
pub(super) async fn fetch(
    request: RequestBuilder,
    url: Arc<str>,
    timeout: Duration,
    hint: &'static str,
    (limit, room): (usize, &Room),
) -> Result<(Vec<u8>, Held), Problem> {
    let deadline = Instant::now() + timeout;
    let too_slow = || Problem::TooSlow { url: url.clone(), timeout_s: timeout.as_secs_f64().to_string() };
    let response = exchange::send(request.timeout(timeout)).await.map_err(|error| match error.is_timeout() {
        true => too_slow(),
        false => Problem::NoAnswer { url: url.clone(), why: error.to_string() },
    })?;
    if let Some(problem) = problem_of(response.status(), &url, hint) {
        return Err(problem);
    }
    let rest = deadline.saturating_duration_since(Instant::now());
    body::read_into(response, limit, rest, room).await.map_err(|error| match error {
        BodyError::TooLarge { limit } => Problem::TooLarge { url: url.clone(), limit },
        BodyError::TooSlow { .. } => too_slow(),
        BodyError::Broken { why } => Problem::NoAnswer { url: url.clone(), why },
    })
}

fn problem_of(status: StatusCode, url: &Arc<str>, hint: &'static str) -> Option<Problem> {
    let url = url.clone();
    match status.as_u16() {
        200 => None,
        status @ (401 | 403) => Some(Problem::Unauthorized { url, status }),
        404 => Some(Problem::NotFound { url, hint }),
        status @ 300..=399 => Some(Problem::Redirected { url, status }),
        status => Some(Problem::Status { url, status }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use axum::Router;
    use axum::http::Uri;
    use axum::response::{IntoResponse, Redirect};

    use super::*;
    use crate::http::client;
    use skewtrap_trace::time::Time;

    /// A server that gives its answers one after the other, the last one for ever.
    async fn server(answers: Vec<(u16, &'static str)>) -> (String, Arc<Mutex<Vec<String>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (seen, answers) = (asked.clone(), Arc::new(Mutex::new(answers)));
        let app = Router::new().fallback(move |uri: Uri| {
            seen.lock().expect("unpoisoned").push(uri.to_string());
            let mut answers = answers.lock().expect("unpoisoned");
            let (status, body) = if answers.len() > 1 { answers.remove(0) } else { answers[0] };
            async move {
                match status {
                    302 => Redirect::temporary("http://elsewhere/").into_response(),
                    status => (StatusCode::from_u16(status).expect("a status"), body).into_response(),
                }
            }
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("bound"));
        tokio::spawn(async move { axum::serve(listener, app).await });
        (base, asked)
    }

    fn poller(base: &str, page: Page) -> Poller {
        let server = Server::new(client::client(None).expect("a client"), base, None, None);
        let every = Duration::from_secs(5);
        let config = Config { target: TargetId(0), source: SourceId(0), server, page, every };
        Poller::new(config, Room::new(1 << 20), Arc::new(|| Time::from_epoch_s(7.0)))
    }

    /// What each turn reported, with readable addresses.
    async fn turns(poller: &mut Poller, count: usize) -> Vec<String> {
        let base = poller.config.server.base().to_owned();
        let mut reports = Vec::new();
        for _ in 0..count {
            for (observation, _) in poller.turn().await {
                reports.push(match observation {
                    Observation::State { problem, .. } => {
                        problem.expect("only problems are reported").to_string()
                    }
                    Observation::Page { body, .. } | Observation::Loads { body, .. } => {
                        String::from_utf8_lossy(&body).into_owned()
                    }
                    other => format!("{other:?}"),
                });
            }
        }
        reports.iter().map(|t| t.replace(&base, "SERVER")).collect()
    }

    #[tokio::test]
    async fn each_problem_is_told_once_in_words_that_help() {
        let answers = vec![
            (401, ""),
            (401, ""),
            (404, ""),
            (500, ""),
            (500, ""),
            (302, ""),
            (200, "up 1\n"),
            (200, "up 2\n"),
        ];
        let (base, _) = server(answers).await;
        let reports = turns(&mut poller(&base, Page::Metrics), 8).await;
        insta::assert_snapshot!(reports.join("\n"), @r"
        SERVER answered 401: the server wants its API key; set `api_key` of this target
        SERVER answered 404: SGLang serves metrics only with --enable-metrics; start it so, or set `metrics: false`
        SERVER answered 500; the server's log says why
        SERVER answered 307, a redirect, which is not followed; give the final address
        up 1

        up 2
        ");
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_told_once() {
        let mut nobody = poller("http://127.0.0.1:1", Page::Loads);
        let reports = turns(&mut nobody, 3).await;
        assert_eq!(reports.len(), 1, "{reports:?}");
        assert!(
            reports[0].starts_with("nothing answers at SERVER/v1/loads (Connection refused"),
            "{reports:?}"
        );
    }

    #[tokio::test]
    async fn older_servers_are_asked_for_their_older_endpoint() {
        let (base, asked) = server(vec![(404, ""), (200, "[1]"), (200, "[2]")]).await;
        let mut old = poller(&base, Page::Loads);
        assert_eq!(turns(&mut old, 2).await, ["[1]", "[2]"]);
        assert_eq!(*asked.lock().expect("unpoisoned"), ["/v1/loads", "/get_load", "/get_load"]);
    }

    #[tokio::test]
    async fn a_server_without_loads_is_left_alone_for_a_while() {
        let (base, asked) = server(vec![(404, "")]).await;
        let mut vllm = poller(&base, Page::Loads);
        let reports = turns(&mut vllm, 60).await;
        insta::assert_snapshot!(reports.join("\n"), @"SERVER/v1/loads answered 404: neither /v1/loads nor /get_load is there (vLLM has none); its metrics and its log are still read");
        assert_eq!(asked.lock().expect("unpoisoned").len(), 2);
    }
}
