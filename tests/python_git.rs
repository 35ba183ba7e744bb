//! Requirements that are repositories: the git which uv and pip start gets the ways and the logins that
//! the task's own repository would get, and nobody else does. With real uv, pip, git servers and sshd.

#![expect(clippy::unwrap_used, reason = "a failed expectation ends the test")]

#[path = "common/python.rs"]
mod bench;
#[path = "common/git_http.rs"]
mod git_http;
#[path = "common/index.rs"]
mod index;
#[path = "common/ssh_server.rs"]
mod ssh_server;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use bench::{Bench, Done, uv_of_this_machine};
use clearml_agent::python::settings::{Installer, Manager};
use clearml_agent::secret::Secret;
use clearml_agent::source::{GitCredentials, PasswordKind};
use git_http::{GitServer, TestRepo};
use serde_json::json;
use ssh_server::SshServer;
use tempfile::TempDir;

const WITH: [Installer; 2] = [Installer::Uv, Installer::Pip];

/// Bare repositories of packages that are built without anything else, below one folder.
struct Packages(TempDir);

impl Packages {
    fn new(names: &[&str]) -> Packages {
        let packages = Packages(TempDir::new().unwrap());
        for name in names {
            packages.add(name, &[]);
        }
        packages
    }

    /// With submodules at these addresses.
    fn add(&self, name: &str, submodules: &[(&str, &str)]) {
        let repo = TestRepo::new();
        let package = name.rsplit('/').next().unwrap();
        for (path, text) in index::project(package, "0.1") {
            repo.write(&path, text);
        }
        for (path, address) in submodules {
            let commit = git_http::git_in(&self.path("sub"), &["rev-parse", "main"]);
            let entry = format!("160000,{},{path}", commit.trim());
            repo.git(&["update-index", "--add", "--cacheinfo", &entry]);
            fs::create_dir_all(repo.folder.join(path)).unwrap();
            let text = format!("[submodule \"{path}\"]\n\tpath = {path}\n\turl = {address}\n");
            repo.write(".gitmodules", text);
            repo.git(&["add", ".gitmodules", "*.toml", "*.py"]);
            // What stands in the submodule reaches the package.
            let backend = format!("\nVERSION = open('{path}/version').read().strip()\n");
            let text = fs::read_to_string(repo.folder.join("backend.py")).unwrap();
            repo.write("backend.py", text.replacen('\n', &backend, 1));
        }
        repo.git(&["add", "*.toml", "*.py"]);
        repo.git(&["commit", "--quiet", "-m", "package"]);
        self.take(&repo, name);
    }

    fn add_submodule(&self, version: &str) {
        let repo = TestRepo::new();
        repo.write("version", version);
        repo.commit("version");
        self.take(&repo, "sub");
    }

    fn take(&self, repo: &TestRepo, name: &str) {
        let target = self.path(name);
        repo.git(&["clone", "--quiet", "--bare", ".", target.to_str().unwrap()]);
    }

    fn root(&self) -> &Path {
        self.0.path()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root().join(format!("{name}.git"))
    }
}

/// A user's machine with caches and a home of its own, and a git that writes down what it is asked.
struct Machine {
    bench: Bench,
    with: Installer,
}

impl Machine {
    fn new(with: Installer) -> Machine {
        let mut bench = Bench::new();
        bench.settings.cache = bench.dir.path().join("clearml");
        bench.settings.venvs_cache = None;
        bench.settings.installer = with;
        let bin = bench.dir.path().join("bin");
        fs::create_dir_all(bin.join("home")).unwrap();
        let git = Command::new("which").arg("git").output().unwrap().stdout;
        let git = String::from_utf8(git).unwrap();
        let script = format!(
            "#!/bin/sh\nprintf '%s\\n' \"$*\" >> '{}/git.log'\nexec {} \"$@\"\n",
            bin.display(),
            git.trim()
        );
        fs::write(bin.join("git"), script).unwrap();
        fs::set_permissions(bin.join("git"), fs::Permissions::from_mode(0o755)).unwrap();
        // It would come before what is configured.
        bench.settings.environment.remove("GIT_SSL_CAINFO");
        let mut machine = Machine { bench, with };
        let path = machine.bench.settings.environment["PATH"].clone();
        machine.set("PATH", &format!("{}:{path}", bin.display()));
        machine.set("GIT_CONFIG_GLOBAL", "/dev/null");
        machine.set("PIP_CACHE_DIR", bin.join("pip").to_str().unwrap());
        // uv's own, which the agent does not look at.
        machine.set("HOME", bin.join("home").to_str().unwrap());
        machine
    }

