//! What must not be asked of a profiler: bounds that cannot be lifted, and the dangers that the
//! engines' own sources and issue trackers know, each with its name in `accept_risk`.

use std::time::Duration;

use crate::amount::Span;
use crate::capture::HttpWindow;
use crate::capture::facts::{Role, ServerFacts, ServerKind, Version};
use crate::capture::refusal::Refusal;
use crate::capture::size::MAX_STALL;

/// No window has more steps.
pub const MAX_STEPS: u32 = 1000;
/// No window stays open longer.
pub const MAX_DEADLINE: Duration = Duration::from_secs(30);

/// Activities that SGLang knows; others get a 200 and record nothing.
pub const ACTIVITIES: [&str; 6] = ["CPU", "GPU", "MEM", "RPD", "CUDA_PROFILER", "XPU"];

/// The names that `accept_risk` takes.
pub const RISKS: [&str; 6] =
    ["with_stack", "profile_by_stage", "mem_on_rocm", "start_step", "long_nsys", "server_timer"];

/// Bounds and names that hold on every server: usable when a rule is read, before any server is
/// known.
pub fn bounds(spec: &HttpWindow) -> Result<(), Refusal> {
    let never = |what: String, why: &str| Err(Refusal::Never { what, why: why.into() });
    if let Some(steps) = spec.num_steps.filter(|steps| !(1..=MAX_STEPS).contains(steps)) {
        return never(format!("num_steps: {steps}"), "a window has 1 to 1000 steps");
    }
    if let Some(stall) = spec.max_stall.filter(|stall| stall.is_zero() || *stall > MAX_STALL) {
        let what = format!("max_stall: {}", Span(stall));
        return never(what, "a window silences a rank for some time, and for at most 10 s");
    }
    if spec.deadline.is_zero() || spec.deadline > MAX_DEADLINE {
        let what = format!("deadline: {}", Span(spec.deadline));
        return never(what, "a window is closed after at most 30 s, and not at once");
    }
    let asked = spec.activities.as_deref().unwrap_or_default();
    if let Some(odd) = asked.iter().find(|a| !ACTIVITIES.contains(&a.as_str())) {
        let known = ACTIVITIES.join(", ");
        let why = format!("the server would answer 200 and record nothing; it knows {known}");
        return Err(Refusal::Never { what: format!("activities: [{odd}]"), why });
    }
    if spec.activities.as_ref().is_some_and(Vec::is_empty) {
        return never(
            "activities: []".into(),
            "the window would record nothing; leave it out for the default",
        );
    }
    if asked.iter().any(|a| a == "CUDA_PROFILER") && asked.len() > 1 {
        let why = "nsys and the torch profiler exclude each other; ask for it alone, as capture: { cuda_profiler_api: {} }";
        return never(format!("activities: [{}]", asked.join(", ")), why);
    }
    if let Some(odd) = spec.accept_risk.iter().find(|r| !RISKS.contains(&r.as_str())) {
        let why = format!("no such danger; there are {}", RISKS.join(", "));
        return Err(Refusal::Never { what: format!("accept_risk: [{odd}]"), why });
    }
    start_step(spec)
}

fn start_step(spec: &HttpWindow) -> Result<(), Refusal> {
    if spec.start_step.is_none() || accepts(spec, "start_step") {
        return Ok(());
    }
    Err(Refusal::Risk {
        what: "start_step".into(),
        why: "the server takes it as an absolute step of each rank, and one that lies ahead leaves a window that cannot be disarmed; for \"wait, then start\" use warmup: 2s",
        name: "start_step",
    })
}

