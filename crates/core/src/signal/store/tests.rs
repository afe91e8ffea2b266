//! What groups show: silence, precedence, duplicates, roles, replicas.

use super::*;
use crate::signal::catalog::{KV_USAGE, LOAD, QUEUE_REQS, RUNNING_REQS};
use crate::signal::frame::Frame;
use skewtrap_trace::rank::Axis;

/// A store with one server, a view of `load` per DP rank, and a few words to feed it.
struct Scene {
    store: SignalStore,
    target: TargetId,
    view: ViewId,
}

fn names(labels: &[&str]) -> Vec<Arc<str>> {
    labels.iter().map(|l| Arc::from(*l)).collect()
}

fn at(s: f64) -> Time {
    Time::from_epoch_s(1000.0 + s)
}

fn fields(running: f64, queued: f64) -> Fields {
    let mut fields = Fields::default();
    fields.set(RUNNING_REQS, running);
    fields.set(QUEUE_REQS, queued);
    fields
}

impl Scene {
    fn new() -> Self {
        let mut store = SignalStore::new(Arc::default(), Bounds::default());
        let target = store.add_target("a".into(), None);
        let view = store.subscribe(LOAD, &names(&["dp_rank"]), &names(&["target", "role"]));
        Self { store, target, view }
    }

    fn log(&mut self, rank: Rank, load: f64, s: f64) {
        self.store.record(self.target, rank, Source::Log, &fields(load, 0.0), at(s), at(s));
    }

    fn loads(&mut self, rank: Rank, load: f64, s: f64, age_s: f64) {
        let then = at(s - age_s);
        self.store.record(self.target, rank, Source::Loads, &fields(load, 0.0), then, at(s));
    }

    /// The only group as `0=4 1=0*`, a star for stale.
    fn shown(&mut self, s: f64) -> String {
        let (group, _) = self.store.groups(self.view).next().expect("a group");
        text(self.store.frame(self.view, group, at(s), Duration::ZERO))
    }
}

