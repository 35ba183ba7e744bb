//! `docker run`'s flags against docker's own client: what it creates for them and what we create for
//! them is the same container, as the engine describes it.
//!
//! Needs a Docker Engine and docker's client: without them the tests say so and pass.
#![allow(clippy::unwrap_used)]

#[path = "common/docker.rs"]
mod docker;

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use bollard::query_parameters::CreateContainerOptions;
use clearml_agent::container::run_args::{Host, RunArgs, split};
use serde_json::{Value, json};
use tempfile::TempDir;

use docker::{Container, Engine, Network, TINY_IMAGE, Volume, block_on, docker, label};

/// What the flags of the table speak of.
struct Stage {
    engine: Engine,
    dir: TempDir,
    env: BTreeMap<String, String>,
    network: Network,
    second_network: Network,
    volume: Volume,
    other: Container,
}

/// What the engine made of a request: a container, or a complaint.
enum Made {
    Container(Container),
    Refused(String),
}

impl std::fmt::Debug for Made {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Made::Container(_) => f.write_str("a container"),
            Made::Refused(why) => write!(f, "refused by the engine: {why}"),
        }
    }
}

impl Stage {
    /// `name` tells the tests apart.
    fn new(name: &str) -> Option<Stage> {
        let engine = docker::engine()?;
        let dir = TempDir::new().unwrap();
        let write = |file: &str, text: &str| std::fs::write(dir.path().join(file), text).unwrap();
        write(
            "env",
            "\u{feff}# comment\nA=1\n  B= 2 \nHERE\nNOT_HERE\n\nEMPTY=\nQUOTED=\"x y\"\n",
        );
        write("env-bad", "A=1\nB C=2\n");
        write("labels", "a=1\n# b=2\nalone\n  c=x=y\n");
        write(
            "seccomp.json",
            "{ \"defaultAction\": \"SCMP_ACT_ALLOW\",\n  \"b\": 1, \"a\": [1.50, \"x\"] }\n",
        );
        std::fs::create_dir(dir.path().join("data")).unwrap();
        let other = docker(&[
            "create",
            "--label",
            &label(),
            "-v",
            "/shared",
            TINY_IMAGE,
            "true",
        ]);
        Some(Stage {
            engine,
            dir,
            env: BTreeMap::from([("HERE".to_owned(), "of the host".to_owned())]),
            network: Network::create(&format!("{name}-1")),
            second_network: Network::create(&format!("{name}-2")),
            volume: Volume::create(name),
            other: Container {
                id: other.unwrap().trim().to_owned(),
            },
        })
    }

    /// The words of a line, with the stage's names in it.
    fn words(&self, line: &str) -> Vec<String> {
        let line = self.in_place(line);
        split(&format!("--label {} {line}", label())).unwrap()
    }

    fn in_place(&self, text: &str) -> String {
        text.replace("{dir}", &self.dir.path().to_string_lossy())
            .replace("{net}", &self.network.name)
            .replace("{net2}", &self.second_network.name)
            .replace("{ip}", &self.network.prefix)
            .replace("{volume}", &self.volume.name)
            .replace("{other}", &self.other.id)
            .replace("{label}", &label())
    }

    /// As docker's own client makes it, or why it does not.
    fn by_docker(&self, words: &[String]) -> Result<Made, String> {
        let output = Command::new("docker")
            .arg("create")
            .args(words)
            .args([TINY_IMAGE, "true"])
            .current_dir(self.dir.path())
            .env_remove("NOT_HERE")
            .envs(&self.env)
            .output()
            .unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() {
            let container = Container {
                id: String::from_utf8_lossy(&output.stdout).trim().to_owned(),
            };
            return Ok(Made::Container(container));
        }
        match complaint.split_once("Error response from daemon: ") {
            Some((_, why)) => Ok(Made::Refused(why.lines().next().unwrap().to_owned())),
            None => Err(complaint),
        }
    }

    fn read(&self, words: &[String]) -> Result<RunArgs, String> {
        RunArgs::parse(words).map_err(|error| error.to_string())
    }

