//! The task's code on disk, with real repositories, real git servers and real git.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used)]

#[path = "common/git_http.rs"]
mod git_http;
#[path = "common/source_host.rs"]
mod source_host;

use std::fs;

use clearml_agent::secret::Secret;
use clearml_agent::source::{ExtraCredential, Kind, SourceError};
use clearml_agent::task::Script;
use git_http::{GitServer, TestRepo, git_in, tree};
use source_host::{Host, assert_nowhere, assert_says, script};

// Repositories and their transports.

#[test]
fn a_checkout_is_what_a_job_expects_of_a_clone() {
    let repo = TestRepo::new();
    repo.git(&["tag", "v1"]);
    repo.git(&["branch", "other"]);
    let commit = repo.git(&["rev-parse", "HEAD"]);
    let host = Host::new();
    let sources = host.fetch(&script(&repo.url())).unwrap();
    assert_eq!(sources.kind, Kind::Checkout);
    assert_eq!(sources.commit.as_deref(), Some(commit.trim()));
    assert_eq!(sources.working_dir, sources.root);
    assert!(sources.root.ends_with("task_repository/up"));
    assert_eq!(tree(&sources.root), tree(&repo.folder));
    let git = |args: &[&str]| git_in(&sources.root, args).trim().to_owned();
    assert_eq!(git(&["remote", "get-url", "origin"]), repo.url());
    assert_eq!(git(&["rev-parse", "HEAD"]), commit.trim());
    assert_eq!(git(&["status", "--porcelain"]), "");
    assert_eq!(git(&["describe", "--tags"]), "v1");
    assert_eq!(git(&["rev-parse", "origin/other"]), commit.trim());
    assert_eq!(
        git(&["rev-parse", "--abbrev-ref", "origin/HEAD"]),
        "origin/main"
    );
    assert_eq!(git(&["fsck", "--strict"]), "");
    git(&["fetch", "--quiet", "origin"]);
    assert_says(
        &host.said(),
        &["Repository", commit.trim(), "(the remote's HEAD), fetched"],
    );
}

#[test]
fn addresses_of_every_local_form_work_also_without_a_cache() {
    let repo = TestRepo::new();
    let bare = repo.served_root().join("bare.git");
    repo.git(&["clone", "--quiet", "--bare", ".", bare.to_str().unwrap()]);
    let host = Host::new();
    for address in [
        repo.url(),
        format!("file://{}", repo.url()),
        bare.display().to_string(),
    ] {
        let mut request = host.request(&script(&address));
        request.cache = None;
        let sources = host.fetch_request(&request).unwrap();
        assert_eq!(tree(&sources.root), tree(&repo.folder), "{address}");
    }
    assert!(!host.cache().exists());
}

#[test]
fn what_is_not_there_is_told_from_what_cannot_be_reached() {
    let repo = TestRepo::new();
    let server = GitServer::start(repo.served_root(), None);
    let host = Host::new();
    let missing = host.refusal(&script(&server.url("none.git")));
    assert_says(&missing, &["not found", "none.git"]);
    assert_says(
        &host.refusal(&script("/nowhere/at/all")),
        &["not found", "/nowhere/at/all"],
    );
    // A port that nobody listens on.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let closed = host.refusal(&script(&format!("http://127.0.0.1:{port}/a.git")));
    assert_says(&closed, &["cannot reach"]);
    let unknown = host.refusal(&script("https://no-such-host.invalid/a.git"));
    assert_says(&unknown, &["cannot reach"]);
}

#[test]
fn a_stopped_run_stops_fetching() {
    let repo = TestRepo::new();
    let host = Host::new();
    host.stop.cancel();
    let error = host.fetch(&script(&repo.url())).unwrap_err();
    assert!(matches!(error, SourceError::Stopped), "{error}");
}

#[test]
fn an_empty_repository_is_pointed_out() {
    let empty = TestRepo::empty();
    assert_says(
        &Host::new().refusal(&script(&empty.url())),
        &["default branch is not in repository"],
    );
}

// Git LFS.

/// A repository with files in Git LFS, at its root and below.
fn repo_with_lfs() -> TestRepo {
    let repo = TestRepo::new();
    repo.git(&["lfs", "install", "--local"]);
    repo.git(&["lfs", "track", "*.bin"]);
    repo.write("model.bin", b"weights \0 of the model".repeat(100));
    repo.write("data/more.bin", "more\n");
    repo.commit("model");
    repo
}

