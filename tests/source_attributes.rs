//! What `.gitattributes` asks for: the files of a checkout are those that `git clone` makes for the same
//! user, byte for byte.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used)]

#[path = "common/git_http.rs"]
mod git_http;
#[path = "common/source_host.rs"]
mod source_host;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use clearml_agent::source::SourceError;
use clearml_agent::task::Script;
use git_http::{TestRepo, tree};
use source_host::{Host, assert_says, script};
use tempfile::TempDir;

/// Ways in which a file may stand in the repository.
const CONTENTS: [(&str, &[u8]); 12] = [
    ("lf", b"one stored\ntwo\n"),
    ("crlf", b"one stored\r\ntwo\r\n"),
    ("mixed", b"one stored\r\ntwo\nthree\r\n"),
    ("lone_cr", b"one\rtwo\nthree\n"),
    ("no_end", b"one\ntwo"),
    ("empty", b""),
    ("zero", b"one\0two\nthree\n"),
    (
        "unprintable",
        b"\x01\x02\x03\x04\x05\x06\x07\x0e\x0f\na\nb\n",
    ),
    ("bom", b"\xef\xbb\xbfone\ntwo\n"),
    ("umlaut", "Grüße, \u{20ac}\nzwei\n".as_bytes()),
    (
        "id",
        b"a $Id$ b $Id$\n$Id: 0123 $ c $Id: of somebody else $\n",
    ),
    ("ids", b"$Id: unended\n$Id$\r\n$Id:$ $Id $ $Idx$\n"),
];

/// The attributes of a folder's files.
const ATTRIBUTES: [&str; 37] = [
    "diff",
    "text",
    "-text",
    "text=auto",
    "text=input",
    "eol=lf",
    "eol=crlf",
    "text eol=crlf",
    "text eol=lf",
    "-text eol=crlf",
    "text=auto eol=crlf",
    "text=auto eol=lf",
    "crlf",
    "-crlf",
    "crlf=input",
    "binary",
    "ident",
    "-ident",
    "ident eol=crlf",
    "ident text=auto",
    "text working-tree-encoding=UTF-16",
    "text working-tree-encoding=UTF-16LE eol=crlf",
    "text working-tree-encoding=UTF-16BE eol=lf",
    "text working-tree-encoding=UTF-16LE-BOM eol=crlf",
    "text working-tree-encoding=UTF-32",
    "text working-tree-encoding=UTF-8",
    "text working-tree-encoding=ISO-8859-15",
    "text working-tree-encoding=US-ASCII",
    "text working-tree-encoding=no-such-encoding",
    "working-tree-encoding=UTF-16 ident",
    "filter=sed",
    "filter=sed ident eol=crlf",
    "filter=sed working-tree-encoding=UTF-16",
    "filter=process",
    "filter=fails",
    "filter=only-clean",
    "filter=nobody-knows ident",
];

/// Attributes by pattern: which files they hold for.
const PATTERNS: &str = "[attr]windows text eol=crlf\n\
    *.txt ident\n\
    \\!odd.txt -ident eol=crlf\n\
    /top/*.bat windows\n\
    deep/**/x.txt eol=crlf\n\
    deep/not/** !ident\n\
    \"with blank.txt\" text working-tree-encoding=UTF-16\n\
    [a-c]range.txt filter=sed\n\
    folder/ ident\n\
    # remark.txt eol=crlf\n\
    -first.txt eol=crlf\n\
    *.SH eol=crlf\r\n";

const PLACES: [&str; 16] = [
    "-first.txt",
    "plain.txt",
    "!odd.txt",
    "top/a.bat",
    "top/sub/a.bat",
    "deep/x.txt",
    "deep/a/b/x.txt",
    "deep/not/y.txt",
    "with blank.txt",
    "brange.txt",
    "drange.txt",
    "folder/inside",
    "remark.txt",
    "run.SH",
    "deep/+early.dat",
    "deep/own.dat",
];

/// A filter that runs once for all files, by git's long-running filter protocol.
const PROCESS: &str = r#"
import sys
i, o = sys.stdin.buffer, sys.stdout.buffer
def packets():
    found = []
    while True:
        head = i.read(4)
        if len(head) < 4:
            sys.exit(0)
        if head == b"0000":
            return found
        found.append(i.read(int(head, 16) - 4))
