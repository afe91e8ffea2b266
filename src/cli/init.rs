//! `skewtrap init`: probes a server and writes a commented configuration for it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;

use super::server_probe::{self, Probe};
use crate::config::file;
use skewtrap_core::capture::facts::{ServerFacts, ServerKind};
use skewtrap_core::capture::size::{DEFAULT_MAX_STALL, written};
use skewtrap_core::capture::sizing::{max_stall_for, steps_for_a_verdict};
use skewtrap_core::message::counted;
use skewtrap_core::signal::metrics::Metrics;
use skewtrap_core::status::{Reach, not_watched};
use skewtrap_trace::rank::Axis;

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
        out!("{text}")?;
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
            let _ = writeln!(t, "# Loads: {path} answers for {}.", counted(loads.ranks.len(), "rank"));
        }
        Err(e) if facts.engine.has_loads() => {
            let _ = writeln!(t, "# Loads: none ({e}); the log or the metrics must provide them.");
        }
        Err(_) => {}
    }
    match &probe.metrics {
        Ok(m) => {
            let _ = writeln!(
                t,
                "# Metrics: {} known ones, of {}.",
                m.families(),
                counted(m.ranks().count(), "rank")
            );
        }
        Err(_) if facts.engine == ServerKind::TensorrtLlm => {}
        Err(e) => {
            let _ = writeln!(t, "# Metrics: none ({e}); --enable-metrics turns them on.");
        }
    }
    let _ = writeln!(t, "# `skewtrap check --against {url}` says which rules could fire here.\n");
    let _ = writeln!(t, "targets:\n  - url: {url}\n    engine: {engine}");
    if probe.loads.is_err() && facts.engine != ServerKind::TensorrtLlm {
        let _ = writeln!(t, "    loads: false");
    }
    if probe.metrics.is_err() && facts.engine != ServerKind::TensorrtLlm {
        let _ = writeln!(t, "    metrics: false");
    }
    t.push_str(TARGET_KEYS);
    t.push_str(&capture_section(facts));
    t.push_str(&rules_section(probe));
    t.push_str(RECEIVERS_SECTION);
    debug_assert!(file::load("skewtrap.yaml", &t, &|_| Ok(Vec::new())).config.is_some(), "{t}");
    t
}

/// What windows may cost this server, and what they may cost a day.
fn capture_section(facts: &ServerFacts) -> String {
    let (max_stall, why) = match max_stall_for(facts) {
        Some(fits) => (
            written(fits),
            format!(
                "what {} steps, enough for a verdict, are predicted to take, estimated {}",
                steps_for_a_verdict(facts),
                facts.model_size.source()
            ),
        ),
        None => (written(DEFAULT_MAX_STALL), format!("the default, since {}", why_no_estimate(facts))),
    };
    format!(
        "
# What a firing rule captures. The folder is the server's view; without it the server chooses.
capture:
  http:
    # How long a window may silence a rank: {why}.
    # The rule behind it is in docs/window-cost.md, \"Which max_stall\".
    max_stall: {max_stall}
    # output_dir: /tmp/profiles

# What captures may cost a day, over all rules and windows by hand. These are the defaults.
budget: {{ stalled: 2m, bytes: 20GiB, windows: 4 }}
"
    )
}

/// Why nothing is known of what windows cost this server ([`max_stall_for`]).
fn why_no_estimate(facts: &ServerFacts) -> &'static str {
    match facts.engine {
        ServerKind::Sglang if facts.device == "cpu" => {
            "it runs without a GPU, where what a window costs differs from machine to machine"
        }
        ServerKind::Sglang => "nothing tells how large its model is",
        _ => "what a window costs was not measured on this engine",
    }
}

/// The shipped rules that can fire on this server; where none can, why.
fn rules_section(probe: &Probe) -> String {
    let (fitting, facts) = (rules_for(probe), &probe.facts);
    let of_machine = fitting.contains(&CROWDED).then_some(CROWDED);
    let mut t = String::from("\n");
    if let Some(why) = not_watched(facts.engine, &facts.sizes, Reach { able: None, of_machine }) {
        let why = format!("NOT everything can be watched here: {why}");
        t.extend(wrapped(&why, 100).iter().map(|line| format!("# {line}\n")));
    } else {
        t.push_str("# The shipped rules that have something to read on this server; `skewtrap check` shows what they say.\n");
    }
    if fitting.is_empty() {
        t.push_str("rules: []\n");
        return t;
    }
    t.push_str("rules:\n");
    for rule in fitting {
        let _ = writeln!(t, "  - preset:{rule}");
        if rule == CROWDED && probe.processes.as_ref().is_none_or(|seen| seen.len() < 2) {
            t.push_str(
                "    # `init` saw none of the ranks' processes: run the agent on their machine, in their PID namespace\n",
            );
        }
    }
    t
}

