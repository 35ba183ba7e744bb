use super::*;
use crate::process::kernel_log::Kill;
use crate::process::signal::TERM;

const MIB: u64 = 1 << 20;

fn killed() -> Ended {
    Ended::Signalled { signal: KILL }
}

fn exited(code: i32) -> Ended {
    Ended::Exited { code }
}

fn signalled(signal: i32) -> Ended {
    Ended::Signalled { signal }
}

/// One kill in the group, whose own limit was reached.
fn own_limit(alone: bool) -> Memory {
    Memory {
        counted: true,
        kills: 1,
        alone,
        machine_kills: 1,
        ran_out: Some(RanOut::Own {
            limit: Some(512 * MIB),
            holder: Holder::Container,
        }),
        ..Memory::default()
    }
}

fn counted() -> Memory {
    Memory {
        counted: true,
        ..Memory::default()
    }
}

fn log(pid: i32, machine: bool) -> Option<Vec<Kill>> {
    let name = "python".to_owned();
    Some(vec![Kill { pid, name, machine }])
}

fn disk(role: Role, free: u64) -> Disk {
    Disk {
        folder: match role {
            Role::SharedMemory => "/dev/shm".into(),
            _ => "/scratch/run".into(),
        },
        role,
        size: 64 * MIB,
        free,
        no_more_files: false,
    }
}

#[derive(Default)]
struct Case {
    sent: Option<i32>,
    memory: Memory,
    peak: Option<u64>,
    lines: Vec<&'static str>,
    disks: Vec<Disk>,
    address_limit: Option<u64>,
}

impl Case {
    fn cause(&self, ended: Ended) -> Option<Death> {
        cause(&Evidence {
            ended,
            sent: self.sent,
            memory: &self.memory,
            peak: self.peak,
            pids: &BTreeSet::from([42, 43]),
            last_lines: &self.lines,
            disks: &self.disks,
            address_limit: self.address_limit,
        })
    }
}

fn of(memory: Memory) -> Case {
    Case {
        memory,
        ..Case::default()
    }
}

