//! schema/openapi.json says what the agent serves: the same paths, answers of the same shape, bodies that
//! are taken.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use skewtrap_core::message::sample;

use crate::support::api::{Agent, status};

fn document() -> Value {
    serde_json::from_str(include_str!("../../../schema/openapi.json")).expect("it is JSON")
}

/// Every path of the routers in src/serve.rs, as OpenAPI writes them.
fn served() -> BTreeSet<String> {
    let source = include_str!("../../../src/serve.rs");
    let below = source.find("let v1 =").expect("the routes below /api/v1");
    let (_, routes) = source.split_at(below);
    let (v1, rest) = routes.split_once("Router::new()\n        .merge").expect("and those beside it");
    let of = |text: &str, before: &str| -> Vec<String> {
        let paths = text.split(".route(\"").skip(1).filter_map(|after| after.split('"').next());
        paths.map(|path| format!("{before}{}", path.replace("{*", "{"))).collect()
    };
    let own = rest.split(".with_state").next().unwrap_or_default();
    [of(v1, "/api/v1"), of(own, "")].concat().into_iter().collect()
}

#[test]
fn the_document_has_the_paths_that_are_served_and_no_others() {
    let document = document();
    let told: BTreeSet<String> = document["paths"].as_object().expect("paths").keys().cloned().collect();
    assert_eq!(told, served());
    assert!(told.len() > 15, "{told:?}");
}

/// Why `value` is not what `schema` says.
fn mismatch(document: &Value, schema: &Value, value: &Value, place: &str) -> Option<String> {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.trim_start_matches("#/components/schemas/");
        return mismatch(document, &document["components"]["schemas"][name], value, place);
    }
    let types = match &schema["type"] {
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        Value::String(one) => vec![one.as_str()],
        _ => Vec::new(),
    };
    let is_of = |kind: &&str| match *kind {
        "null" => value.is_null(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{place}: the test does not know the type {other}"),
    };
    if !types.is_empty() && !types.iter().any(is_of) {
        return Some(format!("{place} is {value}, not {types:?}"));
    }
    if let Some(words) = schema["enum"].as_array()
        && !words.contains(value)
    {
        return Some(format!("{place} is {value}, not one of {words:?}"));
    }
    let parts = value.as_array().into_iter().flatten().map(|v| (&schema["items"], v, format!("{place}[]")));
    if let Some(wrong) = parts.into_iter().find_map(|(s, v, at)| mismatch(document, s, v, &at)) {
        return Some(wrong);
    }
    let object = value.as_object()?;
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    if let Some(name) = required.into_iter().find(|name| !object.contains_key(*name)) {
        return Some(format!("{place} lacks {name}: {value}"));
    }
    object.iter().find_map(|(name, inner)| {
        let at = format!("{place}.{name}");
        match (&schema["properties"][name], &schema["additionalProperties"]) {
            (Value::Null, Value::Bool(false)) => Some(format!("{at} is not told of")),
            (Value::Null, Value::Object(_)) => {
                mismatch(document, &schema["additionalProperties"], inner, &at)
            }
            (Value::Null, _) => None,
            (known, _) => mismatch(document, known, inner, &at),
        }
    })
}

#[tokio::test]
async fn what_is_answered_has_the_shape_that_the_document_tells() {
    let agent = Agent::start().await;
    let document = document();
    let mut shown = status();
    let incident = sample(shown.at);
    let bundle = agent.dir.path().join("incidents").join(&*incident.id);
    std::fs::create_dir_all(&bundle).unwrap();
    std::fs::write(bundle.join("incident.json"), serde_json::to_string(&incident).unwrap()).unwrap();
    shown.incidents = vec![incident.clone()];
    agent.publisher.publish_fixed(shown);
    let mut read = 0;
    for (path, operations) in document["paths"].as_object().expect("paths") {
        let schema = &operations["get"]["responses"]["200"]["content"]["application/json"]["schema"];
        if schema.is_null() {
            continue;
        }
        let path = path.replace("{id}", &incident.id).replace("{name}", "dp-load-skew");
        let (code, body) = agent.get(&path).await;
        assert_eq!(code, 200, "{path}: {body}");
        assert_eq!(mismatch(&document, schema, &body, &path), None);
        read += 1;
    }
    assert!(read >= 8, "{read}");
    let wrong = json!({"said": 3, "incident": null});
    let said = json!({"$ref": "#/components/schemas/Said"});
    assert!(mismatch(&document, &said, &wrong, "x").is_some(), "a wrong answer is seen");
}

#[tokio::test]
async fn the_bodies_that_the_document_shows_are_taken() {
    let agent = Agent::start().await;
    let document = document();
    let mut sent = 0;
    for (path, operations) in document["paths"].as_object().expect("paths") {
        let post = &operations["post"];
        if post.is_null() {
            continue;
        }
        let url = path.replace("{id}", "20261124T034846Z-dp-load-skew-3f9a");
        let media = &post["requestBody"]["content"]["application/json"];
        let example = if media.is_null() { json!({}) } else { media["example"].clone() };
        let (code, body) = agent.post(&url, "t0ken", example.clone()).await;
        assert_eq!(code, 200, "{url} {example}: {body}");
        let answer = &post["responses"]["200"]["content"]["application/json"]["schema"];
        assert_eq!(mismatch(&document, answer, &body, path), None);
        assert_eq!(mismatch(&document, &media["schema"], &example, path), None);
        assert_eq!(agent.post(&url, "wrong", example).await.0, 401, "{url} needs the token");
        sent += 1;
    }
    assert!(sent >= 7, "{sent}");
}