    fn set(&mut self, name: &str, value: &str) {
        let env = &mut self.bench.settings.environment;
        env.insert(name.into(), value.into());
    }

    fn credentials(&mut self, user: &str, password: &str, host: Option<String>) {
        self.bench.settings.git.credentials = GitCredentials {
            user: Some(user.into()),
            password: Some(Secret::new(password)),
            host,
            ..GitCredentials::default()
        };
    }

    /// ssh is this server's, for the user whose key it knows.
    fn with_ssh(&mut self, server: &SshServer) {
        let ssh = server.programs();
        let path = self.bench.settings.environment["PATH"].clone();
        self.set("PATH", &format!("{}:{path}", ssh.display()));
    }

    async fn installs(&self, list: &str) -> Done {
        let done = self.bench.runs("", json!({ "pip": list })).await;
        let recorded = done.recorded()["pip"].to_string();
        self.is_clean(&format!("{recorded} {:?}", done.installed.summary));
        done
    }

    async fn fails(&self, list: &str) {
        let error = self.bench.fails(json!({ "pip": list })).await;
        self.is_clean(&error.to_string());
    }

    /// No secret of these tests is where it must not be: what is said, what is recorded, what git was
    /// called with, and every file that is left.
    fn is_clean(&self, recorded: &str) {
        let with = self.with;
        let said = self.bench.said();
        assert!(!recorded.contains("s3cret"), "{with:?} {recorded}");
        assert!(!said.contains("s3cret"), "{with:?} {said}");
        let mut folders = vec![self.bench.dir.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                match entry.file_type().unwrap() {
                    kind if kind.is_dir() => folders.push(entry.path()),
                    kind if kind.is_file() => {
                        let bytes = fs::read(entry.path()).unwrap();
                        let found = String::from_utf8_lossy(&bytes).contains("s3cret");
                        assert!(!found, "{with:?} {:?}", entry.path());
                    }
                    _ => {}
                }
            }
        }
    }
}

fn logins(server: &GitServer, path: &str) -> Vec<(String, String)> {
    let requests = server.requests().into_iter();
    let mut logins: Vec<_> = requests
        .filter(|request| request.path.starts_with(path))
        .filter_map(|request| request.login)
        .collect();
    logins.sort();
    logins.dedup();
    logins
}

fn pair(user: &str, password: &str) -> (String, String) {
    (user.to_owned(), password.to_owned())
}

#[tokio::test]
async fn what_is_configured_for_a_host_is_for_no_other() {
    let packages = Packages::new(&["mine", "theirs"]);
    for with in WITH {
        let mine = GitServer::start(packages.root(), Some(("ci", "s3cret $'\"")));
        let theirs = GitServer::start(packages.root(), Some(("ci", "s3cret $'\"")));
        let mut machine = Machine::new(with);
        machine.credentials(
            "ci",
            "s3cret $'\"",
            Some(format!("127.0.0.1:{}", mine.port())),
        );
        let done = machine
            .installs(&format!("mine @ git+{}", mine.url("mine.git")))
            .await;
        let recorded = done.recorded()["pip"][0].as_str().unwrap().to_owned();
        let plain = format!("mine @ git+{}@", mine.url("mine.git"));
        assert!(recorded.starts_with(&plain), "{recorded}");
        machine
            .fails(&format!("theirs @ git+{}", theirs.url("theirs.git")))
            .await;
        assert_eq!(logins(&theirs, "/"), []);
    }
}

