//! object_store's requests through the HTTP client that is handed in: one TLS stack, one set of roots.

use async_trait::async_trait;
use bytes::Bytes;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody,
    HttpService,
};

use crate::store::LARGEST;

/// Gives every store the same client.
#[derive(Clone, Debug)]
pub(crate) struct OneClient(pub(crate) reqwest::Client);

impl HttpConnector for OneClient {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

/// What an answer may take.
const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(120);

#[async_trait]
impl HttpService for OneClient {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let url =
            parts.uri.to_string().parse().map_err(|e| HttpError::new(HttpErrorKind::Unknown, UrlError(e)))?;
        let mut request = reqwest::Request::new(parts.method, url);
        *request.headers_mut() = parts.headers;
        *request.body_mut() = Some(reqwest::Body::wrap(body));
        *request.timeout_mut() = Some(TIMEOUT);
        let mut answer = self.0.execute(request).await.map_err(failed)?;
        let (status, headers) = (answer.status(), std::mem::take(answer.headers_mut()));
        // The objects that are read are small: records, summaries, lines of the index. Others may lie there.
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            if (body.len() + chunk.len()) as u64 > LARGEST {
                return Err(HttpError::new(HttpErrorKind::Unknown, TooLarge));
            }
            body.extend_from_slice(&chunk);
        }
        let mut response = HttpResponse::new(HttpResponseBody::from(Bytes::from(body)));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("its answer has more than {LARGEST} bytes, which are not read")]
struct TooLarge;

#[derive(Debug, thiserror::Error)]
#[error("the address of the store is no address: {0}")]
struct UrlError(url::ParseError);

fn failed(error: reqwest::Error) -> HttpError {
    let kind = match () {
        () if error.is_timeout() => HttpErrorKind::Timeout,
        () if error.is_connect() => HttpErrorKind::Connect,
        // A request whose answer was lost is sent again: all that is put has a name of its own.
        () => HttpErrorKind::Interrupted,
    };
    // The address holds signatures in some stores.
    HttpError::new(kind, error.without_url())
}
