//! References to secrets. A configuration never holds a secret itself: it would end up in a repository,
//! a ticket or a screenshot. The shell resolves the references.

use std::fmt;

#[cfg(test)]
use schemars::JsonSchema;
use serde::Deserialize;

use super::de::{Field, TextOr};
use super::diagnostic::Findings;
use skewtrap_core::printable::{LIMIT, printable};

/// `{ env: NAME }` or `{ file: PATH }`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum SecretText {
    /// The name of an environment variable.
    Env(String),
    /// The path of a file; its first line without the newline. A relative path starts from the folder of the file that
    /// names it.
    File(String),
}

/// A checked reference to a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretRef {
    /// In this environment variable.
    Env(String),
    /// In this file, as seen from the agent's working folder.
    File(String),
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "{{env: {name}}}"),
            Self::File(path) => write!(f, "{{file: {path}}}"),
        }
    }
}

/// An address, which may itself be a secret: written out, or as a reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Written out.
    Plain(String),
    /// In the environment or in a file.
    Secret(SecretRef),
}

impl fmt::Display for Address {
    /// For people; never the secret itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(url) => f.write_str(url),
            Self::Secret(place) => place.fmt(f),
        }
    }
}

/// The reference as text; never the secret itself.
pub fn shown_secret(field: &Field<TextOr<SecretText>>) -> Option<String> {
    match field.get()? {
        TextOr::More(SecretText::Env(name)) => Some(SecretRef::Env(name.clone()).to_string()),
        TextOr::More(SecretText::File(path)) => Some(SecretRef::File(path.clone()).to_string()),
        TextOr::Text(_) => Some("(hidden)".into()),
    }
}

/// Checks a reference. A secret written into the file is an error whose message does not repeat it.
pub fn secret_of(
    field: &Field<TextOr<SecretText>>,
    what: &str,
    findings: &mut Findings<'_>,
) -> Option<SecretRef> {
    match field.placed()? {
        (TextOr::More(text), _) => Some(SecretRef::named_in(text, findings)),
        (TextOr::Text(_), place) => {
            let hint = "write `{ env: NAME }` or `{ file: PATH }`, and change the one that stood here";
            findings.error_hiding_line(
                place,
                format!("{what} is a secret and must not stand in the file"),
                Some(hint.into()),
            );
            None
        }
    }
}

/// Checks an address; one that is written out must be an HTTP URL.
pub fn address_of(
    field: &Field<TextOr<SecretText>>,
    what: &str,
    findings: &mut Findings<'_>,
) -> Option<Address> {
    match field.placed()? {
        (TextOr::More(text), _) => Some(Address::Secret(SecretRef::named_in(text, findings))),
        (TextOr::Text(url), place) => {
            if !is_url(url) {
                let message = format!("{what} is no address: `http://host:port/path` is wanted");
                let hint = scheme_hint(url);
                match url.contains('@') {
                    true => findings.error_hiding_line(place, message, hint),
                    false => findings.error(place, message, hint),
                }
                return None;
            }
            Some(Address::Plain(url.clone()))
        }
    }
}

/// Whether `url` is `http(s)://host...` with a valid port, if any, and without credentials.
pub fn is_url(url: &str) -> bool {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    rest.is_some_and(|r| {
        let host = r.split('/').next().unwrap_or("");
        let behind_brackets = host.rfind(']').map_or(host, |end| &host[end + 1..]);
        let port = behind_brackets.split_once(':').map(|(_, port)| port);
        let is_port = port.is_none_or(|p| p.parse::<u16>().is_ok());
        !host.is_empty() && is_port && !host.contains('@') && !r.contains(char::is_whitespace)
    })
}

/// What to write in place of a scheme other than `http` and `https`, where the text has one.
pub fn scheme_hint(url: &str) -> Option<String> {
    let (scheme, _) = url.split_once("://")?;
    let is_scheme =
        !scheme.is_empty() && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    (is_scheme && !matches!(scheme, "http" | "https"))
        .then(|| format!("`{scheme}://` is no scheme that is spoken here: write `http://` or `https://`"))
}

/// An address as it may be shown: what stands before its `@` may be a password.
pub fn masked(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    let host = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    let shown = match host.rfind('@') {
        Some(at) => format!("***{}", &rest[at..]),
        None => rest.to_owned(),
    };
    let shown = if scheme.is_empty() { shown } else { format!("{scheme}://{shown}") };
    printable(&shown, LIMIT).into_owned()
}

impl SecretRef {
    /// The reference as seen from the agent's working folder.
    fn named_in(text: &SecretText, findings: &Findings<'_>) -> Self {
        match text {
            SecretText::Env(name) => Self::Env(name.clone()),
            SecretText::File(path) => Self::File(findings.beside(path)),
        }
    }
}

#[cfg(test)]
mod masked_tests {
    use super::masked;

    #[test]
    fn what_stands_before_the_host_is_not_shown() {
        assert_eq!(masked("http://admin:hunter2@10.0.0.7:30000/x"), "http://***@10.0.0.7:30000/x");
        assert_eq!(masked("http://a:b@c@host"), "http://***@host");
        assert_eq!(masked("admin:hunter2@host"), "***@host");
        assert_eq!(masked("10.0.0.7:30000"), "10.0.0.7:30000");
    }
}
