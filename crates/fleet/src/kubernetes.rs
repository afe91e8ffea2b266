//! The lease of a pool as an object `Lease` of Kubernetes: its annotations hold what an object of the store would, and
//! each number is written once, by a replacement that fails where somebody else was first (`resourceVersion`).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use skewtrap_core::fleet::lease::{Answer, Latest, LeaseState, StoreClock};
use skewtrap_core::printable::printable;
use skewtrap_trace::time::Time;

/// What the API may take.
const WITHIN: Duration = Duration::from_secs(10);
/// The most bytes of an answer: an object is at most as large as etcd takes.
const MOST: usize = 3 << 20;
/// All annotations of an object together are at most 256 KiB.
const MOST_ANNOTATED: usize = 250_000;
/// The annotation that holds the state.
const STATE: &str = "skewtrap/lease";
/// The annotation that holds its number.
const NUMBER: &str = "skewtrap/number";
/// Under this name the API server keeps when we wrote last.
const MANAGER: &str = "skewtrap";
/// The API server's stamps, and its answers' dates, are whole seconds.
const RESOLUTION: Duration = Duration::from_secs(1);

/// How the API is reached, with the token as it is now: it is renewed every hour.
pub struct Access {
    /// The client, which trusts the cluster's authority.
    pub client: reqwest::Client,
    /// The address of the API, without a slash at its end.
    pub api: String,
    /// The namespace of the lease.
    pub namespace: String,
    /// The token of the service account.
    pub token: Option<String>,
}

/// Gives the access anew for each request.
pub type AccessNow = Arc<dyn Fn() -> Result<Access, String> + Send + Sync>;

/// A `Lease`.
#[derive(Clone)]
pub struct KubernetesLease {
    access: AccessNow,
    name: String,
    /// The object as it was read last, and its number.
    read: Option<(Value, u64)>,
}

impl fmt::Debug for KubernetesLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubernetesLease").field("name", &self.name).finish_non_exhaustive()
    }
}

/// An answer of the API.
struct Answered {
    status: StatusCode,
    body: Value,
    /// What time it is there.
    date: Option<Time>,
}

impl Answered {
    /// Whether Kubernetes says that there is no such object; a 404 of anything else says nothing.
    fn is_absent(&self) -> bool {
        self.status == StatusCode::NOT_FOUND && self.body["kind"] == "Status"
    }
}

impl KubernetesLease {
    /// The lease of that name.
    pub fn new(access: AccessNow, name: impl Into<String>) -> Self {
        Self { access, name: name.into(), read: None }
    }

    /// Its name, for a sentence.
    pub fn address(&self) -> String {
        format!("the Lease {} of Kubernetes", self.name)
    }

    /// What it says now, if there is one that any agent has taken.
    ///
    /// # Errors
    /// It cannot be read: a sentence.
    pub async fn latest(&mut self) -> Result<Option<Latest>, String> {
        let answered = self.ask(Method::GET, None).await?;
        if answered.is_absent() {
            self.read = None;
            return Ok(None);
        }
        let object = self.accepted(answered)?.body;
        let annotation = |key: &str| object["metadata"]["annotations"][key].as_str();
        let (Some(number), Some(state)) = (annotation(NUMBER), annotation(STATE)) else {
            // Somebody made it for us, to narrow what we may do to its name.
            self.read = Some((object, 0));
            return Ok(None);
        };
        let unreadable = || LeaseState::unreadable(&self.address());
        let number: u64 = number.parse().map_err(|_| unreadable())?;
        let state = LeaseState::read(state.as_bytes()).ok_or_else(unreadable)?;
        let stamped_at = stamp_of(&object).ok_or_else(|| {
            format!("{}: its API does not say when it was written (metadata.managedFields)", self.address())
        })?;
        self.read = Some((object, number));
        Ok(Some(Latest { number, state, stamped_at }))
    }

    /// Whether it could be written: the API is asked with `dryRun`, which checks rights and names and keeps nothing.
    ///
    /// # Errors
    /// It cannot be read or written: a sentence.
    pub async fn try_out(&mut self) -> Result<(), String> {
        self.latest().await?;
        let object = match &self.read {
            Some((object, _)) => object.clone(),
            None => {
                let object = self.new_object();
                let answered = self.send(Method::POST, Some(&object), true).await?;
                if answered.is_absent() {
                    let namespace = (self.access)()?.namespace;
                    return Err(format!(
                        "{} cannot be made: Kubernetes has no namespace `{namespace}`; create it, or name another (lease: {{ kubernetes: {{ namespace: ... }} }})",
                        self.address()
                    ));
                }
                // Somebody made it meanwhile.
                if answered.status != StatusCode::CONFLICT {
                    self.accepted(answered)?;
                }
                object
            }
        };
        let answered = self.send(Method::PUT, Some(&without_managers(object)), true).await?;
        match answered.is_absent() || answered.status == StatusCode::CONFLICT {
            true => Ok(()),
            false => self.accepted(answered).map(|_| ()),
        }
    }