#[tokio::test]
async fn each_address_has_its_own_login_and_the_repositorys_serves_what_has_none() {
    let packages = Packages::new(&["one", "two", "three"]);
    for with in WITH {
        let server = GitServer::start_with(
            packages.root(),
            &[
                ("/one", "a", "s3cret-a"),
                ("/two", "s3cret-b", ""),
                ("/three", "a", "s3cret-a"),
            ],
        );
        let one = server.url_with("a:s3cret-a", "one.git");
        let two = server.url_with("s3cret-b", "two.git");
        let three = server.url("three.git");
        // Which of two is meant is not known.
        let machine = Machine::new(with);
        let list = format!("one @ git+{one}\ntwo @ git+{two}\nthree @ git+{three}\n");
        machine.fails(&list).await;
        assert_eq!(logins(&server, "/three"), []);
        // The repository's and a requirement's own.
        let mut machine = Machine::new(with);
        machine.bench.repository_url = one.clone();
        let done = machine
            .installs(&format!(
                "one @ git+{}\ntwo @ git+{two}",
                server.url("one.git")
            ))
            .await;
        assert_eq!(done.python("import one, two; print(one.VERSION)"), "0.1");
        assert_eq!(logins(&server, "/two"), [pair("s3cret-b", "")]);
        assert_eq!(logins(&server, "/one"), [pair("a", "s3cret-a")]);
        // The repository's, for one that has none.
        let mut machine = Machine::new(with);
        machine.bench.repository_url = one;
        let done = machine.installs(&format!("three @ git+{three}")).await;
        assert_eq!(done.python("import three; print(three.VERSION)"), "0.1");
    }
}

#[tokio::test]
async fn of_several_configured_logins_the_one_for_the_path_is_taken() {
    let packages = Packages::new(&["a/one", "b/two"]);
    for with in WITH {
        let server = GitServer::start_with(
            packages.root(),
            &[("/a/", "git", "s3cret-a"), ("/b/", "bob", "s3cret-b")],
        );
        let mut machine = Machine::new(with);
        // A token alone.
        machine.credentials("", "s3cret-a", None);
        let credentials = &mut machine.bench.settings.git.credentials;
        credentials.match_prefix = true;
        credentials.extra = vec![clearml_agent::source::ExtraCredential {
            user: "bob".into(),
            password: Secret::new("s3cret-b"),
            host: "127.0.0.1/b".into(),
        }];
        let list = ["a/one", "b/two"].map(|path| server.url(&format!("{path}.git")));
        let list = list.map(|url| format!("git+{url}#egg={}", &url[url.len() - 7..url.len() - 4]));
        let _ = machine.installs(&list.join("\n")).await;
        assert_eq!(logins(&server, "/b"), [pair("bob", "s3cret-b")]);
        assert_eq!(logins(&server, "/a"), [pair("git", "s3cret-a")]);
    }
}

#[tokio::test]
async fn the_users_own_helpers_are_asked_for_the_user_that_is_named() {
    let packages = Packages::new(&["one", "two"]);
    for with in WITH {
        let server = GitServer::start_with(
            packages.root(),
            &[("/one", "bob", "s3cret-b"), ("/two", "alice", "s3cret-a")],
        );
        let mut machine = Machine::new(with);
        let helper = "!f() { test $1 = get || exit 0; if grep -q username=bob; \
                      then echo username=bob; echo password=s3cret-b; \
                      else echo username=alice; echo password=s3cret-a; fi; }; f";
        machine.set("GIT_CONFIG_COUNT", "1");
        machine.set("GIT_CONFIG_KEY_0", "credential.helper");
        machine.set("GIT_CONFIG_VALUE_0", helper);
        let (one, two) = (server.url_with("bob", "one.git"), server.url("two.git"));
        let _ = machine
            .installs(&format!("one @ git+{one}\ntwo @ git+{two}"))
            .await;
    }
}

