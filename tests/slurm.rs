//! The README's job scripts, as they stand there, on a real Slurm of one node.
//!
//! Needs root, slurm-wlm and munge: without them it says so and passes.
#![allow(clippy::unwrap_used)]

#[path = "common/apptainer.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod apptainer;
mod common;
#[path = "common/nvml.rs"]
mod nvml;
#[path = "common/slurm.rs"]
mod slurm;

use std::path::PathBuf;

use common::{World, eventually, eventually_or, script};
use nvml::Driver;
use serde_json::json;
use slurm::Slurm;

/// A Slurm, a server, and the agent on PATH.
struct Site {
    slurm: Slurm,
    world: World,
    /// What comes before all else on the jobs' PATH, and more of their environment.
    path: String,
    more: Vec<(&'static str, String)>,
}

impl Site {
    fn new() -> Option<Site> {
        match Slurm::start() {
            Ok(slurm) => Some(Site {
                slurm,
                world: World::new(),
                path: String::new(),
                more: Vec::new(),
            }),
            Err(why) => {
                eprintln!("not tested here: {why}");
                None
            }
        }
    }

    fn queued(&self, text: &str) -> String {
        let id = self.world.api.create("a job's", script(text));
        self.world.api.enqueue(&id);
        id
    }

    /// Submits a job script of the README, the `number`th of its bash blocks; gives the job's id.
    fn submit(&self, number: usize, task: &str, words: &[&str]) -> String {
        self.submit_with(number, task, words, &[])
    }

    fn submit_with(
        &self,
        number: usize,
        task: &str,
        words: &[&str],
        env: &[(&str, String)],
    ) -> String {
        let readme = include_str!("../README.md");
        let block = readme.split("```bash\n").nth(number).unwrap();
        let (block, _) = block.split_once("```").unwrap();
        let file = self.world.path(&format!("{}.sh", uuid::Uuid::new_v4()));
        std::fs::write(&file, block).unwrap();
        let bin = PathBuf::from(env!("CARGO_BIN_EXE_clearml-agent"));
        let path = format!(
            "{}{}:{}:/usr/sbin",
            self.path,
            bin.parent().unwrap().display(),
            std::env::var("PATH").unwrap()
        );
        let mut submit = self.slurm.command("sbatch");
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CLEARML_") {
                submit.env_remove(name);
            }
        }
        let output = submit
            .args(["--parsable", "--export=ALL", "--mem=0"])
            .arg(format!(
                "--output={}/job-%j.log",
                self.world.home.path().display()
            ))
            .args(words)
            .arg(file)
            .current_dir(self.world.home.path())
            .env("PATH", path)
            .envs(self.more.iter().cloned())
            .env("HOME", self.world.home.path())
            .env("TASK_ID", task)
            .envs(env.iter().map(|(name, value)| (name, value)))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn output(&self, job: &str) -> String {
        std::fs::read_to_string(self.world.path(&format!("job-{job}.log"))).unwrap_or_default()
    }

    /// What the job has printed, and how it stands.
    fn found(&self, job: &str) -> String {
        let state = self.slurm.ask(&["scontrol", "-o", "show", "job", job]);
        format!("{}\n{state}", self.output(job))
    }

    fn prints(&self, job: &str, text: &str) {
        let prints = || self.output(job).contains(text);
        eventually_or(&format!("job {job} prints {text:?}"), prints, || {
            self.found(job)
        });
    }

    /// Waits for the job's end; its exit code.
    fn ends(&self, job: &str) -> String {
        let has_ended = || {
            let state = self.slurm.field(job, "JobState");
            ["COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED"].contains(&state.as_str())
        };
        eventually_or(&format!("job {job} has ended"), has_ended, || {
            self.found(job)
        });
        self.slurm.field(job, "ExitCode")
    }

    /// A job that was put back waits for two minutes by itself. In the second in which it ended, the node
    /// takes a new start for the old one.
    fn start_now(&self, job: &str) {
        eventually(&format!("job {job} waits"), || {
            self.slurm.field(job, "JobState") == "PENDING"
        });
        let job = format!("jobid={job}");
        self.slurm
            .ask(&["scontrol", "update", &job, "starttime=now+2"]);
    }