    /// As we make it, or why we do not.
    fn by_us(&self, words: &[String]) -> Result<Made, String> {
        let args = self.read(words)?;
        let host = Host {
            env: &self.env,
            cwd: self.dir.path(),
        };
        let mut body = args.to_create(&host).map_err(|error| error.to_string())?;
        let version = self.engine.api.client_version();
        args.check_engine((version.major_version, version.minor_version))
            .map_err(|error| error.to_string())?;
        body.image = Some(TINY_IMAGE.to_owned());
        body.cmd = Some(vec!["true".to_owned()]);
        let options = CreateContainerOptions {
            name: args.name().map(str::to_owned),
            platform: args.platform().unwrap_or_default().to_owned(),
        };
        let created = block_on(async {
            let api = &self.engine.api;
            let created = api.create_container(Some(options), body).await?;
            for (network, endpoint) in args.further_networks().unwrap() {
                let request = bollard::models::NetworkConnectRequest {
                    container: created.id.clone(),
                    endpoint_config: Some(endpoint),
                };
                api.connect_network(&network, request).await?;
            }
            Ok(created)
        });
        match created {
            Ok(created) => {
                let container = Container { id: created.id };
                Ok(Made::Container(container))
            }
            Err(bollard::errors::Error::DockerResponseServerError { message, .. }) => {
                Ok(Made::Refused(message))
            }
            Err(error) => panic!("{words:?}: {error}"),
        }
    }
}

/// The description without what differs between any two containers.
fn plain(mut document: Value) -> Value {
    let id = document["Id"].as_str().unwrap().to_owned();
    let name = document["Name"].as_str().unwrap().to_owned();
    // It is in links too.
    let text = document
        .to_string()
        .replace(&format!("{name}/"), "/(its name)/");
    document = serde_json::from_str(&text).unwrap();
    let top = document.as_object_mut().unwrap();
    for key in [
        "Id",
        "Created",
        "Name",
        "ResolvConfPath",
        "HostnamePath",
        "HostsPath",
        "LogPath",
        "GraphDriver",
    ] {
        top.remove(key);
    }
    let config = &mut document["Config"];
    // Without --hostname it is the id's beginning.
    if config["Hostname"]
        .as_str()
        .is_some_and(|name| id.starts_with(name))
    {
        config["Hostname"] = json!("(its id)");
    }
    // The name and the place of a volume without a name.
    for mount in document["Mounts"].as_array_mut().unwrap() {
        let anonymous =
            |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
        if mount["Name"].as_str().is_some_and(anonymous) {
            mount["Name"] = json!("(a new one)");
            mount["Source"] = json!("(a new one)");
        }
    }
    // Docker's client keeps these in a map, in no order.
    sort(&mut document["Config"]["Env"]);
    sort(&mut document["Mounts"]);
    sort(&mut document["HostConfig"]["Binds"]);
    sort(&mut document["HostConfig"]["Ulimits"]);
    let networks = document["NetworkSettings"]["Networks"].as_object_mut();
    for endpoint in networks.unwrap().values_mut() {
        // The short id is an alias in networks of one's own.
        if let Some(aliases) = endpoint["Aliases"].as_array_mut() {
            aliases.retain(|alias| {
                !alias
                    .as_str()
                    .is_some_and(|alias| alias.len() == 12 && id.starts_with(alias))
            });
        }
    }
    document
}

fn sort(list: &mut Value) {
    if let Some(list) = list.as_array_mut() {
        list.sort_by_key(Value::to_string);
    }
}

/// Where docker's container and ours differ.
fn differences(docker: &Container, ours: &Container) -> Vec<String> {
    let documents = docker::inspect(&[docker, ours]);
    let [docker, ours] = documents.as_slice() else {
        panic!("{} documents", documents.len());
    };
    let mut found = Vec::new();
    compare("", &plain(docker.clone()), &plain(ours.clone()), &mut found);
    found
}

fn compare(path: &str, docker: &Value, ours: &Value, found: &mut Vec<String>) {
    match (docker, ours) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let of = |map: &serde_json::Map<String, Value>| {
                    map.get(key).cloned().unwrap_or_else(|| json!("(absent)"))
                };
                compare(&format!("{path}.{key}"), &of(a), &of(b), found);
            }
        }
        _ if docker == ours => {}
        _ => found.push(format!("{path}: docker {docker}, ours {ours}")),
    }
}

