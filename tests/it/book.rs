//! The book says what is true: its commands are the program's, its configurations are right, its rule passes
//! its test, its links lead somewhere, and its reference of the command line is generated.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Arg, Command, CommandFactory, Parser};
use skewtrap::cli::Cli;
use skewtrap::cli::schema::Document;
use skewtrap::config::{file, rules, test};
use skewtrap_core::capture::CaptureSpec;
use skewtrap_core::message::{Message, Origin, Update, alerts, sample};
use skewtrap_core::signal::catalog::Catalog;
use skewtrap_trace::time::Time;

mod configuration;

const REFERENCE: &str = "docs/reference/cli.md";
const CONFIGURATION: &str = "docs/reference/configuration.md";
/// Only packages have these; the reference says so by hand.
const OF_PACKAGES: [&str; 2] = ["completions", "man"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every page of the documentation, by its path in the repository.
fn pages() -> Vec<(String, String)> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
            match entry.is_dir() {
                true => walk(&entry, found),
                false if entry.extension().is_some_and(|e| e == "md") => found.push(entry),
                false => {}
            }
        }
    }
    let mut paths = ["README.md", "rules/README.md", "deploy/README.md"].map(|p| root().join(p)).to_vec();
    walk(&root().join("docs"), &mut paths);
    paths.sort();
    let name = |p: &Path| p.strip_prefix(root()).unwrap().display().to_string();
    paths.iter().map(|p| (name(p), fs::read_to_string(p).unwrap())).collect()
}

/// The fenced blocks of a page: what stands after the fence, and the text.
fn blocks(page: &str) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    let mut rest = page;
    while let Some((_, after)) = rest.split_once("```") {
        let (kind, body) = after.split_once('\n').unwrap_or((after, ""));
        let (body, next) = body.split_once("```").unwrap_or((body, ""));
        found.push((kind.trim(), body));
        rest = next;
    }
    found
}

// ---- the reference of the command line ----

fn about(command: &Command) -> String {
    let about = command.get_long_about().or_else(|| command.get_about()).map(ToString::to_string);
    // What a build without a feature says of its command is no part of the reference.
    ["top", "fleet", "mcp"].iter().fold(about.unwrap_or_default(), |text, feature| {
        text.replace(
            &format!(" (not in this build: `cargo install --path . --features {feature}`, or a package)"),
            "",
        )
    })
}

fn argument(text: &mut String, arg: &Arg) {
    let values =
        arg.get_value_names().unwrap_or_default().iter().map(|v| format!(" {v}")).collect::<String>();
    let takes_value = arg.get_action().takes_values();
    let name = match (arg.get_long(), takes_value) {
        (Some(long), true) => format!("--{long}{values}"),
        (Some(long), false) => format!("--{long}"),
        (None, _) => values.trim().to_owned(),
    };
    let help = arg.get_long_help().or_else(|| arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
    let default: Vec<_> = arg.get_default_values().iter().map(|v| v.to_string_lossy()).collect();
    let default = if default.is_empty() || !takes_value {
        String::new()
    } else {
        format!(" Default: `{}`.", default.join(" "))
    };
    // Whether something is a switch is no value that one writes.
    let possible: Vec<_> =
        arg.get_possible_values().into_iter().filter(|v| takes_value && !v.is_hide_set()).collect();
    let possible: Vec<String> = possible.iter().map(|value| format!("`{}`", value.get_name())).collect();
    let possible = match possible.is_empty() {
        true => String::new(),
        false => format!(" One of {}.", possible.join(", ")),
    };
    let end = match help.is_empty() || help.ends_with(['.', '!', '?', ']']) {
        true => "",
        false => ".",
    };
    let end = if possible.is_empty() && default.is_empty() { "" } else { end };
    writeln!(text, "| `{name}` | {help}{end}{possible}{default} |").unwrap();
}

fn chapter(text: &mut String, path: &str, command: &Command) {
    let depth = path.split(' ').count();
    writeln!(text, "\n{} `{path}`\n\n{}", "#".repeat(depth), about(command).trim()).unwrap();
    let shown =
        |arg: &&Arg| !arg.is_hide_set() && !["help", "version", "color"].contains(&arg.get_id().as_str());
    let args: Vec<&Arg> = command.get_arguments().filter(shown).collect();
    if !args.is_empty() {
        text.push_str("\n| argument | says |\n|---|---|\n");
        args.iter().for_each(|arg| argument(text, arg));
    }
    for sub in command.get_subcommands().filter(|c| c.get_name() != "help") {
        if !OF_PACKAGES.contains(&sub.get_name()) {
            chapter(text, &format!("{path} {}", sub.get_name()), sub);
        }
    }
}

fn reference() -> String {
    let mut text = String::from(
        "# Command line\n\nGenerated from the program (`UPDATE_DOCS=1 cargo test --test it book`). Every command takes `--help` and \
         `--color auto|always|never`. Packages also have `skewtrap completions SHELL` and `skewtrap man DIR`. The exit status is \
         0, 1 when something failed or was found (also when `check` finds a file wrong), and 2 when the command line is wrong, or \
         a file that a command needs.\n",
    );
    let mut command = Cli::command();
    command.build();
    for sub in
        command.get_subcommands().filter(|c| c.get_name() != "help" && !OF_PACKAGES.contains(&c.get_name()))
    {
        chapter(&mut text, &format!("skewtrap {}", sub.get_name()), sub);
    }
    text
}

/// Fails where a generated page is not what is generated now; `UPDATE_DOCS=1` writes it.
fn is_generated(page: &str, wanted: &str) {
    let path = root().join(page);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, wanted).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == wanted,
        "{page}: what it describes has changed; run `UPDATE_DOCS=1 cargo test --test it book`"
    );
}

