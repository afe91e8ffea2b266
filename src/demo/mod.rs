//! The double of the engines (SGLang's and vLLM's protocol, their faults, their logs), which the demo and the tests drive.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]
