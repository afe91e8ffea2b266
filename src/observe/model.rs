//! The configuration of a server's model, where this machine has it: how many layers it has says how much a
//! window writes, and no server reports it.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

/// A configuration is a few kB.
const LARGEST: u64 = 1 << 20;
/// A folder that hangs costs the prediction its precision, and nothing else.
const LIMIT: Duration = Duration::from_millis(500);

/// `config.json` of `model`: a folder, or a name of the Hugging Face hub that is in a cache of this machine.
pub async fn configuration(model: &str) -> Option<Value> {
    let model = model.to_owned();
    let reading = crate::world::blocking(move || {
        let caches = caches(|name| std::env::var_os(name).map(PathBuf::from));
        candidates(&model, &caches).iter().find_map(|file| read(file))
    });
    tokio::time::timeout(LIMIT, reading).await.ok()?.ok()?
}

/// The folders in which the hub's models are kept.
fn caches(variable: impl Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    let own = variable("HF_HUB_CACHE");
    let home = variable("HF_HOME").map(|home| home.join("hub"));
    let user = variable("HOME").map(|home| home.join(".cache/huggingface/hub"));
    [own, home, user].into_iter().flatten().collect()
}

fn candidates(model: &str, caches: &[PathBuf]) -> Vec<PathBuf> {
    if Path::new(model).is_absolute() {
        return vec![Path::new(model).join("config.json")];
    }
    let Some((owner, name)) = model.split_once('/').filter(|(_, name)| !name.contains('/')) else {
        return Vec::new();
    };
    let folder = format!("models--{owner}--{name}");
    let snapshots = caches.iter().filter_map(|cache| cache.join(&folder).join("snapshots").read_dir().ok());
    snapshots.flatten().flatten().map(|snapshot| snapshot.path().join("config.json")).collect()
}

fn read(file: &Path) -> Option<Value> {
    let mut text = Vec::new();
    File::open(file)
        .ok()
        .filter(|f| f.metadata().is_ok_and(|m| m.is_file()))?
        .take(LARGEST)
        .read_to_end(&mut text)
        .ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_and_a_name_of_the_hub_lead_to_the_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let cached = dir.path().join("hub/models--org--tiny-1B/snapshots/abc");
        std::fs::create_dir_all(&cached).unwrap();
        std::fs::write(cached.join("config.json"), r#"{"num_hidden_layers": 8}"#).unwrap();
        let home = dir.path().to_owned();
        let caches = caches(|name| (name == "HF_HOME").then(|| home.clone()));
        for model in ["org/tiny-1B", &cached.display().to_string()] {
            let found = candidates(model, &caches).iter().find_map(|file| read(file));
            assert_eq!(found.unwrap()["num_hidden_layers"], 8, "{model}");
        }
        for model in ["tiny", "../x/y", "org/other", ""] {
            assert!(candidates(model, &caches).iter().find_map(|file| read(file)).is_none(), "{model}");
        }
    }
}
