//! What to ask of which release of which engine: one start request, bounded, with marks by which
//! its window can be recognised; or the reason why it may not be sent.
//!
//! The table of fields and the list of dangers come from the engines' own sources (docs/engines.md).

mod dynamo;
mod trtllm;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::capture::HttpWindow;
use crate::capture::captured::CaptureKind;
use crate::capture::facts::{Facts, ServerFacts, ServerKind, Version};
use crate::capture::line::Marks;
use crate::capture::preflight::{self, Ranks};
use crate::capture::refusal::Refusal;
use crate::capture::risk;
use crate::capture::sizing::{Sizing, SizingInputs};
use crate::capture::verify::names_of;
use skewtrap_trace::time::Time;

/// The deadline of a window that says nothing else.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(5);

/// `start_step` is there, and with it the refusal of double starts.
const START_STEP: Version = Version::new(0, 4, 10);
/// `num_steps` without `start_step` records one step less before this release.
const EXACT_STEPS: Version = Version::new(0, 5, 16);
/// vLLM's start takes a body.
const VLLM_BODY: Version = Version::new(0, 33, 0);

/// The fields that not every SGLang knows.
const FIELDS: [(&str, Version); 5] = [
    ("start_step", START_STEP),
    ("profile_prefix", Version::new(0, 5, 7)),
    ("profile_stages", Version::new(0, 5, 7)),
    ("profile_id", Version::new(0, 5, 15)),
    ("detailed_annotations", Version::new(0, 5, 23)),
];

/// How a start treats a window that is open already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartMode {
    /// With `start_step: 1`: refuses a double start; every rank must step, or it stays armed.
    Exact,
    /// Without: every rank begins at once, idle ones too, and a stop closes all of them.
    Plain,
    /// vLLM: closed by a stop, always.
    Held,
}

/// One start, ready to be sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartRequest {
    /// The engine whose protocol it is, and where it is posted.
    pub engine: ServerKind,
    /// Its JSON; `None` where the engine takes no body.
    pub body: Option<Value>,
    /// By what its window can be recognised.
    pub marks: Marks,
    /// The folder of its files when none is sent: the server's view, as the operator declared.
    #[serde(default)]
    pub folder: Option<String>,
    /// How it treats a window that is open already.
    pub form: StartMode,
    /// Which ranks are in the window.
    pub ranks: Ranks,
    /// A stop is sent at the latest this long after the start.
    pub deadline: Duration,
    /// A stop is sent this long after the start in any case: the engine has no bound by steps.
    pub hold: Option<Duration>,
    /// It ends when the rule clears.
    pub until_cleared: bool,
    /// Whether it writes a file per rank (nsys writes instead under `CUDA_PROFILER` alone).
    pub writes_files: bool,
    /// Whether the agent merges the files of the ranks afterwards (`merge_profiles`, never sent).
    #[serde(default)]
    pub merges: bool,
    /// What a reader of the capture should know.
    pub notes: Vec<String>,
    /// Its size, and what it is predicted to cost.
    #[serde(default)]
    pub sizing: Option<Box<Sizing>>,
}

impl StartRequest {
    /// What every engine's request takes from its rule, without a body, a mark, a folder or a note yet.
    fn of(spec: &HttpWindow, engine: ServerKind, form: StartMode, ranks: Ranks, sizing: Sizing) -> Self {
        Self {
            engine,
            body: None,
            marks: Marks::default(),
            folder: None,
            form,
            ranks,
            deadline: spec.deadline,
            hold: None,
            until_cleared: spec.until_cleared,
            writes_files: true,
            merges: spec.merge_profiles,
            notes: Vec::new(),
            sizing: Some(Box::new(sizing)),
        }
    }

    /// By what means it captures: `http`, or `cuda_profiler_api` where nsys writes the report.
    pub const fn means(&self) -> CaptureKind {
        if self.writes_files { CaptureKind::Http } else { CaptureKind::CudaProfilerApi }
    }
}

/// How the files of a window are marked, and where they may go.
#[derive(Clone, Copy, Debug)]
pub struct WindowNaming<'a> {
    /// What marks folder and file names: the incident's id, and the window's number within it.
    pub mark: &'a str,
    /// The configuration's `capture.output_dir`, server's view; the rule's own goes first.
    pub output_dir: Option<&'a str>,
}

/// Plans the window `spec` on the server of `facts`, of which `known` says what windows cost; the
/// general pre-flight is done elsewhere.
pub fn plan(
    spec: &HttpWindow,
    facts: &Facts,
    known: &SizingInputs,
    naming: WindowNaming<'_>,
    now: Time,
) -> Result<StartRequest, Refusal> {
    let server = facts.server.as_ref().ok_or_else(|| Refusal::UnknownServer { why: "it was lost".into() })?;
    risk::bounds(spec)?;
    risk::dangers(spec, server)?;
    let ranks = preflight::ranks(facts, server, now)?;
    match server.engine {
        ServerKind::Sglang => sglang(spec, (facts, known), server, ranks, naming, now),
        ServerKind::Vllm => vllm(spec, server, known, ranks, naming),
        ServerKind::TensorrtLlm => trtllm::plan(spec, facts, server, known, ranks, naming),
        ServerKind::DynamoSglang | ServerKind::DynamoVllm => dynamo::plan(spec, server, known, ranks, naming),
    }
}

