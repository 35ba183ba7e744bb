//! Kept environments: what is taken from them, what makes them anew, and that no run changes
//! another's.

#![expect(clippy::unwrap_used, reason = "a failed expectation ends the test")]

#[path = "common/python.rs"]
mod bench;
#[path = "common/cache_machine.rs"]
mod cache_machine;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use bench::Done;
use cache_machine::Machine;
use clearml_agent::python::cache::settings::LinkMode;
use clearml_agent::python::cache::store::Store;
use clearml_agent::python::settings::Installer;
use serde_json::json;

fn site_packages(done: &Done) -> PathBuf {
    done.env.site_packages[0].clone()
}

#[tokio::test]
async fn files_that_flags_name_are_the_checkouts_and_a_change_makes_another_environment() {
    let machine = Machine::new();
    let flags = ["-c limits/all.txt", "--constraint=limits/all.txt"];
    for (installer, flags) in [Installer::Uv, Installer::Pip].into_iter().zip(flags) {
        for (limit, version, how) in [
            ("six<1.16", "1.15.0", "built and kept"),
            (
                "six<1.17",
                "1.16.0",
                "for another state of the installer and its settings",
            ),
            ("six<1.17", "1.16.0", "from the cache"),
        ] {
            let mut bench = machine.bench();
            bench.settings.installer = installer;
            bench.settings.extra_flags = flags.split(' ').map(str::to_owned).collect();
            bench.file("limits/all.txt", "-c six.txt\n");
            bench.file("limits/six.txt", limit);
            let done = bench.runs("", json!({"pip": "six"})).await;
            assert_eq!(done.recorded()["pip"], json!([format!("six=={version}")]));
            let said = bench.said();
            assert!(said.contains(how), "{installer:?} {limit}: {said}");
        }
    }
}

#[tokio::test]
async fn a_second_run_gets_a_copy_and_the_recorded_list_leads_there_too() {
    let machine = Machine::new();
    let (first, said) = machine.run("# a remark\ntabulate\nsix==1.16.0\n").await;
    assert!(
        said.contains("Environment: built and kept, because the cache is empty: 2 packages"),
        "{said}"
    );
    assert_eq!(machine.entries().len(), 1);
    let recorded = first.recorded()["pip"].clone();
    let lines: Vec<&str> = recorded
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l.as_str().unwrap())
        .collect();
    for list in ["six == 1.16.0\nTabulate", &lines.join("\n")] {
        let (done, said) = machine.run(list).await;
        assert!(said.contains("Environment: from the cache ("), "{said}");
        assert!(!said.contains("Installing packages"), "{said}");
        assert_eq!(done.recorded()["pip"], recorded);
        assert_eq!(
            done.python("import six, tabulate; print(six.__version__)"),
            "1.16.0"
        );
        assert!(done.env.has_pip());
    }
    // Another list is another environment, and the log says so.
    let (_, said) = machine.run("six==1.15.0").await;
    assert!(
        said.contains("because no run here had this list of packages"),
        "{said}"
    );
    assert_eq!(machine.entries().len(), 2);
}

#[tokio::test]
async fn a_copy_is_a_whole_environment_of_its_own() {
    let machine = Machine::new();
    for _ in 0..2 {
        let (done, _) = machine.run("tabulate==0.9.0\n").await;
        let folder = done.env.folder.clone().unwrap();
        let shown = folder.to_string_lossy();
        assert_eq!(done.python("import sys; print(sys.prefix)"), shown);
        // Its programs run its own Python.
        let text = std::fs::read_to_string(folder.join("bin/tabulate")).unwrap();
        assert!(
            text.contains(&*shown) && !text.contains("venvs-cache"),
            "{text}"
        );
        let activated = Command::new("/bin/sh")
            .arg("-c")
            .arg(format!(
                ". '{shown}/bin/activate' && command -v tabulate && pip --version"
            ))
            .output()
            .unwrap();
        let text = String::from_utf8(activated.stdout).unwrap();
        assert_eq!(text.matches(&*shown).count(), 2, "{text}");
        let mut left = Vec::new();
        mentions(&folder, "venvs-cache", &mut left);
        assert_eq!(left, Vec::<PathBuf>::new());
    }
}

