//! The agent's own token and its address, for everybody who can read its state folder: `skewtrap capture`, `silence`
//! and the like work on the same machine without any configuration.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::http::Secret;
use crate::http::secret::SecretError;
use skewtrap_trace::hex;

const ADDRESS: &str = "api-address";

/// The token's file.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("api-token")
}

/// The token of `state_dir`. Where there is none it is created: 256 random bits, readable by its owner
/// only.
///
/// # Errors
/// The folder cannot be written or the file cannot be read.
pub fn own(state_dir: &Path) -> Result<Secret, SecretError> {
    let path = path(state_dir);
    if let Ok(token) = Secret::from_file(&path) {
        return Ok(token);
    }
    let text = random().and_then(|text| write(&path, &text).map(|()| text));
    text.map(Secret::new).map_err(|source| SecretError::File { path: path.display().to_string(), source })
}

/// Keeps where the agent listens, for [`address`]; nothing where it does not.
///
/// # Errors
/// The folder cannot be written.
pub fn keep_address(state_dir: &Path, listens: Option<SocketAddr>) -> io::Result<()> {
    let path = state_dir.join(ADDRESS);
    match listens {
        Some(listens) => write(&path, &listens.to_string()),
        None => std::fs::remove_file(path),
    }
}

/// Where the agent of that folder listens, or listened last.
pub fn address(state_dir: &Path) -> Option<String> {
    let text = std::fs::read_to_string(state_dir.join(ADDRESS)).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// Writes a file completely or not at all, so that a crash leaves no empty one.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let draft = path.with_extension("new");
    let _ = std::fs::remove_file(&draft);
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?.write_all(text.as_bytes())?;
    std::fs::rename(draft, path)
}

fn random() -> io::Result<String> {
    let mut bytes = [0; 32];
    let random = rustls::crypto::ring::default_provider().secure_random;
    random.fill(&mut bytes).map_err(|_| io::Error::other("the machine gives no random bits"))?;
    Ok(hex(&bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_token_is_made_once_and_only_its_owner_reads_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let first = own(dir.path()).expect("it is made");
        assert_eq!(first.reveal().len(), 64);
        assert_eq!(own(dir.path()).expect("it is read").reveal(), first.reveal());
        let mode = std::fs::metadata(path(dir.path())).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn where_the_agent_listens_is_known_by_its_folder() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(address(dir.path()), None);
        for listens in ["127.0.0.1:9464", "0.0.0.0:9500"] {
            keep_address(dir.path(), listens.parse().ok()).expect("it is written");
            assert_eq!(address(dir.path()).as_deref(), Some(listens));
        }
        keep_address(dir.path(), None).expect("it is removed");
        assert_eq!(address(dir.path()), None, "another agent may listen there");
    }
}