#[test]
fn files_in_lfs_are_downloaded_with_the_runs_credentials() {
    let repo = repo_with_lfs();
    let password = "s3cret'$p\"w";
    let server = GitServer::start(repo.served_root(), Some(("bob", password)));
    let host = Host::with_login("bob", password);
    for address in [server.url("up/.git"), repo.url()] {
        let sources = host
            .fetch(&script(&address))
            .unwrap_or_else(|error| panic!("{address}: {error}"));
        assert!(tree(&sources.root) == tree(&repo.folder), "{address}");
        assert_eq!(git_in(&sources.root, &["status", "--porcelain"]), "");
    }
    assert_nowhere(host.folder.path(), password);
    // Kept for the next run: no object is downloaded twice.
    let downloads = |server: &GitServer| {
        let requests = server.requests().into_iter();
        requests
            .filter(|r| r.path.contains("/lfs-object/") && r.login.is_some())
            .count()
    };
    let before = downloads(&server);
    host.fetch(&script(&server.url("up/.git"))).unwrap();
    assert_eq!(downloads(&server), before);
}

#[test]
fn a_server_of_lfs_elsewhere_gets_the_login_that_is_configured_for_it() {
    let repo = repo_with_lfs();
    let open = GitServer::start(repo.served_root(), None);
    let store = GitServer::start(repo.served_root(), Some(("bob", "s3cret")));
    let store_url = store
        .url("up/.git/info/lfs")
        .replace("127.0.0.1", "localhost");
    repo.write(".lfsconfig", format!("[lfs]\n\turl = {store_url}\n"));
    repo.commit("elsewhere");
    let address = open.url("up/.git");
    let mut host = Host::with_login("wrong", "s3cret-of-another");
    host.credentials.host = Some("127.0.0.1".into());
    assert_says(&host.refusal(&script(&address)), &["Git LFS failed"]);
    host.credentials.extra = vec![ExtraCredential {
        user: "bob".into(),
        password: Secret::new("s3cret"),
        host: format!("localhost:{}", store.port()),
    }];
    let sources = host.fetch(&script(&address)).unwrap();
    assert!(tree(&sources.root) == tree(&repo.folder));
    let users = store.requests().into_iter().filter_map(|r| r.login);
    assert!(users.into_iter().all(|(user, _)| user == "bob"));
}

#[test]
fn files_in_lfs_of_a_submodule_are_downloaded_too() {
    let inner = repo_with_lfs();
    let outer = TestRepo::new();
    outer.git(&["submodule", "--quiet", "add", &inner.url(), "models"]);
    outer.commit("with models");
    let host = Host::new();
    let sources = host.fetch(&script(&outer.url())).unwrap();
    assert!(tree(&sources.root.join("models")) == tree(&inner.folder));
}

#[test]
fn without_git_lfs_its_files_are_an_error_unless_nobody_wants_them() {
    let repo = repo_with_lfs();
    let mut host = Host::new();
    let programs = host.folder.path().join("programs");
    fs::create_dir(&programs).unwrap();
    let paths = std::env::split_paths(&host.env["PATH"]).map(|folder| folder.join("git"));
    let git = paths.into_iter().find(|path| path.exists()).unwrap();
    std::os::unix::fs::symlink(git, programs.join("git")).unwrap();
    host.env
        .insert("PATH".into(), programs.display().to_string());
    assert_says(
        &host.refusal(&script(&repo.url())),
        &["2 file(s)", "data/more.bin", "no git-lfs", "Next:"],
    );
    host.env.insert("GIT_LFS_SKIP_SMUDGE".into(), "1".into());
    let sources = host.fetch(&script(&repo.url())).unwrap();
    let text = fs::read_to_string(sources.root.join("model.bin")).unwrap();
    assert!(text.starts_with("version https://git-lfs"), "{text}");
    assert_says(&host.said(), &["left as pointers"]);
    // Objects that nobody has pushed.
    let repo = repo_with_lfs();
    fs::remove_dir_all(repo.folder.join(".git/lfs/objects")).unwrap();
    assert_says(
        &Host::new().refusal(&script(&repo.url())),
        &["from Git LFS failed", "git lfs push"],
    );
}

// Revisions.

