//! What `guard` promises.

use super::*;
use crate::signal::frame::Member;
use skewtrap_trace::rank::Rank;

fn guard(source: &str) -> Result<Guard, GuardError> {
    Guard::new(source, &Catalog::default())
}

fn frame(values: &[f64]) -> Frame {
    let member = |(i, value): (usize, &f64)| Member {
        id: Arc::new(Rank::dp(i as u16).labels()),
        value: *value,
        at: Time::from_epoch_s(100.0),
        stale: false,
    };
    Frame::of(values.iter().enumerate().map(member).collect())
}

fn holds(source: &str, load: &[f64], queue: &[f64]) -> Result<bool, GuardError> {
    let guard = guard(source)?;
    let (load, queue) = (frame(load), frame(queue));
    let wanted: Vec<&Frame> = guard.names().map(|n| if n == "load" { &load } else { &queue }).collect();
    guard.holds(wanted.into_iter(), Time::from_epoch_s(102.5))
}

#[test]
fn an_answer_stands_until_a_number_or_a_rank_is_another_one() {
    let (guard, mut last) = (guard("value(load, 1) > 25").expect("a guard"), GuardCache::default());
    let mut ask = |load: &Frame| guard.holds_cached(&mut last, [load].into_iter(), Time::from_epoch_s(101.0));
    let mut load = frame(&[10.0, 30.0]);
    assert_eq!((ask(&load), ask(&load)), (Ok(true), Ok(true)));
    load.members[1].value = 20.0;
    assert_eq!(ask(&load), Ok(false));
    load.members[1].value = 30.0;
    assert_eq!(ask(&load), Ok(true));
    load.members.reverse();
    (load.members[0].value, load.members[1].value) = (10.0, 30.0);
    assert_eq!(ask(&load), Ok(false), "the same numbers, but of other ranks");
    load.members.pop();
    assert_eq!(ask(&load), Ok(false));
}

#[test]
fn an_answer_knows_of_which_signal_a_number_was() {
    let guard = guard("ranks(load) >= 2 && ranks(queue_reqs) >= 1").expect("a guard");
    let mut last = GuardCache::default();
    let mut ask = |load: &Frame, queue: &Frame| {
        guard.holds_cached(&mut last, [load, queue].into_iter(), Time::from_epoch_s(101.0))
    };
    let (mut load, mut queue) = (frame(&[4.0, 4.0]), frame(&[2.0]));
    assert_eq!(ask(&load, &queue), Ok(true));
    queue.members.insert(0, load.members.pop().expect("two"));
    assert_eq!(ask(&load, &queue), Ok(false));
}

#[test]
fn an_age_grows_while_the_numbers_stay() {
    let (guard, mut last, load) =
        (guard("age(load) < 3").expect("a guard"), GuardCache::default(), frame(&[1.0]));
    let mut ask = |s| guard.holds_cached(&mut last, [&load].into_iter(), Time::from_epoch_s(s));
    assert_eq!((ask(102.0), ask(104.0)), (Ok(true), Ok(false)));
}

#[test]
fn guards_compute_over_signals() {
    let (load, queue) = ([10.0, 30.0, 20.0], [0.0, 8.0, 0.0]);
    for (source, expected) in [
        ("ranks(load) >= 2", true),
        ("mean(load) == 20", true),
        ("max(load) / mean(load) > 1.4 && sum(queue_reqs) > 7", true),
        ("min(load) * 2 > 25", false),
        ("value(load, 1) == 30 && load[2] == 20", true),
        ("share(load, 1) > 1/2", false),
        ("age(load) < 2", false),
        ("age(load) < 3", true),
        ("load.exists(r, load[r] > 25)", true),
        ("2 * 3 == 6", true),
    ] {
        assert_eq!(holds(source, &load, &queue), Ok(expected), "{source}");
    }
}

