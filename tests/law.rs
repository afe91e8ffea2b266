//! The law of the layout: which folder may import what. Clippy bans single functions
//! (`clippy.toml`); this test reads every path in the source and fails on a forbidden border.

use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::Visit;

/// For each folder, the path prefixes that its code must not mention.
const LAW: &[(&str, &[&str])] = &[
    ("decide", PURE),
    ("explain", PURE),
    ("observe", &["crate::act", "crate::agent", "crate::serve", "crate::cli"]),
    ("act", &["crate::observe", "crate::agent", "crate::serve", "crate::cli"]),
];

const PURE: &[&str] = &[
    "crate::observe",
    "crate::act",
    "crate::agent",
    "crate::serve",
    "crate::cli",
    "crate::demo",
    "crate::config",
    "tokio",
    "reqwest",
    "rusqlite",
    "axum",
    "notify",
    "rustix",
    "std::fs",
    "std::net",
    "std::process",
    "std::thread",
    "std::env",
];

/// Collects every path of a file, those of `use` trees included, with `super` left as it is.
#[derive(Default)]
struct Paths {
    found: Vec<String>,
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.found.push(path.segments.iter().map(|s| s.ident.to_string()).collect::<Vec<_>>().join("::"));
        syn::visit::visit_path(self, path);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        flatten(&item.tree, String::new(), &mut self.found);
    }
}

fn flatten(tree: &syn::UseTree, prefix: String, found: &mut Vec<String>) {
    let join = |name: String| if prefix.is_empty() { name } else { format!("{prefix}::{name}") };
    match tree {
        syn::UseTree::Path(p) => flatten(&p.tree, join(p.ident.to_string()), found),
        syn::UseTree::Name(n) => found.push(join(n.ident.to_string())),
        syn::UseTree::Rename(r) => found.push(join(r.ident.to_string())),
        syn::UseTree::Glob(_) => found.push(prefix),
        syn::UseTree::Group(g) => g.items.iter().for_each(|t| flatten(t, prefix.clone(), found)),
    }
}

/// `super::` paths made absolute, as seen from a file in the module `module` (`decide::signal`).
fn absolute(path: &str, module: &[String]) -> String {
    let mut base = module.to_vec();
    let mut rest = path;
    let mut climbed = false;
    while let Some(after) = rest.strip_prefix("super::") {
        base.pop();
        rest = after;
        climbed = true;
    }
    if climbed {
        format!("crate::{}::{rest}", base.join("::")).replace("::::", "::")
    } else {
        path.to_owned()
    }
}

fn violations(folder: &str, module: &[String], source: &str) -> Vec<String> {
    let file = syn::parse_file(source).expect("the source parses");
    let mut paths = Paths::default();
    paths.visit_file(&file);
    let banned = LAW.iter().find(|(f, _)| *f == folder).map_or(&[][..], |(_, b)| b);
    let names = |path: &str, prefix: &str| path == prefix || path.starts_with(&format!("{prefix}::"));
    paths.found.iter().map(|p| absolute(p, module)).filter(|p| banned.iter().any(|b| names(p, b))).collect()
}

fn rust_files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("src is readable") {
        let path = entry.expect("src is readable").path();
        if path.is_dir() {
            rust_files(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

#[test]
fn no_folder_reaches_across_its_border() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut broken = Vec::new();
    for (folder, _) in LAW {
        let mut files = Vec::new();
        rust_files(&src.join(folder), &mut files);
        assert!(!files.is_empty(), "src/{folder} has no code: the law would hold for nothing");
        for file in files {
            let inside = file.strip_prefix(&src).expect("it is below src");
            let mut module: Vec<String> =
                inside.with_extension("").iter().map(|c| c.to_string_lossy().into_owned()).collect();
            if module.last().is_some_and(|m| m == "mod") {
                module.pop();
            }
            let source = fs::read_to_string(&file).expect("source is readable");
            for path in violations(folder, &module, &source) {
                broken.push(format!("{}: {path}", inside.display()));
            }
        }
    }
    assert!(broken.is_empty(), "these paths cross a border of the law:\n{}", broken.join("\n"));
}

#[test]
fn the_law_catches_a_sample_that_breaks_it() {
    let module = vec!["decide".to_owned(), "onset".to_owned()];
    let sample = "use tokio::time; use super::super::act::window; use std::{fs, fmt}; \
                  fn f() { let _ = std::process::id(); crate::observe::tail::open(); }";
    let found = violations("decide", &module, sample);
    for wanted in
        ["tokio::time", "crate::act::window", "std::fs", "std::process::id", "crate::observe::tail::open"]
    {
        assert!(found.iter().any(|f| f == wanted), "{wanted} went unseen in {found:?}");
    }
    assert_eq!(found.len(), 5, "`std::fmt` is no offence: {found:?}");
    assert_eq!(violations("observe", &module, "use crate::act::window;"), ["crate::act::window"]);
    assert_eq!(violations("act", &module, "use crate::observe::tail;"), ["crate::observe::tail"]);
}