def put(*packets):
    for packet in packets:
        o.write(b"%04x" % (len(packet) + 4) + packet)
    o.write(b"0000")
    o.flush()
packets()
put(b"git-filter-server\n", b"version=2\n")
packets()
put(b"capability=clean\n", b"capability=smudge\n")
while True:
    smudge = b"command=smudge\n" in packets()
    data = b"".join(packets())
    put(b"status=success\n")
    data = data.replace(b"stored", b"SHOWN") if smudge else data.replace(b"SHOWN", b"stored")
    put(*([data] if data else []))
    put()
"#;

/// Somebody with this in the git configuration, beside the filters.
struct User {
    home: TempDir,
}

impl User {
    fn new(config: &str) -> User {
        let home = TempDir::new().unwrap();
        let process = home.path().join("process.py");
        fs::write(&process, PROCESS).unwrap();
        let filters = format!(
            "[user]\n\tname = u\n\temail = u@localhost\n\
             [protocol \"file\"]\n\tallow = always\n\
             [filter \"sed\"]\n\tsmudge = sed s/stored/shown/\n\tclean = sed s/shown/stored/\n\
             [filter \"process\"]\n\tprocess = python3 {}\n\trequired\n\
             [filter \"fails\"]\n\tsmudge = \"sed s/stored/half/ | head -c 3; exit 1\"\n\
             [filter \"only-clean\"]\n\tclean = cat\n",
            process.display()
        );
        fs::write(home.path().join(".gitconfig"), filters + config).unwrap();
        User { home }
    }

    fn git(&self, folder: &Path, args: &[&str]) -> Output {
        let mut command = Command::new("git");
        command
            .args(args)
            .current_dir(folder)
            .env("HOME", self.home.path());
        command
            .env_remove("XDG_CONFIG_HOME")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .output()
            .unwrap()
    }

    /// What `git clone` makes of it.
    fn clone_of(&self, url: &str) -> PathBuf {
        let target = self.home.path().join("clone");
        let arguments = [
            "clone",
            "--quiet",
            "--recursive",
            url,
            target.to_str().unwrap(),
        ];
        let output = self.git(self.home.path(), &arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        target
    }

    /// The agent's checkout, by a process of this user: libgit2 reads the configuration of its own.
    fn checkout_of(&self, url: &str, diff: &str) -> Result<(PathBuf, String), String> {
        let diff_file = self.home.path().join("diff");
        fs::write(&diff_file, diff).unwrap();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "role_checkout", "--nocapture"])
            .env("ROLE_URL", url)
            .env("ROLE_DIFF", diff_file)
            .env("HOME", self.home.path())
            .env_remove("XDG_CONFIG_HOME")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        match text.split_once("\nchecked out: ") {
            Some((_, rest)) => {
                let root = rest.lines().next().unwrap().into();
                Ok((root, text))
            }
            None => Err(text + &String::from_utf8_lossy(&output.stderr)),
        }
    }
}

#[test]
fn role_checkout() {
    let Ok(url) = std::env::var("ROLE_URL") else {
        return;
    };
    let mut host = Host::new();
    let home = std::env::var("HOME").unwrap();
    host.env.insert("HOME".into(), home.clone());
    let request = host.request(&Script {
        entry_point: "-m anything".into(),
        diff: fs::read_to_string(std::env::var("ROLE_DIFF").unwrap()).unwrap(),
        ..script(&url)
    });
    let sources = host.fetch_request(&request);
    println!("\nsaid: {}", host.said());
    match sources {
        Ok(sources) => {
            let kept = Path::new(&home).join(format!("run-{}", std::process::id()));
            fs::rename(&sources.root, &kept).unwrap();
            println!("\nchecked out: {}", kept.display());
        }
        Err(error) => println!("\nrefused: {error}"),
    }
}

