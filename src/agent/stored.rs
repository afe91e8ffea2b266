//! Fetches the summaries of an incident's ranks from a store, so that `skewtrap compare s3://...` compares
//! them where it runs: a few kilobytes a rank.

use std::path::Path;

use anyhow::{Context, bail};

use super::upload;
use skewtrap_core::fleet::RECORD;
use skewtrap_trace::summary;

/// Ranks that are fetched at most: no capture has more.
const MOST: usize = 65_536;

/// Writes the summaries below `address` into `folder`; gives how many there are.
///
/// # Errors
/// The store cannot be read, or has none there, or those of several incidents.
pub async fn fetch(address: &str, folder: &Path) -> anyhow::Result<usize> {
    let store = upload::open(address)?;
    let names = store.list("").await?;
    let file = |name: &str| name.rsplit('/').next().unwrap_or(name).to_owned();
    let incidents: Vec<&String> = names.iter().filter(|name| file(name) == RECORD).collect();
    if let [first, _, ..] = incidents[..] {
        let folder = first.trim_end_matches(RECORD).trim_end_matches('/');
        bail!(
            "{address} holds {} incidents, and the ranks of one are compared: name its folder, as {}/{folder}",
            incidents.len(),
            address.trim_end_matches('/')
        );
    }
    let wanted: Vec<&String> =
        names.iter().filter(|name| summary::is_file_name(&file(name))).take(MOST).collect();
    if wanted.is_empty() {
        bail!(
            "no summary of a rank lies below {address}: an incident has them when its window was captured and compared; traces in a store are copied here first"
        );
    }
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let mut fetched = 0;
    for name in wanted {
        let Some(bytes) = store.get(name).await? else { continue };
        // `dp2/summary.json` becomes `dp2.summary.json`.
        let flat: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '.' })
            .collect();
        let path = folder.join(flat.trim_start_matches('.'));
        std::fs::write(&path, &bytes).with_context(|| format!("cannot write {}", path.display()))?;
        fetched += 1;
    }
    Ok(fetched)
}
