//! What `guard` promises.

use super::*;
use crate::decide::rule::Member;
use crate::decide::signal::rank::Rank;

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
