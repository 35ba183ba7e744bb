//! What containers leave for later ones: that a run can do with nothing else, and that `cache` shows, checks
//! and removes it.

#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/docker.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod docker;
#[path = "common/in_container.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod in_container;
#[path = "common/pythons.rs"]
#[allow(clippy::unwrap_used)]
mod pythons;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use common::{Repo, World, script};
use in_container::{Image, PYTHON_IMAGE, engine, refused, world};
use serde_json::json;

/// A world whose containers share nothing with other tests'.
fn world_apart(more: &str) -> World {
    let world = world();
    let mut arguments = vec![
        "--network=host".to_owned(),
        format!("--label={}", docker::label()),
    ];
    if let Ok(bundle) = std::env::var("SSL_CERT_FILE") {
        arguments.push(format!("--volume={bundle}:{bundle}:ro"));
        arguments.push(format!("--env=SSL_CERT_FILE={bundle}"));
    }
    world.configure(&format!(
        "agent.extra_docker_arguments: {arguments:?}\nagent.docker_cache: {:?}\n\
         agent.venvs_cache.free_space_threshold_gb: 0\n{more}",
        world.path("docker-cache").to_str().unwrap(),
    ));
    world
}

/// The one folder that is like this.
fn only(parent: &Path, is_like: impl Fn(&str) -> bool) -> PathBuf {
    let entries = std::fs::read_dir(parent).unwrap().flatten();
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    let [name] = names
        .filter(|name| is_like(name))
        .collect::<Vec<_>>()
        .try_into()
        .unwrap();
    parent.join(name)
}

#[test]
fn a_run_needs_nothing_but_what_others_left_and_cache_tends_it() {
    if !engine() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("not tested here: only root can remove what root has left in a container");
        return;
    }
    let world = world_apart(
        "agent.docker_force_pull: false\n\
         agent.docker_init_bash_script: [\"echo this one installs\"]\n\
         agent.extra_docker_shell_script: [\"echo this one does not\"]",
    );
    let text = "import os, signal, sys, six\nprint('with six', six.__version__, sys.prefix, flush=True)\n\
                if 'STAYS' in os.environ:\n    signal.pause()\n";
    let repo = Repo::new(&[("train.py", text)]);
    let task = json!({"repository": "/code.git", "branch": "main", "entry_point": "train.py",
        "binary": "python3", "requirements": {"pip": "six==1.16.0\n"}});
    let with_code = format!(
        "{PYTHON_IMAGE} -v {}:/code.git:ro",
        repo.path().join(".git").display()
    );
    let id = world.api.create("first", task.clone());
    world
        .execute(&id, &["--docker", &with_code])
        .exits(0)
        .prints("this one installs")
        .prints("with six 1.16.0");

    // Neither the repository is there, nor a registry that has the image.
    let id = world.api.create("alone", task.clone());
    let alone = format!("{PYTHON_IMAGE} --pull=always");
    let ended = world
        .execute(&id, &["--standalone-mode", "--docker", &alone])
        .exits(0)
        .prints("from the cached mirror")
        .prints("Environment: from the cache (")
        .prints("this one does not")
        .prints("with six 1.16.0");
    assert!(!ended.stdout.contains("this one installs"));
    assert!(!ended.stdout.contains("Pulling"));
    // Nothing is recorded anew.
    let recorded = world.api.task(&id)["script"]["requirements"].clone();
    assert_eq!(recorded, json!({"pip": "six==1.16.0\n"}));

    let listed = world.run(&["cache", "list"]).exits(0);
    let of_image = format!("In containers of {PYTHON_IMAGE}:\n");
    assert!(listed.stdout.contains(&of_image), "{}", listed.stdout);
    assert!(listed.stdout.contains("0 environments in"));
    assert!(listed.stdout.contains("1 environment in"));
    world
        .run(&["cache", "verify"])
        .exits(0)
        .prints(&format!("whole ({PYTHON_IMAGE})"))
        .prints("1 environment, 0 damaged");
    let image = only(&world.path("docker-cache"), |name| {
        name.starts_with("image-")
    });
    let environments = image.join("venvs/_temp.environments");
    let kept = only(&environments, |name| {
        environments.join(name).join("manifest.json").exists()
    });
    let module = kept.join("env/lib/python3.11/site-packages/six.py");
    std::fs::write(&module, "changed = True\n").unwrap();
    // What a container could put there leads nowhere else.
    let victim = world.path("victim");
    let lies = environments.join("abc");
    std::fs::create_dir_all(&victim).unwrap();
    std::fs::create_dir_all(&lies).unwrap();
    let manifest = std::fs::read_to_string(kept.join("manifest.json")).unwrap();
    let key = kept.file_name().unwrap().to_str().unwrap();
    let lie = manifest.replace(key, "../../../../victim");
    std::fs::write(lies.join("manifest.json"), lie).unwrap();
    File::create(lies.join("lock")).unwrap();
    world
        .run(&["cache", "verify", "--remove"])
        .exits(0)
        .prints(&format!("damaged, removed ({PYTHON_IMAGE})"))
        .prints("1 environment, 1 damaged");
    assert!(!kept.exists());

    // As runs leave them that are killed.
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let name = format!("run-t1-{}-abc", &boot[..6]);
    let long_ago = SystemTime::now() - Duration::from_secs(600);
    let left = [
        image.join("runs").join(&name),
        world.path(".clearml/venvs-builds").join(&name),
    ];
    for folder in &left {
        std::fs::create_dir_all(folder.join("venv")).unwrap();
        File::open(folder).unwrap().set_modified(long_ago).unwrap();
    }
    world
        .run(&["cache", "prune", "--all"])
        .exits(0)
        .prints("0 environments, 0 mirrors, ")
        .prints("2 folders of runs that were killed removed, 0 environments kept");
    assert!(!left[0].exists() && !left[1].exists());
    assert!(victim.exists());

    // The containers' mirrors.
    let mirrors = world.path(".clearml/vcs-cache/container-user-0");
    world
        .run(&["cache", "list"])
        .exits(0)
        .prints("Mirrors of repositories in containers:\ncode.")
        .prints(&format!("1 mirror in {}", mirrors.display()));
    let mirror = only(&mirrors, |name| name.ends_with(".git"));
    let lock = only(&mirrors, |name| name.ends_with(".lock"));
    let lock = File::options().write(true).open(lock).unwrap();
    let unused = || {
        let long_ago = SystemTime::now() - Duration::from_secs(90_000);
        lock.set_modified(long_ago).unwrap();
    };
    // Its objects are taken from there: the cache and the run's folder are two mounts.
    let id = world.api.create("stays", task);
    let stays = format!("{with_code} -e STAYS=1");
    let mut running = world.start_execute(&id, &["--docker", &stays]);
    running.line_with("with six");
    // It was used just now.
    world
        .run(&["cache", "prune", "--unused-days", "1"])
        .exits(0)
        .prints(" 0 mirrors, ");
    unused();
    world
        .run(&["cache", "prune", "--unused-days", "1"])
        .exits(0)
        .prints("stays: a run uses it just now");
    running.signal("INT");
    let _ = running.wait().exits(130);
    let pack = only(&mirror.join("objects/pack"), |name| name.ends_with(".pack"));
    std::fs::write(&pack, "cut off").unwrap();
    world
        .run(&["cache", "verify"])
        .exits(70)
        .prints("1 mirror, 1 damaged");
    unused();
    world
        .run(&["cache", "prune", "--unused-days", "1"])
        .exits(0)
        .prints(" 1 mirror, ");
    assert!(!mirror.exists());
}

