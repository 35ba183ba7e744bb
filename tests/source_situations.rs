//! Situations in which a task gets its code, and what must come of each: a table, against real servers
//! (smart HTTP with a login and without, sshd, `git daemon`) and real repositories.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used)]

#[path = "common/git_http.rs"]
mod git_http;
#[path = "common/source_host.rs"]
mod source_host;
#[path = "common/source_world.rs"]
mod source_world;
#[path = "common/ssh_server.rs"]
mod ssh_server;

use std::fs;
use std::path::Path;

use clearml_agent::secret::Secret;
use clearml_agent::source::{ExtraCredential, PasswordKind};
use clearml_agent::task::Script;
use git_http::{GitServer, git_in};
use source_host::{Host, assert_nowhere, script};
use source_world::{PASSWORD, World};

fn login(host: &mut Host, user: &str, password: &str) {
    host.credentials.user = Some(user.to_owned()).filter(|user| !user.is_empty());
    host.credentials.password = Some(Secret::new(password));
}

fn home_file(host: &Host, name: &str, text: &str) {
    fs::write(Path::new(&host.env["HOME"]).join(name), text).unwrap();
}

fn version(script: Script, version_num: &str) -> Script {
    Script {
        version_num: version_num.to_owned(),
        ..script
    }
}

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

fn entry(script: Script, working_dir: &str, entry_point: &str) -> Script {
    Script {
        working_dir: working_dir.to_owned(),
        entry_point: entry_point.to_owned(),
        ..script
    }
}

fn diff(script: Script, diff: &str) -> Script {
    Script {
        diff: diff.to_owned(),
        ..script
    }
}

fn encoded(server: &GitServer, login: &str, path: &str) -> String {
    server.url_with(&format!("{login}:p4ss%20w%24rd%27"), path)
}

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
const LIB: &[(&str, &str)] = &[("lib/train.py", "print('training')\n")];
const NESTED: &[(&str, &str)] = &[("lib/lib/train.py", "print('training')\n")];
const CHANGE: &str = "diff --git a/train.py b/train.py\n--- a/train.py\n+++ b/train.py\n\
                      @@ -1 +1 @@\n-print('training')\n+print('changed')\n";
const OTHER: &str = "diff --git a/train.py b/train.py\n--- a/train.py\n+++ b/train.py\n\
                     @@ -1 +1 @@\n-print('something')\n+print('changed')\n";

