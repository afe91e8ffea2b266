use std::collections::BTreeMap;

use super::*;
use crate::test_rng::TestRng;

const MS: Duration = Duration::from_millis(1);

fn past(steps: u32, largest: u64, stall_ms: u32, predicted_ms: u32) -> PastWindow {
    PastWindow {
        recorded: RecordingKind::Gpu,
        steps,
        largest,
        stall: MS * stall_ms,
        slowness: Some(1.0),
        predicted: Some(MS * predicted_ms),
        server: 0,
    }
}

/// Of a server with so many dense layers, whose hosts are so much slower than usual.
fn of_layers(layers: u32, slowness: Option<f64>) -> CostPriors {
    let model = ModelSize { layers: Some(layers), is_dense: Some(true), ..ModelSize::default() };
    CostPriors { bytes_per_step: model.bytes_per_step(), slowness, ..CostPriors::default() }
}

#[test]
fn nothing_is_measured_on_a_server_of_which_nothing_is_known() {
    let refused = WindowCosts::default().size(RecordingKind::Gpu, &CostPriors::default(), DEFAULT_MAX_STALL);
    assert!(refused.is_err_and(|r| r.needed > 10 * DEFAULT_MAX_STALL && r.needed < MAX_STALL));
    let small = WindowCosts::default().size(RecordingKind::Gpu, &of_layers(8, None), DEFAULT_MAX_STALL);
    assert!(small.is_ok_and(|size| size.steps > MIN_STEPS && size.predicted.upper <= DEFAULT_MAX_STALL));
}

#[test]
fn what_its_windows_cost_makes_the_next_ones_larger_or_smaller() {
    let light = WindowCosts::of([past(3, 30_000, 33, 288), past(10, 100_000, 110, 200)]);
    let heavy = WindowCosts::of([past(3, 300_000, 400, 288), past(3, 300_000, 380, 500)]);
    let any = CostPriors::default();
    let steps = |c: WindowCosts| c.size(RecordingKind::Gpu, &any, DEFAULT_MAX_STALL).map(|s| s.steps);
    assert!(steps(light).expect("it fits") > 4);
    let needed = steps(heavy).expect_err("too costly").needed;
    assert!(needed > 500 * MS && needed < 4_000 * MS, "{needed:?}");
}

#[test]
fn a_slow_host_and_more_activities_make_a_window_smaller() {
    let costs = WindowCosts::of([past(20, 200_000, 220, 300); 4]);
    let steps = |recorded, slow| {
        let assumed = CostPriors { slowness: Some(slow), ..CostPriors::default() };
        costs.size(recorded, &assumed, 1_000 * MS).map_or(0, |s| s.steps)
    };
    assert!(steps(RecordingKind::Gpu, 1.0) > 2 * steps(RecordingKind::CpuGpu, 1.0));
    assert!(steps(RecordingKind::CpuGpu, 1.0) > 4 * steps(RecordingKind::Stacks, 1.0));
    assert!(steps(RecordingKind::Gpu, 1.0) > 3 * steps(RecordingKind::Gpu, 4.0));
}

#[test]
fn a_window_that_cost_more_than_twice_its_prediction_halves_the_next_at_once() {
    let mut costs = WindowCosts::of([past(20, 200_000, 220, 300); 6]);
    let size = |costs: &WindowCosts| costs.size(RecordingKind::Gpu, &CostPriors::default(), 1_000 * MS);
    let before = size(&costs).expect("it fits");
    let predicted = u32::try_from(before.predicted.upper.as_millis()).expect("short");
    costs.learn(&past(before.steps, u64::from(before.steps) * 10_000, predicted * 5 / 2, predicted));
    let after = size(&costs);
    assert!(after.is_err() || after.is_ok_and(|a| a.steps * 2 <= before.steps), "{before:?} {after:?}");
}

