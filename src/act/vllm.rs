//! vLLM's profile calls: POST only, with a body since 0.33.

use reqwest::RequestBuilder;

use crate::http::Server;
use skewtrap_core::capture::plan::{START, StartRequest};

pub(super) fn start(server: &Server, request: &StartRequest) -> RequestBuilder {
    let post = server.profile(START);
    match &request.body {
        Some(body) => post.json(body),
        None => post,
    }
}

pub(super) fn stop(server: &Server, path: &str) -> RequestBuilder {
    server.profile(path)
}
