//! The mirror cache: shared, damaged, half made, and on another disk.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used)]

#[path = "common/git_http.rs"]
mod git_http;
#[path = "common/source_host.rs"]
mod source_host;

use std::fs;
use std::path::Path;

use clearml_agent::console::Console;
use clearml_agent::source::{SourceError, fetch, kept};
use clearml_agent::task::Script;
use git_http::{GitServer, TestRepo, git_in, tree};
use source_host::{Host, assert_says, script};
use tempfile::TempDir;

#[test]
fn a_known_commit_is_taken_from_the_cache_without_the_remote() {
    let repo = TestRepo::new();
    let commit = repo.git(&["rev-parse", "HEAD"]).trim().to_owned();
    let server = GitServer::start(repo.served_root(), None);
    let host = Host::new();
    let wanted = Script {
        version_num: commit.clone(),
        ..script(&server.url("up/.git"))
    };
    host.fetch(&wanted).unwrap();
    let requests = server.requests().len();
    assert!(requests > 0);
    let sources = host.fetch(&wanted).unwrap();
    assert_eq!(server.requests().len(), requests);
    assert_eq!(tree(&sources.root), tree(&repo.folder));
    assert_says(&host.said(), &["from the cached mirror"]);
    // The work tree stands alone: the cache may be emptied while a job runs.
    fs::remove_dir_all(host.cache()).unwrap();
    assert_eq!(git_in(&sources.root, &["fsck"]), "");
}

#[test]
fn a_half_made_mirror_is_neither_used_nor_left() {
    let repo = TestRepo::new();
    let host = Host::new();
    host.fetch(&script(&repo.url())).unwrap();
    let mirror = host.mirror();
    // As a killed run leaves it: the folder under its temporary name, with part of its content.
    let name = mirror.file_name().unwrap().to_str().unwrap().to_owned();
    let this_host = rustix::system::uname();
    let this_host = this_host.nodename().to_str().unwrap();
    let half = host.cache().join(format!(".{name}.{this_host}.abcdef"));
    fs::rename(&mirror, &half).unwrap();
    fs::remove_dir_all(half.join("objects")).unwrap();
    // Another host may be at work, if not for days.
    let [at_work, abandoned] = ["1", "2"].map(|end| {
        let path = host.cache().join(format!(".{name}.elsewhere.{end}"));
        fs::create_dir(&path).unwrap();
        path
    });
    let days = std::time::Duration::from_secs(8 * 24 * 3600);
    let folder = fs::File::open(&abandoned).unwrap();
    folder
        .set_modified(std::time::SystemTime::now() - days)
        .unwrap();
    let sources = host.fetch(&script(&repo.url())).unwrap();
    assert_eq!(tree(&sources.root), tree(&repo.folder));
    assert!(mirror.exists() && at_work.exists());
    assert!(!half.exists() && !abandoned.exists());
}

#[test]
fn what_a_killed_fetch_leaves_in_a_mirror_is_no_obstacle() {
    let repo = TestRepo::new();
    let host = Host::new();
    host.fetch(&script(&repo.url())).unwrap();
    let mirror = host.mirror();
    fs::write(mirror.join("refs/heads/main.lock"), "").unwrap();
    fs::write(mirror.join("objects/pack/pack_git2_abc"), "half").unwrap();
    repo.write("train.py", "print('newer')\n");
    let newer = repo.commit("second");
    let sources = host.fetch(&script(&repo.url())).unwrap();
    assert_eq!(sources.commit.as_deref(), Some(newer.as_str()));
    assert!(!mirror.join("objects/pack/pack_git2_abc").exists());
}

#[test]
fn a_damaged_mirror_is_made_anew() {
    let repo = TestRepo::new();
    let commit = repo.git(&["rev-parse", "HEAD"]).trim().to_owned();
    let wanted = Script {
        version_num: commit,
        ..script(&repo.url())
    };
    type Harm = fn(&Path);
    let harms: [(&str, Harm); 5] = [
        ("no HEAD", |mirror| {
            fs::remove_file(mirror.join("HEAD")).unwrap()
        }),
        ("no objects", |mirror| {
            fs::remove_dir_all(mirror.join("objects")).unwrap()
        }),
        ("packs cut off", |mirror| {
            for_each_pack(mirror, |pack| {
                let content = fs::read(pack).unwrap();
                fs::remove_file(pack).unwrap();
                fs::write(pack, &content[..content.len() / 2]).unwrap();
            });
        }),
        ("packs overwritten", |mirror| {
            for_each_pack(mirror, |pack| {
                let mut content = fs::read(pack).unwrap();
                let end = content.len() - 20;
                content[12..end].fill(0);
                fs::remove_file(pack).unwrap();
                fs::write(pack, content).unwrap();
            });
        }),
        ("a file in its place", |mirror| {
            fs::remove_dir_all(mirror).unwrap();
            fs::create_dir(mirror).unwrap();
            fs::write(mirror.join("config"), "[core\n").unwrap();
        }),
    ];
    for (name, harm) in harms {
        for wanted in [&wanted, &script(&repo.url())] {
            let host = Host::new();
            host.fetch(wanted).unwrap();
            harm(&host.mirror());
            let sources = host
                .fetch(wanted)
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(tree(&sources.root), tree(&repo.folder), "{name}");
            assert_eq!(
                git_in(&sources.root, &["status", "--porcelain"]),
                "",
                "{name}"
            );
        }
    }
}