fn text(frame: &Frame) -> String {
    let member = |m: &crate::signal::frame::Member| {
        let id: Vec<_> = m.id.0.values().map(ToString::to_string).collect();
        format!("{}={}{}", id.join("/"), m.value, if m.stale { "*" } else { "" })
    };
    frame.members.iter().map(member).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_rank_silent_while_its_peers_speak_is_zero_and_a_silent_server_is_no_data() {
    let mut scene = Scene::new();
    for i in 0..100 {
        let s = f64::from(i) * 0.1;
        scene.log(Rank::dp(1), 6.0, s);
        if s < 5.0 {
            scene.log(Rank::dp(0), 3.0, s);
        }
    }
    assert_eq!(scene.shown(7.5), "0=3 1=6", "not silent long enough");
    assert_eq!(scene.shown(9.9), "0=0* 1=6");
    assert_eq!(scene.shown(14.0), "", "nobody speaks: that is not zero");
    scene.log(Rank::dp(0), 2.0, 20.0);
    assert_eq!(scene.shown(20.0), "0=2 1=0*");
}

#[test]
fn a_rank_that_writes_a_profile_is_not_starved() {
    let mut scene = Scene::new();
    scene.log(Rank::dp(0), 3.0, 0.0);
    scene.log(Rank::dp(1), 6.0, 0.0);
    scene.store.note_profile(scene.target, Rank::dp(0), &Profile::Stopping { stage: None });
    scene.log(Rank::dp(1), 6.0, 8.0);
    assert_eq!(scene.shown(8.0), "0=3* 1=6", "its last word stands");
    scene.store.note_profile(scene.target, Rank::dp(0), &Profile::Done { dir: "/x".into() });
    assert_eq!(scene.shown(8.5), "0=0* 1=6");
}

#[test]
fn a_rank_that_the_server_counts_but_nobody_heard_is_missing_after_a_while() {
    let mut scene = Scene::new();
    scene.store.expect_ranks(scene.target, 3, at(0.0));
    for s in [0.0, 5.0, 11.0] {
        scene.log(Rank::dp(0), 3.0, s);
        scene.log(Rank::dp(1), 4.0, s);
    }
    assert_eq!(scene.shown(6.0), "0=3 1=4");
    assert_eq!(scene.shown(11.0), "0=3 1=4 2=0*");
    scene.store.expect_ranks(scene.target, 2, at(11.0));
    assert_eq!(scene.shown(11.0), "0=3 1=4", "the server was restarted with fewer");
    let late = scene.store.subscribe(RUNNING_REQS, &names(&["dp_rank"]), &names(&["target"]));
    scene.store.expect_ranks(scene.target, 3, at(12.0));
    let group = scene.store.groups(late).next().expect("a group").0;
    assert_eq!(text(scene.store.frame(late, group, at(12.0), Duration::ZERO)), "0=3 1=4");
}

#[test]
fn ranks_beyond_what_the_server_says_are_refused_and_counted() {
    let mut scene = Scene::new();
    scene.store.limit_ranks(scene.target, Some(2));
    for dp in 0..3 {
        scene.log(Rank::dp(dp), 3.0, 0.0);
    }
    assert_eq!(scene.shown(0.0), "0=3 1=3");
    assert_eq!(scene.store.dropped(), 2, "both numbers of the third");
    scene.store.limit_ranks(scene.target, Some(3));
    scene.log(Rank::dp(2), 4.0, 1.0);
    assert_eq!(scene.shown(1.0), "0=3 1=3 2=4", "it was started again with more");
}

#[test]
fn one_server_with_more_and_more_ranks_takes_bounded_memory() {
    let mut scene = Scene::new();
    let ranks = (0..100).flat_map(|dp| (0..100).map(move |tp| Rank::dp(dp).with(Axis::Tp, tp)));
    for rank in ranks {
        scene.log(rank, 1.0, 0.0);
    }
    assert!(scene.store.series_count() < 20_000, "{}", scene.store.series_count());
    assert!(scene.store.dropped() > 0);
    let other = scene.store.add_target("b".into(), None);
    scene.store.record(other, Rank::dp(0), Source::Log, &fields(1.0, 0.0), at(0.0), at(0.0));
    assert!(scene.store.lines_of(other, LOAD, at(0.0)).count() > 0, "the others have their place");
}

#[test]
fn the_better_source_wins_while_it_is_fresh() {
    let mut scene = Scene::new();
    for dp in 0..2 {
        scene.log(Rank::dp(dp), 3.0, 0.0);
        scene.loads(Rank::dp(dp), 5.0, 0.0, 0.0);
    }
    assert_eq!(scene.shown(0.5), "0=5 1=5");
    for s in [1.0, 2.0, 3.0, 4.0] {
        scene.log(Rank::dp(0), 4.0, s);
        scene.log(Rank::dp(1), 4.0, s);
    }
    assert_eq!(scene.shown(4.0), "0=4 1=4", "the endpoint stopped answering");
    scene.loads(Rank::dp(0), 7.0, 4.5, 0.0);
    scene.loads(Rank::dp(1), 7.0, 4.5, 12.0);
    assert_eq!(scene.shown(4.6), "0=7 1=7*", "what a server calls old is shown, and stale");
    scene.loads(Rank::dp(0), 9.0, 4.7, 2.0);
    assert_eq!(scene.shown(4.8), "0=9 1=7*", "a clock that is a little behind is evened out");
}

#[test]
fn tp_peers_that_repeat_their_group_are_one_member() {
    let mut scene = Scene::new();
    for tp in 0..4 {
        scene.log(Rank::dp(tp / 2).with(Axis::Tp, tp), 8.0 + f64::from(tp), 0.0);
    }
    assert_eq!(scene.shown(0.0), "0=8 1=10");
}

#[test]
fn whole_servers_are_compared_by_the_sum_of_their_ranks_or_the_mean_of_their_shares() {
    let mut scene = Scene::new();
    let other = scene.store.add_target("b".into(), None);
    let sums = scene.store.subscribe(LOAD, &names(&["target"]), &names(&["role"]));
    let means = scene.store.subscribe(KV_USAGE, &names(&["target"]), &names(&["role"]));
    for (target, dp, load) in
        [(scene.target, 0, 1.0), (scene.target, 1, 2.0), (other, 0, 10.0), (other, 1, 20.0)]
    {
        for tp in 0..2 {
            let mut fields = fields(load, 0.5);
            fields.set(KV_USAGE, load / 64.0);
            let rank = Rank::dp(dp).with(Axis::Tp, tp);
            scene.store.record(target, rank, Source::Metrics, &fields, at(0.0), at(0.0));
        }
    }
    let group = |store: &SignalStore, view| store.groups(view).next().expect("a group").0;
    let (g, h) = (group(&scene.store, sums), group(&scene.store, means));
    assert_eq!(text(scene.store.frame(sums, g, at(1.0), Duration::ZERO)), "a=4 b=31");
    assert_eq!(text(scene.store.frame(means, h, at(1.0), Duration::ZERO)), "a=0.0234375 b=0.234375");
    scene.store.record(other, Rank::dp(0), Source::Metrics, &fields(1.0, 0.0), at(9.0), at(9.0));
    assert_eq!(
        text(scene.store.frame(sums, g, at(9.0), Duration::ZERO)),
        "b=1",
        "a silent server has no data"
    );
}

#[test]
fn roles_are_never_mixed_and_a_role_that_is_learned_moves_its_ranks() {
    let mut scene = Scene::new();
    scene.log(Rank::dp(0), 3.0, 0.0);
    scene.log(Rank::dp(1), 3.0, 0.0);
    let decode = scene.store.add_target("d".into(), Some(Role::Decode));
    scene.store.record(decode, Rank::dp(0), Source::Log, &fields(1.0, 0.0), at(0.0), at(0.0));
    let groups = |s: &SignalStore, v| s.groups(v).map(|(_, l)| l.to_string()).collect::<Vec<_>>();
    assert_eq!(groups(&scene.store, scene.view), ["role=unified target=a", "role=decode target=d"]);
    scene.store.note_role(scene.target, Role::Prefill);
    scene.store.note_role(decode, Role::Prefill);
    assert_eq!(
        groups(&scene.store, scene.view),
        ["role=prefill target=a", "role=decode target=d"],
        "what is declared stands"
    );
}

#[test]
fn groups_that_got_samples_are_told_once_and_those_without_a_label_are_explained() {
    let mut scene = Scene::new();
    let mut touched = Vec::new();
    scene.log(Rank::dp(0), 3.0, 0.0);
    scene.log(Rank::dp(1), 3.0, 0.0);
    scene.store.take_touched(&mut touched);
    assert_eq!(touched, [(scene.view, GroupId(0))]);
    scene.store.take_touched(&mut touched);
    assert!(touched.is_empty());
    scene.log(Rank::tp(0), 3.0, 0.0);
    scene.store.take_touched(&mut touched);
    assert!(touched.is_empty());
    let lacking: Vec<_> = scene.store.lacking(scene.view).iter().map(|(l, n)| (l.to_string(), *n)).collect();
    assert_eq!(lacking, [("dp_rank".to_owned(), 1)]);
}

#[test]
fn the_same_view_is_made_once() {
    let mut scene = Scene::new();
    let again = scene.store.subscribe(LOAD, &names(&["dp_rank"]), &names(&["target", "role"]));
    assert_eq!(again, scene.view);
}

#[test]
fn smoothing_averages_over_time() {
    let mut scene = Scene::new();
    for (load, s) in [(10.0, 0.0), (20.0, 2.0)] {
        scene.log(Rank::dp(0), load, s);
        scene.log(Rank::dp(1), 4.0, s);
    }
    let group = scene.store.groups(scene.view).next().expect("a group").0;
    let frame = scene.store.frame(scene.view, group, at(4.0), Duration::from_secs(4));
    assert_eq!(text(frame), "0=15 1=4");
}

#[test]
fn counters_become_rates_and_shares_of_rates() {
    let mut scene = Scene::new();
    let view = scene.store.subscribe(catalog::DP_LOST_SHARE, &names(&["dp_rank"]), &[]);
    let mut fields = Fields::default();
    for (s, scheduled, imbalance) in [(0.0, 100.0, 10.0), (2.0, 400.0, 110.0)] {
        fields.clear();
        fields.set(catalog::DP_TOKENS_SCHEDULED, scheduled);
        fields.set(catalog::DP_TOKENS_IMBALANCE, imbalance);
        scene.store.record(scene.target, Rank::dp(0), Source::Metrics, &fields, at(s), at(s));
    }
    let group = scene.store.groups(view).next().expect("a group").0;
    assert_eq!(text(scene.store.frame(view, group, at(2.0), Duration::ZERO)), "0=0.25");
}

#[test]
fn the_throughput_printed_first_after_a_pause_is_left_out() {
    let mut scene = Scene::new();
    let view = scene.store.subscribe(catalog::GEN_THROUGHPUT, &names(&["dp_rank"]), &[]);
    let mut fields = Fields::default();
    for (s, throughput) in [(0.0, 1.0), (0.5, 100.0), (60.0, 3.0), (60.5, 120.0)] {
        fields.clear();
        fields.set(catalog::GEN_THROUGHPUT, throughput);
        scene.store.record(scene.target, Rank::dp(0), Source::Log, &fields, at(s), at(s));
        let group = scene.store.groups(view).next().expect("a group").0;
        let shown = text(scene.store.frame(view, group, at(s), Duration::ZERO));
        assert_eq!(
            shown,
            ["", "0=100", "0=100", "0=120"]
                [usize::from(s > 0.0) + usize::from(s > 1.0) + usize::from(s > 60.0)]
        );
    }
}

#[test]
fn five_thousand_series_stay_within_their_bounds_and_old_ones_are_forgotten() {
    let mut store = SignalStore::new(Arc::default(), Bounds { ring_bytes: 1 << 20, ..Bounds::default() });
    let target = store.add_target("a".into(), None);
    store.subscribe(LOAD, &names(&["dp_rank"]), &[]);
    for round in 0..60 {
        for dp in 0..2_000 {
            let now = at(f64::from(round));
            store.record(target, Rank::dp(dp), Source::Metrics, &fields(1.0, 2.0), now, now);
        }
    }
    assert_eq!(store.series_count(), 6_000);
    assert!(store.ring_bytes() <= (1 << 20) + 6_000 * 64 + 4096, "{}", store.ring_bytes());
    store.record(target, Rank::dp(9_000), Source::Metrics, &fields(1.0, 2.0), at(5_000.0), at(5_000.0));
    store.sweep(at(5_000.0));
    assert_eq!(store.series_count(), 3);
    let mut few = SignalStore::new(Arc::default(), Bounds { series: 4, ..Bounds::default() });
    let target = few.add_target("a".into(), None);
    for dp in 0..9 {
        few.record(target, Rank::dp(dp), Source::Log, &fields(1.0, 2.0), at(0.0), at(0.0));
    }
    assert_eq!(few.series_count(), 4);
    assert!(few.dropped() > 0);
}

#[test]
fn each_server_brings_its_own_room_for_series_and_those_with_too_many_take_none_of_it() {
    let bounds = Bounds { series: 6, series_of_further: 3, ..Bounds::default() };
    let mut store = SignalStore::new(Arc::default(), bounds);
    let targets: Vec<TargetId> = (0..5).map(|i| store.add_target(format!("s{i}").into(), None)).collect();
    let flood = |store: &mut SignalStore, s: f64| {
        for (target, ranks) in targets.iter().zip([9, 9, 9, 1, 1]) {
            for dp in 0..ranks {
                store.record(*target, Rank::dp(dp), Source::Log, &fields(1.0, 2.0), at(s), at(s));
            }
        }
    };
    flood(&mut store, 0.0);
    let of_each = |store: &SignalStore| store.targets.iter().map(|t| t.series).collect::<Vec<_>>();
    assert_eq!(of_each(&store), [6, 6, 6, 3, 3], "no more than one may have, and for all what each may have");
    // What is forgotten makes room again.
    store.record(targets[3], Rank::dp(0), Source::Log, &fields(1.0, 2.0), at(5_000.0), at(5_000.0));
    store.sweep(at(5_000.0));
    assert_eq!(of_each(&store), [0, 0, 0, 3, 0]);
    flood(&mut store, 5_001.0);
    assert_eq!(of_each(&store), [6, 6, 3, 3, 3], "one has its three already");
}

#[test]
fn standing_tells_what_arrives_and_what_is_overruled() {
    let mut scene = Scene::new();
    scene.log(Rank::dp(0), 3.0, 0.0);
    scene.loads(Rank::dp(0), 5.0, 1.0, 0.0);
    let status = scene.store.series_status(at(1.5));
    let load: Vec<_> = status
        .iter()
        .filter(|s| s.signal == "load")
        .map(|s| (s.source, s.ranks, s.age_s, s.overruled, s.latest[0].value))
        .collect();
    assert_eq!(load, [(Source::Loads, 1, 0.5, false, 5.0), (Source::Log, 1, 1.5, true, 3.0)]);
}

#[test]
fn values_are_put_in_order_only_as_long_as_a_rule_wants_them_so() {
    let mut scene = Scene::new();
    let ordered = |scene: &mut Scene, s: f64| {
        scene.log(Rank::dp(0), 4.0, s);
        scene.log(Rank::dp(1), 2.0, s);
        let (group, _) = scene.store.groups(scene.view).next().expect("a group");
        scene.store.frame(scene.view, group, at(s), Duration::ZERO).sorted.clone()
    };
    assert!(ordered(&mut scene, 1.0).is_empty());
    scene.store.keep_in_order(scene.view);
    assert_eq!(ordered(&mut scene, 2.0), [2.0, 4.0]);
    scene.store.keep_none_in_order();
    assert!(ordered(&mut scene, 3.0).is_empty(), "after a reload without that rule");
}
