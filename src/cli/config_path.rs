//! Which configuration a command reads: the one of its flag, else SKEWTRAP_CONFIG, else `skewtrap.yaml` in
//! the current folder.

use std::fmt;
use std::path::{Path, PathBuf};

const HERE: &str = "skewtrap.yaml";

/// The configuration to read; `None` where there is none.
pub fn of(flag: Option<&Path>) -> Option<PathBuf> {
    let named = std::env::var_os("SKEWTRAP_CONFIG").filter(|name| !name.is_empty());
    chosen(flag, named.map(PathBuf::from), Path::new(HERE).is_file())
}

/// The configuration that a command would have read, had it not been for one of its flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unused {
    /// The file.
    pub path: PathBuf,
    /// The flag that was given in its place.
    pub flag: &'static str,
}

impl fmt::Display for Unused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not used, because {} was given", self.path.display(), self.flag)
    }
}

fn chosen(flag: Option<&Path>, named: Option<PathBuf>, is_here: bool) -> Option<PathBuf> {
    flag.map(Path::to_owned).or(named).or_else(|| is_here.then(|| HERE.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_goes_before_the_variable_and_the_variable_before_the_file_that_is_here() {
        let (flag, named) = (Path::new("flag.yaml"), Some(PathBuf::from("named.yaml")));
        assert_eq!(chosen(Some(flag), named.clone(), true), Some("flag.yaml".into()));
        assert_eq!(chosen(None, named, true), Some("named.yaml".into()));
        assert_eq!(chosen(None, None, true), Some(HERE.into()));
        assert_eq!(chosen(None, None, false), None);
    }
}