/// Commits files as they are given, whatever their attributes.
fn commit_as_stored(repo: &TestRepo, files: &BTreeMap<String, Vec<u8>>) {
    for (path, content) in files {
        let mut child = Command::new("git")
            .args(["hash-object", "-w", "--stdin", "--no-filters"])
            .current_dir(&repo.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(content).unwrap();
        let output = child.wait_with_output().unwrap();
        let blob = String::from_utf8(output.stdout).unwrap();
        let entry = format!("100644,{},{path}", blob.trim());
        repo.git(&["update-index", "--add", "--cacheinfo", &entry]);
    }
    repo.git(&["commit", "--quiet", "-m", "as stored"]);
}

fn repository_of_attributes() -> TestRepo {
    let repo = TestRepo::empty();
    let mut files = BTreeMap::new();
    for (number, attributes) in ATTRIBUTES.iter().enumerate() {
        for (name, content) in CONTENTS {
            files.insert(format!("f{number:02}/{name}"), content.to_vec());
        }
        let text = format!("[a-z]* {attributes}\n");
        files.insert(format!("f{number:02}/.gitattributes"), text.into());
    }
    for place in PLACES {
        files.insert(place.to_owned(), b"stored $Id$\n".to_vec());
    }
    files.insert(".gitattributes".into(), PATTERNS.into());
    files.insert("deep/.gitattributes".into(), "*.dat eol=crlf\n".into());
    commit_as_stored(&repo, &files);
    repo
}

/// Names of files that differ, with both contents.
fn differences(ours: &Path, gits: &Path) -> Vec<String> {
    let (ours, gits) = (tree(ours), tree(gits));
    let names: std::collections::BTreeSet<_> = ours.keys().chain(gits.keys()).collect();
    let shown = |found: Option<&(String, Vec<u8>)>| {
        found.map(|(_, content)| String::from_utf8_lossy(content).into_owned())
    };
    names
        .into_iter()
        .filter(|name| ours.get(*name) != gits.get(*name))
        .map(|name| {
            let folder = name
                .strip_prefix('f')
                .and_then(|rest| rest.split('/').next());
            let attributes = folder.and_then(|n| ATTRIBUTES.get(n.parse::<usize>().ok()?));
            format!(
                "{name} ({}): {:?}, and of git {:?}",
                attributes.unwrap_or(&""),
                shown(ours.get(name)),
                shown(gits.get(name))
            )
        })
        .collect()
}

#[test]
fn every_file_is_as_git_clone_makes_it() {
    let repo = repository_of_attributes();
    for config in [
        "",
        "[core]\n\tautocrlf = true\n",
        "[core]\n\tautocrlf = input\n",
        "[core]\n\teol = crlf\n",
        "[core]\n\tattributesFile = ~/attributes\n",
    ] {
        let user = User::new(config);
        fs::write(
            user.home.path().join("attributes"),
            "plain.txt filter=sed\n",
        )
        .unwrap();
        let expected = user.clone_of(&repo.url());
        let (ours, said) = user.checkout_of(&repo.url(), "").unwrap();
        let differing = differences(&ours, &expected);
        assert!(differing.is_empty(), "{config}:\n{}", differing.join("\n"));
        assert_says(
            &said,
            &[
                "12 files (f36/bom, …) have the filter \"nobody-knows\"",
                "git: error: external filter",
            ],
        );
    }
}

#[test]
fn changes_are_made_to_what_is_stored() {
    let repo = TestRepo::empty();
    repo.write(
        ".gitattributes",
        "*.u16 text working-tree-encoding=UTF-16 eol=crlf\n*.bat eol=crlf\n*.id ident\n\
         *.sed filter=sed\n*.p filter=process\n",
    );
    let user = User::new("");
    let git = |folder: &Path, args: &[&str]| {
        let output = user.git(folder, args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    };
    let utf16 = |text: &str| -> Vec<u8> {
        let units = std::iter::once(0xfeff).chain(text.encode_utf16());
        units.flat_map(u16::to_le_bytes).collect()
    };
    let write = |folder: &Path, name: &str, content: &[u8]| {
        fs::write(folder.join(name), content).unwrap();
    };
    let work = &repo.folder;
    write(work, "a.u16", &utf16("one\r\ntwo \u{20ac}\r\nthree\r\n"));
    write(work, "a.bat", b"one\r\ntwo\r\nthree\r\n");
    write(work, "a.id", b"one $Id$\ntwo\nthree\n");
    write(work, "a.sed", b"one shown\ntwo\nthree\n");
    write(work, "a.p", b"one SHOWN\ntwo\nthree\n");
    write(work, "gone.sed", b"gone shown\n");
    git(work, &["add", "--all"]);
    git(work, &["commit", "--quiet", "-m", "committed"]);
    // Somebody works on a clone of it.
    let theirs = user.clone_of(&repo.url());
    write(
        &theirs,
        "a.u16",
        &utf16("one\r\nzwei \u{20ac}\r\nthree\r\nfour\r\n"),
    );
    write(&theirs, "a.bat", b"one\r\nzwei\r\nthree\r\n");
    let id = fs::read_to_string(theirs.join("a.id")).unwrap();
    assert!(id.contains("$Id: "), "{id}");
    write(&theirs, "a.id", id.replace("two", "zwei").as_bytes());
    write(&theirs, "a.sed", b"one shown\nshown, too\nthree\n");
    write(&theirs, "a.p", b"one SHOWN\nSHOWN, too\nthree\n");
    write(&theirs, "new.u16", &utf16("new\r\n"));
    write(&theirs, "new.bat", b"new\r\n");
    fs::rename(theirs.join("gone.sed"), theirs.join("moved.sed")).unwrap();
    git(&theirs, &["add", "--all"]);
    let diff = git(&theirs, &["diff", "--cached", "--binary", "HEAD"]);
    assert!(diff.contains("+stored, too"), "{diff}");
    let (ours, said) = user.checkout_of(&repo.url(), &diff).unwrap();
    assert_says(&said, &["Uncommitted changes applied (9 files)"]);
    // A new blob id is written by git alone, when it checks the file out again.
    let theirs_as_written = user.home.path().join("again");
    git(&theirs, &["commit", "--quiet", "-m", "changed"]);
    let again = theirs_as_written.to_str().unwrap();
    git(&theirs, &["clone", "--quiet", ".", again]);
    let differing = differences(&ours, &theirs_as_written);
    assert!(differing.is_empty(), "{}", differing.join("\n"));
    // Git sees the same changes.
    git(&ours, &["add", "--all"]);
    assert_eq!(git(&ours, &["diff", "--cached", "--binary", "HEAD"]), diff);
}

#[test]
fn a_filter_that_must_not_be_left_out_is_an_error_as_for_git() {
    let inner = TestRepo::empty();
    inner.write(".gitattributes", "*.key filter=crypt\n");
    inner.write("a.key", "stored\n");
    inner.commit("secret");
    let outer = TestRepo::new();
    outer.git(&["submodule", "--quiet", "add", &inner.url(), "inner"]);
    outer.commit("with submodule");
    for (config, of_submodule, said) in [
        (
            "[filter \"crypt\"]\n\tsmudge = \"echo no key >&2; exit 1\"\n\trequired = true\n",
            false,
            &[
                "cannot write 1 file (a.key)",
                "no key",
                "smudge filter crypt failed",
                "Next:",
            ][..],
        ),
        (
            "[filter \"crypt\"]\n\tsmudge = no-such-program\n\trequired = true\n",
            true,
            &["submodule inner", "a.key", "no-such-program", "Next:"],
        ),
        (
            "[filter \"crypt\"]\n\tclean = cat\n\trequired = true\n",
            false,
            &[
                "a.key has the filter \"crypt\"",
                "without saying what to run",
                "Next:",
            ],
        ),
    ] {
        let user = User::new(config);
        let url = if of_submodule {
            outer.url()
        } else {
            inner.url()
        };
        let output = user.git(user.home.path(), &["clone", "--recursive", &url, "clone"]);
        assert!(!output.status.success());
        let refusal = user.checkout_of(&url, "").unwrap_err();
        assert_says(&refusal, said);
        assert!(!refusal.contains("panicked"), "{refusal}");
    }
    // With its key, in a submodule, too.
    let user = User::new("[filter \"crypt\"]\n\tsmudge = tr a-z A-Z\n\trequired = true\n");
    let (ours, _) = user.checkout_of(&outer.url(), "").unwrap();
    let text = fs::read_to_string(ours.join("inner/a.key")).unwrap();
    assert_eq!(text, "STORED\n");
}

#[test]
fn a_filter_that_takes_long_is_stopped_with_the_run() {
    let repo = TestRepo::empty();
    repo.write(".gitattributes", "*.x filter=slow\n");
    repo.write("a.x", "stored\n");
    repo.commit("first");
    let user =
        User::new("[filter \"slow\"]\n\tsmudge = \"echo $$ > ~/started; exec sleep 1000\"\n");
    let mut host = Host::new();
    let home = user.home.path().display().to_string();
    host.env.insert("HOME".into(), home);
    let (stop, url) = (host.stop.clone(), repo.url());
    let run = std::thread::spawn(move || host.fetch(&script(&url)));
    let started = user.home.path().join("started");
    let pid = loop {
        let text = fs::read_to_string(&started).unwrap_or_default();
        if let Some(pid) = text.strip_suffix('\n') {
            break pid.to_owned();
        }
        assert!(!run.is_finished());
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    stop.cancel();
    let error = run.join().unwrap().unwrap_err();
    assert!(matches!(error, SourceError::Stopped), "{error}");
    // Hangs here if it lives on.
    let state = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    while !(state().is_empty() || state().contains(") Z ")) {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn no_repository_says_what_is_run() {
    let repo = TestRepo::empty();
    let marker = repo.served_root().join("was-run");
    let command = format!("touch {}; cat", marker.display());
    let config = format!("[filter \"own\"]\n\tsmudge = \"{command}\"\n\tprocess = \"{command}\"\n");
    repo.write(".gitattributes", "*.x filter=own\n*.y filter=sed\n");
    for name in [".gitconfig", ".config/git/config", ".lfsconfig", "config"] {
        repo.write(name, &config);
    }
    repo.write("a.x", "stored\n");
    repo.write("a.y", "stored\n");
    repo.commit("with a filter");
    fs::write(repo.folder.join(".git/config"), config).unwrap();
    let user = User::new("");
    let (ours, said) = user.checkout_of(&repo.url(), "").unwrap();
    assert!(!marker.exists());
    assert_eq!(fs::read_to_string(ours.join("a.x")).unwrap(), "stored\n");
    assert_eq!(fs::read_to_string(ours.join("a.y")).unwrap(), "shown\n");
    assert_says(
        &said,
        &["1 file (a.x) has the filter \"own\"", "not define"],
    );
}

#[test]
fn without_git_its_part_is_an_error_or_said() {
    let repo = TestRepo::empty();
    repo.write(
        ".gitattributes",
        "*.bat eol=crlf\n*.id ident\n*.sed filter=unknown\n",
    );
    repo.write("a.bat", "one\n");
    repo.write("a.id", "$Id$\n");
    repo.write("a.sed", "stored\n");
    repo.commit("first");
    let mut host = Host::new();
    let nothing = host.folder.path().join("no-programs");
    fs::create_dir(&nothing).unwrap();
    host.env
        .insert("PATH".into(), nothing.display().to_string());
    let sources = host.fetch(&script(&repo.url()));
    let refusal = sources.unwrap_err().to_string();
    assert_says(&refusal, &["entry point"]);
    let task = Script {
        entry_point: "-m anything".into(),
        ..script(&repo.url())
    };
    let sources = host.fetch(&task).unwrap();
    let read = |name: &str| fs::read_to_string(sources.root.join(name)).unwrap();
    assert_eq!(read("a.bat"), "one\r\n");
    assert!(read("a.id").starts_with("$Id: "));
    assert_eq!(read("a.sed"), "stored\n");
    assert_says(
        &host.said(),
        &["no git on this machine", "(a.id)", "filter \"unknown\""],
    );
    let encoded = "*.bat working-tree-encoding=UTF-16\n".into();
    commit_as_stored(&repo, &[(".gitattributes".to_owned(), encoded)].into());
    assert_says(
        &host.refusal(&task),
        &[
            "a.bat has the attribute working-tree-encoding=UTF-16",
            "no git",
            "Next: install git",
        ],
    );
}
