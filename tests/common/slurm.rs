//! A Slurm of one node, for one test file: its own munge key, ports and folders; ended when dropped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// Seconds between SIGTERM and SIGKILL.
pub const KILL_WAIT: u64 = 15;

pub struct Slurm {
    dir: TempDir,
    daemons: Vec<Child>,
}

impl Slurm {
    /// Why not, where this machine has none or will not let it run.
    pub fn start() -> Result<Slurm, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("Slurm's daemons need root".into());
        }
        for program in ["munged", "slurmctld", "slurmd", "sbatch"] {
            let path = "/usr/sbin:/usr/bin:/sbin:/bin";
            let found = path
                .split(':')
                .any(|dir| Path::new(dir).join(program).exists());
            if !found {
                return Err(format!("{program} is not installed (slurm-wlm, munge)"));
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["state", "spool"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        let key: Vec<u8> = (0..64)
            .flat_map(|_| *uuid::Uuid::new_v4().as_bytes())
            .collect();
        std::fs::write(path("key"), key).unwrap();
        private(&path("key"));
        let host = rustix::system::uname()
            .nodename()
            .to_str()
            .unwrap()
            .to_owned();
        let (control, node) = (free_port(), free_port());
        let at = dir.path().display();
        let conf = format!(
            "ClusterName=test\nSlurmctldHost={host}(127.0.0.1)\nSlurmUser=root\nSlurmdUser=root\n\
             SlurmctldPort={control}\nSlurmdPort={node}\nAuthInfo=socket={at}/munge.socket\n\
             ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nJobAcctGatherType=jobacct_gather/none\n\
             SelectType=select/cons_tres\nReturnToService=2\nKillWait={KILL_WAIT}\nMpiDefault=none\n\
             PreemptType=preempt/partition_prio\nPreemptMode=REQUEUE\nSlurmdParameters=config_overrides\n\
             StateSaveLocation={at}/state\nSlurmdSpoolDir={at}/spool\nSlurmctldLogFile={at}/control.log\n\
             SlurmdLogFile={at}/node.log\nSlurmctldPidFile={at}/control.pid\nSlurmdPidFile={at}/node.pid\n\
             NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN\n\
             PartitionName=low Nodes={host} Default=YES PriorityTier=1 PreemptMode=REQUEUE\n\
             PartitionName=high Nodes={host} PriorityTier=10 PreemptMode=OFF\n"
        );
        std::fs::write(path("slurm.conf"), conf).unwrap();

        let mut slurm = Slurm {
            dir,
            daemons: Vec::new(),
        };
        slurm.daemon(
            "munged",
            &[
                "--foreground".into(),
                "--force".into(),
                format!("--key-file={at}/key", at = slurm.at()),
                format!("--socket={at}/munge.socket", at = slurm.at()),
                format!("--pid-file={at}/munge.pid", at = slurm.at()),
                format!("--log-file={at}/munge.log", at = slurm.at()),
                format!("--seed-file={at}/munge.seed", at = slurm.at()),
            ],
        );
        super::common::eventually("munge is up", || slurm.path("munge.socket").exists());
        slurm.daemon("slurmctld", &["-D".into()]);
        slurm.daemon("slurmd", &["-D".into()]);
        super::common::eventually("the node is idle", || {
            slurm
                .ask(&["sinfo", "-h", "-o", "%T"])
                .lines()
                .all(|state| state == "idle")
                && !slurm.ask(&["sinfo", "-h", "-o", "%T"]).is_empty()
        });
        Ok(slurm)
    }

    fn at(&self) -> String {
        self.dir.path().display().to_string()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command with this Slurm's settings.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env("PATH", format!("{path}:/usr/sbin:/sbin"))
            .env("SLURM_CONF", self.path("slurm.conf"))
            .stdin(Stdio::null());
        command
    }

    fn daemon(&mut self, program: &str, args: &[String]) {
        let child = self
            .command(program)
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.daemons.push(child);
    }

    /// What a Slurm command prints.
    pub fn ask(&self, words: &[&str]) -> String {
        let output = self.command(words[0]).args(&words[1..]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A field of `scontrol show job`.
    pub fn field(&self, job: &str, name: &str) -> String {
        let shown = self.ask(&["scontrol", "-o", "show", "job", job]);
        let prefix = format!("{name}=");
        let field = shown
            .split_whitespace()
            .find_map(|f| f.strip_prefix(&prefix));
        field.unwrap_or_default().to_owned()
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        self.ask(&["scancel", "--signal=KILL", "--user=root"]);
        for daemon in self.daemons.iter_mut().rev() {
            let pid = rustix::process::Pid::from_child(daemon);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let _ = daemon.wait();
        }
    }
}

fn private(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().port()
}
