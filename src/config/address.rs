//! Where the agent is reached: addresses it serves on, names it is called by, the address for people.

use super::capture::texts;
use super::de::Field;
use super::diagnostic::Findings;
use super::effective::Settings;
use super::secret::masked;

/// The address of the page for people, without a slash at its end.
pub fn external_url_of(field: &Field<String>, findings: &mut Findings<'_>) -> Option<String> {
    let (url, place) = field.placed()?;
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    if !rest.is_some_and(|rest| {
        !rest.is_empty() && !rest.starts_with('/') && !rest.contains(['#', '?', ' ', '@'])
    }) {
        let hint = "write the address that people open: `https://skewtrap.example.com`, or with a path";
        let message = format!("`{}` is no address of a page", masked(url));
        match url.contains('@') {
            true => findings.error_hiding_line(place, message, Some(hint.into())),
            false => findings.error(place, message, Some(hint.into())),
        }
    }
    Some(url.trim_end_matches('/').to_owned())
}

/// Names under which the API is reached.
pub fn hosts_of(hosts: &Field<Vec<Field<String>>>, findings: &mut Findings<'_>) -> Vec<String> {
    let of_a_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    for (host, place) in hosts.get().into_iter().flatten().filter_map(Field::placed) {
        if host.is_empty() || !host.chars().all(of_a_name) {
            let hint = "write the name alone, without scheme and port: `gpu7.example.com`";
            findings.error(place, format!("`{host}` is no host name"), Some(hint.into()));
        }
    }
    texts(hosts).unwrap_or_default()
}

/// An address and port to serve on.
pub fn listen_of(
    key: &str,
    field: &Field<String>,
    default: &str,
    settings: &mut Settings,
    findings: &mut Findings<'_>,
) -> String {
    if let Some((address, place)) = field.placed()
        && address.parse::<std::net::SocketAddr>().is_err()
    {
        let hint = "write `127.0.0.1:9464`, or `0.0.0.0:9464` with a `token`";
        findings.error(place, format!("`{address}` is no address and port"), Some(hint.into()));
    }
    settings.resolve(key, field, default.to_owned())
}

#[cfg(test)]
mod tests {
    use crate::config::file::load;

    #[test]
    fn the_external_address_loses_its_slash_and_anything_but_an_address_is_refused() {
        let of = |url: &str| {
            let text = format!("targets: [{{ url: 'http://127.0.0.1:30000' }}]\nexternal_url: '{url}'\n");
            load("skewtrap.yaml", &text, &|_| Ok(Vec::new()))
        };
        let config = of("https://gpu.example.com/skewtrap/").config.expect("it is right");
        assert_eq!(config.external_url.as_deref(), Some("https://gpu.example.com/skewtrap"));
        for wrong in [
            "gpu.example.com",
            "https://",
            "https://gpu.example.com/#page",
            "https://me:hunter2@gpu.example.com",
        ] {
            let loaded = of(wrong);
            assert!(loaded.config.is_none(), "{wrong}");
            assert!(loaded.diagnostics[0].message.contains("is no address of a page"), "{wrong}");
            assert!(!loaded.diagnostics[0].to_string().contains("hunter2"), "{}", loaded.diagnostics[0]);
        }
    }
}