#[test]
fn what_was_put_into_the_image_is_all_that_is_needed() {
    if !engine() {
        return;
    }
    let builds = "/root/.clearml/venvs-builds/3.11";
    let fill = format!(
        "python3 -m venv --without-pip {builds} && mkdir -p {builds}/task_repository/code.git && \
         echo \"import sys; print('in the image', sys.prefix)\" >{builds}/task_repository/code.git/train.py"
    );
    let image = Image::of(PYTHON_IMAGE, "standalone", &fill, &[]);
    let world = world_apart("agent.docker_force_pull: true");
    let id = world.api.create(
        "in the image",
        json!({"repository": "https://127.0.0.1:9/never/code.git", "branch": "main", "entry_point": "train.py",
               "binary": "python3", "requirements": {"pip": "no-such-package-for-clearml-agent-tests"}}),
    );
    world
        .execute(&id, &["--standalone-mode", "--docker", &image.0])
        .exits(0)
        .prints(&format!("in the image {builds}"));

    let absent = "127.0.0.1:1/absent:1";
    let id = world.api.create("absent", script("print('never')\n"));
    world
        .execute(&id, &["--standalone-mode", "--docker", absent])
        .exits(66)
        .complains("--standalone-mode forbids to pull it");
    // Without it, it is asked for.
    refused(&world, absent, 69, "registry_unreachable").complains("cannot be pulled");
}

#[test]
fn a_python_that_the_image_lacks_is_fetched_once() {
    if !engine() {
        return;
    }
    let world = world_apart("");
    let place = tempfile::tempdir().unwrap();
    let python = pythons::pretender(Path::new("/usr/bin/python3"));
    let list = pythons::offer(place.path(), python.path(), (3, 98, 4), None);
    let image = format!(
        "{PYTHON_IMAGE} -v {place}:{place}:ro -e {}={}",
        pythons::LIST,
        list.display(),
        place = place.path().display(),
    );
    let mut task = script("print('it runs')\n");
    task["binary"] = "python3.98".into();
    for fetched in [true, false] {
        let id = world.api.create("another Python", task.clone());
        let ended = world
            .execute(&id, &["--docker", &image])
            .exits(0)
            .prints("it runs");
        let said = ended.stdout.contains("Fetching Python 3.98 with uv");
        assert_eq!(said, fetched, "{}", ended.stdout);
        assert!(!ended.stdout.contains("which is not on this machine"));
    }
}
