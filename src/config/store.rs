//! `store`, `pool` and `upload`: where the incidents of a fleet are brought together.

use std::time::Duration;

#[cfg(test)]
use schemars::JsonSchema;
use serde::Deserialize;

use super::de::Field;
use super::diagnostic::Findings;
use super::effective::Settings;
use super::quantity::{Bytes, Span};

/// What is uploaded, and how fast.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct UploadText {
    /// The most bytes a second. Default: no bound.
    rate: Field<Bytes>,
    /// An uploaded bundle is deleted here when its incident is this old; pinned ones stay. Default: as `keep` says.
    keep_local: Field<Span>,
    /// Upload traces, evidence, text of logs and what was said to the server, too: they may hold what users
    /// wrote. Default false.
    raw: Field<bool>,
    /// Upload reports of Nsight Systems, too: they hold the environment and the output of the server. Default false.
    secrets: Field<bool>,
}

/// What becomes of windows when the store does not say whether another agent of the pool has one open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnLeaseLoss {
    /// None is opened before it can be told.
    #[default]
    Refuse,
    /// They are opened by the agent's own budget: then several may be open in the pool at once.
    LocalBudget,
}

impl std::fmt::Display for OnLeaseLoss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Refuse => "refuse",
            Self::LocalBudget => "local_budget",
        })
    }
}

/// Where incidents are uploaded, and what of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// Address of the store.
    pub address: String,
    /// The pool that this agent belongs to.
    pub pool: String,
    /// What becomes of windows when the store is away.
    pub on_lease_loss: OnLeaseLoss,
    /// The most bytes a second.
    pub rate: Option<u64>,
    /// How old an incident is when its uploaded bundle is deleted here.
    pub keep_local: Option<Duration>,
    /// Whether traces, evidence and logs are uploaded.
    pub raw: bool,
    /// Whether reports of Nsight Systems are uploaded.
    pub secrets: bool,
}

/// Beginnings of addresses.
const SCHEMES: [&str; 4] = ["s3://", "gs://", "az://", "file:///"];
/// The pool of agents that name none.
pub const DEFAULT_POOL: &str = "default";

/// The store of a configuration, if it names one.
pub(super) fn store_of(
    store: &Field<String>,
    pool: &Field<String>,
    (upload, on_lease_loss): (&Field<UploadText>, &Field<OnLeaseLoss>),
    settings: &mut Settings,
    findings: &mut Findings<'_>,
) -> Option<StoreConfig> {
    settings.record_option("store", store.get().filter(|a| !has_credentials(a)), store.place());
    let named = settings.resolve("pool", pool, DEFAULT_POOL.to_owned());
    if let (Some(place), false) = (pool.place(), is_pool_name(&named)) {
        let hint = "a pool is named by letters, digits, `-`, `_` and `.`";
        findings.error(place, format!("`{named}` is no name of a pool"), Some(hint.into()));
    }
    let text = upload.get().cloned().unwrap_or_default();
    let rate = optional(settings, "upload.rate", &text.rate).map(|b| b.0);
    let keep_local = optional(settings, "upload.keep_local", &text.keep_local).map(|s| s.0);
    let raw = settings.resolve("upload.raw", &text.raw, false);
    let secrets = settings.resolve("upload.secrets", &text.secrets, false);
    let on_lease_loss = settings.resolve("on_lease_loss", on_lease_loss, OnLeaseLoss::default());
    let Some((address, place)) = store.placed() else {
        if let Some(place) = upload.place() {
            let hint = "name one: `store: s3://BUCKET/PREFIX`";
            findings.warn(place, "`upload` says how, but there is no `store`", Some(hint.into()));
        }
        return None;
    };
    if let Err(why) = check_address(address) {
        let hint = "write s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///FOLDER";
        findings.error_hiding_line(place, why, Some(hint.into()));
    }
    if cfg!(not(feature = "fleet")) {
        let hint = "take a package, or build it with `--features fleet`";
        findings.warn(
            place,
            "this skewtrap was built without stores: incidents stay here",
            Some(hint.into()),
        );
    }
    Some(StoreConfig {
        address: address.trim_end_matches('/').to_owned(),
        pool: named,
        on_lease_loss,
        rate,
        keep_local,
        raw,
        secrets,
    })
}

fn optional<T: Clone + std::fmt::Display>(settings: &mut Settings, key: &str, field: &Field<T>) -> Option<T> {
    settings.record_option(key, field.get(), field.place());
    field.get().cloned()
}

fn is_pool_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name.len() <= 100 && !name.starts_with('.') && name.chars().all(allowed)
}

fn has_credentials(address: &str) -> bool {
    address.contains(['@', '?'])
}

/// Whether a text begins as the address of a store.
pub fn is_store(text: &str) -> bool {
    SCHEMES.iter().any(|scheme| text.starts_with(scheme))
}

/// Whether an address is one of a store. One with credentials is not repeated.
fn check_address(address: &str) -> Result<(), String> {
    if has_credentials(address) {
        return Err(
            "the address of the store has credentials or parameters; they belong into the environment".into(),
        );
    }
    match SCHEMES.iter().find_map(|scheme| address.strip_prefix(scheme)) {
        None => Err(format!("`{address}` is no address of a store")),
        Some("") => Err(format!("`{address}` names no bucket and no folder")),
        Some(_) => Ok(()),
    }
}
