//! What `--help` and `--version` show.
#![allow(clippy::unwrap_used)]

use std::process::Command;

fn agent(words: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_clearml-agent"))
        .args(words)
        .output()
        .unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_option_of_the_python_agent_is_in_the_help() {
    let help = agent(&["execute", "--help"]);
    for option in [
        "--id <TASK_ID>",
        "--log-file <FILE>",
        "--disable-monitoring",
        "--full-monitoring",
        "--require-queue",
        "--standalone-mode",
        "--docker [<IMAGE ARGS>...]",
        "--clone",
        "-O",
        "--git-user <USER>",
        "--git-pass <PASSWORD>",
        "--log-level <LEVEL>",
        "--gpus <GPUS>",
        "--cpu-only",
        "--config-file <FILE>",
        "--debug",
        "--help",
        "--version",
    ] {
        assert!(help.contains(option), "{option} is not in:\n{help}");
    }
    for group in [
        "Task:",
        "Where it runs:",
        "Git:",
        "Log and monitoring:",
        "Global options:",
    ] {
        assert!(help.contains(group), "{group} is not in:\n{help}");
    }
}

#[test]
fn the_version_is_the_packages() {
    let version = agent(&["--version"]);
    assert_eq!(
        version.trim(),
        concat!("clearml-agent ", env!("CARGO_PKG_VERSION"))
    );
}
