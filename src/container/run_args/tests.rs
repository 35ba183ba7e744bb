use super::*;

fn body(line: &str) -> serde_json::Value {
    let words = split(line).unwrap();
    let args = RunArgs::parse(&words).unwrap_or_else(|error| panic!("{line}: {error}"));
    let env = BTreeMap::from([("HERE".to_owned(), "of the agent".to_owned())]);
    let host = Host {
        env: &env,
        cwd: Path::new("/work/dir"),
    };
    let body = args.to_create(&host);
    serde_json::to_value(body.unwrap_or_else(|error| panic!("{line}: {error}"))).unwrap()
}

fn refused(line: &str) -> String {
    match RunArgs::parse(&split(line).unwrap()) {
        Ok(args) => panic!("{line}: {args:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn words_are_flags_as_docker_takes_them_apart() {
    for (line, same) in [
        ("-eA=b", "--env A=b"),
        ("-e=A=b", "--env A=b"),
        ("-e A=b", "--env=A=b"),
        ("-itv /a:/b", "-i -t -v /a:/b"),
        ("-itv=/a:/b", "--volume /a:/b"),
        ("-m1g", "--memory 1g"),
        ("--memory 1g --memory=2g", "-m 2g"),
        ("--init", "--init=true"),
        ("--init=false --init", "--init=1"),
        ("-P=false", ""),
        ("--net host", "--network=host"),
        ("--net-alias a --net n", "--network n --network-alias a"),
        ("--dns-opt a", "--dns-option a"),
        ("--memory-swap -1", "--memory-swap=-1"),
        ("-e -A", "--env=-A"),
        ("--env --init", "-e --init"),
        ("-h ''", "--hostname="),
        ("-u '' -u 1", "-u 1"),
    ] {
        assert_eq!(body(line), body(same), "{line}");
    }
}

#[test]
fn what_is_sent_to_the_engine() {
    for (line, path, value) in [
        (
            "-e HERE -e NOT -e A=$HERE",
            "/Env",
            r#"["HERE=of the agent","NOT","A=$HERE"]"#,
        ),
        (
            "-v ./a:/b -v ../c:/d:ro",
            "/HostConfig/Binds",
            r#"["/work/dir/a:/b","/work/c:/d:ro"]"#,
        ),
        (
            "--mount type=bind,src=./a,dst=/b",
            "/HostConfig/Mounts/0/Source",
            r#""/work/dir/a""#,
        ),
        ("-m 1.5g", "/HostConfig/Memory", "1610612736"),
        ("--cpus 3/2", "/HostConfig/NanoCpus", "1500000000"),
        (
            "--health-interval 1h2m3.5s",
            "/Healthcheck/Interval",
            "3723500000000",
        ),
        (
            "--mount type=tmpfs,dst=/a,tmpfs-mode=1777",
            "/HostConfig/Mounts/0/TmpfsOptions/Mode",
            "1023",
        ),
        ("--gpus all", "/HostConfig/DeviceRequests/0/Count", "-1"),
        (
            "--gpus '\"device=0,1\"'",
            "/HostConfig/DeviceRequests/0/DeviceIDs",
            r#"["0","1"]"#,
        ),
        (
            "--device v.com/c=n",
            "/HostConfig/DeviceRequests/0/Driver",
            r#""cdi""#,
        ),
        (
            "-p 80-81:90-91",
            "/HostConfig/PortBindings/91~1tcp/0/HostPort",
            r#""81""#,
        ),
        (
            "--network a --network b",
            "/HostConfig/NetworkMode",
            r#""a""#,
        ),
        (
            "--mac-address 92:d0:c6:0a:29:33 --net a",
            "/NetworkingConfig/EndpointsConfig/a/MacAddress",
            r#""92:d0:c6:0a:29:33""#,
        ),
        ("--no-healthcheck", "/Healthcheck/Test", r#"["NONE"]"#),
        ("--cidfile id", "/HostConfig/ContainerIDFile", r#""id""#),
        // Nobody is at a terminal, and the container is removed by the agent.
        ("-it --rm", "/Tty", "false"),
        ("-it --rm", "/OpenStdin", "false"),
        ("--rm", "/HostConfig/AutoRemove", "false"),
        ("--restart=no", "/HostConfig/RestartPolicy/Name", r#""no""#),
    ] {
        let body = body(line);
        let found = body.pointer(path).map(ToString::to_string);
        assert_eq!(found.as_deref(), Some(value), "{line} {path}");
    }
}

#[test]
fn what_is_not_sent() {
    let args = |line: &str| RunArgs::parse(&split(line).unwrap()).unwrap();
    let some = args("--name n --platform linux/arm64 --pull always --cidfile id");
    assert_eq!(some.name(), Some("n"));
    assert_eq!(some.platform(), Some("linux/arm64"));
    assert_eq!(some.pull(), Pull::Always);
    let cwd = Path::new("/work");
    assert_eq!(some.cid_file(cwd), Some(PathBuf::from("/work/id")));
    let none = args("");
    assert_eq!(
        (none.name(), none.platform(), none.pull()),
        (None, None, Pull::Missing)
    );
    assert_eq!(args("--pull=").pull(), Pull::Missing);
    assert_eq!(
        args("-itq --rm --init -a stdout --sig-proxy=false --detach-keys a").without_effect(),
        [
            "-i",
            "-t",
            "-q",
            "--rm",
            "-a",
            "--sig-proxy",
            "--detach-keys"
        ]
    );
    let networks = args("--network a --network name=b,alias=x --network-alias y");
    let further = networks.further_networks().unwrap();
    assert_eq!(further.len(), 1);
    assert_eq!(further[0].0, "b");
    assert_eq!(further[0].1.aliases, Some(vec!["x".to_owned()]));
}

/// Docker takes these, for a task they make no sense.
#[test]
fn what_is_refused_for_a_task() {
    for (line, words) in [
        (
            "-d",
            "--detach can't be used: the agent follows its container",
        ),
        ("--detach", "--detach can't be used"),
        (
            "--restart always",
            "--restart can't be used: a container that starts again",
        ),
        ("--restart on-failure:3", "--restart can't be used"),
        (
            "--use-api-socket",
            "--use-api-socket can't be used: it copies",
        ),
        (
            "--disable-content-trust=false",
            "--disable-content-trust=false can't be used",
        ),
        ("--kernel-memory 1g", "--kernel-memory can't be used"),
        ("--help", "--help can't be used"),
        (
            "--io-maxiops 1",
            "--io-maxiops can't be used: it is for containers of Windows",
        ),
        // An engine takes them and does something else.
        ("-v x:/b", "the name of a volume has two letters"),
        (
            "--gpus device=0,1",
            "several devices need quotes around them",
        ),
        ("--ipc me", "expected none, private,"),
        ("--blkio-weight 5", "expected a weight between 10 and 1000"),
    ] {
        let error = refused(line);
        assert!(error.contains(words), "{line}: {error}");
    }
    for harmless in [
        "--detach=false",
        "--disable-content-trust",
        "--use-api-socket=false",
    ] {
        body(harmless);
    }
}

#[test]
fn what_is_no_flag() {
    for (line, words) in [
        ("image", "\"image\" belongs to no flag"),
        ("--init false", "as --init=false"),
        ("-it ubuntu", "as -t=false"),
        ("-e A=1 B=2", "\"B=2\" belongs to no flag"),
        ("-", "\"-\" belongs to no flag"),
        ("--", "\"--\" belongs to no flag"),
        ("--foo=1", "--foo is no flag of docker run"),
        ("-e A=1 -k", "-k is no flag of docker run"),
        ("--volum /a:/b", "--volum is no flag"),
        ("-network host", "-n (in -network) is no flag"),
        ("--name", "--name needs a value"),
    ] {
        let error = refused(line);
        assert!(error.contains(words), "{line}: {error}");
    }
    assert!(matches!(
        split("-e 'A"),
        Err(RunArgsError::Unbalanced { .. })
    ));
}

/// What stands after `-e` may be a password.
#[test]
fn errors_hold_no_variable() {
    let error = refused("-e =hunter2");
    assert!(!error.contains("hunter2"), "{error}");
    let error = refused("-e A=1 --env==hunter2");
    assert!(!error.contains("hunter2"), "{error}");
}

#[test]
fn engines_that_are_too_old() {
    let check = |line: &str, has| {
        let args = RunArgs::parse(&split(line).unwrap()).unwrap();
        args.check_engine(has).map_err(|error| error.to_string())
    };
    for (line, needs) in [
        ("--annotation a=b", (1, 43)),
        ("--health-start-interval 1s", (1, 44)),
        ("--mac-address 92:d0:c6:0a:29:33", (1, 44)),
        ("--network name=a,mac-address=92:d0:c6:0a:29:33", (1, 44)),
        ("--mount dst=/a,volume-subpath=b", (1, 45)),
        ("--mount type=image,src=a,dst=/a", (1, 48)),
        ("--network name=a,gw-priority=1", (1, 48)),
    ] {
        let before = (needs.0, needs.1 - 1);
        let error = check(line, before).unwrap_err();
        assert!(
            error.contains(&format!("API 1.{} or later", needs.1)),
            "{error}"
        );
        assert_eq!(check(line, needs), Ok(()), "{line}");
        assert_eq!(check(line, (2, 0)), Ok(()), "{line}");
    }
    assert_eq!(check("--gpus all --init -v /a:/b", (1, 25)), Ok(()));
}

#[test]
fn fields_between_commas() {
    for (line, expected) in [
        ("a,b", Some(vec!["a", "b"])),
        ("a,", Some(vec!["a", ""])),
        ("\"a,b\",c", Some(vec!["a,b", "c"])),
        ("\"a\"\"b\"", Some(vec!["a\"b"])),
        ("a=\"b\"", None),
        ("\"a", None),
        ("\"a\"b", None),
        ("", None),
    ] {
        let found = csv::fields(line).ok();
        let expected = expected.map(|fields| fields.into_iter().map(str::to_owned).collect());
        assert_eq!(found, expected, "{line}");
    }
}

#[test]
fn numbers_as_docker_reads_them() {
    for (text, expected) in [
        ("512", Some(512)),
        ("1k", Some(1024)),
        ("1KiB", Some(1024)),
        ("1.5 mb", Some(1_572_864)),
        ("0b", Some(0)),
        ("2p", Some(2 << 50)),
        ("1ki", None),
        ("1kbb", None),
        ("-1", None),
        ("9e30", None),
        ("1e3", Some(1000)),
        ("", None),
        ("b", None),
    ] {
        assert_eq!(units::bytes(text).ok(), expected, "{text}");
    }
    for (text, expected) in [
        ("10", Some(10)),
        ("-0x10", Some(-16)),
        ("0b11", Some(3)),
        ("010", Some(8)),
        ("0o17", Some(15)),
        ("0x_ff", Some(255)),
        ("1_000", None),
        ("--1", None),
        ("+-1", None),
        ("0x", None),
        ("", None),
    ] {
        assert_eq!(units::integer(text).ok(), expected, "{text}");
    }
    for (text, expected) in [
        ("1.5", Some(1_500_000_000)),
        (".5", Some(500_000_000)),
        ("2.", Some(2_000_000_000)),
        ("0.000000001", Some(1)),
        ("0.0000000001", None),
        ("1/3", None),
        (".", None),
        ("-1", None),
        ("99999999999", None),
    ] {
        assert_eq!(units::cpus(text).ok(), expected, "{text}");
    }
    for (text, expected) in [
        ("0", Some(0)),
        ("1h1m1s1ms1us1ns", Some(3_661_001_001_001)),
        (".5s", Some(500_000_000)),
        ("1", None),
        ("s", None),
        (".s", None),
        ("99999999h", None),
    ] {
        assert_eq!(units::duration(text).ok(), expected, "{text}");
    }
}

#[test]
fn what_can_not_be_created() {
    let env = BTreeMap::new();
    for (line, words) in [
        (
            "--env-file /dev/zero",
            "--env-file: /dev/zero: it is no plain file",
        ),
        ("--label-file /", "--label-file: /: it is no plain file"),
        (
            "--security-opt seccomp=/dev/zero",
            "--security-opt: /dev/zero: it is no plain file",
        ),
        (
            "-p 1-65535:1-65535 -p 1-65535:1-65535 -p 1-65535:1-65535 -p 1-9:1-9",
            "more ports",
        ),
    ] {
        let args = RunArgs::parse(&split(line).unwrap()).unwrap();
        let cwd = Path::new("/");
        let error = args.to_create(&Host { env: &env, cwd }).unwrap_err();
        assert!(error.to_string().contains(words), "{line}: {error}");
    }
}

/// Each flag that `docker run --help` of version 28 lists, and those that it hides.
#[test]
fn every_flag_of_docker_is_known() {
    const FLAGS: &str = "add-host annotation attach blkio-weight blkio-weight-device cap-add cap-drop \
        cgroup-parent cgroupns cidfile cpu-count cpu-percent cpu-period cpu-quota cpu-rt-period \
        cpu-rt-runtime cpu-shares cpus cpuset-cpus cpuset-mems detach detach-keys device \
        device-cgroup-rule device-read-bps device-read-iops device-write-bps device-write-iops \
        disable-content-trust dns dns-opt dns-option dns-search domainname entrypoint env env-file \
        expose gpus group-add health-cmd health-interval health-retries health-start-interval \
        health-start-period health-timeout help hostname init interactive io-maxbandwidth io-maxiops \
        ip ip6 ipc isolation kernel-memory label label-file link link-local-ip log-driver log-opt \
        mac-address memory memory-reservation memory-swap memory-swappiness mount name net net-alias \
        network network-alias no-healthcheck oom-kill-disable oom-score-adj pid pids-limit platform \
        privileged publish publish-all pull quiet read-only restart rm runtime security-opt shm-size \
        sig-proxy stop-signal stop-timeout storage-opt sysctl tmpfs tty ulimit use-api-socket user \
        userns uts volume volume-driver volumes-from workdir";
    for name in FLAGS.split_whitespace() {
        let word = format!("--{name}=x");
        assert!(flags(&[word]).is_ok(), "{name}");
    }
    for short in "acdehilmpqtuvwP".chars() {
        assert!(flags(&[format!("-{short}=x")]).is_ok(), "{short}");
    }
}