#[test]
fn a_mirror_that_cannot_be_brought_up_to_date_is_made_anew_where_that_is_wanted() {
    let repo = TestRepo::new();
    let root = repo.served_root();
    let server = GitServer::start(root, None);
    let url = server.url("up/.git");
    let mut host = Host::new();
    host.fetch(&script(&url)).unwrap();
    let mirror = host.mirror();
    // No branch can be written, and neither a fetch nor git itself says that this is damage.
    fs::create_dir(mirror.join("refs/heads/main.lock")).unwrap();
    repo.commit("newer");
    for said in ["fetching without it", "Making the mirror anew"] {
        let sources = host.fetch(&script(&url)).unwrap();
        assert_eq!(sources.commit, Some(repo.commit_id()));
        assert_says(&host.said(), &["main.lock", said]);
        // Runs of other hosts may need it for a while.
        assert!(mirror.exists());
        assert_eq!(host.mirror() == mirror, !host.clone_on_pull_fail);
        host.clone_on_pull_fail = true;
    }
    // What a new mirror does not help with is told as it is, and asked for once.
    let newer = host.mirror();
    let asked = server.requests().len();
    let missing = Script {
        branch: "gone".into(),
        ..script(&url)
    };
    assert_says(&host.refusal(&missing), &["branch \"gone\""]);
    assert!(server.requests().len() < asked + 4);
    fs::rename(root.join("up"), root.join("moved")).unwrap();
    assert_says(&host.refusal(&script(&url)), &["not found"]);
    let anew = host.said().matches("Making the mirror anew").count();
    assert_eq!(anew, 1, "{}", host.said());
    assert!(newer.exists());
}

fn for_each_pack(mirror: &Path, harm: impl Fn(&Path)) {
    for entry in fs::read_dir(mirror.join("objects/pack")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|kind| kind == "pack") {
            harm(&path);
        }
    }
}

#[test]
fn a_run_that_waits_for_the_cache_can_be_stopped() {
    let repo = TestRepo::new();
    let host = Host::new();
    host.fetch(&script(&repo.url())).unwrap();
    let lock = host.mirror().with_extension("lock");
    let held = fs::File::options().write(true).open(&lock).unwrap();
    held.lock().unwrap();
    let (said, heard) = std::sync::mpsc::channel();
    let console = Console::new(move |line| said.send(line.to_owned()).unwrap());
    let request = host.request(&script(&repo.url()));
    let stop = host.stop.clone();
    let run = std::thread::spawn(move || fetch(&request, &console, &stop));
    assert_says(&heard.recv().unwrap(), &["Another run is fetching"]);
    host.stop.cancel();
    let error = run.join().unwrap().unwrap_err();
    assert!(matches!(error, SourceError::Stopped), "{error}");
}

#[test]
fn the_mirror_is_named_as_alternate_where_links_are_impossible() {
    let repo = TestRepo::new();
    let host = Host::new();
    // Another file system than the temporary folder's, if the machine has one.
    let Ok(elsewhere) = TempDir::new_in("/dev/shm") else {
        return;
    };
    let mut request = host.request(&script(&repo.url()));
    let cache = elsewhere.path().join("cache");
    request.cache = Some(cache.clone());
    let sources = host.fetch_request(&request).unwrap();
    assert_eq!(tree(&sources.root), tree(&repo.folder));
    // The mirror stays as long as the run.
    let [mirror] = &kept::mirrors(&cache)[..] else {
        panic!("not one mirror")
    };
    assert!(!mirror.remove().unwrap());
    assert_eq!(git_in(&sources.root, &["fsck"]), "");
    drop(sources);
    // A child that another test's thread is about to start has the lock, too, until it is the other program.
    while !mirror.remove().unwrap() {
        std::thread::yield_now();
    }
}

// Commits without their history.

/// A repository with a history, and its commits from the first one on.
fn long_history() -> (TestRepo, Vec<String>) {
    let repo = TestRepo::new();
    let commits = (0..12).map(|n| {
        repo.write("train.py", format!("print({n})\n"));
        repo.commit(&format!("number {n}"))
    });
    let commits = commits.collect();
    repo.git(&["tag", "v1"]);
    (repo, commits)
}

fn at(url: &str, commit: &str) -> Script {
    Script {
        version_num: commit.to_owned(),
        ..script(url)
    }
}

