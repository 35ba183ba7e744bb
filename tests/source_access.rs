//! How repositories are reached and who the agent says it is: against real servers.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used)]

#[path = "common/git_http.rs"]
mod git_http;
#[path = "common/source_host.rs"]
mod source_host;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use clearml_agent::source::SourceError;
use git_http::{GitServer, TestRepo, git_in};
use source_host::{Host, assert_nowhere, assert_says, script};
use tempfile::TempDir;

#[test]
fn passwords_reach_the_server_verbatim_and_stay_nowhere() {
    let repo = TestRepo::new();
    let password = "p$HOME`id`\"'\\@/%:é";
    let server = GitServer::start(repo.served_root(), Some(("bob", password)));
    let host = Host::with_login("bob", password);
    let sources = host.fetch(&script(&server.url("up/.git"))).unwrap();
    let logins: Vec<_> = server
        .requests()
        .into_iter()
        .filter_map(|r| r.login)
        .collect();
    assert!(!logins.is_empty());
    assert!(
        logins
            .iter()
            .all(|login| *login == ("bob".to_owned(), password.to_owned()))
    );
    assert_nowhere(host.folder.path(), password);
    assert!(!host.said().contains(password));
    assert_eq!(
        git_in(&sources.root, &["remote", "get-url", "origin"]).trim(),
        server.url("up/.git")
    );
}

#[test]
fn credentials_in_the_url_are_used_and_not_kept() {
    let repo = TestRepo::new();
    let server = GitServer::start(repo.served_root(), Some(("bob", "s3cr/t!")));
    let host = Host::with_login("somebody", "else");
    let url = server.url_with("bob:s3cr%2Ft!", "up/.git");
    let sources = host.fetch(&script(&url)).unwrap();
    for secret in ["s3cr/t!", "s3cr%2Ft!"] {
        assert_nowhere(host.folder.path(), secret);
        assert!(!host.said().contains(secret));
    }
    let origin = git_in(&sources.root, &["remote", "get-url", "origin"]);
    assert_eq!(origin.trim(), server.url("up/.git"));
}

#[test]
fn refused_credentials_are_an_error_that_says_what_was_offered() {
    let repo = TestRepo::new();
    let server = GitServer::start(repo.served_root(), Some(("bob", "right")));
    let url = server.url("up/.git");
    let anonymous = Host::new().refusal(&script(&url));
    assert_says(
        &anonymous,
        &["no access", "--git-user", "no credentials are known"],
    );
    let wrong = Host::with_login("bob", "wr0ng");
    let refused = wrong.refusal(&script(&url));
    assert_says(
        &refused,
        &["no access", &url, "the configured git user and password"],
    );
    let in_url = wrong.refusal(&script(&server.url_with("bob:wr1ng", "up/.git")));
    assert_says(
        &in_url,
        &["no access", "the credentials in the repository's URL"],
    );
    for text in [refused, in_url, wrong.said()] {
        assert!(!text.contains("wr0ng") && !text.contains("wr1ng"), "{text}");
    }
    let mut other_host = Host::with_login("bob", "right");
    other_host.credentials.host = Some("git.elsewhere.example".to_owned());
    assert_says(
        &other_host.refusal(&script(&url)),
        &["no credentials are known"],
    );
    let sent = server.requests().into_iter().filter_map(|r| r.login);
    assert!(
        sent.clone().all(|login| login.1 != "right"),
        "{:?}",
        sent.collect::<Vec<_>>()
    );
}