    fn has_status(&self, task: &str, status: &str) {
        let has = || self.world.api.status(task) == status;
        let found = || {
            let task = self.world.api.task(task);
            format!("{}: {}", task["status"], task["status_reason"])
        };
        eventually_or(&format!("{task} is {status}"), has, found);
    }
}

/// The blocks of the README.
const TASK: usize = 1;
const ARRAY: usize = 2;
const RANKS: usize = 3;
const DRAIN: usize = 4;
const APPTAINER: usize = 5;

const SLEEPER: &str = "\
import os, signal, sys, time
def bye(*_):
    print('checkpoint written', flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, bye)
print('attempt', os.environ['CLEARML_AGENT_ATTEMPT'], flush=True)
if os.environ['CLEARML_AGENT_ATTEMPT'] == '1': time.sleep(1000)
";

#[test]
fn a_jobs_life() {
    let Some(site) = Site::new() else { return };

    // Its script's end is the job's.
    let task = site.queued("print('ran'); raise SystemExit(7)");
    let job = site.submit(TASK, &task, &[]);
    assert_eq!(site.ends(&job), "7:0", "{}", site.output(&job));
    assert_eq!(site.world.api.status(&task), "failed");

    // Cancelled: the script hears of it, and the task is not left running. It is kept for a requeue
    // that does not come, as the job script says.
    let task = site.queued(SLEEPER);
    let job = site.submit(TASK, &task, &[]);
    site.prints(&job, "attempt 1");
    site.slurm.ask(&["scontrol", "requeue", &job]);
    site.prints(&job, "checkpoint written");
    site.prints(
        &job,
        &format!("Slurm job {job} was asked to end (SIGTERM), the task is kept"),
    );
    site.start_now(&job);
    site.prints(&job, "attempt 2");
    assert_eq!(site.ends(&job), "0:0", "{}", site.output(&job));
    assert_eq!(site.world.api.status(&task), "completed");

    // Started once more, it has nothing to do.
    let again = site.submit(TASK, &task, &[]);
    assert_eq!(site.ends(&again), "0:0");
    assert!(site.output(&again).contains("has ended already"));

    // A job of a higher priority takes the node; the first goes on when it is done.
    let task = site.queued(SLEEPER);
    let low = site.submit(TASK, &task, &["--partition=low", "--exclusive"]);
    site.prints(&low, "attempt 1");
    let quick = site.queued("print('quick')");
    let high = site.submit(TASK, &quick, &["--partition=high", "--exclusive"]);
    assert_eq!(site.ends(&high), "0:0", "{}", site.output(&high));
    site.start_now(&low);
    site.prints(&low, "attempt 2");
    assert_eq!(site.ends(&low), "0:0", "{}", site.output(&low));
    for task in [&task, &quick] {
        site.has_status(task, "completed");
    }
}

#[test]
fn a_cancelled_job_leaves_no_task_running() {
    let Some(site) = Site::new() else { return };
    // One that hears nothing is killed early enough for the status to be written.
    let deaf = "\
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('attempt', os.environ['CLEARML_AGENT_ATTEMPT'], flush=True)
time.sleep(1000)
";
    for text in [SLEEPER, deaf] {
        let task = site.queued(text);
        // Stopped, where nothing else is said.
        let job = site.submit(DRAIN, &task, &[]);
        site.prints(&job, "attempt 1");
        site.slurm.ask(&["scancel", "--full", &job]);
        site.has_status(&task, "stopped");
        let reason = site.world.api.reason(&task);
        assert!(
            reason.starts_with(&format!("preempted: Slurm job {job} was asked to end")),
            "{reason}"
        );
        let said = match text == SLEEPER {
            true => "checkpoint written",
            false => "SIGTERM, and SIGKILL before Slurm sends it (KillWait, or the job's end)",
        };
        site.prints(&job, said);
    }
    // Whoever aborts the task does not wait for the job's end.
    let task = site.queued(deaf);
    let job = site.submit(DRAIN, &task, &["--time=40"]);
    site.prints(&job, "attempt 1");
    site.world.api.call("tasks.stop", json!({"task": task}));
    site.has_status(&task, "stopped");
    site.prints(&job, "if it still runs after most of Slurm's KillWait");
    site.ends(&job);
    // Nor is it kept for a job that does not come back.
    let task = site.queued(SLEEPER);
    let job = site.submit(TASK, &task, &[]);
    site.prints(&job, "attempt 1");
    site.slurm.ask(&["scancel", "--full", &job]);
    site.has_status(&task, "stopped");
}

