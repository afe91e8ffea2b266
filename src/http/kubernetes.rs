//! How the API of Kubernetes is reached: that of the cluster in which the agent runs, as its service account, or one
//! that is named (`kubectl proxy`).

use std::path::{Path, PathBuf};

use thiserror::Error;

use super::Secret;

/// Where a pod finds its own identity.
pub const IDENTITY: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The agent runs in no pod, and no API is named.
#[derive(Debug, Error)]
#[error(
    "the agent runs in no pod of Kubernetes ({0}): give `api:`, as `kubectl proxy` serves it, or let it run in the cluster"
)]
pub struct NoPod(String);

/// The API, and as whom it is asked.
#[derive(Clone, Debug)]
pub struct Api {
    /// Its address, without a slash at its end.
    pub address: String,
    /// The file of the cluster's authority.
    pub authorities: Option<PathBuf>,
    /// The token. It is renewed every hour, so it is to be read each time.
    pub token: Option<Secret>,
    /// The namespace that was named, else the agent's own.
    pub namespace: String,
}

impl Api {
    /// The API at `api`, or that of the cluster, as it is reached now; `identity` is [`IDENTITY`].
    ///
    /// # Errors
    /// Neither is there.
    pub fn now(api: Option<&str>, namespace: Option<&str>, identity: &Path) -> Result<Self, NoPod> {
        let read =
            |file: &str| std::fs::read_to_string(identity.join(file)).map(|text| text.trim().to_owned());
        let namespace = match (namespace, read("namespace")) {
            (Some(namespace), _) => namespace.to_owned(),
            (None, Ok(namespace)) if !namespace.is_empty() => namespace,
            (None, _) if api.is_some() => "default".to_owned(),
            (None, _) => return Err(NoPod(format!("there is no {}/namespace", identity.display()))),
        };
        let (address, authorities) = match api {
            Some(api) => (api.to_owned(), None),
            None => {
                let variable =
                    |name: &str| std::env::var(name).map_err(|_| NoPod(format!("{name} is not set")));
                let (host, port) =
                    (variable("KUBERNETES_SERVICE_HOST")?, variable("KUBERNETES_SERVICE_PORT")?);
                let host = if host.contains(':') { format!("[{host}]") } else { host };
                (format!("https://{host}:{port}"), Some(identity.join("ca.crt")))
            }
        };
        let token = read("token").ok().filter(|token| !token.is_empty()).map(|token| Secret::new(&*token));
        Ok(Self { address, authorities, token, namespace })
    }
}
