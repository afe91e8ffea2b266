//! What is asked of a worker of Dynamo, which passes profile calls on to the engine that it runs.

use serde_json::json;

use super::{StartMode, StartRequest, WindowNaming, folder_of, held_for, vllm_prefix};
use crate::capture::HttpWindow;
use crate::capture::facts::{ServerFacts, ServerKind};
use crate::capture::line::Marks;
use crate::capture::preflight::Ranks;
use crate::capture::refusal::Refusal;
use crate::capture::sizing::{Sizing, SizingInputs};
use crate::capture::verify::names_of;

/// Plans a window.
pub(super) fn plan(
    spec: &HttpWindow,
    server: &ServerFacts,
    known: &SizingInputs,
    ranks: Ranks,
    naming: WindowNaming<'_>,
) -> Result<StartRequest, Refusal> {
    match server.engine {
        ServerKind::DynamoSglang => sglang(spec, server, known, ranks, naming),
        _ => vllm(spec, server, known, ranks, naming),
    }
}

/// The fields that every SGLang since 0.4.10 knows: the worker does not tell its release, and an unknown field is an
/// error there.
fn sglang(
    spec: &HttpWindow,
    server: &ServerFacts,
    known: &SizingInputs,
    ranks: Ranks,
    naming: WindowNaming<'_>,
) -> Result<StartRequest, Refusal> {
    let activities = spec.activities.clone().unwrap_or_else(|| vec!["GPU".into()]);
    let sizing = Sizing::of(spec, &activities, server, known)?;
    if !ranks.idle.is_empty() {
        return Err(Refusal::Never {
            what: format!("a window behind Dynamo while {} had no work in the last 2 s", names_of(&ranks.idle)),
            why: "only the start that waits for the next step of every rank refuses to replace somebody else's profile, and a rank without work would stay armed; it is tried again at the next firing".into(),
        });
    }
    let Some(dir) = folder_of(spec, naming) else {
        return Err(Refusal::Never {
            what: "a window behind Dynamo without a folder".into(),
            why: "the worker does not tell SGLang's release, so its files are told from others by their folder alone; set capture.output_dir to one that the worker can write to".into(),
        });
    };
    let body = json!({
        "output_dir": dir, "num_steps": sizing.steps, "start_step": 1, "activities": activities,
        "with_stack": spec.with_stack, "record_shapes": spec.record_shapes,
    });
    Ok(StartRequest {
        body: Some(body),
        folder: Some(dir.clone()),
        marks: Marks { dir: Some(dir), prefix: None, id: None },
        writes_files: activities != ["CUDA_PROFILER"],
        notes: sizing.limit_of_telling().into_iter().collect(),
        ..StartRequest::of(spec, server.engine, StartMode::Exact, ranks, sizing)
    })
}

/// Only the prefix is passed on: the window is held for the time that so many steps take, and stopped.
fn vllm(
    spec: &HttpWindow,
    server: &ServerFacts,
    known: &SizingInputs,
    ranks: Ranks,
    naming: WindowNaming<'_>,
) -> Result<StartRequest, Refusal> {
    let sizing = Sizing::of(spec, &[], server, known)?;
    let prefix = vllm_prefix(spec, naming.mark);
    let held = held_for(sizing.steps, spec.deadline);
    let mut notes: Vec<String> = sizing.limit_of_telling().into_iter().collect();
    notes.push("vLLM writes to the folder that it was launched with".into());
    notes.push(format!(
        "Dynamo passes no number of steps on to vLLM: its window is held for {} ms",
        held.as_millis()
    ));
    Ok(StartRequest {
        body: Some(json!({"profile_prefix": prefix})),
        folder: spec.output_dir.clone().or_else(|| naming.output_dir.map(str::to_owned)),
        marks: Marks { dir: None, prefix: Some(prefix), id: None },
        hold: (!spec.until_cleared).then_some(held),
        notes,
        ..StartRequest::of(spec, server.engine, StartMode::Held, ranks, sizing)
    })
}