#[tokio::test]
async fn a_bearers_token_is_a_header() {
    let packages = Packages::new(&["one"]);
    for with in WITH {
        let server = GitServer::start(packages.root(), Some(("Bearer", "s3cret-token")));
        let mut machine = Machine::new(with);
        machine.credentials("ci", "s3cret-token", None);
        machine.bench.settings.git.credentials.kind = PasswordKind::EntraToken;
        let _ = machine
            .installs(&format!("one @ git+{}", server.url("one.git")))
            .await;
    }
}

#[tokio::test]
async fn submodules_get_what_their_requirement_gets() {
    let packages = Packages::new(&[]);
    packages.add_submodule("7.1");
    for with in WITH {
        let server = GitServer::start(packages.root(), Some(("a", "s3cret-a")));
        for (kind, address) in [
            ("relative", "../sub.git"),
            ("absolute", &server.url("sub.git")),
        ] {
            let name = format!("{kind}{with:?}").to_lowercase();
            packages.add(&name, &[("inner", address)]);
            let url = server.url_with("a:s3cret-a", &format!("{name}.git"));
            let machine = Machine::new(with);
            let done = machine.installs(&format!("{name} @ git+{url}")).await;
            let version = done.python(&format!("import {name}; print({name}.VERSION)"));
            assert_eq!(version, "7.1");
        }
    }
}

#[tokio::test]
async fn ssh_is_forced_for_requirements_and_their_submodules() {
    let packages = Packages::new(&[]);
    packages.add_submodule("7.2");
    let inner = format!("https://127.0.0.1{}", packages.path("sub").display());
    packages.add("forced", &[("inner", &inner)]);
    let server = SshServer::start();
    for with in WITH {
        let mut machine = Machine::new(with);
        machine.with_ssh(&server);
        let protocol = &mut machine.bench.settings.git.protocol;
        protocol.force_ssh = true;
        protocol.ssh_port = Some(server.port);
        protocol.ssh_user = Some(server.user.clone());
        let url = format!("https://127.0.0.1{}", packages.path("forced").display());
        let done = machine.installs(&format!("forced @ git+{url}")).await;
        assert_eq!(done.python("import forced; print(forced.VERSION)"), "7.2");
        // As it is written in the list, not as it was reached.
        let recorded = done.recorded()["pip"][0].as_str().unwrap().to_owned();
        assert!(
            recorded.starts_with(&format!("forced @ git+{url}@")),
            "{recorded}"
        );
    }
}

#[tokio::test]
async fn a_projects_repositories_are_reached_likewise() {
    if uv_of_this_machine().is_none() {
        eprintln!("skipped: CLEARML_TEST_PYTHON has no uv beside it");
        return;
    }
    let packages = Packages::new(&["private"]);
    let server = SshServer::start();
    let mut machine = Machine::new(Installer::Uv);
    machine.with_ssh(&server);
    machine.bench.settings.manager = Manager::Uv;
    let protocol = &mut machine.bench.settings.git.protocol;
    protocol.force_ssh = true;
    protocol.ssh_port = Some(server.port);
    protocol.ssh_user = Some(server.user.clone());
    let project = format!(
        "[project]\nname = \"theirs\"\nversion = \"0.1\"\nrequires-python = \">=3.8\"\n\
         dependencies = [\"private\"]\n[tool.uv.sources]\n\
         private = {{ git = \"https://127.0.0.1{}\" }}\n",
        packages.path("private").display()
    );
    machine.bench.file("pyproject.toml", &project);
    let done = machine.bench.runs("", json!({})).await;
    assert_eq!(done.python("import private; print(private.VERSION)"), "0.1");
}

