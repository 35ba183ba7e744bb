//! Who asks, and what the server makes of it.

use std::fs;
use std::path::Path;

use clearml_agent::secret::Secret;
use clearml_agent::source::{ExtraCredential, PasswordKind};

use crate::git_http::GitServer;
use crate::source_host::{Host, script};
pub use crate::source_world::PASSWORD;
use crate::{Commit, Files, Refused, Situation, TRAIN, closed, first, tip, version};

pub fn login(host: &mut Host, user: &str, password: &str) {
    host.credentials.user = Some(user.to_owned()).filter(|user| !user.is_empty());
    host.credentials.password = Some(Secret::new(password));
}

fn login_for(host: &mut Host, server: &str) {
    login(host, "bob", PASSWORD);
    host.credentials.host = Some(server.to_owned());
}

fn token(host: &mut Host, kind: PasswordKind) {
    login(host, "somebody", PASSWORD);
    host.credentials.kind = kind;
}

pub fn extra(user: &str, password: &str, host: &str) -> ExtraCredential {
    ExtraCredential {
        user: user.into(),
        password: Secret::new(password),
        host: host.into(),
    }
}

fn home_file(host: &Host, name: &str, text: &str) {
    fs::write(Path::new(&host.env["HOME"]).join(name), text).unwrap();
}

/// A header of the user's git configuration.
fn header(host: &Host) {
    let header = format!("Authorization: Bearer {PASSWORD}");
    let config = format!("[http]\n\textraHeader = \"{header}\"\n");
    home_file(host, ".gitconfig", &config);
}

/// An address with the login in it.
pub fn with_login(server: &GitServer, path: &str) -> String {
    server.url_with("bob:p4ss%20w%24rd%27", path)
}

pub const SITUATIONS: &[Situation] = &[
    (
        "no login",
        |w, _| closed(w),
        Refused(&["no access", "no credentials are known"]),
    ),
    (
        "user and password",
        |w, host| {
            login(host, "bob", PASSWORD);
            closed(w)
        },
        Commit(tip, TRAIN),
    ),
    (
        "a wrong password",
        |w, host| {
            login(host, "bob", "wrong");
            closed(w)
        },
        Refused(&["no access", "Offered: the configured git user"]),
    ),
    (
        "a login in the URL",
        |w, _| script(&with_login(&w.closed, "up/.git")),
        Commit(tip, TRAIN),
    ),
    (
        "the URL's before the configured",
        |w, host| {
            login(host, "bob", "wrong");
            script(&with_login(&w.closed, "up/.git"))
        },
        Commit(tip, TRAIN),
    ),
    (
        "a password for this host",
        |w, host| {
            login_for(host, "127.0.0.1");
            closed(w)
        },
        Commit(tip, TRAIN),
    ),
    (
        "a password for another host",
        |w, host| {
            login_for(host, "github.com");
            closed(w)
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
            closed(w)
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
            let entry = format!("machine 127.0.0.1 login bob password \"{PASSWORD}\"\n");
            home_file(host, ".netrc", &entry);
            closed(w)
        },
        Commit(tip, TRAIN),
    ),
    (
        "git's credential helper",
        |w, host| {
            let helper = "!f() { echo username=bob; cat ~/pw; }; f";
            let config = format!("[credential]\n\thelper = \"{helper}\"\n");
            home_file(host, ".gitconfig", &config);
            home_file(host, "pw", &format!("password={PASSWORD}\n"));
            closed(w)
        },
        Commit(tip, TRAIN),
    ),
    (
        "git's stored credentials",
        |w, host| {
            home_file(host, ".gitconfig", "[credential]\n\thelper = store\n");
            let stored = format!("{}\n", with_login(&w.closed, ""));
            home_file(host, ".git-credentials", &stored);
            closed(w)
        },
        Commit(tip, TRAIN),
    ),
    (
        "a personal token of Azure",
        |w, host| {
            token(host, PasswordKind::AzurePat);
            script(&w.azure.url("up/.git"))
        },
        Commit(tip, TRAIN),
    ),
    (
        "a token of Entra",
        |w, host| {
            token(host, PasswordKind::EntraToken);
            script(&w.bearer.url("up/.git"))
        },
        Commit(tip, TRAIN),
    ),
    (
        "a token of Entra, a commit",
        |w, host| {
            token(host, PasswordKind::EntraToken);
            version(script(&w.bearer.url("up/.git")), &w.first)
        },
        Commit(first, TRAIN),
    ),
    (
        "a header that git's configuration adds",
        |w, host| {
            header(host);
            script(&w.bearer.url("up/.git"))
        },
        Commit(tip, TRAIN),
    ),
    (
        "a commit by a header that git's configuration adds",
        |w, host| {
            header(host);
            version(script(&w.bearer.url("up/.git")), &w.first)
        },
        Commit(first, TRAIN),
    ),
    (
        "a submodule elsewhere, with a wrong login for there",
        |w, host| {
            host.credentials.extra = vec![
                extra("bob", PASSWORD, "127.0.0.1"),
                extra("alice", PASSWORD, "localhost"),
            ];
            script(&w.closed.url("elsewhere.git"))
        },
        Refused(&["submodule lib", "no access", "localhost"]),
    ),
    (
        "a submodule elsewhere, with the right login for there",
        |w, host| {
            host.credentials.extra = vec![
                extra("bob", PASSWORD, "127.0.0.1"),
                extra("bob", PASSWORD, "localhost"),
            ];
            script(&w.closed.url("elsewhere.git"))
        },
        Files(&[("lib/train.py", "print('training')\n")]),
    ),
    (
        "a submodule elsewhere, no login for there",
        |w, host| {
            login_for(host, "127.0.0.1");
            script(&w.closed.url("elsewhere.git"))
        },
        Refused(&["submodule lib", "no access", "localhost"]),
    ),
];
