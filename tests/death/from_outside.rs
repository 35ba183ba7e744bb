//! What a job used, seen from outside.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use clearml_agent::process::usage::{self, Sampler};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use crate::limits::me;
use crate::{plays, role, shell};

#[test]
fn what_a_job_used_without_a_group() {
    let mut job = shell(
        "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; head -c 30000000 /dev/zero | tail -n 1 >/dev/null; echo done",
    )
    .stdout(Stdio::null())
    .spawn()
    .unwrap();
    let pid = i32::try_from(job.id()).unwrap();
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    rustix::process::waitid(WaitId::Pid(Pid::from_child(&job)), options).unwrap();
    // Ended and not reaped: its CPU time is there, its memory is not.
    assert!(usage::cpu_time(pid).unwrap().as_millis() >= 10);
    let mut sampler = Sampler::default();
    sampler.look(&[pid]);
    assert_eq!(sampler.peak(), usage::Peak::default());
    job.wait().unwrap();
    assert_eq!(usage::cpu_time(pid), None);
}

#[test]
fn a_peak_that_is_over_is_still_seen() {
    let mut job = role("from_outside::role_hold")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = i32::try_from(job.id()).unwrap();
    let mut output = BufReader::new(job.stdout.take().unwrap());
    let mut line = String::new();
    while line.trim() != "freed" {
        line.clear();
        assert!(output.read_line(&mut line).unwrap() > 0);
    }
    let mut sampler = Sampler::default();
    sampler.look(&[pid, me()]);
    let peak = sampler.peak();
    assert!(peak.process.unwrap() > 100 << 20, "{peak:?}");
    assert!(
        peak.together.unwrap() < peak.process.unwrap() + (100 << 20),
        "{peak:?}"
    );
    assert!(sampler.seen().contains(&pid));
    rustix::process::kill_process(Pid::from_child(&job), Signal::KILL).unwrap();
    job.wait().unwrap();
}

#[test]
fn role_hold() {
    if !plays("from_outside::role_hold") {
        return;
    }
    drop(std::hint::black_box(vec![1_u8; 100 << 20]));
    println!("\nfreed");
    loop {
        std::thread::park();
    }
}
