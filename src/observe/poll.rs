//! Polls a server: its metrics page, its loads.
//!
//! Each request has a timeout shorter than the interval, so that a server that hangs is reported and
//! requests never pile up. Answers are interpreted in the core; here only their status matters. A metrics
//! page is given to the core's reader piece by piece, so that no page is ever held.

use std::sync::Arc;
use std::time::Duration;

use reqwest::{RequestBuilder, StatusCode};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Now;
use super::effort::{SourceCounters, Stage, thread_cpu};
use super::sender::ObservationSender;
use super::server::LOADS_PATHS;
use crate::http::body::{self, BodyError, HeldBytes, Room};
use crate::http::kept::{Failed, KeptConnection};
use crate::http::{Server, exchange};
use skewtrap_core::signal::metrics::ReadPage;
use skewtrap_core::signal::observation::{Observation, Problem, ReportedProblem, SourceId};
use skewtrap_core::signal::sample::{Source, TargetId};

/// When neither endpoint of loads was there, this many turns pass before the next request.
const PAUSE_TURNS: u32 = 60;

/// What is polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// The server's address is that of its metrics page.
    Metrics,
    /// The same, read as a whole: the user's signals are read from it too.
    Whole,
    /// `/v1/loads`, or `/get_load` of older servers.
    Loads,
    /// The iteration statistics of TensorRT-LLM, in the place of loads.
    Iterations,
}

/// One polled endpoint.
#[derive(Clone, Debug)]
pub struct Config {
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
    /// Which part of the interval passes before the first request: those of many servers are spread over it.
    pub phase: f64,
}

/// Polls until cancelled, or until nobody receives observations. Returns `true`: it is finished for good.
pub async fn run(config: Config, sender: ObservationSender, cancel: CancellationToken, now: Now) -> bool {
    let every = config.every;
    let mut next = Instant::now() + every.mul_f64(config.phase);
    let effort = sender.effort().clone();
    let mut poller = Poller::new(config, sender.room().clone(), effort.clone(), now);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return true,
            () = tokio::time::sleep_until(next) => {}
        }
        let began = Instant::now();
        effort.begins(began - next, every);
        let observations = tokio::select! {
            () = cancel.cancelled() => return true,
            observations = poller.turn() => observations,
        };
        for (observation, held) in observations.into_iter().flatten() {
            if sender.send_held(observation, held).await.is_err() {
                return true;
            }
        }
        let missed;
        (next, missed) = turn_after(next, every, Instant::now());
        effort.missed(missed);
    }
}

/// The next turn after one that was `due`, and how many are left out because they have passed: turns keep
/// their phase.
fn turn_after(due: Instant, every: Duration, now: Instant) -> (Instant, u32) {
    let next = due + every;
    let passed = now.saturating_duration_since(next).div_duration_f64(every).ceil() as u32;
    (next + every * passed, passed)
}

struct Poller {
    config: Config,
    /// The connection of its own, where the server is reached by one.
    kept: Option<KeptConnection>,
    /// The page that was handed over last: once it was taken in, its memory takes the next one.
    page: Arc<ReadPage>,
    room: Room,
    effort: Arc<SourceCounters>,
    now: Now,
    reported: ReportedProblem,
    /// Which of [`LOADS_PATHS`] answered last.
    path: usize,
    /// Turns to skip.
    pause: u32,
    /// It is asked no more: to ask takes away what others want to read.
    is_left_alone: bool,
}

/// What a turn reports: a problem that changed, and what was read.
type Reports = [Option<(Observation, HeldBytes)>; 2];

impl Poller {
    fn new(config: Config, room: Room, effort: Arc<SourceCounters>, now: Now) -> Self {
        Self {
            kept: KeptConnection::of(&config.server),
            page: Arc::new(ReadPage::default()),
            config,
            room,
            effort,
            now,
            reported: ReportedProblem::default(),
            path: 0,
            pause: 0,
            is_left_alone: false,
        }
    }