#[test]
fn a_small_window_whose_silence_was_not_all_its_writing_refuses_no_next_one() {
    // Beside a real server: 14 steps, then three whose 42 kB booked 250 ms where clients waited 80.
    let costs = WindowCosts::of([past(14, 186_577, 502, 282), past(3, 42_000, 250, 230)]);
    let host_as_usual = CostPriors { slowness: Some(1.0), ..CostPriors::default() };
    let next = costs.size(RecordingKind::Gpu, &host_as_usual, DEFAULT_MAX_STALL);
    assert!(next.is_ok_and(|next| next.predicted.upper >= 200 * MS), "{next:?}");
    // Nor do many of them together.
    let many = std::iter::repeat_n(past(3, 42_000, 250, 230), 12);
    let costs = WindowCosts::of(std::iter::once(past(14, 186_577, 502, 282)).chain(many));
    assert!(costs.size(RecordingKind::Gpu, &host_as_usual, DEFAULT_MAX_STALL).is_ok());
    // A window on a host of which nobody knew, which taught nothing, allows them no more.
    let known = past(14, 186_577, 502, 282);
    let ignored = PastWindow { slowness: None, predicted: None, ..past(14, 186_577, 2_000, 282) };
    let small = || std::iter::repeat_n(past(3, 42_000, 250, 230), 12);
    let after = |first: Vec<PastWindow>| WindowCosts::of(first.into_iter().chain(small())).s_per_byte;
    assert_eq!(after(vec![known, ignored]), after(vec![known]));
    // A large one of the same rate is another rate from now on.
    let large = WindowCosts::of([past(14, 186_577, 502, 282), past(14, 186_577, 1_120, 450)]);
    assert!(large.size(RecordingKind::Gpu, &host_as_usual, DEFAULT_MAX_STALL).is_err());
}

#[test]
fn windows_of_one_kind_teach_those_of_another_what_they_take_at_most() {
    let both = PastWindow { recorded: RecordingKind::CpuGpu, ..past(10, 140_000, 170, 300) };
    let costs = WindowCosts::of([both; 4]);
    let ms = |recorded| {
        let assumed = CostPriors { slowness: Some(1.0), ..CostPriors::default() };
        costs.predicted(recorded, 10, &assumed).likely.as_millis()
    };
    // 14 kB a step with both are at most 10 kB with GPU rows alone.
    assert_eq!((ms(RecordingKind::CpuGpu), ms(RecordingKind::Gpu)), (170, 121));
    let gpu = WindowCosts::of([past(10, 100_000, 121, 300); 4]);
    let assumed = CostPriors { slowness: Some(1.0), ..CostPriors::default() };
    assert_eq!(gpu.predicted(RecordingKind::CpuGpu, 10, &assumed).likely.as_millis(), 302);
}

#[test]
fn a_stall_that_was_seen_too_late_teaches_no_speed_that_nobody_has() {
    let seen_late = WindowCosts::of([past(30, 1_000_000, 21, 300); 4]);
    let least = Duration::from_secs_f64(1.0 * LEAST_RATE * 1e6);
    assert!(seen_late.predicted(RecordingKind::Gpu, 30, &CostPriors::default()).upper > least);
}

/// Noise for the worlds below.
struct Chance(TestRng);

impl Chance {
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.0.uniform()).sum::<f64>() - 6.0
    }

    fn between(&mut self, from: f64, to: f64) -> f64 {
        from * (to / from).powf(self.0.uniform())
    }

    fn is(&mut self, probability: f64) -> bool {
        self.0.uniform() < probability
    }
}

/// A server whose exports the law must predict.
struct World {
    chance: Chance,
    kb_per_step: f64,
    s_per_mb: f64,
    ranks: usize,
}

impl World {
    /// What a window costs: ranks differ in what they write (prompts) and in how fast; one may have a
    /// host that is `slowness` times slower.
    fn window(&mut self, steps: u32, slowness: f64, known: Option<f64>, predicted: Duration) -> PastWindow {
        let (mut largest, mut stall) = (0.0_f64, 0.0_f64);
        for rank in 0..self.ranks {
            let prompts = if rank == 0 { self.chance.between(1.0, 1.45) } else { 1.0 };
            let noise = (0.08 * self.chance.normal()).exp();
            let bytes = self.kb_per_step * 1e3 * f64::from(steps) * prompts * noise;
            let slow = if rank == 0 { slowness } else { 1.0 };
            let rate = self.s_per_mb / 1e6 * slow * (0.12 * self.chance.normal()).exp();
            (largest, stall) = (largest.max(bytes), stall.max(bytes * rate));
        }
        PastWindow {
            recorded: RecordingKind::Gpu,
            steps,
            largest: largest as u64,
            stall: Duration::from_secs_f64(stall),
            slowness: known,
            predicted: Some(predicted),
            server: 0,
        }
    }
}