#[test]
fn revisions_of_every_kind() {
    let repo = TestRepo::new();
    let first = repo.git(&["rev-parse", "HEAD"]).trim().to_owned();
    repo.git(&["tag", "light"]);
    repo.git(&["tag", "-m", "annotated", "heavy"]);
    repo.git(&["checkout", "--quiet", "-b", "feature/x"]);
    let feature = repo.commit("on the branch");
    repo.git(&["checkout", "--quiet", "main"]);
    let tip = repo.commit("tip");
    // Both a tag and a branch: each is found by its own field.
    repo.git(&["tag", "main", &first]);
    let host = Host::new();
    for (version_num, tag, branch, commit) in [
        ("", "", "", &tip),
        (first.as_str(), "", "", &first),
        (&first, "heavy", "feature/x", &first),
        (&first[..9], "", "", &first),
        ("feature/x", "", "", &feature),
        ("origin/feature/x", "", "", &feature),
        ("heavy", "", "", &first),
        ("main", "", "", &tip),
        ("feature/x~1", "", "", &first),
        ("", "light", "feature/x", &first),
        ("", "heavy", "", &first),
        ("", "main", "", &first),
        ("", "", "feature/x", &feature),
        ("", "", "origin/feature/x", &feature),
        ("", "", "main", &tip),
    ] {
        let wanted = Script {
            version_num: version_num.into(),
            tag: tag.into(),
            branch: branch.into(),
            ..script(&repo.url())
        };
        let sources = host.fetch(&wanted);
        let found = sources.map(|sources| sources.commit.unwrap());
        assert_eq!(&found.unwrap(), commit, "{version_num} {tag} {branch}");
    }
}

#[test]
fn what_moved_upstream_moves_here() {
    let repo = TestRepo::new();
    repo.git(&["tag", "v1"]);
    repo.git(&["branch", "a"]);
    repo.git(&["branch", "gone"]);
    let host = Host::new();
    let at = |branch: &str, tag: &str, version: &str| {
        let wanted = Script {
            branch: branch.into(),
            tag: tag.into(),
            version_num: version.into(),
            ..script(&repo.url())
        };
        host.fetch(&wanted).map(|sources| sources.commit.unwrap())
    };
    at("main", "", "").unwrap();
    // Rewritten history, a moved tag, a branch that is now a folder of branches, a new default.
    repo.git(&["commit", "--quiet", "--amend", "-m", "rewritten"]);
    let rewritten = repo.git(&["rev-parse", "HEAD"]).trim().to_owned();
    repo.git(&["tag", "--force", "v1"]);
    repo.git(&["branch", "-D", "a", "gone"]);
    repo.git(&["branch", "a/b"]);
    repo.git(&["checkout", "--quiet", "-b", "develop"]);
    let develop = repo.commit("on develop");
    assert_eq!(at("main", "", "").unwrap(), rewritten);
    assert_eq!(at("", "", "main").unwrap(), rewritten);
    assert_eq!(at("", "v1", "").unwrap(), rewritten);
    assert_eq!(at("a/b", "", "").unwrap(), rewritten);
    assert_eq!(at("", "", "").unwrap(), develop);
    assert!(at("gone", "", "").is_err());
}

#[test]
fn a_commit_on_no_branch_is_asked_for_by_its_id() {
    for (allowed, reference) in [("true", None), ("false", Some("refs/pull/1/head"))] {
        let repo = TestRepo::new();
        repo.git(&["config", "uploadpack.allowAnySHA1InWant", allowed]);
        repo.git(&["checkout", "--quiet", "-b", "draft"]);
        repo.write("draft.py", "1\n");
        let commit = repo.commit("draft");
        repo.git(&["checkout", "--quiet", "main"]);
        repo.git(&["branch", "-D", "draft"]);
        if let Some(reference) = reference {
            repo.git(&["update-ref", reference, &commit]);
        }
        let server = GitServer::start(repo.served_root(), None);
        let host = Host::new();
        for _ in 0..2 {
            let wanted = Script {
                version_num: commit.clone(),
                ..script(&server.url("up/.git"))
            };
            let sources = host.fetch(&wanted).unwrap();
            assert!(sources.root.join("draft.py").exists());
            // What else there is to fetch is fetched as before.
            repo.commit("on main");
            host.fetch(&script(&server.url("up/.git"))).unwrap();
        }
    }
}

#[test]
fn a_missing_revision_is_named_with_what_is_like_it() {
    let repo = TestRepo::new();
    repo.git(&["branch", "feature/training"]);
    repo.git(&["tag", "v1.0"]);
    let host = Host::new();
    let missing = "0123456789012345678901234567890123456789";
    for (version_num, tag, branch, said) in [
        (
            missing,
            "",
            "",
            vec!["commit 0123456", "git push", "the commit id itself"],
        ),
        (
            "mian",
            "",
            "",
            vec!["revision \"mian\"", "did you mean main?"],
        ),
        ("", "v1.O", "", vec!["tag \"v1.O\"", "v1.0?"]),
        (
            "",
            "",
            "training",
            vec!["branch \"training\"", "feature/training?"],
        ),
        ("", "", "bad name..", vec!["branch \"bad name..\""]),
    ] {
        let wanted = Script {
            version_num: version_num.into(),
            tag: tag.into(),
            branch: branch.into(),
            ..script(&repo.url())
        };
        assert_says(&host.refusal(&wanted), &said);
    }
}

