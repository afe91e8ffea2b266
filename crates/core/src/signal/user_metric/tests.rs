use super::*;

fn own(metric: &str, stat: MetricStat) -> UserMetric {
    let over = Duration::from_secs(10);
    UserMetric { signal: Signal(200), metric: metric.into(), stat, labels: Vec::new(), over, target: None }
}

fn reader(metrics: Vec<UserMetric>) -> UserMetrics {
    let mut reader = UserMetrics::default();
    reader.set_metrics(metrics);
    reader
}

fn read(reader: &mut UserMetrics, page: &str, at: f64) -> Vec<(String, f64)> {
    let key = (TargetId(0), SourceId(0));
    let (samples, beyond) = reader.read(key, page.as_bytes(), Time::from_epoch_s(at)).expect("a page");
    assert_eq!(beyond, 0);
    samples.iter().map(|s| (s.rank.to_string(), s.value)).collect()
}

fn further(ranks: RankLabels) -> ExtraPage {
    ExtraPage { source: SourceId(0), ranks, server: "http://10.0.0.7:30000".into() }
}

#[test]
fn a_gauge_and_a_counter_are_read_as_they_are_and_chosen_by_their_labels() {
    let mut chosen = own("node_pressure", MetricStat::Value);
    chosen.labels = vec![("kind".into(), "cpu".into())];
    let mut reader = reader(vec![chosen, own("hits", MetricStat::Rate)]);
    let page = "node_pressure{dp_rank=\"1\",kind=\"cpu\"} 0.25\nnode_pressure{dp_rank=\"1\",kind=\"io\"} 9\n\
                hits_total{engine=\"0\",shard=\"a\"} 3\nhits_total{engine=\"0\",shard=\"b\"} 4\n";
    assert_eq!(read(&mut reader, page, 1.0), [("DP0".into(), 7.0), ("DP1".into(), 0.25)]);
}

#[test]
fn a_mean_is_of_what_was_observed_lately() {
    let mut reader = reader(vec![own("wait", MetricStat::Mean)]);
    let page =
        |sum: f64, n: u32| format!("wait_sum{{dp_rank=\"0\"}} {sum}\nwait_count{{dp_rank=\"0\"}} {n}\n");
    assert_eq!(read(&mut reader, &page(100.0, 1000), 0.0), [], "growth has no first page");
    assert_eq!(read(&mut reader, &page(101.0, 1010), 1.0), [("DP0".into(), 0.1)]);
    assert_eq!(read(&mut reader, &page(111.0, 1020), 6.0), [("DP0".into(), 0.55)]);
    assert_eq!(read(&mut reader, &page(111.0, 1020), 30.0), [("DP0".into(), 0.55)], "since the first page");
    assert_eq!(read(&mut reader, &page(111.0, 1020), 60.0), [], "nothing since then: no mean, not zero");
    assert_eq!(read(&mut reader, &page(1.0, 10), 61.0), [], "restarted");
    assert_eq!(read(&mut reader, &page(3.0, 14), 62.0), [("DP0".into(), 0.5)]);
}

#[test]
fn a_quantile_lies_in_its_bucket_and_above_the_last_bound_is_that_bound() {
    let mut reader = reader(vec![own("wait", MetricStat::Quantile(0.9))]);
    let page = |counts: [u32; 4]| {
        let [a, b, c, all] = counts;
        format!(
            "wait_bucket{{le=\"0.1\"}} {a}\nwait_bucket{{le=\"1.0\"}} {b}\nwait_bucket{{le=\"10.0\"}} {c}\nwait_bucket{{le=\"+Inf\"}} {all}\n"
        )
    };
    assert_eq!(read(&mut reader, &page([5, 5, 5, 5]), 0.0), []);
    let found = read(&mut reader, &page([5 + 80, 5 + 100, 105, 105]), 1.0);
    assert!((found[0].1 - 0.55).abs() < 1e-9, "half of the way through 0.1 to 1: {found:?}");
    let found = read(&mut reader, &page([85, 105, 105, 1105]), 7.0);
    assert_eq!(found[0].1, 10.0, "most are beyond the last bound");
}

#[test]
fn labels_of_another_page_are_mapped_to_ranks_and_strangers_are_left_out() {
    let mut reader =
        reader(vec![own("DCGM_FI_DEV_GPU_TEMP", MetricStat::Value), own("sent", MetricStat::Value)]);
    let values = [("http://a".into(), Rank::dp(3))].into_iter().collect();
    let ranks = RankLabels(
        [("gpu".into(), RankOf::Number(Axis::Dp)), ("worker_id".into(), RankOf::Values(values))].into(),
    );
    reader.set_pages(vec![further(ranks)]);
    let page = "DCGM_FI_DEV_GPU_TEMP{gpu=\"2\",Hostname=\"n1\"} 61\nDCGM_FI_DEV_GPU_TEMP{gpu=\"nvidia1\"} 345\n\
                sent{worker_id=\"http://a\"} 7\nsent{worker_id=\"http://b\"} 8\n";
    assert_eq!(
        read(&mut reader, page, 1.0),
        [("DP1".into(), 345.0), ("DP2".into(), 61.0), ("DP3".into(), 7.0)]
    );
    assert!(reader.is_further_page(SourceId(0)) && !reader.is_further_page(SourceId(1)));
}

#[test]
fn a_page_of_too_many_ranks_takes_a_bounded_place_and_is_counted() {
    let mut reader = reader(vec![own("x", MetricStat::Mean)]);
    let page: String =
        (0..6000).map(|i| format!("x_sum{{dp_rank=\"{0}\"}} 1\nx_count{{dp_rank=\"{0}\"}} 1\n", i)).collect();
    let (_, beyond) =
        reader.read((TargetId(0), SourceId(0)), page.as_bytes(), Time::from_epoch_s(1.0)).expect("a page");
    assert_eq!(beyond, 2 * (6000 - MOST_RANKS as u64));
    assert_eq!(reader.before.len(), MOST_RANKS);
}

