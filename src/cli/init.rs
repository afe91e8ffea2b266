//! `skewtrap init`: probes a server and writes a commented configuration for it.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;

use super::server_probe::{self, Probe};
use crate::config::file;
use skewtrap_core::capture::facts::ServerKind;

/// Probes a server and writes a commented configuration that works with it.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The server: http://127.0.0.1:30000
    #[arg(value_name = "URL")]
    url: String,
    /// Where to write; - is standard output
    #[arg(long, short, value_name = "FILE", default_value = "skewtrap.yaml")]
    out: PathBuf,
    /// Write over a file that is there
    #[arg(long)]
    force: bool,
}

/// Runs the command.
///
/// # Errors
/// The server was not reached, or the file is there already or cannot be written.
pub fn run(args: &InitArgs) -> anyhow::Result<ExitCode> {
    let to_stdout = args.out.as_os_str() == "-";
    if !to_stdout && args.out.exists() && !args.force {
        bail!(super::wrong(&format!("{} is there already; --force writes over it", args.out.display())));
    }
    let probe = server_probe::probe(&args.url)?;
    let text = starter(&args.url, &probe);
    if to_stdout {
        anstream::print!("{text}");
        return Ok(ExitCode::SUCCESS);
    }
    std::fs::write(&args.out, &text).with_context(|| format!("cannot write {}", args.out.display()))?;
    let out = args.out.display();
    // The file that every command reads by itself needs no flag.
    let flag = if out.to_string() == "skewtrap.yaml" { String::new() } else { format!(" --config {out}") };
    anstream::eprintln!(
        "wrote {out}; next: skewtrap check {out} && skewtrap doctor{flag} && skewtrap run{flag}"
    );
    Ok(ExitCode::SUCCESS)
}

/// The configuration, with the findings of the probe as comments.
fn starter(url: &str, probe: &Probe) -> String {
    let facts = &probe.facts;
    let engine = facts.engine.word();
    let version = facts.version.map_or_else(|| "of unknown version".to_owned(), |v| v.to_string());
    let sizes = &facts.sizes;
    let mut t = String::from(
        "# yaml-language-server: $schema=skewtrap.schema.json\n\
         # (Editors complete and check by it: skewtrap schema > skewtrap.schema.json)\n",
    );
    let _ = writeln!(
        t,
        "# For the {engine} server at {url}: {version}, dp {} tp {} pp {} ep {}{}.",
        sizes.dp,
        sizes.tp,
        sizes.pp,
        sizes.ep,
        if sizes.dp_attention { ", DP attention" } else { "" }
    );
    match &probe.loads {
        Ok((path, loads)) => {
            let _ = writeln!(t, "# Loads: {path} answers for {} ranks.", loads.ranks.len());
        }
        Err(e) if facts.engine.has_loads() => {
            let _ = writeln!(t, "# Loads: none ({e}); the log or the metrics must provide them.");
        }
        Err(_) => {}
    }
    match &probe.metrics {
        Ok(m) => {
            let _ = writeln!(t, "# Metrics: {} known ones, of {} ranks.", m.families(), m.ranks().count());
        }
        Err(_) if facts.engine == ServerKind::TensorrtLlm => {}
        Err(e) => {
            let _ = writeln!(t, "# Metrics: none ({e}); --enable-metrics turns them on.");
        }
    }
    if sizes.dp < 2 {
        let _ = writeln!(
            t,
            "# One DP rank only: the default rules have nothing to compare until there are two, or"
        );
        let _ = writeln!(t, "# several servers behind one router (see the preset replica-skew).");
    }
    let _ = writeln!(t, "# `skewtrap check --against {url}` says which rules could fire here.\n");
    let _ = writeln!(t, "targets:\n  - url: {url}\n    engine: {engine}");
    if probe.loads.is_err() && facts.engine != ServerKind::TensorrtLlm {
        let _ = writeln!(t, "    loads: false");
    }
    if probe.metrics.is_err() && facts.engine != ServerKind::TensorrtLlm {
        let _ = writeln!(t, "    metrics: false");
    }
    t.push_str(CAPTURE_SECTION);
    let _ = writeln!(t, "rules:");
    for rule in rules_for(probe) {
        let _ = writeln!(t, "  - preset:{rule}");
    }
    t.push_str(RECEIVERS_SECTION);
    debug_assert!(file::load("skewtrap.yaml", &t, &|_| Ok(Vec::new())).config.is_some(), "{t}");
    t
}

/// The presets whose signals the server has.
fn rules_for(probe: &Probe) -> Vec<&'static str> {
    let mut rules = vec!["dp-load-skew", "stuck-rank"];
    if probe.facts.engine.runs_vllm() {
        rules.push("vllm-engine-skew");
    }
    let has = |name: &str| {
        let signal = skewtrap_core::signal::catalog::signal_named(name);
        probe
            .metrics
            .as_ref()
            .is_ok_and(|m| signal.is_some_and(|s| m.ranks().any(|(_, f)| f.get(s).is_some())))
    };
    if has("dp_attention_tokens_scheduled") {
        rules.push("dp-attention-tokens");
    }
    if has("expert_tokens") {
        rules.push("expert-imbalance");
    }
    rules
}

const CAPTURE_SECTION: &str =
    "    # logs: [/var/log/sglang.log]       # the server's log; `-` is standard input
    # api_key: { env: SGLANG_API_KEY }   # if the server wants one
    # admin_api_key: { env: SGLANG_ADMIN_KEY }

# What a firing rule captures. The folder is the server's view; without it the server chooses.
capture:
  http:
    max_stall: 300ms                     # how long a window may silence a rank; from 32 layers on write 1s
    # (eight steps of 80 layers take about that), or windows are refused, which `skewtrap doctor` tells
    # output_dir: /tmp/profiles

# What captures may cost a day, over all rules. These are the defaults.
budget: { stalled: 2m, bytes: 20GiB, windows: 4 }

# The shipped rules that have something to read on this server; `skewtrap check` shows what they say.
";

const RECEIVERS_SECTION: &str = "
# Who is notified. Secrets stand in the environment or in files, never here.
receivers:
  - { name: console, stdout: {} }
  # - { name: oncall, webhook: { url: { env: SKEWTRAP_WEBHOOK } }, min_severity: warning }
  # - { name: chat, slack: { url: { env: SLACK_WEBHOOK } } }
";