type Situation = (&'static str, fn(&World, &mut Host) -> Script, Expected);

fn tip(w: &World) -> &str {
    &w.tip
}

fn first(w: &World) -> &str {
    &w.first
}

fn on_branch(w: &World) -> &str {
    &w.on_branch
}

fn pull(w: &World) -> &str {
    &w.pull
}

const SITUATIONS: &[Situation] = &[
    // Addresses.
    ("a path", |w, _| script(&w.up.url()), Commit(tip, TRAIN)),
    (
        "file://",
        |w, _| script(&format!("file://{}", w.up.url())),
        Commit(tip, TRAIN),
    ),
    (
        "http",
        |w, _| script(&w.open.url("up/.git")),
        Commit(tip, TRAIN),
    ),
    (
        "http without .git",
        |w, _| script(&w.open.url("group/lib")),
        Commit(tip, TRAIN),
    ),
    (
        "http with a slash",
        |w, _| script(&w.open.url("up/")),
        Commit(tip, TRAIN),
    ),
    (
        "git daemon",
        |w, _| script(&w.daemon.url("up")),
        Commit(tip, TRAIN),
    ),
    (
        "ssh",
        |w, _| script(&w.ssh.url(&w.up.folder)),
        Commit(tip, TRAIN),
    ),
    (
        "ssh, mixed form",
        |w, _| {
            let (user, host) = (&w.ssh.user, format!("[127.0.0.1:{}]", w.ssh.port));
            script(&format!("{user}@{host}:{}", w.up.url()))
        },
        Commit(tip, TRAIN),
    ),
    (
        "moved on the same host",
        |w, host| {
            login(host, "bob", PASSWORD);
            script(&w.closed.url("here/up/.git"))
        },
        Commit(tip, TRAIN),
    ),
    (
        "moved to an open server",
        |w, host| {
            login(host, "bob", PASSWORD);
            let to = w
                .open
                .url("group/lib.git")
                .replace("http://127.0.0.1", "to/localhost");
            script(&w.closed.url(&to))
        },
        Commit(tip, TRAIN),
    ),
    (
        "moved to another host that wants a login",
        |w, host| {
            login(host, "bob", PASSWORD);
            let to = w
                .closed
                .url("up/.git")
                .replace("http://127.0.0.1", "to/localhost");
            script(&w.open.url(&to))
        },
        Refused(&["no access", "redirected"]),
    ),
    // Who asks.
    (
        "no login",
        |w, _| script(&w.closed.url("up/.git")),
        Refused(&["no access", "no credentials are known"]),
    ),
    (
        "user and password",
        |w, host| {
            login(host, "bob", PASSWORD);
            script(&w.closed.url("up/.git"))
        },
        Commit(tip, TRAIN),
    ),
    (
        "a wrong password",
        |w, host| {
            login(host, "bob", "wrong");
            script(&w.closed.url("up/.git"))
        },
        Refused(&["no access", "Offered: the configured git user"]),
    ),
    (
        "a login in the URL",
        |w, _| script(&encoded(&w.closed, "bob", "up/.git")),
        Commit(tip, TRAIN),
    ),
    (
        "the URL's before the configured",
        |w, host| {
            login(host, "bob", "wrong");
            script(&encoded(&w.closed, "bob", "up/.git"))
        },
        Commit(tip, TRAIN),
    ),
    (
        "a password for this host",
        |w, host| {
            login(host, "bob", PASSWORD);
            host.credentials.host = Some("127.0.0.1".into());
            script(&w.closed.url("up/.git"))
        },
        Commit(tip, TRAIN),
    ),
    (
        "a password for another host",
        |w, host| {
            login(host, "bob", PASSWORD);
            host.credentials.host = Some("github.com".into());
            script(&w.closed.url("up/.git"))
        },
        Refused(&["no access", "no credentials are known"]),
    ),
    (
        "one of several passwords, by its host",
        |w, host| {
            login(host, "bob", "wrong");
            host.credentials.extra = vec![
                extra("x", "other", "github.com"),
                extra("bob", PASSWORD, "127.0.0.1"),
            ];
            script(&w.closed.url("up/.git"))
        },
        Commit(tip, TRAIN),
    ),
    (
        "one of several passwords, by the path",
        |w, host| {
            host.credentials.match_prefix = true;
            host.credentials.extra = vec![
                extra("x", "other", "http://127.0.0.1/up"),
                extra("bob", PASSWORD, "http://127.0.0.1/Group/"),
            ];
            script(&w.closed.url("group/lib.git"))
        },
        Commit(tip, TRAIN),
    ),
    (
        ".netrc",
        |w, host| {
            home_file(
                host,
                ".netrc",
                &format!("machine 127.0.0.1 login bob password \"{PASSWORD}\"\n"),
            );
            script(&w.closed.url("up/.git"))
        },
        Commit(tip, TRAIN),
    ),
    (
        "git's credential helper",
        |w, host| {
            home_file(
                host,
                ".gitconfig",
                "[credential]\n\thelper = \"!f() { echo username=bob; \
                  cat ~/pw; }; f\"\n",
            );
            home_file(host, "pw", &format!("password={PASSWORD}\n"));
            script(&w.closed.url("up/.git"))
        },
        Commit(tip, TRAIN),
    ),
    (
        "git's stored credentials",
        |w, host| {
            home_file(host, ".gitconfig", "[credential]\n\thelper = store\n");
            home_file(
                host,
                ".git-credentials",
                &format!("{}\n", encoded(&w.closed, "bob", "")),
            );
            script(&w.closed.url("up/.git"))
        },
        Commit(tip, TRAIN),
    ),
    (
        "a personal token of Azure",
        |w, host| {
            login(host, "somebody", PASSWORD);
            host.credentials.kind = PasswordKind::AzurePat;
            script(&w.azure.url("up/.git"))
        },
        Commit(tip, TRAIN),
    ),
    (
        "a token of Entra",
        |w, host| {
            login(host, "somebody", PASSWORD);
            host.credentials.kind = PasswordKind::EntraToken;
            script(&w.bearer.url("up/.git"))
        },
        Commit(tip, TRAIN),
    ),
    (
        "a token of Entra, a commit",
        |w, host| {
            login(host, "somebody", PASSWORD);
            host.credentials.kind = PasswordKind::EntraToken;
            version(script(&w.bearer.url("up/.git")), &w.first)
        },
        Commit(first, TRAIN),
    ),
    (
        "a header that git's configuration adds",
        |w, host| {
            let header = format!("Authorization: Bearer {PASSWORD}");
            home_file(
                host,
                ".gitconfig",
                &format!("[http]\n\textraHeader = \"{header}\"\n"),
            );
            script(&w.bearer.url("up/.git"))
        },
        Commit(tip, TRAIN),
    ),
    (
        "a commit by a header that git's configuration adds",
        |w, host| {
            let header = format!("Authorization: Bearer {PASSWORD}");
            home_file(
                host,
                ".gitconfig",
                &format!("[http]\n\textraHeader = \"{header}\"\n"),
            );
            version(script(&w.bearer.url("up/.git")), &w.first)
        },
        Commit(first, TRAIN),
    ),
    (
        "ssh forced",
        |w, host| {
            host.protocol.force_ssh = true;
            host.protocol.ssh_port = Some(w.ssh.port);
            host.protocol.ssh_user = Some(w.ssh.user.clone());
            script(&format!("https://127.0.0.1{}", w.up.url()))
        },
        Commit(tip, TRAIN),
    ),
    // Revisions.
    (
        "a commit",
        |w, _| version(script(&w.open.url("up/.git")), &w.first),
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
        |w, _| version(script(&w.open.url("up/.git")), &w.first[..8]),
        Commit(first, TRAIN),
    ),
    (
        "a commit, whatever the branch",
        |w, _| {
            branch(
                version(script(&w.open.url("up/.git")), &w.first),
                "feature/x",
            )
        },
        Commit(first, TRAIN),
    ),
    (
        "a branch as version",
        |w, _| version(script(&w.open.url("up/.git")), "feature/x"),
        Commit(on_branch, TRAIN),
    ),
    (
        "a branch",
        |w, _| branch(script(&w.open.url("up/.git")), "feature/x"),
        Commit(on_branch, TRAIN),
    ),
    (
        "a branch of origin",
        |w, _| branch(script(&w.open.url("up/.git")), "origin/feature/x"),
        Commit(on_branch, TRAIN),
    ),
    (
        "a tag",
        |w, _| tag(script(&w.open.url("up/.git")), "light"),
        Commit(first, TRAIN),
    ),
    (
        "an annotated tag before the branch",
        |w, _| branch(tag(script(&w.open.url("up/.git")), "v1"), "feature/x"),
        Commit(first, TRAIN),
    ),
    (
        "a pull request's commit",
        |w, _| version(script(&w.open.url("up/.git")), &w.pull),
        Commit(pull, TRAIN),
    ),
    (
        "a pull request's commit where ids are not given",
        |w, _| version(script(&w.open.url("strict.git")), &w.pull),
        Commit(pull, TRAIN),
    ),
    (
        "an unpushed commit",
        |w, _| {
            version(
                script(&w.open.url("up/.git")),
                "0123456789012345678901234567890123456789",
            )
        },
        Refused(&["commit 0123", "is not in repository", "git push"]),
    ),
    (
        "a branch that is not there",
        |w, _| branch(script(&w.open.url("up/.git")), "featur/x"),
        Refused(&["did you mean feature/x?"]),
    ),
    (
        "a tag that is not there",
        |w, _| tag(script(&w.open.url("up/.git")), "v2"),
        Refused(&["tag \"v2\""]),
    ),
    // Submodules.
    (
        "a relative submodule",
        |w, _| script(&w.open.url("relative.git")),
        Files(LIB),
    ),
    (
        "a relative submodule behind a login",
        |w, _| script(&encoded(&w.closed, "bob", "relative.git")),
        Files(LIB),
    ),
    (
        "a relative submodule over ssh",
        |w, _| script(&w.ssh.url(&w.root().join("relative.git"))),
        Files(LIB),
    ),
    (
        "a submodule in a submodule",
        |w, _| script(&w.open.url("nested.git")),
        Files(NESTED),
    ),
    (
        "a submodule elsewhere, no login for there",
        |w, host| {
            login(host, "bob", PASSWORD);
            host.credentials.host = Some("127.0.0.1".into());
            script(&w.closed.url("elsewhere.git"))
        },
        Refused(&["submodule lib", "no access", "localhost"]),
    ),
    (
        "a submodule that is gone",
        |w, _| script(&w.open.url("broken.git")),
        Refused(&["submodule lib", "not found"]),
    ),
    (
        "a submodule that nobody wants",
        |w, _| script(&w.open.url("unused.git")),
        Files(TRAIN),
    ),
    // Files.
    (
        "line ends by .gitattributes",
        |w, _| script(&w.open.url("up/.git")),
        Files(&[("run.bat", "echo 1\r\necho 2\r\n")]),
    ),
    (
        "a link",
        |w, _| script(&w.open.url("up/.git")),
        Files(&[("link.py", "print(1)\n")]),
    ),
    // What is not there.
    (
        "no repository over http",
        |w, _| script(&w.open.url("none.git")),
        Refused(&["not found", "none.git"]),
    ),
    (
        "no repository over ssh",
        |w, _| script(&w.ssh.url(Path::new("/none.git"))),
        Refused(&["not found", "none.git"]),
    ),
    (
        "no repository at the daemon",
        |w, _| script(&w.daemon.url("none.git")),
        Refused(&["none.git"]),
    ),
    (
        "no such host",
        |_, _| script("https://no-such-host.invalid/a.git"),
        Refused(&["cannot reach"]),
    ),
    (
        "no such host for ssh",
        |_, _| script("git@no-such-host.invalid:a.git"),
        Refused(&["cannot reach"]),
    ),
    (
        "a host that is an option",
        |_, _| script("ssh://-oProxyCommand=touch/a"),
        Refused(&["is not the name of a host"]),
    ),
    (
        "a working directory that is not there",
        |w, _| entry(script(&w.open.url("up/.git")), "srcs", "job.py"),
        Refused(&["did you mean src?"]),
    ),
    (
        "an entry point that is not there",
        |w, _| entry(script(&w.open.url("up/.git")), "", "job.py"),
        Refused(&["did you mean src/job.py?"]),
    ),
    // Changes and scripts.
    (
        "changes",
        |w, _| diff(script(&w.open.url("up/.git")), CHANGE),
        Commit(tip, &[("train.py", "print('changed')\n")]),
    ),
    (
        "changes that do not fit",
        |w, _| diff(script(&w.open.url("up/.git")), OTHER),
        Refused(&["train.py: hunk 1", "is on the remote"]),
    ),
    (
        "a script in a repository",
        |w, _| diff(script(&w.open.url("up/.git")), "print(2)\n"),
        Commit(tip, &[("train.py", "print(2)\n")]),
    ),
    (
        "a script alone",
        |_, _| diff(script(""), "print(2)\n"),
        Files(&[("train.py", "print(2)\n")]),
    ),
    (
        "nothing at all",
        |_, _| script(""),
        Refused(&["nothing to run"]),
    ),
];

fn extra(user: &str, password: &str, host: &str) -> ExtraCredential {
    ExtraCredential {
        user: user.into(),
        password: Secret::new(password),
        host: host.into(),
    }
}

#[test]
fn every_situation_comes_out_as_it_must() {
    let world = World::new();
    assert!(SITUATIONS.len() >= 40);
    let mut wrong = Vec::new();
    for (name, situation, expected) in SITUATIONS {
        let mut host = world.host();
        let task = situation(&world, &mut host);
        let found = host.fetch(&task);
        let home = Path::new(&host.env["HOME"]).to_owned();
        // What the user put there himself.
        fs::remove_dir_all(home).unwrap();
        let said = host.said();
        for secret in [PASSWORD, "p4ss%20w"] {
            assert_nowhere(host.folder.path(), secret);
            assert!(!said.contains(secret), "{name}: {said}");
        }
        let mut fail = |what: String| wrong.push(format!("{name}: {what}"));
        let files = match (expected, &found) {
            (Commit(commit, files), Ok(sources)) => {
                let head = git_in(&sources.root, &["rev-parse", "HEAD"]);
                if head.trim() != commit(&world) {
                    fail(format!("is at {head}"));
                }
                files
            }
            (Files(files), Ok(_)) => files,
            (Refused(words), Err(error)) => {
                let error = error.to_string();
                for word in words.iter().filter(|word| !error.contains(**word)) {
                    fail(format!("no {word:?} in: {error}"));
                }
                continue;
            }
            (_, Ok(_)) => {
                fail("must be refused".to_owned());
                continue;
            }
            (_, Err(error)) => {
                fail(error.to_string());
                continue;
            }
        };
        for (path, text) in *files {
            let found = fs::read_to_string(found.as_ref().unwrap().root.join(path));
            if found.as_deref().unwrap_or("no such file") != *text {
                fail(format!("{path} is {found:?}"));
            }
        }
    }
    // What is meant for one server has not been sent to another.
    let sent = world.open.requests().into_iter().filter_map(|r| r.login);
    assert_eq!(sent.count(), 0);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
