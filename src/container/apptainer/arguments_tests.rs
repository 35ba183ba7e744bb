use std::collections::BTreeMap;
use std::path::Path;

use super::*;
use crate::container::run_args::{self, Host, RunArgs, flags};

fn caller() -> Caller {
    Caller {
        uid: 1000,
        gid: 1000,
        groups: vec![44],
        passwd: "root:x:0:0::/root:/bin/sh\nada:x:1000:1000::/home/ada:/bin/sh\n".into(),
        group: "ada:x:1000:\nvideo:x:44:ada\nrender:x:107:\n".into(),
    }
}

fn translated(text: &str) -> Result<Translated, RunArgsError> {
    let words = run_args::split(text)?;
    let env = BTreeMap::from([("HERE".to_owned(), "of the agent".to_owned())]);
    let host = Host {
        env: &env,
        cwd: Path::new("/home/ada"),
    };
    let body = RunArgs::parse(&words)?.to_create(&host)?;
    translate(&flags(&words)?, &body, &caller())
}

fn bind(source: &str, target: &str, read_only: bool, make: bool) -> Bind {
    Bind {
        source: source.into(),
        target: target.into(),
        read_only,
        make,
    }
}

#[test]
fn what_flags_come_to() {
    const USUAL: &str = "--pid --ipc --writable-tmpfs";
    for (text, expected) in [
        ("", USUAL),
        ("--ipc=host --pid=host", "--writable-tmpfs"),
        ("--ipc=private --network=host --net default", USUAL),
        ("--read-only", "--pid --ipc"),
        (
            "-h node --dns 1.1.1.1 --dns 8.8.8.8",
            "--hostname node --pid --ipc --writable-tmpfs --dns 1.1.1.1,8.8.8.8",
        ),
        (
            "--network none",
            "--pid --ipc --writable-tmpfs --net --network none",
        ),
        (
            "-m 2g --memory-swap -1 --cpus 1.5 --pids-limit 100 -c 512 --cpuset-cpus 0-3",
            "--pid --ipc --memory 2147483648 --memory-swap -1 --pids-limit 100 --cpu-shares 512 --cpuset-cpus 0-3 --cpus 1.5 --writable-tmpfs",
        ),
        (
            "--cap-add SYS_PTRACE --cap-drop ALL",
            "--pid --ipc --add-caps CAP_SYS_PTRACE --drop-caps all --writable-tmpfs",
        ),
        // So anyway.
        (
            "--security-opt seccomp=unconfined --security-opt no-new-privileges --runtime=nvidia --user 1000:1000 --group-add video --platform linux",
            USUAL,
        ),
        (
            "--privileged=false --publish-all=false -it --rm --shm-size 8g",
            USUAL,
        ),
    ] {
        let made = translated(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(made.flags.join(" "), expected, "{text}");
    }
}

#[test]
fn folders_devices_and_files() {
    let made = translated(
        "-v /data:/data:ro -v ./out:/out -v /fresh --mount type=bind,src=/models,dst=/m,readonly \
         --tmpfs /run:size=64m,mode=700 --device /dev/kfd --device /dev/dri:/dev/dri:r",
    )
    .unwrap();
    assert_eq!(
        made.binds,
        [
            bind("/data", "/data", true, true),
            bind("/home/ada/out", "/out", false, true),
            bind("/models", "/m", true, false),
            bind("/dev/kfd", "/dev/kfd", false, false),
            bind("/dev/dri", "/dev/dri", true, false),
        ]
    );
    let fresh: Vec<_> = made
        .fresh
        .iter()
        .map(|fresh| (fresh.target.as_str(), fresh.mode))
        .collect();
    assert_eq!(fresh, [("/fresh", 0o755), ("/run", 0o700)]);
    assert_eq!(made.without_effect, ["--tmpfs /run:size=…"]);
}

#[test]
fn variables_hosts_limits_and_gpus() {
    let made = translated(
        "-e A=1 -e HERE -e GONE --add-host db:10.0.0.1 --add-host me:host-gateway --ulimit memlock=-1 \
         --ulimit nofile=1024:2048 --gpus all -p 8888:8888 -w /work",
    )
    .unwrap();
    let variables: Vec<_> = made
        .variables
        .iter()
        .map(|(n, v)| format!("{n}={v}"))
        .collect();
    assert_eq!(variables, ["A=1", "HERE=of the agent"]);
    assert_eq!(made.unset, ["GONE"]);
    assert_eq!(made.hosts, ["10.0.0.1\tdb", "127.0.0.1\tme"]);
    let limits: Vec<_> = made
        .limits
        .iter()
        .map(|l| (l.name.as_str(), l.soft, l.hard))
        .collect();
    assert_eq!(
        limits,
        [("memlock", None, None), ("nofile", Some(1024), Some(2048))]
    );
    assert_eq!(made.gpus[0].count, Some(-1));
    assert_eq!(made.without_effect, ["--publish 8888/tcp"]);
    assert_eq!(made.working_dir.as_deref(), Some("/work"));
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    for (text, why) in [
        (
            "--privileged",
            "--privileged can't be used: an Apptainer container has its caller's rights",
        ),
        ("--user 5", "here 1000:1000"),
        ("--user root", "here 1000:1000"),
        ("--group-add render", "this user is not in it"),
        ("-v models:/models", "no named volumes"),
        ("-v /a:/b:rshared", "ro or rw"),
        ("--mount type=volume,src=models,dst=/m", "no named volumes"),
        ("-p 8080:80", "the machine's own"),
        ("--network bridge", "share the machine's network"),
        ("--network container:x", "share the machine's network"),
        ("--pid container:x", "expected host"),
        ("--ipc none", "expected host or private"),
        ("--sysctl net.core.somaxconn=1", "--sysctl can't be used"),
        ("--cidfile /tmp/id", "has no id"),
        ("--memory-swappiness 5", "no such limit"),
        ("--volumes-from x", "no other containers"),
        (
            "--security-opt apparmor=strict",
            "no rights beyond the caller's",
        ),
        ("--device nvidia.com/gpu=0", "asked for with --gpus"),
        ("--platform linux/s390x", "this machine is linux/"),
        ("--runtime kata", "Apptainer is the runtime"),
    ] {
        let error = translated(text).unwrap_err().to_string();
        assert!(error.contains(why), "{text}: {error}");
    }
}

#[test]
fn every_flag_of_docker_has_its_handling() {
    for name in run_args::names() {
        assert!(handling(name).is_some(), "--{name}");
    }
}
