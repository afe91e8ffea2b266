//! What is asked of TensorRT-LLM: a window that ends by its steps, in a folder of its own, for its files bear no mark.

use serde_json::json;

use super::{StartMode, StartRequest, WindowNaming, folder_of};
use crate::capture::HttpWindow;
use crate::capture::facts::{Facts, ServerFacts};
use crate::capture::line::Marks;
use crate::capture::preflight::Ranks;
use crate::capture::refusal::Refusal;
use crate::capture::sizing::{Sizing, SizingInputs};

/// Plans a window. A start over an open window is refused by the server (409), `num_steps` ends it on every rank, and
/// a stop at the deadline closes one whose steps never came: there it is only pending.
pub(super) fn plan(
    spec: &HttpWindow,
    facts: &Facts,
    server: &ServerFacts,
    known: &SizingInputs,
    ranks: Ranks,
    naming: WindowNaming<'_>,
) -> Result<StartRequest, Refusal> {
    let Some(dir) = folder_of(spec, naming) else {
        return Err(Refusal::Never {
            what: "a window of TensorRT-LLM without a folder".into(),
            why: "its files bear no mark of the window, so they are told from others by their folder alone; set capture.output_dir to one that the server can write to on every node".into(),
        });
    };
    let base = spec.output_dir.as_deref().or(naming.output_dir).unwrap_or_default();
    let is_base = |path: &str| path.trim_end_matches('/') == base.trim_end_matches('/');
    let is_seen = facts.folders.iter().any(|f| is_base(&f.server_path) && f.seen.is_some_and(|r| r.exists));
    if !is_seen {
        return Err(Refusal::Never {
            what: format!("a window of TensorRT-LLM whose folder {base} the agent does not see"),
            why: "only its files show that it has ended, and a stop after that may end somebody else's; mount the folder where the agent runs, declare path_map where it has another path there, and set it as capture.output_dir".into(),
        });
    }
    let activities = spec.activities.clone().unwrap_or_else(|| vec!["GPU".into()]);
    let sizing = Sizing::of(spec, &activities, server, known)?;
    let writes_files = activities != ["CUDA_PROFILER"];
    let mut notes = vec!["TensorRT-LLM's profile calls are a prototype of its PyTorch backend; other backends answer with success and write nothing".to_owned()];
    notes.extend(sizing.limit_of_telling());
    Ok(StartRequest {
        body: Some(json!({"output_dir": dir, "num_steps": sizing.steps, "activities": activities})),
        folder: Some(dir.clone()),
        marks: Marks { dir: Some(dir), prefix: None, id: None },
        writes_files,
        notes,
        ..StartRequest::of(spec, server.engine, StartMode::Plain, ranks, sizing)
    })
}
