//! The mirror cache on a disk that hosts share: a real network file system (sshfs) seen by two hosts, each
//! with a name and locks of its own, which the other one does not see; and no hard links.
//!
//! Needs sshfs and the right to mount: without them the tests say so and pass.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used)]

#[path = "common/git_http.rs"]
mod git_http;
#[path = "common/source_host.rs"]
mod source_host;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use git_http::{GitServer, TestRepo, git_in};
use source_host::{Host, script};
use tempfile::TempDir;

const RUNS: usize = 4;

/// Two hosts, which have the folder `disk` in common: each sees it at a folder of its own name.
struct Hosts {
    folder: TempDir,
}

impl Hosts {
    /// Nothing where this machine does not let them be.
    fn new() -> Option<Hosts> {
        let folder = tempfile::tempdir().unwrap();
        for name in ["disk", "one", "two"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let server = folder.path().join("ssh");
        let text = "#!/bin/sh\nexec /usr/lib/openssh/sftp-server\n";
        fs::write(&server, text).unwrap();
        fs::set_permissions(&server, fs::Permissions::from_mode(0o755)).unwrap();
        let hosts = Hosts { folder };
        let tried = hosts.shell("stat -f -c %T one two").output().unwrap();
        let said = String::from_utf8_lossy(&tried.stdout).into_owned();
        if said != "fuseblk\nfuseblk\n" {
            let why = String::from_utf8_lossy(&tried.stderr);
            println!("not tried: no sshfs can be mounted here: {said}{why}");
            return None;
        }
        Some(hosts)
    }

    /// A shell in namespaces of its own, with the disk mounted twice. All that runs there ends with it.
    fn shell(&self, line: &str) -> Command {
        let mounts = ["one", "two"].map(|name| {
            format!(
                "sshfs x:{}/disk {name} -o ssh_command={}/ssh,disable_hardlink && ",
                self.folder.path().display(),
                self.folder.path().display()
            )
        });
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", &format!("{}{{ {line}\n}}", mounts.concat())])
            .current_dir(self.folder.path())
            .env("EXE", std::env::current_exe().unwrap());
        command
    }

    /// This test program in the role of hosts at once.
    fn run(&self, names: &[&str], url: &str) -> Command {
        let on = |name: &&str| {
            format!(
                "{{ unshare --uts sh -c 'hostname {name}; ROLE_DISK={name} exec \"$EXE\" --exact role_runs \
                 --nocapture' > {name}.out 2>&1; echo $? >> {name}.out; }} & "
            )
        };
        let all: String = names.iter().map(on).collect();
        let mut command = self.shell(&format!("{all}wait"));
        command.env("ROLE_URL", url);
        command
    }

    /// Runs of these hosts; all must get this commit.
    fn get(&self, names: &[&str], url: &str, commit: &str) {
        let output = self.run(names, url).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        for name in names {
            let text = fs::read_to_string(self.path(&format!("{name}.out"))).unwrap();
            let ran = text.matches(&format!("ran {commit}\n")).count();
            assert_eq!(ran, RUNS, "{text}");
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Mirrors that are not whole, as the disk itself has them.
    fn half_made(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("disk/cache")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with('.')).collect()
    }
}

/// Many runs of one host at once.
#[test]
fn role_runs() {
    let Some(disk) = std::env::var_os("ROLE_DISK").map(PathBuf::from) else {
        return;
    };
    let mut host = Host::new();
    let work = std::env::var_os("ROLE_WORK").map_or_else(|| disk.clone(), PathBuf::from);
    host.folder = TempDir::new_in(work).unwrap();
    host.kept_in = Some(disk.join("cache"));
    if let Ok(ssh) = std::env::var("ROLE_SSH") {
        host.env.insert("GIT_SSH_COMMAND".into(), ssh);
    }
    let wanted = script(&std::env::var("ROLE_URL").unwrap());
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..RUNS)
            .map(|_| scope.spawn(|| host.fetch(&wanted)))
            .collect();
        for run in runs {
            let sources = run.join().unwrap().unwrap();
            assert_eq!(git_in(&sources.root, &["status", "--porcelain"]), "");
            println!("\nran {}", sources.commit.unwrap());
        }
    });
    println!("said:\n{}", host.said());
}

