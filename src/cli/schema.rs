//! `skewtrap schema`: JSON Schema for editors, written from the types that parse.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
/// Prints the JSON Schema of a file, for editors and validators.
#[derive(Debug, Args)]
pub struct SchemaArgs {
    /// Of which file.
    #[arg(value_enum, default_value_t = Document::Config)]
    document: Document,
}

/// The kinds of files that have a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Document {
    /// `skewtrap.yaml`.
    Config,
    /// A file of rules.
    Rules,
    /// `x.test.yaml`.
    Test,
    /// `RANK.summary.json`, which `skewtrap compare` writes and reads.
    Summary,
}

impl Document {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Config, Self::Rules, Self::Test, Self::Summary];

    /// The path of its schema in the repository.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Config => "schema/skewtrap.schema.json",
            Self::Rules => "schema/rules.schema.json",
            Self::Test => "schema/test.schema.json",
            Self::Summary => "schema/summary.schema.json",
        }
    }

    /// Its schema.
    pub const fn schema(self) -> &'static str {
        match self {
            Self::Config => include_str!("../../schema/skewtrap.schema.json"),
            Self::Rules => include_str!("../../schema/rules.schema.json"),
            Self::Test => include_str!("../../schema/test.schema.json"),
            Self::Summary => include_str!("../../schema/summary.schema.json"),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// None.
pub fn run(args: &SchemaArgs) -> anyhow::Result<ExitCode> {
    out!("{}", args.document.schema())?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use schemars::{JsonSchema, SchemaGenerator};
    use serde_json::{Map, Value};

    use super::*;
    use crate::config::file::FileText;
    use crate::config::rules::RulesText;
    use crate::config::test::TestFileText;
    use skewtrap_trace::summary::SummaryText;

    /// The schema of the types that parse.
    fn of_types(document: Document) -> String {
        match document {
            Document::Config => text_of::<FileText>("config", "skewtrap.yaml"),
            Document::Rules => text_of::<RulesText>("rules", "skewtrap rules"),
            Document::Test => text_of::<TestFileText>("test", "skewtrap rule tests"),
            Document::Summary => text_of::<SummaryText>("summary", "skewtrap summary of a rank"),
        }
    }

    fn text_of<T: JsonSchema>(name: &str, title: &str) -> String {
        let mut schema = SchemaGenerator::default().into_root_schema_for::<T>();
        require(schema.as_object_mut().expect("a schema of a mapping"));
        // No address: nothing is published there, and an editor would go and look.
        schema.insert("$id".into(), format!("urn:skewtrap:schema:{name}").into());
        schema.insert("title".into(), title.into());
        let text = serde_json::to_string_pretty(&schema).expect("a schema is JSON");
        text + "\n"
    }

    /// `x-required` on a key makes its mapping require it. What serde may leave out, as `default` says it of all keys
    /// of a struct, schemars does not list as required, though the check insists on it.
    fn require(schema: &mut Map<String, Value>) {
        let keys = schema.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten();
        let is_marked = |of: &mut Value| of.as_object_mut().and_then(|of| of.remove("x-required")).is_some();
        let required: Vec<Value> =
            keys.filter_map(|(key, of)| is_marked(of).then(|| Value::from(key.clone()))).collect();
        if !required.is_empty() {
            schema.insert("required".into(), required.into());
        }
        for of in schema.values_mut() {
            require_within(of);
        }
    }

    fn require_within(part: &mut Value) {
        match part {
            Value::Object(schema) => require(schema),
            Value::Array(parts) => parts.iter_mut().for_each(require_within),
            _ => {}
        }
    }

    #[test]
    fn a_schema_requires_what_the_check_requires() {
        let required = |of: &str| {
            let schema: Value = serde_json::from_str(of).expect("JSON");
            let names = |at: &Value| {
                let names = at["required"].as_array().into_iter().flatten();
                names.map(|name| name.as_str().expect("a name").to_owned()).collect::<Vec<_>>()
            };
            schema["$defs"]
                .as_object()
                .expect("types")
                .iter()
                .map(|(name, of)| (name.clone(), names(of)))
                .filter(|(_, names)| !names.is_empty())
                .collect::<std::collections::BTreeMap<_, _>>()
        };
        for document in [Document::Config, Document::Rules] {
            let found = required(document.schema());
            assert_eq!(
                found.get("RuleText").map(Vec::as_slice),
                Some(&["name".to_owned(), "trigger".to_owned()][..])
            );
        }
        let found = required(Document::Config.schema());
        assert_eq!(found["PathText"], ["agent", "server"]);
        assert_eq!(found.get("TargetText"), None, "logs may stand in place of the url");
    }

    #[test]
    fn the_schemas_in_the_repository_are_those_of_the_types() {
        let updates = std::env::var_os("UPDATE_SCHEMA").is_some();
        for document in Document::ALL {
            let schema = of_types(document);
            if updates {
                let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(document.path());
                std::fs::write(path, &schema).expect("the schema can be written");
                continue;
            }
            let advice = "the types have changed; run `UPDATE_SCHEMA=1 cargo test --lib schemas`, then the tests again";
            assert!(document.schema() == schema, "{}: {advice}", document.path());
        }
    }
}
