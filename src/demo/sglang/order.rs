//! The body of `/start_profile`, read the way pydantic reads it: unknown fields ignored, numbers
//! in quotes accepted, everything else that does not fit refused with its message.

use serde_json::{Value, json};

use crate::demo::exchange::Response;
use crate::demo::sglang::config::Version;

/// A profile request of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// The folder, as the server sees it.
    pub output_dir: Option<String>,
    /// Steps per rank.
    pub num_steps: Option<u64>,
    /// The absolute step at which it begins.
    pub start_step: Option<u64>,
    /// `CPU`, `GPU`, ...
    pub activities: Option<Vec<String>>,
    /// Python stacks; on by default.
    pub with_stack: Option<bool>,
    /// Tensor shapes.
    pub record_shapes: Option<bool>,
    /// Separate files for prefill and decode.
    pub profile_by_stage: bool,
    /// One merged file.
    pub merge_profiles: bool,
    /// Front of the file names.
    pub profile_prefix: Option<String>,
    /// Middle of the file names: the client's, else the server's clock.
    pub profile_id: Option<String>,
}

impl Order {
    /// Reads a body as the given release does.
    ///
    /// # Errors
    /// The server's 400.
    pub fn read(body: &[u8], version: Version) -> Result<Self, Response> {
        if body.is_empty() {
            return Ok(Self::default());
        }
        let body: Value = serde_json::from_slice(body).map_err(|_| not_json())?;
        let since = |v: Version, value: Value| if version >= v { value } else { Value::Null };
        Ok(Self {
            output_dir: text(&body, "output_dir")?,
            num_steps: number(&body, "num_steps")?,
            start_step: if version >= Version::V0_5_3 { number(&body, "start_step")? } else { None },
            activities: body["activities"]
                .as_array()
                .map(|a| a.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()),
            with_stack: body["with_stack"].as_bool(),
            record_shapes: body["record_shapes"].as_bool(),
            profile_by_stage: body["profile_by_stage"].as_bool().unwrap_or(false),
            merge_profiles: since(Version::V0_5_9, body["merge_profiles"].clone()).as_bool().unwrap_or(false),
            profile_prefix: if version >= Version::V0_5_9 { text(&body, "profile_prefix")? } else { None },
            profile_id: if version >= Version::V0_5_16 { text(&body, "profile_id")? } else { None },
        })
    }

    /// Whether torch's profiler records anything for these activities.
    pub fn records_a_trace(&self) -> bool {
        self.has(&["CPU", "GPU", "XPU"])
    }

    /// Whether anything is started; unknown activities start nothing, without an error.
    pub fn starts_anything(&self) -> bool {
        self.has(&["CPU", "GPU", "XPU", "MEM", "RPD", "CUDA_PROFILER"])
    }

    /// Whether Python stacks are recorded: on by default.
    pub fn with_stack(&self) -> bool {
        self.with_stack.unwrap_or(true)
    }

    /// How many times as many bytes a step takes as with GPU rows alone.
    pub fn weight(&self) -> f64 {
        match self.with_stack() {
            true => 13.0,
            false if self.records_cpu() => 2.5,
            false => 1.0,
        }
    }

    /// Whether it records what the host does.
    pub fn records_cpu(&self) -> bool {
        self.has(&["CPU"])
    }

    /// The id; empty before the server has chosen one.
    pub fn id(&self) -> &str {
        self.profile_id.as_deref().unwrap_or_default()
    }

    fn has(&self, known: &[&str]) -> bool {
        self.activities.as_ref().is_none_or(|list| list.iter().any(|a| known.contains(&a.as_str())))
    }
}

fn text(body: &Value, field: &str) -> Result<Option<String>, Response> {
    match &body[field] {
        Value::Null => Ok(None),
        Value::String(s) => Ok(Some(s.clone())),
        other => Err(bad_request(&format!(
            "[{{'type': 'string_type', 'loc': ('body', '{field}'), 'msg': 'Input should be a valid string', 'input': {other}}}]"
        ))),
    }
}

fn number(body: &Value, field: &str) -> Result<Option<u64>, Response> {
    let value = match &body[field] {
        Value::Null => return Ok(None),
        Value::Number(n) => n.as_u64(),
        Value::String(s) => s.trim().parse().ok(),
        _ => None,
    };
    value.map(Some).ok_or_else(|| {
        bad_request(&format!(
            "[{{'type': 'int_parsing', 'loc': ('body', '{field}'), 'msg': 'Input should be a valid integer, unable to parse string as an integer', 'input': {}}}]",
            body[field]
        ))
    })
}

fn not_json() -> Response {
    bad_request(
        "[{'type': 'json_invalid', 'loc': ('body', 1), 'msg': 'JSON decode error', 'input': {}, 'ctx': {'error': 'Expecting property name enclosed in double quotes'}}]",
    )
}

fn bad_request(message: &str) -> Response {
    Response::json(
        400,
        &json!({"object": "error", "message": message, "type": "Bad Request", "param": null, "code": 400}),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_is_no_json_or_holds_a_wrong_type_is_400_and_unknown_fields_are_ignored() {
        let status =
            |body: &str| Order::read(body.as_bytes(), Version::V0_5_16).map_err(|r| r.status).map(|_| ());
        assert_eq!(status("{num_steps"), Err(400));
        assert_eq!(status(r#"{"num_steps":"abc"}"#), Err(400));
        assert_eq!(status(r#"{"num_steps":"7","colour":"blue"}"#), Ok(()));
        assert_eq!(status(""), Ok(()));
    }

    #[test]
    fn an_older_release_does_not_know_the_newer_fields() {
        let body = br#"{"start_step":1,"profile_prefix":"p","profile_id":"i","merge_profiles":true}"#;
        let old = Order::read(body, Version::V0_4_7).unwrap();
        assert_eq!(old, Order::default());
        let middle = Order::read(body, Version::V0_5_9).unwrap();
        assert_eq!(
            (middle.start_step, middle.profile_prefix.as_deref(), middle.profile_id),
            (Some(1), Some("p"), None)
        );
    }
}
