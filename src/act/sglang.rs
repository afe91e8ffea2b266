//! SGLang's profile calls: `/start_profile` with a JSON body, `/stop_profile` with none.

use reqwest::RequestBuilder;

use crate::http::Server;
use skewtrap_core::capture::plan::{START, StartRequest};

pub(super) fn start(server: &Server, request: &StartRequest) -> RequestBuilder {
    let body = request.body.clone().unwrap_or_else(|| serde_json::json!({}));
    server.profile(START).json(&body)
}

pub(super) fn stop(server: &Server, path: &str) -> RequestBuilder {
    server.profile(path)
}
