//! Repositories over ssh: against a real sshd, with OpenSSH and without it.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used)]

#[path = "common/git_http.rs"]
mod git_http;
#[path = "common/source_host.rs"]
mod source_host;
#[path = "common/ssh_server.rs"]
mod ssh_server;

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use clearml_agent::source::SourceError;
use git_http::{TestRepo, git_in, tree};
use source_host::{Host, assert_says, script};
use ssh_server::SshServer;

/// A user of the machine whose home is the server's.
fn host_of(server: &SshServer) -> Host {
    let mut host = Host::new();
    let path = format!("{}:{}", server.programs().display(), host.env["PATH"]);
    host.env.insert("PATH".into(), path);
    host.env
        .insert("HOME".into(), server.home().display().to_string());
    host
}

/// What comes of it on a machine that has no ssh program. A process of its own: libgit2 looks for
/// known hosts in the home folder of the process.
fn fetch_without_program(server: &SshServer, address: &str) -> Result<String, String> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_machine_without_ssh", "--nocapture"])
        .env("HOME", server.home())
        .env("LOGNAME", &server.user)
        .env("FETCH_ADDRESS", address)
        .env_remove("SSH_AUTH_SOCK")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let result = |mark| said.split_once(mark).map(|(_, rest)| rest.to_owned());
    match result("commit: ") {
        Some(rest) => Ok(rest[..40].to_owned()),
        None => Err(result("failed: ").unwrap()),
    }
}

/// Not a test of its own but the other half of those that start it.
#[test]
fn a_machine_without_ssh() {
    let Ok(address) = std::env::var("FETCH_ADDRESS") else {
        return;
    };
    let mut host = Host::new();
    for name in ["HOME", "LOGNAME"] {
        host.env.insert(name.into(), std::env::var(name).unwrap());
    }
    host.env.insert("PATH".into(), "/nowhere".into());
    match host.fetch(&script(&address)) {
        Ok(sources) => println!("commit: {}", sources.commit.unwrap()),
        Err(error) => println!("failed: {error:?} {error}"),
    }
}

#[test]
fn addresses_and_aliases_of_ssh_work_with_and_without_the_program() {
    let repo = TestRepo::new();
    let commit = repo.git(&["rev-parse", "HEAD"]).trim().to_owned();
    let server = SshServer::start();
    let (port, user, path) = (server.port, &server.user, repo.url());
    server.configure(&format!(
        "Host work\n  HostName 127.0.0.1\n  Port {port}\n  User {user}\n\
         \x20 IdentityFile {0}/.ssh/moved_key\nHost *\n  User nobody\n  IdentityFile {0}/.ssh/id_ed25519\n",
        server.home().display()
    ));
    fs::copy(
        server.home().join(".ssh/id_ed25519"),
        server.home().join(".ssh/moved_key"),
    )
    .unwrap();
    for address in [
        server.url(Path::new(&path)),
        format!("ssh://{user}@127.0.0.1:{port}{path}/.git"),
        format!("ssh://work{path}"),
        format!("work:{path}"),
        format!("{user}@work:{path}"),
        format!("{user}@[127.0.0.1:{port}]:{path}"),
    ] {
        let host = host_of(&server);
        let sources = host
            .fetch(&script(&address))
            .unwrap_or_else(|error| panic!("{address}: {error}"));
        assert_eq!(sources.commit.as_deref(), Some(commit.as_str()));
        assert_eq!(tree(&sources.root), tree(&repo.folder), "{address}");
        let origin = git_in(&sources.root, &["remote", "get-url", "origin"]);
        assert_eq!(origin.trim(), address);
        let found = fetch_without_program(&server, &address);
        assert_eq!(found, Ok(commit.clone()), "{address}");
    }
}

#[test]
fn an_ssh_command_of_the_users_own_is_used() {
    let repo = TestRepo::new();
    let server = SshServer::start();
    let mut host = host_of(&server);
    let marker = server.home().join("used");
    let command = format!("touch {}; ssh -v", marker.display());
    host.env.insert("GIT_SSH_COMMAND".into(), command);
    host.fetch(&script(&server.url(&repo.folder))).unwrap();
    assert!(marker.exists());
}

