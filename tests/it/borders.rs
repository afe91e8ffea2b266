//! The borders between modules. The compiler keeps the two pure crates pure, since their manifests
//! name no runtime, no HTTP and no database, and clippy keeps files, clocks and threads out of them;
//! this test reads the paths in the source and keeps what is left: the order of the layers of `src/`,
//! and that no two neighbouring modules need each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::Visit;

/// The folders of `src/`, outermost first. Code may import what stands below it in the list, never
/// what stands above it or beside it.
const LAYERS: &[&[&str]] = &[
    &["cli"],
    &["agent"],
    &["serve"],
    &["act", "demo", "observe"],
    &["config"],
    &["http"],
    &["clock"],
    &["world"],
];

/// The modules of the core in the same order.
const CORE_LAYERS: &[&[&str]] = &[
    &["watch"],
    &["status", "message", "fleet"],
    &["incident"],
    &["rule"],
    &["capture", "cause"],
    &["onset"],
    &["finding"],
    &["signal"],
    &["factor", "printable", "suggest", "amount"],
    &["test_rng"],
];

/// A module within its crate, from the root down; the root itself is empty.
type Module = Vec<String>;

/// The modules of a crate, each with the paths of its own crate that its code names.
type Crate = BTreeMap<Module, Vec<Module>>;

/// Collects the paths of a file that lead through `crate`, `self` or `super`, code that only tests
/// use left out.
struct Paths {
    here: Module,
    found: Vec<Module>,
    /// Files of modules that only tests use, by the name or path that declares them.
    only_tests: Vec<String>,
}

impl Paths {
    fn note(&mut self, path: &[String]) {
        let mut from = self.here.clone();
        let mut rest = path;
        match path.first().map(String::as_str) {
            Some("crate") => (from, rest) = (Module::new(), &path[1..]),
            Some("self") => rest = &path[1..],
            Some("super") => {
                while rest.first().is_some_and(|s| s == "super") {
                    from.pop();
                    rest = &rest[1..];
                }
            }
            _ => return,
        }
        from.extend_from_slice(rest);
        self.found.push(from);
    }

    fn note_tree(&mut self, tree: &syn::UseTree, before: &[String]) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(p) => self.note_tree(&p.tree, &with(&p.ident)),
            syn::UseTree::Name(n) => self.note(&with(&n.ident)),
            syn::UseTree::Rename(r) => self.note(&with(&r.ident)),
            syn::UseTree::Glob(_) => self.note(before),
            syn::UseTree::Group(g) => g.items.iter().for_each(|t| self.note_tree(t, before)),
        }
    }
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    let cfg = attributes.iter().filter(|a| a.path().is_ident("cfg"));
    cfg.filter_map(|a| a.parse_args::<syn::Path>().ok()).any(|p| p.is_ident("test"))
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        let path_of: Vec<String> = path.segments.iter().map(|s| s.ident.to_string()).collect();
        self.note(&path_of);
        syn::visit::visit_path(self, path);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if !is_test(&item.attrs) {
            self.note_tree(&item.tree, &[]);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !is_test(&item.attrs) {
            syn::visit::visit_item_fn(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if is_test(&item.attrs) {
            let path = item.attrs.iter().find_map(|a| match &a.meta {
                syn::Meta::NameValue(m) if m.path.is_ident("path") => match &m.value {
                    syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(s), .. }) => Some(s.value()),
                    _ => None,
                },
                _ => None,
            });
            self.only_tests.push(path.unwrap_or_else(|| item.ident.to_string()));
            return;
        }
        self.here.push(item.ident.to_string());
        syn::visit::visit_item_mod(self, item);
        self.here.pop();
    }

    /// What stands in a macro is words, not a tree.
    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        let words = item.tokens.to_string().replace(" ::", "::").replace(":: ", "::");
        for path in words.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')) {
            self.note(&path.split("::").map(str::to_owned).collect::<Vec<_>>());
        }
        syn::visit::visit_macro(self, item);
    }
}

