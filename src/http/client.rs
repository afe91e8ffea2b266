//! Builds the HTTP clients for servers and receivers: rustls, bundled roots, no redirects.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{NoProxy, Proxy};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use skewtrap_core::printable::{LIMIT, printable};

/// The timeout for connecting to a server whose profiler is called.
const CONNECT: Duration = Duration::from_secs(5);

/// So long a connection is kept that nobody uses, with its buffer and its task: enough for the requests of one probe,
/// not until the next of hundreds of servers.
const IDLE: Duration = Duration::from_secs(3);

/// How the agent calls itself.
pub const USER_AGENT: &str = concat!("skewtrap/", env!("CARGO_PKG_VERSION"));

/// The variables that name a proxy for plain HTTP, as the clients read them.
const PROXIES: [&str; 4] = ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"];

/// Names and addresses of this machine itself.
const HERE: &str = "localhost,127.0.0.0/8,::1";

/// Why a client cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The file of certificates cannot be used.
    #[error("the certificates in {path} cannot be used: {why}; it must hold PEM certificates of authorities")]
    Authorities { path: String, why: String },
    /// The TLS library refused its own defaults.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
}

/// A client that trusts the public authorities and those in `ca_file`. Redirects are not followed,
/// because a key or a signed body must only go to the configured address.
///
/// # Errors
/// The file cannot be read or holds no certificate.
pub fn client(ca_file: Option<&Path>) -> Result<reqwest::Client, ClientError> {
    builder(ca_file)?.build().map_err(|e| ClientError::Tls(e.to_string()))
}

/// The same, with a new connection for every request: if a server closed an idle connection while a
/// start is sent on it, nobody would know whether the profile was started.
///
/// # Errors
/// As [`client`].
pub fn unpooled(ca_file: Option<&Path>) -> Result<reqwest::Client, ClientError> {
    let builder = builder(ca_file)?.pool_max_idle_per_host(0).connect_timeout(CONNECT);
    builder.build().map_err(|e| ClientError::Tls(e.to_string()))
}

fn builder(ca_file: Option<&Path>) -> Result<reqwest::ClientBuilder, ClientError> {
    let mut roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(path) = ca_file {
        add_authorities(&mut roots, path)?;
    }
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| ClientError::Tls(e.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let builder = proxies().into_iter().fold(reqwest::Client::builder(), reqwest::ClientBuilder::proxy);
    Ok(builder
        .tls_backend_preconfigured(tls)
        .redirect(Policy::none())
        .pool_idle_timeout(IDLE)
        .user_agent(USER_AGENT))
}

/// The proxies that the environment names, as reqwest reads them, but for what is on this machine: keys of
/// servers and the agent's own token would go to the proxy in clear, which reaches nothing of it.
fn proxies() -> Vec<Proxy> {
    let set = |name: &&str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let first = |names: [&str; 2]| names.iter().find_map(set);
    // A program that a web server runs is told a request's `Proxy` header in HTTP_PROXY.
    let is_cgi = std::env::var_os("REQUEST_METHOD").is_some();
    let http = first(["HTTP_PROXY", "http_proxy"]).filter(|_| !is_cgi).map(Proxy::http);
    let https = first(["HTTPS_PROXY", "https_proxy"]).map(Proxy::https);
    let all = first(["ALL_PROXY", "all_proxy"]).map(Proxy::all);
    let others = first(["NO_PROXY", "no_proxy"]).unwrap_or_default();
    let direct = NoProxy::from_string(&format!("{others},{HERE}"));
    // One whose address is none counts for nothing, as with reqwest itself.
    let named = [http, https, all].into_iter().flatten().filter_map(Result::ok);
    named.map(|proxy| proxy.no_proxy(direct.clone())).collect()
}

fn add_authorities(roots: &mut rustls::RootCertStore, path: &Path) -> Result<(), ClientError> {
    let fail = |why: String| ClientError::Authorities { path: path.display().to_string(), why };
    let pem = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
    let mut found = 0;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        roots.add(certificate.map_err(|e| fail(e.to_string()))?).map_err(|e| fail(e.to_string()))?;
        found += 1;
    }
    if found == 0 { Err(fail("it holds no certificate".into())) } else { Ok(()) }
}

/// Whether the environment may send requests through a proxy.
pub fn goes_through_a_proxy() -> bool {
    PROXIES.iter().any(|name| std::env::var_os(name).is_some_and(|proxy| !proxy.is_empty()))
}

/// The cause at the end of an error's chain: `Connection refused (os error 111)`.
pub fn cause_of(error: &reqwest::Error) -> String {
    let cause = root_cause(error);
    match cause.contains("InvalidContentType") {
        true => "that port speaks http, not https: write http://".to_owned(),
        false => cause,
    }
}

/// The words of what is at the end of an error's chain.
pub fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    printable(&cause.to_string(), LIMIT).into_owned()
}
