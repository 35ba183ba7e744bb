//! Repositories of many kinds, and real servers that have them: for the table of situations.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::git_http::{GitServer, TestRepo, git_in};
use crate::source_host::Host;
use crate::ssh_server::{GitDaemon, SshServer};

pub const PASSWORD: &str = "p4ss w$rd'";

/// Repositories, and the servers that have them.
pub struct World {
    pub up: TestRepo,
    pub first: String,
    pub tip: String,
    pub on_branch: String,
    /// On no branch, but `refs/pull/1/head`.
    pub pull: String,
    pub open: GitServer,
    pub closed: GitServer,
    pub bearer: GitServer,
    pub azure: GitServer,
    pub daemon: GitDaemon,
    pub ssh: SshServer,
}

impl World {
    pub fn new() -> World {
        let up = TestRepo::new();
        let first = up.git(&["rev-parse", "HEAD"]).trim().to_owned();
        up.git(&["tag", "light"]);
        up.git(&["tag", "-m", "annotated", "v1"]);
        up.git(&["checkout", "--quiet", "-b", "feature/x"]);
        let on_branch = up.commit("on the branch");
        up.git(&["checkout", "--quiet", "-b", "draft"]);
        let pull = up.commit("draft");
        up.git(&["update-ref", "refs/pull/1/head", &pull]);
        up.git(&["checkout", "--quiet", "main"]);
        up.git(&["branch", "--quiet", "-D", "draft"]);
        up.write(".gitattributes", "*.bat text eol=crlf\n");
        up.write("run.bat", "echo 1\necho 2\n");
        up.write("src/job.py", "print(1)\n");
        symlink("src/job.py", up.folder.join("link.py")).unwrap();
        let tip = up.commit("tip");
        let root = up.served_root().to_owned();
        let bare = |name: &str| {
            let path = root.join(name);
            up.git(&["clone", "--quiet", "--bare", ".", path.to_str().unwrap()]);
            path
        };
        let strict = bare("strict.git");
        up.git(&[
            "push",
            "--quiet",
            strict.to_str().unwrap(),
            "refs/pull/1/head:refs/pull/1/head",
        ]);
        bare("group/lib.git");
        let whole = format!("file://{}", up.url());
        let shallow = root.join("shallow.git");
        up.git(&[
            "clone",
            "--quiet",
            "--bare",
            "--depth=1",
            &whole,
            shallow.to_str().unwrap(),
        ]);
        let bundle = root.join("up.bundle");
        up.git(&[
            "bundle",
            "create",
            "--quiet",
            bundle.to_str().unwrap(),
            "--all",
        ]);
        let other = root.join("sha256");
        up.git(&[
            "init",
            "--quiet",
            "--object-format=sha256",
            other.to_str().unwrap(),
        ]);
        git_in(
            &other,
            &["commit", "--quiet", "--allow-empty", "-m", "first"],
        );
        with_submodule(&up, &root, "relative.git", "../group/lib.git", &[]);
        with_submodule(&up, &root, "broken.git", "../none.git", &[]);
        with_submodule(&up, &root, "unused.git", "../none.git", &["update", "none"]);
        with_submodule(&up, &root, "nested.git", "../relative.git", &[]);
        let closed = GitServer::start(&root, Some(("bob", PASSWORD)));
        let elsewhere = closed
            .url("group/lib.git")
            .replace("127.0.0.1", "localhost");
        with_submodule(&up, &root, "elsewhere.git", &elsewhere, &[]);
        World {
            open: GitServer::start(&root, None),
            bearer: GitServer::start(&root, Some(("Bearer", PASSWORD))),
            azure: GitServer::start(&root, Some(("", PASSWORD))),
            daemon: GitDaemon::start(&root),
            ssh: SshServer::start(),
            closed,
            up,
            first,
            tip,
            on_branch,
            pull,
        }
    }

    pub fn root(&self) -> &Path {
        self.up.served_root()
    }

    /// A user of the machine, whose home is the ssh server's.
    pub fn host(&self) -> Host {
        let mut host = Host::new();
        let path = format!("{}:{}", self.ssh.programs().display(), host.env["PATH"]);
        host.env.insert("PATH".into(), path);
        let home = host.folder.path().join("home");
        fs::create_dir(&home).unwrap();
        host.env.insert("HOME".into(), home.display().to_string());
        host
    }
}

/// A bare repository `name` with a submodule `lib` of this address.
fn with_submodule(up: &TestRepo, root: &Path, name: &str, address: &str, setting: &[&str]) {
    let work = root.join(format!("work.{name}"));
    let git = |args: &[&str]| git_in(&work, args);
    up.git(&["clone", "--quiet", ".", work.to_str().unwrap()]);
    let lib = root.join("group/lib.git");
    let real = match address.strip_prefix("../") {
        Some("none.git") => lib.clone(),
        Some(other) => root.join(other),
        None => lib,
    };
    git(&["submodule", "--quiet", "add", real.to_str().unwrap(), "lib"]);
    git(&[
        "config",
        "--file",
        ".gitmodules",
        "submodule.lib.url",
        address,
    ]);
    if let [key, value] = setting {
        git(&[
            "config",
            "--file",
            ".gitmodules",
            &format!("submodule.lib.{key}"),
            value,
        ]);
    }
    git(&["commit", "--quiet", "-am", "with lib"]);
    let bare = root.join(name);
    up.git(&[
        "clone",
        "--quiet",
        "--bare",
        work.to_str().unwrap(),
        bare.to_str().unwrap(),
    ]);
}