    fn new_object(&self) -> Value {
        json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": { "name": self.name },
            "spec": {},
        })
    }

    /// Writes that number over the one before it, if nobody has written since it was read.
    pub(crate) async fn create(&mut self, number: u64, state: &LeaseState) -> Answer {
        self.write(number, state).await.unwrap_or_else(Answer::Lost)
    }

    async fn write(&mut self, number: u64, state: &LeaseState) -> Result<Answer, String> {
        let text = serde_json::to_string(state).expect("plain data serialises");
        if text.len() > MOST_ANNOTATED {
            return Err(format!(
                "{} cannot hold the {} windows of two days: allow fewer (budget.windows), or leave the lease in the store",
                self.address(),
                state.windows.len()
            ));
        }
        let before = self.read.as_ref().map_or(0, |(_, number)| *number);
        if before + 1 != number {
            return Ok(Answer::Exists);
        }
        let is_new = self.read.is_none();
        let mut object = match &self.read {
            Some((object, _)) => object.clone(),
            None => self.new_object(),
        };
        object = without_managers(object);
        object["metadata"]["annotations"][STATE] = text.into();
        object["metadata"]["annotations"][NUMBER] = number.to_string().into();
        // For `kubectl get leases`; nothing here reads it.
        object["spec"] = match &state.open {
            None => json!({ "leaseTransitions": number }),
            Some(open) => json!({
                "holderIdentity": open.host,
                "leaseDurationSeconds": (open.lasts_s.clamp(1.0, 1e6)).ceil() as u64,
                "leaseTransitions": number,
            }),
        };
        let method = if is_new { Method::POST } else { Method::PUT };
        let answered = self.ask(method, Some(&object)).await?;
        if answered.status == StatusCode::CONFLICT {
            return Ok(Answer::Exists);
        }
        // Deleted since it was read: what is there is to be read again.
        if answered.is_absent() && !is_new {
            return Ok(Answer::Exists);
        }
        let written = self.accepted(answered)?.body;
        self.read = Some((written, number));
        Ok(Answer::Created)
    }

    /// What time it is at the API server, beside `now`.
    pub(crate) async fn measure(&self, now: impl Fn() -> Time) -> Result<StoreClock, String> {
        let sent = now();
        let answered = self.ask(Method::GET, None).await?;
        let answered_at = now();
        let date = answered.date;
        if !answered.is_absent() {
            self.accepted(answered)?;
        }
        let date =
            date.ok_or_else(|| format!("{}: its API does not say what time it is (Date)", self.address()))?;
        Ok(StoreClock::measured(sent, answered_at, date, RESOLUTION))
    }

    async fn ask(&self, method: Method, body: Option<&Value>) -> Result<Answered, String> {
        self.send(method, body, false).await
    }

    /// With `is_trial` nothing is kept of what is written.
    async fn send(&self, method: Method, body: Option<&Value>, is_trial: bool) -> Result<Answered, String> {
        let Access { client, api, namespace, token } = (self.access)()?;
        let mut url = format!("{api}/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases");
        if method != Method::POST {
            url = format!("{url}/{}", self.name);
        }
        if method != Method::GET {
            let trial = if is_trial { "&dryRun=All" } else { "" };
            url = format!("{url}?fieldManager={MANAGER}{trial}");
        }
        let mut request = client.request(method, &url).timeout(WITHIN).header("accept", "application/json");
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request
                .header("content-type", "application/json")
                .body(serde_json::to_vec(body).expect("plain data serialises"));
        }
        let failed = |e: reqwest::Error| format!("{}: {}", self.address(), cause_of(&e.without_url()));
        let answer = request.send().await.map_err(failed)?;
        let (status, date) = (answer.status(), date_of(&answer));
        let bytes = read(answer).await.map_err(|why| format!("{}: {why}", self.address()))?;
        Ok(Answered { status, body: serde_json::from_slice(&bytes).unwrap_or_default(), date })
    }

    /// An answer that says yes.
    fn accepted(&self, answered: Answered) -> Result<Answered, String> {
        let Answered { status, body, .. } = &answered;
        if *status == StatusCode::FORBIDDEN || *status == StatusCode::UNAUTHORIZED {
            return Err(format!(
                "Kubernetes does not let this service account use {} ({}): give it a role with `get`, `create` and `update` on `leases` of coordination.k8s.io",
                self.address(),
                status.as_u16()
            ));
        }
        if !status.is_success() {
            let said = body["message"].as_str().map(|m| format!(": {}", printable(m, 200)));
            let said = said.unwrap_or_default();
            return Err(format!("{}: the API answered {}{said}", self.address(), status.as_u16()));
        }
        match body["kind"] == "Lease" {
            true => Ok(answered),
            false => Err(format!("{}: what answers is no API of Kubernetes", self.address())),
        }
    }
}

/// The API keeps them itself.
fn without_managers(mut object: Value) -> Value {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    object
}

/// When an object was written last by us, by the API server's clock.
fn stamp_of(object: &Value) -> Option<Time> {
    let entries = object["metadata"]["managedFields"].as_array()?;
    let ours = entries.iter().filter(|entry| entry["manager"] == MANAGER);
    let stamps =
        ours.filter_map(|entry| entry["time"].as_str()?.parse::<chrono::DateTime<chrono::Utc>>().ok());
    stamps.max().map(time_of)
}

fn date_of(answer: &Response) -> Option<Time> {
    let date = answer.headers().get(reqwest::header::DATE)?.to_str().ok()?;
    chrono::DateTime::parse_from_rfc2822(date).ok().map(|date| time_of(date.to_utc()))
}

fn time_of(stamp: chrono::DateTime<chrono::Utc>) -> Time {
    Time::from_nanos(stamp.timestamp_nanos_opt().unwrap_or_default())
}

async fn read(mut answer: Response) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|e| cause_of(&e.without_url()))? {
        if bytes.len() + chunk.len() > MOST {
            return Err("its answer is too large for a Lease".into());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// The words at the end of an error's chain.
fn cause_of(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    printable(&cause.to_string(), 200).into_owned()
}