/// How it fails, with the ssh program and without.
fn both_refusals(server: &SshServer, address: &str) -> [String; 2] {
    let with = host_of(server).fetch(&script(address)).unwrap_err();
    let without = fetch_without_program(server, address).unwrap_err();
    [format!("{with:?} {with}"), without]
}

#[test]
fn hosts_that_are_not_known_are_refused() {
    let repo = TestRepo::new();
    let server = SshServer::start();
    let address = server.url(&repo.folder);
    server.forget_host();
    for refusal in both_refusals(&server, &address) {
        assert_says(&refusal, &["HostIdentity", "known_hosts", "Next:"]);
    }
    // A host whose key is another than the known one: somebody in between.
    let other = SshServer::start();
    let theirs = fs::read_to_string(other.home().join(".ssh/known_hosts")).unwrap();
    let theirs = theirs.replace(&other.port.to_string(), &server.port.to_string());
    fs::write(server.home().join(".ssh/known_hosts"), theirs).unwrap();
    for refusal in both_refusals(&server, &address) {
        assert_says(&refusal, &["HostIdentity"]);
    }
}

#[test]
fn refusals_of_ssh_are_told_apart() {
    let repo = TestRepo::new();
    let server = SshServer::start();
    for refusal in both_refusals(&server, &server.url(Path::new("/nowhere/at/all"))) {
        assert_says(&refusal, &["RepositoryNotFound"]);
    }
    let wrong_key = server.home().join(".ssh/other_key");
    server.configure(&format!("IdentityFile {}\n", wrong_key.display()));
    for refusal in both_refusals(&server, &server.url(&repo.folder)) {
        assert_says(&refusal, &["Authentication", "~/.ssh", "Next:"]);
    }
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    for refusal in both_refusals(&server, &format!("ssh://git@127.0.0.1:{port}/a")) {
        assert_says(&refusal, &["Unreachable"]);
    }
    server.configure("Host 127.0.0.1\n  ProxyJump gate.invalid\n");
    let refusal = fetch_without_program(&server, &server.url(&repo.folder)).unwrap_err();
    assert_says(&refusal, &["gate.invalid", "needs the ssh program"]);
}

#[test]
fn an_https_address_may_be_forced_to_ssh() {
    let repo = TestRepo::new();
    let server = SshServer::start();
    let mut host = host_of(&server);
    host.protocol.force_ssh = true;
    host.protocol.ssh_port = Some(server.port);
    host.protocol.ssh_user = Some(server.user.clone());
    let address = format!("https://127.0.0.1{}", repo.url());
    let sources = host.fetch(&script(&address)).unwrap();
    assert_eq!(tree(&sources.root), tree(&repo.folder));
}

#[test]
fn an_ssh_address_that_fails_is_tried_over_http_and_both_are_named() {
    let ssh = SshServer::start();
    ssh.configure(&format!(
        "Host 127.0.0.1\n  IdentityFile {}/.ssh/other_key\n",
        ssh.home().display()
    ));
    // Nobody serves https on this machine.
    let mut host = host_of(&ssh);
    host.credentials.user = Some("bob".into());
    host.credentials.password = Some(clearml_agent::secret::Secret::new("pw"));
    let refusal = host.refusal(&script(&ssh.url(Path::new("/up/.git"))));
    assert_says(
        &refusal,
        &[
            "in any of these ways",
            "- ssh://",
            "Permission denied",
            "- https://127.0.0.1/up/.git: cannot reach",
            "Next:",
        ],
    );
}

#[test]
fn a_clone_over_ssh_that_hangs_is_stopped_at_once() {
    let server = SshServer::start();
    // Takes the connection and never says a word.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let host = host_of(&server);
    let (stop, address) = (host.stop.clone(), format!("ssh://git@127.0.0.1:{port}/a"));
    let run = std::thread::spawn(move || host.fetch(&script(&address)));
    let (mut connection, _) = listener.accept().unwrap();
    connection.read_exact(&mut [0; 4]).unwrap();
    stop.cancel();
    let error = run.join().unwrap().unwrap_err();
    assert!(matches!(error, SourceError::Stopped), "{error}");
    // ssh itself is gone.
    let mut rest = Vec::new();
    let _ = connection.read_to_end(&mut rest);
}
