//! What `deploy/` ships fits what the agent is: configurations load, metrics exist.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use regex::Regex;
use skewtrap::config::file::load;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

#[test]
fn every_configuration_loads_without_an_error() {
    let files = [
        "docker/skewtrap.yaml",
        "kubernetes/sidecar/skewtrap.yaml",
        "kubernetes/nsys/skewtrap.yaml",
        "systemd/skewtrap.yaml",
        "examples/full.yaml",
    ];
    for file in files {
        let text = std::fs::read_to_string(deploy().join(file)).unwrap();
        let loaded = load(file, &text, &|path| Err(format!("{path} is not part of the example")));
        assert!(loaded.config.is_some(), "{file}: {:#?}", loaded.diagnostics);
    }
}

#[test]
fn the_alerts_and_the_dashboard_ask_for_metrics_that_exist() {
    let docs = std::fs::read_to_string(deploy().join("../docs/api.md")).unwrap();
    let name = Regex::new(r"\b(skewtrap|process)_[a-z_]+").unwrap();
    let mut asked = BTreeSet::new();
    for file in ["prometheus/alerts.yaml", "grafana/skewtrap.json"] {
        let text = std::fs::read_to_string(deploy().join(file)).unwrap();
        asked.extend(name.find_iter(&text).map(|m| m.as_str().to_owned()));
    }
    assert!(asked.len() > 15, "{asked:?}");
    let unknown: Vec<&String> = asked.iter().filter(|n| !docs.contains(&format!("| `{n}` |"))).collect();
    assert!(unknown.is_empty(), "docs/api.md lists none of {unknown:?}");
}
