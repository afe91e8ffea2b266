use std::time::Duration;

use super::*;
use crate::test_rng::TestRng;

/// A queue in miniature: what arrives at each member every second, and a tenth of it leaves.
struct Servers {
    departure: Departure,
    loads: Vec<f64>,
    now: Time,
    rng: TestRng,
}

impl Servers {
    fn new(members: usize) -> Self {
        let now = Time::from_epoch_s(1_000.0);
        Self { departure: Departure::default(), loads: vec![24.0; members], now, rng: TestRng(7) }
    }

    /// About normal, mean 0 and variance 1: the sum of twelve uniform numbers less six.
    fn noise(&mut self) -> f64 {
        (0..12).map(|_| self.rng.uniform()).sum::<f64>() - 6.0
    }

    /// One second in which member `m` gets `arrivals(m)` requests and works at `speed(m)`.
    fn second(&mut self, arrivals: impl Fn(usize) -> f64, speed: impl Fn(usize) -> f64, may_learn: bool) {
        self.now = self.now + Duration::from_secs(1);
        let mut members = Vec::new();
        for m in 0..self.loads.len() {
            let came = arrivals(m);
            let left = 0.1 * self.loads[m] + self.noise() * (0.8 * came).sqrt();
            self.loads[m] = (self.loads[m] + came - left).max(0.0).round();
            let (noise, load) = (self.noise(), self.loads[m]);
            members.push(Work {
                load,
                tokens: Some(load * 1_000.0),
                speed: (load > 0.0).then(|| speed(m) * (1.0 + 0.05 * noise)),
                at: self.now,
            });
        }
        self.departure.observe(self.now, &members, may_learn);
    }

    fn normal(&mut self, seconds: usize) -> f64 {
        let mut farthest: f64 = 0.0;
        for _ in 0..seconds {
            self.second(|_| 2.4, |_| 40.0, true);
            farthest = farthest.max(self.departure.evidence().map_or(0.0, |e| e.value));
        }
        farthest
    }

    /// Seconds until the departure exceeds 5, at most a hundred.
    fn until_found(
        &mut self,
        arrivals: impl Fn(usize) -> f64,
        speed: impl Fn(usize) -> f64,
    ) -> Option<(usize, Evidence)> {
        self.found_within(100, arrivals, speed)
    }

    /// Seconds until the departure exceeds 5, at most so many, at one speed.
    fn until(&mut self, seconds: usize, arrivals: impl Fn(usize) -> f64) -> Option<usize> {
        self.found_within(seconds, arrivals, |_| 40.0).map(|(s, _)| s)
    }

    fn found_within(
        &mut self,
        seconds: usize,
        arrivals: impl Fn(usize) -> f64,
        speed: impl Fn(usize) -> f64,
    ) -> Option<(usize, Evidence)> {
        (1..=seconds).find_map(|s| {
            self.second(&arrivals, &speed, true);
            self.departure.evidence().filter(|e| e.value > 5.0).map(|e| (s, *e))
        })
    }
}

#[test]
fn normal_load_stays_within_chance_for_an_hour() {
    let mut servers = Servers::new(8);
    let farthest = servers.normal(3_600);
    assert!(farthest < 5.0, "{farthest}");
}

#[test]
fn nothing_is_said_before_a_minute_has_been_seen() {
    let mut servers = Servers::new(8);
    servers.normal(30);
    for _ in 0..20 {
        servers.second(|m| if m == 3 { 20.0 } else { 2.4 }, |_| 40.0, true);
    }
    assert_eq!(servers.departure.evidence(), None);
}

#[test]
fn a_rank_that_gets_twice_the_work_is_found_within_seconds() {
    let mut servers = Servers::new(8);
    servers.normal(200);
    let (seconds, e) = servers.until_found(|m| if m == 5 { 5.5 } else { 2.0 }, |_| 40.0).unwrap();
    assert!(seconds <= 12, "{seconds}");
    assert_eq!((e.member, e.side), (5, Side::High));
}

#[test]
fn a_burst_of_seconds_is_no_departure_but_the_same_is_when_it_stays() {
    let crowded = |m: usize| if m == 5 { 14.0 } else { 1.0 };
    let mut servers = Servers::new(8);
    servers.normal(200);
    assert_eq!(servers.until(3, crowded).or_else(|| servers.until(60, |_| 2.4)), None);
    servers.normal(60);
    let seconds = servers.until(10, crowded);
    assert!(seconds.is_some_and(|s| s <= 6), "{seconds:?}");
}

#[test]
fn a_rank_that_gets_no_more_work_is_found_on_the_low_side() {
    let mut servers = Servers::new(8);
    servers.normal(200);
    let (seconds, e) = servers.until_found(|m| if m == 2 { 0.0 } else { 2.7 }, |_| 40.0).unwrap();
    assert!(seconds <= 15, "{seconds}");
    assert_eq!((e.member, e.side), (2, Side::Low));
}

#[test]
fn a_slow_rank_is_found_by_its_speed_before_its_load_shows_it() {
    let mut servers = Servers::new(8);
    servers.normal(200);
    let (seconds, e) = servers.until_found(|_| 2.4, |m| if m == 1 { 32.0 } else { 40.0 }).unwrap();
    assert!(seconds <= 25, "{seconds}");
    assert_eq!((e.member, e.side, e.course), (1, Side::High, Course::Speed));
}

