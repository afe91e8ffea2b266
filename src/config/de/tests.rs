//! What `de` promises.

use super::*;
use crate::config::tree;

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "snake_case")]
#[derive(Default)]
struct Rule {
    name: Field<String>,
    bound: Field<f64>,
    steps: Field<u32>,
    severity: Field<Severity>,
    capture: Field<Capture>,
    notify: Field<Vec<Field<String>>>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Severity {
    Info,
    Warning,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Capture {
    None,
    Http(Http),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Http {
    num_steps: Field<u32>,
}

fn read_all(text: &str) -> (Option<Rule>, String) {
    let tree = tree::parse(text).expect("YAML");
    let mut findings = Findings::new("r.yaml", text);
    let rule = read(&tree, &mut findings);
    let lines = findings.into_sorted().into_iter().map(|d| {
        format!(
            "{}:{} {}{}",
            d.line,
            d.column,
            d.message,
            d.hint.map_or(String::new(), |h| format!(" ({h})"))
        )
    });
    (rule, lines.collect::<Vec<_>>().join("\n"))
}

#[test]
fn every_problem_of_a_file_is_found_in_its_place() {
    let text = "name: a\nname: b\nbound: eight\nsteps: -3\nseverty: info\nseverity: warn\n\
                    capture: { http: { num_step: 3, num_steps: [1] } }\nnotify: [a, {b: 1}, 1.10]\n";
    let (rule, problems) = read_all(text);
    insta::assert_snapshot!(problems, @r#"
        2:1 `name` is given twice (it was first given on line 1)
        3:8 expected a number, found the text "eight"
        4:8 expected a whole number, 0 or more, found the number -3
        5:1 unknown key `severty` (did you mean `severity`?)
        6:11 unknown choice `warn` (did you mean `warning`?)
        7:20 unknown key `num_step` (did you mean `num_steps`?)
        7:44 expected a whole number, 0 or more, found a list
        8:13 expected a text, found a mapping
        "#);
    let rule = rule.expect("what is right is kept");
    assert_eq!(rule.name.placed(), Some((&"a".to_owned(), Place { line: 1, column: 7, width: 1 })));
    assert!(matches!(rule.bound, Field::Wrong(_)) && rule.steps.get().is_none());
    let notify: Vec<Option<&String>> = rule.notify.get().expect("a list").iter().map(Field::get).collect();
    assert_eq!(notify, [Some(&"a".to_owned()), None, Some(&"1.10".to_owned())]);
}

#[test]
fn choices_are_written_as_keys_and_wrong_ones_are_told() {
    let (rule, problems) = read_all("capture: none\nseverity: info\n");
    assert_eq!(problems, "");
    assert!(matches!(rule.expect("read").capture.get(), Some(Capture::None)));
    let (rule, _) = read_all("capture: { http: { num_steps: 3 } }\n");
    let rule = rule.expect("read");
    let Some(Capture::Http(http)) = rule.capture.get() else { panic!("not a window") };
    assert_eq!(http.num_steps.get(), Some(&3));
    let (_, problems) = read_all("capture: { htp: {} }\n");
    assert_eq!(problems, "1:12 unknown choice `htp` (did you mean `http`?)");
    let (_, problems) = read_all("capture: http\n");
    assert_eq!(
        problems,
        "1:10 `http` wants its settings, which may be empty (write `capture: { http: {} }`)"
    );
    let (_, problems) = read_all("capture: { http: {}, none: {} }\n");
    assert_eq!(problems, "1:22 exactly one of `none`, `http` is wanted here, not 2");
}

#[test]
fn a_whole_file_of_the_wrong_kind_is_one_clear_error() {
    let (rule, problems) = read_all("[1, 2]\n");
    assert!(rule.is_none());
    assert!(problems.starts_with("1:1 expected a mapping with `name`"), "{problems}");
}

#[test]
fn a_list_that_is_written_as_one_entry_says_how_it_is_written() {
    assert_eq!(
        read_all("notify: oncall\n").1,
        "1:9 expected a list, found the text \"oncall\" (a list of one is written [oncall])"
    );
    assert_eq!(
        read_all("notify:\n  name: oncall\n").1,
        "2:3 expected a list, found a mapping (each entry of a list begins with a dash: `- name: ...`)"
    );
}