fn sglang(
    spec: &HttpWindow,
    (facts, known): (&Facts, &SizingInputs),
    server: &ServerFacts,
    ranks: Ranks,
    naming: WindowNaming<'_>,
    now: Time,
) -> Result<StartRequest, Refusal> {
    let version = server.version.ok_or(Refusal::NoVersion)?;
    known_fields(spec, version)?;
    let form = form_of(server, version, &ranks);
    if form == StartMode::Plain {
        preflight::quiet(facts, now)?;
        if !facts.sees_log && version >= START_STEP {
            return Err(Refusal::NeedsLog {
                why: format!(
                    "{} had no work in the last 2 s (idle, starved or silent), so the start that refuses to replace somebody else's profile cannot be used",
                    names_of(&ranks.idle)
                ),
            });
        }
    }
    if version < START_STEP && !facts.sees_log {
        return Err(Refusal::NeedsLog {
            why: format!("SGLang {version} lets a second start destroy the first"),
        });
    }
    let marks = marks_of(spec, version, naming)?;
    let activities = activities_of(spec, server)?;
    let sizing = Sizing::of(spec, &activities, server, known)?;
    let mut notes = Vec::new();
    if form == StartMode::Plain && !ranks.idle.is_empty() {
        notes.push(format!("{} had no work when the window opened", names_of(&ranks.idle)));
    }
    if version < Version::new(0, 5, 5) && server.sizes.dp > 1 && !server.sizes.dp_attention {
        notes.push(format!(
            "SGLang {version} lets DP replicas overwrite each other's file: a single file for all ranks is expected"
        ));
    }
    let writes_files = activities != ["CUDA_PROFILER"];
    notes.extend(sizing.limit_of_telling());
    // Releases that stop before the last step are asked for one more.
    let steps = sizing.steps + u32::from(form == StartMode::Plain && version < EXACT_STEPS);
    Ok(StartRequest {
        body: Some(Value::Object(sglang_body(spec, activities, steps, form, &marks))),
        folder: marks.dir.clone(),
        marks,
        writes_files,
        notes,
        ..StartRequest::of(spec, server.engine, form, ranks, sizing)
    })
}

/// `start_step: 1` refuses double starts, but arms an idle rank, which cannot be disarmed: only
/// where every rank steps. Under DP attention idle ranks step along.
fn form_of(server: &ServerFacts, version: Version, ranks: &Ranks) -> StartMode {
    let all_step = ranks.idle.is_empty() || server.sizes.dp_attention;
    if version >= START_STEP && all_step { StartMode::Exact } else { StartMode::Plain }
}

fn sglang_body(
    spec: &HttpWindow,
    activities: Vec<String>,
    steps: u32,
    form: StartMode,
    marks: &Marks,
) -> Map<String, Value> {
    let mut body = Map::new();
    body.insert("num_steps".into(), json!(steps));
    body.insert("activities".into(), json!(activities));
    body.insert("with_stack".into(), json!(spec.with_stack));
    body.insert("record_shapes".into(), json!(spec.record_shapes));
    let names = [("output_dir", &marks.dir), ("profile_prefix", &marks.prefix), ("profile_id", &marks.id)];
    for (field, mark) in names {
        if let Some(mark) = mark {
            body.insert(field.into(), json!(mark));
        }
    }
    if spec.profile_by_stage {
        body.insert("profile_by_stage".into(), json!(true));
    } else if let Some(step) = spec.start_step {
        body.insert("start_step".into(), json!(step));
    } else if form == StartMode::Exact {
        body.insert("start_step".into(), json!(1));
    }
    if spec.detailed_annotations {
        body.insert("detailed_annotations".into(), json!(true));
    }
    body
}

/// Kernels alone: they are enough for a verdict, and a step of them takes a fraction of the bytes. An
/// activity that torch does not have on that server kills it at the start, so nothing is guessed.
fn activities_of(spec: &HttpWindow, server: &ServerFacts) -> Result<Vec<String>, Refusal> {
    let is_asked = |name: &str| spec.activities.iter().flatten().any(|a| a == name);
    match (&spec.activities, server.device.as_str()) {
        (Some(_), "cpu") if is_asked("GPU") => Err(Refusal::Never {
            what: "activities: [GPU] on a server without a GPU".into(),
            why: "torch knows no such activity there, and the server dies; leave `activities` out".into(),
        }),
        (Some(asked), _) => Ok(asked.clone()),
        (None, "cpu") => Ok(vec!["CPU".into()]),
        (None, "cuda" | "hip" | "rocm") => Ok(vec!["GPU".into()]),
        (None, other) => Err(Refusal::UnknownDevice { device: other.to_owned() }),
    }
}

