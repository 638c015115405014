//! What must not be found in the repository.

use std::process::Command;

use tests::repository;

fn tracked_lines_matching(pattern: &str) -> String {
    let output = Command::new("git")
        .args([
            "grep",
            "-nIE",
            pattern,
            "--",
            ".",
            ":!Cargo.lock",
            ":!LICENSE-APACHE",
            ":!tests/tests/e2e/hygiene.rs",
        ])
        .current_dir(repository())
        .output()
        .unwrap();
    assert!(
        matches!(output.status.code(), Some(0 | 1)),
        "the suite runs in a git checkout"
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn no_path_of_a_machine() {
    assert_eq!(
        tracked_lines_matching("(^|[^A-Za-z0-9_.])/(root|home|Users)/"),
        ""
    );
}

#[test]
fn no_unfinished_work() {
    assert_eq!(
        tracked_lines_matching("todo!\\(|unimplemented!\\(|#\\[ignore|FIXME|XXX"),
        ""
    );
}

#[test]
fn every_script_and_page_named_in_the_readme_exists() {
    let readme = std::fs::read_to_string(repository().join("README.md")).unwrap();
    let words = readme.split(|c: char| c.is_whitespace() || "`()[]<>,;:".contains(c));
    let mut num_checked = 0;
    for word in words {
        let word = word.trim_end_matches('.');
        if ["docs/", "scripts/", "data/", "tests/"]
            .iter()
            .any(|folder| word.starts_with(folder))
        {
            assert!(repository().join(word).exists(), "README.md names `{word}`");
            num_checked += 1;
        }
    }
    assert!(num_checked > 5, "the README points into the repository");
}