#[test]
fn an_unknown_certificate_is_refused_until_it_is_vouched_for() {
    let repo = TestRepo::new();
    let folder = TempDir::new().unwrap();
    let server_named = |name: &str| {
        let certificate = folder.path().join(format!("{name}.pem"));
        let key = folder.path().join(format!("{name}.key"));
        let made = std::process::Command::new("openssl")
            .args([
                "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            ])
            .args(["-subj", "/CN=test"])
            .args(["-addext", &format!("subjectAltName=DNS:{name}")])
            .args(["-keyout", key.to_str().unwrap()])
            .args(["-out", certificate.to_str().unwrap()])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "{said}");
        let server = GitServer::start_tls(repo.served_root(), &certificate, &key);
        (
            format!("https://localhost:{}/up/.git", server.port()),
            certificate,
        )
    };
    let (url, certificate) = server_named("localhost");
    let host = Host::new();
    let mut request = host.request(&script(&url));
    let refused = host.fetch_request(&request).unwrap_err();
    assert!(
        matches!(refused, SourceError::HostIdentity { .. }),
        "{refused}"
    );
    request.servers.accept_any_certificate = true;
    host.fetch_request(&request).unwrap();
    request.servers.accept_any_certificate = false;
    request.servers.ca_bundle = Some(certificate);
    host.fetch_request(&request).unwrap();
    // Vouched for, but under another name.
    let (url, certificate) = server_named("elsewhere.example");
    request.script.repository = url;
    request.servers.ca_bundle = Some(certificate.clone());
    let refused = host.fetch_request(&request).unwrap_err();
    assert!(
        matches!(refused, SourceError::HostIdentity { .. }),
        "{refused}"
    );
    // What is given to the agent takes nothing away from what git itself trusts.
    let (url, trusted_by_git) = server_named("localhost");
    let mut host = Host::new();
    let configured = [
        ("GIT_CONFIG_COUNT", "1"),
        ("GIT_CONFIG_KEY_0", "http.sslCAInfo"),
        ("GIT_CONFIG_VALUE_0", trusted_by_git.to_str().unwrap()),
    ];
    let configured = configured.map(|(name, value)| (name.to_owned(), value.to_owned()));
    host.env.extend(configured);
    let mut request = host.request(&script(&url));
    request.servers.ca_bundle = Some(certificate);
    host.fetch_request(&request).unwrap();
}

#[test]
fn relative_submodules_use_the_outer_credentials_and_other_hosts_do_not() {
    let repo = TestRepo::new();
    let root = repo.served_root().to_owned();
    repo.git(&[
        "clone",
        "--quiet",
        "--bare",
        ".",
        root.join("lib.git").to_str().unwrap(),
    ]);
    repo.git(&[
        "submodule",
        "--quiet",
        "add",
        root.join("lib.git").to_str().unwrap(),
        "lib",
    ]);
    repo.git(&[
        "config",
        "--file",
        ".gitmodules",
        "submodule.lib.url",
        "../lib.git",
    ]);
    repo.commit("with lib");
    repo.git(&[
        "clone",
        "--quiet",
        "--bare",
        ".",
        root.join("app.git").to_str().unwrap(),
    ]);
    let server = GitServer::start(&root, Some(("bob", "pw")));
    let host = Host::new();
    let sources = host
        .fetch(&script(&server.url_with("bob:pw", "app.git")))
        .unwrap();
    assert!(sources.root.join("lib/train.py").exists());
    let url = git_in(&sources.root, &["config", "submodule.lib.url"]);
    assert_eq!(url.trim(), server.url("lib.git"));
    // Another host (the same server by another name) is not given what is meant for this one.
    let elsewhere = server.url("lib.git").replace("127.0.0.1", "localhost");
    repo.git(&[
        "config",
        "--file",
        ".gitmodules",
        "submodule.lib.url",
        &elsewhere,
    ]);
    repo.commit("lib elsewhere");
    repo.git(&[
        "push",
        "--quiet",
        root.join("app.git").to_str().unwrap(),
        "main",
    ]);
    let mut host = Host::with_login("bob", "pw");
    host.credentials.host = Some("127.0.0.1".to_owned());
    let refusal = host.refusal(&script(&server.url("app.git")));
    assert_says(&refusal, &["submodule lib", "no access", "localhost"]);
}

#[test]
fn nothing_else_that_git_would_start_is_started_and_inherits_a_password() {
    let repo = TestRepo::new();
    repo.git(&["lfs", "install", "--local"]);
    repo.git(&["lfs", "track", "*.bin"]);
    repo.write("model.bin", "weights\n");
    repo.write("a.x", "stored\n");
    let attributes = fs::read_to_string(repo.folder.join(".gitattributes")).unwrap();
    repo.write(".gitattributes", attributes + "*.x filter=env\n");
    repo.commit("model");
    // libgit2 is not let in with the configured login; git is, by the user's header.
    let server = GitServer::start(repo.served_root(), Some(("Bearer", "t0ken-of-the-user")));
    let secret = "s3cret-of-the-agent";
    let mut host = Host::with_login("bob", secret);
    let home = host.folder.path().join("home");
    let hooks = home.join("hooks");
    fs::create_dir_all(&hooks).unwrap();
    for name in [
        "post-checkout",
        "post-index-change",
        "reference-transaction",
        "pre-auto-gc",
        "fsmonitor",
    ] {
        let path = hooks.join(name);
        let text = format!("#!/bin/sh\nenv > {}.ran\n", path.display());
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let config = format!(
        "[core]\n\thooksPath = {hooks}\n\tfsmonitor = {hooks}/fsmonitor\n[gc]\n\tauto = 1\n\
         [http]\n\textraHeader = \"Authorization: Bearer t0ken-of-the-user\"\n\
         [filter \"env\"]\n\tsmudge = \"env > {home}/filter.ran; cat\"\n",
        hooks = hooks.display(),
        home = home.display(),
    );
    fs::write(home.join(".gitconfig"), config).unwrap();
    for (name, value) in [
        ("HOME", home.to_str().unwrap()),
        ("CLEARML_AGENT_GIT_PASS", secret),
        // As in a hook of another repository.
        ("GIT_DIR", "/nonexistent"),
        ("GIT_INDEX_FILE", "/nonexistent/index"),
    ] {
        host.env.insert(name.into(), value.into());
    }
    let sources = host.fetch(&script(&server.url("up/.git"))).unwrap();
    assert_says(&host.said(), &["fetched by git itself", "from Git LFS"]);
    let read = |name: &str| fs::read_to_string(sources.root.join(name)).unwrap();
    assert_eq!(
        (read("model.bin").as_str(), read("a.x").as_str()),
        ("weights\n", "stored\n")
    );
    let ran: Vec<_> = fs::read_dir(&hooks)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().ends_with(".ran"))
        .collect();
    assert!(ran.is_empty(), "{ran:?}");
    assert!(home.join("filter.ran").exists());
    assert_nowhere(host.folder.path(), secret);
}
