//! Serves the files of a bundle and no others: each step of a path is opened relative to the folder
//! before it and must not be a symbolic link, so that no path leads out of the bundle.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path as UrlPath, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use rustix::fs::{CWD, Mode, OFlags, openat};
use serde::Serialize;
use tokio_util::io::ReaderStream;

use super::access::Access;
use super::{ApiError, Shared};
use skewtrap_core::fleet::is_secret;
use skewtrap_core::incident::Incident;

/// The largest `incident.json`, in bytes.
const INCIDENT_BYTES: u64 = 4 << 20;
/// How many bundles are listed: the newest ones, since their names sort by time.
const LISTED: usize = 500;
/// How deep folders inside a bundle are listed.
const DEPTH: usize = 4;

#[derive(Debug, Serialize)]
pub(super) struct BundleFile {
    path: String,
    size: u64,
    /// It may hold the environment of the server, which other users of this machine cannot read either.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    needs_token: bool,
}

pub(super) async fn list(
    State(shared): State<Shared>,
    UrlPath(id): UrlPath<String>,
) -> Result<Json<Vec<BundleFile>>, ApiError> {
    let dir = shared.incident_dir.clone();
    let found = shared.bundle_disk.read(Box::new(move || -> std::io::Result<_> {
        open_below(&dir, &[&id], OFlags::DIRECTORY)?;
        let mut files = Vec::new();
        walk(&dir.join(&id), "", DEPTH, &mut files);
        Ok(files)
    }));
    found.await?.map(Json).map_err(|_| missing())
}

pub(super) async fn file(
    State(shared): State<Shared>,
    Extension(access): Extension<Arc<Access>>,
    headers: HeaderMap,
    UrlPath((id, path)): UrlPath<(String, String)>,
) -> Result<Response, ApiError> {
    if is_secret(&path) {
        access.check_token(&headers, true)?;
    }
    let kind = kind_of(&path);
    let dir = shared.incident_dir.clone();
    let opened = shared.bundle_disk.read(Box::new(move || -> std::io::Result<_> {
        let steps: Vec<&str> = std::iter::once(&*id).chain(path.split('/')).collect();
        let file = open_below(&dir, &steps, OFlags::empty())?;
        let metadata = file.metadata()?;
        if metadata.is_file() { Ok((file, metadata.len())) } else { Err(std::io::ErrorKind::NotFound.into()) }
    }));
    let (file, size) = opened.await?.map_err(|_| missing())?;
    let mut response = Body::from_stream(ReaderStream::new(tokio::fs::File::from_std(file))).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(size));
    headers.insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
    // A report shows names from a trace, which may be hostile, so it must not reach the API.
    headers.insert(
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; \
             font-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'; \
             sandbox allow-scripts allow-downloads",
        ),
    );
    Ok(response)
}

fn missing() -> ApiError {
    ApiError(StatusCode::NOT_FOUND, "there is no such file in this bundle".into())
}

/// The incidents whose bundles are in `dir` and can be read, in the order of their ids. None where there is no such
/// folder yet.
///
/// # Errors
/// The disk does not say what is in `dir`.
pub(super) fn incidents(dir: &Path) -> std::io::Result<Vec<Incident>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names: Vec<String> = entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
    names.sort_unstable();
    Ok(names.iter().rev().take(LISTED).rev().filter_map(|name| incident(dir, name)).collect())
}

/// The incident whose bundle is `dir`/`id`.
pub(super) fn incident(dir: &Path, id: &str) -> Option<Incident> {
    let file = open_below(dir, &[id, "incident.json"], OFlags::empty()).ok()?;
    let mut text = String::new();
    file.take(INCIDENT_BYTES).read_to_string(&mut text).ok()?;
    serde_json::from_slice(text.as_bytes()).ok()
}

/// Opens `steps` below `dir`, one by one.
fn open_below(dir: &Path, steps: &[&str], last: OFlags) -> std::io::Result<File> {
    let common = OFlags::RDONLY | OFlags::CLOEXEC;
    let mut at = openat(CWD, dir, common | OFlags::DIRECTORY, Mode::empty())?;
    for (n, step) in steps.iter().enumerate() {
        if step.is_empty() || step.starts_with('.') || step.contains(['/', '\0']) {
            return Err(std::io::ErrorKind::NotFound.into());
        }
        let kind = if n + 1 == steps.len() { last | OFlags::NONBLOCK } else { OFlags::DIRECTORY };
        at = openat(&at, *step, common | OFlags::NOFOLLOW | kind, Mode::empty())?;
    }
    Ok(File::from(at))
}

/// Adds the plain files below `dir` in the order of their names, without symbolic links.
fn walk(dir: &Path, prefix: &str, depth: usize, files: &mut Vec<BundleFile>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    let mut names: Vec<_> = entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
    names.sort_unstable();
    for name in names.into_iter().filter(|n| !n.starts_with('.')) {
        let Ok(metadata) = std::fs::symlink_metadata(dir.join(&name)) else { continue };
        let path = format!("{prefix}{name}");
        if metadata.is_dir() && depth > 0 {
            walk(&dir.join(&name), &format!("{path}/"), depth - 1, files);
        } else if metadata.is_file() {
            files.push(BundleFile { needs_token: is_secret(&path), path, size: metadata.len() });
        }
    }
}

fn kind_of(path: &str) -> &'static str {
    match path.rsplit('.').next().unwrap_or_default() {
        "html" => "text/html; charset=utf-8",
        "json" => "application/json",
        "jsonl" | "log" | "txt" | "md" | "csv" => "text/plain; charset=utf-8",
        "gz" => "application/gzip",
        _ => "application/octet-stream",
    }
}