#[test]
fn unknown_names_are_errors_with_a_suggestion() {
    let message = |s: &str| guard(s).map(|_| ()).map_err(|e| e.to_string());
    assert_eq!(
        message("quantile(load) > 8"),
        Err("unknown function `quantile`; there are mean, max, min, sum, ranks, age, value, share".into())
    );
    assert_eq!(message("meen(load) > 8"), Err("unknown function `meen`; did you mean `mean`?".into()));
    assert_eq!(
        message("max(qeue_reqs) > 8"),
        Err("unknown signal `qeue_reqs`; did you mean `queue_reqs`?".into())
    );
    assert_eq!(message("true || nosuch > 1"), Err("unknown signal `nosuch`".into()));
    assert_eq!(message("mean(load, 1) > 1"), Err("`mean` takes 1 argument(s), not 2".into()));
}

#[test]
fn what_could_only_fail_later_fails_at_load() {
    assert!(matches!(guard("load > 8"), Err(GuardError::Runtime(_))));
    assert!(matches!(guard("\"a\" > 1"), Err(GuardError::Runtime(_))));
    assert!(matches!(guard("mean(load)"), Err(GuardError::NotBool(_))));
    assert_eq!(guard(&"1+".repeat(600)), Err(GuardError::TooLong(1200)));
    let Err(GuardError::Syntax { line, column, .. }) = guard("mean(load) > > 2") else {
        panic!("not refused")
    };
    assert_eq!((line, column), (1, 14));
}

#[test]
fn no_data_is_an_error_not_a_false() {
    assert!(matches!(holds("mean(load) > 1", &[], &[]), Err(GuardError::Runtime(_))));
    assert!(matches!(holds("value(load, 7) > 1", &[1.0], &[]), Err(GuardError::Runtime(_))));
}

#[test]
fn what_is_wrong_with_a_guard_is_said_in_the_words_of_the_manual() {
    let of = |s: &str| guard(s).map(|_| ()).expect_err("wrong").to_string();
    let advice = "; of a signal, take `mean(load)`, `max(load)` or `value(load, 2)`";
    for (source, wanted) in [
        ("load > 8", format!("`>` cannot take a signal and a number{advice}")),
        ("!load", format!("`!` cannot take a signal{advice}")),
        ("mean(load) > 'a'", "`>` cannot take a number and a text".into()),
        ("mean(1) > 2", "`mean`: takes a signal, not a number".into()),
        ("value(load, true) > 1", "`value`: a rank is a number or a text, not true or false".into()),
        ("mean(load)", "gives a number; compare it with something".into()),
        ("mean(load) > 1 &&", "it ends where something must follow".into()),
        ("mean(load) > 1 2", "`2` does not fit here".into()),
        ("mean(load) # 1", "`#` cannot stand here".into()),
    ] {
        assert!(of(source).contains(&wanted), "{source}: {}", of(source));
    }
    let message = holds("value(load, 9) > 1", &[1.0, 2.0], &[]).expect_err("no such rank").to_string();
    assert!(message.ends_with("`value`: there is no rank 9 among the 2 of the group"), "{message}");
}

#[test]
fn a_guard_tells_which_ranks_it_asks_for() {
    let guard =
        guard("value(load, 9) > 1 || share(queue_reqs, 0) > 0.5 || load[1] > value(load, ranks(load))")
            .expect("right");
    let asked: Vec<(&str, i64)> = guard.asked_ranks().map(|(name, _, rank)| (name, rank)).collect();
    assert_eq!(asked, [("load", 9), ("queue_reqs", 0)]);
}

#[test]
fn only_a_plain_conjunction_needs_every_rank_that_it_asks_for() {
    for plain in
        ["value(load, 9) > 1", "ranks(load) != 8 && value(load, 7) > 2.5 && (share(load, 7) + 1) > 2"]
    {
        assert!(guard(plain).expect("a guard").is_conjunction(), "{plain}");
    }
    for other in [
        "ranks(load) < 8 || value(load, 7) > 2",
        "ranks(load) < 8 ? true : value(load, 7) > 2",
        "!(ranks(load) >= 8 && value(load, 7) > 2)",
        "(ranks(load) >= 8 && value(load, 7) > 2) == false",
        "[7].all(r, ranks(load) < 8)",
    ] {
        assert!(!guard(other).expect("a guard").is_conjunction(), "{other}");
    }
}