/// Text files below `folder` that mention `word`. Byte code does (it is given the right path when it
/// is loaded), and so does what is built of C.
fn mentions(folder: &Path, word: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_symlink() {
        } else if path.is_dir() {
            mentions(&path, word, found);
        } else if std::fs::read_to_string(&path).is_ok_and(|text| text.contains(word)) {
            found.push(path);
        }
    }
}

#[tokio::test]
async fn a_run_that_installs_more_changes_no_other() {
    let machine = Machine::new();
    let list = "six==1.16.0\ntabulate==0.9.0";
    let (first, _) = machine.run(list).await;
    let pip = |words: &[&str]| {
        let python = first.env.python.as_ref().unwrap();
        let output = Command::new(python)
            .args(["-m", "pip", "--disable-pip-version-check"])
            .args(words)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    // Other versions, more packages, fewer packages, a path file that is added to, by pip and by uv.
    pip(&["install", "-q", "six==1.15.0", "toolz"]);
    pip(&["uninstall", "-q", "-y", "tabulate"]);
    pip(&[
        "install",
        "-q",
        "--upgrade",
        "--force-reinstall",
        "six==1.17.0",
    ]);
    if let Some(uv) = &bench::uv_of_this_machine() {
        let python = first.env.python.as_ref().unwrap();
        let output = Command::new(uv)
            .args([
                "pip",
                "install",
                "-q",
                "--reinstall",
                "six==1.14.0",
                "--python",
            ])
            .arg(python)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    let (second, said) = machine.run(list).await;
    assert!(said.contains("from the cache"), "{said}");
    assert_eq!(
        second.python("import six, tabulate; print(six.__version__)"),
        "1.16.0"
    );
    assert_eq!(
        second.recorded()["pip"],
        json!(["six==1.16.0", "tabulate==0.9.0"])
    );
    let (code, text) = machine.command(&["verify"]);
    assert_eq!(code, 0, "{text}");
}

#[tokio::test]
async fn what_is_written_through_a_link_is_noticed_and_not_used() {
    let mut machine = Machine::new();
    machine.change = |settings| settings.link_mode = LinkMode::HardLink;
    let (first, _) = machine.run("six==1.16.0").await;
    std::fs::write(
        site_packages(&first).join("six.py"),
        "__version__ = 'patched'\n",
    )
    .unwrap();
    let (code, text) = machine.command(&["verify"]);
    assert_eq!(code, 70, "{text}");
    assert!(text.contains("six.py is not as it was kept"), "{text}");

    let (second, said) = machine.run("six==1.16.0").await;
    assert!(
        said.contains("given up, because something has changed its"),
        "{said}"
    );
    assert_eq!(
        second.python("import six; print(six.__version__)"),
        "1.16.0"
    );
    let (code, text) = machine.command(&["verify"]);
    assert_eq!(code, 0, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_runs_at_once_build_one_environment() {
    let machine = Machine::new();
    let runs = (0..16).map(|_| machine.run("six==1.16.0\ntabulate==0.9.0"));
    let mut built = 0;
    for (done, said) in futures(runs).await {
        assert_eq!(
            done.recorded()["pip"],
            json!(["six==1.16.0", "tabulate==0.9.0"])
        );
        built += said.matches("Environment: built and kept").count();
        assert_eq!(said.matches("Environment: ").count(), 1, "{said}");
    }
    assert_eq!(built, 1);
    assert_eq!(machine.entries().len(), 1);
}

async fn futures<F: Future>(all: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut all: Vec<_> = all.map(|one| (Some(Box::pin(one)), None)).collect();
    std::future::poll_fn(|context| {
        let mut pending = false;
        for (future, output) in &mut all {
            if let Some(running) = future {
                match running.as_mut().poll(context) {
                    std::task::Poll::Ready(done) => (*future, *output) = (None, Some(done)),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        match pending {
            true => std::task::Poll::Pending,
            false => std::task::Poll::Ready(()),
        }
    })
    .await;
    all.into_iter().map(|(_, output)| output.unwrap()).collect()
}

#[tokio::test]
async fn folders_of_the_checkout_are_installed_anew_into_each_copy() {
    let machine = Machine::new();
    for version in ["0.3", "0.4"] {
        let bench = machine.bench();
        bench.file(
            "pkg/setup.py",
            &format!("from setuptools import setup\nsetup(name='localpkg', version='{version}', py_modules=[], install_requires=['six'])\n"),
        );
        let done = bench
            .runs("", json!({"pip": "tabulate==0.9.0\n-e ./pkg"}))
            .await;
        let code = "import importlib.metadata as m, six; print(m.version('localpkg'))";
        assert_eq!(done.python(code), version, "{}", bench.said());
        assert_eq!(done.recorded()["pip"][0], "-e ./pkg");
    }
    assert_eq!(machine.entries().len(), 1);
    assert_eq!(machine.entries()[0].manifest.packages, ["tabulate==0.9.0"]);
}

#[tokio::test]
async fn a_list_that_leaves_versions_open_is_resolved_anew() {
    let mut machine = Machine::new();
    machine.change = |settings| settings.resolve_after = Some(Duration::ZERO);
    let (_, said) = machine.run("six<1.16").await;
    assert!(said.contains("built and kept"), "{said}");
    // It still leads to the same versions.
    let (_, said) = machine.run("six<1.16").await;
    assert!(said.contains("from the cache"), "{said}");
    // The index is away: what is kept will do.
    let mut bench = machine.bench();
    let dead = "http://127.0.0.1:9/simple".to_owned();
    bench
        .settings
        .environment
        .insert("UV_HTTP_RETRIES".into(), "0".into());
    let alive = bench.settings.clone();
    let _ = bench.runs("", json!({"pip": "six<1.16"})).await;
    bench
        .settings
        .environment
        .insert("UV_DEFAULT_INDEX".into(), dead);
    assert_ne!(alive.environment, bench.settings.environment);
    // Newer ones are there.
    let store = Store::look(&machine.settings());
    let entry = &machine.entries()[0];
    let manifest = entry.folder.join("manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replace("six==1.15.0", "six==1.14.0")).unwrap();
    let (_, said) = machine.run("six<1.16").await;
    assert!(said.contains("because newer versions are there"), "{said}");
    drop(store);
    // A list that names each version is never resolved again.
    let (_, _) = machine.run("six==1.15.0").await;
    let (_, said) = machine.run("six==1.15.0").await;
    assert!(said.contains("from the cache"), "{said}");
}

#[tokio::test]
async fn the_longest_unused_makes_room_and_a_full_disk_keeps_nothing() {
    let mut machine = Machine::new();
    machine.change = |settings| settings.max_entries = 1;
    for version in ["1.15.0", "1.16.0"] {
        let _ = machine.run(&format!("six=={version}")).await;
        assert_eq!(
            machine.entries()[0].manifest.packages,
            [format!("six=={version}")]
        );
        assert_eq!(machine.entries().len(), 1);
    }
    machine.change = |settings| settings.free_space = u64::MAX;
    let (done, said) = machine.run("six==1.17.0").await;
    assert_eq!(done.python("import six; print(six.__version__)"), "1.17.0");
    assert!(said.contains("Environment: not kept, because"), "{said}");
    assert!(said.contains("free_space_threshold_gb"), "{said}");
}

#[tokio::test]
async fn a_failed_or_killed_build_leaves_nothing() {
    let machine = Machine::new();
    let bench = machine.bench();
    let _ = bench.fails(json!({"pip": "six==99.0"})).await;
    let root = Store::look(&machine.settings()).root().to_owned();
    let left = || -> Vec<String> {
        let names = std::fs::read_dir(&root).unwrap().flatten();
        names
            .map(|e| e.file_name().into_string().unwrap())
            .filter(|name| name.starts_with('.'))
            .collect()
    };
    assert_eq!(left(), Vec::<String>::new());
    // As a killed builder leaves it: no lock is held. The next builder of this list, or `prune`,
    // removes it.
    let lock = std::fs::read_dir(&root).unwrap().flatten().find_map(|e| {
        let name = e.file_name().into_string().unwrap();
        name.strip_suffix(".lock").map(str::to_owned)
    });
    std::fs::create_dir_all(root.join(format!(".build-{}-abc123/env", lock.unwrap()))).unwrap();
    let (code, text) = machine.command(&["prune"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(left(), Vec::<String>::new());
}

#[tokio::test]
async fn the_command_lists_verifies_and_prunes() {
    let machine = Machine::new();
    let (code, text) = machine.command(&["list"]);
    assert!(code == 0 && text.contains("0 environments"), "{text}");
    let _ = machine.run("six==1.16.0").await;
    let (code, text) = machine.command(&["list"]);
    assert!(code == 0 && text.contains(": six==1.16.0"), "{text}");

    // The same length and time, other contents: only the package's own hashes show it.
    let entry = &machine.entries()[0];
    let six = entry.environment().join(
        entry
            .files()
            .unwrap()
            .text()
            .lines()
            .find_map(|l| {
                l.ends_with("/six.py")
                    .then(|| l.rsplit(' ').next().unwrap().to_owned())
            })
            .unwrap(),
    );
    let time = std::fs::metadata(&six).unwrap().modified().unwrap();
    let text = std::fs::read_to_string(&six).unwrap().replacen('a', "b", 1);
    std::fs::remove_file(&six).unwrap();
    std::fs::write(&six, text).unwrap();
    std::fs::File::options()
        .append(true)
        .open(&six)
        .unwrap()
        .set_modified(time)
        .unwrap();
    let (code, text) = machine.command(&["verify"]);
    assert_eq!(code, 70, "{text}");
    assert!(text.contains("six.py has not the contents"), "{text}");
    let (code, text) = machine.command(&["verify", "--remove"]);
    assert!(code == 0 && text.contains("damaged, removed"), "{text}");

    let _ = machine.run("six==1.16.0").await;
    let (code, text) = machine.command(&["prune", "0000"]);
    assert_eq!(code, 66, "{text}");
    // A variable that is not set names none, and not all.
    let (code, text) = machine.command(&["prune", ""]);
    assert_eq!((code, machine.entries().len()), (2, 1), "{text}");
    let (code, text) = machine.command(&["prune", "--all"]);
    assert!(code == 0 && text.contains("1 environment, "), "{text}");
    assert!(machine.entries().is_empty());
}

#[test]
fn where_no_environments_are_kept_all_else_is_tended() {
    let machine = Machine::new();
    let at = |name: &str| machine.dir.path().join(name);
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let run = format!("run-t1-{}-abc", &boot[..6]);
    let mirror = ".clearml/vcs-cache/code.0123456789abcdef0123456789abcdef.git";
    let left = [
        at(mirror),
        at(&format!(".clearml/venvs-builds/{run}")),
        at(&format!(
            ".clearml/docker-cache/image-0123-user-0/runs/{run}"
        )),
    ];
    for folder in &left {
        std::fs::create_dir_all(folder.join("objects/pack")).unwrap();
        let long_ago = SystemTime::now() - Duration::from_secs(100_000);
        File::open(folder).unwrap().set_modified(long_ago).unwrap();
    }
    let config = at("off.conf");
    std::fs::write(&config, "agent.venvs_cache.path: \"\"\n").unwrap();
    let command =
        |words: &[&str]| machine.command_with(words, "CLEARML_CONFIG_FILE", config.as_os_str());
    let (code, text) = command(&["list"]);
    assert!(code == 0 && text.contains("1 mirror in"), "{text}");
    assert!(text.contains("`agent.venvs_cache.path` is empty"), "{text}");
    let (code, text) = command(&["verify"]);
    assert!(code == 0 && text.contains("1 mirror, 0 damaged"), "{text}");
    let (code, text) = command(&["prune", "--unused-days", "1"]);
    assert_eq!(code, 0, "{text}");
    let gone = "1 mirror, 0 leftovers and 2 folders of runs";
    assert!(text.contains(gone), "{text}");
    assert!(left.iter().all(|folder| !folder.exists()));
}

#[tokio::test]
async fn the_modules_are_compiled_once_beside_the_run() {
    let machine = Machine::new();
    let (first, _) = machine.run("six==1.16.0").await;
    machine.compiled().await;
    assert!(!site_packages(&first).join("__pycache__").exists());
    let (second, _) = machine.run("six==1.16.0").await;
    // It is used as it is: Python has nothing to write.
    let cached = std::fs::read_dir(site_packages(&second).join("__pycache__")).unwrap();
    let code = cached
        .flatten()
        .find(|e| e.file_name().to_string_lossy().starts_with("six."))
        .unwrap();
    let before = code.metadata().unwrap().modified().unwrap();
    assert_eq!(
        second.python("import six; print(six.__cached__)"),
        code.path().to_string_lossy()
    );
    assert_eq!(code.metadata().unwrap().modified().unwrap(), before);
    let (code, text) = machine.command(&["verify"]);
    assert_eq!(code, 0, "{text}");
}

#[tokio::test]
async fn what_was_half_removed_by_hand_is_built_anew() {
    let machine = Machine::new();
    for missing in ["env/bin", "env/lib", "files"] {
        let _ = machine.run("tabulate==0.9.0").await;
        machine.compiled().await;
        let path = machine.entries()[0].folder.join(missing);
        if path.is_dir() {
            std::fs::remove_dir_all(path).unwrap();
        } else {
            std::fs::remove_file(path).unwrap();
        }
        let (done, said) = machine.run("tabulate==0.9.0").await;
        assert!(
            said.contains("Environment: built and kept"),
            "{missing}: {said}"
        );
        assert_eq!(
            done.python("import tabulate; print(tabulate.__version__)"),
            "0.9.0"
        );
    }
}

/// In a process of its own, for which no disk has locks.
#[test]
fn a_disk_without_locks_keeps_environments_too() {
    const NAME: &str = "a_disk_without_locks_keeps_environments_too";
    if std::env::var_os("LD_PRELOAD").is_some() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let machine = Machine::new();
            for expected in ["built and kept", "from the cache"] {
                let mut bench = machine.bench();
                // For this process alone, not for uv.
                bench.settings.environment.remove("LD_PRELOAD");
                let _ = bench.runs("", json!({"pip": "six==1.16.0"})).await;
                assert!(bench.said().contains(expected), "{}", bench.said());
            }
        });
        return;
    }
    for errno in ["ENOLCK", "EOPNOTSUPP"] {
        let dir = tempfile::tempdir().unwrap();
        let (source, library) = (dir.path().join("flock.c"), dir.path().join("flock.so"));
        let text = format!(
            "#include <errno.h>\nint flock(int file, int how)\n\
             {{ (void)file; (void)how; errno = {errno}; return -1; }}\n"
        );
        std::fs::write(&source, text).unwrap();
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-o"])
            .arg(&library)
            .arg(source);
        assert!(cc.status().expect("a C compiler").success());
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env("LD_PRELOAD", library)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errno}: {said}");
    }
}