const SAME: &[&str] = &[
    "",
    // Variables and labels.
    "-e A=1 -e B= -e HERE -e NOT_HERE --env=C='x y'",
    "-eA=1 -e=B=2 --env A=3",
    "--env-file env -e A=over",
    "-l a=1 --label b --label=c=x=y -l a=2",
    "--label-file labels --label a=over",
    // What runs.
    "-u 1000:1000 -w /tmp",
    "--user user --workdir=/tmp --group-add 20 --group-add users",
    "--entrypoint /bin/sh",
    "--entrypoint=",
    "--init",
    "--init=false",
    "--stop-signal SIGINT --stop-timeout 30",
    "-h box --domainname example.org",
    "--restart no",
    // Volumes.
    "-v /tmp:/data",
    "-v /tmp:/data:ro -v /etc:/host/etc:rw,z",
    "-v ./data:/data -v .:/here:ro",
    "-v /anonymous -v relative",
    "-v {volume}:/data",
    "-v {volume}:/data:ro,nocopy",
    "-v /tmp:/a:rslave -v /tmp:/b:ro,rprivate",
    "-v /tmp:/a -v /tmp:/a",
    "--volumes-from {other} --volumes-from {other}:ro",
    "--volume-driver local -v /anonymous",
    "--mount type=bind,source=/tmp,target=/data",
    "--mount type=bind,src=./data,dst=/data,readonly,bind-propagation=rslave",
    "--mount type=bind,src=/tmp,destination=/data,ro=false,bind-nonrecursive=true",
    "--mount type=bind,src=/tmp,dst=/data,bind-recursive=disabled,consistency=cached",
    "--mount type=volume,source={volume},target=/data,volume-nocopy",
    "--mount target=/data,volume-driver=local,volume-label=clearml-agent-test=0,volume-label=b=2",
    "--mount 'target=/data,\"volume-opt=o=size=10m,uid=1000\",volume-opt=type=tmpfs,volume-opt=device=tmpfs,volume-label={label}'",
    "--mount type=tmpfs,target=/scratch,tmpfs-size=64m,tmpfs-mode=1770",
    "--mount type=tmpfs,dst=/scratch --mount type=bind,src=/tmp,dst=/t",
    "--tmpfs /run --tmpfs /scratch:size=64m,mode=1777,exec",
    "--read-only --storage-opt a=b",
    // Networks and ports.
    "--network none",
    "--net=host",
    "--network bridge",
    "--network container:{other}",
    "--network {net}",
    "--network {net} --network-alias a --network-alias=b --net-alias c",
    "--network {net} --ip {ip}.77 --link-local-ip 169.254.8.8",
    "--network name={net},alias=a,alias=b,ip={ip}.78,driver-opt=com.example.a=1",
    "--network {net} --link {other}:db",
    "--link {other}:db",
    "-p 8080:80",
    "-p 127.0.0.1:8080:80/udp -p 80 -p 8443:443/tcp -p [::1]:9000:9000",
    "-p 8000-8002:80-82 -p 9000-9010:90/sctp",
    "--publish published=8080,target=80,protocol=udp",
    "--publish 192.0.2.1::80",
    "-P --expose 80 --expose 90-92/udp",
    "-p 80:80 -p 81:80",
    "--add-host a:192.0.2.1 --add-host=b=[2001:db8::1] --add-host c:host-gateway --add-host d:2001:db8::2",
    "--dns 192.0.2.53 --dns-search example.org --dns-option ndots:2 --dns-opt rotate --dns-search .",
    // Limits.
    "-m 512m",
    "-m 1g --memory-swap 2g --memory-reservation 512m",
    "--memory 1.5g --memory-swap=-1 --memory-swappiness 10",
    "--memory-swappiness 0 -m 64M",
    "--oom-kill-disable -m 64m --oom-score-adj -500",
    "--oom-score-adj 0x10",
    "--shm-size 2g",
    "--shm-size=64KiB",
    "--pids-limit 100",
    "--pids-limit -1",
    "--cpus 1.5",
    "--cpus .5 --cpuset-cpus 0-1 --cpuset-mems 0",
    "-c 512 --cpu-period 50000 --cpu-quota 25000",
    "--cpu-rt-period 1000000 --cpu-rt-runtime 950000",
    "--blkio-weight 300 --blkio-weight-device /dev/loop0:200",
    "--device-read-bps /dev/loop0:1mb --device-write-bps /dev/loop0:2mb",
    "--device-read-iops /dev/loop0:100 --device-write-iops /dev/loop0:200",
    "--ulimit nofile=1024:2048 --ulimit core=0 --ulimit memlock=-1:-1 --ulimit core=1",
    // Devices and GPUs.
    "--device /dev/null",
    "--device /dev/null:/dev/mine:rw --device /dev/zero:r --device /dev/zero:/dev/other",
    "--device-cgroup-rule 'c 1:3 mr' --device-cgroup-rule 'a *:* rwm'",
    "--gpus all",
    "--gpus 2",
    "--gpus '\"device=0,1\"'",
    "--gpus device=GPU-1 --gpus count=1",
    "--gpus 'all,\"capabilities=compute,utility\",driver=nvidia'",
    "--gpus 'count=1,\"options=a=1,b=2\"'",
    "--device vendor.com/class=name --device /dev/null",
    // Namespaces and rights.
    "--ipc host",
    "--ipc=shareable --pid host --uts host --userns host",
    "--ipc container:{other} --pid container:{other}",
    "--ipc private --cgroupns private",
    "--cgroupns host --cgroup-parent /clearml-agent-test",
    "--privileged",
    "--cap-add ALL --cap-add kill --cap-add chown --cap-drop ALL --cap-drop CAP_CHOWN --cap-drop cap_chown",
    "--privileged=false --cap-add SYS_ADMIN --cap-add=net_raw --cap-drop ALL",
    "--security-opt seccomp=unconfined --security-opt no-new-privileges",
    "--security-opt no-new-privileges:true --security-opt label=disable",
    "--security-opt seccomp=seccomp.json --security-opt apparmor=unconfined",
    "--security-opt systempaths=unconfined",
    "--sysctl net.ipv4.ip_forward=1 --sysctl kernel.shmmax=1024",
    "--runtime runc --isolation default",
    "--runtime no-such-runtime",
    // Logs and health.
    "--log-driver json-file --log-opt max-size=10m --log-opt max-file=3",
    "--log-driver none",
    "--log-driver no-such-driver",
    "--log-opt max-size=wrong",
    "--health-cmd 'test -e /ok' --health-interval 1m30s --health-timeout 500ms --health-retries 3 --health-start-period 1.5h",
    "--no-healthcheck",
    "--health-retries 2",
    // Combinations, as people write them.
    "-e A=1 -v /tmp:/data --ipc=host --shm-size 8g --ulimit memlock=-1 --ulimit stack=67108864 --gpus all",
    "--network host --privileged -v /var/run/docker.sock:/var/run/docker.sock -e HERE --cap-add SYS_PTRACE --security-opt seccomp=unconfined",
    "-u 1000 --group-add 44 --device /dev/null --tmpfs /tmp:exec --read-only -m 2g --memory-swap 2g --cpus 2 --pids-limit 4096",
    "--init -p 8888:8888 -e JUPYTER=1 --add-host host.docker.internal:host-gateway -w /root --hostname notebook",
];

