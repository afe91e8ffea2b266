//! The reference of `skewtrap.yaml`, written from its schema.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;

use serde_json::{Map, Value};

/// Writes the page.
struct Page<'a> {
    types: &'a Map<String, Value>,
    /// Where each mapping is described, by its keys, or its type: the path of the key that has it first.
    described: BTreeMap<String, String>,
    waiting: VecDeque<(String, &'a Value)>,
}

/// The page, in Markdown.
pub fn reference(schema: &str) -> String {
    let schema: Value = serde_json::from_str(schema).expect("a schema is JSON");
    let types = schema["$defs"].as_object().expect("the schema has types");
    let mut page = Page { types, described: BTreeMap::new(), waiting: VecDeque::new() };
    let mut text = String::from(
        "# skewtrap.yaml\n\nGenerated from the schema (`UPDATE_DOCS=1 cargo test --test it book`), which `skewtrap schema` prints for \
         editors. Every key is optional but those in bold. A duration is written \
         `5s`, `250ms`, `1m30s`, `24h` or `7d`, a size `20GiB` or `500MB`. Relative paths of this machine (rules, keys, \
         logs, certificates, folders) start from the folder of the file that names them; `output_dir` and `path_map` are the server's. \
         `skewtrap check --effective` prints what holds in the end. Rules have a \
         page of their own with examples: [rules/README.md](../../rules/README.md).\n\n## The file\n",
    );
    page.keys(&mut text, "", &schema);
    while let Some((path, mapping)) = page.waiting.pop_front() {
        writeln!(text, "\n## `{path}`\n\n{}", about(mapping)).expect("a string");
        match mapping["oneOf"].as_array() {
            Some(forms) => page.forms(&mut text, &path, forms),
            None => page.keys(&mut text, &path, mapping),
        }
    }
    text
}

impl<'a> Page<'a> {
    /// The table of a mapping's keys.
    fn keys(&mut self, text: &mut String, path: &str, mapping: &'a Value) {
        text.push_str("\n| key | value | says |\n|---|---|---|\n");
        let required: Vec<&str> =
            mapping["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let mut entries: Vec<_> = mapping["properties"].as_object().into_iter().flatten().collect();
        entries.sort_by_key(|(key, _)| (!required.contains(&key.as_str()), *key));
        for (key, value) in entries {
            let mark = if required.contains(&key.as_str()) { "**" } else { "" };
            self.row(text, path, (key, value), mark, &about(value));
        }
    }

    /// The table of what may stand in one place: words, or mappings of one key.
    fn forms(&mut self, text: &mut String, path: &str, forms: &'a [Value]) {
        text.push_str("\n| one of | value | says |\n|---|---|---|\n");
        for form in forms {
            if let Some(word) = form["const"].as_str() {
                writeln!(text, "| `{word}` | the word alone | {} |", about(form)).expect("a string");
            }
            for entry in form["properties"].as_object().into_iter().flatten() {
                self.row(text, path, entry, "", &about(form));
            }
        }
    }

    fn row(
        &mut self,
        text: &mut String,
        path: &str,
        (key, value): (&'a String, &'a Value),
        mark: &str,
        says: &str,
    ) {
        let inner = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let kind = self.kind(&inner, value);
        writeln!(text, "| {mark}`{key}`{mark} | {kind} | {} |", says.replace('|', "\\|")).expect("a string");
    }

    /// What may be written there.
    fn kind(&mut self, path: &str, value: &'a Value) -> String {
        if let Some(name) = value["$ref"].as_str().and_then(|r| r.strip_prefix("#/$defs/")) {
            return self.named(path, name, &self.types[name]);
        }
        if let Some(forms) = value["oneOf"].as_array().or_else(|| value["anyOf"].as_array()) {
            return self.one_of(path, forms);
        }
        match value["type"].as_str() {
            Some("array") => format!("list of: {}", self.kind(&format!("{path}[]"), &value["items"])),
            Some("object") if value["additionalProperties"].is_object() => {
                format!(
                    "names, each with: {}",
                    self.kind(&format!("{path}.NAME"), &value["additionalProperties"])
                )
            }
            Some("object") if value["properties"].is_object() => {
                self.section(&value["properties"].to_string(), path, value)
            }
            Some("boolean") => "`true` or `false`".into(),
            Some("integer") => "whole number".into(),
            Some("number") => "number".into(),
            Some("string") => "text".into(),
            other => panic!("{path}: the reference has no words for {other:?}: {value}"),
        }
    }

    fn named(&mut self, path: &str, name: &str, of: &'a Value) -> String {
        let is_mapping = |v: &Value| v["properties"].is_object();
        let has_mapping = of["oneOf"].as_array().is_some_and(|forms| forms.iter().any(is_mapping));
        if !is_mapping(of) && !has_mapping {
            return match (of["oneOf"].as_array(), of["description"].as_str()) {
                (Some(forms), _) => self.one_of(path, forms),
                (None, Some(said)) => {
                    // `A duration: `5s`, ...`: the examples of each would fill the page.
                    let said = said.split(':').next().unwrap_or(said);
                    one_line(said.trim_start_matches("A ").trim_end_matches('.'))
                }
                (None, None) => self.kind(path, of),
            };
        }
        // The same mapping may stand there by its name or in full.
        let mapping = match of["properties"].is_object() {
            true => of["properties"].to_string(),
            false => name.to_owned(),
        };
        self.section(&mapping, path, of)
    }

    /// A link to the section of a mapping, which is written once, where it is met first.
    fn section(&mut self, mapping: &str, path: &str, of: &'a Value) -> String {
        let place = self.described.entry(mapping.to_owned()).or_insert_with(|| {
            self.waiting.push_back((path.to_owned(), of));
            path.to_owned()
        });
        format!("[`{place}`](#{})", super::anchor(place))
    }

    fn one_of(&mut self, path: &str, forms: &'a [Value]) -> String {
        let mut words: Vec<String> = Vec::new();
        for form in forms {
            let word = match (form["const"].as_str(), form["enum"].as_array()) {
                (Some(word), _) => format!("`{word}`"),
                (None, Some(several)) => several
                    .iter()
                    .filter_map(Value::as_str)
                    .map(|w| format!("`{w}`"))
                    .collect::<Vec<_>>()
                    .join(", "),
                (None, None) => self.kind(path, form),
            };
            words.push(word);
        }
        match words.split_last() {
            Some((last, [])) => last.clone(),
            Some((last, before)) => format!("{} or {last}", before.join(", ")),
            None => String::new(),
        }
    }
}

/// The description on one line.
fn about(value: &Value) -> String {
    one_line(value["description"].as_str().unwrap_or_default())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
