//! Secrets: texts that are never printed, from an environment variable or a file.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// A key, a token, or an address that contains a key. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

/// Why a secret could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The environment variable is not set, or is not UTF-8.
    #[error("the environment variable {name} is not set: set it to the secret, or name a file instead")]
    Env { name: String },
    /// The file cannot be read.
    #[error("the secret in {path} cannot be read: {source}; it must be readable by the agent's user")]
    File { path: String, source: std::io::Error },
    /// It is empty.
    #[error("the secret in {place} is empty")]
    Empty {
        /// The variable or the file.
        place: String,
    },
}

impl Secret {
    /// A secret with this text.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The value of an environment variable.
    ///
    /// # Errors
    /// It is not set, is not UTF-8, or is empty.
    pub fn from_env(name: &str) -> Result<Self, SecretError> {
        let text = std::env::var(name).map_err(|_| SecretError::Env { name: name.to_owned() })?;
        Self::trimmed(&text, name)
    }

    /// The content of a file, without surrounding white space.
    ///
    /// # Errors
    /// It cannot be read, or is empty.
    pub fn from_file(path: &Path) -> Result<Self, SecretError> {
        let place = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|source| SecretError::File { path: place.clone(), source })?;
        Self::trimmed(&text, &place)
    }

    /// The text itself, for sending or comparing it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    fn trimmed(text: &str, place: &str) -> Result<Self, SecretError> {
        match text.trim() {
            "" => Err(SecretError::Empty { place: place.to_owned() }),
            text => Ok(Self(text.into())),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_trimmed_and_never_printed() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("token");
        std::fs::write(&path, "s3cret\n").expect("it is written");
        let secret = Secret::from_file(&path).expect("it is read");
        assert_eq!(secret.reveal(), "s3cret");
        assert_eq!(format!("{secret:?}"), "***");
    }

    #[test]
    fn a_missing_or_empty_secret_says_where_it_was_looked_for() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("token");
        let missing = Secret::from_file(&path).expect_err("it is not there").to_string();
        assert!(missing.contains("token cannot be read"), "{missing}");
        std::fs::write(&path, " \n").expect("it is written");
        assert!(Secret::from_file(&path).expect_err("it is empty").to_string().ends_with("token is empty"));
        let unset = Secret::from_env("SKEWTRAP_NO_SUCH_VARIABLE").expect_err("it is not set").to_string();
        assert!(unset.contains("SKEWTRAP_NO_SUCH_VARIABLE is not set"), "{unset}");
    }
}