#[tokio::test]
async fn a_requirement_over_https_that_wants_a_login_is_fetched_over_ssh() {
    let packages = Packages::new(&["private"]);
    let folder = TempDir::new().unwrap();
    let (certificate, key) = certificate(folder.path());
    let root = Path::new("/");
    let server = GitServer::start_tls_with(root, &certificate, &key, &[("/", "a", "s3cret-a")]);
    let ssh = SshServer::start();
    ssh.configure(&format!(
        "Host localhost\n  HostName 127.0.0.1\n  Port {}\n",
        ssh.port
    ));
    for with in WITH {
        let mut machine = Machine::new(with);
        machine.with_ssh(&ssh);
        machine.bench.settings.git.ca_bundle = Some(certificate.clone());
        machine.bench.settings.git.protocol.ssh_user = Some(ssh.user.clone());
        // The configuration of ssh is the program's alone here.
        machine.set("GIT_SSH", ssh.programs().join("ssh").to_str().unwrap());
        let path = packages.path("private");
        let url = format!("https://localhost:{}{}", server.port(), path.display());
        let done = machine.installs(&format!("private @ git+{url}")).await;
        assert_eq!(done.python("import private; print(private.VERSION)"), "0.1");
        let said = machine.bench.said();
        assert!(said.contains("is taken instead"), "{said}");
    }
}

#[tokio::test]
async fn a_requirement_over_ssh_that_fails_is_fetched_over_http() {
    let packages = Packages::new(&[]);
    packages.add_submodule("7.3");
    packages.add(
        "translated",
        &[("inner", "git@git.company.invalid:sub.git")],
    );
    for with in WITH {
        let server = GitServer::start(packages.root(), Some(("ci", "s3cret")));
        let mut machine = Machine::new(with);
        machine.credentials("ci", "s3cret", Some("git.company.invalid".into()));
        machine.bench.settings.git.protocol.web_scheme = "http".into();
        // Settings that are there already stay.
        machine.set("GIT_CONFIG_COUNT", "1");
        machine.set("GIT_CONFIG_KEY_0", "http.http://git.company.invalid/.proxy");
        machine.set("GIT_CONFIG_VALUE_0", &server.url(""));
        let url = "git+ssh://git@git.company.invalid/translated.git";
        let done = machine.installs(&format!("translated @ {url}")).await;
        let version = done.python("import translated; print(translated.VERSION)");
        assert_eq!(version, "7.3");
    }
}

#[tokio::test]
async fn the_authorities_that_are_configured_are_trusted() {
    let packages = Packages::new(&["one"]);
    let folder = TempDir::new().unwrap();
    let (certificate, key) = certificate(folder.path());
    let server = GitServer::start_tls(packages.root(), &certificate, &key);
    let list = format!("one @ git+https://localhost:{}/one.git", server.port());
    for with in WITH {
        Machine::new(with).fails(&list).await;
        let mut machine = Machine::new(with);
        machine.bench.settings.git.ca_bundle = Some(certificate.clone());
        let _ = machine.installs(&list).await;
        let mut machine = Machine::new(with);
        machine.bench.settings.git.accept_any_certificate = true;
        let _ = machine.installs(&list).await;
    }
}

#[tokio::test]
async fn what_is_built_does_not_inherit_the_agents_variables() {
    let repo = TestRepo::new();
    for (path, text) in index::project("curious", "0.1") {
        repo.write(&path, text);
    }
    let backend = fs::read_to_string(repo.folder.join("backend.py")).unwrap();
    let look = "import os\nVERSION = '0.' + str(int('CLEARML_AGENT_GIT_PASS' in os.environ))\n";
    repo.write(
        "backend.py",
        backend.replacen('\n', &format!("\n{look}"), 1),
    );
    repo.commit("package");
    let server = GitServer::start(repo.served_root(), None);
    for with in WITH {
        let mut machine = Machine::new(with);
        machine.set("CLEARML_AGENT_GIT_PASS", "s3cret-of-the-agent");
        let done = machine
            .installs(&format!("curious @ git+{}", server.url("up/.git")))
            .await;
        assert_eq!(done.python("import curious; print(curious.VERSION)"), "0.0");
    }
}

/// A certificate for `localhost`, and its key.
fn certificate(folder: &Path) -> (PathBuf, PathBuf) {
    let (certificate, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    let made = Command::new("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        ])
        .args([
            "-subj",
            "/CN=test",
            "-addext",
            "subjectAltName=DNS:localhost",
        ])
        .args(["-keyout", key.to_str().unwrap()])
        .args(["-out", certificate.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    (certificate, key)
}