#[test]
fn what_a_page_has_of_each_signal_is_told_rank_by_rank() {
    let mut reader = reader(vec![own("wait", MetricStat::Mean), own("absent", MetricStat::Value)]);
    let page = "wait_sum{dp_rank=\"0\"} 1\nwait_count{dp_rank=\"0\"} 1\nwait_sum{dp_rank=\"1\"} 1\n";
    assert_eq!(reader.ranks_on(page.as_bytes()).expect("a page"), [vec![Rank::dp(0)], vec![]]);
}

#[test]
fn dcgms_clock_is_read_from_a_further_page_without_being_asked_for_and_from_the_servers_own_never() {
    let page = "DCGM_FI_DEV_SM_CLOCK{gpu=\"2\"} 1980\n";
    let mut reader = reader(Vec::new());
    assert!(!reader.wants(TargetId(0), SourceId(0)));
    assert_eq!(read(&mut reader, page, 1.0), []);
    let ranks = RankLabels([("gpu".into(), RankOf::Number(Axis::Dp))].into());
    reader.set_pages(vec![further(ranks)]);
    assert!(reader.wants(TargetId(0), SourceId(0)));
    assert_eq!(read(&mut reader, page, 2.0), [("DP2".into(), 1980.0)]);
}

#[test]
fn what_a_router_sent_is_read_of_this_servers_workers_alone_and_by_dp_rank_where_it_names_them() {
    let mut reader = reader(Vec::new());
    reader.set_pages(vec![further(RankLabels::default())]);
    let page = "smg_worker_requests_total{worker=\"http://10.0.0.7:30000@0\",model=\"m\"} 7\n\
                smg_worker_requests_total{worker=\"http://10.0.0.7:30000@1\",model=\"m\"} 3\n\
                smg_worker_requests_total{worker=\"http://10.0.0.7:30000@1\",model=\"n\"} 2\n\
                smg_worker_requests_total{worker=\"http://10.0.0.8:30000@1\",model=\"m\"} 50\n";
    assert_eq!(read(&mut reader, page, 1.0), [("DP0".into(), 7.0), ("DP1".into(), 5.0)]);
    let page = "sgl_router_processed_requests_total{worker=\"http://10.0.0.7:30000/\"} 4\n\
                sgl_router_processed_requests_total{worker=\"http://10.0.0.8:30000\"} 9\n";
    assert_eq!(read(&mut reader, page, 2.0), [(Rank::NONE.to_string(), 4.0)]);
}

#[test]
fn a_router_that_knows_a_server_by_another_address_is_mapped_by_hand() {
    let values = [("http://chat-0:30000".into(), Rank::dp(3))].into_iter().collect();
    let mut reader = reader(Vec::new());
    reader.set_pages(vec![further(RankLabels([("worker".into(), RankOf::Values(values))].into()))]);
    let page = "smg_worker_requests_total{worker=\"http://chat-0:30000\"} 7\n\
                smg_worker_requests_total{worker=\"http://chat-1:30000\"} 8\n";
    assert_eq!(read(&mut reader, page, 1.0), [("DP3".into(), 7.0)]);
}

#[test]
fn a_counter_grows_by_what_each_of_its_series_grew_whichever_of_them_a_page_has() {
    let mut reader = reader(vec![own("hits", MetricStat::Rate)]);
    let mut total = |series: &[(&str, u32)], at: f64| {
        let line =
            |(shard, value): &(&str, u32)| format!("hits_total{{dp_rank=\"0\",shard=\"{shard}\"}} {value}\n");
        let page: String = series.iter().map(line).collect();
        read(&mut reader, &page, at)[0].1
    };
    assert_eq!(total(&[("a", 1000), ("b", 10)], 0.0), 1010.0);
    assert_eq!(total(&[("a", 1003), ("b", 10)], 1.0), 1013.0);
    assert_eq!(total(&[("b", 12)], 2.0), 1015.0, "one has left the page");
    assert_eq!(total(&[("a", 1005), ("b", 12)], 3.0), 1017.0, "and is back");
    assert_eq!(total(&[("a", 1005), ("b", 12), ("c", 500)], 4.0), 1017.0, "what it had before nobody saw");
    assert_eq!(total(&[("a", 4), ("b", 1), ("c", 0)], 5.0), 1022.0, "restarted");
}

#[test]
fn a_reload_that_leaves_a_counter_as_it_is_counts_on() {
    let hits = || own("hits", MetricStat::Rate);
    let mut reader = reader(vec![hits()]);
    let page = |n: u32| format!("hits_total{{engine=\"0\",shard=\"a\"}} {n}\n");
    let value = |reader: &mut UserMetrics, n: u32, at: f64| read(reader, &page(n), at)[0].1;
    assert_eq!(value(&mut reader, 1_000_000, 1.0), 1e6);
    // The server is started anew.
    assert_eq!(value(&mut reader, 500, 2.0), 1_000_500.0);
    reader.set_metrics(vec![UserMetric { signal: Signal(201), ..own("other", MetricStat::Value) }, hits()]);
    assert_eq!(value(&mut reader, 600, 3.0), 1_000_600.0, "it grew by a hundred");
    // Another counter begins with what it has.
    reader.set_metrics(vec![UserMetric { signal: Signal(202), ..hits() }]);
    assert_eq!(value(&mut reader, 700, 4.0), 700.0);
}
