//! Runs in containers, with the real engine: what goes in, what comes out, what stays.

#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/docker.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod docker;
#[path = "common/in_container.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod in_container;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use clearml_agent::server::{RunningServer, ServerOptions};
use common::{Api, Repo, World, script};
use docker::docker;
use in_container::{Image, PYTHON_IMAGE, containers_of, engine, start, world, world_with};
use serde_json::{Value, json};

#[test]
fn a_task_runs_in_a_container() {
    if !engine() {
        return;
    }
    let world = world();
    let repo = Repo::new(&[(
        "jobs/train.py",
        "import os, sys, six\nprint('container', os.path.exists('/.dockerenv'), six.__version__, sys.argv[1:])\n",
    )]);
    let bundle = repo.path().join(".git");
    let id = world.api.create(
        "in a container",
        json!({"repository": "/code.git", "branch": "main", "working_dir": "jobs",
               "entry_point": "train.py --epochs 3", "binary": "python3",
               "requirements": {"pip": "six==1.16.0\n"}}),
    );
    let result = world.path("result.json");
    let mount = format!("{PYTHON_IMAGE} -v {}:/code.git:ro", bundle.display());
    world
        .execute(
            &id,
            &["--docker", &mount, "--result", result.to_str().unwrap()],
        )
        .exits(0)
        .prints("container True 1.16.0 ['--epochs', '3']")
        .prints("Process completed successfully");

    let task = world.api.task(&id);
    assert_eq!(task["status"], "completed");
    assert_eq!(task["status_reason"], "worker execution done");
    let commit = repo.git(&["rev-parse", "HEAD"]);
    assert_eq!(task["script"]["version_num"], commit.trim());
    let installed = task["script"]["requirements"]["pip"].to_string();
    assert!(installed.contains("six==1.16.0"), "{installed}");
    // All of it is the log, as with the Python agent.
    let log = world.api.log(&id);
    for line in [
        "Running Task",
        "Environment setup completed successfully",
        "container True",
    ] {
        assert!(log.contains(line), "no {line:?} in:\n{log}");
    }
    assert!(log.ends_with("Process completed successfully\n"), "{log}");
    let result: Value = serde_json::from_slice(&std::fs::read(result).unwrap()).unwrap();
    assert_eq!(result["reason"], "completed");
    assert_eq!(result["script"]["exit_code"], 0);
    assert!(
        result["versions"]["python"]
            .as_str()
            .unwrap()
            .starts_with("3.11")
    );
    assert_eq!(result["versions"]["commit"], commit.trim());
    assert!(result["times"]["script_started"].is_string(), "{result}");
    assert!(containers_of(&id).is_empty());
}

#[test]
fn the_scripts_end_comes_out_unchanged() {
    if !engine() {
        return;
    }
    let world = world();
    let killed = "import os, signal\nprint('last words', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n";
    for (text, code, status, reason) in [
        (
            "raise SystemExit(7)\n",
            7,
            "failed",
            "worker execution exit code 7",
        ),
        (
            "raise SystemExit(125)\n",
            125,
            "failed",
            "worker execution exit code 125",
        ),
        (killed, 137, "failed", "worker execution exit code -9"),
    ] {
        let id = world.api.create("ends", script(text));
        world.execute(&id, &["--docker", PYTHON_IMAGE]).exits(code);
        assert_eq!(world.api.status(&id), status);
        let said = world.api.reason(&id);
        assert!(said.starts_with(reason), "{said}");
        assert!(!said.contains("out of memory"), "{said}");
    }
}

