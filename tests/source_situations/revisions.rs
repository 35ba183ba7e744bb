//! Which commit is run.

use clearml_agent::task::Script;

use crate::source_host::script;
use crate::source_world::World;
use crate::{Commit, Refused, Situation, TRAIN, first, open, version};

fn tag(script: Script, tag: &str) -> Script {
    Script {
        tag: tag.to_owned(),
        ..script
    }
}

fn branch(script: Script, branch: &str) -> Script {
    Script {
        branch: branch.to_owned(),
        ..script
    }
}

fn on_branch(w: &World) -> &str {
    &w.on_branch
}

fn pull(w: &World) -> &str {
    &w.pull
}

const NOWHERE: &str = "0123456789012345678901234567890123456789";

pub const SITUATIONS: &[Situation] = &[
    (
        "a commit",
        |w, _| version(open(w), &w.first),
        Commit(first, TRAIN),
    ),
    (
        "a commit over ssh",
        |w, _| version(script(&w.ssh.url(&w.up.folder)), &w.first),
        Commit(first, TRAIN),
    ),
    (
        "a commit from the daemon",
        |w, _| version(script(&w.daemon.url("up")), &w.first),
        Commit(first, TRAIN),
    ),
    (
        "an abbreviated commit",
        |w, _| version(open(w), &w.first[..8]),
        Commit(first, TRAIN),
    ),
    (
        "a commit, whatever the branch",
        |w, _| branch(version(open(w), &w.first), "feature/x"),
        Commit(first, TRAIN),
    ),
    (
        "a branch as version",
        |w, _| version(open(w), "feature/x"),
        Commit(on_branch, TRAIN),
    ),
    (
        "a branch",
        |w, _| branch(open(w), "feature/x"),
        Commit(on_branch, TRAIN),
    ),
    (
        "a branch of origin",
        |w, _| branch(open(w), "origin/feature/x"),
        Commit(on_branch, TRAIN),
    ),
    ("a tag", |w, _| tag(open(w), "light"), Commit(first, TRAIN)),
    (
        "an annotated tag before the branch",
        |w, _| branch(tag(open(w), "v1"), "feature/x"),
        Commit(first, TRAIN),
    ),
    (
        "a pull request's commit",
        |w, _| version(open(w), &w.pull),
        Commit(pull, TRAIN),
    ),
    (
        "a pull request's commit where ids are not given",
        |w, _| version(script(&w.open.url("strict.git")), &w.pull),
        Commit(pull, TRAIN),
    ),
    (
        "an unpushed commit",
        |w, _| version(open(w), NOWHERE),
        Refused(&["commit 0123", "is not in repository", "git push"]),
    ),
    (
        "a branch that is not there",
        |w, _| branch(open(w), "featur/x"),
        Refused(&["did you mean feature/x?"]),
    ),
    (
        "a tag that is not there",
        |w, _| tag(open(w), "v2"),
        Refused(&["tag \"v2\""]),
    ),
];