/// Billions of parameters, layers, and whether it is dense, of models that are served often (from their
/// public configurations), and of the one that was measured.
const MODELS: [(f64, u32, bool); 34] = [
    (0.19, 8, true),
    (0.5, 24, true),
    (1.2, 16, true),
    (1.5, 28, true),
    (1.7, 28, true),
    (2.6, 26, true),
    (3.1, 36, true),
    (3.2, 28, true),
    (4.0, 36, true),
    (7.2, 32, true),
    (7.6, 28, true),
    (8.0, 32, true),
    (8.2, 36, true),
    (9.2, 42, true),
    (12.2, 40, true),
    (14.8, 40, true),
    (14.8, 48, true),
    (21.0, 24, false),
    (27.0, 62, true),
    (30.5, 48, false),
    (32.5, 64, true),
    (32.8, 64, true),
    (46.7, 32, false),
    (70.6, 80, true),
    (72.7, 80, true),
    (109.0, 48, false),
    (117.0, 36, false),
    (123.0, 88, true),
    (141.0, 56, false),
    (235.0, 94, false),
    (355.0, 92, false),
    (405.0, 126, true),
    (671.0, 61, false),
    (1026.0, 61, false),
];

/// How the first windows of many servers went: opened, refused, steps, and how many stayed within.
#[derive(Debug, Default)]
struct Firsts {
    refused: u32,
    steps: Vec<u32>,
    within: usize,
}

impl Firsts {
    fn take(
        &mut self,
        size: Result<Size, TooCostly>,
        window: impl FnOnce(Size) -> PastWindow,
        max: Duration,
    ) {
        let Ok(size) = size else { return self.refused += 1 };
        self.steps.push(size.steps);
        self.within += usize::from(window(size).stall <= max);
    }

    fn row(&mut self, name: &str) -> String {
        self.steps.sort_unstable();
        let at = |q: usize| self.steps.get(self.steps.len() * q / 100).copied().unwrap_or_default();
        let telling = self.steps.iter().filter(|s| **s >= 8).count();
        format!(
            "| {name} | {} | {} | {} / {} | {telling} | {:.1} % |",
            self.refused,
            self.steps.len(),
            at(50),
            at(90),
            100.0 * self.within as f64 / self.steps.len().max(1) as f64
        )
    }
}

#[test]
fn the_first_windows_of_servers_of_all_sizes_stay_within_what_they_may_cost() {
    let mut table: BTreeMap<(u32, &str, &str), Firsts> = BTreeMap::new();
    for server in 0..6_000_u64 {
        let mut chance = Chance(TestRng(9_001 + server));
        let (billions, layers, is_dense) = MODELS[server as usize % MODELS.len()];
        let kernels =
            if is_dense { 17.3 * (0.2 * chance.normal()).exp() } else { chance.between(17.0, 45.0) };
        let kb_per_step = f64::from(layers) * kernels * 62.0 / 1e3;
        let bytes_each = if chance.is(0.6) { 2.0 } else { chance.between(0.56, 1.0) };
        let told = ModelSize { billions: Some(billions), ..ModelSize::default() };
        let told = [
            ("layers", ModelSize { layers: Some(layers), is_dense: Some(is_dense), ..told }),
            ("weights", ModelSize { weights_gb: Some(billions * bytes_each), ..told }),
            ("name", told),
            ("nothing", ModelSize::default()),
        ];
        let slowness = if chance.is(0.3) { chance.between(3.0, 4.0) } else { 1.0 };
        let s_per_mb = chance.between(1.0, 1.6);
        // As wide as it can be: ten to a thousand kB, one to five seconds, and nobody knows of hosts.
        let wide = (chance.between(10.0, 1_000.0), chance.between(1.0, 5.0) / 1.3);
        let of_wide = ModelSize {
            layers: Some((wide.0 / kernels / 0.062).round() as u32),
            is_dense: Some(is_dense),
            ..ModelSize::default()
        };
        let mut world = World { chance, kb_per_step, s_per_mb, ranks: 4 };
        for max_ms in [300_u32, 1_500] {
            let max = MS * max_ms;
            for (what, model) in told {
                for (host, known) in
                    [("known", Some(if slowness > 1.0 { 4.0 } else { 1.0 })), ("not known", None)]
                {
                    let assumed = CostPriors {
                        bytes_per_step: model.bytes_per_step(),
                        slowness: known,
                        ..CostPriors::default()
                    };
                    let size = WindowCosts::default().size(RecordingKind::Gpu, &assumed, max);
                    let window = |size: Size| world.window(size.steps, slowness, known, size.predicted.upper);
                    table.entry((max_ms, what, host)).or_default().take(size, window, max);
                }
            }
            for (what, model) in [("wide, layers", of_wide), ("wide, nothing", ModelSize::default())] {
                let assumed = CostPriors {
                    bytes_per_step: model.bytes_per_step(),
                    slowness: None,
                    ..CostPriors::default()
                };
                let size = WindowCosts::default().size(RecordingKind::Gpu, &assumed, max);
                let mut wider = World {
                    kb_per_step: wide.0,
                    s_per_mb: wide.1,
                    chance: Chance(TestRng(server)),
                    ranks: 4,
                };
                let window = |size: Size| wider.window(size.steps, 1.0, None, size.predicted.upper);
                table.entry((max_ms, what, "not known")).or_default().take(size, window, max);
            }
        }
    }
    println!(
        "| max_stall, model known by, hosts | refused | opened | steps: median / 90 % | of 8 and more | within |"
    );
    for ((max_ms, what, host), mut firsts) in table {
        println!("{}", firsts.row(&format!("{max_ms} ms, {what}, {host}")));
        let opened = firsts.steps.len();
        assert!(firsts.within as f64 >= 0.95 * opened as f64, "{max_ms} {what} {host}: {opened}");
    }
}

