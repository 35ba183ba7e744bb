//! The task's code on disk, with real repositories, real git servers and real git.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used)]

#[path = "common/git_http.rs"]
mod git_http;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use clearml_agent::console::Console;
use clearml_agent::secret::Secret;
use clearml_agent::source::{GitCredentials, Kind, Request, SourceError, Sources, fetch};
use clearml_agent::task::Script;
use git_http::{GitServer, TestRepo, git_command, git_in, tree};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// A machine with a repository cache, on which runs get their code.
struct Host {
    folder: TempDir,
    said: Arc<Mutex<Vec<String>>>,
    credentials: GitCredentials,
    stop: CancellationToken,
}

impl Host {
    fn new() -> Host {
        Host {
            folder: TempDir::new().unwrap(),
            said: Arc::default(),
            credentials: GitCredentials::default(),
            stop: CancellationToken::new(),
        }
    }

    fn with_login(user: &str, password: &str) -> Host {
        let mut host = Host::new();
        host.credentials.user = Some(user.to_owned());
        host.credentials.password = Some(Secret::new(password));
        host
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    /// The one mirror in the cache.
    fn mirror(&self) -> PathBuf {
        let entries = fs::read_dir(self.cache()).unwrap();
        let mut folders = entries
            .map(|e| e.unwrap().path())
            .filter(|path| path.is_dir());
        let only = folders.next().expect("no mirror");
        assert_eq!(folders.next(), None);
        only
    }

    fn request(&self, script: &Script) -> Request {
        let work_dir = tempfile::Builder::new()
            .prefix("run")
            .tempdir_in(self.folder.path())
            .unwrap();
        Request {
            script: script.clone(),
            work_dir: work_dir.keep(),
            cache: Some(self.cache()),
            credentials: self.credentials.clone(),
            ca_bundle: None,
            accept_any_certificate: false,
            staged: None,
        }
    }

    fn fetch_request(&self, request: &Request) -> Result<Sources, SourceError> {
        let said = Arc::clone(&self.said);
        let console = Console::new(move |line| said.lock().unwrap().push(line.to_owned()));
        fetch(request, &console, &self.stop)
    }

    fn fetch(&self, script: &Script) -> Result<Sources, SourceError> {
        self.fetch_request(&self.request(script))
    }

    #[track_caller]
    fn refusal(&self, script: &Script) -> String {
        self.fetch(script).unwrap_err().to_string()
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().join("\n")
    }
}

fn script(repository: &str) -> Script {
    Script {
        repository: repository.to_owned(),
        entry_point: "train.py".to_owned(),
        ..Script::default()
    }
}

#[track_caller]
fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

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
    request.accept_any_certificate = true;
    host.fetch_request(&request).unwrap();
    request.accept_any_certificate = false;
    request.ca_bundle = Some(certificate);
    host.fetch_request(&request).unwrap();
    // Vouched for, but under another name.
    let (url, certificate) = server_named("elsewhere.example");
    request.script.repository = url;
    request.ca_bundle = Some(certificate);
    let refused = host.fetch_request(&request).unwrap_err();
    assert!(
        matches!(refused, SourceError::HostIdentity { .. }),
        "{refused}"
    );
}

#[test]
fn a_stopped_run_stops_fetching() {
    let repo = TestRepo::new();
    let host = Host::new();
    host.stop.cancel();
    let error = host.fetch(&script(&repo.url())).unwrap_err();
    assert!(matches!(error, SourceError::Stopped), "{error}");
}

// The cache.

#[test]
fn runs_at_the_same_time_share_one_fetch() {
    let repo = TestRepo::new();
    let commit = repo.git(&["rev-parse", "HEAD"]).trim().to_owned();
    let server = GitServer::start(repo.served_root(), None);
    let host = Host::new();
    let wanted = Script {
        version_num: commit,
        ..script(&server.url("up/.git"))
    };
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| host.fetch(&wanted)))
            .collect();
        for run in runs {
            let sources = run.join().unwrap().unwrap();
            assert_eq!(tree(&sources.root), tree(&repo.folder));
        }
    });
    let packs = server
        .requests()
        .into_iter()
        .filter(|r| r.path.ends_with("git-upload-pack"));
    assert_eq!(packs.count(), 1);
}

#[test]
fn a_half_made_mirror_is_neither_used_nor_left() {
    let repo = TestRepo::new();
    let host = Host::new();
    host.fetch(&script(&repo.url())).unwrap();
    let mirror = host.mirror();
    // As a killed run leaves it: the folder under its temporary name, with part of its content.
    let name = mirror.file_name().unwrap().to_str().unwrap().to_owned();
    let half = host.cache().join(format!(".{name}.abcdef"));
    fs::rename(&mirror, &half).unwrap();
    fs::remove_dir_all(half.join("objects")).unwrap();
    let sources = host.fetch(&script(&repo.url())).unwrap();
    assert_eq!(tree(&sources.root), tree(&repo.folder));
    assert!(!half.exists() && mirror.exists());
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
    request.cache = Some(elsewhere.path().join("cache"));
    let sources = host.fetch_request(&request).unwrap();
    assert_eq!(tree(&sources.root), tree(&repo.folder));
    assert_eq!(git_in(&sources.root, &["fsck"]), "");
}

#[test]
fn an_empty_repository_and_files_in_lfs_are_pointed_out() {
    let host = Host::new();
    let empty = TestRepo::empty();
    assert_says(
        &host.refusal(&script(&empty.url())),
        &["default branch is not in repository"],
    );
    let repo = TestRepo::new();
    repo.write(
        ".gitattributes",
        "*.bin filter=lfs diff=lfs merge=lfs -text\n",
    );
    repo.write(
        "model.bin",
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    );
    repo.commit("model");
    host.fetch(&script(&repo.url())).unwrap();
    assert_says(&host.said(), &["Warning: 1 file(s)", "model.bin"]);
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

/// No file below `folder` holds `secret`, nor does any name.
fn assert_nowhere(folder: &Path, secret: &str) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        assert!(
            !path.to_string_lossy().contains(secret),
            "{}",
            path.display()
        );
        if path.is_dir() {
            assert_nowhere(&path, secret);
        } else {
            let content = fs::read(&path).unwrap();
            let found = content
                .windows(secret.len())
                .any(|bytes| bytes == secret.as_bytes());
            assert!(!found, "in {}", path.display());
        }
    }
}

#[path = "common/source_diffs.rs"]
mod source_diffs;