// What is to run.

#[test]
fn missing_places_in_the_repository_are_found_out_at_once() {
    let repo = TestRepo::new();
    repo.write("src/app/main.py", "1\n");
    repo.write("my tool.py", "1\n");
    repo.commit("more");
    let host = Host::new();
    let task = |entry_point: &str, working_dir: &str| Script {
        entry_point: entry_point.into(),
        working_dir: working_dir.into(),
        ..script(&repo.url())
    };
    for (entry_point, working_dir) in [
        ("train.py", "."),
        ("train.py --lr 1", ""),
        ("main.py", "src/app"),
        ("./app/../app/main.py -x", "src"),
        ("my tool.py", ""),
        ("'my tool.py' --x", ""),
        ("-m src.app.main", ""),
        ("main.py:src/app", ""),
        ("something else", ""),
    ] {
        let found = host.fetch(&task(entry_point, working_dir));
        assert!(found.is_ok(), "{entry_point}: {}", found.unwrap_err());
    }
    for (entry_point, working_dir, said) in [
        ("main.py", "", "did you mean src/app/main.py?"),
        ("trian.py --x", "", "did you mean train.py?"),
        ("main.py", "app", "did you mean src/app?"),
        ("", "", "no entry point"),
    ] {
        assert_says(&host.refusal(&task(entry_point, working_dir)), &[said]);
    }
}

#[test]
fn recorded_scripts_are_written_as_they_are() {
    let host = Host::new();
    let sources = host
        .fetch(&Script {
            diff: "print('é')\n".into(),
            entry_point: "a/b/hello.py --x 1".into(),
            working_dir: "a".into(),
            ..Script::default()
        })
        .unwrap();
    assert_eq!(sources.kind, Kind::Standalone);
    assert_eq!(sources.entry_point, "hello.py --x 1");
    assert_eq!(sources.working_dir, sources.root);
    assert_eq!(
        fs::read_to_string(sources.root.join("hello.py")).unwrap(),
        "print('é')\n"
    );
    assert_says(&host.said(), &["\"a\" is ignored"]);
    assert_says(
        &host.refusal(&Script::default()),
        &["nothing to run", "Next:"],
    );
    // In a repository the recorded text wins over the file of that name.
    let repo = TestRepo::new();
    let recorded = Script {
        diff: "print('recorded')\n".into(),
        ..script(&repo.url())
    };
    let sources = host.fetch(&recorded).unwrap();
    assert_eq!(
        fs::read_to_string(sources.root.join("train.py")).unwrap(),
        "print('recorded')\n"
    );
    // Where it was recorded: what lies beside it is imported by it.
    repo.write("notebooks/helper.py", "");
    std::os::unix::fs::symlink("/tmp", repo.folder.join("out")).unwrap();
    repo.commit("more");
    for (entry_point, written) in [
        ("notebooks/new.py --x", "notebooks/new.py"),
        ("out/new.py", "new.py"),
        ("gone/new.py", "new.py"),
    ] {
        let sources = host
            .fetch(&Script {
                entry_point: entry_point.into(),
                ..recorded.clone()
            })
            .unwrap();
        let text = fs::read_to_string(sources.root.join(written));
        assert_eq!(text.unwrap(), "print('recorded')\n", "{entry_point}");
        assert!(sources.entry_point.starts_with(written), "{entry_point}");
    }
    let note = Script {
        diff: "# WARNING! git diff too large to store, clear this section\n# x\n".into(),
        ..script(&repo.url())
    };
    assert_says(&host.refusal(&note), &["too large", "commit and push"]);
}

// Submodules.

