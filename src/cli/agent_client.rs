//! The client of the running agent's API.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use reqwest::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::config_path;
use crate::agent::plan::default_state_dir;
use crate::config::diagnostic::beside;
use crate::config::tree;
use crate::http::client::{cause_of, client};
use crate::http::{Secret, body};
use crate::serve::token;

const TIMEOUT: Duration = Duration::from_secs(15);
/// The state folder of deploy/systemd. The command line does not have the environment of the service.
const SERVICE_STATE_DIR: &str = "/var/lib/skewtrap";

/// Where an agent without a configuration listens.
const DEFAULT_AGENT: &str = "http://127.0.0.1:9464";

/// Which agent, and with which token.
#[derive(Clone, Debug, Args)]
pub struct AgentArgs {
    /// Address of the running agent [default: that of the agent of --state-dir, else `listen` of the
    /// configuration that is found here, else http://127.0.0.1:9464]
    #[arg(long, value_name = "URL", env = "SKEWTRAP_AGENT", value_parser = super::server_url)]
    agent: Option<String>,
    /// File of the agent's token; SKEWTRAP_TOKEN holds it otherwise, or the agent's own state folder
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The agent's state folder, in which its address and its own token lie; by default as for `skewtrap run`
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

impl AgentArgs {
    /// The agent that runs with that state folder; `None` where none says so.
    pub fn running(state_dir: &Path) -> Option<Self> {
        token::address(state_dir)?;
        Some(Self { agent: None, token_file: None, state_dir: Some(state_dir.to_owned()) })
    }

    /// Reads one path of the API.
    ///
    /// # Errors
    /// The agent does not answer, or refuses; the error holds its message.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let answer = self.request(Method::GET, path, None)?;
        serde_json::from_slice(&answer)
            .with_context(|| format!("{} is another version of skewtrap", self.address()))
    }

    /// Sends a change, and returns the answer.
    ///
    /// # Errors
    /// As [`AgentArgs::get`].
    pub fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let answer = self.request(Method::POST, path, Some(body))?;
        Ok(serde_json::from_slice(&answer).unwrap_or_default())
    }

    /// The same of every server: without a `limit` an answer is of the first ones.
    pub fn get_of_all<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.get(&format!("{path}?limit={}", u16::MAX))
    }

    fn request(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Vec<u8>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let url = format!("{}/api/v1/{path}", self.address().trim_end_matches('/'));
            let mut request = client(None)?.request(method, url).timeout(TIMEOUT);
            if let Some(token) = self.token()? {
                request = request.bearer_auth(token.reveal());
            }
            if let Some(body) = body {
                request = request.json(body);
            }
            let response = request.send().await.map_err(|e| {
                anyhow!(
                    "no agent answers at {}: start one with `skewtrap run`, or name another with --agent ({})",
                    self.address(),
                    cause_of(&e)
                )
            })?;
            let status = response.status();
            let answer = body::read(response, body::PAGE, TIMEOUT).await?;
            if status.is_success() {
                return Ok(answer);
            }
            let value: Value = serde_json::from_slice(&answer).unwrap_or_default();
            let message = value["error"].as_str().unwrap_or("what answers there is no skewtrap agent; name the agent's address with --agent");
            if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
                bail!("{message}; name the agent's folder with --state-dir or the token's file with --token-file, or set SKEWTRAP_TOKEN");
            }
            bail!("{message}");
        })
    }

    /// The token, if there is one: reading on loopback needs none.
    fn token(&self) -> anyhow::Result<Option<Secret>> {
        match (&self.token_file, Secret::from_env("SKEWTRAP_TOKEN")) {
            (Some(path), _) => Ok(Some(Secret::from_file(path)?)),
            (None, Ok(token)) => Ok(Some(token)),
            (None, Err(_)) => Ok(self.state_dirs().iter().find_map(|dir| readable(&token::path(dir)))),
        }
    }

    /// Where the agent is: as the flag or the variable says, else as the folder that is named does, else as the
    /// configuration does that a `skewtrap run` in this folder would take.
    fn address(&self) -> String {
        let named = || self.state_dir.as_deref().and_then(token::address);
        self.agent.clone().unwrap_or_else(|| match named().or_else(|| configured("listen")) {
            Some(listen) => address_of(&listen),
            None => DEFAULT_AGENT.to_owned(),
        })
    }

    /// Where an agent on this machine keeps its token: first where `skewtrap run` does when the same user
    /// starts it, then where the service does.
    fn state_dirs(&self) -> Vec<PathBuf> {
        match &self.state_dir {
            Some(dir) => vec![dir.clone()],
            None => {
                // A relative one starts from the folder of the configuration.
                let beside = |dir: String| config_path::of(None).map(|file| beside(&file, &dir).into());
                let configured = configured("state_dir").and_then(beside);
                configured.into_iter().chain([default_state_dir(), SERVICE_STATE_DIR.into()]).collect()
            }
        }
    }
}

/// What the configuration that `skewtrap run` would take here says of a key. Only that key is looked at: a
/// configuration with a mistake in it does not hide the agent that is to say so.
fn configured(key: &str) -> Option<String> {
    let text = std::fs::read_to_string(config_path::of(None)?).ok()?;
    let tree::Value::Map(entries) = tree::parse(&text).ok()?.value else { return None };
    entries.into_iter().find(|(name, _)| name.name == key).and_then(|(_, node)| match node.value {
        tree::Value::Text(text) => Some(text),
        _ => None,
    })
}

/// The address at which an agent that listens there is reached from its own machine.
fn address_of(listen: &str) -> String {
    match listen.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_unspecified() => format!("http://127.0.0.1:{}", address.port()),
        _ => format!("http://{listen}"),
    }
}

/// The token in a file, if it may be read. Without it, reading on loopback still works.
fn readable(path: &Path) -> Option<Secret> {
    Secret::from_file(path).ok()
}