fn printed(lines: &[&'static str]) -> Case {
    Case {
        memory: counted(),
        lines: lines.to_vec(),
        ..Case::default()
    }
}

#[test]
fn a_kill_for_want_of_memory_is_told_from_all_others() {
    let machine_wide = || Memory {
        machine_kills: 1,
        ran_out: Some(RanOut::Machine),
        ..Memory::default()
    };
    let told = "subprocess.CalledProcessError: Command 'x' died with <Signals.SIGKILL: 9>.";
    for (what, case, ended, kind) in [
        ("the job", of(own_limit(true)), killed(), Some("oom_killed")),
        (
            "a worker",
            of(own_limit(true)),
            exited(1),
            Some("oom_killed"),
        ),
        (
            "a worker, and it went on",
            of(own_limit(true)),
            exited(0),
            None,
        ),
        (
            "among strangers, killed",
            of(own_limit(false)),
            killed(),
            Some("oom_killed"),
        ),
        (
            "among strangers, by a launcher",
            of(own_limit(false)),
            exited(137),
            Some("oom_killed"),
        ),
        (
            "among strangers, told of",
            Case {
                memory: own_limit(false),
                lines: vec![told],
                ..Case::default()
            },
            exited(1),
            Some("oom_killed"),
        ),
        (
            "a stranger, while the job failed by itself",
            of(own_limit(false)),
            exited(1),
            None,
        ),
        (
            "a stranger, as the log says, while somebody killed the job",
            of(Memory {
                log: log(7, false),
                ..own_limit(false)
            }),
            killed(),
            Some("signalled"),
        ),
        (
            "the log names a process of the job",
            of(Memory {
                log: log(43, false),
                ..own_limit(false)
            }),
            exited(1),
            Some("oom_killed"),
        ),
        (
            "the machine",
            of(machine_wide()),
            killed(),
            Some("oom_killed"),
        ),
        (
            "the machine, another's",
            of(machine_wide()),
            exited(2),
            None,
        ),
        (
            "elsewhere on the machine: the job's group has its own count",
            of(Memory {
                counted: true,
                ..machine_wide()
            }),
            killed(),
            Some("signalled"),
        ),
        (
            "killed by the agent, after all",
            Case {
                memory: counted(),
                sent: Some(KILL),
                ..Case::default()
            },
            killed(),
            Some("signalled"),
        ),
        (
            "nothing known",
            Case::default(),
            killed(),
            Some("signalled"),
        ),
        ("nothing known", Case::default(), exited(1), None),
    ] {
        let kind_found = case.cause(ended).map(|death| death.kind());
        assert_eq!(kind_found, kind, "{what} ({ended:?})");
    }
}

#[test]
fn the_log_tells_the_machine_from_a_limit() {
    let case = of(Memory {
        log: log(42, true),
        ..own_limit(false)
    });
    let Some(Death::OomKilled { ran_out, whole, .. }) = case.cause(killed()) else {
        panic!("not seen");
    };
    assert_eq!((ran_out, whole), (RanOut::Machine, true));
}

#[test]
fn what_the_program_said_needs_what_bears_it_out() {
    let not_written =
        "RuntimeError: [enforce fail] . PytorchStreamWriter failed writing file data/3";
    let no_space = "OSError: [Errno 28] No space left on device: '/scratch/run/a.pt'";
    let with = |line: &'static str, disks: Vec<Disk>| Case {
        disks,
        ..printed(&[line])
    };
    let full = disk(Role::WorkingDir, 0);
    for (what, case, ended, kind) in [
        (
            "no disk known",
            with(no_space, vec![]),
            exited(1),
            Some("no_space"),
        ),
        (
            "not written, and the disk is full",
            with(not_written, vec![full.clone()]),
            exited(1),
            Some("no_space"),
        ),
        (
            "not written for another reason",
            with(not_written, vec![disk(Role::WorkingDir, 60 * MIB)]),
            exited(1),
            None,
        ),
        (
            "shared memory alone is full",
            with(no_space, vec![disk(Role::SharedMemory, 0)]),
            exited(1),
            Some("no_shared_memory"),
        ),
        (
            "a bus error and full shared memory",
            Case {
                disks: vec![disk(Role::SharedMemory, 0)],
                ..Case::default()
            },
            signalled(BUS),
            Some("no_shared_memory"),
        ),
        (
            "a bus error",
            Case::default(),
            signalled(BUS),
            Some("signalled"),
        ),
        (
            "an abort that says why",
            printed(&["terminate called after throwing an instance of 'std::bad_alloc'"]),
            signalled(ABRT),
            Some("out_of_memory"),
        ),
        (
            "words that a success printed",
            printed(&["MemoryError"]),
            exited(0),
            None,
        ),
        (
            "words before somebody killed it",
            printed(&["MemoryError"]),
            killed(),
            Some("signalled"),
        ),
        (
            "words and the agent's stop",
            Case {
                sent: Some(TERM),
                ..printed(&["MemoryError"])
            },
            signalled(TERM),
            Some("signalled"),
        ),
        (
            "a quota",
            printed(&["OSError: [Errno 122] Disk quota exceeded: 'x'"]),
            exited(1),
            Some("no_space"),
        ),
        (
            "the exit code of a crash",
            Case::default(),
            exited(139),
            Some("signalled"),
        ),
        (
            "the exit code of a stop",
            Case::default(),
            exited(143),
            None,
        ),
    ] {
        let kind_found = case.cause(ended).map(|death| death.kind());
        assert_eq!(kind_found, kind, "{what} ({ended:?})");
    }
}