#[test]
fn submodules_are_checked_out_with_theirs() {
    let inner = TestRepo::new();
    inner.write("inner.txt", "inner\n");
    inner.commit("inner");
    let middle = TestRepo::new();
    middle.git(&["submodule", "--quiet", "add", &inner.url(), "deep/inner"]);
    middle.commit("with inner");
    let outer = TestRepo::new();
    outer.git(&[
        "submodule",
        "--quiet",
        "add",
        "--name",
        "mid",
        &middle.url(),
        "libs/middle",
    ]);
    let commit = outer.commit("with middle");
    outer.git(&["submodule", "--quiet", "update", "--init", "--recursive"]);
    // What the submodule's branch moved on to is not what the commit recorded.
    middle.write("later.txt", "later\n");
    middle.commit("later");
    let host = Host::new();
    for _ in 0..2 {
        let wanted = Script {
            version_num: commit.clone(),
            ..script(&outer.url())
        };
        let sources = host.fetch(&wanted).unwrap();
        assert_eq!(tree(&sources.root), tree(&outer.folder));
        let status = git_in(&sources.root, &["submodule", "status", "--recursive"]);
        assert!(status.lines().all(|line| line.starts_with(' ')), "{status}");
        assert_eq!(status.lines().count(), 2);
        assert_eq!(git_in(&sources.root, &["status", "--porcelain"]), "");
    }
}

#[test]
fn a_repository_that_was_added_as_if_it_were_files_is_an_empty_folder_as_for_git() {
    let inner = TestRepo::new();
    let outer = TestRepo::new();
    let commit = inner.commit_id();
    for (path, modules) in [
        ("lib", ""),
        ("lib/a b", "[submodule \"x\"]\n\tpath = \"lib/a b\"\n"),
    ] {
        if !modules.is_empty() {
            outer.git(&["rm", "--quiet", "--cached", "lib"]);
            outer.write(".gitmodules", modules);
            outer.git(&["add", ".gitmodules"]);
        }
        let entry = format!("160000,{commit},{path}");
        outer.git(&["update-index", "--add", "--cacheinfo", &entry]);
        outer.git(&["commit", "--quiet", "-m", "added"]);
        let host = Host::new();
        let sources = host.fetch(&script(&outer.url())).unwrap();
        assert!(sources.root.join("train.py").is_file());
        assert_eq!(fs::read_dir(sources.root.join(path)).unwrap().count(), 0);
        assert_eq!(git_in(&sources.root, &["status", "--porcelain"]), "");
        assert_says(&host.said(), &["Warning", path, ".gitmodules does not say"]);
    }
}

// What the environment demands.

#[test]
fn code_that_is_there_already_is_run_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("src")).unwrap();
    let text = "from clearml import Task\nTask.init()\nfrom __future__ import annotations\n";
    fs::write(folder.path().join("src/train.py"), text).unwrap();
    let host = Host::new();
    let task = Script {
        working_dir: "src".into(),
        diff: "this is not even looked at".into(),
        version_num: "gone".into(),
        ..script("https://no-such-host.invalid/a.git")
    };
    let mut request = host.request(&task);
    request.code_dir = Some(folder.path().to_owned());
    request.force_task_init = true;
    let sources = host.fetch_request(&request).unwrap();
    assert_eq!(sources.working_dir, folder.path().join("src"));
    assert_eq!((sources.commit, sources.kind), (None, Kind::Standalone));
    let left = fs::read_to_string(folder.path().join("src/train.py"));
    assert_eq!(left.unwrap(), text);
    request.script.entry_point = "job.py".into();
    let refusal = host.fetch_request(&request).unwrap_err().to_string();
    assert_says(&refusal, &["job.py", "CLEARML_AGENT_FORCE_CODE_DIR"]);
}

#[test]
fn injected_calls_of_the_sdk_stand_where_python_takes_them() {
    let repo = TestRepo::new();
    let head = "'''text'''\nfrom __future__ import annotations\n";
    repo.write("train.py", format!("{head}import os\n"));
    repo.commit("future");
    let injected = "from clearml import Task\n(__name__ != \"__main__\") or Task.init()\n";
    let expected = format!("{head}{injected}import os\n");
    let host = Host::new();
    let diff = "diff --git a/train.py b/train.py\n--- a/train.py\n+++ b/train.py\n@@ -0,0 +1,2 @@\n\
                +from clearml import Task\n+(__name__ != \"__main__\") or Task.init()\n";
    let task = Script {
        diff: diff.into(),
        entry_point: "train.py --lr 1".into(),
        ..script(&repo.url())
    };
    let sources = host.fetch(&task).unwrap();
    let text = fs::read_to_string(sources.root.join("train.py")).unwrap();
    assert_eq!(text, expected);
    // None is there, and one is demanded.
    let mut request = host.request(&script(&repo.url()));
    request.force_task_init = true;
    let sources = host.fetch_request(&request).unwrap();
    let text = fs::read_to_string(sources.root.join("train.py")).unwrap();
    assert_eq!(text, expected);
    assert_says(&host.said(), &["moved below", "was added"]);
}
