//! What every file of the repository keeps to.

use std::path::Path;
use std::process::Command;

fn tracked(patterns: &[&str]) -> Vec<String> {
    let output = Command::new("git")
        .arg("-C")
        .arg(env!("CARGO_MANIFEST_DIR"))
        .args(["ls-files", "--"])
        .args(patterns)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

fn read(file: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap_or_default()
}

#[test]
fn no_source_file_outgrows_the_limit() {
    // Read as: look for the second room in it.
    let long: Vec<_> = tracked(&["src/*.rs", "tests/*.rs"])
        .into_iter()
        .map(|file| (read(&file).lines().count(), file))
        .filter(|(lines, _)| *lines > 800)
        .collect();
    assert_eq!(long, Vec::new());
}

#[test]
fn scripts_stop_at_the_first_failure() {
    let loose: Vec<_> = tracked(&["hack", ".ci"])
        .into_iter()
        .filter(|file| {
            let text = read(file);
            // The guest's init must go on after a failure; it is no bash.
            text.starts_with("#!/usr/bin/env bash") && !text.contains("set -euo pipefail")
        })
        .collect();
    assert_eq!(loose, Vec::<String>::new());
}

#[test]
fn every_documented_target_of_the_makefile_has_its_script() {
    let makefile = read("Makefile");
    let targets = ["demo", "test", "lint", "generate", "bench", "image"];
    for target in targets {
        assert!(makefile.contains(&format!("\n{target}: ## ")), "make {target} is not documented");
        assert!(!read(&format!("hack/{target}")).is_empty(), "hack/{target} is missing");
    }
}

#[test]
fn no_overlay_carries_an_admission_policy() {
    // The manager keeps them under fixed names: kustomize would give them others, OLM would leave them out.
    let with: Vec<_> = tracked(&["config"])
        .into_iter()
        .filter(|file| read(file).contains("kind: ValidatingAdmissionPolicy"))
        .collect();
    assert_eq!(with, Vec::<String>::new());
}
