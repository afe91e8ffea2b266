//! `store`, `pool` and `upload`: where the incidents of a fleet are brought together.

use std::time::Duration;

#[cfg(test)]
use schemars::JsonSchema;
use serde::Deserialize;

use super::de::Field;
use super::diagnostic::Findings;
use super::effective::Settings;
use super::quantity::{Bytes, Span};
use super::secret::{is_url, masked};

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

/// Where the lease of the pool is kept, if not in the store.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct LeaseText {
    /// In an object `Lease` of Kubernetes.
    #[cfg_attr(test, schemars(extend("x-required" = true)))]
    kubernetes: Field<KubernetesLeaseText>,
}

/// An object `Lease` of Kubernetes.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct KubernetesLeaseText {
    /// Its name. Default: `skewtrap-` and the name of the pool.
    name: Field<String>,
    /// Its namespace. Default: the agent's own.
    namespace: Field<String>,
    /// The address of the API, as `kubectl proxy` serves it. Default: that of the cluster in which the agent runs.
    api: Field<String>,
}

/// An object `Lease` of Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesLease {
    /// Its name.
    pub name: String,
    /// Its namespace; `None` for the agent's own.
    pub namespace: Option<String>,
    /// The API; `None` for that of the cluster.
    pub api: Option<String>,
}

/// The `Lease` that is named.
fn lease_of(field: &Field<LeaseText>, pool: &str, findings: &mut Findings<'_>) -> Option<KubernetesLease> {
    let (text, at) = field.placed()?;
    let Some(text) = text.kubernetes.get() else {
        let hint = "write `lease: { kubernetes: {} }`, or leave it out: then the lease is in the store";
        findings.error(at, "`lease` names no place", Some(hint.into()));
        return None;
    };
    let name = text.name.get().cloned().unwrap_or_else(|| format!("skewtrap-{pool}"));
    let is_name = |name: &str| {
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
        name.len() <= 253
            && name.chars().all(allowed)
            && ends(name.chars().next())
            && ends(name.chars().last())
    };
    if !is_name(&name) {
        let hint = "write `name:` with small letters, digits, `-` and `.`";
        findings.error(at, format!("`{name}` is no name of an object of Kubernetes"), Some(hint.into()));
        return None;
    }
    let namespace = text.namespace.get().cloned();
    if let Some(odd) = namespace.as_deref().filter(|name| !is_name(name)) {
        findings.error(at, format!("`{odd}` is no name of a namespace of Kubernetes"), None);
        return None;
    }
    if let Some(api) = text.api.get().filter(|api| !is_url(api)) {
        let hint = "write `api: http://127.0.0.1:8001`, as `kubectl proxy` serves it";
        findings.error_hiding_line(at, format!("`{}` is no address", masked(api)), Some(hint.into()));
        return None;
    }
    let api = text.api.get().map(|api| api.trim_end_matches('/').to_owned());
    Some(KubernetesLease { name, namespace, api })
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
    /// Where the lease of the pool is; `None` for the store.
    pub lease: Option<KubernetesLease>,
    /// The most bytes a second.
    pub rate: Option<u64>,
    /// How old an incident is when its uploaded bundle is deleted here.
    pub keep_local: Option<Duration>,
    /// Whether traces, evidence and logs are uploaded.
    pub raw: bool,
    /// Whether reports of Nsight Systems are uploaded.
    pub secrets: bool,
}

impl StoreConfig {
    /// A store and a pool, and everything else as it is where nobody says otherwise.
    pub fn of(address: &str, pool: &str) -> Self {
        Self {
            address: address.to_owned(),
            pool: pool.to_owned(),
            on_lease_loss: OnLeaseLoss::default(),
            lease: None,
            rate: None,
            keep_local: None,
            raw: false,
            secrets: false,
        }
    }
}

/// Beginnings of addresses.
const SCHEMES: [&str; 4] = ["s3://", "gs://", "az://", "file:///"];
/// The pool of agents that name none.
pub const DEFAULT_POOL: &str = "default";

/// The store of a configuration, if it names one.
pub(super) fn store_of(
    store: &Field<String>,
    pool: &Field<String>,
    (upload, on_lease_loss, lease): (&Field<UploadText>, &Field<OnLeaseLoss>, &Field<LeaseText>),
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
    let loss_place = on_lease_loss.place();
    let on_lease_loss = settings.resolve("on_lease_loss", on_lease_loss, OnLeaseLoss::default());
    let lease_place = lease.place();
    let lease = lease_of(lease, &named, findings);
    let in_kubernetes = lease.as_ref().map(|lease| format!("the Lease {} of Kubernetes", lease.name));
    settings.record_option("lease", in_kubernetes, lease_place);
    let Some((address, place)) = store.placed() else {
        if let Some(place) = lease_place {
            let hint = "name one: `store: s3://BUCKET/PREFIX`";
            findings.error(place, "`lease` is that of a pool, which needs a `store`", Some(hint.into()));
        }
        for (key, place) in
            [("upload", upload.place()), ("pool", pool.place()), ("on_lease_loss", loss_place)]
        {
            // A `lease` without a store is an error that says the same.
            if let (Some(place), None) = (place, lease_place) {
                let hint = "name one: `store: s3://BUCKET/PREFIX`";
                findings.warn(place, format!("`{key}` has no effect without `store`"), Some(hint.into()));
            }
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
        lease,
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
