//! The engines whose profilers the agent knows how to ask, and how their profile calls differ.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An engine whose profiler the agent knows how to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerKind {
    /// SGLang.
    Sglang,
    /// vLLM.
    Vllm,
    /// TensorRT-LLM (`trtllm-serve`).
    TensorrtLlm,
    /// A worker of Dynamo that runs SGLang, by its system port.
    DynamoSglang,
    /// A worker of Dynamo that runs vLLM, by its system port.
    DynamoVllm,
}

/// What an answer with success must hold before it counts as success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerForm {
    /// The status alone decides.
    Status,
    /// The body is JSON; `"success": false` in it is an error.
    SuccessField,
    /// The body is JSON with `"status": "ok"`; another word is an error, and no word proves nothing.
    StatusField,
}

impl ServerKind {
    /// Its name in `engine:`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Sglang => "sglang",
            Self::Vllm => "vllm",
            Self::TensorrtLlm => "tensorrt_llm",
            Self::DynamoSglang | Self::DynamoVllm => "dynamo",
        }
    }

    /// Whether it is a worker of Dynamo.
    pub const fn is_dynamo(self) -> bool {
        matches!(self, Self::DynamoSglang | Self::DynamoVllm)
    }

    /// Whether vLLM runs there, by itself or behind Dynamo.
    pub const fn runs_vllm(self) -> bool {
        matches!(self, Self::Vllm | Self::DynamoVllm)
    }

    /// Where a start is posted.
    pub const fn start_path(self) -> &'static str {
        if self.is_dynamo() { "/engine/control/start_profile" } else { "/start_profile" }
    }

    /// Where a stop is posted.
    pub const fn stop_path(self) -> &'static str {
        if self.is_dynamo() { "/engine/control/stop_profile" } else { "/stop_profile" }
    }

    /// How its answers tell success.
    pub const fn answer_form(self) -> AnswerForm {
        match self {
            Self::Sglang | Self::Vllm => AnswerForm::Status,
            Self::TensorrtLlm => AnswerForm::SuccessField,
            Self::DynamoSglang | Self::DynamoVllm => AnswerForm::StatusField,
        }
    }

    /// Whether the agent knows the lines in which its log tells of profiles. Where it does not, the log proves
    /// nothing about a window.
    pub const fn tells_in_its_log(self) -> bool {
        matches!(self, Self::Sglang | Self::Vllm)
    }

    /// Whether it reports how many ranks it has, or its stop waits for every one of them. Where neither is so, a
    /// window has ended only when no further file comes.
    pub const fn accounts_for_every_rank(self) -> bool {
        matches!(self, Self::Sglang | Self::Vllm)
    }

    /// Whether it reports how many ranks it has. Where it does not, they are counted by what they report.
    pub const fn reports_its_sizes(self) -> bool {
        matches!(self, Self::Sglang)
    }

    /// Whether it has SGLang's `/v1/loads`, or something in its place that is polled like it.
    pub const fn has_loads(self) -> bool {
        matches!(self, Self::Sglang | Self::TensorrtLlm)
    }
}

impl fmt::Display for ServerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sglang => "SGLang",
            Self::Vllm => "vLLM",
            Self::TensorrtLlm => "TensorRT-LLM",
            Self::DynamoSglang => "SGLang behind Dynamo",
            Self::DynamoVllm => "vLLM behind Dynamo",
        })
    }
}
