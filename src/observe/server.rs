//! Asks a server for its health, for what it is, and for its loads.

use std::time::Duration;

use reqwest::RequestBuilder;
use serde_json::Value;
use thiserror::Error;
use tokio::time::Instant;

use crate::http::exchange::{self, Unanswered};
use crate::http::{Server, body};
use crate::observe::model;
use skewtrap_core::capture::facts::{HealthAnswer, ServerFacts, ServerKind};
use skewtrap_core::capture::prior::ModelSize;

/// The timeout for `/health`, which does not answer while the server exports a trace.
pub const HEALTH_LIMIT: Duration = Duration::from_secs(20);
/// The timeout for what a server is.
const INFO_LIMIT: Duration = Duration::from_secs(10);

/// SGLang's endpoints for what it is, newest name first.
const INFO_PATHS: [&str; 2] = ["/server_info", "/get_server_info"];

/// SGLang's endpoints for the loads of its ranks, newest name first.
pub const LOADS_PATHS: [&str; 2] = ["/v1/loads", "/get_load"];

/// The result of a request to `/health`.
#[derive(Clone, Debug, PartialEq)]
pub enum Health {
    Answered(HealthAnswer),
    ConnectionRefused,
}

impl InfoError {
    /// Whether nobody listens there.
    pub const fn is_refused(&self) -> bool {
        matches!(self, Self::Unreached { refused: true, .. })
    }
}

impl Health {
    /// As the core takes it.
    pub fn answered(self) -> HealthAnswer {
        match self {
            Self::Answered(answered) => answered,
            Self::ConnectionRefused => HealthAnswer::Unhealthy("cannot connect to it".into()),
        }
    }
}

/// Why it is not known what a server is.
#[derive(Debug, Error)]
pub enum InfoError {
    /// It was not reached, or its answer not read.
    #[error("{url} was not reached: {why}")]
    Unreached {
        /// What was asked.
        url: String,
        /// The client's words.
        why: String,
        /// Nobody listens there.
        refused: bool,
    },
    /// It asks for a key.
    #[error(
        "{url} answered {status}: it wants a key, and `api_key` of this target is not set or is not the right one"
    )]
    Key {
        /// What was asked.
        url: String,
        /// 401 or 403.
        status: u16,
    },
    /// It is a worker of Dynamo without profile calls.
    #[error(
        "{url} is a worker of Dynamo with an engine whose profile calls it does not pass on: it is watched, and no window can be opened on it"
    )]
    DynamoWithout {
        /// The base address.
        url: String,
    },
    /// It is one of two engines, whose profile calls differ.
    #[error(
        "{url}/v1/models does not say who owns the model, so whether vLLM or TensorRT-LLM runs there is unknown, and no window can be opened; write `engine: vllm` or `engine: tensorrt_llm` for this target"
    )]
    VllmOrTensorrtLlm {
        /// The base address.
        url: String,
    },
    /// It is no server that the agent knows.
    #[error(
        "{url} is no server that the agent knows: neither /server_info (SGLang) nor /version (vLLM, TensorRT-LLM) answers, and /metrics is not that of a worker of Dynamo"
    )]
    Neither {
        /// The base address.
        url: String,
    },
}

