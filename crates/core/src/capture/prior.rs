//! What a window is expected to cost before any window of its server has taught it.
//!
//! A trace has a row or two for each kernel, so the bytes of a step are `layers x kernels a layer x bytes
//! a kernel`. Measured on SGLang 0.5.16 with eight dense layers: 138 kernels a step, that is 17 a layer, and
//! 62 bytes a kernel of the gzip file with GPU rows alone where steps decode (CUDA graphs) to 90 where they
//! take prompts. There is no fixed part: windows of 3 to 60 steps fit a line through the origin within 2 kB.
//! The layers come from the model's `config.json` where the agent sees it, from the size of the weights that
//! the server reports, or from its name; where nothing tells, ten to a thousand kB a step are possible.
//!
//! Each factor is known as a logarithm with a spread; the spreads add up.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A logarithm that is known up to a spread: its mean and its variance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogEstimate {
    /// The mean of the logarithm.
    pub mean: f64,
    pub variance: f64,
}

impl LogEstimate {
    /// A number around `median`, with the standard deviation `spread` of its logarithm.
    pub fn around(median: f64, spread: f64) -> Self {
        Self { mean: median.ln(), variance: spread * spread }
    }

    /// The product of the two numbers.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { mean: self.mean + other.mean, variance: self.variance + other.variance }
    }
}

/// Bytes of a kernel's rows, and its spread: from decoding alone to prompts in every other step.
const BYTES_PER_KERNEL: (f64, f64) = (72.0, 0.15);
/// Kernels of a layer: of a dense model (measured on one), ...
const DENSE: (f64, f64) = (17.3, 0.2);
/// ... of a mixture of experts (24 to 27 on one of 8 experts with 8 and 16 layers; others may fuse more, or less), ...
const EXPERTS: (f64, f64) = (27.0, 0.28);
/// ... and where nobody says which of the two it is.
const EITHER: (f64, f64) = (22.0, 0.35);
/// Layers by billions of parameters, and by GB of weights: a power law through 34 models that are served
/// often, from 0.2 to 1,026 billion parameters, with its spread.
const BY_PARAMETERS: (f64, f64, f64) = (21.6, 0.224, 0.30);
const BY_WEIGHTS: (f64, f64, f64) = (20.7, 0.214, 0.32);
/// Bytes of a step where nothing is known of the model: 10 to 1,000 kB.
const UNKNOWN: (f64, f64) = (100e3, 1.33);
/// Seconds for each byte where every host is as fast as usual: 1.0 to 1.6 s/MB were measured.
const RATE: (f64, f64) = (1.25e-6, 0.15);
/// Where ranks meet in collectives all wait for the slowest to write: 1.36 to 1.92 s/MB were seen by clients of two and
/// of four ranks.
const RATE_TOGETHER: (f64, f64) = (1.6e-6, 0.12);
/// Of vLLM: from SGLang's to the 5.5 s/MB of the one window that was measured, on a CPU.
const VLLM_RATE: (f64, f64) = (2.6e-6, 0.45);
/// How many times slower than usual the slowest host is where nobody knows: once to four times.
const ANY_HOST: (f64, f64) = (1.8, 0.53);
/// How far a host's slowdown is known that was measured, by its waiting or by the work that it does: so far
/// at both ends, where it is as usual or as slow as any that was seen, and less in between, for which part of
/// a step is the host's differs.
const MEASURED_HOST: (f64, f64) = (0.1, 0.45);
/// Of a step so much is the host's, at a careful guess: the rest is the GPU's, which a slow host leaves as it is.
const HOST_SHARE: f64 = 0.4;
/// No host was seen to write more slowly than so many times the usual, unless its work says so.
const SLOWEST_HOST: f64 = 4.0;
/// The least that a measured host counts as: what the GPU's time hides is not measured.
pub const LEAST_MEASURED: f64 = 1.1;

/// What a server says of the size of its model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelSize {
    /// Layers, from the model's `config.json`.
    #[serde(default)]
    pub layers: Option<u32>,
    /// Whether every token passes all of its weights; `None` where that is not known.
    #[serde(default)]
    pub is_dense: Option<bool>,
    /// GB of weights of all ranks of a replica together, as the server reports.
    #[serde(default)]
    pub weights_gb: Option<f64>,
    /// Billions of parameters, as the model's name says.
    #[serde(default)]
    pub billions: Option<f64>,
}