/// The source files of a crate, by module: `read/scan.rs` and `read/scan/mod.rs` are `read::scan`.
fn files(root: &Path) -> BTreeMap<Module, PathBuf> {
    fn walk(dir: &Path, module: &Module, out: &mut BTreeMap<Module, PathBuf>) {
        for entry in fs::read_dir(dir).expect("the folder is readable") {
            let path = entry.expect("the folder is readable").path();
            let name = path.file_stem().expect("it has a name").to_string_lossy().into_owned();
            let inside = [&module[..], std::slice::from_ref(&name)].concat();
            if path.is_dir() {
                walk(&path, &inside, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let is_folder = name == "mod" || module.is_empty() && (name == "lib" || name == "main");
                let of = if is_folder { module.clone() } else { inside };
                // What `main.rs` needs beside `lib.rs` is the crate's to the outside.
                if !(module.is_empty() && name == "main") {
                    out.insert(of, path);
                }
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(root, &Module::new(), &mut out);
    out
}

fn read(root: &Path) -> Crate {
    let files = files(root);
    let mut sources = Vec::new();
    for (module, path) in &files {
        sources.push((module.clone(), path.clone(), fs::read_to_string(path).expect("it is text")));
    }
    crate_of(sources)
}

/// The modules that are not only for tests, and the paths that each names.
fn crate_of(sources: Vec<(Module, PathBuf, String)>) -> Crate {
    let mut all = Crate::new();
    let mut only_tests = BTreeSet::new();
    for (module, file, text) in sources {
        let source = syn::parse_file(&text).expect("the source parses");
        let mut paths = Paths { here: module.clone(), found: Vec::new(), only_tests: Vec::new() };
        paths.visit_file(&source);
        for declared in &paths.only_tests {
            // `#[path]` counts from the folder of the file that declares it.
            let named = declared.strip_suffix(".rs");
            let parent = file.file_stem().is_some_and(|s| s != "mod" && s != "lib") && named.is_some();
            let above = if parent { &module[..module.len() - 1] } else { &module[..] };
            only_tests.insert([above, &[named.unwrap_or(declared).to_owned()]].concat());
        }
        all.insert(module, paths.found);
    }
    all.retain(|module, _| !(1..=module.len()).any(|n| only_tests.contains(&module[..n])));
    all
}

/// Which module needs which of its neighbours: `(a::b, a::c)` where something in `a::b` names
/// something in `a::c`. A module and those within it may know each other.
fn needs(of: &Crate) -> BTreeSet<(String, String)> {
    let mut edges = BTreeSet::new();
    for (module, paths) in of {
        for path in paths {
            let end = (0..=path.len()).rev().find(|n| of.contains_key(&path[..*n])).unwrap_or(0);
            let path = &path[..end];
            let common = module.iter().zip(path).take_while(|(a, b)| a == b).count();
            if common < module.len() && common < path.len() {
                edges.insert((module[..=common].join("::"), path[..=common].join("::")));
            }
        }
    }
    edges
}

/// Groups of modules each of which needs all the others, if only through one of them.
fn circles(edges: &BTreeSet<(String, String)>) -> Vec<String> {
    let reached = |from: &str| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.to_owned()]);
        while let Some(at) = next.pop() {
            let more = edges.iter().filter(|(a, _)| *a == at).map(|(_, b)| b.clone());
            next.extend(more.filter(|b| seen.insert(b.clone())));
        }
        seen
    };
    let reach: BTreeMap<&str, BTreeSet<String>> =
        edges.iter().map(|(a, _)| (a.as_str(), reached(a))).collect();
    let mut found = BTreeSet::new();
    for (module, to) in &reach {
        let back = |other: &&String| reach.get(other.as_str()).is_some_and(|r| r.contains(*module));
        let circle: Vec<&str> = to.iter().filter(back).map(String::as_str).collect();
        if circle.len() > 1 {
            found.insert(circle.join(", "));
        }
    }
    found.into_iter().collect()
}

/// Imports against the order of the layers, and folders that the order does not name.
fn upward(edges: &BTreeSet<(String, String)>, layers: &[&[&str]]) -> Vec<String> {
    let layer = |module: &str| layers.iter().position(|names| names.contains(&module));
    let top = edges.iter().filter(|(a, _)| !a.contains("::"));
    top.filter(|(a, b)| !matches!((layer(a), layer(b)), (Some(a), Some(b)) if a < b))
        .map(|(a, b)| format!("{a} -> {b}"))
        .collect()
}

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The most lines of code in a function, comments and empty lines not counted.
const LONGEST_FUNCTION: usize = 60;

/// The most lines of a file, the tests in it not counted.
const LONGEST_FILE: usize = 500;

/// Functions that were longer when this was first checked. The list only shrinks.
const LONG_FUNCTIONS: &[&str] = &[
    "crates/core/src/factor/detector.rs candidates",
    "crates/core/src/factor/detector/follow.rs update_blame",
    "crates/core/src/factor/speed.rs examine",
    "crates/core/src/rule/group.rs judge",
    "crates/trace/src/read/event.rs event_at",
    "src/agent/begin.rs begin",
    "src/agent/capture.rs run_now",
    "src/agent/capture/command.rs capture",
    "src/agent/capture/nsys/left.rs close",
    "src/agent/capture/recover.rs find",
    "src/agent/pool/keeper.rs take",
];

/// Files that were longer.
const LONG_FILES: &[&str] = &[
    "crates/core/src/cause/tree.rs",
    "crates/core/src/factor/channel.rs",
    "crates/core/src/factor/detector.rs",
    "crates/core/src/incident.rs",
    "crates/core/src/message/facts.rs",
    "crates/core/src/rule/engine.rs",
    "crates/core/src/rule/factors.rs",
    "crates/core/src/rule/group.rs",
    "crates/core/src/watch/requests.rs",
    "crates/fleet/src/store.rs",
    "src/act/bundle.rs",
    "src/act/state.rs",
    "src/agent/pool/keeper.rs",
    "src/agent/window.rs",
    "src/cli/doctor.rs",
    "src/config/capture.rs",
    "src/config/condition.rs",
    "src/config/file.rs",
];

/// The code of a file as `cargo fmt` lays it out, without what only tests use: such an item ends with the line
/// that closes it at its own indentation.
fn code_of(text: &str) -> Vec<&str> {
    let (mut code, mut lines) = (Vec::new(), text.lines());
    while let Some(line) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            code.push(line);
            continue;
        }
        let indent = &line[..line.len() - line.trim_start().len()];
        let ends = [format!("{indent}}}"), format!("{indent}}};"), format!("{indent}];")];
        for line in lines.by_ref() {
            let is_outer = line.starts_with(indent) && !line[indent.len()..].starts_with([' ', '#', '/']);
            if is_outer
                && (line.ends_with([';', ',']) || line.ends_with("{}") || ends.iter().any(|e| line == e))
            {
                break;
            }
        }
    }
    code
}

