//! What the tests of the store have in common: a client, and a real S3 server where there is one.

use std::net::TcpListener;
use std::path::PathBuf;
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

/// Serves one request after the other. With its threads Moto compares what a conditional write expects and writes
/// in two steps, between which another request's write comes in and is lost: S3 does both in one.
const ONE_AT_A_TIME: &str = "
import sys, moto.server as moto
run = moto.run_simple
moto.run_simple = lambda *args, **options: run(*args, **{**options, 'threaded': False})
moto.main(sys.argv[1:])
";

/// The Python of the `moto_server` that is installed, as its first line names it; the usual one where another program
/// stands in for it.
fn moto_python() -> Option<Command> {
    let named = std::env::var_os("SKEWTRAP_MOTO").map(PathBuf::from);
    let on_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path)
            .map(|folder| folder.join("moto_server"))
            .find(|program| program.is_file())
    };
    let script = std::fs::read_to_string(named.or_else(on_path)?).ok()?;
    let named = script.lines().next()?.strip_prefix("#!").filter(|named| named.contains("python"));
    let mut words = named.unwrap_or("python3").split_whitespace();
    let mut python = Command::new(words.next()?);
    python.args(words);
    Some(python)
}

impl Moto {
    /// Starts one, if it is installed: `SKEWTRAP_MOTO`, or `moto_server` on the path.
    pub async fn start(settings: &[(&str, &str)]) -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
        let started = moto_python().map(|mut python| {
            python
                .args(["-c", ONE_AT_A_TIME, "-H", "127.0.0.1", "-p", &port.to_string()])
                .envs(settings.iter().copied())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
        });
        let Some(Ok(process)) = started else {
            println!("SKIPPED: uploads into a real S3 server (no moto_server; `pip install 'moto[server]'`)");
            return None;
        };
        let mut moto = Self { process, url: format!("http://127.0.0.1:{port}") };
        let until = Instant::now() + Duration::from_secs(60);
        while client().get(&moto.url).send().await.is_err() {
            assert!(Instant::now() < until, "moto does not answer");
            if moto.process.try_wait().expect("asked").is_some() {
                println!("SKIPPED: uploads into a real S3 server (moto_server does not start)");
                return None;
            }
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