/// Windows that were asked for, those that opened, and those of them that stayed within.
#[derive(Clone, Copy, Debug, Default)]
struct Opened {
    asked: u32,
    opened: u32,
    within: u32,
}

impl Opened {
    fn take(
        &mut self,
        size: Result<Size, TooCostly>,
        window: impl FnOnce(Size) -> PastWindow,
        max: Duration,
    ) {
        self.asked += 1;
        let Ok(size) = size else { return };
        self.opened += 1;
        self.within += u32::from(window(size).stall <= max);
    }

    fn refused(&self) -> f64 {
        100.0 * f64::from(self.asked - self.opened) / f64::from(self.asked.max(1))
    }

    fn kept(&self) -> String {
        let share = 100.0 * f64::from(self.within) / f64::from(self.opened.max(1));
        if self.opened > 0 { format!("{share:.1} %") } else { "-".into() }
    }
}

/// What an incident tells of the hosts of its server: `host` is how many times slower than usual the slowest is.
/// Where the machine is seen, how long its process waits tells; else how much longer its steps take, of which
/// the host has `share`.
fn told(chance: &mut Chance, host: f64, share: f64, sees_machine: bool) -> f64 {
    let noise = (0.08 * chance.normal()).exp();
    if sees_machine && host > 1.1 {
        return host * noise;
    }
    prior::host_behind((1.0 - share + share * host) * noise)
}

#[test]
fn first_windows_at_firings_by_the_layers_of_the_model_and_the_speed_of_the_host() {
    let mut table: BTreeMap<(u32, u32, u32), [Opened; 2]> = BTreeMap::new();
    let mut all = BTreeMap::new();
    for server in 0..12_000_u64 {
        let mut chance = Chance(TestRng(40_009 + server));
        let layers = [8, 32, 64, 80][server as usize % 4];
        let times = [1_u32, 2, 4][server as usize / 4 % 3];
        let share = 0.2 + 0.7 * chance.0.uniform();
        let sees_machine = chance.is(0.5);
        let now = told(&mut chance, f64::from(times), share, sees_machine);
        let kernels = 17.3 * (0.2 * chance.normal()).exp();
        let kb_per_step = f64::from(layers) * kernels * 62.0 / 1e3;
        let s_per_mb = chance.between(1.0, 1.6);
        let mut world = World { chance, kb_per_step, s_per_mb, ranks: 4 };
        // Before, nobody knew of hosts where the cause was unknown, and every slow one wrote exactly four times as
        // slowly.
        let by_four = prior::seconds_per_byte().and(prior::LogEstimate { mean: 4.0_f64.ln(), variance: 0.0 });
        let before = match times {
            1 => of_layers(layers, None),
            _ => CostPriors { s_per_byte: by_four, ..of_layers(layers, Some(1.0)) },
        };
        for max_ms in [300, 600, 1_500] {
            let max = MS * max_ms;
            for (law, assumed) in [before, of_layers(layers, Some(now))].into_iter().enumerate() {
                let size = WindowCosts::default().size(RecordingKind::Gpu, &assumed, max);
                let window = |size: Size| {
                    world.window(size.steps, f64::from(times), assumed.slowness, size.predicted.upper)
                };
                let row = &mut table.entry((max_ms, layers, times)).or_default()[law];
                row.take(size, window, max);
            }
        }
    }
    println!("| max_stall | layers | host slower | refused before | now | within before | now |");
    for ((max_ms, layers, times), [before, now]) in &table {
        println!(
            "| {max_ms} ms | {layers} | {times} times | {:.0} % | {:.0} % | {} | {} |",
            before.refused(),
            now.refused(),
            before.kept(),
            now.kept()
        );
        let sum: &mut Opened = all.entry(*max_ms).or_default();
        (sum.opened, sum.within) = (sum.opened + now.opened, sum.within + now.within);
        // What is measured opens windows that nobody dared before, and closes none of healthy hosts.
        assert!(*times > 1 || now.opened >= before.opened, "{max_ms} {layers}: {before:?} {now:?}");
    }
    for (max_ms, sum) in all {
        assert!(sum.opened > 1_000, "{max_ms}: {sum:?}");
        assert!(f64::from(sum.within) >= 0.95 * f64::from(sum.opened), "{max_ms}: {sum:?}");
    }
}

