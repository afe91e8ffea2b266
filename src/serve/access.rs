//! Access control: the Host header, and the token, compared in constant time.
//!
//! Every change needs the token, on loopback too. Reading needs it where other machines can reach the
//! address, and everywhere for files that hold the environment of the server. A browser may send the token as
//! the password of Basic authentication, but only for reading: browsers send that password on their own, so a
//! page elsewhere could use it to change something.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HOST, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{ApiError, ServeConfig};
use crate::http::Secret;

/// The rules of one listener.
#[derive(Debug)]
pub(super) struct Access {
    may_read_without_token: bool,
    token: Option<[u8; 32]>,
    own_token: Arc<OnceLock<Secret>>,
    hosts: Vec<String>,
}

impl Access {
    pub(super) fn new(config: &ServeConfig) -> Self {
        Self {
            may_read_without_token: config.listen.ip().is_loopback(),
            token: config.token.as_ref().map(|t| digest_of(t.reveal().as_bytes())),
            own_token: config.own_token.clone(),
            hosts: config.hosts.iter().map(|h| h.to_ascii_lowercase()).collect(),
        }
    }

    fn check(&self, method: &Method, headers: &HeaderMap) -> Result<(), ApiError> {
        let host = headers.get(HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
        if !self.knows_host(host) {
            let why = "this Host is not the agent's: a page elsewhere must not reach it; add the name to `hosts` in the configuration";
            return Err(ApiError(StatusCode::MISDIRECTED_REQUEST, why.into()));
        }
        let reading = matches!(*method, Method::GET | Method::HEAD);
        match reading && self.may_read_without_token {
            true => Ok(()),
            false => self.check_token(headers, reading),
        }
    }

    /// Whether the token is given. To read something a browser may give it as a password.
    pub(super) fn check_token(&self, headers: &HeaderMap, reading: bool) -> Result<(), ApiError> {
        let own = || self.own_token.get().map(|own| digest_of(own.reveal().as_bytes()));
        let Some(token) = self.token.or_else(own) else {
            let what = if reading { "this cannot be read" } else { "nothing can be changed" };
            let why = format!(
                "{what} through this agent: it has no `token`, and no own one (its log says why; while a disk does not answer, /healthz does)"
            );
            return Err(ApiError(StatusCode::FORBIDDEN, why));
        };
        match token_of(headers, reading) {
            Some(given) if bool::from(digest_of(&given).ct_eq(&token)) => Ok(()),
            Some(_) => Err(ApiError(StatusCode::UNAUTHORIZED, "this token is not the agent's".into())),
            None => {
                let why = "this needs a token: send `Authorization: Bearer TOKEN`; commands on this machine find the agent's own with `--state-dir`, its state folder";
                Err(ApiError(StatusCode::UNAUTHORIZED, why.into()))
            }
        }
    }

    /// Addresses and configured names are accepted. Another name that resolves to this machine may be an
    /// attack (DNS rebinding).
    fn knows_host(&self, host: &str) -> bool {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => host,
        };
        let name = name.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        name == "localhost" || name.parse::<IpAddr>().is_ok() || self.hosts.contains(&name)
    }
}

/// Passes an allowed request on, and answers any other.
pub(super) async fn admit(State(access): State<Arc<Access>>, mut request: Request, next: Next) -> Response {
    let mut response = match access.check(request.method(), request.headers()) {
        Ok(()) => {
            // Some files need more.
            request.extensions_mut().insert(access);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    };
    if response.status() == StatusCode::UNAUTHORIZED {
        let challenge = HeaderValue::from_static("Basic realm=\"skewtrap\", Bearer realm=\"skewtrap\"");
        response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    }
    response
}

/// Tokens are compared by digest, so that the time taken does not depend on their length either.
fn digest_of(token: &[u8]) -> [u8; 32] {
    Sha256::digest(token).into()
}

fn token_of(headers: &HeaderMap, reading: bool) -> Option<Vec<u8>> {
    let (scheme, rest) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().as_bytes().to_vec());
    }
    if reading && scheme.eq_ignore_ascii_case("basic") {
        let pair = base64(rest.trim())?;
        let colon = pair.iter().position(|&b| b == b':')?;
        return Some(pair[colon + 1..].to_vec());
    }
    None
}

