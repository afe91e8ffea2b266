//! The HTTP client for LLM servers: rustls with bundled roots, no redirects, keys that are never
//! printed. `observe` reads with it, `act` sends profile calls with it.

pub mod body;
pub mod client;
pub mod exchange;
pub mod kept;
pub mod kubernetes;
pub mod secret;

use std::sync::Arc;

use reqwest::{Method, RequestBuilder};

pub use self::secret::Secret;
use skewtrap_core::capture::facts::ServerKind;

/// An LLM server: its address, its keys and the clients for it.
#[derive(Clone, Debug)]
pub struct Server {
    client: reqwest::Client,
    /// For profile calls.
    profile_client: reqwest::Client,
    base: Arc<str>,
    api_key: Option<Secret>,
    admin_api_key: Option<Secret>,
    /// As the configuration says.
    engine: Option<ServerKind>,
}

impl Server {
    /// The server at `base` (`http://127.0.0.1:30000`).
    pub fn new(
        client: reqwest::Client,
        base: &str,
        api_key: Option<Secret>,
        admin_api_key: Option<Secret>,
    ) -> Self {
        let profile_client = client.clone();
        let base = base.trim_end_matches('/').into();
        Self { client, profile_client, base, api_key, admin_api_key, engine: None }
    }

    /// The same server, which runs `engine` as the configuration says: it is not asked for it.
    pub fn with_engine(self, engine: Option<ServerKind>) -> Self {
        Self { engine, ..self }
    }

    /// What it runs, where the configuration says so.
    pub const fn engine(&self) -> Option<ServerKind> {
        self.engine
    }

    /// The same server with another client for profile calls. It should keep no idle connection (see
    /// [`client::unpooled`]): if the server closes one while a start is sent on it, nobody knows whether
    /// the profile was started.
    pub fn with_profile_client(self, profile_client: reqwest::Client) -> Self {
        Self { profile_client, ..self }
    }

    /// Its address, without a path.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The port in its address, or the scheme's default.
    pub fn port(&self) -> Option<u16> {
        reqwest::Url::parse(&self.base).ok()?.port_or_known_default()
    }

    /// Where it listens, in one spelling: `127.0.0.1:30000` for every way to write this machine's own address.
    /// Names of other machines are left as they are written.
    pub fn address(&self) -> Option<String> {
        let url = reqwest::Url::parse(&self.base).ok()?;
        let port = url.port_or_known_default()?;
        let host = url.host_str()?.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
        let is_own = |ip: std::net::IpAddr| ip.to_canonical().is_loopback() || ip.is_unspecified();
        match host.parse().map(is_own).unwrap_or(host == "localhost") {
            true => Some(format!("127.0.0.1:{port}")),
            false => Some(format!("{host}:{port}")),
        }
    }

    /// A GET request, with `api_key` where there is one.
    pub fn get(&self, path: &str) -> RequestBuilder {
        self.request(&self.client, Method::GET, path, self.api_key.as_ref())
    }

    /// A POST request of the profiler, with `admin_api_key` where there is one, else with `api_key`: a server
    /// with an admin key refuses the other one for profile calls.
    pub fn profile(&self, path: &str) -> RequestBuilder {
        let key = self.admin_api_key.as_ref().or(self.api_key.as_ref());
        self.request(&self.profile_client, Method::POST, path, key)
    }

    fn request(
        &self,
        client: &reqwest::Client,
        method: Method,
        path: &str,
        key: Option<&Secret>,
    ) -> RequestBuilder {
        let request = client.request(method, format!("{}{path}", self.base));
        match key {
            Some(key) => request.bearer_auth(key.reveal()),
            None => request,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_has_one_address_however_its_host_is_written() {
        let client = client::unpooled(None).expect("the bundled roots are good");
        let address = |url: &str| Server::new(client.clone(), url, None, None).address();
        for url in [
            "http://127.0.0.1:30000",
            "http://localhost:30000/",
            "http://LOCALHOST.:30000",
            "http://[::1]:30000",
            "http://127.0.1.1:30000",
            "http://0.0.0.0:30000",
            "http://[::ffff:127.0.0.1]:30000",
        ] {
            assert_eq!(address(url).as_deref(), Some("127.0.0.1:30000"), "{url}");
        }
        assert_eq!(address("https://gpu7.example.com").as_deref(), Some("gpu7.example.com:443"));
        assert_ne!(address("http://gpu7:30000"), address("http://gpu8:30000"));
        assert_eq!(address(""), None);
    }

    #[test]
    fn profile_calls_take_the_admin_key_and_nothing_prints_a_key() {
        let client = client::unpooled(None).expect("the bundled roots are good");
        let key = |text: &str| Some(Secret::new(text));
        let server = Server::new(client, "http://127.0.0.1:1/", key("plain-key"), key("admin-key"));
        let header = |request: RequestBuilder| {
            request.build().expect("it is whole").headers()["authorization"]
                .to_str()
                .expect("text")
                .to_owned()
        };
        assert_eq!(header(server.profile("/start_profile")), "Bearer admin-key");
        assert_eq!(header(server.get("/v1/loads")), "Bearer plain-key");
        assert!(!format!("{server:?}").contains("-key"));
    }
}