impl ModelSize {
    /// What `/server_info` of SGLang tells, of a model of that name.
    pub fn of_server_info(info: &Value, name: &str) -> Self {
        let states = info["internal_states"].as_array().into_iter().flatten();
        let weights = states.filter_map(|s| s["memory_usage"]["weight"].as_f64()).fold(0.0, f64::max);
        let parts = |name: &str| info[name].as_f64().unwrap_or(1.0).max(1.0);
        let weights_gb = (weights > 0.0).then(|| weights * parts("tp_size") * parts("pp_size"));
        let has_experts = parts("ep_size") > 1.0;
        Self { layers: None, is_dense: has_experts.then_some(false), weights_gb, ..Self::of_name(name) }
    }

    /// What a model's name tells.
    pub fn of_name(name: &str) -> Self {
        Self { billions: billions_in(name), ..Self::default() }
    }

    /// With what the model's own `config.json` says.
    #[must_use]
    pub fn with_config(self, config: &Value) -> Self {
        // Models that also see or hear keep their language part apart.
        let text = Some(&config["text_config"]).filter(|text| text.is_object()).unwrap_or(config);
        let number = |name: &str| text[name].as_u64();
        let experts = ["num_experts", "num_local_experts", "n_routed_experts"].map(number);
        let Some(layers) = number("num_hidden_layers").and_then(|n| u32::try_from(n).ok()) else {
            return self;
        };
        let is_dense = experts.into_iter().flatten().all(|n| n <= 1);
        Self { layers: Some(layers.max(1)), is_dense: Some(is_dense), ..self }
    }

    /// Bytes of a step of one rank, with GPU rows alone.
    pub fn bytes_per_step(&self) -> LogEstimate {
        let by = |(factor, power, spread): (f64, f64, f64), of: f64| {
            LogEstimate::around(factor * of.max(0.01).powf(power), spread)
        };
        let layers = self
            .layers
            .map(|n| LogEstimate::around(f64::from(n), 0.0))
            .or_else(|| self.weights_gb.map(|gb| by(BY_WEIGHTS, gb)))
            .or_else(|| self.billions.map(|billions| by(BY_PARAMETERS, billions)));
        let around = |(median, spread)| LogEstimate::around(median, spread);
        let kernels = around(match self.is_dense {
            Some(true) => DENSE,
            Some(false) => EXPERTS,
            None => EITHER,
        });
        layers.map_or_else(|| around(UNKNOWN), |layers| layers.and(kernels).and(around(BYTES_PER_KERNEL)))
    }

    /// By what its steps are estimated, for who reads a prediction.
    pub fn source(&self) -> String {
        match (self.layers, self.weights_gb, self.billions) {
            (Some(layers), _, _) => format!("from its {layers} layers"),
            (None, Some(gb), _) if gb < 0.05 => "from its weights, of less than 0.1 GB".into(),
            (None, Some(gb), _) => format!("from its {gb:.1} GB of weights"),
            (None, None, Some(billions)) => {
                format!("from its name, which says {billions} billion parameters")
            }
            (None, None, None) => "carefully, for nothing tells how large its model is".into(),
        }
    }
}

/// Seconds that a rank on a host as usual needs for each byte, before one was seen to write.
pub fn seconds_per_byte() -> LogEstimate {
    LogEstimate::around(RATE.0, RATE.1)
}

/// The same where the ranks meet in collectives.
pub fn seconds_per_byte_together() -> LogEstimate {
    LogEstimate::around(RATE_TOGETHER.0, RATE_TOGETHER.1)
}

/// The same of vLLM, whose worker also makes a table of what it recorded.
pub fn seconds_per_byte_of_vllm() -> LogEstimate {
    LogEstimate::around(VLLM_RATE.0, VLLM_RATE.1)
}

/// How many times slower than usual the slowest host is: where nobody knows, where no host is in doubt (once), and
/// where it was measured.
pub fn slowness(known: Option<f64>) -> LogEstimate {
    match known {
        None => LogEstimate::around(ANY_HOST.0, ANY_HOST.1),
        Some(times) if times > 1.0 => {
            let between = (1.0 - 1.0 / times) * ((SLOWEST_HOST - times) / (SLOWEST_HOST - 1.0)).max(0.0);
            LogEstimate::around(times, MEASURED_HOST.0 + MEASURED_HOST.1 * between)
        }
        Some(_) => LogEstimate::around(1.0, 0.0),
    }
}

/// How many times slower a host is behind a step that takes `longer` times as long as usual.
pub fn host_behind(longer: f64) -> f64 {
    let host = 1.0 + (longer - 1.0).max(0.0) / HOST_SHARE;
    host.min(SLOWEST_HOST).max(longer).max(LEAST_MEASURED)
}