/// The words in lines of at most so many characters.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut().filter(|line| line.chars().count() + 1 + word.chars().count() <= width) {
            Some(line) => *line += &format!(" {word}"),
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

/// The preset that compares what the machine tells of the ranks' processes.
const CROWDED: &str = "crowded-scheduler";

/// The presets that can fire on the server.
fn rules_for(probe: &Probe) -> Vec<&'static str> {
    let sizes = &probe.facts.sizes;
    let mut rules = Vec::new();
    if sizes.dp > 1 {
        rules.extend(["dp-load-skew", "stuck-rank"]);
        if probe.facts.engine.runs_vllm() {
            rules.push("vllm-engine-skew");
        }
    }
    // Ranks that meet in collectives wait for the one whose process waits for a CPU. It says itself where it sees none.
    let together = sizes.tp.max(sizes.ep) > 1 && (sizes.dp == 1 || sizes.dp_attention);
    let sees_several = sizes.dp == 1 && probe.processes.as_ref().is_some_and(|ranks| ranks.len() > 1);
    if together || sees_several {
        rules.push(CROWDED);
    }
    let has = |name: &str, axis: Axis| {
        let signal = skewtrap_core::signal::catalog::signal_named(name);
        let has_it = |m: &Metrics| {
            let having = m.ranks().filter(|(_, f)| signal.is_some_and(|s| f.get(s).is_some()));
            having.filter_map(|(rank, _)| rank.get(axis)).collect::<BTreeSet<_>>().len() > 1
        };
        probe.metrics.as_ref().is_ok_and(has_it)
    };
    if has("dp_attention_tokens_scheduled", Axis::Dp) {
        rules.push("dp-attention-tokens");
    }
    if has("expert_tokens", Axis::Ep) {
        rules.push("expert-imbalance");
    }
    rules
}

const TARGET_KEYS: &str = "    # logs: [/var/log/sglang.log]       # the server's log; `-` is standard input
    # api_key: { env: SGLANG_API_KEY }   # if the server wants one
    # admin_api_key: { env: SGLANG_ADMIN_KEY }
";

const RECEIVERS_SECTION: &str = "
# Who is notified. Secrets stand in the environment or in files, never here.
receivers:
  - { name: console, stdout: {} }
  # - { name: oncall, webhook: { url: { env: SKEWTRAP_WEBHOOK } }, min_severity: warning }
  # - { name: chat, slack: { url: { env: SLACK_WEBHOOK } } }
";

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A server whose model has so many dense layers.
    fn server(layers: u32, (dp, tp): (u16, u16)) -> ServerFacts {
        let info = json!({ "version": "0.5.16", "device": "cuda", "dp_size": dp, "tp_size": tp });
        let mut server = ServerFacts::of_server_info(&info);
        server.model_size = server.model_size.with_config(&json!({ "num_hidden_layers": layers }));
        server
    }

    #[test]
    fn the_table_of_the_book_has_the_values_that_init_writes() {
        let page = include_str!("../../docs/window-cost.md");
        for layers in [8, 16, 32, 48, 64, 80, 96] {
            let [apart, two, together] = [(4, 1), (1, 2), (1, 8)].map(|ranks| {
                max_stall_for(&server(layers, ranks)).map(written).expect("its layers are known")
            });
            let row = format!("| {layers} | `{apart}` | `{two}` | `{together}` |\n");
            assert!(page.contains(&row), "docs/window-cost.md lacks {row}");
            assert!(
                capture_section(&server(layers, (4, 1))).contains(&format!("max_stall: {apart}\n")),
                "{layers}"
            );
        }
    }

    #[test]
    fn words_are_wrapped_at_spaces() {
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("unbreakable", 3), ["unbreakable"]);
    }
}
