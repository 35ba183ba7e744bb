//! The kernel's log, as far as it names processes killed for want of memory.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;

/// The log from the moment of opening on.
#[derive(Debug)]
pub struct KernelLog {
    records: File,
}

/// A process that the kernel killed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kill {
    pub pid: i32,
    pub name: String,
    /// The machine had no memory left; otherwise a control group's limit was reached.
    pub machine: bool,
}

/// The first process id namespace, whose ids the log has: PROC_PID_INIT_INO of the kernel.
const FIRST_NAMESPACE: &str = "pid:[4026531836]";

impl KernelLog {
    /// `None` where this user may not read it, or where its process ids are not those seen here.
    pub fn open() -> Option<KernelLog> {
        let namespace = fs::read_link("/proc/self/ns/pid").ok()?;
        if namespace.as_os_str() != FIRST_NAMESPACE {
            return None;
        }
        let mut records = File::options()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
            .open("/dev/kmsg")
            .ok()?;
        records.seek(SeekFrom::End(0)).ok()?;
        Some(KernelLog { records })
    }

    /// Who was killed since; `None` if some of the log is lost.
    pub fn kills(mut self) -> Option<Vec<Kill>> {
        // No record is longer, and each read gives one.
        let mut record = [0; 8192];
        let mut kills = Vec::new();
        loop {
            match self.records.read(&mut record) {
                Ok(0) => break,
                Ok(length) => kills.extend(kill(&String::from_utf8_lossy(&record[..length]))),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                // Overwritten before it was read, most often.
                Err(_) => return None,
            }
        }
        Some(kills)
    }
}

/// `3,1234,5678,-;Memory cgroup out of memory: Killed process 42 (python) total-vm:…`
fn kill(record: &str) -> Option<Kill> {
    let (_, text) = record.split_once(';')?;
    let machine = text.starts_with("Out of memory");
    if !machine && !text.starts_with("Memory cgroup out of memory") {
        return None;
    }
    let (_, victim) = text.split_once("Killed process ")?;
    let (pid, rest) = victim.split_once(" (")?;
    let (name, _) = rest.split_once(") ")?;
    Some(Kill {
        pid: pid.parse().ok()?,
        name: name.to_owned(),
        machine,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_that_name_a_killed_process() {
        for (record, expected) in [
            (
                "3,806,8316,-;Memory cgroup out of memory: Killed process 42 (pt_data (1)) total-vm:10kB, anon-rss:9kB, UID:0 pgtables:5kB oom_score_adj:0\n",
                Some((42, "pt_data (1)", false)),
            ),
            (
                "3,807,8317,-;Out of memory: Killed process 9 (python) total-vm:1kB\n SUBSYSTEM=x\n",
                Some((9, "python", true)),
            ),
            (
                "3,807,8317,-;Out of memory (oom_kill_allocating_task): Killed process 9 (a) total-vm:1kB\n",
                Some((9, "a", true)),
            ),
            (
                "6,805,8315,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),task=python,pid=42,uid=0\n",
                None,
            ),
            ("6,1,1,-;Linux version 6\n", None),
            ("", None),
        ] {
            let found = kill(record).map(|k| (k.pid, k.name, k.machine));
            let expected = expected.map(|(pid, name, machine)| (pid, name.to_owned(), machine));
            assert_eq!(found, expected, "{record}");
        }
    }
}
