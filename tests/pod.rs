//! What a pod of Kubernetes is to the agent: a container whose first process it is, with a read-only root,
//! a user that nobody knows, SIGTERM and then SIGKILL, and another pod in its place.
//!
//! Needs Docker: without it, it says so and passes.
#![allow(clippy::unwrap_used)]

#[path = "common/bare_image.rs"]
mod bare_image;
mod common;
#[path = "common/docker.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod docker;
#[path = "common/in_container.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod in_container;

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use common::{Running, World, script, uv_of_the_tests};
use serde_json::json;

/// A manifest of the README.
fn block(number: usize) -> &'static str {
    let readme = include_str!("../README.md");
    let block = readme.split("```yaml\n").nth(number).unwrap();
    block.split_once("```").unwrap().0
}

/// That of a job.
fn manifest() -> &'static str {
    block(1)
}

/// The words between brackets after `key` in the manifest's line that has `marked`.
fn list(marked: &str, key: &str) -> Vec<String> {
    let line = manifest()
        .lines()
        .find(|line| line.contains(marked))
        .unwrap();
    let (_, rest) = line.split_once(key).unwrap();
    let (words, _) = rest
        .trim_start()
        .trim_start_matches('[')
        .split_once(']')
        .unwrap();
    words
        .split(',')
        .map(|word| word.trim().to_owned())
        .collect()
}

/// The variables that the manifest fills from the pod's own fields, and what they might be.
fn fields() -> Vec<(&'static str, &'static str)> {
    let fields = [
        ("K8S_NODE_NAME", "spec.nodeName", "gpu-node-7"),
        ("K8S_POD_NAME", "metadata.name", "train-x7"),
        ("K8S_NAMESPACE", "metadata.namespace", "ml"),
    ];
    fields
        .into_iter()
        .map(|(variable, field, value)| {
            let line = format!(
                "{{ name: {variable}, valueFrom: {{ fieldRef: {{ fieldPath: {field} }} }} }}"
            );
            assert!(manifest().contains(&line), "{line}");
            (variable, value)
        })
        .collect()
}

struct Pod {
    name: String,
    running: Option<Running>,
}

impl Pod {
    fn start(world: &World, task: &str) -> Result<Pod, String> {
        let image = bare_image::image()?;
        let name = format!("clearml-agent-test-{}", uuid::Uuid::new_v4().simple());
        let api = &world.api;
        let command = list("execute, --id", "command:");
        let words = command[1..].iter().map(|word| match word.as_str() {
            "0123456789abcdef0123456789abcdef" => task,
            word => word,
        });
        let mut run = Command::new("docker");
        run.args(["run", "--rm", "--name", &name, "--network", "host"])
            .args(["--read-only", "--user", "12345", "--cap-drop", "ALL"])
            .args([
                "--tmpfs",
                "/home/task:mode=777,exec",
                "-e",
                "HOME=/home/task",
            ])
            .args(["-v", "/usr:/usr:ro"])
            .args([
                "-v",
                &format!("{}:{}:ro", env!("CARGO_BIN_EXE_clearml-agent"), command[0]),
            ])
            .args([
                "-e",
                "CLEARML_AGENT_CLAIM_ID=train",
                "-e",
                "CLEARML_AGENT_GRACE=45",
                // Kubernetes sets that itself.
                "-e",
                "KUBERNETES_SERVICE_HOST=10.0.0.1",
            ])
            .args(
                fields()
                    .iter()
                    .flat_map(|(variable, value)| ["-e".to_owned(), format!("{variable}={value}")]),
            )
            .args(["-e", &format!("CLEARML_API_HOST={}", api.url)])
            .args(["-e", &format!("CLEARML_API_ACCESS_KEY={}", api.access_key)])
            .args(["-e", &format!("CLEARML_API_SECRET_KEY={}", api.secret_key)])
            .args([image, &command[0]])
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let running = Running::new(run.spawn().unwrap());
        Ok(Pod {
            name,
            running: Some(running),
        })
    }