#[test]
fn runs_of_two_hosts_share_a_cache_on_a_network_disk() {
    let Some(hosts) = Hosts::new() else { return };
    let repo = TestRepo::new();
    for n in 0..40 {
        repo.write(&format!("folder{n}/file"), format!("{n}\n").repeat(1000));
    }
    let server = GitServer::start(repo.served_root(), None);
    for (what, harm) in [
        ("an empty cache", None),
        ("an older mirror", None),
        ("a damaged mirror", Some(damage as fn(&Path))),
    ] {
        let commit = repo.commit(what);
        if let Some(harm) = harm {
            harm(&hosts.folder.path().join("disk/cache"));
        }
        hosts.get(&["one", "two"], &server.url("up/.git"), &commit);
    }
}

fn damage(cache: &Path) {
    for entry in fs::read_dir(cache).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            let _ = fs::remove_dir_all(path.join("objects/pack"));
        }
    }
}

#[test]
fn a_cache_on_a_full_disk_is_done_without() {
    let folder = tempfile::tempdir().unwrap();
    let repo = TestRepo::new();
    repo.write("noise", noise(3));
    let commit = repo.commit("noise");
    let server = GitServer::start(repo.served_root(), None);
    for url in [server.url("up/.git"), repo.url()] {
        let line = "mount -t tmpfs -o size=100k none . && cd . && echo mounted && \
                    exec \"$EXE\" --exact role_runs --nocapture";
        let output = Command::new("unshare")
            .args(["--mount", "sh", "-c", line])
            .current_dir(folder.path())
            .env("EXE", std::env::current_exe().unwrap())
            .env("ROLE_DISK", folder.path())
            .env("ROLE_WORK", std::env::temp_dir())
            .env("ROLE_URL", &url)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        if !said.contains("mounted") {
            println!("not tried: nothing can be mounted here");
            return;
        }
        let why = String::from_utf8_lossy(&output.stderr);
        let ran = said.matches(&format!("ran {commit}\n")).count();
        assert_eq!(ran, RUNS, "{said}{why}");
        assert!(said.contains("No space left"), "{said}");
        assert!(said.contains("fetching without it"), "{said}");
    }
}

/// Numbers that do not get smaller in a pack.
fn noise(seed: u32) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..200_000).map(|_| next()).collect()
}

#[test]
fn a_host_that_is_lost_in_a_fetch_leaves_nothing_in_the_way() {
    let Some(hosts) = Hosts::new() else { return };
    let repo = TestRepo::new();
    let url = format!("ssh://host{}", repo.url());
    // Passes a part of the pack on, and no more while there is a file `stall`.
    let ssh = hosts.path("git-ssh");
    let text = "#!/usr/bin/env python3\n\
        import os, subprocess, sys, time\n\
        if not os.path.exists('stall'):\n    os.execvp('sh', ['sh', '-c', sys.argv[-1]])\n\
        pack = subprocess.Popen(sys.argv[-1], shell=True, stdout=subprocess.PIPE).stdout.fileno()\n\
        left = 50000\n\
        while left > 0:\n    data = os.read(pack, left)\n    os.write(1, data)\n    left -= len(data)\n\
        open('stalled', 'w').close()\n\
        time.sleep(1000)\n";
    fs::write(&ssh, text).unwrap();
    fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
    for (seed, what) in [(1, "the first fetch"), (2, "a later fetch")] {
        repo.write("noise", noise(seed));
        let commit = repo.commit(what);
        let stall = hosts.path("stall");
        fs::write(&stall, "").unwrap();
        let mut lost = hosts
            .run(&["one"], &url)
            .env("ROLE_SSH", &ssh)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let stalled = hosts.path("stalled");
        while !stalled.exists() {
            assert!(lost.try_wait().unwrap().is_none(), "{what}: ended");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        lost.kill().unwrap();
        lost.wait().unwrap();
        fs::remove_file(&stall).unwrap();
        fs::remove_file(&stalled).unwrap();
        if seed == 1 {
            let half_made = hosts.half_made();
            assert_eq!(half_made.len(), 1, "{half_made:?}");
        }
        for host in ["two", "one"] {
            let mut run = hosts.run(&[host], &url);
            let output = run.env("ROLE_SSH", &ssh).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            let text = fs::read_to_string(hosts.path(&format!("{host}.out"))).unwrap();
            let ran = text.matches(&format!("ran {commit}\n")).count();
            assert_eq!(ran, RUNS, "{what}: {text}");
        }
        assert_eq!(hosts.half_made(), [""; 0], "{what}");
    }
}