/// Dangers that depend on the server.
pub fn dangers(spec: &HttpWindow, server: &ServerFacts) -> Result<(), Refusal> {
    match server.engine {
        ServerKind::Sglang => {}
        ServerKind::Vllm | ServerKind::DynamoVllm => return fixed_at_launch(spec, server.engine),
        ServerKind::TensorrtLlm => return tensorrt_llm(spec),
        ServerKind::DynamoSglang => return dynamo(spec),
    }
    if server.profile_v2 == Some(true) {
        return Err(Refusal::ProfileV2);
    }
    if server.rust_front_end {
        return Err(Refusal::Never {
            what: "a window on SGLang's Rust front end".into(),
            why: "it has no profile API; start the server without SGLANG_RUST_SERVER".into(),
        });
    }
    if spec.profile_stages.is_some() {
        return Err(Refusal::Never {
            what: "profile_stages".into(),
            why: "only SGLANG_PROFILE_V2 knows it, and its windows cannot be stopped from outside".into(),
        });
    }
    let has = |activity: &str| spec.activities.iter().flatten().any(|a| a == activity);
    let risky = |danger: bool, what: &str, why: &'static str, name: &'static str| {
        let refused = danger && !accepts(spec, name);
        if refused { Err(Refusal::Risk { what: what.into(), why, name }) } else { Ok(()) }
    };
    risky(
        spec.with_stack,
        "with_stack: true",
        "stacks fill memory without bound, stretch the export by a factor, and torch has asserted on them",
        "with_stack",
    )?;
    risky(
        has("MEM") && server.rocm != Some(false),
        "activities: [MEM] on what may be ROCm",
        "the memory recorder kills the scheduler there",
        "mem_on_rocm",
    )?;
    risky(spec.profile_by_stage, "profile_by_stage: true", by_stage_danger(server), "profile_by_stage")?;
    if has("CUDA_PROFILER") && server.version.is_some_and(|v| v < Version::new(0, 4, 10)) {
        return Err(Refusal::Never {
            what: "activities: [CUDA_PROFILER]".into(),
            why: "this SGLang neither stops nor bounds it; 0.4.10 is the first release that does".into(),
        });
    }
    Ok(())
}

fn by_stage_danger(server: &ServerFacts) -> &'static str {
    match server.role {
        Role::Decode => "a decode worker's prebuilt batches have killed the scheduler by stage until 0.5.16",
        Role::Prefill if server.sizes.dp_attention => {
            "idle batches under DP attention have killed it in 0.4.7"
        }
        Role::Prefill => "its decode counter never runs here, so the window ends only with the deadline",
        Role::Unified => {
            "on a server with prefill and decode mixed its windows end early, late or, with speculative decoding, never"
        }
    }
}

/// What the profile calls of TensorRT-LLM do not have; it always records shapes.
fn tensorrt_llm(spec: &HttpWindow) -> Result<(), Refusal> {
    let engine = "TensorRT-LLM";
    let why = "its profile calls do not have it; take it out of the rule for this server";
    without(spec, &["activities", "record_shapes"], engine, why)?;
    let known = ["CPU", "GPU", "CUDA_PROFILER"];
    if spec.activities.iter().flatten().any(|a| !known.contains(&a.as_str())) {
        let field = "activities other than CPU, GPU and CUDA_PROFILER";
        return Err(lacks(field, engine, "it records nothing of them"));
    }
    Ok(())
}

/// What may be said to an SGLang whose release is unknown, behind Dynamo.
fn dynamo(spec: &HttpWindow) -> Result<(), Refusal> {
    let why = "Dynamo does not tell which release of SGLang runs there, so whether that is safe is unknown; take it out of the rule for this server";
    without(spec, &["activities", "record_shapes"], "SGLang behind Dynamo", why)
}

fn fixed_at_launch(spec: &HttpWindow, engine: ServerKind) -> Result<(), Refusal> {
    let why = "vLLM fixes it at launch (--profiler-config); take it out of the rule for this server";
    without(spec, &["profile_prefix"], &engine.to_string(), why)
}

/// Refuses what a rule asks for beyond the number of steps and the folder, but for the fields that the engine has.
fn without(spec: &HttpWindow, has: &[&str], engine: &str, why: &str) -> Result<(), Refusal> {
    let fields = [
        ("activities", spec.activities.is_some()),
        ("with_stack", spec.with_stack),
        ("record_shapes", spec.record_shapes),
        ("profile_by_stage", spec.profile_by_stage),
        ("profile_stages", spec.profile_stages.is_some()),
        ("profile_id", spec.profile_id.is_some()),
        ("profile_prefix", spec.profile_prefix.is_some()),
        ("detailed_annotations", spec.detailed_annotations),
        ("start_step", spec.start_step.is_some()),
    ];
    match fields.into_iter().find(|(field, asked)| *asked && !has.contains(field)) {
        Some((field, _)) => Err(lacks(field, engine, why)),
        None => Ok(()),
    }
}

fn lacks(field: &str, engine: &str, why: &str) -> Refusal {
    Refusal::Never { what: format!("{field} on {engine}"), why: why.into() }
}

fn accepts(spec: &HttpWindow, name: &str) -> bool {
    spec.accept_risk.iter().any(|r| r == name)
}
