//! Tests of the whole that need nothing but Rust and the programs of any Linux: the binary, its agent
//! and its parts against doubles of the servers. What wants other programs is in `tests/peers`.
//!
//! It is one binary because each one links the whole program again.
#![allow(clippy::unwrap_used)]

mod support;

mod book;
mod borders;
mod deploy;
mod fuzz;
mod manual;
mod tail;

mod agent {
    mod access;
    mod api;
    mod baseline;
    mod crash;
    mod discover;
    mod endurance;
    mod escalation;
    #[cfg(feature = "fleet")]
    mod fleet;
    mod follow_up;
    #[cfg(feature = "fleet")]
    mod kubernetes;
    mod left_in_place;
    #[cfg(feature = "mcp")]
    mod mcp;
    #[cfg(feature = "fleet")]
    mod nodes;
    mod notify;
    mod openapi;
    #[cfg(feature = "fleet")]
    mod pool;
    mod query;
    mod recovery;
    mod reload;
    mod silence;
    mod stderr;
    mod systemd;
    mod upgrade;
}

mod capture {
    mod command;
    mod disk;
    mod engines;
    mod fake_nsys;
    mod governor;
    mod http;
    mod nsys;
    mod size;
    mod vllm;
}

mod cli {
    mod doctor;
    mod newcomer;
    mod one_load;
    mod proxy;
    mod replay;
    mod tools;
}

mod compare {
    mod cases;
    mod input;
    mod perfetto;
    mod recordings;
    mod since;
    mod summaries;
}

mod double {
    mod sglang;
    mod shell;
    mod troubles;
    mod vllm;
}

mod watch {
    mod cause;
    mod death;
    mod escalation;
    mod follow_up;
    mod incident;
    mod lockstep;
    mod stuck;
    mod worth;
}

/// The turns of agents are those of the tests of the store, by another lease.
#[cfg(feature = "fleet")]
#[path = "../../crates/fleet/tests/it/turns.rs"]
mod turns;
