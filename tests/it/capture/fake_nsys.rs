//! The fake nsys that the tests of captures drive says and does what the real ones were seen to.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use crate::support::nsys::FAKE;

struct Fake {
    dir: tempfile::TempDir,
}

/// Exit status, standard output, standard error.
type Said = (i32, String, String);

impl Fake {
    fn new(flavour: &str) -> Self {
        let fake = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir_all(fake.path("state")).unwrap();
        fake.fault("flavour", flavour);
        fake
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn fault(&self, name: &str, value: &str) {
        fs::write(self.path("state").join(name), value).unwrap();
    }

    fn nsys(&self, args: &[&str]) -> Said {
        let mut command = Command::new("sh");
        command.arg(FAKE).args(args).current_dir(self.dir.path());
        command.env("FAKE_NSYS_STATE", self.path("state")).env("TMPDIR", self.dir.path());
        let Output { status, stdout, stderr } = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (status.code().unwrap(), text(stdout), text(stderr))
    }

    fn with_session(self, id: &str, name: &str, state: &str, rep: &str) -> Self {
        self.nsys(&["fake", "session", id, name, state, rep]);
        self
    }

    fn state_of(&self, name: &str) -> String {
        let list = self.nsys(&["sessions", "list"]).1;
        let row = list.lines().find(|l| l.ends_with(&format!(" {name}"))).unwrap();
        row.split_whitespace().nth(2).unwrap().to_owned()
    }

    /// The line after `Generated:`.
    fn window(&self, start: &[&str]) -> (PathBuf, Said) {
        let session = start[0];
        assert_eq!(self.nsys(&[&["start"], start].concat()).0, 0);
        let said = self.nsys(&["stop", session]);
        let path = said.1.lines().skip_while(|l| *l != "Generated:").nth(1).unwrap().trim().into();
        (path, said)
    }
}

#[test]
fn each_flavour_says_its_version_and_only_the_newer_knows_start_later() {
    let (old, new) = (Fake::new("2022.4.2"), Fake::new("2025.3.1"));
    assert!(old.nsys(&["--version"]).1.contains("2022.4.2"));
    assert!(!old.nsys(&["profile", "--help"]).1.contains("--start-later"));
    assert!(new.nsys(&["profile", "--help"]).1.contains("--start-later"));
    let (code, _, error) = old.nsys(&["profile", "--start-later=true", "sleep", "1"]);
    assert!(code == 1 && error.starts_with("unrecognised option '--start-later=true'"));
}

#[test]
fn sessions_are_listed_in_columns_and_json_is_unrecognised() {
    let fake = Fake::new("2022.4.2");
    assert_eq!(
        fake.nsys(&["sessions", "list"]),
        (0, "              ID         TIME                       STATE LAUNCH NAME\n".into(), String::new())
    );
    let fake = fake.with_session("1024422", "mine", "Launched", "");
    let list = fake.nsys(&["sessions", "list"]).1;
    assert!(
        list.ends_with("         1024422        00:09                    Launched      1 mine\n"),
        "{list}"
    );
    assert_eq!(fake.nsys(&["sessions", "list", "-f", "json"]).0, 1);
}

#[test]
fn a_window_goes_through_collection_back_to_launched_and_says_where_its_report_is() {
    let fake = Fake::new("2025.3.1").with_session("7", "mine", "Launched", "");
    let out = fake.path("w1");
    assert_eq!(fake.nsys(&["start", "--session=mine", "-o", out.to_str().unwrap()]).0, 0);
    assert_eq!(fake.state_of("mine"), "Collection");
    let (code, said, _) = fake.nsys(&["stop", "--session=7"]);
    assert_eq!((code, fake.state_of("mine").as_str()), (0, "Launched"));
    assert!(said.starts_with("Generating '") && said.contains("\r[1/1] ["));
    assert!(said.ends_with(&format!("\nGenerated:\n    {}.nsys-rep\n", out.display())), "{said}");
    assert!(out.with_extension("nsys-rep").exists());
}

#[test]
fn starting_twice_and_stopping_nothing_are_refused_in_nsys_own_words() {
    let fake = Fake::new("2025.3.1").with_session("7", "mine", "DelayedCollection", "");
    let (code, _, error) = fake.nsys(&["stop", "--session=mine"]);
    assert_eq!((code, error.as_str()), (1, "The request is not applicable in this state: StopRequest.\n"));
    fake.nsys(&["start", "--session=mine"]);
    let (code, _, error) = fake.nsys(&["start", "--session=mine"]);
    assert_eq!((code, error.as_str()), (1, "Configuring is not allowed in this state.\n"));
}

#[test]
fn a_session_that_is_gone_looks_like_success_to_the_newer_and_fails_with_the_older() {
    for (flavour, code, words) in [("2025.3.1", 0, ""), ("2022.4.2", 1, "Agent launcher failed.\n")] {
        let fake = Fake::new(flavour).with_session("7", "mine", "Shutdown", "");
        let (got, said, error) = fake.nsys(&["start", "--session=mine"]);
        assert_eq!((got, said.as_str(), error.as_str()), (code, "", words), "{flavour}");
        assert_eq!(fake.state_of("mine"), "Shutdown");
    }
    assert_eq!(Fake::new("2022.4.2").nsys(&["stop", "--session=x"]).2, "There are no active sessions.\n");
    assert_eq!(Fake::new("2022.4.2").nsys(&["stop"]).2, "Failed to find session: [default].\n");
}

#[test]
fn the_older_makes_an_empty_session_of_a_name_that_it_is_told_to_start_and_does_not_know() {
    let fake = Fake::new("2022.4.2");
    assert_eq!(fake.nsys(&["start", "--session=gone"]), (0, String::new(), String::new()));
    let list = fake.nsys(&["sessions", "list"]).1;
    assert!(list.ends_with("Started      0 gone\n"), "{list}");
    assert_eq!(fake.nsys(&["start", "--session=777"]).2, "Agent launcher failed.\n", "a number is no name");
    assert_eq!(fake.nsys(&["stop", "--session=gone"]), (0, String::new(), String::new()));
    assert!(!fake.nsys(&["sessions", "list"]).1.contains("gone"));
}

#[test]
fn the_first_window_of_a_profiled_server_ignores_the_output_that_start_names() {
    let fake = Fake::new("2025.3.1");
    let rep = fake.path("server.out");
    let fake = fake.with_session("7", "mine", "DelayedCollection", rep.to_str().unwrap());
    let x = fake.path("x").display().to_string();
    let first = fake.window(&["--session=mine", "-o", &x]).0;
    assert_eq!(first, rep.with_extension("out.nsys-rep"));
    let second = fake.window(&["--session=mine", "-o", &x]).0;
    assert_eq!(second, fake.path("x.nsys-rep"));
}

#[test]
fn a_name_that_exists_sends_the_report_to_the_temporary_folder_unless_forced() {
    let fake = Fake::new("2025.3.1").with_session("7", "mine", "Launched", "");
    assert_eq!(fake.window(&["--session=mine"]).0.file_name().unwrap(), "report1.nsys-rep");
    let (path, (code, _, error)) = fake.window(&["--session=mine"]);
    assert!(code == 0 && error.starts_with("File exists. Use --force-overwrite true"), "{error}");
    assert!(path.display().to_string().contains("nsys-report-"), "{}", path.display());
    let forced = fake.window(&["--session=mine", "--force-overwrite=true"]).0;
    assert_eq!(forced.file_name().unwrap(), "report1.nsys-rep");
}

#[test]
fn without_an_importer_a_qdstrm_is_left_and_the_exit_status_is_still_0() {
    let fake = Fake::new("2022.4.2").with_session("7", "mine", "Launched", "");
    fake.fault("importer_broken", "");
    let (path, (code, _, error)) = fake.window(&["--session=mine"]);
    assert!(code == 0 && path.extension().unwrap() == "qdstrm" && path.exists());
    assert!(error.starts_with("Importer error status: "));
}

#[test]
fn starts_and_stops_may_be_ignored_with_status_0() {
    let fake = Fake::new("2025.3.1").with_session("7", "mine", "Launched", "");
    fake.fault("start_ignored", "");
    assert_eq!((fake.nsys(&["start", "--session=mine"]).0, fake.state_of("mine").as_str()), (0, "Launched"));
}

#[test]
fn a_launched_application_is_a_child_of_its_nsys_and_its_end_shuts_the_session_down() {
    let fake = Fake::new("2022.4.2");
    let print_parent = "tr '\\0' ' ' </proc/$PPID/cmdline";
    let (code, said, error) =
        fake.nsys(&["launch", "--trace=osrt", "--session-new=mine", "sh", "-c", print_parent]);
    assert!(code == 0 && said.contains("nsys launch --trace=osrt"), "{said}{error}");
    assert_eq!(fake.state_of("mine"), "Shutdown");
}

#[test]
fn every_call_is_on_record_so_that_foreign_sessions_can_be_proven_untouched() {
    let fake = Fake::new("2025.3.1").with_session("7", "mine", "Launched", "").with_session(
        "8",
        "other",
        "Collection",
        "",
    );
    fake.window(&["--session=mine"]);
    let calls = fs::read_to_string(fake.path("state").join("calls.log")).unwrap();
    assert!(calls.contains("start --session=mine\n") && !calls.contains("other"), "{calls}");
    assert_eq!(fake.state_of("other"), "Collection");
}

#[test]
fn an_export_gives_the_file_that_the_test_put_there() {
    let fake = Fake::new("2025.3.1").with_session("7", "mine", "Launched", "");
    fake.fault("export.sqlite", "SQLite format 3");
    let report = fake.window(&["--session=mine"]).0;
    let out = fake.path("w.sqlite").display().to_string();
    let (code, _, _) =
        fake.nsys(&["export", "--type", "sqlite", "-o", &out, "-f", "true", report.to_str().unwrap()]);
    assert_eq!((code, fs::read_to_string(&out).unwrap().as_str()), (0, "SQLite format 3"));
}
