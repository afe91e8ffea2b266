//! The report of an nsys window: where it really is, and whether it is usable.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::Failed;
use crate::act::nsys::CommandOutput;
use crate::agent::capture::CaptureResult;
use crate::observe::artifact::inspect;
use skewtrap_core::capture::captured::Quality;
use skewtrap_core::capture::facts::ServerKind;
use skewtrap_core::capture::nsys::{generated, importer_error};
use skewtrap_core::capture::verify::{Artifact, FileVerification};

/// The path of the report, by nsys's own output; a `.qdstrm` is none yet, and is kept as it is.
pub(super) async fn path_of(
    output: &CommandOutput,
    gone: bool,
    result: &mut CaptureResult,
) -> Result<PathBuf, Failed> {
    let Some(path) = generated(&output.out) else {
        let why = if gone {
            "the server went away in the middle of the window, and nsys's session with it"
        } else {
            "nsys stopped and named no report"
        };
        return Err(Failed::closed(format!("{why}: {}", output.summary())));
    };
    if !path.ends_with(".qdstrm") {
        return Ok(PathBuf::from(path));
    }
    let why = importer_error(&output.err).unwrap_or_else(|| "it says nothing about it".into());
    let name =
        Path::new(&path).file_name().map_or_else(|| path.clone(), |n| n.to_string_lossy().into_owned());
    if let Ok(artifact) = read(Path::new(&path), result).await {
        result.artifacts = vec![Artifact { rank: None, whole: false, ..artifact }];
    }
    let full = if why.contains("No space left") { "; the disk was full: free some space first" } else { "" };
    Err(Failed::closed(format!(
        "nsys recorded the window but could not import it ({why}){full}; it is among the incident's files, to be imported where a whole Nsight Systems is installed: QdstrmImporter -i {name}"
    )))
}

/// Reads the report to its end, for the bundle.
pub(super) async fn verify(report: &Path, result: &mut CaptureResult) {
    match read(report, result).await {
        Ok(artifact) => {
            let quality = if artifact.whole { Quality::Usable } else { Quality::Broken };
            result.verdict = FileVerification { quality, ..FileVerification::default() };
            result.artifacts = vec![Artifact { rank: None, ..artifact }];
        }
        Err(error) => {
            result.failure = Some(format!(
                "nsys says that its report is {}, where the agent cannot read it ({error}); it must share the server's file system",
                report.display()
            ));
        }
    }
}

async fn read(file: &Path, result: &mut CaptureResult) -> std::io::Result<Artifact> {
    result.notes.push(
        "the report holds the environment and the output of the server: treat it as a secret (its mode is 0600)".into(),
    );
    let path = file.to_owned();
    let read = crate::world::blocking(move || {
        let mode = std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600));
        (mode, inspect(&path, ServerKind::Sglang))
    });
    let (mode, artifact) = read.await.map_err(std::io::Error::other)?;
    if let Err(error) = mode {
        result.notes.push(format!("the mode of {} could not be set to 0600: {error}", file.display()));
    }
    artifact
}