#[test]
fn what_fails_inside_has_its_own_reason() {
    if !engine() {
        return;
    }
    let world = world();
    let no_package = json!({"entry_point": "a.py", "working_dir": ".", "diff": "print(1)\n", "binary": "python3",
        "requirements": {"pip": "no-such-package-of-anybody==9.9\n"}});
    let no_code = json!({"repository": "/nowhere.git", "branch": "main", "entry_point": "a.py", "working_dir": "."});
    for (section, code, reason) in [
        (no_package, 72, "env_failed"),
        (no_code, 66, "checkout_failed"),
    ] {
        let id = world.api.create("fails", section);
        let result = world.path("result.json");
        world
            .execute(
                &id,
                &[
                    "--docker",
                    PYTHON_IMAGE,
                    "--result",
                    result.to_str().unwrap(),
                ],
            )
            .exits(code);
        assert_eq!(world.api.status(&id), "failed");
        let result: Value = serde_json::from_slice(&std::fs::read(result).unwrap()).unwrap();
        assert_eq!(result["reason"], reason);
        assert_eq!(result["status"], "failed");
        assert!(containers_of(&id).is_empty());
    }
}

#[test]
fn an_api_server_that_is_not_there_inside_is_said() {
    if !engine() {
        return;
    }
    let world = world();
    world.configure("agent.extra_docker_arguments: [\"--network=none\"]");
    let id = world.api.create("no server", script("print('never')\n"));
    world
        .execute(&id, &["--docker", PYTHON_IMAGE])
        .exits(69)
        .complains("--network host");
    assert_eq!(world.api.status(&id), "failed");
}

#[test]
fn set_up_scripts_run_in_order_and_what_they_export_stays() {
    if !engine() {
        return;
    }
    let world = world_with(
        "agent.extra_docker_shell_script: [\"export FIRST=of-the-agent\", \"false\", \"echo set-up of {python_single_digit}\"]",
    );
    let id = world.api.create(
        "set-up",
        script("import os\nprint('got', os.environ['FIRST'], os.environ['SECOND'])\n"),
    );
    let setup =
        "# a comment\nexport SECOND=\"$FIRST-and-task\"\nif true; then\n  echo inside if\nfi\n";
    world.api.call(
        "tasks.edit",
        json!({"task": id, "force": true, "container": {"image": PYTHON_IMAGE, "arguments": "", "setup_shell_script": setup}}),
    );
    world
        .execute(&id, &["--docker"])
        .exits(0)
        .prints("set-up of python3")
        .prints("inside if")
        .prints("got of-the-agent of-the-agent-and-task");

    let id = world.api.create("set-up ends", script("print('never')\n"));
    world.api.call(
        "tasks.edit",
        json!({"task": id, "force": true, "container": {"image": PYTHON_IMAGE, "arguments": "", "setup_shell_script": "echo no; exit 3"}}),
    );
    let ended = world.execute(&id, &["--docker"]).exits(72);
    assert!(!ended.stdout.contains("never"), "{}", ended.stdout);
    let reason = world.api.reason(&id);
    assert!(reason.contains("exit code 3"), "{reason}");
}

#[test]
fn secrets_are_seen_by_the_containers_user_alone() {
    if !engine() {
        return;
    }
    let secret = "hunter2-of-git";
    let mut world = world_with("agent.git_user: someone");
    world
        .env
        .insert("CLEARML_AGENT_GIT_PASS".into(), secret.into());
    let gate = tempfile::tempdir().unwrap();
    let text = "\
import os, stat, time
for name in ['/.clearml-agent/private', '/.clearml-agent/private/clearml.conf', os.environ['CLEARML_CONFIG_FILE']]:
    print('mode', oct(stat.S_IMODE(os.stat(name).st_mode)), os.stat(name).st_uid)
print('handover', os.path.exists('/.clearml-agent/private/handover.json'))
print('for the agent', 'hunter2' in open('/.clearml-agent/private/clearml.conf').read())
print('for the script', 'hunter2' in open(os.environ['CLEARML_CONFIG_FILE']).read() + str(os.environ))
print('ready', flush=True)
while not os.path.exists('/gate/open'):
    time.sleep(0.01)
";
    let id = world.api.create("secrets", script(text));
    let mount = format!("{PYTHON_IMAGE} -v {}:/gate", gate.path().display());
    let mut running = world.start_execute(&id, &["--docker", &mount]);
    running.line_with("ready");
    let [container] = containers_of(&id).try_into().unwrap();
    let inspect = docker(&["inspect", container.as_str()]).unwrap();
    let top = docker(&["top", container.as_str(), "-eo", "pid,args"]).unwrap();
    let logs = docker(&["logs", container.as_str()]).unwrap();
    for (place, text) in [("inspect", &inspect), ("top", &top), ("logs", &logs)] {
        assert!(!text.contains(secret), "{place}: {text}");
        assert!(!text.contains(&world.api.secret_key), "{place}: {text}");
    }
    assert!(top.contains("--inside"), "{top}");
    std::fs::write(gate.path().join("open"), "").unwrap();
    let ended = running
        .wait()
        .exits(0)
        .prints("mode 0o700 0\nmode 0o600 0\nmode 0o600 0\n")
        .prints("handover False\n")
        .prints("for the agent True\n")
        .prints("for the script False\n");
    assert!(!ended.stdout.contains(secret));
    assert!(!world.api.log(&id).contains(secret));
}