#[test]
fn the_reference_of_the_command_line_is_that_of_the_program() {
    is_generated(REFERENCE, &reference());
}

#[test]
fn the_reference_of_the_configuration_is_that_of_its_schema() {
    is_generated(CONFIGURATION, &configuration::reference(Document::Config.schema()));
}

// ---- commands ----

/// The words of a command, as a shell cuts them; a comment, a pipe or a redirection ends it.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for c in line.chars() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), c) => word.push(c),
            (None, '"' | '\'') => quote = Some(c),
            (None, '#') if word.is_empty() => break,
            (None, '|' | '>' | ';' | '&') => break,
            (None, c) if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            (None, c) => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// The commands of the program in a block of shell, without what stands before its name.
fn commands(block: &str) -> Vec<Vec<String>> {
    let joined = block.replace("\\\n", " ");
    let of_line = |line: &str| {
        let words = words(line);
        let at = words.iter().position(|w| ["skewtrap", "/skewtrap"].contains(&w.as_str()));
        match at {
            Some(0) => Some(words),
            Some(at) if words[at - 1] == "--" => Some(words[at..].to_vec()),
            _ if words.starts_with(&["cargo", "run", "--release", "--"].map(String::from)) => {
                Some([vec!["skewtrap".into()], words[4..].to_vec()].concat())
            }
            _ => None,
        }
    };
    joined.lines().filter_map(of_line).collect()
}

#[test]
fn every_command_in_the_documentation_is_one_that_the_program_takes() {
    let mut tried = BTreeSet::new();
    for (page, text) in pages().iter().filter(|(page, _)| page != REFERENCE) {
        for (kind, block) in blocks(text).into_iter().filter(|(kind, _)| ["", "sh"].contains(kind)) {
            for command in commands(block) {
                // A synopsis, not a command.
                if block.contains("[--")
                    || command.iter().any(|w| w.contains("..."))
                    || OF_PACKAGES.contains(&command.get(1).map_or("", String::as_str))
                {
                    continue;
                }
                tried.insert(command.get(1).cloned().unwrap_or_default());
                if let Err(error) = Cli::try_parse_from(&command) {
                    panic!("{page}, in a block of {kind:?}: {}\n{error}", command.join(" "));
                }
            }
        }
    }
    for name in [
        "run",
        "demo",
        "replay",
        "compare",
        "check",
        "test",
        "tune",
        "doctor",
        "init",
        "capture",
        "silence",
        "why",
        "notify-test",
    ] {
        assert!(tried.contains(name), "no page shows `skewtrap {name}`: {tried:?}");
    }
}

#[test]
fn a_command_that_the_program_does_not_take_would_be_seen() {
    let lines = commands("skewtrap run --ulr x   # no\nkubectl exec x -- /skewtrap status | head\n");
    assert_eq!(lines, [vec!["skewtrap", "run", "--ulr", "x"], vec!["/skewtrap", "status"]]);
    assert!(Cli::try_parse_from(&lines[0]).is_err() && Cli::try_parse_from(&lines[1]).is_ok());
}

// ---- configurations ----

fn complaints(block: &str) -> String {
    let key = block.lines().find(|l| !l.starts_with('#')).and_then(|l| l.split(':').next());
    match key {
        Some("rules") => {
            let loaded = rules::load([("book", block)], &Catalog::default(), &CaptureSpec::None);
            loaded.diagnostics.iter().map(ToString::to_string).collect()
        }
        Some("tests") => test::load("x.test.yaml", block).1.iter().map(ToString::to_string).collect(),
        _ => {
            // The folder of rules that the how-to writes.
            let rules = "rules: [{ name: x, signal: load, trigger: { cv: 0.5, for: 5s } }]\n";
            let loaded =
                file::load("book", block, &|path| Ok(vec![(format!("{path}/x.yaml"), rules.to_owned())]));
            loaded.diagnostics.iter().filter(|d| d.is_error()).map(ToString::to_string).collect()
        }
    }
}

