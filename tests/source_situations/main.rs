//! Situations in which a task gets its code, and what must come of each: tables, against real servers
//! (smart HTTP with a login and without, sshd, `git daemon`) and real repositories.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used)]

mod access;
mod addresses;
mod code;
mod revisions;

#[path = "../common/git_http.rs"]
mod git_http;
#[path = "../common/source_host.rs"]
mod source_host;
#[path = "../common/source_world.rs"]
mod source_world;
#[path = "../common/ssh_server.rs"]
mod ssh_server;

use std::fs;
use std::path::Path;

use clearml_agent::task::Script;
use git_http::git_in;
use source_host::{Host, assert_nowhere, script};
use source_world::{PASSWORD, World};

/// Its name, the task (and what is special about the machine), what must come of it.
type Situation = (&'static str, fn(&World, &mut Host) -> Script, Expected);

enum Expected {
    /// The commit is checked out; these files are there with this text.
    Commit(fn(&World) -> &str, &'static [(&'static str, &'static str)]),
    /// The code is there, with these files.
    Files(&'static [(&'static str, &'static str)]),
    /// The error has these words.
    Refused(&'static [&'static str]),
}
use Expected::{Commit, Files, Refused};

const TRAIN: &[(&str, &str)] = &[("train.py", "print('training')\n")];

fn tip(w: &World) -> &str {
    &w.tip
}

fn first(w: &World) -> &str {
    &w.first
}

/// The repository on the server that lets everybody in.
fn open(w: &World) -> Script {
    script(&w.open.url("up/.git"))
}

/// And on the one that wants a login.
fn closed(w: &World) -> Script {
    script(&w.closed.url("up/.git"))
}

fn version(script: Script, version_num: &str) -> Script {
    Script {
        version_num: version_num.to_owned(),
        ..script
    }
}

/// What is wrong with what came of a situation.
fn faults(world: &World, (_, situation, expected): &Situation) -> Vec<String> {
    let mut host = world.host();
    let task = situation(world, &mut host);
    let found = host.fetch(&task);
    // What the user put there himself.
    fs::remove_dir_all(&host.env["HOME"]).unwrap();
    let said = host.said();
    let mut faults = Vec::new();
    for secret in [PASSWORD, "p4ss%20w"] {
        assert_nowhere(host.folder.path(), secret);
        if said.contains(secret) {
            faults.push(format!("shows the password: {said}"));
        }
    }
    let files = match (expected, &found) {
        (Commit(commit, files), Ok(sources)) => {
            let head = git_in(&sources.root, &["rev-parse", "HEAD"]);
            if head.trim() != commit(world) {
                faults.push(format!("is at {head}"));
            }
            files
        }
        (Files(files), Ok(_)) => files,
        (Refused(words), Err(error)) => {
            let error = error.to_string();
            let missing = words.iter().filter(|word| !error.contains(**word));
            faults.extend(missing.map(|word| format!("no {word:?} in: {error}")));
            return faults;
        }
        (_, Ok(_)) => return vec!["must be refused".to_owned()],
        (_, Err(error)) => return vec![error.to_string()],
    };
    for (path, text) in *files {
        let read = |root: &Path| fs::read_to_string(root.join(path));
        let found = found.as_ref().map(|sources| read(&sources.root));
        if !matches!(&found, Ok(Ok(found)) if found == text) {
            faults.push(format!("{path} is {found:?}"));
        }
    }
    faults
}

#[test]
fn every_situation_comes_out_as_it_must() {
    let world = World::new();
    let tables = [
        addresses::SITUATIONS,
        access::SITUATIONS,
        revisions::SITUATIONS,
        code::SITUATIONS,
    ];
    let situations = || tables.iter().copied().flatten();
    assert!(situations().count() >= 40);
    let mut wrong = Vec::new();
    for situation in situations() {
        let faults = faults(&world, situation);
        wrong.extend(
            faults
                .iter()
                .map(|fault| format!("{}: {fault}", situation.0)),
        );
    }
    // What is meant for one server has not been sent to another.
    let sent = world.open.requests().into_iter().filter_map(|r| r.login);
    assert_eq!(sent.count(), 0);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