/// Runs `check` for each line, several at a time; what it found wrong.
fn each<T: Sync>(lines: &[T], check: impl Fn(&T) -> Option<String> + Sync) -> String {
    let next = AtomicUsize::new(0);
    let wrong = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(line) = lines.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Some(found) = check(line) {
                        wrong.lock().unwrap().push(found);
                    }
                }
            });
        }
    });
    wrong.into_inner().unwrap().join("\n")
}

#[test]
fn docker_and_we_create_the_same_containers() {
    let Some(stage) = Stage::new("same") else {
        return;
    };
    let created = AtomicUsize::new(0);
    let wrong = each(SAME, |line| {
        let words = stage.words(line);
        match (stage.by_docker(&words), stage.by_us(&words)) {
            (Ok(Made::Container(docker)), Ok(Made::Container(ours))) => {
                created.fetch_add(1, Ordering::Relaxed);
                let found = differences(&docker, &ours);
                (!found.is_empty()).then(|| format!("{line}\n    {}", found.join("\n    ")))
            }
            // This engine can't do it: it must say the same to both.
            (Ok(Made::Refused(docker)), Ok(Made::Refused(ours))) if docker == ours => {
                eprintln!("refused by this engine: {line}: {ours}");
                None
            }
            (docker, ours) => Some(format!("{line}\n    docker {docker:?}\n    ours {ours:?}")),
        }
    });
    let created = created.into_inner();
    eprintln!("{created} of {} containers are the same", SAME.len());
    assert!(wrong.is_empty(), "{wrong}");
    assert!(created >= 60, "{created} containers");
}

