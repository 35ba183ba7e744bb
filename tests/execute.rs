//! The main job: a task runs, its output, status and exit code are true.

mod common;

use common::{Repo, World, eventually, script};
use serde_json::json;

#[test]
fn a_repository_task_runs_to_completed() {
    let world = World::new();
    let repo = Repo::new(&[
        (
            "jobs/train.py",
            "import sys, six, tabulate\nfrom lib import name\n\
             print('args', sys.argv[1:])\nprint('hello from', name.NAME)\n",
        ),
        ("jobs/lib/name.py", "NAME = 'the commit'\n"),
    ]);
    let commit = repo.git(&["rev-parse", "HEAD"]).trim().to_owned();
    let diff = repo.diff(&[("jobs/lib/name.py", "NAME = 'the diff'\n")]);
    repo.commit(&[("jobs/train.py", "raise SystemExit('not this commit')\n")]);
    let id = world.api.create(
        "repository task",
        json!({
            "repository": repo.url(), "branch": "main", "version_num": commit, "diff": diff,
            "working_dir": "jobs", "entry_point": "train.py --epochs 3", "binary": "python3",
            "requirements": {"pip": "six==1.16.0\ntabulate\n", "conda": ""},
        }),
    );

    world
        .execute(&id, &[])
        .exits(0)
        .prints("args ['--epochs', '3']")
        .prints("hello from the diff")
        .prints("Process completed successfully");

    let task = world.api.task(&id);
    assert_eq!(task["status"], "completed");
    assert_eq!(task["status_reason"], "worker execution done");
    let log = world.api.log(&id);
    assert!(
        log.contains("args ['--epochs', '3']\nhello from the diff\n"),
        "{log}"
    );
    assert!(log.ends_with("Process completed successfully\n"), "{log}");
    let requirements = &task["script"]["requirements"];
    let installed: Vec<&str> = requirements["pip"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| line.as_str().unwrap())
        .collect();
    assert!(installed.contains(&"six==1.16.0"), "{installed:?}");
    assert_eq!(requirements["org_pip"], "six==1.16.0\ntabulate\n");
}

#[test]
fn the_commit_is_recorded_where_the_task_had_none() {
    let world = World::new();
    let repo = Repo::new(&[("a.py", "print('a')\n")]);
    let id = world.api.create(
        "branch task",
        json!({"repository": repo.url(), "branch": "main", "entry_point": "a.py", "working_dir": "."}),
    );
    world.execute(&id, &[]).exits(0).prints("a");
    let commit = repo.git(&["rev-parse", "HEAD"]);
    assert_eq!(world.api.task(&id)["script"]["version_num"], commit.trim());
}

#[test]
fn the_scripts_exit_code_is_the_agents() {
    let world = World::new();
    for code in [1, 2, 3, 77, 255] {
        let id = world
            .api
            .create("exit code", script(&format!("raise SystemExit({code})\n")));
        world.execute(&id, &[]).exits(code);
        assert_eq!(world.api.status(&id), "failed");
        assert_eq!(
            world.api.reason(&id),
            format!("worker execution exit code {code}")
        );
        let log = world.api.log(&id);
        assert!(
            log.ends_with(&format!("Process failed, exit code {code}\n")),
            "{log}"
        );
    }
}

#[test]
fn a_script_killed_by_a_signal_is_failed_with_its_name() {
    let world = World::new();
    let text = "import os, signal\nprint('last words', flush=True)\nos.kill(os.getpid(), signal.SIGSEGV)\n";
    let id = world.api.create("signal", script(text));
    world.execute(&id, &[]).exits(139).prints("last words");
    assert_eq!(world.api.status(&id), "failed");
    assert!(world.api.reason(&id).contains("SIGSEGV"));
    assert!(world.api.log(&id).contains("last words"));
}

#[test]
fn a_script_with_no_repository_sees_what_the_sdk_needs() {
    let world = World::new();
    world.configure("agent { git_user: someone, git_pass: \"not for the script\" }");
    let text = "\
import os, sys, stat
for name in ['TASK_ID', 'CONFIG_FILE', 'LOG_LEVEL', 'LOG_TASK_TO_BACKEND']:
    assert os.environ['CLEARML_' + name] == os.environ['TRAINS_' + name], name
    print(name, os.environ['CLEARML_' + name])
config = os.environ['CLEARML_CONFIG_FILE']
print('mode', oct(stat.S_IMODE(os.stat(config).st_mode)))
print('leaks', 'not for the script' in open(config).read() + str(os.environ))
print('optimised', sys.flags.optimize, 'unbuffered', sys.stdout.write_through)
print('cuda', os.environ.get('CUDA_VISIBLE_DEVICES'), os.environ.get('NVIDIA_VISIBLE_DEVICES'))
print('here', os.path.dirname(os.path.abspath('main.py')) in os.environ['PYTHONPATH'].split(':'))
";
    let id = world.api.create("environment", script(text));
    world
        .execute(&id, &["--log-level", "debug", "-O", "-O", "--gpus", "0,1"])
        .exits(0)
        .prints(&format!("TASK_ID {id}\n"))
        .prints("LOG_LEVEL DEBUG\n")
        .prints("LOG_TASK_TO_BACKEND 0\n")
        .prints("mode 0o600\n")
        .prints("leaks False\n")
        .prints("optimised 2 unbuffered True\n")
        .prints("cuda 0,1 0,1\n")
        .prints("here True\n");
}

#[test]
fn a_module_runs_with_its_arguments() {
    let world = World::new();
    let repo = Repo::new(&[
        ("pkg/__init__.py", ""),
        (
            "pkg/train.py",
            "import sys\nprint(__name__, sys.argv[1:])\n",
        ),
    ]);
    let id = world.api.create(
        "module",
        json!({"repository": repo.url(), "branch": "main", "working_dir": ".",
               "entry_point": "-m pkg.train --name 'two words'"}),
    );
    world
        .execute(&id, &[])
        .exits(0)
        .prints("__main__ ['--name', 'two words']");
}

