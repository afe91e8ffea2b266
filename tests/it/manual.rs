//! The manual of the rule language says what is true: its examples are right, and it leaves nothing out.

use std::collections::BTreeSet;

use serde_json::Value;
use skewtrap::cli::schema::Document;
use skewtrap::config::{file, rules, test};
use skewtrap_core::capture::CaptureSpec;
use skewtrap_core::signal::catalog::Catalog;

const MANUAL: &str = include_str!("../../rules/README.md");

/// What is wrong with rules, as the user would be told; nothing when all is well.
fn complaints_of_rules(text: &str) -> String {
    let catalog = Catalog::default();
    let loaded = rules::load([("manual", text)], &catalog, &CaptureSpec::None);
    loaded.diagnostics.iter().map(ToString::to_string).collect()
}

fn complaints_of(block: &str) -> String {
    match block.split(':').next() {
        Some("rules") => complaints_of_rules(block),
        Some("trigger") => {
            let indented = block.replace('\n', "\n    ");
            complaints_of_rules(&format!("rules:\n  - name: x\n    signal: load\n    {indented}\n"))
        }
        Some("tests") => test::load("x.test.yaml", block).1.iter().map(ToString::to_string).collect(),
        Some("signals") => {
            let loaded = file::load("manual", block, &|_| Ok(Vec::new()));
            loaded.diagnostics.iter().filter(|d| d.is_error()).map(ToString::to_string).collect()
        }
        other => panic!("a block of {other:?} in the manual, which this test does not know"),
    }
}

#[test]
fn every_block_of_the_manual_is_right() {
    let blocks: Vec<&str> =
        MANUAL.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(blocks.len() >= 4, "{blocks:?}");
    for block in blocks {
        let told = complaints_of(block);
        assert!(told.is_empty(), "{told}\nin this block of the manual:\n{block}");
    }
}

/// The cells of a table's rows whose first cell is a key.
fn rows() -> impl Iterator<Item = Vec<&'static str>> {
    let lines = MANUAL.lines().filter(|l| l.starts_with("| `"));
    lines.map(|l| l.trim_matches('|').split('|').map(str::trim).collect())
}

/// What stands between backticks in a cell.
fn quoted(cell: &str) -> Option<&str> {
    cell.strip_prefix('`')?.split('`').next()
}

#[test]
fn every_example_in_the_tables_is_right() {
    let mut tried = BTreeSet::new();
    for row in rows() {
        let Some(key) = quoted(row[0]) else { continue };
        // The example is the cell that writes the key.
        let writes =
            |text: &&str| text.starts_with(&format!("{key}:")) || text.contains(&format!("{{ {key}:"));
        let examples = row[1..].iter().filter_map(|cell| quoted(cell));
        let Some(example) = examples.filter(|e| *e != key).find(|e| writes(e) || e.starts_with("capture:"))
        else {
            continue;
        };
        let braced = if example.starts_with('{') { example.to_owned() } else { format!("{{ {example} }}") };
        let rule = |keys: &str| format!("rules:\n  - {{ name: x, signal: load, {keys} }}\n");
        let trigger = "trigger: { cv: 0.5, for: 5s }";
        let texts = [
            format!("rules:\n  - {{ name: x, signal: load, trigger: {braced} }}\n"),
            rule(&format!("{trigger}, capture: {{ http: {braced} }}")),
            rule(&format!("{trigger}, {example}")),
            rule(&format!("trigger: {{ factors: any }}, {example}")),
            format!("rules:\n  - {{ signal: load, {trigger}, {example} }}\n"),
            format!("rules:\n  - {{ name: x, {trigger}, {example} }}\n"),
            rule(example),
        ];
        let told: Vec<String> = texts.iter().map(|t| complaints_of_rules(t)).collect();
        assert!(
            told.iter().any(String::is_empty),
            "`{example}` of `{key}` is wrong everywhere:\n{}",
            told.join("\n")
        );
        tried.insert(key);
    }
    for key in ["departure", "robust_z", "rearm_after", "labels", "warmup", "command", "with_stack"] {
        assert!(tried.contains(key), "the example of `{key}` was not found among {tried:?}");
    }
}

fn keys_of(schema: &Value, into: &mut BTreeSet<String>) {
    if let Some(Value::Object(properties)) = schema.get("properties") {
        into.extend(properties.keys().cloned());
    }
    match schema {
        Value::Object(map) => map.values().for_each(|v| keys_of(v, into)),
        Value::Array(list) => list.iter().for_each(|v| keys_of(v, into)),
        _ => {}
    }
}

#[test]
fn every_key_of_rules_tests_and_summaries_is_in_its_manual() {
    let manuals = [
        (Document::Rules, MANUAL, "rules/README.md"),
        (Document::Test, MANUAL, "rules/README.md"),
        (Document::Summary, include_str!("../../docs/summary.md"), "docs/summary.md"),
    ];
    for (document, manual, name) in manuals {
        let words: BTreeSet<&str> = manual.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
        let schema: Value = serde_json::from_str(document.schema()).expect("JSON");
        let mut keys = BTreeSet::new();
        keys_of(&schema, &mut keys);
        assert!(keys.len() > 20, "{keys:?}");
        let missing: Vec<_> = keys.iter().filter(|k| !words.contains(k.as_str())).collect();
        assert!(missing.is_empty(), "{name} does not tell of {missing:?}");
    }
}

#[test]
fn every_shipped_rule_is_in_the_manual_with_when_to_use_it() {
    let listed: Vec<(bool, &str)> = rows()
        .filter(|row| row.len() == 2 && row[1].len() > 10)
        .filter_map(|row| Some((row[0].ends_with("(default)"), quoted(row[0])?)))
        .collect();
    for preset in rules::PRESETS {
        let wanted = (preset.is_default, preset.name);
        assert!(listed.contains(&wanted), "{wanted:?} is not among {listed:?}");
        let lines = preset.text.lines().map_while(|l| l.strip_prefix("#"));
        let comment = lines.collect::<String>();
        assert!(comment.contains("Use it"), "{}.yaml does not say when to use it", preset.name);
    }
}
