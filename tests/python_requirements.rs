//! The same lists of packages for the Python agent and for this one: the same packages are installed,
//! or the README says why not.
#![allow(clippy::unwrap_used)]

#[path = "common/python.rs"]
mod bench;
mod common;
#[path = "common/git_http.rs"]
mod git_http;
#[path = "common/index.rs"]
mod index;
#[path = "common/situations.rs"]
mod situations;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use bench::Bench;
use clearml_agent::console::Console;
use clearml_agent::python::install::Code;
use clearml_agent::python::{PythonError, Settings, create, find_tools, install, uv};
use clearml_agent::task::Script;
use common::World;
use futures_util::StreamExt as _;
use serde_json::json;
use situations::{Outcome, Places, Situation, table, write_files};
use tokio_util::sync::CancellationToken;

/// How many at a time.
const ABREAST: usize = 3;

/// Those with CLEARML_TEST_SITUATIONS in their name: all, unless it is set.
fn chosen(situations: Vec<Situation>) -> Vec<Situation> {
    let wanted = std::env::var("CLEARML_TEST_SITUATIONS").unwrap_or_default();
    let chosen = situations.into_iter().filter(|s| s.name.contains(&wanted));
    chosen.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn this_agent_installs_what_the_table_says() {
    let bench = Bench::new();
    let (console, stop) = (bench.console(), CancellationToken::new());
    let uv = uv::find_or_fetch(&bench.settings, &console, &stop)
        .await
        .unwrap();
    let cache = tempfile::tempdir().unwrap();
    let places = Arc::new(Places::new(Vec::new()).await);
    let wrong: Vec<String> = futures_util::stream::iter(chosen(table().situations))
        .map(|situation| {
            let (places, uv, cache) = (places.clone(), uv.program.clone(), cache.path().to_owned());
            tokio::spawn(async move {
                let (found, said) = ours(&places, &situation, uv, &cache).await;
                let expected = situation.ours.as_ref().unwrap_or(&situation.python_agent);
                (found != *expected).then(|| {
                    format!(
                        "{}\n  expected {expected:?}\n  found    {found:?}\n{said}",
                        situation.name
                    )
                })
            })
        })
        .buffer_unordered(ABREAST)
        .filter_map(|wrong| async { wrong.unwrap() })
        .collect()
        .await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

async fn ours(
    places: &Places,
    situation: &Situation,
    uv: PathBuf,
    cache: &Path,
) -> (Outcome, String) {
    let situation = places.fill_in(situation);
    let home = tempfile::tempdir().unwrap();
    let mut env = places.environment(home.path());
    env.extend(situation.env.clone());
    let config = |key: &str| {
        let key = key.strip_prefix("agent.")?;
        situation.config.get(key).cloned()
    };
    let mut settings = Settings::from_lookup(&config, &env).unwrap();
    settings.cache = cache.to_owned();
    settings.uv_program = Some(uv);
    let root = home.path().join("repository");
    write_files(&situation, &root);
    let said = Arc::new(std::sync::Mutex::new(String::new()));
    let console = Console::new({
        let said = said.clone();
        move |line| said.lock().unwrap().push_str(&format!("  | {line}\n"))
    });
    let found = environment(&situation, &settings, home.path(), &root, &console).await;
    let outcome = match found {
        Ok(output) => Outcome::of(&output),
        Err(error) => {
            console.say(error.to_string());
            Outcome::FAILS
        }
    };
    let said = said.lock().unwrap().clone();
    (outcome, said)
}

/// What the script prints in the environment that is built for it.
async fn environment(
    situation: &Situation,
    settings: &Settings,
    home: &Path,
    root: &Path,
    console: &Console,
) -> Result<String, PythonError> {
    let script: Script = serde_json::from_value(json!({
        "binary": "python3", "entry_point": "main.py", "repository": "https://h/r.git",
        "requirements": situation.requirements,
    }))
    .unwrap();
    let stop = CancellationToken::new();
    let tools = find_tools(&script, settings, console, &stop).await?;
    let folder = home.join("venv");
    let env = create(&tools, &script, &folder, settings, console, &stop).await?;
    let working_dir = root.join(&situation.working_dir);
    let code = Code {
        repository: Some(root),
        working_dir: &working_dir,
        entry_point: "main.py",
    };
    install(&env, &tools, &script, &code, settings, console, &stop).await?;
    let output = Command::new(env.python.unwrap())
        .arg(working_dir.join("main.py"))
        .env_remove("PYTHONPATH")
        .output()
        .unwrap();
    Ok(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn the_readme_says_why_it_is_another_thing() {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"));
    let readme = words(&readme.unwrap());
    for situation in table().situations {
        assert_eq!(
            situation.ours.is_some(),
            situation.why.is_some(),
            "{}",
            situation.name
        );
        assert_ne!(
            situation.ours.as_ref(),
            Some(&situation.python_agent),
            "{}",
            situation.name
        );
        if let Some(why) = &situation.why {
            assert!(readme.contains(&words(why)), "not in README.md: {why}");
        }
    }
}

/// Runs the Python agent that CLEARML_REFERENCE_AGENT names (its environment has virtualenv, too).
/// With CLEARML_TEST_WRITE=1 the table is written anew.
#[test]
#[ignore = "the Python agent takes ten seconds for each situation"]
fn the_python_agent_installs_what_the_table_says() {
    let agent = std::env::var_os("CLEARML_REFERENCE_AGENT")
        .map(PathBuf::from)
        .expect("CLEARML_REFERENCE_AGENT names the Python agent's program");
    let python = agent.with_file_name("python");
    let said = |words: &[&str]| {
        let output = Command::new(&python).args(words).output().unwrap();
        assert!(output.status.success(), "{words:?} {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    // Those that the Python agent installs first.
    let wheels = tempfile::tempdir().unwrap();
    let pip = "pip==22.2.2";
    let folder = wheels.path().to_string_lossy();
    said(&[
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "-d",
        &folder,
        pip,
    ]);
    let wheels = std::fs::read_dir(wheels.path()).unwrap().map(|entry| {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        (name, std::fs::read(entry.path()).unwrap())
    });
    let wheels: Vec<_> = wheels.collect();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let places = runtime.block_on(Places::new(wheels));

    let version = "import importlib.metadata as m; print(m.version('clearml-agent'))";
    let binary = said(&[
        "-c",
        "import sys; print('python%d.%d' % sys.version_info[:2])",
    ]);
    let mut recorded = table();
    recorded.reference = json!({
        "clearml-agent": said(&["-c", version]), "python": binary, "pip": pip,
    })
    .as_object()
    .unwrap()
    .clone();
    let names: Vec<String> = chosen(recorded.situations.clone())
        .into_iter()
        .map(|situation| situation.name)
        .collect();
    let wanted = recorded.situations.iter_mut();
    let wanted = std::sync::Mutex::new(wanted.filter(|situation| names.contains(&situation.name)));
    std::thread::scope(|scope| {
        for _ in 0..ABREAST {
            scope.spawn(|| {
                loop {
                    let Some(situation) = wanted.lock().unwrap().next() else {
                        return;
                    };
                    let (found, output) = theirs(&places, situation, &agent, &binary);
                    println!("{}: {found:?}", situation.name);
                    if found != situation.python_agent {
                        println!("{output}");
                    }
                    situation.python_agent = found;
                }
            });
        }
    });
    if std::env::var("CLEARML_TEST_WRITE").is_ok_and(|value| value == "1") {
        let text = serde_json::to_string_pretty(&recorded).unwrap();
        std::fs::write(situations::file(), text + "\n").unwrap();
    }
    for (recorded, found) in table().situations.iter().zip(&recorded.situations) {
        assert_eq!(recorded.python_agent, found.python_agent, "{}", found.name);
    }
}

fn theirs(places: &Places, situation: &Situation, agent: &Path, binary: &str) -> (Outcome, String) {
    let situation = places.fill_in(situation);
    let world = World::new();
    world.configure(&format!("agent {}", json!(nested(&situation))));
    let repo = common::Repo::new(&[("README", "")]);
    write_files(&situation, repo.path());
    repo.commit(&[]);
    let working_dir = match situation.working_dir.as_str() {
        "" => ".",
        other => other,
    };
    let id = world.api.create(
        "packages",
        json!({"repository": repo.url(), "branch": "main", "entry_point": "main.py",
            "working_dir": working_dir, "binary": binary, "requirements": situation.requirements}),
    );
    let output = Command::new(agent)
        .args(["execute", "--id", &id, "--disable-monitoring"])
        .env_clear()
        .envs(places.environment(world.home.path()))
        .envs(&situation.env)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let stdout = text(&output.stdout);
    (Outcome::of(&stdout), stdout + &text(&output.stderr))
}

/// `{"package_manager.type": "pip"}` as an object in an object.
fn nested(situation: &Situation) -> serde_json::Value {
    let mut all = json!({});
    for (key, value) in &situation.config {
        let pointer = key.split('.').fold(&mut all, |at, part| &mut at[part]);
        *pointer = value.clone();
    }
    all
}