/// What docker refuses, and what we say.
const BAD: &[(&str, &str)] = &[
    ("--foo", "--foo is no flag of docker run"),
    ("-itk", "-k (in -itk) is no flag"),
    ("-e", "-e needs a value"),
    ("-e =a", "--env: a variable has a name"),
    (
        "--env-file env-bad",
        "env-bad, line 2: the name has a blank",
    ),
    (
        "--env-file missing",
        "--env-file: {dir}/missing: No such file",
    ),
    ("-l =a", "--label \"=a\": a label has a name"),
    (
        "-l 'a b=c'",
        "--label \"a b=c\": a label has a name without blanks",
    ),
    ("-m abc", "--memory \"abc\": expected a size"),
    ("-m 1zb", "--memory \"1zb\": expected a size"),
    ("-m -1", "--memory \"-1\": expected a size"),
    ("--memory-swap -2", "--memory-swap \"-2\""),
    (
        "--memory-swappiness 101",
        "--memory-swappiness \"101\": expected a number between 0 and 100",
    ),
    ("--shm-size 1mi", "--shm-size \"1mi\""),
    (
        "--cpus 1.1234567890123",
        "--cpus \"1.1234567890123\": no more than nine digits",
    ),
    ("--cpus many", "--cpus \"many\": expected a number of CPUs"),
    ("--cpus 1/0", "--cpus \"1/0\""),
    (
        "--cpu-shares 1.5",
        "--cpu-shares \"1.5\": expected a whole number",
    ),
    ("--pids-limit x", "--pids-limit \"x\""),
    (
        "--oom-score-adj 1001",
        "--oom-score-adj \"1001\": expected a number between -1000 and 1000",
    ),
    ("--init=maybe", "--init \"maybe\": expected true or false"),
    ("--blkio-weight-device sda:100", "--blkio-weight-device"),
    ("--device-read-bps /dev/loop0:x", "--device-read-bps"),
    ("--device-write-iops /dev/loop0:1.5", "--device-write-iops"),
    ("--ulimit nofile", "--ulimit \"nofile\": expected NAME=SOFT"),
    (
        "--ulimit files=1",
        "--ulimit \"files=1\": \"files\": expected one of core,",
    ),
    (
        "--ulimit nofile=2:1",
        "the soft limit is above the hard one",
    ),
    ("--ulimit nofile=1:2:3", "\"2:3\" is no whole number"),
    ("-v a:b:c:d", "--volume \"a:b:c:d\": too many colons"),
    ("-v /a:", "--volume \"/a:\": expected [SOURCE:]TARGET"),
    ("-v '~/data:/data'", "no shell replaces ~ here"),
    ("-v /tmp:data", "\"data\" is no absolute path"),
    (
        "--mount type=bind,source=/tmp",
        "--mount \"type=bind,source=/tmp\": it has no target=PATH",
    ),
    (
        "--mount type=bind,target=/a",
        "a mount of type bind has a source",
    ),
    (
        "--mount type=disk,target=/a",
        "type=disk: expected bind, volume, tmpfs or image",
    ),
    (
        "--mount target=/a,readonly=perhaps",
        "readonly: expected true or false",
    ),
    ("--mount target=/a,colour=red", "\"colour\" is no key of it"),
    (
        "--mount target=/a,bind-propagation=shared",
        "bind-* keys are for type=bind",
    ),
    (
        "--mount type=tmpfs,target=/a,tmpfs-mode=9",
        "tmpfs-mode: expected a file mode",
    ),
    ("--mount target=/a,colour", "\"colour\" is no key"),
    (
        "--mount type=bind,src=/a,dst=/b,bind-recursive=readonly",
        "go with readonly",
    ),
    ("--tmpfs run", "--tmpfs \"run\": expected an absolute path"),
    ("-p x", "--publish \"x\": \"x\" is no port"),
    ("-p 80:x", "--publish \"80:x\": \"x\" is no port"),
    ("-p 80:80/icmp", "expected tcp, udp or sctp"),
    ("-p 1.2.3:80:80", "\"1.2.3\" is no IP address"),
    (
        "-p 80-81:80-82",
        "80-81 and 80-82 are not the same number of ports",
    ),
    ("-p 90-80", "ends before it begins"),
    ("-p 70000:80", "\"70000\" is no port"),
    ("--expose 80:80", "--expose \"80:80\""),
    (
        "--network-alias a",
        "aliases are for networks that were made",
    ),
    (
        "--network {net} --network host",
        "can't have a mode like host too",
    ),
    ("--network {net} --network {net}", "the same network twice"),
    (
        "--network name={net},colour=red",
        "\"colour\" is no key of it",
    ),
    (
        "--network name={net},ip={ip}.9 --ip {ip}.10",
        "--ip and --network: both say it",
    ),
    ("--network ''", "--network \"\": expected the name"),
    (
        "--ip 300.1.1.1 --network {net}",
        "--ip \"300.1.1.1\": expected an IPv4 address",
    ),
    (
        "--mac-address xx",
        "--mac-address \"xx\": expected a MAC address",
    ),
    ("--add-host a", "--add-host \"a\": expected NAME:ADDRESS"),
    (
        "--add-host a:b",
        "--add-host \"a:b\": expected NAME:ADDRESS",
    ),
    ("--dns x", "--dns \"x\": expected an IP address"),
    (
        "--dns-search a_b",
        "--dns-search \"a_b\": expected the name of a domain",
    ),
    ("--link a:b:c", "--link \"a:b:c\": expected CONTAINER"),
    (
        "--gpus some",
        "--gpus \"some\": \"some\": expected all or a number",
    ),
    ("--gpus all,all", "\"count\" twice"),
    ("--gpus colour=red", "\"colour\" is no key of it"),
    ("--gpus 'x\"y'", "a quote in the middle"),
    ("--device null", "\"null\" is no absolute path"),
    (
        "--device /dev/null:/dev/x:q",
        "expected a mixture of r, w and m",
    ),
    (
        "--device /dev/null:/dev/x:rwm:y",
        "expected DEVICE[:PATH][:RIGHTS]",
    ),
    ("--device-cgroup-rule 'c 1:3 q'", "--device-cgroup-rule"),
    (
        "--pid container:",
        "--pid \"container:\": expected host or container:NAME",
    ),
    ("--uts me", "--uts \"me\": expected host"),
    ("--userns me", "--userns \"me\": expected host"),
    (
        "--cgroupns me",
        "--cgroupns \"me\": expected host or private",
    ),
    ("--isolation hyperv", "--isolation \"hyperv\""),
    (
        "--security-opt seccomp",
        "--security-opt \"seccomp\": expected NAME=VALUE",
    ),
    (
        "--security-opt seccomp=missing.json",
        "--security-opt: {dir}/missing.json: No such file",
    ),
    ("--security-opt seccomp=env-bad", "the file is no JSON"),
    (
        "--sysctl kernel.hostname=x",
        "a container has no setting of its own of that name",
    ),
    ("--sysctl net.ipv4.ip_forward", "expected NAME=VALUE"),
    (
        "--storage-opt size",
        "--storage-opt \"size\": expected NAME=VALUE",
    ),
    (
        "--restart sometimes",
        "--restart \"sometimes\": expected no,",
    ),
    ("--restart on-failure:x", "--restart \"on-failure:x\""),
    (
        "--log-driver none --log-opt a=b",
        "that driver has no options",
    ),
    (
        "--health-interval 10",
        "--health-interval \"10\": expected a time with its unit",
    ),
    ("--health-interval 1x", "--health-interval \"1x\""),
    ("--health-timeout -1s", "a time can't be negative"),
    (
        "--health-retries -1",
        "--health-retries \"-1\": expected a number of retries",
    ),
    (
        "--no-healthcheck --health-cmd x",
        "--no-healthcheck and --health-*",
    ),
    (
        "--pull sometimes",
        "--pull \"sometimes\": expected always, missing or never",
    ),
    (
        "--stop-timeout soon",
        "--stop-timeout \"soon\": expected a whole number",
    ),
    (
        "-a stdlog",
        "--attach \"stdlog\": expected stdin, stdout or stderr",
    ),
    (
        "--cpu-count 1",
        "--cpu-count can't be used: it is for containers of Windows",
    ),
];