#[test]
fn a_job_in_an_apptainer_container() {
    let Some(mut site) = Site::new() else { return };
    let image = match apptainer::image() {
        Ok(image) => image,
        Err(why) => return eprintln!("not tested here: {why}"),
    };
    if let Some(folder) = apptainer::stand_in() {
        // A site's module would do the same.
        site.path = format!("{}:", folder.display());
    }
    site.more = vec![("IMAGE", image.display().to_string())];
    // Slurm's signals reach the agent outside, Apptainer, the one inside and the script; the script is told
    // once more by the agent alone, and has its time.
    let slow = SLEEPER.replace(
        "    print('checkpoint",
        "    time.sleep(1)\n    print('checkpoint",
    );
    let task = site.queued(&slow);
    let job = site.submit(APPTAINER, &task, &[]);
    site.prints(&job, "attempt 1");
    site.slurm.ask(&["scontrol", "requeue", &job]);
    site.prints(&job, "checkpoint written");
    site.start_now(&job);
    site.prints(&job, "attempt 2");
    assert_eq!(site.ends(&job), "0:0", "{}", site.output(&job));
    site.has_status(&task, "completed");
    let said = site.output(&job);
    assert!(!said.contains("SIGKILL at once"), "{said}");
}

#[test]
fn a_job_that_comes_to_its_time_limit() {
    let Some(site) = Site::new() else { return };
    // Slurm looks for such jobs twice a minute.
    let task = site.queued(SLEEPER);
    let limited = site.submit(TASK, &task, &["--time=1", "--mem=1"]);
    site.prints(&limited, "attempt 1");
    let end = ["scontrol", "update", "endtime=now"];
    site.slurm
        .ask(&[&end[..], &[&format!("jobid={limited}")]].concat());

    // Meanwhile: one that is told of its end some time before has that time, not only what is between
    // Slurm's two signals.
    let slow = SLEEPER.replace(
        "    print('checkpoint",
        &format!(
            "    time.sleep({})\n    print('checkpoint",
            slurm::KILL_WAIT
        ),
    );
    let told = site.queued(&slow);
    let job = site.submit(TASK, &told, &["--time=1", "--mem=1"]);
    site.prints(&job, "attempt 1");
    site.slurm
        .ask(&["scancel", "--signal=TERM", "--batch", &job]);
    site.prints(&job, "checkpoint written");
    // Nobody puts the job back, so the task is not left in progress; but if somebody does, it goes on.
    assert_eq!(site.ends(&job), "143:0", "{}", site.output(&job));
    site.has_status(&told, "stopped");
    site.slurm.ask(&["scontrol", "requeue", &job]);
    site.start_now(&job);
    site.prints(&job, "attempt 2");
    assert_eq!(site.ends(&job), "0:0", "{}", site.output(&job));
    site.has_status(&told, "completed");

    site.has_status(&task, "stopped");
    assert_eq!(
        site.world.api.reason(&task),
        format!("preempted: Slurm job {limited} has come to its time limit")
    );
    site.prints(&limited, "checkpoint written");
    site.ends(&limited);
    assert_eq!(site.slurm.field(&limited, "JobState"), "TIMEOUT");
}