    /// One request, and what there is to report.
    async fn turn(&mut self) -> Reports {
        if self.is_left_alone {
            return [None, None];
        }
        if self.pause > 0 {
            self.pause -= 1;
            return [None, None];
        }
        let answer = match self.config.page {
            Page::Metrics => self.metrics().await,
            Page::Whole => match self.whole("", ("text/plain;version=0.0.4", body::PAGE), NO_METRICS).await {
                Ok(Answer::Whole(body, _)) if first_of(&body) == Some(b'[') => Err(self.leave_alone()),
                answer => answer,
            },
            Page::Loads => self.loads().await,
            Page::Iterations => {
                self.whole("/metrics", ("application/json", body::LOADS), NO_ITERATIONS).await
            }
        };
        let Config { target, source, page, .. } = self.config;
        let at = (self.now)();
        let is_loads = matches!(page, Page::Loads | Page::Iterations);
        let kind = if is_loads { Source::Loads } else { Source::Metrics };
        let problem = answer.as_ref().err().cloned();
        let is_change = self.reported.changes_to(problem.clone());
        // The end of a problem is reported by the core, once it could read the page.
        let problem = problem.filter(|_| is_change).map(|problem| {
            (Observation::State { target, source, kind, problem: Some(problem), at }, HeldBytes::default())
        });
        // Nothing ran since the last turn: that is no news, and nothing wrong.
        let is_news = |answer: &Answer| !matches!(answer, Answer::Whole(body, _) if page == Page::Iterations && body.trim_ascii() == b"[]");
        let read = answer.ok().filter(is_news).map(|answer| match answer {
            Answer::Page => {
                (Observation::ReadPage { target, source, page: self.page.clone(), at }, HeldBytes::default())
            }
            Answer::Whole(body, held) if is_loads => (Observation::Loads { target, source, body, at }, held),
            Answer::Whole(body, held) => (Observation::Page { target, source, body, at }, held),
        });
        [problem, read]
    }

    /// Asks for the metrics page, which is read as it arrives.
    async fn metrics(&mut self) -> Result<Answer, Problem> {
        let mut page = std::mem::take(&mut self.page);
        if Arc::get_mut(&mut page).is_none() {
            page = Arc::default();
        }
        let Some(reading) = Arc::get_mut(&mut page) else { return Ok(Answer::Page) };
        reading.metrics.begin();
        let mut took = Duration::ZERO;
        let mut first = None;
        let metrics = &mut reading.metrics;
        let read = self
            .ask("", ("text/plain;version=0.0.4", body::PAGE), NO_METRICS, |piece| {
                let began = thread_cpu();
                first = first.or_else(|| first_of(piece));
                metrics.feed(piece);
                took += thread_cpu().saturating_sub(began);
            })
            .await;
        let began = thread_cpu();
        reading.read = reading.metrics.finish();
        self.effort.spent(Stage::Parse, took + thread_cpu().saturating_sub(began));
        self.page = page;
        match read {
            Ok(()) if first == Some(b'[') => Err(self.leave_alone()),
            read => read.map(|()| Answer::Page),
        }
    }

    /// The page is a list of what ran since anybody last asked.
    fn leave_alone(&mut self) -> Problem {
        self.is_left_alone = true;
        Problem::Statistics { url: self.config.server.base().into() }
    }

    async fn loads(&mut self) -> Result<Answer, Problem> {
        for (turn, path) in [(0, self.path), (1, 1 - self.path)] {
            match self.whole(LOADS_PATHS[path], ("application/json", body::LOADS), NO_LOADS).await {
                Err(Problem::NotFound { .. }) if turn == 0 => {}
                Err(Problem::NotFound { .. }) => {
                    (self.path, self.pause) = (0, PAUSE_TURNS);
                    let url = format!("{}{}", self.config.server.base(), LOADS_PATHS[1 - path]).into();
                    return Err(Problem::NotFound { url, hint: NO_LOADS });
                }
                Err(problem) => {
                    self.path = path;
                    return Err(problem);
                }
                Ok(answer) => {
                    self.path = path;
                    return Ok(answer);
                }
            }
        }
        Ok(Answer::Page)
    }

