//! What the tests of the store have in common: a client, and a real S3 server where there is one.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The secret that moto is told.
pub const TOKEN: &str = "planted-token-7f3a";

/// A client without roots: nothing here speaks TLS.
pub fn client() -> reqwest::Client {
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build().expect("a client")
}

/// The environment of the tests.
pub fn environment() -> Vec<(String, String)> {
    std::env::vars().collect()
}

/// A moto server; killed when dropped.
pub struct Moto {
    process: Child,
    /// Its address.
    pub url: String,
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Moto {
    /// Starts one, if it is installed: `SKEWTRAP_MOTO`, or `moto_server` on the path.
    pub async fn start(settings: &[(&str, &str)]) -> Option<Self> {
        let program = std::env::var_os("SKEWTRAP_MOTO").unwrap_or_else(|| "moto_server".into());
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
        let started = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .envs(settings.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(process) = started else {
            println!("SKIPPED: uploads into a real S3 server (no moto_server; `pip install 'moto[server]'`)");
            return None;
        };
        let moto = Self { process, url: format!("http://127.0.0.1:{port}") };
        let until = Instant::now() + Duration::from_secs(60);
        while client().get(&moto.url).send().await.is_err() {
            assert!(Instant::now() < until, "moto does not answer");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Some(moto)
    }

    /// The environment of who uses it.
    pub fn variables(&self) -> Vec<(String, String)> {
        [
            ("AWS_ENDPOINT_URL", &*self.url),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_ACCESS_KEY_ID", "AKIAPLANTED"),
            ("AWS_SECRET_ACCESS_KEY", TOKEN),
            ("AWS_REGION", "us-east-1"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into()
    }

    /// Creates a bucket.
    pub async fn create(&self, bucket: &str) {
        let answer = client().put(format!("{}/{bucket}", self.url)).send().await.expect("an answer");
        assert!(answer.status().is_success(), "{answer:?}");
    }
}