#[test]
fn what_docker_refuses_we_refuse_and_name_the_flag() {
    let Some(stage) = Stage::new("bad") else {
        return;
    };
    let wrong = each(BAD, |(line, message)| {
        let words = stage.words(line);
        let message = stage.in_place(message);
        let accepted = matches!(stage.by_docker(&words), Ok(Made::Container(_)));
        match stage.by_us(&words) {
            _ if accepted => Some(format!("{line}: docker takes it")),
            Err(ours) if ours.contains(&message) => None,
            ours => Some(format!("{line}: {ours:?}, not {message:?}")),
        }
    });
    assert!(wrong.is_empty(), "{wrong}");
}

/// Flags that an engine may be too old for: docker's client refuses them, or passes them on and they
/// are lost.
#[test]
fn flags_of_newer_engines_are_refused_by_name() {
    let Some(stage) = Stage::new("new") else {
        return;
    };
    let has = stage.engine.api.client_version();
    for (line, needs) in [
        ("--annotation a=b", 43),
        ("--health-start-interval 1s", 44),
        ("--mac-address 92:d0:c6:0a:29:33 --network {net}", 44),
        (
            "--mount type=volume,src={volume},dst=/a,volume-subpath=b",
            45,
        ),
        ("--mount type=image,src=clearml-agent-test:tiny,dst=/a", 48),
        ("--network name={net},gw-priority=1", 48),
    ] {
        let words = stage.words(line);
        match (has.major_version, stage.by_us(&words)) {
            (1, Err(why)) if has.minor_version < needs => {
                assert!(
                    why.contains(&format!("API 1.{needs} or later")),
                    "{line}: {why}"
                );
            }
            (_, ours) => {
                let docker = stage.by_docker(&words);
                let (Ok(Made::Container(docker)), Ok(Made::Container(ours))) = (docker, ours)
                else {
                    panic!("{line}");
                };
                let found = differences(&docker, &ours);
                assert!(found.is_empty(), "{line}: {found:?}");
            }
        }
    }
}

