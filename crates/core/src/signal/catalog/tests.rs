//! What `catalog` promises.

use std::collections::BTreeSet;

use super::*;

#[test]
fn every_name_is_used_once_and_finds_its_number() {
    let names: BTreeSet<_> = BUILT_IN.iter().map(|e| e.name).collect();
    assert_eq!(names.len(), BUILT_IN_COUNT);
    assert_eq!(signal_named("load"), Some(LOAD));
    assert_eq!(name_of(DP_LOST_SHARE), "dp_attention_lost_share");
    assert_eq!(signal_named("laod"), None);
}

#[test]
fn no_word_of_a_source_means_two_signals() {
    for column in [
        |e: &Entry| [e.log, e.decode].concat(),
        |e: &Entry| [e.log, e.prefill].concat(),
        |e: &Entry| e.vllm.to_vec(),
        |e: &Entry| e.metrics.to_vec(),
        |e: &Entry| e.loads.to_vec(),
    ] {
        let words: Vec<_> = BUILT_IN.iter().flat_map(column).collect();
        let once: BTreeSet<_> = words.iter().collect();
        assert_eq!(once.len(), words.len(), "{words:?}");
    }
}

#[test]
fn a_users_signal_comes_after_the_built_in_ones_and_keeps_its_number() {
    let mut catalog = Catalog::default();
    let own = |name: &str| UserSignal { name: name.into(), unit: "ms".into(), kind: Kind::Gauge };
    let first = catalog.define(own("ttft")).expect("a new name");
    assert_eq!(first, Signal(BUILT_IN_COUNT as u16));
    catalog.define(own("other")).expect("a new name");
    assert_eq!(catalog.define(own("ttft")), Ok(first));
    assert_eq!((catalog.name_of(first), catalog.unit_of(first)), ("ttft", "ms"));
    assert_eq!(catalog.define(own("load")), Err(DefineError::BuiltIn("load".into())));
    assert_eq!(catalog.signal_named("load"), Some(LOAD));
}