/// The names of labels in the `matchers: [...]` of a block.
fn matched_labels(block: &str) -> Vec<&str> {
    let lists = block.lines().filter_map(|line| line.split_once("matchers: [")?.1.split_once(']'));
    let matchers = lists.flat_map(|(list, _)| list.split(','));
    matchers.map(|m| m.split(['=', '!']).next().unwrap_or_default().trim()).collect()
}

#[test]
fn the_routes_of_the_book_match_on_labels_that_alerts_carry() {
    let now = Time::from_epoch_s(1_795_492_126.1);
    let told = Message::of(&sample(now), Update::Verdict, now, &Origin::default());
    let carried = alerts(&Message { test: true, ..told }).remove(0).labels;
    let mut count = 0;
    for (page, text) in pages() {
        for label in blocks(&text).into_iter().flat_map(|(_, block)| matched_labels(block)) {
            assert!(carried.contains_key(label), "{page}: no alert has the label `{label}`: {carried:?}");
            count += 1;
        }
    }
    assert!(count >= 3, "the book has routes: {count}");
    assert_eq!(matched_labels("  - matchers: [a = b, rule!=\"\"]\n"), ["a", "rule"]);
}

#[test]
fn every_rule_test_and_configuration_in_the_book_is_right() {
    let mut count = 0;
    let parts = ["docs/tutorial/", "docs/howto/", "docs/explanation/"];
    for (page, text) in pages().iter().filter(|(page, _)| parts.iter().any(|part| page.starts_with(part))) {
        for (_, block) in blocks(text).into_iter().filter(|(kind, _)| *kind == "yaml") {
            let said = complaints(block);
            assert!(said.is_empty(), "{page}: {said}\nin\n{block}");
            count += 1;
        }
    }
    assert!(count >= 7, "{count}");
}

#[test]
fn the_rule_that_the_book_writes_passes_the_test_that_the_book_writes() {
    let page = fs::read_to_string(root().join("docs/howto/write-a-rule.md")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let block = |first: &str| {
        blocks(&page)
            .into_iter()
            .find(|(kind, text)| *kind == "yaml" && text.starts_with(first))
            .map(|(_, text)| text)
            .unwrap()
    };
    fs::create_dir(dir.path().join("my-rules")).unwrap();
    fs::write(dir.path().join("my-rules/long-queue.yaml"), block("rules:")).unwrap();
    fs::write(dir.path().join("my-rules/long-queue.test.yaml"), block("tests:")).unwrap();
    for args in [["check", "my-rules"], ["test", "my-rules"]] {
        let mut command = assert_cmd::Command::cargo_bin("skewtrap").unwrap();
        command.current_dir(dir.path()).args(args).assert().success();
    }
}

// ---- links ----

/// The targets of a page's links and pictures that are files of the repository.
fn links(text: &str) -> Vec<&str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
    targets.filter(|t| !t.contains("://") && !t.starts_with('#')).collect()
}

/// A heading as the anchor that readers of Markdown make of it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || ['-', '_'].contains(c)).collect()
}

#[test]
fn every_link_of_the_documentation_leads_somewhere_and_every_page_is_in_the_book() {
    let mut wrong = Vec::new();
    for (page, text) in pages() {
        let folder = root().join(&page).parent().unwrap().to_owned();
        for link in links(&text) {
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let file = folder.join(path);
            if !file.exists() {
                wrong.push(format!("{page}: {link}"));
            } else if !heading.is_empty() {
                let there = fs::read_to_string(&file).unwrap();
                let mut headings =
                    there.lines().filter(|l| l.starts_with('#')).map(|l| anchor(l.trim_start_matches('#')));
                if !headings.any(|h| h == heading) {
                    wrong.push(format!("{page}: {link} has no such heading"));
                }
            }
        }
    }
    let summary = fs::read_to_string(root().join("docs/SUMMARY.md")).unwrap();
    let listed: BTreeSet<String> = links(&summary).into_iter().map(|l| format!("docs/{l}")).collect();
    for (page, _) in pages().iter().filter(|(page, _)| page.starts_with("docs/") && page != "docs/SUMMARY.md")
    {
        if !listed.contains(page) {
            wrong.push(format!("{page} is not in docs/SUMMARY.md"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