#[test]
fn a_shell_script_runs_without_python() {
    let world = World::new();
    let id = world.api.create(
        "shell",
        json!({"entry_point": "job.sh", "working_dir": ".", "binary": "/bin/bash",
               "diff": "#!/bin/bash\necho \"in bash ${BASH_VERSION:+yes}\"\nexit 4\n"}),
    );
    world.execute(&id, &[]).exits(4).prints("in bash yes");
}

#[test]
fn output_is_on_the_server_while_the_script_runs() {
    let world = World::new();
    let gate = world.path("gate");
    let text = format!(
        "import os, time\nprint('first line', flush=True)\n\
         while not os.path.exists({:?}):\n    time.sleep(0.01)\nprint('second line')\n",
        gate
    );
    let id = world.api.create("live", script(&text));
    let mut running = world.start_execute(&id, &[]);
    running.line_with("first line");
    eventually("the first line is on the server", || {
        world.api.log(&id).contains("first line")
    });
    assert_eq!(world.api.status(&id), "in_progress");
    std::fs::write(gate, "").unwrap();
    running.wait().exits(0).prints("second line");
}

#[test]
fn both_streams_keep_their_order_everywhere_and_the_log_file_stays() {
    let world = World::new();
    let text = "\
import sys
for i in range(500):
    print('out', i, flush=True)
    print('err', i, file=sys.stderr, flush=True)
sys.stdout.write('no newline at the end')
";
    let id = world.api.create("order", script(text));
    let log_file = world.path("task.log");
    let ended = world
        .execute(&id, &["--log-file", log_file.to_str().unwrap()])
        .exits(0);
    let expected: String = (0..500).map(|i| format!("out {i}\nerr {i}\n")).collect();
    for (place, text) in [
        ("terminal", &ended.stdout),
        ("file", &std::fs::read_to_string(&log_file).unwrap()),
        ("server", &world.api.log(&id)),
    ] {
        assert!(text.contains(&expected), "{place}:\n{text}");
        assert!(text.contains("no newline at the end"), "{place}");
        assert!(text.contains("Process completed successfully"), "{place}");
    }
}

#[test]
fn a_clone_runs_and_the_task_stays() {
    let world = World::new();
    let id = world
        .api
        .create("the original", script("print('cloned run')\n"));
    let ended = world
        .execute(&id, &["--clone"])
        .exits(0)
        .prints("cloned run");
    assert_eq!(world.api.status(&id), "created");
    let marker = "new task id=";
    let at = ended.stdout.find(marker).unwrap() + marker.len();
    let copy = ended.stdout[at..].lines().next().unwrap();
    let task = world.api.task(copy);
    assert_eq!(task["name"], "Clone of the original");
    assert_eq!(task["parent"], id.as_str());
    assert_eq!(task["status"], "completed");
}

#[test]
fn monitoring_modes_differ_in_what_the_server_gets() {
    let world = World::new();
    let setup_line = "Environment setup completed successfully";
    for (flags, setup, job) in [
        (&[][..], false, true),
        (&["--full-monitoring"][..], true, true),
        (&["--disable-monitoring"][..], false, false),
    ] {
        let id = world
            .api
            .create("monitoring", script("print('of the job')\n"));
        world
            .execute(&id, flags)
            .exits(0)
            .prints(setup_line)
            .prints("of the job");
        let log = world.api.log(&id);
        assert_eq!(log.contains(setup_line), setup, "{flags:?}: {log}");
        assert_eq!(log.contains("of the job"), job, "{flags:?}: {log}");
        assert_eq!(world.api.status(&id), "completed");
    }
}

#[test]
fn a_status_that_the_script_sets_stays() {
    let world = World::new();
    let text = format!(
        "import base64, json, os, urllib.request as r\n\
         key = base64.b64encode(b'{}:{}').decode()\n\
         def call(name, **body):\n    \
             q = r.Request('{}' + name, json.dumps(body).encode(), {{'Content-Type': 'application/json', 'Authorization': 'Basic ' + key}})\n    \
             r.urlopen(q)\n\
         call('tasks.completed', task=os.environ['CLEARML_TASK_ID'], status_reason='by the script')\n\
         call('tasks.publish', task=os.environ['CLEARML_TASK_ID'])\n",
        world.api.access_key, world.api.secret_key, world.api.url
    );
    let id = world.api.create("own status", script(&text));
    world.execute(&id, &[]).exits(0);
    assert_eq!(world.api.status(&id), "published");
}

#[test]
fn the_tasks_environment_parameters_are_set_where_the_configuration_says() {
    let world = World::new();
    world.configure("agent.enable_task_env: true");
    let id = world.api.create(
        "task env",
        script("import os\nprint('got', os.environ.get('MY_FLAG'))\n"),
    );
    world.api.call(
        "tasks.edit_hyper_params",
        json!({"task": id, "hyperparams": [{"section": "Environment", "name": "MY_FLAG", "value": "on"}]}),
    );
    world.execute(&id, &[]).exits(0).prints("got on");
    world.configure("");
    world.api.call("tasks.reset", json!({"task": id}));
    world.execute(&id, &[]).exits(0).prints("got None");
}

#[test]
fn nothing_of_a_run_stays_on_disk() {
    let world = World::new();
    let id = world.api.create("clean", script("print('x')\n"));
    world.execute(&id, &[]).exits(0);
    let runs = world.path(".clearml/venvs-builds");
    let left: Vec<_> = std::fs::read_dir(runs).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}
