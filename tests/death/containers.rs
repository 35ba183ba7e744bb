//! The same in a container.

use std::process::Command;

use crate::bare_image::image;
use crate::{skip, told};

fn in_a_container(arguments: &[&str], job: &str) -> Result<String, String> {
    let image = image()?;
    let exe = std::env::current_exe().unwrap();
    let output = Command::new("docker")
        .args(["run", "--rm", "--network", "none", "-v", "/usr:/usr:ro"])
        .args(["-v", &format!("{}:/agent:ro", exe.display())])
        .args(["-e", "ROLE=role_agent", "-e", &format!("ROLE_JOB={job}")])
        .args(arguments)
        .args([image, "/agent", "--exact", "role_agent", "--nocapture"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    Ok(text)
}

#[test]
fn a_job_that_the_kernel_kills_at_a_containers_limit() {
    let limits = ["--memory", "64m", "--memory-swap", "64m"];
    for (job, expected) in [
        ("eat", "oom_killed: killed by the kernel for want of memory"),
        (
            "launch",
            "oom_killed: a process of the job was killed by the kernel for want of memory",
        ),
    ] {
        let output = match in_a_container(&limits, job) {
            Ok(output) => output,
            Err(why) => return skip(&why),
        };
        let reason = told(&output, "reason");
        let limit = "the memory limit of the container was reached, 64 MiB";
        assert!(
            reason.starts_with(expected) && reason.contains(limit) && reason.contains("(--memory)"),
            "{output}"
        );
    }
}

#[test]
fn a_jobs_own_group_in_a_container_that_may_make_one() {
    // As for a container that runs containers itself.
    let arguments = [
        "-v",
        "/sys/fs/cgroup:/sys/fs/cgroup",
        "--memory",
        "64m",
        "--memory-swap",
        "64m",
        "-e",
        "ROLE_OWN_GROUP=1",
    ];
    let output = match in_a_container(&arguments, "eat") {
        Ok(output) => output,
        Err(why) => return skip(&why),
    };
    let limit = "the memory limit of the container was reached, 64 MiB";
    assert!(told(&output, "reason").contains(limit), "{output}");
    assert!(
        told(&output, "memory").contains("kills: 1, alone: true"),
        "{output}"
    );
}

#[test]
fn a_container_that_ends_well_had_no_kill() {
    let limits = ["--memory", "64m", "--memory-swap", "64m"];
    let output = match in_a_container(&limits, "exit 3") {
        Ok(output) => output,
        Err(why) => return skip(&why),
    };
    assert_eq!(
        told(&output, "reason"),
        "nothing known of Exited { code: 3 }"
    );
    assert!(
        told(&output, "memory").contains("kills: 0, alone: true"),
        "{output}"
    );
    assert!(
        told(&output, "memory").contains("limit: Some(67108864)"),
        "{output}"
    );
}

#[test]
fn a_containers_small_shared_memory() {
    let job = "cat /dev/zero >/dev/shm/x";
    let output = match in_a_container(&["--shm-size", "1m"], job) {
        Ok(output) => output,
        Err(why) => return skip(&why),
    };
    let reason = told(&output, "reason");
    let expected = "no_shared_memory: shared memory (/dev/shm, 1 MiB) is used up";
    assert!(reason.starts_with(expected), "{output}");
}
