//! Addresses of every kind, and those where nothing is.

use std::path::Path;

use crate::source_host::{Host, script};
use crate::{Commit, Refused, Situation, TRAIN, access, first, open, tip, version};

pub const SITUATIONS: &[Situation] = &[
    ("a path", |w, _| script(&w.up.url()), Commit(tip, TRAIN)),
    (
        "file://",
        |w, _| script(&format!("file://{}", w.up.url())),
        Commit(tip, TRAIN),
    ),
    ("http", |w, _| open(w), Commit(tip, TRAIN)),
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
        "ssh forced",
        |w, host| {
            host.protocol.force_ssh = true;
            host.protocol.ssh_port = Some(w.ssh.port);
            host.protocol.ssh_user = Some(w.ssh.user.clone());
            script(&format!("https://127.0.0.1{}", w.up.url()))
        },
        Commit(tip, TRAIN),
    ),
    (
        "moved on the same host",
        |w, host| {
            access::login(host, "bob", access::PASSWORD);
            script(&w.closed.url("here/up/.git"))
        },
        Commit(tip, TRAIN),
    ),
    (
        "moved to an open server",
        |w, host| {
            access::login(host, "bob", access::PASSWORD);
            script(&w.closed.url(&moved_to(&w.open.url("group/lib.git"))))
        },
        Commit(tip, TRAIN),
    ),
    (
        "moved to another host that wants a login",
        |w, host| {
            access::login(host, "bob", access::PASSWORD);
            script(&w.open.url(&moved_to(&w.closed.url("up/.git"))))
        },
        Refused(&["no access", "redirected"]),
    ),
    (
        "moved to another host that has a login of its own",
        |w, host| {
            let moved = format!("localhost:{}", w.closed.port());
            host.credentials.extra = vec![access::extra("bob", access::PASSWORD, &moved)];
            script(&w.open.url(&moved_to(&w.closed.url("up/.git"))))
        },
        Commit(tip, TRAIN),
    ),
    (
        "another address by git's configuration in the environment",
        |w, host| {
            let key = format!("url.{}.insteadOf", access::with_login(&w.closed, ""));
            configure(host, &key, "git@git.company.invalid:");
            script("git@git.company.invalid:up/.git")
        },
        Commit(tip, TRAIN),
    ),
    (
        "another address by git's configuration in another file",
        |w, host| {
            let file = host.folder.path().join("config");
            let text = "[url \"ADDRESS\"]\n\tinsteadOf = https://git.company.invalid/\n";
            std::fs::write(&file, text.replace("ADDRESS", &w.open.url(""))).unwrap();
            let file = file.display().to_string();
            host.env.insert("GIT_CONFIG_GLOBAL".into(), file);
            script("https://git.company.invalid/up/.git")
        },
        Commit(tip, TRAIN),
    ),
    (
        "by the proxy for all protocols",
        |w, host| {
            host.env.insert("ALL_PROXY".into(), w.open.url(""));
            script("http://git.company.invalid/up/.git")
        },
        Commit(tip, TRAIN),
    ),
    (
        "a commit by the proxy that git's configuration names for the host",
        |w, host| {
            let key = "http.http://*.company.invalid/.proxy";
            configure(host, key, &w.open.url(""));
            version(script("http://git.company.invalid/up/.git"), &w.first)
        },
        Commit(first, TRAIN),
    ),
    (
        "a proxy that is not there",
        |_, host| {
            let proxy = "http://127.0.0.1:1".to_owned();
            host.env.insert("all_proxy".into(), proxy);
            script("http://git.company.invalid/up/.git")
        },
        Refused(&["cannot reach", "git itself", "its proxy settings"]),
    ),
    (
        "a server without the history",
        |w, _| script(&w.open.url("shallow.git")),
        Commit(tip, TRAIN),
    ),
    (
        "a path of another kind of machine",
        |_, _| script("C:\\Users\\me\\project"),
        Refused(&["not found on this machine", "made on another machine"]),
    ),
    (
        "no port",
        |w, host| {
            access::login(host, "bob", access::PASSWORD);
            script(&w.closed.url("up/.git").replace("127.0.0.1:", "127.0.0.1:x"))
        },
        Refused(&["http://127.0.0.1:x"]),
    ),
    (
        "a bundle",
        |w, _| script(&w.root().join("up.bundle").display().to_string()),
        Commit(tip, TRAIN),
    ),
    (
        "other names of objects",
        |w, _| script(&w.open.url("sha256/.git")),
        Refused(&["named by SHA-256"]),
    ),
    (
        "no such path",
        |_, _| script("/nope/x.git"),
        Refused(&[
            "/nope/x.git not found on this machine: there is no such folder",
            "check the path",
        ]),
    ),
    (
        "a path to no repository",
        |w, _| script(&w.root().join("group").display().to_string()),
        Refused(&["group not found on this machine", "check the path"]),
    ),
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
];

/// Sets a key of git's configuration by the environment.
fn configure(host: &mut Host, key: &str, value: &str) {
    let variables = [
        ("GIT_CONFIG_COUNT", "1"),
        ("GIT_CONFIG_KEY_0", key),
        ("GIT_CONFIG_VALUE_0", value),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    host.env.extend(variables);
}

/// A path from which a server of the tests redirects to this address, by another name of its host.
fn moved_to(address: &str) -> String {
    address.replace("http://127.0.0.1", "to/localhost")
}