/// Decodes Base64 of the standard alphabet; `None` when it is invalid.
fn base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let (mut bits, mut held) = (0u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        let six = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(six);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn access(listen: &str, token: Option<&str>) -> Access {
        Access::new(&ServeConfig {
            listen: listen.parse().expect("an address"),
            metrics_listen: None,
            token: token.map(Secret::new),
            own_token: Arc::default(),
            hosts: vec!["Skewtrap.monitoring.svc".into()],
            incident_dir: PathBuf::new(),
        })
    }

    fn status(access: &Access, method: Method, host: &str, authorization: &str) -> u16 {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, host.parse().expect("a header"));
        if !authorization.is_empty() {
            headers.insert(AUTHORIZATION, authorization.parse().expect("a header"));
        }
        access.check(&method, &headers).map_or_else(|p| p.0.as_u16(), |()| 200)
    }

    #[test]
    fn on_loopback_may_read_without_token_and_changing_needs_the_token() {
        let a = access("127.0.0.1:0", Some("t"));
        assert_eq!(status(&a, Method::GET, "127.0.0.1:9464", ""), 200);
        assert_eq!(status(&a, Method::POST, "127.0.0.1:9464", ""), 401);
        assert_eq!(status(&a, Method::POST, "127.0.0.1:9464", "Bearer x"), 401);
        assert_eq!(status(&a, Method::POST, "127.0.0.1:9464", "Bearer t"), 200);
        assert_eq!(status(&a, Method::DELETE, "127.0.0.1:9464", ""), 401);
        let none = access("127.0.0.1:0", None);
        assert_eq!(status(&none, Method::POST, "localhost", "Bearer "), 403);
        assert_eq!(status(&none, Method::GET, "localhost", ""), 200);
    }

    #[test]
    fn beyond_loopback_everything_needs_the_token() {
        let a = access("0.0.0.0:0", Some("t"));
        assert_eq!(status(&a, Method::GET, "10.0.0.7:9464", ""), 401);
        assert_eq!(status(&a, Method::GET, "10.0.0.7:9464", "Bearer tt"), 401);
        assert_eq!(status(&a, Method::GET, "10.0.0.7:9464", "bearer t"), 200);
        assert_eq!(status(&a, Method::POST, "10.0.0.7:9464", "Bearer t"), 200);
    }

    #[test]
    fn a_browser_reads_with_the_token_as_password_but_cannot_be_made_to_change() {
        let a = access("0.0.0.0:0", Some("r"));
        assert_eq!(status(&a, Method::GET, "10.0.0.7", "Basic bWU6cg=="), 200);
        assert_eq!(status(&a, Method::GET, "10.0.0.7", "Basic bWU6eA=="), 401);
        assert_eq!(status(&a, Method::POST, "10.0.0.7", "Basic bWU6cg=="), 401);
        assert_eq!(status(&a, Method::GET, "10.0.0.7", "Basic %%%"), 401);
    }

    #[test]
    fn a_name_that_is_not_the_agents_is_turned_away() {
        let a = access("127.0.0.1:0", Some("w"));
        for host in ["localhost", "localhost:9464", "[::1]:9464", "10.1.2.3", "skewtrap.monitoring.svc:9464"]
        {
            assert_eq!(status(&a, Method::GET, host, ""), 200, "{host}");
        }
        for host in ["evil.example", "evil.example:9464", "localhost.evil.example", ""] {
            assert_eq!(status(&a, Method::GET, host, ""), 421, "{host}");
        }
    }
}