/// The functions of a file, each with how many lines of code its body has.
fn lengths_of(code: &[&str]) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    for (at, line) in code.iter().enumerate() {
        let words: Vec<&str> = line.trim_start().split([' ', '(', '<']).collect();
        let Some(fn_at) = words.iter().position(|word| *word == "fn") else { continue };
        let is_qualifier = |word: &&str| {
            word.starts_with("pub") || word.ends_with(')') || ["const", "async", "in"].contains(word)
        };
        if !words[..fn_at].iter().all(is_qualifier) || line.trim_end().ends_with([';', '}']) {
            continue;
        }
        let end = format!("{}}}", &line[..line.len() - line.trim_start().len()]);
        let body = code[at..].iter().take_while(|line| **line != end);
        let body = body.skip_while(|line| !line.ends_with('{')).skip(1).map(|line| line.trim());
        let count = body.filter(|line| !line.is_empty() && !line.starts_with("//")).count();
        found.push((words.get(fn_at + 1).copied().unwrap_or_default().to_owned(), count));
    }
    found
}

/// What is longer than it may be in the code that is shipped: functions, and files.
fn too_long() -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut functions, mut long_files) = (BTreeSet::new(), BTreeSet::new());
    for path in ["src", "crates/core/src", "crates/fleet/src", "crates/judge/src", "crates/trace/src"] {
        let shipped = read(&root(path));
        for (_, file) in files(&root(path)).into_iter().filter(|(module, _)| shipped.contains_key(module)) {
            let text = fs::read_to_string(&file).expect("it is text");
            let code = code_of(&text);
            let name = file.strip_prefix(root("")).expect("it is in the repository").display().to_string();
            if code.len() > LONGEST_FILE {
                long_files.insert(name.clone());
            }
            let long = lengths_of(&code).into_iter().filter(|(_, lines)| *lines > LONGEST_FUNCTION);
            functions.extend(long.map(|(function, _)| format!("{name} {function}")));
        }
    }
    (functions, long_files)
}

#[test]
fn functions_and_files_are_short_but_for_those_that_never_were() {
    let (functions, files) = too_long();
    for (found, known, what) in [
        (functions, LONG_FUNCTIONS, "a function of up to 60 lines"),
        (files, LONG_FILES, "a file of up to 500 lines"),
    ] {
        let known: BTreeSet<String> = known.iter().map(|s| (*s).to_owned()).collect();
        let fresh: Vec<&String> = found.difference(&known).collect();
        assert!(fresh.is_empty(), "split these; CONTRIBUTING.md wants {what}: {fresh:#?}");
        let done: Vec<&String> = known.difference(&found).collect();
        assert!(
            done.is_empty(),
            "these are short now: take them from the list in tests/it/borders.rs: {done:#?}"
        );
    }
}