    fn kill(&self, signal: &str) {
        let status = Command::new("docker")
            .args(["kill", "--signal", signal, &self.name])
            .stdout(Stdio::null())
            .status();
        assert!(status.unwrap().success());
    }

    fn prints(&mut self, text: &str) {
        self.running.as_mut().unwrap().line_with(text);
    }

    fn end(mut self) -> common::Ended {
        self.running.take().unwrap().wait()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = Command::new("docker")
            .args(["rm", "--force", "--volumes", &self.name])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

const TRAINING: &str = "\
import os, signal, sys, time
def bye(*_):
    print('checkpoint written', flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, bye)
print('attempt', os.environ['CLEARML_AGENT_ATTEMPT'], 'as', os.getuid(), flush=True)
time.sleep(1000)
";

#[test]
fn a_pod_in_the_place_of_another_goes_on_with_its_task() {
    let world = World::new();
    let task = world.api.create("a pod's", script(TRAINING));
    world.api.enqueue(&task);
    let mut first = match Pod::start(&world, &task) {
        Ok(pod) => pod,
        Err(why) => {
            eprintln!("not tested here: {why}");
            return;
        }
    };
    first.prints("attempt 1 as 12345");
    assert_eq!(
        world.api.task(&task)["runtime"]["clearml_agent_claimant"],
        "train"
    );
    for (key, value) in [
        ("k8s_node_name", "gpu-node-7"),
        ("k8s_pod_name", "train-x7"),
        ("k8s_namespace", "ml"),
    ] {
        common::eventually(&format!("the runtime has {key}"), || {
            world.api.task(&task)["runtime"][key] == value
        });
    }
    // The node is gone.
    first.kill("KILL");
    let _ = first.end();
    assert_eq!(world.api.status(&task), "in_progress");

    let mut second = Pod::start(&world, &task).unwrap();
    second.prints("attempt 2 as 12345");
    // The pod is to end.
    second.kill("TERM");
    second.end().exits(143).prints("checkpoint written");
    assert_eq!(world.api.status(&task), "stopped");
    assert!(world.api.log(&task).contains("checkpoint written"));

    let third = Pod::start(&world, &task).unwrap();
    third.end().exits(67).complains("has ended already");
}

/// The script that the glue makes for a pod, as far as it has to do with the agent: Python is looked for
/// unless `LOCAL_PYTHON` says which it is, the agent installed into it unless `CLEARML_AGENT_NO_UPDATE`
/// says that it is there, and then started as a module.
fn script_of_the_glue(task: &str) -> String {
    [
        "#!/bin/bash",
        r#"[ ! -z "$CLEARML_AGENT_SKIP_CONTAINER_APT" ] || exit 90"#,
        "declare LOCAL_PYTHON",
        "[ ! -z $LOCAL_PYTHON ] || exit 91",
        "[ ! -z $LOCAL_PYTHON ] || export LOCAL_PYTHON=python3",
        "[ ! -z $CLEARML_AGENT_NO_UPDATE ] || $LOCAL_PYTHON -m pip --version > /dev/null || exit 92",
        "rm -f /usr/lib/python3.*/EXTERNALLY-MANAGED",
        "",
        "[ ! -z $CLEARML_AGENT_NO_UPDATE ] || $LOCAL_PYTHON -m pip install clearml-agent",
        "",
        &format!(
            "$LOCAL_PYTHON -m clearml_agent execute --full-monitoring --require-queue --id {task}"
        ),
    ]
    .join("\n")
}

#[test]
fn the_kubernetes_glues_own_pod_runs_this_agent() {
    if !in_container::engine() {
        return;
    }
    let world = World::new();
    let text = "import os, sys\nprint('ran in', os.environ['HOSTNAME'], flush=True)\nsys.exit(3)\n";
    let task = world.api.create("a glue's", script(text));
    world.api.call(
        "tasks.enqueue",
        json!({"task": task, "queue_name": "k8s_scheduler"}),
    );
    let read = |name: &str| std::fs::read_to_string(world.path(name)).unwrap();
    // The glue writes the agent's configuration into the pod, and what it knows of git and packages below.
    let conf = read("clearml.conf")
        + "\nagent.package_manager.system_site_packages: true\nagent.git_user: \"someone\"\n";
    let command = format!(
        "echo '{}' | base64 --decode >> ~/clearml.conf ; echo '{}' | base64 --decode >> ~/__start_agent__.sh ; \
         /bin/bash ~/__start_agent__.sh ; exit 0",
        BASE64_STANDARD.encode(conf),
        BASE64_STANDARD.encode(script_of_the_glue(&task))
    );
    let pod = format!("clearml-id-{task}");
    let mut run = Command::new("docker");
    run.args(["run", "--rm", "--name", &pod, "--hostname", &pod])
        .args(["--label", &docker::label(), "--network", "host"])
        .args(["-e", "KUBERNETES_SERVICE_HOST=10.0.0.1"])
        .args(["-e", &format!("HOSTNAME={pod}")])
        .args(["-e", &format!("CLEARML_WORKER_ID=glue:{task}")]);
    // What the README's pod template adds.
    for line in block(2).lines().filter(|line| line.contains("value: ")) {
        let Some((name, value)) = line
            .trim()
            .strip_prefix("- { name: ")
            .and_then(|rest| rest.trim_end_matches(" }").split_once(", value: "))
        else {
            continue;
        };
        run.args(["-e", &format!("{name}={}", value.trim_matches('"'))]);
    }
    let agent = env!("CARGO_BIN_EXE_clearml-agent");
    run.args(["-v", &format!("{agent}:/agent/clearml-agent:ro")]);
    if let Some(uv) = uv_of_the_tests() {
        run.args(["-v", &format!("{}:/agent/uv:ro", uv.display())]);
    }
    if let Ok(bundle) = std::env::var("SSL_CERT_FILE") {
        run.args(["-v", &format!("{bundle}:{bundle}:ro")])
            .args(["-e", &format!("SSL_CERT_FILE={bundle}")]);
    }
    run.args([in_container::PYTHON_IMAGE, "/bin/bash", "-c", &command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Running::new(run.spawn().unwrap())
        .wait()
        .exits(0)
        .prints(&format!("ran in {pod}"));

    let ended = world.api.task(&task);
    assert_eq!(ended["status"], "failed");
    assert_eq!(ended["status_reason"], "worker execution exit code 3");
    assert_eq!(ended["last_worker"], format!("glue:{task}"));
    let runtime = &ended["runtime"];
    assert_eq!(runtime["_exec_agent_hostname"], pod.as_str());
    assert_eq!(runtime["k8s_pod_name"], pod.as_str());
    assert_eq!(runtime["clearml_agent_claimant"], format!("pod:{pod}"));
    // The set-up, too.
    let log = world.api.log(&task);
    assert!(log.contains("Environment setup completed"), "{log}");
}

/// What the README says of exit codes is what its pod failure policy does.
#[test]
fn the_failure_policy_is_the_exit_code_table() {
    let readme = include_str!("../README.md");
    let (_, table) = readme.split_once("### Exit codes").unwrap();
    let (table, _) = table.split_once("\n###").unwrap();
    let pointless: BTreeSet<String> = table
        .lines()
        .filter(|line| line.starts_with('|'))
        .filter_map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let (code, again) = (cells[1], cells[3]);
            code.parse::<u8>().ok()?;
            // A place that cannot be written may be another node's to write.
            (again.starts_with("no") && code != "73").then(|| code.to_owned())
        })
        .collect();
    let policy: BTreeSet<String> = list("operator: In", "values:").into_iter().collect();
    assert_eq!(policy, pointless);
}
