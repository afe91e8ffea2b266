//! What `deploy/` ships fits what the agent is: configurations load, metrics exist and are documented.

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
        "kubernetes/components/example/skewtrap.yaml",
        "kubernetes/components/example/node.yaml",
        "slurm/skewtrap.yaml",
        "slurm/node.yaml",
        "systemd/skewtrap.yaml",
        "examples/full.yaml",
        "examples/dp8.yaml",
        "examples/tp8.yaml",
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

#[test]
fn the_words_for_why_a_window_is_refused_are_documented_and_no_other() {
    let root = deploy().join("..");
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let words = |pattern: &str, text: &str| -> BTreeSet<String> {
        Regex::new(pattern).unwrap().captures_iter(text).map(|found| found[1].to_owned()).collect()
    };
    // The words stand with the refusals, in one file of theirs or another.
    let folder = "crates/core/src/capture/refusal";
    let mut source = read(&format!("{folder}.rs"));
    for entry in std::fs::read_dir(root.join(folder)).into_iter().flatten().flatten() {
        source.push_str(&std::fs::read_to_string(entry.path()).unwrap());
    }
    let known = words(r#"(?:=>|: &str =) "([a-z_0-9]+)"[,;]"#, &source);
    let docs = read("docs/api.md");
    let section = docs.split("### Why a window is refused").nth(1).unwrap();
    let rows: Vec<&str> = section.lines().filter_map(|l| l.strip_prefix("| ")?.split(" | ").next()).collect();
    assert!(known.len() > 25, "{known:?}");
    assert_eq!(words("`([a-z_0-9]+)`", &rows.join(" ")), known);
}
