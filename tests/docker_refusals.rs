//! Containers that cannot be had: each with its own words, reason and exit code.

#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/docker.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod docker;
#[path = "common/in_container.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod in_container;

use std::io::Write as _;
use std::net::{TcpListener, UdpSocket};
use std::process::{Command, Stdio};

use common::script;
use docker::{TINY_IMAGE, docker};
use in_container::{Image, PYTHON_IMAGE, engine, refused, refused_before, world};

#[test]
fn an_engine_that_is_not_there() {
    if !engine() {
        return;
    }
    let mut world = world();
    for (host, word) in [
        ("unix:///nowhere/docker.sock", "/nowhere/docker.sock"),
        ("tcp://127.0.0.1:1", "refused"),
        ("ssh://me:secret@somewhere", "use a key"),
    ] {
        world.env.insert("DOCKER_HOST".into(), host.into());
        refused_before(&world, PYTHON_IMAGE, 74, "no_engine").complains(word);
    }
}

#[test]
fn an_engine_that_this_user_may_not_use() {
    if !engine() {
        return;
    }
    let world = world();
    let id = world.api.create("refused", script("print('never')\n"));
    let command = world.command(&["execute", "--id", &id, "--docker", PYTHON_IMAGE]);
    let home = world.home.path().to_str().unwrap();
    let chown = Command::new("chown")
        .args(["-R", "65534:65534", home])
        .status();
    if !chown.unwrap().success() {
        eprintln!("not tested here: only root can be somebody else");
        return;
    }
    let mut other = Command::new("setpriv");
    other
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => other.env(name, value),
            None => other.env_remove(name),
        };
    }
    let output = other.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(77), "{said} {output:?}");
    assert!(said.contains("permission denied"), "{said}");
    assert!(said.contains("usermod"), "{said}");
    assert_eq!(world.api.status(&id), "created");
}

#[test]
fn arguments_that_are_none() {
    if !engine() {
        return;
    }
    let world = world();
    let bad = |words: &str| {
        let image = format!("{PYTHON_IMAGE} {words}");
        refused_before(&world, &image, 2, "config_invalid")
    };
    bad("--no-such-flag").complains("--no-such-flag");
    bad("--gpus abc").complains("--gpus");
    let id = world.api.create("untouched", script("print('never')\n"));
    world
        .execute(&id, &["--docker=--ipc=host image"])
        .exits(2)
        .complains("The image comes first");
    assert_eq!(world.api.status(&id), "created");
    // Only the engine knows that it is too little.
    let image = format!("{PYTHON_IMAGE} --memory 1");
    refused(&world, &image, 65, "container_arguments_invalid").complains("emory");
}

#[test]
fn ports_that_cannot_be_had() {
    if !engine() {
        return;
    }
    let world = world();
    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    world.configure(&format!(
        "agent.docker_args_allowed_port_range: [{port}, {port}]"
    ));
    let image = format!("{PYTHON_IMAGE} -p {port}:80");
    refused(&world, &image, 74, "port_taken")
        .complains(&format!("-p {port}:80"))
        .complains("there is no free port between");
    // Ports of UDP stay where they are asked for.
    let taken = UdpSocket::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let image = format!("{PYTHON_IMAGE} -p {port}:80/udp");
    refused(&world, &image, 74, "port_taken").complains(&port.to_string());

    world.configure("agent.docker_args_allowed_port_range: 9000-10000");
    refused_before(&world, PYTHON_IMAGE, 78, "config_invalid")
        .complains("docker_args_allowed_port_range");
}

#[test]
fn a_name_that_is_taken() {
    if !engine() {
        return;
    }
    let world = world();
    let name = format!("clearml-agent-test-{}-name", std::process::id());
    let label = docker::label();
    let id = docker(&[
        "create", "--name", &name, "--label", &label, TINY_IMAGE, "true",
    ])
    .unwrap();
    let other = docker::Container {
        id: id.trim().to_owned(),
    };
    let image = format!("{PYTHON_IMAGE} --name {name}");
    refused(&world, &image, 74, "container_name_taken").complains(&name);
    // It is somebody else's and stays.
    let format = "{{.Name}}";
    let still = docker(&["inspect", "--format", format, &other.id]).unwrap();
    assert_eq!(still.trim(), format!("/{name}"));
}

#[test]
fn an_image_without_a_shell() {
    if !engine() {
        return;
    }
    let world = world();
    let name = format!("clearml-agent-test-{}-no-shell", std::process::id());
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o644);
    archive
        .append_data(&mut header, "nothing", std::io::empty())
        .unwrap();
    let mut import = Command::new("docker")
        .args(["import", "-", &name])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let bytes = archive.into_inner().unwrap();
    import.stdin.take().unwrap().write_all(&bytes).unwrap();
    assert!(import.wait().unwrap().success());
    let image = Image(name);
    refused(&world, &image.0, 65, "image_unsuitable").complains("no shell");
}

#[test]
fn an_image_without_the_c_library() {
    if !engine() {
        return;
    }
    let world = world();
    refused(&world, TINY_IMAGE, 65, "image_unsuitable").complains("no glibc");
}

#[test]
fn an_image_that_is_too_old() {
    // The loader's stand-in is written for this processor.
    if !cfg!(target_arch = "x86_64") || !engine() {
        return;
    }
    // In the place of the loader, a program that says what an old one does.
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("old.c");
    std::fs::write(
        &source,
        // No C library of its own: as a loader, it is started with nothing set up.
        "static long call(long number, long a, const void *b, long c) {\n  long result;\n  \
         __asm__ volatile (\"syscall\" : \"=a\"(result) : \"a\"(number), \"D\"(a), \"S\"(b), \"d\"(c) : \"rcx\", \"r11\", \"memory\");\n  \
         return result;\n}\n\
         static const char said[] = \"/.clearml-agent/bin/clearml-agent: /lib/x86_64-linux-gnu/libc.so.6: \
         version `GLIBC_2.34' not found (required by /.clearml-agent/bin/clearml-agent)\\n\";\n\
         void _start(void) { call(1, 2, said, sizeof said - 1); call(60, 1, 0, 0); }\n",
    )
    .unwrap();
    let program = dir.path().join("ld-linux-x86-64.so.2");
    let built = Command::new("cc")
        .args(["-static-pie", "-fPIE", "-nostdlib", "-o"])
        .arg(&program)
        .arg(&source)
        .status()
        .unwrap();
    assert!(built.success());
    let base = Image::of(TINY_IMAGE, "for-loader", "mkdir -p /lib64", &[]);
    let id = docker(&["create", "--label", &docker::label(), &base.0, "true"]).unwrap();
    let holder = docker::Container {
        id: id.trim().to_owned(),
    };
    let to = format!("{}:/lib64/ld-linux-x86-64.so.2", holder.id);
    docker(&["cp", program.to_str().unwrap(), &to]).unwrap();
    let name = format!("clearml-agent-test-{}-old", std::process::id());
    docker(&["commit", &holder.id, &name]).unwrap();
    let image = Image(name);
    let world = world();
    refused(&world, &image.0, 65, "image_unsuitable").complains("glibc) is older than 2.34");
}