#[test]
fn further_networks_are_connected() {
    let Some(stage) = Stage::new("further") else {
        return;
    };
    let words = stage.words("--network {net} --network name={net2},alias=b --network-alias a");
    let Ok(Made::Container(container)) = stage.by_us(&words) else {
        panic!("not created");
    };
    let document = docker::inspect(&[&container]).remove(0);
    let networks = &document["NetworkSettings"]["Networks"];
    let has = |network: &Network, alias: &str| {
        let aliases = networks[&network.name]["Aliases"].as_array().unwrap();
        aliases.contains(&json!(alias))
    };
    assert!(has(&stage.network, "a"), "{networks}");
    assert!(!has(&stage.network, "b"), "{networks}");
    assert!(has(&stage.second_network, "b"), "{networks}");
}

#[test]
fn a_container_has_the_name_that_is_given() {
    let Some(stage) = Stage::new("name") else {
        return;
    };
    let name = format!("clearml-agent-test-{}", std::process::id());
    let words = stage.words(&format!("--name {name} --name={name}-2 --pull never"));
    let Ok(Made::Container(container)) = stage.by_us(&words) else {
        panic!("not created");
    };
    let document = docker::inspect(&[&container]).remove(0);
    assert_eq!(document["Name"], format!("/{name}-2"));
}
