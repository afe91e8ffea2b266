//! Steps of the model: what they run, and the annotations by which engines mark them.

use serde::{Deserialize, Serialize};

/// Fewer steps of a kind have no mean.
pub const MIN_STEPS: usize = 3;

/// What a step of the model ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum StepKind {
    /// Prefill.
    Extend,
    /// Decode.
    Decode,
    /// A batch without requests, which a rank runs so that the collectives of the others can end.
    Idle,
    /// Anything else, or unknown.
    Step,
}

impl StepKind {
    /// In the order of the discriminants.
    pub const ALL: [Self; 4] = [Self::Extend, Self::Decode, Self::Idle, Self::Step];

    /// The name in JSON, CSV and on screen.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Extend => "extend",
            Self::Decode => "decode",
            Self::Idle => "idle",
            Self::Step => "step",
        }
    }
}

/// One step as an annotation or a period delimits it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepMark {
    /// Nanoseconds since the window's epoch.
    pub start: i64,
    /// Nanoseconds since the window's epoch.
    pub end: i64,
    /// What ran in it.
    pub kind: StepKind,
    /// Requests in the batch, if known.
    pub requests: Option<u32>,
    /// Tokens in the batch, if known.
    pub tokens: Option<u32>,
}

/// Reads a step annotation: what ran, its requests and its tokens. `None` for any other text.
///
/// Known are `step[DECODE bs=32]` and `step[EXTEND bs=1 toks=293]` (SGLang 0.5.12 and later),
/// `execute_context_1(512)_generation_8(8)` (vLLM), `ProfilerStep#12` (any PyTorch loop).
pub fn parse_annotation(text: &str) -> Option<(StepKind, Option<u32>, Option<u32>)> {
    if let Some(inside) = text.strip_prefix("step[") {
        let inside = inside.strip_suffix(']').unwrap_or(inside);
        let mut words = inside.split(' ');
        let kind = match words.next()? {
            "EXTEND" | "MIXED" | "PREFILL" => StepKind::Extend,
            "DECODE" | "VERIFY" | "TARGET_VERIFY" => StepKind::Decode,
            "IDLE" => StepKind::Idle,
            _ => StepKind::Step,
        };
        let number = |key: &str| {
            inside
                .split(' ')
                .find_map(|w| w.strip_prefix(key))
                .and_then(|v| v.strip_prefix('=')?.parse().ok())
        };
        return Some((kind, number("bs"), number("toks")));
    }
    if let Some(rest) = text.strip_prefix("execute_context_") {
        let (context, generation) = rest.split_once("_generation_")?;
        let parts = |s: &str| -> Option<(u32, u32)> {
            let (n, tokens) = s.split_once('(')?;
            Some((n.parse().ok()?, tokens.trim_end_matches(')').parse().ok()?))
        };
        let ((prefills, new), (decodes, one)) = (parts(context)?, parts(generation)?);
        let kind = if prefills > 0 { StepKind::Extend } else { StepKind::Decode };
        return Some((kind, Some(prefills + decodes), Some(new + one)));
    }
    text.strip_prefix("ProfilerStep#").map(|_| (StepKind::Step, None, None))
}

/// How the steps of a rank were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum StepSource {
    /// Annotations on the GPU's own timeline.
    GpuAnnotations,
    /// Annotations on the CPU: the kernels of a step run a little later than its annotation.
    CpuAnnotations,
    /// The period of a kernel that every rank runs equally often in a step.
    Period,
    /// Steps are unknown: the whole window counts as one, and only figures per second make sense.
    PerSecond,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_of_both_engines_tell_kind_requests_and_tokens() {
        let cases = [
            ("step[DECODE bs=32]", Some((StepKind::Decode, Some(32), None))),
            ("step[EXTEND bs=1 toks=293]", Some((StepKind::Extend, Some(1), Some(293)))),
            ("step[IDLE bs=0]", Some((StepKind::Idle, Some(0), None))),
            ("step[DRAFT]", Some((StepKind::Step, None, None))),
            ("execute_context_0(0)_generation_8(8)", Some((StepKind::Decode, Some(8), Some(8)))),
            ("execute_context_1(512)_generation_8(8)", Some((StepKind::Extend, Some(9), Some(520)))),
            ("ProfilerStep#4", Some((StepKind::Step, None, None))),
            ("scheduler.run_batch", None),
            ("execute_context_x(0)_generation_8(8)", None),
        ];
        for (text, wanted) in cases {
            assert_eq!(parse_annotation(text), wanted, "{text}");
        }
    }
}
