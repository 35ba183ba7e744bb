//! Interpreter, environment and packages with real Pythons, a real uv, a real pip and the
//! configured package index.

#![expect(clippy::unwrap_used, reason = "a failed expectation ends the test")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use clearml_agent::console::Console;
use clearml_agent::python::choice::choose;
use clearml_agent::python::install::Code;
use clearml_agent::python::settings::{Installer, SkipVenv};
use clearml_agent::python::tools::Kind;
use clearml_agent::python::{
    Environment, Installed, PythonError, Settings, Variables, create, find_tools, install, notebook,
};
use clearml_agent::task::Script;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// One run's Python side, from the task to what it installed.
struct Bench {
    dir: Arc<tempfile::TempDir>,
    settings: Settings,
    said: Arc<Mutex<Vec<String>>>,
    stop: CancellationToken,
}

#[must_use]
#[derive(Debug)]
struct Done {
    /// Keeps the files until the test is over.
    _bench: Arc<tempfile::TempDir>,
    env: Environment,
    installed: Installed,
}

impl Bench {
    /// As a user's machine is, but with a home and caches of its own.
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let mut env: Variables = std::env::vars().collect();
        for name in ["UV_CACHE_DIR", "CLEARML_BOOTSTRAP_UV_EXEC", "VIRTUAL_ENV"] {
            env.remove(name);
        }
        let mut settings = Settings::from_lookup(&|_| None, &env).unwrap();
        settings.cache = shared_cache();
        settings.uv_program = uv_of_this_machine();
        Bench {
            dir: Arc::new(dir),
            settings,
            said: Arc::default(),
            stop: CancellationToken::new(),
        }
    }

    fn console(&self) -> Console {
        let said = self.said.clone();
        Console::new(move |line| said.lock().unwrap().push(line.to_owned()))
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().join("\n")
    }

    fn repository(&self) -> PathBuf {
        let path = self.dir.path().join("repository");
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    fn file(&self, path: &str, text: &str) {
        let path = self.repository().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    async fn run(&self, binary: &str, requirements: Value) -> Result<Done, PythonError> {
        let script: Script = serde_json::from_value(json!({
            "binary": binary, "entry_point": "main.py", "repository": "https://h/r.git",
            "requirements": requirements,
        }))
        .unwrap();
        let (console, stop) = (self.console(), &self.stop);
        let root = self.repository();
        let tools = find_tools(&script, &self.settings, &console, stop).await?;
        let folder = self.dir.path().join("venv");
        let env = create(&tools, &folder, &self.settings, &console, stop).await?;
        let code = Code {
            repository: Some(&root),
            working_dir: &root,
            entry_point: &script.entry_point,
        };
        let installed =
            install(&env, &tools, &script, &code, &self.settings, &console, stop).await?;
        Ok(Done {
            _bench: self.dir.clone(),
            env,
            installed,
        })
    }

    async fn runs(&self, binary: &str, requirements: Value) -> Done {
        match self.run(binary, requirements).await {
            Ok(done) => done,
            Err(error) => panic!("{error}\n--- said:\n{}", self.said()),
        }
    }

    async fn fails(&self, requirements: Value) -> PythonError {
        match self.run("", requirements).await {
            Ok(done) => panic!("{done:?}\n--- said:\n{}", self.said()),
            Err(error) => error,
        }
    }
}

impl Done {
    /// What the environment's Python prints.
    fn python(&self, code: &str) -> String {
        let python = self.env.python.as_ref().unwrap();
        let output = Command::new(python)
            .args(["-c", code])
            .env_remove("PYTHONPATH")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert!(
            output.status.success(),
            "{code}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }

    fn recorded(&self) -> Value {
        serde_json::to_value(self.installed.requirements_to_record.as_ref().unwrap()).unwrap()
    }
}

/// uv's cache and a fetched uv are kept between the tests, as between the runs of an agent.
fn shared_cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-cache")
}

/// `CLEARML_BOOTSTRAP_UV_EXEC` where the tests are told of a uv; else it is found or fetched.
fn uv_of_this_machine() -> Option<PathBuf> {
    std::env::var_os("CLEARML_BOOTSTRAP_UV_EXEC").map(PathBuf::from)
}

/// PATH with nothing but the system's folders: no uv, no pyenv.
const SYSTEM_PATH: &str = "/usr/bin:/bin";

#[tokio::test]
async fn packages_are_installed_and_recorded() {
    let bench = Bench::new();
    let done = bench
        .runs(
            "",
            json!({"pip": "# Python 3\nsix==1.16.0\nTabulate", "other": "kept"}),
        )
        .await;
    assert_eq!(
        done.python("import six, tabulate; print(six.__version__)"),
        "1.16.0"
    );
    let recorded = done.recorded();
    assert_eq!(recorded["org_pip"], "# Python 3\nsix==1.16.0\nTabulate");
    assert_eq!(recorded["other"], "kept");
    let lines: Vec<&str> = recorded["pip"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(lines[0], "six==1.16.0");
    assert!(lines[1].starts_with("tabulate=="), "{lines:?}");
    assert_eq!(lines.len(), 2);
    // uv's own words reach the log.
    assert!(bench.said().contains("six==1.16.0"), "{}", bench.said());
}

#[tokio::test]
async fn the_environment_is_a_real_one_with_pip_inside() {
    let bench = Bench::new();
    let done = bench.runs("", json!({})).await;
    let folder = done.env.folder.clone().unwrap();
    assert_eq!(
        done.python("import sys; print(sys.prefix)"),
        folder.to_string_lossy()
    );
    assert_eq!(
        done.python("import sys; print(sys.prefix != sys.base_prefix, sys.flags.no_site)"),
        "True 0"
    );
    // Nothing of the base interpreter's packages, and nothing to record but an empty list.
    assert_eq!(
        done.python("import sysconfig, sys; print(sysconfig.get_path('purelib') in sys.path)"),
        "True"
    );
    assert_eq!(done.recorded(), json!({"pip": []}));
    for program in ["python -m pip", "pip", "pip3"] {
        let output = Command::new("/bin/sh")
            .arg("-c")
            .arg(format!(
                ". '{0}/bin/activate' && {program} --version",
                folder.display()
            ))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            text.contains(&*folder.to_string_lossy()),
            "{program}: {text} {output:?}"
        );
    }
    // pip is whole: it can remove itself, its programs too.
    let output = Command::new(folder.join("bin/pip"))
        .args(["uninstall", "-y", "pip"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(!folder.join("bin/pip").exists());
    assert!(!done.env.has_pip());
}

#[tokio::test]
async fn pip_is_unpacked_once_and_each_environment_can_change_its_own() {
    use std::os::unix::fs::MetadataExt as _;
    let home = tempfile::tempdir().unwrap();
    let made = async || {
        let mut bench = Bench::new();
        bench.settings.cache = home.path().to_owned();
        let done = bench.runs("", json!({})).await;
        let package = done.env.site_packages[0].join("pip");
        (done, package)
    };
    let inode = |package: &Path| package.join("__init__.py").metadata().unwrap().ino();
    let (first, package) = made().await;
    let (second, other) = made().await;
    assert_eq!(inode(&package), inode(&other), "the files are shared");

    // It removes itself from one environment, and works in the other and in the next.
    let pip = |done: &Done, words: &[&str]| {
        let pip = done.env.folder.as_ref().unwrap().join("bin/pip");
        Command::new(pip).args(words).output().unwrap()
    };
    let removed = pip(&first, &["uninstall", "-y", "pip"]);
    assert!(removed.status.success() && !package.exists(), "{removed:?}");
    // A kept file that a crash has cut off is not used.
    let kept = std::fs::read_dir(home.path().join("pip")).unwrap();
    for folder in kept.flatten() {
        std::fs::remove_file(folder.path().join("pip/__main__.py")).unwrap();
        std::fs::write(folder.path().join("pip/__main__.py"), "").unwrap();
    }
    let (third, _) = made().await;
    for done in [&second, &third] {
        let shown = pip(done, &["--version"]);
        assert!(shown.status.success(), "{shown:?}");
        assert!(done.env.has_pip());
    }
    let text = std::fs::read_to_string(third.env.site_packages[0].join("pip/__main__.py"));
    assert!(!text.unwrap().is_empty());
}

#[tokio::test]
async fn a_package_that_does_not_exist_is_named() {
    let bench = Bench::new();
    let error = bench
        .fails(json!({"pip": "six\nno-such-package-for-clearml-agent-tests>1"}))
        .await;
    let words = error.to_string();
    assert!(
        words.starts_with(
            "could not install the task's packages: no package index has \
             no-such-package-for-clearml-agent-tests"
        ),
        "{words}"
    );
    assert!(words.contains("extra_index_url"), "{words}");
}

#[tokio::test]
async fn a_version_that_does_not_exist_is_named() {
    let bench = Bench::new();
    let words = bench.fails(json!({"pip": "six==99.0"})).await.to_string();
    assert!(words.contains("no version fits six==99.0"), "{words}");
}

#[tokio::test]
async fn versions_that_exclude_each_other_are_installed_as_listed() {
    let bench = Bench::new();
    let list = "requests==2.31.0\nidna==2.0\n";
    let done = bench.runs("", json!({"pip": list})).await;
    let lines = done.recorded()["pip"].to_string();
    assert!(
        lines.contains("requests==2.31.0") && lines.contains("idna==2.0"),
        "{lines}"
    );
    assert!(lines.contains("urllib3=="), "{lines}");
    assert!(
        bench.said().contains("exclude each other"),
        "{}",
        bench.said()
    );
}

const SETUP: &str = "from setuptools import setup\nsetup(name='localpkg', version='0.3', py_modules=['localpkg'])\n";

#[tokio::test]
async fn local_packages_are_installed_and_recorded_as_they_are_listed() {
    for (line, editable) in [("./pkg", false), ("-e ./pkg", true)] {
        let bench = Bench::new();
        bench.file("pkg/setup.py", SETUP);
        bench.file("pkg/localpkg.py", "WHERE = __file__\n");
        let done = bench.runs("", json!({"pip": format!("{line}\nsix")})).await;
        let place = done.python("import localpkg; print(localpkg.WHERE)");
        let in_repository = Path::new(&place).starts_with(bench.repository());
        assert_eq!(in_repository, editable, "{line}: {place}");
        assert_eq!(done.recorded()["pip"][0], line);
    }
}

#[tokio::test]
async fn a_git_repository_is_installed_at_its_commit() {
    let bench = Bench::new();
    let git = |args: &[&str]| {
        let output = Command::new("git")
            .args(["-c", "user.name=t", "-c", "user.email=t@example.com"])
            .args(args)
            .current_dir(bench.repository())
            .output()
            .unwrap();
        assert!(output.status.success(), "{args:?} {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    bench.file("setup.py", SETUP);
    bench.file("localpkg.py", "");
    git(&["init", "-q", "-b", "main"]);
    git(&["add", "."]);
    git(&["commit", "-q", "-m", "one"]);
    let commit = git(&["rev-parse", "HEAD"]);
    let url = format!("git+file://{}", bench.repository().display());
    let done = bench
        .runs("", json!({"pip": format!("localpkg @ {url}@main")}))
        .await;
    assert_eq!(
        done.recorded()["pip"],
        json!([format!("localpkg @ {url}@{commit}")])
    );
}

#[tokio::test]
async fn a_package_that_cannot_be_built_shows_why() {
    let bench = Bench::new();
    bench.file(
        "bad/setup.py",
        "raise RuntimeError('no compiler on this moon')\n",
    );
    let words = bench.fails(json!({"pip": "./bad"})).await.to_string();
    assert!(words.contains("could not be built"), "{words}");
    assert!(words.contains("no compiler on this moon"), "{words}");
}

#[tokio::test]
async fn without_a_list_the_repositorys_files_count() {
    let mut bench = Bench::new();
    bench.file("requirements.txt", "-r more/base.txt\n");
    bench.file("more/base.txt", "six==1.16.0 # pinned\n");
    bench.file("main.py", "");
    for forced in [false, true] {
        bench.settings.force_repo_requirements_txt = forced;
        let list = if forced { "tabulate" } else { "" };
        let _ = std::fs::remove_dir_all(bench.dir.path().join("venv"));
        let done = bench.runs("", json!({"pip": list})).await;
        assert_eq!(
            done.recorded()["pip"],
            json!(["six==1.16.0"]),
            "forced: {forced}"
        );
    }
}

#[tokio::test]
async fn only_comments_install_nothing() {
    let bench = Bench::new();
    bench.file("requirements.txt", "six\n");
    let done = bench.runs("", json!({"pip": "# nothing"})).await;
    assert_eq!(done.recorded(), json!({"pip": [], "org_pip": "# nothing"}));
    assert!(bench.said().contains("only comments"), "{}", bench.said());
}

#[tokio::test]
async fn pip_installs_where_the_configuration_says_so() {
    let mut bench = Bench::new();
    bench.settings.installer = Installer::Pip;
    bench.settings.pip_version = vec!["23.3 ; python_version >= '3.7'".into()];
    let done = bench.runs("", json!({"pip": "six==1.16.0"})).await;
    assert_eq!(done.python("import six; print(six.__version__)"), "1.16.0");
    assert_eq!(done.recorded()["pip"], json!(["six==1.16.0"]));
    assert_eq!(done.python("import pip; print(pip.__version__)"), "23.3");
    assert!(
        bench.said().contains("Installing with pip, not uv"),
        "{}",
        bench.said()
    );
}

#[tokio::test]
async fn pip_stands_in_where_uv_cannot_be_had_and_its_errors_are_understood() {
    let mut bench = Bench::new();
    bench.settings.uv_program = None;
    bench.settings.cache = bench.dir.path().join("cache");
    // uv's own index is dead, and pip knows nothing of it.
    let env = &mut bench.settings.environment;
    env.insert("UV_INDEX_URL".into(), "http://127.0.0.1:9/simple".into());
    let path = path_without_uv(env);
    env.insert("PATH".into(), path);
    let words = bench
        .fails(json!({"pip": "no-such-package-for-clearml-agent-tests"}))
        .await
        .to_string();
    assert!(
        words.contains("no package index has no-such-package-for-clearml-agent-tests"),
        "{words}"
    );
    let said = bench.said();
    assert!(
        said.contains("Installing with pip, not uv: uv could not be fetched"),
        "{said}"
    );
    assert!(said.contains("127.0.0.1:9"), "{said}");
}

#[tokio::test]
async fn an_extra_index_that_does_not_answer_is_passed_over() {
    let mut bench = Bench::new();
    // Its attempts are not what is tested.
    for (name, value) in [("UV_HTTP_RETRIES", "0"), ("PIP_RETRIES", "0")] {
        bench.settings.environment.insert(name.into(), value.into());
    }
    let list = "--extra-index-url http://127.0.0.1:9/simple\nsix==1.16.0\n";
    let done = bench.runs("", json!({ "pip": list })).await;
    assert_eq!(done.recorded()["pip"], json!(["six==1.16.0"]));
    let said = bench.said();
    assert!(said.contains("installing with pip"), "{said}");
}

fn path_without_uv(env: &Variables) -> String {
    let folders = std::env::split_paths(&env["PATH"]).filter(|folder| !folder.join("uv").exists());
    std::env::join_paths(folders)
        .unwrap()
        .into_string()
        .unwrap()
}

#[tokio::test]
async fn uv_is_fetched_once_from_the_index() {
    let mut bench = Bench::new();
    bench.settings.uv_program = None;
    bench.settings.cache = bench.dir.path().join("cache");
    let path = path_without_uv(&bench.settings.environment);
    bench.settings.environment.insert("PATH".into(), path);
    let done = bench.runs("", json!({"pip": "six==1.16.0"})).await;
    assert_eq!(done.python("import six; print(six.__version__)"), "1.16.0");
    assert_eq!(
        bench.said().matches("Fetching uv ").count(),
        1,
        "{}",
        bench.said()
    );
    // Nothing half-done is left, and the next run finds it.
    let kept: Vec<String> = std::fs::read_dir(bench.dir.path().join("cache/uv"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    std::fs::remove_dir_all(bench.dir.path().join("venv")).unwrap();
    let done = bench.runs("", json!({"pip": "six==1.16.0"})).await;
    assert_eq!(done.recorded()["pip"], json!(["six==1.16.0"]));
    assert_eq!(
        bench.said().matches("Fetching uv ").count(),
        1,
        "{}",
        bench.said()
    );
}

#[tokio::test]
async fn index_passwords_are_in_no_line_and_in_no_argument() {
    let mut bench = Bench::new();
    let config = json!({
        "agent.package_manager.extra_index_url": "http://bob:s3cr3tpw@127.0.0.1:9/simple",
    });
    let mut env = bench.settings.environment.clone();
    env.insert("UV_HTTP_TIMEOUT".into(), "2".into());
    env.insert("UV_HTTP_RETRIES".into(), "0".into());
    let cache = bench.settings.cache.clone();
    let uv = bench.settings.uv_program.clone();
    bench.settings = Settings::from_lookup(&|key| config.get(key).cloned(), &env).unwrap();
    bench.settings.cache = cache;
    bench.settings.uv_program = uv;
    // uv fails on the dead index, pip passes over it: both name it.
    let done = bench.runs("", json!({"pip": "six"})).await;
    let words = format!("{:?} {}", done.installed, bench.said());
    assert!(words.contains("127.0.0.1:9"), "{words}");
    assert!(!words.contains("s3cr3tpw"), "{words}");
}

#[tokio::test]
async fn an_unreadable_line_fails_before_anything_is_installed() {
    let bench = Bench::new();
    let words = bench
        .fails(json!({"pip": "six\nfoo bar baz"}))
        .await
        .to_string();
    assert!(
        words.starts_with("requirement \"foo bar baz\" (the task's packages)"),
        "{words}"
    );
    assert!(!bench.said().contains("six=="), "{}", bench.said());
}

#[tokio::test]
async fn a_stop_ends_an_installation() {
    let bench = Bench::new();
    bench.file(
        "slow/setup.py",
        "import time, pathlib\npathlib.Path(__file__).with_name('started').touch()\ntime.sleep(600)\n",
    );
    let started = bench.repository().join("slow/started");
    let watch = async {
        while !started.exists() {
            tokio::task::yield_now().await;
        }
        bench.stop.cancel();
    };
    let requirements = json!({"pip": format!("-e {}/slow", bench.repository().display())});
    let (ended, ()) = tokio::join!(bench.run("", requirements), watch);
    assert_eq!(ended.unwrap_err(), PythonError::Stopped);
}

#[tokio::test]
async fn pythons_of_pyenv_are_found() {
    let bench = Bench::new();
    let home = bench.settings.home.clone().unwrap_or_default();
    let versions = std::fs::read_dir(home.join(".pyenv/versions"));
    let mut names: Vec<String> = versions
        .map(|entries| {
            entries
                .flatten()
                .filter_map(|e| e.file_name().into_string().ok())
                .collect()
        })
        .unwrap_or_default();
    names.retain(|name| name.starts_with("3."));
    if names.is_empty() {
        eprintln!("skipped: pyenv has no Python 3 on this machine");
        return;
    }
    for name in names {
        let mut parts = name.split('.');
        let minor: u32 = parts.nth(1).unwrap().parse().unwrap();
        let bench = Bench::new();
        let done = bench
            .runs(&format!("python3.{minor}"), json!({"pip": "six==1.16.0"}))
            .await;
        let code = "import sys, six, pip; print('%d.%d' % sys.version_info[:2], six.__version__)";
        assert_eq!(done.python(code), format!("3.{minor} 1.16.0"));
        assert!(!bench.said().contains("Note:"), "{}", bench.said());
    }
}

#[tokio::test]
async fn a_python_that_is_not_there_is_replaced_and_said() {
    let bench = Bench::new();
    let done = bench.runs("python3.99", json!({})).await;
    assert_eq!(done.python("import sys; print(sys.version_info[0])"), "3");
    let said = bench.said();
    assert!(
        said.contains("Note: the task asks for Python 3.99, which is not on this machine"),
        "{said}"
    );
}

#[tokio::test]
async fn the_nearest_python_stands_in() {
    let mut bench = Bench::new();
    let folder = bench.dir.path().join("bin");
    std::fs::create_dir(&folder).unwrap();
    let (python, _) = choose("", &bench.settings).await.unwrap();
    // They only say that they are of another version.
    for (name, minor) in [
        ("python3", 90),
        ("python3.28", 28),
        ("python3.31", 31),
        ("python3.33", 33),
    ] {
        let script = format!(
            "#!/bin/sh\n'{}' \"$@\" | /bin/sed 's/^3\\.[0-9]*\\.[0-9]*$/3.{minor}.0/'\n",
            python.executable.display()
        );
        let path = folder.join(name);
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let home = bench.dir.path().to_owned();
    let env = &mut bench.settings.environment;
    env.insert("PATH".into(), folder.display().to_string());
    env.insert("PYENV_ROOT".into(), "/nowhere".into());
    bench.settings.home = Some(home);
    for (asked, used) in [
        ("python3.30", "3.31"),
        ("python3.29", "3.28"),
        ("python3.99", "3.90"),
    ] {
        let (found, note) = choose(asked, &bench.settings).await.unwrap();
        assert_eq!(found.minor_version(), used, "{asked}");
        assert!(note.unwrap().contains("which is not on this machine"));
    }
}

#[tokio::test]
async fn the_systems_python_gets_an_environment_for_uv_and_pip_alike() {
    if !Path::new("/usr/bin/python3").exists() {
        eprintln!("skipped: this machine has no /usr/bin/python3");
        return;
    }
    for installer in [Installer::Uv, Installer::Pip] {
        let mut bench = Bench::new();
        bench.settings.installer = installer;
        let env = &mut bench.settings.environment;
        env.insert("PATH".into(), SYSTEM_PATH.into());
        env.insert("PYENV_ROOT".into(), "/nowhere".into());
        let done = bench.runs("", json!({"pip": "six==1.16.0"})).await;
        let site = done.env.site_packages[0].join("six.py");
        assert_eq!(
            done.python("import six; print(six.__file__)"),
            site.to_string_lossy()
        );
    }
}

#[tokio::test]
async fn programs_that_fail_are_passed_over_and_named_when_nothing_is_left() {
    use std::os::unix::fs::PermissionsExt;
    let mut bench = Bench::new();
    let bin = bench.dir.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    for name in ["python3", "python3.11"] {
        std::fs::write(
            bin.join(name),
            "#!/bin/sh\necho not this one >&2\nexit 127\n",
        )
        .unwrap();
        std::fs::set_permissions(bin.join(name), PermissionsExt::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:{SYSTEM_PATH}", bin.display());
    bench.settings.environment.insert("PATH".into(), path);
    let has_system_python = Path::new("/usr/bin/python3").exists();
    match bench.run("python3.11", json!({})).await {
        Ok(done) => assert_eq!(done.python("print('ok')"), "ok"),
        Err(error) => {
            assert!(!has_system_python, "{error}");
            assert!(
                error.to_string().contains("exit code 127 not this one"),
                "{error}"
            );
        }
    }
}

#[tokio::test]
async fn the_skip_switches() {
    let mut bench = Bench::new();
    bench.settings.skip_python_env = true;
    let done = bench
        .runs(
            "",
            json!({"pip": "no-such-package-for-clearml-agent-tests"}),
        )
        .await;
    assert_eq!(done.env.kind, Kind::AsItIs);
    assert_eq!(done.installed, Installed::default());
}

#[tokio::test]
async fn packages_go_into_the_interpreter_that_is_named() {
    // A virtual environment stands for an image's own Python.
    let image = Bench::new();
    let image = image.runs("", json!({"pip": "tabulate"})).await;
    let python = image.env.python.clone().unwrap();
    let mut bench = Bench::new();
    bench.settings.skip_venv = SkipVenv::Into(python.to_string_lossy().into_owned());
    let done = bench.runs("", json!({"pip": "six==1.16.0"})).await;
    assert_eq!(done.env.kind, Kind::Shared);
    assert_eq!(
        image.python("import six, tabulate; print(six.__version__)"),
        "1.16.0"
    );
    // The whole environment is recorded.
    let lines = done.recorded()["pip"].to_string();
    assert!(
        lines.contains("six==1.16.0") && lines.contains("tabulate=="),
        "{lines}"
    );
}

#[tokio::test]
async fn a_notebook_is_converted_with_packages_of_its_own() {
    let bench = Bench::new();
    let cell = json!({"cell_type": "code", "source": ["print('from a notebook')"], "metadata": {},
                      "outputs": [], "execution_count": null, "id": "a1"});
    let book = json!({"cells": [cell], "metadata": {"language_info": {"name": "python", "file_extension": ".py"}},
                      "nbformat": 4, "nbformat_minor": 5});
    bench.file("book.ipynb", &book.to_string());
    bench.file("script.ipynb", "print('a script')\n");
    let root = bench.repository();
    let script: Script =
        serde_json::from_value(json!({"entry_point": "book.ipynb", "requirements": {"pip": ""}}))
            .unwrap();
    let (console, stop) = (bench.console(), CancellationToken::new());
    let tools = find_tools(&script, &bench.settings, &console, &stop)
        .await
        .unwrap();
    let env = create(
        &tools,
        &bench.dir.path().join("venv"),
        &bench.settings,
        &console,
        &stop,
    )
    .await
    .unwrap();
    let code = Code {
        repository: None,
        working_dir: &root,
        entry_point: "book.ipynb",
    };
    install(
        &env,
        &tools,
        &script,
        &code,
        &bench.settings,
        &console,
        &stop,
    )
    .await
    .unwrap();
    for (entry, expected) in [
        ("book.ipynb", "book.py"),
        ("script.ipynb", "script.ipynb"),
        ("a.py", "a.py"),
    ] {
        let found = notebook::convert(&env, &root, entry, &bench.settings, &console, &stop)
            .await
            .unwrap();
        assert_eq!(found, expected, "{}", bench.said());
    }
    let text = std::fs::read_to_string(root.join("book.py")).unwrap();
    assert!(text.contains("from a notebook"), "{text}");
}