#[test]
fn long_functions_and_code_of_tests_are_seen_in_a_sample_that_has_them() {
    let sample = "struct A;\n#[cfg(test)]\nmod tests {\n    fn not_counted() {\n        f();\n    }\n}\n\
                  impl A {\n    pub(super) async fn three(\n        &self,\n    ) -> u8 {\n        // Why.\n        a();\n\n        \
                  b();\n        if c() {\n        }\n    }\n    fn declared(&self);\n    #[cfg(test)]\n    fn of_a_test(&self) {\n    \
                  }\n}\n#[cfg(test)]\nmod more;\nfn none() {}\nfn one<T>() {\n    d();\n}\n";
    let code = code_of(sample);
    assert_eq!(lengths_of(&code), [("three".to_owned(), 4), ("one".to_owned(), 1)]);
    assert_eq!(code.len(), 18, "{code:#?}");
}

#[test]
fn no_comment_line_is_longer_than_120_characters() {
    let mut long = Vec::new();
    for path in ["src", "crates", "tests", "benches", "examples"] {
        for file in files(&root(path)).into_values() {
            let text = fs::read_to_string(&file).expect("it is text");
            let is_long = |line: &str| line.trim_start().starts_with("//") && line.chars().count() > 120;
            let numbered = text.lines().enumerate().filter(|(_, line)| is_long(line));
            long.extend(numbered.map(|(at, _)| format!("{}:{}", file.display(), at + 1)));
        }
    }
    assert!(long.is_empty(), "wrap these at 110; `cargo fmt` leaves comments alone: {long:#?}");
}

#[test]
fn no_two_neighbouring_modules_need_each_other() {
    let mut found = Vec::new();
    for path in ["src", "crates/core/src", "crates/trace/src"] {
        let of = read(&root(path));
        assert!(of.len() > 5, "{path} has hardly any code: the test would hold for nothing");
        found.extend(circles(&needs(&of)).into_iter().map(|circle| format!("{path}: {circle}")));
    }
    assert!(found.is_empty(), "these modules need each other:\n{}", found.join("\n"));
}

#[test]
fn no_layer_of_the_program_imports_one_above_or_beside_it() {
    let edges = needs(&read(&root("src")));
    assert!(edges.contains(&("cli".into(), "agent".into())), "the imports are seen: {edges:?}");
    let broken = upward(&edges, LAYERS);
    assert!(broken.is_empty(), "these imports go up or sideways:\n{}", broken.join("\n"));
}

#[test]
fn no_module_of_the_core_imports_one_above_or_beside_it() {
    let edges = needs(&read(&root("crates/core/src")));
    assert!(edges.contains(&("watch".into(), "rule".into())), "the imports are seen: {edges:?}");
    let broken = upward(&edges, CORE_LAYERS);
    assert!(broken.is_empty(), "these imports go up or sideways:\n{}", broken.join("\n"));
}

#[test]
fn circles_and_imports_against_the_order_are_seen_in_a_sample_that_has_them() {
    let source = |module: &[&str], file: &str, text: &str| {
        (module.iter().map(|s| (*s).to_owned()).collect(), PathBuf::from(file), text.to_owned())
    };
    let sample = crate_of(vec![
        source(&[], "lib.rs", "mod act; mod agent; mod observe;"),
        source(
            &["act"],
            "act.rs",
            "use crate::{observe::tail, agent::clock}; fn f() { self::bundle::write() }",
        ),
        source(&["act", "bundle"], "act/bundle.rs", "use super::state::State; use super::Told;"),
        source(
            &["act", "state"],
            "act/state.rs",
            "fn f() { info!(at = super::bundle::NOW) } #[cfg(test)] #[path = \"state_tests.rs\"] mod tests;",
        ),
        source(&["act", "state_tests"], "act/state_tests.rs", "use crate::act::outbox;"),
        source(
            &["act", "outbox"],
            "act/outbox.rs",
            "use super::state_tests; mod inner { use super::super::state; }",
        ),
        source(&["agent"], "agent.rs", "use crate::act; #[cfg(test)] mod tests { use crate::cli; }"),
        source(&["observe"], "observe.rs", "use std::fs;"),
        source(&["cli"], "cli.rs", ""),
    ]);
    let edges = needs(&sample);
    assert_eq!(circles(&edges), ["act, agent", "act::bundle, act::state"]);
    assert_eq!(upward(&edges, LAYERS), ["act -> agent", "act -> observe"]);
    assert!(edges.contains(&("act::outbox".into(), "act::state".into())), "{edges:?}");
    assert_eq!(edges.len(), 6, "neither tests nor a parent count: {edges:?}");
}
