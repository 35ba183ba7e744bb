//! Real `sshd` and `git daemon`, each on a port of its own, ended with their value.

// Not every test file uses all of it.
#![allow(dead_code)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// An sshd that lets one key in, and the home folder of somebody who has that key.
pub struct SshServer {
    child: Child,
    pub port: u16,
    pub user: String,
    folder: TempDir,
}

impl SshServer {
    pub fn start() -> SshServer {
        let folder = TempDir::new().unwrap();
        let at = |name: &str| folder.path().join(name);
        let ssh = at("home/.ssh");
        fs::create_dir_all(&ssh).unwrap();
        for key in [
            at("host_key"),
            ssh.join("id_ed25519"),
            ssh.join("other_key"),
        ] {
            run(
                "ssh-keygen",
                &["-q", "-t", "ed25519", "-N", "", "-f", &text(&key)],
            );
        }
        fs::copy(ssh.join("id_ed25519.pub"), at("authorized_keys")).unwrap();
        let user = String::from_utf8(Command::new("id").arg("-un").output().unwrap().stdout);
        let user = user.unwrap().trim().to_owned();
        if user == "root" {
            fs::create_dir_all("/run/sshd").unwrap();
        }
        let port = free_port();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n\
             PidFile none\nLogLevel INFO\n",
            at("host_key").display(),
            at("authorized_keys").display()
        );
        fs::write(at("sshd_config"), config).unwrap();
        let program = ["/usr/sbin/sshd", "/usr/bin/sshd", "/sbin/sshd"];
        let program = program.into_iter().find(|path| Path::new(path).exists());
        // sshd starts itself anew for each connection and wants its whole path for that.
        let mut child = Command::new(program.expect("sshd is not installed"))
            .args(["-D", "-e", "-f", &text(&at("sshd_config"))])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
        let listening = said.by_ref().map_while(Result::ok);
        assert!(
            listening
                .into_iter()
                .any(|line| line.contains("Server listening")),
            "sshd did not start"
        );
        // Read on: a full pipe would stop it.
        std::thread::spawn(move || said.for_each(drop));
        let server = SshServer {
            child,
            port,
            user,
            folder,
        };
        server.know_host();
        server.configure("");
        server
    }

    pub fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    /// The home's `known_hosts` holds the server's key.
    pub fn know_host(&self) {
        let key = fs::read_to_string(self.folder.path().join("host_key.pub")).unwrap();
        let line = format!("[127.0.0.1]:{} {key}", self.port);
        fs::write(self.home().join(".ssh/known_hosts"), line).unwrap();
    }

    pub fn forget_host(&self) {
        fs::write(self.home().join(".ssh/known_hosts"), "").unwrap();
    }

    /// Writes the home's `~/.ssh/config`.
    pub fn configure(&self, text: &str) {
        fs::write(self.home().join(".ssh/config"), text).unwrap();
    }

    /// A folder for `PATH` with an `ssh` whose home is this one: OpenSSH takes the home from the
    /// machine's list of users, not from `HOME`.
    pub fn programs(&self) -> PathBuf {
        let folder = self.folder.path().join("bin");
        fs::create_dir_all(&folder).unwrap();
        let ssh = self.home().join(".ssh");
        let script = format!(
            "#!/bin/sh\nexec /usr/bin/ssh -F {config} -o UserKnownHostsFile={known} \
             -o GlobalKnownHostsFile=/dev/null {identity}\"$@\"\n",
            config = ssh.join("config").display(),
            known = ssh.join("known_hosts").display(),
            identity = match fs::read_to_string(ssh.join("config"))
                .unwrap()
                .contains("IdentityFile")
            {
                true => String::new(),
                false => format!("-o IdentityFile={} ", ssh.join("id_ed25519").display()),
            },
        );
        let program = folder.join("ssh");
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        folder
    }

    /// `ssh://user@127.0.0.1:port/path`.
    pub fn url(&self, path: &Path) -> String {
        let SshServer { user, port, .. } = self;
        format!("ssh://{user}@127.0.0.1:{port}{}", path.display())
    }
}

impl Drop for SshServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `git daemon` over a folder.
pub struct GitDaemon {
    child: Child,
    port: u16,
}

impl GitDaemon {
    pub fn start(root: &Path) -> GitDaemon {
        let port = free_port();
        let child = Command::new("git")
            .args([
                "daemon",
                "--export-all",
                "--reuseaddr",
                "--listen=127.0.0.1",
            ])
            .args([
                format!("--port={port}"),
                format!("--base-path={}", root.display()),
            ])
            .env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", "safe.directory")
            .env("GIT_CONFIG_VALUE_0", "*")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        // It says nothing when it is ready.
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::yield_now();
        }
        GitDaemon { child, port }
    }

    pub fn url(&self, path: &str) -> String {
        format!("git://127.0.0.1:{}/{path}", self.port)
    }
}

impl Drop for GitDaemon {
    fn drop(&mut self) {
        // `git` and the daemon that it has started.
        if let Some(group) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {said}");
}