/// Requests the loads from one of [`LOADS_PATHS`] after the other, the one numbered `first` first, until
/// an answer is not `is_missing`. Returns the number of the last one requested, and its answer.
pub async fn first_loads_path<T, F: Future<Output = T>>(
    first: usize,
    ask: impl Fn(&'static str) -> F,
    is_missing: impl Fn(&T) -> bool,
) -> (usize, T) {
    let answer = ask(LOADS_PATHS[first]).await;
    if !is_missing(&answer) {
        return (first, answer);
    }
    let other = 1 - first;
    (other, ask(LOADS_PATHS[other]).await)
}

/// Asks `/health`.
pub async fn health(server: &Server) -> Health {
    answer_to(server.get("/health")).await
}

/// The same for who asks so seldom that a connection which waits for the next time costs more memory, 26 kB of
/// buffers, than opening another one costs time. Over TLS it is the other way round.
pub async fn health_now_and_then(server: &Server) -> Health {
    let request = server.get("/health");
    answer_to(if server.base().starts_with("http://") {
        request.header("connection", "close")
    } else {
        request
    })
    .await
}

async fn answer_to(request: RequestBuilder) -> Health {
    let sent = Instant::now();
    let request = request.timeout(HEALTH_LIMIT);
    match exchange::send(request).await {
        Ok(answer) if answer.status().is_success() => Health::Answered(HealthAnswer::Healthy(sent.elapsed())),
        Ok(answer) => Health::Answered(HealthAnswer::Unhealthy(format!(
            "/health answered {}",
            answer.status().as_u16()
        ))),
        Err(error) if error.is_timeout() => Health::Answered(HealthAnswer::Unhealthy(format!(
            "/health did not answer in {} s",
            HEALTH_LIMIT.as_secs()
        ))),
        Err(Unanswered::Refused { .. } | Unanswered::NotSent { .. }) => Health::ConnectionRefused,
        Err(error) => Health::Answered(HealthAnswer::Unhealthy(format!("/health broke off: {error}"))),
    }
}

/// Asks a server what it is. `engines` is the number of engines in vLLM's metrics, since vLLM itself
/// does not report its sizes.
///
/// # Errors
/// It was not reached, wants a key, or is no server that the agent knows.
pub async fn facts(server: &Server, engines: u16) -> Result<ServerFacts, InfoError> {
    for path in INFO_PATHS {
        if let Some(info) = ask(server, path).await?
            && info["version"].is_string()
        {
            return Ok(with_configuration(ServerFacts::of_server_info(&info)).await);
        }
    }
    match ask(server, "/version").await? {
        Some(answer) if answer["version"].is_string() => {
            let version = answer["version"].as_str().unwrap_or_default();
            let models = models(server).await?;
            let name = |key: &str| models["data"][0][key].as_str().map(str::to_owned);
            let is_trtllm = match server.engine() {
                Some(engine) => engine == ServerKind::TensorrtLlm,
                None => models["data"][0]["owned_by"] == "tensorrt_llm",
            };
            let model = name("root").or_else(|| name("id")).unwrap_or_default();
            let model_size = ModelSize::of_name(&model);
            let server_facts = match is_trtllm {
                true => ServerFacts::of_tensorrt_llm(version, engines),
                false => ServerFacts::of_vllm(version, engines),
            };
            Ok(with_configuration(ServerFacts { model, model_size, ..server_facts }).await)
        }
        _ => Ok(with_configuration(dynamo(server, engines).await?).await),
    }
}

/// What the server says of its models. Only that tells vLLM from TensorRT-LLM, so it may be missing only where the
/// configuration says which of them runs there.
async fn models(server: &Server) -> Result<Value, InfoError> {
    let answer = ask(server, "/v1/models").await;
    if server.engine().is_some() {
        return Ok(answer.ok().flatten().unwrap_or_default());
    }
    let told = answer?.filter(|models| models["data"][0]["owned_by"].is_string());
    told.ok_or_else(|| InfoError::VllmOrTensorrtLlm { url: server.base().to_owned() })
}

/// What a worker of Dynamo is, by the metrics of its system port: its routes are asked nothing, for any request to a
/// profile route carries it out.
async fn dynamo(server: &Server, ranks: u16) -> Result<ServerFacts, InfoError> {
    let neither = || InfoError::Neither { url: server.base().to_owned() };
    let answer = exchange::send(server.get("/metrics").timeout(INFO_LIMIT)).await.map_err(|_| neither())?;
    if !answer.status().is_success() {
        return Err(neither());
    }
    let page = body::read(answer, body::PAGE, INFO_LIMIT).await.map_err(|_| neither())?;
    let page = String::from_utf8_lossy(&page);
    if !page.lines().any(|line| line.starts_with("dynamo_component_")) {
        return Err(neither());
    }
    let has = |prefix: &str| page.lines().any(|line| line.starts_with(prefix));
    let model =
        page.split("model_name=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default();
    match (has("sglang:"), has("vllm:")) {
        (true, false) => Ok(ServerFacts::of_dynamo(ServerKind::DynamoSglang, model, ranks)),
        (false, true) => Ok(ServerFacts::of_dynamo(ServerKind::DynamoVllm, model, ranks)),
        _ => Err(InfoError::DynamoWithout { url: server.base().to_owned() }),
    }
}

async fn with_configuration(facts: ServerFacts) -> ServerFacts {
    match model::configuration(&facts.model).await {
        Some(config) => ServerFacts { model_size: facts.model_size.with_config(&config), ..facts },
        None => facts,
    }
}

/// The answer's JSON; `None` where the path is unknown or answers something else.
async fn ask(server: &Server, path: &str) -> Result<Option<Value>, InfoError> {
    let url = || format!("{}{path}", server.base());
    let answer = exchange::send(server.get(path).timeout(INFO_LIMIT)).await;
    let unreached = |e: Unanswered| {
        let refused = matches!(e, Unanswered::Refused { .. });
        InfoError::Unreached { url: url(), why: e.to_string(), refused }
    };
    let answer = answer.map_err(unreached)?;
    match answer.status().as_u16() {
        status @ (401 | 403) => Err(InfoError::Key { url: url(), status }),
        200 => {
            let read = body::json(answer, body::INFO, INFO_LIMIT).await;
            read.map_err(|e| InfoError::Unreached { url: url(), why: e.to_string(), refused: false })
        }
        _ => Ok(None),
    }
}
