use super::*;
use crate::dice::Dice;

const MS: Duration = Duration::from_millis(1);

fn past(steps: u32, largest: u64, stall_ms: u32, predicted_ms: u32) -> PastWindow {
    PastWindow {
        recorded: Recorded::Gpu,
        steps,
        largest,
        stall: MS * stall_ms,
        slowness: 1.0,
        predicted: Some(MS * predicted_ms),
        server: 0,
    }
}

#[test]
fn the_first_window_of_a_server_is_the_smallest_that_compares_anything() {
    let size = WindowCosts::default().size(Recorded::Gpu, 100, 1.0, DEFAULT_MAX_STALL).expect("it fits");
    assert_eq!(size.steps, MIN_STEPS);
    assert!(size.predicted <= DEFAULT_MAX_STALL, "{size:?}");
}

#[test]
fn what_its_windows_cost_makes_the_next_ones_larger_or_smaller() {
    let light = WindowCosts::of([past(3, 30_000, 0, 288), past(10, 100_000, 0, 200)]);
    let heavy = WindowCosts::of([past(3, 300_000, 400, 288), past(3, 300_000, 380, 500)]);
    let steps = |c: WindowCosts| c.size(Recorded::Gpu, 100, 1.0, DEFAULT_MAX_STALL).map(|s| s.steps);
    assert!(steps(light).expect("it fits") > 6);
    let needed = steps(heavy).expect_err("too costly").needed;
    assert!(needed > 500 * MS && needed < 2_000 * MS, "{needed:?}");
}

#[test]
fn a_slow_host_and_more_activities_make_a_window_smaller() {
    let costs = WindowCosts::of([past(20, 200_000, 220, 300); 4]);
    let steps = |recorded, slow| costs.size(recorded, 1000, slow, 2_000 * MS).map_or(0, |s| s.steps);
    assert!(steps(Recorded::Gpu, 1.0) > 2 * steps(Recorded::CpuGpu, 1.0));
    assert!(steps(Recorded::CpuGpu, 1.0) > 4 * steps(Recorded::Stacks, 1.0));
    assert!(steps(Recorded::Gpu, 1.0) > 3 * steps(Recorded::Gpu, 4.0));
}

#[test]
fn a_window_that_cost_more_than_twice_its_prediction_halves_the_next_at_once() {
    let mut costs = WindowCosts::of([past(20, 200_000, 220, 300); 6]);
    let before = costs.size(Recorded::Gpu, 1000, 1.0, 1_000 * MS).expect("it fits");
    let seen = u32::try_from(before.predicted.as_millis()).expect("short") * 5 / 2;
    let bytes = u64::from(before.steps) * 10_000;
    costs.learn(&past(before.steps, bytes, seen, u32::try_from(before.predicted.as_millis()).unwrap()));
    let after = costs.size(Recorded::Gpu, 1000, 1.0, 1_000 * MS);
    assert!(after.is_err() || after.is_ok_and(|a| a.steps * 2 <= before.steps), "{before:?} {after:?}");
}

/// A server whose exports the law must predict: bytes a step and seconds a MB by chance, hosts that
/// slow down, and a day on which writing takes three times as long.
struct World {
    dice: Dice,
    kb_per_step: f64,
    s_per_mb: f64,
}

impl World {
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.dice.uniform()).sum::<f64>() - 6.0
    }

    fn window(&mut self, steps: u32, slowness: f64, predicted: Duration) -> PastWindow {
        let bytes = self.kb_per_step * 1e3 * f64::from(steps) * (0.25 * self.normal()).exp();
        let rate = self.s_per_mb / 1e6 * slowness * (0.15 * self.normal()).exp();
        let stall = Duration::from_secs_f64(bytes * rate);
        let seen_slowness = slowness * (0.1 * self.normal()).exp();
        PastWindow {
            recorded: Recorded::Gpu,
            steps,
            largest: bytes as u64,
            stall,
            slowness: seen_slowness.max(1.0),
            predicted: Some(predicted),
            server: 0,
        }
    }
}

#[test]
fn over_a_thousand_windows_the_stall_stays_within_what_it_may_cost() {
    let (mut taken, mut over, mut far, mut refused) = (0, 0, 0, std::collections::BTreeMap::new());
    for server in 0..60_u64 {
        let kb_per_step = [8.0, 12.0, 20.0, 40.0, 1000.0][server as usize % 5];
        let mut world = World { dice: Dice(77 + server), kb_per_step, s_per_mb: 1.2 };
        let mut costs = WindowCosts::default();
        let mut is_first = true;
        for n in 0..60 {
            if n == 30 {
                world.s_per_mb *= 3.0;
                is_first = true;
            }
            let slowness = if world.dice.uniform() < 0.2 { 3.0 } else { 1.0 };
            let Ok(size) = costs.size(Recorded::Gpu, 100, slowness, DEFAULT_MAX_STALL) else {
                *refused.entry(kb_per_step as u32).or_insert(0) += 1;
                continue;
            };
            let window = world.window(size.steps, slowness, size.predicted);
            let stall = window.stall;
            costs.learn(&window);
            taken += 1;
            if stall > DEFAULT_MAX_STALL && !is_first {
                over += 1;
            }
            if stall > DEFAULT_MAX_STALL * 3 {
                far += 1;
                assert!(is_first, "server {server}, window {n}: {stall:?} for {size:?}");
                let next = costs.size(Recorded::Gpu, 100, slowness, DEFAULT_MAX_STALL);
                assert!(next.is_err() || next.is_ok_and(|next| next.steps * 2 <= size.steps));
            }
            is_first = false;
        }
    }
    println!("{taken} windows, {over} beyond max_stall, {far} far beyond; refused by kB a step: {refused:?}");
    assert!(taken > 1_000, "{taken}");
    assert!(f64::from(over) <= 0.05 * f64::from(taken), "{over} of {taken}");
}

#[test]
fn a_stall_is_written_rounded_up_to_two_figures() {
    let texts = [7, 288, 301, 1_234, 10_001].map(|ms| written(MS * ms));
    assert_eq!(texts, ["7ms", "290ms", "310ms", "1300ms", "11000ms"]);
}