/// What became of the windows of many servers, over days of which one is three times as slow as learned.
#[derive(Debug, Default)]
struct Days {
    taken: u32,
    over: u32,
    far: u32,
    /// First windows after a jump that cost more than twice their prediction.
    surprised: u32,
    by_kb: BTreeMap<u32, (u32, u32)>,
}

fn days(max: Duration) -> Days {
    let mut told = Days::default();
    for server in 0..90_u64 {
        let kb_per_step = [8.0, 12.0, 20.0, 40.0, 100.0, 1000.0][server as usize % 6];
        let mut world = World { chance: Chance(TestRng(77 + server)), kb_per_step, s_per_mb: 1.2, ranks: 4 };
        let layers = (kb_per_step / 1.2).round() as u32;
        let mut costs = WindowCosts::default();
        let mut is_after_jump = false;
        for n in 0..60 {
            // From one day to the next every export takes three times as long, and later as before.
            if n == 25 || n == 45 {
                world.s_per_mb = if n == 25 { 3.6 } else { 1.2 };
                is_after_jump = n == 25;
            }
            let slowness = if world.chance.is(0.2) { world.chance.between(3.0, 4.0) } else { 1.0 };
            let known = world.chance.is(0.7).then_some(if slowness > 1.0 { 4.0 } else { 1.0 });
            let assumed = of_layers(layers, known);
            let tally = told.by_kb.entry(kb_per_step as u32).or_default();
            let Ok(size) = costs.size(RecordingKind::Gpu, &assumed, max) else {
                tally.0 += 1;
                continue;
            };
            tally.1 += 1;
            let window = world.window(size.steps, slowness, known, size.predicted.upper);
            costs.learn(&window);
            told.taken += 1;
            told.over += u32::from(window.stall > max);
            told.far += u32::from(window.stall > max * 3);
            assert!(window.stall <= max * 3 || is_after_jump, "server {server}, window {n}: {window:?}");
            if window.stall > size.predicted.upper * 2 {
                told.surprised += u32::from(is_after_jump);
                let next = costs.size(RecordingKind::Gpu, &assumed, max);
                assert!(next.is_err() || next.is_ok_and(|next| next.steps * 2 <= size.steps), "{size:?}");
            }
            is_after_jump = false;
        }
    }
    told
}

#[test]
fn over_a_thousand_windows_the_stall_stays_within_what_it_may_cost() {
    println!(
        "| max_stall | windows | beyond | beyond three times | after a jump, beyond twice the prediction | refused, taken by kB a step |"
    );
    for max_ms in [300, 1_500] {
        let Days { taken, over, far, surprised, by_kb } = days(MS * max_ms);
        println!("| {max_ms} ms | {taken} | {over} | {far} | {surprised} | {by_kb:?} |");
        assert!(
            taken > 1_000 && f64::from(over) <= 0.05 * f64::from(taken),
            "{max_ms} ms: {over} of {taken}"
        );
        assert!(surprised > 0, "the jumps are none");
    }
}

#[test]
fn a_stall_is_written_rounded_up_to_two_figures() {
    let texts = [7, 288, 301, 1_234, 10_001].map(|ms| written(MS * ms));
    assert_eq!(texts, ["7ms", "290ms", "310ms", "1300ms", "11000ms"]);
}
