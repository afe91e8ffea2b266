//! Asks a server how it is and what it is.

use std::time::{Duration, Instant};

use serde_json::Value;
use thiserror::Error;

use crate::http::{Server, client};
use skewtrap_core::capture::facts::{Answered, ServerFacts};

/// `/health` of a server that exports a trace does not answer; it is asked no longer than this.
pub const HEALTH_LIMIT: Duration = Duration::from_secs(20);
const INFO_LIMIT: Duration = Duration::from_secs(10);

/// Where SGLang says what it is, newest name first.
const SGLANG: [&str; 2] = ["/server_info", "/get_server_info"];

/// What a question to `/health` brought.
#[derive(Clone, Debug, PartialEq)]
pub enum Health {
    /// An answer.
    Answered(Answered),
    /// Nobody listens at the address.
    NobodyListens,
}

impl Health {
    /// As a fact.
    pub fn answered(self) -> Answered {
        match self {
            Self::Answered(answered) => answered,
            Self::NobodyListens => Answered::Ill("nobody listens there".into()),
        }
    }
}

/// Why a server did not say what it is.
#[derive(Debug, Error)]
pub enum InfoError {
    /// It was not reached.
    #[error("{url} was not reached: {why}")]
    Unreached {
        /// What was asked.
        url: String,
        /// The client's words.
        why: String,
    },
    /// It asks for a key.
    #[error("{url} answered 401: set api_key on this target")]
    Key {
        /// What was asked.
        url: String,
    },
    /// It is neither.
    #[error(
        "{url} is no server that the agent knows: neither /server_info (SGLang) nor /version (vLLM) answers"
    )]
    Neither {
        /// The base address.
        url: String,
    },
}

/// Asks `/health`.
pub async fn health(server: &Server) -> Health {
    let asked = Instant::now();
    match server.get("/health").timeout(HEALTH_LIMIT).send().await {
        Ok(answer) if answer.status().is_success() => Health::Answered(Answered::Well(asked.elapsed())),
        Ok(answer) => {
            Health::Answered(Answered::Ill(format!("/health answered {}", answer.status().as_u16())))
        }
        Err(error) if error.is_timeout() => {
            Health::Answered(Answered::Ill(format!("/health did not answer in {} s", HEALTH_LIMIT.as_secs())))
        }
        Err(error) if error.is_connect() => Health::NobodyListens,
        Err(error) => Health::Answered(Answered::Ill(format!("/health broke off: {}", error.without_url()))),
    }
}

/// Asks what it is. `engines` is how many of vLLM's engines the metrics number (it tells no sizes).
///
/// # Errors
/// It was not reached, wants a key, or is neither SGLang nor vLLM.
pub async fn facts(server: &Server, engines: u16) -> Result<ServerFacts, InfoError> {
    for path in SGLANG {
        if let Some(info) = ask(server, path).await?
            && info["version"].is_string()
        {
            return Ok(ServerFacts::of_server_info(&info));
        }
    }
    match ask(server, "/version").await? {
        Some(answer) if answer["version"].is_string() => {
            Ok(ServerFacts::of_vllm(answer["version"].as_str().unwrap_or_default(), engines))
        }
        _ => Err(InfoError::Neither { url: server.base().to_owned() }),
    }
}

/// JSON where there is some; `None` where the path is unknown or says something else.
async fn ask(server: &Server, path: &str) -> Result<Option<Value>, InfoError> {
    let url = || format!("{}{path}", server.base());
    let answer = server.get(path).timeout(INFO_LIMIT).send().await;
    let answer = answer.map_err(|e| InfoError::Unreached { url: url(), why: client::cause_of(&e) })?;
    match answer.status().as_u16() {
        401 | 403 => Err(InfoError::Key { url: url() }),
        200 => Ok(answer.json().await.ok()),
        _ => Ok(None),
    }
}