/// Old servers ignore a field they do not know, silently: what was asked for must be known.
fn known_fields(spec: &HttpWindow, version: Version) -> Result<(), Refusal> {
    let asked = |field: &str| match field {
        "start_step" => spec.start_step.is_some(),
        "profile_prefix" => spec.profile_prefix.is_some(),
        "profile_stages" => spec.profile_stages.is_some(),
        "profile_id" => spec.profile_id.is_some(),
        "detailed_annotations" => spec.detailed_annotations,
        _ => false,
    };
    match FIELDS.into_iter().find(|(field, first)| asked(field) && version < *first) {
        Some((field, first)) => Err(Refusal::TooOld { engine: ServerKind::Sglang, version, field, first }),
        None => Ok(()),
    }
}

fn first_of(field: &str) -> Version {
    FIELDS.into_iter().find(|(f, _)| *f == field).map_or(Version::new(0, 0, 0), |(_, first)| first)
}

/// The folder where the operator declared one; an id or a prefix where the release knows it.
/// Every one bears the incident's id, so that no window is taken for another.
fn marks_of(spec: &HttpWindow, version: Version, naming: WindowNaming<'_>) -> Result<Marks, Refusal> {
    let ours = |front: &Option<String>| match front {
        Some(front) => format!("{front}-{}", naming.mark),
        None => format!("skewtrap-{}", naming.mark),
    };
    let dir = folder_of(spec, naming);
    let knows_id = version >= first_of("profile_id");
    let id = knows_id.then(|| ours(&spec.profile_id));
    let knows_prefix = version >= first_of("profile_prefix");
    let prefix = match (&spec.profile_prefix, knows_prefix, knows_id) {
        (Some(prefix), true, _) => Some(ours(&Some(prefix.clone()))),
        (None, true, false) => Some(ours(&None)),
        _ => None,
    };
    let marks = Marks { dir, prefix, id };
    if marks == Marks::default() {
        return Err(Refusal::Never {
            what: format!("SGLang {version} takes neither profile_prefix nor profile_id"),
            why: "its files could not be distinguished from others; set capture.output_dir to a folder that the server can write to".into(),
        });
    }
    Ok(marks)
}

/// The folder of this window alone, below the one that the operator declared.
fn folder_of(spec: &HttpWindow, naming: WindowNaming<'_>) -> Option<String> {
    let base = spec.output_dir.as_deref().or(naming.output_dir)?;
    Some(format!("{}/skewtrap-{}", base.trim_end_matches('/'), naming.mark))
}

/// How long a window that cannot be bounded by steps is held for about so many of them.
fn held_for(steps: u32, deadline: Duration) -> Duration {
    const STEP: Duration = Duration::from_millis(50);
    const LEAST: Duration = Duration::from_millis(200);
    // The deadline is the last word: a rule's may be shorter than either.
    (STEP * steps).max(LEAST).min(deadline)
}

/// vLLM's window is closed by a stop, always; its releases before 0.33 have no bound by steps, so
/// the time that so many steps take is used instead.
fn vllm(
    spec: &HttpWindow,
    server: &ServerFacts,
    known: &SizingInputs,
    ranks: Ranks,
    naming: WindowNaming<'_>,
) -> Result<StartRequest, Refusal> {
    let takes_body = server.version.is_some_and(|v| v >= VLLM_BODY);
    let sizing = Sizing::of(spec, &[], server, known)?;
    let steps = held_for(sizing.steps, spec.deadline);
    let prefix = takes_body.then(|| vllm_prefix(spec, naming.mark));
    let body = prefix.as_ref().map(|p| json!({"profile_prefix": p, "max_iterations": sizing.steps}));
    let mut notes = vec!["vLLM writes to the folder that it was launched with".to_owned()];
    if !takes_body {
        notes.push(format!(
            "this vLLM takes no number of steps: its window is held for {} ms",
            steps.as_millis()
        ));
    }
    Ok(StartRequest {
        body,
        marks: Marks { dir: None, prefix, id: None },
        folder: spec.output_dir.clone().or_else(|| naming.output_dir.map(str::to_owned)),
        hold: (!spec.until_cleared).then_some(steps),
        notes,
        ..StartRequest::of(spec, server.engine, StartMode::Held, ranks, sizing)
    })
}

/// 1 to 128 characters of `[A-Za-z0-9._-]`.
fn vllm_prefix(spec: &HttpWindow, mark: &str) -> String {
    let front = spec.profile_prefix.as_deref().unwrap_or("skewtrap");
    let safe = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let text = format!("{front}-{mark}");
    // The id at the end is what makes it unique, so a long front part is cut, not the id.
    text.chars().skip(text.chars().count().saturating_sub(128)).map(safe).collect()
}

#[cfg(test)]
mod tests;