#[test]
fn each_cause_has_its_words() {
    let around = |holder| RanOut::Around {
        limit: Some(63 * 1024 * MIB + 512 * MIB),
        holder,
    };
    let oom = |ran_out, whole, peak| Death::OomKilled {
        ran_out,
        whole,
        peak,
    };
    let own = RanOut::Own {
        limit: Some(512 * MIB),
        holder: Holder::Container,
    };
    let line = || "OSError: [Errno 28] x".to_owned();
    let no_space = |disk, quota| Death::NoSpace {
        disk,
        quota,
        line: line(),
    };
    let signalled = |signal, by| Death::Signalled { signal, by };
    let no_inodes = Disk {
        no_more_files: true,
        ..disk(Role::Temporary, 60 * MIB)
    };
    for (death, words) in [
        (
            oom(own, true, None),
            "killed by the kernel for want of memory: the memory limit of the container was reached, 512 MiB; give it more memory (--memory) or make it use less",
        ),
        (
            oom(around(Holder::BatchJob), false, Some(3 << 30)),
            "a process of the job was killed by the kernel for want of memory: the memory limit of the batch job was reached, 63.5 GiB (the job used 3 GiB at its peak); give it more memory (Slurm: --mem) or make it use less",
        ),
        (
            oom(around(Holder::Unit("a.service".into())), true, None),
            "killed by the kernel for want of memory: the memory limit of the systemd unit a.service was reached, 63.5 GiB; give it more memory (MemoryMax=) or make it use less",
        ),
        (
            oom(RanOut::Machine, true, Some(1536)),
            "killed by the kernel for want of memory: the machine had no memory left (the job used 1.5 KiB at its peak); make the job use less, run fewer jobs at once there, or run it where there is more",
        ),
        (
            oom(RanOut::OutOfSight, true, None),
            "killed by the kernel for want of memory: the machine had no memory left, or a group of which this one is a part; give the job (the pod) more memory, make it use less, or run it where there is more",
        ),
        (
            no_space(Some(disk(Role::WorkingDir, 0)), false),
            "no space left on the disk of /scratch/run (the working folder), 0 bytes of 64 MiB free (OSError: [Errno 28] x): make room there, then run it again",
        ),
        (
            no_space(Some(no_inodes), false),
            "no space left on the disk of /scratch/run (TMPDIR), no more files can be made on it, though it has space (OSError: [Errno 28] x): make room there, then run it again",
        ),
        (
            no_space(None, false),
            "no space left on a disk (OSError: [Errno 28] x): make room where the job writes, then run it again",
        ),
        (
            no_space(None, true),
            "the disk quota is used up (OSError: [Errno 28] x): remove files or ask for more, then run it again",
        ),
        (
            Death::NoSharedMemory {
                size: Some(64 * MIB),
            },
            "shared memory (/dev/shm, 64 MiB) is used up: in a container give it more (--shm-size, or --ipc=host), or use fewer data loader workers",
        ),
        (
            Death::OutOfMemory {
                address_limit: Some(256 * MIB),
                line: "MemoryError".into(),
            },
            "out of memory (MemoryError): the job may address 256 MiB (ulimit -v); raise that limit or make the job use less",
        ),
        (
            signalled(KILL, Sender::Unknown),
            "killed by SIGKILL, not by this agent, and no kill for want of memory was seen: somebody with the right to, such as the batch system, an administrator or a resource limit",
        ),
        (
            signalled(KILL, Sender::Agent),
            "ended by SIGKILL from this agent",
        ),
        (
            signalled(TERM, Sender::Unknown),
            "ended by SIGTERM, not by this agent: by itself, or by somebody with the right to (the batch system, a user)",
        ),
        (
            signalled(SEGV, Sender::Own),
            "ended by SIGSEGV: the program crashed, in its own or a library's compiled code; for Python, run it with PYTHONFAULTHANDLER=1 to see where",
        ),
        (
            Death::PartSignalled { signal: ABRT },
            "a program that the script started ended by SIGABRT (exit code 134): it gave up by itself; its last lines say why",
        ),
    ] {
        assert_eq!(death.reason(), words);
    }
}

#[test]
fn a_quoted_line_is_one_short_line() {
    let long: &'static str = Box::leak(format!("MemoryError: {}", "é ".repeat(900)).into());
    let death = printed(&[long]).cause(exited(1)).unwrap();
    let reason = death.reason();
    assert!(
        reason.chars().count() < 400 && reason.contains('…'),
        "{reason}"
    );
    assert!(!reason.contains('\n'));
}
