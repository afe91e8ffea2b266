//! A receiver of messages that answers as it is told, and the workers that deliver to it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use skewtrap::act::notify::worker::{DeliveryQueues, Now, workers};
use skewtrap::act::notify::{DeliveryOutcome, DeliveryReport, Receiver, Transport};
use skewtrap::http::Secret;
use skewtrap::http::client::client;
use skewtrap_core::incident::Incident;
use skewtrap_core::message::{Message, Origin, Update, sample};
use skewtrap_trace::time::Time;
use tokio::sync::mpsc;

pub const AT: f64 = 1_795_492_126.1;

/// A clock on which ten minutes pass at every look, so that no test waits for a retry.
pub fn hasty() -> Now {
    let nanos = AtomicI64::new(Time::from_epoch_s(AT).nanos());
    Arc::new(move || Time::from_nanos(nanos.fetch_add(600_000_000_000, Ordering::Relaxed)))
}

pub fn still() -> Now {
    Arc::new(|| Time::from_epoch_s(AT))
}

pub fn message(incident: &Incident, update: Update) -> Message {
    Message::of(incident, update, Time::from_epoch_s(AT), &Origin::default())
}

pub fn incident() -> Incident {
    sample(Time::from_epoch_s(AT))
}

/// A receiver that answers each request with the next status of its list (then 200), and keeps all.
#[derive(Clone, Default)]
pub struct Double {
    pub answers: Arc<Mutex<Vec<(u16, &'static str)>>>,
    pub seen: Arc<Mutex<Vec<(HeaderMap, String)>>>,
}

impl Double {
    pub fn answering(mut answers: Vec<(u16, &'static str)>) -> Self {
        answers.reverse();
        Self { answers: Arc::new(Mutex::new(answers)), ..Self::default() }
    }

    pub async fn listen(&self) -> SocketAddr {
        async fn take(
            State(double): State<Double>,
            headers: HeaderMap,
            body: String,
        ) -> (StatusCode, HeaderMap) {
            double.seen.lock().unwrap().push((headers, body));
            let (status, location) = double.answers.lock().unwrap().pop().unwrap_or((200, ""));
            let mut headers = HeaderMap::new();
            match status {
                300..=399 => headers.insert("location", location.parse().unwrap()),
                429 => headers.insert("retry-after", location.parse().unwrap()),
                _ => None,
            };
            (StatusCode::from_u16(status).unwrap(), headers)
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(take).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        address
    }

    pub fn bodies(&self) -> Vec<serde_json::Value> {
        self.seen.lock().unwrap().iter().map(|(_, b)| serde_json::from_str(b).unwrap()).collect()
    }
}

/// Starts the workers; the last value receives what came of each attempt.
pub fn start(receivers: Vec<Receiver>, now: &Now) -> (DeliveryQueues, mpsc::Receiver<DeliveryReport>) {
    let (outcomes, results) = mpsc::channel(64);
    let (hands, all) = workers(receivers, &client(None).unwrap(), now, &outcomes);
    for courier in all {
        tokio::spawn(async move { courier.run().await });
    }
    (hands, results)
}

pub fn webhook(name: &str, url: &str) -> Receiver {
    let key = Some(Secret::new("k3y"));
    Receiver::new(name, Transport::Webhook { url: Secret::new(url), signing_key: key, bearer: None })
}

pub async fn next(results: &mut mpsc::Receiver<DeliveryReport>) -> DeliveryOutcome {
    tokio::time::timeout(Duration::from_secs(20), results.recv())
        .await
        .expect("in time")
        .expect("a courier lives")
        .outcome
}