#[test]
fn a_constant_difference_between_ranks_is_not_an_onset() {
    let mut servers = Servers::new(8);
    let mut farthest: f64 = 0.0;
    for i in 0..3_000 {
        servers.second(|m| if m == 0 { 3.4 } else { 2.4 }, |_| 40.0, true);
        if i > 1_500 {
            farthest = farthest.max(servers.departure.evidence().map_or(0.0, |e| e.value));
        }
    }
    assert!(farthest < 5.0, "{farthest}");
}

#[test]
fn what_happens_while_firing_never_becomes_usual() {
    let mut servers = Servers::new(8);
    servers.normal(200);
    for _ in 0..2_000 {
        servers.second(|m| if m == 5 { 5.5 } else { 2.0 }, |_| 40.0, false);
    }
    let e = servers.departure.evidence().copied().unwrap();
    assert!(e.lately > 5.0 && e.member == 5, "{e:?}");
}

#[test]
fn when_the_load_is_even_again_it_is_within_chance_soon() {
    let mut servers = Servers::new(8);
    servers.normal(200);
    servers.until_found(|m| if m == 5 { 6.5 } else { 1.9 }, |_| 40.0).unwrap();
    for _ in 0..60 {
        servers.second(|_| 2.4, |_| 40.0, false);
    }
    let e = servers.departure.evidence().copied().unwrap();
    assert!(e.lately < 3.5, "{e:?}");
}

#[test]
fn after_a_pause_of_all_ranks_nothing_is_said_until_it_has_settled() {
    let mut servers = Servers::new(8);
    servers.normal(200);
    servers.now = servers.now + Duration::from_secs(10);
    servers.second(|m| if m == 0 { 150.0 } else { 2.4 }, |_| 40.0, true);
    servers.second(|_| 2.4, |_| 40.0, true);
    assert_eq!(servers.departure.evidence(), None);
}

#[test]
fn of_two_ranks_the_one_that_left_its_own_level_is_blamed() {
    let mut servers = Servers::new(2);
    servers.normal(300);
    let (_, e) = servers.until_found(|m| if m == 0 { 0.0 } else { 2.6 }, |_| 40.0).unwrap();
    assert_eq!((e.member, e.side), (0, Side::Low));
}

#[test]
fn many_samples_within_a_second_are_one_tick() {
    let mut departure = Departure::default();
    let start = Time::from_epoch_s(1_000.0);
    let ticks = (0..100)
        .filter(|i| {
            let now = start + Duration::from_millis(100 * i);
            let members =
                [4.0, 5.0].map(|load| Work { load: load + (i % 3) as f64, at: now, ..Work::default() });
            departure.observe(now, &members, true)
        })
        .count();
    assert!((9..=10).contains(&ticks), "{ticks}");
}

/// The farthest departure in three minutes after the load of all ranks changed at once by `factor`, of
/// ranks whose loads scatter in proportion to them, as they do near a server's limit.
fn farthest_after_a_step(factor: f64) -> f64 {
    let mut servers = Servers::new(8);
    let mut course = [0.0; 8];
    let mut farthest: f64 = 0.0;
    for second in 0..480 {
        let mean = if second < 300 { 24.0 } else { 24.0 * factor };
        servers.now = servers.now + Duration::from_secs(1);
        for c in &mut course {
            *c = 0.9 * *c + 0.1 * servers.noise();
        }
        let members = course.map(|c| Work { load: mean * (1.0 + c), at: servers.now, ..Work::default() });
        servers.departure.observe(servers.now, &members, true);
        if second >= 300 {
            farthest = farthest.max(servers.departure.evidence().map_or(0.0, |e| e.value));
        }
    }
    farthest
}

#[test]
fn a_step_of_the_whole_groups_load_is_no_departure_of_one() {
    let (even, stepped) = (farthest_after_a_step(1.0), farthest_after_a_step(4.0));
    assert!(even < 5.0 && stepped < 5.0, "{even} {stepped}");
}

#[test]
fn what_goes_on_climbing_far_beyond_all_that_was_seen_is_not_over() {
    let mut servers = Servers::new(8);
    servers.normal(200);
    servers.until(40, |m| if m == 5 { 14.0 } else { 1.0 });
    let value = servers.departure.evidence().unwrap().value;
    for _ in 0..10 {
        servers.second(|m| if m == 5 { 30.0 } else { 1.0 }, |_| 40.0, false);
        let now = servers.departure.evidence().unwrap();
        assert!(now.value > 5.0 && now.member == 5, "{value} {now:?}");
    }
}

#[test]
fn a_clock_that_is_set_changes_nothing() {
    let found_after = |by_ns: i64| {
        let mut servers = Servers::new(4);
        servers.normal(200);
        servers.departure.shift(by_ns);
        servers.now = servers.now.shifted(by_ns);
        let found = servers.until_found(|m| if m == 1 { 9.0 } else { 2.4 }, |_| 40.0);
        let (s, evidence) = found.expect("it departs");
        let onset = servers.departure.onset(&evidence, Time::from_nanos(i64::MIN));
        (s, evidence.member, onset.map(|onset| (onset.at.nanos() - by_ns) / 1_000_000))
    };
    let hour_ns = 3_600_000_000_000;
    assert_eq!([-hour_ns, hour_ns].map(found_after), [found_after(0); 2]);
}
