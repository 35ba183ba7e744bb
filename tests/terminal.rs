//! A terminal that nobody reads, or that is gone, keeps no run from its true end.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};

use common::{PATIENCE, World, eventually, script};

/// Both ends of a new pseudo-terminal: ours, and the program's.
fn terminal() -> (File, OwnedFd) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap();
    let theirs = File::options()
        .read(true)
        .write(true)
        .open(name.to_str().unwrap())
        .unwrap();
    (ours.into(), theirs.into())
}

/// Where the agent's output goes, and what keeps it from being gone.
enum Sink {
    StuckPipe,
    StuckTerminal,
    GonePipe,
    GoneTerminal,
}

impl Sink {
    fn open(&self) -> (Option<OwnedFd>, OwnedFd) {
        match self {
            Sink::StuckPipe => {
                let (ours, theirs) = std::io::pipe().unwrap();
                (Some(ours.into()), theirs.into())
            }
            Sink::StuckTerminal => {
                let (ours, theirs) = terminal();
                (Some(ours.into()), theirs)
            }
            Sink::GonePipe => (None, std::io::pipe().unwrap().1.into()),
            Sink::GoneTerminal => (None, terminal().1),
        }
    }
}

fn start(world: &World, words: &[&str], sink: OwnedFd) -> Child {
    let mut command = world.command(words);
    command
        .stdout(sink.try_clone().unwrap())
        .stderr(sink)
        .spawn()
        .unwrap()
}

fn exit_code(mut child: Child) -> Option<i32> {
    let mut code = None;
    eventually(&format!("the agent ends within {PATIENCE:?}"), || {
        code = child.try_wait().unwrap();
        code.is_some()
    });
    code.unwrap().code()
}

/// More than any pipe takes.
const TALKER: &str = "\
import sys
for n in range(30000): print(n, 'is a line of some length, as scripts print them')
print('that was all')
sys.exit(3)
";

#[test]
fn a_run_comes_to_its_end_though_nobody_reads_what_it_says() {
    let world = World::new();
    for sink in [
        Sink::StuckPipe,
        Sink::StuckTerminal,
        Sink::GonePipe,
        Sink::GoneTerminal,
    ] {
        let id = world.api.create("a talker", script(TALKER));
        let (ours, theirs) = sink.open();
        let file = world.path("result.json");
        let result = file.to_str().unwrap();
        let words = ["--debug", "execute", "--id", &id, "--result", result];
        let running = start(&world, &words, theirs);
        assert_eq!(exit_code(running), Some(3));
        drop(ours);
        assert_eq!(world.api.status(&id), "failed");
        assert!(world.api.reason(&id).contains("exit code 3"));
        assert!(world.api.log(&id).contains("that was all"));
        let result = std::fs::read_to_string(file).unwrap();
        assert!(result.contains("\"reason\": \"failed\""), "{result}");
    }
}

/// Standard error alone: what the agent says when the log is through.
#[test]
fn a_status_is_written_though_standard_error_is_gone() {
    let world = World::new();
    let id = world.api.create("quiet", script("print('ran')"));
    let (_, gone) = Sink::GonePipe.open();
    let mut command = world.command(&["execute", "--id", &id]);
    let running = command.stdout(Stdio::null()).stderr(gone).spawn().unwrap();
    assert_eq!(exit_code(running), Some(0));
    assert_eq!(world.api.status(&id), "completed");
    // Nothing was run, and that is said to nobody.
    let (_, gone) = Sink::GonePipe.open();
    let mut command = world.command(&["execute", "--id", &"0".repeat(32)]);
    let running = command.stdout(Stdio::null()).stderr(gone).spawn().unwrap();
    assert_eq!(exit_code(running), Some(66));
}

/// What it has not shown does not fill the disk, and nothing is missing on the server for that.
#[test]
fn a_terminal_on_hold_is_left_behind_and_told_so() {
    let world = World::new();
    world.configure("agent.journal.max_size_mb: 1");
    let go = world.path("go");
    let text = format!(
        "import os, time\n\
         for n in range(30000):\n    print(n, 'is a line of some length, as scripts print them')\n    \
         if n % 3000 == 0: time.sleep(0.3)\n\
         print('that was all', flush=True)\n\
         while not os.path.exists({:?}): time.sleep(0.01)\n",
        go.to_str().unwrap()
    );
    let id = world.api.create("a talker", script(&text));
    let (ours, theirs) = Sink::StuckPipe.open();
    let running = start(&world, &["execute", "--id", &id], theirs);
    eventually("the server has all", || {
        world.api.log(&id).contains("that was all")
    });
    let log = world.api.log(&id);
    assert!(!log.contains("missing here"), "{log}");
    let mut shown = String::new();
    let reading = std::thread::spawn(move || {
        File::from(ours.unwrap())
            .read_to_string(&mut shown)
            .unwrap();
        shown
    });
    std::fs::write(go, "").unwrap();
    assert_eq!(exit_code(running), Some(0));
    let shown = reading.join().unwrap();
    assert!(shown.contains("left out here, nobody was reading"));
    assert!(shown.contains("all on the server"), "{shown}");
}
