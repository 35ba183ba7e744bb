//! `clearml-agent server` as a process of its own: to be killed, or so that its work is not the agent's.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::common::Api;

pub struct ServerProcess {
    child: Child,
    pub api: Api,
}

impl ServerProcess {
    /// With its data in a folder, or in memory.
    pub fn start(listen: &str, data: Option<&Path>) -> ServerProcess {
        let mut command = Command::new(env!("CARGO_BIN_EXE_clearml-agent"));
        command.args(["server", "--listen", listen]);
        if let Some(data) = data {
            command.arg("--data").arg(data);
        }
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut text = String::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        while !text.contains("secret_key") {
            assert!(lines.read_line(&mut text).unwrap() > 0, "{text}");
        }
        // What follows a name in the configuration that it prints.
        let printed = |name: &str| {
            let after = text.split_once(name).unwrap().1;
            let value = after.trim_start_matches(['"', ':', '=', ' ']);
            value.split_once('"').unwrap().0.to_owned()
        };
        let api = Api {
            url: printed("api_server"),
            access_key: printed("access_key"),
            secret_key: printed("secret_key"),
        };
        ServerProcess { child, api }
    }

    /// SIGKILL, as dropping it does.
    pub fn kill(self) {}
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
