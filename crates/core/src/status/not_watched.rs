//! What cannot be watched on a server whose ranks have no numbers of their own, and what can.
//!
//! The ranks of one TP, PP or EP group work on one batch together, so an engine shows one load for all of them, and
//! no rule has anything to compare. That must be said wherever somebody might take silence for health.

use crate::capture::facts::{ServerKind, Sizes};
use crate::rule::MOST_RANKS;

/// What the rules that are in force can do on a server, as far as somebody knows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reach<'a> {
    /// The rules that can fire there; `None` where that was not looked at.
    pub able: Option<&'a [&'a str]>,
    /// A rule that compares what the machine says of the ranks' processes, if one is in force.
    pub of_machine: Option<&'a str>,
}

/// Why ranks of a server of these sizes cannot be compared, what can be watched there all the same, and what to
/// do; `None` where each rank has its own numbers, and where the only rank is compared with those of other servers.
pub fn not_watched(engine: ServerKind, sizes: &Sizes, reach: Reach<'_>) -> Option<String> {
    if sizes.dp > 1 {
        let left_out = usize::from(sizes.dp).saturating_sub(MOST_RANKS);
        return (left_out > 0).then(|| {
            format!(
                "of its {} DP ranks the rules on factors (dp-load-skew, stuck-rank) compare the first {MOST_RANKS} that are heard, \
                 and the other {left_out} are not compared; rules on levels compare all of them",
                sizes.dp
            )
        });
    }
    let together = usize::from(sizes.tp.max(sizes.ep)) * usize::from(sizes.pp);
    let is_alone = engine.reports_its_sizes() && together == 1;
    if is_alone && reach.able.is_some_and(|able| !able.is_empty()) {
        return None;
    }
    let why = match (engine.reports_its_sizes(), together) {
        (true, 2..) => format!(
            "its {together} ranks ({}) work on one batch together and show one load for all of them, so no rule \
             can compare their loads, requests or speeds",
            axes_of(sizes)
        ),
        (true, _) => "it has one rank, so there is nothing that its load could be compared with".to_owned(),
        (false, _) => {
            "it shows the numbers of one engine, so there is nothing that they could be compared with"
                .to_owned()
        }
    };
    let able = reach.able.unwrap_or_default();
    let can = match reach.able {
        None => String::new(),
        Some([]) => "; no rule that is in force can fire on it".to_owned(),
        Some(able) => format!("; what can fire on it: {}", able.join(", ")),
    };
    let machine = match reach.of_machine {
        Some(rule) if able.contains(&rule) => String::new(),
        Some(rule) if reach.able.is_some() => format!(
            ". {rule} sees none of its processes: run the agent on its machine and in its PID namespace, with an address of \
             that machine as `url`"
        ),
        Some(_) => String::new(),
        None if together > 1 || !engine.reports_its_sizes() => {
            ". Add `preset:crowded-scheduler` to `rules`: it compares how long the ranks' processes wait for a CPU"
                .to_owned()
        }
        None => String::new(),
    };
    let compares = match is_alone {
        true => " and compare it with a baseline of it (docs/howto/baseline.md)",
        false => ": that compares the ranks' kernels",
    };
    Some(format!(
        "{why}{can}{machine}. When it is slow, take a window by hand (`skewtrap capture start`){compares}. More: \
         docs/howto/one-load.md"
    ))
}

/// `tp 8, pp 2`: the axes on which there are several.
fn axes_of(sizes: &Sizes) -> String {
    let all = [("tp", sizes.tp), ("pp", sizes.pp), ("ep", sizes.ep)];
    let several = all.iter().filter(|(_, size)| *size > 1);
    several.map(|(axis, size)| format!("{axis} {size}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TP8: Sizes = Sizes { dp: 1, tp: 8, pp: 1, ep: 1, nodes: 1, dp_attention: false };

    #[test]
    fn a_server_whose_ranks_show_one_load_says_so_and_what_can_be_done() {
        let told = |reach| not_watched(ServerKind::Sglang, &TP8, reach).expect("one load");
        let nothing = told(Reach { able: Some(&[]), of_machine: None });
        for wanted in [
            "its 8 ranks (tp 8)",
            "one load for all",
            "no rule that is in force can",
            "preset:crowded-scheduler",
            "by hand",
        ] {
            assert!(nothing.contains(wanted), "no {wanted} in: {nothing}");
        }
        let watched =
            told(Reach { able: Some(&["crowded-scheduler"]), of_machine: Some("crowded-scheduler") });
        assert!(watched.contains("what can fire on it: crowded-scheduler"), "{watched}");
        assert!(!watched.contains("Add `preset"), "{watched}");
        let far = told(Reach { able: Some(&[]), of_machine: Some("crowded-scheduler") });
        assert!(far.contains("sees none of its processes") && !far.contains("Add `preset"), "{far}");
        let unknown = told(Reach::default());
        assert!(!unknown.contains("in force"), "nobody looked: {unknown}");
    }

    #[test]
    fn one_rank_has_nothing_beside_it_and_several_dp_ranks_are_compared() {
        let one = not_watched(ServerKind::Sglang, &Sizes::default(), Reach::default()).expect("one rank");
        assert!(one.starts_with("it has one rank") && !one.contains("crowded-scheduler"), "{one}");
        assert!(one.contains("(`skewtrap capture start`) and compare it with a baseline"), "{one}");
        let replicas = Reach { able: Some(&["replica-skew"]), of_machine: None };
        assert_eq!(not_watched(ServerKind::Sglang, &Sizes::default(), replicas), None, "it is watched");
        let engine = not_watched(ServerKind::Vllm, &Sizes::default(), Reach::default()).expect("one engine");
        assert!(engine.starts_with("it shows the numbers of one engine"), "{engine}");
        let several = Sizes { dp: 2, ..TP8 };
        assert_eq!(not_watched(ServerKind::Sglang, &several, Reach::default()), None);
        assert_eq!(
            not_watched(ServerKind::Sglang, &Sizes { dp_attention: true, ..several }, Reach::default()),
            None
        );
    }

    #[test]
    fn ranks_beyond_those_that_are_compared_are_counted() {
        let of = |dp| not_watched(ServerKind::Sglang, &Sizes { dp, ..Sizes::default() }, Reach::default());
        assert_eq!(of(256), None);
        let told = of(300).expect("some are left out");
        assert!(told.starts_with("of its 300 DP ranks") && told.contains("the other 44 are not"), "{told}");
    }

    #[test]
    fn pipeline_and_expert_ranks_are_counted_once() {
        let sizes = Sizes { pp: 2, ep: 8, ..TP8 };
        let told = not_watched(ServerKind::Sglang, &sizes, Reach::default()).expect("one load");
        assert!(told.starts_with("its 16 ranks (tp 8, pp 2, ep 8)"), "{told}");
    }
}