#[test]
fn files_belong_to_the_user_who_is_asked_for() {
    if !engine() {
        return;
    }
    let image = Image::of(
        PYTHON_IMAGE,
        "with-user",
        "useradd --uid 1234 --create-home app",
        &["USER app"],
    );
    let mut world = world();
    let out = tempfile::tempdir().unwrap();
    std::fs::set_permissions(out.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let text = "import os\nopen('/out/' + str(os.getuid()), 'w')\nprint('i am', os.getuid(), os.getgid(), os.environ['HOME'])\n";
    let mount = format!("-v {}:/out", out.path().display());
    for (arguments, exec_user, says, uid) in [
        ("", None, "i am 1234 1234 /home/app", 1234),
        ("--user 4321:4321", None, "i am 4321 4321 /", 4321),
        ("", Some("4322:4322"), "i am 4322 4322 /", 4322),
    ] {
        world.env.remove("CLEARML_AGENT_EXEC_USER");
        if let Some(user) = exec_user {
            world
                .env
                .insert("CLEARML_AGENT_EXEC_USER".into(), user.into());
        }
        let id = world.api.create("owner", script(text));
        world
            .execute(
                &id,
                &["--docker", &format!("{} {mount} {arguments}", image.0)],
            )
            .exits(0)
            .prints(says);
        let owner = std::fs::metadata(out.path().join(uid.to_string()))
            .unwrap()
            .uid();
        assert_eq!(owner, uid);
    }
    let id = world.api.create("nobody", script(text));
    world
        .execute(&id, &["--docker", &format!("{} --user stranger", image.0)])
        .exits(65)
        .complains("knows no user stranger");
    assert_eq!(world.api.status(&id), "failed");
}

#[test]
fn keys_and_git_credentials_are_placed_for_the_user() {
    if !engine() {
        return;
    }
    let world = world();
    let ssh = world.path(".ssh");
    std::fs::create_dir_all(ssh.join("keys")).unwrap();
    std::fs::write(ssh.join("id_ed25519"), "the key\n").unwrap();
    std::fs::write(ssh.join("keys/other"), "another\n").unwrap();
    std::fs::write(world.path(".git-credentials"), "https://u:p@h\n").unwrap();
    let text = "\
import os, stat
for name in ['.ssh/id_ed25519', '.ssh/keys/other', '.git-credentials']:
    path = os.path.expanduser('~/' + name)
    there = os.path.exists(path)
    print(name, there and oct(stat.S_IMODE(os.stat(path).st_mode)))
";
    let id = world.api.create("keys", script(text));
    world
        .execute(&id, &["--docker", PYTHON_IMAGE])
        .exits(0)
        .prints(".ssh/id_ed25519 0o600\n.ssh/keys/other 0o600\n.git-credentials 0o600\n");
    let mut world = world;
    let socket = world.path("agent.sock");
    let _keys = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    world
        .env
        .insert("SSH_AUTH_SOCK".into(), socket.to_str().unwrap().into());
    let asks = "import os, socket\nsocket.socket(socket.AF_UNIX).connect(os.environ['SSH_AUTH_SOCK'])\nprint('there')\n";
    let id = world.api.create("key agent", script(asks));
    world
        .execute(&id, &["--docker", PYTHON_IMAGE])
        .exits(0)
        .prints("there");
    let id = world.api.create("no keys", script(text));
    world
        .env
        .insert("CLEARML_AGENT_DISABLE_SSH_MOUNT".into(), "1".into());
    world
        .execute(&id, &["--docker", PYTHON_IMAGE])
        .exits(0)
        .prints(".ssh/id_ed25519 False\n");
}

#[test]
fn the_container_is_named_labelled_and_recorded() {
    if !engine() {
        return;
    }
    let mut world = world_with(
        "agent.docker_container_name_format: \"run-{task_id}-{kind}-{rand_string:.4}\"\n\
         agent.docker_container_name_format_fields: { kind: \"type\" }",
    );
    world.env.insert(
        "CLEARML_AGENT_EXTRA_DOCKER_LABELS".into(),
        "team=vision".into(),
    );
    world.env.insert("CLEARML_WORKER_ID".into(), "lab:7".into());
    let id = world.api.create(
        "named",
        script("import time\nprint('ready', flush=True)\ntime.sleep(600)\n"),
    );
    let running = start(&world, &id, &[], "ready");
    let [container] = containers_of(&id).try_into().unwrap();
    let inspect: Value = serde_json::from_str(&docker(&["inspect", &container]).unwrap()).unwrap();
    let name = inspect[0]["Name"].as_str().unwrap();
    assert!(name.starts_with(&format!("/run-{id}-training-")), "{name}");
    let labels = &inspect[0]["Config"]["Labels"];
    assert_eq!(labels["team"], "vision");
    assert_eq!(labels["clearml-worker-id"], "lab:7");
    let section = world.api.task(&id)["container"].clone();
    assert_eq!(section["image"], PYTHON_IMAGE);
    running.signal("TERM");
    let _ = running.wait().exits(143);
}

#[test]
fn the_proxies_of_dockers_configuration_reach_the_script() {
    if !engine() {
        return;
    }
    let world = world();
    std::fs::create_dir(world.path(".docker")).unwrap();
    let proxies = json!({"proxies": {"default": {"ftpProxy": "http://proxy.example:3128"}}});
    std::fs::write(world.path(".docker/config.json"), proxies.to_string()).unwrap();
    let id = world.api.create(
        "proxies",
        script("import os\nprint('proxy', os.environ.get('ftp_proxy'))\n"),
    );
    world
        .execute(&id, &["--docker", PYTHON_IMAGE])
        .exits(0)
        .prints("proxy http://proxy.example:3128");
}

#[test]
fn a_read_only_image_runs() {
    if !engine() {
        return;
    }
    let world = world();
    let id = world
        .api
        .create("read-only", script("print('runs all the same')\n"));
    let image = format!("{PYTHON_IMAGE} --read-only --tmpfs /tmp");
    world
        .execute(&id, &["--docker", &image])
        .exits(0)
        .prints("runs all the same");
}

#[test]
fn all_output_arrives_in_order() {
    if !engine() {
        return;
    }
    let world = world();
    let text = "\
import os, sys
for i in range(20000):
    print('out', i)
    if i % 100 == 0:
        sys.stdout.flush()
        print('err', i, file=sys.stderr, flush=True)
sys.stdout.write('no newline at the end')
";
    let id = world.api.create("much", script(text));
    let ended = world.execute(&id, &["--docker", PYTHON_IMAGE]).exits(0);
    let expected: String = (0..20000)
        .map(|i| match i % 100 {
            0 => format!("out {i}\nerr {i}\n"),
            _ => format!("out {i}\n"),
        })
        .collect();
    assert!(ended.stdout.contains(&expected));
    assert!(ended.stdout.contains("no newline at the end"));
    assert!(world.api.log(&id).contains("no newline at the end"));
}

/// The first of `count` ports in a row that nobody has.
fn free_ports(count: u16) -> u16 {
    let first = 20_000 + u16::try_from(std::process::id() % 100).unwrap() * 100;
    let is_free = |port: u16| std::net::TcpListener::bind(("0.0.0.0", port)).is_ok();
    (first..60_000)
        .step_by(usize::from(count))
        .find(|start| (*start..start + count).all(is_free))
        .unwrap()
}

/// A server that containers reach without this machine's network.
fn world_of_the_bridge() -> (World, RunningServer) {
    let label = docker::label();
    let ask = ["run", "--rm", "--label", &label, docker::TINY_IMAGE];
    let ask: Vec<&str> = ask.into_iter().chain(["ip", "route"]).collect();
    let routes = docker(&ask).unwrap();
    let gateway = routes.split("default via ").nth(1).unwrap();
    let gateway = gateway.split_whitespace().next().unwrap();
    let options = ServerOptions {
        listen: "0.0.0.0:0".parse().unwrap(),
        data: None,
        credentials: None,
    };
    let server = docker::block_on(clearml_agent::server::start(options)).unwrap();
    let api = Api {
        url: format!("http://{}:{}", gateway, server.url().port().unwrap()),
        access_key: server.credentials().access_key.clone(),
        secret_key: server.credentials().secret_key.expose().to_owned(),
    };
    let world = World::at(api);
    in_container::share_uv(&world);
    (world, server)
}

#[test]
fn ports_that_are_taken_give_way_and_the_task_is_told() {
    if !engine() {
        return;
    }
    let (mut world, _server) = world_of_the_bridge();
    let first = free_ports(20);
    let allowed = format!("[{first}, {}]", first + 19);
    world.configure(&format!(
        "agent {{ extra_docker_arguments: [\"--label={}\"], docker_args_allowed_port_range: {allowed} }}",
        docker::label()
    ));
    let ip = "192.0.2.7";
    for (name, value) in [
        ("CLEARML_AGENT_FORCE_HOST_MACHINE_IP", ip),
        ("NVIDIA_VISIBLE_DEVICES", ""),
    ] {
        world.env.insert(name.into(), value.into());
    }
    let _listener = std::net::TcpListener::bind(("127.0.0.1", first)).unwrap();
    let text = "\
import os, socket
server = socket.create_server(('', 80))
print('ready at', os.environ['CLEARML_AGENT_HOST_IP'], flush=True)
server.accept()[0].sendall(b'found')
";
    let id = world.api.create("ports", script(text));
    let outside = first + 10;
    let image = format!("{PYTHON_IMAGE} -p {first}:80 -p 82 -p 5000-5001:83-84 -p {outside}:85");
    let mut running = world.start_execute(&id, &["--docker", &image]);
    running.line_with(&format!("ready at {ip}"));
    let runtime = world.api.task(&id)["runtime"].clone();
    let mapping = runtime["_external_host_tcp_port_mapping"].as_str();
    let [two, three, four, five] = [1, 2, 3, 4].map(|more| first + more);
    let expected = format!("{two}:80,{three}:82,{four}-{five}:83-84,{outside}:85");
    assert_eq!(mapping, Some(expected.as_str()));
    let mut found = String::new();
    let mut connection = std::net::TcpStream::connect(("127.0.0.1", two)).unwrap();
    std::io::Read::read_to_string(&mut connection, &mut found).unwrap();
    assert_eq!(found, "found");
    let taken = format!("-p {first}:80 gets port {two} of the machine: that is taken");
    let apart = format!(
        "-p 5000-5001:83-84 gets ports {four} to {five} of the machine: agent.docker_args_allowed_port_range"
    );
    running.wait().exits(0).prints(&taken).prints(&apart);
}