/// The parameters that a name promises: `Llama-3.1-70B-Instruct`, `Mixtral-8x7B`, `Qwen3-30B-A3B`.
fn billions_in(name: &str) -> Option<f64> {
    let last = name.trim_end_matches('/').rsplit('/').next().unwrap_or(name);
    let words = last.split(|c: char| !(c.is_ascii_alphanumeric() || c == '.'));
    let number = |text: &str| text.parse::<f64>().ok().filter(|n| *n > 0.0 && *n < 10_000.0);
    let billions = words.filter_map(|word| {
        let size = word.strip_suffix(['b', 'B'])?;
        match size.split_once('x') {
            Some((experts, each)) => Some(number(experts)? * number(each)?),
            None => number(size),
        }
    });
    billions.max_by(f64::total_cmp)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kb(size: ModelSize, quantile: f64) -> f64 {
        let guess = size.bytes_per_step();
        (guess.mean + quantile * guess.variance.sqrt()).exp() / 1e3
    }

    #[test]
    fn the_model_that_was_measured_lies_within_what_is_expected_of_it() {
        let info = json!({"internal_states": [{"memory_usage": {"weight": 0.36}}, {"memory_usage": {"weight": 0.36}}]});
        let by_weights = ModelSize::of_server_info(&info, "/tmp/rig/model-llama");
        let by_layers = by_weights.with_config(&json!({"num_hidden_layers": 8}));
        for (size, source) in [(by_weights, "0.4 GB"), (by_layers, "8 layers")] {
            // Up to 13.4 kB were seen, on a rank with many prompts.
            assert!(kb(size, 1.65) > 13.4, "{size:?}");
            assert!(size.source().contains(source), "{}", size.source());
        }
        // 8.4 kB in healthy windows. For so few weights it has few layers, which only its layers tell.
        assert!(kb(by_layers, -1.65) < 8.4 && kb(by_layers, 1.65) < kb(by_weights, 1.65));
        assert!(kb(ModelSize::default(), 1.65) > 800.0 && kb(ModelSize::default(), -1.65) < 12.0);
    }

    #[test]
    fn behind_a_slow_step_the_host_is_slower_still_for_a_part_of_the_step_is_the_gpus() {
        let table = [0.5, 1.0, 1.5, 2.0, 3.0, 5.5].map(|longer| (longer, host_behind(longer)));
        let wanted = [(0.5, 1.1), (1.0, 1.1), (1.5, 2.25), (2.0, 3.5), (3.0, 4.0), (5.5, 5.5)];
        assert_eq!(table, wanted);
        let spread = |known| slowness(known).variance.sqrt();
        assert!(spread(None) > spread(Some(2.0)) && spread(Some(2.0)) > spread(Some(1.0)));
    }

    #[test]
    fn a_name_tells_the_parameters() {
        for (name, billions) in [
            ("meta-llama/Llama-3.1-70B-Instruct", Some(70.0)),
            ("/models/qwen2.5-0.5b", Some(0.5)),
            ("mistralai/Mixtral-8x7B-v0.1", Some(56.0)),
            ("Qwen/Qwen3-30B-A3B", Some(30.0)),
            ("deepseek-ai/DeepSeek-V3", None),
            ("/models/9b/tiny", None),
            ("b", None),
        ] {
            assert_eq!(ModelSize::of_name(name).billions, billions, "{name}");
        }
    }

    #[test]
    fn experts_and_nested_configurations_are_read() {
        let moe = ModelSize::default().with_config(&json!({"num_hidden_layers": 48, "num_experts": 128}));
        assert_eq!((moe.layers, moe.is_dense), (Some(48), Some(false)));
        let nested = ModelSize::default().with_config(&json!({"text_config": {"num_hidden_layers": 62}}));
        assert_eq!((nested.layers, nested.is_dense), (Some(62), Some(true)));
        let other = ModelSize::of_name("x-7B");
        assert_eq!(other.with_config(&json!({"vision": 1})), other, "no configuration of a language model");
    }

    #[test]
    fn the_ranks_of_a_replica_hold_its_weights_together() {
        let info = json!({"tp_size": 4, "pp_size": 2, "ep_size": 4, "internal_states": [{"memory_usage": {"weight": 17.5}}]});
        let size = ModelSize::of_server_info(&info, "x");
        assert_eq!((size.weights_gb, size.is_dense), (Some(140.0), Some(false)));
    }
}