#[test]
fn a_node_whose_gpus_are_not_well_is_drained_and_the_job_goes_elsewhere() {
    let Some(site) = Site::new() else { return };
    let driver = Driver::new("gpu 0 total=81920 used=100 remapfail=1\n");
    site.world
        .configure("agent.gpu_health_check: refuse\nagent.cuda_version: 0");
    let task = site.queued("print('ran')");
    let job = site.submit_with(DRAIN, &task, &[], &driver.env());
    let node = || site.slurm.ask(&["scontrol", "-o", "show", "node"]);
    eventually("the node is drained", || node().contains("+DRAIN"));
    assert!(
        node().contains("Reason=clearml-agent: GPU health"),
        "{}",
        node()
    );
    site.prints(&job, "a memory row could not be replaced");
    eventually(&format!("job {job} waits"), || {
        site.slurm.field(&job, "JobState") == "PENDING"
    });
    assert_eq!(site.world.api.status(&task), "queued");

    // The device is exchanged.
    driver.says("gpu 0 total=81920 used=100\n");
    let name = format!(
        "nodename={}",
        site.slurm
            .ask(&["sinfo", "-h", "-o", "%n"])
            .lines()
            .next()
            .unwrap()
    );
    site.slurm
        .ask(&["scontrol", "update", &name, "state=resume"]);
    site.start_now(&job);
    assert_eq!(site.ends(&job), "0:0", "{}", site.output(&job));
    site.has_status(&task, "completed");
}

#[test]
fn an_array_runs_each_task_once() {
    let Some(site) = Site::new() else { return };
    let tasks: Vec<String> = (1..=20)
        .map(|n| site.queued(&format!("print('number {n}')")))
        .collect();
    std::fs::write(site.world.path("tasks.txt"), tasks.join("\n")).unwrap();
    site.submit(ARRAY, "", &[]);
    for (task, n) in tasks.iter().zip(1..) {
        site.has_status(task, "completed");
        let log = site.world.api.log(task);
        assert_eq!(log.matches(&format!("number {n}\n")).count(), 1, "{log}");
    }
}

#[test]
fn several_ranks_run_one_task() {
    let Some(site) = Site::new() else { return };
    let text =
        "import os\nprint('rank', os.environ['SLURM_PROCID'], 'of', os.environ['SLURM_NTASKS'])\n";
    let task = site.queued(text);
    let job = site.submit(RANKS, &task, &[]);
    assert_eq!(site.ends(&job), "0:0", "{}", site.output(&job));
    assert_eq!(site.world.api.status(&task), "completed");
    for rank in 0..4 {
        assert!(site.output(&job).contains(&format!("rank {rank} of 4")));
    }

    // One that fails ends all.
    let text = "import os, sys, time\nif os.environ['SLURM_PROCID'] == '2': sys.exit(5)\ntime.sleep(1000)\n";
    let task = site.queued(text);
    let job = site.submit(RANKS, &task, &[]);
    assert_ne!(site.ends(&job), "0:0");
    assert_eq!(site.world.api.status(&task), "failed");
    let reason = site.world.api.reason(&task);
    assert_eq!(reason, "rank 2 failed: worker execution exit code 5");
}

/// Nobody waits for a first rank that is gone.
#[test]
fn a_first_rank_that_dies_before_it_has_the_task_ends_the_job() {
    let Some(mut site) = Site::new() else { return };
    let bin = tempfile::tempdir().unwrap();
    let agent = bin.path().join("clearml-agent");
    let text = format!(
        "#!/bin/sh\nif [ \"$SLURM_PROCID\" = 0 ]; then exit 70; fi\nexec {} \"$@\"\n",
        env!("CARGO_BIN_EXE_clearml-agent")
    );
    std::fs::write(&agent, text).unwrap();
    let may_be_run = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&agent, may_be_run).unwrap();
    site.path = format!("{}:", bin.path().display());
    let task = site.queued("print('ran')");
    let job = site.submit(RANKS, &task, &[]);
    assert_ne!(site.ends(&job), "0:0");
    assert_eq!(site.world.api.status(&task), "queued");
}
