//! Simulated servers of every engine ("doubles": their protocol, their faults, their logs), for the demo
//! and the tests.
//!
//! A double is a state machine over simulated time: `request(now, ..)` and `advance(now)` return
//! [`exchange::Effect`]s and do nothing else. [`simulated`] drives one in a test without a socket or a
//! clock, [`shell`] puts one behind a real port with a clock that may run faster than real time, and
//! [`incident`] is the recorded incident of the demo, [`practice`] a server to try the agent on. The doubles
//! follow docs/engines.md.

pub mod dynamo;
pub mod exchange;
pub mod incident;
pub mod load;
pub mod practice;
pub mod sglang;
pub mod shell;
pub mod simulated;
mod trace;
pub mod trtllm;
pub mod vllm;

use exchange::{CallId, Effect, Request};

use skewtrap_trace::time::Time;

/// A simulated server.
#[derive(Debug)]
pub enum ServerKind {
    /// SGLang.
    Sglang(Box<sglang::World>),
    /// vLLM.
    Vllm(Box<vllm::World>),
    /// TensorRT-LLM.
    TensorrtLlm(Box<trtllm::World>),
    /// A worker of Dynamo.
    Dynamo(Box<dynamo::World>),
}

impl ServerKind {
    /// A request arrives; its answer comes with the effects of this or of a later call.
    pub fn request(&mut self, now: Time, request: &Request) -> (CallId, Vec<Effect>) {
        match self {
            Self::Sglang(world) => world.request(now, request),
            Self::Vllm(world) => world.request(now, request),
            Self::TensorrtLlm(world) => world.request(now, request),
            Self::Dynamo(world) => world.request(now, request),
        }
    }

    /// Does everything that is due by `now`.
    pub fn advance(&mut self, now: Time) -> Vec<Effect> {
        match self {
            Self::Sglang(world) => world.advance(now),
            Self::Vllm(world) => world.advance(now),
            Self::TensorrtLlm(world) => world.advance(now),
            Self::Dynamo(world) => world.advance(now),
        }
    }

    /// The time of the next event, if no request comes before it.
    pub fn next_event(&self) -> Option<Time> {
        match self {
            Self::Sglang(world) => world.next_event(),
            Self::Vllm(world) => world.next_event(),
            Self::TensorrtLlm(world) => world.next_event(),
            Self::Dynamo(world) => world.next_event(),
        }
    }

    /// A trace file of a rank could not be written; does what the real server does then.
    pub fn disk_error(&mut self, now: Time, rank: u16, error: &str) -> Vec<Effect> {
        match self {
            Self::Sglang(world) => world.disk_error(now, rank, error),
            Self::Vllm(world) => world.disk_error(now, rank, error),
            Self::TensorrtLlm(world) => world.disk_error(now, rank, error),
            Self::Dynamo(world) => world.disk_error(now, rank, error),
        }
    }

    /// The process is killed.
    pub fn kill(&mut self, now: Time) -> Vec<Effect> {
        match self {
            Self::Sglang(world) => world.kill(now, "killed"),
            Self::Vllm(world) => world.kill(now, "killed"),
            Self::TensorrtLlm(world) => world.kill(now, "killed"),
            Self::Dynamo(world) => world.kill(now),
        }
    }

    /// The process starts again, without any of its former state.
    pub fn restart(&mut self, now: Time) -> Vec<Effect> {
        match self {
            Self::Sglang(world) => world.restart(now),
            Self::Vllm(world) => world.restart(now),
            Self::TensorrtLlm(world) => world.restart(now),
            Self::Dynamo(world) => world.restart(now),
        }
    }
}

impl From<sglang::World> for ServerKind {
    fn from(world: sglang::World) -> Self {
        Self::Sglang(Box::new(world))
    }
}

impl From<vllm::World> for ServerKind {
    fn from(world: vllm::World) -> Self {
        Self::Vllm(Box::new(world))
    }
}

impl From<trtllm::World> for ServerKind {
    fn from(world: trtllm::World) -> Self {
        Self::TensorrtLlm(Box::new(world))
    }
}

impl From<dynamo::World> for ServerKind {
    fn from(world: dynamo::World) -> Self {
        Self::Dynamo(Box::new(world))
    }
}