#[test]
fn a_commit_is_fetched_without_its_history_and_the_history_when_it_is_asked_for() {
    let (repo, commits) = long_history();
    let server = GitServer::start(repo.served_root(), None);
    let url = server.url("up/.git");
    let host = Host::new();
    let count = |sources: &clearml_agent::source::Sources| {
        git_in(&sources.root, &["rev-list", "--count", "HEAD"])
            .trim()
            .to_owned()
    };
    for commit in [&commits[5], &commits[11], &commits[2]] {
        let sources = host.fetch(&at(&url, commit)).unwrap();
        assert_eq!(sources.commit.as_ref(), Some(commit));
        assert_eq!(count(&sources), "1");
        assert_eq!(git_in(&sources.root, &["status", "--porcelain"]), "");
        assert_eq!(git_in(&sources.root, &["fsck", "--no-dangling"]), "");
        let number = commits.iter().position(|c| c == commit).unwrap();
        let text = fs::read_to_string(sources.root.join("train.py")).unwrap();
        assert_eq!(text, format!("print({number})\n"));
        git_in(
            &sources.root,
            &["fetch", "--quiet", "--unshallow", "origin"],
        );
    }
    // A branch is taken with all that belongs to it.
    let sources = host.fetch(&script(&url)).unwrap();
    assert_eq!(count(&sources), "13");
    assert_eq!(git_in(&sources.root, &["describe", "--tags"]).trim(), "v1");
    // And from then on there is nothing to be saved.
    let sources = host.fetch(&at(&url, &commits[3])).unwrap();
    assert_eq!(count(&sources), "5");

    let mut host = Host::new();
    host.shallow = false;
    let sources = host.fetch(&at(&url, &commits[3])).unwrap();
    assert_eq!(count(&sources), "5");
}

#[test]
fn where_a_server_gives_no_commit_by_its_id_the_history_is_fetched() {
    let (repo, commits) = long_history();
    repo.git(&["config", "uploadpack.allowAnySHA1InWant", "false"]);
    let server = GitServer::start(repo.served_root(), None);
    let url = server.url("up/.git");
    let host = Host::new();
    // One that has a name is had by it.
    let sources = host.fetch(&at(&url, &commits[11])).unwrap();
    assert_eq!(
        git_in(&sources.root, &["rev-list", "--count", "HEAD"]).trim(),
        "1"
    );
    let sources = host.fetch(&at(&url, &commits[4])).unwrap();
    assert_eq!(sources.commit.as_ref(), Some(&commits[4]));
    assert_eq!(
        git_in(&sources.root, &["rev-list", "--count", "HEAD"]).trim(),
        "6"
    );
    let missing = "0123456789012345678901234567890123456789";
    let host = Host::new();
    assert_says(
        &host.refusal(&at(&url, missing)),
        &["is not in repository", "git push"],
    );
}

#[test]
fn a_package_whose_version_comes_from_git_gets_the_history() {
    let (repo, _) = long_history();
    repo.write(
        "pyproject.toml",
        "[build-system]\nrequires = [\"setuptools_scm>=8\"]\n",
    );
    let commit = repo.commit("package");
    let server = GitServer::start(repo.served_root(), None);
    let host = Host::new();
    let sources = host.fetch(&at(&server.url("up/.git"), &commit)).unwrap();
    let described = git_in(&sources.root, &["describe", "--tags"]);
    assert!(described.starts_with("v1-1-g"), "{described}");
    assert_says(
        &host.said(),
        &["setuptools_scm looks at the repository's history"],
    );
}

#[test]
fn a_cache_that_cannot_be_used_is_done_without() {
    let repo = TestRepo::new();
    let host = Host::new();
    fs::write(host.cache(), "a file where the folder should be").unwrap();
    let sources = host.fetch(&script(&repo.url())).unwrap();
    assert_eq!(tree(&sources.root), tree(&repo.folder));
    assert_says(&host.said(), &["cannot be used", "without it"]);
}

#[test]
fn many_runs_at_once_fetch_an_empty_caches_repository_once() {
    let (repo, commits) = long_history();
    let server = GitServer::start(repo.served_root(), None);
    let host = Host::new();
    let wanted = [at(&server.url("up/.git"), &commits[7])];
    let wanted = wanted.iter().cycle().take(16);
    std::thread::scope(|scope| {
        let runs: Vec<_> = wanted
            .map(|wanted| scope.spawn(|| host.fetch(wanted)))
            .collect();
        for run in runs {
            let sources = run.join().unwrap().unwrap();
            assert_eq!(sources.commit.as_ref(), Some(&commits[7]));
        }
    });
    let requests = server.requests().into_iter();
    assert_eq!(
        requests.filter(|r| r.path.ends_with("info/refs")).count(),
        1
    );
    let said = host.said();
    assert_eq!(said.matches(", fetched").count(), 1, "{said}");
}