    /// Asks for `path` and holds the whole answer, as long as there is room for it.
    async fn whole(
        &mut self,
        path: &'static str,
        accept: (&'static str, usize),
        hint: &'static str,
    ) -> Result<Answer, Problem> {
        let (mut body, mut held, mut is_full) = (Vec::new(), HeldBytes::default(), false);
        let room = self.room.clone();
        let pieces = |piece: &[u8]| match room.try_hold(piece.len()) {
            _ if is_full => {}
            Some(more) => {
                held.add(more);
                body.extend_from_slice(piece);
            }
            None => (is_full, body) = (true, Vec::new()),
        };
        self.ask(path, accept, hint, pieces).await?;
        if is_full {
            let url = format!("{}{path}", self.config.server.base()).into();
            return Err(Problem::Behind { url });
        }
        Ok(Answer::Whole(body, held))
    }

    /// Sends a request and gives the body of a good answer to `each`, or returns what is wrong.
    async fn ask(
        &mut self,
        path: &'static str,
        (accept, limit): (&'static str, usize),
        hint: &'static str,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), Problem> {
        let url = || -> Arc<str> { format!("{}{path}", self.config.server.base()).into() };
        let within = self.config.every.mul_f64(0.9);
        let Some(kept) = &mut self.kept else {
            let request = self.config.server.get(path).header("accept", accept);
            return fetch_pieces(request, url(), within, hint, limit, each).await;
        };
        match kept.get((path, accept), (limit, within), &mut each).await {
            Ok(status) => problem_of(status, &url(), hint).map_or(Ok(()), Err),
            Err(Failed::NoAnswer(why)) => Err(Problem::NoAnswer { url: url(), why }),
            Err(Failed::Body(error)) => Err(problem_of_body(error, url(), within)),
        }
    }
}

fn first_of(piece: &[u8]) -> Option<u8> {
    piece.trim_ascii_start().first().copied()
}

/// A good answer.
enum Answer {
    /// The page is in [`Poller::page`].
    Page,
    /// The body, and its room.
    Whole(Vec<u8>, HeldBytes),
}

const NO_METRICS: &str =
    "SGLang serves metrics only with --enable-metrics; start it so, or set `metrics: false`";
const NO_ITERATIONS: &str = "TensorRT-LLM's iteration statistics are not there; is `engine: tensorrt_llm` right, and the url that of trtllm-serve?";

const NO_LOADS: &str =
    "neither /v1/loads nor /get_load is there (vLLM has none); its metrics and its log are still read";

/// Sends a request and reads its whole body, or returns what is wrong.
pub(super) async fn fetch(
    request: RequestBuilder,
    url: Arc<str>,
    timeout: Duration,
    hint: &'static str,
    (limit, room): (usize, &Room),
) -> Result<(Vec<u8>, HeldBytes), Problem> {
    let mut body = Vec::new();
    fetch_pieces(request, url, timeout, hint, limit, |piece| body.extend_from_slice(piece)).await?;
    let held = room.hold(body.len()).await;
    Ok((body, held))
}

/// The same, each piece as it arrives.
async fn fetch_pieces(
    request: RequestBuilder,
    url: Arc<str>,
    timeout: Duration,
    hint: &'static str,
    limit: usize,
    each: impl FnMut(&[u8]),
) -> Result<(), Problem> {
    let deadline = Instant::now() + timeout;
    let response =
        exchange::send(request.timeout(timeout)).await.map_err(|error| match error.is_timeout() {
            true => problem_of_body(BodyError::TooSlow { within: timeout }, url.clone(), timeout),
            false => Problem::NoAnswer { url: url.clone(), why: error.to_string() },
        })?;
    if let Some(problem) = problem_of(response.status(), &url, hint) {
        return Err(problem);
    }
    let rest = deadline.saturating_duration_since(Instant::now());
    let read = body::read_pieces(response, limit, rest, each).await;
    read.map_err(|error| problem_of_body(error, url.clone(), timeout))
}

fn problem_of_body(error: BodyError, url: Arc<str>, timeout: Duration) -> Problem {
    match error {
        BodyError::TooLarge { limit } => Problem::TooLarge { url, limit },
        BodyError::TooSlow { .. } => Problem::TooSlow { url, timeout_s: timeout.as_secs_f64().to_string() },
        BodyError::Broken { why } => Problem::NoAnswer { url, why },
    }
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
        let config = Config { target: TargetId(0), source: SourceId(0), server, page, every, phase: 0.0 };
        Poller::new(config, Room::new(1 << 20), Arc::default(), Arc::new(|| Time::from_epoch_s(7.0)))
    }

    /// What each turn reported, with readable addresses.
    async fn turns(poller: &mut Poller, count: usize) -> Vec<String> {
        let base = poller.config.server.base().to_owned();
        let mut reports = Vec::new();
        for _ in 0..count {
            for (observation, _) in poller.turn().await.into_iter().flatten() {
                reports.push(match observation {
                    Observation::State { problem, .. } => {
                        problem.expect("only problems are reported").to_string()
                    }
                    Observation::ReadPage { page, .. } => {
                        let fields = page.metrics.ranks().flat_map(|(_, fields)| fields.iter());
                        fields.map(|(_, value)| value.to_string()).collect::<Vec<_>>().join(" ")
                    }
                    Observation::Loads { body, .. } => String::from_utf8_lossy(&body).into_owned(),
                    other => format!("{other:?}"),
                });
            }
        }
        reports.iter().map(|t| t.replace(&base, "SERVER")).collect()
    }

    #[test]
    fn turns_keep_their_phase_however_long_an_answer_takes() {
        let (due, second) = (Instant::now(), Duration::from_secs(1));
        for (took_ms, next_s, missed) in [(0, 1, 0), (900, 1, 0), (1000, 1, 0), (1001, 2, 1), (3500, 4, 3)] {
            let now = due + Duration::from_millis(took_ms);
            assert_eq!(turn_after(due, second, now), (due + second * next_s, missed), "{took_ms} ms");
        }
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
            (200, "sglang:num_running_reqs 1\n"),
            (200, "sglang:num_running_reqs 2\n"),
        ];
        let (base, _) = server(answers).await;
        let reports = turns(&mut poller(&base, Page::Metrics), 8).await;
        insta::assert_snapshot!(reports.join("\n"), @r"
        SERVER answered 401: the server wants its API key; set `api_key` of this target
        SERVER answered 404: SGLang serves metrics only with --enable-metrics; start it so, or set `metrics: false`
        SERVER answered 500; the server's log says why
        SERVER answered 307, a redirect, which is not followed; give the final address
        1
        2
        ");
    }

    #[tokio::test]
    async fn statistics_that_are_gone_once_somebody_asked_are_asked_for_once_and_the_line_to_write_is_told() {
        for page in [Page::Metrics, Page::Whole] {
            let (base, asked) = server(vec![(200, r#" [{"iter": 7, "numActiveRequests": 3}]"#)]).await;
            let reports = turns(&mut poller(&base, page), 3).await;
            assert_eq!(asked.lock().expect("unpoisoned").len(), 1, "{page:?}");
            assert!(reports.len() == 1 && reports[0].contains("`engine: tensorrt_llm`"), "{reports:?}");
        }
        let (base, asked) = server(vec![(200, r#"[{"iter": 7, "numActiveRequests": 3}]"#)]).await;
        turns(&mut poller(&base, Page::Iterations), 3).await;
        assert_eq!(asked.lock().expect("unpoisoned").len(), 3, "they were asked for");
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
    async fn an_agent_without_room_for_an_answer_blames_itself_and_not_the_server() {
        let (base, _) = server(vec![(200, "[1234567]")]).await;
        let mut poller = poller(&base, Page::Loads);
        let _others = poller.room.try_hold(1 << 20).expect("nobody holds any");
        let seen: Vec<_> = poller.turn().await.into_iter().flatten().map(|(seen, _)| seen).collect();
        let [Observation::State { problem: Some(problem), .. }] = &seen[..] else { panic!("{seen:?}") };
        assert!(matches!(problem, Problem::Behind { .. }), "{problem}");
        assert!(problem.to_string().contains("the server is not to blame"), "{problem}");
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
