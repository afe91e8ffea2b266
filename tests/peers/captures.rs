//! Whole captures of real servers, of which the repository holds the parts that matter.

use crate::beside::recording;
use crate::support::comparison::{attention_of, check_nsight, compared, lost, named, skew};

#[test]
fn the_whole_window_while_the_backlog_drained_says_what_its_part_says() {
    let Some(draining) = recording("sglang-0.5.16-dp4/traces/draining") else { return };
    let c = compared(&[draining]);
    assert_eq!(named(&c), attention_of("DP2"));
    assert!(lost(&c) < lost(&compared(&[skew()])));
}

#[test]
fn the_whole_nsight_window_says_what_its_part_says() {
    let Some(window) = recording("sglang-0.5.16-dp4-nsys/window.sqlite.gz") else { return };
    check_nsight(window);
}
